//! Two agents, and everyone who would like to be one of them.

use std::collections::BTreeSet;

use persona_fragments::{Ed25519Verifier, PeerKey, Signer};
use proptest::prelude::*;
use rand_core::SeedableRng as _;

use super::*;
use crate::{
    order::OFFERED_DEFAULT,
    pair::{SKIPPED_KEYS_MAX, SKIPS_MAX},
    testing::{agent, card, rng, taken_over, thief},
};

const NOW_MS: u64 = 1_750_000_000_000;

/// An agent and its state with the one partner it has.
struct End {
    me: Identity,
    pair: Option<PairState>,
    rng: chacha20::ChaCha20Rng,
}

impl End {
    fn new(me: Identity) -> Self {
        let rng = chacha20::ChaCha20Rng::from_seed(me.agent().0);
        Self { me, pair: None, rng }
    }

    fn write(&mut self, to: &Card, mode: Mode, text: &str) -> Vec<u8> {
        let mut pair = self.pair.take().unwrap_or_else(|| PairState::new(&self.me, to));
        let message = Outgoing { to, kind: Kind::Text, mode, payload: text.as_bytes(), now_ms: NOW_MS, expires_at_ms: NOW_MS + 1000 };
        let bytes = compose(&self.me, &mut pair, message, &mut self.rng).expect("composes");
        self.pair = Some(stored(&pair));
        bytes
    }

    fn send(&mut self, to: &Self, text: &str) -> Vec<u8> {
        self.write(&card(&to.me), Mode::Normal, text)
    }

    /// Judges without receiving.
    fn judge(&self, bytes: &[u8], sender: &Card) -> (Verdict, Option<Accepted>) {
        receive(bytes, &Ed25519Verifier, &self.me, self.pair.as_ref(), sender, NOW_MS)
    }

    /// Receives, and stores the new state if there is one.
    fn receive(&mut self, bytes: &[u8], sender: &Self) -> Result<(String, f64), Reason> {
        self.receive_by_card(bytes, &card(&sender.me))
    }

    fn receive_by_card(&mut self, bytes: &[u8], sender: &Card) -> Result<(String, f64), Reason> {
        let (verdict, accepted) = self.judge(bytes, sender);
        assert_eq!(verdict.accepted, accepted.is_some());
        assert_eq!((verdict.total, verdict.behaviour), (None, None));
        let accepted = accepted.ok_or(verdict.reason)?;
        assert_eq!(accepted.payload_digest, Digest(Sha256::digest(&accepted.payload).into()));
        self.pair = Some(stored(&accepted.pair));
        Ok((String::from_utf8(accepted.payload).expect("text"), verdict.protocol))
    }
}

/// A state after a restart: written to its section's fields and read back.
fn stored(pair: &PairState) -> PairState {
    PairState::from_fields(&pair.to_fields()).expect("reads back")
}

fn ends() -> (End, End) {
    (End::new(agent("ada", 1)), End::new(agent("bob", 2)))
}

/// Ada and Bob after first contact both ways: each knows that the other has its root.
fn acquainted() -> (End, End) {
    let (mut ada, mut bob) = ends();
    let hello = ada.send(&bob, "hello");
    bob.receive(&hello, &ada).expect("accepted");
    let answer = bob.send(&ada, "hello yourself");
    ada.receive(&answer, &bob).expect("accepted");
    let thanks = ada.send(&bob, "pleased to meet you");
    bob.receive(&thanks, &ada).expect("accepted");
    (ada, bob)
}

fn envelope(bytes: &[u8]) -> Envelope {
    parse(bytes).expect("an envelope").envelope().clone()
}

/// Changes an envelope and signs it anew.
fn resigned(bytes: &[u8], signer: &dyn Signer, change: impl FnOnce(&mut Envelope)) -> Vec<u8> {
    let mut altered = envelope(bytes);
    change(&mut altered);
    sign(altered, signer)
}

fn sign(mut envelope: Envelope, signer: &dyn Signer) -> Vec<u8> {
    let bytes = wire::encode(&envelope);
    envelope.signature = signer.sign(&[SIGNED_LABEL, &bytes[..bytes.len() - SIGNATURE_BYTES]].concat());
    wire::encode(&envelope)
}

#[test]
fn two_agents_talk_and_every_state_survives_a_restart() {
    let (mut ada, mut bob) = ends();
    for i in 0..20 {
        let bytes = ada.send(&bob, &format!("question {i}"));
        assert_eq!(bob.receive(&bytes, &ada), Ok((format!("question {i}"), 1.0)));
        let bytes = bob.send(&ada, &format!("answer {i}"));
        assert_eq!(ada.receive(&bytes, &bob), Ok((format!("answer {i}"), 1.0)));
    }
    let (ada, bob) = (ada.pair.expect("met"), bob.pair.expect("met"));
    assert_eq!(ada.next_counter(), Some((1, 20)));
    assert_eq!(bob.acknowledged(), Some(Acknowledged { term: 1, counter: 19 }));
    assert_ne!(ada.transcript(), bob.transcript());
}

#[test]
fn every_mode_is_accepted_and_only_stealth_is_canonical() {
    let (mut ada, mut bob) = acquainted();
    for mode in [Mode::Normal, Mode::UnderAttack, Mode::Stealth] {
        let bytes = ada.write(&card(&bob.me), mode, "hm");
        assert_eq!(envelope(&bytes).order == OFFERED_DEFAULT, mode == Mode::Stealth);
        assert_eq!(bob.receive(&bytes, &ada), Ok(("hm".into(), 1.0)), "{mode:?}");
    }
}

#[test]
fn both_may_make_first_contact_at_once() {
    let (mut ada, mut bob) = ends();
    let (from_ada, from_bob) = (ada.send(&bob, "I was first"), bob.send(&ada, "no, I"));
    assert_eq!(bob.receive(&from_ada, &ada), Ok(("I was first".into(), 1.0)));
    assert_eq!(ada.receive(&from_bob, &bob), Ok(("no, I".into(), 1.0)));
    for i in 0..3 {
        let (from_ada, from_bob) = (ada.send(&bob, "tick"), bob.send(&ada, "tock"));
        assert_eq!(ada.receive(&from_bob, &bob), Ok(("tock".into(), 1.0)), "{i}");
        assert_eq!(bob.receive(&from_ada, &ada), Ok(("tick".into(), 1.0)), "{i}");
    }
}

#[test]
fn first_contact_is_repeated_until_it_is_acknowledged() {
    let (mut ada, mut bob) = ends();
    let lost = ada.send(&bob, "lost on the way");
    let second = ada.send(&bob, "did you get it?");
    assert!(envelope(&second).header.first_contact == envelope(&lost).header.first_contact);
    assert_eq!(bob.receive(&second, &ada), Ok(("did you get it?".into(), SKIPPED_ORDER)));
    let answer = bob.send(&ada, "no");
    ada.receive(&answer, &bob).expect("accepted");
    let third = ada.send(&bob, "never mind");
    assert!(envelope(&third).header.first_contact.is_none() && third.len() < 700, "{}", third.len());
    assert_eq!(bob.receive(&third, &ada), Ok(("never mind".into(), 1.0)));
    assert_eq!(bob.receive(&lost, &ada), Ok(("lost on the way".into(), SKIPPED_ORDER)), "late, but fresh");
}

/// The attacks that need no more than the network, or the stolen signing key: each has its reason, none changes a state, and the genuine message
/// that they are made of is still accepted afterwards.
#[test]
fn every_attack_has_its_reason_and_changes_nothing() {
    let (mut ada, mut bob) = acquainted();
    let (eve, key_thief) = (End::new(agent("eve", 3)), thief("ada", 1));
    let ada_card = card(&ada.me);
    let earlier = ada.send(&bob, "earlier");
    bob.receive(&earlier, &ada).expect("accepted");
    let genuine = ada.send(&bob, "the real one");
    let later = ada.send(&bob, "a later one!");
    let stolen = ada.me.signer();
    // The same words from somebody who has the signing key and the chain of nobody.
    let mut impostor = End { rng: rng(77), ..End::new(key_thief) };
    let impersonated = impostor.write(&card(&bob.me), Mode::Normal, "the real one");
    let swap = |envelope: &mut Envelope| envelope.order.swap(3, 4);
    let attacks: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("forged: signed by nobody", resigned(&genuine, eve.me.signer(), |_| {}), Reason::BadSignature),
        (
            "re-signed in another agent's name",
            resigned(&genuine, eve.me.signer(), |e| e.header.sender = eve.me.agent()),
            Reason::UnknownSender,
        ),
        ("replayed", earlier.clone(), Reason::Replay),
        ("replayed under a new signature", resigned(&earlier, stolen, |_| {}), Reason::Replay),
        ("replayed under a fresh counter", resigned(&earlier, stolen, |e| e.header.counter = 3), Reason::KeyCompromised),
        ("truncated", genuine[..genuine.len() - 1].to_vec(), Reason::Malformed),
        ("extended", [genuine.as_slice(), &[0]].concat(), Reason::Malformed),
        ("oversized", vec![1; ENVELOPE_BYTES_MAX + 1], Reason::TooLarge),
        ("of an unknown suite", [&[1, 9], &genuine[2..]].concat(), Reason::UnknownSuite),
        ("order permuted", resigned(&genuine, stolen, swap), Reason::KeyCompromised),
        (
            "order permuted, not re-signed",
            wire::encode(&{
                let mut e = envelope(&genuine);
                swap(&mut e);
                e
            }),
            Reason::BadSignature,
        ),
        ("order of foreign elements", resigned(&genuine, stolen, |e| e.order[0] = 7), Reason::ForeignOrder),
        ("order with one element twice", resigned(&genuine, stolen, |e| e.order[0] = e.order[1]), Reason::ForeignOrder),
        ("order shortened", resigned(&genuine, stolen, |e| e.order.truncate(12)), Reason::ForeignOrder),
        ("order too short to count", resigned(&genuine, stolen, |e| e.order.truncate(11)), Reason::Malformed),
        ("tag bit flipped", resigned(&genuine, stolen, |e| e.tag[15] ^= 1), Reason::KeyCompromised),
        ("payload transplanted", resigned(&genuine, stolen, |e| e.payload = envelope(&later).payload), Reason::KeyCompromised),
        ("markers transplanted", resigned(&genuine, stolen, |e| e.order = envelope(&later).order), Reason::KeyCompromised),
        (
            "markers added",
            resigned(&genuine, stolen, |e| e.header.markers.push(Marker { kind: 1, value: vec![1] })),
            Reason::KeyCompromised,
        ),
        ("mode changed", resigned(&genuine, stolen, |e| e.header.mode = Mode::UnderAttack), Reason::KeyCompromised),
        (
            "declared stealth",
            resigned(&genuine, stolen, |e| {
                e.header.mode = Mode::Stealth;
                e.order = OFFERED_DEFAULT.to_vec();
            }),
            Reason::KeyCompromised,
        ),
        ("expiry extended", resigned(&genuine, stolen, |e| e.header.expires_at_ms += 1), Reason::KeyCompromised),
        ("expired", resigned(&genuine, stolen, |e| e.header.expires_at_ms = NOW_MS - 1), Reason::Expired),
        ("redirected", resigned(&genuine, stolen, |e| e.header.recipient = Recipient::Agent(eve.me.agent())), Reason::NotForUs),
        ("made a broadcast", resigned(&genuine, stolen, |e| e.header.recipient = Recipient::Broadcast), Reason::BroadcastUnverified),
        ("reflected", resigned(&genuine, bob.me.signer(), |e| e.header.sender = bob.me.agent()), Reason::UnknownSender),
        ("counter too far ahead", resigned(&genuine, stolen, |e| e.header.counter += SKIPS_MAX + 1), Reason::CounterTooFarAhead),
        ("counter at the end of numbers", resigned(&genuine, stolen, |e| e.header.counter = u64::MAX), Reason::CounterTooFarAhead),
        ("of a term nobody certified", resigned(&genuine, stolen, |e| e.header.term = 2), Reason::UncertifiedTerm),
        ("of no term", resigned(&genuine, stolen, |e| e.header.term = 0), Reason::Malformed),
        ("of a step nobody took", resigned(&genuine, stolen, |e| e.header.ratchet_step = 1), Reason::UnknownStep),
        ("chunk table of other lengths", resigned(&genuine, stolen, |e| e.header.chunks[0] += 1), Reason::Malformed),
        ("padding beyond the limit", resigned(&genuine, stolen, |e| e.header.padding = vec![0; PADDING_BYTES_MAX + 1]), Reason::Malformed),
        ("the impostor with the stolen signing key", impersonated, Reason::KeyCompromised),
    ];
    let before = bob.pair.clone();
    for (name, bytes, reason) in &attacks {
        let (verdict, accepted) = bob.judge(bytes, &ada_card);
        assert_eq!((verdict.reason, verdict.accepted), (*reason, false), "{name}");
        assert!(accepted.is_none() && verdict.protocol <= WRONG_ORDER_MAX, "{name}: {verdict:?}");
        assert_eq!(bob.pair, before, "{name}");
    }
    assert_eq!(bob.receive(&genuine, &ada), Ok(("the real one".into(), 1.0)));
    assert_eq!(bob.receive(&later, &ada), Ok(("a later one!".into(), 1.0)));
    assert_eq!(bob.receive(&later, &ada), Err(Reason::Replay));
}

#[test]
fn an_envelope_truncated_anywhere_is_malformed() {
    let (mut ada, bob) = ends();
    let bytes = ada.send(&bob, "hello");
    for len in 0..bytes.len() {
        let (verdict, _) = bob.judge(&bytes[..len], &card(&ada.me));
        assert_eq!(verdict.reason, Reason::Malformed, "{len} bytes");
    }
}

#[test]
fn no_altered_bit_passes_not_even_under_the_stolen_signing_key() {
    let (mut ada, bob) = acquainted();
    let bytes = ada.send(&bob, "hello");
    let ada_card = card(&ada.me);
    let signed_len = bytes.len() - SIGNATURE_BYTES;
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(bob.judge(&altered, &ada_card).1.is_none(), "bit {bit}");
        if bit / 8 < signed_len {
            let signature = ada.me.signer().sign(&[SIGNED_LABEL, &altered[..signed_len]].concat());
            altered[signed_len..].copy_from_slice(&signature.0);
            let (verdict, accepted) = bob.judge(&altered, &ada_card);
            assert!(accepted.is_none() && verdict.protocol <= WRONG_ORDER_MAX, "bit {bit}: {verdict:?}");
        }
    }
}

#[test]
fn a_stolen_signing_key_without_the_behaviour_is_told_from_the_agent() {
    let (mut ada, bob) = ends();
    let mut impostor = End { rng: rng(77), ..End::new(thief("ada", 1)) };
    // Bob has never heard of Ada, but her certified card tells which behaviour keys are hers.
    let (verdict, accepted) = bob.judge(&impostor.send(&bob, "it's me"), &card(&ada.me));
    assert_eq!((verdict.reason, accepted.is_none()), (Reason::KeyCompromised, true));
    assert!(verdict.protocol <= WRONG_ORDER_MAX);
    // The impostor's own card does not help it with whoever knows the commitment, and its pair is another.
    let mut bob = bob;
    let hello = ada.send(&bob, "hello");
    bob.receive(&hello, &ada).expect("accepted");
    let (verdict, _) = bob.judge(&impostor.send(&bob, "it's me"), &card(&impostor.me));
    assert_eq!(verdict.reason, Reason::CommitmentChanged);
    // Nor does watching: orders seen so far say nothing about the next.
    let seen: Vec<Vec<u8>> = (0..10).map(|i| ada.send(&bob, &format!("{i}"))).collect();
    seen.iter().for_each(|bytes| drop(bob.receive(bytes, &ada).expect("accepted")));
    for bytes in &seen {
        let mimic = resigned(bytes, ada.me.signer(), |envelope| envelope.header.counter = 11);
        let (verdict, _) = bob.judge(&mimic, &card(&ada.me));
        assert_eq!(verdict.reason, Reason::KeyCompromised);
        assert!(verdict.protocol <= WRONG_ORDER_MAX);
    }
}

/// The order is a proof of its own: not even the right tag makes up for a wrong one.
#[test]
fn a_wrong_order_under_the_right_tag_is_refused() {
    let (mut ada, bob) = acquainted();
    let key = ada.pair.clone().expect("met").next_key(&ada.me, &card(&bob.me), &mut rng(1)).expect("a key").key;
    let genuine = ada.send(&bob, "hello");
    let mut tagged = envelope(&genuine);
    let untagged = |envelope: &Envelope| {
        let bytes = wire::encode(envelope);
        bytes[..bytes.len() - SIGNATURE_BYTES - TAG_BYTES].to_vec()
    };
    assert_eq!(tag(&key, Mode::Normal, &untagged(&tagged)), tagged.tag, "this is the key");
    tagged.order.reverse();
    tagged.tag = tag(&key, Mode::Normal, &untagged(&tagged));
    let (verdict, accepted) = bob.judge(&sign(tagged, ada.me.signer()), &card(&ada.me));
    assert_eq!((verdict.reason, verdict.protocol, accepted.is_none()), (Reason::KeyCompromised, 0.0, true));
}

#[test]
fn a_copy_of_the_whole_agent_that_makes_its_own_contact_is_called_a_clone() {
    let (mut ada, mut bob) = ends();
    let hello = ada.send(&bob, "hello");
    bob.receive(&hello, &ada).expect("accepted");
    let mut copy = End { rng: rng(99), ..End::new(agent("ada", 1)) };
    let (verdict, accepted) = bob.judge(&copy.send(&bob, "hello again"), &card(&ada.me));
    assert_eq!((verdict.reason, accepted.is_none()), (Reason::Clone, true));
}

#[test]
fn a_message_without_contact_needs_a_pair() {
    let (mut ada, bob) = acquainted();
    let bytes = ada.send(&bob, "remember me?");
    let amnesiac = End::new(agent("bob", 2));
    assert_eq!(amnesiac.judge(&bytes, &card(&ada.me)).0.reason, Reason::NoPair);
    ada.pair.as_mut().expect("met").restart_sending();
    let bytes = ada.send(&bob, "let us start anew");
    let mut amnesiac = amnesiac;
    assert_eq!(amnesiac.receive(&bytes, &ada), Ok(("let us start anew".into(), 1.0)));
}

#[test]
fn one_thousand_and_twenty_four_counters_may_be_skipped_and_not_one_more() {
    for (lost, expected) in [(SKIPS_MAX, Ok(("at last".into(), SKIPPED_ORDER))), (SKIPS_MAX + 1, Err(Reason::CounterTooFarAhead))] {
        let (mut ada, mut bob) = acquainted();
        (0..lost).for_each(|_| drop(ada.send(&bob, "lost")));
        let bytes = ada.send(&bob, "at last");
        assert_eq!(bob.receive(&bytes, &ada), expected, "{lost} lost");
    }
}

#[test]
fn messages_may_come_in_any_order_and_each_counts_once() {
    let (mut ada, mut bob) = acquainted();
    let sent: Vec<Vec<u8>> = (0..10).map(|i| ada.send(&bob, &format!("{i}"))).collect();
    let mut delivered = BTreeSet::new();
    for i in [3, 1, 1, 0, 9, 3, 2, 8, 7, 9, 4, 5, 6, 0] {
        let expected = if delivered.insert(i) { Ok(format!("{i}")) } else { Err(Reason::Replay) };
        assert_eq!(bob.receive(&sent[i], &ada).map(|(text, _)| text), expected, "message {i}");
    }
    assert_eq!(delivered.len(), 10);
}

#[test]
fn of_many_skipped_messages_the_latest_can_still_be_read() {
    let (mut ada, mut bob) = acquainted();
    let sent: Vec<Vec<u8>> = (0..=SKIPPED_KEYS_MAX + 1).map(|i| ada.send(&bob, &format!("{i}"))).collect();
    let (last, skipped) = sent.split_last().expect("many");
    bob.receive(last, &ada).expect("accepted");
    assert_eq!(bob.receive(&skipped[0], &ada), Err(Reason::Replay), "its key had to go");
    for (i, bytes) in skipped.iter().enumerate().skip(1).rev() {
        assert_eq!(bob.receive(bytes, &ada), Ok((format!("{i}"), SKIPPED_ORDER)));
    }
}

#[test]
fn after_a_takeover_the_new_host_is_believed_and_the_old_one_is_not() {
    let (mut ada, mut bob) = acquainted();
    let late = ada.send(&bob, "overtaken");
    let overtaking = ada.send(&bob, "overtaking");
    bob.receive(&overtaking, &ada).expect("accepted");
    let in_flight = ada.send(&bob, "sent before the host died");
    let mut new_host = End { me: taken_over(&ada.me, 2), pair: ada.pair.clone(), rng: rng(5) };
    let first_card = card(&ada.me);
    let hello = new_host.send(&bob, "I moved");
    assert_eq!(envelope(&hello).header.counter, 0);
    assert_eq!(bob.receive_by_card(&hello, &first_card), Err(Reason::UncertifiedTerm));
    assert_eq!(bob.receive(&in_flight, &new_host), Err(Reason::StaleTerm), "the card is enough to know better");
    assert_eq!(bob.receive(&hello, &new_host), Ok(("I moved".into(), 1.0)));
    assert_eq!(bob.receive_by_card(&in_flight, &first_card), Err(Reason::StaleTerm));
    assert_eq!(bob.receive(&late, &new_host), Err(Reason::StaleTerm));
    let old_host = ada.send(&bob, "I am still here");
    assert_eq!(bob.receive_by_card(&old_host, &first_card), Err(Reason::StaleTerm));
    assert_eq!(bob.receive(&hello, &new_host), Err(Reason::Replay));
    let answer = bob.send(&new_host, "good to hear");
    assert_eq!(new_host.receive(&answer, &bob), Ok(("good to hear".into(), 1.0)));
    // The old host learns that its term is over from the pair's own state.
    let mut pair = new_host.pair.clone().expect("met");
    let to = card(&bob.me);
    let message = Outgoing { to: &to, kind: Kind::Text, mode: Mode::Normal, payload: b"?", now_ms: NOW_MS, expires_at_ms: 0 };
    assert_eq!(compose(&ada.me, &mut pair, message, &mut rng(1)), Err(ComposeError::Pair(PairError::Fenced(2))));
    assert_eq!(Some(pair), new_host.pair);
}

#[test]
fn a_takeover_that_lost_the_pairs_state_may_make_contact_anew() {
    let (ada, mut bob) = acquainted();
    let mut new_host = End { me: taken_over(&ada.me, 3), pair: None, rng: rng(5) };
    let hello = new_host.send(&bob, "I forgot everything but who I am");
    assert_eq!(bob.receive(&hello, &new_host), Ok(("I forgot everything but who I am".into(), 1.0)));
    let answer = bob.send(&new_host, "that is enough");
    assert_eq!(new_host.receive(&answer, &bob), Err(Reason::NoPair), "Bob's own root is unknown to the new host");
    bob.pair.as_mut().expect("met").restart_sending();
    let answer = bob.send(&new_host, "that is enough");
    assert_eq!(new_host.receive(&answer, &bob), Ok(("that is enough".into(), 1.0)));
}

#[test]
fn a_takeover_before_the_first_answer_keeps_its_contact() {
    let (mut ada, mut bob) = ends();
    drop(ada.send(&bob, "never arrives"));
    let mut new_host = End { me: taken_over(&ada.me, 4), pair: ada.pair, rng: rng(5) };
    let hello = new_host.send(&bob, "hello from the fourth");
    assert_eq!(bob.receive(&hello, &new_host), Ok(("hello from the fourth".into(), 1.0)));
}

#[test]
fn a_failed_compose_changes_nothing() {
    let (mut ada, bob) = acquainted();
    let before = ada.pair.clone();
    let pair = ada.pair.as_mut().expect("met");
    let (to, own) = (card(&bob.me), card(&ada.me));
    let eve = card(&agent("eve", 3));
    let large = vec![0; PAYLOAD_BYTES_MAX + 1];
    let outgoing = |to, payload| Outgoing { to, kind: Kind::Text, mode: Mode::Normal, payload, now_ms: NOW_MS, expires_at_ms: 0 };
    assert_eq!(compose(&ada.me, pair, outgoing(&to, &large), &mut rng(1)), Err(ComposeError::TooLarge(large.len())));
    assert_eq!(compose(&ada.me, pair, outgoing(&own, b""), &mut rng(1)), Err(ComposeError::ToSelf));
    assert_eq!(compose(&ada.me, pair, outgoing(&eve, b""), &mut rng(1)), Err(ComposeError::Pair(PairError::Foreign)));
    assert_eq!(ada.pair, before);
}

#[test]
fn payloads_of_any_permitted_size_fit() {
    let (mut ada, mut bob) = ends();
    for len in [0, 1, 63, 64, 65, 8191, 8192, 32_728, PAYLOAD_BYTES_MAX] {
        let text = "x".repeat(len);
        let bytes = ada.send(&bob, &text);
        assert!(bytes.len() <= ENVELOPE_BYTES_MAX);
        assert!((len + envelope(&bytes).header.padding.len()).is_multiple_of(PADDING_STEP_BYTES));
        assert_eq!(bob.receive(&bytes, &ada).map(|(text, _)| text.len()), Ok(len));
    }
}

#[test]
fn time_is_told_at_the_personalitys_precision() {
    assert_eq!((granularity_ms(0.0), granularity_ms(0.55), granularity_ms(0.999)), (1000, 20, 1));
    let (mut ada, bob) = ends();
    let sent_at_ms = envelope(&ada.send(&bob, "tick")).header.sent_at_ms;
    let step = granularity_ms(ada.me.personality().trait_value(Trait::Precision));
    assert!(sent_at_ms.is_multiple_of(step) && NOW_MS - sent_at_ms < step);
}

#[test]
fn the_payload_is_nowhere_in_the_envelope() {
    let (mut ada, bob) = ends();
    let secret = "a marker that must not be seen";
    let bytes = ada.send(&bob, secret);
    assert!(!bytes.windows(8).any(|window| secret.as_bytes().windows(8).any(|part| part == window)));
}

#[test]
fn orders_of_real_messages_look_like_chance() {
    // 10,000 genuine envelopes' worth of message keys over one header: positions of each element against the uniform law.
    let (mut ada, bob) = acquainted();
    let sample = envelope(&ada.send(&bob, "x"));
    let m = OFFERED_DEFAULT.len();
    let mut seen = vec![0_u32; m * m];
    const ORDERS: u32 = 10_000;
    let pair = ada.pair.as_mut().expect("met");
    let (to, mut rng) = (card(&bob.me), rng(1));
    for _ in 0..ORDERS {
        let key = pair.next_key(&ada.me, &to, &mut rng).expect("a key").key;
        for (place, id) in expected_order(&key, &sample.header, &sample.payload, &OFFERED_DEFAULT).iter().enumerate() {
            seen[m * OFFERED_DEFAULT.binary_search(id).expect("known") + place] += 1;
        }
    }
    let expected = f64::from(ORDERS) / m as f64;
    let chi2: f64 = seen.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    let freedom = ((m - 1) * (m - 1)) as f64;
    assert!((chi2 - freedom).abs() < 6.0 * (2.0 * freedom).sqrt(), "chi^2 {chi2} of {freedom}");
}

#[test]
fn reasons_have_distinct_stable_names() {
    let reasons = [
        Reason::Accepted,
        Reason::TooLarge,
        Reason::Malformed,
        Reason::UnknownSuite,
        Reason::BadSignature,
        Reason::UnknownSender,
        Reason::NotForUs,
        Reason::BroadcastUnverified,
        Reason::Expired,
        Reason::StaleTerm,
        Reason::UncertifiedTerm,
        Reason::TermTooFarAhead,
        Reason::CommitmentChanged,
        Reason::NoPair,
        Reason::UnknownStep,
        Reason::Replay,
        Reason::CounterTooFarAhead,
        Reason::ForeignOrder,
        Reason::KeyCompromised,
        Reason::Clone,
        Reason::Unreadable,
    ];
    let names: BTreeSet<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), reasons.len());
    assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
}

/// The first envelope of a seeded pair, byte for byte: whoever changes the format meets this test (docs/spec/envelope.md).
#[test]
fn the_format_is_pinned() {
    let (mut ada, bob) = ends();
    let to = bob.me.card(PeerKey([7; 32]), 1_000);
    let bytes = ada.write(&to, Mode::Normal, "hello");
    let digest = Digest(Sha256::digest(&bytes).into());
    insta::assert_snapshot!(
        format!("{} bytes, SHA-256 {digest}", bytes.len()),
        @"1439 bytes, SHA-256 a4b571f11934c64672db6cc5cb4c9652c64603cba19ff7f66cdd03564428d5d9"
    );
}

proptest! {
    #[test]
    fn no_bytes_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn no_mutation_of_an_envelope_panics_or_passes(at in 0_usize..2000, with in proptest::collection::vec(any::<u8>(), 1..40)) {
        let (mut ada, bob) = ends();
        let bytes = ada.send(&bob, "hello");
        let mut altered = bytes.clone();
        let at = at % altered.len();
        altered.splice(at..(at + with.len()).min(bytes.len()), with);
        prop_assume!(altered != bytes);
        prop_assert!(bob.judge(&altered, &card(&ada.me)).1.is_none());
    }
}
