//! One seed from beginning to end: users put, get, talk and move agents while a nemesis breaks things; then all faults end, and what was
//! promised must be there.
//!
//! Two judges look on. The auditor (`persona-audit`) sees frames and disks and knows no code of ours. The oracle here sees what users see:
//! contents are numbers that grow, so what is read can be compared with what was put.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chacha20::ChaCha8Rng;
use persona_agent::{RootSecret, published_name};
use persona_audit::history::{GetOutcome, Mode as AuditMode, PutOutcome, What};
use persona_core::{Answer, Call, CallError};
use persona_fragments::{
    CertifiedHead, Class, OwnerKey, PeerKey, SectionKey, SignedManifest, certificate::HeadWire, manifest::ManifestWire, wire,
};
use persona_lies::{Liar, Story};
use persona_mesh_proto::{Mode, Table, clock_allowance_ms, holder::lost_store_mark};
use serde::Serialize;
use zeroize::Zeroizing;

mod program;

use crate::{
    cheat::Cheat,
    churn::SETS,
    keys::Notary,
    plan::{Fault, Plan, below, stream},
    world::{CALM, Disk, Kind, Net, Observer, World, auditor, fault::Failing, notary},
};

/// The marks of gets and puts that failed in calm weather and are no violation, because more holders than the shape tolerates were faulty.
pub const EXCUSES: [&str; 2] = ["get kept up by more faulty holders than f", "put kept up by more faulty holders than f"];

/// Reminder: users do something.
const LOAD: u64 = 0;
/// Reminder: the nemesis does something.
const NEMESIS: u64 = 1;
/// Reminder: whoever waits looks again.
const WAIT: u64 = 2;
/// Reminder: a cheat's puts want to go on.
const CHEAT: u64 = 3;
/// Reminders from here on undo a fault.
const UNDO: u64 = 10;

/// How long one thing may take once all is well, in microseconds.
const PATIENCE_US: u64 = 60_000_000;

/// A holder that lost its disk has its shards again after so long, in microseconds.
const REFILLED_US: u64 = 16_000_000;

/// What was put is on all its holders after so long when nothing is lost, in microseconds.
const PLACED_US: u64 = 1_500_000;

/// A process whose disk failed is started again after so long, in microseconds.
const FAILED_DISK_US: u64 = 400_000;

/// Wall clocks that drift are set anew after so long, in milliseconds: by 2 ms or so.
const DRIFT_STEP_MS: u64 = 4_000;

/// A clock that jumps beyond the allowance is off by up to so much, in milliseconds.
const JUMP_MS_MAX: u64 = 3_600_000;

/// What documents are filled with and messages say. It may be in no frame and on no disk, whatever is cut off or split (I17).
const PLAINTEXT: &[u8] = b"for nobody else";

/// In one seed of so many all that travels and is stored is searched for secrets: it costs an eighth of the time.
const SECRETS_EVERY: u64 = 8;

/// Violations that one seed reports.
const VIOLATIONS_MAX: usize = 20;

/// What one seed came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Virtual milliseconds.
    pub virtual_ms: u64,
    /// Gets begun by users.
    pub gets: u64,
    /// Gets that returned a value.
    pub values: u64,
    /// Puts begun by users.
    pub puts: u64,
    /// Puts said to have committed.
    pub committed: u64,
    /// Takeovers that succeeded.
    pub moved: u64,
    /// Frames of requests.
    pub frames: u64,
    /// What may never happen and did.
    pub violations: Vec<String>,
    /// What should happen sometimes, and how often it did.
    pub marks: BTreeMap<String, u64>,
    /// What was broken, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    /// Of all that happened, if the plan is traced.
    pub trace: Option<String>,
    /// Runs it again.
    pub replay: String,
}

/// A document of an agent, and what is known of its content.
struct Document {
    name: String,
    key: SectionKey,
    class: Class,
    ttl_ms: u64,
    begun: u64,
    committed: u64,
    /// Its last put failed because of more faulty holders than are tolerated, so that what had committed may have expired meanwhile.
    stuck: bool,
}

struct Agent {
    id: OwnerKey,
    root: [u8; 32],
    /// Machines whose keystore has it.
    homes: BTreeSet<usize>,
    documents: Vec<Document>,
    /// It was taken over, or somebody tried.
    moved: bool,
}

/// What was asked for, and what must be true of the answer.
#[derive(Clone, Debug)]
enum Asked {
    /// New content; whether it was begun in calm weather, and must commit.
    Put {
        agent: usize,
        document: usize,
        number: u64,
        must: bool,
    },
    /// A get by key: nothing is opened. Whether it must succeed.
    Fetch {
        section: SectionKey,
        owed: bool,
    },
    /// A get by the owner, when so much had committed.
    Get {
        agent: usize,
        document: usize,
        committed: u64,
        must: bool,
    },
    Send,
    Certificate,
    Import {
        agent: usize,
        host: usize,
    },
    Create {
        agent: usize,
    },
    Publish,
    Other,
}

enum Undo {
    Start(usize),
    Leave(usize),
    /// A machine is cut off, or no longer.
    Flap(usize, bool),
    Room(usize),
    Clock(usize),
    StartAll,
    Heal,
    Unblock,
    Honest(usize),
}

struct Run {
    plan: Plan,
    world: World,
    load: ChaCha8Rng,
    nemesis: ChaCha8Rng,
    agents: Vec<Agent>,
    asked: BTreeMap<u64, (usize, Asked)>,
    undo: Vec<Option<Undo>>,
    /// Machines that may lie, lose or spoil.
    faulty: Vec<usize>,
    /// Machines that join later.
    joining: Vec<usize>,
    cheat: Option<Cheat>,
    /// What was on disks that may go back to it.
    snapshots: BTreeMap<usize, Disk>,
    /// When clocks last drifted.
    drifted_us: u64,
    storm: bool,
    out: Outcome,
}

fn spread(rng: &mut ChaCha8Rng, mean_ms: u64) -> u64 {
    // From nothing to three times the mean, mostly below it.
    let (a, b) = (below(rng, 1000), below(rng, 1000));
    mean_ms * 1000 * a * b / 250_000 + 1000
}

const fn audit_mode(mode: Mode) -> AuditMode {
    match mode {
        Mode::Any => AuditMode::Any,
        Mode::Regular => AuditMode::Regular,
        Mode::Atomic => AuditMode::Atomic,
    }
}

/// Runs a plan under the auditor's eyes. `observers` see all that happens, too.
pub fn run(plan: &Plan, mut observers: Vec<Box<dyn Observer>>) -> Outcome {
    let notary = notary(plan);
    observers.push(auditor(notary.clone()));
    let mut run = Run::new(plan, notary, observers);
    run.begin();
    run.storm();
    run.calm();
    run.finish()
}

impl Run {
    fn new(plan: &Plan, notary: Arc<Notary>, observers: Vec<Box<dyn Observer>>) -> Self {
        let mut world = World::new(plan, notary, observers);
        let spoils = plan.faults.iter().any(|fault| fault.costs_a_holder());
        let lies = plan.has(Fault::Liars) || plan.has(Fault::TooMany);
        let correct = !plan.faults.iter().any(|fault| fault.breaks_rules());
        let story = Story::default();
        // Agents live on the first machines, and faults that cost a holder hit the last of those that are there from the beginning.
        let room = plan.hosts - plan.agents;
        let most = if plan.has(Fault::TooMany) { plan.faulty } else { plan.faulty.min(plan.tolerated) };
        let faulty: Vec<usize> = if spoils { (0..most.min(room)).map(|i| plan.hosts - 1 - i).collect() } else { Vec::new() };
        for (i, host) in faulty.iter().enumerate() {
            world.hosts[*host].correct = correct;
            if let Some(lie) = plan.lies.get(i).filter(|_| lies) {
                let (signer, rng) = (world.signer_of(*host), stream(plan.seed ^ (i as u64) << 32, "liar"));
                world.hosts[*host].liar = Some(Liar::new(*lie, signer, story.clone(), rng));
            }
        }
        for host in 0..world.hosts.len() {
            world.introduce(host);
        }
        Self {
            load: stream(plan.seed, "load"),
            nemesis: stream(plan.seed, "nemesis"),
            agents: Vec::new(),
            asked: BTreeMap::new(),
            undo: Vec::new(),
            cheat: plan.has(Fault::Cheat).then(|| faulty.first().map(|host| Cheat::new(*host, plan.seed))).flatten(),
            faulty,
            snapshots: BTreeMap::new(),
            drifted_us: 0,
            joining: (plan.hosts..plan.hosts + plan.joining).collect(),
            storm: false,
            out: Outcome { seed: plan.seed, replay: plan.replay(), ..Outcome::default() },
            plan: plan.clone(),
            world,
        }
    }

    // ---- the three acts --------------------------------------------------------------------------------------------------------

    /// Machines start, and agents are born.
    fn begin(&mut self) {
        for host in 0..self.plan.hosts {
            self.world.start(host);
        }
        self.wait_us(1_000_000);
        for number in 0..self.plan.agents {
            let name = format!("agent-{number}");
            let call = Call::CreateAgent { name, role: None, place: "sim".into(), attributes: b"{\"tea\":\"no milk\"}".to_vec() };
            self.ask(number, call, Asked::Create { agent: number });
            self.wait("an agent to be born", |run| run.agents.len() > number);
            let Some(agent) = self.agents.get(number).map(|agent| agent.id) else { return };
            self.ask(number, Call::Publish { agent }, Asked::Publish);
        }
        self.wait("agents to be published", |run| run.asked.is_empty());
    }

    fn storm(&mut self) {
        let plan = &self.plan;
        let has = |fault| plan.has(fault);
        let often = |fault, permille| if plan.has(fault) { permille } else { 0 };
        self.world.net = Net {
            delay_us: if has(Fault::Delay) { (300, 60_000) } else { CALM.delay_us },
            lost_permille: often(Fault::Loss, 80),
            doubled_permille: often(Fault::Double, 80),
            missed_permille: often(Fault::BadLookups, 300),
            stale_lookups: has(Fault::BadLookups),
            deaf: has(Fault::Deaf),
            sync_us: if has(Fault::SlowDisk) { 1_000_000 } else { CALM.sync_us },
        };
        self.storm = true;
        self.storm_begins();
        let end_us = self.world.now_us + self.plan.storm_ms * 1000;
        self.world.remind(1000, LOAD);
        self.world.remind(1000, NEMESIS);
        self.programs(end_us);
        self.run_to(end_us.max(self.world.now_us));
    }

    /// All faults end; liars go on lying.
    fn calm(&mut self) {
        self.storm = false;
        self.world.net = CALM;
        self.world.deaf_pairs.clear();
        self.world.blocked.clear();
        for host in 0..self.world.hosts.len() {
            self.world.hosts[host].lying_sync = false;
            self.world.hosts[host].failing = None;
            self.world.settle(host);
            if self.plan.has(Fault::Jump) && self.faulty.contains(&host) {
                self.world.skew(host, 0);
            }
            if host < self.plan.hosts || !self.joining.contains(&host) || self.world.hosts[host].has_run() {
                self.world.start(host);
            }
        }
        self.world.meet();
        self.world.tell(What::Heals);
        // Whoever fell asleep in the storm may have a while to go.
        let end_us = self.world.all_awake_us() + self.plan.calm_ms * 1000;
        self.run_to(end_us);
        self.bring_agents_home();
        self.write_everything();
        self.read_everything();
        // Whoever lost its disk learns first what it may have promised, and is given its shards then.
        let lost = self.plan.has(Fault::DiskLost) || self.plan.has(Fault::LostStores);
        self.wait_us(if lost { REFILLED_US } else { PLACED_US });
        self.go_away();
        let open: Vec<(u64, usize)> = self.world.open_calls().collect();
        for (call, host) in open {
            let what = self.asked.get(&call).map(|(_, asked)| format!("{asked:?}"));
            self.violation("I14", format!("machine {host} never answered call {call}: {what:?}"));
        }
    }

    /// An agent whose takeover was cut short is taken over again, as its user would.
    fn bring_agents_home(&mut self) {
        for number in 0..self.agents.len() {
            if !self.agents[number].moved || self.live_home(number).is_some() {
                continue;
            }
            let host = *self.agents[number].homes.iter().next().expect("born somewhere");
            self.import(host, number);
            self.wait("an agent to come home", |run| !run.asked.values().any(|(_, asked)| matches!(asked, Asked::Import { .. })));
        }
        // What came is put, listed and spread.
        self.wait_us(5_000_000);
    }

    /// The machine on which an agent lives, by its own word; the highest term if there are several.
    fn live_home(&mut self, number: usize) -> Option<usize> {
        let did = self.agents[number].id.to_did();
        let mut best = None;
        for host in self.agents[number].homes.clone() {
            let Some(call) = self.world.call(host, Call::Agents) else { continue };
            let Some(at) = self.world.replies.iter().position(|reply| reply.call == call) else { continue };
            let Some(reply) = self.world.replies.remove(at) else { continue };
            let Ok(Answer::Agents(agents)) = reply.result else { continue };
            if let Some(report) = agents.iter().find(|report| report.agent == did && report.state == "live") {
                best = best.max(Some((report.term, host)));
            }
        }
        best.map(|(_, host)| host)
    }

    /// Every document can be put again.
    fn write_everything(&mut self) {
        for number in 0..self.agents.len() {
            let Some(home) = self.live_home(number) else { continue };
            for document in 0..self.agents[number].documents.len() {
                self.put(home, number, document, 100);
            }
        }
        self.wait("everything to be put once more", |run| run.asked.is_empty());
    }

    fn put(&mut self, home: usize, number: usize, document: usize, size: usize) -> Option<u64> {
        let must = !self.storm && !self.agents[number].moved && !self.beyond();
        let agent = &mut self.agents[number];
        let known = &mut agent.documents[document];
        known.begun += 1;
        let number_put = known.begun;
        let mut content = number_put.to_le_bytes().to_vec();
        content.extend(PLAINTEXT.iter().cycle().take(size.saturating_sub(content.len())));
        let call = Call::PutSection {
            agent: agent.id,
            name: known.name.clone(),
            class: known.class,
            ttl_ms: Some(known.ttl_ms),
            renew_for_ms: None,
            level: None,
            require_level: None,
            content,
        };
        self.ask(home, call, Asked::Put { agent: number, document, number: number_put, must })
    }

    /// Every document that had committed is read by its owner, and by a stranger.
    fn read_everything(&mut self) {
        for number in 0..self.agents.len() {
            let Some(home) = self.live_home(number) else {
                // A takeover may fail for good: everything about the agent had expired.
                if !self.agents[number].moved {
                    self.violation("I14", format!("agent {number} lives nowhere, and nobody took it over"));
                }
                continue;
            };
            for document in 0..self.agents[number].documents.len() {
                let Document { name, key, committed, stuck, .. } = &self.agents[number].documents[document];
                let (name, key, committed, stuck) = (name.clone(), *key, *committed, *stuck);
                if committed == 0 {
                    continue;
                }
                let must = !self.agents[number].moved && !stuck && !self.beyond();
                let call = Call::GetSection { agent: self.agents[number].id, name, mode: Mode::Regular };
                self.ask(
                    home,
                    call,
                    Asked::Get {
                        agent: number,
                        document,
                        committed: if self.agents[number].moved || self.beyond() { 0 } else { committed },
                        must,
                    },
                );
                let stranger = (home + 1) % self.plan.hosts;
                self.fetch(stranger, key, Mode::Atomic);
            }
        }
        self.wait("everything to be read", |run| run.asked.is_empty());
    }

    /// A host dies for good, and its agent's core-like document lives on: its holders renew it. Only where lifetimes are short enough that this
    /// takes no time to speak of, and long enough that a silent holder is found out within half of one.
    fn go_away(&mut self) {
        let Some(home) = (self.plan.is_left() && !self.agents.is_empty()).then(|| self.live_home(0)).flatten() else { return };
        let Agent { documents, moved, .. } = &self.agents[0];
        let Document { key, ttl_ms, committed, stuck, .. } = &documents[0];
        let (key, ttl_ms, known) = (*key, *ttl_ms, *committed > 0 && !stuck && !moved);
        self.world.crash(home);
        for _ in 0..2 {
            self.wait_us(ttl_ms * 1100);
            let stranger = (home + 1) % self.plan.hosts;
            if known {
                self.fetch(stranger, key, Mode::Regular);
                self.wait("what its holders kept to be read", |run| run.asked.is_empty());
                *self.out.marks.entry("read without its owner".into()).or_default() += 1;
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.world.tell(What::Ends);
        let broken = std::mem::take(&mut self.world.broken);
        for what in broken {
            self.violation("I15", what);
        }
        self.out.virtual_ms = self.world.now_us / 1000;
        self.out.trace = self.world.trace_hash();
        self.out.frames = self.world.frames();
        let mut out = self.out;
        for observer in self.world.into_observers() {
            let (found, marks) = observer.finish();
            out.violations.extend(found);
            out.violations.truncate(VIOLATIONS_MAX);
            for (mark, count) in marks {
                *out.marks.entry(mark).or_default() += count;
            }
        }
        out
    }

    // ---- time ------------------------------------------------------------------------------------------------------------------

    fn run_to(&mut self, until_us: u64) {
        while self.world.run_until(until_us) {
            self.react();
        }
    }

    fn wait_us(&mut self, micros: u64) {
        self.run_to(self.world.now_us + micros);
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let late_us = self.world.now_us + PATIENCE_US;
        while !done(self) {
            if self.world.now_us >= late_us {
                return self.violation("I14", format!("waited in vain for {what}"));
            }
            self.world.remind(50_000, WAIT);
            self.world.run_until(late_us);
            self.react();
        }
    }

    fn react(&mut self) {
        for host in std::mem::take(&mut self.world.failed) {
            self.crash(host, FAILED_DISK_US);
        }
        while let Some((number, result)) = self.world.cheat_replies.pop_front() {
            if let Some(cheat) = &mut self.cheat {
                cheat.replied(&mut self.world, number, result);
            }
        }
        for (id, host) in std::mem::take(&mut self.world.came) {
            if let Some(agent) = self.agents.iter_mut().find(|agent| agent.id == id) {
                agent.homes.insert(host);
            }
        }
        while let Some(reply) = self.world.replies.pop_front() {
            self.answered(reply.call, reply.result);
        }
        while let Some(number) = self.world.reminders.pop_front() {
            match number {
                LOAD if self.storm => {
                    self.use_it();
                    let after = spread(&mut self.load, self.plan.load_gap_ms);
                    self.world.remind(after, LOAD);
                }
                NEMESIS if self.storm => {
                    self.break_it();
                    let after = spread(&mut self.nemesis, self.plan.fault_gap_ms);
                    self.world.remind(after, NEMESIS);
                }
                CHEAT => {
                    if let Some(cheat) = &mut self.cheat {
                        cheat.tick(&mut self.world);
                    }
                }
                UNDO.. => {
                    if let Some(undo) = self.undo.get_mut((number - UNDO) as usize).and_then(Option::take) {
                        self.undo(undo);
                    }
                }
                _ => {}
            }
        }
    }

    // ---- users -----------------------------------------------------------------------------------------------------------------

    fn ask(&mut self, host: usize, call: Call, asked: Asked) -> Option<u64> {
        let id = self.world.call(host, call)?;
        match &asked {
            Asked::Put { agent, document, .. } => {
                let key = self.agents[*agent].documents[*document].key.0;
                self.world.tell(What::PutBegins { op: id, machine: host as u32, key });
                self.out.puts += 1;
            }
            Asked::Get { .. } => self.out.gets += 1,
            _ => {}
        }
        self.asked.insert(id, (host, asked));
        Some(id)
    }

    fn fetch(&mut self, host: usize, key: SectionKey, mode: Mode) -> Option<u64> {
        let id = self.world.call(host, Call::Fetch { key, mode })?;
        self.world.tell(What::GetBegins { op: id, machine: host as u32, key: key.0, mode: audit_mode(mode) });
        self.out.gets += 1;
        let owed = !self.storm && !self.beyond() && self.is_owed(&key);
        self.asked.insert(id, (host, Asked::Fetch { section: key, owed }));
        Some(id)
    }

    fn certificate(&mut self, host: usize, key: SectionKey) -> Option<u64> {
        let id = self.world.call(host, Call::Certificate { key })?;
        self.world.tell(What::GetBegins { op: id, machine: host as u32, key: key.0, mode: AuditMode::Regular });
        self.out.gets += 1;
        self.asked.insert(id, (host, Asked::Certificate));
        Some(id)
    }

    /// The machine on which every second get is made.
    fn reader(&self) -> usize {
        self.plan.agents % self.plan.hosts
    }

    fn import(&mut self, host: usize, number: usize) {
        let root = self.agents[number].root;
        self.agents[number].moved = true;
        self.ask(host, Call::Import { root: Zeroizing::new(root), name: None }, Asked::Import { agent: number, host });
    }

    fn use_it(&mut self) {
        if self.agents.is_empty() {
            return;
        }
        let number = below(&mut self.load, self.agents.len() as u64) as usize;
        let homes: Vec<usize> = self.agents[number].homes.iter().copied().collect();
        let home = homes[below(&mut self.load, homes.len() as u64) as usize];
        let document = below(&mut self.load, self.agents[number].documents.len() as u64) as usize;
        let dice = below(&mut self.load, 100);
        let somebody = below(&mut self.load, self.plan.hosts as u64) as usize;
        let size = if below(&mut self.load, 10) == 0 { 6_000 } else { 8 + below(&mut self.load, 300) as usize };
        match dice {
            0..38 => {
                self.put(home, number, document, size);
            }
            38..74 => {
                let mode =
                    [Mode::Any, Mode::Any, Mode::Regular, Mode::Regular, Mode::Atomic, Mode::Atomic][below(&mut self.load, 6) as usize];
                let key = self.agents[number].documents[document].key;
                // Every second one at the same place: what one reader saw binds that reader.
                let reader = if dice.is_multiple_of(2) { self.reader() } else { somebody };
                self.fetch(reader, key, mode);
            }
            74..80 => {
                let known = &self.agents[number].documents[document];
                let committed = if self.agents[number].moved || self.beyond() { 0 } else { known.committed };
                let call = Call::GetSection { agent: self.agents[number].id, name: known.name.clone(), mode: Mode::Regular };
                self.ask(home, call, Asked::Get { agent: number, document, committed, must: false });
            }
            80..86 if self.agents.len() > 1 => {
                let to = self.agents[(number + 1) % self.agents.len()].id;
                let from = self.agents[number].id;
                self.ask(home, Call::Send { from, to, text: format!("{} {dice}", String::from_utf8_lossy(PLAINTEXT)) }, Asked::Send);
            }
            86..89 if self.plan.has(Fault::Takeover) && !self.faulty.contains(&somebody) => {
                self.import(somebody, number);
                if below(&mut self.load, 3) == 0 {
                    let other = (somebody + 1) % self.plan.hosts;
                    if !self.faulty.contains(&other) {
                        self.import(other, number);
                    }
                }
            }
            93..96 => {
                let key = self.agents[number].documents[document].key;
                self.certificate(somebody, key);
            }
            89..93 => {
                let hosts: Vec<PeerKey> = self.world.hosts.iter().take(self.plan.hosts).map(|host| host.peer).collect();
                let victim = self.agents[number].documents[document].key;
                if let Some(cheat) = &mut self.cheat {
                    cheat.cheat(&mut self.world, &hosts, &victim, self.plan.level);
                    self.world.remind(1_000_000, CHEAT);
                }
            }
            96.. => {
                if let Some(key) = self.cheat.as_ref().and_then(|cheat| cheat.sections().last().copied()) {
                    self.fetch(somebody, key, Mode::Regular);
                }
                let key = self.agents[number].documents[document].key;
                self.ask(somebody, Call::Analyze { key, mode: None }, Asked::Other);
            }
            _ => {}
        }
    }

    /// Whether a put of a section, or of the index or the card that stand before it, that is not over, or an earlier version of these that still takes
    /// up room at correct holders, has more holders that lie, or that lost their stores not long ago and may not sign for it, than its shape
    /// tolerates: a mesh too small for its level may tolerate none, and one of them is enough to let nothing commit.
    fn faulty_keep(&self, host: usize, agent: &Agent, section: &SectionKey) -> bool {
        let root = RootSecret::from_bytes(agent.root);
        let key = |name: &str| SectionKey::derive(&agent.id, &published_name(&root, name));
        let matters = [*section, key("index"), key("card")];
        let wall_ms = self.world.clock(host).wall_ms;
        let intents = self.world.hosts[host].disk.iter().filter(|((table, _), _)| *table == Table::Intent);
        let correct = self.world.hosts.iter().filter(|host| host.liar.is_none()).flat_map(|host| host.disk.iter());
        let held = correct.filter(|((table, _), _)| *table == Table::Prepared).filter_map(|(_, row)| {
            let held: (u32, ManifestWire, u8, u64) = wire::decode(row).ok()?; // the first kind of docs/spec/quorum.md, table Prepared
            (held.0 == 0).then_some(held.1)
        });
        let manifests = intents.filter_map(|(_, row)| wire::decode(row).ok()).chain(held);
        let mut manifests = manifests.filter_map(|manifest| SignedManifest::trusted(manifest).ok());
        manifests.any(|manifest| {
            let lives = manifest.expires_at_ms() + clock_allowance_ms(manifest.class) > wall_ms;
            lives && matters.contains(&manifest.key) && self.are_too_faulty(&manifest.holders, manifest.shape.f())
        })
    }

    /// Whether the newest version of a section that correct holders know to be certified has more holders that lie, or that lost their stores and have not
    /// recovered yet, than its shape tolerates: they count together, and a get need not end well.
    fn faulty_hold(&self, section: &SectionKey) -> bool {
        let correct = self.world.hosts.iter().filter(|host| host.liar.is_none());
        let heads = correct.filter_map(|host| {
            let (head, _, _): (HeadWire, u64, u64) = wire::decode(host.disk.get(&(Table::Head, section.0.to_vec()))?).ok()?; // docs/spec/quorum.md, table Head
            CertifiedHead::trusted(head).ok()
        });
        let newest = heads.max_by_key(|head| (head.manifest.version, head.generation()));
        newest.is_some_and(|head| self.are_too_faulty(head.holders(), head.manifest.shape.f()))
    }

    fn are_too_faulty(&self, holders: &[PeerKey], tolerated: u8) -> bool {
        let mark = lost_store_mark(0);
        let lost = |disk: &Disk| disk.contains_key(&(mark.table, mark.key.clone()));
        let faulty = |peer: &&PeerKey| self.world.hosts.iter().any(|host| host.peer == **peer && (host.liar.is_some() || lost(&host.disk)));
        holders.iter().filter(faulty).count() > usize::from(tolerated)
    }

    /// A get that should have succeeded failed.
    fn missed(&mut self, section: SectionKey, error: &CallError, what: String) {
        if matches!(error, CallError::QuorumUnreachable { .. } | CallError::Unavailable { .. }) && self.faulty_hold(&section) {
            *self.out.marks.entry(EXCUSES[0].into()).or_default() += 1;
        } else {
            self.violation("I14", what);
        }
    }

    // ---- answers ---------------------------------------------------------------------------------------------------------------

    fn answered(&mut self, call: u64, result: Result<Answer, CallError>) {
        let Some((host, asked)) = self.asked.remove(&call) else { return };
        match (asked, result) {
            (Asked::Put { agent, document, number, .. }, Ok(Answer::Put(report))) => {
                let known = &mut self.agents[agent].documents[document];
                known.stuck = false;
                // With a bounded doubt, an older version may be read until that is over: no promise to compare with.
                if report.stale_until_ms.is_none() {
                    known.committed = known.committed.max(number);
                }
                self.out.committed += 1;
                let outcome = PutOutcome::Committed { version: report.version, level: report.level, stale_until_ms: report.stale_until_ms };
                self.world.tell(What::PutEnds { op: call, outcome });
            }
            (Asked::Put { agent, document, must, .. }, Err(error)) => {
                let known = &self.agents[agent];
                // One that lies may refuse, for whatever reason, and the put then says so.
                let excused = matches!(error, CallError::NotEnoughHolders { .. } | CallError::Refused { .. });
                if must && excused && self.faulty_keep(host, known, &known.documents[document].key) {
                    self.agents[agent].documents[document].stuck = true;
                    *self.out.marks.entry(EXCUSES[1].into()).or_default() += 1;
                } else if must {
                    self.violation("I14", format!("agent {agent} cannot put its document {document} in calm weather: {error}"));
                }
                let outcome = match error {
                    CallError::Fenced { .. } => PutOutcome::Fenced,
                    CallError::Busy(_) | CallError::LevelNotReached { .. } | CallError::UnknownAgent(_) => PutOutcome::Refused,
                    _ => PutOutcome::Unknown,
                };
                *self.out.marks.entry(format!("put {}", error.title())).or_default() += 1;
                self.world.tell(What::PutEnds { op: call, outcome });
            }
            (Asked::Fetch { .. }, Ok(Answer::Fetched { get, head, content })) => {
                self.out.values += 1;
                let fresh = match get.fresh {
                    "atomic" => AuditMode::Atomic,
                    "regular" => AuditMode::Regular,
                    _ => AuditMode::Any,
                };
                self.world.tell(What::GetEnds { op: call, outcome: GetOutcome::Value { head, content: Some(content), fresh } });
            }
            (Asked::Certificate, Ok(Answer::Certificate { bytes, .. })) => {
                self.out.values += 1;
                let outcome = GetOutcome::Value { head: bytes, content: None, fresh: AuditMode::Regular };
                self.world.tell(What::GetEnds { op: call, outcome });
            }
            (Asked::Certificate, Err(error)) => {
                self.world.tell(What::GetEnds { op: call, outcome: GetOutcome::Error { title: error.title().to_owned() } });
            }
            (Asked::Fetch { section, owed }, Err(error)) => {
                *self.out.marks.entry(format!("get {}", error.title())).or_default() += 1;
                self.world.tell(What::GetEnds { op: call, outcome: GetOutcome::Error { title: error.title().to_owned() } });
                if owed {
                    self.missed(
                        section,
                        &error,
                        format!("machine {host}: a stranger cannot read {} in calm weather: {error}", section.to_kad_key()),
                    );
                }
            }
            (Asked::Get { agent, document, committed, .. }, Ok(Answer::Section { content, .. })) => {
                self.out.values += 1;
                let begun = self.agents[agent].documents[document].begun;
                match content.first_chunk::<8>().map(|number| u64::from_le_bytes(*number)) {
                    Some(read) if (committed..=begun).contains(&read) => {}
                    read => {
                        self.violation("I3", format!("agent {agent} reads {read:?} of document {document}: {committed}..={begun} may be"))
                    }
                }
            }
            (Asked::Get { agent, document, must, .. }, Err(error)) => {
                *self.out.marks.entry(format!("own get {}", error.title())).or_default() += 1;
                if must {
                    let section = self.agents[agent].documents[document].key;
                    self.missed(section, &error, format!("agent {agent} cannot read its document {document} in calm weather: {error}"));
                }
            }
            (Asked::Create { .. }, Ok(Answer::Agent { agent, name, root, term, .. })) => self.born(host, agent, &name, &root, term),
            (Asked::Import { agent, host }, Ok(Answer::Agent { .. })) => {
                self.out.moved += 1;
                self.agents[agent].homes.insert(host);
            }
            (Asked::Import { .. }, Err(error)) => *self.out.marks.entry(format!("import {}", error.title())).or_default() += 1,
            (Asked::Create { agent }, other) => self.violation("I14", format!("agent {agent} is not born: {other:?}")),
            // More liars than are tolerated may make a host believe in another time.
            (Asked::Publish, Err(error)) if !self.beyond() => self.violation("I14", format!("an agent is not published: {error}")),
            (Asked::Publish | Asked::Send | Asked::Other, _) => {}
            (asked, other) => self.violation("I16", format!("{asked:?} is answered with {other:?}")),
        }
    }

    /// Whether a document must be there: it had committed, and its owner is alive and was never moved.
    fn is_owed(&self, section: &SectionKey) -> bool {
        self.agents
            .iter()
            .filter(|agent| !agent.moved)
            .flat_map(|agent| &agent.documents)
            .any(|one| one.key == *section && one.committed > 0 && !one.stuck)
    }

    fn born(&mut self, host: usize, id: OwnerKey, name: &str, root: &[u8; 32], term: u64) {
        self.keep(host, name, root, term);
        let secret = RootSecret::from_bytes(*root);
        if self.plan.seed.is_multiple_of(SECRETS_EVERY) {
            for bytes in [PLAINTEXT, root, &*secret.local_key(), &secret.agreement().to_bytes()] {
                self.world.keep_secret(bytes);
            }
        }
        let divisor = u64::from(self.plan.ttl_divisor);
        let documents = [(Class::Core, 3_600_000), (Class::Relationship, 300_000), (Class::Document, 600_000)]
            .into_iter()
            .enumerate()
            .map(|(i, (class, ttl_ms))| {
                let name = format!("doc/{i}");
                let key = SectionKey::derive(&id, &published_name(&secret, &name));
                Document { name, key, class, ttl_ms: (ttl_ms / divisor).max(20_000), begun: 0, committed: 0, stuck: false }
            })
            .collect();
        let homes = BTreeSet::from([host]);
        self.agents.push(Agent { id, root: *root, homes, documents, moved: false });
    }

    fn keep(&mut self, host: usize, name: &str, root: &[u8; 32], term: u64) {
        let keystore = &mut self.world.hosts[host].keystore;
        keystore.retain(|(_, other, _)| other != root);
        keystore.push((name.to_owned(), *root, term));
    }

    fn violation(&mut self, invariant: &str, what: String) {
        if self.out.violations.len() < VIOLATIONS_MAX {
            self.out.violations.push(format!("{invariant} at {:.3} s: {what}", self.world.now_us as f64 / 1e6));
        }
    }

    // ---- the nemesis -----------------------------------------------------------------------------------------------------------

    fn break_it(&mut self) {
        let able = [
            Fault::Cut,
            Fault::OneWay,
            Fault::Block,
            Fault::Crash,
            Fault::Blackout,
            Fault::Suspend,
            Fault::Skew,
            Fault::LyingSync,
            Fault::DiskLost,
            Fault::Rot,
            Fault::Join,
            Fault::BadDisk,
            Fault::Rollback,
            Fault::Jump,
            Fault::Flap,
        ];
        let fault = able[below(&mut self.nemesis, able.len() as u64) as usize];
        // Drawn whether or not the fault is enabled: dropping one leaves the others as they were.
        let hosts = self.world.hosts.len() as u64;
        let (victim, other, dice) = (below(&mut self.nemesis, hosts) as usize, below(&mut self.nemesis, hosts) as usize, self.dice());
        let pause = spread(&mut self.nemesis, 10_000);
        let side: Vec<bool> = (0..hosts).map(|_| below(&mut self.nemesis, 2) == 0).collect();
        self.drift();
        if !self.plan.has(fault) {
            return;
        }
        self.did(fault);
        let spoiled = self.faulty.get((dice % self.faulty.len().max(1) as u64) as usize).copied();
        match fault {
            Fault::Cut => {
                let count = self.world.hosts.len();
                let across = |from: usize, to: usize| from != to && side[from] != side[to];
                self.world.deaf_pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| across(*a, *b)).collect();
                self.world.meet();
                self.later(pause, Undo::Heal);
            }
            Fault::OneWay => {
                for (from, heard) in side.iter().enumerate() {
                    if from != victim && *heard {
                        self.world.deaf_pairs.insert(if dice % 2 == 0 { (from, victim) } else { (victim, from) });
                    }
                }
                self.world.meet();
                self.later(pause, Undo::Heal);
            }
            Fault::Block => {
                let kind = Kind::ALL[(dice % 7) as usize];
                for (to, hit) in side.iter().enumerate() {
                    if *hit && to != victim {
                        self.world.blocked.insert((victim, to, kind));
                    }
                }
                self.later(pause, Undo::Unblock);
            }
            Fault::Crash => {
                let victim = if dice % 4 == 0 { self.reader() } else { victim };
                self.crash(victim, pause);
            }
            Fault::Blackout if dice % 4 == 0 => {
                for host in 0..self.world.hosts.len() {
                    self.crash_now(host);
                }
                self.later(pause, Undo::StartAll);
            }
            Fault::Suspend => self.world.suspend(victim, pause),
            Fault::Skew => {
                // Any two clocks stay within the allowance of 2 s of class active.
                self.world.skew(victim, (dice % 1_900) as i64 - 950);
            }
            Fault::LyingSync => {
                if let Some(host) = spoiled {
                    self.world.hosts[host].lying_sync = true;
                    self.later(pause, Undo::Honest(host));
                    if dice % 3 == 0 {
                        self.crash(host, pause / 2 + 1);
                    }
                }
            }
            Fault::DiskLost => {
                if let Some(host) = spoiled {
                    self.crash_now(host);
                    self.world.lose_disk(host);
                    self.later(pause, Undo::Start(host));
                }
            }
            Fault::Rot => {
                if let Some(host) = spoiled {
                    self.world.rot(host, dice);
                }
            }
            Fault::BadDisk => {
                self.world.hosts[victim].failing = Some(if dice % 2 == 0 { Failing::Sync } else { Failing::Full });
                self.later(pause, Undo::Room(victim));
            }
            Fault::Rollback => {
                if let Some(host) = spoiled {
                    match self.snapshots.remove(&host).filter(|_| dice % 3 > 0) {
                        Some(disk) => {
                            self.crash_now(host);
                            self.world.roll_back(host, disk);
                            self.later(pause / 4 + 1, Undo::Start(host));
                        }
                        None => drop(self.snapshots.insert(host, self.world.snapshot(host))),
                    }
                }
            }
            Fault::Jump => {
                if let Some(host) = spoiled {
                    let off_ms = (11_000 + dice % JUMP_MS_MAX) as i64;
                    self.world.skew(host, if dice % 2 == 0 { off_ms } else { -off_ms });
                    self.later(pause, Undo::Clock(host));
                }
            }
            Fault::Flap => {
                let period = 20_000 + dice % 400_000;
                for turn in 0..(pause / period).min(24) {
                    self.later(turn * period, Undo::Flap(victim, turn % 2 == 0));
                }
                self.later(pause.max(24 * period), Undo::Flap(victim, false));
            }
            Fault::Join => {
                if let Some(host) = self.joining.pop() {
                    self.world.start(host);
                }
            }
            _ => {}
        }
        let _ = other;
    }

    /// What lasts for a whole storm begins with it.
    fn storm_begins(&mut self) {
        for fault in self.plan.faults.clone().into_iter().filter(|fault| fault.lasts()) {
            self.did(fault);
        }
        let mut rng = stream(self.plan.seed, "storm");
        for host in 0..self.world.hosts.len() {
            if let Some(liar) = self.world.hosts[host].liar.as_mut() {
                liar.begin();
            }
            let ppm = below(&mut rng, 1_001) as i64 - 500;
            if self.plan.has(Fault::Drift) {
                self.world.hosts[host].drift_ppm = ppm;
            }
        }
        self.drifted_us = self.world.now_us;
        if self.plan.has(Fault::Churn) {
            let machines = self.plan.hosts;
            let set = SETS[below(&mut rng, SETS.len() as u64) as usize];
            let changes = self.plan.trace.as_ref().map_or_else(|| set.draw(machines, &mut rng), |trace| trace.of(machines));
            for change in changes {
                let after_us = (change.at * self.plan.storm_ms as f64 * 1000.0) as u64;
                self.later(after_us, if change.up { Undo::Start(change.machine) } else { Undo::Leave(change.machine) });
            }
        }
        let Some(spoiled) = self.faulty.first().copied() else { return };
        if self.plan.has(Fault::Mangle) {
            self.world.set_mangler(spoiled, stream(self.plan.seed, "mangle"));
        }
        if self.plan.has(Fault::Twins) {
            let twin = self.world.add_twin(spoiled);
            self.world.start(twin);
        }
    }

    /// Wall clocks have gone on at their own pace since this was last called: as far as whoever keeps them right lets them.
    fn drift(&mut self) {
        let passed_ms = (self.world.now_us - self.drifted_us) / 1000;
        if !self.plan.has(Fault::Drift) || passed_ms < DRIFT_STEP_MS {
            return;
        }
        self.drifted_us = self.world.now_us;
        for host in 0..self.world.hosts.len() {
            let gained_ms = passed_ms as i64 * self.world.hosts[host].drift_ppm / 1_000_000;
            let off_ms = self.world.hosts[host].ahead_ms;
            if gained_ms != 0 && off_ms.abs() <= 950 {
                self.world.skew(host, (off_ms + gained_ms).clamp(-950, 950));
            }
        }
    }

    fn did(&mut self, fault: Fault) {
        *self.out.faults.entry(fault.name()).or_default() += 1;
    }

    /// More than `f` lie, so that little is promised.
    fn beyond(&self) -> bool {
        self.plan.has(Fault::TooMany)
    }

    fn flap(&mut self, host: usize, off: bool) {
        for other in (0..self.world.hosts.len()).filter(|other| *other != host) {
            for pair in [(host, other), (other, host)] {
                if off {
                    self.world.deaf_pairs.insert(pair);
                } else {
                    self.world.deaf_pairs.remove(&pair);
                }
            }
        }
        self.world.meet();
    }

    fn dice(&mut self) -> u64 {
        below(&mut self.nemesis, 1 << 32)
    }

    fn later(&mut self, after_us: u64, undo: Undo) {
        let number = UNDO + self.undo.len() as u64;
        self.undo.push(Some(undo));
        self.world.remind(after_us, number);
    }

    fn crash(&mut self, host: usize, pause: u64) {
        self.crash_now(host);
        self.later(pause, Undo::Start(host));
    }

    /// A process dies, and with it whatever was asked of it.
    fn crash_now(&mut self, host: usize) {
        self.world.crash(host);
        let lost: Vec<u64> = self.asked.iter().filter(|(_, (at, _))| *at == host).map(|(call, _)| *call).collect();
        for call in lost {
            match self.asked.remove(&call) {
                Some((_, Asked::Put { .. })) => self.world.tell(What::PutEnds { op: call, outcome: PutOutcome::Unknown }),
                Some((_, Asked::Fetch { .. } | Asked::Certificate)) => {
                    let outcome = GetOutcome::Error { title: "crashed".into() };
                    self.world.tell(What::GetEnds { op: call, outcome });
                }
                _ => {}
            }
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(host) => self.world.start(host),
            Undo::Leave(host) => self.crash_now(host),
            Undo::Flap(host, off) => self.flap(host, off),
            Undo::Room(host) => self.world.hosts[host].failing = None,
            Undo::Clock(host) => self.world.skew(host, 0),
            Undo::StartAll => {
                for host in 0..self.plan.hosts {
                    self.world.start(host);
                }
            }
            Undo::Heal => {
                self.world.deaf_pairs.clear();
                self.world.meet();
            }
            Undo::Unblock => self.world.blocked.clear(),
            Undo::Honest(host) => {
                self.world.hosts[host].lying_sync = false;
                self.world.settle(host);
            }
        }
    }
}
