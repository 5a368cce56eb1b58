//! Real processes, judged from outside. This library finds the `persona` binary for the tests beside it.
//!
//! Cargo tells a test where a binary is only inside the binary's own package. Here it is looked for beside the test's own executable; if it is
//! missing, older than its sources, or built from another checkout, `cargo build -p persona` makes it, once for all tests of a process.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "finding and building a binary takes files and processes")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names the binary to test instead; nothing is built then.
pub const BINARY_VARIABLE: &str = "PERSONA_BINARY";

/// The `persona` binary: that of [`BINARY_VARIABLE`], else that of this workspace and profile, fresh.
///
/// # Panics
/// It cannot be found or built. A test without a binary has nothing to say.
pub fn persona_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os(BINARY_VARIABLE) {
            let named = PathBuf::from(named);
            assert!(named.is_file(), "{BINARY_VARIABLE} names {}, which is no file", named.display());
            return named;
        }
        binary_of("persona", "persona")
    })
}

/// A binary of one of this workspace's packages and of the profile of whoever asks, fresh.
///
/// # Panics
/// It cannot be built.
pub fn binary_of(package: &str, name: &str) -> PathBuf {
    let place = Place::of(&std::env::current_exe().expect("a test knows its own executable"));
    let binary = place.profile_dir.join(name);
    if !is_fresh(&binary, workspace()) {
        place.build(package, name);
        assert!(binary.is_file(), "cargo built {name}, but not at {}", binary.display());
    }
    binary
}

/// Where this workspace is.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Where a test's executable lies: `TARGET/PROFILE/deps/NAME-HASH`.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    target_dir: PathBuf,
    profile_dir: PathBuf,
    profile: String,
}

impl Place {
    fn of(executable: &Path) -> Self {
        let mut above = executable.ancestors().skip(1);
        let deps = above.next().unwrap_or(Path::new("."));
        let profile_dir = if deps.ends_with("deps") { above.next().unwrap_or(deps) } else { deps };
        let name = profile_dir.file_name().unwrap_or_default().to_string_lossy();
        // The profile "dev" builds into "debug"; every other into a directory of its own name.
        let profile = if name == "debug" { "dev".to_owned() } else { name.into_owned() };
        Self { target_dir: profile_dir.parent().unwrap_or(profile_dir).to_owned(), profile_dir: profile_dir.to_owned(), profile }
    }

    fn build(&self, package: &str, name: &str) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--package", package, "--bin", name, "--locked", "--profile", &self.profile]);
        cargo.arg("--target-dir").arg(&self.target_dir).current_dir(workspace());
        let status = cargo.status().expect("cargo can be run");
        assert!(status.success(), "cargo could not build {name} ({status})");
    }
}

/// Whether `binary` is there, was built from `workspace`, and is younger than every source of it that cargo noted beside it.
fn is_fresh(binary: &Path, workspace: &Path) -> bool {
    let Ok(built) = binary.metadata().and_then(|meta| meta.modified()) else { return false };
    let Ok(noted) = std::fs::read_to_string(binary.with_extension("d")) else { return false };
    let Ok(workspace) = workspace.canonicalize() else { return false };
    let Some((_, sources)) = noted.split_once(": ") else { return false };
    let sources: Vec<PathBuf> = words(sources).into_iter().map(PathBuf::from).collect();
    let ours = sources.iter().all(|source| source.canonicalize().is_ok_and(|source| source.starts_with(&workspace)));
    let young = |source: &PathBuf| source.metadata().and_then(|meta| meta.modified()).is_ok_and(|changed| changed <= built);
    !sources.is_empty() && ours && sources.iter().all(young)
}

/// The file names of a dependency note, in which a space within a name is escaped.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut escaped) = (Vec::new(), String::new(), false);
    for letter in line.trim_end().chars().chain([' ']) {
        match letter {
            '\\' if !escaped => escaped = true,
            ' ' if !escaped => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            letter => {
                word.push(letter);
                escaped = false;
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_test_tells_target_and_profile() {
        let place = |path: &str| Place::of(Path::new(path));
        let expected = |profile_dir: &str, profile: &str| Place {
            target_dir: PathBuf::from("/t"),
            profile_dir: PathBuf::from(profile_dir),
            profile: profile.to_owned(),
        };
        assert_eq!(place("/t/debug/deps/real-0123"), expected("/t/debug", "dev"));
        assert_eq!(place("/t/release/deps/real-0123"), expected("/t/release", "release"));
        assert_eq!(place("/t/dist/real"), expected("/t/dist", "dist"));
    }

    #[test]
    fn names_with_spaces_stay_whole() {
        assert_eq!(words("/a/b.rs /with\\ space/c.rs\n"), ["/a/b.rs", "/with space/c.rs"]);
    }

    #[test]
    fn a_binary_is_fresh_only_with_its_own_older_sources() {
        let dir = std::env::temp_dir().join(format!("persona-e2e-fresh-{}", std::process::id()));
        let here = dir.join("here");
        let source = here.join("main.rs");
        let (binary, note) = (here.join("persona"), here.join("persona.d"));
        std::fs::create_dir_all(&here).unwrap();
        std::fs::write(&source, "fn main() {}").unwrap();
        assert!(!is_fresh(&binary, &here), "it is not there");
        std::fs::write(&binary, "elf").unwrap();
        assert!(!is_fresh(&binary, &here), "nobody knows what it was built from");
        std::fs::write(&note, format!("{}: {}\n", binary.display(), source.display())).unwrap();
        assert!(is_fresh(&binary, &here));
        std::fs::create_dir_all(dir.join("elsewhere")).unwrap();
        assert!(!is_fresh(&binary, &dir.join("elsewhere")), "it was built from another checkout");
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(&source).unwrap().set_modified(later).unwrap();
        assert!(!is_fresh(&binary, &here), "its source has changed since");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
