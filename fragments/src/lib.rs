//! A section's bytes on their way to `n` verifiable shards, and back.
//!
//! A *section* is one independently stored part of an agent (docs/GLOSSARY.md). This crate turns it into what holders keep:
//!
//! ```text
//! fields --seal--> content --encode--> n shards + manifest --acks--> certificate
//! fields <--open-- content <--reconstruct-- any k shards that match the manifest
//! ```
//!
//! Everything here is pure: no clock, no file, no randomness of its own. Time never appears, randomness and signing keys are arguments.
//! What is written to the wire or to a disk is described first in `docs/spec/`, and encoded by [`wire`] alone.

pub mod ack;
pub mod certificate;
pub mod class;
pub mod coding;
pub mod ids;
pub mod lease;
pub mod manifest;
pub mod mutants;
pub mod seal;
pub mod shape;
pub mod sign;
pub mod wire;

pub use ack::{Ack, AckKind, AckLeaf, sign_batch};
pub use certificate::{AbortedVersion, Certificate, CertificateError, CertifiedHead, Equivocation, EquivocationError};
pub use class::{Class, ClassSpec, Classes};
pub use coding::{CodingError, ReconstructError, encode, reconstruct};
pub use ids::{DeviceId, Digest, OwnerKey, PeerKey, SectionKey, Signature};
pub use lease::{Handover, Lease, LeaseError, Link};
pub use manifest::{Manifest, ManifestError, OlderSet, SignedManifest, Version};
pub use seal::{EpochKey, Fields, OpenError, RecoveryKey, SealContext, SealError};
pub use shape::{Shape, ShapeError};
pub use sign::{Ed25519Signer, Ed25519Verifier, Signer, Verifier};

/// A section has at most this many bytes before sealing (docs/spec/section.md).
pub const SECTION_BYTES_MAX: usize = 1 << 20;

/// What sealing may add to a section: the header, the grants record, and a nonce, a tag and a name for each field.
pub const SEAL_OVERHEAD_BYTES_MAX: usize = 64 << 10;

/// A section as it is stored, sealed: the upper bound of a manifest's `content_len`.
pub const CONTENT_BYTES_MAX: usize = SECTION_BYTES_MAX + SEAL_OVERHEAD_BYTES_MAX;
