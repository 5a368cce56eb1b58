//! A peer of the mesh that serves nobody: it connects, finds others, reads and puts records, and listens to topics.
//!
//! Everything happens while one of its methods is awaited; [`Client::meanwhile`] keeps it alive while its owner does something else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    pin::pin,
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify, identity,
    kad::{self, store::MemoryStore},
    multiaddr::Protocol,
    noise, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tokio::time::{Instant, timeout};

use crate::{
    gossip::{self, Batch, MESSAGE_ID_BYTES},
    head::{self, HeadError, Proven},
};

/// A Kademlia message has at most this many bytes (docs/spec/wire.md#protocols).
const KAD_PACKET_BYTES_MAX: usize = 96 << 10;

/// A gossip message and what may be read with it (docs/spec/gossip.md#limits).
const GOSSIP_PACKET_BYTES_MAX: usize = 96 << 10;

/// A request to one peer is given up after this time. What this mesh does not accept it answers with silence, so this is how long a
/// refused put takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// A lookup ends after this time with what it has.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to go without looking whether what is waited for has come about by itself.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Messages that nobody has asked for yet. When full, the oldest goes.
const MESSAGES_MAX: usize = 1_024;

/// What this client speaks. Kademlia as a client: it is in nobody's routing table.
#[derive(NetworkBehaviour)]
struct Protocols {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    kad: kad::Behaviour<MemoryStore>,
    gossip: gossipsub::Behaviour,
}

/// A peer of one mesh.
pub struct Client {
    swarm: Swarm<Protocols>,
    mesh: String,
    kad_protocol: StreamProtocol,
    /// Members that said who they are, with what they speak.
    members: BTreeMap<PeerId, Vec<String>>,
    /// Peers that are connected but speak another mesh's Kademlia, or none.
    strangers: BTreeSet<PeerId>,
    queries: HashMap<kad::QueryId, Query>,
    messages: VecDeque<Message>,
    /// Messages that were judged and not passed on.
    rejected: u64,
    /// Why the last dial failed, for errors.
    dial_failure: Option<String>,
}

/// What came of a Kademlia query so far.
#[derive(Default)]
struct Query {
    served: Vec<Served>,
    /// Whom a put goes to.
    put_to: Vec<PeerId>,
    acknowledged: Vec<PeerId>,
    finished: bool,
}

/// What one peer answered a GET_VALUE with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Who.
    pub peer: PeerId,
    /// The record's value: a certified head, if the peer is honest.
    pub value: Vec<u8>,
}

/// What a record key stands for, as far as this client could find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The proven head of the highest version, if any peer served a proven one.
    pub newest: Option<Proven>,
    /// Who served a head of that version.
    pub by: Vec<PeerId>,
    /// Who served what proves nothing, and why it does not.
    pub refused: Vec<(PeerId, HeadError)>,
}

/// A message from a lane that was judged sound, and passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The id by which gossipsub knows it.
    pub id: [u8; MESSAGE_ID_BYTES],
    /// The neighbour it came from, not its author.
    pub from: PeerId,
    /// The lane.
    pub lane: u8,
    /// Its bytes.
    pub data: Vec<u8>,
    /// What they say.
    pub batch: Batch,
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The client could not be set up.
    Setup(String),
    /// The peer to join by is of another mesh, or of none.
    OtherMesh {
        /// Who.
        peer: PeerId,
    },
    /// It did not happen in time.
    TooLate {
        /// What.
        what: String,
        /// Anything that may explain it.
        detail: String,
    },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(why) => write!(f, "the client cannot start: {why}"),
            Self::OtherMesh { peer } => write!(f, "{peer} is not of this mesh; compare the mesh's name"),
            Self::TooLate { what, detail } => write!(f, "waited in vain for {what}{detail}; is the peer up?"),
        }
    }
}

impl std::error::Error for ClientError {}

impl Client {
    /// Joins the mesh called `mesh` by one of its nodes, whose address ends in `/p2p/` and its peer id. On return that node has identified
    /// itself as a member, and the members around this client have been looked up.
    ///
    /// # Errors
    /// The node does not answer in time, or is not of this mesh.
    pub async fn join(mesh: &str, bootstrap: &Multiaddr, patience: Duration) -> Result<Self, ClientError> {
        let setup = |error: &dyn fmt::Display| ClientError::Setup(error.to_string());
        let Some(Protocol::P2p(first)) = bootstrap.iter().last() else {
            return Err(ClientError::Setup(format!("{bootstrap} does not say who must answer; append /p2p/PEER_ID")));
        };
        let kad_protocol =
            StreamProtocol::try_from_owned(format!("/persona/{mesh}/kad/1.0.0")).map_err(|error| ClientError::Setup(error.to_string()))?;
        let keys = identity::Keypair::generate_ed25519();
        let protocols = protocols(&keys, &kad_protocol).map_err(ClientError::Setup)?;
        let swarm = SwarmBuilder::with_existing_identity(keys)
            .with_tokio()
            .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)
            .map_err(|error| setup(&error))?
            .with_behaviour(|_| protocols)
            .map_err(|error| setup(&error))?
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        let mut client = Self {
            swarm,
            mesh: mesh.to_owned(),
            kad_protocol,
            members: BTreeMap::new(),
            strangers: BTreeSet::new(),
            queries: HashMap::new(),
            messages: VecDeque::new(),
            rejected: 0,
            dial_failure: None,
        };
        client.swarm.dial(bootstrap.clone()).map_err(|error| setup(&error))?;
        let known = client.until("the first node to identify itself", patience, |client| {
            (client.members.contains_key(&first) || client.strangers.contains(&first)).then_some(())
        });
        known.await?;
        if client.strangers.contains(&first) {
            return Err(ClientError::OtherMesh { peer: first });
        }
        let query = client.swarm.behaviour_mut().kad.bootstrap().map_err(|error| setup(&error))?;
        client.finish(query, "the first lookup").await?;
        Ok(client)
    }

    /// This client's own peer id.
    pub fn me(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    /// The connected members of the mesh.
    pub fn members(&self) -> Vec<PeerId> {
        self.members.keys().copied().filter(|peer| self.swarm.is_connected(peer)).collect()
    }

    /// The protocols that a member said it speaks.
    pub fn protocols_of(&self, member: &PeerId) -> &[String] {
        self.members.get(member).map_or(&[], Vec::as_slice)
    }

    /// Messages that were not passed on because they were unsound.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Looks around until `count` members are connected.
    ///
    /// # Errors
    /// There are not so many in time.
    pub async fn find_members(&mut self, count: usize, patience: Duration) -> Result<Vec<PeerId>, ClientError> {
        let started = Instant::now();
        while self.members().len() < count && started.elapsed() < patience {
            let query = self.swarm.behaviour_mut().kad.get_closest_peers(PeerId::random());
            self.finish(query, "a lookup").await?;
        }
        let what = format!("{count} members");
        self.until(&what, patience.saturating_sub(started.elapsed()), |client| {
            Some(client.members()).filter(|members| members.len() >= count)
        })
        .await
    }

    /// GET_VALUE at the peers closest to the key: what each of them serves. Nothing is checked here but that they speak of this key.
    ///
    /// # Errors
    /// The lookup does not end.
    pub async fn get_value(&mut self, record_key: &[u8]) -> Result<Vec<Served>, ClientError> {
        let query = self.swarm.behaviour_mut().kad.get_record(kad::RecordKey::new(&record_key));
        Ok(self.finish(query, "a record").await?.served)
    }

    /// Resolves a record key: asks the closest peers, checks each answer, keeps the highest version (docs/spec/wire.md#kademlia-records).
    ///
    /// # Errors
    /// The lookup does not end.
    pub async fn resolve(&mut self, record_key: &[u8]) -> Result<Resolved, ClientError> {
        let mut resolved = Resolved { newest: None, by: Vec::new(), refused: Vec::new() };
        for Served { peer, value } in self.get_value(record_key).await? {
            let proven = match head::check(record_key, &value) {
                Ok(proven) => proven,
                Err(error) => {
                    resolved.refused.push((peer, error));
                    continue;
                }
            };
            let known = resolved.newest.as_ref().map(|newest| newest.manifest.version);
            if known < Some(proven.manifest.version) {
                resolved.by.clear();
                resolved.newest = Some(proven);
            } else if known > Some(proven.manifest.version) {
                continue;
            }
            resolved.by.push(peer);
        }
        Ok(resolved)
    }

    /// PUT_VALUE of each value to all of `peers`, all at once. Who acknowledged it, for each value.
    ///
    /// # Errors
    /// A put does not end.
    pub async fn put_values(&mut self, record_key: &[u8], values: &[Vec<u8>], peers: &[PeerId]) -> Result<Vec<Vec<PeerId>>, ClientError> {
        let put = |value: &Vec<u8>| {
            let record = kad::Record::new(kad::RecordKey::new(&record_key), value.clone());
            let query = self.swarm.behaviour_mut().kad.put_record_to(record, peers.iter().copied(), kad::Quorum::All);
            self.queries.insert(query, Query { put_to: peers.to_vec(), ..Query::default() });
            query
        };
        let queries: Vec<kad::QueryId> = values.iter().map(put).collect();
        let mut acknowledged = Vec::new();
        for query in queries {
            acknowledged.push(self.finish(query, "a put").await?.acknowledged);
        }
        Ok(acknowledged)
    }

    /// Listens to a lane from now on. On return `neighbours` members exchange its messages with this client.
    ///
    /// # Errors
    /// There are not so many in time.
    pub async fn listen_to_lane(&mut self, lane: u8, neighbours: usize, patience: Duration) -> Result<(), ClientError> {
        let topic = gossipsub::IdentTopic::new(gossip::lane_topic(&self.mesh, lane));
        self.swarm.behaviour_mut().gossip.subscribe(&topic).map_err(|error| ClientError::Setup(error.to_string()))?;
        let hash = topic.hash();
        self.until("neighbours on the lane", patience, |client| {
            (client.swarm.behaviour().gossip.mesh_peers(&hash).count() >= neighbours).then_some(())
        })
        .await
    }

    /// The next message of any lane that this client listens to.
    ///
    /// # Errors
    /// None comes in time.
    pub async fn next_message(&mut self, patience: Duration) -> Result<Message, ClientError> {
        self.until("a message", patience, |client| client.messages.pop_front()).await
    }

    /// Waits for something else, and stays a good neighbour meanwhile.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                event = self.swarm.select_next_some() => self.on_event(event),
            }
        }
    }

    /// Lives on until `look` finds what it looks for.
    async fn until<T>(&mut self, what: &str, patience: Duration, mut look: impl FnMut(&mut Self) -> Option<T>) -> Result<T, ClientError> {
        let started = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if started.elapsed() >= patience {
                let detail = self.dial_failure.as_ref().map(|failure| format!(" (the last dial: {failure})")).unwrap_or_default();
                return Err(ClientError::TooLate { what: what.to_owned(), detail });
            }
            if let Ok(event) = timeout(LOOK_EVERY, self.swarm.select_next_some()).await {
                self.on_event(event);
            }
        }
    }

    async fn finish(&mut self, query: kad::QueryId, what: &str) -> Result<Query, ClientError> {
        self.queries.entry(query).or_default();
        let done = self.until(what, QUERY_TIMEOUT + ANSWER_TIMEOUT, |client| {
            let done = client.queries.get(&query).is_some_and(|query| query.finished);
            if done { client.queries.remove(&query) } else { None }
        });
        done.await
    }

    fn on_event(&mut self, event: SwarmEvent<ProtocolsEvent>) {
        match event {
            SwarmEvent::Behaviour(ProtocolsEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.on_identified(peer_id, info)
            }
            SwarmEvent::Behaviour(ProtocolsEvent::Kad(kad::Event::OutboundQueryProgressed { id, result, step, .. })) => {
                self.on_progress(id, result, step.last);
            }
            SwarmEvent::Behaviour(ProtocolsEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message })) => {
                self.on_message(propagation_source, &message_id, message);
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => self.dial_failure = Some(error.to_string()),
            _ => {}
        }
    }

    /// Whoever lists this mesh's Kademlia is a member, and may be asked.
    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        if !info.protocols.contains(&self.kad_protocol) {
            self.strangers.insert(peer);
            return;
        }
        self.members.insert(peer, info.protocols.iter().map(ToString::to_string).collect());
        let is_tcp = |address: &Multiaddr| address.iter().any(|part| matches!(part, Protocol::Tcp(_)));
        for address in info.listen_addrs.into_iter().filter(is_tcp) {
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
    }

    fn on_progress(&mut self, id: kad::QueryId, result: kad::QueryResult, is_last: bool) {
        // Kademlia also looks around by itself; nobody waits for that.
        let Some(query) = self.queries.get_mut(&id) else { return };
        query.finished |= is_last;
        match result {
            kad::QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(kad::PeerRecord { peer: Some(peer), record }))) => {
                query.served.push(Served { peer, value: record.value });
            }
            kad::QueryResult::PutRecord(Err(
                kad::PutRecordError::QuorumFailed { success, .. } | kad::PutRecordError::Timeout { success, .. },
            )) => query.acknowledged = success,
            // The acknowledgement of all is not told one by one.
            kad::QueryResult::PutRecord(Ok(_)) => query.acknowledged = std::mem::take(&mut query.put_to),
            _ => {}
        }
    }

    fn on_message(&mut self, from: PeerId, id: &gossipsub::MessageId, message: gossipsub::Message) {
        let lane = (0..gossip::LANES).find(|lane| gossip::lane_topic(&self.mesh, *lane) == message.topic.as_str());
        let judged = lane.map(|lane| gossip::judge(lane, &message.data).map(|batch| (lane, batch)));
        let acceptance = match judged {
            Some(Ok((lane, batch))) => {
                if self.messages.len() == MESSAGES_MAX {
                    self.messages.pop_front();
                }
                let id = gossip::message_id(&message.data);
                self.messages.push_back(Message { id, from, lane, data: message.data, batch });
                gossipsub::MessageAcceptance::Accept
            }
            Some(Err(_)) => {
                self.rejected += 1;
                gossipsub::MessageAcceptance::Reject
            }
            None => gossipsub::MessageAcceptance::Ignore,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, &from, acceptance);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("me", &self.me()).field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

/// The settings of docs/spec/wire.md#protocols and docs/spec/gossip.md.
fn protocols(keys: &identity::Keypair, kad_protocol: &StreamProtocol) -> Result<Protocols, String> {
    let me = keys.public().to_peer_id();
    let mut config = kad::Config::new(kad_protocol.clone());
    config
        .set_max_packet_size(KAD_PACKET_BYTES_MAX)
        .set_substreams_timeout(ANSWER_TIMEOUT)
        .set_query_timeout(QUERY_TIMEOUT)
        .set_caching(kad::Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None);
    let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
    kad.set_mode(Some(kad::Mode::Client));
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message: &gossipsub::Message| gossipsub::MessageId::from(gossip::message_id(&message.data).to_vec()))
        .max_transmit_size(GOSSIP_PACKET_BYTES_MAX)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Protocols {
        identify: identify::Behaviour::new(
            identify::Config::new("/persona/1.0.0".to_owned(), keys.public()).with_agent_version("persona-foreign".to_owned()),
        ),
        ping: ping::Behaviour::new(ping::Config::new()),
        kad,
        gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config)?,
    })
}
