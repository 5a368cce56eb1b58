//! One version of unknown outcome, settled: is it durable, or will it never be? (docs/spec/quorum.md#a-version-that-is-given-up)
//!
//! Its holders are asked who acked it. If enough did, its shards are fetched from them and sent to the others: `n - f` acks prove that it is
//! durable. Else they are asked to promise that they never will: `2f + 1` promises prove that it never committed. Each holder gives the one or
//! the other, so both cannot be while at most `f` lie.

use std::collections::{BTreeMap, BTreeSet};

use persona_fragments::{
    AbortedVersion, Ack, Certificate, CertifiedHead, Equivocation, PeerKey, Signature, SignedManifest, Verifier,
    certificate::HeadWire,
    coding::{encode, reconstruct, shard_matches},
    manifest::ManifestWire,
};

use crate::{
    exchange::{Reply, Tag},
    get::PREPARED_MAX,
    holder::rank,
    message::{PreparedWire, Request, Response},
    time::Now,
    told::live_older,
};

/// A question without a reply is asked again after so long.
const RESEND_US: u64 = 1_000_000;

/// This part of the time is for asking who acked it, if somebody does not answer.
const ASKING_SHARE: u64 = 3;

/// What to settle.
#[derive(Clone, Debug)]
pub struct SettleTask {
    /// The manifest of the version.
    pub manifest: SignedManifest,
    /// The owner's [`order`](SignedManifest::order_never) that it be given up.
    pub order: Signature,
    /// How long to wait for the slowest, in microseconds.
    pub patience_us: u64,
    /// It may be completed by sending its shards to holders that have not acked it. Not by whoever takes over: of its holders those that are
    /// not fenced would ack what the old host left behind, and the fence would be of no use.
    pub completes: bool,
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
    step: Step,
    acks: BTreeMap<u8, Ack>,
    nevers: BTreeMap<u8, Ack>,
    /// Holders that answered, and showed no ack.
    without: BTreeSet<u8>,
    superseded: Option<CertifiedHead>,
    evidence: Option<Box<Equivocation>>,
    /// Holders whose answer to the question of this step is still to come.
    silent: BTreeSet<u8>,
    tags: BTreeMap<Tag, Question>,
    last_tag: u32,
}

/// What is being asked.
enum Step {
    /// Who has acked it?
    Asking,
    /// Promise never to.
    GivingUp,
    /// Your shard of it; by index, those that match.
    Fetching(BTreeMap<u8, Vec<u8>>),
    /// Ack it, here is your shard: all of them.
    Completing(Vec<Vec<u8>>),
    /// It is over.
    Over,
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
            step: Step::Over,
            acks: BTreeMap::new(),
            nevers: BTreeMap::new(),
            without: BTreeSet::new(),
            superseded: None,
            evidence: None,
            silent: BTreeSet::new(),
            tags: BTreeMap::new(),
            last_tag: 0,
        };
        let mut out = Vec::new();
        let first = if settle.task.completes { Step::Asking } else { Step::GivingUp };
        settle.begin(first, (0..n).collect(), now, &mut out);
        (settle, out)
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, tag: Tag, reply: Reply, now: Now, verifier: &dyn Verifier) -> Vec<SettleOut> {
        let mut out = Vec::new();
        let Some(question) = self.tags.remove(&tag) else { return out };
        match reply {
            Reply::Unreachable if question.again => return out,
            Reply::Answer(Response::Busy) => {
                self.tags.insert(tag, Question { sent_us: now.mono_us, ..question });
                return out;
            }
            Reply::Unreachable => {}
            Reply::Answer(response) => self.learn(question.index, response, verifier),
        }
        self.silent.remove(&question.index);
        self.tags.retain(|_, other| other.index != question.index);
        self.advance(now, &mut out);
        out
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, now: Now) -> Vec<SettleOut> {
        let mut out = Vec::new();
        if self.finished() {
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
        (!self.finished()).then(|| resend.map_or(self.step_ends_us(), |resend| resend.min(self.step_ends_us())))
    }

    /// Whether it is over.
    pub fn finished(&self) -> bool {
        matches!(self.step, Step::Over)
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

    fn step_ends_us(&self) -> u64 {
        match self.step {
            Step::Asking => self.started_us.saturating_add(self.task.patience_us / ASKING_SHARE),
            _ => self.end_us(),
        }
    }

    /// Holders that have neither acked it nor promised never to.
    fn undecided_holders(&self) -> BTreeSet<u8> {
        (0..self.task.manifest.shape.n()).filter(|index| !self.acks.contains_key(index) && !self.nevers.contains_key(index)).collect()
    }

    fn begin(&mut self, step: Step, asked: BTreeSet<u8>, now: Now, out: &mut Vec<SettleOut>) {
        self.step = step;
        self.tags.clear();
        asked.iter().for_each(|index| self.ask(*index, now, out));
        self.silent = asked;
    }

    fn ask(&mut self, index: u8, now: Now, out: &mut Vec<SettleOut>) {
        let manifest = &self.task.manifest;
        let request = match &self.step {
            Step::Asking => Request::Head { key: manifest.key, fence: None, with_shard: false },
            Step::GivingUp => Request::Never { manifest: manifest.wire().clone(), index, order: self.task.order },
            Step::Fetching(_) => Request::Shard { key: manifest.key, version: manifest.version },
            Step::Completing(shards) => {
                Request::Prepare { manifest: manifest.wire().clone(), index, shard: Some(shards[usize::from(index)].clone()) }
            }
            Step::Over => return,
        };
        self.last_tag += 1;
        self.tags.insert(Tag(self.last_tag), Question { index, sent_us: now.mono_us, again: false });
        out.push(SettleOut::Send { tag: Tag(self.last_tag), to: manifest.holders[usize::from(index)], request });
    }

    /// What a holder said that verifies. It cannot have acked and promised: what it said first counts.
    fn learn(&mut self, index: u8, response: Response, verifier: &dyn Verifier) {
        let manifest = &self.task.manifest;
        let holder = &manifest.holders[usize::from(index)];
        match response {
            Response::Promised { never }
                if !self.acks.contains_key(&index) && never.verify(&manifest.never_leaf(index), holder, verifier) =>
            {
                self.nevers.insert(index, never);
            }
            Response::Acked { ack } => self.learn_ack(index, ack, verifier),
            Response::Prepared(prepared) => self.learn_prepared(index, prepared, verifier),
            Response::Head(answer) => {
                if !self.acks.contains_key(&index) {
                    self.without.insert(index);
                }
                answer.committed.into_iter().chain(answer.expired).for_each(|head| self.learn_head(head, verifier));
                let prepared = answer.prepared.into_iter().take(PREPARED_MAX);
                prepared.for_each(|prepared| self.learn_prepared(index, prepared, verifier));
            }
            Response::Shard { index: which, bytes } if which == index && shard_matches(manifest, index, &bytes) => {
                if let Step::Fetching(shards) = &mut self.step {
                    shards.insert(index, bytes);
                }
            }
            Response::Superseded { head } | Response::Fenced { head } => self.learn_head(head, verifier),
            Response::Conflict { manifest: other } => self.learn_other(other, verifier),
            _ => {}
        }
    }

    fn learn_ack(&mut self, index: u8, ack: Ack, verifier: &dyn Verifier) {
        let manifest = &self.task.manifest;
        let holder = &manifest.holders[usize::from(index)];
        if !self.nevers.contains_key(&index) && !self.acks.contains_key(&index) && ack.verify(&manifest.ack_leaf(index), holder, verifier) {
            self.without.remove(&index);
            self.acks.insert(index, ack);
        }
    }

    fn learn_prepared(&mut self, index: u8, PreparedWire { manifest, ack }: PreparedWire, verifier: &dyn Verifier) {
        match manifest == *self.task.manifest.wire() {
            true => self.learn_ack(index, ack, verifier),
            false => self.learn_other(manifest, verifier),
        }
    }

    /// A holder showed another manifest: of another version, or the proof that the owner's key signed two.
    fn learn_other(&mut self, other: ManifestWire, verifier: &dyn Verifier) {
        let manifest = &self.task.manifest;
        let same_version = |other: &SignedManifest| (other.key, other.version) == (manifest.key, manifest.version);
        // Decoded first: most are of other versions, and need not be verified.
        let Some(other) = SignedManifest::trusted(other).ok().filter(same_version) else { return };
        let other = SignedManifest::verify(other.wire().clone(), verifier).ok();
        self.evidence = other.and_then(|other| Equivocation::of(manifest, &other)).map(Box::new).or(self.evidence.take());
    }

    fn learn_head(&mut self, head: HeadWire, verifier: &dyn Verifier) {
        let manifest = &self.task.manifest;
        let matters = |head: &SignedManifest| head.key == manifest.key && rank(head) >= rank(manifest);
        if !SignedManifest::trusted(head.manifest.clone()).is_ok_and(|head| matters(&head)) {
            return;
        }
        if let Ok(head) = CertifiedHead::verify(head, verifier) {
            self.superseded = Some(head);
        }
    }

    fn advance(&mut self, now: Now, out: &mut Vec<SettleOut>) {
        let manifest = self.task.manifest.clone();
        if let Some(head) = self.superseded.take() {
            let itself = head.manifest.hash() == manifest.hash();
            let settled = if itself { Settled::Certified } else { Settled::Superseded };
            return self.finish(settled(Box::new(head)), now, out);
        }
        if let Some(certificate) = Certificate::assemble(&manifest, &self.acks) {
            let head = CertifiedHead { manifest, certificate, lease: None };
            return self.finish(Settled::Certified(Box::new(head)), now, out);
        }
        if let Some(aborted) = AbortedVersion::assemble(&manifest, &self.nevers) {
            return self.finish(Settled::Aborted(Box::new(aborted)), now, out);
        }
        let (commits, aborts) = (usize::from(manifest.shape.quorum()), usize::from(manifest.shape.abort_quorum()));
        let (k, acks, silent) = (usize::from(manifest.shape.k()), self.acks.len(), self.silent.len());
        let late = now.mono_us >= self.step_ends_us();
        match &self.step {
            Step::Asking => {
                if silent > 0 && !late && acks + silent >= k {
                    return; // whoever has not answered yet may make the difference
                }
                if acks < k {
                    return self.give_up(now, out);
                }
                let ackers = self.acks.keys().copied().collect();
                self.begin(Step::Fetching(BTreeMap::new()), ackers, now, out);
            }
            Step::GivingUp => {
                if late || acks + silent < commits && self.nevers.len() + silent < aborts {
                    self.undecided(now, out);
                }
            }
            Step::Fetching(shards) => {
                if shards.len() < k {
                    if late || silent == 0 {
                        self.give_up(now, out);
                    }
                    return;
                }
                // What its owner signed may have no content: then nobody can complete it.
                let content = reconstruct(&manifest, shards).ok();
                let Some(shards) = content.and_then(|content| encode(&content, manifest.shape).ok()) else { return self.give_up(now, out) };
                self.begin(Step::Completing(shards), self.undecided_holders(), now, out);
            }
            Step::Completing(_) => {
                if late || acks + silent < commits {
                    self.give_up(now, out);
                }
            }
            Step::Over => {}
        }
    }

    /// It cannot be completed: promises are asked for, where enough can be had.
    fn give_up(&mut self, now: Now, out: &mut Vec<SettleOut>) {
        let enough = self.without.len() >= usize::from(self.task.manifest.shape.abort_quorum());
        match enough && now.mono_us < self.end_us() {
            true => self.begin(Step::GivingUp, self.undecided_holders(), now, out),
            false => self.undecided(now, out),
        }
    }

    fn undecided(&mut self, now: Now, out: &mut Vec<SettleOut>) {
        let (acks, nevers, n) = (self.acks.len() as u8, self.nevers.len() as u8, self.task.manifest.shape.n());
        self.finish(Settled::Undecided { acks, nevers, n }, now, out);
    }

    /// Tells the holders what was found. Whoever does not hear it drops the version when it expires, or learns of it from a reader.
    fn finish(&mut self, settled: Settled, now: Now, out: &mut Vec<SettleOut>) {
        self.step = Step::Over;
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
