//! Time as an argument.

/// What time it is: the one value that every machine here is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Milliseconds since the Unix epoch, by this node's clock: compared with what others signed.
    pub wall_ms: u64,
    /// Microseconds since some fixed instant, never going back, counting while suspended: deadlines of this node's own.
    pub mono_us: u64,
}

impl Now {
    /// The same instant `millis` later, on both clocks.
    #[must_use]
    pub const fn plus_ms(self, millis: u64) -> Self {
        Self { wall_ms: self.wall_ms + millis, mono_us: self.mono_us + millis * 1000 }
    }
}
