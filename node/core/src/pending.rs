//! Imports that go on by themselves (docs/spec/quorum.md#takeover).
//!
//! Once the card of the next term was sent, nobody can take it back: the old host is fenced or may be, and if this node forgot the agent it
//! would be at home nowhere. So the keystore has its keys before, and from then on this node tries until the agent lives here, also after a
//! restart, or until another host of a higher term has it.

use persona_agent::RootSecret;
use persona_fragments::OwnerKey;
use zeroize::Zeroizing;

use crate::{
    call::{CallError, Keep},
    import::RESTART_PAUSE_US,
    node::{Node, OPS_MAX, Output},
    own::OwnerState,
    report::{AgentReport, ImportReport},
};

/// The first pause between attempts; it doubles up to [`RETRY_MAX_US`].
const RETRY_US: u64 = 1_000_000;

/// The longest pause between attempts: a mesh that comes back after a night finds the agent's host soon.
const RETRY_MAX_US: u64 = 300_000_000;

/// What the keystore has of an agent whose import was interrupted.
#[derive(Debug)]
pub struct ImportKeys {
    /// Its name on this node.
    pub name: String,
    /// Its root secret.
    pub root: Zeroizing<[u8; 32]>,
    /// The term of the host that it is taken over from.
    pub from_term: u64,
}

/// An agent that is to live here, whatever happens.
pub(crate) struct Pending {
    pub(crate) name: String,
    pub(crate) root: RootSecret,
    /// The term of the host that it is taken over from. Another host of a higher term has overtaken this import.
    pub(crate) from_term: u64,
    /// When the next attempt begins (monotonic); `None` while one is on its way.
    pub(crate) next_us: Option<u64>,
    pub(crate) failures: u32,
}

/// What happens once the keystore is written.
pub(crate) enum AfterKeep {
    /// The keys of an import are kept: now its card may be sent.
    Fence { import: u64 },
    /// An agent lives here: now it may be told of.
    Home { call: Option<u64>, agent: OwnerKey, report: Option<Box<ImportReport>> },
    /// The keys of a refused import are gone: now its caller may be told.
    Refused { call: Option<u64>, error: CallError },
}

impl Node {
    /// Goes on with an import that an earlier process began. What lived here under the agent's keys before, if anything, was added first.
    pub fn resume_import(&mut self, keys: ImportKeys) -> OwnerKey {
        let root = RootSecret::from_bytes(*keys.root);
        let id = root.agent_id();
        if self.owners.contains_key(&id) {
            // Nobody imports an agent to where it lives: it had been taken over, by the host that it was to come back from.
            self.stop_writing(&id, keys.from_term);
        }
        self.alarm("importing", format!("the import of {} was interrupted: it goes on by itself", keys.name));
        let next_us = Some(self.now.mono_us + RESTART_PAUSE_US);
        self.pending.insert(id, Pending { name: keys.name, root, from_term: keys.from_term, next_us, failures: 0 });
        id
    }

    /// Begins every attempt that is due.
    pub(crate) fn tick_pending(&mut self) {
        let now_us = self.now.mono_us;
        let due: Vec<OwnerKey> =
            self.pending.iter().filter(|(_, pending)| pending.next_us.is_some_and(|at| at <= now_us)).map(|(id, _)| *id).collect();
        for id in due {
            let busy = self.ops.len() >= OPS_MAX;
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            if busy {
                pending.next_us = Some(now_us + RETRY_US);
                continue;
            }
            pending.next_us = None;
            let (root, name) = (Zeroizing::new(*pending.root.expose()), pending.name.clone());
            let came = self.owners.get(&id).is_some_and(|owner| owner.state == OwnerState::Importing && owner.agent.is_some());
            if came {
                // All of it is here, but for the keystore.
                self.agent_came(None, id, None);
            } else {
                self.begin_import(None, &root, Some(name));
            }
        }
    }

    /// An attempt has failed: the next one comes after a longer pause.
    pub(crate) fn try_again(&mut self, id: &OwnerKey, error: &CallError) {
        let Some(pending) = self.pending.get_mut(id) else { return };
        pending.failures += 1;
        let pause_us = (RETRY_US << (pending.failures - 1).min(16)).min(RETRY_MAX_US);
        pending.next_us = Some(self.now.mono_us + pause_us);
        // An operator is told at first, and then ever more seldom.
        if pending.failures.is_power_of_two() {
            let text = format!("{} does not live here yet: {error}; it is tried again by itself", pending.name);
            self.alarm("importing", text);
        }
    }

    /// Has the keystore changed.
    pub(crate) fn keep(&mut self, agent: OwnerKey, keep: Keep, then: AfterKeep) {
        let id = self.id();
        self.keeps.insert(id, then);
        self.out.push(Output::Keep { id, agent, keep });
    }

    /// The keystore is written, or could not be.
    pub(crate) fn on_kept(&mut self, id: u64, result: Result<(), String>) {
        match self.keeps.remove(&id) {
            Some(AfterKeep::Fence { import }) => self.import_kept(import, result),
            Some(AfterKeep::Home { call, agent, report }) => self.agent_is_home(call, agent, report, result),
            Some(AfterKeep::Refused { call, error }) => {
                if let Err(reason) = result {
                    self.alarm(
                        "not-kept",
                        format!(
                            "the keys of a refused import could not be removed from the keystore: {reason}; the next start of \
                             this node would import it again. Give the state directory room or rights before that"
                        ),
                    );
                }
                self.answer_import(call, Err(error));
            }
            None => {}
        }
    }

    /// What there is to tell of an agent that is still on its way.
    pub(crate) fn pending_report(&self, id: &OwnerKey, pending: &Pending) -> AgentReport {
        AgentReport {
            agent: id.to_did(),
            name: pending.name.clone(),
            role: None,
            term: self.owners.get(id).map_or(pending.from_term, |owner| owner.term),
            home: self.me.to_peer_id_string(),
            state: "importing",
            relationships: 0,
            card: None,
            missing: Vec::new(),
            sections: Vec::new(),
        }
    }
}
