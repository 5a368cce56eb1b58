//! What a lookup costs among 30 real nodes, to compare with the simulator's model of lookups (docs/scale.md). Not run by itself: it measures.

#![allow(clippy::disallowed_methods, reason = "tests of a shell own clocks and processes")]

use std::{sync::Arc, time::Duration};

use persona_fragments::PeerKey;
use persona_mesh::{HeadIndex, MeshCommand, MeshConfig, MeshEvent, MeshHandle, MeshLimits, start};
use tokio::{sync::mpsc, time::timeout};

const NODES: u8 = 30;
const LOOKUPS: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    handle: MeshHandle,
    events: mpsc::Receiver<MeshEvent>,
}

impl Node {
    async fn start(seed: u8) -> Self {
        let config = MeshConfig {
            mesh: "lookups".to_owned(),
            node_seed: [seed; 32],
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            external: Vec::new(),
            limits: MeshLimits::default(),
        };
        let (handle, events) = start(config, Arc::new(HeadIndex::new())).await.expect("the loopback interface has free ports");
        Self { handle, events }
    }

    async fn look_up(&mut self, id: u64, key: Vec<u8>) -> Vec<PeerKey> {
        self.handle.command(MeshCommand::Lookup { id, key }).expect("the queue has room");
        let found = async {
            loop {
                if let MeshEvent::Found { id: answered, peers } = self.events.recv().await.expect("the task runs")
                    && answered == id
                {
                    return peers;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("a lookup ends")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: cargo test --release -p persona-mesh --test lookup_cost -- --ignored --nocapture"]
async fn what_lookups_cost_among_thirty_nodes() {
    let mut nodes = vec![Node::start(1).await];
    let first = format!("{}/p2p/{}", nodes[0].handle.view().listening[0], nodes[0].handle.me().to_peer_id_string());
    for seed in 2..=NODES {
        let node = Node::start(seed).await;
        node.handle.command(MeshCommand::Dial { addresses: vec![first.clone()] }).expect("the queue has room");
        while node.handle.view().peers.is_empty() {
            tokio::task::yield_now().await;
        }
        nodes.push(node);
    }
    // Each looks for itself and for a few others: that is how tables fill.
    let mut id = 0;
    for round in 0..3u8 {
        for node in &mut nodes {
            id += 1;
            let key = [node.handle.me().peer_id_bytes().as_slice(), &[round]].concat();
            node.look_up(id, key).await;
        }
    }
    let asked = |nodes: &[Node]| nodes.iter().map(|node| node.handle.view().counters.lookup_questions).sum::<u64>();
    let (before, mut found) = (asked(&nodes), 0);
    for lookup in 0..LOOKUPS {
        id += 1;
        let node = &mut nodes[(lookup % u64::from(NODES)) as usize];
        found += node.look_up(id, format!("/persona/{lookup}").into_bytes()).await.len() as u64;
    }
    let questions = (asked(&nodes) - before) as f64 / LOOKUPS as f64;
    println!(
        "{LOOKUPS} lookups among {NODES} nodes: {questions:.1} questions and {:.1} peers found, on average",
        found as f64 / LOOKUPS as f64
    );
    assert!(found >= LOOKUPS * 15, "a lookup finds most of the 20 closest");
}
