//! Histories made by hand: a few machines, one owner, and what they say and store, one step at a time.

use persona_foreign::{
    frame::Writer,
    head::{
        Ack, Head, Manifest, OlderSet, Version, leaf_hash, manifest_hash, manifest_message, never_leaf_hash, root_message, section_key,
    },
};
use sha2::{Digest as _, Sha256};

use crate::{
    Auditor, Report, codeword,
    history::{Change, Event, GetOutcome, Id, Machine, Mode, PutOutcome, What},
};

/// Who writes; it holds nothing.
pub(super) const WRITER: Machine = 0;
/// The host that takes over.
pub(super) const OTHER: Machine = 20;
/// Who reads.
pub(super) const READER: Machine = 30;
/// Holders of the section: n = 4, k = 2, f = 1.
pub(super) const HOLDERS: [Machine; 4] = [1, 2, 3, 4];
/// Other holders.
pub(super) const OTHERS: [Machine; 4] = [5, 6, 7, 8];

pub(super) const WALL_MS: u64 = 1_700_000_000_000;
pub(super) const TTL_MS: u64 = 3_600_000;
pub(super) const CONTENT: &[u8] = b"be kind, and write it down twice";

pub(super) const OWNER: [u8; 32] = [1; 32];

pub(super) fn peer(machine: Machine) -> [u8; 32] {
    [0x40 + machine as u8; 32]
}

/// A signature that costs nothing, and that only this judge takes for one.
fn sign(key: &[u8; 32], message: &[u8]) -> [u8; 64] {
    let half: [u8; 32] = Sha256::new().chain_update(key).chain_update(message).finalize().into();
    [half, half].concat().try_into().unwrap()
}

pub(super) fn key() -> [u8; 32] {
    section_key(&OWNER, b"core")
}

pub(super) fn version(term: u64, seq: u64) -> Version {
    Version { term, device: [term as u8; 32], seq }
}

pub(super) fn version_text(version: &Version) -> String {
    crate::auditor::text(version)
}

/// A manifest, signed.
#[derive(Clone)]
pub(super) struct Signed {
    pub manifest: Manifest,
    pub body: Vec<u8>,
    pub signature: [u8; 64],
    pub hash: [u8; 32],
    pub shards: Vec<Vec<u8>>,
}

pub(super) fn signed(manifest: Manifest, shards: Vec<Vec<u8>>) -> Signed {
    let body = manifest.encode();
    Signed { signature: sign(&manifest.owner, &manifest_message(&body)), hash: manifest_hash(&body), manifest, body, shards }
}

/// A version of the section as its owner would put it now.
pub(super) fn manifest_of(version: Version, holders: &[Machine], content: &[u8], issued_at_ms: u64) -> Signed {
    let (n, k) = (holders.len() as u8, 2);
    let shards = codeword::shards(content, n, k);
    let manifest = Manifest {
        key: key(),
        owner: OWNER,
        name: b"core".to_vec(),
        version,
        content_version: version,
        class: 0,
        level: 2,
        issued_at_ms,
        ttl_ms: TTL_MS,
        renew_until_ms: 0,
        content_len: content.len() as u32,
        shape: [n, k, (n - 1) / 3],
        content_hash: *blake3::hash(content).as_bytes(),
        shard_hashes: shards.iter().map(|shard| *blake3::hash(shard).as_bytes()).collect(),
        holders: holders.iter().map(|machine| peer(*machine)).collect(),
        older: Vec::new(),
    };
    signed(manifest, shards)
}

impl Signed {
    pub(super) fn with_older(self, older: &Signed) -> Self {
        let mut manifest = self.manifest;
        manifest.older.push(OlderSet {
            version: older.manifest.version,
            holders: older.manifest.holders.clone(),
            expires_at_ms: older.manifest.issued_at_ms + older.manifest.ttl_ms,
            renew_until_ms: 0,
        });
        signed(manifest, self.shards)
    }

    pub(super) fn ack(&self, index: u8) -> Ack {
        let root = leaf_hash(&self.manifest, &self.hash, index);
        let signature = sign(&self.manifest.holders[usize::from(index)], &root_message(1, &root));
        Ack { index, position: 0, batch: 1, path: Vec::new(), signature }
    }

    pub(super) fn head_with(&self, indices: &[u8]) -> Vec<u8> {
        let acks = indices.iter().map(|index| self.ack(*index)).collect();
        Head { body: self.body.clone(), signature: self.signature, acks, handover: None }.encode()
    }

    /// Certified by the first three.
    pub(super) fn head(&self) -> Vec<u8> {
        self.head_with(&[0, 1, 2])
    }

    fn wire(&self, writer: Writer) -> Writer {
        writer.bytes(&self.body).raw(&self.signature)
    }

    pub(super) fn text(&self) -> String {
        version_text(&self.manifest.version)
    }

    pub(super) fn row_key(&self) -> Vec<u8> {
        let Version { term, device, seq } = self.manifest.version;
        [&self.manifest.key[..], &term.to_be_bytes(), &device, &seq.to_be_bytes()].concat()
    }

    pub(super) fn held(&self, index: u8, received_ms: u64) -> Change {
        let value = self.wire(Writer::new().varint(0)).raw(&[index]).varint(received_ms).finish();
        Change { table: 2, key: self.row_key(), value: Some(value) }
    }

    pub(super) fn floor(&self, until_ms: u64) -> Change {
        let value = Writer::new().varint(1).raw(&self.hash).varint(until_ms).finish();
        Change { table: 2, key: self.row_key(), value: Some(value) }
    }

    pub(super) fn gone(&self) -> Change {
        Change { table: 2, key: self.row_key(), value: None }
    }

    pub(super) fn shard_key(&self, index: u8) -> Vec<u8> {
        [self.manifest.key, self.manifest.shard_hashes[usize::from(index)]].concat()
    }

    pub(super) fn shard(&self, index: u8) -> Change {
        Change { table: 1, key: self.shard_key(index), value: Some(self.shards[usize::from(index)].clone()) }
    }

    pub(super) fn shard_gone(&self, index: u8) -> Change {
        Change { table: 1, key: self.shard_key(index), value: None }
    }

    pub(super) fn head_row(&self) -> Change {
        self.head_row_of(&self.head())
    }

    pub(super) fn head_row_of(&self, head: &[u8]) -> Change {
        let value = Writer::new().raw(&head[1..]).varint(WALL_MS).varint(self.manifest.issued_at_ms + TTL_MS + 10_000).finish();
        Change { table: 3, key: self.manifest.key.to_vec(), value: Some(value) }
    }

    /// A request to ack a link of this time that replaces nobody. Nobody looks at its consents.
    pub(super) fn handover(&self, index: u8, issued_at_ms: u64) -> Vec<u8> {
        let writer = Writer::new().varint(1).varint(8).raw(&self.head()[1..]).raw(&[index]);
        writer.varint(issued_at_ms).varint(0).varint(0).finish()
    }

    /// The same version, which its holders may renew for so long.
    pub(super) fn renewable(self, renew_ms: u64) -> Self {
        let renew_until_ms = self.manifest.issued_at_ms + renew_ms;
        signed(Manifest { renew_until_ms, ..self.manifest }, self.shards)
    }

    fn index_of(&self, machine: Machine) -> u8 {
        self.manifest.holders.iter().position(|holder| *holder == peer(machine)).expect("a holder") as u8
    }

    pub(super) fn prepare(&self, index: u8, with_shard: bool) -> Vec<u8> {
        let writer = self.wire(Writer::new().varint(1).varint(0)).raw(&[index]);
        let shard = &self.shards[usize::from(index)];
        if with_shard { writer.raw(&[1]).bytes(shard) } else { writer.raw(&[0]) }.finish()
    }

    pub(super) fn commit(&self) -> Vec<u8> {
        self.commit_of(&self.head())
    }

    pub(super) fn commit_of(&self, head: &[u8]) -> Vec<u8> {
        Writer::new().varint(1).varint(1).raw(&head[1..]).finish()
    }

    pub(super) fn acked(&self, index: u8) -> Vec<u8> {
        ack_bytes(Writer::new().varint(1).varint(0), &self.ack(index)).finish()
    }

    pub(super) fn asks_never(&self, index: u8) -> Vec<u8> {
        self.wire(Writer::new().varint(1).varint(5)).raw(&[index]).raw(&[0; 64]).finish()
    }

    pub(super) fn promised(&self, index: u8) -> Vec<u8> {
        let root = never_leaf_hash(&self.manifest, index);
        let signature = sign(&self.manifest.holders[usize::from(index)], &root_message(1, &root));
        let never = Ack { index, position: 0, batch: 1, path: Vec::new(), signature };
        ack_bytes(Writer::new().varint(1).varint(13), &never).finish()
    }

    /// An answer to HEAD that names this as certified.
    pub(super) fn answers_head(&self) -> Vec<u8> {
        let writer = Writer::new().varint(1).varint(3).raw(&[1]).raw(&self.head()[1..]);
        writer.raw(&[0]).varint(0).raw(&[0]).raw(&[0]).finish()
    }

    /// An answer to HEAD that names this as acked.
    pub(super) fn answers_prepared(&self, index: u8) -> Vec<u8> {
        let writer = self.wire(Writer::new().varint(1).varint(3).raw(&[0, 0]).varint(1));
        ack_bytes(writer, &self.ack(index)).raw(&[0]).raw(&[0]).finish()
    }

    pub(super) fn asks_shard(&self) -> Vec<u8> {
        let Version { term, device, seq } = self.manifest.version;
        Writer::new().varint(1).varint(3).raw(&self.manifest.key).varint(term).raw(&device).varint(seq).finish()
    }

    pub(super) fn answers_shard(&self, index: u8) -> Vec<u8> {
        Writer::new().varint(1).varint(4).raw(&[index]).bytes(&self.shards[usize::from(index)]).finish()
    }
}

fn ack_bytes(writer: Writer, ack: &Ack) -> Writer {
    let writer = writer.raw(&[ack.index]).varint(ack.position.into()).varint(ack.batch.into());
    writer.list(&ack.path, |writer, hash| writer.raw(hash)).raw(&ack.signature)
}

pub(super) fn asks_head() -> Vec<u8> {
    Writer::new().varint(1).varint(2).raw(&key()).raw(&[0, 0]).finish()
}

/// `NeedShard` 1, `Committed` 2, `Absent` 6, `Recovering` 7, `Busy` 8.
pub(super) fn answers(variant: u64) -> Vec<u8> {
    Writer::new().varint(1).varint(variant).finish()
}

pub(super) const COMMITTED: u64 = 2;

/// A history under way.
pub(super) struct Scene {
    pub auditor: Auditor,
    pub at_us: u64,
    last_id: Id,
    /// Every event, as a file would have it.
    pub lines: Vec<String>,
}

impl Scene {
    /// Writer, other host, reader and eight holders, all up; no faults.
    pub(super) fn new() -> Self {
        Self::with_liars(&[])
    }

    pub(super) fn with_liars(liars: &[Machine]) -> Self {
        let verify = |key: &[u8; 32], message: &[u8], signature: &[u8; 64]| sign(key, message) == *signature;
        let mut scene = Self { auditor: Auditor::new(Box::new(verify)), at_us: 0, last_id: 0, lines: Vec::new() };
        scene.see(What::Begins { wall_ms: WALL_MS, grace_ms: 10_000, prepared_max: 3 });
        for machine in [WRITER, OTHER, READER, READER + 1].into_iter().chain(HOLDERS).chain(OTHERS) {
            scene.see(What::Machine { machine, peer: peer(machine), correct: !liars.contains(&machine) });
            scene.see(What::Up { machine });
        }
        scene
    }

    pub(super) fn see(&mut self, what: What) {
        let event = Event { at_us: self.at_us, what };
        self.lines.push(serde_json::to_string(&event).unwrap());
        self.auditor.observe(&event);
        self.at_us += 100;
    }

    pub(super) fn wait_ms(&mut self, millis: u64) {
        self.at_us += millis * 1000;
    }

    pub(super) fn now_ms(&self) -> u64 {
        WALL_MS + self.at_us / 1000
    }

    fn id(&mut self) -> Id {
        self.last_id += 1;
        self.last_id
    }

    /// A version of the usual content, issued now.
    pub(super) fn manifest(&mut self, seq: u64) -> Signed {
        self.manifest_by(1, seq, &HOLDERS)
    }

    pub(super) fn manifest_by(&mut self, term: u64, seq: u64, holders: &[Machine]) -> Signed {
        let now_ms = self.now_ms();
        manifest_of(version(term, seq), holders, CONTENT, now_ms)
    }

    pub(super) fn durable(&mut self, machine: Machine, writes: Vec<Change>) {
        self.see(What::Durable { machine, writes });
    }

    pub(super) fn asked(&mut self, from: Machine, to: Machine, bytes: Vec<u8>) -> Id {
        let frame = self.id();
        self.see(What::Asked { frame, from, to: peer(to), bytes });
        frame
    }

    pub(super) fn exchange(&mut self, from: Machine, to: Machine, request: Vec<u8>, answer: Vec<u8>) {
        let frame = self.asked(from, to, request);
        self.see(What::Answered { frame, from: to, bytes: answer });
        self.see(What::Heard { frame });
    }

    /// Stores a version at a holder, as a correct one does.
    pub(super) fn store(&mut self, put: &Signed, holder: Machine) {
        let (index, now_ms) = (put.index_of(holder), self.now_ms());
        self.durable(holder, vec![put.shard(index), put.held(index, now_ms)]);
    }

    /// Round 1 at these holders.
    pub(super) fn prepare(&mut self, from: Machine, put: &Signed, holders: &[Machine]) {
        for holder in holders {
            let index = put.index_of(*holder);
            let frame = self.asked(from, *holder, put.prepare(index, true));
            self.store(put, *holder);
            self.see(What::Answered { frame, from: *holder, bytes: put.acked(index) });
            self.see(What::Heard { frame });
        }
    }

    /// Round 2 at these machines.
    pub(super) fn commit(&mut self, from: Machine, put: &Signed, machines: &[Machine]) {
        for machine in machines {
            let frame = self.asked(from, *machine, put.commit());
            self.durable(*machine, vec![put.head_row()]);
            self.see(What::Answered { frame, from: *machine, bytes: answers(COMMITTED) });
            self.see(What::Heard { frame });
        }
    }

    pub(super) fn put_begins(&mut self, machine: Machine) -> Id {
        let op = self.id();
        self.see(What::PutBegins { op, machine, key: key() });
        op
    }

    pub(super) fn put_ends(&mut self, op: Id, put: &Signed, level: u8) {
        self.put_ends_until(op, put, level, None);
    }

    pub(super) fn put_ends_until(&mut self, op: Id, put: &Signed, level: u8, stale_until_ms: Option<u64>) {
        self.see(What::PutEnds { op, outcome: PutOutcome::Committed { version: put.text(), level, stale_until_ms } });
    }

    /// A whole put that reaches three of four holders, or as many as there are.
    pub(super) fn put_at(&mut self, from: Machine, put: &Signed, holders: &[Machine]) {
        let op = self.put_begins(from);
        self.prepare(from, put, holders);
        self.commit(from, put, holders);
        self.put_ends(op, put, holders.len() as u8 - 1);
    }

    pub(super) fn put(&mut self, seq: u64) -> Signed {
        let put = self.manifest(seq);
        self.put_at(WRITER, &put, &HOLDERS);
        put
    }

    pub(super) fn get_begins(&mut self, machine: Machine, mode: Mode) -> Id {
        let op = self.id();
        self.see(What::GetBegins { op, machine, key: key(), mode });
        op
    }

    pub(super) fn get_ends(&mut self, op: Id, put: &Signed, fresh: Mode) {
        self.get_ends_with(op, put.head(), CONTENT, fresh);
    }

    pub(super) fn get_ends_with(&mut self, op: Id, head: Vec<u8>, content: &[u8], fresh: Mode) {
        self.see(What::GetEnds { op, outcome: GetOutcome::Value { head, content: Some(content.to_vec()), fresh } });
    }

    pub(super) fn get(&mut self, machine: Machine, put: &Signed, mode: Mode) {
        let op = self.get_begins(machine, mode);
        self.get_ends(op, put, mode);
    }

    pub(super) fn get_fails(&mut self, machine: Machine, mode: Mode, title: &str) {
        let op = self.get_begins(machine, mode);
        self.see(What::GetEnds { op, outcome: GetOutcome::Error { title: title.to_owned() } });
    }

    /// The invariants that were broken, each once.
    pub(super) fn broken(self) -> Vec<&'static str> {
        let Report { findings, .. } = self.auditor.finish();
        let mut broken: Vec<&str> = findings.iter().map(|finding| finding.invariant).collect();
        broken.sort_unstable();
        broken.dedup();
        broken
    }

    #[track_caller]
    pub(super) fn breaks_nothing(self) {
        let findings = self.auditor.finish().findings;
        assert!(findings.is_empty(), "{findings:#?}");
    }

    #[track_caller]
    pub(super) fn breaks(self, invariant: &str) {
        let findings = self.auditor.finish().findings;
        assert!(!findings.is_empty() && findings.iter().all(|finding| finding.invariant == invariant), "{invariant}: {findings:#?}");
    }
}
