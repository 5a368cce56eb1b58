//! Who is connected to this node, since when, and in which network: what placement is told of a candidate
//! (docs/spec/quorum.md#placement).

use std::collections::{BTreeMap, btree_map::Entry};

use persona_fragments::PeerKey;
use persona_mesh_proto::Candidate;

/// Networks of peers that are remembered.
const PREFIXES_MAX: usize = 4096;

/// The network of peers whose network nobody knows.
const UNKNOWN_PREFIX: [u8; 8] = [0xff; 8];

/// The peers that are connected, as many as the transport lets in.
#[derive(Default)]
pub(crate) struct Neighbours {
    /// Since when, on the monotonic clock.
    since_us: BTreeMap<PeerKey, u64>,
    /// Networks of peers that are or were connected. Bounded by [`PREFIXES_MAX`]: beyond it those that are not connected now are forgotten.
    prefixes: BTreeMap<PeerKey, [u8; 8]>,
}

impl Neighbours {
    /// A peer is connected, by an address in this network. Whether it was not before.
    pub(crate) fn connected(&mut self, peer: PeerKey, prefix: Option<[u8; 8]>, now_us: u64) -> bool {
        match prefix {
            Some(prefix) => self.prefixes.insert(peer, prefix),
            None => self.prefixes.remove(&peer),
        };
        if self.prefixes.len() > PREFIXES_MAX {
            self.prefixes.retain(|peer, _| self.since_us.contains_key(peer));
        }
        match self.since_us.entry(peer) {
            Entry::Vacant(place) => {
                place.insert(now_us);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    pub(crate) fn disconnected(&mut self, peer: &PeerKey) {
        self.since_us.remove(peer);
    }

    pub(crate) fn contains(&self, peer: &PeerKey) -> bool {
        self.since_us.contains_key(peer)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.since_us.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PeerKey> {
        self.since_us.keys()
    }

    /// What is known of a peer that may hold something. Where networks matter (`diverse`), all peers that are not connected and whose network
    /// nobody knows might be in one.
    pub(crate) fn candidate(&self, peer: PeerKey, diverse: bool, now_us: u64) -> Candidate {
        let connected_ms = self.since_us.get(&peer).map(|since_us| now_us.saturating_sub(*since_us) / 1000);
        let prefix = self.prefixes.get(&peer).copied().or(connected_ms.is_none().then_some(UNKNOWN_PREFIX));
        Candidate { peer, connected_ms, prefix: prefix.filter(|_| diverse) }
    }
}
