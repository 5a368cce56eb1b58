//! The sections service, writing half: from changed content to a committed, placed and renewed version (docs/spec/quorum.md#put).
//!
//! ```text
//! change -> (coalesce) -> lookup -> choose holders, seal, encode, sign -> intent on disk -> two rounds -> committed
//!                            ^                                                                   |
//!                            └────────────── a third of the TTL, or a failure ──────────────────┘
//! ```

use std::collections::BTreeSet;

use persona_fragments::{
    CertifiedHead, Class, Equivocation, Fields, Manifest, OlderSet, OwnerKey, PeerKey, SealContext, SectionKey, Shape, SignedManifest,
    Version,
    coding::{content_hash, shard_hashes},
    encode,
    manifest::{RENEW_MS_MAX, TTL_MS_MAX},
    seal::{EpochKey, publish, seal},
    shape::LEVEL_MAX,
    wire,
};
use persona_mesh_proto::{
    Candidate, Mode, Put, PutError, PutOut, PutReceipt, PutTask, Reply, Table, Tag, Write, choose_diverse_holders, choose_holders,
    clock_allowance_ms,
};
use rand_core::Rng as _;

use crate::{
    call::{Answer, CallError},
    node::{Node, OPS_MAX, Op, OpId, Output},
    own::{Content, DOCUMENT_PREFIX, Owned, Owner, OwnerState, PutWaiter},
    probes::Probes,
    reads::{GetPurpose, Got, Wanted, lease_until_ms},
    report::{PutReport, SectionReport},
    settling::SettlePurpose,
    traffic::AfterPersist,
};

/// Attempts with other holders before those who wait are told; the section itself is tried again for ever, ever more slowly.
const ATTEMPTS_BEFORE_ERROR: u32 = 2;

/// The first pause after a failed put; it doubles up to [`RETRY_MAX_MS`].
const RETRY_MS: u64 = 1_000;

/// How often a host that was away asks the holders of a lease what they have made of it, before it puts without knowing.
const SEEKS_MAX: u8 = 3;

/// The longest pause between attempts.
const RETRY_MAX_MS: u64 = 30_000;

/// Failed renewals before a section that nobody waits for makes do with a lower level than it has.
const FAILURES_BEFORE_LESS: u32 = 4;

/// How soon after a peer came a section is put again that has fewer holders than it wants. A joining peer seldom comes alone.
const GROW_US: u64 = 3_000_000;

/// How long the result of a lookup is used again for the same section, as long as everybody in it is still connected.
const CANDIDATES_US: u64 = 10_000_000;

/// A version that was issued no longer ago was issued for the put that is on its way.
const FRESH_MS: u64 = 15_000;

/// Bytes of this size or more are not kept in memory twice, but encoded anew when a put begins.
const CONTENT_NAME_MAX: usize = persona_agent::index::SECTION_NAME_BYTES_MAX;

/// One put on its way.
pub(crate) struct PutOp {
    pub(crate) owner: OwnerKey,
    pub(crate) name: String,
    pub(crate) stage: PutStage,
    pub(crate) started_us: u64,
    pub(crate) renewal: bool,
    /// A version of unknown outcome that this one comes instead of.
    gives_up: Option<Box<SignedManifest>>,
    /// It completes an earlier version, and whoever waits wants newer content.
    held_back: bool,
}

pub(crate) enum PutStage {
    /// Who is there?
    Lookup,
    /// The intent is on its way to the disk.
    Intent(Box<PutTask>),
    /// Two rounds, then placement.
    Running(Box<Put>),
}

/// A put that is ready to go once its intent is durable.
struct Prepared {
    task: PutTask,
    writes: Vec<Write>,
    renewal: bool,
    gives_up: Option<Box<SignedManifest>>,
    held_back: bool,
}

impl PutOp {
    /// Holders that have signed for their shards so far.
    fn ackers(&self) -> BTreeSet<u8> {
        match &self.stage {
            PutStage::Running(put) => put.ackers().collect(),
            PutStage::Lookup | PutStage::Intent(_) => BTreeSet::new(),
        }
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        match &self.stage {
            PutStage::Running(put) => put.deadline(),
            PutStage::Lookup | PutStage::Intent(_) => None,
        }
    }
}

impl Node {
    fn owned(&mut self, owner: &OwnerKey, name: &str) -> Option<&mut Owned> {
        self.owners.get_mut(owner)?.sections.get_mut(name)
    }

    /// Gives a section new content, to be put soon. A section that is new to an agent is listed in its index first.
    pub(crate) fn change(&mut self, owner: &OwnerKey, name: &str, class: Class, content: Content, waiter: Option<PutWaiter>) {
        let spec = self.config.classes.of(class);
        let (ttl_ms, renew_ms) = (spec.ttl.as_millis() as u64, spec.renew_for.as_millis() as u64);
        self.change_with(owner, name, class, ttl_ms, renew_ms, spec.level, content, waiter);
    }

    /// [`Self::change`] with a lifetime and a level of its own.
    #[allow(clippy::too_many_arguments, reason = "one call site more would be a struct")]
    pub(crate) fn change_with(
        &mut self,
        id: &OwnerKey,
        name: &str,
        class: Class,
        ttl_ms: u64,
        renew_ms: u64,
        level: u8,
        content: Content,
        waiter: Option<PutWaiter>,
    ) {
        let soon = if waiter.is_some() { 0 } else { self.config.coalesce_ms * 1000 };
        let due_us = self.now.mono_us + soon;
        let Some(owner) = self.owners.get_mut(id) else { return };
        let mut listed = true;
        if !owner.sections.contains_key(name) {
            let mut owned = Owned::new(id, &owner.root, name, class, ttl_ms, level);
            // A section of the node's own, from before a restart: its versions go on, so that none is ever signed twice.
            if let Some(record) = self.messages.rows.get_mut(id).and_then(|rows| rows.own.remove(&owned.key)) {
                owned.continue_from(record);
                owned.intent = self.messages.intents.remove(&owned.key);
            }
            if *id == self.node_owner {
                // Also where this disk was lost or set back: a version that was signed once is never signed again.
                owned.last_seq = owned.last_seq.max(self.now.wall_ms);
            }
            if let Some(agent) = owner.agent.as_ref() {
                owned.forgotten_until_ms = owned.forgotten_until_ms.max(agent.may_live_unread_until_ms(name));
                listed = name == "index" || agent.index.get(name).is_some_and(|entry| entry.version.is_some() && !entry.removed);
                owned.unlisted = !listed;
            }
            owner.sections.insert(name.to_owned(), owned);
        }
        let Some(owned) = owner.sections.get_mut(name) else { return };
        owned.class = class;
        owned.ttl_ms = ttl_ms;
        owned.renew_ms = renew_ms.min(RENEW_MS_MAX);
        owned.level = level;
        owned.changed = Some(content);
        owned.due_us = Some(owned.due_us.map_or(due_us, |due| due.min(due_us)));
        owned.waiting_next.extend(waiter);
        if !listed {
            self.list_in_index(id, name);
        }
    }

    /// Commits a section's name in the index; only then is the section itself put.
    pub(crate) fn list_in_index(&mut self, id: &OwnerKey, name: &str) {
        let Some(owner) = self.owners.get_mut(id) else { return };
        let (Some(owned), Some(agent)) = (owner.sections.get(name), owner.agent.as_mut()) else { return };
        if let Err(error) = agent.index.list(name, owned.class, owned.level, owned.ttl_ms, owned.renew_ms) {
            let waiting = owner.sections.remove(name).map_or_else(Vec::new, |owned| owned.waiting_next);
            self.alarm(
                "index-full",
                format!(
                    "section {name} cannot be listed: {error}; store it under a name that the agent has already, or with another agent"
                ),
            );
            let error = CallError::TooLarge(error.to_string());
            return waiting.into_iter().for_each(|waiter| self.tell_put(id, name, waiter, Err(error.clone())));
        }
        self.put_index(id, Some(PutWaiter::Unlist { names: vec![name.to_owned()] }));
    }

    /// Puts the index as it is now.
    fn put_index(&mut self, id: &OwnerKey, waiter: Option<PutWaiter>) {
        let Some(agent) = self.owners.get(id).and_then(|owner| owner.agent.as_ref()) else { return };
        let fields = agent.index.to_fields();
        self.change(id, "index", Class::Core, Content::Fields(fields), waiter);
    }

    /// Somebody joined, or is back: sections with fewer holders than they want are put again soon.
    pub(crate) fn grow_sections(&mut self, peer: &PeerKey) {
        let soon_us = self.now.mono_us + GROW_US;
        let node_owner = self.node_owner;
        for owner in self.owners.values_mut().filter(|owner| owner.writes() && owner.id != node_owner) {
            for owned in owner.sections.values_mut() {
                owned.joined_meanwhile = owned.op.is_some();
                // Whoever had not answered has just shaken hands.
                owned.avoid.remove(peer);
                let small = owned.head.as_ref().is_some_and(|head| head.manifest.shape.n() < Shape::holders_wanted(owned.level));
                if let Some(due_us) = owned.due_us.filter(|due| small && *due > soon_us) {
                    owned.grow_from = Some(due_us);
                    owned.due_us = Some(soon_us);
                    owned.candidates = None;
                }
            }
        }
    }

    /// Starts every put that is due.
    pub(crate) fn tick_sections(&mut self) {
        let now_us = self.now.mono_us;
        let due: Vec<(OwnerKey, String)> = self
            .owners
            .values()
            .filter(|owner| owner.deadline().is_some_and(|at| at <= now_us))
            .flat_map(|owner| {
                owner
                    .sections
                    .iter()
                    .filter(|(_, owned)| owned.op.is_none() && !owned.unlisted && owned.due_us.is_some_and(|at| at <= now_us))
                    .map(|(name, _)| (owner.id, name.clone()))
            })
            .collect();
        for (owner, name) in due {
            if self.stops_for_idleness(&owner, &name) || self.refuses_unsynced(&owner, &name) {
                continue;
            }
            if self.ops.len() < OPS_MAX {
                self.begin_put(owner, name);
            } else if let Some(owned) = self.owned(&owner, &name) {
                owned.due_us = Some(now_us + RETRY_MS * 1000);
            }
        }
    }

    /// A `behavior` section of an agent that does nothing is not renewed: it expires.
    fn stops_for_idleness(&mut self, owner: &OwnerKey, name: &str) -> bool {
        let now_us = self.now.mono_us;
        let Some(owner) = self.owners.get_mut(owner) else { return true };
        let idle = name == "behavior" && owner.agent.as_ref().is_some_and(|agent| agent.active_until_us <= now_us);
        let Some(owned) = owner.sections.get_mut(name).filter(|owned| idle && owned.waiting_next.is_empty()) else { return false };
        owned.due_us = None;
        owned.changed = None;
        true
    }

    fn begin_put(&mut self, owner: OwnerKey, name: String) {
        if self.lists_first(&owner, &name) || self.begin_seek(owner, &name) {
            return;
        }
        let op = self.id();
        let started_us = self.now.mono_us;
        let Some(owned) = self.owned(&owner, &name) else { return };
        owned.op = Some(op);
        owned.due_us = None;
        owned.joined_meanwhile = false;
        let key = owned.key;
        let known =
            owned.candidates.take().filter(|(until, peers)| *until > started_us && peers.iter().all(|peer| self.neighbours.contains(peer)));
        let stage = PutStage::Lookup;
        self.ops.insert(
            op,
            Op::Put(Box::new(PutOp { owner, name: name.clone(), stage, started_us, renewal: false, gives_up: None, held_back: false })),
        );
        if let Some((until, peers)) = known {
            self.put_found(op, &peers);
            if let Some(owned) = self.owned(&owner, &name) {
                owned.candidates = Some((until, peers));
            }
            return;
        }
        let id = self.id();
        self.lookups.insert(id, op);
        self.out.push(Output::Lookup { id, key: key.to_kad_key().into_bytes() });
    }

    /// A section all of whose holder sets have expired is put like a new one, after an index that lists it: only that tells a host that was away
    /// whether another one has the agent by now (docs/spec/quorum.md#takeover). And a version may live longer than those before it only after an
    /// index that says so: whoever cannot read the section after a takeover goes by it. Whether it is listed first.
    fn lists_first(&mut self, id: &OwnerKey, name: &str) -> bool {
        let wall_ms = self.now.wall_ms;
        let Some(owner) = self.owners.get_mut(id).filter(|owner| owner.state == OwnerState::Live) else { return false };
        let (Some(agent), Some(owned)) = (owner.agent.as_mut(), owner.sections.get_mut(name)) else { return false };
        if agent.index.get(name).is_none_or(|entry| entry.removed) {
            return false;
        }
        let again = owned.class != Class::Active && !owned.listed_again && owned.has_run_out(wall_ms);
        owned.listed_again |= again;
        if !agent.index.may_live(name, owned.class, owned.ttl_ms, owned.renew_ms) && !again {
            return false;
        }
        owned.unlisted = true;
        self.put_index(id, Some(PutWaiter::Unlist { names: vec![name.to_owned()] }));
        true
    }

    /// A host that was away longer than its section lives asks what the holders have made of it: whom it tells of the next version depends on
    /// that. Whether it asks.
    fn begin_seek(&mut self, id: OwnerKey, name: &str) -> bool {
        let (op, wall_ms, label) = (self.id(), self.now.wall_ms, self.label(&id, name));
        let Some(owned) = self.owned(&id, name) else { return false };
        let away = |set: &OlderSet| set.renew_until_ms > 0 && set.expires_at_ms <= wall_ms && wall_ms < set.over_at_ms();
        let begun = owned.intended().map(|manifest| manifest.as_older_set());
        if owned.sought >= SEEKS_MAX || !owned.live.iter().chain(&begun).any(away) {
            return false;
        }
        (owned.op, owned.due_us) = (Some(op), None);
        owned.sought += 1;
        let key = owned.key;
        let wanted = Wanted { key, owner: Some(id), label, mode: Mode::Regular, fence: None, want_content: false };
        self.begin_get(wanted, GetPurpose::Found { agent: id, name: name.to_owned() });
        true
    }

    /// What the holders have made of a section, or nothing. The put that waits for it goes on either way.
    pub(crate) fn section_found(&mut self, id: OwnerKey, name: &str, result: Result<Got, CallError>) {
        let (now, me) = (self.now, self.me);
        let Some(term) = self.owners.get(&id).filter(|owner| owner.writes()).map(|owner| owner.term) else { return };
        let Some(owned) = self.owned(&id, name) else { return };
        (owned.op, owned.due_us) = (None, Some(now.mono_us));
        let Ok(Got { value, .. }) = result else {
            // A host that has just started knows nobody yet.
            owned.due_us = Some(now.mono_us + RETRY_MS * 1000);
            return;
        };
        owned.sought = SEEKS_MAX;
        let version = value.head.manifest.version;
        // What another host wrote is not gone on from: its put says so.
        if (version.term, version.device) == (term, me.device()) && owned.head.as_ref().is_none_or(|head| head.manifest.version <= version)
        {
            owned.last_seq = owned.last_seq.max(version.seq);
            // A put that a crash interrupted may be what was found: then it went through.
            if owned.intended().is_some_and(|manifest| manifest.version <= version) {
                owned.intent = None;
            }
            owned.remember_lease(&value.head, now.wall_ms);
            owned.head = Some(value.head);
            self.count("leases_found");
        }
    }

    /// A lookup for a put is back.
    pub(crate) fn put_looked_up(&mut self, op: OpId, peers: Vec<PeerKey>) {
        self.put_found(op, &peers);
        let until = self.now.mono_us + CANDIDATES_US;
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        let (owner, name) = (put.owner, put.name.clone());
        if let Some(owned) = self.owned(&owner, &name).filter(|_| !peers.is_empty()) {
            owned.candidates = Some((until, peers));
        }
    }

    /// The lookup is back: choose, seal, encode, sign, and write the intent down before anything is sent.
    fn put_found(&mut self, op: OpId, peers: &[PeerKey]) {
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        let (id, name) = (put.owner, put.name.clone());
        if self.grows_no_further(&id, &name, peers) || self.replaces_nobody(&id, &name, peers) {
            self.ops.remove(&op);
            return;
        }
        if self.lists_first(&id, &name) {
            // Longer life was asked for while the lookup was on its way.
            self.ops.remove(&op);
            if let Some(owned) = self.owned(&id, &name) {
                (owned.op, owned.due_us) = (None, Some(owned.due_us.unwrap_or(0)));
            }
            return;
        }
        match self.prepare_put(&id, &name, peers) {
            Ok(Prepared { task, writes, renewal, gives_up, held_back }) => {
                if let Some(Op::Put(put)) = self.ops.get_mut(&op) {
                    put.stage = PutStage::Intent(Box::new(task));
                    (put.renewal, put.gives_up, put.held_back) = (renewal, gives_up, held_back);
                }
                self.persist(writes, AfterPersist::Intent(op));
            }
            Err(error) => self.put_over(op, Err(error), false),
        }
    }

    /// A put that was due early because somebody came, and there are no more holders than before: it waits for its time.
    fn grows_no_further(&mut self, id: &OwnerKey, name: &str, peers: &[PeerKey]) -> bool {
        let me = self.me;
        let soon_us = self.now.mono_us + GROW_US;
        let Some(owned) = self.owned(id, name) else { return false };
        let Some(due_us) = owned.grow_from.take() else { return false };
        let usable = peers.iter().filter(|peer| **peer != me).count();
        let has = owned.head.as_ref().map_or(0, |head| if head.holders() == [me] { 0 } else { usize::from(head.manifest.shape.n()) });
        if owned.is_asked_for() || usable.min(Shape::holders_wanted(owned.level).into()) > has {
            return false;
        }
        owned.op = None;
        owned.due_us = Some(due_us);
        if std::mem::take(&mut owned.joined_meanwhile) && due_us > soon_us {
            (owned.due_us, owned.grow_from) = (Some(soon_us), Some(due_us));
        }
        true
    }

    fn prepare_put(&mut self, id: &OwnerKey, name: &str, peers: &[PeerKey]) -> Result<Prepared, CallError> {
        let now = self.now;
        let me = self.me;
        let diverse = self.config.diversity;
        let choose = |key: &SectionKey, candidates: &[Candidate], previous: &[PeerKey], exclude: &[PeerKey], wanted: u8| match diverse {
            true => choose_diverse_holders(key, candidates, previous, exclude, wanted),
            false => choose_holders(key, candidates, previous, exclude, wanted, None),
        };
        let last =
            self.owners.get(id).and_then(|owner| owner.sections.get(name)).and_then(|owned| Some((owned.head.as_ref()?, owned.class)));
        let gone = last.map(|(head, class)| self.gone_holders(head.holders(), class)).unwrap_or_default();
        let mut last_alive: Vec<(u64, PeerKey)> = gone.iter().map(|peer| (self.probes.alive_us(peer), *peer)).collect();
        last_alive.sort_unstable();
        let neighbours = &self.neighbours;
        let candidate = |peer: &PeerKey| neighbours.candidate(*peer, diverse, now.mono_us);
        let Some(owner) = self.owners.get_mut(id) else { return Err(CallError::UnknownAgent(id.to_did())) };
        let term = owner.term;
        let Some(owned) = owner.sections.get_mut(name) else { return Err(CallError::BadRequest(format!("no section {name}"))) };
        owned.avoid.retain(|_, until| *until > now.mono_us);

        let mut gives_up = None;
        // A put that a crash or a timeout interrupted goes out again with the same bytes, unless there is something newer to say.
        if let Some(wire) = owned.intent.clone() {
            let manifest = SignedManifest::trusted(wire).map_err(|error| CallError::BadRequest(error.to_string()))?;
            let answers = |holder: &&PeerKey| **holder == me || peers.contains(holder) && !owned.avoid.contains_key(*holder);
            let alive = manifest.holders.iter().filter(answers).count();
            let reachable = alive >= usize::from(manifest.shape.quorum());
            let unexpired = manifest.expires_at_ms() > now.wall_ms + manifest.ttl_ms / 2;
            let newest = owned.changed.is_none() || owned.holds_back(&manifest, now.wall_ms);
            if reachable && unexpired && newest && content_hash(&owned.stored) == manifest.content_hash {
                owned.join_waiters();
                let held_back = owned.changed.is_some();
                let shards = encode(&owned.stored, manifest.shape).map_err(|error| CallError::TooLarge(error.to_string()))?;
                let task = PutTask { manifest, shards, renewal: false, keeps: Vec::new(), bystanders: peers.to_vec() };
                return Ok(Prepared { task, writes: Vec::new(), renewal: false, gives_up: None, held_back });
            }
            // Its holders may have acked it, and somebody may complete it: later versions must tell them too.
            owned.remember_set(&manifest);
            gives_up = Some(Box::new(manifest));
        }
        owned.join_waiters();

        let previous: Vec<PeerKey> = owned.head.as_ref().map(|head| head.holders().to_vec()).unwrap_or_default();
        // A lookup that does not list a holder is no reason to move its shard. New content is sent to all anyway: there it goes to the living.
        let stays =
            |peer: &&PeerKey| !peers.contains(peer) && !gone.contains(*peer) && (owned.changed.is_none() || neighbours.contains(peer));
        let candidates: Vec<Candidate> =
            peers.iter().chain(previous.iter().filter(stays)).filter(|peer| **peer != me).map(candidate).collect();
        let avoided = owned.avoid.keys().chain(&gone).copied().filter(|peer| candidates.iter().any(|c| c.peer == *peer));
        let mut exclude: Vec<PeerKey> = avoided.collect();
        let wanted = Shape::holders_wanted(owned.level);
        let mut holders = choose(&owned.key, &candidates, &previous, &exclude, wanted);
        if owned.replace_from.is_some() && holders.len() < previous.len().min(wanted.into()) {
            // Too few others: those of the gone that were heard of last keep their places for now, for a smaller shape helps nobody.
            let spare = previous.len() - holders.len();
            let kept: Vec<PeerKey> = last_alive.iter().rev().take(spare).map(|(_, peer)| *peer).collect();
            exclude.retain(|peer| !kept.contains(peer));
            let back = kept.iter().filter(|peer| !peers.contains(peer));
            let back = back.map(candidate);
            let candidates: Vec<Candidate> = candidates.iter().cloned().chain(back).collect();
            holders = choose(&owned.key, &candidates, &previous, &exclude, wanted);
        }
        if holders.is_empty() {
            // Whoever did not answer lately is still better than nobody.
            holders = choose(&owned.key, &candidates, &previous, &[], wanted);
        }
        // A glimpse of fewer peers (after a restart, in a partition, under load) must not talk a section down that others still hold: they
        // are asked too, and if they do not answer this waits for a while before it makes do with less, and never makes do with itself.
        let standing = owned.head.as_ref().filter(|head| head.expires_at_ms() > now.wall_ms && head.holders() != [me]);
        if let Some(level) = standing.map(|head| head.manifest.shape.level_at_commit())
            && level_with(owned.level, holders.len()) < level
        {
            let missed = previous.iter().filter(|peer| !owned.avoid.contains_key(*peer) && !peers.contains(peer) && **peer != me);
            let more = missed.map(candidate);
            let asked: Vec<Candidate> = candidates.iter().cloned().chain(more).collect();
            holders = choose(&owned.key, &asked, &previous, &exclude, wanted);
            let patient = owned.waiting.is_empty() && owned.failures < FAILURES_BEFORE_LESS;
            if holders.is_empty() || (patient && level_with(owned.level, holders.len()) < level) {
                let need = standing.map_or(0, |head| head.manifest.shape.quorum());
                let what = format!("{}/{name}", id.to_did());
                return Err(CallError::NotEnoughHolders { what, have: holders.len() as u32, need: need.into() });
            }
        }
        if holders.is_empty() {
            // Alone: this disk is all there is.
            holders = vec![me];
        }
        let shape = Shape::for_level(owned.level, holders.len()).expect("at least one holder");
        holders.truncate(usize::from(shape.n()));
        if let Some(wanted) = owned.level_demanded().filter(|wanted| shape.level_at_commit() < *wanted) {
            return Err(CallError::LevelNotReached { level: shape.level_at_commit(), wanted, holders: holders.len() as u32 });
        }

        let seq = owned.last_seq + 1;
        let version = Version { term, device: me.device(), seq };
        let content_version = match owned.changed.take() {
            Some(content) => {
                let stored = match content {
                    Content::Public(payload) => publish(&payload).map_err(|error| CallError::TooLarge(error.to_string()))?,
                    Content::Fields(fields) => {
                        let rng = &mut self.rng;
                        let epoch = owned.epoch.get_or_insert_with(|| EpochKey::generate(1, rng)).clone();
                        let context = SealContext { agent: *id, section: owned.key, content_version: version };
                        seal(&fields, &epoch, &owner.recovery, &context, rng).map_err(|error| CallError::TooLarge(error.to_string()))?
                    }
                };
                owned.stored = stored;
                owned.content_version = Some(version);
                version
            }
            None => owned.content_version.unwrap_or(version),
        };
        if owned.stored.is_empty() {
            return Err(CallError::BadRequest(format!("section {name} has no content")));
        }
        let shards = encode(&owned.stored, shape).map_err(|error| CallError::TooLarge(error.to_string()))?;
        let allowance_ms = clock_allowance_ms(owned.class);
        owned.live.retain(|set| set.over_at_ms() + allowance_ms > now.wall_ms);
        // A set with these very holders is told anyhow. It is not forgotten: this put may fail, and the next have others.
        // And one whose lease has gone on without this host is named all the same: who confirms for it may not know what followed.
        let apart = |set: &OlderSet| set.renew_until_ms > 0 && set.expires_at_ms <= now.wall_ms;
        let older = owned.live.iter().filter(|set| set.holders != holders || apart(set)).cloned().collect();
        let manifest = Manifest {
            key: owned.key,
            owner: *id,
            name: owned.published.clone(),
            version,
            content_version,
            class: owned.class,
            level: owned.level,
            issued_at_ms: now.wall_ms,
            ttl_ms: owned.ttl_ms,
            renew_until_ms: if owned.renew_ms == 0 { 0 } else { now.wall_ms + owned.renew_ms },
            content_len: owned.stored.len() as u32,
            shape,
            content_hash: content_hash(&owned.stored),
            shard_hashes: shard_hashes(&shards),
            holders,
            older,
        };
        // A renewal: the holders that stay at their index have these very bytes.
        let keeps: Vec<u8> = owned
            .head
            .as_ref()
            .filter(|head| head.manifest.content_hash == manifest.content_hash && head.manifest.shape == shape)
            .map(|head| (0..shape.n()).filter(|i| head.holders()[usize::from(*i)] == manifest.holders[usize::from(*i)]).collect())
            .unwrap_or_default();
        let manifest = SignedManifest::sign(manifest, &*owner.signer).map_err(|error| CallError::BadRequest(error.to_string()))?;
        // The peers closest to the key are told the new head when its holders changed, and with every renewal. In between, the head that
        // they know leads every reader to the same holders, who know better.
        let led_there = owned.head.as_ref().is_some_and(|head| head.holders() == manifest.holders);
        let bystanders = if led_there && owned.told_until_us > now.mono_us { Vec::new() } else { peers.to_vec() };
        if !bystanders.is_empty() {
            owned.told_until_us = now.mono_us + owned.ttl_ms * 1000 / 4;
        }
        owned.last_seq = seq;
        owned.intent = Some(manifest.wire().clone());
        let writes = vec![
            Write::set(Table::Own, owned.key.0, wire::encode(&owned.record(id))),
            Write::set(Table::Intent, owned.key.0, wire::encode(manifest.wire())),
        ];
        let renewal = !keeps.is_empty();
        Ok(Prepared { task: PutTask { manifest, shards, renewal, keeps, bystanders }, writes, renewal, gives_up, held_back: false })
    }

    /// The intent is durable: send.
    pub(crate) fn put_intent_durable(&mut self, op: OpId) {
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        match self.owners.get(&put.owner).map(|owner| owner.state) {
            Some(OwnerState::Fenced(term)) => return self.put_over(op, Err(CallError::Fenced { term }), false),
            Some(_) => {}
            None => return drop(self.ops.remove(&op)),
        }
        let Some(Op::Put(put)) = self.ops.get_mut(&op) else { return };
        let stage = std::mem::replace(&mut put.stage, PutStage::Lookup);
        let PutStage::Intent(task) = stage else {
            put.stage = stage;
            return;
        };
        let (running, outs) = Put::start(*task, self.config.put.clone(), self.now);
        put.stage = PutStage::Running(Box::new(running));
        let (owner, gives_up) = (put.owner, put.gives_up.take());
        // Only now: the disk no longer wants the other one put again.
        if let Some(manifest) = gives_up.filter(|manifest| self.may_be_settled(manifest)) {
            self.begin_settle(&owner, *manifest, SettlePurpose::GiveUp);
        }
        self.run_put(op, outs);
    }

    pub(crate) fn put_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Put(put)) = self.ops.get_mut(&op) else { return };
        let PutStage::Running(running) = &mut put.stage else { return };
        let outs = running.reply(tag, reply, self.now, &*self.keys.verifier);
        self.run_put(op, outs);
    }

    pub(crate) fn put_due(&mut self, op: OpId) {
        let Some(Op::Put(put)) = self.ops.get_mut(&op) else { return };
        let PutStage::Running(running) = &mut put.stage else { return };
        let outs = running.tick(self.now);
        self.run_put(op, outs);
    }

    fn run_put(&mut self, op: OpId, outs: Vec<PutOut>) {
        for out in outs {
            match out {
                PutOut::Send { tag, to, request } => self.send_request(op, tag, to, request),
                PutOut::Committed(receipt) => self.put_over(op, Ok(*receipt), false),
                PutOut::Placed { placed } => self.put_placed(op, placed),
                PutOut::Failed(error) => self.put_failed(op, error),
            }
        }
        let finished = match self.ops.get(&op) {
            Some(Op::Put(put)) => matches!(&put.stage, PutStage::Running(running) if running.finished()),
            _ => false,
        };
        if finished {
            self.end_background(op);
        }
        self.note_deadline(op);
    }

    fn put_placed(&mut self, op: OpId, placed: u8) {
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        let (owner, name, holds) = (put.owner, put.name.clone(), put.ackers());
        if let Some(owned) = self.owned(&owner, &name) {
            owned.placed = placed;
            owned.holds.extend(holds);
        }
    }

    fn end_background(&mut self, op: OpId) {
        let Some(Op::Put(put)) = self.ops.remove(&op) else { return };
        if let Some(owned) = self.owned(&put.owner, &put.name)
            && owned.background == Some(op)
        {
            owned.background = None;
        }
    }

    fn put_failed(&mut self, op: OpId, error: PutError) {
        let now_us = self.now.mono_us;
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        let (id, name) = (put.owner, put.name.clone());
        let what = self.label(&id, &name);
        // Whoever did not answer while this machine slept may have answered all the same. One that is late for every put is no excuse.
        let mut slept = put.started_us < self.woke_us;
        if let Some(owned) = self.owned(&id, &name) {
            slept &= !std::mem::replace(&mut owned.slept, slept);
        }
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        let fresh = match &put.stage {
            PutStage::Running(running) => running.manifest().issued_at_ms + FRESH_MS > self.now.wall_ms,
            PutStage::Lookup | PutStage::Intent(_) => false,
        };
        // Whether the next attempt is another one: it does without holders for want of which this one failed.
        let gives_way = match &error {
            PutError::NotEnoughHolders { unreachable: those, .. } | PutError::Timeout { unwilling: those, .. } => !those.is_empty(),
            PutError::Recovering { recovering, unwilling, .. } | PutError::Unconfirmed { recovering, unwilling, .. } => {
                !(recovering.is_empty() && unwilling.is_empty())
            }
            PutError::Fenced { .. } | PutError::Conflict { .. } | PutError::Refused { .. } => false,
        };
        let call_error = match error {
            PutError::Fenced { by } => {
                self.fence_owner(&id, &by);
                CallError::Fenced { term: by.manifest.version.term }
            }
            PutError::NotEnoughHolders { have, need, unreachable } => {
                if let Some(owned) = self.owned(&id, &name).filter(|_| !slept) {
                    owned.do_without(unreachable, now_us);
                }
                CallError::NotEnoughHolders { what, have: have.into(), need: need.into() }
            }
            PutError::Recovering { have, need, recovering, unwilling }
            | PutError::Unconfirmed { have, need, recovering, unwilling, .. } => {
                if let Some(owned) = self.owned(&id, &name) {
                    if !recovering.is_empty() {
                        // They sign only for what was issued after their loss, and may never be able to confirm the rest: the next attempt is
                        // a new version. If this one was that already, what they remember or their clocks are in doubt.
                        owned.give_up_intent();
                    }
                    let unwilling = unwilling.into_iter().filter(|_| !slept);
                    owned.do_without(unwilling.chain(recovering.into_iter().filter(|_| fresh)), now_us);
                }
                CallError::NotEnoughHolders { what, have: have.into(), need: need.into() }
            }
            PutError::Timeout { acks, need, unwilling } => {
                // To ask them again for the same may be in vain until all that is undecided there has expired.
                if let Some(owned) = self.owned(&id, &name) {
                    owned.do_without(unwilling, now_us);
                }
                CallError::NotEnoughHolders { what, have: acks.into(), need: need.into() }
            }
            PutError::Conflict { version, other } => {
                let mine = match &put.stage {
                    PutStage::Running(running) => Some(running.manifest().clone()),
                    PutStage::Lookup | PutStage::Intent(_) => None,
                };
                // The put verified it.
                if let (Some(mine), Ok(other)) = (mine, SignedManifest::trusted(*other))
                    && let Some(evidence) = Equivocation::of(&mine, &other)
                {
                    self.witness(evidence);
                }
                // Another process wrote this version with the same keys and device, or this disk was rolled back. Go past it.
                let text = format!(
                    "{what}: another manifest of version {version} is stored: were the keys or the disk copied? A later version is tried; run \
                     one node with these keys, not two"
                );
                self.alarm("conflict", text);
                if let Some(owned) = self.owned(&id, &name) {
                    owned.skip_versions();
                }
                CallError::Refused { what, reason: "another manifest of this version is stored; a later version is tried".into() }
            }
            PutError::Refused { by, reason } => {
                if let Some(owned) = self.owned(&id, &name) {
                    owned.do_without([by], now_us);
                    match reason {
                        persona_mesh_proto::Refusal::Stale => owned.skip_versions(),
                        // Given up, by another host of this owner or before a crash of this one: the same bytes will not do.
                        persona_mesh_proto::Refusal::Aborted => owned.give_up_intent(),
                        _ => {}
                    }
                }
                CallError::Refused { what, reason: format!("{} refuses: {reason}", by.to_peer_id_string()) }
            }
        };
        self.put_over(op, Err(call_error), gives_way);
    }

    /// A put committed or failed: remember what it reached, tell who waits, and say when the next one is due. If it `gives_way`, the next is
    /// another one than this was.
    fn put_over(&mut self, op: OpId, result: Result<PutReceipt, CallError>, gives_way: bool) {
        let now = self.now;
        let jitter = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        let Some(Op::Put(put)) = self.ops.get(&op) else { return };
        let (id, name, started_us, renewal, holds) = (put.owner, put.name.clone(), put.started_us, put.renewal, put.ackers());
        let held_back = put.held_back;
        let me = self.me;
        let state = self.owners.get(&id).map(|owner| owner.state);
        let mine = |owned: &&mut Owned| owned.op == Some(op);
        let owned = self.owners.get_mut(&id).and_then(|owner| owner.sections.get_mut(&name)).filter(mine);
        let (Some(state), Some(owned)) = (state, owned) else {
            // Its owner is gone, or another import of it began: nobody waits for this one.
            self.ops.remove(&op);
            return;
        };
        owned.op = None;
        owned.listed_again = false;
        owned.slept &= result.is_err();
        if result.is_err() {
            owned.candidates = None;
        }
        // Whoever waits waits for another attempt, too; but for no third.
        let once_more = gives_way && !owned.tried_again;
        owned.tried_again = once_more;
        let early = owned.replace_from.is_some() && !owned.is_waited_for() && !matches!(state, OwnerState::Fenced(_));
        match result {
            Ok(mut receipt) => {
                owned.failures = 0;
                owned.sought = 0;
                owned.intent = None;
                owned.placed = receipt.placed;
                if owned.unsure_until_ms() > now.wall_ms {
                    receipt.stale_until_ms = receipt.stale_until_ms.max(Some(owned.unsure_until_ms()));
                }
                (owned.holds, owned.probed_ms) = (holds, None);
                let replaced = owned.replace_from.take().is_some();
                if receipt.stale_until_ms.is_none() {
                    owned.live.clear();
                }
                owned.remember_set(&receipt.head.manifest);
                owned.head = Some(receipt.head.clone());
                let old_background = owned.background.replace(op);
                let refresh_ms = (owned.ttl_ms as f64 / 3.0 * (0.9 + 0.2 * jitter)) as u64;
                let renew_us = now.mono_us + refresh_ms * 1000;
                let more = owned.changed.is_some() || !owned.waiting_next.is_empty();
                // The node's own sections are for once: nobody needs the last canary or benchmark to live on.
                let for_once = id == self.node_owner && !more;
                owned.due_us = match () {
                    () if more => Some(now.mono_us),
                    () if for_once => None,
                    () => Some(renew_us),
                };
                let small = receipt.head.manifest.shape.n() < Shape::holders_wanted(owned.level);
                let soon_us = now.mono_us + GROW_US;
                let joined = std::mem::take(&mut owned.joined_meanwhile).then_some(soon_us);
                // Whoever did not answer and is still connected is asked again when the quarantine is over.
                let silent =
                    owned.avoid.iter().filter(|(peer, _)| self.neighbours.contains(peer)).map(|(_, until)| soon_us.max(*until)).max();
                if let Some(grow_us) = joined.or(silent).filter(|at| small && owned.due_us.is_some_and(|due| due > *at)) {
                    (owned.due_us, owned.grow_from, owned.candidates) = (Some(grow_us), Some(renew_us), None);
                }
                let writes =
                    vec![Write::set(Table::Own, owned.key.0, wire::encode(&owned.record(&id))), Write::remove(Table::Intent, owned.key.0)];
                let mut waiting = std::mem::take(&mut owned.waiting);
                // They wait for what is newer; if another host has the agent by now, that is never put.
                let held = if held_back { std::mem::take(&mut waiting) } else { Vec::new() };
                let mut fenced = Vec::new();
                match state {
                    OwnerState::Fenced(_) => fenced = held,
                    _ => drop(owned.waiting_next.splice(0..0, held)),
                }
                let left_ms = receipt.head.manifest.expires_at_ms().saturating_sub(now.wall_ms);
                // Most puts are renewals, and nobody waits for those.
                let report = (!waiting.is_empty()).then(|| PutReport {
                    loss_chance: self.churn.loss_chance(receipt.placed, receipt.head.manifest.shape.k(), left_ms, now.mono_us),
                    ..put_report(&name, owned, &receipt, renewal, started_us, now.mono_us, now.wall_ms)
                });
                if let Some(agent) = self.owners.get_mut(&id).and_then(|owner| owner.agent.as_mut()) {
                    agent.index.committed(&name, receipt.head.manifest.version);
                }
                if name == "index" && receipt.stale_until_ms.is_none() {
                    let sections = self.owners.get_mut(&id).into_iter().flat_map(|owner| owner.sections.values_mut());
                    sections.for_each(|owned| owned.listing_unsure_until_ms = 0);
                }
                if let Some(old) = old_background {
                    self.ops.remove(&old);
                }
                self.count(if renewal { "puts_renewed" } else { "puts_committed" });
                if replaced {
                    self.count("sections_replaced");
                }
                self.persist(writes, AfterPersist::Nothing);
                let alone = receipt.head.manifest.holders == [me];
                if let OwnerState::Fenced(term) = state {
                    for waiter in fenced.into_iter().filter(|waiter| !matches!(waiter, PutWaiter::Unlist { .. })) {
                        self.tell_put(&id, &name, waiter, Err(CallError::Fenced { term }));
                    }
                }
                for (waiter, report) in waiting.into_iter().zip(std::iter::repeat(report).flatten()) {
                    self.tell_put(&id, &name, waiter, Ok((report, started_us, alone)));
                }
            }
            Err(_) if early => {
                owned.replace_later(now);
                self.ops.remove(&op);
                self.count("replacements_failed");
            }
            Err(error) => {
                owned.replace_from = None;
                owned.failures += 1;
                let pause_ms = (RETRY_MS << owned.failures.min(6)).min(RETRY_MAX_MS);
                let first = owned.failures < ATTEMPTS_BEFORE_ERROR || once_more;
                let again_at_once = first && matches!(error, CallError::NotEnoughHolders { .. });
                let fenced = matches!(state, OwnerState::Fenced(_));
                let hopeless = matches!(error, CallError::LevelNotReached { .. } | CallError::TooLarge(_));
                owned.due_us = match () {
                    () if fenced || hopeless => None,
                    () if again_at_once => Some(now.mono_us),
                    () => Some(now.mono_us + pause_ms * 1000),
                };
                let waiting = std::mem::take(&mut owned.waiting);
                let (told, waits) = if again_at_once && !fenced { (Vec::new(), waiting) } else { (waiting, Vec::new()) };
                owned.waiting_next.splice(0..0, waits);
                let completes = (!fenced && owned.has_undecided(now.wall_ms)).then_some(owned.key);
                self.ops.remove(&op);
                // Holders that are busy with earlier versions may have acked one of these often enough meanwhile: a get finds that, and says so.
                // What it finds undecided is settled now, if it could not be when it gave way.
                if let Some(key) = completes.filter(|_| self.ops.len() < OPS_MAX) {
                    let label = self.label(&id, &name);
                    let wanted = Wanted { key, owner: Some(id), label, mode: Mode::Regular, fence: None, want_content: true };
                    self.begin_get(wanted, GetPurpose::Complete { agent: id, name: name.clone() });
                }
                if again_at_once && !fenced {
                    return;
                }
                self.count("puts_failed");
                if hopeless && !fenced {
                    self.refuse_change(&id, &name);
                }
                for waiter in told {
                    self.tell_put(&id, &name, waiter, Err(error.clone()));
                }
            }
        }
    }

    /// Settles the earlier versions of this very host that its holders have acked and nobody has decided.
    pub(crate) fn settle_undecided(&mut self, id: &OwnerKey, name: &str, seen: Vec<SignedManifest>) {
        let device = self.me.device();
        let Some(owner) = self.owners.get(id).filter(|owner| owner.writes()) else { return };
        let Some(owned) = owner.sections.get(name) else { return };
        // What is about to be put, and what goes out now, is not given up.
        let next = owned.intended().map_or(owned.last_seq + 1, |manifest| manifest.version.seq);
        let earlier = |version: &Version| (version.term, version.device) == (owner.term, device) && version.seq < next;
        let undecided =
            |manifest: &SignedManifest| earlier(&manifest.version) && self.may_be_settled(manifest) && !self.is_being_settled(manifest);
        let undecided: Vec<SignedManifest> = seen.into_iter().filter(undecided).collect();
        for manifest in undecided {
            self.begin_settle(id, manifest, SettlePurpose::GiveUp);
        }
    }

    /// A change that cannot be put is as if it had never been asked for: an older version lives on, and a new section does not exist.
    fn refuse_change(&mut self, id: &OwnerKey, name: &str) {
        let now_us = self.now.mono_us;
        let Some(owner) = self.owners.get_mut(id) else { return };
        let Some(owned) = owner.sections.get_mut(name) else { return };
        owned.changed = None;
        owned.failures = 0;
        let last = owned.head.as_ref().map(|head| &head.manifest);
        if let Some((class, ttl_ms, level, renew_ms)) = last.map(|last| (last.class, last.ttl_ms, last.level, last.renew_ms())) {
            (owned.class, owned.ttl_ms, owned.level, owned.renew_ms) = (class, ttl_ms, level, renew_ms);
        }
        if !owned.stored.is_empty() {
            owned.due_us = Some(now_us);
            return;
        }
        owner.sections.remove(name);
        let Some(agent) = owner.agent.as_mut() else { return };
        let Some(entry) = agent.index.get(name).cloned() else { return };
        // Of a section that could not be read here another host's versions may be about.
        if entry.version.is_some() {
            return;
        }
        // It was listed before its first put, as every section is. A removed name stays listed as removed.
        if agent.index.set(name, persona_agent::IndexEntry { removed: true, ..entry }).is_ok() {
            self.put_index(id, None);
        }
    }

    pub(crate) fn tell_put(&mut self, id: &OwnerKey, name: &str, waiter: PutWaiter, result: Result<(PutReport, u64, bool), CallError>) {
        match waiter {
            PutWaiter::Call { call, started_us, .. } => {
                let ms = (self.now.mono_us - started_us) as f64 / 1000.0;
                self.reply(call, result.map(|(report, ..)| Answer::Put(Box::new(PutReport { ms, ..report }))));
            }
            PutWaiter::Publish { call } => self.published_one(call, result.map(|(report, ..)| report)),
            PutWaiter::Import { import } => self.import_put(import, name, result.map(|(report, ..)| report)),
            PutWaiter::Unlist { names } => match result {
                Ok((report, ..)) => {
                    for name in names {
                        if let Some(owned) = self.owned(id, &name) {
                            owned.unlisted = false;
                            owned.listing_unsure_until_ms = report.stale_until_ms.unwrap_or(0);
                        }
                    }
                }
                // The index is tried again, and its sections after it. Their callers are told how it stands.
                Err(error) => {
                    for name in &names {
                        let waiting = self.owned(id, name).map(|owned| std::mem::take(&mut owned.waiting_next)).unwrap_or_default();
                        for waiter in waiting {
                            self.tell_put(id, name, waiter, Err(error.clone()));
                        }
                    }
                    if let Some(owned) = self.owned(id, "index") {
                        owned.waiting_next.push(PutWaiter::Unlist { names });
                    }
                }
            },
            PutWaiter::Canary => self.canary_put(result),
        }
    }

    /// Tells everybody who waits for a put of this owner that another host has taken it over.
    pub(crate) fn tell_fenced(&mut self, owner: &mut Owner, term: u64) {
        for (name, owned) in &mut owner.sections {
            let waiting = std::mem::take(&mut owned.waiting);
            for waiter in waiting.into_iter().chain(std::mem::take(&mut owned.waiting_next)) {
                if !matches!(waiter, PutWaiter::Unlist { .. }) {
                    self.tell_put(&owner.id, name, waiter, Err(CallError::Fenced { term }));
                }
            }
        }
    }

    /// Another host has taken the owner over: stop writing for it.
    pub(crate) fn fence_owner(&mut self, id: &OwnerKey, by: &CertifiedHead) {
        let term = by.manifest.version.term;
        let state = self.owners.get(id).map(|owner| owner.state);
        let writes = state.is_some_and(|state| !matches!(state, OwnerState::Fenced(_)));
        if writes && *id != self.node_owner {
            self.stop_writing(id, term);
            if state == Some(OwnerState::Importing) {
                // Whichever of its sections it was that heard of it: what is not put yet never will be.
                self.import_fenced(id, term);
            }
            let did = id.to_did();
            self.alarm(
                "fenced",
                format!(
                    "{did} was taken over by another node in term {term}: this node only reads for it now. If that was not you, \
                     its keys are in other hands; `persona agent import FILE` brings it back here"
                ),
            );
        }
    }

    /// The owner lives elsewhere, in `term`: nothing is written for it any more, and whoever waits is told.
    pub(crate) fn stop_writing(&mut self, id: &OwnerKey, term: u64) {
        let Some(owner) = self.owners.get_mut(id) else { return };
        owner.state = OwnerState::Fenced(term);
        let mut writes = Vec::new();
        let mut waiting = Vec::new();
        for (name, owned) in &mut owner.sections {
            owned.due_us = None;
            owned.intent = None;
            writes.push(Write::remove(Table::Intent, owned.key.0));
            waiting.extend(std::mem::take(&mut owned.waiting_next).into_iter().map(|waiter| (name.clone(), waiter)));
        }
        writes.extend(self.stop_sending(id));
        self.persist(writes, AfterPersist::Nothing);
        // What waited for a put that will never begin is told; what is under way hears from its own holders.
        for (name, waiter) in waiting {
            if !matches!(waiter, PutWaiter::Unlist { .. }) {
                self.tell_put(id, &name, waiter, Err(CallError::Fenced { term }));
            }
        }
    }

    /// `agent/section`, as a user would name it.
    pub(crate) fn label(&self, id: &OwnerKey, name: &str) -> String {
        let agent = self.owners.get(id).and_then(|owner| owner.agent.as_ref()).map_or_else(|| id.to_did(), |agent| agent.name.clone());
        format!("{agent}/{name}")
    }

    /// A user's document.
    #[allow(clippy::too_many_arguments, reason = "the fields of one call")]
    pub(crate) fn put_document(
        &mut self,
        call: u64,
        id: OwnerKey,
        name: String,
        class: Class,
        ttl_ms: Option<u64>,
        renew_for_ms: Option<u64>,
        level: Option<u8>,
        require_level: Option<u8>,
        content: Vec<u8>,
    ) {
        let started_us = self.now.mono_us;
        let spec = self.config.classes.of(class);
        let ttl_ms = ttl_ms.unwrap_or(spec.ttl.as_millis() as u64);
        let renew_ms = renew_for_ms.unwrap_or(spec.renew_for.as_millis() as u64);
        let level = level.unwrap_or(spec.level);
        let checked = match self.owners.get(&id) {
            None => Err(CallError::UnknownAgent(id.to_did())),
            Some(owner) => match owner.state {
                OwnerState::Fenced(term) => Err(CallError::Fenced { term }),
                OwnerState::Live if owner.agent.is_some() => Ok(()),
                OwnerState::Live => Err(CallError::UnknownAgent(id.to_did())),
                OwnerState::Unpublished | OwnerState::Importing => Err(CallError::Busy("the agent is not live yet".into())),
            },
        };
        let checked = checked.and_then(|()| {
            self.clock_allows(class)?;
            let bad = |text: &str| Err(CallError::BadRequest(text.to_owned()));
            if name.len() <= DOCUMENT_PREFIX.len() || !name.starts_with(DOCUMENT_PREFIX) || name.len() > CONTENT_NAME_MAX {
                return bad("a document's name starts with doc/ and has at most 128 bytes; the other sections are the node's own");
            }
            if content.is_empty() {
                return bad("the document is empty");
            }
            if content.len() > persona_fragments::SECTION_BYTES_MAX - 64 {
                return Err(CallError::TooLarge(format!(
                    "the document has {} bytes, more than {}",
                    content.len(),
                    persona_fragments::SECTION_BYTES_MAX - 64
                )));
            }
            if !(1..=LEVEL_MAX).contains(&level) || require_level.is_some_and(|level| level > LEVEL_MAX) {
                return bad("a level is between 1 and 10");
            }
            if !(1_000..=TTL_MS_MAX).contains(&ttl_ms) {
                return bad("a lifetime is between 1 s and 7 days");
            }
            if renew_ms > RENEW_MS_MAX {
                return bad("holders renew for at most 30 days; 0 means not at all");
            }
            Ok(())
        });
        if let Err(error) = checked {
            return self.reply(call, Err(error));
        }
        let content = Content::Fields(Fields::new().with("document", content));
        self.change_with(&id, &name, class, ttl_ms, renew_ms, level, content, Some(PutWaiter::Call { call, started_us, require_level }));
    }

    /// A section of the node's own, for the benchmark: sealed and put like any other.
    pub(crate) fn bench_put(&mut self, call: u64, slot: u32, bytes: u32, level: u8) {
        let started_us = self.now.mono_us;
        let bytes = (bytes as usize).clamp(1, persona_fragments::SECTION_BYTES_MAX - 64);
        let mut content = vec![0; bytes];
        self.rng.fill_bytes(&mut content);
        let content = Content::Fields(Fields::new().with("document", content));
        let node_owner = self.node_owner;
        let waiter = PutWaiter::Call { call, started_us, require_level: None };
        self.change_with(&node_owner, &format!("bench/{slot}"), Class::Core, 60_000, 0, level.clamp(1, LEVEL_MAX), content, Some(waiter));
    }

    pub(crate) fn section_reports(&self, id: &OwnerKey) -> Vec<SectionReport> {
        let Some(owner) = self.owners.get(id) else { return Vec::new() };
        owner.sections.iter().map(|(name, owned)| section_report(name, owned, &self.probes, self.now.wall_ms)).collect()
    }

    /// Every section of this node's owners by its key, for labels.
    pub(crate) fn own_section(&self, key: &SectionKey) -> Option<(OwnerKey, String)> {
        self.owners
            .values()
            .find_map(|owner| owner.sections.iter().find(|(_, owned)| owned.key == *key).map(|(name, _)| (owner.id, name.clone())))
    }

    /// Peers that hold or held one of this owner's sections: good candidates to ask.
    pub(crate) fn known_holders(&self, key: &SectionKey) -> BTreeSet<PeerKey> {
        self.own_section(key)
            .and_then(|(id, name)| self.owners.get(&id)?.sections.get(&name)?.head.as_ref().map(|head| head.holders().to_vec()))
            .unwrap_or_default()
            .into_iter()
            .collect()
    }
}

/// The level from commit on with so many holders; 0 with none.
fn level_with(level: u8, holders: usize) -> u8 {
    Shape::for_level(level, holders).map_or(0, |shape| shape.level_at_commit())
}

pub(crate) fn expires_in_s(expires_at_ms: u64, now_ms: u64) -> f64 {
    (expires_at_ms as f64 - now_ms as f64) / 1000.0
}

fn put_report(name: &str, owned: &Owned, receipt: &PutReceipt, renewal: bool, started_us: u64, now_us: u64, now_ms: u64) -> PutReport {
    let manifest = &receipt.head.manifest;
    PutReport {
        section: name.to_owned(),
        kad_key: owned.key.to_kad_key(),
        version: manifest.version.to_string(),
        n: manifest.shape.n(),
        k: manifest.shape.k(),
        f: manifest.shape.f(),
        acks: receipt.acks,
        placed: receipt.placed,
        level: receipt.level,
        byzantine_tolerant: receipt.byzantine_tolerant,
        holders: manifest.holders.iter().map(PeerKey::to_peer_id_string).collect(),
        expires_in_s: expires_in_s(manifest.expires_at_ms(), now_ms),
        lease_until_ms: lease_until_ms(manifest),
        stale_until_ms: receipt.stale_until_ms,
        loss_chance: 1.0, // until it is computed
        renewal,
        ms: (now_us - started_us) as f64 / 1000.0,
    }
}

fn section_report(name: &str, owned: &Owned, probes: &Probes, now_ms: u64) -> SectionReport {
    let manifest = owned.head.as_ref().map(|head| &head.manifest);
    let expires = owned.head.as_ref().map(|head| expires_in_s(head.expires_at_ms(), now_ms));
    let holders = owned.head.as_ref().map_or(&[][..], |head| head.holders());
    let silent = |index: u8| holders.get(usize::from(index)).is_some_and(|peer| probes.is_silent(peer));
    let held = owned.holds.iter().filter(|index| !silent(**index)).count() as u8;
    SectionReport {
        name: name.to_owned(),
        class: owned.class.name(),
        ttl_s: owned.ttl_ms as f64 / 1000.0,
        kad_key: owned.key.to_kad_key(),
        version: manifest.map(|manifest| manifest.version.to_string()),
        n: manifest.map_or(0, |manifest| manifest.shape.n()),
        k: manifest.map_or(0, |manifest| manifest.shape.k()),
        f: manifest.map_or(0, |manifest| manifest.shape.f()),
        level: manifest.map_or(0, |manifest| manifest.shape.level_at(owned.placed)),
        placed: owned.placed,
        held,
        level_now: manifest.map_or(0, |manifest| manifest.shape.level_at(held)),
        silent: holders.iter().filter(|peer| probes.is_silent(peer)).map(PeerKey::to_peer_id_string).collect(),
        probed_s_ago: owned.probed_ms.map(|at_ms| now_ms.saturating_sub(at_ms) as f64 / 1000.0),
        holders: holders.iter().map(PeerKey::to_peer_id_string).collect(),
        expires_in_s: expires,
        lease_until_ms: manifest.and_then(|manifest| lease_until_ms(manifest)),
        manifest_hash: manifest.map(|manifest| manifest.hash().to_hex()),
        state: match expires {
            None => "pending",
            Some(left) if left <= 0.0 => "expired",
            Some(_) if owned.changed.is_some() || owned.op.is_some() && owned.intent.is_some() => "pending",
            Some(_) => "committed",
        },
    }
}
