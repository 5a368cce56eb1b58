//! An auditor of a mesh: it reads what happened ([`history`]) and says what of it may never happen.
//!
//! It shares no code with the protocol. What it knows of formats it has from docs/spec by way of `persona-foreign`, a stranger's decoder;
//! what it knows of the rules is written here a second time, from docs/guarantees.md.

pub mod history;

use std::collections::BTreeMap;

use history::Event;
use persona_foreign::head::Version;
use serde::Serialize;

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

/// Judges a history, one event at a time.
pub struct Auditor {
    verify: Verify,
    report: Report,
}

impl Auditor {
    /// Of a history of which nothing was read yet.
    pub fn new(verify: Verify) -> Self {
        Self { verify, report: Report::default() }
    }

    /// Reads the next event.
    pub fn observe(&mut self, event: &Event) {
        let _ = (&mut self.verify, event);
        self.report.events += 1;
    }

    /// These bytes may appear in no frame and in nothing durable (I17). At least 8 bytes; shorter ones are not looked for.
    pub fn secret(&mut self, bytes: &[u8]) {
        let _ = bytes;
    }

    /// An abort certificate proves that this version never committed: its holders may drop it. Its format is reserved, so whoever writes
    /// one tells.
    pub fn aborted(&mut self, key: [u8; 32], version: Version) {
        let _ = (key, version);
    }

    /// What was found up to here.
    pub fn findings(&self) -> &[Finding] {
        &self.report.findings
    }

    /// How often each thing was seen that must be seen sometimes.
    pub fn marks(&self) -> &BTreeMap<&'static str, u64> {
        &self.report.marks
    }

    /// What can be judged only in the end is judged, and everything is handed over.
    pub fn finish(self) -> Report {
        self.report
    }
}
