//! `persona lab`: measurements of behaviour on the user's own data. What is measured, and how, is `persona-lab`'s.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use persona_lab::{Data, ScoreOptions, ScoreReport, score::DATA_BYTES_MAX};

/// Shorter work shows no progress.
const QUIET: Duration = Duration::from_secs(1);

/// Reads a file and scores it.
pub(crate) fn score(file: &Path, options: ScoreOptions) -> anyhow::Result<ScoreReport> {
    let place = || format!("cannot read {}", file.display());
    let bytes = std::fs::metadata(file).with_context(place)?.len();
    if bytes > DATA_BYTES_MAX as u64 {
        return Err(anyhow::Error::from(persona_lab::DataError::TooLarge(bytes as usize)).context(file.display().to_string()));
    }
    let data = Data::read(&std::fs::read(file).with_context(place)?).with_context(|| file.display().to_string())?;
    let (began, mut bar) = (Instant::now(), None);
    let report = persona_lab::score(&data, options, |done, of| {
        if began.elapsed() > QUIET {
            let bar = bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{bar:30} {pos} of {len} subjects, {eta} left").expect("a template of ours");
                ProgressBar::new(of as u64).with_style(style)
            });
            bar.set_position(done as u64);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    report.with_context(|| file.display().to_string())
}

/// A report for people.
pub(crate) fn told(report: &ScoreReport) -> String {
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let learning = if report.online { "learning online" } else { "frozen after that" };
    let mut lines = vec![
        format!(
            "{} subjects, {} features ({} by their logarithm); {} repetitions enrolled, {learning}; genuine from {} on; population: {}",
            report.subjects, report.features, report.logarithmic, report.enrol, report.genuine_from, report.population
        ),
        format!("equal error rate        {:.4} (sd {:.4} between subjects)", report.eer_mean, report.eer_sd),
        format!("found at 1 % refused    {}", percent(report.detection_at_1_percent_mean)),
        match report.eer_of_five_mean {
            Some(rate) => format!("mean of five messages   {rate:.4} equal error rate"),
            None => "mean of five messages   no subject has five of each".to_owned(),
        },
    ];
    if !report.left_out.is_empty() {
        lines.push(format!("not measured, with too few repetitions: {}", report.left_out.join(", ")));
    }
    let mut worst: Vec<_> = report.per_subject.iter().collect();
    worst.sort_by(|a, b| b.eer.total_cmp(&a.eer));
    let worst: Vec<String> = worst.iter().take(5).map(|one| format!("{} {:.3}", one.subject, one.eer)).collect();
    lines.push(format!("hardest to tell         {}", worst.join(", ")));
    lines.join("\n")
}
