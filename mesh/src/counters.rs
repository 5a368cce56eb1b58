//! What the task counts, so that nothing is dropped in silence.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was counted since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct MeshCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl MeshCounters {
            /// Every counter with its name, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        /// The counters themselves. They order nothing: each is only ever read as a number.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> MeshCounters {
                MeshCounters { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Commands refused because the queue was full.
    commands_refused,
    /// Requests sent.
    requests_sent,
    /// Requests of this node that got an answer.
    requests_answered,
    /// Requests of this node that failed, for whatever reason but overload.
    requests_failed,
    /// Requests of this node that were not sent because too many were under way.
    requests_overloaded,
    /// Requests of others that were handed over.
    inbound_received,
    /// Requests of others dropped because too many waited for an answer, or the event receiver was too slow.
    inbound_dropped,
    /// Answers that came too late, or whose asker had gone.
    inbound_answers_late,
    /// Frames of others refused while they were read: longer than the limit.
    frames_too_long,
    /// Frames of others refused while they were read: too many bytes were in memory.
    frames_overloaded,
    /// Lookups and record reads begun.
    lookups,
    /// Peers asked by lookups that have ended.
    lookup_questions,
    /// Lookups and record reads that had not ended after their time: what they had by then was the result.
    lookups_cut_short,
    /// Lookups and record reads that were not begun because too many operations were under way: their result is empty.
    lookups_overloaded,
    /// Gossip messages handed over.
    gossip_received,
    /// Gossip messages ignored because too many awaited judgement, or the event receiver was too slow.
    gossip_dropped,
    /// Gossip messages judged valid and passed on.
    gossip_accepted,
    /// Gossip messages judged invalid.
    gossip_rejected,
    /// Verdicts that came too late, or for no message at all.
    gossip_judged_late,
    /// Messages published.
    gossip_published,
    /// Messages that could not be published.
    gossip_unpublished,
    /// Times that a neighbour was too slow for what it was sent.
    gossip_slow_peers,
    /// Connections established.
    connections_opened,
    /// Connections refused at a limit, in either direction.
    connections_refused,
    /// Connections closed because a ping had no answer.
    connections_silent,
    /// Dials that failed.
    dials_failed,
    /// Peers taken out of the routing table after repeated failures.
    peers_evicted,
    /// PUT_VALUE requests that were acknowledged: they carried exactly what was here.
    kad_puts_same,
    /// Events other than results that did not fit into the event queue.
    events_dropped,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}
