//! A slice of what `persona-sim run` and `persona-sim mutants` do, small enough for every test run: docs/simulator.md.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a harness owns threads and clocks; what it runs does not")]

use persona_fragments::mutants::{Mutant, with};
use persona_sim::{plan::Plan, run::run};

/// A plan with a storm short enough for a build that is not optimised.
fn short(seed: u64) -> Plan {
    let mut plan = Plan::of(seed);
    plan.storm_ms = plan.storm_ms.min(15_000);
    plan
}

#[test]
fn nothing_is_found_where_every_rule_is_kept() {
    for seed in 0..12 {
        let outcome = run(&short(seed), Vec::new());
        assert!(outcome.violations.is_empty(), "{:#?}\n{}", outcome.violations, outcome.replay);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = |seed| run(&Plan { traced: true, ..short(seed) }, Vec::new()).trace;
    for seed in [3, 7] {
        let first = trace(seed);
        assert!(first.is_some());
        assert_eq!(first, trace(seed));
        assert_ne!(first, trace(seed + 1));
    }
}

#[test]
fn a_rule_that_is_left_out_is_noticed() {
    for mutant in [Mutant::AckBeforeSync, Mutant::DropOnPrepare, Mutant::SmallQuorum, Mutant::ServeExpired, Mutant::NoForwardPointer] {
        let noticed = (0..20).any(|seed| !with(Some(mutant), || run(&short(seed), Vec::new())).violations.is_empty());
        assert!(noticed, "{mutant:?} lives on");
    }
}
