//! A relationship (docs/spec/agent.md#relationship). Skeleton of the API.
#![allow(dead_code, unused_variables, missing_docs, clippy::todo)]
use persona_fragments::{Digest, Fields, OwnerKey, Signer, Verifier};

use crate::envelope::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Sent,
    Received,
}
/// One interaction, before it is chained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interaction {
    pub at_ms: u64,
    pub direction: Direction,
    pub kind: Kind,
    pub counter: u64,
    pub term: u64,
    pub payload: Digest,
    pub total_permille: Option<u16>,
}
/// A link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    pub interaction: Interaction,
    pub previous: Digest,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub sent: u64,
    pub received: u64,
    pub first_at_ms: u64,
    pub last_at_ms: u64,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    pub accepted: u64,
    pub alarms: u64,
}
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationshipError {
    #[error("missing")]
    Missing,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {}
impl Relationship {
    pub fn new(owner: OwnerKey, partner: OwnerKey) -> Self {
        todo!()
    }
    /// Appends, and returns the entry that the kept 256 no longer hold.
    pub fn append(&mut self, interaction: Interaction) -> Option<Entry> {
        todo!()
    }
    pub fn alarm(&mut self) {
        todo!()
    }
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        std::iter::empty()
    }
    pub fn summary(&self) -> &Summary {
        todo!()
    }
    pub fn tallies(&self) -> &Tallies {
        todo!()
    }
    pub fn head(&self) -> Digest {
        todo!()
    }
    pub fn comfort(&self, paranoia: f64) -> f64 {
        todo!()
    }
    pub fn to_fields(&self, signer: &dyn Signer) -> Fields {
        todo!()
    }
    pub fn from_fields(fields: &Fields, owner: OwnerKey, verifier: &dyn Verifier) -> Result<Self, RelationshipError> {
        todo!()
    }
}
