//! Puts and gets, as those who asked for them saw them: I1 to I6, I10, I12, I14, I16.

use std::collections::BTreeSet;

use persona_foreign::head::Version;

use crate::{
    auditor::{Auditor, Begun, Committed, Operation, Section, hex, host, mark, text},
    book::{ManifestId, same_members},
    codeword, decode,
    disk::Key,
    history::{GetOutcome, Id, Machine, Mode, PutOutcome},
};

/// After everything healed, a get must succeed that begins so much later.
const SETTLED_US: u64 = 30_000_000;

/// What is left of a version's life when a get of it must still succeed.
const LIFE_LEFT_MS: u64 = 5_000;

/// What the others make durable while a put ends takes so long when nothing is lost.
const JUST_NOW_US: u64 = 1_000_000;

/// After a put has committed among healthy holders, every shard is placed within so long: a request is repeated after 8 s at the latest.
const PLACED_US: u64 = 15_000_000;

impl Auditor {
    pub(crate) fn put_ends(&mut self, op: Id, outcome: &PutOutcome) {
        let Some(Operation::Put { machine, key }) = self.operations.remove(&op) else { return };
        match outcome {
            PutOutcome::Fenced => self.mark(mark::FENCED),
            PutOutcome::Committed { version, level, stale_until_ms } => {
                if stale_until_ms.is_some() {
                    self.mark(mark::BOUNDED_STALE);
                }
                if self.is_correct(machine) {
                    self.put_committed(machine, &key, version, *level, *stale_until_ms);
                }
            }
            PutOutcome::Unknown | PutOutcome::Refused => {}
        }
    }

    /// I16: a put is called committed only if `n - f` acks of it that verify were heard by the machine that put it, and `n - f` of its
    /// holders were heard to confirm the certificate, and so were `m - (m-1)/3` of each older set of `m` in its manifest that has not
    /// expired, unless `stale_until` says so or liars may have told it another time; and the level is no higher than the acks give. (What a
    /// machine says to itself does not travel: for its own place its disk is looked at.)
    fn put_committed(&mut self, machine: Machine, key: &Key, version: &str, level: u8, stale_until_ms: Option<u64>) {
        let name = format!("version {version} of section {}", hex(&key[..4]));
        let Some(section) = self.sections.get(key) else {
            return self.find("I16", format!("machine {machine} committed {name}, of which nothing was seen"));
        };
        let named = section.manifests.iter().filter(|(seen, _)| text(seen) == version).flat_map(|(_, ids)| ids.iter().copied());
        let Some(id) = named.max_by_key(|id| (self.confirmations(machine, *id), *id)) else {
            return self.find("I16", format!("machine {machine} committed {name}, of which no manifest was seen"));
        };
        let known = self.book.get(id);
        let ((acks, confirmed), need) = (self.confirmations(machine, id), known.quorum());
        let mut found = Vec::new();
        if acks < need || confirmed < need {
            found.push(format!("after {acks} acks and {confirmed} confirmations of {need}"));
        }
        if usize::from(level) > (acks + 1).saturating_sub(known.shape()[1]) {
            found.push(format!("at level {level}, and {acks} acks do not give it"));
        }
        let live_after_ms = self.late_ms(&self.nodes[&machine]).max(self.wall_ms(&self.nodes[&machine]));
        let asked_in_time = !self.is_misled(&self.nodes[&machine]);
        for older in known.manifest.older.iter().filter(|_| asked_in_time) {
            let until_ms = older.expires_at_ms.max(older.renew_until_ms) + known.allowance_ms();
            let need = older.holders.len() - (older.holders.len() - 1) / 3;
            let confirmed = older.holders.iter().filter(|peer| self.confirmed_by(machine, id, peer)).count();
            if until_ms > live_after_ms && confirmed < need && stale_until_ms.is_none_or(|stale_ms| stale_ms < until_ms) {
                found.push(format!("after {confirmed} confirmations of {need} of the older set of {}", text(&older.version)));
            }
        }
        for why in found {
            self.find("I16", format!("machine {machine} committed {name} {why}"));
        }
        if stale_until_ms.is_none() {
            self.not_fenced(machine, key, id);
        }
        let (version, at_us) = (self.book.get(id).version(), self.now_us);
        if let Some(section) = self.sections.get_mut(key) {
            section.committed.push(Committed { id, version, at_us, stale_until_ms });
        }
        self.watch(key, id, level);
    }

    /// Holders whose acks of a manifest the machine has, and holders that confirmed its certificate to it.
    fn confirmations(&self, machine: Machine, id: ManifestId) -> (usize, usize) {
        let known = self.book.get(id);
        let node = &self.nodes[&machine];
        let acks = node.heard.get(&id).map_or(0, |heard| heard.acks);
        let own = known.manifest.holders.iter().position(|peer| *peer == node.peer);
        let own = own.filter(|_| node.disk.prepared.contains_key(&(known.manifest.key, known.version())));
        let acks = acks | own.map_or(0, |index| 1 << index);
        let confirmed = known.manifest.holders.iter().filter(|peer| self.confirmed_by(machine, id, peer)).count();
        (acks.count_ones() as usize, confirmed)
    }

    fn confirmed_by(&self, machine: Machine, id: ManifestId, peer: &[u8; 32]) -> bool {
        let (node, known) = (&self.nodes[&machine], self.book.get(id));
        let own = || *peer == node.peer && node.disk.told_at_least(&known.manifest.key, &known.version()).is_some();
        node.heard.get(&id).is_some_and(|heard| heard.committed.contains(peer)) || own()
    }

    /// I12: once a put of a higher host has ended committed, no put of a lower one ends committed, without `stale_until`, whose second
    /// round began later; while at most `f` of the holders between them are faulty.
    fn not_fenced(&mut self, machine: Machine, key: &Key, id: ManifestId) {
        let known = self.book.get(id);
        let version = known.version();
        let began_us = known.commit_began_us.unwrap_or(self.now_us);
        let higher = |put: &&Committed| host(&put.version) > host(&version) && put.stale_until_ms.is_none() && put.at_us < began_us;
        let Some(by) = self.sections.get(key).and_then(|section| section.committed.iter().find(higher)) else { return };
        let (by, by_version) = (by.id, by.version);
        if self.beyond_f(key, version, by_version) {
            return self.mark(mark::BEYOND_F);
        }
        let what = format!("machine {machine} committed {} after version {}", self.name(id), text(&self.book.get(by).version()));
        self.find("I12", what);
    }

    /// What the get may not fall behind.
    pub(crate) fn get_begins(&mut self, op: Id, machine: Machine, key: &Key, mode: Mode) {
        let Some(node) = self.nodes.get(&machine) else { return };
        let wall_ms = self.wall_ms(node);
        let floor = node.floors.get(key).filter(|(_, until_ms)| wall_ms < *until_ms).map(|(version, _)| *version);
        let section = self.sections.get(key);
        let binds = |put: &&Committed| put.stale_until_ms.is_none_or(|until_ms| wall_ms >= until_ms);
        let committed = section.and_then(|section| section.committed.iter().filter(binds).map(|put| put.version).max());
        let in_doubt = |section: &Section, version: &Version| {
            let mut puts = section.committed.iter().filter(|put| put.version == *version).peekable();
            puts.peek().is_some() && puts.all(|put| !binds(&put))
        };
        let atomic = section.and_then(|section| section.atomic.iter().rev().find(|version| !in_doubt(section, version)).copied());
        let begun = Begun { committed, atomic, floor, at_us: self.now_us };
        self.operations.insert(op, Operation::Get { machine, key: *key, mode, begun });
    }

    pub(crate) fn get_ends(&mut self, op: Id, outcome: &GetOutcome) {
        let Some(Operation::Get { machine, key, mode, begun }) = self.operations.remove(&op) else { return };
        if !self.is_correct(machine) {
            return;
        }
        match outcome {
            GetOutcome::Value { head, content, fresh } => {
                if let Some(id) = self.signed(machine, &key, head, content.as_deref()) {
                    self.fresh(machine, &key, id, mode, *fresh, &begun);
                }
            }
            GetOutcome::Error { title } => {
                match title.as_str() {
                    "poisoned" => self.called_poisoned(machine, &key),
                    "data-lost" => self.mark(mark::DATA_LOST),
                    "fenced" => self.mark(mark::FENCED),
                    _ => {}
                }
                if mode >= Mode::Regular && title != "fenced" {
                    self.must_succeed(machine, &key, title, &begun);
                }
            }
        }
    }

    /// I1: the head of a value that is returned decodes and is of this section, its owner signed it, `n - f` different holders acked it,
    /// and the content has the length and the hash that it names. I2: its hashes are those of a codeword: a poisoned version is
    /// returned to nobody, and so everybody who is returned a manifest's content is returned the same.
    fn signed(&mut self, machine: Machine, key: &Key, head: &[u8], content: Option<&[u8]>) -> Option<ManifestId> {
        let learnt = decode::certified_head(head).ok().and_then(|head| self.learn_head(&head));
        let Some((id, certified)) = learnt else {
            let what = format!("machine {machine} was returned of section {} what is no head", hex(&key[..4]));
            self.find("I1", what);
            return None;
        };
        let known = self.book.get(id);
        let mut found = Vec::new();
        if !known.valid || known.manifest.key != *key {
            found.push(("I1", "which its owner did not sign for this section"));
        }
        if !certified {
            found.push(("I1", "whose certificate does not verify"));
        }
        if let Some(content) = content {
            let manifest = &known.manifest;
            let [n, k, _] = manifest.shape;
            if content.len() != manifest.content_len as usize || *blake3::hash(content).as_bytes() != manifest.content_hash {
                found.push(("I1", "with another content"));
            } else if let Some(section) = self.sections.get_mut(&manifest.key) {
                let is_codeword = *section.read.entry(id).or_insert_with(|| codeword::shard_hashes(content, n, k) == manifest.shard_hashes);
                if !is_codeword {
                    found.push(("I2", "which is poisoned"));
                }
            }
        }
        let sound = found.is_empty();
        for (invariant, why) in found {
            let what = format!("machine {machine} was returned {}, {why}", self.name(id));
            self.find(invariant, what);
        }
        sound.then_some(id)
    }

    /// I3: a get in mode regular or atomic that returns a value says that it is regular at least, and returns no less than any put that
    /// had ended committed before it began; puts that said `stale_until` count from then on by this machine's clock. I4: it returns
    /// nothing whose writer had not yet let go of it. I5: if it is labelled atomic, it returns no less than any get so labelled that had
    /// ended before it began, but for what the put of says `stale_until`, which counts from then on, too. I6: in any mode it returns no less than what this machine had returned before it began, until that one's
    /// life was over. I10: nothing whose life is over by this machine's clock, or that of its peers, allowance included. I3 and I5 do not hold for what [`Self::is_apart`]. I3 to I5 hold while at most `f`
    /// holders of any set between are faulty, I3 and I5 while this machine's clock is right.
    fn fresh(&mut self, machine: Machine, key: &Key, id: ManifestId, mode: Mode, label: Mode, begun: &Begun) {
        let (node, known) = (&self.nodes[&machine], self.book.get(id));
        let (version, over_ms) = (known.version(), known.over_ms());
        let mut found: Vec<(&'static str, String)> = Vec::new();
        let (mut beyond, mut apart) = (false, false);
        if label < mode.min(Mode::Regular) {
            found.push(("I3", format!("labelled {label:?} in mode {mode:?}")));
        }
        let in_time = !self.is_wild(node, known, begun.at_us);
        let regular = begun.committed.filter(|_| label >= Mode::Regular).map(|committed| ("I3", committed, "had committed"));
        let atomic = begun.atomic.filter(|_| label == Mode::Atomic).map(|atomic| ("I5", atomic, "an atomic get had returned"));
        for (invariant, behind, why) in [regular, atomic].into_iter().flatten() {
            if version < behind && in_time {
                if self.is_apart(key, id, &behind, label) {
                    apart = true;
                } else if self.beyond_f(key, version, behind) {
                    beyond = true;
                } else {
                    found.push((invariant, format!("and {why} version {}", text(&behind))));
                }
            }
        }
        if known.writer.is_none() {
            if self.beyond_f(key, version, version) {
                beyond = true;
            } else {
                found.push(("I4", String::from("which nobody had put")));
            }
        }
        if let Some(floor) = begun.floor.filter(|floor| version < *floor) {
            found.push(("I6", format!("and had returned version {} before", text(&floor))));
        }
        if self.is_over_for_reader(node, known) {
            found.push(("I10", String::from("after its life was over")));
        }
        for (invariant, why) in found {
            let what = format!("machine {machine} returned {}, {why}", self.name(id));
            self.find(invariant, what);
        }
        if beyond {
            self.mark(mark::BEYOND_F);
        }
        if apart {
            self.mark(mark::BOUNDED_STALE);
        }
        if let Some(node) = self.nodes.get_mut(&machine) {
            let floor = node.floors.entry(*key).or_insert((version, over_ms));
            if floor.0 < version {
                *floor = (version, over_ms);
            } else if floor.0 == version {
                floor.1 = floor.1.max(over_ms);
            }
        }
        if let Some(section) = self.sections.get_mut(key).filter(|_| label == Mode::Atomic && in_time) {
            section.atomic.insert(version);
        }
    }

    /// Whether a version was written by a host that had been taken over, to holders of whom no successor had heard up to the version that it is
    /// behind: on the other side of a cut. Then no put of it ended committed without saying until when it is in doubt, and whoever is led to
    /// those holders finds it until its life is over. What is labelled atomic was told to the older sets that it names, too: they must not
    /// have heard of the successor either. A successor that was shown the version before it wrote has heard of its holders.
    fn is_apart(&self, key: &Key, id: ManifestId, behind: &Version, label: Mode) -> bool {
        let known = self.book.get(id);
        let Some(section) = self.sections.get(key).filter(|_| host(&known.version()) < host(behind)) else { return false };
        let promised = section.committed.iter().any(|put| put.id == id && put.stale_until_ms.is_none());
        let older = known.manifest.older.iter().map(|set| &set.holders).filter(|_| label == Mode::Atomic);
        let asked: Vec<_> = known.sets().chain(older).collect();
        let heard_of = |set: &[[u8; 32]]| asked.iter().any(|own| same_members(own, set));
        let after = |version: &Version| host(version) > host(&known.version()) && version <= behind;
        let mut successors = section.manifests.iter().filter(|(version, _)| after(version)).flat_map(|(_, ids)| ids);
        let told = |successor: &ManifestId| {
            let successor = self.book.get(*successor);
            let manifest = &successor.manifest;
            let writer = successor.writer.and_then(|writer| self.nodes.get(&writer));
            let shown = writer.and_then(|writer| writer.shown.get(&id)).is_some_and(|at_us| *at_us < successor.first_us);
            shown || heard_of(&manifest.holders) || manifest.older.iter().any(|older| heard_of(&older.holders))
        };
        !promised && !successors.any(told)
    }

    /// Remembers what the verdict may have meant, for [`Self::one_verdict`].
    fn called_poisoned(&mut self, machine: Machine, key: &Key) {
        self.mark(mark::POISONED);
        let at_us = self.now_us;
        let Some(section) = self.sections.get(key) else { return };
        let certified = |id: &&ManifestId| self.book.get(**id).certified();
        let meant = section.manifests.values().flatten().filter(certified).copied().collect();
        if let Some(section) = self.sections.get_mut(key) {
            section.poisoned.push((at_us, machine, meant));
        }
    }

    /// I2: `Poisoned` is the verdict of every reader or of none: whoever was told so was told of a version whose content nobody was
    /// returned. Judged in the end, as the others may read later.
    pub(crate) fn one_verdict(&mut self) {
        let mut found = Vec::new();
        for (key, section) in &self.sections {
            for (at_us, machine, meant) in &section.poisoned {
                if meant.iter().all(|id| section.read.get(id) == Some(&true)) {
                    found.push(format!(
                        "machine {machine} was told at {at_us} us that section {} is poisoned, and each of its {} certified manifests was read",
                        hex(&key[..4]),
                        meant.len()
                    ));
                }
            }
        }
        for what in found {
            self.find("I2", what);
        }
    }

    /// I14: after everything healed, a get in mode regular or atomic returns a value of a section whose newest certified version has committed
    /// or is above one that did, will live for a while, and has a quorum of correct holders up that do not recover, with `k` shards;
    /// unless liars and those that ever lost their disks are more than `f` together.
    fn must_succeed(&mut self, machine: Machine, key: &Key, title: &str, begun: &Begun) {
        let Some(healed_us) = self.healed_us.filter(|healed_us| begun.at_us > healed_us + SETTLED_US) else { return };
        let Some(section) = self.sections.get(key) else { return };
        let (Some(newest), false) = (section.certified, section.committed.is_empty()) else { return };
        let [id] = section.manifests.get(&newest).map_or(&[][..], Vec::as_slice) else { return };
        let (node, known) = (&self.nodes[&machine], self.book.get(*id));
        let committed_before = section.committed.iter().any(|put| put.version <= newest && put.at_us < begun.at_us);
        let lives = self.ideal_ms() as u64 + LIFE_LEFT_MS < known.manifest.issued_at_ms + known.manifest.ttl_ms;
        let poisoned = title == "poisoned" || section.read.get(id) == Some(&false);
        if !committed_before || !lives || poisoned || !node.up || self.is_wild(node, known, healed_us) || self.is_misled(node) {
            return;
        }
        let answers = |peer: &&[u8; 32]| {
            self.node_of(peer).is_some_and(|node| {
                let recovers = node.lost_us.is_some_and(|at_us| at_us >= known.first_us) && node.disk.told_at_least(key, &newest).is_none();
                node.correct && node.up && !recovers && !self.is_wild(node, known, known.first_us)
            })
        };
        // Who recovers asks `n - f` others. Where some of those lie, and with it they are more than `f`, that may never end.
        let (lost, liars) = known.manifest.holders.iter().filter_map(|peer| self.node_of(peer)).fold((0, 0), |(lost, liars), node| {
            if node.correct { (lost + usize::from(node.lost_us.is_some()), liars) } else { (lost, liars + 1) }
        });
        // Nor where more than `f` have lost what they knew of this version: until its owner's next one nobody can say.
        let forgot = |peer: &&[u8; 32]| {
            self.node_of(peer).is_some_and(|node| node.correct && node.lost_us.is_some_and(|lost_us| lost_us >= known.first_us))
        };
        let forgot = known.manifest.holders.iter().filter(forgot).count();
        if liars > 0 && liars + lost > known.shape()[2] || forgot > known.shape()[2] {
            return self.mark(mark::BEYOND_F);
        }
        let have = known.manifest.holders.iter().filter(answers).count();
        let shards = self.shards_on_disks(known, true);
        if have >= known.quorum() && shards >= known.shape()[1] {
            let what = format!(
                "machine {machine} got {title:?} after everything healed, and {have} holders of {} are up with {shards} shards",
                self.name(*id)
            );
            self.find("I14", what);
        }
    }

    /// I14: after everything healed, whatever was begun at a correct machine that still runs has ended; and every section's newest version,
    /// if its put committed, its life is not over and its writer is up, lies whole on disks of correct holders that are up. Three
    /// things are not asked: what a liar who signed for a shard does with it, as nobody can know; that a put of just now, or one
    /// from before everything healed whose renewal is not yet due, has reached everybody; and that one of just now has reached a holder that
    /// lost its disk, and recovers first.
    pub(crate) fn ends(&mut self) {
        let now_us = self.now_us;
        let Some(healed_us) = self.healed_us else { return };
        let endless: Vec<(Id, Machine, &str)> = self
            .operations
            .iter()
            .map(|(id, operation)| match operation {
                Operation::Put { machine, .. } => (*id, *machine, "put"),
                Operation::Get { machine, .. } => (*id, *machine, "get"),
            })
            .filter(|(_, machine, _)| self.is_correct(*machine))
            .collect();
        for (id, machine, what) in endless {
            self.find("I14", format!("the {what} {id} at machine {machine} never ended"));
        }
        let mut found = Vec::new();
        for section in self.sections.values() {
            let Some(put) = section.committed.iter().max_by_key(|put| put.version) else { continue };
            let known = self.book.get(put.id);
            let ttl_us = known.manifest.ttl_ms * 1000;
            let lives = self.ideal_ms() as u64 + LIFE_LEFT_MS < known.manifest.issued_at_ms + known.manifest.ttl_ms;
            let writer = known.writer.and_then(|machine| self.nodes.get(&machine));
            let kept = writer.is_some_and(|writer| writer.correct && writer.up && !self.is_wild(writer, known, healed_us));
            // A renewal comes after a third of the lifetime, more or less a tenth.
            let renewed_us = ttl_us * 2 / 5 + PLACED_US;
            let new = put.at_us >= healed_us && now_us >= put.at_us + PLACED_US;
            let renewed = now_us >= healed_us + renewed_us;
            let just_now = now_us < put.at_us + JUST_NOW_US;
            if section.certified > Some(put.version) || !lives || !kept || just_now || !(new || renewed) {
                continue;
            }
            if self.beyond_f(&known.manifest.key, put.version, put.version)
                || self.is_fenced(&known.manifest.owner, put.version) && self.owner_beyond_f(&known.manifest.owner, self.ideal_ms() as u64)
            {
                continue; // it is fenced by a host that cannot take it over: for want of another section, too
            }
            let places = known.manifest.holders.iter().zip(&known.manifest.shard_hashes);
            let lacks = |(peer, hash): &(&[u8; 32], &[u8; 32])| {
                self.node_of(peer).is_some_and(|node| {
                    let stays_away = !node.up && !renewed;
                    // It says that it recovers, and is given its shard in the background.
                    let recovers = node.lost_us.is_some() && now_us < put.at_us + PLACED_US;
                    let has_it = node.up && node.disk.has_shard(&known.manifest.key, hash);
                    node.correct && !(stays_away || recovers || has_it)
                })
            };
            let lacking = places.filter(lacks).count();
            if lacking > 0 {
                found.push(format!("{} lacks {lacking} of its shards on disks of correct holders that are up", self.name(put.id)));
            }
        }
        for what in found {
            self.find("I14", what);
        }
        self.nothing_served_for_ever();
    }

    /// I10 of what Kademlia was given and never taken back, looked at in the end.
    fn nothing_served_for_ever(&mut self) {
        let mut found = BTreeSet::new();
        for (machine, node) in &self.nodes {
            let over = node.served.values().filter(|id| node.correct && node.up && self.is_over(node, self.book.get(**id)));
            found.extend(over.map(|id| format!("machine {machine} still serves {} after its life was over", self.name(*id))));
        }
        for what in found {
            self.find("I10", what);
        }
    }
}
