//! What passes on a lane, and how every member judges it before it passes it on (docs/spec/gossip.md).

use std::fmt;

use crate::{
    frame::{FrameError, Reader},
    sha256, verifies,
};

/// Lanes of messages.
pub const LANES: u8 = 8;

/// Bytes of a message id.
pub const MESSAGE_ID_BYTES: usize = 20;

/// Envelopes in one batch.
const BATCH_ENVELOPES_MAX: usize = 64;

/// Bytes of an envelope.
const ENVELOPE_BYTES_MAX: usize = 40_960;

const ENVELOPE_LABEL: &[u8] = b"persona/envelope/v1";

/// The topic of a lane in the mesh called `mesh`.
pub fn lane_topic(mesh: &str, lane: u8) -> String {
    format!("persona/{mesh}/messages/{lane}")
}

/// The lane of a recipient, whose id is its `did:key` (docs/spec/gossip.md#lanes).
pub fn lane_of(did: &str) -> u8 {
    sha256(&[did.as_bytes()])[0] % LANES
}

/// The id of a message (docs/spec/gossip.md#message-id).
pub fn message_id(data: &[u8]) -> [u8; MESSAGE_ID_BYTES] {
    *sha256(&[data]).first_chunk().expect("a hash has 32 bytes")
}

/// The `did:key` of an agent's Ed25519 key (docs/spec/wire.md#names-of-nodes-and-sections).
pub fn did_of(key: &[u8; 32]) -> String {
    format!("did:key:z{}", base58btc(&[&[0xed, 0x01], key.as_slice()].concat()))
}

/// A batch of envelopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Tells two sendings of the same envelopes apart.
    pub nonce: u64,
    /// The lane that it is for.
    pub lane: u8,
    /// What is in it.
    pub envelopes: Vec<Envelope>,
}

/// What any carrier may read of an envelope (docs/spec/envelope.md#layout). Its signature was verified; its tag only the recipient can check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// 0 text, 1 ack, 2 grant, 3 alert, 4 ratchet.
    pub kind: u32,
    /// The sender's `did:key`.
    pub sender: String,
    /// The sender's term.
    pub term: u64,
    /// The recipient's `did:key`, or `None` for everybody.
    pub recipient: Option<String>,
    /// Which message of the term.
    pub counter: u64,
    /// Bytes of the sealed payload.
    pub payload_bytes: usize,
}

/// Why a gossip message must not be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GossipError {
    /// The batch is no frame.
    Batch(FrameError),
    /// It came on another lane than it is for.
    Lane {
        /// Where it came.
        came_on: u8,
        /// What it says.
        is_for: u8,
    },
    /// It has no envelope, or more than 64.
    Count(usize),
    /// An envelope is too long, of another suite or no frame.
    Envelope(&'static str),
    /// An envelope is not signed by the sender it names.
    Signature,
}

impl fmt::Display for GossipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch(error) => write!(f, "the batch is no frame: {error}"),
            Self::Lane { came_on, is_for } => write!(f, "the batch is for lane {is_for}, but came on lane {came_on}"),
            Self::Count(count) => write!(f, "a batch has 1 to {BATCH_ENVELOPES_MAX} envelopes, not {count}"),
            Self::Envelope(what) => write!(f, "an envelope's {what} is wrong"),
            Self::Signature => f.write_str("an envelope is not signed by its sender"),
        }
    }
}

impl std::error::Error for GossipError {}

/// Judges a message that came on `lane`. An error means Reject: no honest member would have passed it on.
///
/// # Errors
/// What is wrong with it.
pub fn judge(lane: u8, data: &[u8]) -> Result<Batch, GossipError> {
    let read = || {
        let mut reader = Reader::open(data)?;
        let batch = (reader.u64()?, reader.u8()?, reader.list(|reader| reader.bytes().map(<[u8]>::to_vec))?);
        reader.finish().map(|()| batch)
    };
    let (nonce, is_for, envelopes) = read().map_err(GossipError::Batch)?;
    if is_for != lane {
        return Err(GossipError::Lane { came_on: lane, is_for });
    }
    if envelopes.is_empty() || envelopes.len() > BATCH_ENVELOPES_MAX {
        return Err(GossipError::Count(envelopes.len()));
    }
    let envelopes: Result<_, _> = envelopes.iter().map(|envelope| Envelope::open(envelope)).collect();
    Ok(Batch { nonce, lane, envelopes: envelopes? })
}

impl Envelope {
    fn open(bytes: &[u8]) -> Result<Self, GossipError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(GossipError::Envelope("length"));
        }
        if bytes.get(1) != Some(&1) {
            return Err(GossipError::Envelope("suite"));
        }
        let (sender, envelope, in_range, signature) = Self::read(bytes).map_err(|_| GossipError::Envelope("encoding"))?;
        if !in_range {
            return Err(GossipError::Envelope("range of a field"));
        }
        // The signature is the last field; it covers all bytes before it.
        let signed = [ENVELOPE_LABEL, &bytes[..bytes.len() - signature.len()]].concat();
        if verifies(&sender, &signed, &signature) { Ok(envelope) } else { Err(GossipError::Signature) }
    }

    fn read(bytes: &[u8]) -> Result<([u8; 32], Self, bool, [u8; 64]), FrameError> {
        let mut reader = Reader::open(bytes)?;
        let _suite = reader.u8()?;
        let kind = reader.variant(5)?;
        let (sender, term) = (reader.array::<32>()?, reader.u64()?);
        let recipient = match reader.variant(2)? {
            0 => Some(did_of(&reader.array()?)),
            _ => None,
        };
        let counter = reader.u64()?;
        let _mode = reader.variant(3)?;
        let markers = reader.list(|reader| {
            reader.u16()?;
            reader.bytes().map(<[u8]>::len)
        })?;
        let padding = reader.bytes()?.len();
        let chunks = reader.list(Reader::u32)?;
        let _sent_at_ms = reader.u64()?;
        let _ratchet_step = reader.u64()?;
        let _acknowledged = reader.option(|reader| Ok((reader.u64()?, reader.u64()?)))?;
        let _transcript = reader.array::<32>()?;
        let ratchet = reader.option(|reader| {
            reader.array::<32>()?;
            reader.bytes().map(<[u8]>::len)
        })?;
        let contact = reader.option(|reader| Ok((reader.u64()?, reader.bytes()?.len())))?;
        let _expires_at_ms = reader.u64()?;
        let payload_bytes = reader.bytes()?.len();
        let order = reader.list(Reader::u16)?;
        let _tag = reader.array::<16>()?;
        let signature = reader.array::<64>()?;
        reader.finish()?;
        let together: u64 = chunks.iter().map(|chunk| u64::from(*chunk)).sum();
        let in_range = term >= 1
            && markers.len() <= 32
            && markers.iter().all(|bytes| *bytes <= 64)
            && padding <= 2048
            && (1..=64).contains(&chunks.len())
            && !chunks.contains(&0)
            && together == payload_bytes as u64
            && ratchet.is_none_or(|bytes| bytes == 1184 || bytes == 1088)
            && contact.is_none_or(|(since, bytes)| (1..=term).contains(&since) && bytes == 1088)
            && (40..=32_808).contains(&payload_bytes)
            && (12..=32).contains(&order.len());
        Ok((sender, Self { kind, sender: did_of(&sender), term, recipient, counter, payload_bytes }, in_range, signature))
    }
}

/// The bytes as a number in base 58, highest digit first; each leading zero byte is a `1`.
pub fn base58btc(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut digits: Vec<usize> = Vec::new(); // lowest first
    for byte in bytes {
        let mut carry = usize::from(*byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).map(|_| 0);
    zeros.chain(digits.iter().rev().copied()).map(|digit| char::from(LETTERS[digit])).collect()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;
    use crate::frame::Writer;

    fn envelope(sender: &SigningKey, chunks: &[u64]) -> Vec<u8> {
        let suite_and_kind = [1, 0];
        let writer = Writer::new().raw(&suite_and_kind).raw(sender.verifying_key().as_bytes()).varint(1);
        let writer = writer.varint(0).raw(&[7; 32]).varint(300).varint(0).varint(0).bytes(&[5; 9]);
        let writer = writer.list(chunks, |writer, chunk| writer.varint(*chunk)).varint(1_700_000_000_000).varint(0);
        let writer = writer.raw(&[0]).raw(&[0; 32]).raw(&[0]).raw(&[0]).varint(0).bytes(&[6; 56]);
        let unsigned = writer.list(&[9_u64; 12], |writer, element| writer.varint(*element)).raw(&[8; 16]);
        let bytes = unsigned.finish();
        let signature = sender.sign(&[ENVELOPE_LABEL, &bytes].concat());
        [bytes, signature.to_bytes().to_vec()].concat()
    }

    fn batch(lane: u8, envelopes: &[Vec<u8>]) -> Vec<u8> {
        Writer::new().varint(u64::MAX).raw(&[lane]).list(envelopes, |writer, envelope| writer.bytes(envelope)).finish()
    }

    #[test]
    fn a_batch_is_read_and_every_flaw_refused() {
        let sender = SigningKey::from_bytes(&[1; 32]);
        let good = envelope(&sender, &[40, 16]);
        let read = judge(3, &batch(3, &[good.clone(), good.clone()])).unwrap();
        assert_eq!((read.nonce, read.envelopes.len()), (u64::MAX, 2));
        let first = &read.envelopes[0];
        assert_eq!((first.term, first.counter, first.payload_bytes), (1, 300, 56));
        assert_eq!((first.sender.clone(), first.recipient.clone()), (did_of(sender.verifying_key().as_bytes()), Some(did_of(&[7; 32]))));

        assert_eq!(judge(4, &batch(3, std::slice::from_ref(&good))), Err(GossipError::Lane { came_on: 4, is_for: 3 }));
        assert_eq!(judge(3, &batch(3, &[])), Err(GossipError::Count(0)));
        assert_eq!(judge(3, &batch(3, &vec![good.clone(); 65])), Err(GossipError::Count(65)));
        assert_eq!(judge(3, &batch(3, &[good.clone(), vec![1, 2]])), Err(GossipError::Envelope("suite")));
        assert_eq!(judge(3, &batch(3, &[good[..good.len() - 1].to_vec()])), Err(GossipError::Envelope("encoding")));
        assert_eq!(judge(3, &batch(3, &[vec![1; ENVELOPE_BYTES_MAX + 1]])), Err(GossipError::Envelope("length")));
        assert_eq!(judge(3, &batch(3, &[envelope(&sender, &[40, 15])])), Err(GossipError::Envelope("range of a field")));
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(judge(3, &batch(3, &[good.clone(), forged])), Err(GossipError::Signature));
        let mut trailing = batch(3, &[good]);
        trailing.push(0);
        assert_eq!(judge(3, &trailing), Err(GossipError::Batch(FrameError::Trailing)));
    }

    /// The examples of docs/spec/gossip.md#lanes and docs/spec/gossip.md#message-id.
    #[test]
    fn names_and_lanes() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes();
        assert_eq!(did_of(&key), "did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX");
        assert_eq!(base58btc(&[0, 0, 58]), "1121");
        assert_eq!(lane_of(&did_of(&key)), 5);
        assert_eq!(lane_topic("home", 5), "persona/home/messages/5");
        assert_eq!(data_encoding::HEXLOWER.encode(&message_id(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a3");
    }
}
