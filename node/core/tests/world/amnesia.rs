//! Machines that lose their stores and notice it: others' sections come back to them, and nobody is told anything wrong meanwhile.

use persona_core::{Answer, Call, CallError, report::AnalysisReport};
use persona_fragments::OwnerKey;
use persona_mesh_proto::{Mode, Table, Write, holder::lost_store_mark};

use crate::World;

impl World {
    /// Loses what is in the store, notices it, and starts again, as the daemon does.
    fn lose_store(&mut self, host: usize) {
        self.crash(host);
        let Write { table, key, value } = lost_store_mark(self.now().wall_ms);
        self.hosts[host].disk.clear();
        self.hosts[host].disk.insert((table, key), value.expect("a mark"));
        self.start(host);
    }

    fn analysis(&mut self, host: usize, agent: OwnerKey, name: &str) -> AnalysisReport {
        let kad_key = self.section(host, agent, name).expect("the section is known").kad_key;
        let key = persona_fragments::SectionKey::from_kad_key(&kad_key).expect("a section's key");
        match self.ask(host, Call::Analyze { key, mode: None }) {
            Ok(Answer::Analysis(analysis)) => *analysis,
            other => panic!("no analysis: {other:?}"),
        }
    }

    fn answer_of_holder(&mut self, host: usize, agent: OwnerKey, name: &str, holder: usize) -> &'static str {
        let peer = self.hosts[holder].peer.to_peer_id_string();
        let analysis = self.analysis(host, agent, name);
        analysis.holders.iter().find(|report| report.peer_id == peer).expect("a holder").answer
    }
}

#[test]
fn a_holder_that_lost_its_store_recovers_and_is_refilled() {
    let mut world = World::of(12, 401);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.run_s(2);
    let lost = world.holders(0, ada, "doc/letter")[2];
    world.lose_store(lost);
    assert_eq!(world.status(lost).lost_store_ms, Some(world.now().wall_ms));
    assert_eq!(world.alarms(lost, "store-lost"), 1);
    assert_eq!(world.answer_of_holder(0, ada, "doc/letter", lost), "recovering");
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
    world.run_s(14); // whoever asks it, its owner's probe included, makes it ask the others
    assert_eq!(world.answer_of_holder(0, ada, "doc/letter", lost), "committed");
    world.run_s(20); // and its owner hands it its shard
    let analysis = world.analysis(0, ada, "doc/letter");
    assert!(analysis.holders.iter().all(|holder| holder.has_shard), "{:?}", analysis.holders);
    assert!(world.status(lost).counters["recoveries_done"] >= 1);
}

#[test]
fn whoever_reads_gives_a_holder_its_shard_back_within_20_seconds() {
    let mut world = World::of(12, 404);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.run_s(8);
    let lost = world.holders(0, ada, "doc/letter")[2];
    let section = world.section(0, ada, "doc/letter").expect("the section is known");
    let key = persona_fragments::SectionKey::from_kad_key(&section.kad_key).expect("a section's key");
    world.crash(0); // its owner would hand it over by itself
    world.lose_store(lost);
    let has_shard = |world: &World| world.hosts[lost].disk.keys().any(|(table, place)| *table == Table::Shard && place.starts_with(&key.0));
    world.run_s(30);
    assert!(!has_shard(&world), "nobody has asked for it");
    let reader = (1..12).find(|host| *host != lost).expect("many");
    assert!(world.ask(reader, Call::Fetch { key, mode: Mode::Regular }).is_ok());
    world.run_s(20);
    assert!(has_shard(&world));
    assert_eq!(world.status(reader).counters["read_repairs"], 1);
}

#[test]
fn holders_that_lost_their_stores_are_no_quorum_until_they_have_asked() {
    let mut world = World::of(12, 402);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.run_s(2);
    let holders = world.holders(0, ada, "doc/letter");
    for holder in &holders[..2] {
        world.lose_store(*holder);
    }
    world.crash(holders[2]);
    let read = world.get(0, ada, "doc/letter", Mode::Regular);
    assert!(matches!(read, Err(CallError::QuorumUnreachable { have: 4, need: 5, .. })), "{read:?}");
    world.restart(holders[2]);
    world.run_s(12);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()), "five of seven");
    world.run_s(2);
    world.crash(holders[2]);
    world.crash(holders[3]);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()), "two of the five had lost their stores");
}

#[test]
fn when_everybody_else_lost_their_stores_the_owner_stores_everything_again() {
    for count in [2, 4, 12] {
        let mut world = World::of(count, 403 + count as u64);
        let ada = world.create(0, "ada");
        world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
        world.run_s(2);
        for host in 1..count {
            world.lose_store(host);
        }
        world.run_s(40 * 60); // at the latest by the second renewal
        for name in ["core", "index", "doc/letter"] {
            let analysis = world.analysis(0, ada, name);
            assert!(analysis.readable.regular, "{count}, {name}: {:?}", analysis.holders);
            assert!(analysis.holders.iter().all(|holder| holder.has_shard), "{count}, {name}: {:?}", analysis.holders);
        }
        assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()), "{count}");
    }
}
