//! Finding the mesh, and finding it again when everybody is gone.
//!
//! The joiner is a state machine: it is told what happened and what time it is, and answers with addresses to dial and with advice for
//! the operator. All sources are tried side by side. An address that fails is tried again after a random part of a bound that doubles
//! (full jitter), so that a thousand nodes that lost the same bootstrap peer do not come back in step.
//!
//! Once somebody answered, Kademlia finds the others, and the book is left alone. Addresses that the *operator* gave are still tried now
//! and then while their peer is not connected: otherwise two halves of a mesh that lost their common bootstrap peer would never merge.
//!
//! Times are milliseconds of a clock that never goes back; its zero does not matter.

use std::{collections::BTreeMap, fmt};

use persona_fragments::PeerKey;
use rand_core::CryptoRng;

use crate::{
    address::{Address, AddressError, quoted},
    book::Candidate,
    ticket::{Ticket, TicketError},
};

/// No failed address is tried again sooner.
pub const BACKOFF_MIN_MS: u64 = 500;

/// The bound of the backoff stops doubling here while this node is alone: a mesh that comes back is found within a minute.
pub const BACKOFF_MAX_MS: u64 = 60_000;

/// The same while others are connected, when only a split mesh would be worth the trouble.
pub const CONNECTED_BACKOFF_MAX_MS: u64 = 300_000;

/// A dial that has neither connected nor failed by now has failed. Longer than libp2p's own limit of 10 s, so this only catches lost news.
pub const DIAL_TIMEOUT_MS: u64 = 20_000;

/// A connection that lasted less did not count as one: its address goes on backing off, so that a peer that accepts and hangs up is not
/// dialed in a tight loop.
pub const STABLE_MS: u64 = 10_000;

/// After losing the last peer every address is tried again within this time.
const REJOIN_SPREAD_MS: u64 = 500;

/// The most dials under way at once. When they are, further addresses wait until one of them ends.
pub const DIALS_INFLIGHT_MAX: usize = 64;

/// The most addresses from tickets and configuration. Further ones are refused, and the operator is told.
pub const GIVEN_MAX: usize = 128;

/// The most candidates from the address book; those after them are left out.
pub const BOOK_CANDIDATES_MAX: usize = 64;

/// Connected peers that are remembered, more than any shell admits. Were there more, those beyond would be dialed once too often.
const CONNECTED_MAX: usize = 4096;

/// While nobody answers, the operator is told again after this long.
const ADVICE_REPEAT_MS: u64 = 300_000;

/// How the shell, or libp2p itself, says that a dialed address is this node's own where it does not name the peer.
const OURSELVES_WORDS: [&str; 2] = ["this node itself", "local peer id"];

/// Everything that is known about where the mesh is.
#[derive(Clone, Debug, Default)]
pub struct JoinSources {
    /// The mesh that this node joins. A ticket to another one is refused.
    pub mesh: String,
    /// Tickets.
    pub tickets: Vec<Ticket>,
    /// Configured multiaddrs.
    pub bootstrap: Vec<String>,
    /// [`AddressBook::candidates`](crate::AddressBook::candidates): the first [`BOOK_CANDIDATES_MAX`] are used.
    pub book: Vec<Candidate>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinEvent {
    /// The shell is ready to dial.
    Started,
    /// The first connection with `peer`. Further ones may be told, and make no difference but for the address they led to.
    Connected {
        /// Who.
        peer: PeerKey,
        /// The multiaddr that was dialed; `None` if the peer dialed us.
        address: Option<String>,
    },
    /// The last connection with `peer` is gone.
    Disconnected {
        /// Who.
        peer: PeerKey,
    },
    /// A dial failed.
    DialFailed {
        /// The multiaddr that was dialed.
        address: String,
        /// Why, in words for the operator. A peer id in them that is not the expected one is who answered; "this node itself" says that
        /// the address is our own.
        reason: String,
    },
    /// The address book has changed. Told now and then, so that a rejoin knows what was learned since the start.
    Known {
        /// [`AddressBook::candidates`](crate::AddressBook::candidates): takes the place of the ones before.
        candidates: Vec<Candidate>,
    },
    /// [`Joiner::deadline`] has come.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinOut {
    /// Dial all of these at once. Each is answered with [`JoinEvent::Connected`] or [`JoinEvent::DialFailed`].
    Dial(Vec<String>),
    /// Tell the operator.
    Advice(JoinAdvice),
}

/// What an operator should know, and do. `Display` is the whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinAdvice {
    /// No source has any address.
    NobodyKnown,
    /// Every address is this node's own.
    OnlyOurselves {
        /// The addresses.
        addresses: Vec<String>,
    },
    /// A ticket was not used.
    TicketRefused {
        /// Counted from 1.
        number: usize,
        /// Why.
        error: TicketError,
    },
    /// A ticket to another mesh was not used.
    OtherMesh {
        /// Counted from 1.
        number: usize,
        /// The ticket's mesh.
        theirs: String,
        /// The mesh that this node joins.
        ours: String,
    },
    /// A configured address was not used.
    AddressRefused {
        /// What was configured.
        address: String,
        /// Why.
        error: AddressError,
    },
    /// More than [`GIVEN_MAX`] addresses were given.
    TooManyGiven {
        /// How many were not used.
        unused: usize,
    },
    /// Every known address has failed.
    AllUnreachable {
        /// The addresses, in the order of their sources.
        addresses: Vec<Unreachable>,
    },
    /// Somebody else answered.
    WrongPeer {
        /// Where.
        address: String,
        /// Who was expected there.
        expected: PeerKey,
        /// Who is there.
        answered: PeerKey,
    },
    /// The last peer is gone; everything known is tried again.
    Rejoining {
        /// How many addresses are known.
        addresses: usize,
    },
}

/// An address that nobody answered at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Where.
    pub address: String,
    /// Why, the last time.
    pub reason: String,
    /// When it is tried again, in milliseconds from now. `None`: it is being tried now.
    pub next_try_ms: Option<u64>,
}

/// Finds the mesh. The shell feeds it events, calls it at [`Self::deadline`], and carries out what it answers, in order.
#[derive(Clone, Debug)]
pub struct Joiner {
    me: PeerKey,
    leads: Vec<Lead>,
    /// Since when each peer is connected.
    connected: BTreeMap<PeerKey, u64>,
    /// Since when anybody at all is.
    together_since_ms: Option<u64>,
    started: bool,
    /// What [`Self::new`] found wrong; told at the start.
    refused: Vec<JoinAdvice>,
    unreachable_told_ms: Option<u64>,
}

/// An address and how it has done.
#[derive(Clone, Debug)]
struct Lead {
    address: Address,
    /// By the operator, in a ticket or in the configuration; otherwise by the address book.
    given: bool,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// Why the last attempt failed.
    reason: Option<String>,
    /// Who answered there last, where the address does not say.
    answered: Option<PeerKey>,
    /// Whom the operator was told of.
    wrong_peer: Option<PeerKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting {
        until_ms: u64,
    },
    Dialing {
        until_ms: u64,
    },
    Connected {
        peer: PeerKey,
    },
    /// It is this node's own address.
    Ourselves,
}

impl Joiner {
    /// Gathers the sources. Nothing is dialed before [`JoinEvent::Started`], which is also when refused sources are told.
    pub fn new(sources: JoinSources, me: PeerKey) -> Self {
        let mut refused = Vec::new();
        let mut given = Vec::new();
        for (index, ticket) in sources.tickets.iter().enumerate() {
            let number = index + 1;
            if ticket.mesh != sources.mesh {
                refused.push(JoinAdvice::OtherMesh { number, theirs: quoted(&ticket.mesh), ours: sources.mesh.clone() });
            } else if let Err(error) = ticket.check_open() {
                refused.push(JoinAdvice::TicketRefused { number, error });
            } else {
                given.extend(ticket.addresses.iter());
            }
        }
        given.extend(sources.bootstrap.iter());
        let mut joiner = Self {
            me,
            leads: Vec::new(),
            connected: BTreeMap::new(),
            together_since_ms: None,
            started: false,
            refused: Vec::new(),
            unreachable_told_ms: None,
        };
        let mut unused = 0;
        for text in given {
            match text.parse::<Address>() {
                Ok(_) if joiner.leads.len() >= GIVEN_MAX => unused += 1,
                Ok(address) => joiner.add(address, true, 0),
                Err(error) => refused.push(JoinAdvice::AddressRefused { address: quoted(text), error }),
            }
        }
        if unused > 0 {
            refused.push(JoinAdvice::TooManyGiven { unused });
        }
        joiner.refused = refused;
        joiner.know(&sources.book, 0);
        joiner
    }

    /// Feeds one event to the state. The caller carries out what comes back, in order.
    pub fn handle(&mut self, event: JoinEvent, now_ms: u64, rng: &mut dyn CryptoRng) -> Vec<JoinOut> {
        let mut advice = Vec::new();
        match event {
            JoinEvent::Started => self.start(now_ms, &mut advice),
            JoinEvent::Connected { peer, address } => self.on_connected(peer, address.as_deref(), now_ms),
            JoinEvent::Disconnected { peer } => self.on_disconnected(&peer, now_ms, rng, &mut advice),
            JoinEvent::DialFailed { address, reason } => self.on_dial_failed(&address, &reason, now_ms, rng, &mut advice),
            JoinEvent::Known { candidates } => self.know(&candidates, now_ms),
            JoinEvent::Tick => {}
        }
        self.expire_dials(now_ms, rng);
        self.advise_if_unreachable(now_ms, &mut advice);
        let mut out: Vec<JoinOut> = advice.into_iter().map(JoinOut::Advice).collect();
        let due = self.dial_due(now_ms);
        if !due.is_empty() {
            out.push(JoinOut::Dial(due));
        }
        out
    }

    /// When [`JoinEvent::Tick`] is due, if nothing happens before. `None`: there is nothing to wait for.
    pub fn deadline(&self) -> Option<u64> {
        if !self.started {
            return None;
        }
        let room = self.dialing() < DIALS_INFLIGHT_MAX;
        let times = self.leads.iter().filter_map(|lead| match lead.state {
            State::Waiting { until_ms } => (room && self.is_wanted(lead)).then_some(until_ms),
            State::Dialing { until_ms } => Some(until_ms),
            State::Connected { .. } | State::Ourselves => None,
        });
        times.min()
    }

    /// How many peers are connected.
    pub fn connected(&self) -> usize {
        self.connected.len()
    }

    /// How many addresses are known, without this node's own.
    pub fn known(&self) -> usize {
        self.leads.iter().filter(|lead| lead.state != State::Ourselves).count()
    }

    fn start(&mut self, now_ms: u64, advice: &mut Vec<JoinAdvice>) {
        if self.started {
            return;
        }
        self.started = true;
        advice.append(&mut self.refused);
        for lead in &mut self.leads {
            if let State::Waiting { until_ms } = &mut lead.state {
                *until_ms = now_ms;
            }
        }
        if self.connected.is_empty() {
            self.advise_if_nobody_known(advice);
        }
    }

    fn on_connected(&mut self, peer: PeerKey, address: Option<&str>, now_ms: u64) {
        if peer == self.me {
            return;
        }
        if self.connected.len() < CONNECTED_MAX {
            self.connected.entry(peer).or_insert(now_ms);
        }
        self.together_since_ms.get_or_insert(now_ms);
        self.unreachable_told_ms = None;
        let place = address.and_then(|address| address.parse::<Address>().ok()).map(Address::without_peer);
        // The shell tells of a peer once, however many addresses led to it: all that are known to be its own count as reached.
        let places: Vec<Address> =
            self.leads.iter().filter(|lead| lead.address.peer() == Some(peer)).map(Lead::place).chain(place.clone()).collect();
        for lead in self.leads.iter_mut().filter(|lead| lead.state != State::Ourselves) {
            let reached = match lead.address.peer() {
                Some(named) => named == peer, // reaching another does not reach this one
                None => lead.answered == Some(peer) || places.contains(&lead.address),
            };
            if reached {
                lead.state = State::Connected { peer };
            }
            if place.as_ref() == Some(&lead.address) {
                lead.answered = Some(peer);
            }
        }
    }

    fn on_disconnected(&mut self, peer: &PeerKey, now_ms: u64, rng: &mut dyn CryptoRng, advice: &mut Vec<JoinAdvice>) {
        let Some(since_ms) = self.connected.remove(peer) else { return };
        let alone = self.connected.is_empty();
        let stable = now_ms.saturating_sub(since_ms) >= STABLE_MS;
        for lead in self.leads.iter_mut().filter(|lead| lead.state == State::Connected { peer: *peer }) {
            if stable {
                lead.failures = 0;
            }
            lead.fail(String::from("the connection was lost"), now_ms, alone, rng);
        }
        if !alone {
            return;
        }
        let together = self.together_since_ms.take().is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= STABLE_MS);
        for lead in &mut self.leads {
            let State::Waiting { until_ms } = &mut lead.state else { continue };
            if together {
                // A new search: whatever was wrong before says little now.
                lead.failures = 0;
                lead.reason = None;
                *until_ms = now_ms.saturating_add(uniform(rng, 0, REJOIN_SPREAD_MS));
            } else {
                // It backed off by the bound for company.
                *until_ms = (*until_ms).min(now_ms.saturating_add(BACKOFF_MAX_MS));
            }
        }
        if self.started && self.known() > 0 {
            advice.push(JoinAdvice::Rejoining { addresses: self.known() });
        } else if self.started {
            self.advise_if_nobody_known(advice);
        }
    }

    fn on_dial_failed(&mut self, address: &str, reason: &str, now_ms: u64, rng: &mut dyn CryptoRng, advice: &mut Vec<JoinAdvice>) {
        let Some(index) = self.dialed_as(address) else { return };
        let (me, alone) = (self.me, self.connected.is_empty());
        let lead = &mut self.leads[index];
        let expected = lead.address.peer();
        let answered = answered_instead(reason, expected);
        if answered == Some(me) || OURSELVES_WORDS.iter().any(|words| reason.contains(words)) {
            lead.state = State::Ourselves;
            if alone {
                self.advise_if_nobody_known(advice);
            }
            return;
        }
        lead.fail(quoted(reason), now_ms, alone, rng);
        if let (Some(expected), Some(answered)) = (expected, answered)
            && lead.wrong_peer != Some(answered)
        {
            lead.wrong_peer = Some(answered);
            advice.push(JoinAdvice::WrongPeer { address: lead.place().to_string(), expected, answered });
        }
    }

    /// Takes over the address book's best candidates in place of the ones before; those that are also given stay what they are.
    fn know(&mut self, candidates: &[Candidate], now_ms: u64) {
        let candidates: Vec<Address> = candidates
            .iter()
            .take(BOOK_CANDIDATES_MAX)
            .filter_map(|candidate| Some(candidate.address.parse::<Address>().ok()?.with_peer(candidate.peer)))
            .collect();
        self.leads.retain(|lead| lead.given || matches!(lead.state, State::Dialing { .. }) || candidates.contains(&lead.address));
        for address in candidates {
            if self.leads.len() < GIVEN_MAX + BOOK_CANDIDATES_MAX {
                self.add(address, false, now_ms);
            }
        }
    }

    fn add(&mut self, address: Address, given: bool, now_ms: u64) {
        if address.peer() == Some(self.me) {
            // In our own ticket, say. Kept where the operator gave it, so that it can be said that there is nothing else.
            if given && !self.leads.iter().any(|lead| lead.address == address) {
                self.leads.push(Lead::new(address, given, State::Ourselves));
            }
            return;
        }
        if self.leads.iter().any(|lead| lead.address == address) {
            return;
        }
        let state = match address.peer() {
            Some(peer) if self.connected.contains_key(&peer) => State::Connected { peer },
            _ => State::Waiting { until_ms: now_ms },
        };
        self.leads.push(Lead::new(address, given, state));
    }

    fn expire_dials(&mut self, now_ms: u64, rng: &mut dyn CryptoRng) {
        let alone = self.connected.is_empty();
        for lead in &mut self.leads {
            if matches!(lead.state, State::Dialing { until_ms } if until_ms <= now_ms) {
                lead.fail(format!("no answer within {} s", DIAL_TIMEOUT_MS / 1000), now_ms, alone, rng);
            }
        }
    }

    fn dial_due(&mut self, now_ms: u64) -> Vec<String> {
        if !self.started {
            return Vec::new();
        }
        let room = DIALS_INFLIGHT_MAX.saturating_sub(self.dialing());
        let alone = self.connected.is_empty();
        let due = |lead: &&mut Lead| (alone || lead.given) && matches!(lead.state, State::Waiting { until_ms } if until_ms <= now_ms);
        let dial = |lead: &mut Lead| {
            lead.state = State::Dialing { until_ms: now_ms.saturating_add(DIAL_TIMEOUT_MS) };
            lead.address.to_string()
        };
        self.leads.iter_mut().filter(due).take(room).map(dial).collect()
    }

    fn advise_if_nobody_known(&self, advice: &mut Vec<JoinAdvice>) {
        if self.leads.is_empty() {
            advice.push(JoinAdvice::NobodyKnown);
        } else if self.known() == 0 {
            advice.push(JoinAdvice::OnlyOurselves { addresses: self.leads.iter().map(|lead| lead.address.to_string()).collect() });
        }
    }

    /// Tells the operator once every known address has failed since this node was last with others, and again at long intervals.
    fn advise_if_unreachable(&mut self, now_ms: u64, advice: &mut Vec<JoinAdvice>) {
        let recently = self.unreachable_told_ms.is_some_and(|told_ms| now_ms.saturating_sub(told_ms) < ADVICE_REPEAT_MS);
        if !self.started || !self.connected.is_empty() || recently || self.known() == 0 {
            return;
        }
        let mut addresses = Vec::new();
        for lead in self.leads.iter().filter(|lead| lead.state != State::Ourselves) {
            let Some(reason) = &lead.reason else { return };
            let next_try_ms = match lead.state {
                State::Waiting { until_ms } => Some(until_ms.saturating_sub(now_ms)),
                _ => None,
            };
            addresses.push(Unreachable { address: lead.address.to_string(), reason: reason.clone(), next_try_ms });
        }
        self.unreachable_told_ms = Some(now_ms);
        advice.push(JoinAdvice::AllUnreachable { addresses });
    }

    /// Which dial this is about: the lead of that very address, or of the same place where the shell adds or leaves out `/p2p/`.
    fn dialed_as(&self, address: &str) -> Option<usize> {
        let address: Address = address.parse().ok()?;
        let dialing = |lead: &Lead| matches!(lead.state, State::Dialing { .. });
        let place = address.clone().without_peer();
        let same_place = |lead: &Lead| {
            let unnamed = lead.address.peer().is_none() || address.peer().is_none();
            unnamed && lead.place() == place
        };
        let exact = self.leads.iter().position(|lead| dialing(lead) && lead.address == address);
        exact.or_else(|| self.leads.iter().position(|lead| dialing(lead) && same_place(lead)))
    }

    fn is_wanted(&self, lead: &Lead) -> bool {
        lead.given || self.connected.is_empty()
    }

    fn dialing(&self) -> usize {
        self.leads.iter().filter(|lead| matches!(lead.state, State::Dialing { .. })).count()
    }
}

impl Lead {
    fn new(address: Address, given: bool, state: State) -> Self {
        Self { address, given, state, failures: 0, reason: None, answered: None, wrong_peer: None }
    }

    fn place(&self) -> Address {
        self.address.clone().without_peer()
    }

    fn fail(&mut self, reason: String, now_ms: u64, alone: bool, rng: &mut dyn CryptoRng) {
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(reason);
        let bound_max = if alone { BACKOFF_MAX_MS } else { CONNECTED_BACKOFF_MAX_MS };
        self.state = State::Waiting { until_ms: now_ms.saturating_add(backoff(self.failures, bound_max, rng)) };
    }
}

/// How long to wait after that many failures in a row: anything from [`BACKOFF_MIN_MS`] to a bound that doubles.
fn backoff(failures: u32, bound_max_ms: u64, rng: &mut dyn CryptoRng) -> u64 {
    let bound_ms = BACKOFF_MIN_MS << failures.clamp(1, 20);
    uniform(rng, BACKOFF_MIN_MS, bound_ms.min(bound_max_ms))
}

/// A number from `low` to `high`, both included. The bias of 64 bits on a range of minutes is nothing.
fn uniform(rng: &mut dyn CryptoRng, low: u64, high: u64) -> u64 {
    let span = u128::from(high - low) + 1;
    low + ((u128::from(rng.next_u64()) * span) >> 64) as u64
}

/// The peer that answered in place of the expected one: libp2p names it in its words.
fn answered_instead(reason: &str, expected: Option<PeerKey>) -> Option<PeerKey> {
    let words = reason.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter_map(PeerKey::from_peer_id_string).find(|&peer| Some(peer) != expected)
}

impl fmt::Display for JoinAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NobodyKnown => write!(f, "this node knows nobody: give --join TICKET or --bootstrap ADDRESS; it goes on alone"),
            Self::OnlyOurselves { addresses } => write!(
                f,
                "every address that was given is this node's own ({}): give --join with a ticket from another node; it goes on alone",
                addresses.join(", ")
            ),
            Self::TicketRefused { number, error } => write!(f, "ticket #{number} is not used: {error}"),
            Self::OtherMesh { number, theirs, ours } => write!(
                f,
                "ticket #{number} is not used: it leads to mesh {theirs:?}, but this node is in {ours:?}; start it with --mesh {theirs}, in \
                 a directory of its own"
            ),
            Self::AddressRefused { address, error } => write!(f, "bootstrap address {address} is not used: {error}"),
            Self::TooManyGiven { unused } => {
                write!(f, "{unused} given addresses are not used: {GIVEN_MAX} are the most; the address book learns the others")
            }
            Self::AllUnreachable { addresses } => write_unreachable(f, addresses),
            Self::WrongPeer { address, expected, answered } => write!(
                f,
                "at {address} peer {} answered, not {}: that node has a new identity, or the address has a new owner; ask for a new ticket",
                answered.to_peer_id_string(),
                expected.to_peer_id_string()
            ),
            Self::Rejoining { addresses: 1 } => write!(f, "the last peer is gone: trying the one known address again"),
            Self::Rejoining { addresses } => write!(f, "the last peer is gone: trying all {addresses} known addresses again"),
        }
    }
}

fn write_unreachable(f: &mut fmt::Formatter<'_>, addresses: &[Unreachable]) -> fmt::Result {
    const LINES_MAX: usize = 16;
    match addresses.len() {
        1 => write!(f, "the one known address does not answer; it is tried again:")?,
        many => write!(f, "none of the {many} known addresses answers; they are tried again:")?,
    }
    for Unreachable { address, reason, next_try_ms } in addresses.iter().take(LINES_MAX) {
        write!(f, "\n  {address}: {reason}; ")?;
        match next_try_ms {
            Some(ms) => write!(f, "next try in {}.{} s", ms / 1000, ms % 1000 / 100)?,
            None => write!(f, "being tried now")?,
        }
    }
    if let Some(more) = addresses.len().checked_sub(LINES_MAX).filter(|&more| more > 0) {
        write!(f, "\n  and {more} more")?;
    }
    write!(f, "\nhint: is one of these nodes running, and is its port open? a new ticket from `persona invite` names current addresses")
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use proptest::prelude::*;
    use rand_core::SeedableRng as _;

    use super::*;

    const ME: PeerKey = PeerKey([0xee; 32]);
    const T0: u64 = 1_000_000;

    fn peer(number: u8) -> PeerKey {
        PeerKey([number; 32])
    }

    /// Where peer `number` lives, without and with its name.
    fn bare(number: u8) -> String {
        format!("/ip4/10.0.0.{number}/tcp/4001")
    }

    fn at(number: u8) -> String {
        format!("{}/p2p/{}", bare(number), peer(number).to_peer_id_string())
    }

    fn candidate(number: u8) -> Candidate {
        Candidate { peer: peer(number), address: at(number) }
    }

    /// A joiner, its clock and its luck.
    struct World {
        joiner: Joiner,
        now_ms: u64,
        rng: ChaCha20Rng,
    }

    impl World {
        fn of(tickets: &[&[String]], bootstrap: &[String], book: &[u8]) -> Self {
            let sources = JoinSources {
                mesh: "home".into(),
                tickets: tickets.iter().map(|addresses| Ticket::new("home", addresses).expect("good")).collect(),
                bootstrap: bootstrap.to_vec(),
                book: book.iter().map(|&number| candidate(number)).collect(),
            };
            Self { joiner: Joiner::new(sources, ME), now_ms: T0, rng: ChaCha20Rng::seed_from_u64(7) }
        }

        fn feed(&mut self, event: JoinEvent) -> (Vec<String>, Vec<JoinAdvice>) {
            let (mut dials, mut advice) = (Vec::new(), Vec::new());
            for out in self.joiner.handle(event, self.now_ms, &mut self.rng) {
                match out {
                    JoinOut::Dial(addresses) => dials.extend(addresses),
                    JoinOut::Advice(said) => advice.push(said),
                }
            }
            (dials, advice)
        }

        fn connected(&mut self, number: u8) -> (Vec<String>, Vec<JoinAdvice>) {
            self.feed(JoinEvent::Connected { peer: peer(number), address: Some(at(number)) })
        }

        fn lost(&mut self, number: u8) -> (Vec<String>, Vec<JoinAdvice>) {
            self.feed(JoinEvent::Disconnected { peer: peer(number) })
        }

        fn failed(&mut self, address: &str, reason: &str) -> (Vec<String>, Vec<JoinAdvice>) {
            self.feed(JoinEvent::DialFailed { address: address.into(), reason: reason.into() })
        }

        /// Ticks at every deadline until `until_ms`; every dial is refused at once. Returns when each address was dialed.
        fn refuse_everything_until(&mut self, until_ms: u64) -> Vec<(u64, String)> {
            let mut log = Vec::new();
            while let Some(deadline) = self.joiner.deadline().filter(|&deadline| deadline <= until_ms) {
                self.now_ms = deadline;
                let (dials, _) = self.feed(JoinEvent::Tick);
                for address in dials {
                    log.push((self.now_ms, address.clone()));
                    self.failed(&address, "connection refused");
                }
                assert!(self.joiner.deadline() > Some(self.now_ms), "a tick at the deadline leaves nothing due");
            }
            self.now_ms = until_ms;
            log
        }
    }

    #[test]
    fn all_sources_are_tried_at_once() {
        let mut world = World::of(&[&[at(1), bare(2)], &[at(3)]], &[at(4), at(1)], &[5, 4, 6]);
        assert_eq!(world.joiner.deadline(), None, "nothing happens before the start");
        let (dials, advice) = world.feed(JoinEvent::Started);
        assert_eq!(dials, [at(1), bare(2), at(3), at(4), at(5), at(6)]);
        assert_eq!(advice, []);
        assert_eq!(world.feed(JoinEvent::Started), (vec![], vec![]), "once");
    }

    #[test]
    fn who_knows_nobody_is_told_what_to_give() {
        let mut world = World::of(&[], &[], &[]);
        let (dials, advice) = world.feed(JoinEvent::Started);
        assert_eq!((dials, advice), (vec![], vec![JoinAdvice::NobodyKnown]));
        assert_eq!(world.joiner.deadline(), None);
        insta::assert_snapshot!(JoinAdvice::NobodyKnown, @"this node knows nobody: give --join TICKET or --bootstrap ADDRESS; it goes on alone");
        // Somebody finds it, and leaves without a trace: it is alone again, and says so again.
        world.feed(JoinEvent::Connected { peer: peer(1), address: None });
        assert_eq!(world.joiner.connected(), 1);
        assert_eq!(world.lost(1).1, [JoinAdvice::NobodyKnown]);
    }

    #[test]
    fn what_is_refused_is_told_and_the_rest_is_used() {
        let good = Ticket::new("home", &[at(1)]).expect("good");
        let sources = JoinSources {
            mesh: "home".into(),
            tickets: vec![
                Ticket { mesh: "lab".into(), ..good.clone() },
                Ticket { admission: Some(vec![1]), addresses: vec![at(2)], ..good.clone() },
                good,
            ],
            bootstrap: vec!["10.0.0.9:4001".into(), at(3)],
            book: vec![Candidate { peer: peer(4), address: "junk".into() }],
        };
        let mut world = World { joiner: Joiner::new(sources, ME), ..World::of(&[], &[], &[]) };
        let (dials, advice) = world.feed(JoinEvent::Started);
        assert_eq!(dials, [at(1), at(3)]);
        let said: Vec<String> = advice.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
            ticket #1 is not used: it leads to mesh "lab", but this node is in "home"; start it with --mesh lab, in a directory of its own
            ticket #2 is not used: mesh "home" admits by grant, and this version of persona joins open meshes only: update persona, or ask for a ticket to an open mesh
            bootstrap address 10.0.0.9:4001 is not used: an address starts with a slash: instead of 10.0.0.9:4001 write /ip4/10.0.0.9/tcp/4001
        "#);
    }

    #[test]
    fn our_own_address_is_never_dialed() {
        let own = format!("{}/p2p/{}", bare(9), ME.to_peer_id_string());
        let mut world = World::of(&[std::slice::from_ref(&own)], &[], &[]);
        assert_eq!(world.feed(JoinEvent::Started), (vec![], vec![JoinAdvice::OnlyOurselves { addresses: vec![own] }]));
        // Without a name it takes one attempt to know, in either of libp2p's words.
        for reason in [
            "this node itself is there".into(),
            "Dial error: tried to dial local peer id at \"/ip4/10.0.0.9/tcp/4001\".".into(),
            format!("Unexpected peer ID {}", ME.to_peer_id_string()),
        ] {
            let mut world = World::of(&[], &[bare(9)], &[]);
            assert_eq!(world.feed(JoinEvent::Started).0, [bare(9)]);
            assert_eq!(world.failed(&bare(9), &reason), (vec![], vec![JoinAdvice::OnlyOurselves { addresses: vec![bare(9)] }]));
            assert_eq!((world.joiner.deadline(), world.joiner.known()), (None, 0));
        }
    }

    #[test]
    fn a_failed_address_backs_off_with_jitter_up_to_a_minute() {
        let mut world = World::of(&[], &[at(1)], &[]);
        assert_eq!(world.feed(JoinEvent::Started).0, [at(1)]);
        let mut last = T0;
        world.failed(&at(1), "connection refused");
        let log = world.refuse_everything_until(T0 + 3_600_000);
        for (attempt, (when, _)) in log.iter().enumerate() {
            let bound = (BACKOFF_MIN_MS << (attempt + 1).min(20)).min(BACKOFF_MAX_MS);
            assert!((BACKOFF_MIN_MS..=bound).contains(&(when - last)), "attempt {attempt}: {} of {bound}", when - last);
            last = *when;
        }
        assert!((80..200).contains(&log.len()), "an hour of half minutes: {}", log.len());
    }

    #[test]
    fn the_jitter_is_full() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let waits: Vec<u64> = (0..4000).map(|_| backoff(30, BACKOFF_MAX_MS, &mut rng)).collect();
        for tenth in 0..10 {
            let (low, high) = (BACKOFF_MIN_MS + tenth * 5950, BACKOFF_MIN_MS + (tenth + 1) * 5950);
            let share = waits.iter().filter(|&&wait| (low..high).contains(&wait)).count();
            assert!((300..500).contains(&share), "{share} of 4000 waits are from {low} to {high}");
        }
        assert!(waits.iter().all(|wait| (BACKOFF_MIN_MS..=BACKOFF_MAX_MS).contains(wait)));
    }

    #[test]
    fn nodes_that_lost_the_same_peer_do_not_come_back_in_step() {
        let first_try = |seed| {
            let mut world = World { rng: ChaCha20Rng::seed_from_u64(seed), ..World::of(&[], &[at(1)], &[]) };
            world.feed(JoinEvent::Started);
            world.connected(1);
            world.now_ms += 60_000;
            world.lost(1);
            world.joiner.deadline().expect("it rejoins") - world.now_ms
        };
        let tries: std::collections::BTreeSet<u64> = (0..100).map(first_try).collect();
        assert!(tries.len() > 50 && tries.iter().all(|&wait| wait <= REJOIN_SPREAD_MS), "{tries:?}");
    }

    #[test]
    fn when_nobody_answers_every_address_is_listed_with_its_reason() {
        let mut world = World::of(&[], &[at(1), bare(2)], &[]);
        world.feed(JoinEvent::Started);
        assert_eq!(world.failed(&at(1), "connection refused").1, [], "not before all have failed");
        let (_, advice) = world.failed(&bare(2), "no route to \u{1b}[31mhost");
        let [JoinAdvice::AllUnreachable { addresses }] = &advice[..] else { panic!("{advice:?}") };
        assert_eq!(addresses.iter().map(|lead| lead.address.clone()).collect::<Vec<_>>(), [at(1), bare(2)]);
        let shown = JoinAdvice::AllUnreachable {
            addresses: vec![
                Unreachable { address: bare(1), reason: "connection refused".into(), next_try_ms: Some(2345) },
                Unreachable { address: bare(2), reason: addresses[1].reason.clone(), next_try_ms: None },
            ],
        };
        insta::assert_snapshot!(shown, @r#"
            none of the 2 known addresses answers; they are tried again:
              /ip4/10.0.0.1/tcp/4001: connection refused; next try in 2.3 s
              /ip4/10.0.0.2/tcp/4001: no route to  [31mhost; being tried now
            hint: is one of these nodes running, and is its port open? a new ticket from `persona invite` names current addresses
        "#);
        // It is said once, and again only after a while.
        let mut said = Vec::new();
        let until_ms = world.now_ms + 2 * ADVICE_REPEAT_MS + 2 * BACKOFF_MAX_MS;
        while let Some(deadline) = world.joiner.deadline().filter(|&deadline| deadline < until_ms) {
            world.now_ms = deadline;
            let (dials, advice) = world.feed(JoinEvent::Tick);
            said.extend(advice.into_iter().map(|_| world.now_ms));
            for address in dials {
                said.extend(world.failed(&address, "connection refused").1.into_iter().map(|_| world.now_ms));
            }
        }
        assert_eq!(said.len(), 2, "{said:?}");
    }

    #[test]
    fn the_list_of_the_unreachable_is_bounded() {
        let lead = |number| Unreachable { address: bare(number), reason: "refused".into(), next_try_ms: None };
        let text = JoinAdvice::AllUnreachable { addresses: (0..20).map(lead).collect() }.to_string();
        assert_eq!(text.lines().count(), 1 + 16 + 1 + 1);
        assert!(text.contains("and 4 more"));
    }

    #[test]
    fn a_wrong_peer_is_named_once() {
        let mut world = World::of(&[], &[at(1)], &[]);
        world.feed(JoinEvent::Started);
        // The words of libp2p 0.57: both names may occur, and only the unexpected one counts.
        let reason = format!("Dial error: Unexpected peer ID {} at \"{}\".", peer(2).to_peer_id_string(), at(1));
        let (_, advice) = world.failed(&at(1), &reason);
        assert_eq!(advice[0], JoinAdvice::WrongPeer { address: bare(1), expected: peer(1), answered: peer(2) });
        insta::assert_snapshot!(advice[0], @"at /ip4/10.0.0.1/tcp/4001 peer 12D3KooW9xCm2jWjNVrwh51SWCQBMYdMyeU3NpT85QhLVkF6PcNM answered, not 12D3KooW9tHTtS3inCZiYykw4u5G4frbjVFqhkmJX12gSNCVeH3e: that node has a new identity, or the address has a new owner; ask for a new ticket");
        world.now_ms = world.joiner.deadline().expect("it is tried again");
        assert_eq!(world.feed(JoinEvent::Tick).0, [at(1)]);
        assert_eq!(world.failed(&at(1), &reason).1, []);
        assert_eq!(world.joiner.connected(), 0);
    }

    #[test]
    fn the_book_rests_while_others_are_connected_and_given_addresses_do_not() {
        let mut world = World::of(&[], &[at(1), at(2)], &[3, 4]);
        assert_eq!(world.feed(JoinEvent::Started).0.len(), 4);
        world.connected(1);
        for number in [2, 3, 4] {
            world.failed(&at(number), "connection refused");
        }
        let log = world.refuse_everything_until(T0 + 3_600_000);
        assert!(log.iter().all(|(_, address)| *address == at(2)), "{log:?}");
        assert!((12..60).contains(&log.len()), "now and then: {}", log.len());
    }

    #[test]
    fn losing_everyone_brings_everything_back() {
        let mut world = World::of(&[&[at(1)]], &[bare(2)], &[3]);
        world.feed(JoinEvent::Started);
        world.feed(JoinEvent::Connected { peer: peer(2), address: Some(bare(2)) });
        world.connected(3);
        world.failed(&at(1), "connection refused");
        world.refuse_everything_until(T0 + 3_600_000);
        world.feed(JoinEvent::Known { candidates: vec![candidate(3), candidate(5), candidate(6)] });
        assert_eq!(world.lost(2).1, [], "one is left");
        let (dials, advice) = world.lost(3);
        assert_eq!((dials, advice), (vec![], vec![JoinAdvice::Rejoining { addresses: 5 }]));
        assert_eq!(world.joiner.connected(), 0);
        let log = world.refuse_everything_until(world.now_ms + REJOIN_SPREAD_MS);
        let mut dialed: Vec<String> = log.into_iter().map(|(_, address)| address).collect();
        dialed.sort();
        let mut all = vec![at(1), bare(2), at(3), at(5), at(6)];
        all.sort();
        assert_eq!(dialed, all);
    }

    #[test]
    fn a_peer_that_accepts_and_hangs_up_is_not_dialed_in_a_tight_loop() {
        let mut world = World::of(&[], &[at(1)], &[]);
        world.feed(JoinEvent::Started);
        let mut dials = 0;
        while world.now_ms < T0 + 600_000 {
            world.connected(1);
            world.now_ms += 10;
            world.lost(1);
            world.now_ms = world.joiner.deadline().expect("it is tried again");
            dials += world.feed(JoinEvent::Tick).0.len();
        }
        assert!((8..60).contains(&dials), "ten minutes: {dials}");
    }

    #[test]
    fn short_company_does_not_leave_a_long_backoff_behind() {
        let mut longest = 0;
        for seed in 0..50 {
            let mut world = World { rng: ChaCha20Rng::seed_from_u64(seed), ..World::of(&[], &[at(1)], &[]) };
            world.feed(JoinEvent::Started);
            world.failed(&at(1), "connection refused");
            world.refuse_everything_until(T0 + 600_000);
            world.now_ms = world.joiner.deadline().expect("it is tried again");
            assert_eq!(world.feed(JoinEvent::Tick).0, [at(1)]);
            world.feed(JoinEvent::Connected { peer: peer(2), address: None });
            world.failed(&at(1), "connection refused");
            longest = longest.max(world.joiner.deadline().expect("now and then") - world.now_ms);
            world.lost(2);
            assert!(world.joiner.deadline().expect("soon") <= world.now_ms + BACKOFF_MAX_MS, "seed {seed}");
        }
        assert!(longest > BACKOFF_MAX_MS, "company should have made it wait longer: {longest}");
    }

    #[test]
    fn an_address_that_names_a_peer_is_not_reached_by_reaching_another() {
        let mut world = World::of(&[], &[at(1)], &[]);
        world.feed(JoinEvent::Started);
        world.feed(JoinEvent::Connected { peer: peer(2), address: Some(at(1)) });
        assert_eq!(world.joiner.connected(), 1);
        world.now_ms += DIAL_TIMEOUT_MS;
        world.feed(JoinEvent::Tick);
        let log = world.refuse_everything_until(world.now_ms + CONNECTED_BACKOFF_MAX_MS);
        assert!(log.iter().any(|(_, address)| *address == at(1)), "{log:?}");
    }

    #[test]
    fn an_unnamed_address_of_a_connected_peer_is_left_alone() {
        // The book knows who lives there; the peer itself came to us first.
        let mut world = World::of(&[], &[bare(1)], &[1]);
        world.feed(JoinEvent::Started);
        world.feed(JoinEvent::Connected { peer: peer(1), address: None });
        assert_eq!(world.joiner.deadline(), None);
        // Nobody knew, but it answered there once.
        let mut world = World::of(&[], &[bare(1)], &[]);
        world.feed(JoinEvent::Started);
        world.feed(JoinEvent::Connected { peer: peer(1), address: Some(bare(1)) });
        world.now_ms += STABLE_MS;
        world.lost(1);
        world.feed(JoinEvent::Connected { peer: peer(1), address: None });
        assert_eq!(world.joiner.deadline(), None);
        // Another peer is no reason to leave it alone.
        world.lost(1);
        world.feed(JoinEvent::Connected { peer: peer(2), address: None });
        assert!(world.joiner.deadline().is_some());
    }

    #[test]
    fn a_dial_without_an_answer_counts_as_failed() {
        let mut world = World::of(&[], &[at(1)], &[]);
        world.feed(JoinEvent::Started);
        assert_eq!(world.joiner.deadline(), Some(T0 + DIAL_TIMEOUT_MS));
        world.now_ms = T0 + DIAL_TIMEOUT_MS;
        let (dials, advice) = world.feed(JoinEvent::Tick);
        assert_eq!(dials, [] as [String; 0]);
        assert!(matches!(&advice[..], [JoinAdvice::AllUnreachable { addresses }] if addresses[0].reason == "no answer within 20 s"));
    }

    #[test]
    fn the_shell_may_add_or_leave_out_the_peers_name() {
        let mut world = World::of(&[], &[at(1), bare(2)], &[]);
        world.feed(JoinEvent::Started);
        world.feed(JoinEvent::Connected { peer: peer(2), address: Some(at(2)) });
        world.failed(&bare(1), "connection refused");
        assert_eq!(world.joiner.leads[1].state, State::Connected { peer: peer(2) });
        assert!(matches!(world.joiner.leads[0].state, State::Waiting { .. }));
        // News of something that is not being dialed changes nothing.
        let before = format!("{:?}", world.joiner);
        world.failed(&at(9), "connection refused");
        world.failed("junk", "connection refused");
        world.lost(9);
        assert_eq!(format!("{:?}", world.joiner), before);
    }

    #[test]
    fn too_many_addresses_are_bounded_and_told() {
        let many: Vec<String> = (0..200).map(|port| format!("/ip4/10.0.0.1/tcp/{}", 1000 + port)).collect();
        let mut world = World::of(&[], &many, &(1..=100).collect::<Vec<u8>>());
        assert_eq!(world.joiner.known(), GIVEN_MAX + BOOK_CANDIDATES_MAX);
        let (dials, advice) = world.feed(JoinEvent::Started);
        assert_eq!(dials, many[..DIALS_INFLIGHT_MAX]);
        assert_eq!(advice, [JoinAdvice::TooManyGiven { unused: 200 - GIVEN_MAX }]);
        // As dials end, the others get their turn.
        assert_eq!(world.failed(&many[0], "connection refused").0, [many[DIALS_INFLIGHT_MAX].clone()]);
    }

    #[derive(Clone, Debug)]
    enum Happens {
        Connected(u8, Option<bool>),
        Lost(u8),
        Failed(u8, bool),
        Known(Vec<u8>),
        Later(u64),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            (1_u8..8, any::<Option<bool>>()).prop_map(|(number, named)| Happens::Connected(number, named)),
            (1_u8..8).prop_map(Happens::Lost),
            (1_u8..8, any::<bool>()).prop_map(|(number, named)| Happens::Failed(number, named)),
            proptest::collection::vec(1_u8..8, 0..5).prop_map(Happens::Known),
            (0_u64..100_000).prop_map(Happens::Later),
        ]
    }

    proptest! {
        /// Whatever happened: once this node is alone, every address it knows is dialed within a backoff and a dial's time.
        #[test]
        fn an_address_is_never_forgotten(story in proptest::collection::vec(happens(), 0..60), seed in any::<u64>()) {
            let mut world = World { rng: ChaCha20Rng::seed_from_u64(seed), ..World::of(&[&[at(1)]], &[bare(2), at(3)], &[4, 5]) };
            world.feed(JoinEvent::Started);
            let named = |number, named| if named { at(number) } else { bare(number) };
            for happens in story {
                match happens {
                    Happens::Connected(number, how) => {
                        world.feed(JoinEvent::Connected { peer: peer(number), address: how.map(|how| named(number, how)) });
                    }
                    Happens::Lost(number) => { world.lost(number); }
                    Happens::Failed(number, how) => { world.failed(&named(number, how), "connection refused"); }
                    Happens::Known(numbers) => {
                        world.feed(JoinEvent::Known { candidates: numbers.into_iter().map(candidate).collect() });
                    }
                    Happens::Later(ms) => { world.now_ms += ms; world.feed(JoinEvent::Tick); }
                }
                prop_assert!(world.joiner.deadline().is_none_or(|deadline| deadline > world.now_ms));
                prop_assert!(world.joiner.known() <= GIVEN_MAX + BOOK_CANDIDATES_MAX);
            }
            for number in 1..8 {
                world.lost(number);
            }
            prop_assert_eq!(world.joiner.connected(), 0);
            let known: Vec<String> = world.joiner.leads.iter().map(|lead| lead.address.to_string()).collect();
            let log = world.refuse_everything_until(world.now_ms + BACKOFF_MAX_MS + DIAL_TIMEOUT_MS + BACKOFF_MAX_MS);
            for address in known {
                prop_assert!(log.iter().any(|(_, dialed)| *dialed == address), "{address}");
            }
        }
    }
}
