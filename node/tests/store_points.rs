//! Every point between two operations of the store on its file: the power goes there, or that operation fails.
//!
//! A history is run once on a disk that writes down what it is asked, and when the store reported what. Then, for every point of that
//! record, disks are made as a power cut there could leave them: what was synced, and of the rest nothing, all, every first part, every
//! single operation more or less, and any subset, whole or torn between sectors. Each must open, and hold what was reported up to that
//! point, or that and the whole batch that was being written. Failures are tried one by one, at every operation of the same history.
//!
//! `PERSONA_SUBSETS=1000 cargo test -p persona --test store_points --release` draws more subsets.
#![allow(clippy::disallowed_methods, reason = "threads, time limits and settings of tests")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use chacha20::ChaCha20Rng;
use common::*;
use persona::store::{Store, StoreEvent, StoreObserver, StoreStep, SubmitError};
use persona_mesh_proto::storage::{PersistId, Table, Write};
use rand_core::{Rng, SeedableRng};
use redb::StorageBackend;
use tokio::sync::mpsc;

/// Unsynced operations up to so many are lost and kept in every combination; of more, so many seeded ones.
const ALL_SUBSETS_MAX: usize = 5;

fn subsets_drawn() -> usize {
    std::env::var("PERSONA_SUBSETS").ok().and_then(|count| count.parse().ok()).unwrap_or(8)
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write_at(image, *offset, data),
            Self::SetLen(len) => image.resize(*len, 0),
        }
    }

    /// Of a write, the sectors that `kept` says; a new length is set or not.
    fn apply_torn(&self, image: &mut Vec<u8>, mut kept: impl FnMut(usize) -> bool) {
        let Self::Write { offset, data } = self else { return };
        for (nth, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            if kept(nth) {
                write_at(image, offset + nth * SECTOR_BYTES, sector);
            }
        }
    }
}

#[derive(Clone)]
enum Event {
    Change(Change),
    Sync,
    /// So many batches were in the transaction that begins, counted from the first of the history.
    Taken(usize),
    /// So many are reported.
    Reported(usize),
}

/// What a disk does to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// No room for it.
    Full,
    /// It fails, and others may succeed.
    Io,
    /// From here on nothing can be written.
    ReadOnly,
}

impl Fault {
    fn error(self) -> io::Error {
        // By number, as the system would: ENOSPC, EIO, EROFS.
        io::Error::from_raw_os_error(match self {
            Self::Full => 28,
            Self::Io => 5,
            Self::ReadOnly => 30,
        })
    }
}

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Change,
    Sync,
}

#[derive(Default)]
struct State {
    /// As of the last sync that did what it said.
    durable: Vec<u8>,
    /// As the process sees it.
    seen: Vec<u8>,
    unsynced: Vec<Change>,
    record: Vec<Event>,
    /// Every operation until now, reads included.
    kinds: Vec<Kind>,
    fault: Option<(usize, Fault)>,
    failed: bool,
}

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn new(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { durable: image.clone(), seen: image, ..State::default() })))
    }

    fn failing(image: Vec<u8>, at: usize, fault: Fault) -> Self {
        let disk = Self::new(image);
        disk.0.lock().unwrap().fault = Some((at, fault));
        disk
    }

    /// Counts an operation; `Err` if it is the one that fails.
    fn operate(state: &mut State, kind: Kind) -> io::Result<()> {
        let at = state.kinds.len();
        state.kinds.push(kind);
        match state.fault {
            Some((when, fault @ Fault::ReadOnly)) if at >= when && kind != Kind::Read => {
                state.failed = true;
                Err(fault.error())
            }
            Some((when, fault)) if at == when => {
                state.failed = true;
                // After a failed sync the system drops what was not written, and calls the next sync a success.
                if kind == Kind::Sync {
                    state.unsynced.clear();
                }
                Err(fault.error())
            }
            _ => Ok(()),
        }
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        Self::operate(&mut state, Kind::Change)?;
        change.apply(&mut state.seen);
        state.unsynced.push(change.clone());
        state.record.push(Event::Change(change));
        Ok(())
    }

    fn observer(&self) -> StoreObserver {
        let this = self.clone();
        Arc::new(move |step| {
            let mut state = this.0.lock().unwrap();
            match step {
                StoreStep::Taken(ids) => state.record.push(Event::Taken(ids.last().map_or(0, |id| id.0 as usize + 1))),
                StoreStep::Reporting(ids) => state.record.push(Event::Reported(ids.last().map_or(0, |id| id.0 as usize + 1))),
                StoreStep::Ready | StoreStep::Synced => {}
            }
        })
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        Self::operate(&mut state, Kind::Read)?;
        let offset = usize::try_from(offset).unwrap();
        out.copy_from_slice(state.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        Self::operate(&mut state, Kind::Sync)?;
        let State { durable, unsynced, .. } = &mut *state;
        unsynced.drain(..).for_each(|change| change.apply(durable));
        state.record.push(Event::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write { offset: usize::try_from(offset).unwrap(), data: data.to_vec() })
    }
}

fn open(disk: &Disk) -> Result<(Store, mpsc::Receiver<StoreEvent>), String> {
    let (sender, receiver) = mpsc::channel(64);
    let store = Store::open_with_backend(disk.clone(), sender, Some(disk.observer())).map_err(|error| error.to_string())?;
    Ok((store, receiver))
}

fn fresh() -> Vec<u8> {
    let disk = Disk::default();
    open(&disk).unwrap().0.close();
    disk.0.lock().unwrap().durable.clone()
}

fn value(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ChaCha20Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A history: sessions, each from open to close, of batches.
type History = Vec<Vec<Vec<Write>>>;

/// Puts, replacements, removals, batches over all tables, and an empty one.
fn small() -> History {
    let all = |value: &'static str| Table::ALL.map(|table| Write::set(table, "k", value)).to_vec();
    vec![
        vec![
            vec![Write::set(Table::Shard, "a", value(1, 700)), Write::set(Table::Prepared, "a", "1")],
            all("one"),
            vec![Write::set(Table::Shard, "a", value(2, 100)), Write::remove(Table::Prepared, "a")],
            vec![],
        ],
        vec![all("two"), Table::ALL.map(|table| Write::remove(table, "k")).to_vec(), vec![Write::set(Table::Own, "last", "1")]],
    ]
}

/// The file grows, trees become deep, large values go and their room is used again.
fn large() -> History {
    let many = |from: u64, len: usize| (from..from + 60).map(|nth| Write::set(Table::Own, nth.to_be_bytes(), value(nth, len))).collect();
    let gone = |step: usize| (0..60_u64).step_by(step).map(|nth| Write::remove(Table::Own, nth.to_be_bytes())).collect();
    vec![
        vec![many(0, 900), vec![Write::set(Table::Shard, "large", value(7, 300_000))], many(30, 300)],
        vec![gone(2), vec![Write::remove(Table::Shard, "large")], vec![Write::set(Table::Shard, "again", value(8, 200_000))], gone(1)],
    ]
}

/// What the store holds after each number of batches.
fn states(history: &History) -> Vec<Contents> {
    let mut now = Contents::new();
    let mut states = vec![now.clone()];
    for batch in history.iter().flatten() {
        apply(&mut now, batch);
        states.push(now.clone());
    }
    states
}

/// How a history ended.
#[derive(Debug)]
struct Ended {
    /// Batches that were reported, and that were submitted.
    reported: usize,
    submitted: usize,
    /// What was said, if it did not go well.
    failure: Option<String>,
}

/// Runs a history, each batch in a commit of its own, until something fails.
fn run(disk: &Disk, history: &History) -> Ended {
    let mut ended = Ended { reported: 0, submitted: 0, failure: None };
    for session in history {
        let (store, mut events) = match open(disk) {
            Ok(opened) => opened,
            Err(error) => return Ended { failure: Some(error), ..ended },
        };
        for batch in session {
            store.submit(PersistId(ended.submitted as u64), batch.clone()).unwrap();
            ended.submitted += 1;
            match next(&mut events).expect("the writer says something") {
                StoreEvent::Persisted(ids) => {
                    assert_eq!(ids, [PersistId(ended.reported as u64)]);
                    ended.reported += 1;
                }
                StoreEvent::Failed(reason) => {
                    let refused = store.submit(PersistId(u64::MAX), Vec::new());
                    assert!(matches!(&refused, Err(SubmitError::Failed(said)) if *said == reason), "{refused:?}");
                    store.close();
                    assert_eq!(next(&mut events), None, "a failure is said once, and last");
                    return Ended { failure: Some(reason), ..ended };
                }
            }
        }
        store.close();
        // A sync that failed at the close: no process goes on with this file as it is (`node/src/store/format.rs`, `write_anew`).
        if disk.0.lock().unwrap().failed {
            return ended;
        }
    }
    ended
}

/// What a power cut may leave: what was synced, and of the rest nothing, all, and much between.
fn aftermaths(durable: &[u8], unsynced: &[Change], rng: &mut impl Rng) -> BTreeSet<Vec<u8>> {
    let count = unsynced.len();
    let mut images = BTreeSet::new();
    let mut keep = |kept: &dyn Fn(usize) -> bool| {
        let mut image = durable.to_vec();
        unsynced.iter().enumerate().filter(|(nth, _)| kept(*nth)).for_each(|(_, change)| change.apply(&mut image));
        images.insert(image);
    };
    if count <= ALL_SUBSETS_MAX {
        (0..1_u32 << count).for_each(|subset| keep(&|nth| subset >> nth & 1 == 1));
    } else {
        (0..=count).for_each(|first| keep(&|nth| nth < first));
        (0..count).for_each(|one| keep(&|nth| nth == one));
        (0..count).for_each(|one| keep(&|nth| nth != one));
        for _ in 0..subsets_drawn() {
            let drawn: Vec<bool> = (0..count).map(|_| rng.next_u32() & 1 == 1).collect();
            keep(&|nth| drawn[nth]);
        }
    }
    // The last of a first part torn: after its first sector, in its middle, before its last, and with every other one.
    for (torn, change) in unsynced.iter().enumerate() {
        let Change::Write { data, .. } = change else { continue };
        let sectors = data.len().div_ceil(SECTOR_BYTES);
        for others in [torn, count] {
            for kept in [1, sectors / 2, sectors - 1] {
                let mut image = durable.to_vec();
                unsynced[..torn].iter().for_each(|change| change.apply(&mut image));
                change.apply_torn(&mut image, |nth| nth < kept);
                unsynced[torn + 1..others.max(torn + 1)].iter().for_each(|change| change.apply(&mut image));
                images.insert(image);
            }
        }
        let mut image = durable.to_vec();
        unsynced[..torn].iter().for_each(|change| change.apply(&mut image));
        change.apply_torn(&mut image, |nth| nth % 2 == 1);
        images.insert(image);
    }
    images
}

/// Opens what a cut left, and says what is wrong with it. Returns the disk, on which the store was opened and closed.
fn judge(image: Vec<u8>, allowed: &[Contents]) -> Result<Disk, String> {
    let disk = Disk::new(image);
    let (store, mut events) = open(&disk).map_err(|error| format!("it does not open: {error}"))?;
    let found = contents(&store);
    if !allowed.contains(&found) {
        return Err(format!("{} rows, where {:?} are allowed", found.len(), allowed.iter().map(Contents::len).collect::<Vec<_>>()));
    }
    counts_agree(&store, &found);
    // It goes on from there.
    store.submit(PersistId(0), vec![Write::set(Table::Meta, "after", "the cut")]).unwrap();
    if next(&mut events) != Some(StoreEvent::Persisted(vec![PersistId(0)])) {
        return Err("nothing can be written to it".to_owned());
    }
    store.close();
    Ok(disk)
}

/// Cuts the power at every point of a record, and judges every disk that may be left. Returns how many points and disks there were.
fn cut_everywhere(begun: &[u8], record: &[Event], states: &[Contents], rng: &mut impl Rng) -> (usize, usize) {
    let mut durable = begun.to_vec();
    let mut unsynced: Vec<Change> = Vec::new();
    let (mut reported, mut taken) = (0, 0);
    let mut judged: BTreeSet<(usize, usize, Vec<u8>)> = BTreeSet::new();
    let (mut points, mut disks) = (0, 0);
    for event in [None].into_iter().chain(record.iter().map(Some)) {
        match event {
            None => {}
            Some(Event::Taken(batches)) => taken = *batches,
            Some(Event::Reported(batches)) => reported = *batches,
            Some(Event::Change(change)) => unsynced.push(change.clone()),
            Some(Event::Sync) => unsynced.drain(..).for_each(|change| change.apply(&mut durable)),
        }
        points += 1;
        let allowed = &states[reported..=taken.max(reported)];
        for image in aftermaths(&durable, &unsynced, rng) {
            if !judged.insert((reported, taken, blake(&image))) {
                continue;
            }
            disks += 1;
            if let Err(wrong) = judge(image, allowed) {
                panic!("point {points} of {}, {reported} batches reported and {taken} begun: {wrong}", record.len() + 1);
            }
        }
    }
    (points, disks)
}

fn blake(image: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(image).to_vec()
}

fn survives_every_point(history: &History) -> (usize, usize) {
    let begun = fresh();
    let disk = Disk::new(begun.clone());
    let ended = run(&disk, history);
    assert_eq!((ended.reported, ended.failure), (history.iter().flatten().count(), None));
    let record = disk.0.lock().unwrap().record.clone();
    cut_everywhere(&begun, &record, &states(history), &mut ChaCha20Rng::seed_from_u64(1))
}

#[test]
fn a_cut_at_any_point_keeps_what_was_reported_and_no_half_batch() {
    let begun = Instant::now();
    let (points, disks) = survives_every_point(&small());
    eprintln!("{points} points, {disks} disks, {:?}", begun.elapsed());
    assert!(points > 100 && disks > 500, "{points} {disks}");
}

#[test]
fn a_cut_at_any_point_of_a_growing_store_keeps_what_was_reported_and_no_half_batch() {
    let begun = Instant::now();
    let (points, disks) = survives_every_point(&large());
    eprintln!("{points} points, {disks} disks, {:?}", begun.elapsed());
    assert!(points > 100 && disks > 500, "{points} {disks}");
}

/// A store that was cut while it wrote is repaired by its next open, and that may be cut too.
#[test]
fn a_cut_at_any_point_of_the_repair_after_a_cut_loses_nothing() {
    let history = small();
    let begun = fresh();
    let disk = Disk::new(begun);
    // The power goes with the last operation of the second commit; nothing, all, or some of what it wrote is there.
    let states = states(&history);
    let (image, unsynced) = {
        run(&disk, &vec![history[0][..2].to_vec()]);
        let record = disk.0.lock().unwrap().record.clone();
        let mut durable = fresh();
        let mut unsynced = Vec::new();
        let last_report = record.iter().rposition(|event| matches!(event, Event::Reported(_))).unwrap();
        let last_sync = record[..last_report].iter().rposition(|event| matches!(event, Event::Sync)).unwrap();
        for event in &record[..last_sync] {
            match event {
                Event::Change(change) => unsynced.push(change.clone()),
                Event::Sync => unsynced.drain(..).for_each(|change: Change| change.apply(&mut durable)),
                Event::Taken(_) | Event::Reported(_) => {}
            }
        }
        (durable, unsynced)
    };
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    let (mut points, mut disks) = (0, 0);
    // Every third of them: each costs a cut at every operation of its repair.
    for left in aftermaths(&image, &unsynced, &mut rng).into_iter().step_by(3) {
        let disk = Disk::new(left.clone());
        let (store, _events) = open(&disk).unwrap();
        let found = contents(&store);
        assert!(states[1..=2].contains(&found));
        store.close();
        let record = disk.0.lock().unwrap().record.clone();
        // What was found once is found for ever.
        let (more_points, more_disks) = cut_everywhere(&left, &record, &[found], &mut rng);
        (points, disks) = (points + more_points, disks + more_disks);
    }
    eprintln!("{points} points, {disks} disks");
    assert!(points > 100 && disks > 500, "{points} {disks}");
}

/// Every operation of a history fails once, in every way: what was reported is there after the next start, and after a power cut, too.
#[test]
fn whichever_operation_fails_it_is_said_and_nothing_reported_is_lost() {
    let history = small();
    let states = states(&history);
    let begun = fresh();
    let kinds = {
        let disk = Disk::new(begun.clone());
        run(&disk, &history);
        disk.0.lock().unwrap().kinds.clone()
    };
    let mut said = BTreeMap::<(String, bool), usize>::new();
    for (at, kind) in kinds.iter().enumerate() {
        let faults: &[Fault] = match kind {
            Kind::Read => &[Fault::Io],
            Kind::Change => &[Fault::Io, Fault::Full, Fault::ReadOnly],
            Kind::Sync => &[Fault::Io, Fault::Full],
        };
        for &fault in faults {
            let disk = Disk::failing(begun.clone(), at, fault);
            let ended = run(&disk, &history);
            let context = || format!("{fault:?} at operation {at}, a {kind:?}: {ended:?}");
            let state = disk.0.lock().unwrap();
            assert!(state.failed, "{}", context());
            let why = match &ended.failure {
                Some(why) => {
                    let number = format!("os error {}", fault.error().raw_os_error().unwrap());
                    assert!(why.contains(&number), "{}", context());
                    "said"
                }
                // What is written at a close says only that the store was closed well: all was reported before.
                None => {
                    assert_eq!(ended.reported, ended.submitted, "{}", context());
                    "not needed"
                }
            };
            *said.entry((format!("{kind:?} {fault:?}"), why == "said")).or_default() += 1;
            let allowed = &states[ended.reported..=ended.submitted];
            // The power goes after that.
            judge(state.durable.clone(), allowed).unwrap_or_else(|wrong| panic!("after a cut, {}: {wrong}", context()));
            // The process starts again on the same system. What a failed sync lost is still seen then: the daemon writes it anew.
            judge(state.seen.clone(), allowed).unwrap_or_else(|wrong| panic!("after a start, {}: {wrong}", context()));
        }
    }
    eprintln!("{} operations: {said:?}", kinds.len());
    assert!(said.iter().any(|((what, said), _)| what == "Sync Io" && *said), "{said:?}");
}

/// The judge is no rubber stamp: disks that forget a sync, or of which a reported batch is taken for unreported, are found out.
#[test]
fn the_judge_notices_a_disk_that_does_not_sync() {
    let history = small();
    let begun = fresh();
    let disk = Disk::new(begun.clone());
    run(&disk, &history);
    let mut record = disk.0.lock().unwrap().record.clone();
    let report = record.iter().position(|event| matches!(event, Event::Reported(2))).unwrap();
    let sync = record[..report].iter().rposition(|event| matches!(event, Event::Sync)).unwrap();
    record.remove(sync);
    let states = states(&history);
    let judged = std::panic::catch_unwind(|| cut_everywhere(&begun, &record, &states, &mut ChaCha20Rng::seed_from_u64(1)));
    assert!(judged.is_err());
}
