//! What to do next: every error that the command line prints has a hint, whoever made the error.
//!
//! What a node answers brings its hint along, and so does a [`Failure`] of the command itself. Everything else - a wrong passphrase, a locked
//! directory, a file that is not there - is known by its type, wherever it stands in the chain of causes. The titles are stable
//! (docs/spec/api.md#what-the-command-line-itself-says).

use std::{error::Error, io};

use persona_bootstrap::{TicketError, sources::file::BookFileError};
use persona_drill::{ApiError, DrillError, demo};
use persona_mesh::MeshError;
use serde_json::{Value, json};

use crate::{
    client::Failure,
    daemon::StoreFailed,
    keystore::{KeystoreError, PASSPHRASE_VARIABLE, PassphraseError},
    store::StoreError,
};

/// The title of an error that its user made: he ended the command, and needs no hint for that on his terminal.
const INTERRUPTED: &str = "interrupted";

/// An error as it is told.
#[derive(Debug)]
pub(crate) struct Told {
    /// The stable, kebab-case name.
    pub(crate) title: String,
    /// What went wrong.
    pub(crate) detail: String,
    /// What to do next; never empty.
    pub(crate) hint: String,
    /// Numbers and the like; an object.
    pub(crate) data: Value,
}

impl Told {
    /// How `error` is told.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let detail = format!("{error:#}");
        let known = error.chain().find_map(known);
        let (title, hint, data) = known.unwrap_or_else(|| {
            let hint =
                "the lines above say more, and with PERSONA_LOG=debug in the environment more of them; `persona --help` lists the verbs";
            ("failed".to_owned(), hint.to_owned(), Value::Null)
        });
        let hint = if hint.is_empty() { "`persona status` shows how the node is".to_owned() } else { hint };
        Self { title, detail, hint, data: if data.is_object() { data } else { json!({}) } }
    }

    /// As `--json` prints it.
    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {"title": self.title, "detail": self.detail, "hint": self.hint, "data": self.data}})
    }

    /// Whether people are shown the hint too.
    pub(crate) fn shows_its_hint(&self) -> bool {
        self.title != INTERRUPTED
    }
}

type Known = (String, String, Value);

fn said(title: &str, hint: impl Into<String>) -> Known {
    (title.to_owned(), hint.into(), Value::Null)
}

fn known(error: &(dyn Error + 'static)) -> Option<Known> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some((failure.title.clone(), failure.hint.clone(), failure.data.clone()));
    }
    if let Some(problem) = error.downcast_ref::<ApiError>().and_then(ApiError::problem) {
        return Some((problem.title.clone(), problem.hint.clone(), problem.data.clone()));
    }
    error
        .downcast_ref::<KeystoreError>()
        .map(of_keystore)
        .or_else(|| error.downcast_ref::<PassphraseError>().map(of_passphrase))
        .or_else(|| error.downcast_ref::<StoreError>().map(of_store))
        .or_else(|| error.is::<StoreFailed>().then(store_failed))
        .or_else(|| error.downcast_ref::<MeshError>().map(of_mesh))
        .or_else(|| error.downcast_ref::<TicketError>().map(of_ticket))
        .or_else(|| error.downcast_ref::<BookFileError>().map(of_book))
        .or_else(|| error.downcast_ref::<DrillError>().map(of_drill))
        .or_else(|| error.downcast_ref::<demo::Impossible>().map(|impossible| said("bad-request", impossible.hint.clone())))
        .or_else(|| error.is::<demo::Interrupted>().then(|| said(INTERRUPTED, "`persona demo` begins it again")))
        .or_else(|| error.is::<persona_mesh::MeshNameError>().then(bad_mesh_name))
        .or_else(|| error.is::<persona_mesh::AddressError>().then(bad_address))
        .or_else(|| error.is::<persona_bootstrap::AddressError>().then(bad_address))
        .or_else(|| error.is::<persona_lab::DataError>().then(|| said("bad-data", SCORE_HINT)))
        .or_else(|| error.downcast_ref::<persona_lab::ScoreError>().map(of_score))
        .or_else(|| error.downcast_ref::<io::Error>().map(of_io))
}

/// Where it says what a file of labelled data looks like.
const SCORE_HINT: &str = "`persona lab score --help` says what the file looks like";

fn of_score(error: &persona_lab::ScoreError) -> Known {
    match error {
        persona_lab::ScoreError::Options(_) => said(
            "bad-request",
            "more subjects or repetitions, or other --enrol and --genuine-from: `persona lab score --help` says what they are",
        ),
        persona_lab::ScoreError::Natural { .. } => said("bad-data", SCORE_HINT),
    }
}

fn of_keystore(error: &KeystoreError) -> Known {
    match error {
        KeystoreError::WrongPassphrase => said(
            "wrong-passphrase",
            format!(
                "give the passphrase of this node's first start with --passphrase-file FILE or in {PASSPHRASE_VARIABLE}; another --dir is another node"
            ),
        ),
        KeystoreError::NotFound(_) => said("no-keystore", "check --dir; `persona up --dir DIR` creates a node where there is none"),
        KeystoreError::AlreadyExists(_) => said("exists", "`persona up --dir DIR` opens it; choose another --dir for another node"),
        KeystoreError::Damaged { .. } => said(
            "damaged",
            "restore the file from a copy; or start a node in another --dir, and `persona agent import FILE` brings agents there from their recovery files",
        ),
        KeystoreError::Newer { .. } => newer(),
        KeystoreError::Changed(_) => directory_in_use(),
        KeystoreError::NoSuchAgent(_) => said("unknown-agent", "`persona agent list` shows the agents of this node"),
        KeystoreError::NameTaken(_) | KeystoreError::Name(_) => {
            said("bad-request", "choose another name; `persona agent list` shows those that are taken")
        }
        KeystoreError::TooManyAgents => said("bad-request", "start another node for more: `persona up --dir DIR --join TICKET`"),
        KeystoreError::Cost(_) => said("no-memory", "free some memory, or run the node on a machine that has more, and try again"),
        KeystoreError::Io { source, .. } => of_io(source),
        KeystoreError::Undecided(_) => said("disk", "check the disk, and start the node again: it reads what is really there"),
    }
}

fn of_passphrase(error: &PassphraseError) -> Known {
    match error {
        PassphraseError::None | PassphraseError::NotSet | PassphraseError::Terminal(_) => said(
            "no-passphrase",
            format!("write it to a file that only you can read and give --passphrase-file FILE, or set {PASSPHRASE_VARIABLE}"),
        ),
        PassphraseError::File { source, .. } => of_io(source),
        PassphraseError::NotText(_) => said("bad-passphrase", "choose one of plain text, without line breaks"),
        PassphraseError::Empty => said("bad-passphrase", "choose a long one: it is all that protects the file"),
        PassphraseError::Differ => said("bad-passphrase", "type the same twice; or give it with --passphrase-file FILE"),
    }
}

fn of_store(error: &StoreError) -> Known {
    match error {
        StoreError::InUse { .. } => directory_in_use(),
        StoreError::Foreign { .. } => said("damaged", "move the file away, or choose another --dir"),
        StoreError::Damaged { .. } => said(
            "damaged",
            "start the node again: it keeps what is whole, says what is lost, and leaves the damaged file beside the new one",
        ),
        StoreError::Newer { .. } => newer(),
        StoreError::Io { source, .. } => of_io(source),
        StoreError::Closed => said("stopped", "start the node again with `persona up`"),
    }
}

fn store_failed() -> Known {
    said(
        "store-failed",
        "see what the disk has (`df -h`, and the system's log): then start the node again, and it goes on with all that it has acknowledged",
    )
}

fn of_mesh(error: &MeshError) -> Known {
    match error {
        MeshError::Name(_) => bad_mesh_name(),
        MeshError::Address(_) => bad_address(),
        MeshError::Listen { .. } => said(
            "cannot-listen",
            "choose another port with --listen, or port 0 to let the system choose; `persona up --help` has the defaults",
        ),
        MeshError::Setup(_) => said("no-network", "check that this machine has a network, and run it again with PERSONA_LOG=debug"),
    }
}

fn of_ticket(error: &TicketError) -> Known {
    match error {
        TicketError::IsAnAddress(address) => said("bad-ticket", format!("`persona up --bootstrap {address}`")),
        _ => said("bad-ticket", "`persona invite` on a node of the mesh prints a ticket: give its whole line after --join"),
    }
}

fn of_book(error: &BookFileError) -> Known {
    match error {
        BookFileError::Io { error, .. } => of_io(error),
        BookFileError::Newer { .. } => newer(),
    }
}

fn of_drill(error: &DrillError) -> Known {
    match error {
        DrillError::Spawn { source, .. } | DrillError::Io { source, .. } => of_io(source),
        DrillError::Died { .. } => said("node-died", "the end of its log above says why; `persona up` starts one node by hand"),
        DrillError::TooLate { .. } => said("too-late", "this machine may be too busy: try again, or with fewer --nodes"),
        DrillError::NotRunning { .. } => said("no-node", "try again; if it happens twice, run one node by hand with `persona up`"),
        DrillError::Api(error) => error.problem().map_or_else(
            || said("no-answer", "this machine may be too busy: try again, or with fewer --nodes"),
            |problem| (problem.title.clone(), problem.hint.clone(), problem.data.clone()),
        ),
        DrillError::Usage(_) => said("bad-request", "`persona demo --help` and `persona bench storage --help` have examples"),
    }
}

fn of_io(error: &io::Error) -> Known {
    use io::ErrorKind::*;
    match error.kind() {
        NotFound => said("no-such-file", "check the path: `ls` shows what is there"),
        PermissionDenied => said("not-permitted", "`ls -l` shows whose it is: run this as that user, or choose another path"),
        AlreadyExists => said("exists", "choose another path, or move away what is there"),
        AddrInUse | AddrNotAvailable => said("cannot-listen", "choose another port, or port 0 to let the system choose"),
        StorageFull | QuotaExceeded => said("disk-full", "`df -h` shows how full the disk is: make room, and try again"),
        ReadOnlyFilesystem => said("not-permitted", "the file system is read-only: choose another path"),
        IsADirectory => said("bad-path", "this is a directory: name a file"),
        NotADirectory => said("bad-path", "part of the path is a file: check --dir and the path"),
        FileTooLarge => said("too-large", "is it the right file? choose a smaller one"),
        InvalidData => said("bad-file", "is it the right file? it must be UTF-8 text"),
        _ => said("failed", "check the disk and the permissions of the path"),
    }
}

fn directory_in_use() -> Known {
    said("directory-in-use", "`persona stop --dir DIR` stops the node that runs there; or choose another --dir")
}

fn newer() -> Known {
    said("newer-format", "use the version of persona that wrote it, or a later one; `persona --version` says which this is")
}

fn bad_mesh_name() -> Known {
    said("bad-request", "choose a name like `persona up --mesh my-agents`: 1 to 32 of a-z, 0-9 and '-'")
}

fn bad_address() -> Known {
    said(
        "bad-address",
        "write it like /ip4/192.0.2.7/tcp/4001 or /ip4/192.0.2.7/udp/4001/quic-v1; `persona status` on a node shows where it listens",
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use anyhow::Context as _;

    use super::*;

    fn told(error: impl Into<anyhow::Error>) -> Told {
        Told::of(&error.into())
    }

    #[test]
    fn what_up_can_fail_with_has_a_title_and_a_hint() {
        let place = || "store.redb".to_owned();
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let name = persona_mesh::check_mesh_name("A").unwrap_err();
        let address = persona_mesh::check_address("nowhere").unwrap_err();
        let bootstrap = "nowhere".parse::<persona_bootstrap::Address>().unwrap_err();
        let ticket = "persona:aaaa".parse::<persona_bootstrap::Ticket>().unwrap_err();
        let cases: Vec<(anyhow::Error, &str, &str)> = vec![
            (KeystoreError::WrongPassphrase.into(), "wrong-passphrase", "--passphrase-file"),
            (PassphraseError::None.into(), "no-passphrase", "PERSONA_PASSPHRASE"),
            (PassphraseError::File { path: PathBuf::from("word"), source: denied() }.into(), "not-permitted", "ls -l"),
            (StoreError::InUse { place: place() }.into(), "directory-in-use", "persona stop"),
            (StoreFailed("os error 28".into()).into(), "store-failed", "df -h"),
            (KeystoreError::Undecided(PathBuf::from("keystore")).into(), "disk", "start the node again"),
            (StoreError::Damaged { place: place(), detail: "cut".into() }.into(), "damaged", "keeps what is whole"),
            (StoreError::Io { action: "open", place: place(), source: denied() }.into(), "not-permitted", "ls -l"),
            (MeshError::Listen { address: "/ip4/127.0.0.1/tcp/1".into(), reason: "in use".into() }.into(), "cannot-listen", "--listen"),
            (MeshError::Address(address.clone()).into(), "bad-address", "/ip4/"),
            (name.into(), "bad-request", "--mesh"),
            (anyhow::Error::from(address).context("--listen nowhere"), "bad-address", "/ip4/"),
            (anyhow::Error::from(bootstrap).context("--bootstrap nowhere"), "bad-address", "/ip4/"),
            (anyhow::Error::from(ticket).context("--join ticket 1"), "bad-ticket", "persona invite"),
            (BookFileError::Io { what: "read", file: PathBuf::from("addresses"), error: denied() }.into(), "not-permitted", "ls -l"),
        ];
        for (error, title, hint) in cases {
            let told = Told::of(&error);
            assert_eq!(told.title, title, "{error:#}");
            assert!(told.hint.contains(hint), "{}", told.hint);
        }
    }

    #[test]
    fn a_cause_is_known_under_any_context_and_the_whole_chain_is_told() {
        let read = || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context("cannot read ada.json").context("agent create");
        let told = told(read().unwrap_err());
        assert_eq!(told.title, "no-such-file");
        assert!(told.detail.starts_with("agent create: cannot read ada.json: "), "{}", told.detail);
    }

    #[test]
    fn even_what_nobody_foresaw_has_a_hint_and_an_object_for_data() {
        for told in [told(anyhow::anyhow!("the moon is down")), told(Failure::new("odd", "odd", ""))] {
            let json = told.to_json();
            assert!(!json["error"]["hint"].as_str().unwrap().is_empty() && json["error"]["data"].is_object(), "{json}");
        }
    }

    #[test]
    fn the_hint_of_a_node_is_kept() {
        let problem = persona_drill::Problem {
            status: 503,
            title: "unavailable".into(),
            detail: "only 2 of 3 shards answered".into(),
            hint: "`persona analyze` names the silent".into(),
            data: json!({"have": 2, "need": 3}),
        };
        let told = told(DrillError::from(ApiError::Problem(Box::new(problem))));
        assert_eq!((told.title.as_str(), told.data["have"].as_u64()), ("unavailable", Some(2)));
        assert_eq!(told.hint, "`persona analyze` names the silent");
    }
}
