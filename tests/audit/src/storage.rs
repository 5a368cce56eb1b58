//! What becomes durable, and what is lost: I7, I11, I13, and what a disk shows of I1, I8, I12, I16.

use persona_foreign::head::Version;

use crate::{
    auditor::{Auditor, LATE_MS, Node, Watched, hex, host, text},
    book::ManifestId,
    decode::{self, RawPrepared},
    disk::{DROPPED_MAX, Fence, HeadRow, Key, Row, Shard, Told},
    history::{Change, Machine},
};

/// The tables of docs/spec/store.md that promises depend on.
mod table {
    pub(super) const SHARD: u8 = 1;
    pub(super) const PREPARED: u8 = 2;
    pub(super) const HEAD: u8 = 3;
    pub(super) const FENCE: u8 = 4;
    pub(super) const FLOOR: u8 = 6;
    pub(super) const INTENT: u8 = 7;
    pub(super) const OWN: u8 = 8;
}

/// Uncommitted versions of all hosts of a section that a holder keeps, as a multiple of those of one host (docs/spec/quorum.md#holder).
const HOSTS_MAX: usize = 4;

/// The part of a grace by which a machine's monotonic clock may run fast: 1 %.
const DRIFT_PART: u64 = 100;

/// By this part of a life a clock may drift: twice the 500 millionths that are assumed.
const CLOCK_DRIFT_PART: u64 = 1000;

impl Auditor {
    /// I17, and whatever its tables show: see the functions below.
    pub(crate) fn durable(&mut self, machine: Machine, writes: &[Change]) {
        let correct = self.is_correct(machine);
        let mut shards_gone = Vec::new();
        let mut touched = Vec::new();
        for Change { table, key, value } in writes {
            if let Some(value) = value {
                self.keeps_secrets(machine, "stored a value", value);
            }
            match (*table, value) {
                (table::INTENT, Some(value)) => {
                    let id = decode::intent(value).ok().and_then(|manifest| self.learn(&manifest));
                    if let Some(id) = id {
                        self.leaves(id, machine);
                    }
                }
                _ if !correct => {}
                (table::SHARD, value) => {
                    let (Some(at), Some(node)) = (decode::shard_key(key), self.nodes.get_mut(&machine)) else { continue };
                    match value {
                        Some(bytes) => {
                            let fits = *blake3::hash(bytes).as_bytes() == at.1;
                            node.disk.shards.insert(at, Shard { fits, rotted: false });
                        }
                        None => {
                            let gone = node.disk.shards.remove(&at);
                            shards_gone.extend(gone.filter(|gone| !gone.rotted).map(|_| at));
                        }
                    }
                }
                (table::PREPARED, value) => {
                    let Some((key, version)) = decode::prepared_key(key) else { continue };
                    self.prepared(machine, key, version, value.as_deref());
                    touched.push(key);
                }
                (table::HEAD, value) => {
                    if let Ok(key) = <Key>::try_from(key.as_slice()) {
                        self.head(machine, key, value.as_deref());
                    }
                }
                (table::FENCE, value) => {
                    if let Ok(owner) = <[u8; 32]>::try_from(key.as_slice()) {
                        self.fence(machine, owner, value.as_deref());
                    }
                }
                _ => {}
            }
        }
        if correct {
            touched.sort_unstable();
            touched.dedup();
            for key in touched {
                self.not_crowded(machine, &key);
            }
            for (key, hash) in shards_gone {
                self.nobody_needs(machine, &key, &hash);
                self.survives(&key);
            }
        }
    }

    /// I1: a correct holder keeps a manifest only if its owner signed it and it is this holder's. I8: it never replaces one of the same
    /// version. I11: it drops one only by the rules. I12: it takes none in of a lower host than one that is certified, fences or is
    /// uncommitted here.
    fn prepared(&mut self, machine: Machine, key: Key, version: Version, value: Option<&[u8]>) {
        let now_us = self.now_us;
        let name = || format!("version {} of section {}", text(&version), hex(&key[..4]));
        let decoded = value.map(decode::prepared_row);
        // It is certified, and its holders go on renewing it until a higher host has committed something.
        let taken = matches!(decoded, Some(Ok(RawPrepared::Taken { .. })));
        let row = match decoded {
            None => None,
            Some(Ok(RawPrepared::Floor { until_ms, manifest_hash })) => Some((Row::Floor { until_ms, rotted: false }, Some(manifest_hash))),
            Some(Ok(RawPrepared::Held { manifest, index, received_ms } | RawPrepared::Taken { manifest, index, received_ms })) => {
                let Some(id) = self.learn(&manifest) else {
                    return self.find("I1", format!("machine {machine} keeps what is no manifest as {}", name()));
                };
                Some((Row::Held { id, index, received_ms, durable_us: now_us, rotted: false }, None))
            }
            Some(Err(error)) => {
                return self.find("I1", format!("machine {machine} keeps no record of {}, but bytes that do not decode: {error}", name()));
            }
        };
        let mut found = Vec::new();
        let node = &self.nodes[&machine];
        let before = node.disk.prepared.get(&(key, version)).cloned();
        if let Some((Row::Held { id, index, .. }, _)) = &row {
            let known = self.book.get(*id);
            if !known.valid || known.manifest.key != key || known.version() != version {
                found.push(("I1", String::from("keeps a manifest that does not verify, or is of something else, as")));
            } else if !known.sets().any(|set| set.get(usize::from(*index)) == Some(&node.peer)) {
                found.push(("I9", String::from("keeps in another's place")));
            }
            if !node.behind_its_back && !matches!(before, Some(Row::Held { .. })) {
                found.extend(self.higher_host(machine, &key, &version, *id, taken).map(|why| ("I12", format!("took in, {why},"))));
            }
        }
        match (&before, &row) {
            (Some(Row::Held { id, rotted: false, .. }), Some((Row::Held { id: new, .. }, _)))
                if self.book.get(*id).hash != self.book.get(*new).hash =>
            {
                found.push(("I8", String::from("replaced an acked manifest of")));
            }
            (Some(Row::Held { id, .. }), Some((Row::Floor { .. }, Some(hash)))) if self.book.get(*id).hash != *hash => {
                found.push(("I8", String::from("remembers another manifest than it had of")));
            }
            _ => {}
        }
        match &before {
            Some(Row::Held { id, index, rotted: false, received_ms, durable_us }) if !matches!(row, Some((Row::Held { .. }, _))) => {
                let known = self.book.get(*id);
                let late_ms = self.late_ms(node);
                // A link that it knows, and by which it still holds this very shard, counts in place of the manifest.
                let place = Some(usize::from(*index));
                let linked = node.disk.heads.get(&key).filter(|head| head.place == place && self.book.get(head.id).hash == known.hash);
                // By a link the life is counted from when that was learnt, by the manifest alone from when the shard came.
                let since = |head: &HeadRow| if head.over_ms > known.own_over_ms() { head.at_us } else { head.at_us.max(*durable_us) };
                let (over_ms, since_us) = linked.map_or((known.own_over_ms(), *durable_us), |head| (head.over_ms, since(head)));
                let over = late_ms >= over_ms || self.is_misled(node);
                let ttl_us = known.manifest.ttl_ms * 1000;
                let ran_out = late_ms >= received_ms + known.manifest.ttl_ms && linked.is_none()
                    || now_us + LATE_MS * 1000 + ttl_us / CLOCK_DRIFT_PART >= since_us + ttl_us;
                let grace_us = self.grace_us - self.grace_us / DRIFT_PART;
                let superseded = node.disk.told_above(&key, &version).is_some_and(|told| now_us >= told.at_us + grace_us);
                let aborted = self.aborted.contains(&(key, version));
                // A link that it signed may be certified by now, and come later: then something lives on it, unless a newer version is certified.
                let newest = node.disk.told_above(&key, &version).is_none();
                let signed = newest && late_ms < self.signed_until_ms(node, *id);
                if !(over || ran_out || superseded || aborted) {
                    found.push(("I11", String::from("dropped before its time")));
                } else if signed && !aborted {
                    found.push(("I11", String::from("dropped, before the life of a link that it signed was over,")));
                } else if row.is_none() && !over {
                    found.push(("I11", String::from("forgot which manifest it had, before its life was over, of")));
                }
            }
            Some(Row::Floor { until_ms, rotted: false }) if row.is_none() && self.late_ms(node) < *until_ms => {
                found.push(("I11", String::from("forgot which manifest it had, before its life was over, of")));
            }
            _ => {}
        }
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        if let Some(Row::Held { id, .. }) = before
            && !matches!(row, Some((Row::Held { .. }, _)))
        {
            if node.disk.dropped.len() >= DROPPED_MAX {
                node.disk.dropped.pop_front();
            }
            node.disk.dropped.push_back((now_us, key, version, id));
        }
        match row {
            Some((row, _)) => node.disk.prepared.insert((key, version), row),
            None => node.disk.prepared.remove(&(key, version)),
        };
        for (invariant, what) in found {
            self.find(invariant, format!("machine {machine} {what} {}", name()));
        }
    }

    /// When the last link is over for everybody that a machine signed of a manifest, on the disk that it has now.
    fn signed_until_ms(&self, node: &Node, id: ManifestId) -> u64 {
        let (known, lost_us) = (self.book.get(id), node.lost_us.max(node.forgot_us));
        let signed = node.signed.range((id, 0)..=(id, u64::MAX)).filter(|(_, (_, at_us))| lost_us.is_none_or(|lost_us| lost_us < *at_us));
        let over_ms = |issued_at_ms: u64| (issued_at_ms + known.manifest.ttl_ms).min(known.manifest.renew_until_ms) + known.allowance_ms();
        signed.map(|(_, ((issued_at_ms, _), _))| over_ms(*issued_at_ms)).max().unwrap_or(0)
    }

    /// Why a version of this host may not be taken in.
    fn higher_host(&self, machine: Machine, key: &Key, version: &Version, id: ManifestId, taken: bool) -> Option<&'static str> {
        let (known, disk) = (self.book.get(id), &self.nodes[&machine].disk);
        let host_of = |id: ManifestId| host(&self.book.get(id).version());
        let certified = disk.heads.get(key).filter(|head| !head.rotted);
        if certified.is_some_and(|head| host_of(head.id) > host(version)) {
            return Some("after a certified version of a higher host");
        }
        if disk.fences.get(&known.manifest.owner).is_some_and(|fence| fence.by > host(version)) {
            return Some("behind the fence of a higher host");
        }
        let committed = disk.highest_told(key);
        let stands_above = |(other, row): (&Version, &Row)| {
            let held = matches!(row, Row::Held { rotted: false, .. });
            held && !taken && host(other) > host(version) && committed.is_none_or(|committed| *other > committed)
        };
        disk.rows(key).any(stands_above).then_some("beside an uncommitted version of a higher host")
    }

    /// I13: of one host of a section at most `prepared_max` uncommitted versions are kept, of all hosts together at most four times as many.
    fn not_crowded(&mut self, machine: Machine, key: &Key) {
        let node = &self.nodes[&machine];
        if node.behind_its_back {
            return;
        }
        let committed = node.disk.highest_told(key);
        let uncommitted = |(version, row): &(&Version, &Row)| {
            matches!(row, Row::Held { rotted: false, .. }) && committed.is_none_or(|committed| **version > committed)
        };
        let hosts: Vec<_> = node.disk.rows(key).filter(uncommitted).map(|(version, _)| host(version)).collect();
        let most = hosts.chunk_by(|left, right| left == right).map(<[_]>::len).max().unwrap_or(0);
        if most > self.prepared_max || hosts.len() > self.prepared_max * HOSTS_MAX {
            let what = format!(
                "machine {machine} keeps {} uncommitted versions of section {}, {most} of them of one host",
                hosts.len(),
                hex(&key[..4])
            );
            self.find("I13", what);
        }
    }

    /// I16: a correct machine keeps as certified only what is. I11: a head never goes back, nor before its life is over.
    fn head(&mut self, machine: Machine, key: Key, value: Option<&[u8]>) {
        let now_us = self.now_us;
        let before = self.nodes[&machine].disk.heads.get(&key).copied();
        let Some(value) = value else {
            let node = &self.nodes[&machine];
            if let Some(head) = before.filter(|head| !head.rotted && self.late_ms(node) < head.over_ms && !self.is_misled(node)) {
                let what = format!("machine {machine} forgot the head {} before its life was over", self.name(head.id));
                self.find("I11", what);
            }
            if let Some(node) = self.nodes.get_mut(&machine) {
                node.disk.heads.remove(&key);
            }
            return;
        };
        let row = decode::head_row(value).ok().map(|(head, _)| head);
        let learnt = row.and_then(|head| self.learn_head(&head));
        let Some((id, true)) = learnt.filter(|(id, _)| self.book.get(*id).manifest.key == key) else {
            let what = format!("machine {machine} keeps as certified of section {} what is not", hex(&key[..4]));
            return self.find("I16", what);
        };
        let version = self.book.get(id).version();
        if let Some(head) = before.filter(|head| !head.rotted && self.book.get(head.id).version() > version) {
            let what = format!("machine {machine} went back to {} from {}", self.name(id), self.name(head.id));
            self.find("I11", what);
        }
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        let known = self.book.get(id);
        let leased = row.and_then(|head| known.leased(head.lease?));
        let over_ms = leased.map_or(known.own_over_ms(), |leased| leased.expires_at_ms + known.allowance_ms());
        // By the manifest alone its life is counted from when the shard came, not from when the certificate did.
        let holders = leased.and_then(|leased| leased.sets.last());
        let place = holders.and_then(|holders| holders.iter().position(|peer| *peer == node.peer));
        let (place_of, hash) = ((key, known.version()), known.hash);
        let same = before.filter(|before| before.id == id && before.over_ms == over_ms);
        let at_us = same.map_or(now_us, |before| before.at_us);
        if let Some(before) = before.filter(|before| before.id == id && !before.rotted && before.over_ms > over_ms) {
            let what = format!("machine {machine} went back to an earlier link of {} after {} ms", self.name(id), before.over_ms);
            self.find("I11", what);
        }
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        node.promised.entry(place_of).and_modify(|promised| promised.certified = Some(hash));
        node.disk.heads.insert(key, HeadRow { id, over_ms, place, at_us, rotted: false });
        let told = node.disk.told.entry(key).or_default();
        if told.last().is_none_or(|last| last.version < version) {
            told.push(Told { version, at_us: now_us });
        }
    }

    /// I12: a fence is never replaced by that of a lower host.
    fn fence(&mut self, machine: Machine, owner: [u8; 32], value: Option<&[u8]>) {
        let now_us = self.now_us;
        let learnt = value.and_then(|value| decode::certified_head(value).ok()).and_then(|head| self.learn_head(&head));
        let Some((id, _)) = learnt else {
            if let Some(node) = self.nodes.get_mut(&machine) {
                node.disk.fences.remove(&owner);
            }
            return;
        };
        let by = host(&self.book.get(id).version());
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        let before = node.disk.fences.insert(owner, Fence { by, since_us: now_us });
        if before.is_some_and(|before| before.by > by) {
            self.find("I12", format!("machine {machine} lowered the fence of owner {}", hex(&owner[..4])));
        }
    }

    /// I11 of bytes: a shard goes with the last version that refers to it.
    fn nobody_needs(&mut self, machine: Machine, key: &Key, hash: &[u8; 32]) {
        let disk = &self.nodes[&machine].disk;
        if disk.shards.contains_key(&(*key, *hash)) {
            return; // written again since
        }
        let needs = |(_, row): (&Version, &Row)| match row {
            Row::Held { id, index, rotted: false, .. } => {
                Some(*id).filter(|id| self.book.get(*id).manifest.shard_hashes.get(usize::from(*index)) == Some(hash))
            }
            _ => None,
        };
        let needed = disk.rows(key).find_map(needs);
        if let Some(id) = needed {
            let what = format!("machine {machine} dropped its shard of {}, and keeps the manifest", self.name(id));
            self.find("I11", what);
        }
    }

    /// I7: after a put committed at level `r` and until its version expires or a newer one is certified: while at most `r - 1` of its
    /// holders are lost to it, at least `k` matching shards lie on disks of correct holders.
    pub(crate) fn survives(&mut self, key: &Key) {
        let Some(section) = self.sections.get_mut(key) else { return };
        let mut watched = std::mem::take(&mut section.watched);
        let certified = section.certified;
        watched.retain(|Watched { id, level }| {
            let known = self.book.get(*id);
            if certified > Some(known.version()) || self.ideal_ms() as u64 >= self.surely_lives_until_ms(*id) {
                return false;
            }
            let (lost, have, need) = (self.lost_holders(known), self.shards_on_disks(known, false), known.shape()[1]);
            if lost >= usize::from(*level) || have >= need {
                return true;
            }
            let what =
                format!("{} was committed at level {level}; {lost} holders are lost, and {have} of {need} shards are left", self.name(*id));
            self.find("I7", what);
            false
        });
        if let Some(section) = self.sections.get_mut(key) {
            section.watched = watched;
        }
    }

    /// Until when no correct holder can think that a version's life is over, by the ideal clock: its clock may be ahead, and have been
    /// set while the version was there.
    fn surely_lives_until_ms(&self, id: ManifestId) -> u64 {
        let known = self.book.get(id);
        let begun_ms = (self.ideal_ms() as u64).saturating_sub((self.now_us - known.first_us) / 1000);
        let nodes = known.manifest.holders.iter().filter_map(|peer| self.node_of(peer));
        let furthest_ms = nodes.map(|node| node.worst_ms()).max().unwrap_or(0).min(known.allowance_ms());
        (known.manifest.issued_at_ms.min(begun_ms) + known.manifest.ttl_ms).saturating_sub(2 * furthest_ms)
    }

    /// A disk that is empty, or another one from now on.
    pub(crate) fn disk_lost(&mut self, machine: Machine, noticed: bool) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        node.lost_us = Some(now_us);
        if !noticed {
            node.forgot_us = Some(now_us);
        }
        node.behind_its_back = true;
        node.acked.clear();
        node.floors.clear();
        let before = std::mem::take(&mut node.disk);
        let mut keys: Vec<Key> = before.shards.into_keys().map(|(key, _)| key).collect();
        keys.dedup();
        for key in keys {
            self.survives(&key);
        }
    }

    /// One value can no longer be read. Its process does not know, and is excused from what it promised there.
    pub(crate) fn rot(&mut self, machine: Machine, table: u8, key: &[u8]) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(&machine) else { return };
        match table {
            table::SHARD => {
                let Some(at) = decode::shard_key(key) else { return };
                if let Some(shard) = node.disk.shards.get_mut(&at) {
                    shard.rotted = true;
                    self.survives(&at.0);
                }
            }
            table::PREPARED => {
                node.forgot_us = Some(now_us);
                let Some(at) = decode::prepared_key(key) else { return };
                node.acked.remove(&at);
                match node.disk.prepared.get_mut(&at) {
                    Some(Row::Held { rotted, .. } | Row::Floor { rotted, .. }) => *rotted = true,
                    None => {}
                }
            }
            table::HEAD => {
                node.forgot_us = Some(now_us);
                if let Some(head) = <Key>::try_from(key).ok().and_then(|key| node.disk.heads.get_mut(&key)) {
                    head.rotted = true;
                }
            }
            table::FENCE => node.forgot_us = Some(now_us),
            table::FLOOR => {
                if let Ok(key) = <Key>::try_from(key) {
                    node.floors.remove(&key);
                }
            }
            table::INTENT | table::OWN => node.lost_us = Some(now_us),
            _ => {}
        }
    }
}

impl Auditor {
    /// Watches over a version that has just committed.
    pub(crate) fn watch(&mut self, key: &Key, id: ManifestId, level: u8) {
        if let Some(section) = self.sections.get_mut(key) {
            section.watched.push(Watched { id, level });
        }
        self.survives(key);
    }
}
