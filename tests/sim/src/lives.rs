//! How long machines stay: sets of parameters that fit what was measured elsewhere.
//!
//! Lives follow a Weibull distribution of shape below one: whoever has stayed long is likely to stay longer. The sets are fits to published
//! measurements; what was measured over hours says little about seconds, and the docs say so (docs/survival.md#churn).

use chacha20::ChaCha8Rng;
use rand_core::Rng;

/// How long machines stay from a moment on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it stands for.
    pub about: &'static str,
    /// Weibull's shape.
    pub shape: f64,
    /// Weibull's scale, in hours.
    pub scale_h: f64,
    /// Whether these are lives from their beginning, and not of whoever is there at some moment.
    pub from_the_start: bool,
}

/// Who comes and goes within so long, in seconds, is not seen to have come.
pub const NEWCOMER_S: f64 = 600.0;

/// Every set.
pub const SETS: [Churn; 3] = [
    Churn {
        name: "residual",
        about: "whoever answers now: holders in the Mainline DHT, as measured",
        shape: 0.535,
        scale_h: 22.2,
        from_the_start: false,
    },
    Churn {
        name: "fresh",
        about: "whoever has just come: sessions in IPFS, from their start",
        shape: 0.61,
        scale_h: 3.7,
        from_the_start: true,
    },
    Churn { name: "mobile", about: "phones that are reachable now", shape: 0.83, scale_h: 3.0, from_the_start: false },
];

impl Churn {
    /// The set of this name.
    pub fn named(name: &str) -> Option<Self> {
        SETS.into_iter().find(|set| set.name == name)
    }

    /// How long one stays who comes later, in seconds.
    ///
    /// Where whoever is there at a moment has been measured, lives of newcomers follow from it: if it never mattered when one looked, the chance
    /// to stay `t` at the age of `s` is `R'(s + t) / R'(s)`, `R` being what was measured. That is the least of two lives: of Weibull's beyond `s`, and of
    /// Pareto's. It has no mean at `s = 0`, for who looks at a moment sees few of those that stay for seconds: a newcomer counts from the
    /// age of [`NEWCOMER_S`].
    pub fn newcomer_s(&self, rng: &mut ChaCha8Rng) -> f64 {
        if self.from_the_start {
            return self.life_s(rng);
        }
        let pareto = NEWCOMER_S * (uniform(rng).powf(-1.0 / (1.0 - self.shape)) - 1.0);
        pareto.min(self.life_beyond_s(rng, NEWCOMER_S) - NEWCOMER_S)
    }

    /// The share that is still there after so many seconds.
    pub fn stays(&self, seconds: f64) -> f64 {
        (-(seconds / (self.scale_h * 3600.0)).powf(self.shape)).exp()
    }

    /// How long one stays, in seconds.
    pub fn life_s(&self, rng: &mut ChaCha8Rng) -> f64 {
        self.scale_h * 3600.0 * (-uniform(rng).ln()).powf(1.0 / self.shape)
    }

    /// How long one stays of whom is known that he stays longer than this, counted from the same moment.
    pub fn life_beyond_s(&self, rng: &mut ChaCha8Rng, seconds: f64) -> f64 {
        let scale_s = self.scale_h * 3600.0;
        let passed = (seconds / scale_s).powf(self.shape);
        scale_s * (passed - uniform(rng).ln()).powf(1.0 / self.shape)
    }
}

/// Above 0 and up to 1.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::stream;

    #[test]
    fn lives_that_are_drawn_end_as_the_set_says() {
        let mut rng = stream(1, "lives");
        for set in SETS {
            for seconds in [100.0, 1_200.0, 3_600.0] {
                let drawn = 20_000;
                let stay = (0..drawn).filter(|_| set.life_s(&mut rng) > seconds).count() as f64 / f64::from(drawn);
                assert!((stay - set.stays(seconds)).abs() < 0.012, "{}: {stay} stay {seconds} s", set.name);
                let later = (0..drawn).filter(|_| set.life_beyond_s(&mut rng, 600.0) > 600.0 + seconds).count() as f64 / f64::from(drawn);
                let wanted = set.stays(600.0 + seconds) / set.stays(600.0);
                assert!((later - wanted).abs() < 0.012, "{}: of those who stayed 600 s {later} stay {seconds} s more", set.name);
            }
        }
    }

    #[test]
    fn newcomers_stay_as_follows_from_whoever_is_there_at_a_moment() {
        let mut rng = stream(2, "newcomers");
        let [residual, fresh, _] = SETS;
        let (drawn, scale_s) = (20_000, residual.scale_h * 3600.0);
        // The density of R, which is that of the ages of those who are there.
        let density = |age_s: f64| (age_s / scale_s).powf(residual.shape - 1.0) * residual.stays(age_s);
        let lives: Vec<f64> = (0..drawn).map(|_| residual.newcomer_s(&mut rng)).collect();
        for seconds in [60.0, 600.0, 3_600.0, 36_000.0] {
            let stay = lives.iter().filter(|life_s| **life_s > seconds).count() as f64 / f64::from(drawn);
            let wanted = density(NEWCOMER_S + seconds) / density(NEWCOMER_S);
            assert!((stay - wanted).abs() < 0.012, "{stay} stay {seconds} s, not {wanted}");
        }
        let stay = (0..drawn).filter(|_| fresh.newcomer_s(&mut rng) > 3_600.0).count() as f64 / f64::from(drawn);
        assert!((stay - fresh.stays(3_600.0)).abs() < 0.012, "sessions that were measured from their start are drawn as they were");
    }

    #[test]
    fn the_sets_give_the_losses_that_were_measured() {
        let loss = |name: &str, seconds: f64| 1.0 - Churn::named(name).expect("a set").stays(seconds);
        for (name, seconds, measured) in [
            ("residual", 1_200.0, 0.10),
            ("residual", 3_600.0, 0.17),
            ("fresh", 1_200.0, 0.21),
            ("fresh", 3_600.0, 0.37),
            ("mobile", 100.0, 0.02),
            ("mobile", 1_200.0, 0.16),
            ("mobile", 3_600.0, 0.33),
        ] {
            assert!((loss(name, seconds) - measured).abs() < 0.015, "{name} after {seconds} s: {}", loss(name, seconds));
        }
    }
}
