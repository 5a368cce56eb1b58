//! A client that knows libp2p and nothing of ours but names: what any other implementation could do, honest or not.

use std::{future::Future, io, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify,
    identity::Keypair,
    kad, noise, request_response,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use persona_fragments::PeerKey;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Writes whatever it is given and reads whatever comes.
#[derive(Clone, Default)]
struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        if bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()> {
        io.write_all(&bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()> {
        io.write_all(&bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Protocols {
    kad: kad::Behaviour<kad::store::MemoryStore>,
    gossip: gossipsub::Behaviour,
    identify: identify::Behaviour,
    raw: request_response::Behaviour<Raw>,
}

pub(crate) struct Foreign {
    swarm: Swarm<Protocols>,
}

fn peer(key: PeerKey) -> PeerId {
    PeerId::from_bytes(&key.peer_id_bytes()).expect("a peer id")
}

impl Foreign {
    pub(crate) fn new(seed: u8, mesh: &str) -> Self {
        let keypair = Keypair::ed25519_from_bytes([seed; 32]).expect("a seed");
        let me = keypair.public().to_peer_id();
        let protocol = |name: &str| StreamProtocol::try_from_owned(format!("/persona/{mesh}/{name}")).expect("a protocol name");
        let mut config = kad::Config::new(protocol("kad/1.0.0"));
        // A refused PUT_VALUE is silence: the refusing side means to close the stream, but nothing wakes it up to do so.
        config.set_substreams_timeout(Duration::from_secs(1));
        let mut kad = kad::Behaviour::with_config(me, kad::store::MemoryStore::new(me), config);
        kad.set_mode(Some(kad::Mode::Client));
        let gossip = gossipsub::ConfigBuilder::default()
            .validation_mode(gossipsub::ValidationMode::Anonymous)
            .message_id_fn(|message: &gossipsub::Message| gossipsub::MessageId::from(Sha256::digest(&message.data)[..20].to_vec()))
            .build()
            .expect("valid");
        let behaviour = Protocols {
            kad,
            gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, gossip).expect("valid"),
            identify: identify::Behaviour::new(identify::Config::new("/foreign/1".to_owned(), keypair.public())),
            raw: request_response::Behaviour::new(
                [(protocol("fragment/1"), request_response::ProtocolSupport::Outbound)],
                request_response::Config::default(),
            ),
        };
        let swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("Noise")
            .with_behaviour(|_| behaviour)
            .expect("built above")
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
            .build();
        Self { swarm }
    }

    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&mut Self, SwarmEvent<ProtocolsEvent>) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.swarm.select_next_some().await;
                if let Some(found) = wanted(self, event) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("a foreign client waited in vain for {what}"))
    }

    /// Lets the client live while something else is awaited.
    pub(crate) async fn while_running<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                _ = self.swarm.select_next_some() => {}
            }
        }
    }

    /// Dials, introduces itself, and takes the node into its routing table if that speaks its Kademlia.
    pub(crate) async fn connect(&mut self, address: &str) {
        let address: Multiaddr = address.parse().expect("an address");
        self.swarm.dial(address.clone()).expect("dialed");
        let (peer, protocols) = self
            .until("an introduction", |_, event| match event {
                SwarmEvent::Behaviour(ProtocolsEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                    Some((peer_id, info.protocols))
                }
                _ => None,
            })
            .await;
        if self.swarm.behaviour().kad.protocol_names().iter().any(|name| protocols.contains(name)) {
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
    }

    pub(crate) async fn until_audience(&mut self, topic: &str) {
        let wanted = gossipsub::IdentTopic::new(topic).hash();
        if self.swarm.behaviour().gossip.all_peers().any(|(_, topics)| topics.contains(&&wanted)) {
            return;
        }
        self.until("an audience", |_, event| match event {
            SwarmEvent::Behaviour(ProtocolsEvent::Gossip(gossipsub::Event::Subscribed { topic, .. })) if topic == wanted => Some(()),
            _ => None,
        })
        .await;
    }

    pub(crate) fn publish(&mut self, topic: &str, data: &[u8]) {
        self.swarm.behaviour_mut().gossip.publish(gossipsub::IdentTopic::new(topic), data).expect("published");
    }

    /// Writes bytes on the fragment protocol as they are, and reads what comes until the end.
    pub(crate) async fn ask(&mut self, to: PeerKey, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let id = self.swarm.behaviour_mut().raw.send_request(&peer(to), bytes);
        self.until("an answer", |_, event| match event {
            SwarmEvent::Behaviour(ProtocolsEvent::Raw(request_response::Event::Message {
                message: request_response::Message::Response { request_id, response },
                ..
            })) if request_id == id => Some(Ok(response)),
            SwarmEvent::Behaviour(ProtocolsEvent::Raw(request_response::Event::OutboundFailure { request_id, error, .. }))
                if request_id == id =>
            {
                Some(Err(error.to_string()))
            }
            _ => None,
        })
        .await
    }

    /// The first value that anybody has for a key, and who that is.
    pub(crate) async fn get(&mut self, key: &str) -> Option<(PeerKey, Vec<u8>)> {
        let key = kad::RecordKey::new(&key);
        let query = self.swarm.behaviour_mut().kad.get_record(key.clone());
        let mut first = None;
        self.until("a record", |_, event| {
            let SwarmEvent::Behaviour(ProtocolsEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::GetRecord(result),
                step,
                ..
            })) = event
            else {
                return None;
            };
            if id != query {
                return None;
            }
            if let Ok(kad::GetRecordOk::FoundRecord(kad::PeerRecord { peer: Some(peer), record })) = result
                && record.key == key
                && first.is_none()
            {
                first = Some((PeerKey::from_peer_id_bytes(&peer.to_bytes()).expect("Ed25519"), record.value));
            }
            step.last.then(|| first.take())
        })
        .await
    }

    /// Sends a PUT_VALUE to one node; whether it was acknowledged.
    pub(crate) async fn put(&mut self, to: PeerKey, key: &str, value: &[u8]) -> bool {
        let record = kad::Record::new(kad::RecordKey::new(&key), value.to_vec());
        let query = self.swarm.behaviour_mut().kad.put_record_to(record, [peer(to)].into_iter(), kad::Quorum::One);
        self.until("the fate of a put", |_, event| match event {
            SwarmEvent::Behaviour(ProtocolsEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::PutRecord(result),
                ..
            })) if id == query => Some(result.is_ok()),
            _ => None,
        })
        .await
    }
}
