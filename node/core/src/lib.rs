//! One whole node as a value.
//!
//! A [`Node`] is fed everything that can happen to it ([`Input`]) with the time as an argument, and answers with everything it wants done
//! ([`Output`]). The shell (`persona`) carries that out with libp2p and a disk; the simulator with queues in memory. Two services live here:
//! *sections* (puts, gets, renewals, takeover) and *messages* (outbox, inbox, verdicts).
//!
//! ```text
//! calls from the API ─┐                        ┌─ requests, lookups, gossip
//! frames from peers  ─┤── Node::handle(now) ───┤─ batches for the disk
//! word from the disk ─┘                        └─ answers to calls
//! ```

mod call;
mod churn;
mod disk;
mod evidence;
mod import;
mod leases;
mod messages;
mod missing;
mod neighbours;
mod node;
mod own;
mod pending;
mod probes;
mod reads;
mod recoveries;
mod repairs;
pub mod report;
mod sections;
mod settling;
mod traffic;

pub use call::{Answer, Call, CallError, Keep};
pub use disk::Stray;
pub use import::AgentKeys;
pub use node::{Config, Gossip, Input, Judgement, Node, NodeKeys, Notice, Output, OwnerSigner, PublishError, RequestError, ed25519_owner};
pub use pending::ImportKeys;
