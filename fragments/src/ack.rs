//! A holder's word that a shard is on its disk, or never will be (docs/spec/quorum.md#acks).
//!
//! A holder that commits many shards with one fsync signs once, over the root of a Merkle tree of all of them; each ack carries its path.

use bincode::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::{
    ids::{Digest, PeerKey, SectionKey, Signature},
    manifest::Version,
    sign::{Signer, Verifier},
};

/// The longest path: one signature covers at most `2^10` acks.
pub const ACK_PATH_MAX: usize = 10;

/// The most acks that one signature may cover.
pub const ACK_BATCH_MAX: usize = 1 << ACK_PATH_MAX;

/// RFC 6962, section 2.1: leaves and nodes are hashed under different prefixes, so that neither can pass for the other.
const LEAF_PREFIX: [u8; 1] = [0x00];
const NODE_PREFIX: [u8; 1] = [0x01];

const LEAF_LABEL: &[u8] = b"persona/ack-leaf/v1";
const ROOT_LABEL: &[u8] = b"persona/ack-root/v1";

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum AckKind {
    /// The shard and its manifest are durable here.
    Ack,
    /// No manifest of this version was or ever will be acked here.
    Never,
    /// The shard is durable here, and stays so under the next link of a lease, to which `n - f` holders consented.
    Handover,
    /// The next link of a lease may be this one.
    Consent,
}

/// What exactly one ack is about. Never sent: both sides know it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AckLeaf {
    /// What is promised.
    pub kind: AckKind,
    /// The section.
    pub key: SectionKey,
    /// The version.
    pub version: Version,
    /// The manifest, by its hash. All zero for [`AckKind::Never`]; the handover's for those of a lease.
    pub manifest_hash: Digest,
    /// The shard.
    pub index: u8,
    /// The generation of a handover; 0 for the owner's own holder set.
    pub generation: u32,
}

impl AckLeaf {
    /// The promise of the holder with this index that it never acks any manifest of the version.
    pub fn never(key: SectionKey, version: Version, index: u8) -> Self {
        Self { kind: AckKind::Never, key, version, manifest_hash: Digest([0; 32]), index, generation: 0 }
    }

    fn hash(&self) -> Digest {
        let body = crate::wire::encode(self);
        Digest(Sha256::new().chain_update(LEAF_PREFIX).chain_update(LEAF_LABEL).chain_update(body).finalize().into())
    }
}

/// One holder's signed ack of one leaf.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    /// Which shard, and so which holder signed.
    pub index: u8,
    /// The leaf's position in the batch.
    pub position: u16,
    /// How many leaves the batch had.
    pub batch: u16,
    /// The sibling hashes from the leaf up to the root.
    pub path: Vec<Digest>,
    /// The holder's signature over `"persona/ack-root/v1" || batch, 2 bytes little endian || root`. Without the size, one path would
    /// prove a place in trees of several sizes, and an ack would have several encodings.
    pub signature: Signature,
}

impl Ack {
    /// Whether `holder` signed exactly `leaf`.
    pub fn verify(&self, leaf: &AckLeaf, holder: &PeerKey, verifier: &dyn Verifier) -> bool {
        leaf.index == self.index
            && climb(leaf.hash(), self.position.into(), self.batch.into(), &self.path)
                .is_some_and(|root| verifier.verify(&holder.0, &labelled(self.batch, &root), &self.signature))
    }
}

/// Signs a batch of acks with one signature. The acks come back in the order of the leaves.
///
/// # Panics
///
/// If there are more than [`ACK_BATCH_MAX`] leaves: the caller cuts its batches.
pub fn sign_batch(leaves: &[AckLeaf], signer: &dyn Signer) -> Vec<Ack> {
    assert!(leaves.len() <= ACK_BATCH_MAX, "a batch of {} acks", leaves.len());
    let hashes: Vec<Digest> = leaves.iter().map(AckLeaf::hash).collect();
    if hashes.is_empty() {
        return Vec::new();
    }
    let batch = hashes.len() as u16;
    let tree = MerkleTree::over(hashes);
    let signature = signer.sign(&labelled(batch, &tree.root()));
    let ack = |(position, leaf): (usize, &AckLeaf)| Ack {
        index: leaf.index,
        position: position as u16,
        batch,
        path: tree.path(position),
        signature,
    };
    leaves.iter().enumerate().map(ack).collect()
}

fn labelled(batch: u16, root: &Digest) -> Vec<u8> {
    [ROOT_LABEL, &batch.to_le_bytes(), root.as_bytes()].concat()
}

fn node(left: &Digest, right: &Digest) -> Digest {
    Digest(Sha256::new().chain_update(NODE_PREFIX).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// The largest power of two below `len` (RFC 6962: where a tree splits).
fn split(len: usize) -> usize {
    len.next_power_of_two() / 2
}

/// The tree of RFC 6962, level by level from the leaves: neighbours are paired, and an odd last one rises as it is.
struct MerkleTree {
    levels: Vec<Vec<Digest>>,
}

impl MerkleTree {
    /// At least one leaf.
    fn over(leaves: Vec<Digest>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| if let [left, right] = pair { node(left, right) } else { pair[0] }).collect();
            levels.push(above);
        }
        Self { levels }
    }

    fn root(&self) -> Digest {
        self.levels[self.levels.len() - 1][0]
    }

    /// The siblings on the way up from `position`; one that rises alone has none.
    fn path(&self, position: usize) -> Vec<Digest> {
        let sibling = |(height, level): (usize, &Vec<Digest>)| level.get((position >> height) ^ 1).copied();
        self.levels.iter().enumerate().filter_map(sibling).collect()
    }
}

/// The root that a leaf and its path lead to; `None` if the path has not exactly the length that the position demands.
fn climb(leaf: Digest, position: usize, batch: usize, path: &[Digest]) -> Option<Digest> {
    if batch == 0 || batch > ACK_BATCH_MAX || position >= batch {
        return None;
    }
    if batch == 1 {
        return path.is_empty().then_some(leaf);
    }
    let (sibling, below) = path.split_last()?;
    let middle = split(batch);
    if position < middle {
        Some(node(&climb(leaf, position, middle, below)?, sibling))
    } else {
        Some(node(sibling, &climb(leaf, position - middle, batch - middle, below)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::DeviceId,
        sign::{Ed25519Signer, Ed25519Verifier},
    };

    fn leaf(index: u8) -> AckLeaf {
        AckLeaf {
            kind: AckKind::Ack,
            key: SectionKey([1; 32]),
            version: Version { term: 1, device: DeviceId([2; 32]), seq: u64::from(index) + 1 },
            manifest_hash: Digest([3; 32]),
            index,
            generation: 0,
        }
    }

    /// RFC 6962, section 2.1, word for word: what the levels of [`MerkleTree`] must amount to.
    fn root_by_definition(hashes: &[Digest]) -> Digest {
        match hashes {
            [only] => *only,
            _ => {
                let (left, right) = hashes.split_at(split(hashes.len()));
                node(&root_by_definition(left), &root_by_definition(right))
            }
        }
    }

    #[test]
    fn the_tree_is_that_of_the_rfc_and_every_path_climbs_to_its_root() {
        for size in (1..=70).chain([127, 128, 129, 1000, ACK_BATCH_MAX]) {
            let leaves: Vec<Digest> = (0..size as u32).map(|i| Digest(Sha256::digest(i.to_le_bytes()).into())).collect();
            let tree = MerkleTree::over(leaves.clone());
            assert_eq!(tree.root(), root_by_definition(&leaves), "{size} leaves");
            for (position, leaf) in leaves.iter().enumerate() {
                let path = tree.path(position);
                assert!(path.len() <= ACK_PATH_MAX);
                assert_eq!(climb(*leaf, position, size, &path), Some(tree.root()), "{position} of {size}");
            }
        }
    }

    #[test]
    fn every_ack_of_every_batch_size_verifies_and_for_its_own_leaf_only() {
        let signer = Ed25519Signer::from_seed(&[5; 32]);
        let holder = PeerKey(signer.public_key());
        for size in 1..=17 {
            let leaves: Vec<AckLeaf> = (0..size).map(leaf).collect();
            let acks = sign_batch(&leaves, &signer);
            for (ack, own) in acks.iter().zip(&leaves) {
                assert!(ack.verify(own, &holder, &Ed25519Verifier));
                let never = AckLeaf { kind: AckKind::Never, ..own.clone() };
                assert!(!ack.verify(&never, &holder, &Ed25519Verifier));
                assert!(!ack.verify(own, &PeerKey([1; 32]), &Ed25519Verifier));
                let mut longer = ack.clone();
                longer.path.push(Digest([0; 32]));
                assert!(!longer.verify(own, &holder, &Ed25519Verifier));
            }
        }
    }
}
