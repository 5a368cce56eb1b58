//! One moment of a scene as a row of numbers, what can happen next, and what may never.

use std::{collections::BTreeSet, fmt};

use persona_mesh_proto::{GetError, Mode};

use crate::{
    cast::{Begun, Cast, End, Id, Input, Send, TaskStep},
    scene::{Answers, Crash, LIAR, READERS_MAX, Scene, WRITES_MAX},
};

/// What may never be seen. The numbers are those of docs/guarantees.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// I1: what is returned is what was put.
    WrongBytes,
    /// I3: a get begun after a put committed returns it or a newer one, or an error.
    Stale,
    /// I4: nothing is returned before its put began.
    FromTheFuture,
    /// I5: after an atomic get, no later atomic get returns less.
    Inversion,
    /// I7: after a put committed, `k` correct holders have shards of it or of one certified newer version.
    Lost,
    /// I8: no holder acks two manifests of one version, and no two can be certified.
    TwoManifests,
    /// I8, as readers see it: no two of them get different bytes for one version.
    Disagreement,
    /// I9: nothing is acknowledged before it is on the disk.
    Hasty,
    /// I16: `Committed` with a certificate of `n - f` holders, and a quorum of them knows it.
    Unproven,
    /// I16: no error says what is not so: lost, poisoned or expired when nothing is; not found when it was committed before.
    FalseError,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 10] = [
        Self::WrongBytes,
        Self::Stale,
        Self::FromTheFuture,
        Self::Inversion,
        Self::Lost,
        Self::TwoManifests,
        Self::Disagreement,
        Self::Hasty,
        Self::Unproven,
        Self::FalseError,
    ];
}

/// Slots: one for each put, one for the put that a restarted writer repeats, one for each reader.
const AGAIN: usize = WRITES_MAX;
const FIRST_READER: usize = WRITES_MAX + 1;
const SLOTS: usize = FIRST_READER + READERS_MAX;

/// The most nodes of a scene.
const NODES_MAX: usize = 5;

/// A slot that nobody has used, and one whose operation is over.
const FREE: Id = Id::MAX;
const OVER: Id = Id::MAX - 1;

/// In place of an answer: there will be none.
const NO_ANSWER: Id = Id::MAX;

/// How many answers a get needs at least before it can end: `n - f`.
const HEARD_TOGETHER: usize = 3;

/// In place of a manifest's number plus one: the get ended without a value.
const NO_VALUE: u8 = 15;

/// Something on its way between a slot and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Message {
    slot: u8,
    node: u8,
    tag: u32,
    what: Id,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    holders: [Id; NODES_MAX],
    slots: [Id; SLOTS],
    /// By slot and node, each such link in the order of sending.
    requests: Vec<Message>,
    /// The same, the other way: where answers may be late those on their way, else those that a get has not been handed yet.
    answers: Vec<Message>,
    /// Puts begun, and committed: one bit for each manifest.
    begun: u8,
    committed: u8,
    /// What the put that is repeated puts.
    again: u8,
    /// By reader: a manifest's number plus one that it may not return less than, by I3 and by I5; and what it returned.
    at_least: [u8; READERS_MAX],
    at_least_atomic: [u8; READERS_MAX],
    returned: [u8; READERS_MAX],
    /// The most that an atomic get has returned.
    seen: u8,
    crashed: bool,
    timed: bool,
}

/// When, in the middle of a request, a holder dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before it synced. What it answered already is under way.
    BeforeSync,
    /// After it synced and before it answered.
    AfterSync,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The writer begins a put.
    BeginPut(usize),
    /// A reader begins.
    BeginGet(usize),
    /// A request reaches a correct holder.
    Request(usize, usize),
    /// A request reaches the liar, which answers in this way.
    Lie(usize, usize, usize),
    /// An answer reaches whoever asked.
    Answer(usize, usize),
    /// A holder dies with all that waits for it, and starts again.
    HolderDies(usize),
    /// A holder dies over a request.
    HolderDiesOver(usize, usize, Moment),
    /// The writer dies, starts again, and puts the same bytes again.
    WriterRepeats,
    /// The writer dies or gives up, and what became of its put is unknown.
    WriterGoesOn,
    /// A deadline of this slot's operation has come, early as it may be.
    Timer(usize),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |slot: usize| match slot {
            AGAIN => "the repeated put".to_owned(),
            slot if slot < FIRST_READER => format!("put {}", slot + 1),
            slot => format!("reader {}", slot - FIRST_READER + 1),
        };
        match *self {
            Self::BeginPut(write) => write!(f, "put {} begins", write + 1),
            Self::BeginGet(reader) => write!(f, "reader {} begins", reader + 1),
            Self::Request(slot, node) => write!(f, "{} -> holder {node}", who(slot)),
            Self::Lie(slot, node, _) => write!(f, "{} -> liar {node}", who(slot)),
            Self::Answer(slot, node) => write!(f, "holder {node}'s answer -> {}", who(slot)),
            Self::HolderDies(node) => write!(f, "holder {node} dies and starts again"),
            Self::HolderDiesOver(slot, node, Moment::BeforeSync) => {
                write!(f, "{} -> holder {node}, which dies before it synced", who(slot))
            }
            Self::HolderDiesOver(slot, node, Moment::AfterSync) => {
                write!(f, "{} -> holder {node}, which dies before it answered", who(slot))
            }
            Self::WriterRepeats => write!(f, "the writer dies, starts again, and puts the same bytes again"),
            Self::WriterGoesOn => write!(f, "the writer dies, starts again, and leaves it at that"),
            Self::Timer(slot) => write!(f, "{} has waited long enough", who(slot)),
        }
    }
}

/// What an action leads to.
pub struct Next {
    /// The moment after it.
    pub state: State,
    /// The rules that it broke.
    pub broken: BTreeSet<Rule>,
    /// What was said, for whoever is told.
    pub said: String,
}

impl State {
    /// Before anything has happened.
    pub fn first(scene: &Scene, cast: &mut Cast) -> Self {
        assert!(scene.nodes <= NODES_MAX && scene.writes.len() <= WRITES_MAX && scene.readers.len() <= READERS_MAX, "a small scene");
        let mut holders = [FREE; NODES_MAX];
        for (node, holder) in holders.iter_mut().enumerate().take(scene.nodes).filter(|(node, _)| *node != LIAR) {
            *holder = cast.empty_holder(node);
        }
        let mut first = Self {
            holders,
            slots: [FREE; SLOTS],
            requests: Vec::new(),
            answers: Vec::new(),
            begun: 0,
            committed: 0,
            again: 0,
            at_least: [0; READERS_MAX],
            at_least_atomic: [0; READERS_MAX],
            returned: [0; READERS_MAX],
            seen: 0,
            crashed: false,
            timed: false,
        };
        let mut following = scene.settled.then_some(Action::BeginPut(0));
        while let Some(action) = following {
            first = first.after(action, scene, cast).state;
            following = Self::heads(&first.requests).next().map(|link| Action::Request(link.slot.into(), link.node.into()));
        }
        first
    }

    /// All that can happen next.
    pub fn actions(&self, scene: &Scene, cast: &mut Cast) -> Vec<Action> {
        let mut actions = Vec::new();
        let puts = 0..scene.writes.len();
        let idle = puts.clone().chain([AGAIN]).all(|slot| matches!(self.slots[slot], FREE | OVER));
        let next = puts.clone().find(|write| self.slots[*write] == FREE);
        match next {
            Some(write) if !scene.twins && idle => actions.push(Action::BeginPut(write)),
            Some(_) if scene.twins => actions.extend(puts.clone().filter(|write| self.slots[*write] == FREE).map(Action::BeginPut)),
            _ => {}
        }
        let readers = (0..scene.readers.len()).filter(|reader| self.slots[FIRST_READER + reader] == FREE);
        actions.extend(readers.map(Action::BeginGet));
        for link in Self::heads(&self.requests) {
            let (slot, node) = (usize::from(link.slot), usize::from(link.node));
            if node == LIAR {
                // What is handed over together with the answers of others may as well be made up last, when the liar knows most.
                if self.unheard(slot, scene, cast) && self.held(slot) + 1 < HEARD_TOGETHER {
                    continue;
                }
                let lies = cast.lies(link.what, &self.acked(scene, cast), self.begun).len();
                actions.extend((0..lies).map(|lie| Action::Lie(slot, node, lie)));
            } else {
                actions.push(Action::Request(slot, node));
            }
        }
        if scene.answers == Answers::Late {
            actions.extend(Self::heads(&self.answers).map(|link| Action::Answer(link.slot.into(), link.node.into())));
        }
        if scene.crash != Crash::None && !self.crashed {
            for node in (0..scene.nodes).filter(|node| *node != LIAR && scene.crash == Crash::Any) {
                let late = self.answers.iter().filter(|_| scene.answers == Answers::Late);
                if self.requests.iter().chain(late).any(|message| usize::from(message.node) == node) {
                    actions.push(Action::HolderDies(node));
                }
                for link in Self::heads(&self.requests).filter(|link| usize::from(link.node) == node) {
                    let (slot, step) = (link.slot.into(), cast.holder_step(self.holders[node], link.what));
                    if step.hasty {
                        actions.push(Action::HolderDiesOver(slot, node, Moment::BeforeSync));
                    }
                    if step.next != self.holders[node] {
                        actions.push(Action::HolderDiesOver(slot, node, Moment::AfterSync));
                    }
                }
            }
            if puts.clone().any(|write| !matches!(self.slots[write], FREE | OVER)) {
                actions.extend([Action::WriterRepeats, Action::WriterGoesOn]);
            }
        }
        if scene.timer && !self.timed {
            actions.extend((0..SLOTS).filter(|slot| !matches!(self.slots[*slot], FREE | OVER)).map(Action::Timer));
        }
        actions
    }

    /// What an action leads to.
    pub fn after(&self, action: Action, scene: &Scene, cast: &mut Cast) -> Next {
        let mut next = Next { state: self.clone(), broken: BTreeSet::new(), said: String::new() };
        match action {
            Action::BeginPut(write) => {
                next.state.begun |= 1 << write;
                let step = cast.begin(Begun::Put(write));
                next.go_on(write, &step, scene, cast);
            }
            Action::BeginGet(reader) => {
                let state = &mut next.state;
                // Twins are of one version: none of the two is newer than the other.
                state.at_least[reader] = if scene.twins { 0 } else { highest(state.committed) };
                state.at_least_atomic[reader] = if scene.twins { 0 } else { state.seen };
                let step = cast.begin(Begun::Get(scene.readers[reader]));
                next.go_on(FIRST_READER + reader, &step, scene, cast);
            }
            Action::Request(slot, node) => {
                let message = next.state.take_request(slot, node);
                let step = cast.holder_step(self.holders[node], message.what);
                next.state.holders[node] = step.next;
                if step.hasty {
                    next.broken.insert(Rule::Hasty);
                }
                next.said = format!("{}: {}", cast.request_words(message.what), cast.answer_words(step.answer));
                next.look_at_holders(scene, cast);
                next.answer(message, step.answer, scene, cast);
            }
            Action::Lie(slot, node, lie) => {
                let message = next.state.take_request(slot, node);
                let answer = cast.lies(message.what, &self.acked(scene, cast), self.begun)[lie];
                next.said = format!("{}: {}", cast.request_words(message.what), cast.answer_words(answer));
                next.answer(message, answer, scene, cast);
            }
            Action::Answer(slot, node) => {
                let message = take(&mut next.state.answers, slot, node);
                next.said = cast.answer_words(message.what);
                next.hear(message, scene, cast);
            }
            Action::HolderDies(node) => next.die(node, scene, cast),
            Action::HolderDiesOver(slot, node, moment) => {
                let message = next.state.take_request(slot, node);
                let step = cast.holder_step(self.holders[node], message.what);
                next.said = cast.request_words(message.what);
                match moment {
                    Moment::BeforeSync => next.answer(message, step.answer, scene, cast),
                    Moment::AfterSync => {
                        next.state.holders[node] = step.next;
                        next.look_at_holders(scene, cast);
                        next.hear(Message { what: NO_ANSWER, ..message }, scene, cast);
                    }
                }
                next.die(node, scene, cast);
            }
            Action::WriterRepeats | Action::WriterGoesOn => {
                next.state.crashed = true;
                let under_way = (0..scene.writes.len()).filter(|write| !matches!(self.slots[*write], FREE | OVER));
                let under_way: Vec<usize> = under_way.collect();
                for write in &under_way {
                    next.state.end_slot(*write, cast);
                    next.state.requests.retain(|message| usize::from(message.slot) != *write); // lost with its connections
                }
                if let (Action::WriterRepeats, Some(write)) = (action, under_way.first()) {
                    next.state.again = *write as u8;
                    let step = cast.begin(Begun::Put(*write));
                    next.go_on(AGAIN, &step, scene, cast);
                }
            }
            Action::Timer(slot) => {
                next.state.timed = true;
                next.feed(slot, Input::Timer, scene, cast);
            }
        }
        next
    }

    /// The first message of each link.
    fn heads(messages: &[Message]) -> impl Iterator<Item = Message> + '_ {
        let first = |index: &usize| *index == 0 || messages[*index - 1].link() != messages[*index].link();
        (0..messages.len()).filter(first).map(|index| messages[index])
    }

    /// Whether this get was not handed any answer yet, and waits for several.
    fn unheard(&self, slot: usize, scene: &Scene, cast: &mut Cast) -> bool {
        slot >= FIRST_READER
            && scene.answers == Answers::AtOnce
            && self.slots[slot] == cast.begin(Begun::Get(scene.readers[slot - FIRST_READER])).next
    }

    /// Answers that wait to be handed over.
    fn held(&self, slot: usize) -> usize {
        self.answers.iter().filter(|message| usize::from(message.slot) == slot).count()
    }

    fn take_request(&mut self, slot: usize, node: usize) -> Message {
        take(&mut self.requests, slot, node)
    }

    /// Which correct nodes have acked each manifest.
    fn acked(&self, scene: &Scene, cast: &Cast) -> [u8; WRITES_MAX] {
        let correct = || (0..scene.nodes).filter(|node| *node != LIAR);
        let acked =
            |number: usize| correct().filter(|node| cast.facts(self.holders[*node]).acked & 1 << number != 0).map(|node| 1 << node).sum();
        std::array::from_fn(|number| if number < scene.writes.len() { acked(number) } else { 0 })
    }

    /// Its operation is over: what only asks for it, or waits to answer it, need not travel.
    fn end_slot(&mut self, slot: usize, cast: &Cast) {
        self.slots[slot] = OVER;
        let matters =
            |message: &Message| usize::from(message.slot) != slot || usize::from(message.node) != LIAR && !cast.only_asks(message.what);
        self.requests.retain(matters);
        self.answers.retain(|message| usize::from(message.slot) != slot);
    }
}

impl Message {
    fn link(&self) -> (u8, u8) {
        (self.slot, self.node)
    }
}

/// Behind whatever is on the same link.
fn send(messages: &mut Vec<Message>, message: Message) {
    let place = messages.partition_point(|other| other.link() <= message.link());
    messages.insert(place, message);
}

fn take(messages: &mut Vec<Message>, slot: usize, node: usize) -> Message {
    let place = messages.iter().position(|message| message.link() == (slot as u8, node as u8)).expect("the action was possible");
    messages.remove(place)
}

/// The number plus one of the highest manifest among these.
const fn highest(manifests: u8) -> u8 {
    (8 - manifests.leading_zeros()) as u8
}

impl Next {
    /// An answer sets out, and is there if answers come at once.
    fn answer(&mut self, to: Message, answer: Id, scene: &Scene, cast: &mut Cast) {
        let slot = usize::from(to.slot);
        if matches!(self.state.slots[slot], FREE | OVER) {
            return;
        }
        match scene.answers {
            Answers::AtOnce => self.hear(Message { what: answer, ..to }, scene, cast),
            Answers::Late => send(&mut self.state.answers, Message { what: answer, ..to }),
        }
    }

    /// An answer, or that there will be none, is there. A get cannot end before it has heard three of its four holders, and asks nobody
    /// anything that he could not be asked later: so the first three are handed over together, in one order for all orders in which they came.
    fn hear(&mut self, answer: Message, scene: &Scene, cast: &mut Cast) {
        let slot = usize::from(answer.slot);
        if matches!(self.state.slots[slot], FREE | OVER) {
            return;
        }
        let unheard = self.state.unheard(slot, scene, cast);
        let mut heard = vec![answer];
        if unheard {
            send(&mut self.state.answers, answer);
            if self.state.held(slot) < HEARD_TOGETHER {
                return;
            }
            let held = |message: &&Message| usize::from(message.slot) == slot;
            heard = self.state.answers.iter().filter(held).copied().collect();
            self.state.answers.retain(|message| usize::from(message.slot) != slot);
        }
        for Message { tag, what, .. } in heard {
            let input = if what == NO_ANSWER { Input::Unreachable(tag) } else { Input::Answer(tag, what) };
            self.feed(slot, input, scene, cast);
        }
    }

    fn feed(&mut self, slot: usize, input: Input, scene: &Scene, cast: &mut Cast) {
        let task = self.state.slots[slot];
        if matches!(task, FREE | OVER) {
            return;
        }
        let step = cast.task_step(task, input);
        self.go_on(slot, &step, scene, cast);
    }

    /// All that waits for this node, or for its answer, fails.
    fn die(&mut self, node: usize, scene: &Scene, cast: &mut Cast) {
        self.state.crashed = true;
        let gone = |message: &&Message| usize::from(message.node) == node;
        let late = self.state.answers.iter().filter(|_| scene.answers == Answers::Late); // else they have come
        let failed: Vec<Message> = self.state.requests.iter().chain(late).filter(gone).copied().collect();
        self.state.requests.retain(|message| usize::from(message.node) != node);
        self.state.answers.retain(|message| usize::from(message.node) != node || scene.answers == Answers::AtOnce);
        for message in failed {
            self.hear(Message { what: NO_ANSWER, ..message }, scene, cast);
        }
    }

    fn go_on(&mut self, slot: usize, step: &TaskStep, scene: &Scene, cast: &mut Cast) {
        self.state.slots[slot] = step.next;
        // What the liar signs and confirms without storing it, it had better say at once: nobody is harmed by an ack that comes late.
        let mut at_once = Vec::new();
        for Send { tag, to, request } in &step.sends {
            let message = Message { slot: slot as u8, node: *to as u8, tag: *tag, what: *request };
            if *to == LIAR && scene.answers == Answers::AtOnce && !cast.only_asks(*request) {
                at_once.push(message);
            } else {
                send(&mut self.state.requests, message);
            }
        }
        if step.end.is_none() {
            for message in at_once {
                let answer = cast.lies(message.what, &self.state.acked(scene, cast), self.state.begun)[0];
                self.answer(message, answer, scene, cast);
            }
            return;
        }
        let Some(end) = &step.end else { return };
        self.state.end_slot(slot, cast);
        self.said = format!("{}{}{}", self.said, if self.said.is_empty() { "" } else { "; " }, words(end));
        match end {
            End::Committed(acks) => self.on_commit(slot, *acks, scene, cast),
            End::Failed(_) => {}
            End::Value { manifest, right, atomic } => self.on_value(slot - FIRST_READER, *manifest, *right, *atomic, scene),
            End::Nothing(error) => self.on_nothing(slot - FIRST_READER, error),
        }
    }

    fn on_commit(&mut self, slot: usize, acks: u8, scene: &Scene, cast: &Cast) {
        let number = if slot == AGAIN { usize::from(self.state.again) } else { slot };
        self.state.committed |= 1 << number;
        // Counted here, not asked of the code that is judged: three of four, of whom one may lie.
        let holders = &scene.writes[number];
        let knows = |node: &&usize| **node != LIAR && cast.facts(self.state.holders[**node]).head >= Some(number);
        if acks.count_ones() < 3 || holders.iter().filter(knows).count() < 2 {
            self.broken.insert(Rule::Unproven);
        }
        self.look_at_holders(scene, cast);
    }

    fn on_value(&mut self, reader: usize, manifest: usize, right: bool, atomic: bool, scene: &Scene) {
        let value = manifest as u8 + 1;
        let state = &mut self.state;
        state.returned[reader] = value;
        let mut broken = |rule, is: bool| {
            if is {
                self.broken.insert(rule);
            }
        };
        broken(Rule::WrongBytes, !right);
        broken(Rule::Stale, value < state.at_least[reader]);
        broken(Rule::FromTheFuture, state.begun & 1 << manifest == 0);
        let others = state.returned.iter().filter(|other| !matches!(**other, 0 | NO_VALUE));
        broken(Rule::Disagreement, scene.twins && others.into_iter().any(|other| *other != value));
        if atomic && scene.readers[reader] == Mode::Atomic {
            broken(Rule::Inversion, value < state.at_least_atomic[reader]);
            state.seen = state.seen.max(value);
        }
    }

    fn on_nothing(&mut self, reader: usize, error: &GetError) {
        self.state.returned[reader] = NO_VALUE;
        let honest = match error {
            GetError::NotFound { .. } => self.state.at_least[reader] == 0,
            GetError::QuorumUnreachable { .. } | GetError::Unavailable { .. } => true,
            GetError::Expired { .. }
            | GetError::DataLost { .. }
            | GetError::Poisoned { .. }
            | GetError::BelowFloor { .. }
            | GetError::Fenced { .. } => false,
        };
        if !honest {
            self.broken.insert(Rule::FalseError);
        }
    }

    /// What must hold of the disks of correct holders.
    fn look_at_holders(&mut self, scene: &Scene, cast: &Cast) {
        let acked = self.state.acked(scene, cast);
        // With the liar's ack three of four.
        let certifiable: Vec<usize> = (0..scene.writes.len()).filter(|number| acked[*number].count_ones() >= 2).collect();
        let correct = || (0..scene.nodes).filter(|node| *node != LIAR).map(|node| cast.facts(self.state.holders[node]));
        if scene.twins && (certifiable.len() > 1 || correct().any(|facts| facts.acked.count_ones() > 1)) {
            self.broken.insert(Rule::TwoManifests);
        }
        let committed = usize::from(highest(self.state.committed));
        let whole = |number: &&usize| **number + 1 >= committed && correct().filter(|facts| facts.shards & 1 << **number != 0).count() >= 2;
        if committed > 0 && !certifiable.iter().any(|number| whole(&number)) {
            self.broken.insert(Rule::Lost);
        }
    }
}

fn words(end: &End) -> String {
    match end {
        End::Committed(_) => "it has committed".into(),
        End::Failed(error) => format!("it failed: {error}"),
        End::Value { manifest, atomic, .. } => format!("it returns {}{}", manifest + 1, if *atomic { ", atomic" } else { "" }),
        End::Nothing(error) => format!("it returns an error: {error}"),
    }
}
