//! A small world of real holders, puts and gets under virtual time: messages are late, lost, doubled and overtaken, disks forget what was
//! not synced, nodes crash and lie. Everything follows from a seed.
//!
//! The oracle is simpler than the system: what is on which disk, who acked what, which put had committed when which get began.

mod abort;
mod amnesia;
mod evidence;
mod leases;
mod random;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};

use chacha20::ChaCha20Rng;
use persona_fragments::{
    Certificate, CertifiedHead, Class, DeviceId, Digest, Equivocation, Manifest, OlderSet, OwnerKey, PeerKey, SectionKey, Shape, Signature,
    SignedManifest, Signer, Verifier, Version,
    certificate::AbortWire,
    coding::{content_hash, encode, shard_hashes},
    sign_batch,
};
use persona_mesh_proto::{
    CallId, Candidate, Get, GetError, GetOut, GetTask, GetValue, Holder, HolderLimits, HolderOut, Mode, Now, PersistId, Put, PutError,
    PutOut, PutReceipt, PutTask, Recover, RecoverOut, RecoverTask, Renewal, RenewalOut, RenewalTask, Renewed, Reply, Request, Response,
    Settle, SettleOut, SettleTask, Settled, Table, Tag, Timing, Write,
    holder::lost_store_mark,
    message::{HandedSet, HeadAnswer, RecallAnswer},
};
use rand_core::{Rng, SeedableRng};
use sha2::{Digest as _, Sha256};

/// Signatures that cost a hash: the world owns everybody's secret.
#[derive(Clone, Copy)]
struct TagSigner {
    secret: [u8; 32],
}

#[derive(Clone, Default)]
struct TagVerifier {
    secrets: BTreeMap<[u8; 32], [u8; 32]>,
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

impl Verifier for TagVerifier {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        self.secrets.get(public_key).is_some_and(|secret| tag(secret, message) == *signature)
    }
}

/// How a node deceives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Signs for shards that it does not store.
    AckWithoutStoring,
    /// Stores its first version; from then on signs for everything, confirms everything, and answers with the old.
    Stale,
    /// Stores and signs, and then denies all.
    Deny,
    /// Sends its shards with one bit changed.
    Corrupt,
    /// Answers every request with something else.
    Babble,
    /// Stores, and answers with acks that it did not sign.
    BadAck,
    /// Claims that its uncertified versions are certified, by signatures that are all its own.
    Forge,
    /// Says that it has lost its store and knows nothing yet.
    Recovering,
    /// Answers questions, and neither acks nor promises anything.
    Refuse,
    /// Confirms, and names a holder set that never was.
    Name,
}

const LIES: [Lie; 8] = [Lie::AckWithoutStoring, Lie::Stale, Lie::Deny, Lie::Corrupt, Lie::Babble, Lie::BadAck, Lie::Forge, Lie::Recovering];

struct Node {
    signer: TagSigner,
    key: PeerKey,
    holder: Option<Holder>,
    /// Counts restarts, so that what was under way before one is forgotten.
    life: u64,
    durable: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    pending: Vec<(PersistId, Vec<Write>)>,
    syncing: bool,
    calls: BTreeMap<CallId, (usize, Tag, Request)>,
    /// What Kademlia would serve.
    served: BTreeMap<SectionKey, Vec<u8>>,
    lie: Option<Lie>,
    /// Crash when so many more batches have been handed out: before they are synced, or after and before anybody is told.
    crash_plan: Option<(u32, bool)>,
}

enum Machine {
    Put(Box<Put>),
    Get(Box<Get>),
    Settle(Box<Settle>),
    /// Of one node's holder, in one of its lives.
    Recover(Box<Recover>, usize, u64, SectionKey),
    /// Led by one node, in one of its lives.
    Renewal(Box<Renewal>, usize, u64),
}

struct Task {
    machine: Machine,
    /// Nodes that this task cannot talk to: nothing arrives, nothing comes back.
    blocked: BTreeSet<usize>,
    began_us: u64,
    ended_us: Option<u64>,
    put: Option<Result<PutReceipt, PutError>>,
    get: Option<Result<GetValue, GetError>>,
    settled: Option<Settled>,
    renewed: Option<Renewed>,
    /// Of a get: hand their shards to these holders when it is done.
    repairs: Vec<u8>,
    placed: u8,
    /// The client died: nobody carries out what the machine wants.
    abandoned: bool,
    next_tick_us: Option<u64>,
}

#[allow(clippy::large_enum_variant, reason = "handed on, seldom many at once")]
enum Event {
    Request { task: usize, tag: Tag, node: usize, request: Request },
    Reply { task: usize, tag: Tag, reply: Reply },
    Synced { node: usize, life: u64 },
    TaskTick { task: usize },
    HolderTick { node: usize, life: u64 },
    Probed { node: usize, life: u64, peer: PeerKey },
}

/// How messages travel.
struct Net {
    delay_us: (u64, u64),
    lost_permille: u64,
    doubled_permille: u64,
    /// Whether a dead node is noticed; otherwise there is only silence.
    refuses: bool,
}

/// What was sent, for tests that count.
struct Sent {
    task: usize,
    node: usize,
    kind: &'static str,
    shard_bytes: usize,
}

struct World {
    rng: ChaCha20Rng,
    now: Now,
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    calls: u64,
    nodes: Vec<Node>,
    tasks: Vec<Task>,
    verifier: TagVerifier,
    net: Net,
    timing: Timing,
    limits: HolderLimits,
    /// How many nodes, at most, each recovery cannot talk to.
    recoveries_blocked: u64,
    /// How many nodes, at most, each renewal cannot talk to.
    renewals_blocked: u64,
    /// Nobody leads a renewal: the test does it.
    no_leaders: bool,
    holder_tick_us: u64,
    sync_us: u64,
    sent: Vec<Sent>,
    /// Which manifest each honest node acked for a version.
    acked: BTreeMap<(usize, SectionKey, Version), Digest>,
    /// Which versions each honest node promised never to ack.
    promised: BTreeSet<(usize, SectionKey, Version)>,
    /// What holders told, by node.
    evidence: Vec<(usize, Equivocation)>,
}

/// The owner of one section, as far as its writes go.
#[derive(Clone)]
struct Owner {
    signer: TagSigner,
    name: Vec<u8>,
    class: Class,
    level: u8,
    ttl_ms: u64,
    /// How long its holders may renew what it writes; 0: not at all.
    renew_ms: u64,
    term: u64,
    device: DeviceId,
    seq: u64,
    older: Vec<OlderSet>,
    /// A set that may still be read found no room: until then nothing is known to have reached all.
    forgot_until_ms: u64,
    last: Option<SignedManifest>,
}

impl Owner {
    fn key(&self) -> OwnerKey {
        OwnerKey(self.signer.public_key())
    }

    fn section(&self) -> SectionKey {
        SectionKey::derive(&self.key(), &self.name)
    }

    /// Another section, or another host, of the same owner.
    fn also(&self, name: &str, class: Class, term: u64, device: u8) -> Self {
        Self {
            name: name.into(),
            class,
            term,
            device: DeviceId([device; 32]),
            seq: 0,
            older: Vec::new(),
            forgot_until_ms: 0,
            last: None,
            ..self.clone()
        }
    }

    fn next_version(&mut self) -> Version {
        self.seq += 1;
        Version { term: self.term, device: self.device, seq: self.seq }
    }

    /// What the next write says; its set joins the older ones until a commit that named it went through.
    fn write(&mut self, world: &World, holders: &[usize], content: &[u8]) -> PutTask {
        let version = self.next_version();
        self.write_as(world, holders, content, version, version)
    }

    fn renew(&mut self, world: &World, holders: &[usize], content: &[u8]) -> PutTask {
        let before = self.last.clone().expect("something to renew");
        let version = self.next_version();
        let mut task = self.write_as(world, holders, content, version, before.content_version);
        task.renewal = before.shape == task.manifest.shape;
        let stays = |index: &u8| before.holders.get(usize::from(*index)) == task.manifest.holders.get(usize::from(*index));
        task.keeps = (0..task.manifest.shape.n()).filter(stays).collect();
        task
    }

    fn write_as(&mut self, world: &World, holders: &[usize], content: &[u8], version: Version, content_version: Version) -> PutTask {
        let shape = Shape::for_level(self.level, holders.len()).expect("holders");
        let shards = encode(content, shape).expect("content");
        let holders: Vec<PeerKey> = holders.iter().map(|node| world.nodes[*node].key).collect();
        self.older.retain(|set| set.over_at_ms() + 20_000 > world.now.wall_ms);
        let mut sorted = holders.clone();
        sorted.sort_unstable();
        let same_set = |set: &OlderSet| {
            let mut other = set.holders.clone();
            other.sort_unstable();
            other == sorted
        };
        let manifest = Manifest {
            key: self.section(),
            owner: self.key(),
            name: self.name.clone(),
            version,
            content_version,
            class: self.class,
            level: self.level,
            issued_at_ms: world.now.wall_ms,
            ttl_ms: self.ttl_ms,
            renew_until_ms: if self.renew_ms == 0 { 0 } else { world.now.wall_ms + self.renew_ms },
            content_len: content.len() as u32,
            shape,
            content_hash: content_hash(content),
            shard_hashes: shard_hashes(&shards),
            holders,
            older: self
                .older
                .iter()
                .filter(|set| !same_set(set) || set.renew_until_ms > 0 && set.expires_at_ms <= world.now.wall_ms)
                .cloned()
                .collect(),
        };
        let manifest = SignedManifest::sign(manifest, &self.signer).expect("a sound manifest");
        self.older.push(manifest.as_older_set());
        self.make_room();
        self.last = Some(manifest.clone());
        PutTask { manifest, shards, renewal: false, keeps: Vec::new(), bystanders: Vec::new() }
    }

    /// What its holders have made of the last version while it was away.
    fn found(&mut self, world: &World, head: &CertifiedHead) {
        self.older.retain(|set| set.version != head.manifest.version);
        self.older.extend(head.as_older_sets(world.now.wall_ms));
        self.older.sort_by(|a, b| a.order().cmp(&b.order()));
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.older.len() > persona_fragments::manifest::OLDER_SETS_MAX {
            self.forgot_until_ms = self.forgot_until_ms.max(self.older.remove(0).over_at_ms() + 20_000);
        }
    }

    /// A commit that reached every older set: only its own set is left to be told of the next.
    fn committed(&mut self, receipt: &PutReceipt) {
        if receipt.stale_until_ms.is_none() {
            let version = receipt.head.manifest.version;
            self.older.retain(|set| set.version >= version);
        }
    }
}

impl World {
    fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            rng: ChaCha20Rng::seed_from_u64(seed),
            now: Now { wall_ms: 1_700_000_000_000, mono_us: 1_000_000 },
            queue: BTreeMap::new(),
            events: 0,
            calls: 0,
            nodes: Vec::new(),
            tasks: Vec::new(),
            verifier: TagVerifier::default(),
            net: Net { delay_us: (500, 1_500), lost_permille: 0, doubled_permille: 0, refuses: true },
            timing: Timing::default(),
            limits: HolderLimits::default(),
            recoveries_blocked: 0,
            renewals_blocked: 0,
            no_leaders: false,
            holder_tick_us: 1_000_000,
            sync_us: 200,
            sent: Vec::new(),
            acked: BTreeMap::new(),
            promised: BTreeSet::new(),
            evidence: Vec::new(),
        };
        for number in 0..count {
            let signer = world.signer(&format!("node {number}"));
            world.nodes.push(Node {
                signer,
                key: PeerKey(signer.public_key()),
                holder: None,
                life: 0,
                durable: BTreeMap::new(),
                pending: Vec::new(),
                syncing: false,
                calls: BTreeMap::new(),
                served: BTreeMap::new(),
                lie: None,
                crash_plan: None,
            });
            world.restart(number);
        }
        world
    }

    fn signer(&mut self, name: &str) -> TagSigner {
        let signer = TagSigner { secret: Sha256::digest(name).into() };
        self.verifier.secrets.insert(signer.public_key(), signer.secret);
        signer
    }

    fn owner(&mut self, name: &str, class: Class, level: u8, ttl_ms: u64) -> Owner {
        let signer = self.signer(name);
        let (name, device) = (b"notes".to_vec(), DeviceId([1; 32]));
        Owner {
            signer,
            name,
            class,
            level,
            ttl_ms,
            renew_ms: 0,
            term: 1,
            device,
            seq: 0,
            older: Vec::new(),
            forgot_until_ms: 0,
            last: None,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    fn node_of(&self, key: &PeerKey) -> usize {
        self.nodes.iter().position(|node| node.key == *key).expect("a node of this world")
    }

    // What tests do.

    fn start_put(&mut self, task: PutTask) -> usize {
        let (put, outs) = Put::start(task, self.timing.clone(), self.now);
        let task = self.add_task(Machine::Put(Box::new(put)));
        self.carry_out_put(task, outs);
        task
    }

    fn start_get(&mut self, task: GetTask) -> usize {
        self.start_get_blocked(task, BTreeSet::new())
    }

    fn start_get_blocked(&mut self, task: GetTask, blocked: BTreeSet<usize>) -> usize {
        let (get, outs) = Get::start(task, self.now);
        let task = self.add_task(Machine::Get(Box::new(get)));
        self.tasks[task].blocked = blocked;
        self.carry_out_get(task, outs);
        task
    }

    fn add_task(&mut self, machine: Machine) -> usize {
        self.tasks.push(Task {
            machine,
            blocked: BTreeSet::new(),
            began_us: self.now.mono_us,
            ended_us: None,
            put: None,
            get: None,
            settled: None,
            renewed: None,
            repairs: Vec::new(),
            placed: 0,
            abandoned: false,
            next_tick_us: None,
        });
        self.tasks.len() - 1
    }

    fn put(&mut self, owner: &mut Owner, holders: &[usize], content: &[u8]) -> Result<PutReceipt, PutError> {
        let task = owner.write(self, holders, content);
        self.finish_put(owner, task)
    }

    fn finish_put(&mut self, owner: &mut Owner, task: PutTask) -> Result<PutReceipt, PutError> {
        let task = self.start_put(task);
        self.run_until_ended(task);
        let result = self.tasks[task].put.clone().expect("ended");
        if let Ok(receipt) = &result {
            owner.committed(receipt);
        }
        result
    }

    fn get_task(&self, owner: &Owner, mode: Mode) -> GetTask {
        GetTask {
            key: owner.section(),
            owner: Some(owner.key()),
            mode,
            candidates: self.nodes.iter().map(|node| node.key).collect(),
            known: None,
            floor: None,
            fence: None,
            hedge_after_us: 20_000,
            want_content: true,
        }
    }

    fn get(&mut self, owner: &Owner, mode: Mode) -> Result<GetValue, GetError> {
        self.finish_get(self.get_task(owner, mode))
    }

    fn finish_get(&mut self, task: GetTask) -> Result<GetValue, GetError> {
        let task = self.start_get(task);
        self.run_until_ended(task);
        self.tasks[task].get.clone().expect("ended")
    }

    fn start_settle(&mut self, owner: &Owner, manifest: &SignedManifest, patience_us: u64) -> usize {
        self.start_settle_with(owner, manifest, patience_us, true)
    }

    fn start_settle_with(&mut self, owner: &Owner, manifest: &SignedManifest, patience_us: u64, completes: bool) -> usize {
        let task = SettleTask { manifest: manifest.clone(), order: manifest.order_never(&owner.signer), patience_us, completes };
        let (settle, outs) = Settle::start(task, self.now);
        let task = self.add_task(Machine::Settle(Box::new(settle)));
        self.carry_out_settle(task, outs);
        task
    }

    fn settle(&mut self, owner: &Owner, manifest: &SignedManifest) -> Settled {
        self.settle_with(owner, manifest, true)
    }

    /// As a new host does.
    fn settle_taken_over(&mut self, owner: &Owner, manifest: &SignedManifest) -> Settled {
        self.settle_with(owner, manifest, false)
    }

    fn settle_with(&mut self, owner: &Owner, manifest: &SignedManifest, completes: bool) -> Settled {
        let task = self.start_settle_with(owner, manifest, 2_000_000, completes);
        self.run_until_ended(task);
        self.run_ms(100); // what is told at the end arrives
        self.tasks[task].settled.clone().expect("ended")
    }

    fn took_us(&self, task: usize) -> u64 {
        self.tasks[task].ended_us.expect("ended") - self.tasks[task].began_us
    }

    fn run_until_ended(&mut self, task: usize) {
        let limit = self.now.mono_us + 60_000_000;
        while self.tasks[task].ended_us.is_none() {
            assert!(self.now.mono_us < limit, "task {task} never ended");
            self.step();
        }
    }

    fn run_ms(&mut self, millis: u64) {
        let end = self.now.mono_us + millis * 1000;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
        self.advance_to(end);
    }

    /// Tells a node something without a network. Its answer, unless that waits for the disk.
    fn hand_in(&mut self, node: usize, request: Request) -> Option<Response> {
        self.calls += 1;
        let (call, task) = (CallId(self.calls), usize::MAX);
        self.nodes[node].calls.insert(call, (task, Tag(0), request.clone()));
        let key = self.nodes[node].key;
        let Self { nodes, now, verifier, .. } = self;
        let Node { holder, signer, .. } = &mut nodes[node];
        let outs = holder.as_mut().expect("up").handle(call, key, request, *now, signer, verifier);
        self.carry_out_holder(node, outs)
    }

    /// The same, and waits for the answer.
    fn tell(&mut self, node: usize, request: Request) -> Response {
        let mut answer = self.hand_in(node, request);
        while answer.is_none() {
            let (pending, outs) = self.sync(node);
            assert!(pending > 0, "nothing is under way, and no answer came");
            answer = self.carry_out_holder(node, outs);
        }
        answer.expect("an answer")
    }

    fn crash(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.life += 1;
        node.holder = None;
        node.pending.clear();
        node.calls.clear();
        node.served.clear();
        (node.syncing, node.crash_plan) = (false, None);
    }

    fn restart(&mut self, number: usize) {
        self.crash(number);
        let (now, limits) = (self.now, self.limits.clone());
        let node = &mut self.nodes[number];
        let mut holder = Holder::new(node.key, limits);
        for ((table, key), value) in &node.durable {
            if matches!(table, Table::Prepared | Table::Head | Table::Fence) || *table == Table::Meta && Holder::is_meta(key) {
                holder.load(*table, key, value, now).expect("what was stored loads");
            }
        }
        node.served = holder.loaded_heads(now).collect();
        node.holder = Some(holder);
        let life = node.life;
        self.at(now.mono_us + self.holder_tick_us, Event::HolderTick { node: number, life });
    }

    fn lose_disk(&mut self, node: usize) {
        self.crash(node);
        self.nodes[node].durable.clear();
    }

    /// Loses the disk, notices it, and starts again.
    fn lose_store(&mut self, number: usize) {
        self.lose_disk(number);
        let Write { table, key, value } = lost_store_mark(self.now.wall_ms);
        self.nodes[number].durable.insert((table, key), value.expect("a mark"));
        self.restart(number);
    }

    fn up(&self, node: usize) -> bool {
        self.nodes[node].holder.is_some()
    }

    fn holder(&self, node: usize) -> &Holder {
        self.nodes[node].holder.as_ref().expect("up")
    }

    /// Nodes with the manifest's shard on disk, byte for byte.
    fn shards_on_disk(&self, manifest: &Manifest) -> usize {
        let has = |(index, peer): &(usize, &PeerKey)| {
            let key = [manifest.key.0, manifest.shard_hashes[*index].0].concat();
            let bytes = self.nodes[self.node_of(peer)].durable.get(&(Table::Shard, key));
            bytes.is_some_and(|bytes| content_hash(bytes) == manifest.shard_hashes[*index])
        };
        manifest.holders.iter().enumerate().filter(has).count()
    }

    fn records(&self, node: usize, table: Table) -> usize {
        self.nodes[node].durable.keys().filter(|(other, _)| *other == table).count()
    }

    fn shard_bytes_sent(&self, task: usize) -> usize {
        self.sent.iter().filter(|sent| sent.task == task && sent.kind == "prepare").map(|sent| sent.shard_bytes).sum()
    }

    // How the world turns.

    fn at(&mut self, at_us: u64, event: Event) {
        self.events += 1;
        self.queue.insert((at_us, self.events), event);
    }

    fn advance_to(&mut self, mono_us: u64) {
        let passed_us = mono_us.saturating_sub(self.now.mono_us);
        let whole_ms = (self.now.mono_us % 1000 + passed_us) / 1000;
        self.now = Now { wall_ms: self.now.wall_ms + whole_ms, mono_us: self.now.mono_us + passed_us };
    }

    fn step(&mut self) {
        let ((at, _), event) = self.queue.pop_first().expect("holders tick for ever");
        self.advance_to(at);
        match event {
            Event::Request { task, tag, node, request } => self.arrive(task, tag, node, request),
            Event::Reply { task, tag, reply } => self.come_back(task, tag, reply),
            Event::Synced { node, life } if self.nodes[node].life == life => {
                let (_, outs) = self.sync(node);
                self.carry_out_holder(node, outs);
            }
            Event::HolderTick { node, life } if self.nodes[node].life == life => {
                let now = self.now;
                if let Some(holder) = &mut self.nodes[node].holder {
                    let outs = holder.tick(now);
                    self.carry_out_holder(node, outs);
                    self.at(now.mono_us + self.holder_tick_us, Event::HolderTick { node, life });
                }
            }
            Event::Probed { node, life, peer } if self.nodes[node].life == life => {
                let (now, answered) = (self.now, self.up(self.node_of(&peer)));
                if let Some(holder) = &mut self.nodes[node].holder {
                    holder.probed(&peer, answered, now);
                }
            }
            Event::Synced { .. } | Event::HolderTick { .. } | Event::Probed { .. } => {}
            Event::TaskTick { task } => {
                self.tasks[task].next_tick_us = None;
                let now = self.now;
                match &mut self.tasks[task].machine {
                    Machine::Put(put) => {
                        let outs = put.tick(now);
                        self.carry_out_put(task, outs);
                    }
                    Machine::Get(get) => {
                        let outs = get.tick(now);
                        self.carry_out_get(task, outs);
                    }
                    Machine::Settle(settle) => {
                        let outs = settle.tick(now);
                        self.carry_out_settle(task, outs);
                    }
                    Machine::Recover(recover, ..) => {
                        let outs = recover.tick(now);
                        self.carry_out_recover(task, outs);
                    }
                    Machine::Renewal(renewal, ..) => {
                        let outs = renewal.tick(now);
                        self.carry_out_renewal(task, outs);
                    }
                }
            }
        }
    }

    fn delay(&mut self) -> u64 {
        let (least, most) = self.net.delay_us;
        least + self.below(most - least + 1)
    }

    /// Sends, loses or doubles.
    fn travel(&mut self, make: impl Fn() -> Event) {
        if self.below(1000) < self.net.lost_permille {
            return;
        }
        let copies = if self.below(1000) < self.net.doubled_permille { 2 } else { 1 };
        for _ in 0..copies {
            let at = self.now.mono_us + self.delay();
            self.at(at, make());
        }
    }

    fn send(&mut self, task: usize, tag: Tag, to: &PeerKey, request: Request) {
        let node = self.node_of(to);
        let (kind, shard_bytes) = match &request {
            Request::Prepare { shard, .. } => ("prepare", shard.as_ref().map_or(0, Vec::len)),
            Request::Commit { .. } => ("commit", 0),
            Request::Head { .. } => ("head", 0),
            Request::Shard { .. } => ("shard", 0),
            Request::Recall { .. } => ("recall", 0),
            Request::Never { .. } => ("never", 0),
            Request::Abort { .. } => ("abort", 0),
            Request::Renew { .. } => ("renew", 0),
            Request::Handover { .. } => ("handover", 0),
            Request::Take { shard, .. } => ("take", shard.len()),
            Request::Probe { .. } => ("probe", 0),
        };
        self.sent.push(Sent { task, node, kind, shard_bytes });
        if !self.tasks[task].blocked.contains(&node) {
            self.travel(|| Event::Request { task, tag, node, request: request.clone() });
        }
    }

    fn arrive(&mut self, task: usize, tag: Tag, node: usize, request: Request) {
        if !self.up(node) {
            if self.net.refuses {
                self.travel(|| Event::Reply { task, tag, reply: Reply::Unreachable });
            }
            return;
        }
        if let Some(response) = self.lie(node, &request) {
            return self.travel(|| Event::Reply { task, tag, reply: Reply::Answer(response.clone()) });
        }
        self.calls += 1;
        let call = CallId(self.calls);
        self.nodes[node].calls.insert(call, (task, tag, request.clone()));
        let from = self.nodes[node].key;
        let Self { nodes, now, verifier, .. } = self;
        let Node { holder, signer, .. } = &mut nodes[node];
        let outs = holder.as_mut().expect("up").handle(call, from, request, *now, signer, verifier);
        self.carry_out_holder(node, outs);
    }

    fn come_back(&mut self, task: usize, tag: Tag, reply: Reply) {
        let Self { tasks, now, verifier, .. } = self;
        if tasks[task].abandoned {
            return;
        }
        match &mut tasks[task].machine {
            Machine::Put(put) => {
                let outs = put.reply(tag, reply, *now, verifier);
                self.carry_out_put(task, outs);
            }
            Machine::Get(get) => {
                let outs = get.reply(tag, reply, *now, verifier);
                self.carry_out_get(task, outs);
            }
            Machine::Settle(settle) => {
                let outs = settle.reply(tag, reply, *now, verifier);
                self.carry_out_settle(task, outs);
            }
            Machine::Recover(recover, ..) => {
                let outs = recover.reply(tag, reply, *now, verifier);
                self.carry_out_recover(task, outs);
            }
            Machine::Renewal(renewal, ..) => {
                let outs = renewal.reply(tag, reply, *now, verifier);
                self.carry_out_renewal(task, outs);
            }
        }
    }

    fn carry_out_put(&mut self, task: usize, outs: Vec<PutOut>) {
        if self.tasks[task].abandoned {
            return;
        }
        for out in outs {
            let entry = &mut self.tasks[task];
            match out {
                PutOut::Send { tag, to, request } => self.send(task, tag, &to, request),
                PutOut::Committed(receipt) => {
                    assert!(entry.put.is_none(), "one outcome");
                    entry.placed = receipt.placed;
                    (entry.put, entry.ended_us) = (Some(Ok(*receipt)), Some(self.now.mono_us));
                }
                PutOut::Placed { placed } => entry.placed = placed,
                PutOut::Failed(error) => {
                    assert!(entry.put.is_none(), "one outcome");
                    (entry.put, entry.ended_us) = (Some(Err(error)), Some(self.now.mono_us));
                }
            }
        }
        self.schedule_tick(task);
    }

    fn carry_out_get(&mut self, task: usize, outs: Vec<GetOut>) {
        for out in outs {
            match out {
                GetOut::Send { tag, to, request } => self.send(task, tag, &to, request),
                GetOut::Done(result) => {
                    self.repair(task, &result);
                    let entry = &mut self.tasks[task];
                    assert!(entry.get.is_none(), "one outcome");
                    (entry.get, entry.ended_us) = (Some(result.map(|value| *value)), Some(self.now.mono_us));
                }
            }
        }
        self.schedule_tick(task);
    }

    fn carry_out_settle(&mut self, task: usize, outs: Vec<SettleOut>) {
        if self.tasks[task].abandoned {
            return;
        }
        for out in outs {
            match out {
                SettleOut::Send { tag, to, request } => self.send(task, tag, &to, request),
                SettleOut::Done(settled) => {
                    let entry = &mut self.tasks[task];
                    assert!(entry.settled.is_none(), "one outcome");
                    (entry.settled, entry.ended_us) = (Some(settled), Some(self.now.mono_us));
                }
            }
        }
        self.schedule_tick(task);
    }

    /// Whoever renewed a lease hands their shards to the holders that have none.
    fn repair(&mut self, task: usize, result: &Result<Box<GetValue>, GetError>) {
        let repairs = std::mem::take(&mut self.tasks[task].repairs);
        let Ok(value) = result else { return };
        if repairs.is_empty() {
            return;
        }
        let shards = encode(&value.content, value.head.manifest.shape).expect("content");
        let (put, outs) = Put::repair(value.head.clone(), shards, &repairs, self.timing.clone(), self.now);
        let task = self.add_task(Machine::Put(Box::new(put)));
        self.carry_out_put(task, outs);
    }

    fn start_renewal(&mut self, node: usize, head: CertifiedHead, lock: Option<persona_fragments::Link>) {
        let me = self.nodes[node].key;
        let up: Vec<PeerKey> = self.nodes.iter().filter(|node| node.holder.is_some()).map(|node| node.key).collect();
        let candidate = |peer: &PeerKey| Candidate { peer: *peer, connected_ms: Some(0), prefix: None };
        let candidates = up.iter().filter(|peer| **peer != me).map(candidate).collect();
        let task = RenewalTask { head, me, lock, candidates, diversity: None, bystanders: Vec::new() };
        let (renewal, outs) = Renewal::start(task, self.now);
        let task = self.add_task(Machine::Renewal(Box::new(renewal), node, self.nodes[node].life));
        self.tasks[task].blocked = (0..self.renewals_blocked).map(|_| self.below(self.nodes.len() as u64) as usize).collect();
        self.carry_out_renewal(task, outs);
    }

    fn carry_out_renewal(&mut self, task: usize, outs: Vec<RenewalOut>) {
        for out in outs {
            let Machine::Renewal(renewal, node, life) = &self.tasks[task].machine else { unreachable!("a renewal") };
            let (node, head) = (*node, renewal.head().clone());
            if self.nodes[node].life != *life || !self.up(node) {
                self.tasks[task].abandoned = true;
                return;
            }
            match out {
                RenewalOut::Send { tag, to, request } => self.send(task, tag, &to, request),
                RenewalOut::Lead { issued_at_ms, replaced, lock } => {
                    let Self { nodes, now, verifier, .. } = self;
                    let holder = nodes[node].holder.as_mut().expect("up");
                    let outs = holder.lead(&head, issued_at_ms, &replaced, lock.as_ref(), *now, verifier);
                    self.carry_out_holder(node, outs);
                }
                RenewalOut::Done(renewed) => {
                    if let Renewed::Certified { head, lacking } = &renewed
                        && !lacking.is_empty()
                    {
                        let (key, owner, candidates) = (head.manifest.key, Some(head.manifest.owner), head.holders().to_vec());
                        let (known, repairs) = (Some((**head).clone()), lacking.clone());
                        let get = GetTask {
                            key,
                            owner,
                            mode: Mode::Regular,
                            candidates,
                            known,
                            floor: None,
                            fence: None,
                            hedge_after_us: 20_000,
                            want_content: true,
                        };
                        let get = self.start_get(get);
                        self.tasks[get].repairs = repairs;
                    }
                    (self.tasks[task].renewed, self.tasks[task].ended_us) = (Some(renewed), Some(self.now.mono_us));
                }
            }
        }
        self.schedule_tick(task);
    }

    fn start_recover(&mut self, node: usize, task: RecoverTask) {
        let key = task.key;
        let (recover, outs) = Recover::start(task, self.now);
        let task = self.add_task(Machine::Recover(Box::new(recover), node, self.nodes[node].life, key));
        let blocked = (0..self.recoveries_blocked).map(|_| self.below(self.nodes.len() as u64) as usize).collect();
        self.tasks[task].blocked = blocked;
        self.carry_out_recover(task, outs);
    }

    fn carry_out_recover(&mut self, task: usize, outs: Vec<RecoverOut>) {
        for out in outs {
            match out {
                RecoverOut::Send { tag, to, request } => self.send(task, tag, &to, request),
                RecoverOut::Done(recovered) => {
                    let now = self.now;
                    self.tasks[task].ended_us = Some(now.mono_us);
                    let Machine::Recover(_, node, life, key) = &self.tasks[task].machine else { unreachable!("a recovery") };
                    let (node, life, key) = (*node, *life, *key);
                    if self.nodes[node].life == life {
                        let holder = self.nodes[node].holder.as_mut().expect("up");
                        let outs = holder.recovered(&key, recovered, now);
                        self.carry_out_holder(node, outs);
                    }
                }
            }
        }
        self.schedule_tick(task);
    }

    fn schedule_tick(&mut self, task: usize) {
        let entry = &self.tasks[task];
        let deadline = match &entry.machine {
            Machine::Put(put) => put.deadline(),
            Machine::Get(get) => get.deadline(),
            Machine::Settle(settle) => settle.deadline(),
            Machine::Recover(recover, ..) => recover.deadline(),
            Machine::Renewal(renewal, ..) => renewal.deadline(),
        };
        let Some(deadline) = deadline else { return };
        if entry.next_tick_us.is_none_or(|next| deadline < next) && !entry.abandoned {
            let at = deadline.max(self.now.mono_us + 1);
            self.tasks[task].next_tick_us = Some(at);
            self.at(at, Event::TaskTick { task });
        }
    }

    /// Carries out what a holder wants. Returns the answer to a call that a test made itself.
    fn carry_out_holder(&mut self, node: usize, outs: Vec<HolderOut>) -> Option<Response> {
        let mut told = None;
        for out in outs {
            if !self.up(node) {
                return None; // crashed on the way
            }
            match out {
                HolderOut::Reply { call, response } => {
                    let (task, tag, request) = self.nodes[node].calls.remove(&call).expect("each call is answered once");
                    self.check_promise(node, &request, &response);
                    if task == usize::MAX {
                        told = Some(response);
                        continue;
                    }
                    let response = self.twist(node, response);
                    if !self.tasks[task].blocked.contains(&node) {
                        self.travel(|| Event::Reply { task, tag, reply: Reply::Answer(response.clone()) });
                    }
                }
                HolderOut::Persist { id, writes } => {
                    let places: BTreeSet<_> = writes.iter().map(|write| (write.table, &write.key)).collect();
                    assert_eq!(places.len(), writes.len(), "a batch writes each record once");
                    self.nodes[node].pending.push((id, writes));
                    if let Some((left, after_sync)) = self.nodes[node].crash_plan {
                        if left == 0 {
                            if after_sync {
                                self.apply_pending(node);
                            }
                            self.crash(node);
                            return None;
                        }
                        self.nodes[node].crash_plan = Some((left - 1, after_sync));
                    }
                    if !std::mem::replace(&mut self.nodes[node].syncing, true) {
                        let (at, life) = (self.now.mono_us + self.sync_us, self.nodes[node].life);
                        self.at(at, Event::Synced { node, life });
                    }
                }
                HolderOut::Read { id, table, key } => {
                    let now = self.now;
                    let value = self.nodes[node].durable.get(&(table, key)).cloned();
                    let outs = self.nodes[node].holder.as_mut().expect("up").read_done(id, value, now);
                    told = self.carry_out_holder(node, outs).or(told);
                }
                HolderOut::HeadChanged { key, record } => match record {
                    Some(record) => drop(self.nodes[node].served.insert(key, record)),
                    None => drop(self.nodes[node].served.remove(&key)),
                },
                HolderOut::Equivocation(evidence) => {
                    assert_eq!(Equivocation::from_bytes(&evidence.to_bytes(), &self.verifier).as_ref(), Ok(&*evidence));
                    self.evidence.push((node, *evidence));
                }
                HolderOut::Recover { key, known, asked } => {
                    let candidates = self.nodes.iter().map(|node| node.key).take(20).collect();
                    let (known, asked) = (known.map(|head| *head), asked.map(|manifest| *manifest));
                    let task = RecoverTask { key, me: self.nodes[node].key, known, asked, candidates };
                    self.start_recover(node, task);
                }
                HolderOut::Lead { .. } if self.no_leaders => {}
                HolderOut::Lead { head, lock } => self.start_renewal(node, *head, lock),
                HolderOut::Led { key, consent, ack } => {
                    let life = self.nodes[node].life;
                    let leads = |task: &Task| match &task.machine {
                        Machine::Renewal(renewal, led, in_life) => {
                            *led == node && *in_life == life && renewal.head().manifest.key == key && !renewal.finished()
                        }
                        _ => false,
                    };
                    if let Some(task) = self.tasks.iter().rposition(leads) {
                        let now = self.now;
                        let Machine::Renewal(renewal, ..) = &mut self.tasks[task].machine else { unreachable!("a renewal") };
                        let outs = renewal.consented(consent, ack, now);
                        self.carry_out_renewal(task, outs);
                    }
                }
                HolderOut::Probe { peer, .. } => {
                    let up = self.up(self.node_of(&peer));
                    let after_us = if up { self.delay() * 2 } else { 2_000_000 };
                    let (at, life) = (self.now.mono_us + after_us, self.nodes[node].life);
                    self.at(at, Event::Probed { node, life, peer });
                }
            }
        }
        told
    }

    fn apply_pending(&mut self, node: usize) -> Vec<PersistId> {
        let node = &mut self.nodes[node];
        node.syncing = false;
        let mut ids = Vec::new();
        for (id, writes) in std::mem::take(&mut node.pending) {
            ids.push(id);
            for Write { table, key, value } in writes {
                match value {
                    Some(value) => drop(node.durable.insert((table, key), value)),
                    None => drop(node.durable.remove(&(table, key))),
                }
            }
        }
        ids
    }

    fn sync(&mut self, node: usize) -> (usize, Vec<HolderOut>) {
        let ids = self.apply_pending(node);
        let now = self.now;
        let Node { holder, signer, .. } = &mut self.nodes[node];
        let outs = holder.as_mut().map_or(Vec::new(), |holder| holder.persisted(&ids, now, signer));
        (ids.len(), outs)
    }

    /// I8, I9: no second manifest of a version, and nothing promised that is not on the disk. The layout of the keys is the page's.
    fn check_promise(&mut self, number: usize, request: &Request, response: &Response) {
        let node = &self.nodes[number];
        match (request, response) {
            (Request::Prepare { manifest, index, .. }, Response::Acked { .. }) => {
                let manifest = SignedManifest::trusted(manifest.clone()).expect("acked");
                let version = manifest.version;
                let prepared = [&manifest.key.0[..], &version.term.to_be_bytes(), &version.device.0, &version.seq.to_be_bytes()].concat();
                let hash = manifest.shard_hashes[usize::from(*index)];
                let shard = [manifest.key.0, hash.0].concat();
                assert!(node.durable.contains_key(&(Table::Prepared, prepared)), "acked before the manifest was durable");
                let bytes = node.durable.get(&(Table::Shard, shard)).expect("acked before the shard was durable");
                assert_eq!(content_hash(bytes), hash);
                let before = self.acked.insert((number, manifest.key, version), manifest.hash());
                assert!(before.is_none_or(|before| before == manifest.hash()), "acked two manifests of one version");
                assert!(!self.promised.contains(&(number, manifest.key, version)), "acked what it promised never to ack");
            }
            (Request::Never { manifest, .. }, Response::Promised { .. }) => {
                let manifest = SignedManifest::trusted(manifest.clone()).expect("promised");
                let version = manifest.version;
                let prepared = [&manifest.key.0[..], &version.term.to_be_bytes(), &version.device.0, &version.seq.to_be_bytes()].concat();
                assert!(node.durable.contains_key(&(Table::Prepared, prepared)), "promised before the promise was durable");
                assert!(!self.acked.contains_key(&(number, manifest.key, version)), "promised never to ack what it had acked");
                self.promised.insert((number, manifest.key, version));
            }
            (Request::Handover { head, index, .. }, Response::Acked { .. })
            | (Request::Renew { head, index, .. }, Response::Consented { ack: Some(_), .. }) => {
                let manifest = SignedManifest::trusted(head.manifest.clone()).expect("signed for");
                let shard = [manifest.key.0, manifest.shard_hashes[usize::from(*index)].0].concat();
                assert!(node.durable.contains_key(&(Table::Shard, shard)), "acked a link without the shard");
            }
            (Request::Commit { head } | Request::Take { head, .. }, Response::Committed | Response::Handed { .. }) => {
                let manifest = SignedManifest::trusted(head.manifest.clone()).expect("committed");
                assert!(node.durable.contains_key(&(Table::Head, manifest.key.0.to_vec())), "confirmed before the head was durable");
            }
            _ => {}
        }
    }

    fn lie(&mut self, node: usize, request: &Request) -> Option<Response> {
        let lie = self.nodes[node].lie?;
        let key = match request {
            Request::Prepare { manifest, .. } => SignedManifest::trusted(manifest.clone()).ok()?.key,
            Request::Commit { head } | Request::Renew { head, .. } | Request::Handover { head, .. } | Request::Take { head, .. } => {
                SignedManifest::trusted(head.manifest.clone()).ok()?.key
            }
            Request::Never { manifest, .. } | Request::Abort { aborted: AbortWire { manifest, .. } } => {
                SignedManifest::trusted(manifest.clone()).ok()?.key
            }
            Request::Head { key, .. } | Request::Shard { key, .. } | Request::Recall { key, .. } => *key,
            Request::Probe { .. } => return None,
        };
        let frozen = lie == Lie::Stale && self.holder(node).head(&key, self.now).is_some();
        match (lie, request) {
            (Lie::AckWithoutStoring, Request::Prepare { .. }) => self.false_ack(node, request),
            (Lie::Stale, Request::Prepare { .. }) if frozen => self.false_ack(node, request),
            (Lie::AckWithoutStoring | Lie::Stale, Request::Never { .. }) => self.false_never(node, request),
            (Lie::AckWithoutStoring, Request::Commit { .. } | Request::Take { .. }) => Some(Response::Committed),
            (Lie::Stale, Request::Commit { .. }) if frozen => Some(Response::Committed),
            (Lie::AckWithoutStoring | Lie::Deny, Request::Head { .. }) => Some(Response::Head(HeadAnswer::default())),
            (Lie::AckWithoutStoring | Lie::Deny, Request::Shard { .. }) => Some(Response::Absent),
            (Lie::AckWithoutStoring | Lie::Deny, Request::Recall { .. }) => Some(Response::Recalled(RecallAnswer::default())),
            (Lie::Recovering, _) => Some(Response::Recovering),
            (Lie::Refuse, Request::Never { .. } | Request::Prepare { .. }) => Some(Response::NeedShard),
            (Lie::Name, Request::Commit { head }) => {
                let manifest = SignedManifest::trusted(head.manifest.clone()).ok()?;
                let version = Version { seq: manifest.version.seq - 1, ..manifest.version };
                let (before, mut holders) = (manifest.holders.clone(), manifest.holders.clone());
                holders[0] = self.nodes[self.nodes.len() - 1].key;
                let (expires_at_ms, renew_until_ms) = (manifest.expires_at_ms(), manifest.renew_until_ms);
                Some(Response::Handed { sets: vec![HandedSet { version, before, holders, expires_at_ms, renew_until_ms }] })
            }
            (Lie::Babble, _) => Some(match self.below(4) {
                0 => Response::NeedShard,
                1 => Response::Committed,
                2 => Response::Shard { index: 0, bytes: vec![0; 7] },
                _ => Response::Recovering,
            }),
            _ => None,
        }
    }

    fn false_ack(&mut self, node: usize, request: &Request) -> Option<Response> {
        let Request::Prepare { manifest, index, .. } = request else { return None };
        let manifest = SignedManifest::trusted(manifest.clone()).ok()?;
        let ack = sign_batch(&[manifest.ack_leaf(*index)], &self.nodes[node].signer).remove(0);
        Some(Response::Acked { ack })
    }

    fn false_never(&mut self, node: usize, request: &Request) -> Option<Response> {
        let Request::Never { manifest, index, .. } = request else { return None };
        let manifest = SignedManifest::trusted(manifest.clone()).ok()?;
        let never = sign_batch(&[manifest.never_leaf(*index)], &self.nodes[node].signer).remove(0);
        Some(Response::Promised { never })
    }

    fn twist(&mut self, node: usize, response: Response) -> Response {
        match (self.nodes[node].lie, response) {
            (Some(Lie::Corrupt), response) => self.corrupt(response),
            (Some(Lie::BadAck), Response::Acked { mut ack }) => {
                ack.signature.0[0] ^= 1;
                Response::Acked { ack }
            }
            (Some(Lie::BadAck), Response::Promised { mut never }) => {
                never.signature.0[0] ^= 1;
                Response::Promised { never }
            }
            (Some(Lie::BadAck), Response::Prepared(mut prepared)) => {
                prepared.ack.signature.0[0] ^= 1;
                Response::Prepared(prepared)
            }
            (Some(Lie::BadAck), Response::Head(mut answer)) => {
                answer.prepared.iter_mut().for_each(|prepared| prepared.ack.signature.0[0] ^= 1);
                Response::Head(answer)
            }
            (Some(Lie::Forge), Response::Head(mut answer)) => {
                if let Some(prepared) = answer.prepared.pop() {
                    let manifest = SignedManifest::trusted(prepared.manifest.clone()).expect("prepared");
                    let ack = |index| sign_batch(&[manifest.ack_leaf(index)], &self.nodes[node].signer).remove(0);
                    let certificate = Certificate { acks: (0..manifest.shape.quorum()).map(ack).collect() };
                    answer.committed = Some(CertifiedHead { manifest, certificate, lease: None }.to_wire());
                }
                Response::Head(answer)
            }
            (_, response) => response,
        }
    }

    fn corrupt(&mut self, response: Response) -> Response {
        let bit = self.rng.next_u32() as usize;
        let flip = |bytes: &mut Vec<u8>| {
            let place = bit / 8 % bytes.len();
            bytes[place] ^= 1 << (bit % 8);
        };
        match response {
            Response::Shard { index, mut bytes } => {
                flip(&mut bytes);
                Response::Shard { index, bytes }
            }
            Response::Head(mut answer) => {
                if let Some(shard) = &mut answer.shard {
                    flip(&mut shard.bytes);
                }
                Response::Head(answer)
            }
            other => other,
        }
    }
}

fn head_of(receipt: &PutReceipt) -> CertifiedHead {
    receipt.head.clone()
}
