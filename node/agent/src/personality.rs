//! The personality (docs/spec/agent.md#personality). Skeleton of the API.
#![allow(dead_code, unused_variables, missing_docs, clippy::todo)]
use persona_fragments::{Digest, Fields, OwnerKey};
use rand_core::CryptoRng;

use crate::secret::BehaviourSeed;

pub const NAME_BYTES_MAX: usize = 64;
pub const ROLE_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    pub time_ms: u64,
    pub place: String,
}
pub struct Genesis {
    pub agent: OwnerKey,
    pub name: String,
    pub role: Option<String>,
    pub birth: Birth,
    /// The user's JSON, verbatim; empty for none.
    pub attributes: Vec<u8>,
    pub mesh_secret: Option<[u8; 32]>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trait {
    Precision,
    Paranoia,
    Patience,
    Formality,
    Creativity,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuirkKind {}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quirk {}
#[derive(Clone, PartialEq, Eq)]
pub struct Personality {}
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersonalityError {
    #[error("missing")]
    Missing,
}
pub struct BehaviourKeys {}
impl BehaviourKeys {
    pub fn x25519_public(&self) -> &[u8; 32] {
        todo!()
    }
    pub fn mlkem_public(&self) -> &[u8] {
        todo!()
    }
}
impl Personality {
    pub fn birth(genesis: Genesis, rng: &mut dyn CryptoRng) -> Result<Self, PersonalityError> {
        todo!()
    }
    pub fn agent(&self) -> OwnerKey {
        todo!()
    }
    pub fn name(&self) -> &str {
        todo!()
    }
    pub fn role(&self) -> Option<&str> {
        todo!()
    }
    pub fn born(&self) -> &Birth {
        todo!()
    }
    pub fn trait_value(&self, which: Trait) -> f64 {
        todo!()
    }
    pub fn quirks(&self) -> &[Quirk] {
        todo!()
    }
    pub fn attributes(&self) -> &[u8] {
        todo!()
    }
    pub fn seed(&self) -> &BehaviourSeed {
        todo!()
    }
    pub fn concealed(&self) -> Digest {
        todo!()
    }
    pub fn commitment(&self) -> Digest {
        todo!()
    }
    pub fn behaviour_keys(&self) -> BehaviourKeys {
        todo!()
    }
    pub fn to_fields(&self) -> Fields {
        todo!()
    }
    pub fn from_fields(fields: &Fields, agent: OwnerKey) -> Result<Self, PersonalityError> {
        todo!()
    }
    pub fn to_json(&self) -> String {
        todo!()
    }
}
