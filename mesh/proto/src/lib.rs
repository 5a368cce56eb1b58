//! Who holds what, and when it is durable: the quorum protocol as state machines (docs/spec/quorum.md).
//!
//! Every machine is fed events with the time as an argument and answers with actions as values; the caller carries them out in order.
//! Nothing here waits, sleeps, reads a clock or touches a disk, so a thousand nodes under a storm of faults are one repeatable test.
//!
//! ```text
//! owner:   choose_holders -> Put     --PREPARE, COMMIT-->  Holder
//!                            Settle  --NEVER, ABORT----->  Holder
//! reader:                    Get     --HEAD, SHARD------>  Holder
//! holder without its store:  Recover --HEAD, RECALL----->  Holder
//! holder without its owner:  Renewal --RENEW, HANDOVER-->  Holder
//! ```
//!
//! A request that a machine sends to the node it runs on goes to that node's own [`Holder`], like any other.

pub mod clock;
pub mod exchange;
pub mod get;
pub mod holder;
pub mod lease;
pub mod message;
pub mod placement;
pub mod put;
pub mod recover;
pub mod settle;
pub mod storage;
pub mod time;
mod told;

pub use clock::{CLOCK_PEERS_NEEDED, PeerClocks};
pub use exchange::{Reply, Tag};
pub use get::{Answered, Freshness, Get, GetError, GetOut, GetTask, GetValue, Mode};
pub use holder::{CallId, Holder, HolderLimits, HolderOut, HolderStats, LoadError, clock_allowance_ms};
pub use lease::{Renewal, RenewalOut, RenewalTask, Renewed};
pub use message::{Refusal, Request, RequestFrame, Response, ResponseFrame};
pub use placement::{Candidate, choose_diverse_holders, choose_holders};
pub use put::{Put, PutError, PutOut, PutReceipt, PutTask, Timing};
pub use recover::{Recollection, Recover, RecoverOut, RecoverTask, Recovered};
pub use settle::{Settle, SettleOut, SettleTask, Settled};
pub use storage::{PersistId, ReadId, Table, Write};
pub use time::Now;
