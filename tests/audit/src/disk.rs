//! What lies on a machine's disk, as far as promises depend on it: the holder's tables (docs/spec/quorum.md#records).

use std::collections::{BTreeMap, VecDeque};

use persona_foreign::head::Version;

use crate::book::ManifestId;

/// Rows whose dropping is remembered, of each machine.
pub(crate) const DROPPED_MAX: usize = 1024;

/// A section's key.
pub(crate) type Key = [u8; 32];

/// A row of table 2.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    /// An acked manifest.
    Held { id: ManifestId, index: u8, received_ms: u64, durable_us: u64, rotted: bool },
    /// A dropped one.
    Floor { until_ms: u64, rotted: bool },
}

/// A row of table 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shard {
    /// The bytes have the hash by which they are filed.
    pub fits: bool,
    pub rotted: bool,
}

/// A row of table 3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRow {
    pub id: ManifestId,
    /// When its last link, or without a lease its manifest, is over, allowance included; and this machine's place by that link.
    pub over_ms: u64,
    pub place: Option<usize>,
    pub at_us: u64,
    pub rotted: bool,
}

/// A certified head that became durable, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub version: Version,
    pub at_us: u64,
}

/// A row of table 4.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    /// The host that it speaks for: term and device.
    pub by: (u64, [u8; 32]),
    pub since_us: u64,
}

/// One machine's disk.
#[derive(Default)]
pub(crate) struct Disk {
    pub prepared: BTreeMap<(Key, Version), Row>,
    pub shards: BTreeMap<(Key, [u8; 32]), Shard>,
    pub heads: BTreeMap<Key, HeadRow>,
    /// By section: the heads that were the highest when they became durable, ascending; also those that have gone since.
    pub told: BTreeMap<Key, Vec<Told>>,
    /// By owner.
    pub fences: BTreeMap<[u8; 32], Fence>,
    /// What was dropped last: an answer that was made before may still be on its way out. Bounded by [`DROPPED_MAX`].
    pub dropped: VecDeque<(u64, Key, Version, ManifestId)>,
}

impl Disk {
    /// Since when a head at or above `version` has been durable here.
    pub(crate) fn told_at_least(&self, key: &Key, version: &Version) -> Option<Told> {
        self.told.get(key)?.iter().find(|told| told.version >= *version).copied()
    }

    /// Since when a head above `version` has been durable here.
    pub(crate) fn told_above(&self, key: &Key, version: &Version) -> Option<Told> {
        self.told.get(key)?.iter().find(|told| told.version > *version).copied()
    }

    /// The highest head that was ever durable here.
    pub(crate) fn highest_told(&self, key: &Key) -> Option<Version> {
        self.told.get(key)?.last().map(|told| told.version)
    }

    /// Rows of a section, ascending by version.
    pub(crate) fn rows(&self, key: &Key) -> impl Iterator<Item = (&Version, &Row)> {
        let lowest = Version { term: 0, device: [0; 32], seq: 0 };
        let highest = Version { term: u64::MAX, device: [0xff; 32], seq: u64::MAX };
        self.prepared.range((*key, lowest)..=(*key, highest)).map(|((_, version), row)| (version, row))
    }

    /// Bytes with this hash can be read.
    pub(crate) fn has_shard(&self, key: &Key, hash: &[u8; 32]) -> bool {
        self.shards.get(&(*key, *hash)).is_some_and(|shard| shard.fits && !shard.rotted)
    }
}
