//! Sections whose owners are away: this node's turn to renew one that it holds, and whether a holder that is to be replaced is really silent
//! (docs/spec/quorum.md#leases).

use std::collections::BTreeSet;

use persona_fragments::{Ack, CertifiedHead, Link, PeerKey, SectionKey};
use persona_mesh_proto::{Mode, Renewal, RenewalOut, RenewalTask, Renewed, Reply, Request, Tag, lease::SILENT_US};

use crate::{
    node::{Node, OPS_MAX, Op, OpId},
    reads::{GetPurpose, Wanted},
};

/// A silent peer is given up after so long: a little sooner than whoever leads gives it up.
const PROBE_US: u64 = SILENT_US - 100_000;

/// One renewal on its way.
pub(crate) struct RenewalOp {
    stage: RenewalStage,
}

enum RenewalStage {
    /// Who could take the place of a holder that failed?
    Lookup {
        head: Box<CertifiedHead>,
        lock: Option<Link>,
    },
    Running(Box<Renewal>),
}

/// One question to a peer that is said to be silent.
pub(crate) struct PingOp {
    peer: PeerKey,
    pub(crate) until_us: u64,
}

impl RenewalOp {
    pub(crate) fn deadline(&self) -> Option<u64> {
        match &self.stage {
            RenewalStage::Lookup { .. } => None,
            RenewalStage::Running(renewal) => renewal.deadline(),
        }
    }
}

impl Node {
    /// The holder says that it is this node's turn.
    pub(crate) fn begin_renewal(&mut self, head: Box<CertifiedHead>, lock: Option<Link>) {
        let key = head.manifest.key;
        let leads = self.leading.get(&key).is_some_and(|op| self.ops.contains_key(op));
        if self.ops.len() >= OPS_MAX || leads {
            return; // somebody else's turn is next
        }
        let op = self.id();
        self.leading.insert(key, op);
        self.ops.insert(op, Op::Renewal(Box::new(RenewalOp { stage: RenewalStage::Lookup { head, lock } })));
        self.lookup_for(op, key);
    }

    pub(crate) fn renewal_looked_up(&mut self, op: OpId, peers: Vec<PeerKey>) {
        let (me, now) = (self.me, self.now);
        let Some(Op::Renewal(renewing)) = self.ops.get_mut(&op) else { return };
        let RenewalStage::Lookup { head, lock } = &mut renewing.stage else { return };
        let (head, lock) = ((**head).clone(), lock.take());
        let diverse = self.config.diversity;
        let others: BTreeSet<PeerKey> = peers.iter().chain(head.holders()).copied().filter(|peer| *peer != me).collect();
        let candidates = others.into_iter().map(|peer| self.neighbours.candidate(peer, diverse, now.mono_us)).collect();
        let diversity = diverse.then(|| head.manifest.shape.f());
        let task = RenewalTask { head, me, lock, candidates, diversity, bystanders: peers };
        let (renewal, outs) = Renewal::start(task, now);
        renewing.stage = RenewalStage::Running(Box::new(renewal));
        self.run_renewal(op, outs);
    }

    pub(crate) fn renewal_reply(&mut self, op: OpId, tag: Tag, reply: Reply) {
        let Some(Op::Renewal(renewing)) = self.ops.get_mut(&op) else { return };
        let RenewalStage::Running(renewal) = &mut renewing.stage else { return };
        let outs = renewal.reply(tag, reply, self.now, &*self.keys.verifier);
        self.run_renewal(op, outs);
    }

    pub(crate) fn renewal_due(&mut self, op: OpId) {
        let Some(Op::Renewal(renewing)) = self.ops.get_mut(&op) else { return };
        let RenewalStage::Running(renewal) = &mut renewing.stage else { return };
        let outs = renewal.tick(self.now);
        self.run_renewal(op, outs);
    }

    /// This node's own holder has signed for its own turn.
    pub(crate) fn renewal_led(&mut self, key: &SectionKey, consent: Ack, ack: Option<Ack>) {
        let Some(op) = self.leading.get(key).copied() else { return };
        let Some(Op::Renewal(renewing)) = self.ops.get_mut(&op) else { return };
        let RenewalStage::Running(renewal) = &mut renewing.stage else { return };
        let outs = renewal.consented(consent, ack, self.now);
        self.run_renewal(op, outs);
    }

    fn run_renewal(&mut self, op: OpId, outs: Vec<RenewalOut>) {
        for out in outs {
            match out {
                RenewalOut::Send { tag, to, request } => self.send_request(op, tag, to, request),
                RenewalOut::Lead { issued_at_ms, replaced, lock } => {
                    let Some(Op::Renewal(renewing)) = self.ops.get(&op) else { return };
                    let RenewalStage::Running(renewal) = &renewing.stage else { return };
                    let head = renewal.head();
                    let outs = self.holder.lead(head, issued_at_ms, &replaced, lock.as_ref(), self.now, &*self.keys.verifier);
                    self.run_holder(outs);
                }
                RenewalOut::Done(Renewed::Certified { head, lacking }) => {
                    self.count("leases_renewed");
                    if head.lease.as_ref().is_some_and(|lease| lease.links().last().is_some_and(|link| !link.replaced.is_empty())) {
                        self.count("leases_handed_over");
                    }
                    if !lacking.is_empty() {
                        self.refill(*head, lacking);
                    }
                }
                RenewalOut::Done(Renewed::Superseded) => self.count("leases_superseded"),
                RenewalOut::Done(Renewed::Failed) => self.count("leases_failed"),
            }
        }
        let over = matches!(self.ops.get(&op), Some(Op::Renewal(renewing))
            if matches!(&renewing.stage, RenewalStage::Running(renewal) if renewal.finished()));
        if over {
            self.ops.remove(&op);
            self.leading.retain(|_, leads| *leads != op);
        }
        self.note_deadline(op);
    }

    /// Holders that have no shard are given theirs, by whoever led: it is one more reader who decoded.
    fn refill(&mut self, head: CertifiedHead, lacking: Vec<u8>) {
        let (key, owner, label) = (head.manifest.key, Some(head.manifest.owner), head.manifest.key.to_kad_key());
        self.remember_head(head);
        let wanted = Wanted { key, owner, label, mode: Mode::Regular, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Refill { lacking });
    }

    /// The holder wants to know whether a peer is there.
    pub(crate) fn begin_ping(&mut self, peer: PeerKey, key: SectionKey) {
        if self.ops.len() >= OPS_MAX {
            return self.holder.probed(&peer, true, self.now); // not known to be silent
        }
        let op = self.id();
        self.ops.insert(op, Op::Ping(PingOp { peer, until_us: self.now.mono_us + PROBE_US }));
        self.note_deadline(op);
        self.send_request(op, Tag(0), peer, Request::Head { key, fence: None, with_shard: false });
    }

    pub(crate) fn ping_over(&mut self, op: OpId, answered: bool) {
        if let Some(Op::Ping(PingOp { peer, .. })) = self.ops.remove(&op) {
            self.holder.probed(&peer, answered, self.now);
        }
    }
}
