//! Signatures that cost a hash. The simulator owns the secrets of all nodes and agents, so a keyed tag is as good as a signature: nobody in
//! the simulation can make one without the secret, liars included. Cards, envelopes and cheats sign with Ed25519 all the same, and each of
//! those signatures is checked once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use persona_core::{OwnerSigner, ed25519_owner};
use persona_fragments::{Ed25519Signer, Ed25519Verifier, Signature, Signer, Verifier};
use sha2::{Digest as _, Sha256};

/// Who verifies anybody's signature.
#[derive(Default)]
pub struct Notary {
    secrets: Mutex<BTreeMap<[u8; 32], [u8; 32]>>,
    checked: Mutex<BTreeMap<[u8; 32], bool>>,
}

/// Signs with a keyed tag.
struct TagSigner {
    public_key: [u8; 32],
    secret: [u8; 32],
}

impl TagSigner {
    /// Of a node with this secret.
    fn of_node(secret: [u8; 32]) -> Self {
        Self { public_key: Sha256::digest([&b"public"[..], &secret].concat()).into(), secret }
    }
}

fn tag(secret: &[u8; 32], message: &[u8]) -> Signature {
    let mut whole = [0; 64];
    whole[..32].copy_from_slice(blake3::keyed_hash(secret, message).as_bytes());
    Signature(whole)
}

impl Signer for TagSigner {
    fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    fn sign(&self, message: &[u8]) -> Signature {
        tag(&self.secret, message)
    }
}

/// The signer of the node with this secret: Ed25519 if `real`.
pub fn signer(secret: [u8; 32], real: bool) -> Box<dyn Signer> {
    if real { Box::new(Ed25519Signer::from_seed(&secret)) } else { Box::new(TagSigner::of_node(secret)) }
}

impl Notary {
    /// A notary who knows the secrets of these nodes.
    pub fn of(secrets: impl IntoIterator<Item = [u8; 32]>) -> Arc<Self> {
        let secrets = secrets.into_iter().map(|secret| (TagSigner::of_node(secret).public_key, secret)).collect();
        Arc::new(Self { secrets: Mutex::new(secrets), checked: Mutex::default() })
    }

    /// What agents sign their sections with, under the ids that they would have anyway: Ed25519 if `real`.
    pub fn owner_signer(self: &Arc<Self>, real: bool) -> OwnerSigner {
        if real {
            return ed25519_owner();
        }
        let notary = self.clone();
        Arc::new(move |root| {
            let (public_key, secret) = (root.agent_id().0, blake3::derive_key("owner", root.expose()));
            notary.secrets.lock().expect("one thread").insert(public_key, secret);
            Box::new(TagSigner { public_key, secret })
        })
    }
}

impl Verifier for Notary {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        let secret = self.secrets.lock().expect("one thread").get(public_key).copied();
        if secret.is_some_and(|secret| tag(&secret, message) == *signature) {
            return true;
        }
        let what = *blake3::Hasher::new().update(public_key).update(&signature.0).update(message).finalize().as_bytes();
        let mut checked = self.checked.lock().expect("one thread");
        *checked.entry(what).or_insert_with(|| Ed25519Verifier.verify(public_key, message, signature))
    }
}
