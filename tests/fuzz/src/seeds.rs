//! Sound inputs, from which a fuzzer begins, and what the targets need of a world. All of it follows from fixed seeds.

use std::collections::BTreeSet;

use chacha20::ChaCha20Rng;
use persona_agent::{
    Announcement, Birth, Card, Commitment, Genesis, Identity, Index, IndexEntry, Interaction, Kind, Mode, Outgoing, PairState, Personality,
    RecoveryFile, Relationship, RootSecret, envelope, recovery::KdfParams,
};
use persona_bootstrap::{AddressBook, Ticket};
use persona_fragments::{
    AbortedVersion, Certificate, CertifiedHead, Class, DeviceId, Digest, Ed25519Signer, Ed25519Verifier, EpochKey, Equivocation, Fields,
    Handover, Lease, Link, Manifest, OlderSet, OwnerKey, PeerKey, RecoveryKey, SealContext, SectionKey, Shape, SignedManifest, Signer as _,
    Version, coding, encode, seal, sign_batch, wire,
};
use persona_mesh_proto::{Request, RequestFrame, Response, ResponseFrame, Table};
use rand_core::SeedableRng as _;

use crate::node;

/// 2026-01-01, in milliseconds since the Unix epoch.
pub(crate) const NOW_MS: u64 = 1_767_225_600_000;

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn owner() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[1; 32])
}

/// The node that the targets feed is holder 0.
fn holder(index: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed(&[5 + index; 32])
}

fn holder_key(index: u8) -> PeerKey {
    PeerKey(holder(index).public_key())
}

fn version(seq: u64) -> Version {
    Version { term: 1, device: holder_key(15).device(), seq }
}

fn content(len: u32) -> Vec<u8> {
    (0..len).map(|byte| byte as u8).collect()
}

/// A sound manifest of `len` bytes.
pub(crate) fn manifest_of(shape: Shape, level: u8, len: u32) -> Manifest {
    let content = content(len.max(1));
    let shards = encode(&content, shape).expect("content");
    Manifest {
        key: SectionKey::derive(&OwnerKey(owner().public_key()), b"core"),
        owner: OwnerKey(owner().public_key()),
        name: b"core".to_vec(),
        version: version(7),
        content_version: version(5),
        class: Class::Core,
        level,
        issued_at_ms: NOW_MS,
        ttl_ms: 3_600_000,
        renew_until_ms: 0,
        content_len: content.len() as u32,
        shape,
        content_hash: coding::content_hash(&content),
        shard_hashes: coding::shard_hashes(&shards),
        holders: (0..shape.n()).map(holder_key).collect(),
        older: Vec::new(),
    }
}

fn manifest() -> Manifest {
    manifest_of(Shape::for_level(2, 4).expect("holders"), 2, 90)
}

fn older() -> Manifest {
    let set = OlderSet {
        version: version(6),
        holders: (4..8).map(holder_key).collect(),
        expires_at_ms: NOW_MS + 1_000,
        renew_until_ms: NOW_MS + 60_000,
    };
    Manifest { older: vec![set], renew_until_ms: NOW_MS + 86_400_000, ..manifest() }
}

fn signed(manifest: Manifest) -> SignedManifest {
    SignedManifest::sign(manifest, &owner()).expect("a sound manifest")
}

fn head(manifest: Manifest) -> CertifiedHead {
    let manifest = signed(manifest);
    let acks = (0..manifest.shape.n()).map(|index| (index, sign_batch(&[manifest.ack_leaf(index)], &holder(index)).remove(0))).collect();
    let certificate = Certificate::assemble(&manifest, &acks).expect("enough acks");
    CertifiedHead { manifest, certificate, lease: None }
}

fn aborted(manifest: Manifest) -> AbortedVersion {
    let manifest = signed(manifest);
    let nevers =
        (0..manifest.shape.n()).map(|index| (index, sign_batch(&[manifest.never_leaf(index)], &holder(index)).remove(0))).collect();
    AbortedVersion::assemble(&manifest, &nevers).expect("enough promises")
}

fn requests() -> Vec<Request> {
    let manifest = signed(older());
    let shard = encode(&content(90), manifest.shape).expect("content").swap_remove(0);
    let wire = manifest.wire().clone();
    vec![
        Request::Prepare { manifest: wire.clone(), index: 0, shard: Some(shard) },
        Request::Prepare { manifest: wire.clone(), index: 0, shard: None },
        Request::Commit { head: head(older()).to_wire() },
        Request::Head { key: manifest.key, fence: None, with_shard: true },
        Request::Head {
            key: manifest.key,
            fence: Some(
                head(Manifest { name: b"card".to_vec(), key: SectionKey::derive(&manifest.owner, b"card"), ..self::manifest() }).to_wire(),
            ),
            with_shard: false,
        },
        Request::Shard { key: manifest.key, version: manifest.version },
        Request::Recall { key: manifest.key, owner: manifest.owner },
        Request::Never { manifest: wire, index: 0, order: manifest.order_never(&owner()) },
        Request::Abort { aborted: aborted(self::manifest()).to_wire() },
    ]
    .into_iter()
    .chain(handovers())
    .collect()
}

/// What the holders of a lease say to each other.
fn handovers() -> [Request; 3] {
    let (renewed, link) = renewed();
    let shard = encode(&content(90), renewed.manifest.shape).expect("content").swap_remove(1);
    let before = CertifiedHead { lease: None, ..renewed.clone() }.to_wire();
    let consent = link.consents[0].clone();
    let replaced = link.replaced.clone();
    [
        Request::Renew { head: before.clone(), index: 1, issued_at_ms: link.issued_at_ms, replaced, consent, lock: Some(link.clone()) },
        Request::Handover { head: before, index: 1, link },
        Request::Take { head: renewed.to_wire(), index: 1, shard },
    ]
}

/// A head whose holders have replaced one of themselves, and the link by which they did.
fn renewed() -> (CertifiedHead, Link) {
    let head = head(older());
    let manifest = &head.manifest;
    let (issued_at_ms, replaced) = (NOW_MS + 1_800_000, vec![(3, holder_key(9))]);
    let handover = Handover::of(manifest, head.holders(), issued_at_ms, &replaced).expect("sound");
    let quorum = 0..manifest.shape.quorum();
    let sign = |index: u8, leaf| sign_batch(&[leaf], &holder(index)).remove(0);
    let consents = quorum.clone().map(|index| sign(index, handover.consent_leaf(manifest, index))).collect();
    let acks = quorum.map(|index| sign(index, handover.ack_leaf(manifest, index))).collect();
    let link = Link { issued_at_ms, replaced, consents };
    let lease = Lease::extended(manifest, None, link.clone(), acks).expect("sound");
    (CertifiedHead { lease: Some(lease), ..head }, link)
}

/// What the sealed section of the seeds is bound to.
pub(crate) fn seal_context() -> SealContext {
    let content_version = Version { term: 1, device: DeviceId([3; 32]), seq: 1 };
    SealContext { agent: OwnerKey([1; 32]), section: SectionKey([2; 32]), content_version }
}

/// An agent.
pub(crate) fn identity(seed: u8) -> Identity {
    let root = RootSecret::from_bytes([seed; 32]);
    Identity::new(root, person(seed), 1, &persona_agent::order::OFFERED_DEFAULT).expect("its own")
}

fn person(seed: u8) -> Personality {
    let agent = RootSecret::from_bytes([seed; 32]).agent_id();
    let birth = Birth { time_ms: NOW_MS, place: "here".into() };
    let genesis = Genesis { agent, name: "ada".into(), role: Some("poet".into()), birth, attributes: b"{}".to_vec(), mesh_secret: None };
    Personality::birth(genesis, &mut ChaCha20Rng::from_seed([seed; 32])).expect("born")
}

/// Its card.
pub(crate) fn card(seed: u8) -> Card {
    identity(seed).card(PeerKey([0; 32]), 0)
}

/// A short text.
pub(crate) fn outgoing<'a>(to: &'a Card, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { to, kind: Kind::Text, mode: Mode::Normal, payload, now_ms: 1, expires_at_ms: 0 }
}

/// Agent 1's first message to agent 2.
pub(crate) fn hello() -> Vec<u8> {
    let (me, to) = (identity(1), card(2));
    envelope::compose(&me, &mut PairState::new(&me, &to), outgoing(&to, b"hello"), &mut rng(1)).expect("composes")
}

/// What agent 2 has of agent 1 after it.
pub(crate) fn pair() -> PairState {
    envelope::receive(&hello(), &Ed25519Verifier, &identity(2), None, &card(1), 1).1.expect("accepted").pair
}

fn list(fields: &Fields) -> Vec<u8> {
    wire::encode(&fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect::<Vec<_>>())
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |rest, byte| {
        (0..8).fold(rest ^ u32::from(*byte), |rest, _| if rest & 1 == 1 { (rest >> 1) ^ 0xEDB8_8320 } else { rest >> 1 })
    })
}

/// Bytes and their checksum, as tickets and address books end.
pub(crate) fn with_crc(bytes: &[u8]) -> Vec<u8> {
    [bytes, &crc32(bytes).to_be_bytes()].concat()
}

/// A ticket with this frame: prefix, length and checksum are right.
pub(crate) fn armoured(frame: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let body = data_encoding::BASE32_NOPAD.encode(&with_crc(frame)).to_ascii_lowercase();
    let length: String = [10, 5, 0].map(|shift| char::from(ALPHABET[(body.len() >> shift) & 31])).iter().collect();
    format!("persona:{length}{body}")
}

/// A recovery file with these bytes.
pub(crate) fn recovery_text(bytes: &[u8]) -> String {
    let empty = recovery().encode();
    let (first, last) = (empty.lines().next().unwrap_or_default(), empty.lines().last().unwrap_or_default());
    format!("{first}\n{}\n{last}\n", data_encoding::BASE64.encode(bytes))
}

fn recovery() -> RecoveryFile {
    let kdf = KdfParams { salt: [3; 16], m_kib: 65_536, t: 3, p: 1 };
    RecoveryFile::seal(&RootSecret::from_bytes([7; 32]), "ada", kdf, &[9; 32], &mut rng(1))
}

fn relationship() -> Relationship {
    let mut relationship = Relationship::new(identity(1).agent(), identity(2).agent());
    for _ in 0..3 {
        relationship.append(Interaction {
            at_ms: NOW_MS,
            direction: persona_agent::Direction::Sent,
            kind: Kind::Text,
            counter: 1,
            term: 1,
            payload: Digest([4; 32]),
            total_permille: None,
        });
    }
    relationship
}

fn index() -> Index {
    let mut index = Index::new();
    let entry =
        IndexEntry { class: Class::Core, ttl_ms: 3_600_000, renew_ms: 86_400_000, level: 5, version: Some(version(3)), removed: false };
    index.set("core", entry.clone()).expect("a name");
    index.set("doc/notes", IndexEntry { removed: true, version: None, ..entry }).expect("a name");
    index
}

/// Seeds of one target; the first bytes are what its own rules say.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "manifest" => vec![wire::encode(&manifest()), wire::encode(&older())],
        "certified_head" => vec![head(manifest()).to_bytes(), head(older()).to_bytes(), renewed().0.to_bytes()],
        "abort_certificate" => vec![aborted(manifest()).to_bytes()],
        "equivocation" => {
            let other = Manifest { ttl_ms: 3_600_001, ..manifest() };
            vec![Equivocation::of(&signed(manifest()), &signed(other)).expect("two of one version").to_bytes()]
        }
        "request_frame" => {
            let one = requests().into_iter().map(|request| RequestFrame { requests: vec![request] }.to_bytes());
            one.chain([RequestFrame { requests: requests() }.to_bytes()]).collect()
        }
        "response_frame" => {
            let responses = vec![Response::Recovering, Response::Busy, Response::Absent, Response::Committed, Response::NeedShard];
            let head = Response::Fenced { head: head(manifest()).to_wire() };
            let frame = |responses: Vec<Response>| [&[responses.len() as u8][..], &ResponseFrame { responses }.to_bytes()].concat();
            vec![frame(responses), frame(vec![head]), frame(vec![Response::Shard { index: 0, bytes: content(45) }])]
        }
        "section" => {
            let fields = Fields::new().with("a", *b"one").with("b", *b"two");
            let key = EpochKey::generate(1, &mut rng(1));
            let sealed = seal::seal(&fields, &key, &RecoveryKey::from_bytes([4; 32]), &seal_context(), &mut rng(2)).expect("small");
            vec![sealed, seal::publish(b"public").expect("small")]
        }
        "shards" => [(4, 2, 90), (7, 3, 10), (10, 5, 200), (3, 2, 7)]
            .into_iter()
            .map(|(usable, level, len)| {
                let shape = Shape::for_level(level, usable).expect("holders");
                let shards = encode(&content(len), shape).expect("content").concat();
                [&[usable as u8, level, len as u8, 0][..], &shards].concat()
            })
            .collect(),
        "envelope" => vec![hello()],
        "node_gossip" => {
            // A batch as docs/spec/gossip.md has it: nonce, lane, envelopes.
            let lane = 3_u8;
            let announced = Announcement::Commitment(commitment()).to_bytes();
            vec![[&[2 + lane][..], &wire::encode(&(1_u64, lane, vec![hello()]))].concat(), [&[0][..], &announced].concat()]
        }
        "announcement" => vec![Announcement::Commitment(commitment()).to_bytes()],
        "commitment" => vec![commitment().to_bytes()],
        "card" => vec![card(2).to_bytes(identity(2).signer())],
        "personality" => vec![list(&person(1).to_fields())],
        "index" => vec![list(&index().to_fields())],
        "relationship" => vec![list(&relationship().to_fields(identity(1).signer()))],
        "pair" => vec![list(&pair().to_fields()), list(&PairState::new(&identity(1), &card(2)).to_fields())],
        "ticket" => {
            let ticket = Ticket::new("home", &["/ip4/127.0.0.1/tcp/4001", "/dns4/example.org/tcp/4001"]).expect("sound");
            vec![ticket.to_string().into_bytes(), wire::encode(&ticket)]
        }
        "address" => [
            "/ip4/127.0.0.1/tcp/4001",
            "/ip6/::1/udp/1/quic-v1",
            "/dns4/a.b/tcp/1/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5",
            "/dnsaddr/example.org",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        "address_book" => {
            let mut book = AddressBook::default();
            for peer in 1..4 {
                book.succeeded(PeerKey([peer; 32]), &format!("/ip4/10.0.0.{peer}/tcp/4001"), NOW_MS);
            }
            book.failed("/ip4/10.0.0.1/tcp/4001", NOW_MS + 1);
            let file = book.to_bytes();
            vec![file[..file.len() - 4].to_vec()]
        }
        "recovery_file" => vec![recovery().encode().into_bytes(), wire::encode(&recovery())],
        "node_frames" => stories(),
        "node_rows" => {
            let born = node::born().rows.clone();
            let held = stories().into_iter().flat_map(|story| node::stored_by(&story));
            let rows = born.into_iter().chain(held).map(|row| {
                let table = Table::ALL.iter().position(|table| *table == row.table).unwrap_or_default() as u8;
                [&[table, row.key.len() as u8][..], &row.key, row.value.as_deref().unwrap_or_default()].concat()
            });
            let rows: BTreeSet<Vec<u8>> = rows.collect();
            rows.into_iter().map(|row| node::joined(&[row])).collect()
        }
        #[cfg(feature = "node")]
        "keystore" => crate::files::keystore_files(),
        #[cfg(feature = "node")]
        "store" => vec![crate::files::store_file()],
        _ => Vec::new(),
    }
}

/// Requests to one holder, one after the other.
fn stories() -> Vec<Vec<u8>> {
    let requests = requests();
    let frame = |nth: &usize| RequestFrame { requests: vec![requests[*nth].clone()] }.to_bytes();
    let story = |picked: &[usize]| node::joined(&picked.iter().map(frame).collect::<Vec<_>>());
    vec![story(&[0, 2, 3, 5]), story(&[0, 1, 7]), story(&[4, 0, 2]), story(&[7, 0, 8]), story(&[2, 6, 3]), story(&[0, 8, 0])]
}

fn commitment() -> Commitment {
    let me = identity(1);
    Commitment::first(me.agent(), person(1).commitment(), NOW_MS, me.signer())
}
