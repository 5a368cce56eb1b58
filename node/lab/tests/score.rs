//! The verifier on data whose law is known: how near it comes to what can be had, and that it is worth nothing where there is nothing to know.

use chacha20::ChaCha20Rng;
use persona_lab::{Data, ScoreOptions, ScoreReport, rates::equal_error_rate, score};
use rand_core::{Rng as _, SeedableRng as _};

const SUBJECTS: usize = 24;
const REPETITIONS: usize = 60;
const FEATURES: usize = 8;

/// By how much subjects differ, in standard deviations of one subject's repetitions.
const BETWEEN_SD: f64 = 1.2;

struct Law(ChaCha20Rng);

impl Law {
    fn of(seed: u8) -> Self {
        Self(ChaCha20Rng::from_seed([seed; 32]))
    }

    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Every subject's repetitions: `mean + noise`, where the noise of features has something in common.
fn drawn(seed: u8) -> Vec<Vec<Vec<f64>>> {
    let mut law = Law::of(seed);
    (0..SUBJECTS)
        .map(|_| {
            let mean: Vec<f64> = (0..FEATURES).map(|_| BETWEEN_SD * law.normal()).collect();
            (0..REPETITIONS)
                .map(|_| {
                    let common = law.normal() * 0.7;
                    mean.iter().map(|mean| mean + common + law.normal() * 0.714).collect()
                })
                .collect()
        })
        .collect()
}

fn csv(subjects: &[Vec<Vec<f64>>]) -> String {
    let names: Vec<String> = (0..FEATURES).map(|at| format!("f{at}")).collect();
    let mut text = format!("subject,session,rep,{}\n", names.join(","));
    for (subject, repetitions) in subjects.iter().enumerate() {
        for (repetition, observation) in repetitions.iter().enumerate() {
            let numbers: Vec<String> = observation.iter().map(f64::to_string).collect();
            text += &format!("s{subject},1,{},{}\n", repetition + 1, numbers.join(","));
        }
    }
    text
}

const OPTIONS: ScoreOptions = ScoreOptions { enrol: 10, genuine_from: 21, online: true, population: true };

fn scored(subjects: &[Vec<Vec<f64>>], options: ScoreOptions) -> ScoreReport {
    score(&Data::read(csv(subjects).as_bytes()).expect("it reads"), options, |_, _| {}).expect("it can be scored")
}

/// The equal error rate of who knows the law, written down a second time: in the basis of the noise's principal axes, where all is one-dimensional.
fn best(subjects: &[Vec<Vec<f64>>], enrol: usize) -> f64 {
    let n = FEATURES as f64;
    // Along (1, ..., 1) the noise has variance 0.51 + 8 * 0.49, across it 0.51; subjects differ by the same in every direction.
    let (along, across) = (0.714 * 0.714 + n * 0.49, 0.714 * 0.714);
    let parts = |observation: &[f64]| {
        let sum: f64 = observation.iter().sum::<f64>() / n.sqrt();
        let rest: Vec<f64> = observation.iter().map(|value| value - sum / n.sqrt()).collect();
        (sum, rest)
    };
    let between = BETWEEN_SD * BETWEEN_SD;
    let log_normal = |squares: f64, variance: f64, dimensions: f64| -0.5 * (squares / variance + dimensions * variance.ln());
    let mut rates = Vec::new();
    for (own, repetitions) in subjects.iter().enumerate() {
        let first: Vec<(f64, Vec<f64>)> = repetitions[..enrol].iter().map(|one| parts(one)).collect();
        let count = enrol as f64;
        let mean_along = first.iter().map(|(along, _)| along).sum::<f64>() / count;
        let mean_rest: Vec<f64> = (0..FEATURES).map(|at| first.iter().map(|(_, rest)| rest[at]).sum::<f64>() / count).collect();
        let posterior = |noise: f64| between * noise / count / (between + noise / count);
        let weight = |noise: f64| between / (between + noise / count);
        let value = |observation: &[f64]| {
            let (sum, rest) = parts(observation);
            let off: f64 = rest.iter().zip(&mean_rest).map(|(value, mean)| (value - weight(across) * mean).powi(2)).sum();
            let all: f64 = rest.iter().map(|value| value * value).sum();
            log_normal((sum - weight(along) * mean_along).powi(2), along + posterior(along), 1.0)
                - log_normal(sum * sum, along + between, 1.0)
                + log_normal(off, across + posterior(across), n - 1.0)
                - log_normal(all, across + between, n - 1.0)
        };
        let genuine: Vec<f64> = repetitions[20..].iter().map(|one| value(one)).collect();
        let others = subjects.iter().enumerate().filter(|(other, _)| *other != own);
        let impostor: Vec<f64> = others.flat_map(|(_, repetitions)| &repetitions[..5]).map(|one| value(one)).collect();
        rates.push(equal_error_rate(&genuine, &impostor).expect("both are there"));
    }
    rates.iter().sum::<f64>() / rates.len() as f64
}

#[test]
fn it_comes_near_what_the_law_allows_and_a_population_helps() {
    for seed in [1, 2] {
        let subjects = drawn(seed);
        let frozen = scored(&subjects, ScoreOptions { online: false, ..OPTIONS });
        let alone = scored(&subjects, ScoreOptions { population: false, online: false, ..OPTIONS });
        let best = best(&subjects, OPTIONS.enrol);
        assert!(best > 0.0, "else there is nothing to compare with");
        assert!(frozen.eer_mean < best + 0.02, "{:.4} where {best:.4} can be had", frozen.eer_mean);
        assert!(alone.eer_mean > frozen.eer_mean, "{:.4} alone, {:.4} with a population", alone.eer_mean, frozen.eer_mean);
        assert!(frozen.eer_of_five_mean.expect("there are five") <= frozen.eer_mean);
        assert_eq!((frozen.subjects, frozen.per_subject[0].genuine, frozen.per_subject[0].impostor), (SUBJECTS, 40, 5 * (SUBJECTS - 1)));
    }
}

#[test]
fn it_goes_along_with_a_subject_that_changes_only_if_it_may_learn() {
    let mut subjects = drawn(3);
    let mut law = Law::of(7);
    for repetitions in &mut subjects {
        let ways: Vec<f64> = (0..FEATURES).map(|_| 0.04 * law.normal()).collect();
        for (at, observation) in repetitions.iter_mut().enumerate() {
            observation.iter_mut().zip(&ways).for_each(|(value, way)| *value += at as f64 * way);
        }
    }
    let (learns, frozen) = (scored(&subjects, OPTIONS), scored(&subjects, ScoreOptions { online: false, ..OPTIONS }));
    assert!(learns.eer_mean < frozen.eer_mean * 0.8, "{:.4} and {:.4}", learns.eer_mean, frozen.eer_mean);
}

#[test]
fn where_labels_mean_nothing_it_is_worth_nothing() {
    let mut subjects = drawn(4);
    let mut law = Law::of(5);
    for _ in 0..20_000 {
        let mut place = || ((law.uniform() * SUBJECTS as f64) as usize, (law.uniform() * REPETITIONS as f64) as usize);
        let ((a, at), (b, there)) = (place(), place());
        let one = std::mem::take(&mut subjects[a][at]);
        let other = std::mem::replace(&mut subjects[b][there], one.clone());
        subjects[a][at] = if (a, at) == (b, there) { one } else { other };
    }
    for options in [OPTIONS, ScoreOptions { population: false, ..OPTIONS }] {
        let report = scored(&subjects, options);
        assert!((report.eer_mean - 0.5).abs() < 0.05, "{:.4}", report.eer_mean);
    }
}

#[test]
fn nothing_is_learnt_from_impostors_and_no_try_of_theirs_is_in_the_population() {
    let subjects = drawn(6);
    let mut louder = subjects.clone();
    // The tries of the last subject are far off: whoever learnt from them would score everybody else otherwise.
    louder[SUBJECTS - 1][..5].iter_mut().flatten().for_each(|value| *value += 40.0);
    let (before, after) = (scored(&subjects, OPTIONS), scored(&louder, OPTIONS));
    for (before, after) in before.per_subject.iter().zip(&after.per_subject).take(SUBJECTS - 1) {
        assert!(after.eer <= before.eer, "{}: they are easier to find, and nothing else has changed", before.subject);
    }
}

#[test]
fn bad_files_and_contradictory_options_are_named() {
    let read = |text: &str| Data::read(text.as_bytes()).map(|_| ()).map_err(|error| error.to_string());
    assert!(read("subject,session,rep\n").unwrap_err().contains("at least one feature"));
    for header in ["s1,1,1,0.5\n", "user,session,rep,hold\n", "subject,session,hold,gap\n"] {
        assert!(read(header).unwrap_err().contains("first line names the columns"), "{header}");
    }
    assert!(read("Subject,sessionIndex,rep,hold\na,1,1,0.5\n").is_ok());
    let crowd: String = (0..10_001).map(|at| format!("s{at},1,1,0.5\n")).collect();
    assert!(read(&format!("subject,session,rep,hold\n{crowd}")).unwrap_err().contains("more than 10000 subjects"));
    assert!(read("subject,session,rep,hold\ns1,1,1,x\n").unwrap_err().contains("line 2, column hold: \"x\""));
    assert!(read("subject,session,rep,hold\ns1,1,1,NaN\n").unwrap_err().contains("is not a number between"));
    assert!(read("subject,session,rep,hold\ns1,1,1\n").unwrap_err().contains("line"));
    let said = |text: &str, options| score(&Data::read(text.as_bytes()).expect("it reads"), options, |_, _| {}).unwrap_err().to_string();
    let few = "subject,session,rep,hold\na,1,1,0.1\na,1,2,0.2\na,1,3,0.3\nb,1,1,0.2\n";
    assert!(said(few, OPTIONS).contains("--genuine-from"));
    let small = ScoreOptions { enrol: 2, genuine_from: 3, online: false, population: true };
    assert!(said(few, small).contains("do without one"), "{}", said(few, small));
    assert!(said(few, ScoreOptions { genuine_from: 2, ..small }).contains("within the 2"));
    assert!(said(few, ScoreOptions { enrol: 0, ..small }).contains("at least 1"));
    let constant = "subject,session,rep,hold\na,1,1,1\na,1,2,1\na,1,3,1\nb,1,1,1\n";
    assert!(said(constant, ScoreOptions { population: false, ..small }).contains("leave it out (column hold)"));
    assert!(said("subject,session,rep,hold\n", small).contains("two subjects"));
}

/// Numbers of any size are scored or refused, and never turned into something else.
#[test]
fn sizes_do_not_matter_and_what_is_beyond_them_is_refused() {
    let subjects = drawn(8);
    let plain = scored(&subjects, OPTIONS);
    for scale in [1e-200, 1e-20, 1e30, 1e90] {
        let scaled: Vec<Vec<Vec<f64>>> =
            subjects.iter().map(|one| one.iter().map(|x| x.iter().map(|value| value * scale).collect()).collect()).collect();
        for options in [OPTIONS, ScoreOptions { population: false, ..OPTIONS }] {
            let (report, plain) = (scored(&scaled, options), scored(&subjects, options));
            assert!((report.eer_mean - plain.eer_mean).abs() < 1e-3, "{scale:e}: {:.4}, and {:.4}", report.eer_mean, plain.eer_mean);
        }
    }
    // One absurd value of one subject: it is learnt as no more than it is believed.
    let mut wild = subjects.clone();
    wild[3][30][2] = -1e99;
    let report = scored(&wild, OPTIONS);
    assert!(report.per_subject.iter().all(|one| one.eer.is_finite()));
    wild[3][30][2] = 1e101;
    assert!(Data::read(csv(&wild).as_bytes()).is_err());
    assert!(plain.eer_mean < 0.1);
}

#[test]
fn a_feature_that_one_subject_never_varies_may_tell_it_from_all_others() {
    let mut subjects = drawn(9);
    let options = ScoreOptions { population: false, ..OPTIONS };
    let before = scored(&subjects, options);
    for (at, repetitions) in subjects.iter_mut().enumerate() {
        repetitions.iter_mut().for_each(|one| one[0] = at as f64 * 10.0);
    }
    let text = csv(&subjects);
    let data = Data::read(text.as_bytes()).expect("it reads");
    let error = score(&data, OPTIONS, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("does not vary within any subject") && error.contains("column f0"), "{error}");
    assert!(scored(&subjects, options).eer_mean < before.eer_mean);
}
