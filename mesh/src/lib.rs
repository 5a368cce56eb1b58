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
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this crate owns the sockets and the clock behind them; hash order decides nothing"
)]

mod api;
mod behaviour;
mod codec;
mod config;
mod counters;
mod driver;
mod heads;
mod peer;
mod topic;

use std::{fmt, sync::Arc, time::Duration};

pub use api::{Judgement, MeshCommand, MeshError, MeshEvent, MeshView, Overloaded, PeerView, PublishFailure, RequestFailure, TopicView};
pub use config::{AddressError, MESH_NAME_BYTES_MAX, MeshConfig, MeshLimits, MeshNameError, check_address, check_mesh_name};
pub use counters::MeshCounters;
pub use heads::HeadIndex;
use parking_lot::Mutex;
use persona_fragments::PeerKey;
use tokio::sync::{mpsc, watch};
pub use topic::{MESSAGE_LANES, Topic};

use crate::{
    behaviour::Protocols,
    config::parse_address,
    counters::Counters,
    driver::{Driver, Ends},
};

/// No request waits longer than this for its answer, whatever its own timeout says.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// A lookup or record read ends after this time with what it has: a dead peer would hold it up for ten seconds.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A gossip message that was not judged within this time goes no further: it is about to leave the gossip cache.
pub const JUDGEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest gossip message: a full batch of envelopes (32 KiB) twice over.
pub const GOSSIP_BYTES_MAX: usize = 64 << 10;

/// The longest head that Kademlia serves. All nodes of a mesh must agree on it.
pub const HEAD_BYTES_MAX: usize = 112 << 10;

/// Speaks to the swarm task. When the last clone is dropped, the task ends.
#[derive(Clone)]
pub struct MeshHandle {
    me: PeerKey,
    commands: mpsc::Sender<MeshCommand>,
    view: Arc<Mutex<MeshView>>,
    counters: Arc<Counters>,
    stop: Arc<watch::Sender<bool>>,
    /// Closed when the task has ended.
    ended: watch::Receiver<()>,
}

impl MeshHandle {
    /// This node's own key.
    pub fn me(&self) -> PeerKey {
        self.me
    }

    /// Gives the task something to do. Never waits: on an error nothing was done.
    pub fn command(&self, command: MeshCommand) -> Result<(), Overloaded> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                self.counters.commands_refused.add();
                Overloaded::Full
            }
            mpsc::error::TrySendError::Closed(_) => Overloaded::Stopped,
        })
    }

    /// What this node sees of the mesh: peers and topics as they were some milliseconds ago, counters as they are.
    pub fn view(&self) -> MeshView {
        MeshView { counters: self.counters.read(), ..self.view.lock().clone() }
    }

    /// Closes all connections and ends the task, for all clones of the handle; returns when it has ended. Operations that are under way
    /// get no result: the event channel ends.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        // Nothing is ever sent: this waits for the sender to be dropped.
        while self.ended.changed().await.is_ok() {}
    }
}

impl fmt::Debug for MeshHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshHandle").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Starts the swarm task and returns once every configured address listens. Must be called within a tokio runtime.
///
/// Kademlia serves what is in `heads`, now and later. The events must be received, or the node becomes deaf: see [`MeshLimits`].
pub async fn start(config: MeshConfig, heads: Arc<HeadIndex>) -> Result<(MeshHandle, mpsc::Receiver<MeshEvent>), MeshError> {
    let MeshConfig { mesh, mut node_seed, listen, external, limits } = config;
    check_mesh_name(&mesh)?;
    let parse = |addresses: &[String]| addresses.iter().map(|text| parse_address(text).map(peer::strip)).collect::<Result<Vec<_>, _>>();
    let (listen, external) = (parse(&listen)?, parse(&external)?);
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(&mut node_seed).expect("a seed has 32 bytes");
    let me = peer::key(&keypair.public().to_peer_id()).expect("an Ed25519 keypair has an Ed25519 peer id");

    let counters = Arc::new(Counters::default());
    let protocols = Protocols::of(&mesh);
    let swarm = behaviour::swarm(&keypair, &mesh, &protocols, &limits, heads, counters.clone(), !external.is_empty())?;

    let (command_sender, commands) = mpsc::channel(limits.commands_max.max(1));
    let (events, event_receiver) = mpsc::channel(limits.events_max.max(1));
    let (stop, stop_receiver) = watch::channel(false);
    let (ended_sender, ended) = watch::channel(());
    let view = Arc::new(Mutex::new(MeshView::default()));
    let ends = Ends { commands, events, stop: stop_receiver, view: view.clone(), counters: counters.clone() };
    let mut driver = Driver::new(swarm, mesh, protocols, limits, ends);
    driver.listen(&listen, &external).await?;
    tokio::spawn(async move {
        driver.run().await;
        drop(ended_sender);
    });
    Ok((MeshHandle { me, commands: command_sender, view, counters, stop: Arc::new(stop), ended }, event_receiver))
}
