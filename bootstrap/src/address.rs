//! Where a node can be reached: the part of the multiaddr language that this mesh speaks (docs/spec/ticket.md#addresses).
//!
//! libp2p is not asked here, so that a bad address is refused where it was typed, with words for the person who typed it. What is
//! accepted is canonical afterwards: one address has one text, which makes "the same address" a comparison.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use persona_fragments::PeerKey;

/// The longest address, in bytes of text: the peer id takes 57 of them, which leaves a DNS name more than a hundred.
pub const ADDRESS_BYTES_MAX: usize = 192;

/// The longest label of a DNS name (RFC 1035, section 2.3.4).
const DNS_LABEL_BYTES_MAX: usize = 63;

/// A multiaddr that can be dialed: host, transport, and the peer that should answer, where it is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    host: Host,
    transport: Transport,
    peer: Option<PeerKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ip4(Ipv4Addr),
    Ip6(Ipv6Addr),
    /// The protocol (`dns`, `dns4`, `dns6` or `dnsaddr`) and the name in lowercase.
    Dns(&'static str, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Tcp(u16),
    Quic(u16),
    /// `dnsaddr`: the DNS record names the transport.
    Resolved,
}

/// Why a text is no address that this mesh can dial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing at all.
    #[error("the address is empty: write one like /ip4/192.0.2.7/tcp/4001")]
    Empty,
    /// Longer than [`ADDRESS_BYTES_MAX`].
    #[error("the address has {0} bytes, more than {ADDRESS_BYTES_MAX}: use a shorter DNS name or an IP address")]
    TooLong(usize),
    /// `host:port`, or a URL.
    #[error("an address starts with a slash: instead of {text} write {instead}")]
    NotAMultiaddr {
        /// What was given, shortened.
        text: String,
        /// The multiaddr that was probably meant, or an example.
        instead: String,
    },
    /// It starts with something else than a host.
    #[error("the address starts with /{0}, where /ip4, /ip6, /dns, /dns4, /dns6 or /dnsaddr belongs")]
    NoHost(String),
    /// The host does not fit its protocol.
    #[error("{value:?} is no host for /{protocol}: {expected}")]
    Host {
        /// `ip4`, `ip6`, `dns`...
        protocol: &'static str,
        /// What stands there.
        value: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// `0.0.0.0` or `::`.
    #[error("{0} is where a node listens, not where it is reached: give an address that other machines can dial")]
    Unspecified(String),
    /// The address ends after the host.
    #[error("the address names no transport: continue it with /tcp/PORT or /udp/PORT/quic-v1")]
    NoTransport,
    /// A transport that is not spoken.
    #[error("/{0} is not spoken here: this version of persona dials /tcp/PORT and /udp/PORT/quic-v1")]
    Transport(String),
    /// Not a port, or port 0.
    #[error("{0:?} is no port: a node is reached on a port from 1 to 65535")]
    Port(String),
    /// `/udp/PORT` with nothing, or not QUIC version 1, after it.
    #[error("/udp/{0} must be followed by /quic-v1")]
    NotQuic(u16),
    /// What follows `/p2p/`.
    #[error("{0:?} is no Ed25519 peer id: copy the one that starts with 12D3Koo from `persona status`")]
    PeerId(String),
    /// Something after the end.
    #[error("{0:?} follows the address: after the transport only /p2p/PEER-ID may stand")]
    Extra(String),
}

impl Address {
    /// The peer that should answer. `None`: whoever answers is welcome.
    pub fn peer(&self) -> Option<PeerKey> {
        self.peer
    }

    /// The same place, where `peer` should answer.
    #[must_use]
    pub fn with_peer(mut self, peer: PeerKey) -> Self {
        self.peer = Some(peer);
        self
    }

    /// The same place, whoever answers there.
    #[must_use]
    pub fn without_peer(mut self) -> Self {
        self.peer = None;
        self
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip4(ip) => write!(f, "/ip4/{ip}")?,
            Host::Ip6(ip) => write!(f, "/ip6/{ip}")?,
            Host::Dns(protocol, name) => write!(f, "/{protocol}/{name}")?,
        }
        match self.transport {
            Transport::Tcp(port) => write!(f, "/tcp/{port}")?,
            Transport::Quic(port) => write!(f, "/udp/{port}/quic-v1")?,
            Transport::Resolved => {}
        }
        match &self.peer {
            Some(peer) => write!(f, "/p2p/{}", peer.to_peer_id_string()),
            None => Ok(()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong(text.len()));
        }
        let Some(parts) = text.strip_prefix('/') else {
            return Err(AddressError::NotAMultiaddr { text: quoted(text), instead: meant(text) });
        };
        let mut parts = parts.split('/');
        let (host, mut transport) = host(parts.next().unwrap_or_default(), &mut parts)?;
        let mut next = parts.next();
        if transport.is_none() {
            transport = Some(self::transport(next, &mut parts)?);
            next = parts.next();
        }
        let peer = match next {
            None => None,
            Some("p2p") => {
                let id = parts.next().unwrap_or_default();
                Some(PeerKey::from_peer_id_string(id).ok_or_else(|| AddressError::PeerId(quoted(id)))?)
            }
            Some(other) => return Err(AddressError::Extra(quoted(other))),
        };
        if let Some(extra) = parts.next() {
            return Err(AddressError::Extra(quoted(extra)));
        }
        let address = Self { host, transport: transport.expect("read above"), peer };
        // An IPv6 address can be longer in its canonical form than as it was typed.
        let length = address.to_string().len();
        if length > ADDRESS_BYTES_MAX { Err(AddressError::TooLong(length)) } else { Ok(address) }
    }
}

/// The host, and the transport where the host's protocol implies it.
fn host<'a>(protocol: &str, parts: &mut impl Iterator<Item = &'a str>) -> Result<(Host, Option<Transport>), AddressError> {
    let mut value = || parts.next().unwrap_or_default();
    match protocol {
        "ip4" => {
            let text = value();
            let expected = "four numbers from 0 to 255 with dots between them belong there";
            let ip: Ipv4Addr = text.parse().map_err(|_| AddressError::Host { protocol: "ip4", value: quoted(text), expected })?;
            if ip.is_unspecified() { Err(AddressError::Unspecified(ip.to_string())) } else { Ok((Host::Ip4(ip), None)) }
        }
        "ip6" => {
            let text = value();
            let expected = "an IPv6 address without brackets or zone belongs there";
            let ip: Ipv6Addr = text.parse().map_err(|_| AddressError::Host { protocol: "ip6", value: quoted(text), expected })?;
            if ip.is_unspecified() { Err(AddressError::Unspecified(ip.to_string())) } else { Ok((Host::Ip6(ip), None)) }
        }
        "dns" => Ok((Host::Dns("dns", dns_name("dns", value())?), None)),
        "dns4" => Ok((Host::Dns("dns4", dns_name("dns4", value())?), None)),
        "dns6" => Ok((Host::Dns("dns6", dns_name("dns6", value())?), None)),
        "dnsaddr" => Ok((Host::Dns("dnsaddr", dns_name("dnsaddr", value())?), Some(Transport::Resolved))),
        other => Err(AddressError::NoHost(quoted(other))),
    }
}

fn transport<'a>(protocol: Option<&str>, parts: &mut impl Iterator<Item = &'a str>) -> Result<Transport, AddressError> {
    match protocol {
        None | Some("" | "p2p") => Err(AddressError::NoTransport),
        Some("tcp") => Ok(Transport::Tcp(port(parts.next())?)),
        Some("udp") => {
            let port = port(parts.next())?;
            if parts.next() == Some("quic-v1") { Ok(Transport::Quic(port)) } else { Err(AddressError::NotQuic(port)) }
        }
        Some(other) => Err(AddressError::Transport(quoted(other))),
    }
}

fn port(text: Option<&str>) -> Result<u16, AddressError> {
    let text = text.unwrap_or_default();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()); // `parse` alone takes "+80" too
    text.parse().ok().filter(|&port| digits && port != 0).ok_or_else(|| AddressError::Port(quoted(text)))
}

fn dns_name(protocol: &'static str, text: &str) -> Result<String, AddressError> {
    let label = |label: &str| {
        (1..=DNS_LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = text.to_ascii_lowercase();
    if name.split('.').all(label) {
        return Ok(name);
    }
    Err(AddressError::Host { protocol, value: quoted(text), expected: "a DNS name of letters, digits, hyphens and dots belongs there" })
}

/// The multiaddr for what looks like `host:port`; an example for anything else.
fn meant(text: &str) -> String {
    let example = || String::from("/ip4/192.0.2.7/tcp/4001");
    let Some((host, port)) = text.rsplit_once(':') else { return example() };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let protocol = if host.parse::<Ipv4Addr>().is_ok() {
        "ip4"
    } else if host.parse::<Ipv6Addr>().is_ok() {
        "ip6"
    } else {
        "dns"
    };
    let address = format!("/{protocol}/{host}/tcp/{port}");
    if address.parse::<Address>().is_ok() { address } else { example() }
}

/// A stranger's text, fit to be shown: short and without control characters.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let clean = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut shown: String = clean.take(SHOWN_CHARS_MAX).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<String, AddressError> {
        text.parse::<Address>().map(|address| address.to_string())
    }

    fn peer() -> String {
        PeerKey([7; 32]).to_peer_id_string()
    }

    #[test]
    fn what_can_be_dialed_is_accepted_in_one_form() {
        let with_peer = format!("/ip4/192.0.2.7/tcp/4001/p2p/{}", peer());
        for same in [
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/192.0.2.7/udp/4001/quic-v1",
            "/ip6/2001:db8::1/tcp/65535",
            "/dns/node.example.org/tcp/1",
            "/dns4/a/tcp/4001",
            "/dns6/a-b.c/udp/9/quic-v1",
            "/dnsaddr/_dnsaddr.example.org",
            &with_peer,
        ] {
            assert_eq!(read(same).as_deref(), Ok(same));
        }
        assert_eq!(read(&format!("/dnsaddr/a.org/p2p/{}", peer())).map(|text| text.len()), Ok(14 + 5 + 52));
        assert_eq!(read(" /ip6/2001:0DB8:0:0::1/tcp/04001\n").as_deref(), Ok("/ip6/2001:db8::1/tcp/4001"));
        assert_eq!(read("/dns/Node.Example.ORG/tcp/1").as_deref(), Ok("/dns/node.example.org/tcp/1"));
    }

    #[test]
    fn every_refusal_names_the_flaw_and_the_next_step() {
        use AddressError as E;
        let host = |text: &str| match read(text) {
            Err(E::Host { protocol, value, .. }) => (protocol, value),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(read("  "), Err(E::Empty));
        assert_eq!(read(&format!("/dns/{}/tcp/1", "a".repeat(200))), Err(E::TooLong(211)));
        assert_eq!(read("/unix/tmp"), Err(E::NoHost("unix".into())));
        assert_eq!(read("/"), Err(E::NoHost(String::new())));
        assert_eq!(host("/ip4/1.2.3/tcp/1"), ("ip4", "1.2.3".into()));
        assert_eq!(host("/ip6/[::1]/tcp/1"), ("ip6", "[::1]".into()));
        assert_eq!(host("/dns/a..b/tcp/1"), ("dns", "a..b".into()));
        assert!(read("/ip4").unwrap_err().to_string().contains("four numbers"));
        assert_eq!(read("/ip4/0.0.0.0/tcp/1"), Err(E::Unspecified("0.0.0.0".into())));
        assert_eq!(read("/ip6/::/tcp/1"), Err(E::Unspecified("::".into())));
        for bare in ["/ip4/1.2.3.4", "/ip4/1.2.3.4/", &format!("/ip4/1.2.3.4/p2p/{}", peer())] {
            assert_eq!(read(bare), Err(E::NoTransport));
        }
        assert_eq!(read("/ip4/1.2.3.4/sctp/1"), Err(E::Transport("sctp".into())));
        for port in ["0", "65536", "", "+80", "http"] {
            assert_eq!(read(&format!("/ip4/1.2.3.4/tcp/{port}")), Err(E::Port(port.into())));
        }
        assert_eq!(read("/ip4/1.2.3.4/udp/9"), Err(E::NotQuic(9)));
        assert_eq!(read("/ip4/1.2.3.4/udp/9/quic"), Err(E::NotQuic(9)));
        assert_eq!(read("/ip4/1.2.3.4/tcp/9/ws"), Err(E::Extra("ws".into())));
        assert_eq!(read("/ip4/1.2.3.4/tcp/9/"), Err(E::Extra(String::new())));
        assert_eq!(read("/ip4/1.2.3.4/tcp/9/p2p/QmFoo"), Err(E::PeerId("QmFoo".into())));
        assert_eq!(read(&format!("/ip4/1.2.3.4/tcp/9/p2p/{}/p2p-circuit", peer())), Err(E::Extra("p2p-circuit".into())));
    }

    #[test]
    fn a_host_and_port_is_answered_with_the_address_that_was_meant() {
        let meant = |text: &str| match read(text) {
            Err(AddressError::NotAMultiaddr { instead, .. }) => instead,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(meant("192.0.2.9:4001"), "/ip4/192.0.2.9/tcp/4001");
        assert_eq!(meant("[2001:db8::1]:4001"), "/ip6/2001:db8::1/tcp/4001");
        assert_eq!(meant("node.example.org:4001"), "/dns/node.example.org/tcp/4001");
        assert_eq!(meant("http://node.example.org"), "/ip4/192.0.2.7/tcp/4001");
    }

    #[test]
    fn a_hostile_text_is_shown_tame() {
        let error = read(&format!("/ip4/1.2.3.4/tcp/9/\u{1b}[2J{}", "x".repeat(100))).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}') && error.contains('…'), "{error}");
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_what_is_read_reads_back(text in "(/(ip4|ip6|dns|tcp|udp|quic-v1|p2p|[0-9.:a-z]{0,9})){0,6}|.{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                let written = address.to_string();
                prop_assert!(written.len() <= ADDRESS_BYTES_MAX);
                prop_assert_eq!(written.parse::<Address>(), Ok(address));
            }
        }
    }
}
