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
    replace_on(&mut Disk, path, bytes)
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
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
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
pub(super) fn remove_leftover(path: &Path) {
    let _ = std::fs::remove_file(leftover(path));
}

fn leftover(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LEFTOVER_SUFFIX);
    name.into()
}

/// The steps of a replacement. Tests stop between them, and lose what was not synced.
trait Files {
    type Handle;
    fn remove(&mut self, path: &Path) -> io::Result<()>;
    fn create(&mut self, path: &Path) -> io::Result<Self::Handle>;
    fn append(&mut self, file: &mut Self::Handle, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self, file: &Self::Handle) -> io::Result<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_directory(&mut self, directory: &Path) -> io::Result<()>;
}

fn replace_on(files: &mut impl Files, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = leftover(path);
    match files.remove(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = files.create(&beside)?;
        files.append(&mut file, bytes)?;
        files.sync(&file)?;
        files.rename(&beside, path)
    })();
    if written.is_err() {
        let _ = files.remove(&beside);
    }
    written?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    files.sync_directory(directory)
}

/// The real one.
struct Disk;

impl Files for Disk {
    type Handle = File;

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
    use std::collections::BTreeMap;

    use super::*;

    const OLD: &[u8] = b"the old content, whole";
    const NEW: &[u8] = b"the new content, which is longer, whole";

    /// A disk that keeps apart what was done and what is durable, and loses power before step `steps_left`.
    #[derive(Clone, Default)]
    struct Model {
        /// The content of each file ever created, as written.
        written: Vec<Vec<u8>>,
        /// As synced; `None` before the first sync.
        synced: Vec<Option<Vec<u8>>>,
        names: BTreeMap<PathBuf, usize>,
        durable_names: BTreeMap<PathBuf, usize>,
        /// Changes of names since the directory was synced.
        pending: Vec<Rename>,
        steps_left: usize,
    }

    #[derive(Clone)]
    enum Rename {
        Create(PathBuf, usize),
        Remove(PathBuf),
        Move(PathBuf, PathBuf),
    }

    impl Rename {
        fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
            match self {
                Self::Create(path, file) => {
                    names.insert(path.clone(), *file);
                }
                Self::Remove(path) => {
                    names.remove(path);
                }
                Self::Move(from, to) => {
                    if let Some(file) = names.remove(from) {
                        names.insert(to.clone(), file);
                    }
                }
            }
        }
    }

    impl Model {
        fn with_old() -> Self {
            let names = BTreeMap::from([(PathBuf::from("d/keystore"), 0)]);
            Self { written: vec![OLD.to_vec()], synced: vec![Some(OLD.to_vec())], durable_names: names.clone(), names, ..Self::default() }
        }

        fn step(&mut self) -> io::Result<()> {
            self.steps_left = self.steps_left.checked_sub(1).ok_or_else(|| io::Error::other("power lost"))?;
            Ok(())
        }

        fn change(&mut self, change: Rename) {
            change.apply(&mut self.names);
            self.pending.push(change);
        }

        /// Every content that `d/keystore` may have when power returns; `None` where there is no such file.
        fn aftermaths(&self) -> Vec<Option<Vec<u8>>> {
            let mut found = Vec::new();
            for kept in 0..1_u32 << self.pending.len() {
                let mut names = self.durable_names.clone();
                for (nth, change) in self.pending.iter().enumerate() {
                    if kept >> nth & 1 == 1 {
                        change.apply(&mut names);
                    }
                }
                match names.get(Path::new("d/keystore")) {
                    None => found.push(None),
                    Some(&file) => match &self.synced[file] {
                        Some(synced) if *synced == self.written[file] => found.push(Some(synced.clone())),
                        _ => {
                            let written = &self.written[file];
                            found.extend([0, written.len() / 2, written.len()].map(|len| Some(written[..len].to_vec())));
                        }
                    },
                }
            }
            found
        }
    }

    impl Files for Model {
        type Handle = usize;

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            if !self.names.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.change(Rename::Remove(path.to_owned()));
            Ok(())
        }

        fn create(&mut self, path: &Path) -> io::Result<usize> {
            self.step()?;
            self.written.push(Vec::new());
            self.synced.push(None);
            let file = self.written.len() - 1;
            self.change(Rename::Create(path.to_owned(), file));
            Ok(file)
        }

        fn append(&mut self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
            self.step()?;
            self.written[*file].extend(bytes);
            Ok(())
        }

        fn sync(&mut self, file: &usize) -> io::Result<()> {
            self.step()?;
            self.synced[*file] = Some(self.written[*file].clone());
            Ok(())
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            self.change(Rename::Move(from.to_owned(), to.to_owned()));
            Ok(())
        }

        fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
            self.step()?;
            assert_eq!(directory, Path::new("d"));
            self.durable_names = self.names.clone();
            self.pending.clear();
            Ok(())
        }
    }

    #[test]
    fn whenever_the_power_goes_there_is_the_old_content_or_the_new() {
        let mut ended = Vec::new();
        for steps_left in 0..12 {
            let mut model = Model { steps_left, ..Model::with_old() };
            let result = replace_on(&mut model, Path::new("d/keystore"), NEW);
            for content in model.aftermaths() {
                match content.as_deref() {
                    Some(NEW) => {}
                    Some(OLD) => assert!(result.is_err(), "after {steps_left} steps: said to be durable, and was not"),
                    other => panic!("after {steps_left} steps: {other:?}"),
                }
            }
            ended.push(result.is_ok());
        }
        assert_eq!(ended.iter().filter(|ok| !**ok).count(), 6, "power was lost before each of the six steps: {ended:?}");
    }

    /// The real disk, until it is killed. What came after does not happen, tidying up included.
    struct Killed {
        steps_left: usize,
    }

    impl Killed {
        fn step(&mut self) -> io::Result<()> {
            self.steps_left = self.steps_left.checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
            Ok(())
        }
    }

    impl Files for Killed {
        type Handle = File;

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            Disk.remove(path)
        }

        fn create(&mut self, path: &Path) -> io::Result<File> {
            self.step()?;
            Disk.create(path)
        }

        fn append(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
            self.step().inspect_err(|_| Disk.append(file, &bytes[..bytes.len() / 2]).unwrap())?;
            Disk.append(file, bytes)
        }

        fn sync(&mut self, file: &File) -> io::Result<()> {
            self.step()?;
            Disk.sync(file)
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            Disk.rename(from, to)
        }

        fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
            self.step()?;
            Disk.sync_directory(directory)
        }
    }

    #[test]
    fn a_killed_process_leaves_the_old_file_or_the_new_and_the_next_replacement_works() {
        for steps_left in 0..6 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("keystore");
            replace(&path, OLD).unwrap();
            replace_on(&mut Killed { steps_left }, &path, NEW).unwrap_err();
            let content = std::fs::read(&path).unwrap();
            assert_eq!(content, if steps_left < 5 { OLD } else { NEW }, "after {steps_left} steps");
            replace(&path, b"the third").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"the third");
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left over");
        }
    }

    #[test]
    fn a_failed_replacement_tidies_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keystore");
        std::fs::create_dir(&path).unwrap();
        replace(&path, NEW).unwrap_err();
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
