//! One put of one manifest: when is it durable? (docs/spec/quorum.md#put)
//!
//! Round 1 sends every holder its shard until `n - f` have signed that it is on their disks: the signatures are the certificate. Round 2
//! tells the certificate to `n - f` of this holder set and of every older one that may still be asked. Only then is the put committed.
//! Placement of the remaining shards goes on in the background.

use persona_fragments::{CertifiedHead, PeerKey, SignedManifest, Verifier, manifest::ManifestWire};

use crate::{
    exchange::{Reply, Tag},
    message::{Refusal, Request},
    time::Now,
};

/// What to put, and where.
#[derive(Clone, Debug)]
pub struct PutTask {
    /// The manifest, signed and already durable as the owner's intent: after a crash the same bytes are put again.
    pub manifest: SignedManifest,
    /// All `n` shards, by index, as the manifest lists them.
    pub shards: Vec<Vec<u8>>,
    /// Leave the bytes out at first for the holders in `keeps`: they have them from an earlier version.
    pub renewal: bool,
    /// Indices of the holders that have the bytes already. Looked at in a renewal only.
    pub keeps: Vec<u8>,
    /// Further peers that are sent the certified head after the commit, best effort: the closest ones, where lookups end.
    pub bystanders: Vec<PeerKey>,
}

/// How patient a put is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A request without a reply is sent again after this time; later ones after twice the time before, up to 8 s. Default: 700 ms.
    pub resend_ms: u64,
    /// From the start to the commit; then the outcome is unknown. Default: 5 s.
    pub give_up_ms: u64,
    /// How long round 2 waits for older holder sets once this one has confirmed. Default: 2 s.
    pub older_ms: u64,
    /// How long, from the commit, shards still go to holders that have none. Default: 30 s.
    pub background_ms: u64,
    /// After so many failures in a row a holder counts as down. Default: 2.
    pub attempts: u8,
}

impl Default for Timing {
    fn default() -> Self {
        Self { resend_ms: 700, give_up_ms: 5_000, older_ms: 2_000, background_ms: 30_000, attempts: 2 }
    }
}

/// What the caller does for a put, in order.
#[derive(Clone, Debug)]
pub enum PutOut {
    /// Send this request; hand its reply to [`Put::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom. May be this very node.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// The put is committed. Placement may go on.
    Committed(Box<PutReceipt>),
    /// After the commit: so many of the `n` shards are stored now.
    Placed {
        /// Holders that signed for their shards.
        placed: u8,
    },
    /// It is over without a commit.
    Failed(PutError),
}

/// What a committed put really reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReceipt {
    /// Manifest and certificate.
    pub head: CertifiedHead,
    /// Acks in the certificate.
    pub acks: u8,
    /// Shards stored at this moment.
    pub placed: u8,
    /// The level that `placed` shards give now: reconstructible while at most `level - 1` holders are lost or lying.
    pub level: u8,
    /// Whether even one lying holder is tolerated.
    pub byzantine_tolerant: bool,
    /// `BoundedStale`: an older holder set could not be told, so that until this time (milliseconds since the Unix epoch) a reader that
    /// knows no better may still find an older version there.
    pub stale_until_ms: Option<u64>,
}

/// Why a put did not commit. But for `Fenced` and `Conflict` the outcome is *unknown*: the same bytes may be put again, and may already count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// Too many holders are down. Choose others: a new version with a new holder set.
    #[error("only {have} of {need} holders can store it: choose other holders, or try again when they are back")]
    NotEnoughHolders {
        /// Holders that acked or still may.
        have: u8,
        /// `n - f`.
        need: u8,
        /// Those that did not answer.
        unreachable: Vec<PeerKey>,
    },
    /// Round 1 took too long.
    #[error("{acks} of {need} holders acked in time: the outcome is unknown, put the same bytes again")]
    Timeout {
        /// Acks by then.
        acks: u8,
        /// `n - f`.
        need: u8,
    },
    /// Certified, but too few holders confirmed that they know.
    #[error("certified, but only {have} of {need} holders confirmed it: the outcome is unknown, put the same bytes again")]
    Unconfirmed {
        /// Holders that confirmed.
        have: u8,
        /// `n - f`.
        need: u8,
        /// The certified head.
        head: Box<CertifiedHead>,
    },
    /// Another host has taken the agent over; this one must stop writing.
    #[error("fenced: another host has taken this agent over in term {}", by.manifest.version.term)]
    Fenced {
        /// The verified proof.
        by: Box<CertifiedHead>,
    },
    /// A holder acked another manifest of this version. Both are signed by the same owner key.
    #[error("another manifest of version {version} is stored: the owner's key signed twice")]
    Conflict {
        /// The version.
        version: persona_fragments::Version,
        /// The verified other manifest.
        other: ManifestWire,
    },
    /// Too many holders refused.
    #[error("refused by {by}: {reason}")]
    Refused {
        /// The last that did.
        by: PeerKey,
        /// Why.
        reason: Refusal,
    },
}

/// One put under way.
pub struct Put {
    task: PutTask,
}

impl Put {
    /// Begins. The first requests are among the actions.
    pub fn start(_task: PutTask, _timing: Timing, _now: Now) -> (Self, Vec<PutOut>) {
        todo!()
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, _tag: Tag, _reply: Reply, _now: Now, _verifier: &dyn Verifier) -> Vec<PutOut> {
        todo!()
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, _now: Now) -> Vec<PutOut> {
        todo!()
    }

    /// When to call [`Self::tick`] next, in microseconds of [`Now::mono_us`]; `None` once finished.
    pub fn deadline(&self) -> Option<u64> {
        todo!()
    }

    /// Whether everything is over, background placement too.
    pub fn finished(&self) -> bool {
        todo!()
    }

    /// The manifest that is put.
    pub fn manifest(&self) -> &SignedManifest {
        &self.task.manifest
    }
}
