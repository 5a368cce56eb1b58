//! Looks for a secret where none may be.

use std::path::{Path, PathBuf};

use crate::error::DrillError;

/// A place where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The file.
    pub file: PathBuf,
    /// Which of the needles, by its position.
    pub needle: usize,
}

/// Looks for each of `needles` in every regular file below `root`, in plain and in hexadecimal. Answers where they are and how many bytes were
/// looked at: a search that looked at nothing finds nothing. A file that vanishes meanwhile is passed over.
///
/// # Errors
/// A directory or a file cannot be read.
pub fn find_in_tree(root: &Path, needles: &[&[u8]]) -> Result<(Vec<Sighting>, u64), DrillError> {
    let (mut sightings, mut bytes, mut todo) = (Vec::new(), 0, vec![root.to_owned()]);
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    while let Some(path) = todo.pop() {
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(DrillError::io(format!("look at {}", path.display()))(error)),
        };
        if meta.is_dir() {
            let failed = || DrillError::io(format!("list {}", path.display()));
            for entry in std::fs::read_dir(&path).map_err(failed())? {
                todo.push(entry.map_err(failed())?.path());
            }
        } else if meta.is_file() {
            let content = match std::fs::read(&path) {
                Ok(content) => content,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(DrillError::io(format!("read {}", path.display()))(error)),
            };
            bytes += u64::try_from(content.len()).unwrap_or(u64::MAX);
            for (index, needle) in needles.iter().enumerate() {
                let hex: String = needle.iter().map(|byte| format!("{byte:02x}")).collect();
                if count_in(&content, needle) + count_in(&content, hex.as_bytes()) > 0 {
                    sightings.push(Sighting { file: path.clone(), needle: index });
                }
            }
        }
    }
    Ok((sightings, bytes))
}

/// How often `needle` occurs in `hay`. An empty needle occurs nowhere.
pub fn count_in(hay: &[u8], needle: &[u8]) -> usize {
    let Some((first, rest)) = needle.split_first() else { return 0 };
    let starts = hay.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts.filter(|(at, _)| hay[at + 1..].starts_with(rest)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_plain_and_hexadecimal_anywhere_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("clean"), b"nothing here").unwrap();
        std::fs::write(dir.path().join("a/b/plain"), b"..heron..").unwrap();
        std::fs::write(dir.path().join("a/hex"), b"..6865726f6e..").unwrap();
        let (mut found, bytes) = find_in_tree(dir.path(), &[b"kestrel", b"heron"]).unwrap();
        found.sort_by(|a, b| a.file.cmp(&b.file));
        let at = |name: &str| Sighting { file: dir.path().join(name), needle: 1 };
        assert_eq!((found, bytes), (vec![at("a/b/plain"), at("a/hex")], 12 + 9 + 14));
    }

    #[test]
    fn counts_overlaps_and_ends() {
        assert_eq!(count_in(b"aaa", b"aa"), 2);
        assert_eq!(count_in(b"xheron", b"heron"), 1);
        assert_eq!((count_in(b"hero", b"heron"), count_in(b"", b"a"), count_in(b"a", b"")), (0, 0, 0));
    }
}
