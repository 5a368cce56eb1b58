//! `persona-sim`: run seeds, replay one, and see what the auditor says.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a harness owns threads and clocks; what it runs does not")]

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use clap::{Parser, Subcommand};
use persona_fragments::mutants::{Mutant, with};
use persona_sim::{
    churn::Trace,
    plan::{Fault, Plan},
    run::{EXCUSES, Outcome, run},
    scale, survival,
    tell::Teller,
    world::Observer,
};
use serde::Serialize;

/// A seed is millions of small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "persona-sim", about = "Whole meshes in one thread under virtual time: every fault, every order of events, from a seed")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run many seeds
    #[command(after_help = "Example:\n  persona-sim run --seeds 20000 --json")]
    Run {
        /// How many
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Threads [default: one per processor]
        #[arg(long)]
        threads: Option<usize>,
        /// Stop after so many seconds, whatever is left
        #[arg(long)]
        seconds: Option<u64>,
        /// Machines come and go as this file says (docs/simulator.md)
        #[arg(long, value_name = "FILE")]
        churn: Option<String>,
        /// One JSON object instead of words
        #[arg(long)]
        json: bool,
    },
    /// Switch on each known-bad variant of the protocol, and see how soon it is noticed
    #[command(after_help = "Example:\n  persona-sim mutants --json")]
    Mutants {
        /// Seeds that each may take
        #[arg(long, default_value_t = 20_000)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Only these, by their names
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Not these, by their names
        #[arg(long, value_delimiter = ',')]
        without: Vec<String>,
        /// Seconds that each may take
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Threads [default: one per processor]
        #[arg(long)]
        threads: Option<usize>,
        /// One JSON object instead of words
        #[arg(long)]
        json: bool,
    },
    /// How long sections survive churn: the formula, lives that are drawn, and whole nodes
    #[command(after_help = "Example:\n  persona-sim survival --plots docs/survival")]
    Survival {
        /// Sections whose holders' lives are drawn, for each class and churn
        #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        sections: u64,
        /// Meshes of whole nodes that are run for each line of the comparison; 0: none
        #[arg(long, default_value_t = 20)]
        meshes: u64,
        /// Meshes of whole nodes that are run for seven days each, with a lease; 0: none
        #[arg(long, default_value_t = 4)]
        lease_meshes: u64,
        /// What everything is drawn from
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Write a plot of each class into this folder
        #[arg(long)]
        plots: Option<PathBuf>,
        /// One JSON object instead of words
        #[arg(long)]
        json: bool,
    },
    /// What a put, a get and a repair cost as the mesh grows
    #[command(after_help = "Example:\n  persona-sim scale --nodes 1000,5000,20000")]
    Scale {
        /// Sizes of the mesh
        #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000, 20_000], value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
        nodes: Vec<u32>,
        /// Operations of each kind
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        operations: u64,
        /// Of a hundred nodes, how many are dead and not yet forgotten
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=50))]
        dead: u64,
        /// What everything is drawn from
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// One JSON object instead of words
        #[arg(long)]
        json: bool,
    },
    /// Run one seed again, and print what happened
    #[command(after_help = "Example:\n  persona-sim replay 4711 --without loss,cut")]
    Replay {
        /// The seed
        seed: u64,
        /// Faults to leave out
        #[arg(long, value_delimiter = ',')]
        without: Vec<Fault>,
        /// A shorter storm, in virtual milliseconds
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=24 * 3_600_000))]
        storm_ms: Option<u64>,
        /// Machines come and go as this file says
        #[arg(long, value_name = "FILE")]
        churn: Option<String>,
        /// Print what users and machines do
        #[arg(long, short)]
        verbose: bool,
        /// Print every request and answer about this section too (a prefix of its key in hex)
        #[arg(long)]
        section: Option<String>,
    },
}

/// What must be seen in so many seeds, or they try too little: the auditor's marks.
const MARKS: [&str; 14] = [
    "uncertified",
    "superseded",
    "write-back",
    "bounded-stale",
    "fenced",
    "conflict",
    "poisoned",
    "data-lost",
    "recovering",
    "repair-push",
    "old-set",
    "busy",
    "need-shard",
    "beyond-f",
];

/// Fewer seeds need not have seen everything.
const MARKED_SEEDS_MIN: u64 = 1_000;

/// Of so many seeds one may have excused something, and [`EXCUSED_ALWAYS`] more: ten times what was seen when this was written.
const SEEDS_PER_EXCUSE: u64 = 1_000;

/// A few that come together are no reason to fail.
const EXCUSED_ALWAYS: u64 = 3;

/// What many seeds came to.
#[derive(Default, Serialize)]
struct Summary {
    seeds: u64,
    virtual_hours: f64,
    gets: u64,
    values: u64,
    puts: u64,
    committed: u64,
    moved: u64,
    frames: u64,
    violations: Vec<Violation>,
    /// What must happen sometimes, and how often it did.
    marks: BTreeMap<String, u64>,
    /// Of the marks that must be seen, those that were not, if so many seeds ran that they should have been.
    unmarked: Vec<&'static str>,
    /// Seeds in which a get or a put in calm weather was excused.
    excused_seeds: u64,
    /// Their number, if it is more than should be: an excuse that is too wide hides what it was not made for.
    excused_too_often: Option<u64>,
    /// What was broken, and how often.
    faults: BTreeMap<&'static str, u64>,
    wall_s: f64,
}

#[derive(Serialize)]
struct Violation {
    seed: u64,
    what: Vec<String>,
    replay: String,
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.virtual_hours += outcome.virtual_ms as f64 / 3.6e6;
        self.gets += outcome.gets;
        self.values += outcome.values;
        self.puts += outcome.puts;
        self.committed += outcome.committed;
        self.moved += outcome.moved;
        self.frames += outcome.frames;
        self.excused_seeds += u64::from(EXCUSES.iter().any(|excuse| outcome.marks.contains_key(*excuse)));
        for (mark, count) in outcome.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        for (fault, count) in outcome.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        let excused = self.excused_seeds;
        self.excused_too_often = (excused > self.seeds / SEEDS_PER_EXCUSE + EXCUSED_ALWAYS).then_some(excused);
        if !outcome.violations.is_empty() {
            self.violations.push(Violation { seed: outcome.seed, what: outcome.violations, replay: outcome.replay });
        }
    }
}

/// Runs a plan; a panic is a violation.
fn judge(plan: &Plan, observers: Vec<Box<dyn Observer>>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| run(plan, observers))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Outcome {
                seed: plan.seed,
                violations: vec![format!("I15: a node panicked: {}", text.unwrap_or_default())],
                replay: plan.replay(),
                ..Outcome::default()
            }
        }
    }
}

/// The same violation with fewer faults, and a shorter storm.
fn shrink(plan: &Plan) -> Plan {
    let mut least = plan.clone();
    for fault in plan.faults.clone() {
        let mut smaller = least.clone();
        smaller.faults.remove(&fault);
        if !judge(&smaller, Vec::new()).violations.is_empty() {
            least = smaller;
        }
    }
    for _ in 0..6 {
        let mut smaller = least.clone();
        smaller.storm_ms = smaller.storm_ms * 2 / 3;
        if judge(&smaller, Vec::new()).violations.is_empty() {
            break;
        }
        least = smaller;
    }
    least
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run { seeds, from, threads, seconds, churn, json } => match read_churn(churn) {
            Ok(trace) => run_many(seeds, from, threads, seconds, trace.as_ref(), json),
            Err(error) => failed(&error),
        },
        Verb::Mutants { seeds, from, only, without, seconds, threads, json } => {
            run_mutants(from..from.saturating_add(seeds), &only, &without, seconds, threads, json)
        }
        Verb::Survival { sections, meshes, lease_meshes, seed, plots, json } => {
            match survive(sections, (meshes, lease_meshes), seed, plots.as_deref(), json) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            }
        }
        Verb::Scale { nodes, operations, dead, seed, json } => scale(&nodes, operations, dead, seed, json),
        Verb::Replay { seed, without, storm_ms, churn, verbose, section } => {
            let trace = match read_churn(churn) {
                Ok(trace) => trace,
                Err(error) => return failed(&error),
            };
            let mut plan = plan_of(seed, trace.as_ref());
            plan.faults.retain(|fault| !without.contains(fault));
            plan.storm_ms = storm_ms.unwrap_or(plan.storm_ms);
            plan.traced = true;
            persona_sim::line!("{plan:#?}");
            let teller = Teller::new(section);
            let observers: Vec<Box<dyn Observer>> = if verbose { vec![Box::new(teller)] } else { Vec::new() };
            let outcome = judge(&plan, observers);
            persona_sim::line!("{outcome:#?}");
            if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn survive(sections: u64, (meshes, lease_meshes): (u64, u64), seed: u64, folder: Option<&Path>, json: bool) -> Result<(), String> {
    if let Some(folder) = folder {
        // Said before minutes of work, not after.
        std::fs::create_dir_all(folder).map_err(|error| format!("{} cannot be written to: {error}", folder.display()))?;
    }
    let (rows, plots) = survival::draw_all(sections, seed);
    let leased_sections = (sections / 50).max(1);
    let (leased, leased_plot) = survival::draw_leased(leased_sections, seed);
    let (real, real_leased) = (Vec::new(), Vec::new());
    let mut report = survival::Report { sections, rows, real, leased_sections, leased, real_leased };
    let lines = if meshes > 0 { &survival::REAL[..] } else { &[] };
    for (churn, keeper) in lines {
        eprintln!("running {meshes} meshes under {churn} churn ...");
        report.real.extend(survival::real(churn, *keeper, meshes, seed)?);
    }
    if lease_meshes > 0 {
        eprintln!("running {lease_meshes} meshes for seven days ...");
        report.real_leased = survival::real_leased("residual", &survival::Leased::week(), lease_meshes, seed)?;
    }
    if let Some(folder) = folder {
        for (name, plot) in plots.iter().map(|(class, plot)| (class.name(), plot)).chain([("leased", &leased_plot)]) {
            let path = folder.join(name).with_extension("svg");
            std::fs::write(&path, plot).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        }
    }
    if json {
        persona_sim::line!("{}", serde_json::to_string_pretty(&report).expect("plain values"));
    } else {
        persona_sim::out::write(format_args!("{report}"));
    }
    Ok(())
}

fn scale(nodes: &[u32], operations: u64, dead: u64, seed: u64, json: bool) -> ExitCode {
    let sizes: Vec<scale::Size> = nodes.iter().map(|nodes| scale::measure(*nodes as usize, operations, dead, seed)).collect();
    if json {
        persona_sim::line!("{}", serde_json::to_string_pretty(&sizes).expect("plain values"));
        return ExitCode::SUCCESS;
    }
    persona_sim::line!("| nodes | dead | operation | done | hops | questions | lookup KiB | requests | KiB |");
    persona_sim::line!("|---|---|---|---|---|---|---|---|---|");
    sizes.iter().for_each(|size| persona_sim::out::write(format_args!("{size}")));
    for size in &sizes {
        let memory = size.memory_per_node_bytes as f64 / 1024.0;
        persona_sim::line!(
            "{} nodes: {:.0} peers known to each, {} holders started, {memory:.1} KiB for each node, {:.1} s",
            size.nodes,
            size.peers_known,
            size.started,
            size.wall_s
        );
    }
    ExitCode::SUCCESS
}

fn failed(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// A file of who comes and goes when.
fn read_churn(file: Option<String>) -> Result<Option<Arc<Trace>>, String> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(&file).map_err(|error| format!("cannot read {file}: {error}"))?;
    Trace::parse(&file, &text).map(Some)
}

fn plan_of(seed: u64, trace: Option<&Arc<Trace>>) -> Plan {
    let mut plan = Plan::of(seed);
    if let Some(trace) = trace {
        plan.faults.insert(Fault::Churn);
        plan.trace = Some(trace.clone());
    }
    plan
}

fn run_many(seeds: u64, from: u64, threads: Option<usize>, seconds: Option<u64>, trace: Option<&Arc<Trace>>, json: bool) -> ExitCode {
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let Some(end) = from.checked_add(seeds).filter(|_| seeds > 0 && threads > 0 && seconds != Some(0)) else {
        return failed("nothing would be run: --seeds, --threads and --seconds are at least 1, and the last seed is below 2^64");
    };
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let summary = Mutex::new(Summary::default());
    std::panic::set_hook(Box::new(|_| {})); // a panic is told as a violation
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while seconds.is_none_or(|most| started.elapsed().as_secs() < most) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !(from..end).contains(&seed) {
                        break;
                    }
                    let plan = plan_of(seed, trace);
                    let outcome = judge(&plan, Vec::new());
                    // Some are run again: the same seed must be the same run.
                    let mut outcome = outcome;
                    if plan.traced && judge(&plan, Vec::new()).trace != outcome.trace {
                        outcome.violations.push("the same seed ran differently a second time".into());
                    }
                    let failed = !outcome.violations.is_empty();
                    if failed {
                        eprintln!("seed {seed}: {}", outcome.violations.join("\n  "));
                        outcome.replay = shrink(&plan).replay();
                        eprintln!("  {}", outcome.replay);
                    }
                    let mut summary = summary.lock().expect("no thread panics here");
                    summary.add(outcome);
                    if !json && summary.seeds.is_multiple_of(500) {
                        eprintln!(
                            "{} seeds, {} violations, {:.0} s",
                            summary.seeds,
                            summary.violations.len(),
                            started.elapsed().as_secs_f64()
                        );
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics here");
    summary.wall_s = started.elapsed().as_secs_f64();
    summary.violations.sort_by_key(|violation| violation.seed);
    if summary.seeds >= MARKED_SEEDS_MIN {
        summary.unmarked = MARKS.into_iter().filter(|mark| summary.marks.get(*mark).is_none_or(|count| *count == 0)).collect();
    }
    match serde_json::to_string_pretty(&summary) {
        Ok(text) => persona_sim::line!("{text}"),
        Err(error) => eprintln!("the summary cannot be written: {error}"),
    }
    let fine = summary.violations.is_empty() && summary.unmarked.is_empty() && summary.excused_too_often.is_none();
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How one mutant fared.
#[derive(Serialize)]
struct Fate {
    name: String,
    killed: bool,
    /// Seeds up to the one that noticed it.
    seeds: u64,
    /// What that seed says, and does not without the mutant.
    by: Option<String>,
}

fn run_mutants(seeds: Range<u64>, only: &[String], without: &[String], seconds: u64, threads: Option<usize>, json: bool) -> ExitCode {
    let names: Vec<String> = Mutant::ALL.iter().map(|mutant| format!("{mutant:?}")).collect();
    if let Some(unknown) = only.iter().chain(without).find(|name| !names.contains(name)) {
        eprintln!("no mutant is called {unknown}; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut fates = Vec::new();
    for mutant in Mutant::ALL {
        let name = format!("{mutant:?}");
        if !only.is_empty() && !only.contains(&name) || without.contains(&name) {
            continue;
        }
        let started = Instant::now();
        let next = AtomicU64::new(seeds.start);
        let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
        let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let over = found.lock().is_ok_and(|found| found.is_some());
                        if seed >= seeds.end || over || started.elapsed().as_secs() >= seconds {
                            break;
                        }
                        let outcome = with(Some(mutant), || judge(&Plan::of(seed), Vec::new()));
                        if let Some(what) = outcome.violations.into_iter().next() {
                            let mut found = found.lock().expect("no thread panics here");
                            if found.as_ref().is_none_or(|(known, _)| seed < *known) {
                                *found = Some((seed, what));
                            }
                        }
                    }
                });
            }
        });
        let found = found.into_inner().expect("no thread panics here");
        // What fails without the mutant, too, says nothing about it.
        let clean = found.as_ref().is_none_or(|(seed, _)| judge(&Plan::of(*seed), Vec::new()).violations.is_empty());
        let tried = next.into_inner().min(seeds.end) - seeds.start;
        let fate = Fate {
            name,
            killed: found.is_some() && clean,
            seeds: found.as_ref().map_or(tried, |(seed, _)| seed + 1 - seeds.start),
            by: found.map(|(seed, what)| if clean { what } else { format!("seed {seed} fails without it, too") }),
        };
        if !json {
            let verdict = if fate.killed { "killed" } else { "ALIVE" };
            eprintln!("{:20} {verdict} after {} seeds: {}", fate.name, fate.seeds, fate.by.as_deref().unwrap_or(""));
        }
        fates.push(fate);
    }
    let all = fates.iter().all(|fate| fate.killed);
    match serde_json::to_string_pretty(&serde_json::json!({ "mutants": fates })) {
        Ok(text) if json => persona_sim::line!("{text}"),
        Ok(_) => {}
        Err(error) => eprintln!("the result cannot be written: {error}"),
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_excuses_than_should_be_fail_a_run() {
        let excused = |seeds: u64, excuses: u64| {
            let mut summary = Summary::default();
            for seed in 0..seeds {
                let marks = if seed < excuses { BTreeMap::from([(EXCUSES[seed as usize % 2].to_owned(), 1)]) } else { BTreeMap::new() };
                summary.add(Outcome { seed, marks, ..Outcome::default() });
            }
            summary.excused_too_often
        };
        assert_eq!(excused(10, 3), None);
        assert_eq!(excused(10, 4), Some(4));
        assert_eq!(excused(2_000, 5), None);
        assert_eq!(excused(2_000, 6), Some(6));
    }
}
