//! Sections: puts, reads, renewals, and what survives which crash.

use persona_core::{Answer, Call, CallError, Input};
use persona_fragments::{Class, Ed25519Signer, OwnerKey, SectionKey, Signer as _, Version};
use persona_mesh_proto::{Mode, Request, RequestFrame};

use crate::{CALM, World, demanding, document, evidence::lone_card};

pub(crate) fn key_of(kad_key: &str) -> SectionKey {
    SectionKey::from_kad_key(kad_key).expect("a section's key")
}

#[test]
fn a_published_agent_is_read_back_through_the_mesh() {
    let mut world = World::of(8, 1);
    let ada = world.create(0, "ada");
    let Ok(Answer::Personality { name, attributes, get, .. }) = world.ask(0, Call::Personality { agent: ada, mode: Mode::Regular }) else {
        panic!("the personality cannot be read")
    };
    assert_eq!((name.as_str(), attributes.as_slice()), ("ada", &br#"{"tea":"no milk"}"#[..]));
    assert_eq!((get.fresh, get.n), ("regular", 7), "seven others hold it");
    assert!(!world.holders(0, ada, "core").contains(&0), "the owner's own node is no holder");
    let stranger = world.ask(3, Call::Personality { agent: ada, mode: Mode::Regular });
    assert!(matches!(stranger, Err(CallError::NotTheOwner { card: Some(_), .. })), "core is never granted: {stranger:?}");
}

#[test]
fn a_document_outlives_f_of_its_holders() {
    let mut world = World::of(12, 2);
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    assert_eq!((report.n, report.f), (7, 2));
    let holders = world.hosts_named(&report.holders);
    world.crash_all(&holders[..2]);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
    world.crash(holders[2]);
    world.crash(0);
    world.restart(0);
    let read = world.get(0, ada, "doc/letter", Mode::Regular);
    assert!(matches!(&read, Err(CallError::QuorumUnreachable { .. })) || read == Ok(b"be kind".to_vec()), "{read:?}");
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Any), Ok(b"be kind".to_vec()));
}

#[test]
fn a_put_that_a_crash_interrupted_goes_out_again_as_the_same_version() {
    let mut world = World::of(9, 3);
    let ada = world.create(0, "ada");
    let first = world.put(0, ada, "doc/letter", b"first").expect("it commits");
    let key = key_of(&first.kad_key);
    world.net.lost_permille = 1000; // nothing arrives: the intent is durable, and the put is not
    world.call(0, document(ada, "doc/letter", b"second"));
    world.until("the second version is sent", |world| world.watch.versions(&key).len() == 2);
    world.crash(0);
    world.net = CALM;
    world.restart(0);
    world.run_s(5);
    let versions = world.watch.versions(&key);
    assert_eq!(versions.len(), 2, "the second version again, and no third: {versions:?}");
    let section = world.section(0, ada, "doc/letter").expect("it is there");
    assert_eq!((section.state, section.version), ("committed", Some(versions[1].to_string())));
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"second".to_vec()));
}

#[test]
fn an_agent_that_was_answered_for_survives_a_crash_at_once() {
    let mut world = World::of(9, 4);
    let ada = world.conceive(0, "ada");
    world.crash(0);
    world.restart(0);
    world.run_s(5);
    let report = world.agent_report(0, ada).expect("it lives");
    assert!(report.sections.iter().all(|section| section.state == "committed"), "{:?}", report.sections);
    let order = |name: &str| {
        let section = report.sections.iter().find(|section| section.name == name).expect("it has that section");
        world.watch.first_sent[&key_of(&section.kad_key)]
    };
    assert!(order("index") < order("core") && order("index") < order("card"), "the index lists them before they are put");
}

#[test]
fn the_index_lists_a_section_before_its_first_put() {
    let mut world = World::of(9, 5);
    let ada = world.create(0, "ada");
    let index = world.section(0, ada, "index").expect("an index");
    let before = world.watch.versions(&key_of(&index.kad_key)).len();
    let id = world.call(0, document(ada, "doc/letter", b"be kind"));
    let key = {
        world.until("the document is known", |world| world.section(0, ada, "doc/letter").is_some());
        key_of(&world.section(0, ada, "doc/letter").expect("known").kad_key)
    };
    world.until("the document is sent", |world| world.watch.first_sent.contains_key(&key));
    let index = world.section(0, ada, "index").expect("an index");
    assert!(world.watch.versions(&key_of(&index.kad_key)).len() > before);
    assert_eq!(index.state, "committed", "the index that lists it is committed by then");
    world.put_answer(id).expect("it commits");
}

#[test]
fn a_renewal_sends_no_shard_bytes() {
    let mut world = World::of(9, 6);
    let ada = world.create(0, "ada");
    let call = Call::PutSection {
        agent: ada,
        name: "doc/letter".into(),
        class: Class::Document,
        ttl_ms: Some(60_000),
        renew_for_ms: None,
        level: None,
        require_level: None,
        content: vec![7; 10_000],
    };
    let id = world.call(0, call);
    let report = world.put_answer(id).expect("it commits");
    let key = key_of(&report.kad_key);
    world.run_s(25);
    let versions = world.watch.versions(&key);
    assert_eq!(versions.len(), 2, "renewed at a third of its lifetime: {versions:?}");
    assert!(world.watch.shard_bytes[&(key, versions[0])] > 10_000);
    assert_eq!(world.watch.shard_bytes[&(key, versions[1])], 0);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(vec![7; 10_000]));
}

#[test]
fn without_its_owner_a_section_expires() {
    let mut world = World::of(9, 7);
    let ada = world.create(0, "ada");
    let call = Call::PutSection {
        agent: ada,
        name: "doc/letter".into(),
        class: Class::Document,
        ttl_ms: Some(60_000),
        renew_for_ms: None,
        level: None,
        require_level: None,
        content: b"short-lived".to_vec(),
    };
    let id = world.call(0, call);
    let key = key_of(&world.put_answer(id).expect("it commits").kad_key);
    world.crash(0);
    world.run_s(40);
    assert!(world.ask(3, Call::Certificate { key }).is_ok(), "it lives for a minute");
    world.run_s(35);
    let gone = world.ask(3, Call::Certificate { key });
    assert!(matches!(gone, Err(CallError::NotFound { .. })), "{gone:?}");
    assert!(world.hosts.iter().all(|host| !host.served.contains_key(&key)), "Kademlia serves it no more either");
}

#[test]
fn a_node_alone_is_ready_and_says_that_it_is_alone() {
    let mut world = World::of(1, 8);
    world.run_s(5);
    let status = world.status(0);
    assert!(status.ready && status.alone);
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", b"to myself").expect("alone is not refused");
    assert_eq!((report.n, report.level, report.byzantine_tolerant), (1, 1, false));
}

#[test]
fn a_node_with_neighbours_is_ready_only_through_them() {
    let mut world = World::of(5, 9);
    world.run_s(3);
    let status = world.status(0);
    assert!(status.ready && !status.alone);
    assert!(status.canary.expect("it ran").through_network);
    world.crash_all(&[1, 2, 3, 4]);
    world.run_s(70);
    let status = world.status(0);
    assert!(status.ready && status.alone, "the next canary tells that everybody else is gone");
}

#[test]
fn a_canary_that_hangs_costs_no_processor() {
    let mut world = World::of(5, 10);
    world.net.lost_permille = 1000; // the world fails if a node asks for ticks and does nothing with them
    world.run_s(60);
    assert!(!world.status(0).ready);
}

#[test]
fn a_node_that_restarts_knows_which_versions_its_canary_had() {
    let mut world = World::of(6, 11);
    world.run_s(3);
    world.crash(0);
    world.restart(0);
    world.run_s(5);
    assert!(world.status(0).ready);
    assert_eq!(world.alarms(0, "conflict"), 0, "its own disk says what it signed before");
}

#[test]
fn a_level_out_of_reach_is_refused_and_leaves_nothing_behind() {
    let mut world = World::of(3, 12);
    let ada = world.create(0, "ada");
    let id = world.call(0, demanding(ada, "doc/letter", b"safe or not at all", Some(3)));
    let refused = world.put_answer(id);
    assert!(matches!(refused, Err(CallError::LevelNotReached { level: 2, wanted: 3, holders: 2 })), "{refused:?}");
    assert_eq!(world.section(0, ada, "doc/letter"), None, "a section that was refused does not exist");
    world.crash(0);
    world.restart(0);
    world.run_s(30);
    assert_eq!(world.section(0, ada, "doc/letter"), None);
    let read = world.get(0, ada, "doc/letter", Mode::Regular);
    assert!(matches!(read, Err(CallError::NotFound { .. })), "{read:?}");
    world.put(0, ada, "doc/letter", b"as well as can be").expect("without the demand it is stored");
}

#[test]
fn a_refused_change_leaves_the_section_as_it_was() {
    let mut world = World::of(4, 13);
    let ada = world.create(0, "ada");
    let call = |ttl_ms, level, require_level, content: &[u8]| Call::PutSection {
        agent: ada,
        name: "doc/letter".into(),
        class: Class::Document,
        ttl_ms: Some(ttl_ms),
        renew_for_ms: None,
        level: Some(level),
        require_level,
        content: content.to_vec(),
    };
    let id = world.call(0, call(60_000, 3, None, b"old"));
    world.put_answer(id).expect("it commits");
    let id = world.call(0, call(600_000, 5, Some(5), b"new"));
    assert!(matches!(world.put_answer(id), Err(CallError::LevelNotReached { .. })));
    world.run_s(100); // longer than its lifetime: it lives because it is renewed
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"old".to_vec()));
    let section = world.section(0, ada, "doc/letter").expect("it is there");
    assert_eq!((section.state, section.ttl_s), ("committed", 60.0));
}

#[test]
fn a_demanded_level_holds_for_every_attempt() {
    let mut world = World::of(6, 14);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"old").expect("it commits");
    world.net.stale_lookups = true;
    world.crash_all(&[1, 2, 3]); // two are left: level 3 is out of reach, and nobody has noticed
    let id = world.call(0, demanding(ada, "doc/letter", b"safe or not at all", Some(3)));
    let refused = world.put_answer(id);
    assert!(refused.is_err(), "not stored at a lower level than was demanded: {refused:?}");
}

#[test]
fn every_put_of_one_section_is_answered_soon() {
    let mut world = World::of(8, 15);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"zero").expect("it commits");
    let began_us = world.now_us;
    let ids: Vec<u64> = (1..=20u8)
        .map(|number| {
            let id = world.call(0, document(ada, "doc/letter", &[number]));
            world.run_us(700); // some while another's lookup, intent or rounds are on their way
            id
        })
        .collect();
    for id in ids {
        world.put_answer(id).expect("it commits");
    }
    assert!(world.now_us - began_us < 5_000_000, "{} ms", (world.now_us - began_us) / 1000);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(vec![20]));
}

#[test]
fn a_put_turns_to_other_holders_though_lookups_still_name_the_dead() {
    let mut world = World::of(14, 16);
    let ada = world.create(0, "ada");
    let report = world.put(0, ada, "doc/letter", b"old").expect("it commits");
    let holders = world.hosts_named(&report.holders);
    world.net.stale_lookups = true;
    world.crash_all(&holders[..3]);
    let began_us = world.now_us;
    let report = world.put(0, ada, "doc/letter", b"new").expect("ten others are alive");
    assert!(world.now_us - began_us < 15_000_000);
    assert!(world.hosts_named(&report.holders).iter().all(|host| !holders[..3].contains(host)));
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Any), Ok(b"new".to_vec()));
}

#[test]
fn a_put_whose_index_cannot_be_stored_is_answered() {
    let mut world = World::of(8, 17);
    let ada = world.create(0, "ada");
    world.net.lost_permille = 1000;
    let refused = world.put(0, ada, "doc/letter", b"be kind");
    assert!(matches!(refused, Err(CallError::NotEnoughHolders { .. })), "{refused:?}");
    world.net = CALM;
    world.run_s(60);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()), "it was tried again, as the hint says");
}

#[test]
fn calls_beyond_the_bound_are_refused_and_the_node_goes_on() {
    let mut world = World::of(2, 18);
    let ada = world.create(0, "ada");
    let read = |world: &mut World| world.call(0, Call::GetSection { agent: ada, name: "doc/none".into(), mode: Mode::Regular });
    let ids: Vec<u64> = (0..8_300).map(|_| read(&mut world)).collect();
    let busy = ids.iter().filter(|id| matches!(world.replies.get(*id), Some(Err(CallError::Busy(_))))).count();
    assert!((8_300 - 8_192..200).contains(&busy), "{busy} were refused at once");
    let id = world.call(0, Call::Status);
    assert!(matches!(world.replies.get(&id), Some(Ok(Answer::Status(_)))), "what needs no operation is answered even then");
    world.run_s(10);
    assert!(ids.iter().all(|id| world.replies.contains_key(id)), "everything is answered");
    world.put(0, ada, "doc/letter", b"be kind").expect("there is room again");
}

#[test]
fn what_was_read_once_is_the_floor_even_after_a_crash() {
    let mut world = World::of(9, 19);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"one").expect("it commits");
    world.sync_us = 300_000;
    // Two reads at once: the second must not overtake the first one's floor on its way to the disk.
    let ids: Vec<u64> = (0..4)
        .map(|_| {
            world.run_us(900);
            world.call(0, Call::GetSection { agent: ada, name: "doc/letter".into(), mode: Mode::Regular })
        })
        .collect();
    for id in ids {
        world.answer_of(id, "a get").expect("it reads"); // the watch compares with the disk
    }
}

#[test]
fn a_set_that_may_be_read_is_told_after_a_failed_put() {
    let mut world = World::of(16, 20);
    let ada = world.create(0, "ada");
    let first = world.put(0, ada, "doc/letter", b"one").expect("it commits");
    let key = key_of(&first.kad_key);
    let holders = world.hosts_named(&first.holders);
    // The second version fails, with the same holders; the third goes to others, and must tell the first ones all the same.
    world.crash_all(&holders[..3]);
    world.net.stale_lookups = true;
    world.call(0, document(ada, "doc/letter", b"two"));
    world.until("the second version is sent", |world| world.watch.versions(&key).len() == 2);
    world.crash(0);
    world.restart(0);
    let third = world.put(0, ada, "doc/letter", b"three").expect("it commits");
    let version: Version = *world.watch.versions(&key).last().expect("a version");
    assert_eq!(version.to_string(), third.version);
    for holder in &holders[..3] {
        world.restart(*holder);
    }
    world.net = CALM;
    world.run_s(5);
    for host in 0..16 {
        let Ok(Answer::Certificate { bytes, .. }) = world.ask(host, Call::Certificate { key }) else { panic!("{host} cannot read it") };
        let head = persona_fragments::CertifiedHead::from_bytes(&bytes, &*world.notary).expect("a head");
        assert_eq!(head.manifest.version, version, "host {host} reads the newest");
    }
}

#[test]
fn a_host_that_restarts_into_an_empty_room_does_not_talk_its_sections_down() {
    let mut world = World::of(12, 131);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.run_s(2);
    let root = world.root_of(0, "ada");
    let others: Vec<usize> = (1..12).collect();
    world.crash(0);
    world.cut(&others);
    world.restart(0);
    world.run_s(12);
    let held = world.holders(0, ada, "core");
    assert!(!held.contains(&0), "its own disk is no holder: {held:?}");
    world.heal();
    world.run_s(20);
    // Whatever it did meanwhile: the mesh still has everything when it dies again.
    world.crash(0);
    let report = world.import(2, root).expect("the mesh has everything");
    assert!(report.complete, "{:?}", report.sections);
    assert_eq!(world.get(2, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
}

#[test]
fn holders_that_were_silent_for_a_while_are_holders_again_soon() {
    // Cut off while their host restarts, and found again by it; or silent while it stays connected to them.
    for restarts in [true, false] {
        let mut world = World::of(14, 133);
        let ada = world.create(0, "ada");
        world.run_s(2);
        assert_eq!(world.holders(0, ada, "core").len(), 10);
        let silent: Vec<usize> = (5..14).collect();
        if restarts {
            world.crash(0);
        }
        world.cut(&silent);
        if restarts {
            world.restart(0);
        }
        world.call(0, document(ada, "doc/letter", b"be kind"));
        world.run_s(15);
        world.heal();
        world.run_s(45);
        for section in ["core", "card", "index"] {
            let held = world.holders(0, ada, section);
            assert_eq!(held.len(), 10, "restarts {restarts}: {section} is held by {held:?}");
        }
    }
}

#[test]
fn what_expires_while_its_floor_is_written_is_not_returned() {
    let mut world = World::of(6, 77);
    let ada = world.create(0, "ada");
    let mut call = document(ada, "doc/letter", b"be quick");
    let Call::PutSection { ttl_ms, .. } = &mut call else { panic!("a put") };
    *ttl_ms = Some(5_000);
    let id = world.call(0, call);
    world.put_answer(id).expect("it commits");
    // Its floor takes 20 s to the disk; its life and the allowance are over after 15.
    world.sync_us = 20_000_000;
    let read = world.get(0, ada, "doc/letter", Mode::Regular);
    assert!(matches!(read, Err(CallError::NotFound { .. })), "{read:?}");
}

#[test]
fn what_was_put_alone_spreads_when_others_join() {
    let mut world = World::of(8, 132);
    let others: Vec<usize> = (1..8).collect();
    world.crash_all(&others);
    world.run_s(1);
    let ada = world.create(0, "ada");
    assert_eq!(world.holders(0, ada, "core"), [0]);
    for host in &others {
        world.restart(*host);
    }
    world.run_s(20);
    let held = world.holders(0, ada, "core");
    assert!(held.len() == 7 && !held.contains(&0), "{held:?}");
}

#[test]
fn whoever_joins_while_a_section_is_being_put_becomes_a_holder_soon_too() {
    // The sections are put again 3 s after the first came; the last comes just before, meanwhile, or just after.
    for step in 0..24 {
        let mut world = World::of(8, 140 + step);
        let others: Vec<usize> = (1..8).collect();
        world.crash_all(&others);
        world.run_s(1);
        let ada = world.create(0, "ada");
        for host in &others[..6] {
            world.restart(*host);
        }
        world.run_us(2_990_000 + step * 3_000);
        world.restart(7);
        world.run_s(20);
        for section in ["core", "card", "index"] {
            let held = world.holders(0, ada, section);
            assert_eq!(held.len(), 7, "step {step}: {section} is held by {held:?}");
        }
    }
}

#[test]
fn a_node_with_little_room_begins_nothing_new_says_so_and_reads_on() {
    let mut world = World::of(6, 411);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"be kind").expect("it commits");
    world.feed(0, Input::DiskLow { low: true });
    assert!(world.status(0).disk_low);
    assert_eq!(world.alarms(0, "disk-low"), 1);
    assert_eq!(world.put(0, ada, "doc/letter", b"be kinder").err(), Some(CallError::DiskFull));
    let birth = Call::CreateAgent { name: "bob".into(), role: None, place: "here".into(), attributes: Vec::new() };
    assert!(matches!(world.ask(0, birth), Err(CallError::DiskFull)));
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
    world.run_s(25 * 60); // it is renewed meanwhile
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"be kind".to_vec()));
    world.feed(0, Input::DiskLow { low: false });
    world.put(0, ada, "doc/letter", b"be kinder").expect("there is room again");
}

/// Seed 4605: a machine slept between the question what is current and the disk that another answer of that frame waited for.
#[test]
fn what_a_section_was_before_the_disk_was_slow_is_not_said_after() {
    for (sync_us, late) in [(800_000, 0), (1_200_000, 1)] {
        let mut world = World::of(2, 303);
        let (me, from) = (world.hosts[0].peer, world.hosts[1].peer);
        let owner = Ed25519Signer::from_seed(&[5; 32]);
        let key = SectionKey::derive(&OwnerKey(owner.public_key()), b"card");
        let head = Request::Head { key, fence: None, with_shard: false };
        let prepare = lone_card(&owner, me, world.now().wall_ms, b"card");
        world.sync_us = sync_us;
        for (inbound, requests) in [(1 << 40, vec![head.clone(), prepare.clone()]), (1 << 41, vec![prepare, head])] {
            world.feed(0, Input::Frame { inbound, from, frame: RequestFrame { requests }.to_bytes() });
        }
        world.run_s(3);
        assert_eq!(world.counter(0, "frames_answered_late"), 2 * late, "{sync_us} us");
    }
}
