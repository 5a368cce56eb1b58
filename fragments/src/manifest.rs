//! The manifest: what the owner signed about one version of a section (docs/spec/manifest.md).

use std::sync::Arc;

use bincode::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::{
    CONTENT_BYTES_MAX,
    class::Class,
    ids::{DeviceId, Digest, OwnerKey, PeerKey, SectionKey, Signature},
    mutants::{self, Mutant},
    shape::{HOLDERS_MAX, LEVEL_MAX, Shape},
    sign::{Signer, Verifier},
    wire::{self, DecodeError},
};

/// The longest lifetime a manifest may claim: seven days. A holder stores nothing for longer on one signature.
pub const TTL_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// The furthest a lease may reach beyond the issue: thirty days.
pub const RENEW_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// The latest instant that a manifest may name, in milliseconds since the Unix epoch: the year 10889. Times below it can be added to
/// lifetimes and allowances without a thought of overflow.
pub const TIME_MS_MAX: u64 = 1 << 48;

/// How many older holder sets a manifest may still name. Sets are sticky, so one or two are usual; beyond this the oldest is left to
/// expire and the put is `BoundedStale`.
pub const OLDER_SETS_MAX: usize = 8;

/// The longest section name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Domain labels: what is signed or hashed for one purpose cannot serve another.
const MANIFEST_LABEL: &[u8] = b"persona/manifest/v1";

/// Which write of a section. Ordered: a later term beats a device, a device beats a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version {
    /// Counts takeovers of the agent by a new host; 1 at birth.
    pub term: u64,
    /// The host that wrote it.
    pub device: DeviceId,
    /// Counts that host's writes of this section; 1 for its first.
    pub seq: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.term, &self.device.to_hex()[..8], self.seq)
    }
}

/// A holder set that may still have unexpired versions, and so must hear of newer commits.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OlderSet {
    /// The version that set holds.
    pub version: Version,
    /// Its holders, by shard index.
    pub holders: Vec<PeerKey>,
    /// When it no longer matters, in milliseconds since the Unix epoch; of a leased version, when its last known link expires.
    pub expires_at_ms: u64,
    /// Of a leased version: until when its holders may have renewed it all the same (milliseconds since the Unix epoch). 0: it is not leased.
    pub renew_until_ms: u64,
}

impl OlderSet {
    /// When nobody can be led there any more, but for the clocks' allowance.
    pub fn over_at_ms(&self) -> u64 {
        self.expires_at_ms.max(self.renew_until_ms)
    }

    /// The order in which a manifest names older sets.
    pub fn order(&self) -> (Version, u64, &[PeerKey]) {
        (self.version, self.expires_at_ms, &self.holders)
    }

    /// How many of the set must have heard of a newer commit: `n - f`.
    pub fn quorum(&self) -> usize {
        let f = self.holders.len().saturating_sub(1) / 3;
        self.holders.len() - f - usize::from(f > 0 && mutants::on(Mutant::SmallQuorum))
    }
}

/// What the owner says about one version of a section. Only bytes signed as [`SignedManifest`] count.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// The section.
    pub key: SectionKey,
    /// Who signs.
    pub owner: OwnerKey,
    /// The section's name as its owner published it: a word for `card`, `core` and `behavior`, 32 opaque bytes otherwise. It ties the key
    /// to the owner, so that nobody can place a manifest of his own under another's key.
    pub name: Vec<u8>,
    /// This write. At most one manifest per version is ever acked by a correct holder.
    pub version: Version,
    /// The version under which the bytes were sealed: a renewal keeps it, so that the bytes still open.
    pub content_version: Version,
    /// The kind of section.
    pub class: Class,
    /// The level that was asked for; the shape is the best for it with the holders at hand.
    pub level: u8,
    /// When it was issued, in milliseconds since the Unix epoch, by the owner's clock.
    pub issued_at_ms: u64,
    /// How long it lives from then.
    pub ttl_ms: u64,
    /// Until when holders may renew it among themselves (milliseconds since the Unix epoch); 0: not at all.
    pub renew_until_ms: u64,
    /// The content's true length in bytes, before padding to `k` equal shards.
    pub content_len: u32,
    /// How it is coded.
    pub shape: Shape,
    /// BLAKE3 of the content.
    pub content_hash: Digest,
    /// BLAKE3 of each shard, by index.
    pub shard_hashes: Vec<Digest>,
    /// Who holds which shard, by index. All distinct.
    pub holders: Vec<PeerKey>,
    /// Older holder sets that are neither expired nor discharged, oldest first, all of versions below this one. A leased version may have
    /// several.
    pub older: Vec<OlderSet>,
}

/// Why a manifest is refused, whoever signed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a frame.
    #[error("the manifest does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// Signed by another key than the owner's, altered, or not signed.
    #[error("the owner's signature does not verify")]
    Signature,
    /// Not the shape for its level, or the lists have other lengths than `n`.
    #[error("the shape is unsound: {0}")]
    Shape(&'static str),
    /// The key is not the one that owner and name give.
    #[error("the section key does not belong to this owner and name")]
    Key,
    /// A holder is listed twice, so that one node would count as two.
    #[error("a holder is listed twice")]
    RepeatsHolder,
    /// A number is out of bounds.
    #[error("{0} is out of bounds")]
    OutOfBounds(&'static str),
}

impl Manifest {
    /// When it expires, in milliseconds since the Unix epoch.
    pub fn expires_at_ms(&self) -> u64 {
        self.issued_at_ms.saturating_add(self.ttl_ms)
    }

    /// How long its holders may renew it, counted from its issue, in milliseconds; 0 if they may not.
    pub fn renew_ms(&self) -> u64 {
        self.renew_until_ms.saturating_sub(self.issued_at_ms)
    }

    /// The shard index of `peer`, if it is a holder.
    pub fn index_of(&self, peer: &PeerKey) -> Option<u8> {
        self.holders.iter().position(|holder| holder == peer).map(|index| index as u8)
    }

    /// Bytes in each shard: the content divided by `k`, rounded up.
    pub fn shard_len(&self) -> usize {
        (self.content_len as usize).div_ceil(usize::from(self.shape.k()))
    }

    /// This manifest's holder set as a later version names it.
    pub fn as_older_set(&self) -> OlderSet {
        let (expires_at_ms, renew_until_ms) = (self.expires_at_ms(), self.renew_until_ms);
        OlderSet { version: self.version, holders: self.holders.clone(), expires_at_ms, renew_until_ms }
    }

    /// Checks everything about it that needs neither a key nor a clock.
    pub fn check(&self) -> Result<(), ManifestError> {
        use ManifestError::{OutOfBounds, RepeatsHolder, Shape as Unsound};
        let n = usize::from(self.shape.n());
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(OutOfBounds("name"));
        }
        if self.key != SectionKey::derive(&self.owner, &self.name) && !mutants::on(Mutant::AnyKey) {
            return Err(ManifestError::Key);
        }
        if !(1..=LEVEL_MAX).contains(&self.level) {
            return Err(OutOfBounds("level"));
        }
        if Shape::for_level(self.level, n) != Some(self.shape) {
            return Err(Unsound("not the shape for this level and number of holders"));
        }
        if self.holders.len() != n || self.shard_hashes.len() != n {
            return Err(Unsound("not one holder and one hash per shard"));
        }
        if !distinct(&self.holders) {
            return Err(RepeatsHolder);
        }
        if self.content_len == 0 || self.content_len as usize > CONTENT_BYTES_MAX {
            return Err(OutOfBounds("content length"));
        }
        if self.issued_at_ms > TIME_MS_MAX {
            return Err(OutOfBounds("issued_at"));
        }
        if self.ttl_ms == 0 || self.ttl_ms > TTL_MS_MAX {
            return Err(OutOfBounds("ttl"));
        }
        let renewable = self.issued_at_ms..=self.issued_at_ms + RENEW_MS_MAX;
        if self.renew_until_ms != 0 && !renewable.contains(&self.renew_until_ms) {
            return Err(OutOfBounds("renew_until"));
        }
        if self.version.seq == 0 || self.version.term == 0 {
            return Err(OutOfBounds("version"));
        }
        if self.content_version.seq == 0 || self.content_version.term == 0 || self.content_version > self.version {
            return Err(OutOfBounds("content version"));
        }
        if self.older.len() > OLDER_SETS_MAX {
            return Err(OutOfBounds("number of older holder sets"));
        }
        for set in &self.older {
            if set.holders.is_empty() || set.holders.len() > usize::from(HOLDERS_MAX) {
                return Err(OutOfBounds("older holder set"));
            }
            if set.version.seq == 0 || set.version.term == 0 || set.version >= self.version {
                return Err(OutOfBounds("older version"));
            }
            if set.over_at_ms() > TIME_MS_MAX {
                return Err(OutOfBounds("older expiry"));
            }
            if !distinct(&set.holders) {
                return Err(RepeatsHolder);
            }
        }
        if !self.older.windows(2).all(|pair| pair[0].order() < pair[1].order()) {
            return Err(OutOfBounds("order of older holder sets"));
        }
        Ok(())
    }
}

fn distinct(peers: &[PeerKey]) -> bool {
    let mut sorted = peers.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

/// A manifest with the bytes that were signed. Its hash is what acks and certificates name.
/// A copy costs nothing: it shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedManifest(Arc<Signed>);

#[derive(Debug, PartialEq, Eq)]
struct Signed {
    manifest: Manifest,
    hash: Digest,
    wire: ManifestWire,
}

/// How it travels: the signed bytes as they are, and the signature.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ManifestWire {
    /// The frame of a [`Manifest`].
    pub body: Vec<u8>,
    /// The owner's signature over `"persona/manifest/v1" || body`.
    pub signature: Signature,
}

impl ManifestWire {
    /// The key of the section that it claims to be of, where it decodes. Proves nothing: it is for looking up what is known of it already.
    pub fn claimed_key(&self) -> Option<SectionKey> {
        self.body.get(1..33)?.try_into().ok().map(SectionKey)
    }
}

impl SignedManifest {
    fn of(manifest: Manifest, wire: ManifestWire) -> Self {
        Self(Arc::new(Signed { manifest, hash: hash(&wire.body), wire }))
    }

    /// Signs a manifest. Fails if it would be refused, so also if `signer` is not its owner.
    pub fn sign(manifest: Manifest, signer: &dyn Signer) -> Result<Self, ManifestError> {
        manifest.check()?;
        if signer.public_key() != manifest.owner.0 {
            return Err(ManifestError::Signature);
        }
        let body = wire::encode(&manifest);
        let signature = signer.sign(&labelled(&body));
        Ok(Self::of(manifest, ManifestWire { body, signature }))
    }

    /// Decodes, checks and verifies what someone sent.
    pub fn verify(wire: ManifestWire, verifier: &dyn Verifier) -> Result<Self, ManifestError> {
        let manifest: Manifest = wire::decode(&wire.body)?;
        manifest.check()?;
        if !verifier.verify(&manifest.owner.0, &labelled(&wire.body), &wire.signature) {
            return Err(ManifestError::Signature);
        }
        Ok(Self::of(manifest, wire))
    }

    /// Decodes what this node stored itself after verifying it: checked, but not verified again.
    pub fn trusted(wire: ManifestWire) -> Result<Self, ManifestError> {
        let manifest: Manifest = wire::decode(&wire.body)?;
        manifest.check()?;
        Ok(Self::of(manifest, wire))
    }

    /// SHA-256 of `"persona/manifest/v1" || body`: the manifest hash.
    pub fn hash(&self) -> Digest {
        self.0.hash
    }

    /// As it travels.
    pub fn wire(&self) -> &ManifestWire {
        &self.0.wire
    }
}

impl std::ops::Deref for SignedManifest {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.0.manifest
    }
}

fn labelled(body: &[u8]) -> Vec<u8> {
    [MANIFEST_LABEL, body].concat()
}

fn hash(body: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update(MANIFEST_LABEL).chain_update(body).finalize().into())
}
