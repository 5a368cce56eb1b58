//! Which peers become the holders of a section: a pure choice, the same for the same arguments (docs/spec/quorum.md#placement).

use persona_fragments::{PeerKey, SectionKey};
use sha2::{Digest as _, Sha256};

/// Who has stayed longer is likelier to go on staying: from this age on a peer goes before younger ones, and again from four times, 16 times
/// and 64 times this age.
pub const AGED_MS: u64 = 3_600_000;

/// Ages beyond `AGED_MS * 4^(AGES - 1)` are not told apart.
const AGES: u32 = 4;

/// A peer that could hold a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub peer: PeerKey,
    /// For how long it has been connected to this node without a break, in milliseconds; `None` if it is not connected.
    pub connected_ms: Option<u64>,
    /// Where it is: its /24 (IPv4) or /48 (IPv6), or an operator's tag. `None` is exempt from the diversity rule.
    pub prefix: Option<[u8; 8]>,
}

/// Chooses up to `wanted` holders, by shard index; fewer if there are not that many.
///
/// A holder of the `previous` set that is still a candidate stays, at its index if the number of holders is the same, so that renewing
/// costs no shard bytes. The others are the best of the rest: connected ones first, those that have been connected for long before others, then the closest to the section's
/// Kademlia record key. At most `diversity` of them share a prefix. `exclude` is never chosen: the owner's own node would die together
/// with what it protects.
pub fn choose_holders(
    key: &SectionKey,
    candidates: &[Candidate],
    previous: &[PeerKey],
    exclude: &[PeerKey],
    wanted: u8,
    diversity: Option<u8>,
) -> Vec<PeerKey> {
    let wanted = usize::from(wanted);
    let mut chosen: Vec<&Candidate> = Vec::with_capacity(wanted);
    let fits = |chosen: &[&Candidate], candidate: &Candidate| {
        let twins = chosen.iter().filter(|other| other.prefix.is_some() && other.prefix == candidate.prefix).count();
        let free = !chosen.iter().any(|other| other.peer == candidate.peer) && !exclude.contains(&candidate.peer);
        free && diversity.is_none_or(|most| twins < usize::from(most))
    };
    let candidate_of = |peer: &PeerKey| candidates.iter().find(|candidate| candidate.peer == *peer);
    for candidate in previous.iter().filter_map(candidate_of) {
        if chosen.len() < wanted && fits(&chosen, candidate) {
            chosen.push(candidate);
        }
    }
    let target: [u8; 32] = Sha256::digest(key.to_kad_key()).into();
    let rank = |candidate: &Candidate| (std::cmp::Reverse(candidate.connected_ms.map(age)), distance(&target, &candidate.peer));
    let mut rest: Vec<(_, &Candidate)> = candidates.iter().map(|candidate| (rank(candidate), candidate)).collect();
    rest.sort_unstable_by_key(|(rank, _)| *rank);
    let kept = chosen.len();
    for (_, candidate) in rest {
        if chosen.len() < wanted && fits(&chosen, candidate) {
            chosen.push(candidate);
        }
    }
    let (stayed, new) = chosen.split_at(kept);
    if chosen.len() != previous.len() {
        return chosen.iter().map(|candidate| candidate.peer).collect();
    }
    let mut new = new.iter();
    let stays = |peer: &PeerKey| stayed.iter().any(|candidate| candidate.peer == *peer);
    let at_index = |peer: &PeerKey| if stays(peer) { Some(*peer) } else { Some(new.next()?.peer) };
    previous.iter().map_while(at_index).collect()
}

/// [`choose_holders`] for a section in which no more than `f` holders share a prefix, `f` being that of the number of holders there are then:
/// whoever owns one network is one of the tolerated liars, and cannot be more (docs/spec/quorum.md#placement). With fewer than four holders
/// no liar is tolerated, and each prefix has one.
pub fn choose_diverse_holders(
    key: &SectionKey,
    candidates: &[Candidate],
    previous: &[PeerKey],
    exclude: &[PeerKey],
    wanted: u8,
) -> Vec<PeerKey> {
    let tolerated = |holders: u8| (holders.saturating_sub(1) / 3).max(1);
    let mut most = tolerated(wanted);
    loop {
        let chosen = choose_holders(key, candidates, previous, exclude, wanted, Some(most));
        let fits = tolerated(chosen.len() as u8);
        if fits >= most {
            return chosen;
        }
        most = fits; // fewer holders tolerate fewer liars
    }
}

/// How a peer that has been connected for so long is preferred: 0 for the young, and one more for each of the ages that are told apart.
pub fn age(connected_ms: u64) -> u32 {
    (connected_ms / AGED_MS).checked_ilog(4).map_or(0, |ages| (ages + 1).min(AGES))
}

/// Kademlia's: the XOR of the SHA-256 of the record key and of the peer id's bytes.
fn distance(target: &[u8; 32], peer: &PeerKey) -> [u8; 32] {
    let mut distance: [u8; 32] = Sha256::digest(peer.peer_id_bytes()).into();
    for (byte, other) in distance.iter_mut().zip(target) {
        *byte ^= other;
    }
    distance
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SectionKey = SectionKey([7; 32]);

    fn peer(number: u8) -> PeerKey {
        PeerKey([number; 32])
    }

    fn candidates(count: u8) -> Vec<Candidate> {
        (1..=count).map(|number| Candidate { peer: peer(number), connected_ms: Some(0), prefix: None }).collect()
    }

    fn choose(candidates: &[Candidate], previous: &[PeerKey], wanted: u8) -> Vec<PeerKey> {
        choose_holders(&KEY, candidates, previous, &[], wanted, None)
    }

    #[test]
    fn the_closest_are_chosen_whatever_the_order_of_candidates() {
        let mut all = candidates(20);
        let chosen = choose(&all, &[], 7);
        assert_eq!(chosen.len(), 7);
        let target: [u8; 32] = Sha256::digest(KEY.to_kad_key()).into();
        let furthest = chosen.iter().map(|peer| distance(&target, peer)).max().expect("seven");
        let closer = all.iter().filter(|candidate| distance(&target, &candidate.peer) <= furthest).count();
        assert_eq!(closer, 7);
        all.reverse();
        assert_eq!(choose(&all, &[], 7), chosen);
    }

    #[test]
    fn who_stays_keeps_its_index_and_holes_are_filled() {
        let all = candidates(20);
        let before = choose(&all, &[], 7);
        let alive: Vec<Candidate> = all.iter().filter(|candidate| ![before[1], before[4]].contains(&candidate.peer)).cloned().collect();
        let after = choose(&alive, &before, 7);
        for index in [0, 2, 3, 5, 6] {
            assert_eq!(after[index], before[index]);
        }
        assert!(!before.contains(&after[1]) && !before.contains(&after[4]) && after[1] != after[4]);
        assert_eq!(choose(&all, &before, 4), before[..4]);
    }

    #[test]
    fn excluded_and_repeated_peers_are_never_chosen() {
        let mut all = candidates(5);
        all.extend(candidates(5));
        let chosen = choose_holders(&KEY, &all, &[peer(1), peer(1)], &[peer(2)], 10, None);
        assert_eq!(chosen.len(), 4);
        assert!(!chosen.contains(&peer(2)));
        let distinct: std::collections::BTreeSet<&PeerKey> = chosen.iter().collect();
        assert_eq!(distinct.len(), 4);
        assert!(choose_holders(&KEY, &all, &[peer(2)], &[peer(2)], 1, None)[0] != peer(2));
    }

    #[test]
    fn no_more_than_the_diversity_rule_allows_share_a_prefix() {
        let mut all = candidates(10);
        for candidate in &mut all[..6] {
            candidate.prefix = Some([1; 8]);
        }
        let previous: Vec<PeerKey> = all[..4].iter().map(|candidate| candidate.peer).collect();
        let chosen = choose_holders(&KEY, &all, &previous, &[], 7, Some(2));
        assert_eq!(chosen.len(), 6, "two of the six that share a prefix, and the four others");
        assert_eq!(chosen[..2], previous[..2]);
    }

    #[test]
    fn whoever_owns_one_network_never_owns_more_holders_than_may_lie() {
        for (count, in_one) in [(20, 12), (12, 9), (8, 6), (10, 10), (5, 3), (3, 2), (16, 4)] {
            let mut all = candidates(count);
            for candidate in &mut all[..in_one] {
                candidate.prefix = Some([1; 8]);
            }
            let chosen = choose_diverse_holders(&KEY, &all, &[], &[], 10);
            let twins = chosen.iter().filter(|peer| all[..in_one].iter().any(|candidate| candidate.peer == **peer)).count();
            assert!(twins <= ((chosen.len() - 1) / 3).max(1), "{twins} of {} share a network", chosen.len());
            assert!(chosen.len() >= (usize::from(count) - in_one).min(10), "and nobody else is left out");
            // The same holds where they were chosen before the rule was there.
            let before: Vec<PeerKey> = all[..in_one.min(10)].iter().map(|candidate| candidate.peer).collect();
            let again = choose_diverse_holders(&KEY, &all, &before, &[], 10);
            let twins = again.iter().filter(|peer| before.contains(peer)).count();
            assert!(twins <= ((again.len() - 1) / 3).max(1));
        }
    }

    #[test]
    fn connected_go_before_unconnected_and_aged_before_young() {
        let mut all = candidates(9);
        for candidate in &mut all[..3] {
            candidate.connected_ms = None;
        }
        for candidate in &mut all[3..6] {
            candidate.connected_ms = Some(AGED_MS);
        }
        let chosen = choose(&all, &[], 7);
        assert!(chosen[..3].iter().all(|peer| all[3..6].iter().any(|aged| aged.peer == *peer)));
        assert!(chosen[3..6].iter().all(|peer| all[6..].iter().any(|young| young.peer == *peer)));
        assert!(all[..3].iter().any(|unconnected| unconnected.peer == chosen[6]));
    }

    #[test]
    fn each_age_goes_before_the_younger_ones_and_ages_end() {
        let hours = [0, 1, 3, 4, 15, 16, 63, 64, 255, 256, 10_000];
        assert_eq!(hours.map(|hours| age(hours * AGED_MS)), [0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]);
        assert_eq!(age(AGED_MS - 1), 0);
        let mut all = candidates(11);
        for (candidate, hours) in all.iter_mut().zip(hours) {
            candidate.connected_ms = Some(hours * AGED_MS);
        }
        let oldest: std::collections::BTreeSet<PeerKey> = choose(&all, &[], 4).into_iter().collect();
        assert_eq!(oldest, all[7..].iter().map(|candidate| candidate.peer).collect());
    }
}
