//! Known-bad variants of the protocol, for whoever tests the tests: each leaves out one of its rules.
//!
//! With the feature `mutants`, which only the simulator asks for, a thread can switch one on for a while. Without it [`on`] is a constant,
//! and the compiler removes what asks for it: `persona` has no way to break a rule.

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// An atomic get does not write back.
    NoWriteBack,
    /// COMMIT is not sent to older holder sets.
    OlderSetsUntold,
    /// A holder drops older versions when it sees a newer PREPARE.
    DropOnPrepare,
    /// A quorum is `n - f - 1`.
    SmallQuorum,
    /// A holder keeps one version: the one it was told last.
    KeepOneVersion,
    /// A holder acks before its disk has synced.
    AckBeforeSync,
    /// A reader does not encode again what it decoded.
    NoReencode,
    /// A reader counts `Recovering` as an answer.
    CountRecovering,
    /// A reader accepts what has expired.
    AcceptExpired,
    /// A holder acks a shard that it has not got.
    AckWithoutShard,
    /// A holder lets lower hosts go on.
    NoFence,
    /// A holder acks two manifests of one version.
    TwoAcks,
    /// One holder counts twice in a certificate.
    CountTwice,
    /// A reader's floor does not survive its process.
    FloorForgotten,
    /// A manifest need not belong to its section's key.
    AnyKey,
    /// A node that is no holder confirms a certificate and does not keep it.
    NoForwardPointer,
    /// A renewal is committed without telling anybody the certificate.
    RenewalUntold,
    /// A holder goes on serving what has expired.
    ServeExpired,
    /// A writer counts a hint: a confirmation by a peer that is told the head so that others find it, and holds nothing.
    CountHint,
    /// A holder that lost its store answers as if it had never had one.
    ForgetLoss,
    /// A holder acks what it promised never to ack.
    BreakNever,
    /// A put whose older holder set could not be told does not say so.
    StaleUnsaid,
    /// A holder stores and acks whatever bytes come as its shard.
    AnyShard,
    /// A handover counts with `n - f - 1` signatures.
    HandoverShort,
    /// A holder does not name the sets that it has signed for.
    HandoverForgotten,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: [Self; 25] = [
        Self::NoWriteBack,
        Self::OlderSetsUntold,
        Self::DropOnPrepare,
        Self::SmallQuorum,
        Self::KeepOneVersion,
        Self::AckBeforeSync,
        Self::NoReencode,
        Self::CountRecovering,
        Self::AcceptExpired,
        Self::AckWithoutShard,
        Self::NoFence,
        Self::TwoAcks,
        Self::CountTwice,
        Self::FloorForgotten,
        Self::AnyKey,
        Self::NoForwardPointer,
        Self::RenewalUntold,
        Self::ServeExpired,
        Self::CountHint,
        Self::ForgetLoss,
        Self::BreakNever,
        Self::StaleUnsaid,
        Self::AnyShard,
        Self::HandoverShort,
        Self::HandoverForgotten,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` with a mutant switched on in this thread.
#[cfg(feature = "mutants")]
pub fn with<T>(mutant: Option<Mutant>, f: impl FnOnce() -> T) -> T {
    /// Switches it off again, also when `f` panics.
    struct Off(Option<Mutant>);
    impl Drop for Off {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _off = Off(ACTIVE.replace(mutant));
    f()
}

/// Whether a rule is left out.
#[cfg(feature = "mutants")]
pub fn on(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Whether a rule is left out: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}
