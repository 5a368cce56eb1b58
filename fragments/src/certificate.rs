//! The certificate: `n - f` holders' word that a version is durable, checkable by anyone, offline (docs/spec/quorum.md#certificate).

use bincode::{Decode, Encode};

use crate::{
    ack::{Ack, AckKind, AckLeaf},
    manifest::{ManifestError, ManifestWire, SignedManifest},
    sign::Verifier,
    wire::{self, DecodeError},
};

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
    /// A newer format carries a handover link that this build cannot check.
    #[error("the head carries a handover, which this version of persona cannot check")]
    Handover,
}

impl SignedManifest {
    /// What holder `index` signs to ack this manifest.
    pub fn ack_leaf(&self, index: u8) -> AckLeaf {
        AckLeaf { kind: AckKind::Ack, key: self.key, version: self.version, manifest_hash: self.hash(), index, generation: 0 }
    }
}

impl Certificate {
    /// Checks that `n - f` distinct holders of `manifest` signed for it.
    pub fn verify(&self, manifest: &SignedManifest, verifier: &dyn Verifier) -> Result<(), CertificateError> {
        let (have, need) = (self.acks.len(), usize::from(manifest.shape.quorum()));
        if have < need || have > usize::from(manifest.shape.n()) {
            return Err(CertificateError::Acks { have, need });
        }
        if !self.acks.windows(2).all(|pair| pair[0].index < pair[1].index) {
            return Err(CertificateError::Order);
        }
        for ack in &self.acks {
            let signed = manifest
                .holders
                .get(usize::from(ack.index))
                .is_some_and(|holder| ack.verify(&manifest.ack_leaf(ack.index), holder, verifier));
            if !signed {
                return Err(CertificateError::Ack { index: ack.index });
            }
        }
        Ok(())
    }
}

/// A manifest and the proof that it is durable: what Kademlia serves for a section, what `certificate export` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedHead {
    /// The manifest.
    pub manifest: SignedManifest,
    /// Its certificate.
    pub certificate: Certificate,
}

/// How a certified head travels (docs/spec/wire.md#certified-head).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeadWire {
    /// The manifest.
    pub manifest: ManifestWire,
    /// Its certificate.
    pub certificate: Certificate,
    /// The newest handover link of a leased section. Reserved: version 1 writes `None`.
    pub handover: Option<Vec<u8>>,
}

impl CertifiedHead {
    /// The Kademlia record value, and the file of `certificate export`.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(&self.to_wire())
    }

    /// As a part of a larger frame.
    pub fn to_wire(&self) -> HeadWire {
        HeadWire { manifest: self.manifest.wire().clone(), certificate: self.certificate.clone(), handover: None }
    }

    /// Decodes and verifies everything: the owner's signature and every ack.
    pub fn from_bytes(bytes: &[u8], verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        Self::verify(wire::decode(bytes)?, verifier)
    }

    /// Verifies everything: the owner's signature and every ack.
    pub fn verify(wire: HeadWire, verifier: &dyn Verifier) -> Result<Self, CertificateError> {
        let head = Self::unverified(wire, |wire| SignedManifest::verify(wire, verifier))?;
        head.certificate.verify(&head.manifest, verifier)?;
        Ok(head)
    }

    /// Decodes what this node stored itself after verifying it.
    pub fn trusted(wire: HeadWire) -> Result<Self, CertificateError> {
        Self::unverified(wire, SignedManifest::trusted)
    }

    fn unverified(
        wire: HeadWire,
        manifest: impl FnOnce(ManifestWire) -> Result<SignedManifest, ManifestError>,
    ) -> Result<Self, CertificateError> {
        if wire.handover.is_some() {
            return Err(CertificateError::Handover);
        }
        Ok(Self { manifest: manifest(wire.manifest)?, certificate: wire.certificate })
    }
}
