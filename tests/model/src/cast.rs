//! The real machines, each step run once.
//!
//! A local state of a `Put`, a `Get` or a `Holder` is interned: it has a number, and what it does with a message is remembered under both
//! numbers. Two states of a put or a get are one if all their fields are the same; two of a holder if the same records are on its disk,
//! and that is checked: at every step a holder that was just loaded from the disk must answer as the one that went on.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use persona_fragments::{
    Ack, Certificate, CertifiedHead, Class, DeviceId, Manifest, OwnerKey, PeerKey, SectionKey, Shape, Signature, SignedManifest, Signer,
    Version,
    certificate::HeadWire,
    coding::{content_hash, encode, shard_hashes, shard_matches},
    manifest::ManifestWire,
    sign_batch, wire,
};
use persona_mesh_proto::{
    CallId, Get, GetError, GetOut, GetTask, Holder, HolderLimits, HolderOut, Mode, Now, Put, PutOut, PutTask, Reply, Request, Response,
    Table, Tag, Timing, Write,
    message::{HeadAnswer, PreparedWire, ShardWire},
};
use persona_sim::keys::{Notary, signer};

use crate::scene::{LIAR, Scene, WRITES_MAX};

/// When everything takes place: time stands still, but for one timer.
const NOW: Now = Now { wall_ms: 1_800_000_000_000, mono_us: 1_000_000 };

/// The level whose shape with four holders is n = 4, k = 2, f = 1.
const LEVEL: u8 = 2;

/// The section's name.
const NAME: &[u8] = b"behavior";

/// One of the interned things.
pub type Id = u32;

/// What a put or a get is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// An answer to the request with this tag.
    Answer(u32, Id),
    /// No answer to it: whoever was asked died.
    Unreachable(u32),
    /// Its next deadline has come.
    Timer,
}

/// What begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Begun {
    /// The put of this manifest.
    Put(usize),
    /// A get in this mode.
    Get(Mode),
}

/// A request that a put or a get wants sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// What it calls the request.
    pub tag: u32,
    /// To whom.
    pub to: usize,
    /// What.
    pub request: Id,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A put, and whose acks are in its certificate: one bit for each node.
    Committed(u8),
    /// A put, otherwise.
    Failed(String),
    /// A get: which manifest, whether its bytes are what was put, whether it is said to be atomic.
    Value {
        /// Its number.
        manifest: usize,
        /// Whether the content is what was put.
        right: bool,
        /// Whether the value is labelled atomic.
        atomic: bool,
    },
    /// A get, otherwise.
    Nothing(GetError),
}

/// What a put or a get does with an input.
#[derive(Clone, Debug)]
pub struct TaskStep {
    /// Its state then.
    pub next: Id,
    /// What it sends.
    pub sends: Vec<Send>,
    /// If it is over.
    pub end: Option<End>,
}

/// What a holder does with a request.
#[derive(Clone, Copy, Debug)]
pub struct HolderStep {
    /// Its state once all is on the disk.
    pub next: Id,
    /// Its answer.
    pub answer: Id,
    /// Whether it answered before all was on the disk.
    pub hasty: bool,
}

/// What is known about a holder's state.
#[derive(Clone, Debug)]
pub struct HolderFacts {
    /// Which manifests it ever acked: one bit each.
    pub acked: u8,
    /// Whose shard is on its disk, byte for byte.
    pub shards: u8,
    /// The manifest that is certified on its disk.
    pub head: Option<usize>,
}

type Records = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

struct HolderState {
    node: usize,
    records: Records,
    facts: HolderFacts,
    /// One way to get here: what it was asked since its disk was empty.
    history: Vec<Id>,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "few, and kept for long")]
enum Machine {
    Put(Put),
    Get(Get),
}

struct TaskState {
    machine: Machine,
    now: Now,
}

/// Things with numbers.
struct Interner<T> {
    things: Vec<T>,
    ids: HashMap<Vec<u8>, Id>,
}

impl<T> Interner<T> {
    fn new() -> Self {
        Self { things: Vec::new(), ids: HashMap::new() }
    }

    fn intern(&mut self, name: Vec<u8>, thing: impl FnOnce() -> T) -> Id {
        let Self { things, ids } = self;
        *ids.entry(name).or_insert_with(|| {
            things.push(thing());
            Id::try_from(things.len() - 1).expect("fewer than four billion")
        })
    }

    fn get(&self, id: Id) -> &T {
        &self.things[id as usize]
    }
}

/// All that takes part in a scene, and all that it was seen to do.
pub struct Cast {
    scene: Scene,
    signers: Vec<Box<dyn Signer>>,
    peers: Vec<PeerKey>,
    notary: Arc<Notary>,
    key: SectionKey,
    owner: OwnerKey,
    /// Ordered as readers order them.
    manifests: Vec<SignedManifest>,
    contents: Vec<Vec<u8>>,
    shards: Vec<Vec<Vec<u8>>>,
    requests: Interner<Request>,
    answers: Interner<Response>,
    holders: Interner<HolderState>,
    holder_steps: HashMap<(Id, Id), HolderStep>,
    tasks: Interner<TaskState>,
    task_steps: HashMap<(Id, Input), Arc<TaskStep>>,
    lies: HashMap<(Id, [u8; WRITES_MAX], u8), Arc<Vec<Id>>>,
    begun: HashMap<Begun, Arc<TaskStep>>,
}

impl Cast {
    /// Everybody, before anything has happened.
    pub fn of(scene: &Scene) -> Self {
        let secret = |number: usize| [number as u8 + 1; 32];
        let signers: Vec<Box<dyn Signer>> = (0..scene.nodes).map(|node| signer(secret(node), false)).collect();
        let peers: Vec<PeerKey> = signers.iter().map(|signer| PeerKey(signer.public_key())).collect();
        let notary = Notary::of((0..=scene.nodes).map(secret));
        let owner_signer = signer(secret(scene.nodes), false);
        let owner = OwnerKey(owner_signer.public_key());
        let key = SectionKey::derive(&owner, NAME);
        let mut written: Vec<(SignedManifest, Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
        for (write, set) in scene.writes.iter().enumerate() {
            let content = format!("what was put the {write}th time").into_bytes();
            let shape = Shape::for_level(LEVEL, set.len()).expect("holders");
            let shards = encode(&content, shape).expect("content");
            let seq = if scene.twins { 1 } else { write as u64 + 1 };
            let version = Version { term: 1, device: DeviceId([1; 32]), seq };
            let members = |set: &[usize]| set.iter().map(|node| 1u8 << node).sum::<u8>();
            let moved = |before: &usize| !scene.twins && members(&scene.writes[*before]) != members(set);
            let manifest = Manifest {
                key,
                owner,
                name: NAME.to_vec(),
                version,
                content_version: version,
                class: Class::Active,
                level: LEVEL,
                issued_at_ms: NOW.wall_ms,
                ttl_ms: 30_000,
                renew_until_ms: 0,
                content_len: content.len() as u32,
                shape,
                content_hash: content_hash(&content),
                shard_hashes: shard_hashes(&shards),
                holders: set.iter().map(|node| peers[*node]).collect(),
                older: (0..write).filter(moved).map(|before| written[before].0.as_older_set()).collect(),
            };
            written.push((SignedManifest::sign(manifest, owner_signer.as_ref()).expect("a sound manifest"), content, shards));
        }
        written.sort_by_key(|(manifest, ..)| (manifest.version, manifest.hash()));
        let (manifests, rest): (Vec<_>, Vec<_>) =
            written.into_iter().map(|(manifest, content, shards)| (manifest, (content, shards))).unzip();
        let (contents, shards) = rest.into_iter().unzip();
        Self {
            scene: scene.clone(),
            signers,
            peers,
            notary,
            key,
            owner,
            manifests,
            contents,
            shards,
            requests: Interner::new(),
            answers: Interner::new(),
            holders: Interner::new(),
            holder_steps: HashMap::new(),
            tasks: Interner::new(),
            task_steps: HashMap::new(),
            lies: HashMap::new(),
            begun: HashMap::new(),
        }
    }

    /// What is put, in the order in which readers prefer it.
    pub fn manifests(&self) -> &[SignedManifest] {
        &self.manifests
    }

    /// How many local states of holders, of puts and gets, and how many of their steps were run.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.holders.things.len(), self.tasks.things.len(), self.holder_steps.len() + self.task_steps.len())
    }

    fn node_of(&self, peer: &PeerKey) -> usize {
        self.peers.iter().position(|other| other == peer).expect("one of the scene's nodes")
    }

    fn number_of(&self, manifest: &SignedManifest) -> usize {
        self.manifests.iter().position(|other| other.hash() == manifest.hash()).expect("one of the scene's manifests")
    }

    /// Whether a request changes nothing at its receiver: once its asker is gone it need not arrive.
    pub fn only_asks(&self, request: Id) -> bool {
        matches!(self.requests.get(request), Request::Head { .. } | Request::Shard { .. })
    }

    fn which(&self, wire: &ManifestWire) -> String {
        let number = self.manifests.iter().position(|manifest| manifest.wire() == wire);
        number.map_or_else(|| "?".into(), |number| (number + 1).to_string())
    }

    /// A request in words.
    pub fn request_words(&self, request: Id) -> String {
        match self.requests.get(request) {
            Request::Prepare { manifest, shard, .. } => {
                format!("PREPARE {}{}", self.which(manifest), if shard.is_some() { "" } else { " without its shard" })
            }
            Request::Commit { head } => format!("COMMIT {}", self.which(&head.manifest)),
            Request::Head { .. } => "HEAD".into(),
            Request::Shard { .. } => "SHARD".into(),
            other => format!("{other:?}"),
        }
    }

    /// An answer in words.
    pub fn answer_words(&self, answer: Id) -> String {
        match self.answers.get(answer) {
            Response::Acked { .. } => "acked".into(),
            Response::Committed => "committed".into(),
            Response::Head(head) => {
                let certified =
                    head.committed.as_ref().map_or("nothing".into(), |head| format!("{} certified", self.which(&head.manifest)));
                let shard = if head.shard.is_some() { ", with a shard" } else { "" };
                let prepared: Vec<String> = head.prepared.iter().map(|prepared| self.which(&prepared.manifest)).collect();
                let prepared = if prepared.is_empty() { String::new() } else { format!(", {} prepared", prepared.join(" and ")) };
                format!("{certified}{prepared}{shard}")
            }
            Response::Shard { .. } => "a shard".into(),
            other => format!("{other:?}").chars().take(60).collect(),
        }
    }

    /// A certificate of a manifest is as good as another one (docs/spec/quorum.md#certificate): on the wire all that verify become the same.
    fn same_certificate(&self, head: &mut HeadWire) {
        let Ok(certified) = CertifiedHead::verify(head.clone(), self.notary.as_ref()) else { return };
        let Some(number) = self.manifests.iter().position(|manifest| manifest.hash() == certified.manifest.hash()) else { return };
        *head = self.certify(number, u8::MAX).expect("everybody's acks").to_wire();
    }

    fn request(&mut self, mut request: Request) -> Id {
        if let Request::Commit { head } = &mut request {
            self.same_certificate(head);
        }
        self.requests.intern(wire::encode(&request), || request)
    }

    fn answer(&mut self, mut answer: Response) -> Id {
        match &mut answer {
            Response::Head(HeadAnswer { committed, expired, .. }) => {
                committed.iter_mut().chain(expired).for_each(|head| self.same_certificate(head));
            }
            Response::Superseded { head } => self.same_certificate(head),
            _ => {}
        }
        self.answers.intern(wire::encode(&answer), || answer)
    }
}

// Puts and gets.
impl Cast {
    /// Begins an operation.
    pub fn begin(&mut self, what: Begun) -> Arc<TaskStep> {
        if let Some(step) = self.begun.get(&what) {
            return step.clone();
        }
        let step = Arc::new(match what {
            Begun::Put(manifest) => self.begin_put(manifest),
            Begun::Get(mode) => self.begin_get(mode),
        });
        self.begun.insert(what, step.clone());
        step
    }

    fn begin_put(&mut self, manifest: usize) -> TaskStep {
        let task = PutTask {
            manifest: self.manifests[manifest].clone(),
            shards: self.shards[manifest].clone(),
            renewal: false,
            keeps: Vec::new(),
            bystanders: Vec::new(),
        };
        let (put, outs) = Put::start(task, Timing::default(), NOW);
        self.after_put(put, NOW, outs)
    }

    fn begin_get(&mut self, mode: Mode) -> TaskStep {
        let task = GetTask {
            key: self.key,
            owner: Some(self.owner),
            mode,
            candidates: self.scene.candidates.iter().map(|node| self.peers[*node]).collect(),
            known: None,
            floor: None,
            fence: None,
            hedge_after_us: 200_000,
            want_content: true,
        };
        let (get, outs) = Get::start(task, NOW);
        self.after_get(get, NOW, outs)
    }

    /// What a put or a get in this state does with this input.
    pub fn task_step(&mut self, task: Id, input: Input) -> Arc<TaskStep> {
        if let Some(step) = self.task_steps.get(&(task, input)) {
            return step.clone();
        }
        let TaskState { machine, now } = self.tasks.get(task);
        let (machine, mut now) = (machine.clone(), *now);
        let (notary, reply) = (self.notary.clone(), |tag, reply| (Tag(tag), reply));
        let told = match input {
            Input::Answer(tag, answer) => Some(reply(tag, Reply::Answer(self.answers.get(answer).clone()))),
            Input::Unreachable(tag) => Some(reply(tag, Reply::Unreachable)),
            Input::Timer => None,
        };
        let step = match machine {
            Machine::Put(mut put) => {
                now.mono_us = if told.is_none() { put.deadline().unwrap_or(now.mono_us) } else { now.mono_us };
                let outs = match told {
                    Some((tag, reply)) => put.reply(tag, reply, now, notary.as_ref()),
                    None => put.tick(now),
                };
                self.after_put(put, now, outs)
            }
            Machine::Get(mut get) => {
                now.mono_us = if told.is_none() { get.deadline().unwrap_or(now.mono_us) } else { now.mono_us };
                let outs = match told {
                    Some((tag, reply)) => get.reply(tag, reply, now, notary.as_ref()),
                    None => get.tick(now),
                };
                self.after_get(get, now, outs)
            }
        };
        let step = Arc::new(step);
        self.task_steps.insert((task, input), step.clone());
        step
    }

    fn after_put(&mut self, put: Put, now: Now, outs: Vec<PutOut>) -> TaskStep {
        let mut step = TaskStep { next: 0, sends: Vec::new(), end: None };
        for out in outs {
            match out {
                PutOut::Send { tag, to, request } => {
                    step.sends.push(Send { tag: tag.0, to: self.node_of(&to), request: self.request(request) });
                }
                PutOut::Committed(receipt) => {
                    let manifest = &receipt.head.manifest;
                    let genuine = |ack: &&Ack| {
                        let holder = manifest.holders.get(usize::from(ack.index));
                        holder.is_some_and(|peer| ack.verify(&manifest.ack_leaf(ack.index), peer, self.notary.as_ref()))
                    };
                    let acks = receipt.head.certificate.acks.iter().filter(genuine);
                    let whose =
                        acks.map(|ack| 1u8 << self.node_of(&manifest.holders[usize::from(ack.index)])).fold(0, |all, one| all | one);
                    step.end = Some(End::Committed(whose));
                }
                PutOut::Placed { .. } => {}
                PutOut::Failed(error) => step.end = Some(End::Failed(error.to_string())),
            }
        }
        step.next = self.intern_task(Machine::Put(put), now);
        step
    }

    fn after_get(&mut self, get: Get, now: Now, outs: Vec<GetOut>) -> TaskStep {
        let mut step = TaskStep { next: 0, sends: Vec::new(), end: None };
        for out in outs {
            match out {
                GetOut::Send { tag, to, request } => {
                    step.sends.push(Send { tag: tag.0, to: self.node_of(&to), request: self.request(request) });
                }
                GetOut::Done(Ok(value)) => {
                    let manifest = self.number_of(&value.head.manifest);
                    let right = value.content == self.contents[manifest];
                    let atomic = value.fresh == persona_mesh_proto::Freshness::Atomic;
                    step.end = Some(End::Value { manifest, right, atomic });
                }
                GetOut::Done(Err(error)) => step.end = Some(End::Nothing(error)),
            }
        }
        step.next = self.intern_task(Machine::Get(get), now);
        step
    }

    fn intern_task(&mut self, machine: Machine, now: Now) -> Id {
        // All fields, as derived Debug prints them; of a name of 32 bytes six, and there are a dozen names.
        let name = content_hash(format!("{machine:?} {now:?}").as_bytes()).0.to_vec();
        self.tasks.intern(name, || TaskState { machine, now })
    }
}

// Holders that tell the truth.
impl Cast {
    /// A holder with an empty disk.
    pub fn empty_holder(&mut self, node: usize) -> Id {
        self.intern_holder(node, Records::new(), 0, Vec::new())
    }

    /// What is known about a holder in this state.
    pub fn facts(&self, holder: Id) -> &HolderFacts {
        &self.holders.get(holder).facts
    }

    /// What a holder in this state does with a request.
    pub fn holder_step(&mut self, holder: Id, request: Id) -> HolderStep {
        if let Some(step) = self.holder_steps.get(&(holder, request)) {
            return *step;
        }
        let HolderState { node, records, facts, history } = self.holders.get(holder);
        let (node, mut acked, mut history) = (*node, facts.acked, history.clone());
        let asked = self.requests.get(request).clone();
        let (answer, records, hasty) = self.serve(node, &mut self.load(node, records), records.clone(), asked.clone());
        let went_on = self.serve(node, &mut self.live(node, &history), self.holders.get(holder).records.clone(), asked.clone());
        let same = same_answer(&answer, &went_on.0) && records == went_on.1 && hasty == went_on.2;
        assert!(same, "a holder that restarted answers differently: {answer:?}, not {:?}", went_on.0);
        history.push(request);
        if let (Request::Prepare { manifest, .. }, Response::Acked { .. }) = (&asked, &answer) {
            let number = self.manifests.iter().position(|other| other.wire() == manifest).expect("one of the scene's manifests");
            acked |= 1 << number;
        }
        let step = HolderStep { next: self.intern_holder(node, records, acked, history), answer: self.answer(answer), hasty };
        self.holder_steps.insert((holder, request), step);
        step
    }

    /// A holder is asked this, and syncs. Also whether it answered before it had.
    fn serve(&self, node: usize, holder: &mut Holder, mut records: Records, request: Request) -> (Response, Records, bool) {
        let signer = self.signers[node].as_ref();
        let mut todo: VecDeque<HolderOut> = holder.handle(CallId(1), self.peers[node], request, NOW, signer, self.notary.as_ref()).into();
        let (mut pending, mut answer, mut hasty) = (Vec::new(), None, false);
        loop {
            while let Some(out) = todo.pop_front() {
                match out {
                    HolderOut::Reply { response, .. } => {
                        assert!(answer.is_none(), "each call is answered once");
                        (answer, hasty) = (Some(response), !pending.is_empty());
                    }
                    HolderOut::Persist { id, writes } => pending.push((id, writes)),
                    HolderOut::Read { id, table, key } => todo.extend(holder.read_done(id, records.get(&(table, key)).cloned(), NOW)),
                    HolderOut::HeadChanged { .. } | HolderOut::Equivocation(_) => {}
                    HolderOut::Recover { .. } => unreachable!("nobody lost a store"),
                    HolderOut::Lead { .. } | HolderOut::Led { .. } | HolderOut::Probe { .. } => unreachable!("nothing is leased"),
                }
            }
            if pending.is_empty() {
                return (answer.expect("each call is answered"), records, hasty);
            }
            let mut ids = Vec::new();
            for (id, writes) in pending.drain(..) {
                ids.push(id);
                for Write { table, key, value } in writes {
                    match value {
                        Some(value) => records.insert((table, key), value),
                        None => records.remove(&(table, key)),
                    };
                }
            }
            todo.extend(holder.persisted(&ids, NOW, signer));
        }
    }

    /// A holder that was asked all this and never restarted.
    fn live(&self, node: usize, history: &[Id]) -> Holder {
        let mut holder = Holder::new(self.peers[node], HolderLimits::default());
        let mut records = Records::new();
        for request in history {
            (_, records, _) = self.serve(node, &mut holder, records, self.requests.get(*request).clone());
        }
        holder
    }

    /// A holder that starts on this disk.
    fn load(&self, node: usize, records: &Records) -> Holder {
        let mut holder = Holder::new(self.peers[node], HolderLimits::default());
        for ((table, key), value) in records {
            if matches!(table, Table::Prepared | Table::Head | Table::Fence) || *table == Table::Meta && Holder::is_meta(key) {
                holder.load(*table, key, value, NOW).expect("what was stored loads");
            }
        }
        holder
    }

    fn intern_holder(&mut self, node: usize, records: Records, acked: u8, history: Vec<Id>) -> Id {
        let mut name = vec![node as u8, acked];
        for ((table, key), value) in &records {
            name.push(*table as u8);
            for part in [key, value] {
                name.extend((part.len() as u32).to_be_bytes());
                name.extend(part);
            }
        }
        let name = content_hash(&name).0.to_vec();
        if let Some(id) = self.holders.ids.get(&name) {
            return *id;
        }
        let has_shard = |(number, manifest): &(usize, &SignedManifest)| {
            let Some(index) = manifest.index_of(&self.peers[node]) else { return false };
            let key = [self.key.0, manifest.shard_hashes[usize::from(index)].0].concat();
            let held = records.get(&(Table::Shard, key)).is_some_and(|bytes| shard_matches(manifest, index, bytes));
            held && acked & 1 << number != 0
        };
        let shards = self.manifests.iter().enumerate().filter(has_shard).map(|(number, _)| 1u8 << number).sum();
        let head = self.load(node, &records).head(&self.key, NOW).map(|head| self.number_of(&head.manifest));
        self.holders.intern(name, || HolderState { node, records, facts: HolderFacts { acked, shards, head }, history })
    }
}

/// Whether two answers say the same. Acks may differ: after a restart several versions are signed for with one signature.
fn same_answer(one: &Response, other: &Response) -> bool {
    let unsigned = |answer: &Response| {
        let Response::Head(head) = answer else { return answer.clone() };
        let mut head = head.clone();
        for PreparedWire { ack, .. } in &mut head.prepared {
            *ack = Ack { index: ack.index, position: 0, batch: 1, path: Vec::new(), signature: Signature([0; 64]) };
        }
        Response::Head(head)
    };
    unsigned(one) == unsigned(other)
}

// The one that lies. It may know whatever a correct holder ever signed, and it answers as suits it.
impl Cast {
    /// All that the liar may answer to a request, silence apart, once so many correct holders acked each manifest: `acked` has the nodes
    /// for each manifest, one bit each.
    pub fn lies(&mut self, request: Id, acked: &[u8; WRITES_MAX], begun: u8) -> Arc<Vec<Id>> {
        if let Some(lies) = self.lies.get(&(request, *acked, begun)) {
            return lies.clone();
        }
        let heads: Vec<CertifiedHead> = (0..self.manifests.len()).filter_map(|number| self.certify(number, acked[number])).collect();
        let asked = self.requests.get(request).clone();
        let mut lies = Vec::new();
        match asked {
            Request::Prepare { manifest, index, .. } => {
                let manifest = SignedManifest::trusted(manifest).expect("one of the scene's manifests");
                lies.push(Response::Acked { ack: self.sign(&manifest, index) });
            }
            Request::Commit { .. } => lies.push(Response::Committed),
            Request::Head { .. } => {
                lies.push(Response::Head(HeadAnswer::default()));
                for head in &heads {
                    let number = self.number_of(&head.manifest);
                    for shard in self.shards_to_show(number) {
                        lies.push(Response::Head(HeadAnswer { committed: Some(head.to_wire()), shard, ..HeadAnswer::default() }));
                    }
                }
                for number in (0..self.manifests.len()).filter(|number| begun & 1 << number != 0) {
                    let manifest = self.manifests[number].clone();
                    let Some(index) = manifest.index_of(&self.peers[LIAR]) else { continue };
                    let ack = self.sign(&manifest, index);
                    let prepared = PreparedWire { manifest: manifest.wire().clone(), ack: ack.clone() };
                    let committed = heads.iter().rfind(|head| head.manifest.version < manifest.version).map(CertifiedHead::to_wire);
                    lies.push(Response::Head(HeadAnswer { committed, prepared: vec![prepared], ..HeadAnswer::default() }));
                    // A certificate of its own acks alone.
                    let forged = CertifiedHead { manifest, certificate: Certificate { acks: vec![ack; 3] }, lease: None };
                    let shard = self.shards_to_show(number).into_iter().next().flatten();
                    lies.push(Response::Head(HeadAnswer { committed: Some(forged.to_wire()), shard, ..HeadAnswer::default() }));
                }
            }
            Request::Shard { version, .. } => {
                lies.push(Response::Absent);
                for number in (0..self.manifests.len()).filter(|number| self.manifests[*number].version == version) {
                    let shards = self.shards_to_show(number).into_iter().flatten();
                    lies.extend(shards.map(|shard| Response::Shard { index: shard.index, bytes: shard.bytes }));
                }
                let newer = heads.iter().filter(|head| head.manifest.version > version);
                lies.extend(newer.map(|head| Response::Superseded { head: head.to_wire() }));
            }
            _ => {}
        }
        let lies: Arc<Vec<Id>> = Arc::new(lies.into_iter().map(|lie| self.answer(lie)).collect());
        self.lies.insert((request, *acked, begun), lies.clone());
        lies
    }

    /// Its shard as it should be, spoilt, and none; none alone where it is no holder.
    fn shards_to_show(&self, number: usize) -> Vec<Option<ShardWire>> {
        let Some(index) = self.manifests[number].index_of(&self.peers[LIAR]) else { return vec![None] };
        let bytes = self.shards[number][usize::from(index)].clone();
        let mut spoilt = bytes.clone();
        spoilt[0] ^= 1;
        [bytes, spoilt].into_iter().map(|bytes| Some(ShardWire { index, bytes })).chain([None]).collect()
    }

    /// The certificate that the liar can show once these correct holders acked: its own ack beside theirs.
    pub fn certify(&self, number: usize, acked: u8) -> Option<CertifiedHead> {
        let manifest = &self.manifests[number];
        let mut acks = BTreeMap::new();
        for (index, peer) in manifest.holders.iter().enumerate() {
            let node = self.node_of(peer);
            if node == LIAR || acked & 1 << node != 0 {
                acks.insert(index as u8, self.sign_as(node, manifest, index as u8));
            }
        }
        Some(CertifiedHead { manifest: manifest.clone(), certificate: Certificate::assemble(manifest, &acks)?, lease: None })
    }

    fn sign(&self, manifest: &SignedManifest, index: u8) -> Ack {
        self.sign_as(LIAR, manifest, index)
    }

    /// The ack that this node signed, or would have: signatures are the same every time.
    fn sign_as(&self, node: usize, manifest: &SignedManifest, index: u8) -> Ack {
        sign_batch(&[manifest.ack_leaf(index)], self.signers[node].as_ref()).remove(0)
    }
}
