//! The address book's file (docs/spec/ticket.md#address-book).
//!
//! Written whole: to a file beside it, fsynced, renamed over the old one, directory fsynced. So a crash at any moment leaves the old book
//! or the new one. A file that is damaged all the same is set aside, never overwritten: what cannot be read may still be wanted.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::book::{AddressBook, BookError};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The book: empty if there was no file, or a damaged one.
    pub book: AddressBook,
    /// The damaged file, for the operator to be told of.
    pub damaged: Option<Damaged>,
}

/// A book that could not be read. `Display` is the whole message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "address book {} is not usable: {error}; it was set aside as {}{}, and this node starts with an empty one",
    file.display(), aside.display(), if *replaced { " (in place of an earlier one)" } else { "" }
)]
pub struct Damaged {
    /// Where the book was.
    pub file: PathBuf,
    /// Where it is now.
    pub aside: PathBuf,
    /// Whether an earlier damaged book was there.
    pub replaced: bool,
    /// What is wrong with it.
    pub error: BookError,
}

/// Why the book could be neither read nor set aside, or not written. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BookFileError {
    /// The file system refused.
    #[error("cannot {what} {}: {error}; check the permissions and the free space of its directory", file.display())]
    Io {
        /// `read`, `write`...
        what: &'static str,
        /// Which file.
        file: PathBuf,
        /// In the system's words.
        error: io::Error,
    },
    /// A newer persona wrote it.
    #[error("address book {} was written by a newer persona ({error}): update persona, or move the file away", file.display())]
    Newer {
        /// Which file.
        file: PathBuf,
        /// Which format it has.
        error: BookError,
    },
}

/// Reads the book at `path`. No file is an empty book. A damaged one is set aside as `<path>.damaged`, which the answer tells.
pub fn load(path: &Path) -> Result<Loaded, BookFileError> {
    load_from(&mut RealDisk, path)
}

/// Writes the book to `path`, atomically and durably: it is there for good when this returns `Ok`.
pub fn save(path: &Path, book: &AddressBook) -> Result<(), BookFileError> {
    save_to(&mut RealDisk, path, &book.to_bytes())
}

/// What reading and writing a book asks of a disk; the tests have one that crashes.
trait Disk {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>>;
    fn exists(&mut self, path: &Path) -> bool;
    /// Makes the file, empty, or empties it.
    fn create(&mut self, path: &Path) -> io::Result<()>;
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    fn sync_file(&mut self, path: &Path) -> io::Result<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_directory_of(&mut self, path: &Path) -> io::Result<()>;
}

fn load_from(disk: &mut dyn Disk, path: &Path) -> Result<Loaded, BookFileError> {
    let bytes = match disk.read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded { book: AddressBook::default(), damaged: None }),
        Err(error) => return Err(failed("read", path)(error)),
    };
    match AddressBook::from_bytes(&bytes) {
        Ok(book) => Ok(Loaded { book, damaged: None }),
        Err(error @ BookError::Newer(_)) => Err(BookFileError::Newer { file: path.to_owned(), error }),
        Err(error) => {
            let aside = beside(path, ".damaged");
            let replaced = disk.exists(&aside);
            disk.rename(path, &aside).map_err(failed("set aside", path))?;
            disk.sync_directory_of(path).map_err(failed("set aside", path))?;
            Ok(Loaded { book: AddressBook::default(), damaged: Some(Damaged { file: path.to_owned(), aside, replaced, error }) })
        }
    }
}

fn save_to(disk: &mut dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), BookFileError> {
    let new = beside(path, ".new"); // left over from a crash, it is simply overwritten
    disk.create(&new).map_err(failed("create", &new))?;
    disk.append(&new, bytes).map_err(failed("write", &new))?;
    disk.sync_file(&new).map_err(failed("write", &new))?;
    disk.rename(&new, path).map_err(failed("replace", path))?;
    disk.sync_directory_of(path).map_err(failed("replace", path))
}

/// `path` with something after its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn failed(what: &'static str, file: &Path) -> impl FnOnce(io::Error) -> BookFileError {
    let file = file.to_owned();
    move |error| BookFileError::Io { what, file, error }
}

struct RealDisk;

impl Disk for RealDisk {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn exists(&mut self, path: &Path) -> bool {
        path.exists()
    }

    fn create(&mut self, path: &Path) -> io::Result<()> {
        // Whom this node knows is its user's business, as everything beside the book is.
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        // One that a crash left may be of a version that did not care.
        #[cfg(unix)]
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        drop(file);
        Ok(())
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut fs::OpenOptions::new().append(true).open(path)?, bytes)
    }

    fn sync_file(&mut self, path: &Path) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory_of(&mut self, path: &Path) -> io::Result<()> {
        // A bare file name has the parent "", which means here.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use persona_fragments::PeerKey;

    use super::*;

    fn book(number: u8) -> AddressBook {
        let mut book = AddressBook::default();
        book.succeeded(PeerKey([number; 32]), &format!("/ip4/10.0.0.{number}/tcp/4001"), 1_700_000_000_000);
        book
    }

    /// A disk with one directory that loses power after a number of steps. What was not synced may be lost, in whole or from some byte on:
    /// names and contents each on their own, as file systems do.
    #[derive(Clone, Default)]
    struct CrashingDisk {
        /// The files' contents: as written, and as synced.
        contents: Vec<(Vec<u8>, Vec<u8>)>,
        names: BTreeMap<PathBuf, usize>,
        synced_names: BTreeMap<PathBuf, usize>,
        steps_left: usize,
    }

    impl CrashingDisk {
        fn step(&mut self) -> io::Result<()> {
            self.steps_left = self.steps_left.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
            Ok(())
        }

        fn index(&self, path: &Path) -> io::Result<usize> {
            self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        /// The disk after the power came back: `names_kept` if the directory had reached it, and so much of each unsynced tail.
        fn after_crash(&self, names_kept: bool, tail: usize) -> Self {
            let names = if names_kept { &self.names } else { &self.synced_names };
            let contents = self.contents.iter().map(|(written, synced)| {
                let extends = written.len() >= synced.len() && written[..synced.len()] == synced[..];
                let survives = if extends {
                    written[..written.len().min(synced.len() + tail)].to_vec()
                } else {
                    written[..written.len().min(tail)].to_vec()
                };
                (survives.clone(), survives)
            });
            Self { contents: contents.collect(), names: names.clone(), synced_names: names.clone(), steps_left: usize::MAX }
        }
    }

    impl Disk for CrashingDisk {
        fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
            Ok(self.contents[self.index(path)?].0.clone())
        }

        fn exists(&mut self, path: &Path) -> bool {
            self.names.contains_key(path)
        }

        fn create(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            match self.index(path) {
                Ok(index) => self.contents[index].0.clear(),
                Err(_) => {
                    self.contents.push(Default::default());
                    self.names.insert(path.to_owned(), self.contents.len() - 1);
                }
            }
            Ok(())
        }

        fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            let index = self.index(path)?;
            for byte in bytes {
                self.step()?;
                self.contents[index].0.push(*byte);
            }
            Ok(())
        }

        fn sync_file(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            let index = self.index(path)?;
            self.contents[index].1 = self.contents[index].0.clone();
            Ok(())
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            let index = self.index(from)?;
            self.names.remove(from);
            self.names.insert(to.to_owned(), index);
            Ok(())
        }

        fn sync_directory_of(&mut self, _path: &Path) -> io::Result<()> {
            self.step()?;
            self.synced_names = self.names.clone();
            Ok(())
        }
    }

    #[test]
    fn a_crash_at_any_step_leaves_the_old_book_or_the_new_one() {
        let path = Path::new("/state/peers");
        let (old, new) = (book(1), book(2));
        let mut before = CrashingDisk { steps_left: usize::MAX, ..CrashingDisk::default() };
        save_to(&mut before, path, &old.to_bytes()).expect("no crash yet");
        let mut crashes = 0;
        for steps in 0.. {
            let mut disk = CrashingDisk { steps_left: steps, ..before.clone() };
            let saved = save_to(&mut disk, path, &new.to_bytes());
            for names_kept in [false, true] {
                for tail in [0, 1, 20, usize::MAX / 2] {
                    let mut disk = disk.after_crash(names_kept, tail);
                    let loaded = load_from(&mut disk, path).expect("it loads");
                    assert_eq!(loaded.damaged, None, "after {steps} steps");
                    assert!(loaded.book == new || (saved.is_err() && loaded.book == old), "after {steps} steps: {:?}", loaded.book);
                    // Whatever is left over is no obstacle to the next one.
                    save_to(&mut disk, path, &book(3).to_bytes()).expect("it saves");
                    assert_eq!(load_from(&mut disk.after_crash(false, 0), path).expect("it loads").book, book(3));
                    crashes += 1;
                }
            }
            if saved.is_ok() {
                break;
            }
        }
        assert!(crashes > 8 * new.to_bytes().len(), "{crashes}");
    }

    #[test]
    fn what_was_saved_is_loaded_and_nothing_lies_about() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("peers");
        assert_eq!(load(&path).expect("it loads"), Loaded { book: AddressBook::default(), damaged: None });
        for number in [1, 2] {
            save(&path, &book(number)).expect("it saves");
            assert_eq!(load(&path).expect("it loads"), Loaded { book: book(number), damaged: None });
        }
        let files: Vec<_> =
            fs::read_dir(directory.path()).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(files, ["peers"]);
    }

    #[cfg(unix)]
    #[test]
    fn its_user_alone_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("peers");
        let mode = || fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
        save(&path, &book(1)).expect("it saves");
        assert_eq!(mode(), 0o600);
        // What an older version wrote, or left over, is no exception.
        fs::write(beside(&path, ".new"), b"left over").expect("it writes");
        for file in [path.clone(), beside(&path, ".new")] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("it is ours");
        }
        save(&path, &book(2)).expect("it saves");
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn a_leftover_of_a_crash_is_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("peers");
        fs::write(beside(&path, ".new"), vec![7; 10_000]).expect("it writes");
        save(&path, &book(1)).expect("it saves");
        assert_eq!(load(&path).expect("it loads").book, book(1));
    }

    #[test]
    fn a_torn_book_is_set_aside_and_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("peers");
        let torn = book(1).to_bytes()[..30].to_vec();
        for replaced in [false, true] {
            fs::write(&path, &torn).expect("it writes");
            let loaded = load(&path).expect("it loads");
            let aside = directory.path().join("peers.damaged");
            assert_eq!(loaded.book, AddressBook::default());
            assert_eq!(loaded.damaged, Some(Damaged { file: path.clone(), aside: aside.clone(), replaced, error: BookError::Checksum }));
            assert_eq!(fs::read(&aside).expect("it is there"), torn);
            assert!(!path.exists());
            let told = loaded.damaged.expect("told").to_string();
            assert!(
                told.contains("peers is not usable: its checksum") && told.contains("set aside as") && told.contains("peers.damaged"),
                "{told}"
            );
            assert_eq!(told.contains("in place of an earlier one"), replaced);
        }
        assert_eq!(load(&path).expect("it loads").damaged, None, "it is told once");
    }

    #[test]
    fn a_book_of_the_future_stays_where_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("peers");
        let bytes = crate::crc::append_crc(vec![9, 1, 2, 3]);
        fs::write(&path, &bytes).expect("it writes");
        let error = load(&path).expect_err("refused");
        assert!(
            matches!(error, BookFileError::Newer { error: BookError::Newer(9), .. }) && error.to_string().contains("newer persona"),
            "{error}"
        );
        assert_eq!(fs::read(&path).expect("it is there"), bytes);
    }

    #[test]
    fn what_cannot_be_read_is_no_empty_book() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = load(directory.path()).expect_err("a directory is no file");
        assert!(error.to_string().starts_with("cannot read "), "{error}");
        let nowhere = directory.path().join("missing").join("peers");
        let error = save(&nowhere, &book(1)).expect_err("no such directory").to_string();
        assert!(error.starts_with("cannot create ") && error.contains("missing"), "{error}");
    }
}
