//! What holds for every shape, every subset and every bit. Where the whole space is small enough it is walked, not sampled.

mod common;

use std::collections::BTreeSet;

use common::*;
use persona_fragments::{
    AckKind, AckLeaf, CertifiedHead, Class, DeviceId, Digest, Ed25519Verifier, EpochKey, Fields, Manifest, OlderSet, OwnerKey, PeerKey,
    ReconstructError, SectionKey, Shape, SignedManifest, Version,
    certificate::HeadWire,
    coding, encode, reconstruct, seal,
    wire::{self, Decode, Encode},
};
use proptest::prelude::*;

/// Every shape that any level gives with any number of holders.
fn shapes() -> BTreeSet<(u8, u8, u8, u8)> {
    let all = (1..=10).flat_map(|level| (1..=16).map(move |usable| (level, Shape::for_level(level, usable).expect("holders"))));
    all.map(|(level, shape)| (shape.n(), shape.k(), shape.f(), level)).collect()
}

fn shape(level: u8, n: u8) -> Shape {
    Shape::for_level(level, n.into()).expect("holders")
}

#[test]
fn any_k_of_n_shards_reconstruct_for_every_level_and_number_of_holders() {
    for (n, k, _, level) in shapes() {
        let subsets = subsets(n.into(), k.into());
        for len in BTreeSet::from([1, usize::from(k).max(2) - 1, k.into(), usize::from(k) + 1, 64]) {
            let content = bytes(len, n);
            let shards = encode(&content, shape(level, n)).expect("content");
            let manifest = manifest_of(&content, &shards, shape(level, n), level);
            for subset in &subsets {
                let held = indexed(&shards, subset.iter().copied());
                assert_eq!(reconstruct(&manifest, &held).as_ref(), Ok(&content), "{subset:?} of ({k}, {n}), {len} bytes");
            }
            let one_less = indexed(&shards, subsets[0][1..].iter().copied());
            assert_eq!(reconstruct(&manifest, &one_less), Err(ReconstructError::TooFew { have: k - 1, need: k }));
        }
    }
}

/// The verdict on a manifest belongs to the manifest: no reader may get bytes where another is told `Poisoned`.
#[test]
fn poisoned_whichever_shards_are_used() {
    for (level, n) in [(2, 4), (3, 7), (5, 10), (5, 4)] {
        let shape = shape(level, n);
        let content = bytes(50, 1);
        let honest = encode(&content, shape).expect("content");
        let subsets = subsets(n.into(), shape.k().into());
        let same_for_all = |manifest: &Manifest, shards: &[Vec<u8>], expected: Result<Vec<u8>, ReconstructError>| {
            for subset in &subsets {
                assert_eq!(reconstruct(manifest, &indexed(shards, subset.iter().copied())), expected, "{subset:?} of {n}");
            }
        };
        same_for_all(&manifest_of(&content, &honest, shape, level), &honest, Ok(content.clone()));

        for altered in 0..honest.len() {
            let mut shards = honest.clone();
            shards[altered][0] ^= 0x80;
            same_for_all(&manifest_of(&content, &shards, shape, level), &shards, Err(ReconstructError::Poisoned));
        }
        let other_hash = Manifest { content_hash: digest(1), ..manifest_of(&content, &honest, shape, level) };
        same_for_all(&other_hash, &honest, Err(ReconstructError::Poisoned));

        // A true codeword of content that goes on in what the manifest calls padding.
        let shard_len = content.len().div_ceil(shape.k().into());
        let full = bytes(shard_len * usize::from(shape.k()), 2);
        let shards = encode(&full, shape).expect("content");
        let short = &full[..full.len() - 1];
        if short.len().div_ceil(shape.k().into()) == shard_len {
            same_for_all(&manifest_of(short, &shards, shape, level), &shards, Err(ReconstructError::Poisoned));
        }
    }
}

#[test]
fn every_single_bit_change_of_a_certified_head_is_refused() {
    for (level, usable) in [(2, 4), (1, 1)] {
        let stored = sealed_in(&context());
        let mut manifest = section(&stored, level, usable).0;
        manifest.renew_until_ms = NEW_YEAR_MS + 1;
        manifest.older =
            vec![OlderSet { version: version(6), holders: vec![holder_key(9)], expires_at_ms: NEW_YEAR_MS + 500, renew_until_ms: 0 }];
        let head = head(manifest);
        let bytes = head.to_bytes();
        assert_eq!(CertifiedHead::from_bytes(&bytes, &Ed25519Verifier).as_ref(), Ok(&head));
        for bit in 0..bytes.len() * 8 {
            let verdict = CertifiedHead::from_bytes(&flipped(&bytes, bit), &Ed25519Verifier);
            assert!(verdict.is_err(), "bit {} of byte {} of {}", bit % 8, bit / 8, bytes.len());
        }
    }
}

#[test]
fn every_single_bit_change_of_a_sealed_section_is_refused() {
    let stored = sealed_in(&context());
    let content_hash = coding::content_hash(&stored);
    for bit in 0..stored.len() * 8 {
        let altered = flipped(&stored, bit);
        assert!(seal::open(&altered, &recovery_key(), &context()).is_err(), "bit {} of byte {} of {}", bit % 8, bit / 8, stored.len());
        assert_ne!(coding::content_hash(&altered), content_hash);
    }
}

#[test]
fn every_single_bit_change_of_a_shard_is_refused() {
    let content = sealed_in(&context());
    for (level, usable) in [(5, 10), (2, 4), (1, 1)] {
        let (manifest, shards) = section(&content, level, usable);
        let k = manifest.shape.k();
        for index in [0, shards.len() - 1] {
            let others = indexed(&shards, (0..shards.len()).filter(|other| *other != index).take(usize::from(k) - 1));
            for bit in 0..shards[index].len() * 8 {
                let altered = flipped(&shards[index], bit);
                assert!(!coding::shard_matches(&manifest, index as u8, &altered));
                let mut held = others.clone();
                held.insert(index as u8, altered);
                assert_eq!(reconstruct(&manifest, &held), Err(ReconstructError::TooFew { have: k - 1, need: k }), "bit {bit}");
            }
        }
    }
}

fn round_trip<T: Encode + Decode<()> + PartialEq + std::fmt::Debug>(value: &T) {
    let frame = wire::encode(value);
    assert_eq!(wire::decode::<T>(&frame).as_ref(), Ok(value));
    assert_eq!(wire::decode::<T>(&[frame, vec![0]].concat()), Err(wire::DecodeError::Trailing(1)));
}

prop_compose! {
    fn versions()(term in any::<u64>(), device in any::<[u8; 32]>(), seq in any::<u64>()) -> Version {
        Version { term, device: DeviceId(device), seq }
    }
}

prop_compose! {
    fn older_sets()(version in versions(), holders in prop::collection::vec(any::<[u8; 32]>(), 0..20), expires_at_ms in any::<u64>(), renew_until_ms in any::<u64>()) -> OlderSet {
        OlderSet { version, holders: holders.into_iter().map(PeerKey).collect(), expires_at_ms, renew_until_ms }
    }
}

prop_compose! {
    /// Any manifest, sound or not: what the encoding must carry.
    fn manifests()(
        (key, owner, name) in (any::<[u8; 32]>(), any::<[u8; 32]>(), prop::collection::vec(any::<u8>(), 0..100)),
        (version, content_version) in (versions(), versions()),
        (class, level, usable) in (0..4_usize, any::<u8>(), 1..30_usize),
        (issued_at_ms, ttl_ms, renew_until_ms) in (any::<u64>(), 0..1_000_000_u64, any::<u64>()),
        (content_len, content_hash) in (any::<u32>(), any::<[u8; 32]>()),
        (shard_hashes, holders) in (prop::collection::vec(any::<[u8; 32]>(), 0..20), prop::collection::vec(any::<[u8; 32]>(), 0..20)),
        older in prop::collection::vec(older_sets(), 0..4),
    ) -> Manifest {
        Manifest {
            key: SectionKey(key),
            owner: OwnerKey(owner),
            name,
            version,
            content_version,
            class: Class::ALL[class],
            level,
            issued_at_ms,
            ttl_ms,
            renew_until_ms,
            content_len,
            shape: Shape::for_level(level, usable).expect("holders"),
            content_hash: Digest(content_hash),
            shard_hashes: shard_hashes.into_iter().map(Digest).collect(),
            holders: holders.into_iter().map(PeerKey).collect(),
            older,
        }
    }
}

/// A manifest for wincode, which nobody told about our types: plain numbers, arrays and tuples, in the order of docs/spec/manifest.md.
type OracleVersion = (u64, [u8; 32], u64);
type OracleManifest = (
    (u8, [u8; 32], [u8; 32], Vec<u8>, OracleVersion, OracleVersion, u32, u8, u64, u64, u64, u32),
    ((u8, u8, u8), [u8; 32], Vec<[u8; 32]>, Vec<[u8; 32]>, Vec<(OracleVersion, Vec<[u8; 32]>, u64)>),
);

fn for_the_oracle(it: &Manifest) -> OracleManifest {
    let version = |version: &Version| (version.term, version.device.0, version.seq);
    let peers = |peers: &[PeerKey]| peers.iter().map(|peer| peer.0).collect::<Vec<_>>();
    let older = |set: &OlderSet| (version(&set.version), peers(&set.holders), set.expires_at_ms);
    (
        (
            wire::WIRE_VERSION,
            it.key.0,
            it.owner.0,
            it.name.clone(),
            version(&it.version),
            version(&it.content_version),
            it.class as u32,
            it.level,
            it.issued_at_ms,
            it.ttl_ms,
            it.renew_until_ms,
            it.content_len,
        ),
        (
            (it.shape.n(), it.shape.k(), it.shape.f()),
            it.content_hash.0,
            it.shard_hashes.iter().map(|hash| hash.0).collect(),
            peers(&it.holders),
            it.older.iter().map(older).collect(),
        ),
    )
}

fn oracle() -> impl wincode::config::Config + Copy {
    wincode::config::Configuration::default().with_varint_encoding()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_manifest_survives_the_wire(manifest in manifests()) {
        round_trip(&manifest);
    }

    /// Another crate, written by other people, reads and writes the very same bytes.
    #[test]
    fn wincode_agrees_on_every_manifest(manifest in manifests()) {
        let frame = wire::encode(&manifest);
        let same = for_the_oracle(&manifest);
        prop_assert_eq!(&wincode::config::serialize(&same, oracle()).expect("memory"), &frame);
        prop_assert_eq!(wincode::config::deserialize_exact::<OracleManifest, _>(&frame, oracle()).expect("our frame"), same);
    }

    #[test]
    fn what_is_signed_verifies_and_survives_the_wire(level in 1..=10_u8, usable in 1..=16_usize, content in prop::collection::vec(any::<u8>(), 1..400)) {
        let head = head(section(&content, level, usable).0);
        round_trip(&head.to_wire());
        prop_assert_eq!(CertifiedHead::from_bytes(&head.to_bytes(), &Ed25519Verifier), Ok(head.clone()));
        prop_assert_eq!(SignedManifest::verify(head.manifest.wire().clone(), &Ed25519Verifier), Ok(head.manifest));
    }

    #[test]
    fn an_ack_leaf_survives_the_wire(kind in 0..3_usize, version in versions(), index in any::<u8>(), generation in any::<u32>()) {
        let kind = [AckKind::Ack, AckKind::Never, AckKind::Handover, AckKind::Consent][kind];
        round_trip(&AckLeaf { kind, key: SectionKey([1; 32]), version, manifest_hash: digest(2), index, generation });
    }

    #[test]
    fn what_is_sealed_encoded_lost_in_part_and_reconstructed_opens(
        names in prop::collection::btree_map("[a-z/]{0,20}", prop::collection::vec(any::<u8>(), 0..300), 0..12),
        (level, usable, lost, seed) in (1..=10_u8, 1..=16_usize, any::<u64>(), any::<u8>()),
    ) {
        let fields = names.iter().fold(Fields::new(), |fields, (name, value)| fields.with(name, value.clone()));
        let key = EpochKey::generate(1, &mut rng(seed));
        let stored = seal::seal(&fields, &key, &recovery_key(), &context(), &mut rng(!seed)).expect("small");
        let (manifest, shards) = section(&stored, level, usable);
        let (n, k) = (usize::from(manifest.shape.n()), usize::from(manifest.shape.k()));
        let mut left: Vec<usize> = (0..n).collect();
        left.rotate_left(lost as usize % n);
        left.truncate(k);
        let back = reconstruct(&manifest, &indexed(&shards, left)).expect("k shards");
        let (same_key, same_fields) = seal::open(&back, &recovery_key(), &context()).expect("ours");
        prop_assert_eq!(same_fields, fields);
        prop_assert_eq!(same_key, key);
    }

    #[test]
    fn noise_never_panics_and_what_decodes_is_canonical(noise in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(251), any::<u8>()], 0..600)) {
        let frame = [vec![wire::WIRE_VERSION], noise].concat();
        if let Ok(value) = wire::decode::<HeadWire>(&frame) {
            prop_assert_eq!(wire::encode(&value), frame.clone());
        }
        if let Ok(value) = wire::decode::<Stored>(&frame) {
            prop_assert_eq!(wire::encode(&value), frame.clone());
        }
        prop_assert!(CertifiedHead::from_bytes(&frame, &Ed25519Verifier).is_err());
        prop_assert!(seal::open(&frame, &recovery_key(), &context()).is_err());
    }

    /// Bytes that were true once and then damaged: overwritten, cut, lengthened.
    #[test]
    fn a_damaged_head_never_panics_and_never_verifies(at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..12), cut in any::<bool>()) {
        let whole = head(section(b"be kind", 2, 4).0).to_bytes();
        let at = at.index(whole.len());
        let tail = if cut { whole.len() } else { (at + with.len()).min(whole.len()) };
        let damaged = [&whole[..at], &with, &whole[tail..]].concat();
        prop_assert_eq!(CertifiedHead::from_bytes(&damaged, &Ed25519Verifier).is_ok(), damaged == whole);
    }
}
