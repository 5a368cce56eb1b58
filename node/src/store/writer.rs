//! The one writer: takes all that waits, commits it once, then reports it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use persona_mesh_proto::storage::{PersistId, Write};
use redb::Database;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{StoreEvent, StoreObserver, StoreStep, SubmitError, format, measure::Counters};

/// Batches that may be submitted and not yet reported. When full, [`SubmitError::Full`]: the peer is told `Busy` and comes again.
pub const QUEUE_BATCHES_MAX: usize = 4096;

/// Bytes of keys and values that may wait. When full, likewise; a batch that is larger alone is taken when nothing else waits.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// A transaction takes no further batch beyond this, so that the first in it does not wait for megabytes of others.
pub const COMMIT_BYTES_MAX: usize = 16 << 20;

/// How long reports wait for room when the receiver is behind, before the next attempt. Commits go on meanwhile.
const REPORT_RETRY: Duration = Duration::from_millis(5);

/// How long a closing store waits for a receiver that does not take its last reports.
const CLOSE_REPORT_WAIT: Duration = Duration::from_secs(1);

struct Batch {
    id: PersistId,
    writes: Vec<Write>,
    bytes: usize,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// Submitted and not yet reported: those waiting, in a transaction, and committed while the receiver is behind.
    unreported: usize,
    closing: bool,
    failed: Option<String>,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// What the writer found in the queue.
enum Found {
    Batches(Vec<Batch>),
    /// Nothing yet, but reports are to be tried again.
    Nothing,
    /// Nothing, and nothing will come.
    Closed,
}

impl Queue {
    pub(super) fn submit(&self, id: PersistId, writes: Vec<Write>) -> Result<(), SubmitError> {
        let bytes = writes.iter().map(|write| write.key.len() + write.value.as_ref().map_or(0, Vec::len)).sum();
        let mut waiting = self.waiting.lock();
        if let Some(failed) = &waiting.failed {
            return Err(SubmitError::Failed(failed.clone()));
        }
        if waiting.closing {
            return Err(SubmitError::Closed);
        }
        let too_many_bytes = !waiting.batches.is_empty() && waiting.bytes + bytes > QUEUE_BYTES_MAX;
        if waiting.unreported >= QUEUE_BATCHES_MAX || too_many_bytes {
            return Err(SubmitError::Full { batches: waiting.unreported });
        }
        waiting.batches.push_back(Batch { id, writes, bytes });
        waiting.bytes += bytes;
        waiting.unreported += 1;
        self.changed.notify_one();
        Ok(())
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closing = true;
        self.changed.notify_one();
    }

    pub(super) fn unreported(&self) -> usize {
        self.waiting.lock().unreported
    }

    /// Waits for batches, but not past [`REPORT_RETRY`] where reports are due.
    fn take(&self, reports_due: bool) -> Found {
        let mut waiting = self.waiting.lock();
        while waiting.batches.is_empty() {
            if waiting.closing {
                return Found::Closed;
            }
            if !reports_due {
                self.changed.wait(&mut waiting);
            } else if self.changed.wait_for(&mut waiting, REPORT_RETRY).timed_out() {
                return Found::Nothing;
            }
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = waiting.batches.front()
            && (taken.is_empty() || bytes + next.bytes <= COMMIT_BYTES_MAX)
        {
            bytes += next.bytes;
            taken.extend(waiting.batches.pop_front());
        }
        waiting.bytes -= bytes;
        Found::Batches(taken)
    }

    fn fail(&self, message: &str) {
        let mut waiting = self.waiting.lock();
        waiting.failed = Some(message.to_owned());
        waiting.batches.clear();
        waiting.bytes = 0;
    }
}

pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) queue: Arc<Queue>,
    pub(super) counters: Arc<Counters>,
    pub(super) events: mpsc::Sender<StoreEvent>,
    pub(super) observer: Option<StoreObserver>,
}

impl Writer {
    /// The life of the thread: until the queue is closed and empty, or a commit fails.
    pub(super) fn run(self) {
        let mut durable = Vec::new();
        loop {
            self.observe(StoreStep::Ready);
            match self.queue.take(!durable.is_empty()) {
                Found::Batches(batches) => {
                    let ids: Vec<_> = batches.iter().map(|batch| batch.id).collect();
                    self.observe(StoreStep::Taken(ids.clone()));
                    if let Err(message) = self.commit(&batches) {
                        self.queue.fail(&message);
                        tracing::error!(%message, "the store has failed");
                        self.report_at_last(&mut durable);
                        self.send_at_last(StoreEvent::Failed(message));
                        return;
                    }
                    self.counters.committed(ids.len());
                    durable.extend(ids);
                    self.report(&mut durable);
                }
                Found::Nothing => self.report(&mut durable),
                Found::Closed => {
                    self.report_at_last(&mut durable);
                    return;
                }
            }
        }
    }

    /// One transaction, one commit. When this returns `Ok`, all batches are on the disk.
    fn commit(&self, batches: &[Batch]) -> Result<(), String> {
        // A panic of the database's (on a file that was altered under it) is a failed commit like any other.
        let result = catch_unwind(AssertUnwindSafe(|| format::apply(&self.database, batches.iter().flat_map(|batch| &batch.writes))));
        result.map_err(|_| format::CONTRADICTION.to_owned())?.map_err(|error| match error {
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                format!("the disk is full: make room on it first; {error}")
            }
            error => error.to_string(),
        })
    }

    /// Says what is durable, if there is room; otherwise it is said with what becomes durable next.
    fn report(&self, durable: &mut Vec<PersistId>) {
        if durable.is_empty() {
            return;
        }
        match self.events.try_reserve() {
            Ok(permit) => {
                self.observe(StoreStep::Reporting(durable.clone()));
                self.queue.waiting.lock().unreported -= durable.len();
                permit.send(StoreEvent::Persisted(std::mem::take(durable)));
            }
            Err(TrySendError::Full(())) => {}
            // Nobody listens: the store goes on for whoever only writes.
            Err(TrySendError::Closed(())) => {
                self.queue.waiting.lock().unreported -= durable.len();
                durable.clear();
            }
        }
    }

    fn report_at_last(&self, durable: &mut Vec<PersistId>) {
        let give_up = Instant::now() + CLOSE_REPORT_WAIT;
        self.report(durable);
        while !durable.is_empty() && Instant::now() < give_up {
            std::thread::sleep(REPORT_RETRY);
            self.report(durable);
        }
    }

    /// Waits for room as long as the receiver is there and the store is not closed: `Failed` must not get lost.
    fn send_at_last(&self, event: StoreEvent) {
        let mut event = event;
        loop {
            match self.events.try_send(event) {
                Ok(()) | Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(_)) if self.queue.waiting.lock().closing => return,
                Err(TrySendError::Full(back)) => event = back,
            }
            std::thread::sleep(REPORT_RETRY);
        }
    }

    fn observe(&self, step: StoreStep) {
        if let Some(observer) = &self.observer {
            observer(&step);
        }
    }
}
