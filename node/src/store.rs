//! The node's durable tables: one redb file, one writer, one sync for everything that waits (docs/spec/store.md).
//!
//! Nothing is promised before it is on the disk. A batch is handed in with [`Store::submit`]; the writer thread takes all that waits,
//! commits it in one transaction, and only then says [`StoreEvent::Persisted`]. Whatever depends on a batch - an acknowledgement above
//! all - waits for that word.
//!
//! A commit or sync that fails ends the store: nobody knows what reached the disk (a kernel may drop dirty pages after a failed sync and
//! call the next one a success), so every later submit is refused, the daemon exits, and the next start reads what is really there.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use persona_mesh_proto::storage::{PersistId, Table, Write};
use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, StorageBackend};
use tokio::sync::mpsc;

mod format;
mod measure;
mod salvage;
mod writer;

pub use format::FORMAT_VERSION;
pub use measure::GROUP_SIZE_CLASSES;
pub use salvage::{Salvage, TableSalvage, whole_rows};
pub use writer::{COMMIT_BYTES_MAX, QUEUE_BATCHES_MAX, QUEUE_BYTES_MAX};

/// The store's file name in a state directory.
pub const STORE_FILE: &str = "store.redb";

/// What the writer says, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// These batches are on the disk, whole. In the order in which they were submitted.
    Persisted(Vec<PersistId>),
    /// The store is lost to this process: what was submitted and not reported may or may not be on the disk. Said once, and last.
    Failed(String),
}

/// What the writer does, step by step, for tests and benches: see [`Store::open_with_backend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreStep {
    /// The writer is about to look at the queue.
    Ready,
    /// These batches go into one transaction.
    Taken(Vec<PersistId>),
    /// The backend's sync has returned, without an error.
    Synced,
    /// [`StoreEvent::Persisted`] for these batches is about to be sent.
    Reporting(Vec<PersistId>),
}

/// Is called with each [`StoreStep`], on the writer's thread. It may block, and the writer with it.
pub type StoreObserver = Arc<dyn Fn(&StoreStep) + Send + Sync>;

/// Why a batch was not taken. It is handed back to nobody: the caller still has what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// [`QUEUE_BATCHES_MAX`] batches or [`QUEUE_BYTES_MAX`] bytes wait already. Answer the peer `Busy` and let it try again.
    #[error("the disk does not keep up: {batches} batches wait to be written; try again when some are done")]
    Full {
        /// Batches that are not yet reported as persisted.
        batches: usize,
    },
    /// A commit failed earlier: [`StoreEvent::Failed`] was or will be sent.
    #[error("the store has failed ({0}): restart the node once the disk is well")]
    Failed(String),
    /// [`Store::close`] was called.
    #[error("the store is closed")]
    Closed,
}

/// Why the store does not open, or a read fails. No variant ever leads to an empty or deleted store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("another persona process uses this directory ({place} is locked): stop it first, or choose another state directory")]
    InUse {
        /// The file.
        place: String,
    },
    /// The file is not a redb database, or one that is not ours.
    #[error("{place} is not a persona store ({detail}): it was left as it is; move it away, or choose another state directory")]
    Foreign {
        /// The file.
        place: String,
        /// What gave it away.
        detail: String,
    },
    /// The file was a store, and no longer reads as one.
    #[error("{place} is damaged ({detail}): it was left as it is; a start of the node keeps what is whole of it, and says what is lost")]
    Damaged {
        /// The file.
        place: String,
        /// What does not fit.
        detail: String,
    },
    /// The file was written by a newer version.
    #[error("{place} has store format {found}, and this version of persona reads up to {FORMAT_VERSION}: upgrade persona")]
    Newer {
        /// The file.
        place: String,
        /// Its format.
        found: u32,
    },
    /// The operating system refuses.
    #[error("cannot {action} {place}: {source}; check the disk and the directory's permissions")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        place: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// [`Store::close`] was called.
    #[error("the store is closed")]
    Closed,
}

/// The store. A clone is another handle on the same store; when the last one is dropped, the writer finishes what waits and stops.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken out by `close`, so that the file's lock is released then, whoever else has a handle.
    database: RwLock<Option<Arc<Database>>>,
    queue: Arc<writer::Queue>,
    counters: Arc<measure::Counters>,
    writer: Mutex<Option<JoinHandle<()>>>,
    place: String,
    is_new: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Store {
    /// Opens the store in the file `path`, or creates it where there is no file. It blocks: the file is read whole, and its checksums are
    /// verified. Of one that is [`StoreError::Damaged`], [`Salvage::of`] keeps what is whole.
    ///
    /// Events are coalesced while `events` is full, and the writer goes on; the queue's bound counts what is not yet reported.
    pub fn open(path: &Path, events: mpsc::Sender<StoreEvent>) -> Result<Self, StoreError> {
        let counters = Arc::default();
        let opened = format::open_file(path, &counters)?;
        Self::start(opened, counters, events, None)
    }

    /// Opens the store on any backend, or creates it on an empty one. The observer sees every step of the writer in order.
    pub fn open_with_backend(
        backend: impl StorageBackend,
        events: mpsc::Sender<StoreEvent>,
        observer: Option<StoreObserver>,
    ) -> Result<Self, StoreError> {
        let counters = Arc::default();
        let opened = format::open_backend(backend, &counters, observer.clone())?;
        Self::start(opened, counters, events, observer)
    }

    fn start(
        opened: format::Opened,
        counters: Arc<measure::Counters>,
        events: mpsc::Sender<StoreEvent>,
        observer: Option<StoreObserver>,
    ) -> Result<Self, StoreError> {
        let format::Opened { database, place, is_new } = opened;
        let database = Arc::new(database);
        let queue = Arc::new(writer::Queue::default());
        let writer = writer::Writer {
            database: Arc::clone(&database),
            queue: Arc::clone(&queue),
            counters: Arc::clone(&counters),
            events,
            observer,
        };
        let thread = std::thread::Builder::new()
            .name("persona-store".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| StoreError::Io { action: "start the writer of", place: place.clone(), source })?;
        let database = RwLock::new(Some(database));
        Ok(Self { inner: Arc::new(Inner { database, queue, counters, writer: Mutex::new(Some(thread)), place, is_new }) })
    }

    /// Whether the store was created by this open: a node that had one has lost its disk.
    pub fn is_new(&self) -> bool {
        self.inner.is_new
    }

    /// Queues a batch: all of it becomes durable, or nothing. Batches become durable in the order in which they are submitted. Never blocks.
    pub fn submit(&self, id: PersistId, writes: Vec<Write>) -> Result<(), SubmitError> {
        self.inner.queue.submit(id, writes)
    }

    /// The durable value of `key`. What is still queued is not seen. Callable from any thread, and never waits for the writer.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(format::definition(table))?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })
    }

    /// Calls `visit` with every key and value of `table`, in the order of the keys' bytes, as of one moment. Returns how many there were.
    pub fn for_each(&self, table: Table, visit: impl FnMut(&[u8], &[u8])) -> Result<u64, StoreError> {
        self.for_each_with_prefix(table, &[], visit)
    }

    /// [`Self::for_each`] of the keys that start with `prefix`.
    pub fn for_each_with_prefix(&self, table: Table, prefix: &[u8], mut visit: impl FnMut(&[u8], &[u8])) -> Result<u64, StoreError> {
        let visiting = Cell::new(false);
        self.read_but(&visiting, |database| {
            let table = database.begin_read()?.open_table(format::definition(table))?;
            let mut visited = 0;
            for entry in table.range(prefix..)? {
                let (key, value) = entry?;
                let (key, value) = (key.value(), value.value());
                if !key.starts_with(prefix) {
                    break;
                }
                visiting.set(true);
                visit(key, value);
                visiting.set(false);
                visited += 1;
            }
            Ok(visited)
        })
    }

    /// What is stored and how the writer fares. Cheap: the numbers are kept, not counted.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let tables = self.read(|database| {
            let transaction = database.begin_read()?;
            let store = transaction.open_table(format::STORE_TABLE)?;
            Table::ALL
                .into_iter()
                .map(|table| {
                    let entries = transaction.open_table(format::definition(table))?.len()?;
                    let bytes = format::read_bytes(&store, table)?;
                    Ok(TableStats { table, entries, bytes })
                })
                .collect()
        })?;
        let counters = &self.inner.counters;
        Ok(StoreStats {
            tables,
            file_bytes: counters.file_bytes.load(Ordering::Relaxed),
            waiting: self.inner.queue.unreported(),
            commits: counters.commits.load(Ordering::Relaxed),
            batches: counters.batches.load(Ordering::Relaxed),
            group_sizes: counters.group_sizes(),
            syncs: counters.syncs.load(Ordering::Relaxed),
            sync_time: Duration::from_nanos(counters.sync_nanos.load(Ordering::Relaxed)),
        })
    }

    /// Writes all that waits, reports it, stops the writer and releases the file. It blocks: from async code, use `spawn_blocking`.
    /// Events that find no room for a second are given up. A second call does nothing.
    pub fn close(&self) {
        self.inner.queue.close();
        let Some(writer) = self.inner.writer.lock().take() else { return };
        // The writer catches its own panics and turns them into `Failed`.
        let _ = writer.join();
        // redb's last words to a file that was altered under it may be a panic, too. All that was reported is on the disk.
        let database = self.inner.database.write().take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }

    /// redb panics where pages that it reads contradict each other: the disk has changed them since they were verified.
    fn read<T>(&self, read: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.read_but(&Cell::new(false), read)
    }

    /// [`Self::read`], where a panic is the caller's own while `theirs`.
    fn read_but<T>(&self, theirs: &Cell<bool>, read: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let Some(database) = self.inner.database.read().clone() else { return Err(StoreError::Closed) };
        let place = &self.inner.place;
        match catch_unwind(AssertUnwindSafe(|| read(&database))) {
            Ok(Err(redb::Error::DatabaseClosed)) => Err(StoreError::Closed),
            Ok(result) => result.map_err(|error| format::translate(error, place, "read")),
            Err(panic) if theirs.get() => resume_unwind(panic),
            Err(_) => Err(StoreError::Damaged { place: place.clone(), detail: format::CONTRADICTION.to_owned() }),
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.place)
    }
}

/// How much a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// Which.
    pub table: Table,
    /// Keys.
    pub entries: u64,
    /// Bytes of all keys and values, without redb's own.
    pub bytes: u64,
}

/// What is stored, and how the writer fares since the store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// Every table, in the order of their numbers.
    pub tables: Vec<TableStats>,
    /// The file's length. It does not shrink when values are removed: redb uses the room again.
    pub file_bytes: u64,
    /// Batches submitted and not yet reported.
    pub waiting: usize,
    /// Commits.
    pub commits: u64,
    /// Batches in them: `batches / commits` is how well grouping works.
    pub batches: u64,
    /// Commits by how many batches they took: 1, 2-3, 4-7, and so on; the last class is open.
    pub group_sizes: [u64; GROUP_SIZE_CLASSES],
    /// Syncs of the file: one or two for each commit (docs/spec/store.md#commit), and a few of redb's own.
    pub syncs: u64,
    /// Time spent in them.
    pub sync_time: Duration,
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use rand_core::{Rng as _, SeedableRng as _};

    use super::*;

    fn open(path: &Path) -> Result<(Store, mpsc::Receiver<StoreEvent>), StoreError> {
        let (sender, receiver) = mpsc::channel(64);
        Ok((Store::open(path, sender)?, receiver))
    }

    fn key(nth: u32) -> [u8; 4] {
        nth.to_be_bytes()
    }

    /// A closed store with 200 shards of 1 KiB.
    fn filled(path: &Path) -> Vec<u8> {
        let (store, mut events) = open(path).unwrap();
        let writes = (0..200).map(|nth| Write::set(Table::Shard, key(nth), [nth as u8; 1024])).collect();
        store.submit(PersistId(1), writes).unwrap();
        assert_eq!(events.blocking_recv(), Some(StoreEvent::Persisted(vec![PersistId(1)])));
        store.close();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_was_persisted_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/on/the/way").join(STORE_FILE);
        let (store, mut events) = open(&path).unwrap();
        assert!(store.is_new());
        assert_eq!(store.get(Table::Shard, b"a").unwrap(), None);
        let writes = vec![
            Write::set(Table::Shard, "a", "1"),
            Write::set(Table::Shard, "ab", "2"),
            Write::set(Table::Shard, "b", "3"),
            Write::set(Table::Head, "a", "other"),
            Write::set(Table::Shard, "a", "one"),
        ];
        store.submit(PersistId(1), writes).unwrap();
        store.submit(PersistId(2), vec![Write::remove(Table::Shard, "b"), Write::remove(Table::Shard, "never")]).unwrap();
        let mut persisted = Vec::new();
        while persisted.len() < 2 {
            let Some(StoreEvent::Persisted(ids)) = events.blocking_recv() else { panic!("not persisted") };
            persisted.extend(ids);
        }
        assert_eq!(persisted, [PersistId(1), PersistId(2)]);
        store.close();
        store.close();

        let (store, _events) = open(&path).unwrap();
        assert!(!store.is_new());
        assert_eq!(store.get(Table::Shard, b"a").unwrap(), Some(b"one".to_vec()));
        assert_eq!(store.get(Table::Head, b"a").unwrap(), Some(b"other".to_vec()));
        let mut seen = Vec::new();
        assert_eq!(store.for_each(Table::Shard, |key, value| seen.push((key.to_vec(), value.to_vec()))).unwrap(), 2);
        assert_eq!(seen, [(b"a".to_vec(), b"one".to_vec()), (b"ab".to_vec(), b"2".to_vec())]);
        assert_eq!(store.for_each_with_prefix(Table::Shard, b"ab", |_, _| ()).unwrap(), 1);
        let stats = store.stats().unwrap();
        assert_eq!(stats.tables[0], TableStats { table: Table::Shard, entries: 2, bytes: 4 + 3 });
        assert_eq!(stats.tables.iter().map(|table| table.bytes).sum::<u64>(), 7 + 6);
        assert_eq!(stats.file_bytes, std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn a_second_process_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(STORE_FILE);
        let (store, _events) = open(&path).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
        assert!(error.to_string().starts_with("another persona process uses this directory"), "{error}");
        store.close();
        open(&path).unwrap();
    }

    #[test]
    fn two_that_create_at_once_never_both_succeed_and_leave_one_store() {
        for _ in 0..10 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(STORE_FILE);
            let opened: Vec<_> = std::thread::scope(|scope| {
                let threads = [(); 2].map(|()| scope.spawn(|| open(&path)));
                threads.map(|thread| thread.join().unwrap()).into_iter().collect()
            });
            let ok = opened.iter().filter(|opened| opened.is_ok()).count();
            assert!(ok <= 1, "{opened:?}");
            drop(opened);
            let mut opened = open(&path);
            // Dropping a handle does not wait for its writer.
            while matches!(opened, Err(StoreError::InUse { .. })) {
                std::thread::yield_now();
                opened = open(&path);
            }
            opened.unwrap().0.close();
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_creation_that_was_cut_short_is_begun_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(STORE_FILE);
        let left = directory.path().join(format!("{STORE_FILE}.new-1"));
        std::fs::write(&left, [7; 1000]).unwrap();
        open(&path).unwrap().0.close();
        assert!(!left.exists());
    }

    #[test]
    fn what_is_not_a_store_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(STORE_FILE);
        for content in [&b"a letter to grandmother"[..], &[0; 5000], &[0xff; 320]] {
            std::fs::write(&path, content).unwrap();
            let error = open(&path).unwrap_err();
            assert!(matches!(error, StoreError::Foreign { .. } | StoreError::Damaged { .. }), "{error:?}");
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(open(&path).unwrap_err(), StoreError::Damaged { .. }));

        std::fs::remove_file(&path).unwrap();
        let theirs: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("theirs");
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(theirs).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let error = open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");

        // Not even a database without any table: that would be to open empty.
        std::fs::remove_file(&path).unwrap();
        drop(Database::create(&path).unwrap());
        let error = open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
    }

    #[test]
    fn a_newer_store_and_one_without_a_table_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(STORE_FILE);
        filled(&path);
        let change = |format: u32| {
            let database = Database::create(&path).unwrap();
            let transaction = database.begin_write().unwrap();
            transaction.open_table(format::STORE_TABLE).unwrap().insert("format", format.to_le_bytes().as_slice()).unwrap();
            transaction.commit().unwrap();
        };
        change(FORMAT_VERSION + 1);
        let error = open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found, .. } if found == FORMAT_VERSION + 1), "{error:?}");
        change(0);
        assert!(matches!(open(&path).unwrap_err(), StoreError::Damaged { .. }));
        change(FORMAT_VERSION);
        open(&path).unwrap().0.close();

        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.delete_table(format::definition(Table::Floor)).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let error = open(&path).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { detail, .. } if detail.contains("floor")), "{error:?}");
    }

    #[test]
    fn a_damaged_store_never_opens_with_less_or_other_than_it_held() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(STORE_FILE);
        let whole = filled(&path);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut refused = 0;
        let mut spoil = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            match open(&path) {
                Ok((store, _events)) => {
                    for nth in 0..200 {
                        assert_eq!(store.get(Table::Shard, &key(nth)).unwrap(), Some(vec![nth as u8; 1024]));
                    }
                    store.close();
                }
                Err(StoreError::Damaged { .. } | StoreError::Foreign { .. } | StoreError::Newer { .. }) => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
        };
        for nth in 0..60 {
            // Every other one in the header, where the most can go wrong.
            let end = if nth % 2 == 0 { 320 } else { whole.len() as u64 };
            let at = usize::try_from(rng.next_u64() % end).unwrap();
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (rng.next_u64() % 8);
            spoil(&bytes);
        }
        for nth in 0..20 {
            spoil(&whole[..whole.len() * nth / 20]);
            let mut bytes = whole.clone();
            let page = usize::try_from(rng.next_u64() % (whole.len() as u64 / 4096)).unwrap();
            bytes[page * 4096..(page + 1) * 4096].fill(0);
            spoil(&bytes);
        }
        assert!(refused > 20, "{refused}");
    }

    #[test]
    fn a_full_queue_refuses_and_a_slow_listener_holds_up_no_commit() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let store = Store::open(&directory.path().join(STORE_FILE), sender).unwrap();
        let mut taken = 0;
        let full = loop {
            match store.submit(PersistId(taken), vec![Write::set(Table::Shard, "key", taken.to_le_bytes())]) {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full, SubmitError::Full { batches: QUEUE_BATCHES_MAX });
        // Nobody listens, and all of it becomes durable.
        while store.get(Table::Shard, b"key").unwrap() != Some((taken - 1).to_le_bytes().to_vec()) {
            std::thread::yield_now();
        }
        let mut reported = Vec::new();
        while reported.len() < usize::try_from(taken).unwrap() {
            let Some(StoreEvent::Persisted(ids)) = receiver.blocking_recv() else { panic!("not persisted") };
            reported.extend(ids);
        }
        assert!(reported.into_iter().eq((0..taken).map(PersistId)));
        while store.stats().unwrap().waiting > 0 {
            std::thread::yield_now();
        }
        store.submit(PersistId(taken), vec![]).unwrap();
        store.close();
        assert_eq!(receiver.blocking_recv(), Some(StoreEvent::Persisted(vec![PersistId(taken)])));

        let large = || vec![Write::set(Table::Shard, "large", vec![0; QUEUE_BYTES_MAX])];
        let queue = writer::Queue::default();
        queue.submit(PersistId(1), large()).unwrap();
        assert_eq!(queue.submit(PersistId(2), vec![Write::set(Table::Shard, "a", "")]), Err(SubmitError::Full { batches: 1 }));
    }
}
