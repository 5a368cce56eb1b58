//! What an agent's index lists and this node could not read: it is fetched as soon as its holders are back (docs/spec/quorum.md#takeover).
//!
//! An import that loses more holders of a section than can be borne goes on without it, and names it. Nothing is begun anew in its place:
//! with a partner whose chain or log is missing no message is exchanged, because a second beginning would contradict the first.

use persona_fragments::{Class, OwnerKey, SealContext, SectionKey, seal, wire};
use persona_mesh_proto::{Mode, Table, Write, clock_allowance_ms};

use crate::{
    call::CallError,
    import::adopted,
    node::Node,
    own::{Agent, Owner, OwnerState},
    reads::{GetPurpose, Got, Wanted},
    traffic::AfterPersist,
};

/// The first pause between attempts; it doubles up to [`RETRY_MAX_US`].
const RETRY_US: u64 = 1_000_000;

/// The longest pause between attempts.
const RETRY_MAX_US: u64 = 30_000_000;

/// A section that is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missing {
    /// When it is looked for again (monotonic); `None` while it is.
    next_us: Option<u64>,
    failures: u32,
    /// When even a version that was put just before has expired (monotonic).
    gone_us: u64,
}

impl Missing {
    /// Looked for from `now_us` on, as long as a version may live ([`IndexEntry::life_ms`](persona_agent::IndexEntry::life_ms)).
    pub(crate) fn since(now_us: u64, life_ms: u64) -> Self {
        Self { next_us: Some(now_us + RETRY_US), failures: 0, gone_us: now_us.saturating_add(life_ms.saturating_mul(1000)) }
    }

    /// When it is looked for again.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.next_us
    }
}

/// Whether a section that cannot be read is worth looking for: what an agent was doing a while ago is meant to be gone.
pub(crate) fn is_worth_looking_for(class: Class) -> bool {
    class != Class::Active
}

impl Agent {
    /// Until when, in milliseconds since the Unix epoch, holders nobody here knows may have a version of a section that was put elsewhere and
    /// of which nothing could be read; 0 if there is none.
    pub(crate) fn may_live_unread_until_ms(&self, name: &str) -> u64 {
        let Some(entry) = self.index.get(name).filter(|_| self.came_ms > 0) else { return 0 };
        self.came_ms.saturating_add(entry.life_ms()).saturating_add(clock_allowance_ms(entry.class))
    }
}

impl Node {
    /// Why `id` cannot talk with `partner` yet, if so.
    pub(crate) fn bond_is_missing(&self, id: &OwnerKey, partner: &OwnerKey) -> Option<CallError> {
        let agent = self.owners.get(id)?.agent.as_ref()?;
        let did = partner.to_did();
        let name = [format!("keys/{did}"), format!("relationship/{did}")].into_iter().find(|name| agent.missing.contains_key(name))?;
        Some(CallError::Busy(format!(
            "{} has not come back yet: too few of its holders answer, and it is asked for again",
            self.label(id, &name)
        )))
    }

    /// Looks for what is due.
    pub(crate) fn tick_missing(&mut self) {
        let now_us = self.now.mono_us;
        let mut due = Vec::new();
        for owner in self.owners.values_mut().filter(|owner| owner.state == OwnerState::Live) {
            let Some(agent) = owner.agent.as_mut() else { continue };
            for (name, missing) in agent.missing.iter_mut().filter(|(_, missing)| missing.next_us.is_some_and(|at| at <= now_us)) {
                missing.next_us = None;
                due.push((owner.id, name.clone()));
            }
        }
        for (agent, name) in due {
            let Some(owner) = self.owners.get(&agent) else { continue };
            let key = SectionKey::derive(&agent, &persona_agent::published_name(&owner.root, &name));
            let fence = owner.sections.get("card").and_then(|card| card.head.clone());
            let label = self.label(&agent, &name);
            let wanted = Wanted { key, owner: Some(agent), label, mode: Mode::Atomic, fence, want_content: true };
            self.begin_get(wanted, GetPurpose::Missing { agent, name });
        }
    }

    /// A missing section was read, or again not.
    pub(crate) fn missing_got(&mut self, id: OwnerKey, name: &str, result: Result<Got, CallError>) {
        let now_us = self.now.mono_us;
        let here = |owner: &Owner| owner.sections.contains_key(name);
        if self.owners.get(&id).is_some_and(here) {
            // It began anew meanwhile, or this disk had more of it than the mesh: what was read is older than what is here.
            if let Some(agent) = self.owners.get_mut(&id).and_then(|owner| owner.agent.as_mut()) {
                agent.missing.remove(name);
            }
            return;
        }
        let taken = result.and_then(|got| self.take_missing(&id, name, &got));
        let what = self.label(&id, name);
        let Some(agent) = self.owners.get_mut(&id).and_then(|owner| owner.agent.as_mut()) else { return };
        let Some(missing) = agent.missing.get_mut(name) else { return };
        match taken {
            Ok(()) => {
                agent.missing.remove(name);
                self.count("sections_found_again");
            }
            Err(_) if now_us >= missing.gone_us => {
                agent.missing.remove(name);
                self.alarm(
                    "section-lost",
                    format!("{what} has expired before its holders came back: it begins anew. If you have a copy, put it again"),
                );
            }
            Err(CallError::NotFound { asked, answered, .. }) if answered * 2 > asked => {
                // Those who would know say that there is none: it has expired, or was never put.
                agent.missing.remove(name);
                self.alarm("section-lost", format!(
                        "of those that should hold {what} most say that there is none: it begins anew. If you have a copy, put it again; holders that \
                         were not found may return the old one for a while (`stale_until_ms` of its puts)"
                    ));
            }
            Err(_) => {
                missing.failures += 1;
                missing.next_us = Some(now_us + (RETRY_US << missing.failures.min(5)).min(RETRY_MAX_US));
            }
        }
    }

    /// Takes up what was missing, and puts it in this host's term.
    fn take_missing(&mut self, id: &OwnerKey, name: &str, got: &Got) -> Result<(), CallError> {
        let now_us = self.now.mono_us;
        let Some(owner) = self.owners.get_mut(id).filter(|owner| owner.state == OwnerState::Live) else {
            return Err(CallError::UnknownAgent(id.to_did()));
        };
        let Some(agent) = owner.agent.as_mut() else { return Err(CallError::UnknownAgent(id.to_did())) };
        let mut owned = adopted(id, &owner.root, name, &got.value.head, got.value.content.clone(), self.now.wall_ms);
        let context = SealContext { agent: *id, section: owned.key, content_version: got.value.head.manifest.content_version };
        let unreadable = |reason: String| CallError::Unreadable { what: got.report.section.clone(), reason };
        let (epoch, fields) = seal::open(&owned.stored, &owner.recovery, &context).map_err(|error| unreadable(error.to_string()))?;
        agent.take_section(name, &fields, &*self.keys.verifier).map_err(unreadable)?;
        owned.epoch = Some(epoch);
        owned.lease_as(name, self.config.classes.of(owned.class));
        let version = got.value.head.manifest.version;
        if (version.term, version.device) == (owner.term, self.me.device()) {
            // Put from here, and this disk has forgotten it: the versions go on all the same.
            owned.last_seq = version.seq;
        }
        owned.due_us = Some(now_us);
        let write = Write::set(Table::Own, owned.key.0, wire::encode(&owned.record(id)));
        owner.sections.insert(name.to_owned(), owned);
        self.persist(vec![write], AfterPersist::Nothing);
        Ok(())
    }
}
