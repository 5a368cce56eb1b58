//! A damaged store: whatever byte of its file is another one, it opens with all that it held, or says that it is damaged; and then what is
//! whole is kept, what is lost is said, and nothing is ever another value than what was stored.
#![allow(clippy::disallowed_methods, reason = "tests of files")]

mod common;

use std::path::{Path, PathBuf};

use chacha20::ChaCha20Rng;
use common::*;
use persona::store::{STORE_FILE, Salvage, Store, StoreError, StoreEvent};
use persona_mesh_proto::storage::{PersistId, Table, Write};
use rand_core::{Rng, SeedableRng};
use tokio::sync::mpsc;

const PAGE_BYTES: usize = 4096;

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(STORE_FILE);
        Self { _directory: directory, path }
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn open(path: &Path) -> Result<(Store, mpsc::Receiver<StoreEvent>), StoreError> {
    let (sender, receiver) = mpsc::channel(64);
    Ok((Store::open(path, sender)?, receiver))
}

/// What a store of every table holds: some tables have one page, some are trees, one has a value of many pages, one is empty.
fn rows() -> Contents {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut rows = Contents::new();
    let mut add = |table: Table, count: u32, len: usize| {
        for nth in 0..count {
            let mut value = vec![0; len + nth as usize % 7];
            rng.fill_bytes(&mut value);
            rows.insert((table, [&[7; 28][..], &nth.to_be_bytes()].concat()), value);
        }
    };
    add(Table::Shard, 120, 1500);
    add(Table::Shard, 1, 100_000);
    add(Table::Prepared, 300, 200);
    add(Table::Head, 100, 400);
    add(Table::Fence, 3, 300);
    add(Table::Own, 40, 700);
    add(Table::Meta, 20, 100);
    rows
}

/// The file of a store that was closed well, and of one that was killed.
fn files(rows: &Contents) -> [Vec<u8>; 2] {
    let place = Place::new();
    let (store, mut events) = open(&place.path).unwrap();
    // In several commits, so that pages of old ones lie among the others.
    let writes: Vec<Write> = rows.iter().map(|((table, key), value)| Write::set(*table, key.clone(), value.clone())).collect();
    for (nth, part) in writes.chunks(100).enumerate() {
        store.submit(PersistId(nth as u64), part.to_vec()).unwrap();
        assert_eq!(events.blocking_recv(), Some(StoreEvent::Persisted(vec![PersistId(nth as u64)])));
    }
    let killed = std::fs::read(&place.path).unwrap();
    store.close();
    [std::fs::read(&place.path).unwrap(), killed]
}

#[derive(Debug, Default)]
struct Seen {
    whole: usize,
    refused: usize,
    salvaged: usize,
    rows_lost: u64,
    unknown: usize,
    everything_kept: usize,
}

/// Puts the bytes there, and checks what becomes of them.
fn damaged(place: &Place, bytes: &[u8], rows: &Contents, what: &str, seen: &mut Seen) {
    std::fs::write(&place.path, bytes).unwrap();
    match open(&place.path) {
        Ok((store, _events)) => {
            assert!(contents(&store) == *rows, "{what}: it opens with something else");
            store.close();
            seen.whole += 1;
            return;
        }
        Err(StoreError::Damaged { .. }) => {}
        Err(StoreError::Foreign { .. }) => {
            assert_eq!(std::fs::read(&place.path).unwrap(), bytes, "{what}");
            seen.refused += 1;
            return;
        }
        Err(error) => panic!("{what}: {error}"),
    }
    let salvage = match Salvage::of(&place.path) {
        Ok(salvage) => salvage,
        Err(error) => panic!("{what}: {error}"),
    };
    let (tables, said, loses) = (salvage.tables.clone(), salvage.to_string(), salvage.loses(&Table::ALL));
    let aside = salvage.install().unwrap();
    let (store, mut events) = open(&place.path).unwrap_or_else(|error| panic!("{what}: {error}"));
    let kept = contents(&store);
    for (at, value) in &kept {
        assert!(rows.get(at) == Some(value), "{what}: a row of {:?} is another", at.0);
    }
    for table in &tables {
        let of = |rows: &Contents| rows.keys().filter(|(of, _)| *of == table.table).count() as u64;
        assert_eq!(table.kept, of(&kept), "{what}");
        match table.lost {
            Some(lost) => assert_eq!(lost + table.kept, of(rows), "{what}: {table:?}"),
            None => seen.unknown += 1,
        }
        seen.rows_lost += of(rows) - table.kept;
    }
    assert_eq!(loses, tables.iter().any(|table| table.lost != Some(0)));
    assert!(loses || kept == *rows, "{what}: {said}");
    seen.everything_kept += usize::from(!loses);
    seen.salvaged += 1;
    counts_agree(&store, &kept);
    store.submit(PersistId(0), vec![Write::set(Table::Meta, "after", "it")]).unwrap();
    assert_eq!(events.blocking_recv(), Some(StoreEvent::Persisted(vec![PersistId(0)])));
    store.close();
    assert_eq!(place.files(), [STORE_FILE.to_owned(), aside.file_name().unwrap().to_str().unwrap().to_owned()], "{what}");
    std::fs::remove_file(&aside).unwrap();
}

#[test]
fn any_damaged_page_is_noticed_and_costs_what_is_on_it() {
    let rows = rows();
    let place = Place::new();
    let whole = &files(&rows)[0];
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    let mut seen = Seen::default();
    for page in 1..whole.len() / PAGE_BYTES {
        let at = page * PAGE_BYTES;
        // What was never written is no page.
        if whole[at..at + PAGE_BYTES].iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut bytes = whole.clone();
        match page % 4 {
            0 => bytes[at..at + PAGE_BYTES].fill(0),
            1 => bytes[at + 512..at + 1024].fill(0xff),
            2 => bytes[at + usize::try_from(rng.next_u64() % 64).unwrap()] ^= 1 << (rng.next_u64() % 8),
            _ => bytes[at + usize::try_from(rng.next_u64() % 4096).unwrap()] ^= 1 << (rng.next_u64() % 8),
        }
        damaged(&place, &bytes, &rows, &format!("page {page}"), &mut seen);
    }
    eprintln!("{seen:?}");
    assert!(seen.salvaged > 40 && seen.rows_lost > 100, "{seen:?}");
    assert_eq!(seen.refused, 0, "{seen:?}");
}

#[test]
fn any_damaged_bit_of_the_header_is_noticed_or_does_not_matter() {
    let rows = rows();
    let place = Place::new();
    let [closed, killed] = files(&rows);
    let mut seen = Seen::default();
    for (name, whole) in [("closed", &closed), ("killed", &killed)] {
        // The second is also what the first was before its close.
        for at in (0..320).step_by(if name == "closed" { 1 } else { 7 }) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            // The newest commit of a killed store is not to be told from one that a power cut has torn.
            if name == "killed" && at >= 9 {
                std::fs::write(&place.path, &bytes).unwrap();
                match open(&place.path) {
                    Ok((store, _events)) => {
                        let found = contents(&store);
                        assert!(found.iter().all(|(at, value)| rows.get(at) == Some(value)), "{name} {at}");
                        store.close();
                        continue;
                    }
                    Err(StoreError::Damaged { .. }) => {}
                    Err(error) => panic!("{name} {at}: {error}"),
                }
            }
            damaged(&place, &bytes, &rows, &format!("{name}, byte {at} of the header"), &mut seen);
        }
    }
    eprintln!("{seen:?}");
}

#[test]
fn a_store_that_is_cut_short_keeps_what_is_before_the_end() {
    let rows = rows();
    let place = Place::new();
    let mut seen = Seen::default();
    for whole in files(&rows) {
        for sixteenth in 0..16 {
            for more in [0, 1, 511] {
                let end = whole.len() * sixteenth / 16 + more;
                damaged(&place, &whole[..end], &rows, &format!("the first {end} of {} bytes", whole.len()), &mut seen);
            }
        }
    }
    eprintln!("{seen:?}");
    assert!(seen.salvaged > 60 && seen.whole == 0, "{seen:?}");
}

#[test]
fn what_is_whole_of_a_whole_store_is_all_of_it() {
    let rows = rows();
    let place = Place::new();
    for bytes in files(&rows) {
        std::fs::write(&place.path, &bytes).unwrap();
        let salvage = Salvage::of(&place.path).unwrap();
        assert!(!salvage.loses(&Table::ALL), "{salvage}");
        assert_eq!(salvage.to_string(), format!("{} rows are whole, and none is lost", rows.len()));
        assert_eq!(std::fs::read(&place.path).unwrap(), bytes, "it was only read");
        drop(salvage);
        let (store, _events) = open(&place.path).unwrap();
        assert!(contents(&store) == rows);
        store.close();
        assert_eq!(place.files(), [STORE_FILE], "what was not installed is removed");
    }
}

#[test]
fn damaged_stores_are_kept_and_never_replace_each_other() {
    let rows = rows();
    let place = Place::new();
    let mut bytes = files(&rows)[0].clone();
    bytes[320..].fill(0xaa);
    let mut kept = Vec::new();
    for nth in 0..9 {
        bytes[1000] = nth;
        std::fs::write(&place.path, &bytes).unwrap();
        let salvage = Salvage::of(&place.path).unwrap();
        assert!(salvage.to_string().starts_with("0 rows are whole; lost: nobody knows how much of 01-shard"), "{salvage}");
        kept.push(salvage.install().unwrap());
    }
    std::fs::write(&place.path, &bytes).unwrap();
    let error = Salvage::of(&place.path).unwrap().install().unwrap_err();
    assert!(error.to_string().contains("9 damaged stores are kept there already"), "{error}");
    assert_eq!(std::fs::read(&place.path).unwrap(), bytes);
    for (nth, aside) in kept.iter().enumerate() {
        assert_eq!(std::fs::read(aside).unwrap()[1000], nth as u8);
    }
}

/// Pages that change while the store is open are not looked for; but whatever redb makes of them, it is an error here and no panic.
#[test]
fn rot_under_an_open_store_is_an_error_and_no_panic() {
    let rows = rows();
    for (seed, fill) in [(1, 0xff), (2, 0x00), (3, 0x02), (4, 0x01)] {
        let place = Place::new();
        std::fs::write(&place.path, &files(&rows)[0]).unwrap();
        let (store, _events) = open(&place.path).unwrap();
        let whole = std::fs::read(&place.path).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut rotten = whole.clone();
        for page in 1..rotten.len() / PAGE_BYTES {
            let at = page * PAGE_BYTES + usize::try_from(rng.next_u64() % 64).unwrap();
            rotten[at..at + 64].fill(fill);
        }
        std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&place.path).unwrap(), &rotten, 0).unwrap();
        let mut refused = 0;
        for (table, key) in rows.keys() {
            refused += usize::from(store.get(*table, key).is_err());
        }
        for table in Table::ALL {
            refused += usize::from(store.for_each(table, |_, _| ()).is_err());
        }
        let _ = store.stats();
        assert!(refused > 0, "{fill:02x}");
        store.close();
    }
}

#[test]
#[should_panic(expected = "the caller's own")]
fn a_panic_of_whoever_reads_is_its_own() {
    let place = Place::new();
    std::fs::write(&place.path, &files(&rows())[0]).unwrap();
    let (store, _events) = open(&place.path).unwrap();
    let _ = store.for_each(Table::Own, |_, _| panic!("the caller's own"));
}

/// A failed sync leaves a file that reads well and is not on the disk. The next open writes all of it anew.
#[test]
fn after_a_failed_sync_the_store_is_written_anew() {
    let rows = rows();
    let place = Place::new();
    let [closed, killed] = files(&rows);
    for bytes in [closed, killed] {
        std::fs::write(&place.path, &bytes).unwrap();
        let suspect = place.path.with_extension("redb.suspect");
        std::fs::write(&suspect, b"").unwrap();
        let before = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&place.path).unwrap());
        let (store, _events) = open(&place.path).unwrap();
        assert!(contents(&store) == rows);
        store.close();
        assert_ne!(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&place.path).unwrap()), before, "it is another file");
        assert_eq!(place.files(), [STORE_FILE]);
    }
}
