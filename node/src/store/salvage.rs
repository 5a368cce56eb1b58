//! What is still whole in a store that no longer opens (docs/spec/store.md#a-damaged-store).
//!
//! Every page of a redb file is named by the page above it together with its checksum, up to two commit slots in the header. So a row that
//! is reached from a slot through pages that all match is exactly what was committed, and a row that is not reached is lost: nothing
//! between the two, and redb's own code never sees the damage. This file knows as much of redb's format as that takes; a test compares it
//! with redb itself.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use persona_mesh_proto::storage::{Table, Write};
use redb::{Database, StorageBackend};
use twox_hash::XxHash3_128;

use super::{FORMAT_VERSION, StoreError, format};

/// Appended to the file's name when it is set aside, and a number after it from the second on.
const ASIDE_SUFFIX: &str = ".damaged";

/// Damaged stores that are kept beside the new one. Beyond it an operator has to look after them first: they are never removed or replaced.
const ASIDE_MAX: usize = 9;

/// Rows of so many bytes are written to the new store in one transaction.
const COPY_BYTES: usize = 16 << 20;

/// redb's pages, from which larger ones are made by doubling.
const PAGE_BYTES: u64 = 4096;

/// A region of the file has so many pages.
const REGION_PAGES: u64 = 1 << 20;

/// A page is at most `1 << ORDER_MAX` small ones.
const ORDER_MAX: u32 = 20;

/// No tree of redb's is so deep: a branch has two children at least, and a file fewer than 2^40 pages.
const DEPTH_MAX: usize = 40;

const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const HEADER_BYTES: usize = 320;
const SLOTS_AT: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// First byte of a table's definition: neither a multimap nor of redb's first format.
const TABLE_NORMAL: u8 = 3;

/// What became of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSalvage {
    /// Which.
    pub table: Table,
    /// Rows that are whole.
    pub kept: u64,
    /// Rows that are not; `None` where nobody can say how many there were.
    pub lost: Option<u64>,
}

/// What is whole of a damaged store, in a new file that does not yet stand in its place.
pub struct Salvage {
    /// Every table, in the order of their numbers.
    pub tables: Vec<TableSalvage>,
    path: PathBuf,
    built: PathBuf,
}

impl Salvage {
    /// Reads all that is whole of the store at `path` into a new file beside it. It blocks for as long as reading and writing the file takes.
    /// Until [`Self::install`] the damaged store is what it was. Whoever calls it holds the directory's lock.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let place = path.display().to_string();
        let io = |source| StoreError::Io { action: "salvage", place: place.clone(), source };
        let file = File::options().read(true).write(true).open(path).map_err(io)?;
        let damaged = format::file_backend(file, &place)?;
        let (built, database) = format::create_unfinished(path, "salvage")?;
        let tables = copy(&damaged, &database, &place)?;
        database.close().map_err(|error| format::translate(error.into(), &place, "salvage"))?;
        Ok(Self { tables, path: path.to_owned(), built })
    }

    /// Whether a row of these tables was lost, or may have been.
    pub fn loses(&self, tables: &[Table]) -> bool {
        self.tables.iter().any(|found| found.lost != Some(0) && tables.contains(&found.table))
    }

    /// Puts the new file in the place of one that lost nothing, and is not kept.
    pub(super) fn replace(self) -> Result<(), StoreError> {
        let place = self.path.display().to_string();
        if self.loses(&Table::ALL) {
            return Err(StoreError::Damaged { place, detail: self.to_string() });
        }
        let io = |source| StoreError::Io { action: "replace", place: place.clone(), source };
        std::fs::rename(&self.built, &self.path).map_err(io)?;
        format::sync_directory_of(&self.path).map_err(io)
    }

    /// Puts the new file in the place of the damaged one, which is kept beside it. Returns where. A crash leaves one of the two there.
    pub fn install(self) -> Result<PathBuf, StoreError> {
        let place = self.path.display().to_string();
        let io = |source| StoreError::Io { action: "set aside", place: place.clone(), source };
        let aside = (1..=ASIDE_MAX).map(|nth| aside(&self.path, nth)).find(|aside| !aside.exists());
        let aside = aside.ok_or_else(|| io(std::io::Error::other(format!("{ASIDE_MAX} damaged stores are kept there already"))))?;
        // Where there are no hard links a crash between the two renames leaves no store, and both files: to be noticed as a lost store.
        if std::fs::hard_link(&self.path, &aside).is_err() {
            std::fs::rename(&self.path, &aside).map_err(io)?;
        }
        std::fs::rename(&self.built, &self.path).map_err(io)?;
        format::sync_directory_of(&self.path).map_err(io)?;
        Ok(aside)
    }
}

impl fmt::Debug for Salvage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salvage({}, {:?})", self.path.display(), self.tables)
    }
}

/// Says what is lost, table by table.
impl fmt::Display for Salvage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept: u64 = self.tables.iter().map(|table| table.kept).sum();
        write!(f, "{kept} rows are whole")?;
        let mut lost = self.tables.iter().filter(|table| table.lost != Some(0)).peekable();
        if lost.peek().is_none() {
            return write!(f, ", and none is lost");
        }
        write!(f, "; lost:")?;
        for (nth, TableSalvage { table, kept, lost }) in lost.enumerate() {
            let name = format::name(*table);
            write!(f, "{}", if nth == 0 { " " } else { ", " })?;
            match lost {
                Some(lost) => write!(f, "{lost} of {} rows of {name}", lost + kept)?,
                None => write!(f, "nobody knows how much of {name} ({kept} rows are there)")?,
            }
        }
        Ok(())
    }
}

fn aside(path: &Path, nth: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE_SUFFIX);
    if nth > 1 {
        name.push(format!("-{nth}"));
    }
    name.into()
}

/// Shows every whole row of a store in memory: of its newest commit, table by table.
pub fn whole_rows(store: &[u8], mut visit: impl FnMut(Table, &[u8], &[u8])) {
    let pages = Pages { len: store.len() as u64, read: &|offset, out| read_from(store, offset, out) };
    let found = pages.newest();
    for table in Table::ALL {
        if let Some(Some(tree)) = found.root_of(format::name(table)) {
            pages.walk(tree, 0, &mut |key, value| visit(table, key, value));
        }
    }
}

fn read_from(store: &[u8], offset: u64, out: &mut [u8]) -> std::io::Result<()> {
    let start = usize::try_from(offset).ok();
    let bytes = start.and_then(|start| store.get(start..start.checked_add(out.len())?));
    out.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
    Ok(())
}

/// Copies every whole row of the damaged file to the new store.
fn copy(damaged: &dyn StorageBackend, database: &Database, place: &str) -> Result<Vec<TableSalvage>, StoreError> {
    let pages = Pages { len: damaged.len().unwrap_or(0), read: &|offset, out| damaged.read(offset, out) };
    let found = pages.newest();
    if let Some(format) = found.format(&pages)
        && format > FORMAT_VERSION
    {
        return Err(StoreError::Newer { place: place.to_owned(), found: format });
    }
    if found.complete && found.root_of(format::STORE_TABLE_NAME).is_none() {
        return Err(StoreError::Foreign { place: place.to_owned(), detail: "a redb file of another program".to_owned() });
    }
    let mut tables = Vec::new();
    let mut waiting: Vec<Write> = Vec::new();
    let mut waiting_bytes = 0;
    let mut outcome = Ok(());
    for table in Table::ALL {
        let root = found.root_of(format::name(table));
        let mut kept = 0;
        if let Some(Some(tree)) = root {
            pages.walk(tree, 0, &mut |key, value| {
                waiting_bytes += key.len() + value.len();
                waiting.push(Write::set(table, key, value));
                kept += 1;
                if waiting_bytes > COPY_BYTES && outcome.is_ok() {
                    outcome = format::apply(database, std::mem::take(&mut waiting).iter());
                    waiting_bytes = 0;
                }
            });
        }
        let lost = match root {
            Some(tree) if found.certain => Some(tree.map_or(0, |tree| tree.rows).saturating_sub(kept)),
            _ => None,
        };
        tables.push(TableSalvage { table, kept, lost });
    }
    outcome.and_then(|()| format::apply(database, waiting.iter())).map_err(|error| format::translate(error, place, "salvage"))?;
    Ok(tables)
}

/// Where a tree begins, what its first page must hash to, and how many rows it has.
#[derive(Clone, Copy)]
struct Tree {
    page: u64,
    checksum: u128,
    rows: u64,
}

impl Tree {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self { page: u64_at(bytes, 0)?, checksum: u128_at(bytes, 8)?, rows: u64_at(bytes, 24)? })
    }
}

/// What one commit says of its tables.
struct Commit {
    /// Their names, and their trees, if they have a row.
    tables: Vec<(Vec<u8>, Option<Tree>)>,
    /// Every table is listed here.
    complete: bool,
    /// And no commit is known to have come after it, or may have.
    certain: bool,
}

impl Commit {
    /// `None`: it is not known whether there is such a table.
    fn root_of(&self, name: &str) -> Option<Option<Tree>> {
        self.tables.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, tree)| *tree)
    }

    /// The version of the store, if it can be read.
    fn format(&self, pages: &Pages<'_>) -> Option<u32> {
        let tree = self.root_of(format::STORE_TABLE_NAME)??;
        let mut found = None;
        pages.walk(tree, 0, &mut |key, value| {
            if key == format::FORMAT_KEY.as_bytes() {
                found = value.try_into().ok().map(u32::from_le_bytes);
            }
        });
        found
    }
}

/// The pages of a redb file.
struct Pages<'a> {
    len: u64,
    read: &'a dyn Fn(u64, &mut [u8]) -> std::io::Result<()>,
}

impl Pages<'_> {
    /// The newest commit that can be read, or nothing of one.
    fn newest(&self) -> Commit {
        let mut header = vec![0; HEADER_BYTES];
        if self.len < HEADER_BYTES as u64 || (self.read)(0, &mut header).is_err() || !header.starts_with(MAGIC) {
            return Commit { tables: Vec::new(), complete: false, certain: false };
        }
        let mut slots: Vec<(u64, Option<Tree>)> = SLOTS_AT.iter().filter_map(|at| slot(&header[*at..at + SLOT_BYTES])).collect();
        let both = slots.len() == SLOTS_AT.len();
        slots.sort_by_key(|(transaction, _)| std::cmp::Reverse(*transaction));
        let mut commits = slots.iter().enumerate().map(|(nth, (_, root))| self.commit(*root, both && nth == 0));
        let Some(newest) = commits.next() else { return Commit { tables: Vec::new(), complete: false, certain: false } };
        if newest.complete {
            return newest;
        }
        commits.find(|older| older.complete).unwrap_or(newest)
    }

    fn commit(&self, root: Option<Tree>, newest: bool) -> Commit {
        let mut tables = Vec::new();
        let mut complete = true;
        if let Some(root) = root {
            complete = self.walk(root, 0, &mut |name, definition| {
                // Kind, number of rows, whether there is a tree, and the tree; then types, which are always the same here.
                let rows = u64_at(definition, 1);
                let tree = (definition.get(9) != Some(&0)).then(|| definition.get(10..).and_then(Tree::read)).flatten();
                if definition.first() == Some(&TABLE_NORMAL)
                    && let Some(rows) = rows
                {
                    tables.push((name.to_vec(), tree.map(|tree| Tree { rows, ..tree })));
                }
            });
        }
        Commit { tables, complete, certain: newest && complete }
    }

    /// Shows every row that is reached through whole pages, in order. Says whether all pages were whole.
    fn walk(&self, tree: Tree, depth: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let Some(page) = self.page(tree.page) else { return false };
        match page.first() {
            Some(&LEAF) => leaf(&page, tree.checksum, visit).is_some(),
            Some(&BRANCH) if depth < DEPTH_MAX => {
                let Some(children) = branch(&page, tree.checksum) else { return false };
                drop(page);
                let mut whole = true;
                for child in children {
                    whole &= self.walk(child, depth + 1, visit);
                }
                whole
            }
            _ => false,
        }
    }

    /// A page's bytes, if they are in the file and can be read.
    fn page(&self, number: u64) -> Option<Vec<u8>> {
        let order = u32::try_from(number >> 59).ok().filter(|order| *order <= ORDER_MAX)?;
        let (index, region) = (number & ((REGION_PAGES - 1) >> order), (number >> 20) & (REGION_PAGES - 1));
        let bytes = PAGE_BYTES << order;
        // The header has the first page.
        let start = PAGE_BYTES + region * REGION_PAGES * PAGE_BYTES + index * bytes;
        if start + bytes > self.len {
            return None;
        }
        let mut page = vec![0; usize::try_from(bytes).ok()?];
        (self.read)(start, &mut page).ok()?;
        Some(page)
    }
}

/// A commit slot that is whole: number of its transaction, and the tree of its tables.
fn slot(bytes: &[u8]) -> Option<(u64, Option<Tree>)> {
    let (summed, sum) = bytes.split_at_checked(SLOT_BYTES - 16)?;
    if XxHash3_128::oneshot(summed) != u128_at(sum, 0)? {
        return None;
    }
    let tree = if summed[1] == 0 { None } else { Some(Tree::read(&summed[8..])?) };
    Some((u64_at(summed, 104)?, tree))
}

/// Number of rows, where each key ends, where each value ends; keys, values.
fn leaf(page: &[u8], checksum: u128, visit: &mut dyn FnMut(&[u8], &[u8])) -> Option<()> {
    let rows = usize::from(u16_at(page, 2)?);
    let key_end = |nth: usize| u32_at(page, 4 + 4 * nth);
    let value_end = |nth: usize| u32_at(page, 4 + 4 * rows + 4 * nth);
    let summed = page.get(..value_end(rows.checked_sub(1)?)?)?;
    if XxHash3_128::oneshot(summed) != checksum {
        return None;
    }
    let mut key_start = 4 + 8 * rows;
    let mut value_start = key_end(rows - 1)?;
    for nth in 0..rows {
        visit(page.get(key_start..key_end(nth)?)?, page.get(value_start..value_end(nth)?)?);
        (key_start, value_start) = (key_end(nth)?, value_end(nth)?);
    }
    Some(())
}

/// Number of keys, checksums of the children (one more), their pages, where each key ends; keys.
fn branch(page: &[u8], checksum: u128) -> Option<Vec<Tree>> {
    let keys = usize::from(u16_at(page, 2)?);
    let children = keys + 1;
    let end = u32_at(page, 8 + 24 * children + 4 * keys.checked_sub(1)?)?;
    if XxHash3_128::oneshot(page.get(..end)?) != checksum {
        return None;
    }
    (0..children)
        .map(|nth| Some(Tree { page: u64_at(page, 8 + 16 * children + 8 * nth)?, checksum: u128_at(page, 8 + 16 * nth)?, rows: 0 }))
        .collect()
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes_at(bytes, at).map(|bytes| u32::from_le_bytes(bytes) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    bytes_at(bytes, at).map(u128::from_le_bytes)
}
