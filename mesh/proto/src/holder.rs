//! What a holder keeps, promises and forgets (docs/spec/quorum.md#holder).
//!
//! A holder verifies before it stores, and signs only once the store has said that the bytes are durable. It acks one manifest per version,
//! ever, and drops a version for three reasons only: it has expired; a newer one has been certified here for a while; or it is proven
//! never to have committed. Merely seeing a newer version is no reason.

use persona_fragments::{CertifiedHead, Class, PeerKey, SectionKey, Signer, Verifier, wire::DecodeError};

use crate::{
    message::{Request, Response},
    storage::{PersistId, ReadId, Table, Write},
    time::Now,
};

/// How much a holder takes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderLimits {
    /// Uncommitted versions of one section and host; then `Busy`. Default: 3.
    pub prepared_per_section: usize,
    /// How long a version stays after a newer one was certified here, for readers that are just fetching it. Default: 10 s.
    pub grace_ms: u64,
    /// Sections, forward pointers included; then `Full`. Default: 16384.
    pub sections_max: usize,
    /// Bytes of all shards; then `Full`. Default: 4 GiB.
    pub shard_bytes_max: u64,
    /// Bytes of the shards and manifests of one owner; then `Full`. Default: 64 MiB.
    pub bytes_per_owner_max: u64,
    /// Fences; when full, one whose card has expired makes room, else `Full`. Default: 16384.
    pub fences_max: usize,
}

impl Default for HolderLimits {
    fn default() -> Self {
        Self {
            prepared_per_section: 3,
            grace_ms: 10_000,
            sections_max: 16_384,
            shard_bytes_max: 4 << 30,
            bytes_per_owner_max: 64 << 20,
            fences_max: 16_384,
        }
    }
}

/// By how much clocks may differ: nothing is refused or dropped for a smaller difference. 2 s for `active`, 10 s otherwise.
pub const fn clock_allowance_ms(class: Class) -> u64 {
    match class {
        Class::Active => 2_000,
        Class::Core | Class::Relationship | Class::Document => 10_000,
    }
}

/// Names an inbound request until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// What the caller does for a holder, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderOut {
    /// Answer an inbound request. Each call is answered exactly once.
    Reply {
        /// Which.
        call: CallId,
        /// The answer.
        response: Response,
    },
    /// Write this batch, atomically and after all batches before it; when it is durable, say so to [`Holder::persisted`].
    Persist {
        /// Names the batch.
        id: PersistId,
        /// The batch.
        writes: Vec<Write>,
    },
    /// Read this and hand the value to [`Holder::read_done`]. A read sees every batch that was reported durable.
    Read {
        /// Names the read.
        id: ReadId,
        /// Where.
        table: Table,
        /// Which key.
        key: Vec<u8>,
    },
    /// What Kademlia serves for this section changed: the certified head's bytes, or nothing.
    HeadChanged {
        /// The section.
        key: SectionKey,
        /// [`CertifiedHead::to_bytes`].
        record: Option<Vec<u8>>,
    },
}

/// Counts for `status` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HolderStats {
    /// Sections known, forward pointers included.
    pub sections: usize,
    /// Distinct shards stored.
    pub shards: usize,
    /// Their bytes.
    pub shard_bytes: u64,
    /// Uncommitted versions.
    pub prepared: usize,
    /// Fences.
    pub fences: usize,
}

/// Why a stored record cannot be loaded. The store is damaged: the caller stops rather than forget a promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The value is not what this table holds.
    #[error("a record of table {table:?} does not decode: {error}; restore the state directory, or start with an empty one")]
    Decode {
        /// Where.
        table: Table,
        /// How.
        error: DecodeError,
    },
    /// The value contradicts its key or itself.
    #[error("a record of table {0:?} does not fit its key; restore the state directory, or start with an empty one")]
    Mismatch(Table),
    /// Not a table that is loaded.
    #[error("table {0:?} is not loaded at start")]
    Table(Table),
}

/// All that one node holds for others.
pub struct Holder {
    limits: HolderLimits,
}

impl Holder {
    /// An empty holder that goes by the name `me`.
    pub fn new(_me: PeerKey, limits: HolderLimits) -> Self {
        Self { limits }
    }

    /// Takes in one stored record: every one of [`Table::Prepared`], [`Table::Head`] and [`Table::Fence`], in any order, before anything
    /// is handled. Shards are read when they are asked for.
    pub fn load(&mut self, _table: Table, _key: &[u8], _value: &[u8], _now: Now) -> Result<(), LoadError> {
        todo!()
    }

    /// What Kademlia serves after loading: section and record, of heads that have not expired.
    pub fn loaded_heads(&self, _now: Now) -> impl Iterator<Item = (SectionKey, Vec<u8>)> + '_ {
        std::iter::empty()
    }

    /// An inbound request. `signer` is needed only to renew acks that were signed before a restart.
    pub fn handle(
        &mut self,
        _call: CallId,
        _from: PeerKey,
        _request: Request,
        _now: Now,
        _signer: &dyn Signer,
        _verifier: &dyn Verifier,
    ) -> Vec<HolderOut> {
        todo!()
    }

    /// These batches are durable, and all before them. All acks that waited for them are signed together.
    pub fn persisted(&mut self, _ids: &[PersistId], _now: Now, _signer: &dyn Signer) -> Vec<HolderOut> {
        todo!()
    }

    /// The value of a read.
    pub fn read_done(&mut self, _id: ReadId, _value: Option<Vec<u8>>, _now: Now) -> Vec<HolderOut> {
        todo!()
    }

    /// Time has passed: forget what has expired. Call about once a second.
    pub fn tick(&mut self, _now: Now) -> Vec<HolderOut> {
        todo!()
    }

    /// Counts.
    pub fn stats(&self) -> HolderStats {
        todo!()
    }

    /// The certified head that this node would serve.
    pub fn head(&self, _key: &SectionKey, _now: Now) -> Option<CertifiedHead> {
        todo!()
    }

    /// The limits in force.
    pub fn limits(&self) -> &HolderLimits {
        &self.limits
    }
}
