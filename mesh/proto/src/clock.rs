//! By how much is this node's clock off? (docs/spec/quorum.md#clocks)
//!
//! Each answered probe says what a peer's clock showed somewhere between our question and its answer (Cristian's algorithm). The median of
//! the peers is *mesh time*: as long as fewer than half of them lie, it lies between what two honest clocks show. Nothing here steps a clock.

use std::collections::BTreeMap;

use persona_fragments::{Class, PeerKey};

use crate::{holder::clock_allowance_ms, time::Now};

/// Before so many peers have answered nothing is believed: with three, one may lie.
pub const CLOCK_PEERS_NEEDED: usize = 3;

/// Peers whose answers are kept. When there are more, the oldest answer makes room.
const SAMPLES_MAX: usize = 64;

/// An answer counts for so long: five of the pauses in which a peer is asked that holds nothing.
const SAMPLE_US: u64 = 300_000_000;

/// An answer that took longer says too little: it may be wrong by half of that.
const ROUND_TRIP_US_MAX: u64 = 500_000;

/// What is known of the peers' clocks.
#[derive(Debug, Default)]
pub struct PeerClocks {
    samples: BTreeMap<PeerKey, Sample>,
    /// Median and doubt of the samples, if there are enough.
    believed: Option<(i64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// What the peer's clock showed, less our monotonic clock: so that a step of our own wall clock changes nothing here.
    ahead_of_mono_ms: i64,
    /// By how much that can be wrong.
    doubt_ms: u64,
    at_us: u64,
}

impl PeerClocks {
    /// A peer's clock showed `clock_ms` at some moment between the two. Returns whether that was short enough to say anything.
    pub fn record(&mut self, peer: PeerKey, asked: Now, clock_ms: u64, answered: Now) -> bool {
        let round_trip_us = answered.mono_us.saturating_sub(asked.mono_us);
        if round_trip_us > ROUND_TRIP_US_MAX {
            return false;
        }
        let middle_ms = (asked.mono_us + round_trip_us / 2) / 1000;
        let ahead_of_mono_ms = i64::try_from(clock_ms).unwrap_or(i64::MAX).saturating_sub(middle_ms as i64);
        let sample = Sample { ahead_of_mono_ms, doubt_ms: round_trip_us / 2000 + 1, at_us: answered.mono_us };
        if self.samples.len() >= SAMPLES_MAX && !self.samples.contains_key(&peer) {
            let oldest = self.samples.iter().min_by_key(|(_, sample)| sample.at_us).map(|(peer, _)| *peer);
            oldest.and_then(|peer| self.samples.remove(&peer));
        }
        self.samples.insert(peer, sample);
        self.refresh(answered);
        true
    }

    /// Time has passed: old answers no longer count. Call about once a second.
    pub fn refresh(&mut self, now: Now) {
        self.samples.retain(|_, sample| now.mono_us < sample.at_us.saturating_add(SAMPLE_US));
        let mut sorted: Vec<i64> = self.samples.values().map(|sample| sample.ahead_of_mono_ms).collect();
        sorted.sort_unstable();
        let doubt_ms = self.samples.values().map(|sample| sample.doubt_ms).max().unwrap_or(0);
        // The lower one of two in the middle: a mean could lie outside of what any honest clock shows, for the other may be a lie.
        self.believed = (sorted.len() >= CLOCK_PEERS_NEEDED).then(|| (sorted[(sorted.len() - 1) / 2], doubt_ms));
    }

    /// Peers whose answers count.
    pub fn peers(&self) -> usize {
        self.samples.len()
    }

    /// By how many milliseconds mesh time is ahead of this node's clock; `None` while too few peers have answered.
    pub fn offset_ms(&self, now: Now) -> Option<i64> {
        let (ahead_of_mono_ms, _) = self.believed?;
        let own_ms = i64::try_from(now.wall_ms).unwrap_or(i64::MAX).saturating_sub((now.mono_us / 1000) as i64);
        Some(ahead_of_mono_ms.saturating_sub(own_ms))
    }

    /// Whether this node's clock is certainly off by more than the allowance of a class.
    pub fn is_off(&self, class: Class, now: Now) -> bool {
        let doubt_ms = self.believed.map_or(0, |(_, doubt_ms)| doubt_ms);
        self.offset_ms(now).is_some_and(|offset| offset.unsigned_abs() > clock_allowance_ms(class) + doubt_ms)
    }

    /// The same instant in mesh time, where this node's clock is off by more than the smallest allowance; else as its own clock has it.
    pub fn mesh_time(&self, now: Now) -> Now {
        match self.offset_ms(now).filter(|_| self.is_off(Class::Active, now)) {
            Some(offset_ms) => Now { wall_ms: now.wall_ms.saturating_add_signed(offset_ms), ..now },
            None => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha8Rng;
    use rand_core::{Rng as _, SeedableRng as _};

    use super::*;

    const NOW: Now = Now { wall_ms: 1_700_000_000_000, mono_us: 5_000_000 };

    fn peer(number: u8) -> PeerKey {
        PeerKey([number; 32])
    }

    fn answer(clocks: &mut PeerClocks, number: u8, ahead_ms: i64, round_trip_ms: u64) {
        let clock_ms = NOW.plus_ms(round_trip_ms / 2).wall_ms.saturating_add_signed(ahead_ms);
        clocks.record(peer(number), NOW, clock_ms, NOW.plus_ms(round_trip_ms));
    }

    #[test]
    fn two_peers_are_not_believed_and_three_are() {
        let mut clocks = PeerClocks::default();
        answer(&mut clocks, 1, 60_000, 10);
        answer(&mut clocks, 2, 60_000, 10);
        assert_eq!((clocks.offset_ms(NOW), clocks.mesh_time(NOW)), (None, NOW));
        answer(&mut clocks, 2, 60_000, 10);
        assert_eq!(clocks.offset_ms(NOW), None, "one peer twice is one peer");
        answer(&mut clocks, 3, 60_000, 10);
        assert_eq!(clocks.offset_ms(NOW), Some(60_000));
        assert_eq!(clocks.mesh_time(NOW).wall_ms, NOW.wall_ms + 60_000);
        assert!(clocks.is_off(Class::Core, NOW) && clocks.is_off(Class::Active, NOW));
    }

    #[test]
    fn a_clock_within_the_allowance_or_the_doubt_is_left_alone() {
        for (ahead_ms, round_trip_ms, active, core) in [
            (1_900, 10, false, false),
            (2_100, 10, true, false),
            (2_100, 400, false, false),
            (-9_900, 10, true, false),
            (-10_100, 10, true, true),
        ] {
            let mut clocks = PeerClocks::default();
            (1..=3).for_each(|number| answer(&mut clocks, number, ahead_ms, round_trip_ms));
            assert_eq!((clocks.is_off(Class::Active, NOW), clocks.is_off(Class::Core, NOW)), (active, core), "{ahead_ms}");
            assert_eq!(clocks.mesh_time(NOW) == NOW, !active);
        }
    }

    #[test]
    fn an_answer_that_took_long_or_is_old_does_not_count() {
        let mut clocks = PeerClocks::default();
        (1..=3).for_each(|number| answer(&mut clocks, number, 60_000, 501));
        assert_eq!(clocks.peers(), 0);
        (1..=3).for_each(|number| answer(&mut clocks, number, 60_000, 10));
        clocks.refresh(NOW.plus_ms(SAMPLE_US / 1000 + 11));
        assert_eq!((clocks.peers(), clocks.offset_ms(NOW)), (0, None));
    }

    #[test]
    fn a_step_of_the_own_clock_is_seen_at_once() {
        let mut clocks = PeerClocks::default();
        (1..=3).for_each(|number| answer(&mut clocks, number, 0, 10));
        let stepped = Now { wall_ms: NOW.wall_ms - 3_600_000, ..NOW };
        assert_eq!(clocks.offset_ms(stepped), Some(3_600_000), "by the answers from before the step");
        assert_eq!(clocks.mesh_time(stepped), NOW);
    }

    #[test]
    fn liars_short_of_half_never_move_the_median_out_of_the_range_of_the_honest() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..20_000 {
            let peers = 3 + rng.next_u64() % 20;
            let liars = rng.next_u64() % peers.div_ceil(2);
            let mut clocks = PeerClocks::default();
            let mut honest = Vec::new();
            for number in 0..peers {
                let ahead_ms = match number < liars {
                    true => (rng.next_u64() >> (rng.next_u64() % 40)) as i64 / 4,
                    false => (rng.next_u64() % 4_000) as i64 - 2_000,
                };
                if number >= liars {
                    honest.push(ahead_ms);
                }
                answer(&mut clocks, number as u8, ahead_ms, 0);
            }
            let offset_ms = clocks.offset_ms(NOW).expect("enough answered");
            let (least, most) = (honest.iter().min().expect("some"), honest.iter().max().expect("some"));
            assert!((*least..=*most).contains(&offset_ms), "{liars} of {peers} lie, and {offset_ms} is not in {least}..={most}");
        }
    }

    #[test]
    fn no_more_peers_are_kept_than_allowed() {
        let mut clocks = PeerClocks::default();
        (0..=255).for_each(|number| answer(&mut clocks, number, i64::from(number), 10));
        assert_eq!(clocks.peers(), SAMPLES_MAX);
    }
}
