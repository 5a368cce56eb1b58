//! Whose sections are written here, and what each of them is at.
//!
//! An *owner* is an agent that lives on this node, or the node itself (for its canary and its benchmark). Its sections are kept on this
//! node's disk as sealed bytes, exactly as holders keep them, so that a restart needs the mesh for nothing.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use persona_agent::{Identity, Index, PairState, Relationship, RootSecret, published_name};
use persona_fragments::{
    CertifiedHead, Class, ClassSpec, EpochKey, Fields, OlderSet, OwnerKey, RecoveryKey, SectionKey, SignedManifest, Signer, Version,
    certificate::HeadWire,
    manifest::{ManifestWire, RENEW_MS_MAX},
};
use persona_mesh_proto::clock_allowance_ms;
use zeroize::Zeroizing;

use crate::{
    missing::Missing,
    node::{OpId, OwnerSigner},
};

/// What the names of users' own sections begin with. All others are the node's.
pub(crate) const DOCUMENT_PREFIX: &str = "doc/";

/// How far a writer jumps ahead when a version of its own turns out to be taken: farther than what the other one wrote meanwhile.
const VERSIONS_SKIPPED: u64 = 1 << 10;

/// For how long a holder that did not answer, or would not have it, is not chosen again.
const AVOID_MS: u64 = 30_000;

/// Failed attempts to complete a version before newer content takes its place, unless there is an earlier one still undecided.
const HELD_BACK_ATTEMPTS: u32 = 3;

/// The sections of one owner.
pub(crate) struct Owner {
    pub(crate) id: OwnerKey,
    pub(crate) signer: Box<dyn Signer>,
    pub(crate) recovery: RecoveryKey,
    pub(crate) root: RootSecret,
    pub(crate) term: u64,
    pub(crate) sections: BTreeMap<String, Owned>,
    pub(crate) agent: Option<Box<Agent>>,
    pub(crate) state: OwnerState,
}

/// What an owner is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerState {
    /// Kept on disk, not yet published: the keystore must have it first.
    Unpublished,
    /// Writing.
    Live,
    /// On its way here from another node: nothing is written but what the takeover writes.
    Importing,
    /// Another host with this term took it over. Nothing is written any more.
    Fenced(u64),
}

/// What makes an owner an agent.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) index: Index,
    pub(crate) relationships: BTreeMap<OwnerKey, Relationship>,
    pub(crate) pairs: BTreeMap<OwnerKey, PairState>,
    /// Sections that the index lists and that could not be read yet.
    pub(crate) missing: BTreeMap<String, Missing>,
    /// When it came here from another host, or was taken up after a restart, in milliseconds since the Unix epoch; 0 if it was born here.
    pub(crate) came_ms: u64,
    /// Until when (monotonic) what it does is worth a `behavior` section.
    pub(crate) active_until_us: u64,
    /// Sequence number of the next delivered message.
    pub(crate) next_inbox: u64,
}

/// The content of a section, before or after sealing.
pub(crate) enum Content {
    /// To be sealed under the version that puts it.
    Fields(Fields),
    /// To be published as it is.
    Public(Vec<u8>),
}

/// One section of an owner of this node.
pub(crate) struct Owned {
    pub(crate) key: SectionKey,
    pub(crate) published: Vec<u8>,
    pub(crate) class: Class,
    pub(crate) ttl_ms: u64,
    /// How long its holders may renew it while this host is away; 0: not at all.
    pub(crate) renew_ms: u64,
    pub(crate) level: u8,
    /// The bytes as they are stored, under `content_version`; empty before the first seal.
    pub(crate) stored: Vec<u8>,
    pub(crate) content_version: Option<Version>,
    pub(crate) epoch: Option<EpochKey>,
    /// Changed content that no put has taken up yet.
    pub(crate) changed: Option<Content>,
    /// The last version that is known to have committed.
    pub(crate) head: Option<CertifiedHead>,
    /// Shards stored at the last word of its put.
    pub(crate) placed: u8,
    /// Indices of the holders that are known to have their shard: from the put, and from every probe since.
    pub(crate) holds: BTreeSet<u8>,
    /// When a probe was last answered for it, on the wall clock.
    pub(crate) probed_ms: Option<u64>,
    /// The next put, or the one on its way, is early, to give the places of holders that are gone to others; it was due then (monotonic).
    pub(crate) replace_from: Option<u64>,
    /// Not put early again before (monotonic).
    pub(crate) replace_after_us: u64,
    /// Holder sets that may still answer for an older version, oldest first.
    pub(crate) live: Vec<OlderSet>,
    pub(crate) last_seq: u64,
    /// The put on its way.
    pub(crate) op: Option<OpId>,
    /// Background placement of a committed put.
    pub(crate) background: Option<OpId>,
    /// A put that a crash interrupted: the same bytes go out again.
    pub(crate) intent: Option<ManifestWire>,
    /// When the next put is due, in monotonic microseconds.
    pub(crate) due_us: Option<u64>,
    /// The next put is due early, to spread over more holders; without them it is due when it was (monotonic microseconds).
    pub(crate) grow_from: Option<u64>,
    /// Somebody joined during the put on its way, which may not have seen them.
    pub(crate) joined_meanwhile: bool,
    /// Attempts since the last commit.
    pub(crate) failures: u32,
    /// Those who wait have seen a put fail for want of holders that the next one does without.
    pub(crate) tried_again: bool,
    /// Waiting for the put on its way.
    pub(crate) waiting: Vec<PutWaiter>,
    /// Waiting for a put of the changed content.
    pub(crate) waiting_next: Vec<PutWaiter>,
    /// Its name is not yet committed in the index: it must not be put before.
    pub(crate) unlisted: bool,
    /// Until when (monotonic) the peers closest to the key know a head that leads to the present holders.
    pub(crate) told_until_us: u64,
    /// Who was closest at the last lookup, and until when (monotonic) that is taken as it is.
    pub(crate) candidates: Option<(u64, Vec<persona_fragments::PeerKey>)>,
    /// Holders that did not answer lately, with the end (monotonic) of their quarantine.
    pub(crate) avoid: BTreeMap<persona_fragments::PeerKey, u64>,
    /// How often its holders were asked what they made of it while this host was away, since it last committed.
    pub(crate) sought: u8,
    /// A set that may still answer found no room in `live`: until then, in milliseconds since the Unix epoch, no put can be known to have reached all.
    pub(crate) forgotten_until_ms: u64,
    /// All its holder sets had expired, and an index that lists it has been put since: the put that follows may begin it anew.
    pub(crate) listed_again: bool,
    /// The last put failed, and nobody was blamed for it, because this machine slept meanwhile.
    pub(crate) slept: bool,
    /// The index that lists this section may be unknown, until then, to whoever takes over: he would write what readers of this one's holders
    /// never hear of. 0 as soon as a later index has reached all that must know it.
    pub(crate) listing_unsure_until_ms: u64,
}

/// Who wants to know how a put went.
#[derive(Clone, Debug)]
pub(crate) enum PutWaiter {
    /// A call; refused rather than stored at a lower level than it demands.
    Call { call: u64, started_us: u64, require_level: Option<u8> },
    /// One of the puts of a call that publishes an agent.
    Publish { call: u64 },
    /// An import.
    Import { import: u64 },
    /// Sections that may be put once the index is committed.
    Unlist { names: Vec<String> },
    /// The canary.
    Canary,
}

impl Owned {
    pub(crate) fn new(owner: &OwnerKey, root: &RootSecret, name: &str, class: Class, ttl_ms: u64, level: u8) -> Self {
        let published = published_name(root, name);
        Self {
            key: SectionKey::derive(owner, &published),
            published,
            class,
            ttl_ms,
            renew_ms: 0,
            level,
            stored: Vec::new(),
            content_version: None,
            epoch: None,
            changed: None,
            head: None,
            placed: 0,
            holds: BTreeSet::new(),
            probed_ms: None,
            replace_from: None,
            replace_after_us: 0,
            live: Vec::new(),
            last_seq: 0,
            op: None,
            background: None,
            intent: None,
            due_us: None,
            grow_from: None,
            joined_meanwhile: false,
            failures: 0,
            tried_again: false,
            waiting: Vec::new(),
            waiting_next: Vec::new(),
            unlisted: false,
            told_until_us: 0,
            candidates: None,
            avoid: BTreeMap::new(),
            sought: 0,
            forgotten_until_ms: 0,
            listing_unsure_until_ms: 0,
            listed_again: false,
            slept: false,
        }
    }

    /// What the disk keeps.
    pub(crate) fn record(&self, owner: &OwnerKey) -> OwnRecord {
        OwnRecord {
            owner: *owner,
            class: self.class,
            ttl_ms: self.ttl_ms,
            renew_ms: self.renew_ms,
            level: self.level,
            stored: self.stored.clone(),
            content_version: self.content_version,
            head: self.head.as_ref().map(CertifiedHead::to_wire),
            live: self.live.clone(),
            forgotten_until_ms: self.unsure_until_ms(),
            last_seq: self.last_seq,
        }
    }

    /// Takes over what the disk kept.
    pub(crate) fn restore(&mut self, mut record: OwnRecord) {
        self.class = record.class;
        self.ttl_ms = record.ttl_ms;
        self.renew_ms = record.renew_ms;
        self.level = record.level;
        self.stored = std::mem::take(&mut record.stored);
        self.content_version = record.content_version;
        self.continue_from(record);
    }

    /// Takes over what the disk kept of a section whose content is not wanted any more: what it was signed as, and who may answer for it.
    pub(crate) fn continue_from(&mut self, record: OwnRecord) {
        self.head = record.head.and_then(|wire| CertifiedHead::trusted(wire).ok());
        self.holds = self.head.iter().flat_map(|head| head.certificate.acks.iter().map(|ack| ack.index)).collect();
        self.placed = self.holds.len() as u8;
        self.live = record.live;
        self.forgotten_until_ms = record.forgotten_until_ms;
        self.last_seq = record.last_seq;
    }

    /// Another manifest of this version is out there: go well past it.
    pub(crate) fn skip_versions(&mut self) {
        self.last_seq += VERSIONS_SKIPPED;
        self.give_up_intent();
    }

    /// The next attempt is a new version. Holders may have this one all the same, so later ones tell them.
    pub(crate) fn give_up_intent(&mut self) {
        if let Some(manifest) = self.intended() {
            self.remember_set(&manifest);
        }
        self.intent = None;
    }

    /// Until when no put can be known to have reached all that must know it, whatever it reaches.
    pub(crate) fn unsure_until_ms(&self) -> u64 {
        self.forgotten_until_ms.max(self.listing_unsure_until_ms)
    }

    /// What a put that is not over says, or was to say.
    pub(crate) fn intended(&self) -> Option<SignedManifest> {
        SignedManifest::trusted(self.intent.clone()?).ok()
    }

    /// Does without these holders for a while, where there are others.
    pub(crate) fn do_without(&mut self, holders: impl IntoIterator<Item = persona_fragments::PeerKey>, now_us: u64) {
        self.avoid.extend(holders.into_iter().map(|peer| (peer, now_us + AVOID_MS * 1000)));
    }

    /// Whoever asked until now waits for this very put: it says the newest there is to say.
    pub(crate) fn join_waiters(&mut self) {
        let joining = std::mem::take(&mut self.waiting_next);
        self.waiting.extend(joining);
    }

    /// Whether newer content waits until this version, whose outcome is unknown, is completed. At first it does, for that is the shortest way to
    /// an outcome; and always if there is an earlier version of unknown outcome too: holders keep each until it is decided, and take no
    /// more than three (docs/spec/quorum.md#a-version-that-is-given-up).
    pub(crate) fn holds_back(&self, intent: &SignedManifest, wall_ms: u64) -> bool {
        self.failures < HELD_BACK_ATTEMPTS || self.undecided(wall_ms).any(|set| set.version < intent.version)
    }

    /// Whether versions that gave way to newer ones may still take up room at their holders.
    pub(crate) fn has_undecided(&self, wall_ms: u64) -> bool {
        self.undecided(wall_ms).next().is_some()
    }

    fn undecided(&self, wall_ms: u64) -> impl Iterator<Item = &OlderSet> {
        let committed = self.head.as_ref().map(|head| head.manifest.version);
        self.live.iter().filter(move |set| committed.is_none_or(|head| set.version > head) && set.expires_at_ms > wall_ms)
    }

    /// Whether it was put before, and nobody who has it need be told of a later version any more: whoever has taken the agent over meanwhile
    /// may have begun it anew, among others.
    pub(crate) fn has_run_out(&self, wall_ms: u64) -> bool {
        let lives = |set: &OlderSet| set.over_at_ms().saturating_add(clock_allowance_ms(self.class)) > wall_ms;
        self.head.as_ref().is_some_and(|head| head.expires_at_ms() <= wall_ms) && !self.live.iter().any(lives)
    }

    /// The level that those who wait for the put on its way demand.
    pub(crate) fn level_demanded(&self) -> Option<u8> {
        let demanded = |waiter: &PutWaiter| match waiter {
            PutWaiter::Call { require_level, .. } => *require_level,
            _ => None,
        };
        self.waiting.iter().filter_map(demanded).max()
    }

    /// Notes that `set` may still answer for an older version. The oldest makes room; what follows is bounded-stale until it is over.
    pub(crate) fn remember_set(&mut self, manifest: &SignedManifest) {
        // One with the same holders is told with this one; but not what followed it under a lease that had run out before.
        let apart = |other: &OlderSet| other.renew_until_ms > 0 && other.expires_at_ms <= manifest.issued_at_ms;
        let mut set = manifest.as_older_set();
        // Its holders may have the earlier version alone, and that may live for longer.
        for other in self.live.iter().filter(|other| other.holders == set.holders && !apart(other)) {
            set.expires_at_ms = set.expires_at_ms.max(other.expires_at_ms);
            set.renew_until_ms = set.renew_until_ms.max(other.renew_until_ms);
        }
        self.live.retain(|other| other.version != set.version && (other.holders != set.holders || apart(other)));
        self.remember([set]);
    }

    /// The node's own sections are leased as their class is here; a document is, as its user said.
    pub(crate) fn lease_as(&mut self, name: &str, class: ClassSpec) {
        if !name.starts_with(DOCUMENT_PREFIX) {
            self.renew_ms = (class.renew_for.as_millis() as u64).min(RENEW_MS_MAX);
        }
    }

    /// The holders have renewed the version, and this is what is known of them now.
    pub(crate) fn remember_lease(&mut self, head: &CertifiedHead, now_ms: u64) {
        self.live.retain(|other| other.version != head.manifest.version);
        self.remember(head.as_older_sets(now_ms));
    }

    fn remember(&mut self, sets: impl IntoIterator<Item = OlderSet>) {
        self.live.extend(sets);
        self.live.sort_by(|a, b| a.order().cmp(&b.order()));
        self.live.dedup_by(|a, b| a.order() == b.order());
        while self.live.len() > persona_fragments::manifest::OLDER_SETS_MAX {
            let set = self.live.remove(0);
            self.forgotten_until_ms = self.forgotten_until_ms.max(set.over_at_ms().saturating_add(clock_allowance_ms(self.class)));
        }
    }
}

/// One row of the owner's table (docs/spec/store.md#own).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct OwnRecord {
    pub(crate) owner: OwnerKey,
    pub(crate) class: Class,
    pub(crate) ttl_ms: u64,
    pub(crate) renew_ms: u64,
    pub(crate) level: u8,
    pub(crate) stored: Vec<u8>,
    pub(crate) content_version: Option<Version>,
    pub(crate) head: Option<HeadWire>,
    pub(crate) live: Vec<OlderSet>,
    pub(crate) forgotten_until_ms: u64,
    pub(crate) last_seq: u64,
}

impl Owner {
    /// An owner without sections.
    pub(crate) fn new(root: RootSecret, term: u64, state: OwnerState, signer: &OwnerSigner) -> Self {
        let signer = signer(&root);
        Self {
            id: OwnerKey(signer.public_key()),
            recovery: root.recovery_key(),
            signer,
            root,
            term,
            sections: BTreeMap::new(),
            agent: None,
            state,
        }
    }

    /// The node as an owner: of its canary and its benchmark sections. Its keys come from the node's secret, under a label of their own.
    pub(crate) fn of_node(secret: &Zeroizing<[u8; 32]>, signer: &OwnerSigner) -> Self {
        let mut root = Zeroizing::new([0; 32]);
        hkdf::Hkdf::<sha2::Sha256>::new(None, secret.as_slice())
            .expand(b"persona/node-sections/v1", root.as_mut())
            .expect("32 bytes are within HKDF's output");
        Self::new(RootSecret::from_bytes(*root), 1, OwnerState::Live, signer)
    }

    /// The earliest time at which a section is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        if !self.writes() {
            return None;
        }
        self.sections.values().filter(|owned| owned.op.is_none() && !owned.unlisted).filter_map(|owned| owned.due_us).min()
    }

    /// Whether it may write.
    pub(crate) fn writes(&self) -> bool {
        matches!(self.state, OwnerState::Live | OwnerState::Importing)
    }
}
