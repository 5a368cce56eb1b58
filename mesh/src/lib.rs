//! The shell of the mesh: libp2p on one side, commands and events on the other.
//!
//! One task owns the swarm. It has no cryptography of ours, no disk and no opinion: it carries frames, finds nodes, gossips, and answers
//! Kademlia from an index in memory. Nobody else in the project knows libp2p.
//!
//! ```text
//!             MeshCommand (bounded, try_send)                TCP+Noise+Yamux, QUIC
//!   the node ------------------------------> swarm task <----------------------------> peers
//!            <------------------------------     |  ^
//!             MeshEvent (bounded, try_send)      v  |
//!                                             HeadIndex <---- written by the node, once a head is on disk
//! ```
//!
//! The task never waits for the node. When the node is slow, gossip is ignored and requests are dropped, both counted; results wait.
#![allow(clippy::disallowed_methods, reason = "this crate owns the sockets and the clock behind them")]

mod api;
mod config;
mod counters;
mod heads;
mod peer;
mod topic;

use std::{sync::Arc, time::Duration};

pub use api::{Judgement, MeshCommand, MeshError, MeshEvent, MeshView, Overloaded, PeerView, PublishFailure, RequestFailure, TopicView};
pub use config::{AddressError, MESH_NAME_BYTES_MAX, MeshConfig, MeshLimits, MeshNameError, check_address, check_mesh_name};
pub use counters::MeshCounters;
pub use heads::HeadIndex;
use persona_fragments::PeerKey;
use tokio::sync::mpsc;
pub use topic::{MESSAGE_LANES, Topic};

/// No request waits longer than this for its answer, whatever its own timeout says.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// A lookup or record read ends after this time with what it has: a dead peer would hold it up for ten seconds.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A gossip message that was not judged within this time goes no further (it has left the gossip cache).
pub const JUDGEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest gossip message: a full batch of envelopes (32 KiB) twice over.
pub const GOSSIP_BYTES_MAX: usize = 64 << 10;

/// Speaks to the swarm task. When the last clone is dropped, the task ends.
#[derive(Clone, Debug)]
pub struct MeshHandle;

impl MeshHandle {
    /// This node's own key.
    pub fn me(&self) -> PeerKey {
        unimplemented!()
    }

    /// Gives the task something to do. Never waits: when the queue is full, nothing was done.
    pub fn command(&self, _command: MeshCommand) -> Result<(), Overloaded> {
        unimplemented!()
    }

    /// What this node sees of the mesh now.
    pub fn view(&self) -> MeshView {
        unimplemented!()
    }

    /// Closes all connections and ends the task, for all clones of the handle; returns when it has ended.
    pub async fn stop(self) {
        unimplemented!()
    }
}

/// Starts the swarm task and returns once every configured address listens.
pub async fn start(_config: MeshConfig, _heads: Arc<HeadIndex>) -> Result<(MeshHandle, mpsc::Receiver<MeshEvent>), MeshError> {
    unimplemented!()
}
