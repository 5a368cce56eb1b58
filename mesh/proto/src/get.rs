//! One get of one section: which version is current, and what are its bytes? (docs/spec/quorum.md#get)
//!
//! Only certified versions count. A certified head names its holders; `n - f` answers of them that know nothing higher make it current,
//! and any `k` of their shards, re-encoded and compared, make its content. Both questions travel in one round trip.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use persona_fragments::{
    Ack, Certificate, CertifiedHead, Digest, Equivocation, OlderSet, OwnerKey, PeerKey, ReconstructError, SectionKey, SignedManifest,
    Verifier, Version,
    certificate::HeadWire,
    coding::{content_hash, reconstruct},
    manifest::ManifestWire,
    mutants::{self, Mutant},
};

use crate::{
    exchange::{Reply, Tag},
    holder::{Rank, clock_allowance_ms, head_rank, rank},
    message::{HandedSet, HeadAnswer, PreparedWire, Request, Response},
    put::fence_of,
    time::Now,
    told::{Told, live_older},
};

/// How fresh a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The first unexpired certified version that decodes; its staleness is bounded by its lifetime.
    Any,
    /// At least the last version whose put had committed when the get began. The default.
    Regular,
    /// And never older than what another atomic get returned before this one began.
    Atomic,
}

/// What to get.
#[derive(Clone, Debug)]
pub struct GetTask {
    /// The section.
    pub key: SectionKey,
    /// Whose it must be; `None` (`analyze` by key alone): anyone's whose owner and name give the key.
    pub owner: Option<OwnerKey>,
    /// How fresh.
    pub mode: Mode,
    /// Peers that may know the head: the closest ones, cached holders, contacts. At most [`CANDIDATES_MAX`] are asked.
    pub candidates: Vec<PeerKey>,
    /// A verified head from a cache: saves a round trip.
    pub known: Option<CertifiedHead>,
    /// The highest version that this node ever returned for the section: it never goes back.
    pub floor: Option<Version>,
    /// Takeover: the certified card of the new term, sent with every HEAD.
    pub fence: Option<CertifiedHead>,
    /// Ask further holders for shards after this many microseconds: the p95 round trip.
    pub hedge_after_us: u64,
    /// `false`: the head only.
    pub want_content: bool,
}

/// The most candidates that one get asks; those behind are left out.
pub const CANDIDATES_MAX: usize = 32;

/// A get is over after so long, one way or the other.
pub const GET_MS_MAX: u64 = 5_000;

/// A question without a reply is asked again after so long.
const RESEND_US: u64 = 1_000_000;

/// Certified heads that one get keeps track of; when there are more, the lowest is forgotten.
const HEADS_MAX: usize = 8;

/// Uncertified versions that one get keeps track of, and looks at in one answer; further ones are ignored, as all of them may be.
pub(crate) const PREPARED_MAX: usize = 16;

/// What the caller does for a get, in order.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "handed on at once, never kept")]
pub enum GetOut {
    /// Send this request; hand its reply to [`Get::reply`].
    Send {
        /// Names the request.
        tag: Tag,
        /// To whom. May be this very node.
        to: PeerKey,
        /// The request.
        request: Request,
    },
    /// It is over. Requests still under way may be cancelled.
    Done(Result<Box<GetValue>, GetError>),
}

/// How fresh a value is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Freshness {
    /// Certified, unexpired; a newer version may exist.
    MaybeStale,
    /// `n - f` of its holders know nothing newer.
    Regular,
    /// And `n - f` of every live holder set know this one.
    Atomic,
}

/// What one peer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The highest certified version it knows, if any. Expired ones included.
    Head(Option<Version>),
    /// It lost its store and cannot say yet.
    Recovering,
    /// It would not say: busy, or full, or it takes the request for wrong.
    Refused,
    /// It could not be reached.
    Unreachable,
    /// Its answer does not verify or does not fit.
    Faulty,
    /// No reply yet.
    Silent,
}

/// A section's content and how it was found.
#[derive(Clone, Debug)]
pub struct GetValue {
    /// Manifest and certificate.
    pub head: CertifiedHead,
    /// The sealed content; empty if only the head was wanted.
    pub content: Vec<u8>,
    /// How fresh it is known to be.
    pub fresh: Freshness,
    /// Every peer that was asked, and what it said; the holders first, by index.
    pub answers: Vec<(PeerKey, Answered)>,
    /// Whose shards were used, with their indices.
    pub shards_from: Vec<(PeerKey, u8)>,
    /// Holders that answered without their shard, with a wrong one, or that they lost their store: who decoded may hand it back to them.
    pub missing: Vec<(PeerKey, u8)>,
    /// Uncertified versions above it that some holder has acked: whoever takes over settles them.
    pub prepared_seen: Vec<SignedManifest>,
    /// The older holder sets in the manifest that have not expired.
    pub older_sets: Vec<OlderSet>,
}

/// Why a get returned nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GetError {
    /// Nobody who answered knows a certified version. Proves nothing in an eclipsed or partitioned neighbourhood.
    #[error("no certified version found: {answered} of {asked} peers answered")]
    NotFound {
        /// Peers asked.
        asked: usize,
        /// Peers that answered.
        answered: usize,
    },
    /// The current version has expired, and the owner has not renewed it.
    #[error("version {version} has expired: its owner must renew it")]
    Expired {
        /// The version.
        version: Version,
    },
    /// Too few shards could be had, but their holders may come back.
    #[error("version {version}: only {have} of {need} shards answered, {asked} holders were asked; try again when holders are back")]
    Unavailable {
        /// The version.
        version: Version,
        /// Valid shards.
        have: u8,
        /// `k`.
        need: u8,
        /// Holders asked.
        asked: u8,
    },
    /// Too few holders answered to say which version is current.
    #[error("only {have} of {need} holders answered; mode any may still read a possibly older version")]
    QuorumUnreachable {
        /// Holders that answered.
        have: usize,
        /// `n - f`; 1 where not even a head was found.
        need: usize,
        /// The highest certified version seen.
        head: Option<Box<CertifiedHead>>,
    },
    /// More than `n - k` holders say that they have no valid shard.
    #[error("version {version} is lost: {lost} of its {n} shards are gone; restore it from the owner's disk or a backup")]
    DataLost {
        /// The version.
        version: Version,
        /// Shards that are gone.
        lost: u8,
        /// All shards.
        n: u8,
    },
    /// The owner signed hashes that belong to no content. Every reader gets this verdict.
    #[error("version {version} is poisoned: its owner signed hashes that belong to no content")]
    Poisoned {
        /// The version.
        version: Version,
        /// The evidence.
        manifest: Box<ManifestWire>,
    },
    /// Only versions older than one already returned by this node were found.
    #[error("found version {found}, older than version {floor} read before; try again when more holders are back")]
    BelowFloor {
        /// The highest found.
        found: Version,
        /// The floor.
        floor: Version,
    },
    /// Takeover: yet another host has taken the agent over, with a higher term or device.
    #[error("fenced: another host has taken this agent over in term {}", by.manifest.version.term)]
    Fenced {
        /// The verified proof.
        by: Box<CertifiedHead>,
    },
}

/// One get under way.
#[derive(Clone, Debug)]
pub struct Get {
    task: GetTask,
    started: Now,
    over: bool,
    candidates_asked: bool,
    /// Certified heads, verified: at most [`HEADS_MAX`].
    heads: BTreeMap<Rank, CertifiedHead>,
    /// Those of them whose certificate was put together here: their holders may not know it yet.
    formed: BTreeSet<Rank>,
    /// Uncertified manifests above the best head and the acks seen for them: at most [`PREPARED_MAX`].
    prepared: BTreeMap<Rank, (SignedManifest, BTreeMap<u8, Ack>)>,
    /// Two manifests of one version, if any were seen.
    evidence: Option<Box<Equivocation>>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Shards that match some head, by index and hash: a renewal has the same ones.
    shards: BTreeMap<(u8, Digest), Vec<u8>>,
    /// What became of asking a peer for its shard of a version.
    shard_asks: BTreeMap<(PeerKey, Rank), Asked>,
    /// What became of telling a peer the head that is returned.
    commit_asks: BTreeMap<(PeerKey, Rank), Asked>,
    /// The sets that peers named when they confirmed it, or were asked for the head.
    handed: BTreeMap<PeerKey, Vec<HandedSet>>,
    /// The version whose shards are fetched, and when to ask all its holders for them.
    target: Option<(Rank, u64)>,
    /// The content of a version, decoded and compared.
    decoded: Option<(Rank, Vec<u8>)>,
    tags: BTreeMap<Tag, Question>,
    last_tag: u32,
}

/// A peer that was asked HEAD.
#[derive(Clone, Debug)]
struct Peer {
    answered: Answered,
    /// The highest certified version that is durable there.
    carries: Option<Rank>,
    with_shard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Pending,
    /// Done as asked.
    Done,
    /// Answered, but not with what was asked for.
    Empty,
    Unreachable,
}

#[derive(Clone, Debug)]
struct Question {
    peer: PeerKey,
    what: What,
    sent_us: u64,
    /// Asked again since: a failure of this one means nothing.
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Head { with_shard: bool },
    Shard { rank: Rank },
    Commit { rank: Rank },
}

impl Get {
    /// Begins. The first requests are among the actions; without anyone to ask it is over at once.
    pub fn start(mut task: GetTask, now: Now) -> (Self, Vec<GetOut>) {
        task.candidates.truncate(CANDIDATES_MAX);
        let (key, owner) = (task.key, task.owner);
        task.known.take_if(|head| head.manifest.key != key || owner.is_some_and(|owner| head.manifest.owner != owner));
        let heads = task.known.iter().map(|head| (head_rank(head), head.clone())).collect();
        let mut get = Self {
            task,
            started: now,
            over: false,
            candidates_asked: false,
            heads,
            formed: BTreeSet::new(),
            prepared: BTreeMap::new(),
            evidence: None,
            peers: BTreeMap::new(),
            shards: BTreeMap::new(),
            shard_asks: BTreeMap::new(),
            commit_asks: BTreeMap::new(),
            handed: BTreeMap::new(),
            target: None,
            decoded: None,
            tags: BTreeMap::new(),
            last_tag: 0,
        };
        let mut out = Vec::new();
        get.advance(now, &mut out);
        (get, out)
    }

    /// A reply to the request named `tag`.
    pub fn reply(&mut self, tag: Tag, reply: Reply, now: Now, verifier: &dyn Verifier) -> Vec<GetOut> {
        let mut out = Vec::new();
        let Some(question) = self.tags.remove(&tag) else { return out };
        if now.mono_us >= self.end_us() && !self.over {
            self.advance(now, &mut out); // whatever comes after the end does not count
        }
        if self.over {
            return out;
        }
        match (reply, question.what) {
            (Reply::Unreachable, _) if question.again => {}
            (Reply::Answer(Response::Busy), _) => {
                self.tags.insert(tag, Question { sent_us: now.mono_us, ..question });
            }
            (Reply::Unreachable, What::Head { .. }) => {
                self.answered(&question.peer, Answered::Unreachable);
            }
            (Reply::Unreachable, What::Shard { rank }) => {
                self.shard_asks.insert((question.peer, rank), Asked::Unreachable);
            }
            (Reply::Unreachable, What::Commit { rank }) => {
                self.commit_asks.insert((question.peer, rank), Asked::Unreachable);
            }
            (Reply::Answer(response), What::Head { .. }) => {
                if let Some(by) = self.on_head(&question.peer, response, verifier) {
                    self.finish(Err(GetError::Fenced { by: Box::new(by) }), &mut out);
                    return out;
                }
            }
            (Reply::Answer(response), What::Shard { rank }) => self.on_shard(&question.peer, rank, response, verifier),
            (Reply::Answer(response), What::Commit { rank }) => self.on_commit(&question.peer, rank, response, verifier),
        }
        self.advance(now, &mut out);
        out
    }

    /// Time has passed: call at [`Self::deadline`] or later.
    pub fn tick(&mut self, now: Now) -> Vec<GetOut> {
        let mut out = Vec::new();
        if self.over {
            return out;
        }
        let silent = |question: &&mut Question| !question.again && now.mono_us >= question.sent_us + RESEND_US;
        let mut again = Vec::new();
        for question in self.tags.values_mut().filter(silent) {
            question.again = true;
            again.push(question.clone());
        }
        if !again.is_empty() {
            // Whoever was thought to hold it is slow: perhaps others know more by now.
            self.ask_candidates(now, &mut out);
        }
        for Question { peer, what, .. } in again {
            self.ask(peer, what, now, &mut out);
        }
        self.advance(now, &mut out);
        out
    }

    /// When to call [`Self::tick`] next, in microseconds of [`Now::mono_us`]; `None` once finished.
    pub fn deadline(&self) -> Option<u64> {
        if self.over {
            return None;
        }
        let resend = self.tags.values().filter(|question| !question.again).map(|question| question.sent_us + RESEND_US).min();
        let hedge = self.target.map(|(_, hedge_us)| hedge_us).filter(|hedge_us| *hedge_us != HEDGED);
        [Some(self.end_us()), resend, hedge].into_iter().flatten().min()
    }

    /// Whether it is over.
    pub fn finished(&self) -> bool {
        self.over
    }

    /// Every peer asked so far and what it said, the holders first: also after a failure.
    pub fn answers(&self) -> Vec<(PeerKey, Answered)> {
        let holders = self.best().map_or(&[][..], CertifiedHead::holders);
        let others = self.peers.keys().filter(|peer| !holders.contains(peer));
        holders.iter().chain(others).filter_map(|peer| Some((*peer, self.peers.get(peer)?.answered))).collect()
    }

    /// The proof that the owner's key signed two manifests of one version, once, if this get came upon it: also after a failure.
    pub fn take_evidence(&mut self) -> Option<Box<Equivocation>> {
        self.evidence.take()
    }

    /// Versions above it that were acked and are not known to be certified: also after a failure.
    pub fn prepared_seen(&self) -> Vec<SignedManifest> {
        self.prepared.values().map(|(manifest, _)| manifest.clone()).collect()
    }

    /// The highest certified head found so far, expired or not: also after a failure.
    pub fn best(&self) -> Option<&CertifiedHead> {
        self.heads.values().next_back()
    }
}

/// In place of the time of a hedge: it has taken place.
const HEDGED: u64 = u64::MAX;

// What answers teach.
impl Get {
    /// An answer to HEAD. Returns the proof if this node, taking over, is itself fenced.
    fn on_head(&mut self, peer: &PeerKey, response: Response, verifier: &dyn Verifier) -> Option<CertifiedHead> {
        let answered = match response {
            Response::Head(answer) => self.on_head_answer(peer, answer, verifier).map_or(Answered::Faulty, Answered::Head),
            Response::Recovering => Answered::Recovering,
            Response::Refused { .. } => Answered::Refused,
            Response::Fenced { head } => {
                let fence = self.task.fence.as_ref();
                if let Some(by) = fence.and_then(|fence| fence_of(&fence.manifest, head, verifier)) {
                    return Some(by);
                }
                Answered::Faulty
            }
            _ => Answered::Faulty,
        };
        self.answered(peer, answered);
        None
    }

    fn answered(&mut self, peer: &PeerKey, answered: Answered) {
        if let Some(entry) = self.peers.get_mut(peer) {
            // A late failure does not undo an answer.
            if !matches!(entry.answered, Answered::Head(_)) || matches!(answered, Answered::Head(_)) {
                entry.answered = answered;
            }
        }
    }

    /// The highest certified version that the answer names; `None` if it does not verify.
    fn on_head_answer(&mut self, peer: &PeerKey, answer: HeadAnswer, verifier: &dyn Verifier) -> Option<Option<Version>> {
        let mut carries = None;
        for head in [answer.expired, answer.committed].into_iter().flatten() {
            carries = carries.max(Some(self.learn(head, verifier)?));
        }
        if let Some(entry) = self.peers.get_mut(peer) {
            entry.carries = entry.carries.max(carries);
        }
        if let Some(handed) = answer.handed {
            self.handed.insert(*peer, handed.sets);
        }
        for prepared in answer.prepared.into_iter().take(PREPARED_MAX) {
            self.learn_prepared(peer, prepared, verifier);
        }
        let got = answer.shard.is_some_and(|shard| self.learn_shard(peer, shard.index, shard.bytes));
        let asked = self.peers.get(peer).is_some_and(|entry| entry.with_shard);
        if let Some(carried) = carries.filter(|_| asked && !got) {
            self.shard_asks.insert((*peer, carried), Asked::Empty);
        }
        Some(carries.map(|(version, ..)| version))
    }

    /// Verifies a head, unless its manifest is already known to be certified: other signatures of the same quorum add nothing.
    fn learn(&mut self, wire: HeadWire, verifier: &dyn Verifier) -> Option<Rank> {
        let known = self.heads.values().rev().find(|known| known.manifest.wire() == &wire.manifest);
        if let Some(known) = known {
            let offered = CertifiedHead::trusted(wire.clone()).ok()?;
            if offered.generation() <= known.generation() {
                return Some(head_rank(&offered)); // it leads to nothing that is not known
            }
        }
        let prepared = self.prepared.values().map(|(manifest, _)| manifest).find(|manifest| manifest.wire() == &wire.manifest);
        let head = match (known, prepared) {
            (Some(known), _) => CertifiedHead::verify_with(wire, Some(known), verifier).ok()?,
            (None, Some(manifest)) => CertifiedHead::verify_after(wire, manifest, verifier).ok()?,
            (None, None) => CertifiedHead::verify(wire, verifier).ok()?,
        };
        if !self.is_ours(&head.manifest) {
            return None;
        }
        self.compare(&head.manifest);
        Some(self.add_head(head))
    }

    /// Keeps the proof if another manifest of this version is known. Both were verified.
    fn compare(&mut self, manifest: &SignedManifest) {
        let known = self.heads.values().map(|head| &head.manifest).chain(self.prepared.values().map(|(manifest, _)| manifest));
        if let Some(evidence) = known.into_iter().find_map(|known| Equivocation::of(known, manifest)) {
            self.evidence = Some(Box::new(evidence));
        }
    }

    fn add_head(&mut self, head: CertifiedHead) -> Rank {
        let rank = head_rank(&head);
        self.prepared = self.prepared.split_off(&rank);
        self.prepared.remove(&rank);
        self.heads.insert(rank, head);
        if self.heads.len() > HEADS_MAX {
            self.heads.pop_first();
        }
        rank
    }

    fn is_ours(&self, manifest: &SignedManifest) -> bool {
        manifest.key == self.task.key && self.task.owner.is_none_or(|owner| owner == manifest.owner)
    }

    /// An uncertified version counts for nothing, until `n - f` of its holders are found to have acked it: that is its certificate.
    fn learn_prepared(&mut self, peer: &PeerKey, prepared: PreparedWire, verifier: &dyn Verifier) {
        let known = self.prepared.iter().find(|(_, (manifest, _))| manifest.wire() == &prepared.manifest).map(|(rank, _)| *rank);
        let rank = match known {
            Some(rank) => rank,
            None => {
                let Ok(manifest) = SignedManifest::verify(prepared.manifest, verifier) else { return };
                if self.is_ours(&manifest) {
                    self.compare(&manifest);
                }
                let rank = rank(&manifest);
                let above = self.heads.last_key_value().is_none_or(|(best, _)| rank > *best);
                if !above || !self.is_ours(&manifest) || self.prepared.len() >= PREPARED_MAX {
                    return;
                }
                self.prepared.insert(rank, (manifest, BTreeMap::new()));
                rank
            }
        };
        let Some((manifest, acks)) = self.prepared.get_mut(&rank) else { return };
        let index = prepared.ack.index;
        let genuine = manifest.holders.get(usize::from(index)) == Some(peer)
            && (acks.contains_key(&index) || prepared.ack.verify(&manifest.ack_leaf(index), peer, verifier));
        if !genuine {
            return;
        }
        acks.insert(index, prepared.ack);
        if acks.len() >= usize::from(manifest.shape.quorum()) {
            let certificate = Certificate { acks: acks.values().cloned().collect() };
            let head = CertifiedHead { manifest: manifest.clone(), certificate, lease: None };
            self.add_head(head);
            self.formed.insert(rank);
        }
    }

    /// Keeps a shard that some head lists for this peer.
    fn learn_shard(&mut self, peer: &PeerKey, index: u8, bytes: Vec<u8>) -> bool {
        let hash = content_hash(&bytes);
        let fits = |head: &&CertifiedHead| {
            head.index_of(peer) == Some(index)
                && head.manifest.shard_hashes[usize::from(index)] == hash
                && head.manifest.shard_len() == bytes.len()
        };
        let wanted = self.heads.values().any(|head| fits(&head));
        if wanted {
            self.shards.insert((index, hash), bytes);
        }
        wanted
    }

    fn on_shard(&mut self, peer: &PeerKey, rank: Rank, response: Response, verifier: &dyn Verifier) {
        let got = match response {
            Response::Shard { index, bytes } => self.learn_shard(peer, index, bytes),
            Response::Superseded { head } => {
                if let Some(carries) = self.learn(head, verifier)
                    && let Some(entry) = self.peers.get_mut(peer)
                {
                    entry.carries = entry.carries.max(Some(carries));
                }
                false
            }
            Response::Recovering => {
                self.answered(peer, Answered::Recovering);
                self.shard_asks.insert((*peer, rank), Asked::Unreachable); // it may have it yet
                return;
            }
            _ => false,
        };
        self.shard_asks.insert((*peer, rank), if got { Asked::Done } else { Asked::Empty });
    }

    fn on_commit(&mut self, peer: &PeerKey, told: Rank, response: Response, verifier: &dyn Verifier) {
        let asked = match response {
            Response::Committed => Asked::Done,
            Response::Handed { sets } => {
                self.handed.insert(*peer, sets);
                Asked::Done
            }
            Response::Fenced { head } => {
                let fenced = self.heads.get(&told).and_then(|head_told| fence_of(&head_told.manifest, head.clone(), verifier));
                match fenced {
                    // A higher version of this very section: follow it.
                    Some(by) if by.manifest.key == self.task.key => {
                        self.add_head(by);
                        Asked::Done
                    }
                    // A fence bars the old host from committing, but the head that it was told is durable there all the same.
                    Some(_) => Asked::Done,
                    None => Asked::Empty,
                }
            }
            _ => Asked::Empty,
        };
        self.commit_asks.insert((*peer, told), asked);
    }
}

// What to do next: looks at all that is known, asks what is missing, ends when nothing is.
impl Get {
    fn advance(&mut self, now: Now, out: &mut Vec<GetOut>) {
        if self.heads.is_empty() {
            return self.advance_without_head(now, out);
        }
        let late = now.mono_us >= self.end_us();
        let best = self.best().expect("not empty").clone();
        let expired = is_expired(&best, now);
        if expired {
            // Perhaps only this node still believes in it.
            self.ask_candidates(now, out);
        }
        self.choose_target(&best, expired, now);
        self.ask_holders(&best, now, out);
        if self.task.mode == Mode::Any && !expired {
            return self.advance_any(&best, late, now, out);
        }
        let need = usize::from(best.manifest.shape.quorum());
        let version = best.manifest.version;
        let counts = |said: Option<Answered>| match said {
            Some(Answered::Head(_)) => true,
            Some(Answered::Recovering) => mutants::on(Mutant::CountRecovering),
            _ => false,
        };
        let have = best.holders().iter().filter(|peer| counts(self.said(peer))).count();
        let waiting = best.holders().iter().filter(|peer| self.said(peer) == Some(Answered::Silent)).count();
        if have < need {
            if !late && (have + waiting >= need || !self.candidates_exhausted(now, out)) {
                return;
            }
            let head = self.best().cloned().map(Box::new);
            return self.finish(Err(GetError::QuorumUnreachable { have, need, head }), out);
        }
        if expired || self.task.floor.is_some_and(|floor| version < floor) {
            if !self.candidates_exhausted(now, out) && !late {
                return;
            }
            let error = match self.task.floor.filter(|floor| version < *floor) {
                Some(floor) => GetError::BelowFloor { found: version, floor },
                None => GetError::Expired { version },
            };
            return self.finish(Err(error), out);
        }
        let content = match self.content(&best, late) {
            Some(Ok(content)) => content,
            Some(Err(error)) => return self.finish(Err(error), out),
            None => return,
        };
        let fresh = match self.task.mode {
            Mode::Atomic => match self.write_back(&best, late, now, out) {
                Some(fresh) => fresh,
                None => return,
            },
            Mode::Any | Mode::Regular => {
                self.help(&best, now, out);
                Freshness::Regular
            }
        };
        let value = self.value(&best, content, fresh, now);
        self.finish(Ok(Box::new(value)), out);
    }

    fn advance_without_head(&mut self, now: Now, out: &mut Vec<GetOut>) {
        self.ask_candidates(now, out);
        // The holders of an uncertified version may together have its certificate.
        let holders = self.prepared.values().next_back().map_or(Vec::new(), |(manifest, _)| manifest.holders.clone());
        for peer in holders {
            self.ask_head(peer, self.task.want_content, now, out);
        }
        if self.peers.values().any(|peer| peer.answered == Answered::Silent) && now.mono_us < self.end_us() {
            return;
        }
        let asked = self.peers.len();
        let answered = self.peers.values().filter(|peer| matches!(peer.answered, Answered::Head(_))).count();
        let error = match answered {
            0 if asked > 0 => GetError::QuorumUnreachable { have: 0, need: 1, head: None },
            _ => GetError::NotFound { asked, answered },
        };
        self.finish(Err(error), out);
    }

    fn advance_any(&mut self, best: &CertifiedHead, late: bool, now: Now, out: &mut Vec<GetOut>) {
        let target = self.target.map_or(head_rank(best), |(target, _)| target);
        let head = self.heads[&target].clone();
        let manifest = &head.manifest;
        if let Some(floor) = self.task.floor.filter(|floor| manifest.version < *floor) {
            if !self.candidates_exhausted(now, out) && !late {
                return;
            }
            return self.finish(Err(GetError::BelowFloor { found: manifest.version, floor }), out);
        }
        let content = match self.content(&head, late) {
            Some(Ok(content)) => content,
            Some(Err(error)) => {
                let poisoned = matches!(error, GetError::Poisoned { .. });
                if poisoned || late || self.candidates_exhausted(now, out) {
                    self.finish(Err(error), out);
                }
                return;
            }
            None => return,
        };
        let have = best.holders().iter().filter(|peer| matches!(self.said(peer), Some(Answered::Head(_)))).count();
        let regular = target == head_rank(best) && have >= usize::from(best.manifest.shape.quorum());
        let fresh = if regular { Freshness::Regular } else { Freshness::MaybeStale };
        let value = self.value(&head, content, fresh, now);
        self.finish(Ok(Box::new(value)), out);
    }

    /// Which version's shards to fetch: the best; in mode `any` the next lower one where that cannot be had.
    fn choose_target(&mut self, best: &CertifiedHead, expired: bool, now: Now) {
        let usable = |(_, head): &(&Rank, &CertifiedHead)| {
            !is_expired(head, now) && self.task.floor.is_none_or(|floor| head.manifest.version >= floor) && !self.exhausted(head)
        };
        let fallback = self.task.mode == Mode::Any && !expired && self.exhausted(best);
        let lower = self.heads.iter().rev().find(usable).map(|(rank, _)| *rank).filter(|_| fallback);
        let chosen = lower.unwrap_or(head_rank(best));
        if self.target.is_none_or(|(target, _)| target != chosen) {
            self.target = Some((chosen, now.mono_us.saturating_add(self.task.hedge_after_us)));
        }
    }

    /// Asks every holder of the best head what it knows, and as many as needed for their shards of the target.
    fn ask_holders(&mut self, best: &CertifiedHead, now: Now, out: &mut Vec<GetOut>) {
        let Some((target, hedge_us)) = self.target else { return };
        let head = self.heads[&target].clone();
        let k = usize::from(head.manifest.shape.k());
        let hedged = now.mono_us >= hedge_us;
        if hedged {
            self.target = Some((target, HEDGED));
        }
        let mut lacking = 0;
        if self.task.want_content && !is_expired(&head, now) && self.have(&head.manifest) < k {
            // One more than needed: the slowest never sets the pace.
            let under_way = head.holders().iter().filter(|peer| self.shard_state(&head, peer) == Some(Asked::Pending)).count();
            let wanted = if hedged || hedge_us == HEDGED { usize::from(head.manifest.shape.n()) } else { k + 1 };
            lacking = wanted.saturating_sub(self.have(&head.manifest) + under_way);
        }
        // Whoever was not asked anything yet is asked both in one; of the others, those that know the target certified come first.
        for peer in head.holders() {
            if !self.peers.contains_key(peer) {
                self.ask_head(*peer, lacking > 0, now, out);
                lacking = lacking.saturating_sub(1);
            }
        }
        let free = |peer: &&PeerKey| self.shard_state(&head, peer).is_none();
        let mut askable: Vec<PeerKey> = head.holders().iter().filter(free).copied().collect();
        askable.sort_by_key(|peer| self.peers.get(peer).and_then(|entry| entry.carries) != Some(target));
        for peer in askable.into_iter().take(lacking) {
            self.shard_asks.insert((peer, target), Asked::Pending);
            self.ask(peer, What::Shard { rank: target }, now, out);
        }
        for peer in best.holders() {
            self.ask_head(*peer, false, now, out);
        }
    }

    /// How it stands with a holder's shard of a version; `None`: it may be asked.
    fn shard_state(&self, head: &CertifiedHead, peer: &PeerKey) -> Option<Asked> {
        let manifest = &head.manifest;
        let index = head.index_of(peer)?;
        if self.shards.contains_key(&(index, manifest.shard_hashes[usize::from(index)])) {
            return Some(Asked::Done);
        }
        if let Some(asked) = self.shard_asks.get(&(*peer, head_rank(head))) {
            return Some(*asked);
        }
        let entry = self.peers.get(peer)?;
        match entry.answered {
            Answered::Silent => entry.with_shard.then_some(Asked::Pending),
            Answered::Unreachable | Answered::Recovering => Some(Asked::Unreachable),
            Answered::Head(_) | Answered::Refused | Answered::Faulty => None,
        }
    }

    /// Valid shards of a version.
    fn have(&self, manifest: &SignedManifest) -> usize {
        let hashes = manifest.shard_hashes.iter().enumerate();
        hashes.filter(|(index, hash)| self.shards.contains_key(&(*index as u8, **hash))).count()
    }

    /// Whether asking further cannot bring `k` shards together.
    fn exhausted(&self, head: &CertifiedHead) -> bool {
        let failed = |peer: &&PeerKey| matches!(self.shard_state(head, peer), Some(Asked::Empty | Asked::Unreachable));
        let left = head.holders().len() - head.holders().iter().filter(failed).count();
        self.task.want_content && left < usize::from(head.manifest.shape.k())
    }

    /// The content of a version, or why there is none; `None`: shards are under way.
    fn content(&mut self, head: &CertifiedHead, late: bool) -> Option<Result<Vec<u8>, GetError>> {
        let manifest = &head.manifest;
        if !self.task.want_content {
            return Some(Ok(Vec::new()));
        }
        let (have, need, version) = (self.have(manifest), manifest.shape.k(), manifest.version);
        if have >= usize::from(need) {
            if let Some((_, content)) = self.decoded.as_ref().filter(|(decoded, _)| *decoded == head_rank(head)) {
                return Some(Ok(content.clone()));
            }
            let shards = self.shards_of(manifest).map(|(index, bytes)| (index, bytes.clone())).collect();
            let content = reconstruct(manifest, &shards).map_err(|error| match error {
                ReconstructError::Poisoned => GetError::Poisoned { version, manifest: Box::new(manifest.wire().clone()) },
                ReconstructError::TooFew { have, need } => GetError::Unavailable { version, have, need, asked: manifest.shape.n() },
            });
            if let (Mode::Atomic, Ok(content)) = (self.task.mode, &content) {
                self.decoded = Some((head_rank(head), content.clone())); // needed again when the write-back is done
            }
            return Some(content);
        }
        if !late && !self.exhausted(head) {
            return None;
        }
        let states: Vec<Option<Asked>> = head.holders().iter().map(|peer| self.shard_state(head, peer)).collect();
        let lost = states.iter().filter(|state| **state == Some(Asked::Empty)).count() as u8;
        let n = manifest.shape.n();
        if lost > n - need {
            return Some(Err(GetError::DataLost { version, lost, n }));
        }
        let asked = states.iter().filter(|state| state.is_some()).count() as u8;
        Some(Err(GetError::Unavailable { version, have: have as u8, need, asked }))
    }

    fn shards_of<'a>(&'a self, manifest: &'a SignedManifest) -> impl Iterator<Item = (u8, &'a Vec<u8>)> {
        let hashes = manifest.shard_hashes.iter().enumerate();
        hashes.filter_map(|(index, hash)| Some((index as u8, self.shards.get(&(index as u8, *hash))?)))
    }

    /// Tells the head to `n - f` of every live holder set that may not know it; `None`: answers are under way.
    fn write_back(&mut self, best: &CertifiedHead, late: bool, now: Now, out: &mut Vec<GetOut>) -> Option<Freshness> {
        if mutants::on(Mutant::NoWriteBack) {
            return Some(Freshness::Atomic);
        }
        let told = head_rank(best);
        let version = best.manifest.version;
        let knows = |get: &Self, peer: &PeerKey| {
            let carries = get.peers.get(peer).and_then(|entry| entry.carries);
            // Which of its links somebody knows does not matter: what is told is the version.
            get.commit_asks.get(&(*peer, told)) == Some(&Asked::Done)
                || carries.is_some_and(|(carried, hash, _)| (carried, hash) >= (told.0, told.1))
        };
        let mut state = Told::new(&best.manifest, best.holders(), live_older(&best.manifest, now));
        let asked: BTreeSet<PeerKey> = self.peers.keys().chain(self.commit_asks.keys().map(|(peer, _)| peer)).copied().collect();
        for peer in asked.into_iter().filter(|peer| knows(self, peer)) {
            state.confirm(peer, &version, self.handed.get(&peer).cloned().unwrap_or_default());
        }
        let sets = state.needed();
        let mut waits = false;
        for set in &sets {
            if state.met(set, now) {
                continue;
            }
            for peer in &set.holders {
                if !knows(self, peer) && !self.commit_asks.contains_key(&(*peer, told)) {
                    self.commit_asks.insert((*peer, told), Asked::Pending);
                    self.ask(*peer, What::Commit { rank: told }, now, out);
                }
            }
            let may = |peer: &&PeerKey| knows(self, peer) || self.commit_asks.get(&(**peer, told)) == Some(&Asked::Pending);
            let possible = state.may_count(set, now) && set.holders.iter().filter(may).count() >= set.quorum;
            let more = set.is_named() && self.commit_asks.iter().any(|((_, rank), asked)| *rank == told && *asked == Asked::Pending);
            if late || !(possible || more) {
                return Some(Freshness::Regular);
            }
            waits = true;
        }
        (!waits).then_some(Freshness::Atomic)
    }

    /// Completes what a crashed writer left behind: tells everyone the certificate that was put together here. Nobody waits for it.
    fn help(&mut self, best: &CertifiedHead, now: Now, out: &mut Vec<GetOut>) {
        let told = head_rank(best);
        if !self.formed.contains(&told) {
            return;
        }
        let older: Vec<PeerKey> = live_older(&best.manifest, now).flat_map(|set| set.holders.clone()).collect();
        let everyone: BTreeSet<PeerKey> = best.holders().iter().copied().chain(older).collect();
        for peer in everyone {
            self.ask(peer, What::Commit { rank: told }, now, out);
        }
    }

    fn value(&self, head: &CertifiedHead, content: Vec<u8>, fresh: Freshness, now: Now) -> GetValue {
        let manifest = &head.manifest;
        let target = head_rank(head);
        let holders = || head.holders().iter().enumerate().map(|(index, peer)| (*peer, index as u8));
        let used: Vec<u8> = self.shards_of(manifest).map(|(index, _)| index).take(manifest.shape.k().into()).collect();
        let lacks = |peer: &PeerKey, index: u8| match self.shard_state(head, peer) {
            Some(Asked::Empty) => true,
            Some(_) => self.said(peer) == Some(Answered::Recovering),
            None => {
                let acked = self.prepared.get(&target).is_some_and(|(_, acks)| acks.contains_key(&index));
                let carries = self.peers.get(peer).and_then(|entry| entry.carries);
                !acked
                    && matches!(self.said(peer), Some(Answered::Head(_)))
                    && carries.map(|(version, hash, _)| (version, hash)) < Some((target.0, target.1))
                    && !self.formed.contains(&target)
            }
        };
        GetValue {
            head: self.heads[&target].clone(),
            content,
            fresh,
            answers: self.answers(),
            shards_from: holders().filter(|(_, index)| used.contains(index)).collect(),
            missing: holders().filter(|(peer, index)| lacks(peer, *index)).collect(),
            prepared_seen: self.prepared_seen(),
            older_sets: live_older(manifest, now).cloned().collect(),
        }
    }
}

// Asking.
impl Get {
    fn said(&self, peer: &PeerKey) -> Option<Answered> {
        self.peers.get(peer).map(|entry| entry.answered)
    }

    fn end_us(&self) -> u64 {
        self.started.mono_us.saturating_add(GET_MS_MAX * 1000)
    }

    fn ask_candidates(&mut self, now: Now, out: &mut Vec<GetOut>) {
        if !self.candidates_asked {
            self.candidates_asked = true;
            for peer in self.task.candidates.clone() {
                self.ask_head(peer, self.task.want_content, now, out);
            }
        }
    }

    /// Whether the candidates, too, have been asked and have nothing more to say. Asks them if not.
    fn candidates_exhausted(&mut self, now: Now, out: &mut Vec<GetOut>) -> bool {
        self.ask_candidates(now, out);
        !self.task.candidates.iter().any(|peer| self.said(peer) == Some(Answered::Silent))
    }

    fn ask_head(&mut self, peer: PeerKey, with_shard: bool, now: Now, out: &mut Vec<GetOut>) {
        if let Entry::Vacant(entry) = self.peers.entry(peer) {
            entry.insert(Peer { answered: Answered::Silent, carries: None, with_shard });
            self.ask(peer, What::Head { with_shard }, now, out);
        }
    }

    fn ask(&mut self, peer: PeerKey, what: What, now: Now, out: &mut Vec<GetOut>) {
        let key = self.task.key;
        let request = match what {
            What::Head { with_shard } => Request::Head { key, fence: self.task.fence.as_ref().map(CertifiedHead::to_wire), with_shard },
            What::Shard { rank } => Request::Shard { key, version: rank.0 },
            What::Commit { rank } => match self.heads.get(&rank) {
                Some(head) => Request::Commit { head: head.to_wire() },
                None => return, // so many newer ones are known that it was forgotten
            },
        };
        self.last_tag += 1;
        self.tags.insert(Tag(self.last_tag), Question { peer, what, sent_us: now.mono_us, again: false });
        out.push(GetOut::Send { tag: Tag(self.last_tag), to: peer, request });
    }

    fn finish(&mut self, result: Result<Box<GetValue>, GetError>, out: &mut Vec<GetOut>) {
        self.over = true;
        self.tags.clear();
        self.shards.clear();
        out.push(GetOut::Done(result));
    }
}

/// Whether its life is over for readers and writers.
pub(crate) fn is_expired(head: &CertifiedHead, now: Now) -> bool {
    !mutants::on(Mutant::AcceptExpired) && now.wall_ms >= head.expires_at_ms().saturating_add(clock_allowance_ms(head.manifest.class))
}
