//! What takes part: a scene says who writes what where, who reads how, and what may go wrong.

use persona_fragments::mutants::Mutant;
use persona_mesh_proto::Mode;

use crate::state::Rule;

/// The node that lies. It is a holder in every scene.
pub const LIAR: usize = 0;

/// The most puts of a scene, and the most readers: a state has room for no more.
pub const WRITES_MAX: usize = 2;
/// See [`WRITES_MAX`].
pub const READERS_MAX: usize = 2;

/// The scene that has too many states to visit all.
pub const WHOLE: &str = "whole";

/// How answers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answers {
    /// A request waits as long as it likes; its answer is there at once. For whoever counts answers that is no loss: an answer that was
    /// given early and comes late could as well have come at once, or the request could have waited.
    AtOnce,
    /// An answer, too, waits as long as it likes. Far more states: to see that the shorter way loses nothing.
    Late,
}

/// What may happen once in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Crash {
    /// Nothing.
    None,
    /// The writer dies, at any moment, and starts again.
    Writer,
    /// The writer or a correct holder does.
    Any,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Nodes, the liar included.
    pub nodes: usize,
    /// The holders of each put, by shard index.
    pub writes: Vec<Vec<usize>>,
    /// Both puts are of one version, and begun when they like: an owner whose key signs twice.
    pub twins: bool,
    /// The first put has gone through everywhere before anything else begins.
    pub settled: bool,
    /// How each reader reads.
    pub readers: Vec<Mode>,
    /// Whom readers ask first.
    pub candidates: Vec<usize>,
    /// What may go wrong beside the liar.
    pub crash: Crash,
    /// Whether one request may be repeated, or one operation's patience end.
    pub timer: bool,
    /// How answers travel.
    pub answers: Answers,
}

impl Scene {
    fn base(name: &'static str, about: &'static str) -> Self {
        let holders = vec![0, 1, 2, 3];
        Self {
            name,
            about,
            nodes: 4,
            writes: vec![holders.clone(); 2],
            twins: false,
            settled: false,
            readers: vec![Mode::Atomic; 2],
            candidates: holders,
            crash: Crash::Any,
            timer: false,
            answers: Answers::AtOnce,
        }
    }

    /// Every scene, the small ones first.
    pub fn all() -> Vec<Self> {
        let one_put = vec![vec![0, 1, 2, 3]];
        let one_reader = vec![Mode::Atomic];
        vec![
            Self { writes: one_put.clone(), readers: one_reader.clone(), ..Self::base("tiny", "one put, one atomic reader, one crash") },
            Self {
                writes: one_put.clone(),
                readers: one_reader.clone(),
                crash: Crash::None,
                timer: true,
                ..Self::base("timer", "one put, one atomic reader, one deadline that comes early")
            },
            Self {
                writes: one_put,
                readers: one_reader.clone(),
                crash: Crash::None,
                answers: Answers::Late,
                ..Self::base("late", "one put, one atomic reader, answers as late as requests")
            },
            Self {
                nodes: 5,
                writes: vec![vec![0, 1, 2, 3], vec![0, 1, 2, 4]],
                settled: true,
                readers: vec![Mode::Regular],
                ..Self::base("moved", "a second put that replaces a holder; one regular reader who knows the old ones alone; one crash")
            },
            Self {
                twins: true,
                readers: vec![Mode::Regular],
                crash: Crash::None,
                ..Self::base("twins", "two manifests of one version, put side by side; one regular reader")
            },
            Self {
                readers: one_reader.clone(),
                crash: Crash::None,
                ..Self::base("calm", "two puts, one atomic reader, nothing but the liar")
            },
            Self { settled: true, ..Self::base("two-readers", "a second put, two atomic readers, one crash") },
            Self { readers: one_reader, ..Self::base("one-reader", "two puts, one atomic reader, one crash") },
            Self::base(WHOLE, "two puts, two atomic readers, one crash: too many states to visit all"),
        ]
    }

    /// The scene of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|scene| scene.name == name)
    }
}

/// The known-bad variants that must be found: where, and which of the rules each breaks there.
pub const MUTANTS: &[(Mutant, &str, Rule)] = &[
    (Mutant::SmallQuorum, "two-readers", Rule::Stale),
    (Mutant::NoWriteBack, "two-readers", Rule::Inversion),
    (Mutant::DropOnPrepare, "two-readers", Rule::FalseError),
    (Mutant::AckBeforeSync, "tiny", Rule::Lost),
    (Mutant::TwoAcks, "twins", Rule::TwoManifests),
    (Mutant::OlderSetsUntold, "moved", Rule::Stale),
    (Mutant::NoForwardPointer, "moved", Rule::Stale),
    (Mutant::CountTwice, "two-readers", Rule::FalseError),
];
