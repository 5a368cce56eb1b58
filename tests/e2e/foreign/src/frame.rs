//! Frames, by hand (docs/spec/wire.md#encoding): a version byte and one value, in exactly one encoding.

use std::fmt;

/// The first byte of every frame.
pub const VERSION: u8 = 0x01;

/// The longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 2 << 20;

/// Why bytes are not a frame of what they should be (docs/spec/wire.md#canonical).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// There are no bytes.
    Empty,
    /// More than [`FRAME_BYTES_MAX`].
    TooLong,
    /// Another version than [`VERSION`].
    Version,
    /// The value cannot be read.
    Malformed,
    /// Bytes follow the value.
    Trailing,
    /// An integer was written wider than needed.
    NotCanonical,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "there are no bytes; ask another peer",
            Self::TooLong => "a frame has at most 2 MiB",
            Self::Version => "the frame is of another version; look for a newer specification",
            Self::Malformed => "the frame cannot be read as this type; ask another peer",
            Self::Trailing => "bytes follow the frame's value; ask another peer",
            Self::NotCanonical => "the frame is not the one encoding of its value; ask another peer",
        })
    }
}

impl std::error::Error for FrameError {}

/// Reads the fields of one frame, in order.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// An integer was wider than needed. It is told last, as the page orders it.
    is_wide: bool,
}

impl<'a> Reader<'a> {
    /// Begins to read a frame.
    ///
    /// # Errors
    /// It is empty, too long or of another version.
    pub fn open(frame: &'a [u8]) -> Result<Self, FrameError> {
        match frame {
            [] => Err(FrameError::Empty),
            _ if frame.len() > FRAME_BYTES_MAX => Err(FrameError::TooLong),
            [VERSION, rest @ ..] => Ok(Self { rest, is_wide: false }),
            _ => Err(FrameError::Version),
        }
    }

    /// Says that the value is complete.
    ///
    /// # Errors
    /// Bytes are left, or some integer before was too wide.
    pub fn finish(self) -> Result<(), FrameError> {
        match (self.rest, self.is_wide) {
            ([], false) => Ok(()),
            ([], true) => Err(FrameError::NotCanonical),
            _ => Err(FrameError::Trailing),
        }
    }

    /// What was not read yet: before and after a value, to cut out the bytes between.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// There are not so many.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(FrameError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// `[u8; N]`.
    ///
    /// # Errors
    /// There are not so many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.take(N)?.try_into().map_err(|_| FrameError::Malformed)
    }

    /// `u8`.
    ///
    /// # Errors
    /// There is none.
    pub fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }

    /// `u16`.
    ///
    /// # Errors
    /// It ends early, or is wider than its type.
    pub fn u16(&mut self) -> Result<u16, FrameError> {
        u16::try_from(self.varint(2)?).map_err(|_| FrameError::Malformed)
    }

    /// `u32`.
    ///
    /// # Errors
    /// It ends early, or is wider than its type.
    pub fn u32(&mut self) -> Result<u32, FrameError> {
        u32::try_from(self.varint(4)?).map_err(|_| FrameError::Malformed)
    }

    /// `u64`.
    ///
    /// # Errors
    /// It ends early.
    pub fn u64(&mut self) -> Result<u64, FrameError> {
        self.varint(8)
    }

    /// The number of an enum's variant, of which there are `variants`.
    ///
    /// # Errors
    /// There is no such variant.
    pub fn variant(&mut self, variants: u32) -> Result<u32, FrameError> {
        Some(self.u32()?).filter(|variant| *variant < variants).ok_or(FrameError::Malformed)
    }

    /// `Option<T>`.
    ///
    /// # Errors
    /// The tag is neither 0 nor 1, or the value cannot be read.
    pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T, FrameError>) -> Result<Option<T>, FrameError> {
        match self.u8()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            _ => Err(FrameError::Malformed),
        }
    }

    /// `bytes`.
    ///
    /// # Errors
    /// There are fewer than it says.
    pub fn bytes(&mut self) -> Result<&'a [u8], FrameError> {
        let count = self.u64()?;
        self.take(usize::try_from(count).map_err(|_| FrameError::Malformed)?)
    }

    /// `Vec<T>`.
    ///
    /// # Errors
    /// An element cannot be read.
    pub fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T, FrameError>) -> Result<Vec<T>, FrameError> {
        let count = self.u64()?;
        // No element is empty, so that a longer list than there are bytes need not be begun.
        if usize::try_from(count).map_or(true, |count| count > self.rest.len()) {
            return Err(FrameError::Malformed);
        }
        (0..count).map(|_| element(self)).collect()
    }

    fn varint(&mut self, width_max: usize) -> Result<u64, FrameError> {
        let (width, below) = match self.u8()? {
            small @ 0..=250 => return Ok(u64::from(small)),
            0xfb => (2, 251),
            0xfc => (4, 1 << 16),
            0xfd => (8, 1 << 32),
            _ => return Err(FrameError::Malformed),
        };
        if width > width_max {
            return Err(FrameError::Malformed);
        }
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        let value = u64::from_le_bytes(wide);
        self.is_wide |= value < below;
        Ok(value)
    }
}

/// Writes the fields of one frame, in order.
#[derive(Clone, Debug)]
pub struct Writer(Vec<u8>);

impl Default for Writer {
    fn default() -> Self {
        Self(vec![VERSION])
    }
}

impl Writer {
    /// A frame without fields yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are: `[u8; N]`, or a `u8`.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `u16`, `u32`, `u64`, the number of a variant or of elements.
    #[must_use]
    pub fn varint(mut self, value: u64) -> Self {
        let (marker, width) = match value {
            0..=250 => (None, 1),
            251..=0xffff => (Some(0xfb), 2),
            0x1_0000..=0xffff_ffff => (Some(0xfc), 4),
            _ => (Some(0xfd), 8),
        };
        self.0.extend(marker);
        self.0.extend_from_slice(&value.to_le_bytes()[..width]);
        self
    }

    /// `bytes`.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.varint(bytes.len() as u64).raw(bytes)
    }

    /// `Vec<T>`.
    #[must_use]
    pub fn list<T>(self, elements: &[T], write: impl Fn(Self, &T) -> Self) -> Self {
        elements.iter().fold(self.varint(elements.len() as u64), write)
    }

    /// The frame.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of docs/spec/wire.md#encoding.
    #[test]
    fn examples_of_the_page() {
        let frame = |value: &[u8]| [&[VERSION], value].concat();
        assert_eq!(Reader::open(&frame(&[0xfa])).unwrap().u16(), Ok(250));
        assert_eq!(Reader::open(&frame(&[0xfb, 0xfb, 0x00])).unwrap().u16(), Ok(251));
        assert_eq!(Reader::open(&frame(&[0xfc, 0, 0, 1, 0])).unwrap().u32(), Ok(0x1_0000));
        assert_eq!(Reader::open(&frame(&[0x01, 0x09])).unwrap().option(Reader::u64), Ok(Some(9)));
        let list = frame(&[0x02, 0xfb, 0x2c, 0x01, 0x01]);
        let mut reader = Reader::open(&list).unwrap();
        assert_eq!(reader.list(Reader::u16), Ok(vec![300, 1]));
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(Writer::new().list(&[300_u64, 1], |writer, value| writer.varint(*value)).finish(), list);
    }

    #[test]
    fn every_integer_comes_back_from_its_one_encoding() {
        for value in [0, 1, 250, 251, 252, 255, 256, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
            let frame = Writer::new().varint(value).finish();
            let mut reader = Reader::open(&frame).unwrap();
            assert_eq!((reader.u64(), reader.finish()), (Ok(value), Ok(())));
        }
    }

    #[test]
    fn what_is_not_a_frame_is_named() {
        let read = |frame: &[u8]| {
            let mut reader = Reader::open(frame)?;
            let value = reader.u16()?;
            reader.finish().map(|()| value)
        };
        assert_eq!(read(&[]), Err(FrameError::Empty));
        assert_eq!(read(&[2, 0]), Err(FrameError::Version));
        assert_eq!(read(&[1]), Err(FrameError::Malformed));
        assert_eq!(read(&[1, 0xfb, 0x00]), Err(FrameError::Malformed));
        assert_eq!(read(&[1, 0xfc, 0, 0, 1, 0]), Err(FrameError::Malformed), "wider than its type");
        assert_eq!(read(&[1, 0xfe]), Err(FrameError::Malformed));
        assert_eq!(read(&[1, 0, 0]), Err(FrameError::Trailing));
        assert_eq!(read(&[1, 0xfb, 250, 0]), Err(FrameError::NotCanonical));
        assert_eq!(read(&[1, 0xfb, 250, 0, 0]), Err(FrameError::Trailing), "told first");
        assert_eq!(read(&vec![1; FRAME_BYTES_MAX + 1]), Err(FrameError::TooLong));
        let mut claims_much = Reader::open(&[1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0xff]).unwrap();
        assert_eq!(claims_much.list(Reader::u8), Err(FrameError::Malformed));
    }
}
