//! Power cuts under the store: more than a thousand, each at a point that the seed chooses, after which everything that was reported as persisted must be
//! there, and every batch whole or not at all.
//!
//! The disk is a model. What was written and not yet synced may be lost, kept, or kept in part and out of order, down to sectors of 512
//! bytes. The oracle is a plain map: what the store holds after a cut must be what was reported, plus some first part of the batches
//! that were submitted after it, in their order.
#![allow(clippy::disallowed_methods, reason = "threads and time limits of tests")]

mod common;

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
};

use chacha20::ChaCha20Rng;
use common::*;
use persona::store::{Store, StoreError, StoreEvent, StoreObserver, StoreStep, SubmitError};
use persona_mesh_proto::storage::{PersistId, Table, Write};
use rand_core::{Rng, SeedableRng};
use redb::StorageBackend;
use tokio::sync::mpsc;

/// Power cuts in each of the two tests that count them.
const CUTS: usize = 600;

fn below(rng: &mut impl Rng, bound: usize) -> usize {
    usize::try_from(rng.next_u64() % bound as u64).unwrap()
}

/// Something that was done to the disk and may be lost.
#[derive(Clone)]
enum Unsynced {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

impl Unsynced {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write_at(image, *offset, data),
            Self::SetLen(len) => image.resize(*len, 0),
        }
    }
}

#[derive(Default)]
struct Image {
    /// As of the last sync.
    durable: Vec<u8>,
    /// As the running process sees it.
    volatile: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Writes, resizes and syncs until the power goes.
    operations_left: Option<usize>,
    cut: bool,
    /// A broken disk: it says that it synced.
    lies: bool,
    /// The next sync fails, once.
    fail_sync: bool,
}

/// A disk that can lose power.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Image>>);

impl Disk {
    fn new(durable: Vec<u8>, operations_left: Option<usize>) -> Self {
        Self(Arc::new(Mutex::new(Image { volatile: durable.clone(), durable, operations_left, ..Image::default() })))
    }

    fn operate(&self, operation: Option<Unsynced>) -> io::Result<()> {
        let mut image = self.0.lock().unwrap();
        let power_lost = || io::Error::other("power lost");
        if image.cut {
            return Err(power_lost());
        }
        let now = image.operations_left == Some(0);
        image.operations_left = image.operations_left.map(|left| left.saturating_sub(1));
        match operation {
            Some(operation) => {
                operation.apply(&mut image.volatile);
                image.unsynced.push(operation);
            }
            None if now => {}
            None if std::mem::take(&mut image.fail_sync) => return Err(io::Error::other("the disk is failing")),
            None if image.lies => {}
            None => {
                image.durable = image.volatile.clone();
                image.unsynced.clear();
            }
        }
        image.cut = now;
        if now { Err(power_lost()) } else { Ok(()) }
    }

    fn is_cut(&self) -> bool {
        self.0.lock().unwrap().cut
    }

    /// What is on the disk when power returns, at the least: nothing that was not synced.
    fn synced(&self) -> Vec<u8> {
        self.0.lock().unwrap().durable.clone()
    }

    /// And at the worst: of what was not synced, any sectors.
    fn torn(&self, rng: &mut impl Rng) -> Vec<u8> {
        let image = self.0.lock().unwrap();
        let mut durable = image.durable.clone();
        for operation in &image.unsynced {
            match (operation, below(rng, 3)) {
                (_, 0) => {}
                (Unsynced::Write { offset, data }, 1) => {
                    for (nth, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        if below(rng, 2) == 0 {
                            write_at(&mut durable, offset + nth * SECTOR_BYTES, sector);
                        }
                    }
                }
                (operation, _) => operation.apply(&mut durable),
            }
        }
        durable
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().volatile.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.0.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let bytes = image.volatile.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Some(Unsynced::SetLen(usize::try_from(len).unwrap())))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(Some(Unsynced::Write { offset: usize::try_from(offset).unwrap(), data: data.to_vec() }))
    }
}

/// Lets the writer look at the queue when the test says so, so that a seed fixes what goes into each commit; and writes down its steps.
#[derive(Clone, Default)]
struct Conductor(Arc<(Mutex<Conducted>, Condvar)>);

#[derive(Default)]
struct Conducted {
    turns: usize,
    free: bool,
    steps: Vec<StoreStep>,
}

impl Conductor {
    fn observer(&self) -> StoreObserver {
        let this = self.clone();
        Arc::new(move |step| {
            let (conducted, changed) = &*this.0;
            let mut conducted = conducted.lock().unwrap();
            conducted.steps.push(step.clone());
            if *step == StoreStep::Ready {
                conducted = changed.wait_while(conducted, |conducted| conducted.turns == 0 && !conducted.free).unwrap();
                conducted.turns = conducted.turns.saturating_sub(1);
            }
        })
    }

    fn turn(&self) {
        self.0.0.lock().unwrap().turns += 1;
        self.0.1.notify_all();
    }

    fn set_free(&self) {
        self.0.0.lock().unwrap().free = true;
        self.0.1.notify_all();
    }

    fn steps(&self) -> Vec<StoreStep> {
        self.0.0.lock().unwrap().steps.clone()
    }
}

/// Each report comes after a sync that came after its batches were taken. Returns how many reports there were.
fn each_sync_comes_before_its_report(steps: &[StoreStep]) -> usize {
    let mut reports = 0;
    let mut taken: Vec<PersistId> = Vec::new();
    let mut synced: Vec<PersistId> = Vec::new();
    for step in steps {
        match step {
            StoreStep::Ready => {}
            StoreStep::Taken(ids) => taken.extend(ids),
            StoreStep::Synced => synced.append(&mut taken),
            StoreStep::Reporting(ids) => {
                assert!(taken.is_empty(), "{ids:?} is reported while {taken:?} is not synced");
                assert_eq!(*ids, synced, "what is reported is what was synced");
                synced.clear();
                reports += 1;
            }
        }
    }
    reports
}

/// A batch of 1 to 6 writes to a few keys of two to twelve tables.
fn batch(rng: &mut impl Rng) -> Vec<Write> {
    let spread = if below(rng, 2) == 0 { 1 } else { Table::ALL.len() };
    (0..1 + below(rng, 6))
        .map(|_| {
            let table = Table::ALL[below(rng, spread)];
            let key = vec![u8::try_from(below(rng, 12)).unwrap(); 1 + below(rng, 3)];
            let len = match below(rng, 10) {
                0..2 => return Write::remove(table, key),
                2..8 => below(rng, 300),
                8 => below(rng, 6000),
                _ => 0,
            };
            let mut value = vec![0; len];
            rng.fill_bytes(&mut value);
            Write::set(table, key, value)
        })
        .collect()
}

/// What must be there: reported batches, and then the others in their order, up to some point.
#[derive(Default)]
struct Oracle {
    reported: Contents,
    submitted: Vec<(PersistId, Vec<Write>)>,
}

impl Oracle {
    fn persisted(&mut self, ids: &[PersistId]) {
        for id in ids {
            let (submitted, writes) = self.submitted.remove(0);
            assert_eq!(submitted, *id, "reports come in the order of submission");
            apply(&mut self.reported, &writes);
        }
    }

    /// Says what is wrong with what was found after a cut; otherwise what was found is from now on what must be there.
    fn judge(&mut self, found: Contents) -> Result<(), String> {
        let mut allowed = self.reported.clone();
        let mut fits = allowed == found;
        for (_, writes) in &self.submitted {
            apply(&mut allowed, writes);
            fits |= allowed == found;
        }
        if !fits {
            return Err(format!("{} keys found, {} reported, {} batches open", found.len(), self.reported.len(), self.submitted.len()));
        }
        self.reported = found;
        self.submitted.clear();
        Ok(())
    }
}

/// Counts of what a run saw, so that a test can say that it saw enough.
#[derive(Debug, Default)]
struct Seen {
    cuts: usize,
    while_opening: usize,
    unreported: usize,
    reports: usize,
    batches: usize,
}

fn fresh() -> Vec<u8> {
    let disk = Disk::default();
    let (events, _receiver) = mpsc::channel(8);
    let store = Store::open_with_backend(disk.clone(), events, None).unwrap();
    assert!(store.is_new());
    store.close();
    drop(store);
    disk.synced()
}

/// Opens, checks, writes, and cuts the power, `cuts` times on one disk after the other. Fails with the first broken promise.
fn storm(seed: u64, cuts: usize, torn: bool, lies: bool) -> Result<Seen, String> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let fresh = fresh();
    let mut seen = Seen::default();
    let mut next_id = 0;
    while seen.cuts < cuts {
        let mut image = fresh.clone();
        let mut oracle = Oracle::default();
        for _ in 0..20 {
            let disk = Disk::new(image, Some(below(&mut rng, 100)));
            disk.0.lock().unwrap().lies = lies;
            let conductor = Conductor::default();
            let (sender, mut events) = mpsc::channel(64);
            match Store::open_with_backend(disk.clone(), sender, Some(conductor.observer())) {
                Err(_) if disk.is_cut() => seen.while_opening += 1,
                Err(error) => return Err(format!("cut {}: the store does not open: {error}", seen.cuts)),
                Ok(store) => {
                    oracle.judge(contents(&store)).map_err(|error| format!("cut {}: {error}", seen.cuts))?;
                    counts_agree(&store, &oracle.reported);
                    let begun = next_id;
                    'power: loop {
                        if next_id - begun > 1000 {
                            return Err(format!("cut {}: a thousand batches, and the disk was not asked to sync them", seen.cuts));
                        }
                        for _ in 0..1 + below(&mut rng, 5) {
                            let (id, writes) = (PersistId(next_id), batch(&mut rng));
                            next_id += 1;
                            seen.batches += 1;
                            store.submit(id, writes.clone()).unwrap();
                            oracle.submitted.push((id, writes));
                        }
                        conductor.turn();
                        match next(&mut events).expect("the writer says something") {
                            StoreEvent::Persisted(ids) => oracle.persisted(&ids),
                            StoreEvent::Failed(_) => break 'power,
                        }
                        assert!(oracle.submitted.is_empty());
                    }
                    assert!(disk.is_cut(), "the store failed, and the power was on");
                    seen.unreported += usize::from(!oracle.submitted.is_empty());
                    assert!(matches!(store.submit(PersistId(0), vec![]), Err(SubmitError::Failed(_))));
                    conductor.set_free();
                    store.close();
                    seen.reports += each_sync_comes_before_its_report(&conductor.steps());
                }
            }
            seen.cuts += 1;
            image = if torn { disk.torn(&mut rng) } else { disk.synced() };
        }
    }
    Ok(seen)
}

fn survive(seed: u64, torn: bool) {
    let seen = storm(seed, CUTS, torn, false).unwrap();
    eprintln!("{seen:?}");
    assert!(seen.reports > CUTS && seen.unreported > CUTS / 2 && seen.while_opening > CUTS / 100, "{seen:?}");
}

#[test]
fn power_cuts_lose_nothing_that_was_reported() {
    survive(1, false);
}

#[test]
fn power_cuts_that_tear_and_reorder_lose_nothing_that_was_reported() {
    survive(2, true);
}

#[test]
fn the_oracle_notices_a_disk_that_does_not_sync() {
    let caught = (5..10).filter(|seed| storm(*seed, 20, false, true).is_err()).count();
    assert_eq!(caught, 5);
}

#[test]
fn a_report_waits_for_the_sync() {
    let disk = Disk::new(fresh(), None);
    let conductor = Conductor::default();
    let (sender, mut events) = mpsc::channel(64);
    let store = Store::open_with_backend(disk.clone(), sender, Some(conductor.observer())).unwrap();
    for round in 0..50 {
        store.submit(PersistId(round), vec![Write::set(Table::Prepared, "key", round.to_le_bytes())]).unwrap();
        conductor.turn();
        assert_eq!(next(&mut events), Some(StoreEvent::Persisted(vec![PersistId(round)])));
        // The word was given: from here on the durable image alone must do.
        let (sender, _events) = mpsc::channel(1);
        let copy = Store::open_with_backend(Disk::new(disk.synced(), None), sender, None).unwrap();
        assert_eq!(copy.get(Table::Prepared, b"key").unwrap(), Some(round.to_le_bytes().to_vec()));
    }
    conductor.set_free();
    store.close();
    assert_eq!(each_sync_comes_before_its_report(&conductor.steps()), 50);
}

#[test]
fn a_failed_sync_is_said_once_and_ends_the_store() {
    let disk = Disk::new(fresh(), None);
    let (sender, mut events) = mpsc::channel(64);
    let store = Store::open_with_backend(disk.clone(), sender, None).unwrap();
    store.submit(PersistId(1), vec![Write::set(Table::Shard, "kept", "1")]).unwrap();
    assert_eq!(next(&mut events), Some(StoreEvent::Persisted(vec![PersistId(1)])));

    disk.0.lock().unwrap().fail_sync = true;
    store.submit(PersistId(2), vec![Write::set(Table::Shard, "lost", "2")]).unwrap();
    let Some(StoreEvent::Failed(why)) = next(&mut events) else { panic!("the failure is not reported") };
    assert!(why.contains("the disk is failing"), "{why}");
    // The disk is well again, and it does not matter.
    let refused = store.submit(PersistId(3), vec![Write::set(Table::Shard, "more", "3")]);
    assert!(matches!(&refused, Err(SubmitError::Failed(said)) if *said == why), "{refused:?}");
    store.close();
    drop(store);
    assert_eq!(next(&mut events), None, "nothing more is said");

    let (sender, _events) = mpsc::channel(64);
    let store = Store::open_with_backend(Disk::new(disk.synced(), None), sender, None).unwrap();
    assert_eq!(store.get(Table::Shard, b"kept").unwrap(), Some(b"1".to_vec()));
    assert_eq!(store.get(Table::Shard, b"more").unwrap(), None);
}

#[test]
fn what_waits_is_written_in_one_commit_and_before_closing() {
    let disk = Disk::new(fresh(), None);
    let conductor = Conductor::default();
    let (sender, mut events) = mpsc::channel(64);
    let store = Store::open_with_backend(disk.clone(), sender, Some(conductor.observer())).unwrap();
    let opened = store.stats().unwrap();
    for id in 0..100 {
        store.submit(PersistId(id), vec![Write::set(Table::Shard, [id as u8], "value")]).unwrap();
    }
    conductor.turn();
    assert_eq!(next(&mut events), Some(StoreEvent::Persisted((0..100).map(PersistId).collect())));
    let stats = store.stats().unwrap();
    assert_eq!((stats.commits, stats.batches, stats.group_sizes[6]), (1, 100, 1));
    assert_eq!(stats.syncs - opened.syncs, 1, "a hundred batches cost one sync");

    store.submit(PersistId(100), vec![Write::set(Table::Intent, "key", "value")]).unwrap();
    conductor.turn();
    assert_eq!(next(&mut events), Some(StoreEvent::Persisted(vec![PersistId(100)])));
    assert_eq!(store.stats().unwrap().syncs - stats.syncs, 1, "and a promise costs one");

    store.submit(PersistId(101), vec![Write::set(Table::Own, "last", "value")]).unwrap();
    conductor.set_free();
    store.close();
    assert_eq!(next(&mut events), Some(StoreEvent::Persisted(vec![PersistId(101)])));
    assert_eq!(store.submit(PersistId(102), vec![]), Err(SubmitError::Closed));
    assert!(matches!(store.get(Table::Own, b"last"), Err(StoreError::Closed)));
}
