//! Whom to kill?
//!
//! The demo kills the host of an agent and some holders of its `core`, and then expects everything back. That is promised only while no section
//! loses more holders than it tolerates, and placement is random: so the holders are chosen, by looking at every possible choice. Where none is
//! good enough the least bad one is taken, and what it breaks is named.

use std::collections::BTreeSet;

/// Where one section is.
#[derive(Clone, Debug)]
pub struct Placement {
    /// What the story calls it.
    pub section: String,
    /// The promise hangs on it: it is a relationship of the agent whose host dies, or a card without which nobody can write to a partner.
    /// What a partner keeps for itself may lose more: the partner's own node lives and has it.
    pub vital: bool,
    /// The nodes that hold a shard.
    pub holders: BTreeSet<usize>,
    /// How many of them may be lost with fresh reads still promised: the section's f.
    pub tolerated: usize,
    /// How many may be lost with the content still there, perhaps stale: n - k.
    pub rebuildable: usize,
}

/// Who dies, and what that breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The host first, then the holders.
    pub victims: Vec<usize>,
    /// Nodes that were to be spared but could not be.
    pub unspared: Vec<usize>,
    /// Vital sections that lose more holders than they tolerate, with how many they lose.
    pub overdrawn: Vec<(String, usize)>,
    /// Those of them that lose so many that nothing can be rebuilt until the dead return.
    pub unreadable: Vec<String>,
    /// The partners' other sections that lose more than they tolerate.
    pub others_overdrawn: Vec<(String, usize)>,
}

/// Chooses `count` victims: `host`, and `count - 1` of `core_holders`.
///
/// Before anything else as few nodes of `spared` as possible die (the partners' homes: somebody must be left to judge), then as few vital
/// sections as possible are unreadable, then overdrawn, then as few others; among equals the choice that loses the fewest shards altogether, then the
/// first. Answers `None` when there are not that many core holders. Every combination is looked at: of ten holders that is 252 at most.
pub fn choose(host: usize, core_holders: &[usize], count: usize, spared: &BTreeSet<usize>, sections: &[Placement]) -> Option<Choice> {
    let pool: BTreeSet<usize> = core_holders.iter().copied().filter(|holder| *holder != host).collect();
    let pool: Vec<usize> = pool.into_iter().collect();
    let others = count.checked_sub(1)?;
    combinations(&pool, others)
        .map(|holders| judge(host, &holders, spared, sections))
        .min_by_key(|(choice, lost)| {
            (choice.unspared.len(), choice.unreadable.len(), choice.overdrawn.len(), choice.others_overdrawn.len(), *lost)
        })
        .map(|(choice, _)| choice)
}

/// What a choice breaks, and how many shards it loses.
fn judge(host: usize, holders: &[usize], spared: &BTreeSet<usize>, sections: &[Placement]) -> (Choice, usize) {
    let victims: Vec<usize> = std::iter::once(host).chain(holders.iter().copied()).collect();
    let losses = |section: &Placement| victims.iter().filter(|victim| section.holders.contains(victim)).count();
    let overdrawn = |vital: bool| {
        let of = sections.iter().filter(move |section| section.vital == vital);
        of.filter(|section| losses(section) > section.tolerated).map(|section| (section.section.clone(), losses(section))).collect()
    };
    let unreadable = sections.iter().filter(|section| section.vital && losses(section) > section.rebuildable);
    let choice = Choice {
        unspared: holders.iter().copied().filter(|holder| spared.contains(holder)).collect(),
        overdrawn: overdrawn(true),
        unreadable: unreadable.map(|section| section.section.clone()).collect(),
        others_overdrawn: overdrawn(false),
        victims: victims.clone(),
    };
    (choice, sections.iter().map(losses).sum())
}

/// Every way to take `size` of `pool`, in order.
fn combinations(pool: &[usize], size: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next: Option<Vec<usize>> = (size <= pool.len()).then(|| (0..size).collect());
    std::iter::from_fn(move || {
        let picked = next.take()?;
        let taken = picked.iter().map(|index| pool[*index]).collect();
        // The rightmost position that can still move moves on, and all behind it follow closely.
        if let Some(movable) = (0..size).rev().find(|position| picked[*position] < pool.len() - size + position) {
            let mut following = picked;
            following[movable] += 1;
            for position in movable + 1..size {
                following[position] = following[position - 1] + 1;
            }
            next = Some(following);
        }
        Some(taken)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str, vital: bool, holders: &[usize], tolerated: usize) -> Placement {
        Placement { section: name.to_owned(), vital, holders: holders.iter().copied().collect(), tolerated, rebuildable: tolerated + 2 }
    }

    #[test]
    fn every_combination_is_looked_at_once() {
        let all: Vec<_> = combinations(&[10, 20, 30, 40], 2).collect();
        assert_eq!(all, [[10, 20], [10, 30], [10, 40], [20, 30], [20, 40], [30, 40]]);
        assert_eq!(combinations(&[1, 2, 3], 0).collect::<Vec<_>>(), [Vec::<usize>::new()]);
        assert_eq!(combinations(&[1, 2, 3], 3).count(), 1);
        assert_eq!(combinations(&[1, 2, 3], 4).count(), 0);
        assert_eq!(combinations(&(0..10).collect::<Vec<_>>(), 5).collect::<BTreeSet<_>>().len(), 252);
    }

    #[test]
    fn takes_the_only_choice_that_overdraws_nothing() {
        // Of core's holders 2..=6 three must die; every triple but (2, 4, 6) takes all three tolerated holders of something.
        let bad = [[2, 3, 4], [2, 3, 5], [2, 3, 6], [2, 4, 5], [2, 5, 6], [3, 4, 5], [3, 4, 6], [3, 5, 6], [4, 5, 6]];
        let sections: Vec<_> = bad.iter().map(|triple| section("relationship", true, triple, 2)).collect();
        let choice = choose(1, &[6, 5, 4, 3, 2], 4, &BTreeSet::new(), &sections).unwrap();
        assert_eq!(choice.victims, [1, 2, 4, 6]);
        assert!(choice.overdrawn.is_empty() && choice.others_overdrawn.is_empty() && choice.unspared.is_empty());
    }

    #[test]
    fn the_host_counts_for_a_partners_section_that_it_holds() {
        let sections = [section("tomas: relationship", false, &[1, 2, 3], 2)];
        let choice = choose(1, &[2, 3, 4], 3, &BTreeSet::new(), &sections).unwrap();
        assert_eq!(choice.victims, [1, 2, 4], "host + 2 + 3 would take all of its holders");
        assert!(choice.others_overdrawn.is_empty());
    }

    #[test]
    fn spares_the_partners_homes_while_others_can_die() {
        let spared = BTreeSet::from([2, 3]);
        let choice = choose(1, &[2, 3, 4, 5], 3, &spared, &[]).unwrap();
        assert_eq!((choice.victims, choice.unspared), (vec![1, 4, 5], vec![]));
        let choice = choose(1, &[2, 3, 4, 5], 5, &spared, &[]).unwrap();
        assert_eq!(choice.unspared, [2, 3]);
    }

    #[test]
    fn the_least_bad_choice_is_named() {
        let everywhere = section("keys", true, &[2, 3, 4, 5], 1);
        let choice = choose(1, &[2, 3, 4, 5], 3, &BTreeSet::new(), &[everywhere]).unwrap();
        assert_eq!(choice.overdrawn, [("keys".to_owned(), 2)]);
    }

    #[test]
    fn two_overdrawn_sections_are_better_than_one_that_is_gone() {
        // Whoever is not 2 or 3 leaves "gone" readable, at the price of overdrawing the other two.
        let mut gone = section("gone", true, &[2, 3], 1);
        gone.rebuildable = 1;
        let sections = [gone, section("a", true, &[2, 4], 1), section("b", true, &[2, 4], 1)];
        let choice = choose(1, &[2, 3, 4], 3, &BTreeSet::from([3]), &sections).unwrap();
        assert_eq!((choice.victims, choice.unreadable.len(), choice.overdrawn.len()), (vec![1, 2, 4], 0, 2));
        let choice = choose(1, &[2, 3], 3, &BTreeSet::new(), &sections).unwrap();
        assert_eq!(choice.unreadable, ["gone"]);
    }

    #[test]
    fn vital_sections_come_before_the_others() {
        let sections = [section("own", true, &[2, 3], 1), section("a", false, &[4, 5], 1), section("b", false, &[2, 4], 1)];
        let choice = choose(1, &[2, 3, 4, 5], 3, &BTreeSet::new(), &sections).unwrap();
        assert!(choice.overdrawn.is_empty() && choice.others_overdrawn.is_empty(), "{choice:?}");
        let sections = [section("own", true, &[2, 3], 1), section("partners", false, &[2, 4], 1), section("partners", false, &[3, 4], 1)];
        let choice = choose(1, &[2, 3, 4], 3, &BTreeSet::new(), &sections).unwrap();
        assert!(choice.overdrawn.is_empty() && choice.others_overdrawn.len() == 1, "{choice:?}");
    }

    #[test]
    fn too_few_holders_is_no_choice() {
        assert_eq!(choose(1, &[2, 3], 4, &BTreeSet::new(), &[]), None);
        assert_eq!(choose(1, &[1, 2, 3], 4, &BTreeSet::new(), &[]), None, "the host is none of the others");
        assert_eq!(choose(1, &[2], 1, &BTreeSet::new(), &[]).unwrap().victims, [1]);
        assert_eq!(choose(1, &[2], 0, &BTreeSet::new(), &[]), None);
    }
}
