//! Lookups as Kademlia does them, without a network: whom a node asks, whom it finds, and what that costs.
//!
//! Every node has a table of 256 buckets of up to 20 peers, by the length of the prefix that their ids share with its own. A lookup goes as
//! in rust-libp2p with the settings of `mesh/src/behaviour.rs`: three paths that ask no peer twice, one question at a time on each, until
//! the 20 closest that a path knows of have answered. The dead do not answer. Liars name liars. Sybils are liars whose ids were ground
//! until they were close to a key. What it costs is compared with real nodes in docs/scale.md.

use std::collections::BTreeMap;

use chacha20::ChaCha8Rng;
use persona_fragments::PeerKey;
use sha2::{Digest as _, Sha256};

use crate::plan::below;

/// Peers in a bucket, in an answer, and in a result: Kademlia's k.
pub const BUCKET_PEERS_MAX: usize = 20;

/// Paths of a lookup: Kademlia's alpha.
pub const PATHS: usize = 3;

/// Bytes of a question: the key, a peer id's length, and protobuf's frame.
pub const QUESTION_BYTES: usize = 44;

/// Bytes of one peer in an answer: id, an address or two, flags, protobuf's frames.
pub const PEER_BYTES: usize = 38 + 2 * 12 + 10;

/// The first 128 bits of an id: two of twenty thousand nodes share them never.
type Id = u128;

/// What a peer does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It answers with the closest that it knows.
    Well,
    /// It does not answer.
    Dead,
    /// It answers with the closest liars, as if it knew nobody else. A Sybil is one of them that chose its id.
    Lying,
}

/// Who knows whom.
pub struct Overlay {
    ids: Vec<Id>,
    /// Nodes by id.
    order: Vec<u32>,
    tables: Vec<Vec<u32>>,
    /// How each node behaves.
    pub conditions: Vec<Condition>,
}

/// What a lookup found, and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The closest that answered, the closest first; at most [`BUCKET_PEERS_MAX`].
    pub peers: Vec<usize>,
    /// How often the longest chain of questions waited for an answer.
    pub hops: usize,
    /// Questions.
    pub questions: usize,
    /// Questions that were answered.
    pub answers: usize,
    /// Bytes of both.
    pub bytes: usize,
}

/// Where a peer id stands in the space of Kademlia's keys.
pub fn id_of(peer: &PeerKey) -> u128 {
    prefix(&Sha256::digest(peer.peer_id_bytes()).into())
}

/// Where a record key does.
pub fn target_of(record_key: &[u8]) -> u128 {
    prefix(&Sha256::digest(record_key).into())
}

fn prefix(hash: &[u8; 32]) -> u128 {
    u128::from_be_bytes(*hash.first_chunk().expect("32 bytes"))
}

impl Overlay {
    /// Everybody knows up to 20 of everyone at each distance, drawn at random: a mesh in which nodes have met for a while.
    pub fn of(ids: Vec<u128>, rng: &mut ChaCha8Rng) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_unstable_by_key(|node| ids[*node as usize]);
        let sorted: Vec<Id> = order.iter().map(|node| ids[*node as usize]).collect();
        let table = |id: &Id| {
            let mut table = Vec::new();
            let mut range = (0, sorted.len());
            for bit in 0..Id::BITS {
                // Those that share `bit` bits with it are in `range`; half of them differ in the next one.
                let mask: Id = 1 << (Id::BITS - 1 - bit);
                let middle = range.0 + sorted[range.0..range.1].partition_point(|other| other & mask == 0);
                let (near, far) =
                    if id & mask == 0 { ((range.0, middle), (middle, range.1)) } else { ((middle, range.1), (range.0, middle)) };
                table.extend(some_of(&order[far.0..far.1], rng));
                range = near;
                if near.1 - near.0 <= 1 {
                    break;
                }
            }
            table
        };
        let tables = ids.iter().map(table).collect();
        let conditions = vec![Condition::Well; ids.len()];
        Self { ids, order, tables, conditions }
    }

    /// Peers that a node knows.
    pub fn known_to(&self, node: usize) -> usize {
        self.tables[node].len()
    }

    /// Those closest to a target among everybody, the closest first: what a perfect lookup finds.
    pub fn closest(&self, target: u128, most: usize) -> Vec<usize> {
        nearest(self.order.iter().map(|node| *node as usize), &self.ids, target, most)
    }

    /// What a peer answers.
    fn answer(&self, peer: usize, asker: usize, target: u128) -> Option<Vec<usize>> {
        let others = |node: &usize| *node != asker;
        match self.conditions[peer] {
            Condition::Dead => None,
            Condition::Well => {
                let known = self.tables[peer].iter().map(|node| *node as usize).filter(others);
                Some(nearest(known, &self.ids, target, BUCKET_PEERS_MAX))
            }
            Condition::Lying => {
                let liars = (0..self.ids.len()).filter(|node| self.conditions[*node] == Condition::Lying && *node != peer);
                Some(nearest(liars.filter(others), &self.ids, target, BUCKET_PEERS_MAX))
            }
        }
    }

    /// Looks up the peers closest to a target.
    pub fn lookup(&self, asker: usize, target: u128) -> Found {
        let mut found = Found::default();
        let start = nearest(self.tables[asker].iter().map(|node| *node as usize), &self.ids, target, BUCKET_PEERS_MAX);
        let mut paths: [Path; PATHS] = Default::default();
        for (number, peer) in start.into_iter().enumerate() {
            paths[number % PATHS].learn(self.ids[peer] ^ target, peer);
        }
        // Whom any path has asked, and whether he answered.
        let mut asked: BTreeMap<usize, Option<bool>> = BTreeMap::new();
        loop {
            // Questions of one round travel together.
            let mut round = Vec::new();
            for (number, path) in paths.iter_mut().enumerate() {
                while let Some(peer) = path.next() {
                    match asked.get(&peer) {
                        None => {
                            asked.insert(peer, None);
                            round.push((number, peer));
                        }
                        Some(None) => {} // another path waits for him: it will say
                        Some(Some(answered)) => path.settle(peer, *answered),
                    }
                }
            }
            if round.is_empty() {
                break;
            }
            found.hops += 1;
            for (number, peer) in round {
                let answer = self.answer(peer, asker, target);
                found.questions += 1;
                found.bytes += QUESTION_BYTES;
                asked.insert(peer, Some(answer.is_some()));
                for path in &mut paths {
                    path.settle(peer, answer.is_some());
                }
                let Some(closer) = answer else { continue };
                found.answers += 1;
                found.bytes += closer.len() * PEER_BYTES;
                let path = &mut paths[number];
                let mut progress = false;
                for other in closer {
                    progress |= path.learn(self.ids[other] ^ target, other);
                }
                path.heard(progress);
            }
        }
        let answered = asked.iter().filter(|(_, answered)| **answered == Some(true)).map(|(peer, _)| *peer);
        found.peers = nearest(answered, &self.ids, target, BUCKET_PEERS_MAX);
        found
    }
}

/// One path of a lookup.
#[derive(Default)]
struct Path {
    /// By distance.
    known: BTreeMap<u128, (usize, Step)>,
    waiting: usize,
    /// Nothing closer was heard of: from now on all of the closest are asked at once.
    stalled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    New,
    Waiting,
    Answered,
    Failed,
}

impl Path {
    /// Notes a peer. Whether that brings the path on: it is the closest of all, or there were too few.
    fn learn(&mut self, distance: u128, peer: usize) -> bool {
        let few = self.known.len() < BUCKET_PEERS_MAX;
        let new = !self.known.contains_key(&distance);
        self.known.entry(distance).or_insert((peer, Step::New));
        new && (few || self.known.first_key_value().is_some_and(|(first, _)| *first == distance))
    }

    fn heard(&mut self, progress: bool) {
        self.stalled = !progress;
    }

    /// Whom to ask now, if anybody.
    fn next(&mut self) -> Option<usize> {
        let most = if self.stalled { BUCKET_PEERS_MAX } else { 1 };
        let mut answered = 0;
        for (peer, step) in self.known.values_mut() {
            match step {
                Step::New if self.waiting < most => {
                    *step = Step::Waiting;
                    self.waiting += 1;
                    return Some(*peer);
                }
                Step::New => return None,
                Step::Waiting if self.waiting >= most => return None,
                Step::Waiting | Step::Failed => {}
                Step::Answered => {
                    answered += 1;
                    if answered >= BUCKET_PEERS_MAX {
                        return None;
                    }
                }
            }
        }
        None
    }

    fn settle(&mut self, peer: usize, answered: bool) {
        if let Some((_, step)) = self.known.values_mut().find(|(other, step)| *other == peer && *step == Step::Waiting) {
            *step = if answered { Step::Answered } else { Step::Failed };
            self.waiting -= 1;
        }
    }
}

/// Up to a bucket of these.
fn some_of(nodes: &[u32], rng: &mut ChaCha8Rng) -> Vec<u32> {
    if nodes.len() <= BUCKET_PEERS_MAX {
        return nodes.to_vec();
    }
    let mut drawn: Vec<u32> = Vec::with_capacity(BUCKET_PEERS_MAX);
    while drawn.len() < BUCKET_PEERS_MAX {
        let node = nodes[below(rng, nodes.len() as u64) as usize];
        if !drawn.contains(&node) {
            drawn.push(node);
        }
    }
    drawn
}

fn nearest(nodes: impl Iterator<Item = usize>, ids: &[Id], target: u128, most: usize) -> Vec<usize> {
    let mut near: Vec<(Id, usize)> = nodes.map(|node| (ids[node] ^ target, node)).collect();
    if near.len() > most {
        near.select_nth_unstable(most);
        near.truncate(most);
    }
    near.sort_unstable();
    near.into_iter().map(|(_, node)| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::stream;

    fn overlay(nodes: usize, seed: u64) -> (Overlay, ChaCha8Rng) {
        let mut rng = stream(seed, "overlay");
        let ids = (0..nodes).map(|_| (u128::from(below(&mut rng, u64::MAX)) << 64) | u128::from(below(&mut rng, u64::MAX))).collect();
        (Overlay::of(ids, &mut rng), rng)
    }

    #[test]
    fn a_lookup_finds_the_closest_of_all() {
        let (overlay, mut rng) = overlay(2_000, 1);
        for _ in 0..50 {
            let target = u128::from(below(&mut rng, u64::MAX)) << 64;
            let found = overlay.lookup(below(&mut rng, 2_000) as usize, target);
            let perfect = overlay.closest(target, BUCKET_PEERS_MAX);
            let missed = perfect.iter().filter(|peer| !found.peers.contains(peer)).count();
            assert!(missed <= 2, "{missed} of the 20 closest were not found: the asker itself may be one");
            assert!(found.hops < 40 && found.questions < 200, "{found:?}");
        }
    }

    #[test]
    fn the_dead_cost_questions_and_are_not_found() {
        let (mut overlay, mut rng) = overlay(2_000, 2);
        for node in 0..2_000 {
            if below(&mut rng, 10) < 3 {
                overlay.conditions[node] = Condition::Dead;
            }
        }
        let target = u128::from(below(&mut rng, u64::MAX)) << 64;
        let found = overlay.lookup(7, target);
        assert!(found.answers < found.questions, "{found:?}");
        assert!(found.peers.iter().all(|peer| overlay.conditions[*peer] == Condition::Well));
        assert_eq!(found.peers.len(), BUCKET_PEERS_MAX);
    }

    #[test]
    fn a_fifth_of_liars_does_not_hide_the_closest() {
        let (mut overlay, mut rng) = overlay(1_000, 3);
        let mut hidden = 0;
        (0..200).for_each(|node| overlay.conditions[node] = Condition::Lying);
        for _ in 0..40 {
            let target = u128::from(below(&mut rng, u64::MAX)) << 64;
            let found = overlay.lookup(200 + below(&mut rng, 800) as usize, target);
            let honest = overlay.closest(target, 5).into_iter().filter(|node| overlay.conditions[*node] == Condition::Well);
            hidden += honest.filter(|node| !found.peers.contains(node)).count();
        }
        assert!(hidden < 40, "{hidden} of about 160 honest peers among the five closest were hidden");
    }

    #[test]
    fn sybils_around_a_key_crowd_out_whoever_is_further() {
        let mut rng = stream(4, "overlay");
        let target = u128::from(below(&mut rng, u64::MAX)) << 64;
        let honest = (0..1_000).map(|_| u128::from(below(&mut rng, u64::MAX)) << 64);
        let ids: Vec<u128> = honest.collect::<Vec<_>>().into_iter().chain((1..=40).map(|sybil| target ^ sybil)).collect();
        let mut overlay = Overlay::of(ids, &mut rng);
        (1_000..1_040).for_each(|node| overlay.conditions[node] = Condition::Lying);
        let found = overlay.lookup(1, target);
        assert!(found.peers.iter().all(|peer| *peer >= 1_000), "whoever owns the closest ids owns the result: {found:?}");
    }
}
