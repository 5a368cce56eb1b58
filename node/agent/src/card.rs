//! The card: what anyone who has the agent id may read (docs/spec/agent.md#card).
//!
//! A card carries its own signature, so that it can be handed on without its section. It opens the personality commitment as far as the
//! behaviour keys: whoever steals the signing key can sign another card, but not one that puts other behaviour keys under the same commitment.

use bincode::{Decode, Encode};
use persona_fragments::{
    Digest, OwnerKey, PeerKey, Signature, Signer, Verifier,
    wire::{self, DecodeError},
};

use crate::{
    commitment::commit,
    order::{self, OrderError},
    personality::{NAME_BYTES_MAX, ROLE_BYTES_MAX},
};

/// The size of an ML-KEM-768 encapsulation key (FIPS 203).
pub const MLKEM_PUBLIC_BYTES: usize = 1184;

/// The largest card.
pub const CARD_BYTES_MAX: usize = 4096;

const CARD_LABEL: &[u8] = b"persona/card/v1";

/// What an agent says about itself to everyone.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Card {
    /// The agent id, which is the key that signs.
    pub agent: OwnerKey,
    /// What people call it.
    pub name: String,
    /// What it is for, if its owner said so.
    pub role: Option<String>,
    /// The X25519 key of grants.
    pub agreement_key: [u8; 32],
    /// The X25519 half of the behaviour key.
    pub behaviour_x25519: [u8; 32],
    /// The ML-KEM-768 half of the behaviour key: [`MLKEM_PUBLIC_BYTES`].
    pub behaviour_mlkem: Vec<u8>,
    /// The part of the personality commitment that stays closed.
    pub concealed: Digest,
    /// C_A, the personality commitment. It follows from the agent, the behaviour keys and `concealed`.
    pub commitment: Digest,
    /// How often the agent was taken over by a new host; 1 at birth.
    pub term: u64,
    /// The node that hosts it now.
    pub home: PeerKey,
    /// The presentation elements it offers, ascending (docs/spec/envelope.md#registry).
    pub offered: Vec<u16>,
    /// When the card was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

#[derive(Encode, Decode)]
struct SignedCard {
    card: Card,
    signature: Signature,
}

/// Why bytes are not a card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// More than [`CARD_BYTES_MAX`].
    #[error("the card has {0} bytes, more than {CARD_BYTES_MAX}")]
    TooLarge(usize),
    /// Not a card's encoding.
    #[error("the card does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// A name or a role that is empty or too long, an ML-KEM key of the wrong length, or a term of 0.
    #[error("the card's {0} is out of range")]
    Range(&'static str),
    /// The presentation elements are not a canonical set.
    #[error("the card's presentation elements are refused: {0}")]
    Offered(#[from] OrderError),
    /// Not signed by the agent it names.
    #[error("the card's signature does not verify; it was altered or forged")]
    Signature,
    /// The behaviour keys are not those that the commitment binds.
    #[error("the card's behaviour keys are not those of its personality commitment; the signing key may be stolen")]
    Commitment,
}

impl Card {
    /// The signed card, as it is stored and handed on.
    pub fn to_bytes(&self, signer: &dyn Signer) -> Vec<u8> {
        let signature = signer.sign(&self.signed_bytes());
        wire::encode(&SignedCard { card: self.clone(), signature })
    }

    /// Reads a signed card: size, encoding, ranges, commitment, signature.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, CardError> {
        if bytes.len() > CARD_BYTES_MAX {
            return Err(CardError::TooLarge(bytes.len()));
        }
        let SignedCard { card, signature } = wire::decode(bytes)?;
        card.check()?;
        if !verifier.verify(&card.agent.0, &card.signed_bytes(), &signature) {
            return Err(CardError::Signature);
        }
        Ok(card)
    }

    fn check(&self) -> Result<(), CardError> {
        let within = |text: &str, most: usize| (1..=most).contains(&text.len());
        if !within(&self.name, NAME_BYTES_MAX) {
            return Err(CardError::Range("name"));
        }
        if self.role.as_ref().is_some_and(|role| !within(role, ROLE_BYTES_MAX)) {
            return Err(CardError::Range("role"));
        }
        if self.behaviour_mlkem.len() != MLKEM_PUBLIC_BYTES {
            return Err(CardError::Range("ML-KEM key"));
        }
        if self.term == 0 {
            return Err(CardError::Range("term"));
        }
        let canonical = order::canonical(&self.offered)?;
        if canonical != self.offered {
            return Err(CardError::Range("order of presentation elements"));
        }
        if commit(&self.agent, &self.behaviour_x25519, &self.behaviour_mlkem, &self.concealed) != self.commitment {
            return Err(CardError::Commitment);
        }
        Ok(())
    }

    fn signed_bytes(&self) -> Vec<u8> {
        [CARD_LABEL, &wire::encode(self)].concat()
    }
}

#[cfg(test)]
mod tests {
    use persona_fragments::Ed25519Verifier;

    use super::*;
    use crate::testing::{agent, thief};

    #[test]
    fn a_card_reads_back_as_it_was_signed() {
        let me = agent("ada", 1);
        let card = me.card(PeerKey([3; 32]), 1_000);
        let bytes = card.to_bytes(me.signer());
        assert!(bytes.len() < 2048, "{}", bytes.len());
        assert_eq!(Card::from_bytes(&bytes, &Ed25519Verifier), Ok(card));
    }

    #[test]
    fn a_card_with_any_bit_flipped_is_refused() {
        let me = agent("ada", 1);
        let bytes = me.card(PeerKey([3; 32]), 1_000).to_bytes(me.signer());
        for i in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[i] ^= 1 << (i % 8);
            assert!(Card::from_bytes(&altered, &Ed25519Verifier).is_err(), "byte {i}");
        }
        assert!((0..bytes.len()).all(|len| Card::from_bytes(&bytes[..len], &Ed25519Verifier).is_err()));
    }

    #[test]
    fn a_stolen_signing_key_cannot_put_other_behaviour_keys_under_the_commitment() {
        let (me, thief) = (agent("ada", 1), thief("ada", 1));
        let mut card = me.card(PeerKey([3; 32]), 1_000);
        card.behaviour_x25519 = *thief.behaviour_keys().x25519_public();
        card.behaviour_mlkem = thief.behaviour_keys().mlkem_public().to_vec();
        assert_eq!(Card::from_bytes(&card.to_bytes(me.signer()), &Ed25519Verifier), Err(CardError::Commitment));
    }

    #[test]
    fn a_card_signed_by_another_key_is_refused() {
        let (me, other) = (agent("ada", 1), agent("bob", 2));
        let card = me.card(PeerKey([3; 32]), 1_000);
        assert_eq!(Card::from_bytes(&card.to_bytes(other.signer()), &Ed25519Verifier), Err(CardError::Signature));
    }
}
