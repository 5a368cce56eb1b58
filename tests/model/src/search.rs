//! Through all moments of a scene. Breadth first to find how a rule is broken: the first way is then a shortest one. Depth first to see that
//! none is: of every state but those on the way 64 bits are kept.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    cast::Cast,
    scene::Scene,
    state::{Rule, State},
};

/// Where a search stops that does not close.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States.
    pub states: usize,
    /// Wall-clock time.
    pub time: Duration,
}

/// What a search came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scene.
    pub scene: &'static str,
    /// The variant of the protocol; nothing: as it is.
    pub mutant: Option<String>,
    /// Distinct states.
    pub states: usize,
    /// Steps between them.
    pub steps: u64,
    /// The most events on a way from the first state to one of them, as the search went.
    pub depth: usize,
    /// Whether that is all there are.
    pub closed: bool,
    /// Rules that were broken, and by how few events.
    pub broken: BTreeMap<String, usize>,
    /// A shortest way to the first broken rule.
    pub how: Vec<String>,
    /// Local states of holders, of puts and gets, and steps of machines that were run.
    pub machines: (usize, usize, usize),
    /// Wall-clock seconds.
    pub wall_s: f64,
}

/// A hash is hashed no further.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// States are known by 64 bits of hash: among a hundred million, the chance that two share one, and one is missed, is 1 in 3700.
type Known = HashMap<u64, u64, BuildHasherDefault<AsItIs>>;

fn fingerprint(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Visits every state of a scene.
pub fn visit_all(scene: &Scene, limits: Limits) -> Report {
    let begun = Instant::now();
    let mut cast = Cast::of(scene);
    let first = State::first(scene, &mut cast);
    let mut known = HashSet::<u64, BuildHasherDefault<AsItIs>>::default();
    known.insert(fingerprint(&first));
    let actions = first.actions(scene, &mut cast);
    // The way to where the search is: states, what can still happen there, and what was chosen.
    let mut way = vec![(first, actions, String::new())];
    let mut report = Report::of(scene);
    report.closed = true;
    while let Some((state, actions, _)) = way.last_mut() {
        let Some(action) = actions.pop() else {
            way.pop();
            continue;
        };
        let next = state.after(action, scene, &mut cast);
        report.steps += 1;
        let told = tell(&action.to_string(), &next.said);
        for rule in &next.broken {
            report.broken.entry(format!("{rule:?}")).or_insert(way.len());
            if report.how.is_empty() {
                report.how = way.iter().skip(1).map(|(.., told)| told.clone()).collect();
                report.how.push(format!("{told} [{rule:?}]"));
            }
        }
        if known.insert(fingerprint(&next.state)) {
            let actions = next.state.actions(scene, &mut cast);
            way.push((next.state, actions, told));
            report.depth = report.depth.max(way.len() - 1);
            if known.len() >= limits.states || begun.elapsed() >= limits.time {
                report.closed = false;
                break;
            }
        }
    }
    report.end(known.len(), &cast, begun)
}

/// Looks for a shortest way to break a rule.
pub fn find(scene: &Scene, rule: Rule, limits: Limits) -> Report {
    let begun = Instant::now();
    let mut cast = Cast::of(scene);
    let first = State::first(scene, &mut cast);
    let mut known = Known::default();
    known.insert(fingerprint(&first), 0);
    let mut level = vec![first];
    let mut report = Report::of(scene);
    'search: while !level.is_empty() {
        let mut following = Vec::new();
        for state in level {
            let from = fingerprint(&state);
            for action in state.actions(scene, &mut cast) {
                let next = state.after(action, scene, &mut cast);
                report.steps += 1;
                for broken in &next.broken {
                    report.broken.entry(format!("{broken:?}")).or_insert(report.depth + 1);
                }
                if next.broken.contains(&rule) {
                    report.how = way(scene, &mut cast, &known, from);
                    report.how.push(format!("{} [{rule:?}]", tell(&action.to_string(), &next.said)));
                    break 'search;
                }
                if let Entry::Vacant(entry) = known.entry(fingerprint(&next.state)) {
                    entry.insert(from);
                    following.push(next.state);
                }
            }
            if known.len() >= limits.states || begun.elapsed() >= limits.time {
                break 'search;
            }
        }
        report.closed = following.is_empty();
        report.depth += 1;
        level = following;
    }
    report.end(known.len(), &cast, begun)
}

impl Report {
    fn of(scene: &Scene) -> Self {
        Self {
            scene: scene.name,
            mutant: None,
            states: 1,
            steps: 0,
            depth: 0,
            closed: false,
            broken: BTreeMap::new(),
            how: Vec::new(),
            machines: (0, 0, 0),
            wall_s: 0.0,
        }
    }

    fn end(self, states: usize, cast: &Cast, begun: Instant) -> Self {
        Self { states, machines: cast.sizes(), wall_s: begun.elapsed().as_secs_f64(), ..self }
    }
}

fn tell(action: &str, said: &str) -> String {
    if said.is_empty() { action.to_owned() } else { format!("{action}: {said}") }
}

/// The events that lead to a state, found again by walking from the first one along the fingerprints.
fn way(scene: &Scene, cast: &mut Cast, known: &Known, to: u64) -> Vec<String> {
    let mut state = State::first(scene, cast);
    let start = fingerprint(&state);
    let mut trail = vec![to];
    while let Some(from) = trail.last().filter(|at| **at != start).map(|at| known[at]) {
        trail.push(from);
    }
    let mut told = Vec::new();
    for wanted in trail.into_iter().rev().skip(1) {
        let step = state.actions(scene, cast).into_iter().find_map(|action| {
            let next = state.after(action, scene, cast);
            (fingerprint(&next.state) == wanted).then_some((action, next))
        });
        let (action, next) = step.expect("it was reached this way");
        told.push(tell(&action.to_string(), &next.said));
        state = next.state;
    }
    told
}
