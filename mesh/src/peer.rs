//! Peer ids of libp2p and peer keys of ours are the same 32 bytes in two dresses.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use persona_fragments::PeerKey;

/// The key inside a peer id; `None` for a peer id that is not Ed25519.
pub(crate) fn key(peer: &PeerId) -> Option<PeerKey> {
    PeerKey::from_peer_id_bytes(&peer.to_bytes())
}

/// The peer id of a key. Any 32 bytes make one, whether or not they are a point on the curve.
pub(crate) fn id(key: &PeerKey) -> PeerId {
    PeerId::from_bytes(&key.peer_id_bytes()).expect("an identity multihash of 36 bytes is a peer id")
}

/// The peer id at the end of an address.
pub(crate) fn of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// The address without the peer id at its end.
pub(crate) fn strip(mut address: Multiaddr) -> Multiaddr {
    if of(&address).is_some() {
        address.pop();
    }
    address
}

/// Whether the address goes over TCP.
pub(crate) fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

/// The socket address of a TCP address that begins with an IP address.
pub(crate) fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// Whether the address means "this very machine", wherever it is read.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

/// Whether the address is no address at all: `0.0.0.0` or `::`.
pub(crate) fn is_unspecified(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_unspecified(),
        Protocol::Ip6(ip) => ip.is_unspecified(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_and_a_peer_key_name_the_same_node() {
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes([5; 32]).expect("a seed is 32 bytes");
        let peer = keypair.public().to_peer_id();
        let key = key(&peer).expect("an Ed25519 peer id carries its key");
        assert_eq!(key.0, keypair.public().try_into_ed25519().expect("Ed25519").to_bytes());
        assert_eq!(id(&key), peer);
        assert_eq!(key.to_peer_id_string(), peer.to_string());
    }
}
