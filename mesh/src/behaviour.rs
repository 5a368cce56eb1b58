//! The protocols of a node, and why each is set as it is. What libp2p would do by default is said where it matters.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport as _,
    connection_limits::{self, ConnectionLimits},
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    dns, gossipsub, identify,
    identity::Keypair,
    kad, memory_connection_limits, noise, ping, quic, request_response,
    swarm::{self, NetworkBehaviour},
    tcp, yamux,
};
use sha2::{Digest as _, Sha256};

use crate::{
    GOSSIP_BYTES_MAX, HEAD_BYTES_MAX, JUDGEMENT_TIMEOUT, MESSAGE_LANES, MeshError, MeshLimits, REQUEST_TIMEOUT_MAX, Topic,
    codec::{Budget, FrameCodec},
    counters::Counters,
    heads::{HeadIndex, ServedHeads},
};

/// A connection must be open after this time. TCP, Noise and Yamux take four round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer is pinged this often on each connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// A ping must be back after this time; two in a row that are not end the connection. Long enough for a machine that is swapping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests and answers in flight on one connection, both directions together. Yamux itself allows 512 streams.
const STREAMS_PER_CONNECTION_MAX: usize = 256;

/// A Kademlia message has at most this many bytes. It is checked by the receiver on every message, so all nodes must agree: the largest
/// head, and 20 peers with ten addresses each.
const KAD_PACKET_BYTES_MAX: usize = HEAD_BYTES_MAX + (32 << 10);

/// A gossip message is known by the first so many bytes of the SHA-256 of its data, which for that reason must name what makes it unique.
const MESSAGE_ID_BYTES: usize = 20;

/// Everything a node speaks. Limits come first: a connection that they refuse must not be seen by the others.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) connections: connection_limits::Behaviour,
    pub(crate) memory: memory_connection_limits::Behaviour,
    pub(crate) kad: kad::Behaviour<ServedHeads>,
    pub(crate) fragment: request_response::Behaviour<FrameCodec>,
    pub(crate) gossip: Gossip,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
}

pub(crate) type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, TopicFilter>;

type TopicFilter = gossipsub::MaxCountSubscriptionFilter<gossipsub::WhitelistSubscriptionFilter>;

/// The names that keep two meshes apart.
pub(crate) struct Protocols {
    pub(crate) kad: StreamProtocol,
    pub(crate) fragment: StreamProtocol,
}

impl Protocols {
    pub(crate) fn of(mesh: &str) -> Self {
        let name = |text: String| StreamProtocol::try_from_owned(text).expect("it begins with a slash");
        Self { kad: name(format!("/persona/{mesh}/kad/1.0.0")), fragment: name(format!("/persona/{mesh}/fragment/1")) }
    }
}

/// A swarm that does not listen yet. If other addresses are `announced`, where it listens is told to nobody.
pub(crate) fn swarm(
    keypair: &Keypair,
    mesh: &str,
    protocols: &Protocols,
    limits: &MeshLimits,
    heads: Arc<HeadIndex>,
    counters: Arc<Counters>,
    announced: bool,
) -> Result<Swarm<Behaviour>, MeshError> {
    let me = keypair.public().to_peer_id();
    let behaviour = Behaviour {
        connections: connection_limits::Behaviour::new(
            ConnectionLimits::default()
                .with_max_established(Some(limits.connections_max))
                .with_max_established_incoming(Some(limits.connections_incoming_max))
                .with_max_established_per_peer(Some(limits.connections_per_peer_max))
                .with_max_pending_incoming(Some(limits.connections_pending_max))
                .with_max_pending_outgoing(Some(limits.connections_pending_max)),
        ),
        memory: memory_connection_limits::Behaviour::with_max_bytes(limits.memory_bytes_max),
        kad: kademlia(me, protocols.kad.clone(), heads),
        fragment: request_response::Behaviour::with_codec(
            FrameCodec { requests: Budget::new(limits.inbound_bytes_max), responses: Budget::new(limits.response_bytes_max), counters },
            [(protocols.fragment.clone(), request_response::ProtocolSupport::Full)],
            request_response::Config::default()
                .with_request_timeout(REQUEST_TIMEOUT_MAX)
                .with_max_concurrent_streams(STREAMS_PER_CONNECTION_MAX),
        ),
        gossip: gossip(mesh).map_err(MeshError::Setup)?,
        // No cache of addresses: it would hand QUIC addresses to every dial, while Kademlia is told of TCP ones alone where there are any
        // (see `Driver::on_identified`).
        identify: identify::Behaviour::new(
            identify::Config::new("/persona/1.0.0".to_owned(), keypair.public())
                .with_agent_version(concat!("persona/", env!("CARGO_PKG_VERSION")).to_owned())
                .with_push_listen_addr_updates(true)
                // Whoever says where it is to be reached means there and nowhere else.
                .with_hide_listen_addrs(announced)
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
    };
    let config = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(limits.idle_connection_timeout)
        .with_per_connection_event_buffer_size(64);
    Ok(Swarm::new(transport(keypair)?, behaviour, me, config))
}

/// TCP with Noise and Yamux, or QUIC; names are resolved if the system says how.
fn transport(keypair: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, MeshError> {
    let noise = noise::Config::new(keypair).map_err(|error| MeshError::Setup(error.to_string()))?;
    let stack = || {
        let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
            .upgrade(Version::V1Lazy)
            .authenticate(noise.clone())
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        let quic = quic::tokio::Transport::new(quic::Config::new(keypair)).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        TransportTimeout::new(tcp.or_transport(quic).map(|either, _| either.into_inner()), CONNECT_TIMEOUT)
    };
    Ok(match dns::tokio::Transport::system(stack()) {
        Ok(resolving) => resolving.boxed(),
        Err(error) => {
            tracing::info!(%error, "no resolver configuration: addresses that begin with /dns cannot be dialed");
            stack().boxed()
        }
    })
}

/// Kademlia finds nodes and serves heads. It never stores, republishes or expires anything by itself.
fn kademlia(me: PeerId, protocol: StreamProtocol, heads: Arc<HeadIndex>) -> kad::Behaviour<ServedHeads> {
    let mut config = kad::Config::new(protocol);
    config
        // Only what identify has shown to speak this mesh's protocol enters the table. By default it would be whom we dialed.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        // The acknowledgement of a put is what `ServedHeads::put` returned; filtered puts would be acknowledged before anybody looked.
        .set_record_filtering(kad::StoreInserts::Unfiltered)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_record_ttl(None)
        .set_provider_record_ttl(None)
        .set_max_packet_size(KAD_PACKET_BYTES_MAX)
        .set_caching(kad::Caching::Enabled { max_peers: kad::K_VALUE.get() as u16 })
        // The last resort: lookups are cut short long before (`LOOKUP_TIMEOUT`).
        .set_query_timeout(Duration::from_secs(15))
        // Three paths that share no node, so that one liar cannot lead a lookup astray from its start.
        .disjoint_query_paths(true)
        .set_parallelism(NonZeroUsize::new(3).expect("not zero"))
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(300)));
    let mut kad = kad::Behaviour::with_config(me, ServedHeads(heads), config);
    // By default a node serves nobody until it knows its external address.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Gossip without libp2p's signatures: envelopes carry their own, checked once, after duplicates are gone, and not on the swarm task.
fn gossip(mesh: &str) -> Result<Gossip, String> {
    const { assert!(JUDGEMENT_TIMEOUT.as_secs() < 12, "a verdict must come while the message is in the cache") };
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message: &gossipsub::Message| {
            gossipsub::MessageId::from(Sha256::digest(&message.data)[..MESSAGE_ID_BYTES].to_vec())
        })
        // A batch goes to the mesh, not to everybody.
        .flood_publish(false)
        .heartbeat_initial_delay(Duration::from_secs(1))
        .heartbeat_interval(Duration::from_secs(1))
        .history_length(12)
        // The size check looks at the whole receive buffer, so that pipelined messages need room beyond the largest one.
        .max_transmit_size(GOSSIP_BYTES_MAX + (32 << 10))
        // Announcements of more ids than fit would be refused by the receiver, which then stops listening to us altogether.
        .max_control_messages_sent(500)
        .max_control_message_size(256 << 10)
        .build()
        .map_err(|error| error.to_string())?;
    let topics: HashSet<_> = Topic::all().map(|topic| hash(topic, mesh)).collect();
    let filter = gossipsub::MaxCountSubscriptionFilter {
        filter: gossipsub::WhitelistSubscriptionFilter(topics.clone()),
        max_subscribed_topics: 100,
        max_subscriptions_per_request: 100,
    };
    let mut gossip = Gossip::new_with_subscription_filter(gossipsub::MessageAuthenticity::Anonymous, config, filter)?;
    gossip.with_peer_score(scores(topics), gossipsub::PeerScoreThresholds::default())?;
    for topic in Topic::all() {
        gossip.subscribe(&gossipsub::IdentTopic::new(topic.name(mesh))).map_err(|error| error.to_string())?;
    }
    Ok(gossip)
}

/// What a topic is called inside gossipsub.
pub(crate) fn hash(topic: Topic, mesh: &str) -> gossipsub::TopicHash {
    gossipsub::IdentTopic::new(topic.name(mesh)).hash()
}

/// Only lies count against a neighbour: four invalid messages and it is told no ids, nine and it is not listened to. Half is forgotten
/// after 23 seconds. Silence is no fault (the topics are quiet), and neither is sharing an address with others (a fleet does).
fn scores(topics: HashSet<gossipsub::TopicHash>) -> gossipsub::PeerScoreParams {
    let topic = gossipsub::TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -1.0,
        invalid_message_deliveries_decay: 0.97,
        ..Default::default()
    };
    gossipsub::PeerScoreParams {
        topics: topics.into_iter().map(|name| (name, topic.clone())).collect::<HashMap<_, _>>(),
        ip_colocation_factor_weight: 0.0,
        // A neighbour that restarted, or whose request crossed ours, asks back too early, and each such mistake counts once for every topic:
        // a few of them are free, or the survivors of a blackout would stop listening to each other.
        behaviour_penalty_threshold: 6.0 * f64::from(2 + MESSAGE_LANES),
        slow_peer_weight: 0.0,
        ..Default::default()
    }
}

/// The addresses to dial a peer at: TCP only, if it has any. A dead TCP peer is noticed at once on the same machine or network; a dead
/// QUIC peer only after its idle timeout of ten seconds, and until then every request to it waits.
pub(crate) fn preferred(addresses: &[Multiaddr]) -> Vec<Multiaddr> {
    let tcp: Vec<Multiaddr> = addresses.iter().filter(|address| crate::peer::is_tcp(address)).cloned().collect();
    if tcp.is_empty() { addresses.to_vec() } else { tcp }
}
