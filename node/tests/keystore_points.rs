//! Every point between two steps of the keystore on its files: the power goes there, or that step fails.
//!
//! The disk is a model: a file's bytes are durable once it was synced, names once their directory was. Of what was not, a power cut may leave
//! any part: of names any subset of the changes, of bytes any first part. After every cut the keystore must open, with all that was
//! reported, and of the change that was under way all or nothing. A keystore that is only being made may be missing.
#![allow(clippy::disallowed_methods, reason = "tests of files")]

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use persona::keystore::{
    AgentSecrets, Cost, ImportSecrets, KEYSTORE_FILE, Keystore, KeystoreError, Passphrase,
    files::{Disk as RealDisk, Files},
};
use persona_fragments::OwnerKey;

const DIRECTORY: &str = "d";

#[derive(Clone)]
enum Naming {
    Create(PathBuf, usize),
    Remove(PathBuf),
    Move(PathBuf, PathBuf),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, file) => drop(names.insert(path.clone(), *file)),
            Self::Remove(path) => drop(names.remove(path)),
            Self::Move(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

/// How a step goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The power goes: nothing happens any more.
    Cut,
    /// This step fails with ENOSPC; of a write, half is done.
    Full,
    /// This step fails with EIO. A sync that fails loses what it was to write, and the next one succeeds.
    Io,
    /// From here on nothing can be changed: EROFS.
    ReadOnly,
}

#[derive(Clone, Default)]
struct State {
    /// The content of each file ever made, as it is seen, and as it is durable; `lost` where a sync has failed.
    seen: Vec<Vec<u8>>,
    durable: Vec<Option<Vec<u8>>>,
    lost: Vec<bool>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending: Vec<Naming>,
    /// Changes of names that a failed sync of the directory has lost.
    names_lost: bool,
    steps: usize,
    fault: Option<(usize, Fault)>,
}

impl State {
    /// Counts a step. `Err` if it fails.
    fn step(&mut self, changes: bool) -> io::Result<()> {
        let at = self.steps;
        self.steps += 1;
        let code = match self.fault {
            Some((when, Fault::Cut)) if at >= when => 5,
            Some((when, Fault::ReadOnly)) if at >= when && changes => 30,
            Some((when, Fault::Full)) if at == when && changes => 28,
            Some((when, Fault::Io)) if at == when => 5,
            _ => return Ok(()),
        };
        Err(io::Error::from_raw_os_error(code))
    }

    fn change(&mut self, change: Naming) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The same system after the process ended: everything is as it was seen.
    fn restarted(&self) -> Self {
        Self { fault: None, steps: 0, ..self.clone() }
    }

    /// Every disk that a power cut may leave now.
    fn aftermaths(&self) -> Vec<Self> {
        let mut found = Vec::new();
        for kept in 0..1_u32 << self.pending.len() {
            let mut names = self.durable_names.clone();
            for (_, change) in self.pending.iter().enumerate().filter(|(nth, _)| kept >> nth & 1 == 1) {
                change.apply(&mut names);
            }
            for part in 0..4 {
                let contents: Vec<Vec<u8>> = (0..self.seen.len())
                    .map(|file| match (&self.durable[file], self.seen[file].len()) {
                        (Some(durable), _) => durable.clone(),
                        (None, _) if self.lost[file] => Vec::new(),
                        (None, len) => self.seen[file][..[0, len / 2, len.saturating_sub(1), len][part]].to_vec(),
                    })
                    .collect();
                found.push(Self {
                    durable: contents.iter().cloned().map(Some).collect(),
                    lost: vec![false; contents.len()],
                    seen: contents,
                    durable_names: names.clone(),
                    names: names.clone(),
                    ..Self::default()
                });
            }
        }
        found
    }
}

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn of(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> State {
        self.0.lock().unwrap().clone()
    }
}

impl Files for Disk {
    type Handle = usize;

    fn exists(&mut self, path: &Path) -> io::Result<bool> {
        let mut state = self.0.lock().unwrap();
        state.step(false)?;
        Ok(state.names.contains_key(path))
    }

    fn read(&mut self, path: &Path, _bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut state = self.0.lock().unwrap();
        state.step(false)?;
        let file = state.file(path)?;
        Ok(state.seen[file].clone())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step(true)?;
        state.file(path)?;
        state.change(Naming::Remove(path.to_owned()));
        Ok(())
    }

    fn create(&mut self, path: &Path) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        state.step(true)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.seen.len();
        state.seen.push(Vec::new());
        state.durable.push(None);
        state.lost.push(false);
        state.change(Naming::Create(path.to_owned(), file));
        Ok(file)
    }

    fn append(&mut self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let stepped = state.step(true);
        state.seen[*file].extend(if stepped.is_ok() { bytes } else { &bytes[..bytes.len() / 2] });
        stepped
    }

    fn sync(&mut self, file: &usize) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if let Err(error) = state.step(true) {
            state.lost[*file] = true;
            return Err(error);
        }
        if !state.lost[*file] {
            state.durable[*file] = Some(state.seen[*file].clone());
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step(true)?;
        state.file(from)?;
        state.change(Naming::Move(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        assert_eq!(directory, Path::new(DIRECTORY));
        if let Err(error) = state.step(true) {
            state.names_lost = true;
            return Err(error);
        }
        // Names come back with the journal, or not at all: what was lost stays open, whatever is synced later.
        if !state.names_lost {
            state.durable_names = state.names.clone();
            state.pending.clear();
        }
        Ok(())
    }
}

fn passphrases() -> [Passphrase; 2] {
    ["correct horse battery staple", "another"].map(|text| Passphrase::new(text.to_owned()))
}

fn agent(name: &str, term: u64) -> AgentSecrets {
    let id = name.as_bytes()[0];
    AgentSecrets { name: name.to_owned(), agent: OwnerKey([id; 32]), term, root: [id ^ 1; 32], behaviour_seed: [id ^ 2; 32] }
}

fn import(name: &str) -> ImportSecrets {
    let id = name.as_bytes()[0];
    ImportSecrets { name: name.to_owned(), agent: OwnerKey([id; 32]), from_term: 4, root: [id ^ 1; 32] }
}

type Change = fn(&mut Keystore<Disk>) -> Result<(), KeystoreError>;

/// Births, imports that come home, what is written and removed, and another passphrase.
const CHANGES: [Change; 8] = [
    |keystore| keystore.put_born(&agent("ada", 1)),
    |keystore| keystore.put_import(&import("cleo")),
    |keystore| keystore.recovery_written(&agent("ada", 1).agent),
    |keystore| keystore.put_agent(&agent("cleo", 5)),
    |keystore| keystore.change_passphrase(&passphrases()[1], Cost::for_tests_only()),
    |keystore| keystore.put_import(&import("dora")),
    |keystore| keystore.remove_agent("ada"),
    |keystore| keystore.remove_import(&import("dora").agent),
];

/// All that a keystore says.
#[derive(Debug, PartialEq)]
struct Said {
    node_seed: [u8; 32],
    node_key: [u8; 32],
    agents: Vec<(AgentSecrets, bool)>,
    imports: Vec<ImportSecrets>,
}

fn said(keystore: &Keystore<Disk>) -> Said {
    let agents = keystore.agents().into_iter().map(|entry| (keystore.agent(&entry.name).unwrap(), entry.recovery_written)).collect();
    Said { node_seed: *keystore.node_seed(), node_key: *keystore.node_key(), agents, imports: keystore.imports() }
}

/// What was reported, and what a change that failed would have made of it.
struct Ended {
    reported: Option<Said>,
    next: Option<Said>,
    failure: Option<KeystoreError>,
    open: Option<Keystore<Disk>>,
}

/// Makes a keystore, and changes it, opening it anew after every third change, until something fails.
fn run(disk: &Disk) -> Ended {
    let mut ended = Ended { reported: None, next: None, failure: None, open: None };
    let mut keystore = match Keystore::create_on(disk.clone(), Path::new(DIRECTORY), &passphrases()[0], Cost::for_tests_only()) {
        Ok(keystore) => keystore,
        Err(error) => return Ended { failure: Some(error), ..ended },
    };
    ended.reported = Some(said(&keystore));
    for (nth, change) in CHANGES.into_iter().enumerate() {
        // What it would be, on a disk of its own.
        let copy = Disk::of(disk.state().restarted());
        let passphrase = &passphrases()[usize::from(nth > 4)];
        let mut ahead = Keystore::open_on(copy, Path::new(DIRECTORY), passphrase).unwrap();
        change(&mut ahead).unwrap();
        ended.next = Some(said(&ahead));
        if let Err(error) = change(&mut keystore) {
            assert_eq!(Some(said(&keystore)), ended.reported, "what failed did not happen");
            return Ended { failure: Some(error), open: Some(keystore), ..ended };
        }
        ended.reported = Some(said(&keystore));
        assert_eq!(ended.reported, ended.next);
        ended.next = None;
        if nth % 3 == 2 {
            let passphrase = &passphrases()[usize::from(nth >= 4)];
            keystore = match Keystore::open_on(disk.clone(), Path::new(DIRECTORY), passphrase) {
                Ok(keystore) => keystore,
                Err(error) => return Ended { failure: Some(error), ..ended },
            };
        }
    }
    ended
}

/// Opens what is there, with whichever of the two passphrases.
fn open(state: State) -> Result<(Keystore<Disk>, Said), KeystoreError> {
    let disk = Disk::of(state);
    let [first, second] = passphrases();
    let keystore = Keystore::open_on(disk.clone(), Path::new(DIRECTORY), &first)
        .or_else(|_| Keystore::open_on(disk.clone(), Path::new(DIRECTORY), &second).map_err(|_| KeystoreError::WrongPassphrase))
        .or_else(|_| Keystore::open_on(disk, Path::new(DIRECTORY), &first))?;
    let said = said(&keystore);
    Ok((keystore, said))
}

/// Judges one disk after the end; it must go on from there.
fn judge(state: State, ended: &Ended, context: &dyn Fn() -> String) {
    match open(state.clone()) {
        Ok((mut keystore, found)) => {
            let fits = ended.reported.is_none() || Some(&found) == ended.reported.as_ref() || Some(&found) == ended.next.as_ref();
            assert!(fits, "{}: {found:?}, where {:?} or {:?} was to be", context(), ended.reported, ended.next);
            keystore.put_born(&agent("zoe", 1)).unwrap();
            let names: Vec<_> = state.names.keys().collect();
            assert!(names.len() <= 2, "{names:?}");
        }
        Err(KeystoreError::NotFound(_)) if ended.reported.is_none() => {
            Keystore::create_on(Disk::of(state), Path::new(DIRECTORY), &passphrases()[0], Cost::for_tests_only()).unwrap();
        }
        Err(error) => panic!("{}: {error}", context()),
    }
}

fn steps() -> usize {
    let disk = Disk::default();
    let ended = run(&disk);
    assert!(ended.failure.is_none(), "{:?}", ended.failure);
    disk.state().steps
}

#[test]
fn a_cut_at_any_step_leaves_the_old_keystore_or_the_new() {
    let mut disks = 0;
    let steps = steps();
    for at in 0..=steps {
        let disk = Disk::of(State { fault: Some((at, Fault::Cut)), ..State::default() });
        let ended = run(&disk);
        assert_eq!(ended.failure.is_none(), at == steps);
        for state in disk.state().aftermaths() {
            judge(state, &ended, &|| format!("a cut before step {at}"));
            disks += 1;
        }
        // A process that was killed there loses nothing that was written.
        judge(disk.state().restarted(), &ended, &|| format!("a kill before step {at}"));
    }
    eprintln!("{steps} steps, {disks} disks");
    assert!(steps > 60 && disks > 400, "{steps} {disks}");
}

#[test]
fn whichever_step_fails_it_is_said_and_changes_nothing() {
    let steps = steps();
    let mut undecided = 0;
    for at in 0..steps {
        for fault in [Fault::Full, Fault::Io, Fault::ReadOnly] {
            let disk = Disk::of(State { fault: Some((at, fault)), ..State::default() });
            let mut ended = run(&disk);
            // Reads need no room; and what is left over is removed by the next write.
            let Some(error) = &ended.failure else { continue };
            let said_so = error.to_string();
            let number = match fault {
                Fault::Full => 28,
                Fault::ReadOnly => 30,
                Fault::Io | Fault::Cut => 5,
            };
            assert!(said_so.contains(&format!("os error {number}")) && said_so.contains(KEYSTORE_FILE), "{said_so}");
            let context = || format!("{fault:?} at step {at}: {said_so}");
            for state in disk.state().aftermaths() {
                judge(state, &ended, &context);
            }
            judge(disk.state().restarted(), &ended, &context);
            // The disk is well again, and the process goes on: it can change things, or says that it cannot; never does it lie.
            let Some(mut keystore) = ended.open.take() else { continue };
            disk.0.lock().unwrap().fault = None;
            match keystore.put_born(&agent("zoe", 1)) {
                Ok(()) => {
                    let after = Ended { reported: Some(said(&keystore)), next: None, failure: None, open: None };
                    for state in disk.state().aftermaths() {
                        judge(state, &after, &context);
                    }
                }
                Err(KeystoreError::Undecided(_)) => {
                    undecided += 1;
                    assert!(disk.state().names_lost, "{}", context());
                }
                Err(error) => panic!("{}: {error}", context()),
            }
        }
    }
    assert_eq!(undecided, CHANGES.len() * 3, "a sync of the directory for each change, failing in three ways");
}

/// The same steps on a real directory, with a process that is killed before each of them.
#[test]
fn a_killed_process_leaves_the_old_file_or_the_new_and_the_next_change_works() {
    #[derive(Clone)]
    struct Killed(Arc<Mutex<usize>>);

    impl Killed {
        fn step(&self) -> io::Result<()> {
            let mut left = self.0.lock().unwrap();
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
            Ok(())
        }
    }

    impl Files for Killed {
        type Handle = std::fs::File;

        fn exists(&mut self, path: &Path) -> io::Result<bool> {
            RealDisk.exists(path)
        }

        fn read(&mut self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
            RealDisk.read(path, bytes_max)
        }

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            RealDisk.remove(path)
        }

        fn create(&mut self, path: &Path) -> io::Result<std::fs::File> {
            self.step()?;
            RealDisk.create(path)
        }

        fn append(&mut self, file: &mut std::fs::File, bytes: &[u8]) -> io::Result<()> {
            self.step().inspect_err(|_| RealDisk.append(file, &bytes[..bytes.len() / 2]).unwrap())?;
            RealDisk.append(file, bytes)
        }

        fn sync(&mut self, file: &std::fs::File) -> io::Result<()> {
            self.step()?;
            RealDisk.sync(file)
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            RealDisk.rename(from, to)
        }

        fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
            self.step()?;
            RealDisk.sync_directory(directory)
        }
    }

    let [passphrase, _] = passphrases();
    for steps_left in 0..6 {
        let directory = tempfile::tempdir().unwrap();
        let mut keystore = Keystore::create(directory.path(), &passphrase, Cost::for_tests_only()).unwrap();
        keystore.put_agent(&agent("ada", 1)).unwrap();
        let left = Arc::new(Mutex::new(usize::MAX));
        let mut killed = Keystore::open_on(Killed(Arc::clone(&left)), directory.path(), &passphrase).unwrap();
        *left.lock().unwrap() = steps_left;
        killed.put_agent(&agent("bob", 1)).unwrap_err();
        let mut keystore = Keystore::open(directory.path(), &passphrase).unwrap();
        assert_eq!(keystore.agents().len(), if steps_left < 5 { 1 } else { 2 }, "after {steps_left} steps");
        keystore.put_agent(&agent("cleo", 1)).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left over");
    }
}
