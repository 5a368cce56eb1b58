//! Which peers become the holders of a section: a pure choice, the same for the same arguments (docs/spec/quorum.md#placement).

use persona_fragments::{PeerKey, SectionKey};

/// A peer that lives longer is likelier to go on living: from this age on it goes before younger ones.
pub const AGED_MS: u64 = 3_600_000;

/// A peer that could hold a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub peer: PeerKey,
    /// Whether there is a connection to it now.
    pub connected: bool,
    /// When this node first met it, in milliseconds since the Unix epoch, if it remembers.
    pub first_seen_ms: Option<u64>,
    /// Where it is: its /24 (IPv4) or /48 (IPv6), or an operator's tag. `None` is exempt from the diversity rule.
    pub prefix: Option<[u8; 8]>,
}

/// Chooses up to `wanted` holders, by shard index; fewer if there are not that many.
pub fn choose_holders(
    _key: &SectionKey,
    _candidates: &[Candidate],
    _previous: &[PeerKey],
    _exclude: &[PeerKey],
    _wanted: u8,
    _diversity: Option<u8>,
    _now_ms: u64,
) -> Vec<PeerKey> {
    todo!()
}
