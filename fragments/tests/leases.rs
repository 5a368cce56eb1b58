//! Leases that are wrong in exactly one way, each named after it; and the largest that is right.

mod common;

use common::*;
use persona_fragments::{
    Ack, AckLeaf, CertificateError, CertifiedHead, Ed25519Verifier, Handover, Lease, LeaseError, Link, Manifest, PeerKey, SignedManifest,
    certificate::HeadWire, lease::LINKS_MAX, sign_batch, wire,
};

const HOUR_MS: u64 = 3_600_000;

/// Who signs where: new holders have the keys of `holder(10)` and so on.
fn key(number: u8) -> PeerKey {
    holder_key(number)
}

fn leased(level: u8, usable: usize) -> SignedManifest {
    let manifest = Manifest { renew_until_ms: NEW_YEAR_MS + 30 * 24 * HOUR_MS, ..section(b"be kind", level, usable).0 };
    SignedManifest::sign(manifest, &owner()).expect("sound")
}

fn sign(number: u8, leaf: &AckLeaf) -> Ack {
    sign_batch(std::slice::from_ref(leaf), &holder(number)).remove(0)
}

/// The holders before and after a link, by the numbers of their keys.
type Numbers = Vec<u8>;

/// A link that is due at `hours`, with the consents of the first `n - f`.
fn link(manifest: &SignedManifest, before: &Numbers, half_hours: u64, replaced: &[(u8, u8)]) -> (Link, Handover, Numbers) {
    link_at(manifest, before, NEW_YEAR_MS + half_hours * HOUR_MS / 2, replaced)
}

fn link_at(manifest: &SignedManifest, before: &Numbers, issued_at_ms: u64, replaced: &[(u8, u8)]) -> (Link, Handover, Numbers) {
    let keys: Vec<PeerKey> = before.iter().map(|number| key(*number)).collect();
    let replaced: Vec<(u8, PeerKey)> = replaced.iter().map(|(index, number)| (*index, key(*number))).collect();
    let handover = Handover::of(manifest, &keys, issued_at_ms, &replaced).expect("sound");
    let consents = (0..manifest.shape.quorum()).map(|index| sign(before[usize::from(index)], &handover.consent_leaf(manifest, index)));
    let link = Link { issued_at_ms, consents: consents.collect(), replaced };
    let after = handover.holders.iter().map(|peer| (0..=60).find(|number| key(*number) == *peer).expect("one of ours")).collect();
    (link, handover, after)
}

fn acks(manifest: &SignedManifest, handover: &Handover, holders: &Numbers) -> Vec<Ack> {
    let stays = (0..manifest.shape.n()).filter(|index| handover.stays(*index)).take(manifest.shape.quorum().into());
    stays.map(|index| sign(holders[usize::from(index)], &handover.ack_leaf(manifest, index))).collect()
}

/// What travels: links and acks, whatever they are.
fn head_with(manifest: &SignedManifest, links: &[Link], acks: &[Ack]) -> Result<CertifiedHead, CertificateError> {
    let frame = wire::encode(&(links.to_vec(), acks.to_vec()));
    let head = head((**manifest).clone());
    CertifiedHead::verify(HeadWire { handover: Some(frame), ..head.to_wire() }, &Ed25519Verifier)
}

/// One link that replaces holder 6 of seven, with one thing changed.
fn with(change: impl FnOnce(&SignedManifest, &mut Link, &mut Vec<Ack>)) -> Result<(), LeaseError> {
    let manifest = leased(3, 7);
    let before: Numbers = (0..7).collect();
    let (mut link, handover, after) = link(&manifest, &before, 1, &[(6, 10)]);
    let mut acks = acks(&manifest, &handover, &after);
    change(&manifest, &mut link, &mut acks);
    match head_with(&manifest, &[link], &acks) {
        Ok(_) => Ok(()),
        Err(CertificateError::Handover(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_lease_that_all_these_start_from_is_accepted() {
    assert_eq!(with(|_, _, _| ()), Ok(()));
}

macro_rules! refused {
    ($($name:ident: $change:expr => $error:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(with($change), Err($error));
        }
    )*};
}

refused! {
    a_consent_too_few: |_, link, _| drop(link.consents.pop()) => LeaseError::Consents(0);
    a_consent_twice: |_, link, _| link.consents[1] = link.consents[0].clone() => LeaseError::Consents(0);
    a_consent_by_a_stranger: |_, link, _| link.consents[0].signature.0[0] ^= 1 => LeaseError::Consents(0);
    a_consent_passed_off_as_ack: |_, link, acks| acks[0] = link.consents[0].clone() => LeaseError::Acks;
    an_ack_too_few: |_, _, acks| drop(acks.pop()) => LeaseError::Acks;
    an_ack_by_who_came: |manifest, link, acks| {
        let before: Vec<PeerKey> = manifest.holders.clone();
        let handover = Handover::of(manifest, &before, link.issued_at_ms, &link.replaced).expect("sound");
        acks[4] = sign(10, &handover.ack_leaf(manifest, 6));
    } => LeaseError::Acks;
    a_link_that_was_not_due: |manifest, link, _| link.issued_at_ms = manifest.issued_at_ms + manifest.ttl_ms / 2 - 1 => LeaseError::Time(0);
    a_link_that_the_owner_did_not_allow: |manifest, link, _| link.issued_at_ms = manifest.renew_until_ms => LeaseError::Time(0);
    a_link_of_another_time: |_, link, _| link.issued_at_ms += 1 => LeaseError::Consents(0);
    a_link_with_another_newcomer: |_, link, _| link.replaced[0].1 = key(11) => LeaseError::Consents(0);
    a_link_that_replaces_too_many: |_, link, _| link.replaced = vec![(4, key(10)), (5, key(11)), (6, key(12))] => LeaseError::Replaced(0);
    a_link_that_names_a_holder_twice: |_, link, _| link.replaced[0].1 = key(0) => LeaseError::Replaced(0);
    a_link_out_of_order: |_, link, _| link.replaced = vec![(6, key(10)), (5, key(11))] => LeaseError::Replaced(0);
    a_link_beyond_the_holders: |_, link, _| link.replaced[0].0 = 7 => LeaseError::Replaced(0);
}

#[test]
fn a_manifest_without_a_lease_has_none() {
    let manifest = SignedManifest::sign(section(b"be kind", 3, 7).0, &owner()).expect("sound");
    let (link, handover, after) = link(&manifest, &(0..7).collect(), 1, &[]);
    let verdict = head_with(&manifest, &[link], &acks(&manifest, &handover, &after));
    assert_eq!(verdict.map(|_| ()), Err(CertificateError::Handover(LeaseError::Time(0))));
}

#[test]
fn only_the_last_link_may_change_nothing_and_it_makes_room() {
    let manifest = leased(3, 7);
    let before: Numbers = (0..7).collect();
    let (first, handover, _) = link(&manifest, &before, 1, &[]);
    let first_acks = acks(&manifest, &handover, &before);
    let (second, handover, after) = link(&manifest, &before, 2, &[(0, 10)]);
    let second_acks = acks(&manifest, &handover, &after);
    let verdict = head_with(&manifest, &[first.clone(), second.clone()], &second_acks);
    assert_eq!(verdict.map(|_| ()), Err(CertificateError::Handover(LeaseError::Links(2))));
    let lease = Lease::extended(&manifest, None, first, first_acks).expect("sound");
    let lease = Lease::extended(&manifest, Some(&lease), second, second_acks).expect("sound");
    assert_eq!(lease.links().len(), 1);
    assert_eq!(Lease::verify(lease.frame(), &manifest, None, &Ed25519Verifier), Ok(lease));
}

#[test]
fn the_first_link_is_due_after_half_the_ttl_and_each_other_one_after_a_quarter() {
    let manifest = leased(3, 7);
    let before: Numbers = (0..7).collect();
    let with = |first_after_ms: u64, second_after_ms: u64| {
        let (first, _, after) = link_at(&manifest, &before, NEW_YEAR_MS + first_after_ms, &[(0, 10)]);
        let (second, handover, after) = link_at(&manifest, &after, first.issued_at_ms + second_after_ms, &[(1, 11)]);
        head_with(&manifest, &[first, second], &acks(&manifest, &handover, &after)).map(|_| ())
    };
    let not_due = |number| Err(CertificateError::Handover(LeaseError::Time(number)));
    assert_eq!(with(HOUR_MS / 2, HOUR_MS / 4), Ok(()));
    assert_eq!(with(HOUR_MS / 2 - 1, HOUR_MS / 4), not_due(0));
    assert_eq!(with(HOUR_MS / 2, HOUR_MS / 4 - 1), not_due(1));
}

#[test]
fn the_longest_lease_of_the_largest_set_still_fits_a_record() {
    let manifest = leased(10, 16);
    let mut holders: Numbers = (0..16).collect();
    let mut lease: Option<Lease> = None;
    for step in 0..LINKS_MAX as u64 {
        let last = step + 1 == LINKS_MAX as u64;
        // Five at a time, and back: a link with the most that it may change.
        let shift = if step.is_multiple_of(2) { 20 } else { 0 };
        let replaced: Vec<(u8, u8)> = if last { Vec::new() } else { (11..16).map(|index| (index, index + shift)).collect() };
        let (link, handover, after) = link(&manifest, &holders, step + 1, &replaced);
        lease = Lease::extended(&manifest, lease.as_ref(), link, acks(&manifest, &handover, &after));
        holders = after;
    }
    let lease = lease.expect("as many as there may be");
    assert_eq!(lease.links().len(), LINKS_MAX);
    let head = CertifiedHead { lease: Some(lease.clone()), ..head((*manifest).clone()) };
    assert!(head.to_bytes().len() < 96 << 10, "{}", head.to_bytes().len());
    assert_eq!(CertifiedHead::from_bytes(&head.to_bytes(), &Ed25519Verifier).as_ref(), Ok(&head));
    assert_eq!(head.holders(), lease.holders());
    assert_eq!(head.expires_at_ms(), lease.issued_at_ms() + manifest.ttl_ms);
    let (more, handover, after) = link(&manifest, &holders, LINKS_MAX as u64 + 1, &[(0, 50)]);
    assert_eq!(
        Lease::extended(&manifest, Some(&lease), more.clone(), acks(&manifest, &handover, &after)).map(|lease| lease.links().len()),
        Some(LINKS_MAX)
    );
}
