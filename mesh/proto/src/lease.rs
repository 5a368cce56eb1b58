//! One renewal of one section by its holders, led by the one whose turn it is (docs/spec/quorum.md#a-round).
//!
//! ```text
//! HEAD to all -> who is silent, and again -> RENEW: n - f consents -> HANDOVER: n - f acks -> COMMIT to all
//! ```
//!
//! Nobody trusts the leader: its part is to ask, to count and to carry.

use std::collections::{BTreeMap, BTreeSet};

use persona_fragments::{
    Ack, CertifiedHead, Handover, Lease, Link, PeerKey, Shape, Verifier,
    certificate::HeadWire,
    lease::{LINKS_MAX, quorum_of},
};

use crate::{
    exchange::{Reply, Tag},
    holder::{head_rank, pause_us},
    message::{HeadAnswer, Request, Response},
    placement::{Candidate, choose_holders},
    time::Now,
};

/// A holder that does not answer HEAD for so long is silent, once, for whoever leads. Whoever probes it to judge the leader's word
/// ([`HolderOut::Probe`](crate::HolderOut::Probe)) must not be more patient: one that the leader takes for gone, and the others for slow, would
/// keep every link from being agreed on.
pub const SILENT_US: u64 = 2_000_000;

/// A request without a reply is sent again after so long.
const RESEND_US: u64 = 1_000_000;

/// A round is over after three pauses and so long.
const ROUND_US: u64 = 5_000_000;

/// Changes by which a lease may be ahead of its time for each further failure that is waited for.
const AHEAD: usize = 12;

/// For how many failed holders the set is changed once more, after so many `changes`, when so much of the time of a lease has passed; `None`:
/// never again.
///
/// Changes are bounded, and are to last as long as the lease. As long as no greater part of them is used up than of the time, one failure is
/// enough. Beyond that more are waited for, but never more than `f` (docs/survival.md#why-changes-are-paced).
pub fn failures_worth(shape: Shape, changes: usize, passed_ms: u64, lease_ms: u64) -> Option<usize> {
    let all = LINKS_MAX - 1;
    if changes >= all {
        return None;
    }
    let due = u128::from(passed_ms.min(lease_ms)) * all as u128 / u128::from(lease_ms.max(1));
    let ahead = changes.saturating_sub(due as usize);
    Some((1 + ahead.div_ceil(AHEAD)).min(shape.f().max(1).into()))
}

/// What to renew.
#[derive(Clone, Debug)]
pub struct RenewalTask {
    /// The head, as [`HolderOut::Lead`](crate::HolderOut::Lead) gave it.
    pub head: CertifiedHead,
    /// The node whose turn it is.
    pub me: PeerKey,
    /// The link that this node acked and that may be certified.
    pub lock: Option<Link>,
    /// Peers that could take the place of a failed holder, and the other holders, for their networks.
    pub candidates: Vec<Candidate>,
    /// At most so many holders may share a prefix.
    pub diversity: Option<u8>,
    /// Further peers that are sent the new head, best effort: the closest ones, where lookups end.
    pub bystanders: Vec<PeerKey>,
}

/// What the caller does for a renewal, in order.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
pub enum RenewalOut {
    /// Send this request; hand its reply to [`Renewal::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom. May be this very node.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// Have this node's own holder sign first: [`Holder::lead`](crate::Holder::lead), and what comes of it to [`Renewal::consented`].
    Lead {
        /// When the link is issued.
        issued_at_ms: u64,
        /// Whose place goes to whom.
        replaced: Vec<(u8, PeerKey)>,
        /// Consents to the same holders of an earlier turn.
        lock: Option<Link>,
    },
    /// How it ended. What is certified is still told to those that must know.
    Done(Renewed),
}

/// How a renewal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The section lives on.
    Certified {
        /// With the new link.
        head: Box<CertifiedHead>,
        /// Holders that have no shard, by index.
        lacking: Vec<u8>,
    },
    /// Something newer is certified: this node's own holder has been sent it.
    Superseded,
    /// Too few holders answered, or consented. The next turn is another holder's.
    Failed,
}

/// One renewal under way.
pub struct Renewal {
    task: RenewalTask,
    started: Now,
    phase: Phase,
    /// Every holder but this node, by key.
    others: BTreeMap<PeerKey, Other>,
    proposed: Option<(Handover, Vec<(u8, PeerKey)>)>,
    /// This node's consent, which its proposal carries.
    own: Option<Ack>,
    consents: BTreeMap<u8, Ack>,
    acks: BTreeMap<u8, Ack>,
    link: Option<Link>,
    lacking: BTreeSet<u8>,
    certified: Option<CertifiedHead>,
    tags: BTreeMap<Tag, (PeerKey, What)>,
    last_tag: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Asking,
    Proposing,
    HandingOver,
    Telling,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Head,
    Renew,
    Handover,
    Commit,
}

/// One holder, in one phase.
struct Other {
    index: Option<u8>,
    state: State,
    silences: u8,
    /// When to ask (again).
    due_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be asked, or asked and silent so far.
    Waiting,
    Answered,
    /// Refuses, or is not asked.
    Out,
    /// Two silences.
    Failed,
}

impl Renewal {
    /// Begins. The first requests are among the actions.
    pub fn start(task: RenewalTask, now: Now) -> (Self, Vec<RenewalOut>) {
        let other = |(index, peer): (usize, &PeerKey)| (*peer, Other::new(Some(index as u8), now));
        let others = task.head.holders().iter().enumerate().filter(|(_, peer)| **peer != task.me).map(other).collect();
        let mut renewal = Self {
            task,
            started: now,
            phase: Phase::Asking,
            others,
            proposed: None,
            own: None,
            consents: BTreeMap::new(),
            acks: BTreeMap::new(),
            link: None,
            lacking: BTreeSet::new(),
            certified: None,
            tags: BTreeMap::new(),
            last_tag: 0,
        };
        let mut out = Vec::new();
        renewal.advance(now, &mut out);
        (renewal, out)
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, tag: Tag, reply: Reply, now: Now, verifier: &dyn Verifier) -> Vec<RenewalOut> {
        let mut out = Vec::new();
        let Some((peer, what)) = self.tags.remove(&tag) else { return out };
        if self.phase == Phase::Over {
            return out;
        }
        match reply {
            Reply::Answer(response) => self.answered(&peer, what, response, now, verifier, &mut out),
            Reply::Unreachable if what == Phase::asks(self.phase) => self.silent(&peer, now),
            Reply::Unreachable => {}
        }
        self.advance(now, &mut out);
        out
    }

    /// This node's own holder has signed, durably.
    pub fn consented(&mut self, consent: Ack, ack: Option<Ack>, now: Now) -> Vec<RenewalOut> {
        let mut out = Vec::new();
        if self.phase == Phase::Proposing && self.own.is_none() {
            self.own = Some(consent.clone());
            if ack.is_none() && self.proposed.as_ref().is_some_and(|(handover, _)| !handover.changes()) {
                self.lacking.insert(consent.index);
            }
            self.acks.extend(ack.map(|ack| (ack.index, ack)));
            self.consents.insert(consent.index, consent);
            self.advance(now, &mut out);
        }
        out
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, now: Now) -> Vec<RenewalOut> {
        let mut out = Vec::new();
        if self.phase == Phase::Asking {
            let late: Vec<PeerKey> =
                self.others.iter().filter(|(peer, other)| other.late(self.asked_now(peer), now)).map(|(peer, _)| *peer).collect();
            for peer in late {
                self.tags.retain(|_, (asked, _)| *asked != peer);
                self.silent(&peer, now);
            }
        }
        self.advance(now, &mut out);
        out
    }

    /// When to call [`Self::tick`] next, in microseconds of [`Now::mono_us`]; `None` once finished.
    pub fn deadline(&self) -> Option<u64> {
        if self.phase == Phase::Over {
            return None;
        }
        let due = self.others.iter().filter(|(_, other)| other.state == State::Waiting);
        let due = due
            .map(|(peer, other)| if self.phase == Phase::Asking && self.asked_now(peer) { other.due_us + SILENT_US } else { other.due_us });
        let waits = self.phase == Phase::Proposing && self.own.is_none();
        let due = due.filter(|_| !waits).min().unwrap_or(u64::MAX);
        Some(due.min(self.end_us()))
    }

    /// Whether it is over.
    pub fn finished(&self) -> bool {
        self.phase == Phase::Over
    }

    /// The section.
    pub fn head(&self) -> &CertifiedHead {
        &self.task.head
    }
}

impl Phase {
    fn asks(self) -> What {
        match self {
            Self::Asking => What::Head,
            Self::Proposing => What::Renew,
            Self::HandingOver => What::Handover,
            Self::Telling | Self::Over => What::Commit,
        }
    }
}

impl Other {
    fn new(index: Option<u8>, now: Now) -> Self {
        Self { index, state: State::Waiting, silences: 0, due_us: now.mono_us }
    }

    /// Asked when it was due, and silent since.
    fn late(&self, asked: bool, now: Now) -> bool {
        self.state == State::Waiting && asked && now.mono_us >= self.due_us + SILENT_US
    }
}

// What answers teach.
impl Renewal {
    fn answered(&mut self, peer: &PeerKey, what: What, response: Response, now: Now, verifier: &dyn Verifier, out: &mut Vec<RenewalOut>) {
        if let Response::Superseded { head } = response {
            return self.newer(head, verifier, out);
        }
        if what == What::Head {
            if let Response::Head(answer) = response {
                self.learn(answer, verifier, out);
            }
            // Whatever it says: it is there.
            if self.phase == Phase::Asking
                && let Some(other) = self.others.get_mut(peer)
            {
                other.state = State::Answered;
            }
            return;
        }
        if what != self.phase.asks() {
            return;
        }
        let pause_us = self.pause_us();
        let state = match (what, response) {
            (_, Response::Busy) => {
                if let Some(other) = self.others.get_mut(peer) {
                    other.due_us = now.mono_us + pause_us / 5;
                }
                return;
            }
            (What::Renew, Response::Consented { consent, ack }) => self.on_consent(peer, consent, ack, verifier),
            (What::Renew, Response::Locked { .. }) => State::Out, // whoever leads next hears of it first
            (What::Handover, Response::Acked { ack }) => self.on_ack(peer, ack, verifier),
            (What::Handover, Response::NeedShard) => {
                self.lacking.extend(self.task.head.index_of(peer));
                State::Out
            }
            (What::Commit, Response::Committed | Response::Handed { .. }) => State::Answered,
            _ => State::Out,
        };
        if let Some(other) = self.others.get_mut(peer) {
            other.state = state;
        }
    }

    fn on_consent(&mut self, peer: &PeerKey, consent: Ack, ack: Option<Ack>, verifier: &dyn Verifier) -> State {
        let (manifest, index) = (&self.task.head.manifest, self.task.head.index_of(peer));
        let Some((handover, _)) = &self.proposed else { return State::Out };
        if Some(consent.index) != index || !handover.consented(manifest, &consent, verifier) {
            return State::Out;
        }
        let ack = ack.filter(|ack| Some(ack.index) == index && handover.acked(manifest, ack, verifier));
        if ack.is_none() && !handover.changes() {
            self.lacking.insert(consent.index); // it would have acked with its shard
        }
        self.acks.extend(ack.map(|ack| (ack.index, ack)));
        self.consents.insert(consent.index, consent);
        State::Answered
    }

    fn on_ack(&mut self, peer: &PeerKey, ack: Ack, verifier: &dyn Verifier) -> State {
        let (manifest, index) = (&self.task.head.manifest, self.task.head.index_of(peer));
        let genuine = self.proposed.as_ref().is_some_and(|(handover, _)| handover.acked(manifest, &ack, verifier));
        if !genuine || Some(ack.index) != index {
            return State::Out;
        }
        self.lacking.remove(&ack.index);
        self.acks.insert(ack.index, ack);
        State::Answered
    }

    /// An answer to HEAD: something newer ends the round, a lock is kept to.
    fn learn(&mut self, answer: HeadAnswer, verifier: &dyn Verifier, out: &mut Vec<RenewalOut>) {
        if let Some(link) = answer.handed.and_then(|handed| handed.lock) {
            let head = &self.task.head;
            let handover = Handover::of(&head.manifest, head.holders(), link.issued_at_ms, &link.replaced);
            let later = self.task.lock.as_ref().is_none_or(|known| known.issued_at_ms < link.issued_at_ms);
            if later && handover.is_some_and(|handover| handover.changes() && handover.agreed(&head.manifest, &link.consents, verifier)) {
                self.task.lock = Some(link);
            }
        }
        if let Some(head) = answer.committed.or(answer.expired) {
            self.newer(head, verifier, out);
        }
    }

    /// A head that somebody showed: if it is higher than this one, there is nothing to renew.
    fn newer(&mut self, head: HeadWire, verifier: &dyn Verifier, out: &mut Vec<RenewalOut>) {
        let mine = head_rank(&self.task.head);
        let higher = CertifiedHead::trusted(head.clone()).is_ok_and(|head| head_rank(&head) > mine);
        if !higher || self.phase >= Phase::Telling {
            return;
        }
        let Ok(head) = CertifiedHead::verify_with(head, Some(&self.task.head), verifier) else { return };
        if head.manifest.key == self.task.head.manifest.key {
            self.send(self.task.me, What::Commit, Request::Commit { head: head.to_wire() }, out);
            self.finish(Renewed::Superseded, out);
        }
    }

    fn silent(&mut self, peer: &PeerKey, now: Now) {
        let pause_us = self.pause_us();
        let asking = self.phase == Phase::Asking;
        let Some(other) = self.others.get_mut(peer).filter(|other| other.state == State::Waiting) else { return };
        other.silences += 1;
        match other.silences {
            2.. if asking => other.state = State::Failed,
            _ if asking => other.due_us = now.mono_us + pause_us,
            _ => other.due_us = now.mono_us + RESEND_US,
        }
    }
}

// What to do next.
impl Renewal {
    fn advance(&mut self, now: Now, out: &mut Vec<RenewalOut>) {
        if self.phase != Phase::Over && now.mono_us >= self.end_us() {
            match self.phase {
                Phase::Telling => self.phase = Phase::Over,
                _ => self.finish(Renewed::Failed, out),
            }
        }
        if self.phase == Phase::Asking && !self.others.values().any(|other| other.state == State::Waiting) {
            self.propose(now, out);
        }
        if self.phase == Phase::Proposing && self.own.is_some() {
            self.hand_over(now, out);
        }
        if self.phase == Phase::HandingOver {
            self.certify(now, out);
        }
        if self.phase == Phase::Telling && !self.others.values().any(|other| other.state == State::Waiting) {
            self.phase = Phase::Over;
        }
        self.ask_due(now, out);
    }

    /// All have answered or failed: what is to change?
    fn propose(&mut self, now: Now, out: &mut Vec<RenewalOut>) {
        let head = &self.task.head;
        let f = usize::from(head.manifest.shape.f());
        let mut failed: Vec<u8> =
            self.others.values().filter(|other| other.state == State::Failed).filter_map(|other| other.index).collect();
        failed.sort_unstable();
        if failed.len() > f {
            return self.finish(Renewed::Failed, out);
        }
        let changes = head.lease.as_ref().map_or(0, |lease| lease.links().iter().filter(|link| !link.replaced.is_empty()).count());
        let since_ms = |until_ms: u64| until_ms.saturating_sub(head.manifest.issued_at_ms);
        let worth = failures_worth(head.manifest.shape, changes, since_ms(self.started.wall_ms), since_ms(head.manifest.renew_until_ms));
        let replaced = match &self.task.lock {
            Some(link) => link.replaced.clone(),
            None if worth.is_some_and(|worth| failed.len() >= worth) => self.replacements(&failed),
            None => Vec::new(),
        };
        let issued_at_ms = self.started.wall_ms;
        let Some(handover) = Handover::of(&head.manifest, head.holders(), issued_at_ms, &replaced) else {
            return self.finish(Renewed::Failed, out);
        };
        self.proposed = Some((handover, replaced.clone()));
        self.phase = Phase::Proposing;
        self.reset(now, |_, other| other.state != State::Failed);
        out.push(RenewalOut::Lead { issued_at_ms, replaced, lock: self.task.lock.clone() });
    }

    /// Who takes the places of those that failed; of some of them, where there are too few.
    fn replacements(&self, failed: &[u8]) -> Vec<(u8, PeerKey)> {
        let head = &self.task.head;
        let host = |peer: &PeerKey| -> bool { peer.device() == head.manifest.version.device };
        let stays: Vec<&PeerKey> =
            head.holders().iter().enumerate().filter(|(index, _)| !failed.contains(&(*index as u8))).map(|(_, peer)| peer).collect();
        let free =
            |candidate: &&Candidate| !head.holders().contains(&candidate.peer) && !host(&candidate.peer) && candidate.peer != self.task.me;
        // Those that stay are chosen first, so that the diversity rule counts them.
        let stay = stays.iter().map(|peer| Candidate { peer: **peer, connected_ms: Some(0), prefix: self.prefix_of(peer) });
        let candidates: Vec<Candidate> = stay.chain(self.task.candidates.iter().filter(free).cloned()).collect();
        let previous: Vec<PeerKey> = stays.iter().map(|peer| **peer).collect();
        let wanted = head.manifest.shape.n();
        let chosen = choose_holders(&head.manifest.key, &candidates, &previous, &[], wanted, self.task.diversity);
        let new = chosen.into_iter().filter(|peer| !previous.contains(peer));
        failed.iter().copied().zip(new).collect()
    }

    fn prefix_of(&self, peer: &PeerKey) -> Option<[u8; 8]> {
        self.task.candidates.iter().find(|candidate| candidate.peer == *peer)?.prefix
    }

    /// Enough have consented: those that stay are asked to ack.
    fn hand_over(&mut self, now: Now, out: &mut Vec<RenewalOut>) {
        let Some(consents) = quorum_of(&self.task.head.manifest.shape, &self.consents) else {
            // Everybody has said what there is to say: it will not be more.
            if !self.others.values().any(|other| other.state == State::Waiting) {
                self.finish(Renewed::Failed, out);
            }
            return;
        };
        let Some((handover, replaced)) = self.proposed.clone() else { return };
        self.link = Some(Link { issued_at_ms: handover.issued_at_ms, replaced, consents });
        self.phase = Phase::HandingOver;
        let acked: BTreeSet<u8> = self.acks.keys().copied().collect();
        if let Some(index) = self.task.head.index_of(&self.task.me) {
            self.others.insert(self.task.me, Other::new(Some(index), now));
        }
        self.reset(now, |_, other| other.index.is_some_and(|index| handover.stays(index) && !acked.contains(&index)));
    }

    /// Enough have acked: it counts, and everybody is told.
    fn certify(&mut self, now: Now, out: &mut Vec<RenewalOut>) {
        let Some(acks) = quorum_of(&self.task.head.manifest.shape, &self.acks) else {
            if !self.others.values().any(|other| other.state == State::Waiting) {
                self.finish(Renewed::Failed, out);
            }
            return;
        };
        let (Some(link), Some((handover, replaced))) = (self.link.take(), self.proposed.clone()) else { return };
        let manifest = self.task.head.manifest.clone();
        let Some(lease) = Lease::extended(&manifest, self.task.head.lease.as_ref(), link, acks) else {
            return self.finish(Renewed::Failed, out);
        };
        let head = CertifiedHead { manifest, certificate: self.task.head.certificate.clone(), lease: Some(lease) };
        self.lacking.extend(replaced.iter().map(|(index, _)| *index));
        let lacking = self.lacking.iter().copied().collect();
        self.certified = Some(head.clone());
        self.phase = Phase::Telling;
        self.others = handover.holders.iter().chain(&handover.before).map(|peer| (*peer, Other::new(None, now))).collect();
        let wire = head.to_wire();
        for peer in self.task.bystanders.clone() {
            if !self.others.contains_key(&peer) {
                self.send(peer, What::Commit, Request::Commit { head: wire.clone() }, out);
            }
        }
        out.push(RenewalOut::Done(Renewed::Certified { head: Box::new(head), lacking }));
    }

    /// A new phase: who is asked waits, the others are left out.
    fn reset(&mut self, now: Now, asked: impl Fn(&PeerKey, &Other) -> bool) {
        for (peer, other) in &mut self.others {
            let state = if asked(peer, other) { State::Waiting } else { State::Out };
            *other = Other { state, ..Other::new(other.index, now) };
        }
    }

    fn ask_due(&mut self, now: Now, out: &mut Vec<RenewalOut>) {
        if self.phase == Phase::Over || self.phase == Phase::Proposing && self.own.is_none() {
            return;
        }
        let asking = self.phase == Phase::Asking;
        let due = |(peer, other): (&PeerKey, &Other)| {
            let ready = other.state == State::Waiting && now.mono_us >= other.due_us && !(asking && self.asked_now(peer));
            ready.then_some((*peer, other.index))
        };
        let due: Vec<(PeerKey, Option<u8>)> = self.others.iter().filter_map(due).collect();
        for (peer, index) in due {
            let Some(request) = self.request(index) else { continue };
            if let Some(other) = self.others.get_mut(&peer) {
                other.due_us = if asking { now.mono_us } else { now.mono_us + RESEND_US };
            }
            self.send(peer, self.phase.asks(), request, out);
        }
    }

    fn request(&self, index: Option<u8>) -> Option<Request> {
        let head = &self.task.head;
        match self.phase {
            Phase::Asking => Some(Request::Head { key: head.manifest.key, fence: None, with_shard: false }),
            Phase::Proposing => {
                let ((handover, replaced), consent) = (self.proposed.clone()?, self.own.clone()?);
                let (issued_at_ms, lock) = (handover.issued_at_ms, self.task.lock.clone());
                Some(Request::Renew { head: head.to_wire(), index: index?, issued_at_ms, replaced, consent, lock })
            }
            Phase::HandingOver => Some(Request::Handover { head: head.to_wire(), index: index?, link: self.link.clone()? }),
            Phase::Telling => Some(Request::Commit { head: self.certified.as_ref()?.to_wire() }),
            Phase::Over => None,
        }
    }

    /// Whether a peer is being asked and has not answered.
    fn asked_now(&self, peer: &PeerKey) -> bool {
        let what = self.phase.asks();
        self.tags.values().any(|(asked, of)| asked == peer && *of == what)
    }

    fn send(&mut self, to: PeerKey, what: What, request: Request, out: &mut Vec<RenewalOut>) {
        self.last_tag += 1;
        self.tags.insert(Tag(self.last_tag), (to, what));
        out.push(RenewalOut::Send { tag: Tag(self.last_tag), to, request });
    }

    fn finish(&mut self, renewed: Renewed, out: &mut Vec<RenewalOut>) {
        self.phase = Phase::Over;
        self.tags.clear();
        out.push(RenewalOut::Done(renewed));
    }

    fn pause_us(&self) -> u64 {
        pause_us(self.task.head.manifest.turn_ms())
    }

    fn end_us(&self) -> u64 {
        self.started.mono_us.saturating_add(3 * self.pause_us() + ROUND_US)
    }
}

#[cfg(test)]
mod tests {
    use persona_fragments::Shape;

    use super::*;

    #[test]
    fn changes_last_as_long_as_the_lease_and_never_wait_for_more_than_may_fail() {
        let shape = |level: u8, n: usize| Shape::for_level(level, n).expect("holders");
        let worth = |shape: Shape, changes: usize, percent: u64| failures_worth(shape, changes, percent * 10, 1000);
        let core = shape(5, 10);
        assert_eq!(core.f(), 3);
        // On time: at once. Ahead of it by up to 12, 24, and more.
        assert_eq!([0, 47, 48, 59, 60, 95 - 1].map(|changes| worth(core, changes, 50)), [1, 1, 2, 2, 3, 3].map(Some));
        assert_eq!(worth(core, 94, 99), Some(1));
        assert_eq!(worth(core, LINKS_MAX - 1, 99), None, "all used up");
        assert_eq!([0, 1, 12, 13].map(|changes| worth(core, changes, 0)), [1, 2, 2, 3].map(Some));
        assert_eq!(worth(shape(10, 16), 94, 0), Some(5));
        assert_eq!(worth(shape(2, 4), 94, 0), Some(1), "one may fail: two are too many to wait for");
    }
}
