//! The index: every section of an agent by name, so that a restore can tell that one is missing (docs/spec/agent.md#index).
//!
//! A name is committed here before its first put, and never forgotten silently: a removed section stays listed as removed.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use persona_fragments::{
    Class, Fields, Version,
    wire::{self, DecodeError},
};

/// The most sections of one agent. When full, a new section is refused: nothing that is stored is dropped for it.
pub const INDEX_ENTRIES_MAX: usize = 4096;

/// The longest section name, in bytes.
pub const SECTION_NAME_BYTES_MAX: usize = 128;

const FIELD: &str = "index";

/// What the index knows of one section.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct IndexEntry {
    /// The section's class.
    pub class: Class,
    /// The longest lifetime that a version of it may have had, in milliseconds.
    pub ttl_ms: u64,
    /// The longest that holders may renew a version of it while its owner is silent, in milliseconds; 0: not at all.
    pub renew_ms: u64,
    /// The level that is wanted: reconstructible while at most `level - 1` holders are lost or lying.
    pub level: u8,
    /// The last version known to be committed; `None` before the first put.
    pub version: Option<Version>,
    /// Whether the owner removed the section.
    pub removed: bool,
}

impl IndexEntry {
    /// How long a version may live at most, counted from its issue, in milliseconds.
    pub fn life_ms(&self) -> u64 {
        self.ttl_ms.max(self.renew_ms)
    }
}

/// Every section of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    entries: BTreeMap<String, IndexEntry>,
}

/// Why an index is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// [`INDEX_ENTRIES_MAX`] sections are listed already.
    #[error("the agent has {INDEX_ENTRIES_MAX} sections already; remove one first")]
    Full,
    /// A name that is empty or longer than [`SECTION_NAME_BYTES_MAX`].
    #[error("a section name has 1 to {SECTION_NAME_BYTES_MAX} bytes, not {0}")]
    Name(usize),
    /// The section opened, but has no index in it.
    #[error("the section has no field \"index\"; read it again from other holders")]
    Missing,
    /// The field does not decode.
    #[error("the index does not decode: {0}")]
    Decode(#[from] DecodeError),
}

impl Index {
    /// An index of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lists `name`, or replaces what is known of it.
    pub fn set(&mut self, name: &str, entry: IndexEntry) -> Result<(), IndexError> {
        if name.is_empty() || name.len() > SECTION_NAME_BYTES_MAX {
            return Err(IndexError::Name(name.len()));
        }
        if self.entries.len() >= INDEX_ENTRIES_MAX && !self.entries.contains_key(name) {
            return Err(IndexError::Full);
        }
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Lists `name` as about to be put. What was known of it before is kept: its last version, and the longest that versions may live.
    pub fn list(&mut self, name: &str, class: Class, level: u8, ttl_ms: u64, renew_ms: u64) -> Result<(), IndexError> {
        let known = self.entries.get(name);
        let entry = IndexEntry {
            class,
            ttl_ms: known.map_or(0, |known| known.ttl_ms).max(ttl_ms),
            renew_ms: known.map_or(0, |known| known.renew_ms).max(renew_ms),
            level,
            version: known.and_then(|known| known.version),
            removed: false,
        };
        self.set(name, entry)
    }

    /// What is known of `name`.
    pub fn get(&self, name: &str) -> Option<&IndexEntry> {
        self.entries.get(name)
    }

    /// Notes that `version` of `name` is committed; an older version than the known one changes nothing. False if the name is not listed.
    pub fn committed(&mut self, name: &str, version: Version) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        entry.version = entry.version.max(Some(version));
        true
    }

    /// Notes of which class the next version of `name` is and how long it may live: bounds that are never lowered, because earlier versions may
    /// still be about. Whether that is more than was listed; false, too, if the name is not listed.
    pub fn may_live(&mut self, name: &str, class: Class, ttl_ms: u64, renew_ms: u64) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let before = (entry.class, entry.ttl_ms, entry.renew_ms);
        (entry.class, entry.ttl_ms, entry.renew_ms) = (class, entry.ttl_ms.max(ttl_ms), entry.renew_ms.max(renew_ms));
        before != (entry.class, entry.ttl_ms, entry.renew_ms)
    }

    /// Every section, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &IndexEntry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// How many sections are listed, removed ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The fields of the `index` section.
    pub fn to_fields(&self) -> Fields {
        Fields::new().with(FIELD, wire::encode(&self.entries))
    }

    /// Reads what [`Self::to_fields`] wrote.
    pub fn from_fields(fields: &Fields) -> Result<Self, IndexError> {
        let entries: BTreeMap<String, IndexEntry> = wire::decode(fields.get(FIELD).ok_or(IndexError::Missing)?)?;
        if entries.len() > INDEX_ENTRIES_MAX {
            return Err(IndexError::Full);
        }
        if let Some(name) = entries.keys().find(|name| name.is_empty() || name.len() > SECTION_NAME_BYTES_MAX) {
            return Err(IndexError::Name(name.len()));
        }
        Ok(Self { entries })
    }
}

#[cfg(test)]
mod tests {
    use persona_fragments::DeviceId;

    use super::*;

    #[test]
    fn what_was_listed_once_is_never_listed_as_less() {
        let mut index = Index::new();
        index.set("doc/a", IndexEntry { removed: true, ..entry(Some(3)) }).expect("fits");
        index.list("doc/a", Class::Document, 3, 60_000, 0).expect("fits");
        let listed = index.get("doc/a").expect("listed").clone();
        assert_eq!(
            (listed.ttl_ms, listed.renew_ms, listed.version, listed.removed),
            (3_600_000, 86_400_000, entry(Some(3)).version, false)
        );
        assert!(!index.may_live("doc/a", Class::Document, 60_000, 0));
        assert!(index.may_live("doc/a", Class::Document, 7_200_000, 0), "a longer life");
        assert!(index.may_live("doc/a", Class::Core, 0, 0), "another class");
        assert_eq!(index.get("doc/a").map(IndexEntry::life_ms), Some(86_400_000));
        assert!(!index.may_live("doc/b", Class::Core, 1, 1), "it is not listed");
    }

    fn entry(seq: Option<u64>) -> IndexEntry {
        let version = seq.map(|seq| Version { term: 1, device: DeviceId([1; 32]), seq });
        IndexEntry { class: Class::Core, ttl_ms: 3_600_000, renew_ms: 86_400_000, level: 5, version, removed: false }
    }

    #[test]
    fn an_index_reads_back_and_never_goes_back() {
        let mut index = Index::new();
        index.set("core", entry(None)).expect("fits");
        index.set("doc/memory", entry(Some(3))).expect("fits");
        assert_eq!(Index::from_fields(&index.to_fields()), Ok(index.clone()));
        assert!(index.committed("doc/memory", entry(Some(2)).version.expect("some")));
        assert_eq!(index.get("doc/memory"), Some(&entry(Some(3))));
        assert!(index.committed("core", entry(Some(1)).version.expect("some")));
        assert_eq!(index.get("core"), Some(&entry(Some(1))));
        assert!(!index.committed("unheard", entry(Some(1)).version.expect("some")));
    }

    #[test]
    fn a_full_index_refuses_a_new_name_but_updates_an_old_one() {
        let mut index = Index::new();
        for i in 0..INDEX_ENTRIES_MAX {
            index.set(&format!("doc/{i}"), entry(None)).expect("fits");
        }
        assert_eq!(index.set("doc/one-more", entry(None)), Err(IndexError::Full));
        assert_eq!(index.set("doc/1", entry(Some(1))), Ok(()));
        assert_eq!(index.set("", entry(None)), Err(IndexError::Name(0)));
        assert_eq!(Index::from_fields(&index.to_fields()), Ok(index));
        assert_eq!(Index::from_fields(&Fields::new()), Err(IndexError::Missing));
    }
}
