//! What is said to the swarm task, what it says, and what can be seen of it.

use std::time::Duration;

use persona_fragments::PeerKey;

use crate::{
    config::{AddressError, MeshNameError},
    counters::MeshCounters,
    topic::Topic,
};

/// Something to do. Every `id` is the caller's own, and unique among those whose result is still to come; requests, lookups, record
/// reads and publications are numbered together.
#[derive(Clone, Debug)]
pub enum MeshCommand {
    /// Sends a frame to one node and awaits its answer: [`MeshEvent::Response`]. Dials if there is no connection; looks the node up first
    /// if no address of it is known. A request to this node itself is [`RequestFailure::Unreachable`]: the caller answers those.
    Request {
        /// The caller's name for it.
        id: u64,
        /// To whom.
        to: PeerKey,
        /// What; at most [`FRAME_BYTES_MAX`](persona_fragments::wire::FRAME_BYTES_MAX) bytes, or the result is
        /// [`RequestFailure::Closed`] without a byte sent.
        frame: Vec<u8>,
        /// When to give up, at most [`REQUEST_TIMEOUT_MAX`](crate::REQUEST_TIMEOUT_MAX).
        timeout: Duration,
    },
    /// The result of this request, lookup or record read is no longer of interest: it will not come.
    Forget {
        /// The caller's name for it.
        id: u64,
    },
    /// Answers a [`MeshEvent::Request`]. Too late an answer is dropped and counted.
    Respond {
        /// Which request.
        inbound: u64,
        /// The answer; same limit as a request.
        frame: Vec<u8>,
    },
    /// Which nodes are closest to a key? [`MeshEvent::Found`], after at most [`LOOKUP_TIMEOUT`](crate::LOOKUP_TIMEOUT). Nobody is found
    /// while the routing table is empty (a new peer enters it once it has introduced itself, a round trip after it connected), and
    /// nobody when too many operations are under way (counted).
    Lookup {
        /// The caller's name for it.
        id: u64,
        /// The key, before Kademlia hashes it: for a section the bytes of its `kad_key`.
        key: Vec<u8>,
    },
    /// A plain Kademlia GET_VALUE: [`MeshEvent::Record`], after at most [`LOOKUP_TIMEOUT`](crate::LOOKUP_TIMEOUT).
    GetRecord {
        /// The caller's name for it.
        id: u64,
        /// The record key.
        key: Vec<u8>,
    },
    /// Gossips a message: [`MeshEvent::Published`]. It does not come back to this node.
    Publish {
        /// The caller's name for it.
        id: u64,
        /// Where.
        topic: Topic,
        /// What; at most [`GOSSIP_BYTES_MAX`](crate::GOSSIP_BYTES_MAX) bytes.
        data: Vec<u8>,
    },
    /// What a [`MeshEvent::Gossip`] was worth. Until then it goes no further; after [`JUDGEMENT_TIMEOUT`](crate::JUDGEMENT_TIMEOUT) it
    /// never will.
    Judge {
        /// Which message.
        message: u64,
        /// The verdict.
        verdict: Judgement,
    },
    /// Connects to addresses, grouped by the peer id they end in, TCP first. A connection gives [`MeshEvent::Connected`] (not a second
    /// one for a peer that is connected already); an address that did not answer gives [`MeshEvent::DialFailed`].
    Dial {
        /// Multiaddrs, with or without `/p2p/PEER-ID`.
        addresses: Vec<String>,
    },
    /// The caller thinks that this peer is gone: it leaves the routing table, unless it is connected.
    Suspect {
        /// Who.
        peer: PeerKey,
    },
}

/// What a gossip message was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Valid: passed on.
    Accept,
    /// Invalid, and nobody honest would have passed it on: it counts against the peers that sent it.
    Reject,
    /// Not passed on, and nobody's fault.
    Ignore,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshEvent {
    /// This node is reachable at a new address.
    Listening {
        /// Multiaddr without peer id.
        address: String,
    },
    /// A peer is connected that was not. Told by state, not by edge: with a slow receiver, a connection that came and went is not told.
    Connected {
        /// Who.
        peer: PeerKey,
        /// The far end, without peer id. If the peer opened the connection, its port is one that nobody listens on.
        address: String,
        /// Whether this node dialed.
        outgoing: bool,
    },
    /// A peer's last connection is gone.
    Disconnected {
        /// Who.
        peer: PeerKey,
    },
    /// An address of a [`MeshCommand::Dial`] did not lead to a connection.
    DialFailed {
        /// As given.
        address: String,
        /// Why, for a person.
        reason: String,
    },
    /// Another node asks something. Answer with [`MeshCommand::Respond`] within [`REQUEST_TIMEOUT_MAX`](crate::REQUEST_TIMEOUT_MAX).
    Request {
        /// This request's name.
        inbound: u64,
        /// Who asks.
        from: PeerKey,
        /// What: not decoded, not trusted.
        frame: Vec<u8>,
    },
    /// The result of a [`MeshCommand::Request`]. After a failure it is unknown whether the request was carried out, unless it is
    /// [`RequestFailure::Unreachable`].
    Response {
        /// The caller's name for it.
        id: u64,
        /// The answer: not decoded, not trusted.
        result: Result<Vec<u8>, RequestFailure>,
    },
    /// The result of a [`MeshCommand::Lookup`].
    Found {
        /// The caller's name for it.
        id: u64,
        /// The closest nodes that answered, closest first, at most 20, never this node.
        peers: Vec<PeerKey>,
    },
    /// The result of a [`MeshCommand::GetRecord`].
    Record {
        /// The caller's name for it.
        id: u64,
        /// Who said what, in the order of arrival, at most 20, without this node's own. Nothing about a value has been checked.
        values: Vec<(PeerKey, Vec<u8>)>,
    },
    /// The result of a [`MeshCommand::Publish`].
    Published {
        /// The caller's name for it.
        id: u64,
        /// Handed to at least one neighbour, or why not.
        result: Result<(), PublishFailure>,
    },
    /// A gossip message that was not seen in the last minute. Every one wants a [`MeshCommand::Judge`].
    Gossip {
        /// This message's name.
        message: u64,
        /// Where.
        topic: Topic,
        /// The neighbour that it came from; who wrote it, if anybody says, is in the data.
        from: PeerKey,
        /// What: not decoded, not trusted.
        data: Vec<u8>,
    },
    /// A connected peer has said where it listens. Good for an address book: it is the peer's own word, nobody has tried it.
    Identified {
        /// Who.
        peer: PeerKey,
        /// Multiaddrs without peer id that this node could dial, at most ten.
        addresses: Vec<String>,
    },
    /// A ping came back.
    Rtt {
        /// From whom.
        peer: PeerKey,
        /// The round trip in microseconds.
        micros: u64,
    },
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestFailure {
    /// No connection could be made, or the peer does not speak this mesh's protocol. It has not seen the request.
    #[error("the peer cannot be reached: try another holder")]
    Unreachable,
    /// No answer in time. The outcome is unknown: send the same bytes again.
    #[error("the peer did not answer in time: the outcome is unknown, send the same bytes again")]
    Timeout,
    /// Too many requests are under way, in all or to this peer. It was not sent.
    #[error("too many requests are under way: send it again later")]
    Overloaded,
    /// The connection or the stream ended before the answer: the peer died, refused, does not speak this mesh's protocol after all, or the
    /// frame was too long.
    #[error("the peer closed the connection before it answered: the outcome is unknown, send the same bytes again")]
    Closed,
}

/// Why a message was not gossiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PublishFailure {
    /// No neighbour is subscribed to the topic yet. Nothing was kept: publish again later.
    #[error("no neighbour listens to this topic yet: publish it again later")]
    NoPeers,
    /// The same bytes were published or received in the last minute.
    #[error("the same bytes were gossiped a moment ago")]
    Duplicate,
    /// Longer than [`GOSSIP_BYTES_MAX`](crate::GOSSIP_BYTES_MAX).
    #[error("a gossip message has at most {} bytes: split it", crate::GOSSIP_BYTES_MAX)]
    TooLarge,
    /// The queues to all neighbours are full: publish again later.
    #[error("the queues to all neighbours are full: publish it again later")]
    Overloaded,
}

/// The swarm task cannot take a command: its queue is full, or it has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overloaded {
    /// The queue is full. Nothing was done; the same command may be given again later.
    #[error("the mesh is overloaded: try again in a moment")]
    Full,
    /// The task has ended.
    #[error("the mesh has stopped")]
    Stopped,
}

/// Why a mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The mesh name.
    #[error(transparent)]
    Name(#[from] MeshNameError),
    /// A configured address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A listen address cannot be had.
    #[error("cannot listen on {address}: {reason}; choose another port, or 0 to let the system choose")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The network stack could not be put together.
    #[error("cannot set up the network: {0}")]
    Setup(String),
}

/// What can be seen of the mesh from this node, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshView {
    /// Where this node listens: multiaddrs without peer id, with the real ports.
    pub listening: Vec<String>,
    /// Where others are told to find it besides.
    pub external: Vec<String>,
    /// The name of the Kademlia protocol: `/persona/<mesh>/kad/1.0.0`.
    pub kad_protocol: String,
    /// The name of the request protocol: `/persona/<mesh>/fragment/1`.
    pub fragment_protocol: String,
    /// Connected peers, by key.
    pub peers: Vec<PeerView>,
    /// How many peers the Kademlia routing table has.
    pub kad_peers: usize,
    /// The topics, in the order of [`Topic::all`].
    pub topics: Vec<TopicView>,
    /// What was counted since the start.
    pub counters: MeshCounters,
}

/// A connected peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Who.
    pub peer: PeerKey,
    /// The far end of its oldest connection, without peer id.
    pub address: String,
    /// Whether this node dialed that connection.
    pub outgoing: bool,
    /// How many connections there are.
    pub connections: u32,
    /// The last round trip in microseconds, once one is known.
    pub rtt_micros: Option<u64>,
    /// The program and version that it says it runs, at most 64 characters; empty until it said so.
    pub agent: String,
}

/// A topic and its audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Which.
    pub topic: Topic,
    /// Its name on the wire.
    pub name: String,
    /// Neighbours that are subscribed to it.
    pub peers: usize,
    /// Those among them that this node exchanges whole messages with.
    pub mesh_peers: usize,
}
