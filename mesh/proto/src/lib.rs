//! Who holds what, and when it is durable: the quorum protocol as state machines (docs/spec/quorum.md).
//!
//! Every machine is fed events with the time as an argument and answers with actions as values; the caller carries them out in order.
//! Nothing here waits, sleeps, reads a clock or touches a disk, so a thousand nodes under a storm of faults are one repeatable test.

pub mod message;
pub mod storage;
pub mod time;

pub use message::{Request, RequestFrame, Response, ResponseFrame};
pub use storage::{PersistId, ReadId, Table, Write};
pub use time::Now;
