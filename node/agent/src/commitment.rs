//! The personality commitment: one agent, one personality, and everyone can hold it to that (docs/spec/agent.md#commitment).
//!
//! C_A binds the agent's behaviour keys and, blinded, everything it was born with. It is signed and gossiped at birth. A second commitment
//! for the same agent is refused and alarmed, unless it is a *re-binding*: next in sequence, naming the one before, endorsed by partners.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use persona_fragments::{
    Digest, OwnerKey, Signature, Signer, Verifier,
    wire::{self, DecodeError},
};
use sha2::{Digest as _, Sha256};

const DIGEST_LABEL: &str = "persona/personality-commitment/v1";
const SIGNED_LABEL: &[u8] = b"persona/commitment/v1";
const HASH_LABEL: &str = "persona/commitment-hash/v1";
const ENDORSED_LABEL: &[u8] = b"persona/endorsement/v1";

/// A re-binding needs the word of so many partners: one colluding or careless partner must not be enough.
pub const ENDORSEMENTS_MIN: usize = 3;

/// The most endorsements that a commitment may carry.
pub const ENDORSEMENTS_MAX: usize = 32;

/// The largest announcement: a commitment with every endorsement that it may have.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 4096;

/// The most agents whose commitment a node remembers. When full, a new one is not remembered and [`Observed::Full`] says so: the known ones
/// are never forgotten, because forgetting one would let a second personality in.
pub const COMMITMENTS_MAX: usize = 65_536;

/// C_A: binds an agent to its behaviour keys and, through `concealed`, to everything that it was born with.
pub fn commit(agent: &OwnerKey, behaviour_x25519: &[u8; 32], behaviour_mlkem: &[u8], concealed: &Digest) -> Digest {
    let hash = Sha256::new()
        .chain_update(DIGEST_LABEL)
        .chain_update(agent.0)
        .chain_update(behaviour_x25519)
        .chain_update(Sha256::digest(behaviour_mlkem))
        .chain_update(concealed.0);
    Digest(hash.finalize().into())
}

/// What the agent signs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Body {
    agent: OwnerKey,
    digest: Digest,
    sequence: u64,
    previous: Option<Digest>,
    issued_at_ms: u64,
}

/// A partner's word that a re-binding is the agent's own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Endorsement {
    /// The partner.
    pub partner: OwnerKey,
    /// Its signature over the commitment's body.
    pub signature: Signature,
}

/// A signed personality commitment.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Commitment {
    body: Body,
    signature: Signature,
    endorsements: Vec<Endorsement>,
}

/// Why bytes are not a commitment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitmentError {
    /// More than [`ANNOUNCEMENT_BYTES_MAX`].
    #[error("the announcement has {0} bytes, more than {ANNOUNCEMENT_BYTES_MAX}")]
    TooLarge(usize),
    /// Not the encoding of one.
    #[error("the commitment does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// A first commitment that names one before it, a later one that does not, or too many or repeated endorsements.
    #[error("the commitment's sequence, predecessor and endorsements do not fit together")]
    Malformed,
    /// Not signed by the agent it names.
    #[error("the commitment's signature does not verify; it was altered or forged")]
    Signature,
    /// An endorsement that its partner did not sign.
    #[error("the endorsement of {0} does not verify; ask that partner again")]
    Endorsement(OwnerKey),
}

impl Commitment {
    /// The commitment of a newborn agent, or of one that is announced again: sequence 0, no predecessor.
    pub fn first(agent: OwnerKey, digest: Digest, issued_at_ms: u64, signer: &dyn Signer) -> Self {
        Self::sign(Body { agent, digest, sequence: 0, previous: None, issued_at_ms }, signer)
    }

    /// The commitment that follows `previous` with another personality. It counts only once partners have endorsed it.
    pub fn rebind(previous: &Self, digest: Digest, issued_at_ms: u64, signer: &dyn Signer) -> Self {
        let body =
            Body { agent: previous.agent(), digest, sequence: previous.sequence() + 1, previous: Some(previous.hash()), issued_at_ms };
        Self::sign(body, signer)
    }

    fn sign(body: Body, signer: &dyn Signer) -> Self {
        let signature = signer.sign(&body.labelled(SIGNED_LABEL));
        Self { body, signature, endorsements: Vec::new() }
    }

    /// A partner's endorsement of this commitment.
    pub fn endorse(&self, partner: OwnerKey, signer: &dyn Signer) -> Endorsement {
        Endorsement { partner, signature: signer.sign(&self.body.labelled(ENDORSED_LABEL)) }
    }

    /// Adds endorsements, each partner once, at most [`ENDORSEMENTS_MAX`]; what is more is left out.
    #[must_use]
    pub fn endorsed_by(mut self, endorsements: impl IntoIterator<Item = Endorsement>) -> Self {
        self.endorsements.extend(endorsements);
        self.endorsements.sort_by_key(|endorsement| endorsement.partner);
        self.endorsements.dedup_by_key(|endorsement| endorsement.partner);
        self.endorsements.truncate(ENDORSEMENTS_MAX);
        self
    }

    /// Whose personality it is.
    pub fn agent(&self) -> OwnerKey {
        self.body.agent
    }

    /// C_A.
    pub fn digest(&self) -> Digest {
        self.body.digest
    }

    /// 0 for the first, one more for each re-binding.
    pub fn sequence(&self) -> u64 {
        self.body.sequence
    }

    /// The hash of the commitment that this one replaces.
    pub fn previous(&self) -> Option<Digest> {
        self.body.previous
    }

    /// When it was signed, in milliseconds since the Unix epoch.
    pub fn issued_at_ms(&self) -> u64 {
        self.body.issued_at_ms
    }

    /// The partners who vouch for it, by key.
    pub fn endorsements(&self) -> &[Endorsement] {
        &self.endorsements
    }

    /// What a later commitment names as `previous`. It does not cover the time of issue: announcing again is not re-binding.
    pub fn hash(&self) -> Digest {
        let Body { agent, digest, sequence, previous, .. } = &self.body;
        let hash = Sha256::new().chain_update(HASH_LABEL).chain_update(wire::encode(&(agent, digest, sequence, previous)));
        Digest(hash.finalize().into())
    }

    /// The bytes that are stored and sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads a commitment and verifies every signature in it.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, CommitmentError> {
        if bytes.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(CommitmentError::TooLarge(bytes.len()));
        }
        let commitment: Self = wire::decode(bytes)?;
        commitment.check(verifier)?;
        Ok(commitment)
    }

    fn check(&self, verifier: &dyn Verifier) -> Result<(), CommitmentError> {
        let follows = (self.body.sequence > 0) == self.body.previous.is_some();
        let ordered = self.endorsements.windows(2).all(|pair| pair[0].partner < pair[1].partner);
        let own = self.endorsements.iter().any(|endorsement| endorsement.partner == self.body.agent);
        if !follows || !ordered || own || self.endorsements.len() > ENDORSEMENTS_MAX {
            return Err(CommitmentError::Malformed);
        }
        if !verifier.verify(&self.body.agent.0, &self.body.labelled(SIGNED_LABEL), &self.signature) {
            return Err(CommitmentError::Signature);
        }
        let endorsed = self.body.labelled(ENDORSED_LABEL);
        match self.endorsements.iter().find(|word| !verifier.verify(&word.partner.0, &endorsed, &word.signature)) {
            Some(word) => Err(CommitmentError::Endorsement(word.partner)),
            None => Ok(()),
        }
    }
}

impl Body {
    fn labelled(&self, label: &[u8]) -> Vec<u8> {
        [label, &wire::encode(self)].concat()
    }
}

/// What is gossiped on `persona/<mesh>/announce`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Announcement {
    /// An agent's personality commitment.
    Commitment(Commitment),
}

impl Announcement {
    /// The bytes of a gossip message.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads a gossip message and verifies every signature in it.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, CommitmentError> {
        if bytes.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(CommitmentError::TooLarge(bytes.len()));
        }
        let announcement: Self = wire::decode(bytes)?;
        match &announcement {
            Self::Commitment(commitment) => commitment.check(verifier)?,
        }
        Ok(announcement)
    }
}

/// What a commitment is to a node that saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The first of its agent: remembered.
    New,
    /// The one that is known.
    Same,
    /// A re-binding that enough partners endorse: it replaces the known one.
    Rebound,
    /// One that the known one has replaced. Old gossip, no alarm.
    Superseded,
    /// Another personality under a known id, without the right to it. Deserves an alarm.
    Refused {
        /// The commitment that this node holds the agent to.
        known: Digest,
    },
    /// The first of its agent, but [`COMMITMENTS_MAX`] others are remembered: this one is not.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    digest: Digest,
    hash: Digest,
    sequence: u64,
    previous: Option<Digest>,
}

/// The commitments that a node holds agents to.
#[derive(Clone, Debug, Default)]
pub struct CommitmentRegistry {
    known: BTreeMap<OwnerKey, Known>,
}

impl CommitmentRegistry {
    /// A registry that knows nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges a verified commitment and remembers it if it counts. `may_endorse` says which partners' word this node takes for this agent;
    /// it must not take a stranger's, or three fresh keys could re-bind anyone whose signing key is stolen.
    pub fn observe(&mut self, commitment: &Commitment, may_endorse: &dyn Fn(&OwnerKey) -> bool) -> Observed {
        let hash = commitment.hash();
        let Some(known) = self.known.get(&commitment.agent()) else {
            if self.known.len() >= COMMITMENTS_MAX {
                return Observed::Full;
            }
            self.remember(commitment, hash);
            return Observed::New;
        };
        if hash == known.hash {
            return Observed::Same;
        }
        if known.previous == Some(hash) {
            return Observed::Superseded;
        }
        let partners: BTreeSet<OwnerKey> =
            commitment.endorsements().iter().map(|word| word.partner).filter(|partner| may_endorse(partner)).collect();
        let follows = known.sequence.checked_add(1) == Some(commitment.sequence()) && commitment.previous() == Some(known.hash);
        if !follows || partners.len() < ENDORSEMENTS_MIN {
            return Observed::Refused { known: known.digest };
        }
        self.remember(commitment, hash);
        Observed::Rebound
    }

    /// The commitment that this node holds `agent` to.
    pub fn known(&self, agent: &OwnerKey) -> Option<Digest> {
        self.known.get(agent).map(|known| known.digest)
    }

    /// How many agents are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn remember(&mut self, commitment: &Commitment, hash: Digest) {
        let known = Known { digest: commitment.digest(), hash, sequence: commitment.sequence(), previous: commitment.previous() };
        self.known.insert(commitment.agent(), known);
    }
}

#[cfg(test)]
mod tests {
    use persona_fragments::{Ed25519Signer, Ed25519Verifier};

    use super::*;

    fn key(seed: u8) -> (OwnerKey, Ed25519Signer) {
        let signer = Ed25519Signer::from_seed(&[seed; 32]);
        (OwnerKey(signer.public_key()), signer)
    }

    fn anyone(_: &OwnerKey) -> bool {
        true
    }

    fn endorsed(commitment: Commitment, seeds: std::ops::Range<u8>) -> Commitment {
        let words: Vec<Endorsement> = seeds.map(key).map(|(partner, signer)| commitment.endorse(partner, &signer)).collect();
        commitment.endorsed_by(words)
    }

    #[test]
    fn a_second_personality_is_refused_and_announcing_again_is_not() {
        let (ada, signer) = key(1);
        let mut registry = CommitmentRegistry::new();
        assert_eq!(registry.observe(&Commitment::first(ada, Digest([1; 32]), 10, &signer), &anyone), Observed::New);
        assert_eq!(registry.observe(&Commitment::first(ada, Digest([1; 32]), 99, &signer), &anyone), Observed::Same);
        let second = Commitment::first(ada, Digest([2; 32]), 11, &signer);
        assert_eq!(registry.observe(&second, &anyone), Observed::Refused { known: Digest([1; 32]) });
        assert_eq!(registry.known(&ada), Some(Digest([1; 32])));
    }

    #[test]
    fn a_rebinding_needs_its_predecessor_and_partners_whose_word_counts() {
        let (ada, signer) = key(1);
        let first = Commitment::first(ada, Digest([1; 32]), 10, &signer);
        let next = Commitment::rebind(&first, Digest([2; 32]), 20, &signer);
        let mut registry = CommitmentRegistry::new();
        registry.observe(&first, &anyone);
        let refused = Observed::Refused { known: Digest([1; 32]) };
        assert_eq!(registry.observe(&endorsed(next.clone(), 2..4), &anyone), refused, "two partners");
        assert_eq!(registry.observe(&endorsed(next.clone(), 2..5), &|_| false), refused, "three strangers");
        let skipping = Commitment::rebind(&next, Digest([3; 32]), 20, &signer);
        assert_eq!(registry.observe(&endorsed(skipping, 2..5), &anyone), refused, "a step left out");
        let rebound = endorsed(next, 2..5);
        assert_eq!(registry.observe(&rebound, &anyone), Observed::Rebound);
        assert_eq!(registry.observe(&first, &anyone), Observed::Superseded);
        assert_eq!(registry.observe(&rebound, &anyone), Observed::Same);
        assert_eq!(registry.known(&ada), Some(Digest([2; 32])));
    }

    #[test]
    fn a_full_registry_keeps_whom_it_knows() {
        let (ada, signer) = key(1);
        let mut registry = CommitmentRegistry::new();
        let known = Known { digest: Digest([0; 32]), hash: Digest([0; 32]), sequence: 0, previous: None };
        for i in 0..COMMITMENTS_MAX as u64 {
            let mut id = [0xff; 32];
            id[..8].copy_from_slice(&i.to_be_bytes());
            registry.known.insert(OwnerKey(id), known.clone());
        }
        assert_eq!(registry.observe(&Commitment::first(ada, Digest([1; 32]), 10, &signer), &anyone), Observed::Full);
        assert_eq!((registry.known(&ada), registry.len()), (None, COMMITMENTS_MAX));
    }

    #[test]
    fn announcements_read_back_and_no_altered_bit_passes() {
        let (ada, signer) = key(1);
        let first = Commitment::first(ada, Digest([1; 32]), 10, &signer);
        assert_eq!(Commitment::from_bytes(&first.to_bytes(), &Ed25519Verifier), Ok(first.clone()));
        let largest = endorsed(Commitment::rebind(&first, Digest([2; 32]), 20, &signer), 2..2 + ENDORSEMENTS_MAX as u8);
        let announcement = Announcement::Commitment(largest);
        let bytes = announcement.to_bytes();
        assert!(bytes.len() <= ANNOUNCEMENT_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Announcement::from_bytes(&bytes, &Ed25519Verifier), Ok(announcement));
        let bytes = Announcement::Commitment(first).to_bytes();
        for i in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[i / 8] ^= 1 << (i % 8);
            assert!(Announcement::from_bytes(&altered, &Ed25519Verifier).is_err(), "bit {i}");
        }
    }

    #[test]
    fn an_endorsement_by_somebody_else_or_by_the_agent_itself_is_refused() {
        let ((ada, signer), (bob, _), (_, eve)) = (key(1), key(2), key(3));
        let first = Commitment::first(ada, Digest([1; 32]), 10, &signer);
        let next = Commitment::rebind(&first, Digest([2; 32]), 20, &signer);
        let forged = next.clone().endorsed_by([next.endorse(bob, &eve)]);
        assert_eq!(Commitment::from_bytes(&forged.to_bytes(), &Ed25519Verifier), Err(CommitmentError::Endorsement(bob)));
        let own = next.clone().endorsed_by([next.endorse(ada, &signer)]);
        assert_eq!(Commitment::from_bytes(&own.to_bytes(), &Ed25519Verifier), Err(CommitmentError::Malformed));
    }
}
