//! Real swarms on the loopback interface: every port is chosen by the system, and every wait is for an event, with a limit.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests of a shell own clocks and processes")]

mod foreign;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use foreign::Foreign;
use persona_fragments::{PeerKey, SectionKey, wire::FRAME_BYTES_MAX};
use persona_mesh::{
    HeadIndex, Judgement, MeshCommand, MeshConfig, MeshError, MeshEvent, MeshHandle, MeshLimits, Overloaded, PublishFailure,
    RequestFailure, Topic, start,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::mpsc,
    time::{sleep, timeout},
};

/// Whatever a test waits for has happened by then, or never will.
const PATIENCE: Duration = Duration::from_secs(20);

/// What must be fast is done by then, even on a busy machine.
const FAST: Duration = Duration::from_secs(3);

/// Longer than any test runs: who gets an answer by then did not get it from a timeout.
const LONG: Duration = Duration::from_secs(30);

/// A node under test, with the events that nobody has asked for yet.
struct Node {
    handle: MeshHandle,
    events: mpsc::Receiver<MeshEvent>,
    seen: VecDeque<MeshEvent>,
    heads: Arc<HeadIndex>,
    next_id: u64,
}

fn config(seed: u8) -> MeshConfig {
    MeshConfig {
        mesh: "test".to_owned(),
        node_seed: [seed; 32],
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        external: Vec::new(),
        limits: MeshLimits::default(),
    }
}

fn with_limits(seed: u8, change: impl FnOnce(&mut MeshLimits)) -> MeshConfig {
    let mut config = config(seed);
    change(&mut config.limits);
    config
}

impl Node {
    async fn start(config: MeshConfig) -> Self {
        let heads = Arc::new(HeadIndex::new());
        let (handle, events) = start(config, heads.clone()).await.expect("the loopback interface has free ports");
        Self { handle, events, seen: VecDeque::new(), heads, next_id: 0 }
    }

    /// `count` nodes that all dialed the first one and nobody else, and are connected on both sides: whoever dialed knows it first, and a
    /// request of the other in that moment would rightly fail as unreachable.
    async fn start_many(count: u8) -> Vec<Self> {
        let mut nodes = vec![Self::start(config(1)).await];
        for seed in 2..=count {
            let mut node = Self::start(config(seed)).await;
            node.connect(&nodes[0]).await;
            nodes[0].until_connected(node.key()).await;
            nodes.push(node);
        }
        nodes
    }

    fn key(&self) -> PeerKey {
        self.handle.me()
    }

    fn address(&self) -> String {
        format!("{}/p2p/{}", self.handle.view().listening[0], self.key().to_peer_id_string())
    }

    fn command(&self, command: MeshCommand) {
        self.handle.command(command).expect("the queue has room");
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Waits for the first event that `wanted` makes something of, and leaves the others for later.
    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&MeshEvent) -> Option<T>) -> T {
        for at in 0..self.seen.len() {
            if let Some(found) = wanted(&self.seen[at]) {
                self.seen.remove(at);
                return found;
            }
        }
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the task runs");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                self.seen.push_back(event);
            }
        };
        timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    /// Waits until the view shows what is wanted.
    async fn until_view(&self, what: &str, wanted: impl Fn(&persona_mesh::MeshView) -> bool) {
        let started = Instant::now();
        while !wanted(&self.handle.view()) {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}: {:?}", self.handle.view());
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn connect(&mut self, other: &Node) {
        self.command(MeshCommand::Dial { addresses: vec![other.address()] });
        let (address, outgoing) = self.until_connected(other.key()).await;
        assert!(outgoing && other.address().starts_with(&address));
    }

    async fn until_connected(&mut self, other: PeerKey) -> (String, bool) {
        self.until("a connection", |event| match event {
            MeshEvent::Connected { peer, address, outgoing } if *peer == other => Some((address.clone(), *outgoing)),
            _ => None,
        })
        .await
    }

    fn request(&mut self, to: PeerKey, frame: Vec<u8>, timeout: Duration) -> u64 {
        let id = self.id();
        self.command(MeshCommand::Request { id, to, frame, timeout });
        id
    }

    async fn response(&mut self, wanted: u64) -> Result<Vec<u8>, RequestFailure> {
        self.until("a response", |event| match event {
            MeshEvent::Response { id, result } if *id == wanted => Some(result.clone()),
            _ => None,
        })
        .await
    }

    async fn inbound(&mut self) -> (u64, PeerKey, Vec<u8>) {
        self.until("a request", |event| match event {
            MeshEvent::Request { inbound, from, frame } => Some((*inbound, *from, frame.clone())),
            _ => None,
        })
        .await
    }

    /// Waits for one request and answers it with itself, backwards.
    async fn answer_backwards(&mut self) -> PeerKey {
        let (inbound, from, mut frame) = self.inbound().await;
        frame.reverse();
        self.command(MeshCommand::Respond { inbound, frame });
        from
    }

    async fn lookup(&mut self, key: &[u8]) -> Vec<PeerKey> {
        let lookup = self.id();
        self.command(MeshCommand::Lookup { id: lookup, key: key.to_vec() });
        self.until("the end of a lookup", |event| match event {
            MeshEvent::Found { id, peers } if *id == lookup => Some(peers.clone()),
            _ => None,
        })
        .await
    }

    async fn publish(&mut self, topic: Topic, data: &[u8]) -> Result<(), PublishFailure> {
        let publication = self.id();
        self.command(MeshCommand::Publish { id: publication, topic, data: data.to_vec() });
        self.until("the fate of a message", |event| match event {
            MeshEvent::Published { id, result } if *id == publication => Some(*result),
            _ => None,
        })
        .await
    }

    async fn gossip(&mut self) -> (u64, Topic, Vec<u8>) {
        self.until("gossip", |event| match event {
            MeshEvent::Gossip { message, topic, data, .. } => Some((*message, *topic, data.clone())),
            _ => None,
        })
        .await
    }
}

/// A node behind a forwarded port is told of there, and nowhere else: where it listens would cost others a dial that fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_announces_an_address_is_told_of_nowhere_else() {
    let mut first = Node::start(config(1)).await;
    let announced = "/ip4/127.0.0.1/tcp/4".to_owned();
    let mut second = Node::start(MeshConfig { external: vec![announced.clone()], ..config(2) }).await;
    second.connect(&first).await;
    let told = first.until("the newcomer's addresses", |event| match event {
        MeshEvent::Identified { peer, addresses } if *peer == second.key() => Some(addresses.clone()),
        _ => None,
    });
    assert_eq!(told.await, std::slice::from_ref(&announced));
    assert_eq!(second.handle.view().external, [announced]);
    let told = second.until("the first node's addresses", |event| match event {
        MeshEvent::Identified { peer, addresses } if *peer == first.key() => Some(addresses.clone()),
        _ => None,
    });
    assert_eq!(told.await, first.handle.view().listening, "who announces nothing is told of where it listens");
}

#[tokio::test]
async fn ten_nodes_that_know_one_address_find_each_other() {
    let mut nodes = Node::start_many(10).await;
    let all: BTreeSet<PeerKey> = nodes.iter().map(Node::key).collect();
    for node in &mut nodes {
        let mut others = all.clone();
        others.remove(&node.key());
        let started = Instant::now();
        let found = loop {
            let found = node.lookup(b"/persona/some-section").await;
            if found.len() >= others.len() {
                break found;
            }
            assert!(started.elapsed() < PATIENCE, "found only {found:?}");
            sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), others, "everybody but the node itself, once");
        let distance = |peer: &PeerKey| -> Vec<u8> {
            let (key, peer) = (Sha256::digest(b"/persona/some-section"), Sha256::digest(peer.peer_id_bytes()));
            key.iter().zip(peer).map(|(a, b)| a ^ b).collect()
        };
        assert!(found.is_sorted_by_key(distance), "closest first");
        node.until_view("everybody in the table", |view| view.kad_peers == 9).await;
        assert_eq!(node.handle.view().kad_protocol, "/persona/test/kad/1.0.0");
    }
}

#[tokio::test]
async fn requests_are_answered_whatever_their_size() {
    let mut nodes = Node::start_many(2).await;
    let (mut bob, mut ada) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    for bytes in [1, 1000, 1 << 20, FRAME_BYTES_MAX] {
        let frame: Vec<u8> = (0..bytes).map(|i| (i / 7) as u8).collect();
        let id = ada.request(bob.key(), frame.clone(), LONG);
        assert_eq!(bob.answer_backwards().await, ada.key());
        let backwards: Vec<u8> = frame.into_iter().rev().collect();
        assert!(ada.response(id).await == Ok(backwards), "{bytes} bytes came back wrong");
    }
    // Many at once, answered in another order than they were asked in.
    let ids: BTreeMap<u64, u8> = (0..100).map(|n| (ada.request(bob.key(), vec![n, 0], LONG), n)).collect();
    let mut asked = Vec::new();
    for _ in 0..100 {
        asked.push(bob.inbound().await);
    }
    for (inbound, _, mut frame) in asked.into_iter().rev() {
        frame.reverse();
        bob.command(MeshCommand::Respond { inbound, frame });
    }
    for (id, n) in ids {
        assert_eq!(ada.response(id).await, Ok(vec![0, n]));
    }
    assert_eq!(ada.handle.view().counters.requests_answered, 104);
}

#[tokio::test]
async fn frames_that_are_too_long_harm_nobody() {
    let mut nodes = Node::start_many(2).await;
    let (mut bob, mut ada) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    // Ours are not even sent.
    let id = ada.request(bob.key(), vec![1; FRAME_BYTES_MAX + 1], LONG);
    assert_eq!(ada.response(id).await, Err(RequestFailure::Closed));
    let id = ada.request(bob.key(), Vec::new(), LONG);
    assert_eq!(ada.response(id).await, Err(RequestFailure::Closed));
    // A stranger's are refused at their length, without an event.
    let mut stranger = Foreign::new(90, "test");
    stranger.connect(&bob.address()).await;
    let mut huge = u32::try_from(FRAME_BYTES_MAX + 1).expect("fits").to_be_bytes().to_vec();
    huge.resize(FRAME_BYTES_MAX + 5, 1);
    stranger.ask(bob.key(), huge).await.expect_err("refused");
    assert_eq!(bob.handle.view().counters.frames_too_long, 1);
    // The same stranger, and everybody else, is still served.
    let asked = stranger.ask(bob.key(), vec![0, 0, 0, 2, 8, 9]);
    let (answer, _) = tokio::join!(asked, bob.answer_backwards());
    assert_eq!(answer.expect("served"), [0, 0, 0, 2, 9, 8]);
    let id = ada.request(bob.key(), vec![1, 2], LONG);
    bob.answer_backwards().await;
    assert_eq!(ada.response(id).await, Ok(vec![2, 1]));
}

#[tokio::test]
async fn a_request_has_its_own_timeout() {
    let mut nodes = Node::start_many(2).await;
    let (mut bob, mut ada) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    let started = Instant::now();
    let slow = ada.request(bob.key(), vec![1], LONG);
    // Long enough to be sent on a busy machine: one that is given up before it was sent never arrives.
    let patience = Duration::from_secs(2);
    let quick = ada.request(bob.key(), vec![2], patience);
    assert_eq!(ada.response(quick).await, Err(RequestFailure::Timeout));
    assert!(started.elapsed() >= patience && started.elapsed() < patience + FAST, "{:?}", started.elapsed());
    // The answer to the one comes too late and disturbs nothing; the other is still awaited.
    bob.answer_backwards().await;
    bob.answer_backwards().await;
    assert_eq!(ada.response(slow).await, Ok(vec![1]));
    // What is forgotten has no result.
    let forgotten = ada.request(bob.key(), vec![3], Duration::from_millis(50));
    ada.command(MeshCommand::Forget { id: forgotten });
    let last = ada.request(bob.key(), vec![4], Duration::from_millis(200));
    assert_eq!(ada.response(last).await, Err(RequestFailure::Timeout));
    assert!(!ada.seen.iter().any(|event| matches!(event, MeshEvent::Response { .. })), "{:?}", ada.seen);
}

/// The other half of the next test: a node that prints its address and answers nothing but nines, until it is killed.
#[tokio::test]
#[ignore = "runs in a process of its own, which is killed: cargo test -p persona-mesh --test swarm a_killed_peer"]
async fn victim() {
    let mut node = Node::start(config(66)).await;
    println!("\nvictim {}", node.address());
    loop {
        let (inbound, _, frame) = node.inbound().await;
        if frame == [9] {
            node.command(MeshCommand::Respond { inbound, frame });
        }
    }
}

#[tokio::test]
async fn a_killed_peer_fails_fast_and_leaves_the_table_at_the_second_failure() {
    let mut child = tokio::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["victim", "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("this test runs again");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = loop {
        let line = lines.next_line().await.expect("readable").expect("the victim says where it is");
        if let Some(address) = line.strip_prefix("victim ") {
            break address.to_owned();
        }
    };
    let victim = PeerKey::from_peer_id_string(address.rsplit('/').next().expect("its peer id")).expect("an Ed25519 key");

    let mut ada = Node::start(config(1)).await;
    ada.command(MeshCommand::Dial { addresses: vec![address] });
    ada.until_connected(victim).await;
    ada.until_view("the victim in the routing table", |view| view.kad_peers == 1).await;
    assert_eq!(ada.lookup(b"anything").await, [victim]);

    let pending = ada.request(victim, vec![1], LONG);
    // Once it has answered the next one, that one is on its way for certain.
    let nine = ada.request(victim, vec![9], LONG);
    assert_eq!(ada.response(nine).await, Ok(vec![9]));
    child.kill().await.expect("SIGKILL");
    let killed = Instant::now();
    assert_eq!(ada.response(pending).await, Err(RequestFailure::Closed));
    ada.until("the end of the connection", |event| (*event == MeshEvent::Disconnected { peer: victim }).then_some(())).await;
    let again = ada.request(victim, vec![2], LONG);
    assert_eq!(ada.response(again).await, Err(RequestFailure::Unreachable));
    assert!(killed.elapsed() < FAST, "a dead peer costs {:?}", killed.elapsed());

    // The dead are not found, but one failure is no reason to forget somebody who may be restarting.
    assert_eq!(ada.lookup(b"anything").await, []);
    assert_eq!((ada.handle.view().kad_peers, ada.handle.view().counters.peers_evicted), (1, 0));
    while ada.handle.view().kad_peers > 0 {
        assert!(killed.elapsed() < PATIENCE, "never evicted");
        sleep(Duration::from_millis(100)).await;
        let id = ada.request(victim, vec![3], LONG);
        assert_eq!(ada.response(id).await, Err(RequestFailure::Unreachable));
    }
    assert!(killed.elapsed() > Duration::from_secs(1), "failures of one moment count once");
    assert_eq!(ada.handle.view().counters.peers_evicted, 1);
}

#[tokio::test]
async fn a_peer_that_restarts_at_its_address_is_reached_again() {
    let mut ada = Node::start(config(1)).await;
    let bob = Node::start(config(2)).await;
    ada.connect(&bob).await;
    let (key, address) = (bob.key(), bob.handle.view().listening[0].clone());
    ada.until_view("bob's address", |view| view.kad_peers == 1).await;
    bob.handle.clone().stop().await;
    assert_eq!(bob.handle.command(MeshCommand::Forget { id: 0 }), Err(Overloaded::Stopped));
    ada.until("the end of the connection", |event| (*event == MeshEvent::Disconnected { peer: key }).then_some(())).await;
    let mut bob = Node::start(MeshConfig { listen: vec![address], ..config(2) }).await;
    assert_eq!(bob.key(), key);
    let id = ada.request(key, vec![1, 2, 3], LONG);
    bob.answer_backwards().await;
    assert_eq!(ada.response(id).await, Ok(vec![3, 2, 1]));
    // To suspect a connected peer changes nothing.
    ada.command(MeshCommand::Suspect { peer: key });
    assert_eq!(ada.lookup(b"anything").await, [key]);
    assert_eq!(ada.handle.view().counters.peers_evicted, 0);
    bob.handle.stop().await;
    ada.until("the end of the connection", |event| (*event == MeshEvent::Disconnected { peer: key }).then_some(())).await;
    ada.command(MeshCommand::Suspect { peer: key });
    ada.until_view("an empty table", |view| view.kad_peers == 0 && view.counters.peers_evicted == 1).await;
}

#[tokio::test]
async fn a_request_finds_a_peer_that_only_others_know() {
    let mut nodes = Node::start_many(2).await;
    let mut zoe = Node::start(config(9)).await;
    let carol = nodes[1].key();
    zoe.connect(&nodes[0]).await;
    zoe.until_view("a first peer to ask", |view| view.kad_peers > 0).await;
    let id = zoe.request(carol, vec![1, 2], LONG);
    nodes[1].answer_backwards().await;
    assert_eq!(zoe.response(id).await, Ok(vec![2, 1]));
    // Somebody whom nobody knows is looked for, and not found.
    let started = Instant::now();
    let id = zoe.request(PeerKey([77; 32]), vec![1], LONG);
    assert_eq!(zoe.response(id).await, Err(RequestFailure::Unreachable));
    assert!(started.elapsed() < FAST);
    let (me, id) = (zoe.key(), zoe.id());
    zoe.command(MeshCommand::Request { id, to: me, frame: vec![1], timeout: LONG });
    assert_eq!(zoe.response(id).await, Err(RequestFailure::Unreachable));
}

#[tokio::test]
async fn quic_carries_what_tcp_carries_and_tcp_is_preferred() {
    let both = || vec!["/ip4/127.0.0.1/udp/0/quic-v1".to_owned(), "/ip4/127.0.0.1/tcp/0".to_owned()];
    let mut quic = Node::start(MeshConfig { listen: both()[..1].to_vec(), ..config(1) }).await;
    let mut bob = Node::start(MeshConfig { listen: both(), ..config(2) }).await;
    bob.connect(&quic).await;
    let id = bob.request(quic.key(), vec![7; 300_000], LONG);
    quic.answer_backwards().await;
    assert_eq!(bob.response(id).await.map(|frame| frame.len()), Ok(300_000));
    // What can be seen follows what happens a moment later.
    bob.until_view("the peer it asked", |view| !view.peers.is_empty()).await;
    assert!(bob.handle.view().peers[0].address.ends_with("/quic-v1"));

    // Both addresses are given, QUIC first: TCP is dialed.
    let mut carol = Node::start(config(3)).await;
    let name = |address: &String| format!("{address}/p2p/{}", bob.key().to_peer_id_string());
    let mut addresses: Vec<String> = bob.handle.view().listening.iter().map(name).collect();
    addresses.sort_by_key(|address| address.contains("/tcp/"));
    carol.command(MeshCommand::Dial { addresses });
    assert!(carol.until_connected(bob.key()).await.0.contains("/tcp/"));
    // And whoever is told of Bob by Carol dials TCP too.
    let mut dave = Node::start(config(4)).await;
    dave.connect(&carol).await;
    dave.until_view("a first peer to ask", |view| view.kad_peers > 0).await;
    let id = dave.request(bob.key(), vec![1, 2], LONG);
    bob.answer_backwards().await;
    assert_eq!(dave.response(id).await, Ok(vec![2, 1]));
    dave.until_view("the one it asked", |view| view.peers.iter().any(|peer| peer.peer == bob.key())).await;
    let view = dave.handle.view();
    let bob = view.peers.iter().find(|peer| peer.peer == bob.key()).expect("connected");
    assert!(bob.address.contains("/tcp/"), "{bob:?}");
}

#[tokio::test]
async fn gossip_reaches_everybody_once() {
    let mut nodes = Node::start_many(8).await;
    for node in &nodes {
        node.until_view("neighbours in every topic", |view| view.topics.len() == 10 && view.topics.iter().all(|t| t.mesh_peers > 2)).await;
    }
    let lane = Topic::Messages(3);
    for (topic, data) in [(lane, &b"to a lane"[..]), (Topic::Alerts, b"to all")] {
        assert_eq!(nodes[0].publish(topic, data).await, Ok(()));
        for node in &mut nodes[1..] {
            let (message, heard_on, heard) = node.gossip().await;
            assert_eq!((heard_on, &heard[..]), (topic, data));
            node.command(MeshCommand::Judge { message, verdict: Judgement::Accept });
        }
    }
    assert_eq!(nodes[0].publish(lane, b"to a lane").await, Err(PublishFailure::Duplicate));
    assert_eq!(nodes[0].publish(lane, &vec![0; persona_mesh::GOSSIP_BYTES_MAX + 1]).await, Err(PublishFailure::TooLarge));
    // The largest message passes, several in a row.
    for n in 0..4 {
        let data = vec![n; persona_mesh::GOSSIP_BYTES_MAX];
        assert_eq!(nodes[1].publish(lane, &data).await, Ok(()));
    }
    for (at, node) in nodes.iter_mut().enumerate().filter(|(at, _)| *at != 1) {
        let mut heard = BTreeSet::new();
        for _ in 0..4 {
            let (message, _, data) = node.gossip().await;
            assert_eq!(data.len(), persona_mesh::GOSSIP_BYTES_MAX);
            heard.insert(data[0]);
            node.command(MeshCommand::Judge { message, verdict: Judgement::Accept });
        }
        assert_eq!(heard.len(), 4, "node {at} heard {heard:?}");
    }
    for (at, node) in nodes.iter().enumerate() {
        let expected = [4, 2].into_iter().chain([6; 6]).nth(at).expect("eight nodes");
        assert_eq!(node.handle.view().counters.gossip_received, expected, "node {at}");
        assert!(!node.seen.iter().any(|event| matches!(event, MeshEvent::Gossip { .. })));
    }
}

#[tokio::test]
async fn only_what_was_judged_valid_goes_further() {
    let mut nodes = Node::start_many(2).await;
    // The stranger is in nobody's routing table: what it says reaches Bob through Ada alone.
    let mut stranger = Foreign::new(90, "test");
    stranger.connect(&nodes[0].address()).await;
    stranger.until_audience(&Topic::Announce.name("test")).await;
    let (ada, bob) = nodes.split_at_mut(1);
    let (ada, bob) = (&mut ada[0], &mut bob[0]);
    ada.until_view("Bob in the mesh", |view| view.topics[0].mesh_peers >= 1).await;
    for (data, verdict) in [
        (&b"nonsense"[..], Some(Judgement::Reject)),
        (b"not for now", Some(Judgement::Ignore)),
        (b"sense", Some(Judgement::Accept)),
        (b"unjudged", None),
    ] {
        stranger.publish(&Topic::Announce.name("test"), data);
        let (message, topic, heard) = stranger.while_running(ada.gossip()).await;
        assert_eq!((topic, &heard[..]), (Topic::Announce, data));
        if let Some(verdict) = verdict {
            ada.command(MeshCommand::Judge { message, verdict });
        }
    }
    assert_eq!(bob.gossip().await.2, b"sense");
    // What Ada says herself comes after whatever she may have passed on.
    assert_eq!(ada.publish(Topic::Announce, b"that was all").await, Ok(()));
    assert_eq!(bob.gossip().await.2, b"that was all");
    assert_eq!(bob.handle.view().counters.gossip_received, 2);
    ada.command(MeshCommand::Judge { message: 999, verdict: Judgement::Accept });
    ada.until_view("every verdict counted", |view| view.counters.gossip_judged_late == 1).await;
    let counters = ada.handle.view().counters;
    assert_eq!((counters.gossip_received, counters.gossip_accepted, counters.gossip_rejected), (4, 1, 1));
}

#[tokio::test]
async fn a_neighbour_that_goes_on_lying_is_not_listened_to() {
    let mut ada = Node::start(config(1)).await;
    let mut stranger = Foreign::new(90, "test");
    stranger.connect(&ada.address()).await;
    stranger.until_audience(&Topic::Alerts.name("test")).await;
    let mut lies = 0;
    loop {
        assert!(lies < 30, "Ada believes anything");
        stranger.publish(&Topic::Alerts.name("test"), &[lies]);
        let heard = stranger.while_running(timeout(Duration::from_secs(2), ada.gossip())).await;
        let Ok((message, ..)) = heard else { break };
        ada.command(MeshCommand::Judge { message, verdict: Judgement::Reject });
        lies += 1;
    }
    assert!(lies >= 9, "Ada has no patience: {lies}");
    assert_eq!(ada.handle.view().counters.gossip_rejected, u64::from(lies));
    let asked = stranger.ask(ada.key(), vec![0, 0, 0, 1, 5]);
    let (answer, _) = tokio::join!(asked, ada.answer_backwards());
    assert_eq!(answer.expect("requests are another matter"), [0, 0, 0, 1, 5]);
}

#[tokio::test]
async fn a_plain_kademlia_client_reads_heads_and_changes_none() {
    let mut nodes = Node::start_many(2).await;
    let section = SectionKey([3; 32]);
    let (key, head) = (section.to_kad_key(), b"manifest and certificate".to_vec());
    nodes[0].heads.set(&section, Some(head.clone()));
    let mut client = Foreign::new(90, "test");
    client.connect(&nodes[0].address()).await;
    assert_eq!(client.get(&key).await, Some((nodes[0].key(), head.clone())));

    // Altered bytes are refused, and so is a section that this node does not hold; the same bytes are what is here already.
    assert!(!client.put(nodes[0].key(), &key, b"manifest and certificatE").await);
    assert!(!client.put(nodes[0].key(), &SectionKey([4; 32]).to_kad_key(), &head).await);
    assert!(client.put(nodes[0].key(), &key, &head).await);
    assert_eq!(nodes[0].handle.view().counters.kad_puts_same, 1);
    assert_eq!(client.get(&key).await, Some((nodes[0].key(), head.clone())));
    assert_eq!((nodes[0].heads.get(&section).as_deref(), nodes[0].heads.len()), (Some(&head[..]), 1));

    // Our own nodes read it the same way, and see a new one at once.
    let id = nodes[1].id();
    nodes[1].until_view("a peer to ask", |view| view.kad_peers > 0).await;
    nodes[1].command(MeshCommand::GetRecord { id, key: key.clone().into_bytes() });
    let record = |wanted: u64| {
        move |event: &MeshEvent| match event {
            MeshEvent::Record { id, values } if *id == wanted => Some(values.clone()),
            _ => None,
        }
    };
    let holder = nodes[0].key();
    assert_eq!(nodes[1].until("a record", record(id)).await, [(holder, head)]);
    nodes[0].heads.set(&section, None);
    assert_eq!(client.get(&key).await, None);
}

#[tokio::test]
async fn two_meshes_do_not_meet_even_on_one_connection() {
    let mut red = Node::start(MeshConfig { mesh: "red".to_owned(), ..config(1) }).await;
    let mut blue = Node::start(MeshConfig { mesh: "blue".to_owned(), ..config(2) }).await;
    blue.connect(&red).await;
    for node in [&red, &blue] {
        node.until_view("each other's introduction", |view| view.peers.len() == 1 && view.peers[0].agent.starts_with("persona/")).await;
    }
    red.heads.set(&SectionKey([3; 32]), Some(b"red".to_vec()));
    let id = blue.request(red.key(), vec![1], LONG);
    // The request goes out with the name of its protocol: whether the refusal of the name or the end of the stream is seen first is chance.
    let refused = blue.response(id).await;
    assert!(matches!(refused, Err(RequestFailure::Unreachable | RequestFailure::Closed)), "{refused:?}");
    assert_eq!(blue.publish(Topic::Alerts, b"hello").await, Err(PublishFailure::NoPeers));
    assert_eq!(blue.lookup(b"anything").await, []);
    assert_eq!(red.lookup(b"anything").await, []);
    let id = blue.id();
    blue.command(MeshCommand::GetRecord { id, key: SectionKey([3; 32]).to_kad_key().into_bytes() });
    let is_empty = |event: &MeshEvent| match event {
        MeshEvent::Record { values, .. } => Some(values.is_empty()),
        _ => None,
    };
    assert!(blue.until("a record", is_empty).await);
    for node in [&red, &blue] {
        let view = node.handle.view();
        assert_eq!((view.kad_peers, view.topics.iter().map(|topic| topic.peers).sum::<usize>()), (0, 0));
    }
    assert!(!red.seen.iter().any(|event| matches!(event, MeshEvent::Request { .. } | MeshEvent::Gossip { .. })));
}

#[tokio::test]
async fn overload_drops_requests_and_gossip_and_counts_them() {
    let mut bob = Node::start(with_limits(1, |limits| {
        limits.inbound_max = 1;
        limits.inbound_bytes_max = 300_000;
        limits.gossip_pending_max = 1;
    }))
    .await;
    let mut ada = Node::start(with_limits(2, |limits| limits.operations_max = 2)).await;
    ada.connect(&bob).await;

    // A third operation is refused, and a second request finds Bob busy.
    let first = ada.request(bob.key(), vec![1, 2], LONG);
    let (inbound, ..) = bob.inbound().await;
    let second = ada.request(bob.key(), vec![3], LONG);
    let third = ada.request(bob.key(), vec![4], LONG);
    assert_eq!(ada.response(third).await, Err(RequestFailure::Overloaded));
    assert_eq!(ada.response(second).await, Err(RequestFailure::Closed));
    bob.command(MeshCommand::Respond { inbound, frame: vec![2, 1] });
    assert_eq!(ada.response(first).await, Ok(vec![2, 1]));
    // A frame that does not fit into what Bob has left for frames.
    let large = ada.request(bob.key(), vec![0; 400_000], LONG);
    assert_eq!(ada.response(large).await, Err(RequestFailure::Closed));
    let fitting = ada.request(bob.key(), vec![5; 200_000], LONG);
    bob.answer_backwards().await;
    assert_eq!(ada.response(fitting).await, Ok(vec![5; 200_000]));

    // Of two messages, the second finds the first unjudged.
    ada.until_view("Bob in the topic", |view| view.topics[0].mesh_peers == 1).await;
    assert_eq!(ada.publish(Topic::Announce, b"one").await, Ok(()));
    assert_eq!(ada.publish(Topic::Announce, b"two").await, Ok(()));
    let (message, _, data) = bob.gossip().await;
    assert_eq!(data, b"one");
    bob.until_view("a dropped message", |view| view.counters.gossip_dropped == 1).await;
    bob.command(MeshCommand::Judge { message, verdict: Judgement::Accept });
    assert_eq!(ada.publish(Topic::Announce, b"three").await, Ok(()));
    assert_eq!(bob.gossip().await.2, b"three");

    let counters = bob.handle.view().counters;
    assert_eq!((counters.inbound_received, counters.inbound_dropped, counters.frames_overloaded), (2, 1, 1));
    assert_eq!(ada.handle.view().counters.requests_overloaded, 1);
    // An answer to nothing is no harm.
    bob.command(MeshCommand::Respond { inbound: 999, frame: vec![1] });
    bob.until_view("an answer to nothing", |view| view.counters.inbound_answers_late == 1).await;
}

#[tokio::test]
async fn a_slow_receiver_loses_no_result() {
    let mut bob = Node::start(config(1)).await;
    let mut ada = Node::start(with_limits(2, |limits| {
        limits.events_max = 1;
        limits.commands_max = 20;
    }))
    .await;
    ada.connect(&bob).await;
    let ids: Vec<u64> = (0..20).map(|n| ada.request(bob.key(), vec![n], LONG)).collect();
    // On one thread the task has not run yet, so the queue is full to the last place.
    assert_eq!(ada.handle.command(MeshCommand::Forget { id: 0 }), Err(Overloaded::Full));
    assert_eq!(ada.handle.view().counters.commands_refused, 1);
    for _ in 0..20 {
        bob.answer_backwards().await;
    }
    // Bob asks too, while Ada's one place for an event is taken by an answer that she does not fetch.
    ada.until_view("all answers", |view| view.counters.requests_answered == 20).await;
    let unheard = bob.request(ada.key(), vec![1], LONG);
    assert_eq!(bob.response(unheard).await, Err(RequestFailure::Closed));
    assert_eq!(ada.handle.view().counters.inbound_dropped, 1);
    for (n, id) in (0..20).zip(ids) {
        assert_eq!(ada.response(id).await, Ok(vec![n]));
    }
    // And Ada hears that Bob has gone, though it happened while she was not listening.
    let key = bob.key();
    bob.handle.stop().await;
    ada.until("the end of the connection", |event| (*event == MeshEvent::Disconnected { peer: key }).then_some(())).await;
}

#[tokio::test]
async fn an_address_that_does_not_work_says_why() {
    let mut ada = Node::start(config(1)).await;
    let bob = Node::start(config(2)).await;
    // A port that was free a moment ago, so that nobody answers there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let nobody = format!("/ip4/127.0.0.1/tcp/{closed}");
    let elsewhere = format!("{}/p2p/{}", bob.handle.view().listening[0], PeerKey([9; 32]).to_peer_id_string());
    let own = ada.handle.view().listening[0].clone();
    let wrong = "127.0.0.1:4001".to_owned();
    let addresses = vec![nobody.clone(), elsewhere.clone(), own.clone(), wrong.clone()];
    ada.command(MeshCommand::Dial { addresses });
    for (address, part) in [(nobody, "refused"), (elsewhere, "another node is there"), (own, "this node itself"), (wrong, "no multiaddr")] {
        let reason = ada
            .until(part, |event| match event {
                MeshEvent::DialFailed { address: failed, reason } if *failed == address => Some(reason.clone()),
                _ => None,
            })
            .await;
        assert!(reason.to_lowercase().contains(part), "{address}: {reason}");
    }
    // A second node cannot have the same port, and says which address it is about.
    let taken = ada.handle.view().listening[0].clone();
    let refused = start(MeshConfig { listen: vec![taken.clone()], ..config(3) }, Arc::default()).await;
    match refused {
        Err(MeshError::Listen { address, .. }) => assert_eq!(address, taken),
        other => panic!("{other:?}"),
    }
    let unnamed = start(MeshConfig { mesh: String::new(), ..config(3) }, Arc::default()).await;
    assert!(matches!(unnamed, Err(MeshError::Name(_))), "{unnamed:?}");
}
