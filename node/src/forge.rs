//! The impostor of the demo: he has the signing key, and not the personality.
//!
//! A drill judges nodes from outside and shares no code with them, so the one thing that needs the agent's own code is made here: an
//! envelope that is rightly signed and numbered, with an order and a tag that come from another behaviour seed than the agent's own.

use anyhow::{Context as _, anyhow, bail};
use data_encoding::BASE64;
use persona_agent::{
    Birth, Card, Genesis, Identity, Kind, Mode, Outgoing, PairState, Personality, RecoveryFile, compose, order::OFFERED_DEFAULT, parse,
};
use persona_drill::demo::ForgeInput;
use persona_fragments::Ed25519Verifier;

use crate::{
    clock,
    keystore::{Cost, Passphrase, derive_key},
    random::OsRandom,
};

/// The most envelopes that an impostor writes to reach the counter that he wants.
const COUNTER_MAX: u64 = 4096;

/// An impostor's envelope.
pub(crate) fn forge(input: &ForgeInput<'_>) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(input.recovery).context("the recovery file is not text")?;
    let file = RecoveryFile::decode(text)?;
    let kdf = file.kdf();
    let key = derive_key(&Passphrase::new(input.passphrase.to_owned()), &kdf.salt, Cost::new(kdf.m_kib, kdf.t, kdf.p)?)?;
    let stolen = file.open(&key)?;
    let bytes = BASE64
        .decode(input.recipient_card["bytes"].as_str().unwrap_or_default().as_bytes())
        .context("the recipient's card is not base64")?;
    let recipient = Card::from_bytes(&bytes, &Ed25519Verifier)?;
    let now_ms = clock::now().wall_ms;
    // The same name and key, born again: everything but the behaviour seed is right.
    let genesis = Genesis {
        agent: stolen.agent,
        name: stolen.name.clone(),
        role: None,
        birth: Birth { time_ms: now_ms, place: String::new() },
        attributes: Vec::new(),
        mesh_secret: None,
    };
    let personality = Personality::birth(genesis, &mut OsRandom)?;
    let identity = Identity::new(stolen.root, personality, input.term, &OFFERED_DEFAULT)?;
    let mut pair = PairState::new(&identity, &recipient);
    if input.counter > COUNTER_MAX {
        bail!("an impostor who must count to {} gives up", input.counter);
    }
    for _ in 0..=input.counter {
        let message = Outgoing {
            to: &recipient,
            kind: Kind::Text,
            mode: Mode::Normal,
            payload: input.text.as_bytes(),
            now_ms,
            expires_at_ms: now_ms + 600_000,
        };
        let envelope = compose(&identity, &mut pair, message, &mut OsRandom)?;
        if parse(&envelope)?.envelope().header.counter >= input.counter {
            return Ok(envelope);
        }
    }
    Err(anyhow!("the counter {} was not reached", input.counter))
}
