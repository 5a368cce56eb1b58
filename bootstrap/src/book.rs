//! Who answered before: the peers that a node tries first when it starts again (docs/spec/ticket.md#address-book).
//!
//! A node that forgets everybody depends on its bootstrap peers for ever, and whoever controls those controls what it sees. So good peers
//! are remembered with their history. The book is bounded, and what it forgets first is what it would try last: a stranger's hearsay
//! never drives out a peer that has proven itself.
//!
//! Times are milliseconds since the Unix epoch: the history must outlive a restart.

use std::{cmp::Reverse, collections::BTreeMap};

use bincode::{Decode, Encode};
use persona_fragments::{
    PeerKey,
    wire::{self, DecodeError},
};

use crate::{
    address::{ADDRESS_BYTES_MAX, Address},
    crc::{CRC_BYTES, append_crc, checked},
};

/// The most peers in a book. When it is full, a newcomer takes the place of the least worthy one, unless all are worthier than it.
pub const PEERS_MAX: usize = 1024;

/// The most addresses of one peer. When they are used up, the same rule holds as for peers.
pub const ADDRESSES_PER_PEER_MAX: usize = 10;

/// Successes within one hour count once, so that a flapping peer earns nothing by flapping.
const SUCCESS_SPACING_MS: u64 = 60 * 60 * 1000;

/// More good hours than these give no more credit: a peer that was always there and has gone should not be tried for months.
const CREDIT_MAX: u32 = 32;

/// What a failure since the last success costs, in good hours: eight of them use up the best history.
const FAILURE_COST: i64 = 4;

/// A day without a sign of life costs one good hour.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// An entry besides its text, encoded: three times of at most 9 bytes, two of them optional, two counters, the text's length.
const ENTRY_OVERHEAD_BYTES_MAX: usize = 3 * 9 + 2 + 2 * 5 + 3;
const _: () = assert!(
    PEERS_MAX * (32 + 3 + ADDRESSES_PER_PEER_MAX * (ENTRY_TEXT_BYTES_MAX + ENTRY_OVERHEAD_BYTES_MAX)) + 16 <= wire::FRAME_BYTES_MAX
);

/// An address in the book is written without its `/p2p/` part, which takes 57 bytes.
const ENTRY_TEXT_BYTES_MAX: usize = ADDRESS_BYTES_MAX - 57;

/// Peers, their addresses, and how these have done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressBook {
    peers: BTreeMap<PeerKey, Vec<Entry>>,
}

/// One address worth trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who should answer.
    pub peer: PeerKey,
    /// The multiaddr, with `/p2p/`, so that nobody else is taken for that peer.
    pub address: String,
}

/// Why bytes are no address book.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// The checksum is not that of the rest: torn by a crash, or damaged on the disk.
    #[error("its checksum does not match: it is torn or damaged")]
    Checksum,
    /// A format of the future.
    #[error("it has format {0}, which this version of persona does not read")]
    Newer(u8),
    /// The checksum is right, but this is no book.
    #[error("its content is not valid: {0}")]
    Content(#[from] DecodeError),
    /// More than [`PEERS_MAX`] peers, an address that does not read, an order that is not the book's.
    #[error("its content is not valid: {0}")]
    Invalid(String),
}

/// One address of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Entry {
    /// The multiaddr without `/p2p/`, in its one form.
    address: String,
    /// When somebody last said that the peer is there.
    learned_ms: u64,
    /// When the peer last answered there.
    succeeded_ms: Option<u64>,
    /// When it last did not.
    failed_ms: Option<u64>,
    /// Hours in which it answered.
    successes: u32,
    /// Failures since it last answered.
    failures: u32,
}

/// How a book is written.
#[derive(Encode, Decode)]
struct BookWire {
    peers: Vec<PeerWire>,
}

/// How a peer is written.
#[derive(Encode, Decode)]
struct PeerWire {
    peer: PeerKey,
    entries: Vec<Entry>,
}

impl AddressBook {
    /// Somebody, perhaps the peer itself, says that `peer` can be reached there. Hearsay: it earns a place, but no credit.
    /// Addresses that cannot be dialed, or that name another peer, are passed over. Returns how many are in the book now.
    pub fn learned(&mut self, peer: PeerKey, addresses: &[impl AsRef<str>], now_ms: u64) -> usize {
        let mut kept = 0;
        for text in addresses.iter().take(ADDRESSES_PER_PEER_MAX) {
            let Some(address) = place_of(text.as_ref(), peer) else { continue };
            if let Some(entry) = self.entry(peer, address, now_ms, 0) {
                entry.learned_ms = entry.learned_ms.max(now_ms);
                kept += 1;
            }
        }
        kept
    }

    /// `peer` answered at `address`, which this node had dialed.
    pub fn succeeded(&mut self, peer: PeerKey, address: &str, now_ms: u64) {
        let Some(address) = place_of(address, peer) else { return };
        let Some(entry) = self.entry(peer, address, now_ms, 1) else { return };
        if entry.succeeded_ms.is_none_or(|last| now_ms.saturating_sub(last) >= SUCCESS_SPACING_MS) {
            entry.successes = entry.successes.saturating_add(1);
        }
        entry.succeeded_ms = Some(now_ms);
        entry.failures = 0;
    }

    /// Nobody answered at `address`, or the wrong one. Counts for the peer that it names, or for all that were known there.
    pub fn failed(&mut self, address: &str, now_ms: u64) {
        let Ok(address) = address.parse::<Address>() else { return };
        let (peer, place) = (address.peer(), address.without_peer().to_string());
        let named = self.peers.iter_mut().filter(|(known, _)| peer.is_none_or(|peer| peer == **known));
        for entry in named.flat_map(|(_, entries)| entries).filter(|entry| entry.address == place) {
            entry.failed_ms = Some(now_ms);
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    /// Strikes a peer out.
    pub fn forget(&mut self, peer: &PeerKey) {
        self.peers.remove(peer);
    }

    /// The `limit` addresses most worth trying, best first: the best address of every peer, then the second best ones, and so on, so
    /// that one peer with ten addresses does not crowd out nine others.
    pub fn candidates(&self, limit: usize, now_ms: u64) -> Vec<Candidate> {
        let mut ranked = Vec::new();
        for (&peer, entries) in &self.peers {
            let mut entries: Vec<&Entry> = entries.iter().collect();
            entries.sort_by_key(|entry| Reverse(entry.worth(now_ms)));
            ranked.extend(entries.into_iter().enumerate().map(|(place, entry)| (place, peer, entry)));
        }
        ranked.sort_by_key(|&(place, peer, entry)| (place, Reverse(entry.worth(now_ms)), peer));
        let with_peer = |peer: PeerKey, entry: &Entry| format!("{}/p2p/{}", entry.address, peer.to_peer_id_string());
        ranked.into_iter().take(limit).map(|(_, peer, entry)| Candidate { peer, address: with_peer(peer, entry) }).collect()
    }

    /// The peers in the book, and for each its addresses without `/p2p/`.
    pub fn peers(&self) -> impl Iterator<Item = (PeerKey, Vec<&str>)> + '_ {
        self.peers.iter().map(|(&peer, entries)| (peer, entries.iter().map(|entry| entry.address.as_str()).collect()))
    }

    /// How many peers are in the book.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The book as a file holds it: a frame and its checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let peers = self.peers.iter().map(|(&peer, entries)| PeerWire { peer, entries: entries.clone() }).collect();
        append_crc(wire::encode(&BookWire { peers }))
    }

    /// Reads what [`Self::to_bytes`] wrote; anything else is an error, never a panic.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BookError> {
        if bytes.len() > wire::FRAME_BYTES_MAX + CRC_BYTES {
            return Err(DecodeError::TooLong(bytes.len()).into());
        }
        let frame = checked(bytes).ok_or(BookError::Checksum)?;
        let wire: BookWire = wire::decode(frame).map_err(|error| match error {
            DecodeError::Version(version) if version > wire::WIRE_VERSION => BookError::Newer(version),
            other => BookError::Content(other),
        })?;
        let invalid = |what: &str| Err(BookError::Invalid(what.to_owned()));
        if wire.peers.len() > PEERS_MAX {
            return invalid("too many peers");
        }
        if !wire.peers.windows(2).all(|pair| pair[0].peer < pair[1].peer) {
            return invalid("the peers are not in order, each once");
        }
        for PeerWire { peer, entries } in &wire.peers {
            if !(1..=ADDRESSES_PER_PEER_MAX).contains(&entries.len()) {
                return invalid("a peer has no address, or too many");
            }
            if !entries.windows(2).all(|pair| pair[0].address < pair[1].address) {
                return invalid("the addresses of a peer are not in order, each once");
            }
            if entries.iter().any(|entry| place_of(&entry.address, *peer).as_deref() != Some(&*entry.address)) {
                return invalid("an address is not in its one form");
            }
        }
        Ok(Self { peers: wire.peers.into_iter().map(|PeerWire { peer, entries }| (peer, entries)).collect() })
    }

    /// The entry of that address, made if there is room for one of this `credit`.
    fn entry(&mut self, peer: PeerKey, address: String, now_ms: u64, credit: i64) -> Option<&mut Entry> {
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            let (&least, worth) = self
                .peers
                .iter()
                .map(|(peer, entries)| (peer, entries.iter().map(|entry| entry.worth(now_ms)).max()))
                .min_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(b.0)))?;
            if worth.is_some_and(|worth| worth.score > credit) {
                return None;
            }
            self.peers.remove(&least);
        }
        let entries = self.peers.entry(peer).or_default();
        let found = entries.binary_search_by(|entry| entry.address.as_str().cmp(&address));
        if found.is_err() && entries.len() >= ADDRESSES_PER_PEER_MAX {
            let (index, least) = entries.iter().enumerate().min_by_key(|(_, entry)| entry.worth(now_ms))?;
            if least.worth(now_ms).score > credit {
                return None;
            }
            entries.remove(index);
        }
        match entries.binary_search_by(|entry| entry.address.as_str().cmp(&address)) {
            Ok(index) => Some(&mut entries[index]),
            Err(index) => {
                entries
                    .insert(index, Entry { address, learned_ms: now_ms, succeeded_ms: None, failed_ms: None, successes: 0, failures: 0 });
                Some(&mut entries[index])
            }
        }
    }
}

/// What an address is worth, in good hours; then the freshest sign of life decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    score: i64,
    sign_ms: u64,
}

impl Entry {
    fn worth(&self, now_ms: u64) -> Worth {
        let sign_ms = self.succeeded_ms.unwrap_or(0).max(self.learned_ms);
        let credit = i64::from(self.successes.min(CREDIT_MAX));
        let silent_days = i64::try_from(now_ms.saturating_sub(sign_ms) / DAY_MS).unwrap_or(i64::MAX / 2);
        Worth { score: credit - silent_days - FAILURE_COST * i64::from(self.failures), sign_ms }
    }
}

/// The address in its one form without `/p2p/`, if it can be dialed and names nobody but `peer`.
fn place_of(text: &str, peer: PeerKey) -> Option<String> {
    let address: Address = text.parse().ok()?;
    if address.peer().is_some_and(|named| named != peer) {
        return None;
    }
    let place = address.without_peer().to_string();
    (place.len() <= ENTRY_TEXT_BYTES_MAX).then_some(place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = SUCCESS_SPACING_MS;
    const T0: u64 = 1_700_000_000_000;

    fn peer(number: u32) -> PeerKey {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        PeerKey(key)
    }

    fn place(number: u32) -> String {
        format!("/ip4/10.0.{}.{}/tcp/4001", number / 256, number % 256)
    }

    fn order(book: &AddressBook, now_ms: u64) -> Vec<PeerKey> {
        book.candidates(usize::MAX, now_ms).into_iter().map(|candidate| candidate.peer).collect()
    }

    #[test]
    fn who_answered_comes_before_hearsay_and_hearsay_before_who_failed() {
        let mut book = AddressBook::default();
        book.learned(peer(1), &[place(1)], T0);
        book.learned(peer(2), &[place(2)], T0);
        book.failed(&place(2), T0);
        book.succeeded(peer(3), &place(3), T0);
        for hour in 0..3 {
            book.succeeded(peer(4), &place(4), T0 + hour * HOUR);
        }
        for _ in 0..100 {
            book.succeeded(peer(5), &place(5), T0 + 2 * HOUR); // flapping earns nothing
        }
        assert_eq!(order(&book, T0 + 3 * HOUR)[..2], [peer(4), peer(5)]);
        assert_eq!(order(&book, T0 + 3 * HOUR)[2..], [peer(3), peer(1), peer(2)]);
    }

    #[test]
    fn a_good_peer_that_went_away_falls_behind() {
        let mut book = AddressBook::default();
        for hour in 0..100 {
            book.succeeded(peer(1), &place(1), T0 + hour * HOUR);
        }
        let now = T0 + 100 * HOUR;
        book.succeeded(peer(2), &place(2), now);
        assert_eq!(order(&book, now), [peer(1), peer(2)]);
        for _ in 0..8 {
            book.failed(&place(1), now);
        }
        assert_eq!(order(&book, now), [peer(2), peer(1)]);
        book.succeeded(peer(1), &place(1), now);
        assert_eq!(order(&book, now), [peer(1), peer(2)]);
        book.succeeded(peer(2), &place(2), now + 40 * DAY_MS);
        assert_eq!(order(&book, now + 40 * DAY_MS), [peer(2), peer(1)]);
    }

    #[test]
    fn many_addresses_of_one_peer_do_not_crowd_out_the_others() {
        let mut book = AddressBook::default();
        let many: Vec<String> = (0..20).map(place).collect();
        assert_eq!(book.learned(peer(1), &many, T0 + 5), ADDRESSES_PER_PEER_MAX);
        book.learned(peer(2), &[place(77)], T0);
        book.learned(peer(3), &[place(78)], T0);
        let first: Vec<_> = order(&book, T0 + 10).into_iter().take(3).collect();
        assert_eq!(first, [peer(1), peer(2), peer(3)]);
        assert_eq!(book.candidates(2, T0 + 10).len(), 2);
    }

    #[test]
    fn candidates_name_their_peer() {
        let mut book = AddressBook::default();
        book.learned(peer(1), &[place(1)], T0);
        let candidate = &book.candidates(1, T0)[0];
        assert_eq!(candidate.address, format!("{}/p2p/{}", place(1), peer(1).to_peer_id_string()));
        assert_eq!(candidate.address.parse::<Address>().map(|address| address.peer()), Ok(Some(peer(1))));
    }

    #[test]
    fn what_cannot_be_dialed_or_names_another_is_passed_over() {
        let mut book = AddressBook::default();
        let foreign = format!("{}/p2p/{}", place(1), peer(9).to_peer_id_string());
        assert_eq!(book.learned(peer(1), &["/ip4/0.0.0.0/tcp/1", "junk", &foreign], T0), 0);
        book.succeeded(peer(1), &foreign, T0);
        assert!(book.is_empty());
        let own = format!("{}/p2p/{}", place(1), peer(1).to_peer_id_string());
        assert_eq!(book.learned(peer(1), &[&own, &place(1)], T0), 2);
        assert_eq!(book.peers().map(|(_, places)| places.len()).sum::<usize>(), 1);
    }

    #[test]
    fn a_failure_counts_for_the_peer_it_names_or_for_all_there() {
        let failures = |address: &str| {
            let mut book = AddressBook::default();
            book.learned(peer(1), &[place(1)], T0);
            book.learned(peer(2), &[place(1)], T0);
            book.failed(address, T0);
            book.peers.values().map(|entries| entries[0].failures).collect::<Vec<_>>()
        };
        assert_eq!(failures(&place(1)), [1, 1]);
        assert_eq!(failures(&format!("{}/p2p/{}", place(1), peer(2).to_peer_id_string())), [0, 1]);
        assert_eq!(failures(&place(2)), [0, 0]);
    }

    #[test]
    fn a_flood_of_hearsay_never_drives_out_a_proven_peer() {
        let mut book = AddressBook::default();
        for number in 0..10 {
            book.succeeded(peer(number), &place(number), T0);
        }
        for number in 10..5000 {
            book.learned(peer(number), &[place(number)], T0 + u64::from(number));
            assert!(book.len() <= PEERS_MAX);
        }
        assert_eq!(book.len(), PEERS_MAX);
        for number in (0..10).chain([4999]) {
            assert!(book.peers.contains_key(&peer(number)), "{number}"); // the freshest hearsay replaced the oldest
        }
        // Proven ones take the place of hearsay, but not of each other while each has had its hour.
        for number in 6000..6000 + PEERS_MAX as u32 {
            book.succeeded(peer(number), &place(number), T0);
            book.succeeded(peer(number), &place(number), T0 + HOUR);
        }
        assert_eq!(book.len(), PEERS_MAX);
        assert_eq!(book.learned(peer(9999), &[place(3)], T0 + HOUR), 0);
        book.failed(&place(6000 + 7), T0 + HOUR);
        assert_eq!(book.learned(peer(9999), &[place(3)], T0 + HOUR), 1);
        assert!(!book.peers.contains_key(&peer(6007)), "the one that failed made room");
    }

    #[test]
    fn the_same_holds_for_the_addresses_of_a_peer() {
        let mut book = AddressBook::default();
        for number in 0..10 {
            book.succeeded(peer(1), &place(number), T0);
        }
        assert_eq!(book.learned(peer(1), &[place(11)], T0), 0);
        book.failed(&place(4), T0);
        assert_eq!(book.learned(peer(1), &[place(11)], T0), 1);
        let places: Vec<_> = book.peers().flat_map(|(_, places)| places).map(str::to_owned).collect();
        assert_eq!(places.len(), ADDRESSES_PER_PEER_MAX);
        assert!(places.contains(&place(11)) && !places.contains(&place(4)));
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut book = AddressBook::default();
        book.succeeded(peer(1), &place(1), u64::MAX);
        book.succeeded(peer(1), &place(1), 0);
        book.learned(peer(2), &[place(2)], 0);
        assert_eq!(order(&book, 0)[0], peer(1));
        assert_eq!(order(&book, u64::MAX).len(), 2);
    }

    fn full_book() -> AddressBook {
        let mut book = AddressBook::default();
        for number in 0..PEERS_MAX as u32 {
            for port in 0..ADDRESSES_PER_PEER_MAX {
                let name = format!("{}.{:x<57}", "y".repeat(60), number);
                let address = format!("/dns4/{name}/tcp/{}", 65_000 + port);
                assert!(address.len() <= ENTRY_TEXT_BYTES_MAX && address.len() + 6 > ENTRY_TEXT_BYTES_MAX, "{}", address.len());
                book.learned(peer(number), &[&address], u64::MAX);
                let entry = book.entry(peer(number), address, u64::MAX, 1).expect("room");
                (entry.succeeded_ms, entry.failed_ms) = (Some(u64::MAX), Some(u64::MAX));
                (entry.successes, entry.failures) = (u32::MAX, u32::MAX);
            }
        }
        book
    }

    #[test]
    fn a_full_book_can_be_written_and_read() {
        let book = full_book();
        let bytes = book.to_bytes();
        assert!(bytes.len() > 1_500_000, "{}: the test should fill the book", bytes.len());
        assert_eq!(AddressBook::from_bytes(&bytes), Ok(book));
    }

    fn small_book() -> AddressBook {
        let mut book = AddressBook::default();
        book.succeeded(peer(1), &place(1), T0);
        book.learned(peer(2), &[place(2), place(3)], T0);
        book.failed(&place(2), T0 + 1);
        book
    }

    #[test]
    fn every_damage_is_noticed() {
        let bytes = small_book().to_bytes();
        assert_eq!(AddressBook::from_bytes(&bytes), Ok(small_book()));
        for length in 0..bytes.len() {
            assert_eq!(AddressBook::from_bytes(&bytes[..length]), Err(BookError::Checksum), "cut to {length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(AddressBook::from_bytes(&bent), Err(BookError::Checksum), "bit {bit}");
        }
        assert_eq!(AddressBook::from_bytes(&append_crc(vec![2, 0])), Err(BookError::Newer(2)));
        assert!(matches!(AddressBook::from_bytes(&append_crc(vec![0, 0])), Err(BookError::Content(DecodeError::Version(0)))));
        assert!(matches!(AddressBook::from_bytes(&append_crc(vec![1, 0, 0])), Err(BookError::Content(DecodeError::Trailing(1)))));
    }

    #[test]
    fn a_book_that_no_persona_writes_is_refused_though_its_checksum_is_right() {
        let entry = |address: &str| Entry {
            address: address.into(),
            learned_ms: 0,
            succeeded_ms: None,
            failed_ms: None,
            successes: 0,
            failures: 0,
        };
        let read = |peers: Vec<(u32, Vec<Entry>)>| {
            let peers = peers.into_iter().map(|(number, entries)| PeerWire { peer: peer(number), entries }).collect();
            match AddressBook::from_bytes(&append_crc(wire::encode(&BookWire { peers }))) {
                Err(BookError::Invalid(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        let good = || vec![entry(&place(1))];
        assert!(read(vec![(2, good()), (1, good())]).contains("order"));
        assert!(read(vec![(1, good()), (1, good())]).contains("order"));
        assert!(read(vec![(1, vec![])]).contains("no address"));
        assert!(read(vec![(1, (0..11).map(|number| entry(&place(number))).collect())]).contains("too many"));
        assert!(read(vec![(1, vec![entry(&place(2)), entry(&place(1))])]).contains("order"));
        assert!(read(vec![(1, vec![entry("/ip4/1.2.3.4/tcp/0004")])]).contains("form"));
        assert!(read(vec![(1, vec![entry("junk")])]).contains("form"));
        assert!(read((0..1025).map(|number| (number, good())).collect()).contains("too many peers"));
    }

    #[derive(Clone, Debug)]
    enum Do {
        Learned(u32, Vec<u32>, u64),
        Succeeded(u32, u32, u64),
        Failed(u32, u64),
        Forget(u32),
    }

    fn deed() -> impl Strategy<Value = Do> {
        let time = || prop_oneof![0_u64..10 * DAY_MS, any::<u64>()];
        prop_oneof![
            (0_u32..6, proptest::collection::vec(0_u32..30, 0..15), time()).prop_map(|(peer, places, now)| Do::Learned(peer, places, now)),
            (0_u32..6, 0_u32..30, time()).prop_map(|(peer, place, now)| Do::Succeeded(peer, place, now)),
            (0_u32..30, time()).prop_map(|(place, now)| Do::Failed(place, now)),
            (0_u32..6).prop_map(Do::Forget),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happened_the_book_is_bounded_and_reads_back(deeds in proptest::collection::vec(deed(), 0..60), now in any::<u64>()) {
            let mut book = AddressBook::default();
            for deed in deeds {
                match deed {
                    Do::Learned(number, places, now) => {
                        book.learned(peer(number), &places.into_iter().map(place).collect::<Vec<_>>(), now);
                    }
                    Do::Succeeded(number, at, now) => book.succeeded(peer(number), &place(at), now),
                    Do::Failed(at, now) => book.failed(&place(at), now),
                    Do::Forget(number) => book.forget(&peer(number)),
                }
            }
            prop_assert!(book.peers.values().all(|entries| entries.len() <= ADDRESSES_PER_PEER_MAX));
            let ranked = book.candidates(usize::MAX, now);
            prop_assert_eq!(ranked.len(), book.peers.values().map(Vec::len).sum::<usize>());
            prop_assert_eq!(AddressBook::from_bytes(&book.to_bytes()), Ok(book));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = AddressBook::from_bytes(&bytes);
            let _ = AddressBook::from_bytes(&append_crc(bytes.clone()));
            let _ = AddressBook::from_bytes(&append_crc([&[1][..], &bytes].concat()));
        }
    }
}
