//! An agent moves: from dead machines, behind a fence, with everything it was.

use std::collections::BTreeSet;

use persona_core::{Answer, Call, CallError};
use persona_fragments::{Class, OwnerKey};
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

/// An import on host 2 whose card was sent, and of which it could not be said what became of it: the network went.
fn unfinished(seed: u64) -> (World, OwnerKey, [u8; 32]) {
    let (mut world, ada, _, root) = acquainted(seed);
    world.crash(0);
    let id = world.call(2, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
    // The card of the next term reaches some holders, and then the network goes.
    world.until("the card is sent", |world| world.watch.versions(&card(ada)).len() > 1);
    world.run_us(2_500);
    world.net.lost_permille = 1000;
    let refused = world.imported(2, id);
    let Err(error @ CallError::ImportUnfinished { term: 2, .. }) = &refused else { panic!("{refused:?}") };
    assert!(error.to_string().starts_with("the import of ada is not over"), "{error}");
    assert!(error.hint().contains("goes on by itself"), "{}", error.hint());
    assert_eq!(world.agent_report(2, ada).expect("it is on its way").state, "importing");
    (world, ada, root)
}

#[test]
fn an_import_that_may_have_fenced_the_old_host_goes_on_by_itself() {
    let (mut world, ada, _) = unfinished(205);
    world.run_s(20);
    world.net = CALM;
    world.until("it lives here", |world| world.agent_report(2, ada).is_some_and(|report| report.state == "live"));
    assert!(world.hosts[2].importing.is_empty() && world.hosts[2].keystore.len() == 1);
    world.put(2, ada, "doc/letter", b"here").expect("it writes");
    assert_eq!(world.alarms(2, "conflict"), 0, "a version is never signed twice, whatever failed before");
}

#[test]
fn an_import_that_failed_can_be_tried_again_at_once() {
    let (mut world, ada, root) = unfinished(205);
    world.run_s(40);
    world.net = CALM;
    let mut report = world.import(2, root);
    while matches!(report, Err(CallError::Busy(_))) {
        world.run_ms(100);
        report = world.import(2, root);
    }
    match report {
        Ok(report) => assert!(report.complete),
        // By itself it was faster.
        Err(CallError::BadRequest(text)) => assert!(text.contains("lives on this node"), "{text}"),
        Err(error) => panic!("now it can be reached: {error}"),
    }
    assert_eq!(world.agent_report(2, ada).expect("it is here").state, "live");
    assert_eq!(world.alarms(2, "conflict"), 0, "a version is never signed twice, whatever failed before");
}

#[test]
fn an_import_that_failed_behind_its_fence_says_that_the_old_host_is_fenced() {
    let (mut world, ada, _, root) = acquainted(211);
    world.crash(0);
    let id = world.call(2, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
    world.until("the fence is up", |world| {
        world.hosts.iter().any(|host| {
            let head = host.served.get(&card(ada)).and_then(|bytes| persona_fragments::CertifiedHead::from_bytes(bytes, &Everybody).ok());
            head.is_some_and(|head| head.manifest.version.term == 2)
        })
    });
    world.run_ms(4);
    world.net.lost_permille = 1000;
    let refused = world.imported(2, id);
    let Err(error @ CallError::ImportUnfinished { term: 2, certified: true, .. }) = &refused else { panic!("{refused:?}") };
    let text = error.to_string();
    assert!(text.contains("cannot be undone") && text.contains("its card of term 2 is certified, and its old host is fenced"), "{text}");
    world.net = CALM;
    world.until("it lives here", |world| world.agent_report(2, ada).is_some_and(|report| report.state == "live"));
}

/// For heads whose certificate is not in question.
struct Everybody;

impl persona_fragments::Verifier for Everybody {
    fn verify(&self, _: &[u8; 32], _: &[u8], _: &persona_fragments::Signature) -> bool {
        true
    }
}

#[test]
fn wherever_an_import_is_killed_the_agent_is_at_home_somewhere() {
    // How long an import takes when nobody is killed.
    let (mut world, ada, _, root) = acquainted(207);
    world.crash(0);
    let began_us = world.now_us;
    world.import(2, root).expect("the mesh has everything");
    let took_us = world.now_us - began_us;
    let (moments, mut alone, mut before) = (30, 0, 0);
    for moment in 0..moments {
        let (mut world, _, _, root) = acquainted(207);
        world.crash(0);
        assert_eq!(world.now_us, began_us, "the same world again");
        let id = world.call(2, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
        world.run_us(took_us * moment / moments);
        assert!(!world.replies.contains_key(&id), "it is not over yet");
        world.crash(2);
        world.restart(2);
        world.restart(0);
        // Until every section is due: whoever does not live any more has found out.
        world.run_s(400);
        let state = |world: &mut World, host| world.agent_report(host, ada).map(|report| report.state);
        match (state(&mut world, 0), state(&mut world, 2)) {
            (Some("live"), None) => before += 1,
            (Some("fenced"), Some("live")) => alone += 1,
            states => panic!("killed after {} us: {states:?}", took_us * moment / moments),
        }
        let home = if state(&mut world, 2).is_some() { 2 } else { 0 };
        world.put(home, ada, "doc/letter", b"at home").expect("it writes");
        assert!(world.hosts[2].importing.is_empty(), "nothing is left to do");
        assert_eq!(world.alarms(2, "conflict") + world.alarms(0, "conflict"), 0);
    }
    assert!(before > 0 && alone > moments / 2, "{before} before the keys were kept, {alone} after");
}

#[test]
fn an_agent_that_was_killed_on_its_way_home_comes_home() {
    let mut finished = 0;
    for after_ms in [3, 8, 14, 20, 30, 45] {
        let (mut world, ada, bob, root) = acquainted(214);
        world.crash(0);
        world.import(2, root).expect("away");
        talk(&mut world, (2, ada), (1, bob), "from afar");
        world.run_s(5);
        let away = relationships(&mut world, 2, ada);
        world.restart(0);
        world.run_s(10);
        world.crash(2);
        let id = world.call(0, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
        world.run_ms(after_ms);
        let over = world.replies.contains_key(&id);
        let begun = !world.hosts[0].importing.is_empty();
        // What the keystore and the disk have of the earlier stay is there as well.
        assert_eq!(world.hosts[0].keystore.len(), 1);
        world.crash(0);
        world.restart(0);
        assert_eq!(begun, world.agent_report(0, ada).expect("it was here").state == "importing", "{after_ms} ms");
        world.restart(2);
        // Until every section is due: whoever does not live any more has found out.
        world.run_s(400);
        let (home, other) = if begun || over { (0, 2) } else { (2, 0) };
        assert_eq!(world.agent_report(home, ada).expect("it is home").state, "live", "{after_ms} ms");
        assert_eq!(world.agent_report(other, ada).expect("it was there").state, "fenced", "{after_ms} ms");
        assert_eq!(relationships(&mut world, home, ada), away);
        talk(&mut world, (home, ada), (1, bob), "home again");
        assert_eq!(world.alarms(0, "conflict"), 0);
        finished += usize::from(begun);
    }
    assert!(finished >= 3, "{finished} imports were killed behind their keys");
}

#[test]
fn an_interrupted_import_gives_way_to_a_host_that_has_the_agent_meanwhile() {
    let (mut world, ada, _, root) = acquainted(208);
    world.crash(0);
    world.call(2, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
    world.until("its keys are kept", |world| !world.hosts[2].importing.is_empty());
    world.crash(2);
    world.import(3, root).expect("the mesh has everything");
    world.restart(2);
    world.run_s(60);
    assert_eq!((world.agent_report(2, ada), world.alarms(2, "import-overtaken")), (None, 1));
    assert!(world.hosts[2].importing.is_empty(), "its keys are kept no longer");
    world.put(3, ada, "doc/letter", b"mine").expect("nobody fenced it");
    world.import(2, root).expect("but whoever asks for it has it");
}

#[test]
fn an_import_that_is_refused_before_its_fence_leaves_nothing_in_the_keystore() {
    let (mut world, ada, bob, root) = acquainted(209);
    let id = world.call(2, Call::Import { root: zeroize::Zeroizing::new(root), name: None });
    world.until("its keys are about to be kept", |world| world.queue.values().any(|event| matches!(event, crate::Event::Kept { .. })));
    // While the keystore is written somebody else gets the name.
    let namesake = Call::CreateAgent { name: "ada".into(), role: None, place: "here".into(), attributes: Vec::new() };
    world.call(2, namesake);
    let refused = world.imported(2, id);
    assert!(matches!(refused, Err(CallError::NameTaken(_))), "{refused:?}");
    assert!(world.hosts[2].importing.is_empty(), "the keys are gone before the call is answered");
    assert_eq!((world.agent_report(2, ada), world.watch.versions(&card(ada)).iter().filter(|version| version.term > 1).count()), (None, 0));
    assert_eq!(world.agent_report(0, ada).expect("it lives where it was").state, "live");
    talk(&mut world, (0, ada), (1, bob), "still me");
}

#[test]
fn an_import_whose_keys_cannot_be_kept_changes_nothing() {
    let (mut world, ada, bob, root) = acquainted(210);
    world.hosts[2].keystore_fails = true;
    let refused = world.import(2, root);
    assert!(matches!(&refused, Err(CallError::NotKept(reason)) if reason == "the disk is full"), "{refused:?}");
    assert_eq!((world.agent_report(2, ada), world.watch.versions(&card(ada)).iter().filter(|version| version.term > 1).count()), (None, 0));
    assert_eq!(world.agent_report(0, ada).expect("it lives where it was").state, "live");
    talk(&mut world, (0, ada), (1, bob), "still me");
}

#[test]
fn an_agent_that_cannot_be_taken_up_is_an_alarm_and_the_others_live() {
    let (mut world, ada, _, root) = acquainted(212);
    let eve = world.create(0, "eve");
    world.run_s(5);
    world.crash(0);
    let core = persona_fragments::SectionKey::derive(&ada, b"core");
    world.hosts[0].damaged = true;
    world.hosts[0].disk.remove(&(persona_mesh_proto::Table::Own, core.0.to_vec())).expect("its core was there");
    world.restart(0);
    assert_eq!(world.hosts[0].not_taken_up, ["its core is not in this state directory"]);
    let status = world.status(0);
    let alarm = status.alarms.iter().find(|alarm| alarm.kind == "agent-not-taken-up").expect("an alarm");
    for part in ["ada", &ada.to_did(), "its core is not", "`persona agent import FILE`"] {
        assert!(alarm.text.contains(part), "{}", alarm.text);
    }
    assert_eq!(world.agent_report(0, ada), None);
    world.put(0, eve, "doc/letter", b"me too").expect("the others live");
    // What the alarm says to do works, though the disk has old rows of it.
    let report = world.import(0, root).expect("the mesh has it");
    assert!(report.complete && report.term == 2, "{report:?}");
    world.hosts[0].damaged = false;
    world.crash(0);
    world.restart(0);
    assert_eq!(world.agent_report(0, ada).expect("it is taken up again").state, "live");
    assert_eq!(world.alarms(0, "conflict"), 0);
}

#[test]
fn what_a_disk_has_of_agents_that_do_not_live_there_is_named_and_found_again() {
    let (mut world, ada, bob, root) = acquainted(213);
    world.crash(0);
    let kept = std::mem::take(&mut world.hosts[0].keystore);
    world.restart(0);
    let strays = world.hosts[0].strays.clone();
    let [stray] = strays.as_slice() else { panic!("{strays:?}") };
    assert_eq!((stray.agent, stray.messages, stray.partners), (ada, 1, 1));
    assert!(stray.sections >= 6, "{stray:?}");
    world.import(0, root).expect("the mesh has it");
    assert_eq!(world.inbox(0, ada), ["hello ada"], "its inbox was on this disk");
    talk(&mut world, (0, ada), (1, bob), "home again");
    assert_eq!(world.hosts[0].keystore.len(), kept.len());
    world.crash(0);
    world.restart(0);
    assert!(world.hosts[0].strays.is_empty(), "it lives here again");
    talk(&mut world, (0, ada), (1, bob), "and again");
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

/// Else whoever takes over on the other side of the cut would find the index of before, write the section anew without a word to its holders,
/// and they would go on returning it as the newest.
#[test]
fn a_section_that_is_born_behind_a_cut_says_that_others_may_not_know_of_it() {
    let mut world = World::of(9, 330);
    let ada = world.create(0, "ada");
    world.run_s(40);
    world.cut(&[0, 7, 8]);
    let call = world.call(0, document(ada, "doc/letter", b"be kind"));
    world.run_s(120);
    let born = world.put_answer(call).expect("it commits with two holders");
    let index = world.section(0, ada, "index").expect("it is there");
    assert_eq!((born.n, index.n), (2, 2), "{born:?}");
    assert!(born.stale_until_ms.is_some(), "{born:?}");
    let again = world.put(0, ada, "doc/letter", b"be kind to all").expect("it commits");
    assert!(again.stale_until_ms.is_some(), "as long as the index is in doubt, the section is: {again:?}");
    world.heal();
    world.until("the index to reach all", |world| world.section(0, ada, "index").is_some_and(|index| index.n > 2 && index.held == index.n));
    let known = world.put(0, ada, "doc/letter", b"be kind to everybody").expect("it commits");
    assert_eq!(known.stale_until_ms, None, "{known:?}");
}

/// Seeds 115140 and 3322: nobody need be told any more of what has run out, so among others it may be begun anew on both sides. And where a
/// version with a shorter life was put at the same holders, these may have the one before it alone.
#[test]
fn what_ran_out_while_its_host_was_down_is_not_begun_anew_behind_its_successors_back() {
    for (name, durable_ms) in [("doc/brief", 1_000), ("doc/letter", 1_000), ("doc/letter", 0)] {
        let (mut world, ada, _, root) = acquainted(231);
        let lives = |content: &[u8]| Call::PutSection {
            agent: ada,
            name: name.into(),
            class: Class::Document,
            ttl_ms: Some(30_000),
            renew_for_ms: None,
            level: None,
            require_level: None,
            content: content.to_vec(),
        };
        let id = world.call(0, lives(b"before"));
        world.put_answer(id).expect("it commits");
        world.run_ms(durable_ms);
        // Three others are down beside it while the agent is taken over: they hear of no fence.
        let others = [11, 12, 13];
        world.crash_all(&[&[0][..], &others].concat());
        world.run_s(60);
        world.import(2, root).expect("everything is there");
        let id = world.call(2, lives(b"of the successor"));
        let put = world.put_answer(id).expect("it commits");
        // It cannot tell what has expired from what it did not find.
        assert!(put.stale_until_ms.is_some(), "{put:?}");
        world.cut(&[&[0][..], &others].concat());
        others.iter().for_each(|host| world.restart(*host));
        world.run_s(3);
        world.restart(0);
        world.run_ms(100);
        let id = world.call(0, lives(b"of the old host"));
        if let Ok(put) = world.put_answer(id) {
            assert!(put.stale_until_ms.is_some(), "{name}: it cannot know: {put:?}");
        }
        world.heal();
        world.until("the old host to be told", |world| world.agent_report(0, ada).is_some_and(|report| report.state != "live"));
        assert_eq!(world.get(2, ada, name, Mode::Regular), Ok(b"of the successor".to_vec()));
    }
}

/// Seed 123525: a lookup misses the only holder, so most of those asked say that there is none, and the section begins anew without a word to
/// that holder, which goes on returning what it has as the newest.
#[test]
fn what_is_put_in_place_of_a_section_that_could_not_be_read_says_that_older_versions_may_live() {
    let (mut world, ada, _, root) = acquainted(232);
    let put = |content: &[u8]| Call::PutSection {
        agent: ada,
        name: "doc/brief".into(),
        class: Class::Document,
        ttl_ms: Some(60_000),
        renew_for_ms: None,
        level: Some(1),
        require_level: None,
        content: content.to_vec(),
    };
    let id = world.call(0, put(b"before"));
    world.put_answer(id).expect("it commits");
    world.run_s(5);
    let holders = world.holders(0, ada, "doc/brief");
    assert_eq!(holders.len(), 4);
    let newcomer = (1..14).find(|host| !holders.contains(host)).expect("there are others");
    world.crash_all(&[&[0][..], &holders[..3]].concat());
    assert!(!world.import(newcomer, root).expect("all but one section is there").complete);
    let id = world.call(newcomer, put(b"anew"));
    let anew = world.put_answer(id).expect("it commits");
    assert!(anew.stale_until_ms.is_some(), "{anew:?}");
    world.run_ms(1_000);
    world.crash(newcomer);
    world.restart(newcomer);
    world.run_s(2);
    let id = world.call(newcomer, put(b"anew, after a restart"));
    let again = world.put_answer(id).expect("it commits");
    assert_eq!(again.stale_until_ms, anew.stale_until_ms);
    // Nothing that was put before the takeover lives on now.
    world.run_s(90);
    let id = world.call(newcomer, put(b"known to be the newest"));
    assert_eq!(world.put_answer(id).expect("it commits").stale_until_ms, None);
}

/// The index tells a new host how long versions live that it could not find: also where a later put gave them a longer life than the first.
#[test]
fn what_the_index_says_of_a_life_grows_before_a_version_has_it() {
    let (mut world, ada, _, root) = acquainted(233);
    let put = |ttl_ms, renew_for_ms, content: &[u8]| Call::PutSection {
        agent: ada,
        name: "doc/brief".into(),
        class: Class::Document,
        ttl_ms: Some(ttl_ms),
        renew_for_ms: Some(renew_for_ms),
        level: Some(1),
        require_level: None,
        content: content.to_vec(),
    };
    for (ttl_ms, renew_for_ms) in [(60_000, 0), (300_000, 0), (60_000, 1_800_000), (30_000, 0)] {
        let id = world.call(0, put(ttl_ms, renew_for_ms, b"before"));
        world.put_answer(id).expect("it commits");
        world.run_s(5);
    }
    let holders = world.holders(0, ada, "doc/brief");
    let newcomer = (1..14).find(|host| !holders.contains(host)).expect("there are others");
    world.crash_all(&[&[0][..], &holders].concat());
    assert!(!world.import(newcomer, root).expect("all but one section is there").complete);
    let taken_ms = world.clock(newcomer).wall_ms;
    let id = world.call(newcomer, put(60_000, 0, b"anew"));
    let until_ms = world.put_answer(id).expect("it commits").stale_until_ms.expect("nobody here has seen what was there");
    assert!(until_ms.abs_diff(taken_ms + 1_800_000) < 60_000, "{until_ms} is not half an hour after {taken_ms}");
}

/// A longer life that is asked for while the holders are being looked up is in the index before any version has it, too.
#[test]
fn a_life_that_grows_during_a_lookup_is_listed_first() {
    for seed in 240..244 {
        let (mut world, ada, ..) = acquainted(seed);
        let put = |ttl_ms, content: &[u8]| Call::PutSection {
            agent: ada,
            name: "doc/brief".into(),
            class: Class::Document,
            ttl_ms: Some(ttl_ms),
            renew_for_ms: Some(0),
            level: Some(1),
            require_level: None,
            content: content.to_vec(),
        };
        let id = world.call(0, put(60_000, b"before"));
        world.put_answer(id).expect("it commits");
        world.run_s(12); // the holders that were found are asked for again
        let listed = |world: &mut World| world.section(0, ada, "index").and_then(|index| index.version).expect("there is an index");
        let before = listed(&mut world);
        world.call(0, put(60_000, b"soon"));
        world.run_us((seed - 240) * 800);
        world.call(0, put(300_000, b"longer"));
        let mut longer = false;
        for _ in 0..100_000 {
            world.run_us(100);
            let brief = world.section(0, ada, "doc/brief").expect("it is there");
            if brief.expires_in_s.is_some_and(|left| left > 61.0) {
                assert_ne!(listed(&mut world), before, "seed {seed}: it lives longer than the index says");
                longer = true;
                break;
            }
        }
        assert!(longer, "seed {seed}: its life never grew");
    }
}

/// A name whose first put was refused is listed as removed; put again, also after a restart, it is listed as any other.
#[test]
fn a_name_that_was_refused_and_put_again_is_taken_over() {
    for restarts in [false, true] {
        let mut world = World::of(6, 237);
        let ada = world.create(0, "ada");
        world.run_s(5);
        let root = world.root_of(0, "ada");
        world.crash_all(&[1, 2, 3]);
        let id = world.call(0, crate::demanding(ada, "doc/brief", b"safe or not at all", Some(3)));
        let refused = world.put_answer(id);
        assert!(matches!(refused, Err(CallError::LevelNotReached { .. })), "{refused:?}");
        for host in 1..4 {
            world.restart(host);
        }
        world.run_s(5);
        assert!(world.section(0, ada, "doc/brief").is_none(), "what was refused does not exist");
        if restarts {
            world.crash(0);
            world.restart(0);
            world.run_s(5);
        }
        world.put(0, ada, "doc/brief", b"be brief").expect("it commits");
        world.run_s(2);
        world.crash(0);
        assert!(world.import(5, root).expect("the mesh has everything").complete);
        assert_eq!(world.get(5, ada, "doc/brief", Mode::Regular), Ok(b"be brief".to_vec()), "restarts: {restarts}");
        assert!(world.section(5, ada, "doc/brief").is_some(), "restarts: {restarts}");
    }
}

/// A host dies while its index is put, before or after the section that it is to list: whatever was acknowledged, and what is put after the restart,
/// is taken over, in the class that it had last.
#[test]
fn an_index_that_was_half_put_at_a_crash_lists_what_comes_after_it() {
    let put = |ada, class, content: &[u8]| Call::PutSection {
        agent: ada,
        name: "doc/brief".into(),
        class,
        ttl_ms: None,
        renew_for_ms: None,
        level: None,
        require_level: None,
        content: content.to_vec(),
    };
    let mut outcomes = BTreeSet::new();
    for after_ms in [0, 2, 5, 10, 20, 40, 80] {
        let mut world = World::of(8, 260 + after_ms);
        let ada = world.create(0, "ada");
        world.run_s(3);
        let root = world.root_of(0, "ada");
        let first = world.call(0, put(ada, Class::Document, b"first"));
        world.run_ms(after_ms);
        let acknowledged = world.replies.get(&first).is_some_and(Result::is_ok);
        outcomes.insert(acknowledged);
        world.crash(0);
        world.restart(0);
        world.run_s(5);
        if acknowledged {
            assert_eq!(world.get(0, ada, "doc/brief", Mode::Regular), Ok(b"first".to_vec()), "after {after_ms} ms");
        }
        let second = world.call(0, put(ada, Class::Core, b"second"));
        world.put_answer(second).expect("it commits");
        world.run_s(2);
        world.crash(0);
        assert!(world.import(7, root).expect("the mesh has everything").complete, "after {after_ms} ms");
        let section = world.section(7, ada, "doc/brief").expect("it is listed");
        assert_eq!(section.class, "core", "after {after_ms} ms");
        assert_eq!(world.get(7, ada, "doc/brief", Mode::Regular), Ok(b"second".to_vec()), "after {after_ms} ms");
    }
    assert_eq!(outcomes.len(), 2, "some puts were over at the crash, and some were not");
}
