//! One recovery of one key: what must a holder that lost its store know before it may answer again?
//! (docs/spec/quorum.md#a-holder-that-lost-its-store)
//!
//! A recovery is a regular get of the head in which the asking node counts for nothing. Beside the head the others tell what they have
//! prepared above it, and which host of the owner is fenced: all that the asking node may have promised to heed.

use std::collections::{BTreeMap, btree_map::Entry};

use persona_fragments::{
    CertifiedHead, Class, Handover, Link, OwnerKey, PeerKey, SectionKey, SignedManifest, Verifier, certificate::HeadWire,
};

use crate::{
    exchange::{Reply, Tag},
    get::{CANDIDATES_MAX, is_expired},
    holder::{CARD_NAME, Rank, SIGNED_MAX, head_rank, host, rank},
    message::{Handed, HandedSet, HeadAnswer, RecallAnswer, Request, Response},
    time::Now,
};

/// A recovery is over after so long, one way or the other.
pub const RECOVER_MS_MAX: u64 = 5_000;

/// Uncertified versions that one recovery learns, the highest; and looks at in one answer. A holder acks nothing below the highest.
pub const LEARNT_MAX: usize = 16;

/// A question without a reply is asked again after so long.
const RESEND_US: u64 = 1_000_000;

/// What to recover.
#[derive(Clone, Debug)]
pub struct RecoverTask {
    /// The section.
    pub key: SectionKey,
    /// The node that lost its store. It is not asked, and counts for nothing.
    pub me: PeerKey,
    /// The highest certified head that it has, or was just shown.
    pub known: Option<CertifiedHead>,
    /// The verified manifest that it was to prepare.
    pub asked: Option<SignedManifest>,
    /// Peers that may know the head: the closest ones. With those that the manifest names, at most [`CANDIDATES_MAX`] are asked.
    pub candidates: Vec<PeerKey>,
}

/// What the caller does for a recovery, in order.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
pub enum RecoverOut {
    /// Send this request; hand its reply to [`Recover::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// It is over: hand this to [`Holder::recovered`](crate::Holder::recovered).
    Done(Recovered),
}

/// What the others know. Everything in it is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recollection {
    /// The highest certified head, expired or not.
    pub head: Option<CertifiedHead>,
    /// What some holder has prepared above it: at most [`LEARNT_MAX`], ascending.
    pub prepared: Vec<SignedManifest>,
    /// The certified card of the highest host of the owner.
    pub fence: Option<CertifiedHead>,
    /// What the others have signed in handovers: all sets, at most 8 of each of them, and the latest lock that the head allows.
    pub handed: Handed,
}

/// How a recovery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// `n - f` other holders of the head know nothing higher.
    Known(Box<Recollection>),
    /// At least `f` others have lost their stores as well: nobody can be asked for what was promised before.
    Beyond(Box<Recollection>),
    /// Too few answered, or nobody knows a certified version.
    Unknown(Box<Recollection>),
}

/// One recovery under way.
pub struct Recover {
    task: RecoverTask,
    started_us: u64,
    over: bool,
    best: Option<CertifiedHead>,
    /// Above the best head, at most [`LEARNT_MAX`].
    prepared: BTreeMap<Rank, SignedManifest>,
    fence: Option<CertifiedHead>,
    handed: Vec<HandedSet>,
    /// Links that somebody has acked, with the head that they continue.
    locks: Vec<(Rank, Link)>,
    candidates_asked: bool,
    /// Who was asked what, and what came of it.
    asked: BTreeMap<(PeerKey, What), Said>,
    tags: BTreeMap<Tag, Question>,
    last_tag: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Head,
    Recall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Silent,
    /// Answered, and its answer verifies.
    Answered,
    /// It lost its store, too.
    Recovering,
    /// Unreachable, refusing or faulty.
    Nothing,
}

#[derive(Clone)]
struct Question {
    peer: PeerKey,
    what: What,
    sent_us: u64,
    /// Asked again since: a failure of this one means nothing.
    again: bool,
}

impl Recover {
    /// Begins. The first requests are among the actions; without anyone to ask it is over at once.
    pub fn start(mut task: RecoverTask, now: Now) -> (Self, Vec<RecoverOut>) {
        let key = task.key;
        task.known.take_if(|head| head.manifest.key != key);
        task.asked.take_if(|manifest| manifest.key != key);
        let named = task.asked.iter().flat_map(|manifest| manifest.older.iter().flat_map(|set| &set.holders).chain(&manifest.holders));
        let mut candidates: Vec<PeerKey> = Vec::new();
        for peer in named.chain(&task.candidates) {
            if *peer != task.me && !candidates.contains(peer) && candidates.len() < CANDIDATES_MAX {
                candidates.push(*peer);
            }
        }
        task.candidates = candidates;
        let mut recover = Self {
            best: task.known.clone(),
            task,
            started_us: now.mono_us,
            over: false,
            prepared: BTreeMap::new(),
            fence: None,
            handed: Vec::new(),
            locks: Vec::new(),
            candidates_asked: false,
            asked: BTreeMap::new(),
            tags: BTreeMap::new(),
            last_tag: 0,
        };
        let mut out = Vec::new();
        recover.advance(now, &mut out);
        (recover, out)
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, tag: Tag, reply: Reply, now: Now, verifier: &dyn Verifier) -> Vec<RecoverOut> {
        let mut out = Vec::new();
        let Some(question) = self.tags.remove(&tag) else { return out };
        if self.over {
            return out;
        }
        let Question { peer, what, again, .. } = question;
        let said = match (what, reply) {
            (_, Reply::Unreachable) if again => return out, // the same was asked once more
            (_, Reply::Answer(Response::Busy)) => {
                self.tags.insert(tag, Question { sent_us: now.mono_us, ..question });
                return out;
            }
            (_, Reply::Answer(Response::Recovering)) => Said::Recovering,
            (What::Head, Reply::Answer(Response::Head(answer))) => self.learn_answer(answer, verifier),
            (What::Recall, Reply::Answer(Response::Recalled(answer))) => self.learn_recalled(answer, verifier),
            _ => Said::Nothing,
        };
        let entry = self.asked.entry((peer, what)).or_insert(said);
        if *entry != Said::Answered {
            *entry = said; // a late failure does not undo an answer
        }
        self.advance(now, &mut out);
        out
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, now: Now) -> Vec<RecoverOut> {
        let mut out = Vec::new();
        if self.over {
            return out;
        }
        let silent = |question: &&mut Question| !question.again && now.mono_us >= question.sent_us + RESEND_US;
        let mut again = Vec::new();
        for question in self.tags.values_mut().filter(silent) {
            question.again = true;
            again.push((question.peer, question.what));
        }
        for (peer, what) in again {
            self.send(peer, what, now, &mut out);
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

    fn end_us(&self) -> u64 {
        self.started_us.saturating_add(RECOVER_MS_MAX * 1000)
    }

    fn advance(&mut self, now: Now, out: &mut Vec<RecoverOut>) {
        let late = now.mono_us >= self.end_us();
        let expired = self.best.as_ref().is_none_or(|best| is_expired(best, now));
        if expired && !self.candidates_asked {
            self.candidates_asked = true;
            for peer in self.task.candidates.clone() {
                self.ask(peer, What::Head, now, out);
            }
        }
        // Perhaps one of them still leads to a head, or to a higher one.
        let searching = expired && !late && self.asked.iter().any(|((_, what), said)| (*what, *said) == (What::Head, Said::Silent));
        if self.best.is_none() && searching {
            return;
        }
        let best = self.best.as_ref().map(|head| (head.holders().to_vec(), head.manifest.shape));
        let asked = self.task.asked.as_ref().map(|manifest| (manifest.holders.clone(), manifest.shape));
        let Some((holders, shape)) = best.or(asked) else {
            return self.finish(Recovered::Unknown, out);
        };
        let others: Vec<PeerKey> = holders.iter().copied().filter(|peer| *peer != self.task.me).collect();
        for peer in &others {
            self.ask(*peer, What::Recall, now, out);
        }
        let count = |wanted: Said| others.iter().filter(|peer| self.asked.get(&(**peer, What::Recall)) == Some(&wanted)).count();
        let known = self.best.is_some() && count(Said::Answered) >= usize::from(shape.quorum());
        if known && !searching {
            return self.finish(Recovered::Known, out);
        }
        if !late && (searching || count(Said::Silent) > 0) {
            return;
        }
        let beyond = self.best.is_some() && count(Said::Recovering) >= usize::from(shape.f());
        self.finish(if beyond { Recovered::Beyond } else { Recovered::Unknown }, out);
    }

    fn finish(&mut self, how: fn(Box<Recollection>) -> Recovered, out: &mut Vec<RecoverOut>) {
        self.over = true;
        self.tags.clear();
        let prepared = std::mem::take(&mut self.prepared).into_values().collect();
        let head = self.best.take();
        let locks = std::mem::take(&mut self.locks).into_iter().filter(|(rank, _)| head.as_ref().map(head_rank) == Some(*rank));
        let lock = locks.map(|(_, link)| link).max_by_key(|link| link.issued_at_ms);
        let handed = Handed { sets: std::mem::take(&mut self.handed), lock };
        out.push(RecoverOut::Done(how(Box::new(Recollection { head, prepared, fence: self.fence.take(), handed }))));
    }
}

// Asking, and what answers teach.
impl Recover {
    fn ask(&mut self, peer: PeerKey, what: What, now: Now, out: &mut Vec<RecoverOut>) {
        if let Entry::Vacant(entry) = self.asked.entry((peer, what)) {
            entry.insert(Said::Silent);
            self.send(peer, what, now, out);
        }
    }

    fn send(&mut self, peer: PeerKey, what: What, now: Now, out: &mut Vec<RecoverOut>) {
        let key = self.task.key;
        let request = match what {
            What::Head => Request::Head { key, fence: None, with_shard: false },
            What::Recall => match self.owner() {
                Some(owner) => Request::Recall { key, owner },
                None => return,
            },
        };
        self.last_tag += 1;
        self.tags.insert(Tag(self.last_tag), Question { peer, what, sent_us: now.mono_us, again: false });
        out.push(RecoverOut::Send { tag: Tag(self.last_tag), to: peer, request });
    }

    fn owner(&self) -> Option<OwnerKey> {
        let best = self.best.as_ref().map(|head| head.manifest.owner);
        best.or_else(|| self.task.asked.as_ref().map(|manifest| manifest.owner))
    }

    fn learn_recalled(&mut self, answer: RecallAnswer, verifier: &dyn Verifier) -> Said {
        if let Some(fence) = answer.fence
            && self.learn_fence(fence, verifier).is_none()
        {
            return Said::Nothing;
        }
        self.learn_answer(answer.head, verifier)
    }

    /// What a holder says of the section; nothing that does not verify counts.
    fn learn_answer(&mut self, answer: HeadAnswer, verifier: &dyn Verifier) -> Said {
        for head in [answer.expired, answer.committed].into_iter().flatten() {
            if self
                .best
                .as_ref()
                .is_some_and(|best| *best.manifest.wire() == head.manifest && (head.handover.is_none() || best.to_wire() == head))
            {
                continue;
            }
            let Some(head) =
                CertifiedHead::verify_with(head, self.best.as_ref(), verifier).ok().filter(|head| head.manifest.key == self.task.key)
            else {
                return Said::Nothing;
            };
            if self.best.as_ref().is_none_or(|best| head_rank(best) < head_rank(&head)) {
                self.prepared = self.prepared.split_off(&rank(&head.manifest));
                self.prepared.remove(&rank(&head.manifest));
                self.best = Some(head);
            }
        }
        if let Some(handed) = answer.handed {
            self.learn_handed(handed, verifier);
        }
        for prepared in answer.prepared.into_iter().take(LEARNT_MAX) {
            if self.prepared.values().any(|known| *known.wire() == prepared.manifest) {
                continue;
            }
            let Ok(manifest) = SignedManifest::verify(prepared.manifest, verifier) else { continue };
            let above = self.best.as_ref().is_none_or(|best| rank(&best.manifest) < rank(&manifest));
            if above && manifest.key == self.task.key {
                self.prepared.insert(rank(&manifest), manifest);
                if self.prepared.len() > LEARNT_MAX {
                    self.prepared.pop_first();
                }
            }
        }
        Said::Answered
    }

    /// Keeps what a holder has signed. A set is its own word only; a lock proves itself.
    fn learn_handed(&mut self, handed: Handed, verifier: &dyn Verifier) {
        for set in handed.sets.into_iter().take(SIGNED_MAX) {
            if !self.handed.contains(&set) {
                self.handed.push(set);
            }
        }
        let (Some(link), Some(best)) = (handed.lock, self.best.as_ref()) else { return };
        let handover = Handover::of(&best.manifest, best.holders(), link.issued_at_ms, &link.replaced);
        let proven = handover.is_some_and(|handover| handover.agreed(&best.manifest, &link.consents, verifier));
        if proven {
            self.locks.push((head_rank(best), link)); // one of each peer that was asked
        }
    }

    /// Keeps the fence of the highest host. A fence outlives its card, so it may have expired.
    fn learn_fence(&mut self, fence: HeadWire, verifier: &dyn Verifier) -> Option<()> {
        if self.fence.as_ref().is_some_and(|known| *known.manifest.wire() == fence.manifest) {
            return Some(());
        }
        let head = CertifiedHead::verify(fence, verifier).ok()?;
        let card = head.manifest.name == CARD_NAME && head.manifest.class == Class::Core;
        if !card || Some(head.manifest.owner) != self.owner() {
            return None;
        }
        if self.fence.as_ref().is_none_or(|known| host(&known.manifest.version) < host(&head.manifest.version)) {
            self.fence = Some(head);
        }
        Some(())
    }
}
