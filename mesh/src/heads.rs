//! What a plain Kademlia GET_VALUE is answered with: the certified heads, identical at every holder.
//!
//! [`HeadIndex`] is written by whoever owns the durable store, after a head is on disk, and read on the swarm task, which has no disk.
//! Kademlia's acknowledgement of a PUT_VALUE has no room for "not yet durable" or for a reason, so nothing is ever stored that way: a
//! put of exactly the bytes that are here already is acknowledged, because it is true, and every other put is refused.

use std::{borrow::Cow, collections::BTreeMap, iter, sync::Arc};

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use parking_lot::RwLock;
use persona_fragments::SectionKey;

use crate::HEAD_BYTES_MAX;

/// The certified heads that this node serves, by their Kademlia key. Bounded by its writer: it has an entry for each head in the store.
#[derive(Debug, Default)]
pub struct HeadIndex {
    heads: RwLock<BTreeMap<Vec<u8>, Arc<[u8]>>>,
}

impl HeadIndex {
    /// An index without heads.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `head` for the section from now on; `None` stops serving one. A head of more than [`HEAD_BYTES_MAX`] is not served, and
    /// neither is the one before it: it would not fit into a Kademlia message, and its asker would see a broken stream.
    pub fn set(&self, key: &SectionKey, head: Option<Vec<u8>>) {
        let key = key.to_kad_key().into_bytes();
        let head = head.filter(|head| head.len() <= HEAD_BYTES_MAX);
        let mut heads = self.heads.write();
        match head {
            Some(head) => heads.insert(key, head.into()),
            None => heads.remove(&key),
        };
    }

    /// What is served for the section.
    pub fn get(&self, key: &SectionKey) -> Option<Arc<[u8]>> {
        self.get_by_kad_key(key.to_kad_key().as_bytes())
    }

    /// How many sections are served.
    pub fn len(&self) -> usize {
        self.heads.read().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.heads.read().is_empty()
    }

    fn get_by_kad_key(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.heads.read().get(key).cloned()
    }
}

/// The same index as Kademlia wants to see it. `records` is empty: nothing is ever republished from here.
pub(crate) struct ServedHeads(pub(crate) Arc<HeadIndex>);

impl RecordStore for ServedHeads {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let head = self.0.get_by_kad_key(key.as_ref())?;
        Some(Cow::Owned(Record { key: key.clone(), value: head.to_vec(), publisher: None, expires: None }))
    }

    fn put(&mut self, record: Record) -> Result<()> {
        match self.0.get_by_kad_key(record.key.as_ref()) {
            Some(head) if *head == record.value[..] => Ok(()),
            // The variant is seen by nobody: all that reaches the sender is a stream that ends.
            _ => Err(Error::MaxRecords),
        }
    }

    /// Kademlia removes what it thinks has expired. When a head goes is decided by its holder alone.
    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kademlia_reads_heads_and_changes_none() {
        let index = Arc::new(HeadIndex::new());
        let section = SectionKey([3; 32]);
        index.set(&section, Some(b"head".to_vec()));
        let mut served = ServedHeads(index.clone());
        let key = RecordKey::new(&section.to_kad_key());

        let record = served.get(&key).expect("served").into_owned();
        assert_eq!((record.value.as_slice(), record.expires), (&b"head"[..], None));
        assert!(served.put(record.clone()).is_ok());
        assert!(served.put(Record { value: b"heaD".to_vec(), ..record.clone() }).is_err());
        assert!(served.put(Record::new(RecordKey::new(&"/persona/else"), b"head".to_vec())).is_err());
        assert!(served.add_provider(ProviderRecord::new(key.clone(), PeerId::random(), Vec::new())).is_err());
        served.remove(&key);
        assert_eq!(index.get(&section).as_deref(), Some(&b"head"[..]));
        assert_eq!(index.len(), 1);

        index.set(&section, Some(vec![0; HEAD_BYTES_MAX + 1]));
        assert!(index.is_empty(), "neither the head that is too long nor the one it replaces");
        assert!(served.get(&key).is_none() && served.put(record).is_err());
    }
}
