//! An owner who cheats: it signs what no honest host would sign, and puts it by the rules.
//!
//! Its machine counts as faulty. What it does may hurt nobody but itself: readers of one manifest all get the same verdict, one version has
//! one certified manifest, and nobody's section is answered for by somebody else's signature.

use std::collections::{BTreeMap, VecDeque};

use persona_core::RequestError;
use persona_fragments::{
    Class, Ed25519Signer, Manifest, OwnerKey, PeerKey, SectionKey, Shape, SignedManifest, Signer as _, Version,
    coding::{content_hash, shard_hashes},
    encode,
    manifest::ManifestWire,
    wire,
};
use persona_mesh_proto::{Put, PutOut, PutTask, Reply, Request, RequestFrame, ResponseFrame, Tag, Timing};

use crate::{
    keys::Notary,
    plan::{below, stream},
    world::World,
};

/// Sections that one cheat owns.
const SECTIONS: usize = 3;

/// Puts of a cheat that go on at a time.
const PUTS_MAX: usize = 8;

/// How long its versions live, in milliseconds.
const TTL_MS: u64 = 60_000;

/// One cheating owner, on one machine.
pub struct Cheat {
    host: usize,
    signer: Ed25519Signer,
    rng: chacha20::ChaCha8Rng,
    seq: u64,
    puts: VecDeque<(u64, Put)>,
    asked: BTreeMap<u64, (u64, Tag)>,
    next: u64,
    verifier: std::sync::Arc<Notary>,
}

impl Cheat {
    /// A cheat on a faulty machine.
    pub fn new(host: usize, seed: u64) -> Self {
        let signer = Ed25519Signer::from_seed(blake3::hash(&seed.to_le_bytes()).as_bytes());
        Self {
            host,
            signer,
            rng: stream(seed, "cheat"),
            seq: 0,
            puts: VecDeque::new(),
            asked: BTreeMap::new(),
            next: 0,
            verifier: Notary::of(Vec::new()),
        }
    }

    /// The sections that it put.
    pub fn sections(&self) -> Vec<SectionKey> {
        let count = (self.seq as usize).min(SECTIONS);
        (0..count).map(|number| self.section(number)).collect()
    }

    fn owner(&self) -> OwnerKey {
        OwnerKey(self.signer.public_key())
    }

    fn section(&self, number: usize) -> SectionKey {
        SectionKey::derive(&self.owner(), name(number).as_bytes())
    }

    /// Cheats once more.
    pub fn cheat(&mut self, world: &mut World, peers: &[PeerKey], victim: &SectionKey, level: u8) {
        if !world.hosts[self.host].up() || self.puts.len() >= PUTS_MAX {
            return;
        }
        self.verifier = world.notary();
        self.seq += 1;
        let number = (self.seq % SECTIONS as u64) as usize;
        let me = world.hosts[self.host].peer;
        let holders: Vec<PeerKey> = peers.iter().copied().filter(|peer| *peer != me).collect();
        let Some(shape) = Shape::for_level(level, holders.len()) else { return };
        let holders = holders[..usize::from(shape.n())].to_vec();
        let content: Vec<u8> = (0..64 + below(&mut self.rng, 200)).map(|_| below(&mut self.rng, 256) as u8).collect();
        let Ok(mut shards) = encode(&content, shape) else { return };
        let version = Version { term: 1, device: me.device(), seq: self.seq };
        let mut manifest = Manifest {
            key: self.section(number),
            owner: self.owner(),
            name: name(number).into_bytes(),
            version,
            content_version: version,
            class: Class::Document,
            level,
            issued_at_ms: world.clock(self.host).wall_ms,
            ttl_ms: TTL_MS,
            renew_until_ms: 0,
            content_len: content.len() as u32,
            shape,
            content_hash: content_hash(&content),
            shard_hashes: Vec::new(),
            holders,
            older: Vec::new(),
        };
        match below(&mut self.rng, 3) {
            // Shards of no content: one of them is something else, and its hash is signed.
            0 => {
                let odd = below(&mut self.rng, shards.len() as u64) as usize;
                shards[odd].iter_mut().for_each(|byte| *byte ^= 0x55);
                manifest.shard_hashes = shard_hashes(&shards);
                self.put(world, manifest, shards);
            }
            // Two manifests of one version.
            1 => {
                manifest.shard_hashes = shard_hashes(&shards);
                let mut other = manifest.clone();
                let content: Vec<u8> = content.iter().map(|byte| !byte).collect();
                let Ok(others) = encode(&content, shape) else { return };
                (other.content_hash, other.shard_hashes) = (content_hash(&content), shard_hashes(&others));
                self.put(world, manifest, shards);
                self.put(world, other, others);
            }
            // Somebody else's key, and a term that beats everybody's.
            _ => {
                manifest.shard_hashes = shard_hashes(&shards);
                manifest.key = *victim;
                manifest.version.term = 1_000;
                manifest.content_version = manifest.version;
                self.put(world, manifest, shards);
            }
        }
    }

    fn put(&mut self, world: &mut World, manifest: Manifest, shards: Vec<Vec<u8>>) {
        let wire = self.sign(&manifest);
        self.next += 1;
        let number = self.next;
        match SignedManifest::trusted(wire.clone()) {
            Ok(manifest) => {
                let task = PutTask { manifest, shards, renewal: false, keeps: Vec::new(), bystanders: Vec::new() };
                let (put, outs) = Put::start(task, Timing::default(), world.clock(self.host));
                self.puts.push_back((number, put));
                self.carry_out(world, number, outs);
            }
            // No manifest by any rule: it is sent all the same.
            Err(_) => {
                for (index, (holder, shard)) in manifest.holders.iter().zip(shards).enumerate() {
                    let request = Request::Prepare { manifest: wire.clone(), index: index as u8, shard: Some(shard) };
                    self.next += 1;
                    let frame = RequestFrame { requests: vec![request] }.to_bytes();
                    world.cheat(self.host, self.next, *holder, frame);
                }
            }
        }
    }

    fn sign(&self, manifest: &Manifest) -> ManifestWire {
        let body = wire::encode(manifest);
        let signature = self.signer.sign(&[b"persona/manifest/v1", body.as_slice()].concat());
        ManifestWire { body, signature }
    }

    fn carry_out(&mut self, world: &mut World, put: u64, outs: Vec<PutOut>) {
        for out in outs {
            if let PutOut::Send { tag, to, request } = out {
                self.next += 1;
                self.asked.insert(self.next, (put, tag));
                world.cheat(self.host, self.next, to, RequestFrame { requests: vec![request] }.to_bytes());
            }
        }
        self.puts.retain(|(_, put)| !put.finished());
    }

    /// An answer to something that it asked.
    pub fn replied(&mut self, world: &mut World, number: u64, result: Result<Vec<u8>, RequestError>) {
        let Some((of, tag)) = self.asked.remove(&number) else { return };
        let answer = result.ok().and_then(|bytes| ResponseFrame::from_bytes(&bytes, 1).ok()).and_then(|mut frame| frame.responses.pop());
        let reply = answer.map_or(Reply::Unreachable, Reply::Answer);
        let now = world.clock(self.host);
        let Some((_, put)) = self.puts.iter_mut().find(|(put, _)| *put == of) else { return };
        let outs = put.reply(tag, reply, now, &*self.verifier);
        self.carry_out(world, of, outs);
    }

    /// Time has passed.
    pub fn tick(&mut self, world: &mut World) {
        let now = world.clock(self.host);
        let numbers: Vec<u64> = self.puts.iter().map(|(number, _)| *number).collect();
        for number in numbers {
            let Some((_, put)) = self.puts.iter_mut().find(|(put, _)| *put == number) else { continue };
            let outs = put.tick(now);
            self.carry_out(world, number, outs);
        }
    }
}

fn name(number: usize) -> String {
    format!("cheat-{number}")
}
