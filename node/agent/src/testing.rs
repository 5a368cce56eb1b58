//! Agents for tests.

use chacha20::ChaCha20Rng;
use persona_fragments::PeerKey;
use rand_core::SeedableRng as _;

use crate::{
    card::Card,
    identity::Identity,
    order::OFFERED_DEFAULT,
    personality::{Birth, Genesis, Personality},
    secret::RootSecret,
};

/// Repeatable chance.
pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// An agent whose keys follow from `seed`.
pub(crate) fn agent(name: &str, seed: u8) -> Identity {
    born(name, seed, u64::from(seed))
}

/// Somebody with the root secret of `agent(name, seed)`, but another behaviour seed.
pub(crate) fn thief(name: &str, seed: u8) -> Identity {
    born(name, seed, 1_000 + u64::from(seed))
}

/// The same agent, run by another host in a higher term.
pub(crate) fn taken_over(agent: &Identity, term: u64) -> Identity {
    Identity::new(agent.root().clone(), agent.personality().clone(), term, agent.offered()).expect("its own personality")
}

/// The agent's card at its current term.
pub(crate) fn card(agent: &Identity) -> Card {
    agent.card(PeerKey([7; 32]), 1_000)
}

fn born(name: &str, seed: u8, chance: u64) -> Identity {
    let root = RootSecret::from_bytes([seed; 32]);
    let genesis = Genesis {
        agent: root.agent_id(),
        name: name.into(),
        role: None,
        birth: Birth { time_ms: 1_700_000_000_000, place: "Basel".into() },
        attributes: Vec::new(),
        mesh_secret: None,
    };
    let personality = Personality::birth(genesis, &mut rng(chance)).expect("within the limits");
    Identity::new(root, personality, 1, &OFFERED_DEFAULT).expect("its own personality")
}
