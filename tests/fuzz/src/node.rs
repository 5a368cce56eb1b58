//! A whole node, fed by strangers and by its disk.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::OnceLock,
};

use persona_core::{AgentKeys, Answer, Call, Config, Gossip, Input, Judgement, Node, NodeKeys, Output};
use persona_fragments::{Ed25519Signer, PeerKey};
use persona_mesh_proto::{Now, Table, Write};
use zeroize::Zeroizing;

use crate::{gullible, seeds::NOW_MS};

/// Inputs that come of one: beyond it the rest is left undone.
const STEPS_MAX: usize = 200;

/// What each kind of input is cut into at most.
const PARTS_MAX: usize = 8;

/// An agent that was born on such a node, and all that its disk then had.
pub(crate) struct Born {
    pub(crate) root: [u8; 32],
    pub(crate) rows: Vec<Write>,
}

/// A node, its disk, and what it was told to send.
struct World {
    node: Node,
    now: Now,
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    answers: Vec<Answer>,
    judged: Option<Judgement>,
}

impl World {
    fn new() -> Self {
        let keys = NodeKeys {
            signer: Box::new(Ed25519Signer::from_seed(&[5; 32])),
            verifier: gullible(),
            secret: Zeroizing::new([6; 32]),
            owner_signer: persona_core::ed25519_owner(),
        };
        let now = Now { wall_ms: NOW_MS, mono_us: 1_000_000 };
        Self { node: Node::new(keys, Config::default(), [7; 32], now), now, rows: BTreeMap::new(), answers: Vec::new(), judged: None }
    }

    /// Feeds one input and what comes of it. Whatever is sent to others is lost.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        for _ in 0..STEPS_MAX {
            let Some(input) = inputs.pop_front() else { return };
            for output in self.node.handle(input, self.now) {
                match output {
                    Output::Persist { id, writes } => {
                        for Write { table, key, value } in writes {
                            match value {
                                Some(value) => self.rows.insert((table, key), value),
                                None => self.rows.remove(&(table, key)),
                            };
                        }
                        inputs.push_back(Input::Persisted { ids: vec![id] });
                    }
                    Output::Load { id, table, key } => {
                        inputs.push_back(Input::Loaded { id, value: self.rows.get(&(table, key)).cloned() });
                    }
                    Output::Keep { id, .. } => inputs.push_back(Input::Kept { id, result: Ok(()) }),
                    Output::Lookup { id, .. } => inputs.push_back(Input::Found { id, peers: vec![PeerKey([9; 32])] }),
                    Output::Judge { verdict, .. } => self.judged = Some(verdict),
                    Output::Reply { result: Ok(answer), .. } => self.answers.push(answer),
                    _ => {}
                }
            }
        }
    }

    fn later(&mut self, seconds: u64) {
        self.now = self.now.plus_ms(seconds * 1000);
        self.feed(Input::Tick);
    }
}

/// The agent of every node here. It is made once.
pub(crate) fn born() -> &'static Born {
    static BORN: OnceLock<Born> = OnceLock::new();
    BORN.get_or_init(|| {
        let mut world = World::new();
        let call = Call::CreateAgent { name: "ada".into(), role: None, place: "here".into(), attributes: b"{}".to_vec() };
        world.feed(Input::Call { id: 1, call });
        let answer = world.answers.pop();
        let Some(Answer::Agent { agent, root, .. }) = answer else { panic!("no agent was born: {answer:?}") };
        world.feed(Input::Call { id: 2, call: Call::Publish { agent } });
        for _ in 0..5 {
            world.later(1);
        }
        let rows = world.rows.into_iter().map(|((table, key), value)| Write::set(table, key, value)).collect();
        Born { root: *root, rows }
    })
}

/// Parts with their lengths before them, two bytes each.
fn parts(mut data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<2>()
        && parts.len() < PARTS_MAX
    {
        let (part, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        parts.push(part);
        data = rest;
    }
    parts
}

/// Parts as [`parts`] reads them.
pub(crate) fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u16).to_be_bytes()[..], part].concat()).collect()
}

/// Frames of requests, one after the other: what one stores the next one meets.
pub(crate) fn frames(data: &[u8]) -> bool {
    let rows = stored_by(data);
    // What a node stored is what it reads.
    let mut again = World::new();
    for Write { table, key, value } in &rows {
        again.node.load(*table, key, value.as_deref().unwrap_or_default()).expect("a node reads what it wrote");
    }
    !rows.is_empty()
}

/// What a node has on its disk after those frames and half a minute.
pub(crate) fn stored_by(data: &[u8]) -> Vec<Write> {
    let mut world = World::new();
    for (inbound, frame) in parts(data).into_iter().enumerate() {
        world.feed(Input::Frame { inbound: inbound as u64, from: PeerKey([9; 32]), frame: frame.to_vec() });
    }
    world.later(1);
    world.later(20);
    world.rows.into_iter().map(|((table, key), value)| Write::set(table, key, value)).collect()
}

/// Gossip: the topic (announcements, alerts, a lane), and a message.
pub(crate) fn gossip(data: &[u8]) -> bool {
    let Some((topic, data)) = data.split_first() else { return false };
    let topic = match topic {
        0 => Gossip::Announce,
        1 => Gossip::Alerts,
        lane => Gossip::Messages((lane - 2) % 8),
    };
    let mut world = World::new();
    add_agent(&mut world, &born().rows);
    world.feed(Input::Gossip { message: 1, topic, data: data.to_vec() });
    world.later(1);
    world.judged == Some(Judgement::Accept)
}

/// The rows of a disk: each is a part of table, length of the key, key and value.
pub(crate) fn rows(data: &[u8]) -> bool {
    let rows: Vec<Write> = parts(data)
        .into_iter()
        .filter_map(|part| {
            let (&[table, key_len], rest) = part.split_first_chunk::<2>()?;
            let (key, value) = rest.split_at_checked(usize::from(key_len))?;
            Some(Write::set(Table::ALL[usize::from(table) % Table::ALL.len()], key, value))
        })
        .collect();
    let mut world = World::new();
    // In place of the agent's own, where they have the same key.
    let own = born().rows.iter().filter(|own| !rows.iter().any(|row| row.table == own.table && row.key == own.key));
    let all: Vec<Write> = own.cloned().chain(rows.iter().cloned()).collect();
    let taken_up = add_agent(&mut world, &all);
    let _ = world.node.heads_to_serve();
    let _ = world.node.forget_strays();
    world.later(1);
    world.later(60);
    taken_up
}

/// Loads rows, and takes up the agent. Says whether all of that went well.
fn add_agent(world: &mut World, rows: &[Write]) -> bool {
    let mut loaded = true;
    for Write { table, key, value } in rows {
        let value = value.as_deref().unwrap_or_default();
        loaded &= world.node.load(*table, key, value).is_ok();
        world.rows.insert((*table, key.clone()), value.to_vec());
    }
    let keys = AgentKeys { name: "ada".into(), root: Zeroizing::new(born().root), term: 1 };
    world.node.add_agent(keys).is_ok() && loaded
}
