//! What the tests of the store share: what a store holds, what its writer says, and how a disk takes a write.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "each test binary uses its own part; a test that waits has a limit"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use persona::store::{Store, StoreEvent};
use persona_mesh_proto::storage::{Table, Write};
use tokio::sync::mpsc::{self, error::TryRecvError};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// The reference: a store is a map.
pub type Contents = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// All that a store holds.
pub fn contents(store: &Store) -> Contents {
    let mut found = Contents::new();
    for table in Table::ALL {
        store.for_each(table, |key, value| drop(found.insert((table, key.to_vec()), value.to_vec()))).unwrap();
    }
    found
}

/// What a batch does to it.
pub fn apply(contents: &mut Contents, writes: &[Write]) {
    for Write { table, key, value } in writes {
        match value {
            Some(value) => contents.insert((*table, key.clone()), value.clone()),
            None => contents.remove(&(*table, key.clone())),
        };
    }
}

/// The store's own counts are those of what it holds.
pub fn counts_agree(store: &Store, found: &Contents) {
    for table in store.stats().unwrap().tables {
        let rows = found.iter().filter(|((of, _), _)| *of == table.table);
        assert_eq!(table.bytes, rows.map(|((_, key), value)| (key.len() + value.len()) as u64).sum::<u64>(), "{:?}", table.table);
    }
}

/// The next thing that the writer says. A test that waits for ever tells nobody why.
pub fn next(events: &mut mpsc::Receiver<StoreEvent>) -> Option<StoreEvent> {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        match events.try_recv() {
            Ok(event) => return Some(event),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => assert!(Instant::now() < give_up, "the writer says nothing"),
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// Writes into an image of a disk, which grows where it must.
pub fn write_at(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if image.len() < offset + data.len() {
        image.resize(offset + data.len(), 0);
    }
    image[offset..offset + data.len()].copy_from_slice(data);
}
