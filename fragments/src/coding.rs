//! Reed-Solomon: content to `n` shards, and back from any `k` that match the manifest (docs/spec/shards.md).

use std::collections::BTreeMap;

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::{CONTENT_BYTES_MAX, ids::Digest, manifest::Manifest, shape::Shape};

/// Why content cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodingError {
    /// Nothing to store.
    #[error("there is no content to encode")]
    Empty,
    /// More than a section may have.
    #[error("the content has {0} bytes, more than {CONTENT_BYTES_MAX}")]
    TooLarge(usize),
}

/// Why shards do not give the content back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReconstructError {
    /// Fewer than `k` of the shards match their hashes.
    #[error("only {have} of {need} shards match the manifest")]
    TooFew {
        /// Shards that match.
        have: u8,
        /// `k`.
        need: u8,
    },
    /// The owner signed hashes of something that is no codeword, or another content hash. Every reader of this manifest gets this
    /// verdict, whichever shards it used: nobody is told different bytes.
    #[error("poisoned: the manifest's hashes do not belong to one content; its owner made it so")]
    Poisoned,
}

/// BLAKE3, as manifests hash content and shards.
pub fn content_hash(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// The hash of each shard, by index.
pub fn shard_hashes(shards: &[Vec<u8>]) -> Vec<Digest> {
    shards.iter().map(|shard| content_hash(shard)).collect()
}

/// Content to `n` shards of equal length, the first `k` of which are the content itself, padded with zeros.
pub fn encode(content: &[u8], shape: Shape) -> Result<Vec<Vec<u8>>, CodingError> {
    if content.is_empty() {
        return Err(CodingError::Empty);
    }
    if content.len() > CONTENT_BYTES_MAX {
        return Err(CodingError::TooLarge(content.len()));
    }
    let (n, k) = (usize::from(shape.n()), usize::from(shape.k()));
    let shard_len = content.len().div_ceil(k);
    let mut shards: Vec<Vec<u8>> = (0..n)
        .map(|index| {
            let start = (index * shard_len).min(content.len());
            let end = if index < k { (start + shard_len).min(content.len()) } else { start };
            let mut shard = content[start..end].to_vec();
            shard.resize(shard_len, 0);
            shard
        })
        .collect();
    if n > k {
        coder(shape).encode(&mut shards).expect("n shards of one length");
    }
    Ok(shards)
}

/// Any `k` shards that match the manifest, back to the content: checked before, re-encoded and compared after.
///
/// A shard that does not match its hash does not count: [`shard_matches`] tells whose it was.
pub fn reconstruct(manifest: &Manifest, shards: &BTreeMap<u8, Vec<u8>>) -> Result<Vec<u8>, ReconstructError> {
    let shape = manifest.shape;
    let (n, k) = (usize::from(shape.n()), usize::from(shape.k()));
    let mut have = 0;
    let mut slots: Vec<Option<Vec<u8>>> = (0..n)
        .map(|index| {
            let wanted = have < shape.k();
            let shard = shards.get(&(index as u8)).filter(|shard| wanted && shard_matches(manifest, index as u8, shard))?;
            have += 1;
            Some(shard.clone())
        })
        .collect();
    if usize::from(have) < k {
        return Err(ReconstructError::TooFew { have, need: shape.k() });
    }
    if n > k && slots[..k].iter().any(Option::is_none) {
        coder(shape).reconstruct_data(&mut slots).map_err(|_| ReconstructError::Poisoned)?;
    }
    let mut content: Vec<u8> = slots.into_iter().take(k).flatten().flatten().collect();
    content.truncate(manifest.content_len as usize);
    let again = encode(&content, shape).map_err(|_| ReconstructError::Poisoned)?;
    let genuine = shard_hashes(&again) == manifest.shard_hashes && content_hash(&content) == manifest.content_hash;
    genuine.then_some(content).ok_or(ReconstructError::Poisoned)
}

/// Whether `shard` is the one that the manifest lists at `index`.
pub fn shard_matches(manifest: &Manifest, index: u8, shard: &[u8]) -> bool {
    shard.len() == manifest.shard_len() && manifest.shard_hashes.get(usize::from(index)).is_some_and(|hash| *hash == content_hash(shard))
}

fn coder(shape: Shape) -> ReedSolomon {
    ReedSolomon::new(shape.k().into(), (shape.n() - shape.k()).into()).expect("a sound shape with parity")
}
