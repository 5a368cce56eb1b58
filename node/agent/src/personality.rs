//! The personality: what an agent is born with and keeps for life (docs/spec/agent.md#personality).
//!
//! Traits and quirks follow from the behaviour seed by a one-way function, so that learning all of them reveals nothing about the seed, and
//! so that a `core` section whose traits were tampered with is refused: whoever opens it derives them again and compares. The commitment
//! covers everything here, the user's attributes included.

use bincode::{Decode, Encode};
use hkdf::Hkdf;
use ml_kem::{DecapsulationKey, FromSeed as _, KeyExport as _, MlKem768, kem::Decapsulate as _};
use persona_fragments::{
    Digest, Fields, OwnerKey,
    wire::{self, DecodeError},
};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::{card::MLKEM_PUBLIC_BYTES, commitment::commit, secret::BehaviourSeed};

/// The longest name of an agent, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// The longest role, in bytes.
pub const ROLE_BYTES_MAX: usize = 128;

/// The longest birth place, in bytes.
pub const PLACE_BYTES_MAX: usize = 256;

/// The most attributes a user may give at birth, in bytes: a section less room for everything else in `core`.
pub const ATTRIBUTES_BYTES_MAX: usize = persona_fragments::SECTION_BYTES_MAX - (16 << 10);

/// The fewest quirks of an agent, each of another kind.
pub const QUIRKS_MIN: usize = 8;

/// The most quirks of an agent.
pub const QUIRKS_MAX: usize = 11;

/// The size of an ML-KEM-768 ciphertext (FIPS 203).
pub const MLKEM_CIPHERTEXT_BYTES: usize = 1088;

const TRAIT_LABEL: &[u8] = b"persona/trait/v1";
const QUIRK_COUNT_LABEL: &[u8] = b"persona/quirk-count/v1";
const QUIRK_PICK_LABEL: &[u8] = b"persona/quirk-pick/v1";
const QUIRK_LABEL: &[u8] = b"persona/quirk/v1";
const X25519_LABEL: &[u8] = b"persona/behaviour-dh/v1";
const MLKEM_LABEL: &[u8] = b"persona/behaviour-mlkem/v1";
const MESH_LABEL: &[u8] = b"persona/mesh-secret/v1";
const CONCEALED_LABEL: &[u8] = b"persona/concealed/v1";

/// A trait's name and place; the number is the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Trait {
    /// How exact: fine time stamps, few corrections.
    Precision = 1,
    /// How slowly trust and comfort grow.
    Paranoia = 2,
    /// How long it waits before it tries again.
    Patience = 3,
    /// How strictly it keeps to forms.
    Formality = 4,
    /// How varied it is.
    Creativity = 5,
}

impl Trait {
    /// Every trait, in order.
    pub const ALL: [Self; 5] = [Self::Precision, Self::Paranoia, Self::Patience, Self::Formality, Self::Creativity];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Precision => "precision",
            Self::Paranoia => "paranoia",
            Self::Patience => "patience",
            Self::Formality => "formality",
            Self::Creativity => "creativity",
        }
    }
}

/// A kind of quirk; the number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum QuirkKind {
    /// How envelopes are padded.
    PaddingStep,
    /// Where a payload is split into chunks.
    ChunkSize,
    /// The digit that time stamps like to end in.
    TimestampDigit,
    /// How many messages come in one go.
    BurstLength,
    /// The pause before an answer.
    PauseBeforeReply,
    /// How fast retries slow down.
    RetryGrowth,
    /// How many retries before it gives up.
    RetryCount,
    /// How long it waits before it acknowledges.
    AcknowledgeDelay,
    /// How often it comes back to an old topic.
    TopicReturn,
    /// How often it corrects itself.
    CorrectionHabit,
    /// Which greeting it uses.
    Greeting,
    /// Which farewell it uses.
    Farewell,
    /// How long its lines are.
    LineLength,
    /// How often it hedges.
    Hedging,
    /// How it marks lists.
    ListMark,
    /// How many digits it gives.
    NumberDigits,
}

/// What a kind of quirk means: its name in JSON, its unit, and the range of its parameter, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuirkSpec {
    /// The kind.
    pub kind: QuirkKind,
    /// The name in JSON.
    pub name: &'static str,
    /// What the parameter counts.
    pub unit: &'static str,
    /// The least parameter.
    pub low: u16,
    /// The greatest parameter.
    pub high: u16,
}

const fn spec(kind: QuirkKind, name: &'static str, unit: &'static str, low: u16, high: u16) -> QuirkSpec {
    QuirkSpec { kind, name, unit, low, high }
}

/// Every kind of quirk (docs/spec/agent.md#quirks).
pub const QUIRKS: [QuirkSpec; 16] = [
    spec(QuirkKind::PaddingStep, "padding-step", "bytes", 16, 512),
    spec(QuirkKind::ChunkSize, "chunk-size", "bytes", 512, 8192),
    spec(QuirkKind::TimestampDigit, "timestamp-digit", "digit", 0, 9),
    spec(QuirkKind::BurstLength, "burst-length", "messages", 1, 12),
    spec(QuirkKind::PauseBeforeReply, "pause-before-reply", "milliseconds", 50, 4000),
    spec(QuirkKind::RetryGrowth, "retry-growth", "percent", 110, 400),
    spec(QuirkKind::RetryCount, "retry-count", "retries", 2, 12),
    spec(QuirkKind::AcknowledgeDelay, "acknowledge-delay", "milliseconds", 5, 1500),
    spec(QuirkKind::TopicReturn, "topic-return", "per mille", 5, 300),
    spec(QuirkKind::CorrectionHabit, "correction-habit", "per mille", 1, 200),
    spec(QuirkKind::Greeting, "greeting", "variant", 0, 31),
    spec(QuirkKind::Farewell, "farewell", "variant", 0, 31),
    spec(QuirkKind::LineLength, "line-length", "characters", 40, 160),
    spec(QuirkKind::Hedging, "hedging", "per mille", 0, 400),
    spec(QuirkKind::ListMark, "list-mark", "variant", 0, 7),
    spec(QuirkKind::NumberDigits, "number-digits", "digits", 1, 9),
];

const _: () = assert!(QUIRKS_MAX <= QUIRKS.len());

impl QuirkKind {
    /// What the kind means.
    pub fn spec(self) -> &'static QuirkSpec {
        &QUIRKS[self as usize]
    }
}

/// One quirk of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Quirk {
    /// Which kind; no agent has two of one kind.
    pub kind: QuirkKind,
    /// In the range of [`QuirkSpec`].
    pub parameter: u16,
    /// How pronounced it is, as a fraction of 2^64.
    pub strength: u64,
}

/// Where and when.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Birth {
    /// In milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// As the configuration names it; may be empty.
    pub place: String,
}

/// What is decided before a birth; the rest is chance.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// The agent id.
    pub agent: OwnerKey,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub role: Option<String>,
    /// Where and when.
    pub birth: Birth,
    /// The user's own JSON, kept byte for byte; empty for none.
    pub attributes: Vec<u8>,
    /// The secret of a permissioned mesh, if it has one.
    pub mesh_secret: Option<[u8; 32]>,
}

/// Why a personality is not born, or not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersonalityError {
    /// A name, role or place that is too long, or an empty name or role.
    #[error("the {what} has {bytes} bytes; it may have at most {most}, and a name or role at least 1")]
    Length {
        /// Of what.
        what: &'static str,
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        most: usize,
    },
    /// The attributes are not JSON.
    #[error("the attributes are not JSON: {0}")]
    Attributes(String),
    /// The section opened, but a field is not there.
    #[error("the section has no field {0:?}; read it again from other holders")]
    Missing(&'static str),
    /// A field does not decode.
    #[error("the field {0:?} does not decode: {1}")]
    Decode(&'static str, DecodeError),
    /// The traits or quirks are not those of the behaviour seed.
    #[error("the {0} are not those of the behaviour seed; this personality was tampered with")]
    Tampered(&'static str),
    /// The commitment is not that of this personality.
    #[error("the commitment is not that of this personality; it was tampered with")]
    Commitment,
}

/// Who an agent is. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Personality {
    agent: OwnerKey,
    profile: Profile,
    traits: [u64; 5],
    quirks: Vec<Quirk>,
    attributes: Vec<u8>,
    seed: BehaviourSeed,
    /// Digest of the mesh secret at birth, so that `core` alone is enough to derive everything again.
    mesh: Option<[u8; 32]>,
    blinding: Zeroizing<[u8; 32]>,
    commitment: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Profile {
    name: String,
    role: Option<String>,
    birth: Birth,
}

#[derive(Encode, Decode)]
struct SecretPart {
    seed: [u8; 32],
    mesh: Option<[u8; 32]>,
    blinding: [u8; 32],
}

impl Drop for SecretPart {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.seed);
        zeroize::Zeroize::zeroize(&mut self.mesh);
        zeroize::Zeroize::zeroize(&mut self.blinding);
    }
}

const PROFILE: &str = "profile";
const TRAITS: &str = "traits";
const QUIRKS_FIELD: &str = "quirks";
const ATTRIBUTES: &str = "attributes";
const SEED: &str = "seed";
const COMMITMENT: &str = "commitment";

impl Personality {
    /// An agent is born: a fresh behaviour seed, and everything that follows from it.
    pub fn birth(genesis: Genesis, rng: &mut dyn CryptoRng) -> Result<Self, PersonalityError> {
        let Genesis { agent, name, role, birth, attributes, mesh_secret } = genesis;
        let mut blinding = Zeroizing::new([0; 32]);
        let seed = BehaviourSeed::generate(rng);
        rng.fill_bytes(blinding.as_mut());
        let mesh = mesh_secret.map(|secret| Sha256::new().chain_update(MESH_LABEL).chain_update(secret).finalize().into());
        Self::derive(agent, Profile { name, role, birth }, attributes, seed, mesh, blinding)
    }

    /// Whose personality it is.
    pub fn agent(&self) -> OwnerKey {
        self.agent
    }

    /// What people call the agent.
    pub fn name(&self) -> &str {
        &self.profile.name
    }

    /// What it is for.
    pub fn role(&self) -> Option<&str> {
        self.profile.role.as_deref()
    }

    /// Where and when it was born.
    pub fn born(&self) -> &Birth {
        &self.profile.birth
    }

    /// A trait, in 0..1.
    pub fn trait_value(&self, which: Trait) -> f64 {
        fraction(self.traits[which as usize - 1])
    }

    /// The quirks, by kind: at least [`QUIRKS_MIN`], each of another kind.
    pub fn quirks(&self) -> &[Quirk] {
        &self.quirks
    }

    /// The user's own JSON, byte for byte; empty for none.
    pub fn attributes(&self) -> &[u8] {
        &self.attributes
    }

    /// S_A, for a keystore that keeps it apart from the root secret.
    pub fn seed(&self) -> &BehaviourSeed {
        &self.seed
    }

    /// The part of the commitment that stays closed: everything but the behaviour keys, blinded.
    pub fn concealed(&self) -> Digest {
        let attributes: [u8; 32] = Sha256::digest(&self.attributes).into();
        let rest = wire::encode(&(&self.profile, &self.traits, &self.quirks, attributes));
        let hash = Sha256::new().chain_update(CONCEALED_LABEL).chain_update(self.blinding.as_ref()).chain_update(rest);
        Digest(hash.finalize().into())
    }

    /// C_A, the personality commitment.
    pub fn commitment(&self) -> Digest {
        self.commitment
    }

    /// Derives the behaviour keys. Costs an ML-KEM key generation: keep them, as [`Identity`](crate::Identity) does.
    pub fn behaviour_keys(&self) -> BehaviourKeys {
        BehaviourKeys::derive(&self.prk())
    }

    /// The fields of the `core` section, each under its own key once sealed.
    pub fn to_fields(&self) -> Fields {
        let secret = SecretPart { seed: *self.seed.expose(), mesh: self.mesh, blinding: *self.blinding };
        Fields::new()
            .with(PROFILE, wire::encode(&self.profile))
            .with(TRAITS, wire::encode(&self.traits))
            .with(QUIRKS_FIELD, wire::encode(&self.quirks))
            .with(ATTRIBUTES, self.attributes.clone())
            .with(SEED, wire::encode(&secret))
            .with(COMMITMENT, self.commitment.0)
    }

    /// Reads what [`Self::to_fields`] wrote, derives traits, quirks and commitment again, and refuses what differs.
    pub fn from_fields(fields: &Fields, agent: OwnerKey) -> Result<Self, PersonalityError> {
        let profile: Profile = field(fields, PROFILE)?;
        let traits: [u64; 5] = field(fields, TRAITS)?;
        let quirks: Vec<Quirk> = field(fields, QUIRKS_FIELD)?;
        let secret: SecretPart = field(fields, SEED)?;
        let attributes = fields.get(ATTRIBUTES).ok_or(PersonalityError::Missing(ATTRIBUTES))?.to_vec();
        let seed = BehaviourSeed::from_bytes(secret.seed);
        let derived = Self::derive(agent, profile, attributes, seed, secret.mesh, Zeroizing::new(secret.blinding))?;
        if derived.traits != traits {
            return Err(PersonalityError::Tampered(TRAITS));
        }
        if derived.quirks != quirks {
            return Err(PersonalityError::Tampered(QUIRKS_FIELD));
        }
        if fields.get(COMMITMENT).ok_or(PersonalityError::Missing(COMMITMENT))? != derived.commitment.0 {
            return Err(PersonalityError::Commitment);
        }
        Ok(derived)
    }

    /// The personality as people read it: a JSON object, the same bytes whenever and wherever it is asked for. The attributes stand in it
    /// byte for byte as they were given. No secret is shown, but the commitment covers them: equal texts mean equal personalities.
    pub fn to_json(&self) -> String {
        let text = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        let role = self.role().map_or_else(|| "null".to_owned(), text);
        let Birth { time_ms, place } = self.born();
        let traits: Vec<String> = Trait::ALL.into_iter().map(|which| format!("\"{}\":{}", which.name(), self.trait_value(which))).collect();
        let quirks: Vec<String> = self
            .quirks
            .iter()
            .map(|quirk| {
                let QuirkSpec { name, unit, .. } = quirk.kind.spec();
                let strength = fraction(quirk.strength);
                format!("{{\"kind\":\"{name}\",\"parameter\":{},\"unit\":\"{unit}\",\"strength\":{strength}}}", quirk.parameter)
            })
            .collect();
        let attributes = match std::str::from_utf8(&self.attributes) {
            Ok("") | Err(_) => "null",
            Ok(json) => json.trim(),
        };
        format!(
            "{{\"agent\":\"{}\",\"name\":{},\"role\":{role},\"birth\":{{\"time_ms\":{time_ms},\"place\":{}}},\"traits\":{{{}}},\"quirks\":[{}],\
             \"commitment\":\"{}\",\"attributes\":{attributes}}}",
            self.agent.to_did(),
            text(self.name()),
            text(place),
            traits.join(","),
            quirks.join(","),
            self.commitment,
        )
    }

    fn derive(
        agent: OwnerKey,
        profile: Profile,
        attributes: Vec<u8>,
        seed: BehaviourSeed,
        mesh: Option<[u8; 32]>,
        blinding: Zeroizing<[u8; 32]>,
    ) -> Result<Self, PersonalityError> {
        let length = |what, bytes: usize, least: usize, most: usize| match bytes {
            bytes if (least..=most).contains(&bytes) => Ok(()),
            _ => Err(PersonalityError::Length { what, bytes, most }),
        };
        length("name", profile.name.len(), 1, NAME_BYTES_MAX)?;
        length("role", profile.role.as_ref().map_or(1, String::len), 1, ROLE_BYTES_MAX)?;
        length("birth place", profile.birth.place.len(), 0, PLACE_BYTES_MAX)?;
        length("attributes", attributes.len(), 0, ATTRIBUTES_BYTES_MAX)?;
        if !attributes.is_empty() {
            // The parser bounds its depth, so that no file can exhaust the stack.
            serde_json::from_slice::<serde_json::Value>(&attributes).map_err(|error| PersonalityError::Attributes(error.to_string()))?;
        }
        let placeholder = Digest([0; 32]);
        let mut born =
            Self { agent, profile, traits: [0; 5], quirks: Vec::new(), attributes, seed, mesh, blinding, commitment: placeholder };
        let prk = born.prk();
        born.traits = std::array::from_fn(|i| prk.number(TRAIT_LABEL, i as u64 + 1));
        born.quirks = quirks(&prk);
        let keys = BehaviourKeys::derive(&prk);
        born.commitment = commit(&agent, keys.x25519_public(), keys.mlkem_public(), &born.concealed());
        Ok(born)
    }

    /// HKDF-Extract(salt = agent id, S_A | encoding of (digest of the mesh secret, birth)).
    fn prk(&self) -> Prk {
        let input = Zeroizing::new([self.seed.expose().as_slice(), &wire::encode(&(&self.mesh, &self.profile.birth))].concat());
        Prk(Hkdf::new(Some(&self.agent.0), &input))
    }
}

impl std::fmt::Debug for Personality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Personality({}, {:?}, commitment {:?})", self.agent.to_did(), self.name(), self.commitment)
    }
}

/// The keys of the behaviour: their public halves stand in the card, bound by the commitment.
pub struct BehaviourKeys {
    x25519: StaticSecret,
    x25519_public: [u8; 32],
    mlkem: DecapsulationKey<MlKem768>,
    mlkem_public: Vec<u8>,
}

impl BehaviourKeys {
    fn derive(prk: &Prk) -> Self {
        let x25519 = StaticSecret::from(*prk.bytes::<32>(X25519_LABEL, &[]));
        let seed = prk.bytes::<64>(MLKEM_LABEL, &[]);
        let (mlkem, public) = MlKem768::from_seed(&(*seed).into());
        let mlkem_public = public.to_bytes().to_vec();
        debug_assert_eq!(mlkem_public.len(), MLKEM_PUBLIC_BYTES);
        Self { x25519_public: PublicKey::from(&x25519).to_bytes(), x25519, mlkem, mlkem_public }
    }

    /// The X25519 half.
    pub fn x25519_public(&self) -> &[u8; 32] {
        &self.x25519_public
    }

    /// The ML-KEM-768 half.
    pub fn mlkem_public(&self) -> &[u8] {
        &self.mlkem_public
    }

    /// X25519 with a partner's key; `None` for a key of small order, which would make the result known to all.
    pub(crate) fn agree(&self, partner: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.x25519.diffie_hellman(&PublicKey::from(*partner));
        shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
    }

    /// Opens an ML-KEM ciphertext; `None` if it has the wrong length. A forged one gives a secret that nobody knows (FIPS 203).
    pub(crate) fn decapsulate(&self, ciphertext: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.mlkem.decapsulate(ciphertext.try_into().ok()?);
        Some(Zeroizing::new(shared.into()))
    }
}

/// What everything about the behaviour is expanded from.
struct Prk(Hkdf<Sha256>);

impl Prk {
    fn bytes<const N: usize>(&self, label: &[u8], tail: &[u8]) -> Zeroizing<[u8; N]> {
        let mut out = Zeroizing::new([0; N]);
        self.0.expand_multi_info(&[label, tail], out.as_mut()).expect("at most 64 bytes");
        out
    }

    fn number(&self, label: &[u8], index: u64) -> u64 {
        u64::from_le_bytes(*self.bytes(label, &index.to_le_bytes()))
    }

    /// A number in 0..bound. The bias is below bound/2^64.
    fn below(&self, label: &[u8], index: u64, bound: u64) -> u64 {
        ((u128::from(self.number(label, index)) * u128::from(bound)) >> 64) as u64
    }
}

/// The quirks that follow from a key: how many, which kinds (a shuffle of all kinds, cut off), and each one's parameter.
fn quirks(prk: &Prk) -> Vec<Quirk> {
    let count = QUIRKS_MIN + prk.below(QUIRK_COUNT_LABEL, 0, (QUIRKS_MAX - QUIRKS_MIN + 1) as u64) as usize;
    let mut left: Vec<&QuirkSpec> = QUIRKS.iter().collect();
    let mut quirks: Vec<Quirk> = (0..count as u64)
        .map(|i| {
            let spec = left.remove(prk.below(QUIRK_PICK_LABEL, i, left.len() as u64) as usize);
            let range = u64::from(spec.high - spec.low) + 1;
            let parameter = spec.low + prk.below(QUIRK_LABEL, 2 * spec.kind as u64, range) as u16;
            Quirk { kind: spec.kind, parameter, strength: prk.number(QUIRK_LABEL, 2 * spec.kind as u64 + 1) }
        })
        .collect();
    quirks.sort_by_key(|quirk| quirk.kind);
    quirks
}

/// A fraction of 2^64 as a float in 0..1, from its 53 highest bits.
fn fraction(value: u64) -> f64 {
    (value >> 11) as f64 / (1_u64 << 53) as f64
}

fn field<T: Encode + Decode<()>>(fields: &Fields, name: &'static str) -> Result<T, PersonalityError> {
    wire::decode(fields.get(name).ok_or(PersonalityError::Missing(name))?).map_err(|error| PersonalityError::Decode(name, error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chacha20::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    const ATTRIBUTES_JSON: &[u8] = b" {\"b\": [1, 2.50, \"\\u00e9\"],  \"a\": null}\n";

    fn genesis(agent: u8) -> Genesis {
        Genesis {
            agent: OwnerKey([agent; 32]),
            name: "ada \"the first\"".into(),
            role: Some("archivist".into()),
            birth: Birth { time_ms: 1_700_000_000_000, place: "Basel".into() },
            attributes: ATTRIBUTES_JSON.to_vec(),
            mesh_secret: None,
        }
    }

    fn born(seed: u64) -> Personality {
        Personality::birth(genesis(1), &mut ChaCha20Rng::seed_from_u64(seed)).expect("within the limits")
    }

    #[test]
    fn two_thousand_births_give_two_thousand_personalities() {
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        let (mut traits, mut quirks, mut kinds) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut sums = [0.0; 5];
        for _ in 0..2000 {
            let born = Personality::birth(genesis(1), &mut rng).expect("within the limits");
            let distinct: BTreeSet<QuirkKind> = born.quirks.iter().map(|quirk| quirk.kind).collect();
            assert!((QUIRKS_MIN..=QUIRKS_MAX).contains(&distinct.len()) && distinct.len() == born.quirks.len());
            for quirk in &born.quirks {
                assert!((quirk.kind.spec().low..=quirk.kind.spec().high).contains(&quirk.parameter));
            }
            Trait::ALL.iter().for_each(|which| sums[*which as usize - 1] += born.trait_value(*which));
            assert!(traits.insert(born.traits), "two agents with the same traits");
            assert!(quirks.insert(wire::encode(&born.quirks)), "two agents with the same quirks");
            kinds.extend(distinct);
        }
        assert_eq!(kinds.len(), QUIRKS.len(), "every kind occurs");
        // A uniform trait has mean 1/2 and standard deviation 0.289; five standard errors of 2000.
        assert!(sums.iter().all(|sum| (sum / 2000.0 - 0.5).abs() < 5.0 * 0.289 / 2000_f64.sqrt()), "{sums:?}");
    }

    #[test]
    fn a_personality_reads_back_byte_for_byte() {
        let ada = born(1);
        let read = Personality::from_fields(&ada.to_fields(), ada.agent()).expect("untouched");
        assert_eq!(read, ada);
        assert_eq!(read.to_json(), ada.to_json());
        assert_eq!(read.attributes(), ATTRIBUTES_JSON);
        assert_eq!(read.behaviour_keys().mlkem_public(), ada.behaviour_keys().mlkem_public());
    }

    #[test]
    fn a_personality_with_any_bit_of_a_field_flipped_is_refused() {
        let ada = born(1);
        let fields = ada.to_fields();
        for (name, value) in fields.iter() {
            for bit in 0..value.len() * 8 {
                let mut altered = value.to_vec();
                altered[bit / 8] ^= 1 << (bit % 8);
                let refused = Personality::from_fields(&fields.clone().with(name, altered), ada.agent());
                assert!(refused.is_err(), "bit {bit} of {name}");
            }
        }
        assert!(Personality::from_fields(&fields, OwnerKey([2; 32])).is_err(), "another agent's");
        for name in [TRAITS, QUIRKS_FIELD] {
            let borrowed = fields.clone().with(name, born(2).to_fields().get(name).expect("there").to_vec());
            assert_eq!(Personality::from_fields(&borrowed, ada.agent()), Err(PersonalityError::Tampered(name)));
        }
        let other = fields.clone().with(ATTRIBUTES, b"{}".to_vec());
        assert_eq!(Personality::from_fields(&other, ada.agent()), Err(PersonalityError::Commitment));
    }

    #[test]
    fn everything_at_birth_but_chance_enters_the_commitment() {
        let with = |change: &dyn Fn(&mut Genesis)| {
            let mut genesis = genesis(1);
            change(&mut genesis);
            Personality::birth(genesis, &mut ChaCha20Rng::seed_from_u64(1)).expect("within the limits").commitment()
        };
        let commitments: BTreeSet<Digest> = [
            with(&|_| {}),
            with(&|genesis| genesis.agent = OwnerKey([2; 32])),
            with(&|genesis| genesis.name = "bob".into()),
            with(&|genesis| genesis.role = None),
            with(&|genesis| genesis.birth.time_ms += 1),
            with(&|genesis| genesis.birth.place = "Bern".into()),
            with(&|genesis| genesis.attributes = Vec::new()),
            with(&|genesis| genesis.mesh_secret = Some([0; 32])),
        ]
        .into();
        assert_eq!(commitments.len(), 8);
        assert_eq!(with(&|_| {}), born(1).commitment());
    }

    #[test]
    fn the_json_is_json_keeps_the_attributes_and_shows_no_secret() {
        let ada = born(1);
        let json = ada.to_json();
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["name"], "ada \"the first\"");
        assert_eq!(value["quirks"].as_array().map(Vec::len), Some(ada.quirks().len()));
        assert!(json.contains(std::str::from_utf8(ATTRIBUTES_JSON).expect("text").trim()));
        for secret in [ada.seed.expose(), &*ada.blinding] {
            assert!(!json.contains(&Digest(*secret).to_hex()) && !format!("{ada:?}").contains(&Digest(*secret).to_hex()));
        }
    }

    #[test]
    fn what_is_out_of_range_is_not_born() {
        let birth = |change: &dyn Fn(&mut Genesis)| {
            let mut genesis = genesis(1);
            change(&mut genesis);
            Personality::birth(genesis, &mut ChaCha20Rng::seed_from_u64(1)).map(|_| ())
        };
        let length = |what, bytes, most| Err(PersonalityError::Length { what, bytes, most });
        assert_eq!(birth(&|genesis| genesis.name.clear()), length("name", 0, NAME_BYTES_MAX));
        assert_eq!(birth(&|genesis| genesis.role = Some("x".repeat(129))), length("role", 129, ROLE_BYTES_MAX));
        assert_eq!(birth(&|genesis| genesis.birth.place = "x".repeat(257)), length("birth place", 257, PLACE_BYTES_MAX));
        assert!(matches!(birth(&|genesis| genesis.attributes = b"{oops".to_vec()), Err(PersonalityError::Attributes(_))));
        assert!(matches!(birth(&|genesis| genesis.attributes = vec![b'['; 100_000]), Err(PersonalityError::Attributes(_))), "deep");
        assert!(birth(&|genesis| genesis.attributes = vec![b' '; ATTRIBUTES_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn keys_of_small_order_and_ciphertexts_of_wrong_length_are_refused() {
        let keys = born(1).behaviour_keys();
        assert!(keys.agree(&[0; 32]).is_none());
        assert!(keys.agree(born(2).behaviour_keys().x25519_public()).is_some());
        assert!(keys.decapsulate(&[0; MLKEM_CIPHERTEXT_BYTES - 1]).is_none());
        assert!(keys.decapsulate(&[0; MLKEM_CIPHERTEXT_BYTES]).is_some());
    }
}
