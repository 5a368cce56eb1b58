//! An auditor of a mesh: it reads what happened ([`history`]) and says what of it may never happen.
//!
//! It shares no code with the protocol. What it knows of formats it has from docs/spec by way of `persona-foreign`, a stranger's decoder;
//! what it knows of the rules is written here a second time, from docs/guarantees.md.

mod auditor;
mod book;
mod codeword;
mod decode;
mod disk;
pub mod history;
mod operations;
mod secrets;
mod storage;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::BTreeMap;

use serde::Serialize;

pub use auditor::Auditor;

/// Says whether a signature (last) is that of a key (first) over a message. A history may have been made with cheaper signatures than
/// Ed25519; whoever reads it brings what judges them.
pub type Verify = Box<dyn FnMut(&[u8; 32], &[u8], &[u8; 64]) -> bool>;

/// Something that happened and may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The promise of docs/guarantees.md that it breaks, as `I3`.
    pub invariant: &'static str,
    /// When, in microseconds since the history began.
    pub at_us: u64,
    /// What: it names machine, section and version.
    pub what: String,
}

/// What a whole history showed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What may not happen, in the order in which it was noticed.
    pub findings: Vec<Finding>,
    /// How often each thing was seen that must be seen sometimes. Every mark is there, with 0 if need be.
    pub marks: BTreeMap<&'static str, u64>,
    /// Events read.
    pub events: u64,
}
