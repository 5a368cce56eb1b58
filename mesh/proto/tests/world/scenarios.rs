//! The protocol told as stories, one promise each.

use std::collections::BTreeSet;

use persona_fragments::{Class, Digest, Manifest, SignedManifest};
use persona_mesh_proto::{
    Answered, Freshness, GetError, GetTask, Mode, PutError, Request, Response, Table, clock_allowance_ms,
    message::{HeadAnswer, Refusal},
};

use super::*;

pub(crate) const HOUR_MS: u64 = 3_600_000;

/// Seven holders, f = 2, k = 3; nodes 7 and up are others.
pub(crate) fn seven() -> (World, Owner, Vec<usize>) {
    let mut world = World::new(7, 16);
    let ada = world.owner("ada", Class::Relationship, 3, HOUR_MS);
    (world, ada, (0..7).collect())
}

/// Leaves an uncertified version on `acked` only: the writer crashed in round 1.
pub(crate) fn crash_writer_after(
    world: &mut World,
    owner: &mut Owner,
    holders: &[usize],
    acked: &[usize],
    content: &[u8],
) -> SignedManifest {
    let task = owner.write(world, holders, content);
    for node in acked {
        let index = holders.iter().position(|holder| holder == node).expect("a holder");
        let shard = Some(task.shards[index].clone());
        let response = world.tell(*node, Request::Prepare { manifest: task.manifest.wire().clone(), index: index as u8, shard });
        assert!(matches!(response, Response::Acked { .. }), "{response:?}");
    }
    task.manifest
}

pub(crate) fn answer(world: &mut World, node: usize, owner: &Owner) -> HeadAnswer {
    match world.tell(node, Request::Head { key: owner.section(), fence: None, with_shard: false }) {
        Response::Head(answer) => answer,
        other => panic!("no head: {other:?}"),
    }
}

#[test]
fn what_was_put_is_read_back_after_f_holders_are_killed() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("seven of seven");
    assert!(receipt.acks >= 5 && receipt.level >= 3 && receipt.byzantine_tolerant && receipt.stale_until_ms.is_none());
    world.run_ms(1_000);
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 7, "placement goes on to all n");
    world.crash(0);
    world.crash(1);
    for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
        let value = world.get(&ada, mode).expect("f are dead");
        assert_eq!(value.content, b"be kind");
        assert_eq!(value.head.manifest.version, receipt.head.manifest.version);
    }
    assert_eq!(world.get(&ada, Mode::Atomic).expect("quorum").fresh, Freshness::Atomic);
}

#[test]
fn above_f_dead_only_mode_any_reads_and_it_is_labelled() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    for node in 0..4 {
        world.crash(node);
    }
    match world.get(&ada, Mode::Regular) {
        Err(GetError::QuorumUnreachable { have: 3, need: 5, head: Some(_) }) => {}
        other => panic!("{other:?}"),
    }
    let value = world.get(&ada, Mode::Any).expect("k are there");
    assert_eq!((value.content.as_slice(), value.fresh), (&b"be kind"[..], Freshness::MaybeStale));
    let dead = value.answers.iter().filter(|(_, answered)| *answered == Answered::Unreachable).count();
    assert!(dead <= 4 && value.answers.len() >= 3, "{:?}", value.answers);
    world.crash(4);
    match world.get(&ada, Mode::Any) {
        Err(GetError::Unavailable { have: 2, need: 3, version, .. }) => assert_eq!(version, receipt.head.manifest.version),
        other => panic!("{other:?}"),
    }
    for node in 0..5 {
        world.restart(node);
    }
    assert_eq!(world.get(&ada, Mode::Regular).expect("all are back").content, b"be kind");
}

#[test]
fn nobody_to_ask_and_nobody_who_knows_are_told_apart() {
    let (mut world, ada, _) = seven();
    match world.get(&ada, Mode::Regular) {
        Err(GetError::NotFound { asked: 16, answered: 16 }) => {}
        other => panic!("{other:?}"),
    }
    for node in 0..16 {
        world.crash(node);
    }
    match world.get(&ada, Mode::Regular) {
        Err(GetError::QuorumUnreachable { have: 0, need: 1, head: None }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_writer_that_crashes_in_round_one_blocks_no_reader_and_its_version_is_ignored() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"one").expect("committed");
    crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2, 3], b"two");
    world.run_ms(30_000); // longer than any grace
    let value = world.get(&ada, Mode::Regular).expect("the certified version is there");
    assert_eq!(value.content, b"one");
    assert_eq!(value.prepared_seen.len(), 1);
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 7, "a newer prepare is no reason to drop anything");
    // Nobody knows what became of "two". The next put goes through, and names nothing that could still surprise it.
    let receipt = world.put(&mut ada, &set, b"three").expect("committed");
    assert_eq!(world.get(&ada, Mode::Regular).expect("read").head.manifest.version, receipt.head.manifest.version);
}

#[test]
fn a_reader_completes_what_a_writer_left_between_the_rounds() {
    for mode in [Mode::Regular, Mode::Atomic] {
        let (mut world, mut ada, set) = seven();
        world.put(&mut ada, &set, b"one").expect("committed");
        let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2, 3, 4, 5, 6], b"two");
        let value = world.get(&ada, mode).expect("n - f acks are a certificate, whoever collects them");
        assert_eq!(value.content, b"two");
        world.run_ms(1_000);
        let told = (0..7).filter(|node| answer(&mut world, *node, &ada).committed.is_some_and(|head| head.manifest == *manifest.wire()));
        assert!(told.count() >= 5, "the reader told the holders");
    }
}

#[test]
fn a_first_version_left_between_the_rounds_is_found_by_its_acks() {
    let (mut world, mut ada, set) = seven();
    crash_writer_after(&mut world, &mut ada, &set, &set, b"one");
    let mut task = world.get_task(&ada, Mode::Regular);
    task.candidates.truncate(1); // one holder only: its manifest names the others
    assert_eq!(world.finish_get(task).expect("completed").content, b"one");
}

#[test]
fn a_renewal_sends_no_shard_bytes_and_shares_them_on_disk() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    let renewal = ada.renew(&world, &set, b"be kind");
    let task = world.start_put(renewal);
    world.run_until_ended(task);
    world.run_ms(1_000);
    let receipt = world.tasks[task].put.clone().expect("ended").expect("committed");
    ada.committed(&receipt);
    assert_eq!(world.shard_bytes_sent(task), 0);
    assert_eq!(world.tasks[task].placed, 7);
    assert_eq!(world.records(0, Table::Shard), 1);
    world.run_ms(20_000); // the first version goes; its bytes stay with the second
    assert_eq!((world.records(0, Table::Shard), world.holder(0).stats().shards), (1, 1));
    let value = world.get(&ada, Mode::Regular).expect("read");
    assert_eq!((value.content.as_slice(), value.head.manifest.content_version.seq), (&b"be kind"[..], 1));
}

#[test]
fn a_renewal_brings_bytes_to_a_new_holder_and_to_one_that_lost_them() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    world.lose_disk(3);
    world.restart(3);
    let moved = [0, 1, 2, 3, 4, 5, 9];
    let renewal = ada.renew(&world, &moved, b"be kind");
    let task = world.start_put(renewal);
    world.run_until_ended(task);
    world.run_ms(1_000);
    let manifest = world.tasks[task].put.clone().expect("ended").expect("committed").head.manifest;
    assert_eq!(world.shards_on_disk(&manifest), 7);
    assert_eq!(world.shard_bytes_sent(task), 2 * manifest.shard_len());
}

#[test]
fn a_holder_whose_bytes_rotted_serves_none_and_takes_them_again() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    for ((table, _), value) in &mut world.nodes[0].durable {
        if *table == Table::Shard {
            value[0] ^= 1;
        }
    }
    let (key, version) = (ada.section(), receipt.head.manifest.version);
    assert_eq!(world.tell(0, Request::Shard { key, version }), Response::Absent);
    let value = world.get(&ada, Mode::Regular).expect("six are sound");
    assert_eq!(value.content, b"be kind");
    let prepare = |shard| Request::Prepare { manifest: receipt.head.manifest.wire().clone(), index: 0, shard };
    assert_eq!(world.tell(0, prepare(None)), Response::NeedShard);
    let shards = encode(b"be kind", receipt.head.manifest.shape).expect("encoded");
    assert!(matches!(world.tell(0, prepare(Some(shards[0].clone()))), Response::Acked { .. }));
    assert!(matches!(world.tell(0, Request::Shard { key, version }), Response::Shard { index: 0, .. }));
}

#[test]
fn a_reader_with_an_old_head_is_led_to_the_new_holder_set() {
    let (mut world, mut ada, set) = seven();
    let first = world.put(&mut ada, &set, b"one").expect("committed");
    let moved: Vec<usize> = (7..14).collect();
    let second = world.put(&mut ada, &moved, b"two").expect("committed");
    assert_eq!(second.stale_until_ms, None);
    // Only the old set is known, and two of it are dead: the forward pointer leads on.
    world.crash(0);
    world.crash(1);
    let task = GetTask { known: Some(head_of(&first)), candidates: Vec::new(), ..world.get_task(&ada, Mode::Regular) };
    let value = world.finish_get(task).expect("followed");
    assert_eq!((value.content.as_slice(), value.head.manifest.version), (&b"two"[..], second.head.manifest.version));
    // And across two moves, though the third put no longer names the first set.
    let third = world.put(&mut ada, &[2, 3, 4, 9, 10, 14, 15], b"three").expect("committed");
    assert_eq!(third.head.manifest.older.len(), 1);
    let task = GetTask { known: Some(head_of(&first)), candidates: Vec::new(), ..world.get_task(&ada, Mode::Regular) };
    assert_eq!(world.finish_get(task).expect("followed twice").content, b"three");
}

#[test]
fn an_older_set_that_is_gone_makes_a_put_bounded_stale_not_failed() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    let before = world.now.wall_ms;
    for node in 0..3 {
        world.crash(node);
    }
    let moved: Vec<usize> = (7..14).collect();
    let receipt = world.put(&mut ada, &moved, b"two").expect("committed all the same");
    let until = receipt.stale_until_ms.expect("three of the seven could not be told");
    assert!(until <= before + HOUR_MS + clock_allowance_ms(Class::Relationship) && until > world.now.wall_ms);
    assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, b"two");
    // The set stays on the list until it expires, so that a later put tries again.
    for node in 0..3 {
        world.restart(node);
    }
    let receipt = world.put(&mut ada, &moved, b"three").expect("committed");
    assert_eq!((receipt.stale_until_ms, receipt.head.manifest.older.len()), (None, 1));
}

/// A new host: certifies a card of term 2, fences the section's holders with it, reads, writes.
pub(crate) fn take_over(world: &mut World, ada: &Owner, set: &[usize]) -> (CertifiedHead, Owner, GetValue) {
    let mut card = ada.also("card", Class::Core, 2, 9);
    let receipt = world.put(&mut card, &[8, 9, 10, 11, 12, 13, 14], b"card of term 2").expect("certified");
    let task = GetTask { fence: Some(head_of(&receipt)), ..world.get_task(ada, Mode::Atomic) };
    let value = world.finish_get(task).expect("read by quorum");
    let mut ada = ada.also("notes", Class::Relationship, 2, 9);
    ada.older = vec![value.head.manifest.as_older_set()];
    assert!(set.iter().filter(|node| world.records(**node, Table::Fence) == 1).count() >= 5);
    (receipt.head, ada, value)
}

#[test]
fn a_takeover_fences_the_old_host_even_after_everybody_restarted() {
    let (mut world, mut old, set) = seven();
    world.put(&mut old, &set, b"old host").expect("committed");
    let (card, mut new, value) = take_over(&mut world, &old, &set);
    assert_eq!((value.content.as_slice(), value.fresh), (&b"old host"[..], Freshness::Atomic));
    for node in set.clone() {
        world.restart(node);
    }
    match world.put(&mut old, &set, b"I am still here") {
        Err(PutError::Fenced { by }) => assert_eq!(by.manifest.version, card.manifest.version),
        other => panic!("{other:?}"),
    }
    world.put(&mut new, &set, b"new host").expect("committed in the new term");
    match world.put(&mut old, &set, b"I am still here") {
        Err(PutError::Fenced { by }) => assert_eq!(by.manifest.version.term, 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.get(&new, Mode::Regular).expect("read").content, b"new host");
}

#[test]
fn an_atomic_read_on_the_far_side_of_a_cut_is_led_to_who_took_over() {
    let (mut world, mut old, set) = seven();
    world.put(&mut old, &set, b"before the cut").expect("committed");
    let apart: Vec<usize> = (7..14).collect();
    set.iter().for_each(|node| world.crash(*node));
    let receipt = world.put(&mut old, &apart, b"apart").expect("committed on the old host's side");
    assert!(receipt.stale_until_ms.is_some(), "nobody of the other side heard of it");
    world.run_ms(40_000); // and it no longer tries to tell them
    set.iter().for_each(|node| world.restart(*node));
    apart.iter().for_each(|node| world.crash(*node));
    let mut card = old.also("card", Class::Core, 2, 9);
    let fence = head_of(&world.put(&mut card, &set, b"card of term 2").expect("certified"));
    let value = world.finish_get(GetTask { fence: Some(fence), ..world.get_task(&old, Mode::Atomic) }).expect("taken over");
    assert_eq!(value.content, b"before the cut");
    let mut new = old.also("notes", Class::Relationship, 2, 9);
    new.older = vec![value.head.manifest.as_older_set()];
    world.put(&mut new, &set, b"new host").expect("committed in the new term");
    apart.iter().for_each(|node| world.restart(*node));
    // The far side alone knows nothing of it: that is what `stale_until` says. Whoever has to ask the older set, too, is led on.
    let far = GetTask { known: Some(head_of(&receipt)), candidates: Vec::new(), ..world.get_task(&old, Mode::Regular) };
    assert_eq!(world.finish_get(far.clone()).expect("read").content, b"apart");
    let value = world.finish_get(GetTask { mode: Mode::Atomic, ..far }).expect("read");
    assert_eq!((value.content.as_slice(), value.fresh), (&b"new host"[..], Freshness::Atomic));
}

#[test]
fn a_lower_host_never_commits_with_acks_from_before_the_fence() {
    let (mut world, mut old, set) = seven();
    world.put(&mut old, &set, b"one").expect("committed");
    // All seven ack "two"; the old host stops before round 2.
    let manifest = crash_writer_after(&mut world, &mut old, &set, &set, b"two");
    let prepared: Vec<_> = (0..7).map(|node| answer(&mut world, node, &old).prepared.remove(0).ack).collect();
    let head = CertifiedHead { manifest, certificate: persona_fragments::Certificate { acks: prepared }, lease: None };
    let (_, _, value) = take_over(&mut world, &old, &set);
    assert_eq!(value.content, b"two", "the new host completes it");
    let mut confirmed = 0;
    for node in 0..7 {
        match world.tell(node, Request::Commit { head: head.to_wire() }) {
            Response::Committed => confirmed += 1,
            Response::Fenced { head } => assert_eq!(head.manifest, take_fence(&world, node)),
            other => panic!("{other:?}"),
        }
    }
    assert!(confirmed <= 2, "{confirmed} holders let the old host commit");
}

fn take_fence(world: &World, node: usize) -> persona_fragments::manifest::ManifestWire {
    let record = world.nodes[node].durable.iter().find(|((table, _), _)| *table == Table::Fence).expect("fenced").1;
    CertifiedHead::from_bytes(record, &world.verifier).expect("a certified card").manifest.wire().clone()
}

#[test]
fn only_a_certified_card_is_a_fence_and_a_lower_one_is_itself_fenced() {
    let (mut world, mut ada, set) = seven();
    let notes = world.put(&mut ada, &set, b"one").expect("committed");
    let ask = |fence: &CertifiedHead, key| Request::Head { key, fence: Some(fence.to_wire()), with_shard: false };
    let bad = Response::Refused { reason: Refusal::BadFence };
    assert_eq!(world.tell(0, ask(&notes.head, ada.section())), bad, "not a card");
    let certify = |world: &mut World, term| {
        let mut card = ada.also("card", Class::Core, term, 1);
        head_of(&world.put(&mut card, &set, b"card").expect("certified"))
    };
    let (second, third) = (certify(&mut world, 2), certify(&mut world, 3));
    let mut short = third.clone();
    short.certificate.acks.truncate(4);
    assert_eq!(world.tell(0, ask(&short, ada.section())), bad, "not certified");
    assert!(matches!(world.tell(0, ask(&third, ada.section())), Response::Head(_)));
    match world.tell(0, ask(&second, ada.section())) {
        Response::Fenced { head } => assert_eq!(head.manifest, *third.manifest.wire()),
        other => panic!("{other:?}"),
    }
    let task = GetTask { fence: Some(second), ..world.get_task(&ada, Mode::Atomic) };
    for node in 0..7 {
        world.tell(node, ask(&third, ada.section()));
    }
    assert!(matches!(world.finish_get(task), Err(GetError::Fenced { by }) if by.manifest.version.term == 3));
}

#[test]
fn the_fourth_uncommitted_version_finds_the_holder_busy_but_not_for_a_higher_host() {
    let (mut world, mut ada, set) = seven();
    for content in [b"one", b"two", b"six"] {
        crash_writer_after(&mut world, &mut ada, &set, &[0], content);
    }
    let prepare =
        |task: &PutTask| Request::Prepare { manifest: task.manifest.wire().clone(), index: 0, shard: Some(task.shards[0].clone()) };
    let fourth = ada.write(&world, &set, b"four");
    assert_eq!(world.tell(0, prepare(&fourth)), Response::Busy);
    world.restart(0);
    assert_eq!(world.tell(0, prepare(&fourth)), Response::Busy, "also after a restart");
    let mut higher = ada.also("notes", Class::Relationship, 2, 1);
    let task = higher.write(&world, &set, b"taken over");
    assert!(matches!(world.tell(0, prepare(&task)), Response::Acked { .. }));
    // From now on the lower host is refused here, though nothing of the higher one is certified.
    let fifth = ada.write(&world, &set, b"five");
    assert_eq!(world.tell(0, prepare(&fifth)), Response::Refused { reason: Refusal::Stale });
}

#[test]
fn a_put_names_the_holders_that_have_no_place_for_it() {
    let (mut world, mut ada, set) = seven();
    for content in [b"one", b"two", b"six"] {
        crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], content);
    }
    let crowded: Vec<PeerKey> = (0..3).map(|node| world.nodes[node].key).collect();
    match world.put(&mut ada, &set, b"four") {
        Err(PutError::Timeout { acks: 4, need: 5, unwilling }) => assert_eq!(unwilling, crowded),
        other => panic!("{other:?}"),
    }
    // Without them it commits, and makes room for what follows.
    let without: Vec<usize> = (3..10).collect();
    world.put(&mut ada, &without, b"five").expect("committed");
    world.put(&mut ada, &set, b"seven").expect("nobody is crowded any more");
}

#[test]
fn a_second_manifest_of_one_version_is_a_conflict_with_its_evidence() {
    let (mut world, mut ada, set) = seven();
    let mut twin = ada.clone();
    world.put(&mut ada, &set, b"one").expect("committed");
    match world.put(&mut twin, &set, b"another one") {
        Err(PutError::Conflict { version, other }) => {
            assert_eq!(version.seq, 1);
            assert_eq!(*other, *ada.last.clone().expect("put").wire());
        }
        other => panic!("{other:?}"),
    }
    // Also of a version whose bytes are gone already, and after a restart.
    let task =
        twin.clone().write_as(&world, &set, b"a third", ada.last.clone().expect("put").version, ada.last.clone().expect("put").version);
    world.put(&mut ada, &set, b"two").expect("committed");
    world.run_ms(20_000);
    world.restart(0);
    let request = Request::Prepare { manifest: task.manifest.wire().clone(), index: 0, shard: Some(task.shards[0].clone()) };
    assert_eq!(world.tell(0, request), Response::Refused { reason: Refusal::Stale });
}

#[test]
fn expired_versions_are_neither_served_nor_kept() {
    let mut world = World::new(3, 8);
    let mut ada = world.owner("ada", Class::Active, 2, 30_000);
    let set = [0, 1, 2, 3];
    let receipt = world.put(&mut ada, &set, b"thinking").expect("committed");
    assert_eq!(world.nodes[0].served.len(), 1);
    world.run_ms(20_000);
    world.restart(1); // the time before a restart counts
    world.run_ms(13_000);
    for node in set {
        assert_eq!(answer(&mut world, node, &ada), HeadAnswer::default(), "node {node}");
        assert_eq!(world.tell(node, Request::Shard { key: ada.section(), version: receipt.head.manifest.version }), Response::Absent);
        assert!(world.nodes[node].served.is_empty() && world.nodes[node].durable.is_empty(), "node {node}");
        assert_eq!(world.holder(node).stats(), persona_mesh_proto::HolderStats::default());
    }
    let task = GetTask { known: Some(head_of(&receipt)), ..world.get_task(&ada, Mode::Any) };
    assert!(matches!(world.finish_get(task), Err(GetError::Expired { .. })));
    let request = Request::Commit { head: receipt.head.to_wire() };
    assert_eq!(world.tell(0, request), Response::Refused { reason: Refusal::Expired });
}

#[test]
fn what_expires_while_the_disk_reads_is_not_served() {
    let mut world = World::new(3, 9);
    let mut ada = world.owner("ada", Class::Active, 2, 30_000);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3], b"thinking").expect("committed");
    let (key, version) = (ada.section(), receipt.head.manifest.version);
    let (before, after) = (world.now, world.now.plus_ms(33_000));
    let (peer, signer, verifier) = (world.nodes[1].key, world.nodes[0].signer, world.verifier.clone());
    let durable = world.nodes[0].durable.clone();
    let holder = world.nodes[0].holder.as_mut().expect("up");
    let requests = [Request::Head { key, fence: None, with_shard: true }, Request::Shard { key, version }];
    for (number, request) in requests.into_iter().enumerate() {
        let call = CallId(7_000 + number as u64);
        let asked = holder.handle(call, peer, request, before, &signer, &verifier);
        let Some(HolderOut::Read { id, table, key: place }) = asked.into_iter().next() else { panic!("the shard is read from the disk") };
        let answer = match holder.read_done(id, durable.get(&(table, place)).cloned(), after).pop() {
            Some(HolderOut::Reply { response, .. }) => response,
            other => panic!("no answer: {other:?}"),
        };
        match answer {
            Response::Head(answer) => {
                assert!(answer.committed.is_none() && answer.shard.is_none(), "{answer:?}");
                assert_eq!(answer.expired, Some(receipt.head.to_wire()));
            }
            other => assert_eq!(other, Response::Absent),
        }
    }
}

#[test]
fn a_version_below_an_expired_certified_one_does_not_come_back() {
    let (mut world, mut ada, set) = seven();
    let first = world.put(&mut ada, &set, b"long-lived").expect("committed");
    ada.ttl_ms = 20_000;
    let moved: Vec<usize> = (7..14).collect();
    world.put(&mut ada, &moved, b"short-lived").expect("committed");
    world.run_ms(60_000);
    let task = GetTask { known: Some(head_of(&first)), candidates: Vec::new(), ..world.get_task(&ada, Mode::Regular) };
    match world.finish_get(task) {
        Err(GetError::Expired { version }) => assert_eq!(version.seq, 2),
        other => panic!("{other:?}"),
    }
    world.restart(0);
    let answered = answer(&mut world, 0, &ada);
    assert!(answered.committed.is_none() && answered.expired.is_some());
    world.run_ms(HOUR_MS);
    assert!(world.nodes[0].durable.is_empty(), "until the older one, too, would have expired");
}

#[test]
fn a_superseded_version_stays_for_the_grace_and_goes_after_it() {
    let (mut world, mut ada, set) = seven();
    let first = world.put(&mut ada, &set, b"one").expect("committed");
    world.run_ms(1_000);
    let second = world.put(&mut ada, &set, b"two").expect("committed");
    let shard = Request::Shard { key: ada.section(), version: first.head.manifest.version };
    world.run_ms(9_000);
    assert!(matches!(world.tell(0, shard.clone()), Response::Shard { index: 0, .. }), "a reader may be just fetching it");
    world.run_ms(3_000);
    match world.tell(0, shard) {
        Response::Superseded { head } => assert_eq!(head.manifest, *second.head.manifest.wire()),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.records(0, Table::Shard), 1);
}

#[test]
fn a_manifest_from_the_future_is_refused_beyond_the_allowance_only() {
    let (mut world, mut ada, set) = seven();
    for (ahead_ms, refused) in [(9_000, false), (11_000, true)] {
        world.now.wall_ms += ahead_ms;
        let task = ada.write(&world, &set, b"early");
        world.now.wall_ms -= ahead_ms;
        let request = Request::Prepare { manifest: task.manifest.wire().clone(), index: 0, shard: Some(task.shards[0].clone()) };
        let response = world.tell(0, request);
        assert_eq!(response == Response::Refused { reason: Refusal::FromTheFuture }, refused, "{response:?}");
    }
}

#[test]
fn a_poisoned_version_has_the_same_verdict_for_every_reader() {
    let (mut world, mut ada, set) = seven();
    let mut task = ada.write(&world, &set, b"what the owner shows");
    // Shard 5 of another content, under an honest signature: no codeword.
    let shape = task.manifest.shape;
    let other = encode(b"what the owner hides", shape).expect("encoded");
    let mut manifest: Manifest = (*task.manifest).clone();
    task.shards[5] = other[5].clone();
    manifest.shard_hashes = shard_hashes(&task.shards);
    task.manifest = SignedManifest::sign(manifest, &ada.signer).expect("sound to look at");
    let receipt = world.finish_put(&mut ada, task).expect("holders cannot tell");
    world.run_ms(1_000);
    for dead in [[0, 1], [2, 3], [4, 5], [5, 6]] {
        for node in dead {
            world.crash(node);
        }
        for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
            match world.get(&ada, mode) {
                Err(GetError::Poisoned { version, manifest }) => {
                    assert_eq!(version, receipt.head.manifest.version);
                    assert_eq!(*manifest, *receipt.head.manifest.wire());
                }
                other => panic!("{other:?}"),
            }
        }
        for node in dead {
            world.restart(node);
        }
    }
}

#[test]
fn f_liars_of_each_kind_make_no_read_stale_or_wrong() {
    for lie in LIES {
        for liars in [[0, 1], [1, 4], [5, 6]] {
            let (mut world, mut ada, set) = seven();
            for node in liars {
                world.nodes[node].lie = Some(lie);
            }
            for content in [&b"one"[..], b"two", b"three"] {
                world.put(&mut ada, &set, content).unwrap_or_else(|error| panic!("{lie:?} {liars:?}: {error}"));
                for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
                    let value = world.get(&ada, mode).unwrap_or_else(|error| panic!("{lie:?} {liars:?} {mode:?}: {error}"));
                    assert!(mode == Mode::Any || value.content == content, "{lie:?} {liars:?} {mode:?}");
                    assert!([&b"one"[..], b"two", b"three"].contains(&value.content.as_slice()));
                }
            }
        }
    }
}

#[test]
fn every_acked_version_survives_a_crash_at_every_batch() {
    for after_sync in [false, true] {
        for boundary in 0..12 {
            let mut world = World::new(boundary, 4);
            let mut ada = world.owner("ada", Class::Document, 2, HOUR_MS);
            let set = [0, 1, 2, 3];
            world.nodes[2].crash_plan = Some((boundary as u32, after_sync));
            let mut last = Vec::new();
            for content in [&b"one"[..], b"two", b"three", b"four", b"five"] {
                world.put(&mut ada, &set, content).expect("one of four may crash");
                last = content.to_vec();
                world.run_ms(1_500);
                if !world.up(2) {
                    world.restart(2); // what it acked, it must still have: the oracle of disks looks on at every ack
                }
            }
            // Node 2 is needed for a quorum now.
            world.crash(0);
            assert_eq!(world.get(&ada, Mode::Regular).expect("three of four").content, last, "boundary {boundary}");
            let acked: Vec<Version> = world.acked.keys().filter(|(node, ..)| *node == 2).map(|(_, _, version)| *version).collect();
            for version in acked {
                let response = world.tell(2, Request::Shard { key: ada.section(), version });
                assert!(matches!(response, Response::Shard { .. }), "boundary {boundary}: {version} was acked, now {response:?}");
            }
        }
    }
}

#[test]
fn a_head_says_only_what_is_durable() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"one").expect("committed");
    let key = ada.section();
    let Node { holder, signer, key: peer, .. } = &mut world.nodes[9];
    let holder = holder.as_mut().expect("up");
    let ask = Request::Head { key, fence: None, with_shard: true };
    let empty = HolderOut::Reply { call: CallId(2), response: Response::Head(HeadAnswer::default()) };
    let told = holder.handle(CallId(1), *peer, Request::Commit { head: receipt.head.to_wire() }, world.now, signer, &world.verifier);
    let [HolderOut::Persist { id, .. }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(holder.handle(CallId(2), *peer, ask.clone(), world.now, signer, &world.verifier), [empty]);
    let outs = holder.persisted(&[*id], world.now, signer);
    assert!(outs.contains(&HolderOut::Reply { call: CallId(1), response: Response::Committed }));
    let outs = holder.handle(CallId(3), *peer, ask, world.now, signer, &world.verifier);
    assert!(matches!(&outs[..], [HolderOut::Reply { response: Response::Head(answer), .. }] if answer.committed.is_some()), "{outs:?}");
}

#[test]
fn a_clock_that_was_set_back_brings_nothing_back() {
    let mut world = World::new(3, 4);
    let mut ada = world.owner("ada", Class::Active, 2, 30_000);
    let (set, mut twin) = ([0, 1, 2, 3], ada.clone());
    let receipt = world.put(&mut ada, &set, b"thinking").expect("committed");
    world.now.wall_ms -= 25_000;
    world.run_ms(32_000); // by the monotonic clock its life is over
    assert_eq!(world.records(0, Table::Shard), 0);
    assert!(answer(&mut world, 0, &ada).committed.is_none());
    let shard = encode(b"thinking", receipt.head.manifest.shape).expect("encoded").remove(0);
    let again = Request::Prepare { manifest: receipt.head.manifest.wire().clone(), index: 0, shard: Some(shard) };
    let other = twin.write(&world, &set, b"something else");
    let other = Request::Prepare { manifest: other.manifest.wire().clone(), index: 0, shard: Some(other.shards[0].clone()) };
    for _ in 0..2 {
        assert_eq!(world.tell(0, again.clone()), Response::Refused { reason: Refusal::Expired });
        let refused = world.tell(0, other.clone());
        assert!(matches!(refused, Response::Conflict { .. } | Response::Refused { reason: Refusal::Stale }), "{refused:?}");
        world.restart(0);
    }
}

#[test]
fn acks_are_renewed_after_a_restart() {
    let (mut world, mut ada, set) = seven();
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0], b"one");
    world.restart(0);
    let mut answered = answer(&mut world, 0, &ada);
    let ack = answered.prepared.remove(0).ack;
    assert!(ack.verify(&manifest.ack_leaf(0), &world.nodes[0].key, &world.verifier));
    let shards = encode(b"one", manifest.shape).expect("encoded");
    let again = Request::Prepare { manifest: manifest.wire().clone(), index: 0, shard: Some(shards[0].clone()) };
    assert!(matches!(world.tell(0, again), Response::Acked { .. }));
}

#[test]
fn a_silent_holder_costs_no_more_than_the_hedge() {
    let (mut world, mut ada, set) = seven();
    world.net.delay_us = (500, 500);
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    let read = |world: &mut World, owner: &Owner| {
        let task = GetTask { known: Some(head_of(&receipt)), ..world.get_task(owner, Mode::Regular) };
        let task = world.start_get(task);
        world.run_until_ended(task);
        world.tasks[task].get.clone().expect("ended").expect("read");
        (world.took_us(task), task)
    };
    let (calm, task) = read(&mut world, &ada);
    assert!(calm <= 1_000, "one round trip: {calm} us");
    let asked: BTreeSet<usize> = world.sent.iter().filter(|sent| sent.task == task).map(|sent| sent.node).collect();
    assert_eq!(asked.len(), 7);
    world.net.refuses = false; // nobody says that they are dead
    world.crash(0);
    assert_eq!(read(&mut world, &ada).0, calm, "k + 1 were asked: one may be silent at no cost");
    world.crash(1);
    let (took, _) = read(&mut world, &ada);
    assert!(took <= 20_000 + 2 * calm, "two silent ones cost one hedge and a round trip: {took} us");
}

#[test]
fn a_get_is_over_within_five_seconds_whatever_happens() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    world.net.refuses = false;
    for node in 0..16 {
        world.crash(node);
    }
    for known in [None, Some(head_of(&receipt))] {
        for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
            let task = GetTask { known: known.clone(), ..world.get_task(&ada, mode) };
            let task = world.start_get(task);
            world.run_until_ended(task);
            assert!(world.tasks[task].get.as_ref().is_some_and(Result::is_err));
            assert!(world.took_us(task) <= 5_000_000);
        }
    }
}

#[test]
fn a_put_is_not_committed_until_a_quorum_confirmed_and_the_same_bytes_may_be_put_again() {
    let (mut world, mut ada, set) = seven();
    for node in 0..3 {
        world.nodes[node].crash_plan = Some((1, false)); // each stores its shard, and dies over the certificate
    }
    let task = ada.write(&world, &set, b"be kind");
    match world.finish_put(&mut ada, task.clone()) {
        Err(PutError::Unconfirmed { have: 4, need: 5, head, .. }) => assert_eq!(head.manifest.hash(), task.manifest.hash()),
        other => panic!("{other:?}"),
    }
    for node in 0..3 {
        world.restart(node);
    }
    let receipt = world.finish_put(&mut ada, task).expect("the same bytes again");
    assert_eq!(receipt.head.manifest.version.seq, 1);
    assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, b"be kind");
}

#[test]
fn an_unanswered_put_may_be_completed_by_its_owner_after_a_restart() {
    let (mut world, mut ada, set) = seven();
    for (ran_ms, expected) in [(0, 0), (1, 0), (2, 5), (3, 5), (4, 5), (6, 5)] {
        let task = ada.write(&world, &set, format!("after {ran_ms} ms").as_bytes());
        let first = world.start_put(task.clone());
        world.run_ms(ran_ms);
        world.tasks[first].abandoned = true;
        world.run_ms(100);
        let acked = world.acked.keys().filter(|(_, _, version)| *version == task.manifest.version).count();
        assert!(acked >= expected, "{ran_ms} ms: {acked} holders acked");
        world.finish_put(&mut ada, task).expect("the intent is put again");
        assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, format!("after {ran_ms} ms").as_bytes());
    }
}

#[test]
fn holders_that_are_recovering_count_in_no_quorum() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    for node in 0..3 {
        world.nodes[node].lie = Some(Lie::Recovering);
    }
    assert!(matches!(world.get(&ada, Mode::Regular), Err(GetError::QuorumUnreachable { have: 4, need: 5, .. })));
    match world.put(&mut ada, &set, b"two") {
        Err(PutError::Recovering { have: 4, need: 5, recovering, .. }) => assert_eq!(recovering.len(), 3),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_forged_certificate_certifies_nothing() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], b"two");
    for node in 0..2 {
        world.nodes[node].lie = Some(Lie::Forge);
    }
    for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
        let value = world.get(&ada, mode).expect("read");
        assert_eq!(value.content, b"one");
        let faulty = value.answers.iter().filter(|(_, answered)| *answered == Answered::Faulty).count();
        assert!(mode == Mode::Any || faulty == 2, "{:?}", value.answers);
    }
}

#[test]
fn acks_that_do_not_verify_do_not_count() {
    let (mut world, mut ada, set) = seven();
    for node in 0..3 {
        world.nodes[node].lie = Some(Lie::BadAck);
    }
    assert!(matches!(world.put(&mut ada, &set, b"one"), Err(PutError::NotEnoughHolders { have: 4, need: 5, .. })));
}

#[test]
fn a_put_without_enough_holders_names_them_and_is_quick_about_it() {
    let (mut world, mut ada, set) = seven();
    for node in 0..3 {
        world.crash(node);
    }
    let put = ada.write(&world, &set, b"be kind");
    let task = world.start_put(put);
    world.run_until_ended(task);
    match world.tasks[task].put.clone().expect("ended") {
        Err(PutError::NotEnoughHolders { have: 4, need: 5, unreachable }) => {
            let dead: BTreeSet<usize> = unreachable.iter().map(|peer| world.node_of(peer)).collect();
            assert_eq!(dead, BTreeSet::from([0, 1, 2]));
        }
        other => panic!("{other:?}"),
    }
    assert!(world.took_us(task) < 2_000_000);
}

#[test]
fn a_holder_that_comes_back_is_given_its_shard_in_the_background() {
    let (mut world, mut ada, set) = seven();
    world.crash(4);
    let put = ada.write(&world, &set, b"be kind");
    let task = world.start_put(put);
    world.run_until_ended(task);
    world.run_ms(3_000);
    assert_eq!(world.tasks[task].placed, 6);
    world.restart(4);
    world.run_ms(20_000);
    assert_eq!(world.tasks[task].placed, 7);
    assert!(matches!(&world.tasks[task].machine, Machine::Put(put) if put.finished()));
    let manifest = world.tasks[task].put.clone().expect("ended").expect("committed").head.manifest;
    assert_eq!(world.shards_on_disk(&manifest), 7);
}

#[test]
fn bystanders_learn_the_head_and_lead_to_it() {
    let (mut world, mut ada, set) = seven();
    let mut put = ada.write(&world, &set, b"be kind");
    put.bystanders = vec![world.nodes[15].key];
    world.finish_put(&mut ada, put).expect("committed");
    world.run_ms(1_000);
    let task = GetTask { candidates: vec![world.nodes[15].key], ..world.get_task(&ada, Mode::Regular) };
    assert_eq!(world.finish_get(task).expect("led").content, b"be kind");
    let served = world.nodes[15].served.values().next().expect("Kademlia serves it").clone();
    assert_eq!(CertifiedHead::from_bytes(&served, &world.verifier).expect("verifies").manifest.key, ada.section());
}

#[test]
fn an_atomic_read_writes_back_so_that_a_later_one_cannot_be_older() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &set, b"two");
    let acks = (0..5).map(|node| answer(&mut world, node, &ada).prepared.remove(0).ack).collect();
    let head = CertifiedHead { manifest, certificate: persona_fragments::Certificate { acks }, lease: None };
    assert_eq!(world.tell(0, Request::Commit { head: head.to_wire() }), Response::Committed); // only node 0 heard of it
    let value = world.get(&ada, Mode::Atomic).expect("read");
    assert_eq!((value.content.as_slice(), value.fresh), (&b"two"[..], Freshness::Atomic));
    let knows =
        (0..7).filter(|node| answer(&mut world, *node, &ada).committed.is_some_and(|known| known.manifest == *head.manifest.wire()));
    assert!(knows.count() >= 5, "a quorum knows it before the read returns");
}

#[test]
fn a_reader_never_goes_back_below_its_floor() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"one").expect("committed");
    let mut floor = receipt.head.manifest.version;
    for mode in [Mode::Any, Mode::Regular] {
        let task = GetTask { floor: Some(floor), ..world.get_task(&ada, mode) };
        assert_eq!(world.finish_get(task).expect("at the floor").content, b"one");
    }
    floor.seq = 2;
    for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
        let task = GetTask { floor: Some(floor), ..world.get_task(&ada, mode) };
        assert!(matches!(world.finish_get(task), Err(GetError::BelowFloor { found, .. }) if found.seq == 1), "{mode:?}");
    }
}

#[test]
fn more_than_n_minus_k_lost_shards_are_told_as_lost() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    for node in 0..5 {
        world.nodes[node].durable.retain(|(table, _), _| *table != Table::Shard);
    }
    for mode in [Mode::Any, Mode::Regular] {
        match world.get(&ada, mode) {
            Err(GetError::DataLost { version, lost: 5, n: 7 }) => assert_eq!(version, receipt.head.manifest.version),
            other => panic!("{mode:?}: {other:?}"),
        }
    }
}

#[test]
fn mode_any_falls_back_to_an_older_version_that_decodes_and_regular_does_not() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    let moved: Vec<usize> = (7..14).collect();
    ada.older.clear(); // the old set never hears of it
    let second = world.put(&mut ada, &moved, b"two").expect("committed");
    world.run_ms(1_000);
    for node in 7..12 {
        world.crash(node);
    }
    assert_eq!(second.head.manifest.version.seq, 2);
    let value = world.get(&ada, Mode::Any).expect("the older one decodes");
    assert_eq!((value.content.as_slice(), value.fresh), (&b"one"[..], Freshness::MaybeStale));
    assert!(matches!(world.get(&ada, Mode::Regular), Err(GetError::QuorumUnreachable { have: 2, need: 5, .. })));
}

#[test]
fn a_holder_stores_no_more_than_its_limits() {
    let mut world = World::new(1, 4);
    world.limits.bytes_per_owner_max = 3_000;
    world.limits.sections_max = 2;
    for node in 0..4 {
        world.restart(node);
    }
    let mut ada = world.owner("ada", Class::Document, 2, HOUR_MS);
    let set = [0, 1, 2, 3];
    world.put(&mut ada, &set, &[1; 2_000]).expect("1 kB each");
    assert!(matches!(world.put(&mut ada, &set, &[2; 4_000]), Err(PutError::Refused { reason: Refusal::Full, .. })));
    for (name, fits) in [("bob", true), ("cy", false)] {
        let mut owner = world.owner(name, Class::Document, 2, HOUR_MS);
        let result = world.put(&mut owner, &set, b"small");
        assert_eq!(result.is_ok(), fits, "{name}: {result:?}");
    }
    // What has expired makes room.
    world.run_ms(HOUR_MS + 20_000);
    assert_eq!(world.holder(0).stats(), persona_mesh_proto::HolderStats::default());
    world.put(&mut ada, &set, &[3; 2_000]).expect("room again");
}

#[test]
fn a_holder_with_little_room_takes_nothing_new_and_serves_and_renews_what_it_has() {
    let mut world = World::new(1, 4);
    let mut ada = world.owner("ada", Class::Document, 2, HOUR_MS);
    let set = [0, 1, 2, 3];
    world.put(&mut ada, &set, b"be kind").expect("there is room");
    for node in set {
        world.nodes[node].holder.as_mut().expect("up").set_disk_low(true);
    }
    assert!(matches!(world.put(&mut ada, &set, b"be kinder"), Err(PutError::Refused { reason: Refusal::Full, .. })));
    assert_eq!(world.get(&ada, Mode::Regular).expect("it is served").content, b"be kind");
    world.put(&mut ada, &set, b"be kind").expect("a renewal brings no bytes");
    for node in set {
        world.nodes[node].holder.as_mut().expect("up").set_disk_low(false);
    }
    world.put(&mut ada, &set, b"be kinder").expect("room again");
}

#[test]
fn requests_that_are_wrong_are_refused_with_the_reason_and_change_nothing() {
    let (mut world, mut ada, set) = seven();
    let task = ada.write(&world, &set, b"be kind");
    let wire = task.manifest.wire().clone();
    let shard = |index: usize| Some(task.shards[index].clone());
    let mut unsigned = wire.clone();
    unsigned.signature.0[0] ^= 1;
    let refused = |reason| Response::Refused { reason };
    let cases = [
        (Request::Prepare { manifest: unsigned, index: 0, shard: shard(0) }, refused(Refusal::BadManifest)),
        (Request::Prepare { manifest: wire.clone(), index: 1, shard: shard(1) }, refused(Refusal::NotAHolder)),
        (Request::Prepare { manifest: wire.clone(), index: 99, shard: shard(1) }, refused(Refusal::NotAHolder)),
        (Request::Prepare { manifest: wire.clone(), index: 0, shard: shard(1) }, refused(Refusal::WrongShard)),
        (Request::Prepare { manifest: wire.clone(), index: 0, shard: None }, Response::NeedShard),
        (Request::Shard { key: ada.section(), version: task.manifest.version }, Response::Absent),
    ];
    for (request, response) in cases {
        assert_eq!(world.tell(0, request), response);
    }
    let receipt = world.finish_put(&mut ada, task).expect("committed");
    let mut forged = receipt.head.to_wire();
    forged.certificate.acks.pop();
    while forged.certificate.acks.len() >= 5 {
        forged.certificate.acks.pop();
    }
    assert_eq!(world.tell(9, Request::Commit { head: forged }), refused(Refusal::BadCertificate));
    let mut doubled = receipt.head.to_wire();
    doubled.certificate.acks[1] = doubled.certificate.acks[0].clone();
    assert_eq!(world.tell(9, Request::Commit { head: doubled }), refused(Refusal::BadCertificate));
    assert_eq!(world.holder(9).stats(), persona_mesh_proto::HolderStats::default());
}

#[test]
fn one_signature_covers_all_acks_of_a_sync() {
    let (mut world, _, set) = seven();
    let mut requests = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let mut owner = world.owner(name, Class::Relationship, 3, HOUR_MS);
        let task = owner.write(&world, &set, b"be kind");
        requests.push((
            task.manifest.clone(),
            Request::Prepare { manifest: task.manifest.wire().clone(), index: 0, shard: Some(task.shards[0].clone()) },
        ));
    }
    let Node { holder, signer, key, .. } = &mut world.nodes[0];
    let holder = holder.as_mut().expect("up");
    let mut ids = Vec::new();
    for (call, (_, request)) in requests.iter().enumerate() {
        for out in holder.handle(CallId(call as u64), *key, request.clone(), world.now, signer, &world.verifier) {
            match out {
                HolderOut::Persist { id, .. } => ids.push(id),
                other => panic!("nothing is answered before it is durable: {other:?}"),
            }
        }
    }
    let mut signatures: BTreeSet<Vec<u8>> = BTreeSet::new();
    let outs = holder.persisted(&ids, world.now, signer);
    assert_eq!(outs.len(), 4);
    for (out, (manifest, _)) in outs.into_iter().zip(&requests) {
        let HolderOut::Reply { response: Response::Acked { ack }, .. } = out else { panic!("{out:?}") };
        assert!(ack.verify(&manifest.ack_leaf(0), key, &world.verifier));
        signatures.insert(ack.signature.0.to_vec());
    }
    assert_eq!(signatures.len(), 1);
    assert_ne!(requests[0].0.hash(), Digest([0; 32]));
}
