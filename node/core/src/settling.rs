//! Versions of unknown outcome are settled: completed where that can be, else given up (docs/spec/quorum.md#a-version-that-is-given-up).

use persona_fragments::{OwnerKey, SignedManifest};
use persona_mesh_proto::{Reply, Settle, SettleOut, SettleTask, Settled, Tag, clock_allowance_ms};

use crate::node::{Node, OPS_MAX, Op, OpId};

/// How long a host asks its holders to give up what it does not want to complete.
const GIVE_UP_US: u64 = 5_000_000;

/// A takeover waits for so many p95 round trips.
const TAKEOVER_HEDGES: u64 = 4;

/// One settlement on its way.
pub(crate) struct SettleOp {
    settle: Settle,
    purpose: SettlePurpose,
}

/// Who wants to know what becomes of a version.
#[derive(Clone, Debug)]
pub(crate) enum SettlePurpose {
    /// Nobody: this host has put a newer one, and the room that this one takes up is wanted.
    GiveUp,
    /// An import that found it.
    Import { import: u64, name: String },
}

impl SettleOp {
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.settle.deadline()
    }
}

impl Node {
    /// Whether a version is still worth settling.
    pub(crate) fn may_be_settled(&self, manifest: &SignedManifest) -> bool {
        self.now.wall_ms < manifest.expires_at_ms().saturating_add(clock_allowance_ms(manifest.class))
    }

    /// Whether it is being settled.
    pub(crate) fn is_being_settled(&self, manifest: &SignedManifest) -> bool {
        self.ops.values().any(|op| matches!(op, Op::Settle(settling) if settling.settle.manifest().hash() == manifest.hash()))
    }

    /// Begins to settle a version of an owner of this node.
    pub(crate) fn begin_settle(&mut self, owner: &OwnerKey, manifest: SignedManifest, purpose: SettlePurpose) {
        let Some(owner) = self.owners.get(owner).filter(|owner| owner.id == manifest.owner && self.ops.len() < OPS_MAX) else {
            return self.settled(purpose, None);
        };
        let order = manifest.order_never(&*owner.signer);
        let patience_us = match purpose {
            SettlePurpose::GiveUp => GIVE_UP_US,
            SettlePurpose::Import { .. } => self.rtts.p95_us() * TAKEOVER_HEDGES,
        };
        let completes = matches!(purpose, SettlePurpose::GiveUp);
        let (settle, outs) = Settle::start(SettleTask { manifest, order, patience_us, completes }, self.now);
        let op = self.id();
        self.ops.insert(op, Op::Settle(Box::new(SettleOp { settle, purpose })));
        self.run_settle(op, outs);
    }

    pub(crate) fn settle_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Settle(settling)) = self.ops.get_mut(&op) else { return };
        let outs = settling.settle.reply(tag, reply, self.now, &*self.keys.verifier);
        let evidence = settling.settle.take_evidence();
        self.run_settle(op, outs);
        if let Some(evidence) = evidence {
            self.witness(*evidence);
        }
    }

    pub(crate) fn settle_due(&mut self, op: OpId) {
        let Some(Op::Settle(settling)) = self.ops.get_mut(&op) else { return };
        let outs = settling.settle.tick(self.now);
        self.run_settle(op, outs);
    }

    fn run_settle(&mut self, op: OpId, outs: Vec<SettleOut>) {
        for out in outs {
            match out {
                SettleOut::Send { tag, to, request } => self.send_request(op, tag, to, request),
                SettleOut::Done(settled) => {
                    let Some(Op::Settle(settling)) = self.ops.remove(&op) else { return };
                    self.count(match settled {
                        Settled::Aborted(_) => "versions_aborted",
                        Settled::Certified(_) => "versions_completed",
                        Settled::Superseded(_) => "versions_superseded",
                        Settled::Undecided { .. } => "versions_undecided",
                    });
                    self.settled(settling.purpose, Some(&settled));
                }
            }
        }
        self.note_deadline(op);
    }

    /// What became of it is known; nothing, if nobody could be asked.
    fn settled(&mut self, purpose: SettlePurpose, settled: Option<&Settled>) {
        match purpose {
            SettlePurpose::GiveUp => {}
            SettlePurpose::Import { import, name } => self.import_settled(import, &name, settled),
        }
    }
}
