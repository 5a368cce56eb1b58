//! Who waits for what: requests in frames, answers to frames, batches for the disk.
//!
//! All requests of one turn to one peer travel in one frame. A request to this node itself goes straight to its holder, and never counts
//! as something that crossed the network.

use std::collections::BTreeMap;

use persona_fragments::{PeerKey, SectionKey, Version, certificate::HeadWire};
use persona_mesh_proto::{
    PersistId, ReadId, Reply, Request, RequestFrame, Response, ResponseFrame, Table, Tag, Write,
    holder::{CallId, Holder, HolderOut},
    message::REQUESTS_PER_FRAME_MAX,
};

use crate::{
    evidence::is_evidence,
    node::{Node, Op, OpId, Output, RequestError},
};

/// A frame is closed when its requests reach this size, so that a large shard does not delay the small requests behind it.
const FRAME_BYTES_WANTED: usize = 256 << 10;

/// Frames of peers being answered at once. Beyond it a frame is not answered, and its sender tries again.
const INBOUND_MAX: usize = 4096;

/// One request of an operation.
pub(crate) struct Queued {
    pub(crate) op: OpId,
    pub(crate) tag: Tag,
    pub(crate) to: PeerKey,
    pub(crate) request: Request,
}

/// A frame that was sent: which operation waits for which answer.
pub(crate) struct Outstanding {
    to: PeerKey,
    sent_us: u64,
    waiting: Vec<(OpId, Tag)>,
}

/// What a section is now is not said later than this, in microseconds: its life may be over by then. A frame with such an answer that had to
/// wait for others, which wait for the disk, or while the machine slept, is not answered, and its sender asks again.
const CURRENT_US: u64 = 1_000_000;

/// A peer's frame that is being answered.
pub(crate) struct InboundFrame {
    responses: Vec<Option<Response>>,
    /// When the first answer was made that says what a section is now (monotonic).
    current_us: Option<u64>,
}

/// Where a holder's answer goes.
pub(crate) enum HolderCall {
    /// Into the answer to a peer's frame.
    Remote { inbound: u64, slot: usize },
    /// To an operation of this node.
    Local { op: OpId, tag: Tag },
}

/// What happens once a batch is durable.
pub(crate) enum AfterPersist {
    /// Nothing waits for it.
    Nothing,
    /// The holder's own batch.
    Holder(PersistId),
    /// A put's intent: now it may be sent.
    Intent(OpId),
    /// A reader's floor: now the value may be returned.
    Floor { op: OpId, key: SectionKey, version: Version },
    /// A created agent: now it exists.
    Born { call: u64, agent: persona_fragments::OwnerKey },
    /// An imported agent, with all that it was: now it may be told of.
    Imported { call: Option<u64>, agent: persona_fragments::OwnerKey, report: Box<crate::report::ImportReport> },
    /// Message state: now these may be published, and these calls answered.
    Messages(crate::messages::AfterMessages),
}

/// Round trips of the last requests: what a hedge waits for.
#[derive(Default)]
pub(crate) struct Rtts {
    last_us: std::collections::VecDeque<u64>,
}

impl Rtts {
    const KEPT: usize = 128;
    const MIN_US: u64 = 3_000;
    const MAX_US: u64 = 500_000;
    const UNKNOWN_US: u64 = 50_000;

    fn record(&mut self, micros: u64) {
        if self.last_us.len() == Self::KEPT {
            self.last_us.pop_front();
        }
        self.last_us.push_back(micros);
    }

    /// The 95th percentile of the last round trips, within sane bounds.
    pub(crate) fn p95_us(&self) -> u64 {
        if self.last_us.len() < 8 {
            return Self::UNKNOWN_US;
        }
        let mut sorted: Vec<u64> = self.last_us.iter().copied().collect();
        sorted.sort_unstable();
        sorted[sorted.len() * 95 / 100].clamp(Self::MIN_US, Self::MAX_US)
    }
}

impl Node {
    /// Queues a request of an operation.
    pub(crate) fn send_request(&mut self, op: OpId, tag: Tag, to: PeerKey, request: Request) {
        let queued = Queued { op, tag, to, request };
        if to == self.me {
            self.local.push_back(queued);
        } else {
            self.sends.push(queued);
        }
    }

    /// Hands local requests to this node's holder, and the rest, in frames, to the network.
    pub(crate) fn flush(&mut self) {
        while let Some(Queued { op, tag, request, .. }) = self.local.pop_front() {
            let call = self.id();
            self.holder_calls.insert(call, HolderCall::Local { op, tag });
            let outs = self.holder.handle(CallId(call), self.me, request, self.own_now, &*self.keys.signer, &*self.keys.verifier);
            self.run_holder(outs);
        }
        let mut by_peer: BTreeMap<PeerKey, Vec<Queued>> = BTreeMap::new();
        for queued in std::mem::take(&mut self.sends) {
            by_peer.entry(queued.to).or_default().push(queued);
        }
        for (to, queue) in by_peer {
            let (mut requests, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
            for Queued { op, tag, request, .. } in queue {
                let size = request_size(&request);
                if requests.len() == REQUESTS_PER_FRAME_MAX || (bytes > 0 && bytes + size > FRAME_BYTES_WANTED) {
                    self.send_frame(to, std::mem::take(&mut requests), std::mem::take(&mut waiting));
                    bytes = 0;
                }
                bytes += size;
                requests.push(request);
                waiting.push((op, tag));
            }
            self.send_frame(to, requests, waiting);
        }
    }

    fn send_frame(&mut self, to: PeerKey, requests: Vec<Request>, waiting: Vec<(OpId, Tag)>) {
        let id = self.id();
        let frame = RequestFrame { requests }.to_bytes();
        self.requests.insert(id, Outstanding { to, sent_us: self.now.mono_us, waiting });
        self.out.push(Output::Request { id, to, frame, timeout_ms: self.config.request_timeout_ms });
    }

    /// A frame was answered, or will not be.
    pub(crate) fn on_response(&mut self, id: u64, result: Result<Vec<u8>, RequestError>) {
        let Some(Outstanding { to, sent_us, waiting }) = self.requests.remove(&id) else { return };
        let replies = match result {
            Err(RequestError::Unreachable) => {
                self.count("requests_unreachable");
                None
            }
            Ok(frame) => match ResponseFrame::from_bytes(&frame, waiting.len()) {
                Ok(frame) => {
                    self.rtts.record(self.now.mono_us.saturating_sub(sent_us));
                    self.probes.heard(&to, self.now.mono_us);
                    Some(frame.responses)
                }
                Err(error) => {
                    self.count("responses_malformed");
                    let text = format!(
                        "{} sent a malformed answer: {error}; it counts as none. If it goes on, that node is broken, hostile or of another \
                         version",
                        to.to_peer_id_string()
                    );
                    self.alarm("malformed-response", text);
                    None
                }
            },
        };
        match replies {
            Some(responses) => {
                for ((op, tag), response) in waiting.into_iter().zip(responses) {
                    self.op_reply(op, tag, Reply::Answer(response));
                }
            }
            None => {
                for (op, tag) in waiting {
                    self.op_reply(op, tag, Reply::Unreachable);
                }
            }
        }
    }

    fn op_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        match self.ops.get(&op) {
            Some(Op::Put(_)) => self.put_reply(op, tag, reply),
            Some(Op::Get(_)) => self.get_reply(op, tag, reply),
            Some(Op::Survey(_)) => self.survey_reply(op, tag, reply),
            Some(Op::Recover(_)) => self.recovery_reply(op, tag, reply),
            Some(Op::Settle(_)) => self.settle_reply(op, tag, reply),
            Some(Op::Repair(_)) => self.repair_reply(op, tag, reply),
            Some(Op::Renewal(_)) => self.renewal_reply(op, tag, reply),
            Some(Op::Ping(_)) => self.ping_over(op, matches!(reply, Reply::Answer(_))),
            Some(Op::Probe(_)) => self.probe_reply(op, tag, reply),
            None => {}
        }
    }

    /// A peer asks.
    pub(crate) fn on_frame(&mut self, inbound: u64, from: PeerKey, frame: &[u8]) {
        self.count("frames_in");
        let requests = match RequestFrame::from_bytes(frame) {
            Ok(frame) if self.inbound.len() < INBOUND_MAX => frame.requests,
            Ok(_) => return self.count("frames_dropped_busy"),
            // What does not decode is not answered: its sender is broken or hostile.
            Err(_) => return self.count("frames_malformed"),
        };
        self.inbound.insert(inbound, InboundFrame { responses: requests.iter().map(|_| None).collect(), current_us: None });
        for (slot, request) in requests.into_iter().enumerate() {
            let call = self.id();
            self.holder_calls.insert(call, HolderCall::Remote { inbound, slot });
            let outs = self.holder.handle(CallId(call), from, request, self.own_now, &*self.keys.signer, &*self.keys.verifier);
            self.run_holder(outs);
        }
    }

    /// Carries out what the holder wants.
    pub(crate) fn run_holder(&mut self, outs: Vec<HolderOut>) {
        for out in outs {
            match out {
                HolderOut::Reply { call, response } => self.holder_reply(call, response),
                HolderOut::Persist { id, writes } => self.persist(writes, AfterPersist::Holder(id)),
                HolderOut::Read { id, table, key } => {
                    let outer = ReadId(self.id());
                    self.reads.insert(outer, id);
                    self.out.push(Output::Load { id: outer, table, key });
                }
                HolderOut::HeadChanged { key, record } => self.out.push(Output::Head { key, record }),
                HolderOut::Equivocation(evidence) => self.witness(*evidence),
                HolderOut::Recover { key, known, asked } => self.begin_recovery(key, known, asked),
                HolderOut::Lead { head, lock } => self.begin_renewal(head, lock),
                HolderOut::Led { key, consent, ack } => self.renewal_led(&key, consent, ack),
                HolderOut::Probe { peer, key } => self.begin_ping(peer, key),
            }
        }
    }

    fn holder_reply(&mut self, call: CallId, response: Response) {
        match self.holder_calls.remove(&call.0) {
            Some(HolderCall::Remote { inbound, slot }) => {
                let now_us = self.now.mono_us;
                let Some(frame) = self.inbound.get_mut(&inbound) else { return };
                if matches!(response, Response::Head(_) | Response::Shard { .. } | Response::Superseded { .. }) {
                    frame.current_us.get_or_insert(now_us);
                }
                frame.responses[slot] = Some(response);
                if frame.responses.iter().all(Option::is_some) {
                    let Some(frame) = self.inbound.remove(&inbound) else { return };
                    if frame.current_us.is_some_and(|at| now_us > at + CURRENT_US) {
                        return self.count("frames_answered_late");
                    }
                    let responses = frame.responses.into_iter().flatten().collect();
                    self.out.push(Output::Respond { inbound, frame: ResponseFrame { responses }.to_bytes() });
                }
            }
            Some(HolderCall::Local { op, tag }) => self.op_reply(op, tag, Reply::Answer(response)),
            None => {}
        }
    }

    /// Queues a batch for the disk.
    pub(crate) fn persist(&mut self, writes: Vec<Write>, then: AfterPersist) {
        let id = PersistId(self.id());
        self.persists.insert(id, then);
        self.out.push(Output::Persist { id, writes });
    }

    /// Batches are durable.
    pub(crate) fn on_persisted(&mut self, ids: &[PersistId]) {
        let mut held = Vec::new();
        for id in ids {
            match self.persists.remove(id) {
                Some(AfterPersist::Holder(id)) => held.push(id),
                Some(AfterPersist::Intent(op)) => self.put_intent_durable(op),
                Some(AfterPersist::Floor { op, key, version }) => self.floor_durable(op, &key, &version),
                Some(AfterPersist::Born { call, agent }) => self.agent_born(call, agent),
                Some(AfterPersist::Imported { call, agent, report }) => self.agent_came(call, agent, Some(report)),
                Some(AfterPersist::Messages(after)) => self.messages_durable(after),
                Some(AfterPersist::Nothing) | None => {}
            }
        }
        if !held.is_empty() {
            let outs = self.holder.persisted(&held, self.own_now, &*self.keys.signer);
            self.run_holder(outs);
        }
    }

    /// A value was read.
    pub(crate) fn on_loaded(&mut self, id: ReadId, value: Option<Vec<u8>>) {
        if let Some(inner) = self.reads.remove(&id) {
            let outs = self.holder.read_done(inner, value, self.own_now);
            self.run_holder(outs);
        }
    }

    /// Feeds one stored record to the node, before anything else happens.
    pub fn load(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), String> {
        match table {
            Table::Prepared | Table::Head | Table::Fence => {
                self.holder.load(table, key, value, self.own_now).map_err(|error| error.to_string())
            }
            Table::Floor => self.load_floor(key, value),
            Table::Commitment => self.load_commitment(value),
            Table::Meta if Holder::is_meta(key) => self.load_holder_meta(key, value),
            Table::Meta if is_evidence(key) => self.load_evidence(key, value),
            Table::Own | Table::Intent | Table::Outbox | Table::Inbox | Table::Meta => self.load_own(table, key, value),
            Table::Shard | Table::Expiry => Ok(()),
        }
    }

    fn load_holder_meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let before = self.holder.stats().lost_store_ms;
        self.holder.load(Table::Meta, key, value, self.own_now).map_err(|error| error.to_string())?;
        if self.holder.stats().lost_store_ms != before {
            let text = "this node lost its store: it says `Recovering` about each section of others until it has asked their \
                        other holders. Nothing has to be done for that; find out what became of the disk, and leave the other holders up meanwhile";
            self.alarm("store-lost", text.into());
        }
        Ok(())
    }

    /// The heads that Kademlia serves, after loading.
    pub fn heads_to_serve(&self) -> Vec<(persona_fragments::SectionKey, Vec<u8>)> {
        self.holder.loaded_heads(self.own_now).collect()
    }
}

fn request_size(request: &Request) -> usize {
    match request {
        Request::Prepare { manifest, shard, .. } => 128 + manifest.body.len() + shard.as_ref().map_or(0, Vec::len),
        Request::Commit { head } => head_size(head),
        Request::Head { fence, .. } => 128 + fence.as_ref().map_or(0, head_size),
        Request::Renew { head, .. } | Request::Handover { head, .. } => 4096 + head_size(head),
        Request::Take { head, shard, .. } => head_size(head) + shard.len(),
        Request::Never { manifest, .. } => 256 + manifest.body.len(),
        Request::Abort { aborted } => 2048 + aborted.manifest.body.len(),
        Request::Shard { .. } | Request::Recall { .. } => 128,
        Request::Probe { sections } => 32 + 96 * sections.len(),
    }
}

fn head_size(head: &HeadWire) -> usize {
    2048 + head.manifest.body.len() + head.handover.as_ref().map_or(0, Vec::len)
}
