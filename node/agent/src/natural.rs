//! Natural behaviour: what an agent does without a key to it, and how likely it is that somebody else did it (docs/behavior.md#natural-behaviour).
//!
//! An observation is a vector of numbers, one for each feature, the same features in the same order for everybody. What is learnt of one
//! subject is a [`Baseline`]; what is learnt of all others, if anything is, a [`Population`]. With one, an observation is scored by the two-covariance
//! model (probabilistic linear discriminant analysis: Ioffe 2006; Brummer and de Villiers 2010), with heavy tails; without, by its
//! distance from what is usual for the subject (the scaled Manhattan distance of Killourhy and Maxion 2009, clipped).
//!
//! Natural behaviour stops strangers. Whoever has watched one observation can repeat it: nothing here is a secret.

mod linear;

use linear::{Cholesky, Matrix};

/// Observations further than so many standard deviations from what was expected teach no more than one that is just so far.
const CLIP_SD: f64 = 4.0;

/// Likewise for the covariance within subjects.
const CLIP_WITHIN_SD: f64 = 3.5;

/// How much of what features have in common is taken for chance: covariances are drawn so far to their diagonals.
const SHRINKAGE: f64 = 0.1;

/// Degrees of freedom of the subject's likelihood: a Gaussian believes too firmly in the rare observation that is far off.
const FREEDOM: f64 = 10.0;

/// Of the population's, whose tails are heavier: what is far from everybody is not this subject's.
const FREEDOM_POPULATION: f64 = 5.0;

/// Deviations are counted up to so many of their scale, where no population is known.
const CLIP_ALONE: f64 = 3.0;

/// The scale at the beginning counts as so many observations beside those that are learnt.
const SCALE_WEIGHT: f64 = 20.0;

/// A feature that hardly varies in what was learnt is not believed to vary less than so much of the median feature.
const SCALE_MIN: f64 = 0.1;

/// The largest value of a feature, either way: squares of it, and sums of them, are still numbers.
pub const VALUE_MAX: f64 = 1e100;

/// A feature that varies less than so much of its size is taken for rounding.
const VARIATION_MIN: f64 = 1e-12;

/// What an observation of a subject that was not seen before looks like, and how one subject's differ among themselves.
#[derive(Clone, Debug)]
pub struct Population {
    mean: Vec<f64>,
    within: Matrix,
    between: Matrix,
    /// Of an observation of nobody in particular.
    total: Cholesky,
}

/// Why nothing is learnt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NaturalError {
    /// Fewer than three subjects with at least two observations each.
    #[error("a population is at least three subjects with two observations each, not {0}; give more, or do without one")]
    FewSubjects(usize),
    /// Fewer than two observations to enrol from, and no population.
    #[error("without a population a subject enrols with at least two observations")]
    FewObservations,
    /// An observation with another number of features.
    #[error("an observation has {found} features where others have {expected}")]
    Features {
        /// Of the others.
        expected: usize,
        /// Of this one.
        found: usize,
    },
    /// A number that is not finite, or beyond [`VALUE_MAX`].
    #[error("feature {0} is not a number between -{VALUE_MAX:e} and {VALUE_MAX:e}")]
    NotFinite(usize),
    /// A feature that does not vary within any subject: how much it varies by chance cannot be told.
    #[error("feature {0} does not vary within any subject that is learnt from; leave it out")]
    Constant(usize),
    /// Numbers of so different sizes that rounding leaves nothing of them.
    #[error("the features are of so different sizes that nothing can be computed with them; scale them")]
    Scale,
}

fn check(observation: &[f64], expected: usize) -> Result<(), NaturalError> {
    if observation.len() != expected {
        return Err(NaturalError::Features { expected, found: observation.len() });
    }
    observation.iter().position(|value| value.is_nan() || value.abs() > VALUE_MAX).map_or(Ok(()), |at| Err(NaturalError::NotFinite(at)))
}

impl Population {
    /// Learns from several subjects, several observations each. Subjects with fewer than two tell nothing and are left out.
    pub fn learn<S: AsRef<[Vec<f64>]>>(subjects: &[S]) -> Result<Self, NaturalError> {
        let subjects: Vec<&[Vec<f64>]> = subjects.iter().map(AsRef::as_ref).filter(|subject| subject.len() > 1).collect();
        if subjects.len() < 3 {
            return Err(NaturalError::FewSubjects(subjects.len()));
        }
        let features = subjects[0][0].len();
        for observation in subjects.iter().copied().flatten() {
            check(observation, features)?;
        }
        let means: Vec<Vec<f64>> = subjects.iter().map(|subject| mean_of(subject, features)).collect();
        let mean = mean_of(&means, features);
        let mut residuals: Vec<Vec<f64>> = Vec::new();
        for (subject, mean) in subjects.iter().zip(&means) {
            residuals.extend(subject.iter().map(|one| difference(one, mean)));
        }
        let observations = residuals.len();
        let sd: Vec<f64> = (0..features).map(|at| mean_square(&residuals, at).sqrt()).collect();
        let size = |at: usize| subjects.iter().copied().flatten().map(|one| one[at].abs()).fold(0.0, f64::max);
        if let Some(at) = (0..features).find(|at| sd[*at].is_nan() || sd[*at] <= VARIATION_MIN * size(*at)) {
            return Err(NaturalError::Constant(at));
        }
        for residual in &mut residuals {
            residual.iter_mut().zip(&sd).for_each(|(value, sd)| *value = value.clamp(-CLIP_WITHIN_SD * sd, CLIP_WITHIN_SD * sd));
        }
        let within = Matrix::scatter(&residuals, (observations - subjects.len()) as f64).shrunken(SHRINKAGE);
        let spread: Vec<Vec<f64>> = means.iter().map(|one| difference(one, &mean)).collect();
        let spread = Matrix::scatter(&spread, (subjects.len() - 1) as f64);
        // The subjects' means vary by chance, too, each by what one of its observations does divided by their number. What
        // is left of one feature's variance is never nothing, or no subject could differ in it.
        let by_chance = subjects.iter().map(|subject| 1.0 / subject.len() as f64).sum::<f64>() / subjects.len() as f64;
        let mut between = spread.less(&within, by_chance).shrunken(SHRINKAGE);
        for at in 0..features {
            between.raise_diagonal(at, SHRINKAGE * spread.at(at, at).max(within.at(at, at) * by_chance));
        }
        let between = between.made_definite();
        let total = within.plus(&between);
        let total = Cholesky::of(&total).ok_or(NaturalError::Scale)?;
        Ok(Self { mean, within, between, total })
    }

    /// How many features an observation has.
    pub fn features(&self) -> usize {
        self.mean.len()
    }
}

/// What is known of one subject.
#[derive(Clone, Debug)]
pub struct Baseline {
    count: f64,
    mean: Vec<f64>,
    against: Against,
}

#[derive(Clone, Debug)]
enum Against {
    /// What is expected next, and the population that it is compared with.
    Population(Box<(Population, Vec<f64>, Cholesky)>),
    /// Sums of squared deviations, and the scale at the beginning.
    Nobody { squares: Vec<f64>, scale: Vec<f64> },
}

impl Baseline {
    /// Enrols a subject by its first observations: at least two, or one if there is a population.
    pub fn enrol(first: &[Vec<f64>], population: Option<&Population>) -> Result<Self, NaturalError> {
        let features = population.map_or_else(|| first.first().map_or(0, Vec::len), Population::features);
        for observation in first {
            check(observation, features)?;
        }
        let against = match population {
            Some(population) => Against::Population(Box::new((population.clone(), population.mean.clone(), population.total.clone()))),
            None => Against::Nobody { squares: vec![0.0; features], scale: scale_of(first, features)? },
        };
        let mut baseline = Self { count: 0.0, mean: vec![0.0; features], against };
        for observation in first {
            baseline.learn(observation)?;
        }
        Ok(baseline)
    }

    /// Learns one more observation of the subject. The caller has decided that it was the subject's.
    pub fn learn(&mut self, observation: &[f64]) -> Result<(), NaturalError> {
        check(observation, self.mean.len())?;
        let clipped: Vec<f64> = match &self.against {
            Against::Population(known) => clip(observation, &known.1, &known.2.sd(), CLIP_SD),
            Against::Nobody { scale, .. } if self.count > 0.0 => clip(observation, &self.mean, scale, CLIP_SD),
            Against::Nobody { .. } => observation.to_vec(),
        };
        self.count += 1.0;
        let before = self.mean.clone();
        self.mean.iter_mut().zip(&clipped).for_each(|(mean, value)| *mean += (value - *mean) / self.count);
        match &mut self.against {
            Against::Nobody { squares, .. } => {
                for (at, square) in squares.iter_mut().enumerate() {
                    *square += (clipped[at] - before[at]) * (clipped[at] - self.mean[at]);
                }
            }
            Against::Population(known) => {
                let (population, expected, spread) = &mut **known;
                // Of the subject's own mean: the posterior under N(population mean, between) after `count` observations with covariance `within`.
                let noise = population.within.times(1.0 / self.count);
                if let Some(both) = Cholesky::of(&population.between.plus(&noise)) {
                    let shift = population.between.apply(&both.solve(&difference(&self.mean, &population.mean)));
                    *expected = population.mean.iter().zip(&shift).map(|(mean, shift)| mean + shift).collect();
                    let posterior = population.between.product(&both.solve_matrix(&noise));
                    if let Some(next) = Cholesky::of(&population.within.plus(&posterior).symmetric()) {
                        *spread = next;
                    }
                }
            }
        }
        Ok(())
    }

    /// How much better the subject explains an observation than another of the population would: a log likelihood ratio in nats, up to a constant.
    /// Without a population, how far it is from what is usual, negative, in scales of a feature. Higher is more genuine.
    pub fn score(&self, observation: &[f64]) -> Result<f64, NaturalError> {
        check(observation, self.mean.len())?;
        let features = self.mean.len() as f64;
        Ok(match &self.against {
            Against::Population(known) => {
                let (population, expected, spread) = &**known;
                let log_density = |cholesky: &Cholesky, mean: &[f64], freedom: f64| {
                    let distance = cholesky.distance(&difference(observation, mean));
                    -0.5 * cholesky.log_determinant() - (freedom + features) / 2.0 * (distance / freedom).ln_1p()
                };
                log_density(spread, expected, FREEDOM) - log_density(&population.total, &population.mean, FREEDOM_POPULATION)
            }
            Against::Nobody { squares, scale } => {
                let deviation = |at: usize| {
                    let variance = (SCALE_WEIGHT * scale[at].powi(2) + squares[at]) / (SCALE_WEIGHT + self.count - 1.0);
                    ((observation[at] - self.mean[at]).abs() / (variance * (1.0 + 1.0 / self.count)).sqrt()).min(CLIP_ALONE)
                };
                -(0..self.mean.len()).map(deviation).sum::<f64>() / features
            }
        })
    }
}

fn difference(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one - other).collect()
}

fn mean_of(observations: &[Vec<f64>], features: usize) -> Vec<f64> {
    let sum = |at: usize| observations.iter().map(|observation| observation[at]).sum::<f64>();
    (0..features).map(|at| sum(at) / observations.len() as f64).collect()
}

fn mean_square(residuals: &[Vec<f64>], at: usize) -> f64 {
    residuals.iter().map(|residual| residual[at].powi(2)).sum::<f64>() / residuals.len() as f64
}

fn clip(observation: &[f64], mean: &[f64], sd: &[f64], most: f64) -> Vec<f64> {
    let limits = mean.iter().zip(sd).map(|(mean, sd)| (mean - most * sd, mean + most * sd));
    observation.iter().zip(limits).map(|(value, (low, high))| value.clamp(low, high)).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The scale of each feature: the median absolute deviation, or half the standard deviation if that is more.
fn scale_of(first: &[Vec<f64>], features: usize) -> Result<Vec<f64>, NaturalError> {
    if first.len() < 2 {
        return Err(NaturalError::FewObservations);
    }
    let mean = mean_of(first, features);
    let residuals: Vec<Vec<f64>> = first.iter().map(|one| difference(one, &mean)).collect();
    let scale = |at: usize| {
        let middle = median(first.iter().map(|one| one[at]).collect());
        let usual = median(first.iter().map(|one| (one[at] - middle).abs()).collect());
        (usual * 1.4826).max(mean_square(&residuals, at).sqrt() / 2.0)
    };
    let scales: Vec<f64> = (0..features).map(scale).collect();
    let size = |at: usize| first.iter().map(|one| one[at].abs()).fold(0.0, f64::max);
    let varies = |at: usize| scales[at] > VARIATION_MIN * size(at);
    let least = SCALE_MIN * median(scales.clone());
    if let Some(at) = (0..features).find(|at| !varies(*at)).filter(|at| least <= VARIATION_MIN * size(*at)) {
        return Err(NaturalError::Constant(at));
    }
    Ok(scales.into_iter().map(|scale| scale.max(least)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six subjects around different means, eight observations each, without chance: `mean + a pattern that repeats`.
    fn subjects() -> Vec<Vec<Vec<f64>>> {
        let pattern = [[0.3, -0.2, 0.1], [-0.3, 0.1, 0.2], [0.1, 0.3, -0.3], [-0.1, -0.2, 0.0]];
        let mean = |subject: usize| [subject as f64, (subject * 5 % 6) as f64, (subject * subject % 7) as f64];
        let one = |subject: usize, at: usize| mean(subject).iter().zip(pattern[at % 4]).map(|(mean, off)| mean + off).collect();
        (0..6).map(|subject| (0..8).map(|at| one(subject, at)).collect()).collect()
    }

    #[test]
    fn a_subject_is_told_from_others_and_from_what_nobody_does() {
        let subjects = subjects();
        let population = Population::learn(&subjects[1..]).expect("there are five");
        let known = [Some(&population), None].map(|population| Baseline::enrol(&subjects[0][..3], population).expect("enrolled"));
        for baseline in known {
            let own = subjects[0][3..].iter().map(|one| baseline.score(one).expect("a score")).fold(f64::INFINITY, f64::min);
            for other in subjects[1..].iter().flatten() {
                assert!(baseline.score(other).expect("a score") < own);
            }
            for far in [[1e3; 3], [-1e3; 3], [1e3, 0.0, 0.0], [0.0, -1e6, 1e6]] {
                assert!(baseline.score(&far).expect("a score") < own, "{far:?} is nobody's");
            }
        }
    }

    #[test]
    fn one_observation_enrols_where_a_population_is_known_and_more_are_worth_more() {
        let subjects = subjects();
        let population = Population::learn(&subjects[1..]).expect("there are five");
        let mut baseline = Baseline::enrol(&subjects[0][..1], Some(&population)).expect("one is enough");
        let first = baseline.score(&subjects[0][7]).expect("a score");
        subjects[0][1..7].iter().for_each(|one| baseline.learn(one).expect("learnt"));
        assert!(baseline.score(&subjects[0][7]).expect("a score") > first);
        let wild = baseline.clone();
        baseline.learn(&[1e9, -1e9, 1e9]).expect("learnt, as far as it is believed");
        let moved = (baseline.score(&subjects[0][7]).expect("a score") - wild.score(&subjects[0][7]).expect("a score")).abs();
        assert!(moved < 10.0, "one wild observation moved the score by {moved} nats");
        assert!(Baseline::enrol(&subjects[0][..1], None).is_err(), "alone it takes two");
    }

    #[test]
    fn what_teaches_nothing_is_refused() {
        let subjects = subjects();
        assert_eq!(Population::learn(&subjects[..2]).map(|_| ()), Err(NaturalError::FewSubjects(2)));
        let mut constant = subjects.clone();
        constant.iter_mut().flatten().for_each(|one| one[1] = 4.0);
        assert_eq!(Population::learn(&constant).map(|_| ()), Err(NaturalError::Constant(1)));
        let population = Population::learn(&subjects).expect("six");
        let mut baseline = Baseline::enrol(&subjects[0], Some(&population)).expect("enrolled");
        assert_eq!(baseline.score(&[1.0, 2.0]), Err(NaturalError::Features { expected: 3, found: 2 }));
        assert_eq!(baseline.learn(&[1.0, f64::NAN, 2.0]), Err(NaturalError::NotFinite(1)));
        // Two features that are one: their covariance has no inverse before it is drawn to its diagonal.
        let doubled: Vec<Vec<Vec<f64>>> = subjects.iter().map(|one| one.iter().map(|x| vec![x[0], x[0], x[2]]).collect()).collect();
        assert!(Population::learn(&doubled).is_ok());
    }
}
