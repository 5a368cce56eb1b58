//! A small world of whole nodes under virtual time: messages are late, lost, doubled and overtaken, gossip floods, disks forget what was
//! not synced, nodes crash, restart and are cut off from one another. Everything follows from a seed.
//!
//! The world also watches: nothing that must be durable first may leave a node before its disk has it ([`watch`]). The oracle is simpler
//! than the system: what is on which disk, what was answered when.

mod amnesia;
mod clocks;
mod evidence;
mod leases;
mod messages;
mod probes;
mod random;
mod sections;
mod settling;
mod takeover;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use chacha20::ChaCha20Rng;
use persona_core::{
    AgentKeys, Answer, Call, CallError, Config, Gossip, ImportKeys, Input, Judgement, Keep, Node, NodeKeys, Output, PublishError,
    RequestError, Stray,
};
use persona_fragments::{Class, Ed25519Verifier, OwnerKey, PeerKey, SectionKey, Signature, Signer, Verifier};
use persona_mesh_proto::{Mode, Now, PersistId, Table, Write};
use rand_core::{Rng, SeedableRng};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use watch::Watch;

/// Wall-clock time at which every world begins.
const BEGINNING_MS: u64 = 1_700_000_000_000;

/// Peers that a lookup returns at most: Kademlia's k.
const LOOKUP_PEERS_MAX: usize = 20;

/// How long a scenario waits for the answer to a call: whatever happens, every call is answered.
const PATIENCE_S: u64 = 120;

/// Signatures of nodes cost a hash: the world owns their secrets. Agents sign with Ed25519, and each of their signatures is checked once.
#[derive(Default)]
struct Notary {
    secrets: BTreeMap<[u8; 32], [u8; 32]>,
    checked: Mutex<BTreeMap<[u8; 32], bool>>,
}

struct TagSigner {
    secret: [u8; 32],
}

fn tag(secret: &[u8; 32], message: &[u8]) -> Signature {
    let half: [u8; 32] = Sha256::new().chain_update(secret).chain_update(message).finalize().into();
    let mut whole = [0; 64];
    whole[..32].copy_from_slice(&half);
    Signature(whole)
}

impl Signer for TagSigner {
    fn public_key(&self) -> [u8; 32] {
        Sha256::digest([&b"public"[..], &self.secret].concat()).into()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        tag(&self.secret, message)
    }
}

impl Verifier for Notary {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        if let Some(secret) = self.secrets.get(public_key) {
            return tag(secret, message) == *signature;
        }
        let what = Sha256::new().chain_update(public_key).chain_update(signature.0).chain_update(message).finalize().into();
        let mut checked = self.checked.lock().expect("one thread");
        *checked.entry(what).or_insert_with(|| Ed25519Verifier.verify(public_key, message, signature))
    }
}

/// A machine: its disk and its keystore outlive its process.
struct Host {
    secret: [u8; 32],
    peer: PeerKey,
    node: Option<Node>,
    /// Counts processes, so that what was meant for an earlier one is forgotten.
    life: u64,
    disk: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    /// Batches that the next sync makes durable.
    unsynced: VecDeque<(PersistId, Vec<Write>)>,
    syncing: bool,
    keystore: Vec<(String, [u8; 32], u64)>,
    /// What the keystore has of imports that are not over.
    importing: Vec<(String, [u8; 32], u64)>,
    /// The network that it is in.
    prefix: Option<[u8; 8]>,
    /// By how much its wall clock is ahead of the world's, in milliseconds.
    ahead_ms: i64,
    /// How long it takes to answer, beside the way.
    lag_us: u64,
    /// Its keystore cannot be written.
    keystore_fails: bool,
    /// Why agents of the keystore were not taken up at the last start. Only a damaged disk may have such.
    damaged: bool,
    not_taken_up: Vec<String>,
    /// Of whom the disk had something, and the keystore nothing, at the last start.
    strays: Vec<Stray>,
    /// Which side of a partition it is on.
    side: u8,
    connected: BTreeSet<usize>,
    next_tick_us: Option<u64>,
    /// Ticks in a row that did not get the clock on: a node that asks for them for ever would keep a processor busy.
    idle_ticks: u32,
    /// What Kademlia serves.
    served: BTreeMap<SectionKey, Vec<u8>>,
    alarms: Vec<&'static str>,
    next_inbound: u64,
}

enum Event {
    /// Something happens to one process.
    Input {
        host: usize,
        life: u64,
        input: Input,
    },
    /// A frame of requests arrives.
    Frame {
        host: usize,
        asker: Asker,
        frame: Vec<u8>,
    },
    /// The answer to a request arrives, or its time is over.
    Response {
        asker: Asker,
        result: Result<Vec<u8>, RequestError>,
    },
    /// A gossip message arrives.
    Gossip {
        host: usize,
        digest: [u8; 32],
        topic: Gossip,
        data: Vec<u8>,
    },
    /// A disk has synced so many batches.
    Synced {
        host: usize,
        life: u64,
        batches: usize,
    },
    /// A keystore is written.
    Kept {
        host: usize,
        life: u64,
        id: u64,
        agent: OwnerKey,
        keep: Keep,
    },
    Tick {
        host: usize,
        life: u64,
    },
}

/// One request of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asker {
    host: usize,
    life: u64,
    id: u64,
}

/// A gossip message that a process has not judged yet: its digest, topic and bytes.
type Heard = ([u8; 32], Gossip, Vec<u8>);

/// How messages travel.
#[derive(Clone, Copy)]
struct Net {
    delay_us: (u64, u64),
    lost_permille: u64,
    doubled_permille: u64,
    /// Dead nodes stay in everybody's lookups.
    stale_lookups: bool,
    /// Gossip reaches nobody, though it is taken.
    deaf: bool,
}

const CALM: Net = Net { delay_us: (500, 3_000), lost_permille: 0, doubled_permille: 0, stale_lookups: false, deaf: false };
const STORM: Net = Net { delay_us: (500, 60_000), lost_permille: 80, doubled_permille: 80, stale_lookups: false, deaf: false };

struct World {
    rng: ChaCha20Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    notary: Arc<Notary>,
    hosts: Vec<Host>,
    net: Net,
    sync_us: u64,
    config: Config,
    /// Requests that wait for their answer.
    open: BTreeSet<Asker>,
    /// Frames being answered, by host, process and number.
    inbound: BTreeMap<(usize, u64, u64), Asker>,
    heard: BTreeSet<([u8; 32], usize)>,
    gossips: BTreeMap<(usize, u64, u64), Heard>,
    next_call: u64,
    replies: BTreeMap<u64, Result<Answer, CallError>>,
    watch: Watch,
}

impl World {
    /// `count` nodes that all know one another.
    fn of(count: usize, seed: u64) -> Self {
        Self::with(count, seed, Config::default())
    }

    fn with(count: usize, seed: u64, config: Config) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut notary = Notary::default();
        let mut hosts = Vec::new();
        for number in 0..count {
            let secret = Sha256::digest([&bytes[..], &number.to_le_bytes()].concat()).into();
            let public = TagSigner { secret }.public_key();
            notary.secrets.insert(public, secret);
            hosts.push(Host {
                secret,
                peer: PeerKey(public),
                node: None,
                life: 0,
                disk: BTreeMap::new(),
                unsynced: VecDeque::new(),
                syncing: false,
                keystore: Vec::new(),
                importing: Vec::new(),
                prefix: None,
                ahead_ms: 0,
                lag_us: 0,
                keystore_fails: false,
                damaged: false,
                not_taken_up: Vec::new(),
                strays: Vec::new(),
                side: 0,
                connected: BTreeSet::new(),
                next_tick_us: None,
                idle_ticks: 0,
                served: BTreeMap::new(),
                alarms: Vec::new(),
                next_inbound: 0,
            });
        }
        let mut world = Self {
            rng: ChaCha20Rng::from_seed(bytes),
            now_us: 1_000_000,
            queue: BTreeMap::new(),
            events: 0,
            notary: Arc::new(notary),
            hosts,
            net: CALM,
            sync_us: 2_000,
            config,
            open: BTreeSet::new(),
            inbound: BTreeMap::new(),
            heard: BTreeSet::new(),
            gossips: BTreeMap::new(),
            next_call: 0,
            replies: BTreeMap::new(),
            watch: Watch::default(),
        };
        for host in 0..count {
            world.start(host);
        }
        world
    }

    fn now(&self) -> Now {
        Now { wall_ms: BEGINNING_MS + self.now_us / 1000, mono_us: self.now_us }
    }

    /// What a machine's clocks show.
    fn clock(&self, host: usize) -> Now {
        let now = self.now();
        Now { wall_ms: now.wall_ms.saturating_add_signed(self.hosts[host].ahead_ms), ..now }
    }

    fn chance(&mut self, permille: u64) -> bool {
        permille > 0 && self.rng.next_u64() % 1000 < permille
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn delay(&mut self) -> u64 {
        let (least, most) = self.net.delay_us;
        least + self.below(most - least + 1)
    }

    fn schedule(&mut self, after_us: u64, event: Event) {
        self.events += 1;
        self.queue.insert((self.now_us + after_us, self.events), event);
    }

    // ---- machines --------------------------------------------------------------------------------------------------------------

    /// Starts the process of a host: from its disk and its keystore alone.
    fn start(&mut self, host: usize) {
        let now = self.clock(host);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let verifier: Arc<dyn Verifier> = self.notary.clone();
        let machine = &mut self.hosts[host];
        machine.not_taken_up.clear();
        assert!(machine.node.is_none(), "host {host} is up already");
        let secret = machine.secret;
        let keys = NodeKeys {
            signer: Box::new(TagSigner { secret }),
            verifier,
            secret: Zeroizing::new(secret),
            owner_signer: persona_core::ed25519_owner(),
        };
        let mut node = Node::new(keys, self.config.clone(), seed, now);
        for table in Table::ALL.into_iter().filter(|table| !matches!(table, Table::Shard | Table::Expiry)) {
            for ((_, key), value) in machine.disk.iter().filter(|((of, _), _)| *of == table) {
                node.load(table, key, value).expect("what was stored loads");
            }
        }
        for (name, root, term) in &machine.keystore {
            let keys = AgentKeys { name: name.clone(), root: Zeroizing::new(*root), term: *term };
            let taken_up = node.add_agent(keys);
            machine.not_taken_up.extend(taken_up.err());
        }
        assert!(machine.damaged || machine.not_taken_up.is_empty(), "agents of the keystore are taken up: {:?}", machine.not_taken_up);
        for (name, root, from_term) in &machine.importing {
            node.resume_import(ImportKeys { name: name.clone(), root: Zeroizing::new(*root), from_term: *from_term });
        }
        machine.strays = node.forget_strays();
        machine.served = node.heads_to_serve().into_iter().collect();
        machine.node = Some(node);
        machine.next_tick_us = None;
        machine.idle_ticks = 0;
        self.feed(host, Input::Tick);
        self.meet();
    }

    /// The process dies, and what was not synced with it.
    fn crash(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        assert!(machine.node.take().is_some(), "host {host} is down already");
        machine.life += 1;
        machine.unsynced.clear();
        machine.syncing = false;
        machine.served.clear();
        self.meet();
    }

    fn crash_all(&mut self, hosts: &[usize]) {
        for host in hosts {
            self.crash(*host);
        }
    }

    fn restart(&mut self, host: usize) {
        self.start(host);
    }

    fn up(&self, host: usize) -> bool {
        self.hosts[host].node.is_some()
    }

    /// From now on only hosts of one side hear one another.
    fn cut(&mut self, other_side: &[usize]) {
        for (number, host) in self.hosts.iter_mut().enumerate() {
            host.side = u8::from(other_side.contains(&number));
        }
        self.meet();
    }

    fn heal(&mut self) {
        self.cut(&[]);
    }

    fn reachable(&self, from: usize, to: usize) -> bool {
        self.up(from) && self.up(to) && self.hosts[from].side == self.hosts[to].side
    }

    /// Tells everybody who is connected to whom now.
    fn meet(&mut self) {
        for host in 0..self.hosts.len() {
            let before = std::mem::take(&mut self.hosts[host].connected);
            if !self.up(host) {
                continue;
            }
            let after: BTreeSet<usize> = (0..self.hosts.len()).filter(|other| *other != host && self.reachable(host, *other)).collect();
            self.hosts[host].connected.clone_from(&after);
            for other in before.difference(&after) {
                let peer = self.hosts[*other].peer;
                self.feed(host, Input::Disconnected { peer });
            }
            for other in after.difference(&before) {
                let peer = self.hosts[*other].peer;
                let prefix = self.hosts[*other].prefix;
                self.feed(host, Input::Connected { peer, prefix });
            }
        }
    }

    // ---- time ------------------------------------------------------------------------------------------------------------------

    fn feed(&mut self, host: usize, input: Input) {
        let now = self.clock(host);
        if let Input::Call { call, .. } = &input {
            self.load_rows_for(host, call);
        }
        let Some(node) = self.hosts[host].node.as_mut() else { return };
        let tick = matches!(input, Input::Tick);
        let outputs = node.handle(input, now);
        let busy = tick && outputs.is_empty() && node.deadline() <= now.mono_us;
        let machine = &mut self.hosts[host];
        machine.idle_ticks = if busy { machine.idle_ticks + 1 } else { 0 };
        assert!(machine.idle_ticks < 10, "host {host} asks for a tick at once, again and again, and does nothing with it");
        for output in outputs {
            self.carry_out(host, output);
        }
        let Some(node) = self.hosts[host].node.as_ref() else { return };
        let at = node.deadline().max(self.now_us + 1);
        if at < u64::MAX && self.hosts[host].next_tick_us.is_none_or(|known| at < known || known <= self.now_us) {
            self.hosts[host].next_tick_us = Some(at);
            let life = self.hosts[host].life;
            self.schedule(at - self.now_us, Event::Tick { host, life });
        }
    }

    /// An agent that lived here once is imported: what the disk has of it is loaded first, as the daemon does.
    fn load_rows_for(&mut self, host: usize, call: &Call) {
        let machine = &mut self.hosts[host];
        let Some(node) = machine.node.as_mut() else { return };
        let Some(agent) = node.wants_rows(call) else { return };
        for ((table, key), value) in &machine.disk {
            node.load_row_of(&agent, *table, key, value).expect("what was stored loads");
        }
    }

    /// The keystore of a host is written, or refuses.
    fn kept(&mut self, host: usize, id: u64, agent: OwnerKey, keep: Keep) {
        let machine = &mut self.hosts[host];
        if machine.keystore_fails {
            return self.feed(host, Input::Kept { id, result: Err("the disk is full".into()) });
        }
        let other = |(_, root, _): &(String, [u8; 32], u64)| persona_agent::RootSecret::from_bytes(*root).agent_id() != agent;
        machine.importing.retain(other);
        match keep {
            Keep::Importing { name, root, from_term } => machine.importing.push((name, *root, from_term)),
            Keep::NotImporting => {}
            Keep::Home { name, root, term, .. } => {
                machine.keystore.retain(other);
                machine.keystore.push((name, *root, term));
            }
        }
        self.feed(host, Input::Kept { id, result: Ok(()) });
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        let life = self.hosts[host].life;
        self.watch.output(host, &self.hosts[host].peer, &self.hosts[host].disk, &output);
        match output {
            Output::Request { id, to, frame, timeout_ms } => self.request(Asker { host, life, id }, to, frame, timeout_ms),
            Output::Respond { inbound, frame } => {
                if let Some(asker) = self.inbound.remove(&(host, life, inbound)) {
                    self.answer(host, asker, Ok(frame));
                }
            }
            Output::Lookup { id, key } => {
                let peers = self.closest(host, &key);
                let after = self.delay() * 2;
                self.schedule(after, Event::Input { host, life, input: Input::Found { id, peers } });
            }
            Output::Persist { id, writes } => {
                self.hosts[host].unsynced.push_back((id, writes));
                self.sync(host);
            }
            Output::Keep { id, agent, keep } => {
                let after = self.delay();
                self.schedule(after, Event::Kept { host, life, id, agent, keep });
            }
            Output::Load { id, table, key } => {
                let value = self.hosts[host].disk.get(&(table, key)).cloned();
                self.schedule(200, Event::Input { host, life, input: Input::Loaded { id, value } });
            }
            Output::Head { key, record } => match record {
                Some(record) => drop(self.hosts[host].served.insert(key, record)),
                None => drop(self.hosts[host].served.remove(&key)),
            },
            Output::Publish { id, topic, data } => {
                let lonely = self.hosts[host].connected.is_empty();
                let result = if lonely { Err(PublishError) } else { Ok(()) };
                self.schedule(100, Event::Input { host, life, input: Input::Published { id, result } });
                let digest = Sha256::digest(&data).into();
                self.heard.insert((digest, host));
                if !lonely && !self.net.deaf {
                    self.flood(host, digest, topic, &data);
                }
            }
            Output::Judge { message, verdict } => {
                if let Some((digest, topic, data)) = self.gossips.remove(&(host, life, message))
                    && verdict == Judgement::Accept
                {
                    self.flood(host, digest, topic, &data);
                }
            }
            Output::Reply { id, result } => {
                assert!(self.replies.insert(id, result).is_none(), "call {id} is answered twice");
            }
            Output::Notice(_) => {}
            Output::Alarm(alarm) => self.hosts[host].alarms.push(alarm.kind),
        }
    }

    /// A request travels: it may be lost, doubled, or find nobody. Its asker hears back, or hears that its time is over.
    fn request(&mut self, asker: Asker, to: PeerKey, frame: Vec<u8>, timeout_ms: u64) {
        self.open.insert(asker);
        self.schedule(timeout_ms * 1000, Event::Response { asker, result: Err(RequestError::Unreachable) });
        let Some(host) = self.hosts.iter().position(|host| host.peer == to) else { return };
        if !self.reachable(asker.host, host) {
            let after = self.delay();
            return self.schedule(after, Event::Response { asker, result: Err(RequestError::Unreachable) });
        }
        let copies = if self.chance(self.net.doubled_permille) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.chance(self.net.lost_permille) {
                let after = self.delay();
                self.schedule(after, Event::Frame { host, asker, frame: frame.clone() });
            }
        }
    }

    fn answer(&mut self, from: usize, asker: Asker, result: Result<Vec<u8>, RequestError>) {
        if self.reachable(from, asker.host) && !self.chance(self.net.lost_permille) {
            let after = self.delay() + self.hosts[from].lag_us;
            self.schedule(after, Event::Response { asker, result });
        }
    }

    fn flood(&mut self, from: usize, digest: [u8; 32], topic: Gossip, data: &[u8]) {
        for host in 0..self.hosts.len() {
            if host == from || !self.reachable(from, host) || self.heard.contains(&(digest, host)) || self.chance(self.net.lost_permille) {
                continue;
            }
            let after = self.delay();
            self.schedule(after, Event::Gossip { host, digest, topic, data: data.to_vec() });
        }
    }

    fn sync(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        if machine.syncing || machine.unsynced.is_empty() {
            return;
        }
        machine.syncing = true;
        let (life, batches) = (machine.life, machine.unsynced.len());
        self.schedule(self.sync_us, Event::Synced { host, life, batches });
    }

    fn closest(&self, host: usize, key: &[u8]) -> Vec<PeerKey> {
        let target = Sha256::digest(key);
        let mut peers: Vec<(Vec<u8>, PeerKey)> = (0..self.hosts.len())
            .filter(|other| *other != host && (self.net.stale_lookups || self.reachable(host, *other)))
            .map(|other| {
                let peer = self.hosts[other].peer;
                let distance = Sha256::digest(peer.peer_id_bytes()).iter().zip(&target).map(|(a, b)| a ^ b).collect();
                (distance, peer)
            })
            .collect();
        peers.sort();
        peers.into_iter().take(LOOKUP_PEERS_MAX).map(|(_, peer)| peer).collect()
    }

    /// Lets the next thing happen. False if nothing is to come.
    fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.queue.pop_first() else { return false };
        self.now_us = at;
        match event {
            Event::Input { host, life, input } => {
                if self.hosts[host].life == life {
                    self.feed(host, input);
                }
            }
            Event::Frame { host, asker, frame } => {
                if self.reachable(asker.host, host) {
                    self.hosts[host].next_inbound += 1;
                    let inbound = self.hosts[host].next_inbound;
                    self.inbound.insert((host, self.hosts[host].life, inbound), asker);
                    let from = self.hosts[asker.host].peer;
                    self.feed(host, Input::Frame { inbound, from, frame });
                }
            }
            Event::Response { asker, result } => {
                if self.open.remove(&asker) && self.hosts[asker.host].life == asker.life {
                    self.feed(asker.host, Input::Response { id: asker.id, result });
                }
            }
            Event::Gossip { host, digest, topic, data } => {
                if self.up(host) && self.heard.insert((digest, host)) {
                    self.hosts[host].next_inbound += 1;
                    let message = self.hosts[host].next_inbound;
                    self.gossips.insert((host, self.hosts[host].life, message), (digest, topic, data.clone()));
                    self.feed(host, Input::Gossip { message, topic, data });
                }
            }
            Event::Synced { host, life, batches } => {
                if self.hosts[host].life == life {
                    self.synced(host, batches);
                }
            }
            Event::Kept { host, life, id, agent, keep } => {
                if self.hosts[host].life == life {
                    self.kept(host, id, agent, keep);
                }
            }
            Event::Tick { host, life } => {
                if self.hosts[host].life == life && self.hosts[host].next_tick_us == Some(at) {
                    self.feed(host, Input::Tick);
                }
            }
        }
        true
    }

    fn synced(&mut self, host: usize, batches: usize) {
        let machine = &mut self.hosts[host];
        let mut ids = Vec::new();
        for (id, writes) in machine.unsynced.drain(..batches) {
            for Write { table, key, value } in writes {
                self.watch.durable(host, table, &key, value.as_deref());
                match value {
                    Some(value) => drop(machine.disk.insert((table, key), value)),
                    None => drop(machine.disk.remove(&(table, key))),
                }
            }
            ids.push(id);
        }
        machine.syncing = false;
        self.feed(host, Input::Persisted { ids });
        self.sync(host);
    }

    fn run_us(&mut self, micros: u64) {
        let until = self.now_us + micros;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.step();
        }
        self.now_us = until;
    }

    fn run_ms(&mut self, millis: u64) {
        self.run_us(millis * 1000);
    }

    fn run_s(&mut self, seconds: u64) {
        self.run_us(seconds * 1_000_000);
    }

    /// Runs until `done`, or until the world's patience is over.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let late = self.now_us + PATIENCE_S * 1_000_000;
        while !done(self) {
            assert!(self.step() && self.now_us < late, "{what}: it did not happen within {PATIENCE_S} s");
        }
    }

    // ---- what users do ---------------------------------------------------------------------------------------------------------

    /// Asks, and goes on at once.
    fn call(&mut self, host: usize, call: Call) -> u64 {
        self.next_call += 1;
        let id = self.next_call;
        self.feed(host, Input::Call { id, call });
        id
    }

    /// Asks, and waits for the answer.
    fn ask(&mut self, host: usize, call: Call) -> Result<Answer, CallError> {
        let what = format!("{call:?}").chars().take(60).collect::<String>();
        let id = self.call(host, call);
        self.answer_of(id, &what)
    }

    fn answer_of(&mut self, id: u64, what: &str) -> Result<Answer, CallError> {
        self.until(what, |world| world.replies.contains_key(&id));
        self.replies.remove(&id).expect("it is there")
    }

    /// Creates an agent and keeps its keys, as the daemon does, without publishing it.
    fn conceive(&mut self, host: usize, name: &str) -> OwnerKey {
        let call = Call::CreateAgent { name: name.into(), role: None, place: "here".into(), attributes: br#"{"tea":"no milk"}"#.to_vec() };
        match self.ask(host, call) {
            Ok(Answer::Agent { agent, name, root, term, .. }) => {
                self.keep(host, &name, &root, term);
                agent
            }
            other => panic!("no agent was born: {other:?}"),
        }
    }

    fn keep(&mut self, host: usize, name: &str, root: &[u8; 32], term: u64) {
        let keystore = &mut self.hosts[host].keystore;
        keystore.retain(|(other, ..)| other != name);
        keystore.push((name.to_owned(), *root, term));
    }

    /// An agent, created and published.
    fn create(&mut self, host: usize, name: &str) -> OwnerKey {
        let agent = self.conceive(host, name);
        match self.ask(host, Call::Publish { agent }) {
            Ok(Answer::Puts(reports)) => assert_eq!(reports.len(), 3, "index, card and core"),
            other => panic!("{name} was not published: {other:?}"),
        }
        agent
    }

    fn root_of(&self, host: usize, name: &str) -> [u8; 32] {
        self.hosts[host].keystore.iter().find(|(other, ..)| other == name).map(|(_, root, _)| *root).expect("it is in the keystore")
    }

    fn import(&mut self, host: usize, root: [u8; 32]) -> Result<persona_core::report::ImportReport, CallError> {
        let id = self.call(host, Call::Import { root: Zeroizing::new(root), name: None });
        self.imported(host, id)
    }

    fn imported(&mut self, host: usize, call: u64) -> Result<persona_core::report::ImportReport, CallError> {
        match self.answer_of(call, "an import")? {
            Answer::Agent { name, import, .. } => {
                assert!(
                    self.hosts[host].keystore.iter().any(|(kept, ..)| *kept == name),
                    "the keystore has it before the call is answered"
                );
                Ok(*import.expect("an import has a report"))
            }
            other => panic!("an import is answered with {other:?}"),
        }
    }

    fn put(&mut self, host: usize, agent: OwnerKey, name: &str, content: &[u8]) -> Result<persona_core::report::PutReport, CallError> {
        let id = self.call(host, document(agent, name, content));
        self.put_answer(id)
    }

    fn put_answer(&mut self, id: u64) -> Result<persona_core::report::PutReport, CallError> {
        match self.answer_of(id, "a put")? {
            Answer::Put(report) => Ok(*report),
            other => panic!("a put is answered with {other:?}"),
        }
    }

    fn get(&mut self, host: usize, agent: OwnerKey, name: &str, mode: Mode) -> Result<Vec<u8>, CallError> {
        match self.ask(host, Call::GetSection { agent, name: name.into(), mode })? {
            Answer::Section { content, .. } => Ok(content.to_vec()),
            other => panic!("a get is answered with {other:?}"),
        }
    }

    fn send(&mut self, host: usize, from: OwnerKey, to: OwnerKey, text: &str) -> Result<Answer, CallError> {
        self.ask(host, Call::Send { from, to, text: text.into() })
    }

    fn inbox(&mut self, host: usize, agent: OwnerKey) -> Vec<String> {
        match self.ask(host, Call::Inbox { agent, after: 0 }) {
            Ok(Answer::Inbox(inbox)) => inbox.messages.into_iter().map(|message| message.text).collect(),
            other => panic!("no inbox: {other:?}"),
        }
    }

    /// States of the messages that an agent sent.
    fn outbox(&mut self, host: usize, agent: OwnerKey) -> Vec<&'static str> {
        match self.ask(host, Call::Outbox { agent }) {
            Ok(Answer::Outbox(outbox)) => outbox.messages.into_iter().map(|message| message.state).collect(),
            other => panic!("no outbox: {other:?}"),
        }
    }

    fn agent_report(&mut self, host: usize, agent: OwnerKey) -> Option<persona_core::report::AgentReport> {
        let did = agent.to_did();
        match self.ask(host, Call::Agents) {
            Ok(Answer::Agents(agents)) => agents.into_iter().find(|report| report.agent == did),
            other => panic!("no agents: {other:?}"),
        }
    }

    fn section(&mut self, host: usize, agent: OwnerKey, name: &str) -> Option<persona_core::report::SectionReport> {
        self.agent_report(host, agent)?.sections.into_iter().find(|section| section.name == name)
    }

    fn status(&mut self, host: usize) -> persona_core::report::StatusReport {
        match self.ask(host, Call::Status) {
            Ok(Answer::Status(status)) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    fn hosts_named(&self, peers: &[String]) -> Vec<usize> {
        peers.iter().filter_map(|peer| self.hosts.iter().position(|host| host.peer.to_peer_id_string() == *peer)).collect()
    }

    /// The hosts that hold the last committed version of a section.
    fn holders(&mut self, host: usize, agent: OwnerKey, name: &str) -> Vec<usize> {
        let section = self.section(host, agent, name).expect("the section is known");
        self.hosts_named(&section.holders)
    }

    fn alarms(&self, host: usize, kind: &str) -> usize {
        self.hosts[host].alarms.iter().filter(|alarm| **alarm == kind).count()
    }
}

fn document(agent: OwnerKey, name: &str, content: &[u8]) -> Call {
    demanding(agent, name, content, None)
}

fn demanding(agent: OwnerKey, name: &str, content: &[u8], require_level: Option<u8>) -> Call {
    Call::PutSection {
        agent,
        name: name.into(),
        class: Class::Document,
        ttl_ms: None,
        renew_for_ms: None,
        level: None,
        require_level,
        content: content.to_vec(),
    }
}
