//! Read repair: who decoded a section hands their shards back to holders that came back without (docs/spec/quorum.md#read-repair).

use persona_fragments::encode;
use persona_mesh_proto::{Answered, Freshness, GetValue, Put, PutOut, Reply, Tag};

use crate::node::{Node, OPS_MAX, Op, OpId};

/// A version is left to its writer's own placement for so long after its issue, in milliseconds.
const YOUNG_MS: u64 = 5_000;

/// A section is repaired by this node at most once in so long, in microseconds.
const AGAIN_US: u64 = 10_000_000;

/// Sections that are remembered as repaired lately. Beyond it a get repairs nothing: a later one will.
const REPAIRS_MAX: usize = 64;

impl Node {
    /// A get has decoded a current version: whoever of its holders lacks its shard is given it, and whoever is known to lack it.
    pub(crate) fn repair_read(&mut self, value: &GetValue, known: &[u8]) {
        let manifest = &value.head.manifest;
        let young = known.is_empty() && self.now.wall_ms < manifest.issued_at_ms.saturating_add(YOUNG_MS);
        let tried = known.is_empty() && self.repaired.get(&manifest.key).is_some_and(|at_us| self.now.mono_us < at_us + AGAIN_US);
        let full = self.repaired.len() >= REPAIRS_MAX || self.ops.len() >= OPS_MAX;
        if value.content.is_empty() || value.fresh == Freshness::MaybeStale || young || tried || full {
            return;
        }
        let recovering = |peer| value.answers.iter().any(|(other, said)| other == peer && *said == Answered::Recovering);
        let lacking: Vec<u8> = (0..manifest.shape.n())
            .filter(|index| {
                let peer = &value.head.holders()[usize::from(*index)];
                known.contains(index) || *peer != self.me && (value.missing.iter().any(|(_, missing)| missing == index) || recovering(peer))
            })
            .collect();
        if lacking.is_empty() {
            return;
        }
        let Ok(shards) = encode(&value.content, manifest.shape) else { return };
        self.repaired.insert(manifest.key, self.now.mono_us);
        self.count("read_repairs");
        let op = self.id();
        let (put, outs) = Put::repair(value.head.clone(), shards, &lacking, self.config.put.clone(), self.now);
        self.ops.insert(op, Op::Repair(Box::new(put)));
        self.run_repair(op, outs);
    }

    pub(crate) fn repair_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Repair(put)) = self.ops.get_mut(&op) else { return };
        let outs = put.reply(tag, reply, self.now, &*self.keys.verifier);
        self.run_repair(op, outs);
    }

    pub(crate) fn repair_due(&mut self, op: OpId) {
        let Some(Op::Repair(put)) = self.ops.get_mut(&op) else { return };
        let outs = put.tick(self.now);
        self.run_repair(op, outs);
    }

    pub(crate) fn run_repair(&mut self, op: OpId, outs: Vec<PutOut>) {
        for out in outs {
            if let PutOut::Send { tag, to, request } = out {
                self.send_request(op, tag, to, request);
            }
        }
        if matches!(self.ops.get(&op), Some(Op::Repair(put)) if put.finished()) {
            self.ops.remove(&op);
        }
        self.note_deadline(op);
    }

    /// Forgets repairs of which nothing follows any more.
    pub(crate) fn forget_repairs(&mut self) {
        let now_us = self.now.mono_us;
        self.repaired.retain(|_, at_us| now_us < *at_us + AGAIN_US);
    }
}
