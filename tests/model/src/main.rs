//! `persona-model`: visit every state of a scene, and see that each broken rule is found.
#![allow(clippy::disallowed_methods, reason = "a harness owns a clock")]

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use persona_fragments::mutants::with;
use persona_model::{
    scene::{MUTANTS, Scene, WHOLE},
    search::{Limits, Report, find, visit_all},
};

#[derive(Parser)]
#[command(name = "persona-model", about = "Every order of events of one small configuration, through the real state machines")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Args)]
struct Bounds {
    /// Stop a search after so many seconds
    #[arg(long, default_value_t = 900)]
    seconds: u64,
    /// Stop a search at so many million states
    #[arg(long, default_value_t = 300)]
    million_states: usize,
    /// JSON instead of words
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Visit every state of these scenes, or of all
    #[command(after_help = "Example:\n  persona-model run one-reader twins")]
    Run {
        /// Scenes, by name; all but the last, which is too large, if none is named
        scenes: Vec<String>,
        #[command(flatten)]
        bounds: Bounds,
    },
    /// Switch on each known-bad variant, and find how it breaks its rule
    Mutants {
        #[command(flatten)]
        bounds: Bounds,
        /// Print each way
        #[arg(long, short)]
        verbose: bool,
    },
    /// Name the scenes
    Scenes,
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run { scenes, bounds } => run(&scenes, &bounds),
        Verb::Mutants { bounds, verbose } => mutants(&bounds, verbose),
        Verb::Scenes => {
            for scene in Scene::all() {
                println!("{:13} {}", scene.name, scene.about);
            }
            ExitCode::SUCCESS
        }
    }
}

impl Bounds {
    fn limits(&self) -> Limits {
        Limits { states: self.million_states * 1_000_000, time: Duration::from_secs(self.seconds) }
    }
}

fn run(names: &[String], bounds: &Bounds) -> ExitCode {
    let scenes = match names {
        [] => Scene::all().into_iter().filter(|scene| scene.name != WHOLE).collect(),
        _ => match names.iter().map(|name| Scene::named(name).ok_or(name)).collect::<Result<Vec<_>, _>>() {
            Ok(scenes) => scenes,
            Err(name) => {
                eprintln!("error: there is no scene {name}\nhint: `persona-model scenes` names them");
                return ExitCode::from(2);
            }
        },
    };
    let mut good = true;
    for scene in scenes {
        let report = visit_all(&scene, bounds.limits());
        good &= report.broken.is_empty() && report.closed;
        tell(&report, bounds.json, true);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn mutants(bounds: &Bounds, verbose: bool) -> ExitCode {
    let mut good = true;
    for (mutant, scene, rule) in MUTANTS {
        let scene = Scene::named(scene).expect("a scene");
        let mut report = with(Some(*mutant), || find(&scene, *rule, bounds.limits()));
        report.mutant = Some(format!("{mutant:?}"));
        good &= report.broken.contains_key(&format!("{rule:?}"));
        tell(&report, bounds.json, verbose);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(report: &Report, json: bool, how: bool) {
    if json {
        println!("{}", serde_json::to_string(report).expect("plain values"));
        return;
    }
    let Report { scene, mutant, states, steps, depth, closed, broken, machines, wall_s, .. } = report;
    let name = mutant.as_ref().map_or(scene.to_string(), |mutant| format!("{mutant} in {scene}"));
    let end = if *closed { "all of them" } else { "not all" };
    let verdict = if broken.is_empty() { "no rule broken".to_owned() } else { format!("broken, after so many events: {broken:?}") };
    println!("{name}: {states} states ({end}), {steps} steps, {depth} events deep, {wall_s:.1} s: {verdict}");
    let (holders, tasks, run) = machines;
    println!("  local states: {holders} of holders, {tasks} of puts and gets; {run} of their steps were run");
    if how {
        for line in &report.how {
            println!("  {line}");
        }
    }
}
