//! Signing and verifying, as arguments.
//!
//! Production signs with Ed25519. The simulator hands in keyed tags whose key table it owns, so that a seed costs microseconds.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::ids::Signature;

/// Signs with one key.
pub trait Signer: Send + Sync {
    /// The public half, by which others verify.
    fn public_key(&self) -> [u8; 32];
    /// Signs `message`, which starts with a domain label.
    fn sign(&self, message: &[u8]) -> Signature;
}

/// Verifies anyone's signature.
pub trait Verifier: Send + Sync {
    /// Whether `signature` was made over exactly `message` by the holder of `public_key`.
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool;
}

/// Ed25519 (RFC 8032). The key is wiped when dropped.
pub struct Ed25519Signer(SigningKey);

impl Ed25519Signer {
    /// The signer of a 32-byte Ed25519 seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }
}

impl Signer for Ed25519Signer {
    fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

/// Ed25519 with the strict rules (no small-order keys, canonical encodings), so that all nodes agree on what is valid.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ed25519Verifier;

impl Verifier for Ed25519Verifier {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(public_key) else { return false };
        key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    }
}
