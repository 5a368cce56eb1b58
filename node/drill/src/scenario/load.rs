//! What is asked of a mesh while it is broken: documents are written at their agents' homes, and read everywhere.
//!
//! A document's version of number `i` has `i` bytes more than the smallest, so that whoever knows its length knows the number; strangers,
//! who cannot open it, know the sealed length from its manifest, which they verify. A home compares every byte.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chacha20::ChaCha8Rng;
use persona_fragments::{CertifiedHead, Ed25519Verifier};
use rand_core::{Rng, SeedableRng};
use serde_json::Value;

use super::field::{ANSWER_PATIENCE, Asked, Field, Phase};
use super::history::{Core, Event, Get, Micros, OldHome, Put, Seen};
use crate::api::{ApiError, from_base64, number, path_segment, query};

/// How many read at the same time.
pub(super) const READERS: usize = 4;
/// How long until what failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A failing read is repeated this often at most: a minute, longer than any promise.
const TRIES_MAX: usize = 120;
/// Of so many reads one is of a core.
const CORE_READS: u64 = 16;

/// Writes one document until the storm is over.
pub(super) async fn write(field: Arc<Field>, document: usize) {
    let mut rng = rng(&field, 1 + document as u64);
    while field.phase() == Phase::Storm {
        field.wait(around(&mut rng, field.scenario.load.put_every.0)).await;
        while field.phase() == Phase::Storm && put(&field, document).await == Some(false) {
            field.wait(AGAIN_AFTER).await;
        }
    }
}

/// Reads this and that until the storm is over.
pub(super) async fn read(field: Arc<Field>, which: usize) {
    let mut rng = rng(&field, 1_000 + which as u64);
    while field.phase() == Phase::Storm {
        field.wait(around(&mut rng, field.scenario.load.get_every.0 * READERS as u32)).await;
        let (document, agent) = {
            let state = field.state();
            (rng.next_u64() as usize % state.documents.len(), rng.next_u64() as usize % state.agents.len())
        };
        if rng.next_u64().is_multiple_of(CORE_READS) {
            core(&field, agent).await;
            continue;
        }
        let up = field.up();
        if up.is_empty() {
            continue;
        }
        let node = up[rng.next_u64() as usize % up.len()];
        let how = rng.next_u64();
        for _ in 0..TRIES_MAX {
            if field.phase() != Phase::Storm || get(&field, document, node, how, false).await != Some(false) {
                break;
            }
            field.wait(AGAIN_AFTER).await;
        }
    }
}

/// Puts the next version of a document; whether it was acknowledged, or nothing if its home is not up, or failed and was not sound.
pub(super) async fn put(field: &Field, document: usize) -> Option<bool> {
    let (agent, path) = {
        let state = field.state();
        let at = &state.documents[document];
        (at.agent, state.agents[at.agent].agent.path(&format!("/sections/{}{}", path_segment(&at.name), query(&[("class", at.class)]))))
    };
    let home = field.ask_home(agent)?;
    let (content, version) = {
        let mut state = field.state();
        let at = &mut state.documents[document];
        let version = at.next;
        at.next += 1;
        (content(&at.name, version, field.scenario.load.bytes), version)
    };
    let begin = field.now();
    // In the history from its beginning: from now on somebody may read it.
    let begun = Put {
        document,
        number: version,
        node: home.reader.node,
        begin,
        end: Micros::MAX,
        acked: false,
        fresh_from: Micros::MAX,
        sound: false,
        why: None,
    };
    let at = field.record(Event::Put(begun.clone()));
    // Not given up early: a paused home would carry it out later, after the next one, and who could say then which is the newest?
    let answer = home.api.put_bytes(&path, content).await.map_err(|error| error.to_string());
    let end = field.now();
    let acked = answer.is_ok();
    let stale_ms = answer.as_ref().ok().and_then(|answer| answer["stale_until_ms"].as_u64());
    let (fresh_from, sound) = (end + stale_ms.map_or(0, micros_until), field.stayed_sound(&home));
    field.state().events[at] = Event::Put(Put { end, acked, fresh_from, sound, why: answer.err(), ..begun });
    (acked || sound).then_some(acked)
}

/// Reads a document at a node; whether something was read, or nothing if the node is not up, or failed and was not sound.
pub(super) async fn get(field: &Field, document: usize, node: usize, how: u64, last: bool) -> Option<bool> {
    let asked = field.ask(node)?;
    let (is_home, key, content_path) = {
        let state = field.state();
        let at = &state.documents[document];
        let agent = &state.agents[at.agent];
        (agent.home == Some(node), at.key.clone(), agent.agent.path(&format!("/sections/{}", path_segment(&at.name))))
    };
    let begin = field.now();
    let (how, outcome) = match (is_home, how % 4) {
        (true, 0) => ("atomic, at home", at_home(field, &asked, document, &format!("{content_path}?mode=atomic")).await),
        (true, _) => ("regular, at home", at_home(field, &asked, document, &format!("{content_path}?mode=regular")).await),
        (false, 0) => ("regular, decoded", decoded(field, &asked, document, &key).await),
        (false, _) => ("regular, certificate", certificate(field, &asked, document, &key).await),
    };
    let end = field.now();
    let read = !matches!(outcome, Seen::Failed(_));
    let sound = field.stayed_sound(&asked);
    field.record(Event::Get(Get { document, reader: asked.reader, how, begin, end, sound, last, outcome }));
    (read || sound).then_some(read)
}

/// Reads a core at its home, if that can be asked.
pub(super) async fn core(field: &Field, agent: usize) -> Option<bool> {
    let home = field.ask_home(agent)?;
    let path = field.state().agents[agent].agent.path("/personality?mode=regular");
    let answer = answered(home.api.get(&path)).await;
    let Ok(answer) = answer else { return Some(false) };
    let end = field.now();
    let mut state = field.state();
    let born = &state.agents[agent].agent;
    let core = Core { agent: born.name.clone(), node: home.reader.node, end, as_born: born.is_as_born(&answer).unwrap_or(false) };
    state.events.push(Event::Core(core));
    Some(true)
}

/// Asks the node where an agent was at home before to write one of its documents, which it must refuse.
pub(super) async fn write_at_old_home(field: &Field, agent: usize, node: usize) {
    let Some(asked) = field.ask(node) else { return };
    let (name, path) = {
        let state = field.state();
        let Some(at) = state.documents.iter().find(|document| document.agent == agent) else { return };
        let who = &state.agents[agent].agent;
        (who.name.clone(), who.path(&format!("/sections/{}{}", path_segment(&at.name), query(&[("class", at.class)]))))
    };
    // Of a length that no version has: whoever reads it reads what nobody wrote.
    let answer = answered(asked.api.put_bytes(&path, vec![b'!'; 7])).await;
    let (acked, said) = (answer.is_ok(), answer.map_or_else(|error| error, |answer| answer.to_string()));
    field.record(Event::OldHome(OldHome { agent: name, node, end: field.now(), acked, said }));
}

async fn at_home(field: &Field, asked: &Asked, document: usize, path: &str) -> Seen {
    let bytes = match answered(asked.api.get(path)).await {
        Ok(answer) => from_base64(&answer, "/content"),
        Err(error) => return Seen::Failed(error),
    };
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => return Seen::Wrong(error.to_string()),
    };
    let least = field.scenario.load.bytes;
    let state = field.state();
    match (bytes.len() as u64).checked_sub(least as u64) {
        Some(version) if bytes == content(&state.documents[document].name, version, least) => Seen::Number(version),
        _ => Seen::Wrong(format!("{} bytes that are no version", bytes.len())),
    }
}

async fn decoded(field: &Field, asked: &Asked, document: usize, key: &str) -> Seen {
    match answered(asked.api.get(&format!("/v1/analyze{}", query(&[("key", key), ("mode", "regular")])))).await {
        Ok(answer) => {
            number(&answer, "/content_len").map_or_else(|error| Seen::Wrong(error.to_string()), |len| by_length(field, document, len))
        }
        Err(error) => Seen::Failed(error),
    }
}

async fn certificate(field: &Field, asked: &Asked, document: usize, key: &str) -> Seen {
    let bytes = match answered(asked.api.get(&format!("/v1/certificate{}", query(&[("key", key)])))).await {
        Ok(answer) => from_base64(&answer, "/certificate"),
        Err(error) => return Seen::Failed(error),
    };
    let head = bytes.map_err(|error| error.to_string());
    let head = head.and_then(|bytes| CertifiedHead::from_bytes(&bytes, &Ed25519Verifier).map_err(|error| error.to_string()));
    match head {
        Ok(head) if head.manifest.key.to_kad_key() == key => by_length(field, document, u64::from(head.manifest.content_len)),
        Ok(_) => Seen::Wrong("the certificate of another section".to_owned()),
        Err(error) => Seen::Wrong(format!("no certificate: {error}")),
    }
}

fn by_length(field: &Field, document: usize, sealed: u64) -> Seen {
    let seal = field.state().documents[document].seal_bytes;
    let version = sealed.checked_sub(seal + field.scenario.load.bytes as u64);
    version.map_or_else(|| Seen::Wrong(format!("{sealed} sealed bytes that are no version")), Seen::Number)
}

/// What a document's version of this number is.
pub(super) fn content(name: &str, version: u64, least: usize) -> Vec<u8> {
    let length = least + usize::try_from(version).unwrap_or(usize::MAX);
    format!("{name} {version}\n").bytes().cycle().take(length).collect()
}

/// An answer in time, or what was said instead.
pub(super) async fn answered(asking: impl Future<Output = Result<Value, ApiError>>) -> Result<Value, String> {
    match tokio::time::timeout(ANSWER_PATIENCE, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_PATIENCE.as_secs())),
    }
}

fn micros_until(wall_ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(wall_ms).saturating_sub(now).as_micros() as u64
}

fn rng(field: &Field, stream: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(field.scenario.seed ^ stream << 32)
}

fn around(rng: &mut ChaCha8Rng, mean: Duration) -> Duration {
    mean.mul_f64(0.25 + 1.5 * f64::from(rng.next_u32()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_its_own_length_and_bytes() {
        let one = content("doc/a", 1, 600);
        assert_eq!(one.len(), 601);
        assert!(one.starts_with(b"doc/a 1\ndoc/a 1\n"));
        assert_ne!(content("doc/a", 2, 600)[..600], one[..600]);
        assert_ne!(content("doc/b", 1, 600), one);
    }
}
