//! What must be durable before it leaves a node, seen from outside: by the frames it sends and the rows on its disk.

use std::collections::{BTreeMap, BTreeSet};

use persona_agent::{Kind, Recipient, parse};
use persona_core::{Answer, Gossip, Output};
use persona_fragments::{Digest, OwnerKey, PeerKey, SectionKey, SignedManifest, Version, wire};
use persona_mesh_proto::{Request, RequestFrame, Table};
use sha2::{Digest as _, Sha256};

/// The oracle of durability.
#[derive(Default)]
pub(crate) struct Watch {
    /// Every intent that was ever durable, by host.
    intents: BTreeSet<(usize, Vec<u8>)>,
    /// Every outgoing envelope that was ever durable, by host.
    outgoing: BTreeSet<(usize, [u8; 32])>,
    /// How many messages each agent has had in its durable inbox, by host.
    delivered: BTreeMap<(usize, OwnerKey), BTreeSet<Vec<u8>>>,
    /// The acknowledgements that each agent's host sent.
    acks: BTreeMap<(usize, OwnerKey), BTreeSet<[u8; 32]>>,
    /// The one manifest of each version.
    manifests: BTreeMap<(SectionKey, Version), Digest>,
    /// Bytes of shards that each version's writer sent.
    pub(crate) shard_bytes: BTreeMap<(SectionKey, Version), usize>,
    /// By section, the first time it was ever sent to a holder: a number that grows.
    pub(crate) first_sent: BTreeMap<SectionKey, u64>,
    sent: u64,
    /// A disk is set back unnoticed: then versions are signed twice.
    pub(crate) twins_allowed: bool,
}

impl Watch {
    /// A value became durable.
    pub(crate) fn durable(&mut self, host: usize, table: Table, key: &[u8], value: Option<&[u8]>) {
        let Some(value) = value else { return };
        match table {
            Table::Intent => {
                let manifest = SignedManifest::trusted(wire::decode(value).expect("an intent")).expect("a sound manifest");
                self.only_manifest(&manifest);
                self.intents.insert((host, value.to_vec()));
            }
            // The row has the envelope in it as it is.
            Table::Outbox => {
                let row: OutboxRow = wire::decode(value).expect("a row of the outbox");
                self.outgoing.insert((host, Sha256::digest(&row.3).into()));
            }
            Table::Inbox => {
                let agent = OwnerKey(key[..32].try_into().expect("an agent's id"));
                self.delivered.entry((host, agent)).or_default().insert(key.to_vec());
            }
            _ => {}
        }
    }

    /// A node wants something done.
    pub(crate) fn output(&mut self, host: usize, me: &PeerKey, disk: &BTreeMap<(Table, Vec<u8>), Vec<u8>>, output: &Output) {
        match output {
            Output::Request { frame, .. } => {
                for request in RequestFrame::from_bytes(frame).expect("a node sends sound frames").requests {
                    self.request(host, me, &request);
                }
            }
            Output::Publish { topic: Gossip::Messages(_), data, .. } => {
                let (_, _, envelopes): (u64, u8, Vec<Vec<u8>>) = wire::decode(data).expect("a batch");
                for envelope in envelopes {
                    self.envelope(host, &envelope);
                }
            }
            Output::Reply { result: Ok(Answer::Section { get, .. }), .. } => {
                let key = SectionKey::from_kad_key(&get.kad_key).expect("a section's key");
                let floor = disk.get(&(Table::Floor, key.0.to_vec())).expect("what was returned has a durable floor");
                let (floor, _): (Version, u64) = wire::decode(floor).expect("a floor");
                let version = self.manifests.keys().find(|(of, version)| *of == key && version.to_string() == get.version);
                let (_, version) = version.expect("what was returned was put");
                assert!(floor >= *version, "{} was returned at {version}, and the durable floor is {floor}", get.section);
            }
            _ => {}
        }
    }

    fn request(&mut self, host: usize, me: &PeerKey, request: &Request) {
        let Request::Prepare { manifest: wire, shard, .. } = request else { return };
        let manifest = SignedManifest::trusted(wire.clone()).expect("a node sends sound manifests");
        if manifest.version.device != me.device() {
            // A reader hands a shard back: of what its writer prepared before.
            let known = self.manifests.get(&(manifest.key, manifest.version));
            return assert_eq!(known, Some(&manifest.hash()), "only the writer prepares what is new");
        }
        assert!(
            self.intents.contains(&(host, wire::encode(wire))),
            "version {} of {:?} was sent before its intent was durable",
            manifest.version,
            String::from_utf8_lossy(&manifest.name)
        );
        self.only_manifest(&manifest);
        let place = (manifest.key, manifest.version);
        *self.shard_bytes.entry(place).or_default() += shard.as_ref().map_or(0, Vec::len);
        self.sent += 1;
        self.first_sent.entry(manifest.key).or_insert(self.sent);
    }

    fn only_manifest(&mut self, manifest: &SignedManifest) {
        let known = self.manifests.entry((manifest.key, manifest.version)).or_insert_with(|| manifest.hash());
        assert!(
            *known == manifest.hash() || self.twins_allowed,
            "a second manifest of {:?}, version {}",
            String::from_utf8_lossy(&manifest.name),
            manifest.version
        );
    }

    fn envelope(&mut self, host: usize, bytes: &[u8]) {
        let Ok(parsed) = parse(bytes) else { return };
        let header = &parsed.envelope().header;
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        match (header.kind, header.recipient) {
            (Kind::Text, Recipient::Agent(_)) => {
                assert!(self.outgoing.contains(&(host, digest)), "a message was published before its row was durable");
            }
            (Kind::Ack, Recipient::Agent(_)) => {
                let acks = self.acks.entry((host, header.sender)).or_default();
                acks.insert(digest);
                let delivered = self.delivered.get(&(host, header.sender)).map_or(0, BTreeSet::len);
                assert!(acks.len() <= delivered, "{} messages were acknowledged, and {delivered} are durable", acks.len());
            }
            _ => {}
        }
    }

    /// The versions of a section that were sent to holders, ascending.
    pub(crate) fn versions(&self, key: &SectionKey) -> Vec<Version> {
        self.manifests.keys().filter(|(of, _)| of == key).map(|(_, version)| *version).collect()
    }
}

/// A row of the outbox as docs/spec/store.md has it: to, term, counter, envelope, its digest, the payload's, sent, expires.
type OutboxRow = ([u8; 32], u64, u64, Vec<u8>, [u8; 32], [u8; 32], u64, u64);
