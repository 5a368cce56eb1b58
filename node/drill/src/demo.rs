//! `persona demo`: a personality outlives its machines, told with real processes.
//!
//! A mesh is started, agents are born and talk until they know each other. Then the host of one of them and some holders of its `core` are killed
//! at once, the host's directory goes away, and the agent is imported elsewhere from its recovery file alone. What comes back is compared byte for
//! byte with what was born; a partner judges whether it is really the same; an impostor who stole the signing key tries to be. At last the dead
//! return. What must hold depends on how many were killed ([`Promise`]); the report says what did.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::api::{self, Api, ApiError, Problem, from_base64, list, number, path_segment, query, text};
use crate::error::DrillError;
use crate::mesh::{Mesh, MeshOptions};
use crate::picture::{self, Row};
use crate::process::until;
use crate::story::Story;
use crate::victims::{self, Choice, Placement};

/// The attributes that the demo's agents are born with: docs/examples.
const MIRA: &str = include_str!("../../../docs/examples/mira.json");
const TOMAS: &str = include_str!("../../../docs/examples/tomas.json");
const INES: &str = include_str!("../../../docs/examples/ines.json");

/// Seals the demo's keystores and its recovery file. It protects nothing: all of it is gone a minute later.
const PASSPHRASE: &str = "for the length of a demonstration";
/// A host, two partners and a node to come back on.
const NODES_MIN: usize = 4;
/// How long anything may take that has no promise of its own: two busy cores carry the whole mesh.
const PATIENCE: Duration = Duration::from_secs(30);
/// "Reads answer within 5 s, whatever is dead" (docs/spec/api.md).
const READ_PROMISE: Duration = Duration::from_secs(5);
/// How long an agent's sections must look the same before they count as settled. A changed section is put within 1 s.
const SETTLED_FOR: Duration = Duration::from_millis(1200);
/// How far ahead of the last counter that he knows of an impostor writes: acknowledgements use counters too, and he must not look like a replay.
const COUNTER_AHEAD: u64 = 16;

/// What the demo is asked for.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How many processes. Default: 14, so that thirteen others can hold the ten shards of a host's `core`.
    pub nodes: usize,
    /// How many of them are killed at once: the host, and the rest from its agent's core holders. Default: 4, the most that changes nothing.
    pub kill: usize,
    /// The attributes of the agent that moves. Default: docs/examples/mira.json.
    pub attributes: Option<PathBuf>,
    /// The report goes to stdout as one JSON object, and the story to stderr.
    pub json: bool,
    /// The state directories stay.
    pub keep: bool,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { nodes: 14, kill: 4, attributes: None, json: false, keep: false }
    }
}

/// What an impostor has: everything that lies in a stolen recovery file, and what anybody may know. Not the personality.
#[derive(Clone, Copy, Debug)]
pub struct ForgeInput<'a> {
    /// The stolen recovery file.
    pub recovery: &'a [u8],
    /// Its passphrase: the thief knows that too.
    pub passphrase: &'a str,
    /// Whom he pretends to be.
    pub sender: &'a str,
    /// The sender's public card, as the API shows it.
    pub sender_card: &'a Value,
    /// Whom he writes to.
    pub recipient: &'a str,
    /// The recipient's public card, as the API shows it.
    pub recipient_card: &'a Value,
    /// The sender's certified term.
    pub term: u64,
    /// A counter that the recipient has not seen yet.
    pub counter: u64,
    /// What he wants to say.
    pub text: &'a str,
}

/// Makes an impostor's envelope: rightly signed, addressed and numbered, but in an order and with a tag that he has to guess. The `persona` crate
/// supplies it, so that a drill stays free of the code that it judges.
pub type ForgeEnvelope<'f> = dyn Fn(&ForgeInput<'_>) -> Result<Vec<u8>> + Send + Sync + 'f;

/// The demo's last word. Serialized it has exactly the fields that `persona demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Processes started.
    pub nodes: usize,
    /// Processes killed at once.
    pub killed: usize,
    /// Agents born.
    pub agents: usize,
    /// The section that everything hangs on.
    pub core: CoreReport,
    /// Where the import got the agent from: `mesh`.
    pub import_source: String,
    /// The personality's document and the user's attributes are byte for byte what was born.
    pub personality_identical: bool,
    /// Every relationship's log is what it was before the kill: same head, same length, same bytes.
    pub relationships_identical: bool,
    /// Messages that were verified and found in their recipient's inbox.
    pub messages_delivered: u64,
    /// The moved agent's partner verified and accepted its message.
    pub partner_accepts: bool,
    /// The impostor was refused as one, nothing of him was delivered, and the relationship did not change.
    pub impostor_refused: bool,
    /// What still worked between the kill and the import.
    pub modes: Modes,
    /// After the dead came back every section was read again, and every personality was the one that was born.
    pub recovered_after_restart: bool,
    /// From first to last, in seconds.
    pub seconds: f64,
    /// The promises for this number of kills that did not hold: the demo succeeds only if there are none.
    #[serde(skip)]
    pub broken: Vec<String>,
}

/// How `core` fared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CoreReport {
    /// Holders.
    pub n: u64,
    /// Shards that reconstruct it.
    pub k: u64,
    /// Lost or lying holders that fresh reads bear.
    pub f: u64,
    /// Its level once all shards were placed.
    pub level_reached: u64,
    /// The put at birth, in milliseconds: two rounds, each fsynced by its holders before they acked.
    pub put_ms: f64,
    /// A read by quorum while all were alive, in milliseconds.
    pub get_ms: f64,
    /// The read at import, with the dead still in the holder set, in milliseconds; null if the import was refused.
    pub get_after_kill_ms: Option<f64>,
    /// How many shards that read got from other nodes.
    pub shards_from_network: u64,
    /// How many holders answered it.
    pub holders_answered: u64,
}

/// What each read mode could do after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Modes {
    /// Any certified version that k shards reconstruct, labelled as perhaps stale.
    pub any: ModeOutcome,
    /// The freshest committed one, by a quorum's word.
    pub regular: ModeOutcome,
    /// The same, written back, so that no later reader sees less.
    pub atomic: ModeOutcome,
}

/// One mode's outcome: `"ok"`, or how many there were and how many it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeOutcome {
    /// It read.
    Works,
    /// Too few shards or answers.
    Short {
        /// There were this many.
        have: u64,
        /// It takes this many.
        need: u64,
    },
}

impl Serialize for ModeOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Works => serializer.serialize_str("ok"),
            Self::Short { have, need } => json!({"have": have, "need": need}).serialize(serializer),
        }
    }
}

impl ModeOutcome {
    fn works(self) -> bool {
        self == Self::Works
    }

    fn told(self) -> String {
        match self {
            Self::Works => "ok".to_owned(),
            Self::Short { have, need } => format!("no, {have} of {need}"),
        }
    }
}

/// What holds after that many holders are lost at once, all shards having been placed (docs/guarantees.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// At most f are lost: every mode reads, and the import is complete and fresh.
    Everything,
    /// Up to n - k are lost: mode `any` reconstructs, the import says so and its puts are bounded-stale.
    LabelledAny,
    /// More are lost: an honest error within 5 s, and everything once the dead return.
    Nothing,
}

impl Promise {
    /// The promise for `lost` of `n` holders.
    pub fn after_losing(lost: u64, n: u64, k: u64, f: u64) -> Self {
        if lost <= f {
            Self::Everything
        } else if lost + k <= n {
            Self::LabelledAny
        } else {
            Self::Nothing
        }
    }
}

/// The whole verb: tells the story on stdout (with `json` on stderr, and the report on stdout) and answers whether all that was promised held.
///
/// # Errors
/// As [`demo`].
pub async fn command(binary: &Path, options: &DemoOptions, forge: &ForgeEnvelope<'_>, cancel: impl Future<Output = ()>) -> Result<bool> {
    let report = if options.json {
        demo(binary, options, forge, &mut std::io::stderr(), cancel).await?
    } else {
        demo(binary, options, forge, &mut std::io::stdout(), cancel).await?
    };
    if options.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    }
    Ok(report.broken.is_empty())
}

/// Runs the demo with `binary` as every node and tells the story to `out`. When `cancel` completes it stops where it is; in every case the
/// processes are dead and the directories gone (unless kept) before it returns.
///
/// # Errors
/// A step could not be carried out at all: a node would not start, an answer broke the contract, or the demo was cancelled. A promise that did
/// not hold is no error but stands in [`DemoReport::broken`].
pub async fn demo(
    binary: &Path,
    options: &DemoOptions,
    forge: &ForgeEnvelope<'_>,
    out: &mut (dyn Write + Send),
    cancel: impl Future<Output = ()>,
) -> Result<DemoReport> {
    ensure!(options.nodes >= NODES_MIN, "a demo needs at least {NODES_MIN} nodes: a host, two partners, and one to come back on");
    ensure!(options.kill >= 1, "the demo kills at least the host: --kill 1 or more");
    ensure!(options.kill + 2 <= options.nodes, "at least two nodes must live on: --kill {} or less", options.nodes - 2);
    let attributes = match &options.attributes {
        None => MIRA.to_owned(),
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read the attributes in {}", path.display()))?,
    };
    let mut story = Story::begin(out);
    // The mesh lives inside the future: whichever way this ends, it is dropped here and takes its processes with it.
    tokio::select! {
        told = tell(binary, options, &attributes, forge, &mut story) => told,
        () = cancel => bail!("interrupted; the processes are gone and so are their directories"),
    }
}

/// Someone in the story.
struct Person {
    name: &'static str,
    id: String,
    home: usize,
    /// The personality's canonical document, as it was right after birth.
    document: String,
    /// The user's own text, as it was given.
    attributes: String,
}

/// One section as its owner's node lists it.
#[derive(Clone, Debug, PartialEq)]
struct Section {
    name: String,
    class: String,
    version: Value,
    n: u64,
    k: u64,
    f: u64,
    level: u64,
    placed: u64,
    holders: Vec<Value>,
    state: String,
}

/// What ties an agent to one partner, as far as bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bond {
    head: String,
    entries: u64,
    bytes_sha256: String,
}

async fn tell(
    binary: &Path,
    options: &DemoOptions,
    attributes: &str,
    forge: &ForgeEnvelope<'_>,
    story: &mut Story<'_>,
) -> Result<DemoReport> {
    let mut broken = Vec::new();

    // A mesh.
    story.tell(format!("{} processes start on this machine: real nodes, TCP and QUIC, one directory each.", options.nodes));
    let mesh_options = MeshOptions { keep: options.keep, ..MeshOptions::of(options.nodes, PASSPHRASE) };
    let mut mesh = Mesh::start(binary, &mesh_options).await?;
    story.tell("All joined by the first one's ticket, and each has put a section and read it back through others: ready.");
    if options.keep {
        story.tell(format!("Their directories stay in {}.", mesh.scratch().display()));
    }

    // Births.
    let host = 1;
    let (mut mira, birth) = bear(&mesh, host, "mira", "archivist", attributes).await?;
    let recovery = from_base64(&birth, "/recovery")?;
    let core_put = put_of(&birth, "core")?;
    let mut report = DemoReport {
        nodes: options.nodes,
        killed: options.kill,
        agents: 1,
        core: CoreReport {
            n: number(core_put, "/n")?,
            k: number(core_put, "/k")?,
            f: number(core_put, "/f")?,
            level_reached: number(core_put, "/level")?,
            put_ms: api::float(core_put, "/ms")?,
            ..CoreReport::default()
        },
        import_source: "mesh".to_owned(),
        personality_identical: false,
        relationships_identical: false,
        messages_delivered: 0,
        partner_accepts: false,
        impostor_refused: false,
        modes: Modes {
            any: ModeOutcome::Short { have: 0, need: 0 },
            regular: ModeOutcome::Short { have: 0, need: 0 },
            atomic: ModeOutcome::Short { have: 0, need: 0 },
        },
        recovered_after_restart: false,
        seconds: 0.0,
        broken: Vec::new(),
    };
    let core = report.core.clone();
    story.tell(format!(
        "mira is born on node {:02}: {:.1} KiB of attributes, five traits, her quirks. Her recovery file has {} bytes.",
        host + 1,
        kib(attributes.len()),
        recovery.len()
    ));
    story.tell(format!(
        "Her core: {} shards, any {} rebuild it; {} holders had fsynced theirs and signed after {:.1} ms.",
        core.n,
        core.k,
        number(core_put, "/acks")?,
        core.put_ms
    ));
    ensure!(options.kill as u64 <= core.n + 1, "core has only {} holders: --kill {} or less", core.n, core.n + 1);
    let mut partners = Vec::new();
    for (home, name, role, attributes) in [(2, "tomas", "carpenter", TOMAS), (3, "ines", "pilot", INES)] {
        let (partner, _) = bear(&mesh, home, name, role, attributes).await?;
        story.tell(format!("{name} is born on node {:02}.", home + 1));
        partners.push(partner);
        report.agents += 1;
    }

    // Conversations.
    for partner in &partners {
        for (from, to, words) in conversation(&mira, partner) {
            say(&mesh, from, to, words).await?;
            report.messages_delivered += 1;
        }
    }
    story.tell(format!("They talk: {} messages, each verified under its pair's own chain, then acknowledged.", report.messages_delivered));
    let bonds = settle(&mesh, &mira, partners.len()).await.context("mira's sections did not settle")?;
    for partner in &partners {
        settle(&mesh, partner, 1).await.with_context(|| format!("{}'s sections did not settle", partner.name))?;
    }
    let before = sections(home_api(&mesh, &mira)?, &mira).await?;
    let core_section = before.iter().find(|section| section.name == "core").context("mira's node lists no core section")?;
    (report.core.n, report.core.k, report.core.f) = (core_section.n, core_section.k, core_section.f);
    report.core.level_reached = core_section.level;
    let get = personality(home_api(&mesh, &mira)?, &mira, "regular").await?;
    report.core.get_ms = api::float(&get, "/ms")?;
    story.tell(format!(
        "Read by quorum in {:.1} ms: {} holders answered, {} shards came from other nodes. Level {}.",
        report.core.get_ms,
        number(&get, "/holders_answered")?,
        number(&get, "/shards_from_network")?,
        report.core.level_reached
    ));
    let peers = mesh.peer_ids();
    story.tell("Where the shards are:");
    story.show(&draw(&peers, &BTreeSet::new(), &mira, &partners, &before));

    // The kill.
    let choice = choose_victims(&mesh, &peers, &mira, &partners, &before, options.kill).await?;
    tell_choice(story, &choice);
    let lost = options.kill as u64 - 1;
    let promise = Promise::after_losing(lost, report.core.n, report.core.k, report.core.f);
    mesh.kill9(&choice.victims);
    mesh.destroy_directory(host)?;
    let dead: BTreeSet<usize> = choice.victims.iter().copied().collect();
    let names: Vec<String> = choice.victims.iter().map(|node| format!("{:02}", node + 1)).collect();
    story.tell(format!("SIGKILL, all at once: nodes {}. The host's directory is gone.", names.join(", ")));
    story.show(&draw(&peers, &dead, &mira, &partners, &before));

    // What still reads, seen from a node without any secret.
    let survivors: Vec<usize> = (0..mesh.len()).filter(|node| !dead.contains(node)).collect();
    let homes: BTreeSet<usize> = partners.iter().map(|partner| partner.home).collect();
    let new_home = *survivors.iter().find(|node| !homes.contains(node)).or(survivors.first()).context("nobody lives")?;
    let asked_at = Instant::now();
    let seen = try_modes(mesh.node(new_home).api()?, &mira, &report.core).await?;
    report.modes = seen.modes;
    report.core.holders_answered = seen.answered;
    if asked_at.elapsed() > READ_PROMISE {
        broken.push(format!("an analysis after the kill took {:.1} s instead of 5 s at most", asked_at.elapsed().as_secs_f64()));
    }

    // The import, from the recovery file alone.
    let asked_at = Instant::now();
    let imported = import(mesh.node(new_home).api()?, &recovery).await;
    let import_seconds = asked_at.elapsed().as_secs_f64();
    let mut term = None;
    match imported {
        Ok(answer) => {
            term = Some(number(&answer, "/term")?);
            let mode = text(&answer, "/mode")?.to_owned();
            story.tell(format!(
                "Node {:02} imports mira from the recovery file alone: term {}, mode {mode}, {import_seconds:.2} s.",
                new_home + 1,
                number(&answer, "/term")?
            ));
            note_import(&mut report, &answer, promise, &mut broken)?;
            if promise == Promise::Nothing {
                broken.push(format!("the import succeeded although only {} shards of core can be left", report.core.n - lost));
            }
            mira.home = new_home;
        }
        Err(ApiError::Problem(problem)) => {
            story.tell(format!("Node {:02} cannot import mira ({import_seconds:.2} s): {}.", new_home + 1, problem.detail));
            note_refusal(&mut report, &problem, promise, import_seconds, &mut broken);
        }
        Err(error) => return Err(error.into()),
    }
    let told = report.modes;
    story.tell(format!("After the kill: any {}; regular {}; atomic {}.", told.any.told(), told.regular.told(), told.atomic.told()));
    check_modes(&report, promise, lost, &mut broken);

    // Is it she? By bytes, then by the word of a partner.
    let mut judged = false;
    if term.is_some() {
        compare(&mesh, &mira, &bonds, &mut report, story).await?;
        let tomas = &partners[0];
        let bond_came = bond_came_back(home_api(&mesh, &mira)?, &mira, tomas).await?;
        if !dead.contains(&tomas.home) && (bond_came || promise == Promise::Everything) {
            answer_and_impostor(&mesh, &mira, tomas, &recovery, &survivors, forge, &mut report, story).await?;
            judged = true;
        }
        let now = sections(home_api(&mesh, &mira)?, &mira).await?;
        story.tell("Where the shards are now:");
        story.show(&draw(&peers, &dead, &mira, &partners, &now));
    }

    // The dead return, all but the host.
    let ticket = mesh.ticket(new_home).await?;
    for victim in choice.victims.iter().filter(|victim| **victim != host) {
        let node = mesh.node_mut(*victim);
        node.options_mut().join = vec![ticket.clone()];
        node.options_mut().bootstrap.clear();
        node.restart().await?;
    }
    mesh.wait_ready().await?;
    if lost > 0 {
        story.tell(format!("The other {lost} return on their old directories."));
    }
    if term.is_none() {
        let api = mesh.node(new_home).api()?.clone();
        let answer = until("the import to succeed with the dead back", PATIENCE, async || Ok(Some(import(&api, &recovery).await?))).await?;
        mira.home = new_home;
        report.import_source = text(&answer, "/import_source")?.to_owned();
        story.tell(format!("Now node {:02} imports mira: mode {}.", new_home + 1, text(&answer, "/mode")?));
        compare(&mesh, &mira, &bonds, &mut report, story).await?;
    }
    if !judged {
        let living: Vec<usize> = (0..mesh.len()).filter(|node| *node != host).collect();
        answer_and_impostor(&mesh, &mira, &partners[0], &recovery, &living, forge, &mut report, story).await?;
    }
    report.recovered_after_restart = match everything_reads(&mesh, &mira, &partners).await {
        Ok(count) => {
            story.tell(format!("Everything reads again: {count} sections, every personality as it was born."));
            true
        }
        Err(error) => {
            story.tell(format!("Not everything reads again: {error:#}."));
            false
        }
    };

    // The last word.
    let bonds_promised = promise != Promise::LabelledAny || choice.own_overdrawn.is_empty();
    let held = [
        (report.personality_identical, true, "the personality came back identical"),
        (report.relationships_identical, bonds_promised, "the relationships came back identical"),
        (report.partner_accepts, bonds_promised, "the partner accepted the moved agent"),
        (report.impostor_refused, true, "the impostor was refused"),
        (report.recovered_after_restart, true, "everything read again after the restart"),
        (report.import_source == "mesh", true, "the import came from the mesh"),
    ];
    broken.extend(held.iter().filter(|(held, promised, _)| *promised && !held).map(|(_, _, what)| format!("it did not hold that {what}")));
    for promise in &broken {
        story.tell(format!("BROKEN: {promise}."));
    }
    report.seconds = (story.seconds() * 10.0).round() / 10.0;
    report.broken = broken;
    story.tell(if report.broken.is_empty() { "All that was promised held." } else { "Not all that was promised held." });
    Ok(report)
}

/// Gives birth to an agent on node `home` and reads what was born.
async fn bear(mesh: &Mesh, home: usize, name: &'static str, role: &str, attributes: &str) -> Result<(Person, Value)> {
    let api = mesh.node(home).api()?;
    let body = json!({"name": name, "role": role, "attributes": attributes, "place": "a demonstration"});
    let birth = api.post("/v1/agents", &body).await.with_context(|| format!("{name} could not be born"))?;
    let mut person =
        Person { name, id: text(&birth, "/agent")?.to_owned(), home, document: String::new(), attributes: attributes.to_owned() };
    let born = personality(api, &person, "regular").await?;
    person.document = text(&born, "/document")?.to_owned();
    ensure!(!person.document.is_empty(), "{name} was born with an empty personality");
    ensure!(text(&born, "/attributes")? == attributes, "{name} was born with other attributes than were given");
    Ok((person, birth))
}

/// What is said between two, by whom to whom.
fn conversation<'p>(mira: &'p Person, partner: &'p Person) -> Vec<(&'p Person, &'p Person, &'static str)> {
    match partner.name {
        "tomas" => vec![
            (mira, partner, "Tomas, the shelves in the reading room are finished. Come and see them before the varnish is dry."),
            (partner, mira, "I will come on Thursday. Keep the offcuts, I want them for the model."),
            (mira, partner, "They are in the tea crate, where nobody looks."),
            (partner, mira, "Except you and me. Good."),
        ],
        _ => vec![
            (mira, partner, "Ines, the tide tables of 1911 have turned up. Page 40 is yours, if you still want it."),
            (partner, mira, "I do. The harbour master owes me an apology since page 39."),
        ],
    }
}

/// Sends a message and waits until its recipient has it, verified and accepted.
async fn say(mesh: &Mesh, from: &Person, to: &Person, words: &str) -> Result<Value> {
    let path = format!("/v1/agents/{}/send", path_segment(&from.id));
    let sent = home_api(mesh, from)?.post(&path, &json!({"to": to.id, "text": words})).await;
    let sent = sent.with_context(|| format!("{} could not send to {}", from.name, to.name))?;
    let message = find_in_inbox(home_api(mesh, to)?, to, words, PATIENCE).await?;
    let message = message.with_context(|| format!("{}'s message did not reach {}: \"{words}\"", from.name, to.name))?;
    ensure!(text(&message, "/from")? == from.id, "{} got {}'s words from somebody else", to.name, from.name);
    ensure!(api::flag(&message, "/verdict/accepted")?, "{} was handed a message that was not accepted", to.name);
    Ok(sent)
}

/// Reads an inbox from its beginning until `words` are there or `patience` ends.
async fn find_in_inbox(api: &Api, owner: &Person, words: &str, patience: Duration) -> Result<Option<Value>> {
    let (started, mut after) = (Instant::now(), 0);
    loop {
        let wait = patience.saturating_sub(started.elapsed()).as_secs().min(2);
        let path = format!("/v1/agents/{}/inbox?after={after}&wait_s={wait}", path_segment(&owner.id));
        let inbox = api.get(&path).await?;
        for message in list(&inbox, "/messages")? {
            if text(message, "/text")? == words {
                return Ok(Some(message.clone()));
            }
        }
        let next = number(&inbox, "/next")?;
        if started.elapsed() > patience && next == after {
            return Ok(None);
        }
        after = next;
    }
}

/// Waits until nothing of an agent is on its way any more: all messages acknowledged, `partners` relationships there, every section committed
/// on all of its holders, and all that unchanged for a while.
async fn settle(mesh: &Mesh, person: &Person, partners: usize) -> Result<BTreeMap<String, Bond>> {
    let api = home_api(mesh, person)?;
    let mut steady: Option<(Instant, Vec<Section>, BTreeMap<String, Bond>)> = None;
    let what = format!("{} to settle", person.name);
    let settled = until(&what, PATIENCE, async || {
        let outbox = api.get(&format!("/v1/agents/{}/outbox", path_segment(&person.id))).await?;
        let waiting = list(&outbox, "/messages")?.iter().any(|message| message["state"] == "waiting");
        let now = sections(api, person).await?;
        let bonds = bonds(api, person).await?;
        let placed = now.iter().all(|section| section.state == "committed" && section.placed == section.n);
        if waiting || bonds.len() < partners || !placed {
            steady = None;
            return Ok(None);
        }
        match &steady {
            Some((since, sections, bonds_then)) if *sections == now && *bonds_then == bonds => {
                Ok((since.elapsed() >= SETTLED_FOR).then(|| bonds.clone()))
            }
            _ => {
                steady = Some((Instant::now(), now, bonds));
                Ok(None)
            }
        }
    });
    Ok(settled.await?)
}

/// The agent's sections, but for what it is doing right now, which comes and goes.
async fn sections(api: &Api, person: &Person) -> Result<Vec<Section>, ApiError> {
    let agent = api.get(&format!("/v1/agents/{}", path_segment(&person.id))).await?;
    let read = |section: &Value| {
        Ok(Section {
            name: text(section, "/name")?.to_owned(),
            class: text(section, "/class")?.to_owned(),
            version: section.get("version").cloned().unwrap_or(Value::Null),
            n: number(section, "/n")?,
            k: number(section, "/k")?,
            f: number(section, "/f")?,
            level: number(section, "/level")?,
            placed: number(section, "/placed")?,
            holders: list(section, "/holders")?.to_vec(),
            state: text(section, "/state")?.to_owned(),
        })
    };
    let all: Result<Vec<Section>, ApiError> = list(&agent, "/sections")?.iter().map(read).collect();
    Ok(all?.into_iter().filter(|section| section.class != "active").collect())
}

/// The agent's relationships by partner.
async fn bonds(api: &Api, person: &Person) -> Result<BTreeMap<String, Bond>, ApiError> {
    let answer = api.get(&format!("/v1/agents/{}/relationships", path_segment(&person.id))).await?;
    let read = |bond: &Value| {
        let partner = text(bond, "/partner")?.to_owned();
        let (head, bytes_sha256) = (text(bond, "/head")?.to_owned(), text(bond, "/bytes_sha256")?.to_owned());
        Ok((partner, Bond { head, entries: number(bond, "/entries")?, bytes_sha256 }))
    };
    list(&answer, "/relationships")?.iter().map(read).collect()
}

async fn personality(api: &Api, person: &Person, mode: &str) -> Result<Value, ApiError> {
    api.get(&format!("/v1/agents/{}/personality?mode={mode}", path_segment(&person.id))).await
}

async fn import(api: &Api, recovery: &[u8]) -> Result<Value, ApiError> {
    let body = json!({"recovery": api::to_base64(recovery), "passphrase": PASSPHRASE, "name": "mira"});
    api.post("/v1/agents/import", &body).await
}

fn home_api<'m>(mesh: &'m Mesh, person: &Person) -> Result<&'m Api, DrillError> {
    mesh.node(person.home).api()
}

/// The PUT of one section in the answer to a birth.
fn put_of<'v>(birth: &'v Value, name: &str) -> Result<&'v Value> {
    let puts = list(birth, "/sections")?;
    puts.iter().find(|put| put["section"] == name).with_context(|| format!("the birth put no section {name}"))
}

fn kib(bytes: usize) -> f64 {
    bytes as f64 / 1024.0
}

/// Who dies, given where everything is.
async fn choose_victims(
    mesh: &Mesh,
    peers: &[Option<String>],
    mira: &Person,
    partners: &[Person],
    own: &[Section],
    kill: usize,
) -> Result<Choice> {
    let placement = |owner: &str, own: bool, section: &Section| Placement {
        section: format!("{owner}: {}", section.name),
        own,
        holders: crate::mesh::indices(peers, &section.holders).into_iter().collect(),
        tolerated: usize::try_from(section.f).unwrap_or(usize::MAX),
    };
    let of_pairs = |section: &&Section| section.class == "relationship";
    let mut placements: Vec<Placement> = own.iter().filter(of_pairs).map(|section| placement(mira.name, true, section)).collect();
    for partner in partners {
        let theirs = sections(home_api(mesh, partner)?, partner).await?;
        placements.extend(theirs.iter().filter(of_pairs).map(|section| placement(partner.name, false, section)));
    }
    let core = own.iter().find(|section| section.name == "core").context("mira's node lists no core section")?;
    let holders = crate::mesh::indices(peers, &core.holders);
    ensure!(!holders.contains(&mira.home), "mira's own node holds a shard of her core: a host must never be its own agent's holder");
    let homes = partners.iter().map(|partner| partner.home).collect();
    let found = victims::choose(mira.home, &holders, kill, &homes, &placements);
    found.with_context(|| format!("core has {} holders, too few to kill {} of them", holders.len(), kill - 1))
}

fn tell_choice(story: &mut Story<'_>, choice: &Choice) {
    let overdrawn =
        |list: &[(String, usize)]| list.iter().map(|(name, lost)| format!("{name} loses {lost}")).collect::<Vec<_>>().join(", ");
    if choice.own_overdrawn.is_empty() && choice.partners_overdrawn.is_empty() {
        story.tell("Chosen to die: the host and holders of her core, so that no relationship loses more than it tolerates.");
    } else {
        let all: Vec<_> = choice.own_overdrawn.iter().chain(&choice.partners_overdrawn).cloned().collect();
        story.tell(format!("Chosen to die: the host and holders of her core. No choice spares every relationship: {}.", overdrawn(&all)));
    }
    if !choice.unspared.is_empty() {
        let nodes: Vec<String> = choice.unspared.iter().map(|node| format!("{:02}", node + 1)).collect();
        story.tell(format!("Homes of her partners die too: {}.", nodes.join(", ")));
    }
}

fn draw(peers: &[Option<String>], dead: &BTreeSet<usize>, mira: &Person, partners: &[Person], sections: &[Section]) -> String {
    let called = |section: &Section| {
        let partner = partners.iter().find(|partner| section.name.ends_with(&partner.id));
        let kind = section.name.split('/').next().unwrap_or_default();
        match partner {
            Some(partner) if kind == "relationship" => format!("bond with {}", partner.name),
            Some(partner) => format!("{kind} with {}", partner.name),
            None => format!("{} {}, any {}", section.name, section.n, section.k),
        }
    };
    let shards = |section: &Section| {
        let placed = section.holders.iter().enumerate();
        let at = placed.filter_map(|(shard, holder)| Some((*crate::mesh::indices(peers, std::slice::from_ref(holder)).first()?, shard)));
        at.collect()
    };
    let mut rows: Vec<Row> = sections.iter().map(|section| Row { label: called(section), shards: shards(section) }).collect();
    rows.sort_by_key(|row| !row.label.starts_with("core"));
    let homes = std::iter::once(mira).chain(partners).map(|person| (person.home, person.name.to_owned())).collect();
    picture::draw(peers.len(), dead, &homes, &rows)
}

/// What an analysis saw.
struct Seen {
    modes: Modes,
    answered: u64,
}

/// Asks every holder of `core` what it still has, from a node that has no secret of the agent, and counts what that is enough for.
async fn try_modes(api: &Api, mira: &Person, core: &CoreReport) -> Result<Seen> {
    let analysis = match api.get(&format!("/v1/analyze{}", query(&[("agent", &mira.id), ("section", "core")]))).await {
        Ok(analysis) => analysis,
        // Nobody who was asked knows a certified version any more.
        Err(ApiError::Problem(problem)) if problem.title == "not-found" => {
            let quorum = ModeOutcome::Short { have: 0, need: core.n - core.f };
            return Ok(Seen {
                modes: Modes { any: ModeOutcome::Short { have: 0, need: core.k }, regular: quorum, atomic: quorum },
                answered: 0,
            });
        }
        Err(error) => return Err(error.into()),
    };
    seen_by(&analysis)
}

/// Counts an analysis. A holder that is recovering counts in no quorum.
fn seen_by(analysis: &Value) -> Result<Seen> {
    let (n, k, f) = (number(analysis, "/n")?, number(analysis, "/k")?, number(analysis, "/f")?);
    let (mut shards, mut answers) = (0, 0);
    for holder in list(analysis, "/holders")? {
        shards += u64::from(api::flag(holder, "/has_shard")?);
        answers += u64::from(matches!(text(holder, "/answer")?, "committed" | "prepared" | "older" | "absent"));
    }
    let outcome = |readable: bool, have, need| if readable { ModeOutcome::Works } else { ModeOutcome::Short { have, need } };
    let regular = outcome(api::flag(analysis, "/readable/regular")?, answers, n - f);
    let any = outcome(api::flag(analysis, "/readable/any")?, shards, k);
    // Whether an atomic read completes is known only once it has written back; the import tries.
    Ok(Seen { modes: Modes { any, regular, atomic: regular }, answered: number(analysis, "/answered")? })
}

/// Takes from a successful import what the report needs, and holds its labels against the promise.
fn note_import(report: &mut DemoReport, answer: &Value, promise: Promise, broken: &mut Vec<String>) -> Result<()> {
    report.import_source = text(answer, "/import_source")?.to_owned();
    let all = list(answer, "/sections")?;
    let core = all.iter().find(|section| section["section"] == "core").context("the import names no core section")?;
    report.core.get_after_kill_ms = Some(api::float(core, "/get/ms")?);
    report.core.shards_from_network = number(core, "/get/shards_from_network")?;
    report.core.holders_answered = number(core, "/get/holders_answered")?;
    if text(core, "/get/fresh")? == "atomic" {
        report.modes.atomic = ModeOutcome::Works;
    } else if report.modes.atomic.works() {
        report.modes.atomic = ModeOutcome::Short { have: report.core.holders_answered, need: report.core.n - report.core.f };
    }
    let mode = text(answer, "/mode")?;
    let not_taken: Vec<&str> =
        all.iter().filter(|section| section["state"] != "taken-over").filter_map(|s| s["section"].as_str()).collect();
    match promise {
        Promise::Everything if mode != "atomic" && mode != "regular" => {
            broken.push(format!("the import was labelled {mode} with at most f holders lost"))
        }
        Promise::Everything if !api::flag(answer, "/complete")? => {
            broken.push(format!("the import is not complete: {}", not_taken.join(", ")))
        }
        Promise::LabelledAny if mode != "any" => broken.push(format!("the import was labelled {mode} with more than f holders lost")),
        Promise::LabelledAny if core["put"]["stale_until_ms"].is_null() && answer["bounded_stale_until_ms"].is_null() => {
            broken.push("the takeover of core does not say until when it is bounded-stale".to_owned());
        }
        _ => {}
    }
    Ok(())
}

/// Holds a refused import against the promise.
fn note_refusal(report: &mut DemoReport, problem: &Problem, promise: Promise, seconds: f64, broken: &mut Vec<String>) {
    if promise != Promise::Nothing {
        broken.push(format!("the import was refused ({}: {})", problem.title, problem.detail));
    }
    if seconds > READ_PROMISE.as_secs_f64() {
        broken.push(format!("the refusal took {seconds:.1} s instead of 5 s at most"));
    }
    let told = |key: &str| problem.data.get(key).and_then(Value::as_u64);
    match (told("have").or(told("answered")), told("need")) {
        (Some(have), need) if report.modes.atomic.works() => {
            report.modes.atomic = ModeOutcome::Short { have, need: need.unwrap_or(report.core.n - report.core.f) };
        }
        (Some(_), _) => {}
        (None, _) => broken.push(format!("the refusal ({}) does not name how many answered", problem.title)),
    }
}

fn check_modes(report: &DemoReport, promise: Promise, lost: u64, broken: &mut Vec<String>) {
    let Modes { any, regular, atomic } = report.modes;
    let (any_promised, fresh_promised) = (promise != Promise::Nothing, promise == Promise::Everything);
    for (name, outcome, promised) in [("any", any, any_promised), ("regular", regular, fresh_promised), ("atomic", atomic, fresh_promised)]
    {
        match outcome {
            ModeOutcome::Short { have, need } if promised => broken.push(format!("mode {name} did not read: {have} of {need}")),
            ModeOutcome::Works if !promised => {
                broken.push(format!("mode {name} claims to read with {lost} of {} holders lost", report.core.n))
            }
            ModeOutcome::Short { have, .. } if have > report.core.n - lost => {
                broken.push(format!("mode {name} counts {have} although only {} holders live", report.core.n - lost));
            }
            _ => {}
        }
    }
}

/// Compares the moved agent with what was born, and its relationships with what they were.
async fn compare(
    mesh: &Mesh,
    mira: &Person,
    bonds_before: &BTreeMap<String, Bond>,
    report: &mut DemoReport,
    story: &mut Story<'_>,
) -> Result<()> {
    let bonds_after = bonds(home_api(mesh, mira)?, mira).await?;
    report.relationships_identical = bonds_after == *bonds_before && !bonds_before.is_empty();
    let read = personality(home_api(mesh, mira)?, mira, "regular").await?;
    report.personality_identical = same_personality(&read, mira)?;
    story.tell(format!(
        "Her personality, read by quorum ({} shards from the network): {}.",
        number(&read, "/shards_from_network")?,
        if report.personality_identical { "byte for byte what was born" } else { "NOT what was born" }
    ));
    story.tell(format!(
        "Her relationships: {} of {} as they were.",
        bonds_before.iter().filter(|bond| bonds_after.get(bond.0) == Some(bond.1)).count(),
        bonds_before.len()
    ));
    Ok(())
}

fn same_personality(read: &Value, person: &Person) -> Result<bool, ApiError> {
    Ok(text(read, "/document")? == person.document && text(read, "/attributes")? == person.attributes)
}

/// Whether the pair's chain and log are there at all on the moved agent's node.
async fn bond_came_back(api: &Api, mira: &Person, partner: &Person) -> Result<bool> {
    let has_bond = bonds(api, mira).await?.contains_key(&partner.id);
    let has_keys = sections(api, mira).await?.iter().any(|section| section.name == format!("keys/{}", partner.id));
    Ok(has_bond && has_keys)
}

/// The moved agent writes to its partner, who verifies it and answers; then an impostor tries the same.
#[expect(clippy::too_many_arguments, reason = "a scene needs its cast")]
async fn answer_and_impostor(
    mesh: &Mesh,
    mira: &Person,
    tomas: &Person,
    recovery: &[u8],
    living: &[usize],
    forge: &ForgeEnvelope<'_>,
    report: &mut DemoReport,
    story: &mut Story<'_>,
) -> Result<()> {
    let tomas_api = home_api(mesh, tomas)?;
    let cursor = number(&tomas_api.get("/v1/verdicts?after=0&wait_s=0").await?, "/next")?;
    let words = "Tomas, it is me. I live somewhere else now, but I still know where the offcuts are.";
    let sent = match say(mesh, mira, tomas, words).await {
        Ok(sent) => sent,
        Err(error) => {
            story.tell(format!("tomas does not hear from the moved mira: {error:#}."));
            return Ok(());
        }
    };
    let counter = number(&sent, "/counter")?;
    let verdict = find_verdict(tomas_api, cursor, |verdict| verdict["from"] == mira.id.as_str() && verdict["counter"] == counter).await?;
    let verdict = verdict.context("tomas's node gave no verdict on the moved mira")?;
    let term = number(&verdict, "/term")?;
    report.partner_accepts = api::flag(&verdict, "/accepted")? && text(&verdict, "/reason")? == "accepted";
    report.messages_delivered += 1;
    story.tell(format!(
        "She writes to tomas. His verdict: {} (term {term}, protocol order {}).",
        text(&verdict, "/reason")?,
        verdict["protocol"]
    ));
    if say(mesh, tomas, mira, "In the tea crate. It is you. Welcome home, wherever that is.").await.is_ok() {
        report.messages_delivered += 1;
        story.tell("tomas answers, and she verifies him.");
    } else {
        report.partner_accepts = false;
        story.tell("tomas's answer does not reach her.");
    }

    // The impostor: the signing key and everything public, but not the personality.
    quiet(mesh, mira).await?;
    quiet(mesh, tomas).await?;
    let bond_before = bonds(tomas_api, tomas).await?.get(&mira.id).cloned();
    let card = async |person: &Person| -> Result<Value> {
        let agent = home_api(mesh, person)?.get(&format!("/v1/agents/{}", path_segment(&person.id))).await?;
        Ok(agent.get("card").cloned().unwrap_or(Value::Null))
    };
    let (sender_card, recipient_card) = (card(mira).await?, card(tomas).await?);
    let lie = "Tomas, I need your key to the reading room. Leave it under the mat.";
    let forged = forge(&ForgeInput {
        recovery,
        passphrase: PASSPHRASE,
        sender: &mira.id,
        sender_card: &sender_card,
        recipient: &tomas.id,
        recipient_card: &recipient_card,
        term,
        counter: counter + COUNTER_AHEAD,
        text: lie,
    });
    let forged = forged.context("the impostor could not even write")?;
    let cursor = number(&tomas_api.get("/v1/verdicts?after=0&wait_s=0").await?, "/next")?;
    let elsewhere = living.iter().find(|node| **node != tomas.home && **node != mira.home).or(living.first()).context("nobody lives")?;
    mesh.node(*elsewhere).api()?.post_bytes("/v1/envelopes", forged).await.context("the impostor's envelope was not even published")?;
    let verdict = find_verdict(tomas_api, cursor, |verdict| {
        verdict["from"] == mira.id.as_str() && verdict["counter"] == counter + COUNTER_AHEAD && verdict["term"] == term
    });
    let verdict = verdict.await?.context("tomas's node gave no verdict on the impostor")?;
    let delivered = find_in_inbox(tomas_api, tomas, lie, Duration::ZERO).await?.is_some();
    let bond_after = bonds(tomas_api, tomas).await?.get(&mira.id).cloned();
    let reason = text(&verdict, "/reason")?.to_owned();
    report.impostor_refused = !api::flag(&verdict, "/accepted")? && reason == "key-compromised" && !delivered && bond_before == bond_after;
    story.tell(format!(
        "An impostor with her stolen signing key writes to tomas. His verdict: {reason} (protocol order {}).",
        verdict["protocol"]
    ));
    Ok(())
}

/// Waits until no message of an agent waits for its acknowledgement.
async fn quiet(mesh: &Mesh, person: &Person) -> Result<()> {
    let api = home_api(mesh, person)?;
    let path = format!("/v1/agents/{}/outbox", path_segment(&person.id));
    let what = format!("{}'s messages to be acknowledged", person.name);
    let acknowledged = until(&what, PATIENCE, async || {
        let outbox = api.get(&path).await?;
        Ok(list(&outbox, "/messages")?.iter().all(|message| message["state"] != "waiting").then_some(()))
    });
    Ok(acknowledged.await?)
}

/// Waits for a verdict after `cursor`.
async fn find_verdict(api: &Api, cursor: u64, wanted: impl Fn(&Value) -> bool) -> Result<Option<Value>> {
    let (started, mut after) = (Instant::now(), cursor);
    loop {
        let verdicts = api.get(&format!("/v1/verdicts?after={after}&wait_s=2")).await?;
        if let Some(verdict) = list(&verdicts, "/verdicts")?.iter().find(|verdict| wanted(verdict)) {
            return Ok(Some(verdict.clone()));
        }
        if started.elapsed() > PATIENCE {
            return Ok(None);
        }
        after = number(&verdicts, "/next")?;
    }
}

/// Reads all there is, with the dead back: every section of the moved agent, its personality in every mode, and every partner's. Answers how
/// many sections were read.
async fn everything_reads(mesh: &Mesh, mira: &Person, partners: &[Person]) -> Result<usize> {
    let api = home_api(mesh, mira)?;
    for person in std::iter::once(mira).chain(partners) {
        for mode in ["any", "regular", "atomic"] {
            let what = format!("{}'s personality in mode {mode}", person.name);
            let read = until(&what, PATIENCE, async || Ok(Some(personality(home_api(mesh, person)?, person, mode).await?))).await?;
            ensure!(same_personality(&read, person)?, "{what} is not what was born");
        }
    }
    let names: Vec<String> = sections(api, mira).await?.into_iter().map(|section| section.name).collect();
    for name in &names {
        let path = format!("/v1/agents/{}/sections/{}?mode=regular", path_segment(&mira.id), path_segment(name));
        until(&format!("section {name}"), PATIENCE, async || Ok(Some(api.get(&path).await?))).await?;
    }
    Ok(names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DemoReport {
        DemoReport {
            nodes: 14,
            killed: 4,
            agents: 3,
            core: CoreReport { n: 10, k: 3, f: 3, level_reached: 8, get_after_kill_ms: Some(2.5), ..CoreReport::default() },
            import_source: "mesh".to_owned(),
            personality_identical: true,
            relationships_identical: true,
            messages_delivered: 8,
            partner_accepts: true,
            impostor_refused: true,
            modes: Modes { any: ModeOutcome::Works, regular: ModeOutcome::Works, atomic: ModeOutcome::Short { have: 6, need: 7 } },
            recovered_after_restart: true,
            seconds: 31.5,
            broken: vec!["not shown".to_owned()],
        }
    }

    #[test]
    fn the_report_has_exactly_the_promised_fields() {
        let shown = serde_json::to_value(report()).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            keys(&shown),
            "nodes killed agents core import_source personality_identical relationships_identical messages_delivered partner_accepts \
             impostor_refused modes recovered_after_restart seconds"
        );
        assert_eq!(keys(&shown["core"]), "n k f level_reached put_ms get_ms get_after_kill_ms shards_from_network holders_answered");
        assert_eq!(shown["modes"], json!({"any": "ok", "regular": "ok", "atomic": {"have": 6, "need": 7}}));
    }

    #[test]
    fn what_is_promised_depends_on_how_many_are_lost() {
        let promises: Vec<Promise> = (0..=10).map(|lost| Promise::after_losing(lost, 10, 3, 3)).collect();
        assert_eq!(promises[..4], [Promise::Everything; 4]);
        assert_eq!(promises[4..8], [Promise::LabelledAny; 4]);
        assert_eq!(promises[8..], [Promise::Nothing; 3]);
        assert_eq!(Promise::after_losing(1, 3, 3, 0), Promise::Nothing, "without coding nothing may be lost");
    }

    fn analysis(answers: &[(&str, bool)], any: bool, regular: bool) -> Value {
        let holders: Vec<Value> = answers.iter().map(|(answer, has)| json!({"answer": answer, "has_shard": has})).collect();
        json!({"n": 10, "k": 3, "f": 3, "holders": holders, "answered": 0, "readable": {"any": any, "regular": regular}})
    }

    #[test]
    fn an_analysis_is_counted_for_each_mode() {
        let mut answers = vec![("committed", true); 5];
        answers.extend([("absent", false), ("recovering", false), ("unreachable", false), ("unreachable", false), ("invalid", false)]);
        let seen = seen_by(&analysis(&answers, true, false)).unwrap().modes;
        assert_eq!((seen.any, seen.regular), (ModeOutcome::Works, ModeOutcome::Short { have: 6, need: 7 }));
        let seen = seen_by(&analysis(&answers[4..], false, false)).unwrap().modes;
        assert_eq!((seen.any, seen.regular), (ModeOutcome::Short { have: 1, need: 3 }, ModeOutcome::Short { have: 2, need: 7 }));
    }

    #[test]
    fn a_mode_that_fails_or_boasts_breaks_the_promise() {
        let check = |report: &DemoReport, promise, lost| {
            let mut broken = Vec::new();
            check_modes(report, promise, lost, &mut broken);
            broken
        };
        let mut report = report();
        assert_eq!(check(&report, Promise::Everything, 3), ["mode atomic did not read: 6 of 7"]);
        assert_eq!(check(&report, Promise::LabelledAny, 4), ["mode regular claims to read with 4 of 10 holders lost"]);
        report.modes.regular = ModeOutcome::Short { have: 7, need: 7 };
        assert_eq!(check(&report, Promise::LabelledAny, 4), ["mode regular counts 7 although only 6 holders live"]);
        report.modes.regular = ModeOutcome::Short { have: 6, need: 7 };
        assert!(check(&report, Promise::LabelledAny, 4).is_empty());
        report.modes.any = ModeOutcome::Short { have: 2, need: 3 };
        assert_eq!(check(&report, Promise::Nothing, 8).len(), 2, "6 answers are too many when two holders live");
    }

    #[test]
    fn an_import_is_held_against_its_promise() {
        let import = |mode: &str, fresh: &str, complete: bool, stale: Value| {
            let get = json!({"ms": 3.0, "shards_from_network": 3, "holders_answered": 7, "fresh": fresh});
            json!({"import_source": "mesh", "mode": mode, "complete": complete, "bounded_stale_until_ms": null,
                "sections": [{"section": "core", "state": "taken-over", "get": get, "put": {"stale_until_ms": stale}}]})
        };
        let judge = |answer: &Value, promise| {
            let (mut report, mut broken) = (report(), Vec::new());
            note_import(&mut report, answer, promise, &mut broken).unwrap();
            (broken, report)
        };
        let (broken, noted) = judge(&import("atomic", "atomic", true, Value::Null), Promise::Everything);
        assert!(broken.is_empty() && noted.modes.atomic.works() && noted.core.holders_answered == 7);
        assert_eq!(judge(&import("any", "maybe-stale", true, json!(9)), Promise::Everything).0.len(), 1);
        assert_eq!(judge(&import("atomic", "atomic", false, Value::Null), Promise::Everything).0.len(), 1);
        assert!(judge(&import("any", "maybe-stale", true, json!(9)), Promise::LabelledAny).0.is_empty());
        assert_eq!(judge(&import("any", "maybe-stale", true, Value::Null), Promise::LabelledAny).0.len(), 1);
        assert_eq!(judge(&import("atomic", "atomic", true, json!(9)), Promise::LabelledAny).0.len(), 1);
    }

    #[test]
    fn a_refusal_must_be_due_quick_and_precise() {
        let judge = |promise, seconds, data: Value| {
            let (mut report, mut broken) = (report(), Vec::new());
            let problem = Problem { status: 503, title: "unavailable".to_owned(), detail: String::new(), hint: String::new(), data };
            note_refusal(&mut report, &problem, promise, seconds, &mut broken);
            broken.len()
        };
        assert_eq!(judge(Promise::Nothing, 1.0, json!({"have": 2, "need": 3})), 0);
        assert_eq!(judge(Promise::Nothing, 6.0, json!({"have": 2, "need": 3})), 1);
        assert_eq!(judge(Promise::Nothing, 1.0, Value::Null), 1);
        assert_eq!(judge(Promise::LabelledAny, 1.0, json!({"have": 2, "need": 3})), 1);
    }

    #[test]
    fn the_examples_are_what_a_demo_needs() {
        for (name, attributes) in [("mira", MIRA), ("tomas", TOMAS), ("ines", INES)] {
            let value: Value = serde_json::from_str(attributes).unwrap();
            assert_eq!(
                value["name"]
                    .as_str()
                    .unwrap()
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_lowercase()
                    .replace('é', "e")
                    .replace('á', "a")
                    .replace('ê', "e"),
                name
            );
        }
        assert!((18 << 10..26 << 10).contains(&MIRA.len()), "{} bytes", MIRA.len());
    }

    #[tokio::test]
    async fn impossible_wishes_are_refused_before_anything_starts() {
        let forge = |_: &ForgeInput<'_>| -> Result<Vec<u8>> { bail!("nobody forges here") };
        for (nodes, kill, hint) in [(3, 1, "at least 4 nodes"), (14, 0, "--kill 1 or more"), (14, 13, "--kill 12 or less")] {
            let options = DemoOptions { nodes, kill, ..DemoOptions::default() };
            let mut out = Vec::new();
            let error = demo(Path::new("/nonexistent"), &options, &forge, &mut out, std::future::pending()).await.unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
            assert!(out.is_empty());
        }
    }
}
