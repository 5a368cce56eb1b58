//! Versions of unknown outcome, given up or completed (docs/spec/quorum.md#a-version-that-is-given-up).

use persona_fragments::{AbortedVersion, Class, certificate::AbortWire, manifest::ManifestWire, sign_batch};
use persona_mesh_proto::{
    GetError, GetTask, HolderStats, Mode, PutError, Refusal, Request, Response, Settled, Table, message::PreparedWire,
};

use super::{
    scenarios::{HOUR_MS, answer, crash_writer_after, seven, take_over},
    *,
};

fn never(owner: &Owner, manifest: &SignedManifest, index: u8) -> Request {
    Request::Never { manifest: manifest.wire().clone(), index, order: manifest.order_never(&owner.signer) }
}

fn abort(aborted: &AbortedVersion) -> Request {
    Request::Abort { aborted: aborted.to_wire() }
}

fn prepare(task: &PutTask, index: u8) -> Request {
    Request::Prepare { manifest: task.manifest.wire().clone(), index, shard: Some(task.shards[usize::from(index)].clone()) }
}

/// The abort certificate of a version that nobody acked, made out of thin air.
fn certificate(world: &World, manifest: &SignedManifest) -> AbortedVersion {
    let never = |(index, peer): (usize, &PeerKey)| {
        let signer = world.nodes[world.node_of(peer)].signer;
        (index as u8, sign_batch(&[manifest.never_leaf(index as u8)], &signer).remove(0))
    };
    let nevers = manifest.holders.iter().enumerate().map(never).collect();
    AbortedVersion::assemble(manifest, &nevers).expect("all of them")
}

#[test]
fn versions_that_cannot_commit_are_given_up_and_make_room() {
    let (mut world, mut ada, set) = seven();
    let receipt = world.put(&mut ada, &set, b"one").expect("committed");
    world.run_ms(1_000);
    let acked: [&[usize]; 3] = [&[0, 1], &[0, 2], &[0, 1]];
    let given_up: Vec<_> = acked.iter().map(|acked| crash_writer_after(&mut world, &mut ada, &set, acked, b"lost")).collect();
    let next = ada.write(&world, &set, b"two");
    assert_eq!(world.tell(0, prepare(&next, 0)), Response::Busy);
    let shards = world.records(0, Table::Shard);
    for manifest in &given_up {
        match world.settle(&ada, manifest) {
            Settled::Aborted(aborted) => {
                assert_eq!(aborted.manifest, *manifest);
                assert_eq!(AbortedVersion::from_bytes(&aborted.to_bytes(), &world.verifier), Ok(*aborted), "anybody can check it");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.records(0, Table::Shard), shards - 1, "the bytes go, too");
    assert_eq!(answer(&mut world, 0, &ada).prepared, []);
    // And it is remembered: neither who dropped it nor who promised signs for it any more.
    for node in [0, 3] {
        for _ in 0..2 {
            let shards = encode(b"lost", given_up[0].shape).expect("encoded");
            let (manifest, shard) = (given_up[0].wire().clone(), Some(shards[node].clone()));
            let again = Request::Prepare { manifest, index: node as u8, shard };
            assert_eq!(world.tell(node, again), Response::Refused { reason: Refusal::Aborted });
            world.restart(node);
        }
    }
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 7);
    world.finish_put(&mut ada, next).expect("room again");
    world.run_ms(2 * HOUR_MS);
    assert!(world.nodes[0].durable.is_empty(), "until all of it has expired");
}

#[test]
fn a_version_that_has_its_acks_is_completed_instead() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2, 3, 4], b"two");
    match world.settle(&ada, &manifest) {
        Settled::Certified(head) => assert_eq!(CertifiedHead::verify(head.to_wire(), &world.verifier), Ok(*head)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, b"two");
    let known = (0..7).filter(|node| answer(&mut world, *node, &ada).committed.is_some_and(|head| head.manifest == *manifest.wire()));
    assert_eq!(known.count(), 7, "all are told");
}

/// Too many acked it for an abort, and too few for a certificate: whoever settles it has none of its bytes, and needs none.
#[test]
fn a_version_that_is_past_giving_up_is_completed_from_the_shards_of_those_that_acked_it() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], b"two");
    // One of the others does not answer.
    world.crash(6);
    match world.settle(&ada, &manifest) {
        Settled::Certified(head) => assert_eq!(CertifiedHead::verify(head.to_wire(), &world.verifier), Ok(*head)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, b"two");
    assert!(world.shards_on_disk(&manifest) >= 5, "the rest have their shards now");
    world.restart(6);

    // One whose shard is spoilt: then there are too few, and it stays as it is.
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], b"three");
    world.nodes[1].lie = Some(Lie::Corrupt);
    let settled = world.settle(&ada, &manifest);
    assert!(matches!(settled, Settled::Undecided { acks: ..=3, nevers: 0, n: 7 }), "{settled:?}");
    world.nodes[1].lie = None;
    assert!(matches!(world.settle(&ada, &manifest), Settled::Certified(_)), "and nobody has promised anything that stands in the way");
}

/// Three of ten acked it, so that both ends are possible, and three liars promise nothing: to ask the others first for their promises would rule
/// out the only end that can be had.
#[test]
fn a_version_that_can_be_completed_is_not_given_up() {
    let mut world = World::new(1, 12);
    let mut ada = world.owner("ada", Class::Core, 5, HOUR_MS);
    let set: Vec<usize> = (0..10).collect();
    world.put(&mut ada, &set, b"zero").expect("committed");
    let left: Vec<_> =
        [&b"one"[..], b"two", b"six"].map(|content| crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], content)).to_vec();
    for node in 7..10 {
        world.nodes[node].lie = Some(Lie::Refuse);
    }
    for manifest in &left {
        assert!(matches!(world.settle(&ada, manifest), Settled::Certified(_)), "version {}", manifest.version);
    }
    world.put(&mut ada, &set, b"new").expect("nobody is crowded");
}

/// Seed 68177: where nothing is certified any more a get fails, and what crowds the holders has to be known all the same.
#[test]
fn a_get_that_finds_nothing_to_read_has_seen_what_is_undecided() {
    let (mut world, mut ada, set) = seven();
    let left = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], b"one");
    let task = world.start_get(world.get_task(&ada, Mode::Regular));
    world.run_until_ended(task);
    assert!(matches!(world.tasks[task].get, Some(Err(GetError::NotFound { .. }))));
    let Machine::Get(get) = &world.tasks[task].machine else { unreachable!("a get") };
    assert_eq!(get.prepared_seen(), [left]);
}

#[test]
fn a_version_that_some_acked_and_some_will_not_stays_undecided() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1, 2], b"two");
    for node in [4, 5, 6] {
        assert!(matches!(world.tell(node, never(&ada, &manifest, node as u8)), Response::Promised { .. }));
    }
    assert_eq!(world.settle(&ada, &manifest), Settled::Undecided { acks: 4, nevers: 0, n: 7 }, "one more acks, and three refuse");
    assert_eq!(answer(&mut world, 0, &ada).prepared.len(), 1, "nothing was proven, so nothing is dropped");
    assert_eq!(world.get(&ada, Mode::Regular).expect("read").content, b"one");
    // Whoever is silent may have acked it, and nobody is made to promise what would be in vain.
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1], b"three");
    for node in 2..5 {
        world.crash(node);
    }
    let settled = world.settle(&ada, &manifest);
    assert_eq!(settled, Settled::Undecided { acks: 2, nevers: 0, n: 7 });
    world.net.refuses = false;
    let task = world.start_settle(&ada, &manifest, 80_000);
    world.run_until_ended(task);
    assert!(world.took_us(task) <= 81_000, "no longer than its patience");
}

#[test]
fn where_nobody_may_lie_one_promise_rules_a_version_out() {
    // Three holders, none of whom may lie: a version that two of them acked needs the third.
    let (mut world, mut ada, _) = seven();
    let set = [0, 1, 2];
    world.put(&mut ada, &set, b"one").expect("committed");
    for content in [b"two", b"six", b"ten"] {
        let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1], content);
        assert!(matches!(world.tell(2, never(&ada, &manifest, 2)), Response::Promised { .. }));
        match world.settle(&ada, &manifest) {
            Settled::Aborted(aborted) => assert_eq!(aborted.nevers.len(), 1),
            other => panic!("{other:?}"),
        }
        world.run_ms(100);
    }
    world.put(&mut ada, &set, b"four").expect("all three have a place for it");
}

#[test]
fn words_that_do_not_verify_settle_nothing() {
    for acked in [&[0, 1, 2, 3, 4, 5, 6][..], &[]] {
        let (mut world, mut ada, set) = seven();
        world.put(&mut ada, &set, b"one").expect("committed");
        let manifest = crash_writer_after(&mut world, &mut ada, &set, acked, b"two");
        for node in 0..3 {
            world.nodes[node].lie = Some(Lie::BadAck);
        }
        let task = world.start_settle(&ada, &manifest, 2_000_000);
        world.run_until_ended(task);
        // Over as soon as the three have answered: two of the others have promised by then.
        let (acks, nevers) = if acked.is_empty() { (0, 2) } else { (4, 0) };
        assert_eq!(world.tasks[task].settled, Some(Settled::Undecided { acks, nevers, n: 7 }));
        assert!(world.took_us(task) < 100_000, "nobody is left to wait for");
    }
}

#[test]
fn a_version_below_a_certified_one_is_superseded() {
    let (mut world, mut ada, set) = seven();
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1], b"one");
    let receipt = world.put(&mut ada, &set, b"two").expect("committed");
    match world.settle(&ada, &manifest) {
        Settled::Superseded(head) => assert_eq!(head.manifest, receipt.head.manifest),
        other => panic!("{other:?}"),
    }
    match world.settle(&ada, &receipt.head.manifest) {
        Settled::Certified(head) => assert_eq!(head.manifest, receipt.head.manifest),
        other => panic!("{other:?}"),
    }
    // Where it is certified, not even an abort certificate drops it: more than f have lied.
    let lie = certificate(&world, &receipt.head.manifest);
    match world.tell(0, abort(&lie)) {
        Response::Superseded { head } => assert_eq!(head.manifest, *receipt.head.manifest.wire()),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.shards_on_disk(&receipt.head.manifest), 7);
}

#[test]
fn only_the_owner_gives_a_version_up_and_only_in_time() {
    let (mut world, mut ada, set) = seven();
    let eve = world.owner("eve", Class::Relationship, 3, HOUR_MS);
    let (task, other) = (ada.write(&world, &set, b"one"), ada.write(&world, &set, b"two"));
    let ask = |order, index| Request::Never { manifest: task.manifest.wire().clone(), index, order };
    let sound = task.manifest.order_never(&ada.signer);
    let refused = |reason| Response::Refused { reason };
    let cases = [
        (ask(task.manifest.order_never(&eve.signer), 0), refused(Refusal::BadOrder)),
        (ask(other.manifest.order_never(&ada.signer), 0), refused(Refusal::BadOrder)),
        (ask(task.manifest.wire().signature, 0), refused(Refusal::BadOrder)),
        (ask(sound, 1), refused(Refusal::NotAHolder)),
        (ask(sound, 200), refused(Refusal::NotAHolder)),
        (
            Request::Never { manifest: ManifestWire { body: vec![1], ..task.manifest.wire().clone() }, index: 0, order: sound },
            refused(Refusal::BadManifest),
        ),
    ];
    for (request, response) in cases {
        assert_eq!(world.tell(0, request), response);
    }
    assert_eq!(world.holder(0).stats(), HolderStats::default());
    assert!(matches!(world.tell(0, prepare(&task, 0)), Response::Acked { .. }), "nothing was promised");
    world.run_ms(2 * HOUR_MS);
    assert_eq!(world.tell(1, ask(sound, 1)), refused(Refusal::Expired));
}

#[test]
fn an_abort_certificate_that_does_not_verify_drops_nothing() {
    let (mut world, mut ada, set) = seven();
    let manifest = crash_writer_after(&mut world, &mut ada, &set, &[0, 1], b"one");
    let sound = certificate(&world, &manifest).to_wire();
    let refused = |reason| Response::Refused { reason };
    let mut short = sound.clone();
    short.nevers.pop();
    let mut doubled = sound.clone();
    doubled.nevers[1] = doubled.nevers[0].clone();
    let mut unsigned = sound.clone();
    unsigned.manifest.signature.0[0] ^= 1;
    let acks = AbortWire { nevers: vec![answer(&mut world, 0, &ada).prepared.remove(0).ack; 5], ..sound.clone() };
    for (aborted, reason) in [
        (short, Refusal::BadCertificate),
        (doubled, Refusal::BadCertificate),
        (acks, Refusal::BadCertificate),
        (unsigned, Refusal::BadManifest),
    ] {
        assert_eq!(world.tell(0, Request::Abort { aborted }), refused(reason));
    }
    assert_eq!(answer(&mut world, 0, &ada).prepared.len(), 1);
    assert_eq!(world.tell(0, Request::Abort { aborted: sound.clone() }), Response::Aborted);
    assert_eq!(answer(&mut world, 0, &ada).prepared, []);
    assert_eq!(world.tell(0, Request::Abort { aborted: sound }), Response::Aborted, "and again");
    assert_eq!(world.tell(0, never(&ada, &manifest, 0)), refused(Refusal::Aborted), "it acked it once: that it cannot promise");
}

#[test]
fn a_holder_that_acked_another_manifest_of_the_version_shows_it() {
    let (mut world, mut ada, set) = seven();
    let mut twin = ada.clone();
    let mine = crash_writer_after(&mut world, &mut ada, &set, &[0], b"one");
    let other = twin.write(&world, &set, b"another one").manifest;
    assert_eq!(mine.version, other.version);
    match world.tell(0, never(&ada, &other, 0)) {
        Response::Prepared(PreparedWire { manifest, ack }) => {
            assert_eq!(manifest, *mine.wire());
            assert!(ack.verify(&mine.ack_leaf(0), &world.nodes[0].key, &world.verifier));
        }
        response => panic!("{response:?}"),
    }
    let aborted = certificate(&world, &other);
    assert_eq!(world.tell(0, abort(&aborted)), Response::Conflict { manifest: mine.wire().clone() });
    assert_eq!(answer(&mut world, 0, &ada).prepared.len(), 1);
}

#[test]
fn a_promise_is_durable_before_it_is_given_and_at_once_in_force() {
    let (mut world, mut ada, set) = seven();
    let task = ada.write(&world, &set, b"one");
    let Node { holder, signer, key: peer, .. } = &mut world.nodes[0];
    let holder = holder.as_mut().expect("up");
    let ask = never(&ada, &task.manifest, 0);
    let outs = holder.handle(CallId(1), *peer, ask.clone(), world.now, signer, &world.verifier);
    let [HolderOut::Persist { id, .. }] = outs.as_slice() else { panic!("{outs:?}") };
    assert_eq!(holder.handle(CallId(2), *peer, ask, world.now, signer, &world.verifier), [], "it waits for the same batch");
    let outs = holder.handle(CallId(3), *peer, prepare(&task, 0), world.now, signer, &world.verifier);
    let refused = Response::Refused { reason: Refusal::Aborted };
    assert_eq!(outs, [HolderOut::Reply { call: CallId(3), response: refused }], "an ack and a promise must never be out both");
    let outs = holder.persisted(&[*id], world.now, signer);
    let promised = |out: &HolderOut| match out {
        HolderOut::Reply { response: Response::Promised { never }, .. } => {
            never.verify(&task.manifest.never_leaf(0), peer, &world.verifier)
        }
        _ => false,
    };
    assert_eq!((outs.len(), outs.iter().filter(|out| promised(out)).count()), (2, 2));
    // The other way round: an ack that is on its way to the disk is what it answers with.
    let task = ada.write(&world, &set, b"two");
    let Node { holder, signer, key: peer, .. } = &mut world.nodes[1];
    let holder = holder.as_mut().expect("up");
    let outs = holder.handle(CallId(4), *peer, prepare(&task, 1), world.now, signer, &world.verifier);
    let [HolderOut::Persist { id, .. }] = outs.as_slice() else { panic!("{outs:?}") };
    assert_eq!(holder.handle(CallId(5), *peer, never(&ada, &task.manifest, 1), world.now, signer, &world.verifier), []);
    let outs = holder.persisted(&[*id], world.now, signer);
    assert!(matches!(&outs[..], [_, HolderOut::Reply { call: CallId(5), response: Response::Prepared(_) }]), "{outs:?}");
}

#[test]
fn what_is_given_up_is_remembered_within_bounds() {
    let (mut world, mut ada, set) = seven();
    world.put(&mut ada, &set, b"one").expect("committed");
    for number in 0..70 {
        let task = ada.write(&world, &set, b"never mind");
        let said = world.tell(0, never(&ada, &task.manifest, 0));
        assert_eq!(matches!(said, Response::Promised { .. }), number < 64, "{number}: {said:?}");
        assert!(number < 64 || said == Response::Busy);
        let aborted = certificate(&world, &task.manifest);
        assert_eq!(world.tell(1, abort(&aborted)), Response::Aborted);
        assert_eq!(world.tell(9, abort(&aborted)), Response::Aborted, "no holder: nothing to remember");
    }
    assert_eq!((world.records(0, Table::Prepared), world.records(1, Table::Prepared)), (65, 65));
    assert_eq!(world.holder(9).stats(), HolderStats::default());
    world.run_ms(2 * HOUR_MS);
    assert_eq!(world.holder(0).stats(), HolderStats::default());
}

#[test]
fn a_takeover_settles_what_the_old_host_left() {
    // Two of seven acked it: it can be aborted, whoever is silent.
    let (mut world, mut old, set) = seven();
    world.put(&mut old, &set, b"one").expect("committed");
    let left = crash_writer_after(&mut world, &mut old, &set, &[0, 1], b"left behind");
    let (_, mut new, value) = take_over(&mut world, &old, &set);
    assert_eq!((value.content.as_slice(), &value.prepared_seen[..]), (&b"one"[..], std::slice::from_ref(&left)));
    assert!(matches!(world.settle_taken_over(&new, &left), Settled::Aborted(_)));
    assert_eq!(world.records(0, Table::Prepared), world.records(2, Table::Prepared));
    world.put(&mut new, &set, b"new host").expect("committed");

    // Five acked it, and two of those were slow when the section was read: it is completed, and read again.
    let (mut world, mut old, set) = seven();
    world.put(&mut old, &set, b"one").expect("committed");
    let left = crash_writer_after(&mut world, &mut old, &set, &[0, 1, 2, 3, 4], b"left behind");
    let mut card = old.also("card", Class::Core, 2, 9);
    let fence = head_of(&world.put(&mut card, &[8, 9, 10, 11, 12, 13, 14], b"card of term 2").expect("certified"));
    let task = GetTask { fence: Some(fence), ..world.get_task(&old, Mode::Atomic) };
    let get = world.start_get_blocked(task.clone(), BTreeSet::from([0, 1]));
    world.run_until_ended(get);
    let value = world.tasks[get].get.clone().expect("ended").expect("read");
    assert_eq!((value.content.as_slice(), &value.prepared_seen[..]), (&b"one"[..], std::slice::from_ref(&left)));
    let new = old.also("notes", Class::Relationship, 2, 9);
    assert!(matches!(world.settle_taken_over(&new, &left), Settled::Certified(_)));
    assert_eq!(world.finish_get(task).expect("read").content, b"left behind");
}

#[test]
fn who_lost_its_store_neither_promises_what_it_may_have_acked_nor_acks_what_it_may_have_given_up() {
    let mut world = World::new(1, 8);
    let mut ada = world.owner("ada", Class::Document, 2, HOUR_MS);
    let set = [0, 1, 2, 3];
    world.put(&mut ada, &set, b"one").expect("committed");
    let acked = crash_writer_after(&mut world, &mut ada, &set, &[0], b"two");
    let promised = ada.write(&world, &set, b"three");
    assert!(matches!(world.tell(0, never(&ada, &promised.manifest, 0)), Response::Promised { .. }));
    world.lose_store(0);
    for _ in 0..2 {
        assert_eq!(world.tell(0, never(&ada, &acked, 0)), Response::Recovering);
        assert_eq!(world.tell(0, prepare(&promised, 0)), Response::Recovering);
        world.run_ms(12_000); // in between, the key is recovered
    }
    assert!(answer(&mut world, 0, &ada).committed.is_some());
    assert_eq!(world.settle(&ada, &acked), Settled::Aborted(Box::new(aborted_by(&world, &acked, &[1, 2, 3]))));
    world.run_ms(12_000);
    let fresh = ada.write(&world, &set, b"four");
    assert!(matches!(world.tell(0, never(&ada, &fresh.manifest, 0)), Response::Promised { .. }), "that it cannot have seen");
}

fn aborted_by(world: &World, manifest: &SignedManifest, nodes: &[usize]) -> AbortedVersion {
    let mut all = certificate(world, manifest);
    let never = |node: &usize| {
        let index = manifest.index_of(&world.nodes[*node].key).expect("a holder");
        sign_batch(&[manifest.never_leaf(index)], &world.nodes[*node].signer).remove(0)
    };
    all.nevers = nodes.iter().map(never).collect();
    all
}

/// A put and its settlement race each other, nodes crash and up to f lie: never both a certificate and an abort certificate.
#[test]
fn no_version_is_both_certified_and_aborted() {
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..600 {
        let mut world = World::new(seed, 8);
        world.net = Net { delay_us: (200, 30_000), lost_permille: 60, doubled_permille: 100, refuses: seed % 2 == 0 };
        let (level, count, f) = if seed % 3 == 0 { (3, 7, 2) } else { (2, 4, 1) };
        let mut ada = world.owner("ada", Class::Document, level, HOUR_MS);
        let set: Vec<usize> = (0..count).collect();
        for _ in 0..world.below(f + 1) {
            let (node, lie) = (world.below(count as u64) as usize, LIES[world.below(LIES.len() as u64) as usize]);
            world.nodes[node].lie = Some(lie);
        }
        let task = ada.write(&world, &set, b"be kind");
        let manifest = task.manifest.clone();
        // Half of the time few of its requests get through at first, and the rest come beside the question who acked it, and the promises.
        let late = seed % 4 < 2;
        let lost_permille = std::mem::replace(&mut world.net.lost_permille, if late { 800 } else { 60 });
        let put = world.start_put(task);
        let head_start = if late { 640 + world.below(80) } else { world.below(60) };
        world.run_ms(head_start);
        world.net.lost_permille = lost_permille;
        let settle = world.start_settle_with(&ada, &manifest, 2_000_000, seed % 5 > 0);
        for _ in 0..world.below(4) {
            let (node, pause) = (world.below(count as u64) as usize, 1 + world.below(30));
            world.crash(node);
            world.run_ms(pause);
            world.restart(node);
        }
        world.run_until_ended(put);
        world.run_until_ended(settle);
        let put = world.tasks[put].put.clone().expect("ended");
        let certified = matches!(put, Ok(_) | Err(PutError::Unconfirmed { .. }));
        let settled = world.tasks[settle].settled.clone().expect("ended");
        assert_eq!(world.evidence, [], "seed {seed}: an honest owner is accused");
        let outcome = match settled {
            Settled::Aborted(aborted) => {
                assert_eq!(AbortedVersion::verify(aborted.to_wire(), &world.verifier), Ok(*aborted));
                assert!(!certified, "seed {seed}: aborted, and {put:?}");
                "aborted"
            }
            Settled::Certified(head) => {
                assert_eq!(CertifiedHead::verify(head.to_wire(), &world.verifier), Ok(*head));
                "certified"
            }
            Settled::Undecided { .. } if certified => "certified, not found so",
            Settled::Undecided { .. } => "undecided",
            Settled::Superseded(_) => panic!("seed {seed}: there is only one"),
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    println!("{outcomes:?}");
    for outcome in ["aborted", "certified", "undecided"] {
        assert!(outcomes.get(outcome).is_some_and(|count| *count > 30), "{outcomes:?}");
    }
}
