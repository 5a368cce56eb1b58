//! Owners' keys that sign two manifests of one version (docs/spec/quorum.md#versions).

use persona_fragments::Equivocation;
use persona_mesh_proto::{GetTask, Mode, Request, Response, Settle, SettleOut, SettleTask};

use super::{
    scenarios::{crash_writer_after, seven},
    *,
};

/// Two manifests of one version, ada's and her twin's, of which the first is prepared at node 0.
fn twins(committed: bool) -> (World, Owner, PutTask, Equivocation) {
    let (mut world, mut ada, set) = seven();
    let mut twin = ada.clone();
    let mine = if committed {
        world.put(&mut ada, &set, b"one").expect("committed").head.manifest
    } else {
        crash_writer_after(&mut world, &mut ada, &set, &[0], b"one")
    };
    let other = twin.write(&world, &set, b"another one");
    let proof = Equivocation::of(&mine, &other.manifest).expect("two of one version");
    (world, ada, other, proof)
}

fn prepare(task: &PutTask) -> Request {
    Request::Prepare { manifest: task.manifest.wire().clone(), index: 0, shard: Some(task.shards[0].clone()) }
}

/// The certified head, or the abort certificate, of something that its holders never heard of.
fn out_of_thin_air(world: &World, manifest: &SignedManifest, kind: persona_fragments::AckKind) -> BTreeMap<u8, persona_fragments::Ack> {
    let sign = |(index, peer): (usize, &PeerKey)| {
        let leaf = persona_fragments::AckLeaf { kind, ..manifest.ack_leaf(index as u8) };
        let leaf = if kind == persona_fragments::AckKind::Never { manifest.never_leaf(index as u8) } else { leaf };
        (index as u8, sign_batch(&[leaf], &world.nodes[world.node_of(peer)].signer).remove(0))
    };
    manifest.holders.iter().enumerate().map(sign).collect()
}

#[test]
fn a_holder_that_is_shown_a_second_manifest_tells_of_both() {
    for committed in [false, true] {
        let (mut world, ada, other, proof) = twins(committed);
        let manifest = &other.manifest;
        let acks = out_of_thin_air(&world, manifest, persona_fragments::AckKind::Ack);
        let head =
            CertifiedHead { manifest: manifest.clone(), certificate: Certificate::assemble(manifest, &acks).expect("acks"), lease: None };
        let nevers = out_of_thin_air(&world, manifest, persona_fragments::AckKind::Never);
        let aborted = persona_fragments::AbortedVersion::assemble(manifest, &nevers).expect("promises");
        let never = Request::Never { manifest: manifest.wire().clone(), index: 0, order: manifest.order_never(&ada.signer) };
        for request in [prepare(&other), never, Request::Abort { aborted: aborted.to_wire() }, Request::Commit { head: head.to_wire() }] {
            world.evidence.clear();
            world.tell(0, request.clone());
            assert_eq!(world.evidence, [(0, proof.clone())], "{request:?}");
        }
    }
}

#[test]
fn whoever_only_remembers_a_hash_proves_nothing_and_nobody_is_accused_for_the_same_again() {
    let (mut world, mut ada, set) = seven();
    let mut twin = ada.clone();
    let task = ada.write(&world, &set, b"one");
    world.finish_put(&mut ada, task.clone()).expect("committed");
    for _ in 0..2 {
        world.tell(0, prepare(&task));
    }
    world.put(&mut ada, &set, b"two").expect("committed");
    world.run_ms(20_000); // of the first version only a floor is left
    let other = twin.write(&world, &set, b"another one");
    assert!(matches!(world.tell(0, prepare(&other)), Response::Refused { .. }));
    assert_eq!(world.evidence, []);
}

#[test]
fn a_reader_that_sees_two_certified_manifests_of_one_version_prefers_one_and_keeps_both() {
    let (mut world, mut ada, set) = seven();
    let mut twin = ada.clone();
    let one = world.put(&mut ada, &set, b"one").expect("committed").head.manifest;
    let other = world.put(&mut twin, &[7, 8, 9, 10, 11, 12, 13], b"another one").expect("elsewhere").head.manifest;
    let proof = Equivocation::of(&one, &other).expect("two of one version");
    let preferred = if one.hash() > other.hash() { &one } else { &other };
    for mode in [Mode::Regular, Mode::Atomic] {
        let task = world.start_get(world.get_task(&ada, mode));
        world.run_until_ended(task);
        let value = world.tasks[task].get.clone().expect("ended").expect("read");
        assert_eq!(value.head.manifest, *preferred);
        let Machine::Get(get) = &mut world.tasks[task].machine else { unreachable!("a get") };
        assert_eq!(get.take_evidence().as_deref(), Some(&proof));
        assert_eq!(get.take_evidence(), None, "once");
    }
    // Also beside one that is only prepared, and with the other in a cache.
    let (mut world, ada, other, proof) = twins(false);
    let known = out_of_thin_air(&world, &other.manifest, persona_fragments::AckKind::Ack);
    let certificate = Certificate::assemble(&other.manifest, &known).expect("acks");
    let known = Some(CertifiedHead { manifest: other.manifest.clone(), certificate, lease: None });
    let task = world.start_get(GetTask { known, want_content: false, ..world.get_task(&ada, Mode::Regular) });
    world.run_until_ended(task);
    let Machine::Get(get) = &mut world.tasks[task].machine else { unreachable!("a get") };
    assert_eq!(get.take_evidence().as_deref(), Some(&proof));
}

#[test]
fn who_gives_a_version_up_is_shown_what_else_was_signed() {
    let (mut world, ada, other, proof) = twins(false);
    let task =
        SettleTask { order: other.manifest.order_never(&ada.signer), manifest: other.manifest, patience_us: 1_000_000, completes: true };
    let (mut settle, outs) = Settle::start(task, world.now);
    for out in outs {
        let SettleOut::Send { tag, to, request } = out else { panic!("{out:?}") };
        let node = world.node_of(&to);
        let answer = world.tell(node, request);
        settle.reply(tag, Reply::Answer(answer), world.now, &world.verifier);
    }
    assert_eq!(settle.take_evidence().as_deref(), Some(&proof));
}
