//! Agents as a drill sees them: born, talking, read, waited for and imported, all through the control API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::api::{self, Api, ApiError, from_base64, list, number, path_segment, text};
use crate::error::DrillError;
use crate::mesh::{Mesh, indices};
use crate::process::until;
use crate::victims::{self, Choice, Placement};

/// How long anything may take that has no promise of its own: two busy cores may carry a whole mesh.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long an agent's sections must look the same before they count as settled. A changed section is put within 1 s.
const SETTLED_FOR: Duration = Duration::from_millis(1200);

/// An agent and what was born.
#[derive(Default)]
pub struct Agent {
    /// What it is called on its node.
    pub name: String,
    /// Its `did:key`.
    pub id: String,
    /// The index of its node in the mesh; after an import whoever imported it sets the new one.
    pub home: usize,
    /// The personality's canonical document as it was right after birth.
    pub document: String,
    /// The user's own text as it was given.
    pub attributes: String,
    /// The recovery file that its birth handed out.
    pub recovery: Vec<u8>,
}

/// One section as its owner's node lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its name: `core`, `relationship/did:key:...`.
    pub name: String,
    /// Its class.
    pub class: String,
    /// Its version, in whatever form the API shows it: good for "the same as before" only.
    pub version: Value,
    /// Holders of its shape.
    pub n: u64,
    /// Shards that reconstruct it.
    pub k: u64,
    /// Holders that may be lost or lie with fresh reads still promised.
    pub f: u64,
    /// The level that is reached now.
    pub level: u64,
    /// Shards that are durable now.
    pub placed: u64,
    /// Peer ids of the holders, in the order of their shards.
    pub holders: Vec<Value>,
    /// `committed`, `pending` or `stale`.
    pub state: String,
}

/// What ties an agent to one partner, as far as bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bond {
    /// The hash chain's head.
    pub head: String,
    /// The log's length.
    pub entries: u64,
    /// A hash of all of it.
    pub bytes_sha256: String,
}

impl Agent {
    /// Gives birth to an agent on node `home` and reads what was born; answers the agent and what the API said.
    ///
    /// # Errors
    /// The node refuses, or what it reads back at once is not what it was given.
    pub async fn born(mesh: &Mesh, home: usize, name: &str, role: &str, attributes: &str) -> Result<(Self, Value)> {
        let body = json!({"name": name, "role": role, "attributes": attributes, "place": "a drill"});
        let birth = mesh.node(home).api()?.post("/v1/agents", &body).await.with_context(|| format!("{name} could not be born"))?;
        let (id, recovery) = (text(&birth, "/agent")?.to_owned(), from_base64(&birth, "/recovery")?);
        let mut agent = Self { name: name.to_owned(), id, home, document: String::new(), attributes: attributes.to_owned(), recovery };
        let born = agent.personality(mesh, "regular").await?;
        agent.document = text(&born, "/document")?.to_owned();
        ensure!(!agent.document.is_empty(), "{name} was born with an empty personality");
        ensure!(text(&born, "/attributes")? == attributes, "{name} was born with other attributes than were given");
        Ok((agent, birth))
    }

    /// The API of the node where the agent lives.
    ///
    /// # Errors
    /// That node is not up.
    pub fn api<'m>(&self, mesh: &'m Mesh) -> Result<&'m Api, DrillError> {
        mesh.node(self.home).api()
    }

    /// The agent's own path in the API: `/v1/agents/ID` and `rest`.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/agents/{}{rest}", path_segment(&self.id))
    }

    /// Sends a message and answers its record, without waiting for anything.
    ///
    /// # Errors
    /// The node refuses.
    pub async fn send(&self, mesh: &Mesh, to: &Self, words: &str) -> Result<Value> {
        let sent = self.api(mesh)?.post(&self.path("/send"), &json!({"to": to.id, "text": words})).await;
        sent.with_context(|| format!("{} could not send to {}", self.name, to.name))
    }

    /// Sends a message and waits until its recipient has it, verified and accepted. Answers what `send` answered.
    ///
    /// # Errors
    /// It did not arrive, or not as the sender's.
    pub async fn say(&self, mesh: &Mesh, to: &Self, words: &str) -> Result<Value> {
        let sent = self.send(mesh, to, words).await?;
        let message = to.find_in_inbox(mesh, words, PATIENCE).await?;
        let message = message.with_context(|| format!("{}'s message did not reach {}: \"{words}\"", self.name, to.name))?;
        ensure!(text(&message, "/from")? == self.id, "{} got {}'s words from somebody else", to.name, self.name);
        ensure!(api::flag(&message, "/verdict/accepted")?, "{} was handed a message that was not accepted", to.name);
        Ok(sent)
    }

    /// Reads the inbox from its beginning until `words` are there or `patience` ends.
    ///
    /// # Errors
    /// The node refuses or breaks the contract.
    pub async fn find_in_inbox(&self, mesh: &Mesh, words: &str, patience: Duration) -> Result<Option<Value>> {
        let (started, mut after) = (Instant::now(), 0);
        loop {
            let wait = patience.saturating_sub(started.elapsed()).as_secs().min(2);
            let inbox = self.api(mesh)?.get(&self.path(&format!("/inbox?after={after}&wait_s={wait}"))).await?;
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

    /// Waits until no message waits for its acknowledgement.
    ///
    /// # Errors
    /// One still does after [`PATIENCE`].
    pub async fn quiet(&self, mesh: &Mesh) -> Result<()> {
        let (api, what) = (self.api(mesh)?, format!("{}'s messages to be acknowledged", self.name));
        Ok(until(&what, PATIENCE, async || Ok((!self.waits(api).await?).then_some(()))).await?)
    }

    async fn waits(&self, api: &Api) -> Result<bool, ApiError> {
        let outbox = api.get(&self.path("/outbox")).await?;
        Ok(list(&outbox, "/messages")?.iter().any(|message| message["state"] == "waiting"))
    }

    /// Waits until nothing of the agent is on its way any more: all messages acknowledged, `partners` relationships there, every section
    /// committed on all of its holders, and all that unchanged for a while. Answers the relationships.
    ///
    /// # Errors
    /// Something still moves after [`PATIENCE`]; the error shows the sections.
    pub async fn settle(&self, mesh: &Mesh, partners: usize) -> Result<BTreeMap<String, Bond>> {
        let mut steady: Option<(Instant, Vec<Section>, BTreeMap<String, Bond>)> = None;
        let (api, what) = (self.api(mesh)?, format!("{} to settle", self.name));
        let mut seen = Vec::new();
        let settled = until(&what, PATIENCE, async || {
            let waiting = self.waits(api).await?;
            let (now, bonds) = (self.sections(mesh).await?, self.bonds(mesh).await?);
            seen.clone_from(&now);
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
        let settled = settled.await;
        settled.with_context(|| format!("{} did not settle; its sections: {seen:?}", self.name))
    }

    /// The agent's sections, but for what it is doing right now, which comes and goes.
    ///
    /// # Errors
    /// The node refuses or breaks the contract.
    pub async fn sections(&self, mesh: &Mesh) -> Result<Vec<Section>, DrillError> {
        let agent = self.api(mesh)?.get(&self.path("")).await?;
        let all: Result<Vec<Section>, ApiError> = list(&agent, "/sections")?.iter().map(Section::read).collect();
        Ok(all?.into_iter().filter(|section| section.class != "active").collect())
    }

    /// Waits until nothing is missing any more of what the agent's import had to go without.
    ///
    /// # Errors
    /// Something still is after [`PATIENCE`].
    pub async fn whole(&self, mesh: &Mesh) -> Result<()> {
        let (api, what) = (self.api(mesh)?, format!("{}'s missing sections to be found again", self.name));
        let whole = until(&what, PATIENCE, async || {
            let agent = api.get(&self.path("")).await?;
            Ok(list(&agent, "/missing")?.is_empty().then_some(()))
        });
        Ok(whole.await?)
    }

    /// The agent's relationships by its partners' ids.
    ///
    /// # Errors
    /// The node refuses or breaks the contract.
    pub async fn bonds(&self, mesh: &Mesh) -> Result<BTreeMap<String, Bond>, DrillError> {
        let answer = self.api(mesh)?.get(&self.path("/relationships")).await?;
        let read = |bond: &Value| {
            let partner = text(bond, "/partner")?.to_owned();
            let (head, bytes_sha256) = (text(bond, "/head")?.to_owned(), text(bond, "/bytes_sha256")?.to_owned());
            Ok((partner, Bond { head, entries: number(bond, "/entries")?, bytes_sha256 }))
        };
        Ok(list(&answer, "/relationships")?.iter().map(read).collect::<Result<_, ApiError>>()?)
    }

    /// The agent's public card, as `stranger` sees it: the API of a node that does not hold the agent's keys.
    ///
    /// # Errors
    /// The node does not answer as one that is not the owner, or shows no card.
    pub async fn public_card(&self, stranger: &Api) -> Result<Value> {
        match stranger.get(&self.path("/personality?mode=regular")).await {
            Err(ApiError::Problem(problem)) if problem.title == "not-the-owner" && problem.data["card"].is_object() => {
                Ok(problem.data["card"].clone())
            }
            Err(error) => Err(error).with_context(|| format!("{}'s card is not shown", self.name)),
            Ok(_) => anyhow::bail!("a stranger's node shows the personality of {}", self.name),
        }
    }

    /// The personality, read in `mode` where the agent lives.
    ///
    /// # Errors
    /// The node refuses: what is missing stands in the problem.
    pub async fn personality(&self, mesh: &Mesh, mode: &str) -> Result<Value, DrillError> {
        Ok(self.api(mesh)?.get(&self.path(&format!("/personality?mode={mode}"))).await?)
    }

    /// Whether a personality that was read is byte for byte what was born, the user's own text included.
    ///
    /// # Errors
    /// The answer breaks the contract.
    pub fn is_as_born(&self, read: &Value) -> Result<bool, ApiError> {
        Ok(text(read, "/document")? == self.document && text(read, "/attributes")? == self.attributes)
    }

    /// Where the verdicts of the agent's node stand: everything judged later comes after it.
    ///
    /// # Errors
    /// The node refuses or breaks the contract.
    pub async fn verdict_cursor(&self, mesh: &Mesh) -> Result<u64, DrillError> {
        Ok(number(&self.api(mesh)?.get("/v1/verdicts?after=0&wait_s=0").await?, "/next")?)
    }

    /// Waits for a verdict of the agent's node after `cursor`, [`PATIENCE`] long.
    ///
    /// # Errors
    /// The node refuses or breaks the contract.
    pub async fn find_verdict(&self, mesh: &Mesh, cursor: u64, wanted: impl Fn(&Value) -> bool) -> Result<Option<Value>> {
        let (started, mut after) = (Instant::now(), cursor);
        loop {
            let verdicts = self.api(mesh)?.get(&format!("/v1/verdicts?after={after}&wait_s=2")).await?;
            if let Some(verdict) = list(&verdicts, "/verdicts")?.iter().find(|verdict| wanted(verdict)) {
                return Ok(Some(verdict.clone()));
            }
            if started.elapsed() > PATIENCE {
                return Ok(None);
            }
            after = number(&verdicts, "/next")?;
        }
    }

    /// Chooses the agent's host and `kill - 1` of its core holders as victims, so that no section of class relationship loses more than it
    /// tolerates and the partners' homes live, as far as that is possible (see [`victims::choose`]).
    ///
    /// # Errors
    /// There are too few core holders, or the host is one of them, which it must never be.
    pub async fn choose_victims(&self, mesh: &Mesh, partners: &[Self], kill: usize) -> Result<Choice> {
        let peers = mesh.peer_ids();
        let own = self.sections(mesh).await?;
        let mut placements = self.placements(&peers, &own, self);
        for partner in partners {
            placements.extend(partner.placements(&peers, &partner.sections(mesh).await?, self));
        }
        let core = own.iter().find(|section| section.name == "core");
        let core = core.with_context(|| format!("{}'s node lists no core section", self.name))?;
        let holders = indices(&peers, &core.holders);
        ensure!(
            !holders.contains(&self.home),
            "{}'s own node holds a shard of its core: a host is never its own agent's holder",
            self.name
        );
        let homes: BTreeSet<usize> = partners.iter().map(|partner| partner.home).collect();
        let found = victims::choose(self.home, &holders, kill, &homes, &placements);
        found.with_context(|| format!("core has {} holders, so {kill} cannot be killed", holders.len()))
    }

    /// What of this agent matters when the host of `dying` is killed: its relationships, and a partner's card.
    fn placements(&self, peers: &[Option<String>], sections: &[Section], dying: &Self) -> Vec<Placement> {
        let own = self.id == dying.id;
        let of_pairs = sections.iter().filter(|section| section.class == "relationship" || !own && section.name == "card");
        let placement = |section: &Section| Placement {
            section: format!("{}/{}", self.name, section.name.split('/').next().unwrap_or_default()),
            vital: own || section.name == "card",
            holders: indices(peers, &section.holders).into_iter().collect(),
            tolerated: usize::try_from(section.f).unwrap_or(usize::MAX),
            rebuildable: usize::try_from(section.n.saturating_sub(section.k)).unwrap_or(usize::MAX),
        };
        of_pairs.map(placement).collect()
    }
}

impl Section {
    fn read(section: &Value) -> Result<Self, ApiError> {
        Ok(Self {
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
    }
}

/// Imports an agent from its recovery file alone. The problem of a refusal stays readable: see [`ApiError::problem`].
///
/// # Errors
/// The node refuses; nothing has changed then.
pub async fn import(api: &Api, recovery: &[u8], passphrase: &str, name: &str) -> Result<Value, ApiError> {
    api.post("/v1/agents/import", &json!({"recovery": api::to_base64(recovery), "passphrase": passphrase, "name": name})).await
}
