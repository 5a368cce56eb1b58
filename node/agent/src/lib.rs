//! Who the agent is: its secrets, its personality, its partners, and how it proves in every message that it is still itself.
//!
//! ```text
//! root secret --HKDF--> signing, agreement, recovery keys      (who may speak for the agent)
//! behaviour seed --HKDF--> traits, quirks, behaviour keys      (how the agent behaves; kept apart from the signing key)
//! two cards --X25519 + ML-KEM-768--> pair roots --> message keys --> presentation order and tag of each envelope
//! ```
//!
//! Everything here is pure: time, randomness and verification are arguments, and what changes is returned. What is stored or sent is
//! described first in `docs/spec/agent.md` and `docs/spec/envelope.md`.

pub mod card;
pub mod commitment;
pub mod envelope;
pub mod identity;
pub mod index;
pub mod natural;
pub mod order;
pub mod pair;
pub mod personality;
pub mod recovery;
pub mod relationship;
pub mod secret;

pub use card::{Card, CardError};
pub use commitment::{Announcement, Commitment, CommitmentError, CommitmentRegistry, Endorsement, Observed};
pub use envelope::{
    Accepted, ComposeError, Envelope, EnvelopeError, Kind, Mode, Outgoing, Parsed, Reason, Recipient, Verdict, Verified, compose, judge,
    parse, receive,
};
pub use identity::{Identity, IdentityError};
pub use index::{Index, IndexEntry, IndexError};
pub use pair::{PairError, PairState};
pub use personality::{BehaviourKeys, Birth, Genesis, Personality, PersonalityError, Quirk, QuirkKind, Trait};
pub use recovery::{KdfParams, Recovered, RecoveryError, RecoveryFile};
pub use relationship::{Direction, Entry, Interaction, Relationship, RelationshipError, Summary, Tallies};
pub use secret::{BehaviourSeed, RootSecret, published_name};

#[cfg(test)]
mod testing;
