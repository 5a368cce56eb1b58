//! A client that has never seen our code.
//!
//! It speaks libp2p and what docs/spec/wire.md, docs/spec/manifest.md, docs/spec/gossip.md and the layout in docs/spec/envelope.md say, and
//! it depends on no other crate of this repository, so that it can only know what the pages tell. Where it had to guess, the page was at
//! fault and was mended. The test beside it (`tests/e2e/tests/foreign.rs`) lets it join a mesh of real nodes.
//!
//! - [`frame`] reads and writes bytes by the rules for encoding, one value at a time.
//! - [`head`] decodes a certified head and checks it, step by step.
//! - [`gossip`] reads what passes on a lane and judges it as every member must.
//! - [`Client`] is a peer: it joins, finds others, reads and puts records, listens to topics.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a client of its own, with its own clock and sockets")]

#[cfg(feature = "client")]
mod client;
pub mod frame;
pub mod gossip;
pub mod head;

#[cfg(feature = "client")]
pub use client::{Client, ClientError, Message, Resolved, Served};

/// SHA-256 over several byte strings, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Whether `signature` is that of `key` over `message`, judged strictly (docs/spec/wire.md#signing).
pub fn verifies(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(key) else { return false };
    key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
}
