//! This node lost its store and is asked about a section: it asks the section's other holders what it has forgotten
//! (docs/spec/quorum.md#a-holder-that-lost-its-store).

use persona_fragments::{CertifiedHead, PeerKey, SectionKey, SignedManifest};
use persona_mesh_proto::{Recover, RecoverOut, RecoverTask, Recovered, Reply, Tag};

use crate::node::{Node, OPS_MAX, Op, OpId};

/// One recovery on its way.
pub(crate) struct RecoverOp {
    key: SectionKey,
    stage: RecoverStage,
}

enum RecoverStage {
    /// Who is closest to the key? Beside what the holder itself knows.
    Lookup {
        known: Option<Box<CertifiedHead>>,
        asked: Option<Box<SignedManifest>>,
    },
    Running(Box<Recover>),
}

impl RecoverOp {
    pub(crate) fn deadline(&self) -> Option<u64> {
        match &self.stage {
            RecoverStage::Lookup { .. } => None,
            RecoverStage::Running(recover) => recover.deadline(),
        }
    }
}

impl Node {
    /// The holder asks for a recovery. One that cannot be run has failed: the holder asks again when it is asked again.
    pub(crate) fn begin_recovery(&mut self, key: SectionKey, known: Option<Box<CertifiedHead>>, asked: Option<Box<SignedManifest>>) {
        if self.ops.len() >= OPS_MAX {
            return self.end_recovery(&key, Recovered::Unknown(Box::default()));
        }
        let op = self.id();
        self.count("recoveries");
        self.ops.insert(op, Op::Recover(Box::new(RecoverOp { key, stage: RecoverStage::Lookup { known, asked } })));
        self.lookup_for(op, key);
    }

    pub(crate) fn recovery_looked_up(&mut self, op: OpId, candidates: Vec<PeerKey>) {
        let me = self.me;
        let Some(Op::Recover(recovery)) = self.ops.get_mut(&op) else { return };
        let RecoverStage::Lookup { known, asked } = &mut recovery.stage else { return };
        let (known, asked) = (known.take().map(|head| *head), asked.take().map(|manifest| *manifest));
        let task = RecoverTask { key: recovery.key, me, known, asked, candidates };
        let (recover, outs) = Recover::start(task, self.own_now);
        recovery.stage = RecoverStage::Running(Box::new(recover));
        self.run_recovery(op, outs);
    }

    pub(crate) fn recovery_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Recover(recovery)) = self.ops.get_mut(&op) else { return };
        let RecoverStage::Running(recover) = &mut recovery.stage else { return };
        let outs = recover.reply(tag, reply, self.own_now, &*self.keys.verifier);
        self.run_recovery(op, outs);
    }

    pub(crate) fn recovery_due(&mut self, op: OpId) {
        let Some(Op::Recover(recovery)) = self.ops.get_mut(&op) else { return };
        let RecoverStage::Running(recover) = &mut recovery.stage else { return };
        let outs = recover.tick(self.own_now);
        self.run_recovery(op, outs);
    }

    fn run_recovery(&mut self, op: OpId, outs: Vec<RecoverOut>) {
        for out in outs {
            match out {
                RecoverOut::Send { tag, to, request } => self.send_request(op, tag, to, request),
                RecoverOut::Done(recovered) => {
                    let Some(Op::Recover(recovery)) = self.ops.remove(&op) else { return };
                    if matches!(recovered, Recovered::Known(_)) {
                        self.count("recoveries_done");
                    }
                    self.end_recovery(&recovery.key, recovered);
                }
            }
        }
        self.note_deadline(op);
    }

    fn end_recovery(&mut self, key: &SectionKey, recovered: Recovered) {
        let outs = self.holder.recovered(key, recovered, self.own_now);
        self.run_holder(outs);
    }
}
