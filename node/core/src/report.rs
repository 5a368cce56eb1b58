//! What a node tells about itself, as JSON has it (docs/spec/api.md). Field names are the interface.

use std::collections::BTreeMap;

use serde::Serialize;

/// How a put went.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct PutReport {
    pub section: String,
    pub kad_key: String,
    pub version: String,
    pub n: u8,
    pub k: u8,
    pub f: u8,
    pub acks: u8,
    pub placed: u8,
    pub level: u8,
    pub byzantine_tolerant: bool,
    pub holders: Vec<String>,
    pub expires_in_s: f64,
    pub lease_until_ms: Option<u64>,
    pub stale_until_ms: Option<u64>,
    pub loss_chance: f64,
    pub renewal: bool,
    pub ms: f64,
}

/// How a get went.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct GetReport {
    pub section: String,
    pub kad_key: String,
    pub version: String,
    pub mode: &'static str,
    pub fresh: &'static str,
    pub n: u8,
    pub k: u8,
    pub f: u8,
    pub level: u8,
    pub holders_answered: u32,
    pub shards_from_network: u32,
    pub age_ms: u64,
    pub expires_in_s: f64,
    pub lease_until_ms: Option<u64>,
    pub ms: f64,
}

/// An agent of this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct AgentReport {
    pub agent: String,
    pub name: String,
    pub role: Option<String>,
    pub term: u64,
    pub home: String,
    pub state: &'static str,
    pub relationships: usize,
    pub card: Option<CardReport>,
    pub missing: Vec<String>,
    pub sections: Vec<SectionReport>,
}

/// A section of an agent of this node. `level`, `placed` and `holders` are what its last put or renewal reached; `held`, `level_now` and
/// `silent` are what every probe of its holders said since. An [`AnalysisReport`] asks them anew.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct SectionReport {
    pub name: String,
    pub class: &'static str,
    pub ttl_s: f64,
    pub kad_key: String,
    pub version: Option<String>,
    pub n: u8,
    pub k: u8,
    pub f: u8,
    pub level: u8,
    pub placed: u8,
    pub held: u8,
    pub level_now: u8,
    pub silent: Vec<String>,
    pub probed_s_ago: Option<f64>,
    pub holders: Vec<String>,
    pub expires_in_s: Option<f64>,
    pub lease_until_ms: Option<u64>,
    pub manifest_hash: Option<String>,
    pub state: &'static str,
}

/// A public card.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct CardReport {
    pub agent: String,
    pub name: String,
    pub role: Option<String>,
    pub term: u64,
    pub home: String,
    pub commitment: String,
    pub bytes: String,
}

/// How one section came over in an import.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct ImportedSection {
    pub section: String,
    pub state: &'static str,
    pub error: Option<String>,
    pub get: Option<GetReport>,
    pub put: Option<PutReport>,
}

/// How an import went.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct ImportReport {
    pub agent: String,
    pub name: String,
    pub term: u64,
    pub import_source: &'static str,
    pub mode: &'static str,
    pub complete: bool,
    pub bounded_stale_until_ms: Option<u64>,
    pub sections: Vec<ImportedSection>,
    pub ms: f64,
}

/// One holder's answer, in an analysis.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct HolderReport {
    pub index: u8,
    pub peer_id: String,
    pub answer: &'static str,
    pub has_shard: bool,
}

/// What is known of a section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct AnalysisReport {
    pub kad_key: String,
    pub section: Option<String>,
    pub agent: String,
    pub version: String,
    pub content_version: String,
    pub class: &'static str,
    pub n: u8,
    pub k: u8,
    pub f: u8,
    pub level_asked: u8,
    pub level_now: u8,
    pub manifest_hash: String,
    pub certificate: CertificateReport,
    pub issued_at_ms: u64,
    pub expires_in_s: f64,
    pub lease_until_ms: Option<u64>,
    pub content_len: u32,
    pub holders: Vec<HolderReport>,
    pub answered: u32,
    pub readable: ReadableReport,
    pub equivocation: Option<EquivocationReport>,
}

/// The proof that an owner's key signed two manifests of one version, in an analysis of any of its sections.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct EquivocationReport {
    pub kad_key: String,
    pub version: String,
    pub manifest_hashes: [String; 2],
    pub proof: String,
}

/// A verified certificate, in an analysis.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct CertificateReport {
    pub acks: usize,
    pub valid: bool,
}

/// Which modes would read a section now.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct ReadableReport {
    pub any: bool,
    pub regular: bool,
}

/// A message that was handed to the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct SentReport {
    pub id: String,
    pub to: String,
    pub counter: u64,
    pub term: u64,
    pub state: &'static str,
}

/// A verdict on one message.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct VerdictReport {
    pub seq: u64,
    pub at_ms: u64,
    pub from: String,
    pub to: Option<String>,
    pub accepted: bool,
    pub reason: String,
    pub total: Option<f64>,
    pub protocol: f64,
    pub behaviour: Option<f64>,
    pub counter: u64,
    pub term: u64,
    pub kind: String,
}

/// Verdicts, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct VerdictsReport {
    pub verdicts: Vec<VerdictReport>,
    pub next: u64,
}

/// One delivered message.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct InboxMessage {
    pub seq: u64,
    pub from: String,
    pub from_name: Option<String>,
    pub text: String,
    pub counter: u64,
    pub term: u64,
    pub received_ms: u64,
    pub verdict: VerdictReport,
}

/// Delivered messages, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct InboxReport {
    pub messages: Vec<InboxMessage>,
    pub next: u64,
}

/// One message on its way, or lately acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct OutboxMessage {
    pub id: String,
    pub to: String,
    pub counter: u64,
    pub term: u64,
    pub state: &'static str,
    pub attempts: u32,
    pub envelope: String,
}

/// Messages on their way.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct OutboxReport {
    pub messages: Vec<OutboxMessage>,
}

/// One relationship.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct RelationshipReport {
    pub partner: String,
    pub interactions: u64,
    pub comfort: f64,
    pub head: String,
    pub entries: usize,
    pub bytes_sha256: String,
}

/// Relationships, by partner.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct RelationshipsReport {
    pub relationships: Vec<RelationshipReport>,
}

/// The last canary round trip.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct CanaryReport {
    pub put_ms: f64,
    pub get_ms: f64,
    pub holders_answered: u32,
    pub through_network: bool,
    pub at_ms: u64,
}

/// Something an operator should know.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct AlarmReport {
    pub at_ms: u64,
    pub kind: &'static str,
    pub text: String,
}

/// This node's clock, beside those of its peers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct ClockReport {
    pub offset_ms: Option<i64>,
    pub peers: usize,
    pub synced: bool,
}

/// How this node's holders live and die.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct ChurnReport {
    pub holder_hours: f64,
    pub deaths: u32,
    pub death_chance_1h: f64,
}

/// The node, as far as the core knows; the shell adds what it knows of the network and the disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/spec/api.md has every field")]
pub struct StatusReport {
    pub peer_id: String,
    pub ready: bool,
    pub alone: bool,
    pub agents: Vec<AgentReport>,
    pub sections_held: usize,
    pub shards_held: usize,
    pub shard_bytes: u64,
    pub lost_store_ms: Option<u64>,
    pub disk_low: bool,
    pub canary: Option<CanaryReport>,
    pub clock: ClockReport,
    pub churn: ChurnReport,
    pub alarms: Vec<AlarmReport>,
    pub counters: BTreeMap<&'static str, u64>,
}
