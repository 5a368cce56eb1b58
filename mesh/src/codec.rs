//! How a frame travels on `/persona/<mesh>/fragment/1` (docs/spec/wire.md).
//!
//! One stream carries one request and its answer. The asker opens the stream, writes one frame and closes its half; the other writes one
//! frame and closes the stream. On the stream a frame is its length, four bytes with the highest first, and then that many bytes: 1 to
//! [`FRAME_BYTES_MAX`]. What the bytes mean is not known here.
//!
//! A length is only a claim: memory grows with the bytes that really came, and all frames being read share one [`Budget`].

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, request_response};
use persona_fragments::wire::{FRAME_BYTES_MAX, fits_frame};

use crate::counters::Counters;

/// A frame is read in steps of this many bytes, each accounted for before it is read.
const STEP_BYTES: usize = 64 << 10;

/// A frame, and its share of the budget if it was received.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) share: Option<Share>,
}

impl Frame {
    /// A frame to send.
    pub(crate) fn to_send(bytes: Vec<u8>) -> Self {
        Self { bytes, share: None }
    }
}

/// So many bytes may be in memory at a time. When they are, the next step of any frame fails, and with it the frame.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Purse { used: AtomicUsize::new(0), bytes_max }))
    }

    fn share(&self) -> Share {
        Share { purse: self.0.clone(), bytes: 0 }
    }

    #[cfg(test)]
    fn used(&self) -> usize {
        self.0.used.load(Ordering::Acquire)
    }
}

/// What one frame has taken of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    purse: Arc<Purse>,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize) -> bool {
        let grown = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.purse.bytes_max);
        let fits = self.purse.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok();
        if fits {
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.purse.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Reads and writes frames, in the task of each connection.
#[derive(Clone)]
pub(crate) struct FrameCodec {
    pub(crate) requests: Budget,
    pub(crate) responses: Budget,
    pub(crate) counters: Arc<Counters>,
}

impl FrameCodec {
    async fn read(&self, io: &mut (impl AsyncRead + Unpin + Send), budget: &Budget) -> io::Result<Frame> {
        let mut length = [0; 4];
        io.read_exact(&mut length).await?;
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            self.counters.frames_too_long.add();
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame has 1 to {FRAME_BYTES_MAX} bytes, not {length}")));
        }
        let (mut bytes, mut share) = (Vec::new(), budget.share());
        while bytes.len() < length {
            let (read, step) = (bytes.len(), STEP_BYTES.min(length - bytes.len()));
            if !share.grow(step) {
                self.counters.frames_overloaded.add();
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "too many frames are being read"));
            }
            bytes.resize(read + step, 0);
            io.read_exact(&mut bytes[read..]).await?;
        }
        Ok(Frame { bytes, share: Some(share) })
    }

    async fn write(&self, io: &mut (impl AsyncWrite + Unpin + Send), frame: Frame) -> io::Result<()> {
        assert!(fits_frame(&frame.bytes), "frames that do not fit are refused before they come here");
        let length = u32::try_from(frame.bytes.len()).expect("a frame is shorter than 4 GiB");
        io.write_all(&length.to_be_bytes()).await?;
        io.write_all(&frame.bytes).await?;
        io.flush().await
    }
}

impl request_response::Codec for FrameCodec {
    type Protocol = StreamProtocol;
    type Request = Frame;
    type Response = Frame;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Frame>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read(io, &self.requests).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Frame>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read(io, &self.responses).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Frame) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.write(io, request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, response: Frame) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.write(io, response).await
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    fn codec(bytes_max: usize) -> FrameCodec {
        FrameCodec { requests: Budget::new(bytes_max), responses: Budget::new(bytes_max), counters: Arc::default() }
    }

    fn read(codec: &FrameCodec, mut stream: &[u8]) -> io::Result<Frame> {
        block_on(codec.read(&mut stream, &codec.requests))
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        let codec = codec(1 << 20);
        for length in [1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut stream = Vec::new();
            block_on(codec.write(&mut stream, Frame::to_send(bytes.clone()))).expect("memory takes it");
            assert_eq!(stream[..4], (length as u32).to_be_bytes());
            assert_eq!(read(&codec, &stream).expect("complete").bytes, bytes);
        }
        assert_eq!(codec.requests.used(), 0, "frames give their share back");
    }

    #[test]
    fn a_frame_that_lies_about_its_length_costs_what_it_sent() {
        let codec = codec(STEP_BYTES);
        let claim = |length: usize| u32::try_from(length).expect("fits").to_be_bytes();
        assert_eq!(read(&codec, &claim(0)).expect_err("empty").kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&codec, &claim(FRAME_BYTES_MAX + 1)).expect_err("too long").kind(), io::ErrorKind::InvalidData);
        assert_eq!(codec.counters.read().frames_too_long, 2);
        // A claim of the largest frame with nothing behind it takes one step, not two mebibytes, and gives it back.
        assert_eq!(read(&codec, &claim(FRAME_BYTES_MAX)).expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(codec.requests.used(), 0);
    }

    #[test]
    fn frames_share_one_budget() {
        let codec = codec(STEP_BYTES + 10);
        let stream = [&10u32.to_be_bytes()[..], &[7; 10]].concat();
        let held = read(&codec, &stream).expect("there is room");
        let large = [&(STEP_BYTES as u32 + 1).to_be_bytes()[..], &vec![7; STEP_BYTES + 1]].concat();
        assert_eq!(read(&codec, &large).expect_err("one byte too many").kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(codec.counters.read().frames_overloaded, 1);
        drop(held);
        assert_eq!(read(&codec, &large).expect("now there is room").bytes.len(), STEP_BYTES + 1);
    }
}
