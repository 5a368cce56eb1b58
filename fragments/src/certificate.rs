//! The certificate: `n - f` holders' word that a version is durable, checkable by anyone, offline (docs/spec/quorum.md#certificate). And its
//! opposite: their word that it never will be; and the proof that an owner broke its own word.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use crate::{
    ack::{Ack, AckKind, AckLeaf},
    ids::{PeerKey, Signature},
    lease::{Lease, LeaseError},
    manifest::{ManifestError, ManifestWire, OlderSet, SignedManifest},
    mutants::{self, Mutant},
    sign::{Signer, Verifier},
    wire::{self, DecodeError},
};

const NEVER_LABEL: &[u8] = b"persona/never/v1";

/// A holder set of a lease is named for so long after its last link has expired: longer than clocks may differ.
const SET_MEMORY_MS: u64 = 20_000;

/// `n - f` acks of one manifest's holders, in the order of their indices.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Certificate {
    /// The acks, ordered by index, each holder at most once.
    pub acks: Vec<Ack>,
}

/// Why a certificate proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a frame.
    #[error("the certified head does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// The manifest itself is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Fewer acks than the quorum, or more than there are holders.
    #[error("{have} acks where {need} make a certificate")]
    Acks {
        /// Acks in the certificate.
        have: usize,
        /// `n - f`.
        need: usize,
    },
    /// Two acks of one holder, or out of order.
    #[error("the acks are not ordered by holder, each once")]
    Order,
    /// An ack that its holder did not sign for this manifest.
    #[error("the ack of holder {index} does not verify")]
    Ack {
        /// The holder's index.
        index: u8,
    },
    /// The lease of a head proves nothing.
    #[error("the lease: {0}")]
    Handover(#[from] LeaseError),
}

impl SignedManifest {
    /// What holder `index` signs to ack this manifest.
    pub fn ack_leaf(&self, index: u8) -> AckLeaf {
        AckLeaf { kind: AckKind::Ack, key: self.key, version: self.version, manifest_hash: self.hash(), index, generation: 0 }
    }

    /// What holder `index` signs to promise that it never acks any manifest of this version.
    pub fn never_leaf(&self, index: u8) -> AckLeaf {
        AckLeaf::never(self.key, self.version, index)
    }

    /// The owner's order that holders give this version up: without it anybody who saw the manifest could have it given up.
    pub fn order_never(&self, owner: &dyn Signer) -> Signature {
        owner.sign(&self.never_order())
    }

    /// Whether the owner ordered that this version be given up.
    pub fn verify_never_order(&self, order: &Signature, verifier: &dyn Verifier) -> bool {
        verifier.verify(&self.owner.0, &self.never_order(), order)
    }

    fn never_order(&self) -> Vec<u8> {
        [NEVER_LABEL, self.hash().as_bytes()].concat()
    }
}

impl Certificate {
    /// The certificate of `manifest` from acks that were verified one by one as they came, by holder index: the first `n - f` of them.
    /// `None` while there are fewer. An index that is no holder's does not count.
    pub fn assemble(manifest: &SignedManifest, acks: &BTreeMap<u8, Ack>) -> Option<Self> {
        quorum_of(manifest, acks, manifest.shape.quorum()).map(|acks| Self { acks })
    }

    /// Checks that `n - f` distinct holders of `manifest` signed for it.
    pub fn verify(&self, manifest: &SignedManifest, verifier: &dyn Verifier) -> Result<(), CertificateError> {
        verify_quorum(manifest, &self.acks, manifest.shape.quorum(), |index| manifest.ack_leaf(index), verifier)
    }
}

/// The first `need` of the acks, each of them its holder's; `None` while there are fewer.
fn quorum_of(manifest: &SignedManifest, acks: &BTreeMap<u8, Ack>, need: u8) -> Option<Vec<Ack>> {
    let need = usize::from(need);
    let held = acks.iter().filter(|(index, ack)| **index == ack.index && **index < manifest.shape.n());
    let acks: Vec<Ack> = held.map(|(_, ack)| ack.clone()).take(need).collect();
    (acks.len() == need).then_some(acks)
}

/// What needs no key: how many acks, whose, and in what order.
fn check_quorum(manifest: &SignedManifest, acks: &[Ack], need: u8) -> Result<(), CertificateError> {
    let (have, need) = (acks.len(), usize::from(need));
    if have < need || have > usize::from(manifest.shape.n()) {
        return Err(CertificateError::Acks { have, need });
    }
    if !acks.windows(2).all(|pair| pair[0].index < pair[1].index || mutants::on(Mutant::CountTwice)) {
        return Err(CertificateError::Order);
    }
    if let Some(stranger) = acks.iter().find(|ack| ack.index >= manifest.shape.n()) {
        return Err(CertificateError::Ack { index: stranger.index });
    }
    Ok(())
}

/// Whether `need` distinct holders of `manifest` signed `leaf`, each its own.
fn verify_quorum(
    manifest: &SignedManifest,
    acks: &[Ack],
    need: u8,
    leaf: impl Fn(u8) -> AckLeaf,
    verifier: &dyn Verifier,
) -> Result<(), CertificateError> {
    check_quorum(manifest, acks, need)?;
    let forged = acks.iter().find(|ack| !ack.verify(&leaf(ack.index), &manifest.holders[usize::from(ack.index)], verifier));
    forged.map_or(Ok(()), |ack| Err(CertificateError::Ack { index: ack.index }))
}

/// A manifest and the proof that it never had a certificate and never will: the two would share a correct holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortedVersion {
    /// The manifest.
    pub manifest: SignedManifest,
    /// `2f + 1` of its holders' promises never to ack the version, in the order of their indices.
    pub nevers: Vec<Ack>,
}

/// How an aborted version travels (docs/spec/wire.md#abort-certificate).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AbortWire {
    /// The manifest.
    pub manifest: ManifestWire,
    /// The abort certificate.
    pub nevers: Vec<Ack>,
}

impl AbortedVersion {
    /// The abort certificate of `manifest` from promises that were verified one by one as they came, by holder index. `None` while there are
    /// fewer than `2f + 1`.
    pub fn assemble(manifest: &SignedManifest, nevers: &BTreeMap<u8, Ack>) -> Option<Self> {
        quorum_of(manifest, nevers, manifest.shape.abort_quorum()).map(|nevers| Self { manifest: manifest.clone(), nevers })
    }

    /// As a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(&self.to_wire())
    }

    /// As a part of a larger frame.
    pub fn to_wire(&self) -> AbortWire {
        AbortWire { manifest: self.manifest.wire().clone(), nevers: self.nevers.clone() }
    }

    /// Decodes and verifies everything: the owner's signature and every promise.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        Self::verify(wire::decode(bytes)?, verifier)
    }

    /// Verifies everything: the owner's signature and every promise.
    pub fn verify(wire: AbortWire, verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        let manifest = SignedManifest::verify(wire.manifest, verifier)?;
        verify_quorum(&manifest, &wire.nevers, manifest.shape.abort_quorum(), |index| manifest.never_leaf(index), verifier)?;
        Ok(Self { manifest, nevers: wire.nevers })
    }
}

/// A manifest and the proof that it is durable: what Kademlia serves for a section, what `certificate export` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedHead {
    /// The manifest.
    pub manifest: SignedManifest,
    /// Its certificate.
    pub certificate: Certificate,
    /// How its holders have renewed it, if they have.
    pub lease: Option<Lease>,
}

/// How a certified head travels (docs/spec/wire.md#certified-head).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeadWire {
    /// The manifest.
    pub manifest: ManifestWire,
    /// Its certificate.
    pub certificate: Certificate,
    /// The frame of the lease, if its holders have renewed it (docs/spec/wire.md#lease).
    pub handover: Option<Vec<u8>>,
}

/// Two manifests of one version: the proof that their owner's key signed twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equivocation {
    a: SignedManifest,
    b: SignedManifest,
}

/// How an equivocation travels and is kept (docs/spec/wire.md#equivocation).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EquivocationWire {
    /// The manifest with the lower hash.
    pub a: ManifestWire,
    /// The other one.
    pub b: ManifestWire,
}

/// Why two manifests prove nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EquivocationError {
    /// Not a frame.
    #[error("the evidence does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// One of them is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An owner may sign both.
    #[error("the manifests are of different sections or versions")]
    Unrelated,
    /// Twice the same, or in the wrong order: one proof has one encoding.
    #[error("the manifests are the same, or not ordered by hash")]
    Order,
}

impl Equivocation {
    /// The proof, if these two are one. Both were verified, in any order.
    pub fn of(one: &SignedManifest, other: &SignedManifest) -> Option<Self> {
        let related = one.key == other.key && one.version == other.version && one.hash() != other.hash();
        let (a, b) = if one.hash() < other.hash() { (one, other) } else { (other, one) };
        related.then(|| Self { a: a.clone(), b: b.clone() })
    }

    /// The two, the one with the lower hash first.
    pub fn manifests(&self) -> [&SignedManifest; 2] {
        [&self.a, &self.b]
    }

    /// As a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(&EquivocationWire { a: self.a.wire().clone(), b: self.b.wire().clone() })
    }

    /// Decodes and verifies everything.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, EquivocationError> {
        let EquivocationWire { a, b } = wire::decode(bytes)?;
        let (a, b) = (SignedManifest::verify(a, verifier)?, SignedManifest::verify(b, verifier)?);
        if a.key != b.key || a.version != b.version {
            return Err(EquivocationError::Unrelated);
        }
        if a.hash() >= b.hash() {
            return Err(EquivocationError::Order);
        }
        Ok(Self { a, b })
    }
}

impl CertifiedHead {
    /// The Kademlia record value, and the file of `certificate export`.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(&self.to_wire())
    }

    /// As a part of a larger frame.
    pub fn to_wire(&self) -> HeadWire {
        let handover = self.lease.as_ref().map(|lease| lease.frame().to_vec());
        HeadWire { manifest: self.manifest.wire().clone(), certificate: self.certificate.clone(), handover }
    }

    /// Who holds the shards now, by index: those of the last link, or the manifest's.
    pub fn holders(&self) -> &[PeerKey] {
        self.lease.as_ref().map_or(&self.manifest.holders, Lease::holders)
    }

    /// The shard index of `peer`, if it is a holder now.
    pub fn index_of(&self, peer: &PeerKey) -> Option<u8> {
        self.holders().iter().position(|holder| holder == peer).map(|index| index as u8)
    }

    /// When it was issued or last renewed, in milliseconds since the Unix epoch.
    pub fn renewed_at_ms(&self) -> u64 {
        self.lease.as_ref().map_or(self.manifest.issued_at_ms, Lease::issued_at_ms)
    }

    /// When it expires, in milliseconds since the Unix epoch.
    pub fn expires_at_ms(&self) -> u64 {
        self.lease.as_ref().map_or(self.manifest.expires_at_ms(), |lease| self.manifest.link_expires_at_ms(lease.issued_at_ms()))
    }

    /// The generation of the last link; 0 without a lease.
    pub fn generation(&self) -> u32 {
        self.lease.as_ref().map_or(0, |lease| self.manifest.generation_at(lease.issued_at_ms()))
    }

    /// Its holder sets as a later version names them: of the last link, and of those before it that a reader may still be led to.
    pub fn as_older_sets(&self, now_ms: u64) -> Vec<OlderSet> {
        let last = OlderSet { holders: self.holders().to_vec(), expires_at_ms: self.expires_at_ms(), ..self.manifest.as_older_set() };
        let before = self.lease.iter().flat_map(|lease| lease.handovers(&self.manifest)).filter(|handover| handover.changes());
        let mut sets: Vec<OlderSet> = before
            .map(|handover| OlderSet {
                version: self.manifest.version,
                expires_at_ms: self.manifest.link_expires_at_ms(handover.issued_at_ms),
                holders: handover.before,
                renew_until_ms: 0, // the last set has what may follow
            })
            .filter(|set| set.expires_at_ms.saturating_add(SET_MEMORY_MS) > now_ms)
            .collect();
        sets.push(last);
        sets
    }

    /// Decodes and verifies everything: the owner's signature and every ack.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        Self::verify(wire::decode(bytes)?, verifier)
    }

    /// Verifies everything: the owner's signature and every ack.
    pub fn verify(wire: HeadWire, verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        Self::verify_with(wire, None, verifier)
    }

    /// Verifies everything but what a `known` head of the same manifest proves: the manifest, its being certified, and the links that both
    /// leases begin with.
    pub fn verify_with(wire: HeadWire, known: Option<&Self>, verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        let known = known.filter(|known| *known.manifest.wire() == wire.manifest);
        let HeadWire { manifest, certificate, handover } = wire;
        let manifest = match known {
            Some(known) => known.manifest.clone(),
            None => SignedManifest::verify(manifest, verifier)?,
        };
        let certificate = match known {
            Some(known) => known.certificate.clone(),
            None => certificate.verify(&manifest, verifier).map(|()| certificate)?,
        };
        let known = known.and_then(|known| known.lease.as_ref());
        let lease = handover.map(|frame| Lease::verify(&frame, &manifest, known, verifier)).transpose()?;
        Ok(Self { manifest, certificate, lease })
    }

    /// Verifies everything but what is known: where the manifest is `known`, byte for byte, its owner's signature is not verified again.
    /// A holder that acked a manifest verifies its certificate alone.
    pub fn verify_after(wire: HeadWire, known: &SignedManifest, verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        if wire.manifest != *known.wire() {
            return Self::verify(wire, verifier);
        }
        let (manifest, HeadWire { certificate, handover, .. }) = (known.clone(), wire);
        certificate.verify(&manifest, verifier)?;
        let lease = handover.map(|frame| Lease::verify(&frame, &manifest, None, verifier)).transpose()?;
        Ok(Self { manifest, certificate, lease })
    }

    /// Decodes what this node stored itself after verifying it: everything is checked but the signatures.
    pub fn trusted(wire: HeadWire) -> Result<Self, CertificateError> {
        let HeadWire { manifest, certificate, handover } = wire;
        let manifest = SignedManifest::trusted(manifest)?;
        check_quorum(&manifest, &certificate.acks, manifest.shape.quorum())?;
        let lease = handover.map(|frame| Lease::trusted(&frame, &manifest)).transpose()?;
        Ok(Self { manifest, certificate, lease })
    }
}
