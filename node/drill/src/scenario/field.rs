//! What those who load, break and watch a mesh share: who is up, where agents live, and what has been seen.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Scenario;
use super::history::{Event, Micros, Reader};
use super::judge::Repaired;
use super::nemesis::Placed;
use crate::agents::Agent;
use crate::api::Api;

/// How long an answer is waited for. Reads are promised within 5 s; what takes longer than this is not coming.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What all tasks of a run share.
pub(super) struct Field {
    /// What is run.
    pub(super) scenario: Scenario,
    began: Instant,
    phase: watch::Sender<Phase>,
    state: Mutex<State>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Things are asked and broken.
    Storm,
    /// Everything was mended, and is judged once more.
    Healing,
    /// Nobody asks anything any more.
    Over,
}

/// What is known.
#[derive(Default)]
pub(super) struct State {
    pub(super) nodes: Vec<NodeState>,
    pub(super) agents: Vec<AgentState>,
    pub(super) documents: Vec<Document>,
    pub(super) sections: Vec<Section>,
    pub(super) events: Vec<Event>,
    pub(super) wounds: Vec<Wound>,
    pub(super) refills: Vec<Refill>,
    pub(super) repaired: Vec<Repaired>,
    pub(super) replaced: Vec<Micros>,
    pub(super) refilled: Vec<Micros>,
    pub(super) imports: Vec<Micros>,
    /// How often a liar was seen without the shard that it should have, or with another version.
    pub(super) lies_seen: u64,
    /// What must not be, beside what the history shows.
    pub(super) violations: Vec<String>,
    /// How many nodes were not broken, since when: at each change of one of them.
    unbroken: Vec<(Micros, u64)>,
}

pub(super) struct NodeState {
    /// While it is up.
    pub(super) api: Option<Api>,
    pub(super) peer: String,
    /// How often it has lost its disk.
    pub(super) life: u64,
    pub(super) honest: bool,
    /// Broken, or mending.
    pub(super) broken: bool,
    /// When `broken` last changed.
    pub(super) since: Micros,
    /// Turns whenever `broken` does: whoever sees the same turn before and after was asking a node that stayed as it was.
    pub(super) turn: u64,
}

pub(super) struct AgentState {
    pub(super) agent: Agent,
    /// Nowhere while it is being imported.
    pub(super) home: Option<usize>,
    /// When it came there.
    pub(super) came: Micros,
}

pub(super) struct Document {
    pub(super) agent: usize,
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) key: String,
    /// What sealing adds to its length.
    pub(super) seal_bytes: u64,
    /// The number of its next put.
    pub(super) next: u64,
}

/// A section and who has it, as the last who looked saw it.
pub(super) struct Section {
    pub(super) label: String,
    pub(super) agent: usize,
    pub(super) class: String,
    pub(super) key: String,
    pub(super) n: u64,
    pub(super) f: usize,
    /// Peer id, and whether it has its shard of the current version.
    pub(super) holders: Vec<(String, bool)>,
}

/// A section lost a holder.
pub(super) struct Wound {
    pub(super) section: usize,
    pub(super) peer: String,
    pub(super) since: Micros,
    /// When that holder last broke: it may have been back for a moment.
    pub(super) broke: Micros,
    /// The longest that it was seen open while its home could see to it, whatever has set the clock back since.
    pub(super) open_able: Option<Micros>,
}

/// A holder is back without its shard.
pub(super) struct Refill {
    pub(super) section: usize,
    pub(super) peer: String,
    pub(super) up: Micros,
    /// When somebody first read the section since.
    pub(super) read: Option<Micros>,
}

/// A node that is up, as it is now.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) api: Api,
    pub(super) reader: Reader,
    /// If not, it is cut off, paused or mending: what it says must be right, but nobody promised that it says anything.
    pub(super) sound: bool,
    turn: u64,
}

impl Field {
    pub(super) fn new(scenario: Scenario) -> Self {
        Self { scenario, began: Instant::now(), phase: watch::channel(Phase::Storm).0, state: Mutex::new(State::default()) }
    }

    /// Short, and never across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits, but no longer than this phase lasts.
    pub(super) async fn wait(&self, pause: Duration) {
        let mut phase = self.phase.subscribe();
        let now = *phase.borrow_and_update();
        let _ = tokio::time::timeout(pause, phase.wait_for(|phase| *phase != now)).await;
    }

    /// Puts it into the history, and answers its place there.
    pub(super) fn record(&self, event: Event) -> usize {
        let mut state = self.state();
        state.events.push(event);
        state.events.len() - 1
    }

    pub(super) fn note(&self, text: String) {
        let at = self.now();
        self.record(Event::Note { at, text });
    }

    /// A node, if it is honest and up.
    pub(super) fn ask(&self, node: usize) -> Option<Asked> {
        self.state().ask(node)
    }

    /// Whether the node was sound and has been since.
    pub(super) fn stayed_sound(&self, asked: &Asked) -> bool {
        asked.sound && self.state().nodes[asked.reader.node].turn == asked.turn
    }

    /// The home of an agent, if that is up.
    pub(super) fn ask_home(&self, agent: usize) -> Option<Asked> {
        let state = self.state();
        state.ask(state.agents[agent].home?)
    }

    /// Every sound node.
    pub(super) fn sound(&self) -> Vec<usize> {
        let state = self.state();
        (0..state.nodes.len()).filter(|node| state.ask(*node).is_some_and(|asked| asked.sound)).collect()
    }

    /// Every honest node that is up.
    pub(super) fn up(&self) -> Vec<usize> {
        let state = self.state();
        (0..state.nodes.len()).filter(|node| state.ask(*node).is_some()).collect()
    }
}

impl State {
    fn ask(&self, node: usize) -> Option<Asked> {
        let NodeState { api, life, honest, broken, turn, .. } = self.nodes.get(node)?;
        let api = api.as_ref().filter(|_| *honest)?.clone();
        Some(Asked { api, reader: Reader { node, life: *life }, sound: !*broken, turn: *turn })
    }

    /// Says that nodes are broken, or no longer.
    pub(super) fn mark(&mut self, nodes: &[usize], broken: bool, now: Micros) {
        for node in nodes {
            let node = &mut self.nodes[*node];
            node.turn += 1;
            // Whoever is dead, or has not been back since, does not break anew: only one that was there for a moment does.
            let was_there = !node.broken || node.api.is_some();
            if broken != node.broken {
                (node.broken, node.since) = (broken, now);
            }
            if broken && was_there {
                self.wounds.iter_mut().filter(|wound| wound.peer == node.peer).for_each(|wound| wound.broke = now);
            }
        }
        self.unbroken.push((now, self.nodes.iter().filter(|node| !node.broken).count() as u64));
    }

    /// From when on the host of a section's agent has been able to look after it: sound, with enough others to hold it. None while it is not.
    fn able_since(&self, section: usize) -> Option<Micros> {
        let Section { agent, n, .. } = &self.sections[section];
        let AgentState { home, came, .. } = &self.agents[*agent];
        let node = &self.nodes[(*home)?];
        if node.broken {
            return None;
        }
        let enough_since = match self.unbroken.iter().rposition(|(_, count)| count < n) {
            Some(last) => self.unbroken.get(last + 1)?.0,
            None => 0,
        };
        Some(node.since.max(*came).max(enough_since))
    }

    /// Broken nodes, mending ones and liars.
    pub(super) fn broken(&self) -> BTreeSet<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].broken || !self.nodes[*node].honest).collect()
    }

    pub(super) fn homes(&self) -> BTreeSet<usize> {
        self.agents.iter().filter_map(|agent| agent.home).collect()
    }

    pub(super) fn node_of(&self, peer: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.peer == peer)
    }

    /// Where every section is, as the nemesis wants to know it.
    pub(super) fn placed(&self) -> Vec<Placed> {
        let placed = |section: &Section| Placed {
            holders: section.holders.iter().map(|(peer, _)| self.node_of(peer)).collect(),
            without: section.holders.iter().enumerate().filter(|(_, (_, has))| !has).map(|(place, _)| place).collect(),
            f: section.f,
        };
        self.sections.iter().map(placed).collect()
    }

    /// Every section of which a node is a holder has lost it.
    pub(super) fn wound(&mut self, node: usize, now: Micros) {
        let peer = self.nodes[node].peer.clone();
        for section in self.sections_of(&peer) {
            if !self.is_wounded(section, &peer) {
                self.wounds.push(Wound { section, peer: peer.clone(), since: now, broke: now, open_able: None });
            }
        }
        // Whoever breaks again is not waited for.
        self.refills.retain(|refill| refill.peer != peer);
    }

    fn is_wounded(&self, section: usize, peer: &str) -> bool {
        self.wounds.iter().any(|wound| wound.section == section && wound.peer == peer)
    }

    /// A node is back without its store.
    pub(super) fn is_back_empty(&mut self, node: usize, now: Micros) {
        let peer = self.nodes[node].peer.clone();
        for section in self.sections_of(&peer) {
            self.refills.push(Refill { section, peer: peer.clone(), up: now, read: None });
        }
    }

    fn sections_of(&self, peer: &str) -> Vec<usize> {
        let holds = |section: &Section| section.holders.iter().any(|(holder, _)| holder == peer);
        (0..self.sections.len()).filter(|section| holds(&self.sections[*section])).collect()
    }

    /// Somebody who began to look at `begun` saw who has a section now.
    pub(super) fn saw(&mut self, section: usize, begun: Micros, now: Micros, n: u64, holders: Vec<(String, bool)>) {
        let has = |peer: &str| holders.iter().find(|(holder, _)| holder == peer).map(|(_, has)| *has);
        // Those of whom it cannot be asked do not count.
        let is_asked = |peer: &str| self.node_of(peer).is_none_or(|node| self.nodes[node].honest && !self.nodes[node].broken);
        // One that is without its shard because it was lost itself has a clock of its own.
        let lacks = |(peer, has): &(String, bool)| !*has && is_asked(peer) && !self.is_wounded(section, peer);
        let whole = n >= self.sections[section].n && !holders.iter().any(lacks);
        let able_since = self.able_since(section);
        let able = |wound: &Wound, until: Micros| able_since.map(|since| until.saturating_sub(since.max(wound.broke)));
        let (mut repaired, mut replaced, mut refilled, mut notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut wounds = std::mem::take(&mut self.wounds);
        wounds.retain_mut(|wound| {
            if wound.section != section || wound.since >= begun {
                return true;
            }
            let came_back = has(&wound.peer);
            if came_back == Some(true) || came_back.is_none() && whole {
                repaired.push((wound.since, able(wound, now).max(wound.open_able)));
                replaced.extend(came_back.is_none().then(|| now - wound.since));
                return false;
            }
            wound.open_able = wound.open_able.max(able(wound, begun).filter(|time| *time > 0));
            true
        });
        self.wounds = wounds;
        self.refills.retain_mut(|refill| {
            if refill.section != section || refill.up >= begun {
                return true;
            }
            let read = *refill.read.get_or_insert(begun);
            match has(&refill.peer) {
                Some(true) => {
                    let took = Duration::from_micros(now - read);
                    notes.push(format!(
                        "{} was given back to {} {:.1} s after it was read",
                        self.sections[section].label,
                        refill.peer,
                        took.as_secs_f64()
                    ));
                    refilled.push(now - read);
                }
                None => {}
                Some(false) => return true,
            }
            false
        });
        let is_liar = |peer: &str| self.node_of(peer).is_some_and(|node| !self.nodes[node].honest);
        self.lies_seen += holders.iter().filter(|(peer, has)| !has && is_liar(peer)).count() as u64;
        self.events.extend(notes.into_iter().map(|text| Event::Note { at: now, text }));
        let Section { label, class, .. } = &self.sections[section];
        let repaired = repaired.into_iter().map(|(since, able)| Repaired {
            section: label.clone(),
            class: class.clone(),
            since,
            took: now - since,
            able,
        });
        self.repaired.extend(repaired);
        self.replaced.extend(replaced);
        self.refilled.extend(refilled);
        self.sections[section].n = self.sections[section].n.max(n);
        self.sections[section].holders = holders;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section on `a`, `b` and `c`, nodes 0 to 2, and a node `d` that has nothing.
    fn state() -> State {
        let mut state = State::default();
        for peer in ["a", "b", "c", "d"] {
            let peer = peer.to_owned();
            state.nodes.push(NodeState { api: None, peer, life: 0, honest: true, broken: false, since: 0, turn: 0 });
        }
        let agent = Agent { name: "ada".into(), ..Agent::default() };
        state.agents.push(AgentState { agent, home: Some(0), came: 0 });
        state.sections.push(Section {
            label: String::new(),
            agent: 0,
            class: "core".into(),
            key: String::new(),
            n: 3,
            f: 0,
            holders: held(&["a", "b", "c"]),
        });
        state
    }

    fn held(peers: &[&str]) -> Vec<(String, bool)> {
        peers.iter().map(|peer| (peer.trim_end_matches('!').to_owned(), !peer.ends_with('!'))).collect()
    }

    #[test]
    fn a_wound_heals_when_the_holder_is_back_or_another_has_its_place() {
        let mut state = state();
        state.mark(&[1], true, 10);
        state.wound(1, 10);
        state.saw(0, 5, 12, 3, held(&["a", "b", "c"]));
        state.saw(0, 20, 22, 3, held(&["a", "b!", "c"]));
        assert_eq!(state.wounds.len(), 1, "what was seen from before the kill says nothing, and then it is without its shard");
        state.saw(0, 30, 35, 3, held(&["a", "b", "c"]));
        assert_eq!((state.wounds.len(), took(&state), &state.replaced[..]), (0, vec![(25, Some(25))], &[][..]));

        state.wound(1, 100);
        state.saw(0, 110, 111, 3, held(&["a", "d!", "c"]));
        state.saw(0, 115, 116, 2, held(&["a", "c"]));
        assert_eq!(state.wounds.len(), 1, "the new holder has nothing yet, and two are fewer than three");
        state.saw(0, 120, 121, 3, held(&["a", "d", "c"]));
        assert_eq!((state.wounds.len(), &state.replaced[..]), (0, &[21][..]));
    }

    fn took(state: &State) -> Vec<(Micros, Option<Micros>)> {
        state.repaired.iter().map(|repaired| (repaired.took, repaired.able)).collect()
    }

    #[test]
    fn the_time_to_repair_is_counted_from_when_its_home_can_and_from_the_holders_last_death() {
        let healed = |state: &mut State, at| state.saw(0, at - 1, at, 3, held(&["a", "d", "c"]));
        let mut state = state();
        state.wound(1, 10);
        healed(&mut state, 30);
        assert_eq!(took(&state), [(20, Some(20))]);

        let mut state = tests::state();
        state.mark(&[1], true, 10);
        state.wound(1, 10);
        state.mark(&[0], true, 15);
        state.mark(&[0], false, 40);
        healed(&mut state, 50);
        assert_eq!(took(&state), [(40, Some(10))], "its home was broken until 40, and only two nodes were there");

        let mut state = tests::state();
        state.mark(&[1], true, 10);
        state.wound(1, 10);
        state.mark(&[2], true, 20);
        healed(&mut state, 50);
        assert_eq!(took(&state), [(40, None)], "two nodes cannot hold what three must hold");
        state.mark(&[2], false, 60);
        state.mark(&[1], false, 70);
        state.wound(3, 80);
        state.agents[0].home = None;
        state.saw(0, 85, 86, 3, held(&["a", "b", "c"]));
        assert_eq!(took(&state)[1], (6, None), "it has no home");
        state.wound(1, 80);
        (state.agents[0].home, state.agents[0].came) = (Some(3), 83);
        state.saw(0, 85, 86, 3, held(&["a", "b", "c"]));
        assert_eq!(took(&state)[2], (6, Some(3)), "its new home came later");

        let mut state = tests::state();
        state.wound(1, 10);
        state.mark(&[1], true, 10);
        state.mark(&[1], false, 20);
        state.mark(&[1], true, 30);
        state.sections[0].n = 2;
        state.saw(0, 49, 50, 2, held(&["a", "d", "c"]));
        assert_eq!(took(&state), [(40, Some(20))], "the holder was back, and broke again");
    }

    #[test]
    fn what_was_late_stays_late_when_the_clock_is_set_back() {
        let mut state = state();
        state.mark(&[1], true, 0);
        state.wound(1, 0);
        state.saw(0, 90, 91, 3, held(&["a", "b!", "c"]));
        state.mark(&[1], false, 90);
        state.saw(0, 92, 93, 3, held(&["a", "b!", "c"]));
        state.mark(&[0], true, 95);
        state.saw(0, 99, 100, 3, held(&["a", "b", "c"]));
        assert_eq!(took(&state), [(100, Some(92))], "open for 92 under a sound home; that this one then broke excuses nothing");

        state.nodes[0].broken = false;
        state.wound(1, 200);
        state.mark(&[1], true, 200);
        state.saw(0, 270, 271, 3, held(&["a", "b!", "c"]));
        state.mark(&[1], true, 275);
        state.mark(&[1], false, 280);
        state.mark(&[1], true, 285);
        state.saw(0, 290, 291, 3, held(&["a", "d", "c"]));
        assert_eq!(took(&state)[1], (91, Some(70)), "open for 70 before its holder was back and broke again");
    }

    #[test]
    fn a_holder_that_was_replaced_is_not_late_because_another_was_lost() {
        let mut state = state();
        state.wound(1, 10);
        state.wound(2, 20);
        state.saw(0, 30, 31, 3, held(&["a", "d", "c!"]));
        assert_eq!(took(&state), [(21, Some(21))], "d has b's place");
        assert_eq!((state.wounds.len(), state.wounds[0].peer.as_str()), (1, "c"), "c is missed since 20");
    }

    #[test]
    fn who_cannot_be_asked_keeps_no_wound_open() {
        let mut state = state();
        state.wound(1, 10);
        state.mark(&[2], true, 10);
        state.saw(0, 20, 21, 3, held(&["a", "d", "c!"]));
        assert!(state.wounds.is_empty());
    }

    #[test]
    fn a_refill_counts_from_the_first_read_after_the_return() {
        let mut state = state();
        state.is_back_empty(1, 10);
        state.saw(0, 9, 11, 3, held(&["a", "b", "c"]));
        state.saw(0, 20, 22, 3, held(&["a", "b!", "c"]));
        state.saw(0, 30, 33, 3, held(&["a", "b", "c"]));
        assert_eq!((state.refills.len(), &state.refilled[..]), (0, &[13][..]));
        state.is_back_empty(1, 40);
        state.wound(1, 50);
        assert!(state.refills.is_empty(), "whoever breaks again is not waited for");
    }

    #[test]
    fn the_nemesis_is_told_who_is_gone_and_who_has_nothing() {
        let mut state = state();
        state.saw(0, 1, 2, 3, held(&["a", "somebody who left", "c!"]));
        let placed = state.placed();
        assert_eq!(placed[0].holders, [Some(0), None, Some(2)]);
        assert_eq!(placed[0].without, BTreeSet::from([2]));
    }
}
