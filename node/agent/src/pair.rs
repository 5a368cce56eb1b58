//! The pair's keys (docs/spec/envelope.md#pair). Skeleton of the API.
#![allow(dead_code, unused_variables, missing_docs, clippy::todo)]
use persona_fragments::{Fields, OwnerKey};

use crate::{Card, Identity};

#[derive(Clone, PartialEq, Eq)]
pub struct PairState {}
impl std::fmt::Debug for PairState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairState(..)")
    }
}
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    #[error("missing")]
    Missing,
}
impl PairState {
    /// Before the first message in either direction.
    pub fn new(me: &Identity, partner: &Card) -> Self {
        todo!()
    }
    pub fn partner(&self) -> OwnerKey {
        todo!()
    }
    /// The fields of the section `keys/<partner>`.
    pub fn to_fields(&self) -> Fields {
        todo!()
    }
    pub fn from_fields(fields: &Fields) -> Result<Self, PairError> {
        todo!()
    }
}
