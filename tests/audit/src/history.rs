//! What happened in a mesh, as somebody wrote it down who stood beside it: the simulator, or the harness of real processes.
//!
//! A history is a sequence of [`Event`]s in the order in which they happened. The auditor looks at nothing else: not at the nodes, not at
//! their code. Peers, keys and digests are the 32 bytes of the formats in docs/spec; frames are the bytes that travelled.

use serde::{Deserialize, Serialize};

/// A machine of the mesh, numbered by whoever writes the history.
pub type Machine = u32;

/// Names an operation, a frame or a call within one history.
pub type Id = u64;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds on an ideal clock since the history began. Never goes back.
    pub at_us: u64,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The first event: what the ideal clock showed, and what the nodes are told.
    Begins {
        /// Milliseconds since the Unix epoch at `at_us` 0.
        wall_ms: u64,
        /// How long a holder keeps a version after a newer one was certified at it, in milliseconds.
        grace_ms: u64,
        /// Uncommitted versions of one host of a section that a holder keeps at most.
        prepared_max: u32,
    },
    /// A machine exists from now on, with an empty disk.
    Machine {
        /// Which.
        machine: Machine,
        /// The public key of its node.
        peer: [u8; 32],
        /// Whether its node does what the protocol says. Nothing is asked of one that does not.
        correct: bool,
    },
    /// A process starts on a machine's disk.
    Up {
        /// Which machine.
        machine: Machine,
    },
    /// Its process is gone, and what was not durable with it.
    Down {
        /// Which machine.
        machine: Machine,
    },
    /// Its wall clock is off by so much from now on.
    Skew {
        /// Which machine.
        machine: Machine,
        /// Milliseconds ahead of the ideal clock.
        ahead_ms: i64,
    },
    /// Its disk became empty, or went back to what it was; what is on it now follows as [`What::Durable`].
    DiskLost {
        /// Which machine.
        machine: Machine,
        /// Whether its next process can know (a missing store), or not (a snapshot rolled back, a lying disk).
        noticed: bool,
    },
    /// One stored value rotted: reads of it return nothing or something else. Its process does not know.
    Rot {
        /// Which machine.
        machine: Machine,
        /// Which table, by its number in docs/spec/store.md.
        table: u8,
        /// Which key.
        key: Vec<u8>,
    },
    /// These changes became durable on a machine's disk, together.
    Durable {
        /// Which machine.
        machine: Machine,
        /// The changes.
        writes: Vec<Change>,
    },
    /// A process handed a frame of requests to the network (docs/spec/quorum.md#messages).
    Asked {
        /// Names the frame.
        frame: Id,
        /// Who asks.
        from: Machine,
        /// Who is asked, by its key.
        to: [u8; 32],
        /// The frame.
        bytes: Vec<u8>,
    },
    /// A process handed the answer to a frame to the network.
    Answered {
        /// Which frame.
        frame: Id,
        /// Who answers.
        from: Machine,
        /// The answers.
        bytes: Vec<u8>,
    },
    /// The answer arrived. A frame may be answered twice, late, or never.
    Heard {
        /// Which frame.
        frame: Id,
    },
    /// What a process serves to Kademlia for a section changed.
    Serves {
        /// Which machine.
        machine: Machine,
        /// The section.
        key: [u8; 32],
        /// The record (docs/spec/wire.md#certified-head); `None`: nothing any more.
        record: Option<Vec<u8>>,
    },
    /// Somebody began to put new content, or to take a section over.
    PutBegins {
        /// Names the operation.
        op: Id,
        /// Where.
        machine: Machine,
        /// The section.
        key: [u8; 32],
    },
    /// It ended.
    PutEnds {
        /// Which operation.
        op: Id,
        /// How.
        outcome: PutOutcome,
    },
    /// Somebody began to get a section.
    GetBegins {
        /// Names the operation.
        op: Id,
        /// Where.
        machine: Machine,
        /// The section.
        key: [u8; 32],
        /// How fresh it must be.
        mode: Mode,
    },
    /// It ended.
    GetEnds {
        /// Which operation.
        op: Id,
        /// How.
        outcome: GetOutcome,
    },
    /// An operator was told.
    Alarm {
        /// Where.
        machine: Machine,
        /// Its kind.
        kind: String,
    },
    /// No fault begins after this: everything that was cut is healed, and at most `f` holders of any section stay away or lie.
    Heals,
    /// The last event. Whatever was begun and did not end by now never will.
    Ends,
}

/// A value was set, or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which table, by its number in docs/spec/store.md.
    pub table: u8,
    /// Which key.
    pub key: Vec<u8>,
    /// The new value; `None`: the key is gone.
    pub value: Option<Vec<u8>>,
}

/// How fresh a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    /// Any unexpired certified version.
    Any,
    /// At least what had committed before.
    Regular,
    /// And never older than what another atomic get returned.
    Atomic,
}

/// How a put ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutOutcome {
    /// It is said to have committed.
    Committed {
        /// `TERM.DEVICE.SEQ`, the device by its first eight hex digits, as reports have it.
        version: String,
        /// The level that is said to have been reached.
        level: u8,
        /// `BoundedStale`: until then older versions may be found (milliseconds since the Unix epoch).
        stale_until_ms: Option<u64>,
    },
    /// Nobody can say whether it counts.
    Unknown,
    /// Another host has taken over, it was told.
    Fenced,
    /// It was refused before anything was sent.
    Refused,
}

/// How a get ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GetOutcome {
    /// A value.
    Value {
        /// The certified head that it was read by: the value of docs/spec/wire.md#certified-head.
        head: Vec<u8>,
        /// The sealed bytes, if they were wanted.
        content: Option<Vec<u8>>,
        /// The label: how fresh it is said to be.
        fresh: Mode,
    },
    /// Nothing, by the title of the error in docs/spec/api.md.
    Error {
        /// `not-found`, `unavailable`, `data-lost`, …
        title: String,
    },
}
