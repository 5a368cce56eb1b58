//! One put of one manifest: when is it durable? (docs/spec/quorum.md#put)
//!
//! Round 1 sends every holder its shard until `n - f` have signed that it is on their disks: the signatures are the certificate. Round 2
//! tells the certificate to `n - f` of this holder set and of every older one that may still be asked. Only then is the put committed.
//! Placement of the remaining shards goes on in the background.

use std::collections::BTreeMap;

use persona_fragments::{
    Ack, Certificate, CertifiedHead, DeviceId, PeerKey, SignedManifest, Verifier, Version,
    certificate::HeadWire,
    manifest::ManifestWire,
    mutants::{self, Mutant},
};

use crate::{
    exchange::{Reply, Tag},
    message::{HandedSet, Refusal, Request, Response},
    time::Now,
    told::{Needed, Told, live_older},
};

/// The longest pause between two tries of one request.
const RESEND_MS_MAX: u64 = 8_000;

/// The longest that one put collects acknowledgements and confirmations: what a holder says counts for no longer
/// (docs/spec/quorum.md#a-holder-that-lost-its-store).
pub const PUT_MS_MAX: u64 = 7_000;

/// What to put, and where.
#[derive(Clone, Debug)]
pub struct PutTask {
    /// The manifest, signed and already durable as the owner's intent: after a crash the same bytes are put again.
    pub manifest: SignedManifest,
    /// All `n` shards, by index, as the manifest lists them.
    pub shards: Vec<Vec<u8>>,
    /// Leave the bytes out at first for the holders in `keeps`: they have them from an earlier version.
    pub renewal: bool,
    /// Indices of the holders that have the bytes already. Looked at in a renewal only.
    pub keeps: Vec<u8>,
    /// Further peers that are sent the certified head after the commit, best effort: the closest ones, where lookups end.
    pub bystanders: Vec<PeerKey>,
}

/// How patient a put is. From its start to its end, older holder sets included, it is at most [`PUT_MS_MAX`]: what is beyond is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A request without a reply is sent again after this time; later ones after twice the time before, up to 8 s. Default: 700 ms.
    pub resend_ms: u64,
    /// From the start to the commit; then the outcome is unknown. Default: 5 s.
    pub give_up_ms: u64,
    /// How long round 2 waits for older holder sets once this one has confirmed. Default: 2 s.
    pub older_ms: u64,
    /// How long, from the commit, shards still go to holders that have none. Default: 30 s.
    pub background_ms: u64,
    /// After so many failures in a row a holder counts as down. Default: 2.
    pub attempts: u8,
}

impl Default for Timing {
    fn default() -> Self {
        Self { resend_ms: 700, give_up_ms: 5_000, older_ms: 2_000, background_ms: 30_000, attempts: 2 }
    }
}

/// What the caller does for a put, in order.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
pub enum PutOut {
    /// Send this request; hand its reply to [`Put::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom. May be this very node.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// The put is committed. Placement may go on.
    Committed(Box<PutReceipt>),
    /// After the commit: so many of the `n` shards are stored now.
    Placed {
        /// Holders that signed for their shards.
        placed: u8,
    },
    /// It is over without a commit.
    Failed(PutError),
}

/// What a committed put really reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReceipt {
    /// Manifest and certificate.
    pub head: CertifiedHead,
    /// Acks in the certificate.
    pub acks: u8,
    /// Shards stored at this moment.
    pub placed: u8,
    /// The level that `placed` shards give now: reconstructible while at most `level - 1` holders are lost or lying.
    pub level: u8,
    /// Whether even one lying holder is tolerated.
    pub byzantine_tolerant: bool,
    /// `BoundedStale`: an older holder set could not be told, so that until this time (milliseconds since the Unix epoch) a reader that
    /// knows no better may still find an older version there.
    pub stale_until_ms: Option<u64>,
}

/// Why a put did not commit. But for `Fenced` and `Conflict` the outcome is *unknown*: the same bytes may be put again, and may already count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// Too many holders are down. Choose others: a new version with a new holder set.
    #[error("only {have} of {need} holders can store it: choose other holders, or try again when they are back")]
    NotEnoughHolders {
        /// Holders that acked or still may.
        have: u8,
        /// `n - f`.
        need: u8,
        /// Those that did not answer, or not with an ack.
        unreachable: Vec<PeerKey>,
    },
    /// Round 1 took too long.
    #[error("{acks} of {need} holders acked in time: the outcome is unknown, put the same bytes again")]
    Timeout {
        /// Acks by then.
        acks: u8,
        /// `n - f`.
        need: u8,
        /// Holders that said `Busy` to the end (they may have no place for it for as long as earlier versions are undecided there), that
        /// refused, or whose answers are wrong.
        unwilling: Vec<PeerKey>,
    },
    /// It lacks those that lost their stores. They do not sign for what was issued before, so the same bytes will not do.
    #[error("{} holders lost their stores: {have} of {need} acked; put a new version", recovering.len())]
    Recovering {
        /// Acks by then.
        have: u8,
        /// `n - f`.
        need: u8,
        /// Holders that cannot sign.
        recovering: Vec<PeerKey>,
        /// Holders that said `Busy` to the end, that refused, or whose answers are wrong.
        unwilling: Vec<PeerKey>,
    },
    /// Certified, but too few holders confirmed that they know.
    #[error("certified, but only {have} of {need} holders confirmed it: the outcome is unknown, put the same bytes again")]
    Unconfirmed {
        /// Holders that confirmed.
        have: u8,
        /// `n - f`.
        need: u8,
        /// Holders that cannot confirm anything: they lost their stores, and do not know yet what they had signed for.
        recovering: Vec<PeerKey>,
        /// Holders that said `Busy` to the end, that refused, or whose answers are wrong.
        unwilling: Vec<PeerKey>,
        /// The certified head.
        head: Box<CertifiedHead>,
    },
    /// Another host has taken the agent over; this one must stop writing.
    #[error("fenced: another host has taken this agent over in term {}", by.manifest.version.term)]
    Fenced {
        /// The verified proof.
        by: Box<CertifiedHead>,
    },
    /// A holder acked another manifest of this version. Both are signed by the same owner key.
    #[error("another manifest of version {version} is stored: the owner's key signed twice")]
    Conflict {
        /// The version.
        version: Version,
        /// The verified other manifest.
        other: Box<ManifestWire>,
    },
    /// Too many holders refused.
    #[error("refused by {by}: {reason}")]
    Refused {
        /// The last that did.
        by: PeerKey,
        /// Why.
        reason: Refusal,
    },
}

/// One put under way.
#[derive(Clone, Debug)]
pub struct Put {
    task: PutTask,
    timing: Timing,
    phase: Phase,
    started_us: u64,
    /// Round 1, by shard index.
    prepares: Vec<Leg>,
    acks: BTreeMap<u8, Ack>,
    /// Round 2: every member of this holder set and of the older ones.
    commits: BTreeMap<PeerKey, Leg>,
    head: Option<CertifiedHead>,
    /// Who has confirmed it, once there is a certificate.
    told: Option<Told>,
    /// Requests under way. Bounded: a leg is sent again at growing pauses, and at most for `give_up_ms + background_ms`.
    tags: BTreeMap<Tag, (Round, PeerKey)>,
    last_tag: u32,
    last_refusal: Option<(PeerKey, Refusal)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Round 1.
    Preparing,
    /// Round 2, since then on the monotonic clock; and since when this holder set has confirmed.
    Committing {
        confirmed_us: Option<u64>,
    },
    /// Committed; shards still go out, until then.
    Placing {
        until_us: u64,
    },
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Prepare { index: u8 },
    Commit,
}

/// One request to one peer, sent until it is answered.
#[derive(Clone, Debug)]
struct Leg {
    peer: PeerKey,
    state: LegState,
    /// When to send (again), on the monotonic clock.
    due_us: u64,
    sends: u32,
    /// Failures and silences in a row.
    failures: u8,
    with_shard: bool,
    /// Why it said "later" when it last did.
    later: Option<Later>,
}

/// What stands in the way of a holder that wants to be asked later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    /// It lost its store.
    Recovering,
    /// It has no place or no time.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LegState {
    Waiting,
    Done,
    /// Refused or faulty: sending again would not help.
    Out,
}

impl Leg {
    fn new(peer: PeerKey, with_shard: bool, now: Now) -> Self {
        Self { peer, state: LegState::Waiting, due_us: now.mono_us, sends: 0, failures: 0, with_shard, later: None }
    }

    fn waits(&self) -> bool {
        self.state == LegState::Waiting
    }

    fn may_succeed(&self, attempts: u8) -> bool {
        self.state == LegState::Done || self.waits() && self.failures < attempts
    }

    fn pause(&mut self, timing: &Timing, now: Now) {
        let doubled = timing.resend_ms.saturating_mul(1 << self.sends.saturating_sub(1).min(10));
        self.due_us = now.mono_us.saturating_add(doubled.min(RESEND_MS_MAX.max(timing.resend_ms)) * 1000);
    }
}

impl Put {
    /// Begins. The first requests are among the actions.
    ///
    /// # Panics
    ///
    /// If there is not one shard for each hash in the manifest.
    pub fn start(task: PutTask, mut timing: Timing, now: Now) -> (Self, Vec<PutOut>) {
        timing.older_ms = timing.older_ms.min(PUT_MS_MAX);
        timing.give_up_ms = timing.give_up_ms.min(PUT_MS_MAX - timing.older_ms);
        assert_eq!(task.shards.len(), task.manifest.shard_hashes.len(), "one shard for each holder");
        let leg = |(index, peer): (usize, &PeerKey)| {
            let keeps = task.renewal && task.keeps.contains(&(index as u8));
            Leg::new(*peer, !keeps, now)
        };
        let prepares = task.manifest.holders.iter().enumerate().map(leg).collect();
        let mut put = Self::with(task, timing, Phase::Preparing, prepares, now);
        let mut out = Vec::new();
        put.send_due(now, &mut out);
        (put, out)
    }

    fn with(task: PutTask, timing: Timing, phase: Phase, prepares: Vec<Leg>, now: Now) -> Self {
        Self {
            task,
            timing,
            phase,
            started_us: now.mono_us,
            prepares,
            acks: BTreeMap::new(),
            commits: BTreeMap::new(),
            head: None,
            told: None,
            tags: BTreeMap::new(),
            last_tag: 0,
            last_refusal: None,
        }
    }

    /// Read repair: hands the shards of a certified version back to holders that have none. Anybody who decoded it may: a shard verifies
    /// against the manifest, and nobody is trusted. Only the holders at `lacking` are sent anything, for as long as background placement
    /// lasts; the actions never say that it committed.
    ///
    /// # Panics
    ///
    /// If there is not one shard for each hash in the manifest.
    pub fn repair(head: CertifiedHead, shards: Vec<Vec<u8>>, lacking: &[u8], timing: Timing, now: Now) -> (Self, Vec<PutOut>) {
        let manifest = head.manifest.clone();
        assert_eq!(shards.len(), manifest.shard_hashes.len(), "one shard for each holder");
        let leg = |(index, peer): (usize, &PeerKey)| {
            let state = if lacking.contains(&(index as u8)) { LegState::Waiting } else { LegState::Done };
            Leg { state, ..Leg::new(*peer, true, now) }
        };
        let prepares: Vec<Leg> = head.holders().iter().enumerate().map(leg).collect();
        let commits = prepares.iter().filter(|leg| leg.waits()).map(|leg| (leg.peer, Leg::new(leg.peer, false, now))).collect();
        let until_us = now.mono_us.saturating_add(timing.background_ms * 1000);
        let task = PutTask { manifest, shards, renewal: false, keeps: Vec::new(), bystanders: Vec::new() };
        let mut put = Self::with(task, timing, Phase::Placing { until_us }, prepares, now);
        (put.commits, put.head) = (commits, Some(head));
        let mut out = Vec::new();
        put.send_due(now, &mut out);
        put.advance(now, &mut out);
        (put, out)
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, tag: Tag, reply: Reply, now: Now, verifier: &dyn Verifier) -> Vec<PutOut> {
        let mut out = Vec::new();
        let Some((round, peer)) = self.tags.remove(&tag) else { return out };
        if !matches!(self.phase, Phase::Placing { .. } | Phase::Over) && self.limit_us().is_some_and(|limit| now.mono_us >= limit) {
            // An acknowledgement counts for as long as a put lasts, however late this node gets to it: who gave an early one may have lost
            // its store meanwhile (docs/spec/quorum.md#a-holder-that-lost-its-store).
            self.advance(now, &mut out);
        }
        if self.phase == Phase::Over {
            return out;
        }
        let verdict = match reply {
            Reply::Unreachable => Verdict::Failure,
            Reply::Answer(response) => self.judge(round, &peer, response, verifier),
        };
        let timing = self.timing.clone();
        let placing = matches!(self.phase, Phase::Placing { .. });
        let Some(leg) = self.leg(round, &peer).filter(|leg| leg.waits()) else { return out };
        leg.later = if let Verdict::Later(why) = verdict { why } else { None };
        match verdict {
            Verdict::Taken => leg.state = LegState::Done,
            Verdict::Confirmed(sets) => {
                leg.state = LegState::Done;
                if let Some(told) = &mut self.told {
                    told.confirm(peer, &self.task.manifest.version, sets);
                }
            }
            Verdict::Out => leg.state = LegState::Out,
            Verdict::WithShard => {
                (leg.with_shard, leg.due_us, leg.failures) = (true, now.mono_us, 0);
            }
            Verdict::Later(_) => {
                leg.failures = 0;
                leg.pause(&timing, now);
            }
            Verdict::Failure => {
                leg.failures = leg.failures.saturating_add(1);
                leg.pause(&timing, now);
            }
            Verdict::Acked(ack) => {
                leg.state = LegState::Done;
                self.acks.insert(ack.index, ack);
                if placing {
                    out.push(PutOut::Placed { placed: self.acks.len() as u8 });
                }
            }
            Verdict::Over(error) => {
                if !placing {
                    self.fail(error, &mut out);
                    return out;
                }
                leg.state = LegState::Out; // committed before: only placement ends here
            }
        }
        self.send_due(now, &mut out);
        self.advance(now, &mut out);
        out
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, now: Now) -> Vec<PutOut> {
        let mut out = Vec::new();
        if self.phase != Phase::Over {
            self.send_due(now, &mut out);
            self.advance(now, &mut out);
        }
        out
    }

    /// When to call [`Self::tick`] next, in microseconds of [`Now::mono_us`]; `None` once finished.
    pub fn deadline(&self) -> Option<u64> {
        let limit = self.limit_us()?;
        let next_send = self.prepares.iter().chain(self.commits.values()).filter(|leg| leg.waits()).map(|leg| leg.due_us).min();
        Some(next_send.map_or(limit, |next| next.min(limit)))
    }

    /// When the present phase is over, whatever else happens.
    fn limit_us(&self) -> Option<u64> {
        match self.phase {
            Phase::Over => None,
            Phase::Preparing | Phase::Committing { confirmed_us: None } => Some(self.give_up_us()),
            Phase::Committing { confirmed_us: Some(since) } => Some(since + self.timing.older_ms * 1000),
            Phase::Placing { until_us } => Some(until_us),
        }
    }

    /// Whether everything is over, background placement too.
    pub fn finished(&self) -> bool {
        self.phase == Phase::Over
    }

    /// The manifest that is put.
    pub fn manifest(&self) -> &SignedManifest {
        &self.task.manifest
    }

    /// How many holders have signed for their shards so far.
    pub fn placed(&self) -> u8 {
        self.acks.len() as u8
    }

    /// Indices of the holders that have signed for their shards so far.
    pub fn ackers(&self) -> impl Iterator<Item = u8> + '_ {
        self.acks.keys().copied()
    }

    fn need(&self) -> usize {
        usize::from(self.task.manifest.shape.quorum())
    }

    fn give_up_us(&self) -> u64 {
        self.started_us.saturating_add(self.timing.give_up_ms * 1000)
    }

    fn leg(&mut self, round: Round, peer: &PeerKey) -> Option<&mut Leg> {
        match round {
            Round::Prepare { index } => self.prepares.get_mut(usize::from(index)),
            Round::Commit => self.commits.get_mut(peer),
        }
    }

    /// Whether this hands shards back to the holders of a lease.
    fn repairs_lease(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.lease.is_some())
    }

    fn send_due(&mut self, now: Now, out: &mut Vec<PutOut>) {
        let Self { task, timing, prepares, commits, tags, last_tag, head, .. } = self;
        let mut send = |leg: &mut Leg, round: Round, request: Request| {
            if leg.sends > 0 && tags.values().any(|under_way| *under_way == (round, leg.peer)) {
                leg.failures = leg.failures.saturating_add(1); // silent all that time
            }
            leg.sends += 1;
            leg.pause(timing, now);
            *last_tag += 1;
            tags.insert(Tag(*last_tag), (round, leg.peer));
            out.push(PutOut::Send { tag: Tag(*last_tag), to: leg.peer, request });
        };
        let is_due = |leg: &Leg| leg.waits() && leg.due_us <= now.mono_us;
        for (index, leg) in prepares.iter_mut().enumerate().filter(|(_, leg)| is_due(leg)) {
            let shard = leg.with_shard.then(|| task.shards[index].clone());
            let index = index as u8;
            let request = match (&head, shard) {
                // Its holders need not be those that the manifest names.
                (Some(head), Some(shard)) if head.lease.is_some() => Request::Take { head: head.to_wire(), index, shard },
                (_, shard) => Request::Prepare { manifest: task.manifest.wire().clone(), index, shard },
            };
            send(leg, Round::Prepare { index }, request);
        }
        let Some(head) = head else { return };
        for leg in commits.values_mut().filter(|leg| is_due(leg)) {
            send(leg, Round::Commit, Request::Commit { head: head.to_wire() });
        }
    }

    /// What an answer means for the leg that it answers.
    fn judge(&mut self, round: Round, peer: &PeerKey, response: Response, verifier: &dyn Verifier) -> Verdict {
        let manifest = &self.task.manifest;
        match (round, response) {
            (Round::Prepare { index }, Response::Acked { ack }) => {
                let genuine = ack.index == index && ack.verify(&manifest.ack_leaf(index), peer, verifier);
                if genuine { Verdict::Acked(ack) } else { Verdict::Out }
            }
            (Round::Prepare { index }, Response::NeedShard) => {
                let had_it = self.prepares.get(usize::from(index)).is_some_and(|leg| leg.with_shard);
                // Asked for without its shard and again with it, as resends may overlap: one of them is answered so, the other is not.
                if had_it { Verdict::Later(None) } else { Verdict::WithShard }
            }
            (Round::Commit, Response::Committed) => Verdict::Confirmed(Vec::new()),
            (Round::Commit, Response::Handed { sets }) => Verdict::Confirmed(sets),
            (Round::Prepare { .. }, Response::Committed | Response::Handed { .. }) if self.repairs_lease() => Verdict::Taken,
            (_, Response::Busy) => Verdict::Later(Some(Later::Busy)),
            (_, Response::Recovering) => Verdict::Later(Some(Later::Recovering)),
            (_, Response::Fenced { head }) => match fence_of(manifest, head, verifier) {
                Some(by) => Verdict::Over(PutError::Fenced { by: Box::new(by) }),
                None => Verdict::Out,
            },
            (_, Response::Conflict { manifest: other }) => match SignedManifest::verify(other, verifier) {
                Ok(other) if other.key == manifest.key && other.version == manifest.version && other.hash() != manifest.hash() => {
                    Verdict::Over(PutError::Conflict { version: manifest.version, other: Box::new(other.wire().clone()) })
                }
                _ => Verdict::Out,
            },
            (_, Response::Refused { reason }) => {
                self.last_refusal = Some((*peer, reason));
                Verdict::Out
            }
            _ => Verdict::Out,
        }
    }

    fn advance(&mut self, now: Now, out: &mut Vec<PutOut>) {
        if self.phase == Phase::Preparing {
            self.advance_preparing(now, out);
        }
        if let Phase::Committing { confirmed_us } = self.phase {
            self.advance_committing(confirmed_us, now, out);
        }
        if let Phase::Placing { until_us } = self.phase {
            let idle = !self.prepares.iter().chain(self.commits.values()).any(Leg::waits);
            if idle || now.mono_us >= until_us {
                self.end();
            }
        }
    }

    fn advance_preparing(&mut self, now: Now, out: &mut Vec<PutOut>) {
        let need = self.need();
        if self.acks.len() >= need {
            // Once `n - f` holders signed, the version can be proven durable to anybody.
            let certificate = Certificate { acks: self.acks.values().cloned().collect() };
            self.head = Some(CertifiedHead { manifest: self.task.manifest.clone(), certificate, lease: None });
            let live = live_older(&self.task.manifest, now).filter(|_| !mutants::on(Mutant::OlderSetsUntold));
            self.told = Some(Told::new(&self.task.manifest, &self.task.manifest.holders, live));
            for peer in self.task.bystanders.iter().filter(|_| mutants::on(Mutant::CountHint)) {
                self.commits.entry(*peer).or_insert_with(|| Leg::new(*peer, false, now));
            }
            self.phase = Phase::Committing { confirmed_us: None };
            self.tell(now, out);
            return;
        }
        let (have, need) = (self.acks.len() as u8, need as u8);
        let possible = self.prepares.iter().filter(|leg| leg.may_succeed(self.timing.attempts)).count() as u8;
        let late = now.mono_us >= self.give_up_us();
        if possible >= need && !late {
            return;
        }
        let fails = |leg: &&Leg| leg.state == LegState::Out || leg.waits() && leg.failures > 0;
        let unreachable: Vec<PeerKey> = self.prepares.iter().filter(fails).map(|leg| leg.peer).collect();
        let out_count = self.prepares.iter().filter(|leg| leg.state == LegState::Out).count();
        let refused = self.last_refusal.filter(|_| out_count > self.prepares.len() - usize::from(need));
        let (recovering, unwilling) = without(self.prepares.iter());
        let error = match refused {
            Some((by, reason)) => PutError::Refused { by, reason },
            None if possible < need => PutError::NotEnoughHolders { have: possible, need, unreachable },
            None if !recovering.is_empty() && usize::from(have) + recovering.len() >= self.need() => {
                PutError::Recovering { have, need, recovering, unwilling }
            }
            None => PutError::Timeout { acks: have, need, unwilling },
        };
        self.fail(error, out);
    }

    fn advance_committing(&mut self, confirmed_us: Option<u64>, now: Now, out: &mut Vec<PutOut>) {
        let untold = self.task.renewal && mutants::on(Mutant::RenewalUntold);
        let need = if untold { 0 } else { self.need() };
        let head = self.head.clone().expect("certified before committing");
        let sets = self.tell(now, out);
        let Some(told) = &self.told else { return };
        let have = if mutants::on(Mutant::CountHint) {
            self.commits.values().filter(|leg| leg.state == LegState::Done).count()
        } else {
            told.confirmed(&self.task.manifest.holders)
        };
        if have < need {
            let is_out = |peer: &&PeerKey| self.commits.get(*peer).is_some_and(|leg| leg.state == LegState::Out);
            let out_count = self.task.manifest.holders.iter().filter(is_out).count();
            let hopeless = out_count > self.task.manifest.holders.len() - need;
            if hopeless || now.mono_us >= self.give_up_us() {
                let holds = |leg: &&Leg| self.task.manifest.holders.contains(&leg.peer);
                let (recovering, unwilling) = without(self.commits.values().filter(holds));
                let (have, need) = (have as u8, need as u8);
                self.fail(PutError::Unconfirmed { have, need, recovering, unwilling, head: Box::new(head) }, out);
            }
            return;
        }
        let since = confirmed_us.unwrap_or(now.mono_us);
        self.phase = Phase::Committing { confirmed_us: Some(since) };
        let patience_over = now.mono_us >= since.saturating_add(self.timing.older_ms * 1000);
        let mut stale_until_ms = None;
        for set in sets.iter().skip(1).filter(|set| !told.met(set, now)) {
            let possible = |peer: &&PeerKey| self.commits.get(*peer).is_some_and(|leg| leg.may_succeed(self.timing.attempts));
            let may = told.may_count(set, now) && set.holders.iter().filter(possible).count() >= set.quorum;
            // More confirmations may also rule a set out that was named without cause.
            let more = set.is_named() && self.commits.values().any(|leg| leg.waits() && leg.failures < self.timing.attempts);
            if (may || more) && !patience_over {
                return;
            }
            stale_until_ms = stale_until_ms.max(Some(set.over_at_ms)).filter(|_| !mutants::on(Mutant::StaleUnsaid));
        }
        let (acks, placed) = (head.certificate.acks.len() as u8, self.acks.len() as u8);
        let shape = self.task.manifest.shape;
        let (level, byzantine_tolerant) = (shape.level_at(placed), shape.byzantine_tolerant());
        let wire = head.to_wire();
        let receipt = PutReceipt { head, acks, placed, level, byzantine_tolerant, stale_until_ms };
        out.push(PutOut::Committed(Box::new(receipt)));
        let untold = self.task.renewal && mutants::on(Mutant::RenewalUntold);
        for peer in std::mem::take(&mut self.task.bystanders).into_iter().filter(|_| !untold) {
            if !self.commits.contains_key(&peer) {
                self.last_tag += 1; // not remembered: what they answer changes nothing
                out.push(PutOut::Send { tag: Tag(self.last_tag), to: peer, request: Request::Commit { head: wire.clone() } });
            }
        }
        // From here on a holder that lacks its shard gets the bytes without having to ask for them.
        for leg in self.prepares.iter_mut().filter(|leg| leg.failures > 0) {
            leg.with_shard = true;
        }
        self.phase = Phase::Placing { until_us: now.mono_us.saturating_add(self.timing.background_ms * 1000) };
    }

    /// COMMIT to every set that must have heard of it, and has not been told. Returns them, this holder set first.
    fn tell(&mut self, now: Now, out: &mut Vec<PutOut>) -> Vec<Needed> {
        let untold = self.task.renewal && mutants::on(Mutant::RenewalUntold);
        let sets = self.told.as_ref().map_or(Vec::new(), Told::needed);
        let before = self.commits.len();
        for peer in sets.iter().flat_map(|set| &set.holders).filter(|_| !untold) {
            self.commits.entry(*peer).or_insert_with(|| Leg::new(*peer, false, now));
        }
        if self.commits.len() > before {
            self.send_due(now, out);
        }
        sets
    }

    fn fail(&mut self, error: PutError, out: &mut Vec<PutOut>) {
        out.push(PutOut::Failed(error));
        self.end();
    }

    fn end(&mut self) {
        self.phase = Phase::Over;
        self.tags.clear();
        self.task.shards.clear();
    }
}

/// Those that the next attempt does better without: whose last word was that they lost their stores, and those that will not have it or whose
/// answers are wrong.
fn without<'a>(legs: impl Iterator<Item = &'a Leg>) -> (Vec<PeerKey>, Vec<PeerKey>) {
    let (mut recovering, mut unwilling) = (Vec::new(), Vec::new());
    for leg in legs {
        match (leg.state, leg.later) {
            (LegState::Waiting, Some(Later::Recovering)) => recovering.push(leg.peer),
            (LegState::Waiting, Some(Later::Busy)) | (LegState::Out, _) => unwilling.push(leg.peer),
            (LegState::Waiting, None) | (LegState::Done, _) => {}
        }
    }
    (recovering, unwilling)
}

enum Verdict {
    Acked(Ack),
    /// A commit was confirmed, and these sets were named.
    Confirmed(Vec<HandedSet>),
    /// A shard was taken under a lease.
    Taken,
    /// Refused or faulty.
    Out,
    WithShard,
    /// It wants to be asked later.
    Later(Option<Later>),
    Failure,
    Over(PutError),
}

/// The proof that another host has taken over: a certified higher version of the section, or a certified card of the higher host.
pub(crate) fn fence_of(manifest: &SignedManifest, head: HeadWire, verifier: &dyn Verifier) -> Option<CertifiedHead> {
    let head = CertifiedHead::verify(head, verifier).ok()?;
    let host = |version: &Version| -> (u64, DeviceId) { (version.term, version.device) };
    let higher = head.manifest.owner == manifest.owner && host(&head.manifest.version) > host(&manifest.version);
    (higher && (head.manifest.key == manifest.key || head.manifest.name == b"card")).then_some(head)
}
