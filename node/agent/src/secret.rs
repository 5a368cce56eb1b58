//! The two secrets of an agent, and what is derived from them (docs/spec/agent.md#secrets).
//!
//! The *root secret* says who may speak for the agent: its signing, agreement, recovery and disk keys come from it, each under a label of
//! its own. The *behaviour seed* says how the agent behaves. It is independent randomness and travels only sealed inside `core`, so that
//! whoever steals the signing key does not have the behaviour.

use hkdf::Hkdf;
use persona_fragments::{Ed25519Signer, OwnerKey, RecoveryKey, Signer as _};
use rand_core::CryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const SIGNING_LABEL: &[u8] = b"persona/agent-signing/v1";
const AGREEMENT_LABEL: &[u8] = b"persona/agent-agreement/v1";
const RECOVERY_LABEL: &[u8] = b"persona/agent-recovery/v1";
const LOCAL_LABEL: &[u8] = b"persona/agent-local/v1";
const NAME_LABEL: &[u8] = b"persona/section-name/v1";

/// Sections whose names everyone may know, because everyone may look for them.
pub const PUBLIC_SECTIONS: [&str; 3] = ["card", "core", "behavior"];

/// The 32 bytes from which every key that speaks for the agent is derived. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RootSecret([u8; 32]);

impl RootSecret {
    /// Fresh randomness: the beginning of an agent.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The secret that a keystore or a recovery file kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves, for a keystore or a recovery file that seals them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Signs as the agent.
    pub fn signer(&self) -> Ed25519Signer {
        Ed25519Signer::from_seed(&self.derive(SIGNING_LABEL, &[]))
    }

    /// The agent's public identity: the key that [`Self::signer`] signs with.
    pub fn agent_id(&self) -> OwnerKey {
        OwnerKey(self.signer().public_key())
    }

    /// Opens the owner's entry in every grants record of this agent.
    pub fn recovery_key(&self) -> RecoveryKey {
        RecoveryKey::from_bytes(*self.derive(RECOVERY_LABEL, &[]))
    }

    /// Seals what waits on the host's own disk for this agent: inbox and outbox.
    pub fn local_key(&self) -> Zeroizing<[u8; 32]> {
        self.derive(LOCAL_LABEL, &[])
    }

    /// The agreement key: others seal to its public half, which stands in the card.
    pub fn agreement(&self) -> StaticSecret {
        StaticSecret::from(*self.derive(AGREEMENT_LABEL, &[]))
    }

    fn derive(&self, label: &[u8], tail: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, &self.0).expand_multi_info(&[label, tail], key.as_mut()).expect("32 bytes are within HKDF's output");
        key
    }
}

impl PartialEq for RootSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for RootSecret {}

impl std::fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootSecret(..)")
    }
}

/// The name under which a section enters its storage key: as it is for [`PUBLIC_SECTIONS`], otherwise 32 bytes that only the owner can
/// compute, so that a crawler cannot see who knows whom.
pub fn published_name(root: &RootSecret, name: &str) -> Vec<u8> {
    if PUBLIC_SECTIONS.contains(&name) {
        return name.as_bytes().to_vec();
    }
    root.derive(NAME_LABEL, name.as_bytes()).to_vec()
}

/// S_A: the 32 random bytes behind traits, quirks and behaviour keys. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BehaviourSeed([u8; 32]);

impl BehaviourSeed {
    /// Fresh randomness, independent of the root secret.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The seed that `core` or a keystore kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves, for whoever seals them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for BehaviourSeed {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for BehaviourSeed {}

impl std::fmt::Debug for BehaviourSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BehaviourSeed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_of_the_root_secret_has_its_own_key() {
        let root = RootSecret::from_bytes([7; 32]);
        let keys = [
            *root.derive(SIGNING_LABEL, &[]),
            *root.derive(AGREEMENT_LABEL, &[]),
            *root.derive(RECOVERY_LABEL, &[]),
            *root.local_key(),
            published_name(&root, "index").try_into().expect("32 bytes"),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|other| other != key));
        }
        assert_eq!(root.agent_id(), RootSecret::from_bytes([7; 32]).agent_id());
        assert_ne!(root.agent_id(), RootSecret::from_bytes([8; 32]).agent_id());
    }

    #[test]
    fn only_public_sections_keep_their_names() {
        let (one, two) = (RootSecret::from_bytes([1; 32]), RootSecret::from_bytes([2; 32]));
        assert_eq!(published_name(&one, "card"), b"card");
        let name = "relationship/did:key:z6Mk";
        assert_eq!(published_name(&one, name).len(), 32);
        assert_ne!(published_name(&one, name), published_name(&two, name));
        assert_ne!(published_name(&one, name), published_name(&one, "keys/did:key:z6Mk"));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(
            format!("{:?} {:?}", RootSecret::from_bytes([9; 32]), BehaviourSeed::from_bytes([9; 32])),
            "RootSecret(..) BehaviourSeed(..)"
        );
    }
}
