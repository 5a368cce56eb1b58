//! Are the holders still there? The host of an agent asks them, and gives the place of one that is gone to another
//! (docs/spec/quorum.md#probing-and-re-placement).
//!
//! A holder is asked for all its sections with one request. Nothing follows from one silence: a machine that restarts, or a network that
//! hiccups, costs two unanswered questions and not one byte. Everything here is found again by the next probe, so nothing has to be queued.

use std::collections::{BTreeMap, BTreeSet};

use persona_fragments::{CertifiedHead, Class, OwnerKey, PeerKey, SectionKey, encode};
use persona_mesh_proto::{
    Now, Put, Reply, Request, Response, Tag,
    message::{Holding, PROBED_SECTIONS_MAX, ProbedSection},
};
use rand_core::Rng as _;

use crate::{
    call::CallError,
    node::{Node, OPS_MAX, Op, OpId},
    own::{Owned, OwnerState},
    report::{ChurnReport, ClockReport},
};

/// Every holder is asked once in so long, and up to [`PROBE_JITTER_US`] more. Twice that, and a third for good measure, fits into the silence
/// that a holder of core is granted; more often would only cost.
const PROBE_US: u64 = 10_000_000;

/// Spreads the probes of hosts that started together.
const PROBE_JITTER_US: u64 = 1_000_000;

/// One that did not answer is asked again after so long, so that a lost message is soon made good, and a silence is one of many questions.
const SUSPECTED_US: u64 = 1_000_000;

/// A holder that has lost what it had is asked again after so long, up to [`LOST_PROBES`] times while it lacks something: one that lost its
/// store asks nobody about it in its first [`RECOVERY_WAIT_MS`](persona_mesh_proto::holder::RECOVERY_WAIT_MS), and then only what it is asked for.
const LOST_US: u64 = 3_000_000;

/// So often: until it has had time to recover.
const LOST_PROBES: u8 = 6;

const _: () = assert!(LOST_PROBES as u64 * LOST_US > persona_mesh_proto::holder::RECOVERY_WAIT_MS * 1000 + 2 * LOST_US);

/// A holder whose connection broke is asked after so long, and up to as much more: a restart takes about that.
const HASTENED_US: u64 = 500_000;

/// So many failed probes, sent at least [`PROBE_US`] apart, are needed for a holder to be gone.
const FAILURES_GONE: u8 = 2;

/// Sections put again early at once. The most endangered go first; the next probe finds the rest.
const REPLACEMENTS_MAX: usize = 8;

/// A section for which there was no other holder, or whose early put failed, is not tried again early before.
const REPLACE_AGAIN_US: u64 = 30_000_000;

/// Holders handed their shards back at once. The next probe finds the rest.
const REFILLS_MAX: usize = 32;

/// A node asks so many peers for the time at least, holders or not: with seven, three may lie.
const CLOCK_PEERS: usize = 7;

/// A peer that holds nothing is asked for the time once in so long: clocks drift slowly.
const CLOCK_US: u64 = 60_000_000;

/// How soon after a peer came one that knows too few clocks asks.
const CLOCK_SOON_US: u64 = 500_000;

/// A version is left to its own placement for so long after its issue, in milliseconds.
const YOUNG_MS: u64 = 5_000;

/// Whom this node watches.
#[derive(Default)]
pub(crate) struct Probes {
    /// Holders of this node's sections, and up to [`CLOCK_PEERS`] others for their clocks.
    peers: BTreeMap<PeerKey, Watched>,
    /// When to look again, in monotonic microseconds.
    pub(crate) next_us: u64,
    /// Who is being handed which shard.
    refills: BTreeMap<(SectionKey, PeerKey), OpId>,
}

struct Watched {
    /// When to ask next, in monotonic microseconds.
    next_us: u64,
    /// Whether it holds something for this node. Others are only asked for the time.
    holds: bool,
    /// The last sign of life.
    alive_us: u64,
    /// Probes that failed since, each sent [`PROBE_US`] after the one before at the earliest.
    failures: u8,
    /// When the last of these was sent.
    failed_us: u64,
    /// How many more probes are sent early, because it lost what it had.
    hasty: u8,
    /// The probe on its way.
    op: Option<OpId>,
}

impl Watched {
    fn new(next_us: u64, holds: bool, now_us: u64) -> Self {
        Self { next_us, holds, alive_us: now_us, failures: 0, failed_us: 0, hasty: 0, op: None }
    }

    fn alive(&mut self, now_us: u64) {
        (self.alive_us, self.failures) = (now_us, 0);
    }
}

/// One probe on its way.
pub(crate) struct ProbeOp {
    peer: PeerKey,
    sent: Now,
    answered: bool,
    asked: BTreeMap<Tag, Vec<Asked>>,
    /// It has lost something that it had.
    lost: bool,
    /// It lacks something, has to recover, or did not say.
    lacks: bool,
}

/// A section that a holder is asked for.
struct Asked {
    owner: OwnerKey,
    name: String,
    section: ProbedSection,
}

impl Probes {
    /// A peer answered something.
    pub(crate) fn heard(&mut self, peer: &PeerKey, now_us: u64) {
        if let Some(watched) = self.peers.get_mut(peer) {
            watched.alive(now_us);
        }
    }

    /// A connection broke, or is there again: ask soon.
    pub(crate) fn hasten(&mut self, peer: &PeerKey, now_us: u64, random: u64) {
        let Some(watched) = self.peers.get_mut(peer) else { return };
        watched.next_us = watched.next_us.min(now_us + HASTENED_US + random % HASTENED_US);
        self.next_us = self.next_us.min(watched.next_us);
    }

    /// Whether the last probe of it was answered, or none has failed yet.
    fn is_well(&self, peer: &PeerKey) -> bool {
        self.peers.get(peer).is_none_or(|watched| watched.failures == 0)
    }

    /// Whether two probes of it failed.
    pub(crate) fn is_silent(&self, peer: &PeerKey) -> bool {
        self.peers.get(peer).is_some_and(|watched| watched.failures >= FAILURES_GONE)
    }

    /// Whether its place in a section is to be given to another, after so long a silence.
    fn is_gone(&self, peer: &PeerKey, silence_ms: u64, now_us: u64) -> bool {
        let late = |watched: &Watched| now_us >= watched.alive_us.saturating_add(silence_ms * 1000);
        self.is_silent(peer) && self.peers.get(peer).is_some_and(late)
    }

    /// When it was last heard of, in monotonic microseconds.
    pub(crate) fn alive_us(&self, peer: &PeerKey) -> u64 {
        self.peers.get(peer).map_or(0, |watched| watched.alive_us)
    }
}

/// Whether a section of this class is put again as soon as a holder is gone. The others are renewed within 100 s.
const fn is_replaced_early(class: Class) -> bool {
    matches!(class, Class::Core | Class::Document)
}

impl Node {
    /// Those of `holders` whose place in a section of this class is to be given to others.
    pub(crate) fn gone_holders(&self, holders: &[PeerKey], class: Class) -> BTreeSet<PeerKey> {
        let silence_ms = if is_replaced_early(class) { self.config.holder_silence_max_ms } else { 0 };
        holders.iter().copied().filter(|peer| self.probes.is_gone(peer, silence_ms, self.now.mono_us)).collect()
    }

    /// A connection came or went: if it is a holder's, ask it soon.
    pub(crate) fn probe_soon(&mut self, peer: &PeerKey) {
        let random = self.rng.next_u64();
        self.probes.hasten(peer, self.now.mono_us, random);
    }

    /// Asks every holder that is due.
    pub(crate) fn tick_probes(&mut self) {
        let now_us = self.now.mono_us;
        if now_us < self.probes.next_us {
            return;
        }
        if now_us > self.probes.next_us.saturating_add(PROBE_US) {
            // This node slept, or has just started: it knows nothing of the time between.
            self.churn.slept(self.probes.next_us, now_us);
            self.probes.peers.values_mut().for_each(|watched| watched.alive(now_us));
        }
        let holders = self.section_holders();
        self.choose_watched(&holders);
        let due = |(peer, watched): (&PeerKey, &Watched)| (watched.next_us <= now_us).then_some(*peer);
        let due: Vec<PeerKey> = self.probes.peers.iter().filter_map(due).collect();
        for peer in due {
            let jitter_us = self.rng.next_u64() % PROBE_JITTER_US;
            let Some(watched) = self.probes.peers.get_mut(&peer) else { continue };
            watched.next_us = now_us + jitter_us + if watched.holds { PROBE_US } else { CLOCK_US };
            // One that is not over yet is not doubled, and a node with too much to do knows nothing of others.
            if watched.op.is_none() && self.ops.len() < OPS_MAX {
                let sections = self.sections_at(&peer);
                self.begin_probe(peer, sections);
            }
        }
        let soonest = self.probes.peers.values().map(|watched| watched.next_us).min();
        self.probes.next_us = soonest.unwrap_or(u64::MAX).min(now_us + PROBE_US);
    }

    /// Every holder is watched, and if these are few, some other peers for their clocks.
    fn choose_watched(&mut self, holders: &BTreeSet<PeerKey>) {
        let now_us = self.now.mono_us;
        let Self { probes, churn, neighbours, rng, .. } = self;
        for (peer, watched) in &mut probes.peers {
            let holds = holders.contains(peer);
            if watched.holds && !holds {
                churn.unwatched(peer, watched.alive_us);
            } else if holds && !watched.holds {
                watched.next_us = watched.next_us.min(now_us + PROBE_US);
            }
            watched.holds = holds;
        }
        probes.peers.retain(|peer, watched| watched.holds || neighbours.contains(peer));
        for peer in holders {
            if !probes.peers.contains_key(peer) {
                probes.peers.insert(*peer, Watched::new(now_us + rng.next_u64() % (PROBE_US / 2), true, now_us));
            }
            if probes.is_silent(peer) {
                continue;
            }
            churn.lives(peer, now_us);
        }
        let mut watched = probes.peers.len();
        let mut others: Vec<PeerKey> = neighbours.iter().filter(|peer| !probes.peers.contains_key(peer)).copied().collect();
        while watched < CLOCK_PEERS && !others.is_empty() {
            // By chance, and not the first: whoever picks his key must not be asked by everybody.
            let peer = others.swap_remove((rng.next_u64() % others.len() as u64) as usize);
            let next_us = now_us + rng.next_u64() % CLOCK_SOON_US;
            probes.peers.insert(peer, Watched::new(next_us, false, now_us));
            watched += 1;
        }
    }

    /// A peer came: if too few clocks are known, it may be asked for the time.
    pub(crate) fn sample_clocks_soon(&mut self) {
        if self.probes.peers.len() < CLOCK_PEERS {
            self.probes.next_us = self.probes.next_us.min(self.now.mono_us + CLOCK_SOON_US);
        }
    }

    /// Tells the operator when the clock is off by more than an allowance, and the holder, which then takes no part in class active.
    pub(crate) fn judge_clock(&mut self) {
        self.clocks.refresh(self.own_now);
        let off = (self.clocks.is_off(Class::Active, self.own_now), self.clocks.is_off(Class::Core, self.own_now));
        self.holder.trust_clock(!off.0);
        let before = std::mem::replace(&mut self.clock_off, off);
        let Some(offset_ms) = self.clocks.offset_ms(self.own_now).filter(|_| off.0 && !before.0 || off.1 && !before.1) else { return };
        let (seconds, which) = (offset_ms.unsigned_abs() as f64 / 1000.0, if offset_ms < 0 { "ahead of" } else { "behind" });
        let text = format!(
            "this node's clock is {seconds:.1} s {which} those of its peers: sections of class active are refused, and all others dated by the \
             peers' clocks. Set this machine's clock, by NTP if it can be"
        );
        self.alarm("clock", text);
    }

    /// Class active lives 30 s: with a clock that is off by more than 2 s nothing can be said about it.
    pub(crate) fn clock_allows(&self, class: Class) -> Result<(), CallError> {
        let offset_ms = self.clocks.offset_ms(self.own_now).filter(|_| class == Class::Active && self.clock_off.0);
        offset_ms.map_or(Ok(()), |offset_ms| Err(CallError::ClockUnsynced { offset_ms, peers: self.clocks.peers() as u32 }))
    }

    /// A section of class active that is due while the clock is off waits, and whoever waits for it is told.
    pub(crate) fn refuses_unsynced(&mut self, id: &OwnerKey, name: &str) -> bool {
        let now_us = self.now.mono_us;
        let Some(owned) = self.owners.get_mut(id).and_then(|owner| owner.sections.get_mut(name)) else { return true };
        let class = owned.class;
        let Err(error) = self.clock_allows(class) else { return false };
        let owned = self.owned_mut(id, name);
        owned.due_us = Some(now_us + PROBE_US);
        for waiter in std::mem::take(&mut owned.waiting_next) {
            self.tell_put(id, name, waiter, Err(error.clone()));
        }
        true
    }

    pub(crate) fn clock_report(&self) -> ClockReport {
        let offset_ms = self.clocks.offset_ms(self.own_now);
        ClockReport { offset_ms, peers: self.clocks.peers(), synced: !self.clocks.is_off(Class::Active, self.own_now) }
    }

    pub(crate) fn churn_report(&self) -> ChurnReport {
        let (holder_hours, deaths) = self.churn.seen(self.now.mono_us);
        ChurnReport { holder_hours, deaths, death_chance_1h: self.churn.death_chance(3_600_000, self.now.mono_us) }
    }

    /// Every section of the agents that live here.
    fn agents_sections(&self) -> impl Iterator<Item = (OwnerKey, &String, &Owned)> {
        let live = self.owners.values().filter(|owner| owner.state == OwnerState::Live && owner.id != self.node_owner);
        live.flat_map(|owner| owner.sections.iter().map(move |(name, owned)| (owner.id, name, owned)))
    }

    /// Those that live in other nodes' stores.
    fn live_sections(&self) -> impl Iterator<Item = (OwnerKey, &String, &Owned, &CertifiedHead)> {
        self.agents_sections().filter_map(|(owner, name, owned)| Some((owner, name, owned, owned.live_head(self.now.wall_ms)?)))
    }

    /// Who holds any of them but this node.
    fn section_holders(&self) -> BTreeSet<PeerKey> {
        self.live_sections().flat_map(|(.., head)| head.holders()).copied().filter(|peer| *peer != self.me).collect()
    }

    /// Those that a peer holds.
    fn sections_at(&self, peer: &PeerKey) -> Vec<Asked> {
        let held = self.live_sections().filter(|(.., head)| head.index_of(peer).is_some());
        held.map(|(owner, name, owned, head)| Asked {
            owner,
            name: name.clone(),
            section: ProbedSection { key: owned.key, version: head.manifest.version },
        })
        .collect()
    }

    fn begin_probe(&mut self, peer: PeerKey, mut sections: Vec<Asked>) {
        let op = self.id();
        let mut asked = BTreeMap::new();
        while asked.is_empty() || !sections.is_empty() {
            let rest = sections.split_off(sections.len().min(PROBED_SECTIONS_MAX));
            let tag = Tag(asked.len() as u32);
            let request = Request::Probe { sections: sections.iter().map(|asked| asked.section).collect() };
            asked.insert(tag, std::mem::replace(&mut sections, rest));
            self.send_request(op, tag, peer, request);
        }
        if let Some(watched) = self.probes.peers.get_mut(&peer) {
            watched.op = Some(op);
        }
        self.count("probes");
        self.ops.insert(op, Op::Probe(Box::new(ProbeOp { peer, sent: self.own_now, answered: false, asked, lost: false, lacks: false })));
    }

    pub(crate) fn probe_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Probe(probe)) = self.ops.get_mut(&op) else { return };
        let Some(asked) = probe.asked.remove(&tag) else { return };
        let (peer, sent) = (probe.peer, probe.sent);
        probe.answered |= matches!(reply, Reply::Answer(_));
        if let Reply::Answer(Response::Probed { clock_ms, sections }) = reply
            && sections.len() == asked.len()
        {
            if !self.clocks.record(peer, sent, clock_ms, self.own_now) {
                self.ask_clock_again(&peer);
            }
            let lacks = sections.iter().any(|holding| !holding.held || holding.recovering);
            let mut lost = false;
            for (asked, holding) in asked.into_iter().zip(sections) {
                lost |= self.probed(&peer, asked, holding);
            }
            if let Some(Op::Probe(probe)) = self.ops.get_mut(&op) {
                probe.lost |= lost;
                probe.lacks |= lacks;
            }
        } else {
            probe.lacks = true; // for all that is known
        }
        self.end_probe(op);
    }

    /// If all that a probe asked has been answered, or failed: what follows for its peer as a whole.
    fn end_probe(&mut self, op: OpId) {
        let Some(Op::Probe(probe)) = self.ops.get(&op) else { return };
        if !probe.asked.is_empty() {
            return;
        }
        let ProbeOp { peer, sent, answered, lost, lacks, .. } = **probe;
        self.ops.remove(&op);
        if let Some(watched) = self.probes.peers.get_mut(&peer) {
            watched.op = None;
        }
        if lost {
            self.churn.lost_disk(&peer, self.now.mono_us);
        }
        if answered {
            self.hurry(&peer, lost, lacks);
        } else {
            self.probe_failed(&peer, sent);
        }
    }

    /// A peer said nothing of its clock, or too late to say anything: until it does, the clocks of fewer than were asked decide.
    fn ask_clock_again(&mut self, peer: &PeerKey) {
        self.probe_again(peer, PROBE_US);
    }

    /// A holder that has just lost something it had, or lacks something or has to recover since, is asked again soon.
    fn hurry(&mut self, peer: &PeerKey, lost: bool, lacks: bool) {
        let Some(watched) = self.probes.peers.get_mut(peer) else { return };
        if lost {
            watched.hasty = LOST_PROBES;
        } else if !lacks {
            watched.hasty = 0; // it has all again
        }
        if lacks && watched.hasty > 0 {
            watched.hasty -= 1;
            self.probe_again(peer, LOST_US);
        }
    }

    fn probe_again(&mut self, peer: &PeerKey, after_us: u64) {
        let Some(watched) = self.probes.peers.get_mut(peer) else { return };
        watched.next_us = watched.next_us.min(self.now.mono_us + after_us);
        self.probes.next_us = self.probes.next_us.min(watched.next_us);
    }

    /// A holder said what it has of a section. Answers whether it had it and has it no more.
    fn probed(&mut self, peer: &PeerKey, asked: Asked, holding: Holding) -> bool {
        let now = self.now;
        let owned = self.owners.get_mut(&asked.owner).and_then(|owner| owner.sections.get_mut(&asked.name));
        let Some(owned) = owned.filter(|owned| owned.key == asked.section.key) else { return false };
        let Some(head) = owned.head.as_ref().filter(|head| head.manifest.version == asked.section.version) else { return false };
        let Some(index) = head.index_of(peer) else { return false };
        owned.probed_ms = Some(now.wall_ms);
        if holding.held {
            owned.holds.insert(index);
            return false;
        }
        let lost = owned.holds.remove(&index);
        let young = now.wall_ms < head.manifest.issued_at_ms.saturating_add(YOUNG_MS);
        if !young
            && owned.background.is_none()
            && let Some(head) = owned.live_head(now.wall_ms).cloned()
        {
            self.hand_back(&head, index, &asked);
        }
        lost
    }

    /// Hands a holder its shard back.
    fn hand_back(&mut self, head: &CertifiedHead, index: u8, asked: &Asked) {
        let ops = &self.ops;
        self.probes.refills.retain(|_, op| ops.contains_key(op));
        let manifest = &head.manifest;
        let refill = (manifest.key, head.holders()[usize::from(index)]);
        if self.probes.refills.len() >= REFILLS_MAX || self.probes.refills.contains_key(&refill) || self.ops.len() >= OPS_MAX {
            return;
        }
        let stored = self.owners.get(&asked.owner).and_then(|owner| owner.sections.get(&asked.name)).map(|owned| &owned.stored);
        // What is on this disk may be newer already: then its put is on the way.
        let matches = |stored: &&Vec<u8>| persona_fragments::coding::content_hash(stored) == manifest.content_hash;
        let Some(Ok(shards)) = stored.filter(matches).map(|stored| encode(stored, manifest.shape)) else { return };
        let op = self.id();
        let (put, outs) = Put::repair(head.clone(), shards, &[index], self.config.put.clone(), self.now);
        self.probes.refills.insert(refill, op);
        self.ops.insert(op, Op::Repair(Box::new(put)));
        self.count("holders_refilled");
        self.run_repair(op, outs);
    }

    fn probe_failed(&mut self, peer: &PeerKey, sent: Now) {
        self.count("probes_failed");
        self.ask_clock_again(peer);
        let Some(watched) = self.probes.peers.get_mut(peer).filter(|watched| watched.alive_us < sent.mono_us) else { return };
        if watched.failures == 0 || sent.mono_us >= watched.failed_us + PROBE_US {
            (watched.failures, watched.failed_us) = (watched.failures.saturating_add(1), sent.mono_us);
        }
        if self.now.mono_us < watched.alive_us + self.config.holder_silence_max_ms * 1000 {
            watched.next_us = watched.next_us.min(self.now.mono_us + SUSPECTED_US);
        }
        let (next_us, alive_us, holds) = (watched.next_us, watched.alive_us, watched.holds);
        self.probes.next_us = self.probes.next_us.min(next_us);
        if holds && self.probes.is_gone(peer, self.config.holder_silence_max_ms, self.now.mono_us) && !self.is_cut_off() {
            self.churn.gone(peer, alive_us);
        }
        self.replace_gone();
    }

    /// Whether most of those that this node watches are silent: then it is more likely this node.
    fn is_cut_off(&self) -> bool {
        let silent = self.probes.peers.values().filter(|watched| watched.failures > 0).count();
        silent * 2 > self.probes.peers.len()
    }

    /// Sections whose holders are gone are put again early: the most endangered first.
    fn replace_gone(&mut self) {
        let now = self.now;
        let mut running = 0;
        let mut endangered: Vec<(usize, OwnerKey, String)> = Vec::new();
        for (owner, name, owned) in self.agents_sections() {
            running += usize::from(owned.replace_from.is_some());
            let waits = owned.op.is_none() && !owned.unlisted && owned.due_us.is_some_and(|due| due > now.mono_us);
            let Some(head) = owned.live_head(now.wall_ms).filter(|_| waits && is_replaced_early(owned.class)) else { continue };
            let manifest = &head.manifest;
            let gone = self.gone_holders(head.holders(), owned.class).len();
            // Who has just fallen silent may be gone too, only not yet for long enough.
            let left = head.holders().iter().filter(|peer| self.probes.is_well(peer)).count();
            let cut_off = left < usize::from(manifest.shape.f()).max(1);
            if gone > 0 && !cut_off && now.mono_us >= owned.replace_after_us {
                endangered.push((left.saturating_sub(manifest.shape.k().into()), owner, name.clone()));
            }
        }
        endangered.sort_unstable();
        for (_, id, name) in endangered.into_iter().take(REPLACEMENTS_MAX.saturating_sub(running)) {
            let Some(owned) = self.owners.get_mut(&id).and_then(|owner| owner.sections.get_mut(&name)) else { continue };
            owned.replace_from = owned.due_us.replace(now.mono_us);
            owned.replace_after_us = now.mono_us + REPLACE_AGAIN_US;
            owned.candidates = None;
        }
    }

    /// An early put was due because a holder is gone, and there is nobody to take its place: it waits for its time.
    pub(crate) fn replaces_nobody(&mut self, id: &OwnerKey, name: &str, peers: &[PeerKey]) -> bool {
        let (me, now) = (self.me, self.now);
        let Some(owned) = self.owners.get(id).and_then(|owner| owner.sections.get(name)) else { return false };
        if owned.replace_from.is_none() {
            return false;
        }
        let head = owned.head.as_ref().filter(|_| !owned.is_waited_for());
        let Some((holders, quorum)) = head.map(|head| (head.holders(), head.manifest.shape.quorum())) else {
            // Somebody has asked for a put meanwhile: then it is one like any other.
            self.owned_mut(id, name).replace_from = None;
            return false;
        };
        let gone = self.gone_holders(holders, owned.class);
        let usable =
            |peer: &&PeerKey| **peer != me && !holders.contains(peer) && !owned.avoid.contains_key(*peer) && !self.probes.is_silent(peer);
        let others = peers.iter().filter(usable).count();
        let well = holders.iter().filter(|peer| self.probes.is_well(peer)).count();
        let reached = well + others.min(gone.len());
        if !gone.is_empty() && others > 0 && reached >= usize::from(quorum) {
            return false;
        }
        self.owned_mut(id, name).replace_later(now);
        true
    }

    fn owned_mut(&mut self, id: &OwnerKey, name: &str) -> &mut Owned {
        self.owners.get_mut(id).and_then(|owner| owner.sections.get_mut(name)).expect("looked up before")
    }
}

impl Owned {
    /// The version that is known to have committed, while it lives in other nodes' stores.
    pub(crate) fn live_head(&self, wall_ms: u64) -> Option<&CertifiedHead> {
        self.head.as_ref().filter(|head| head.expires_at_ms() > wall_ms)
    }

    /// Whether the next put says something new, or somebody waits for it.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.changed.is_some() || !self.waiting.is_empty() || !self.waiting_next.is_empty()
    }

    /// Whether it would be put now for its own sake: it says something new, somebody waits, or an earlier put is not over.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.intent.is_some() || self.is_waited_for()
    }

    /// An early put comes to nothing: the next one is due when it was.
    pub(crate) fn replace_later(&mut self, now: Now) {
        self.op = None;
        self.due_us = self.replace_from.take().or(Some(now.mono_us));
    }
}
