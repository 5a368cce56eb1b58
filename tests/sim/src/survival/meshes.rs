//! Meshes of production nodes under churn: what the drawn lives are compared with.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use chacha20::ChaCha8Rng;
use persona_core::{Answer, Call, CallError};
use persona_fragments::SectionKey;
use persona_mesh_proto::Mode;
use serde::Serialize;

use super::{
    Keeper, Share, Tally, draw, kinds,
    leased::{self, CROWD, Crowd, Leased},
    words,
};
use crate::{
    lives::Churn,
    plan::{Plan, below, stream},
    world::{World, notary},
};

/// What whole nodes did, beside what drawing lives alone says.
#[derive(Clone, Debug, Serialize)]
pub struct Real {
    /// The churn.
    pub churn: &'static str,
    /// Who kept the sections.
    pub keeper: Keeper,
    /// At one moment.
    #[serde(flatten)]
    pub beside: Beside,
}

/// Cores of whole nodes beside drawn ones, at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// Seconds from the moment when lives began to be counted; under a lease, when the owner went.
    pub after_s: f64,
    /// Cores that some machine that was there could read in mode `any`.
    pub reconstructible: Share,
    /// By the drawn lives.
    pub drawn_reconstructible: f64,
    /// Cores that it could read in mode `regular`.
    pub regular: Share,
    /// By the drawn lives.
    pub drawn_regular: f64,
}

impl Beside {
    fn new(after_s: f64, [asked, whole, fresh]: Asked, drawn: &Tally) -> Self {
        Self {
            after_s,
            reconstructible: Share::new(whole, asked),
            drawn_reconstructible: drawn.at(&drawn.whole, after_s).share,
            regular: Share::new(fresh, asked),
            drawn_regular: drawn.at(&drawn.fresh, after_s).share,
        }
    }
}

/// The end of a line of a table: when, of how many, and the four shares.
impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after_s, reconstructible, drawn_reconstructible, regular, drawn_regular } = self;
        let counted = |share: &Share| format!("{:.4} ({:.4} to {:.4})", share.share, share.low, share.high);
        let (after, asked) = (words(*after_s), reconstructible.of);
        let (whole, fresh) = (counted(reconstructible), counted(regular));
        write!(f, "{after} | {asked} | {whole} | {drawn_reconstructible:.4} | {fresh} | {drawn_regular:.4} |")
    }
}

/// Machines of a real mesh. The first is the owner's. One section of one mesh is looked at: those of one mesh lose the same machines.
const HOSTS: usize = 24;
const OWNER: usize = 0;

/// How long after its put a section's placement has ended.
const PLACED_US: u64 = 40_000_000;

/// Moments at which a real mesh is asked, in seconds.
const ASKED_S: [f64; 3] = [600.0, 1_800.0, 3_300.0];

/// What is run with whole nodes: the churn that was measured, and two under which losses can be counted.
pub const REAL: [(&str, Keeper); 4] =
    [("residual", Keeper::Nobody), ("fresh", Keeper::Nobody), ("mobile", Keeper::Nobody), ("mobile", Keeper::Owner)];

/// Runs so many meshes of production nodes, on all processors: an agent is born and published, then each machine is given a life. The owner's
/// machine ends at once, or never. Somebody who is there reads the agent's core.
pub fn real(churn: &str, keeper: Keeper, meshes: u64, seed: u64) -> Result<Vec<Real>, String> {
    let churn = &Churn::named(churn).expect("a churn");
    let counts = in_threads(meshes, |mesh| real_mesh(churn, keeper, seed + mesh))?;
    let kind = kinds()[0];
    let mut rng = stream(seed, "beside the real meshes");
    let drawn = draw(&kind, churn, keeper, 200_000, ASKED_S[ASKED_S.len() - 1], true, &mut rng);
    let beside = ASKED_S.iter().zip(sums(&counts)).map(|(after_s, counts)| Beside::new(*after_s, counts, &drawn));
    Ok(beside.map(|beside| Real { churn: churn.name, keeper, beside }).collect())
}

/// What whole nodes did with a core that had a lease, and no owner.
#[derive(Clone, Debug, Serialize)]
pub struct LeasedReal {
    /// The churn.
    pub churn: &'static str,
    /// For how long holders could renew it, in seconds.
    pub lease_s: f64,
    /// At one moment.
    #[serde(flatten)]
    pub beside: Beside,
}

/// The same for a core with a lease, in a mesh that its owner has known for long and that is always as large.
pub fn real_leased(churn: &str, leased: &Leased, meshes: u64, seed: u64) -> Result<Vec<LeasedReal>, String> {
    let churn = &Churn::named(churn).expect("a churn");
    let counts = in_threads(meshes, |mesh| leased_mesh(churn, leased, seed + mesh))?;
    let drawn = leased::draw(leased, churn, true, 20_000, &mut stream(seed, "beside the leased meshes")).tally;
    let beside = leased.named_s.iter().zip(sums(&counts)).map(|(after_s, counts)| Beside::new(*after_s, counts, &drawn));
    Ok(beside.map(|beside| LeasedReal { churn: churn.name, lease_s: leased.lease_s, beside }).collect())
}

/// Sections asked for, read in any mode, and read in `regular`.
type Asked = [u64; 3];

/// Runs each mesh once, on all processors, and says on the standard error how far it has come.
fn in_threads(meshes: u64, run: impl Fn(u64) -> Result<Vec<Asked>, String> + Sync) -> Result<Vec<Vec<Asked>>, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(meshes as usize);
    let (next, done) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), String> {
        loop {
            let mesh = next.fetch_add(1, Ordering::Relaxed);
            if mesh >= meshes {
                return Ok(());
            }
            let counts = run(mesh).inspect_err(|_| next.store(meshes, Ordering::Relaxed))?; // nobody begins another one
            let mut done = done.lock().expect("no mesh panicked");
            done.push(counts);
            if done.len() as u64 * 10 / meshes > (done.len() as u64 - 1) * 10 / meshes {
                eprintln!("{} of {meshes} meshes", done.len());
            }
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|one| one.join().expect("a mesh does not panic"))
    })?;
    Ok(done.into_inner().expect("no mesh panicked"))
}

/// Over all meshes, at each moment.
fn sums(counts: &[Vec<Asked>]) -> Vec<Asked> {
    let moments = counts.first().map_or(0, Vec::len);
    let sum = |at: usize| counts.iter().fold([0; 3], |sum: Asked, mesh| std::array::from_fn(|what| sum[what] + mesh[at][what]));
    (0..moments).map(sum).collect()
}

fn plan_of(seed: u64, hosts: usize, joining: usize, renew_for_s: u64) -> Plan {
    Plan {
        seed,
        hosts,
        joining,
        agents: 1,
        level: kinds()[0].level,
        ttl_divisor: 1,
        canary_s: 7 * 24 * 3600,
        faults: Default::default(),
        faulty: 0,
        lies: Vec::new(),
        tolerated: 0,
        real_signatures: false,
        renew_for_s: Some(renew_for_s),
        ..Plan::of(seed)
    }
}

/// An agent is born on the owner's machine and published: the key of its core.
fn published(world: &mut World) -> Result<SectionKey, String> {
    let call = Call::CreateAgent { name: "agent".into(), role: None, place: "sim".into(), attributes: Vec::new() };
    let Ok(Answer::Agent { agent, .. }) = ask(world, OWNER, call) else { return Err("nobody was born".into()) };
    ask(world, OWNER, Call::Publish { agent }).map_err(|error| format!("an agent is not published: {error}"))?;
    Ok(SectionKey::derive(&agent, b"core"))
}

/// Somebody who is there reads the section.
fn asked(world: &mut World, key: SectionKey, rng: &mut ChaCha8Rng) -> Result<Asked, String> {
    let there: Vec<usize> = (0..world.hosts.len()).filter(|host| world.hosts[*host].up()).collect();
    if there.is_empty() {
        return Err("nobody is left to ask".into());
    }
    let reader = there[below(rng, there.len() as u64) as usize];
    let whole = ask(world, reader, Call::Fetch { key, mode: Mode::Any }).is_ok();
    let fresh = ask(world, reader, Call::Fetch { key, mode: Mode::Regular }).is_ok();
    Ok([1, whole.into(), fresh.into()])
}

fn real_mesh(churn: &Churn, keeper: Keeper, seed: u64) -> Result<Vec<Asked>, String> {
    let named = |error: String| format!("mesh {seed}: {error}");
    let plan = plan_of(seed, HOSTS, 0, 0);
    let mut world = World::new(&plan, notary(&plan), Vec::new());
    let mut rng = stream(seed, "survival");
    (0..HOSTS).for_each(|host| world.start(host));
    let until = world.now_us + 1_000_000;
    run(&mut world, until);
    let key = published(&mut world).map_err(named)?;
    let begun_us = world.now_us + PLACED_US;
    run(&mut world, begun_us);
    // Lives are counted from here: (when, who), in order.
    let mut ends: Vec<(u64, usize)> =
        (OWNER + 1..HOSTS).map(|host| (begun_us + (churn.life_s(&mut rng).min(1e6) * 1e6) as u64, host)).collect();
    if keeper == Keeper::Nobody {
        ends.push((begun_us, OWNER));
    }
    ends.sort_unstable();
    let mut ends = ends.into_iter().peekable();
    let mut counts = Vec::new();
    for after_s in ASKED_S {
        let at_us = begun_us + (after_s * 1e6) as u64;
        while let Some((end_us, host)) = ends.next_if(|(end_us, _)| *end_us <= at_us) {
            run(&mut world, end_us);
            world.crash(host);
        }
        run(&mut world, at_us);
        counts.push(asked(&mut world, key, &mut rng).map_err(named)?);
    }
    match world.broken.first() {
        Some(broken) => Err(named(broken.clone())),
        None => Ok(counts),
    }
}

/// The machine in place `p` of the crowd is host `p + 1` at first, and whoever follows is the next host that was not there yet.
fn leased_mesh(churn: &Churn, leased: &Leased, seed: u64) -> Result<Vec<Asked>, String> {
    let named = |error: String| format!("mesh {seed}: {error}");
    let mut rng = stream(seed, "leased survival");
    let mut crowd = Crowd::new(churn, &mut rng);
    let mut follows: Vec<(f64, usize)> = Vec::new();
    crowd.until(leased.known_s + PLACED_US as f64 / 1e6 + leased.lease_s, &mut rng, |place, stay| follows.push((stay.since_s, place)));
    follows.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let plan = plan_of(seed, 1 + CROWD, follows.len(), leased.lease_s as u64);
    let mut world = World::new(&plan, notary(&plan), Vec::new());
    (0..1 + CROWD).for_each(|host| world.start(host));
    let began_us = world.now_us;
    let us = |at_s: f64| began_us + (at_s * 1e6) as u64;
    let mut host_of: Vec<usize> = (1..=CROWD).collect();
    let mut follows = follows.into_iter().zip(1 + CROWD..).peekable();
    let mut live_until = |world: &mut World, at_us: u64| {
        while let Some(((at_s, place), host)) = follows.next_if(|((at_s, _), _)| us(*at_s) <= at_us) {
            run(world, us(at_s));
            world.crash(host_of[place]);
            host_of[place] = host;
            world.start(host);
        }
        run(world, at_us);
    };
    live_until(&mut world, us(leased.known_s));
    let key = published(&mut world).map_err(named)?;
    let begun_us = world.now_us + PLACED_US;
    live_until(&mut world, begun_us);
    world.crash(OWNER);
    let mut counts = Vec::new();
    for after_s in &leased.named_s {
        // The lease counts from the put, and what is asked at its end must be answered before it.
        live_until(&mut world, begun_us + (after_s * 1e6) as u64 - if *after_s == leased.lease_s { 2 * PLACED_US } else { 0 });
        counts.push(asked(&mut world, key, &mut rng).map_err(named)?);
    }
    match world.broken.first() {
        Some(broken) => Err(named(broken.clone())),
        None => Ok(counts),
    }
}

fn run(world: &mut World, until_us: u64) {
    while world.run_until(until_us) {
        world.replies.clear();
        world.reminders.clear();
        world.cheat_replies.clear();
    }
}

fn ask(world: &mut World, host: usize, call: Call) -> Result<Answer, CallError> {
    let id = world.call(host, call).expect("its machine runs");
    loop {
        assert!(world.run_until(world.now_us + 60_000_000), "a call is answered within a minute");
        world.reminders.clear();
        if let Some(reply) = world.replies.drain(..).find(|reply| reply.call == id) {
            return reply.result;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six meshes prove little about a share; they prove that the code that is measured is the code that runs.
    #[test]
    fn whole_nodes_are_asked_and_lose_sections_when_holders_go() {
        let harsh = Churn { name: "harsh", about: "", shape: 1.0, scale_h: 1.2, from_the_start: true };
        let (mut early, mut late) = ([0; 3], [0; 3]);
        for seed in 0..6 {
            let counts = real_mesh(&harsh, Keeper::Nobody, seed).expect("it runs");
            let [first, _, last] = counts.try_into().expect("three moments");
            early.iter_mut().zip(first).for_each(|(sum, one)| *sum += one);
            late.iter_mut().zip(last).for_each(|(sum, one)| *sum += one);
        }
        assert_eq!((early[0], early[1], late[0]), (6, 6, 6), "{early:?}");
        assert!(late[2] < early[2], "after 10 min {early:?}, after 55 min {late:?}");
        assert!(late[2] <= late[1], "what can be read at quorum can be reconstructed: {late:?}");
    }

    #[test]
    fn whole_nodes_keep_a_leased_core_without_its_owner_while_others_come_and_go() {
        let known_s = 600.0;
        let leased = Leased { known_s, lease_s: 4.0 * 3600.0, named_s: vec![2.0 * 3600.0, 4.0 * 3600.0], ..Leased::week() };
        // Half of the first holders go in the four hours.
        let churn = Churn { name: "harsh", about: "", shape: 1.0, scale_h: 6.0, from_the_start: true };
        let counts: Vec<Vec<Asked>> = (0..3).map(|seed| leased_mesh(&churn, &leased, seed).expect("it runs")).collect();
        assert_eq!(sums(&counts)[0], [3; 3], "after two hours, twice its lifetime: {counts:?}");
        assert!(sums(&counts)[1][1] >= 2, "just before the lease ends: {counts:?}");
        // Where more than f go between two links nobody renews it.
        let all_go = Churn { scale_h: 0.2, ..churn };
        let counts = leased_mesh(&all_go, &leased, 0).expect("it runs");
        assert_eq!(counts[1], [1, 0, 0]);
    }
}
