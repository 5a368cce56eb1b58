//! For each promise a history that breaks it, and one that almost does.

mod scene;

use crate::{
    codeword,
    history::{Change, Event, GetOutcome, Machine, Mode, What},
};
use scene::*;

/// What a test does to a version before it is returned: head and content.
type Alter<'a> = &'a dyn Fn(&Signed) -> (Vec<u8>, Vec<u8>);

/// What happens in a scene that has one version.
type Step<'a> = &'a dyn Fn(&mut Scene, &Signed);

fn down(scene: &mut Scene, machine: Machine) {
    scene.see(What::Down { machine });
}

#[test]
fn a_put_and_its_gets_break_nothing_and_a_file_of_them_reads_the_same() {
    let mut scene = Scene::new();
    let first = scene.put(1);
    scene.get(READER, &first, Mode::Regular);
    scene.get(READER, &first, Mode::Atomic);
    let second = scene.put(2);
    scene.get(READER + 1, &second, Mode::Any);
    for line in &scene.lines {
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&event).unwrap(), *line);
    }
    assert!(scene.auditor.marks().values().all(|count| *count == 0), "{:?}", scene.auditor.marks());
    scene.breaks_nothing();
}

#[test]
fn i1_what_is_returned_is_signed_certified_and_whole() {
    let break_with = |alter: Alter<'_>| {
        let mut scene = Scene::new();
        let put = scene.put(1);
        let op = scene.get_begins(READER, Mode::Any);
        let (head, content) = alter(&put);
        scene.get_ends_with(op, head, &content, Mode::Any);
        scene
    };
    break_with(&|put| (put.head_with(&[0, 1, 3]), CONTENT.to_vec())).breaks_nothing(); // another certificate of the same manifest
    break_with(&|put| (put.head(), b"be cruel".to_vec())).breaks("I1");
    break_with(&|put| (put.head_with(&[0, 1]), CONTENT.to_vec())).breaks("I1");
    break_with(&|put| (put.head_with(&[0, 1, 1]), CONTENT.to_vec())).breaks("I1");
    break_with(&|_| (b"no head".to_vec(), CONTENT.to_vec())).breaks("I1");
    break_with(&|put| {
        let mut head = put.head();
        let last = head.len() - 2; // in the last ack's signature
        head[last] ^= 1;
        (head, CONTENT.to_vec())
    })
    .breaks("I1");
    break_with(&|put| {
        let mut forged = put.clone();
        forged.signature[0] ^= 1;
        (forged.head(), CONTENT.to_vec())
    })
    .breaks("I1");
    break_with(&|put| {
        let mut other = put.manifest.clone();
        other.name = b"card".to_vec(); // the key is not its hash any more
        let other = signed(other, put.shards.clone());
        (other.head(), CONTENT.to_vec())
    })
    .breaks("I1");
}

#[test]
fn i2_a_poisoned_version_is_returned_to_nobody_and_a_sound_one_is_poisoned_to_nobody() {
    let mut scene = Scene::new();
    let sound = scene.manifest(1);
    let mut manifest = sound.manifest.clone();
    manifest.shard_hashes[3] = *blake3::hash(b"no parity of this").as_bytes();
    let mut shards = sound.shards.clone();
    shards[3] = b"no parity of this".to_vec();
    let poisoned = signed(manifest, shards);
    scene.put_at(WRITER, &poisoned, &HOLDERS);
    scene.get_fails(READER, Mode::Regular, "poisoned");
    assert!(scene.auditor.findings().is_empty(), "{:?}", scene.auditor.findings());
    scene.get(READER + 1, &poisoned, Mode::Regular);
    scene.breaks("I2");

    let mut scene = Scene::new();
    let put = scene.put(1);
    scene.get_fails(READER, Mode::Regular, "poisoned");
    scene.get(READER + 1, &put, Mode::Regular);
    scene.breaks("I2");
}

#[test]
fn i2_a_correct_owner_writes_one_manifest_of_a_version() {
    let twice = |lost: bool, liar: bool| {
        let mut scene = Scene::with_liars(if liar { &[WRITER] } else { &[] });
        let first = scene.manifest(1);
        let second = manifest_of(first.manifest.version, &HOLDERS, b"another content", scene.now_ms());
        scene.asked(WRITER, 1, first.prepare(0, true));
        if lost {
            scene.see(What::DiskLost { machine: WRITER, noticed: false });
        }
        scene.asked(WRITER, 2, second.prepare(1, true));
        scene
    };
    twice(false, false).breaks("I2");
    twice(true, false).breaks_nothing();
    twice(false, true).breaks_nothing();
}

#[test]
fn i3_a_regular_get_is_not_behind_what_had_committed() {
    let behind = |mode: Mode, label: Mode, liars: &[Machine], stale_ms: Option<u64>, wait_ms: u64| {
        let mut scene = Scene::with_liars(liars);
        let first = scene.put(1);
        let second = scene.manifest(2);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &second, &HOLDERS);
        scene.commit(WRITER, &second, &HOLDERS);
        let stale_until_ms = stale_ms.map(|millis| scene.now_ms() + millis);
        scene.put_ends_until(op, &second, 1, stale_until_ms);
        scene.wait_ms(wait_ms);
        let op = scene.get_begins(READER, mode);
        scene.get_ends(op, &first, label);
        scene
    };
    behind(Mode::Regular, Mode::Regular, &[], None, 1).breaks("I3");
    behind(Mode::Regular, Mode::Regular, &[2], None, 1).breaks("I3");
    behind(Mode::Regular, Mode::Regular, &[], Some(5_000), 6_000).breaks("I3");
    behind(Mode::Regular, Mode::Regular, &[], Some(5_000), 4_000).breaks_nothing();
    behind(Mode::Any, Mode::Any, &[], None, 1).breaks_nothing();
    behind(Mode::Any, Mode::Regular, &[], None, 1).breaks("I3"); // it says so
    let beyond = behind(Mode::Regular, Mode::Regular, &[2, 3], None, 1);
    assert_eq!(beyond.auditor.marks()["beyond-f"], 1);
    beyond.breaks_nothing();

    let mut scene = Scene::new();
    let first = scene.put(1);
    let op = scene.get_begins(READER, Mode::Regular); // before the second had committed
    scene.put(2);
    scene.get_ends(op, &first, Mode::Regular);
    scene.breaks_nothing();

    let mut scene = Scene::new();
    let first = scene.put(1);
    let op = scene.get_begins(READER, Mode::Regular);
    scene.get_ends(op, &first, Mode::Any);
    scene.breaks("I3"); // not labelled as it was asked for
}

#[test]
fn i3_counts_holders_that_forgot_and_not_those_that_know_it() {
    let lost = |noticed: bool| {
        let mut scene = Scene::new();
        let first = scene.put(1);
        scene.put(2);
        for machine in [1, 2] {
            down(&mut scene, machine);
            scene.see(What::DiskLost { machine, noticed });
            scene.see(What::Up { machine });
        }
        scene.get(READER, &first, Mode::Regular);
        scene
    };
    lost(true).breaks("I3");
    lost(false).breaks_nothing();
}

#[test]
fn i4_nothing_is_returned_before_its_writer_let_go_of_it() {
    let early = |intent: bool| {
        let mut scene = Scene::new();
        let put = scene.manifest(1);
        if intent {
            let value = [&[1][..], &put.prepare(0, false)[3..put.prepare(0, false).len() - 2]].concat();
            scene.durable(WRITER, vec![Change { table: 7, key: key().to_vec(), value: Some(value) }]);
        }
        scene.get(READER, &put, Mode::Any);
        scene
    };
    early(false).breaks("I4");
    early(true).breaks_nothing();
}

#[test]
fn i5_atomic_gets_do_not_go_back_across_readers() {
    let inversion = |first_label: Mode, second_label: Mode, overlap: bool| {
        let mut scene = Scene::new();
        let old = scene.put(1);
        let new = scene.manifest(2);
        scene.prepare(WRITER, &new, &HOLDERS);
        scene.commit(WRITER, &new, &HOLDERS[..1]); // its put never ends
        let early = overlap.then(|| scene.get_begins(READER + 1, Mode::Atomic));
        let op = scene.get_begins(READER, Mode::Atomic);
        scene.get_ends(op, &new, first_label);
        let op = early.unwrap_or_else(|| scene.get_begins(READER + 1, Mode::Atomic));
        scene.get_ends(op, &old, second_label);
        scene
    };
    inversion(Mode::Atomic, Mode::Atomic, false).breaks("I5");
    inversion(Mode::Regular, Mode::Atomic, false).breaks_nothing();
    inversion(Mode::Atomic, Mode::Regular, false).breaks_nothing();
    inversion(Mode::Atomic, Mode::Atomic, true).breaks_nothing();
}

/// Seed 407989: a new host could not ask the only holder of what was there before, and its put said for how long that may be found.
#[test]
fn i5_what_may_be_behind_until_a_time_binds_atomic_gets_from_then_on() {
    let doubted = |wait_ms: u64| {
        let mut scene = Scene::new();
        let old = scene.put(1);
        let new = scene.manifest(2);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &new, &HOLDERS);
        scene.commit(WRITER, &new, &HOLDERS);
        scene.put_ends_until(op, &new, 3, Some(new.manifest.issued_at_ms + 5_000));
        scene.get(READER, &new, Mode::Atomic);
        scene.wait_ms(wait_ms);
        scene.get(READER + 1, &old, Mode::Atomic);
        scene
    };
    doubted(1_000).breaks_nothing();
    assert!(doubted(6_000).broken().contains(&"I5"));
    // What bound before the doubtful version was returned goes on binding.
    let mut scene = Scene::new();
    let old = scene.put(1);
    let middle = scene.put(2);
    scene.get(READER, &middle, Mode::Atomic);
    let new = scene.manifest(3);
    let op = scene.put_begins(WRITER);
    scene.prepare(WRITER, &new, &HOLDERS);
    scene.commit(WRITER, &new, &HOLDERS);
    scene.put_ends_until(op, &new, 3, Some(new.manifest.issued_at_ms + 5_000));
    scene.get(READER, &new, Mode::Atomic);
    scene.get(READER + 1, &old, Mode::Atomic);
    assert!(scene.broken().contains(&"I5"));
}

#[test]
fn i6_a_reader_never_goes_back_in_any_mode() {
    let back = |other_reader: bool, lost: bool, wait_ms: u64| {
        let mut scene = Scene::new();
        let old = scene.put(1);
        let new = scene.manifest(2);
        scene.prepare(WRITER, &new, &HOLDERS);
        scene.get(READER, &new, Mode::Any);
        down(&mut scene, READER);
        if lost {
            scene.see(What::DiskLost { machine: READER, noticed: true });
        }
        scene.see(What::Up { machine: READER });
        scene.wait_ms(wait_ms);
        scene.get(READER + Machine::from(other_reader), &old, Mode::Any);
        scene
    };
    back(false, false, 1).breaks("I6");
    back(true, false, 1).breaks_nothing();
    back(false, true, 1).breaks_nothing();
    assert_eq!(back(false, false, TTL_MS + 20_000).broken(), ["I10"], "too old to bind, and to be returned");
}

#[test]
fn i7_what_committed_survives_as_many_losses_as_were_promised() {
    // n = 4, k = 2, all placed: level 3, two losses.
    let losing = |rot: Option<Machine>, lost: &[Machine], dropped: &[Machine]| {
        let mut scene = Scene::new();
        let put = scene.put(1);
        for machine in lost {
            scene.see(What::DiskLost { machine: *machine, noticed: true });
        }
        if let Some(machine) = rot {
            scene.see(What::Rot { machine, table: 1, key: put.shard_key(machine as u8 - 1) });
        }
        for machine in dropped {
            let index = *machine as u8 - 1;
            let until_ms = put.manifest.issued_at_ms + TTL_MS + 10_000;
            scene.durable(*machine, vec![put.shard_gone(index), put.floor(until_ms)]);
        }
        scene
    };
    losing(None, &[1, 2], &[]).breaks_nothing();
    losing(None, &[1, 2, 3], &[]).breaks_nothing(); // more than was promised
    losing(Some(3), &[1, 2], &[]).breaks_nothing(); // three losses: more than was promised
    assert_eq!(losing(None, &[1, 2], &[3]).broken(), ["I11", "I7"], "two losses are covered, and somebody threw a shard away");
    assert_eq!(losing(None, &[1], &[3]).broken(), ["I11"], "two are left");

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    let op = scene.put_begins(WRITER);
    scene.prepare(WRITER, &put, &HOLDERS[..3]);
    scene.commit(WRITER, &put, &HOLDERS[..3]);
    scene.put_ends(op, &put, 2);
    scene.see(What::DiskLost { machine: 1, noticed: true });
    scene.breaks_nothing(); // two of the three that were placed
}

#[test]
fn i7_ends_with_a_newer_certified_version_and_with_the_life() {
    let mut scene = Scene::new();
    let first = scene.put(1);
    scene.put(2);
    scene.wait_ms(11_000);
    for machine in HOLDERS {
        let until_ms = first.manifest.issued_at_ms + TTL_MS + 10_000;
        scene.durable(machine, vec![first.floor(until_ms)]);
    }
    scene.breaks_nothing();

    let mut scene = Scene::new();
    let put = scene.put(1);
    scene.wait_ms(TTL_MS + 10_500);
    for machine in HOLDERS {
        scene.durable(machine, vec![put.shard_gone(machine as u8 - 1), put.gone()]);
    }
    scene.breaks_nothing();
}

#[test]
fn i8_a_correct_holder_acks_one_manifest_of_a_version() {
    let twice = |liars: &[Machine], lost: bool, noticed: bool| {
        let mut scene = Scene::with_liars(liars);
        let first = scene.manifest(1);
        let second = manifest_of(first.manifest.version, &HOLDERS, b"another content", scene.now_ms());
        scene.prepare(WRITER, &first, &[1]);
        if lost {
            down(&mut scene, 1);
            scene.see(What::DiskLost { machine: 1, noticed });
            scene.see(What::Up { machine: 1 });
        }
        scene.prepare(WRITER, &second, &[1]);
        scene
    };
    twice(&[WRITER], false, false).breaks("I8");
    twice(&[WRITER, 1], false, false).breaks_nothing();
    twice(&[WRITER], true, false).breaks_nothing();
    twice(&[WRITER], true, true).breaks_nothing();

    let later = |wait_ms: u64| {
        let mut scene = Scene::with_liars(&[WRITER]);
        let first = scene.manifest(1);
        scene.prepare(WRITER, &first, &[1, 2, 3]);
        scene.wait_ms(wait_ms);
        let second = manifest_of(first.manifest.version, &HOLDERS, b"another content", scene.now_ms());
        for holder in [1, 2, 3] {
            scene.durable(holder, vec![first.shard_gone(holder as u8 - 1), first.gone()]);
        }
        scene.prepare(WRITER, &second, &[1, 2, 3]);
        scene
    };
    later(TTL_MS + 12_000).breaks_nothing(); // the first one's life is over
    assert_eq!(later(TTL_MS - 12_000).broken(), ["I11", "I8"]);
}

#[test]
fn i8_a_correct_holder_keeps_its_promise_as_long_as_the_manifest_lives() {
    let after = |liars: &[Machine], promises: bool, wait_ms: u64| {
        let mut scene = Scene::with_liars(liars);
        let first = scene.manifest(1);
        if promises {
            scene.exchange(WRITER, 1, first.asks_never(0), first.promised(0));
        }
        scene.wait_ms(wait_ms);
        let second = manifest_of(first.manifest.version, &HOLDERS, b"another content", scene.now_ms());
        scene.prepare(WRITER, &second, &[1]);
        scene
    };
    after(&[WRITER], true, 1_000).breaks("I8");
    after(&[WRITER], true, TTL_MS - 12_000).breaks("I8");
    after(&[WRITER], true, TTL_MS + 12_000).breaks_nothing(); // seed 224758: what it was asked about is over
    after(&[WRITER], false, 1_000).breaks_nothing();
    after(&[WRITER, 1], true, 1_000).breaks_nothing();
}

#[test]
fn i8_one_version_is_certified_once_by_one_holder_set() {
    let certified = |liars: &[Machine], others: &[Machine]| {
        let mut scene = Scene::with_liars(liars);
        let first = scene.manifest(1);
        let second = manifest_of(first.manifest.version, others, b"another content", scene.now_ms());
        scene.asked(WRITER, 9, first.commit());
        scene.asked(WRITER, 9, second.commit());
        scene
    };
    certified(&[WRITER], &HOLDERS).breaks("I8");
    certified(&[WRITER, 1], &HOLDERS).breaks("I8");
    certified(&[WRITER, 1, 2], &HOLDERS).breaks_nothing();
    certified(&[WRITER], &OTHERS).breaks_nothing();
}

#[test]
fn i9_an_ack_is_of_what_is_durable() {
    let acked = |writes: &dyn Fn(&Signed) -> Vec<Change>, liars: &[Machine]| {
        let mut scene = Scene::with_liars(liars);
        let put = scene.manifest(1);
        let frame = scene.asked(WRITER, 1, put.prepare(0, true));
        scene.durable(1, writes(&put));
        scene.see(What::Answered { frame, from: 1, bytes: put.acked(0) });
        scene
    };
    acked(&|put| vec![put.shard(0), put.held(0, WALL_MS)], &[]).breaks_nothing();
    acked(&|put| vec![put.held(0, WALL_MS)], &[]).breaks("I9");
    acked(&|put| vec![put.shard(1), put.held(0, WALL_MS)], &[]).breaks("I9");
    acked(&|put| vec![put.shard(0)], &[]).breaks("I9");
    acked(&|_| vec![], &[1]).breaks_nothing();
    acked(
        &|put| {
            let torn = Change { value: Some(b"torn".to_vec()), ..put.shard(0) };
            vec![torn, put.held(0, WALL_MS)]
        },
        &[],
    )
    .breaks("I9");

    // An answer may be held up for long, with others in one frame or in a machine that sleeps. What it says was so when it was asked.
    let held_up = |drop_first: bool| {
        let mut scene = Scene::new();
        let put = scene.manifest(1);
        scene.prepare(WRITER, &put, &[1]);
        scene.wait_ms(TTL_MS + 12_000);
        let mut asked = None;
        for drops in [drop_first, !drop_first] {
            if drops {
                scene.durable(1, vec![put.shard_gone(0), put.gone()]);
                scene.wait_ms(5_000);
            } else {
                asked = Some(scene.asked(WRITER, 1, put.prepare(0, true)));
            }
        }
        scene.see(What::Answered { frame: asked.expect("it was"), from: 1, bytes: put.acked(0) });
        scene
    };
    held_up(false).breaks_nothing();
    held_up(true).breaks("I9");

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.exchange(READER, 1, asks_head(), put.answers_prepared(0));
    scene.breaks("I9");
    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.prepare(WRITER, &put, &[1]);
    scene.exchange(READER, 1, asks_head(), put.answers_prepared(0));
    assert_eq!(scene.auditor.marks()["uncertified"], 1);
    scene.breaks_nothing();
}

#[test]
fn i9_a_confirmation_is_of_what_is_durable() {
    let confirmed = |row: bool, answer: Vec<u8>| {
        let mut scene = Scene::new();
        let put = scene.manifest(1);
        scene.prepare(WRITER, &put, &HOLDERS);
        if row {
            scene.durable(1, vec![put.head_row()]);
        }
        scene.exchange(WRITER, 1, put.commit(), answer);
        scene.exchange(READER, 1, asks_head(), if row { put.answers_head() } else { answers(7) });
        scene
    };
    confirmed(true, answers(COMMITTED)).breaks_nothing();
    confirmed(false, answers(COMMITTED)).breaks("I9");
    let busy = confirmed(false, answers(8));
    assert_eq!((busy.auditor.marks()["busy"], busy.auditor.marks()["recovering"]), (1, 1));
    busy.breaks_nothing();
    let mut liar = Scene::with_liars(&[1]);
    liar.exchange(READER, 1, asks_head(), answers(8));
    assert_eq!(liar.auditor.marks()["busy"], 0, "what a liar says shows nothing");

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.prepare(WRITER, &put, &HOLDERS);
    scene.exchange(READER, 1, asks_head(), put.answers_head());
    scene.breaks("I9");
}

#[test]
fn i10_nothing_is_answered_served_or_returned_after_its_life() {
    let late = |wait_ms: u64, ahead_ms: i64, step: Step<'_>| {
        let mut scene = Scene::new();
        let put = scene.put(1);
        scene.wait_ms(wait_ms);
        scene.see(What::Skew { machine: 1, ahead_ms });
        scene.see(What::Skew { machine: READER, ahead_ms });
        scene.wait_ms(3_000);
        step(&mut scene, &put);
        scene
    };
    let head = |scene: &mut Scene, put: &Signed| scene.exchange(READER, 1, asks_head(), put.answers_head());
    let shard = |scene: &mut Scene, put: &Signed| scene.exchange(READER, 1, put.asks_shard(), put.answers_shard(0));
    let serves = |scene: &mut Scene, put: &Signed| scene.see(What::Serves { machine: 1, key: key(), record: Some(put.head()) });
    let get = |scene: &mut Scene, put: &Signed| scene.get(READER, put, Mode::Any);
    let steps: [Step<'_>; 4] = [&head, &shard, &serves, &get];
    for step in steps {
        late(TTL_MS + 9_000, 0, step).breaks("I10");
        late(TTL_MS + 5_000, 0, step).breaks_nothing();
        late(TTL_MS + 9_000, -5_000, step).breaks_nothing(); // by its own clock
        late(TTL_MS + 20_000, -9_999, step).breaks("I10"); // whatever it shows
    }
    for step in [&head as Step<'_>, &shard, &serves] {
        late(TTL_MS + 5_000, 5_000, step).breaks("I10"); // a holder goes by its own clock
    }
    late(TTL_MS + 5_000, 5_000, &get).breaks_nothing(); // a reader may know that its clock is off
    late(TTL_MS + 20_000, 5_000, &get).breaks("I10"); // and then it goes by the others'
}

#[test]
fn i11_a_version_is_dropped_by_the_rules_alone() {
    let dropped = |newer: bool, wait_ms: u64, to_floor: bool| {
        let mut scene = Scene::new();
        let first = scene.put(1);
        if newer {
            scene.put(2);
        } else {
            let second = scene.manifest(2);
            scene.prepare(WRITER, &second, &HOLDERS); // seen, but not certified there
        }
        scene.wait_ms(wait_ms);
        let until_ms = first.manifest.issued_at_ms + TTL_MS + 10_000;
        scene.durable(4, vec![if to_floor { first.floor(until_ms) } else { first.gone() }]);
        scene
    };
    dropped(true, 10_500, true).breaks_nothing();
    dropped(true, 9_000, true).breaks("I11");
    dropped(false, 60_000, true).breaks("I11");
    dropped(true, 10_500, false).breaks("I11"); // it must remember which it was
    dropped(false, TTL_MS + 12_000, false).breaks_nothing();

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.prepare(WRITER, &put, &HOLDERS);
    scene.auditor.aborted(key(), put.manifest.version);
    scene.durable(1, vec![put.shard_gone(0), put.floor(put.manifest.issued_at_ms + TTL_MS + 10_000)]);
    scene.breaks_nothing();

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.prepare(WRITER, &put, &HOLDERS);
    scene.durable(1, vec![put.shard_gone(0)]);
    scene.breaks("I11"); // the bytes alone

    let mut scene = Scene::new();
    scene.put(1);
    scene.put(2);
    scene.durable(1, vec![Change { table: 3, key: key().to_vec(), value: None }]);
    scene.breaks("I11"); // the head
}

#[test]
fn i9_and_i11_who_acks_a_link_has_its_shard_until_the_link_is_over() {
    let acked = |before: Step<'_>, after: Step<'_>| {
        let mut scene = Scene::new();
        let put = scene.manifest(1).renewable(8 * TTL_MS);
        scene.put_at(WRITER, &put, &HOLDERS);
        scene.wait_ms(TTL_MS);
        let issued_at_ms = scene.now_ms();
        let frame = scene.asked(2, 1, put.handover(0, issued_at_ms));
        before(&mut scene, &put);
        scene.see(What::Answered { frame, from: 1, bytes: put.acked(0) });
        scene.see(What::Heard { frame });
        after(&mut scene, &put);
        scene
    };
    let nothing = |_: &mut Scene, _: &Signed| {};
    let drops = |wait_ms: u64| {
        move |scene: &mut Scene, put: &Signed| {
            scene.wait_ms(wait_ms);
            let until_ms = put.manifest.renew_until_ms + 10_000;
            scene.durable(1, vec![put.shard_gone(0), put.floor(until_ms)]);
        }
    };
    let signed = acked(&nothing, &nothing);
    assert_eq!(signed.auditor.marks()["handed-over"], 1);
    signed.breaks_nothing();
    acked(&drops(12_000), &nothing).breaks("I9"); // on its way out
    acked(&nothing, &drops(12_000)).breaks("I11");
    acked(&nothing, &drops(TTL_MS + 8_000)).breaks("I11");
    acked(&nothing, &drops(TTL_MS + 12_000)).breaks_nothing();
    acked(&nothing, &|scene, put| {
        let newer = scene.manifest(2);
        scene.put_at(WRITER, &newer, &HOLDERS);
        scene.wait_ms(12_000);
        scene.durable(1, vec![put.floor(put.manifest.renew_until_ms + 10_000)]); // the newer one has its bytes
    })
    .breaks_nothing();
    acked(&nothing, &|scene, put| {
        down(scene, 1);
        scene.see(What::DiskLost { machine: 1, noticed: true });
        scene.store(put, 1);
        drops(12_000)(scene, put);
    })
    .breaks_nothing();
}

#[test]
fn i3_what_a_host_wrote_apart_from_its_successor_may_be_read_until_it_expires() {
    let apart = |told: bool, plain: bool, shown: bool| {
        let mut scene = Scene::new();
        let low = scene.manifest_by(1, 1, &HOLDERS);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &low, &HOLDERS);
        scene.commit(WRITER, &low, &HOLDERS);
        scene.put_ends_until(op, &low, 2, (!plain).then(|| low.manifest.issued_at_ms + TTL_MS));
        if shown {
            scene.exchange(OTHER, 1, asks_head(), low.answers_head());
        }
        let high = scene.manifest_by(2, 1, &OTHERS);
        scene.put_at(OTHER, &if told { high.with_older(&low) } else { high }, &OTHERS);
        scene.get(READER, &low, Mode::Regular);
        scene.broken()
    };
    assert_eq!(apart(false, false, false), [""; 0]);
    assert!(apart(false, true, false).contains(&"I3"), "it had been promised");
    assert!(apart(true, false, false).contains(&"I3"), "its holders had been heard of");
    assert!(apart(false, false, true).contains(&"I3"), "it had been seen");
}

#[test]
fn i12_no_lower_host_commits_after_a_higher_one() {
    let raced = |began_before: bool, stale: bool, liars: &[Machine]| {
        let mut scene = Scene::with_liars(liars);
        let low = scene.manifest_by(1, 1, &HOLDERS);
        let high = scene.manifest_by(2, 1, &OTHERS);
        let low_op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &low, &HOLDERS);
        if began_before {
            scene.commit(WRITER, &low, &HOLDERS[..1]);
        }
        scene.put_at(OTHER, &high, &OTHERS);
        scene.commit(WRITER, &low, if began_before { &HOLDERS[1..] } else { &HOLDERS });
        let stale_until_ms = stale.then(|| scene.now_ms() + TTL_MS);
        scene.put_ends_until(low_op, &low, 2, stale_until_ms);
        scene
    };
    raced(false, false, &[]).breaks("I12");
    raced(true, false, &[]).breaks_nothing();
    raced(false, true, &[]).breaks_nothing();
    raced(false, false, &[1]).breaks("I12");
    raced(false, false, &[1, 2]).breaks_nothing();
}

#[test]
fn i12_a_holder_takes_nothing_of_a_lower_host_behind_a_higher_one() {
    let after = |fence: bool, head: bool, higher: u64| {
        let mut scene = Scene::new();
        let low = scene.manifest_by(2, 1, &HOLDERS);
        let high = scene.manifest_by(higher, 1, &HOLDERS);
        if fence {
            scene.durable(1, vec![Change { table: 4, key: OWNER.to_vec(), value: Some(high.head()) }]);
        } else if head {
            scene.durable(1, vec![high.head_row()]);
        } else {
            scene.store(&high, 1);
        }
        scene.prepare(OTHER, &low, &[1]);
        scene
    };
    for (fence, head) in [(true, false), (false, true), (false, false)] {
        after(fence, head, 3).breaks("I12");
        after(fence, head, 1).breaks_nothing();
    }

    let mut scene = Scene::new();
    let (low, high) = (scene.manifest_by(1, 1, &HOLDERS), scene.manifest_by(2, 1, &OTHERS));
    scene.prepare(WRITER, &low, &HOLDERS);
    scene.durable(1, vec![Change { table: 4, key: OWNER.to_vec(), value: Some(high.head()) }]);
    scene.exchange(WRITER, 2, low.commit(), answers(8));
    scene.commit(WRITER, &low, &[1]);
    scene.breaks("I12"); // a confirmation behind the fence
}

/// Seed 116837: a machine slept while a signature that it had given waited for its disk, and a fence came to that disk meanwhile.
#[test]
fn i12_a_holder_signs_no_link_that_it_is_asked_for_behind_a_fence() {
    let signed = |asked_before: bool, higher: u64, waited_ms: u64| {
        let mut scene = Scene::new();
        let low = scene.manifest_by(2, 1, &HOLDERS).renewable(8 * TTL_MS);
        let high = scene.manifest_by(higher, 1, &OTHERS);
        scene.put_at(OTHER, &low, &HOLDERS);
        let asks = |scene: &mut Scene| scene.asked(2, 1, low.handover(0, scene.now_ms()));
        let before = asks(&mut scene);
        scene.durable(1, vec![Change { table: 4, key: OWNER.to_vec(), value: Some(high.head()) }]);
        scene.wait_ms(1);
        let after = asks(&mut scene);
        scene.wait_ms(waited_ms);
        scene.see(What::Answered { frame: if asked_before { before } else { after }, from: 1, bytes: low.acked(0) });
        scene
    };
    signed(false, 3, 3_000).breaks("I12");
    signed(true, 3, 3_000).breaks_nothing();
    signed(false, 1, 3_000).breaks_nothing();
    signed(false, 3, 0).breaks_nothing(); // on its way out
}

#[test]
fn i13_uncommitted_versions_and_frames_are_bounded() {
    let crowd = |count: u64, certified: bool| {
        let mut scene = Scene::new();
        for seq in 1..=count {
            let put = scene.manifest(seq);
            scene.prepare(WRITER, &put, &[1]);
            if certified && seq == 2 {
                scene.durable(1, vec![put.head_row()]);
            }
        }
        scene
    };
    crowd(3, false).breaks_nothing();
    crowd(4, false).breaks("I13");
    crowd(5, true).breaks_nothing();
    crowd(6, true).breaks("I13");

    let frame = |requests: usize, from: Machine| {
        let mut scene = Scene::with_liars(&[1]);
        let one = asks_head();
        let many = [&[1, requests as u8][..], &one[2..].repeat(requests)].concat();
        scene.asked(from, 2, many);
        scene
    };
    frame(64, READER).breaks_nothing();
    frame(65, READER).breaks("I13");
    frame(65, 1).breaks_nothing();
    let mut scene = Scene::new();
    let frame = scene.asked(READER, 1, asks_head());
    scene.see(What::Answered { frame, from: 1, bytes: vec![1, 2, 6, 6] });
    scene.breaks("I13");
}

#[test]
fn i14_what_was_begun_ends_and_gets_succeed_again() {
    let healed = |step: Step<'_>| {
        let mut scene = Scene::new();
        let put = scene.put(1);
        scene.see(What::Heals);
        scene.wait_ms(31_000);
        step(&mut scene, &put);
        scene.see(What::Ends);
        scene
    };
    healed(&|scene, put| scene.get(READER, put, Mode::Regular)).breaks_nothing();
    healed(&|scene, _| {
        scene.get_begins(READER, Mode::Any);
    })
    .breaks("I14");
    healed(&|scene, _| {
        scene.get_begins(READER, Mode::Any);
        down(scene, READER);
    })
    .breaks_nothing();
    healed(&|scene, _| scene.get_fails(READER, Mode::Regular, "quorum-unreachable")).breaks("I14");
    healed(&|scene, _| scene.get_fails(READER, Mode::Any, "unavailable")).breaks_nothing();
    healed(&|scene, _| {
        down(scene, 1);
        scene.get_fails(READER, Mode::Regular, "quorum-unreachable");
    })
    .breaks("I14");
    healed(&|scene, _| {
        down(scene, 1);
        down(scene, 2);
        scene.get_fails(READER, Mode::Regular, "quorum-unreachable");
    })
    .breaks_nothing();

    let mut scene = Scene::new();
    scene.put(1);
    scene.get_begins(READER, Mode::Any);
    scene.see(What::Ends);
    scene.breaks_nothing(); // nothing had healed

    // Who lost its disk asks `n - f` others: a liar among them may keep it waiting.
    let beside = |liars: &[Machine]| {
        let mut scene = Scene::with_liars(liars);
        down(&mut scene, 1);
        scene.see(What::DiskLost { machine: 1, noticed: true });
        scene.see(What::Up { machine: 1 });
        scene.put(1);
        scene.see(What::Heals);
        scene.wait_ms(31_000);
        scene.get_fails(READER, Mode::Regular, "quorum-unreachable");
        scene
    };
    beside(&[]).breaks("I14");
    beside(&[4]).breaks_nothing();
}

#[test]
fn i14_every_shard_is_placed_in_the_end() {
    let placed = |holders: &[Machine], liars: &[Machine], wait_ms: u64, writer_up: bool| {
        let mut scene = Scene::with_liars(liars);
        scene.see(What::Heals);
        let put = scene.manifest(1);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &put, holders);
        scene.commit(WRITER, &put, &HOLDERS);
        scene.put_ends(op, &put, 2);
        if !writer_up {
            down(&mut scene, WRITER);
        }
        scene.wait_ms(wait_ms);
        scene.see(What::Ends);
        scene
    };
    placed(&HOLDERS, &[], 20_000, true).breaks_nothing();
    placed(&HOLDERS[..3], &[], 20_000, true).breaks("I14");
    placed(&HOLDERS[..3], &[4], 20_000, true).breaks_nothing();
    placed(&HOLDERS[..3], &[], 10_000, true).breaks_nothing();
    placed(&HOLDERS[..3], &[], 20_000, false).breaks_nothing();

    // Long after everything healed only a put of just now is excused, and a holder that has to recover first.
    let late = |lost: bool, wait_ms: u64| {
        let mut scene = Scene::new();
        if lost {
            down(&mut scene, 4);
            scene.see(What::DiskLost { machine: 4, noticed: true });
            scene.see(What::Up { machine: 4 });
        }
        scene.see(What::Heals);
        scene.wait_ms(TTL_MS + 20_000);
        let put = scene.manifest(1);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &put, &HOLDERS[..3]);
        scene.commit(WRITER, &put, &HOLDERS);
        scene.put_ends(op, &put, 2);
        scene.wait_ms(wait_ms);
        scene.see(What::Ends);
        scene
    };
    late(false, 500).breaks_nothing();
    late(false, 1_500).breaks("I14");
    late(true, 1_500).breaks_nothing();
    late(true, 20_000).breaks("I14");
}

#[test]
fn i16_nothing_is_called_committed_without_acks_confirmations_and_older_sets() {
    let committed = |acks: usize, confirmed: usize, level: u8| {
        let mut scene = Scene::new();
        let put = scene.manifest(1);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &put, &HOLDERS[..acks]);
        scene.commit(WRITER, &put, &HOLDERS[..confirmed]);
        scene.put_ends(op, &put, level);
        scene
    };
    committed(3, 3, 2).breaks_nothing();
    committed(4, 3, 3).breaks_nothing();
    committed(4, 2, 3).breaks("I16");
    committed(3, 3, 3).breaks("I16"); // three shards do not give level 3
    assert!(committed(2, 3, 1).broken().contains(&"I16"));

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    let op = scene.put_begins(WRITER);
    scene.put_ends(op, &put, 1);
    scene.breaks("I16"); // nobody saw it

    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.prepare(WRITER, &put, &HOLDERS);
    let short = put.head_with(&[0, 1]);
    scene.asked(WRITER, 1, put.commit_of(&short));
    scene.breaks("I16"); // sent as certified, and is not
    let mut scene = Scene::new();
    let put = scene.manifest(1);
    scene.durable(1, vec![put.head_row_of(&put.head_with(&[0, 1]))]);
    scene.breaks("I16"); // kept as certified, and is not

    let moved = |told: usize, stale: bool| {
        let mut scene = Scene::new();
        let first = scene.put(1);
        let second = scene.manifest_by(1, 2, &OTHERS).with_older(&first);
        let op = scene.put_begins(WRITER);
        scene.prepare(WRITER, &second, &OTHERS);
        scene.commit(WRITER, &second, &OTHERS);
        scene.commit(WRITER, &second, &HOLDERS[..told]);
        let stale_until_ms = stale.then_some(first.manifest.issued_at_ms + TTL_MS + 10_000);
        scene.put_ends_until(op, &second, 3, stale_until_ms);
        scene
    };
    moved(3, false).breaks_nothing();
    moved(2, false).breaks("I16");
    let stale = moved(2, true);
    assert_eq!(stale.auditor.marks()["bounded-stale"], 1);
    stale.breaks_nothing();
}

#[test]
fn i17_a_secret_is_found_wherever_it_stands() {
    let secret = b"the plaintext of her quirks";
    let told = |step: &dyn Fn(&mut Scene)| {
        let mut scene = Scene::new();
        scene.auditor.secret(secret);
        step(&mut scene);
        scene
    };
    let noise = |cut: usize| [b"....".as_slice(), &secret[..secret.len() - cut], b"...."].concat();
    told(&|scene| scene.durable(1, vec![Change { table: 8, key: vec![1], value: Some(noise(1)) }])).breaks_nothing();
    told(&|scene| scene.durable(1, vec![Change { table: 8, key: vec![1], value: Some(noise(0)) }])).breaks("I17");
    told(&|scene| {
        let mut put = scene.manifest(1);
        put.shards[0] = noise(0);
        scene.asked(WRITER, 1, put.prepare(0, true));
    })
    .breaks("I17");
}

#[test]
fn marks_are_counted_where_they_are_due() {
    let mut scene = Scene::with_liars(&[OTHERS[0]]);
    let put = scene.put(1);
    scene.commit(READER, &put, &[1]);
    scene.asked(READER, 2, put.prepare(1, true));
    scene.exchange(WRITER, 2, put.prepare(1, false), answers(1));
    scene.durable(OTHERS[1], vec![put.head_row()]);
    scene.exchange(READER, OTHERS[1], asks_head(), put.answers_head());
    scene.get_fails(READER, Mode::Any, "data-lost");
    scene.get_fails(READER, Mode::Any, "fenced");
    let marks: Vec<_> = scene.auditor.marks().iter().filter(|(_, count)| **count > 0).map(|(mark, count)| (*mark, *count)).collect();
    assert_eq!(marks, [("data-lost", 1), ("fenced", 1), ("need-shard", 1), ("old-set", 1), ("repair-push", 1), ("write-back", 1)]);
    scene.breaks_nothing();
}

#[test]
fn noise_from_liars_is_no_finding_and_no_crash() {
    let mut scene = Scene::with_liars(&[1]);
    let put = scene.put(1);
    for cut in 0..put.commit().len() {
        let frame = scene.asked(1, 2, put.commit()[..cut].to_vec());
        scene.see(What::Answered { frame, from: 2, bytes: answers(6) });
        let frame = scene.asked(READER, 1, asks_head());
        scene.see(What::Answered { frame, from: 1, bytes: put.answers_head()[..cut.min(put.answers_head().len())].to_vec() });
        scene.see(What::Heard { frame });
    }
    scene.see(What::GetEnds { op: 99, outcome: GetOutcome::Error { title: "busy".into() } });
    scene.see(What::Durable { machine: 77, writes: Vec::new() });
    scene.breaks_nothing();
}

#[test]
fn shards_reach_the_hashes() {
    let shards = codeword::shards(CONTENT, 4, 2);
    assert_eq!([&shards[0][..], &shards[1]].concat(), CONTENT);
}
