//! What is started, asked, broken and promised: docs/spec/scenario.md.
//!
//! A [`Scenario`] is a value that was checked: what it asks for can be done, and its own faults stay within its budget. [`run`] carries it
//! out with real processes. What is drawn at random is drawn by [`nemesis`], what happened is kept in a [`history`], and [`judge`] says
//! what of it must not have been; those three are pure, so that tests can show the judge a lie.

mod field;
pub mod history;
pub mod judge;
mod load;
pub mod nemesis;
mod run;
mod watch;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

pub use self::run::{Outcome, Programs, run};

/// Fewer nodes than this have nobody to lose.
const NODES_MIN: usize = 4;
/// More processes than this are a benchmark of the machine.
const NODES_MAX: usize = 64;
/// The most documents of one agent.
const DOCUMENTS_MAX: usize = 16;
/// The most bytes of a document.
const DOCUMENT_BYTES_MAX: usize = 65_536;

/// A whole scenario.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in one sentence.
    pub about: String,
    /// How many processes.
    #[serde(default = "nodes")]
    pub nodes: usize,
    /// How many agents: one on each of the first nodes.
    #[serde(default = "agents")]
    pub agents: usize,
    /// How many documents each has.
    #[serde(default = "documents")]
    pub documents: usize,
    /// How long things are broken.
    pub duration: Span,
    /// What nemesis and load draw from.
    #[serde(default = "seed")]
    pub seed: u64,
    /// How many of the last nodes lie.
    #[serde(default)]
    pub liars: usize,
    /// What they say, one after the other; empty: every lie that the lying program knows.
    #[serde(default)]
    pub lies: Vec<String>,
    /// What is asked of the mesh.
    #[serde(default)]
    pub load: Load,
    /// How much may be broken at once.
    pub budget: Budget,
    /// What must hold within the budget, beside what must always hold.
    #[serde(default)]
    pub promise: Promise,
    /// What is broken when.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Timed>,
    /// What is broken at random.
    pub nemesis: Option<NemesisPlan>,
}

/// What is asked of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// How often a document is written, on average.
    pub put_every: Span,
    /// How often something is read, on average, by all readers together.
    pub get_every: Span,
    /// About how many bytes a document has.
    pub bytes: usize,
}

/// How much may be broken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Nodes that are killed, paused, cut off, full or lying, or were a moment ago.
    pub broken: usize,
}

/// What must hold within the budget. What is absent is only measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// A repeated read succeeds after this.
    pub read: Option<Span>,
    /// A repeated put is acknowledged after this.
    pub write: Option<Span>,
    /// A holder back with an empty disk has its shards, so long after the first read.
    pub refill: Option<Span>,
    /// A section that lost a holder is whole again.
    #[serde(default)]
    pub repair: Repair,
}

/// After how long a section that lost a holder is whole again, by its class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the classes' names")]
pub struct Repair {
    pub core: Option<Span>,
    pub relationship: Option<Span>,
    pub document: Option<Span>,
}

impl Repair {
    /// For a class by its name.
    pub fn of(&self, class: &str) -> Option<Span> {
        match class {
            "core" => self.core,
            "relationship" => self.relationship,
            "document" => self.document,
            _ => None,
        }
    }

    /// The longest.
    pub fn longest(&self) -> Option<Duration> {
        [self.core, self.relationship, self.document].into_iter().flatten().map(|Span(after)| after).max()
    }
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// When it begins, from the beginning of the load.
    pub at: Span,
    /// How long it lasts; absent: until everything heals.
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
    /// What is broken.
    #[serde(rename = "do")]
    pub fault: Fault,
}

/// What can be broken.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// SIGKILL, and a start after it.
    #[serde(rename_all = "kebab-case")]
    Kill {
        /// These nodes, counted from 1.
        #[serde(default)]
        nodes: Vec<usize>,
        /// Or this share of the honest ones.
        share: Option<f64>,
        /// What the node has when it starts again.
        #[serde(default)]
        disk: Disk,
    },
    /// SIGKILL of homes whose agents go elsewhere.
    Move {
        /// These nodes, counted from 1.
        #[serde(default)]
        nodes: Vec<usize>,
        /// Or this share of the honest ones.
        share: Option<f64>,
    },
    /// SIGSTOP.
    Pause {
        /// These nodes, counted from 1.
        #[serde(default)]
        nodes: Vec<usize>,
        /// Or this share of the honest ones.
        share: Option<f64>,
    },
    /// Links between these nodes and all others are cut.
    Partition {
        /// These nodes, counted from 1.
        #[serde(default)]
        nodes: Vec<usize>,
        /// Or this share of the honest ones.
        share: Option<f64>,
        /// Which directions.
        #[serde(default)]
        way: Ways,
    },
    /// Links to and from these nodes are slow and lossy.
    Slow {
        /// These nodes, counted from 1.
        #[serde(default)]
        nodes: Vec<usize>,
        /// Or this share of the honest ones.
        share: Option<f64>,
        /// What every byte takes.
        #[serde(default)]
        delay: Span,
        /// What it takes more, at random up to this.
        #[serde(default)]
        jitter: Span,
        /// The share of packets that must be sent again.
        #[serde(default)]
        loss: f64,
    },
    /// Writes fail.
    FullDisk {
        /// These nodes, counted from 1.
        #[serde(default)]
        nodes: Vec<usize>,
        /// Or this share of the honest ones.
        share: Option<f64>,
    },
}

/// What a killed node has when it starts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    /// Everything that it had synced.
    #[default]
    Kept,
    /// Its identity, and no store.
    Emptied,
    /// Nothing: it is another node.
    Lost,
}

/// Which directions a partition cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ways {
    /// Nothing passes.
    #[default]
    Both,
    /// Nothing reaches the nodes.
    In,
    /// Nothing that they say gets out.
    Out,
}

/// What is broken at random.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NemesisPlan {
    /// A fault so often, on average.
    pub every: Span,
    /// Each lasts between these.
    #[serde(rename = "for")]
    pub lasts: (Span, Span),
    /// Of these kinds.
    #[serde(default = "every_kind")]
    pub faults: Vec<Kind>,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`Fault::Kill`].
    Kill,
    /// [`Fault::Move`].
    Move,
    /// [`Fault::Pause`].
    Pause,
    /// [`Fault::Partition`].
    Partition,
    /// [`Fault::Slow`].
    Slow,
    /// [`Fault::FullDisk`].
    FullDisk,
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Whom<'s> {
    /// These nodes, counted from 1.
    Nodes(&'s [usize]),
    /// So many honest nodes, drawn from the seed.
    Some(usize),
}

/// A length of time, written `"30s"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a scenario cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ScenarioError(String);

impl ScenarioError {
    /// What a person may do about it.
    pub const HINT: &str = "docs/spec/scenario.md has every field, and tests/scenarios/ has examples";
}

impl Scenario {
    /// Reads a scenario and checks it.
    ///
    /// # Errors
    /// It is not TOML, has fields that do not exist, or asks for what cannot be.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|error| ScenarioError(error.to_string().trim_end().to_owned()))?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Checks that it can be carried out as it stands, and that its own faults stay within its budget.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let no = |text: String| Err(ScenarioError(text));
        if !(NODES_MIN..=NODES_MAX).contains(&self.nodes) {
            return no(format!("nodes is {}; {NODES_MIN} to {NODES_MAX} can be started", self.nodes));
        }
        if self.liars >= self.nodes {
            return no(format!("liars is {}, and there are {} nodes", self.liars, self.nodes));
        }
        if self.agents == 0 || self.agents >= self.honest() {
            return no(format!("agents is {}; of {} honest nodes one at least must be nobody's home", self.agents, self.honest()));
        }
        if self.documents == 0 || self.documents > DOCUMENTS_MAX {
            return no(format!("documents is {}; an agent has 1 to {DOCUMENTS_MAX}", self.documents));
        }
        if self.load.bytes == 0 || self.load.bytes > DOCUMENT_BYTES_MAX {
            return no(format!("load.bytes is {}; a document has 1 to {DOCUMENT_BYTES_MAX}", self.load.bytes));
        }
        if self.load.put_every.0.is_zero() || self.load.get_every.0.is_zero() || self.duration.0.is_zero() {
            return no("duration, load.put_every and load.get_every must be more than nothing".to_owned());
        }
        if self.liars > self.budget.broken {
            return no(format!("{} liars are more than the budget of {} broken nodes", self.liars, self.budget.broken));
        }
        if let Some(nemesis) = &self.nemesis {
            if nemesis.every.0.is_zero() || nemesis.lasts.0 > nemesis.lasts.1 || nemesis.faults.is_empty() {
                return no(
                    "nemesis: every must be more than nothing, for must not be the wrong way round, and faults must name one".to_owned()
                );
            }
            if self.budget.broken == self.liars && nemesis.faults.iter().any(|kind| *kind != Kind::Slow) {
                return no(format!("nemesis: with {} liars the budget of {} leaves nothing to break", self.liars, self.budget.broken));
            }
        }
        for timed in &self.faults {
            self.check_fault(timed)?;
        }
        for timed in &self.faults {
            let together =
                self.faults.iter().filter(|other| other.overlaps(timed.at)).map(|other| self.breaks(&other.fault)).sum::<usize>();
            if together + self.liars > self.budget.broken {
                let at = timed.at;
                return no(format!(
                    "at {at} {} nodes are broken, liars included, and the budget is {}",
                    together + self.liars,
                    self.budget.broken
                ));
            }
        }
        Ok(())
    }

    fn check_fault(&self, timed: &Timed) -> Result<(), ScenarioError> {
        let at = timed.at;
        let no = |text: String| Err(ScenarioError(format!("the fault at {at}: {text}")));
        let (nodes, share) = timed.fault.asked();
        if nodes.is_empty() == share.is_none() {
            return no("give nodes, or a share of them".to_owned());
        }
        if let Some(node) = nodes.iter().find(|node| !(1..=self.honest()).contains(*node)) {
            return no(format!("node {node} is none of the {} honest ones", self.honest()));
        }
        if share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return no("a share is more than 0, and 1 at most".to_owned());
        }
        if let Fault::Slow { loss, .. } = timed.fault
            && !(0.0..=0.5).contains(&loss)
        {
            return no(format!("a loss of {loss} is no network: 0 to 0.5"));
        }
        if at >= self.duration {
            return no(format!("everything heals at {}", self.duration));
        }
        Ok(())
    }

    /// Nodes that run `persona` itself: the first ones.
    pub fn honest(&self) -> usize {
        self.nodes - self.liars
    }

    /// Whom a fault hits.
    pub fn whom<'s>(&self, fault: &'s Fault) -> Whom<'s> {
        match fault.asked() {
            (_, Some(share)) => Whom::Some(((self.honest() as f64 * share).round() as usize).clamp(1, self.honest())),
            (nodes, None) => Whom::Nodes(nodes),
        }
    }

    /// How many nodes a fault breaks.
    fn breaks(&self, fault: &Fault) -> usize {
        match (fault, self.whom(fault)) {
            (Fault::Slow { .. }, _) => 0,
            (_, Whom::Nodes(nodes)) => nodes.len(),
            (_, Whom::Some(count)) => count,
        }
    }
}

impl Timed {
    /// Whether it is under way, or mending, at a moment.
    fn overlaps(&self, moment: Span) -> bool {
        self.at <= moment && self.lasts.is_none_or(|lasts| moment.0 < self.at.0 + lasts.0 + nemesis::MENDING)
    }
}

impl Fault {
    fn asked(&self) -> (&[usize], Option<f64>) {
        match self {
            Self::Kill { nodes, share, .. }
            | Self::Move { nodes, share }
            | Self::Pause { nodes, share }
            | Self::Partition { nodes, share, .. }
            | Self::Slow { nodes, share, .. }
            | Self::FullDisk { nodes, share } => (nodes, *share),
        }
    }
}

impl Default for Load {
    fn default() -> Self {
        Self { put_every: Span::of_millis(2_000), get_every: Span::of_millis(100), bytes: 600 }
    }
}

impl Span {
    /// So many milliseconds.
    pub const fn of_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    fn read(text: &str) -> Option<Self> {
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
        let (digits, millis) = units.into_iter().find_map(|(unit, millis)| Some((text.strip_suffix(unit)?, millis)))?;
        let count: u64 = digits.parse().ok()?;
        Some(Self::of_millis(count.checked_mul(millis)?))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(60_000) && millis > 0 {
            write!(f, "{}m", millis / 60_000)
        } else if millis.is_multiple_of(1_000) {
            write!(f, "{}s", millis / 1_000)
        } else {
            write!(f, "{millis}ms")
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is no duration: write 250ms, 30s, 5m or 1h")))
    }
}

fn nodes() -> usize {
    16
}

fn agents() -> usize {
    4
}

fn documents() -> usize {
    3
}

fn seed() -> u64 {
    1
}

fn every_kind() -> Vec<Kind> {
    vec![Kind::Kill, Kind::Move, Kind::Pause, Kind::Partition, Kind::Slow, Kind::FullDisk]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "about = 'x'\nduration = '2m'\n[budget]\nbroken = 2\n";

    fn refusal(more: &str) -> String {
        Scenario::parse(&format!("{SMALL}{more}")).expect_err(more).to_string()
    }

    #[test]
    fn the_scenarios_that_are_shipped_can_be() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
        let mut read = 0;
        for file in std::fs::read_dir(folder).unwrap().flatten().filter(|file| file.path().extension().is_some_and(|ext| ext == "toml")) {
            let scenario = Scenario::parse(&std::fs::read_to_string(file.path()).unwrap());
            scenario.unwrap_or_else(|error| panic!("{}: {error}", file.path().display()));
            read += 1;
        }
        assert!(read > 0);
    }

    #[test]
    fn the_example_of_the_specification_can_be() {
        let page = include_str!("../../../docs/spec/scenario.md");
        let example = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let scenario = Scenario::parse(example).unwrap();
        assert_eq!((scenario.nodes, scenario.seed, scenario.load), (16, 1, Load::default()));
        assert_eq!(scenario.promise.read, Some(Span::of_millis(20_000)));
        let Timed { at, lasts, fault } = &scenario.faults[0];
        assert_eq!((at.to_string(), lasts.unwrap().to_string()), ("20s".to_owned(), "15s".to_owned()));
        assert_eq!((scenario.whom(fault), scenario.breaks(fault)), (Whom::Some(2), 2));
        assert!(matches!(fault, Fault::Kill { disk: Disk::Kept, .. }));
    }

    #[test]
    fn every_fault_is_a_value() {
        let faults = "[[fault]]\nat = '1s'\nfor = '1s'\ndo = { kill = { nodes = [3], disk = 'emptied' } }\n\
            [[fault]]\nat = '20s'\nfor = '1s'\ndo = { move = { nodes = [1] } }\n\
            [[fault]]\nat = '40s'\nfor = '1s'\ndo = { pause = { share = 0.1 } }\n\
            [[fault]]\nat = '60s'\nfor = '1s'\ndo = { partition = { nodes = [3, 4], way = 'out' } }\n\
            [[fault]]\nat = '61s'\ndo = { slow = { nodes = [5], delay = '250ms', loss = 0.1 } }\n\
            [[fault]]\nat = '80s'\ndo = { full-disk = { nodes = [6] } }\n";
        let scenario = Scenario::parse(&format!("{SMALL}{faults}")).unwrap();
        let [_, _, _, Timed { fault: cut, .. }, Timed { fault: slow, .. }, _] = &scenario.faults[..] else { panic!("six") };
        assert_eq!(*cut, Fault::Partition { nodes: vec![3, 4], share: None, way: Ways::Out });
        assert!(matches!(slow, Fault::Slow { delay, .. } if *delay == Span::of_millis(250)));
        assert_eq!(scenario.whom(slow), Whom::Nodes(&[5]));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (more, word) in [
            ("[promise]\nspeed = '1s'\n", "speed"),
            ("[promise]\nread = '1 s'\n", "is no duration"),
            ("[[fault]]\nat = '1s'\ndo = { kill = { } }\n", "give nodes"),
            ("[[fault]]\nat = '1s'\ndo = { kill = { nodes = [17] } }\n", "node 17"),
            ("[[fault]]\nat = '3m'\ndo = { pause = { nodes = [1] } }\n", "everything heals at 2m"),
            ("[[fault]]\nat = '1s'\ndo = { slow = { nodes = [1], loss = 0.9 } }\n", "loss"),
            ("[[fault]]\nat = '1s'\ndo = { burn = { nodes = [1] } }\n", "burn"),
            ("[nemesis]\nevery = '1s'\nfor = ['9s', '3s']\n", "wrong way round"),
            ("[nemesis]\nevery = '1s'\nfor = ['1s', '3s']\nfaults = ['flood']\n", "flood"),
        ] {
            let told = refusal(more);
            assert!(told.contains(word), "{more}: {told}");
        }
        let too_many_liars = Scenario::parse(&SMALL.replace("about", "liars = 3\nabout")).unwrap_err().to_string();
        assert!(too_many_liars.contains("3 liars"), "{too_many_liars}");
    }

    #[test]
    fn faults_that_exceed_the_budget_together_are_refused() {
        let two = "[[fault]]\nat = '1s'\nfor = '20s'\ndo = { kill = { nodes = [3, 4] } }\n";
        Scenario::parse(&format!("{SMALL}{two}")).unwrap();
        let told = refusal(&format!("{two}[[fault]]\nat = '25s'\ndo = {{ pause = {{ nodes = [5] }} }}\n"));
        assert_eq!(told, "at 25s 3 nodes are broken, liars included, and the budget is 2", "who came back a moment ago counts");
    }
}
