//! What a put or a get calls its outstanding requests, and what can come back.

use crate::message::Response;

/// Names one request of one [`Put`](crate::Put) or [`Get`](crate::Get) until its reply is there. Another task's tags are other tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

/// What became of a request. A machine also copes with no reply at all, and with one that comes late or twice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
pub enum Reply {
    /// The peer answered.
    Answer(Response),
    /// It could not be reached, did not answer in time, or answered what does not decode.
    Unreachable,
}
