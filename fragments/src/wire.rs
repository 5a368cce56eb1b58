//! The wire and disk format: bincode 2, one version byte, nothing left to chance (docs/spec/wire.md#encoding).
//!
//! The decoder alone would accept trailing bytes, non-canonical integers and unsorted maps, so that one value has many encodings.
//! [`decode`] re-encodes what it read and compares: a value has exactly one encoding here. Every decode has a memory limit.

pub use bincode::{Decode, Encode};
use bincode::{
    config::{Configuration, Limit, LittleEndian, Varint},
    enc::write::Writer,
    error::EncodeError,
};

/// The version byte that leads every frame.
pub const WIRE_VERSION: u8 = 1;

/// How much memory a decoded value may claim: elements are counted as they lie in memory, not only as bytes of the frame. A length is
/// checked against it before anything is allocated for it.
pub const DECODE_LIMIT_BYTES: usize = 8 << 20;

/// A frame is never longer than this, whatever it carries.
pub const FRAME_BYTES_MAX: usize = 2 << 20;

/// Room for most frames: what is longer grows into more.
const FRAME_BYTES_USUAL: usize = 256;

/// Whether bytes can be sent as one frame: none is empty, and none is longer than [`FRAME_BYTES_MAX`].
pub fn fits_frame(bytes: &[u8]) -> bool {
    (1..=FRAME_BYTES_MAX).contains(&bytes.len())
}

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
    let mut out = Vec::with_capacity(FRAME_BYTES_USUAL);
    out.push(WIRE_VERSION);
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
    let (value, used): (T, usize) = bincode::decode_from_slice(body, config()).map_err(malformed)?;
    if used != body.len() {
        return Err(DecodeError::Trailing(body.len() - used));
    }
    let mut rest = Unwritten(body);
    if bincode::encode_into_writer(&value, &mut rest, config()).is_err() || !rest.0.is_empty() {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

fn malformed(error: bincode::error::DecodeError) -> DecodeError {
    DecodeError::Malformed(match error {
        bincode::error::DecodeError::OtherString(reason) => reason,
        other => other.to_string(),
    })
}

/// Compares what is written with what should be, so that the canonical check needs no second copy of a frame.
struct Unwritten<'a>(&'a [u8]);

impl Writer for Unwritten<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0 = self.0.strip_prefix(bytes).ok_or(EncodeError::UnexpectedEnd)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_a_byte_at_least_and_two_megabytes_at_most() {
        let fits = [0, 1, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1].map(|bytes| fits_frame(&vec![0; bytes]));
        assert_eq!(fits, [false, true, true, false]);
    }

    /// docs/spec/wire.md#encoding, line by line.
    #[test]
    fn every_kind_of_value_has_the_bytes_of_the_specification() {
        #[derive(Debug, PartialEq, Encode, Decode)]
        enum Two {
            First,
            Second { number: u16 },
        }
        assert_eq!(encode(&250_u8), [1, 250]);
        assert_eq!(encode(&255_u8), [1, 255]);
        assert_eq!(encode(&250_u16), [1, 250]);
        assert_eq!(encode(&251_u16), [1, 251, 251, 0]);
        assert_eq!(encode(&0x1234_u16), [1, 251, 0x34, 0x12]);
        assert_eq!(encode(&0xffff_u32), [1, 251, 0xff, 0xff]);
        assert_eq!(encode(&0x1_0000_u32), [1, 252, 0, 0, 1, 0]);
        assert_eq!(encode(&0xffff_ffff_u64), [1, 252, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(encode(&0x1_0000_0000_u64), [1, 253, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(encode(&[7_u8; 3]), [1, 7, 7, 7]);
        assert_eq!(encode(&vec![7_u8, 8]), [1, 2, 7, 8]);
        assert_eq!(encode(&"ab".to_owned()), [1, 2, b'a', b'b']);
        assert_eq!(encode(&vec![300_u16, 1]), [1, 2, 251, 44, 1, 1]);
        assert_eq!(encode(&None::<u64>), [1, 0]);
        assert_eq!(encode(&Some(9_u64)), [1, 1, 9]);
        assert_eq!(encode(&true), [1, 1]);
        assert_eq!(encode(&Two::First), [1, 0]);
        assert_eq!(encode(&Two::Second { number: 300 }), [1, 1, 251, 44, 1]);
        assert_eq!(decode(&[1, 1, 251, 44, 1]), Ok(Two::Second { number: 300 }));
    }

    #[test]
    fn the_canonical_check_sees_a_difference_anywhere_and_a_frame_that_is_longer_or_shorter() {
        for (expected, written, same) in [
            (&[1_u8, 2, 3][..], &[&[1_u8][..], &[2, 3]][..], true),
            (&[1, 2, 3], &[&[1], &[2, 4]], false),
            (&[1, 2, 3], &[&[1], &[2]], false),
            (&[1, 2], &[&[1], &[2, 3]], false),
        ] {
            let mut rest = Unwritten(expected);
            let accepted = written.iter().all(|bytes| rest.write(bytes).is_ok()) && rest.0.is_empty();
            assert_eq!(accepted, same, "{expected:?} {written:?}");
        }
    }
}
