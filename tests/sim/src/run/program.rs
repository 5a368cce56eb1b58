//! Nemesis programs: sequences of faults that aim at one rule each.
//!
//! Chance alone seldom brings together what a rule is for: that one certificate reached one holder, that the reader who heard of it was
//! followed by one who could not, that more holders forgot than may be missing. So a seed may draw a program, which looks at who holds what
//! and breaks exactly that. It knows nothing of the rules: whether something was wrong with what then happened, the auditor says.

use persona_fragments::{CertifiedHead, PeerKey, certificate::HeadWire, wire};
use persona_mesh_proto::Table;

use super::{Fault, Kind, Mode, Run, SectionKey, below};

/// A program is run again after so long, in microseconds, while the storm lasts.
const PAUSE_US: u64 = 1_500_000;

/// How long a program waits for one answer, in microseconds: longer than any put or get takes.
const ANSWER_US: u64 = 8_000_000;

/// The life of a document that is to be handed over, in milliseconds.
const LEASED_MS: u64 = 120_000;

/// How often whoever waits looks, in microseconds.
const LOOK_US: u64 = 20_000;

/// What a program is about: a document that everybody knows, its owner's machine, and its holders.
struct Stage {
    agent: usize,
    home: usize,
    document: usize,
    key: SectionKey,
    /// Machines of its holder set that run and do what the protocol says, the owner's not among them, in an order that was drawn.
    holders: Vec<usize>,
    n: usize,
    f: usize,
}

impl Run {
    /// Carries out the programs of the plan, again and again, until then.
    pub(super) fn programs(&mut self, end_us: u64) {
        let programs: Vec<Fault> = Fault::PROGRAMS.into_iter().chain([Fault::TooMany]).filter(|fault| self.plan.has(*fault)).collect();
        if programs.is_empty() {
            return;
        }
        // Long enough for the first puts.
        self.wait_us(PAUSE_US);
        while self.world.now_us < end_us {
            for program in &programs {
                self.did(*program);
                match program {
                    Fault::HalfTold => self.half_told(),
                    Fault::LostStores => self.lost_stores(),
                    Fault::HalfAcked => self.half_acked(),
                    Fault::Away => self.away(),
                    Fault::HandedOver => self.handed_over(),
                    Fault::TooMany => self.too_many(),
                    _ => {}
                }
                self.world.blocked.clear();
            }
            self.wait_us(PAUSE_US);
        }
    }

    /// A certificate reaches one holder alone. One reader hears of it, and the next does not: another machine, or the first one after a
    /// restart.
    fn half_told(&mut self) {
        let document = self.dice() as usize % 3;
        let Some(Stage { agent, home, document, key, holders, n, f }) = self.stage(document) else { return };
        let (told, others) = (holders[0], &holders[1..]);
        // As many acks as a certificate needs, the told one's among them: without it, what the others say makes none.
        let unasked: Vec<usize> = others.iter().rev().take(f).copied().collect();
        self.hide(home, &unasked, &[Kind::Prepare]);
        self.hide(home, others, &[Kind::Commit]);
        let known = self.highest(told, &key);
        let Some(put) = self.put(home, agent, document, 100) else { return };
        if !self.look(|run| run.highest(told, &key) > known) {
            return;
        }
        let readers: Vec<usize> = self.readers().into_iter().filter(|host| *host != told && *host != home).collect();
        let [first, second, ..] = readers[..] else { return };
        let (restarts, mode) = (self.dice().is_multiple_of(2), self.dice() % 3);
        // The first hears as many as it needs, the told one among them.
        let unheard: Vec<usize> = others.iter().filter(|host| **host != first).take(n.min(f)).copied().collect();
        self.hide(first, &unheard, &Kind::ALL);
        let mode = match (restarts, mode) {
            (true, _) => Mode::Regular,
            (false, 0) => Mode::Regular,
            (false, _) => Mode::Atomic,
        };
        let read = self.fetch(first, key, mode);
        self.answer(read);
        self.show(first);
        let second = if restarts { first } else { second };
        if restarts {
            self.crash_now(first);
            self.world.start(first);
        }
        self.hide(second, &[told], &Kind::ALL);
        let mode = if !restarts {
            Mode::Atomic
        } else if self.dice().is_multiple_of(2) {
            Mode::Any
        } else {
            Mode::Regular
        };
        let read = self.fetch(second, key, mode);
        self.answer(read);
        self.world.blocked.clear();
        self.answer(Some(put));
    }

    /// `f` holders miss a version, and `f + 1` of those that have it lose their disks. Who then hears those that missed it, and those that
    /// lost it, has heard a quorum that knows nothing of it.
    fn lost_stores(&mut self) {
        let document = self.dice() as usize % 3;
        let Some(Stage { agent, home, document, key, holders, f, .. }) = self.stage(document) else { return };
        let losers: Vec<usize> = holders.iter().filter(|host| !self.world.hosts[**host].has_agents()).take(f + 1).copied().collect();
        let others: Vec<usize> = holders.iter().filter(|host| !losers.contains(host)).copied().collect();
        let (missing, keepers) = others.split_at(f.min(others.len()));
        if losers.len() <= f || missing.len() < f {
            return;
        }
        self.hide(home, missing, &[Kind::Prepare, Kind::Commit]);
        let before = self.agents[agent].documents[document].committed;
        let put = self.put(home, agent, document, 100);
        self.answer(put);
        if self.agents[agent].documents[document].committed == before {
            return;
        }
        if losers.iter().any(|host| self.world.hosts[*host].has_agents()) {
            return; // an agent has come meanwhile: with the disk it would lose its home
        }
        for host in &losers {
            self.crash_now(*host);
            self.world.lose_disk(*host);
            self.world.start(*host);
        }
        let readers: Vec<usize> = self.readers().into_iter().filter(|host| !losers.contains(host) && !keepers.contains(host)).collect();
        let Some(reader) = readers.first().copied().filter(|host| *host != home) else { return };
        self.hide(reader, keepers, &Kind::ALL);
        if self.dice().is_multiple_of(3) {
            // Long enough for a recovery to begin.
            self.wait_us(11_000_000);
        }
        for _ in 0..2 {
            let read = if self.dice().is_multiple_of(2) { self.certificate(reader, key) } else { self.fetch(reader, key, Mode::Regular) };
            self.answer(read);
        }
        self.world.blocked.clear();
        let put = self.put(home, agent, document, 100);
        self.answer(put);
    }

    /// `f` holders ack a version, and those that lie; then perhaps its owner dies. Nobody may take it for certified, whoever says so.
    fn half_acked(&mut self) {
        let document = self.dice() as usize % 3;
        let Some(Stage { agent, home, document, key, holders, f, .. }) = self.stage(document) else { return };
        let (asked, unasked) = holders.split_at(f.min(holders.len()));
        self.hide(home, unasked, &[Kind::Prepare]);
        let Some(put) = self.put(home, agent, document, 100) else { return };
        let first = asked.first().copied();
        // Its row on the disk has the section's key first, as all of that table do.
        let rows = |run: &Self| first.map_or(0, |host| run.world.hosts[host].disk.keys().filter(|row| is_prepared(row, &key)).count());
        let before = rows(self);
        self.look(|run| rows(run) > before || !run.asked.contains_key(&put));
        let dies = self.dice().is_multiple_of(2);
        if dies {
            self.crash_now(home);
        }
        let readers: Vec<usize> = self.readers().into_iter().filter(|host| *host != home).take(2).collect();
        for reader in readers {
            let read = self.certificate(reader, key);
            self.answer(read);
            let mode = [Mode::Any, Mode::Regular, Mode::Atomic][self.dice() as usize % 3];
            let read = self.fetch(reader, key, mode);
            self.answer(read);
        }
        if !dies {
            // Its outcome is unknown: with the next version it is given up, and then what was held up comes.
            self.answer(Some(put));
            self.world.blocked.clear();
            let put = self.put(home, agent, document, 100);
            self.answer(put);
        }
        self.world.blocked.clear();
        self.world.start(home);
    }

    /// An owner puts a version with a shorter life than the one before, and stays away. Its holders remember the head for as long as the
    /// older version might live elsewhere, and readers go on asking.
    fn away(&mut self) {
        let Some(Stage { agent, document, home, key, .. }) = self.stage(2) else { return };
        let short_ms = self.agents[agent].documents[document].ttl_ms;
        self.agents[agent].documents[document].ttl_ms = 40_000;
        let put = self.put(home, agent, document, 100);
        self.answer(put);
        self.agents[agent].documents[document].ttl_ms = short_ms;
        let put = self.put(home, agent, document, 100);
        self.answer(put);
        let readers: Vec<usize> = self.readers().into_iter().filter(|host| *host != home).take(3).collect();
        let reads: Vec<Option<u64>> = readers.iter().map(|host| self.fetch(*host, key, Mode::Regular)).collect();
        reads.into_iter().for_each(|read| self.answer(read));
        let homes: Vec<usize> = self.agents[agent].homes.iter().copied().collect();
        for host in &homes {
            self.crash_now(*host);
        }
        // Its life, twice the allowance of a document's clocks, and what the auditor leaves for the way.
        self.wait_us((short_ms + 13_000) * 1000);
        for turn in 0..2 {
            for host in &readers {
                let read = if turn == 0 { self.certificate(*host, key) } else { self.fetch(*host, key, Mode::Any) };
                self.answer(read);
            }
        }
        for host in homes {
            self.world.start(host);
        }
    }

    /// An owner is away for so long that its holders renew a leased document among themselves, and one of them is, whose place they give to
    /// another. Both come back, and the owner puts where it always did: at the one that was away, one that stayed, and a liar, who will know
    /// nothing of it. Then somebody reads who hears the rest: one that stayed, the newcomer, and the liar. Only what those that signed for the
    /// newcomer say to the owner can tell it that this was not enough.
    fn handed_over(&mut self) {
        let Some(Stage { agent, document, home, key, .. }) = self.stage(1) else { return };
        // Long enough for a round of leading and judging; the first link is due after half of it.
        let short_ms = std::mem::replace(&mut self.agents[agent].documents[document].ttl_ms, LEASED_MS);
        let put = self.put(home, agent, document, 100);
        self.answer(put);
        self.agents[agent].documents[document].ttl_ms = short_ms;
        self.wait_us(PAUSE_US);
        let Some(before) = self.certified_at(home, &key) else { return };
        let holders: Vec<usize> = before.holders().iter().filter_map(|peer| self.host_of(peer)).collect();
        let (mut sound, liars): (Vec<usize>, Vec<usize>) = holders.iter().partition(|host| self.world.hosts[**host].correct);
        self.shuffle(&mut sound);
        let gone = sound.iter().copied().find(|host| !self.world.hosts[*host].has_agents());
        let ([liar], Some(gone), 3) = (&liars[..], gone, sound.len()) else { return };
        self.crash_now(home);
        self.crash_now(gone);
        let stayed: Vec<usize> = sound.into_iter().filter(|host| *host != gone).collect();
        let handed = |run: &Self| stayed.iter().all(|host| run.newcomer(*host, &key).is_some());
        let late_us = self.world.now_us + LEASED_MS * 1000;
        while !handed(self) && self.world.now_us < late_us {
            self.wait_us(10 * LOOK_US);
        }
        let newcomer = self.newcomer(stayed[0], &key);
        self.wait_us(2 * PAUSE_US); // until the newcomer has its shard
        self.world.start(gone);
        self.world.start(home);
        let (Some(newcomer), true) = (newcomer, handed(self)) else { return };
        let told = [gone, stayed[0], *liar];
        let all: Vec<usize> = (0..self.world.hosts.len()).collect();
        let untold: Vec<usize> = all.iter().copied().filter(|host| !told.contains(host)).collect();
        self.hide(home, &untold, &Kind::ALL);
        let put = self.put(home, agent, document, 100);
        self.answer(put);
        let known = [stayed[1], newcomer, *liar];
        let reader = self.readers().into_iter().find(|host| *host != home && !known.contains(host) && !told.contains(host));
        let Some(reader) = reader else { return };
        let unheard: Vec<usize> = all.into_iter().filter(|host| !known.contains(host)).collect();
        self.hide(reader, &unheard, &Kind::ALL);
        let read = self.fetch(reader, key, Mode::Regular);
        self.answer(read);
        self.world.blocked.clear();
    }

    /// More than `f` holders lie, and one reader hears none but them and those that missed a version. It is stale: that is not promised
    /// any more. What is promised still, the auditor knows.
    fn too_many(&mut self) {
        let document = self.dice() as usize % 3;
        let Some(Stage { agent, home, document, key, holders, f, .. }) = self.stage(document) else { return };
        let (missing, keepers) = holders.split_at(f.min(holders.len()));
        let (missing, keepers) = (missing.to_vec(), keepers.to_vec());
        self.hide(home, &missing, &[Kind::Prepare, Kind::Commit]);
        let put = self.put(home, agent, document, 100);
        self.answer(put);
        let Some(reader) = self.readers().into_iter().find(|host| *host != home && !keepers.contains(host)) else { return };
        self.hide(reader, &keepers, &Kind::ALL);
        for mode in [Mode::Any, Mode::Regular, Mode::Atomic] {
            let read = self.fetch(reader, key, mode);
            self.answer(read);
        }
        self.world.blocked.clear();
    }

    // ---- what programs are made of -----------------------------------------------------------------------------------------------

    /// A document that was just put once more, and its holders.
    fn stage(&mut self, document: usize) -> Option<Stage> {
        let agents = self.agents.len() as u64;
        let number = below(&mut self.nemesis, agents.max(1)) as usize;
        let agent = self.agents.get(number)?;
        let (home, key) = (*agent.homes.iter().next()?, agent.documents.get(document)?.key);
        let before = agent.documents[document].committed;
        let put = self.put(home, number, document, 100)?;
        self.answer(Some(put));
        // Whoever missed it is told in the background.
        self.wait_us(LOOK_US);
        if self.agents[number].documents[document].committed == before || self.agents[number].moved {
            return None;
        }
        let manifest = self.certified_at(home, &key)?.manifest;
        let (n, f) = (manifest.holders.len(), (manifest.holders.len() - 1) / 3);
        let runs = |host: &usize| self.world.hosts[*host].up() && self.world.hosts[*host].correct && *host != home;
        let holds = |host: &usize| manifest.holders.contains(&self.world.hosts[*host].peer);
        let mut holders: Vec<usize> = (0..self.world.hosts.len()).filter(runs).filter(holds).collect();
        self.shuffle(&mut holders);
        let enough = if self.beyond() { n - f - 1 } else { n - f };
        (f > 0 && holders.len() >= enough).then_some(Stage { agent: number, home, document, key, holders, n, f })
    }

    /// The head of a section on a machine's disk.
    fn certified_on(&self, host: usize, key: &SectionKey) -> Option<CertifiedHead> {
        let row = self.world.hosts[host].disk.get(&(Table::Head, key.0.to_vec()))?;
        // docs/spec/quorum.md#records: the head, when it came, and for how long it is kept.
        let (head, _, _) = wire::decode::<(HeadWire, u64, u64)>(row).ok()?;
        CertifiedHead::trusted(head).ok()
    }

    /// The highest that a machine other than `home` has on its disk.
    fn certified_at(&self, home: usize, key: &SectionKey) -> Option<CertifiedHead> {
        let others = (0..self.world.hosts.len()).filter(|host| *host != home);
        others.filter_map(|host| self.certified_on(host, key)).max_by_key(|head| head.manifest.version)
    }

    /// Who has a place now, by the link that this machine knows, that the manifest does not name.
    fn newcomer(&self, host: usize, key: &SectionKey) -> Option<usize> {
        let head = self.certified_on(host, key)?;
        let new = head.holders().iter().find(|peer| !head.manifest.holders.contains(peer))?;
        self.host_of(new)
    }

    fn host_of(&self, peer: &PeerKey) -> Option<usize> {
        self.world.hosts.iter().position(|host| host.peer == *peer)
    }

    fn highest(&self, host: usize, key: &SectionKey) -> Option<persona_fragments::Version> {
        self.certified_on(host, key).map(|head| head.manifest.version)
    }

    /// Machines that run and do what the protocol says, in an order that is drawn.
    fn readers(&mut self) -> Vec<usize> {
        let runs = |host: &usize| self.world.hosts[*host].up() && self.world.hosts[*host].correct;
        let mut readers: Vec<usize> = (0..self.world.hosts.len()).filter(runs).collect();
        self.shuffle(&mut readers);
        readers
    }

    fn shuffle(&mut self, hosts: &mut [usize]) {
        for left in (1..hosts.len()).rev() {
            let right = below(&mut self.nemesis, left as u64 + 1) as usize;
            hosts.swap(left, right);
        }
    }

    /// Requests of these kinds no longer get from one machine to others.
    fn hide(&mut self, from: usize, to: &[usize], kinds: &[Kind]) {
        let pairs = to.iter().flat_map(|to| kinds.iter().map(move |kind| (from, *to, *kind)));
        self.world.blocked.extend(pairs);
    }

    /// They do again.
    fn show(&mut self, from: usize) {
        self.world.blocked.retain(|(asker, ..)| *asker != from);
    }

    /// Waits until a call is answered, or its machine is gone, or too long.
    fn answer(&mut self, call: Option<u64>) {
        if let Some(call) = call {
            self.look(|run| !run.asked.contains_key(&call));
        }
    }

    /// Waits until something is so. Returns whether it came to be.
    fn look(&mut self, is_so: impl Fn(&Self) -> bool) -> bool {
        let late_us = self.world.now_us + ANSWER_US;
        while !is_so(self) && self.world.now_us < late_us {
            self.wait_us(LOOK_US);
        }
        is_so(self)
    }
}

fn is_prepared((table, row): &&(Table, Vec<u8>), key: &SectionKey) -> bool {
    *table == Table::Prepared && row.starts_with(&key.0)
}

const _: () = assert!(ANSWER_US > 7_000_000, "a put lasts 7 s at the longest");
