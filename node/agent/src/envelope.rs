//! The envelope (docs/spec/envelope.md). Skeleton of the API.
#![allow(dead_code, unused_variables, missing_docs, clippy::todo)]
use bincode::{Decode, Encode};
use persona_fragments::{Digest, OwnerKey, Signature, Verifier};
use rand_core::CryptoRng;

use crate::{Card, Identity, PairState};

/// The largest payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 10;
/// The largest envelope, in bytes.
pub const ENVELOPE_BYTES_MAX: usize = 40 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Kind {
    Text,
    Ack,
    Grant,
    Alert,
    Ratchet,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Recipient {
    Agent(OwnerKey),
    Broadcast,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Mode {
    Normal,
    UnderAttack,
    Stealth,
}
/// What to send, to whom, and when.
#[derive(Clone, Debug)]
pub struct Outgoing<'a> {
    pub to: &'a Card,
    pub kind: Kind,
    pub mode: Mode,
    pub payload: &'a [u8],
    pub now_ms: u64,
    /// 0: never.
    pub expires_at_ms: u64,
}
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    #[error("the payload has {0} bytes")]
    TooLarge(usize),
}
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("bad signature")]
    BadSignature,
}
impl EnvelopeError {
    pub fn reason(&self) -> Reason {
        todo!()
    }
}
/// The fields of an envelope that anyone may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub kind: Kind,
    pub sender: OwnerKey,
    pub term: u64,
    pub recipient: Recipient,
    pub counter: u64,
    pub mode: Mode,
    pub sent_at_ms: u64,
    pub expires_at_ms: u64,
    pub order: Vec<u16>,
    pub signature: Signature,
}
pub struct Parsed {}
impl Parsed {
    pub fn envelope(&self) -> &Envelope {
        todo!()
    }
    /// SHA-256 of the whole envelope: its name in outbox, inbox and logs.
    pub fn digest(&self) -> Digest {
        todo!()
    }
    pub fn verify_signature(self, verifier: &dyn Verifier) -> Result<Verified, EnvelopeError> {
        todo!()
    }
}
/// Parsed, and signed by the sender it names.
pub struct Verified {}
impl Verified {
    pub fn envelope(&self) -> &Envelope {
        todo!()
    }
    pub fn digest(&self) -> Digest {
        todo!()
    }
}
/// Stable kebab-case names by `as_str`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Accepted,
    Replay,
    CounterTooFarAhead,
    KeyCompromised,
    Clone,
    ForeignOrder,
    BadSignature,
    NotForUs,
    Expired,
    StaleTerm,
    UncertifiedTerm,
    TermTooFarAhead,
    UnknownSender,
    CommitmentChanged,
    NoPair,
    BroadcastUnverified,
    Unreadable,
    UnknownSuite,
    TooLarge,
    Malformed,
}
impl Reason {
    pub fn as_str(self) -> &'static str {
        todo!()
    }
}
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub accepted: bool,
    pub total: Option<f64>,
    pub protocol: f64,
    pub behaviour: Option<f64>,
    pub reason: Reason,
}
#[derive(Debug)]
pub struct Accepted {
    /// The pair's new state: store it, or the envelope was never received.
    pub pair: PairState,
    pub kind: Kind,
    pub payload: Vec<u8>,
    pub counter: u64,
    pub term: u64,
    pub sent_at_ms: u64,
    pub envelope_digest: Digest,
    pub payload_digest: Digest,
}
pub fn compose(me: &Identity, pair: &mut PairState, message: Outgoing<'_>, rng: &mut dyn CryptoRng) -> Result<Vec<u8>, ComposeError> {
    todo!()
}
pub fn parse(bytes: &[u8]) -> Result<Parsed, EnvelopeError> {
    todo!()
}
pub fn judge(verified: &Verified, me: &Identity, pair: Option<&PairState>, sender_card: &Card, now_ms: u64) -> (Verdict, Option<Accepted>) {
    todo!()
}
/// parse, verify_signature and judge in one.
pub fn receive(
    bytes: &[u8],
    verifier: &dyn Verifier,
    me: &Identity,
    pair: Option<&PairState>,
    sender_card: &Card,
    now_ms: u64,
) -> (Verdict, Option<Accepted>) {
    todo!()
}
