//! Files that the shell reads: the keystore, and the pages of a damaged store.
#![allow(clippy::disallowed_methods, reason = "a seed is a file that a store wrote")]

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use persona::{
    keystore::{AgentSecrets, Cost, ImportSecrets, Keystore, Passphrase, files::Files},
    store::{STORE_FILE, Store, whole_rows},
};
use persona_fragments::OwnerKey;
use persona_mesh_proto::{PersistId, Table, Write};
use sha2::{Digest as _, Sha256};

/// Where the cost of the passphrase's key stands in the file (docs/spec/keystore.md#format).
const COST: std::ops::Range<usize> = 25..37;

const SUM_LABEL: &str = "persona/keystore/sum/v1";

/// One file, in memory.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Option<Vec<u8>>>>);

impl Files for Memory {
    type Handle = Vec<u8>;

    fn exists(&mut self, _: &Path) -> io::Result<bool> {
        Ok(self.0.lock().expect("one thread").is_some())
    }

    fn read(&mut self, _: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let file = self.0.lock().expect("one thread").clone().ok_or(io::ErrorKind::NotFound)?;
        if file.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(file) }
    }

    fn remove(&mut self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn append(&mut self, file: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
        file.extend(bytes);
        *self.0.lock().expect("one thread") = Some(file.clone());
        Ok(())
    }

    fn sync(&mut self, _: &Vec<u8>) -> io::Result<()> {
        Ok(())
    }

    fn rename(&mut self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&mut self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse".to_owned())
}

/// A keystore without agents, and one with an agent and an import, as their files hold them.
pub(crate) fn keystore_files() -> Vec<Vec<u8>> {
    let memory = Memory::default();
    let mut keystore = Keystore::create_on(memory.clone(), Path::new("d"), &passphrase(), Cost::for_tests_only()).expect("it is made");
    let file = || memory.0.lock().expect("one thread").clone().expect("it was written");
    let empty = file();
    let (root, behaviour_seed) = ([1; 32], [2; 32]);
    let secrets = AgentSecrets { name: "ada".into(), agent: OwnerKey([1; 32]), term: 1, root, behaviour_seed };
    keystore.put_born(&secrets).expect("there is room");
    keystore.put_import(&ImportSecrets { name: "bob".into(), agent: OwnerKey([2; 32]), from_term: 1, root }).expect("there is room");
    vec![empty, file()]
}

/// A store with a row in every table, as its file holds it, as far as it is not empty.
pub(crate) fn store_file() -> Vec<u8> {
    let directory = std::env::temp_dir().join(format!("persona-fuzz-{}", std::process::id()));
    let path = directory.join(STORE_FILE);
    let (events, mut said) = tokio::sync::mpsc::channel(4);
    let store = Store::open(&path, events).expect("it is made");
    store.submit(PersistId(1), Table::ALL.map(|table| Write::set(table, "key", "value")).to_vec()).expect("there is room");
    said.blocking_recv().expect("it is written");
    store.close();
    let mut file = std::fs::read(&path).expect("it is there");
    std::fs::remove_dir_all(&directory).expect("it is ours");
    let used = file.iter().rposition(|byte| *byte != 0).map_or(0, |last| last / 4096 + 1) * 4096;
    file.truncate(used);
    file
}

/// The file as it is, and with a cheap cost and the right checksum. A cost that is in bounds may take a second: no fuzzer pays that.
pub(crate) fn keystore(data: &[u8]) -> bool {
    let mut file = data.to_vec();
    if let Some(cost) = file.get_mut(COST) {
        for (at, value) in [8_u32, 1, 1].into_iter().enumerate() {
            cost[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    if let Some(end) = file.len().checked_sub(32) {
        let sum: [u8; 32] = Sha256::new().chain_update(SUM_LABEL).chain_update(&file[..end]).finalize().into();
        file[end..].copy_from_slice(&sum);
    }
    let memory = Memory(Arc::new(Mutex::new(Some(file))));
    let Ok(keystore) = Keystore::open_on(memory, Path::new("d"), &passphrase()) else { return false };
    let _ = (keystore.node_seed(), keystore.node_key(), keystore.imports());
    for entry in keystore.agents() {
        keystore.agent(&entry.name).expect("an agent that is listed is there");
    }
    true
}

/// The pages of a store that does not open: header, then pages of 4 KiB.
pub(crate) fn store(data: &[u8]) -> bool {
    let mut bytes = 0;
    whole_rows(data, |_, key, value| bytes += key.len() + value.len());
    bytes > 0
}
