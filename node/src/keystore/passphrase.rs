//! Where a passphrase comes from: a file, the environment, or a person. Never an argument: other users see those.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::files;

/// The environment variable that may hold the passphrase.
pub const PASSPHRASE_VARIABLE: &str = "PERSONA_PASSPHRASE";

/// No passphrase file is larger.
const PASSPHRASE_BYTES_MAX: u64 = 4096;

/// A passphrase: wiped when dropped, never shown. Its UTF-8 bytes count as they are, without any normalisation.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes over what was typed or read.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for deriving a key.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassphraseSource {
    /// In this file: its content without one newline at the end.
    File(PathBuf),
    /// In the variable [`PASSPHRASE_VARIABLE`].
    Environment,
    /// Ask on the terminal, without echo.
    Prompt,
    /// The environment if the variable is set, else the terminal if there is one.
    Any,
}

/// What the passphrase is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassphrasePurpose {
    /// To open something: asked for once.
    Open,
    /// To seal something new: asked for twice, and not empty.
    Seal,
}

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Nobody to ask, and nothing said.
    #[error("no passphrase: there is no terminal to ask on; use --passphrase-file FILE or set {PASSPHRASE_VARIABLE}")]
    None,
    /// The variable is asked for and not set.
    #[error("no passphrase: {PASSPHRASE_VARIABLE} is not set; set it, or use --passphrase-file FILE")]
    NotSet,
    /// The file cannot be read.
    #[error("cannot read the passphrase file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not UTF-8.
    #[error("the passphrase from {0} is not UTF-8 text: choose one that is")]
    NotText(String),
    /// Empty, where something is to be sealed.
    #[error("the passphrase is empty: whoever has the file could open it; choose one")]
    Empty,
    /// Typed differently the second time.
    #[error("the two passphrases differ: try again")]
    Differ,
    /// The terminal fails.
    #[error("cannot ask for the passphrase: {0}; use --passphrase-file FILE or set {PASSPHRASE_VARIABLE}")]
    Terminal(io::Error),
}

/// Gets the passphrase from `source`. A file that others may read is used, with a warning in the log.
pub fn passphrase(source: &PassphraseSource, purpose: PassphrasePurpose) -> Result<Passphrase, PassphraseError> {
    let variable = std::env::var_os(PASSPHRASE_VARIABLE);
    let mut ask = |prompt: &str| rpassword::prompt_password(prompt);
    let terminal = io::stdin().is_terminal();
    resolve(source, purpose, variable, if terminal { Some(&mut ask) } else { None })
}

type Ask<'a> = &'a mut dyn FnMut(&str) -> io::Result<String>;

fn resolve(
    source: &PassphraseSource,
    purpose: PassphrasePurpose,
    variable: Option<OsString>,
    terminal: Option<Ask<'_>>,
) -> Result<Passphrase, PassphraseError> {
    let passphrase = match (source, variable, terminal) {
        (PassphraseSource::File(path), ..) => from_file(path)?,
        (PassphraseSource::Environment | PassphraseSource::Any, Some(value), _) => {
            let text = value.into_string().map_err(|_| PassphraseError::NotText(PASSPHRASE_VARIABLE.to_owned()))?;
            Passphrase::new(text)
        }
        (PassphraseSource::Environment, None, _) => return Err(PassphraseError::NotSet),
        (PassphraseSource::Prompt | PassphraseSource::Any, _, Some(ask)) => prompt(ask, purpose)?,
        (PassphraseSource::Prompt | PassphraseSource::Any, _, None) => return Err(PassphraseError::None),
    };
    if purpose == PassphrasePurpose::Seal && passphrase.expose().is_empty() {
        return Err(PassphraseError::Empty);
    }
    Ok(passphrase)
}

fn from_file(path: &Path) -> Result<Passphrase, PassphraseError> {
    let bytes =
        files::read_bounded(path, PASSPHRASE_BYTES_MAX).map_err(|source| PassphraseError::File { path: path.to_owned(), source })?;
    if files::others_may_read(path) {
        tracing::warn!(path = %path.display(), "others may read the passphrase file: `chmod 600` it");
    }
    let bytes = Zeroizing::new(bytes);
    let text = std::str::from_utf8(&bytes).map_err(|_| PassphraseError::NotText(path.display().to_string()))?;
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(Passphrase::new(line.to_owned()))
}

fn prompt(ask: Ask<'_>, purpose: PassphrasePurpose) -> Result<Passphrase, PassphraseError> {
    let first = Passphrase::new(ask("passphrase: ").map_err(PassphraseError::Terminal)?);
    if purpose == PassphrasePurpose::Seal && !first.expose().is_empty() {
        let second = Passphrase::new(ask("once more: ").map_err(PassphraseError::Terminal)?);
        if first.expose() != second.expose() {
            return Err(PassphraseError::Differ);
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(answers: &'static [&'static str]) -> impl FnMut(&str) -> io::Result<String> {
        let mut answers = answers.iter();
        move |_| answers.next().map(|answer| (*answer).to_owned()).ok_or_else(|| io::Error::other("asked once too often"))
    }

    fn resolved(
        source: &PassphraseSource,
        purpose: PassphrasePurpose,
        variable: Option<&str>,
        answers: Option<&'static [&'static str]>,
    ) -> Result<String, String> {
        let mut asked = answers.map(ask);
        let terminal = asked.as_mut().map(|ask| ask as Ask<'_>);
        let found = resolve(source, purpose, variable.map(OsString::from), terminal);
        found.map(|passphrase| passphrase.expose().to_owned()).map_err(|error| error.to_string())
    }

    use PassphrasePurpose::{Open, Seal};
    use PassphraseSource::{Any, Environment, File, Prompt};

    #[test]
    fn the_environment_goes_before_the_terminal() {
        assert_eq!(resolved(&Any, Open, Some("from the variable"), Some(&["typed"])).unwrap(), "from the variable");
        assert_eq!(resolved(&Any, Open, None, Some(&["typed"])).unwrap(), "typed");
        assert_eq!(resolved(&Prompt, Open, Some("from the variable"), Some(&["typed"])).unwrap(), "typed");
    }

    #[test]
    fn without_a_terminal_the_error_says_what_to_do() {
        let error = resolved(&Any, Open, None, None).unwrap_err();
        assert!(error.contains("--passphrase-file") && error.contains(PASSPHRASE_VARIABLE), "{error}");
        let error = resolved(&Environment, Open, None, Some(&["typed"])).unwrap_err();
        assert!(error.contains("not set"), "{error}");
    }

    #[test]
    fn a_new_passphrase_is_typed_twice_and_not_empty() {
        assert_eq!(resolved(&Prompt, Seal, None, Some(&["one", "one"])).unwrap(), "one");
        assert!(resolved(&Prompt, Seal, None, Some(&["one", "two"])).unwrap_err().contains("differ"));
        assert!(resolved(&Prompt, Seal, None, Some(&[""])).unwrap_err().contains("empty"));
        assert!(resolved(&Any, Seal, Some(""), None).unwrap_err().contains("empty"));
    }

    #[test]
    fn a_file_gives_its_content_without_one_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        for (content, passphrase) in [("word\n", "word"), ("word", "word"), ("word\r\n", "word"), (" two words \n\n", " two words \n")] {
            files::replace(&path, content.as_bytes()).unwrap();
            assert_eq!(resolved(&File(path.clone()), Open, Some("not this"), None).unwrap(), passphrase);
        }
        files::replace(&path, &[0xff, b'\n']).unwrap();
        assert!(resolved(&File(path), Open, None, None).unwrap_err().contains("UTF-8"));
        assert!(resolved(&File(directory.path().join("none")), Open, None, None).unwrap_err().contains("cannot read"));
    }

    #[test]
    fn it_is_never_shown() {
        assert_eq!(format!("{:?}", Passphrase::new("correct horse".to_owned())), "Passphrase(..)");
    }
}
