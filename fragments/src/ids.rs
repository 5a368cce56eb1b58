//! Names of things: 32 bytes that say what they name.

use std::fmt;

use bincode::{Decode, Encode};
use sha2::{Digest as _, Sha256};

macro_rules! bytes_32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The bytes themselves.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// All 32 bytes in lowercase hexadecimal.
            pub fn to_hex(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0)
            }

            /// Reads 64 hexadecimal digits, in either case.
            pub fn from_hex(text: &str) -> Option<Self> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
                Some(Self(bytes.try_into().ok()?))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), &self.to_hex()[..12])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
    };
}

bytes_32!(
    /// The Ed25519 public key of a node. It *is* the node's libp2p identity: see [`PeerKey::peer_id_bytes`].
    PeerKey
);
bytes_32!(
    /// The Ed25519 public key that signs a section's manifests: for an agent, its identity key.
    OwnerKey
);
bytes_32!(
    /// Which section, for everyone: `SHA-256("persona/section/v1" || owner key || name)`.
    SectionKey
);
bytes_32!(
    /// Which host of an agent wrote a version: SHA-256 of that node's peer id bytes.
    DeviceId
);
bytes_32!(
    /// A 32-byte hash. Which function made it is said where it is used.
    Digest
);

/// An Ed25519 signature (RFC 8032), or whatever tag of 64 bytes the [`Signer`](crate::Signer) in use makes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}..)", data_encoding::HEXLOWER.encode(&self.0[..6]))
    }
}

/// An Ed25519 public key as libp2p frames it: identity multihash, 36 bytes, protobuf {type: Ed25519, data: 32 bytes}
/// (libp2p specification, peer-ids).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerKey {
    /// The libp2p peer id of this key: 38 bytes that carry the key itself.
    pub fn peer_id_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// The key inside an Ed25519 peer id; `None` for any other kind of peer id.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.strip_prefix(&PEER_ID_PREFIX)?.try_into().ok()?))
    }

    /// The peer id as people read it: base58btc, `12D3Koo...`.
    pub fn to_peer_id_string(&self) -> String {
        bs58::encode(self.peer_id_bytes()).into_string()
    }

    /// Reads what [`Self::to_peer_id_string`] writes.
    pub fn from_peer_id_string(text: &str) -> Option<Self> {
        Self::from_peer_id_bytes(&from_base58(text)?)
    }

    /// The device id of an agent's host running on this node.
    pub fn device(&self) -> DeviceId {
        DeviceId(Sha256::digest(self.peer_id_bytes()).into())
    }
}

/// Multicodec prefix of an Ed25519 public key (`0xed`, as a varint).
const MULTICODEC_ED25519: [u8; 2] = [0xed, 0x01];

impl OwnerKey {
    /// The agent id: `did:key:z6Mk...` (W3C did:key, Ed25519).
    pub fn to_did(&self) -> String {
        let mut bytes = [0; 34];
        bytes[..2].copy_from_slice(&MULTICODEC_ED25519);
        bytes[2..].copy_from_slice(&self.0);
        format!("did:key:z{}", bs58::encode(bytes).into_string())
    }

    /// Reads what [`Self::to_did`] writes.
    pub fn from_did(text: &str) -> Option<Self> {
        let bytes = from_base58(text.strip_prefix("did:key:z")?)?;
        Some(Self(bytes.strip_prefix(&MULTICODEC_ED25519)?.try_into().ok()?))
    }
}

/// The longest text that is read as a peer id or a did: theirs have 52 and 56 characters, and decoding base58 takes time that grows
/// with the square of its length.
const BASE58_TEXT_MAX: usize = 64;

fn from_base58(text: &str) -> Option<Vec<u8>> {
    if text.len() > BASE58_TEXT_MAX {
        return None;
    }
    bs58::decode(text).into_vec().ok()
}

/// What stands before the base32 of a section key in its Kademlia record key.
const KAD_KEY_PREFIX: &str = "/persona/";

impl SectionKey {
    /// The key of the section that `owner` calls `name`. A private name is first made opaque by its owner (docs/spec/section.md).
    pub fn derive(owner: &OwnerKey, name: &[u8]) -> Self {
        let hash = Sha256::new().chain_update("persona/section/v1").chain_update(owner.0).chain_update(name);
        Self(hash.finalize().into())
    }

    /// The Kademlia record key: ASCII `/persona/` and the key in lowercase base32 without padding (RFC 4648).
    pub fn to_kad_key(&self) -> String {
        format!("{KAD_KEY_PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }

    /// Reads exactly what [`Self::to_kad_key`] writes.
    pub fn from_kad_key(text: &str) -> Option<Self> {
        let base32 = text.strip_prefix(KAD_KEY_PREFIX)?;
        if base32.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let bytes = data_encoding::BASE32_NOPAD.decode(base32.to_ascii_uppercase().as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_they_were_written() {
        let peer = PeerKey([7; 32]);
        assert_eq!(PeerKey::from_peer_id_string(&peer.to_peer_id_string()), Some(peer));
        assert!(peer.to_peer_id_string().starts_with("12D3Koo"), "{}", peer.to_peer_id_string());
        let owner = OwnerKey([9; 32]);
        assert!(owner.to_did().starts_with("did:key:z6Mk"), "{}", owner.to_did());
        assert_eq!(OwnerKey::from_did(&owner.to_did()), Some(owner));
        let section = SectionKey::derive(&owner, b"core");
        assert_eq!(SectionKey::from_kad_key(&section.to_kad_key()), Some(section));
        assert_eq!(SectionKey::from_kad_key(&section.to_kad_key().to_ascii_uppercase()), None);
    }
}
