//! What an envelope costs: composing, and judging with and without the signature. Run with `cargo bench -p persona-agent`.

use chacha20::ChaCha20Rng;
use divan::{Bencher, black_box};
use persona_agent::{
    Birth, Card, Genesis, Identity, Kind, Mode, Outgoing, PairState, Personality, RootSecret, compose, judge, parse, receive,
};
use persona_fragments::{Ed25519Verifier, PeerKey};
use rand_core::SeedableRng as _;

fn main() {
    divan::main();
}

fn agent(seed: u8) -> Identity {
    let root = RootSecret::from_bytes([seed; 32]);
    let birth = Birth { time_ms: 0, place: String::new() };
    let genesis = Genesis { agent: root.agent_id(), name: "ada".into(), role: None, birth, attributes: Vec::new(), mesh_secret: None };
    let personality = Personality::birth(genesis, &mut ChaCha20Rng::from_seed([seed; 32])).expect("born");
    Identity::new(root, personality, 1, &persona_agent::order::OFFERED_DEFAULT).expect("its own")
}

fn outgoing<'a>(to: &'a Card, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { to, kind: Kind::Text, mode: Mode::Normal, payload, now_ms: 1, expires_at_ms: 0 }
}

/// Two agents who know each other: no first contact in their envelopes any more.
struct World {
    ada: Identity,
    ada_pair: PairState,
    bob: Identity,
    bob_pair: PairState,
}

impl World {
    fn new() -> Self {
        let (ada, bob) = (agent(1), agent(2));
        let (ada_card, bob_card) = (ada.card(PeerKey([0; 32]), 0), bob.card(PeerKey([0; 32]), 0));
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut ada_pair = PairState::new(&ada, &bob_card);
        let hello = compose(&ada, &mut ada_pair, outgoing(&bob_card, b"hello"), &mut rng).expect("composes");
        let mut bob_pair = receive(&hello, &Ed25519Verifier, &bob, None, &ada_card, 1).1.expect("accepted").pair;
        let answer = compose(&bob, &mut bob_pair, outgoing(&ada_card, b"hello"), &mut rng).expect("composes");
        let ada_pair = receive(&answer, &Ed25519Verifier, &ada, Some(&ada_pair), &bob_card, 1).1.expect("accepted").pair;
        Self { ada, ada_pair, bob, bob_pair }
    }
}

#[divan::bench(args = [64, 1024, 32 << 10])]
fn compose_payload(bencher: Bencher<'_, '_>, len: usize) {
    let World { ada, mut ada_pair, bob, .. } = World::new();
    let (to, payload, mut rng) = (bob.card(PeerKey([0; 32]), 0), vec![7; len], ChaCha20Rng::seed_from_u64(2));
    bencher.bench_local(|| compose(&ada, &mut ada_pair, outgoing(&to, black_box(&payload)), &mut rng).expect("composes"));
}

#[divan::bench(args = [64, 1024, 32 << 10])]
fn judge_after_signature(bencher: Bencher<'_, '_>, len: usize) {
    let World { ada, mut ada_pair, bob, bob_pair } = World::new();
    let (ada_card, to) = (ada.card(PeerKey([0; 32]), 0), bob.card(PeerKey([0; 32]), 0));
    let bytes = compose(&ada, &mut ada_pair, outgoing(&to, &vec![7; len]), &mut ChaCha20Rng::seed_from_u64(2)).expect("composes");
    let verified = parse(&bytes).and_then(|parsed| parsed.verify_signature(&Ed25519Verifier)).expect("genuine");
    bencher.bench_local(|| judge(black_box(&verified), &bob, Some(&bob_pair), &ada_card, 1).1.expect("accepted"));
}

#[divan::bench(args = [64, 1024, 32 << 10])]
fn receive_all(bencher: Bencher<'_, '_>, len: usize) {
    let World { ada, mut ada_pair, bob, bob_pair } = World::new();
    let (ada_card, to) = (ada.card(PeerKey([0; 32]), 0), bob.card(PeerKey([0; 32]), 0));
    let bytes = compose(&ada, &mut ada_pair, outgoing(&to, &vec![7; len]), &mut ChaCha20Rng::seed_from_u64(2)).expect("composes");
    bencher.bench_local(|| receive(black_box(&bytes), &Ed25519Verifier, &bob, Some(&bob_pair), &ada_card, 1).1.expect("accepted"));
}
