//! Everything at once, from a seed: puts, reads, messages, crashes, restarts and partitions in a storm.
//!
//! What must hold is simple. A read that began after a put had committed returns that content or a later one; once all is well again every
//! document has at least its last committed content, and every message that was accepted is in its recipient's inbox, once.

use std::collections::BTreeMap;

use persona_core::{Answer, Call};
use persona_fragments::OwnerKey;
use persona_mesh_proto::Mode;

use crate::{CALM, STORM, World, document};

const SEEDS: u64 = 60;
const HOSTS: usize = 6;
/// Agents live on the first hosts.
const AGENTS: usize = 2;
const STEPS: u64 = 40;

/// What is asked, and what must be true of the answer.
enum Asked {
    /// Content so much was put.
    Put {
        document: (usize, u8),
        content: u64,
    },
    /// A read began when so much had committed and so much had been begun.
    Get {
        document: (usize, u8),
        committed: u64,
    },
    Send {
        text: String,
        to: usize,
    },
}

#[derive(Default)]
struct Oracle {
    asked: BTreeMap<u64, Asked>,
    begun: BTreeMap<(usize, u8), u64>,
    committed: BTreeMap<(usize, u8), u64>,
    accepted: Vec<(String, usize)>,
}

impl Oracle {
    /// Judges what has been answered since.
    fn judge(&mut self, world: &mut World) {
        let answered: Vec<u64> = self.asked.keys().copied().filter(|id| world.replies.contains_key(id)).collect();
        for id in answered {
            let (Some(asked), Some(reply)) = (self.asked.remove(&id), world.replies.remove(&id)) else { continue };
            match (asked, reply) {
                (Asked::Put { document, content }, Ok(_)) => {
                    let committed = self.committed.entry(document).or_default();
                    *committed = (*committed).max(content);
                }
                (Asked::Get { document, committed }, Ok(Answer::Section { content, .. })) => {
                    let read = number(&content);
                    let begun = self.begun.get(&document).copied().unwrap_or(0);
                    assert!(read >= committed, "{document:?}: read {read} after {committed} had committed");
                    assert!(read <= begun, "{document:?}: read {read}, and only {begun} were ever put");
                }
                (Asked::Send { text, to }, Ok(_)) => self.accepted.push((text, to)),
                (_, Ok(other)) => panic!("an answer to nothing that was asked: {other:?}"),
                // Busy, out of reach, unknown: honest, and no promise.
                (_, Err(_)) => {}
            }
        }
    }
}

fn number(content: &[u8]) -> u64 {
    u64::from_le_bytes(content.try_into().expect("eight bytes"))
}

fn doc(which: u8) -> String {
    format!("doc/{which}")
}

fn run(seed: u64) {
    let mut world = World::of(HOSTS, 10_000 + seed);
    let agents: Vec<OwnerKey> = (0..AGENTS).map(|host| world.create(host, &format!("agent {host}"))).collect();
    let mut oracle = Oracle::default();
    world.net = STORM;
    for step in 0..STEPS {
        let pause = world.below(400);
        world.run_ms(pause);
        oracle.judge(&mut world);
        let who = world.below(AGENTS as u64) as usize;
        match world.below(100) {
            0..35 if world.up(who) => {
                let document_of = (who, world.below(2) as u8);
                let begun = oracle.begun.entry(document_of).or_default();
                *begun += 1;
                let content = *begun;
                let id = world.call(who, document(agents[who], &doc(document_of.1), &content.to_le_bytes()));
                oracle.asked.insert(id, Asked::Put { document: document_of, content });
            }
            35..55 if world.up(who) => {
                let document_of = (who, world.below(2) as u8);
                let committed = oracle.committed.get(&document_of).copied().unwrap_or(0);
                let call = Call::GetSection { agent: agents[who], name: doc(document_of.1), mode: Mode::Regular };
                let id = world.call(who, call);
                oracle.asked.insert(id, Asked::Get { document: document_of, committed });
            }
            55..75 if world.up(who) => {
                let to = (who + 1) % AGENTS;
                let text = format!("message {step} of {who}");
                let id = world.call(who, Call::Send { from: agents[who], to: agents[to], text: text.clone() });
                oracle.asked.insert(id, Asked::Send { text, to });
            }
            75..88 => {
                let victim = world.below(HOSTS as u64) as usize;
                if world.up(victim) {
                    world.crash(victim);
                } else {
                    world.restart(victim);
                }
            }
            88..94 => {
                let side: Vec<usize> = (0..HOSTS).filter(|_| world.chance(400)).collect();
                world.cut(&side);
            }
            94..98 => world.heal(),
            _ => {
                let after = world.below(1_500_000);
                world.run_us(after);
            }
        }
    }
    calm_down(&mut world, &mut oracle, &agents);
}

/// All is well again: what was promised is there.
fn calm_down(world: &mut World, oracle: &mut Oracle, agents: &[OwnerKey]) {
    world.net = CALM;
    world.heal();
    for host in 0..HOSTS {
        if !world.up(host) {
            world.restart(host);
        }
    }
    world.run_s(90);
    oracle.judge(world);
    for (document_of, committed) in oracle.committed.clone() {
        let (host, which) = document_of;
        let read = world.get(host, agents[host], &doc(which), Mode::Regular).expect("what was committed is there");
        let begun = oracle.begun[&document_of];
        assert!((committed..=begun).contains(&number(&read)), "{document_of:?}: {} for {committed}..={begun}", number(&read));
    }
    for (host, agent) in agents.iter().enumerate() {
        let texts = world.inbox(host, *agent);
        let mut once = texts.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), texts.len(), "no message twice");
        for (text, _) in oracle.accepted.iter().filter(|(_, to)| *to == host) {
            assert!(texts.contains(text), "{text:?} was accepted, and is not delivered: {texts:?}");
        }
        let states = world.outbox(host, *agent);
        assert!(states.iter().all(|state| *state == "acknowledged"), "{states:?}");
    }
}

#[test]
fn whatever_happens_nothing_that_was_promised_is_lost() {
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "seed {seed} fails");
    }
}
