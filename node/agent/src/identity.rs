//! An agent as its host runs it: the root secret, the personality, the term, and the keys kept ready for every message.

use std::sync::Arc;

use persona_fragments::{OwnerKey, PeerKey, Signer};
use x25519_dalek::PublicKey;

use crate::{
    card::Card,
    order::{self, OrderError},
    personality::{BehaviourKeys, Personality},
    secret::RootSecret,
};

/// What [`compose`](crate::compose) and [`judge`](crate::judge) need of the agent they work for.
pub struct Identity {
    root: RootSecret,
    signer: Arc<dyn Signer>,
    personality: Personality,
    keys: BehaviourKeys,
    term: u64,
    offered: Vec<u16>,
}

/// Why parts do not make an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The personality was born for another key.
    #[error("the personality belongs to {personality}, but this key is {key}; import the agent with its own recovery file")]
    Foreign {
        /// Whose personality it is.
        personality: OwnerKey,
        /// Whose key was given.
        key: OwnerKey,
    },
    /// The presentation elements cannot be used.
    #[error(transparent)]
    Offered(#[from] OrderError),
}

impl Identity {
    /// An agent that signs with the Ed25519 key of its root secret. `offered`: the registered elements that this host really offers.
    pub fn new(root: RootSecret, personality: Personality, term: u64, offered: &[u16]) -> Result<Self, IdentityError> {
        let signer = Arc::new(root.signer());
        Self::with_signer(root, signer, personality, term, offered)
    }

    /// The same with a signer of the caller's: the simulator's are cheaper.
    pub fn with_signer(
        root: RootSecret,
        signer: Arc<dyn Signer>,
        personality: Personality,
        term: u64,
        offered: &[u16],
    ) -> Result<Self, IdentityError> {
        let key = OwnerKey(signer.public_key());
        if key != personality.agent() {
            return Err(IdentityError::Foreign { personality: personality.agent(), key });
        }
        let offered = order::canonical(offered)?;
        let keys = personality.behaviour_keys();
        Ok(Self { root, signer, personality, keys, term, offered })
    }

    /// The agent id.
    pub fn agent(&self) -> OwnerKey {
        self.personality.agent()
    }

    /// How often the agent was taken over by a new host; 1 at birth.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Begins a higher term, after its card was certified; a lower one changes nothing.
    pub fn advance_term(&mut self, term: u64) {
        self.term = self.term.max(term);
    }

    /// The root secret.
    pub fn root(&self) -> &RootSecret {
        &self.root
    }

    /// Signs as the agent.
    pub fn signer(&self) -> &dyn Signer {
        self.signer.as_ref()
    }

    /// Who the agent is.
    pub fn personality(&self) -> &Personality {
        &self.personality
    }

    /// The behaviour keys, derived once.
    pub fn behaviour_keys(&self) -> &BehaviourKeys {
        &self.keys
    }

    /// The presentation elements, ascending.
    pub fn offered(&self) -> &[u16] {
        &self.offered
    }

    /// The agent's public card on the node `home`; `created_ms` is now, in milliseconds since the Unix epoch.
    pub fn card(&self, home: PeerKey, created_ms: u64) -> Card {
        Card {
            agent: self.agent(),
            name: self.personality.name().to_owned(),
            role: self.personality.role().map(str::to_owned),
            agreement_key: PublicKey::from(&self.root.agreement()).to_bytes(),
            behaviour_x25519: *self.keys.x25519_public(),
            behaviour_mlkem: self.keys.mlkem_public().to_vec(),
            concealed: self.personality.concealed(),
            commitment: self.personality.commitment(),
            term: self.term,
            home,
            offered: self.offered.clone(),
            created_ms,
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, term {})", self.agent().to_did(), self.term)
    }
}
