//! A mesh of whole nodes under virtual time: what carries their messages, keeps their disks, runs their clocks and kills their processes.
//!
//! Everything follows from a seed. The world decides when things happen; the nodes are the production code of `node/core`. What happens is
//! told to [`Observer`]s as a history (`persona_audit::history`), and hashed, so that two runs of a seed can be compared.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use chacha20::ChaCha8Rng;
use persona_audit::{
    Auditor,
    history::{Change, Event as Told, What},
};
use persona_core::{
    AgentKeys, Answer, Call, CallError, Config, Gossip, ImportKeys, Input, Judgement, Keep, Node, NodeKeys, Output, PublishError,
    RequestError,
};
use persona_fragments::{Classes, OwnerKey, PeerKey, Signature, Verifier};
use persona_lies::{Handling, Liar};
use persona_mesh_proto::{Now, PersistId, Request, RequestFrame, Table, Write, holder::lost_store_mark};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{
    keys::{Notary, signer},
    plan::{Plan, below, stream},
};

pub mod fault;

use fault::{Failing, Mangler};

/// Wall-clock time at which every world begins, in milliseconds since the Unix epoch.
pub const BEGINNING_MS: u64 = 1_700_000_000_000;

/// Peers that a lookup returns at most: Kademlia's k.
const LOOKUP_PEERS_MAX: usize = 20;

/// Requests from this number on are a cheat's, not a node's.
const CHEAT: u64 = 1 << 40;

/// Of a thousand requests that are blocked, so many are held up instead of lost.
const HELD_UP_PERMILLE: u64 = 250;

/// For how long they are, in microseconds: at least and at most.
const HELD_UP_US: (u64, u64) = (2_000_000, 9_000_000);

/// A node may ask for so many ticks at one instant before that counts as spinning.
const IDLE_TICKS_MAX: u32 = 10;

/// Who is told what happens.
pub trait Observer {
    /// Something happened.
    fn observe(&mut self, event: &Told);

    /// These bytes may be in no frame and on no disk.
    fn keep_secret(&mut self, _bytes: &[u8]) {}

    /// All is over: what was found that may not happen, and how often what should happen sometimes.
    fn finish(self: Box<Self>) -> (Vec<String>, BTreeMap<String, u64>) {
        Default::default()
    }
}

/// Everything is shown to the auditor, who has a notary of his own.
struct Audit(Auditor);

impl Observer for Audit {
    fn observe(&mut self, event: &Told) {
        self.0.observe(event);
    }

    fn keep_secret(&mut self, bytes: &[u8]) {
        self.0.secret(bytes);
    }

    fn finish(self: Box<Self>) -> (Vec<String>, BTreeMap<String, u64>) {
        let report = self.0.finish();
        let found = report.findings.into_iter().map(|one| format!("{} at {:.3} s: {}", one.invariant, one.at_us as f64 / 1e6, one.what));
        (found.collect(), report.marks.into_iter().map(|(mark, count)| (mark.to_owned(), count)).collect())
    }
}

/// Who verifies the signatures of a plan's nodes.
pub fn notary(plan: &Plan) -> Arc<Notary> {
    Notary::of(if plan.real_signatures { Vec::new() } else { secrets(plan) })
}

/// An auditor for a plan's mesh. It is told what verifies; that is all it shares with anybody.
pub fn auditor(notary: Arc<Notary>) -> Box<dyn Observer> {
    let verify = move |key: &[u8; 32], message: &[u8], signature: &[u8; 64]| notary.verify(key, message, &Signature(*signature));
    Box::new(Audit(Auditor::new(Box::new(verify))))
}

/// The secrets of a plan's nodes, those that join later included.
fn secrets(plan: &Plan) -> Vec<[u8; 32]> {
    let secret =
        |number: usize| *blake3::Hasher::new().update(&plan.seed.to_le_bytes()).update(&number.to_le_bytes()).finalize().as_bytes();
    (0..plan.hosts + plan.joining).map(secret).collect()
}

/// One kind of request, for faults that hit one kind alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `Prepare`.
    Prepare,
    /// `Commit`.
    Commit,
    /// `Head`.
    Head,
    /// `Shard`.
    Shard,
    /// `Recall`.
    Recall,
    /// `Never` and `Abort`.
    Never,
    /// `Renew`, `Handover` and `Take`.
    Renew,
    /// `Probe`.
    Probe,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [Self::Prepare, Self::Commit, Self::Head, Self::Shard, Self::Recall, Self::Never, Self::Renew, Self::Probe];

    fn of(request: &Request) -> Self {
        match request {
            Request::Prepare { .. } => Self::Prepare,
            Request::Commit { .. } => Self::Commit,
            Request::Head { .. } => Self::Head,
            Request::Shard { .. } => Self::Shard,
            Request::Recall { .. } => Self::Recall,
            Request::Never { .. } | Request::Abort { .. } => Self::Never,
            Request::Renew { .. } | Request::Handover { .. } | Request::Take { .. } => Self::Renew,
            Request::Probe { .. } => Self::Probe,
        }
    }
}

/// How messages travel and disks sync now.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// Shortest and longest way, in microseconds.
    pub delay_us: (u64, u64),
    /// Of a thousand messages, how many are lost.
    pub lost_permille: u64,
    /// Of a thousand messages, how many come twice.
    pub doubled_permille: u64,
    /// Of a thousand peers in a lookup's answer, how many are left out, and how many dead ones stay in.
    pub missed_permille: u64,
    /// Dead machines stay in lookups.
    pub stale_lookups: bool,
    /// Gossip reaches nobody.
    pub deaf: bool,
    /// A sync takes from half of this to all of it, in microseconds.
    pub sync_us: u64,
}

/// Nothing is wrong.
pub const CALM: Net = Net {
    delay_us: (300, 2_000),
    lost_permille: 0,
    doubled_permille: 0,
    missed_permille: 0,
    stale_lookups: false,
    deaf: false,
    sync_us: 1_500,
};

/// What is on a disk.
pub type Disk = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// A machine: its disk and its keystore outlive its process.
pub struct Host {
    secret: [u8; 32],
    /// Its node's key.
    pub peer: PeerKey,
    /// Its place in Kademlia's space of keys.
    place: [u8; 32],
    node: Option<Node>,
    /// Counts processes, so that what was meant for an earlier one is forgotten.
    life: u64,
    /// What is durable.
    pub disk: Disk,
    /// Batches that the next sync makes durable.
    unsynced: VecDeque<(PersistId, Vec<Write>)>,
    syncing: usize,
    /// Batches that were said to be durable and are not, while its disk lies.
    owed: VecDeque<Vec<Write>>,
    /// Syncs are said to be done and are not.
    pub lying_sync: bool,
    /// Its agents: name, root, term.
    pub keystore: Vec<(String, [u8; 32], u64)>,
    /// Agents on their way to it: name, root, term of the host that they come from.
    importing: BTreeMap<OwnerKey, (String, [u8; 32], u64)>,
    /// Its wall clock, in milliseconds ahead of the ideal one.
    pub ahead_ms: i64,
    /// Until when it sleeps, in microseconds.
    asleep_until_us: u64,
    connected: BTreeSet<usize>,
    next_tick_us: Option<u64>,
    idle_ticks: u32,
    next_inbound: u64,
    /// What it does instead of what the protocol says.
    pub liar: Option<Liar>,
    /// Whether anything may be asked of it.
    pub correct: bool,
    /// How its disk fails.
    pub failing: Option<Failing>,
    /// By how many millionths its clocks run fast.
    pub drift_ppm: i64,
    /// Another machine with its key.
    twin: Option<usize>,
    /// It has another machine's key, by which that one is known to the others.
    is_twin: bool,
}

impl Host {
    fn new(secret: [u8; 32], peer: PeerKey) -> Self {
        Self {
            secret,
            peer,
            place: Sha256::digest(peer.peer_id_bytes()).into(),
            node: None,
            life: 0,
            disk: Disk::new(),
            unsynced: VecDeque::new(),
            syncing: 0,
            owed: VecDeque::new(),
            lying_sync: false,
            keystore: Vec::new(),
            importing: BTreeMap::new(),
            ahead_ms: 0,
            asleep_until_us: 0,
            connected: BTreeSet::new(),
            next_tick_us: None,
            idle_ticks: 0,
            next_inbound: 0,
            liar: None,
            correct: true,
            failing: None,
            drift_ppm: 0,
            twin: None,
            is_twin: false,
        }
    }

    /// Whether agents live on it, or are on their way to it.
    pub fn has_agents(&self) -> bool {
        !self.keystore.is_empty() || !self.importing.is_empty()
    }

    /// Whether a process of it was ever killed.
    pub fn has_run(&self) -> bool {
        self.life > 0
    }

    /// Whether its process runs.
    pub fn up(&self) -> bool {
        self.node.is_some()
    }
}

enum Event {
    Input {
        host: usize,
        life: u64,
        input: Input,
    },
    Frame {
        host: usize,
        asker: Asker,
        frame: Arc<Vec<u8>>,
    },
    Response {
        asker: Asker,
        number: Option<u64>,
        result: Result<Vec<u8>, RequestError>,
    },
    Gossip {
        host: usize,
        digest: [u8; 32],
        topic: Gossip,
        data: Arc<Vec<u8>>,
    },
    Synced {
        host: usize,
        life: u64,
        batches: usize,
    },
    Tick {
        host: usize,
        life: u64,
    },
    /// Something that whoever drives the world wanted to be reminded of.
    Alarm(u64),
}

/// One request of one process, and the frame's number in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asker {
    host: usize,
    life: u64,
    id: u64,
    number: u64,
}

/// A frame that is being answered: who asked, and what.
type Inbound = (Asker, Arc<Vec<u8>>);

/// A gossip message that a process has not judged yet.
type Heard = ([u8; 32], Gossip, Arc<Vec<u8>>);

/// A call that was answered.
pub struct Replied {
    /// Which.
    pub call: u64,
    /// How.
    pub result: Result<Answer, CallError>,
}

/// The mesh.
pub struct World {
    /// Now, in microseconds since the beginning.
    pub now_us: u64,
    /// The machines.
    pub hosts: Vec<Host>,
    /// The network and the disks.
    pub net: Net,
    /// Pairs that cannot hear each other: from, to.
    pub deaf_pairs: BTreeSet<(usize, usize)>,
    /// Requests of one kind that do not get through, from, to.
    pub blocked: BTreeSet<(usize, usize, Kind)>,
    /// Answers to calls, for whoever drives the world.
    pub replies: VecDeque<Replied>,
    /// Reminders that are due.
    pub reminders: VecDeque<u64>,
    /// Agents that came to a machine, for whoever drives the world.
    pub came: Vec<(OwnerKey, usize)>,
    /// Answers to what a cheat asked, by the number that it gave.
    pub cheat_replies: VecDeque<(u64, Result<Vec<u8>, RequestError>)>,
    /// Machines whose disks failed: their processes stop now.
    pub failed: Vec<usize>,
    /// Panics, spins, double answers: what no node may do.
    pub broken: Vec<String>,
    rng: ChaCha8Rng,
    queue: BTreeMap<(u64, u64), Box<Event>>, // boxed: a tree moves what it keeps
    events: u64,
    notary: Arc<Notary>,
    config: Config,
    real_signatures: bool,
    by_peer: BTreeMap<PeerKey, usize>,
    /// Requests that wait for their answer.
    open: BTreeSet<Asker>,
    /// Frames being answered, by host, process and number, with what was asked.
    inbound: BTreeMap<(usize, u64, u64), Inbound>,
    heard: BTreeMap<[u8; 32], BTreeSet<usize>>,
    gossips: BTreeMap<(usize, u64, u64), Heard>,
    frames: u64,
    calls: u64,
    open_calls: BTreeMap<u64, usize>,
    observers: Vec<Box<dyn Observer>>,
    mangler: Option<Mangler>,
    /// Of all that happened, if this run is to be compared with another one of the same seed.
    trace: Option<blake3::Hasher>,
}

/// The configuration of a plan's nodes.
fn config_of(plan: &Plan) -> Config {
    let mut config = Config { canary_s: plan.canary_s, ..Config::default() };
    let scale = |spec: &mut persona_fragments::ClassSpec| {
        // A life shorter than the allowance for clocks would only be a refresh every instant.
        spec.ttl = (spec.ttl / plan.ttl_divisor).max(Duration::from_secs(20));
        spec.level = plan.level;
        if let Some(renew_for_s) = plan.renew_for_s.filter(|_| !spec.renew_for.is_zero()) {
            spec.renew_for = Duration::from_secs(renew_for_s);
        }
    };
    let Classes { core, relationship, active, document } = &mut config.classes;
    [core, relationship, active, document].into_iter().for_each(scale);
    config
}

impl World {
    /// The machines of a plan, all running and all knowing one another.
    pub fn new(plan: &Plan, notary: Arc<Notary>, observers: Vec<Box<dyn Observer>>) -> Self {
        let secrets = secrets(plan);
        let config = config_of(plan);
        let mut world = Self {
            now_us: 1_000_000,
            hosts: Vec::new(),
            net: CALM,
            deaf_pairs: BTreeSet::new(),
            blocked: BTreeSet::new(),
            replies: VecDeque::new(),
            reminders: VecDeque::new(),
            came: Vec::new(),
            cheat_replies: VecDeque::new(),
            failed: Vec::new(),
            broken: Vec::new(),
            rng: stream(plan.seed, "world"),
            queue: BTreeMap::new(),
            events: 0,
            notary,
            real_signatures: plan.real_signatures,
            by_peer: BTreeMap::new(),
            open: BTreeSet::new(),
            inbound: BTreeMap::new(),
            heard: BTreeMap::new(),
            gossips: BTreeMap::new(),
            frames: 0,
            calls: 0,
            open_calls: BTreeMap::new(),
            observers,
            mangler: None,
            trace: plan.traced.then(blake3::Hasher::new),
            config,
        };
        world.tell(What::Begins {
            wall_ms: BEGINNING_MS,
            grace_ms: world.config.holder.grace_ms,
            prepared_max: world.config.holder.prepared_per_section as u32,
        });
        for secret in secrets {
            let peer = PeerKey(signer(secret, plan.real_signatures).public_key());
            world.by_peer.insert(peer, world.hosts.len());
            world.hosts.push(Host::new(secret, peer));
        }
        world
    }

    /// A signer with the key of a machine's node: what its thief would have.
    pub fn signer_of(&self, host: usize) -> Box<dyn persona_fragments::Signer> {
        signer(self.hosts[host].secret, self.real_signatures)
    }

    /// Who verifies everybody's signatures.
    pub fn notary(&self) -> Arc<Notary> {
        self.notary.clone()
    }

    /// Tells the observers.
    pub fn tell(&mut self, what: What) {
        if !self.observers.is_empty() {
            let event = Told { at_us: self.now_us, what };
            for observer in &mut self.observers {
                observer.observe(&event);
            }
        }
    }

    /// Tells the observers what may be in no frame and on no disk.
    pub fn keep_secret(&mut self, bytes: &[u8]) {
        self.observers.iter_mut().for_each(|observer| observer.keep_secret(bytes));
    }

    fn observed(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Adds to the hash of all that happened.
    fn trace(&mut self, kind: u8, host: usize, bytes: &[u8]) {
        if let Some(trace) = &mut self.trace {
            trace.update(&self.now_us.to_le_bytes()).update(&[kind]).update(&(host as u32).to_le_bytes()).update(bytes);
        }
    }

    /// The hash of all that happened: equal for two runs of one seed. Nothing if nobody compares.
    pub fn trace_hash(&self) -> Option<String> {
        Some(self.trace.as_ref()?.finalize().to_hex()[..16].to_owned())
    }

    /// The observers, when all is over.
    pub fn into_observers(self) -> Vec<Box<dyn Observer>> {
        self.observers
    }

    // ---- chance and time -------------------------------------------------------------------------------------------------------

    fn chance(&mut self, permille: u64) -> bool {
        permille > 0 && below(&mut self.rng, 1000) < permille
    }

    fn delay(&mut self) -> u64 {
        let (least, most) = self.net.delay_us;
        least + below(&mut self.rng, most - least + 1)
    }

    fn schedule(&mut self, after_us: u64, event: Event) {
        self.events += 1;
        self.queue.insert((self.now_us + after_us, self.events), Box::new(event));
    }

    /// Puts `number` into [`Self::reminders`] after so many microseconds.
    pub fn remind(&mut self, after_us: u64, number: u64) {
        self.schedule(after_us, Event::Alarm(number));
    }

    /// What a machine's clocks show.
    pub fn clock(&self, host: usize) -> Now {
        let ideal_ms = BEGINNING_MS + self.now_us / 1000;
        let Host { ahead_ms, drift_ppm, .. } = self.hosts[host];
        let drifted_us = (self.now_us / 1000) as i64 * drift_ppm / 1000;
        Now { wall_ms: ideal_ms.saturating_add_signed(ahead_ms), mono_us: self.now_us.saturating_add_signed(drifted_us) }
    }

    /// Sets a machine's wall clock.
    pub fn skew(&mut self, host: usize, ahead_ms: i64) {
        self.hosts[host].ahead_ms = ahead_ms;
        self.tell(What::Skew { machine: host as u32, ahead_ms });
    }

    // ---- machines --------------------------------------------------------------------------------------------------------------

    /// Tells the observers that a machine exists.
    pub fn introduce(&mut self, host: usize) {
        let Host { peer, correct, .. } = self.hosts[host];
        self.tell(What::Machine { machine: host as u32, peer: peer.0, correct });
    }

    /// Starts the process of a machine: from its disk and its keystore alone.
    pub fn start(&mut self, host: usize) {
        let now = self.clock(host);
        let mut seed = [0; 32];
        rand_core::Rng::fill_bytes(&mut self.rng, &mut seed);
        let verifier: Arc<dyn Verifier> = self.notary.clone();
        let (signer, owner_signer) = (self.signer_of(host), self.notary.owner_signer(self.real_signatures));
        let machine = &mut self.hosts[host];
        if machine.node.is_some() {
            return;
        }
        let keys = NodeKeys { signer, verifier, secret: Zeroizing::new(machine.secret), owner_signer };
        let mut node = Node::new(keys, self.config.clone(), seed, now);
        let mut broken = Vec::new();
        for ((table, key), value) in &machine.disk {
            if !matches!(table, Table::Shard | Table::Expiry)
                && let Err(error) = node.load(*table, key, value)
            {
                broken.push(format!("machine {host}: what was stored does not load: {error}"));
            }
        }
        for (name, root, term) in &machine.keystore {
            let keys = AgentKeys { name: name.clone(), root: Zeroizing::new(*root), term: *term };
            if let Err(error) = node.add_agent(keys) {
                broken.push(format!("machine {host}: agent {name} of the keystore is not taken up: {error}"));
            }
        }
        for (name, root, from_term) in machine.importing.values() {
            node.resume_import(ImportKeys { name: name.clone(), root: Zeroizing::new(*root), from_term: *from_term });
        }
        node.forget_strays();
        let served = if self.observers.is_empty() { Vec::new() } else { node.heads_to_serve() };
        machine.node = Some(node);
        machine.next_tick_us = None;
        machine.idle_ticks = 0;
        machine.asleep_until_us = 0;
        self.broken.extend(broken);
        self.trace(1, host, &[]);
        self.tell(What::Up { machine: host as u32 });
        for (key, record) in served {
            self.tell(What::Serves { machine: host as u32, key: key.0, record: Some(record) });
        }
        self.feed(host, Input::Tick);
        self.meet();
    }

    /// The process dies, and what was not synced with it. A sync that is under way may have made it to the disk or not.
    pub fn crash(&mut self, host: usize) {
        if !self.hosts[host].up() {
            return;
        }
        let lucky = self.chance(500);
        let machine = &mut self.hosts[host];
        machine.node = None;
        machine.life += 1;
        let reached = if lucky && !machine.lying_sync { machine.syncing } else { 0 };
        let batches: Vec<Vec<Write>> = machine.unsynced.drain(..).take(reached).map(|(_, writes)| writes).collect();
        machine.unsynced.clear();
        machine.syncing = 0;
        machine.owed.clear();
        for writes in batches {
            self.write(host, writes);
        }
        self.trace(2, host, &[]);
        self.tell(What::Down { machine: host as u32 });
        self.open_calls.retain(|_, at| *at != host);
        self.meet();
    }

    /// The disk is empty from now on. The process must be down.
    pub fn lose_disk(&mut self, host: usize) {
        assert!(!self.hosts[host].up(), "a disk is lost while nobody uses it");
        self.hosts[host].disk.clear();
        self.tell(What::DiskLost { machine: host as u32, noticed: true });
        // What the daemon does when it finds its identity and no store.
        let mark = lost_store_mark(self.clock(host).wall_ms);
        self.write(host, vec![mark]);
    }

    /// A stored shard rots. Returns whether there was one.
    pub fn rot(&mut self, host: usize, which: u64) -> bool {
        let shards: Vec<(Table, Vec<u8>)> = self.hosts[host].disk.keys().filter(|(table, _)| *table == Table::Shard).cloned().collect();
        if shards.is_empty() {
            return false;
        }
        let place = shards[(which % shards.len() as u64) as usize].clone();
        if let Some(value) = self.hosts[host].disk.get_mut(&place) {
            let at = (which / 7) as usize % value.len().max(1);
            if let Some(byte) = value.get_mut(at) {
                *byte ^= 0x10;
            }
        }
        self.tell(What::Rot { machine: host as u32, table: place.0 as u8, key: place.1 });
        true
    }

    /// A machine sleeps: nothing happens to its process until then, and its clocks go on.
    pub fn suspend(&mut self, host: usize, micros: u64) {
        let machine = &mut self.hosts[host];
        machine.asleep_until_us = machine.asleep_until_us.max(self.now_us + micros);
    }

    /// When the last of those that sleep now wakes, in virtual microseconds: now, if nobody does.
    pub fn all_awake_us(&self) -> u64 {
        self.hosts.iter().filter(|host| host.up()).map(|host| host.asleep_until_us).fold(self.now_us, u64::max)
    }

    fn hears(&self, from: usize, to: usize) -> bool {
        self.hosts[from].up() && self.hosts[to].up() && !self.deaf_pairs.contains(&(from, to))
    }

    /// Tells everybody who is connected to whom now. To be called after every change of who hears whom.
    pub fn meet(&mut self) {
        for host in 0..self.hosts.len() {
            if !self.hosts[host].up() {
                self.hosts[host].connected.clear();
                continue;
            }
            let both =
                |other: &usize| *other != host && !self.hosts[*other].is_twin && self.hears(host, *other) && self.hears(*other, host);
            let after: BTreeSet<usize> = (0..self.hosts.len()).filter(both).collect();
            let before = std::mem::replace(&mut self.hosts[host].connected, after.clone());
            for other in before.difference(&after) {
                let peer = self.hosts[*other].peer;
                self.feed(host, Input::Disconnected { peer });
            }
            for other in after.difference(&before) {
                let peer = self.hosts[*other].peer;
                self.feed(host, Input::Connected { peer, prefix: None });
            }
        }
    }

    // ---- nodes -----------------------------------------------------------------------------------------------------------------

    fn feed(&mut self, host: usize, input: Input) {
        let life = self.hosts[host].life;
        let asleep_us = self.hosts[host].asleep_until_us.saturating_sub(self.now_us);
        if asleep_us > 0 {
            // In the order in which it came: that is what queues do.
            return self.schedule(asleep_us, Event::Input { host, life, input });
        }
        let now = self.clock(host);
        let machine = &mut self.hosts[host];
        let Some(node) = machine.node.as_mut() else { return };
        if let Input::Call { call, .. } = &input
            && let Some(agent) = node.wants_rows(call)
        {
            let tables = [Table::Own, Table::Outbox, Table::Inbox, Table::Meta];
            for ((table, key), value) in machine.disk.iter().filter(|((table, _), _)| tables.contains(table)) {
                if let Err(error) = node.load_row_of(&agent, *table, key, value) {
                    self.broken.push(format!("machine {host}: a row of an agent does not load: {error}"));
                }
            }
        }
        let tick = matches!(input, Input::Tick);
        let outputs = node.handle(input, now);
        let deadline = node.deadline();
        let busy = tick && outputs.is_empty() && deadline <= now.mono_us;
        let machine = &mut self.hosts[host];
        machine.idle_ticks = if busy { machine.idle_ticks + 1 } else { 0 };
        if machine.idle_ticks == IDLE_TICKS_MAX {
            self.broken.push(format!("machine {host} asks for a tick at once, again and again, and does nothing with it"));
        }
        for output in outputs {
            self.carry_out(host, output);
        }
        let at = self.now_us.saturating_add(deadline.saturating_sub(now.mono_us).max(1));
        if at < u64::MAX && self.hosts[host].next_tick_us.is_none_or(|known| at < known || known <= self.now_us) {
            self.hosts[host].next_tick_us = Some(at);
            self.schedule(at - self.now_us, Event::Tick { host, life });
        }
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        let life = self.hosts[host].life;
        match output {
            Output::Request { id, to, frame, timeout_ms } => self.request(host, life, id, to, frame, timeout_ms),
            Output::Respond { inbound, frame } => {
                if let Some((asker, asked)) = self.inbound.remove(&(host, life, inbound)) {
                    self.respond(host, asker, &asked, frame);
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
            Output::Load { id, table, key } => {
                let value = self.hosts[host].disk.get(&(table, key)).cloned();
                self.schedule(100, Event::Input { host, life, input: Input::Loaded { id, value } });
            }
            Output::Head { key, record } => {
                if self.observed() {
                    self.tell(What::Serves { machine: host as u32, key: key.0, record });
                }
            }
            Output::Publish { id, topic, data } => {
                let lonely = self.hosts[host].connected.is_empty();
                let result = if lonely { Err(PublishError) } else { Ok(()) };
                self.schedule(100, Event::Input { host, life, input: Input::Published { id, result } });
                let digest = Sha256::digest(&data).into();
                self.heard.entry(digest).or_default().insert(host);
                self.mangle_gossip(topic, &data);
                if !lonely {
                    self.flood(host, digest, topic, &Arc::new(data));
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
                if self.open_calls.remove(&id).is_none() {
                    self.broken.push(format!("machine {host} answers call {id}, which is not open"));
                }
                self.trace(3, host, &id.to_le_bytes());
                self.replies.push_back(Replied { call: id, result });
            }
            Output::Keep { id, agent, keep } => {
                let machine = &mut self.hosts[host];
                match keep {
                    Keep::Importing { name, root, from_term } => {
                        machine.importing.insert(agent, (name, *root, from_term));
                    }
                    Keep::NotImporting => drop(machine.importing.remove(&agent)),
                    Keep::Home { name, root, term, .. } => {
                        machine.importing.remove(&agent);
                        machine.keystore.retain(|(_, other, _)| *other != *root);
                        machine.keystore.push((name, *root, term));
                        self.came.push((agent, host));
                    }
                }
                let after = 500 + below(&mut self.rng, 5_000);
                self.schedule(after, Event::Input { host, life, input: Input::Kept { id, result: Ok(()) } });
            }
            Output::Notice(_) => {}
            Output::Alarm(alarm) => {
                if self.observed() {
                    self.tell(What::Alarm { machine: host as u32, kind: alarm.kind.to_owned() });
                }
            }
        }
    }

    // ---- requests and answers --------------------------------------------------------------------------------------------------

    fn request(&mut self, from: usize, life: u64, id: u64, to: PeerKey, frame: Vec<u8>, timeout_ms: u64) {
        self.frames += 1;
        let asker = Asker { host: from, life, id, number: self.frames };
        self.open.insert(asker);
        self.trace(4, from, &frame);
        if self.observed() {
            self.tell(What::Asked { frame: asker.number, from: from as u32, to: to.0, bytes: frame.clone() });
        }
        let unreachable = Event::Response { asker, number: None, result: Err(RequestError::Unreachable) };
        self.schedule(timeout_ms * 1000, unreachable);
        let Some(&host) = self.by_peer.get(&to) else { return };
        let host = self.which_twin(host);
        if !self.hears(from, host) {
            // A machine that is there refuses at once; a cut wire says nothing.
            if !self.deaf_pairs.contains(&(from, host)) {
                let after = self.delay();
                self.schedule(after, Event::Response { asker, number: None, result: Err(RequestError::Unreachable) });
            }
            return;
        }
        if !self.blocked.is_empty()
            && let Ok(asked) = RequestFrame::from_bytes(&frame)
            && asked.requests.iter().any(|request| self.blocked.contains(&(from, host, Kind::of(request))))
        {
            // Some are lost, and some come when nobody waits for them any more.
            if self.chance(HELD_UP_PERMILLE) {
                let after = HELD_UP_US.0 + below(&mut self.rng, HELD_UP_US.1 - HELD_UP_US.0);
                self.schedule(after, Event::Frame { host, asker, frame: Arc::new(frame) });
            }
            return;
        }
        let frame = Arc::new(frame);
        self.mangle_request(host, &frame);
        if !self.chance(self.net.lost_permille) {
            let after = self.delay();
            self.schedule(after, Event::Frame { host, asker, frame: frame.clone() });
        }
        if self.chance(self.net.doubled_permille) {
            let late = self.delay() + below(&mut self.rng, 3_000_000);
            self.schedule(late, Event::Frame { host, asker, frame });
        }
    }

    fn arrived(&mut self, host: usize, asker: Asker, frame: &Arc<Vec<u8>>) {
        if let Some(liar) = self.hosts[host].liar.as_mut() {
            match liar.asked(frame) {
                Handling::Pass => {}
                Handling::Silence => return,
                Handling::Answer(answer) => return self.send_back(host, asker, answer),
            }
        }
        let machine = &mut self.hosts[host];
        machine.next_inbound += 1;
        let inbound = machine.next_inbound;
        self.inbound.insert((host, machine.life, inbound), (asker, frame.clone()));
        let from = self.hosts[asker.host].peer;
        self.feed(host, Input::Frame { inbound, from, frame: frame.to_vec() });
    }

    fn respond(&mut self, host: usize, asker: Asker, asked: &[u8], frame: Vec<u8>) {
        let to = self.hosts[asker.host].peer;
        let frame = match self.hosts[host].liar.as_mut() {
            Some(liar) => liar.rewrite(&to, asked, frame),
            None => Some(frame),
        };
        if let Some(frame) = frame {
            self.send_back(host, asker, frame);
        }
    }

    fn send_back(&mut self, host: usize, asker: Asker, frame: Vec<u8>) {
        self.trace(5, host, &frame);
        if self.observed() {
            self.tell(What::Answered { frame: asker.number, from: host as u32, bytes: frame.clone() });
        }
        if self.hears(host, asker.host) && !self.chance(self.net.lost_permille) {
            let late_us = self.hosts[host].liar.as_ref().map_or(0, Liar::late_us);
            let after = self.delay() + late_us;
            self.schedule(after, Event::Response { asker, number: Some(asker.number), result: Ok(frame) });
        }
    }

    fn flood(&mut self, from: usize, digest: [u8; 32], topic: Gossip, data: &Arc<Vec<u8>>) {
        if self.net.deaf {
            return;
        }
        for host in 0..self.hosts.len() {
            let known = self.heard.get(&digest).is_some_and(|hosts| hosts.contains(&host));
            if host != from && !known && self.hears(from, host) && !self.chance(self.net.lost_permille) {
                let after = self.delay();
                self.schedule(after, Event::Gossip { host, digest, topic, data: data.clone() });
            }
        }
    }

    fn closest(&mut self, host: usize, key: &[u8]) -> Vec<PeerKey> {
        let target: [u8; 32] = Sha256::digest(key).into();
        let mut peers: Vec<([u8; 32], PeerKey)> = Vec::new();
        for other in 0..self.hosts.len() {
            let dead = !self.hears(host, other);
            if other == host
                || self.hosts[other].is_twin
                || dead && !(self.net.stale_lookups && self.hosts[other].life > 0)
                || self.chance(self.net.missed_permille)
            {
                continue;
            }
            let peer = self.hosts[other].peer;
            let mut distance = self.hosts[other].place;
            distance.iter_mut().zip(&target).for_each(|(byte, other)| *byte ^= other);
            peers.push((distance, peer));
        }
        peers.sort_unstable();
        peers.into_iter().take(LOOKUP_PEERS_MAX).map(|(_, peer)| peer).collect()
    }

    // ---- disks -----------------------------------------------------------------------------------------------------------------

    fn sync(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        if machine.syncing > 0 || machine.unsynced.is_empty() {
            return;
        }
        machine.syncing = machine.unsynced.len();
        let (life, batches) = (machine.life, machine.syncing);
        let after = self.net.sync_us / 2 + below(&mut self.rng, self.net.sync_us / 2 + 1);
        self.schedule(after, Event::Synced { host, life, batches });
    }

    fn synced(&mut self, host: usize, batches: usize) {
        if self.fails(host) {
            return;
        }
        let drained: Vec<(PersistId, Vec<Write>)> = self.hosts[host].unsynced.drain(..batches).collect();
        let (ids, writes): (Vec<PersistId>, Vec<Vec<Write>>) = drained.into_iter().unzip();
        if self.hosts[host].lying_sync {
            self.hosts[host].owed.extend(writes);
        } else {
            self.settle(host);
            for writes in writes {
                self.write(host, writes);
            }
        }
        self.hosts[host].syncing = 0;
        self.feed(host, Input::Persisted { ids });
        self.sync(host);
    }

    /// What a disk said it had, it has now.
    pub fn settle(&mut self, host: usize) {
        let owed: Vec<Vec<Write>> = self.hosts[host].owed.drain(..).collect();
        for writes in owed {
            self.write(host, writes);
        }
    }

    fn write(&mut self, host: usize, writes: Vec<Write>) {
        if self.observed() {
            let change = |write: &Write| Change { table: write.table as u8, key: write.key.clone(), value: write.value.clone() };
            let writes = writes.iter().map(change).collect();
            self.tell(What::Durable { machine: host as u32, writes });
        }
        let disk = &mut self.hosts[host].disk;
        for Write { table, key, value } in writes {
            match value {
                Some(value) => drop(disk.insert((table, key), value)),
                None => drop(disk.remove(&(table, key))),
            }
        }
    }

    // ---- running ---------------------------------------------------------------------------------------------------------------

    /// Lets everything happen until `until_us`, a call is answered, or a reminder is due. Returns whether something came first.
    pub fn run_until(&mut self, until_us: u64) -> bool {
        while self.replies.is_empty() && self.reminders.is_empty() && self.cheat_replies.is_empty() && self.failed.is_empty() {
            let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until_us) else {
                self.now_us = until_us;
                return false;
            };
            self.now_us = entry.key().0;
            let event = entry.remove();
            self.happen(*event);
        }
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input { host, life, input } => {
                if self.hosts[host].life == life {
                    self.feed(host, input);
                }
            }
            Event::Frame { host, asker, frame } => {
                if self.hears(asker.host, host) {
                    self.arrived(host, asker, &frame);
                }
            }
            Event::Response { asker, number, result } => {
                if self.open.remove(&asker) && self.hosts[asker.host].life == asker.life {
                    if let Some(frame) = number {
                        self.tell(What::Heard { frame });
                    }
                    if asker.id >= CHEAT {
                        self.cheat_replies.push_back((asker.id - CHEAT, result));
                    } else {
                        self.feed(asker.host, Input::Response { id: asker.id, result });
                    }
                }
            }
            Event::Gossip { host, digest, topic, data } => {
                if self.hosts[host].up() && self.heard.entry(digest).or_default().insert(host) {
                    let machine = &mut self.hosts[host];
                    machine.next_inbound += 1;
                    let message = machine.next_inbound;
                    self.gossips.insert((host, machine.life, message), (digest, topic, data.clone()));
                    self.feed(host, Input::Gossip { message, topic, data: data.to_vec() });
                }
            }
            Event::Synced { host, life, batches } => {
                if self.hosts[host].life == life {
                    self.synced(host, batches);
                }
            }
            Event::Tick { host, life } => {
                if self.hosts[host].life == life && self.hosts[host].next_tick_us == Some(self.now_us) {
                    self.feed(host, Input::Tick);
                }
            }
            Event::Alarm(number) => self.reminders.push_back(number),
        }
    }

    /// A cheat on a machine sends a frame of its own making, by the number by which the answer comes back.
    pub fn cheat(&mut self, host: usize, number: u64, to: PeerKey, frame: Vec<u8>) {
        if self.hosts[host].up() {
            let life = self.hosts[host].life;
            self.request(host, life, CHEAT + number, to, frame, 3_000);
        }
    }

    /// Asks a node for something. `None` if its process does not run.
    pub fn call(&mut self, host: usize, call: Call) -> Option<u64> {
        if !self.hosts[host].up() {
            return None;
        }
        self.calls += 1;
        let id = self.calls;
        self.open_calls.insert(id, host);
        self.feed(host, Input::Call { id, call });
        Some(id)
    }

    /// Frames of requests so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Calls that a running process has not answered.
    pub fn open_calls(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.open_calls.iter().map(|(call, host)| (*call, *host))
    }
}
