//! What a holder keeps, promises and forgets (docs/spec/quorum.md#holder).
//!
//! A holder verifies before it stores, and signs only once the store has said that the bytes are durable. It acks one manifest per version,
//! ever, and drops a version for three reasons only: it has expired; a newer one has been certified here for a while; or it is proven
//! never to have committed. Merely seeing a newer version is no reason.

#![allow(clippy::result_large_err, reason = "the error is an early answer, and is sent as it is")]

mod abort;
mod amnesia;
mod lease;
mod probe;

pub use amnesia::{RECOVERING_MS, RECOVERY_WAIT_MS, lost_store_mark};

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use persona_fragments::{
    Ack, AckLeaf, CertifiedHead, Class, DeviceId, Digest, Equivocation, Link, OwnerKey, PeerKey, SectionKey, SignedManifest, Signer,
    Verifier, Version,
    ack::ACK_BATCH_MAX,
    certificate::HeadWire,
    coding::{content_hash, shard_matches},
    manifest::{Manifest, ManifestWire, RENEW_MS_MAX},
    mutants::{self, Mutant},
    sign_batch,
    wire::{self, DecodeError},
};

pub(crate) use self::lease::{SIGNED_MAX, pause_us};
use self::{
    amnesia::Amnesia,
    lease::{Probes, Proposal, Signed, consented, is_lease_key, signature},
};
use crate::{
    message::{HeadAnswer, PreparedWire, RecallAnswer, Refusal, Request, Response, ShardWire},
    storage::{PersistId, ReadId, Table, Write},
    time::Now,
};

/// Inbound requests that wait for the disk. When there are so many, further ones are answered `Busy`.
const CALLS_OPEN_MAX: usize = 4_096;

/// Uncommitted versions of one section by hosts in all, as a multiple of those of one host: a crashed host's leftovers must not keep the
/// host that took over from writing.
const HOSTS_PREPARED_MAX: usize = 4;

/// The name of the section whose certified version is a fence.
pub(crate) const CARD_NAME: &[u8] = b"card";

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
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
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
    /// An owner's key signed two manifests of one version: here is the proof. Told whenever it is come upon.
    Equivocation(Box<Equivocation>),
    /// This node lost its store and is asked about a section: run a [`Recover`](crate::Recover) and hand its result to
    /// [`Holder::recovered`], also where it cannot be run. At most 32 at once.
    Recover {
        /// The section.
        key: SectionKey,
        /// The highest certified head that is here, or was just shown.
        known: Option<Box<CertifiedHead>>,
        /// The manifest that was to be prepared.
        asked: Option<Box<SignedManifest>>,
    },
    /// It is this node's turn to renew a section whose owner is silent: run a [`Renewal`](crate::Renewal). Where it cannot be run, it is
    /// another holder's turn soon.
    Lead {
        /// The head to renew.
        head: Box<CertifiedHead>,
        /// The link that this node acked and that may be certified.
        lock: Option<Link>,
    },
    /// What this node signed for its own turn, after [`Holder::lead`]: hand it to [`Renewal::consented`](crate::Renewal::consented).
    Led {
        /// The section.
        key: SectionKey,
        /// The consent.
        consent: Ack,
        /// The ack, where that needs no further word.
        ack: Option<Ack>,
    },
    /// Ask this peer anything, HEAD of this section, and tell [`Holder::probed`] whether it answered.
    Probe {
        /// Whom.
        peer: PeerKey,
        /// What about.
        key: SectionKey,
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
    /// Since when, in milliseconds since the Unix epoch, this node is recovering from the loss of its store.
    pub lost_store_ms: Option<u64>,
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
    me: PeerKey,
    limits: HolderLimits,
    sections: BTreeMap<SectionKey, Section>,
    fences: BTreeMap<OwnerKey, Fence>,
    /// Bytes of shards and manifests by owner, for the limit.
    owner_bytes: BTreeMap<OwnerKey, u64>,
    shards: usize,
    shard_bytes: u64,
    /// When to look at a section again, by the monotonic and by the wall clock.
    due_mono: BTreeSet<(u64, SectionKey)>,
    due_wall: BTreeSet<(u64, SectionKey)>,
    last_id: u64,
    persists: BTreeMap<PersistId, Vec<Then>>,
    reads: BTreeMap<ReadId, PendingRead>,
    calls_open: usize,
    /// The disk is nearly full: no new shard is taken.
    disk_low: bool,
    amnesia: Amnesia,
    probes: Probes,
    /// Whether this node's clock is good enough for class active.
    clock_trusted: bool,
}

/// What this node knows of one section.
#[derive(Default)]
struct Section {
    /// Manifests that were acked here, or will be once they are durable.
    versions: BTreeMap<Version, Stored>,
    /// Versions that are not stored here, and of which nothing else may be acked, or nothing at all.
    floors: BTreeMap<Version, Floor>,
    /// Shard bytes here, by hash, shared by the versions that renew them.
    shards: BTreeMap<Digest, ShardUse>,
    /// The highest certified version, durable.
    head: Option<Head>,
    /// Higher ones that are not durable yet.
    coming: Vec<(PersistId, Head)>,
    /// What was signed here in handovers.
    signed: Option<Signed>,
    /// The last batch with such a signature, until it is durable and after.
    signing: Option<PersistId>,
    /// The highest generation of a manifest that this node has looked at as its turn.
    led: Option<(Digest, u32)>,
    /// Where the section stands in `due_mono` and `due_wall`.
    due: (u64, u64),
}

struct Stored {
    manifest: SignedManifest,
    index: u8,
    life: Life,
    /// The batch it waits for; `None`: durable.
    coming: Option<PersistId>,
    /// `None` until signed, and after a restart.
    ack: Option<Ack>,
    /// When, on the monotonic clock, a newer version was certified here.
    superseded_at_us: Option<u64>,
}

struct Floor {
    manifest_hash: Digest,
    until_ms: u64,
    why: Why,
    /// The batch it waits for; `None`: durable.
    coming: Option<PersistId>,
}

/// Why a version has a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It was stored here, and dropped.
    Dropped,
    /// This node lost its store, and others have it prepared: it may have been acked here.
    Learnt,
    /// This node promised, as the holder with this index, never to ack any manifest of it.
    Never(u8),
    /// It was given up: an abort certificate was shown.
    Aborted,
}

impl Floor {
    fn new(manifest_hash: Digest, until_ms: u64, why: Why) -> Self {
        Self { manifest_hash, until_ms, why, coming: None }
    }

    fn record(&self) -> PreparedRecord {
        let Self { manifest_hash, until_ms, .. } = *self;
        match self.why {
            Why::Dropped => PreparedRecord::Floor { manifest_hash, until_ms },
            Why::Learnt => PreparedRecord::Learnt { manifest_hash, until_ms },
            Why::Never(index) => PreparedRecord::Never { manifest_hash, index, until_ms },
            Why::Aborted => PreparedRecord::Aborted { manifest_hash, until_ms },
        }
    }
}

struct ShardUse {
    len: u64,
    versions: usize,
    /// The disk no longer has the bytes, or has others.
    lost: bool,
}

struct Head {
    head: CertifiedHead,
    life: Life,
    received_ms: u64,
    /// Kept until then, on the wall clock, so that nothing that it supersedes comes back.
    keep_until_ms: u64,
    /// Whether Kademlia serves it.
    served: bool,
}

struct Fence {
    head: CertifiedHead,
    coming: Option<PersistId>,
}

/// Until when a manifest counts here: by the owner's clock and the allowance, and by this node's own; whichever ends first.
#[derive(Clone, Copy)]
struct Life {
    until_ms: u64,
    until_us: u64,
}

impl Life {
    fn of(manifest: &Manifest, received_ms: u64, now: Now) -> Self {
        Self::lasting(manifest.ttl_ms, expiry_ms(manifest), received_ms, now)
    }

    /// That of a head which was learnt at `received_ms`: its last link counts.
    fn of_head(head: &CertifiedHead, received_ms: u64, now: Now) -> Self {
        let lasts_ms = head.expires_at_ms().saturating_sub(head.renewed_at_ms());
        Self::lasting(lasts_ms, head_expiry_ms(head), received_ms, now)
    }

    fn lasting(lasts_ms: u64, until_ms: u64, received_ms: u64, now: Now) -> Self {
        let left_ms = lasts_ms.saturating_sub(now.wall_ms.saturating_sub(received_ms));
        Self { until_ms, until_us: now.mono_us.saturating_add(left_ms.saturating_mul(1000)) }
    }

    fn over(&self, now: Now) -> bool {
        !mutants::on(Mutant::ServeExpired) && self.passed(now)
    }

    fn passed(&self, now: Now) -> bool {
        now.wall_ms >= self.until_ms || now.mono_us >= self.until_us
    }
}

/// When nobody counts it any more, whatever his clock within the allowance.
pub(crate) fn expiry_ms(manifest: &Manifest) -> u64 {
    manifest.expires_at_ms().saturating_add(clock_allowance_ms(manifest.class))
}

/// The same of a head: its last link counts.
pub(crate) fn head_expiry_ms(head: &CertifiedHead) -> u64 {
    head.expires_at_ms().saturating_add(clock_allowance_ms(head.manifest.class))
}

/// A host of an agent: a later term beats a device.
pub(crate) fn host(version: &Version) -> (u64, DeviceId) {
    (version.term, version.device)
}

/// The order of certified heads. One version has two certified manifests only if its owner equivocated: then all prefer the same one. Of one
/// manifest the later link counts.
pub(crate) type Rank = (Version, Digest, u32);

pub(crate) fn rank(manifest: &SignedManifest) -> Rank {
    (manifest.version, manifest.hash(), 0)
}

pub(crate) fn head_rank(head: &CertifiedHead) -> Rank {
    (head.manifest.version, head.manifest.hash(), head.generation())
}

/// What happens once a batch is durable.
enum Then {
    Stored { key: SectionKey, version: Version, id: PersistId },
    Certified { key: SectionKey, id: PersistId },
    Fenced { owner: OwnerKey, id: PersistId },
    Recovered { key: SectionKey, since_ms: u64 },
    Floored { key: SectionKey, version: Version, id: PersistId },
    Ack { call: CallId, key: SectionKey, version: Version },
    Commit { call: CallId, key: SectionKey, owner: OwnerKey, rank: Rank },
    Head { call: CallId, key: SectionKey, with_shard: bool },
    Promise { call: CallId, key: SectionKey, version: Version, index: u8 },
    Prepared { call: CallId, key: SectionKey, version: Version },
    Aborted { call: CallId },
    Consented { call: CallId, consent: AckLeaf, ack: Option<AckLeaf> },
    HandedOver { call: CallId, leaf: AckLeaf },
    Led { key: SectionKey, consent: AckLeaf, ack: Option<AckLeaf> },
}

struct PendingRead {
    call: CallId,
    key: SectionKey,
    index: u8,
    hash: Digest,
    /// Of the version that it belongs to: a slow disk must not make it longer.
    life: Life,
    /// The answer to `Head` that waits for its shard; `None`: `Shard` was asked.
    answer: Option<HeadAnswer>,
}

/// Value of [`Table::Prepared`], under section key, term (big endian), device and sequence number (big endian).
#[derive(Encode, Decode)]
enum PreparedRecord {
    Held { manifest: ManifestWire, index: u8, received_ms: u64 },
    Floor { manifest_hash: Digest, until_ms: u64 },
    Learnt { manifest_hash: Digest, until_ms: u64 },
    Never { manifest_hash: Digest, index: u8, until_ms: u64 },
    Aborted { manifest_hash: Digest, until_ms: u64 },
    Taken { manifest: ManifestWire, index: u8, received_ms: u64 },
}

/// Value of [`Table::Head`], under the section key. A fence is a plain [`HeadWire`], under the owner key.
#[derive(Encode, Decode)]
struct HeadRecord {
    head: HeadWire,
    received_ms: u64,
    keep_until_ms: u64,
}

fn prepared_key(key: &SectionKey, version: &Version) -> Vec<u8> {
    [&key.0[..], &version.term.to_be_bytes(), &version.device.0, &version.seq.to_be_bytes()].concat()
}

fn shard_key(key: &SectionKey, hash: &Digest) -> Vec<u8> {
    [key.0, hash.0].concat()
}

impl Holder {
    /// An empty holder that goes by the name `me`.
    pub fn new(me: PeerKey, limits: HolderLimits) -> Self {
        Self {
            me,
            limits,
            sections: BTreeMap::new(),
            fences: BTreeMap::new(),
            owner_bytes: BTreeMap::new(),
            shards: 0,
            shard_bytes: 0,
            due_mono: BTreeSet::new(),
            due_wall: BTreeSet::new(),
            last_id: 0,
            persists: BTreeMap::new(),
            reads: BTreeMap::new(),
            calls_open: 0,
            disk_low: false,
            amnesia: Amnesia::default(),
            probes: Probes::default(),
            clock_trusted: true,
        }
    }

    /// Takes in one stored record: every one of [`Table::Prepared`], [`Table::Head`] and [`Table::Fence`], and of [`Table::Meta`] those of
    /// which [`Holder::is_meta`] says so, in any order, before anything is handled. Shards are read when they are asked for.
    pub fn load(&mut self, table: Table, key: &[u8], value: &[u8], now: Now) -> Result<(), LoadError> {
        let decode = |error| LoadError::Decode { table, error };
        let fits = |fits: bool| fits.then_some(()).ok_or(LoadError::Mismatch(table));
        match table {
            Table::Prepared => match wire::decode(value).map_err(decode)? {
                PreparedRecord::Held { manifest, index, received_ms } => {
                    let manifest = SignedManifest::trusted(manifest).map_err(|_| LoadError::Mismatch(table))?;
                    fits(key == prepared_key(&manifest.key, &manifest.version))?;
                    fits(manifest.index_of(&self.me) == Some(index))?;
                    self.load_stored(manifest, index, received_ms, now);
                }
                PreparedRecord::Taken { manifest, index, received_ms } => {
                    let manifest = SignedManifest::trusted(manifest).map_err(|_| LoadError::Mismatch(table))?;
                    fits(key == prepared_key(&manifest.key, &manifest.version))?;
                    fits(index < manifest.shape.n())?;
                    self.load_stored(manifest, index, received_ms, now);
                }
                PreparedRecord::Floor { manifest_hash, until_ms } => {
                    self.load_floor(key, Floor::new(manifest_hash, until_ms, Why::Dropped))?;
                }
                PreparedRecord::Learnt { manifest_hash, until_ms } => {
                    self.load_floor(key, Floor::new(manifest_hash, until_ms, Why::Learnt))?;
                }
                PreparedRecord::Never { manifest_hash, index, until_ms } => {
                    self.load_floor(key, Floor::new(manifest_hash, until_ms, Why::Never(index)))?;
                }
                PreparedRecord::Aborted { manifest_hash, until_ms } => {
                    self.load_floor(key, Floor::new(manifest_hash, until_ms, Why::Aborted))?;
                }
            },
            Table::Head => {
                let record: HeadRecord = wire::decode(value).map_err(decode)?;
                let head = CertifiedHead::trusted(record.head).map_err(|_| LoadError::Mismatch(table))?;
                let section = head.manifest.key;
                fits(key == section.0)?;
                let life = Life::of_head(&head, record.received_ms, now);
                let entry = self.sections.entry(section).or_default();
                let HeadRecord { received_ms, keep_until_ms, .. } = record;
                entry.head = Some(Head { served: !life.over(now), head, life, received_ms, keep_until_ms });
                self.prolong(&section);
                self.supersede(&section, now);
                self.reschedule(&section);
            }
            Table::Fence => {
                let head = CertifiedHead::trusted(wire::decode(value).map_err(decode)?).map_err(|_| LoadError::Mismatch(table))?;
                fits(key == head.manifest.owner.0)?;
                self.fences.insert(head.manifest.owner, Fence { head, coming: None });
            }
            Table::Meta if is_lease_key(key) => self.load_signed(key, value)?,
            Table::Meta => self.amnesia.load(key, wire::decode(value).map_err(decode)?, now).ok_or(LoadError::Mismatch(table))?,
            _ => return Err(LoadError::Table(table)),
        }
        Ok(())
    }

    fn load_stored(&mut self, manifest: SignedManifest, index: u8, received_ms: u64, now: Now) {
        let section = manifest.key;
        let life = Life::of(&manifest, received_ms, now);
        self.insert(Stored { manifest, index, life, coming: None, ack: None, superseded_at_us: None });
        self.prolong(&section);
        self.supersede(&section, now);
        self.reschedule(&section);
    }

    fn load_floor(&mut self, key: &[u8], floor: Floor) -> Result<(), LoadError> {
        let (section, version) = read_prepared_key(key).ok_or(LoadError::Mismatch(Table::Prepared))?;
        self.sections.entry(section).or_default().floors.insert(version, floor);
        self.reschedule(&section);
        Ok(())
    }

    /// What Kademlia serves after loading: section and record, of heads that have not expired.
    pub fn loaded_heads(&self, now: Now) -> impl Iterator<Item = (SectionKey, Vec<u8>)> + '_ {
        self.sections.keys().filter_map(move |key| Some((*key, self.live_head(key, now)?.head.to_bytes())))
    }

    /// An inbound request. Who sent it decides nothing: all that counts is signed. `signer` is needed only to renew acks that were signed
    /// before a restart.
    pub fn handle(
        &mut self,
        call: CallId,
        _from: PeerKey,
        request: Request,
        now: Now,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
    ) -> Vec<HolderOut> {
        let mut out = Vec::new();
        let response = if self.calls_open >= CALLS_OPEN_MAX {
            Some(Response::Busy)
        } else {
            match request {
                Request::Prepare { manifest, index, shard } => {
                    self.prepare(call, manifest, index, shard, now, signer, verifier, &mut out).unwrap_or_else(Some)
                }
                Request::Commit { head } => self.commit(call, head, now, verifier, &mut out).unwrap_or_else(Some),
                Request::Head { key, fence, with_shard } => match fence {
                    None => self.answer_head(call, key, with_shard, now, signer, &mut out),
                    Some(fence) => self.fence(call, key, fence, with_shard, now, signer, verifier, &mut out).unwrap_or_else(Some),
                },
                Request::Shard { key, version } => self.shard(call, key, version, now, &mut out),
                Request::Recall { key, owner } => Some(self.recall(key, &owner, now, signer, &mut out)),
                Request::Never { manifest, index, order } => {
                    self.never(call, manifest, index, &order, now, signer, verifier, &mut out).unwrap_or_else(Some)
                }
                Request::Abort { aborted } => self.abort(call, aborted, now, verifier, &mut out).unwrap_or_else(Some),
                Request::Renew { head, index, issued_at_ms, replaced, consent, lock } => {
                    let proposal = Proposal { issued_at_ms, replaced, lock };
                    self.renew(call, head, index, &proposal, &consent, now, signer, verifier, &mut out).unwrap_or_else(Some)
                }
                Request::Handover { head, index, link } => {
                    self.handover(call, head, index, link, now, verifier, &mut out).unwrap_or_else(Some)
                }
                Request::Take { head, index, shard } => self.take(call, head, index, shard, now, verifier, &mut out).unwrap_or_else(Some),
                Request::Probe { sections } => Some(self.probe(&sections, now, &mut out)),
            }
        };
        match response {
            Some(response) => out.push(HolderOut::Reply { call, response }),
            None => self.calls_open += 1,
        }
        out
    }

    /// These batches are durable. Batches become durable in the order in which they were handed out. All acks that waited for them are
    /// signed together.
    pub fn persisted(&mut self, ids: &[PersistId], now: Now, signer: &dyn Signer) -> Vec<HolderOut> {
        let mut out = Vec::new();
        let thens: Vec<Then> = ids.iter().filter_map(|id| self.persists.remove(id)).flatten().collect();
        let mut durable = Vec::new();
        for then in &thens {
            match then {
                Then::Stored { key, version, id } => {
                    let stored = self.sections.get_mut(key).and_then(|section| section.versions.get_mut(version));
                    if let Some(stored) = stored.filter(|stored| stored.coming == Some(*id)) {
                        stored.coming = None;
                        durable.push((*key, *version));
                    }
                }
                Then::Certified { key, id } => self.promote(key, *id, now, &mut out),
                Then::Fenced { owner, id } => {
                    if let Some(fence) = self.fences.get_mut(owner).filter(|fence| fence.coming == Some(*id)) {
                        fence.coming = None;
                    }
                }
                Then::Recovered { key, since_ms } => self.amnesia.is_recovered(*key, *since_ms),
                Then::Floored { key, version, id } => {
                    let floor = self.sections.get_mut(key).and_then(|section| section.floors.get_mut(version));
                    if let Some(floor) = floor.filter(|floor| floor.coming == Some(*id)) {
                        floor.coming = None;
                    }
                }
                Then::Ack { .. }
                | Then::Commit { .. }
                | Then::Head { .. }
                | Then::Promise { .. }
                | Then::Prepared { .. }
                | Then::Aborted { .. }
                | Then::Consented { .. }
                | Then::HandedOver { .. }
                | Then::Led { .. } => {}
            }
        }
        self.sign(&durable, signer);
        for then in thens {
            let (call, response) = match then {
                Then::Ack { call, key, version } => (call, Some(self.ack(&key, &version, signer))),
                Then::Commit { call, key, owner, rank } => (call, Some(self.commit_answer(&key, &owner, &rank, now, &mut out))),
                Then::Head { call, key, with_shard } => (call, self.answer_head(call, key, with_shard, now, signer, &mut out)),
                Then::Promise { call, key, version, index } => (call, Some(self.promise(&key, &version, index, signer))),
                Then::Prepared { call, key, version } => (call, Some(self.prepared(&key, &version, signer))),
                Then::Aborted { call } => (call, Some(Response::Aborted)),
                Then::Consented { call, consent, ack } => (call, Some(consented(&consent, ack.as_ref(), signer))),
                Then::HandedOver { call, leaf } => (call, Some(Response::Acked { ack: signature(&leaf, signer) })),
                Then::Led { key, consent, ack } => {
                    let ack = ack.map(|leaf| signature(&leaf, signer));
                    out.push(HolderOut::Led { key, consent: signature(&consent, signer), ack });
                    continue;
                }
                Then::Stored { .. } | Then::Certified { .. } | Then::Fenced { .. } | Then::Recovered { .. } | Then::Floored { .. } => {
                    continue;
                }
            };
            if let Some(response) = response {
                self.close(call, response, &mut out);
            }
        }
        out
    }

    /// The value of a read.
    pub fn read_done(&mut self, id: ReadId, value: Option<Vec<u8>>, now: Now) -> Vec<HolderOut> {
        let mut out = Vec::new();
        let Some(PendingRead { call, key, index, hash, life, answer }) = self.reads.remove(&id) else { return out };
        let bytes = value.filter(|bytes| content_hash(bytes) == hash);
        if bytes.is_none()
            && let Some(shard) = self.sections.get_mut(&key).and_then(|section| section.shards.get_mut(&hash))
        {
            shard.lost = true;
        }
        let response = match answer {
            Some(HeadAnswer { committed, prepared, handed, .. }) if life.over(now) => {
                Response::Head(HeadAnswer { expired: committed, prepared, handed, ..HeadAnswer::default() })
            }
            None if life.over(now) => Response::Absent,
            Some(answer) => Response::Head(HeadAnswer { shard: bytes.map(|bytes| ShardWire { index, bytes }), ..answer }),
            None => bytes.map_or(Response::Absent, |bytes| Response::Shard { index, bytes }),
        };
        self.close(call, response, &mut out);
        out
    }

    /// Time has passed: forget what has expired. Call about once a second.
    pub fn tick(&mut self, now: Now) -> Vec<HolderOut> {
        let mono = self.due_mono.iter().take_while(|(due, _)| *due <= now.mono_us).map(|(_, key)| *key);
        let wall = self.due_wall.iter().take_while(|(due, _)| *due <= now.wall_ms).map(|(_, key)| *key);
        let due: BTreeSet<SectionKey> = mono.chain(wall).collect();
        let mut out = Vec::new();
        let mut writes = Vec::new();
        for key in due {
            self.sweep(&key, now, &mut writes, &mut out);
        }
        self.amnesia.tick(now, &mut writes);
        self.probes.tick(now, &mut out);
        if !writes.is_empty() {
            let id = self.persist(writes, &mut out);
            self.persists.remove(&id); // nothing waits for it
        }
        out
    }

    /// Whether the disk is nearly full. While it is, nothing new is stored for others (`Full`); what is here is served and renewed.
    pub fn set_disk_low(&mut self, low: bool) {
        self.disk_low = low;
    }

    /// Counts.
    pub fn stats(&self) -> HolderStats {
        HolderStats {
            sections: self.sections.len(),
            shards: self.shards,
            shard_bytes: self.shard_bytes,
            prepared: self.sections.values().map(|section| section.uncommitted().count()).sum(),
            fences: self.fences.len(),
            lost_store_ms: self.amnesia.since_ms(),
        }
    }

    /// The certified head that this node would serve.
    pub fn head(&self, key: &SectionKey, now: Now) -> Option<CertifiedHead> {
        Some(self.live_head(key, now)?.head.clone())
    }

    /// Whether this node's clock is good enough for class active. While it is not, nothing of that class is taken or served.
    pub fn trust_clock(&mut self, trusted: bool) {
        self.clock_trusted = trusted;
    }

    fn withholds(&self, key: &SectionKey) -> bool {
        let active = |section: &Section| section.heads().any(|head| head.head.manifest.class == Class::Active);
        !self.clock_trusted && self.sections.get(key).is_some_and(active)
    }

    /// The limits in force.
    pub fn limits(&self) -> &HolderLimits {
        &self.limits
    }
}

// The requests. `Err` answers at once, as `?` does; `Ok(None)` waits for the disk.
impl Holder {
    #[allow(clippy::too_many_arguments, reason = "a request and what it takes to judge it")]
    fn prepare(
        &mut self,
        call: CallId,
        manifest: ManifestWire,
        index: u8,
        shard: Option<Vec<u8>>,
        now: Now,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let manifest = self.as_holder(manifest, index, verifier)?;
        self.compare(&manifest, out);
        let life = self.manifest_in_time(&manifest, now)?;
        let (key, version) = (manifest.key, manifest.version);
        let hash = manifest.shard_hashes[usize::from(index)];
        if let Some(bytes) = &shard
            && !shard_matches(&manifest, index, bytes)
            && !mutants::on(Mutant::AnyShard)
        {
            return Err(refused(Refusal::WrongShard));
        }
        self.not_fenced(&key, &manifest.owner, &version)?;
        let section = self.sections.get(&key);
        let have_bytes = section.and_then(|section| section.shards.get(&hash)).is_some_and(|shard| !shard.lost);
        if let Some(stored) = section.and_then(|section| section.versions.get(&version)) {
            if stored.manifest.hash() != manifest.hash() {
                if mutants::on(Mutant::TwoAcks) {
                    let ack = sign_batch(&[manifest.ack_leaf(index)], signer).pop().expect("one leaf, one ack");
                    return Err(Response::Acked { ack });
                }
                return Err(Response::Conflict { manifest: stored.manifest.wire().clone() });
            }
            if stored.index != index {
                return Err(refused(Refusal::NotAHolder)); // it gave that place up under a lease, and has another
            }
            let coming = stored.coming;
            if !have_bytes {
                // The disk lost what was acked. The promise stands, so the bytes are taken again.
                let bytes = shard.ok_or(Response::NeedShard)?;
                let id = self.persist(vec![Write::set(Table::Shard, shard_key(&key, &hash), bytes)], out);
                self.then(id, Then::Ack { call, key, version });
                self.sections.get_mut(&key).and_then(|section| section.shards.get_mut(&hash)).expect("listed").lost = false;
                return Ok(None);
            }
            return match coming {
                None => Err(self.ack(&key, &version, signer)),
                Some(id) => {
                    self.then(id, Then::Ack { call, key, version });
                    Ok(None)
                }
            };
        }
        if let Some(section) = section {
            section.admits(&manifest, &self.limits)?;
        }
        self.remembers_enough(&manifest, now, out)?;
        let new_bytes = match shard {
            _ if have_bytes => None,
            Some(bytes) => Some(bytes),
            None if mutants::on(Mutant::AckWithoutShard) => None,
            None => return Err(Response::NeedShard),
        };
        self.room(&manifest, new_bytes.as_ref().map_or(0, Vec::len) as u64)?;
        let record = PreparedRecord::Held { manifest: manifest.wire().clone(), index, received_ms: now.wall_ms };
        let mut writes = Vec::with_capacity(2);
        writes.extend(new_bytes.map(|bytes| Write::set(Table::Shard, shard_key(&key, &hash), bytes)));
        writes.push(Write::set(Table::Prepared, prepared_key(&key, &version), wire::encode(&record)));
        let id = self.persist(writes, out);
        self.insert(Stored { manifest, index, life, coming: Some(id), ack: None, superseded_at_us: None });
        self.prolong(&key); // it may be one that its holders have renewed
        self.then(id, Then::Stored { key, version, id });
        if mutants::on(Mutant::DropOnPrepare) {
            self.drop_others(&key, |other| other < version, now, out);
        }
        if mutants::on(Mutant::AckBeforeSync) {
            return Err(self.ack(&key, &version, signer));
        }
        self.then(id, Then::Ack { call, key, version });
        self.reschedule(&key);
        Ok(None)
    }

    fn commit(
        &mut self,
        call: CallId,
        head: HeadWire,
        now: Now,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let (head, life) = self.offered(head, now, verifier)?;
        let (key, owner, rank) = (head.manifest.key, head.manifest.owner, head_rank(&head));
        if mutants::on(Mutant::NoForwardPointer) && head.index_of(&self.me).is_none() {
            return Err(Response::Committed);
        }
        self.compare(&head.manifest, out);
        let known = self.sections.get(&key).and_then(|section| section.at_least(&rank));
        match known {
            Some(None) => return Err(self.commit_answer(&key, &owner, &rank, now, out)),
            Some(Some(id)) => {
                self.then(id, Then::Commit { call, key, owner, rank });
                return Ok(None);
            }
            None => {}
        }
        let id = self.stage_head(head, life, now, out)?;
        if mutants::on(Mutant::KeepOneVersion) {
            self.drop_others(&key, |other| other != rank.0, now, out);
        }
        self.then(id, Then::Commit { call, key, owner, rank });
        Ok(None)
    }

    #[allow(clippy::too_many_arguments, reason = "a request and what it takes to judge it")]
    fn fence(
        &mut self,
        call: CallId,
        key: SectionKey,
        fence: HeadWire,
        with_shard: bool,
        now: Now,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let bad = || refused(Refusal::BadFence);
        let manifest = SignedManifest::trusted(fence.manifest.clone()).map_err(|_| bad())?;
        let (owner, offered) = (manifest.owner, host(&manifest.version));
        let known = self.fences.get(&owner).is_some_and(|known| known.head.to_wire() == fence);
        if !known {
            let head = CertifiedHead::verify(fence, verifier).map_err(|_| bad())?;
            if head.manifest.name != CARD_NAME || head.manifest.class != Class::Core {
                return Err(bad());
            }
            let stored = self.fences.get(&owner).map(|stored| host(&stored.head.manifest.version));
            if stored.is_none_or(|stored| stored < offered) {
                self.in_time(&head, now)?;
                let mut writes = self.room_for_fence(&owner, now)?;
                writes.push(Write::set(Table::Fence, owner.0, head.to_bytes()));
                let id = self.persist(writes, out);
                self.fences.insert(owner, Fence { head, coming: Some(id) });
                self.then(id, Then::Fenced { owner, id });
            }
        }
        let stored = self.fences.get(&owner).expect("there before, or just stored");
        if host(&stored.head.manifest.version) > offered {
            return Err(Response::Fenced { head: stored.head.to_wire() });
        }
        match stored.coming {
            Some(id) => {
                self.then(id, Then::Head { call, key, with_shard });
                Ok(None)
            }
            None => Ok(self.answer_head(call, key, with_shard, now, signer, out)),
        }
    }

    /// Stores a higher certified head.
    fn stage_head(&mut self, head: CertifiedHead, life: Life, now: Now, out: &mut Vec<HolderOut>) -> Result<PersistId, Response> {
        if !self.sections.contains_key(&head.manifest.key) && self.sections.len() >= self.limits.sections_max {
            return Err(refused(Refusal::Full));
        }
        let (head, writes) = self.new_head(head, life, now);
        let id = self.persist(writes, out);
        self.store_head(head, id);
        Ok(id)
    }

    /// A higher certified head, to be stored with the batch that has these writes.
    fn new_head(&mut self, head: CertifiedHead, life: Life, now: Now) -> (Head, Vec<Write>) {
        let key = head.manifest.key;
        let keep_until_ms = self.sections.entry(key).or_default().keep_until_ms(&head, now);
        // What it supersedes may have been forgotten here: then nobody can say how long that lives.
        let keep_until_ms = keep_until_ms.max(self.amnesia.until_ms());
        let head = Head { head, life, received_ms: now.wall_ms, keep_until_ms, served: false };
        let mut writes = vec![head.write()];
        writes.extend(self.carry_names(&key, &head.head.manifest.version, now));
        (head, writes)
    }

    fn store_head(&mut self, head: Head, id: PersistId) {
        let key = head.head.manifest.key;
        self.sections.entry(key).or_default().coming.push((id, head));
        self.then(id, Then::Certified { key, id });
    }

    /// All that is durable here about the section; `None`: the answer waits for the shard.
    fn answer_head(
        &mut self,
        call: CallId,
        key: SectionKey,
        with_shard: bool,
        now: Now,
        signer: &dyn Signer,
        out: &mut Vec<HolderOut>,
    ) -> Option<Response> {
        if self.withholds(&key) {
            return Some(refused(Refusal::ClockUnsynced));
        }
        if self.forgot(&key) {
            self.ask_recovery(&key, None, None, now, out);
            return Some(Response::Recovering);
        }
        let answer = self.known(key, now, signer);
        let served = self.live_head(&key, now).filter(|_| with_shard).map(|head| &head.head.manifest);
        let shard = served.and_then(|manifest| {
            let (stored, hash) = self.sections[&key].shard_of(&manifest.version)?;
            (stored.manifest.hash() == manifest.hash()).then_some((stored.index, hash, stored.life))
        });
        let Some((index, hash, life)) = shard else { return Some(Response::Head(answer)) };
        self.read(PendingRead { call, key, index, hash, life, answer: Some(answer) }, out);
        None
    }

    /// All that is durable here about the section, but for the shard.
    fn known(&mut self, key: SectionKey, now: Now, signer: &dyn Signer) -> HeadAnswer {
        let handed = self.handed(&key, now);
        let Some(section) = self.sections.get(&key) else { return HeadAnswer::default() };
        let above: Vec<(SectionKey, Version)> = section
            .uncommitted()
            .filter(|stored| stored.coming.is_none() && !stored.life.over(now))
            .map(|stored| (key, stored.manifest.version))
            .collect();
        self.sign(&above, signer);
        let section = self.sections.get(&key).expect("just there");
        let mut answer = HeadAnswer { handed, ..HeadAnswer::default() };
        for (_, version) in &above {
            let stored = &section.versions[version];
            let ack = stored.ack.clone().expect("just signed");
            answer.prepared.push(PreparedWire { manifest: stored.manifest.wire().clone(), ack });
        }
        match &section.head {
            Some(head) if head.life.over(now) => answer.expired = Some(head.head.to_wire()),
            Some(head) => answer.committed = Some(head.head.to_wire()),
            None => {}
        }
        answer
    }

    /// All that a holder which lost its store must know of this one.
    fn recall(&mut self, key: SectionKey, owner: &OwnerKey, now: Now, signer: &dyn Signer, out: &mut Vec<HolderOut>) -> Response {
        if self.forgot(&key) {
            self.ask_recovery(&key, None, None, now, out);
            return Response::Recovering;
        }
        let head = self.known(key, now, signer);
        let fence = self.fences.get(owner).filter(|fence| fence.coming.is_none()).map(|fence| fence.head.to_wire());
        Response::Recalled(RecallAnswer { head, fence })
    }

    fn shard(&mut self, call: CallId, key: SectionKey, version: Version, now: Now, out: &mut Vec<HolderOut>) -> Option<Response> {
        if self.withholds(&key) {
            return Some(Response::Absent);
        }
        let section = self.sections.get(&key);
        let here = section.and_then(|section| section.shard_of(&version)).filter(|(stored, _)| !stored.life.over(now));
        if let Some((index, hash, life)) = here.map(|(stored, hash)| (stored.index, hash, stored.life)) {
            self.read(PendingRead { call, key, index, hash, life, answer: None }, out);
            return None;
        }
        if self.forgot(&key) {
            self.ask_recovery(&key, None, None, now, out);
            return Some(Response::Recovering);
        }
        let Some(section) = self.sections.get(&key) else { return Some(Response::Absent) };
        let newer = self.live_head(&key, now).filter(|head| head.head.manifest.version > version);
        let gone = !section.versions.contains_key(&version);
        Some(newer.filter(|_| gone).map_or(Response::Absent, |head| Response::Superseded { head: head.head.to_wire() }))
    }
}

// The rules.
impl Holder {
    /// The manifest, if its owner signed it and this node is its holder `index`.
    fn as_holder(&self, manifest: ManifestWire, index: u8, verifier: &dyn Verifier) -> Result<SignedManifest, Response> {
        let manifest = SignedManifest::verify(manifest, verifier).map_err(|_| refused(Refusal::BadManifest))?;
        let is_holder = manifest.holders.get(usize::from(index)) == Some(&self.me);
        if is_holder { Ok(manifest) } else { Err(refused(Refusal::NotAHolder)) }
    }

    /// Tells of another manifest of the same version that is here. Both were verified.
    fn compare(&self, manifest: &SignedManifest, out: &mut Vec<HolderOut>) {
        let Some(section) = self.sections.get(&manifest.key) else { return };
        let stored = section.versions.get(&manifest.version).map(|stored| &stored.manifest);
        let certified = section.heads().map(|head| &head.head.manifest);
        let evidence = stored.into_iter().chain(certified).find_map(|known| Equivocation::of(known, manifest));
        out.extend(evidence.map(|evidence| HolderOut::Equivocation(Box::new(evidence))));
    }

    /// Neither issued or renewed in the future nor expired, within the allowance, and of a class that this node's clock is good enough for.
    fn in_time(&self, head: &CertifiedHead, now: Now) -> Result<Life, Response> {
        self.timely(head.manifest.class, head.renewed_at_ms(), Life::of_head(head, now.wall_ms, now), now)
    }

    /// The same of a manifest that need not be certified.
    fn manifest_in_time(&self, manifest: &SignedManifest, now: Now) -> Result<Life, Response> {
        self.timely(manifest.class, manifest.issued_at_ms, Life::of(manifest, now.wall_ms, now), now)
    }

    fn timely(&self, class: Class, issued_at_ms: u64, life: Life, now: Now) -> Result<Life, Response> {
        if class == Class::Active && !self.clock_trusted {
            return Err(refused(Refusal::ClockUnsynced));
        }
        if issued_at_ms > now.wall_ms.saturating_add(clock_allowance_ms(class)) {
            return Err(refused(Refusal::FromTheFuture));
        }
        if life.over(now) { Err(refused(Refusal::Expired)) } else { Ok(life) }
    }

    /// No fence of a higher host, and no certified version of one, stands here: durable or about to be. The section's own head is the better
    /// proof: it also leads a reader to what the higher host wrote.
    fn not_fenced(&self, key: &SectionKey, owner: &OwnerKey, version: &Version) -> Result<(), Response> {
        if mutants::on(Mutant::NoFence) {
            return Ok(());
        }
        let fence = self.fences.get(owner).map(|fence| &fence.head);
        let heads = self.sections.get(key).into_iter().flat_map(Section::heads).map(|head| &head.head);
        match heads.chain(fence).find(|head| host(&head.manifest.version) > host(version)) {
            Some(head) => Err(Response::Fenced { head: head.to_wire() }),
            None => Ok(()),
        }
    }

    /// The answer to a commit once this head or a higher one is durable.
    fn commit_answer(&mut self, key: &SectionKey, owner: &OwnerKey, committed: &Rank, now: Now, out: &mut Vec<HolderOut>) -> Response {
        if let Err(fenced) = self.not_fenced(key, owner, &committed.0) {
            return fenced;
        }
        let head = self.sections.get(key).and_then(|section| section.head.as_ref()).map(|head| &head.head.manifest);
        match head.filter(|head| head.version == committed.0 && head.hash() != committed.1) {
            Some(other) => Response::Conflict { manifest: other.wire().clone() },
            None if self.forgot(key) => {
                self.ask_recovery(key, Some(committed), None, now, out);
                Response::Recovering
            }
            None => match self.named(key, Some(&committed.0), now) {
                sets if sets.is_empty() => Response::Committed,
                sets => Response::Handed { sets },
            },
        }
    }

    /// What no rule allows: for the mutants.
    fn drop_others(&mut self, key: &SectionKey, which: impl Fn(Version) -> bool, now: Now, out: &mut Vec<HolderOut>) {
        let Some(section) = self.sections.get(key) else { return };
        let dropped: Vec<Version> = section
            .versions
            .iter()
            .filter(|(version, stored)| which(**version) && stored.coming.is_none())
            .map(|(version, _)| *version)
            .collect();
        let mut writes = Vec::new();
        for version in dropped {
            self.drop_version(key, &version, Why::Dropped, now, &mut writes);
        }
        self.persist(writes, out);
    }

    fn room(&self, manifest: &SignedManifest, new_shard_bytes: u64) -> Result<(), Response> {
        let owned = self.owner_bytes.get(&manifest.owner).copied().unwrap_or(0);
        let added = new_shard_bytes + manifest.wire().body.len() as u64;
        let full = self.disk_low && new_shard_bytes > 0
            || !self.sections.contains_key(&manifest.key) && self.sections.len() >= self.limits.sections_max
            || self.shard_bytes + new_shard_bytes > self.limits.shard_bytes_max
            || owned + added > self.limits.bytes_per_owner_max;
        if full { Err(refused(Refusal::Full)) } else { Ok(()) }
    }

    /// The writes that make room for one more fence: none if there is room, or a fence whose card has expired is forgotten.
    fn room_for_fence(&mut self, owner: &OwnerKey, now: Now) -> Result<Vec<Write>, Response> {
        if self.fences.contains_key(owner) || self.fences.len() < self.limits.fences_max {
            return Ok(Vec::new());
        }
        let expired = |fence: &Fence| fence.coming.is_none() && now.wall_ms >= head_expiry_ms(&fence.head);
        let oldest = self.fences.iter().filter(|(_, fence)| expired(fence)).min_by_key(|(_, fence)| head_expiry_ms(&fence.head));
        let forgotten = *oldest.ok_or(refused(Refusal::Full))?.0;
        self.fences.remove(&forgotten);
        Ok(vec![Write::remove(Table::Fence, forgotten.0)])
    }

    /// A head is durable now.
    fn promote(&mut self, key: &SectionKey, id: PersistId, now: Now, out: &mut Vec<HolderOut>) {
        let Some(section) = self.sections.get_mut(key) else { return };
        let Some(position) = section.coming.iter().position(|(coming, _)| *coming == id) else { return };
        let (_, mut head) = section.coming.remove(position);
        if section.head.as_ref().is_some_and(|old| head_rank(&old.head) >= head_rank(&head.head)) {
            return;
        }
        head.served = !head.life.over(now);
        out.push(HolderOut::HeadChanged { key: *key, record: head.served.then(|| head.head.to_bytes()) });
        section.head = Some(head);
        self.prolong(key);
        self.supersede(key, now);
        self.reschedule(key);
    }

    /// What is certified here lives as long as its head, if this node is still one of its holders.
    fn prolong(&mut self, key: &SectionKey) {
        let me = self.me;
        let Some(section) = self.sections.get_mut(key) else { return };
        let Some(head) = &section.head else { return };
        let stored = section.versions.get_mut(&head.head.manifest.version);
        if let Some(stored) = stored.filter(|stored| head.prolongs(stored, &me)) {
            stored.life = head.life;
        }
    }

    /// Notes since when a certificate of something newer has been held.
    fn supersede(&mut self, key: &SectionKey, now: Now) {
        let Some(section) = self.sections.get_mut(key) else { return };
        let Some(head) = section.head.as_ref().map(|head| head.head.manifest.version) else { return };
        for (_, stored) in section.versions.range_mut(..head) {
            stored.superseded_at_us.get_or_insert(now.mono_us);
        }
    }

    /// Drops what the rules let go of a section.
    fn sweep(&mut self, key: &SectionKey, now: Now, writes: &mut Vec<Write>, out: &mut Vec<HolderOut>) {
        let me = self.me;
        let Some(section) = self.sections.get_mut(key) else { return };
        let grace_us = self.limits.grace_ms * 1000;
        // A link that is on its way to the disk keeps what it prolongs: once it is there, this node is one of its holders.
        let prolonged = |stored: &Stored| section.coming.iter().any(|(_, head)| head.prolongs(stored, &me) && !head.life.over(now));
        let droppable = |stored: &Stored| {
            let superseded = stored.superseded_at_us.is_some_and(|since| now.mono_us >= since + grace_us);
            let over = stored.life.over(now) && !prolonged(stored) && now.wall_ms >= section.signed_until_ms(stored);
            stored.coming.is_none() && (over || superseded)
        };
        let dropped: Vec<Version> = section.versions.iter().filter(|(_, stored)| droppable(stored)).map(|(version, _)| *version).collect();
        let forgotten: Vec<Version> = section
            .floors
            .iter()
            .filter(|(_, floor)| now.wall_ms >= floor.until_ms && floor.coming.is_none())
            .map(|(version, _)| *version)
            .collect();
        for version in forgotten {
            section.floors.remove(&version);
            writes.push(Write::remove(Table::Prepared, prepared_key(key, &version)));
        }
        let signed_until_ms = section.longest_signed_until_ms();
        if let Some(head) = &mut section.head {
            if head.served && head.life.over(now) {
                head.served = false;
                out.push(HolderOut::HeadChanged { key: *key, record: None });
            }
            if !head.served && now.wall_ms >= head.keep_until_ms.max(signed_until_ms) && section.coming.is_empty() {
                section.head = None;
                writes.push(Write::remove(Table::Head, key.0));
            }
        }
        for version in dropped {
            self.drop_version(key, &version, Why::Dropped, now, writes);
        }
        self.forget_signed(key, now, writes);
        self.lead_turn(key, now, out);
        if self.sections.get(key).is_some_and(Section::is_empty) {
            self.unschedule(key);
            self.sections.remove(key);
        } else {
            self.reschedule(key);
        }
    }

    /// Its bytes go, unless another version shares them; which manifest it was is remembered until it has expired for everyone.
    fn drop_version(&mut self, key: &SectionKey, version: &Version, why: Why, now: Now, writes: &mut Vec<Write>) {
        let Some(section) = self.sections.get_mut(key) else { return };
        let Some(stored) = section.versions.remove(version) else { return };
        let mut freed = stored.manifest.wire().body.len() as u64;
        let hash = stored.shard_hash();
        if let Some(shard) = section.shards.get_mut(&hash) {
            shard.versions -= 1;
            if shard.versions == 0 {
                freed += shard.len;
                self.shards -= 1;
                self.shard_bytes -= shard.len;
                section.shards.remove(&hash);
                writes.push(Write::remove(Table::Shard, shard_key(key, &hash)));
            }
        }
        let owned = self.owner_bytes.entry(stored.manifest.owner).or_default();
        *owned = owned.saturating_sub(freed);
        if *owned == 0 {
            self.owner_bytes.remove(&stored.manifest.owner);
        }
        let until_ms = expiry_ms(&stored.manifest).max(stored.manifest.renew_until_ms + clock_allowance_ms(stored.manifest.class));
        let record_key = prepared_key(key, version);
        if now.wall_ms >= until_ms {
            writes.push(Write::remove(Table::Prepared, record_key));
        } else {
            let floor = Floor::new(stored.manifest.hash(), until_ms, why);
            writes.push(Write::set(Table::Prepared, record_key, wire::encode(&floor.record())));
            section.floors.insert(*version, floor);
        }
    }
}

// Bookkeeping.
impl Holder {
    fn persist(&mut self, writes: Vec<Write>, out: &mut Vec<HolderOut>) -> PersistId {
        self.last_id += 1;
        let id = PersistId(self.last_id);
        self.persists.insert(id, Vec::new());
        out.push(HolderOut::Persist { id, writes });
        id
    }

    fn then(&mut self, id: PersistId, then: Then) {
        self.persists.entry(id).or_default().push(then);
    }

    fn read(&mut self, read: PendingRead, out: &mut Vec<HolderOut>) {
        self.last_id += 1;
        let id = ReadId(self.last_id);
        out.push(HolderOut::Read { id, table: Table::Shard, key: shard_key(&read.key, &read.hash) });
        self.reads.insert(id, read);
    }

    fn close(&mut self, call: CallId, response: Response, out: &mut Vec<HolderOut>) {
        self.calls_open = self.calls_open.saturating_sub(1);
        out.push(HolderOut::Reply { call, response });
    }

    fn insert(&mut self, stored: Stored) {
        let manifest = &stored.manifest;
        let (key, version, hash, owner) = (manifest.key, manifest.version, stored.shard_hash(), manifest.owner);
        let (len, body_len) = (manifest.shard_len() as u64, manifest.wire().body.len() as u64);
        let section = self.sections.entry(key).or_default();
        let owned = self.owner_bytes.entry(owner).or_default();
        *owned += body_len;
        let shard = section.shards.entry(hash).or_insert_with(|| {
            *owned += len;
            self.shards += 1;
            self.shard_bytes += len;
            ShardUse { len, versions: 0, lost: false }
        });
        shard.versions += 1;
        if stored.coming.is_some() {
            shard.lost = false; // written anew
        }
        section.floors.remove(&version); // its record has this version's place
        section.versions.insert(version, stored);
    }

    /// Signs those of the versions whose ack is not at hand, with one signature for up to [`ACK_BATCH_MAX`] of them.
    fn sign(&mut self, versions: &[(SectionKey, Version)], signer: &dyn Signer) {
        let unsigned = |(key, version): &&(SectionKey, Version)| {
            let stored = self.sections.get(key).and_then(|section| section.versions.get(version));
            stored.is_some_and(|stored| stored.ack.is_none())
        };
        let wanted: Vec<(SectionKey, Version)> = versions.iter().filter(unsigned).copied().collect();
        for batch in wanted.chunks(ACK_BATCH_MAX) {
            let leaf = |(key, version): &(SectionKey, Version)| {
                let stored = &self.sections[key].versions[version];
                stored.manifest.ack_leaf(stored.index) // also of a shard that was taken under a lease: there it proves nothing
            };
            let leaves: Vec<_> = batch.iter().map(leaf).collect();
            for ((key, version), ack) in batch.iter().zip(sign_batch(&leaves, signer)) {
                let stored = self.sections.get_mut(key).and_then(|section| section.versions.get_mut(version));
                stored.expect("listed").ack = Some(ack);
            }
        }
    }

    /// The ack of a durable version.
    fn ack(&mut self, key: &SectionKey, version: &Version, signer: &dyn Signer) -> Response {
        self.sign(&[(*key, *version)], signer);
        let stored = self.sections.get(key).and_then(|section| section.versions.get(version));
        match stored.and_then(|stored| stored.ack.clone()) {
            Some(ack) => Response::Acked { ack },
            None => refused(Refusal::Expired),
        }
    }

    fn live_head(&self, key: &SectionKey, now: Now) -> Option<&Head> {
        self.sections.get(key)?.head.as_ref().filter(|head| !head.life.over(now))
    }

    fn reschedule(&mut self, key: &SectionKey) {
        self.unschedule(key);
        let grace_us = self.limits.grace_ms * 1000;
        let lead_at_ms = self.sections.get(key).and_then(|section| self.lead_at_ms(section));
        let Some(section) = self.sections.get_mut(key) else { return };
        section.due = section.next_due(grace_us);
        section.due.1 = section.due.1.min(lead_at_ms.unwrap_or(u64::MAX));
        self.due_mono.insert((section.due.0, *key));
        self.due_wall.insert((section.due.1, *key));
    }

    fn unschedule(&mut self, key: &SectionKey) {
        if let Some(section) = self.sections.get(key) {
            self.due_mono.remove(&(section.due.0, *key));
            self.due_wall.remove(&(section.due.1, *key));
        }
    }
}

impl Head {
    /// Whether it is a link by which this node goes on holding what is stored.
    fn prolongs(&self, stored: &Stored, me: &PeerKey) -> bool {
        let CertifiedHead { manifest, lease, .. } = &self.head;
        lease.is_some() && stored.manifest.hash() == manifest.hash() && self.head.index_of(me) == Some(stored.index)
    }

    fn write(&self) -> Write {
        let record = HeadRecord { head: self.head.to_wire(), received_ms: self.received_ms, keep_until_ms: self.keep_until_ms };
        Write::set(Table::Head, self.head.manifest.key.0, wire::encode(&record))
    }
}

impl Stored {
    fn shard_hash(&self) -> Digest {
        self.manifest.shard_hashes[usize::from(self.index)]
    }
}

impl Section {
    fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.floors.is_empty() && self.head.is_none() && self.coming.is_empty() && self.signed.is_none()
    }

    /// Certified heads, durable or about to be.
    fn heads(&self) -> impl Iterator<Item = &Head> {
        self.head.iter().chain(self.coming.iter().map(|(_, head)| head))
    }

    /// Until when a link can count that this node signed for a stored version. It may be certified by now, and then lives on what is here.
    fn signed_until_ms(&self, stored: &Stored) -> u64 {
        self.signed.as_ref().map_or(0, |signed| signed.counts_until_ms(&stored.manifest))
    }

    fn longest_signed_until_ms(&self) -> u64 {
        self.versions.values().map(|stored| self.signed_until_ms(stored)).max().unwrap_or(0)
    }

    /// Versions above the durable head.
    fn uncommitted(&self) -> impl Iterator<Item = &Stored> {
        let head = self.head.as_ref().map(|head| head.head.manifest.version);
        self.versions.iter().filter(move |(version, _)| head.is_none_or(|head| **version > head)).map(|(_, stored)| stored)
    }

    /// Whether a head of this rank or a higher one is durable (`Some(None)`) or will be with a batch (`Some(Some(id))`).
    fn at_least(&self, wanted: &Rank) -> Option<Option<PersistId>> {
        if self.head.as_ref().is_some_and(|head| head_rank(&head.head) >= *wanted) {
            return Some(None);
        }
        self.coming.iter().find(|(_, head)| head_rank(&head.head) >= *wanted).map(|(id, _)| Some(*id))
    }

    /// A durable version and the hash of its shard, if the bytes are here.
    fn shard_of(&self, version: &Version) -> Option<(&Stored, Digest)> {
        let stored = self.versions.get(version).filter(|stored| stored.coming.is_none())?;
        let hash = stored.shard_hash();
        self.shards.get(&hash).is_some_and(|shard| !shard.lost).then_some((stored, hash))
    }

    /// Whether a manifest of a version that is not stored here may be acked.
    fn admits(&self, manifest: &SignedManifest, limits: &HolderLimits) -> Result<(), Response> {
        let version = &manifest.version;
        let certified = self.heads().any(|head| head.head.manifest.version >= *version);
        if let Some(head) = self.heads().find(|head| head.head.manifest.version >= *version) {
            let certified = &head.head.manifest;
            match certified.version == *version {
                true if certified.hash() != manifest.hash() => return Err(Response::Conflict { manifest: certified.wire().clone() }),
                true => {}
                false => return Err(refused(Refusal::Stale)),
            }
        }
        if let Some(floor) = self.floors.get(version) {
            match (floor.manifest_hash == manifest.hash(), floor.why) {
                (_, Why::Never(_) | Why::Aborted) if mutants::on(Mutant::BreakNever) => {}
                (_, Why::Never(_) | Why::Aborted) => return Err(refused(Refusal::Aborted)),
                (true, Why::Learnt) => {}
                (true, Why::Dropped) => return Err(refused(Refusal::Expired)),
                (false, Why::Learnt | Why::Dropped) => return Err(refused(Refusal::Stale)),
            }
        } else if !certified && self.floors.range(version..).any(|(_, floor)| floor.why == Why::Learnt) {
            return Err(refused(Refusal::Stale)); // it may have been acked here, and whoever else has it did not say so
        }
        if self.uncommitted().any(|stored| host(&stored.manifest.version) > host(version)) && !mutants::on(Mutant::NoFence) {
            return Err(refused(Refusal::Stale));
        }
        let of_this_host = self.uncommitted().filter(|stored| host(&stored.manifest.version) == host(version)).count();
        let crowded =
            of_this_host >= limits.prepared_per_section || self.uncommitted().count() >= limits.prepared_per_section * HOSTS_PREPARED_MAX;
        if crowded && !certified { Err(Response::Busy) } else { Ok(()) }
    }

    /// Until when a new head must stay: nothing that it supersedes, here or in the older sets that it names, may outlive it.
    fn keep_until_ms(&self, head: &CertifiedHead, now: Now) -> u64 {
        let allowance = clock_allowance_ms(head.manifest.class);
        let older = head.manifest.older.iter().map(|set| set.over_at_ms().saturating_add(allowance));
        let here = self.versions.values().map(|stored| stored.life.until_ms).chain(self.floors.values().map(|floor| floor.until_ms));
        let before = self.heads().map(|head| head.keep_until_ms);
        let longest = older.chain(here).chain(before).max().unwrap_or(0).max(head_expiry_ms(head));
        longest.min(now.wall_ms.saturating_add(RENEW_MS_MAX).saturating_add(2 * allowance)) // nobody claims a place for ever
    }

    /// When something here ends: on the monotonic clock, on the wall clock.
    fn next_due(&self, grace_us: u64) -> (u64, u64) {
        let (mut mono, mut wall) = (u64::MAX, u64::MAX);
        for stored in self.versions.values() {
            mono = mono.min(stored.superseded_at_us.map_or(u64::MAX, |since| since + grace_us));
            match self.signed_until_ms(stored) {
                signed_until_ms if signed_until_ms > stored.life.until_ms => wall = wall.min(signed_until_ms),
                _ => (mono, wall) = (mono.min(stored.life.until_us), wall.min(stored.life.until_ms)),
            }
        }
        for floor in self.floors.values() {
            wall = wall.min(floor.until_ms);
        }
        match &self.head {
            Some(head) if head.served => {
                mono = mono.min(head.life.until_us);
                wall = wall.min(head.life.until_ms);
            }
            Some(head) => wall = wall.min(head.keep_until_ms.max(self.longest_signed_until_ms())),
            None => {}
        }
        wall = wall.min(self.signed.as_ref().map_or(u64::MAX, Signed::next_due_ms));
        (mono, wall)
    }
}

fn read_prepared_key(key: &[u8]) -> Option<(SectionKey, Version)> {
    let (section, rest) = key.split_first_chunk::<32>()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    let (device, seq) = rest.split_first_chunk::<32>()?;
    let seq: [u8; 8] = seq.try_into().ok()?;
    let version = Version { term: u64::from_be_bytes(*term), device: DeviceId(*device), seq: u64::from_be_bytes(seq) };
    Some((SectionKey(*section), version))
}

const fn refused(reason: Refusal) -> Response {
    Response::Refused { reason }
}
