//! The one task that owns the swarm. Its whole life is [`Driver::run`]: one `select!`, a handler for each thing that can happen.
//!
//! It never waits for the receiver of its events. Results are kept until they fit, and as many as `operations_max` may wait
//! before no more commands are taken; who is connected is told as a difference; everything else is dropped and counted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    gossipsub::{self, MessageAcceptance, MessageId, TopicHash},
    identify, kad, ping,
    request_response::{self, InboundRequestId, OutboundRequestId, ResponseChannel},
    swarm::{
        ConnectionId, DialError, ListenError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use parking_lot::Mutex;
use persona_fragments::{PeerKey, wire};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    GOSSIP_BYTES_MAX, JUDGEMENT_TIMEOUT, Judgement, LOOKUP_TIMEOUT, MeshCommand, MeshError, MeshEvent, MeshLimits, MeshView, PeerView,
    PublishFailure, REQUEST_TIMEOUT_MAX, RequestFailure, Topic, TopicView,
    behaviour::{Behaviour, BehaviourEvent, Protocols, hash, preferred},
    codec::{Frame, Share},
    config::parse_address,
    counters::Counters,
    peer,
};

/// Addresses kept of one peer. What is beyond would make every answer that names it longer.
const ADDRESSES_PER_PEER_MAX: usize = 10;

/// Peers whose addresses are remembered. The one that was heard of longest ago makes room: Kademlia finds it again.
const BOOK_PEERS_MAX: usize = 2048;

/// A peer leaves the routing table after so many failed dials in a row. Never after one: everybody restarts.
const DIAL_FAILURES_MAX: u8 = 2;

/// Failures closer together than this are one: a burst of requests to a peer that restarts is one observation.
const DIAL_FAILURES_APART: Duration = Duration::from_secs(1);

/// Peers whose failed dials are counted. When full, the count starts anew.
const FAILING_PEERS_MAX: usize = 1024;

/// The view is made anew so long after something in it changed, so that a burst of changes costs once.
const VIEW_DELAY: Duration = Duration::from_millis(20);

/// Listen addresses must have been confirmed by the system after this time.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a stopping node waits for its goodbyes to be on their way.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Answers to a lookup or record read.
const PEERS_FOUND_MAX: usize = 20;

pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    mesh: String,
    protocols: Protocols,
    limits: MeshLimits,
    counters: Arc<Counters>,
    view: Arc<Mutex<MeshView>>,
    view_due: Option<Instant>,
    topics: BTreeMap<TopicHash, Topic>,

    commands: mpsc::Receiver<MeshCommand>,
    events: mpsc::Sender<MeshEvent>,
    stop: watch::Receiver<bool>,
    /// Results that did not fit into `events` yet, and the shares of answers among them.
    results: VecDeque<(MeshEvent, Option<Share>)>,
    /// Peers that are connected and were not told to be, and the other way round.
    came: BTreeSet<PeerId>,
    gone: BTreeSet<PeerId>,

    peers: BTreeMap<PeerId, Peer>,
    book: BTreeMap<PeerId, Known>,
    failing: BTreeMap<PeerId, Failing>,
    dials: BTreeMap<ConnectionId, Vec<String>>,

    /// What the caller awaits, by its own id.
    operations: BTreeMap<u64, Operation>,
    /// Requests that libp2p has: those of `operations`, and those that timed out or were forgotten and still occupy a stream.
    outbound: BTreeMap<OutboundRequestId, u64>,
    queries: HashMap<kad::QueryId, Query>,
    /// Peers that are being looked up because a request wants to go there, with the requests.
    locating: BTreeMap<PeerId, Locating>,
    due: BTreeSet<(Instant, Due)>,

    inbound: BTreeMap<u64, Inbound>,
    inbound_ids: BTreeMap<InboundRequestId, u64>,
    inbound_next: u64,
    unjudged: BTreeMap<u64, Unjudged>,
    unjudged_next: u64,
}

/// A connected peer.
struct Peer {
    key: PeerKey,
    /// At least one, the oldest first.
    connections: Vec<Connection>,
    rtt_micros: Option<u64>,
    agent: String,
}

struct Connection {
    id: ConnectionId,
    address: Multiaddr,
    outgoing: bool,
}

/// Where a peer was last known to be.
struct Known {
    addresses: Vec<Multiaddr>,
    heard: Instant,
}

struct Failing {
    failures: u8,
    last: Instant,
}

struct Operation {
    deadline: Instant,
    kind: OperationKind,
}

enum OperationKind {
    /// Not `sent` while its peer is being located; the frame waits there.
    Request {
        peer: PeerId,
        sent: bool,
    },
    Lookup {
        query: kad::QueryId,
    },
    Record {
        query: kad::QueryId,
        key: kad::RecordKey,
        values: Vec<(PeerKey, Vec<u8>)>,
    },
}

/// Whom the end of a query concerns.
#[derive(Clone, Copy)]
enum Query {
    Operation(u64),
    Locate(PeerId),
}

struct Locating {
    query: kad::QueryId,
    deadline: Instant,
    waiting: Vec<(u64, Vec<u8>)>,
}

/// What a deadline is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Operation(u64),
    Locate(PeerId),
}

struct Inbound {
    id: InboundRequestId,
    channel: ResponseChannel<Frame>,
    _share: Option<Share>,
}

struct Unjudged {
    id: MessageId,
    from: PeerId,
    until: Instant,
}

/// What connects a driver to its handle.
pub(crate) struct Ends {
    pub(crate) commands: mpsc::Receiver<MeshCommand>,
    pub(crate) events: mpsc::Sender<MeshEvent>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) view: Arc<Mutex<MeshView>>,
    pub(crate) counters: Arc<Counters>,
}

impl Driver {
    pub(crate) fn new(swarm: Swarm<Behaviour>, mesh: String, protocols: Protocols, limits: MeshLimits, ends: Ends) -> Self {
        let topics = Topic::all().map(|topic| (hash(topic, &mesh), topic)).collect();
        Self {
            swarm,
            mesh,
            protocols,
            limits,
            counters: ends.counters,
            view: ends.view,
            view_due: None,
            topics,
            commands: ends.commands,
            events: ends.events,
            stop: ends.stop,
            results: VecDeque::new(),
            came: BTreeSet::new(),
            gone: BTreeSet::new(),
            peers: BTreeMap::new(),
            book: BTreeMap::new(),
            failing: BTreeMap::new(),
            dials: BTreeMap::new(),
            operations: BTreeMap::new(),
            outbound: BTreeMap::new(),
            queries: HashMap::new(),
            locating: BTreeMap::new(),
            due: BTreeSet::new(),
            inbound: BTreeMap::new(),
            inbound_ids: BTreeMap::new(),
            inbound_next: 0,
            unjudged: BTreeMap::new(),
            unjudged_next: 0,
        }
    }

    /// Listens on every address, or says which one cannot be had.
    pub(crate) async fn listen(&mut self, listen: &[Multiaddr], external: &[Multiaddr]) -> Result<(), MeshError> {
        let failed = |address: &Multiaddr, reason: String| MeshError::Listen { address: address.to_string(), reason };
        let mut waiting: Vec<(ListenerId, Multiaddr)> = Vec::new();
        for address in listen {
            probe(address).map_err(|error| failed(address, error.to_string()))?;
            let id = self.swarm.listen_on(address.clone()).map_err(|error| failed(address, error.to_string()))?;
            waiting.push((id, address.clone()));
        }
        for address in external {
            self.swarm.add_external_address(address.clone());
        }
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while let Some((_, first)) = waiting.first() {
            let event = tokio::time::timeout_at(deadline, self.swarm.select_next_some())
                .await
                .map_err(|_| failed(first, "the system did not confirm it in time".to_owned()))?;
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => waiting.retain(|(id, _)| id != listener_id),
                SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                    if let Some((_, address)) = waiting.iter().find(|(id, _)| id == listener_id) {
                        let reason = reason.as_ref().err().map_or_else(|| "it was closed".to_owned(), ToString::to_string);
                        return Err(failed(address, reason));
                    }
                }
                _ => {}
            }
            self.on_swarm(event);
        }
        self.refresh_view();
        Ok(())
    }

    /// Runs until the last handle is gone, the event receiver is gone, or it is told to stop.
    pub(crate) async fn run(mut self) {
        let events = self.events.clone();
        loop {
            self.deliver();
            let takes_commands = self.results.len() < self.limits.operations_max;
            let has_undelivered = self.has_undelivered();
            let next = self.next_due();
            tokio::select! {
                _ = self.stop.changed() => break,
                event = self.swarm.select_next_some() => self.on_swarm(event),
                command = self.commands.recv(), if takes_commands => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                permit = events.reserve(), if has_undelivered => match permit {
                    Ok(permit) => if let Some(event) = self.next_undelivered() { permit.send(event) },
                    Err(_) => break,
                },
                () = events.closed(), if !has_undelivered => break,
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))) => self.on_time(Instant::now()),
            }
        }
        self.say_goodbye().await;
    }

    async fn say_goodbye(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let mut closing = pin!(async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        });
        let _ = timeout(GOODBYE_TIMEOUT, &mut closing).await;
    }
}

/// Commands.
impl Driver {
    fn on_command(&mut self, command: MeshCommand) {
        match command {
            MeshCommand::Request { id, to, frame, timeout } => self.request(id, &to, frame, timeout),
            MeshCommand::Forget { id } => self.forget(id),
            MeshCommand::Respond { inbound, frame } => self.respond(inbound, frame),
            MeshCommand::Lookup { id, key } => self.lookup(id, key),
            MeshCommand::GetRecord { id, key } => self.get_record(id, key),
            MeshCommand::Publish { id, topic, data } => self.publish(id, topic, data),
            MeshCommand::Judge { message, verdict } => self.judge(message, verdict),
            MeshCommand::Dial { addresses } => self.dial(addresses),
            MeshCommand::Suspect { peer } => self.suspect(&peer),
        }
    }

    fn request(&mut self, id: u64, to: &PeerKey, frame: Vec<u8>, timeout: Duration) {
        let peer = peer::id(to);
        if self.is_taken(id) {
            return;
        }
        if !wire::fits_frame(&frame) {
            return self.fail_request(id, RequestFailure::Closed);
        }
        if peer == *self.swarm.local_peer_id() {
            return self.fail_request(id, RequestFailure::Unreachable);
        }
        if self.is_overloaded() {
            self.counters.requests_overloaded.add();
            return self.result(MeshEvent::Response { id, result: Err(RequestFailure::Overloaded) });
        }
        let deadline = Instant::now() + timeout.min(REQUEST_TIMEOUT_MAX);
        self.begin(id, deadline, OperationKind::Request { peer, sent: false });
        if self.swarm.is_connected(&peer) || self.book.contains_key(&peer) || self.is_routed(&peer) {
            self.send(id, peer, frame);
        } else {
            self.locate(id, peer, frame);
        }
    }

    fn send(&mut self, id: u64, peer: PeerId, frame: Vec<u8>) {
        let addresses = self.book.get(&peer).map(|known| preferred(&known.addresses)).unwrap_or_default();
        let request = Frame::to_send(frame);
        let outbound = self.swarm.behaviour_mut().fragment.send_request_with_addresses(&peer, request, addresses);
        self.outbound.insert(outbound, id);
        self.counters.requests_sent.add();
        if let Some(Operation { kind: OperationKind::Request { sent, .. }, .. }) = self.operations.get_mut(&id) {
            *sent = true;
        }
    }

    /// Looks for the addresses of a peer that a request wants to go to.
    fn locate(&mut self, id: u64, peer: PeerId, frame: Vec<u8>) {
        if let Some(locating) = self.locating.get_mut(&peer) {
            locating.waiting.push((id, frame));
            return;
        }
        let query = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
        let deadline = Instant::now() + LOOKUP_TIMEOUT;
        self.counters.lookups.add();
        self.queries.insert(query, Query::Locate(peer));
        self.due.insert((deadline, Due::Locate(peer)));
        self.locating.insert(peer, Locating { query, deadline, waiting: vec![(id, frame)] });
    }

    fn lookup(&mut self, id: u64, key: Vec<u8>) {
        if self.is_taken(id) {
            return;
        }
        if self.is_overloaded() {
            self.counters.lookups_overloaded.add();
            return self.result(MeshEvent::Found { id, peers: Vec::new() });
        }
        let query = self.swarm.behaviour_mut().kad.get_closest_peers(key);
        self.counters.lookups.add();
        self.queries.insert(query, Query::Operation(id));
        self.begin(id, Instant::now() + LOOKUP_TIMEOUT, OperationKind::Lookup { query });
    }

    fn get_record(&mut self, id: u64, key: Vec<u8>) {
        if self.is_taken(id) {
            return;
        }
        if self.is_overloaded() {
            self.counters.lookups_overloaded.add();
            return self.result(MeshEvent::Record { id, values: Vec::new() });
        }
        let key = kad::RecordKey::from(key);
        let query = self.swarm.behaviour_mut().kad.get_record(key.clone());
        self.counters.lookups.add();
        self.queries.insert(query, Query::Operation(id));
        self.begin(id, Instant::now() + LOOKUP_TIMEOUT, OperationKind::Record { query, key, values: Vec::new() });
    }

    fn forget(&mut self, id: u64) {
        let Some(operation) = self.end(id) else { return };
        match operation.kind {
            OperationKind::Request { sent: true, .. } => {}
            OperationKind::Request { peer, sent: false } => {
                if let Some(locating) = self.locating.get_mut(&peer) {
                    locating.waiting.retain(|(waiting, _)| *waiting != id);
                }
            }
            OperationKind::Lookup { query } | OperationKind::Record { query, .. } => self.finish_query(query),
        }
    }

    fn respond(&mut self, inbound: u64, frame: Vec<u8>) {
        let Some(Inbound { id, channel, _share }) = self.inbound.remove(&inbound) else { return self.counters.inbound_answers_late.add() };
        self.inbound_ids.remove(&id);
        if !wire::fits_frame(&frame) {
            tracing::error!(
                bytes = frame.len(),
                "an answer of no bytes, or of more than fit into a frame, is not sent: a bug, please report it"
            );
            return self.counters.inbound_dropped.add();
        }
        if self.swarm.behaviour_mut().fragment.send_response(channel, Frame::to_send(frame)).is_err() {
            self.counters.inbound_answers_late.add();
        }
    }

    fn publish(&mut self, id: u64, topic: Topic, data: Vec<u8>) {
        let result = if data.len() > GOSSIP_BYTES_MAX {
            Err(PublishFailure::TooLarge)
        } else {
            let topic = hash(topic, &self.mesh);
            self.swarm.behaviour_mut().gossip.publish(topic, data).map(|_| ()).map_err(|error| match error {
                gossipsub::PublishError::Duplicate => PublishFailure::Duplicate,
                gossipsub::PublishError::NoPeersSubscribedToTopic => PublishFailure::NoPeers,
                gossipsub::PublishError::MessageTooLarge => PublishFailure::TooLarge,
                gossipsub::PublishError::AllQueuesFull(_) => PublishFailure::Overloaded,
                gossipsub::PublishError::SigningError(_) | gossipsub::PublishError::TransformFailed(_) => {
                    unreachable!("messages are neither signed nor transformed by gossipsub")
                }
            })
        };
        match result {
            Ok(()) => self.counters.gossip_published.add(),
            Err(_) => self.counters.gossip_unpublished.add(),
        }
        self.result(MeshEvent::Published { id, result });
    }

    fn judge(&mut self, message: u64, verdict: Judgement) {
        let Some(Unjudged { id, from, .. }) = self.unjudged.remove(&message) else { return self.counters.gossip_judged_late.add() };
        let acceptance = match verdict {
            Judgement::Accept => MessageAcceptance::Accept,
            Judgement::Reject => MessageAcceptance::Reject,
            Judgement::Ignore => MessageAcceptance::Ignore,
        };
        if !self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, acceptance) {
            return self.counters.gossip_judged_late.add();
        }
        match verdict {
            Judgement::Accept => self.counters.gossip_accepted.add(),
            Judgement::Reject => self.counters.gossip_rejected.add(),
            Judgement::Ignore => {}
        }
    }

    /// Addresses of one peer are one dial, tried one after the other with TCP first; an address without a peer id is a dial of its own.
    fn dial(&mut self, addresses: Vec<String>) {
        let mut by_peer: BTreeMap<PeerId, Vec<(String, Multiaddr)>> = BTreeMap::new();
        for text in addresses {
            match parse_address(&text) {
                Err(error) => self.dial_failed(text, error.to_string()),
                Ok(address) => match peer::of(&address) {
                    Some(peer) => by_peer.entry(peer).or_default().push((text, address)),
                    None => self.open(vec![text], DialOpts::unknown_peer_id().address(address).build()),
                },
            }
        }
        for (peer, mut addresses) in by_peer {
            addresses.sort_by_key(|(_, address)| !peer::is_tcp(address));
            addresses.truncate(ADDRESSES_PER_PEER_MAX);
            let (texts, addresses) = addresses.into_iter().unzip();
            let opts = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .override_dial_concurrency_factor(std::num::NonZeroU8::MIN)
                .addresses(addresses)
                .build();
            self.open(texts, opts);
        }
    }

    fn open(&mut self, addresses: Vec<String>, opts: DialOpts) {
        if self.is_overloaded() || self.dials.len() >= self.limits.operations_max {
            for address in addresses {
                self.dial_failed(address, "too many dials are under way: try again later".to_owned());
            }
            return;
        }
        let (connection, peer) = (opts.connection_id(), opts.get_peer_id());
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(connection, addresses);
            }
            Err(DialError::DialPeerConditionFalse(_)) if peer.is_some_and(|peer| self.swarm.is_connected(&peer)) => {}
            Err(error) => self.tell_dial_error(addresses, &error),
        }
    }

    fn suspect(&mut self, peer: &PeerKey) {
        let peer = peer::id(peer);
        if !self.swarm.is_connected(&peer) {
            self.evict(&peer);
        }
    }
}

/// What the swarm says.
impl Driver {
    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            SwarmEvent::Behaviour(BehaviourEvent::Fragment(event)) => self.on_fragment(event),
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info })) => {
                self.on_identified(connection_id, peer_id, info);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.result(MeshEvent::Listening { address: address.to_string() });
                self.view_changed();
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::warn!(?addresses, %error, "no longer listening");
                self.view_changed();
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let address = peer::strip(endpoint.get_remote_address().clone());
                self.on_connected(peer_id, Connection { id: connection_id, address, outgoing: endpoint.is_dialer() });
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => self.on_connection_closed(peer_id, connection_id),
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => self.on_dial_error(connection_id, peer_id, &error),
            SwarmEvent::IncomingConnectionError { error: ListenError::Denied { .. }, .. } => self.counters.connections_refused.add(),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: Connection) {
        self.counters.connections_opened.add();
        self.dials.remove(&connection.id);
        self.failing.remove(&peer);
        let Some(key) = peer::key(&peer) else {
            // Noise and TLS are built with Ed25519 alone, so this does not happen; if it does, we have nothing to say to each other.
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        };
        let known = self.peers.entry(peer).or_insert_with(|| {
            if !self.gone.remove(&peer) {
                self.came.insert(peer);
            }
            tracing::debug!(%peer, address = %connection.address, outgoing = connection.outgoing, "connected");
            Peer { key, connections: Vec::new(), rtt_micros: None, agent: String::new() }
        });
        known.connections.push(connection);
        self.view_changed();
    }

    fn on_connection_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.connections.retain(|other| other.id != connection);
        if known.connections.is_empty() {
            tracing::debug!(%peer, "disconnected");
            self.peers.remove(&peer);
            if !self.came.remove(&peer) {
                self.gone.insert(peer);
            }
        }
        self.view_changed();
    }

    fn on_dial_error(&mut self, connection: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        if matches!(error, DialError::Denied { .. }) {
            self.counters.connections_refused.add();
        }
        if let Some(addresses) = self.dials.remove(&connection) {
            self.tell_dial_error(addresses, error);
        }
        let Some(peer) = peer else { return };
        match error {
            DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => {
                // Somebody else lives there now. Kademlia would go on believing it.
                self.swarm.behaviour_mut().kad.remove_address(&peer, &peer::strip(address.clone()));
            }
            DialError::Transport(_) => {}
            DialError::NoAddresses | DialError::DialPeerConditionFalse(_) | DialError::Aborted | DialError::Denied { .. } => return,
        }
        self.counters.dials_failed.add();
        if self.swarm.is_connected(&peer) {
            return;
        }
        // Whoever does not answer over TCP may still answer over QUIC. But a machine that refuses the connection is there, and the process is
        // not: QUIC would only be silent, and lookups would wait for it.
        if !is_refused(error)
            && let Some(known) = self.book.get_mut(&peer)
        {
            known.addresses.retain(|address| !peer::is_tcp(address));
            if known.addresses.is_empty() {
                self.book.remove(&peer);
            }
        }
        let now = Instant::now();
        if self.failing.len() >= FAILING_PEERS_MAX && !self.failing.contains_key(&peer) {
            self.failing.clear();
        }
        let failing = self.failing.entry(peer).or_insert(Failing { failures: 0, last: now - DIAL_FAILURES_APART });
        if now.duration_since(failing.last) < DIAL_FAILURES_APART {
            return;
        }
        *failing = Failing { failures: failing.failures + 1, last: now };
        if failing.failures >= DIAL_FAILURES_MAX {
            self.failing.remove(&peer);
            self.evict(&peer);
        }
    }

    fn on_identified(&mut self, connection: ConnectionId, peer: PeerId, info: identify::Info) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let key = known.key;
        known.agent = info.agent_version.chars().filter(|c| !c.is_control()).take(64).collect();
        let connection = known.connections.iter().find(|other| other.id == connection);
        let (is_near, dialed) = connection.map_or((false, None), |connection| {
            (peer::is_loopback(&connection.address), connection.outgoing.then(|| connection.address.clone()))
        });
        self.view_changed();
        if !info.protocols.contains(&self.protocols.kad) {
            // Another mesh, or a client that serves nobody: not to be named to others.
            self.evict(&peer);
            return;
        }
        let mut addresses: Vec<Multiaddr> = Vec::new();
        for address in dialed.into_iter().chain(info.listen_addrs.into_iter().map(peer::strip)) {
            let is_ours = parse_address(&address.to_string()).is_ok() && !peer::is_unspecified(&address);
            // A loopback address is true only for those on the same machine.
            if is_ours && (is_near || !peer::is_loopback(&address)) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(ADDRESSES_PER_PEER_MAX);
        self.offer(MeshEvent::Identified { peer: key, addresses: addresses.iter().map(Multiaddr::to_string).collect() });
        self.remember(peer, addresses.clone());
        self.route(peer, &preferred(&addresses));
    }

    /// Makes `addresses` the ones that the routing table has of a peer.
    fn route(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        let was_alone = self.table_len() == 0;
        let kad = &mut self.swarm.behaviour_mut().kad;
        let mut stale: Vec<Multiaddr> = Vec::new();
        if let Some(bucket) = kad.kbucket(peer) {
            for entry in bucket.iter().filter(|entry| entry.node.key.preimage() == &peer) {
                stale = entry.node.value.iter().cloned().map(peer::strip).filter(|old| !addresses.contains(old)).collect();
            }
        }
        for address in addresses {
            kad.add_address(&peer, address.clone());
        }
        if !addresses.is_empty() {
            for address in stale {
                kad.remove_address(&peer, &address);
            }
        }
        if was_alone && self.table_len() > 0 {
            // The first peer: ask it who else is there, without waiting for the next periodic bootstrap.
            let _ = self.swarm.behaviour_mut().kad.bootstrap();
        }
        self.view_changed();
    }

    fn on_ping(&mut self, ping::Event { peer, connection, result }: ping::Event) {
        match result {
            Ok(rtt) => {
                let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                let Some(known) = self.peers.get_mut(&peer) else { return };
                known.rtt_micros = Some(micros);
                let peer = known.key;
                self.offer(MeshEvent::Rtt { peer, micros });
                self.view_changed();
            }
            Err(ping::Failure::Timeout | ping::Failure::Other { .. }) => {
                tracing::debug!(%peer, "a connection is silent and is closed");
                self.counters.connections_silent.add();
                self.swarm.close_connection(connection);
            }
            Err(ping::Failure::Unsupported) => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, stats, step } => match result {
                kad::QueryResult::GetClosestPeers(
                    Ok(kad::GetClosestPeersOk { peers, .. }) | Err(kad::GetClosestPeersError::Timeout { peers, .. }),
                ) => {
                    if step.last && matches!(self.queries.get(&id), Some(Query::Operation(_))) {
                        self.counters.lookup_questions.add_many(stats.num_requests().into());
                    }
                    self.on_closest(id, peers);
                }
                kad::QueryResult::GetRecord(result) => self.on_record(id, result.ok(), step.last),
                _ => {}
            },
            kad::Event::InboundRequest { request: kad::InboundRequest::PutRecord { .. } } => self.counters.kad_puts_same.add(),
            kad::Event::RoutingUpdated { .. } => self.view_changed(),
            _ => {}
        }
    }

    fn on_closest(&mut self, query: kad::QueryId, peers: Vec<kad::PeerInfo>) {
        let me = *self.swarm.local_peer_id();
        let mut found = Vec::new();
        for kad::PeerInfo { peer_id, addrs } in peers {
            if peer_id == me || found.len() >= PEERS_FOUND_MAX {
                continue;
            }
            let Some(key) = peer::key(&peer_id) else { continue };
            let addresses: Vec<Multiaddr> = addrs.into_iter().map(peer::strip).take(ADDRESSES_PER_PEER_MAX).collect();
            if !addresses.is_empty() && !self.book.contains_key(&peer_id) {
                self.remember(peer_id, addresses);
            }
            found.push(key);
        }
        match self.queries.remove(&query) {
            Some(Query::Operation(id)) if self.end(id).is_some() => self.result(MeshEvent::Found { id, peers: found }),
            Some(Query::Locate(peer)) => self.on_located(peer),
            // Forgotten, or a lookup of Kademlia's own.
            Some(Query::Operation(_)) | None => {}
        }
    }

    fn on_located(&mut self, peer: PeerId) {
        let Some(Locating { deadline, waiting, .. }) = self.locating.remove(&peer) else { return };
        self.due.remove(&(deadline, Due::Locate(peer)));
        let is_known = self.swarm.is_connected(&peer) || self.book.contains_key(&peer) || self.is_routed(&peer);
        for (id, frame) in waiting {
            if !self.operations.contains_key(&id) {
                continue;
            }
            if is_known {
                self.send(id, peer, frame);
            } else {
                self.end(id);
                self.fail_request(id, RequestFailure::Unreachable);
            }
        }
    }

    fn on_record(&mut self, query: kad::QueryId, found: Option<kad::GetRecordOk>, is_last: bool) {
        let Some(&Query::Operation(id)) = self.queries.get(&query) else { return };
        if let Some(kad::GetRecordOk::FoundRecord(kad::PeerRecord { peer: Some(peer), record })) = found
            && let Some(Operation { kind: OperationKind::Record { key, values, .. }, .. }) = self.operations.get_mut(&id)
            && let Some(peer) = peer::key(&peer)
            // Kademlia does not check that the answer is to the question.
            && record.key == *key
            && values.len() < PEERS_FOUND_MAX
        {
            values.push((peer, record.value));
        }
        if is_last {
            self.queries.remove(&query);
            if let Some(Operation { kind: OperationKind::Record { values, .. }, .. }) = self.end(id) {
                self.result(MeshEvent::Record { id, values });
            }
        }
    }

    fn on_fragment(&mut self, event: request_response::Event<Frame, Frame>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request_id, request, channel } => self.on_request(peer, request_id, request, channel),
                request_response::Message::Response { request_id, response } => self.on_outcome(request_id, Ok(response)),
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                let failure = match error {
                    request_response::OutboundFailure::DialFailure | request_response::OutboundFailure::UnsupportedProtocols => {
                        RequestFailure::Unreachable
                    }
                    request_response::OutboundFailure::Timeout => RequestFailure::Timeout,
                    request_response::OutboundFailure::ConnectionClosed => RequestFailure::Closed,
                    // The only word that libp2p has for it.
                    request_response::OutboundFailure::Io(error) if error.to_string() == "max sub-streams reached" => {
                        RequestFailure::Overloaded
                    }
                    request_response::OutboundFailure::Io(_) => RequestFailure::Closed,
                };
                self.on_outcome(request_id, Err(failure));
            }
            request_response::Event::InboundFailure { request_id, .. } => {
                if let Some(inbound) = self.inbound_ids.remove(&request_id) {
                    self.inbound.remove(&inbound);
                    self.counters.inbound_answers_late.add();
                }
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_request(&mut self, from: PeerId, id: InboundRequestId, request: Frame, channel: ResponseChannel<Frame>) {
        let Some(from) = peer::key(&from) else { return };
        if self.inbound.len() >= self.limits.inbound_max {
            return self.counters.inbound_dropped.add();
        }
        let Ok(permit) = self.events.try_reserve() else { return self.counters.inbound_dropped.add() };
        let inbound = self.inbound_next;
        self.inbound_next += 1;
        self.inbound.insert(inbound, Inbound { id, channel, _share: request.share });
        self.inbound_ids.insert(id, inbound);
        self.counters.inbound_received.add();
        permit.send(MeshEvent::Request { inbound, from, frame: request.bytes });
    }

    /// An answer or failure from libp2p; the caller may have stopped waiting.
    fn on_outcome(&mut self, outbound: OutboundRequestId, result: Result<Frame, RequestFailure>) {
        let Some(id) = self.outbound.remove(&outbound) else { return };
        if self.end(id).is_none() {
            return;
        }
        match result {
            Ok(Frame { bytes, share }) => {
                self.counters.requests_answered.add();
                self.results.push_back((MeshEvent::Response { id, result: Ok(bytes) }, share));
            }
            Err(RequestFailure::Overloaded) => {
                self.counters.requests_overloaded.add();
                self.result(MeshEvent::Response { id, result: Err(RequestFailure::Overloaded) });
            }
            Err(failure) => self.fail_request(id, failure),
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let known = self.topics.get(&message.topic).copied().zip(peer::key(&propagation_source));
                let permit = if self.unjudged.len() < self.limits.gossip_pending_max { self.events.try_reserve().ok() } else { None };
                let (Some((topic, from)), Some(permit)) = (known, permit) else {
                    self.counters.gossip_dropped.add();
                    let gossip = &mut self.swarm.behaviour_mut().gossip;
                    gossip.report_message_validation_result(&message_id, &propagation_source, MessageAcceptance::Ignore);
                    return;
                };
                let number = self.unjudged_next;
                self.unjudged_next += 1;
                self.counters.gossip_received.add();
                permit.send(MeshEvent::Gossip { message: number, topic, from, data: message.data });
                let until = Instant::now() + JUDGEMENT_TIMEOUT;
                self.unjudged.insert(number, Unjudged { id: message_id, from: propagation_source, until });
            }
            gossipsub::Event::Subscribed { .. } | gossipsub::Event::Unsubscribed { .. } => self.view_changed(),
            gossipsub::Event::SlowPeer { .. } => self.counters.gossip_slow_peers.add(),
            gossipsub::Event::GossipsubNotSupported { .. } => {}
        }
    }
}

/// Time.
impl Driver {
    fn next_due(&self) -> Option<Instant> {
        let operation = self.due.first().map(|&(at, _)| at);
        let gossip = self.unjudged.first_key_value().map(|(_, unjudged)| unjudged.until);
        [operation, gossip, self.view_due].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Instant) {
        if self.view_due.is_some_and(|at| at <= now) {
            self.refresh_view();
        }
        while let Some(first) = self.unjudged.first_entry().filter(|first| first.get().until <= now) {
            let Unjudged { id, from, .. } = first.remove();
            self.counters.gossip_dropped.add();
            self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, MessageAcceptance::Ignore);
        }
        while let Some((_, due)) = self.due.first().copied().filter(|&(at, _)| at <= now) {
            self.due.pop_first();
            match due {
                Due::Operation(id) => self.on_deadline(id),
                Due::Locate(peer) => {
                    if let Some(query) = self.locating.get(&peer).map(|locating| locating.query) {
                        self.cut_short(query);
                    }
                }
            }
        }
    }

    fn on_deadline(&mut self, id: u64) {
        match self.operations.get(&id).map(|operation| &operation.kind) {
            Some(OperationKind::Request { .. }) => {
                self.operations.remove(&id);
                self.fail_request(id, RequestFailure::Timeout);
            }
            Some(&OperationKind::Lookup { query } | &OperationKind::Record { query, .. }) => self.cut_short(query),
            None => {}
        }
    }

    /// Ends a query with what it has; its last event follows.
    fn cut_short(&mut self, query: kad::QueryId) {
        self.counters.lookups_cut_short.add();
        self.finish_query(query);
    }

    fn finish_query(&mut self, query: kad::QueryId) {
        if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&query) {
            query.finish();
        }
    }
}

/// Bookkeeping.
impl Driver {
    fn is_taken(&self, id: u64) -> bool {
        let is_taken = self.operations.contains_key(&id);
        if is_taken {
            tracing::error!(id, "an operation of this number is under way: the new one is not carried out");
        }
        is_taken
    }

    fn is_overloaded(&self) -> bool {
        self.operations.len().max(self.outbound.len()) >= self.limits.operations_max
    }

    fn begin(&mut self, id: u64, deadline: Instant, kind: OperationKind) {
        self.due.insert((deadline, Due::Operation(id)));
        self.operations.insert(id, Operation { deadline, kind });
    }

    fn end(&mut self, id: u64) -> Option<Operation> {
        let operation = self.operations.remove(&id)?;
        self.due.remove(&(operation.deadline, Due::Operation(id)));
        Some(operation)
    }

    fn fail_request(&mut self, id: u64, failure: RequestFailure) {
        self.counters.requests_failed.add();
        self.result(MeshEvent::Response { id, result: Err(failure) });
    }

    fn tell_dial_error(&mut self, addresses: Vec<String>, error: &DialError) {
        for address in addresses {
            let reason = match error {
                DialError::Transport(errors) => {
                    let bare = |address: &Multiaddr| peer::strip(address.clone());
                    let parsed = parse_address(&address).ok().map(|address| bare(&address));
                    errors
                        .iter()
                        .find(|(failed, _)| Some(bare(failed)) == parsed)
                        .or(errors.first())
                        .map_or_else(|| error.to_string(), |(_, error)| deepest(error))
                }
                // The swarm leaves out addresses that it listens on.
                DialError::LocalPeerId { .. } | DialError::NoAddresses => "this node itself is there".to_owned(),
                DialError::WrongPeerId { obtained, .. } => format!("another node is there: {obtained}"),
                DialError::DialPeerConditionFalse(_) => "this peer is being dialed already".to_owned(),
                DialError::Denied { cause } => deepest(cause),
                DialError::Aborted => error.to_string(),
            };
            self.dial_failed(address, reason);
        }
    }

    fn dial_failed(&mut self, address: String, reason: String) {
        self.result(MeshEvent::DialFailed { address, reason });
    }

    fn remember(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.is_empty() {
            return;
        }
        if self.book.len() >= BOOK_PEERS_MAX && !self.book.contains_key(&peer) {
            let oldest = self.book.iter().min_by_key(|(_, known)| known.heard).map(|(peer, _)| *peer);
            if let Some(oldest) = oldest {
                self.book.remove(&oldest);
            }
        }
        self.book.insert(peer, Known { addresses, heard: Instant::now() });
    }

    fn evict(&mut self, peer: &PeerId) {
        self.book.remove(peer);
        if self.swarm.behaviour_mut().kad.remove_peer(peer).is_some() {
            tracing::debug!(%peer, "left the routing table");
            self.counters.peers_evicted.add();
            self.view_changed();
        }
    }

    fn is_routed(&mut self, peer: &PeerId) -> bool {
        let bucket = self.swarm.behaviour_mut().kad.kbucket(*peer);
        bucket.is_some_and(|bucket| bucket.iter().any(|entry| entry.node.key.preimage() == peer))
    }

    fn table_len(&mut self) -> usize {
        self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    /// Keeps an event until it fits: for what the caller awaits.
    fn result(&mut self, event: MeshEvent) {
        self.results.push_back((event, None));
    }

    /// Tells an event if it fits: for what will be told again.
    fn offer(&mut self, event: MeshEvent) {
        if self.events.try_send(event).is_err() {
            self.counters.events_dropped.add();
        }
    }

    fn has_undelivered(&self) -> bool {
        !self.gone.is_empty() || !self.came.is_empty() || !self.results.is_empty()
    }

    /// Who went comes first: so few peers can be told of as connected that are not.
    fn next_undelivered(&mut self) -> Option<MeshEvent> {
        if let Some(peer) = self.gone.pop_first() {
            return Some(MeshEvent::Disconnected { peer: peer::key(&peer)? });
        }
        if let Some(peer) = self.came.pop_first() {
            let Peer { key, connections, .. } = self.peers.get(&peer)?;
            let first = connections.first()?;
            return Some(MeshEvent::Connected { peer: *key, address: first.address.to_string(), outgoing: first.outgoing });
        }
        self.results.pop_front().map(|(event, _share)| event)
    }

    fn deliver(&mut self) {
        let events = self.events.clone();
        while self.has_undelivered() {
            let Ok(permit) = events.try_reserve() else { return };
            if let Some(event) = self.next_undelivered() {
                permit.send(event);
            }
        }
    }

    fn view_changed(&mut self) {
        self.view_due.get_or_insert_with(|| Instant::now() + VIEW_DELAY);
    }

    fn refresh_view(&mut self) {
        self.view_due = None;
        let kad_peers = self.table_len();
        let gossip = &self.swarm.behaviour().gossip;
        let mut subscribed: BTreeMap<&TopicHash, usize> = BTreeMap::new();
        for (_, topics) in gossip.all_peers() {
            for topic in topics {
                *subscribed.entry(topic).or_default() += 1;
            }
        }
        let topics = Topic::all()
            .map(|topic| {
                let hash = hash(topic, &self.mesh);
                TopicView {
                    topic,
                    name: topic.name(&self.mesh),
                    peers: subscribed.get(&hash).copied().unwrap_or(0),
                    mesh_peers: gossip.mesh_peers(&hash).count(),
                }
            })
            .collect();
        let mut peers: Vec<PeerView> = self
            .peers
            .values()
            .filter_map(|peer| {
                let first = peer.connections.first()?;
                Some(PeerView {
                    peer: peer.key,
                    address: first.address.to_string(),
                    outgoing: first.outgoing,
                    connections: u32::try_from(peer.connections.len()).unwrap_or(u32::MAX),
                    rtt_micros: peer.rtt_micros,
                    agent: peer.agent.clone(),
                })
            })
            .collect();
        peers.sort_by_key(|peer| peer.peer);
        let view = MeshView {
            listening: self.swarm.listeners().map(ToString::to_string).collect(),
            external: self.swarm.external_addresses().map(ToString::to_string).collect(),
            kad_protocol: self.protocols.kad.to_string(),
            fragment_protocol: self.protocols.fragment.to_string(),
            peers,
            kad_peers,
            topics,
            counters: self.counters.read(),
        };
        *self.view.lock() = view;
    }
}

/// Whether a TCP port is free. libp2p listens with `SO_REUSEPORT`, so that it can dial from the same port; with that a second node of the
/// same user would listen there without an error, and take every other connection that was meant for the first.
fn probe(address: &Multiaddr) -> std::io::Result<()> {
    match peer::tcp_socket(address) {
        Some(socket) if socket.port() != 0 => std::net::TcpListener::bind(socket).map(drop),
        _ => Ok(()),
    }
}

/// What lies at the bottom of an error: "connection refused" rather than the four layers around it.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Whether every address that was tried refused the connection. The transports wrap each other's errors in types of their own, so that the
/// cause can be seen only in the debug text of the innermost one.
fn is_refused(error: &DialError) -> bool {
    let DialError::Transport(tried) = error else { return false };
    !tried.is_empty() && tried.iter().all(|(_, error)| format!("{error:?}").contains("kind: ConnectionRefused"))
}
