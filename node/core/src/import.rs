//! Agents come into being here, and come here from elsewhere (docs/spec/quorum.md#takeover).
//!
//! An import first looks whether `card`, `index` and `core` can be read at all, and changes nothing if they cannot. Then it has the keystore
//! keep the agent's keys, because what follows cannot be undone: it certifies a card of the next term, and from that moment the old host is
//! fenced wherever the certificate is shown. Then `index`, and then every other section, is read behind that fence and put in the new term;
//! a section that is gone is named. What stops it once the card was sent, it goes on by itself (`pending.rs`).

use std::collections::{BTreeMap, BTreeSet};

use persona_agent::{Birth, Card, Genesis, Identity, Index, IndexEntry, PairState, Personality, Relationship, RootSecret};
use persona_fragments::{
    CertifiedHead, Class, DeviceId, Digest, Fields, OwnerKey, SealContext, SectionKey, SignedManifest, Verifier, seal, wire,
};
use persona_mesh_proto::{Freshness, Mode, Now, Settled, Table, Write};
use zeroize::Zeroizing;

use crate::{
    call::{Answer, CallError, Keep},
    disk::{ROW_PAIR, ROW_RELATIONSHIP, partner_row},
    missing::{Missing, is_worth_looking_for},
    node::Node,
    own::{Agent, Content, Owned, Owner, OwnerState, PutWaiter},
    pending::{AfterKeep, Pending},
    reads::{GetPurpose, Got, Wanted, card_report, read_card},
    report::{AgentReport, GetReport, ImportReport, ImportedSection, PutReport},
    settling::SettlePurpose,
    traffic::AfterPersist,
};

/// What an agent needs to go on after a restart, besides what the disk keeps.
#[derive(Debug)]
pub struct AgentKeys {
    /// Its name on this node.
    pub name: String,
    /// Its root secret.
    pub root: Zeroizing<[u8; 32]>,
    /// Its term on this node.
    pub term: u64,
}

/// How long a restarted host meets others before it renews, or goes on with an import.
pub(crate) const RESTART_PAUSE_US: u64 = 1_500_000;

/// How often one section of an import is read again because more of it turned out to be certified.
const SETTLED_MAX: u8 = 3;

/// The sections of an agent that an import cannot do without.
const ESSENTIAL: [&str; 2] = ["index", "core"];

/// An import on its way.
pub(crate) struct Import {
    /// Who waits for it; nobody does if it goes on by itself.
    call: Option<u64>,
    /// It goes on with an earlier attempt: nobody said anew that the agent is to be taken from whoever has it now.
    resumed: bool,
    pub(crate) agent: OwnerKey,
    name: Option<String>,
    root: RootSecret,
    started_us: u64,
    stage: Stage,
    /// What lived here under the agent's keys before the import began to write: it comes back if the import is refused.
    before: Option<Owner>,
    /// The weakest mode that was needed.
    mode: Mode,
    stale_until_ms: Option<u64>,
    card: Option<(Card, CertifiedHead)>,
    /// The keystore has the keys since this attempt: if it is refused they go again.
    kept_anew: bool,
    fence: Option<CertifiedHead>,
    sections: BTreeMap<String, Step>,
    index: Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Is there anything to take over? `card`, then `index` and `core`.
    Looking,
    /// The keystore is about to have its keys.
    Keeping,
    /// The card of the next term is being certified.
    Fencing,
    /// The index is read behind the fence and put.
    Index,
    /// Everything else.
    Sections,
}

/// What an import may have done to the old host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Nothing.
    Nothing,
    /// The card of the next term was sent. Whoever saw enough of its holders may have certified it.
    Sent,
    /// It is certified: the old host is fenced.
    Certified,
}

/// One section on its way over.
#[derive(Default)]
struct Step {
    class: Option<Class>,
    mode: Option<Mode>,
    get: Option<GetReport>,
    put: Option<PutReport>,
    error: Option<CallError>,
    over: bool,
    /// What was read, while versions above it are settled.
    settling: Option<Settling>,
    /// How often it was.
    settled: u8,
}

/// A section that was read, and above which versions of unknown outcome were seen.
struct Settling {
    got: Got,
    left: usize,
    /// Those that never committed and never will.
    aborted: Vec<Digest>,
    /// Something above it turned out to be certified.
    newer: bool,
}

impl Node {
    /// Brings an agent into being. It is on the disk before the call is answered, and in the mesh only after [`Call::Publish`](crate::Call::Publish).
    pub(crate) fn create_agent(&mut self, call: u64, name: String, role: Option<String>, place: String, attributes: Vec<u8>) {
        if self.agent_named(&name).is_some() {
            return self.reply(call, Err(CallError::NameTaken(name)));
        }
        let root = RootSecret::generate(&mut self.rng);
        let id = root.agent_id();
        let genesis = Genesis {
            agent: id,
            name: name.clone(),
            role,
            birth: Birth { time_ms: self.now.wall_ms, place },
            attributes,
            mesh_secret: self.config.mesh_secret,
        };
        let personality = match Personality::birth(genesis, &mut self.rng) {
            Ok(personality) => personality,
            Err(error) => return self.reply(call, Err(CallError::BadRequest(error.to_string()))),
        };
        let fields = personality.to_fields();
        let identity = match Identity::new(root.clone(), personality, 1, &persona_agent::order::OFFERED_DEFAULT) {
            Ok(identity) => identity,
            Err(error) => return self.reply(call, Err(CallError::BadRequest(error.to_string()))),
        };
        let card = identity.card(self.me, self.now.wall_ms).to_bytes(identity.signer());
        let mut owner = Owner::new(root, 1, OwnerState::Unpublished, &self.keys.owner_signer);
        owner.agent = Some(Box::new(Agent::new(name, identity)));
        self.owners.insert(id, owner);
        self.change(&id, "core", Class::Core, Content::Fields(fields), None);
        self.change(&id, "card", Class::Core, Content::Public(card), None);
        // What was born must survive a crash before anyone is told of it.
        let writes = self.seal_unpublished(&id);
        self.persist(writes, AfterPersist::Born { call, agent: id });
    }

    /// Seals what has never been put, so that the disk has it. The first put seals under its own version again.
    fn seal_unpublished(&mut self, id: &OwnerKey) -> Vec<Write> {
        let me = self.me;
        let Some(owner) = self.owners.get_mut(id) else { return Vec::new() };
        let version = persona_fragments::Version { term: owner.term, device: me.device(), seq: 1 };
        let mut writes = Vec::new();
        for owned in owner.sections.values_mut() {
            let stored = match &owned.changed {
                Some(Content::Public(payload)) => seal::publish(payload).ok(),
                Some(Content::Fields(fields)) => {
                    let rng = &mut self.rng;
                    let epoch = owned.epoch.get_or_insert_with(|| persona_fragments::EpochKey::generate(1, rng)).clone();
                    let context = SealContext { agent: *id, section: owned.key, content_version: version };
                    seal::seal(fields, &epoch, &owner.recovery, &context, rng).ok()
                }
                None => None,
            };
            if let Some(stored) = stored {
                owned.stored = stored;
                owned.content_version = Some(version);
                owned.last_seq = 1;
                owned.changed = None;
                writes.push(Write::set(Table::Own, owned.key.0, wire::encode(&owned.record(id))));
            }
        }
        writes
    }

    /// A created agent is durable.
    pub(crate) fn agent_born(&mut self, call: u64, id: OwnerKey) {
        let answer = self.agent_answer(&id, None);
        self.reply(call, answer);
    }

    fn agent_answer(&self, id: &OwnerKey, import: Option<Box<ImportReport>>) -> Result<Answer, CallError> {
        let owner = self.owners.get(id).ok_or_else(|| CallError::UnknownAgent(id.to_did()))?;
        let agent = owner.agent.as_ref().ok_or_else(|| CallError::UnknownAgent(id.to_did()))?;
        Ok(Answer::Agent {
            agent: *id,
            name: agent.name.clone(),
            root: Zeroizing::new(*owner.root.expose()),
            seed: Zeroizing::new(*agent.identity.personality().seed().expose()),
            term: owner.term,
            import,
        })
    }

    /// Puts a created agent into the mesh: the index first, then the card and the core.
    pub(crate) fn publish_agent(&mut self, call: u64, id: OwnerKey) {
        let now_us = self.now.mono_us;
        let Some(owner) = self.owners.get_mut(&id) else { return self.reply(call, Err(CallError::UnknownAgent(id.to_did()))) };
        match owner.state {
            OwnerState::Unpublished => owner.state = OwnerState::Live,
            OwnerState::Live => {}
            OwnerState::Importing => return self.reply(call, Err(CallError::Busy("the agent is on its way here".into()))),
            OwnerState::Fenced(term) => return self.reply(call, Err(CallError::Fenced { term })),
        }
        let mut waiting = 0;
        for name in ["card", "core", "index"] {
            if let Some(owned) = owner.sections.get_mut(name) {
                owned.due_us = Some(now_us);
                owned.waiting_next.push(PutWaiter::Publish { call });
                waiting += 1;
            }
        }
        if waiting == 0 {
            return self.reply(call, Err(CallError::UnknownAgent(id.to_did())));
        }
        self.messages.publishing.insert(call, (waiting, Vec::new(), None));
        self.announce(&id);
    }

    /// One of the puts of a publication is over.
    pub(crate) fn published_one(&mut self, call: u64, result: Result<PutReport, CallError>) {
        let Some((left, reports, failed)) = self.messages.publishing.get_mut(&call) else { return };
        *left -= 1;
        match result {
            Ok(report) => reports.push(report),
            Err(error) => *failed = Some(error),
        }
        if *left == 0
            && let Some((_, reports, failed)) = self.messages.publishing.remove(&call)
        {
            self.reply(call, failed.map_or(Ok(Answer::Puts(reports)), Err));
        }
    }

    /// Takes up an agent that lived here before a restart, with what the disk kept of it. One that cannot be taken up is an alarm that says
    /// what to do about it, and the node goes on without it.
    pub fn add_agent(&mut self, keys: AgentKeys) -> Result<OwnerKey, String> {
        let name = keys.name.clone();
        let id = RootSecret::from_bytes(*keys.root).agent_id();
        self.take_up(keys).inspect_err(|reason| {
            self.owners.remove(&id);
            self.forget_messages(&id);
            // What the disk has of it is asked for again, should it be imported.
            self.messages.strays.insert(id);
            self.alarm(
                "agent-not-taken-up",
                format!(
                    "the agent {name} ({}) is in the keystore and cannot be taken up: {reason}; `persona agent import FILE` brings it \
                     back from its recovery file and the mesh",
                    id.to_did()
                ),
            );
        })
    }

    fn take_up(&mut self, keys: AgentKeys) -> Result<OwnerKey, String> {
        let root = RootSecret::from_bytes(*keys.root);
        let id = root.agent_id();
        let mut owner = Owner::new(root, keys.term, OwnerState::Live, &self.keys.owner_signer);
        let rows = self.messages.take_own_rows(&id);
        let Now { wall_ms, mono_us: now_us } = self.now;
        let open = |owner: &mut Owner, name: &str, class: Class| -> Result<Option<persona_fragments::Fields>, String> {
            let spec = self.config.classes.of(class);
            let mut owned = Owned::new(&id, &owner.root, name, class, spec.ttl.as_millis() as u64, spec.level);
            let Some(record) = rows.own.get(&owned.key) else { return Ok(None) };
            owned.restore(record.clone());
            owned.lease_as(name, spec);
            owned.intent = rows.intents.get(&owned.key).cloned();
            // An import to this node that came to nothing has counted its own versions here, and may have left nothing else: how far those of
            // this term had come is known only if there is a version to show it.
            let intent = owned.intended().map(|manifest| manifest.version);
            let head = owned.head.as_ref().map(|head| head.manifest.version);
            let mut last = head.into_iter().chain(intent).chain(owned.live.iter().map(|set| set.version));
            if last.clone().any(|version| version.term > keys.term)
                || !last.any(|version| (version.term, version.seq) == (keys.term, owned.last_seq))
            {
                owned.last_seq = owned.last_seq.max(wall_ms);
            }
            let fields = match owned.content_version {
                Some(content_version) if name != "card" => {
                    let context = SealContext { agent: id, section: owned.key, content_version };
                    let (epoch, fields) =
                        seal::open(&owned.stored, &owner.recovery, &context).map_err(|error| format!("section {name}: {error}"))?;
                    owned.epoch = Some(epoch);
                    Some(fields)
                }
                _ => None,
            };
            owner.term = owner.term.max(owned.content_version.map_or(0, |version| version.term.min(keys.term)));
            owner.sections.insert(name.to_owned(), owned);
            Ok(fields)
        };
        let core = open(&mut owner, "core", Class::Core)?.ok_or("its core is not in this state directory")?;
        let index = match open(&mut owner, "index", Class::Core)? {
            Some(fields) => Index::from_fields(&fields).map_err(|error| error.to_string())?,
            None => Index::new(),
        };
        open(&mut owner, "card", Class::Core)?;
        let personality = Personality::from_fields(&core, id).map_err(|error| error.to_string())?;
        let identity = Identity::new(owner.root.clone(), personality, keys.term, &persona_agent::order::OFFERED_DEFAULT)
            .map_err(|error| error.to_string())?;
        let mut agent = Agent::new(keys.name, identity);
        agent.came_ms = wall_ms;
        for (name, entry) in index.iter().filter(|(name, entry)| !entry.removed && !matches!(*name, "core" | "index" | "card")) {
            let Some(fields) = open(&mut owner, name, entry.class)? else {
                if is_worth_looking_for(entry.class) {
                    agent.missing.insert(name.to_owned(), Missing::since(now_us, entry.life_ms()));
                }
                continue;
            };
            agent.take_section(name, &fields, &*self.keys.verifier)?;
        }
        agent.index = index;
        // Chains and logs are written with every message, ahead of their sections.
        let stale = agent.take_local(&owner.root.local_key(), &id, &rows, &*self.keys.verifier)?;
        agent.missing.retain(|name, _| !stale.contains(name));
        owner.agent = Some(Box::new(agent));
        // What it says counts once it is committed.
        let listed = owner.sections.get("index").is_some_and(|index| index.head.is_some() && index.intent.is_none());
        let mut unlisted = Vec::new();
        for (name, owned) in &mut owner.sections {
            if name != "behavior" {
                // Soon, to learn whether another host has taken over meanwhile; but first let somebody be met.
                owned.due_us = Some(now_us + RESTART_PAUSE_US);
            }
            if !listed && name != "index" {
                unlisted.push(name.clone());
            }
        }
        self.owners.insert(id, owner);
        self.take_message_rows(&id, rows)?;
        for name in stale {
            self.change_from_agent(&id, &name);
        }
        // A born agent whose node crashed before its first put: its sections are listed first, as at birth.
        for name in unlisted {
            self.list_again(&id, &name);
        }
        self.announce(&id);
        Ok(id)
    }

    fn list_again(&mut self, id: &OwnerKey, name: &str) {
        if let Some(owned) = self.owners.get_mut(id).and_then(|owner| owner.sections.get_mut(name)) {
            owned.unlisted = true;
        }
        self.list_in_index(id, name);
    }

    /// Begins an import: first look, then touch. Nobody waits for one that goes on by itself.
    pub(crate) fn begin_import(&mut self, call: Option<u64>, root: &Zeroizing<[u8; 32]>, name: Option<String>) {
        let root = RootSecret::from_bytes(**root);
        let agent = root.agent_id();
        let importing = |owner: &Owner| owner.state == OwnerState::Importing;
        let busy = self.imports.values().any(|import| import.agent == agent) || self.owners.get(&agent).is_some_and(importing);
        // One that is live here may have moved away unnoticed: its card tells (`import_saw`).
        let refusal = if busy {
            Some(CallError::Busy(format!("{} is on its way here already", agent.to_did())))
        } else if self.owners.get(&agent).is_some_and(|owner| owner.state == OwnerState::Unpublished) {
            Some(self.lives_here(&agent))
        } else {
            name.as_ref().filter(|name| self.agent_named(name).is_some_and(|id| id != agent)).map(|name| CallError::NameTaken(name.clone()))
        };
        if let Some(error) = refusal {
            return self.answer_import(call, Err(error));
        }
        if let Some(pending) = self.pending.get_mut(&agent) {
            pending.next_us = None;
        }
        self.start_import(call, call.is_none(), root, name);
    }

    fn start_import(&mut self, call: Option<u64>, resumed: bool, root: RootSecret, name: Option<String>) {
        let agent = root.agent_id();
        let import = Import {
            call,
            resumed,
            agent,
            name,
            root,
            started_us: self.now.mono_us,
            stage: Stage::Looking,
            before: None,
            mode: Mode::Atomic,
            stale_until_ms: None,
            card: None,
            kept_anew: false,
            fence: None,
            sections: BTreeMap::new(),
            index: Index::new(),
        };
        let id = self.id();
        self.imports.insert(id, import);
        self.import_get(id, "card", Mode::Regular);
    }

    fn lives_here(&self, agent: &OwnerKey) -> CallError {
        let known = self.owners.get(agent).and_then(|owner| owner.agent.as_ref());
        let name = known.map_or_else(|| agent.to_did(), |agent| agent.name.clone());
        CallError::BadRequest(format!("{name} lives on this node already"))
    }

    fn import_get(&mut self, import: u64, name: &str, mode: Mode) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        state.sections.entry(name.to_owned()).or_default().mode = Some(mode);
        let key = SectionKey::derive(&state.agent, &persona_agent::published_name(&state.root, name));
        let fence = state.fence.clone();
        let label = format!("{}/{name}", state.name.clone().unwrap_or_else(|| state.agent.to_did()));
        let wanted = Wanted { key, owner: Some(state.agent), label, mode, fence, want_content: true };
        self.begin_get(wanted, GetPurpose::Import { import, name: name.to_owned() });
    }

    /// A read of an import is over.
    pub(crate) fn import_got(&mut self, import: u64, name: &str, result: Result<Got, CallError>) {
        let Some(state) = self.imports.get(&import) else { return };
        let mode = state.sections.get(name).and_then(|step| step.mode).unwrap_or(Mode::Any);
        match result {
            // The quorum is gone, but the bytes may not be: read what there is, and say so. Whether another host has the agent meanwhile is
            // not left to luck if nobody asked again.
            Err(CallError::QuorumUnreachable { .. } | CallError::Unavailable { .. })
                if mode != Mode::Any && (!state.resumed || state.stage != Stage::Looking) =>
            {
                self.import_get(import, name, Mode::Any)
            }
            Err(error) => self.import_missed(import, name, error),
            Ok(got) => match state.stage {
                Stage::Looking => self.import_saw(import, name, got),
                Stage::Keeping | Stage::Fencing => {}
                Stage::Index | Stage::Sections => self.import_settle(import, name, got),
            },
        }
    }

    /// Behind the fence: what the old host left uncertified is settled before anything is put in its place.
    fn import_settle(&mut self, import: u64, name: &str, got: Got) {
        let me = self.me.device();
        let Some(agent) = self.imports.get(&import).map(|state| state.agent) else { return };
        let term = self.owners.get(&agent).map_or(0, |owner| owner.term);
        // Another host that is taking over at the same time is not an old one: who loses is decided otherwise.
        let seen = got.value.prepared_seen.iter().filter(|left| is_of_lower_host(left, (term, me)) && self.may_be_settled(left));
        let left: Vec<SignedManifest> = seen.cloned().collect();
        let Some(step) = self.imports.get_mut(&import).and_then(|state| state.sections.get_mut(name)) else { return };
        if left.is_empty() || got.value.fresh == Freshness::MaybeStale || step.settled == SETTLED_MAX {
            return self.import_took(import, name, got, &[]);
        }
        step.settled += 1;
        step.settling = Some(Settling { got, left: left.len(), aborted: Vec::new(), newer: false });
        for manifest in left {
            self.begin_settle(&agent, manifest, SettlePurpose::Import { import, name: name.to_owned() });
        }
    }

    /// One of the versions above what was read is settled.
    pub(crate) fn import_settled(&mut self, import: u64, name: &str, settled: Option<&Settled>) {
        let Some(step) = self.imports.get_mut(&import).and_then(|state| state.sections.get_mut(name)) else { return };
        let Some(settling) = step.settling.as_mut() else { return };
        let mut newer_head = None;
        match settled {
            Some(Settled::Certified(head) | Settled::Superseded(head)) => {
                settling.newer = true;
                // The read that follows begins with it, wherever its COMMIT has got to meanwhile.
                newer_head = Some((**head).clone());
            }
            Some(Settled::Aborted(aborted)) => settling.aborted.push(aborted.manifest.hash()),
            Some(Settled::Undecided { .. }) | None => {}
        }
        settling.left -= 1;
        let over = if settling.left == 0 { step.settling.take() } else { None };
        if let Some(head) = newer_head {
            self.remember_head(head);
        }
        let Some(Settling { got, newer, aborted, .. }) = over else { return };
        if newer { self.import_get(import, name, Mode::Atomic) } else { self.import_took(import, name, got, &aborted) }
    }

    fn import_missed(&mut self, import: u64, name: &str, error: CallError) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        let essential = name == "card" || ESSENTIAL.contains(&name);
        // Another host has taken the agent over meanwhile: this import has lost, whichever section it was told by.
        let fenced = matches!(error, CallError::Fenced { .. });
        if state.stage == Stage::Looking || essential || fenced {
            return self.import_refused(import, error);
        }
        if let Some(step) = state.sections.get_mut(name) {
            step.error = Some(error);
            step.over = true;
        }
        self.import_progress(import);
    }

    /// Another host was faster, in `term`: the import that is writing here has lost.
    pub(crate) fn import_fenced(&mut self, id: &OwnerKey, term: u64) {
        let of_this = |import: &Import| import.agent == *id && !matches!(import.stage, Stage::Looking | Stage::Keeping);
        if let Some(import) = self.imports.iter().find(|(_, import)| of_this(import)).map(|(import, _)| *import) {
            self.import_refused(import, CallError::Fenced { term });
        }
    }

    /// Nothing was taken over, or not enough: the call fails, and the agent does not live here. If its old host may be fenced, the keystore
    /// goes on keeping its keys, and the import goes on by itself.
    pub(crate) fn import_refused(&mut self, import: u64, error: CallError) {
        let Some(state) = self.imports.remove(&import) else { return };
        let id = state.agent;
        let reach = self.reach_of(&state);
        let term = match self.owners.get(&id).filter(|owner| owner.state == OwnerState::Importing) {
            Some(owner) => owner.term,
            None if reach == Reach::Certified => state.card.as_ref().map_or(0, |(card, _)| card.term),
            None => self.messages.terms_tried.get(&id).copied().unwrap_or(0),
        };
        if !matches!(state.stage, Stage::Looking | Stage::Keeping) {
            self.messages.imported.remove(&id);
            self.owners.remove(&id);
            self.owners.extend(state.before.map(|before| (id, before)));
        }
        let overtaken = matches!(error, CallError::Fenced { .. });
        let over = !self.pending.contains_key(&id) || overtaken || state.kept_anew && reach == Reach::Nothing;
        if over && self.messages.strays.contains(&id) {
            self.messages.rows.remove(&id);
        }
        if !self.pending.contains_key(&id) {
            return self.answer_import(state.call, Err(error));
        }
        if over {
            self.pending.remove(&id);
            if state.call.is_none() {
                let name = state.name.unwrap_or_else(|| id.to_did());
                self.alarm(
                    "import-overtaken",
                    format!(
                        "{name} was taken over by another node before its import here was over: {error}; it lives there, and `persona \
                         agent import FILE` brings it here"
                    ),
                );
            }
            return self.keep(id, Keep::NotImporting, AfterKeep::Refused { call: state.call, error });
        }
        if reach == Reach::Sent && !state.resumed && matches!(error, CallError::Refused { .. }) {
            // Somebody else was there with a version of his. Whoever waits hears who has the agent now, and not that nobody knows.
            return self.start_import(state.call, true, state.root, state.name);
        }
        self.try_again(&id, &error);
        let error = match reach {
            Reach::Nothing => error,
            Reach::Sent | Reach::Certified => CallError::ImportUnfinished {
                agent: state.name.unwrap_or_else(|| id.to_did()),
                term,
                certified: reach == Reach::Certified,
                reason: Box::new(error),
            },
        };
        self.answer_import(state.call, Err(error));
    }

    /// How far an import has got with the old host, before its owner is put away.
    fn reach_of(&self, state: &Import) -> Reach {
        // An earlier attempt of this node may have got further than this one.
        let ours = state.card.as_ref().is_some_and(|(card, _)| card.home == self.me) && !state.kept_anew;
        let sent = |owner: &Owner| owner.sections.get("card").is_some_and(|card| card.last_seq > 0);
        match state.stage {
            Stage::Index | Stage::Sections => Reach::Certified,
            _ if ours => Reach::Certified,
            Stage::Fencing if self.owners.get(&state.agent).is_some_and(sent) => Reach::Sent,
            _ if state.resumed => Reach::Sent,
            Stage::Looking | Stage::Keeping | Stage::Fencing => Reach::Nothing,
        }
    }

    /// Answers who waits for an import, if somebody does.
    pub(crate) fn answer_import(&mut self, call: Option<u64>, result: Result<Answer, CallError>) {
        if let Some(call) = call {
            self.reply(call, result);
        }
    }

    /// While looking: the card, then index and core, can be read.
    fn import_saw(&mut self, import: u64, name: &str, got: Got) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        if let Some(step) = state.sections.get_mut(name) {
            step.over = true;
        }
        if name == "card" {
            // Index and core are only looked at here; behind the fence they are read again, as fresh as can be.
            if got.value.fresh == Freshness::MaybeStale {
                state.mode = Mode::Any;
            }
            let Some(card) = read_card(&got.value, &state.agent, &*self.keys.verifier) else {
                let error =
                    CallError::Unreadable { what: format!("{}/card", state.agent.to_did()), reason: "it is not this agent's card".into() };
                return self.import_refused(import, error);
            };
            if !self.keeps_its_commitment(&card) {
                let reason = "it shows another personality than the one the agent is bound to".to_owned();
                return self.import_refused(import, CallError::Unreadable { what: format!("{}/card", card.agent.to_did()), reason });
            }
            // It lives here, as far as this node had heard; only a higher host can have taken it away meanwhile.
            let (agent, by) = (card.agent, got.value.head.manifest.version);
            let here = self.owners.get(&agent).filter(|owner| owner.state == OwnerState::Live).map(|owner| (owner.term, self.me.device()));
            if let Some(here) = here {
                if (by.term, by.device) <= here {
                    let error = self.lives_here(&agent);
                    return self.import_refused(import, error);
                }
                self.fence_owner(&agent, &got.value.head);
            }
            // Nobody said that it is to be taken from the host that has it now.
            let from_term = self.pending.get(&card.agent).map_or(0, |pending| pending.from_term);
            let Some(state) = self.imports.get_mut(&import) else { return };
            if state.resumed && card.home != self.me && card.term > from_term {
                return self.import_refused(import, CallError::Fenced { term: card.term });
            }
            if state.name.is_none() {
                state.name = Some(card.name.clone());
            }
            state.card = Some((card, got.value.head));
            for name in ESSENTIAL {
                self.import_get(import, name, Mode::Any);
            }
            return;
        }
        let ready = ESSENTIAL.iter().all(|name| state.sections.get(*name).is_some_and(|step| step.over));
        if ready && state.resumed {
            self.import_fence(import);
        } else if ready {
            self.import_keep(import);
        }
    }

    /// Everything essential is there: what comes next cannot be undone, so that a crash must not forget the keys.
    fn import_keep(&mut self, import: u64) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        let (Some((card, _)), Some(name)) = (&state.card, state.name.clone()) else { return };
        let (id, from_term) = (state.agent, card.term);
        let root = Zeroizing::new(*state.root.expose());
        if let Some(other) = self.agent_named(&name).filter(|other| *other != id) {
            return self
                .import_refused(import, CallError::NameTaken(format!("{name}, the agent {}; give another with --name", other.to_did())));
        }
        if let Some(state) = self.imports.get_mut(&import) {
            state.stage = Stage::Keeping;
        }
        self.keep(id, Keep::Importing { name, root, from_term }, AfterKeep::Fence { import });
    }

    /// The keystore has the keys, or could not take them.
    pub(crate) fn import_kept(&mut self, import: u64, result: Result<(), String>) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        let (Some((card, _)), Some(name)) = (&state.card, state.name.clone()) else { return };
        if let Err(reason) = result {
            return self.import_refused(import, CallError::NotKept(reason));
        }
        let pending = Pending { name, root: state.root.clone(), from_term: card.term, next_us: None, failures: 0 };
        state.kept_anew = self.pending.insert(state.agent, pending).is_none();
        self.import_fence(import);
    }

    /// Certifies the card of the next term.
    fn import_fence(&mut self, import: u64) {
        let me = self.me;
        let wall_ms = self.now.wall_ms;
        let Some(state) = self.imports.get_mut(&import) else { return };
        let Some((card, old)) = state.card.clone() else { return };
        let id = state.agent;
        if let Some(name) = state.name.clone()
            && let Some(other) = self.agent_named(&name).filter(|other| *other != id)
        {
            return self
                .import_refused(import, CallError::NameTaken(format!("{name}, the agent {}; give another with --name", other.to_did())));
        }
        let term = self.term_after(&id, &old);
        let Some(state) = self.imports.get_mut(&import) else { return };
        state.stage = Stage::Fencing;
        state.sections.clear();
        let mut owner = Owner::new(state.root.clone(), term, OwnerState::Importing, &self.keys.owner_signer);
        let card = Card { term, home: me, created_ms: wall_ms, ..card };
        let payload = card.to_bytes(&*owner.signer);
        owner.sections.insert("card".into(), adopted(&id, &state.root, "card", &old, Vec::new(), wall_ms));
        state.card = Some((card, old));
        state.sections.insert("card".into(), Step { class: Some(Class::Core), ..Step::default() });
        let mut before = self.owners.insert(id, owner);
        if let Some(before) = before.as_mut() {
            self.tell_fenced(before, term);
        }
        if let Some(state) = self.imports.get_mut(&import) {
            state.before = before;
        }
        self.change(&id, "card", Class::Core, Content::Public(payload), Some(PutWaiter::Import { import }));
    }

    /// A term that no host has used, as far as this one can know: above that of the newest card, and above every term in which this node
    /// itself has ever signed for the agent. An import that failed may have left a card with some holders, and a version is signed once.
    fn term_after(&mut self, id: &OwnerKey, card: &CertifiedHead) -> u64 {
        let owned =
            |owner: &Owner| owner.sections.values().filter_map(|owned| Some(owned.content_version?.term)).fold(owner.term, u64::max);
        let here = self.owners.get(id).map_or(0, owned);
        let rows = self.messages.rows.get(id);
        let stored = rows.into_iter().flat_map(|rows| rows.own.values()).filter_map(|record| Some(record.content_version?.term)).max();
        let tried = self.messages.terms_tried.get(id).copied().unwrap_or(0);
        let term = card.manifest.version.term.max(here).max(stored.unwrap_or(0)).max(tried) + 1;
        self.messages.terms_tried.insert(*id, term);
        term
    }

    /// A put of an import is over.
    pub(crate) fn import_put(&mut self, import: u64, name: &str, result: Result<PutReport, CallError>) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        let id = state.agent;
        match result {
            Err(error @ CallError::Fenced { .. }) => return self.import_refused(import, error),
            Err(error) if state.stage == Stage::Fencing => return self.import_refused(import, error),
            Err(error) => {
                // It is on this disk now, and is put again until it is placed.
                if let Some(step) = state.sections.get_mut(name) {
                    step.error = Some(error);
                    step.over = true;
                }
            }
            Ok(report) => {
                state.stale_until_ms = state.stale_until_ms.max(report.stale_until_ms);
                if let Some(step) = state.sections.get_mut(name) {
                    step.put = Some(report);
                    step.over = true;
                }
            }
        }
        if state.stage == Stage::Fencing {
            let head = self.owners.get(&id).and_then(|owner| owner.sections.get("card")?.head.clone());
            let Some(state) = self.imports.get_mut(&import) else { return };
            state.fence = head;
            state.stage = Stage::Index;
            return self.import_get(import, "index", Mode::Atomic);
        }
        self.import_progress(import);
    }

    /// Behind the fence: a section was read. Keep it, and put it in the new term.
    fn import_took(&mut self, import: u64, name: &str, got: Got, aborted: &[Digest]) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        let id = state.agent;
        // What an agent was doing a moment ago says nothing about who it is.
        if got.value.fresh == Freshness::MaybeStale && is_worth_looking_for(got.value.head.manifest.class) {
            state.mode = Mode::Any;
            // Nobody can say that no newer version is out there: the old one's lifetime bounds the doubt.
            state.stale_until_ms =
                state.stale_until_ms.max(Some(got.value.head.expires_at_ms().max(got.value.head.manifest.renew_until_ms)));
        }
        let Some(owner) = self.owners.get_mut(&id) else { return };
        let mut owned = adopted(&id, &state.root, name, &got.value.head, got.value.content, self.now.wall_ms);
        // What the old host left undecided may be certified yet, or was a moment ago: its holders are told of what follows, too.
        let host = (owner.term, self.me.device());
        let seen = got.value.prepared_seen.iter().filter(|left| is_of_lower_host(left, host) && !aborted.contains(&left.hash()));
        seen.for_each(|left| owned.remember_set(left));
        let context = SealContext { agent: id, section: owned.key, content_version: got.value.head.manifest.content_version };
        let fields = match seal::open(&owned.stored, &owner.recovery, &context) {
            Ok((epoch, fields)) => {
                owned.epoch = Some(epoch);
                fields
            }
            Err(error) => {
                let error = CallError::Unreadable { what: got.report.section, reason: error.to_string() };
                return self.import_missed(import, name, error);
            }
        };
        owned.waiting_next.push(PutWaiter::Import { import });
        owned.due_us = Some(self.now.mono_us);
        owner.sections.insert(name.to_owned(), owned);
        let step = state.sections.entry(name.to_owned()).or_default();
        step.get = Some(got.report);
        if name == "index" {
            match Index::from_fields(&fields) {
                Ok(index) => state.index = index,
                Err(error) => {
                    let what = format!("{}/index", id.to_did());
                    return self.import_refused(import, CallError::Unreadable { what, reason: error.to_string() });
                }
            }
        }
        if name == "core" {
            let personality = match Personality::from_fields(&fields, id) {
                Ok(personality) => personality,
                Err(error) => {
                    let what = format!("{}/core", id.to_did());
                    return self.import_refused(import, CallError::Unreadable { what, reason: error.to_string() });
                }
            };
            let bound = state.card.as_ref().is_some_and(|(card, _)| card.commitment == personality.commitment());
            if !bound {
                let what = format!("{}/core", id.to_did());
                let reason = "its personality is not the one that the card commits to".to_owned();
                return self.import_refused(import, CallError::Unreadable { what, reason });
            }
            match Identity::new(state.root.clone(), personality, owner.term, &persona_agent::order::OFFERED_DEFAULT) {
                Ok(identity) => {
                    let name = state.name.clone().unwrap_or_else(|| id.to_did());
                    let mut agent = Agent::new(name, identity);
                    agent.index = state.index.clone();
                    owner.agent = Some(Box::new(agent));
                }
                Err(error) => {
                    let what = format!("{}/core", id.to_did());
                    self.import_refused(import, CallError::Unreadable { what, reason: error.to_string() });
                }
            }
        } else {
            state.sections.entry(name.to_owned()).or_default();
            if name != "index" {
                self.messages.imported.entry(id).or_default().push((name.to_owned(), fields));
            }
        }
    }

    /// Something is over: go on with what is left, or finish.
    fn import_progress(&mut self, import: u64) {
        let Some(state) = self.imports.get_mut(&import) else { return };
        match state.stage {
            Stage::Looking | Stage::Keeping | Stage::Fencing => {}
            Stage::Index => {
                if !state.sections.get("index").is_some_and(|step| step.over) {
                    return;
                }
                state.stage = Stage::Sections;
                let mut names = vec![("core".to_owned(), Class::Core)];
                for (name, entry) in state.index.iter() {
                    if !entry.removed && !matches!(name, "core" | "index" | "card") {
                        names.push((name.to_owned(), entry.class));
                    }
                }
                for (name, class) in &names {
                    state.sections.insert(name.clone(), Step { class: Some(*class), ..Step::default() });
                }
                for (name, _) in names {
                    self.import_get(import, &name, Mode::Atomic);
                }
            }
            Stage::Sections => {
                if state.sections.values().all(|step| step.over) {
                    self.import_done(import);
                }
            }
        }
    }

    fn import_done(&mut self, import: u64) {
        let Some(state) = self.imports.remove(&import) else { return };
        let id = state.agent;
        let fields = self.messages.imported.remove(&id).unwrap_or_default();
        let now_us = self.now.mono_us;
        let rows = self.messages.rows.remove(&id).unwrap_or_default();
        self.messages.strays.remove(&id);
        let key = state.root.local_key();
        let Some(owner) = self.owners.get_mut(&id) else { return };
        let term = owner.term;
        let mut problems = Vec::new();
        if let Some(agent) = owner.agent.as_mut() {
            agent.came_ms = self.now.wall_ms;
            for (name, fields) in fields {
                if let Err(error) = agent.take_section(&name, &fields, &*self.keys.verifier) {
                    problems.push((name, error));
                }
            }
        }
        // Partners that this disk knows from an earlier stay: what it kept of them is older than what came, and goes.
        let mut partners: BTreeSet<OwnerKey> = rows.partners().collect();
        for agent in [state.before.as_ref().and_then(|before| before.agent.as_ref()), owner.agent.as_ref()].into_iter().flatten() {
            partners.extend(agent.pairs.keys().chain(agent.relationships.keys()));
        }
        for (name, owned) in &mut owner.sections {
            owned.lease_as(name, self.config.classes.of(owned.class));
            if owned.due_us.is_none() && owned.op.is_none() {
                owned.due_us = Some(now_us + owned.ttl_ms * 1000 / 3);
            }
        }
        let mut writes: Vec<Write> =
            owner.sections.values().map(|owned| Write::set(Table::Own, owned.key.0, wire::encode(&owned.record(&id)))).collect();
        for partner in partners {
            writes.extend([ROW_PAIR, ROW_RELATIONSHIP].map(|what| Write::remove(Table::Meta, partner_row(what, &id, &partner))));
            writes.extend(self.pair_writes(&id, &partner));
        }
        writes.extend(self.continue_messages(&id, &key, rows));
        let mut complete = problems.is_empty();
        let mut missing = Vec::new();
        let sections: Vec<ImportedSection> = state
            .sections
            .into_iter()
            .map(|(name, step)| {
                let problem = problems.iter().find(|(other, _)| *other == name).map(|(_, error)| error.clone());
                let stale = step.get.as_ref().is_some_and(|get| get.fresh == "maybe-stale");
                let section_state = match (&step.get, &step.put, &step.error) {
                    (_, Some(_), _) if stale => "stale",
                    (_, Some(_), _) => "taken-over",
                    // Read, and on this disk; it is put again until it is placed.
                    (Some(_), None, _) => "stale",
                    // What an agent was doing a while ago is meant to be gone.
                    (None, None, Some(CallError::NotFound { .. })) if step.class == Some(Class::Active) => "expired",
                    _ => "missing",
                };
                complete &= section_state != "missing" || !step.class.is_none_or(is_worth_looking_for);
                if section_state == "missing" && step.class.is_none_or(is_worth_looking_for) {
                    missing.push(name.clone());
                }
                let error = problem.or_else(|| step.error.map(|error| error.to_string()));
                ImportedSection { section: name, state: section_state, error, get: step.get, put: step.put }
            })
            .collect();
        if let Some(agent) = self.owners.get_mut(&id).and_then(|owner| owner.agent.as_mut()) {
            for name in missing {
                let life_ms = agent.index.get(&name).map_or(0, IndexEntry::life_ms);
                agent.missing.insert(name, Missing::since(now_us, life_ms));
            }
        }
        let mode = match state.mode {
            Mode::Any => "any",
            Mode::Regular => "regular",
            Mode::Atomic => "atomic",
        };
        let report = ImportReport {
            agent: id.to_did(),
            name: state.name.unwrap_or_else(|| id.to_did()),
            term,
            import_source: "mesh",
            mode,
            complete,
            bounded_stale_until_ms: state.stale_until_ms,
            sections,
            ms: (now_us - state.started_us) as f64 / 1000.0,
        };
        self.announce(&id);
        // Told too early, a crash would leave it with what this disk kept from an earlier stay.
        self.persist(writes, AfterPersist::Imported { call: state.call, agent: id, report: Box::new(report) });
    }

    /// All that an imported agent is, is durable: now the keystore says that it lives here.
    pub(crate) fn agent_came(&mut self, call: Option<u64>, id: OwnerKey, report: Option<Box<ImportReport>>) {
        match self.agent_answer(&id, None) {
            Ok(Answer::Agent { name, root, seed, term, .. }) => {
                self.keep(id, Keep::Home { name, root, seed, term }, AfterKeep::Home { call, agent: id, report });
            }
            answer => self.answer_import(call, answer),
        }
    }

    /// The keystore says so, or could not be written.
    pub(crate) fn agent_is_home(&mut self, call: Option<u64>, id: OwnerKey, report: Option<Box<ImportReport>>, result: Result<(), String>) {
        if let Err(reason) = result {
            let error = CallError::NotKept(reason);
            self.try_again(&id, &error);
            return self.answer_import(call, Err(error));
        }
        self.pending.remove(&id);
        if let Some(owner) = self.owners.get_mut(&id).filter(|owner| owner.state == OwnerState::Importing) {
            owner.state = OwnerState::Live;
        }
        if call.is_none() {
            self.count("imports_finished_alone");
        }
        let answer = self.agent_answer(&id, report);
        self.answer_import(call, answer);
    }

    /// The agent that goes by `name` here, or will once it has come.
    pub(crate) fn agent_named(&self, name: &str) -> Option<OwnerKey> {
        let here = self.owners.values().find(|owner| owner.agent.as_ref().is_some_and(|agent| agent.name == name)).map(|owner| owner.id);
        here.or_else(|| self.pending.iter().find(|(_, pending)| pending.name == name).map(|(id, _)| *id))
    }

    pub(crate) fn agent_reports(&self) -> Vec<AgentReport> {
        let absent = self.pending.iter().filter(|(id, _)| self.owners.get(id).is_none_or(|owner| owner.agent.is_none()));
        let coming = absent.map(|(id, pending)| self.pending_report(id, pending));
        let here = self.owners.values().filter_map(|owner| {
            let agent = owner.agent.as_ref()?;
            Some(AgentReport {
                agent: owner.id.to_did(),
                name: agent.name.clone(),
                role: agent.identity.personality().role().map(str::to_owned),
                term: owner.term,
                home: self.me.to_peer_id_string(),
                state: match owner.state {
                    _ if self.pending.contains_key(&owner.id) => "importing",
                    OwnerState::Unpublished => "unpublished",
                    OwnerState::Live => "live",
                    OwnerState::Importing => "importing",
                    OwnerState::Fenced(_) => "fenced",
                },
                relationships: agent.relationships.len(),
                missing: agent.missing.keys().cloned().collect(),
                card: owner.sections.get("card").and_then(|owned| card_report(&owned.stored, &*self.keys.verifier)),
                sections: self.section_reports(&owner.id),
            })
        });
        here.chain(coming).collect()
    }

    pub(crate) fn read_secrets(&mut self, call: u64, id: OwnerKey) {
        let answer = match self.agent_answer(&id, None) {
            Err(_) if self.pending.contains_key(&id) => Err(CallError::Busy(format!("{} is on its way here", id.to_did()))),
            answer => answer,
        };
        self.reply(call, answer);
    }
}

impl Agent {
    pub(crate) fn new(name: String, identity: Identity) -> Self {
        Self {
            name,
            identity,
            index: Index::new(),
            relationships: BTreeMap::new(),
            pairs: BTreeMap::new(),
            missing: BTreeMap::new(),
            came_ms: 0,
            active_until_us: 0,
            next_inbox: 1,
        }
    }

    /// Takes up what a section of the agent says about its partners.
    pub(crate) fn take_section(&mut self, name: &str, fields: &Fields, verifier: &dyn Verifier) -> Result<(), String> {
        let partner = |did: &str| OwnerKey::from_did(did).ok_or_else(|| format!("section {name} names no agent"));
        if let Some(did) = name.strip_prefix("relationship/") {
            let partner = partner(did)?;
            let relationship = Relationship::from_fields(fields, self.identity.agent(), verifier).map_err(|error| error.to_string())?;
            self.relationships.insert(partner, relationship);
        } else if let Some(did) = name.strip_prefix("keys/") {
            let partner = partner(did)?;
            self.pairs.insert(partner, PairState::from_fields(fields).map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

fn is_of_lower_host(manifest: &SignedManifest, host: (u64, DeviceId)) -> bool {
    (manifest.version.term, manifest.version.device) < host
}

/// A section as another host left it: its bytes, its head, and its holders still to be told of what comes next.
pub(crate) fn adopted(id: &OwnerKey, root: &RootSecret, name: &str, head: &CertifiedHead, stored: Vec<u8>, now_ms: u64) -> Owned {
    let manifest = &head.manifest;
    let mut owned = Owned::new(id, root, name, manifest.class, manifest.ttl_ms, manifest.level);
    owned.stored = stored;
    owned.content_version = Some(manifest.content_version);
    owned.renew_ms = manifest.renew_ms();
    owned.live = manifest.older.clone();
    owned.remember_lease(head, now_ms);
    owned.head = Some(head.clone());
    owned.placed = head.certificate.acks.len() as u8;
    owned
}
