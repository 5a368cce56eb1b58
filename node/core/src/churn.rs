//! How likely is a section lost before it expires, if this node vanished and nobody repaired it? (docs/spec/quorum.md#chance-of-loss)
//!
//! Holders die at the rate that this node has seen them die. Before it has seen any, and whenever it has just started, they die as the nodes
//! of the largest network that was ever measured do; every hour that a holder lives here, and every one that dies, moves the estimate.
//! It is kept in memory only: after a restart the prior is the careful assumption again.

use std::collections::{BTreeMap, VecDeque};

use persona_fragments::PeerKey;

/// Shape of the Weibull distribution that fits how long nodes of the Mainline DHT stay (mean of five measured sets).
const SHAPE: f64 = 0.535;

/// Its scale, in hours.
const SCALE_H: f64 = 22.2;

/// The prior weighs as much as so many deaths that were seen here: a few deaths move it, one does not.
const PRIOR_DEATHS: f64 = 4.0;

/// Holders that count as dead and may come back. Beyond it the one that fell silent first is dead for good.
const DEAD_MAX: usize = 256;

const HOUR_US: f64 = 3.6e9;

/// What this node has seen of its holders' lives.
#[derive(Debug, Default)]
pub(crate) struct Churn {
    /// Holders that live, and since when they are watched, in monotonic microseconds.
    alive: BTreeMap<PeerKey, u64>,
    /// Holders that fell silent, in the order in which they did. Who comes back has not died.
    silent: VecDeque<PeerKey>,
    /// Lives that are over, or were watched for a while only: the sum of their cumulative hazards under the prior.
    hazard: f64,
    hours: f64,
    deaths: u32,
}

/// Cumulative hazard of the prior for a life of so many hours.
fn hazard(hours: f64) -> f64 {
    (hours / SCALE_H).powf(SHAPE)
}

fn hours(from_us: u64, until_us: u64) -> f64 {
    until_us.saturating_sub(from_us) as f64 / HOUR_US
}

impl Churn {
    /// A holder is watched from now on, or was heard of again.
    pub(crate) fn lives(&mut self, peer: &PeerKey, now_us: u64) {
        if self.alive.contains_key(peer) {
            return;
        }
        if let Some(place) = self.silent.iter().position(|other| other == peer) {
            self.silent.remove(place);
            self.deaths = self.deaths.saturating_sub(1);
        }
        self.alive.insert(*peer, now_us);
    }

    /// It is no holder any more, or nobody looked: so long it lived.
    pub(crate) fn unwatched(&mut self, peer: &PeerKey, until_us: u64) {
        if let Some(since_us) = self.alive.remove(peer) {
            let hours = hours(since_us, until_us);
            (self.hours, self.hazard) = (self.hours + hours, self.hazard + hazard(hours));
        }
    }

    /// It is gone, after a last sign of life.
    pub(crate) fn gone(&mut self, peer: &PeerKey, alive_us: u64) {
        if self.alive.contains_key(peer) {
            self.unwatched(peer, alive_us);
            self.deaths += 1;
            self.silent.push_back(*peer);
            if self.silent.len() > DEAD_MAX {
                self.silent.pop_front();
            }
        }
    }

    /// It lives, and its disk is gone: for what it held that is a death.
    pub(crate) fn lost_disk(&mut self, peer: &PeerKey, now_us: u64) {
        if self.alive.contains_key(peer) {
            self.unwatched(peer, now_us);
            self.deaths += 1;
            self.alive.insert(*peer, now_us);
        }
    }

    /// This node slept: what happened meanwhile it does not know.
    pub(crate) fn slept(&mut self, from_us: u64, now_us: u64) {
        for peer in self.alive.keys().copied().collect::<Vec<_>>() {
            self.unwatched(&peer, from_us);
            self.alive.insert(peer, now_us);
        }
    }

    /// Hours of holders' lives that were watched, and deaths among them.
    pub(crate) fn seen(&self, now_us: u64) -> (f64, u32) {
        (self.hours + self.alive.values().map(|since| hours(*since, now_us)).sum::<f64>(), self.deaths)
    }

    /// The chance that one holder dies within so many milliseconds.
    ///
    /// Deaths follow the prior's hazard times an unknown factor. With a gamma prior of weight [`PRIOR_DEATHS`] and mean 1 for the factor, the
    /// posterior is gamma again, and this is its predictive distribution.
    pub(crate) fn death_chance(&self, within_ms: u64, now_us: u64) -> f64 {
        let seen = self.hazard + self.alive.values().map(|since| hazard(hours(*since, now_us))).sum::<f64>();
        let (deaths, weight) = (PRIOR_DEATHS + f64::from(self.deaths), PRIOR_DEATHS + seen);
        let ahead = hazard(within_ms as f64 * 1000.0 / HOUR_US);
        -(-deaths * (ahead / weight).ln_1p()).exp_m1()
    }

    /// The chance that more than `placed - k` of `placed` holders die within so many milliseconds.
    pub(crate) fn loss_chance(&self, placed: u8, k: u8, within_ms: u64, now_us: u64) -> f64 {
        loss_chance(placed, k, self.death_chance(within_ms, now_us))
    }
}

/// The chance that more than `placed - k` of `placed` holders die, if each does with chance `p`.
fn loss_chance(placed: u8, k: u8, p: f64) -> f64 {
    if placed < k {
        return 1.0;
    }
    let mut ways = 1.0; // of choosing `dead` of `placed`
    let mut chance = 0.0;
    for dead in 0..=placed {
        if dead > placed - k {
            chance += ways * p.powi(dead.into()) * (1.0 - p).powi((placed - dead).into());
        }
        ways = ways * f64::from(placed - dead) / f64::from(dead + 1);
    }
    chance.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn peer(number: u8) -> PeerKey {
        PeerKey([number; 32])
    }

    fn us(hours: f64) -> u64 {
        (hours * HOUR_US) as u64
    }

    #[test]
    fn the_formula_is_what_counting_every_case_gives() {
        for placed in 1..=10_u8 {
            for k in 1..=placed {
                for p in [0.0, 1e-6, 0.01, 0.17, 0.5, 0.99, 1.0] {
                    // Every set of holders that may be alive, one by one.
                    let mut lost = 0.0;
                    for alive in 0_u32..1 << placed {
                        let chance: f64 = (0..placed).map(|holder| if alive >> holder & 1 == 1 { 1.0 - p } else { p }).product();
                        lost += if alive.count_ones() < u32::from(k) { chance } else { 0.0 };
                    }
                    let formula = loss_chance(placed, k, p);
                    assert!((formula - lost).abs() <= 1e-12 + 1e-9 * lost, "{placed} placed, k {k}, p {p}: {formula} and {lost}");
                }
            }
        }
        assert_eq!(loss_chance(2, 3, 0.0), 1.0);
    }

    #[test]
    fn the_published_numbers_come_out() {
        for (placed, k, p, expected) in
            [(10, 3, 0.2, 7.8e-5), (7, 3, 0.2, 4.7e-3), (10, 3, 0.1, 3.7e-7), (5, 3, 0.1, 8.6e-3), (4, 2, 0.05, 4.8e-4)]
        {
            let chance = loss_chance(placed, k, p);
            assert!((chance / expected - 1.0).abs() < 0.02, "{placed}, {k}, {p}: {chance}");
        }
    }

    #[test]
    fn without_having_seen_anything_it_is_the_prior() {
        let churn = Churn::default();
        let chance = churn.death_chance(HOUR_MS, 0);
        let prior = 1.0 - (-hazard(1.0_f64)).exp();
        assert!((0.17..0.175).contains(&prior), "{prior}");
        assert!((prior - chance).abs() < 0.005, "the weight of the prior is large enough: {chance}");
        assert_eq!(churn.death_chance(0, 0), 0.0);
    }

    #[test]
    fn long_lives_make_it_smaller_and_deaths_greater() {
        let mut churn = Churn::default();
        (0..20).for_each(|number| churn.lives(&peer(number), 0));
        let prior = Churn::default().death_chance(HOUR_MS, 0);
        let calm = churn.death_chance(HOUR_MS, us(100.0));
        assert!(calm < prior / 5.0, "twenty holders lived for 100 hours: {calm}");
        (0..10).for_each(|number| churn.gone(&peer(number), us(1.0)));
        let stormy = churn.death_chance(HOUR_MS, us(1.0));
        assert!(stormy > prior * 1.5, "half of them died within an hour: {stormy}");
        assert_eq!(churn.seen(us(1.0)).1, 10);
        (0..10).for_each(|number| churn.lives(&peer(number), us(2.0)));
        assert_eq!(churn.seen(us(2.0)).1, 0, "they were away, not dead");
    }

    #[test]
    fn it_learns_the_rate_that_is_there() {
        // Holders that die with the prior's hazard times four: the estimate comes close to what is true.
        let mut churn = Churn::default();
        for number in 0..200_u32 {
            let id = PeerKey({
                let mut id = [0; 32];
                id[..4].copy_from_slice(&number.to_le_bytes());
                id
            });
            let share = (f64::from(number) + 0.5) / 200.0;
            let life_h = SCALE_H * (-share.ln() / 4.0).powf(1.0 / SHAPE);
            churn.lives(&id, 0);
            churn.gone(&id, us(life_h));
        }
        let truth = 1.0 - (-4.0 * hazard(1.0_f64)).exp();
        let learnt = churn.death_chance(HOUR_MS, 0);
        assert!((learnt / truth - 1.0).abs() < 0.05, "{learnt}, and it is {truth}");
    }

    #[test]
    fn a_night_asleep_counts_for_nothing() {
        let mut churn = Churn::default();
        churn.lives(&peer(1), 0);
        churn.slept(us(1.0), us(9.0));
        assert!((churn.seen(us(10.0)).0 - 2.0).abs() < 1e-9);
    }
}
