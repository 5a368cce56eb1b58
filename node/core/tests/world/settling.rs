//! What a put of unknown outcome leaves behind is completed or given up.

use persona_core::Call;
use persona_mesh_proto::Mode;

use crate::{CALM, World, document};

impl World {
    pub(crate) fn counter(&mut self, host: usize, name: &str) -> u64 {
        self.status(host).counters.get(name).copied().unwrap_or(0)
    }
}

#[test]
fn what_could_not_be_put_is_given_up_once_there_is_something_newer() {
    let mut world = World::of(9, 501);
    let ada = world.create(0, "ada");
    world.put(0, ada, "doc/letter", b"first").expect("it commits");
    world.run_s(2);
    for round in 1..=4_u8 {
        // So few acks that it never commits; and before it is tried again the next content is there.
        world.net.lost_permille = 850;
        world.call(0, document(ada, "doc/letter", &[round]));
        world.run_ms(300);
        world.net.lost_permille = 1000;
        world.run_ms(6_000);
    }
    world.net = CALM;
    world.put(0, ada, "doc/letter", b"last").expect("nobody is too busy for it");
    world.run_s(20);
    assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"last".to_vec()));
    let settled = ["versions_aborted", "versions_completed", "versions_superseded", "versions_undecided"];
    let counts: Vec<u64> = settled.iter().map(|name| world.counter(0, name)).collect();
    assert!(counts[0] >= 1, "{counts:?}");
}

#[test]
fn undecided_versions_never_keep_a_section_from_being_written() {
    for seed in 0..10_u64 {
        let mut world = World::of(8, 540 + seed);
        let ada = world.create(0, "ada");
        let report = world.put(0, ada, "doc/letter", b"first").expect("it commits");
        world.run_s(35);
        let holders = world.hosts_named(&report.holders);
        world.net.stale_lookups = true;
        for round in 1..=6_u8 {
            // Three or four of seven get it: too few to commit, and too many to give it up. Each time others.
            let away: Vec<usize> =
                (0..3 + (seed as usize + usize::from(round)) % 2).map(|i| holders[(usize::from(round) * 3 + i) % 7]).collect();
            world.cut(&away);
            world.call(0, document(ada, "doc/letter", &[round]));
            world.run_ms(6_000 + 700 * seed);
        }
        world.heal();
        world.run_s(35); // whoever was not there is asked again by then
        let last = world.put(0, ada, "doc/letter", b"last");
        assert!(last.is_ok(), "seed {seed}: {last:?}");
        assert_eq!(world.get(0, ada, "doc/letter", Mode::Regular), Ok(b"last".to_vec()));
    }
}

#[test]
fn an_import_settles_what_the_old_host_left_between_its_rounds() {
    let (mut completed, mut settled) = (0, 0);
    for seed in 0..8 {
        let mut world = World::of(9, 510 + seed);
        let ada = world.create(0, "ada");
        world.put(0, ada, "doc/letter", b"first").expect("it commits");
        world.run_s(2);
        let root = world.root_of(0, "ada");
        // The host dies in the middle of a put: some holders have it, some have not.
        world.net.lost_permille = [300, 500, 800, 0][seed as usize % 4];
        world.call(0, document(ada, "doc/letter", b"second"));
        let wait_us = 7_000 + 1_000 * seed;
        world.run_us(wait_us);
        world.crash(0);
        world.run_ms(50);
        world.net = CALM;
        let report = world.import(2, root).expect("everything is there");
        assert!(report.complete, "{report:?}");
        let read = world.get(2, ada, "doc/letter", Mode::Regular).expect("read");
        assert!(read == b"first" || read == b"second", "{read:?}");
        completed += u64::from(read == b"second");
        for name in ["versions_aborted", "versions_completed", "versions_undecided"] {
            settled += world.counter(2, name);
        }
        assert!(world.put(2, ada, "doc/letter", b"third").is_ok());
        assert!(world.ask(2, Call::Publish { agent: ada }).is_ok());
    }
    assert!(settled >= 2 && completed >= 1, "{settled} settled, {completed} completed");
}
