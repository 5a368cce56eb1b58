//! Was anything seen that must not be? docs/spec/scenario.md#what-must-hold, over a history.
//!
//! It knows what was asked, when, and what was answered; nothing of how it is done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::history::{Event, Get, Micros, Put, Reader, Seen};
use super::{Promise, Span};

/// A verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Puts that were acknowledged.
    pub acked: u64,
    /// Puts of which nobody knows.
    pub unknown: u64,
    /// Reads that answered.
    pub gets: u64,
    /// Reads that did not.
    pub gets_failed: u64,
    /// Acknowledged writes that were not there in the end.
    pub lost: u64,
    /// What must not have been, each in a sentence.
    pub violations: Vec<String>,
}

/// A section that had lost a holder is whole again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Its name.
    pub section: String,
    /// Its class.
    pub class: String,
    /// When it lost the holder.
    pub since: Micros,
    /// How long it took since.
    pub took: Micros,
    /// For how much of that, up to the end, its home was sound and enough nodes were there to hold it, and the holder had not been back
    /// meanwhile. None if that was not so in the end.
    pub able: Option<Micros>,
}

/// So many of each kind are told one by one.
const LATE_TOLD_MAX: usize = 10;

/// Shards that were given back, and sections that were whole again, later than is promised.
pub fn late(promise: &Promise, refilled: &[Micros], repaired: &[Repaired]) -> Vec<String> {
    let over = |limit: Option<Span>, time: Micros| limit.is_some_and(|Span(limit)| Duration::from_micros(time) > limit);
    let refills: Vec<&Micros> = refilled.iter().filter(|time| over(promise.refill, **time)).collect();
    let refills = refills.iter().max().map(|longest| {
        let times = refills.len();
        format!(
            "{times} shards were given back later than is promised after they were read, after {:.1} s at the latest",
            seconds(**longest)
        )
    });
    let late: Vec<&Repaired> =
        repaired.iter().filter(|one| one.able.is_some_and(|able| over(promise.repair.of(&one.class), able.min(one.took)))).collect();
    let told = late.iter().take(LATE_TOLD_MAX).map(|Repaired { section, class, since, took, able }| {
        format!(
            "{section} (class {class}) lost a holder at {} and was whole {:.1} s later, {:.1} s of these with a home that could see to it: later than is promised",
            clock(*since),
            seconds(*took),
            seconds(able.unwrap_or_default()),
        )
    });
    let more =
        (late.len() > LATE_TOLD_MAX).then(|| format!("{} other sections were whole later than is promised", late.len() - LATE_TOLD_MAX));
    refills.into_iter().chain(told).chain(more).collect()
}

/// Judges a history. Whether anything is lost is judged only of documents that were read after everything had healed.
pub fn judge(events: &[Event], promise: &Promise) -> Judged {
    let mut judged = Judged::default();
    let mut documents: BTreeMap<usize, (Vec<&Put>, Vec<&Get>)> = BTreeMap::new();
    for event in events {
        match event {
            Event::Put(put) => documents.entry(put.document).or_default().0.push(put),
            Event::Get(get) => documents.entry(get.document).or_default().1.push(get),
            Event::Core(core) if !core.as_born => {
                judged.violations.push(format!(
                    "at {}, node-{:02} read a core of {} that is not as it was born",
                    clock(core.end),
                    core.node + 1,
                    core.agent
                ));
            }
            Event::OldHome(old) if old.acked => judged.violations.push(format!(
                "at {}, node-{:02} committed a write of {}, which had been imported elsewhere",
                clock(old.end),
                old.node + 1,
                old.agent
            )),
            Event::Core(_) | Event::OldHome(_) | Event::Note { .. } => {}
        }
    }
    for (document, (puts, gets)) in &documents {
        let mut document = Document { number: *document, puts, gets, judged: &mut judged };
        document.count();
        document.reads_are_fresh();
        document.readers_never_go_back();
        document.nothing_is_lost();
        document.gets_succeed(promise);
        document.puts_succeed(promise);
    }
    judged
}

struct Document<'h> {
    number: usize,
    puts: &'h [&'h Put],
    gets: &'h [&'h Get],
    judged: &'h mut Judged,
}

impl Document<'_> {
    fn count(&mut self) {
        let acked = self.puts.iter().filter(|put| put.acked).count() as u64;
        self.judged.acked += acked;
        self.judged.unknown += self.puts.len() as u64 - acked;
        let failed = self.gets.iter().filter(|get| matches!(get.outcome, Seen::Failed(_))).count() as u64;
        self.judged.gets += self.gets.len() as u64 - failed;
        self.judged.gets_failed += failed;
    }

    fn broken(&mut self, get: &Get, what: &str) {
        let Reader { node, .. } = get.reader;
        let told =
            format!("document {}: node-{:02} ({}, {} to {}) read {what}", self.number, node + 1, get.how, clock(get.begin), clock(get.end));
        self.judged.violations.push(told);
    }

    fn reads_are_fresh(&mut self) {
        for get in self.gets {
            match &get.outcome {
                Seen::Failed(_) => {}
                Seen::Wrong(what) => self.broken(get, &format!("what nobody wrote: {what}")),
                Seen::Number(number) => {
                    let acked = self.puts.iter().filter(|put| put.acked && put.fresh_from <= get.begin).map(|put| put.number).max();
                    let begun = self.puts.iter().filter(|put| put.begin <= get.end).map(|put| put.number).max();
                    if acked > Some(*number) {
                        self.broken(get, &format!("version {number}, and {} had been acknowledged", acked.unwrap_or_default()));
                    }
                    if begun < Some(*number) {
                        self.broken(get, &format!("version {number}, and only {} had been begun", begun.unwrap_or_default()));
                    }
                }
            }
        }
    }

    fn readers_never_go_back(&mut self) {
        let mut readers: BTreeMap<Reader, Vec<(&Get, u64)>> = BTreeMap::new();
        for get in self.gets {
            if let Seen::Number(number) = get.outcome {
                readers.entry(get.reader).or_default().push((get, number));
            }
        }
        for mut reads in readers.into_values() {
            // Sorted by their ends, so that the best before a beginning is found by walking along.
            reads.sort_by_key(|(get, _)| get.end);
            let mut best: Vec<(Micros, u64)> = Vec::new();
            for (get, number) in &reads {
                let before = &best[..best.partition_point(|(end, _)| *end <= get.begin)];
                if let Some((_, seen)) = before.last().filter(|(_, seen)| seen > number) {
                    self.broken(get, &format!("version {number}, after it had returned {seen}"));
                }
                let so_far = best.last().map_or(0, |(_, seen)| *seen);
                best.push((get.end, so_far.max(*number)));
            }
        }
    }

    fn nothing_is_lost(&mut self) {
        let last: Vec<&&Get> = self.gets.iter().filter(|get| get.last).collect();
        if last.is_empty() {
            return;
        }
        let best = last.iter().filter_map(|get| if let Seen::Number(number) = get.outcome { Some(number) } else { None }).max();
        let gone: Vec<u64> = self.puts.iter().filter(|put| put.acked && Some(put.number) > best).map(|put| put.number).collect();
        if !gone.is_empty() {
            self.judged.lost += gone.len() as u64;
            let what = best.map_or_else(|| "nothing can be read".to_owned(), |best| format!("version {best} is the newest"));
            let newest = gone.iter().max().copied().unwrap_or_default();
            let told = format!(
                "document {}: {} acknowledged writes are lost: {newest} had been acknowledged, and in the end {what}",
                self.number,
                gone.len()
            );
            self.judged.violations.push(told);
        }
    }

    /// Every run of failures at one reader must be shorter than what is promised.
    fn gets_succeed(&mut self, promise: &Promise) {
        let Some(limit) = promise.read else { return };
        let readers: BTreeSet<Reader> = self.gets.iter().map(|get| get.reader).collect();
        for reader in readers {
            let mut gets: Vec<&&Get> = self.gets.iter().filter(|get| get.reader == reader).collect();
            gets.sort_by_key(|get| get.begin);
            let tries = gets.iter().map(|get| Try {
                begin: get.begin,
                end: get.end,
                sound: get.sound,
                failed: if let Seen::Failed(why) = &get.outcome { Some(why) } else { None },
            });
            if let Some((waited, why)) = longest_failure(tries).filter(|(waited, _)| *waited > limit.0) {
                let told = format!(
                    "document {}: node-{:02} could not read it for {:.1} s: {why}",
                    self.number,
                    reader.node + 1,
                    waited.as_secs_f64()
                );
                self.judged.violations.push(told);
            }
        }
    }

    fn puts_succeed(&mut self, promise: &Promise) {
        let Some(limit) = promise.write else { return };
        let unsaid = String::new();
        let tries = self.puts.iter().map(|put| Try {
            begin: put.begin,
            end: put.end,
            sound: put.sound,
            failed: if put.acked { None } else { Some(put.why.as_ref().unwrap_or(&unsaid)) },
        });
        if let Some((waited, why)) = longest_failure(tries).filter(|(waited, _)| *waited > limit.0) {
            self.judged.violations.push(format!(
                "document {}: its home could not write it for {:.1} s: {why}",
                self.number,
                waited.as_secs_f64()
            ));
        }
    }
}

struct Try<'h> {
    begin: Micros,
    end: Micros,
    sound: bool,
    failed: Option<&'h String>,
}

/// The longest time from the beginning of a failed try to the end of the last one that failed like it, and what that one said. A try at a node
/// that was not sound ends a run: nothing was promised there.
fn longest_failure<'h>(tries: impl Iterator<Item = Try<'h>>) -> Option<(Duration, &'h str)> {
    let (mut since, mut longest) = (None, None::<(Micros, &str)>);
    for one in tries {
        match one.failed.filter(|_| one.sound) {
            None => since = None,
            Some(why) => {
                let begun = *since.get_or_insert(one.begin);
                let waited = one.end.saturating_sub(begun);
                if longest.is_none_or(|(most, _)| waited > most) {
                    longest = Some((waited, why));
                }
            }
        }
    }
    longest.map(|(waited, why)| (Duration::from_micros(waited), why))
}

pub(super) fn seconds(time: Micros) -> f64 {
    time as f64 / 1e6
}

/// `mm:ss.mmm` since the run began.
pub(super) fn clock(at: Micros) -> String {
    let millis = at / 1000;
    format!("{:02}:{:02}.{:03}", millis / 60_000, millis / 1000 % 60, millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Span;
    use crate::scenario::history::{Core, OldHome};

    const S: Micros = 1_000_000;

    fn put(number: u64, begin: Micros, acked: bool) -> Event {
        let end = begin + S / 10;
        let why = (!acked).then(|| "no answer".to_owned());
        Event::Put(Put { document: 0, number, node: 0, begin, end, acked, fresh_from: end, sound: true, why })
    }

    fn get(node: usize, begin: Micros, outcome: Seen) -> Event {
        let reader = Reader { node, life: 0 };
        Event::Get(Get { document: 0, reader, how: "test", begin, end: begin + S / 10, sound: true, last: false, outcome })
    }

    fn last(mut event: Event) -> Event {
        if let Event::Get(get) = &mut event {
            get.last = true;
        }
        event
    }

    fn failed(node: usize, begin: Micros) -> Event {
        get(node, begin, Seen::Failed("quorum-unreachable".to_owned()))
    }

    fn verdict(events: &[Event]) -> Judged {
        let promise = Promise { read: Some(Span::of_millis(5_000)), write: Some(Span::of_millis(5_000)), ..Promise::default() };
        judge(events, &promise)
    }

    #[track_caller]
    fn violates(events: &[Event], words: &str) -> Judged {
        let judged = verdict(events);
        assert!(matches!(&judged.violations[..], [told] if told.contains(words)), "{:?}", judged.violations);
        judged
    }

    #[test]
    fn an_honest_history_is_not_blamed() {
        // 2 is of unknown outcome: it may be seen, by some and not by others, from its beginning on.
        let judged = verdict(&[
            put(1, S, true),
            get(3, 2 * S, Seen::Number(1)),
            put(2, 3 * S, false),
            get(3, 3 * S, Seen::Number(2)),
            get(4, 4 * S, Seen::Number(1)),
            failed(4, 5 * S),
            put(3, 6 * S, true),
            last(get(4, 7 * S, Seen::Number(3))),
        ]);
        assert_eq!(judged, Judged { acked: 2, unknown: 1, gets: 4, gets_failed: 1, lost: 0, violations: vec![] });
    }

    #[test]
    fn a_planted_stale_read_is_noticed() {
        violates(&[put(1, S, true), put(2, 2 * S, true), get(3, 3 * S, Seen::Number(1))], "read version 1, and 2 had been acknowledged");
        // Begun before the end of the put it may miss it.
        let beside = get(3, 2 * S + S / 20, Seen::Number(1));
        assert!(verdict(&[put(1, S, true), put(2, 2 * S, true), beside]).violations.is_empty());
    }

    #[test]
    fn a_put_that_may_be_stale_for_a_while_excuses_reads_for_that_while() {
        let Event::Put(mut late) = put(2, 2 * S, true) else { unreachable!() };
        late.fresh_from = 5 * S;
        let history = |at| [put(1, S, true), Event::Put(late.clone()), get(3, at, Seen::Number(1))];
        assert!(verdict(&history(4 * S)).violations.is_empty());
        violates(&history(5 * S), "2 had been acknowledged");
    }

    #[test]
    fn a_planted_lost_write_is_noticed() {
        let read = |outcome| last(get(3, 9 * S, outcome));
        let judged = violates(&[put(1, S, true), read(Seen::Failed("data-lost".to_owned()))], "1 acknowledged writes are lost");
        assert_eq!(judged.lost, 1);
        let judged = verdict(&[put(1, S, true), put(2, 2 * S, true), put(3, 3 * S, true), read(Seen::Number(1))]);
        assert_eq!(judged.lost, 2);
        assert!(judged.violations.iter().any(|told| told.contains("2 acknowledged writes are lost: 3 had been acknowledged")));
    }

    #[test]
    fn a_read_of_what_was_never_begun_is_noticed() {
        violates(&[put(1, S, true), get(3, 2 * S, Seen::Number(2)), put(2, 3 * S, true)], "version 2, and only 1 had been begun");
        violates(&[put(1, S, true), get(3, 2 * S, Seen::Wrong("other bytes".to_owned()))], "what nobody wrote: other bytes");
    }

    #[test]
    fn a_reader_that_goes_back_is_noticed_and_two_readers_are_two() {
        let first = [put(1, S, true), put(2, 2 * S, false), get(3, 3 * S, Seen::Number(2))];
        violates(&[&first[..], &[get(3, 4 * S, Seen::Number(1))]].concat(), "version 1, after it had returned 2");
        assert!(verdict(&[&first[..], &[get(4, 4 * S, Seen::Number(1))]].concat()).violations.is_empty());
        // Reads at the same time may come in any order.
        assert!(verdict(&[&first[..], &[get(3, 3 * S + S / 20, Seen::Number(1))]].concat()).violations.is_empty());
    }

    #[test]
    fn failing_for_longer_than_is_promised_is_noticed_where_it_was_promised() {
        let failing = |sound: bool| {
            let mut events = vec![put(1, S, true)];
            for at in 2..10 {
                let Event::Get(mut get) = failed(3, at * S) else { unreachable!() };
                get.sound = sound || at == 6;
                events.push(Event::Get(get));
            }
            events
        };
        violates(&failing(true), "node-04 could not read it for 7.1 s: quorum-unreachable");
        assert!(verdict(&failing(false)).violations.is_empty());
        assert!(judge(&failing(true), &Promise::default()).violations.is_empty());
        let puts: Vec<Event> = (1..9).map(|at| put(at, at * S, false)).collect();
        violates(&puts, "its home could not write it for 7.1 s: no answer");
        let with_one_success: Vec<Event> = (1..9).map(|at| put(at, at * S, at == 4)).collect();
        assert!(verdict(&with_one_success).violations.is_empty());
    }

    #[test]
    fn repairs_and_refills_are_late_by_what_was_promised_of_them() {
        let after = |seconds: u64| Some(Span::of_millis(seconds * 1000));
        let repair = super::super::Repair { core: after(60), relationship: after(110), document: None };
        let promise = Promise { refill: after(20), repair, ..Promise::default() };
        let one = |class: &str, took: u64, able: Option<u64>| Repaired {
            section: format!("agent-1/{class}"),
            class: class.to_owned(),
            since: 61 * S,
            took: took * S,
            able: able.map(|able| able * S),
        };
        assert!(late(&promise, &[19 * S, 20 * S], &[one("core", 59, Some(59)), one("core", 60, Some(60))]).is_empty());
        let refills = late(&promise, &[21 * S, 23 * S], &[]);
        assert_eq!(refills, ["2 shards were given back later than is promised after they were read, after 23.0 s at the latest"]);
        let core = late(&promise, &[], &[one("core", 94, Some(61)), one("core", 3, Some(3)), one("core", 100, Some(100))]);
        assert_eq!(core.len(), 2);
        assert!(
            core[0].starts_with("agent-1/core (class core) lost a holder at 01:01.000 and was whole 94.0 s later, 61.0 s of these"),
            "{core:?}"
        );
        assert!(late(&promise, &[], &[one("core", 94, Some(60)), one("core", 94, None)]).is_empty(), "its home was not there for so long");
        assert!(late(&promise, &[], &[one("core", 50, Some(94))]).is_empty(), "able for longer than it was broken");
        assert!(late(&promise, &[], &[one("relationship", 100, Some(100))]).is_empty(), "that class has longer");
        assert_eq!(late(&promise, &[], &[one("relationship", 111, Some(111))]).len(), 1);
        assert!(late(&promise, &[], &[one("document", 1000, Some(1000))]).is_empty(), "nothing was promised");
        assert!(late(&Promise::default(), &[S * 1000], &[one("core", 1000, Some(1000))]).is_empty());
        let many = late(&promise, &[], &vec![one("core", 100, Some(100)); 13]);
        assert_eq!((many.len(), many[10].as_str()), (11, "3 other sections were whole later than is promised"));
    }

    #[test]
    fn an_old_home_that_commits_and_a_core_that_changed_are_noticed() {
        let old = OldHome { agent: "ada".to_owned(), node: 0, end: S, acked: true, said: String::new() };
        violates(&[Event::OldHome(old)], "node-01 committed a write of ada");
        violates(&[Event::Core(Core { agent: "ada".to_owned(), node: 4, end: S, as_born: false })], "node-05 read a core of ada");
    }
}
