//! Signatures that cost a hash. The simulator owns the secrets of all nodes, so a keyed tag is as good as a signature: nobody in the
//! simulation can make one without the secret, liars included. Agents sign with Ed25519, and each of their signatures is checked once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use persona_fragments::{Ed25519Signer, Ed25519Verifier, Signature, Signer, Verifier};
use sha2::{Digest as _, Sha256};

/// Who verifies anybody's signature.
#[derive(Default)]
pub struct Notary {
    secrets: BTreeMap<[u8; 32], [u8; 32]>,
    checked: Mutex<BTreeMap<[u8; 32], bool>>,
}

/// Signs with a keyed tag.
struct TagSigner {
    secret: [u8; 32],
}

fn tag(secret: &[u8; 32], message: &[u8]) -> Signature {
    let mut whole = [0; 64];
    whole[..32].copy_from_slice(blake3::keyed_hash(secret, message).as_bytes());
    Signature(whole)
}

impl Signer for TagSigner {
    fn public_key(&self) -> [u8; 32] {
        Sha256::digest([&b"public"[..], &self.secret].concat()).into()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        tag(&self.secret, message)
    }
}

/// The signer of the node with this secret: Ed25519 if `real`.
pub fn signer(secret: [u8; 32], real: bool) -> Box<dyn Signer> {
    if real { Box::new(Ed25519Signer::from_seed(&secret)) } else { Box::new(TagSigner { secret }) }
}

impl Notary {
    /// A notary who knows the secrets of these nodes.
    pub fn of(secrets: impl IntoIterator<Item = [u8; 32]>) -> Arc<Self> {
        let secrets = secrets.into_iter().map(|secret| (TagSigner { secret }.public_key(), secret)).collect();
        Arc::new(Self { secrets, checked: Mutex::default() })
    }
}

impl Verifier for Notary {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        if let Some(secret) = self.secrets.get(public_key) {
            return tag(secret, message) == *signature;
        }
        let what = *blake3::Hasher::new().update(public_key).update(&signature.0).update(message).finalize().as_bytes();
        let mut checked = self.checked.lock().expect("one thread");
        *checked.entry(what).or_insert_with(|| Ed25519Verifier.verify(public_key, message, signature))
    }
}
