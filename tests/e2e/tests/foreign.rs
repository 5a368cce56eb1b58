//! A stranger in the mesh: `persona-foreign`, a libp2p client that was written from docs/spec/ and shares no code with us, among five real
//! processes. It finds the nodes, proves a section from one record, hears a message pass, and cannot change anything.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this test owns processes, sockets and the clock")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use persona_drill::agents::Agent;
use persona_drill::{Mesh, MeshOptions, list, number, path_segment, text};
use persona_e2e::persona_binary;
use persona_foreign::head::{self, Ack, Head, HeadError, Manifest};
use persona_foreign::{Client, ClientError, Served, gossip};

const PASSPHRASE: &str = "salt-marsh-passphrase-2216";
const NODES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);
/// Must not be readable for whoever carries it.
const WORDS: &str = "SPOKEN-MARKER-9-dunlin, out on the flats";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_from_the_pages_alone_joins_reads_and_changes_nothing() -> Result<()> {
    let mesh = Mesh::start(persona_binary(), &MeshOptions::of(NODES, PASSPHRASE)).await?;
    let (ada, _) = Agent::born(&mesh, 0, "ada", "lighthouse keeper", r#"{"temper": "even"}"#).await?;
    let (bob, _) = Agent::born(&mesh, 1, "bob", "ferryman", r#"{"temper": "brisk"}"#).await?;
    ada.settle(&mesh, 0).await?;
    let status = mesh.node(0).api()?.get(&ada.path("")).await?;
    let core = list(&status, "/sections")?.iter().find(|section| section["name"] == "core").context("ada has no core")?;
    let key = text(core, "/kad_key")?.as_bytes().to_vec();

    // One address of one node, and the mesh's name: that is all it is told.
    let bootstrap = address_of(&mesh, 2)?;
    refuses_another_mesh(&bootstrap).await?;
    let mut client = Client::join("drill", &bootstrap.parse()?, PATIENCE).await?;
    finds_every_node(&mut client, &mesh).await.context("finding the nodes")?;
    let (served, proven) = proves_the_core(&mut client, &mesh, &ada, &key).await.context("reading the record")?;
    hears_a_message(&mut client, &mesh, &ada, &bob).await.context("listening to a lane")?;
    changes_nothing(&mut client, &mesh, &ada, &key, &served, &proven).await.context("putting other bytes")
}

/// A node's TCP address with its peer id.
fn address_of(mesh: &Mesh, node: usize) -> Result<String> {
    let node = mesh.node(node);
    let tcp = node.listen_addrs().iter().find(|address| address.contains("/tcp/")).context("it does not listen on TCP")?;
    let bare = tcp.split("/p2p/").next().unwrap_or(tcp);
    Ok(format!("{bare}/p2p/{}", node.peer_id()?))
}

/// The mesh's name is in every protocol: with another name even an open door is none.
async fn refuses_another_mesh(bootstrap: &str) -> Result<()> {
    let refused = Client::join("elsewhere", &bootstrap.parse()?, PATIENCE).await;
    ensure!(matches!(refused, Err(ClientError::OtherMesh { .. })), "it joined a mesh of another name: {refused:?}");
    Ok(())
}

async fn finds_every_node(client: &mut Client, mesh: &Mesh) -> Result<()> {
    let found = client.find_members(NODES, PATIENCE).await?;
    let found: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
    let there: BTreeSet<String> = mesh.peer_ids().into_iter().flatten().collect();
    ensure!(found == there, "it found {found:?}, but there are {there:?}");
    let first = client.members()[0];
    let spoken = client.protocols_of(&first);
    let promised = ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", "/persona/drill/kad/1.0.0", "/persona/drill/fragment/1"];
    for protocol in promised.into_iter().chain(["/meshsub/1.3.0", "/meshsub/1.2.0", "/meshsub/1.1.0"]) {
        ensure!(spoken.iter().any(|spoken| spoken == protocol), "docs/spec/wire.md promises {protocol}, but identify lists {spoken:?}");
    }
    Ok(())
}

/// GET_VALUE, and every check of the page, at every peer that serves the record; then what the nodes themselves say.
async fn proves_the_core(client: &mut Client, mesh: &Mesh, ada: &Agent, key: &[u8]) -> Result<(Vec<Served>, head::Proven)> {
    let served = client.get_value(key).await?;
    let proofs: Result<Vec<_>, HeadError> = served.iter().map(|served| head::check(key, &served.value)).collect();
    let proven = proofs.context("a node served what proves nothing")?;
    let first = proven.first().context("nobody served the record")?.clone();
    ensure!(proven.iter().all(|other| other.manifest_hash == first.manifest_hash), "two manifests are served at once");
    let [n, _, f] = first.manifest.shape.map(usize::from);
    ensure!(served.len() >= n - f && first.acks >= n - f, "{} of n = {n} serve it with {} acks", served.len(), first.acks);
    ensure!(gossip::did_of(&first.manifest.owner) == ada.id, "it is owned by {}", gossip::did_of(&first.manifest.owner));
    ensure!(first.manifest.name == b"core", "it is published under another name");

    let analysis = client.meanwhile(analyze(mesh, 0, ada)).await?;
    ensure!(text(&analysis, "/manifest_hash")? == hex(&first.manifest_hash), "the nodes know another manifest: {analysis}");
    ensure!(number(&analysis, "/n")? == u64::try_from(n)?, "{analysis}");
    let holders: Vec<&str> = list(&analysis, "/holders")?.iter().map(|holder| text(holder, "/peer_id")).collect::<Result<_, _>>()?;
    let named: Vec<String> = first.manifest.holders.iter().map(peer_id).collect();
    ensure!(holders == named, "the manifest names {named:?}, the analysis {holders:?}");
    Ok((served, first))
}

/// It is neither sender nor recipient, and hears what anybody may hear: who writes to whom, never what.
async fn hears_a_message(client: &mut Client, mesh: &Mesh, ada: &Agent, bob: &Agent) -> Result<()> {
    let lane = gossip::lane_of(&bob.id);
    client.listen_to_lane(lane, 2, PATIENCE).await?;
    client.meanwhile(ada.send(mesh, bob, WORDS)).await?;
    let heard = loop {
        let message = client.next_message(PATIENCE).await?;
        let is_it =
            |envelope: &gossip::Envelope| envelope.sender == ada.id && envelope.recipient.as_ref() == Some(&bob.id) && envelope.kind == 0;
        if message.batch.envelopes.iter().any(is_it) {
            break message;
        }
    };
    ensure!((heard.lane, heard.batch.lane) == (lane, lane), "it came on lane {} for lane {}", heard.lane, heard.batch.lane);
    ensure!(heard.id == gossip::message_id(&heard.data), "its id is not that of its bytes");
    ensure!(!heard.data.windows(13).any(|window| window == &WORDS.as_bytes()[..13]), "the words are readable for whoever carries them");
    ensure!(client.rejected() == 0, "nodes pass on what this client calls unsound");
    let arrived = client.meanwhile(bob.find_in_inbox(mesh, WORDS, PATIENCE)).await?;
    ensure!(arrived.is_some(), "bob himself never got it");
    Ok(())
}

/// PUT_VALUE of one altered bit, of a later version by a stranger's hand, and of a head in which everything is sound but whose it is.
async fn changes_nothing(
    client: &mut Client,
    mesh: &Mesh,
    ada: &Agent,
    key: &[u8],
    served: &[Served],
    proven: &head::Proven,
) -> Result<()> {
    let original = &served[0].value;
    let mut altered = original.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 0x10;
    ensure!(head::check(key, &altered).is_err(), "the altered head still proves something");
    let later = later_version(original)?;
    ensure!(head::check(key, &later) == Err(HeadError::Manifest("signature")), "{:?}", head::check(key, &later));
    let own = head_of_another(&proven.manifest);
    ensure!(head::check(key, &own) == Err(HeadError::OtherSection), "{:?}", head::check(key, &own));
    // The last one lacks nothing but to be ada's: under its own key it is proven. So it is refused for the right reason.
    let its_key = head::record_key_of(&Manifest::decode(&Head::decode(&own)?.body)?.key);
    ensure!(head::check(&its_key, &own).is_ok(), "{:?}", head::check(&its_key, &own));

    let everybody = client.members();
    ensure!(everybody.len() == NODES, "only {} nodes are still connected", everybody.len());
    let acknowledged = client.put_values(key, &[altered, later, own.clone()], &everybody).await?;
    ensure!(acknowledged.iter().all(Vec::is_empty), "a node acknowledged other bytes than its own: {acknowledged:?}");
    // Nor is it taken under the key where it would be true: nothing is stored this way.
    let acknowledged = client.put_values(&its_key, &[own], &everybody).await?;
    ensure!(acknowledged.iter().all(Vec::is_empty), "a node acknowledged a record that it does not hold: {acknowledged:?}");
    // What a node has already it acknowledges, which shows that the puts did arrive.
    let acknowledged = client.put_values(key, std::slice::from_ref(original), &[served[0].peer]).await?;
    ensure!(acknowledged == [vec![served[0].peer]], "a node does not acknowledge its own bytes: {acknowledged:?}");

    for node in 0..NODES {
        let analysis = client.meanwhile(analyze(mesh, node, ada)).await?;
        ensure!(text(&analysis, "/manifest_hash")? == hex(&proven.manifest_hash), "node {node} now knows another manifest: {analysis}");
    }
    let again = client.get_value(key).await?;
    let peers = |served: &[Served]| served.iter().map(|served| served.peer).collect::<BTreeSet<_>>();
    ensure!(peers(&again) == peers(served), "other nodes serve it now: {:?}", peers(&again));
    for served in &again {
        ensure!(head::check(key, &served.value)?.manifest_hash == proven.manifest_hash, "{} serves another manifest now", served.peer);
    }
    // A newcomer, who never saw the original, finds the same and nothing else.
    let mut newcomer = Client::join("drill", &address_of(mesh, 4)?.parse()?, PATIENCE).await?;
    let resolved = client.meanwhile(newcomer.resolve(key)).await?;
    ensure!(resolved.newest.is_some_and(|newest| newest.manifest_hash == proven.manifest_hash), "a newcomer resolves another manifest");
    ensure!(resolved.refused.is_empty() && resolved.by.len() == again.len(), "a newcomer is served otherwise: {:?}", resolved.refused);
    ensure!(client.get_value(&its_key).await?.is_empty(), "the stranger's own section is served");
    Ok(())
}

/// The head with its manifest's next version, signed by a stranger, under the true acks.
fn later_version(original: &[u8]) -> Result<Vec<u8>> {
    let mut head = Head::decode(original)?;
    let mut manifest = Manifest::decode(&head.body)?;
    manifest.version.seq += 1;
    head.body = manifest.encode();
    head.signature = SigningKey::from_bytes(&[0x66; 32]).sign(&head::manifest_message(&head.body)).to_bytes();
    Ok(head.encode())
}

/// A head that proves a stranger's own `core`, held by itself alone: every signature is right.
fn head_of_another(like: &Manifest) -> Vec<u8> {
    let stranger = SigningKey::from_bytes(&[0x66; 32]);
    let me = stranger.verifying_key().to_bytes();
    let manifest = Manifest {
        key: head::section_key(&me, b"core"),
        owner: me,
        name: b"core".to_vec(),
        level: 1,
        shape: [1, 1, 0],
        shard_hashes: vec![[0x77; 32]],
        holders: vec![me],
        older: Vec::new(),
        ..like.clone()
    };
    let body = manifest.encode();
    let root = head::leaf_hash(&manifest, &head::manifest_hash(&body), 0);
    let signature = stranger.sign(&head::root_message(1, &root)).to_bytes();
    let ack = Ack { index: 0, position: 0, batch: 1, path: Vec::new(), signature };
    Head { signature: stranger.sign(&head::manifest_message(&body)).to_bytes(), body, acks: vec![ack], handover: None }.encode()
}

async fn analyze(mesh: &Mesh, node: usize, ada: &Agent) -> Result<serde_json::Value> {
    let path = format!("/v1/analyze?agent={}&section=core", path_segment(&ada.id));
    mesh.node(node).api()?.get(&path).await.with_context(|| format!("node {node} cannot analyze"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A node's peer id: base58btc of the identity multihash of its key (docs/spec/wire.md#names-of-nodes-and-sections).
fn peer_id(key: &[u8; 32]) -> String {
    gossip::base58btc(&[&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20], key.as_slice()].concat())
}
