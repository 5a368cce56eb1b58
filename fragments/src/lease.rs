//! The lease: how the holders of a section renew it among themselves while its owner is away (docs/spec/quorum.md#leases).
//!
//! The owner's manifest stays as it is; a chain of links says who holds its shards now, and since when. Each link has the consent of `n - f`
//! of the holders before it, so that anybody who believes the manifest can follow the chain, offline (docs/spec/wire.md#lease).

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::{
    ack::{Ack, AckKind, AckLeaf},
    ids::{Digest, PeerKey},
    manifest::{Manifest, SignedManifest},
    mutants::{self, Mutant},
    shape::Shape,
    sign::Verifier,
    wire::{self, DecodeError},
};

/// The most links of a lease: enough for a week of churn (docs/survival.md), and with them a head is still under 96 KiB. Then the holders stay as
/// they are.
pub const LINKS_MAX: usize = 96;

/// A turn is this fraction of the TTL.
pub const TURNS: u64 = 16;

/// The first link is due so many turns after the manifest: later than an owner that lives renews, and early enough that more turns are left than
/// there may be faulty holders in a row.
pub const FIRST_TURNS: u64 = TURNS / 2;

/// Each other one is due so many turns after the one before: whoever goes in the meantime is not replaced, and with more than `f` of them nobody is.
pub const LINK_TURNS: u64 = TURNS / 4;

const _: () = assert!(TURNS - FIRST_TURNS > (crate::shape::HOLDERS_MAX as u64 - 1) / 3);

/// Domain label: what is hashed for one purpose cannot serve another.
const HANDOVER_LABEL: &[u8] = b"persona/handover/v1";

/// One renewal by the holders.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Link {
    /// When, in milliseconds since the Unix epoch, by the clock of the holder that led it.
    pub issued_at_ms: u64,
    /// Whose place goes to whom, ascending by index.
    pub replaced: Vec<(u8, PeerKey)>,
    /// `n - f` holders of the set before, ascending by index.
    pub consents: Vec<Ack>,
}

/// A lease as it travels and is stored.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct LeaseWire {
    links: Vec<Link>,
    acks: Vec<Ack>,
}

/// The links that changed the holders, and the last one; and the acks that make it count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    wire: LeaseWire,
    frame: Vec<u8>,
    /// The holders after each link.
    sets: Vec<Vec<PeerKey>>,
}

/// Why a lease proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Not a frame.
    #[error("it does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// None, or more than [`LINKS_MAX`]; or one that changes nothing is not the last.
    #[error("{0} links, of which only the last may change nothing")]
    Links(usize),
    /// The owner did not allow it, or not at that time.
    #[error("link {0} was not due, or later than the owner allowed")]
    Time(usize),
    /// More than `f` places change, or a place or a peer is not what it must be.
    #[error("link {0} does not replace holders by new ones, at most f of them")]
    Replaced(usize),
    /// Too few consents, or one that does not verify.
    #[error("link {0} has not the consent of the holders before it")]
    Consents(usize),
    /// Too few acks, or one that does not verify.
    #[error("too few holders have acked the last link")]
    Acks,
}

/// What a link stands for: the very holders, before and after. What is signed is its hash.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Handover {
    manifest_hash: Digest,
    /// Which turn it is of.
    pub generation: u32,
    /// When it was issued.
    pub issued_at_ms: u64,
    /// The holders before, by index.
    pub before: Vec<PeerKey>,
    /// The holders after, by index.
    pub holders: Vec<PeerKey>,
}

impl Manifest {
    /// Whether its holders may renew it.
    pub fn is_leased(&self) -> bool {
        self.renew_until_ms != 0
    }

    /// The length of a turn.
    pub fn turn_ms(&self) -> u64 {
        (self.ttl_ms / TURNS).max(1)
    }

    /// The generation of a link that is issued at this time.
    pub fn generation_at(&self, issued_at_ms: u64) -> u32 {
        let turns = issued_at_ms.saturating_sub(self.issued_at_ms) / self.turn_ms();
        u32::try_from(turns).unwrap_or(u32::MAX - 1) + 1
    }

    /// When a link is due that follows one of this time, or the manifest of this time.
    pub fn next_link_due_ms(&self, before_ms: u64) -> u64 {
        let turns = if before_ms == self.issued_at_ms { FIRST_TURNS } else { LINK_TURNS };
        before_ms.saturating_add(turns * self.turn_ms())
    }

    /// When a link of this time expires.
    pub fn link_expires_at_ms(&self, issued_at_ms: u64) -> u64 {
        issued_at_ms.saturating_add(self.ttl_ms).min(self.renew_until_ms)
    }
}

impl SignedManifest {
    /// The holder, by index, whose turn a generation is.
    pub fn leader(&self, generation: u32) -> u8 {
        ((u64::from(generation) + u64::from(self.hash().0[0])) % u64::from(self.shape.n())) as u8
    }
}

/// Signatures that a link needs of the holders before it.
pub fn handover_quorum(shape: &Shape) -> usize {
    usize::from(shape.quorum()) - usize::from(shape.f() > 0 && mutants::on(Mutant::HandoverShort))
}

impl Handover {
    /// The handover of a link that continues `before`, if it is sound: all but whether it is due.
    pub fn of(manifest: &SignedManifest, before: &[PeerKey], issued_at_ms: u64, replaced: &[(u8, PeerKey)]) -> Option<Self> {
        let in_order = replaced.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !in_order || replaced.len() > usize::from(manifest.shape.f()) || before.len() != usize::from(manifest.shape.n()) {
            return None;
        }
        let mut holders = before.to_vec();
        for (index, peer) in replaced {
            if before.contains(peer) || holders.contains(peer) {
                return None;
            }
            *holders.get_mut(usize::from(*index))? = *peer;
        }
        let generation = manifest.generation_at(issued_at_ms);
        Some(Self { manifest_hash: manifest.hash(), generation, issued_at_ms, before: before.to_vec(), holders })
    }

    /// Names it in what is signed.
    pub fn hash(&self) -> Digest {
        Digest(Sha256::new().chain_update(HANDOVER_LABEL).chain_update(wire::encode(self)).finalize().into())
    }

    /// Whether it replaces anybody.
    pub fn changes(&self) -> bool {
        self.before != self.holders
    }

    /// Whether the holder with this index is one before and after.
    pub fn stays(&self, index: u8) -> bool {
        let index = usize::from(index);
        index < self.holders.len() && self.before[index] == self.holders[index]
    }

    /// What the holder `index` before it signs to consent.
    pub fn consent_leaf(&self, manifest: &Manifest, index: u8) -> AckLeaf {
        self.leaf(manifest, index, AckKind::Consent)
    }

    /// What the holder `index`, who stays, signs to ack it.
    pub fn ack_leaf(&self, manifest: &Manifest, index: u8) -> AckLeaf {
        self.leaf(manifest, index, AckKind::Handover)
    }

    fn leaf(&self, manifest: &Manifest, index: u8, kind: AckKind) -> AckLeaf {
        let (key, version, manifest_hash, generation) = (manifest.key, manifest.version, self.hash(), self.generation);
        AckLeaf { kind, key, version, manifest_hash, index, generation }
    }

    /// Whether the holder of `index` consented with this very ack.
    pub fn consented(&self, manifest: &Manifest, consent: &Ack, verifier: &dyn Verifier) -> bool {
        let holder = self.before.get(usize::from(consent.index));
        holder.is_some_and(|holder| consent.batch == 1 && consent.verify(&self.consent_leaf(manifest, consent.index), holder, verifier))
    }

    /// Whether the holder of `index`, who stays, acked with this very ack.
    pub fn acked(&self, manifest: &Manifest, ack: &Ack, verifier: &dyn Verifier) -> bool {
        let stays = self.stays(ack.index) && ack.batch == 1;
        stays && ack.verify(&self.ack_leaf(manifest, ack.index), &self.before[usize::from(ack.index)], verifier)
    }

    /// Whether `n - f` holders before it consented: exactly so many, so that a link has a bounded size.
    pub fn agreed(&self, manifest: &Manifest, consents: &[Ack], verifier: &dyn Verifier) -> bool {
        let counted = consents.len() == handover_quorum(&manifest.shape) && ascending(consents);
        counted && consents.iter().all(|consent| self.consented(manifest, consent, verifier))
    }
}

/// The first `n - f` of these, by index. `None` while there are fewer.
pub fn quorum_of(shape: &Shape, acks: &BTreeMap<u8, Ack>) -> Option<Vec<Ack>> {
    let need = handover_quorum(shape);
    (acks.len() >= need).then(|| acks.values().take(need).cloned().collect())
}

fn ascending(acks: &[Ack]) -> bool {
    acks.windows(2).all(|pair| pair[0].index < pair[1].index)
}

impl Lease {
    /// The lease that follows `before` by one more link: one that changed nothing drops out.
    pub fn extended(manifest: &SignedManifest, before: Option<&Self>, link: Link, acks: Vec<Ack>) -> Option<Self> {
        let mut links: Vec<Link> = before.map_or(Vec::new(), |lease| lease.wire.links.clone());
        links.pop_if(|last| last.replaced.is_empty());
        links.push(link);
        Self::checked(manifest, LeaseWire { links, acks }).ok()
    }

    /// Decodes and verifies everything but what the `known` lease of the same manifest begins with.
    pub fn verify(frame: &[u8], manifest: &SignedManifest, known: Option<&Self>, verifier: &dyn Verifier) -> Result<Self, LeaseError> {
        let lease = Self::checked(manifest, wire::decode(frame)?)?;
        let known = known.map_or(&[][..], |known| &known.wire.links);
        let same = lease.wire.links.iter().zip(known).take_while(|(link, known)| link == known).count();
        for (number, link) in lease.wire.links.iter().enumerate().skip(same) {
            if !lease.handover(manifest, number).agreed(manifest, &link.consents, verifier) {
                return Err(LeaseError::Consents(number));
            }
        }
        let last = lease.last(manifest);
        match lease.wire.acks.iter().all(|ack| last.acked(manifest, ack, verifier)) {
            true => Ok(lease),
            false => Err(LeaseError::Acks),
        }
    }

    /// Decodes what this node stored itself after verifying it: everything is checked but the signatures.
    pub fn trusted(frame: &[u8], manifest: &SignedManifest) -> Result<Self, LeaseError> {
        Self::checked(manifest, wire::decode(frame)?)
    }

    fn checked(manifest: &SignedManifest, wire: LeaseWire) -> Result<Self, LeaseError> {
        let count = wire.links.len();
        let changing = wire.links.iter().rev().skip(1).all(|link| !link.replaced.is_empty());
        if count == 0 || count > LINKS_MAX || !changing {
            return Err(LeaseError::Links(count));
        }
        let (mut before, mut before_ms) = (manifest.holders.clone(), manifest.issued_at_ms);
        let mut sets = Vec::with_capacity(count);
        for (number, link) in wire.links.iter().enumerate() {
            let due = link.issued_at_ms >= manifest.next_link_due_ms(before_ms) && link.issued_at_ms < manifest.renew_until_ms;
            if !due {
                return Err(LeaseError::Time(number));
            }
            let handover = Handover::of(manifest, &before, link.issued_at_ms, &link.replaced).ok_or(LeaseError::Replaced(number))?;
            if link.consents.len() != handover_quorum(&manifest.shape) || !ascending(&link.consents) {
                return Err(LeaseError::Consents(number));
            }
            (before, before_ms) = (handover.holders.clone(), link.issued_at_ms);
            sets.push(handover.holders);
        }
        if wire.acks.len() < handover_quorum(&manifest.shape) || !ascending(&wire.acks) {
            return Err(LeaseError::Acks);
        }
        Ok(Self { frame: wire::encode(&wire), wire, sets })
    }

    /// The handover of a link.
    fn handover(&self, manifest: &SignedManifest, number: usize) -> Handover {
        let before = if number == 0 { &manifest.holders } else { &self.sets[number - 1] };
        let link = &self.wire.links[number];
        Handover::of(manifest, before, link.issued_at_ms, &link.replaced).expect("checked")
    }

    /// The handover of the last link.
    pub fn last(&self, manifest: &SignedManifest) -> Handover {
        self.handover(manifest, self.sets.len() - 1)
    }

    /// Every handover that it consists of, in order.
    pub fn handovers<'a>(&'a self, manifest: &'a SignedManifest) -> impl Iterator<Item = Handover> + 'a {
        (0..self.sets.len()).map(|number| self.handover(manifest, number))
    }

    /// As it travels.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Its links, oldest first.
    pub fn links(&self) -> &[Link] {
        &self.wire.links
    }

    /// Those that acked the last link.
    pub fn acks(&self) -> &[Ack] {
        &self.wire.acks
    }

    /// Who holds the shards after the last link, by index.
    pub fn holders(&self) -> &[PeerKey] {
        &self.sets[self.sets.len() - 1]
    }

    /// When the last link was issued, in milliseconds since the Unix epoch.
    pub fn issued_at_ms(&self) -> u64 {
        self.wire.links[self.wire.links.len() - 1].issued_at_ms
    }
}
