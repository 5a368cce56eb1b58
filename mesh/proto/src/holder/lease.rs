//! Leases: what a holder signs so that a section outlives its owner's absence (docs/spec/quorum.md#leases).
//!
//! In each generation a holder consents to one link at most, and acks none below what it consented to. What it acked it holds on to until
//! something later is certified, so that there is one chain of holder sets. And it names the sets that it signed for, so that a writer who
//! knows only the old ones finds the new.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use persona_fragments::{
    Ack, AckLeaf, CertifiedHead, Digest, Handover, Lease, Link, PeerKey, SectionKey, SignedManifest, Signer, Verifier, Version,
    certificate::HeadWire,
    coding::shard_matches,
    lease::LINKS_MAX,
    mutants::{self, Mutant},
    sign_batch, wire,
};

use super::{CallId, Holder, HolderOut, Life, LoadError, PreparedRecord, Section, Stored, Then, Why, clock_allowance_ms, head_rank};
use super::{prepared_key, refused, shard_key};
use crate::{
    message::{Handed, HandedSet, Refusal, Response},
    storage::{Table, Write},
    time::Now,
};

/// Sets that a holder has signed for, of one section, and that have not expired. When there are so many it consents to no further one: `Busy`.
pub(crate) const SIGNED_MAX: usize = 16;

/// Peers whose silence this node looks into. When there are so many, whoever proposes to replace a further one hears `Busy`.
const PROBES_MAX: usize = 256;

/// The longest pause between two probes of a silent peer.
const PAUSE_US_MAX: u64 = 10_000_000;

/// For how long two silences count.
const SILENCE_US: u64 = 60_000_000;

/// For how long an answer to a probe counts.
const ALIVE_US: u64 = 5_000_000;

/// First byte of the keys in [`Table::Meta`] of what was signed in handovers.
const LEASE_PREFIX: u8 = b'h';

/// How long a holder or a leader waits before it asks a silent peer once more: 10 s, or half a turn.
pub(crate) fn pause_us(turn_ms: u64) -> u64 {
    (turn_ms * 500).min(PAUSE_US_MAX)
}

/// What this holder has signed for one section. Also its record, under [`LEASE_PREFIX`] and the section key in [`Table::Meta`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Signed {
    /// The manifest that generation, handover and lock are about.
    version: Version,
    manifest_hash: Digest,
    /// The highest generation in which it signed, and what.
    generation: u32,
    handover: Digest,
    /// The link that it acked last.
    lock: Option<Link>,
    /// Sets that it signed for, of any version.
    sets: Vec<HandedSet>,
}

/// The links that a peer proposes, with who stands for them.
pub(super) struct Proposal {
    pub(super) issued_at_ms: u64,
    pub(super) replaced: Vec<(u8, PeerKey)>,
    pub(super) lock: Option<Link>,
}

/// Whether a peer is there, as far as this node found out.
#[derive(Default)]
pub(super) struct Probes {
    peers: BTreeMap<PeerKey, Probe>,
}

struct Probe {
    key: SectionKey,
    pause_us: u64,
    asking: bool,
    failures: u8,
    last_us: u64,
    alive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pulse {
    Failed,
    Alive,
    Unsure,
}

pub(super) fn is_lease_key(key: &[u8]) -> bool {
    key.len() == 1 + 32 && key[0] == LEASE_PREFIX
}

fn lease_key(key: &SectionKey) -> Vec<u8> {
    [&[LEASE_PREFIX][..], &key.0].concat()
}

impl Signed {
    fn write(&self, key: &SectionKey) -> Write {
        Write::set(Table::Meta, lease_key(key), wire::encode(self))
    }

    /// Until when a set is named: clocks may differ.
    fn named_until_ms(set: &HandedSet) -> u64 {
        set.expires_at_ms.saturating_add(2 * clock_allowance_ms(persona_fragments::Class::Core))
    }

    /// Until when a link can count that was signed for what is stored, whoever certifies it: 0 if none was. The generation says no more than
    /// that it was issued before the next one.
    pub(super) fn counts_until_ms(&self, manifest: &SignedManifest) -> u64 {
        if self.generation == 0 || self.manifest_hash != manifest.hash() {
            return 0;
        }
        let issued_before_ms = manifest.issued_at_ms.saturating_add(u64::from(self.generation).saturating_mul(manifest.turn_ms()));
        manifest.link_expires_at_ms(issued_before_ms).saturating_add(clock_allowance_ms(manifest.class))
    }

    pub(super) fn next_due_ms(&self) -> u64 {
        self.sets.iter().map(Self::named_until_ms).min().unwrap_or(u64::MAX)
    }

    fn sign(&mut self, manifest_hash: Digest, handover: &Handover, set: Option<HandedSet>) {
        if self.manifest_hash != manifest_hash {
            (self.manifest_hash, self.lock) = (manifest_hash, None);
        }
        (self.generation, self.handover) = (handover.generation, handover.hash());
        self.add(set);
    }

    fn add(&mut self, sets: impl IntoIterator<Item = HandedSet>) {
        for set in sets {
            let same = |known: &&mut HandedSet| known.version == set.version && known.before == set.before && known.holders == set.holders;
            match self.sets.iter_mut().find(same) {
                Some(known) => known.expires_at_ms = known.expires_at_ms.max(set.expires_at_ms),
                None => self.sets.push(set),
            }
        }
    }
}

/// The set that a handover leads to, if it replaces anybody.
fn set_of(head: &CertifiedHead, handover: &Handover) -> Option<HandedSet> {
    let manifest = &head.manifest;
    handover.changes().then(|| HandedSet {
        version: manifest.version,
        before: handover.before.clone(),
        holders: handover.holders.clone(),
        expires_at_ms: manifest.link_expires_at_ms(handover.issued_at_ms),
        renew_until_ms: manifest.renew_until_ms,
    })
}

/// The sets that a head's lease came from and led to.
pub(super) fn sets_of(head: &CertifiedHead) -> impl Iterator<Item = HandedSet> + '_ {
    let handovers = head.lease.iter().flat_map(|lease| lease.handovers(&head.manifest));
    handovers.filter_map(|handover| set_of(head, &handover))
}

impl Probes {
    fn pulse(&mut self, peer: PeerKey, key: SectionKey, pause_us: u64, now: Now, out: &mut Vec<HolderOut>) -> Pulse {
        if let Some(probe) = self.peers.get(&peer) {
            match (probe.alive, probe.failures) {
                (true, _) if now.mono_us < probe.last_us + ALIVE_US => return Pulse::Alive,
                (false, 2..) if now.mono_us < probe.last_us + SILENCE_US => return Pulse::Failed,
                (false, 0..2) => return Pulse::Unsure,
                _ => {} // too long ago
            }
        } else if self.peers.len() >= PROBES_MAX {
            self.peers.retain(|_, probe| probe.asking || now.mono_us < probe.last_us + SILENCE_US);
            if self.peers.len() >= PROBES_MAX {
                return Pulse::Unsure;
            }
        }
        let probe = Probe { key, pause_us, asking: true, failures: 0, last_us: now.mono_us, alive: false };
        self.peers.insert(peer, probe);
        out.push(HolderOut::Probe { peer, key });
        Pulse::Unsure
    }

    /// Second probes are due.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<HolderOut>) {
        for (peer, probe) in &mut self.peers {
            let again = !probe.asking && !probe.alive && probe.failures == 1 && now.mono_us >= probe.last_us + probe.pause_us;
            if again {
                probe.asking = true;
                out.push(HolderOut::Probe { peer: *peer, key: probe.key });
            }
        }
        self.peers.retain(|_, probe| now.mono_us < probe.last_us + SILENCE_US);
    }
}

// What others ask.
impl Holder {
    /// The leader of a turn wants a consent.
    #[allow(clippy::too_many_arguments, reason = "a request and what it takes to judge it")]
    pub(super) fn renew(
        &mut self,
        call: CallId,
        head: HeadWire,
        index: u8,
        proposal: &Proposal,
        consent: &Ack,
        now: Now,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let head = self.continued(head, index, now, verifier, out)?;
        let handover = self.sound(&head, proposal.issued_at_ms, &proposal.replaced, now)?;
        let manifest = &head.manifest;
        if consent.index != manifest.leader(handover.generation) || !handover.consented(manifest, consent, verifier) {
            return Err(refused(Refusal::BadHandover));
        }
        if self.signed_before(&head, &handover)? {
            let (consent, ack) = self.consent_leaves(&head, index, &handover);
            let signing = self.sections.get(&manifest.key).and_then(|section| section.signing);
            return match signing.filter(|id| self.persists.contains_key(id)) {
                None => Err(consented(&consent, ack.as_ref(), signer)),
                Some(id) => {
                    self.then(id, Then::Consented { call, consent, ack });
                    Ok(None)
                }
            };
        }
        // What may be certified already goes on, whoever has come back meanwhile.
        let agreed = self.unlocked(&head, &handover, proposal.lock.as_ref(), verifier)?;
        let mut unsure = false;
        for (place, _) in proposal.replaced.iter().filter(|_| !agreed) {
            let peer = handover.before[usize::from(*place)];
            if peer == self.me {
                return Err(refused(Refusal::Alive));
            }
            match self.probes.pulse(peer, manifest.key, pause_us(manifest.turn_ms()), now, out) {
                Pulse::Failed => {}
                Pulse::Unsure => unsure = true, // the others are probed at the same time: one after the other would outlast the round
                Pulse::Alive => return Err(refused(Refusal::Alive)),
            }
        }
        if unsure {
            return Err(Response::Busy);
        }
        let id = self.sign_handover(&head, &handover, None, now, out)?;
        let (consent, ack) = self.consent_leaves(&head, index, &handover);
        self.then(id, Then::Consented { call, consent, ack });
        Ok(None)
    }

    /// `n - f` have consented: is it acked?
    #[allow(clippy::too_many_arguments, reason = "a request and what it takes to judge it")]
    pub(super) fn handover(
        &mut self,
        call: CallId,
        head: HeadWire,
        index: u8,
        link: Link,
        now: Now,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let head = self.continued(head, index, now, verifier, out)?;
        let handover = self.sound(&head, link.issued_at_ms, &link.replaced, now)?;
        if !handover.stays(index) || !handover.agreed(&head.manifest, &link.consents, verifier) {
            return Err(refused(Refusal::BadHandover));
        }
        self.signed_before(&head, &handover)?;
        let leaf = self.handover_leaf(&head, index, &handover).ok_or(Response::NeedShard)?;
        let id = self.sign_handover(&head, &handover, Some(link), now, out)?;
        self.then(id, Then::HandedOver { call, leaf });
        Ok(None)
    }

    /// A holder of a lease is given its shard.
    #[allow(clippy::too_many_arguments, reason = "a request and what it takes to judge it")]
    pub(super) fn take(
        &mut self,
        call: CallId,
        head: HeadWire,
        index: u8,
        shard: Vec<u8>,
        now: Now,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let (head, life) = self.offered(head, now, verifier)?;
        let manifest = &head.manifest;
        let (key, owner, version, rank) = (manifest.key, manifest.owner, manifest.version, head_rank(&head));
        if head.holders().get(usize::from(index)) != Some(&self.me) {
            return Err(refused(Refusal::NotAHolder));
        }
        if !shard_matches(manifest, index, &shard) {
            return Err(refused(Refusal::WrongShard));
        }
        self.not_fenced(&key, &owner, &version)?;
        let section = self.sections.get(&key);
        let higher = section.is_some_and(|section| section.heads().any(|known| known.head.manifest.version > version));
        if let Some(stored) = section.and_then(|section| section.versions.get(&version))
            && stored.manifest.hash() != manifest.hash()
        {
            return Err(Response::Conflict { manifest: stored.manifest.wire().clone() });
        }
        if higher || section.is_some_and(|section| section.floors.get(&version).is_some_and(|floor| floor.manifest_hash != manifest.hash()))
        {
            return Err(refused(Refusal::Stale));
        }
        let hash = manifest.shard_hashes[usize::from(index)];
        let here = section.and_then(|section| section.shards.get(&hash)).is_some_and(|known| !known.lost);
        let held = section.and_then(|section| section.versions.get(&version)).filter(|stored| stored.index == index && here);
        let mut writes = Vec::new();
        let (held, coming) = (held.is_some(), held.and_then(|stored| stored.coming));
        if !held {
            self.room(manifest, shard.len() as u64)?;
            // One that comes back to another place: the shard of the old one is nobody's any more.
            self.drop_version(&key, &version, Why::Dropped, now, &mut writes);
            writes.retain(|write| write.table != Table::Prepared); // its record is written anew below
            let record = match manifest.index_of(&self.me) {
                Some(own) if own == index => PreparedRecord::Held { manifest: manifest.wire().clone(), index, received_ms: now.wall_ms },
                _ => PreparedRecord::Taken { manifest: manifest.wire().clone(), index, received_ms: now.wall_ms },
            };
            writes.push(Write::set(Table::Shard, shard_key(&key, &hash), shard));
            writes.push(Write::set(Table::Prepared, prepared_key(&key, &version), wire::encode(&record)));
        }
        let known = self.sections.get(&key).and_then(|section| section.at_least(&rank));
        let mut staged = None;
        if known.is_none() {
            let (head, more) = self.new_head(head.clone(), life, now);
            writes.extend(more);
            staged = Some(head);
        }
        if writes.is_empty() {
            let waits = coming.or(known.flatten());
            return match waits {
                Some(id) => {
                    self.then(id, Then::Commit { call, key, owner, rank });
                    Ok(None)
                }
                None => Err(self.commit_answer(&key, &owner, &rank, now, out)),
            };
        }
        let id = self.persist(writes, out);
        if !held {
            let manifest = head.manifest.clone();
            self.insert(Stored { manifest, index, life, coming: Some(id), ack: None, superseded_at_us: None });
            self.then(id, Then::Stored { key, version, id });
        }
        if let Some(staged) = staged {
            self.store_head(staged, id);
        }
        self.then(id, Then::Commit { call, key, owner, rank });
        self.reschedule(&key);
        Ok(None)
    }
}

// This node's own turn, and its own probes.
impl Holder {
    /// This node leads a turn, asked for by [`HolderOut::Lead`], and proposes a link: its own consent comes as [`HolderOut::Led`], unless it
    /// cannot consent any more. Whether the replaced holders are silent is for [`Renewal`](crate::Renewal) to find out.
    #[allow(clippy::too_many_arguments, reason = "a link and what it takes to judge it")]
    pub fn lead(
        &mut self,
        head: &CertifiedHead,
        issued_at_ms: u64,
        replaced: &[(u8, PeerKey)],
        lock: Option<&Link>,
        now: Now,
        verifier: &dyn Verifier,
    ) -> Vec<HolderOut> {
        let mut out = Vec::new();
        let key = head.manifest.key;
        let Some(index) = head.index_of(&self.me) else { return out };
        let staged = self.continued(head.to_wire(), index, now, verifier, &mut out).and_then(|head| {
            let handover = self.sound(&head, issued_at_ms, replaced, now)?;
            if !self.signed_before(&head, &handover)? {
                self.unlocked(&head, &handover, lock, verifier)?;
            }
            let id = self.sign_handover(&head, &handover, None, now, &mut out)?;
            Ok((id, self.consent_leaves(&head, index, &handover)))
        });
        if let Ok((id, (consent, ack))) = staged {
            self.then(id, Then::Led { key, consent, ack });
        }
        out
    }

    /// A probe that [`HolderOut::Probe`] asked for was answered, by whatever, or was not.
    pub fn probed(&mut self, peer: &PeerKey, answered: bool, now: Now) {
        if let Some(probe) = self.probes.peers.get_mut(peer).filter(|probe| probe.asking) {
            (probe.asking, probe.last_us, probe.alive) = (false, now.mono_us, answered);
            probe.failures = if answered { 0 } else { probe.failures.saturating_add(1) };
        }
    }

    /// When this node's turn is next to lead a renewal of the section, by the wall clock.
    pub(super) fn lead_at_ms(&self, section: &Section) -> Option<u64> {
        let head = &section.head.as_ref().filter(|head| head.served)?.head;
        let manifest = &head.manifest;
        let index = head.index_of(&self.me).filter(|_| manifest.is_leased())?;
        let due_ms = manifest.next_link_due_ms(head.renewed_at_ms());
        let led = section.led.filter(|(of, _)| *of == manifest.hash()); // every manifest counts its own turns
        let mut generation = manifest.generation_at(due_ms).max(led.map_or(0, |(_, generation)| generation.saturating_add(1)));
        while manifest.leader(generation) != index {
            generation = generation.checked_add(1)?;
        }
        let begins_ms = manifest.issued_at_ms + u64::from(generation - 1) * manifest.turn_ms();
        let at_ms = begins_ms.max(due_ms);
        let useful = at_ms < head.expires_at_ms() && manifest.link_expires_at_ms(at_ms) > head.expires_at_ms();
        useful.then_some(at_ms)
    }

    /// It is this node's turn to renew the section, if it is.
    pub(super) fn lead_turn(&mut self, key: &SectionKey, now: Now, out: &mut Vec<HolderOut>) {
        let Some(section) = self.sections.get(key) else { return };
        let Some(at_ms) = self.lead_at_ms(section).filter(|at_ms| *at_ms <= now.wall_ms) else { return };
        let head = section.head.as_ref().expect("it has a turn").head.clone();
        let manifest = &head.manifest;
        let generation = manifest.generation_at(now.wall_ms);
        let mine = Some(manifest.leader(generation)) == head.index_of(&self.me) && manifest.generation_at(at_ms) <= generation;
        let free = !self.forgot(key) && self.not_fenced(key, &manifest.owner, &manifest.version).is_ok();
        self.sections.get_mut(key).expect("just there").led = Some((manifest.hash(), generation));
        if mine && free && now.wall_ms < head.expires_at_ms().min(manifest.renew_until_ms) {
            out.push(HolderOut::Lead { head: Box::new(head), lock: self.lock(key) });
        }
    }

    /// What it signed is named: sets of versions below `below`, or all.
    pub(super) fn named(&self, key: &SectionKey, below: Option<&Version>, now: Now) -> Vec<HandedSet> {
        let Some(section) = self.sections.get(key).filter(|_| !mutants::on(Mutant::HandoverForgotten)) else { return Vec::new() };
        let of_head = section.head.iter().flat_map(|head| sets_of(&head.head));
        let mut sets: Vec<HandedSet> = section.signed.iter().flat_map(|signed| signed.sets.iter().cloned()).collect();
        for set in of_head {
            if !sets.iter().any(|known| known.version == set.version && known.before == set.before && known.holders == set.holders) {
                sets.push(set);
            }
        }
        sets.retain(|set| below.is_none_or(|below| set.version < *below) && now.wall_ms < Signed::named_until_ms(set));
        sets
    }

    pub(super) fn handed(&self, key: &SectionKey, now: Now) -> Option<Handed> {
        let handed = Handed { sets: self.named(key, None, now), lock: self.lock(key) };
        (handed != Handed::default()).then_some(handed)
    }

    /// The link that this node acked and that nothing later is known to have replaced.
    fn lock(&self, key: &SectionKey) -> Option<Link> {
        let section = self.sections.get(key)?;
        let head = &section.head.as_ref()?.head;
        let signed = section.signed.as_ref().filter(|signed| signed.manifest_hash == head.manifest.hash())?;
        signed.lock.clone().filter(|link| head.manifest.generation_at(link.issued_at_ms) > head.generation())
    }

    /// What a higher head supersedes is named still: the writes that see to it.
    pub(super) fn carry_names(&mut self, key: &SectionKey, version: &Version, now: Now) -> Option<Write> {
        let sets = self.named(key, Some(version), now);
        let section = self.sections.get_mut(key)?;
        let unknown = sets.iter().any(|set| section.signed.as_ref().is_none_or(|signed| !signed.sets.contains(set)));
        if !unknown {
            return None;
        }
        let none = Signed {
            version: *version,
            manifest_hash: Digest([0; 32]),
            generation: 0,
            handover: Digest([0; 32]),
            lock: None,
            sets: vec![],
        };
        let signed = section.signed.get_or_insert(none);
        signed.add(sets);
        Some(signed.write(key))
    }

    /// What the others have signed, learnt after a loss: the write that remembers it.
    pub(super) fn learn_handed(&mut self, head: &CertifiedHead, handed: Handed) -> Option<Write> {
        if handed == Handed::default() {
            return None;
        }
        let (key, manifest_hash) = (head.manifest.key, head.manifest.hash());
        let (version, none) = (head.manifest.version, Digest([0; 32]));
        let empty = Signed { version, manifest_hash, generation: 0, handover: none, lock: None, sets: vec![] };
        let signed = self.sections.entry(key).or_default().signed.get_or_insert(empty);
        if signed.manifest_hash != manifest_hash {
            (signed.version, signed.manifest_hash, signed.generation, signed.lock) = (version, manifest_hash, 0, None);
        }
        let later = |known: &Option<Link>| {
            known.as_ref().is_none_or(|known| handed.lock.as_ref().is_some_and(|link| known.issued_at_ms < link.issued_at_ms))
        };
        if later(&signed.lock) {
            signed.lock = handed.lock.clone();
        }
        signed.add(handed.sets);
        Some(signed.write(&key))
    }

    pub(super) fn load_signed(&mut self, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let section = key.get(1..).and_then(|key| key.try_into().ok()).ok_or(LoadError::Mismatch(Table::Meta))?;
        let signed = wire::decode(value).map_err(|error| LoadError::Decode { table: Table::Meta, error })?;
        self.sections.entry(SectionKey(section)).or_default().signed = Some(signed);
        self.reschedule(&SectionKey(section));
        Ok(())
    }

    /// Forgets sets that have expired for everybody, and the rest with what it is about.
    pub(super) fn forget_signed(&mut self, key: &SectionKey, now: Now, writes: &mut Vec<Write>) {
        let Some(section) = self.sections.get_mut(key) else { return };
        let Some(signed) = section.signed.as_mut() else { return };
        signed.sets.retain(|set| now.wall_ms < Signed::named_until_ms(set));
        let here = section.versions.values().map(|stored| &stored.manifest).chain(section.head.iter().map(|head| &head.head.manifest));
        if signed.sets.is_empty() && !here.into_iter().any(|manifest| manifest.hash() == signed.manifest_hash) {
            section.signed = None;
            writes.push(Write::remove(Table::Meta, lease_key(key)));
        }
    }
}

// The rules.
impl Holder {
    /// The head that a link continues: the highest certified one here, of which this node is holder `index`.
    fn continued(
        &mut self,
        head: HeadWire,
        index: u8,
        now: Now,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<CertifiedHead, Response> {
        let offered = CertifiedHead::trusted(head.clone()).map_err(|_| refused(Refusal::BadManifest))?;
        let (key, rank) = (offered.manifest.key, head_rank(&offered));
        if offered.holders().get(usize::from(index)) != Some(&self.me) {
            return Err(refused(Refusal::NotAHolder));
        }
        if self.forgot(&key) {
            self.ask_recovery(&key, None, None, now, out);
            return Err(Response::Recovering);
        }
        self.not_fenced(&key, &offered.manifest.owner, &offered.manifest.version)?;
        let section = self.sections.get(&key);
        let highest = section.and_then(|section| section.heads().max_by_key(|head| head_rank(&head.head)));
        match highest.map(|highest| head_rank(&highest.head).cmp(&rank)) {
            None | Some(std::cmp::Ordering::Less) => {
                let (head, life) = self.offered(head, now, verifier)?;
                self.stage_head(head, life, now, out)?;
                Err(Response::Busy)
            }
            Some(std::cmp::Ordering::Greater) => Err(Response::Superseded { head: highest.expect("compared").head.to_wire() }),
            Some(std::cmp::Ordering::Equal) => {
                let durable = section.and_then(|section| section.head.as_ref()).filter(|head| head_rank(&head.head) == rank);
                let durable = durable.ok_or(Response::Busy)?;
                if durable.life.over(now) { Err(refused(Refusal::Expired)) } else { Ok(durable.head.clone()) }
            }
        }
    }

    /// The handover of a link that may continue the head now.
    fn sound(&self, head: &CertifiedHead, issued_at_ms: u64, replaced: &[(u8, PeerKey)], now: Now) -> Result<Handover, Response> {
        let manifest = &head.manifest;
        let allowance_ms = clock_allowance_ms(manifest.class);
        if issued_at_ms > now.wall_ms.saturating_add(allowance_ms) {
            return Err(refused(Refusal::FromTheFuture));
        }
        if self.amnesia.since_ms().is_some_and(|since_ms| issued_at_ms <= since_ms.saturating_add(allowance_ms)) {
            return Err(Response::Recovering); // it may have signed another one of this generation
        }
        let due = issued_at_ms >= manifest.next_link_due_ms(head.renewed_at_ms()) && issued_at_ms < manifest.renew_until_ms;
        let links = head.lease.as_ref().map_or(0, |lease| lease.links().iter().filter(|link| !link.replaced.is_empty()).count());
        let handover = Handover::of(manifest, head.holders(), issued_at_ms, replaced).filter(|_| due);
        // One link more than those that change the holders must always fit: the one that changes nothing.
        let fits = |handover: &Handover| links < LINKS_MAX - usize::from(handover.changes());
        handover.filter(fits).ok_or(refused(Refusal::BadHandover))
    }

    /// Whether this very handover was signed here; an error if another one was in this or a later generation.
    fn signed_before(&self, head: &CertifiedHead, handover: &Handover) -> Result<bool, Response> {
        let signed = self.sections.get(&head.manifest.key).and_then(|section| section.signed.as_ref());
        let Some(signed) = signed.filter(|signed| signed.manifest_hash == head.manifest.hash()) else { return Ok(false) };
        match signed.generation.cmp(&handover.generation) {
            std::cmp::Ordering::Less => Ok(false),
            std::cmp::Ordering::Equal if signed.handover == handover.hash() => Ok(true),
            _ => Err(refused(Refusal::Stale)),
        }
    }

    /// Whether what was acked here before allows this handover; and whether `n - f` are known to have consented to these very holders.
    fn unlocked(&self, head: &CertifiedHead, handover: &Handover, lock: Option<&Link>, verifier: &dyn Verifier) -> Result<bool, Response> {
        let manifest = &head.manifest;
        let of = |link: &Link| Handover::of(manifest, head.holders(), link.issued_at_ms, &link.replaced);
        let same = |link: &Link| of(link).is_some_and(|other| other.holders == handover.holders);
        let proves = |link: &&Link| same(link) && of(link).is_some_and(|other| other.agreed(manifest, &link.consents, verifier));
        let proof = lock.filter(proves);
        match self.lock(&manifest.key).filter(|own| of(own).is_some()) {
            None => Ok(proof.is_some()),
            Some(own) if same(&own) => Ok(true),
            Some(own) if proof.is_some_and(|link| manifest.generation_at(link.issued_at_ms) > manifest.generation_at(own.issued_at_ms)) => {
                Ok(true)
            }
            Some(own) => Err(Response::Locked { link: own }),
        }
    }

    /// Writes down that a handover is signed; with its link if it is acked.
    fn sign_handover(
        &mut self,
        head: &CertifiedHead,
        handover: &Handover,
        acked: Option<Link>,
        now: Now,
        out: &mut Vec<HolderOut>,
    ) -> Result<crate::PersistId, Response> {
        let (key, manifest_hash) = (head.manifest.key, head.manifest.hash());
        let section = self.sections.get_mut(&key).expect("its head is here");
        let none = Digest([0; 32]);
        let empty = Signed { version: head.manifest.version, manifest_hash, generation: 0, handover: none, lock: None, sets: vec![] };
        let signed = section.signed.get_or_insert(empty);
        signed.sets.retain(|set| now.wall_ms < Signed::named_until_ms(set));
        let set = set_of(head, handover);
        let new = |set: &HandedSet| !signed.sets.iter().any(|known| known.holders == set.holders && known.before == set.before);
        if signed.sets.len() >= SIGNED_MAX && set.as_ref().is_some_and(new) {
            return Err(Response::Busy);
        }
        signed.version = head.manifest.version;
        signed.sign(manifest_hash, handover, set);
        if handover.changes() && acked.is_some() {
            signed.lock = acked;
        }
        let write = signed.write(&key);
        self.reschedule(&key);
        let id = self.persist(vec![write], out);
        self.sections.get_mut(&key).expect("its head is here").signing = Some(id);
        Ok(id)
    }

    /// What is signed to consent; and to ack with it, where that needs no further word.
    fn consent_leaves(&self, head: &CertifiedHead, index: u8, handover: &Handover) -> (AckLeaf, Option<AckLeaf>) {
        let ack = if handover.changes() { None } else { self.handover_leaf(head, index, handover) };
        (handover.consent_leaf(&head.manifest, index), ack)
    }

    /// What is signed to ack; `None` without the shard.
    fn handover_leaf(&self, head: &CertifiedHead, index: u8, handover: &Handover) -> Option<AckLeaf> {
        let manifest = &head.manifest;
        let (stored, _) = self.sections.get(&manifest.key)?.shard_of(&manifest.version)?;
        let has = stored.index == index && stored.manifest.hash() == manifest.hash();
        has.then(|| handover.ack_leaf(manifest, index))
    }

    /// A head that somebody shows: verified, unless it is known; and in time.
    pub(super) fn offered(&self, wire: HeadWire, now: Now, verifier: &dyn Verifier) -> Result<(CertifiedHead, Life), Response> {
        let refusal = |error| match error {
            persona_fragments::CertificateError::Manifest(_) => refused(Refusal::BadManifest),
            _ => refused(Refusal::BadCertificate),
        };
        let section = wire.manifest.claimed_key().and_then(|key| self.sections.get(&key));
        let same = |manifest: &SignedManifest| *manifest.wire() == wire.manifest;
        let heads = section.into_iter().flat_map(|section| section.heads());
        let known = heads.filter(|known| same(&known.head.manifest)).max_by_key(|known| known.head.generation());
        if let Some(known) = known {
            let manifest = &known.head.manifest;
            let lease = wire.handover.as_ref().map(|frame| Lease::trusted(frame, manifest)).transpose();
            let lease = lease.map_err(|error| refusal(error.into()))?;
            let generation = lease.map_or(0, |lease| manifest.generation_at(lease.issued_at_ms()));
            if known.head.generation() >= generation {
                // Whatever the rest of it says, it leads to nothing later.
                let head = known.head.clone();
                let life = self.in_time(&head, now)?;
                return Ok((head, life));
            }
        }
        let stored = section.and_then(|section| section.versions.values().map(|stored| &stored.manifest).find(|manifest| same(manifest)));
        let head = match (known, stored) {
            (Some(known), _) => CertifiedHead::verify_with(wire, Some(&known.head), verifier),
            (None, Some(stored)) => CertifiedHead::verify_after(wire, stored, verifier),
            (None, None) => CertifiedHead::verify(wire, verifier),
        };
        let head = head.map_err(refusal)?;
        let life = self.in_time(&head, now)?;
        Ok((head, life))
    }
}

pub(super) fn consented(consent: &AckLeaf, ack: Option<&AckLeaf>, signer: &dyn Signer) -> Response {
    Response::Consented { consent: signature(consent, signer), ack: ack.map(|leaf| signature(leaf, signer)) }
}

/// A leaf signed alone, as links want it: their size is bounded.
pub(super) fn signature(leaf: &AckLeaf, signer: &dyn Signer) -> Ack {
    sign_batch(std::slice::from_ref(leaf), signer).remove(0)
}
