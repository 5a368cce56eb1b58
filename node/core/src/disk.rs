//! What the node itself keeps on its disk, beside what it holds for others (docs/spec/store.md#own).
//!
//! Sections are kept as sealed bytes. What changes with every message (chains, logs, the inbox) is kept in rows sealed under the agent's
//! local key and bound to their place: a row moved elsewhere does not open.

use std::collections::{BTreeMap, BTreeSet};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use persona_agent::{Commitment, PairState, Relationship, RootSecret};
use persona_fragments::{Fields, OwnerKey, SectionKey, Verifier, manifest::ManifestWire, wire};
use persona_mesh_proto::Table;
use rand_core::CryptoRng;

use crate::{
    call::Call,
    node::Node,
    own::{Agent, OwnRecord},
};

const ROW_LABEL: &[u8] = b"persona/row/v1";

/// The rows of one owner, as they were loaded.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) own: BTreeMap<SectionKey, OwnRecord>,
    pub(crate) intents: BTreeMap<SectionKey, ManifestWire>,
    pub(crate) local: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) inbox: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) outbox: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Rows {
    /// The agents that rows of chains and logs are about.
    pub(crate) fn partners(&self) -> impl Iterator<Item = OwnerKey> {
        self.local.iter().filter_map(|(place, _)| partner_of(place))
    }
}

/// The partner in a key that [`partner_row`] made.
fn partner_of(place: &[u8]) -> Option<OwnerKey> {
    place.get(33..)?.try_into().ok().map(OwnerKey)
}

/// The key of a row about a partner: what, which agent, which partner.
pub(crate) fn partner_row(what: u8, agent: &OwnerKey, partner: &OwnerKey) -> Vec<u8> {
    [&[what][..], &agent.0, &partner.0].concat()
}

/// A pair's chains.
pub(crate) const ROW_PAIR: u8 = b'p';
/// A relationship's log.
pub(crate) const ROW_RELATIONSHIP: u8 = b'r';

/// Seals a row for its place: nonce, then ciphertext.
pub(crate) fn seal_row(key: &[u8; 32], table: Table, place: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRng) -> Vec<u8> {
    let mut nonce = [0; 24];
    rng.fill_bytes(&mut nonce);
    let bound = [ROW_LABEL, &[table as u8], place].concat();
    let sealed = XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(nonce), Payload { msg: plaintext, aad: &bound })
        .expect("a row is far below the cipher's limit");
    [&nonce[..], &sealed].concat()
}

/// Opens what [`seal_row`] made for this very place.
pub(crate) fn open_row(key: &[u8; 32], table: Table, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<24>()?;
    let bound = [ROW_LABEL, &[table as u8], place].concat();
    XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: &bound }).ok()
}

/// Fields as bytes, for a row.
pub(crate) fn fields_to_bytes(fields: &Fields) -> Vec<u8> {
    let list: Vec<(String, Vec<u8>)> = fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    wire::encode(&list)
}

pub(crate) fn fields_from_bytes(bytes: &[u8]) -> Option<Fields> {
    let list: Vec<(String, Vec<u8>)> = wire::decode(bytes).ok()?;
    Some(list.into_iter().fold(Fields::new(), |fields, (name, value)| fields.with(&name, value)))
}

/// An agent of which this disk has something, and the keystore nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// The agent.
    pub agent: OwnerKey,
    /// Sections of it.
    pub sections: usize,
    /// Messages that it received or was sending.
    pub messages: usize,
    /// Chains and logs that it shares with others.
    pub partners: usize,
}

impl Agent {
    /// Takes up chains and logs from their rows, which are ahead of the sections. Returns the sections that must follow.
    pub(crate) fn take_local(
        &mut self,
        key: &[u8; 32],
        id: &OwnerKey,
        rows: &Rows,
        verifier: &dyn Verifier,
    ) -> Result<Vec<String>, String> {
        let mut behind = Vec::new();
        for (place, sealed) in &rows.local {
            let Some(partner) = partner_of(place) else { continue };
            let opened =
                open_row(key, Table::Meta, place, sealed).ok_or("a row of this agent does not open: its state directory was altered")?;
            let fields = fields_from_bytes(&opened).ok_or("a row of this agent does not decode")?;
            match place[0] {
                ROW_PAIR => {
                    let pair = PairState::from_fields(&fields).map_err(|error| error.to_string())?;
                    if self.pairs.get(&partner) != Some(&pair) {
                        self.pairs.insert(partner, pair);
                        behind.push(format!("keys/{}", partner.to_did()));
                    }
                }
                ROW_RELATIONSHIP => {
                    let relationship = Relationship::from_fields(&fields, *id, verifier).map_err(|error| error.to_string())?;
                    if self.relationships.get(&partner) != Some(&relationship) {
                        self.relationships.insert(partner, relationship);
                        behind.push(format!("relationship/{}", partner.to_did()));
                    }
                }
                _ => {}
            }
        }
        Ok(behind)
    }
}

impl Node {
    /// Forgets what was loaded of agents that were neither added nor are on their way here. It stays on the disk, and
    /// [`Self::wants_rows`] says when it is needed again.
    pub fn forget_strays(&mut self) -> Vec<Stray> {
        let known = |id: &OwnerKey| *id == self.node_owner || self.pending.contains_key(id);
        let (kept, strays): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.messages.rows).into_iter().partition(|(id, _)| known(id));
        self.messages.rows = kept;
        let sections: BTreeSet<SectionKey> = self.messages.rows.values().flat_map(|rows| rows.own.keys().copied()).collect();
        self.messages.intents.retain(|key, _| sections.contains(key));
        self.messages.strays.extend(strays.keys().copied());
        let stray = |(agent, rows): (OwnerKey, Rows)| Stray {
            agent,
            sections: rows.own.len(),
            messages: rows.inbox.len() + rows.outbox.len(),
            partners: rows.partners().collect::<BTreeSet<_>>().len(),
        };
        strays.into_iter().map(stray).collect()
    }

    /// The agent whose rows must be loaded again before `call` is handled: feed every row of the disk to [`Self::load_row_of`] first.
    pub fn wants_rows(&mut self, call: &Call) -> Option<OwnerKey> {
        let Call::Import { root, .. } = call else { return None };
        let id = RootSecret::from_bytes(**root).agent_id();
        let wanted = self.messages.strays.contains(&id) && !self.owners.contains_key(&id);
        if wanted {
            self.messages.rows.remove(&id);
        }
        wanted.then_some(id)
    }

    /// Takes a row of the disk if it is one that an import of `agent` must know. What was about to be put is not: a new term begins anew.
    pub fn load_row_of(&mut self, agent: &OwnerKey, table: Table, key: &[u8], value: &[u8]) -> Result<(), String> {
        let belongs = match table {
            Table::Own => wire::decode::<OwnRecord>(value).is_ok_and(|record| record.owner == *agent),
            Table::Meta => key.get(1..33) == Some(&agent.0),
            Table::Inbox | Table::Outbox => key.get(..32) == Some(&agent.0),
            _ => false,
        };
        if belongs { self.load_own(table, key, value) } else { Ok(()) }
    }

    /// Sorts a loaded row of this node's own to its owner, until [`Node::add_agent`] asks for it.
    pub(crate) fn load_own(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), String> {
        let owner_at = |from: usize| -> Result<OwnerKey, String> {
            let bytes = key.get(from..from + 32).and_then(|bytes| bytes.try_into().ok());
            bytes.map(OwnerKey).ok_or_else(|| format!("a key of table {table:?} is too short"))
        };
        let section = || -> Result<SectionKey, String> {
            Ok(SectionKey(key.try_into().map_err(|_| format!("a key of table {table:?} has not 32 bytes"))?))
        };
        match table {
            Table::Own => {
                let record: OwnRecord = wire::decode(value).map_err(|error| format!("a section of this node does not decode: {error}"))?;
                let section = section()?;
                self.messages.rows.entry(record.owner).or_default().own.insert(section, record);
            }
            Table::Intent => {
                let intent: ManifestWire = wire::decode(value).map_err(|error| format!("an intent does not decode: {error}"))?;
                self.messages.intents.insert(section()?, intent);
            }
            Table::Meta if key.first().is_some_and(|what| [ROW_PAIR, ROW_RELATIONSHIP].contains(what)) => {
                self.messages.rows.entry(owner_at(1)?).or_default().local.push((key.to_vec(), value.to_vec()));
            }
            Table::Inbox => self.messages.rows.entry(owner_at(0)?).or_default().inbox.push((key.to_vec(), value.to_vec())),
            Table::Outbox => self.messages.rows.entry(owner_at(0)?).or_default().outbox.push((key.to_vec(), value.to_vec())),
            _ => {}
        }
        Ok(())
    }

    /// A remembered commitment.
    pub(crate) fn load_commitment(&mut self, value: &[u8]) -> Result<(), String> {
        let commitment = Commitment::from_bytes(value, &*self.keys.verifier).map_err(|error| error.to_string())?;
        // It was judged when it was stored: whoever endorsed it then counts now.
        self.registry.observe(&commitment, &|_| true);
        Ok(())
    }
}
