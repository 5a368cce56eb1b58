//! Files that are there or not, never half: written beside, synced, renamed, and the directory synced.
//!
//! The order is the point. A rename may reach the disk before the bytes of the file that it names, so the bytes are synced first; and it is
//! itself durable only once the directory is.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// Appended to a file's name while its next content is being written. One that is left over is ignored, and removed at the next open.
const LEFTOVER_SUFFIX: &str = ".tmp";

/// Replaces (or creates) the file `path`, readable by its user alone. When this returns `Ok`, the new content is durable; when it does not,
/// or the process is killed, the file has its old content or the new one, whole.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_on(&mut Disk, path, bytes).map_err(|failed| match failed {
        ReplaceError::Unchanged(error) | ReplaceError::Undecided(error) => error,
    })
}

/// Why a file was not replaced.
#[derive(Debug)]
pub(super) enum ReplaceError {
    /// It has its old content.
    Unchanged(io::Error),
    /// It has its new content, and after a power cut the one or the other: the directory could not be synced.
    Undecided(io::Error),
}

/// Creates a directory that its user alone may enter, and those above it. One that exists is left as it is.
pub fn create_private_directory(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// Reads a file of at most `bytes_max` bytes; [`io::ErrorKind::FileTooLarge`] for a larger one.
pub fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    Disk.read(path, bytes_max)
}

/// Whether someone other than the file's user may read it. Always `false` where the system has no such permissions.
pub fn others_may_read(path: &Path) -> bool {
    #[cfg(unix)]
    {
        std::fs::metadata(path).is_ok_and(|metadata| std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Removes what a killed [`replace`] of `path` left behind.
pub(super) fn remove_leftover(files: &mut impl Files, path: &Path) {
    let _ = files.remove(&leftover(path));
}

fn leftover(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LEFTOVER_SUFFIX);
    name.into()
}

/// What is asked of a file system, step by step. Tests stop between two of them, have one fail, and lose what was not synced.
pub trait Files {
    /// An open file.
    type Handle;
    /// Whether there is such a file.
    fn exists(&mut self, path: &Path) -> io::Result<bool>;
    /// Reads a file of at most `bytes_max` bytes; [`io::ErrorKind::FileTooLarge`] for a larger one.
    fn read(&mut self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
    /// Makes a file that is not there yet, for its user alone.
    fn create(&mut self, path: &Path) -> io::Result<Self::Handle>;
    /// Writes at its end.
    fn append(&mut self, file: &mut Self::Handle, bytes: &[u8]) -> io::Result<()>;
    /// Makes its content durable.
    fn sync(&mut self, file: &Self::Handle) -> io::Result<()>;
    /// Gives it another name, in place of whatever has it.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&mut self, directory: &Path) -> io::Result<()>;
}

pub(super) fn replace_on(files: &mut impl Files, path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    let beside = leftover(path);
    match files.remove(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ReplaceError::Unchanged(error)),
        _ => {}
    }
    let written = (|| {
        let mut file = files.create(&beside)?;
        files.append(&mut file, bytes)?;
        files.sync(&file)?;
        files.rename(&beside, path)
    })();
    if let Err(error) = written {
        let _ = files.remove(&beside);
        return Err(ReplaceError::Unchanged(error));
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    files.sync_directory(directory).map_err(ReplaceError::Undecided)
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    type Handle = File;

    fn exists(&mut self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn read(&mut self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
        }
        Ok(bytes)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create(&mut self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path)
    }

    fn append(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
        // Windows has no such call; there a rename is durable with the file system's journal.
        if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_replacement_tidies_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keystore");
        std::fs::create_dir(&path).unwrap();
        replace(&path, b"new").unwrap_err();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the directory that was in the way");
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large");
        replace(&path, &[7; 101]).unwrap();
        assert_eq!(read_bounded(&path, 101).unwrap().len(), 101);
        assert_eq!(read_bounded(&path, 100).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
