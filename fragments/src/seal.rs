//! Sealing: fields to stored bytes that only the owner, and whom it grants, can open (docs/spec/section.md#sealing).
//!
//! Every field has its own key, derived from the section key of the current key epoch, so that a field can be granted alone. The section
//! key is fresh randomness in every epoch and is wrapped in the *grants record*; in version 1 its one entry is the owner's recovery key.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use rand_core::CryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    CONTENT_BYTES_MAX, SECTION_BYTES_MAX,
    ids::{OwnerKey, SectionKey},
    manifest::Version,
    wire::{self, DecodeError},
};

/// The most fields in a section.
pub const FIELDS_MAX: usize = 64;

/// The longest field name, in bytes.
pub const FIELD_NAME_BYTES_MAX: usize = 64;

/// The most entries in a grants record.
pub const GRANTS_MAX: usize = 64;

/// What suite 1 writes: a nonce, the wrapped key and a tag.
const WRAPPED_BYTES: usize = 24 + 32 + 16;

/// Suite 1 of a grant: XChaCha20-Poly1305 under a 32-byte key that granter and grantee share. 0 is never used.
const SUITE_SHARED_KEY: u8 = 1;

const GRANT_LABEL: &[u8] = b"persona/grant/v1";
const FIELD_LABEL: &[u8] = b"persona/field/v1";
const FIELD_KEY_LABEL: &[u8] = b"persona/field-key/v1";

/// The named parts of a section, in plaintext. Wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, Vec<u8>>);

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a field, and returns the fields, so that they can be listed in one expression.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.set(name, value);
        self
    }

    /// Sets a field.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        if let Some(mut old) = self.0.insert(name.to_owned(), value.into()) {
            old.zeroize();
        }
    }

    /// A field's value.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Bytes of all names and values.
    pub fn len_bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name, format!("{} bytes", value.len())))).finish()
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

/// The section key of one key epoch: 32 fresh random bytes, never derived from another epoch's.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct EpochKey {
    epoch: u32,
    key: [u8; 32],
}

impl PartialEq for EpochKey {
    fn eq(&self, other: &Self) -> bool {
        self.epoch == other.epoch && bool::from(self.key.ct_eq(&other.key))
    }
}

impl Eq for EpochKey {}

impl EpochKey {
    /// A fresh key for `epoch`; the first epoch is 1.
    pub fn generate(epoch: u32, rng: &mut dyn CryptoRng) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        Self { epoch, key }
    }

    /// Which epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    fn field_key(&self, agent: &OwnerKey, field: &str) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&agent.0), &self.key)
            .expand_multi_info(&[FIELD_KEY_LABEL, field.as_bytes()], key.as_mut())
            .expect("32 bytes are within HKDF's output");
        key
    }
}

impl std::fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EpochKey(epoch {}, ..)", self.epoch)
    }
}

/// The owner's key for its own grants: derived from its root secret, so that the recovery file opens every section.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RecoveryKey([u8; 32]);

impl RecoveryKey {
    /// From 32 derived bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

/// What sealed bytes are bound to: bytes sealed for one place open in no other.
#[derive(Clone, Copy, Debug)]
pub struct SealContext {
    /// The agent.
    pub agent: OwnerKey,
    /// The section.
    pub section: SectionKey,
    /// The version under which the bytes are sealed; a renewal keeps it.
    pub content_version: Version,
}

impl SealContext {
    /// Associated data: fixed widths first, so that no two contexts have one encoding.
    fn bind(&self, label: &[u8], epoch: u32, tail: &[u8]) -> Vec<u8> {
        let version = &self.content_version;
        [
            label,
            &self.agent.0,
            &self.section.0,
            &version.term.to_le_bytes(),
            &version.device.0,
            &version.seq.to_le_bytes(),
            &epoch.to_le_bytes(),
            tail,
        ]
        .concat()
    }
}

/// A section as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum StoredSection {
    /// Readable by anyone who has the agent id: `card` alone.
    Public {
        /// The section's bytes.
        payload: Vec<u8>,
    },
    /// Readable by those whom the grants record names.
    Sealed {
        /// The key epoch of the section key.
        epoch: u32,
        /// The section key, wrapped once for each grantee. Entries name no recipient.
        grants: Vec<Grant>,
        /// The fields, ordered by name.
        fields: Vec<SealedField>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Grant {
    /// How it is wrapped.
    suite: u8,
    /// The encapsulated key of a public-key suite; empty for a shared key.
    encapsulated: Vec<u8>,
    /// Nonce and ciphertext.
    wrapped: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct SealedField {
    name: String,
    nonce: [u8; 24],
    ciphertext: Vec<u8>,
}

/// Why fields cannot be sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// More than [`SECTION_BYTES_MAX`].
    #[error("the section has {0} bytes, more than {SECTION_BYTES_MAX}")]
    TooLarge(usize),
    /// More than [`FIELDS_MAX`] fields, or a name longer than [`FIELD_NAME_BYTES_MAX`].
    #[error("a section has at most {FIELDS_MAX} fields, with names of at most {FIELD_NAME_BYTES_MAX} bytes")]
    Fields,
}

/// Why stored bytes do not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not a stored section.
    #[error("the stored section does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// No entry of the grants record opens with this key: it belongs to another agent, section or version, or access was not given.
    #[error("no grant in this section opens with this key")]
    NotGranted,
    /// The field was altered, or belongs to another agent, section, version or field.
    #[error("field {0:?} does not open: it was altered or sealed for another place")]
    Field(String),
    /// A sealed section where a public one was expected, or the other way round.
    #[error("the section is {found}, not {wanted}")]
    Kind {
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// Fields out of order or listed twice, too many of them, a name too long, or a grant that its suite does not write.
    #[error("the list of fields or grants is malformed")]
    Malformed,
}

/// Seals `fields` under `key`, with one grant: the owner's.
pub fn seal(
    fields: &Fields,
    key: &EpochKey,
    owner: &RecoveryKey,
    context: &SealContext,
    rng: &mut dyn CryptoRng,
) -> Result<Vec<u8>, SealError> {
    if fields.len_bytes() > SECTION_BYTES_MAX {
        return Err(SealError::TooLarge(fields.len_bytes()));
    }
    if fields.0.len() > FIELDS_MAX || fields.0.keys().any(|name| name.len() > FIELD_NAME_BYTES_MAX) {
        return Err(SealError::Fields);
    }
    let nonce = random_nonce(rng);
    let bound = context.bind(GRANT_LABEL, key.epoch, &[SUITE_SHARED_KEY]);
    let wrapped = [nonce.as_slice(), &encrypt(&owner.0, &nonce, &key.key, &bound)].concat();
    let sealed_fields = fields
        .iter()
        .map(|(name, value)| {
            let nonce = random_nonce(rng);
            let bound = context.bind(FIELD_LABEL, key.epoch, name.as_bytes());
            let ciphertext = encrypt(&key.field_key(&context.agent, name), &nonce, value, &bound);
            SealedField { name: name.to_owned(), nonce, ciphertext }
        })
        .collect();
    let grants = vec![Grant { suite: SUITE_SHARED_KEY, encapsulated: Vec::new(), wrapped }];
    let stored = wire::encode(&StoredSection::Sealed { epoch: key.epoch, grants, fields: sealed_fields });
    debug_assert!(stored.len() <= CONTENT_BYTES_MAX);
    Ok(stored)
}

/// Opens what [`seal`] made, with the owner's key. Also returns the section key, for the next seal in this epoch.
pub fn open(stored: &[u8], owner: &RecoveryKey, context: &SealContext) -> Result<(EpochKey, Fields), OpenError> {
    let (epoch, grants, sealed_fields) = match wire::decode(stored)? {
        StoredSection::Sealed { epoch, grants, fields } => (epoch, grants, fields),
        StoredSection::Public { .. } => return Err(OpenError::Kind { found: "public", wanted: "sealed" }),
    };
    let ordered = sealed_fields.windows(2).all(|pair| pair[0].name < pair[1].name);
    let named = sealed_fields.iter().all(|field| field.name.len() <= FIELD_NAME_BYTES_MAX);
    if !ordered || !named || sealed_fields.len() > FIELDS_MAX || grants.len() > GRANTS_MAX {
        return Err(OpenError::Malformed);
    }
    let ours = |grant: &&Grant| grant.suite == SUITE_SHARED_KEY;
    if grants.iter().filter(ours).any(|grant| !grant.encapsulated.is_empty() || grant.wrapped.len() != WRAPPED_BYTES) {
        return Err(OpenError::Malformed);
    }
    let bound = context.bind(GRANT_LABEL, epoch, &[SUITE_SHARED_KEY]);
    let key = grants
        .iter()
        .filter(ours)
        .find_map(|grant| {
            let (nonce, ciphertext) = grant.wrapped.split_first_chunk()?;
            let plaintext = Zeroizing::new(decrypt(&owner.0, nonce, ciphertext, &bound)?);
            Some(EpochKey { epoch, key: plaintext.as_slice().try_into().ok()? })
        })
        .ok_or(OpenError::NotGranted)?;
    let mut fields = Fields::new();
    for field in sealed_fields {
        let bound = context.bind(FIELD_LABEL, epoch, field.name.as_bytes());
        let value = decrypt(&key.field_key(&context.agent, &field.name), &field.nonce, &field.ciphertext, &bound)
            .ok_or_else(|| OpenError::Field(field.name.clone()))?;
        fields.set(&field.name, value);
    }
    Ok((key, fields))
}

/// The stored bytes of a public section.
pub fn publish(payload: &[u8]) -> Result<Vec<u8>, SealError> {
    if payload.len() > SECTION_BYTES_MAX {
        return Err(SealError::TooLarge(payload.len()));
    }
    Ok(wire::encode(&StoredSection::Public { payload: payload.to_vec() }))
}

/// The payload of a public section.
pub fn read_public(stored: &[u8]) -> Result<Vec<u8>, OpenError> {
    match wire::decode(stored)? {
        StoredSection::Public { payload } => Ok(payload),
        StoredSection::Sealed { .. } => Err(OpenError::Kind { found: "sealed", wanted: "public" }),
    }
}

fn random_nonce(rng: &mut dyn CryptoRng) -> [u8; 24] {
    let mut nonce = [0; 24];
    rng.fill_bytes(&mut nonce);
    nonce
}

fn encrypt(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8], bound: &[u8]) -> Vec<u8> {
    XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(*nonce), Payload { msg: plaintext, aad: bound })
        .expect("a section is far below the cipher's limit")
}

fn decrypt(key: &[u8; 32], nonce: &[u8; 24], ciphertext: &[u8], bound: &[u8]) -> Option<Vec<u8>> {
    XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: bound }).ok()
}
