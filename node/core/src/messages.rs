//! The message service: outbox, inbox and verdicts (docs/spec/envelope.md, docs/spec/gossip.md).
//!
//! A message is durable before it is sent, and sent again until its recipient acknowledged it or it expired. A received one is judged on a
//! copy of the pair's state; only an accepted one changes anything, and it is durable, with the state it changed, before it is
//! acknowledged. So a message is delivered once, whoever crashes when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bincode::{Decode, Encode};
use persona_agent::{
    Announcement, Card, Commitment, Direction, EnvelopeError, Interaction, Kind, Mode as Manner, Observed, Outgoing, PairState, Recipient,
    Relationship, Verdict, Verified, compose, judge, parse,
};
use persona_fragments::{Class, Digest, Fields, OwnerKey, SectionKey, manifest::ManifestWire, wire};
use persona_mesh_proto::{Mode, Table, Write};
use rand_core::Rng as _;
use sha2::{Digest as _, Sha256};

use crate::{
    call::{Answer, CallError},
    disk::{ROW_PAIR, ROW_RELATIONSHIP, Rows, fields_to_bytes, open_row, partner_row, seal_row},
    node::{Gossip, Judgement, Node, Notice, Output, PublishError},
    own::{Agent, Content, OwnerState},
    reads::{GetPurpose, Wanted},
    report::{
        CanaryReport, InboxMessage, InboxReport, OutboxMessage, OutboxReport, RelationshipReport, RelationshipsReport, SentReport,
        VerdictReport, VerdictsReport,
    },
    traffic::AfterPersist,
};

/// Envelopes in one gossip message.
pub(crate) const BATCH_ENVELOPES_MAX: usize = 64;

/// Bytes of envelopes in one gossip message; one large envelope travels alone.
pub(crate) const BATCH_BYTES_MAX: usize = 32 << 10;

/// Delivered messages kept for each agent. When full, the oldest goes.
const INBOX_MAX: usize = 1_000;

/// Messages on their way of each agent. When full, a new one is refused: nothing that was accepted is dropped.
const OUTBOX_MAX: usize = 1_000;

/// Verdicts remembered. The oldest goes.
const VERDICTS_MAX: usize = 1_024;

/// Cards of other agents remembered. When full, the one read first goes.
const CARDS_MAX: usize = 4_096;

/// Messages that wait for one agent's card. Beyond it a received message is dropped (its sender sends it again), a call is refused.
const WAITING_FOR_CARD_MAX: usize = 256;

/// Acknowledgements kept, to answer a message that comes again because the first one was lost.
const ACKS_KEPT_MAX: usize = 1_024;

/// Agents whose cards are being read for messages at once. Beyond it a received message is dropped, a call is refused.
const CARDS_READ_MAX: usize = 1_024;

/// Messages of this node that are over (acknowledged, expired) and still shown. When full, the one that was over first is forgotten.
const OUTBOX_OVER_MAX: usize = 256;

/// Announcements that wait for somebody to listen. When full, the oldest goes: an agent announces itself at every start.
const ANNOUNCEMENTS_MAX: usize = 1_024;

/// How long a card counts as current when a message needs a newer one.
const CARD_REFETCH_US: u64 = 1_000_000;

/// The longest text, in bytes: with its envelope it must fit one gossip message.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// The first pause before a message is sent again; it doubles up to [`RESEND_MAX_US`].
const RESEND_US: u64 = 1_000_000;
const RESEND_MAX_US: u64 = 30_000_000;

/// How long an agent counts as active after a message.
const ACTIVE_US: u64 = 30_000_000;

/// A gossip message on a lane (docs/spec/gossip.md#batch).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct GossipBatch {
    /// Makes the message id of a message that is sent again a new one: gossip drops what it has seen.
    pub(crate) nonce: u64,
    /// The lane it is for, so that it cannot be replayed on another.
    pub(crate) lane: u8,
    /// Envelopes.
    pub(crate) envelopes: Vec<Vec<u8>>,
}

/// The payload of an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct AckPayload {
    /// The term in which the acknowledged message was sent.
    term: u64,
    /// Its counter.
    counter: u64,
    /// SHA-256 of the envelope.
    envelope: Digest,
}

/// One message on its way.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct OutboxRow {
    to: OwnerKey,
    term: u64,
    counter: u64,
    envelope: Vec<u8>,
    digest: Digest,
    payload: Digest,
    sent_at_ms: u64,
    expires_at_ms: u64,
}

/// A message on its way, or over, with what memory knows of it.
struct Sending {
    row: OutboxRow,
    attempts: u32,
    /// When it is sent again; `None` until the disk has it, and when it is over.
    next_us: Option<u64>,
    state: &'static str,
}

/// One delivered message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct InboxRow {
    from: OwnerKey,
    from_name: Option<String>,
    text: String,
    counter: u64,
    term: u64,
    received_ms: u64,
    protocol_permille: u16,
    /// SHA-256 of its envelope.
    envelope: Digest,
    /// Its acknowledgement, to be sent again if the envelope comes again; empty if there is none.
    ack: Vec<u8>,
}

/// Who waits for a card.
enum WaitingForCard {
    Send { call: u64, from: OwnerKey, text: String },
    Receive { to: OwnerKey, envelope: Vec<u8> },
}

struct KnownCard {
    card: Card,
    read_us: u64,
}

type OutboxKey = (OwnerKey, OwnerKey, u64, u64);

/// What happens once message state is durable.
#[derive(Default)]
pub(crate) struct AfterMessages {
    publish: Vec<(OwnerKey, Vec<u8>)>,
    /// Messages that were sent for the first time: from now on they are sent again until they are over.
    sending: Vec<OutboxKey>,
    /// An acknowledgement of a message that is delivered now, by its recipient and its envelope.
    ack: Option<((OwnerKey, Digest), Vec<u8>)>,
    replies: Vec<(u64, SentReport)>,
    notices: Vec<Notice>,
}

/// Everything about messages.
#[derive(Default)]
pub(crate) struct Messages {
    pub(crate) next_us: u64,
    pub(crate) publishing: BTreeMap<u64, (usize, Vec<crate::report::PutReport>, Option<CallError>)>,
    pub(crate) imported: BTreeMap<OwnerKey, Vec<(String, Fields)>>,
    pub(crate) rows: BTreeMap<OwnerKey, Rows>,
    pub(crate) intents: BTreeMap<SectionKey, ManifestWire>,
    /// Agents of which the disk has rows, and that do not live here.
    pub(crate) strays: BTreeSet<OwnerKey>,
    /// The highest term in which an import here has tried to take over each agent.
    pub(crate) terms_tried: BTreeMap<OwnerKey, u64>,
    cards: BTreeMap<OwnerKey, KnownCard>,
    waiting: BTreeMap<OwnerKey, Vec<WaitingForCard>>,
    outbox: BTreeMap<OutboxKey, Sending>,
    /// What is over, in that order.
    over: VecDeque<OutboxKey>,
    inbox: BTreeMap<OwnerKey, VecDeque<(u64, InboxRow)>>,
    verdicts: VecDeque<VerdictReport>,
    next_verdict: u64,
    acks: BTreeMap<(OwnerKey, Digest), Vec<u8>>,
    acks_order: VecDeque<(OwnerKey, Digest)>,
    /// Envelopes of this turn, by lane.
    lanes: BTreeMap<u8, Vec<Vec<u8>>>,
    /// Envelopes for agents of this very node.
    here: VecDeque<Vec<u8>>,
    /// Announcements to make once somebody listens.
    announce: VecDeque<Vec<u8>>,
    announce_next_us: u64,
    /// Publications on their way, with what to do if they fail.
    published: BTreeMap<u64, Vec<u8>>,
}

impl Messages {
    /// The rows of an owner, with its intents.
    pub(crate) fn take_own_rows(&mut self, id: &OwnerKey) -> Rows {
        let mut rows = self.rows.remove(id).unwrap_or_default();
        for key in rows.own.keys() {
            if let Some(intent) = self.intents.remove(key) {
                rows.intents.insert(*key, intent);
            }
        }
        rows
    }
}

/// The lane of a recipient: the first byte of SHA-256 of its id, modulo 8.
pub(crate) fn lane_of(agent: &OwnerKey) -> u8 {
    Sha256::digest(agent.to_did().as_bytes())[0] % 8
}

impl Node {
    // ---- sending ---------------------------------------------------------------------------------------------------------------

    pub(crate) fn send(&mut self, call: u64, from: OwnerKey, to: OwnerKey, text: String) {
        let checked = self.may_send(&from).and_then(|()| match () {
            () if from == to => Err(CallError::BadRequest("an agent does not send to itself".into())),
            () if text.is_empty() => Err(CallError::BadRequest("the text is empty".into())),
            () if text.len() > TEXT_BYTES_MAX => {
                Err(CallError::TooLarge(format!("the text has {} bytes, more than {TEXT_BYTES_MAX}", text.len())))
            }
            () => Ok(()),
        });
        let checked = checked.and_then(|()| self.bond_is_missing(&from, &to).map_or(Ok(()), Err));
        match checked {
            Err(error) => self.reply(call, Err(error)),
            Ok(()) => match self.messages.cards.get(&to).map(|known| known.card.clone()) {
                Some(card) => self.send_now(call, from, &card, &text),
                None => self.wait_for_card(to, WaitingForCard::Send { call, from, text }),
            },
        }
    }

    /// Whether an agent lives here and its outbox has room.
    fn may_send(&self, from: &OwnerKey) -> Result<(), CallError> {
        let owner = self.owners.get(from).ok_or_else(|| CallError::UnknownAgent(from.to_did()))?;
        match owner.state {
            OwnerState::Fenced(term) => return Err(CallError::Fenced { term }),
            OwnerState::Live if owner.agent.is_some() => {}
            _ => return Err(CallError::Busy("the agent is not live yet".into())),
        }
        let waiting = self.messages.outbox.iter().filter(|(key, sending)| key.0 == *from && sending.state == "waiting").count();
        if waiting >= OUTBOX_MAX {
            return Err(CallError::Busy(format!("{OUTBOX_MAX} messages of this agent wait for their recipients")));
        }
        Ok(())
    }

    fn send_now(&mut self, call: u64, from: OwnerKey, to: &Card, text: &str) {
        // Much may have happened while the card was read.
        if let Err(error) = self.may_send(&from) {
            return self.reply(call, Err(error));
        }
        let expires_at_ms = self.now.wall_ms + self.config.message_ttl_ms;
        let row = match self.compose_row(from, to, Kind::Text, text.as_bytes(), expires_at_ms) {
            Ok(row) => row,
            Err(error) => return self.reply(call, Err(error)),
        };
        let report = SentReport { id: row.digest.to_hex(), to: row.to.to_did(), counter: row.counter, term: row.term, state: "sent" };
        let place = outbox_place(&from, &row);
        let mut writes = self.pair_writes(&from, &row.to);
        writes.push(Write::set(Table::Outbox, place, wire::encode(&row)));
        let key = (from, row.to, row.term, row.counter);
        let publish = vec![(row.to, row.envelope.clone())];
        let after = AfterMessages { publish, sending: vec![key], replies: vec![(call, report)], ..AfterMessages::default() };
        self.messages.outbox.insert(key, Sending { row, attempts: 1, next_us: None, state: "waiting" });
        self.touch(&from, &to.agent);
        self.persist(writes, AfterPersist::Messages(after));
    }

    /// Seals a message under the pair's next key. The pair's new state is in memory; the caller makes it durable before anything is sent.
    fn compose_row(&mut self, from: OwnerKey, to: &Card, kind: Kind, payload: &[u8], expires_at_ms: u64) -> Result<OutboxRow, CallError> {
        let now_ms = self.now.wall_ms;
        let Some(agent) = self.owners.get_mut(&from).and_then(|owner| owner.agent.as_mut()) else {
            return Err(CallError::UnknownAgent(from.to_did()));
        };
        let mut pair = agent.pairs.get(&to.agent).cloned().unwrap_or_else(|| PairState::new(&agent.identity, to));
        let outgoing = Outgoing { to, kind, mode: Manner::Normal, payload, now_ms, expires_at_ms };
        let envelope =
            compose(&agent.identity, &mut pair, outgoing, &mut self.rng).map_err(|error| CallError::BadRequest(error.to_string()))?;
        agent.pairs.insert(to.agent, pair);
        let parsed = parse(&envelope).map_err(|error| CallError::BadRequest(error.to_string()))?;
        let (term, counter, digest) = (parsed.envelope().header.term, parsed.envelope().header.counter, parsed.digest());
        let payload = Digest(Sha256::digest(payload).into());
        Ok(OutboxRow { to: to.agent, term, counter, envelope, digest, payload, sent_at_ms: now_ms, expires_at_ms })
    }

    /// The rows of a pair's chains and log.
    pub(crate) fn pair_writes(&mut self, id: &OwnerKey, partner: &OwnerKey) -> Vec<Write> {
        let Some(owner) = self.owners.get(id) else { return Vec::new() };
        let Some(agent) = owner.agent.as_ref() else { return Vec::new() };
        let key = owner.root.local_key();
        let mut writes = Vec::new();
        let pair = agent.pairs.get(partner).map(|pair| (ROW_PAIR, pair.to_fields()));
        let relationship = agent.relationships.get(partner).map(|relationship| (ROW_RELATIONSHIP, relationship.to_fields(&*owner.signer)));
        for (what, fields) in [pair, relationship].into_iter().flatten() {
            let place = partner_row(what, id, partner);
            let sealed = seal_row(&key, Table::Meta, &place, &fields_to_bytes(&fields), &mut self.rng);
            writes.push(Write::set(Table::Meta, place, sealed));
        }
        writes
    }

    /// Something happened between two agents: their sections follow, and the agent is active.
    fn touch(&mut self, id: &OwnerKey, partner: &OwnerKey) {
        let did = partner.to_did();
        for name in [format!("keys/{did}"), format!("relationship/{did}")] {
            self.change_from_agent(id, &name);
        }
        let now_us = self.now.mono_us;
        let wall_ms = self.now.wall_ms;
        let Some(agent) = self.owners.get_mut(id).and_then(|owner| owner.agent.as_mut()) else { return };
        agent.active_until_us = now_us + ACTIVE_US;
        let quirks: Vec<String> = agent.identity.personality().quirks().iter().map(|quirk| format!("{:?}", quirk.kind)).collect();
        let fields =
            Fields::new().with("mode", "normal").with("quirks", quirks.join(" ")).with("partner", did).with("at", wall_ms.to_le_bytes());
        self.change(id, "behavior", Class::Active, Content::Fields(fields), None);
    }

    /// Puts a section again from what the agent knows now.
    pub(crate) fn change_from_agent(&mut self, id: &OwnerKey, name: &str) {
        let Some(owner) = self.owners.get(id) else { return };
        let Some(agent) = owner.agent.as_ref() else { return };
        let partner = |did: &str| OwnerKey::from_did(did);
        let fields = if let Some(partner) = name.strip_prefix("keys/").and_then(partner) {
            agent.pairs.get(&partner).map(PairState::to_fields)
        } else if let Some(partner) = name.strip_prefix("relationship/").and_then(partner) {
            agent.relationships.get(&partner).map(|relationship| relationship.to_fields(&*owner.signer))
        } else {
            None
        };
        if let Some(fields) = fields {
            self.change(id, name, Class::Relationship, Content::Fields(fields), None);
        }
    }

    /// Message state is durable: now it may be seen.
    pub(crate) fn messages_durable(&mut self, after: AfterMessages) {
        let next_us = self.now.mono_us + RESEND_US;
        for key in after.sending {
            if let Some(sending) = self.messages.outbox.get_mut(&key).filter(|sending| sending.state == "waiting") {
                sending.next_us = Some(next_us);
            }
        }
        if let Some((key, ack)) = after.ack {
            self.keep_ack(key, ack.clone());
        }
        for (to, envelope) in after.publish {
            self.hand_out(to, envelope);
        }
        for (call, report) in after.replies {
            self.reply(call, Ok(Answer::Sent(report)));
        }
        for notice in after.notices {
            self.out.push(Output::Notice(notice));
        }
    }

    /// An envelope goes to its recipient: here, or on its lane.
    fn hand_out(&mut self, to: OwnerKey, envelope: Vec<u8>) {
        let lives_here = self.owners.get(&to).is_some_and(|owner| owner.agent.is_some() && owner.state == OwnerState::Live);
        if lives_here {
            self.messages.here.push_back(envelope);
        } else {
            self.messages.lanes.entry(lane_of(&to)).or_default().push(envelope);
        }
    }

    /// Messages that are due again, announcements, and this turn's envelopes.
    pub(crate) fn tick_messages(&mut self) {
        let now = self.now;
        let mut again = Vec::new();
        let mut expired = Vec::new();
        for (key, sending) in &mut self.messages.outbox {
            if sending.next_us.is_none_or(|at| at > now.mono_us) {
                continue;
            }
            if sending.row.expires_at_ms <= now.wall_ms {
                expired.push(*key);
                continue;
            }
            sending.next_us = Some(now.mono_us + (RESEND_US << sending.attempts.min(5)).min(RESEND_MAX_US));
            sending.attempts += 1;
            again.push((sending.row.to, sending.row.envelope.clone()));
        }
        for key in expired {
            let writes = self.end_sending(&key, "expired");
            self.persist(writes, AfterPersist::Nothing);
        }
        for (to, envelope) in again {
            self.hand_out(to, envelope);
        }
        while let Some(envelope) = self.messages.here.pop_front() {
            self.receive(&envelope);
        }
        if self.messages.announce_next_us <= now.mono_us
            && !self.neighbours.is_empty()
            && let Some(data) = self.messages.announce.pop_front()
        {
            let id = self.id();
            self.messages.published.insert(id, data.clone());
            self.out.push(Output::Publish { id, topic: Gossip::Announce, data });
        }
        for (lane, envelopes) in std::mem::take(&mut self.messages.lanes) {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for envelope in envelopes {
                if !batch.is_empty() && (batch.len() == BATCH_ENVELOPES_MAX || bytes + envelope.len() > BATCH_BYTES_MAX) {
                    self.publish_batch(lane, std::mem::take(&mut batch));
                    bytes = 0;
                }
                bytes += envelope.len();
                batch.push(envelope);
            }
            self.publish_batch(lane, batch);
        }
        let outbox = self.messages.outbox.values().filter_map(|sending| sending.next_us);
        // Alone, they wait for the first connection.
        let listened = !self.neighbours.is_empty() && !self.messages.announce.is_empty();
        let announce = listened.then_some(self.messages.announce_next_us.max(now.mono_us + 100_000));
        self.messages.next_us = outbox.chain(announce).min().unwrap_or(u64::MAX);
    }

    fn publish_batch(&mut self, lane: u8, envelopes: Vec<Vec<u8>>) {
        let nonce = self.rng.next_u64();
        let data = wire::encode(&GossipBatch { nonce, lane, envelopes });
        let id = self.id();
        self.count("gossip_published");
        self.out.push(Output::Publish { id, topic: Gossip::Messages(lane), data });
    }

    /// A publication was taken, or was not. Messages are in the outbox and come again by themselves; announcements are queued again.
    pub(crate) fn on_published(&mut self, id: u64, result: Result<(), PublishError>) {
        let announcement = self.messages.published.remove(&id);
        if result.is_err() {
            self.count("gossip_not_published");
            if let Some(data) = announcement {
                self.queue_announcement(data);
                self.messages.announce_next_us = self.now.mono_us + 1_000_000;
            }
            // Whoever just sent a message waits for its acknowledgement: try again soon, not at the next doubling.
            let soon = self.now.mono_us + 250_000;
            for sending in self.messages.outbox.values_mut() {
                sending.next_us = sending.next_us.map(|at| at.min(soon));
            }
        }
    }

    /// Publishes an envelope that was made elsewhere, as any member of the mesh can.
    pub(crate) fn publish_envelope(&mut self, call: u64, bytes: Vec<u8>) {
        if bytes.is_empty() || bytes.len() > persona_agent::envelope::ENVELOPE_BYTES_MAX {
            return self.reply(
                call,
                Err(CallError::BadRequest(format!("an envelope has 1 to {} bytes", persona_agent::envelope::ENVELOPE_BYTES_MAX))),
            );
        }
        // What does not parse names no recipient: it goes on lane 0, where everybody can refuse it.
        let lane = match parse(&bytes).map(|parsed| parsed.envelope().header.recipient) {
            Ok(Recipient::Agent(agent)) => lane_of(&agent),
            Ok(Recipient::Broadcast) | Err(_) => 0,
        };
        self.publish_batch(lane, vec![bytes]);
        self.reply(call, Ok(Answer::Done));
    }

    // ---- receiving -------------------------------------------------------------------------------------------------------------

    pub(crate) fn on_gossip(&mut self, message: u64, topic: Gossip, data: &[u8]) {
        let verdict = match topic {
            Gossip::Announce => self.on_announcement(data),
            // Alerts come with behaviour's other half; until then nobody vouches for what is said here.
            Gossip::Alerts => Judgement::Ignore,
            Gossip::Messages(lane) => self.on_batch(lane, data),
        };
        self.out.push(Output::Judge { message, verdict });
    }

    fn on_batch(&mut self, lane: u8, data: &[u8]) -> Judgement {
        let Ok(batch) = wire::decode::<GossipBatch>(data) else {
            self.count("gossip_malformed");
            return Judgement::Reject;
        };
        if batch.lane != lane || batch.envelopes.is_empty() || batch.envelopes.len() > BATCH_ENVELOPES_MAX {
            self.count("gossip_malformed");
            return Judgement::Reject;
        }
        let mut sound = true;
        for envelope in &batch.envelopes {
            sound &= self.receive(envelope);
        }
        if sound { Judgement::Accept } else { Judgement::Reject }
    }

    /// One envelope. False if no honest node would pass it on: it does not parse, or its signature is not its sender's.
    fn receive(&mut self, bytes: &[u8]) -> bool {
        let parsed = match parse(bytes) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.refuse_unread(None, None, &error);
                return false;
            }
        };
        let (sender, recipient) = (parsed.envelope().header.sender, parsed.envelope().header.recipient);
        let to = match recipient {
            Recipient::Agent(agent) => Some(agent),
            Recipient::Broadcast => None,
        };
        let verified = match parsed.verify_signature(&*self.keys.verifier) {
            Ok(verified) => verified,
            Err(error) => {
                self.refuse_unread(Some(sender), to, &error);
                return false;
            }
        };
        let Some(to) = to else { return true };
        let lives_here = self.owners.get(&to).is_some_and(|owner| owner.agent.is_some() && owner.state == OwnerState::Live);
        if !lives_here {
            return true;
        }
        let term = verified.envelope().header.term;
        let now_us = self.now.mono_us;
        match self.messages.cards.get(&sender) {
            // A higher term than the card's: the agent may have moved. Its newest card says whether it has.
            Some(known) if known.card.term >= term || known.read_us + CARD_REFETCH_US > now_us => {
                let card = known.card.clone();
                self.judge_message(to, &verified, &card);
            }
            _ => self.wait_for_card(sender, WaitingForCard::Receive { to, envelope: bytes.to_vec() }),
        }
        true
    }

    fn refuse_unread(&mut self, from: Option<OwnerKey>, to: Option<OwnerKey>, error: &EnvelopeError) {
        // Only what is meant for an agent here, or for nobody who can be told, is worth a verdict.
        if to.is_some_and(|to| !self.owners.contains_key(&to)) {
            return;
        }
        self.count("envelopes_refused");
        self.record_verdict(VerdictReport {
            seq: 0,
            at_ms: self.now.wall_ms,
            from: from.map(|from| from.to_did()).unwrap_or_default(),
            to: to.map(|to| to.to_did()),
            accepted: false,
            reason: error.reason().as_str().to_owned(),
            total: None,
            protocol: 0.0,
            behaviour: None,
            counter: 0,
            term: 0,
            kind: String::new(),
        });
    }

    fn record_verdict(&mut self, mut verdict: VerdictReport) {
        self.messages.next_verdict += 1;
        verdict.seq = self.messages.next_verdict;
        if self.messages.verdicts.len() == VERDICTS_MAX {
            self.messages.verdicts.pop_front();
        }
        self.messages.verdicts.push_back(verdict);
        self.out.push(Output::Notice(Notice::Verdict));
    }

    fn judge_message(&mut self, to: OwnerKey, verified: &Verified, card: &Card) {
        let Some(agent) = self.owners.get(&to).and_then(|owner| owner.agent.as_ref()) else { return };
        let envelope = &verified.envelope().header;
        let (sender, kind, counter, term) = (envelope.sender, envelope.kind, envelope.counter, envelope.term);
        if self.bond_is_missing(&to, &sender).is_some() {
            // Not judged, so not refused: without the chain nobody can tell. Its sender sends it again.
            return self.count("messages_dropped_waiting");
        }
        let (verdict, accepted) = judge(verified, &agent.identity, agent.pairs.get(&sender), card, self.now.wall_ms);
        self.record_verdict(verdict_report(&verdict, &sender, &to, self.now.wall_ms, counter, term, kind));
        let Some(accepted) = accepted else {
            self.count("envelopes_refused");
            // The same envelope again: most likely its acknowledgement was lost. The same acknowledgement goes out again, which changes
            // nothing on either side if it was a replay.
            if let Some(ack) = self.messages.acks.get(&(to, verified.digest())).cloned() {
                self.hand_out(sender, ack);
            }
            return;
        };
        self.count("envelopes_accepted");
        let now_ms = self.now.wall_ms;
        let first_contact = verified.envelope().header.first_contact.is_some();
        let Some(agent) = self.owners.get_mut(&to).and_then(|owner| owner.agent.as_mut()) else { return };
        // First contact again, from a later term: the partner came back without this pair's keys, and cannot read what is sent under them.
        let met_before = agent.pairs.get(&sender).and_then(PairState::acknowledged).is_some_and(|acknowledged| acknowledged.term < term);
        let mut pair = accepted.pair;
        if first_contact && met_before {
            pair.restart_sending();
        }
        agent.pairs.insert(sender, pair);
        let mut after = AfterMessages::default();
        let mut writes = Vec::new();
        match accepted.kind {
            Kind::Ack => {
                let named = wire::decode::<AckPayload>(&accepted.payload).ok();
                let named = named.map(|ack| ((to, sender, ack.term, ack.counter), ack.envelope));
                let row = named.and_then(|(key, envelope)| {
                    let sending = self.messages.outbox.get(&key)?;
                    (sending.state == "waiting" && sending.row.digest == envelope).then(|| (key, sending.row.clone()))
                });
                if let Some((key, row)) = row {
                    let interaction = Interaction {
                        at_ms: now_ms,
                        direction: Direction::Sent,
                        kind: Kind::Text,
                        counter: row.counter,
                        term: row.term,
                        payload: row.payload,
                        total_permille: None,
                    };
                    append(agent, &to, sender, interaction);
                    writes.extend(self.end_sending(&key, "acknowledged"));
                }
            }
            _ => {
                let interaction = Interaction {
                    at_ms: now_ms,
                    direction: Direction::Received,
                    kind: accepted.kind,
                    counter,
                    term,
                    payload: accepted.payload_digest,
                    total_permille: verdict.total.map(|total| (total * 1000.0) as u16),
                };
                append(agent, &to, sender, interaction);
                let seq = agent.next_inbox;
                agent.next_inbox += 1;
                let payload = AckPayload { term, counter, envelope: accepted.envelope_digest };
                let ack = match self.compose_row(to, card, Kind::Ack, &wire::encode(&payload), now_ms + self.config.message_ttl_ms) {
                    Ok(ack) => ack.envelope,
                    Err(error) => {
                        self.alarm("ack-failed", format!("a message was delivered, but cannot be acknowledged: {error}; its sender will send it again, and `persona inbox` has it"));
                        Vec::new()
                    }
                };
                let row = InboxRow {
                    from: sender,
                    from_name: Some(card.name.clone()),
                    text: String::from_utf8_lossy(&accepted.payload).into_owned(),
                    counter,
                    term,
                    received_ms: now_ms,
                    protocol_permille: (verdict.protocol * 1000.0) as u16,
                    envelope: accepted.envelope_digest,
                    ack: ack.clone(),
                };
                writes.extend(self.deliver(&to, seq, row));
                if !ack.is_empty() {
                    after.publish.push((sender, ack.clone()));
                    after.ack = Some(((to, accepted.envelope_digest), ack));
                }
                after.notices.push(Notice::Inbox(to));
            }
        }
        writes.extend(self.pair_writes(&to, &sender));
        self.touch(&to, &sender);
        self.persist(writes, AfterPersist::Messages(after));
    }

    fn deliver(&mut self, to: &OwnerKey, seq: u64, row: InboxRow) -> Vec<Write> {
        let Some(owner) = self.owners.get(to) else { return Vec::new() };
        let place = inbox_place(to, seq);
        let sealed = seal_row(&owner.root.local_key(), Table::Inbox, &place, &wire::encode(&row), &mut self.rng);
        let mut writes = vec![Write::set(Table::Inbox, place, sealed)];
        let inbox = self.messages.inbox.entry(*to).or_default();
        inbox.push_back((seq, row));
        if inbox.len() > INBOX_MAX
            && let Some((old, _)) = inbox.pop_front()
        {
            writes.push(Write::remove(Table::Inbox, inbox_place(to, old)));
        }
        writes
    }

    /// Remembers an acknowledgement whose message is durably delivered.
    fn keep_ack(&mut self, key: (OwnerKey, Digest), ack: Vec<u8>) {
        if self.messages.acks_order.len() == ACKS_KEPT_MAX
            && let Some(old) = self.messages.acks_order.pop_front()
        {
            self.messages.acks.remove(&old);
        }
        self.messages.acks_order.push_back(key);
        self.messages.acks.insert(key, ack);
    }

    /// A message is over: it is not sent again, and shown for a while.
    fn end_sending(&mut self, key: &OutboxKey, state: &'static str) -> Vec<Write> {
        let Some(sending) = self.messages.outbox.get_mut(key) else { return Vec::new() };
        sending.state = state;
        sending.next_us = None;
        let place = outbox_place(&key.0, &sending.row);
        self.messages.over.push_back(*key);
        if self.messages.over.len() > OUTBOX_OVER_MAX
            && let Some(oldest) = self.messages.over.pop_front()
        {
            self.messages.outbox.remove(&oldest);
        }
        vec![Write::remove(Table::Outbox, place)]
    }

    /// An agent does not send from here any more: whoever knows its new term would refuse what was sealed in the old one.
    pub(crate) fn stop_sending(&mut self, id: &OwnerKey) -> Vec<Write> {
        let waiting = |(key, sending): (&OutboxKey, &Sending)| (key.0 == *id && sending.state == "waiting").then_some(*key);
        let keys: Vec<OutboxKey> = self.messages.outbox.iter().filter_map(waiting).collect();
        keys.iter().flat_map(|key| self.end_sending(key, "fenced")).collect()
    }

    // ---- cards -----------------------------------------------------------------------------------------------------------------

    fn wait_for_card(&mut self, agent: OwnerKey, waiter: WaitingForCard) {
        let too_many = self.messages.waiting.len() >= CARDS_READ_MAX && !self.messages.waiting.contains_key(&agent);
        if too_many || self.messages.waiting.get(&agent).is_some_and(|waiting| waiting.len() >= WAITING_FOR_CARD_MAX) {
            self.count("messages_dropped_waiting");
            if let WaitingForCard::Send { call, .. } = waiter {
                self.reply(call, Err(CallError::Busy("too many messages wait for this recipient's card".into())));
            }
            return;
        }
        let waiting = self.messages.waiting.entry(agent).or_default();
        let asked_already = !waiting.is_empty();
        waiting.push(waiter);
        if !asked_already {
            self.fetch_card(agent, Mode::Regular);
        }
    }

    fn fetch_card(&mut self, agent: OwnerKey, mode: Mode) {
        let key = SectionKey::derive(&agent, b"card");
        let label = format!("{}/card", agent.to_did());
        let wanted = Wanted { key, owner: Some(agent), label, mode, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Card { agent, mode });
    }

    /// A card was read, or could not be.
    pub(crate) fn card_came(&mut self, agent: OwnerKey, mode: Mode, result: Result<Option<Card>, CallError>) {
        // Too many of its holders are gone to know that it is the newest: it is signed all the same, and better than silence. If the agent
        // has moved meanwhile, its next message is of a higher term, and its card is read again.
        if mode != Mode::Any && matches!(result, Err(CallError::QuorumUnreachable { .. } | CallError::Unavailable { .. })) {
            return self.fetch_card(agent, Mode::Any);
        }
        let waiting = self.messages.waiting.remove(&agent).unwrap_or_default();
        let (card, error) = match result {
            Ok(Some(card)) => {
                let known = self.messages.cards.get(&agent).map(|known| known.card.clone());
                let card = known.filter(|known| known.term > card.term).unwrap_or(card);
                if !self.keeps_its_commitment(&card) {
                    let reason = "it shows another personality than the one the agent is bound to".to_owned();
                    return self.refuse_card(waiting, &CallError::Unreadable { what: format!("{}/card", agent.to_did()), reason });
                }
                if self.messages.cards.len() >= CARDS_MAX && !self.messages.cards.contains_key(&agent) {
                    let first = self.messages.cards.iter().min_by_key(|(_, known)| known.read_us).map(|(id, _)| *id);
                    first.and_then(|first| self.messages.cards.remove(&first));
                }
                let read_us = self.now.mono_us;
                self.messages.cards.insert(agent, KnownCard { card: card.clone(), read_us });
                (Some(card), None)
            }
            Ok(None) => (
                None,
                Some(CallError::Unreadable { what: format!("{}/card", agent.to_did()), reason: "it is not this agent's card".into() }),
            ),
            Err(error) => {
                // What was read before still counts, for its own term.
                if let Some(known) = self.messages.cards.get_mut(&agent) {
                    known.read_us = self.now.mono_us;
                }
                (self.messages.cards.get(&agent).map(|known| known.card.clone()), Some(error))
            }
        };
        for waiter in waiting {
            match (waiter, &card) {
                (WaitingForCard::Send { call, from, text }, Some(card)) => self.send_now(call, from, card, &text),
                (WaitingForCard::Send { call, .. }, None) => {
                    let error = error.clone().unwrap_or(CallError::Busy("the recipient's card cannot be read".into()));
                    self.reply(call, Err(error));
                }
                (WaitingForCard::Receive { to, envelope }, Some(card)) => {
                    let verified = parse(&envelope).and_then(|parsed| parsed.verify_signature(&*self.keys.verifier));
                    if let Ok(verified) = verified {
                        self.judge_message(to, &verified, card);
                    }
                }
                (WaitingForCard::Receive { to, envelope }, None) => {
                    self.refuse_unjudged(to, &envelope, persona_agent::Reason::UnknownSender);
                }
            }
        }
    }

    /// A card that breaks its agent's commitment is used for nothing.
    fn refuse_card(&mut self, waiting: Vec<WaitingForCard>, error: &CallError) {
        for waiter in waiting {
            match waiter {
                WaitingForCard::Send { call, .. } => self.reply(call, Err(error.clone())),
                WaitingForCard::Receive { to, envelope } => {
                    self.refuse_unjudged(to, &envelope, persona_agent::Reason::CommitmentChanged);
                }
            }
        }
    }

    fn refuse_unjudged(&mut self, to: OwnerKey, bytes: &[u8], reason: persona_agent::Reason) {
        let Ok(parsed) = parse(bytes) else { return };
        let envelope = &parsed.envelope().header;
        let verdict = VerdictReport {
            seq: 0,
            at_ms: self.now.wall_ms,
            from: envelope.sender.to_did(),
            to: Some(to.to_did()),
            accepted: false,
            reason: reason.as_str().to_owned(),
            total: None,
            protocol: 0.0,
            behaviour: None,
            counter: envelope.counter,
            term: envelope.term,
            kind: kind_name(envelope.kind).to_owned(),
        };
        self.count("envelopes_refused");
        self.record_verdict(verdict);
    }

    // ---- commitments -----------------------------------------------------------------------------------------------------------

    /// Announces the personality commitment of an agent of this node.
    pub(crate) fn announce(&mut self, id: &OwnerKey) {
        let wall_ms = self.now.wall_ms;
        let Some(owner) = self.owners.get(id) else { return };
        let Some(agent) = owner.agent.as_ref() else { return };
        let commitment = Commitment::first(*id, agent.identity.personality().commitment(), wall_ms, &*owner.signer);
        self.observe(&commitment);
        self.queue_announcement(Announcement::Commitment(commitment).to_bytes());
        self.messages.announce_next_us = self.now.mono_us;
        self.messages.next_us = self.now.mono_us;
    }

    fn queue_announcement(&mut self, data: Vec<u8>) {
        if self.messages.announce.len() >= ANNOUNCEMENTS_MAX {
            self.messages.announce.pop_front();
        }
        self.messages.announce.push_back(data);
    }

    /// Whether envelopes wait to be handed out.
    pub(crate) fn has_envelopes(&self) -> bool {
        !self.messages.lanes.is_empty() || !self.messages.here.is_empty()
    }

    fn on_announcement(&mut self, data: &[u8]) -> Judgement {
        let Ok(Announcement::Commitment(commitment)) = Announcement::from_bytes(data, &*self.keys.verifier) else {
            self.count("gossip_malformed");
            return Judgement::Reject;
        };
        // A second personality for a known agent is passed on: others must be able to see it and be alarmed too.
        self.observe(&commitment);
        Judgement::Accept
    }

    fn observe(&mut self, commitment: &Commitment) {
        // Partners of this node's own agents may vouch for one another.
        let partners: BTreeSet<OwnerKey> =
            self.owners.values().filter_map(|owner| owner.agent.as_ref()).flat_map(|agent| agent.relationships.keys().copied()).collect();
        match self.registry.observe(commitment, &|partner| partners.contains(partner)) {
            Observed::New | Observed::Rebound => {
                let write = Write::set(Table::Commitment, commitment.agent().0, commitment.to_bytes());
                self.persist(vec![write], AfterPersist::Nothing);
            }
            Observed::Refused { known } => {
                self.count("commitments_refused");
                let did = commitment.agent().to_did();
                let text = format!(
                    "a second personality {} was announced for {did}, which is bound to {}: its signing key may be stolen. \
                     Believe nothing new that is signed by it until its owner has confirmed, on another way, which of the two is its own",
                    &commitment.digest().to_hex()[..16],
                    &known.to_hex()[..16],
                );
                self.alarm("second-commitment", text);
            }
            Observed::Same | Observed::Superseded | Observed::Full => {}
        }
    }

    /// A card binds its agent to a personality: another one than the announced is refused and alarmed.
    pub(crate) fn keeps_its_commitment(&mut self, card: &Card) -> bool {
        let kept = self.registry.known(&card.agent).is_none_or(|known| known == card.commitment);
        if !kept {
            let did = card.agent.to_did();
            let text = format!(
                "the card of {did} shows another personality than the one it is bound to, and is not believed: ask its owner, on another way, \
                 whether its signing key was stolen"
            );
            self.alarm("second-commitment", text);
        }
        kept
    }

    // ---- looking ---------------------------------------------------------------------------------------------------------------

    pub(crate) fn read_inbox(&mut self, call: u64, agent: OwnerKey, after: u64) {
        if self.owners.get(&agent).is_none_or(|owner| owner.agent.is_none()) {
            return self.reply(call, Err(CallError::UnknownAgent(agent.to_did())));
        }
        let did = agent.to_did();
        let messages: Vec<InboxMessage> = self
            .messages
            .inbox
            .get(&agent)
            .into_iter()
            .flatten()
            .filter(|(seq, _)| *seq > after)
            .map(|(seq, row)| InboxMessage {
                seq: *seq,
                from: row.from.to_did(),
                from_name: row.from_name.clone(),
                text: row.text.clone(),
                counter: row.counter,
                term: row.term,
                received_ms: row.received_ms,
                verdict: VerdictReport {
                    seq: 0,
                    at_ms: row.received_ms,
                    from: row.from.to_did(),
                    to: Some(did.clone()),
                    accepted: true,
                    reason: persona_agent::Reason::Accepted.as_str().to_owned(),
                    total: None,
                    protocol: f64::from(row.protocol_permille) / 1000.0,
                    behaviour: None,
                    counter: row.counter,
                    term: row.term,
                    kind: "text".into(),
                },
            })
            .collect();
        let next = messages.last().map_or(after, |message| message.seq);
        self.reply(call, Ok(Answer::Inbox(InboxReport { messages, next })));
    }

    pub(crate) fn read_outbox(&mut self, call: u64, agent: OwnerKey) {
        if self.owners.get(&agent).is_none_or(|owner| owner.agent.is_none()) {
            return self.reply(call, Err(CallError::UnknownAgent(agent.to_did())));
        }
        let messages = self
            .messages
            .outbox
            .iter()
            .filter(|(key, _)| key.0 == agent)
            .map(|(_, outgoing)| OutboxMessage {
                id: outgoing.row.digest.to_hex(),
                to: outgoing.row.to.to_did(),
                counter: outgoing.row.counter,
                term: outgoing.row.term,
                state: outgoing.state,
                attempts: outgoing.attempts,
                envelope: data_encoding::BASE64.encode(&outgoing.row.envelope),
            })
            .collect();
        self.reply(call, Ok(Answer::Outbox(OutboxReport { messages })));
    }

    pub(crate) fn read_relationships(&mut self, call: u64, id: OwnerKey) {
        let Some((owner, agent)) = self.owners.get(&id).and_then(|owner| Some((owner, owner.agent.as_ref()?))) else {
            return self.reply(call, Err(CallError::UnknownAgent(id.to_did())));
        };
        let paranoia = agent.identity.personality().trait_value(persona_agent::Trait::Paranoia);
        let relationships = agent
            .relationships
            .iter()
            .map(|(partner, relationship)| RelationshipReport {
                partner: partner.to_did(),
                interactions: relationship.len(),
                comfort: relationship.comfort(paranoia),
                head: relationship.head().to_hex(),
                entries: relationship.entries().len(),
                bytes_sha256: Digest(Sha256::digest(fields_to_bytes(&relationship.to_fields(&*owner.signer))).into()).to_hex(),
            })
            .collect();
        self.reply(call, Ok(Answer::Relationships(RelationshipsReport { relationships })));
    }

    pub(crate) fn read_verdicts(&mut self, call: u64, after: u64) {
        let verdicts: Vec<VerdictReport> = self.messages.verdicts.iter().filter(|verdict| verdict.seq > after).cloned().collect();
        let next = verdicts.last().map_or(after, |verdict| verdict.seq);
        self.reply(call, Ok(Answer::Verdicts(VerdictsReport { verdicts, next })));
    }

    /// Takes up an agent's delivered and outgoing messages after a restart.
    pub(crate) fn take_message_rows(&mut self, id: &OwnerKey, rows: Rows) -> Result<(), String> {
        let Some(owner) = self.owners.get_mut(id) else { return Ok(()) };
        let key = owner.root.local_key();
        let inbox = open_inbox(&key, rows.inbox)?;
        if let Some(agent) = owner.agent.as_mut() {
            agent.next_inbox = inbox.back().map_or(1, |(seq, _)| seq + 1);
        }
        for (_, row) in inbox.iter().filter(|(_, row)| !row.ack.is_empty()) {
            self.keep_ack((*id, row.envelope), row.ack.clone());
        }
        self.messages.inbox.insert(*id, inbox);
        for (_, value) in rows.outbox {
            let row: OutboxRow = wire::decode(&value).map_err(|error| format!("a message on its way does not decode: {error}"))?;
            let key = (*id, row.to, row.term, row.counter);
            self.messages.outbox.insert(key, Sending { row, attempts: 0, next_us: Some(self.now.mono_us), state: "waiting" });
        }
        Ok(())
    }

    /// Forgets the messages of an agent that could not be taken up. They stay on the disk.
    pub(crate) fn forget_messages(&mut self, id: &OwnerKey) {
        self.messages.inbox.remove(id);
        self.messages.outbox.retain(|key, _| key.0 != *id);
    }

    /// An agent came here that lived here before: its inbox goes on, and what it was sending in an older term is over.
    pub(crate) fn continue_messages(&mut self, id: &OwnerKey, key: &[u8; 32], rows: Rows) -> Vec<Write> {
        let stored = rows.inbox.iter().map(|(place, _)| inbox_seq(place)).max();
        if !rows.inbox.is_empty() {
            match open_inbox(key, rows.inbox) {
                Ok(inbox) => drop(self.messages.inbox.insert(*id, inbox)),
                Err(error) => {
                    let text = format!(
                        "what {} received here before is lost: {error}; ask its partners to send again what is missed, and look after the \
                         disk",
                        id.to_did()
                    );
                    self.alarm("inbox-damaged", text);
                }
            }
        }
        let known = self.messages.inbox.get(id).and_then(|inbox| inbox.back()).map(|(seq, _)| *seq);
        if let Some(agent) = self.owners.get_mut(id).and_then(|owner| owner.agent.as_mut()) {
            agent.next_inbox = stored.max(known).unwrap_or(0) + 1;
        }
        let mut writes = self.stop_sending(id);
        writes.extend(rows.outbox.into_iter().map(|(place, _)| Write::remove(Table::Outbox, place)));
        writes
    }

    // ---- the canary ------------------------------------------------------------------------------------------------------------

    /// A section of the node's own, put and read back: only then is the node ready.
    pub(crate) fn tick_canary(&mut self) {
        let now_us = self.now.mono_us;
        if self.canary.running || self.canary.next_us > now_us {
            return;
        }
        // Joining takes a moment; only who knows nobody for a while is alone.
        if self.neighbours.is_empty() && !self.canary.ready && now_us < self.canary.started_us + 1_500_000 {
            self.canary.next_us = now_us + 100_000;
            return;
        }
        self.canary.running = true;
        self.canary.next_us = now_us + 10_000_000;
        let mut content = vec![0; 256];
        self.rng.fill_bytes(&mut content);
        self.canary.content.clone_from(&content);
        let id = self.node_owner;
        let fields = Fields::new().with("document", content);
        self.change_with(&id, "canary", Class::Document, 60_000, 0, 2, Content::Fields(fields), Some(crate::own::PutWaiter::Canary));
    }

    pub(crate) fn canary_put(&mut self, result: Result<(crate::report::PutReport, u64, bool), CallError>) {
        // The canary is not renewed: the next one is a new one.
        let id = self.node_owner;
        if let Some(owned) = self.owners.get_mut(&id).and_then(|owner| owner.sections.get_mut("canary")) {
            owned.due_us = None;
        }
        let Ok((report, ..)) = result else { return self.canary_failed() };
        self.canary.put_ms = report.ms;
        let Some(key) = SectionKey::from_kad_key(&report.kad_key) else { return self.canary_failed() };
        let wanted = Wanted { key, owner: Some(id), label: "canary".into(), mode: Mode::Regular, fence: None, want_content: true };
        self.begin_get(wanted, GetPurpose::Canary);
    }

    pub(crate) fn canary_got(&mut self, result: Result<crate::reads::Got, CallError>) {
        let id = self.node_owner;
        let Ok(got) = result else { return self.canary_failed() };
        let same = self.open(&id, "canary", &got.value).is_ok_and(|fields| fields.get("document") == Some(self.canary.content.as_slice()));
        if !same {
            return self.canary_failed();
        }
        let through_network = got.report.shards_from_network >= u32::from(got.report.k);
        let alone = self.neighbours.is_empty();
        self.canary.report = Some(CanaryReport {
            put_ms: self.canary.put_ms,
            get_ms: got.report.ms,
            holders_answered: got.report.holders_answered,
            through_network,
            at_ms: self.now.wall_ms,
        });
        self.canary.running = false;
        self.canary.alone = alone;
        // With neighbours, only what went through them proves anything.
        let ready = alone || through_network;
        self.canary.next_us = self.now.mono_us + if ready { self.config.canary_s * 1_000_000 } else { 500_000 };
        self.set_ready(ready);
    }

    fn canary_failed(&mut self) {
        self.canary.running = false;
        self.canary.next_us = self.now.mono_us + 500_000;
        self.set_ready(false);
    }

    fn set_ready(&mut self, ready: bool) {
        if self.canary.ready != ready {
            self.canary.ready = ready;
            self.out.push(Output::Notice(Notice::Ready(ready)));
        }
    }
}

fn append(agent: &mut Agent, owner: &OwnerKey, partner: OwnerKey, interaction: Interaction) {
    let relationship = agent.relationships.entry(partner).or_insert_with(|| Relationship::new(*owner, partner));
    relationship.append(interaction);
}

fn outbox_place(from: &OwnerKey, row: &OutboxRow) -> Vec<u8> {
    [&from.0[..], &row.to.0, &row.term.to_be_bytes(), &row.counter.to_be_bytes()].concat()
}

/// Opens the delivered messages of an agent, in their order.
fn open_inbox(key: &[u8; 32], rows: Vec<(Vec<u8>, Vec<u8>)>) -> Result<VecDeque<(u64, InboxRow)>, String> {
    let mut inbox = Vec::new();
    for (place, sealed) in rows {
        let opened =
            open_row(key, Table::Inbox, &place, &sealed).ok_or("a delivered message does not open: the state directory was altered")?;
        let row: InboxRow = wire::decode(&opened).map_err(|error| format!("a delivered message does not decode: {error}"))?;
        inbox.push((inbox_seq(&place), row));
    }
    inbox.sort_by_key(|(seq, _)| *seq);
    Ok(inbox.into())
}

fn inbox_seq(place: &[u8]) -> u64 {
    place.get(32..).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn inbox_place(to: &OwnerKey, seq: u64) -> Vec<u8> {
    [&to.0[..], &seq.to_be_bytes()].concat()
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Ack => "ack",
        Kind::Grant => "grant",
        Kind::Alert => "alert",
        Kind::Ratchet => "ratchet",
    }
}

fn verdict_report(verdict: &Verdict, from: &OwnerKey, to: &OwnerKey, at_ms: u64, counter: u64, term: u64, kind: Kind) -> VerdictReport {
    VerdictReport {
        seq: 0,
        at_ms,
        from: from.to_did(),
        to: Some(to.to_did()),
        accepted: verdict.accepted,
        reason: verdict.reason.as_str().to_owned(),
        total: verdict.total,
        protocol: verdict.protocol,
        behaviour: verdict.behaviour,
        counter,
        term,
        kind: kind_name(kind).to_owned(),
    }
}
