//! One version of unknown outcome, settled: is it durable, or will it never be? (docs/spec/quorum.md#a-version-that-is-given-up)
//!
//! Every holder is asked to promise never to ack it. Who has acked it says so instead. `2f + 1` promises prove that it never committed;
//! `n - f` acks prove that it is durable. Each holder gives the one or the other, so both cannot be while at most `f` lie.

use std::collections::BTreeMap;

use persona_fragments::{
    AbortedVersion, Ack, Certificate, CertifiedHead, Equivocation, PeerKey, Signature, SignedManifest, Verifier, certificate::HeadWire,
};

use crate::{
    exchange::{Reply, Tag},
    holder::rank,
    message::{PreparedWire, Request, Response},
    time::Now,
    told::live_older,
};

/// A question without a reply is asked again after so long.
const RESEND_US: u64 = 1_000_000;

/// What to settle.
#[derive(Clone, Debug)]
pub struct SettleTask {
    /// The manifest of the version.
    pub manifest: SignedManifest,
    /// The owner's [`order`](SignedManifest::order_never) that it be given up.
    pub order: Signature,
    /// How long to wait for the slowest, in microseconds.
    pub patience_us: u64,
}

/// What the caller does for a settlement, in order.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
pub enum SettleOut {
    /// Send this request; hand its reply to [`Settle::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom. May be this very node.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// It is over. What is sent with it needs no reply.
    Done(Settled),
}

/// What became of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It never committed and never will.
    Aborted(Box<AbortedVersion>),
    /// It is durable: certified by the acks that were found.
    Certified(Box<CertifiedHead>),
    /// A higher version is certified, so that it matters no more.
    Superseded(Box<CertifiedHead>),
    /// Neither could be proven.
    Undecided {
        /// Holders that acked it.
        acks: u8,
        /// Holders that promised never to.
        nevers: u8,
        /// All holders.
        n: u8,
    },
}

/// One settlement under way.
pub struct Settle {
    task: SettleTask,
    started_us: u64,
    over: bool,
    acks: BTreeMap<u8, Ack>,
    nevers: BTreeMap<u8, Ack>,
    superseded: Option<CertifiedHead>,
    evidence: Option<Box<Equivocation>>,
    /// By holder index: whether its answer is still to come.
    silent: BTreeMap<u8, bool>,
    tags: BTreeMap<Tag, Question>,
    last_tag: u32,
}

#[derive(Clone, Copy)]
struct Question {
    index: u8,
    sent_us: u64,
    /// Asked again since: a failure of this one means nothing.
    again: bool,
}

impl Settle {
    /// Begins. The first requests are among the actions.
    pub fn start(task: SettleTask, now: Now) -> (Self, Vec<SettleOut>) {
        let n = task.manifest.shape.n();
        let mut settle = Self {
            task,
            started_us: now.mono_us,
            over: false,
            acks: BTreeMap::new(),
            nevers: BTreeMap::new(),
            superseded: None,
            evidence: None,
            silent: (0..n).map(|index| (index, true)).collect(),
            tags: BTreeMap::new(),
            last_tag: 0,
        };
        let mut out = Vec::new();
        for index in 0..n {
            settle.ask(index, now, &mut out);
        }
        (settle, out)
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, tag: Tag, reply: Reply, now: Now, verifier: &dyn Verifier) -> Vec<SettleOut> {
        let mut out = Vec::new();
        let Some(question) = self.tags.remove(&tag) else { return out };
        match reply {
            _ if self.over => return out,
            Reply::Unreachable if question.again => return out,
            Reply::Answer(Response::Busy) => {
                self.tags.insert(tag, Question { sent_us: now.mono_us, ..question });
                return out;
            }
            Reply::Unreachable => {}
            Reply::Answer(response) => self.learn(question.index, response, verifier),
        }
        self.silent.insert(question.index, false);
        self.advance(now, &mut out);
        out
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, now: Now) -> Vec<SettleOut> {
        let mut out = Vec::new();
        if self.over {
            return out;
        }
        let mut again = Vec::new();
        for question in self.tags.values_mut().filter(|question| !question.again && now.mono_us >= question.sent_us + RESEND_US) {
            question.again = true;
            again.push(question.index);
        }
        for index in again {
            self.ask(index, now, &mut out);
        }
        self.advance(now, &mut out);
        out
    }

    /// When to call [`Self::tick`] next, in microseconds of [`Now::mono_us`]; `None` once finished.
    pub fn deadline(&self) -> Option<u64> {
        let resend = self.tags.values().filter(|question| !question.again).map(|question| question.sent_us + RESEND_US).min();
        (!self.over).then(|| resend.map_or(self.end_us(), |resend| resend.min(self.end_us())))
    }

    /// Whether it is over.
    pub fn finished(&self) -> bool {
        self.over
    }

    /// The version that is settled.
    pub fn manifest(&self) -> &SignedManifest {
        &self.task.manifest
    }

    /// The proof that the owner's key signed two manifests of this version, once, if a holder showed another one.
    pub fn take_evidence(&mut self) -> Option<Box<Equivocation>> {
        self.evidence.take()
    }

    fn end_us(&self) -> u64 {
        self.started_us.saturating_add(self.task.patience_us)
    }

    fn ask(&mut self, index: u8, now: Now, out: &mut Vec<SettleOut>) {
        let manifest = &self.task.manifest;
        let request = Request::Never { manifest: manifest.wire().clone(), index, order: self.task.order };
        self.last_tag += 1;
        self.tags.insert(Tag(self.last_tag), Question { index, sent_us: now.mono_us, again: false });
        out.push(SettleOut::Send { tag: Tag(self.last_tag), to: manifest.holders[usize::from(index)], request });
    }

    /// The first thing that a holder says and that verifies counts: it cannot have acked and promised.
    fn learn(&mut self, index: u8, response: Response, verifier: &dyn Verifier) {
        let manifest = &self.task.manifest;
        let holder = &manifest.holders[usize::from(index)];
        if self.acks.contains_key(&index) || self.nevers.contains_key(&index) {
            return;
        }
        match response {
            Response::Promised { never } if never.verify(&manifest.never_leaf(index), holder, verifier) => {
                self.nevers.insert(index, never);
            }
            Response::Prepared(PreparedWire { manifest: acked, ack })
                if acked == *manifest.wire() && ack.verify(&manifest.ack_leaf(index), holder, verifier) =>
            {
                self.acks.insert(index, ack);
            }
            Response::Prepared(PreparedWire { manifest: acked, .. }) => {
                let other = SignedManifest::verify(acked, verifier).ok();
                self.evidence = other.and_then(|other| Equivocation::of(manifest, &other)).map(Box::new).or(self.evidence.take());
            }
            Response::Superseded { head } => self.learn_head(head, verifier),
            _ => {}
        }
    }

    fn learn_head(&mut self, head: HeadWire, verifier: &dyn Verifier) {
        let Ok(head) = CertifiedHead::verify(head, verifier) else { return };
        let manifest = &self.task.manifest;
        if head.manifest.key == manifest.key && rank(&head.manifest) >= rank(manifest) {
            self.superseded = Some(head);
        }
    }

    fn advance(&mut self, now: Now, out: &mut Vec<SettleOut>) {
        let manifest = &self.task.manifest;
        if let Some(head) = self.superseded.take() {
            let itself = head.manifest.hash() == manifest.hash();
            let settled = if itself { Settled::Certified } else { Settled::Superseded };
            return self.finish(settled(Box::new(head)), now, out);
        }
        if let Some(certificate) = Certificate::assemble(manifest, &self.acks) {
            let head = CertifiedHead { manifest: manifest.clone(), certificate, lease: None };
            return self.finish(Settled::Certified(Box::new(head)), now, out);
        }
        if let Some(aborted) = AbortedVersion::assemble(manifest, &self.nevers) {
            return self.finish(Settled::Aborted(Box::new(aborted)), now, out);
        }
        let (commits, aborts) = (usize::from(manifest.shape.quorum()), usize::from(manifest.shape.abort_quorum()));
        let n = manifest.shape.n();
        let silent = self.silent.values().filter(|silent| **silent).count();
        let hopeless = self.acks.len() + silent < commits && self.nevers.len() + silent < aborts;
        if hopeless || now.mono_us >= self.end_us() {
            let (acks, nevers) = (self.acks.len() as u8, self.nevers.len() as u8);
            self.finish(Settled::Undecided { acks, nevers, n }, now, out);
        }
    }

    /// Tells the holders what was found. Whoever does not hear it drops the version when it expires, or learns of it from a reader.
    fn finish(&mut self, settled: Settled, now: Now, out: &mut Vec<SettleOut>) {
        self.over = true;
        self.tags.clear();
        let manifest = &self.task.manifest;
        let mut tell = manifest.holders.clone();
        let request = match &settled {
            Settled::Aborted(aborted) => Some(Request::Abort { aborted: aborted.to_wire() }),
            Settled::Certified(head) => {
                for peer in live_older(manifest, now).flat_map(|set| &set.holders) {
                    if !tell.contains(peer) {
                        tell.push(*peer);
                    }
                }
                Some(Request::Commit { head: head.to_wire() })
            }
            Settled::Superseded(_) | Settled::Undecided { .. } => None,
        };
        for (to, request) in tell.into_iter().zip(std::iter::repeat(request)) {
            let Some(request) = request else { break };
            self.last_tag += 1; // not remembered: what they answer changes nothing
            out.push(SettleOut::Send { tag: Tag(self.last_tag), to, request });
        }
        out.push(SettleOut::Done(settled));
    }
}
