//! Frames, answers and what is served: I8, I9, I10, I12, I13, I16, I17 as far as they can be told from what a machine says.

use persona_foreign::{frame::FRAME_BYTES_MAX, head::Version};

use crate::{
    auditor::{Auditor, CLOCK_ANSWER_US, LATE_MS, MESH_TIME_FROM_MS, Promised, hex, host, mark, text},
    book::{ManifestId, same_members},
    decode::{self, RawHead, RawRequest, RawResponse},
    disk::{Key, Row},
    history::{Id, Machine},
};

/// Frames that are remembered until they are answered. When there are more, the oldest is forgotten: its answers are then not judged.
const FRAMES_MAX: usize = 1 << 16;

/// Answers to one frame that may be under way; further ones are judged, but heard by nobody.
const ANSWERS_MAX: usize = 4;

/// A frame of requests that was sent.
pub(crate) struct Frame {
    from: Machine,
    to: [u8; 32],
    requests: Vec<Asked>,
    asked_us: u64,
    answers: Vec<Vec<Said>>,
}

/// A request, as far as its answer depends on it.
enum Asked {
    Prepare { id: Option<ManifestId>, index: u8 },
    Commit { id: Option<ManifestId> },
    Head { key: Key },
    Shard { key: Key, version: Version },
    Never { id: Option<ManifestId> },
    Abort,
    Sign { id: Option<ManifestId>, link: Signature, acks: bool },
    Probe,
}

/// A link, as far as a signature binds to it.
pub(crate) type Signature = (u64, Vec<(u8, [u8; 32])>);

/// What an answer said, for whoever hears it.
enum Said {
    Ack {
        id: ManifestId,
        index: u8,
    },
    Committed {
        id: ManifestId,
    },
    Shown {
        id: ManifestId,
    },
    /// What a machine's clock shows, and whether that is wrong.
    Clock {
        wrong: bool,
    },
    Mark(&'static str),
}

impl Auditor {
    /// I13: a frame has 1 to 64 requests and at most 2 MiB. I16: what is sent as certified is. I17: no secret in it.
    pub(crate) fn asked(&mut self, frame: Id, from: Machine, to: &[u8; 32], bytes: &[u8]) {
        self.keeps_secrets(from, "sent a frame", bytes);
        let correct = self.is_correct(from);
        let requests = match decode::requests(bytes) {
            Ok(requests) => requests,
            Err(error) if correct => {
                let what = format!("machine {from} sent {} bytes that are no frame of 1 to 64 requests: {error}", bytes.len());
                return self.find("I13", what);
            }
            Err(_) => return,
        };
        let requests = requests.into_iter().map(|request| self.request(from, correct, request)).collect();
        if self.frames.len() >= FRAMES_MAX {
            self.frames.pop_first();
        }
        self.frames.insert(frame, Frame { from, to: *to, requests, asked_us: self.now_us, answers: Vec::new() });
    }

    fn request(&mut self, from: Machine, correct: bool, request: RawRequest<'_>) -> Asked {
        match request {
            RawRequest::Prepare { manifest, index, shard } => {
                let id = self.learn(&manifest);
                if let Some(id) = id {
                    self.leaves(id, from);
                    if shard.is_some() && self.book.get(id).writer.is_some_and(|writer| writer != from) {
                        self.mark(mark::REPAIR_PUSH);
                    }
                }
                Asked::Prepare { id, index }
            }
            RawRequest::Commit { head } => {
                let head = self.learn_head(&head);
                match head {
                    Some((id, true)) => {
                        self.leaves(id, from);
                        let now_us = self.now_us;
                        let known = self.book.get_mut(id);
                        if known.writer == Some(from) {
                            known.commit_began_us.get_or_insert(now_us);
                        } else {
                            self.mark(mark::WRITE_BACK);
                        }
                    }
                    _ if correct => {
                        let version = head.map_or(String::from("a version"), |(id, _)| self.name(id));
                        self.find("I16", format!("machine {from} sent {version} as certified, and its certificate does not verify"));
                    }
                    _ => {}
                }
                Asked::Commit { id: head.map(|(id, _)| id) }
            }
            RawRequest::Sign { head, issued_at_ms, replaced, acks } => {
                let head = self.learn_head(&head);
                if correct && !head.is_some_and(|(_, certified)| certified) {
                    self.find("I16", format!("machine {from} wanted a handover signed that continues nothing certified"));
                }
                Asked::Sign { id: head.map(|(id, _)| id), link: (issued_at_ms, replaced), acks }
            }
            RawRequest::Take { head } => {
                let head = self.learn_head(&head);
                if correct && !head.is_some_and(|(_, certified)| certified) {
                    self.find("I16", format!("machine {from} handed a shard out under what is not certified"));
                }
                self.mark(mark::REPAIR_PUSH);
                Asked::Commit { id: head.map(|(id, _)| id) }
            }
            RawRequest::Head { key } => Asked::Head { key },
            RawRequest::Shard { key, version } => Asked::Shard { key, version },
            RawRequest::Recall { key } => Asked::Head { key },
            RawRequest::Never { manifest, .. } => Asked::Never { id: self.learn(&manifest) },
            RawRequest::Abort { manifest, nevers } => {
                if let Some(id) = self.learn(&manifest) {
                    if self.book.aborts(id, nevers) {
                        let known = self.book.get(id);
                        self.aborted.insert((known.manifest.key, known.version()));
                        self.never_certified(id);
                    } else if correct {
                        let what = format!("machine {from} sent {} as aborted, and its promises do not verify", self.name(id));
                        self.find("I16", what);
                    }
                }
                Asked::Abort
            }
            RawRequest::Probe => Asked::Probe,
        }
    }

    /// Judges what a machine says, and keeps it until it is heard.
    pub(crate) fn answered(&mut self, frame: Id, from: Machine, bytes: &[u8]) {
        self.keeps_secrets(from, "sent an answer", bytes);
        let Some(mut state) = self.frames.remove(&frame) else { return };
        if self.nodes.get(&from).is_some_and(|node| node.peer == state.to) {
            let correct = self.is_correct(from);
            match decode::responses(bytes) {
                Ok(responses) if responses.len() == state.requests.len() => {
                    let pairs = state.requests.iter().zip(&responses);
                    let said =
                        pairs.flat_map(|(request, response)| self.response(from, correct, request, state.asked_us, response)).collect();
                    if state.answers.len() < ANSWERS_MAX {
                        state.answers.push(said);
                    }
                }
                _ if correct => {
                    let wanted = state.requests.len();
                    let what = format!(
                        "machine {from} answered {wanted} requests with {} bytes that are no frame of as many answers",
                        bytes.len()
                    );
                    self.find("I13", what);
                }
                _ => {}
            }
        }
        self.frames.insert(frame, state);
    }

    /// From now on whoever asked knows.
    pub(crate) fn heard(&mut self, frame: Id) {
        let Some(state) = self.frames.get_mut(&frame) else { return };
        let (from, to, answers) = (state.from, state.to, std::mem::take(&mut state.answers));
        let (now_us, in_time) = (self.now_us, self.now_us <= state.asked_us + CLOCK_ANSWER_US);
        for said in answers.into_iter().flatten() {
            match said {
                Said::Ack { id, index } => {
                    if let Some(node) = self.nodes.get_mut(&from) {
                        node.heard.entry(id).or_default().acks |= 1 << index;
                    }
                }
                Said::Committed { id } => {
                    if let Some(node) = self.nodes.get_mut(&from) {
                        node.heard.entry(id).or_default().committed.insert(to);
                    }
                }
                Said::Shown { id } => {
                    if let Some(node) = self.nodes.get_mut(&from) {
                        node.shown.entry(id).or_insert(now_us);
                    }
                }
                Said::Clock { wrong } => {
                    if let Some(node) = self.nodes.get_mut(&from).filter(|_| wrong || in_time) {
                        node.clocks.insert(to, (now_us, wrong));
                    }
                }
                Said::Mark(mark) => self.mark(mark),
            }
        }
    }

    fn response(&mut self, from: Machine, correct: bool, request: &Asked, asked_us: u64, response: &RawResponse<'_>) -> Vec<Said> {
        let mut said = Vec::new();
        match (request, response) {
            (Asked::Prepare { id: Some(id), index }, RawResponse::Acked(ack)) => match self.book.ack(*id, ack).filter(|is| is == index) {
                Some(index) => {
                    said.push(Said::Ack { id: *id, index });
                    if correct {
                        self.ack_is_honest(from, *id, index, asked_us);
                    }
                }
                None if correct => {
                    let what = format!("machine {from} acked {} with an ack that does not verify", self.name(*id));
                    self.find("I9", what);
                }
                None => {}
            },
            (Asked::Commit { id: Some(id) }, RawResponse::Committed) => {
                said.push(Said::Committed { id: *id });
                if correct {
                    self.is_told(from, *id, "confirmed");
                    self.is_not_fenced(from, *id);
                }
            }
            (Asked::Commit { id: Some(id) }, RawResponse::Fenced(_)) if correct => self.is_told(from, *id, "was fenced from"),
            (Asked::Head { key }, RawResponse::Head { committed, expired, prepared }) => {
                if let Some(head) = committed {
                    let id = self.head_is_honest(from, correct, key, head, "answered");
                    if let Some(id) = id {
                        said.push(Said::Shown { id });
                        if correct {
                            self.is_in_time(from, id, "answered");
                        }
                        if !self.book.get(id).sets().any(|set| set.contains(&self.nodes[&from].peer)) {
                            said.push(Said::Mark(mark::OLD_SET));
                        }
                    }
                }
                if let Some(head) = expired {
                    self.head_is_honest(from, correct, key, head, "answered as expired");
                    said.push(Said::Mark(mark::EXPIRED_HEAD));
                }
                for (manifest, ack) in prepared {
                    let Some(id) = self.learn(manifest) else { continue };
                    let index = self.book.ack(id, ack);
                    if let Some(index) = index.filter(|_| correct) {
                        self.ack_is_honest(from, id, index, asked_us);
                    }
                    said.extend(index.map(|_| Said::Shown { id }));
                    said.push(Said::Mark(mark::UNCERTIFIED));
                }
            }
            (Asked::Never { id: Some(id) }, RawResponse::Promised(never)) if correct => self.promise_is_honest(from, *id, never),
            (Asked::Never { id: Some(id) }, RawResponse::Prepared(manifest, ack)) if correct => {
                let (of, key) = (self.learn(manifest), self.book.get(*id).manifest.key);
                match of.and_then(|of| Some((of, self.book.ack(of, ack)?))).filter(|(of, _)| self.book.get(*of).manifest.key == key) {
                    Some((of, index)) => self.ack_is_honest(from, of, index, asked_us),
                    None => self
                        .find("I9", format!("machine {from} says that it acked a rival of {}, and that does not verify", self.name(*id))),
                }
            }
            (Asked::Shard { key, version }, RawResponse::Shard) if correct => self.shard_is_in_time(from, key, version),
            (Asked::Shard { key, .. }, RawResponse::Superseded(head)) => {
                let id = self.head_is_honest(from, correct, key, head, "answered");
                if let Some(id) = id.filter(|_| correct) {
                    self.is_in_time(from, id, "answered");
                }
                said.push(Said::Mark(mark::SUPERSEDED));
            }
            (Asked::Sign { id: Some(id), link, acks }, RawResponse::Consented | RawResponse::Acked(_)) if correct => {
                self.signs_once(from, *id, link, *acks, asked_us);
                said.push(Said::Mark(if *acks { mark::HANDED_OVER } else { mark::RENEWED }));
            }
            // What a liar says proves nothing about what the others do.
            (Asked::Probe, RawResponse::Probed) => {
                let wrong = self.nodes.get(&from).is_none_or(|node| !correct || node.ahead_ms.unsigned_abs() > MESH_TIME_FROM_MS);
                said.push(Said::Clock { wrong });
            }
            (_, RawResponse::NeedShard) if correct => said.push(Said::Mark(mark::NEED_SHARD)),
            (_, RawResponse::Busy) if correct => said.push(Said::Mark(mark::BUSY)),
            (_, RawResponse::Recovering) if correct => said.push(Said::Mark(mark::RECOVERING)),
            (_, RawResponse::Conflict) if correct => said.push(Said::Mark(mark::CONFLICT)),
            _ => {}
        }
        said
    }

    /// I8: a correct holder acks one manifest of a version until that one's life is over, unless its disk was lost. I9: it acks what is on its disk at that
    /// moment, manifest and matching shard. (What it dropped since it was asked, or a moment ago, may still be acked by an answer on its
    /// way out, and what rotted by a process that does not know.) I12: it acks nothing of a lower host once a fence, or a certified version, of a higher
    /// host is on its disk.
    fn ack_is_honest(&mut self, from: Machine, id: ManifestId, index: u8, asked_us: u64) {
        let known = self.book.get(id);
        let (key, version, owner, hash) = (known.manifest.key, known.version(), known.manifest.owner, known.hash);
        let shard_hash = known.manifest.shard_hashes[usize::from(index)];
        let late_ms = self.late_ms(&self.nodes[&from]);
        let (now_us, Some(node)) = (self.now_us, self.nodes.get_mut(&from)) else { return };
        let first = *node.acked.entry((key, version)).or_insert(id);
        let forgotten = late_ms >= self.book.get(first).over_ms();
        if forgotten {
            node.acked.insert((key, version), id);
        }
        let same = |other: ManifestId| self.book.get(other).hash == hash;
        let mut found = Vec::new();
        if !same(first) && !forgotten {
            found.push(("I8", "acked a second manifest of"));
        }
        // Of what is certified without its ack no abort can be: as many promises as that takes share a correct holder with the certificate.
        let certified = node.disk.heads.get(&key).is_some_and(|head| same(head.id));
        let binds = |promised: &Promised| promised.certified != Some(hash) && late_ms < promised.over_ms;
        let promised = node.promised.get(&(key, version)).is_some_and(binds);
        if promised && !certified && !forgotten && node.lost_us.is_none() {
            found.push(("I8", "acked what it had promised never to ack:"));
        }
        if known.manifest.holders[usize::from(index)] != node.peer {
            found.push(("I9", "signed in another's place for"));
        }
        let since_us = decided_since_us(asked_us, now_us);
        let just_dropped = |(at_us, _, _, dropped): &(u64, Key, Version, ManifestId)| *at_us >= since_us && same(*dropped);
        match node.disk.prepared.get(&(key, version)) {
            Some(Row::Held { id: held, durable_us, .. }) if same(*held) => {
                if node.disk.shards.get(&(key, shard_hash)).is_none_or(|shard| !shard.fits) && !node.behind_its_back {
                    found.push(("I9", "acked without having the shard of"));
                }
                let fenced = node.disk.fences.get(&owner).is_some_and(|fence| fence.by > host(&version) && fence.since_us < *durable_us);
                if fenced {
                    found.push(("I12", "acked behind a fence"));
                }
            }
            _ if node.behind_its_back || node.disk.dropped.iter().any(just_dropped) => {}
            _ => found.push(("I9", "acked without having on its disk")),
        }
        for (invariant, what) in found {
            let what = format!("machine {from} {what} {}", self.name(id));
            self.find(invariant, what);
        }
    }

    /// I8: a correct holder signs one link of a lease in each generation, unless it lost its disk since. I12: none of a lower host once a
    /// fence is on its disk (a signature that it gave before may wait for the disk, or with a machine that sleeps). I9: it acks with the shard on its disk.
    fn signs_once(&mut self, from: Machine, id: ManifestId, link: &Signature, acks: bool, asked_us: u64) {
        let known = self.book.get(id);
        let (key, owner, version) = (known.manifest.key, known.manifest.owner, known.version());
        let generation = link.0.saturating_sub(known.manifest.issued_at_ms) / (known.manifest.ttl_ms / 16).max(1);
        let hashes = known.manifest.shard_hashes.clone();
        let (now_us, Some(node)) = (self.now_us, self.nodes.get_mut(&from)) else { return };
        let mut found = Vec::new();
        let first = node.signed.entry((id, generation)).or_insert_with(|| (link.clone(), now_us));
        if first.0 != *link && node.lost_us.is_none_or(|lost_us| lost_us < first.1) {
            found.push(("I8", "signed a second link of one generation of"));
        }
        let since_us = decided_since_us(asked_us, now_us);
        let fence = node.disk.fences.get(&owner);
        if fence.is_some_and(|fence| fence.by > host(&version) && fence.since_us < since_us) && !node.behind_its_back {
            found.push(("I12", "signed, behind a fence, for a link of"));
        }
        if acks && !node.behind_its_back && !hashes.iter().any(|hash| node.disk.shards.get(&(key, *hash)).is_some_and(|shard| shard.fits)) {
            found.push(("I9", "acked, without its shard, a link of"));
        }
        for (invariant, what) in found {
            let what = format!("machine {from} {what} {}", self.name(id));
            self.find(invariant, what);
        }
    }

    /// I9: `Committed`, and a head that is answered, say that this certified version or a higher one is durable here; so does `Fenced` in
    /// answer to COMMIT.
    fn is_told(&mut self, from: Machine, id: ManifestId, did: &str) {
        let known = self.book.get(id);
        let node = &self.nodes[&from];
        if !node.behind_its_back && node.disk.told_at_least(&known.manifest.key, &known.version()).is_none() {
            let what = format!("machine {from} {did} {}, and no head at or above it is on its disk", self.name(id));
            self.find("I9", what);
        }
    }

    /// I12: behind a fence of a higher host, or a certified version of one, no lower host's version is confirmed, unless it was durable
    /// here before.
    fn is_not_fenced(&mut self, from: Machine, id: ManifestId) {
        let known = self.book.get(id);
        let (version, node) = (known.version(), &self.nodes[&from]);
        let Some(told) = node.disk.told_at_least(&known.manifest.key, &version) else { return };
        let fence = node.disk.fences.get(&known.manifest.owner);
        let fenced = fence.is_some_and(|fence| fence.by > host(&version) && fence.since_us < told.at_us);
        // What was forgotten when its life was over stands in nobody's way any more.
        let head = node.disk.heads.get(&known.manifest.key).map(|head| self.book.get(head.id).version());
        let above = host(&told.version) > host(&version) && head.is_some_and(|head| host(&head) > host(&version));
        if !node.behind_its_back && (fenced || above) {
            let what = format!("machine {from} confirmed {}, and a higher host was here before", self.name(id));
            self.find("I12", what);
        }
    }

    /// I1 and I16: what a correct machine names as certified is certified, and of the section that it was asked for. I9: it is durable.
    fn head_is_honest(&mut self, from: Machine, correct: bool, key: &Key, head: &RawHead<'_>, did: &str) -> Option<ManifestId> {
        let learnt = self.learn_head(head);
        if !correct {
            return learnt.filter(|(_, certified)| *certified).map(|(id, _)| id);
        }
        match learnt {
            Some((id, true)) => {
                if self.book.get(id).manifest.key != *key {
                    let what = format!("machine {from} {did} {} when asked for section {}", self.name(id), hex(&key[..4]));
                    self.find("I1", what);
                }
                self.is_told(from, id, did);
                Some(id)
            }
            _ => {
                self.find("I16", format!("machine {from} {did} as certified of section {} what is not", hex(&key[..4])));
                None
            }
        }
    }

    /// I10: nothing is answered or served whose life is over by the machine's clock, allowance included.
    fn is_in_time(&mut self, from: Machine, id: ManifestId, did: &str) {
        if self.is_over(&self.nodes[&from], self.book.get(id)) {
            let what = format!("machine {from} {did} {} after its life was over", self.name(id));
            self.find("I10", what);
        }
    }

    fn shard_is_in_time(&mut self, from: Machine, key: &Key, version: &Version) {
        let node = &self.nodes[&from];
        let held = match node.disk.prepared.get(&(*key, *version)) {
            Some(Row::Held { id, .. }) => vec![*id],
            _ => self.sections.get(key).and_then(|section| section.manifests.get(version)).cloned().unwrap_or_default(),
        };
        if !held.is_empty() && held.iter().all(|id| self.is_over(node, self.book.get(*id))) {
            let what =
                format!("machine {from} gave its shard of version {} of section {} after its life was over", text(version), hex(&key[..4]));
            self.find("I10", what);
        }
    }

    /// I10 and I16 of what Kademlia is given: certified, of this section, and its life not over.
    pub(crate) fn serves(&mut self, machine: Machine, key: &Key, record: Option<&[u8]>) {
        let id = match record {
            None => None,
            Some(record) => {
                self.keeps_secrets(machine, "served a record", record);
                let head = decode::certified_head(record).ok();
                let id = head.and_then(|head| self.learn_head(&head)).filter(|(_, certified)| *certified).map(|(id, _)| id);
                let id = id.filter(|id| self.book.get(*id).manifest.key == *key);
                if self.is_correct(machine) {
                    match id {
                        Some(id) => self.is_in_time(machine, id, "served"),
                        None => {
                            self.find("I16", format!("machine {machine} served what is no certified head of section {}", hex(&key[..4])))
                        }
                    }
                }
                id
            }
        };
        if let Some(node) = self.nodes.get_mut(&machine) {
            match id {
                Some(id) => node.served.insert(*key, id),
                None => node.served.remove(key),
            };
        }
    }

    /// I8: a correct holder that promised never to ack a version has not acked it, unless that one's life was over by its clock, and will not as long as
    /// the manifest lives that it was asked about.
    fn promise_is_honest(&mut self, from: Machine, id: ManifestId, never: &[u8]) {
        let index = self.book.promise(id, never);
        let known = self.book.get(id);
        let place = (known.manifest.key, known.version());
        let late_ms = self.late_ms(&self.nodes[&from]);
        let Some(node) = self.nodes.get_mut(&from) else { return };
        let mut found = Vec::new();
        if index.and_then(|index| known.manifest.holders.get(usize::from(index))) != Some(&node.peer) {
            found.push(("I9", "promised in another's place, or with a signature that does not verify, never to ack"));
        }
        let acked = node.acked.get(&place).map(|first| self.book.get(*first));
        let forgotten = acked.is_some_and(|acked| late_ms >= acked.over_ms());
        if !forgotten && acked.is_some_and(|acked| node.lost_us.is_none_or(|lost_us| lost_us < acked.first_us)) {
            found.push(("I8", "promised never to ack, and had acked,"));
        }
        let promised = node.promised.entry(place).or_default();
        promised.over_ms = promised.over_ms.max(known.over_ms());
        for (invariant, what) in found {
            let what = format!("machine {from} {what} {}", self.name(id));
            self.find(invariant, what);
        }
    }

    /// I8: what was aborted is never certified: its promises and its acks would share a correct holder.
    fn never_certified(&mut self, id: ManifestId) {
        let known = self.book.get(id);
        if !known.certified() || self.beyond_f(&known.manifest.key, known.version(), known.version()) {
            return;
        }
        let what = format!("{} is certified, and aborted", self.name(id));
        self.find("I8", what);
    }

    /// I8: of one version and one holder set, one manifest is certified while its life lasts and at most `f` of the set are faulty.
    pub(crate) fn one_certificate(&mut self, id: ManifestId) {
        let known = self.book.get(id);
        let (key, version) = (known.manifest.key, known.version());
        let others = self.sections.get(&key).and_then(|section| section.manifests.get(&version));
        let rivals = |other: &&ManifestId| {
            let other = self.book.get(**other);
            let (first, second) = if other.first_us <= known.first_us { (other, known) } else { (known, other) };
            let forgotten = self.ideal_ms_at(second.first_us) + known.allowance_ms() >= first.over_ms();
            other.hash != known.hash && other.certified() && !forgotten && same_members(&other.manifest.holders, &known.manifest.holders)
        };
        if others.is_none_or(|others| !others.iter().any(|other| rivals(&other))) {
            return;
        }
        let forgetful = |peer: &&[u8; 32]| {
            self.is_faulty(peer, known) || self.node_of(peer).is_some_and(|node| node.lost_us.is_some_and(|at_us| at_us >= known.first_us))
        };
        if known.manifest.holders.iter().filter(forgetful).count() > known.shape()[2] || self.beyond_f(&key, version, version) {
            return self.mark(mark::BEYOND_F);
        }
        let what = format!("two manifests of {} are certified by one holder set", self.name(id));
        self.find("I8", what);
    }

    /// I17: no registered secret in what leaves a machine or is stored.
    pub(crate) fn keeps_secrets(&mut self, machine: Machine, did: &str, bytes: &[u8]) {
        if let Some(secret) = self.secrets.found_in(bytes) {
            self.find("I17", format!("machine {machine} {did} with secret {secret} in it"));
        }
    }
}

/// What was on a machine's disk before this stood in the way of an answer that leaves it now: it was given at the earliest when it was asked for, and
/// at the latest a moment ago.
fn decided_since_us(asked_us: u64, now_us: u64) -> u64 {
    asked_us.min(now_us.saturating_sub(LATE_MS * 1000))
}

const _: () = assert!(FRAME_BYTES_MAX == 2 << 20, "longer frames do not decode, so that their length need not be looked at");
