//! An agent moves: from dead machines, behind a fence, with everything it was.

use persona_core::{Answer, Call, CallError};
use persona_fragments::OwnerKey;
use persona_mesh_proto::Mode;

use crate::{CALM, World, document};

fn personality(world: &mut World, host: usize, agent: OwnerKey) -> String {
    match world.ask(host, Call::Personality { agent, mode: Mode::Regular }) {
        Ok(Answer::Personality { document, .. }) => document,
        other => panic!("no personality: {other:?}"),
    }
}

/// The relationships of an agent: with whom, how much, and the hash of all that is known.
fn relationships(world: &mut World, host: usize, agent: OwnerKey) -> Vec<(String, u64, String)> {
    match world.ask(host, Call::Relationships { agent }) {
        Ok(Answer::Relationships(report)) => {
            report.relationships.into_iter().map(|one| (one.partner, one.interactions, one.bytes_sha256)).collect()
        }
        other => panic!("no relationships: {other:?}"),
    }
}

fn talk(world: &mut World, (from_host, from): (usize, OwnerKey), (to_host, to): (usize, OwnerKey), text: &str) {
    world.send(from_host, from, to, text).expect("it is sent");
    world.until(text, |world| world.inbox(to_host, to).iter().any(|known| known == text));
    world.until("its acknowledgement", |world| world.outbox(from_host, from).iter().all(|state| *state == "acknowledged"));
}

/// Ada on host 0, Bob on host 1, who know each other, in a mesh of 14.
fn acquainted(seed: u64) -> (World, OwnerKey, OwnerKey, [u8; 32]) {
    let mut world = World::of(14, seed);
    let (ada, bob) = (world.create(0, "ada"), world.create(1, "bob"));
    talk(&mut world, (0, ada), (1, bob), "hello bob");
    talk(&mut world, (1, bob), (0, ada), "hello ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.run_s(5);
    let root = world.root_of(0, "ada");
    (world, ada, bob, root)
}

/// Some hosts that hold an agent's core, and nothing lives on them.
fn core_holders(world: &mut World, agent: OwnerKey, keep: &[usize]) -> Vec<usize> {
    let holders = world.holders(0, agent, "core");
    holders.into_iter().filter(|host| !keep.contains(host)).collect()
}

#[test]
fn an_agent_comes_back_whole_though_its_host_and_three_holders_of_its_core_died() {
    let (mut world, ada, bob, root) = acquainted(201);
    let before = (personality(&mut world, 0, ada), relationships(&mut world, 0, ada));
    let newcomer = 2;
    let victims = core_holders(&mut world, ada, &[1, newcomer])[..3].to_vec();
    world.crash(0);
    world.crash_all(&victims);
    let report = world.import(newcomer, root).expect("the mesh has everything");
    assert!(report.complete, "{:?}", report.sections);
    assert_eq!(report.term, 2);
    assert_eq!((personality(&mut world, newcomer, ada), relationships(&mut world, newcomer, ada)), before);
    assert_eq!(world.get(newcomer, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
    talk(&mut world, (newcomer, ada), (1, bob), "it is me");
    talk(&mut world, (1, bob), (newcomer, ada), "so it is");
    assert_eq!(world.inbox(newcomer, ada), ["so it is"]);
}

#[test]
fn an_old_host_that_comes_back_is_fenced_and_stops() {
    let (mut world, ada, bob, root) = acquainted(202);
    world.crash(0);
    world.import(2, root).expect("the mesh has everything");
    world.restart(0);
    // Three calls that only another section's put would answer.
    let ids = [world.call(0, document(ada, "doc/letter", b"old")), world.call(0, document(ada, "doc/new", b"old"))];
    world.run_s(30);
    for id in ids {
        let refused = world.replies.get(&id);
        assert!(matches!(refused, Some(Err(CallError::Fenced { term: 2 }))), "{refused:?}");
    }
    assert_eq!(world.agent_report(0, ada).expect("it is remembered").state, "fenced");
    assert!(world.alarms(0, "fenced") == 1);
    let puts = world.status(0).counters.get("puts_committed").copied();
    world.run_s(400);
    assert!(matches!(world.put(0, ada, "doc/letter", b"old"), Err(CallError::Fenced { term: 2 })));
    assert!(matches!(world.send(0, ada, bob, "old"), Err(CallError::Fenced { term: 2 })));
    assert!(matches!(world.ask(0, Call::Publish { agent: ada }), Err(CallError::Fenced { term: 2 })));
    let canaries = world.status(0).counters.get("puts_committed").copied();
    assert!(canaries >= puts, "only its own canary goes on");
    assert_eq!(world.get(2, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
}

#[test]
fn an_agent_comes_back_to_a_host_that_never_noticed_that_it_left() {
    let (mut world, ada, bob, root) = acquainted(206);
    let refused = world.import(0, root);
    assert!(matches!(&refused, Err(CallError::BadRequest(reason)) if reason.contains("lives on this node")), "{refused:?}");
    assert_eq!(world.agent_report(0, ada).expect("it lives").state, "live", "asking changes nothing");
    let before = (personality(&mut world, 0, ada), relationships(&mut world, 0, ada));
    // The old host runs all the while. Nothing of it changes, so that it puts nothing and nobody tells it.
    assert_eq!(world.import(2, root).expect("it moves").term, 2);
    assert_eq!(world.import(0, root).expect("it comes back").term, 3);
    assert_eq!(world.agent_report(0, ada).expect("it lives").state, "live");
    assert_eq!((personality(&mut world, 0, ada), relationships(&mut world, 0, ada)), before);
    world.put(0, ada, "doc/letter", b"home again").expect("its home writes");
    assert!(matches!(world.put(2, ada, "doc/letter", b"from away"), Err(CallError::Fenced { term: 3 })));
    talk(&mut world, (0, ada), (1, bob), "I was away");
}

#[test]
fn of_two_importers_at_once_at_most_one_stays() {
    for seed in 0..6 {
        let (mut world, ada, _, root) = acquainted(300 + seed);
        world.crash(0);
        let import = |world: &mut World, host| world.call(host, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
        let ids = [import(&mut world, 2), import(&mut world, 3)];
        let after = [0, 3_000, 20_000, 60_000, 150_000, 400_000][seed as usize];
        world.run_us(after);
        let results = [world.imported(2, ids[0]), world.imported(3, ids[1])];
        assert!(results.iter().any(Result::is_ok), "{results:?}");
        world.run_s(400); // every section is due for renewal: whoever lost finds out
        let live: Vec<usize> =
            [2, 3].into_iter().filter(|host| world.agent_report(*host, ada).is_some_and(|report| report.state == "live")).collect();
        assert_eq!(live.len(), 1, "one host writes for an agent, not {live:?}: {results:?}");
        assert!(world.put(live[0], ada, "doc/letter", b"mine").is_ok());
        assert_eq!(world.get(live[0], ada, "doc/letter", Mode::Regular), Ok(b"mine".to_vec()));
    }
}

#[test]
fn an_import_without_a_quorum_says_that_it_may_be_stale() {
    let (mut world, ada, _, root) = acquainted(203);
    let victims = core_holders(&mut world, ada, &[1, 2])[..5].to_vec();
    world.crash(0);
    world.crash_all(&victims);
    let report = world.import(2, root).expect("enough shards are left");
    assert_eq!(report.mode, "any");
    assert!(report.bounded_stale_until_ms.is_some());
    assert_eq!(world.get(2, ada, "doc/letter", Mode::Any), Ok(b"be kind".to_vec()));
}

#[test]
fn an_import_without_the_core_changes_nothing() {
    let (mut world, ada, bob, root) = acquainted(204);
    let victims = core_holders(&mut world, ada, &[1, 2]);
    // One survivor of the core is not enough; the rest of the mesh still has the card.
    world.crash_all(&victims);
    let refused = world.import(2, root);
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(world.agent_report(2, ada), None);
    for host in victims {
        world.restart(host);
    }
    world.run_s(5);
    assert_eq!(world.agent_report(0, ada).expect("it lives where it was").state, "live");
    world.put(0, ada, "doc/letter", b"still here").expect("nobody fenced it");
    talk(&mut world, (0, ada), (1, bob), "still me");
}

#[test]
fn an_import_that_failed_can_be_tried_again() {
    let (mut world, ada, _, root) = acquainted(205);
    world.crash(0);
    let id = world.call(2, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
    // The card of the next term reaches some holders, and then the network goes.
    world.until("the card is sent", |world| world.watch.versions(&card(ada)).len() > 1);
    world.run_us(2_500);
    world.net.lost_permille = 1000;
    let refused = world.imported(2, id);
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(world.agent_report(2, ada), None);
    world.net = CALM;
    world.crash(2);
    world.restart(2);
    let report = world.import(2, root).expect("now it can be reached");
    assert!(report.complete);
    assert_eq!(world.alarms(2, "conflict"), 0, "a version is never signed twice, whatever failed before");
}

fn card(agent: OwnerKey) -> persona_fragments::SectionKey {
    persona_fragments::SectionKey::derive(&agent, b"card")
}

#[test]
fn an_agent_that_returns_home_brings_what_it_lived_through_elsewhere() {
    let (mut world, ada, bob, root) = acquainted(206);
    world.crash(0);
    world.import(2, root).expect("away");
    talk(&mut world, (2, ada), (1, bob), "from afar");
    talk(&mut world, (1, bob), (2, ada), "come home");
    world.run_s(5);
    let away = relationships(&mut world, 2, ada);
    world.crash(2);
    world.restart(0);
    world.run_s(10);
    assert_eq!(world.agent_report(0, ada).expect("remembered").state, "fenced");
    let report = world.import(0, root).expect("home again");
    assert_eq!(report.term, 3, "{report:?}");
    assert_eq!(relationships(&mut world, 0, ada), away);
    // What this disk kept from before is not mistaken for what came after.
    world.crash(0);
    world.restart(0);
    world.run_s(5);
    assert_eq!(relationships(&mut world, 0, ada), away);
    talk(&mut world, (0, ada), (1, bob), "home again");
    talk(&mut world, (1, bob), (0, ada), "welcome back");
    assert_eq!(world.inbox(0, ada), ["hello ada", "welcome back"], "the inbox of this machine goes on");
}
