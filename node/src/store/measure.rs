//! Counting what the disk is asked to do, under the database: a sync is seen where it happens, and where it fails.

use std::{
    fs::File,
    io,
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use redb::{BackendError, StorageBackend};

use super::{StoreObserver, StoreStep};

/// Classes of [`StoreStats::group_sizes`](super::StoreStats::group_sizes): powers of two, up to 1024 and more.
pub const GROUP_SIZE_CLASSES: usize = 11;

/// Since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) batches: AtomicU64,
    groups: [AtomicU64; GROUP_SIZE_CLASSES],
    pub(super) syncs: AtomicU64,
    pub(super) sync_nanos: AtomicU64,
    pub(super) file_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn committed(&self, batches: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.batches.fetch_add(batches as u64, Ordering::Relaxed);
        let class = (batches.max(1).ilog2() as usize).min(GROUP_SIZE_CLASSES - 1);
        self.groups[class].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn group_sizes(&self) -> [u64; GROUP_SIZE_CLASSES] {
        std::array::from_fn(|class| self.groups[class].load(Ordering::Relaxed))
    }
}

/// A backend that counts, and otherwise does what the one inside does.
pub(super) struct Measured<B> {
    pub(super) inner: B,
    pub(super) counters: Arc<Counters>,
    pub(super) observer: Option<StoreObserver>,
    /// Made when a sync fails: the file's pages are to be written anew before they are trusted again.
    pub(super) suspect: Option<PathBuf>,
}

impl<B: StorageBackend> std::fmt::Debug for Measured<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<B: StorageBackend> StorageBackend for Measured<B> {
    fn len(&self) -> io::Result<u64> {
        let len = self.inner.len()?;
        self.counters.file_bytes.store(len, Ordering::Relaxed);
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.counters.file_bytes.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let begun = Instant::now();
        if let Err(error) = self.inner.sync_data() {
            // What the system lost it loses for whoever reads the file after a restart of the machine; until then it shows it to everybody.
            // So long this file need not survive either, and is not synced.
            let made = self.suspect.as_ref().map(File::create_new);
            if let Some(Err(error)) = made.filter(|made| made.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists)) {
                tracing::error!(%error, "cannot write down that a sync of the store failed");
            }
            return Err(error);
        }
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.counters.sync_nanos.fetch_add(nanos, Ordering::Relaxed);
        if let Some(observer) = &self.observer {
            observer(&StoreStep::Synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
