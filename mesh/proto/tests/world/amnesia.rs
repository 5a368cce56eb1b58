//! Holders that lose their stores, and know it (docs/spec/quorum.md#a-holder-that-lost-its-store).

use persona_fragments::{Certificate, Class, PeerKey};
use persona_mesh_proto::{
    Answered, GetError, GetTask, HolderStats, Mode, PutError, Recollection, Recovered, Refusal, Request, Response, Table,
    holder::{RECOVERING_MS, RECOVERY_WAIT_MS},
};

use super::{
    scenarios::{HOUR_MS, answer, crash_writer_after, seven, take_over},
    *,
};

/// What a node says to HEAD, in a word.
fn says(world: &mut World, node: usize, owner: &Owner) -> &'static str {
    match world.tell(node, Request::Head { key: owner.section(), fence: None, with_shard: false }) {
        Response::Head(answer) if answer.committed.is_some() => "committed",
        Response::Head(answer) if answer.expired.is_some() => "expired",
        Response::Head(_) => "nothing",
        Response::Recovering => "recovering",
        other => panic!("{other:?}"),
    }
}

/// Asks for the section until the node has recovered it.
fn recover(world: &mut World, node: usize, owner: &Owner) {
    world.run_ms(RECOVERY_WAIT_MS);
    says(world, node, owner);
    world.run_ms(1_000);
}

fn prepare(task: &PutTask, index: u8) -> Request {
    Request::Prepare { manifest: task.manifest.wire().clone(), index, shard: Some(task.shards[usize::from(index)].clone()) }
}

/// Four holders, f = 1.
fn four(seed: u64) -> (World, Owner, Vec<usize>) {
    let mut world = World::new(seed, 8);
    let ada = world.owner("ada", Class::Document, 2, HOUR_MS);
    (world, ada, (0..4).collect())
}

#[test]
fn a_holder_that_lost_its_store_says_so_until_it_has_asked_the_others() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    let version = receipt.head.manifest.version;
    world.run_ms(1_000);
    world.lose_store(3);
    let head = Request::Head { key: ada.section(), fence: None, with_shard: true };
    let recall = Request::Recall { key: ada.section(), owner: ada.key() };
    for request in [head, recall, Request::Shard { key: ada.section(), version }] {
        assert_eq!(world.tell(3, request), Response::Recovering);
    }
    assert_eq!(world.tell(3, Request::Commit { head: receipt.head.to_wire() }), Response::Recovering);
    assert!(world.tasks.iter().all(|task| !matches!(task.machine, Machine::Recover(..))), "not before the wait is over");
    let value = world.get(&ada, Mode::Regular).expect("six of seven");
    assert!(value.answers.contains(&(world.nodes[3].key, Answered::Recovering)));
    assert!(value.missing.contains(&(world.nodes[3].key, 3)), "whoever decoded may hand its shard back");
    recover(&mut world, 3, &ada);
    assert_eq!(answer(&mut world, 3, &ada).committed.expect("known again").manifest, *receipt.head.manifest.wire());
    assert_eq!(world.nodes[3].served.len(), 1, "Kademlia serves it, too");
    assert_eq!(world.tell(3, Request::Shard { key: ada.section(), version }), Response::Absent);
    // And so it stays over a restart; the refill is an ordinary PREPARE.
    world.restart(3);
    assert_eq!(says(&mut world, 3, &ada), "committed");
    let shards = encode(b"be kind", receipt.head.manifest.shape).expect("encoded");
    let refill = Request::Prepare { manifest: receipt.head.manifest.wire().clone(), index: 3, shard: Some(shards[3].clone()) };
    assert!(matches!(world.tell(3, refill), Response::Acked { .. }));
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 7);
}

#[test]
fn the_shard_of_a_certified_version_is_taken_back_at_once() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    world.lose_store(3);
    let shards = encode(b"be kind", receipt.head.manifest.shape).expect("encoded");
    let refill = Request::Prepare { manifest: receipt.head.manifest.wire().clone(), index: 3, shard: Some(shards[3].clone()) };
    assert_eq!(world.tell(3, refill.clone()), Response::Recovering, "it may have acked another one, for all that it knows");
    assert_eq!(world.tell(3, Request::Commit { head: receipt.head.to_wire() }), Response::Recovering);
    assert!(matches!(world.tell(3, refill), Response::Acked { .. }), "a certified one can have no rival");
    let version = receipt.head.manifest.version;
    assert!(matches!(world.tell(3, Request::Shard { key: ada.section(), version }), Response::Shard { index: 3, .. }));
    assert_eq!(says(&mut world, 3, &ada), "recovering", "bytes prove themselves; a head does not prove that there is no higher one");
}

#[test]
fn a_renewal_refills_a_holder_that_lost_its_store() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"be kind").expect("committed");
    world.run_ms(1_000);
    world.lose_store(3);
    world.run_ms(RECOVERY_WAIT_MS + 1_000);
    let renewal = ada.renew(&world, &set, b"be kind");
    let task = world.start_put(renewal);
    world.run_until_ended(task);
    world.run_ms(5_000);
    let receipt = world.tasks[task].put.clone().expect("ended").expect("committed");
    assert_eq!(world.tasks[task].placed, 7);
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 7);
    assert_eq!(world.shard_bytes_sent(task), receipt.head.manifest.shard_len(), "to that one alone");
    assert_eq!(says(&mut world, 3, &ada), "committed");
}

/// The reader's quorum meets the writer's in one honest holder only, and that one lost its store.
#[test]
fn what_it_confirmed_and_forgot_is_found_by_every_reader() {
    let (mut world, mut ada, set) = four(1);
    world.put(&mut ada, &set, b"one").expect("committed");
    world.run_ms(1_000);
    world.nodes[0].lie = Some(Lie::Stale);
    let task = ada.write(&world, &set, b"two");
    let put = world.start_put(task);
    world.tasks[put].blocked = BTreeSet::from([3]);
    world.run_until_ended(put);
    assert!(world.tasks[put].put.clone().expect("ended").is_ok(), "the liar, 1 and 2");
    world.tasks[put].abandoned = true;
    world.lose_store(2);
    for _ in 0..2 {
        // 1 is slow: the liar, 3 that never heard of it, and 2.
        let task = world.get_task(&ada, Mode::Regular);
        let get = world.start_get_blocked(task, BTreeSet::from([1]));
        world.run_until_ended(get);
        match world.tasks[get].get.clone().expect("ended") {
            Ok(value) => assert_eq!(value.content, b"two"),
            // Not stale; but of its two shards there is only one at hand.
            Err(GetError::QuorumUnreachable { have: 2, need: 3, .. }) => {}
            Err(GetError::Unavailable { version, have: 1, .. }) => assert_eq!(version.seq, 2),
            Err(error) => panic!("{error:?}"),
        }
        recover(&mut world, 2, &ada);
    }
    assert_eq!(says(&mut world, 2, &ada), "committed");
}

#[test]
fn with_more_than_f_silent_it_waits_and_with_more_than_f_lost_the_next_write_is_enough() {
    let (mut world, mut ada, set) = four(2);
    world.put(&mut ada, &set, b"one").expect("committed");
    world.run_ms(1_000);
    world.lose_store(2);
    world.crash(3);
    recover(&mut world, 2, &ada);
    assert_eq!(says(&mut world, 2, &ada), "recovering", "two of the three others are no quorum");
    world.restart(3);
    world.run_ms(15_000);
    recover(&mut world, 2, &ada);
    assert_eq!(says(&mut world, 2, &ada), "committed");

    world.lose_store(2);
    world.lose_store(3);
    recover(&mut world, 2, &ada);
    recover(&mut world, 3, &ada);
    assert_eq!((says(&mut world, 2, &ada), says(&mut world, 3, &ada)), ("recovering", "recovering"));
    assert!(matches!(world.get(&ada, Mode::Regular), Err(GetError::QuorumUnreachable { have: 2, need: 3, .. })));
    assert_eq!(world.get(&ada, Mode::Any).expect("two shards are left").content, b"one");
    world.run_ms(15_000);
    let receipt = world.put(&mut ada, &set, b"two").expect("what the owner writes now, it writes to all");
    world.run_ms(5_000);
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 4);
    assert_eq!(world.get(&ada, Mode::Atomic).expect("all answer").content, b"two");
    assert_eq!((says(&mut world, 2, &ada), says(&mut world, 3, &ada)), ("committed", "committed"));
}

#[test]
fn when_all_holders_lost_their_stores_the_owner_writes_anew_but_not_the_same_bytes() {
    let (mut world, mut ada, set) = four(3);
    world.put(&mut ada, &set, b"one").expect("committed");
    let begun = ada.write(&world, &set, b"two");
    world.run_ms(1_000);
    for node in set.clone() {
        world.lose_store(node);
    }
    assert!(world.get(&ada, Mode::Regular).is_err());
    world.run_ms(RECOVERY_WAIT_MS + 5_000);
    match world.finish_put(&mut ada, begun) {
        Err(PutError::Recovering { have: 0, need: 3, recovering, .. }) if recovering.len() == 4 => {}
        other => panic!("{other:?}"),
    }
    world.put(&mut ada, &set, b"three").expect("a version that nobody can have forgotten");
    world.run_ms(5_000);
    assert_eq!(world.get(&ada, Mode::Atomic).expect("read").content, b"three");
}

#[test]
fn a_small_mesh_whose_holder_lost_its_store_goes_on_with_the_next_write() {
    for count in 1..4 {
        let mut world = World::new(count as u64, 4);
        let mut ada = world.owner("ada", Class::Document, 2, HOUR_MS);
        let set: Vec<usize> = (0..count).collect();
        world.put(&mut ada, &set, b"one").expect("committed");
        world.lose_store(0);
        world.run_ms(RECOVERY_WAIT_MS + 15_000);
        world.put(&mut ada, &set, b"two").unwrap_or_else(|error| panic!("{count}: {error}"));
        assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, b"two", "{count}");
    }
}

/// n = 4: a liar, one that never saw the fence, one that lost its store, and one honest one.
#[test]
fn a_fence_that_was_forgotten_is_learnt_again_before_anything_is_confirmed() {
    let (mut world, mut old, set) = four(4);
    world.put(&mut old, &set, b"old host").expect("committed");
    world.run_ms(1_000);
    let mut card = old.also("card", Class::Core, 2, 9);
    let fence = head_of(&world.put(&mut card, &[4, 5, 6, 7], b"card of term 2").expect("certified"));
    let task = GetTask { fence: Some(fence), ..world.get_task(&old, Mode::Atomic) };
    let get = world.start_get_blocked(task, BTreeSet::from([3]));
    world.run_until_ended(get);
    assert!(world.tasks[get].get.clone().expect("ended").is_ok());
    assert_eq!((0..4).filter(|node| world.records(*node, Table::Fence) == 1).collect::<Vec<_>>(), [0, 1, 2]);
    world.nodes[0].lie = Some(Lie::AckWithoutStoring);
    world.lose_store(1);
    for _ in 0..3 {
        let written = old.write(&world, &set, b"I am still here");
        let put = world.start_put(written);
        world.tasks[put].blocked = BTreeSet::from([2]);
        world.run_until_ended(put);
        let result = world.tasks[put].put.clone().expect("ended");
        assert!(result.is_err(), "a fenced host committed: {result:?}");
        recover(&mut world, 1, &old);
        world.run_ms(10_000);
    }
    assert_eq!(says(&mut world, 1, &old), "committed");
    assert_eq!(world.records(1, Table::Fence), 1);
    let written = old.write(&world, &set, b"and here");
    assert!(matches!(world.tell(1, prepare(&written, 1)), Response::Fenced { .. }));
}

#[test]
fn a_takeover_does_not_count_a_holder_that_forgot_what_it_acked() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    world.run_ms(1_000);
    world.lose_store(0);
    let (_, _, value) = take_over(&mut world, &ada, &set);
    assert_eq!(world.records(0, Table::Fence), 1, "it stores the fence all the same");
    assert!(value.answers.contains(&(world.nodes[0].key, Answered::Recovering)));
    for node in 1..3 {
        world.lose_store(node);
    }
    let card = world.nodes[0].durable.iter().find(|((table, _), _)| *table == Table::Fence).expect("fenced").1;
    let fence = CertifiedHead::from_bytes(card, &world.verifier).expect("certified");
    let task = GetTask { fence: Some(fence), ..world.get_task(&ada, Mode::Atomic) };
    assert!(matches!(world.finish_get(task), Err(GetError::QuorumUnreachable { have: 4, need: 5, .. })));
}

#[test]
fn an_equivocating_owner_gets_no_second_ack_out_of_a_holder_that_forgot_the_first() {
    let (mut world, mut ada, set) = four(5);
    world.put(&mut ada, &set, b"one").expect("committed");
    let mut twin = ada.clone();
    let first = crash_writer_after(&mut world, &mut ada, &set, &[1, 2], b"two");
    world.lose_store(1);
    let early = twin.clone().write(&world, &set, b"another two");
    assert_eq!(early.manifest.version, first.version);
    recover(&mut world, 1, &ada);
    assert_eq!(says(&mut world, 1, &ada), "committed");
    assert_eq!(world.tell(1, prepare(&early, 1)), Response::Refused { reason: Refusal::Stale });
    ada.seq = 20;
    let unheard = crash_writer_after(&mut world, &mut ada, &set, &[0], b"only one heard of it");
    let mut rival = twin.clone();
    rival.seq = 20;
    let rival = rival.write(&world, &set, b"nobody heard of it");
    assert_eq!(rival.manifest.version, unheard.version);
    world.lose_store(0);
    recover(&mut world, 0, &ada);
    assert_eq!(says(&mut world, 0, &ada), "committed");
    assert_eq!(world.tell(0, prepare(&rival, 0)), Response::Recovering, "issued before the loss: it may have acked its rival");
    world.run_ms(15_000);
    let late = twin.write(&world, &set, b"another two, dated later");
    assert_eq!(late.manifest.version, first.version);
    for _ in 0..2 {
        assert_eq!(world.tell(1, prepare(&late, 1)), Response::Refused { reason: Refusal::Stale });
        world.restart(1); // what was learnt of the others is on the disk
    }
    // Above all that it learnt it signs again.
    ada.seq = 10;
    let later = ada.write(&world, &set, b"three");
    assert!(matches!(world.tell(1, prepare(&later, 1)), Response::Acked { .. }));
    // In between, others may have acked what it did not hear of.
    ada.seq = 1;
    let task = ada.write(&world, &set, b"two again");
    assert_eq!(world.tell(1, prepare(&task, 1)), Response::Refused { reason: Refusal::Stale });
}

#[test]
fn the_manifest_that_others_have_prepared_since_the_loss_is_acked() {
    let (mut world, mut ada, set) = four(6);
    world.put(&mut ada, &set, b"one").expect("committed");
    world.lose_store(1);
    world.run_ms(RECOVERY_WAIT_MS + 1_000);
    let task = ada.write(&world, &set, b"two");
    for node in [2, 3] {
        assert!(matches!(world.tell(node, prepare(&task, node as u8)), Response::Acked { .. }));
    }
    assert_eq!(world.tell(1, prepare(&task, 1)), Response::Recovering);
    world.run_ms(1_000);
    assert!(matches!(world.tell(1, prepare(&task, 1)), Response::Acked { .. }));
    world.restart(1);
    assert!(matches!(world.tell(1, prepare(&task, 1)), Response::Acked { .. }));
}

#[test]
fn an_expired_head_is_recovered_as_expired() {
    let (mut world, mut ada, set) = four(7);
    let mut long = ada.clone();
    world.put(&mut long, &set, b"long-lived").expect("committed");
    (ada.seq, ada.older, ada.ttl_ms) = (long.seq, long.older.clone(), 20_000);
    world.put(&mut ada, &set, b"short-lived").expect("committed");
    world.run_ms(60_000);
    assert_eq!(says(&mut world, 0, &ada), "expired");
    world.lose_store(1);
    assert_eq!(says(&mut world, 1, &ada), "recovering");
    recover(&mut world, 1, &ada);
    assert_eq!(says(&mut world, 1, &ada), "expired", "so that nothing below it comes back");
    assert!(world.nodes[1].served.is_empty());
}

#[test]
fn a_section_that_nobody_knows_is_asked_for_with_pauses_only() {
    let (mut world, ada, _) = four(8);
    world.lose_store(0);
    world.run_ms(RECOVERY_WAIT_MS);
    let recoveries = |world: &World| world.tasks.iter().filter(|task| matches!(task.machine, Machine::Recover(..))).count();
    for _ in 0..30 {
        assert_eq!(says(&mut world, 0, &ada), "recovering");
        world.run_ms(50);
    }
    assert_eq!(recoveries(&world), 1);
    world.run_ms(2_000);
    assert_eq!(says(&mut world, 0, &ada), "recovering");
    assert_eq!(recoveries(&world), 2);
    assert_eq!(world.holder(0).stats(), HolderStats { lost_store_ms: Some(1_700_000_000_000), ..HolderStats::default() });
}

#[test]
fn recoveries_at_once_are_bounded_and_the_rest_is_asked_for_again() {
    let (mut world, ada, _) = four(9);
    world.lose_store(0);
    world.net.refuses = false;
    for node in 1..8 {
        world.crash(node); // so that each recovery takes its time
    }
    world.run_ms(RECOVERY_WAIT_MS);
    let sections: Vec<Owner> = (0..100).map(|number| ada.also(&format!("doc/{number}"), Class::Document, 1, 1)).collect();
    for section in &sections {
        assert_eq!(says(&mut world, 0, section), "recovering");
    }
    let recoveries = |world: &World| world.tasks.iter().filter(|task| matches!(task.machine, Machine::Recover(..))).count();
    assert_eq!(recoveries(&world), 32);
    world.run_ms(6_000);
    for section in &sections {
        says(&mut world, 0, section);
    }
    assert_eq!(recoveries(&world), 64, "those that had no place, and not the same again");
}

#[test]
fn once_nothing_of_the_loss_can_matter_it_is_forgotten() {
    let (mut world, mut ada, set) = four(10);
    world.put(&mut ada, &set, b"one").expect("committed");
    let bob = world.owner("bob", Class::Document, 2, HOUR_MS);
    world.lose_store(1);
    recover(&mut world, 1, &ada);
    assert_eq!(says(&mut world, 1, &ada), "committed");
    assert_eq!(world.records(1, Table::Meta), 2);
    world.queue.clear(); // a week is long
    world.advance_to(world.now.mono_us + RECOVERING_MS * 1000 - 60_000_000);
    world.restart(1);
    assert_eq!(says(&mut world, 1, &bob), "recovering", "not a moment before");
    world.now.wall_ms += 90_000;
    world.run_ms(2_000);
    assert_eq!(says(&mut world, 1, &bob), "recovering", "a clock that jumps ends nothing");
    world.run_ms(60_000);
    assert_eq!(says(&mut world, 1, &bob), "nothing");
    assert_eq!((world.records(1, Table::Meta), world.holder(1).stats()), (0, HolderStats::default()));
    world.restart(1);
    assert_eq!(says(&mut world, 1, &bob), "nothing");
}

#[test]
fn a_second_loss_undoes_every_recovery() {
    let (mut world, mut ada, set) = four(11);
    world.put(&mut ada, &set, b"one").expect("committed");
    world.lose_store(1);
    recover(&mut world, 1, &ada);
    let before = world.nodes[1].durable.clone();
    world.put(&mut ada, &set, b"two").expect("committed");
    // The disk is set back to what it was, and the node notices.
    world.crash(1);
    world.nodes[1].durable = before;
    let Write { table, key, value } = lost_store_mark(world.now.wall_ms);
    world.nodes[1].durable.insert((table, key), value.expect("a mark"));
    world.restart(1);
    assert_eq!(says(&mut world, 1, &ada), "recovering");
    recover(&mut world, 1, &ada);
    assert_eq!(answer(&mut world, 1, &ada).committed.expect("known"), head_of_node(&mut world, 2, &ada));
}

fn head_of_node(world: &mut World, node: usize, owner: &Owner) -> persona_fragments::certificate::HeadWire {
    answer(world, node, owner).committed.expect("known")
}

#[test]
fn what_a_liar_recalls_does_not_count_unless_it_verifies() {
    let (mut world, mut ada, set) = four(12);
    let first = world.put(&mut ada, &set, b"one").expect("committed");
    world.put(&mut ada, &set, b"two").expect("committed");
    let (key, me) = (ada.section(), world.nodes[1].key);
    let task = RecoverTask { key, me, known: Some(head_of(&first)), asked: None, candidates: Vec::new() };
    let recall = |world: &mut World, node: usize| match world.tell(node, Request::Recall { key, owner: ada.key() }) {
        Response::Recalled(answer) => answer,
        other => panic!("{other:?}"),
    };
    let sound = recall(&mut world, 0);
    assert!(sound.head.committed.is_some() && sound.fence.is_none());
    let mut forged = sound.clone();
    forged.head.committed.as_mut().expect("there").certificate.acks.truncate(2);
    let mut fenced = sound.clone();
    fenced.fence = Some(first.head.to_wire()); // certified, but no card
    let run = |world: &World, first_answer: RecallAnswer| {
        let (mut recover, outs) = Recover::start(task.clone(), world.now);
        let asked: Vec<(Tag, PeerKey)> = outs
            .into_iter()
            .map(|out| match out {
                RecoverOut::Send { tag, to, request: Request::Recall { .. } } => (tag, to),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asked.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [0, 2, 3].map(|node| world.nodes[node].key));
        let mut outs = recover.reply(asked[0].0, Reply::Answer(Response::Recalled(first_answer)), world.now, &world.verifier);
        for (tag, _) in &asked[1..] {
            assert!(outs.is_empty());
            outs = recover.reply(*tag, Reply::Answer(Response::Recalled(sound.clone())), world.now, &world.verifier);
        }
        assert!(recover.finished() && recover.deadline().is_none());
        match outs.remove(0) {
            RecoverOut::Done(recovered) => recovered,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        matches!(run(&world, sound.clone()), Recovered::Known(known) if known.head.as_ref().is_some_and(|head| head.manifest.version.seq == 2))
    );
    assert!(matches!(run(&world, forged), Recovered::Unknown(_)));
    assert!(matches!(run(&world, fenced), Recovered::Unknown(_)));
    assert!(matches!(run(&world, RecallAnswer::default()), Recovered::Known(_)), "not to know is an answer");
}

/// Its old word and the word of a holder that heard of it later make one quorum; its recovery in between would hear of nothing.
#[test]
fn no_recovery_begins_while_what_it_said_before_may_still_be_counted() {
    let (mut world, mut ada, set) = four(13);
    world.put(&mut ada, &set, b"one").expect("committed");
    world.run_ms(1_000);
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], b"two");
    world.nodes[0].lie = Some(Lie::Stale);
    let acks = (0..3).map(|node| answer(&mut world, node, &ada).prepared.remove(0).ack).collect();
    let head = CertifiedHead { manifest, certificate: Certificate { acks }, lease: None };
    let commit = Request::Commit { head: head.to_wire() };
    assert_eq!(world.tell(1, commit.clone()), Response::Committed);
    world.lose_store(1);
    for _ in 0..5 {
        says(&mut world, 1, &ada);
        world.run_ms(1_000);
    }
    assert_eq!(world.tell(2, commit), Response::Committed, "with the liar's word the put has committed");
    recover(&mut world, 1, &ada);
    let get = world.start_get_blocked(world.get_task(&ada, Mode::Regular), BTreeSet::from([2]));
    world.run_until_ended(get);
    if let Ok(value) = world.tasks[get].get.clone().expect("ended") {
        assert_eq!(value.content, b"two");
    }
    assert_eq!(answer(&mut world, 1, &ada).committed.expect("known").manifest, *head.manifest.wire());
}

#[test]
fn a_put_counts_nothing_that_comes_after_its_time() {
    let (mut world, mut ada, set) = four(14);
    for until in ["acks", "confirmations"] {
        let task = ada.write(&world, &set, b"be kind");
        let (mut put, outs) = Put::start(task, world.timing.clone(), world.now);
        let mut inbox: Vec<(Tag, usize, Request)> = Vec::new();
        let mut sent = |world: &World, outs: Vec<PutOut>| {
            let mut done = Vec::new();
            for out in outs {
                match out {
                    PutOut::Send { tag, to, request } => inbox.push((tag, world.node_of(&to), request)),
                    other => done.push(other),
                }
            }
            (std::mem::take(&mut inbox), done)
        };
        let (mut round, _) = sent(&world, outs);
        if until == "confirmations" {
            let mut next = Vec::new();
            for (tag, node, request) in round {
                let answer = world.tell(node, request);
                let (commits, done) = sent(&world, put.reply(tag, Reply::Answer(answer), world.now, &world.verifier));
                assert!(done.is_empty());
                next.extend(commits);
            }
            round = next;
        }
        let answers: Vec<_> = round.into_iter().map(|(tag, node, request)| (tag, world.tell(node, request))).collect();
        world.run_ms(6_000); // this node was suspended: it is not ticked
        let mut ended = Vec::new();
        for (tag, answer) in answers {
            ended.extend(sent(&world, put.reply(tag, Reply::Answer(answer), world.now, &world.verifier)).1);
        }
        match ended.as_slice() {
            [PutOut::Failed(PutError::Timeout { acks: 0, .. })] if until == "acks" => {}
            [PutOut::Failed(PutError::Unconfirmed { have: 0, .. })] if until == "confirmations" => {}
            other => panic!("{until}: {other:?}"),
        }
    }
}

#[test]
fn what_was_recovered_is_said_only_once_it_is_durable() {
    let (mut world, mut ada, set) = four(15);
    let receipt = world.put(&mut ada, &set, b"one").expect("committed");
    world.lose_store(1);
    let recollection = Recollection { head: Some(head_of(&receipt)), ..Recollection::default() };
    let Node { holder, signer, key: peer, .. } = &mut world.nodes[1];
    let holder = holder.as_mut().expect("up");
    let outs = holder.recovered(&ada.section(), Recovered::Known(Box::new(recollection)), world.now);
    let [HolderOut::Persist { id, .. }] = outs.as_slice() else { panic!("{outs:?}") };
    let ask = Request::Head { key: ada.section(), fence: None, with_shard: false };
    let outs = holder.handle(CallId(1), *peer, ask.clone(), world.now, signer, &world.verifier);
    assert!(outs.contains(&HolderOut::Reply { call: CallId(1), response: Response::Recovering }), "{outs:?}");
    holder.persisted(&[*id], world.now, signer);
    let outs = holder.handle(CallId(2), *peer, ask, world.now, signer, &world.verifier);
    assert!(matches!(&outs[..], [HolderOut::Reply { response: Response::Head(answer), .. }] if answer.committed.is_some()), "{outs:?}");
}

#[test]
fn a_get_counts_nothing_that_comes_after_its_time() {
    let (mut world, mut ada, set) = four(16);
    let receipt = world.put(&mut ada, &set, b"be kind").expect("committed");
    let task = GetTask { known: Some(head_of(&receipt)), candidates: Vec::new(), ..world.get_task(&ada, Mode::Regular) };
    let (mut get, outs) = Get::start(task, world.now);
    let mut answers = Vec::new();
    for out in outs {
        let GetOut::Send { tag, to, request } = out else { panic!("{out:?}") };
        let node = world.node_of(&to);
        answers.push((tag, world.tell(node, request)));
    }
    world.run_ms(6_000);
    let mut ended = Vec::new();
    for (tag, answer) in answers {
        ended.extend(get.reply(tag, Reply::Answer(answer), world.now, &world.verifier));
    }
    assert!(matches!(ended.last(), Some(GetOut::Done(Err(GetError::QuorumUnreachable { have: 0, .. })))), "{ended:?}");
}
