//! What a node keeps on its disk, as values: tables of keys and values, written in atomic batches (docs/spec/store.md).
//!
//! A batch is durable when the store says so, not before: whatever depends on it waits for that word.

/// A table of the node's store. The number is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Holder: shard bytes, by section key and the shard's hash: versions that renew the same bytes share them.
    Shard = 1,
    /// Holder: manifests that were acked here, by section key and version.
    Prepared = 2,
    /// Holder: the certified head of each section, by section key.
    Head = 3,
    /// Holder: the highest term of each agent that took over, by owner key, with its proof.
    Fence = 4,
    /// Holder: what expires when: expiry (big endian), section key, version.
    Expiry = 5,
    /// Reader: the highest version seen of each section, by section key.
    Floor = 6,
    /// Owner: a write that was begun and whose outcome is not yet known, by section key.
    Intent = 7,
    /// Owner: the sealed bytes and the last manifest of each section of this node's agents, by section key.
    Own = 8,
    /// Messages: sealed envelopes waiting for an acknowledgement.
    Outbox = 9,
    /// Messages: delivered ones, sealed for their agent.
    Inbox = 10,
    /// Personality commitments of agents, by owner key.
    Commitment = 11,
    /// This node's own small facts, by name.
    Meta = 12,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 12] = [
        Self::Shard,
        Self::Prepared,
        Self::Head,
        Self::Fence,
        Self::Expiry,
        Self::Floor,
        Self::Intent,
        Self::Own,
        Self::Outbox,
        Self::Inbox,
        Self::Commitment,
        Self::Meta,
    ];
}

/// One change: a value set, or a key removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub table: Table,
    /// Which key.
    pub key: Vec<u8>,
    /// The new value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

impl Write {
    /// Sets a value.
    pub fn set(table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// Removes a key.
    pub fn remove(table: Table, key: impl Into<Vec<u8>>) -> Self {
        Self { table, key: key.into(), value: None }
    }
}

/// Names a batch of writes until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistId(pub u64);

/// Names a read until its value is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);
