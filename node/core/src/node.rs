//! The node: its state, what can happen to it, and in which order it reacts.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use chacha20::ChaCha20Rng;
use persona_agent::{CommitmentRegistry, RootSecret};
use persona_fragments::{CertifiedHead, Classes, Equivocation, OwnerKey, PeerKey, SectionKey, Signer, Verifier};
use persona_mesh_proto::{
    Now, PeerClocks, PersistId, ReadId, Table, Write,
    holder::{Holder, HolderLimits},
    put::{Put, Timing as PutTiming},
};
use rand_core::SeedableRng;

use crate::{
    call::{Answer, Call, CallError, Keep},
    churn::Churn,
    import::Import,
    leases::{PingOp, RenewalOp},
    messages::Messages,
    missing::Missing,
    neighbours::Neighbours,
    own::{Owner, OwnerState},
    pending::{AfterKeep, Pending},
    probes::{ProbeOp, Probes},
    reads::{Floor, GetOp, Survey},
    recoveries::RecoverOp,
    report::{AlarmReport, CanaryReport, StatusReport},
    sections::PutOp,
    settling::SettleOp,
    traffic::{AfterPersist, HolderCall, InboundFrame, Outstanding, Queued, Rtts},
};

/// How a node behaves. Every number is a default of docs/spec/quorum.md unless the operator changed it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Lifetimes and levels.
    pub classes: Classes,
    /// What this node stores for others at most.
    pub holder: HolderLimits,
    /// Patience of puts.
    pub put: PutTiming,
    /// How long a peer may take to answer one frame, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long changed sections wait for more changes before they are put, in milliseconds. At most 1 s.
    pub coalesce_ms: u64,
    /// How long a holder of a core section or a document may be silent before its place is given to another, in milliseconds. Too low and every
    /// reboot costs a put; too high and slow failures outrun it.
    pub holder_silence_max_ms: u64,
    /// Let no more than `f` holders of a section be in one network. Off: a mesh whose nodes share a few networks would store at lower levels.
    pub diversity: bool,
    /// How often a node that is ready proves that it still is, by a put and a get through others, in seconds.
    pub canary_s: u64,
    /// How long an unacknowledged message is sent again and again before it is given up, in milliseconds.
    pub message_ttl_ms: u64,
    /// A secret that all nodes of a closed deployment share and that is mixed into personalities; `None` in an open mesh.
    pub mesh_secret: Option<[u8; 32]>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            classes: Classes::default(),
            holder: HolderLimits::default(),
            put: PutTiming::default(),
            request_timeout_ms: 3_000,
            coalesce_ms: 300,
            holder_silence_max_ms: 30_000,
            diversity: false,
            canary_s: 60,
            message_ttl_ms: 24 * 3600 * 1000,
            mesh_secret: None,
        }
    }
}

/// What a node signs and verifies with.
pub struct NodeKeys {
    /// The node's own key: it signs acks, and is its peer id.
    pub signer: Box<dyn Signer>,
    /// Verifies anyone's signature.
    pub verifier: Arc<dyn Verifier>,
    /// 32 secret bytes of this node, from which its own sections' keys are derived.
    pub secret: zeroize::Zeroizing<[u8; 32]>,
    /// What signs the sections of whoever has this root secret: [`ed25519_owner`], unless a harness has cheaper signatures.
    pub owner_signer: OwnerSigner,
}

/// Makes a signer of a root secret. Its public key is the owner's id, whatever it signs with.
pub type OwnerSigner = Arc<dyn Fn(&RootSecret) -> Box<dyn Signer> + Send + Sync>;

/// Owners sign with Ed25519, as everybody else expects.
pub fn ed25519_owner() -> OwnerSigner {
    Arc::new(|root| Box::new(root.signer()))
}

/// A gossip topic of docs/spec/gossip.md#topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gossip {
    /// Commitments of personalities.
    Announce,
    /// Signed alerts.
    Alerts,
    /// Envelopes; the lane is the first byte of SHA-256 of the recipient's id, modulo 8.
    Messages(u8),
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// No connection, or it broke, or nothing came in time. Whether the peer acted on it is unknown.
    Unreachable,
}

/// Why a message was not published. It stays in the outbox and is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishError;

/// Everything that can happen to a node.
#[derive(Debug)]
pub enum Input {
    /// A user asks something.
    Call {
        /// Names the answer.
        id: u64,
        /// What is asked.
        call: Call,
    },
    /// A peer sent a frame of requests.
    Frame {
        /// Names the answer.
        inbound: u64,
        /// Who.
        from: PeerKey,
        /// What.
        frame: Vec<u8>,
    },
    /// An [`Output::Request`] was answered, or will not be.
    Response {
        /// Which one.
        id: u64,
        /// The frame.
        result: Result<Vec<u8>, RequestError>,
    },
    /// An [`Output::Lookup`] ended.
    Found {
        /// Which one.
        id: u64,
        /// Live peers, closest first, without this node.
        peers: Vec<PeerKey>,
    },
    /// Batches are durable, in this order.
    Persisted {
        /// Which ones.
        ids: Vec<PersistId>,
    },
    /// An [`Output::Keep`] is durable, or is not.
    Kept {
        /// Which one.
        id: u64,
        /// How it went; in the keystore's words if it did not.
        result: Result<(), String>,
    },
    /// The disk has become nearly full, or has room again (docs/spec/store.md#room).
    DiskLow {
        /// Whether it is.
        low: bool,
    },
    /// A value was read.
    Loaded {
        /// Which read.
        id: ReadId,
        /// The value; `None` if there is none.
        value: Option<Vec<u8>>,
    },
    /// A gossip message arrived. It is forwarded only after [`Output::Judge`].
    Gossip {
        /// Names the judgement.
        message: u64,
        /// On which topic.
        topic: Gossip,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// An [`Output::Publish`] was handed to the mesh, or was not.
    Published {
        /// Which one.
        id: u64,
        /// How it went.
        result: Result<(), PublishError>,
    },
    /// A peer is connected.
    Connected {
        /// Which.
        peer: PeerKey,
        /// The network that it is in, if that says anything: its /24 (IPv4) or /48 (IPv6).
        prefix: Option<[u8; 8]>,
    },
    /// A peer is connected no more.
    Disconnected {
        /// Which.
        peer: PeerKey,
    },
    /// Time passed.
    Tick,
}

/// Everything that a node wants done.
#[derive(Debug)]
pub enum Output {
    /// Send a frame of requests.
    Request {
        /// Names the response.
        id: u64,
        /// To whom.
        to: PeerKey,
        /// What.
        frame: Vec<u8>,
        /// When to give up, in milliseconds.
        timeout_ms: u64,
    },
    /// Answer a peer's frame.
    Respond {
        /// Which one.
        inbound: u64,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Find the live peers closest to a key.
    Lookup {
        /// Names the result.
        id: u64,
        /// The Kademlia key.
        key: Vec<u8>,
    },
    /// Write a batch, atomically and durably, then say so with [`Input::Persisted`].
    Persist {
        /// Names the batch.
        id: PersistId,
        /// The batch.
        writes: Vec<Write>,
    },
    /// Change what the keystore has of an agent, durably and after every earlier change, then say so with [`Input::Kept`].
    Keep {
        /// Names the change.
        id: u64,
        /// The agent.
        agent: OwnerKey,
        /// What the keystore is to have of it.
        keep: Keep,
    },
    /// Read a value.
    Load {
        /// Names the read.
        id: ReadId,
        /// Where.
        table: Table,
        /// Which.
        key: Vec<u8>,
    },
    /// What Kademlia serves for a section is now this.
    Head {
        /// The section.
        key: SectionKey,
        /// The certified head; `None`: nothing.
        record: Option<Vec<u8>>,
    },
    /// Hand a message to gossip.
    Publish {
        /// Names the result.
        id: u64,
        /// The topic.
        topic: Gossip,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// A gossip message is good (forward it), bad (blame the peer it came from) or neither.
    Judge {
        /// Which.
        message: u64,
        /// Forward it?
        verdict: Judgement,
    },
    /// A call is answered.
    Reply {
        /// Which.
        id: u64,
        /// How.
        result: Result<Answer, CallError>,
    },
    /// Something new can be read: a message was delivered, or a verdict given.
    Notice(Notice),
    /// An operator should know.
    Alarm(AlarmReport),
}

/// What became of a gossip message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Valid: forward it.
    Accept,
    /// Invalid whoever looks: the peer that forwarded it did not check.
    Reject,
    /// Not judged: overload, or nothing that this node understands.
    Ignore,
}

/// A change that somebody may be waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A message in an agent's inbox.
    Inbox(OwnerKey),
    /// A verdict.
    Verdict,
    /// The node became ready, or stopped being so.
    Ready(bool),
}

/// Names an operation of this node.
pub(crate) type OpId = u64;

/// Something that this node is in the middle of.
pub(crate) enum Op {
    Put(Box<PutOp>),
    Get(Box<GetOp>),
    Survey(Box<Survey>),
    Recover(Box<RecoverOp>),
    Settle(Box<SettleOp>),
    Repair(Box<Put>),
    Renewal(Box<RenewalOp>),
    Ping(PingOp),
    Probe(Box<ProbeOp>),
}

/// Operations at once. Beyond it new calls get `Busy`; renewals wait for the next tick.
pub(crate) const OPS_MAX: usize = 8192;

/// So late is a node that slept.
const LATE_US: u64 = 1_000_000;

/// Certified heads remembered of other owners' sections. When full, the one that expires first makes room.
pub(crate) const HEADS_CACHED_MAX: usize = 4096;

/// The same alarm is raised again only after so long, in milliseconds.
const ALARM_REPEAT_MS: u64 = 60_000;

/// Alarms remembered. The oldest makes room.
const ALARMS_MAX: usize = 128;

/// One node.
pub struct Node {
    pub(crate) me: PeerKey,
    pub(crate) config: Config,
    pub(crate) keys: NodeKeys,
    pub(crate) rng: ChaCha20Rng,
    /// What time it is: in mesh time, where this node's clock is certainly wrong.
    pub(crate) now: Now,
    /// What this node's clock says. The holder goes by it alone: nobody's word makes it drop what it keeps.
    pub(crate) own_now: Now,
    /// Ids of everything: operations, requests, batches, reads, lookups.
    next_id: u64,
    /// What this turn wants done, in order.
    pub(crate) out: Vec<Output>,
    /// Requests of this turn, not yet put into frames.
    pub(crate) sends: Vec<Queued>,
    /// Requests to this node itself, not yet handed to its holder.
    pub(crate) local: VecDeque<Queued>,

    pub(crate) holder: Holder,
    pub(crate) holder_calls: BTreeMap<u64, HolderCall>,
    pub(crate) inbound: BTreeMap<u64, InboundFrame>,
    pub(crate) ops: BTreeMap<OpId, Op>,
    /// When operations want to be looked at, earliest first. An entry may be too early, or of an operation that is over, but never too late.
    due: BTreeSet<(u64, OpId)>,
    pub(crate) requests: BTreeMap<u64, Outstanding>,
    pub(crate) lookups: BTreeMap<u64, OpId>,
    pub(crate) persists: BTreeMap<PersistId, AfterPersist>,
    pub(crate) reads: BTreeMap<ReadId, persona_mesh_proto::ReadId>,
    pub(crate) rtts: Rtts,
    pub(crate) neighbours: Neighbours,
    pub(crate) probes: Probes,
    pub(crate) clocks: PeerClocks,
    /// Whether the operator was told that the clock is off, by more than the allowance of class active and of the others.
    pub(crate) clock_off: (bool, bool),
    pub(crate) churn: Churn,

    /// Whose sections are written here: agents, and the node itself.
    pub(crate) owners: BTreeMap<OwnerKey, Owner>,
    pub(crate) node_owner: OwnerKey,
    pub(crate) imports: BTreeMap<u64, Import>,
    /// Agents whose keys are kept and that do not live here yet. As many as the keystore takes.
    pub(crate) pending: BTreeMap<OwnerKey, Pending>,
    pub(crate) keeps: BTreeMap<u64, AfterKeep>,
    pub(crate) floors: BTreeMap<SectionKey, Floor>,
    pub(crate) heads: BTreeMap<SectionKey, CertifiedHead>,
    /// When it last came much later to what was due than it wanted, in monotonic microseconds.
    pub(crate) woke_us: u64,
    /// When this node last repaired a section, on the monotonic clock.
    pub(crate) repaired: BTreeMap<SectionKey, u64>,
    /// Renewals that this node leads for the holders of a section.
    pub(crate) leading: BTreeMap<SectionKey, OpId>,
    /// Owners whose keys signed twice, with the proof.
    pub(crate) evidence: BTreeMap<OwnerKey, Equivocation>,
    pub(crate) registry: CommitmentRegistry,
    pub(crate) messages: Messages,

    pub(crate) canary: Canary,
    /// The disk is nearly full.
    disk_low: bool,
    pub(crate) alarms: VecDeque<AlarmReport>,
    pub(crate) counters: BTreeMap<&'static str, u64>,
    next_holder_tick_us: u64,
}

/// The round trip that makes a node ready.
#[derive(Debug, Default)]
pub(crate) struct Canary {
    pub(crate) report: Option<CanaryReport>,
    pub(crate) running: bool,
    pub(crate) next_us: u64,
    pub(crate) ready: bool,
    pub(crate) alone: bool,
    pub(crate) put_ms: f64,
    pub(crate) content: Vec<u8>,
    pub(crate) started_us: u64,
}

impl Node {
    /// A node with nothing in it. Its stored records follow with [`Node::load`], its agents with [`Node::add_agent`].
    pub fn new(keys: NodeKeys, config: Config, seed: [u8; 32], now: Now) -> Self {
        let me = PeerKey(keys.signer.public_key());
        let owner = Owner::of_node(&keys.secret, &keys.owner_signer);
        let node_owner = owner.id;
        let mut node = Self {
            me,
            holder: Holder::new(me, config.holder.clone()),
            config,
            keys,
            rng: ChaCha20Rng::from_seed(seed),
            now,
            own_now: now,
            next_id: 1,
            out: Vec::new(),
            sends: Vec::new(),
            local: VecDeque::new(),
            holder_calls: BTreeMap::new(),
            inbound: BTreeMap::new(),
            ops: BTreeMap::new(),
            due: BTreeSet::new(),
            requests: BTreeMap::new(),
            lookups: BTreeMap::new(),
            persists: BTreeMap::new(),
            reads: BTreeMap::new(),
            rtts: Rtts::default(),
            neighbours: Neighbours::default(),
            probes: Probes::default(),
            clocks: PeerClocks::default(),
            clock_off: (false, false),
            churn: Churn::default(),
            owners: BTreeMap::new(),
            node_owner,
            imports: BTreeMap::new(),
            pending: BTreeMap::new(),
            keeps: BTreeMap::new(),
            floors: BTreeMap::new(),
            heads: BTreeMap::new(),
            woke_us: 0,
            repaired: BTreeMap::new(),
            leading: BTreeMap::new(),
            evidence: BTreeMap::new(),
            registry: CommitmentRegistry::default(),
            messages: Messages::default(),
            canary: Canary { next_us: now.mono_us + 500_000, started_us: now.mono_us, ..Canary::default() },
            disk_low: false,
            alarms: VecDeque::new(),
            counters: BTreeMap::new(),
            next_holder_tick_us: now.mono_us,
        };
        node.owners.insert(node_owner, owner);
        node
    }

    /// This node.
    pub fn me(&self) -> PeerKey {
        self.me
    }

    /// Feeds one event to the node. The caller carries out every output, in order.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Output> {
        self.own_now = now;
        self.now = self.clocks.mesh_time(now);
        self.notice_sleep();
        match input {
            Input::Call { id, call } => self.on_call(id, call),
            Input::Frame { inbound, from, frame } => self.on_frame(inbound, from, &frame),
            Input::Response { id, result } => self.on_response(id, result),
            Input::Found { id, peers } => self.on_found(id, peers),
            Input::Persisted { ids } => self.on_persisted(&ids),
            Input::Kept { id, result } => self.on_kept(id, result),
            Input::DiskLow { low } => self.on_disk_low(low),
            Input::Loaded { id, value } => self.on_loaded(id, value),
            Input::Gossip { message, topic, data } => self.on_gossip(message, topic, &data),
            Input::Published { id, result } => self.on_published(id, result),
            Input::Connected { peer, prefix } => {
                if self.neighbours.connected(peer, prefix, now.mono_us) {
                    self.probe_soon(&peer);
                    self.sample_clocks_soon();
                    self.grow_sections(&peer);
                    if self.canary.alone {
                        self.canary.next_us = now.mono_us + 200_000;
                    }
                }
            }
            Input::Disconnected { peer } => {
                self.neighbours.disconnected(&peer);
                self.probe_soon(&peer);
            }
            Input::Tick => {}
        }
        self.tick();
        self.flush();
        if self.has_envelopes() {
            // This node's own holder answered at once, and a message that waited for that goes out in the same turn.
            self.tick_messages();
            self.flush();
        }
        std::mem::take(&mut self.out)
    }

    /// Whoever is asked for something much later than was wanted slept, or had too much to do: what failed meanwhile says nothing about others.
    fn notice_sleep(&mut self) {
        let wanted_us = self.due.first().map_or(u64::MAX, |(at, _)| *at).min(self.probes.next_us);
        if self.now.mono_us > wanted_us.saturating_add(LATE_US) {
            self.woke_us = self.now.mono_us;
        }
    }

    /// When the node wants an [`Input::Tick`], in monotonic microseconds, unless something happens before.
    pub fn deadline(&self) -> u64 {
        let ops = self.due.first().map(|(at, _)| *at);
        let sections = self.owners.values().filter_map(Owner::deadline);
        // A canary on its way ends by itself, with its put or its get.
        let canary = (!self.canary.running).then_some(self.canary.next_us);
        let missing = self.owners.values().filter(|owner| owner.state == OwnerState::Live).filter_map(|owner| owner.agent.as_ref());
        let missing = missing.flat_map(|agent| agent.missing.values().filter_map(Missing::deadline));
        ops.into_iter()
            .chain(sections)
            .chain(missing)
            .chain(self.pending.values().filter_map(|pending| pending.next_us))
            .chain(canary)
            .chain([self.next_holder_tick_us, self.messages.next_us, self.probes.next_us])
            .min()
            .unwrap_or(self.now.mono_us)
    }

    /// Does all that is due.
    fn tick(&mut self) {
        if self.now.mono_us >= self.next_holder_tick_us {
            self.next_holder_tick_us = self.now.mono_us + 1_000_000;
            self.judge_clock();
            let outs = self.holder.tick(self.own_now);
            self.run_holder(outs);
            self.expire_caches();
        }
        self.tick_ops();
        self.tick_probes();
        self.tick_sections();
        self.tick_missing();
        self.tick_pending();
        self.tick_messages();
        self.tick_canary();
    }

    fn tick_ops(&mut self) {
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= self.now.mono_us) {
            self.due.remove(&(at, id));
            if self.op_deadline(id).is_none_or(|at| at > self.now.mono_us) {
                self.note_deadline(id);
                continue;
            }
            match self.ops.get(&id) {
                Some(Op::Put(_)) => self.put_due(id),
                Some(Op::Get(_)) => self.get_due(id),
                Some(Op::Survey(_)) => self.survey_done(id),
                Some(Op::Recover(_)) => self.recovery_due(id),
                Some(Op::Settle(_)) => self.settle_due(id),
                Some(Op::Repair(_)) => self.repair_due(id),
                Some(Op::Renewal(_)) => self.renewal_due(id),
                Some(Op::Ping(_)) => self.ping_over(id, false),
                Some(Op::Probe(_)) | None => {}
            }
        }
    }

    fn op_deadline(&self, id: OpId) -> Option<u64> {
        match self.ops.get(&id)? {
            Op::Put(put) => put.deadline(),
            Op::Get(get) => get.deadline(),
            Op::Survey(survey) => Some(survey.deadline_us),
            Op::Recover(recovery) => recovery.deadline(),
            Op::Settle(settling) => settling.deadline(),
            Op::Repair(put) => put.deadline(),
            Op::Renewal(renewal) => renewal.deadline(),
            Op::Ping(ping) => Some(ping.until_us),
            Op::Probe(_) => None, // its requests are answered or time out
        }
    }

    /// Something changed about an operation: from now on it is looked at when it wants to be.
    pub(crate) fn note_deadline(&mut self, id: OpId) {
        self.due.extend(self.op_deadline(id).map(|at| (at, id)));
    }

    fn expire_caches(&mut self) {
        self.forget_repairs();
        let wall_ms = self.now.wall_ms;
        self.heads.retain(|_, head| head.expires_at_ms() > wall_ms);
        let gone: Vec<SectionKey> = self.floors.iter().filter(|(_, floor)| floor.until_ms <= wall_ms).map(|(key, _)| *key).collect();
        if !gone.is_empty() {
            for key in &gone {
                self.floors.remove(key);
            }
            self.persist(gone.iter().map(|key| Write::remove(Table::Floor, key.0)).collect(), AfterPersist::Nothing);
        }
    }

    /// A fresh id.
    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Answers a call.
    pub(crate) fn reply(&mut self, id: u64, result: Result<Answer, CallError>) {
        self.out.push(Output::Reply { id, result });
    }

    /// Counts something worth counting.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    /// Raises an alarm of the shell's: what it met before this node was there.
    pub fn raise_alarm(&mut self, kind: &'static str, text: String) {
        self.alarm(kind, text);
    }

    /// Tells the operator.
    pub(crate) fn alarm(&mut self, kind: &'static str, text: String) {
        let alarm = AlarmReport { at_ms: self.now.wall_ms, kind, text };
        // Whoever can make a node cry once could make it cry all day: the same again is an alarm again only after a while.
        let fresh_ms = self.now.wall_ms.saturating_sub(ALARM_REPEAT_MS);
        if self.alarms.iter().any(|known| known.kind == kind && known.text == alarm.text && known.at_ms > fresh_ms) {
            return self.count("alarms_repeated");
        }
        if self.alarms.len() == ALARMS_MAX {
            self.alarms.pop_front();
        }
        self.alarms.push_back(alarm.clone());
        self.out.push(Output::Alarm(alarm));
    }

    fn on_call(&mut self, id: u64, call: Call) {
        let looks_only = matches!(
            call,
            Call::Inbox { .. }
                | Call::Outbox { .. }
                | Call::Relationships { .. }
                | Call::Verdicts { .. }
                | Call::Agents
                | Call::Secrets { .. }
                | Call::Status
        );
        if self.ops.len() >= OPS_MAX && !looks_only {
            return self.reply(id, Err(CallError::Busy(format!("{OPS_MAX} operations are on their way"))));
        }
        let takes_room = matches!(
            call,
            Call::CreateAgent { .. } | Call::Import { .. } | Call::PutSection { .. } | Call::Send { .. } | Call::BenchPut { .. }
        );
        if self.disk_low && takes_room {
            return self.reply(id, Err(CallError::DiskFull));
        }
        match call {
            Call::CreateAgent { name, role, place, attributes } => self.create_agent(id, name, role, place, attributes),
            Call::Publish { agent } => self.publish_agent(id, agent),
            Call::Import { root, name } => self.begin_import(Some(id), &root, name),
            Call::PutSection { agent, name, class, ttl_ms, renew_for_ms, level, require_level, content } => {
                self.put_document(id, agent, name, class, ttl_ms, renew_for_ms, level, require_level, content);
            }
            Call::GetSection { agent, name, mode } => self.get_section(id, agent, name, mode),
            Call::Personality { agent, mode } => self.get_personality(id, agent, mode),
            Call::Fetch { key, mode } => self.fetch(id, key, mode),
            Call::Analyze { key, mode } => self.analyze(id, key, mode),
            Call::Certificate { key } => self.get_certificate(id, key),
            Call::Send { from, to, text } => self.send(id, from, to, text),
            Call::PublishEnvelope { bytes } => self.publish_envelope(id, bytes),
            Call::Inbox { agent, after } => self.read_inbox(id, agent, after),
            Call::Outbox { agent } => self.read_outbox(id, agent),
            Call::Relationships { agent } => self.read_relationships(id, agent),
            Call::Verdicts { after } => self.read_verdicts(id, after),
            Call::Agents => {
                let agents = self.agent_reports();
                self.reply(id, Ok(Answer::Agents(agents)));
            }
            Call::Secrets { agent } => self.read_secrets(id, agent),
            Call::Status => {
                let status = self.status();
                self.reply(id, Ok(Answer::Status(Box::new(status))));
            }
            Call::BenchPut { slot, bytes, level } => self.bench_put(id, slot, bytes, level),
            Call::BenchGet { slot } => self.bench_get(id, slot),
        }
    }

    /// What is here goes on: it is read, served, renewed, and messages that arrive are kept. Nothing new is begun.
    fn on_disk_low(&mut self, low: bool) {
        self.disk_low = low;
        self.holder.set_disk_low(low);
        if low {
            let text = "the disk is nearly full: nothing new is stored here, for others or for the agents of this node; what is here is read and \
                        renewed. Make room: if it fills up, the node stops";
            self.alarm("disk-low", text.into());
        }
    }

    fn status(&self) -> StatusReport {
        let held = self.holder.stats();
        StatusReport {
            peer_id: self.me.to_peer_id_string(),
            ready: self.canary.ready,
            alone: self.canary.alone,
            agents: self.agent_reports(),
            sections_held: held.sections,
            shards_held: held.shards,
            shard_bytes: held.shard_bytes,
            lost_store_ms: held.lost_store_ms,
            disk_low: self.disk_low,
            canary: self.canary.report.clone(),
            clock: self.clock_report(),
            churn: self.churn_report(),
            alarms: self.alarms.iter().cloned().collect(),
            counters: self.counters.clone(),
        }
    }
}
