//! What can go wrong while a drill runs: always with the words of the process that failed.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::api::ApiError;

/// Why a step of a drill could not be carried out. A *judgement* (the mesh broke a promise) is not an error but part of a report.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The binary could not be started at all.
    #[error("cannot start {binary}: {source}; is it built?")]
    Spawn {
        /// The binary that was to be started.
        binary: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A node ended although nobody asked it to.
    #[error("node {dir} ended by itself ({status}); the end of its log:\n{log_tail}")]
    Died {
        /// The node's state directory.
        dir: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to stderr.
        log_tail: String,
    },
    /// Something that was waited for did not happen in time.
    #[error("waited {waited_s} s for {what}; {detail}")]
    TooLate {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        waited_s: u64,
        /// The last that was seen of it: an answer, an error, or the end of a log.
        detail: String,
    },
    /// A node is not running, so it cannot be asked.
    #[error("node {dir} is not running; restart it first")]
    NotRunning {
        /// The node's state directory.
        dir: PathBuf,
    },
    /// A node refused a request, could not be reached or answered with nonsense.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A file of the drill or of a node could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The drill was asked for something that has no meaning.
    #[error("{0}")]
    Usage(String),
}

impl DrillError {
    /// Says what was attempted when `source` happened.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
