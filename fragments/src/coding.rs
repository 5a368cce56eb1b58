//! Reed-Solomon: content to `n` shards, and back from any `k` that match the manifest (docs/spec/shards.md).

use std::{collections::BTreeMap, sync::OnceLock};

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::{
    CONTENT_BYTES_MAX,
    ids::Digest,
    manifest::Manifest,
    mutants::{self, Mutant},
    shape::{HOLDERS_MAX, Shape},
};

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

/// Any `k` shards that match the manifest, back to the content: checked before, completed to the codeword and compared after.
///
/// A shard that does not match its hash does not count: [`shard_matches`] tells whose it was.
pub fn reconstruct(manifest: &Manifest, shards: &BTreeMap<u8, Vec<u8>>) -> Result<Vec<u8>, ReconstructError> {
    let shape = manifest.shape;
    let (n, k, shard_len) = (usize::from(shape.n()), usize::from(shape.k()), manifest.shard_len());
    let genuine = shards.iter().filter(|(index, shard)| shard_matches(manifest, **index, shard));
    let used: BTreeMap<usize, &[u8]> = genuine.take(k).map(|(index, shard)| (usize::from(*index), shard.as_slice())).collect();
    if used.len() < k {
        return Err(ReconstructError::TooFew { have: used.len() as u8, need: shape.k() });
    }
    if manifest.shard_hashes.len() != n || manifest.content_len == 0 {
        return Err(ReconstructError::Poisoned);
    }

    // The data shards are put where the content lies in the end, so that they are copied once.
    let mut content = vec![0; k * shard_len];
    let mut parity = vec![0; (n - k) * shard_len];
    let mut codeword: Vec<(&mut [u8], bool)> =
        content.chunks_exact_mut(shard_len).chain(parity.chunks_exact_mut(shard_len)).map(|place| (place, false)).collect();
    for (index, shard) in &used {
        codeword[*index].0.copy_from_slice(shard);
        codeword[*index].1 = true;
    }
    if n > k {
        coder(shape).reconstruct(&mut codeword).map_err(|_| ReconstructError::Poisoned)?;
    }

    // The codeword through any k shards of a codeword is that codeword: one that differs from the manifest anywhere was never encoded.
    let derived = codeword.iter().enumerate().filter(|(index, _)| !used.contains_key(index));
    let same = derived.into_iter().all(|(index, (shard, _))| manifest.shard_hashes[index] == content_hash(shard));
    let padded_with_zeros = content[manifest.content_len as usize..].iter().all(|byte| *byte == 0);
    content.truncate(manifest.content_len as usize);
    let same = same || mutants::on(Mutant::NoReencode);
    let whole = same && padded_with_zeros && content_hash(&content) == manifest.content_hash;
    whole.then_some(content).ok_or(ReconstructError::Poisoned)
}

/// Whether `shard` is the one that the manifest lists at `index`.
pub fn shard_matches(manifest: &Manifest, index: u8, shard: &[u8]) -> bool {
    shard.len() == manifest.shard_len() && manifest.shard_hashes.get(usize::from(index)).is_some_and(|hash| *hash == content_hash(shard))
}

/// The coder of a shape. There are few shapes and each coder costs a matrix inversion, so they are made once; each remembers the
/// inverses that it needed last, at most 254.
fn coder(shape: Shape) -> &'static ReedSolomon {
    const SIDE: usize = HOLDERS_MAX as usize + 1;
    static CODERS: [OnceLock<ReedSolomon>; SIDE * SIDE] = [const { OnceLock::new() }; SIDE * SIDE];
    let (n, k) = (usize::from(shape.n()), usize::from(shape.k()));
    CODERS[n * SIDE + k].get_or_init(|| ReedSolomon::new(k, n - k).expect("a sound shape with parity"))
}
