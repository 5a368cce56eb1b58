//! The daemon: one node, carried out.
//!
//! One task owns the [`Node`]. Everything that can happen to it is one variant of [`Happening`], and everything that it wants done is
//! carried out in [`Shell::run`]: the life of the process can be read there.
//!
//! ```text
//!   HTTP ──calls──> ┌──────┐ ──requests, lookups, gossip──> mesh (swarm task)
//!   mesh ──events─> │ Node │ ──batches──────────────────> store (writer thread)
//!  store ──events─> │      │ ──what to keep───────────> keystore (keeper thread)
//! keeper ──events─> └──────┘ ──answers──────────────────> HTTP
//! ```

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use parking_lot::{Mutex, RwLock};
use persona_bootstrap::{AddressBook, JoinEvent, JoinOut, JoinSources, Joiner, Ticket, sources};
use persona_core::{
    AgentKeys, Answer, Call, CallError, Config, Gossip, ImportKeys, Input, Judgement, Keep, Node, NodeKeys, Notice, Output, PublishError,
    RequestError,
};
use persona_fragments::{Class, Ed25519Signer, Ed25519Verifier, OwnerKey};
use persona_mesh::{HeadIndex, MeshCommand, MeshConfig, MeshEvent, MeshHandle, MeshLimits, Topic};
use persona_mesh_proto::{PersistId, Table, holder::lost_store_mark};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    clock,
    keystore::{
        AgentSecrets, Cost, ImportSecrets, KEYSTORE_FILE, Keystore, KeystoreError, Passphrase, PassphrasePurpose, PassphraseSource, files,
        passphrase,
    },
    passage::{Asked, Passage},
    random::OsRandom,
    room::Room,
    store::{STORE_FILE, Salvage, Store, StoreError, StoreEvent},
};

/// Calls waiting for the node. Beyond it the API answers 503.
const CALLS_WAITING_MAX: usize = 1024;

/// Store events waiting for the node; the store coalesces the rest.
const STORE_EVENTS_MAX: usize = 1024;

/// Changes of the keystore waiting for their turn: one or two for an import. Beyond it an import is refused, or tried again later.
const KEEPS_WAITING_MAX: usize = 256;

/// There while a lost store has not yet been marked in the new one.
const STORE_LOST_FILE: &str = "store.lost";

/// Tables with what this node promised to others: one that lost a row of them must say so (docs/spec/quorum.md#a-holder-that-lost-its-store).
const PROMISES: [Table; 4] = [Table::Prepared, Table::Head, Table::Fence, Table::Meta];

/// Tables with numbers that must not be given twice - versions that were signed, counters of messages: an agent whose host lost a row of
/// them goes on in a higher term, in which none was given yet.
const NOT_TO_BE_REPEATED: [Table; 4] = [Table::Intent, Table::Own, Table::Outbox, Table::Meta];

/// Is locked while a node runs on a state directory (docs/spec/store.md#lock).
const LOCK_FILE: &str = "lock";

/// The address book is written at most this often.
const BOOK_SAVE_MS: u64 = 1_000;

/// The store has failed while the node ran. What it acknowledged is on the disk.
#[derive(Debug, thiserror::Error)]
#[error("the store has failed ({0}): nothing more can be promised, and the node has stopped")]
pub(crate) struct StoreFailed(pub(crate) String);

/// How a node is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The state directory.
    pub(crate) dir: PathBuf,
    /// The mesh.
    pub(crate) mesh: String,
    /// Where to listen.
    pub(crate) listen: Vec<String>,
    /// Where others reach it, in place of where it listens.
    pub(crate) announce: Vec<String>,
    /// Tickets to join by.
    pub(crate) join: Vec<String>,
    /// Addresses to join by.
    pub(crate) bootstrap: Vec<String>,
    /// Where to serve the control API.
    pub(crate) api: String,
    /// The passphrase file, if there is one.
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Whether no more than f holders of a section may be in one network.
    pub(crate) diversity_prefix: bool,
    /// How long holders renew sections of these classes while their owner is silent; the others as by default.
    pub(crate) renew_for: Vec<(Class, Duration)>,
    /// Where agents are born, unless they say otherwise.
    pub(crate) birth_place: String,
    /// Life events as JSON on stdout.
    pub(crate) json: bool,
}

/// A call on its way to the node.
pub(crate) struct PendingCall {
    call: Call,
    answer: oneshot::Sender<Result<Answer, CallError>>,
}

/// What the API shares with the daemon.
pub(crate) struct Shared {
    /// Calls to the node.
    calls: mpsc::Sender<PendingCall>,
    /// The mesh, for what only it can see.
    pub(crate) mesh: MeshHandle,
    /// The store, for its counts.
    pub(crate) store: Store,
    /// Everything secret.
    pub(crate) keystore: Mutex<Keystore>,
    /// The passphrase that seals recovery files of agents born here.
    pub(crate) passphrase: Passphrase,
    /// Local names of agents.
    pub(crate) names: RwLock<BTreeMap<String, OwnerKey>>,
    /// Turns with every delivered message and verdict: whoever waits looks again.
    pub(crate) news: watch::Sender<u64>,
    /// What an operator should do about joining.
    pub(crate) advice: RwLock<Vec<String>>,
    /// Stops the daemon.
    pub(crate) stop: watch::Sender<bool>,
    /// The mesh's name.
    pub(crate) mesh_name: String,
    /// Where agents are born.
    pub(crate) birth_place: String,
    /// When the daemon started, in monotonic microseconds.
    pub(crate) started_us: u64,
    /// Nanoseconds spent in the node's own code, and in signatures within it, for the benchmark.
    pub(crate) spent: Arc<crate::spent::Spent>,
}

/// The /24 or /48 that an address is in; `None` for an address that says nothing about who runs the machine: loopback, private and
/// link-local ones are the same everywhere.
fn network_prefix(address: &str) -> Option<[u8; 8]> {
    let mut parts = address.split('/').skip(1);
    let (kind, ip) = (parts.next()?, parts.next()?);
    let ip: IpAddr = ip.parse().ok().filter(|_| matches!(kind, "ip4" | "ip6"))?;
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let shared = a == 100 && b & 0xc0 == 64; // RFC 6598, behind a provider's translation
            let anywhere = ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified() || shared;
            (!anywhere).then_some([4, a, b, c, 0, 0, 0, 0])
        }
        IpAddr::V6(ip) => {
            let anywhere = ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local();
            let [a, b, c, d, e, f, ..] = ip.octets();
            (!anywhere).then_some([6, a, b, c, d, e, f, 0])
        }
    }
}

/// A change of the keystore on its way to the keeper.
struct KeepJob {
    id: u64,
    agent: OwnerKey,
    keep: Keep,
}

/// What the keeper says of one change.
type Kept = (u64, Result<(), String>);

/// What to do about an agent whose recovery file nobody is known to have.
pub(crate) fn recovery_advice(name: &str) -> String {
    format!(
        "nobody is known to have a recovery file of {name}, without which it dies with this node: `persona agent export {name} FILE` writes one"
    )
}

impl Shared {
    /// The agents that were born here and whose recovery file nobody is known to have, with their names.
    pub(crate) fn without_recovery(&self) -> Vec<(OwnerKey, String)> {
        let agents = self.keystore.lock().agents();
        agents.into_iter().filter(|agent| !agent.recovery_written).map(|agent| (agent.agent, agent.name)).collect()
    }

    /// Changes what the keystore has of an agent, and by which name it goes here. It blocks.
    fn keep(&self, agent: OwnerKey, keep: Keep) -> Result<(), KeystoreError> {
        let mut keystore = self.keystore.lock();
        match keep {
            Keep::Importing { name, root, from_term } => {
                keystore.put_import(&ImportSecrets { name: name.clone(), agent, from_term, root: *root })?;
                self.names.write().entry(name).or_insert(agent);
            }
            Keep::NotImporting => {
                keystore.remove_import(&agent)?;
                let before = keystore.agents().into_iter().find(|known| known.agent == agent);
                let mut names = self.names.write();
                names.retain(|_, known| *known != agent);
                names.extend(before.map(|known| (known.name, agent)));
            }
            Keep::Home { name, root, seed, term } => {
                keystore.put_agent(&AgentSecrets { name: name.clone(), agent, term, root: *root, behaviour_seed: *seed })?;
                tracing::info!(agent = name, term, "an agent came here, and lives here now");
                let mut names = self.names.write();
                names.retain(|_, known| *known != agent);
                names.insert(name, agent);
            }
        }
        Ok(())
    }

    /// Asks the node.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let (answer, answered) = oneshot::channel();
        let busy = || CallError::Busy("the node has too much to do".into());
        self.calls.try_send(PendingCall { call, answer }).map_err(|_| busy())?;
        answered.await.unwrap_or_else(|_| Err(CallError::Busy("the node is stopping".into())))
    }
}

/// Everything that can happen to the daemon.
enum Happening {
    Mesh(MeshEvent),
    Store(StoreEvent),
    Kept(Kept),
    Call(PendingCall),
    Due,
    Stop,
}

/// Runs a node until it is told to stop. The passage is made with the node's own signer.
pub(crate) async fn up<P: Passage>(options: Options, passage: impl FnOnce(Ed25519Signer) -> P) -> anyhow::Result<()> {
    let started_us = clock::now().mono_us;
    let tickets = check(&options)?;
    let _lock = lock(&options.dir)?;
    let source = options.passphrase_file.clone().map_or(PassphraseSource::Any, PassphraseSource::File);
    let first = !options.dir.join(KEYSTORE_FILE).exists();
    let purpose = if first { PassphrasePurpose::Seal } else { PassphrasePurpose::Open };
    let secret = passphrase(&source, purpose)?;
    let mut keystore =
        if first { Keystore::create(&options.dir, &secret, Cost::STANDARD)? } else { Keystore::open(&options.dir, &secret)? };
    let (store_events, mut from_store) = mpsc::channel(STORE_EVENTS_MAX);
    let lost = options.dir.join(STORE_LOST_FILE);
    let (store, damage) = open_store(&options.dir, first, &mut keystore, store_events).await?;
    if lost.exists() {
        mark_lost(&store, &mut from_store).await?;
        std::fs::remove_file(&lost).with_context(|| format!("cannot remove {}", lost.display()))?;
    }

    let spent = Arc::new(crate::spent::Spent::default());
    let node_seed = keystore.node_seed();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the operating system gives no randomness")?;
    let keys = NodeKeys {
        signer: Box::new(crate::spent::TimedSigner::new(Ed25519Signer::from_seed(&node_seed), Arc::clone(&spent))),
        verifier: Arc::new(crate::spent::TimedVerifier::new(Ed25519Verifier, Arc::clone(&spent))),
        secret: keystore.node_key(),
        owner_signer: persona_core::ed25519_owner(),
    };
    let mut config = Config { diversity: options.diversity_prefix, ..Config::default() };
    for (class, renew_for) in &options.renew_for {
        config.classes.of_mut(*class).renew_for = *renew_for;
    }
    let mut node = Node::new(keys, config, seed, clock::now());
    load(&mut node, &store)?;
    if let Some(damage) = damage {
        node.raise_alarm("store-damaged", damage);
    }
    let names = take_up(&mut node, &keystore)?;

    let heads = Arc::new(HeadIndex::new());
    for (key, head) in node.heads_to_serve() {
        heads.set(&key, Some(head));
    }
    let ports_path = options.dir.join("ports");
    let had = std::fs::read_to_string(&ports_path).unwrap_or_default();
    let Started { mesh, events: mut from_mesh, moved } =
        start_mesh(&options.mesh, &node_seed, (&options.listen, &options.announce), &had, &heads).await?;
    if let Some(moved) = moved {
        tracing::warn!("{moved}");
    }
    // Without it the next start listens on other ports: no reason not to run.
    if let Err(error) = files::replace(&ports_path, ports_of(&mesh.view().listening).as_bytes()) {
        tracing::warn!(%error, "cannot write the file ports");
    }

    let book_path = options.dir.join("addresses");
    let loaded = sources::file::load(&book_path)?;
    if let Some(damaged) = loaded.damaged {
        tracing::warn!("{damaged}");
    }
    let sources = JoinSources {
        mesh: options.mesh.clone(),
        tickets,
        bootstrap: options.bootstrap.clone(),
        book: loaded.book.candidates(persona_bootstrap::BOOK_CANDIDATES_MAX, clock::now().wall_ms),
    };
    let joiner = Joiner::new(sources, node.me());

    let (calls, mut from_api) = mpsc::channel(CALLS_WAITING_MAX);
    let (stop, mut stopped) = watch::channel(false);
    let shared = Arc::new(Shared {
        calls,
        mesh: mesh.clone(),
        store: store.clone(),
        keystore: Mutex::new(keystore),
        passphrase: secret,
        names: RwLock::new(names),
        news: watch::channel(0).0,
        advice: RwLock::new(Vec::new()),
        stop,
        mesh_name: options.mesh.clone(),
        birth_place: options.birth_place.clone(),
        started_us,
        spent,
    });
    tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            signals().await;
            shared.stop.send_replace(true);
        }
    });
    let (keeper, jobs) = mpsc::channel(KEEPS_WAITING_MAX);
    let (kept, mut from_keeper) = mpsc::channel(KEEPS_WAITING_MAX);
    let keeping = tokio::task::spawn_blocking({
        let shared = Arc::clone(&shared);
        move || keep_all(&shared, jobs, &kept)
    });
    let api = crate::http::serve(&options, Arc::clone(&shared)).await?;
    let mut shell = Shell {
        node,
        mesh,
        store,
        keeper,
        heads,
        joiner,
        book: loaded.book,
        book_path,
        book_dirty_since_ms: None,
        room: Room::new(&options.dir),
        waiting: HashMap::new(),
        next_call: 0,
        shared: Arc::clone(&shared),
        json: options.json,
        failed: None,
        passage: passage(Ed25519Signer::from_seed(&node_seed)),
    };
    shell.say(&serde_json::json!({
        "event": "up",
        "peer_id": shell.node.me().to_peer_id_string(),
        "api": api.address,
        "listen_addrs": shell.mesh.view().listening,
    }));
    shell.join(JoinEvent::Started);
    shell.run(Input::Tick);

    while shell.failed.is_none() {
        let due = tokio::time::sleep(shell.wait());
        let happening = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => Happening::Stop,
            Some(event) = from_store.recv() => Happening::Store(event),
            Some(kept) = from_keeper.recv() => Happening::Kept(kept),
            Some(event) = from_mesh.recv() => Happening::Mesh(event),
            Some(call) = from_api.recv() => Happening::Call(call),
            () = due => Happening::Due,
        };
        match happening {
            Happening::Mesh(event) => shell.on_mesh(event),
            Happening::Store(event) => shell.on_store(event),
            Happening::Kept((id, result)) => shell.run(Input::Kept { id, result }),
            Happening::Call(call) => shell.on_call(call),
            Happening::Due => shell.run(Input::Tick),
            Happening::Stop => break,
        }
        shell.tend();
    }
    let failed = shell.failed.take();
    shell.save_book();
    api.close();
    let Shell { mesh, store, keeper, .. } = shell;
    // Nobody hears what becomes of the last changes, but they are made: the next start goes on from there.
    drop((keeper, from_keeper));
    keeping.await?;
    mesh.stop().await;
    tokio::task::spawn_blocking(move || store.close()).await?;
    if options.json {
        crate::output::line(&serde_json::json!({"event": "stopped"}).to_string());
    }
    match failed {
        None => Ok(()),
        Some(reason) => Err(StoreFailed(reason).into()),
    }
}

/// Opens the store. Of a damaged one that keeps what is whole, and the answer says what is not.
///
/// Whatever must be remembered of a loss is written down before there is another store: a crash in between must not make it forgotten.
async fn open_store(
    dir: &Path,
    first: bool,
    keystore: &mut Keystore,
    events: mpsc::Sender<StoreEvent>,
) -> anyhow::Result<(Store, Option<String>)> {
    let path = dir.join(STORE_FILE);
    let open = || {
        let (path, events) = (path.clone(), events.clone());
        tokio::task::spawn_blocking(move || Store::open(&path, events))
    };
    let say_lost = || files::replace(&dir.join(STORE_LOST_FILE), b"").context("cannot write down that the store is lost");
    if !first && !path.exists() {
        say_lost()?;
    }
    let detail = match open().await? {
        Err(StoreError::Damaged { detail, .. }) => detail,
        opened => return Ok((opened?, None)),
    };
    let salvage = tokio::task::spawn_blocking({
        let path = path.clone();
        move || Salvage::of(&path)
    });
    let salvage = salvage.await??;
    let mut damage = format!("the store was damaged ({detail}): {salvage}");
    if salvage.loses(&PROMISES) {
        say_lost()?;
    }
    if salvage.loses(&NOT_TO_BE_REPEATED) && !keystore.agents().is_empty() {
        let coming = keystore.imports();
        // One that is on its way here already comes from the host that has it, which is not this one.
        for entry in keystore.agents().into_iter().filter(|entry| !coming.iter().any(|import| import.agent == entry.agent)) {
            let secrets = keystore.agent(&entry.name)?;
            let (name, agent, from_term) = (entry.name, entry.agent, entry.term);
            keystore.put_import(&ImportSecrets { name, agent, from_term, root: secrets.root })?;
        }
        damage.push_str("; what lives here is taken over anew, in a higher term, with what the mesh has of it");
    }
    let aside = salvage.install()?;
    damage
        .push_str(&format!(". The damaged file is kept as {}: check the disk, and remove it when nobody misses anything", aside.display()));
    Ok((open().await??, Some(damage)))
}

/// Says durably, in a new store, that the one before it is lost: from now on this node answers `Recovering` where it may have promised
/// something (docs/spec/quorum.md#a-holder-that-lost-its-store).
async fn mark_lost(store: &Store, from_store: &mut mpsc::Receiver<StoreEvent>) -> anyhow::Result<()> {
    tracing::warn!(
        "this node has an identity and no store: its shards and promises are lost, and it asks the other holders for what it must know"
    );
    store.submit(PersistId(0), vec![lost_store_mark(clock::now().wall_ms)])?;
    match from_store.recv().await {
        Some(StoreEvent::Persisted(_)) => Ok(()),
        Some(StoreEvent::Failed(reason)) => bail!("cannot write to the new store: {reason}"),
        None => bail!("the new store stopped"),
    }
}

/// Checks what was asked for before anything is created.
fn check(options: &Options) -> anyhow::Result<Vec<Ticket>> {
    persona_mesh::check_mesh_name(&options.mesh)?;
    for address in &options.listen {
        persona_mesh::check_address(address).with_context(|| format!("--listen {address}"))?;
    }
    for address in &options.announce {
        persona_mesh::check_address(address).with_context(|| format!("--announce {address}"))?;
    }
    for (at, (class, _)) in options.renew_for.iter().enumerate() {
        let again = options.renew_for[..at].iter().any(|(other, _)| other == class);
        if again {
            let detail = format!("--renew-for says twice how long sections of class {} are renewed", class.name());
            return Err(crate::client::Failure::new("bad-request", detail, "say it once for each class").into());
        }
    }
    for address in &options.bootstrap {
        address.parse::<persona_bootstrap::Address>().with_context(|| format!("--bootstrap {address}"))?;
    }
    options.join.iter().enumerate().map(|(at, text)| text.parse::<Ticket>().with_context(|| format!("--join ticket {}", at + 1))).collect()
}

/// Makes sure that no other process uses the directory, before anybody is asked for a passphrase. The lock goes with the process.
fn lock(dir: &Path) -> anyhow::Result<std::fs::File> {
    files::create_private_directory(dir).with_context(|| format!("cannot create the state directory {}", dir.display()))?;
    let path = dir.join(LOCK_FILE);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path).with_context(|| format!("cannot open {}; check the directory's permissions", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse { place: path.display().to_string() }.into()),
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Takes up every agent of the keystore, and goes on with every import; the names by which they go here. One that cannot be taken up is an
/// alarm of the node's, and the others live.
fn take_up(node: &mut Node, keystore: &Keystore) -> anyhow::Result<BTreeMap<String, OwnerKey>> {
    let mut names = BTreeMap::new();
    for entry in keystore.agents() {
        let secrets = keystore.agent(&entry.name)?;
        let keys = AgentKeys { name: entry.name.clone(), root: zeroize::Zeroizing::new(secrets.root), term: secrets.term };
        if let Ok(id) = node.add_agent(keys) {
            names.insert(entry.name, id);
        }
    }
    for secrets in keystore.imports() {
        let keys = ImportKeys { name: secrets.name.clone(), root: zeroize::Zeroizing::new(secrets.root), from_term: secrets.from_term };
        let id = node.resume_import(keys);
        names.entry(secrets.name.clone()).or_insert(id);
    }
    for stray in node.forget_strays() {
        tracing::info!(
            agent = stray.agent.to_did(),
            sections = stray.sections,
            partners = stray.partners,
            messages = stray.messages,
            "this disk has rows of an agent that is not in the keystore; they stay, and count again when it is imported"
        );
    }
    Ok(names)
}

/// Changes the keystore, one after the other, until nobody asks any more.
fn keep_all(shared: &Shared, mut jobs: mpsc::Receiver<KeepJob>, kept: &mpsc::Sender<Kept>) {
    while let Some(KeepJob { id, agent, keep }) = jobs.blocking_recv() {
        let result = shared.keep(agent, keep).map_err(|error| error.to_string());
        // When the daemon stops nobody listens.
        let _ = kept.blocking_send((id, result));
    }
}

/// The mesh, as it was started.
struct Started {
    mesh: MeshHandle,
    events: mpsc::Receiver<MeshEvent>,
    /// Why it listens on other ports than before.
    moved: Option<String>,
}

/// Starts the mesh on the ports that it had, and on others if those are taken.
async fn start_mesh(
    name: &str,
    node_seed: &[u8; 32],
    (listen, announce): (&[String], &[String]),
    had: &str,
    heads: &Arc<HeadIndex>,
) -> anyhow::Result<Started> {
    let config = |listen: Vec<String>| MeshConfig {
        mesh: name.to_owned(),
        node_seed: *node_seed,
        listen,
        external: announce.to_vec(),
        limits: MeshLimits::default(),
    };
    let again = listen_again(listen, had);
    match persona_mesh::start(config(again.clone()), Arc::clone(heads)).await {
        Ok((mesh, events)) => Ok(Started { mesh, events, moved: None }),
        Err(error) if again != listen => {
            let moved = format!("{error}: this node listens on other ports than before, and others must find it anew");
            let (mesh, events) = persona_mesh::start(config(listen.to_vec()), Arc::clone(heads)).await?;
            Ok(Started { mesh, events, moved: Some(moved) })
        }
        Err(error) => Err(error.into()),
    }
}

/// The ports that this node had before, in place of 0: tickets and other nodes' address books go on being right.
fn listen_again(asked: &[String], had: &str) -> Vec<String> {
    let port = |kind: &str| had.lines().find_map(|line| line.strip_prefix(kind)?.trim().parse::<u16>().ok());
    let mut seen = [false; 2];
    asked
        .iter()
        .map(|address| {
            for (at, (kind, zero)) in [("tcp", "/tcp/0"), ("udp", "/udp/0")].into_iter().enumerate() {
                if address.contains(zero)
                    && !std::mem::replace(&mut seen[at], true)
                    && let Some(port) = port(kind)
                {
                    return address.replacen(zero, &format!("/{kind}/{port}"), 1);
                }
            }
            address.clone()
        })
        .collect()
}

/// The first TCP and the first UDP port in some multiaddrs, a line each.
fn ports_of(listening: &[String]) -> String {
    let port = |kind: &str| {
        let marker = format!("/{kind}/");
        listening.iter().find_map(|address| address.split_once(&marker)?.1.split('/').next()?.parse::<u16>().ok())
    };
    ["tcp", "udp"].into_iter().filter_map(|kind| Some(format!("{kind} {}\n", port(kind)?))).collect()
}

/// Hands everything that the disk kept to the node.
fn load(node: &mut Node, store: &Store) -> anyhow::Result<()> {
    let mut refused = None;
    for table in Table::ALL.into_iter().filter(|table| !matches!(table, Table::Shard | Table::Expiry)) {
        store.for_each(table, |key, value| {
            if let Err(reason) = node.load(table, key, value) {
                refused.get_or_insert(reason);
            }
        })?;
    }
    match refused {
        None => Ok(()),
        Some(reason) => bail!("the store is damaged: {reason}"),
    }
}

/// Hands what the disk kept of an agent to the node, which forgot it since it does not live here.
fn load_rows_of(node: &mut Node, store: &Store, agent: &OwnerKey) -> anyhow::Result<()> {
    let mut refused = None;
    for table in [Table::Own, Table::Outbox, Table::Inbox, Table::Meta] {
        store.for_each(table, |key, value| {
            if let Err(reason) = node.load_row_of(agent, table, key, value) {
                refused.get_or_insert(reason);
            }
        })?;
    }
    refused.map_or(Ok(()), |reason| bail!("the store is damaged: {reason}"))
}

/// Until SIGINT or SIGTERM.
pub(crate) async fn signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

struct Shell<P> {
    node: Node,
    mesh: MeshHandle,
    store: Store,
    keeper: mpsc::Sender<KeepJob>,
    heads: Arc<HeadIndex>,
    joiner: Joiner,
    book: AddressBook,
    book_path: PathBuf,
    book_dirty_since_ms: Option<u64>,
    room: Room,
    waiting: HashMap<u64, oneshot::Sender<Result<Answer, CallError>>>,
    next_call: u64,
    shared: Arc<Shared>,
    json: bool,
    failed: Option<String>,
    passage: P,
}

impl<P: Passage> Shell<P> {
    /// Feeds one event to the node, and carries out what comes of it.
    fn run(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let outputs = {
                let _spent = self.shared.spent.node();
                self.node.handle(input, clock::now())
            };
            for output in outputs {
                self.carry_out(output, &mut inputs);
            }
        }
    }

    fn carry_out(&mut self, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Request { id, to, frame, timeout_ms } => {
                let command = MeshCommand::Request { id, to, frame, timeout: Duration::from_millis(timeout_ms) };
                if self.mesh.command(command).is_err() {
                    inputs.push_back(Input::Response { id, result: Err(RequestError::Unreachable) });
                }
            }
            Output::Respond { inbound, frame } => {
                if let Some(frame) = self.passage.answered(inbound, frame) {
                    self.respond(inbound, frame);
                }
            }
            Output::Lookup { id, key } => {
                if self.mesh.command(MeshCommand::Lookup { id, key }).is_err() {
                    inputs.push_back(Input::Found { id, peers: Vec::new() });
                }
            }
            Output::Persist { id, writes } => {
                if let Err(error) = self.store.submit(id, writes) {
                    // A batch that is not taken would break the order of those behind it: stop, as if the disk had failed.
                    self.failed.get_or_insert(error.to_string());
                }
            }
            Output::Keep { id, agent, keep } => {
                if self.keeper.try_send(KeepJob { id, agent, keep }).is_err() {
                    inputs
                        .push_back(Input::Kept { id, result: Err("too many changes of the keystore wait: try again in a moment".into()) });
                }
            }
            Output::Load { id, table, key } => match self.store.get(table, &key) {
                Ok(value) => inputs.push_back(Input::Loaded { id, value }),
                Err(error) => {
                    self.failed.get_or_insert(error.to_string());
                }
            },
            Output::Head { key, record } => self.heads.set(&key, record),
            Output::Publish { id, topic, data } => {
                if self.mesh.command(MeshCommand::Publish { id, topic: mesh_topic(topic), data }).is_err() {
                    inputs.push_back(Input::Published { id, result: Err(PublishError) });
                }
            }
            Output::Judge { message, verdict } => {
                let verdict = match verdict {
                    Judgement::Accept => persona_mesh::Judgement::Accept,
                    Judgement::Reject => persona_mesh::Judgement::Reject,
                    Judgement::Ignore => persona_mesh::Judgement::Ignore,
                };
                // If the queue is full the message is not forwarded: others do that.
                let _ = self.mesh.command(MeshCommand::Judge { message, verdict });
            }
            Output::Reply { id, result } => {
                if let Some(answer) = self.waiting.remove(&id) {
                    let _ = answer.send(result);
                }
            }
            Output::Notice(notice) => {
                self.shared.news.send_modify(|turn| *turn += 1);
                if let Notice::Ready(ready) = notice {
                    tracing::info!(ready, "the canary section {}", if ready { "was read back" } else { "cannot be read back" });
                    if ready {
                        self.say(&serde_json::json!({"event": "ready", "alone": self.shared.mesh.view().peers.is_empty()}));
                    }
                }
            }
            Output::Alarm(alarm) => tracing::warn!(kind = alarm.kind, "{}", alarm.text),
        }
    }

    fn respond(&self, inbound: u64, frame: Vec<u8>) {
        // If the queue is full, the peer's request times out and comes again: it is idempotent.
        let _ = self.mesh.command(MeshCommand::Respond { inbound, frame });
    }

    fn on_call(&mut self, PendingCall { call, answer }: PendingCall) {
        if let Some(agent) = self.node.wants_rows(&call)
            && let Err(error) = load_rows_of(&mut self.node, &self.store, &agent)
        {
            self.failed.get_or_insert(error.to_string());
        }
        self.next_call += 1;
        self.waiting.insert(self.next_call, answer);
        self.run(Input::Call { id: self.next_call, call });
    }

    fn on_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Persisted(ids) => self.run(Input::Persisted { ids }),
            StoreEvent::Failed(reason) => self.failed = Some(reason),
        }
    }

    fn on_mesh(&mut self, event: MeshEvent) {
        match event {
            MeshEvent::Listening { address } => tracing::debug!(address, "reachable"),
            MeshEvent::Connected { peer, address, outgoing } => {
                tracing::debug!(peer = peer.to_peer_id_string(), address, outgoing, "connected");
                let now_ms = clock::now().wall_ms;
                if outgoing {
                    self.book.succeeded(peer, &address, now_ms);
                    self.book_dirty_since_ms.get_or_insert(now_ms);
                }
                self.join(JoinEvent::Connected { peer, address: outgoing.then(|| address.clone()) });
                self.run(Input::Connected { peer, prefix: network_prefix(&address) });
            }
            MeshEvent::Disconnected { peer } => {
                tracing::debug!(peer = peer.to_peer_id_string(), "disconnected");
                self.join(JoinEvent::Disconnected { peer });
                self.run(Input::Disconnected { peer });
            }
            MeshEvent::DialFailed { address, reason } => {
                self.book.failed(&address, clock::now().wall_ms);
                self.join(JoinEvent::DialFailed { address, reason });
            }
            MeshEvent::Request { inbound, from, frame } => match self.passage.asked(inbound, &from, &frame) {
                Asked::Pass => self.run(Input::Frame { inbound, from, frame }),
                Asked::Answer(answer) => self.respond(inbound, answer),
                Asked::Silence => {}
            },
            MeshEvent::Response { id, result } => {
                self.run(Input::Response { id, result: result.map_err(|_| RequestError::Unreachable) });
            }
            MeshEvent::Found { id, peers } => self.run(Input::Found { id, peers }),
            MeshEvent::Published { id, result } => self.run(Input::Published { id, result: result.map_err(|_| PublishError) }),
            MeshEvent::Gossip { message, topic, data, .. } => {
                let topic = match topic {
                    Topic::Announce => Gossip::Announce,
                    Topic::Alerts => Gossip::Alerts,
                    Topic::Messages(lane) => Gossip::Messages(lane),
                };
                self.run(Input::Gossip { message, topic, data });
            }
            // Whoever dialed this node is found again too, when it restarts at another port and nobody knows it there.
            MeshEvent::Identified { peer, addresses } => {
                let now_ms = clock::now().wall_ms;
                if self.book.learned(peer, &addresses, now_ms) > 0 {
                    self.book_dirty_since_ms.get_or_insert(now_ms);
                }
            }
            MeshEvent::Record { .. } | MeshEvent::Rtt { .. } => {}
        }
    }

    /// Joining and the address book, which must not starve while the node is busy.
    fn tend(&mut self) {
        if self.joiner.deadline().is_some_and(|at| at <= clock::now().mono_us / 1000) {
            self.join(JoinEvent::Tick);
        }
        if self.book_dirty_since_ms.is_some_and(|since| clock::now().wall_ms >= since + BOOK_SAVE_MS) {
            self.save_book();
            let candidates = self.book.candidates(persona_bootstrap::BOOK_CANDIDATES_MAX, clock::now().wall_ms);
            self.join(JoinEvent::Known { candidates });
        }
        if let Some(low) = self.room.changed(clock::now().mono_us) {
            self.run(Input::DiskLow { low });
        }
    }

    fn join(&mut self, event: JoinEvent) {
        for out in self.joiner.handle(event, clock::now().mono_us / 1000, &mut OsRandom) {
            match out {
                JoinOut::Dial(addresses) => {
                    if self.mesh.command(MeshCommand::Dial { addresses: addresses.clone() }).is_err() {
                        tracing::warn!("the mesh is too busy to dial {}", addresses.join(" "));
                    }
                }
                JoinOut::Advice(advice) => {
                    tracing::warn!("{advice}");
                    let mut said = self.shared.advice.write();
                    said.push(advice.to_string());
                    let surplus = said.len().saturating_sub(16);
                    said.drain(..surplus);
                }
            }
        }
        if self.joiner.connected() > 0 {
            self.shared.advice.write().clear();
        }
    }

    fn save_book(&mut self) {
        self.book_dirty_since_ms = None;
        if let Err(error) = sources::file::save(&self.book_path, &self.book) {
            tracing::warn!("{error}");
        }
    }

    /// How long nothing needs doing.
    fn wait(&self) -> Duration {
        let now = clock::now();
        let join = self.joiner.deadline().map(|at_ms| at_ms * 1000);
        let book = self.book_dirty_since_ms.map(|since| now.mono_us + (since + BOOK_SAVE_MS).saturating_sub(now.wall_ms) * 1000);
        let at = [Some(self.node.deadline()), join, book].into_iter().flatten().min().unwrap_or(now.mono_us);
        // A deadline in the past would spin; half a millisecond costs nobody anything.
        Duration::from_micros(at.saturating_sub(now.mono_us).clamp(500, 1_000_000))
    }

    fn say(&self, event: &serde_json::Value) {
        if self.json {
            crate::output::line(&event.to_string());
        } else if event["event"] == "up" {
            crate::output::line(&format!("persona is up as {}; control API on {}", text(&event["peer_id"]), text(&event["api"])));
        } else if event["event"] == "ready" {
            let how = if event["alone"] == true { "ready, alone: invite others with `persona invite`" } else { "ready" };
            crate::output::line(how);
        }
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn mesh_topic(topic: Gossip) -> Topic {
    match topic {
        Gossip::Announce => Topic::Announce,
        Gossip::Alerts => Topic::Alerts,
        Gossip::Messages(lane) => Topic::Messages(lane),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;

    const ANY: [&str; 2] = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];

    fn any() -> Vec<String> {
        ANY.map(str::to_owned).to_vec()
    }

    async fn start(had: &str) -> Started {
        start_mesh("ports", &[7; 32], (&any(), &[]), had, &Arc::new(HeadIndex::new())).await.expect("it listens")
    }

    /// Where it listens, once it does on both.
    async fn ports(started: &mut Started) -> String {
        let all = async {
            loop {
                let ports = ports_of(&started.mesh.view().listening);
                if ports.lines().count() == ANY.len() {
                    return ports;
                }
                started.events.recv().await.expect("the mesh is up");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("it listens on both")
    }

    /// Takes the ports itself, as soon as the sockets of a mesh that was stopped are closed.
    async fn occupy(had: &str) -> (TcpListener, UdpSocket) {
        let port = |kind: &str| had.lines().find_map(|line| line.strip_prefix(kind)?.trim().parse::<u16>().ok()).expect("a port");
        let free = async {
            loop {
                let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port("tcp")));
                let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port("udp")));
                if let (Ok(tcp), Ok(udp)) = (tcp, udp) {
                    return (tcp, udp);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), free).await.expect("they are free again")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_takes_its_ports_again_and_others_when_they_are_taken() {
        let mut first = start("").await;
        let had = ports(&mut first).await;
        assert_eq!(first.moved, None, "it had none before");
        first.mesh.stop().await;
        drop(occupy(&had).await);

        let mut again = start(&had).await;
        assert_eq!((ports(&mut again).await, again.moved.as_deref()), (had.clone(), None));
        again.mesh.stop().await;

        let _occupied = occupy(&had).await;
        let mut elsewhere = start(&had).await;
        let (now, moved) = (ports(&mut elsewhere).await, elsewhere.moved.take().expect("it says so"));
        assert!(now.lines().zip(had.lines()).all(|(now, had)| now != had), "{now} after {had}");
        assert!(moved.contains("listens on other ports than before"), "{moved}");
        elsewhere.mesh.stop().await;
    }

    async fn opened(dir: &Path, keystore: &mut Keystore) -> (Store, Option<String>) {
        open_store(dir, false, keystore, mpsc::channel(8).0).await.expect("it opens")
    }

    #[tokio::test]
    async fn what_a_damaged_store_forgot_is_written_down_before_another_store_takes_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let dir = directory.path();
        let passphrase = Passphrase::new("for tests".to_owned());
        let mut keystore = Keystore::create(dir, &passphrase, Cost::for_tests_only()).expect("it is made");
        let secrets = |name: &str, term| AgentSecrets {
            name: name.to_owned(),
            agent: OwnerKey([name.as_bytes()[0]; 32]),
            term,
            root: [1; 32],
            behaviour_seed: [2; 32],
        };
        keystore.put_agent(&secrets("ada", 3)).expect("room");
        keystore.put_agent(&secrets("bob", 1)).expect("room");
        // Bob lived here once, and is on his way back from a host of term 9.
        let coming = ImportSecrets { name: "bob".to_owned(), agent: secrets("bob", 1).agent, from_term: 9, root: [1; 32] };
        keystore.put_import(&coming).expect("room");
        let (store, damage) = opened(dir, &mut keystore).await;
        assert_eq!(damage, None);
        assert!(dir.join(STORE_LOST_FILE).exists(), "there was a keystore and no store");
        store.close();
        std::fs::remove_file(dir.join(STORE_LOST_FILE)).expect("it is there");

        let path = dir.join(STORE_FILE);
        let mut bytes = std::fs::read(&path).expect("it is there");
        bytes[4096..].fill(0x5a);
        std::fs::write(&path, &bytes).expect("it is ours");
        let (store, damage) = opened(dir, &mut keystore).await;
        let damage = damage.expect("it is damaged");
        assert!(damage.contains("0 rows are whole") && damage.contains("store.redb.damaged"), "{damage}");
        assert!(dir.join(STORE_LOST_FILE).exists());
        assert_eq!(std::fs::read(dir.join("store.redb.damaged")).expect("it is kept"), bytes);
        let from: Vec<_> = keystore.imports().iter().map(|import| (import.name.clone(), import.from_term)).collect();
        assert_eq!(from, [("ada".to_owned(), 3), ("bob".to_owned(), 9)]);
        store.close();
        let (store, damage) = opened(dir, &mut keystore).await;
        assert_eq!(damage, None);
        store.close();
    }

    #[test]
    fn only_what_was_left_to_chance_is_as_before() {
        let asked = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::1/tcp/0", "/ip4/10.0.0.1/tcp/4001"].map(str::to_owned);
        let again = listen_again(&asked, "tcp 5001\nudp 5002\n");
        let wanted = ["/ip4/0.0.0.0/tcp/5001", "/ip4/0.0.0.0/udp/5002/quic-v1", "/ip6/::1/tcp/0", "/ip4/10.0.0.1/tcp/4001"];
        assert_eq!(again, wanted);
        for nothing in ["", "tcp\nudp x\n", "tcp 70000\n", "\0"] {
            assert_eq!(listen_again(&asked, nothing), asked, "{nothing:?}");
        }
        assert_eq!(ports_of(&again[..2]), "tcp 5001\nudp 5002\n");
    }

    #[test]
    fn only_addresses_that_are_somewhere_have_a_network() {
        let somewhere = [
            ("/ip4/203.0.113.9/tcp/4001", [4, 203, 0, 113, 0, 0, 0, 0]),
            ("/ip4/203.0.113.200/udp/1/quic-v1", [4, 203, 0, 113, 0, 0, 0, 0]),
            ("/ip6/2001:db8:1:2::3/tcp/1", [6, 0x20, 0x01, 0x0d, 0xb8, 0, 1, 0]),
            ("/ip6/::ffff:203.0.113.9/tcp/1", [4, 203, 0, 113, 0, 0, 0, 0]),
        ];
        for (address, prefix) in somewhere {
            assert_eq!(network_prefix(address), Some(prefix), "{address}");
        }
        let nowhere = ["127.0.0.1", "10.1.2.3", "192.168.7.7", "172.16.0.1", "169.254.1.1", "100.64.3.4", "0.0.0.0"]
            .map(|ip| format!("/ip4/{ip}/tcp/1"));
        let nowhere_6 = ["::1", "fe80::1", "fd00::7"].map(|ip| format!("/ip6/{ip}/tcp/1"));
        for address in nowhere.iter().chain(&nowhere_6).map(String::as_str).chain(["", "/dns4/example.org/tcp/1", "/ip4/nonsense"]) {
            assert_eq!(network_prefix(address), None, "{address}");
        }
    }

    #[test]
    fn a_directory_is_locked_before_anything_is_made_in_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let held = lock(&state).expect("nobody uses it");
        let error = lock(&state).expect_err("it is used");
        assert!(matches!(error.downcast_ref::<StoreError>(), Some(StoreError::InUse { .. })), "{error:#}");
        assert!(!state.join(KEYSTORE_FILE).exists() && !state.join(STORE_FILE).exists());
        drop(held);
        lock(&state).expect("the lock goes with its process");
    }
}
