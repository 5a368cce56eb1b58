//! One get of one section: which version is current, and what are its bytes? (docs/spec/quorum.md#get)
//!
//! Only certified versions count. A certified head names its holders; `n - f` answers of them that know nothing higher make it current,
//! and any `k` of their shards, re-encoded and compared, make its content. Both questions travel in one round trip.

use persona_fragments::{CertifiedHead, OlderSet, OwnerKey, PeerKey, SectionKey, Verifier, Version, manifest::ManifestWire};

use crate::{
    exchange::{Reply, Tag},
    message::Request,
    time::Now,
};

/// How fresh a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The first unexpired certified version that decodes; its staleness is bounded by its lifetime.
    Any,
    /// At least the last version whose put had committed when the get began. The default.
    Regular,
    /// And never older than what another atomic get returned before this one began.
    Atomic,
}

/// What to get.
#[derive(Clone, Debug)]
pub struct GetTask {
    /// The section.
    pub key: SectionKey,
    /// Whose it must be; `None` (`analyze` by key alone): anyone's whose owner and name give the key.
    pub owner: Option<OwnerKey>,
    /// How fresh.
    pub mode: Mode,
    /// Peers that may know the head: the closest ones, cached holders, contacts. At most [`CANDIDATES_MAX`] are asked.
    pub candidates: Vec<PeerKey>,
    /// A verified head from a cache: saves a round trip.
    pub known: Option<CertifiedHead>,
    /// The highest version that this node ever returned for the section: it never goes back.
    pub floor: Option<Version>,
    /// Takeover: the certified card of the new term, sent with every HEAD.
    pub fence: Option<CertifiedHead>,
    /// Ask further holders for shards after this many microseconds: the p95 round trip.
    pub hedge_after_us: u64,
    /// `false`: the head only.
    pub want_content: bool,
}

/// The most candidates that one get asks; those behind are left out.
pub const CANDIDATES_MAX: usize = 32;

/// What the caller does for a get, in order.
#[derive(Clone, Debug)]
pub enum GetOut {
    /// Send this request; hand its reply to [`Get::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom. May be this very node.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// It is over. Requests still under way may be cancelled.
    Done(Result<Box<GetValue>, GetError>),
}

/// How fresh a value is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Freshness {
    /// Certified, unexpired; a newer version may exist.
    MaybeStale,
    /// `n - f` of its holders know nothing newer.
    Regular,
    /// And `n - f` of every live holder set know this one.
    Atomic,
}

/// What one peer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The highest certified version it knows, if any. Expired ones included.
    Head(Option<Version>),
    /// It lost its store and cannot say yet.
    Recovering,
    /// It would not say: busy, or full, or it takes the request for wrong.
    Refused,
    /// It could not be reached.
    Unreachable,
    /// Its answer does not verify or does not fit.
    Faulty,
    /// No reply yet.
    Silent,
}

/// A section's content and how it was found.
#[derive(Clone, Debug)]
pub struct GetValue {
    /// Manifest and certificate.
    pub head: CertifiedHead,
    /// The sealed content; empty if only the head was wanted.
    pub content: Vec<u8>,
    /// How fresh it is known to be.
    pub fresh: Freshness,
    /// Every peer that was asked, and what it said; the holders first, by index.
    pub answers: Vec<(PeerKey, Answered)>,
    /// Whose shards were used, with their indices.
    pub shards_from: Vec<(PeerKey, u8)>,
    /// Holders that answered without their shard, or with a wrong one: who decoded may hand it back to them.
    pub missing: Vec<(PeerKey, u8)>,
    /// Uncertified versions above it that some holder has acked.
    pub prepared_seen: Vec<Version>,
    /// The older holder sets in the manifest that have not expired.
    pub older_sets: Vec<OlderSet>,
}

/// Why a get returned nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GetError {
    /// Nobody who answered knows a certified version. Proves nothing in an eclipsed or partitioned neighbourhood.
    #[error("no certified version found: {answered} of {asked} peers answered")]
    NotFound {
        /// Peers asked.
        asked: usize,
        /// Peers that answered.
        answered: usize,
    },
    /// The current version has expired, and the owner has not renewed it.
    #[error("version {version} has expired: its owner must renew it")]
    Expired {
        /// The version.
        version: Version,
    },
    /// Too few shards could be had, but their holders may come back.
    #[error("version {version}: only {have} of {need} shards answered, {asked} holders were asked; try again when holders are back")]
    Unavailable {
        /// The version.
        version: Version,
        /// Valid shards.
        have: u8,
        /// `k`.
        need: u8,
        /// Holders asked.
        asked: u8,
    },
    /// Too few holders answered to say which version is current.
    #[error("only {have} of {need} holders answered; mode any may still read a possibly older version")]
    QuorumUnreachable {
        /// Holders that answered.
        have: usize,
        /// `n - f`; 1 where not even a head was found.
        need: usize,
        /// The highest certified version seen.
        head: Option<Box<CertifiedHead>>,
    },
    /// More than `n - k` holders say that they have no valid shard.
    #[error("version {version} is lost: {lost} of its {n} shards are gone; restore it from the owner's disk or a backup")]
    DataLost {
        /// The version.
        version: Version,
        /// Shards that are gone.
        lost: u8,
        /// All shards.
        n: u8,
    },
    /// The owner signed hashes that belong to no content. Every reader gets this verdict.
    #[error("version {version} is poisoned: its owner signed hashes that belong to no content")]
    Poisoned {
        /// The version.
        version: Version,
        /// The evidence.
        manifest: ManifestWire,
    },
    /// Only versions older than one already returned by this node were found.
    #[error("found version {found}, older than version {floor} read before; try again when more holders are back")]
    BelowFloor {
        /// The highest found.
        found: Version,
        /// The floor.
        floor: Version,
    },
    /// Takeover: yet another host has taken the agent over, with a higher term or device.
    #[error("fenced: another host has taken this agent over in term {}", by.manifest.version.term)]
    Fenced {
        /// The verified proof.
        by: Box<CertifiedHead>,
    },
}

/// One get under way.
pub struct Get {
    task: GetTask,
}

impl Get {
    /// Begins. The first requests are among the actions; without anyone to ask it is over at once.
    pub fn start(_task: GetTask, _now: Now) -> (Self, Vec<GetOut>) {
        todo!()
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, _tag: Tag, _reply: Reply, _now: Now, _verifier: &dyn Verifier) -> Vec<GetOut> {
        todo!()
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, _now: Now) -> Vec<GetOut> {
        todo!()
    }

    /// When to call [`Self::tick`] next, in microseconds of [`Now::mono_us`]; `None` once finished.
    pub fn deadline(&self) -> Option<u64> {
        todo!()
    }

    /// Whether it is over.
    pub fn finished(&self) -> bool {
        todo!()
    }

    /// Every peer asked so far and what it said, the holders first: also after a failure.
    pub fn answers(&self) -> Vec<(PeerKey, Answered)> {
        todo!()
    }

    /// The highest certified head found so far, expired or not: also after a failure.
    pub fn best(&self) -> Option<&CertifiedHead> {
        self.task.known.as_ref()
    }
}
