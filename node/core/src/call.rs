//! What a user asks of a node, and what comes back (docs/spec/api.md).

use persona_fragments::{Class, OwnerKey, SectionKey};
use persona_mesh_proto::get::Mode;
use zeroize::Zeroizing;

use crate::report::{
    AgentReport, AnalysisReport, GetReport, ImportReport, InboxReport, OutboxReport, PutReport, RelationshipsReport, SentReport,
    StatusReport, VerdictsReport,
};

/// One request to the node. Every call is answered exactly once.
#[derive(Debug)]
pub enum Call {
    /// Brings an agent into being and keeps it on this disk, sealed. Nothing is published before [`Call::Publish`].
    CreateAgent {
        /// The agent's name on this node.
        name: String,
        /// What it does.
        role: Option<String>,
        /// Where it was born.
        place: String,
        /// The user's own attributes, byte for byte.
        attributes: Vec<u8>,
    },
    /// Puts a created agent's `index`, `card` and `core` into the mesh.
    Publish {
        /// The agent.
        agent: OwnerKey,
    },
    /// Brings an agent to this node from its root secret and the mesh alone.
    Import {
        /// From its recovery file.
        root: Zeroizing<[u8; 32]>,
        /// Its name on this node; its card's name unless given.
        name: Option<String>,
    },
    /// Puts a document of the user's.
    PutSection {
        /// The agent.
        agent: OwnerKey,
        /// The section's name.
        name: String,
        /// Its class.
        class: Class,
        /// Its lifetime, if not the class's.
        ttl_ms: Option<u64>,
        /// For how long its holders renew it while the owner is away, if not the class's; 0: not at all.
        renew_for_ms: Option<u64>,
        /// Its level, if not the class's.
        level: Option<u8>,
        /// Refuse instead of storing at a lower level.
        require_level: Option<u8>,
        /// The document.
        content: Vec<u8>,
    },
    /// Reads a section through the mesh and opens it.
    GetSection {
        /// The agent.
        agent: OwnerKey,
        /// The section's name.
        name: String,
        /// How fresh it must be.
        mode: Mode,
    },
    /// Reads an agent's personality through the mesh.
    Personality {
        /// The agent.
        agent: OwnerKey,
        /// How fresh it must be.
        mode: Mode,
    },
    /// What is known of a section, from its holders, without any secret.
    Analyze {
        /// The section.
        key: SectionKey,
        /// Read the sealed content in this mode first, and fail if that fails.
        mode: Option<Mode>,
    },
    /// The certified head of a section, as bytes.
    Certificate {
        /// The section.
        key: SectionKey,
    },
    /// A section as its holders keep it, with its certified head: no secret is needed, and nothing is opened.
    Fetch {
        /// The section.
        key: SectionKey,
        /// How fresh it must be.
        mode: Mode,
    },
    /// Sends a text from a local agent.
    Send {
        /// The sender.
        from: OwnerKey,
        /// The recipient.
        to: OwnerKey,
        /// The text.
        text: String,
    },
    /// Publishes an envelope that was made elsewhere.
    PublishEnvelope {
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Delivered messages of an agent, after a sequence number.
    Inbox {
        /// The agent.
        agent: OwnerKey,
        /// Only later ones.
        after: u64,
    },
    /// Messages of an agent that are on their way.
    Outbox {
        /// The agent.
        agent: OwnerKey,
    },
    /// An agent's relationships.
    Relationships {
        /// The agent.
        agent: OwnerKey,
    },
    /// Verdicts on messages to this node's agents, after a sequence number.
    Verdicts {
        /// Only later ones.
        after: u64,
    },
    /// This node's agents.
    Agents,
    /// The recovery facts of an agent: name, id and root secret.
    Secrets {
        /// The agent.
        agent: OwnerKey,
    },
    /// The node itself.
    Status,
    /// One put and one get of a section of the node's own, for the benchmark.
    BenchPut {
        /// Which section.
        slot: u32,
        /// How many bytes.
        bytes: u32,
        /// At which level.
        level: u8,
    },
    /// Reads a section that [`Call::BenchPut`] wrote, through the mesh.
    BenchGet {
        /// Which section.
        slot: u32,
    },
}

/// What the keystore is to have of an agent from now on (docs/spec/keystore.md#importing).
pub enum Keep {
    /// It is being imported: whatever happens to this process, the next one can go on with it.
    Importing {
        /// Its name on this node.
        name: String,
        /// Its root secret.
        root: Zeroizing<[u8; 32]>,
        /// The term of the host that it is taken over from.
        from_term: u64,
    },
    /// Its import was refused: what was kept as [`Keep::Importing`] goes again.
    NotImporting,
    /// It lives here. This takes the place of [`Keep::Importing`], and of what was kept of an earlier stay.
    Home {
        /// Its name on this node.
        name: String,
        /// Its root secret.
        root: Zeroizing<[u8; 32]>,
        /// Its behaviour seed.
        seed: Zeroizing<[u8; 32]>,
        /// Its term on this node.
        term: u64,
    },
}

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Importing { name, from_term, .. } => write!(f, "Importing({name:?}, from term {from_term}, ..)"),
            Self::NotImporting => write!(f, "NotImporting"),
            Self::Home { name, term, .. } => write!(f, "Home({name:?}, term {term}, ..)"),
        }
    }
}

/// What a call brought.
#[derive(Debug)]
pub enum Answer {
    /// Nothing to tell.
    Done,
    /// A new agent, or an imported one, with what the keystore must keep.
    Agent {
        /// The agent.
        agent: OwnerKey,
        /// Its name on this node.
        name: String,
        /// Its root secret.
        root: Zeroizing<[u8; 32]>,
        /// Its behaviour seed.
        seed: Zeroizing<[u8; 32]>,
        /// Its term.
        term: u64,
        /// How the import went; `None` for a birth.
        import: Option<Box<ImportReport>>,
    },
    /// One put.
    Put(Box<PutReport>),
    /// Several puts.
    Puts(Vec<PutReport>),
    /// A section's content.
    Section {
        /// How it was read.
        get: Box<GetReport>,
        /// The bytes.
        content: Zeroizing<Vec<u8>>,
    },
    /// A personality.
    Personality {
        /// How it was read.
        get: Box<GetReport>,
        /// Its name.
        name: String,
        /// The canonical document.
        document: String,
        /// The user's own attributes.
        attributes: Vec<u8>,
    },
    /// An analysis.
    Analysis(Box<AnalysisReport>),
    /// A section as its holders keep it.
    Fetched {
        /// How it was read.
        get: Box<GetReport>,
        /// The certified head, checkable offline.
        head: Vec<u8>,
        /// The sealed bytes that it speaks of.
        content: Vec<u8>,
    },
    /// A certified head.
    Certificate {
        /// The section.
        key: SectionKey,
        /// The bytes, checkable offline.
        bytes: Vec<u8>,
    },
    /// A message is on its way.
    Sent(SentReport),
    /// Delivered messages.
    Inbox(InboxReport),
    /// Messages on their way.
    Outbox(OutboxReport),
    /// Relationships.
    Relationships(RelationshipsReport),
    /// Verdicts.
    Verdicts(VerdictsReport),
    /// Agents.
    Agents(Vec<AgentReport>),
    /// The node.
    Status(Box<StatusReport>),
}

/// Why a call failed. The titles of docs/spec/api.md.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// No unexpired certified version was found.
    #[error("{what} was not found: {answered} of {asked} nodes answered, and none holds an unexpired version")]
    NotFound {
        /// What was looked for.
        what: String,
        /// Nodes asked.
        asked: u32,
        /// Nodes that answered.
        answered: u32,
    },
    /// The agent's keys are not here.
    #[error("this node does not hold the keys of {agent}: core is never granted, only the agent's own node or its recovery file opens it")]
    NotTheOwner {
        /// The agent.
        agent: String,
        /// Its public card, if it was found.
        card: Option<Box<crate::report::CardReport>>,
    },
    /// Too few shards answered.
    #[error("only {have} of {need} shards of {what} answered ({asked} holders were asked)")]
    Unavailable {
        /// What was looked for.
        what: String,
        /// Shards that answered.
        have: u32,
        /// Shards that reconstruct.
        need: u32,
        /// Holders asked.
        asked: u32,
    },
    /// Too few holders answered to know that the version is the newest.
    #[error("only {have} of {need} holders of {what} answered, too few to know that this is the newest version")]
    QuorumUnreachable {
        /// What was looked for.
        what: String,
        /// Holders that answered.
        have: u32,
        /// Holders that make a quorum.
        need: u32,
    },
    /// All holders answered, and fewer than `k` still have their shard.
    #[error("{what} is lost from the mesh: its holders answered, and only {have} of {need} shards are left")]
    DataLost {
        /// What was looked for.
        what: String,
        /// Shards left.
        have: u32,
        /// Shards that reconstruct.
        need: u32,
    },
    /// The owner's manifest does not belong to one content.
    #[error("{what} is poisoned: its owner signed hashes that belong to no content")]
    Poisoned {
        /// What was looked for.
        what: String,
    },
    /// The level that was required cannot be reached with the holders at hand.
    #[error("level {wanted} is required, and the {holders} usable holders give level {level}")]
    LevelNotReached {
        /// What can be reached.
        level: u8,
        /// What was required.
        wanted: u8,
        /// Usable holders.
        holders: u32,
    },
    /// Fewer holders acked than commit a put.
    #[error("only {have} of {need} holders stored {what}: it is not known to be durable, and is tried again")]
    NotEnoughHolders {
        /// What was put.
        what: String,
        /// Acks.
        have: u32,
        /// Acks that commit.
        need: u32,
    },
    /// A holder would not store it, and said why.
    #[error("{what}: {reason}")]
    Refused {
        /// What was put.
        what: String,
        /// Who refused, and why.
        reason: String,
    },
    /// Another host took the agent over.
    #[error("the agent was taken over by another node (term {term}): this node only reads for it now")]
    Fenced {
        /// The other host's term.
        term: u64,
    },
    /// Bytes that were read do not open or do not decode.
    #[error("{what} does not open: {reason}")]
    Unreadable {
        /// What was read.
        what: String,
        /// Why not.
        reason: String,
    },
    /// More than a section may have.
    #[error("{0}")]
    TooLarge(String),
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// No such agent here.
    #[error("this node hosts no agent {0}")]
    UnknownAgent(String),
    /// An agent of that name lives here already.
    #[error("an agent named {0:?} lives on this node already")]
    NameTaken(String),
    /// This node's clock is off by more than class active tolerates.
    #[error("this node's clock is off by {:.1} s, as {peers} peers show: class active needs it within 2 s", *offset_ms as f64 / 1000.0)]
    ClockUnsynced {
        /// By how much the peers' clocks are ahead of this one, in milliseconds.
        offset_ms: i64,
        /// Peers that were asked.
        peers: u32,
    },
    /// A queue is full.
    #[error("the node is busy: {0}")]
    Busy(String),
    /// The disk is nearly full: nothing new is taken on.
    #[error("the disk of this node is nearly full: nothing new is stored here until there is room")]
    DiskFull,
    /// The keystore could not take what it must have before this goes on.
    #[error("the keystore did not take the agent's keys: {0}")]
    NotKept(String),
    /// An import that did not end, after it may have fenced the old host: its keys are kept, and it goes on by itself.
    #[error(
        "{}: {reason}",
        if *certified {
            format!("the import of {agent} is not over, and cannot be undone: its card of term {term} is certified, and its old host is fenced")
        } else {
            format!("the import of {agent} is not over: its card of term {term} was sent, and whether it fences the old host is not known")
        }
    )]
    ImportUnfinished {
        /// The agent.
        agent: String,
        /// The term in which it is to live here.
        term: u64,
        /// Whether that term's card is known to be certified.
        certified: bool,
        /// What stands in the way.
        reason: Box<CallError>,
    },
}

impl CallError {
    /// The stable kebab-case name of the error.
    pub fn title(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::NotTheOwner { .. } => "not-the-owner",
            Self::Unavailable { .. } => "unavailable",
            Self::QuorumUnreachable { .. } => "quorum-unreachable",
            Self::DataLost { .. } => "data-lost",
            Self::Poisoned { .. } => "poisoned",
            Self::LevelNotReached { .. } => "level-not-reached",
            Self::NotEnoughHolders { .. } => "not-enough-holders",
            Self::Refused { .. } => "refused",
            Self::Fenced { .. } => "fenced",
            Self::Unreadable { .. } => "unreadable",
            Self::TooLarge(_) => "too-large",
            Self::BadRequest(_) => "bad-request",
            Self::UnknownAgent(_) => "unknown-agent",
            Self::NameTaken(_) => "name-taken",
            Self::ClockUnsynced { .. } => "clock-unsynced",
            Self::Busy(_) => "busy",
            Self::DiskFull => "disk-full",
            Self::NotKept(_) => "not-kept",
            Self::ImportUnfinished { .. } => "import-unfinished",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { .. } => {
                "a section lives for its TTL after its owner's last refresh: ask the owner's node, or check the name and the mesh".into()
            }
            Self::NotTheOwner { .. } => {
                "`persona agent import FILE` brings the agent here from its recovery file; its public card is in the error's data".into()
            }
            Self::Unavailable { .. } => {
                "`persona analyze` names the holders that are silent; the section reads again when enough of them are back".into()
            }
            Self::QuorumUnreachable { .. } => {
                "`--mode any` reads what there is, labelled maybe-stale; `persona analyze` names the silent holders".into()
            }
            Self::DataLost { .. } => "bring the agent's own node back: it holds the section on its disk and places it again".into(),
            Self::Poisoned { .. } => "nothing can be read from this version; its owner must put it again".into(),
            Self::LevelNotReached { .. } => "let more nodes join, or ask for a lower level".into(),
            Self::NotEnoughHolders { .. } => {
                "`persona peers` shows who is connected; the same bytes are sent again until they are stored".into()
            }
            Self::Refused { .. } => "it is tried again with other holders; if clocks are the reason, set this machine's".into(),
            Self::Fenced { .. } => "use the agent on the node that took it over; `persona agent import` brings it back here".into(),
            Self::Unreadable { .. } => "the recovery file or the keys belong to another agent, or the owner's data is damaged".into(),
            Self::TooLarge(_) => "split it into several sections".into(),
            Self::BadRequest(_) => "`--help` has an example".into(),
            Self::UnknownAgent(_) => "`persona agent list` shows the agents of this node".into(),
            Self::NameTaken(_) => {
                "choose another name; if it is the agent you mean, `persona agent export NAME FILE` writes its recovery file".into()
            }
            Self::ClockUnsynced { .. } => "set this machine's clock, by NTP if it can be; the other classes are dated by the peers' clocks meanwhile".into(),
            Self::Busy(_) => "try again in a moment".into(),
            Self::DiskFull => "make room on the disk of the state directory (`df -h` shows it), and try again; reads go on meanwhile".into(),
            Self::NotKept(_) => "see to the disk of the state directory and its permissions, then give the command again".into(),
            Self::ImportUnfinished { .. } => {
                "this node has its keys and goes on by itself, also after a restart: `persona status` shows the agent as importing until it \
                 lives here; `persona agent import FILE` tries again at once, here or on another node"
                    .into()
            }
        }
    }
}
