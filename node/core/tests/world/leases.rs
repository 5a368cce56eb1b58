//! Owners that are away: what holders keep alive, and what an owner, or who takes over, finds.

use persona_core::{Answer, Call, report::AnalysisReport};
use persona_fragments::{Class, OwnerKey, SectionKey};
use persona_mesh_proto::Mode;

use crate::{World, probes::in_networks};

fn leased(agent: OwnerKey, ttl_ms: u64, renew_for_ms: u64) -> Call {
    leased_at(None, agent, ttl_ms, renew_for_ms)
}

fn leased_at(level: Option<u8>, agent: OwnerKey, ttl_ms: u64, renew_for_ms: u64) -> Call {
    Call::PutSection {
        agent,
        name: "doc/letter".into(),
        class: Class::Document,
        ttl_ms: Some(ttl_ms),
        renew_for_ms: Some(renew_for_ms),
        level,
        require_level: None,
        content: b"be kind".to_vec(),
    }
}

fn analysis(world: &mut World, host: usize, key: SectionKey) -> AnalysisReport {
    match world.ask(host, Call::Analyze { key, mode: None }) {
        Ok(Answer::Analysis(analysis)) => *analysis,
        other => panic!("no analysis: {other:?}"),
    }
}

/// Ada on host 0 with a letter, and its key.
fn with_letter(seed: u64, renew_for_ms: u64) -> (World, OwnerKey, SectionKey) {
    let mut world = World::of(12, seed);
    let ada = world.create(0, "ada");
    let id = world.call(0, leased(ada, 60_000, renew_for_ms));
    let report = world.put_answer(id).expect("it commits");
    assert_eq!(report.lease_until_ms.is_some(), renew_for_ms > 0);
    (world, ada, SectionKey::from_kad_key(&report.kad_key).expect("a key"))
}

#[test]
fn a_section_outlives_its_owner_and_the_owner_goes_on_from_there() {
    let (mut world, ada, key) = with_letter(401, 3_600_000);
    world.crash(0);
    for turn in 0..4 {
        let holders = analysis(&mut world, 11, key).holders;
        let peers: Vec<String> = holders.iter().map(|holder| holder.peer_id.clone()).collect();
        let victim = world.hosts_named(&peers).into_iter().find(|host| *host != 11).expect("a holder");
        world.crash(victim);
        world.hosts[victim].disk.clear();
        world.run_s(90);
        world.start(victim);
        let report = analysis(&mut world, 11, key);
        assert!(report.readable.regular, "turn {turn}: {report:?}");
        assert!(report.expires_in_s > 0.0 && report.lease_until_ms.is_some());
    }
    let report = analysis(&mut world, 11, key);
    assert!(report.holders.iter().filter(|holder| holder.has_shard).count() >= 6, "whoever took a place was given its shard: {report:?}");
    let version = report.version;
    world.start(0);
    world.until("the owner's next put", |world| analysis(world, 11, key).version != version);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Atomic), Ok(b"be kind".to_vec()));
    assert!(world.status(0).counters.get("leases_found").is_some_and(|found| *found > 0));
    let section = world.section(0, ada, "doc/letter").expect("known");
    assert_eq!(section.state, "committed");
}

/// Whoever leads gives a late one up or waits for it, and those that judge must come to the same: else they agree on no link.
#[test]
fn where_one_is_gone_a_holder_that_answers_late_keeps_no_lease_from_being_renewed() {
    for (seed, lag_us) in [(404, 1_700_000), (405, 1_950_000), (406, 2_300_000), (407, 2_900_000)] {
        let mut world = World::of(12, seed);
        let ada = world.create(0, "ada");
        let id = world.call(0, leased_at(Some(2), ada, 60_000, 3_600_000));
        let report = world.put_answer(id).expect("it commits");
        let key = SectionKey::from_kad_key(&report.kad_key).expect("a key");
        let holders = world.hosts_named(&report.holders);
        assert_eq!(holders.len(), 4);
        world.run_s(2);
        world.crash(0);
        // One of four is gone, and without the late one there is no quorum.
        world.crash(holders[0]);
        world.hosts[holders[1]].lag_us = lag_us;
        let reader = (1..12).find(|host| !holders.contains(host)).expect("another");
        for _ in 0..5 {
            world.run_s(60);
            let report = analysis(&mut world, reader, key);
            assert!(report.readable.regular && report.expires_in_s > 0.0, "{lag_us}: {report:?}");
        }
    }
}

#[test]
fn without_a_lease_it_does_not() {
    let (mut world, _, key) = with_letter(402, 0);
    world.crash(0);
    world.run_s(90);
    assert!(world.ask(3, Call::Certificate { key }).is_err());
}

#[test]
fn an_agent_is_brought_back_from_what_its_holders_kept_for_hours() {
    let mut world = World::of(12, 403);
    let ada = world.create(0, "ada");
    let root = world.root_of(0, "ada");
    world.run_s(5);
    let core = world.section(0, ada, "core").expect("known");
    assert!(core.lease_until_ms.is_some(), "by default");
    world.crash(0);
    for host in 1..4 {
        world.run_s(3_000);
        world.crash(host);
        world.run_s(600);
        world.start(host);
    }
    let report = world.import(5, root).expect("the mesh has everything");
    assert!(report.complete, "{:?}", report.sections);
    assert_eq!(report.bounded_stale_until_ms, None);
    assert!(world.get(5, ada, "core", Mode::Regular).is_ok());
}

#[test]
fn an_owner_that_lives_is_never_helped() {
    let (mut world, _, _) = with_letter(404, 3_600_000);
    world.run_s(600);
    let renewed = |world: &mut World, host| world.status(host).counters.get("leases_renewed").copied().unwrap_or(0);
    assert_eq!((0..12).map(|host| renewed(&mut world, host)).sum::<u64>(), 0);
}

/// Ten hosts that have known one another for hours, and six that have just come.
fn with_newcomers(seed: u64) -> World {
    let mut world = World::of(16, seed);
    let newcomers: Vec<usize> = (10..16).collect();
    world.crash_all(&newcomers);
    world.run_s(2 * 3600);
    newcomers.into_iter().for_each(|host| world.restart(host));
    world.run_s(5);
    world
}

#[test]
fn places_go_to_those_that_have_been_there_for_long_at_a_put_and_at_a_handover() {
    let mut world = with_newcomers(405);
    let ada = world.create(0, "ada");
    let id = world.call(0, leased(ada, 60_000, 3_600_000));
    let report = world.put_answer(id).expect("it commits");
    let key = SectionKey::from_kad_key(&report.kad_key).expect("a key");
    let before = world.holders(0, ada, "doc/letter");
    assert!(before.len() == 7 && before.iter().all(|host| *host < 10), "seven of the nine that are not the owner's host: {before:?}");
    world.run_s(30);
    world.crash_all(&[0, before[0], before[1]]);
    let (gone, reader) = ([before[0], before[1]], before[2]);
    world.run_s(90);
    let now = analysis(&mut world, reader, key);
    let now: Vec<String> = now.holders.into_iter().map(|holder| holder.peer_id).collect();
    let now = world.hosts_named(&now);
    assert!(now.len() == 7 && now.iter().all(|host| *host < 10 && !gone.contains(host)), "the last two of them: {before:?}, then {now:?}");
}

/// Who leads does not know its own network, so it may give the place to one more of it.
#[test]
fn handovers_heed_networks_where_that_is_configured() {
    let mut world = in_networks(24, 12, 602, true);
    let ada = world.create(0, "ada");
    let id = world.call(0, leased(ada, 60_000, 3_600_000));
    let key = SectionKey::from_kad_key(&world.put_answer(id).expect("it commits").kad_key).expect("a key");
    world.run_s(30);
    world.crash(0);
    let mut lonely = 0;
    for _ in 0..12 {
        let up: Vec<usize> = (1..24).filter(|host| world.up(*host)).collect();
        let holders = analysis(&mut world, up[0], key).holders.into_iter().map(|holder| holder.peer_id).collect::<Vec<_>>();
        let holders = world.hosts_named(&holders);
        let twins = holders.iter().filter(|host| **host <= 12).count();
        assert!(twins <= 3, "two may lie, and one more: {holders:?}");
        let Some(victim) = holders.into_iter().find(|host| *host > 12 && world.up(*host)) else { break };
        if up.iter().filter(|host| **host > 12).count() <= 5 {
            break; // else there are not enough networks
        }
        world.crash(victim);
        lonely += 1;
        world.run_s(90);
    }
    assert!(lonely >= 4, "{lonely} had a network of their own and went");
}

/// What an operator says of a class is true of what is there already, once the node has restarted: of the node's own sections. Documents keep
/// what their users said.
#[test]
fn a_longer_lease_of_a_class_reaches_the_sections_that_are_there() {
    const DAY_MS: u64 = 24 * 3_600_000;
    let mut world = World::of(12, 406);
    let ada = world.create(0, "ada");
    let id = world.call(0, leased(ada, 60_000, 0));
    world.put_answer(id).expect("it commits");
    let left_ms = |world: &mut World, name: &str| {
        let (until_ms, now_ms) = (world.section(0, ada, name).expect("known").lease_until_ms, world.clock(0).wall_ms);
        until_ms.map_or(0, |until_ms| until_ms.saturating_sub(now_ms))
    };
    assert!((1..=DAY_MS).contains(&left_ms(&mut world, "core")));
    world.crash(0);
    world.config.classes.core.renew_for = std::time::Duration::from_secs(7 * 24 * 3600);
    world.restart(0);
    world.run_s(1_500);
    for name in ["core", "card", "index"] {
        assert!(left_ms(&mut world, name) > 6 * DAY_MS, "{name}: {} ms", left_ms(&mut world, name));
    }
    assert_eq!(left_ms(&mut world, "doc/letter"), 0);
    // And a shorter one.
    world.crash(0);
    world.config.classes.core.renew_for = std::time::Duration::ZERO;
    world.restart(0);
    world.run_s(1_500);
    for name in ["core", "card", "index"] {
        assert_eq!(left_ms(&mut world, name), 0, "{name}");
    }
}
