//! An auditor of a mesh: it reads what happened ([`history`]) and says what of it may never happen.
//!
//! It shares no code with the protocol. What it knows of formats it has from docs/spec by way of `persona-foreign`, a stranger's decoder;
//! what it knows of the rules is written here a second time, from docs/guarantees.md. It sees frames as they travel, disks as they become
//! durable, and what users are told; of nodes it knows only which ones do what the protocol says.
//!
//! # What is checked
//!
//! Each line is a sentence of docs/guarantees.md; the functions say precisely what they look at, and `src/tests.rs` has for each a history
//! that breaks it and one that almost does.
//!
//! | | what may never happen | where |
//! |---|---|---|
//! | I1 | a value is returned, or a manifest kept, that its owner did not sign, or without a certificate, or with another content | `operations.rs`: `signed`; `storage.rs`: `prepared` |
//! | I2 | a poisoned version is returned to somebody, or a sound one called poisoned; a correct owner writes two manifests of a version | `signed`, `one_verdict`; `auditor.rs`: `leaves` |
//! | I3 | a regular get returns less than had committed when it began | `fresh` |
//! | I4 | something is returned that its writer had not let go of | `fresh` |
//! | I5 | an atomic get returns less than one that had ended before it began | `fresh` |
//! | I6 | a machine returns less than it had returned | `fresh` |
//! | I7 | fewer than `k` shards are left while no more holders are lost than the committed level says | `storage.rs`: `survives` |
//! | I8 | a correct holder acks two manifests of a version; one holder set certifies two | `traffic.rs`: `ack_is_honest`, `one_certificate` |
//! | I9 | a correct holder acks, confirms or names what is not durable on its disk | `ack_is_honest`, `is_told` |
//! | I10 | something is answered, served or returned after its life is over | `is_in_time`, `serves`, `fresh` |
//! | I11 | a holder drops a version, its bytes, its head or the memory of it before the rules allow | `prepared`, `head`, `nobody_needs` |
//! | I12 | a lower host commits after a higher one; a holder acks or confirms a lower host behind a fence | `not_fenced`, `is_not_fenced`, `higher_host` |
//! | I13 | more uncommitted versions, requests or bytes than the limits | `not_crowded`, `asked` |
//! | I14 | after everything healed, an operation never ends, a get fails that could succeed, a shard stays unplaced | `ends`, `must_succeed` |
//! | I16 | a put is called committed, or a head certified, without the acks and confirmations | `put_committed`, `head_is_honest`, `head` |
//! | I17 | a registered secret stands in a frame or on a disk | `keeps_secrets` |
//!
//! I15 (no input crashes a node) cannot be seen here: a crash ends the history.
//!
//! # What is excused
//!
//! Nothing is asked of a machine that is not correct. I3, I4, I5, I12 and the second half of I8 are promised while at most `f` holders of a
//! set are *faulty*: not correct, or with a disk that forgot without its process knowing (`DiskLost` unnoticed, `Rot`), or with a clock
//! that was off by more than half of the allowance, so that two of them may differ by more than it. A check that is left out for this
//! reason counts under the mark `beyond-f`. A holder that *knows* that it forgot is not faulty: it must say so, and count in no quorum.
//! While half of the clocks that a machine was told of are those of liars, or are off, so may their median be: it is not asked for I10, nor to
//! keep what I11 is about, nor to tell older sets before they expire (I16), nor to read (I14); no mark counts these. An ack of what a machine
//! had promised never to ack (I8) is none if this very manifest was certified there since. What was dropped between a question and its answer
//! may be acked in it (I9). No holders are asked of a version (I14) whose owner a higher host has fenced while a living section of that owner has
//! a set with more faulty holders than `f`: that host may never be able to take it over.
//! Times are judged with two seconds to spare, since a disk or a queue may lie between a decision and what is seen of it.
//!
//! # Bounds
//!
//! 65 536 frames wait for their answers at most (then the oldest is forgotten), 1 000 findings are kept. Manifests are kept until the end,
//! about 3 KB each: a history is as long as the memory allows.

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
