//! `persona lab`: measurements of behaviour on the user's own data. What is measured, and how, is `persona-lab`'s.

use std::{
    io::Read as _,
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
    let mut bytes = Vec::new();
    // What has no end is as much too large as a file that is.
    let source = std::fs::File::open(file).with_context(place)?;
    source.take(DATA_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).with_context(place)?;
    let data = Data::read(&bytes).with_context(|| file.display().to_string())?;
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

/// So many names are told.
const NAMES_TOLD: usize = 10;

/// A name out of a file, for a terminal.
fn printable(name: &str) -> String {
    name.chars().take(40).flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
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
        let first: Vec<String> = report.left_out.iter().take(NAMES_TOLD).map(|name| printable(name)).collect();
        let more = if report.left_out.len() > NAMES_TOLD { ", ..." } else { "" };
        lines.push(format!("not measured, with too few repetitions: {} ({}{more})", report.left_out.len(), first.join(", ")));
    }
    if report.per_subject.iter().any(|one| one.genuine < 100) {
        lines.push("(with fewer than 100 genuine scores of a subject, 1 % of them is none)".to_owned());
    }
    let mut worst: Vec<_> = report.per_subject.iter().collect();
    worst.sort_by(|a, b| b.eer.total_cmp(&a.eer));
    let worst: Vec<String> = worst.iter().take(5).map(|one| format!("{} {:.3}", printable(&one.subject), one.eer)).collect();
    lines.push(format!("hardest to tell         {}", worst.join(", ")));
    lines.join("\n")
}
