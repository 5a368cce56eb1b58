//! The recovery file: with it, its passphrase and the mesh, an agent can be brought back anywhere (docs/spec/agent.md#recovery-file).
//!
//! Printable lines of under 1 KB, so that it can be kept on paper. The passphrase is turned into a key by Argon2id in the shell, with the
//! parameters that the file carries; they are bound by the seal, and bounded, so that a forged file cannot exhaust the reader.

use bincode::{Decode, Encode};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use persona_fragments::{
    OwnerKey,
    wire::{self, DecodeError},
};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::{personality::NAME_BYTES_MAX, secret::RootSecret};

/// The largest recovery file, in bytes.
pub const RECOVERY_BYTES_MAX: usize = 1024;

const BEGIN: &str = "-----BEGIN PERSONA RECOVERY FILE-----";
const END: &str = "-----END PERSONA RECOVERY FILE-----";
const SEAL_LABEL: &[u8] = b"persona/recovery/v1";

/// How the passphrase becomes a key: Argon2id, version 0x13, 32 bytes of output (RFC 9106).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KdfParams {
    /// Fresh for every file.
    pub salt: [u8; 16],
    /// Memory in KiB. From 8 per lane to 1 GiB.
    pub m_kib: u32,
    /// Passes. 1 to 64.
    pub t: u32,
    /// Lanes. 1 to 16.
    pub p: u32,
}

impl KdfParams {
    fn in_range(&self) -> bool {
        (1..=16).contains(&self.p) && (1..=64).contains(&self.t) && (8 * self.p..=1 << 20).contains(&self.m_kib)
    }
}

/// A sealed recovery file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RecoveryFile {
    kdf: KdfParams,
    nonce: [u8; 24],
    ciphertext: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Contents {
    root: [u8; 32],
    agent: OwnerKey,
    name: String,
}

/// What a recovery file gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The root secret.
    pub root: RootSecret,
    /// The agent it belongs to.
    pub agent: OwnerKey,
    /// What people call the agent.
    pub name: String,
}

/// Why a recovery file gives nothing back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Not a recovery file.
    #[error("this is no recovery file: it starts with {BEGIN:?} and ends with {END:?}")]
    NotOne,
    /// The lines between are damaged.
    #[error("the recovery file is damaged: {0}; try another copy")]
    Damaged(#[from] DecodeError),
    /// Parameters that nobody would choose.
    #[error("the recovery file asks for {m_kib} KiB, {t} passes and {p} lanes of Argon2id, which is out of range; it was altered")]
    Params {
        /// Memory in KiB.
        m_kib: u32,
        /// Passes.
        t: u32,
        /// Lanes.
        p: u32,
    },
    /// Another passphrase, or altered bytes.
    #[error("the recovery file does not open with this passphrase; if you are sure of it, the file was altered")]
    Passphrase,
    /// The secret is not that of the agent it names.
    #[error("the recovery file names another agent than its secret belongs to")]
    Foreign,
}

impl RecoveryFile {
    /// Seals `root` under `key`, which the caller derived with `kdf` from the passphrase.
    ///
    /// # Panics
    /// If `kdf` is out of range, or `name` is longer than a name may be: the caller chose both.
    pub fn seal(root: &RootSecret, name: &str, kdf: KdfParams, key: &[u8; 32], rng: &mut dyn CryptoRng) -> Self {
        assert!(kdf.in_range(), "{kdf:?}");
        assert!(name.len() <= NAME_BYTES_MAX, "a name has at most {NAME_BYTES_MAX} bytes");
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let contents = Zeroizing::new(wire::encode(&Contents { root: *root.expose(), agent: root.agent_id(), name: name.to_owned() }));
        let ciphertext = XChaCha20Poly1305::new(key.into())
            .encrypt(&XNonce::from(nonce), Payload { msg: &contents, aad: &bound(&kdf) })
            .expect("far below the cipher's limit");
        Self { kdf, nonce, ciphertext }
    }

    /// How to turn the passphrase into the key for [`Self::open`].
    pub fn kdf(&self) -> &KdfParams {
        &self.kdf
    }

    /// Opens the file with the key that [`Self::kdf`] makes of the passphrase.
    pub fn open(&self, key: &[u8; 32]) -> Result<Recovered, RecoveryError> {
        let contents = XChaCha20Poly1305::new(key.into())
            .decrypt(&XNonce::from(self.nonce), Payload { msg: &self.ciphertext, aad: &bound(&self.kdf) })
            .map_err(|_| RecoveryError::Passphrase)?;
        let contents: Contents = wire::decode(&Zeroizing::new(contents))?;
        let root = RootSecret::from_bytes(contents.root);
        if root.agent_id() != contents.agent {
            return Err(RecoveryError::Foreign);
        }
        Ok(Recovered { root, agent: contents.agent, name: contents.name })
    }

    /// The file: a line that says what it is, base64, a last line.
    pub fn encode(&self) -> String {
        let base64 = data_encoding::BASE64.encode(&wire::encode(self));
        let lines: Vec<&str> = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
        format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
    }

    /// Reads a file. White space around and between its lines does not matter, so that a printed one can be typed in.
    pub fn decode(text: &str) -> Result<Self, RecoveryError> {
        if text.len() > 2 * RECOVERY_BYTES_MAX {
            return Err(RecoveryError::NotOne);
        }
        let inner = text.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).ok_or(RecoveryError::NotOne)?;
        let base64: String = inner.split_whitespace().collect();
        let bytes = data_encoding::BASE64
            .decode(base64.as_bytes())
            .map_err(|error| RecoveryError::Damaged(DecodeError::Malformed(error.to_string())))?;
        let file: Self = wire::decode(&bytes)?;
        if !file.kdf.in_range() {
            let KdfParams { m_kib, t, p, .. } = file.kdf;
            return Err(RecoveryError::Params { m_kib, t, p });
        }
        Ok(file)
    }
}

fn bound(kdf: &KdfParams) -> Vec<u8> {
    [SEAL_LABEL, &wire::encode(kdf)].concat()
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use proptest::prelude::*;
    use rand_core::SeedableRng as _;

    use super::*;

    const KDF: KdfParams = KdfParams { salt: [3; 16], m_kib: 65_536, t: 3, p: 1 };

    fn file() -> RecoveryFile {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        RecoveryFile::seal(&RootSecret::from_bytes([7; 32]), &"n".repeat(NAME_BYTES_MAX), KDF, &[9; 32], &mut rng)
    }

    #[test]
    fn a_recovery_file_is_small_and_brings_back_what_was_sealed() {
        let text = file().encode();
        assert!(text.len() < RECOVERY_BYTES_MAX, "{}", text.len());
        let typed = text.replace('\n', "  \r\n ");
        let read = RecoveryFile::decode(&typed).expect("white space does not matter");
        assert_eq!(read.kdf(), &KDF);
        let recovered = read.open(&[9; 32]).expect("the right key");
        assert_eq!(recovered.root, RootSecret::from_bytes([7; 32]));
        assert_eq!(recovered.agent, RootSecret::from_bytes([7; 32]).agent_id());
        assert_eq!(read.open(&[8; 32]), Err(RecoveryError::Passphrase));
    }

    #[test]
    fn altered_or_truncated_files_are_refused() {
        let bytes = wire::encode(&file());
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let text = format!("{BEGIN}\n{}\n{END}", data_encoding::BASE64.encode(&altered));
            assert!(RecoveryFile::decode(&text).and_then(|file| file.open(&[9; 32])).is_err(), "bit {bit}");
        }
        let text = file().encode();
        assert!((0..text.len() - 1).all(|len| RecoveryFile::decode(&text[..len]).is_err()));
    }

    #[test]
    fn greedy_parameters_are_refused_before_they_are_used() {
        let greedy = RecoveryFile { kdf: KdfParams { m_kib: u32::MAX, ..KDF }, ..file() };
        assert_eq!(RecoveryFile::decode(&greedy.encode()), Err(RecoveryError::Params { m_kib: u32::MAX, t: 3, p: 1 }));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,300}") {
            prop_assert!(RecoveryFile::decode(&text).is_err());
            let framed = format!("{BEGIN}{text}{END}");
            prop_assert!(RecoveryFile::decode(&framed).is_err());
        }
    }
}
