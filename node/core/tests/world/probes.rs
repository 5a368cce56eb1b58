//! Holders that die, come back, or were only slow: what their owner does about it while it runs.

use std::collections::BTreeSet;

use persona_fragments::OwnerKey;
use persona_mesh_proto::{Mode, Table};

use crate::{BEGINNING_MS, World, sections::key_of};

/// After a holder's death a section of core is whole again within this time.
const WHOLE_AGAIN_S: u64 = 60;

fn version(world: &mut World, agent: OwnerKey, name: &str) -> String {
    world.section(0, agent, name).and_then(|section| section.version).expect("it was put")
}

/// Whether every holder of the section is up, and the host knows that all have their shards.
fn whole(world: &mut World, agent: OwnerKey, name: &str) -> bool {
    let section = world.section(0, agent, name).expect("it is there");
    let holders = world.hosts_named(&section.holders);
    section.held == section.n && section.silent.is_empty() && holders.iter().all(|host| world.up(*host))
}

/// An agent on host 0 of a calm world, fully placed.
fn settled(count: usize, seed: u64) -> (World, OwnerKey) {
    let mut world = World::of(count, seed);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.run_s(40);
    assert!(["core", "card", "index", "doc/letter"].into_iter().all(|name| whole(&mut world, ada, name)));
    (world, ada)
}

#[test]
fn a_holders_place_is_given_to_another_within_a_minute() {
    for seed in 0..12 {
        let (mut world, ada) = settled(16, 300 + seed);
        world.net.stale_lookups = seed % 2 == 0; // whether the others have noticed or not
        let before: BTreeSet<usize> = world.holders(0, ada, "core").into_iter().collect();
        let victim = *before.iter().nth(seed as usize % before.len()).expect("ten");
        let version_before = version(&mut world, ada, "core");
        world.run_ms(seed * 777);
        world.crash(victim);
        world.run_s(15);
        assert_eq!(version(&mut world, ada, "core"), version_before, "nothing is done before it was silent for half a minute");
        world.run_s(WHOLE_AGAIN_S - 15);
        assert!(whole(&mut world, ada, "core"), "seed {seed}: core is not whole after {WHOLE_AGAIN_S} s");
        assert!(whole(&mut world, ada, "doc/letter"));
        let after: BTreeSet<usize> = world.holders(0, ada, "core").into_iter().collect();
        assert_eq!((after.len(), before.difference(&after).count()), (10, 1), "only the dead one was replaced");
        assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
    }
}

#[test]
fn only_the_new_holder_is_sent_a_shard() {
    let mut world = World::of(16, 320);
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", &[7; 30_000]).expect("it commits");
    world.run_s(40);
    let victim = world.holders(0, ada, "doc/letter")[2];
    world.crash(victim);
    world.run_s(WHOLE_AGAIN_S);
    let key = key_of(&report.kad_key);
    let versions = world.watch.versions(&key);
    let (first, last) = (world.watch.shard_bytes[&(key, versions[0])], world.watch.shard_bytes[&(key, versions[1])]);
    assert_eq!(versions.len(), 2, "one renewal");
    assert_eq!(last * 7, first, "one of seven shards was sent");
}

#[test]
fn a_holder_that_is_silent_for_a_moment_keeps_its_place() {
    let (mut world, ada) = settled(16, 330);
    let before = version(&mut world, ada, "core");
    let holders = world.holders(0, ada, "core");
    for round in 0..8 {
        let flapping = holders[round % 3];
        world.crash(flapping);
        world.run_s(10 + round as u64); // its last sign of life may be 11 s older
        world.restart(flapping);
        world.run_s(6);
    }
    assert_eq!(version(&mut world, ada, "core"), before, "core was not put again");
    assert_eq!(world.counter(0, "sections_replaced"), 0);
    assert!(whole(&mut world, ada, "core"));
}

#[test]
fn a_slow_network_costs_no_renewal() {
    let (mut world, ada) = settled(14, 340);
    let before = version(&mut world, ada, "core");
    world.net.lost_permille = 100; // every fifth question stays without an answer
    world.run_s(300);
    assert_eq!(version(&mut world, ada, "core"), before, "probes fail, two of one holder now and then, and it answers the next");
}

#[test]
fn a_host_that_is_cut_off_starts_no_storm_and_talks_nothing_down() {
    let (mut world, ada) = settled(16, 350);
    let before = world.section(0, ada, "core").expect("core");
    let (puts, probes) = (world.counter(0, "puts_renewed"), world.counter(0, "probes"));
    let sent = world.watch.versions(&key_of(&before.kad_key)).len();
    world.cut(&[0]);
    world.run_s(240);
    let cut_off = world.section(0, ada, "core").expect("core");
    assert_eq!((cut_off.version.clone(), cut_off.n, cut_off.k), (before.version.clone(), before.n, before.k), "nothing was put");
    assert_eq!((cut_off.held, cut_off.level_now), (0, 0), "and it knows how it stands");
    assert_eq!(world.watch.versions(&key_of(&before.kad_key)).len(), sent, "no version was begun either");
    assert_eq!(world.counter(0, "puts_renewed"), puts);
    assert!(world.counter(0, "probes") - probes < 15 * (30 + 24), "each once a second for half a minute, and then as before");
    world.heal();
    world.run_s(30);
    let section = world.section(0, ada, "core").expect("core");
    assert_eq!((section.version, section.held), (before.version, 10), "all is as it was");
}

#[test]
fn in_a_small_part_of_a_split_mesh_nothing_is_talked_down() {
    let (mut world, ada) = settled(24, 360);
    let before = world.section(0, ada, "core").expect("core");
    let holders = world.hosts_named(&before.holders);
    // The host, three holders and two others on one side: too few for a quorum of ten.
    let others: Vec<usize> = (1..24).filter(|host| !holders.contains(host)).take(2).collect();
    let side: Vec<usize> = [0].into_iter().chain(holders[..3].iter().copied()).chain(others).collect();
    world.cut(&side);
    world.run_s(200);
    let section = world.section(0, ada, "core").expect("core");
    assert_eq!((section.version, section.n, section.level), (before.version, before.n, before.level));
    world.heal();
    world.run_s(90);
    assert!(whole(&mut world, ada, "core"));
}

#[test]
fn many_holders_at_once_are_replaced_too() {
    let (mut world, ada) = settled(24, 370);
    let holders = world.holders(0, ada, "core");
    world.crash_all(&holders[..6]); // four are left: the section can be reconstructed, and not read fresh
    world.run_s(WHOLE_AGAIN_S + 10);
    assert!(whole(&mut world, ada, "core"), "{:?}", world.section(0, ada, "core"));
}

#[test]
fn a_holder_back_with_an_empty_disk_is_refilled_by_the_owner() {
    let (mut world, ada) = settled(12, 380);
    let version_before = version(&mut world, ada, "doc/letter");
    let victim = world.holders(0, ada, "doc/letter")[1];
    world.crash(victim);
    world.hosts[victim].disk.clear(); // and nobody has noticed: as if it had never known anything
    world.restart(victim);
    world.run_s(15);
    assert!(whole(&mut world, ada, "doc/letter"), "{:?}", world.section(0, ada, "doc/letter"));
    assert_eq!(version(&mut world, ada, "doc/letter"), version_before);
    let shards = |world: &World| world.hosts[victim].disk.keys().filter(|(table, _)| *table == Table::Shard).count();
    assert!(shards(&world) > 0, "the disk has shards again");
    assert!(world.counter(0, "holders_refilled") > 0);
    // One that knows that it lost its store says so, and is refilled all the same.
    world.crash(victim);
    world.hosts[victim].disk.clear();
    let mark = persona_mesh_proto::holder::lost_store_mark(BEGINNING_MS + world.now_us / 1000);
    world.hosts[victim].disk.insert((mark.table, mark.key), mark.value.expect("a mark"));
    world.restart(victim);
    world.run_s(18);
    assert!(whole(&mut world, ada, "doc/letter"), "{:?}", world.section(0, ada, "doc/letter"));
    assert!(shards(&world) > 0);
    // Nobody is asked early any more.
    world.run_s(15);
    let before = world.counter(0, "probes");
    world.run_s(60);
    let probes = world.counter(0, "probes") - before;
    assert!(probes <= 7 * 11, "{probes} probes of eleven others in a minute");
}

#[test]
fn a_holder_that_lost_its_store_is_asked_until_it_has_recovered() {
    let mut longest_s = 0;
    for seed in 400..408 {
        let (mut world, ada) = settled(12, seed);
        let victim = world.holders(0, ada, "doc/letter")[1];
        world.crash(victim);
        world.hosts[victim].disk.clear();
        let mark = persona_mesh_proto::holder::lost_store_mark(BEGINNING_MS + world.now_us / 1000);
        world.hosts[victim].disk.insert((mark.table, mark.key), mark.value.expect("a mark"));
        world.restart(victim);
        world.run_s(1);
        let has_shard = |world: &World| world.hosts[victim].disk.keys().any(|(table, _)| *table == Table::Shard);
        let seconds = (1..60).find(|_| {
            let there = has_shard(&world) && whole(&mut world, ada, "doc/letter");
            world.run_s(1);
            there
        });
        longest_s = longest_s.max(seconds.expect("it is given back"));
    }
    assert!(longest_s <= 6, "{longest_s} s: without being asked early it is 12");
}

#[test]
fn a_host_that_slept_knows_nothing_of_the_time_between() {
    let (mut world, ada) = settled(14, 390);
    let before = version(&mut world, ada, "core");
    // The process stops for ten minutes, with all that was to come to it, and the mesh goes on.
    let node = world.hosts[0].node.take();
    world.run_s(600);
    world.hosts[0].node = node;
    world.feed(0, persona_core::Input::Tick);
    world.run_s(60);
    assert_eq!(version(&mut world, ada, "core"), before, "nobody was replaced for what this node did not hear");
}

#[test]
fn at_the_next_refresh_a_silent_holder_of_another_class_is_left_out() {
    let mut world = World::of(14, 395);
    let (ada, bob) = (world.create(0, "ada"), world.create(1, "bob"));
    world.send(0, ada, bob, "hello").expect("it is sent");
    world.run_s(40);
    let name = |world: &mut World| {
        let sections = world.agent_report(0, ada).expect("ada").sections;
        sections.into_iter().find(|section| section.class == "relationship").expect("a relationship").name
    };
    let name = name(&mut world);
    let victim = *world.holders(0, ada, &name).iter().find(|host| ![0, 1].contains(host)).expect("another");
    world.crash(victim);
    world.run_s(115); // a refresh, with its jitter
    assert!(whole(&mut world, ada, &name), "{:?}", world.section(0, ada, &name));
}

#[test]
fn a_put_tells_its_chance_of_loss_by_what_was_seen_here() {
    let (mut world, ada) = settled(16, 398);
    let first = world.put(0, ada, "doc/letter", b"one").expect("it commits");
    // The prior: 17 % of all nodes die within an hour, so that more than four of seven do with 2 in a thousand, and of five at once with more.
    assert!((1e-4..1e-1).contains(&first.loss_chance), "{}", first.loss_chance);
    world.run_s(3_600);
    let calm = world.put(0, ada, "doc/letter", b"two").expect("it commits");
    assert_eq!(calm.placed.min(5), first.placed.min(5));
    assert!(calm.loss_chance < first.loss_chance / 2.0, "after a quiet hour: {} and {}", calm.loss_chance, first.loss_chance);
    let churn = world.status(0).churn;
    assert!(churn.holder_hours > 8.0 && churn.deaths == 0, "{churn:?}");
    for _ in 0..4 {
        let victim = world.holders(0, ada, "core")[0];
        world.crash(victim);
        world.run_s(60);
    }
    let churn = world.status(0).churn;
    assert_eq!(churn.deaths, 4, "{churn:?}");
    let stormy = world.put(0, ada, "doc/letter", b"three").expect("it commits");
    assert!(stormy.loss_chance > 2.0 * calm.loss_chance, "after four deaths: {} and {}", stormy.loss_chance, calm.loss_chance);
    world.cut(&[0]);
    world.run_s(120);
    assert_eq!(world.status(0).churn.deaths, 4, "being cut off is no death of others");
}

/// A world whose hosts are in networks: `in_one` of them in the same one, the others each in their own.
pub(crate) fn in_networks(count: usize, in_one: usize, seed: u64, diversity: bool) -> World {
    let mut world = World::with(count, seed, persona_core::Config { diversity, ..persona_core::Config::default() });
    world.cut(&(0..count / 2).collect::<Vec<_>>());
    for host in 1..count {
        world.hosts[host].prefix = Some(if host <= in_one { [1; 8] } else { [2, host as u8, 0, 0, 0, 0, 0, 0] });
    }
    for host in 0..count {
        world.hosts[host].connected.clear(); // everybody meets everybody anew, and sees where they are
    }
    world.heal();
    world
}

#[test]
fn no_more_holders_than_may_lie_share_a_network_where_that_is_configured() {
    let twins = |world: &mut World, ada, name: &str| world.holders(0, ada, name).into_iter().filter(|host| *host <= 12).count();
    let mut world = in_networks(24, 12, 600, false);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    assert!(twins(&mut world, ada, "core") + twins(&mut world, ada, "doc/letter") > 5, "without the rule they share it as chance has it");

    let mut world = in_networks(24, 12, 600, true);
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    assert_eq!((report.n, report.f), (7, 2));
    for name in ["core", "card", "index"] {
        assert_eq!(world.section(0, ada, name).expect("it is there").n, 10);
        assert!(twins(&mut world, ada, name) <= 3);
    }
    assert!(twins(&mut world, ada, "doc/letter") <= 2);
    // Also where a holder is replaced.
    world.run_s(40);
    let lonely = *world.holders(0, ada, "core").iter().find(|host| **host > 12).expect("seven at least");
    world.crash(lonely);
    world.run_s(WHOLE_AGAIN_S);
    assert!(whole(&mut world, ada, "core"));
    assert!(twins(&mut world, ada, "core") <= 3);
}

#[test]
fn in_a_mesh_of_one_network_the_rule_costs_level_and_says_so() {
    let mut world = in_networks(12, 11, 610, true);
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    assert_eq!((report.n, report.level, report.byzantine_tolerant), (1, 1, false), "whoever owns that network is one holder");
    let mut world = World::with(12, 611, persona_core::Config { diversity: true, ..persona_core::Config::default() });
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    assert_eq!(report.n, 7, "on loopback and in private networks nobody has a prefix");
}
