//! What can be visited in seconds, with every test run. The rest: docs/simulator.md.
#![allow(clippy::disallowed_methods, reason = "a harness owns a clock")]

use std::time::Duration;

use persona_fragments::mutants::{Mutant, with};
use persona_model::{
    scene::{Crash, MUTANTS, Scene},
    search::{Limits, find, visit_all},
};

const LIMITS: Limits = Limits { states: 3_000_000, time: Duration::from_secs(600) };

#[test]
fn one_put_and_one_reader_break_no_rule_in_any_order() {
    let scene = Scene { crash: Crash::None, ..Scene::named("tiny").expect("a scene") };
    let report = visit_all(&scene, LIMITS);
    assert!(report.closed, "{report:?}");
    assert!(report.broken.is_empty(), "{report:#?}");
    assert!(report.states > 10_000, "an empty search proves nothing: {report:?}");
}

#[test]
fn what_drops_too_early_and_what_acks_twice_is_found() {
    for (mutant, scene, rule) in MUTANTS.iter().filter(|(mutant, ..)| matches!(mutant, Mutant::DropOnPrepare | Mutant::TwoAcks)) {
        let scene = Scene::named(scene).expect("a scene");
        let report = with(Some(*mutant), || find(&scene, *rule, LIMITS));
        assert!(report.broken.contains_key(&format!("{rule:?}")), "{mutant:?}: {report:#?}");
        assert!(!report.how.is_empty(), "it says how");
    }
}
