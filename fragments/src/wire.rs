//! The wire and disk format: bincode 2, one version byte, nothing left to chance (docs/spec/wire.md#encoding).
//!
//! The decoder alone would accept trailing bytes, non-canonical integers and unsorted maps, so that one value has many encodings.
//! [`decode`] re-encodes what it read and compares: a value has exactly one encoding here. Every decode has a memory limit.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
pub use bincode::{Decode, Encode};

/// The version byte that leads every frame.
pub const WIRE_VERSION: u8 = 1;

/// How much memory a decoded frame may claim, as a multiple of the largest frame: elements are counted, not only bytes.
pub const DECODE_LIMIT_BYTES: usize = 8 << 20;

/// A frame is never longer than this, whatever it carries.
pub const FRAME_BYTES_MAX: usize = 2 << 20;

const _: () = assert!(crate::CONTENT_BYTES_MAX + (64 << 10) <= FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX * 4 <= DECODE_LIMIT_BYTES);

fn config() -> Configuration<LittleEndian, Varint, Limit<DECODE_LIMIT_BYTES>> {
    bincode::config::standard().with_limit::<DECODE_LIMIT_BYTES>()
}

/// Why bytes are not a frame of the wanted type. The sender is at fault, or the disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("the frame is empty")]
    Empty,
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("the frame has {0} bytes, more than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// A version that this build does not read.
    #[error("frame version {0} is not readable by this version of persona (it reads {WIRE_VERSION})")]
    Version(u8),
    /// Truncated, an unknown variant, a length beyond the limit.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// Bytes are left over after the value.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
    /// The bytes decode, but are not what encoding the value gives.
    #[error("the encoding is not canonical")]
    NotCanonical,
}

/// Encodes a value as a frame: the version byte, then bincode.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let mut out = vec![WIRE_VERSION];
    bincode::encode_into_std_write(value, &mut out, config()).expect("wire types encode into memory");
    out
}

/// Decodes one whole frame, or says why it is none. Never panics, never allocates past [`DECODE_LIMIT_BYTES`].
pub fn decode<T: Encode + Decode<()>>(frame: &[u8]) -> Result<T, DecodeError> {
    let (&version, body) = frame.split_first().ok_or(DecodeError::Empty)?;
    if frame.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong(frame.len()));
    }
    if version != WIRE_VERSION {
        return Err(DecodeError::Version(version));
    }
    let (value, used): (T, usize) =
        bincode::decode_from_slice(body, config()).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if used != body.len() {
        return Err(DecodeError::Trailing(body.len() - used));
    }
    if encode(&value) != frame {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}
