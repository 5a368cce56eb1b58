//! What a put, a get and a repair cost as the mesh grows: messages and bytes, of lookups and of the protocol itself.
//!
//! The protocol is the real one, from the choice of holders to the frames that are counted; lookups are the model of [`crate::lookup`]. All
//! nodes exist: a node that is asked starts its holder then, and not before.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use chacha20::ChaCha8Rng;
use persona_fragments::{
    Class, Classes, DeviceId, Manifest, OwnerKey, PeerKey, SectionKey, Shape, SignedManifest, Signer, Version,
    coding::{content_hash, encode, shard_hashes},
};
use persona_mesh_proto::{
    CallId, Candidate, Get, GetOut, GetTask, Holder, HolderLimits, HolderOut, Mode, Now, Put, PutOut, PutTask, Reply, Request,
    RequestFrame, Response, ResponseFrame, Table, Timing, Write, choose_holders,
};
use serde::Serialize;

use crate::{
    keys::{Notary, signer},
    lookup::{Condition, Found, Overlay, id_of, target_of},
    plan::{below, stream},
    world::BEGINNING_MS,
};

/// Bytes of the section that is put: a core with its attributes.
const SECTION_BYTES: usize = 4 << 10;

/// A request whose node is dead is known to have failed after so long.
const REFUSED_US: u64 = 1_000;

/// What one kind of operation costs, on average.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// How many were made.
    pub operations: u64,
    /// Those that did what they should.
    pub done: u64,
    /// Hops of the lookup.
    pub hops: f64,
    /// Questions of the lookup.
    pub questions: f64,
    /// Bytes of the lookup, both ways.
    pub lookup_bytes: f64,
    /// Requests of the protocol; each has an answer, unless its receiver is dead.
    pub requests: f64,
    /// Bytes of their frames, both ways.
    pub bytes: f64,
}

/// One size of mesh.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Of a hundred, how many are dead and not yet forgotten.
    pub dead_percent: u64,
    /// A put of a core section of 4 KiB.
    pub put: Cost,
    /// A `regular` get of it by somebody who knows nothing of it.
    pub get: Cost,
    /// One of its holders is gone: somebody else is given its shard, and the rest a renewal.
    pub repair: Cost,
    /// Peers in a node's table, on average.
    pub peers_known: f64,
    /// Nodes whose holder was started.
    pub started: usize,
    /// Bytes of memory for each node, started or not: all that this process grew by.
    pub memory_per_node_bytes: u64,
    /// Wall-clock seconds.
    pub wall_s: f64,
}

struct Started {
    holder: Holder,
    records: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

struct Mesh {
    secrets: Vec<[u8; 32]>,
    peers: Vec<PeerKey>,
    by_peer: BTreeMap<PeerKey, usize>,
    notary: Arc<Notary>,
    overlay: Overlay,
    started: BTreeMap<usize, Started>,
    now: Now,
    calls: u64,
}

/// One section and its owner.
struct Owner {
    node: usize,
    signer: Box<dyn Signer>,
    content: Vec<u8>,
    seq: u64,
    last: Option<SignedManifest>,
}

/// Makes so many operations of each kind in a mesh of this size.
pub fn measure(nodes: usize, operations: u64, dead_percent: u64, seed: u64) -> Size {
    let begun = std::time::Instant::now();
    let memory_before = memory_bytes();
    let mut rng = stream(seed, "scale");
    let mut mesh = Mesh::of(nodes, operations as usize, &mut rng);
    for node in 0..nodes {
        if below(&mut rng, 100) < dead_percent {
            mesh.overlay.conditions[node] = Condition::Dead;
        }
    }
    let (mut put, mut get, mut repair) = (Cost::default(), Cost::default(), Cost::default());
    for number in 0..operations {
        let node = mesh.somebody(&mut rng);
        let content = (0..SECTION_BYTES).map(|at| (at as u64 * 31 + number) as u8).collect();
        let signer = signer(mesh.secrets[nodes + number as usize], false);
        let mut owner = Owner { node, signer, content, seq: 0, last: None };
        mesh.put(&mut owner, &mut put);
        let reader = mesh.somebody(&mut rng);
        mesh.get(&owner, reader, &mut get);
        let Some(holders) = owner.last.as_ref().map(|manifest| manifest.holders.clone()) else { continue };
        let lost = mesh.by_peer[&holders[below(&mut rng, holders.len() as u64) as usize]];
        let before = std::mem::replace(&mut mesh.overlay.conditions[lost], Condition::Dead);
        mesh.put(&mut owner, &mut repair);
        mesh.overlay.conditions[lost] = before;
    }
    let peers_known = (0..nodes).map(|node| mesh.overlay.known_to(node)).sum::<usize>() as f64 / nodes as f64;
    Size {
        nodes,
        dead_percent,
        put: put.average(),
        get: get.average(),
        repair: repair.average(),
        peers_known,
        started: mesh.started.len(),
        memory_per_node_bytes: memory_bytes().saturating_sub(memory_before) / nodes as u64,
        wall_s: begun.elapsed().as_secs_f64(),
    }
}

impl Cost {
    fn looked_up(&mut self, found: &Found) {
        self.operations += 1;
        self.hops += found.hops as f64;
        self.questions += found.questions as f64;
        self.lookup_bytes += found.bytes as f64;
    }

    fn average(self) -> Self {
        let of = |sum: f64| sum / self.operations.max(1) as f64;
        Self {
            hops: of(self.hops),
            questions: of(self.questions),
            lookup_bytes: of(self.lookup_bytes),
            requests: of(self.requests),
            bytes: of(self.bytes),
            ..self
        }
    }
}

impl Mesh {
    /// Nodes, and secrets for so many owners.
    fn of(nodes: usize, owners: usize, rng: &mut ChaCha8Rng) -> Self {
        let secret = |number: usize| *blake3::Hasher::new().update(b"scale").update(&number.to_le_bytes()).finalize().as_bytes();
        let secrets: Vec<[u8; 32]> = (0..nodes + owners).map(secret).collect();
        let peers: Vec<PeerKey> = secrets[..nodes].iter().map(|secret| PeerKey(signer(*secret, false).public_key())).collect();
        let by_peer = peers.iter().enumerate().map(|(node, peer)| (*peer, node)).collect();
        let overlay = Overlay::of(peers.iter().map(id_of).collect(), rng);
        let notary = Notary::of(secrets.iter().copied());
        let now = Now { wall_ms: BEGINNING_MS, mono_us: 1_000_000 };
        Self { secrets, peers, by_peer, notary, overlay, started: BTreeMap::new(), now, calls: 0 }
    }

    fn somebody(&self, rng: &mut ChaCha8Rng) -> usize {
        loop {
            let node = below(rng, self.peers.len() as u64) as usize;
            if self.overlay.conditions[node] == Condition::Well {
                return node;
            }
        }
    }

    fn look_up(&self, node: usize, key: &SectionKey, cost: &mut Cost) -> Vec<PeerKey> {
        let found = self.overlay.lookup(node, target_of(key.to_kad_key().as_bytes()));
        cost.looked_up(&found);
        found.peers.iter().map(|peer| self.peers[*peer]).collect()
    }

    /// Puts the section, or puts it again: whoever still holds it gets a renewal without the bytes.
    fn put(&mut self, owner: &mut Owner, cost: &mut Cost) {
        let spec = Classes::default().core;
        let id = OwnerKey(owner.signer.public_key());
        let key = SectionKey::derive(&id, b"core");
        let closest = self.look_up(owner.node, &key, cost);
        let previous: Vec<PeerKey> = owner.last.as_ref().map(|manifest| manifest.holders.clone()).unwrap_or_default();
        let is_there = |peer: &PeerKey| self.overlay.conditions[self.by_peer[peer]] == Condition::Well;
        let candidate = |peer: &PeerKey| Candidate { peer: *peer, connected_ms: is_there(peer).then_some(0), prefix: None };
        let mut candidates: Vec<Candidate> = closest.iter().map(candidate).collect();
        candidates.extend(previous.iter().filter(|peer| !closest.contains(peer) && is_there(peer)).map(candidate));
        let wanted = Shape::holders_wanted(spec.level);
        let own = [self.peers[owner.node]];
        let holders = choose_holders(&key, &candidates, &previous, &own, wanted, None);
        let Some(shape) = Shape::for_level(spec.level, holders.len()) else { return };
        let shards = encode(&owner.content, shape).expect("content");
        owner.seq += 1;
        let version = |seq| Version { term: 1, device: DeviceId([1; 32]), seq };
        let renewal = owner.last.as_ref().is_some_and(|last| last.shape == shape);
        let stays = |index: &u8| previous.get(usize::from(*index)) == holders.get(usize::from(*index));
        let keeps = (0..shape.n()).filter(stays).collect();
        let manifest = Manifest {
            key,
            owner: id,
            name: b"core".to_vec(),
            version: version(owner.seq),
            content_version: version(1),
            class: Class::Core,
            level: spec.level,
            issued_at_ms: self.now.wall_ms,
            ttl_ms: spec.ttl.as_millis() as u64,
            renew_until_ms: 0,
            content_len: owner.content.len() as u32,
            shape,
            content_hash: content_hash(&owner.content),
            shard_hashes: shard_hashes(&shards),
            holders,
            older: owner.last.iter().map(|last| last.as_older_set()).collect(),
        };
        let manifest = SignedManifest::sign(manifest, owner.signer.as_ref()).expect("a sound manifest");
        let task = PutTask { manifest: manifest.clone(), shards, renewal, keeps, bystanders: closest };
        let (mut put, outs) = Put::start(task, Timing::default(), self.now);
        let mut todo: VecDeque<PutOut> = outs.into();
        let mut committed = false;
        while !put.finished() {
            while let Some(out) = todo.pop_front() {
                match out {
                    PutOut::Send { tag, to, request } => {
                        let reply = self.ask(&to, request, cost);
                        let notary = self.notary.clone();
                        todo.extend(put.reply(tag, reply, self.now, notary.as_ref()));
                    }
                    PutOut::Committed(_) => committed = true,
                    PutOut::Placed { .. } | PutOut::Failed(_) => {}
                }
            }
            let Some(due_us) = put.deadline() else { break };
            self.pass(due_us);
            todo.extend(put.tick(self.now));
        }
        cost.done += u64::from(committed);
        owner.last = Some(manifest);
    }

    fn get(&mut self, owner: &Owner, reader: usize, cost: &mut Cost) {
        let id = OwnerKey(owner.signer.public_key());
        let key = SectionKey::derive(&id, b"core");
        let candidates = self.look_up(reader, &key, cost);
        let task = GetTask {
            key,
            owner: Some(id),
            mode: Mode::Regular,
            candidates,
            known: None,
            floor: None,
            fence: None,
            hedge_after_us: 200_000,
            want_content: true,
        };
        let (mut get, outs) = Get::start(task, self.now);
        let mut todo: VecDeque<GetOut> = outs.into();
        let mut read = false;
        while !get.finished() || !todo.is_empty() {
            while let Some(out) = todo.pop_front() {
                match out {
                    GetOut::Send { tag, to, request } => {
                        let reply = self.ask(&to, request, cost);
                        let notary = self.notary.clone();
                        todo.extend(get.reply(tag, reply, self.now, notary.as_ref()));
                    }
                    GetOut::Done(result) => read = result.is_ok_and(|value| value.content == owner.content),
                }
            }
            let Some(due_us) = get.deadline() else { break };
            self.pass(due_us);
            todo.extend(get.tick(self.now));
        }
        cost.done += u64::from(read);
    }

    fn pass(&mut self, until_us: u64) {
        let micros = until_us.saturating_sub(self.now.mono_us);
        self.now = Now { wall_ms: self.now.wall_ms + micros / 1000, mono_us: self.now.mono_us + micros };
    }

    /// One request, in a frame of its own, and its answer.
    fn ask(&mut self, to: &PeerKey, request: Request, cost: &mut Cost) -> Reply {
        let frame = RequestFrame { requests: vec![request.clone()] };
        cost.requests += 1.0;
        cost.bytes += frame.to_bytes().len() as f64;
        let node = self.by_peer[to];
        if self.overlay.conditions[node] != Condition::Well {
            self.pass(self.now.mono_us + REFUSED_US);
            return Reply::Unreachable;
        }
        let response = self.serve(node, request);
        cost.bytes += ResponseFrame { responses: vec![response.clone()] }.to_bytes().len() as f64;
        Reply::Answer(response)
    }

    /// A node's holder, started if it was not, is asked and syncs.
    fn serve(&mut self, node: usize, request: Request) -> Response {
        self.calls += 1;
        let (peer, signer, call, now) = (self.peers[node], signer(self.secrets[node], false), CallId(self.calls), self.now);
        let started = self
            .started
            .entry(node)
            .or_insert_with(|| Started { holder: Holder::new(peer, HolderLimits::default()), records: BTreeMap::new() });
        let Started { holder, records } = started;
        let mut todo: VecDeque<HolderOut> = holder.handle(call, peer, request, now, signer.as_ref(), self.notary.as_ref()).into();
        let mut answer = None;
        while let Some(out) = todo.pop_front() {
            match out {
                HolderOut::Reply { response, .. } => answer = Some(response),
                HolderOut::Persist { id, writes } => {
                    for Write { table, key, value } in writes {
                        match value {
                            Some(value) => drop(records.insert((table, key), value)),
                            None => drop(records.remove(&(table, key))),
                        }
                    }
                    todo.extend(holder.persisted(&[id], now, signer.as_ref()));
                }
                HolderOut::Read { id, table, key } => todo.extend(holder.read_done(id, records.get(&(table, key)).cloned(), now)),
                _ => {} // nothing that an answer waits for
            }
        }
        answer.expect("each call is answered")
    }
}

/// What this process has in memory, as the kernel counts it; 0 where that cannot be read.
fn memory_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, cost) in [("put", &self.put), ("get", &self.get), ("repair", &self.repair)] {
            let Cost { operations, done, hops, questions, lookup_bytes, requests, bytes } = cost;
            writeln!(
                f,
                "| {} | {} % | {name} | {done} of {operations} | {hops:.1} | {questions:.1} | {:.1} | {requests:.1} | {:.1} |",
                self.nodes,
                self.dead_percent,
                lookup_bytes / 1024.0,
                bytes / 1024.0,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_done_and_who_is_not_asked_does_not_start() {
        let size = measure(300, 10, 0, 1);
        for cost in [size.put, size.get, size.repair] {
            assert_eq!(cost.done, 10, "{size:?}");
        }
        assert!(size.started < 300, "{size:?}");
    }
}
