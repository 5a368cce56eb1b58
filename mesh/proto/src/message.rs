//! What nodes say to each other about sections: protocol `/persona/<mesh>/fragment/1` (docs/spec/quorum.md#messages).
//!
//! Every request is idempotent: after a timeout the outcome is unknown, and the same bytes are sent again.

use bincode::{Decode, Encode};
use persona_fragments::{
    Ack, Link, OwnerKey, PeerKey, SectionKey, Signature, Version,
    certificate::{AbortWire, HeadWire},
    manifest::ManifestWire,
    wire::{self, DecodeError},
};

/// The most requests in one frame; a refresh of many sections is batched for each holder.
pub const REQUESTS_PER_FRAME_MAX: usize = 64;

/// The most sections in one [`Request::Probe`]: keys and versions of so many fill 20 KiB.
pub const PROBED_SECTIONS_MAX: usize = 256;

/// Several requests to one node. They are answered together, in order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RequestFrame {
    /// At least one, at most [`REQUESTS_PER_FRAME_MAX`].
    pub requests: Vec<Request>,
}

/// The answers to a [`RequestFrame`], one for each request, in order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ResponseFrame {
    /// As many as there were requests.
    pub responses: Vec<Response>,
}

/// One request to a node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Round 1 of a put: store shard `index` durably and sign for it.
    Prepare {
        /// The manifest.
        manifest: ManifestWire,
        /// Which shard: the receiver's place in `manifest.holders`.
        index: u8,
        /// The shard; left out in a renewal, whose holder has it already (or answers [`Response::NeedShard`]).
        shard: Option<Vec<u8>>,
    },
    /// Round 2 of a put, or a reader's write-back: this version is certified. Also to nodes that are no holders, as a forward pointer.
    Commit {
        /// Manifest and certificate.
        head: HeadWire,
    },
    /// What do you know of this section?
    Head {
        /// The section.
        key: SectionKey,
        /// A taking-over host's certified card: from now on ack no lower term of this agent.
        fence: Option<HeadWire>,
        /// Send your shard of the committed version along.
        with_shard: bool,
    },
    /// Your shard of exactly this version.
    Shard {
        /// The section.
        key: SectionKey,
        /// The version.
        version: Version,
    },
    /// From a holder that lost its store, to the others: all that I must know before I may answer for this section again.
    Recall {
        /// The section.
        key: SectionKey,
        /// Whose it is: its fence is part of the answer.
        owner: OwnerKey,
    },
    /// From the owner's host: promise never to ack any manifest of this version.
    Never {
        /// The manifest whose version is given up.
        manifest: ManifestWire,
        /// The receiver's place in `manifest.holders`.
        index: u8,
        /// The owner's word that it is to be given up.
        order: Signature,
    },
    /// This version never committed and never will: drop it.
    Abort {
        /// Manifest and abort certificate.
        aborted: AbortWire,
    },
    /// From the leader of a turn, to the other holders of a leased section: consent to this next link.
    Renew {
        /// The certified head that the link continues.
        head: HeadWire,
        /// The receiver's place among its holders.
        index: u8,
        /// When the link is issued.
        issued_at_ms: u64,
        /// Whose place goes to whom.
        replaced: Vec<(u8, PeerKey)>,
        /// The leader's own consent.
        consent: Ack,
        /// Consents of `n - f` to the same holders, of an earlier turn: to whom it may concern.
        lock: Option<Link>,
    },
    /// The same link, with the consents: ack it.
    Handover {
        /// The certified head that the link continues.
        head: HeadWire,
        /// The receiver's place among its holders.
        index: u8,
        /// The link.
        link: Link,
    },
    /// To a holder of a leased section that lacks its shard: here it is.
    Take {
        /// The certified head.
        head: HeadWire,
        /// The receiver's place among its holders.
        index: u8,
        /// The shard.
        shard: Vec<u8>,
    },
    /// From an owner's host: are you there, do you still hold these, and what time is it?
    Probe {
        /// The sections of which the receiver is a holder; none if only the time is wanted. At most [`PROBED_SECTIONS_MAX`].
        sections: Vec<ProbedSection>,
    },
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    /// To `Prepare`: stored, fsynced, signed for.
    Acked {
        /// The signature.
        ack: Ack,
    },
    /// To `Prepare` without a shard: send it.
    NeedShard,
    /// To `Commit`: the certified version, or a newer one, is durable here.
    Committed,
    /// To `Head`: all that is known here.
    Head(HeadAnswer),
    /// To `Shard`.
    Shard {
        /// The shard's index.
        index: u8,
        /// The shard.
        bytes: Vec<u8>,
    },
    /// To `Shard`: a newer version is certified, and that one is gone.
    Superseded {
        /// The newer one.
        head: HeadWire,
    },
    /// To `Shard`: not here.
    Absent,
    /// This node lost its store and has not yet learnt what it must know to answer for this section. Counts in no quorum.
    Recovering,
    /// To `Prepare`: too many uncommitted versions, or too many requests. Try again later.
    Busy,
    /// A host with a higher term, or a higher device in this term, has taken the agent over.
    Fenced {
        /// The proof: a certified head of the higher version, or the certified card of the higher term.
        head: HeadWire,
    },
    /// To `Prepare`: another manifest of the same version was acked here. Both together prove that the owner equivocated.
    Conflict {
        /// The other manifest.
        manifest: ManifestWire,
    },
    /// The request is wrong, and sending it again would not help.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// To `Recall`.
    Recalled(RecallAnswer),
    /// To `Never`: promised, durably.
    Promised {
        /// The signature, of the kind [`Never`](persona_fragments::AckKind::Never).
        never: Ack,
    },
    /// To `Never`: a manifest of this version was acked here before.
    Prepared(PreparedWire),
    /// To `Abort`: it is not stored here.
    Aborted,
    /// To `Renew`.
    Consented {
        /// The signature, of the kind [`Consent`](persona_fragments::AckKind::Consent).
        consent: Ack,
        /// If nobody is replaced and the shard is here: the one of the kind [`Handover`](persona_fragments::AckKind::Handover), too.
        ack: Option<Ack>,
    },
    /// To `Renew`: this node has acked another one, with these consents, that may be certified.
    Locked {
        /// That one.
        link: Link,
    },
    /// To `Commit`: as `Committed`, and this node has signed for other holders of a lower version.
    Handed {
        /// All of them that may not have expired.
        sets: Vec<HandedSet>,
    },
    /// To `Probe`.
    Probed {
        /// What this node's wall clock showed, in milliseconds since the Unix epoch.
        clock_ms: u64,
        /// As many as were asked for, in order.
        sections: Vec<Holding>,
    },
}

/// A holder set that may have followed another one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HandedSet {
    /// The version that they hold.
    pub version: Version,
    /// The holders before, by index.
    pub before: Vec<PeerKey>,
    /// The holders after, by index.
    pub holders: Vec<PeerKey>,
    /// When the link expires, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// Until when it may be renewed.
    pub renew_until_ms: u64,
}

/// What a holder has signed in handovers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Handed {
    /// Sets that it signed for, and those that the lease of its head came from or led to.
    pub sets: Vec<HandedSet>,
    /// The link that it acked last and that is not known to be certified.
    pub lock: Option<Link>,
}

/// A section that a holder is probed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProbedSection {
    /// The section.
    pub key: SectionKey,
    /// What its owner last committed.
    pub version: Version,
}

/// What a holder has of a section that it was probed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holding {
    /// That version is certified here, with its shard; or a higher one is certified here.
    pub held: bool,
    /// It lost its store and counts in no quorum of this section.
    pub recovering: bool,
}

/// What one holder tells another one that lost its store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RecallAnswer {
    /// All that is known here of the section, without the shard.
    pub head: HeadAnswer,
    /// The certified card that fences lower hosts of this owner here.
    pub fence: Option<HeadWire>,
}

/// All that a node knows of a section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct HeadAnswer {
    /// The highest certified version, unless it has expired.
    pub committed: Option<HeadWire>,
    /// The highest certified version if it has expired: no value any more, but proof that nothing below it counts.
    pub expired: Option<HeadWire>,
    /// Versions above it that were acked here and are not known to be certified, with the ack, so that others can complete them.
    pub prepared: Vec<PreparedWire>,
    /// If asked for: this holder's shard of the committed version.
    pub shard: Option<ShardWire>,
    /// What it signed in handovers, if anything.
    pub handed: Option<Handed>,
}

/// An uncertified version that was acked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PreparedWire {
    /// The manifest.
    pub manifest: ManifestWire,
    /// The answering holder's ack.
    pub ack: Ack,
}

/// A shard of the committed version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardWire {
    /// Its index.
    pub index: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why a request is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// The manifest does not decode, verify or pass its checks.
    #[error("the manifest is not valid")]
    BadManifest,
    /// The certificate does not verify.
    #[error("the certificate is not valid")]
    BadCertificate,
    /// The receiver is not the holder of that index.
    #[error("this node is not the holder of that shard")]
    NotAHolder,
    /// The shard does not match the manifest.
    #[error("the shard does not match the manifest")]
    WrongShard,
    /// Issued later than this node's clock plus the allowance.
    #[error("the manifest was issued in the future: compare the clocks")]
    FromTheFuture,
    /// Expired.
    #[error("the manifest has expired")]
    Expired,
    /// Older than what is certified here; or of a lower host than one whose version is prepared here.
    #[error("a newer version is stored here")]
    Stale,
    /// The fence is no certified card.
    #[error("the fence is not a certified card")]
    BadFence,
    /// This node stores no more: its own limit, or that of this owner.
    #[error("this node's store is full")]
    Full,
    /// The version was given up: this node promised never to ack it.
    #[error("this version was aborted")]
    Aborted,
    /// The order to give a version up is not its owner's.
    #[error("the owner did not order that this version be given up")]
    BadOrder,
    /// The link of a lease is not what it must be.
    #[error("the handover is not sound, not due or not properly signed")]
    BadHandover,
    /// The link replaces a holder that answers this one.
    #[error("the handover replaces a holder that is alive")]
    Alive,
    /// This node's clock is off by more than the allowance of class active.
    #[error("this node's clock is off, and it takes no part in class active")]
    ClockUnsynced,
}

impl RequestFrame {
    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decodes a frame; one without requests, or with too many, or with too many sections in a probe, is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let frame: Self = wire::decode(bytes)?;
        if frame.requests.is_empty() || frame.requests.len() > REQUESTS_PER_FRAME_MAX {
            return Err(DecodeError::Malformed(format!("{} requests in one frame", frame.requests.len())));
        }
        let probed = |request: &Request| if let Request::Probe { sections } = request { sections.len() } else { 0 };
        if let Some(sections) = frame.requests.iter().map(probed).find(|sections| *sections > PROBED_SECTIONS_MAX) {
            return Err(DecodeError::Malformed(format!("{sections} sections in one probe")));
        }
        Ok(frame)
    }
}

impl ResponseFrame {
    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decodes the answer to a frame of `requests` requests.
    pub fn from_bytes(bytes: &[u8], requests: usize) -> Result<Self, DecodeError> {
        let frame: Self = wire::decode(bytes)?;
        if frame.responses.len() != requests {
            return Err(DecodeError::Malformed(format!("{} answers to {requests} requests", frame.responses.len())));
        }
        Ok(frame)
    }
}
