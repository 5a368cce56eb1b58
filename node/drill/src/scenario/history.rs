//! What happened, as those saw it who asked: times are microseconds of one monotonic clock.

use serde::Serialize;

/// Microseconds since the run began.
pub type Micros = u64;

/// Something that was asked of the mesh, or done to it.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A document was written.
    Put(Put),
    /// A document was read.
    Get(Get),
    /// An agent's core was read at its home.
    Core(Core),
    /// A home was asked to write after its agent was imported elsewhere.
    OldHome(OldHome),
    /// Something was broken or mended.
    Note {
        /// When.
        at: Micros,
        /// What, for a person.
        text: String,
    },
}

/// One put. Documents are numbered through all agents; each has one writer, whose puts do not overlap.
#[derive(Clone, Debug, Serialize)]
pub struct Put {
    /// Which document.
    pub document: usize,
    /// Its version: 1, 2, 3, ...
    pub number: u64,
    /// The node that was asked, from 0.
    pub node: usize,
    /// When it was asked.
    pub begin: Micros,
    /// When it answered, or the writer gave up.
    pub end: Micros,
    /// Whether it was acknowledged. If not, nobody knows.
    pub acked: bool,
    /// Readers who begin earlier may not see it: the end, or what the node named as `stale_until_ms`.
    pub fresh_from: Micros,
    /// Whether the node was sound all the while.
    pub sound: bool,
    /// What went wrong.
    pub why: Option<String>,
}

/// Who reads: a node that lost its disk is another reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Reader {
    /// The node, from 0.
    pub node: usize,
    /// How often it had lost its disk.
    pub life: u64,
}

/// One read in mode `regular` or `atomic`.
#[derive(Clone, Debug, Serialize)]
pub struct Get {
    /// Which document.
    pub document: usize,
    /// Who read.
    pub reader: Reader,
    /// How: the path that was asked.
    pub how: &'static str,
    /// When it was asked.
    pub begin: Micros,
    /// When it answered, or the reader gave up.
    pub end: Micros,
    /// Whether the node was sound all the while.
    pub sound: bool,
    /// Everything had healed: what it cannot read is lost.
    pub last: bool,
    /// What came of it.
    pub outcome: Seen,
}

/// What a read came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// The document's version of this number.
    Number(u64),
    /// Something that nobody wrote.
    Wrong(String),
    /// Nothing.
    Failed(String),
}

/// One read of a core.
#[derive(Clone, Debug, Serialize)]
pub struct Core {
    /// Whose.
    pub agent: String,
    /// Where.
    pub node: usize,
    /// When it answered.
    pub end: Micros,
    /// Whether it was byte for byte what was born.
    pub as_born: bool,
}

/// One attempt of an old home.
#[derive(Clone, Debug, Serialize)]
pub struct OldHome {
    /// Whose.
    pub agent: String,
    /// Where it had been at home.
    pub node: usize,
    /// When it answered.
    pub end: Micros,
    /// Whether it said that it had committed.
    pub acked: bool,
    /// What it said.
    pub said: String,
}
