//! The sections service, reading half: from a question to a value that is known to be fresh, or an error that says who is silent
//! (docs/spec/quorum.md#get).

use persona_agent::{Card, Personality};
use persona_fragments::{
    CertifiedHead, Fields, Manifest, OwnerKey, PeerKey, SealContext, SectionKey, Verifier, Version,
    coding::shard_matches,
    mutants::{self, Mutant},
    seal, wire,
};
use persona_mesh_proto::{
    Answered, Freshness, Get, GetError, GetOut, GetTask, GetValue, Mode, Reply, Request, Response, Table, Tag, Write, clock_allowance_ms,
};
use zeroize::Zeroizing;

use crate::{
    call::{Answer, CallError},
    node::{HEADS_CACHED_MAX, Node, Op, OpId, Output},
    report::{AnalysisReport, CardReport, CertificateReport, GetReport, HolderReport, ReadableReport},
    sections::expires_in_s,
    traffic::AfterPersist,
};

/// Floors that one node remembers. Beyond it the one that expires first is forgotten.
const FLOORS_MAX: usize = 100_000;

/// The highest version of a section that this node has returned, or is about to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    pub(crate) version: Version,
    /// When it no longer matters, in milliseconds since the Unix epoch.
    pub(crate) until_ms: u64,
    /// Whether the disk has it. Nothing is returned before.
    pub(crate) durable: bool,
}

/// One get on its way.
pub(crate) struct GetOp {
    pub(crate) wanted: Wanted,
    pub(crate) purpose: GetPurpose,
    pub(crate) started_us: u64,
    /// A cached head was used: if that fails, a lookup may know better.
    from_cache: bool,
    stage: GetStage,
}

enum GetStage {
    Lookup,
    Running(Box<Get>),
    /// The floor is on its way to the disk; then the value is returned.
    Floor(Box<GetValue>),
}

/// How long a survey waits for the slowest holder.
const SURVEY_US: u64 = 2_000_000;

/// All holders of one version are asked what they have.
pub(crate) struct Survey {
    call: u64,
    head: CertifiedHead,
    /// By index: the answer's name, and whether the shard came along and is the right one.
    answers: Vec<Option<(&'static str, bool)>>,
    pub(crate) deadline_us: u64,
}

impl Survey {
    fn judge(&self, index: u8, reply: Reply) -> (&'static str, bool) {
        let answer = match reply {
            Reply::Answer(Response::Head(answer)) => answer,
            Reply::Answer(Response::Recovering) => return ("recovering", false),
            Reply::Answer(_) => return ("invalid", false),
            Reply::Unreachable => return ("unreachable", false),
        };
        let manifest = &self.head.manifest;
        let has_shard = answer.shard.is_some_and(|shard| shard.index == index && shard_matches(manifest, index, &shard.bytes));
        let this = manifest.wire();
        match answer.committed {
            Some(head) if head.manifest == *this => ("committed", has_shard),
            // A version that was certified while we asked, or an older one: either way not the one that was asked about.
            Some(_) => ("older", has_shard),
            None if answer.prepared.iter().any(|prepared| prepared.manifest == *this) => ("prepared", has_shard),
            None => ("absent", has_shard),
        }
    }
}

/// What a value is wanted for.
#[derive(Clone, Debug)]
pub(crate) enum GetPurpose {
    /// A section, for a call.
    Section { call: u64, agent: OwnerKey, name: String },
    /// A personality, for a call.
    Personality { call: u64, agent: OwnerKey },
    /// The card of an agent that does not live here, to explain a refusal.
    Stranger { call: u64, agent: OwnerKey },
    /// The state of a section, for a call; the call fails if the read does.
    Analyze { call: u64, must_read: bool },
    /// Versions of this node's own of unknown outcome: whichever the holders have acked enough is completed by reading.
    Complete { agent: OwnerKey, name: String },
    /// A certified head, for a call.
    Certificate { call: u64 },
    /// A section as it is stored, for a call.
    Fetch { call: u64 },
    /// A benchmark's get.
    Bench { call: u64 },
    /// An agent's card, for messages that wait for it.
    Card { agent: OwnerKey, mode: Mode },
    /// A step of an import.
    Import { import: u64, name: String },
    /// The holders of a lease that lack their shards.
    Refill { lacking: Vec<u8> },
    /// What the holders have made of a section while its owner was away.
    Found { agent: OwnerKey, name: String },
    /// A section that an import had to go without.
    Missing { agent: OwnerKey, name: String },
    /// The canary.
    Canary,
}

/// What a get brought, opened as far as this node can.
pub(crate) struct Got {
    pub(crate) value: GetValue,
    pub(crate) report: GetReport,
}

impl GetOp {
    pub(crate) fn deadline(&self) -> Option<u64> {
        match &self.stage {
            GetStage::Running(get) => get.deadline(),
            GetStage::Lookup | GetStage::Floor(_) => None,
        }
    }
}

/// What to get; the rest is the node's own.
pub(crate) struct Wanted {
    pub(crate) key: SectionKey,
    pub(crate) owner: Option<OwnerKey>,
    pub(crate) label: String,
    pub(crate) mode: Mode,
    pub(crate) fence: Option<CertifiedHead>,
    pub(crate) want_content: bool,
}

impl Node {
    /// Begins a get: at the known holders if there is a head to start from, else with a lookup.
    pub(crate) fn begin_get(&mut self, wanted: Wanted, purpose: GetPurpose) {
        let op = self.id();
        let key = wanted.key;
        let known = self.known_head(&key);
        let get = GetOp { wanted, purpose, started_us: self.now.mono_us, from_cache: known.is_some(), stage: GetStage::Lookup };
        self.ops.insert(op, Op::Get(Box::new(get)));
        match known {
            Some(head) => self.start_get(op, Vec::new(), Some(head)),
            None => self.lookup_for(op, key),
        }
    }

    pub(crate) fn lookup_for(&mut self, op: OpId, key: SectionKey) {
        let id = self.id();
        self.lookups.insert(id, op);
        self.out.push(Output::Lookup { id, key: key.to_kad_key().into_bytes() });
    }

    /// The newest unexpired head that this node knows of: its own, one it holds, or one it read.
    fn known_head(&self, key: &SectionKey) -> Option<CertifiedHead> {
        let own = self.own_section(key).and_then(|(id, name)| self.owners.get(&id)?.sections.get(&name)?.head.clone());
        [own, self.holder.head(key, self.now), self.heads.get(key).cloned()]
            .into_iter()
            .flatten()
            .filter(|head| head.expires_at_ms() > self.now.wall_ms)
            .max_by_key(|head| (head.manifest.version, head.generation()))
    }

    /// A lookup is back.
    pub(crate) fn on_found(&mut self, id: u64, peers: Vec<PeerKey>) {
        let Some(op) = self.lookups.remove(&id) else { return };
        match self.ops.get(&op) {
            Some(Op::Put(_)) => self.put_looked_up(op, peers),
            Some(Op::Recover(_)) => self.recovery_looked_up(op, peers),
            Some(Op::Renewal(_)) => self.renewal_looked_up(op, peers),
            Some(Op::Survey(_) | Op::Settle(_) | Op::Repair(_) | Op::Ping(_) | Op::Probe(_)) => {}
            Some(Op::Get(get)) => {
                let known = self.known_head(&get.wanted.key);
                let mut candidates = peers;
                for holder in self.known_holders(&get.wanted.key) {
                    if !candidates.contains(&holder) {
                        candidates.push(holder);
                    }
                }
                // This node may hold it itself.
                candidates.push(self.me);
                self.start_get(op, candidates, known);
            }
            None => {}
        }
    }

    fn start_get(&mut self, op: OpId, candidates: Vec<PeerKey>, known: Option<CertifiedHead>) {
        let Some(Op::Get(get)) = self.ops.get_mut(&op) else { return };
        let task = GetTask {
            key: get.wanted.key,
            owner: get.wanted.owner,
            mode: get.wanted.mode,
            candidates,
            known,
            floor: self.floors.get(&get.wanted.key).map(|floor| floor.version),
            fence: get.wanted.fence.clone(),
            hedge_after_us: self.rtts.p95_us(),
            want_content: get.wanted.want_content,
        };
        let (running, outs) = Get::start(task, self.now);
        get.stage = GetStage::Running(Box::new(running));
        self.run_get(op, outs);
    }

    pub(crate) fn get_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Get(get)) = self.ops.get_mut(&op) else { return };
        let GetStage::Running(running) = &mut get.stage else { return };
        let outs = running.reply(tag, reply, self.now, &*self.keys.verifier);
        let evidence = running.take_evidence();
        self.run_get(op, outs);
        if let Some(evidence) = evidence {
            self.witness(*evidence);
        }
    }

    pub(crate) fn get_due(&mut self, op: OpId) {
        let Some(Op::Get(get)) = self.ops.get_mut(&op) else { return };
        let GetStage::Running(running) = &mut get.stage else { return };
        let outs = running.tick(self.now);
        self.run_get(op, outs);
    }

    fn run_get(&mut self, op: OpId, outs: Vec<GetOut>) {
        for out in outs {
            match out {
                GetOut::Send { tag, to, request } => self.send_request(op, tag, to, request),
                GetOut::Done(Ok(value)) => self.get_done(op, value),
                GetOut::Done(Err(error)) => self.get_failed(op, error),
            }
        }
        self.note_deadline(op);
    }

    /// Remembers a head, unless a newer one of its section is known: gets begin with it. When there are too many, the one that expires first goes.
    pub(crate) fn remember_head(&mut self, head: CertifiedHead) {
        let key = head.manifest.key;
        if self.heads.len() >= HEADS_CACHED_MAX && !self.heads.contains_key(&key) {
            let first = self.heads.iter().min_by_key(|(_, head)| head.expires_at_ms()).map(|(key, _)| *key);
            first.and_then(|first| self.heads.remove(&first));
        }
        let rank = |head: &CertifiedHead| (head.manifest.version, head.generation());
        if self.heads.get(&key).is_none_or(|known| rank(known) <= rank(&head)) {
            self.heads.insert(key, head);
        }
    }

    /// A value is there. If it is newer than what was read before, the floor is made durable before anybody sees it.
    fn get_done(&mut self, op: OpId, value: Box<GetValue>) {
        let manifest = &value.head.manifest;
        let (key, version) = (manifest.key, manifest.version);
        let expires_ms = value.head.expires_at_ms();
        // Its holders may renew it, and an older version as well.
        let until_ms = expires_ms.max(manifest.renew_until_ms) + clock_allowance_ms(manifest.class);
        self.remember_head(value.head.clone());
        let floor = self.floors.get(&key).copied().filter(|floor| floor.version >= version);
        if let Some(Op::Get(get)) = self.ops.get_mut(&op) {
            get.stage = GetStage::Floor(value);
        }
        if floor.is_some_and(|floor| floor.durable) {
            return self.get_floor_durable(op);
        }
        // A floor that another get is writing is written again: batches become durable in order, so this one waits for that.
        let floor = floor.unwrap_or(Floor { version, until_ms, durable: false });
        let mut writes = vec![Write::set(Table::Floor, key.0, wire::encode(&(floor.version, floor.until_ms)))];
        if self.floors.len() >= FLOORS_MAX && !self.floors.contains_key(&key) {
            let first = self.floors.iter().min_by_key(|(_, floor)| floor.until_ms).map(|(key, _)| *key);
            if let Some(first) = first {
                self.floors.remove(&first);
                writes.push(Write::remove(Table::Floor, first.0));
            }
        }
        self.floors.insert(key, floor);
        self.persist(writes, AfterPersist::Floor { op, key, version: floor.version });
    }

    /// A floor is on the disk, unless a higher one has been begun since.
    pub(crate) fn floor_durable(&mut self, op: OpId, key: &SectionKey, version: &Version) {
        if let Some(floor) = self.floors.get_mut(key).filter(|floor| floor.version == *version) {
            floor.durable = true;
        }
        self.get_floor_durable(op);
    }

    pub(crate) fn load_floor(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let key = SectionKey(key.try_into().map_err(|_| "a floor's key has not 32 bytes".to_owned())?);
        let (version, until_ms) = wire::decode(value).map_err(|error| format!("a floor does not decode: {error}"))?;
        if !mutants::on(Mutant::FloorForgotten) {
            self.floors.insert(key, Floor { version, until_ms, durable: true });
        }
        Ok(())
    }

    fn get_floor_durable(&mut self, op: OpId) {
        let Some(Op::Get(get)) = self.ops.remove(&op) else { return };
        let get = *get;
        let GetStage::Floor(value) = get.stage else { return };
        let value = *value;
        let manifest = &value.head.manifest;
        let over = self.now.wall_ms >= value.head.expires_at_ms() + clock_allowance_ms(manifest.class);
        if over && !mutants::on(Mutant::AcceptExpired) {
            // Its life ended while the disk took its time, or while this machine slept.
            let replied = value.answers.iter().filter(|(_, said)| answered(*said)).count();
            let error = CallError::NotFound { what: get.wanted.label, asked: value.answers.len() as u32, answered: replied as u32 };
            self.count("gets_failed");
            return self.got(get.purpose, Err(error));
        }
        let lacking = if let GetPurpose::Refill { lacking } = &get.purpose { lacking.clone() } else { Vec::new() };
        self.repair_read(&value, &lacking);
        let report = self.get_report(&get.wanted.label, get.wanted.mode, &value, get.started_us);
        self.count("gets");
        self.got(get.purpose, Ok(Got { value, report }));
    }

    fn get_report(&self, label: &str, mode: Mode, value: &GetValue, started_us: u64) -> GetReport {
        let manifest = &value.head.manifest;
        let holders_answered = value
            .head
            .holders()
            .iter()
            .filter(|holder| value.answers.iter().any(|(peer, said)| peer == *holder && answered(*said)))
            .count();
        GetReport {
            section: label.to_owned(),
            kad_key: manifest.key.to_kad_key(),
            version: manifest.version.to_string(),
            mode: mode_name(mode),
            fresh: match value.fresh {
                Freshness::MaybeStale => "maybe-stale",
                Freshness::Regular => "regular",
                Freshness::Atomic => "atomic",
            },
            n: manifest.shape.n(),
            k: manifest.shape.k(),
            f: manifest.shape.f(),
            level: manifest.shape.level_at((value.head.certificate.acks.len()).min(255) as u8),
            holders_answered: holders_answered as u32,
            shards_from_network: value.shards_from.iter().filter(|(peer, _)| *peer != self.me).count() as u32,
            age_ms: self.now.wall_ms.saturating_sub(manifest.issued_at_ms),
            expires_in_s: expires_in_s(value.head.expires_at_ms(), self.now.wall_ms),
            lease_until_ms: lease_until_ms(manifest),
            ms: (self.now.mono_us - started_us) as f64 / 1000.0,
        }
    }

    fn get_failed(&mut self, op: OpId, error: GetError) {
        let Some(Op::Get(get)) = self.ops.get_mut(&op) else { return };
        // The cached holder set may be one that everybody left. Whoever is closest to the key may know a later one.
        let stale_start = get.from_cache && !matches!(error, GetError::Fenced { .. } | GetError::Poisoned { .. });
        if stale_start {
            get.from_cache = false;
            get.stage = GetStage::Lookup;
            let key = get.wanted.key;
            self.heads.remove(&key);
            return self.lookup_for(op, key);
        }
        let Some(Op::Get(get)) = self.ops.remove(&op) else { return };
        self.count("gets_failed");
        let what = get.wanted.label.clone();
        if let (GetPurpose::Analyze { call, must_read: false }, GetStage::Running(running)) = (&get.purpose, &get.stage)
            && let Some(head) = running.best()
        {
            // Not readable, and that is what the question was about.
            let (call, head) = (*call, head.clone());
            return self.begin_survey(call, head);
        }
        if let (GetPurpose::Complete { agent, name }, GetStage::Running(running)) = (&get.purpose, &get.stage) {
            // That nothing can be read is no reason to leave what crowds its holders.
            return self.settle_undecided(agent, name, running.prepared_seen());
        }
        let error = match error {
            GetError::NotFound { asked, answered } => CallError::NotFound { what, asked: asked as u32, answered: answered as u32 },
            GetError::Expired { .. } => {
                let answers = match &get.stage {
                    GetStage::Running(running) => running.answers(),
                    GetStage::Lookup | GetStage::Floor(_) => Vec::new(),
                };
                let replied = answers.iter().filter(|(_, said)| answered(*said)).count();
                CallError::NotFound { what, asked: answers.len() as u32, answered: replied as u32 }
            }
            GetError::Unavailable { have, need, asked, .. } => {
                CallError::Unavailable { what, have: have.into(), need: need.into(), asked: asked.into() }
            }
            GetError::QuorumUnreachable { have, need, .. } => CallError::QuorumUnreachable { what, have: have as u32, need: need as u32 },
            GetError::DataLost { lost, n, version: _ } => {
                let have = n.saturating_sub(lost);
                let need = match &get.stage {
                    GetStage::Running(running) => running.best().map_or(0, |head| head.manifest.shape.k()),
                    GetStage::Lookup | GetStage::Floor(_) => 0,
                };
                CallError::DataLost { what, have: have.into(), need: need.into() }
            }
            GetError::Poisoned { .. } => CallError::Poisoned { what },
            GetError::BelowFloor { .. } => CallError::Unreadable { what, reason: error.to_string() },
            GetError::Fenced { by } => CallError::Fenced { term: by.manifest.version.term },
        };
        self.got(get.purpose, Err(error));
    }

    /// A get is over: whoever wanted it goes on.
    fn got(&mut self, purpose: GetPurpose, result: Result<Got, CallError>) {
        match purpose {
            GetPurpose::Section { call, agent, name } => {
                let answer = result.and_then(|got| {
                    let fields = self.open(&agent, &name, &got.value)?;
                    let content = if let Some(document) = fields.get("document") {
                        document.to_vec()
                    } else {
                        // The node's own sections hold keys and seeds: their fields are named and fingerprinted, never shown.
                        let shown = fields.iter().map(|(name, value)| {
                            format!("{name}: {} bytes, BLAKE3 {}\n", value.len(), persona_fragments::coding::content_hash(value))
                        });
                        shown.collect::<String>().into_bytes()
                    };
                    Ok(Answer::Section { get: Box::new(got.report), content: Zeroizing::new(content) })
                });
                self.reply(call, answer);
            }
            GetPurpose::Personality { call, agent } => {
                let answer = result.and_then(|got| {
                    let fields = self.open(&agent, "core", &got.value)?;
                    let personality = Personality::from_fields(&fields, agent)
                        .map_err(|error| CallError::Unreadable { what: got.report.section.clone(), reason: error.to_string() })?;
                    Ok(Answer::Personality {
                        get: Box::new(got.report),
                        name: personality.name().to_owned(),
                        document: personality.to_json(),
                        attributes: personality.attributes().to_vec(),
                    })
                });
                self.reply(call, answer);
            }
            GetPurpose::Stranger { call, agent } => {
                let card = result.ok().and_then(|got| {
                    read_card(&got.value, &agent, &*self.keys.verifier)?;
                    card_report(&got.value.content, &*self.keys.verifier).map(Box::new)
                });
                self.reply(call, Err(CallError::NotTheOwner { agent: agent.to_did(), card }));
            }
            GetPurpose::Analyze { call, .. } => match result {
                Ok(got) => self.begin_survey(call, got.value.head),
                Err(error) => self.reply(call, Err(error)),
            },
            GetPurpose::Complete { agent, name } => {
                if let Ok(got) = result {
                    self.settle_undecided(&agent, &name, got.value.prepared_seen);
                }
            }
            GetPurpose::Certificate { call } => {
                let answer = result.map(|got| {
                    let head = got.value.head;
                    Answer::Certificate { key: head.manifest.key, bytes: head.to_bytes() }
                });
                self.reply(call, answer);
            }
            GetPurpose::Fetch { call } => {
                let answer = result.map(|Got { value, report }| Answer::Fetched {
                    get: Box::new(report),
                    head: value.head.to_bytes(),
                    content: value.content,
                });
                self.reply(call, answer);
            }
            GetPurpose::Bench { call } => {
                let answer = result.map(|got| Answer::Section { get: Box::new(got.report), content: Zeroizing::new(got.value.content) });
                self.reply(call, answer);
            }
            GetPurpose::Card { agent, mode } => {
                let card = result.map(|got| read_card(&got.value, &agent, &*self.keys.verifier));
                self.card_came(agent, mode, card);
            }
            GetPurpose::Import { import, name } => self.import_got(import, &name, result),
            GetPurpose::Refill { .. } => {} // handed back already, or another reader's business
            GetPurpose::Found { agent, name } => self.section_found(agent, &name, result),
            GetPurpose::Missing { agent, name } => self.missing_got(agent, &name, result),
            GetPurpose::Canary => self.canary_got(result),
        }
    }

    /// Opens a section of an owner of this node.
    pub(crate) fn open(&self, id: &OwnerKey, name: &str, value: &GetValue) -> Result<Fields, CallError> {
        let owner = self.owners.get(id).ok_or_else(|| CallError::UnknownAgent(id.to_did()))?;
        let manifest = &value.head.manifest;
        if let Ok(payload) = seal::read_public(&value.content) {
            return Ok(Fields::new().with("document", payload));
        }
        let context = SealContext { agent: *id, section: manifest.key, content_version: manifest.content_version };
        seal::open(&value.content, &owner.recovery, &context)
            .map(|(_, fields)| fields)
            .map_err(|error| CallError::Unreadable { what: self.label(id, name), reason: error.to_string() })
    }

    pub(crate) fn get_section(&mut self, call: u64, agent: OwnerKey, name: String, mode: Mode) {
        let Some(owner) = self.owners.get(&agent) else { return self.stranger(call, agent) };
        let key = SectionKey::derive(&agent, &persona_agent::published_name(&owner.root, &name));
        let wanted = Wanted { key, owner: Some(agent), label: self.label(&agent, &name), mode, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Section { call, agent, name });
    }

    pub(crate) fn get_personality(&mut self, call: u64, agent: OwnerKey, mode: Mode) {
        if !self.owners.contains_key(&agent) {
            return self.stranger(call, agent);
        }
        let key = SectionKey::derive(&agent, b"core");
        let wanted = Wanted { key, owner: Some(agent), label: self.label(&agent, "core"), mode, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Personality { call, agent });
    }

    /// The agent's keys are elsewhere: its card is all that anybody may have.
    fn stranger(&mut self, call: u64, agent: OwnerKey) {
        let key = SectionKey::derive(&agent, b"card");
        let wanted =
            Wanted { key, owner: Some(agent), label: format!("{}/card", agent.to_did()), mode: Mode::Any, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Stranger { call, agent });
    }

    pub(crate) fn analyze(&mut self, call: u64, key: SectionKey, mode: Option<Mode>) {
        let label = self.own_section(&key).map_or_else(|| key.to_kad_key(), |(id, name)| self.label(&id, &name));
        let wanted = Wanted { key, owner: None, label, mode: mode.unwrap_or(Mode::Regular), fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Analyze { call, must_read: mode.is_some() });
    }

    /// Asks every holder of a version, and waits for all of them, where a get is content with a quorum.
    fn begin_survey(&mut self, call: u64, head: CertifiedHead) {
        let op = self.id();
        let key = head.manifest.key;
        let holders = head.holders().to_vec();
        let survey = Survey { call, answers: holders.iter().map(|_| None).collect(), head, deadline_us: self.now.mono_us + SURVEY_US };
        self.ops.insert(op, Op::Survey(Box::new(survey)));
        self.note_deadline(op);
        for (index, holder) in holders.into_iter().enumerate() {
            self.send_request(op, Tag(index as u32), holder, Request::Head { key, fence: None, with_shard: true });
        }
    }

    pub(crate) fn survey_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Survey(survey)) = self.ops.get_mut(&op) else { return };
        let index = tag.0 as usize;
        let said = survey.judge(index as u8, reply);
        if let Some(slot) = survey.answers.get_mut(index) {
            *slot = Some(said);
        }
        if survey.answers.iter().all(Option::is_some) {
            self.survey_done(op);
        }
    }

    pub(crate) fn survey_done(&mut self, op: OpId) {
        let Some(Op::Survey(survey)) = self.ops.remove(&op) else { return };
        let report = self.analysis(&survey);
        self.reply(survey.call, Ok(Answer::Analysis(Box::new(report))));
    }

    pub(crate) fn get_certificate(&mut self, call: u64, key: SectionKey) {
        let label = self.own_section(&key).map_or_else(|| key.to_kad_key(), |(id, name)| self.label(&id, &name));
        let wanted = Wanted { key, owner: None, label, mode: Mode::Regular, fence: None, want_content: false };
        self.begin_get(wanted, GetPurpose::Certificate { call });
    }

    pub(crate) fn fetch(&mut self, call: u64, key: SectionKey, mode: Mode) {
        let label = self.own_section(&key).map_or_else(|| key.to_kad_key(), |(id, name)| self.label(&id, &name));
        let wanted = Wanted { key, owner: None, label, mode, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Fetch { call });
    }

    pub(crate) fn bench_get(&mut self, call: u64, slot: u32) {
        let id = self.node_owner;
        let name = format!("bench/{slot}");
        let Some(owned) = self.owners.get(&id).and_then(|owner| owner.sections.get(&name)) else {
            return self.reply(call, Err(CallError::BadRequest("put the section before it is read".into())));
        };
        let wanted = Wanted { key: owned.key, owner: Some(id), label: name, mode: Mode::Regular, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Bench { call });
    }

    fn analysis(&self, survey: &Survey) -> AnalysisReport {
        let head = &survey.head;
        let manifest = &head.manifest;
        let holders: Vec<HolderReport> = head
            .holders()
            .iter()
            .zip(&survey.answers)
            .enumerate()
            .map(|(index, (holder, said))| {
                let (answer, has_shard) = said.unwrap_or(("unreachable", false));
                HolderReport { index: index as u8, peer_id: holder.to_peer_id_string(), answer, has_shard }
            })
            .collect();
        let replied = holders.iter().filter(|holder| holder.answer != "unreachable").count() as u32;
        let shards = holders.iter().filter(|holder| holder.has_shard).count() as u8;
        let counted = holders.iter().filter(|holder| matches!(holder.answer, "committed" | "prepared" | "older" | "absent")).count();
        let any = shards >= manifest.shape.k();
        AnalysisReport {
            kad_key: manifest.key.to_kad_key(),
            section: self.own_section(&manifest.key).map(|(id, name)| self.label(&id, &name)),
            agent: manifest.owner.to_did(),
            version: manifest.version.to_string(),
            content_version: manifest.content_version.to_string(),
            class: manifest.class.name(),
            n: manifest.shape.n(),
            k: manifest.shape.k(),
            f: manifest.shape.f(),
            level_asked: manifest.level,
            level_now: manifest.shape.level_at(shards),
            manifest_hash: manifest.hash().to_hex(),
            certificate: CertificateReport {
                acks: head.certificate.acks.len(),
                valid: head.certificate.verify(manifest, &*self.keys.verifier).is_ok(),
            },
            issued_at_ms: manifest.issued_at_ms,
            expires_in_s: expires_in_s(head.expires_at_ms(), self.now.wall_ms),
            lease_until_ms: lease_until_ms(manifest),
            content_len: manifest.content_len,
            answered: replied,
            readable: ReadableReport { any, regular: any && counted >= usize::from(manifest.shape.quorum()) },
            equivocation: self.equivocation_of(&manifest.owner),
            holders,
        }
    }
}

/// Until when its holders may renew it, if they may.
pub(crate) fn lease_until_ms(manifest: &Manifest) -> Option<u64> {
    manifest.is_leased().then_some(manifest.renew_until_ms)
}

/// Whether a peer said anything at all that counts as an answer.
fn answered(said: Answered) -> bool {
    matches!(said, Answered::Head(_))
}

/// The card in a section, if it is one and speaks of that agent.
pub(crate) fn read_card(value: &GetValue, agent: &OwnerKey, verifier: &dyn Verifier) -> Option<Card> {
    let card = Card::from_bytes(&seal::read_public(&value.content).ok()?, verifier).ok()?;
    (card.agent == *agent && card.term == value.head.manifest.version.term).then_some(card)
}

/// What a stored card says, and its bytes for whoever wants to check the signature.
pub(crate) fn card_report(stored: &[u8], verifier: &dyn Verifier) -> Option<CardReport> {
    let bytes = seal::read_public(stored).ok()?;
    let card = Card::from_bytes(&bytes, verifier).ok()?;
    Some(CardReport {
        agent: card.agent.to_did(),
        name: card.name.clone(),
        role: card.role.clone(),
        term: card.term,
        home: card.home.to_peer_id_string(),
        commitment: card.commitment.to_hex(),
        bytes: data_encoding::BASE64.encode(&bytes),
    })
}

pub(crate) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Any => "any",
        Mode::Regular => "regular",
        Mode::Atomic => "atomic",
    }
}
