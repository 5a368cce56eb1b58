//! How much room the state directory's disk has left (docs/spec/store.md#room).
//!
//! A write that finds no room ends the store, and with it the process. So the node stops taking on new things while there is still room for
//! what it must go on writing: floors, renewals, acknowledgements, messages that arrive.

use std::path::{Path, PathBuf};

use crate::store::{COMMIT_BYTES_MAX, QUEUE_BYTES_MAX};

/// With less room than this the disk counts as nearly full. On a small disk it is [`RESERVE_SHARE`] of it.
const RESERVE_BYTES: u64 = 128 << 20;

// What waits for the writer already, and one commit's copies of pages, still fit.
const _: () = assert!(RESERVE_BYTES as usize >= QUEUE_BYTES_MAX + 2 * COMMIT_BYTES_MAX);

/// Of a disk of less than 1 GiB, an eighth is kept free.
const RESERVE_SHARE: u64 = 8;

/// It counts as nearly full until there is half as much again: a node does not change its mind with every renewal.
const fn enough(reserve: u64) -> u64 {
    reserve + reserve / 2
}

/// How often the system is asked.
const CHECK_US: u64 = 5_000_000;

/// Whether the disk is nearly full, as of the last time it was asked.
pub(crate) struct Room {
    dir: PathBuf,
    low: bool,
    next_us: u64,
}

impl Room {
    /// The disk with this directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), low: false, next_us: 0 }
    }

    /// Looks, if it is time to; `Some` where the answer is another than before.
    pub(crate) fn changed(&mut self, now_us: u64) -> Option<bool> {
        if now_us < self.next_us {
            return None;
        }
        self.next_us = now_us + CHECK_US;
        // A system that does not say is one that is not full.
        let stat = rustix::fs::statvfs(&self.dir).ok()?;
        let before = self.low;
        self.low = is_low(before, stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
        (self.low != before).then_some(self.low)
    }
}

fn is_low(before: bool, free_bytes: u64, disk_bytes: u64) -> bool {
    let reserve = RESERVE_BYTES.min(disk_bytes / RESERVE_SHARE);
    free_bytes < if before { enough(reserve) } else { reserve }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_nearly_full_below_the_reserve_and_until_there_is_half_as_much_again() {
        const MIB: u64 = 1 << 20;
        let large = 1 << 40;
        assert!(!is_low(false, 128 * MIB, large));
        assert!(is_low(false, 128 * MIB - 1, large));
        assert!(is_low(true, 192 * MIB - 1, large));
        assert!(!is_low(true, 192 * MIB, large));
        // An eighth of a small one.
        assert!(!is_low(false, 4 * MIB, 32 * MIB));
        assert!(is_low(false, 4 * MIB - 1, 32 * MIB));
    }

    #[test]
    fn the_system_is_asked_now_and_then() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut room = Room::new(directory.path());
        room.low = true;
        assert_eq!(room.changed(1_000), Some(false), "tests run where there is room");
        room.low = true;
        assert_eq!(room.changed(2_000), None);
        assert_eq!(room.changed(1_000 + CHECK_US), Some(false));
    }
}
