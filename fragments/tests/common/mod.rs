//! The cast of these tests: an owner, sixteen holders, and sections between them. Everything is seeded, so every byte repeats.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;

use chacha20::ChaCha20Rng;
use persona_fragments::{
    AbortedVersion, Ack, AckLeaf, Certificate, CertifiedHead, Class, DeviceId, Digest, Ed25519Signer, EpochKey, Equivocation, Fields,
    Manifest, OwnerKey, PeerKey, RecoveryKey, SealContext, SectionKey, Shape, Signature, SignedManifest, Signer, Version, coding, encode,
    manifest::ManifestWire,
    seal, sign_batch,
    wire::{self, Decode, Encode},
};
use rand_core::{Rng, SeedableRng};

/// 2026-01-01, in milliseconds since the Unix epoch.
pub const NEW_YEAR_MS: u64 = 1_767_225_600_000;

pub fn owner() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[0x01; 32])
}

pub fn other_owner() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[0x02; 32])
}

pub fn owner_key() -> OwnerKey {
    OwnerKey(owner().public_key())
}

pub fn holder(index: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed(&[0x40 + index; 32])
}

pub fn holder_key(index: u8) -> PeerKey {
    PeerKey(holder(index).public_key())
}

pub fn rng(seed: u8) -> ChaCha20Rng {
    ChaCha20Rng::from_seed([seed; 32])
}

pub fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng(seed).fill_bytes(&mut bytes);
    bytes
}

pub fn version(seq: u64) -> Version {
    Version { term: 1, device: holder_key(15).device(), seq }
}

/// The manifest of `content` for `level` with `usable` holders, sound in every respect, and the shards.
pub fn section(content: &[u8], level: u8, usable: usize) -> (Manifest, Vec<Vec<u8>>) {
    let shape = Shape::for_level(level, usable).expect("holders");
    let shards = encode(content, shape).expect("content");
    (manifest_of(content, &shards, shape, level), shards)
}

pub fn manifest_of(content: &[u8], shards: &[Vec<u8>], shape: Shape, level: u8) -> Manifest {
    Manifest {
        key: SectionKey::derive(&owner_key(), b"core"),
        owner: owner_key(),
        name: b"core".to_vec(),
        version: version(7),
        content_version: version(5),
        class: Class::Core,
        level,
        issued_at_ms: NEW_YEAR_MS,
        ttl_ms: 3_600_000,
        renew_until_ms: 0,
        content_len: content.len() as u32,
        shape,
        content_hash: coding::content_hash(content),
        shard_hashes: coding::shard_hashes(shards),
        holders: (0..shape.n()).map(holder_key).collect(),
        older: Vec::new(),
    }
}

/// What a hostile owner can send: any body at all, correctly signed.
pub fn sign_bytes(body: Vec<u8>, signer: &dyn Signer) -> ManifestWire {
    let signature = signer.sign(&[b"persona/manifest/v1", body.as_slice()].concat());
    ManifestWire { body, signature }
}

pub fn sign_anything(manifest: &Manifest) -> ManifestWire {
    sign_bytes(wire::encode(manifest), &owner())
}

/// Holder `index`'s ack of `manifest`, third in a batch of five.
pub fn ack(manifest: &SignedManifest, index: u8) -> Ack {
    sign_batch(&batch_around(manifest.ack_leaf(index)), &holder(index)).swap_remove(2)
}

/// Five leaves, the third of which is `leaf`.
pub fn batch_around(leaf: AckLeaf) -> Vec<AckLeaf> {
    (0..5).map(|place| if place == 2 { leaf.clone() } else { AckLeaf { generation: 100 + place, ..leaf.clone() } }).collect()
}

pub fn acks(manifest: &SignedManifest) -> BTreeMap<u8, Ack> {
    (0..manifest.shape.n()).map(|index| (index, ack(manifest, index))).collect()
}

pub fn head(manifest: Manifest) -> CertifiedHead {
    let manifest = SignedManifest::sign(manifest, &owner()).expect("a sound manifest");
    let certificate = Certificate::assemble(&manifest, &acks(&manifest)).expect("enough acks");
    CertifiedHead { manifest, certificate, lease: None }
}

/// The manifest, and one that differs from it in its lifetime only.
pub fn equivocation(manifest: Manifest) -> Equivocation {
    let longer = Manifest { ttl_ms: manifest.ttl_ms + 1, ..manifest.clone() };
    let [one, other] = [manifest, longer].map(|manifest| SignedManifest::sign(manifest, &owner()).expect("sound"));
    Equivocation::of(&one, &other).expect("two of one version")
}

/// The manifest, given up by its holders: each signed a batch of five in which its promise is the third.
pub fn aborted(manifest: Manifest) -> AbortedVersion {
    let manifest = SignedManifest::sign(manifest, &owner()).expect("a sound manifest");
    let never = |index: u8| sign_batch(&batch_around(manifest.never_leaf(index)), &holder(index)).swap_remove(2);
    let nevers = (0..manifest.shape.n()).map(|index| (index, never(index))).collect();
    AbortedVersion::assemble(&manifest, &nevers).expect("enough promises")
}

pub fn indexed(shards: &[Vec<u8>], indices: impl IntoIterator<Item = usize>) -> BTreeMap<u8, Vec<u8>> {
    indices.into_iter().map(|index| (index as u8, shards[index].clone())).collect()
}

/// Every `k` of `0..n`, in order.
pub fn subsets(n: usize, k: usize) -> Vec<Vec<usize>> {
    (0_u32..1 << n).filter(|set| set.count_ones() as usize == k).map(|set| (0..n).filter(|i| set >> i & 1 == 1).collect()).collect()
}

pub fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

pub fn recovery_key() -> RecoveryKey {
    RecoveryKey::from_bytes([0x99; 32])
}

pub fn context() -> SealContext {
    SealContext { agent: owner_key(), section: SectionKey::derive(&owner_key(), b"core"), content_version: version(5) }
}

pub fn fields() -> Fields {
    Fields::new().with("quirks", b"hums when thinking").with("relationships", b"ada: warm").with("trust", [200, 17, 3])
}

pub fn sealed_in(context: &SealContext) -> Vec<u8> {
    let mut rng = rng(3);
    let key = EpochKey::generate(1, &mut rng);
    seal::seal(&fields(), &key, &recovery_key(), context, &mut rng).expect("a small section")
}

/// The stored section, written down a second time from docs/spec/section.md, so that tests can forge one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Stored {
    Public { payload: Vec<u8> },
    Sealed { epoch: u32, grants: Vec<StoredGrant>, fields: Vec<StoredField> },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoredGrant {
    pub suite: u8,
    pub encapsulated: Vec<u8>,
    pub wrapped: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoredField {
    pub name: String,
    pub nonce: [u8; 24],
    pub ciphertext: Vec<u8>,
}

/// Lets a forger change the grants and fields of sealed bytes.
pub fn forge(sealed: &[u8], change: impl FnOnce(&mut u32, &mut Vec<StoredGrant>, &mut Vec<StoredField>)) -> Vec<u8> {
    let mut stored: Stored = wire::decode(sealed).expect("a stored section");
    let Stored::Sealed { epoch, grants, fields } = &mut stored else { panic!("a sealed section") };
    change(epoch, grants, fields);
    wire::encode(&stored)
}

pub fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

pub fn device(byte: u8) -> DeviceId {
    DeviceId([byte; 32])
}

pub fn no_signature() -> Signature {
    Signature([0; 64])
}
