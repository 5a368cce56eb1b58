//! What is broken next? Drawn from a seed, within what may be broken at once (docs/spec/scenario.md#faults).
//!
//! Two limits are kept. No more nodes than the budget says are broken at the same time. And no section has more than its `f` holders broken
//! or without their shard: a disk that was lost counts until what it had is placed elsewhere, whoever is up by then.

use std::collections::BTreeSet;
use std::time::Duration;

use chacha20::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::{Disk, Fault, Kind, NemesisPlan, Span, Ways};

/// A node counts as broken for so long after it came back: it must find the others, and they must notice.
pub const MENDING: Duration = Duration::from_secs(10);

/// How often something else is drawn when what was drawn would break too much.
const TRIES_MAX: usize = 16;

/// Where a section is, as far as anybody knows.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The node of each holder; `None` if that node is no more.
    pub holders: Vec<Option<usize>>,
    /// Which of them are without the shard, by their place.
    pub without: BTreeSet<usize>,
    /// How many may be broken.
    pub f: usize,
}

/// How things stand.
#[derive(Clone, Debug)]
pub struct Standing<'s> {
    /// Nodes that may be broken: the first so many.
    pub honest: usize,
    /// Those of all nodes that are broken, or mending, or lie.
    pub broken: &'s BTreeSet<usize>,
    /// How many may be.
    pub budget: usize,
    /// Nodes where agents live.
    pub homes: &'s BTreeSet<usize>,
    /// Every section.
    pub sections: &'s [Placed],
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// What is broken. Its own list of nodes is empty: they are in `nodes`, from 0.
    pub fault: Fault,
    /// Whom it hits.
    pub nodes: Vec<usize>,
    /// For how long.
    pub lasts: Duration,
}

/// Draws faults.
pub struct Nemesis {
    rng: ChaCha8Rng,
}

impl Nemesis {
    /// The nemesis of a seed.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// How long until the next draw: `every` on average, and never the same.
    pub fn pause(&mut self, every: Span) -> Duration {
        every.0.mul_f64(0.25 + 1.5 * self.unit())
    }

    /// The next fault, or nothing if whatever is drawn would break too much.
    pub fn draw(&mut self, plan: &NemesisPlan, standing: &Standing<'_>) -> Option<Drawn> {
        let kind = plan.faults[self.below(plan.faults.len())];
        if let Some(drawn) = (0..TRIES_MAX).find_map(|_| self.draw_one(kind, plan, standing)) {
            return Some(drawn);
        }
        // Another kind may find room. Slow links always would, and then most of what happens were slow links.
        let others: Vec<Kind> = plan.faults.iter().copied().filter(|other| *other != kind && *other != Kind::Slow).collect();
        (0..TRIES_MAX).find_map(|_| {
            let other = *others.get(self.below(others.len()))?;
            self.draw_one(other, plan, standing)
        })
    }

    /// `count` honest nodes that are not broken, for a fault that names none. Homes, if the fault is about them. Whether that breaks too much is
    /// for whoever wrote the scenario to know.
    pub fn choose(&mut self, count: usize, fault: &Fault, standing: &Standing<'_>) -> Vec<usize> {
        let wanted =
            |node: &usize| !standing.broken.contains(node) && (!matches!(fault, Fault::Move { .. }) || standing.homes.contains(node));
        let pool: Vec<usize> = (0..standing.honest).filter(wanted).collect();
        self.some_of(pool, count)
    }

    fn draw_one(&mut self, kind: Kind, plan: &NemesisPlan, standing: &Standing<'_>) -> Option<Drawn> {
        let room = standing.budget.saturating_sub(standing.broken.len());
        let sound: Vec<usize> = (0..standing.honest).filter(|node| !standing.broken.contains(node)).collect();
        let breaks = kind != Kind::Slow;
        if breaks && room == 0 {
            return None;
        }
        let nothing = Vec::new;
        let (fault, nodes) = match kind {
            Kind::Kill => {
                let disk = [Disk::Kept, Disk::Kept, Disk::Emptied, Disk::Lost][self.below(4)];
                let count = if disk == Disk::Kept { 1 + self.below(room) } else { 1 };
                (Fault::Kill { nodes: nothing(), share: None, disk }, self.some_of(sound, count))
            }
            Kind::Move => {
                let homes = sound.into_iter().filter(|node| standing.homes.contains(node)).collect();
                (Fault::Move { nodes: nothing(), share: None }, self.some_of(homes, 1))
            }
            Kind::Pause => {
                let count = 1 + self.below(room);
                (Fault::Pause { nodes: nothing(), share: None }, self.some_of(sound, count))
            }
            Kind::Partition => {
                let way = [Ways::Both, Ways::Both, Ways::In, Ways::Out][self.below(4)];
                let count = 1 + self.below(room);
                (Fault::Partition { nodes: nothing(), share: None, way }, self.some_of(sound, count))
            }
            Kind::Slow => {
                let delay = Span::of_millis(5 + self.below(120) as u64);
                let jitter = Span::of_millis(self.below(120) as u64);
                let loss = [0.0, 0.01, 0.05][self.below(3)];
                let count = 1 + self.below(standing.honest / 2);
                (Fault::Slow { nodes: nothing(), share: None, delay, jitter, loss }, self.some_of(sound, count))
            }
            Kind::FullDisk => (Fault::FullDisk { nodes: nothing(), share: None }, self.some_of(sound, 1)),
        };
        let (least, most) = (plan.lasts.0.0, plan.lasts.1.0);
        let lasts = least + (most - least).mul_f64(self.unit());
        (!nodes.is_empty() && (!breaks || is_tolerated(&fault, &nodes, standing))).then_some(Drawn { fault, nodes, lasts })
    }

    fn some_of(&mut self, mut pool: Vec<usize>, count: usize) -> Vec<usize> {
        let mut some: Vec<usize> = (0..count.min(pool.len())).map(|_| pool.swap_remove(self.below(pool.len()))).collect();
        some.sort_unstable();
        some
    }

    /// A number below `bound`, which is not 0 where it matters.
    fn below(&mut self, bound: usize) -> usize {
        (self.rng.next_u64() % bound.max(1) as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }
}

/// Whether everything that is promised can still be had with these nodes broken, too.
fn is_tolerated(fault: &Fault, nodes: &[usize], standing: &Standing<'_>) -> bool {
    let at_home = |node: &&usize| standing.homes.contains(node);
    let homes = nodes.iter().filter(at_home).count() + standing.broken.iter().filter(at_home).count();
    // One home at a time, so that there is always somebody to bring its agents to; and a home that has its identity and nothing else is
    // a machine that was set back, which nobody promises to survive.
    if homes > 1
        || homes == 1 && matches!(fault, Fault::Kill { disk: Disk::Emptied, .. }) && nodes.iter().any(|node| standing.homes.contains(node))
    {
        return false;
    }
    standing.sections.iter().all(|section| {
        let is_bad = |(place, holder): (usize, &Option<usize>)| {
            holder.is_none_or(|node| standing.broken.contains(&node) || nodes.contains(&node)) || section.without.contains(&place)
        };
        section.holders.iter().enumerate().filter(|holder| is_bad(*holder)).count() <= section.f
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(faults: &[Kind]) -> NemesisPlan {
        NemesisPlan { every: Span::of_millis(1_000), lasts: (Span::of_millis(1_000), Span::of_millis(9_000)), faults: faults.to_vec() }
    }

    const ALL: [Kind; 6] = [Kind::Kill, Kind::Move, Kind::Pause, Kind::Partition, Kind::Slow, Kind::FullDisk];

    fn section(holders: std::ops::Range<usize>, without: &[usize], f: usize) -> Placed {
        Placed { holders: holders.map(Some).collect(), without: without.iter().copied().collect(), f }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_everything_is_drawn() {
        let (broken, homes) = (BTreeSet::new(), BTreeSet::from([0, 1]));
        let sections = [section(2..9, &[], 2)];
        let standing = Standing { honest: 12, broken: &broken, budget: 2, homes: &homes, sections: &sections };
        let draw = |seed| {
            let mut nemesis = Nemesis::new(seed);
            (0..200).map(|_| nemesis.draw(&plan(&ALL), &standing).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let drawn = draw(3);
        let has = |test: fn(&Fault) -> bool| drawn.iter().any(|drawn| test(&drawn.fault));
        assert!(has(|fault| matches!(fault, Fault::Kill { disk: Disk::Kept, .. })));
        assert!(has(|fault| matches!(fault, Fault::Kill { disk: Disk::Emptied, .. })));
        assert!(has(|fault| matches!(fault, Fault::Kill { disk: Disk::Lost, .. })));
        assert!(has(|fault| matches!(fault, Fault::Move { .. })) && has(|fault| matches!(fault, Fault::Pause { .. })));
        assert!(
            has(|fault| matches!(fault, Fault::Partition { way: Ways::In, .. })) && has(|fault| matches!(fault, Fault::FullDisk { .. }))
        );
        for drawn in &drawn {
            assert!(
                drawn.nodes.windows(2).all(|pair| pair[0] < pair[1]) && (1_000..=9_000).contains(&drawn.lasts.as_millis()),
                "{drawn:?}"
            );
        }
    }

    #[test]
    fn never_is_more_broken_than_the_budget_and_every_section_allow() {
        // Of the section's seven holders one is broken, one is gone and one is without its shard; with f = 3 nobody else of them may break.
        let (broken, homes) = (BTreeSet::from([2]), BTreeSet::from([0, 1]));
        let mut section = section(2..9, &[4], 3);
        section.holders[6] = None;
        let sections = [section];
        let standing = Standing { honest: 12, broken: &broken, budget: 3, homes: &homes, sections: &sections };
        let mut nemesis = Nemesis::new(5);
        for _ in 0..500 {
            let Some(Drawn { fault, nodes, .. }) = nemesis.draw(&plan(&ALL), &standing) else { continue };
            if matches!(fault, Fault::Slow { .. }) {
                continue;
            }
            assert!(nodes.len() <= 2, "{fault:?} {nodes:?}");
            assert!(nodes.iter().all(|node| ![2, 3, 4, 5, 7].contains(node)), "{fault:?} {nodes:?}: a fourth holder");
            assert!(nodes.iter().filter(|node| homes.contains(node)).count() <= 1, "{fault:?} {nodes:?}");
        }
        let full = Standing { budget: 1, ..standing };
        assert_eq!(nemesis.draw(&plan(&[Kind::Kill, Kind::Move, Kind::Pause, Kind::Partition, Kind::FullDisk]), &full), None);
        assert!(
            nemesis.draw(&plan(&[Kind::Slow]), &full).is_some_and(|drawn| matches!(drawn.fault, Fault::Slow { .. })),
            "slow is not broken"
        );
    }

    #[test]
    fn whom_a_scenario_leaves_open_is_sound_and_a_home_if_it_moves() {
        let (broken, homes) = (BTreeSet::from([0]), BTreeSet::from([0, 1]));
        let standing = Standing { honest: 4, broken: &broken, budget: 4, homes: &homes, sections: &[] };
        let mut nemesis = Nemesis::new(5);
        assert_eq!(nemesis.choose(9, &Fault::Pause { nodes: vec![], share: None }, &standing), [1, 2, 3]);
        assert_eq!(nemesis.choose(9, &Fault::Move { nodes: vec![], share: None }, &standing), [1]);
    }
}
