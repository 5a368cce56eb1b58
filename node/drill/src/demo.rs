//! `persona demo`: a personality outlives its machines, told with real processes.
//!
//! A mesh is started, agents are born and talk until they know each other. Then the host of one of them and some holders of its `core` are killed
//! at once, the host's directory goes away, and the agent is imported elsewhere from its recovery file alone. What comes back is compared byte for
//! byte with what was born; a partner judges whether it is really the same; an impostor who stole the signing key tries to be. At last the dead
//! return. What must hold depends on how many were killed (docs/guarantees.md); the report says what did.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use self::report::{CoreReport, DemoReport, ModeOutcome, Modes};
use self::report::{Promise, READ_PROMISE, check_modes, note_import, note_refusal, shortage};
use crate::agents::{Agent, Bond, PATIENCE, Section, import};
use crate::api::{self, Api, ApiError, list, number, path_segment, query, text};
use crate::mesh::{Mesh, MeshOptions};
use crate::picture::{self, Row};
use crate::process::until;
use crate::story::Story;
use crate::victims::Choice;

/// The attributes that the demo's agents are born with: docs/examples.
const MIRA: &str = include_str!("../../../docs/examples/mira.json");
const TOMAS: &str = include_str!("../../../docs/examples/tomas.json");
const INES: &str = include_str!("../../../docs/examples/ines.json");

/// Seals the demo's keystores and its recovery file. It protects nothing: all of it is gone a minute later.
const PASSPHRASE: &str = "for the length of a demonstration";
/// A host, two partners and a node to come back on.
const NODES_MIN: usize = 4;
/// The most holders that a core ever has (docs/spec/section.md); none of them is its host.
const CORE_HOLDERS_MAX: usize = 10;
/// The most attributes that an agent can be born with, in bytes (docs/spec/agent.md).
const ATTRIBUTES_BYTES_MAX: u64 = (1 << 20) - (16 << 10);
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

/// A wish that no demo can grant, found before anything was started.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Impossible {
    /// What is wrong with it, in one sentence.
    pub detail: String,
    /// What to wish for instead.
    pub hint: String,
}

impl Impossible {
    fn new(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { detail: detail.into(), hint: hint.into() }
    }
}

/// The demo was ended from outside, by Ctrl-C as a rule.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; the processes are gone{}", if *kept { ", and their directories stay" } else { " and so are their directories" })]
pub struct Interrupted {
    /// Whether the directories stay, as [`DemoOptions::keep`] asks for.
    pub kept: bool,
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
    let attributes = check(options)?;
    let mut story = Story::begin(out);
    // The mesh lives inside the future: whichever way this ends, it is dropped here and takes its processes with it.
    tokio::select! {
        told = tell(binary, options, &attributes, forge, &mut story) => told,
        () = cancel => Err(Interrupted { kept: options.keep }.into()),
    }
}

/// Checks what is asked for before anything starts, and answers the attributes.
fn check(options: &DemoOptions) -> Result<String, Impossible> {
    let DemoOptions { nodes, kill, .. } = *options;
    if nodes < NODES_MIN {
        let detail = format!("a demo needs at least {NODES_MIN} nodes: a host, two partners, and one to come back on");
        return Err(Impossible::new(
            detail,
            format!("give --nodes {NODES_MIN} or more; with 12 or more all ten holders of the core are other nodes"),
        ));
    }
    if kill < 1 {
        return Err(Impossible::new("the demo kills at least the host", "give --kill 1 or more"));
    }
    let most = (nodes - 2).min(CORE_HOLDERS_MAX + 1);
    if kill > most {
        let detail = format!(
            "{kill} of {nodes} nodes cannot be killed: two must live on, and only the host and its core's {CORE_HOLDERS_MAX} holders are"
        );
        return Err(Impossible::new(detail, format!("give --kill {most} or less")));
    }
    options.attributes.as_deref().map_or_else(|| Ok(MIRA.to_owned()), attributes_in)
}

/// The attributes in a user's file: JSON that an agent can be born with, judged as its node will judge it.
fn attributes_in(path: &Path) -> Result<String, Impossible> {
    const HINT: &str =
        "give a JSON file with your agent's own attributes, such as docs/examples/mira.json; without --attributes that one is taken";
    let refuse = |why: String| Impossible::new(format!("the attributes in {} {why}", path.display()), HINT);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(ATTRIBUTES_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > ATTRIBUTES_BYTES_MAX {
        return Err(refuse(format!("are too large: an agent is born with at most {ATTRIBUTES_BYTES_MAX} bytes of them")));
    }
    let text = String::from_utf8(bytes).map_err(|_| refuse("are not UTF-8 text".to_owned()))?;
    serde_json::from_str::<Value>(&text).map_err(|error| refuse(format!("are not JSON: {error}")))?;
    Ok(text)
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
    let (mut mira, birth) = Agent::born(&mesh, host, "mira", "archivist", attributes).await?;
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
            any: ModeOutcome::Short { have: 0, need: None },
            regular: ModeOutcome::Short { have: 0, need: None },
            atomic: ModeOutcome::Short { have: 0, need: None },
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
        mira.recovery.len()
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
        let (partner, _) = Agent::born(&mesh, home, name, role, attributes).await?;
        story.tell(format!("{name} is born on node {:02}.", home + 1));
        partners.push(partner);
        report.agents += 1;
    }

    // Conversations.
    for partner in &partners {
        for (from, to, words) in conversation(&mira, partner) {
            from.say(&mesh, to, words).await?;
            report.messages_delivered += 1;
        }
    }
    story.tell(format!("They talk: {} messages, each verified under its pair's own chain, then acknowledged.", report.messages_delivered));
    let bonds = mira.settle(&mesh, partners.len()).await?;
    for partner in &partners {
        partner.settle(&mesh, 1).await?;
    }
    let before = mira.sections(&mesh).await?;
    let core_section = before.iter().find(|section| section.name == "core").context("mira's node lists no core section")?;
    (report.core.n, report.core.k, report.core.f) = (core_section.n, core_section.k, core_section.f);
    report.core.level_reached = core_section.level;
    let get = mira.personality(&mesh, "regular").await?;
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
    let choice = mira.choose_victims(&mesh, &partners, options.kill).await?;
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
    try_modes(mesh.node(new_home).api()?, &mira, &mut report, &mut broken).await?;
    let modes = report.modes;
    story.tell(format!(
        "Node {:02}, without any secret, reads the sealed core: any {}; regular {}; atomic {}.",
        new_home + 1,
        modes.any.told(),
        modes.regular.told(),
        modes.atomic.told()
    ));
    check_modes(&report, promise, lost, &mut broken);

    // The import, from the recovery file alone.
    let asked_at = Instant::now();
    let imported = import(mesh.node(new_home).api()?, &mira.recovery, PASSPHRASE, &mira.name).await;
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
            tell_doubts(story, &answer, &partners)?;
            note_import(&mut report, &answer, promise, &mut broken)?;
            if promise == Promise::Nothing {
                broken.push(format!("the import succeeded although only {} shards of core can be left", report.core.n - lost));
            }
            mira.home = new_home;
        }
        Err(ApiError::Problem(problem)) => {
            story.tell(format!("Node {:02} cannot import mira ({import_seconds:.2} s): {}.", new_home + 1, problem.detail));
            note_refusal(&problem, promise, import_seconds, &mut broken);
        }
        Err(error) => return Err(error.into()),
    }
    // Is it she? By bytes, then by the word of a partner.
    let mut judged = false;
    if term.is_some() {
        compare(&mesh, &mira, &bonds, &mut report, story).await?;
        let tomas = &partners[0];
        // The impostor publishes from a third node.
        let can_talk = !dead.contains(&tomas.home) && survivors.len() > 2 && bond_came_back(&mesh, &mira, tomas).await?;
        if can_talk {
            judged = answer_and_impostor(&mesh, &mira, tomas, &survivors, forge, &mut report, story).await?;
        } else {
            story.tell("Her bond with tomas is not back yet: she does not write to him before it is.");
        }
        if promise == Promise::Everything && !judged {
            broken.push("the partner did not hear from the moved agent while the dead were dead".to_owned());
        }
        if promise == Promise::Everything && !report.relationships_identical {
            broken.push("the relationships did not come back with the import".to_owned());
        }
        let now = mira.sections(&mesh).await?;
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
        let answer = until("the import to succeed with the dead back", PATIENCE, async || {
            Ok(Some(import(&api, &mira.recovery, PASSPHRASE, &mira.name).await?))
        })
        .await?;
        mira.home = new_home;
        report.import_source = text(&answer, "/import_source")?.to_owned();
        story.tell(format!("Now node {:02} imports mira: mode {}.", new_home + 1, text(&answer, "/mode")?));
    }
    if term.is_none() || !report.relationships_identical {
        mira.whole(&mesh).await?;
        compare(&mesh, &mira, &bonds, &mut report, story).await?;
    }
    if !judged {
        let living: Vec<usize> = (0..mesh.len()).filter(|node| *node != host).collect();
        answer_and_impostor(&mesh, &mira, &partners[0], &living, forge, &mut report, story).await?;
    }
    let names: BTreeSet<String> = before.iter().map(|section| section.name.clone()).collect();
    report.recovered_after_restart = match everything_reads(&mesh, &mira, &partners, &names).await {
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
    let held = [
        (report.personality_identical, "the personality came back identical"),
        (report.relationships_identical, "the relationships came back identical"),
        (report.partner_accepts, "the partner accepted the moved agent"),
        (report.impostor_refused, "the impostor was refused"),
        (report.recovered_after_restart, "everything read again after the restart"),
        (report.import_source == "mesh", "the import came from the mesh"),
    ];
    broken.extend(held.iter().filter(|(held, _)| !held).map(|(_, what)| format!("it did not hold that {what}")));
    for promise in &broken {
        story.tell(format!("BROKEN: {promise}."));
    }
    report.seconds = (story.seconds() * 10.0).round() / 10.0;
    report.broken = broken;
    story.tell(if report.broken.is_empty() { "All that was promised held." } else { "Not all that was promised held." });
    Ok(report)
}

/// What is said between two, by whom to whom.
fn conversation<'p>(mira: &'p Agent, partner: &'p Agent) -> Vec<(&'p Agent, &'p Agent, &'static str)> {
    match partner.name.as_str() {
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

/// The PUT of one section in the answer to a birth.
fn put_of<'v>(birth: &'v Value, name: &str) -> Result<&'v Value> {
    let puts = list(birth, "/sections")?;
    puts.iter().find(|put| put["section"] == name).with_context(|| format!("the birth put no section {name}"))
}

/// Whether the pair's chain and log are there at all where the moved agent is now.
async fn bond_came_back(mesh: &Mesh, mira: &Agent, partner: &Agent) -> Result<bool> {
    let has_bond = mira.bonds(mesh).await?.contains_key(&partner.id);
    let has_keys = mira.sections(mesh).await?.iter().any(|section| section.name == format!("keys/{}", partner.id));
    Ok(has_bond && has_keys)
}

fn kib(bytes: usize) -> f64 {
    bytes as f64 / 1024.0
}

fn tell_choice(story: &mut Story<'_>, choice: &Choice) {
    let named = |list: &[(String, usize)]| list.iter().map(|(name, lost)| format!("{name} {lost}")).collect::<Vec<_>>().join(", ");
    if choice.overdrawn.is_empty() {
        story.tell("Chosen to die: the host and holders of her core, so that no relationship of hers loses more than it bears.");
    } else {
        story.tell("Chosen to die: the host and holders of her core. So many that more is lost than fresh reads bear:");
        story.show(&named(&choice.overdrawn));
    }
    if !choice.unreadable.is_empty() {
        story.tell(format!("Not to be rebuilt before the dead return: {}.", choice.unreadable.join(", ")));
    }
    if !choice.others_overdrawn.is_empty() {
        story.tell(format!(
            "What her partners keep loses more too ({}); their own nodes live and have it.",
            named(&choice.others_overdrawn)
        ));
    }
    if !choice.unspared.is_empty() {
        let nodes: Vec<String> = choice.unspared.iter().map(|node| format!("{:02}", node + 1)).collect();
        story.tell(format!("Homes of her partners die too: {}.", nodes.join(", ")));
    }
}

/// What the import itself says it could not make sure of.
fn tell_doubts(story: &mut Story<'_>, answer: &Value, partners: &[Agent]) -> Result<()> {
    let mut by_state: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for section in list(answer, "/sections")? {
        let (name, state) = (text(section, "/section")?, text(section, "/state")?);
        let partner = partners.iter().find(|partner| name.ends_with(&partner.id));
        let kind = name.split('/').next().unwrap_or_default();
        by_state.entry(state).or_default().push(partner.map_or_else(|| name.to_owned(), |partner| format!("{kind}/{}", partner.name)));
    }
    let why = [("stale", "Labelled perhaps stale"), ("missing", "Named as missing")];
    for (state, label) in why {
        if let Some(names) = by_state.get(state) {
            story.tell(format!("{label}: {}.", names.join(", ")));
        }
    }
    if by_state.get("missing").is_some_and(|names| names.iter().any(|name| name != "behavior")) {
        story.tell("She asks for what is missing again and again, and begins nothing anew in its place.");
    }
    if let Some(until_ms) = answer["bounded_stale_until_ms"].as_u64() {
        let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let hours = until_ms.saturating_sub(now_ms) as f64 / 3_600_000.0;
        story.tell(format!("Her puts are BoundedStale: for {hours:.1} h at most a reader may still meet an older version."));
    }
    Ok(())
}

fn draw(peers: &[Option<String>], dead: &BTreeSet<usize>, mira: &Agent, partners: &[Agent], sections: &[Section]) -> String {
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
    let homes = std::iter::once(mira).chain(partners).map(|person| (person.home, person.name.clone())).collect();
    picture::draw(peers.len(), dead, &homes, &rows)
}

/// Reads the sealed `core` in every mode from a node that has no secret of the agent: what works, and what is short of how much.
async fn try_modes(api: &Api, mira: &Agent, report: &mut DemoReport, broken: &mut Vec<String>) -> Result<()> {
    let mut outcomes = [ModeOutcome::Works; 3];
    for (mode, outcome) in ["any", "regular", "atomic"].into_iter().zip(&mut outcomes) {
        let asked_at = Instant::now();
        match api.get(&format!("/v1/analyze{}", query(&[("agent", &mira.id), ("section", "core"), ("mode", mode)]))).await {
            Ok(analysis) => report.core.holders_answered = number(&analysis, "/answered")?,
            Err(ApiError::Problem(problem)) => match shortage(&problem) {
                Some(short) => *outcome = short,
                None => bail!("mode {mode} was refused without numbers: {}: {}", problem.title, problem.detail),
            },
            Err(error) => return Err(error.into()),
        }
        if asked_at.elapsed() > READ_PROMISE {
            broken.push(format!("mode {mode} answered after {:.1} s instead of 5 s at most", asked_at.elapsed().as_secs_f64()));
        }
    }
    let [any, regular, atomic] = outcomes;
    report.modes = Modes { any, regular, atomic };
    if let ModeOutcome::Short { have, .. } = any {
        report.core.holders_answered = have;
    }
    Ok(())
}

/// Compares the moved agent with what was born, and its relationships with what they were.
async fn compare(
    mesh: &Mesh,
    mira: &Agent,
    bonds_before: &BTreeMap<String, Bond>,
    report: &mut DemoReport,
    story: &mut Story<'_>,
) -> Result<()> {
    let bonds_after = mira.bonds(mesh).await?;
    report.relationships_identical = bonds_after == *bonds_before && !bonds_before.is_empty();
    let read = mira.personality(mesh, "regular").await?;
    report.personality_identical = mira.is_as_born(&read)?;
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

/// The moved agent writes to its partner, who verifies it and answers; then an impostor tries the same. False if they could not talk at all.
async fn answer_and_impostor(
    mesh: &Mesh,
    mira: &Agent,
    tomas: &Agent,
    living: &[usize],
    forge: &ForgeEnvelope<'_>,
    report: &mut DemoReport,
    story: &mut Story<'_>,
) -> Result<bool> {
    let cursor = tomas.verdict_cursor(mesh).await?;
    let words = "Tomas, it is me. I live somewhere else now, but I still know where the offcuts are.";
    let sent = match mira.say(mesh, tomas, words).await {
        Ok(sent) => sent,
        Err(error) => {
            let why = error.chain().find_map(|cause| cause.downcast_ref::<ApiError>()?.problem().map(|problem| problem.detail.clone()));
            let why = why.unwrap_or_else(|| format!("{error:#}")).replace(&tomas.id, "tomas").replace(&mira.id, "mira");
            story.tell(format!("She cannot reach tomas yet: {why}."));
            return Ok(false);
        }
    };
    let counter = number(&sent, "/counter")?;
    let verdict = tomas.find_verdict(mesh, cursor, |verdict| verdict["from"] == mira.id.as_str() && verdict["counter"] == counter).await?;
    let verdict = verdict.context("tomas's node gave no verdict on the moved mira")?;
    let term = number(&verdict, "/term")?;
    report.partner_accepts = api::flag(&verdict, "/accepted")? && text(&verdict, "/reason")? == "accepted";
    report.messages_delivered += 1;
    story.tell(format!(
        "She writes to tomas. His verdict: {} (term {term}, protocol order {}).",
        text(&verdict, "/reason")?,
        verdict["protocol"]
    ));
    if tomas.say(mesh, mira, "In the tea crate. It is you. Welcome home, wherever that is.").await.is_ok() {
        report.messages_delivered += 1;
        story.tell("tomas answers, and she verifies him.");
    } else {
        report.partner_accepts = false;
        story.tell("tomas's answer does not reach her.");
    }

    // The impostor: the signing key and everything public, but not the personality.
    mira.quiet(mesh).await?;
    tomas.quiet(mesh).await?;
    let bond_before = tomas.bonds(mesh).await?.get(&mira.id).cloned();
    let elsewhere = living.iter().find(|node| **node != tomas.home && **node != mira.home).context("no third node lives")?;
    let elsewhere = mesh.node(*elsewhere).api()?;
    let (sender_card, recipient_card) = (mira.public_card(elsewhere).await?, tomas.public_card(elsewhere).await?);
    let lie = "Tomas, I need your key to the reading room. Leave it under the mat.";
    let forged = forge(&ForgeInput {
        recovery: &mira.recovery,
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
    let cursor = tomas.verdict_cursor(mesh).await?;
    elsewhere.post_bytes("/v1/envelopes", forged).await.context("the impostor's envelope was not even published")?;
    let verdict = tomas.find_verdict(mesh, cursor, |verdict| {
        verdict["from"] == mira.id.as_str() && verdict["counter"] == counter + COUNTER_AHEAD && verdict["term"] == term
    });
    let verdict = verdict.await?.context("tomas's node gave no verdict on the impostor")?;
    let delivered = tomas.find_in_inbox(mesh, lie, Duration::ZERO).await?.is_some();
    let bond_after = tomas.bonds(mesh).await?.get(&mira.id).cloned();
    let reason = text(&verdict, "/reason")?.to_owned();
    report.impostor_refused = !api::flag(&verdict, "/accepted")? && reason == "key-compromised" && !delivered && bond_before == bond_after;
    story.tell(format!(
        "An impostor with her stolen signing key writes to tomas. His verdict: {reason} (protocol order {}).",
        verdict["protocol"]
    ));
    Ok(true)
}

/// Reads all there is, with the dead back: every section that the moved agent had before the kill (`names`), its personality in every mode, and every partner's. Answers how
/// many sections were read.
async fn everything_reads(mesh: &Mesh, mira: &Agent, partners: &[Agent], names: &BTreeSet<String>) -> Result<usize> {
    let api = mira.api(mesh)?;
    for person in std::iter::once(mira).chain(partners) {
        for mode in ["any", "regular", "atomic"] {
            let what = format!("{}'s personality in mode {mode}", person.name);
            let read = until(&what, PATIENCE, async || Ok(Some(person.personality(mesh, mode).await?))).await?;
            ensure!(person.is_as_born(&read)?, "{what} is not what was born");
        }
    }
    let listed: BTreeSet<String> = mira.sections(mesh).await?.into_iter().map(|section| section.name).collect();
    let lost: Vec<&str> = names.difference(&listed).map(String::as_str).collect();
    ensure!(lost.is_empty(), "the moved agent has no {}", lost.join(", "));
    for name in names {
        let path = format!("/v1/agents/{}/sections/{}?mode=regular", path_segment(&mira.id), path_segment(name));
        until(&format!("section {name}"), PATIENCE, async || Ok(Some(api.get(&path).await?))).await?;
    }
    Ok(names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let refused = async |options: DemoOptions| {
            let mut out = Vec::new();
            let error = demo(Path::new("/nonexistent"), &options, &forge, &mut out, std::future::pending()).await.unwrap_err();
            assert!(out.is_empty(), "the story had begun");
            let Impossible { detail, hint } = error.downcast::<Impossible>().unwrap();
            assert!(!hint.is_empty());
            format!("{detail}; {hint}")
        };
        for (nodes, kill, hint) in
            [(3, 1, "at least 4 nodes"), (14, 0, "--kill 1 or more"), (14, 12, "--kill 11 or less"), (6, 5, "--kill 4 or less")]
        {
            let said = refused(DemoOptions { nodes, kill, ..DemoOptions::default() }).await;
            assert!(said.contains(hint), "{said}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("agent.json");
        let blanks = vec![b' '; usize::try_from(ATTRIBUTES_BYTES_MAX).unwrap() + 1];
        let deep = "[".repeat(1000).into_bytes();
        let cases: [(Option<&[u8]>, &str); 6] = [
            (None, "cannot be read"),
            (Some(b""), "are not JSON"),
            (Some(b"{\"name\": \"ada\""), "are not JSON"),
            (Some(&deep), "are not JSON"),
            (Some(b"{\"name\": \"\xff\"}"), "are not UTF-8"),
            (Some(&blanks), "are too large"),
        ];
        for (content, why) in cases {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let said = refused(DemoOptions { attributes: Some(path.clone()), ..DemoOptions::default() }).await;
            assert!(said.contains(why) && said.contains("agent.json"), "{said}");
        }
        std::fs::write(&path, br#"{"name": "ada"}"#).unwrap();
        assert_eq!(attributes_in(&path).unwrap(), r#"{"name": "ada"}"#);
    }

    #[tokio::test]
    async fn a_cancelled_demo_leaves_no_process_behind() {
        let scratch = tempfile::tempdir().unwrap();
        let binary = scratch.path().join("persona");
        let script = "#!/bin/sh\necho $$ > \"$0.pid\"\nexec sleep 600\n";
        let mut writer = std::process::Command::new("sh");
        writer.args(["-c", "printf %s \"$0\" > persona && chmod 755 persona", script]).current_dir(scratch.path());
        assert!(writer.status().unwrap().success());
        let pid = scratch.path().join("persona.pid");
        let started = async || {
            let written = async || Ok(std::fs::read_to_string(&pid).ok().filter(|pid| pid.ends_with('\n')));
            until("the first node to start", PATIENCE, written).await.unwrap();
        };
        let forge = |_: &ForgeInput<'_>| -> Result<Vec<u8>> { bail!("nobody forges here") };
        let error = demo(&binary, &DemoOptions::default(), &forge, &mut Vec::new(), started()).await.unwrap_err();
        assert!(error.to_string().starts_with("interrupted"), "{error}");
        let pid = std::fs::read_to_string(&pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "the node is dead and reaped");
    }
}
