//! The envelope: one message, and the proof that its sender still behaves like itself (docs/spec/envelope.md).
//!
//! ```text
//! compose: header --> seal payload under MK_n --> presentation order from MK_n --> tag from MK_n --> Ed25519 signature
//! receive: size, framing --> signature --> for us, in time --> counter, MK_n --> order and tag --> open payload
//! ```
//!
//! Judging changes nothing. It returns the state in which the envelope counts as received, and whoever stores that state has received it: a
//! refused envelope leaves no trace but its verdict.

use bincode::{Decode, Encode};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use persona_fragments::{
    Digest, OwnerKey, Signature, Verifier,
    wire::{self, DecodeError},
};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    card::{Card, MLKEM_PUBLIC_BYTES},
    identity::Identity,
    order::{self, ELEMENTS_MAX, ELEMENTS_MIN},
    pair::{Freshness, MessageKey, Outbound, PairError, PairState, Refusal},
    personality::{MLKEM_CIPHERTEXT_BYTES, Trait},
};

/// The largest payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 10;

/// The largest envelope, in bytes: several fit a gossip message of 64 KiB with room to spare.
pub const ENVELOPE_BYTES_MAX: usize = 40 << 10;

/// The most padding, in bytes.
pub const PADDING_BYTES_MAX: usize = 2048;

/// The most behavioural markers.
pub const MARKERS_MAX: usize = 32;

/// The most bytes of one behavioural marker.
pub const MARKER_BYTES_MAX: usize = 64;

/// The most chunks that a payload is split into.
pub const CHUNKS_MAX: usize = 64;

/// The most that a wrong order, or a right one with a wrong tag, earns: far below the line at which a message passes.
pub const WRONG_ORDER_MAX: f64 = 0.15;

/// What an exact order earns after skipped counters.
const SKIPPED_ORDER: f64 = 0.95;

/// Suite 1: Ed25519, X25519 + ML-KEM-768, HKDF and HMAC with SHA-256, XChaCha20-Poly1305.
const SUITE: u8 = 1;

/// Chunks of this size are what a sender makes whose personality does not say otherwise.
const CHUNK_BYTES: usize = 8 << 10;

/// Payload and padding together fill steps of this size, so that a length tells less.
const PADDING_STEP_BYTES: usize = 64;

const NONCE_BYTES: usize = 24;
const SEAL_BYTES: usize = NONCE_BYTES + 16;
const TAG_BYTES: usize = 16;
const SIGNATURE_BYTES: usize = 64;

/// What stands around payload, padding, markers and key shares: fixed fields, lengths, chunk table and order.
const FRAME_BYTES: usize = 1024;
const _: () = assert!(
    PAYLOAD_BYTES_MAX
        + SEAL_BYTES
        + PADDING_BYTES_MAX
        + MARKERS_MAX * (MARKER_BYTES_MAX + 8)
        + MLKEM_PUBLIC_BYTES
        + MLKEM_CIPHERTEXT_BYTES
        + FRAME_BYTES
        <= ENVELOPE_BYTES_MAX
);

const SIGNED_LABEL: &[u8] = b"persona/envelope/v1";
const DIGEST_LABEL: &[u8] = b"persona/envelope-digest/v1";
const CONTACT_LABEL: &[u8] = b"persona/first-contact/v1";
const PAYLOAD_LABEL: &[u8] = b"persona/payload/v1";
const ORDER_LABEL: &[u8] = b"persona/order/v1";
const TAG_LABEL: &[u8] = b"persona/tag/v1";

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Kind {
    /// Words for the other agent.
    Text,
    /// Says that an envelope arrived.
    Ack,
    /// Hands over a section's label or key.
    Grant,
    /// Warns of something.
    Alert,
    /// Turns the pair's ratchet.
    Ratchet,
}

impl Kind {
    /// The name in JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Ack => "ack",
            Self::Grant => "grant",
            Self::Alert => "alert",
            Self::Ratchet => "ratchet",
        }
    }
}

/// For whom it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Recipient {
    /// One agent.
    Agent(OwnerKey),
    /// Everyone.
    Broadcast,
}

/// The situation that the sender declares. It selects what is expected of the sender, and never widens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Mode {
    /// Nothing special.
    Normal,
    /// Under attack: the sender is stressed and says so.
    UnderAttack,
    /// Nothing to be recognised by: the order is canonical, and the tag alone authenticates the behaviour.
    Stealth,
}

impl Mode {
    fn byte(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::UnderAttack => 1,
            Self::Stealth => 2,
        }
    }
}

/// A behavioural marker. Version 1 has the room and defines none; a sender leaves the list empty, a receiver ignores it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Marker {
    /// Which.
    pub kind: u16,
    /// Its value, at most [`MARKER_BYTES_MAX`].
    pub value: Vec<u8>,
}

/// The highest counter that the sender of this has received from the recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Acknowledged {
    /// In which term of the recipient.
    pub term: u64,
    /// Which counter.
    pub counter: u64,
}

/// Fresh key shares for the next turn of the ratchet. Version 1 has the room; its receivers ignore it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RatchetShare {
    /// The X25519 share.
    pub x25519: [u8; 32],
    /// An ML-KEM-768 encapsulation key (1184 bytes) or ciphertext (1088 bytes).
    pub mlkem: Vec<u8>,
}

/// Makes the root of a direction: goes with every envelope until the partner has acknowledged one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FirstContact {
    /// The sender's term when it made the root.
    pub term: u64,
    /// An ML-KEM-768 ciphertext to the recipient's behaviour key: 1088 bytes.
    pub ciphertext: Vec<u8>,
}

impl FirstContact {
    /// What the root and its receiver know it by.
    pub(crate) fn name(&self) -> Digest {
        let hash = Sha256::new().chain_update(CONTACT_LABEL).chain_update(self.term.to_le_bytes()).chain_update(&self.ciphertext);
        Digest(hash.finalize().into())
    }
}

/// Everything about a message but its payload and its proofs. Readable by whoever carries it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// Which algorithms; 1.
    pub suite: u8,
    /// What it is for.
    pub kind: Kind,
    /// The agent that sent and signed it.
    pub sender: OwnerKey,
    /// The sender's term.
    pub term: u64,
    /// For whom it is.
    pub recipient: Recipient,
    /// Which message key of the term: counts from 0.
    pub counter: u64,
    /// The declared situation.
    pub mode: Mode,
    /// Behavioural markers; empty in version 1.
    pub markers: Vec<Marker>,
    /// Bytes without meaning.
    pub padding: Vec<u8>,
    /// The lengths of the chunks that make up the sealed payload.
    pub chunks: Vec<u32>,
    /// When it was sent, in milliseconds since the Unix epoch, rounded down at the sender's precision.
    pub sent_at_ms: u64,
    /// How often the pair's ratchet has turned; 0 in version 1.
    pub ratchet_step: u64,
    /// What the sender has received from the recipient.
    pub acknowledged: Option<Acknowledged>,
    /// The hash over all the sender has accepted from the recipient; zeros if nothing.
    pub transcript: Digest,
    /// Shares for the ratchet's next turn.
    pub ratchet_share: Option<RatchetShare>,
    /// Makes the root of this direction.
    pub first_contact: Option<FirstContact>,
    /// After this it is refused, in milliseconds since the Unix epoch; 0: never.
    pub expires_at_ms: u64,
}

/// An envelope as it is on the wire. The two proofs stand last and have fixed widths.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Envelope {
    /// Everything readable.
    pub header: Header,
    /// A nonce and the sealed payload.
    pub payload: Vec<u8>,
    /// The sender's presentation elements, in this message's order.
    pub order: Vec<u16>,
    /// Over all above, under the message key.
    pub tag: [u8; TAG_BYTES],
    /// Over all above, by the sender.
    pub signature: Signature,
}

/// What to send, to whom, and when.
#[derive(Clone, Debug)]
pub struct Outgoing<'a> {
    /// The recipient's certified card.
    pub to: &'a Card,
    /// What it is for.
    pub kind: Kind,
    /// The declared situation.
    pub mode: Mode,
    /// What to say, at most [`PAYLOAD_BYTES_MAX`].
    pub payload: &'a [u8],
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// After this the envelope is refused, in milliseconds since the Unix epoch; 0: never.
    pub expires_at_ms: u64,
}

/// Why an envelope is not made. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// More than [`PAYLOAD_BYTES_MAX`].
    #[error("the message has {0} bytes, more than {PAYLOAD_BYTES_MAX}; put it into a section and send the label")]
    TooLarge(usize),
    /// An agent does not write to itself.
    #[error("an agent cannot send to itself")]
    ToSelf,
    /// The pair has no key for it.
    #[error(transparent)]
    Pair(#[from] PairError),
}

/// Makes an envelope and moves the pair on. Store the pair before the envelope leaves, so that no crash makes its key serve twice.
pub fn compose(me: &Identity, pair: &mut PairState, message: Outgoing<'_>, rng: &mut dyn CryptoRng) -> Result<Vec<u8>, ComposeError> {
    let Outgoing { to, kind, mode, payload, now_ms, expires_at_ms } = message;
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(ComposeError::TooLarge(payload.len()));
    }
    if to.agent == me.agent() {
        return Err(ComposeError::ToSelf);
    }
    let Outbound { counter, key, first_contact } = pair.next_key(me, to, rng)?;
    let mut padding = vec![0; payload.len().next_multiple_of(PADDING_STEP_BYTES) - payload.len()];
    rng.fill_bytes(&mut padding);
    let mut nonce = [0; NONCE_BYTES];
    rng.fill_bytes(&mut nonce);
    let header = Header {
        suite: SUITE,
        kind,
        sender: me.agent(),
        term: me.term(),
        recipient: Recipient::Agent(to.agent),
        counter,
        mode,
        markers: Vec::new(),
        padding,
        chunks: chunks(payload.len() + SEAL_BYTES),
        sent_at_ms: now_ms - now_ms % granularity_ms(me.personality().trait_value(Trait::Precision)),
        ratchet_step: 0,
        acknowledged: pair.acknowledged(),
        transcript: pair.transcript(),
        ratchet_share: None,
        first_contact,
        expires_at_ms,
    };
    let payload = seal(&key, &header, &nonce, payload);
    let order = expected_order(&key, &header, &payload, me.offered());
    let mut envelope = Envelope { header, payload, order, tag: [0; TAG_BYTES], signature: Signature([0; SIGNATURE_BYTES]) };
    let mut bytes = wire::encode(&envelope);
    let (tag_at, signature_at) = (bytes.len() - SIGNATURE_BYTES - TAG_BYTES, bytes.len() - SIGNATURE_BYTES);
    envelope.tag = tag(&key, mode, &bytes[..tag_at]);
    bytes[tag_at..signature_at].copy_from_slice(&envelope.tag);
    let signature = me.signer().sign(&[SIGNED_LABEL, &bytes[..signature_at]].concat());
    bytes[signature_at..].copy_from_slice(&signature.0);
    debug_assert!(bytes.len() <= ENVELOPE_BYTES_MAX);
    Ok(bytes)
}

/// Why bytes are not an envelope. Found before any key or state is touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// More than [`ENVELOPE_BYTES_MAX`].
    #[error("the envelope has {0} bytes, more than {ENVELOPE_BYTES_MAX}")]
    TooLarge(usize),
    /// A suite that this build does not know.
    #[error("the envelope uses suite {0}, and this version of persona knows suite {SUITE} only; update it")]
    UnknownSuite(u8),
    /// Truncated, followed by more, or not canonical.
    #[error("the envelope does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// A field beyond its limit.
    #[error("the envelope's {0} is out of range")]
    Range(&'static str),
    /// Not signed by the sender it names.
    #[error("the envelope's signature does not verify; it was altered or forged")]
    BadSignature,
}

impl EnvelopeError {
    /// The reason that a verdict gives for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge(_) => Reason::TooLarge,
            Self::UnknownSuite(_) => Reason::UnknownSuite,
            Self::Decode(_) | Self::Range(_) => Reason::Malformed,
            Self::BadSignature => Reason::BadSignature,
        }
    }
}

/// An envelope whose form is right. Who made it is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    envelope: Envelope,
    bytes: Vec<u8>,
}

impl Parsed {
    /// What it says.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Its name in outbox, inbox and logs: a hash of all but the signature.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::new().chain_update(DIGEST_LABEL).chain_update(self.unsigned()).finalize().into())
    }

    /// What the signature is over.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [SIGNED_LABEL, self.unsigned()].concat()
    }

    /// Checks the sender's signature.
    pub fn verify_signature(self, verifier: &dyn Verifier) -> Result<Verified, EnvelopeError> {
        if verifier.verify(&self.envelope.header.sender.0, &self.signed_bytes(), &self.envelope.signature) {
            Ok(Verified(self))
        } else {
            Err(EnvelopeError::BadSignature)
        }
    }

    fn unsigned(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - SIGNATURE_BYTES]
    }

    fn untagged(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - SIGNATURE_BYTES - TAG_BYTES]
    }
}

/// An envelope that the agent's key signed. Whether the agent did is what [`judge`] finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified(Parsed);

impl Verified {
    /// What it says.
    pub fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }

    /// Its name in outbox, inbox and logs.
    pub fn digest(&self) -> Digest {
        self.0.digest()
    }
}

/// Reads an envelope: size, suite, encoding, limits. Never panics.
pub fn parse(bytes: &[u8]) -> Result<Parsed, EnvelopeError> {
    if bytes.len() > ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::TooLarge(bytes.len()));
    }
    // The suite is the first byte of the body, so that it can be told before the rest is understood.
    if let [wire::WIRE_VERSION, suite, ..] = bytes
        && *suite != SUITE
    {
        return Err(EnvelopeError::UnknownSuite(*suite));
    }
    let envelope: Envelope = wire::decode(bytes)?;
    let range = |ok: bool, what| if ok { Ok(()) } else { Err(EnvelopeError::Range(what)) };
    let Header { term, markers, padding, chunks, ratchet_share, first_contact, .. } = &envelope.header;
    let total: u64 = chunks.iter().map(|len| u64::from(*len)).sum();
    range(*term > 0, "term")?;
    range(markers.len() <= MARKERS_MAX && markers.iter().all(|marker| marker.value.len() <= MARKER_BYTES_MAX), "marker list")?;
    range(padding.len() <= PADDING_BYTES_MAX, "padding")?;
    range((SEAL_BYTES..=SEAL_BYTES + PAYLOAD_BYTES_MAX).contains(&envelope.payload.len()), "payload")?;
    range(chunks.len() <= CHUNKS_MAX && !chunks.contains(&0) && total == envelope.payload.len() as u64, "chunk table")?;
    range(
        ratchet_share.as_ref().is_none_or(|share| [MLKEM_PUBLIC_BYTES, MLKEM_CIPHERTEXT_BYTES].contains(&share.mlkem.len())),
        "ratchet share",
    )?;
    let contact = |contact: &FirstContact| contact.ciphertext.len() == MLKEM_CIPHERTEXT_BYTES && (1..=*term).contains(&contact.term);
    range(first_contact.as_ref().is_none_or(contact), "first contact")?;
    range((ELEMENTS_MIN..=ELEMENTS_MAX).contains(&envelope.order.len()), "presentation order")?;
    Ok(Parsed { envelope, bytes: bytes.to_vec() })
}

/// Why a verdict is what it is. The names are stable: alerts, logs and scripts use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Order and tag are exact, and the counter is fresh.
    Accepted,
    /// More than [`ENVELOPE_BYTES_MAX`].
    TooLarge,
    /// Not an envelope, or a field beyond its limit.
    Malformed,
    /// A suite that this build does not know.
    UnknownSuite,
    /// Not signed by the sender it names.
    BadSignature,
    /// The card is not that of the sender it names: get that card first.
    UnknownSender,
    /// For another agent.
    NotForUs,
    /// A broadcast: its signature is good, and there is no pair chain to tell more by.
    BroadcastUnverified,
    /// Its time is over.
    Expired,
    /// Of a term before the sender's last takeover: the old host is still talking, or old messages are still around.
    StaleTerm,
    /// Of a term that the sender's certified card does not have yet: get the card again.
    UncertifiedTerm,
    /// Further ahead than terms may jump.
    TermTooFarAhead,
    /// The pair is bound to another personality of one of the two.
    CommitmentChanged,
    /// No first contact, and no pair to do without: the sender must make contact anew.
    NoPair,
    /// A ratchet step that this build does not follow.
    UnknownStep,
    /// Its counter was received already, or its key is no longer kept.
    Replay,
    /// More than [`SKIPS_MAX`](crate::pair::SKIPS_MAX) counters were skipped.
    CounterTooFarAhead,
    /// The elements are not the set that the sender's card offers.
    ForeignOrder,
    /// The signature is good, but the order or the tag is wrong: somebody has the signing key and not the behaviour.
    KeyCompromised,
    /// Signature, order and tag are good, but on a second root for the same term: the agent runs twice, or was copied.
    Clone,
    /// All proofs are good, but the payload does not open: the sender made it wrongly.
    Unreadable,
}

impl Reason {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
            Self::UnknownSuite => "unknown-suite",
            Self::BadSignature => "bad-signature",
            Self::UnknownSender => "unknown-sender",
            Self::NotForUs => "not-for-us",
            Self::BroadcastUnverified => "broadcast-unverified",
            Self::Expired => "expired",
            Self::StaleTerm => "stale-term",
            Self::UncertifiedTerm => "uncertified-term",
            Self::TermTooFarAhead => "term-too-far-ahead",
            Self::CommitmentChanged => "commitment-changed",
            Self::NoPair => "no-pair",
            Self::UnknownStep => "unknown-step",
            Self::Replay => "replay",
            Self::CounterTooFarAhead => "counter-too-far-ahead",
            Self::ForeignOrder => "foreign-order",
            Self::KeyCompromised => "key-compromised",
            Self::Clone => "clone",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether it is evidence that somebody else has the sender's signing key: worth an alert, and a tally in the relationship. It says nothing
    /// against the genuine agent.
    pub fn is_alarm(self) -> bool {
        matches!(self, Self::ForeignOrder | Self::KeyCompromised | Self::Clone | Self::CommitmentChanged)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the receiver makes of an envelope.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether it is delivered.
    pub accepted: bool,
    /// The confidence, in 0..=1; `None` until the behaviour half exists.
    pub total: Option<f64>,
    /// The protocol half: 1 for an exact order, 0.95 after skipped counters, at most 0.15 for a wrong one or a wrong tag, 0 if it was not looked at.
    pub protocol: f64,
    /// The behaviour half; `None` until it exists.
    pub behaviour: Option<f64>,
    /// Why.
    pub reason: Reason,
}

impl Verdict {
    /// The verdict on an envelope that is not delivered.
    pub fn refused(reason: Reason) -> Self {
        Self::with_protocol(reason, 0.0)
    }

    fn with_protocol(reason: Reason, protocol: f64) -> Self {
        Self { accepted: reason == Reason::Accepted, total: None, protocol, behaviour: None, reason }
    }
}

/// An accepted envelope, opened.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The pair's new state. Store it together with the payload: until then the envelope was not received.
    pub pair: PairState,
    /// From whom.
    pub sender: OwnerKey,
    /// What it is for.
    pub kind: Kind,
    /// The payload in the clear.
    pub payload: Vec<u8>,
    /// Its counter.
    pub counter: u64,
    /// The sender's term.
    pub term: u64,
    /// When it was sent, by the sender's clock and at its precision, in milliseconds since the Unix epoch.
    pub sent_at_ms: u64,
    /// What the sender has received from us.
    pub acknowledged: Option<Acknowledged>,
    /// The envelope's name.
    pub envelope_digest: Digest,
    /// SHA-256 of the payload in the clear.
    pub payload_digest: Digest,
}

/// Judges an envelope. `pair` is the state with its sender, `None` before the first message; `sender_card` is the sender's *certified* card, whose
/// term is the highest that is believed. Changes nothing: whoever stores [`Accepted::pair`] has received it.
pub fn judge(verified: &Verified, me: &Identity, pair: Option<&PairState>, sender_card: &Card, now_ms: u64) -> (Verdict, Option<Accepted>) {
    match examine(verified, me, pair, sender_card, now_ms) {
        Ok((protocol, accepted)) => (Verdict::with_protocol(Reason::Accepted, protocol), Some(accepted)),
        Err(verdict) => (verdict, None),
    }
}

/// [`parse`], [`Parsed::verify_signature`] and [`judge`] in one.
pub fn receive(
    bytes: &[u8],
    verifier: &dyn Verifier,
    me: &Identity,
    pair: Option<&PairState>,
    sender_card: &Card,
    now_ms: u64,
) -> (Verdict, Option<Accepted>) {
    match parse(bytes).and_then(|parsed| parsed.verify_signature(verifier)) {
        Ok(verified) => judge(&verified, me, pair, sender_card, now_ms),
        Err(error) => (Verdict::refused(error.reason()), None),
    }
}

fn examine(verified: &Verified, me: &Identity, pair: Option<&PairState>, card: &Card, now_ms: u64) -> Result<(f64, Accepted), Verdict> {
    let refuse = |reason| Err(Verdict::refused(reason));
    let Envelope { header, payload, order, tag: claimed_tag, .. } = verified.envelope();
    if header.sender != card.agent {
        return refuse(Reason::UnknownSender);
    }
    match header.recipient {
        Recipient::Broadcast => return refuse(Reason::BroadcastUnverified),
        Recipient::Agent(agent) if agent != me.agent() || header.sender == agent => return refuse(Reason::NotForUs),
        Recipient::Agent(_) => {}
    }
    if header.expires_at_ms != 0 && now_ms > header.expires_at_ms {
        return refuse(Reason::Expired);
    }
    if header.ratchet_step != 0 {
        return refuse(Reason::UnknownStep);
    }
    if pair.is_some_and(|pair| !pair.is_between(me, card)) {
        return refuse(Reason::CommitmentChanged);
    }
    let fresh;
    let pair = match pair {
        Some(pair) => pair,
        None => {
            fresh = PairState::new(me, card);
            &fresh
        }
    };
    let mut admitted = pair
        .admit(me, card, header.term, header.counter, header.first_contact.as_ref())
        .map_err(|refusal| Verdict::refused(refusal.reason()))?;

    let mut offered = order.clone();
    offered.sort_unstable();
    if offered != card.offered {
        return refuse(Reason::ForeignOrder);
    }
    let expected = expected_order(&admitted.key, header, payload, &card.offered);
    // Both are always compared, and each over its whole length: time tells nothing about where they differ.
    let order_is_right = order::same(order, &expected);
    let tag_is_right = bool::from(tag(&admitted.key, header.mode, verified.0.untagged()).ct_eq(claimed_tag));
    if !(order_is_right & tag_is_right) {
        return Err(Verdict::with_protocol(Reason::KeyCompromised, wrong_order(order, &expected)));
    }
    let protocol = match admitted.freshness {
        Freshness::Next => 1.0,
        Freshness::Skipped => SKIPPED_ORDER,
    };
    if admitted.forked {
        return Err(Verdict::with_protocol(Reason::Clone, protocol));
    }
    let Some(payload) = open(&admitted.key, header, payload) else {
        return Err(Verdict::with_protocol(Reason::Unreadable, protocol));
    };
    let envelope_digest = verified.digest();
    admitted.next.accepted(&envelope_digest, header.acknowledged);
    let accepted = Accepted {
        pair: admitted.next,
        sender: header.sender,
        kind: header.kind,
        payload_digest: Digest(Sha256::digest(&payload).into()),
        payload,
        counter: header.counter,
        term: header.term,
        sent_at_ms: header.sent_at_ms,
        acknowledged: header.acknowledged,
        envelope_digest,
    };
    Ok((protocol, accepted))
}

impl Refusal {
    fn reason(self) -> Reason {
        match self {
            Self::NoPair => Reason::NoPair,
            Self::StaleTerm => Reason::StaleTerm,
            Self::UncertifiedTerm => Reason::UncertifiedTerm,
            Self::TermTooFarAhead => Reason::TermTooFarAhead,
            Self::Replay => Reason::Replay,
            Self::CounterTooFarAhead => Reason::CounterTooFarAhead,
            Self::BadContact => Reason::Malformed,
        }
    }
}

/// The order in which this message presents `offered`: chosen by the message key, bound to mode, header and sealed payload.
fn expected_order(key: &MessageKey, header: &Header, payload: &[u8], offered: &[u16]) -> Vec<u16> {
    if header.mode == Mode::Stealth {
        return offered.to_vec();
    }
    let encoded = wire::encode(header);
    let bound = Sha256::new().chain_update((encoded.len() as u64).to_le_bytes()).chain_update(encoded).chain_update(payload).finalize();
    order::unrank(&key.prf(&[ORDER_LABEL, &[header.mode.byte()], &bound]), offered)
}

/// What a wrong order, or a right one with a wrong tag, earns: the less the more pairs disagree, and never more than [`WRONG_ORDER_MAX`].
fn wrong_order(order: &[u16], expected: &[u16]) -> f64 {
    let m = expected.len() as f64;
    let distance = order::kendall_distance(order, expected) as f64;
    (1.0 - distance / (m * (m - 1.0) / 4.0)).clamp(0.0, WRONG_ORDER_MAX)
}

/// 128 bits over everything before it.
fn tag(key: &MessageKey, mode: Mode, bytes: &[u8]) -> [u8; TAG_BYTES] {
    let mac = key.prf(&[TAG_LABEL, &[mode.byte()], &Sha256::digest(bytes)]);
    mac[..TAG_BYTES].try_into().expect("16 of 32 bytes")
}

fn seal(key: &MessageKey, header: &Header, nonce: &[u8; NONCE_BYTES], payload: &[u8]) -> Vec<u8> {
    let key = key.prf(&[PAYLOAD_LABEL]);
    let bound = bound(header);
    let ciphertext = XChaCha20Poly1305::new((&*key).into())
        .encrypt(&XNonce::from(*nonce), Payload { msg: payload, aad: &bound })
        .expect("a payload is far below the cipher's limit");
    [nonce.as_slice(), &ciphertext].concat()
}

fn open(key: &MessageKey, header: &Header, sealed: &[u8]) -> Option<Vec<u8>> {
    let key = key.prf(&[PAYLOAD_LABEL]);
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    XChaCha20Poly1305::new((&*key).into()).decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: &bound(header) }).ok()
}

fn bound(header: &Header) -> Vec<u8> {
    [PAYLOAD_LABEL, &wire::encode(header)].concat()
}

fn chunks(len: usize) -> Vec<u32> {
    let mut chunks = vec![CHUNK_BYTES as u32; len / CHUNK_BYTES];
    if !len.is_multiple_of(CHUNK_BYTES) {
        chunks.push((len % CHUNK_BYTES) as u32);
    }
    chunks
}

/// How finely an agent of this precision tells the time, in milliseconds.
fn granularity_ms(precision: f64) -> u64 {
    const STEPS_MS: [u64; 10] = [1000, 500, 200, 100, 50, 20, 10, 5, 2, 1];
    STEPS_MS[((precision * 10.0) as usize).min(STEPS_MS.len() - 1)]
}

#[cfg(test)]
mod tests;
