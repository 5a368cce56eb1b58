//! Tells a human what happens: for a seed that is run again.

use std::collections::BTreeMap;

use persona_audit::history::{Event, GetOutcome, What};
use persona_fragments::{CertifiedHead, SignedManifest, wire};
use persona_mesh_proto::{Request, RequestFrame, Response, ResponseFrame};

use crate::world::Observer;

/// Prints events as lines.
#[derive(Default)]
pub struct Teller {
    section: Option<String>,
    asked: BTreeMap<u64, (u32, u32, RequestFrame)>,
    peers: BTreeMap<[u8; 32], u32>,
}

impl Teller {
    /// One who also prints the requests about a section: a prefix of its key in hexadecimal.
    pub fn new(section: Option<String>) -> Self {
        Self { section, ..Self::default() }
    }

    fn wanted(&self, key: &[u8; 32]) -> bool {
        self.section.as_ref().is_some_and(|prefix| hex(key).starts_with(prefix.as_str()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn version(body: &persona_fragments::manifest::ManifestWire) -> String {
    SignedManifest::trusted(body.clone()).map_or_else(|_| "?".into(), |manifest| manifest.version.to_string())
}

fn key_of(request: &Request) -> Option<[u8; 32]> {
    let of = |wire: &persona_fragments::manifest::ManifestWire| SignedManifest::trusted(wire.clone()).ok().map(|manifest| manifest.key.0);
    match request {
        Request::Prepare { manifest, .. } => of(manifest),
        Request::Commit { head } | Request::Renew { head, .. } | Request::Handover { head, .. } | Request::Take { head, .. } => {
            of(&head.manifest)
        }
        Request::Head { key, .. } | Request::Shard { key, .. } | Request::Recall { key, .. } => Some(key.0),
        Request::Never { manifest, .. } => of(manifest),
        Request::Abort { aborted } => of(&aborted.manifest),
        Request::Probe { .. } => None,
    }
}

fn told(request: &Request) -> String {
    match request {
        Request::Prepare { manifest, index, shard } => {
            let holders = SignedManifest::trusted(manifest.clone()).map(|manifest| manifest.holders.len()).unwrap_or(0);
            format!("PREPARE {} index {index} of {holders}{}", version(manifest), if shard.is_some() { " with shard" } else { "" })
        }
        Request::Commit { head } => format!("COMMIT {}", version(&head.manifest)),
        Request::Head { fence, with_shard, .. } => {
            format!("HEAD{}{}", if fence.is_some() { " fenced" } else { "" }, if *with_shard { " with shard" } else { "" })
        }
        Request::Shard { version, .. } => format!("SHARD {version}"),
        Request::Recall { .. } => "RECALL".into(),
        Request::Never { manifest, .. } => format!("NEVER {}", version(manifest)),
        Request::Abort { aborted } => format!("ABORT {}", version(&aborted.manifest)),
        Request::Renew { head, replaced, .. } => format!("RENEW {} replacing {}", version(&head.manifest), replaced.len()),
        Request::Handover { head, link, .. } => format!("HANDOVER {} replacing {}", version(&head.manifest), link.replaced.len()),
        Request::Take { head, index, .. } => format!("TAKE {} {index}", version(&head.manifest)),
        Request::Probe { sections } => format!("PROBE {} sections", sections.len()),
    }
}

fn answered(response: &Response) -> String {
    match response {
        Response::Head(answer) => format!(
            "committed {} expired {} prepared {:?} shard {:?}",
            answer.committed.as_ref().map_or_else(|| "-".into(), |head| version(&head.manifest)),
            answer.expired.as_ref().map_or_else(|| "-".into(), |head| version(&head.manifest)),
            answer.prepared.iter().map(|prepared| version(&prepared.manifest)).collect::<Vec<_>>(),
            answer.shard.as_ref().map(|shard| shard.index),
        ),
        Response::Fenced { head } => format!("FENCED by {}", version(&head.manifest)),
        Response::Superseded { head } => format!("SUPERSEDED by {}", version(&head.manifest)),
        Response::Acked { ack } => format!("ACKED {}", ack.index),
        Response::Conflict { .. } => "CONFLICT".into(),
        other => format!("{other:?}").chars().take(60).collect(),
    }
}

impl Observer for Teller {
    fn observe(&mut self, event: &Event) {
        let at = event.at_us as f64 / 1e6;
        match &event.what {
            What::Machine { machine, peer, correct } => {
                self.peers.insert(*peer, *machine);
                crate::line!("{at:10.6} machine {machine} {} correct {correct}", &hex(peer)[..8]);
            }
            What::Asked { frame, from, to, bytes } => {
                let to = self.peers.get(to).copied().unwrap_or(u32::MAX);
                let Ok(asked) = RequestFrame::from_bytes(bytes) else { return };
                for request in asked.requests.iter().filter(|request| key_of(request).is_some_and(|key| self.wanted(&key))) {
                    crate::line!("{at:10.6} {from} -> {to} #{frame} {}", told(request));
                }
                self.asked.insert(*frame, (*from, to, asked));
            }
            What::Answered { frame, from, bytes } => {
                let Some((to, _, asked)) = self.asked.get(frame) else { return };
                let Ok(frames) = ResponseFrame::from_bytes(bytes, asked.requests.len()) else { return };
                for (request, response) in asked.requests.iter().zip(&frames.responses) {
                    if key_of(request).is_some_and(|key| self.wanted(&key)) {
                        crate::line!("{at:10.6} {to} <= {from} #{frame} {}", answered(response));
                    }
                }
            }
            What::GetEnds { op, outcome: GetOutcome::Value { head, fresh, .. } } => {
                let version = wire::decode(head).ok().and_then(|wire| CertifiedHead::trusted(wire).ok());
                crate::line!(
                    "{at:10.6} get {op} ends {fresh:?} {}",
                    version.map_or_else(|| "?".into(), |head| head.manifest.version.to_string())
                );
            }
            What::PutBegins { op, machine, key } => crate::line!("{at:10.6} put {op} at {machine} of {}", &hex(key)[..8]),
            What::GetBegins { op, machine, key, mode } => crate::line!("{at:10.6} get {op} at {machine} of {} {mode:?}", &hex(key)[..8]),
            What::Durable { .. } | What::Heard { .. } | What::Serves { .. } => {}
            other => crate::line!("{at:10.6} {other:?}"),
        }
    }
}
