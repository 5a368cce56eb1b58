//! The natural-feature verifier on labelled data: enrol each subject, score its own later repetitions as genuine and others' first as impostors.
//!
//! The protocol is that of Killourhy and Maxion (2009) with fewer repetitions to enrol from: the first `enrol` of each subject. Its own from
//! `genuine_from` on are genuine; those between are only learnt from, and with `online` each genuine one is learnt after it was scored.
//! Impostors are the first five repetitions of every other subject, scored in turns while the subject goes on. Nothing is learnt from them, and the
//! population that a subject is compared with is made of the others' repetitions after those five.

use std::collections::BTreeMap;

use persona_agent::natural::{Baseline, NaturalError, Population, VALUE_MAX};
use serde::Serialize;

use crate::rates::{detection_at, equal_error_rate, mean_and_sd};

/// How often each other subject tries.
pub const IMPOSTOR_TRIES: usize = 5;

/// How many scores in a row are averaged for the second equal error rate.
pub const MESSAGES_AVERAGED: usize = 5;

/// Bytes of a file, at most.
pub const DATA_BYTES_MAX: usize = 256 << 20;

/// Subjects, at most: each is scored against all others.
pub const SUBJECTS_MAX: usize = 10_000;

/// Features, at most: what is learnt of them grows with their cube.
pub const FEATURES_MAX: usize = 256;

/// Labelled observations.
#[derive(Clone, Debug)]
pub struct Data {
    features: Vec<String>,
    subjects: Vec<(String, Vec<Vec<f64>>)>,
    logarithmic: usize,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// More than [`DATA_BYTES_MAX`].
    #[error("the file has {0} bytes, more than {DATA_BYTES_MAX}; split it by features or take fewer repetitions")]
    TooLarge(usize),
    /// The first line is not a header as it should be.
    #[error(
        "the first line names the columns: subject, session, rep, and then at least one feature and at most {FEATURES_MAX}; this one says {0:?}"
    )]
    Header(String),
    /// More than [`SUBJECTS_MAX`].
    #[error("the file has more than {SUBJECTS_MAX} subjects; each is scored against all others: take fewer")]
    Subjects,
    /// A line that is not CSV, or has more or fewer fields than the header.
    #[error(transparent)]
    Line(#[from] csv::Error),
    /// A field that is not a number, or a larger one than [`VALUE_MAX`].
    #[error("line {line}, column {column}: {text:?} is not a number between -{VALUE_MAX:e} and {VALUE_MAX:e}")]
    Number {
        /// Which line, from 1.
        line: u64,
        /// The name of the column.
        column: String,
        /// What stands there.
        text: String,
    },
}

impl Data {
    /// Reads CSV: `subject`, `session`, `rep`, then numbers. Repetitions count in the order of the lines. A feature that is positive in every line is
    /// taken by its logarithm, as times are.
    pub fn read(bytes: &[u8]) -> Result<Self, DataError> {
        if bytes.len() > DATA_BYTES_MAX {
            return Err(DataError::TooLarge(bytes.len()));
        }
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
        let columns: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
        let named = |at: usize, name: &str| columns.get(at).is_some_and(|column| column.eq_ignore_ascii_case(name));
        if !(4..=3 + FEATURES_MAX).contains(&columns.len()) || !named(0, "subject") || !named(2, "rep") {
            let said = columns.join(",");
            return Err(DataError::Header(said.chars().take(80).collect()));
        }
        let features = columns[3..].to_vec();
        let mut subjects: Vec<(String, Vec<Vec<f64>>)> = Vec::new();
        let mut places = BTreeMap::new();
        let mut positive = vec![true; features.len()];
        for record in reader.records() {
            let record = record?;
            let line = record.position().map_or(0, csv::Position::line);
            let mut observation = Vec::with_capacity(features.len());
            for (at, text) in record.iter().skip(3).enumerate() {
                let number = text.parse::<f64>().ok().filter(|number| number.abs() <= VALUE_MAX);
                let number = number.ok_or_else(|| DataError::Number { line, column: features[at].clone(), text: text.to_owned() })?;
                positive[at] &= number > 0.0;
                observation.push(number);
            }
            let count = subjects.len();
            let place = *places.entry(record[0].to_owned()).or_insert(count);
            if place == count {
                if count == SUBJECTS_MAX {
                    return Err(DataError::Subjects);
                }
                subjects.push((record[0].to_owned(), Vec::new()));
            }
            subjects[place].1.push(observation);
        }
        // Units do not matter, and sizes that differ by many powers of ten would not compute.
        let mut units = vec![0.0_f64; features.len()];
        for observation in subjects.iter_mut().flat_map(|(_, observations)| observations) {
            for (at, value) in observation.iter_mut().enumerate() {
                if positive[at] {
                    *value = value.ln();
                } else {
                    units[at] = units[at].max(value.abs());
                }
            }
        }
        for observation in subjects.iter_mut().flat_map(|(_, observations)| observations) {
            observation.iter_mut().zip(&units).filter(|(_, unit)| **unit > 0.0).for_each(|(value, unit)| *value /= unit);
        }
        Ok(Self { features, subjects, logarithmic: positive.into_iter().filter(|positive| *positive).count() })
    }
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct ScoreOptions {
    /// So many first repetitions of a subject are learnt as its own.
    pub enrol: usize,
    /// From this repetition on they are scored as genuine; the first is 1.
    pub genuine_from: usize,
    /// Learn from every own repetition after the enrolment, too.
    pub online: bool,
    /// Compare with what is known of the other subjects.
    pub population: bool,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The numbers contradict each other or the data.
    #[error("{0}")]
    Options(String),
    /// The data teach nothing.
    #[error("{error}{}", feature.as_ref().map(|name| format!(" (column {name})")).unwrap_or_default())]
    Natural {
        /// Why.
        error: NaturalError,
        /// The column that it is about.
        feature: Option<String>,
    },
}

/// One subject.
#[derive(Clone, Debug, Serialize)]
pub struct SubjectScore {
    /// Its name in the file.
    pub subject: String,
    /// Own repetitions that were scored.
    pub genuine: usize,
    /// Others' that were.
    pub impostor: usize,
    /// The equal error rate of single scores, in 0..=1.
    pub eer: f64,
    /// The share of impostors found where 1 % of the genuine are refused.
    pub detection_at_1_percent: f64,
    /// The equal error rate of the mean of five in a row; nothing if there are fewer.
    pub eer_of_five: Option<f64>,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct ScoreReport {
    /// Subjects that were measured.
    pub subjects: usize,
    /// Subjects with too few repetitions, which only tried as impostors.
    pub left_out: Vec<String>,
    /// Features of an observation.
    pub features: usize,
    /// Of those, taken by their logarithm.
    pub logarithmic: usize,
    /// Repetitions that were enrolled.
    pub enrol: usize,
    /// The first that was scored as genuine.
    pub genuine_from: usize,
    /// Whether it went on learning.
    pub online: bool,
    /// `leave-one-out` or `none`.
    pub population: &'static str,
    /// Mean of the subjects' equal error rates.
    pub eer_mean: f64,
    /// Their standard deviation.
    pub eer_sd: f64,
    /// Mean of the subjects' detection at 1 % false alarms.
    pub detection_at_1_percent_mean: f64,
    /// Mean of the subjects' equal error rates of five messages.
    pub eer_of_five_mean: Option<f64>,
    /// Each subject.
    pub per_subject: Vec<SubjectScore>,
}

/// Measures. `progress` is told after each subject how many are done, and of how many.
pub fn score(data: &Data, options: ScoreOptions, mut progress: impl FnMut(usize, usize)) -> Result<ScoreReport, ScoreError> {
    let ScoreOptions { enrol, genuine_from, online, population } = options;
    let least = if population { 1 } else { 2 };
    if enrol < least {
        return Err(ScoreError::Options(format!("at least {least} repetitions are enrolled")));
    }
    if genuine_from <= enrol {
        return Err(ScoreError::Options(format!("genuine repetitions begin at {genuine_from}, within the {enrol} that are enrolled")));
    }
    let enough = |observations: &[Vec<f64>]| observations.len() >= genuine_from;
    let measured: Vec<usize> = (0..data.subjects.len()).filter(|at| enough(&data.subjects[*at].1)).collect();
    if measured.is_empty() || data.subjects.len() < 2 {
        let longest = data.subjects.iter().map(|(_, observations)| observations.len()).max().unwrap_or(0);
        return Err(ScoreError::Options(format!(
            "{} subjects with at most {longest} repetitions: there must be two subjects, and repetition {genuine_from} of one (--genuine-from)",
            data.subjects.len()
        )));
    }
    let natural = |error: NaturalError| {
        let at = match &error {
            NaturalError::NotFinite(at) | NaturalError::Constant(at) => data.features.get(*at).cloned(),
            NaturalError::FewSubjects(_) | NaturalError::FewObservations | NaturalError::Features { .. } | NaturalError::Scale => None,
        };
        ScoreError::Natural { error, feature: at }
    };
    let mut per_subject = Vec::new();
    for (done, at) in measured.iter().enumerate() {
        per_subject.push(of_one(data, *at, options).map_err(natural)?);
        progress(done + 1, measured.len());
    }
    let all = |value: fn(&SubjectScore) -> f64| per_subject.iter().map(value).collect::<Vec<f64>>();
    let (eer_mean, eer_sd) = mean_and_sd(&all(|one| one.eer));
    let fives: Vec<f64> = per_subject.iter().filter_map(|one| one.eer_of_five).collect();
    Ok(ScoreReport {
        subjects: measured.len(),
        left_out: data.subjects.iter().filter(|(_, observations)| !enough(observations)).map(|(name, _)| name.clone()).collect(),
        features: data.features.len(),
        logarithmic: data.logarithmic,
        enrol,
        genuine_from,
        online,
        population: if population { "leave-one-out" } else { "none" },
        eer_mean,
        eer_sd,
        detection_at_1_percent_mean: mean_and_sd(&all(|one| one.detection_at_1_percent)).0,
        eer_of_five_mean: (!fives.is_empty()).then(|| mean_and_sd(&fives).0),
        per_subject,
    })
}

fn of_one(data: &Data, at: usize, options: ScoreOptions) -> Result<SubjectScore, NaturalError> {
    let (name, own) = &data.subjects[at];
    let others = || data.subjects.iter().enumerate().filter(move |(other, _)| *other != at).map(|(_, (_, observations))| observations);
    let population = if options.population {
        let known: Vec<&[Vec<f64>]> = others().map(|observations| observations.get(IMPOSTOR_TRIES..).unwrap_or_default()).collect();
        Some(Population::learn(&known)?)
    } else {
        None
    };
    let mut baseline = Baseline::enrol(&own[..options.enrol], population.as_ref())?;
    // Whose try it is, and the try: all first ones, then all second ones.
    let turn = |turn: usize| others().enumerate().filter_map(move |(other, observations)| Some((other, observations.get(turn)?)));
    let tries: Vec<(usize, &Vec<f64>)> = (0..IMPOSTOR_TRIES).flat_map(turn).collect();
    let first = options.genuine_from - 1;
    let (mut genuine, mut impostor) = (Vec::new(), Vec::new());
    let mut taken = vec![Vec::new(); data.subjects.len()];
    for (repetition, observation) in own.iter().enumerate().skip(options.enrol) {
        if repetition >= first {
            genuine.push(baseline.score(observation)?);
            // They are spread over the whole time.
            let slots = own.len() - first;
            let slot = repetition - first;
            let turns = (slot * tries.len()).div_ceil(slots)..((slot + 1) * tries.len()).div_ceil(slots);
            for (other, attempt) in &tries[turns] {
                let score = baseline.score(attempt)?;
                impostor.push(score);
                taken[*other].push(score);
            }
        }
        if options.online {
            baseline.learn(observation)?;
        }
    }
    let mean = |scores: &[f64]| mean_and_sd(scores).0;
    let five: Vec<f64> = genuine.chunks_exact(MESSAGES_AVERAGED).map(mean).collect();
    let theirs: Vec<f64> = taken.iter().filter(|scores| scores.len() == MESSAGES_AVERAGED).map(|scores| mean(scores)).collect();
    Ok(SubjectScore {
        subject: name.clone(),
        genuine: genuine.len(),
        impostor: impostor.len(),
        eer: equal_error_rate(&genuine, &impostor).unwrap_or(f64::NAN),
        detection_at_1_percent: detection_at(0.01, &genuine, &impostor).unwrap_or(f64::NAN),
        eer_of_five: equal_error_rate(&five, &theirs),
    })
}
