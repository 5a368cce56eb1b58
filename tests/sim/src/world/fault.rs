//! What may befall a machine beyond crashes: disks that refuse, fail or go back, a copy of it, clocks that run apart, and a neighbour that
//! sends garbage.

use std::sync::Arc;

use chacha20::ChaCha8Rng;
use persona_audit::history::{Change, What};
use persona_lies::mangle::mangle;
use persona_mesh_proto::Table;
use sha2::{Digest as _, Sha256};

use super::{Asker, CHEAT, Disk, Event, Gossip, Host, World};
use crate::plan::below;

/// Of a thousand requests, so many are sent once more, mangled, by whoever mangles.
const MANGLED_PERMILLE: u64 = 40;

/// Requests from this number on are a mangler's. Nobody waits for their answers.
const MANGLED: u64 = CHEAT * 2;

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// The next sync fails. What it held is on the disk, or is not: nobody knows.
    Sync,
    /// There is no room: whatever would add a value fails, and nothing of it is on the disk.
    Full,
}

/// A machine that sends what others sent once more, mangled.
pub(super) struct Mangler {
    host: usize,
    rng: ChaCha8Rng,
    /// What was sent before.
    last: Arc<Vec<u8>>,
    sent: u64,
}

impl World {
    /// Whether the sync that is about to be done fails. Then the process must stop (docs/spec/store.md): whoever drives the world is told
    /// by [`World::failed`].
    pub(super) fn fails(&mut self, host: usize) -> bool {
        let machine = &mut self.hosts[host];
        let adds = machine.unsynced.iter().take(machine.syncing).any(|(_, writes)| writes.iter().any(|write| write.value.is_some()));
        match machine.failing {
            Some(Failing::Sync) => machine.failing = None,
            Some(Failing::Full) if adds => machine.syncing = 0,
            _ => return false,
        }
        self.failed.push(host);
        true
    }

    /// What is on a machine's disk now, for [`Self::roll_back`].
    pub fn snapshot(&self, host: usize) -> Disk {
        self.hosts[host].disk.clone()
    }

    /// A disk is again what it was. The process must be down, and its next one cannot know.
    pub fn roll_back(&mut self, host: usize, disk: Disk) {
        assert!(!self.hosts[host].up(), "a disk goes back while nobody uses it");
        self.tell(What::DiskLost { machine: host as u32, noticed: false });
        if self.observed() {
            let change = |((table, key), value): (&(Table, Vec<u8>), &Vec<u8>)| Change {
                table: *table as u8,
                key: key.clone(),
                value: Some(value.clone()),
            };
            let writes = disk.iter().map(change).collect();
            self.tell(What::Durable { machine: host as u32, writes });
        }
        self.hosts[host].disk = disk;
    }

    /// A second machine with the key and the disk of a first: a copied image that was started twice. Returns its number.
    pub fn add_twin(&mut self, of: usize) -> usize {
        let twin = self.hosts.len();
        let (secret, disk) = (self.hosts[of].secret, self.hosts[of].disk.clone());
        self.hosts.push(Host { disk, correct: false, is_twin: true, ..Host::new(secret, self.hosts[of].peer) });
        self.hosts[of].twin = Some(twin);
        self.introduce(twin);
        twin
    }

    /// Which of two machines with one key a request gets to.
    pub(super) fn which_twin(&mut self, host: usize) -> usize {
        let Some(twin) = self.hosts[host].twin.filter(|twin| self.hosts[*twin].up()) else { return host };
        if !self.hosts[host].up() || self.chance(500) { twin } else { host }
    }

    /// From now on a machine mangles what it sees.
    pub fn set_mangler(&mut self, host: usize, rng: ChaCha8Rng) {
        self.mangler = Some(Mangler { host, rng, last: Arc::default(), sent: 0 });
    }

    /// A frame of requests is on its way to a machine: perhaps something like it comes from elsewhere, too.
    pub(super) fn mangle_request(&mut self, host: usize, frame: &Arc<Vec<u8>>) {
        let Some(mangler) = &mut self.mangler else { return };
        let other = std::mem::replace(&mut mangler.last, frame.clone());
        if below(&mut mangler.rng, 1000) >= MANGLED_PERMILLE || mangler.host == host {
            return;
        }
        let bytes = mangle(frame, &other, &mut mangler.rng);
        mangler.sent += 1;
        let (from, id) = (mangler.host, MANGLED + mangler.sent);
        if !self.hosts[from].up() {
            return;
        }
        self.frames += 1;
        let asker = Asker { host: from, life: self.hosts[from].life, id, number: self.frames };
        self.trace(6, from, &bytes);
        if self.observed() {
            self.tell(What::Asked { frame: asker.number, from: from as u32, to: self.hosts[host].peer.0, bytes: bytes.clone() });
        }
        let after = self.delay();
        self.schedule(after, Event::Frame { host, asker, frame: Arc::new(bytes) });
    }

    /// A gossip message is published: perhaps something like it is, too.
    pub(super) fn mangle_gossip(&mut self, topic: Gossip, data: &[u8]) {
        let Some(mangler) = &mut self.mangler else { return };
        let (host, last) = (mangler.host, mangler.last.clone());
        let bytes = mangle(data, &last, &mut mangler.rng);
        if self.hosts[host].up() {
            let digest = Sha256::digest(&bytes).into();
            self.flood(host, digest, topic, &Arc::new(bytes));
        }
    }
}
