//! The keystore's bytes (docs/spec/keystore.md#format).

use std::collections::BTreeMap;

use argon2::{Algorithm, Argon2, Params};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use persona_fragments::OwnerKey;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{AgentEntry, AgentSecrets, ByName, ImportSecrets, Passphrase};

/// The version that this build writes.
pub const FORMAT_VERSION: u8 = 2;

/// The oldest version that this build reads. It has no entries of kinds 5 and 6.
const FORMAT_VERSION_MIN: u8 = 1;

/// Bytes of a salt.
pub const SALT_BYTES: usize = 16;

/// The most agents in a keystore.
pub const AGENTS_MAX: usize = 4096;

/// The longest name of an agent, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// No keystore is larger: [`AGENTS_MAX`] agents, each with an import and a mark, take two thirds of it.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;

const _: () =
    assert!(AGENTS_MAX * (4 * (ENTRY_HEAD_BYTES + TAG_BYTES) + 2 * (AGENT_HEAD_BYTES + NAME_BYTES_MAX) + 32) < FILE_BYTES_MAX as usize);

const MAGIC: &[u8; 8] = b"PERSONAK";
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Kind, id, nonce, length.
const ENTRY_HEAD_BYTES: usize = 1 + 16 + NONCE_BYTES + 4;

/// What stands before the name in an agent's entry: term, agent id, root secret.
const AGENT_HEAD_BYTES: usize = 8 + 32 + 32;

const MASTER_LABEL: &[u8] = b"persona/keystore/master/v1";
const ENTRY_LABEL: &[u8] = b"persona/keystore/entry/v1";
const FILE_LABEL: &[u8] = b"persona/keystore/file/v1";
const SUM_LABEL: &[u8] = b"persona/keystore/sum/v1";

/// What a guess of the passphrase costs: Argon2id (RFC 9106), version 0x13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Why a cost is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    /// Outside of what Argon2 defines, or more than this version spends on a file that someone handed it.
    #[error(
        "Argon2 parameters m={memory_kib} KiB, t={passes}, p={lanes} are out of bounds: m is 8 p to {} KiB, t is 1 to {}, p is 1 to {}",
        Cost::MEMORY_KIB_MAX,
        Cost::PASSES_MAX,
        Cost::LANES_MAX
    )]
    OutOfBounds {
        /// Memory.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// The memory is not there.
    #[error("Argon2 cannot have {0} KiB of memory: free some and try again")]
    Memory(u32),
}

impl Cost {
    /// What is used unless a test says otherwise: 64 MiB, three passes, one lane, the second recommendation of RFC 9106 section 4 with one
    /// lane, since a daemon must not take all cores. 0.1 to 0.5 s.
    pub const STANDARD: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 1 };

    /// A file may ask for no more than 1 GiB.
    const MEMORY_KIB_MAX: u32 = 1 << 20;
    const PASSES_MAX: u32 = 16;
    const LANES_MAX: u32 = 8;

    /// As little as Argon2 allows, for tests: no protection at all.
    pub const fn for_tests_only() -> Self {
        Self { memory_kib: 8, passes: 1, lanes: 1 }
    }

    /// As a file says it: memory in KiB, passes, lanes.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, CostError> {
        let in_bounds = (1..=Self::LANES_MAX).contains(&lanes)
            && (1..=Self::PASSES_MAX).contains(&passes)
            && (8 * lanes..=Self::MEMORY_KIB_MAX).contains(&memory_kib);
        if in_bounds { Ok(Self { memory_kib, passes, lanes }) } else { Err(CostError::OutOfBounds { memory_kib, passes, lanes }) }
    }

    /// Memory in KiB.
    pub fn memory_kib(&self) -> u32 {
        self.memory_kib
    }

    /// Passes over the memory.
    pub fn passes(&self) -> u32 {
        self.passes
    }

    /// Lanes.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }
}

/// A key from a passphrase. Recovery files and backups use it too, each with a salt of its own.
pub fn derive_key(passphrase: &Passphrase, salt: &[u8; SALT_BYTES], cost: Cost) -> Result<Zeroizing<[u8; 32]>, CostError> {
    let Cost { memory_kib, passes, lanes } = cost;
    let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(|_| CostError::OutOfBounds { memory_kib, passes, lanes })?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.expose().as_bytes(), salt, key.as_mut())
        .map_err(|_| CostError::Memory(memory_kib))?;
    Ok(key)
}

/// What an entry is. The number is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    NodeSeed = 1,
    NodeKey = 2,
    Agent = 3,
    BehaviourSeed = 4,
    /// An agent that is being imported: as [`Kind::Agent`], with the term that it is taken over from, and without a behaviour seed.
    Importing = 5,
    /// Of the agent with this id no recovery file is known to have been written.
    NoRecovery = 6,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::NodeSeed, Self::NodeKey, Self::Agent, Self::BehaviourSeed, Self::Importing, Self::NoRecovery]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// Which agent an entry belongs to, without telling: random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId([u8; 16]);

impl EntryId {
    /// The node's own entries.
    pub(super) const NODE: Self = Self([0; 16]);

    pub(super) fn fresh() -> Self {
        Self(random())
    }
}

/// Nonce, ciphertext and tag.
#[derive(Clone)]
struct Sealed {
    nonce: [u8; NONCE_BYTES],
    ciphertext: Vec<u8>,
}

/// The head of the file: how the passphrase opens the master key.
#[derive(Clone)]
pub(super) struct Wrapped {
    salt: [u8; SALT_BYTES],
    cost: Cost,
    master: Sealed,
}

/// Why bytes are not a keystore that this passphrase opens.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    WrongPassphrase,
    Newer(u8),
    Damaged(String),
    Cost(CostError),
}

fn damaged(detail: &str) -> ReadError {
    ReadError::Damaged(detail.to_owned())
}

/// A keystore in memory: the master key in the clear, the entries sealed.
#[derive(Clone)]
pub(super) struct Contents {
    wrapped: Wrapped,
    master: Zeroizing<[u8; 32]>,
    entries: BTreeMap<(Kind, EntryId), Sealed>,
}

impl Contents {
    pub(super) fn create(passphrase: &Passphrase, cost: Cost) -> Result<Self, CostError> {
        let master = Zeroizing::new(random());
        let wrapped = wrap(&master, passphrase, cost)?;
        let mut contents = Self { wrapped, master, entries: BTreeMap::new() };
        for kind in [Kind::NodeSeed, Kind::NodeKey] {
            contents.seal(kind, EntryId::NODE, Zeroizing::new(random::<32>()).as_slice());
        }
        Ok(contents)
    }

    /// The bytes, and the checksum at their end.
    pub(super) fn write(&self) -> (Vec<u8>, [u8; 32]) {
        let mut out = self.wrapped.head(FORMAT_VERSION);
        out.extend(self.wrapped.master.nonce);
        out.extend(&self.wrapped.master.ciphertext);
        out.extend(u32::try_from(self.entries.len()).expect("at most two for each of AGENTS_MAX agents, and the node's").to_le_bytes());
        for ((kind, id), sealed) in &self.entries {
            out.push(*kind as u8);
            out.extend(id.0);
            out.extend(sealed.nonce);
            out.extend(u32::try_from(sealed.ciphertext.len()).expect("entries are short").to_le_bytes());
            out.extend(&sealed.ciphertext);
        }
        let seal = encrypt(&self.master, &[], &[FILE_LABEL, &out]);
        out.extend(seal.nonce);
        out.extend(seal.ciphertext);
        let checksum = checksum(&out);
        out.extend(checksum);
        (out, checksum)
    }

    pub(super) fn read(bytes: &[u8], passphrase: &Passphrase) -> Result<(Self, [u8; 32]), ReadError> {
        let mut reader = Reader(bytes);
        if reader.take::<8>()? != *MAGIC {
            return Err(damaged("it does not begin as a keystore"));
        }
        let version = match reader.take::<1>()? {
            [version @ FORMAT_VERSION_MIN..=FORMAT_VERSION] => version,
            [0] => return Err(damaged("its format is 0")),
            [found] => return Err(ReadError::Newer(found)),
        };
        let (summed, sum) = bytes.split_last_chunk::<32>().ok_or_else(|| damaged("it ends too early"))?;
        if checksum(summed) != *sum {
            return Err(damaged("its checksum does not match"));
        }
        let salt = reader.take()?;
        let [memory_kib, passes, lanes] = [reader.number()?, reader.number()?, reader.number()?];
        let cost = Cost::new(memory_kib, passes, lanes).map_err(ReadError::Cost)?;
        let master = Sealed { nonce: reader.take()?, ciphertext: reader.slice(32 + TAG_BYTES)?.to_vec() };
        let wrapped = Wrapped { salt, cost, master };
        let key = derive_key(passphrase, &salt, cost).map_err(ReadError::Cost)?;
        let master = decrypt(&key, &wrapped.master, &[MASTER_LABEL, &wrapped.head(version)]).ok_or(ReadError::WrongPassphrase)?;
        let master = Zeroizing::new(master.as_slice().try_into().expect("its length was read"));
        // The master key is bound to the version: the next write is of this one.
        let wrapped = if version == FORMAT_VERSION { wrapped } else { wrap_under(&key, &master, salt, cost) };

        let mut entries = BTreeMap::new();
        for _ in 0..reader.number()? {
            let [kind] = reader.take()?;
            let kind = Kind::from_number(kind).filter(|kind| version > 1 || *kind < Kind::Importing);
            let kind = kind.ok_or_else(|| damaged("an entry is of an unknown kind"))?;
            let at = (kind, EntryId(reader.take()?));
            let nonce = reader.take()?;
            let len = reader.number()? as usize;
            let ciphertext = reader.slice(len)?.to_vec();
            if entries.last_key_value().is_some_and(|(last, _)| *last >= at) {
                return Err(damaged("its entries are out of order"));
            }
            entries.insert(at, Sealed { nonce, ciphertext });
        }
        let sealed_len = bytes.len() - reader.0.len();
        let seal = Sealed { nonce: reader.take()?, ciphertext: reader.slice(TAG_BYTES)?.to_vec() };
        if reader.0.len() != sum.len() {
            return Err(damaged("bytes follow the last entry"));
        }
        decrypt(&master, &seal, &[FILE_LABEL, &bytes[..sealed_len]]).ok_or_else(|| damaged("its entries were exchanged"))?;
        Ok((Self { wrapped, master, entries }, *sum))
    }

    /// Opens every entry once, and lists the agents, and those that are being imported.
    pub(super) fn agents(&self) -> Result<(ByName, ByName), String> {
        let (mut agents, mut importing) = (ByName::new(), ByName::new());
        for kind in [Kind::NodeSeed, Kind::NodeKey] {
            self.open(kind, EntryId::NODE, 32).ok_or("an entry of the node's is missing or altered")?;
        }
        for (kind, id) in self.entries.keys().copied() {
            match kind {
                Kind::NodeSeed | Kind::NodeKey if id == EntryId::NODE => {}
                Kind::NodeSeed | Kind::NodeKey => return Err("the node has two entries of a kind".to_owned()),
                Kind::BehaviourSeed if self.entries.contains_key(&(Kind::Agent, id)) => {}
                Kind::BehaviourSeed => return Err("a behaviour seed has no agent".to_owned()),
                Kind::NoRecovery if self.entries.contains_key(&(Kind::Agent, id)) => {
                    self.open(kind, id, 0).filter(|plaintext| plaintext.is_empty()).ok_or("a mark of an agent is altered")?;
                }
                Kind::NoRecovery => return Err("a mark has no agent".to_owned()),
                Kind::Importing => {
                    let entry = self.agent_entry(kind, id).ok_or("the entry of an import is altered")?;
                    if importing.values().any(|(_, other)| other.agent == entry.agent) {
                        return Err("an agent is being imported twice".to_owned());
                    }
                    if importing.insert(entry.name.clone(), (id, entry)).is_some() {
                        return Err("two agents that are being imported have one name".to_owned());
                    }
                }
                Kind::Agent => {
                    let entry = self.agent_entry(kind, id).ok_or("an agent's entry is altered")?;
                    self.open(Kind::BehaviourSeed, id, 32).ok_or("an agent's behaviour seed is missing or altered")?;
                    if agents.insert(entry.name.clone(), (id, entry)).is_some() {
                        return Err("two agents have one name".to_owned());
                    }
                }
            }
        }
        let clash =
            |(name, (_, coming)): (&String, &(EntryId, AgentEntry))| agents.get(name).is_some_and(|(_, here)| here.agent != coming.agent);
        if importing.iter().any(clash) {
            return Err("an agent that is being imported has another's name".to_owned());
        }
        Ok((agents, importing))
    }

    fn agent_entry(&self, kind: Kind, id: EntryId) -> Option<AgentEntry> {
        let plaintext = self.open(kind, id, AGENT_HEAD_BYTES)?;
        let mut reader = Reader(&plaintext);
        let term = u64::from_le_bytes(reader.take().ok()?);
        let agent = OwnerKey(reader.take().ok()?);
        let name = std::str::from_utf8(&plaintext[AGENT_HEAD_BYTES..]).ok()?;
        let named = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
        let recovery_written = !self.entries.contains_key(&(Kind::NoRecovery, id));
        named.then(|| AgentEntry { name: name.to_owned(), agent, term, recovery_written })
    }

    /// The root secret in an entry of an agent, or of an import.
    pub(super) fn root(&self, kind: Kind, id: EntryId) -> Zeroizing<[u8; 32]> {
        let plaintext = self.open(kind, id, AGENT_HEAD_BYTES).expect("every entry was opened when the keystore was");
        Zeroizing::new(plaintext[40..AGENT_HEAD_BYTES].try_into().expect("32 bytes"))
    }

    pub(super) fn secret(&self, kind: Kind, id: EntryId) -> Zeroizing<[u8; 32]> {
        let plaintext = self.open(kind, id, 32).expect("every entry was opened when the keystore was");
        Zeroizing::new(plaintext[..32].try_into().expect("32 bytes"))
    }

    pub(super) fn seal_agent(&mut self, id: EntryId, secrets: &AgentSecrets) {
        self.seal_root(Kind::Agent, id, secrets.term, &secrets.agent, &secrets.root, &secrets.name);
        self.seal(Kind::BehaviourSeed, id, &secrets.behaviour_seed);
    }

    pub(super) fn seal_import(&mut self, id: EntryId, secrets: &ImportSecrets) {
        self.seal_root(Kind::Importing, id, secrets.from_term, &secrets.agent, &secrets.root, &secrets.name);
    }

    /// Marks an agent whose recovery file nobody is known to have.
    pub(super) fn mark_no_recovery(&mut self, id: EntryId) {
        self.seal(Kind::NoRecovery, id, &[]);
    }

    fn seal_root(&mut self, kind: Kind, id: EntryId, term: u64, agent: &OwnerKey, root: &[u8; 32], name: &str) {
        // Reserved at once: a buffer that grows leaves copies behind.
        let mut plaintext = Zeroizing::new(Vec::with_capacity(AGENT_HEAD_BYTES + name.len()));
        plaintext.extend_from_slice(&term.to_le_bytes());
        plaintext.extend_from_slice(&agent.0);
        plaintext.extend_from_slice(root);
        plaintext.extend_from_slice(name.as_bytes());
        self.seal(kind, id, &plaintext);
    }

    /// Removes all entries of an agent that lives here.
    pub(super) fn remove_agent(&mut self, id: EntryId) {
        for kind in [Kind::Agent, Kind::BehaviourSeed, Kind::NoRecovery] {
            self.remove(kind, id);
        }
    }

    pub(super) fn remove(&mut self, kind: Kind, id: EntryId) {
        self.entries.remove(&(kind, id));
    }

    pub(super) fn wrap(&self, passphrase: &Passphrase, cost: Cost) -> Result<Wrapped, CostError> {
        wrap(&self.master, passphrase, cost)
    }

    pub(super) fn set_wrapped(&mut self, wrapped: Wrapped) {
        self.wrapped = wrapped;
    }

    fn seal(&mut self, kind: Kind, id: EntryId, plaintext: &[u8]) {
        let sealed = encrypt(&self.master, plaintext, &[ENTRY_LABEL, &[kind as u8], &id.0]);
        self.entries.insert((kind, id), sealed);
    }

    /// The plaintext, of at least `len_min` bytes.
    fn open(&self, kind: Kind, id: EntryId, len_min: usize) -> Option<Zeroizing<Vec<u8>>> {
        let sealed = self.entries.get(&(kind, id))?;
        decrypt(&self.master, sealed, &[ENTRY_LABEL, &[kind as u8], &id.0]).filter(|plaintext| plaintext.len() >= len_min)
    }
}

impl Wrapped {
    /// Everything before the master key: it is bound to it.
    fn head(&self, version: u8) -> Vec<u8> {
        let Cost { memory_kib, passes, lanes } = self.cost;
        let numbers = [memory_kib, passes, lanes].map(u32::to_le_bytes);
        [MAGIC.as_slice(), &[version], &self.salt, numbers.as_flattened()].concat()
    }
}

fn wrap(master: &[u8; 32], passphrase: &Passphrase, cost: Cost) -> Result<Wrapped, CostError> {
    let salt = random();
    let key = derive_key(passphrase, &salt, cost)?;
    Ok(wrap_under(&key, master, salt, cost))
}

/// Seals the master key for this version, under a passphrase key that `salt` and `cost` derive.
fn wrap_under(key: &[u8; 32], master: &[u8; 32], salt: [u8; SALT_BYTES], cost: Cost) -> Wrapped {
    let mut wrapped = Wrapped { salt, cost, master: Sealed { nonce: [0; NONCE_BYTES], ciphertext: Vec::new() } };
    wrapped.master = encrypt(key, master, &[MASTER_LABEL, &wrapped.head(FORMAT_VERSION)]);
    wrapped
}

fn checksum(bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(SUM_LABEL).chain_update(bytes).finalize().into()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

fn encrypt(key: &[u8; 32], plaintext: &[u8], bound: &[&[u8]]) -> Sealed {
    let nonce = random();
    let ciphertext = XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(nonce), Payload { msg: plaintext, aad: &bound.concat() })
        .expect("an entry is far below the cipher's limit");
    Sealed { nonce, ciphertext }
}

fn decrypt(key: &[u8; 32], sealed: &Sealed, bound: &[&[u8]]) -> Option<Zeroizing<Vec<u8>>> {
    let payload = Payload { msg: &sealed.ciphertext, aad: &bound.concat() };
    XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(sealed.nonce), payload).ok().map(Zeroizing::new)
}

/// The rest of the bytes, read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| damaged("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], ReadError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(|| damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, ReadError> {
        self.take().map(u32::from_le_bytes)
    }
}
