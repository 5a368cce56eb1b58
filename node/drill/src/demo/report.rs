//! What the demo reports, what was promised for that many kills, and whether it held.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::api::{self, Problem, list, number, text};

/// "Reads answer within 5 s, whatever is dead" (docs/spec/api.md).
pub(super) const READ_PROMISE: Duration = Duration::from_secs(5);

/// The demo's last word. Serialized it has exactly the fields that `persona demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Processes started.
    pub nodes: usize,
    /// Processes killed at once.
    pub killed: usize,
    /// Agents born.
    pub agents: usize,
    /// The section that everything hangs on.
    pub core: CoreReport,
    /// Where the import got the agent from: `mesh`.
    pub import_source: String,
    /// The personality's document and the user's attributes are byte for byte what was born.
    pub personality_identical: bool,
    /// Every relationship's log is what it was before the kill: same head, same length, same bytes.
    pub relationships_identical: bool,
    /// Messages that were verified and found in their recipient's inbox.
    pub messages_delivered: u64,
    /// The moved agent's partner verified and accepted its message.
    pub partner_accepts: bool,
    /// The impostor was refused as one, nothing of him was delivered, and the relationship did not change.
    pub impostor_refused: bool,
    /// What still worked between the kill and the import, read from a node without any secret.
    pub modes: Modes,
    /// After the dead came back every section was read again, and every personality was the one that was born.
    pub recovered_after_restart: bool,
    /// From first to last, in seconds.
    pub seconds: f64,
    /// The promises for this number of kills that did not hold: the demo succeeds only if there are none.
    #[serde(skip)]
    pub broken: Vec<String>,
}

/// How `core` fared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CoreReport {
    /// Holders.
    pub n: u64,
    /// Shards that reconstruct it.
    pub k: u64,
    /// Lost or lying holders that fresh reads bear.
    pub f: u64,
    /// Its level once all shards were placed.
    pub level_reached: u64,
    /// The put at birth, in milliseconds: two rounds, each fsynced by its holders before they acked.
    pub put_ms: f64,
    /// A read by quorum while all were alive, in milliseconds.
    pub get_ms: f64,
    /// The read at import, with the dead still in the holder set, in milliseconds; null if the import was refused.
    pub get_after_kill_ms: Option<f64>,
    /// How many shards that read got from other nodes.
    pub shards_from_network: u64,
    /// How many holders answered it.
    pub holders_answered: u64,
}

/// What each read mode could do after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Modes {
    /// Any certified version that k shards reconstruct, labelled as perhaps stale.
    pub any: ModeOutcome,
    /// The freshest committed one, by a quorum's word.
    pub regular: ModeOutcome,
    /// The same, written back, so that no later reader sees less.
    pub atomic: ModeOutcome,
}

/// One mode's outcome: `"ok"`, or how many there were and how many it takes, both as the node said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeOutcome {
    /// It read.
    Works,
    /// Too few shards or answers.
    Short {
        /// There were this many: shards or holders, or if none was found the nodes that answered.
        have: u64,
        /// It takes this many; null if the node did not say so, as when nobody knew the section.
        need: Option<u64>,
    },
}

impl Serialize for ModeOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Works => serializer.serialize_str("ok"),
            Self::Short { have, need } => json!({"have": have, "need": need}).serialize(serializer),
        }
    }
}

impl ModeOutcome {
    pub(super) fn told(self) -> String {
        match self {
            Self::Works => "ok".to_owned(),
            Self::Short { have, need: Some(need) } => format!("no, {have} of {need}"),
            Self::Short { have, need: None } => format!("no, {have} answered and none had it"),
        }
    }
}

/// What holds after that many holders are lost at once, all shards having been placed (docs/guarantees.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// At most f are lost: every mode reads, and the import is complete and fresh.
    Everything,
    /// Up to n - k are lost: mode `any` reconstructs, the import says so and its puts are bounded-stale.
    LabelledAny,
    /// More are lost: an honest error within 5 s, and everything once the dead return.
    Nothing,
}

impl Promise {
    /// The promise for `lost` of `n` holders.
    pub(super) fn after_losing(lost: u64, n: u64, k: u64, f: u64) -> Self {
        if lost <= f {
            Self::Everything
        } else if lost + k <= n {
            Self::LabelledAny
        } else {
            Self::Nothing
        }
    }
}

/// What a refused read means: how many there were, and how many it takes if that is said. `None` if the problem does not even say how many
/// there were, which no promise allows.
pub(super) fn shortage(problem: &Problem) -> Option<ModeOutcome> {
    let told = |key: &str| problem.data.get(key).and_then(Value::as_u64);
    told("have").or(told("answered")).map(|have| ModeOutcome::Short { have, need: told("need") })
}

/// Takes from a successful import what the report needs, and holds its labels against the promise.
pub(super) fn note_import(report: &mut DemoReport, answer: &Value, promise: Promise, broken: &mut Vec<String>) -> Result<()> {
    report.import_source = text(answer, "/import_source")?.to_owned();
    let all = list(answer, "/sections")?;
    let core = all.iter().find(|section| section["section"] == "core").context("the import names no core section")?;
    report.core.get_after_kill_ms = Some(api::float(core, "/get/ms")?);
    report.core.shards_from_network = number(core, "/get/shards_from_network")?;
    report.core.holders_answered = number(core, "/get/holders_answered")?;
    let mode = text(answer, "/mode")?;
    let not_taken: Vec<&str> =
        all.iter().filter(|section| section["state"] != "taken-over").filter_map(|s| s["section"].as_str()).collect();
    match promise {
        Promise::Everything if mode != "atomic" && mode != "regular" => {
            broken.push(format!("the import was labelled {mode} with at most f holders lost"))
        }
        Promise::Everything if !api::flag(answer, "/complete")? => {
            broken.push(format!("the import is not complete: {}", not_taken.join(", ")))
        }
        Promise::LabelledAny if mode != "any" => broken.push(format!("the import was labelled {mode} with more than f holders lost")),
        Promise::LabelledAny if core["put"]["stale_until_ms"].is_null() && answer["bounded_stale_until_ms"].is_null() => {
            broken.push("the takeover of core does not say until when it is bounded-stale".to_owned());
        }
        _ => {}
    }
    Ok(())
}

/// Holds a refused import against the promise.
pub(super) fn note_refusal(problem: &Problem, promise: Promise, seconds: f64, broken: &mut Vec<String>) {
    if promise != Promise::Nothing {
        broken.push(format!("the import was refused ({}: {})", problem.title, problem.detail));
    }
    if seconds > READ_PROMISE.as_secs_f64() {
        broken.push(format!("the refusal took {seconds:.1} s instead of 5 s at most"));
    }
    if shortage(problem).is_none() {
        broken.push(format!("the refusal ({}) does not name how many answered", problem.title));
    }
}

/// Holds what was read after the kill against the promise.
pub(super) fn check_modes(report: &DemoReport, promise: Promise, lost: u64, broken: &mut Vec<String>) {
    let Modes { any, regular, atomic } = report.modes;
    let (any_promised, fresh_promised) = (promise != Promise::Nothing, promise == Promise::Everything);
    for (name, outcome, promised) in [("any", any, any_promised), ("regular", regular, fresh_promised), ("atomic", atomic, fresh_promised)]
    {
        match outcome {
            ModeOutcome::Short { .. } if promised => {
                broken.push(format!("mode {name} did not read: {}", outcome.told().trim_start_matches("no, ")))
            }
            ModeOutcome::Works if !promised => {
                broken.push(format!("mode {name} claims to read with {lost} of {} holders lost", report.core.n))
            }
            // Where the node says no need, it counts nodes that answered, and not holders.
            ModeOutcome::Short { have, need: Some(_) } if have > report.core.n - lost => {
                broken.push(format!("mode {name} counts {have} although only {} holders live", report.core.n - lost));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DemoReport {
        DemoReport {
            nodes: 14,
            killed: 4,
            agents: 3,
            core: CoreReport { n: 10, k: 3, f: 3, level_reached: 8, get_after_kill_ms: Some(2.5), ..CoreReport::default() },
            import_source: "mesh".to_owned(),
            personality_identical: true,
            relationships_identical: true,
            messages_delivered: 8,
            partner_accepts: true,
            impostor_refused: true,
            modes: Modes { any: ModeOutcome::Works, regular: ModeOutcome::Works, atomic: ModeOutcome::Short { have: 6, need: Some(7) } },
            recovered_after_restart: true,
            seconds: 31.5,
            broken: vec!["not shown".to_owned()],
        }
    }

    #[test]
    fn the_report_has_exactly_the_promised_fields() {
        let shown = serde_json::to_value(report()).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            keys(&shown),
            "nodes killed agents core import_source personality_identical relationships_identical messages_delivered partner_accepts \
             impostor_refused modes recovered_after_restart seconds"
        );
        assert_eq!(keys(&shown["core"]), "n k f level_reached put_ms get_ms get_after_kill_ms shards_from_network holders_answered");
        assert_eq!(shown["modes"], json!({"any": "ok", "regular": "ok", "atomic": {"have": 6, "need": 7}}));
    }

    #[test]
    fn what_is_promised_depends_on_how_many_are_lost() {
        let promises: Vec<Promise> = (0..=10).map(|lost| Promise::after_losing(lost, 10, 3, 3)).collect();
        assert_eq!(promises[..4], [Promise::Everything; 4]);
        assert_eq!(promises[4..8], [Promise::LabelledAny; 4]);
        assert_eq!(promises[8..], [Promise::Nothing; 3]);
        assert_eq!(Promise::after_losing(1, 3, 3, 0), Promise::Nothing, "without coding nothing may be lost");
    }

    #[test]
    fn a_shortage_names_how_many_answered() {
        let of = |data: Value| {
            let problem = Problem { status: 503, title: "unavailable".to_owned(), detail: String::new(), hint: String::new(), data };
            shortage(&problem)
        };
        assert_eq!(of(json!({"have": 2, "need": 3, "asked": 10})), Some(ModeOutcome::Short { have: 2, need: Some(3) }));
        assert_eq!(of(json!({})), None);
    }

    #[test]
    fn what_the_node_did_not_say_is_not_made_up() {
        let data = json!({"asked": 9, "answered": 4});
        let problem = Problem { status: 404, title: "not-found".to_owned(), detail: String::new(), hint: String::new(), data };
        let outcome = shortage(&problem).unwrap();
        assert_eq!(outcome, ModeOutcome::Short { have: 4, need: None });
        assert_eq!(serde_json::to_value(outcome).unwrap(), json!({"have": 4, "need": null}));
        assert_eq!(outcome.told(), "no, 4 answered and none had it");
    }

    #[test]
    fn a_mode_that_fails_or_boasts_breaks_the_promise() {
        let check = |report: &DemoReport, promise, lost| {
            let mut broken = Vec::new();
            check_modes(report, promise, lost, &mut broken);
            broken
        };
        let mut report = report();
        assert_eq!(check(&report, Promise::Everything, 3), ["mode atomic did not read: 6 of 7"]);
        assert_eq!(check(&report, Promise::LabelledAny, 4), ["mode regular claims to read with 4 of 10 holders lost"]);
        report.modes.regular = ModeOutcome::Short { have: 7, need: Some(7) };
        assert_eq!(check(&report, Promise::LabelledAny, 4), ["mode regular counts 7 although only 6 holders live"]);
        report.modes.regular = ModeOutcome::Short { have: 6, need: Some(7) };
        assert!(check(&report, Promise::LabelledAny, 4).is_empty());
        report.modes.any = ModeOutcome::Short { have: 2, need: Some(3) };
        assert_eq!(check(&report, Promise::Nothing, 8).len(), 2, "6 answers are too many when two holders live");
    }

    #[test]
    fn an_import_is_held_against_its_promise() {
        let import = |mode: &str, fresh: &str, complete: bool, stale: Value| {
            let get = json!({"ms": 3.0, "shards_from_network": 3, "holders_answered": 7, "fresh": fresh});
            json!({"import_source": "mesh", "mode": mode, "complete": complete, "bounded_stale_until_ms": null,
                "sections": [{"section": "core", "state": "taken-over", "get": get, "put": {"stale_until_ms": stale}}]})
        };
        let judge = |answer: &Value, promise| {
            let (mut report, mut broken) = (report(), Vec::new());
            note_import(&mut report, answer, promise, &mut broken).unwrap();
            (broken, report)
        };
        let (broken, noted) = judge(&import("atomic", "atomic", true, Value::Null), Promise::Everything);
        assert!(broken.is_empty() && noted.core.holders_answered == 7 && noted.core.shards_from_network == 3);
        assert_eq!(judge(&import("any", "maybe-stale", true, json!(9)), Promise::Everything).0.len(), 1);
        assert_eq!(judge(&import("atomic", "atomic", false, Value::Null), Promise::Everything).0.len(), 1);
        assert!(judge(&import("any", "maybe-stale", true, json!(9)), Promise::LabelledAny).0.is_empty());
        assert_eq!(judge(&import("any", "maybe-stale", true, Value::Null), Promise::LabelledAny).0.len(), 1);
        assert_eq!(judge(&import("atomic", "atomic", true, json!(9)), Promise::LabelledAny).0.len(), 1);
    }

    #[test]
    fn a_refusal_must_be_due_quick_and_precise() {
        let judge = |promise, seconds, data: Value| {
            let mut broken = Vec::new();
            let problem = Problem { status: 503, title: "unavailable".to_owned(), detail: String::new(), hint: String::new(), data };
            note_refusal(&problem, promise, seconds, &mut broken);
            broken.len()
        };
        assert_eq!(judge(Promise::Nothing, 1.0, json!({"have": 2, "need": 3})), 0);
        assert_eq!(judge(Promise::Nothing, 6.0, json!({"have": 2, "need": 3})), 1);
        assert_eq!(judge(Promise::Nothing, 1.0, Value::Null), 1);
        assert_eq!(judge(Promise::LabelledAny, 1.0, json!({"have": 2, "need": 3})), 1);
    }
}
