//! Sections whose owner is away: their holders renew them, change one by one, and hide nothing from an owner who comes back.

use persona_fragments::{Ack, AckLeaf, Handover, Lease, Link};
use persona_mesh_proto::{Freshness, Refusal};

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn leased(world: &mut World, level: u8, ttl_ms: u64, renew_ms: u64) -> Owner {
    Owner { renew_ms, ..world.owner("ada", Class::Core, level, ttl_ms) }
}

fn holders_of(world: &mut World, owner: &Owner) -> Vec<usize> {
    let head = world.get(owner, Mode::Regular).expect("readable").head;
    head.holders().iter().map(|peer| world.node_of(peer)).collect()
}

fn sign(world: &World, node: usize, leaf: &AckLeaf) -> Ack {
    sign_batch(std::slice::from_ref(leaf), &world.nodes[node].signer).remove(0)
}

/// A head of which the next link is due, in the turn of some holder, and what that holder would ask for.
struct Due {
    head: CertifiedHead,
    issued_at_ms: u64,
    leader: u8,
}

/// From here on no turn is anybody's but the test's.
fn due(world: &mut World, receipt: &PutReceipt) -> Due {
    due_after(world, receipt, receipt.head.manifest.ttl_ms / 2 + 1)
}

fn due_after(world: &mut World, receipt: &PutReceipt, millis: u64) -> Due {
    let head = receipt.head.clone();
    world.no_leaders = true;
    world.run_ms(millis);
    let issued_at_ms = world.now.wall_ms;
    let leader = head.manifest.leader(head.manifest.generation_at(issued_at_ms));
    Due { head, issued_at_ms, leader }
}

impl Due {
    fn handover(&self, replaced: &[(u8, PeerKey)]) -> Handover {
        Handover::of(&self.head.manifest, self.head.holders(), self.issued_at_ms, replaced).expect("sound")
    }

    fn node(&self, world: &World, index: u8) -> usize {
        world.node_of(&self.head.holders()[usize::from(index)])
    }

    fn renew(&self, world: &World, index: u8, replaced: &[(u8, PeerKey)]) -> Request {
        let leaf = self.handover(replaced).consent_leaf(&self.head.manifest, self.leader);
        let consent = sign(world, self.node(world, self.leader), &leaf);
        let (issued_at_ms, replaced) = (self.issued_at_ms, replaced.to_vec());
        Request::Renew { head: self.head.to_wire(), index, issued_at_ms, replaced, consent, lock: None }
    }

    /// The link with the consents of these, however they came by them.
    fn link(&self, world: &World, by: &[u8], replaced: &[(u8, PeerKey)]) -> Link {
        let handover = self.handover(replaced);
        let consents = by.iter().map(|index| sign(world, self.node(world, *index), &handover.consent_leaf(&self.head.manifest, *index)));
        Link { issued_at_ms: self.issued_at_ms, replaced: replaced.to_vec(), consents: consents.collect() }
    }

    /// The certified head with this link, acked by these.
    fn with(&self, world: &World, link: Link, by: &[u8]) -> Option<CertifiedHead> {
        let handover = self.handover(&link.replaced);
        let acks = by.iter().map(|index| sign(world, self.node(world, *index), &handover.ack_leaf(&self.head.manifest, *index))).collect();
        let lease = Lease::extended(&self.head.manifest, self.head.lease.as_ref(), link, acks)?;
        Some(CertifiedHead { lease: Some(lease), ..self.head.clone() })
    }

    /// The first five of seven sign.
    fn consent(&self, world: &mut World, replaced: &[(u8, PeerKey)]) {
        for index in 0..5 {
            self.finds_silent(world, index, replaced);
            let (node, request) = (self.node(world, index), self.renew(world, index, replaced));
            let answer = world.tell(node, request);
            assert!(matches!(answer, Response::Consented { .. }), "{answer:?}");
        }
    }

    /// Makes a holder find another one silent.
    fn finds_silent(&self, world: &mut World, index: u8, replaced: &[(u8, PeerKey)]) {
        let (node, request) = (self.node(world, index), self.renew(world, index, replaced));
        assert_eq!(world.tell(node, request), Response::Busy, "it finds out for itself");
        world.run_ms(16_000);
    }
}

#[test]
fn a_section_outlives_its_owner_while_its_holders_come_and_go_one_by_one() {
    let mut world = World::new(1, 14);
    world.holder_tick_us = 10_000_000;
    let mut ada = leased(&mut world, 5, HOUR_MS, 48 * HOUR_MS);
    let first: Vec<usize> = (0..10).collect();
    world.put(&mut ada, &first, b"be kind").expect("committed");
    for hour in 0..40 {
        let holders = holders_of(&mut world, &ada);
        let gone = holders[hour % 10];
        world.lose_disk(gone);
        world.run_ms(HOUR_MS);
        world.restart(gone); // a new node, as far as anybody can tell
        let value = world.get(&ada, Mode::Regular).expect("readable");
        assert_eq!(value.content, b"be kind", "hour {hour}");
        assert!(value.head.manifest.expires_at_ms() < world.now.wall_ms, "not by its owner's word alone");
    }
    let value = world.get(&ada, Mode::Regular).expect("readable");
    let lease = value.head.lease.clone().expect("renewed");
    // Forty losses: at first each is replaced at once, and later two at a time.
    assert!(lease.links().len() > 15, "{} links", lease.links().len());
    let everywhere = value.head.holders().iter().filter(|peer| value.missing.iter().all(|(missing, _)| missing != *peer)).count();
    assert!(everywhere >= 9, "{everywhere} have their shard");
    assert!(value.head.to_bytes().len() < 64 << 10);
}

#[test]
fn an_owner_that_goes_away_again_is_helped_again() {
    let mut world = World::new(4, 14);
    let mut ada = leased(&mut world, 5, HOUR_MS, 24 * HOUR_MS);
    let holders: Vec<usize> = (0..10).collect();
    for absence in 0..3 {
        world.put(&mut ada, &holders, b"be kind").expect("committed");
        world.run_ms((6 - absence) * HOUR_MS); // shorter each time: the turns of the one before must not count
        let head = world.get(&ada, Mode::Regular).expect("renewed").head;
        assert!(head.lease.is_some(), "absence {absence}");
    }
}

#[test]
fn who_took_another_place_under_a_lease_is_no_holder_of_the_one_that_it_had() {
    let mut world = World::new(5, 5);
    let mut ada = leased(&mut world, 2, HOUR_MS, 24 * HOUR_MS);
    let put = world.put(&mut ada, &[0, 1, 2, 3], b"be kind").expect("committed");
    world.run_ms(60_000);
    let until = |world: &mut World, holders: [usize; 4]| {
        for _ in 0..60 {
            world.run_ms(30_000);
            if holders_of(world, &ada) == holders {
                return;
            }
        }
        panic!("{holders:?} never became the holders");
    };
    world.crash(0);
    world.run_ms(HOUR_MS / 4);
    until(&mut world, [4, 1, 2, 3]);
    world.restart(0);
    world.crash(1);
    until(&mut world, [4, 0, 2, 3]);
    // What the owner sent long ago may come now.
    let shards = persona_fragments::coding::encode(b"be kind", put.head.manifest.shape).expect("encoded");
    let late = Request::Prepare { manifest: put.head.manifest.wire().clone(), index: 0, shard: Some(shards[0].clone()) };
    assert_eq!(world.tell(0, late), Response::Refused { reason: Refusal::NotAHolder });
    assert_eq!(world.get(&ada, Mode::Regular).expect("readable").content, b"be kind");
}

/// Each holder has to see for itself that all of them are silent: at the same time, or the round is over before.
#[test]
fn as_many_as_may_fail_at_once_are_replaced_in_one_round() {
    let mut world = World::new(3, 14);
    let mut ada = leased(&mut world, 5, HOUR_MS, 24 * HOUR_MS);
    let holders: Vec<usize> = (0..10).collect();
    world.put(&mut ada, &holders, b"be kind").expect("committed");
    world.run_ms(60_000);
    let gone: Vec<PeerKey> = holders_of(&mut world, &ada)[..3].iter().map(|host| world.nodes[*host].key).collect();
    for host in holders_of(&mut world, &ada)[..3].to_vec() {
        world.lose_disk(host);
    }
    world.run_ms(HOUR_MS / 2 + 4 * HOUR_MS / 16 - 60_000); // three leaders are gone, if it is their turns
    let head = world.get(&ada, Mode::Regular).expect("readable").head;
    let lease = head.lease.as_ref().expect("renewed");
    assert_eq!(lease.links().len(), 1);
    assert!(gone.iter().all(|peer| !head.holders().contains(peer)), "all three are replaced");
    let rounds = world.tasks.iter().filter(|task| task.renewed.is_some()).count();
    assert_eq!(rounds, 1, "by the first one who led");
}

#[test]
fn a_renewal_with_the_same_holders_moves_no_shard() {
    let mut world = World::new(2, 10);
    let mut ada = leased(&mut world, 5, HOUR_MS, 24 * HOUR_MS);
    let holders: Vec<usize> = (0..10).collect();
    world.put(&mut ada, &holders, b"be kind").expect("committed");
    world.sent.clear();
    world.run_ms(5 * HOUR_MS);
    let value = world.get(&ada, Mode::Regular).expect("readable");
    assert_eq!(value.head.lease.expect("renewed").links().len(), 1, "who changes nothing replaces the link before");
    let count = |kind: &str| world.sent.iter().filter(|sent| sent.kind == kind).count();
    let rounds = world.tasks.iter().filter(|task| task.renewed.is_some()).count();
    assert_eq!((count("take"), count("prepare"), count("handover")), (0, 0, 0));
    assert!((17..=20).contains(&rounds), "one round after half a TTL and one for each quarter that follows, not {rounds}");
    assert_eq!(count("renew"), rounds * 9);
}

#[test]
fn an_owner_that_renews_leaves_its_holders_nothing_to_do() {
    let mut world = World::new(3, 7);
    let mut ada = leased(&mut world, 3, 300_000, 24 * HOUR_MS);
    let holders: Vec<usize> = (0..7).collect();
    world.put(&mut ada, &holders, b"be kind").expect("committed");
    for _ in 0..20 {
        world.run_ms(110_000);
        let task = ada.renew(&world, &holders, b"be kind");
        let receipt = world.finish_put(&mut ada, task).expect("committed");
        assert_eq!(receipt.stale_until_ms, None);
    }
    assert!(!world.sent.iter().any(|sent| sent.kind == "renew"));
}

#[test]
fn it_ends_when_the_owner_said_and_no_later() {
    let mut world = World::new(4, 7);
    let mut ada = leased(&mut world, 3, 300_000, 1_000_000);
    world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.run_ms(995_000);
    let value = world.get(&ada, Mode::Regular).expect("readable to the end");
    assert_eq!(value.head.expires_at_ms(), value.head.manifest.renew_until_ms);
    world.run_ms(20_000);
    assert!(matches!(world.get(&ada, Mode::Regular), Err(GetError::Expired { .. } | GetError::NotFound { .. })));
    world.run_ms(60_000);
    assert_eq!((0..7).map(|node| world.records(node, Table::Shard)).sum::<usize>(), 0, "nobody keeps what is over");
}

#[test]
fn without_a_lease_nobody_renews() {
    let mut world = World::new(5, 7);
    let mut ada = leased(&mut world, 3, 300_000, 0);
    world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.run_ms(320_000);
    assert!(matches!(world.get(&ada, Mode::Regular), Err(GetError::Expired { .. } | GetError::NotFound { .. })));
    assert!(!world.sent.iter().any(|sent| sent.kind == "renew"));
}

#[test]
fn a_handover_with_a_signature_too_few_is_refused() {
    let mut world = World::new(6, 8);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    let due = due(&mut world, &receipt);
    let changes = [(6, world.nodes[7].key)];
    assert_eq!(due.with(&world, due.link(&world, &[0, 1, 2, 3], &changes), &[0, 1, 2, 3, 4]), None, "four of seven consent");
    assert_eq!(due.with(&world, due.link(&world, &[0, 1, 2, 3, 4], &changes), &[0, 1, 2, 3]), None, "four of seven ack");
    let head = due.with(&world, due.link(&world, &[0, 1, 2, 3, 4], &changes), &[0, 1, 2, 3, 4]).expect("five are enough");
    assert_eq!(CertifiedHead::verify(head.to_wire(), &world.verifier), Ok(head.clone()));
    assert_eq!(world.tell(0, Request::Commit { head: head.to_wire() }), Response::Committed);
    // One of the five by a key that is not the holder's.
    let mut link = due.link(&world, &[0, 1, 2, 3, 4], &changes);
    link.consents[4] = sign(&world, 7, &due.handover(&changes).consent_leaf(&due.head.manifest, 4));
    let forged = due.with(&world, link, &[0, 1, 2, 3, 4]).expect("of the right form");
    assert_eq!(world.tell(1, Request::Commit { head: forged.to_wire() }), Response::Refused { reason: Refusal::BadCertificate });
    // A holder acks nothing without the consents either.
    let link = due.link(&world, &[0, 1, 2, 3], &changes);
    let request = Request::Handover { head: due.head.to_wire(), index: 2, link };
    assert_eq!(world.tell(2, request), Response::Refused { reason: Refusal::BadHandover });
}

#[test]
fn a_liar_evicts_nobody_who_answers() {
    let mut world = World::new(7, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    let due = due(&mut world, &receipt);
    let victims: Vec<u8> = (0..7).filter(|index| *index != due.leader).take(3).collect();
    let changes = [(victims[0], world.nodes[7].key), (victims[1], world.nodes[8].key)];
    for index in (0..7).filter(|index| *index != due.leader && !victims.contains(index)) {
        let node = due.node(&world, index);
        let request = due.renew(&world, index, &changes);
        assert_eq!(world.tell(node, request.clone()), Response::Busy, "it finds out for itself");
        world.run_ms(100);
        assert_eq!(world.tell(node, request), Response::Refused { reason: Refusal::Alive });
    }
    // More than f at once, in nobody's turn, or not yet due: not even looked into.
    let node = due.node(&world, victims[2]);
    let bad = Response::Refused { reason: Refusal::BadHandover };
    let Request::Renew { head, index, issued_at_ms, consent, lock, .. } = due.renew(&world, victims[2], &changes) else { unreachable!() };
    let three = vec![(victims[0], world.nodes[7].key), (victims[1], world.nodes[8].key), (victims[2], PeerKey([9; 32]))];
    let request = Request::Renew { head: head.clone(), index, issued_at_ms, replaced: three, consent: consent.clone(), lock: lock.clone() };
    assert_eq!(world.tell(node, request), bad);
    let request = Request::Renew {
        head: head.clone(),
        index,
        issued_at_ms: issued_at_ms - 1000,
        replaced: vec![],
        consent: consent.clone(),
        lock: lock.clone(),
    };
    assert_eq!(world.tell(node, request), bad, "the consent is for another time");
    let early = due.head.manifest.issued_at_ms + due.head.manifest.ttl_ms / 2 - 1;
    let leaf = Handover::of(&due.head.manifest, due.head.holders(), early, &[]).expect("sound");
    let leader = due.head.manifest.leader(leaf.generation);
    let consent = sign(&world, due.node(&world, leader), &leaf.consent_leaf(&due.head.manifest, leader));
    let request = Request::Renew { head, index, issued_at_ms: early, replaced: vec![], consent, lock };
    assert_eq!(world.tell(node, request), bad, "the owner has had too little time");
}

#[test]
fn a_holder_signs_once_in_each_generation() {
    let mut world = World::new(8, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    let gone = [5_usize, 6];
    for node in gone {
        world.crash(node);
    }
    let due = due(&mut world, &receipt);
    let index = (0..5).find(|index| *index != due.leader).expect("somebody else");
    let node = due.node(&world, index);
    let (one, other) = ([(5, world.nodes[7].key)], [(5, world.nodes[8].key)]);
    due.finds_silent(&mut world, index, &one);
    let request = due.renew(&world, index, &one);
    let first = world.tell(node, request.clone());
    assert!(matches!(first, Response::Consented { ack: None, .. }), "{first:?}");
    assert_eq!(world.tell(node, request.clone()), first, "the same again");
    let second = due.renew(&world, index, &other);
    assert_eq!(world.tell(node, second.clone()), Response::Refused { reason: Refusal::Stale });
    world.restart(node);
    assert_eq!(world.tell(node, request), first, "also after a restart");
    assert_eq!(world.tell(node, second), Response::Refused { reason: Refusal::Stale });
}

/// The heart of it: `n - f` have signed for a set that no writer has heard of.
#[test]
fn a_put_that_races_a_handover_is_told_to_the_new_holders() {
    let mut world = World::new(9, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.crash(6);
    let due = due(&mut world, &receipt);
    let changes = [(6, world.nodes[7].key)];
    due.consent(&mut world, &changes);
    // The leader has what it needs and says nothing yet. The owner is back, and puts where it always did.
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5], b"be kinder").expect("committed");
    assert_eq!(receipt.stale_until_ms, None);
    let version = receipt.head.manifest.version;
    world.run_ms(100); // enough of the new set had it, and the newcomer hears of it
    assert_eq!(world.holder(7).head(&ada.section(), world.now).expect("told").manifest.version, version);
    // Whoever is led to the new holders by the link, which is certified after all, finds what is current.
    let link = due.link(&world, &[0, 1, 2, 3, 4], &changes);
    let late = due.with(&world, link.clone(), &[0, 1, 2, 3, 4]).expect("certified");
    let task = GetTask { known: Some(late), candidates: vec![], ..world.get_task(&ada, Mode::Regular) };
    assert_eq!(world.finish_get(task).expect("readable").head.manifest.version, version);
    // And nobody acks the link any more.
    let request = Request::Handover { head: due.head.to_wire(), index: 0, link };
    assert!(matches!(world.tell(0, request), Response::Superseded { .. }));
}

#[test]
fn names_of_sets_that_never_were_hold_no_put_up_once_all_others_have_answered() {
    let mut world = World::new(10, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.nodes[1].lie = Some(Lie::Name);
    world.nodes[4].lie = Some(Lie::Name);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kinder").expect("committed");
    assert_eq!(receipt.stale_until_ms, None, "two of seven are fewer than f + 1");
}

#[test]
fn a_fence_ends_the_handovers_of_a_lower_host() {
    let mut world = World::new(11, 10);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    let mut card = Owner { renew_ms: 0, ..ada.also("card", Class::Core, 2, 9) };
    let fence = world.put(&mut card, &[0, 1, 2, 3, 4, 5, 6], b"I live elsewhere").expect("committed").head;
    let task = GetTask { fence: Some(fence), ..world.get_task(&ada, Mode::Atomic) };
    let value = world.finish_get(task).expect("readable");
    assert_eq!(value.fresh, Freshness::Atomic);
    let due = due(&mut world, &receipt);
    let index = (0..7).find(|index| *index != due.leader).expect("somebody else");
    let (node, request) = (due.node(&world, index), due.renew(&world, index, &[]));
    assert!(matches!(world.tell(node, request), Response::Fenced { .. }));
}

/// The handover was signed before the fence came, and is certified only after the takeover has read. Its set hears of the new host's put.
#[test]
fn a_handover_that_races_a_takeover_hides_nothing_from_it() {
    let mut world = World::new(12, 10);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.crash(6);
    let due = due(&mut world, &receipt);
    let changes = [(6, world.nodes[7].key)];
    due.consent(&mut world, &changes);
    let mut card = Owner { renew_ms: 0, ..ada.also("card", Class::Core, 2, 9) };
    let fence = world.put(&mut card, &[0, 1, 2, 3, 4, 5], b"I live elsewhere").expect("committed").head;
    let task = GetTask { fence: Some(fence), ..world.get_task(&ada, Mode::Atomic) };
    let value = world.finish_get(task).expect("readable");
    let mut elsewhere = Owner { older: value.head.as_older_sets(world.now.wall_ms), ..ada.also("notes", Class::Core, 2, 9) };
    let receipt = world.put(&mut elsewhere, &[0, 1, 2, 3, 4, 5, 8], b"be kind, here").expect("committed");
    assert_eq!(receipt.stale_until_ms, None);
    let late = due.with(&world, due.link(&world, &[0, 1, 2, 3, 4], &changes), &[0, 1, 2, 3, 4]).expect("certified");
    let task = GetTask { known: Some(late), candidates: vec![], ..world.get_task(&ada, Mode::Regular) };
    assert_eq!(world.finish_get(task).expect("readable").head.manifest.version, receipt.head.manifest.version);
}

/// A link that was acked may be certified: whoever leads next goes on with it, though it would choose others.
#[test]
fn what_was_acked_is_proposed_again_and_nothing_else() {
    let mut world = World::new(13, 10);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.crash(6);
    let due = due(&mut world, &receipt);
    let changes = [(6, world.nodes[9].key)];
    let link = due.link(&world, &[0, 1, 2, 3, 4], &changes);
    for index in [0, 3] {
        let request = Request::Handover { head: due.head.to_wire(), index, link: link.clone() };
        let node = due.node(&world, index);
        let answer = world.tell(node, request);
        assert!(matches!(answer, Response::Acked { .. }), "{answer:?}");
    }
    world.restart(6); // too late
    world.no_leaders = false; // from here on the holders are on their own
    world.run_ms(HOUR_MS / 4);
    let head = world.get(&ada, Mode::Regular).expect("readable").head;
    assert_eq!(head.holders()[6], world.nodes[9].key, "not one that a later leader would have chosen");
    assert!(head.lease.is_some());
}

/// A turn shortly before the head is over, node 6 gone: what is to be acked, and the head that comes of it.
fn last_turn(world: &mut World, ada: &mut Owner) -> (Due, Link, CertifiedHead) {
    let receipt = world.put(ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.crash(6);
    let due = due_after(world, &receipt, HOUR_MS - 2_000);
    let link = due.link(world, &[0, 1, 2, 3, 4], &[(6, world.nodes[7].key)]);
    let late = due.with(world, link.clone(), &[0, 1, 2, 3, 4]).expect("certified");
    (due, link, late)
}

/// The link is certified only when the head that it continues is over: whoever acked it has kept its shard for that, a restart between.
#[test]
fn what_was_acked_is_here_when_the_link_turns_out_to_be_certified() {
    let mut world = World::new(17, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let (due, link, late) = last_turn(&mut world, &mut ada);
    for index in 0..5 {
        let (node, request) = (due.node(&world, index), Request::Handover { head: due.head.to_wire(), index, link: link.clone() });
        let answer = world.tell(node, request);
        assert!(matches!(answer, Response::Acked { .. }), "{answer:?}");
    }
    world.run_ms(60_000);
    world.restart(2);
    world.run_ms(60_000);
    let kept = |node: &usize| world.records(*node, Table::Shard) == 1;
    assert_eq!((0..6).filter(kept).collect::<Vec<_>>(), [0, 1, 2, 3, 4], "5 has signed nothing");
    for node in 0..5 {
        assert_eq!(world.tell(node, Request::Commit { head: late.to_wire() }), Response::Committed);
    }
    let task = GetTask { known: Some(late), candidates: vec![], ..world.get_task(&ada, Mode::Regular) };
    assert_eq!(world.finish_get(task).expect("readable").content, b"be kind");
}

/// It was never certified: then the shard goes when it can no longer be.
#[test]
fn what_was_acked_goes_with_the_link() {
    let mut world = World::new(18, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let (due, link, _) = last_turn(&mut world, &mut ada);
    let answer = world.tell(0, Request::Handover { head: due.head.to_wire(), index: 0, link });
    assert!(matches!(answer, Response::Acked { .. }), "{answer:?}");
    world.run_ms(HOUR_MS);
    assert_eq!((world.records(0, Table::Shard), world.records(0, Table::Head)), (1, 1));
    world.run_ms(HOUR_MS / 8);
    assert_eq!((world.records(0, Table::Shard), world.records(0, Table::Head)), (0, 0));
}

/// The head's life ends while what was signed is on its way to the disk.
#[test]
fn a_slow_disk_lets_no_holder_ack_what_it_no_longer_has() {
    let mut world = World::new(19, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let (due, link, _) = last_turn(&mut world, &mut ada);
    world.sync_us = 30_000_000;
    assert_eq!(world.hand_in(0, Request::Handover { head: due.head.to_wire(), index: 0, link }), None);
    world.run_ms(60_000); // the answer is judged as it leaves
    assert!(world.nodes[0].calls.is_empty(), "answered");
    assert_eq!(world.records(0, Table::Shard), 1);
}

/// Asked again while the first consent is on its way to the disk, it waits: a crash now makes it forget that it ever signed.
#[test]
fn a_consent_that_is_asked_for_again_is_durable_too() {
    let mut world = World::new(22, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    let due = due(&mut world, &receipt);
    let index = (0..7).find(|index| *index != due.leader).expect("somebody else");
    let (node, request) = (due.node(&world, index), due.renew(&world, index, &[]));
    world.sync_us = 1_000_000;
    assert_eq!(world.hand_in(node, request.clone()), None);
    world.run_ms(500);
    assert_eq!(world.hand_in(node, request.clone()), None, "not durable yet");
    world.run_ms(1_000);
    assert!(world.nodes[node].calls.is_empty(), "both are answered");
    assert!(matches!(world.hand_in(node, request), Some(Response::Consented { .. })), "at once");
}

/// It still has what it signed for in its old place, which is nobody's any more.
#[test]
fn a_holder_that_comes_back_to_another_place_has_one_shard() {
    let mut world = World::new(21, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let (due, link, _) = last_turn(&mut world, &mut ada);
    let answer = world.tell(5, Request::Handover { head: due.head.to_wire(), index: 5, link });
    assert!(matches!(answer, Response::Acked { .. }), "{answer:?}");
    let by = [0, 1, 2, 3, 4];
    let without = due.with(&world, due.link(&world, &by, &[(5, world.nodes[8].key)]), &by).expect("certified");
    world.run_ms(HOUR_MS / 2 + 1);
    let due = Due { head: without, issued_at_ms: world.now.wall_ms, leader: 0 };
    let back = due.with(&world, due.link(&world, &by, &[(6, world.nodes[5].key)]), &by).expect("certified");
    let shard = [back.manifest.key.0, back.manifest.shard_hashes[6].0].concat();
    let shard = world.nodes[6].durable[&(Table::Shard, shard)].clone();
    assert_eq!(world.records(5, Table::Shard), 1);
    assert_eq!(world.tell(5, Request::Take { head: back.to_wire(), index: 6, shard: shard.clone() }), Response::Committed);
    let kept: Vec<_> = world.nodes[5].durable.iter().filter(|((table, _), _)| *table == Table::Shard).map(|(_, bytes)| bytes).collect();
    assert_eq!(kept, [&shard]);
    world.restart(5);
    let answer = world.tell(5, Request::Shard { key: ada.section(), version: back.manifest.version });
    assert!(matches!(answer, Response::Shard { index: 6, .. }), "{answer:?}");
}

/// One that signed nothing hears of the link in time, and its disk is slow.
#[test]
fn a_link_on_its_way_to_the_disk_keeps_what_it_prolongs() {
    let mut world = World::new(20, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let (_, _, late) = last_turn(&mut world, &mut ada);
    world.sync_us = 30_000_000;
    assert_eq!(world.hand_in(5, Request::Commit { head: late.to_wire() }), None);
    world.run_ms(60_000);
    assert!(world.nodes[5].calls.is_empty(), "answered");
    let shard = Request::Shard { key: ada.section(), version: late.manifest.version };
    let answer = world.tell(5, shard);
    assert!(matches!(answer, Response::Shard { index: 5, .. }), "{answer:?}");
    assert_eq!(world.records(0, Table::Shard), 0, "who has heard of no link");
}

/// Seed 876: it knows the link already, and what it is handed lives by that.
#[test]
fn a_shard_that_is_handed_back_lives_by_the_link_that_its_holder_knows() {
    let mut world = World::new(20, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    world.crash(6);
    let task = ada.write(&world, &[0, 1, 2, 3, 4, 5, 6], b"be kind");
    let (manifest, shard) = (task.manifest.clone(), task.shards[6].clone());
    let receipt = world.finish_put(&mut ada, task).expect("committed");
    let due = due_after(&mut world, &receipt, HOUR_MS - 2_000);
    let link = due.link(&world, &[0, 1, 2, 3, 4], &[]);
    let late = due.with(&world, link, &[0, 1, 2, 3, 4]).expect("certified");
    world.restart(6);
    assert_eq!(world.tell(6, Request::Commit { head: late.to_wire() }), Response::Committed);
    let prepare = Request::Prepare { manifest: manifest.wire().clone(), index: 6, shard: Some(shard) };
    assert!(matches!(world.tell(6, prepare), Response::Acked { .. }));
    world.run_ms(60_000); // the manifest's own life is over
    let answer = world.tell(6, Request::Shard { key: ada.section(), version: manifest.version });
    assert!(matches!(answer, Response::Shard { index: 6, .. }), "{answer:?}");
}

#[test]
fn a_holder_without_its_store_signs_no_handover_and_names_what_others_signed() {
    let mut world = World::new(14, 9);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let receipt = world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    world.crash(6);
    let due = due(&mut world, &receipt);
    let changes = [(6, world.nodes[7].key)];
    due.consent(&mut world, &changes);
    let loser = (0..5).find(|index| *index != due.leader).expect("somebody else");
    let node = due.node(&world, loser);
    world.lose_store(node);
    let request = due.renew(&world, loser, &[]);
    assert_eq!(world.tell(node, request.clone()), Response::Recovering);
    world.run_ms(11_000);
    assert_eq!(world.tell(node, request.clone()), Response::Recovering, "and asks the others");
    world.run_ms(6_000);
    assert_eq!(world.tell(node, request), Response::Recovering, "what it may have signed before it signs nothing against");
    let Response::Head(answer) = world.tell(node, Request::Head { key: ada.section(), fence: None, with_shard: false }) else {
        panic!("recovered");
    };
    let named: Vec<HandedSet> = answer.handed.expect("names").sets;
    assert!(named.iter().any(|set| set.holders[6] == world.nodes[7].key), "{named:?}");
}

#[test]
fn an_owner_that_was_away_goes_on_from_what_its_holders_made_of_it() {
    let mut world = World::new(15, 12);
    world.holder_tick_us = 5_000_000;
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    world.put(&mut ada, &[0, 1, 2, 3, 4, 5, 6], b"be kind").expect("committed");
    for gone in [0, 1, 2] {
        world.lose_disk(gone);
        world.run_ms(2 * HOUR_MS);
    }
    let head = world.get(&ada, Mode::Regular).expect("readable").head;
    ada.found(&world, &head);
    let receipt = world.put(&mut ada, &[3, 4, 5, 6, 7, 8, 9], b"be kindest").expect("committed");
    assert_eq!(receipt.stale_until_ms, None);
    assert_eq!(world.get(&ada, Mode::Regular).expect("readable").content, b"be kindest");
}

#[test]
fn an_owner_that_does_not_look_cannot_know_whom_to_tell() {
    let mut world = World::new(16, 7);
    let mut ada = leased(&mut world, 3, HOUR_MS, 24 * HOUR_MS);
    let holders = [0, 1, 2, 3, 4, 5, 6];
    world.put(&mut ada, &holders, b"be kind").expect("committed");
    world.run_ms(3 * HOUR_MS);
    let until_ms = ada.older[0].renew_until_ms + 10_000;
    let receipt = world.put(&mut ada, &holders, b"be kinder").expect("committed");
    assert_eq!(receipt.stale_until_ms, Some(until_ms), "though all of them confirmed");
}

/// Puts, handovers, crashes and readers with old heads in their caches, all at once: no regular get is older than what had committed.
#[test]
fn a_regular_get_is_never_stale_whatever_the_holders_do_meanwhile() {
    let mut renewed = 0;
    for seed in 0..60 {
        let mut world = World::new(1_000 + seed, 9);
        world.net = Net { delay_us: (500, 200_000), lost_permille: 30, doubled_permille: 30, refuses: seed % 2 == 0 };
        world.renewals_blocked = seed % 3;
        let ttl_ms = 120_000;
        let mut ada = leased(&mut world, 2, ttl_ms, 3 * HOUR_MS);
        let mut heads: Vec<CertifiedHead> = Vec::new();
        let (mut committed, mut down): (Option<Version>, Option<usize>) = (None, None);
        let mut at_ms = 0;
        while at_ms < 2_400_000 {
            let pause_ms = 5_000 + world.below(40_000);
            world.run_ms(pause_ms);
            at_ms += pause_ms;
            match world.below(6) {
                0 => {
                    // At most f of any holder set are gone at a time.
                    if let Some(node) = down.take() {
                        world.restart(node);
                    } else {
                        let node = world.below(9) as usize;
                        world.crash(node);
                        down = Some(node);
                    }
                }
                1 | 2 => {
                    if let Ok(value) = world.get(&ada, Mode::Regular)
                        && ada.last.as_ref().is_some_and(|last| last.hash() == value.head.manifest.hash())
                    {
                        ada.found(&world, &value.head);
                    }
                    let first = world.below(9) as usize;
                    let holders: Vec<usize> = (0..9).map(|step| (first + step) % 9).filter(|node| Some(*node) != down).take(4).collect();
                    if let Ok(receipt) = world.put(&mut ada, &holders, format!("at {at_ms}").as_bytes()) {
                        if receipt.stale_until_ms.is_none() && ada.forgot_until_ms <= world.now.wall_ms {
                            committed = Some(receipt.head.manifest.version);
                        } else {
                            committed = None; // until then anything may be read
                        }
                        heads.push(receipt.head);
                    }
                }
                _ => {
                    let known = if heads.is_empty() { None } else { Some(heads[world.below(heads.len() as u64) as usize].clone()) };
                    let known = known.filter(|head| head.expires_at_ms() > world.now.wall_ms);
                    let task = GetTask { known, ..world.get_task(&ada, Mode::Regular) };
                    if let Ok(value) = world.finish_get(task) {
                        assert!(
                            committed.is_none_or(|committed| value.head.manifest.version >= committed),
                            "seed {seed}: stale at {at_ms} ms"
                        );
                        heads.push(value.head);
                    }
                }
            }
        }
        renewed += world.tasks.iter().filter(|task| matches!(task.renewed, Some(Renewed::Certified { .. }))).count();
    }
    assert!(renewed > 100, "only {renewed} renewals: nothing was tried");
}
