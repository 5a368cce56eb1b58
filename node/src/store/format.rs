//! What the file is: how it is created, recognised and opened (docs/spec/store.md).

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use persona_mesh_proto::storage::{Table, Write};
use redb::{
    Builder, Database, ReadableDatabase as _, ReadableTable, StorageBackend, TableDefinition, TableError, TableHandle as _,
    backends::FileBackend,
};

use super::{
    Salvage, StoreError, StoreObserver,
    measure::{Counters, Measured},
};

/// The version of the tables and what is in them. What redb writes around them has its own.
pub const FORMAT_VERSION: u32 = 1;

/// What redb may keep of the file in memory. The system's page cache is behind it.
const CACHE_BYTES: usize = 64 << 20;

/// The store's own facts: see [`FORMAT_KEY`] and [`bytes_key`].
pub(super) const STORE_TABLE: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new(STORE_TABLE_NAME);

pub(super) const STORE_TABLE_NAME: &str = "00-store";

/// Its value is the format version, a little-endian `u32`.
pub(super) const FORMAT_KEY: &str = "format";

/// Appended to the file's name: it is there while the file's pages are not to be trusted, although they read well.
const SUSPECT_SUFFIX: &str = ".suspect";

/// What a damage is called that redb notices by a panic.
pub(super) const CONTRADICTION: &str = "its pages contradict each other";

/// Appended to the file's name while the store is being created, before the process id.
const UNFINISHED_SUFFIX: &str = ".new-";

/// The table's name in the file: its number leads.
pub(super) fn name(table: Table) -> &'static str {
    match table {
        Table::Shard => "01-shard",
        Table::Prepared => "02-prepared",
        Table::Head => "03-head",
        Table::Fence => "04-fence",
        Table::Expiry => "05-expiry",
        Table::Floor => "06-floor",
        Table::Intent => "07-intent",
        Table::Own => "08-own",
        Table::Outbox => "09-outbox",
        Table::Inbox => "10-inbox",
        Table::Commitment => "11-commitment",
        Table::Meta => "12-meta",
    }
}

pub(super) fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(name(table))
}

/// Where the number of bytes in a table is kept: a little-endian `u64`.
fn bytes_key(table: Table) -> String {
    format!("bytes/{}", name(table))
}

pub(super) fn read_bytes(store: &impl ReadableTable<&'static str, &'static [u8]>, table: Table) -> Result<u64, redb::Error> {
    let Some(value) = store.get(bytes_key(table).as_str())? else { return Ok(0) };
    let bytes = value.value().try_into().map_err(|_| redb::Error::Corrupted(format!("{} is no number", bytes_key(table))))?;
    Ok(u64::from_le_bytes(bytes))
}

fn write_bytes(store: &mut redb::Table<'_, &'static str, &'static [u8]>, table: Table, bytes: u64) -> Result<(), redb::Error> {
    store.insert(bytes_key(table).as_str(), bytes.to_le_bytes().as_slice())?;
    Ok(())
}

pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) place: String,
    pub(super) is_new: bool,
}

/// Opens the file, or creates it. Nothing but a whole store ever has the file's name, so an empty or strange file is never taken for a
/// new store.
pub(super) fn open_file(path: &Path, counters: &Arc<Counters>) -> Result<Opened, StoreError> {
    let place = path.display().to_string();
    let is_new = match path.try_exists() {
        Ok(true) => false,
        Ok(false) => create_file(path)?,
        Err(source) => return Err(StoreError::Io { action: "look for", place, source }),
    };
    let io = |source| StoreError::Io { action: "open", place: place.clone(), source };
    let suspect = suspect(path);
    if suspect.try_exists().map_err(io)? {
        write_anew(path, &place)?;
        std::fs::remove_file(&suspect).map_err(io)?;
    }
    let backend = Measured { inner: whole_file(path, &place)?, counters: Arc::clone(counters), observer: None, suspect: Some(suspect) };
    let database = open_database(backend, &place)?;
    recognize(&database, &place)?;
    remove_unfinished(path);
    Ok(Opened { database, place, is_new })
}

fn whole_file(path: &Path, place: &str) -> Result<FileBackend, StoreError> {
    let io = |source| StoreError::Io { action: "open", place: place.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Err(StoreError::Damaged { place: place.to_owned(), detail: "it is empty".to_owned() });
    }
    file_backend(file, place)
}

/// Where it is said that a sync of this store failed.
fn suspect(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUSPECT_SUFFIX);
    name.into()
}

/// A sync has failed since the system started, and what it lost may be in the system's memory alone, where no later sync writes it. All of it
/// is verified, written to a new file, and synced there.
fn write_anew(path: &Path, place: &str) -> Result<(), StoreError> {
    tracing::warn!("a sync of {place} failed before: it is written anew");
    let database = open_database(whole_file(path, place)?, place)?;
    recognize(&database, place)?;
    database.close().map_err(|error| translate(error.into(), place, "close"))?;
    Salvage::of(path)?.replace()
}

/// Opens what the backend has, or creates a store on an empty one.
pub(super) fn open_backend(
    backend: impl StorageBackend,
    counters: &Arc<Counters>,
    observer: Option<StoreObserver>,
) -> Result<Opened, StoreError> {
    let place = "the store".to_owned();
    let is_new = backend.len().map_err(|source| StoreError::Io { action: "measure", place: place.clone(), source })? == 0;
    let database = open_database(Measured { inner: backend, counters: Arc::clone(counters), observer, suspect: None }, &place)?;
    if is_new {
        initialize(&database).map_err(|error| translate(error, &place, "create"))?;
    }
    recognize(&database, &place)?;
    Ok(Opened { database, place, is_new })
}

/// Makes a whole store under another name, then gives it its own. Says whether this call did it: another process may have been first.
fn create_file(path: &Path) -> Result<bool, StoreError> {
    let place = path.display().to_string();
    let io = |source| StoreError::Io { action: "create", place: place.clone(), source };
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(io)?;

    let (unfinished, database) = create_unfinished(path, "create")?;
    database.close().map_err(|error| translate(error.into(), &place, "create"))?;

    // A link, unlike a rename, never replaces what another process made meanwhile.
    let created = match std::fs::hard_link(&unfinished, path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        // A file system without hard links.
        Err(_) if !path.exists() => std::fs::rename(&unfinished, path).map(|()| true).map_err(io)?,
        Err(error) => return Err(io(error)),
    };
    remove_unfinished(path);
    sync_directory_of(path).map_err(io)?;
    Ok(created)
}

/// Makes a whole and empty store beside `path`, under a name of this process.
pub(super) fn create_unfinished(path: &Path, action: &'static str) -> Result<(PathBuf, Database), StoreError> {
    let place = path.display().to_string();
    let io = |source| StoreError::Io { action, place: place.clone(), source };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!("{UNFINISHED_SUFFIX}{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&unfinished).map_err(io)?;
    let database = open_database(file_backend(file, &place)?, &place)?;
    initialize(&database).map_err(|error| translate(error, &place, action))?;
    Ok((unfinished, database))
}

/// Makes new names durable.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    // Windows has no such call; there a name is durable with the file system's journal.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Applies writes in their order, in one transaction with one sync. When this returns `Ok`, they are on the disk.
pub(super) fn apply<'w>(database: &Database, writes: impl Iterator<Item = &'w Write>) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // One sync. redb's quick repair would cost a second one with every promise, and buys an open that does not read the file, which every
    // open does here.
    transaction.set_quick_repair(false);
    {
        let mut store = transaction.open_table(STORE_TABLE)?;
        let mut by_table: BTreeMap<Table, Vec<&Write>> = BTreeMap::new();
        for write in writes {
            by_table.entry(write.table).or_default().push(write);
        }
        for (table, writes) in by_table {
            let mut bytes = read_bytes(&store, table)?;
            let mut open = transaction.open_table(definition(table))?;
            for Write { key, value, .. } in writes {
                let old = match value {
                    Some(value) => open.insert(key.as_slice(), value.as_slice())?,
                    None => open.remove(key.as_slice())?,
                };
                bytes -= old.map_or(0, |old| (key.len() + old.value().len()) as u64);
                bytes += value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
            }
            write_bytes(&mut store, table, bytes)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Removes what creations left behind that were cut short. One that still runs fails, and is tried again.
fn remove_unfinished(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!("{}{UNFINISHED_SUFFIX}", name.to_string_lossy());
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

pub(super) fn file_backend(file: File, place: &str) -> Result<FileBackend, StoreError> {
    FileBackend::new(file).map_err(|error| translate(error.into(), place, "open"))
}

/// Reads the whole file, and verifies every checksum of every page: reading 554 MiB through took 0.4 s on a fast disk.
fn open_database(backend: impl StorageBackend, place: &str) -> Result<Database, StoreError> {
    let open = || Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create_with_backend(backend);
    // redb may panic on a file that something else wrote to.
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| translate(error.into(), place, "open")),
        Err(_) => Err(StoreError::Damaged { place: place.to_owned(), detail: CONTRADICTION.to_owned() }),
    }
}

fn initialize(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(STORE_TABLE)?.insert(FORMAT_KEY, FORMAT_VERSION.to_le_bytes().as_slice())?;
    for table in Table::ALL {
        transaction.open_table(definition(table))?;
    }
    transaction.commit()?;
    Ok(())
}

/// Is it ours, of a version that we read, with all its tables?
fn recognize(database: &Database, place: &str) -> Result<(), StoreError> {
    let foreign = |detail: &str| StoreError::Foreign { place: place.to_owned(), detail: detail.to_owned() };
    let damaged = |detail: String| StoreError::Damaged { place: place.to_owned(), detail };
    let transaction = database.begin_read().map_err(|error| translate(error.into(), place, "open"))?;
    let store = match transaction.open_table(STORE_TABLE) {
        Ok(store) => store,
        Err(TableError::Storage(error)) => return Err(translate(error.into(), place, "open")),
        Err(_) => return Err(foreign("a redb file of another program")),
    };
    let format = store.get(FORMAT_KEY).map_err(|error| translate(error.into(), place, "open"))?;
    let format = format.ok_or_else(|| damaged("it does not say its format".to_owned()))?;
    let format = format.value().try_into().map(u32::from_le_bytes).map_err(|_| damaged("it does not say its format".to_owned()))?;
    match format {
        0 => return Err(damaged("its format is 0".to_owned())),
        1..=FORMAT_VERSION => {}
        found => return Err(StoreError::Newer { place: place.to_owned(), found }),
    }
    for table in Table::ALL {
        match transaction.open_table(definition(table)) {
            Ok(_) => {}
            Err(TableError::Storage(error)) => return Err(translate(error.into(), place, "open")),
            Err(_) => return Err(damaged(format!("table {} is missing", definition(table).name()))),
        }
    }
    Ok(())
}

/// redb's errors in words that lead somewhere.
pub(super) fn translate(error: redb::Error, place: &str, action: &'static str) -> StoreError {
    let place = place.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::InUse { place },
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => StoreError::Foreign { place, detail: error.to_string() },
        redb::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            StoreError::Damaged { place, detail: "it ends too early".to_owned() }
        }
        redb::Error::Io(source) => StoreError::Io { action, place, source },
        redb::Error::PreviousIo => StoreError::Io { action, place, source: io::Error::other("an earlier read or write failed") },
        other => StoreError::Damaged { place, detail: other.to_string() },
    }
}
