//! The book of manifests: each is decoded and judged once, however often it travels, and so is each ack and each certificate.
//!
//! What was judged is found again by its bytes, so a frame costs a few comparisons. Nothing here believes a sender: an ack counts if it
//! verifies with the key of the holder whose index it names, a certificate if `n - f` different ones of its acks do.

use std::collections::{BTreeMap, BTreeSet};

use persona_foreign::{
    frame::Reader,
    head::{
        Ack, Lease, Leased, Manifest, Version, check_lease, climb, leaf_hash, manifest_hash, manifest_message, never_leaf_hash,
        root_message,
    },
};

use crate::{
    Verify,
    decode::{self, RawHead, RawManifest},
    history::Machine,
};

/// Judged acks, and certificates, that are kept for one manifest. When there are more, further ones are judged each time.
const JUDGED_MAX: usize = 64;

/// Names a manifest in the book.
pub(crate) type ManifestId = usize;

/// What is known of a manifest.
pub(crate) struct Known {
    body: Box<[u8]>,
    signature: [u8; 64],
    pub hash: [u8; 32],
    pub manifest: Manifest,
    /// Its checks hold, and its owner signed it.
    pub valid: bool,
    /// When it was first seen anywhere.
    pub first_us: u64,
    /// Where it was first seen to leave: who sent it in a request, or wrote it down as an intent.
    pub writer: Option<Machine>,
    /// When its writer first sent its certificate.
    pub commit_began_us: Option<u64>,
    /// Indices whose acks were seen and verify.
    pub acked: u16,
    acks: Vec<(Box<[u8]>, Option<u8>)>,
    certificates: Vec<(Box<[u8]>, bool)>,
    /// Leases that were seen, with what those that verify prove.
    leases: Vec<(Box<[u8]>, Option<Leased>)>,
}

impl Known {
    /// `n`, `k`, `f`.
    pub(crate) fn shape(&self) -> [usize; 3] {
        self.manifest.shape.map(usize::from)
    }

    /// `n - f`.
    pub(crate) fn quorum(&self) -> usize {
        let [n, _, f] = self.shape();
        n - f
    }

    /// Enough different holders signed that a certificate can be made.
    pub(crate) fn certified(&self) -> bool {
        self.acked.count_ones() as usize >= self.quorum()
    }

    /// By how much clocks may differ, in milliseconds.
    pub(crate) fn allowance_ms(&self) -> u64 {
        allowance_ms(&self.manifest)
    }

    /// When its life is over for everybody, in milliseconds since the Unix epoch: by its last link.
    pub(crate) fn over_ms(&self) -> u64 {
        let leased = self.proven().map(|leased| leased.expires_at_ms).max();
        self.own_over_ms().max(leased.unwrap_or(0) + self.allowance_ms())
    }

    /// When it is by the owner's word alone.
    pub(crate) fn own_over_ms(&self) -> u64 {
        self.manifest.issued_at_ms + self.manifest.ttl_ms + self.allowance_ms()
    }

    /// Leases that verify.
    fn proven(&self) -> impl Iterator<Item = &Leased> {
        self.leases.iter().filter_map(|(_, leased)| leased.as_ref())
    }

    /// What a lease proves; `None`: it was not seen, or does not verify.
    pub(crate) fn leased(&self, frame: &[u8]) -> Option<&Leased> {
        self.leases.iter().find(|(bytes, _)| **bytes == *frame)?.1.as_ref()
    }

    /// Every holder set that it had, its own first.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &Vec<[u8; 32]>> {
        std::iter::once(&self.manifest.holders).chain(self.proven().flat_map(|leased| &leased.sets))
    }

    pub(crate) fn version(&self) -> Version {
        self.manifest.version
    }
}

/// By how much clocks may differ (docs/spec/quorum.md#time), in milliseconds.
fn allowance_ms(manifest: &Manifest) -> u64 {
    if manifest.class == 2 { 2_000 } else { 10_000 }
}

/// All manifests that were seen.
pub(crate) struct Book {
    verify: Verify,
    known: Vec<Known>,
    by_bytes: BTreeMap<u64, Vec<ManifestId>>,
    /// Became certified since somebody last looked.
    certified: Vec<ManifestId>,
}

impl Book {
    pub(crate) fn new(verify: Verify) -> Self {
        Self { verify, known: Vec::new(), by_bytes: BTreeMap::new(), certified: Vec::new() }
    }

    pub(crate) fn get(&self, id: ManifestId) -> &Known {
        &self.known[id]
    }

    pub(crate) fn get_mut(&mut self, id: ManifestId) -> &mut Known {
        &mut self.known[id]
    }

    /// Those that became certified since the last call, in that order.
    pub(crate) fn newly_certified(&mut self) -> Vec<ManifestId> {
        std::mem::take(&mut self.certified)
    }

    /// Looks a manifest up, or enters it; the flag says that it is new. `None`: it does not decode.
    pub(crate) fn manifest(&mut self, raw: &RawManifest<'_>, now_us: u64) -> Option<(ManifestId, bool)> {
        let place = fingerprint(raw);
        let same = |id: &&ManifestId| self.known[**id].signature == raw.signature && *self.known[**id].body == *raw.body;
        if let Some(id) = self.by_bytes.get(&place).and_then(|ids| ids.iter().find(same)) {
            return Some((*id, false));
        }
        let manifest = Manifest::decode(raw.body).ok()?;
        let valid = manifest.check().is_ok() && (self.verify)(&manifest.owner, &manifest_message(raw.body), &raw.signature);
        let id = self.known.len();
        self.known.push(Known {
            body: raw.body.into(),
            signature: raw.signature,
            hash: manifest_hash(raw.body),
            manifest,
            valid,
            first_us: now_us,
            writer: None,
            commit_began_us: None,
            acked: 0,
            acks: Vec::new(),
            certificates: Vec::new(),
            leases: Vec::new(),
        });
        self.by_bytes.entry(place).or_default().push(id);
        Some((id, true))
    }

    /// The index of the holder whose ack of this manifest these bytes are; `None`: they are nobody's.
    pub(crate) fn ack(&mut self, id: ManifestId, raw: &[u8]) -> Option<u8> {
        let Self { verify, known, certified, .. } = self;
        let known = &mut known[id];
        if let Some((_, index)) = known.acks.iter().find(|(bytes, _)| **bytes == *raw) {
            return *index;
        }
        let index = known.valid.then(|| judge_ack(known, raw, verify)).flatten();
        if known.acks.len() < JUDGED_MAX {
            known.acks.push((raw.into(), index));
        }
        if let Some(index) = index {
            let before = known.certified();
            known.acked |= 1 << index;
            if known.certified() && !before {
                certified.push(id);
            }
        }
        index
    }

    /// Looks a head up; the flag says whether it is certified. `None`: its manifest does not decode.
    pub(crate) fn head(&mut self, raw: &RawHead<'_>, now_us: u64) -> Option<(ManifestId, bool)> {
        let (id, _) = self.manifest(&raw.manifest, now_us)?;
        if raw.lease.is_some_and(|frame| !self.lease(id, frame)) {
            return Some((id, false));
        }
        if let Some((_, holds)) = self.known[id].certificates.iter().find(|(acks, _)| **acks == *raw.acks) {
            return Some((id, *holds));
        }
        let holds = self.known[id].valid && self.certificate(id, raw.acks);
        if self.known[id].certificates.len() < JUDGED_MAX {
            self.known[id].certificates.push((raw.acks.into(), holds));
        }
        Some((id, holds))
    }

    /// Whether a lease of a manifest verifies. All that do are remembered: there is one for each half of its life.
    fn lease(&mut self, id: ManifestId, frame: &[u8]) -> bool {
        if let Some((_, leased)) = self.known[id].leases.iter().find(|(bytes, _)| **bytes == *frame) {
            return leased.is_some();
        }
        let Self { verify, known, .. } = self;
        let known = &mut known[id];
        let lease = Lease::decode(frame).ok();
        let leased = lease.and_then(|lease| {
            check_lease(&known.manifest, &known.hash, &lease, &mut |key, message, signature| verify(key, message, signature))
        });
        let holds = leased.is_some();
        if holds || known.leases.len() < JUDGED_MAX {
            known.leases.push((frame.into(), leased));
        }
        holds
    }

    /// Whether these promises prove that a manifest's version was never durable (docs/spec/wire.md#abort-certificate).
    pub(crate) fn aborts(&mut self, id: ManifestId, list: &[u8]) -> bool {
        let Ok(nevers) = decode::acks(list) else { return false };
        let Self { verify, known, .. } = self;
        let known = &known[id];
        // As many rule out a certificate: with any n - f acks they would share a correct holder.
        let [n, _, f] = known.shape();
        let quorum = 2 * f + 1;
        let mut promised = |raw: &[u8]| judge(known, raw, |index| never_leaf_hash(&known.manifest, index), verify);
        let indices: Option<Vec<u8>> = nevers.into_iter().map(&mut promised).collect();
        let whole = |indices: Vec<u8>| (quorum..=n).contains(&indices.len()) && indices.windows(2).all(|pair| pair[0] < pair[1]);
        known.valid && indices.is_some_and(whole)
    }

    /// The index of the holder whose promise never to ack this manifest's version these bytes are.
    pub(crate) fn promise(&mut self, id: ManifestId, raw: &[u8]) -> Option<u8> {
        let Self { verify, known, .. } = self;
        let known = &known[id];
        judge(known, raw, |index| never_leaf_hash(&known.manifest, index), verify)
    }

    /// From `n - f` to `n` acks that verify, their indices ascending.
    fn certificate(&mut self, id: ManifestId, list: &[u8]) -> bool {
        let Ok(acks) = decode::acks(list) else { return false };
        let ([n, _, _], quorum) = (self.known[id].shape(), self.known[id].quorum());
        let indices: Option<Vec<u8>> = acks.into_iter().map(|ack| self.ack(id, ack)).collect();
        indices.is_some_and(|indices| (quorum..=n).contains(&indices.len()) && indices.windows(2).all(|pair| pair[0] < pair[1]))
    }
}

fn judge_ack(known: &Known, raw: &[u8], verify: &mut Verify) -> Option<u8> {
    judge(known, raw, |index| leaf_hash(&known.manifest, &known.hash, index), verify)
}

/// The holder whose signature over its leaf these bytes are.
fn judge(known: &Known, raw: &[u8], leaf: impl Fn(u8) -> [u8; 32], verify: &mut Verify) -> Option<u8> {
    let frame = [&[persona_foreign::frame::VERSION], raw].concat();
    let mut reader = Reader::open(&frame).ok()?;
    let ack = Ack::read(&mut reader).ok()?;
    reader.finish().ok()?;
    let holder = known.manifest.holders.get(usize::from(ack.index))?;
    let root = climb(leaf(ack.index), ack.position, ack.batch, &ack.path)?;
    verify(holder, &root_message(ack.batch, &root), &ack.signature).then_some(ack.index)
}

/// Where to look for a manifest: two that differ may share it.
fn fingerprint(raw: &RawManifest<'_>) -> u64 {
    let words = raw.signature.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    words.fold(raw.body.len() as u64, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

/// Two holder sets with the same members, whatever their order.
pub(crate) fn same_members(left: &[[u8; 32]], right: &[[u8; 32]]) -> bool {
    left == right || left.iter().collect::<BTreeSet<_>>() == right.iter().collect::<BTreeSet<_>>()
}
