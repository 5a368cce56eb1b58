//! Everything of ours that reads bytes which a peer or a disk made, each as a function that must not panic, whatever they are
//! (docs/guarantees.md, I15).
//!
//! Where a format promises that one value has one encoding, what decodes must encode to the same bytes. Checksums are put right here, and
//! signatures count as good, so that what stands behind them is reached: nobody is protected by a decoder that only its author may feed.
//!
//! `corpus/` has inputs for each, made by [`seeds`] and grown by libFuzzer (`libfuzzer/`); `tests/replay.rs` runs all of them on stable.

use std::{collections::BTreeMap, sync::Arc};

use chacha20::ChaCha20Rng;
use persona_agent::{Announcement, Card, Commitment, Index, PairState, Personality, RecoveryFile, Relationship, envelope};
use persona_bootstrap::{Address, AddressBook, Ticket};
use persona_fragments::{
    AbortedVersion, CertifiedHead, Ed25519Verifier, Equivocation, Fields, PeerKey, RecoveryKey, Shape, Signature, SignedManifest, Verifier,
    coding, manifest::ManifestWire, seal, wire,
};
use persona_mesh_proto::{RequestFrame, ResponseFrame};
use rand_core::SeedableRng as _;

#[cfg(feature = "node")]
mod files;
mod node;
pub mod seeds;

/// A target: its name, and the function. It says whether anything in the data was accepted.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Every target, by name. Each has a folder of that name in `corpus/`.
pub const TARGETS: &[Target] = &[
    ("abort_certificate", abort_certificate),
    ("address", address),
    ("address_book", address_book),
    ("announcement", announcement),
    ("card", card),
    ("certified_head", certified_head),
    ("commitment", commitment),
    ("envelope", envelope),
    ("equivocation", equivocation),
    ("index", index),
    ("manifest", manifest),
    ("node_frames", node::frames),
    ("node_gossip", node::gossip),
    ("node_rows", node::rows),
    ("pair", pair),
    ("personality", personality),
    ("recovery_file", recovery_file),
    ("relationship", relationship),
    ("request_frame", request_frame),
    ("response_frame", response_frame),
    ("section", section),
    ("shards", shards),
    ("ticket", ticket),
    #[cfg(feature = "node")]
    ("keystore", files::keystore),
    #[cfg(feature = "node")]
    ("store", files::store),
];

/// Runs one target.
pub fn run(name: &str, data: &[u8]) -> bool {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    target(data)
}

/// Believes everything, so that decoders get to see what only their peers could have signed.
struct Gullible;

impl Verifier for Gullible {
    fn verify(&self, _: &[u8; 32], _: &[u8], _: &Signature) -> bool {
        true
    }
}

/// What decodes has one encoding.
fn same(data: &[u8], encoded: &[u8]) -> bool {
    assert!(data == encoded, "what decodes has another encoding");
    true
}

fn request_frame(data: &[u8]) -> bool {
    RequestFrame::from_bytes(data).is_ok_and(|frame| same(data, &frame.to_bytes()))
}

/// The first byte says how many answers are expected.
fn response_frame(data: &[u8]) -> bool {
    let Some((count, data)) = data.split_first() else { return false };
    ResponseFrame::from_bytes(data, usize::from(*count)).is_ok_and(|frame| same(data, &frame.to_bytes()))
}

/// The value of a Kademlia record, and what COMMIT carries.
fn certified_head(data: &[u8]) -> bool {
    let accepted = CertifiedHead::from_bytes(data, &Gullible).is_ok_and(|head| same(data, &head.to_bytes()));
    assert!(accepted || CertifiedHead::from_bytes(data, &Ed25519Verifier).is_err());
    accepted
}

fn abort_certificate(data: &[u8]) -> bool {
    AbortedVersion::from_bytes(data, &Gullible).is_ok_and(|aborted| same(data, &aborted.to_bytes()))
}

fn equivocation(data: &[u8]) -> bool {
    Equivocation::from_bytes(data, &Gullible).is_ok_and(|equivocation| same(data, &equivocation.to_bytes()))
}

/// What an owner signs. The body alone: it is a frame of its own.
fn manifest(data: &[u8]) -> bool {
    let wire = ManifestWire { body: data.to_vec(), signature: Signature([0; 64]) };
    let Ok(manifest) = SignedManifest::verify(wire, &Gullible) else { return false };
    assert!(manifest.check().is_ok() && manifest.expires_at_ms() >= manifest.issued_at_ms && manifest.shard_len() > 0);
    let _ = manifest.as_older_set().quorum();
    same(data, &wire::encode(&*manifest))
}

fn section(data: &[u8]) -> bool {
    let opened = seal::open(data, &RecoveryKey::from_bytes([4; 32]), &seeds::seal_context()).is_ok();
    let public = seal::read_public(data).is_ok_and(|payload| same(data, &seal::publish(&payload).expect("it was published")));
    opened || public
}

/// Shards of a manifest whose owner signed hashes of whatever the data say: shape, length, first index, then shards.
fn shards(data: &[u8]) -> bool {
    let Some((&[usable, level, len, first], rest)) = data.split_first_chunk::<4>() else { return false };
    let Some(shape) = Shape::for_level(level, usize::from(usable)) else { return false };
    let mut manifest = seeds::manifest_of(shape, level.max(1), u32::from(len));
    let chunks = rest.chunks(manifest.shard_len()).take(shape.n().into());
    let found: BTreeMap<u8, Vec<u8>> = chunks.zip(first % 4..).map(|(shard, index)| (index, shard.to_vec())).collect();
    for (index, shard) in &found {
        if let Some(hash) = manifest.shard_hashes.get_mut(usize::from(*index)) {
            *hash = coding::content_hash(shard);
        }
    }
    let content = coding::reconstruct(&manifest, &found);
    content.is_ok_and(|content| coding::content_hash(&content) == manifest.content_hash)
}

fn fields(data: &[u8]) -> Option<Fields> {
    let list: Vec<(String, Vec<u8>)> = wire::decode(data).ok()?;
    Some(list.into_iter().fold(Fields::new(), |fields, (name, value)| fields.with(&name, value)))
}

fn personality(data: &[u8]) -> bool {
    let read = fields(data).map(|fields| Personality::from_fields(&fields, seeds::identity(1).agent()));
    let Some(Ok(personality)) = read else { return false };
    assert!(Personality::from_fields(&personality.to_fields(), personality.agent()).is_ok_and(|again| again == personality));
    let _ = personality.to_json();
    true
}

fn index(data: &[u8]) -> bool {
    let Some(Ok(index)) = fields(data).map(|fields| Index::from_fields(&fields)) else { return false };
    assert!(Index::from_fields(&index.to_fields()).is_ok_and(|again| again == index));
    true
}

fn relationship(data: &[u8]) -> bool {
    let me = seeds::identity(1);
    let read = fields(data).map(|fields| Relationship::from_fields(&fields, me.agent(), &Gullible));
    let Some(Ok(relationship)) = read else { return false };
    let again = Relationship::from_fields(&relationship.to_fields(me.signer()), me.agent(), &Ed25519Verifier);
    assert!(again.is_ok_and(|again| again == relationship));
    assert!([0.0, 0.5, 1.0].into_iter().all(|paranoia| relationship.comfort(paranoia).is_finite()));
    true
}

fn pair(data: &[u8]) -> bool {
    let Some(Ok(mut pair)) = fields(data).map(|fields| PairState::from_fields(&fields)) else { return false };
    assert!(PairState::from_fields(&pair.to_fields()).is_ok_and(|again| again == pair));
    let _ = (pair.next_counter(), pair.acknowledged(), pair.transcript());
    // What such a state says to a message, and a message made with it.
    let (me, card) = (seeds::identity(2), seeds::card(1));
    let _ = envelope::receive(&seeds::hello(), &Gullible, &me, Some(&pair), &card, 1);
    let _ = envelope::compose(&me, &mut pair, seeds::outgoing(&card, b"x"), &mut ChaCha20Rng::seed_from_u64(1));
    pair.restart_sending();
    true
}

/// A card, and a first contact with whoever shows it.
fn card(data: &[u8]) -> bool {
    let Ok(card) = Card::from_bytes(data, &Gullible) else { return false };
    let me = seeds::identity(1);
    let mut pair = PairState::new(&me, &card);
    let _ = envelope::compose(&me, &mut pair, seeds::outgoing(&card, b"x"), &mut ChaCha20Rng::seed_from_u64(1));
    true
}

fn commitment(data: &[u8]) -> bool {
    Commitment::from_bytes(data, &Gullible).is_ok_and(|commitment| same(data, &commitment.to_bytes()))
}

fn announcement(data: &[u8]) -> bool {
    Announcement::from_bytes(data, &Gullible).is_ok_and(|announcement| same(data, &announcement.to_bytes()))
}

fn envelope(data: &[u8]) -> bool {
    let Ok(parsed) = envelope::parse(data) else { return false };
    same(data, &wire::encode(parsed.envelope()));
    let Ok(verified) = parsed.verify_signature(&Gullible) else { return false };
    let (me, card) = (seeds::identity(2), seeds::card(1));
    let _ = envelope::judge(&verified, &me, None, &card, 1);
    let _ = envelope::judge(&verified, &me, Some(&seeds::pair()), &card, 1);
    true
}

/// The text as it is, and as the body of a ticket whose prefix, length and checksum are right.
fn ticket(data: &[u8]) -> bool {
    let read = |text: String| {
        text.parse::<Ticket>().is_ok_and(|ticket| {
            assert!(ticket.to_string().parse::<Ticket>().is_ok_and(|again| again == ticket));
            let _ = ticket.check_open();
            true
        })
    };
    let text = std::str::from_utf8(data).is_ok_and(|text| read(text.to_owned()));
    read(seeds::armoured(data)) || text
}

fn address(data: &[u8]) -> bool {
    let Some(Ok(address)) = std::str::from_utf8(data).ok().map(str::parse::<Address>) else { return false };
    assert!(address.to_string().parse::<Address>().is_ok_and(|again| again == address));
    assert!(address.without_peer().with_peer(PeerKey([7; 32])).peer() == Some(PeerKey([7; 32])));
    true
}

/// The file as it is, and with a checksum after it.
fn address_book(data: &[u8]) -> bool {
    let _ = AddressBook::from_bytes(data);
    let file = seeds::with_crc(data);
    let Ok(mut book) = AddressBook::from_bytes(&file) else { return false };
    same(&file, &book.to_bytes());
    let _ = book.candidates(usize::MAX, u64::MAX);
    let _ = book.candidates(3, 0);
    book.learned(PeerKey([9; 32]), &["/ip4/10.0.0.9/tcp/9"], u64::MAX);
    book.succeeded(PeerKey([9; 32]), "/ip4/10.0.0.9/tcp/9", 0);
    book.failed("/ip4/10.0.0.9/tcp/9", 1);
    assert!(AddressBook::from_bytes(&book.to_bytes()).is_ok());
    true
}

/// The text as it is, and as what stands in the base64 of a file.
fn recovery_file(data: &[u8]) -> bool {
    let read = |text: String| {
        RecoveryFile::decode(&text).is_ok_and(|file| {
            assert!(RecoveryFile::decode(&file.encode()).is_ok_and(|again| again == file));
            let _ = file.open(&[9; 32]);
            true
        })
    };
    let text = std::str::from_utf8(data).is_ok_and(|text| read(text.to_owned()));
    read(seeds::recovery_text(data)) || text
}

/// For a node of its own, that believes everything.
fn gullible() -> Arc<dyn Verifier> {
    Arc::new(Gullible)
}
