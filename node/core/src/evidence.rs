//! Owners' keys that signed twice: the proof is kept, told to the operator, and shown with every analysis
//! (docs/spec/quorum.md#versions).

use persona_fragments::{Equivocation, OwnerKey};
use persona_mesh_proto::{Table, Write};

use crate::{node::Node, report::EquivocationReport, traffic::AfterPersist};

/// First byte of the keys of kept proofs in [`Table::Meta`].
const ROW_EVIDENCE: u8 = b'e';

/// Owners of whom a proof is kept. When there are so many, further ones are counted only: each costs its maker a key, not much more.
const EVIDENCE_MAX: usize = 1_024;

fn evidence_row(owner: &OwnerKey) -> Vec<u8> {
    [&[ROW_EVIDENCE][..], &owner.0].concat()
}

/// Whether a row of [`Table::Meta`] is a kept proof.
pub(crate) fn is_evidence(key: &[u8]) -> bool {
    key.len() == 1 + 32 && key[0] == ROW_EVIDENCE
}

impl Node {
    /// Keeps a verified proof, if it is the first of its owner.
    pub(crate) fn witness(&mut self, evidence: Equivocation) {
        let [one, other] = evidence.manifests();
        let owner = one.owner;
        if self.evidence.contains_key(&owner) {
            return;
        }
        self.count("equivocations");
        if self.evidence.len() >= EVIDENCE_MAX {
            return;
        }
        let whose = if self.owners.contains_key(&owner) {
            ": were its keys or this disk copied or set back? Run one node with these keys, and never on a disk from a backup"
        } else {
            ": do not rely on what it says until its owner explains"
        };
        let text = format!(
            "{} signed two manifests of version {} of {}, {} and {}{whose}",
            owner.to_did(),
            one.version,
            one.key.to_kad_key(),
            one.hash().to_hex(),
            other.hash().to_hex(),
        );
        self.alarm("equivocation", text);
        self.persist(vec![Write::set(Table::Meta, evidence_row(&owner), evidence.to_bytes())], AfterPersist::Nothing);
        self.evidence.insert(owner, evidence);
    }

    pub(crate) fn load_evidence(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let evidence = Equivocation::from_bytes(value, &*self.keys.verifier).map_err(|error| error.to_string())?;
        let owner = evidence.manifests()[0].owner;
        if key != evidence_row(&owner) {
            return Err("a proof is kept under another owner's key".into());
        }
        self.evidence.insert(owner, evidence);
        Ok(())
    }

    /// What is known against an owner.
    pub(crate) fn equivocation_of(&self, owner: &OwnerKey) -> Option<EquivocationReport> {
        let evidence = self.evidence.get(owner)?;
        let manifests = evidence.manifests();
        Some(EquivocationReport {
            kad_key: manifests[0].key.to_kad_key(),
            version: manifests[0].version.to_string(),
            manifest_hashes: manifests.map(|manifest| manifest.hash().to_hex()),
            proof: data_encoding::BASE64.encode(&evidence.to_bytes()),
        })
    }
}
