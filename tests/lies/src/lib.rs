//! Holders that lie: what a faulty node's answers become on their way out (docs/spec/quorum.md#messages).
//!
//! A liar runs the real node and changes what leaves it, or answers in its place. It has its own key and no other, so whatever must be
//! signed by somebody else it can only replay.

pub mod mangle;

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use chacha20::ChaCha8Rng;
use persona_fragments::{Certificate, PeerKey, SectionKey, SignedManifest, Signer, certificate::HeadWire, sign_batch};
use persona_mesh_proto::{
    Refusal, Request, RequestFrame, Response, ResponseFrame,
    message::{HeadAnswer, ShardWire},
};
use rand_core::Rng as _;

use self::mangle::mangle;

/// How long after it was asked a late answer comes, in microseconds: a node waits for 3 s.
const LATE_US: u64 = 2_900_000;

/// What colluders agreed on: the head that each section is said to have.
pub type Story = Arc<Mutex<BTreeMap<SectionKey, HeadWire>>>;

/// Sections whose heads a liar remembers.
const REMEMBERED_MAX: usize = 256;

/// How a holder lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// It answers nothing.
    Silent,
    /// It knows nothing of any section.
    Deny,
    /// It answers with the oldest head that it ever knew.
    Stale,
    /// Its shards have a bit turned, are too short, or another section's.
    Corrupt,
    /// It signs for shards and stores nothing.
    AckWithoutStoring,
    /// It confirms certificates and forgets them.
    MuteCommit,
    /// It will not say what it knows to some of those who ask.
    Withhold,
    /// Its certificates are short, or count one holder twice.
    ForgedCertificate,
    /// It shows one version to some and another to others.
    TwoFaced,
    /// It asks for shards again and again, or is busy, or full, for ever.
    Obstruct,
    /// It is always recovering.
    Recovering,
    /// It says that others have taken over.
    FalseFence,
    /// It answers with noise.
    Noise,
    /// Each answer comes when its asker has almost given up.
    Late,
    /// Its answers are mangled.
    Mangled,
    /// It and its like tell one story: time stood still when the storm began. They sign and confirm whatever comes, and keep nothing.
    Collude,
    /// Each answer is another lie.
    Everything,
}

impl Lie {
    /// Every lie.
    pub const ALL: [Self; 17] = [
        Self::Silent,
        Self::Deny,
        Self::Stale,
        Self::Corrupt,
        Self::AckWithoutStoring,
        Self::MuteCommit,
        Self::Withhold,
        Self::ForgedCertificate,
        Self::TwoFaced,
        Self::Obstruct,
        Self::Recovering,
        Self::FalseFence,
        Self::Noise,
        Self::Late,
        Self::Mangled,
        Self::Collude,
        Self::Everything,
    ];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Deny => "deny",
            Self::Stale => "stale",
            Self::Corrupt => "corrupt",
            Self::AckWithoutStoring => "ack-without-storing",
            Self::MuteCommit => "mute-commit",
            Self::Withhold => "withhold",
            Self::ForgedCertificate => "forged-certificate",
            Self::TwoFaced => "two-faced",
            Self::Obstruct => "obstruct",
            Self::Recovering => "recovering",
            Self::FalseFence => "false-fence",
            Self::Noise => "noise",
            Self::Late => "late",
            Self::Mangled => "mangled",
            Self::Collude => "collude",
            Self::Everything => "everything",
        }
    }
}

impl FromStr for Lie {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|lie| lie.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("no lie is called {name:?}; there are {}", names.join(", "))
        })
    }
}

/// A number below `bound`.
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    if bound == 0 { 0 } else { rng.next_u64() % bound }
}

/// What one liar remembers.
pub struct Liar {
    lie: Lie,
    signer: Box<dyn Signer>,
    /// The oldest and the newest head that it was shown, by section.
    heads: BTreeMap<SectionKey, (HeadWire, HeadWire)>,
    /// A shard that it was given, of any section.
    shard: Option<Vec<u8>>,
    story: Story,
    /// Colluders begin to lie together.
    began: bool,
    rng: ChaCha8Rng,
}

/// What a liar does with a frame of requests.
pub enum Handling {
    /// Lets its node answer; [`Liar::rewrite`] changes the answer.
    Pass,
    /// Answers this, and its node never hears of the frame.
    Answer(Vec<u8>),
    /// Says nothing.
    Silence,
}

impl Liar {
    /// A liar.
    pub fn new(lie: Lie, signer: Box<dyn Signer>, story: Story, rng: ChaCha8Rng) -> Self {
        Self { lie, signer, heads: BTreeMap::new(), shard: None, story, began: false, rng }
    }

    /// From now on nothing happens, as colluders have it.
    pub fn begin(&mut self) {
        self.began = true;
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, (_, newest)) in &self.heads {
            story.entry(*key).or_insert_with(|| newest.clone());
        }
    }

    /// How much later than it could its answers come, in microseconds.
    pub fn late_us(&self) -> u64 {
        if self.lie == Lie::Late { LATE_US } else { 0 }
    }

    fn lie_now(&mut self) -> Lie {
        match self.lie {
            Lie::Everything => Lie::ALL[below(&mut self.rng, Lie::ALL.len() as u64 - 1) as usize],
            lie => lie,
        }
    }

    /// A frame of requests arrived.
    pub fn asked(&mut self, frame: &[u8]) -> Handling {
        let Ok(frame) = RequestFrame::from_bytes(frame) else { return Handling::Pass };
        for request in &frame.requests {
            match request {
                Request::Commit { head } => self.remember(head),
                Request::Prepare { shard: Some(shard), .. } if self.shard.is_none() => self.shard = Some(shard.clone()),
                _ => {}
            }
        }
        match self.lie_now() {
            Lie::Silent => Handling::Silence,
            Lie::Noise => Handling::Answer((0..below(&mut self.rng, 300)).map(|_| self.rng.next_u32() as u8).collect()),
            lie @ (Lie::AckWithoutStoring | Lie::MuteCommit | Lie::Collude) if self.began || lie != Lie::Collude => {
                let made: Option<Vec<Response>> = frame.requests.iter().map(|request| self.in_place(lie, request)).collect();
                // A frame with anything else in it is answered by the node.
                made.map_or(Handling::Pass, |responses| Handling::Answer(ResponseFrame { responses }.to_bytes()))
            }
            _ => Handling::Pass,
        }
    }

    fn in_place(&self, lie: Lie, request: &Request) -> Option<Response> {
        match (lie, request) {
            (Lie::AckWithoutStoring | Lie::Collude, Request::Prepare { manifest, index, .. }) => {
                let manifest = SignedManifest::trusted(manifest.clone()).ok()?;
                let ack = sign_batch(&[manifest.ack_leaf(*index)], &*self.signer).pop()?;
                Some(Response::Acked { ack })
            }
            (Lie::AckWithoutStoring | Lie::MuteCommit | Lie::Collude, Request::Commit { .. }) => Some(Response::Committed),
            _ => None,
        }
    }

    /// The node answers a peer's frame.
    pub fn rewrite(&mut self, to: &PeerKey, requests: &[u8], responses: Vec<u8>) -> Option<Vec<u8>> {
        let Ok(asked) = RequestFrame::from_bytes(requests) else { return Some(responses) };
        let Ok(mut frame) = ResponseFrame::from_bytes(&responses, asked.requests.len()) else { return Some(responses) };
        for (request, response) in asked.requests.iter().zip(&mut frame.responses) {
            let lie = self.lie_now();
            if matches!(lie, Lie::Withhold) && (to.0[0] ^ self.rng.next_u32() as u8).is_multiple_of(2) {
                return None;
            }
            self.twist(lie, to, request, response);
        }
        let bytes = frame.to_bytes();
        Some(if self.lie == Lie::Mangled { mangle(&bytes, requests, &mut self.rng) } else { bytes })
    }

    fn remember(&mut self, head: &HeadWire) {
        let Ok(manifest) = SignedManifest::trusted(head.manifest.clone()) else { return };
        let version = |head: &HeadWire| SignedManifest::trusted(head.manifest.clone()).map(|manifest| manifest.version).ok();
        if self.heads.len() >= REMEMBERED_MAX && !self.heads.contains_key(&manifest.key) {
            return;
        }
        let (oldest, newest) = self.heads.entry(manifest.key).or_insert_with(|| (head.clone(), head.clone()));
        if version(oldest) > Some(manifest.version) {
            *oldest = head.clone();
        }
        if version(newest) < Some(manifest.version) {
            *newest = head.clone();
        }
    }

    fn twist(&mut self, lie: Lie, to: &PeerKey, request: &Request, response: &mut Response) {
        if let Response::Probed { clock_ms, .. } = response {
            // Whoever lies at all lies about the time, by up to an hour and as it comes.
            *clock_ms = clock_ms.saturating_add_signed(below(&mut self.rng, 7_200_000) as i64 - 3_600_000);
        }
        match (lie, request) {
            (Lie::Deny, Request::Head { .. }) => *response = Response::Head(HeadAnswer::default()),
            (Lie::Deny, Request::Shard { .. }) => *response = Response::Absent,
            (Lie::Stale, Request::Head { key, .. }) => self.show(key, true, response),
            (Lie::TwoFaced, Request::Head { key, .. }) => self.show(key, to.0[0].is_multiple_of(2), response),
            (Lie::Collude, Request::Head { key, .. }) if self.began => {
                let told = self.story.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
                if let Response::Head(answer) = response {
                    // What the node itself knows is no newer: since then it stores nothing.
                    let (committed, shard) = (told.or(answer.committed.take()), answer.shard.take());
                    *answer = HeadAnswer { committed, shard, ..HeadAnswer::default() };
                }
            }
            (Lie::Corrupt, _) => match response {
                Response::Head(HeadAnswer { shard: Some(ShardWire { index, bytes }), .. }) | Response::Shard { index, bytes } => {
                    self.corrupt(index, bytes);
                }
                _ => {}
            },
            (Lie::ForgedCertificate, Request::Head { .. }) => {
                if let Response::Head(answer) = response {
                    self.forge(answer);
                }
            }
            (Lie::Obstruct, Request::Prepare { .. }) => {
                *response = match self.rng.next_u32() % 3 {
                    0 => Response::NeedShard,
                    1 => Response::Busy,
                    _ => Response::Refused { reason: Refusal::Full },
                };
            }
            (Lie::Obstruct, _) => *response = Response::Busy,
            (Lie::Recovering, _) => *response = Response::Recovering,
            (Lie::FalseFence, _) => {
                // Some head that it really has: of this section, or of another one of anybody.
                if let Some((oldest, newest)) = self.heads.values().nth(below(&mut self.rng, self.heads.len() as u64) as usize) {
                    let head = if self.rng.next_u32().is_multiple_of(2) { oldest } else { newest };
                    *response = Response::Fenced { head: head.clone() };
                }
            }
            _ => {}
        }
    }

    fn show(&self, key: &SectionKey, old: bool, response: &mut Response) {
        if let Some((oldest, newest)) = self.heads.get(key) {
            let head = if old { oldest } else { newest };
            *response = Response::Head(HeadAnswer { committed: Some(head.clone()), ..HeadAnswer::default() });
        }
    }

    fn corrupt(&mut self, index: &mut u8, bytes: &mut Vec<u8>) {
        match self.rng.next_u32() % 4 {
            0 => *index = index.wrapping_add(1),
            1 => bytes.truncate(bytes.len() / 2),
            2 => {
                if let Some(other) = &self.shard {
                    bytes.clone_from(other);
                }
            }
            _ => {
                let at = below(&mut self.rng, bytes.len() as u64) as usize;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (self.rng.next_u32() % 8);
                }
            }
        }
    }

    fn forge(&mut self, answer: &mut HeadAnswer) {
        if let Some(prepared) = answer.prepared.first().filter(|_| self.rng.next_u32().is_multiple_of(2)) {
            // What is not certified yet becomes so by one holder's word, as often as it takes.
            let Ok(manifest) = SignedManifest::trusted(prepared.manifest.clone()) else { return };
            let acks = vec![prepared.ack.clone(); usize::from(manifest.shape.n() - manifest.shape.f())];
            let manifest = prepared.manifest.clone();
            answer.committed = Some(HeadWire { manifest, certificate: Certificate { acks }, handover: None });
            return;
        }
        let Some(head) = &mut answer.committed else { return };
        let acks = &mut head.certificate.acks;
        match self.rng.next_u32() % 3 {
            0 => drop(acks.pop()),
            1 => {
                if let Some(first) = acks.first().cloned() {
                    let last = acks.len() - 1;
                    acks[last] = first;
                }
            }
            _ => {
                // Its own ack in another holder's place.
                if let Some(ack) = acks.last_mut() {
                    ack.signature = self.signer.sign(b"nothing");
                }
            }
        }
    }
}
