//! What the auditor remembers, and how it judges time and faults. What happened is taken in beside it: [`crate::traffic`],
//! [`crate::storage`], [`crate::operations`].

use std::collections::{BTreeMap, BTreeSet};

use persona_foreign::head::Version;

use crate::{
    Finding, Report, Verify,
    book::{Book, Known, ManifestId},
    decode::RawManifest,
    disk::{Disk, Key},
    history::{Event, Id, Machine, Mode, What},
    secrets::Secrets,
};

/// Something was judged by a clock at one moment and seen a little later: a disk may lie between, or the network's queue. Nobody is
/// called late, or early, for so many milliseconds.
pub(crate) const LATE_MS: u64 = 2_000;

/// A clock that is off by less is never off by more than 2 s from the median of honest ones: its machine goes by it alone.
pub(crate) const MESH_TIME_FROM_MS: u64 = 1_000;

/// An answer about a clock that took longer is not believed (docs/spec/quorum.md#clocks).
pub(crate) const CLOCK_ANSWER_US: u64 = 500_000;

/// For how long such an answer is believed, and a little more.
const CLOCK_BELIEVED_US: u64 = 302_000_000;

/// Findings that are kept. Whatever comes after is not kept: so many say enough.
const FINDINGS_MAX: usize = 1_000;

/// What must be seen sometimes, or the histories try too little.
pub(crate) mod mark {
    /// An answer named a version that was acked, but not certified.
    pub(crate) const UNCERTIFIED: &str = "uncertified";
    /// A shard was asked for, and a newer version named.
    pub(crate) const SUPERSEDED: &str = "superseded";
    /// A COMMIT by somebody who did not write the version.
    pub(crate) const WRITE_BACK: &str = "write-back";
    /// A put committed, but could not tell an older set.
    pub(crate) const BOUNDED_STALE: &str = "bounded-stale";
    /// A put or a get ended because another host has taken over.
    pub(crate) const FENCED: &str = "fenced";
    /// A PREPARE was answered with another manifest of its version.
    pub(crate) const CONFLICT: &str = "conflict";
    /// A get ended so.
    pub(crate) const POISONED: &str = "poisoned";
    /// A get ended so.
    pub(crate) const DATA_LOST: &str = "data-lost";
    /// A holder said that it forgot.
    pub(crate) const RECOVERING: &str = "recovering";
    /// A PREPARE with its shard by somebody who did not write the version.
    pub(crate) const REPAIR_PUSH: &str = "repair-push";
    /// A certified head was had from a machine that is not in its holder set.
    pub(crate) const OLD_SET: &str = "old-set";
    /// A holder had too much to do, or too many uncommitted versions.
    pub(crate) const BUSY: &str = "busy";
    /// A renewal was told that the shard is not there.
    pub(crate) const NEED_SHARD: &str = "need-shard";
    /// A head was named whose life is over.
    pub(crate) const EXPIRED_HEAD: &str = "expired-head";
    /// A check was not made, because more of a set's holders were faulty than it tolerates.
    pub(crate) const BEYOND_F: &str = "beyond-f";

    /// A holder consented that a section be renewed while its owner is away.
    pub(crate) const RENEWED: &str = "renewed";
    /// A holder acked a change of a leased section's holders.
    pub(crate) const HANDED_OVER: &str = "handed-over";

    pub(crate) const ALL: [&str; 17] = [
        UNCERTIFIED,
        SUPERSEDED,
        WRITE_BACK,
        BOUNDED_STALE,
        FENCED,
        CONFLICT,
        POISONED,
        DATA_LOST,
        RECOVERING,
        REPAIR_PUSH,
        OLD_SET,
        BUSY,
        NEED_SHARD,
        EXPIRED_HEAD,
        BEYOND_F,
        RENEWED,
        HANDED_OVER,
    ];
}

/// Judges a history, one event at a time.
pub struct Auditor {
    pub(crate) book: Book,
    pub(crate) secrets: Secrets,
    report: Report,
    pub(crate) now_us: u64,
    begins_ms: u64,
    pub(crate) grace_us: u64,
    pub(crate) prepared_max: usize,
    pub(crate) nodes: BTreeMap<Machine, Node>,
    pub(crate) by_peer: BTreeMap<[u8; 32], Machine>,
    pub(crate) sections: BTreeMap<Key, Section>,
    pub(crate) frames: BTreeMap<Id, crate::traffic::Frame>,
    pub(crate) operations: BTreeMap<Id, Operation>,
    pub(crate) healed_us: Option<u64>,
    pub(crate) aborted: BTreeSet<(Key, Version)>,
}

/// A promise never to ack a version.
#[derive(Default)]
pub(crate) struct Promised {
    /// The manifest that is certified here since, by its name.
    pub certified: Option<[u8; 32]>,
    /// When the last manifest that it was asked about is over: so long it is remembered.
    pub over_ms: u64,
}

/// A machine, and the process on it.
pub(crate) struct Node {
    pub peer: [u8; 32],
    pub correct: bool,
    pub up: bool,
    pub ahead_ms: i64,
    /// What it was until the moment beside it.
    ahead_before: Option<(i64, u64)>,
    /// The most that it ever was, 0 at least, and the furthest that it ever was off.
    ahead_max_ms: i64,
    off_max_ms: u64,
    /// Until when its clock was last further off than half of 2 s, and half of 10 s.
    wild_until_us: [Option<u64>; 2],
    /// When its disk was last lost, in whole or in part.
    pub lost_us: Option<u64>,
    /// When it last lost what it promised, and could not know.
    pub forgot_us: Option<u64>,
    /// Its disk changed behind the back of its process: what the process says is of another disk, until the next one starts.
    pub behind_its_back: bool,
    /// What its process was told of the clocks of others: when, and whether it was wrong.
    pub clocks: BTreeMap<[u8; 32], (u64, bool)>,
    pub disk: Disk,
    /// Which manifest it acked, of each version.
    pub acked: BTreeMap<(Key, Version), ManifestId>,
    /// What it promised never to ack.
    pub promised: BTreeMap<(Key, Version), Promised>,
    /// Links that it signed, by manifest and generation, and when first.
    pub signed: BTreeMap<(ManifestId, u64), (crate::traffic::Signature, u64)>,
    /// The highest version that it returned, of each section, and until when that binds it.
    pub floors: BTreeMap<Key, (Version, u64)>,
    pub served: BTreeMap<Key, ManifestId>,
    /// What was heard here about each manifest.
    pub heard: BTreeMap<ManifestId, Heard>,
    /// What was shown here in answer to HEAD, and when for the first time.
    pub shown: BTreeMap<ManifestId, u64>,
}

/// Answers that arrived at a writer.
#[derive(Default)]
pub(crate) struct Heard {
    /// Indices of holders whose acks came.
    pub acks: u16,
    /// Peers that answered `Committed`.
    pub committed: BTreeSet<[u8; 32]>,
}

/// What is known of a section.
#[derive(Default)]
pub(crate) struct Section {
    /// Manifests whose owner signed them, by version.
    pub manifests: BTreeMap<Version, Vec<ManifestId>>,
    /// The highest version of which enough acks were seen.
    pub certified: Option<Version>,
    /// Puts that ended committed.
    pub committed: Vec<Committed>,
    /// Of those, whose promise to survive is still watched.
    pub watched: Vec<Watched>,
    /// The versions that gets labelled atomic returned.
    pub atomic: BTreeSet<Version>,
    /// Manifests whose content was returned, and whether their hashes are those of a codeword.
    pub read: BTreeMap<ManifestId, bool>,
    /// Gets that ended poisoned: when, where, and what they may have meant.
    pub poisoned: Vec<(u64, Machine, Vec<ManifestId>)>,
}

/// A put that ended committed.
pub(crate) struct Committed {
    pub id: ManifestId,
    pub version: Version,
    pub at_us: u64,
    pub stale_until_ms: Option<u64>,
}

/// A committed version that must survive.
#[derive(Clone, Copy)]
pub(crate) struct Watched {
    pub id: ManifestId,
    pub level: u8,
}

/// Something begun.
pub(crate) enum Operation {
    Put { machine: Machine, key: Key },
    Get { machine: Machine, key: Key, mode: Mode, begun: Begun },
}

/// What a get may not fall behind: taken when it begins.
#[derive(Clone, Copy, Default)]
pub(crate) struct Begun {
    /// The highest version that had committed (I3).
    pub committed: Option<Version>,
    /// The highest version that an atomic get had returned, and that is no longer in doubt (I5).
    pub atomic: Option<Version>,
    /// The highest version that this machine had returned (I6).
    pub floor: Option<Version>,
    /// When.
    pub at_us: u64,
}

impl Node {
    /// The furthest that its clock ever was off, in milliseconds.
    pub(crate) fn worst_ms(&self) -> u64 {
        self.off_max_ms
    }
}

impl Auditor {
    /// Of a history of which nothing was read yet.
    pub fn new(verify: Verify) -> Self {
        let marks = mark::ALL.into_iter().map(|mark| (mark, 0)).collect();
        Self {
            book: Book::new(verify),
            secrets: Secrets::default(),
            report: Report { findings: Vec::new(), marks, events: 0 },
            now_us: 0,
            begins_ms: 0,
            grace_us: 10_000_000,
            prepared_max: 3,
            nodes: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            sections: BTreeMap::new(),
            frames: BTreeMap::new(),
            operations: BTreeMap::new(),
            healed_us: None,
            aborted: BTreeSet::new(),
        }
    }

    /// Reads the next event.
    pub fn observe(&mut self, event: &Event) {
        self.report.events += 1;
        self.now_us = self.now_us.max(event.at_us);
        match &event.what {
            What::Begins { wall_ms, grace_ms, prepared_max } => {
                (self.begins_ms, self.grace_us) = (*wall_ms, grace_ms * 1000);
                self.prepared_max = *prepared_max as usize;
            }
            What::Machine { machine, peer, correct } => self.machine(*machine, *peer, *correct),
            What::Up { machine } => self.up(*machine),
            What::Down { machine } => self.down(*machine),
            What::Skew { machine, ahead_ms } => self.skew(*machine, *ahead_ms),
            What::DiskLost { machine, noticed } => self.disk_lost(*machine, *noticed),
            What::Rot { machine, table, key } => self.rot(*machine, *table, key),
            What::Durable { machine, writes } => self.durable(*machine, writes),
            What::Asked { frame, from, to, bytes } => self.asked(*frame, *from, to, bytes),
            What::Answered { frame, from, bytes } => self.answered(*frame, *from, bytes),
            What::Heard { frame } => self.heard(*frame),
            What::Serves { machine, key, record } => self.serves(*machine, key, record.as_deref()),
            What::PutBegins { op, machine, key } => {
                self.operations.insert(*op, Operation::Put { machine: *machine, key: *key });
            }
            What::PutEnds { op, outcome } => self.put_ends(*op, outcome),
            What::GetBegins { op, machine, key, mode } => self.get_begins(*op, *machine, key, *mode),
            What::GetEnds { op, outcome } => self.get_ends(*op, outcome),
            What::Alarm { .. } => {}
            What::Heals => self.healed_us = Some(self.now_us),
            What::Ends => self.ends(),
        }
        for id in self.book.newly_certified() {
            let Known { manifest, .. } = self.book.get(id);
            let (key, version) = (manifest.key, manifest.version);
            let section = self.sections.entry(key).or_default();
            section.certified = section.certified.max(Some(version));
            self.one_certificate(id);
        }
    }

    /// These bytes may appear in no frame and in nothing durable (I17). At least 8 bytes; shorter ones are not looked for.
    pub fn secret(&mut self, bytes: &[u8]) {
        self.secrets.add(bytes);
    }

    /// An abort certificate proves that this version never committed: its holders may drop it. Its format is reserved, so whoever writes
    /// one tells.
    pub fn aborted(&mut self, key: [u8; 32], version: Version) {
        self.aborted.insert((key, version));
    }

    /// What was found up to here.
    pub fn findings(&self) -> &[Finding] {
        &self.report.findings
    }

    /// How often each thing was seen that must be seen sometimes.
    pub fn marks(&self) -> &BTreeMap<&'static str, u64> {
        &self.report.marks
    }

    /// What can be judged only in the end is judged, and everything is handed over.
    pub fn finish(mut self) -> Report {
        self.one_verdict();
        self.report
    }

    pub(crate) fn find(&mut self, invariant: &'static str, what: String) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(Finding { invariant, at_us: self.now_us, what });
        }
    }

    pub(crate) fn mark(&mut self, mark: &'static str) {
        *self.report.marks.entry(mark).or_default() += 1;
    }
}

// Machines.
impl Auditor {
    fn machine(&mut self, machine: Machine, peer: [u8; 32], correct: bool) {
        let twin = self.by_peer.insert(peer, machine).and_then(|twin| self.nodes.get_mut(&twin));
        let twins = twin.is_some();
        if let Some(twin) = twin {
            twin.correct = false; // two processes with one key: neither is what the protocol calls a node
        }
        let node = Node {
            peer,
            correct: correct && !twins,
            up: false,
            ahead_ms: 0,
            ahead_before: None,
            ahead_max_ms: 0,
            off_max_ms: 0,
            wild_until_us: [None; 2],
            lost_us: None,
            forgot_us: None,
            behind_its_back: false,
            clocks: BTreeMap::new(),
            disk: Disk::default(),
            acked: BTreeMap::new(),
            promised: BTreeMap::new(),
            signed: BTreeMap::new(),
            floors: BTreeMap::new(),
            served: BTreeMap::new(),
            heard: BTreeMap::new(),
            shown: BTreeMap::new(),
        };
        self.nodes.insert(machine, node);
    }

    fn up(&mut self, machine: Machine) {
        if let Some(node) = self.nodes.get_mut(&machine) {
            node.up = true;
            node.behind_its_back = false;
            node.clocks.clear();
        }
    }

    /// Whoever waited for what its process was doing waits no more.
    fn down(&mut self, machine: Machine) {
        if let Some(node) = self.nodes.get_mut(&machine) {
            node.up = false;
            node.served.clear();
        }
        self.operations.retain(|_, operation| match operation {
            Operation::Put { machine: at, .. } | Operation::Get { machine: at, .. } => *at != machine,
        });
    }

    fn skew(&mut self, machine: Machine, ahead_ms: i64) {
        let (now_us, ideal_ms) = (self.now_us, self.ideal_ms());
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        for (place, allowance_ms) in [2_000, 10_000].into_iter().enumerate() {
            if is_wild(node.ahead_ms, allowance_ms) {
                node.wild_until_us[place] = Some(now_us);
            }
        }
        let reached_ms = (ideal_ms + node.ahead_ms.max(ahead_ms)).max(0) as u64;
        node.floors.retain(|_, (_, until_ms)| *until_ms > reached_ms);
        node.ahead_before = Some((node.ahead_ms, now_us));
        node.ahead_ms = ahead_ms;
        node.ahead_max_ms = node.ahead_max_ms.max(ahead_ms);
        node.off_max_ms = node.off_max_ms.max(ahead_ms.unsigned_abs());
    }

    pub(crate) fn is_correct(&self, machine: Machine) -> bool {
        self.nodes.get(&machine).is_some_and(|node| node.correct)
    }

    pub(crate) fn node_of(&self, peer: &[u8; 32]) -> Option<&Node> {
        self.nodes.get(self.by_peer.get(peer)?)
    }
}

// Time.
impl Auditor {
    /// Milliseconds since the Unix epoch, on the ideal clock.
    pub(crate) fn ideal_ms(&self) -> i64 {
        (self.begins_ms + self.now_us / 1000) as i64
    }

    /// What it showed then.
    pub(crate) fn ideal_ms_at(&self, at_us: u64) -> u64 {
        self.begins_ms + at_us / 1000
    }

    /// What a machine's clock shows.
    pub(crate) fn wall_ms(&self, node: &Node) -> u64 {
        (self.ideal_ms() + node.ahead_ms).max(0) as u64
    }

    /// The least that its clock showed a moment ago, when it may have judged what is seen now.
    pub(crate) fn early_ms(&self, node: &Node) -> u64 {
        let recent = node.ahead_before.filter(|(_, until_us)| self.now_us <= until_us + LATE_MS * 1000);
        let ahead_ms = recent.map_or(node.ahead_ms, |(before, _)| before.min(node.ahead_ms));
        (self.ideal_ms() + ahead_ms - LATE_MS as i64).max(0) as u64
    }

    /// The most that its clock may ever have shown.
    pub(crate) fn late_ms(&self, node: &Node) -> u64 {
        (self.ideal_ms() + node.ahead_max_ms).max(0) as u64
    }

    /// Whether a version's life is over for a machine, allowance included, and was a moment ago: by its own clock; or, if that is
    /// within the allowance, by the ideal clock with twice the allowance.
    pub(crate) fn is_over(&self, node: &Node, known: &Known) -> bool {
        let in_time = node.ahead_ms.unsigned_abs() <= known.allowance_ms();
        let ideal_ms = (self.ideal_ms() as u64).saturating_sub(LATE_MS);
        self.early_ms(node) > known.over_ms() || in_time && ideal_ms > known.over_ms() + known.allowance_ms()
    }

    /// The same for what a reader returns. One whose clock is off may go by the median of its peers' clocks, which is within the allowance, or not
    /// yet know it: then both must say so. Of one that [`Self::is_misled`] nothing is asked.
    pub(crate) fn is_over_for_reader(&self, node: &Node, known: &Known) -> bool {
        if self.is_misled(node) {
            return false;
        }
        let ideal_ms = (self.ideal_ms() as u64).saturating_sub(LATE_MS);
        let by_its_peers = ideal_ms > known.over_ms() + known.allowance_ms();
        self.is_over(node, known) && (node.ahead_ms.unsigned_abs() <= MESH_TIME_FROM_MS || by_its_peers)
    }

    /// Whether half of the clocks that a machine was told of are those of liars, or are off: then the median may be such a one.
    pub(crate) fn is_misled(&self, node: &Node) -> bool {
        let believed = node.clocks.values().filter(|(at_us, _)| self.now_us <= at_us + CLOCK_BELIEVED_US);
        let (wrong, told) = believed.fold((0, 0), |(wrong, told), (_, is_wrong)| (wrong + usize::from(*is_wrong), told + 1));
        wrong > 0 && wrong * 2 >= told
    }

    /// Whether a machine's clock is, or since then was, so far off that another one within the assumption may differ by more than the
    /// allowance.
    pub(crate) fn is_wild(&self, node: &Node, known: &Known, since_us: u64) -> bool {
        let allowance_ms = known.allowance_ms();
        let until_us = node.wild_until_us[usize::from(allowance_ms > 2_000)];
        is_wild(node.ahead_ms, allowance_ms) || until_us.is_some_and(|until_us| until_us >= since_us)
    }
}

fn is_wild(ahead_ms: i64, allowance_ms: u64) -> bool {
    ahead_ms.unsigned_abs() > allowance_ms / 2
}

// Faults.
impl Auditor {
    /// Whether a holder counts among the `f` of a manifest: it does not do what the protocol says, its clock is off, or it forgot what it
    /// promised without knowing it, since the manifest was there. One that knows that it forgot says so, and is none.
    pub(crate) fn is_faulty(&self, peer: &[u8; 32], known: &Known) -> bool {
        self.node_of(peer).is_none_or(|node| {
            !node.correct || node.forgot_us.is_some_and(|at_us| at_us >= known.first_us) || self.is_wild(node, known, known.first_us)
        })
    }

    /// Whether more holders are faulty than tolerated, in the set of any version from `low` to `high`: then freshness is not promised.
    pub(crate) fn beyond_f(&self, key: &Key, low: Version, high: Version) -> bool {
        let Some(section) = self.sections.get(key) else { return false };
        let range = low.min(high)..=high.max(low);
        section.manifests.range(range).flat_map(|(_, ids)| ids).any(|id| {
            let known = self.book.get(*id);
            known.sets().any(|set| set.iter().filter(|peer| self.is_faulty(peer, known)).count() > known.shape()[2])
        })
    }

    /// Whether a higher host's fence for an owner is on anybody's disk.
    pub(crate) fn is_fenced(&self, owner: &[u8; 32], version: Version) -> bool {
        self.nodes.values().any(|node| node.disk.fences.get(owner).is_some_and(|fence| fence.by > host(&version)))
    }

    /// Whether that is so of any version of any section of this owner that lives at `ideal_ms`.
    pub(crate) fn owner_beyond_f(&self, owner: &[u8; 32], ideal_ms: u64) -> bool {
        self.sections.iter().any(|(key, section)| {
            let lives = |id: &ManifestId| {
                let known = self.book.get(*id);
                known.manifest.owner == *owner && known.over_ms() > ideal_ms
            };
            section.manifests.iter().any(|(version, ids)| ids.iter().any(lives) && self.beyond_f(key, *version, *version))
        })
    }

    /// Holders of a version that are lost to it: they do not do what the protocol says, lost their disk or its shard since it was
    /// there, or dropped it by a clock that was off.
    pub(crate) fn lost_holders(&self, known: &Known) -> usize {
        let is_lost = |(index, peer): &(usize, &[u8; 32])| {
            self.node_of(peer).is_none_or(|node| {
                let shard = node.disk.shards.get(&(known.manifest.key, known.manifest.shard_hashes[*index]));
                !node.correct
                    || node.lost_us.is_some_and(|at_us| at_us >= known.first_us)
                    || shard.is_some_and(|shard| shard.rotted)
                    || self.is_wild(node, known, known.first_us)
            })
        };
        known.manifest.holders.iter().enumerate().filter(is_lost).count()
    }

    /// Shards of a version that lie on disks of correct holders; `up`: of those that run.
    pub(crate) fn shards_on_disks(&self, known: &Known, up: bool) -> usize {
        let places = known.manifest.holders.iter().zip(&known.manifest.shard_hashes);
        let holds = |(peer, hash): &(&[u8; 32], &[u8; 32])| {
            self.node_of(peer).is_some_and(|node| node.correct && (node.up || !up) && node.disk.has_shard(&known.manifest.key, hash))
        };
        places.filter(holds).count()
    }
}

// Names, and the book.
impl Auditor {
    /// Looks a manifest up; a new one that its owner signed is entered into its section.
    pub(crate) fn learn(&mut self, raw: &RawManifest<'_>) -> Option<ManifestId> {
        let (id, is_new) = self.book.manifest(raw, self.now_us)?;
        if is_new {
            self.enter(id);
        }
        Some(id)
    }

    /// Looks a head up, likewise; the flag says whether it is certified.
    pub(crate) fn learn_head(&mut self, raw: &crate::decode::RawHead<'_>) -> Option<(ManifestId, bool)> {
        self.learn(&raw.manifest)?;
        self.book.head(raw, self.now_us)
    }

    fn enter(&mut self, id: ManifestId) {
        let known = self.book.get(id);
        if known.valid {
            self.sections.entry(known.manifest.key).or_default().manifests.entry(known.version()).or_default().push(id);
        }
    }

    /// I2: of one version, correct hosts write one manifest. A host that lost what it had written down is excused.
    pub(crate) fn leaves(&mut self, id: ManifestId, writer: Machine) {
        let known = self.book.get_mut(id);
        if known.writer.is_some() || !known.valid {
            return;
        }
        known.writer = Some(writer);
        let known = self.book.get(id);
        let trusted = |machine: Option<Machine>| {
            machine.and_then(|machine| self.nodes.get(&machine)).is_some_and(|node| node.correct && node.lost_us.is_none())
        };
        let others = &self.sections[&known.manifest.key].manifests[&known.version()];
        let differs = |other: &&ManifestId| self.book.get(**other).hash != known.hash && trusted(self.book.get(**other).writer);
        let twice = trusted(Some(writer)).then(|| others.iter().find(differs)).flatten();
        if let Some(other) = twice {
            let first = self.book.get(*other).writer.unwrap_or_default();
            let what = format!("machines {first} and {writer} wrote two manifests of {}", self.name(id));
            self.find("I2", what);
        }
    }

    /// Section and version of a manifest.
    pub(crate) fn name(&self, id: ManifestId) -> String {
        let known = self.book.get(id);
        format!("version {} of section {}", text(&known.version()), hex(&known.manifest.key[..4]))
    }
}

/// A host: a later term beats a device.
pub(crate) fn host(version: &Version) -> (u64, [u8; 32]) {
    (version.term, version.device)
}

/// `TERM.DEVICE.SEQ`, as reports have it.
pub(crate) fn text(version: &Version) -> String {
    format!("{}.{}.{}", version.term, hex(&version.device[..4]), version.seq)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
