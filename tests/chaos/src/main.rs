//! `persona-chaos`: meshes of real processes, broken at random for as long as you like (docs/chaos.md).
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a harness owns processes, files and the clock")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use persona_drill::demo::Interrupted;
use persona_drill::scenario::{self, Kind, Outcome, Programs, Scenario, Span};
use persona_lies::Lie;

/// What a soak is, but for its length, its seed and its liars.
const SOAK: &str = include_str!("../../scenarios/soak.toml");

/// The exit status of whoever was interrupted.
const INTERRUPTED: u8 = 130;

/// Breaks meshes of real nodes and judges what those saw who used them.
#[derive(Parser)]
#[command(name = "persona-chaos", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Random kills, pauses, partitions, slow links and full disks under a load of puts and gets
    #[command(after_help = "Example:\n  cargo run --release -p persona-chaos -- soak --minutes 30 --seed 7 --json")]
    Soak(Soak),
    /// Runs a scenario (docs/spec/scenario.md)
    #[command(after_help = "Example:\n  cargo run --release -p persona-chaos -- run tests/scenarios/blackout.toml")]
    Run {
        /// The file
        file: PathBuf,
        /// What is drawn [default: the file's]
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
struct Soak {
    /// How long things are broken; everything then heals and is judged once more
    #[arg(long, default_value_t = 5.0, value_name = "M")]
    minutes: f64,
    /// What is drawn
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
    /// How many processes
    #[arg(long, default_value_t = 16, value_name = "N")]
    nodes: usize,
    /// How many of them lie; they count as broken, and two may be
    #[arg(long, default_value_t = 0, value_name = "F")]
    liars: usize,
    /// What they say [default: every lie, one after the other]
    #[arg(long, value_delimiter = ',', value_name = "LIE")]
    lies: Vec<Lie>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
struct Output {
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
    /// Leave directories, logs and the history, also when nothing was violated
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Soak(soak) => soak.scenario().and_then(|(scenario, repeat)| run(&scenario, &repeat, &soak.output)),
        Verb::Run { file, seed, output } => read(&file, seed).and_then(|(scenario, repeat)| run(&scenario, &repeat, &output)),
    };
    match done {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<scenario::ScenarioError>() {
                eprintln!("hint: {}", scenario::ScenarioError::HINT);
            }
            ExitCode::FAILURE
        }
    }
}

impl Soak {
    fn scenario(&self) -> anyhow::Result<(Scenario, String)> {
        let mut scenario = Scenario::parse(SOAK)?;
        scenario.duration = Span(Duration::try_from_secs_f64(self.minutes * 60.0).context("--minutes is no length of time")?);
        (scenario.seed, scenario.nodes, scenario.liars) = (self.seed, self.nodes, self.liars);
        scenario.lies = self.lies.iter().map(|lie| lie.name().to_owned()).collect();
        if scenario.liars == scenario.budget.broken
            && let Some(nemesis) = &mut scenario.nemesis
        {
            // Liars are all that may be broken.
            nemesis.faults = vec![Kind::Slow];
        }
        scenario.check()?;
        let mut repeat = format!("soak --minutes {} --seed {} --nodes {}", self.minutes, self.seed, self.nodes);
        if self.liars > 0 {
            repeat += &format!(" --liars {}", self.liars);
        }
        if !self.lies.is_empty() {
            repeat += &format!(" --lies {}", scenario.lies.join(","));
        }
        Ok((scenario, repeat))
    }
}

fn read(file: &std::path::Path, seed: Option<u64>) -> anyhow::Result<(Scenario, String)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut scenario = Scenario::parse(&text)?;
    scenario.seed = seed.unwrap_or(scenario.seed);
    let repeat = format!("run {} --seed {}", file.display(), scenario.seed);
    Ok((scenario, repeat))
}

fn run(scenario: &Scenario, repeat: &str, output: &Output) -> anyhow::Result<ExitCode> {
    let liar = (scenario.liars > 0).then(|| {
        // Late answers are slow links, which the relays make.
        let lies = Lie::ALL.iter().filter(|lie| **lie != Lie::Late).map(|lie| lie.name().to_owned()).collect();
        (persona_e2e::binary_of("persona-chaos", "persona-liar"), lies)
    });
    let programs = Programs { persona: persona_e2e::persona_binary().to_owned(), liar, lie_variable: "PERSONA_LIE".to_owned() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(scenario::run(scenario, &programs, output.keep, asked_to_stop(), |line| eprintln!("{line}")));
    let Outcome { report, kept } = outcome?;
    if output.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    if let Some(kept) = kept {
        eprintln!("logs and history stay in {}", kept.display());
    }
    if report.violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} violations; again with: cargo run --release -p persona-chaos -- {repeat}", report.violations.len());
    Ok(ExitCode::FAILURE)
}

/// Until SIGINT or SIGTERM.
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(arguments: &[&str]) -> anyhow::Result<(Scenario, String)> {
        let all = ["persona-chaos", "soak"].iter().chain(arguments);
        let Verb::Soak(soak) = Cli::try_parse_from(all)?.verb else { panic!("a soak was asked for") };
        soak.scenario()
    }

    #[test]
    fn a_soak_is_the_scenario_with_what_the_command_line_says() {
        let (scenario, repeat) = soak(&["--minutes", "30", "--seed", "7"]).expect("it can be");
        assert_eq!((scenario.duration.to_string(), scenario.seed, scenario.nodes), ("30m".to_owned(), 7, 16));
        assert_eq!(repeat, "soak --minutes 30 --seed 7 --nodes 16");
        assert!(scenario.nemesis.is_some_and(|nemesis| nemesis.faults.contains(&Kind::Kill)));
    }

    #[test]
    fn liars_take_the_room_of_what_else_is_broken() {
        let kinds = |arguments: &[&str]| soak(arguments).map(|(scenario, _)| scenario.nemesis.map(|nemesis| nemesis.faults));
        assert_eq!(kinds(&["--liars", "2"]).expect("two may be broken"), Some(vec![Kind::Slow]));
        assert!(kinds(&["--liars", "1"]).expect("one may").is_some_and(|kinds| kinds.len() > 1));
        assert!(kinds(&["--liars", "3"]).is_err());
        let (scenario, repeat) = soak(&["--liars", "1", "--lies", "stale,two-faced"]).expect("it can be");
        assert_eq!(scenario.lies, ["stale", "two-faced"]);
        assert!(repeat.ends_with("--liars 1 --lies stale,two-faced"), "{repeat}");
        assert!(soak(&["--liars", "1", "--lies", "white"]).is_err());
    }
}
