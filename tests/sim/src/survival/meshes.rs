//! Meshes of production nodes under churn: what the drawn lives are compared with.

use persona_core::{Answer, Call, CallError};
use persona_fragments::SectionKey;
use persona_mesh_proto::Mode;
use serde::Serialize;

use super::{Keeper, Share, draw, kinds};
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
    /// Seconds from the moment when lives began to be counted.
    pub after_s: f64,
    /// Sections of class core that some machine that was there could read in mode `any`.
    pub reconstructible: Share,
    /// By the drawn lives.
    pub drawn_reconstructible: f64,
    /// Sections that it could read in mode `regular`.
    pub regular: Share,
    /// By the drawn lives.
    pub drawn_regular: f64,
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

/// Runs so many meshes of production nodes: an agent is born and published, then each machine is given a life. The owner's machine ends at
/// once, or never. Somebody who is there reads the agent's core.
pub fn real(churn: &str, keeper: Keeper, meshes: u64, seed: u64) -> Result<Vec<Real>, String> {
    let churn = &Churn::named(churn).expect("a churn");
    let mut counts = [[0u64; 3]; ASKED_S.len()];
    for mesh in 0..meshes {
        for (sum, one) in counts.iter_mut().zip(real_mesh(churn, keeper, seed + mesh)?) {
            sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
        }
    }
    let kind = kinds()[0];
    let mut rng = stream(seed, "beside the real meshes");
    let drawn = draw(&kind, churn, keeper, 200_000, ASKED_S[ASKED_S.len() - 1], true, &mut rng);
    let real = ASKED_S.iter().zip(counts).map(|(after_s, [asked, whole, fresh])| Real {
        churn: churn.name,
        keeper,
        after_s: *after_s,
        reconstructible: Share::new(whole, asked),
        drawn_reconstructible: drawn.at(&drawn.whole, *after_s).share,
        regular: Share::new(fresh, asked),
        drawn_regular: drawn.at(&drawn.fresh, *after_s).share,
    });
    Ok(real.collect())
}

/// Sections asked for, read in any mode, and read in `regular`, at each moment.
fn real_mesh(churn: &Churn, keeper: Keeper, seed: u64) -> Result<[[u64; 3]; ASKED_S.len()], String> {
    let plan = Plan {
        seed,
        hosts: HOSTS,
        joining: 0,
        agents: 1,
        level: kinds()[0].level,
        ttl_divisor: 1,
        canary_s: 7 * 24 * 3600,
        faults: Default::default(),
        faulty: 0,
        lies: Vec::new(),
        tolerated: 0,
        real_signatures: false,
        leases: false,
        ..Plan::of(seed)
    };
    let mut world = World::new(&plan, notary(&plan), Vec::new());
    let mut rng = stream(seed, "survival");
    (0..HOSTS).for_each(|host| world.start(host));
    let until = world.now_us + 1_000_000;
    run(&mut world, until);
    let call = Call::CreateAgent { name: "agent".into(), role: None, place: "sim".into(), attributes: Vec::new() };
    let Ok(Answer::Agent { agent, .. }) = ask(&mut world, OWNER, call) else { return Err(format!("mesh {seed}: nobody was born")) };
    ask(&mut world, OWNER, Call::Publish { agent }).map_err(|error| format!("mesh {seed}: an agent is not published: {error}"))?;
    let key = SectionKey::derive(&agent, b"core");
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
    let mut counts = [[0; 3]; ASKED_S.len()];
    for (after_s, counts) in ASKED_S.iter().zip(&mut counts) {
        let at_us = begun_us + (after_s * 1e6) as u64;
        while let Some((end_us, host)) = ends.next_if(|(end_us, _)| *end_us <= at_us) {
            run(&mut world, end_us);
            world.crash(host);
        }
        run(&mut world, at_us);
        let there: Vec<usize> = (0..HOSTS).filter(|host| world.hosts[*host].up()).collect();
        if there.is_empty() {
            return Err(format!("mesh {seed}: nobody is left to ask"));
        }
        let reader = there[below(&mut rng, there.len() as u64) as usize];
        let whole = ask(&mut world, reader, Call::Fetch { key, mode: Mode::Any }).is_ok();
        let fresh = ask(&mut world, reader, Call::Fetch { key, mode: Mode::Regular }).is_ok();
        *counts = [1, whole.into(), fresh.into()];
    }
    if let Some(broken) = world.broken.first() {
        return Err(format!("mesh {seed}: {broken}"));
    }
    Ok(counts)
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
        let harsh = Churn { name: "harsh", about: "", shape: 1.0, scale_h: 1.2 };
        let (mut early, mut late) = ([0; 3], [0; 3]);
        for seed in 0..6 {
            let [first, _, last] = real_mesh(&harsh, Keeper::Nobody, seed).expect("it runs");
            early.iter_mut().zip(first).for_each(|(sum, one)| *sum += one);
            late.iter_mut().zip(last).for_each(|(sum, one)| *sum += one);
        }
        assert_eq!((early[0], early[1], late[0]), (6, 6, 6), "{early:?}");
        assert!(late[2] < early[2], "after 10 min {early:?}, after 55 min {late:?}");
        assert!(late[2] <= late[1], "what can be read at quorum can be reconstructed: {late:?}");
    }
}
