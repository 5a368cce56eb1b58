//! What a mesh is started with, and the checks at its edge.

use std::time::Duration;

use libp2p::{Multiaddr, multiaddr::Protocol};

/// A mesh name has at most this many bytes: it stands in every protocol name and topic.
pub const MESH_NAME_BYTES_MAX: usize = 32;

/// One node's place in one mesh.
#[derive(Clone)]
pub struct MeshConfig {
    /// Which mesh. It is part of every protocol name and topic, so that two meshes never merge; see [`check_mesh_name`].
    pub mesh: String,
    /// The node's Ed25519 seed: its public key is the node's [`PeerKey`](persona_fragments::PeerKey).
    pub node_seed: [u8; 32],
    /// Where to listen: multiaddrs such as `/ip4/0.0.0.0/tcp/4001` or `/ip4/0.0.0.0/udp/4001/quic-v1`. Every one must work, or
    /// [`start`](crate::start) fails; port 0 lets the system choose.
    pub listen: Vec<String>,
    /// Where others reach this node, if its listen addresses do not say: multiaddrs, announced as they are and in place of the listen
    /// addresses. Behind a forwarded port those would only cost others a dial that fails. Empty: the listen addresses are announced.
    pub external: Vec<String>,
    /// Bounds of everything that peers can make grow.
    pub limits: MeshLimits,
}

impl std::fmt::Debug for MeshConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshConfig")
            .field("mesh", &self.mesh)
            .field("node_seed", &"[secret]")
            .field("listen", &self.listen)
            .field("external", &self.external)
            .field("limits", &self.limits)
            .finish()
    }
}

/// Bounds, with a word on what happens at each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshLimits {
    /// Established connections in all. At the bound new ones are refused. Default: 512.
    pub connections_max: u32,
    /// Established connections that others opened. Kept below [`Self::connections_max`], so that strangers cannot fill a node up and
    /// decide whom it knows. Default: 384.
    pub connections_incoming_max: u32,
    /// Established connections to one peer. Two nodes that dial each other at the same time have two; a peer that restarted after a
    /// power cut may have left as many half-open ones behind, and must still get in. Default: 4.
    pub connections_per_peer_max: u32,
    /// Connections being opened, in each direction. At the bound new ones are refused. Default: 128.
    pub connections_pending_max: u32,
    /// The process's resident memory in bytes above which no connection is accepted or opened. Default: 2 GiB.
    pub memory_bytes_max: usize,
    /// A connection that nothing uses is closed after this time. Too low, and every request to a quiet holder pays for a handshake;
    /// too high, and idle peers occupy connections. Default: 10 min.
    pub idle_connection_timeout: Duration,
    /// Commands waiting for the swarm task. When full, [`MeshHandle::command`](crate::MeshHandle::command) says
    /// [`Overloaded`](crate::Overloaded). Default: 4096.
    pub commands_max: usize,
    /// Events waiting for the receiver. When full, gossip is ignored and requests are dropped, both counted; results wait in the task,
    /// which takes no more commands once as many results wait as [`Self::operations_max`]. Default: 4096.
    pub events_max: usize,
    /// Requests, lookups and dials of this node that are under way. At the bound the next one fails as overloaded. Default: 2048.
    pub operations_max: usize,
    /// Requests of others that await [`MeshCommand::Respond`](crate::MeshCommand::Respond). Beyond it, a request is dropped and counted:
    /// its sender sees a closed stream. Default: 1024.
    pub inbound_max: usize,
    /// Bytes of others' requests in memory, from the first byte read until they are answered or handed over. Beyond it a request is
    /// refused while it is read. Default: 64 MiB.
    pub inbound_bytes_max: usize,
    /// Bytes of answers in memory that are being read. Beyond it an answer is refused while it is read. Default: 128 MiB.
    pub response_bytes_max: usize,
    /// Gossip messages that await [`MeshCommand::Judge`](crate::MeshCommand::Judge). Beyond it a message is ignored (neither delivered
    /// here nor passed on by this node) and counted. Default: 4096.
    pub gossip_pending_max: usize,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_incoming_max: 384,
            connections_per_peer_max: 4,
            connections_pending_max: 128,
            memory_bytes_max: 2 << 30,
            idle_connection_timeout: Duration::from_secs(600),
            commands_max: 4096,
            events_max: 4096,
            operations_max: 2048,
            inbound_max: 1024,
            inbound_bytes_max: 64 << 20,
            response_bytes_max: 128 << 20,
            gossip_pending_max: 4096,
        }
    }
}

/// Why a mesh name is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshNameError {
    /// No characters, or too many.
    #[error("a mesh name has 1 to {MESH_NAME_BYTES_MAX} characters, this one has {0}")]
    Length(usize),
    /// A character that would not survive in a protocol name.
    #[error("a mesh name is made of a-z, 0-9 and '-': replace {0:?}")]
    Character(char),
}

/// A mesh name is made of 1 to 32 of `a-z`, `0-9` and `-`.
pub fn check_mesh_name(name: &str) -> Result<(), MeshNameError> {
    if let Some(odd) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(MeshNameError::Character(odd));
    }
    if name.is_empty() || name.len() > MESH_NAME_BYTES_MAX {
        return Err(MeshNameError::Length(name.len()));
    }
    Ok(())
}

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not a multiaddr at all.
    #[error("{address:?} is no multiaddr ({reason}): write it like /ip4/192.0.2.7/tcp/4001")]
    Malformed {
        /// As given.
        address: String,
        /// What the parser said.
        reason: String,
    },
    /// A multiaddr that does not start with a host.
    #[error("{address:?} names no host: begin with /ip4/, /ip6/ or /dns/")]
    NoHost {
        /// As given.
        address: String,
    },
    /// A host without a transport that this node speaks.
    #[error("{address:?} names no transport of this mesh: after the host comes /tcp/PORT or /udp/PORT/quic-v1")]
    NoTransport {
        /// As given.
        address: String,
    },
    /// Something follows the transport that is not a peer id.
    #[error("{address:?} goes on after the transport with {extra:?}: only /p2p/PEER-ID may follow")]
    Extra {
        /// As given.
        address: String,
        /// The first part too many.
        extra: String,
    },
    /// The peer id is not an Ed25519 one, which all nodes of a mesh have.
    #[error("{address:?} ends in a peer id that is not Ed25519 (those begin with 12D3Koo): ask for the node's address again")]
    PeerId {
        /// As given.
        address: String,
    },
}

/// Whether this node could listen on or dial an address: `/HOST/tcp/PORT` or `/HOST/udp/PORT/quic-v1`, with or without `/p2p/PEER-ID`.
pub fn check_address(address: &str) -> Result<(), AddressError> {
    parse_address(address).map(|_| ())
}

/// [`check_address`], keeping what was read.
pub(crate) fn parse_address(text: &str) -> Result<Multiaddr, AddressError> {
    let address = || text.to_owned();
    let parsed: Multiaddr = text
        .parse()
        .map_err(|error: libp2p::multiaddr::Error| AddressError::Malformed { address: address(), reason: error.to_string() })?;
    let mut parts = parsed.iter();
    match parts.next() {
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => {}
        _ => return Err(AddressError::NoHost { address: address() }),
    }
    match parts.next() {
        Some(Protocol::Tcp(_)) => {}
        Some(Protocol::Udp(_)) if parts.next() == Some(Protocol::QuicV1) => {}
        _ => return Err(AddressError::NoTransport { address: address() }),
    }
    match parts.next() {
        None => {}
        Some(Protocol::P2p(peer)) if crate::peer::key(&peer).is_none() => return Err(AddressError::PeerId { address: address() }),
        Some(Protocol::P2p(_)) => {}
        Some(extra) => return Err(AddressError::Extra { address: address(), extra: extra.to_string() }),
    }
    match parts.next() {
        None => Ok(parsed),
        Some(extra) => Err(AddressError::Extra { address: address(), extra: extra.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_name_survives_in_a_protocol_name_or_is_refused() {
        assert_eq!(check_mesh_name("home-7"), Ok(()));
        assert_eq!(check_mesh_name(&"a".repeat(32)), Ok(()));
        assert_eq!(check_mesh_name(&"a".repeat(33)), Err(MeshNameError::Length(33)));
        assert_eq!(check_mesh_name(""), Err(MeshNameError::Length(0)));
        assert_eq!(check_mesh_name("a/b"), Err(MeshNameError::Character('/')));
        assert_eq!(check_mesh_name("Home"), Err(MeshNameError::Character('H')));
        assert_eq!(check_mesh_name("müller"), Err(MeshNameError::Character('ü')));
    }

    #[test]
    fn an_address_says_what_is_wrong_with_it() {
        let peer = persona_fragments::PeerKey([7; 32]).to_peer_id_string();
        for good in ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/udp/4001/quic-v1", "/dns/a.example/tcp/1"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
            assert_eq!(check_address(&format!("{good}/p2p/{peer}")), Ok(()), "{good}");
        }
        assert!(matches!(check_address("127.0.0.1:4001"), Err(AddressError::Malformed { .. })));
        assert!(matches!(check_address("/ip4/127.0.0.1/tcp/notaport"), Err(AddressError::Malformed { .. })));
        assert!(matches!(check_address("/tcp/4001"), Err(AddressError::NoHost { .. })));
        assert!(matches!(check_address("/ip4/127.0.0.1"), Err(AddressError::NoTransport { .. })));
        assert!(matches!(check_address("/ip4/127.0.0.1/udp/1"), Err(AddressError::NoTransport { .. })));
        assert!(matches!(check_address("/ip4/127.0.0.1/tcp/1/ws"), Err(AddressError::Extra { .. })));
        assert!(matches!(check_address(&format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}/p2p-circuit")), Err(AddressError::Extra { .. })));
        let rsa = "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        assert!(matches!(check_address(rsa), Err(AddressError::PeerId { .. })));
    }
}
