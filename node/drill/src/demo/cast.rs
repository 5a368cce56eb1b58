//! The demo's agents: how they are born, talk, are read and are waited for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{PASSPHRASE, PATIENCE};
use crate::api::{self, Api, ApiError, list, number, path_segment, text};
use crate::error::DrillError;
use crate::mesh::Mesh;
use crate::process::until;

/// How long an agent's sections must look the same before they count as settled. A changed section is put within 1 s.
const SETTLED_FOR: Duration = Duration::from_millis(1200);

/// Someone in the story.
pub(super) struct Person {
    pub(super) name: &'static str,
    pub(super) id: String,
    pub(super) home: usize,
    /// The personality's canonical document, as it was right after birth.
    pub(super) document: String,
    /// The user's own text, as it was given.
    pub(super) attributes: String,
}

/// One section as its owner's node lists it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) class: String,
    pub(super) version: Value,
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) f: u64,
    pub(super) level: u64,
    pub(super) placed: u64,
    pub(super) holders: Vec<Value>,
    pub(super) state: String,
}

/// What ties an agent to one partner, as far as bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bond {
    pub(super) head: String,
    pub(super) entries: u64,
    pub(super) bytes_sha256: String,
}

/// Gives birth to an agent on node `home` and reads what was born.
pub(super) async fn bear(mesh: &Mesh, home: usize, name: &'static str, role: &str, attributes: &str) -> Result<(Person, Value)> {
    let api = mesh.node(home).api()?;
    let body = json!({"name": name, "role": role, "attributes": attributes, "place": "a demonstration"});
    let birth = api.post("/v1/agents", &body).await.with_context(|| format!("{name} could not be born"))?;
    let mut person =
        Person { name, id: text(&birth, "/agent")?.to_owned(), home, document: String::new(), attributes: attributes.to_owned() };
    let born = personality(api, &person, "regular").await?;
    person.document = text(&born, "/document")?.to_owned();
    ensure!(!person.document.is_empty(), "{name} was born with an empty personality");
    ensure!(text(&born, "/attributes")? == attributes, "{name} was born with other attributes than were given");
    Ok((person, birth))
}

/// What is said between two, by whom to whom.
pub(super) fn conversation<'p>(mira: &'p Person, partner: &'p Person) -> Vec<(&'p Person, &'p Person, &'static str)> {
    match partner.name {
        "tomas" => vec![
            (mira, partner, "Tomas, the shelves in the reading room are finished. Come and see them before the varnish is dry."),
            (partner, mira, "I will come on Thursday. Keep the offcuts, I want them for the model."),
            (mira, partner, "They are in the tea crate, where nobody looks."),
            (partner, mira, "Except you and me. Good."),
        ],
        _ => vec![
            (mira, partner, "Ines, the tide tables of 1911 have turned up. Page 40 is yours, if you still want it."),
            (partner, mira, "I do. The harbour master owes me an apology since page 39."),
        ],
    }
}

/// Sends a message and waits until its recipient has it, verified and accepted.
pub(super) async fn say(mesh: &Mesh, from: &Person, to: &Person, words: &str) -> Result<Value> {
    let path = format!("/v1/agents/{}/send", path_segment(&from.id));
    let sent = home_api(mesh, from)?.post(&path, &json!({"to": to.id, "text": words})).await;
    let sent = sent.with_context(|| format!("{} could not send to {}", from.name, to.name))?;
    let message = find_in_inbox(home_api(mesh, to)?, to, words, PATIENCE).await?;
    let message = message.with_context(|| format!("{}'s message did not reach {}: \"{words}\"", from.name, to.name))?;
    ensure!(text(&message, "/from")? == from.id, "{} got {}'s words from somebody else", to.name, from.name);
    ensure!(api::flag(&message, "/verdict/accepted")?, "{} was handed a message that was not accepted", to.name);
    Ok(sent)
}

/// Reads an inbox from its beginning until `words` are there or `patience` ends.
pub(super) async fn find_in_inbox(api: &Api, owner: &Person, words: &str, patience: Duration) -> Result<Option<Value>> {
    let (started, mut after) = (Instant::now(), 0);
    loop {
        let wait = patience.saturating_sub(started.elapsed()).as_secs().min(2);
        let path = format!("/v1/agents/{}/inbox?after={after}&wait_s={wait}", path_segment(&owner.id));
        let inbox = api.get(&path).await?;
        for message in list(&inbox, "/messages")? {
            if text(message, "/text")? == words {
                return Ok(Some(message.clone()));
            }
        }
        let next = number(&inbox, "/next")?;
        if started.elapsed() > patience && next == after {
            return Ok(None);
        }
        after = next;
    }
}

/// Waits until nothing of an agent is on its way any more: all messages acknowledged, `partners` relationships there, every section committed
/// on all of its holders, and all that unchanged for a while.
pub(super) async fn settle(mesh: &Mesh, person: &Person, partners: usize) -> Result<BTreeMap<String, Bond>> {
    let api = home_api(mesh, person)?;
    let mut steady: Option<(Instant, Vec<Section>, BTreeMap<String, Bond>)> = None;
    let what = format!("{} to settle", person.name);
    let settled = until(&what, PATIENCE, async || {
        let outbox = api.get(&format!("/v1/agents/{}/outbox", path_segment(&person.id))).await?;
        let waiting = list(&outbox, "/messages")?.iter().any(|message| message["state"] == "waiting");
        let now = sections(api, person).await?;
        let bonds = bonds(api, person).await?;
        let placed = now.iter().all(|section| section.state == "committed" && section.placed == section.n);
        if waiting || bonds.len() < partners || !placed {
            steady = None;
            return Ok(None);
        }
        match &steady {
            Some((since, sections, bonds_then)) if *sections == now && *bonds_then == bonds => {
                Ok((since.elapsed() >= SETTLED_FOR).then(|| bonds.clone()))
            }
            _ => {
                steady = Some((Instant::now(), now, bonds));
                Ok(None)
            }
        }
    });
    Ok(settled.await?)
}

/// Waits until no message of an agent waits for its acknowledgement.
pub(super) async fn quiet(mesh: &Mesh, person: &Person) -> Result<()> {
    let api = home_api(mesh, person)?;
    let path = format!("/v1/agents/{}/outbox", path_segment(&person.id));
    let what = format!("{}'s messages to be acknowledged", person.name);
    let acknowledged = until(&what, PATIENCE, async || {
        let outbox = api.get(&path).await?;
        Ok(list(&outbox, "/messages")?.iter().all(|message| message["state"] != "waiting").then_some(()))
    });
    Ok(acknowledged.await?)
}

/// The agent's sections, but for what it is doing right now, which comes and goes.
pub(super) async fn sections(api: &Api, person: &Person) -> Result<Vec<Section>, ApiError> {
    let agent = api.get(&format!("/v1/agents/{}", path_segment(&person.id))).await?;
    let read = |section: &Value| {
        Ok(Section {
            name: text(section, "/name")?.to_owned(),
            class: text(section, "/class")?.to_owned(),
            version: section.get("version").cloned().unwrap_or(Value::Null),
            n: number(section, "/n")?,
            k: number(section, "/k")?,
            f: number(section, "/f")?,
            level: number(section, "/level")?,
            placed: number(section, "/placed")?,
            holders: list(section, "/holders")?.to_vec(),
            state: text(section, "/state")?.to_owned(),
        })
    };
    let all: Result<Vec<Section>, ApiError> = list(&agent, "/sections")?.iter().map(read).collect();
    Ok(all?.into_iter().filter(|section| section.class != "active").collect())
}

/// The agent's relationships by partner.
pub(super) async fn bonds(api: &Api, person: &Person) -> Result<BTreeMap<String, Bond>, ApiError> {
    let answer = api.get(&format!("/v1/agents/{}/relationships", path_segment(&person.id))).await?;
    let read = |bond: &Value| {
        let partner = text(bond, "/partner")?.to_owned();
        let (head, bytes_sha256) = (text(bond, "/head")?.to_owned(), text(bond, "/bytes_sha256")?.to_owned());
        Ok((partner, Bond { head, entries: number(bond, "/entries")?, bytes_sha256 }))
    };
    list(&answer, "/relationships")?.iter().map(read).collect()
}

/// Whether the pair's chain and log are there at all on the moved agent's node.
pub(super) async fn bond_came_back(api: &Api, mira: &Person, partner: &Person) -> Result<bool> {
    let has_bond = bonds(api, mira).await?.contains_key(&partner.id);
    let has_keys = sections(api, mira).await?.iter().any(|section| section.name == format!("keys/{}", partner.id));
    Ok(has_bond && has_keys)
}

pub(super) async fn personality(api: &Api, person: &Person, mode: &str) -> Result<Value, ApiError> {
    api.get(&format!("/v1/agents/{}/personality?mode={mode}", path_segment(&person.id))).await
}

pub(super) fn same_personality(read: &Value, person: &Person) -> Result<bool, ApiError> {
    Ok(text(read, "/document")? == person.document && text(read, "/attributes")? == person.attributes)
}

pub(super) async fn import(api: &Api, recovery: &[u8]) -> Result<Value, ApiError> {
    let body = json!({"recovery": api::to_base64(recovery), "passphrase": PASSPHRASE, "name": "mira"});
    api.post("/v1/agents/import", &body).await
}

pub(super) fn home_api<'m>(mesh: &'m Mesh, person: &Person) -> Result<&'m Api, DrillError> {
    mesh.node(person.home).api()
}

/// The PUT of one section in the answer to a birth.
pub(super) fn put_of<'v>(birth: &'v Value, name: &str) -> Result<&'v Value> {
    let puts = list(birth, "/sections")?;
    puts.iter().find(|put| put["section"] == name).with_context(|| format!("the birth put no section {name}"))
}

/// Waits for a verdict after `cursor`.
pub(super) async fn find_verdict(api: &Api, cursor: u64, wanted: impl Fn(&Value) -> bool) -> Result<Option<Value>> {
    let (started, mut after) = (Instant::now(), cursor);
    loop {
        let verdicts = api.get(&format!("/v1/verdicts?after={after}&wait_s=2")).await?;
        if let Some(verdict) = list(&verdicts, "/verdicts")?.iter().find(|verdict| wanted(verdict)) {
            return Ok(Some(verdict.clone()));
        }
        if started.elapsed() > PATIENCE {
            return Ok(None);
        }
        after = number(&verdicts, "/next")?;
    }
}
