//! Everything secret of a node, in one sealed file (docs/spec/keystore.md).
//!
//! A passphrase opens the *master key* (Argon2id, then XChaCha20-Poly1305); the master key opens the entries, each sealed on its own and
//! bound to what it is: the node's identity seed, the key for values in its store, for each agent its root secret and, in an entry of its
//! own, its behaviour seed, and the root secret of each agent whose import is not over. A change replaces the whole file, so that whenever the power goes there is the old one or the new one.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use persona_fragments::OwnerKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub mod files;
mod format;
mod passphrase;

pub use format::{AGENTS_MAX, Cost, CostError, FORMAT_VERSION, NAME_BYTES_MAX, SALT_BYTES, derive_key};
pub use passphrase::{PASSPHRASE_VARIABLE, Passphrase, PassphraseError, PassphrasePurpose, PassphraseSource, passphrase};

use files::{Disk, Files, ReplaceError};
use format::{Contents, EntryId, Kind, ReadError};

/// The keystore's file name in a state directory.
pub const KEYSTORE_FILE: &str = "keystore";

/// Why the keystore does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// No file there.
    #[error("there is no keystore at {}: check the state directory, or create a node there first", .0.display())]
    NotFound(PathBuf),
    /// A file is there already: it is never replaced.
    #[error("there is a keystore at {} already: open it, or choose another state directory", .0.display())]
    AlreadyExists(PathBuf),
    /// The file is whole, and this passphrase does not open it.
    #[error("the passphrase is wrong: try again; nobody can recover a forgotten one, but recovery files bring agents back")]
    WrongPassphrase,
    /// The file is not what was written.
    #[error("the keystore {} is damaged ({detail}): restore it from a copy, or bring agents back from their recovery files", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// The file was written by a newer version.
    #[error("the keystore {} has format {found}, and this version of persona reads up to {FORMAT_VERSION}: upgrade persona", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u8,
    },
    /// Another process wrote the file since it was opened. Nothing was written.
    #[error("another process has changed the keystore {}: stop it, then start again", .0.display())]
    Changed(PathBuf),
    /// An earlier change was written and could not be synced: only the disk knows whether it counts.
    #[error(
        "whether the last change of the keystore {} is on the disk is not known, because a sync failed: nothing more is written to it; check the \
         disk, and start the node again",
        .0.display()
    )]
    Undecided(PathBuf),
    /// No agent of this name.
    #[error("there is no agent {0:?} here: `persona agent list` names those that are")]
    NoSuchAgent(String),
    /// Another agent has this name.
    #[error("another agent is called {0:?} already: choose another name")]
    NameTaken(String),
    /// Empty, or too long.
    #[error("an agent's name has 1 to {NAME_BYTES_MAX} bytes, this one {0}")]
    Name(usize),
    /// [`AGENTS_MAX`] are there.
    #[error("a keystore holds at most {AGENTS_MAX} agents: start another node for more")]
    TooManyAgents,
    /// The derivation cannot be done.
    #[error(transparent)]
    Cost(#[from] CostError),
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}; check the disk and the directory's permissions", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// An agent that lives here, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentEntry {
    /// What its user calls it, unique on this node.
    pub name: String,
    /// Its id.
    pub agent: OwnerKey,
    /// The term in which this node hosts it; of an import, the term of the host that it is taken over from.
    pub term: u64,
    /// Whether somebody is known to have written its recovery file: `false` from its birth until [`Keystore::recovery_written`].
    pub recovery_written: bool,
}

/// Agents by name, with the id that their entries share.
type ByName = BTreeMap<String, (EntryId, AgentEntry)>;

/// The secrets of an agent that is on its way here: its import is finished with them, whatever happens to this process. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ImportSecrets {
    /// What its user is going to call it.
    #[zeroize(skip)]
    pub name: String,
    /// Its id: the public key that the root secret derives.
    #[zeroize(skip)]
    pub agent: OwnerKey,
    /// The term of the host that it is taken over from.
    #[zeroize(skip)]
    pub from_term: u64,
    /// The root secret.
    pub root: [u8; 32],
}

impl std::fmt::Debug for ImportSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImportSecrets({:?}, {:?}, from term {}, ..)", self.name, self.agent, self.from_term)
    }
}

/// An agent's secrets. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct AgentSecrets {
    /// What its user calls it.
    #[zeroize(skip)]
    pub name: String,
    /// Its id: the public key that the root secret derives.
    #[zeroize(skip)]
    pub agent: OwnerKey,
    /// The term in which this node hosts it.
    #[zeroize(skip)]
    pub term: u64,
    /// The root secret: signing, agreement and recovery keys derive from it.
    pub root: [u8; 32],
    /// The behaviour seed: how the agent behaves derives from it, and from nothing else.
    pub behaviour_seed: [u8; 32],
}

impl std::fmt::Debug for AgentSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentSecrets({:?}, {:?}, term {}, ..)", self.name, self.agent, self.term)
    }
}

/// An open keystore. Entries stay sealed in memory until they are asked for.
pub struct Keystore<F = Disk> {
    files: F,
    path: PathBuf,
    contents: Contents,
    agents: ByName,
    importing: ByName,
    /// What the file ended with when this process last read or wrote it.
    checksum: [u8; 32],
    /// A change was written, and its sync failed.
    undecided: bool,
}

impl Keystore {
    /// Creates a keystore in `directory` (and the directory, for its user alone) with a fresh node seed and node key. It takes as long as
    /// `cost` says: 0.1 to 0.5 s for [`Cost::STANDARD`].
    pub fn create(directory: &Path, passphrase: &Passphrase, cost: Cost) -> Result<Self, KeystoreError> {
        files::create_private_directory(directory)
            .map_err(|source| io_error("create the directory of", &directory.join(KEYSTORE_FILE), source))?;
        Self::create_on(Disk, directory, passphrase, cost)
    }

    /// Opens the keystore in `directory`, and checks every entry.
    pub fn open(directory: &Path, passphrase: &Passphrase) -> Result<Self, KeystoreError> {
        let keystore = Self::open_on(Disk, directory, passphrase)?;
        if files::others_may_read(&keystore.path) {
            tracing::warn!(path = %keystore.path.display(), "others may read the keystore: `chmod 600` it");
        }
        Ok(keystore)
    }
}

impl<F: Files> Keystore<F> {
    /// [`Keystore::create`] in a directory that is there, on any file system.
    pub fn create_on(mut files: F, directory: &Path, passphrase: &Passphrase, cost: Cost) -> Result<Self, KeystoreError> {
        let path = directory.join(KEYSTORE_FILE);
        if files.exists(&path).map_err(|source| io_error("look for", &path, source))? {
            return Err(KeystoreError::AlreadyExists(path));
        }
        let contents = Contents::create(passphrase, cost)?;
        let (agents, importing) = (ByName::new(), ByName::new());
        let mut keystore = Self { files, path, contents, agents, importing, checksum: [0; 32], undecided: false };
        keystore.write()?;
        Ok(keystore)
    }

    /// [`Keystore::open`] on any file system.
    pub fn open_on(mut files: F, directory: &Path, passphrase: &Passphrase) -> Result<Self, KeystoreError> {
        let path = directory.join(KEYSTORE_FILE);
        let bytes = match files.read(&path, format::FILE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(KeystoreError::NotFound(path)),
            Err(source) => return Err(io_error("read", &path, source)),
        };
        let (contents, checksum) = Contents::read(&bytes, passphrase).map_err(|error| match error {
            ReadError::WrongPassphrase => KeystoreError::WrongPassphrase,
            ReadError::Newer(found) => KeystoreError::Newer { path: path.clone(), found },
            ReadError::Damaged(detail) => KeystoreError::Damaged { path: path.clone(), detail },
            ReadError::Cost(error) => KeystoreError::Cost(error),
        })?;
        let (agents, importing) = contents.agents().map_err(|detail| KeystoreError::Damaged { path: path.clone(), detail })?;
        files::remove_leftover(&mut files, &path);
        Ok(Self { files, path, contents, agents, importing, checksum, undecided: false })
    }

    /// The Ed25519 seed of the node's identity.
    pub fn node_seed(&self) -> Zeroizing<[u8; 32]> {
        self.contents.secret(Kind::NodeSeed, EntryId::NODE)
    }

    /// A key for what this node seals in its own store. Fresh randomness of its own; it never leaves this file.
    pub fn node_key(&self) -> Zeroizing<[u8; 32]> {
        self.contents.secret(Kind::NodeKey, EntryId::NODE)
    }

    /// The agents that live here, by name.
    pub fn agents(&self) -> Vec<AgentEntry> {
        self.agents.values().map(|(_, entry)| entry.clone()).collect()
    }

    /// The secrets of one agent.
    pub fn agent(&self, name: &str) -> Result<AgentSecrets, KeystoreError> {
        let (id, entry) = self.agents.get(name).ok_or_else(|| KeystoreError::NoSuchAgent(name.to_owned()))?;
        Ok(AgentSecrets {
            name: entry.name.clone(),
            agent: entry.agent,
            term: entry.term,
            root: *self.contents.root(Kind::Agent, *id),
            behaviour_seed: *self.contents.secret(Kind::BehaviourSeed, *id),
        })
    }

    /// Adds an agent that came from its recovery file, or updates the one of the same name and id. If it was being imported, it is no more.
    /// When this returns `Ok`, it is on the disk.
    pub fn put_agent(&mut self, secrets: &AgentSecrets) -> Result<(), KeystoreError> {
        self.put(secrets, true)
    }

    /// Adds an agent that was born here. Its recovery file is not written before [`Self::recovery_written`] says so.
    pub fn put_born(&mut self, secrets: &AgentSecrets) -> Result<(), KeystoreError> {
        self.put(secrets, false)
    }

    fn put(&mut self, secrets: &AgentSecrets, recovery_written: bool) -> Result<(), KeystoreError> {
        self.check_name(&secrets.name, &secrets.agent)?;
        let import = self.import_of(&secrets.agent);
        // An agent that came back under another name is the same agent: what was kept under the old one goes.
        let renamed: Vec<(String, EntryId)> = self
            .agents
            .iter()
            .filter(|(name, (_, known))| known.agent == secrets.agent && **name != secrets.name)
            .map(|(name, (id, _))| (name.clone(), *id))
            .collect();
        let id = match self.agents.get(&secrets.name) {
            Some((id, _)) => *id,
            None if self.agents.len() >= AGENTS_MAX => return Err(KeystoreError::TooManyAgents),
            None => EntryId::fresh(),
        };
        let entry = AgentEntry { name: secrets.name.clone(), agent: secrets.agent, term: secrets.term, recovery_written };
        self.change(|contents, agents, importing| {
            for (name, old) in renamed {
                contents.remove_agent(old);
                agents.remove(&name);
            }
            if let Some((name, old)) = import {
                contents.remove(Kind::Importing, old);
                importing.remove(&name);
            }
            contents.remove_agent(id);
            contents.seal_agent(id, secrets);
            if !recovery_written {
                contents.mark_no_recovery(id);
            }
            agents.insert(entry.name.clone(), (id, entry));
        })
    }

    /// An agent's recovery file is known to be written. When this returns `Ok`, that is on the disk.
    pub fn recovery_written(&mut self, agent: &OwnerKey) -> Result<(), KeystoreError> {
        let known = self.agents.values().find(|(_, known)| known.agent == *agent);
        let (id, entry) = known.ok_or_else(|| KeystoreError::NoSuchAgent(agent.to_did()))?.clone();
        if entry.recovery_written {
            return Ok(());
        }
        self.change(|contents, agents, _| {
            contents.remove(Kind::NoRecovery, id);
            agents.insert(entry.name.clone(), (id, AgentEntry { recovery_written: true, ..entry }));
        })
    }

    /// Keeps the secrets of an agent that is about to be taken over, beside what is kept of an earlier stay of its. When this returns `Ok`,
    /// they are on the disk.
    pub fn put_import(&mut self, secrets: &ImportSecrets) -> Result<(), KeystoreError> {
        self.check_name(&secrets.name, &secrets.agent)?;
        let before = self.import_of(&secrets.agent);
        if before.is_none() && self.importing.len() >= AGENTS_MAX {
            return Err(KeystoreError::TooManyAgents);
        }
        let id = before.as_ref().map_or_else(EntryId::fresh, |(_, id)| *id);
        let entry = AgentEntry { name: secrets.name.clone(), agent: secrets.agent, term: secrets.from_term, recovery_written: true };
        self.change(|contents, _, importing| {
            if let Some((name, _)) = before {
                importing.remove(&name);
            }
            contents.seal_import(id, secrets);
            importing.insert(entry.name.clone(), (id, entry));
        })
    }

    /// Forgets an import, if there is one of this agent. What is kept of an earlier stay stays.
    pub fn remove_import(&mut self, agent: &OwnerKey) -> Result<(), KeystoreError> {
        let Some((name, id)) = self.import_of(agent) else { return Ok(()) };
        self.change(|contents, _, importing| {
            contents.remove(Kind::Importing, id);
            importing.remove(&name);
        })
    }

    /// The imports that are not over, by name.
    pub fn imports(&self) -> Vec<ImportSecrets> {
        let secrets = |(id, entry): &(EntryId, AgentEntry)| ImportSecrets {
            name: entry.name.clone(),
            agent: entry.agent,
            from_term: entry.term,
            root: *self.contents.root(Kind::Importing, *id),
        };
        self.importing.values().map(secrets).collect()
    }

    fn import_of(&self, agent: &OwnerKey) -> Option<(String, EntryId)> {
        self.importing.iter().find(|(_, (_, known))| known.agent == *agent).map(|(name, (id, _))| (name.clone(), *id))
    }

    /// Whether `agent` may be called `name`: nobody else is, and nobody else is going to be.
    fn check_name(&self, name: &str, agent: &OwnerKey) -> Result<(), KeystoreError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(KeystoreError::Name(name.len()));
        }
        let taken = [&self.agents, &self.importing].iter().any(|known| known.get(name).is_some_and(|(_, known)| known.agent != *agent));
        if taken { Err(KeystoreError::NameTaken(name.to_owned())) } else { Ok(()) }
    }

    /// Forgets an agent's secrets. When this returns `Ok`, the file has them no more; a disk or a copy may (docs/spec/keystore.md#limits).
    pub fn remove_agent(&mut self, name: &str) -> Result<(), KeystoreError> {
        let (id, _) = *self.agents.get(name).as_ref().ok_or_else(|| KeystoreError::NoSuchAgent(name.to_owned()))?;
        let id = *id;
        self.change(|contents, agents, _| {
            contents.remove_agent(id);
            agents.remove(name);
        })
    }

    /// Seals the master key under another passphrase. Older copies of the file still open with the older one.
    pub fn change_passphrase(&mut self, passphrase: &Passphrase, cost: Cost) -> Result<(), KeystoreError> {
        let wrapped = self.contents.wrap(passphrase, cost)?;
        self.change(|contents, _, _| contents.set_wrapped(wrapped))
    }

    /// Changes memory and file together, or neither; where that cannot be said, nothing is changed any more.
    fn change(&mut self, change: impl FnOnce(&mut Contents, &mut ByName, &mut ByName)) -> Result<(), KeystoreError> {
        if self.undecided {
            return Err(KeystoreError::Undecided(self.path.clone()));
        }
        let on_disk = self.files.read(&self.path, format::FILE_BYTES_MAX).map_err(|source| io_error("read", &self.path, source))?;
        if !on_disk.ends_with(&self.checksum) {
            return Err(KeystoreError::Changed(self.path.clone()));
        }
        let before = (self.contents.clone(), self.agents.clone(), self.importing.clone());
        change(&mut self.contents, &mut self.agents, &mut self.importing);
        self.write().inspect_err(|_| (self.contents, self.agents, self.importing) = before)
    }

    fn write(&mut self) -> Result<(), KeystoreError> {
        let (bytes, checksum) = self.contents.write();
        match files::replace_on(&mut self.files, &self.path, &bytes) {
            Ok(()) => self.checksum = checksum,
            Err(ReplaceError::Unchanged(source)) => return Err(io_error("write", &self.path, source)),
            Err(ReplaceError::Undecided(source)) => {
                self.undecided = true;
                return Err(io_error("sync", &self.path, source));
            }
        }
        Ok(())
    }
}

impl<F> std::fmt::Debug for Keystore<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keystore({}, {} agents, ..)", self.path.display(), self.agents.len())
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> KeystoreError {
    KeystoreError::Io { action, path: path.to_owned(), source }
}
