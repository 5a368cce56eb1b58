//! A disk that was set back unnoticed signs a version twice: that is seen, proven, and shown.

use persona_core::{Answer, Call, Input};
use persona_fragments::{
    Class, Ed25519Signer, Ed25519Verifier, Equivocation, Manifest, OwnerKey, PeerKey, SectionKey, Shape, SignedManifest, Signer, Version,
    coding::{content_hash, encode, shard_hashes},
};
use persona_mesh_proto::{Mode, Request, RequestFrame, Table};

use crate::World;

#[test]
fn a_version_that_was_signed_twice_is_alarmed_kept_and_shown_by_everybody_who_saw_both() {
    let mut world = World::of(9, 601);
    world.watch.twins_allowed = true;
    let ada = world.create(0, "ada");
    let first = world.put(0, ada, "doc/letter", b"first").expect("it commits");
    world.run_s(2);
    let before = world.hosts[0].disk.clone();
    world.put(0, ada, "doc/letter", b"second").expect("it commits");
    world.run_s(2);
    world.crash(0);
    world.hosts[0].disk = before;
    world.restart(0);
    world.run_s(5); // its renewal is what was signed already, in other words
    world.put(0, ada, "doc/letter", b"third").expect("it goes past what is taken");
    assert_eq!(world.alarms(0, "equivocation"), 1);
    let holder = world.hosts_named(&first.holders)[0];
    assert_eq!(world.alarms(holder, "equivocation"), 1, "once, though it was shown more than once");

    let key = SectionKey::from_kad_key(&first.kad_key).expect("a key");
    let analyze = |world: &mut World, host: usize, key: SectionKey| match world.ask(host, Call::Analyze { key, mode: Some(Mode::Regular) })
    {
        Ok(Answer::Analysis(analysis)) => analysis.equivocation,
        other => panic!("no analysis: {other:?}"),
    };
    for host in [0, holder] {
        let shown = analyze(&mut world, host, key).expect("it is known");
        assert_eq!(shown.kad_key, first.kad_key);
        let proof = data_encoding::BASE64.decode(shown.proof.as_bytes()).expect("base64");
        let proof = Equivocation::from_bytes(&proof, &Ed25519Verifier).expect("checked with nothing but the bytes");
        assert_eq!(proof.manifests().map(|manifest| manifest.hash().to_hex()), shown.manifest_hashes);
        assert_eq!(proof.manifests()[0].owner, ada);
        world.crash(host);
        world.restart(host);
        assert_eq!(analyze(&mut world, host, key), Some(shown.clone()), "for good");
        // Of every section of that owner.
        let card = SectionKey::derive(&ada, b"card");
        assert_eq!(analyze(&mut world, host, card), Some(shown));
    }
    let bob = world.create(1, "bob");
    assert_eq!(analyze(&mut world, 0, SectionKey::derive(&bob, b"card")), None);
}

/// The first put of a stranger's card at one holder alone.
pub(crate) fn lone_card(owner: &Ed25519Signer, holder: PeerKey, issued_at_ms: u64, content: &[u8]) -> Request {
    let key = OwnerKey(owner.public_key());
    let shape = Shape::for_level(1, 1).expect("one holder");
    let shards = encode(content, shape).expect("content");
    let version = Version { term: 1, device: holder.device(), seq: 1 };
    let manifest = Manifest {
        key: SectionKey::derive(&key, b"card"),
        owner: key,
        name: b"card".to_vec(),
        version,
        content_version: version,
        class: Class::Core,
        level: 1,
        issued_at_ms,
        ttl_ms: 3_600_000,
        renew_until_ms: 0,
        content_len: content.len() as u32,
        shape,
        content_hash: content_hash(content),
        shard_hashes: shard_hashes(&shards),
        holders: vec![holder],
        older: Vec::new(),
    };
    let manifest = SignedManifest::sign(manifest, owner).expect("sound");
    Request::Prepare { manifest: manifest.wire().clone(), index: 0, shard: Some(shards[0].clone()) }
}

#[test]
fn proofs_are_kept_within_bounds() {
    let mut world = World::of(2, 602);
    world.watch.twins_allowed = true;
    let (me, from) = (world.hosts[0].peer, world.hosts[1].peer);
    for number in 0..1_030_u32 {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&number.to_le_bytes());
        let owner = Ed25519Signer::from_seed(&seed);
        let now_ms = world.now().wall_ms;
        let prepare = |content: &[u8]| lone_card(&owner, me, now_ms, content);
        let frame = RequestFrame { requests: vec![prepare(b"one"), prepare(b"other")] }.to_bytes();
        for again in 0..2 {
            let inbound = (1 << 40) + u64::from(number) * 2 + again;
            world.feed(0, Input::Frame { inbound, from, frame: frame.clone() });
        }
        if number % 100 == 0 {
            world.run_ms(10);
        }
    }
    world.run_ms(100);
    let kept = |world: &World| world.hosts[0].disk.keys().filter(|(table, key)| *table == Table::Meta && key[0] == b'e').count();
    assert_eq!(kept(&world), 1_024);
    let counted = world.status(0).counters["equivocations"];
    assert_eq!(counted, 1_024 + 2 * 6, "each once; those of whom nothing is kept, whenever they are seen");
    world.crash(0);
    world.restart(0);
    assert_eq!(kept(&world), 1_024);
}
