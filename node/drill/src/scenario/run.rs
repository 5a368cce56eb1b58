//! Carries a scenario out: starts the mesh, asks and watches it, breaks it on time, mends it, and has it judged.
//!
//! One task owns the processes, and breaks and mends them one after the other. Those who ask and watch run beside it and share the
//! [`Field`] with it. Whatever ends the run drops the mesh, and with it every process and directory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::field::{AgentState, Document, Field, NodeState, Phase, Section};
use super::history::Micros;
use super::judge::{Repaired, clock, judge, late, seconds};
use super::nemesis::{Drawn, MENDING, Nemesis, Standing};
use super::{Disk, Fault, Scenario, Span, Ways, Whom, load, watch};
use crate::agents::{Agent, import};
use crate::api::{Api, list, number, path_segment, query, text};
use crate::demo::Interrupted;
use crate::mesh::{Mesh, MeshOptions, Others};
use crate::process::until;
use crate::relay::{Link, Relays, Weather};

/// Seals the keystores. It protects nothing: all of it is gone in the end.
const PASSPHRASE: &str = "for the length of a drill";
/// The store, in a node's directory (docs/spec/store.md).
const STORE_FILE: &str = "store.redb";
/// How often the run says where it is.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long anything may take that must succeed once everything has healed.
const HEALED_PATIENCE: Duration = Duration::from_secs(60);
/// How long an import is tried for: its quorum may be the victim of another fault for a while.
const IMPORT_PATIENCE: Duration = Duration::from_secs(90);
/// What is waited between two tries of anything that must succeed.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How many lines of a log are quoted for what must not be in it.
const LOG_LINES_QUOTED_MAX: usize = 3;
/// Classes of an agent's documents, in turn.
const CLASSES: [&str; 3] = ["document", "relationship", "core"];
/// An agent's sections that are watched beside its documents.
const OWN_SECTIONS: [&str; 3] = ["core", "card", "index"];

/// What is run.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The honest node.
    pub persona: PathBuf,
    /// The lying node, and every lie that it knows, for a scenario with liars.
    pub liar: Option<(PathBuf, Vec<String>)>,
    /// The variable that tells the lying node what to say.
    pub lie_variable: String,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The report.
    pub report: Report,
    /// Where directories, logs and the history are, if they stayed.
    pub kept: Option<PathBuf>,
}

/// docs/spec/scenario.md#the-report.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the page has them")]
pub struct Report {
    pub seconds: f64,
    pub seed: u64,
    pub nodes: usize,
    pub liars: usize,
    pub acked: u64,
    pub unknown: u64,
    pub gets: u64,
    pub gets_failed: u64,
    pub lost: u64,
    pub kills: u64,
    pub disks_lost: u64,
    pub pauses: u64,
    pub partitions: u64,
    pub slowed: u64,
    pub disks_full: u64,
    pub moves: u64,
    pub held_back: u64,
    pub lies_seen: u64,
    pub imports: usize,
    pub imports_s: f64,
    pub repairs: usize,
    pub repair_p50_s: Option<f64>,
    pub repair_p99_s: Option<f64>,
    pub repair_by_class: BTreeMap<String, RepairTimes>,
    pub replaced: usize,
    pub replaced_p50_s: Option<f64>,
    pub replaced_p99_s: Option<f64>,
    pub refills: usize,
    pub refill_p50_s: Option<f64>,
    pub refill_p99_s: Option<f64>,
    pub unrepaired: usize,
    pub connections: u64,
    pub violations: Vec<String>,
}

/// How long sections of one class that had lost a holder took to be whole again.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the page has them")]
pub struct RepairTimes {
    pub times: usize,
    pub p50_s: Option<f64>,
    pub p99_s: Option<f64>,
    pub max_s: f64,
    pub able_times: usize,
    pub able_p99_s: Option<f64>,
    pub able_max_s: f64,
}

/// Runs a scenario. `tell` is told where it is, every few seconds. With `keep` directories and history stay; they also do when something was
/// violated.
///
/// # Errors
/// The mesh cannot be started, or the drill itself fails: [`Interrupted`], as a rule. A promise that was broken is no error but in the report.
pub async fn run(
    scenario: &Scenario,
    programs: &Programs,
    keep: bool,
    cancel: impl Future<Output = ()>,
    mut tell: impl FnMut(&str),
) -> Result<Outcome> {
    let working = async {
        let mut run = Run::start(scenario, programs, keep, &mut tell).await?;
        run.storm(&mut tell).await?;
        run.heal(&mut tell).await?;
        run.close().await
    };
    tokio::select! {
        done = working => done,
        () = cancel => Err(Interrupted { kept: false }.into()),
    }
}

/// A run under way.
struct Run<'p> {
    field: Arc<Field>,
    programs: &'p Programs,
    mesh: Mesh,
    nemesis: Nemesis,
    /// What is due, the next first; the number keeps equal times in order.
    due: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    todo: BTreeMap<usize, Todo>,
    numbers: u64,
    /// Faults under way, by the number of their end.
    active: BTreeMap<u64, Active>,
    /// Those who ask; they end by themselves when the storm does.
    askers: JoinSet<()>,
    watcher: JoinSet<()>,
    imports: JoinSet<()>,
    report: Report,
    keep: bool,
    /// Nodes whose disk was full once: their logs may have errors.
    full: Vec<bool>,
    began: Instant,
}

/// Something that is due.
enum Todo {
    Begin(Fault, Vec<usize>, Option<Duration>),
    BeginScripted(usize),
    End(u64),
    Settle(Vec<usize>),
    Draw,
    Lie(usize),
    Tell,
    Finish,
}

struct Active {
    fault: Fault,
    nodes: Vec<usize>,
    /// Agents that were at home on them and live elsewhere now.
    moved: Vec<(usize, usize)>,
}

impl<'p> Run<'p> {
    /// Starts the mesh, gives birth to the agents and writes every document once.
    async fn start(scenario: &Scenario, programs: &'p Programs, keep: bool, tell: &mut impl FnMut(&str)) -> Result<Self> {
        let mut scenario = scenario.clone();
        let mut options = MeshOptions { relayed: Some(scenario.seed), keep, ..MeshOptions::of(scenario.nodes, PASSPHRASE) };
        options.node.limitable = true;
        if scenario.liars > 0 {
            let Some((binary, lies)) = programs.liar.clone() else { bail!("a scenario with liars needs the program that lies") };
            if scenario.lies.is_empty() {
                scenario.lies = lies;
            }
            let environment = vec![(programs.lie_variable.clone(), scenario.lies[0].clone())];
            options.others = Some(Others { nodes: scenario.liars, binary, environment });
        }
        tell(&format!("starting {} nodes, {} of them liars", scenario.nodes, scenario.liars));
        let mesh = Mesh::start(&programs.persona, &options).await?;
        let field = Arc::new(Field::new(scenario));
        let scenario = &field.scenario;
        for node in 0..scenario.nodes {
            let (process, honest) = (mesh.node(node), node < scenario.honest());
            let (api, peer) = (process.api()?.clone(), process.peer_id()?.to_owned());
            field.state().nodes.push(NodeState { api: Some(api), peer, life: 0, honest, broken: false, since: 0, turn: 0 });
        }
        for home in 0..scenario.agents {
            let (agent, _) = Agent::born(&mesh, home, &format!("agent-{}", home + 1), "drilled", &format!("{{\"number\":{home}}}")).await?;
            field.state().agents.push(AgentState { agent, home: Some(home), came: 0 });
        }
        let run = Self {
            nemesis: Nemesis::new(scenario.seed),
            due: BinaryHeap::new(),
            todo: BTreeMap::new(),
            numbers: 0,
            active: BTreeMap::new(),
            askers: JoinSet::new(),
            watcher: JoinSet::new(),
            imports: JoinSet::new(),
            report: Report { seed: scenario.seed, nodes: scenario.nodes, liars: scenario.liars, ..Report::default() },
            keep,
            full: vec![false; scenario.nodes],
            began: Instant::now(),
            field: Arc::clone(&field),
            programs,
            mesh,
        };
        run.first_documents().await?;
        run.find_sections().await?;
        tell(&format!("{} agents with {} documents each; {} sections", scenario.agents, scenario.documents, field.state().sections.len()));
        Ok(run)
    }

    /// Writes every document, and learns from a stranger how much longer it is when it is sealed.
    async fn first_documents(&self) -> Result<()> {
        let (agents, documents, least) = (self.field.scenario.agents, self.field.scenario.documents, self.field.scenario.load.bytes);
        for (agent, at) in (0..agents).flat_map(|agent| (0..documents).map(move |at| (agent, at))) {
            let (name, class) = (format!("doc/{}", at + 1), CLASSES[at % CLASSES.len()]);
            let path =
                self.field.state().agents[agent].agent.path(&format!("/sections/{}{}", path_segment(&name), query(&[("class", class)])));
            let bytes = load::content(&name, 0, least);
            let answer =
                self.mesh.node(agent).api()?.put_bytes(&path, bytes).await.with_context(|| format!("{name} cannot be written at all"))?;
            let key = text(&answer, "/kad_key")?.to_owned();
            let stranger = self.mesh.node(self.field.scenario.honest() - 1).api()?;
            let seen = stranger.get(&format!("/v1/analyze{}", query(&[("key", &key), ("mode", "regular")]))).await?;
            let sealed = number(&seen, "/content_len")?;
            let seal_bytes = sealed.checked_sub(least as u64).context("a sealed document is shorter than its content")?;
            self.field.state().documents.push(Document { agent, name, class, key, seal_bytes, next: 1 });
        }
        // The first version was for learning: judged is what comes after it.
        for document in 0..agents * documents {
            ensure!(load::put(&self.field, document).await == Some(true), "document {document} cannot be written in a mesh that is whole");
        }
        Ok(())
    }

    async fn find_sections(&self) -> Result<()> {
        for home in 0..self.field.scenario.agents {
            let path = self.field.state().agents[home].agent.path("");
            let agent = self.mesh.node(home).api()?.get(&path).await?;
            for section in list(&agent, "/sections")? {
                let name = text(section, "/name")?;
                if name.starts_with("doc/") || OWN_SECTIONS.contains(&name) {
                    let label = format!("agent-{}/{name}", home + 1);
                    let f = usize::try_from(number(section, "/f")?)?;
                    let (key, n, class) =
                        (text(section, "/kad_key")?.to_owned(), number(section, "/n")?, text(section, "/class")?.to_owned());
                    self.field.state().sections.push(Section { label, agent: home, class, key, n, f, holders: Vec::new() });
                }
            }
        }
        let sections = self.field.state().sections.len();
        for section in 0..sections {
            let looked =
                until("a section to be seen", HEALED_PATIENCE, async || Ok(watch::look(&self.field, section, section).await.then_some(())));
            looked.await?;
        }
        Ok(())
    }

    // ---- the storm

    async fn storm(&mut self, tell: &mut impl FnMut(&str)) -> Result<()> {
        self.began = Instant::now();
        for document in 0..self.field.state().documents.len() {
            self.askers.spawn(load::write(Arc::clone(&self.field), document));
        }
        for reader in 0..load::READERS {
            self.askers.spawn(load::read(Arc::clone(&self.field), reader));
        }
        self.watcher.spawn(watch::watch(Arc::clone(&self.field)));
        self.plan();
        while let Some(Reverse((at, _, id))) = self.due.pop() {
            tokio::time::sleep_until(at).await;
            let Some(todo) = self.todo.remove(&id) else { continue };
            match todo {
                Todo::Begin(fault, nodes, lasts) => self.begin(fault, nodes, lasts)?,
                Todo::BeginScripted(index) => self.begin_scripted(index)?,
                Todo::End(active) => self.end(active).await?,
                Todo::Settle(nodes) => self.settle(&nodes),
                Todo::Draw => self.draw(),
                Todo::Lie(index) => self.lie(index).await?,
                Todo::Tell => self.tell(tell).await?,
                Todo::Finish => return Ok(()),
            }
        }
        Ok(())
    }

    /// Everything that is known beforehand.
    fn plan(&mut self) {
        let scenario = self.field.scenario.clone();
        for (index, timed) in scenario.faults.iter().enumerate() {
            self.later(timed.at.0, Todo::BeginScripted(index));
        }
        if let Some(nemesis) = &scenario.nemesis {
            let pause = self.nemesis.pause(nemesis.every);
            self.later(pause, Todo::Draw);
        }
        if scenario.liars > 0 {
            let each = scenario.duration.0 / u32::try_from(scenario.lies.len()).unwrap_or(1);
            for index in 1..scenario.lies.len() {
                self.later(each * u32::try_from(index).unwrap_or(1), Todo::Lie(index));
            }
        }
        self.later(TELL_EVERY, Todo::Tell);
        self.later(scenario.duration.0, Todo::Finish);
    }

    fn later(&mut self, pause: Duration, todo: Todo) -> u64 {
        self.numbers += 1;
        let id = usize::try_from(self.numbers).unwrap_or(usize::MAX);
        self.todo.insert(id, todo);
        self.due.push(Reverse((Instant::now() + pause, self.numbers, id)));
        self.numbers
    }

    fn draw(&mut self) {
        let Some(plan) = self.field.scenario.nemesis.clone() else { return };
        let drawn = {
            let state = self.field.state();
            let (broken, homes, sections) = (state.broken(), state.homes(), state.placed());
            let budget = self.field.scenario.budget.broken;
            let standing = Standing { honest: self.field.scenario.honest(), broken: &broken, budget, homes: &homes, sections: &sections };
            self.nemesis.draw(&plan, &standing)
        };
        match drawn {
            Some(Drawn { fault, nodes, lasts }) => {
                self.later(Duration::ZERO, Todo::Begin(fault, nodes, Some(lasts)));
            }
            None => self.report.held_back += 1,
        }
        let pause = self.nemesis.pause(plan.every);
        self.later(pause, Todo::Draw);
    }

    fn begin_scripted(&mut self, index: usize) -> Result<()> {
        let timed = self.field.scenario.faults[index].clone();
        let nodes = match self.field.scenario.whom(&timed.fault) {
            Whom::Nodes(nodes) => nodes.iter().map(|node| node - 1).collect(),
            Whom::Some(count) => {
                let state = self.field.state();
                let (broken, homes) = (state.broken(), state.homes());
                let (honest, budget) = (self.field.scenario.honest(), self.field.scenario.budget.broken);
                self.nemesis.choose(count, &timed.fault, &Standing { honest, broken: &broken, budget, homes: &homes, sections: &[] })
            }
        };
        self.begin(timed.fault, nodes, timed.lasts.map(|Span(lasts)| lasts))
    }

    fn begin(&mut self, fault: Fault, nodes: Vec<usize>, lasts: Option<Duration>) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        self.field.note(format!("{} {}", what(&fault), names(&nodes)));
        let now = self.field.now();
        if !matches!(fault, Fault::Slow { .. }) {
            self.field.state().mark(&nodes, true, now);
        }
        let mut moved = Vec::new();
        match &fault {
            Fault::Kill { disk, .. } => {
                self.kill(&nodes, now);
                for node in &nodes {
                    self.take_disk(*node, *disk)?;
                }
                self.report.kills += nodes.len() as u64;
                if *disk == Disk::Lost {
                    self.flee(&nodes);
                }
            }
            Fault::Move { .. } => {
                self.kill(&nodes, now);
                self.report.kills += nodes.len() as u64;
                self.report.moves += 1;
                moved = self.flee(&nodes);
            }
            Fault::Pause { .. } => {
                for node in &nodes {
                    self.mesh.node(*node).pause()?;
                }
                self.report.pauses += nodes.len() as u64;
            }
            Fault::Partition { .. } => self.report.partitions += 1,
            Fault::Slow { .. } => self.report.slowed += 1,
            Fault::FullDisk { .. } => {
                for node in &nodes {
                    let process = self.mesh.node(*node);
                    let length = std::fs::metadata(process.dir().join(STORE_FILE)).map_or(0, |file| file.len());
                    process.limit_files(Some(length / 2))?;
                    self.full[*node] = true;
                    // Whoever wants something of it may be answered by nobody; but it is not known to be gone before it is.
                    let mut state = self.field.state();
                    state.nodes[*node].api = None;
                    state.wound(*node, now);
                }
                self.report.disks_full += nodes.len() as u64;
            }
        }
        let until_end = lasts.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        let id = self.later(until_end, Todo::End(0));
        self.todo.insert(usize::try_from(id).unwrap_or(usize::MAX), Todo::End(id));
        self.active.insert(id, Active { fault, nodes, moved });
        self.make_weather();
        Ok(())
    }

    /// Kills nodes; their sections are wounded.
    fn kill(&mut self, nodes: &[usize], now: Micros) {
        self.mesh.kill9(nodes);
        let mut state = self.field.state();
        for node in nodes {
            state.nodes[*node].api = None;
            state.wound(*node, now);
        }
    }

    fn take_disk(&mut self, node: usize, disk: Disk) -> Result<()> {
        let dir = self.mesh.node(node).dir().to_owned();
        match disk {
            Disk::Kept => return Ok(()),
            Disk::Emptied => std::fs::remove_file(dir.join(STORE_FILE)).with_context(|| format!("cannot empty {}", dir.display()))?,
            Disk::Lost => std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?,
        }
        self.report.disks_lost += 1;
        let mut state = self.field.state();
        state.nodes[node].life += 1;
        if disk == Disk::Lost {
            // Whoever starts there next is somebody else.
            state.nodes[node].peer = format!("nobody on node-{:02}", node + 1);
        }
        Ok(())
    }

    /// Agents of homes that are gone go elsewhere. Answers who left which node.
    fn flee(&mut self, nodes: &[usize]) -> Vec<(usize, usize)> {
        let fleeing: Vec<(usize, usize)> = {
            let mut state = self.field.state();
            let mut fleeing = Vec::new();
            for (index, agent) in state.agents.iter_mut().enumerate() {
                if let Some(home) = agent.home.filter(|home| nodes.contains(home)) {
                    agent.home = None;
                    fleeing.push((index, home));
                }
            }
            fleeing
        };
        for (agent, home) in &fleeing {
            self.imports.spawn(bring_home(Arc::clone(&self.field), *agent, home + 1));
        }
        fleeing
    }

    async fn end(&mut self, id: u64) -> Result<()> {
        let Some(Active { fault, nodes, moved }) = self.active.remove(&id) else { return Ok(()) };
        match &fault {
            Fault::Kill { .. } | Fault::Move { .. } => self.start_again(&nodes).await?,
            Fault::Pause { .. } => {
                for node in &nodes {
                    self.mesh.node(*node).resume()?;
                }
            }
            Fault::Partition { .. } | Fault::Slow { .. } => self.make_weather(),
            Fault::FullDisk { .. } => {
                // Whoever has noticed has stopped; the others never wrote, and may go on.
                for node in &nodes {
                    if self.mesh.node_mut(*node).is_running() {
                        self.mesh.node(*node).limit_files(None)?;
                        let api = self.mesh.node(*node).api()?.clone();
                        self.field.state().nodes[*node].api = Some(api);
                    } else {
                        self.mesh.kill9(&[*node]);
                        self.start_again(&[*node]).await?;
                    }
                }
            }
        }
        self.field.note(format!("no longer: {} {}", what(&fault), names(&nodes)));
        if let Fault::Kill { disk: Disk::Emptied, .. } = fault {
            let now = self.field.now();
            let mut state = self.field.state();
            for node in &nodes {
                state.is_back_empty(*node, now);
            }
        }
        for (agent, node) in moved {
            self.imports.spawn(try_old_home(Arc::clone(&self.field), agent, node));
        }
        if !matches!(fault, Fault::Slow { .. }) {
            self.later(MENDING, Todo::Settle(nodes));
        }
        Ok(())
    }

    /// Nodes are sound again, unless they were broken anew meanwhile.
    fn settle(&self, nodes: &[usize]) {
        let is_broken =
            |node: &usize| self.active.values().any(|active| active.nodes.contains(node) && !matches!(active.fault, Fault::Slow { .. }));
        let settled: Vec<usize> = nodes.iter().copied().filter(|node| !is_broken(node)).collect();
        let now = self.field.now();
        self.field.state().mark(&settled, false, now);
    }

    /// Starts nodes again, as whatever their directories make them, and tells them of somebody who is up.
    async fn start_again(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            let ticket = match self.field.sound().first() {
                Some(other) => Some(self.mesh.ticket(*other).await?),
                None => None,
            };
            self.mesh.node_mut(*node).options_mut().join = ticket.into_iter().collect();
            self.mesh.node_mut(*node).relaunch()?;
            self.mesh.wait_up(*node).await?;
            let process = self.mesh.node(*node);
            let (api, peer) = (process.api()?.clone(), process.peer_id()?.to_owned());
            let mut state = self.field.state();
            state.nodes[*node].api = Some(api);
            state.nodes[*node].peer = peer;
        }
        Ok(())
    }

    fn make_weather(&self) {
        let mut weather = Weather::new();
        let all = self.field.scenario.nodes;
        for Active { fault, nodes, .. } in self.active.values() {
            for (inside, outside) in nodes.iter().flat_map(|inside| (0..all).map(move |outside| (*inside, outside))) {
                match fault {
                    Fault::Partition { way, .. } if !nodes.contains(&outside) => {
                        if *way != Ways::Out {
                            weather.entry((outside, inside)).or_default().cut = true;
                        }
                        if *way != Ways::In {
                            weather.entry((inside, outside)).or_default().cut = true;
                        }
                    }
                    Fault::Slow { delay, jitter, loss, .. } => {
                        for way in [(inside, outside), (outside, inside)] {
                            let link: &mut Link = weather.entry(way).or_default();
                            link.delay = link.delay.max(delay.0);
                            link.jitter = link.jitter.max(jitter.0);
                            link.loss = link.loss.max(*loss);
                        }
                    }
                    _ => {}
                }
            }
        }
        if let Some(relays) = self.mesh.relays() {
            relays.set(weather);
        }
    }

    /// The liars say something else from now on: each is killed and started with another lie, one after the other.
    async fn lie(&mut self, index: usize) -> Result<()> {
        let lie = self.field.scenario.lies[index].clone();
        self.field.note(format!("the liars say {lie}"));
        for node in self.field.scenario.honest()..self.field.scenario.nodes {
            self.mesh.kill9(&[node]);
            self.mesh.node_mut(node).options_mut().environment = vec![(self.programs.lie_variable.clone(), lie.clone())];
            self.start_again(&[node]).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, tell: &mut impl FnMut(&str)) -> Result<()> {
        self.look_for_dead().await?;
        while self.imports.try_join_next().is_some() {}
        let (acked, gets, broken, wounds, violations) = {
            let state = self.field.state();
            let judged = judge(&state.events, &self.field.scenario.promise);
            (judged.acked, judged.gets, state.broken(), state.wounds.len(), judged.violations.len() + state.violations.len())
        };
        let under_way: Vec<String> =
            self.active.values().map(|active| format!("{} {}", what(&active.fault), names(&active.nodes))).collect();
        let time = clock(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX));
        tell(&format!(
            "{}  acked {acked}  read {gets}  kills {}  partitions {}  broken {}  wounds {wounds}  violations {violations}  {}",
            &time[..5],
            self.report.kills,
            self.report.partitions,
            broken.len(),
            under_way.join("; ")
        ));
        self.later(TELL_EVERY, Todo::Tell);
        Ok(())
    }

    /// A node that ended although nobody ended it is a violation, and is started again.
    async fn look_for_dead(&mut self) -> Result<()> {
        for node in 0..self.field.scenario.nodes {
            let meant = self.active.values().any(|active| active.nodes.contains(&node) && !matches!(active.fault, Fault::Slow { .. }));
            if meant || self.mesh.node_mut(node).is_running() {
                continue;
            }
            let tail = self.mesh.node(node).log_tail();
            let said = tail.lines().last().unwrap_or_default().to_owned();
            self.field.state().violations.push(format!("{} ended by itself: {said}", names(&[node])));
            let now = self.field.now();
            self.kill(&[node], now);
            self.start_again(&[node]).await?;
        }
        Ok(())
    }

    // ---- healing

    async fn heal(&mut self, tell: &mut impl FnMut(&str)) -> Result<()> {
        tell("everything heals");
        self.look_for_dead().await?;
        let (active, promise) = (std::mem::take(&mut self.active), self.field.scenario.promise);
        for (id, active) in active {
            self.active.insert(id, active);
            self.end(id).await?;
        }
        let honest = self.field.scenario.honest();
        for node in honest..self.field.scenario.nodes {
            self.mesh.kill9(&[node]);
            self.mesh.node_mut(node).set_binary(&self.programs.persona);
            self.start_again(&[node]).await?;
            self.field.state().nodes[node].honest = true;
        }
        self.make_weather();
        self.field.set_phase(Phase::Healing);
        while self.askers.join_next().await.is_some() {}
        self.mesh.wait_ready().await?;
        let everybody: Vec<usize> = (0..self.field.scenario.nodes).collect();
        let now = self.field.now();
        self.field.state().mark(&everybody, false, now);
        while self.imports.join_next().await.is_some() {}
        self.read_once_more().await;
        self.wait_for_repairs(promise.repair.longest().unwrap_or(HEALED_PATIENCE)).await;
        self.nobody_went_round_the_relays().await?;
        self.look_for_dead().await?;
        self.field.set_phase(Phase::Over);
        while self.watcher.join_next().await.is_some() {}
        Ok(())
    }

    /// Every document is put once more, and read by its home and by a stranger; every core is read.
    async fn read_once_more(&self) {
        let field = &self.field;
        let (documents, agents) = {
            let state = field.state();
            (state.documents.len(), state.agents.len())
        };
        for document in 0..documents {
            if !again(async || load::put(field, document).await == Some(true)).await {
                field.state().violations.push(format!("document {document} cannot be written after everything healed"));
            }
            let home = {
                let state = field.state();
                state.agents[state.documents[document].agent].home
            };
            let stranger = field.sound().into_iter().rev().find(|node| Some(*node) != home);
            for node in home.into_iter().chain(stranger) {
                // A last read that fails while it is repeated is not the last: what counts is what it comes to.
                let read = again(async || load::get(field, document, node, 1, false).await == Some(true)).await;
                load::get(field, document, node, if read { 1 } else { 0 }, true).await;
            }
        }
        for agent in 0..agents {
            if !again(async || load::core(field, agent).await == Some(true)).await {
                field.state().violations.push(format!("the core of agent-{} cannot be read after everything healed", agent + 1));
            }
        }
    }

    async fn wait_for_repairs(&self, patience: Duration) {
        let started = Instant::now();
        while started.elapsed() < patience && !self.field.state().wounds.is_empty() {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Every connection was dialed by somebody: if all who dialed went through relays, nobody knows another way.
    async fn nobody_went_round_the_relays(&self) -> Result<()> {
        let relays = self.mesh.relays().context("a drill without relays")?;
        for node in 0..self.field.scenario.nodes {
            let peers = self.mesh.node(node).api()?.get("/v1/peers").await?;
            for peer in list(&peers, "/peers")?.iter().filter(|peer| peer["outgoing"] == true) {
                let address = text(peer, "/address")?;
                if !through(relays, address) {
                    self.field.state().violations.push(format!("{} reached a peer round the relays, at {address}", names(&[node])));
                }
            }
        }
        Ok(())
    }

    // ---- the end

    async fn close(mut self) -> Result<Outcome> {
        let promise = self.field.scenario.promise;
        let connections = self.mesh.relays().map_or(0, |relays| relays.counts().connections);
        self.read_logs();
        let events = {
            let mut state = self.field.state();
            let judged = judge(&state.events, &promise);
            let report = &mut self.report;
            report.seconds = self.began.elapsed().as_secs_f64();
            (report.acked, report.unknown, report.gets, report.gets_failed) =
                (judged.acked, judged.unknown, judged.gets, judged.gets_failed);
            report.lost = judged.lost;
            report.imports = state.imports.len();
            report.imports_s = seconds(state.imports.iter().max().copied().unwrap_or_default());
            report.repair_by_class = by_class(&state.repaired);
            let mut repaired: Vec<Micros> = state.repaired.iter().map(|repaired| repaired.took).collect();
            (report.repair_p50_s, report.repair_p99_s) = percentiles(&mut repaired);
            (report.replaced_p50_s, report.replaced_p99_s) = percentiles(&mut state.replaced);
            (report.refill_p50_s, report.refill_p99_s) = percentiles(&mut state.refilled);
            (report.repairs, report.replaced, report.refills) = (repaired.len(), state.replaced.len(), state.refilled.len());
            report.unrepaired = state.wounds.len();
            (report.connections, report.lies_seen) = (connections, state.lies_seen);
            report.violations = judged.violations;
            report.violations.append(&mut state.violations);
            report.violations.extend(late(&promise, &state.refilled, &state.repaired));
            let wounded = state.wounds.iter().map(|wound| &state.sections[wound.section]);
            let of: Vec<&str> =
                wounded.filter(|section| promise.repair.of(&section.class).is_some()).map(|section| section.label.as_str()).collect();
            if !of.is_empty() {
                report.violations.push(format!("{} sections that had lost a holder are not whole: {}", of.len(), of.join(", ")));
            }
            std::mem::take(&mut state.events)
        };
        let mut kept = None;
        if self.keep || !self.report.violations.is_empty() {
            let path = self.mesh.scratch().join("history.jsonl");
            let lines: Vec<String> = events.iter().filter_map(|event| serde_json::to_string(event).ok()).collect();
            std::fs::write(&path, lines.join("\n")).with_context(|| format!("cannot write {}", path.display()))?;
            self.mesh.keep();
            kept = Some(self.mesh.scratch().to_owned());
        }
        Ok(Outcome { report: self.report, kept })
    }

    /// An error in a log, or a panic, is somebody's fault.
    fn read_logs(&self) {
        for node in (0..self.field.scenario.nodes).filter(|node| !self.full[*node]) {
            let log = std::fs::read(self.mesh.node(node).log()).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let bad: Vec<&str> = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked at")).collect();
            if !bad.is_empty() {
                let shown = bad[..bad.len().min(LOG_LINES_QUOTED_MAX)].join(" | ");
                self.field.state().violations.push(format!("{} has {} errors in its log: {shown}", names(&[node]), bad.len()));
            }
        }
    }
}

/// Brings an agent home to some sound node where no other lives, from its recovery file alone; begins to look at `start`.
async fn bring_home(field: Arc<Field>, agent: usize, start: usize) {
    let began = field.now();
    let started = Instant::now();
    let mut said = "there is no sound node".to_owned();
    while started.elapsed() < IMPORT_PATIENCE && field.phase() != Phase::Over {
        let (recovery, name, id) = {
            let state = field.state();
            let Agent { recovery, name, id, .. } = &state.agents[agent].agent;
            (recovery.clone(), name.clone(), id.clone())
        };
        let homes = field.state().homes();
        let sound = field.sound();
        let free = sound.iter().filter(|node| !homes.contains(node));
        let Some(node) = free.clone().find(|node| **node >= start).or(free.clone().next()).copied() else {
            field.wait(AGAIN_AFTER).await;
            continue;
        };
        let Some(asked) = field.ask(node) else { continue };
        match load::answered(import(&asked.api, &recovery, PASSPHRASE, &name)).await {
            Ok(_) => said.clear(),
            // It may have begun, and then goes on by itself: whether the agent lives there is seen below.
            Err(error) => {
                field.note(format!("{name} could not be imported at node-{:02}: {error}", node + 1));
                said = error;
            }
        }
        if said.is_empty() || lives(&asked.api, &id).await {
            let now = field.now();
            let took = now - began;
            field.note(format!("{name} lives on node-{:02}", node + 1));
            let mut state = field.state();
            state.imports.push(took);
            (state.agents[agent].home, state.agents[agent].came) = (Some(node), now);
            state.agents[agent].agent.home = node;
            return;
        }
        field.wait(AGAIN_AFTER).await;
    }
    field.state().violations.push(format!("agent-{} could not be imported for {} s: {said}", agent + 1, IMPORT_PATIENCE.as_secs()));
}

async fn lives(api: &Api, id: &str) -> bool {
    let answer = load::answered(api.get(&format!("/v1/agents/{}", path_segment(id)))).await;
    answer.is_ok_and(|answer| answer["state"] == "live")
}

/// Once its agent lives elsewhere, an old home that is back must not be able to write.
async fn try_old_home(field: Arc<Field>, agent: usize, node: usize) {
    let started = Instant::now();
    while started.elapsed() < IMPORT_PATIENCE && field.phase() != Phase::Over {
        let home = { field.state().agents[agent].home };
        if home.is_some_and(|home| home != node) && field.ask(node).is_some_and(|asked| asked.sound) {
            return load::write_at_old_home(&field, agent, node).await;
        }
        field.wait(AGAIN_AFTER).await;
    }
}

/// Tries until it succeeds, or for as long as is reasonable.
async fn again(mut attempt: impl AsyncFnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < HEALED_PATIENCE {
        if attempt().await {
            return true;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    false
}

/// Whether an address is a relay's.
fn through(relays: &Relays, address: &str) -> bool {
    let port = address.strip_prefix("/ip4/127.0.0.1/tcp/").and_then(|rest| rest.split('/').next()?.parse().ok());
    port.is_some_and(|port| relays.is_one(port))
}

fn what(fault: &Fault) -> String {
    match fault {
        Fault::Kill { disk: Disk::Kept, .. } => "killed".to_owned(),
        Fault::Kill { disk: Disk::Emptied, .. } => "killed and emptied".to_owned(),
        Fault::Kill { disk: Disk::Lost, .. } => "killed and lost".to_owned(),
        Fault::Move { .. } => "killed and left".to_owned(),
        Fault::Pause { .. } => "paused".to_owned(),
        Fault::Partition { way: Ways::Both, .. } => "cut off".to_owned(),
        Fault::Partition { way: Ways::In, .. } => "deaf".to_owned(),
        Fault::Partition { way: Ways::Out, .. } => "mute".to_owned(),
        Fault::Slow { delay, loss, .. } => format!("slow ({delay}, loss {loss})"),
        Fault::FullDisk { .. } => "full".to_owned(),
    }
}

fn names(nodes: &[usize]) -> String {
    nodes.iter().map(|node| format!("node-{:02}", node + 1)).collect::<Vec<_>>().join(" ")
}

/// Repairs of each class.
fn by_class(all: &[Repaired]) -> BTreeMap<String, RepairTimes> {
    let mut classes: BTreeMap<String, (Vec<Micros>, Vec<Micros>)> = BTreeMap::new();
    for Repaired { class, took, able, .. } in all {
        let (times, able_times) = classes.entry(class.clone()).or_default();
        times.push(*took);
        able_times.extend(able.map(|able| able.min(*took)));
    }
    let longest = |times: &[Micros]| times.last().map_or(0.0, |time| seconds(*time));
    let mut summed = BTreeMap::new();
    for (class, (mut times, mut able)) in classes {
        let ((p50_s, p99_s), (_, able_p99_s)) = (percentiles(&mut times), percentiles(&mut able));
        let (max_s, able_max_s) = (longest(&times), longest(&able));
        summed.insert(class, RepairTimes { times: times.len(), p50_s, p99_s, max_s, able_times: able.len(), able_p99_s, able_max_s });
    }
    summed
}

/// The median and the 99th percentile, in seconds.
fn percentiles(times: &mut [Micros]) -> (Option<f64>, Option<f64>) {
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 * share).ceil() as usize).saturating_sub(1)).map(|time| seconds(*time));
    (at(0.5), at(0.99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        assert_eq!(percentiles(&mut []), (None, None));
        assert_eq!(percentiles(&mut [3_000_000]), (Some(3.0), Some(3.0)));
        let mut hundred: Vec<Micros> = (1..=100).rev().map(|n| n * 1_000_000).collect();
        assert_eq!(percentiles(&mut hundred), (Some(50.0), Some(99.0)));
    }
}
