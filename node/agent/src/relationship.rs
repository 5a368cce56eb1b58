//! A relationship: what was between two agents, as an append-only chain (docs/spec/agent.md#relationship).
//!
//! Every interaction names the hash of the one before it, and the owner signs the head: history can be extended, but neither rewritten nor
//! reordered. The last [`ENTRIES_MAX`] links are kept in the section; what falls out goes to the owner's disk, and the counts remember it.

use std::collections::VecDeque;

use bincode::{Decode, Encode};
use persona_fragments::{
    Digest, Fields, OwnerKey, Signature, Signer, Verifier,
    wire::{self, DecodeError},
};
use sha2::{Digest as _, Sha256};

use crate::envelope::Kind;

/// The most links kept in the section. When full, the oldest is handed to the caller, who keeps it on disk.
pub const ENTRIES_MAX: usize = 256;

const ENTRY_LABEL: &str = "persona/interaction/v1";
const GENESIS_LABEL: &str = "persona/relationship/v1";
const HEAD_LABEL: &[u8] = b"persona/relationship-head/v1";

const LOG: &str = "log";
const HEAD: &str = "head";
const SUMMARY: &str = "summary";
const TRUST: &str = "trust";

/// Which way a message went, seen from the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Direction {
    /// From the owner to the partner.
    Sent,
    /// From the partner to the owner.
    Received,
}

/// One interaction, before it is chained.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Interaction {
    /// When, by the owner's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Which way.
    pub direction: Direction,
    /// What kind of message.
    pub kind: Kind,
    /// Its counter.
    pub counter: u64,
    /// Its sender's term.
    pub term: u64,
    /// SHA-256 of the payload in the clear.
    pub payload: Digest,
    /// The verdict's total in thousandths; `None` for a sent message, or where the verdict had no total.
    pub total_permille: Option<u16>,
}

/// A link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Its place in the chain, from 0.
    pub seq: u64,
    /// What happened.
    pub interaction: Interaction,
    /// The hash of the link before it.
    pub previous: Digest,
}

impl Entry {
    /// The hash by which the next link, or the head, names this one.
    pub fn hash(&self) -> Digest {
        Digest(Sha256::new().chain_update(ENTRY_LABEL).chain_update(wire::encode(self)).finalize().into())
    }
}

/// Counts over the whole chain, links that are no longer kept included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Summary {
    /// Messages to the partner.
    pub sent: u64,
    /// Messages from the partner that were accepted.
    pub received: u64,
    /// The first interaction, in milliseconds since the Unix epoch; 0 if there is none.
    pub first_at_ms: u64,
    /// The latest.
    pub last_at_ms: u64,
}

/// What trust is computed from. A field of its own, never granted to the partner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Tallies {
    /// Messages of the partner that were accepted.
    pub accepted: u64,
    /// Messages in the partner's name that were refused with evidence. The partner itself may be innocent of them.
    pub alarms: u64,
    /// Sum of the totals of accepted messages, in thousandths; those without a total count nothing.
    pub total_permille: u64,
}

#[derive(Encode, Decode)]
struct Log {
    partner: OwnerKey,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Head {
    owner: OwnerKey,
    partner: OwnerKey,
    /// How many links the chain has.
    length: u64,
    /// The hash of the last one.
    last: Digest,
    summary: Summary,
}

#[derive(Encode, Decode)]
struct SignedHead {
    head: Head,
    signature: Signature,
}

/// Why fields are not a relationship.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationshipError {
    /// The section opened, but a field is not there.
    #[error("the section has no field {0:?}; read it again from other holders")]
    Missing(&'static str),
    /// A field does not decode.
    #[error("the field {0:?} does not decode: {1}")]
    Decode(&'static str, DecodeError),
    /// A link does not follow from the one before it, or is not the head's.
    #[error("the chain breaks at link {0}: history was rewritten")]
    Chain(u64),
    /// The head names other parties, or is not signed by the owner.
    #[error("the head of the chain is not signed by its owner for this partner")]
    Head,
    /// The summary is not the one that was signed.
    #[error("the summary is not the signed one")]
    Summary,
}

/// What is between an agent and one partner, seen by the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    owner: OwnerKey,
    partner: OwnerKey,
    entries: VecDeque<Entry>,
    length: u64,
    last: Digest,
    summary: Summary,
    tallies: Tallies,
}

impl Relationship {
    /// Two agents that have not met.
    pub fn new(owner: OwnerKey, partner: OwnerKey) -> Self {
        let (summary, tallies) = (Summary::default(), Tallies::default());
        Self { owner, partner, entries: VecDeque::new(), length: 0, last: genesis(&owner, &partner), summary, tallies }
    }

    /// With whom.
    pub fn partner(&self) -> OwnerKey {
        self.partner
    }

    /// Adds a link. Returns the oldest one if there are now more than [`ENTRIES_MAX`]: the caller keeps it on disk.
    pub fn append(&mut self, interaction: Interaction) -> Option<Entry> {
        let Interaction { at_ms, direction, total_permille, .. } = interaction;
        match direction {
            Direction::Sent => self.summary.sent += 1,
            Direction::Received => {
                self.summary.received += 1;
                self.tallies.accepted += 1;
                self.tallies.total_permille += u64::from(total_permille.unwrap_or(0));
            }
        }
        if self.length == 0 {
            self.summary.first_at_ms = at_ms;
        }
        self.summary.last_at_ms = at_ms.max(self.summary.last_at_ms);
        let entry = Entry { seq: self.length, interaction, previous: self.last };
        self.last = entry.hash();
        self.length += 1;
        self.entries.push_back(entry);
        if self.entries.len() > ENTRIES_MAX { self.entries.pop_front() } else { None }
    }

    /// Counts a message in the partner's name that was refused with evidence. It leaves no link: only what was accepted is history.
    pub fn alarm(&mut self) {
        self.tallies.alarms += 1;
    }

    /// The links that are kept, the oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// How many links the chain has, kept or not.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether the two have not met.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Counts over the whole chain.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What trust is computed from.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// The hash of the last link: equal heads are equal histories.
    pub fn head(&self) -> Digest {
        self.last
    }

    /// How familiar the partner is, in 0..1: 1 - exp(-n / (20 (1 + paranoia))), with n accepted messages.
    pub fn comfort(&self, paranoia: f64) -> f64 {
        1.0 - (-(self.tallies.accepted as f64) / (20.0 * (1.0 + paranoia))).exp()
    }

    /// The fields of the section `relationship/<partner>`, each under its own key once sealed.
    pub fn to_fields(&self, signer: &dyn Signer) -> Fields {
        let head = Head { owner: self.owner, partner: self.partner, length: self.length, last: self.last, summary: self.summary.clone() };
        let signature = signer.sign(&head.signed_bytes());
        let log = Log { partner: self.partner, entries: self.entries.iter().cloned().collect() };
        Fields::new()
            .with(LOG, wire::encode(&log))
            .with(HEAD, wire::encode(&SignedHead { head, signature }))
            .with(SUMMARY, wire::encode(&self.summary))
            .with(TRUST, wire::encode(&self.tallies))
    }

    /// Reads what [`Self::to_fields`] wrote, and verifies every link and the signature over the head.
    pub fn from_fields(fields: &Fields, owner: OwnerKey, verifier: &dyn Verifier) -> Result<Self, RelationshipError> {
        let Log { partner, entries } = field(fields, LOG)?;
        let SignedHead { head, signature } = field(fields, HEAD)?;
        let summary: Summary = field(fields, SUMMARY)?;
        let tallies: Tallies = field(fields, TRUST)?;
        if head.owner != owner || head.partner != partner || !verifier.verify(&owner.0, &head.signed_bytes(), &signature) {
            return Err(RelationshipError::Head);
        }
        if head.summary != summary {
            return Err(RelationshipError::Summary);
        }
        let kept = head.length.min(ENTRIES_MAX as u64);
        if entries.len() as u64 != kept {
            return Err(RelationshipError::Chain(head.length - kept));
        }
        // Walk back from the signed head: each link must be the one that the next one names.
        let mut expected = head.last;
        for (entry, seq) in entries.iter().rev().zip((head.length - kept..head.length).rev()) {
            if entry.seq != seq || entry.hash() != expected {
                return Err(RelationshipError::Chain(seq));
            }
            expected = entry.previous;
        }
        if head.length == kept && expected != genesis(&owner, &partner) {
            return Err(RelationshipError::Chain(0));
        }
        Ok(Self { owner, partner, entries: entries.into(), length: head.length, last: head.last, summary, tallies })
    }
}

impl Head {
    fn signed_bytes(&self) -> Vec<u8> {
        [HEAD_LABEL, &wire::encode(self)].concat()
    }
}

/// What the first link names as the one before it: whose relationship this is.
fn genesis(owner: &OwnerKey, partner: &OwnerKey) -> Digest {
    Digest(Sha256::new().chain_update(GENESIS_LABEL).chain_update(owner.0).chain_update(partner.0).finalize().into())
}

fn field<T: Encode + Decode<()>>(fields: &Fields, name: &'static str) -> Result<T, RelationshipError> {
    wire::decode(fields.get(name).ok_or(RelationshipError::Missing(name))?).map_err(|error| RelationshipError::Decode(name, error))
}

#[cfg(test)]
mod tests {
    use persona_fragments::{Ed25519Signer, Ed25519Verifier};

    use super::*;

    fn owner() -> (OwnerKey, Ed25519Signer) {
        let signer = Ed25519Signer::from_seed(&[1; 32]);
        (OwnerKey(signer.public_key()), signer)
    }

    fn interaction(i: u64) -> Interaction {
        let direction = if i.is_multiple_of(2) { Direction::Sent } else { Direction::Received };
        Interaction {
            at_ms: 1000 + i,
            direction,
            kind: Kind::Text,
            counter: i / 2,
            term: 1,
            payload: Digest([i as u8; 32]),
            total_permille: (direction == Direction::Received).then_some(925),
        }
    }

    fn after(count: u64) -> Relationship {
        let mut relationship = Relationship::new(owner().0, OwnerKey([2; 32]));
        for i in 0..count {
            relationship.append(interaction(i));
        }
        relationship
    }

    #[test]
    fn a_relationship_reads_back_at_every_length() {
        let (owner, signer) = owner();
        for count in [0, 1, 2, 255, 256, 257, 600] {
            let relationship = after(count);
            assert_eq!(Relationship::from_fields(&relationship.to_fields(&signer), owner, &Ed25519Verifier), Ok(relationship.clone()));
            assert_eq!(relationship.entries().len() as u64, count.min(256));
            assert_eq!(relationship.summary().sent + relationship.summary().received, count);
        }
    }

    #[test]
    fn the_oldest_link_is_handed_out_and_still_fits_the_chain() {
        let mut relationship = after(256);
        let oldest = relationship.append(interaction(256)).expect("one too many");
        assert_eq!(oldest.seq, 0);
        assert_eq!(relationship.entries().next().map(|entry| entry.previous), Some(oldest.hash()));
    }

    #[test]
    fn history_cannot_be_rewritten_reordered_shortened_or_taken_from_another() {
        let (owner, signer) = owner();
        let relationship = after(5);
        let fields = relationship.to_fields(&signer);
        let read = |fields: &Fields| Relationship::from_fields(fields, owner, &Ed25519Verifier).map(|_| ());
        let with_log = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut entries: Vec<Entry> = relationship.entries().cloned().collect();
            change(&mut entries);
            fields.clone().with(LOG, wire::encode(&Log { partner: relationship.partner(), entries }))
        };
        assert_eq!(read(&with_log(&|entries| entries[2].interaction.at_ms += 1)), Err(RelationshipError::Chain(2)));
        assert_eq!(read(&with_log(&|entries| entries.swap(1, 2))), Err(RelationshipError::Chain(2)));
        assert_eq!(read(&with_log(&|entries| entries.truncate(4))), Err(RelationshipError::Chain(0)));
        assert_eq!(read(&with_log(&|entries| entries[0].previous = Digest([0; 32]))), Err(RelationshipError::Chain(0)));
        assert_eq!(
            read(&fields.clone().with(HEAD, after(4).to_fields(&signer).get(HEAD).expect("there").to_vec())),
            Err(RelationshipError::Summary)
        );
        let mut grafted = Relationship { last: after(3).head(), ..after(0) };
        grafted.append(interaction(3));
        assert_eq!(read(&grafted.to_fields(&signer)), Err(RelationshipError::Chain(0)), "a chain that begins in the middle of another");
        let thief = Ed25519Signer::from_seed(&[9; 32]);
        assert_eq!(read(&relationship.to_fields(&thief)), Err(RelationshipError::Head));
        assert_eq!(
            Relationship::from_fields(&fields, OwnerKey(thief.public_key()), &Ed25519Verifier).map(|_| ()),
            Err(RelationshipError::Head)
        );
        let braggart = fields.clone().with(SUMMARY, wire::encode(&Summary { received: 1000, ..relationship.summary().clone() }));
        assert_eq!(read(&braggart), Err(RelationshipError::Summary));
    }

    #[test]
    fn comfort_grows_with_every_clean_message_and_slower_for_the_paranoid() {
        let mut relationship = after(0);
        let mut before = relationship.comfort(0.5);
        assert_eq!(before, 0.0);
        for i in 0..10 {
            relationship.append(interaction(2 * i + 1));
            relationship.alarm();
            assert!(relationship.comfort(0.5) > before && relationship.comfort(0.9) < relationship.comfort(0.5));
            before = relationship.comfort(0.5);
        }
        assert_eq!(relationship.tallies(), &Tallies { accepted: 10, alarms: 10, total_permille: 9250 });
    }
}
