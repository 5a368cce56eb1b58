//! Section classes: how long a section lives and how much loss it must survive. Configuration, never scattered literals.

use std::time::Duration;

use bincode::{Decode, Encode};

/// What kind of section this is. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Class {
    /// Who the agent is: changes rarely, must never be lost.
    Core,
    /// What ties it to one partner.
    Relationship,
    /// What it is doing right now.
    Active,
    /// A user's own document: the shape of a relationship, a lifetime of the user's choice.
    Document,
}

/// The lifetime and the level of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassSpec {
    /// How long a version lives from its issue, unless renewed. The owner renews at a third of it.
    pub ttl: Duration,
    /// Reconstructible while at most `level - 1` holders are lost or lying.
    pub level: u8,
    /// How long holders keep a section alive among themselves when its owner is silent; zero: not at all.
    pub renew_for: Duration,
}

/// The classes of a node. Defaults are those of docs/spec/section.md#classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Default: 1 h, level 5, renewed by its holders for 24 h.
    pub core: ClassSpec,
    /// Default: 5 min, level 3, renewed by its holders for 24 h.
    pub relationship: ClassSpec,
    /// Default: 30 s, level 2.
    pub active: ClassSpec,
    /// Default: 1 h, level 3.
    pub document: ClassSpec,
}

impl Default for Classes {
    fn default() -> Self {
        let spec = |ttl_s: u64, level, renew_h: u64| ClassSpec {
            ttl: Duration::from_secs(ttl_s),
            level,
            renew_for: Duration::from_secs(renew_h * 3600),
        };
        Self { core: spec(3600, 5, 24), relationship: spec(300, 3, 24), active: spec(30, 2, 0), document: spec(3600, 3, 0) }
    }
}

impl Classes {
    /// The lifetime and level of `class`.
    pub fn of(&self, class: Class) -> ClassSpec {
        match class {
            Class::Core => self.core,
            Class::Relationship => self.relationship,
            Class::Active => self.active,
            Class::Document => self.document,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, class: Class) -> &mut ClassSpec {
        match class {
            Class::Core => &mut self.core,
            Class::Relationship => &mut self.relationship,
            Class::Active => &mut self.active,
            Class::Document => &mut self.document,
        }
    }
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Core, Self::Relationship, Self::Active, Self::Document];

    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Relationship => "relationship",
            Self::Active => "active",
            Self::Document => "document",
        }
    }

    /// Reads what [`Self::name`] writes.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}
