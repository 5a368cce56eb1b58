//! Which holder sets must have heard of a commit? Those that a manifest names, and those that their members name in turn because they have
//! signed for them (docs/spec/quorum.md#names).

use std::collections::{BTreeMap, BTreeSet};

use persona_fragments::{OlderSet, PeerKey, SignedManifest, Version};

use crate::{holder::clock_allowance_ms, message::HandedSet, time::Now};

/// Sets that one commit is told because they were named. When there are more, it is not known to have reached all: `BoundedStale`.
pub(crate) const NAMED_MAX: usize = 8;

/// Sets that are looked at in one answer; a holder names fewer, also one that learnt after a loss what all others had signed.
const NAMES_MAX: usize = 160;

/// Who has confirmed one commit, and what they named.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The manifest's own set, and the older ones that may still be read.
    base: Vec<Needed>,
    confirmed: BTreeMap<PeerKey, Vec<HandedSet>>,
    allowance_ms: u64,
}

/// A set that must have heard of it.
#[derive(Clone, Debug)]
pub(crate) struct Needed {
    pub(crate) holders: Vec<PeerKey>,
    pub(crate) quorum: usize,
    /// Confirmations count before, in milliseconds since the Unix epoch: later its holders may have forgotten what follows it.
    counts_until_ms: u64,
    /// From then on nobody is led there.
    pub(crate) over_at_ms: u64,
    named: bool,
}

impl Needed {
    /// Whether it is needed only because it was named.
    pub(crate) fn is_named(&self) -> bool {
        self.named
    }
}

impl Told {
    /// Of a manifest whose holders are these, with the older sets that may still be read.
    pub(crate) fn new<'a>(manifest: &SignedManifest, holders: &[PeerKey], older: impl Iterator<Item = &'a OlderSet>) -> Self {
        let allowance_ms = clock_allowance_ms(manifest.class);
        let own = Needed {
            holders: holders.to_vec(),
            quorum: manifest.shape.quorum().into(),
            counts_until_ms: u64::MAX,
            over_at_ms: u64::MAX,
            named: false,
        };
        let older = older.map(|set| Needed {
            holders: set.holders.clone(),
            quorum: set.quorum(),
            counts_until_ms: if set.renew_until_ms == 0 { u64::MAX } else { set.expires_at_ms },
            over_at_ms: set.over_at_ms().saturating_add(allowance_ms),
            named: false,
        });
        Self { base: std::iter::once(own).chain(older).collect(), confirmed: BTreeMap::new(), allowance_ms }
    }

    /// A peer has it, durably, and has signed for these sets.
    pub(crate) fn confirm(&mut self, peer: PeerKey, below: &Version, sets: Vec<HandedSet>) {
        let sets = sets.into_iter().filter(|set| set.version < *below).take(NAMES_MAX).collect();
        self.confirmed.insert(peer, sets);
    }

    /// The members of a set that confirmed.
    pub(crate) fn confirmed(&self, holders: &[PeerKey]) -> usize {
        holders.iter().filter(|peer| self.confirmed.contains_key(*peer)).count()
    }

    /// Whether a set has heard of it for certain.
    pub(crate) fn met(&self, set: &Needed, now: Now) -> bool {
        self.confirmed(&set.holders) >= set.quorum && now.wall_ms < set.counts_until_ms
    }

    /// Whether a set whose members confirm from now on counts.
    pub(crate) fn may_count(&self, set: &Needed, now: Now) -> bool {
        now.wall_ms < set.counts_until_ms
    }

    /// The manifest's own set, the older ones, and those that are named by so many that they may be certified.
    pub(crate) fn needed(&self) -> Vec<Needed> {
        let mut needed = self.base.clone();
        let mut next = 0;
        while next < needed.len() {
            let set = needed[next].clone();
            next += 1;
            let have = self.confirmed(&set.holders);
            if have < set.quorum {
                continue; // until then nothing can be ruled out
            }
            let f = set.holders.len().saturating_sub(1) / 3;
            let certain = have.saturating_sub(2 * f).max(1);
            for (holders, named) in self.named_after(&set, f) {
                if named.by < certain || needed.iter().any(|known| known.holders == holders) {
                    continue;
                }
                let full = needed.len() >= self.base.len() + NAMED_MAX;
                needed.push(Needed {
                    holders,
                    quorum: if full { usize::MAX } else { set.quorum },
                    counts_until_ms: named.expires_at_ms,
                    over_at_ms: named.renew_until_ms.max(named.expires_at_ms).saturating_add(self.allowance_ms),
                    named: true,
                });
                if full {
                    return needed;
                }
            }
        }
        needed
    }

    /// The sets that confirmed members of a set name as the one after it, and by how many.
    fn named_after(&self, set: &Needed, f: usize) -> BTreeMap<Vec<PeerKey>, Named> {
        let mut after: BTreeMap<Vec<PeerKey>, Named> = BTreeMap::new();
        for names in set.holders.iter().filter_map(|peer| self.confirmed.get(peer)) {
            let mut once = BTreeSet::new();
            for name in names.iter().filter(|name| name.before == set.holders && name.holders.len() == set.holders.len()) {
                let others = name.holders.iter().zip(&name.before).filter(|(after, before)| after != before).count();
                if others == 0 || others > f {
                    continue;
                }
                let named = after.entry(name.holders.clone()).or_default();
                named.by += usize::from(once.insert(&name.holders));
                named.expires_at_ms = named.expires_at_ms.max(name.expires_at_ms);
                named.renew_until_ms = named.renew_until_ms.max(name.renew_until_ms);
            }
        }
        after
    }
}

#[derive(Default)]
struct Named {
    by: usize,
    expires_at_ms: u64,
    renew_until_ms: u64,
}

/// Older holder sets in a manifest that may still be asked.
pub(crate) fn live_older(manifest: &SignedManifest, now: Now) -> impl Iterator<Item = &OlderSet> {
    let allowance = clock_allowance_ms(manifest.class);
    manifest.older.iter().filter(move |set| set.over_at_ms().saturating_add(allowance) > now.wall_ms)
}
