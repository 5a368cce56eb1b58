//! A slice of what `persona-sim run` and `persona-sim mutants` do, small enough for every test run: docs/simulator.md.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a harness owns threads and clocks; what it runs does not")]

use persona_audit::history::{Event, What};
use persona_fragments::mutants::{Mutant, with};
use persona_sim::{
    plan::Plan,
    run::run,
    world::{Observer, auditor, notary},
};

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

/// Told that a peer's public key is a secret, an auditor finds it: so it would find a key or a plaintext, of which it is told in some of the runs.
#[test]
fn what_may_not_be_seen_would_be() {
    /// An auditor beside the run's own. It says how many secrets it saw through a channel: observers go with the run.
    struct Second(Box<dyn Observer>, std::sync::mpsc::Sender<usize>);
    impl Observer for Second {
        fn observe(&mut self, event: &Event) {
            if let What::Machine { peer, .. } = &event.what {
                self.0.keep_secret(peer);
            }
            self.0.observe(event);
        }
        fn finish(self: Box<Self>) -> (Vec<String>, std::collections::BTreeMap<String, u64>) {
            let (found, _) = self.0.finish();
            self.1.send(found.iter().filter(|one| one.starts_with("I17")).count()).expect("somebody listens");
            Default::default()
        }
    }
    let plan = short(8);
    let (found, listen) = std::sync::mpsc::channel();
    let outcome = run(&plan, vec![Box::new(Second(auditor(notary(&plan)), found))]);
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    assert!(listen.recv().expect("it finished") > 0, "holders stand in every manifest");
}
