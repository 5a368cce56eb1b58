//! A certified head and what it proves (docs/spec/wire.md#certified-head, docs/spec/manifest.md): the owner issued this manifest, and
//! enough of its holders have signed that they keep their shard on disk.

use std::{collections::BTreeSet, fmt};

use data_encoding::BASE32_NOPAD;

use crate::{
    frame::{FrameError, Reader, Writer},
    sha256, verifies,
};

const SECTION_LABEL: &[u8] = b"persona/section/v1";
const MANIFEST_LABEL: &[u8] = b"persona/manifest/v1";
const LEAF_LABEL: &[u8] = b"persona/ack-leaf/v1";
const ROOT_LABEL: &[u8] = b"persona/ack-root/v1";

const HANDOVER_LABEL: &[u8] = b"persona/handover/v1";

/// The most links of a lease.
const LINKS_MAX: usize = 96;

/// Leaves that one signature of a holder may cover.
const BATCH_LEAVES_MAX: u16 = 1024;

/// The latest time, in milliseconds since the Unix epoch.
const TIME_MS_MAX: u64 = 1 << 48;

/// When something was written, and where: compared field by field in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Takeovers of the agent by a new host, from 1.
    pub term: u64,
    /// The host that wrote it.
    pub device: [u8; 32],
    /// That host's writes of this section, from 1.
    pub seq: u64,
}

/// Holders of an earlier version that may still be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderSet {
    /// What they hold.
    pub version: Version,
    /// Who they are, by index.
    pub holders: Vec<[u8; 32]>,
    /// Milliseconds since the Unix epoch when they no longer matter; of a leased version, when its last known link expires.
    pub expires_at_ms: u64,
    /// Of a leased version: until when its holders may have renewed it. Otherwise 0.
    pub renew_until_ms: u64,
}

/// What an owner says about one version of a section (docs/spec/manifest.md#fields).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the page says what each field means")]
pub struct Manifest {
    pub key: [u8; 32],
    pub owner: [u8; 32],
    pub name: Vec<u8>,
    pub version: Version,
    pub content_version: Version,
    pub class: u32,
    pub level: u8,
    pub issued_at_ms: u64,
    pub ttl_ms: u64,
    pub renew_until_ms: u64,
    pub content_len: u32,
    /// n, k and f.
    pub shape: [u8; 3],
    pub content_hash: [u8; 32],
    pub shard_hashes: Vec<[u8; 32]>,
    pub holders: Vec<[u8; 32]>,
    pub older: Vec<OlderSet>,
}

/// A holder's word that it keeps its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The holder's place in the manifest's list.
    pub index: u8,
    /// The leaf's place in the batch.
    pub position: u16,
    /// Leaves in the batch.
    pub batch: u16,
    /// Sibling hashes, from the leaf upwards.
    pub path: Vec<[u8; 32]>,
    /// Over the root.
    pub signature: [u8; 64],
}

/// One renewal of a section by its holders (docs/spec/wire.md#lease).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Milliseconds since the Unix epoch.
    pub issued_at_ms: u64,
    /// Whose place goes to whom.
    pub replaced: Vec<(u8, [u8; 32])>,
    /// By the holders before it.
    pub consents: Vec<Ack>,
}

/// How the holders of a manifest have renewed it, decoded but not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// In the order of their generations.
    pub links: Vec<Link>,
    /// Of the last link.
    pub acks: Vec<Ack>,
}

/// A lease that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The holders after each link.
    pub sets: Vec<Vec<[u8; 32]>>,
    /// When the last link expires, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// When the last link was issued.
    pub issued_at_ms: u64,
}

/// A certified head, decoded but not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The manifest's frame: what is signed and hashed.
    pub body: Vec<u8>,
    /// The owner's signature.
    pub signature: [u8; 64],
    /// The holders' acks.
    pub acks: Vec<Ack>,
    /// The frame of the lease.
    pub handover: Option<Vec<u8>>,
}

/// A head that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// What the owner said.
    pub manifest: Manifest,
    /// The name of this manifest: `SHA-256("persona/manifest/v1" || body)`.
    pub manifest_hash: [u8; 32],
    /// How many holders signed for it: at least n - f.
    pub acks: usize,
    /// How its holders have renewed it, if they have.
    pub leased: Option<Leased>,
}

/// Why a head proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// Not a frame.
    Decode(FrameError),
    /// The lease does not decode or does not verify.
    Handover,
    /// A check of the manifest failed; it names what is wrong.
    Manifest(&'static str),
    /// A manifest of another section than the one that was asked for.
    OtherSection,
    /// Too few or too many acks.
    Acks {
        /// How many there are.
        have: usize,
        /// How many there must be at least.
        need: usize,
    },
    /// An index twice, or out of order.
    Order,
    /// The ack with this index is by a stranger or does not verify.
    Ack(u8),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(error) => write!(f, "the head is no frame: {error}"),
            Self::Handover => f.write_str("the lease does not verify; ask another peer"),
            Self::Manifest(what) => write!(f, "the manifest fails its check of {what}; ask another peer"),
            Self::OtherSection => f.write_str("the head is of another section; ask another peer"),
            Self::Acks { have, need } => write!(f, "{have} acks, but at least {need} are needed; ask another peer"),
            Self::Order => f.write_str("the acks are not in ascending order; ask another peer"),
            Self::Ack(index) => write!(f, "the ack of holder {index} does not verify; ask another peer"),
        }
    }
}

impl std::error::Error for HeadError {}

impl From<FrameError> for HeadError {
    fn from(error: FrameError) -> Self {
        Self::Decode(error)
    }
}

/// Checks the `value` of a record that was asked for by `record_key`, step by step (docs/spec/wire.md#checking-one-step-by-step). Whether
/// it has expired is left to whoever has a clock.
///
/// # Errors
/// The first check that fails.
pub fn check(record_key: &[u8], value: &[u8]) -> Result<Proven, HeadError> {
    let head = Head::decode(value)?; // 1
    let manifest = Manifest::decode(&head.body).map_err(|_| HeadError::Manifest("encoding"))?; // 2
    manifest.check().map_err(HeadError::Manifest)?;
    if record_key_of(&manifest.key) != record_key {
        return Err(HeadError::OtherSection); // 3
    }
    if !verifies(&manifest.owner, &[MANIFEST_LABEL, &head.body].concat(), &head.signature) {
        return Err(HeadError::Manifest("signature")); // 4
    }
    let manifest_hash = manifest_hash(&head.body); // 5
    let [n, _, f] = manifest.shape.map(usize::from);
    if head.acks.len() < n - f || head.acks.len() > n {
        return Err(HeadError::Acks { have: head.acks.len(), need: n - f }); // 6
    }
    if head.acks.windows(2).any(|pair| pair[0].index >= pair[1].index) {
        return Err(HeadError::Order);
    }
    for ack in &head.acks {
        let signed = || {
            let holder = manifest.holders.get(usize::from(ack.index))?;
            let leaf = leaf_hash(&manifest, &manifest_hash, ack.index); // 7
            let root = climb(leaf, ack.position, ack.batch, &ack.path)?; // 8
            verifies(holder, &root_message(ack.batch, &root), &ack.signature).then_some(()) // 9
        };
        signed().ok_or(HeadError::Ack(ack.index))?;
    }
    let leased = match &head.handover {
        None => None,
        Some(frame) => {
            let lease = Lease::decode(frame).map_err(|_| HeadError::Handover)?;
            let mut verify = |key: &[u8; 32], message: &[u8], signature: &[u8; 64]| verifies(key, message, signature);
            Some(check_lease(&manifest, &manifest_hash, &lease, &mut verify).ok_or(HeadError::Handover)?) // 10
        }
    };
    Ok(Proven { manifest, manifest_hash, acks: head.acks.len(), leased })
}

/// Whether a key signed a message.
pub type Verify<'a> = dyn FnMut(&[u8; 32], &[u8], &[u8; 64]) -> bool + 'a;

/// Checks a lease of a manifest (docs/spec/wire.md#lease). `None`: it proves nothing.
pub fn check_lease(manifest: &Manifest, manifest_hash: &[u8; 32], lease: &Lease, verify: &mut Verify<'_>) -> Option<Leased> {
    let [n, _, f] = manifest.shape.map(usize::from);
    let changes_but_last = lease.links.iter().rev().skip(1).all(|link| !link.replaced.is_empty());
    let bounded = (1..=LINKS_MAX).contains(&lease.links.len()) && changes_but_last;
    let (mut before, mut time_before, mut sets) = (manifest.holders.clone(), manifest.issued_at_ms, Vec::new());
    let mut last = None;
    for link in lease.links.iter().filter(|_| bounded) {
        let turns = if time_before == manifest.issued_at_ms { 8 } else { 4 };
        let after_ms = turns * (manifest.ttl_ms / 16).max(1);
        let due = link.issued_at_ms >= time_before + after_ms && link.issued_at_ms < manifest.renew_until_ms; // 1
        let in_order = link.replaced.windows(2).all(|pair| pair[0].0 < pair[1].0) && link.replaced.len() <= f; // 2
        let mut after = before.clone();
        for (index, peer) in &link.replaced {
            let new = !before.contains(peer) && !after.contains(peer);
            *after.get_mut(usize::from(*index)).filter(|_| new)? = *peer;
        }
        let turns = (link.issued_at_ms.checked_sub(manifest.issued_at_ms)?) / (manifest.ttl_ms / 16).max(1);
        let generation = u32::try_from(turns + 1).ok()?;
        let keys = |writer: Writer, key: &[u8; 32]| writer.raw(key);
        let body = Writer::new().raw(manifest_hash).varint(generation.into()).varint(link.issued_at_ms);
        let handover = sha256(&[HANDOVER_LABEL, &body.list(&before, keys).list(&after, keys).finish()]); // 3
        let consented = link.consents.len() == n - f && ascend(&link.consents);
        let mut signed = |ack: &Ack, kind: u64| {
            let leaf = leaf_with(kind, manifest, &handover, ack.index, generation);
            let holder = before.get(usize::from(ack.index))?;
            let root = climb(leaf, ack.position, ack.batch, &ack.path).filter(|_| ack.batch == 1)?;
            verify(holder, &root_message(ack.batch, &root), &ack.signature).then_some(())
        };
        let all = link.consents.iter().all(|ack| signed(ack, 3).is_some()); // 4
        if !(due && in_order && consented && all) {
            return None;
        }
        let stay = |ack: &Ack| before.get(usize::from(ack.index)) == after.get(usize::from(ack.index));
        last = Some(lease.acks.iter().all(|ack| stay(ack) && signed(ack, 2).is_some()));
        (before, time_before) = (after.clone(), link.issued_at_ms);
        sets.push(after);
    }
    let acked = last? && lease.acks.len() >= n - f && ascend(&lease.acks);
    let expires_at_ms = (time_before + manifest.ttl_ms).min(manifest.renew_until_ms);
    acked.then_some(Leased { sets, expires_at_ms, issued_at_ms: time_before })
}

fn ascend(acks: &[Ack]) -> bool {
    acks.windows(2).all(|pair| pair[0].index < pair[1].index)
}

/// The section key of an owner's section by its published name.
pub fn section_key(owner: &[u8; 32], name: &[u8]) -> [u8; 32] {
    sha256(&[SECTION_LABEL, owner, name])
}

/// The Kademlia record key of a section (docs/spec/wire.md#names-of-nodes-and-sections).
pub fn record_key_of(section: &[u8; 32]) -> Vec<u8> {
    format!("/persona/{}", BASE32_NOPAD.encode(section).to_lowercase()).into_bytes()
}

/// The name of the manifest whose frame is `body`.
pub fn manifest_hash(body: &[u8]) -> [u8; 32] {
    sha256(&[MANIFEST_LABEL, body])
}

/// What an owner signs for the manifest whose frame is `body`.
pub fn manifest_message(body: &[u8]) -> Vec<u8> {
    [MANIFEST_LABEL, body].concat()
}

/// What a holder signs for a batch of leaves.
pub fn root_message(batch: u16, root: &[u8; 32]) -> Vec<u8> {
    [ROOT_LABEL, &batch.to_le_bytes(), root].concat()
}

/// The hash of the leaf that holder `index` signed for: nobody sends it, everybody can make it.
pub fn leaf_hash(manifest: &Manifest, manifest_hash: &[u8; 32], index: u8) -> [u8; 32] {
    leaf_of(0, manifest, manifest_hash, index)
}

/// The hash of the leaf by which holder `index` promised never to ack this version (docs/spec/wire.md#abort-certificate).
pub fn never_leaf_hash(manifest: &Manifest, index: u8) -> [u8; 32] {
    leaf_of(1, manifest, &[0; 32], index)
}

fn leaf_of(kind: u64, manifest: &Manifest, manifest_hash: &[u8; 32], index: u8) -> [u8; 32] {
    leaf_with(kind, manifest, manifest_hash, index, 0)
}

fn leaf_with(kind: u64, manifest: &Manifest, manifest_hash: &[u8; 32], index: u8, generation: u32) -> [u8; 32] {
    let generation = generation.into();
    let leaf = manifest.version.write(Writer::new().varint(kind).raw(&manifest.key)).raw(manifest_hash).raw(&[index]).varint(generation);
    sha256(&[&[0x00], LEAF_LABEL, &leaf.finish()])
}

/// The root that a leaf's `hash` leads to; `None`: the path is not one of that place in a tree of that size.
pub fn climb(hash: [u8; 32], position: u16, batch: u16, path: &[[u8; 32]]) -> Option<[u8; 32]> {
    if position >= batch || batch > BATCH_LEAVES_MAX {
        return None;
    }
    if batch == 1 {
        return path.is_empty().then_some(hash);
    }
    // The largest power of two below the size: for 2 it is 1.
    let split = 1 << (batch - 1).ilog2();
    let (sibling, below) = path.split_last()?;
    Some(if position < split {
        sha256(&[&[0x01], &climb(hash, position, split, below)?, sibling])
    } else {
        sha256(&[&[0x01], sibling, &climb(hash, position - split, batch - split, below)?])
    })
}

impl Version {
    /// Reads a version out of a frame.
    ///
    /// # Errors
    /// There is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self { term: reader.u64()?, device: reader.array()?, seq: reader.u64()? })
    }

    fn write(&self, writer: Writer) -> Writer {
        writer.varint(self.term).raw(&self.device).varint(self.seq)
    }

    fn counts_from_one(&self) -> bool {
        self.term >= 1 && self.seq >= 1
    }
}

impl Ack {
    /// Reads an ack out of a frame.
    ///
    /// # Errors
    /// There is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self {
            index: reader.u8()?,
            position: reader.u16()?,
            batch: reader.u16()?,
            path: reader.list(Reader::array)?,
            signature: reader.array()?,
        })
    }
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    /// It is no frame, or of a later format.
    pub fn decode(value: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader::open(value)?;
        let (body, signature) = (reader.bytes()?.to_vec(), reader.array()?);
        let acks = reader.list(Ack::read)?;
        let handover = reader.option(Reader::bytes)?;
        reader.finish()?;
        Ok(Self { body, signature, acks, handover: handover.map(<[u8]>::to_vec) })
    }

    /// Its frame.
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::new().bytes(&self.body).raw(&self.signature).list(&self.acks, |writer, ack| {
            let writer = writer.raw(&[ack.index]).varint(ack.position.into()).varint(ack.batch.into());
            writer.list(&ack.path, |writer, hash| writer.raw(hash)).raw(&ack.signature)
        });
        match &self.handover {
            None => writer.raw(&[0x00]).finish(),
            Some(frame) => writer.raw(&[0x01]).bytes(frame).finish(),
        }
    }
}

impl Lease {
    /// Reads a lease's frame.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::open(frame)?;
        let links = reader.list(Link::read)?;
        let acks = reader.list(Ack::read)?;
        reader.finish()?;
        Ok(Self { links, acks })
    }
}

impl Link {
    /// Reads a link out of a frame.
    ///
    /// # Errors
    /// There is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self {
            issued_at_ms: reader.u64()?,
            replaced: reader.list(|reader| Ok((reader.u8()?, reader.array()?)))?,
            consents: reader.list(Ack::read)?,
        })
    }
}

impl Manifest {
    /// Reads a manifest's frame.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::open(body)?;
        let manifest = Self {
            key: reader.array()?,
            owner: reader.array()?,
            name: reader.bytes()?.to_vec(),
            version: Version::read(&mut reader)?,
            content_version: Version::read(&mut reader)?,
            class: reader.variant(4)?,
            level: reader.u8()?,
            issued_at_ms: reader.u64()?,
            ttl_ms: reader.u64()?,
            renew_until_ms: reader.u64()?,
            content_len: reader.u32()?,
            shape: sound_shape(reader.array()?)?,
            content_hash: reader.array()?,
            shard_hashes: reader.list(Reader::array)?,
            holders: reader.list(Reader::array)?,
            older: reader.list(|reader| {
                let (version, holders) = (Version::read(reader)?, reader.list(Reader::array)?);
                Ok(OlderSet { version, holders, expires_at_ms: reader.u64()?, renew_until_ms: reader.u64()? })
            })?,
        };
        reader.finish()?;
        Ok(manifest)
    }

    /// Its frame, the `body` of a head.
    pub fn encode(&self) -> Vec<u8> {
        let keys = |writer: Writer, key: &[u8; 32]| writer.raw(key);
        let writer = Writer::new().raw(&self.key).raw(&self.owner).bytes(&self.name);
        let writer = self.content_version.write(self.version.write(writer)).varint(self.class.into()).raw(&[self.level]);
        let writer = writer.varint(self.issued_at_ms).varint(self.ttl_ms).varint(self.renew_until_ms).varint(self.content_len.into());
        let writer = writer.raw(&self.shape).raw(&self.content_hash).list(&self.shard_hashes, keys).list(&self.holders, keys);
        let older = |writer: Writer, older: &OlderSet| {
            let writer = older.version.write(writer).list(&older.holders, keys);
            writer.varint(older.expires_at_ms).varint(older.renew_until_ms)
        };
        writer.list(&self.older, older).finish()
    }

    /// The checks that need neither a clock nor the signature, in the page's order (docs/spec/manifest.md#checks).
    ///
    /// # Errors
    /// What failed first.
    pub fn check(&self) -> Result<(), &'static str> {
        let holds = |is_so: bool, what| if is_so { Ok(()) } else { Err(what) };
        let differ = |holders: &[[u8; 32]]| holders.iter().collect::<BTreeSet<_>>().len() == holders.len();
        holds((1..=64).contains(&self.name.len()), "name")?;
        holds(self.key == section_key(&self.owner, &self.name), "key")?;
        holds((1..=10).contains(&self.level), "level")?;
        let [n, k, f] = self.shape;
        let reach = 3 * self.level.div_ceil(2) + 1;
        holds(n <= reach && i16::from(k) == wanted_k(n, f, self.level), "shape")?;
        holds(self.holders.len() == usize::from(n) && self.shard_hashes.len() == usize::from(n), "shape")?;
        holds(differ(&self.holders), "holders")?;
        holds((1..=1_114_112).contains(&self.content_len), "content length")?;
        holds(self.issued_at_ms <= TIME_MS_MAX, "issued_at")?;
        holds((1..=604_800_000).contains(&self.ttl_ms), "ttl")?;
        let renewal = self.issued_at_ms..=self.issued_at_ms + 2_592_000_000;
        holds(self.renew_until_ms == 0 || renewal.contains(&self.renew_until_ms), "renew_until")?;
        holds(self.version.counts_from_one(), "version")?;
        holds(self.content_version.counts_from_one() && self.content_version <= self.version, "content version")?;
        holds(self.older.len() <= 8, "number of older holder sets")?;
        for older in &self.older {
            holds((1..=16).contains(&older.holders.len()), "older holder set")?;
            holds(older.version.counts_from_one() && older.version < self.version, "older version")?;
            holds(older.expires_at_ms.max(older.renew_until_ms) <= TIME_MS_MAX, "older expiry")?;
            holds(differ(&older.holders), "older holders")?;
        }
        let place = |older: &OlderSet| (older.version, older.expires_at_ms, older.holders.clone());
        holds(self.older.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "order of older holder sets")
    }
}

/// Three numbers that do not fit together are not even a value (docs/spec/manifest.md#shape).
fn sound_shape(shape: [u8; 3]) -> Result<[u8; 3], FrameError> {
    let [n, k, f] = shape;
    let is_sound = (1..=16).contains(&n) && f == (n - 1) / 3 && (1..=n - 2 * f).contains(&k);
    if is_sound { Ok(shape) } else { Err(FrameError::Malformed) }
}

fn wanted_k(n: u8, f: u8, level: u8) -> i16 {
    let [n, f, level] = [n, f, level].map(i16::from);
    (n - f - level + 1).clamp(1, n - 2 * f)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The vector that docs/spec/wire.md#test-vectors names.
    fn golden() -> Vec<u8> {
        let hex = include_str!("../../../../fragments/tests/golden/certified_head.hex");
        let hex: String = hex.split_whitespace().collect();
        HEXLOWER.decode(hex.as_bytes()).unwrap()
    }

    fn golden_key() -> Vec<u8> {
        record_key_of(&Manifest::decode(&Head::decode(&golden()).unwrap().body).unwrap().key)
    }

    #[test]
    fn the_golden_head_is_proven_and_written_back() {
        let proven = check(&golden_key(), &golden()).unwrap();
        let owner = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key();
        assert_eq!(proven.manifest.owner, owner.to_bytes());
        for (place, holder) in (0..).zip(&proven.manifest.holders) {
            assert_eq!(*holder, ed25519_dalek::SigningKey::from_bytes(&[0x40 + place; 32]).verifying_key().to_bytes());
        }
        let head = Head::decode(&golden()).unwrap();
        assert_eq!(proven.manifest.encode(), head.body);
        assert_eq!(head.encode(), golden());
        assert!(head.acks.iter().all(|ack| (ack.position, ack.batch) == (2, 5)));
    }

    #[test]
    fn no_bit_of_the_golden_head_can_be_altered() {
        let (golden, key) = (golden(), golden_key());
        for bit in 0..golden.len() * 8 {
            let mut altered = golden.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&key, &altered).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn each_flaw_has_its_name() {
        let (key, head) = (golden_key(), Head::decode(&golden()).unwrap());
        let verdict = |head: &Head| check(&key, &head.encode()).map(|_| ());
        let need = {
            let [n, _, f] = Manifest::decode(&head.body).unwrap().shape;
            usize::from(n - f)
        };
        assert_eq!(verdict(&head), Ok(()));

        let mut few = head.clone();
        few.acks.truncate(need - 1);
        assert_eq!(verdict(&few), Err(HeadError::Acks { have: need - 1, need }));
        let mut unordered = head.clone();
        unordered.acks.swap(0, 1);
        assert_eq!(verdict(&unordered), Err(HeadError::Order));
        let mut twice = head.clone();
        twice.acks[1] = twice.acks[0].clone();
        assert_eq!(verdict(&twice), Err(HeadError::Order));
        let mut grafted = head.clone();
        grafted.acks[0].path.push([0; 32]);
        assert_eq!(verdict(&grafted), Err(HeadError::Ack(head.acks[0].index)));
        let mut unsigned = head.clone();
        unsigned.signature[0] ^= 1;
        assert_eq!(verdict(&unsigned), Err(HeadError::Manifest("signature")));

        let mut later = head.encode();
        later.pop();
        later.extend([1, 0]);
        assert_eq!(check(&key, &later), Err(HeadError::Handover));
        assert_eq!(check(&record_key_of(&[0; 32]), &golden()), Err(HeadError::OtherSection));

        let mut other_owner = Manifest::decode(&head.body).unwrap();
        other_owner.owner = [9; 32];
        assert_eq!(other_owner.check(), Err("key"));
        let mut mislevelled = Manifest::decode(&head.body).unwrap();
        mislevelled.level += 1;
        assert_eq!(mislevelled.check(), Err("shape"));
    }

    /// RFC 6962 by its own definition (section 2.1), for every leaf of trees up to nine.
    #[test]
    fn climbing_reaches_the_root() {
        fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
            let [leaf] = leaves else {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                return sha256(&[&[1], &root(left), &root(right)]);
            };
            *leaf
        }
        fn path(leaves: &[[u8; 32]], at: usize) -> Vec<[u8; 32]> {
            if leaves.len() == 1 {
                return Vec::new();
            }
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            let (mut below, sibling) =
                if at < left.len() { (path(left, at), root(right)) } else { (path(right, at - left.len()), root(left)) };
            below.push(sibling);
            below
        }
        for size in 1..=9_u16 {
            let leaves: Vec<[u8; 32]> = (0..size).map(|leaf| sha256(&[&leaf.to_le_bytes()])).collect();
            for at in 0..size {
                let place = usize::from(at);
                let path = path(&leaves, place);
                assert_eq!(climb(leaves[place], at, size, &path), Some(root(&leaves)), "{at} of {size}");
                assert_ne!(climb(leaves[place], (at + 1) % (size + 1), size, &path), Some(root(&leaves)), "{at} of {size}");
            }
        }
        assert_eq!(climb([0; 32], 0, 0, &[]), None);
        assert_eq!(climb([0; 32], 0, 1025, &[[0; 32]; 11]), None);
    }
}
