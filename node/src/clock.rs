//! The node's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use persona_mesh_proto::Now;
use rustix::time::{ClockId, clock_gettime};

/// What time it is. The monotonic half goes on while the machine sleeps (`CLOCK_BOOTTIME`), so that a lease does not outlive a nap.
pub(crate) fn now() -> Now {
    let boot = clock_gettime(ClockId::Boottime);
    let mono_us = boot.tv_sec as u64 * 1_000_000 + boot.tv_nsec as u64 / 1_000;
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    Now { wall_ms, mono_us }
}
