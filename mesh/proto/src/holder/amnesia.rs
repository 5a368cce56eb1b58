//! The holder that lost its store (docs/spec/quorum.md#a-holder-that-lost-its-store).
//!
//! It has forgotten what it promised, and knows that it has. So it says `Recovering`, which counts in no quorum, wherever an answer could
//! break a promise, asks for a recovery of the section, and takes in what the others know. Each section comes back on its own.

use std::collections::BTreeMap;

use persona_fragments::{
    CertifiedHead, SectionKey, SignedManifest,
    manifest::TTL_MS_MAX,
    mutants::{self, Mutant},
    wire,
};

use super::{
    Fence, Floor, Holder, HolderOut, Life, Rank, Then, Why, clock_allowance_ms, expiry_ms, head_rank, host, lease::is_lease_key,
    prepared_key,
};
use crate::{
    get::GET_MS_MAX,
    message::Response,
    put::PUT_MS_MAX,
    recover::{RECOVER_MS_MAX, Recollection, Recovered},
    storage::{Table, Write},
    time::Now,
};

/// The longest allowance for clocks: that of every class but `active`.
const ALLOWANCE_MS_MAX: u64 = 10_000;

/// How long after the loss anything that was promised before may still matter: the longest life of a manifest, by clocks that differ from
/// this one's as much as they may.
pub const RECOVERING_MS: u64 = TTL_MS_MAX + 2 * ALLOWANCE_MS_MAX;

/// How long after the loss the first key is recovered. Whoever counted what this node said before it must be done counting: otherwise its
/// old word and the word of a holder that heard of it later would make one quorum.
pub const RECOVERY_WAIT_MS: u64 = 10_000;

const _: () = assert!(RECOVERY_WAIT_MS > PUT_MS_MAX && RECOVERY_WAIT_MS > GET_MS_MAX);

/// A key is not tried again before so long after the last try.
const PAUSE_US: u64 = 2_000_000;

/// For how long a try counts as made: then what the owner issued after the loss is acked even where the try failed.
const TRIED_US: u64 = 60_000_000;

const _: () = assert!(TRIED_US > PAUSE_US && TRIED_US > 2 * RECOVER_MS_MAX * 1000);

/// Recoveries at once. When there are so many, a key is recovered when it is asked for again.
const RECOVERIES_MAX: usize = 32;

/// Tries remembered. When there are so many, a key waits until some are older than [`TRIED_US`].
const TRIES_MAX: usize = 4_096;

/// Rows of recovered keys that are removed with one batch once nothing of the loss matters.
const FORGOTTEN_AT_ONCE: usize = 1_024;

/// Key of the mark in [`Table::Meta`].
const MARK_KEY: &[u8] = b"l";

/// First byte of the keys of recovered sections in [`Table::Meta`].
const RECOVERED_PREFIX: u8 = b'k';

/// What must be durable in a new store before the node that lost its old one answers anybody: that, and since when (milliseconds since the
/// Unix epoch, by this node's clock now). It replaces an earlier mark.
pub fn lost_store_mark(since_ms: u64) -> Write {
    Write::set(Table::Meta, MARK_KEY, wire::encode(&since_ms))
}

fn recovered_key(key: &SectionKey) -> Vec<u8> {
    [&[RECOVERED_PREFIX][..], &key.0].concat()
}

/// What a holder knows about what it forgot.
#[derive(Default)]
pub(super) struct Amnesia {
    mark: Option<Mark>,
    /// Sections that were recovered, and after which loss.
    recovered: BTreeMap<SectionKey, u64>,
    tries: BTreeMap<SectionKey, Try>,
}

/// The store before this one was lost.
#[derive(Clone, Copy)]
struct Mark {
    since_ms: u64,
    /// No recovery begins before, on the monotonic clock.
    wait_until_us: u64,
    /// Nothing of it matters any more once both clocks are there.
    until: (u64, u64),
}

/// A try to recover one section.
struct Try {
    /// When it began, if it is under way.
    began_us: Option<u64>,
    /// When the last one ended.
    ended_us: Option<u64>,
    /// The highest certified head that it began with.
    shown: Option<Rank>,
}

impl Try {
    fn tried_lately(&self, now: Now) -> bool {
        self.ended_us.is_some_and(|ended| now.mono_us < ended + TRIED_US)
    }
}

impl Amnesia {
    /// Takes in one row; `None`: not one of these.
    pub(super) fn load(&mut self, key: &[u8], since_ms: u64, now: Now) -> Option<()> {
        if key == MARK_KEY && mutants::on(Mutant::ForgetLoss) {
            return Some(());
        }
        if key == MARK_KEY {
            let left_ms = |end_ms: u64| end_ms.saturating_sub(now.wall_ms);
            let at_us = |left_ms: u64| now.mono_us.saturating_add(left_ms.saturating_mul(1000));
            let until_ms = since_ms.saturating_add(RECOVERING_MS);
            let wait_ms = left_ms(since_ms.saturating_add(RECOVERY_WAIT_MS)).min(RECOVERY_WAIT_MS);
            self.mark = Some(Mark { since_ms, wait_until_us: at_us(wait_ms), until: (until_ms, at_us(left_ms(until_ms))) });
            return Some(());
        }
        let (prefix, section) = key.split_first()?;
        let section = SectionKey(section.try_into().ok().filter(|_| *prefix == RECOVERED_PREFIX)?);
        self.recovered.insert(section, since_ms);
        Some(())
    }

    /// The row of a section that was recovered after this loss is durable.
    pub(super) fn is_recovered(&mut self, key: SectionKey, since_ms: u64) {
        self.recovered.insert(key, since_ms);
    }

    pub(super) fn since_ms(&self) -> Option<u64> {
        self.mark.map(|mark| mark.since_ms)
    }

    /// Until when, on the wall clock, something that was forgotten may still matter; 0: nothing was.
    pub(super) fn until_ms(&self) -> u64 {
        self.mark.map_or(0, |mark| mark.until.0)
    }

    /// Forgets tries that mean nothing any more, and in the end the loss itself.
    pub(super) fn tick(&mut self, now: Now, writes: &mut Vec<Write>) {
        for attempt in self.tries.values_mut() {
            // Whoever runs it would have said so long ago.
            attempt.began_us.take_if(|began| now.mono_us >= *began + TRIED_US);
        }
        self.tries.retain(|_, attempt| attempt.began_us.is_some() || attempt.tried_lately(now));
        if let Some(Mark { until: (until_ms, until_us), .. }) = self.mark
            && now.wall_ms >= until_ms
            && now.mono_us >= until_us
        {
            self.mark = None;
            self.tries.clear();
            writes.push(Write::remove(Table::Meta, MARK_KEY));
        }
        if self.mark.is_none() {
            let keys: Vec<SectionKey> = self.recovered.keys().take(FORGOTTEN_AT_ONCE).copied().collect();
            for key in keys {
                self.recovered.remove(&key);
                writes.push(Write::remove(Table::Meta, recovered_key(&key)));
            }
        }
    }
}

impl Holder {
    /// Whether a row of [`Table::Meta`] is a holder's, and to be loaded.
    pub fn is_meta(key: &[u8]) -> bool {
        key == MARK_KEY || key.len() == 1 + 32 && key[0] == RECOVERED_PREFIX || is_lease_key(key)
    }

    /// Whether this node lost its store and does not know yet what it may say of the section.
    pub(super) fn forgot(&self, key: &SectionKey) -> bool {
        self.amnesia.mark.is_some_and(|mark| self.amnesia.recovered.get(key) != Some(&mark.since_ms))
    }

    /// Whether a manifest may have been acked here, or something promised about it, before the store was lost.
    pub(super) fn may_have_seen(&self, manifest: &SignedManifest) -> bool {
        let last_ms = |since_ms: u64| since_ms.saturating_add(clock_allowance_ms(manifest.class));
        self.amnesia.since_ms().is_some_and(|since_ms| manifest.issued_at_ms <= last_ms(since_ms))
    }

    /// Whether a manifest that is not stored here may be acked, for all that this node may have forgotten.
    pub(super) fn remembers_enough(&mut self, manifest: &SignedManifest, now: Now, out: &mut Vec<HolderOut>) -> Result<(), Response> {
        let key = manifest.key;
        let certified = |holder: &Self| {
            holder.sections.get(&key).is_some_and(|section| section.heads().any(|head| head.head.manifest.hash() == manifest.hash()))
        };
        // What is certified can have no rival any more, whatever this node signed.
        if self.amnesia.mark.is_none() || certified(self) {
            return Ok(());
        }
        let tried = !self.forgot(&key) || self.amnesia.tries.get(&key).is_some_and(|attempt| attempt.tried_lately(now));
        if tried && !self.may_have_seen(manifest) {
            return Ok(());
        }
        if self.forgot(&key) {
            self.ask_recovery(&key, None, Some(manifest), now, out);
        }
        Err(Response::Recovering)
    }

    /// Asks for a recovery of a section, unless one is under way or was lately, there are too many, or it is too early.
    pub(super) fn ask_recovery(
        &mut self,
        key: &SectionKey,
        shown: Option<&Rank>,
        asked: Option<&SignedManifest>,
        now: Now,
        out: &mut Vec<HolderOut>,
    ) {
        if self.amnesia.mark.is_none_or(|mark| now.mono_us < mark.wait_until_us) {
            return;
        }
        let tries = &mut self.amnesia.tries;
        if let Some(last) = tries.get(key) {
            let paused = last.ended_us.is_some_and(|ended| now.mono_us < ended + PAUSE_US);
            if last.began_us.is_some() || paused && shown <= last.shown.as_ref() {
                return;
            }
        } else if tries.len() >= TRIES_MAX {
            return;
        }
        if tries.values().filter(|attempt| attempt.began_us.is_some()).count() >= RECOVERIES_MAX {
            return;
        }
        let known = self.sections.get(key).and_then(|section| section.head.as_ref()).map(|head| Box::new(head.head.clone()));
        let attempt = tries.entry(*key).or_insert(Try { began_us: None, ended_us: None, shown: None });
        attempt.began_us = Some(now.mono_us);
        attempt.shown = attempt.shown.max(known.as_ref().map(|head| head_rank(head)));
        out.push(HolderOut::Recover { key: *key, known, asked: asked.cloned().map(Box::new) });
    }

    /// A recovery that [`HolderOut::Recover`] asked for has ended. All that it brought was verified by [`Recover`](crate::Recover).
    pub fn recovered(&mut self, key: &SectionKey, recovered: Recovered, now: Now) -> Vec<HolderOut> {
        let mut out = Vec::new();
        if let Some(attempt) = self.amnesia.tries.get_mut(key) {
            (attempt.began_us, attempt.ended_us) = (None, Some(now.mono_us));
        }
        let Some(since_ms) = self.amnesia.since_ms() else { return out };
        let (beyond, quorum, recollection) = match recovered {
            Recovered::Known(recollection) => (false, true, recollection),
            Recovered::Beyond(recollection) => (true, false, recollection),
            Recovered::Unknown(recollection) => (false, false, recollection),
        };
        let Recollection { head, prepared, fence, handed } = *recollection;
        let last_ms = |head: &CertifiedHead| now.wall_ms.saturating_add(clock_allowance_ms(head.manifest.class));
        if head.as_ref().is_some_and(|head| head.renewed_at_ms() > last_ms(head)) {
            return out; // from the future: nobody may be led there
        }
        if !self.sections.contains_key(key) && self.sections.len() >= self.limits.sections_max {
            return out; // no room to remember it: it stays as it is
        }
        let (mut writes, mut thens) = (Vec::new(), Vec::new());
        let mut fenced = true;
        if let Some(fence) = fence.filter(|_| quorum || beyond) {
            let owner = fence.manifest.owner;
            let stored = self.fences.get(&owner).map(|stored| host(&stored.head.manifest.version));
            if stored.is_none_or(|stored| stored < host(&fence.manifest.version)) {
                match self.room_for_fence(&owner, now) {
                    Ok(room) => {
                        writes.extend(room);
                        writes.push(Write::set(Table::Fence, owner.0, fence.to_bytes()));
                        thens.push((owner, fence));
                    }
                    Err(_) => fenced = false,
                }
            }
        }
        let before = self.sections.get(key).and_then(|section| section.heads().map(|head| head_rank(&head.head)).max());
        let higher = head.filter(|_| quorum || beyond).filter(|head| before < Some(head_rank(head)));
        let staged = higher.map(|head| {
            let life = Life::of_head(&head, now.wall_ms, now);
            let (staged, more) = self.new_head(head, life, now);
            writes.extend(more);
            staged
        });
        let section = self.sections.entry(*key).or_default();
        let best = section.heads().chain(&staged).max_by_key(|head| head_rank(&head.head)).map(|head| head.head.clone());
        for manifest in prepared {
            let (version, until_ms) = (manifest.version, expiry_ms(&manifest));
            let above = best.as_ref().is_none_or(|best| best.manifest.version < version) && now.wall_ms < until_ms;
            if above && !section.versions.contains_key(&version) && !section.floors.contains_key(&version) {
                let floor = Floor::new(manifest.hash(), until_ms, Why::Learnt);
                writes.push(Write::set(Table::Prepared, prepared_key(key, &version), wire::encode(&floor.record())));
                section.floors.insert(version, floor);
            }
        }
        if let Some(best) = best.as_ref().filter(|_| quorum || beyond) {
            writes.extend(self.learn_handed(best, handed));
        }
        let since = best.is_some_and(|best| !self.may_have_seen(&best.manifest));
        let recovered = fenced && (quorum || beyond && since) && self.room_for_recovered(key, &mut writes);
        if recovered {
            writes.push(Write::set(Table::Meta, recovered_key(key), wire::encode(&since_ms)));
            let until_ms = self.amnesia.until_ms();
            let kept = self.sections.get_mut(key).and_then(|section| section.head.as_mut());
            if let Some(head) = kept.filter(|head| head.keep_until_ms < until_ms && staged.is_none()) {
                head.keep_until_ms = until_ms; // known from before a rollback: what it supersedes may have been forgotten
                writes.push(head.write());
            }
        }
        if self.sections.get(key).is_some_and(super::Section::is_empty) && staged.is_none() {
            self.sections.remove(key);
        }
        if writes.is_empty() {
            return out;
        }
        let id = self.persist(writes, &mut out);
        for (owner, head) in thens {
            self.fences.insert(owner, Fence { head, coming: Some(id) });
            self.then(id, Then::Fenced { owner, id });
        }
        if let Some(staged) = staged {
            self.store_head(staged, id);
        }
        if recovered {
            self.then(id, Then::Recovered { key: *key, since_ms });
        }
        if self.sections.contains_key(key) {
            self.reschedule(key);
        }
        out
    }

    /// Whether one more recovered key can be remembered. One without a section makes room.
    fn room_for_recovered(&mut self, key: &SectionKey, writes: &mut Vec<Write>) -> bool {
        let recovered = &mut self.amnesia.recovered;
        if recovered.contains_key(key) || recovered.len() < self.limits.sections_max {
            return true;
        }
        let Some(idle) = recovered.keys().find(|key| !self.sections.contains_key(*key)).copied() else { return false };
        recovered.remove(&idle);
        writes.push(Write::remove(Table::Meta, recovered_key(&idle)));
        true
    }
}
