//! What one section costs, step by step, at the shape of class core (10 holders, any 3 shards).
//!
//! `cargo bench -p persona-fragments`. Sizes are those of the section before sealing; MB/s count its bytes.

use std::collections::BTreeMap;

use chacha20::ChaCha20Rng;
use divan::{Bencher, black_box, counter::BytesCount};
use persona_fragments::{
    Certificate, CertifiedHead, Class, Ed25519Signer, Ed25519Verifier, EpochKey, Fields, Manifest, OwnerKey, PeerKey, RecoveryKey,
    SealContext, SectionKey, Shape, SignedManifest, Signer, Version, coding, encode, reconstruct, seal, sign_batch, wire,
};
use rand_core::{Rng, SeedableRng};

const SIZES: [usize; 3] = [1 << 10, 16 << 10, (1 << 20) - 6];

fn main() {
    divan::main();
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::from_seed([1; 32])
}

fn owner() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[1; 32])
}

fn holder(index: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed(&[100 + index; 32])
}

fn shape() -> Shape {
    Shape::for_level(5, 10).expect("ten holders")
}

fn context() -> SealContext {
    let agent = OwnerKey(owner().public_key());
    let device = PeerKey(holder(20).public_key()).device();
    SealContext { agent, section: SectionKey::derive(&agent, b"core"), content_version: Version { term: 1, device, seq: 1 } }
}

fn fields(size: usize) -> Fields {
    let mut bytes = vec![0; size];
    rng().fill_bytes(&mut bytes);
    Fields::new().with("quirks", bytes)
}

fn recovery_key() -> RecoveryKey {
    RecoveryKey::from_bytes([3; 32])
}

fn sealed(size: usize) -> Vec<u8> {
    let key = EpochKey::generate(1, &mut rng());
    seal::seal(&fields(size), &key, &recovery_key(), &context(), &mut rng()).expect("fits")
}

fn manifest(content: &[u8], shards: &[Vec<u8>]) -> Manifest {
    let context = context();
    Manifest {
        key: context.section,
        owner: context.agent,
        name: b"core".to_vec(),
        version: context.content_version,
        content_version: context.content_version,
        class: Class::Core,
        level: 5,
        issued_at_ms: 1_767_225_600_000,
        ttl_ms: 3_600_000,
        renew_until_ms: 0,
        content_len: content.len() as u32,
        shape: shape(),
        content_hash: coding::content_hash(content),
        shard_hashes: coding::shard_hashes(shards),
        holders: (0..10).map(|index| PeerKey(holder(index).public_key())).collect(),
        older: Vec::new(),
    }
}

fn section(size: usize) -> (Manifest, Vec<Vec<u8>>) {
    let content = sealed(size);
    let shards = encode(&content, shape()).expect("content");
    (manifest(&content, &shards), shards)
}

fn head() -> CertifiedHead {
    let manifest = SignedManifest::sign(section(1 << 10).0, &owner()).expect("sound");
    let acks = (0..10).map(|index| (index, sign_batch(&[manifest.ack_leaf(index)], &holder(index)).swap_remove(0))).collect();
    let certificate = Certificate::assemble(&manifest, &acks).expect("ten acks");
    CertifiedHead { manifest, certificate, lease: None }
}

mod content {
    use super::*;

    #[divan::bench(args = SIZES)]
    fn seal(bencher: Bencher, size: usize) {
        let (fields, key, owner, context, mut rng) = (fields(size), EpochKey::generate(1, &mut rng()), recovery_key(), context(), rng());
        bencher.counter(BytesCount::new(size)).bench_local(|| seal::seal(&fields, &key, &owner, &context, &mut rng));
    }

    #[divan::bench(args = SIZES)]
    fn open(bencher: Bencher, size: usize) {
        let (stored, owner, context) = (sealed(size), recovery_key(), context());
        bencher.counter(BytesCount::new(size)).bench(|| seal::open(black_box(&stored), &owner, &context));
    }

    #[divan::bench(args = SIZES)]
    fn encode(bencher: Bencher, size: usize) {
        let content = sealed(size);
        bencher.counter(BytesCount::new(size)).bench(|| super::encode(black_box(&content), shape()));
    }

    #[divan::bench(args = SIZES)]
    fn hash_shards(bencher: Bencher, size: usize) {
        let (_, shards) = section(size);
        bencher.counter(BytesCount::new(size)).bench(|| coding::shard_hashes(black_box(&shards)));
    }

    /// All `k` shards are parity, and every reader's checks are made.
    #[divan::bench(args = SIZES)]
    fn reconstruct_from_parity(bencher: Bencher, size: usize) {
        reconstruct_from(bencher, size, [7, 8, 9]);
    }

    #[divan::bench(args = SIZES)]
    fn reconstruct_from_data(bencher: Bencher, size: usize) {
        reconstruct_from(bencher, size, [0, 1, 2]);
    }

    fn reconstruct_from(bencher: Bencher, size: usize, indices: [usize; 3]) {
        let (manifest, shards) = section(size);
        let held: BTreeMap<u8, Vec<u8>> = indices.map(|index| (index as u8, shards[index].clone())).into();
        assert!(reconstruct(&manifest, &held).is_ok());
        bencher.counter(BytesCount::new(size)).bench(|| reconstruct(&manifest, black_box(&held)));
    }

    #[divan::bench(args = SIZES)]
    fn decode_frame(bencher: Bencher, size: usize) {
        let frame = wire::encode(&vec![7_u8; size]);
        bencher.counter(BytesCount::new(size)).bench(|| wire::decode::<Vec<u8>>(black_box(&frame)));
    }
}

mod signatures {
    use super::*;

    #[divan::bench]
    fn sign_manifest(bencher: Bencher) {
        let (manifest, signer) = (section(1 << 10).0, owner());
        bencher.bench(|| SignedManifest::sign(manifest.clone(), &signer));
    }

    #[divan::bench]
    fn verify_manifest(bencher: Bencher) {
        let wire = head().manifest.wire().clone();
        bencher.bench(|| SignedManifest::verify(wire.clone(), &Ed25519Verifier));
    }

    #[divan::bench]
    fn verify_certificate_of_seven_acks(bencher: Bencher) {
        let head = head();
        bencher.bench(|| head.certificate.verify(&head.manifest, &Ed25519Verifier));
    }

    #[divan::bench]
    fn verify_certified_head(bencher: Bencher) {
        let bytes = head().to_bytes();
        bencher.bench(|| CertifiedHead::from_bytes(black_box(&bytes), &Ed25519Verifier));
    }

    /// A holder's signature under a whole commit batch: one signature and the tree.
    #[divan::bench(args = [1, 16, 256, 1024])]
    fn sign_a_batch_of_acks(bencher: Bencher, leaves: usize) {
        let (leaf, signer) = (head().manifest.ack_leaf(0), holder(0));
        let leaves: Vec<_> = (0..leaves as u32).map(|generation| persona_fragments::AckLeaf { generation, ..leaf.clone() }).collect();
        bencher.bench(|| sign_batch(black_box(&leaves), &signer));
    }
}
