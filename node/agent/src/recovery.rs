//! The recovery file (docs/spec/agent.md#recovery-file). Skeleton of the API.
#![allow(dead_code, unused_variables, missing_docs, clippy::todo)]
use persona_fragments::OwnerKey;
use rand_core::CryptoRng;

use crate::secret::RootSecret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KdfParams {
    pub salt: [u8; 16],
    pub m_kib: u32,
    pub t: u32,
    pub p: u32,
}
pub struct Recovered {
    pub root: RootSecret,
    pub agent: OwnerKey,
    pub name: String,
}
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error("does not open")]
    Passphrase,
}
pub struct RecoveryFile {}
impl RecoveryFile {
    pub fn seal(root: &RootSecret, name: &str, kdf: KdfParams, key: &[u8; 32], rng: &mut dyn CryptoRng) -> Self {
        todo!()
    }
    pub fn kdf(&self) -> &KdfParams {
        todo!()
    }
    pub fn open(&self, key: &[u8; 32]) -> Result<Recovered, RecoveryError> {
        todo!()
    }
    /// Printable lines, under 1 KB.
    pub fn encode(&self) -> String {
        todo!()
    }
    pub fn decode(text: &str) -> Result<Self, RecoveryError> {
        todo!()
    }
}
