//! Random worlds: every seed draws its own faults, and what holds must hold in all of them.
//!
//! The writer puts one version after the other, sometimes dies on the way and goes on as if it knew nothing of the outcome; holder sets
//! move; readers begin anywhere with any old head. Up to `f` nodes lie; nodes crash, lose what was not synced, and come back; every
//! operation is cut off from up to `f` nodes of its own, since mere random delay is too kind to a wrong quorum.

use super::*;

const PUTS: usize = 8;
const NODES: u64 = 12;

/// How often each rare thing happened: a test that never sees it proves nothing about it.
#[derive(Default, Debug)]
struct Marks {
    reads: u64,
    failed_reads: u64,
    committed: u64,
    failed_puts: u64,
    abandoned: u64,
    uncertified_seen: u64,
    moved: u64,
    stale_receipts: u64,
    crashes: u64,
    write_backs: u64,
    losses: u64,
    recovered: u64,
    recovering_seen: u64,
    aborted: u64,
    settled_otherwise: u64,
}

struct Written {
    version: Version,
    content: Vec<u8>,
    began_us: u64,
    /// Committed without `BoundedStale`, at this time.
    committed_us: Option<u64>,
}

/// With `forgetful` nodes, these also lose their stores, any number of them and at any time, and notice it. Then what was stored may be gone;
/// what is returned is right all the same.
fn run(seed: u64, forgetful: bool, marks: &mut Marks) {
    let mut world = World::new(seed, NODES as usize);
    world.net = Net { delay_us: (200, 40_000), lost_permille: 20, doubled_permille: 50, refuses: seed.is_multiple_of(2) };
    world.limits.grace_ms = 1_000;
    let patience = if forgetful { 1_500 } else { 120 };
    // n = 4, f = 1, and with every third seed n = 7, f = 2.
    let (level, count, f) = if seed.is_multiple_of(3) { (3, 7, 2) } else { (2, 4, 1) };
    let mut ada = world.owner("ada", Class::Document, level, 600_000);
    world.recoveries_blocked = world.below(f + 1);
    for _ in 0..world.below(f + 1) {
        let (node, lie) = (world.below(NODES) as usize, LIES[world.below(LIES.len() as u64) as usize]);
        world.nodes[node].lie = Some(lie);
    }
    let mut set: Vec<usize> = (0..count).collect();
    let mut writes: Vec<Written> = Vec::new();
    let mut put: Option<usize> = None;
    let mut heads: Vec<CertifiedHead> = Vec::new();
    let mut gets: Vec<usize> = Vec::new();
    let mut settles: Vec<(SignedManifest, usize)> = Vec::new();
    let mut rounds = 0;
    while writes.len() < PUTS || put.is_some() {
        rounds += 1;
        assert!(rounds < 10_000, "seed {seed}: puts never end");
        if let Some(task) = put {
            let ended = world.tasks[task].ended_us;
            let abandons = world.below(40) == 0;
            let Machine::Put(running) = &world.tasks[task].machine else { unreachable!("a put") };
            let manifest = running.manifest().clone();
            if let Some(at) = ended {
                let write = writes.last_mut().expect("begun");
                match world.tasks[task].put.clone().expect("ended") {
                    Ok(receipt) => {
                        marks.committed += 1;
                        marks.stale_receipts += u64::from(receipt.stale_until_ms.is_some());
                        write.committed_us = receipt.stale_until_ms.is_none().then_some(at);
                        ada.committed(&receipt);
                        heads.push(receipt.head);
                    }
                    Err(_) => marks.failed_puts += 1,
                }
                if write.committed_us.is_none() && world.below(2) == 0 {
                    settles.push((manifest.clone(), world.start_settle(&ada, &manifest, 2_000_000)));
                }
                // Half of the writers go on placing in the background.
                world.tasks[task].abandoned = world.below(2) == 0;
                put = None;
            } else if abandons {
                marks.abandoned += 1;
                world.tasks[task].abandoned = true;
                put = None;
                if world.below(2) == 0 {
                    settles.push((manifest.clone(), world.start_settle(&ada, &manifest, 2_000_000)));
                }
            }
        } else if ada.older.len() < 7 {
            match world.below(6) {
                // One holder is replaced, whatever it knows.
                0 | 1 => {
                    let (out, new) = (world.below(count as u64) as usize, world.below(NODES) as usize);
                    if !set.contains(&new) {
                        set[out] = new;
                        marks.moved += 1;
                    }
                }
                // All of them.
                2 => {
                    let first = world.below(NODES) as usize;
                    set = (0..count).map(|index| (first + index) % NODES as usize).collect();
                    marks.moved += 1;
                }
                _ => {}
            }
            let content = format!("version {} of seed {seed}", writes.len()).into_bytes();
            let task = ada.write(&world, &set, &content);
            writes.push(Written { version: task.manifest.version, content, began_us: world.now.mono_us, committed_us: None });
            // Some writers reach no more than f: what these acked can be given up.
            let blocked = match world.below(8) {
                0 => set.iter().copied().skip(world.below(f + 1) as usize).collect(),
                _ => some_nodes(&mut world, &set, f),
            };
            let (machine, outs) = Put::start(task, world.timing.clone(), world.now);
            let task = world.add_task(Machine::Put(Box::new(machine)));
            world.tasks[task].blocked = blocked;
            world.carry_out_put(task, outs);
            put = Some(task);
        } else {
            break; // so many outcomes are unknown that a new put could not name all their sets
        }
        if world.below(3) == 0 {
            let mode = [Mode::Any, Mode::Regular, Mode::Atomic][world.below(3) as usize];
            let mut task = world.get_task(&ada, mode);
            if !heads.is_empty() && world.below(4) > 0 {
                // Only a head from a cache, of any age, is known.
                task.known = Some(heads[world.below(heads.len() as u64) as usize].clone());
                task.candidates.clear();
            }
            let blocked = some_nodes(&mut world, &set, f);
            gets.push(world.start_get_blocked(task, blocked));
        }
        if world.below(12) == 0 {
            let node = world.below(NODES) as usize;
            if world.up(node) {
                world.crash(node);
                marks.crashes += 1;
            }
        }
        for node in 0..NODES as usize {
            if !world.up(node) && world.below(6) == 0 {
                world.restart(node);
            }
        }
        if forgetful && world.below(8) == 0 {
            // Once in a while more than can be borne.
            let losers = if world.below(8) == 0 { f + 1 } else { 1 };
            for _ in 0..losers {
                let node = world.below(NODES) as usize;
                world.lose_store(node);
                marks.losses += 1;
            }
        }
        let pause = 1 + world.below(patience);
        world.run_ms(pause);
    }
    for task in &gets {
        world.run_until_ended(*task);
    }
    for (manifest, task) in settles {
        world.run_until_ended(task);
        let aborted = matches!(world.tasks[task].settled, Some(persona_mesh_proto::Settled::Aborted(_)));
        *(if aborted { &mut marks.aborted } else { &mut marks.settled_otherwise }) += 1;
        let returned = |get: &usize| matches!(&world.tasks[*get].get, Some(Ok(value)) if value.head.manifest.version == manifest.version);
        assert!(!aborted || !gets.iter().any(returned), "seed {seed}: {} was given up, and read", manifest.version);
        assert!(
            !aborted || heads.iter().all(|head| head.manifest != manifest),
            "seed {seed}: {} was given up, and is certified",
            manifest.version
        );
    }
    judge(seed, &world, &writes, &gets, marks);
    assert_eq!(world.evidence, [], "seed {seed}: an honest owner is accused");
    let recovered = |node: &Node| node.durable.keys().filter(|(table, key)| *table == Table::Meta && key.len() > 1).count() as u64;
    marks.recovered += world.nodes.iter().map(recovered).sum::<u64>();
    heal(seed, forgetful, &mut world, &mut ada, &set, &writes);
}

/// Up to `most` nodes: half of the time as many as may be, and all of them holders.
fn some_nodes(world: &mut World, set: &[usize], most: u64) -> BTreeSet<usize> {
    match world.below(2) {
        0 => (0..world.below(most + 1)).map(|_| world.below(NODES) as usize).collect(),
        _ => (0..most).map(|_| set[world.below(set.len() as u64) as usize]).collect(),
    }
}

fn judge(seed: u64, world: &World, writes: &[Written], gets: &[usize], marks: &mut Marks) {
    let mut atomic: Vec<(u64, u64, Version)> = Vec::new();
    for task in gets {
        let entry = &world.tasks[*task];
        let ended = entry.ended_us.expect("ended");
        marks.reads += 1;
        let answers = match &entry.machine {
            Machine::Get(get) => get.answers(),
            Machine::Put(_) | Machine::Settle(_) | Machine::Recover(..) | Machine::Renewal(..) => Vec::new(),
        };
        marks.recovering_seen += u64::from(answers.iter().any(|(_, said)| *said == persona_mesh_proto::Answered::Recovering));
        assert!(ended - entry.began_us <= 5_000_000, "seed {seed}: a get took {} us", ended - entry.began_us);
        let Some(Ok(value)) = &entry.get else {
            marks.failed_reads += 1;
            continue;
        };
        let version = value.head.manifest.version;
        marks.uncertified_seen += u64::from(!value.prepared_seen.is_empty());
        marks.write_backs += u64::from(world.sent.iter().any(|sent| sent.task == *task && sent.kind == "commit"));
        let write = writes.iter().find(|write| write.version == version).expect("somebody wrote it");
        assert_eq!(value.content, write.content, "seed {seed}: two contents of {version}");
        assert!(write.began_us <= ended, "seed {seed}: from the future");
        if value.fresh >= persona_mesh_proto::Freshness::Regular {
            let committed_before = |write: &&Written| write.committed_us.is_some_and(|at| at < entry.began_us);
            let least = writes.iter().filter(committed_before).map(|write| write.version).max();
            assert!(least <= Some(version), "seed {seed}: stale: {version}, though {least:?} had committed");
        }
        if value.fresh == persona_mesh_proto::Freshness::Atomic {
            atomic.push((entry.began_us, ended, version));
        }
    }
    for (_, ended, version) in &atomic {
        for (began, _, later) in &atomic {
            assert!(began <= ended || later >= version, "seed {seed}: {version} was read, and later {later}");
        }
    }
}

/// After the faults: everything completes, and placement returns to n.
fn heal(seed: u64, forgetful: bool, world: &mut World, ada: &mut Owner, set: &[usize], writes: &[Written]) {
    world.net = Net { delay_us: (200, 2_000), lost_permille: 0, doubled_permille: 0, refuses: true };
    for node in 0..NODES as usize {
        world.nodes[node].lie = None;
        if !world.up(node) {
            world.restart(node);
        }
    }
    world.recoveries_blocked = 0;
    world.run_ms(if forgetful { 40_000 } else { 10_000 });
    let value = world.get(ada, Mode::Regular);
    if let Ok(value) = &value {
        assert!(writes.iter().any(|write| write.content == value.content));
    }
    let committed = writes.iter().any(|write| write.committed_us.is_some());
    // A node that lied may have signed for what it never stored; with f of them readers still get the last version.
    assert!(value.is_ok() || !committed || forgetful, "seed {seed}: {value:?}");
    if ada.older.len() < 7 {
        let task = ada.write(world, set, b"after the storm");
        match world.finish_put(ada, task) {
            Ok(receipt) => {
                world.run_ms(10_000);
                assert_eq!(world.shards_on_disk(&receipt.head.manifest), set.len(), "seed {seed}");
                assert_eq!(world.get(ada, Mode::Atomic).expect("calm").content, b"after the storm");
            }
            // Three versions of unknown outcome: the holders wait for them to expire.
            Err(PutError::Timeout { .. }) => {
                let busy = set.iter().filter(|node| world.holder(**node).stats().prepared >= 3).count();
                assert!(busy > set.len() - usize::from(Shape::for_level(ada.level, set.len()).expect("shape").quorum()), "seed {seed}");
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}

#[test]
fn no_seed_makes_a_read_stale_wrong_or_endless() {
    let seeds = std::option_env!("PERSONA_SEEDS").and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    let mut marks = Marks::default();
    for seed in 0..seeds {
        run(seed, false, &mut marks);
    }
    println!("{marks:?}");
    assert!(marks.reads > 5 * seeds && marks.failed_reads < marks.reads / 2, "{marks:?}");
    for (what, count) in [
        ("committed", marks.committed),
        ("failed puts", marks.failed_puts),
        ("abandoned puts", marks.abandoned),
        ("uncertified versions seen", marks.uncertified_seen),
        ("moved holders", marks.moved),
        ("bounded-stale receipts", marks.stale_receipts),
        ("crashes", marks.crashes),
        ("write-backs", marks.write_backs),
        ("versions given up", marks.aborted),
        ("versions settled otherwise", marks.settled_otherwise),
    ] {
        assert!(count > 0, "never seen: {what}: {marks:?}");
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let story = |seed| {
        let mut marks = Marks::default();
        run(seed, seed.is_multiple_of(2), &mut marks);
        format!("{marks:?}")
    };
    assert_eq!(story(11), story(11));
    assert_eq!(story(12), story(12));
}

#[test]
fn no_seed_makes_a_read_stale_though_any_number_of_holders_lose_their_stores() {
    let seeds = std::option_env!("PERSONA_SEEDS").and_then(|seeds| seeds.parse().ok()).unwrap_or(200);
    let mut marks = Marks::default();
    for seed in 0..seeds {
        run(seed, true, &mut marks);
    }
    println!("{marks:?}");
    for (what, count) in [
        ("reads", marks.reads - marks.failed_reads),
        ("committed", marks.committed),
        ("stores lost", marks.losses),
        ("recovered keys", marks.recovered),
        ("recovering holders seen", marks.recovering_seen),
        ("write-backs", marks.write_backs),
    ] {
        assert!(count > seeds / 4, "seldom seen: {what}: {marks:?}");
    }
}
