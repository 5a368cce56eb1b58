//! Everything here is wrong in exactly one way, is named after it, and must be refused for that reason.
//!
//! A hostile owner can sign whatever it likes, so most manifests below carry a good signature.

mod common;

use common::*;
use persona_fragments::{
    AbortedVersion, Ack, AckKind, AckLeaf, Certificate, CertificateError, CertifiedHead, Class, CodingError, Ed25519Verifier, EpochKey,
    Equivocation, EquivocationError, Fields, LeaseError, Manifest, ManifestError, OlderSet, OpenError, OwnerKey, PeerKey, ReconstructError,
    RecoveryKey, SECTION_BYTES_MAX, SealContext, SealError, SectionKey, Shape, SignedManifest, Signer, Version,
    ack::ACK_PATH_MAX,
    certificate::HeadWire,
    coding, encode,
    manifest::{NAME_BYTES_MAX, OLDER_SETS_MAX, RENEW_MS_MAX, TIME_MS_MAX, TTL_MS_MAX},
    reconstruct,
    seal::{self, FIELD_NAME_BYTES_MAX, FIELDS_MAX, GRANTS_MAX},
    sign_batch,
    wire::{self, DecodeError, FRAME_BYTES_MAX},
};
use sha2::{Digest as _, Sha256};

/// Each vector is a test: what is tried, and the one error that it must give.
macro_rules! refused {
    ($($name:ident: $attempt:expr => $error:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!($attempt, Err($error));
        }
    )*};
}

mod manifests {
    use ManifestError::{Decode, Key, OutOfBounds, RepeatsHolder, Shape as Unsound, Signature};

    use super::*;

    fn core() -> Manifest {
        section(b"be kind", 5, 10).0
    }

    fn older(seq: u64) -> OlderSet {
        OlderSet { version: version(seq), holders: vec![holder_key(1), holder_key(2)], expires_at_ms: NEW_YEAR_MS, renew_until_ms: 0 }
    }

    fn verified(body: ManifestWire) -> Result<SignedManifest, ManifestError> {
        let verdict = SignedManifest::verify(body.clone(), &Ed25519Verifier);
        if let Err(error) = &verdict
            && *error != Signature
        {
            assert_eq!(SignedManifest::trusted(body).as_ref(), Err(error), "what is refused from others is refused from the disk");
        }
        verdict
    }

    use persona_fragments::manifest::ManifestWire;

    /// A correctly signed manifest with one thing changed.
    fn with(change: impl FnOnce(&mut Manifest)) -> Result<SignedManifest, ManifestError> {
        let mut manifest = core();
        change(&mut manifest);
        let expected = manifest.check();
        assert_eq!(SignedManifest::sign(manifest.clone(), &owner()).err(), expected.clone().err(), "it cannot be signed either");
        verified(sign_anything(&manifest))
    }

    /// A correctly signed body with the three bytes of the shape replaced: such a shape cannot be made in any other way.
    fn with_shape(n: u8, k: u8, f: u8) -> Result<SignedManifest, ManifestError> {
        let core = core();
        let mut body = wire::encode(&core);
        let before = (
            (core.key, core.owner, core.name.clone(), core.version, core.content_version),
            (core.class, core.level, core.issued_at_ms, core.ttl_ms, core.renew_until_ms, core.content_len),
        );
        let at = wire::encode(&before).len();
        assert_eq!(body[at..at + 3], [10, 3, 3]);
        body[at..at + 3].copy_from_slice(&[n, k, f]);
        verified(sign_bytes(body, &owner()))
    }

    fn no_shape(n: u8, k: u8, f: u8) -> ManifestError {
        Decode(DecodeError::Malformed(format!(
            "n={n} k={k} f={f} is no shape: f must be (n-1)/3 and k between 1 and n-2f, with at most 16 holders"
        )))
    }

    fn rekeyed(manifest: &mut Manifest) {
        manifest.key = SectionKey::derive(&manifest.owner, &manifest.name);
    }

    #[test]
    fn the_manifest_that_all_these_start_from_is_accepted() {
        assert_eq!(with(|_| ()).map(|signed| signed.hash()), Ok(SignedManifest::sign(core(), &owner()).expect("sound").hash()));
    }

    #[test]
    fn the_furthest_values_within_bounds_are_accepted() {
        let furthest = with(|it| {
            it.name = vec![0xff; NAME_BYTES_MAX];
            rekeyed(it);
            it.issued_at_ms = TIME_MS_MAX;
            it.ttl_ms = TTL_MS_MAX;
            it.renew_until_ms = TIME_MS_MAX + RENEW_MS_MAX;
            it.content_version = version(1);
            it.content_len = persona_fragments::CONTENT_BYTES_MAX as u32;
            it.version = version(u64::MAX);
            it.older = (1..=OLDER_SETS_MAX as u64)
                .map(|seq| OlderSet {
                    version: version(seq),
                    holders: (0..16).map(holder_key).collect(),
                    expires_at_ms: TIME_MS_MAX,
                    renew_until_ms: TIME_MS_MAX,
                })
                .collect();
        });
        let furthest = furthest.expect("within bounds");
        assert!(furthest.wire().body.len() < 8 << 10, "{} bytes", furthest.wire().body.len());
        assert_eq!(furthest.expires_at_ms(), TIME_MS_MAX + TTL_MS_MAX);
    }

    refused! {
        manifest_repeats_a_holder: with(|it| it.holders[9] = it.holders[0]) => RepeatsHolder;
        manifest_of_another_owner_under_this_key: {
            let mut manifest = core();
            manifest.owner = OwnerKey(other_owner().public_key());
            verified(sign_bytes(wire::encode(&manifest), &other_owner()))
        } => Key;
        manifest_of_another_section_under_this_key: with(|it| it.name = b"card".to_vec()) => Key;
        manifest_signed_by_another: verified(sign_bytes(wire::encode(&core()), &other_owner())) => Signature;
        manifest_signed_for_another_owner: SignedManifest::sign(core(), &other_owner()) => Signature;
        manifest_signed_without_its_label: {
            let body = wire::encode(&core());
            let signature = owner().sign(&body);
            verified(ManifestWire { body, signature })
        } => Signature;
        manifest_with_the_signature_of_another: {
            let signature = sign_anything(&Manifest { ttl_ms: 1, ..core() }).signature;
            verified(ManifestWire { body: wire::encode(&core()), signature })
        } => Signature;
        manifest_not_signed: verified(ManifestWire { body: wire::encode(&core()), signature: no_signature() }) => Signature;
        shape_with_k_above_n_minus_2f: with_shape(10, 5, 3) => no_shape(10, 5, 3);
        shape_with_k_zero: with_shape(10, 0, 3) => no_shape(10, 0, 3);
        shape_with_f_too_large: with_shape(10, 2, 4) => no_shape(10, 2, 4);
        shape_with_f_too_small: with_shape(10, 3, 2) => no_shape(10, 3, 2);
        shape_without_holders: with_shape(0, 1, 0) => no_shape(0, 1, 0);
        shape_with_seventeen_holders: with_shape(17, 3, 5) => no_shape(17, 3, 5);
        shape_sound_but_not_for_its_level: with_shape(10, 4, 3) => Unsound("not the shape for this level and number of holders");
        shape_with_more_holders_than_its_level_wants: with(|it| it.level = 3)
            => Unsound("not the shape for this level and number of holders");
        level_zero: with(|it| it.level = 0) => OutOfBounds("level");
        level_eleven: with(|it| it.level = 11) => OutOfBounds("level");
        holder_missing: with(|it| { it.holders.pop(); }) => Unsound("not one holder and one hash per shard");
        holder_too_many: with(|it| it.holders.push(holder_key(12))) => Unsound("not one holder and one hash per shard");
        shard_hash_missing: with(|it| { it.shard_hashes.pop(); }) => Unsound("not one holder and one hash per shard");
        shard_hash_too_many: with(|it| it.shard_hashes.push(digest(0))) => Unsound("not one holder and one hash per shard");
        content_empty: with(|it| it.content_len = 0) => OutOfBounds("content length");
        content_too_long: with(|it| it.content_len = persona_fragments::CONTENT_BYTES_MAX as u32 + 1) => OutOfBounds("content length");
        issued_at_the_end_of_time: with(|it| it.issued_at_ms = u64::MAX) => OutOfBounds("issued_at");
        issued_just_too_late: with(|it| it.issued_at_ms = TIME_MS_MAX + 1) => OutOfBounds("issued_at");
        ttl_zero: with(|it| it.ttl_ms = 0) => OutOfBounds("ttl");
        ttl_above_a_week: with(|it| it.ttl_ms = TTL_MS_MAX + 1) => OutOfBounds("ttl");
        renewable_before_it_was_issued: with(|it| it.renew_until_ms = it.issued_at_ms - 1) => OutOfBounds("renew_until");
        renewable_for_more_than_thirty_days: with(|it| it.renew_until_ms = it.issued_at_ms + RENEW_MS_MAX + 1)
            => OutOfBounds("renew_until");
        version_without_a_term: with(|it| { it.version.term = 0; it.content_version = it.version; }) => OutOfBounds("version");
        version_without_a_sequence_number: with(|it| it.version.seq = 0) => OutOfBounds("version");
        content_version_without_a_term: with(|it| it.content_version.term = 0) => OutOfBounds("content version");
        content_version_without_a_sequence_number: with(|it| it.content_version.seq = 0) => OutOfBounds("content version");
        content_sealed_under_a_later_version: with(|it| it.content_version = version(8)) => OutOfBounds("content version");
        name_empty: with(|it| { it.name.clear(); rekeyed(it); }) => OutOfBounds("name");
        name_too_long: with(|it| { it.name = vec![b'a'; NAME_BYTES_MAX + 1]; rekeyed(it); }) => OutOfBounds("name");
        older_sets_too_many: with(|it| { it.version = version(99); it.older = (1..=9).map(older).collect(); })
            => OutOfBounds("number of older holder sets");
        older_set_of_this_version: with(|it| it.older = vec![older(7)]) => OutOfBounds("older version");
        older_set_of_a_later_version: with(|it| it.older = vec![older(8)]) => OutOfBounds("older version");
        older_set_of_version_zero: with(|it| it.older = vec![older(0)]) => OutOfBounds("older version");
        older_set_of_term_zero: with(|it| it.older = vec![OlderSet { version: Version { term: 0, ..version(3) }, ..older(3) }])
            => OutOfBounds("older version");
        older_sets_out_of_order: with(|it| it.older = vec![older(4), older(3)]) => OutOfBounds("order of older holder sets");
        older_set_listed_twice: with(|it| it.older = vec![older(4), older(4)]) => OutOfBounds("order of older holder sets");
        older_set_empty: with(|it| it.older = vec![OlderSet { holders: vec![], ..older(4) }]) => OutOfBounds("older holder set");
        older_set_too_large: with(|it| it.older = vec![OlderSet { holders: (0..17).map(holder_key).collect(), ..older(4) }])
            => OutOfBounds("older holder set");
        older_set_repeats_a_holder: with(|it| it.older = vec![OlderSet { holders: vec![holder_key(1); 2], ..older(4) }]) => RepeatsHolder;
        older_set_that_never_expires: with(|it| it.older = vec![OlderSet { expires_at_ms: TIME_MS_MAX + 1, ..older(4) }])
            => OutOfBounds("older expiry");
        manifest_followed_by_a_byte: {
            let mut body = wire::encode(&core());
            body.push(0);
            verified(sign_bytes(body, &owner()))
        } => Decode(DecodeError::Trailing(1));
        class_unknown: {
            let core = core();
            let mut body = wire::encode(&core);
            let before = (core.key, core.owner, core.name.clone(), core.version, core.content_version);
            let at = wire::encode(&before).len();
            assert_eq!(body[at..at + 2], [Class::Core as u8, core.level]);
            body[at] = 4;
            verified(sign_bytes(body, &owner())).map_err(|error| match error {
                Decode(DecodeError::Malformed(reason)) => assert!(reason.contains("UnexpectedVariant") && reason.contains("found: 4"), "{reason}"),
                other => panic!("{other}"),
            })
        } => ();
    }
}

mod frames {
    use DecodeError::{Empty, Malformed, NotCanonical, TooLong, Trailing, Version};

    use super::*;

    refused! {
        frame_empty: wire::decode::<u64>(&[]) => Empty;
        frame_of_a_later_version: wire::decode::<u64>(&[2, 7]) => Version(2);
        frame_without_a_version: wire::decode::<u64>(&[0, 7]) => Version(0);
        frame_without_a_value: wire::decode::<u64>(&[1]) => Malformed("UnexpectedEnd { additional: 1 }".into());
        frame_too_long: wire::decode::<Vec<u8>>(&vec![1; FRAME_BYTES_MAX + 1]) => TooLong(FRAME_BYTES_MAX + 1);
        frame_truncated: wire::decode::<[u8; 4]>(&[1, 9, 9, 9]) => Malformed("UnexpectedEnd { additional: 1 }".into());
        trailing_byte: wire::decode::<u64>(&[1, 7, 0]) => Trailing(1);
        non_canonical_varint: wire::decode::<u64>(&[1, 251, 7, 0]) => NotCanonical;
        non_canonical_varint_at_the_last_byte_of_its_width: wire::decode::<u64>(&[1, 251, 250, 0]) => NotCanonical;
        non_canonical_length: wire::decode::<Vec<u8>>(&[1, 252, 1, 0, 0, 0, 9]) => NotCanonical;
        non_canonical_variant: wire::decode::<Class>(&[1, 251, 1, 0]) => NotCanonical;
        varint_wider_than_its_type: wire::decode::<u16>(&[1, 252, 1, 0, 0, 0]).map_err(|error| matches!(error, Malformed(_))) => true;
        option_tag_of_two: wire::decode::<Option<u8>>(&[1, 2, 0]).map_err(|error| matches!(error, Malformed(_))) => true;
        bool_of_two: wire::decode::<bool>(&[1, 2]).map_err(|error| matches!(error, Malformed(_))) => true;
        name_not_in_utf8: wire::decode::<String>(&[1, 1, 0xff]).map_err(|error| matches!(error, Malformed(_))) => true;
        huge_length_prefix: wire::decode::<Vec<u8>>(&[1, 253, 255, 255, 255, 255, 255, 255, 255, 255]) => Malformed("LimitExceeded".into());
        huge_length_prefix_of_large_elements: wire::decode::<Vec<Ack>>(&[1, 252, 0, 0, 4, 0]) => Malformed("LimitExceeded".into());
        huge_length_prefix_within_a_head: wire::decode::<HeadWire>(&[1, 253, 0, 0, 0, 0, 0, 1, 0, 0]) => Malformed("LimitExceeded".into());
    }

    #[test]
    fn the_longest_frame_is_read() {
        let longest = wire::encode(&vec![7_u8; FRAME_BYTES_MAX - 6]);
        assert_eq!(longest.len(), FRAME_BYTES_MAX);
        assert_eq!(wire::decode::<Vec<u8>>(&longest).map(|bytes| bytes.len()), Ok(FRAME_BYTES_MAX - 6));
    }

    #[test]
    fn text_too_long_for_a_name_is_refused_before_the_slow_decoding() {
        // Without the bound this takes hours: the test would not end.
        let long = "z".repeat(1 << 22);
        assert_eq!(PeerKey::from_peer_id_string(&long), None);
        assert_eq!(OwnerKey::from_did(&format!("did:key:z{long}")), None);
        assert_eq!(SectionKey::from_kad_key(&format!("/persona/{}", "a".repeat(51))), None);
        assert_eq!(SectionKey::from_kad_key(&format!("/persona/{}b", "a".repeat(51))), None, "bits behind the last byte");
    }
}

mod certificates {
    use CertificateError::{Ack as BadAck, Acks, Decode, Handover, Manifest as BadManifest, Order};

    use super::*;

    fn core() -> CertifiedHead {
        head(section(b"be kind", 5, 10).0)
    }

    /// A head whose certificate was tampered with, as a stranger sees it.
    fn with(change: impl FnOnce(&mut Vec<Ack>)) -> Result<CertifiedHead, CertificateError> {
        let mut wire = core().to_wire();
        change(&mut wire.certificate.acks);
        let verdict = CertifiedHead::from_bytes(&wire::encode(&wire), &Ed25519Verifier);
        assert_eq!(CertifiedHead::verify_after(wire, &core().manifest, &Ed25519Verifier), verdict, "also by one who knows the manifest");
        verdict
    }

    /// An ack by holder 4 of a leaf that is not quite the one of the manifest.
    fn with_leaf(change: impl FnOnce(&mut AckLeaf)) -> Result<CertifiedHead, CertificateError> {
        with(|acks| {
            let mut leaf = core().manifest.ack_leaf(4);
            change(&mut leaf);
            acks[4] = Ack { index: 4, ..sign_batch(&batch_around(leaf), &holder(4)).swap_remove(2) };
        })
    }

    #[test]
    fn the_head_that_all_these_start_from_is_accepted() {
        assert_eq!(with(|_| ()), Ok(core()));
        assert_eq!(with_leaf(|_| ()), Ok(core()));
        assert_eq!(CertifiedHead::trusted(core().to_wire()), Ok(core()));
    }

    #[test]
    fn every_holder_may_have_signed() {
        let all = with(|acks| *acks = common::acks(&core().manifest).into_values().collect()).expect("ten acks");
        assert_eq!(all.certificate.acks.len(), 10);
    }

    #[test]
    fn a_certificate_is_assembled_from_the_first_acks_that_make_a_quorum() {
        let manifest = core().manifest;
        let mut acks = common::acks(&manifest);
        acks.retain(|index, _| ![0, 3, 5].contains(index));
        let certificate = Certificate::assemble(&manifest, &acks).expect("seven acks");
        assert_eq!(certificate.acks.iter().map(|ack| ack.index).collect::<Vec<u8>>(), [1, 2, 4, 6, 7, 8, 9]);
        assert_eq!(certificate.verify(&manifest, &Ed25519Verifier), Ok(()));
        acks.remove(&9);
        assert_eq!(Certificate::assemble(&manifest, &acks), None);
        acks.insert(10, Ack { index: 10, ..acks[&1].clone() });
        assert_eq!(Certificate::assemble(&manifest, &acks), None, "10 is no holder");
        acks.insert(9, acks[&1].clone());
        assert_eq!(Certificate::assemble(&manifest, &acks), None, "the ack of 1 is not that of 9");
    }

    #[test]
    fn a_known_manifest_is_known_by_all_its_bytes() {
        let mut wire = core().to_wire();
        wire.manifest.signature = no_signature();
        assert_eq!(CertifiedHead::verify_after(wire, &core().manifest, &Ed25519Verifier), Err(BadManifest(ManifestError::Signature)));
    }

    refused! {
        certificate_short_by_one: with(|acks| { acks.pop(); }) => Acks { have: 6, need: 7 };
        certificate_empty: with(Vec::clear) => Acks { have: 0, need: 7 };
        certificate_counts_one_holder_twice: with(|acks| acks[6] = acks[5].clone()) => Order;
        certificate_out_of_order: with(|acks| acks.swap(2, 3)) => Order;
        certificate_of_more_acks_than_holders: with(|acks| *acks = vec![acks[0].clone(); 11]) => Acks { have: 11, need: 7 };
        certificate_with_a_stranger: with(|acks| acks[6].index = 10) => BadAck { index: 10 };
        certificate_of_another_manifest: {
            let other = head(Manifest { ttl_ms: 60_000, ..section(b"be kind", 5, 10).0 });
            with(|acks| *acks = other.certificate.acks)
        } => BadAck { index: 0 };
        ack_of_another_holder: with(|acks| acks[6] = Ack { index: 6, ..ack(&core().manifest, 7) }) => BadAck { index: 6 };
        ack_of_one_holder_signed_by_another: with(|acks| acks[4] = sign_batch(&[core().manifest.ack_leaf(4)], &holder(5)).swap_remove(0))
            => BadAck { index: 4 };
        ack_of_another_batch: with(|acks| {
            let batch: Vec<AckLeaf> = (0..5).map(|place| AckLeaf { generation: 200 + place, ..core().manifest.ack_leaf(4) }).collect();
            acks[4] = sign_batch(&batch, &holder(4)).swap_remove(2);
        }) => BadAck { index: 4 };
        ack_with_the_root_signature_of_another_batch: with(|acks| {
            acks[4].signature = sign_batch(&[core().manifest.ack_leaf(4)], &holder(4))[0].signature;
        }) => BadAck { index: 4 };
        ack_claims_another_batch_size: with(|acks| {
            assert_eq!((acks[4].position, acks[4].batch), (2, 5));
            acks[4].batch = 6; // the tree of six leads position 2 up the same way
        }) => BadAck { index: 4 };
        ack_claims_another_position: with(|acks| acks[4].position = 3) => BadAck { index: 4 };
        ack_beyond_its_batch: with(|acks| {
            let mut batch = batch_around(core().manifest.ack_leaf(4));
            batch.swap(2, 4);
            acks[4] = Ack { position: 5, ..sign_batch(&batch, &holder(4)).swap_remove(4) }; // climbs like the last one
        }) => BadAck { index: 4 };
        ack_of_an_empty_batch: with(|acks| (acks[4].position, acks[4].batch, acks[4].path) = (0, 0, vec![])) => BadAck { index: 4 };
        ack_of_a_batch_above_the_bound: with(|acks| acks[4] = first_of_2048(&core().manifest.ack_leaf(4), &holder(4)))
            => BadAck { index: 4 };
        ack_path_one_too_long: with(|acks| acks[4].path.push(digest(0))) => BadAck { index: 4 };
        ack_path_one_too_short: with(|acks| { acks[4].path.pop(); }) => BadAck { index: 4 };
        ack_path_altered: with(|acks| acks[4].path[1].0[31] ^= 1) => BadAck { index: 4 };
        never_passed_off_as_ack: with_leaf(|leaf| leaf.kind = AckKind::Never) => BadAck { index: 4 };
        handover_passed_off_as_ack: with_leaf(|leaf| leaf.kind = AckKind::Handover) => BadAck { index: 4 };
        ack_of_another_section: with_leaf(|leaf| leaf.key = SectionKey([0; 32])) => BadAck { index: 4 };
        ack_of_another_version: with_leaf(|leaf| leaf.version = version(6)) => BadAck { index: 4 };
        ack_of_another_manifest_of_this_version: with_leaf(|leaf| leaf.manifest_hash = digest(0)) => BadAck { index: 4 };
        ack_of_another_shard: with_leaf(|leaf| leaf.index = 3) => BadAck { index: 4 };
        ack_of_a_later_generation: with_leaf(|leaf| leaf.generation = 1) => BadAck { index: 4 };
        head_with_a_handover: {
            let wire = HeadWire { handover: Some(vec![1]), ..core().to_wire() };
            CertifiedHead::from_bytes(&wire::encode(&wire), &Ed25519Verifier)
        } => Handover(LeaseError::Decode(DecodeError::Malformed("UnexpectedEnd { additional: 1 }".into())));
        head_followed_by_a_byte: CertifiedHead::from_bytes(&[core().to_bytes(), vec![0]].concat(), &Ed25519Verifier)
            => Decode(DecodeError::Trailing(1));
        head_with_the_certificate_but_not_the_owner: {
            let mut wire = core().to_wire();
            wire.manifest.signature = no_signature();
            CertifiedHead::verify(wire, &Ed25519Verifier)
        } => BadManifest(ManifestError::Signature);
        head_from_the_disk_short_by_one: {
            let mut wire = core().to_wire();
            wire.certificate.acks.pop();
            CertifiedHead::trusted(wire)
        } => Acks { have: 6, need: 7 };
        head_from_the_disk_with_a_stranger: {
            let mut wire = core().to_wire();
            wire.certificate.acks[6].index = 200;
            CertifiedHead::trusted(wire)
        } => BadAck { index: 200 };
    }

    /// An ack that is right in all but the size of its batch, by the rules of docs/spec/wire.md#checking-one-step-by-step.
    fn first_of_2048(leaf: &AckLeaf, signer: &dyn Signer) -> Ack {
        let sha256 = |parts: &[&[u8]]| <[u8; 32]>::from(Sha256::digest(parts.concat()));
        let path = vec![digest(7); ACK_PATH_MAX + 1];
        let hash = sha256(&[&[0], b"persona/ack-leaf/v1", &wire::encode(leaf)]);
        let root = path.iter().fold(hash, |hash, sibling| sha256(&[&[1], &hash, &sibling.0]));
        let signature = signer.sign(&[&b"persona/ack-root/v1"[..], &2048_u16.to_le_bytes(), &root].concat());
        Ack { index: leaf.index, position: 0, batch: 2048, path, signature }
    }

    #[test]
    fn an_ack_speaks_for_the_shard_that_it_names() {
        let leaf = core().manifest.ack_leaf(4);
        let ack = ack(&core().manifest, 4);
        assert!(ack.verify(&leaf, &holder_key(4), &Ed25519Verifier));
        assert!(!Ack { index: 5, ..ack }.verify(&leaf, &holder_key(4), &Ed25519Verifier));
    }

    #[test]
    fn the_largest_head_is_small() {
        let set = |seq| OlderSet {
            version: version(seq),
            holders: (0..16).map(holder_key).collect(),
            expires_at_ms: TIME_MS_MAX,
            renew_until_ms: TIME_MS_MAX,
        };
        let mut manifest = section(b"be kind", 10, 16).0;
        manifest.name = vec![0xff; NAME_BYTES_MAX];
        manifest.key = SectionKey::derive(&manifest.owner, &manifest.name);
        (manifest.version, manifest.content_version) = (version(u64::MAX), version(u64::MAX - 1));
        manifest.older = (1..=OLDER_SETS_MAX as u64).map(|back| set(u64::MAX - 9 + back)).collect();
        let manifest = SignedManifest::sign(manifest, &owner()).expect("sound");
        let ack = |index| {
            let leaf = manifest.ack_leaf(index);
            let batch: Vec<AckLeaf> = (0..1024).map(|generation| AckLeaf { generation, ..leaf.clone() }).rev().collect();
            sign_batch(&batch, &holder(index)).swap_remove(1023)
        };
        let head = CertifiedHead { certificate: Certificate { acks: (0..16).map(ack).collect() }, manifest, lease: None };
        assert!(head.manifest.wire().body.len() < 8 << 10, "{}", head.manifest.wire().body.len());
        assert!(head.to_bytes().len() < 16 << 10, "{}", head.to_bytes().len());
        assert_eq!(CertifiedHead::from_bytes(&head.to_bytes(), &Ed25519Verifier).as_ref(), Ok(&head));
    }
}

mod equivocations {
    use EquivocationError::{Decode, Manifest as BadManifest, Order, Unrelated};
    use persona_fragments::certificate::EquivocationWire;

    use super::*;

    fn core() -> Manifest {
        section(b"be kind", 5, 10).0
    }

    fn of(one: Manifest, other: Manifest) -> Result<Equivocation, EquivocationError> {
        let [a, b] = [one, other].map(|manifest| SignedManifest::sign(manifest, &owner()).expect("sound"));
        let (a, b) = if a.hash() < b.hash() { (a, b) } else { (b, a) };
        let bytes = wire::encode(&EquivocationWire { a: a.wire().clone(), b: b.wire().clone() });
        let verdict = Equivocation::from_bytes(&bytes, &Ed25519Verifier);
        assert_eq!(Equivocation::of(&b, &a).as_ref(), verdict.as_ref().ok(), "made where it is seen and read elsewhere are one");
        verdict
    }

    fn altered(change: impl FnOnce(&mut EquivocationWire)) -> Result<Equivocation, EquivocationError> {
        let mut wire: EquivocationWire = wire::decode(&equivocation(core()).to_bytes()).expect("decodes");
        change(&mut wire);
        Equivocation::from_bytes(&wire::encode(&wire), &Ed25519Verifier)
    }

    #[test]
    fn a_sound_one_verifies_offline() {
        let evidence = equivocation(core());
        assert_eq!(Equivocation::from_bytes(&evidence.to_bytes(), &Ed25519Verifier), Ok(evidence.clone()));
        let [a, b] = evidence.manifests();
        assert!(a.hash() < b.hash() && a.owner == owner_key());
    }

    refused! {
        two_versions: of(core(), Manifest { version: version(8), ..core() }) => Unrelated;
        two_sections: of(core(), Manifest { name: b"card".to_vec(), key: SectionKey::derive(&owner_key(), b"card"), ..core() }) => Unrelated;
        one_manifest_twice: of(core(), core()) => Order;
        the_wrong_way_round: altered(|wire| std::mem::swap(&mut wire.a, &mut wire.b)) => Order;
        the_second_not_signed: altered(|wire| wire.b.signature = no_signature()) => BadManifest(ManifestError::Signature);
        the_first_by_somebody_else: altered(|wire| {
            wire.a = sign_bytes(wire.a.body.clone(), &other_owner());
        }) => BadManifest(ManifestError::Signature);
        a_manifest_that_is_none: altered(|wire| wire.a = sign_bytes(vec![1, 2, 3], &owner()))
            => BadManifest(ManifestError::Decode(wire::decode::<Manifest>(&[1, 2, 3]).expect_err("no manifest")));
        evidence_followed_by_a_byte: Equivocation::from_bytes(&[equivocation(core()).to_bytes(), vec![0]].concat(), &Ed25519Verifier)
            => Decode(DecodeError::Trailing(1));
    }
}

mod abort_certificates {
    use CertificateError::{Ack as BadAck, Acks, Decode, Manifest as BadManifest, Order};

    use super::*;

    fn core() -> AbortedVersion {
        aborted(section(b"be kind", 5, 10).0)
    }

    fn with(change: impl FnOnce(&mut Vec<Ack>)) -> Result<AbortedVersion, CertificateError> {
        let mut wire = core().to_wire();
        change(&mut wire.nevers);
        AbortedVersion::from_bytes(&wire::encode(&wire), &Ed25519Verifier)
    }

    fn with_leaf(change: impl FnOnce(&mut AckLeaf)) -> Result<AbortedVersion, CertificateError> {
        let mut leaf = core().manifest.never_leaf(4);
        change(&mut leaf);
        with(|nevers| nevers[4] = Ack { index: 4, ..sign_batch(&[leaf], &holder(4)).swap_remove(0) })
    }

    #[test]
    fn a_sound_one_verifies() {
        assert_eq!(with(|_| {}), Ok(core()));
        assert_eq!(with_leaf(|_| {}).map(|aborted| aborted.nevers.len()), Ok(7));
    }

    #[test]
    fn only_the_owner_of_this_very_manifest_orders_it() {
        let manifest = core().manifest;
        let order = manifest.order_never(&owner());
        assert!(manifest.verify_never_order(&order, &Ed25519Verifier));
        assert!(!manifest.verify_never_order(&manifest.order_never(&other_owner()), &Ed25519Verifier));
        assert!(!manifest.verify_never_order(&manifest.wire().signature, &Ed25519Verifier), "not by having written it");
        let other = SignedManifest::sign(Manifest { ttl_ms: 60_000, ..section(b"be kind", 5, 10).0 }, &owner()).expect("sound");
        assert!(!other.verify_never_order(&order, &Ed25519Verifier));
    }

    refused! {
        abort_short_by_one: with(|nevers| { nevers.pop(); }) => Acks { have: 6, need: 7 };
        abort_counts_one_holder_twice: with(|nevers| nevers[6] = nevers[5].clone()) => Order;
        abort_with_a_stranger: with(|nevers| nevers[6].index = 10) => BadAck { index: 10 };
        abort_by_acks: with(|nevers| *nevers = head(section(b"be kind", 5, 10).0).certificate.acks) => BadAck { index: 0 };
        never_of_one_holder_signed_by_another: with(|nevers| {
            nevers[4] = sign_batch(&[core().manifest.never_leaf(4)], &holder(5)).swap_remove(0);
        }) => BadAck { index: 4 };
        ack_passed_off_as_never: with_leaf(|leaf| leaf.kind = AckKind::Ack) => BadAck { index: 4 };
        never_that_names_a_manifest: with_leaf(|leaf| leaf.manifest_hash = core().manifest.hash()) => BadAck { index: 4 };
        never_of_another_version: with_leaf(|leaf| leaf.version = version(8)) => BadAck { index: 4 };
        never_of_another_section: with_leaf(|leaf| leaf.key = SectionKey([0; 32])) => BadAck { index: 4 };
        never_of_another_holder: with_leaf(|leaf| leaf.index = 3) => BadAck { index: 4 };
        abort_followed_by_a_byte: AbortedVersion::from_bytes(&[core().to_bytes(), vec![0]].concat(), &Ed25519Verifier)
            => Decode(DecodeError::Trailing(1));
        abort_without_the_owner: {
            let mut wire = core().to_wire();
            wire.manifest.signature = no_signature();
            AbortedVersion::verify(wire, &Ed25519Verifier)
        } => BadManifest(ManifestError::Signature);
        never_as_certificate: {
            let wire = HeadWire { certificate: Certificate { acks: core().nevers }, ..head(section(b"be kind", 5, 10).0).to_wire() };
            CertifiedHead::verify(wire, &Ed25519Verifier)
        } => BadAck { index: 0 };
    }
}

mod shards {
    use ReconstructError::{Poisoned, TooFew};

    use super::*;

    const KIND: &[u8] = b"be kind to the new ones";

    /// A content of (10, 3), from the three shards that `change` had its way with.
    fn with(
        indices: [usize; 3],
        change: impl FnOnce(&mut Manifest, &mut std::collections::BTreeMap<u8, Vec<u8>>),
    ) -> Result<Vec<u8>, ReconstructError> {
        let (mut manifest, shards) = section(KIND, 5, 10);
        let mut held = indexed(&shards, indices);
        change(&mut manifest, &mut held);
        reconstruct(&manifest, &held)
    }

    /// A manifest over shards that its owner altered before hashing them: every shard matches, but they are no codeword.
    fn owner_altered(index: usize, byte: usize) -> (Manifest, Vec<Vec<u8>>) {
        let shape = Shape::for_level(5, 10).expect("a shape");
        let mut shards = encode(KIND, shape).expect("content");
        shards[index][byte] ^= 1;
        (manifest_of(KIND, &shards, shape, 5), shards)
    }

    #[test]
    fn the_shards_that_all_these_start_from_reconstruct() {
        assert_eq!(with([0, 1, 2], |_, _| ()).as_deref(), Ok(KIND));
        assert_eq!(with([7, 8, 9], |_, _| ()).as_deref(), Ok(KIND));
    }

    #[test]
    fn a_wrong_shard_is_passed_over_where_others_suffice() {
        let right = with([2, 4, 9], |_, held| {
            let wrong = vec![0; held[&2].len()];
            held.insert(0, wrong);
            held.insert(16, held[&2].clone());
        });
        assert_eq!(right.as_deref(), Ok(KIND));
    }

    refused! {
        shard_missing: with([0, 1, 2], |_, held| { held.remove(&1); }) => TooFew { have: 2, need: 3 };
        shard_altered: with([0, 1, 2], |_, held| held.entry(1).or_default()[0] ^= 1) => TooFew { have: 2, need: 3 };
        shard_truncated: with([0, 1, 2], |_, held| { held.entry(1).or_default().pop(); }) => TooFew { have: 2, need: 3 };
        shard_lengthened: with([0, 1, 2], |_, held| held.entry(1).or_default().push(0)) => TooFew { have: 2, need: 3 };
        shard_swapped_between_sections: with([0, 1, 2], |_, held| {
            held.insert(0, section(b"be cold to the new ones", 5, 10).1.swap_remove(0));
        }) => TooFew { have: 2, need: 3 };
        shards_swapped_between_holders: with([0, 1, 2], |_, held| {
            let (first, second) = (held[&0].clone(), held[&1].clone());
            held.extend([(0, second), (1, first)]);
        }) => TooFew { have: 1, need: 3 };
        shard_of_a_holder_beyond_n: with([0, 1, 2], |_, held| {
            let shard = held.remove(&1).expect("held");
            held.insert(10, shard);
        }) => TooFew { have: 2, need: 3 };
        poisoned_data_shard: { let (manifest, shards) = owner_altered(1, 0); reconstruct(&manifest, &indexed(&shards, [0, 1, 2])) } => Poisoned;
        poisoned_parity_shard_that_nobody_read: { let (manifest, shards) = owner_altered(9, 0); reconstruct(&manifest, &indexed(&shards, [0, 1, 2])) }
            => Poisoned;
        poisoned_parity_shard_that_was_read: { let (manifest, shards) = owner_altered(9, 0); reconstruct(&manifest, &indexed(&shards, [0, 1, 9])) }
            => Poisoned;
        poisoned_content_hash: with([0, 1, 2], |manifest, _| manifest.content_hash = digest(0)) => Poisoned;
        poisoned_shard_hash: with([0, 1, 2], |manifest, _| manifest.shard_hashes[9] = digest(0)) => Poisoned;
        poisoned_padding: {
            // A codeword, but of a content that goes on where the manifest says it ends.
            let shape = Shape::for_level(5, 10).expect("a shape");
            let (shards, short) = (encode(KIND, shape).expect("content"), &KIND[..KIND.len() - 1]);
            assert_eq!(short.len().div_ceil(3), KIND.len().div_ceil(3));
            reconstruct(&manifest_of(short, &shards, shape, 5), &indexed(&shards, [0, 1, 2]))
        } => Poisoned;
        poisoned_list_of_hashes: with([0, 1, 2], |manifest, _| manifest.shard_hashes.truncate(9)) => Poisoned;
        content_empty: encode(&[], Shape::for_level(5, 10).expect("a shape")) => CodingError::Empty;
        content_too_large: encode(&vec![0; persona_fragments::CONTENT_BYTES_MAX + 1], Shape::for_level(5, 10).expect("a shape"))
            => CodingError::TooLarge(persona_fragments::CONTENT_BYTES_MAX + 1);
    }

    #[test]
    fn a_length_that_a_manifest_invents_allocates_nothing() {
        let (mut manifest, shards) = section(KIND, 5, 10);
        manifest.content_len = u32::MAX;
        assert_eq!(reconstruct(&manifest, &indexed(&shards, 0..10)), Err(TooFew { have: 0, need: 3 }));
        manifest.content_len = 0;
        let nothing = vec![Vec::new(); 10];
        manifest.shard_hashes = coding::shard_hashes(&nothing);
        assert_eq!(reconstruct(&manifest, &indexed(&nothing, 0..10)), Err(Poisoned));
    }
}

mod sections {
    use OpenError::{Decode, Field, Kind, Malformed, NotGranted};

    use super::*;

    fn opened(stored: &[u8]) -> Result<Fields, OpenError> {
        opened_in(stored, &context())
    }

    fn opened_in(stored: &[u8], context: &SealContext) -> Result<Fields, OpenError> {
        seal::open(stored, &recovery_key(), context).map(|(_, fields)| fields)
    }

    fn forged(change: impl FnOnce(&mut u32, &mut Vec<StoredGrant>, &mut Vec<StoredField>)) -> Result<Fields, OpenError> {
        opened(&forge(&sealed_in(&context()), change))
    }

    fn elsewhere() -> SealContext {
        SealContext { section: SectionKey::derive(&owner_key(), b"behavior"), ..context() }
    }

    /// Sealed bytes of another place under the same section key, whose grant was sealed for here: only the field's own binding is left.
    fn field_of(context_of_the_field: &SealContext, epoch: u32, name: &str) -> Result<Fields, OpenError> {
        let seal_with = |context: &SealContext, epoch: u32, fields: &Fields| {
            let key = EpochKey::generate(epoch, &mut rng(8));
            seal::seal(fields, &key, &recovery_key(), context, &mut rng(9)).expect("a small section")
        };
        let moved = seal_with(context_of_the_field, epoch, &Fields::new().with("quirks", b"stolen"));
        let Ok(Stored::Sealed { fields: mut moved, .. }) = wire::decode::<Stored>(&moved) else { panic!("sealed") };
        moved[0].name = name.into();
        let here = seal_with(&context(), 1, &Fields::new());
        opened(&forge(&here, |_, _, fields| *fields = moved))
    }

    #[test]
    fn the_section_that_all_these_start_from_opens() {
        assert_eq!(opened(&sealed_in(&context())), Ok(fields()));
        assert_eq!(forged(|_, _, _| ()), Ok(fields()));
        assert_eq!(field_of(&context(), 1, "quirks"), Ok(Fields::new().with("quirks", b"stolen")));
    }

    /// A renewal has a new version and the old content version, which is the one that seals.
    #[test]
    fn renewal_opens() {
        let stored = sealed_in(&context());
        let renewed = Manifest { version: version(8), ..section(&stored, 5, 10).0 };
        let renewed = SignedManifest::sign(renewed, &owner()).expect("sound");
        let context = SealContext { agent: renewed.owner, section: renewed.key, content_version: renewed.content_version };
        assert_eq!(opened_in(&stored, &context), Ok(fields()));
    }

    #[test]
    fn the_section_key_comes_back_for_the_next_seal_of_its_epoch() {
        let (key, _) = seal::open(&sealed_in(&context()), &recovery_key(), &context()).expect("opens");
        assert_eq!(key, EpochKey::generate(1, &mut rng(3)));
        assert_ne!(key, EpochKey::generate(1, &mut rng(4)));
        assert_ne!(key, EpochKey::generate(2, &mut rng(3)));
    }

    #[test]
    fn grants_of_later_suites_are_passed_over() {
        let later = StoredGrant { suite: 2, encapsulated: vec![7; 1120], wrapped: vec![7; 48] };
        assert_eq!(forged(|_, grants, _| grants.insert(0, later)), Ok(fields()));
    }

    #[test]
    fn the_fullest_section_is_sealed_stored_and_opened() {
        let name = |i: usize| format!("{i:0width$}", width = FIELD_NAME_BYTES_MAX);
        let share = SECTION_BYTES_MAX / FIELDS_MAX - FIELD_NAME_BYTES_MAX;
        let full = (0..FIELDS_MAX).fold(Fields::new(), |fields, i| fields.with(&name(i), vec![i as u8; share]));
        assert_eq!(full.len_bytes(), SECTION_BYTES_MAX);
        let key = EpochKey::generate(1, &mut rng(1));
        let stored = seal::seal(&full, &key, &recovery_key(), &context(), &mut rng(2)).expect("fits");
        assert!(stored.len() <= persona_fragments::CONTENT_BYTES_MAX);
        let (manifest, shards) = section(&stored, 5, 10);
        let back = reconstruct(&manifest, &indexed(&shards, 7..10)).expect("three shards");
        assert_eq!(opened(&back), Ok(full));
    }

    fn seal_fields(fields: &Fields) -> Result<Vec<u8>, SealError> {
        seal::seal(fields, &EpochKey::generate(1, &mut rng(1)), &recovery_key(), &context(), &mut rng(2))
    }

    refused! {
        field_moved_to_another_section: field_of(&elsewhere(), 1, "quirks") => Field("quirks".into());
        field_moved_to_another_agent: {
            let agent = OwnerKey(other_owner().public_key());
            field_of(&SealContext { agent, ..context() }, 1, "quirks")
        } => Field("quirks".into());
        field_moved_to_another_version: field_of(&SealContext { content_version: version(4), ..context() }, 1, "quirks")
            => Field("quirks".into());
        field_moved_to_another_term: field_of(&SealContext { content_version: Version { term: 2, ..version(5) }, ..context() }, 1, "quirks")
            => Field("quirks".into());
        field_moved_to_another_device: field_of(&SealContext { content_version: Version { device: device(9), ..version(5) }, ..context() }, 1, "quirks")
            => Field("quirks".into());
        field_moved_to_another_epoch: field_of(&context(), 2, "quirks") => Field("quirks".into());
        field_renamed: field_of(&context(), 1, "trust") => Field("trust".into());
        fields_exchanged: forged(|_, _, fields| {
            let (first, rest) = fields.split_at_mut(1);
            std::mem::swap(&mut first[0].nonce, &mut rest[0].nonce);
            std::mem::swap(&mut first[0].ciphertext, &mut rest[0].ciphertext);
        }) => Field("quirks".into());
        field_truncated: forged(|_, _, fields| { fields[1].ciphertext.pop(); }) => Field("relationships".into());
        field_without_a_tag: forged(|_, _, fields| fields[1].ciphertext.truncate(15)) => Field("relationships".into());
        field_listed_twice: forged(|_, _, fields| fields.insert(1, fields[0].clone())) => Malformed;
        fields_out_of_order: forged(|_, _, fields| fields.swap(0, 1)) => Malformed;
        fields_too_many: forged(|_, _, fields| {
            *fields = (0..=FIELDS_MAX).map(|i| StoredField { name: format!("{i:03}"), ..fields[0].clone() }).collect();
        }) => Malformed;
        field_name_too_long: forged(|_, _, fields| fields[2].name = "z".repeat(FIELD_NAME_BYTES_MAX + 1)) => Malformed;
        grants_too_many: forged(|_, grants, _| *grants = vec![StoredGrant { suite: 9, ..grants[0].clone() }; GRANTS_MAX + 1]) => Malformed;
        grant_with_an_encapsulated_key_that_its_suite_has_not: forged(|_, grants, _| grants[0].encapsulated = vec![0]) => Malformed;
        grant_too_short: forged(|_, grants, _| { grants[0].wrapped.pop(); }) => Malformed;
        grant_too_long: forged(|_, grants, _| grants[0].wrapped.push(0)) => Malformed;
        grant_altered: forged(|_, grants, _| grants[0].wrapped[71] ^= 1) => NotGranted;
        grant_of_another_suite: forged(|_, grants, _| grants[0].suite = 2) => NotGranted;
        grants_missing: forged(|_, grants, _| grants.clear()) => NotGranted;
        epoch_changed: forged(|epoch, _, _| *epoch = 2) => NotGranted;
        section_moved_to_another_name: opened_in(&sealed_in(&context()), &elsewhere()) => NotGranted;
        section_moved_to_another_agent: {
            let agent = OwnerKey(other_owner().public_key());
            opened_in(&sealed_in(&context()), &SealContext { agent, ..context() })
        } => NotGranted;
        section_moved_to_another_version: opened_in(&sealed_in(&context()), &SealContext { content_version: version(6), ..context() })
            => NotGranted;
        opened_with_another_recovery_key: seal::open(&sealed_in(&context()), &RecoveryKey::from_bytes([0x98; 32]), &context()) => NotGranted;
        public_section_passed_off_as_sealed: opened(&seal::publish(b"card").expect("small")) => Kind { found: "public", wanted: "sealed" };
        sealed_section_passed_off_as_public: seal::read_public(&sealed_in(&context())) => Kind { found: "sealed", wanted: "public" };
        section_followed_by_a_byte: opened(&[sealed_in(&context()), vec![0]].concat()) => Decode(DecodeError::Trailing(1));
        too_large_to_seal: seal_fields(&Fields::new().with("a", vec![0; SECTION_BYTES_MAX])) => SealError::TooLarge(SECTION_BYTES_MAX + 1);
        too_many_fields_to_seal: seal_fields(&(0..=FIELDS_MAX).fold(Fields::new(), |fields, i| fields.with(&format!("{i}"), vec![])))
            => SealError::Fields;
        too_long_a_name_to_seal: seal_fields(&Fields::new().with(&"z".repeat(FIELD_NAME_BYTES_MAX + 1), vec![])) => SealError::Fields;
        too_large_to_publish: seal::publish(&vec![0; SECTION_BYTES_MAX + 1]) => SealError::TooLarge(SECTION_BYTES_MAX + 1);
    }
}
