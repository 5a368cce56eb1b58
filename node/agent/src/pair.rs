//! The keys of a pair: one root and one chain of message keys for each direction (docs/spec/envelope.md#pair).
//!
//! ```text
//! X25519(b_A, B_B) | ML-KEM secret that A sent --> root of A to B in A's term t --> chain of term t --> MK_0, MK_1, ...
//!                                                   `-> root of term t + 1 --> ...
//! ```
//!
//! Each direction has its own root, made by its sender alone: both may make first contact at once. What was used is erased, so that a state
//! that leaks does not open what was sent before it. A takeover moves on to the root of a higher term, and its chain starts at counter 0.

use bincode::{Decode, Encode};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use ml_kem::{EncapsulationKey, MlKem768, kem::Encapsulate as _};
use persona_fragments::{
    Digest, Fields, OwnerKey,
    wire::{self, DecodeError},
};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    card::Card,
    envelope::{Acknowledged, FirstContact},
    identity::Identity,
};

/// How many counters a receiver skips at most: what a forger of counters can make it compute.
pub const SKIPS_MAX: u64 = 1024;

/// How many keys of skipped counters are kept. When full, the key of the lowest counter is erased: its message can no longer be read.
pub const SKIPPED_KEYS_MAX: usize = 64;

/// How many terms a chain moves on at once at most.
pub const TERM_JUMP_MAX: u64 = 4096;

const SALT_LABEL: &str = "persona/pair-salt/v1";
const ROOT_LABEL: &[u8] = b"persona/pair/v1";
const TERM_LABEL: &[u8] = b"persona/pair-term/v1";
const CHAIN_LABEL: &[u8] = b"persona/pair-chain/v1";
const TRANSCRIPT_LABEL: &str = "persona/transcript/v1";

/// The step bytes of a chain: one makes the message key, the other the next chain key.
const MESSAGE_STEP: &[u8] = &[1];
const CHAIN_STEP: &[u8] = &[2];

const FIELD: &str = "pair";

/// One agent's half of a pair: how it sends to one partner, and how it receives. Wiped when dropped, never printed.
///
/// Sending and receiving change it. Store the new state before an envelope leaves, and before one counts as received: a state that goes back
/// would use a key twice.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct PairState {
    me: OwnerKey,
    partner: OwnerKey,
    my_commitment: Digest,
    partner_commitment: Digest,
    sending: Option<Sending>,
    receiving: Option<Receiving>,
}

#[derive(Clone, PartialEq, Eq, Encode, Decode)]
struct Sending {
    chain: Chain,
    /// The term in which the root was made.
    root_term: u64,
    /// Goes with every envelope until the partner has acknowledged one.
    first_contact: Option<FirstContact>,
}

#[derive(Clone, PartialEq, Eq, Encode, Decode)]
struct Receiving {
    chain: Chain,
    /// The name of the first contact that made the root.
    contact: Digest,
    /// Keys of counters below the chain's next one that have not come yet, ascending. A counter below the next one is fresh if and only if
    /// its key is here: this is the replay window.
    skipped: Vec<SkippedKey>,
    /// Over the envelopes accepted in this direction, in the order of acceptance.
    transcript: Digest,
}

#[derive(Clone, PartialEq, Eq, Encode, Decode, Zeroize, ZeroizeOnDrop)]
struct SkippedKey {
    counter: u64,
    key: [u8; 32],
}

/// A chain of message keys in one term of its sender.
#[derive(Clone, PartialEq, Eq, Encode, Decode, Zeroize, ZeroizeOnDrop)]
struct Chain {
    term: u64,
    /// The counter of the next message key.
    next: u64,
    /// The chain key CK of that counter.
    key: [u8; 32],
    /// The root of the next term: the root of this one is erased.
    later: [u8; 32],
}

/// MK_n: the key of one message, and of nothing else.
pub(crate) struct MessageKey(Zeroizing<[u8; 32]>);

/// Where a counter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The next one, nothing skipped.
    Next,
    /// Some were skipped, or it is one of those that had been.
    Skipped,
}

/// A received counter, with the state in which it counts as received.
pub(crate) struct Admitted {
    pub(crate) next: PairState,
    pub(crate) key: MessageKey,
    pub(crate) freshness: Freshness,
    /// The envelope claims another root than the one this pair uses in this term. It must not be accepted; its order and tag tell whether
    /// a thief without the behaviour made it, or a clone with it.
    pub(crate) forked: bool,
}

/// Why a received counter has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoPair,
    StaleTerm,
    UncertifiedTerm,
    TermTooFarAhead,
    Replay,
    CounterTooFarAhead,
    BadContact,
}

/// Why a pair's state cannot be used or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The section opened, but has no pair state in it.
    #[error("the section has no field \"pair\"; read it again from other holders")]
    Missing,
    /// The field does not decode.
    #[error("the pair state does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// The state breaks its own rules.
    #[error("the pair state is not one that this program writes; it was altered")]
    Malformed,
    /// The state is that of another pair, or of another personality of one of the two.
    #[error("this state is not that of these two agents and their personalities; start the pair anew")]
    Foreign,
    /// The agent has been taken over: this host's term is over.
    #[error("this pair has moved on to term {0}: another host has taken the agent over")]
    Fenced(u64),
    /// More than [`TERM_JUMP_MAX`] terms at once.
    #[error("term {0} is too far ahead of this pair; start the pair anew")]
    TermTooFarAhead(u64),
    /// The partner's card has keys that nobody can agree with.
    #[error("the partner's behaviour keys are malformed; get its card again")]
    BadKeys,
}

impl PairState {
    /// Two agents before the first message in either direction.
    pub fn new(me: &Identity, partner: &Card) -> Self {
        Self {
            me: me.agent(),
            partner: partner.agent,
            my_commitment: me.personality().commitment(),
            partner_commitment: partner.commitment,
            sending: None,
            receiving: None,
        }
    }

    /// With whom.
    pub fn partner(&self) -> OwnerKey {
        self.partner
    }

    /// Which personality of the partner this pair is bound to.
    pub fn partner_commitment(&self) -> Digest {
        self.partner_commitment
    }

    /// The counter that the next envelope to the partner will have, and its term; `None` before the first.
    pub fn next_counter(&self) -> Option<(u64, u64)> {
        self.sending.as_ref().map(|sending| (sending.chain.term, sending.chain.next))
    }

    /// The highest counter received from the partner, with its term.
    pub fn acknowledged(&self) -> Option<Acknowledged> {
        let chain = &self.receiving.as_ref()?.chain;
        Some(Acknowledged { term: chain.term, counter: chain.next.checked_sub(1)? })
    }

    /// The hash over what was accepted from the partner; zeros before the first envelope.
    pub fn transcript(&self) -> Digest {
        self.receiving.as_ref().map_or(Digest([0; 32]), |receiving| receiving.transcript)
    }

    /// Forgets how to send: the next envelope makes first contact again. For a partner that has lost its half; one that has not will refuse
    /// the new root until this agent's next term.
    pub fn restart_sending(&mut self) {
        self.sending = None;
    }

    /// The fields of the section `keys/<partner>`.
    pub fn to_fields(&self) -> Fields {
        Fields::new().with(FIELD, wire::encode(self))
    }

    /// Reads what [`Self::to_fields`] wrote.
    pub fn from_fields(fields: &Fields) -> Result<Self, PairError> {
        let state: Self = wire::decode(fields.get(FIELD).ok_or(PairError::Missing)?)?;
        let skipped = state.receiving.as_ref().map_or(&[][..], |receiving| &receiving.skipped);
        let next = state.receiving.as_ref().map_or(0, |receiving| receiving.chain.next);
        let ordered = skipped.windows(2).all(|pair| pair[0].counter < pair[1].counter);
        if !ordered || skipped.len() > SKIPPED_KEYS_MAX || skipped.last().is_some_and(|last| last.counter >= next) {
            return Err(PairError::Malformed);
        }
        Ok(state)
    }

    /// Whether this is the state of these two agents with the personalities they have now.
    pub(crate) fn is_between(&self, me: &Identity, partner: &Card) -> bool {
        self.me == me.agent()
            && self.partner == partner.agent
            && self.my_commitment == me.personality().commitment()
            && self.partner_commitment == partner.commitment
    }

    /// The next key to send with, in the sender's current term; makes the root at first contact. An error changes nothing.
    pub(crate) fn next_key(&mut self, me: &Identity, to: &Card, rng: &mut dyn CryptoRng) -> Result<Outbound, PairError> {
        if !self.is_between(me, to) {
            return Err(PairError::Foreign);
        }
        let mut sending = match &self.sending {
            Some(sending) => sending.clone(),
            None => self.make_contact(me, to, rng)?,
        };
        if me.term() < sending.chain.term {
            return Err(PairError::Fenced(sending.chain.term));
        }
        sending.chain = sending.chain.in_term(me.term()).ok_or(PairError::TermTooFarAhead(me.term()))?;
        let counter = sending.chain.next;
        let key = sending.chain.step().ok_or(PairError::Malformed)?;
        let first_contact = sending.first_contact.clone();
        self.sending = Some(sending);
        Ok(Outbound { counter, key, first_contact })
    }

    fn make_contact(&self, me: &Identity, to: &Card, rng: &mut dyn CryptoRng) -> Result<Sending, PairError> {
        let encoded = to.behaviour_mlkem.as_slice().try_into().map_err(|_| PairError::BadKeys)?;
        let mlkem = EncapsulationKey::<MlKem768>::new(encoded).map_err(|_| PairError::BadKeys)?;
        let dh = me.behaviour_keys().agree(&to.behaviour_x25519).ok_or(PairError::BadKeys)?;
        let (ciphertext, secret) = mlkem.encapsulate_with_rng(rng);
        let secret = Zeroizing::new(<[u8; 32]>::from(secret));
        let contact = FirstContact { term: me.term(), ciphertext: ciphertext.to_vec() };
        let ends =
            Ends { from: &self.me, to: &self.partner, from_commitment: &self.my_commitment, to_commitment: &self.partner_commitment };
        let chain = Chain::start(&ends.root(&dh, &secret, &contact), me.term());
        Ok(Sending { chain, root_term: me.term(), first_contact: Some(contact) })
    }

    /// The key of a received counter, and the state after receiving it. Changes nothing: the caller decides whether the state counts.
    pub(crate) fn admit(
        &self,
        me: &Identity,
        card: &Card,
        term: u64,
        counter: u64,
        contact: Option<&FirstContact>,
    ) -> Result<Admitted, Refusal> {
        if term > card.term {
            return Err(Refusal::UncertifiedTerm);
        }
        let known_term = self.receiving.as_ref().map_or(0, |receiving| receiving.chain.term);
        if term < card.term.max(known_term) {
            return Err(Refusal::StaleTerm);
        }
        let known = self.receiving.as_ref();
        let (mut receiving, forked) = match (known, contact) {
            (None, None) => return Err(Refusal::NoPair),
            (Some(known), None) => (known.clone(), false),
            (Some(known), Some(contact)) if known.contact == contact.name() => (known.clone(), false),
            // A root made in a higher, certified term replaces the known one: its sender came back without this pair's state.
            (_, Some(contact)) => (self.accept_contact(me, card, contact)?, contact.term <= known_term),
        };
        if term > receiving.chain.term {
            receiving.chain = receiving.chain.in_term(term).ok_or(Refusal::TermTooFarAhead)?;
            receiving.skipped.clear();
        }
        let (key, freshness) = receiving.take(counter)?;
        let next = Self { receiving: Some(receiving), ..self.clone() };
        Ok(Admitted { next, key, freshness, forked })
    }

    fn accept_contact(&self, me: &Identity, card: &Card, contact: &FirstContact) -> Result<Receiving, Refusal> {
        let dh = me.behaviour_keys().agree(&card.behaviour_x25519).ok_or(Refusal::BadContact)?;
        let secret = me.behaviour_keys().decapsulate(&contact.ciphertext).ok_or(Refusal::BadContact)?;
        let ends =
            Ends { from: &self.partner, to: &self.me, from_commitment: &self.partner_commitment, to_commitment: &self.my_commitment };
        let chain = Chain::start(&ends.root(&dh, &secret, contact), contact.term);
        Ok(Receiving { chain, contact: contact.name(), skipped: Vec::new(), transcript: Digest([0; 32]) })
    }

    /// Notes an accepted envelope: it enters the transcript, and what it acknowledges ends first contact.
    pub(crate) fn accepted(&mut self, envelope: &Digest, acknowledged: Option<Acknowledged>) {
        if let Some(receiving) = &mut self.receiving {
            let hash = Sha256::new().chain_update(TRANSCRIPT_LABEL).chain_update(receiving.transcript.0).chain_update(envelope.0);
            receiving.transcript = Digest(hash.finalize().into());
        }
        if let (Some(sending), Some(acknowledged)) = (&mut self.sending, acknowledged)
            && acknowledged.term >= sending.root_term
        {
            sending.first_contact = None;
        }
    }
}

impl std::fmt::Debug for PairState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = |chain: &Chain| format!("term {} counter {}", chain.term, chain.next);
        f.debug_struct("PairState")
            .field("partner", &self.partner)
            .field("sending", &self.sending.as_ref().map(|sending| place(&sending.chain)))
            .field("receiving", &self.receiving.as_ref().map(|receiving| place(&receiving.chain)))
            .finish_non_exhaustive()
    }
}

/// What an envelope is made with.
pub(crate) struct Outbound {
    pub(crate) counter: u64,
    pub(crate) key: MessageKey,
    pub(crate) first_contact: Option<FirstContact>,
}

/// A direction: from whom to whom, as which personalities.
struct Ends<'a> {
    from: &'a OwnerKey,
    to: &'a OwnerKey,
    from_commitment: &'a Digest,
    to_commitment: &'a Digest,
}

impl Ends<'_> {
    fn root(&self, dh: &[u8; 32], secret: &[u8; 32], contact: &FirstContact) -> Zeroizing<[u8; 32]> {
        let salt =
            Sha256::new().chain_update(SALT_LABEL).chain_update(self.from_commitment.0).chain_update(self.to_commitment.0).finalize();
        let input = Zeroizing::new([dh.as_slice(), secret].concat());
        let mut root = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&salt), &input)
            .expand_multi_info(&[ROOT_LABEL, &self.from.0, &self.to.0, &contact.name().0], root.as_mut())
            .expect("32 bytes are within HKDF's output");
        root
    }
}

impl Chain {
    /// The chain of `term`, from that term's root.
    fn start(root: &[u8; 32], term: u64) -> Self {
        Self { term, next: 0, key: prf(root, &[CHAIN_LABEL, &term.to_le_bytes()]), later: prf(root, &[TERM_LABEL]) }
    }

    /// This chain, or the one of a higher term; `None` for a lower one or one too far ahead.
    fn in_term(&self, term: u64) -> Option<Self> {
        let jump = term.checked_sub(self.term).filter(|jump| *jump <= TERM_JUMP_MAX)?;
        if jump == 0 {
            return Some(self.clone());
        }
        let mut root = Zeroizing::new(self.later);
        for _ in 1..jump {
            *root = prf(&root, &[TERM_LABEL]);
        }
        Some(Self::start(&root, term))
    }

    /// The key of the next counter; the chain key it came from is erased. `None` once counters are used up.
    fn step(&mut self) -> Option<MessageKey> {
        let key = MessageKey(Zeroizing::new(prf(&self.key, &[MESSAGE_STEP])));
        self.next = self.next.checked_add(1)?;
        self.key = prf(&self.key, &[CHAIN_STEP]);
        Some(key)
    }
}

impl Receiving {
    /// The key of `counter`, which is used up by this.
    fn take(&mut self, counter: u64) -> Result<(MessageKey, Freshness), Refusal> {
        if counter < self.chain.next {
            let place = self.skipped.binary_search_by_key(&counter, |skipped| skipped.counter).map_err(|_| Refusal::Replay)?;
            let skipped = self.skipped.remove(place);
            return Ok((MessageKey(Zeroizing::new(skipped.key)), Freshness::Skipped));
        }
        let skips = counter - self.chain.next;
        if skips > SKIPS_MAX {
            return Err(Refusal::CounterTooFarAhead);
        }
        for at in self.chain.next..counter {
            let key = self.chain.step().ok_or(Refusal::CounterTooFarAhead)?;
            if counter - at <= SKIPPED_KEYS_MAX as u64 {
                self.skipped.push(SkippedKey { counter: at, key: *key.0 });
            }
        }
        let excess = self.skipped.len().saturating_sub(SKIPPED_KEYS_MAX);
        self.skipped.drain(..excess);
        let key = self.chain.step().ok_or(Refusal::CounterTooFarAhead)?;
        Ok((key, if skips == 0 { Freshness::Next } else { Freshness::Skipped }))
    }
}

impl MessageKey {
    /// A pseudo-random function of the message key: `parts` start with the label of their use.
    pub(crate) fn prf(&self, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(prf(&self.0, parts))
    }
}

fn prf(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agent, card, rng};

    fn receiving() -> Receiving {
        Receiving { chain: Chain::start(&[1; 32], 1), contact: Digest([0; 32]), skipped: Vec::new(), transcript: Digest([0; 32]) }
    }

    #[test]
    fn a_receiver_finds_the_key_of_every_counter_once_in_any_order() {
        let mut chain = Chain::start(&[1; 32], 1);
        let keys: Vec<[u8; 32]> = (0..8).map(|_| *chain.step().expect("far from the end").0).collect();
        let mut receiving = receiving();
        for (counter, freshness) in [(0, Freshness::Next), (3, Freshness::Skipped), (1, Freshness::Skipped), (4, Freshness::Next)] {
            let (key, got) = receiving.take(counter).map_err(|refusal| panic!("{refusal:?}")).expect("fresh");
            assert_eq!((*key.0, got), (keys[counter as usize], freshness));
            assert_eq!(receiving.take(counter).map(|_| ()), Err(Refusal::Replay));
        }
        assert_eq!(receiving.skipped.iter().map(|skipped| skipped.counter).collect::<Vec<u64>>(), [2]);
    }

    #[test]
    fn skips_and_stored_keys_are_bounded() {
        let mut far = receiving();
        assert_eq!(far.take(SKIPS_MAX + 1).map(|_| ()), Err(Refusal::CounterTooFarAhead));
        assert!(far.take(SKIPS_MAX).is_ok());
        assert_eq!(far.skipped.len(), SKIPPED_KEYS_MAX);
        assert_eq!(far.skipped[0].counter, SKIPS_MAX - SKIPPED_KEYS_MAX as u64);
        assert!(far.take(SKIPS_MAX + 2).is_ok());
        assert_eq!(far.skipped.len(), SKIPPED_KEYS_MAX);
        assert!(far.take(SKIPS_MAX + 1).is_ok() && far.take(10).is_err());
        far.chain.next = u64::MAX;
        assert_eq!(far.take(u64::MAX).map(|_| ()), Err(Refusal::CounterTooFarAhead));
    }

    #[test]
    fn terms_lead_to_the_same_chain_step_by_step_or_at_once_and_never_back() {
        let first = Chain::start(&[1; 32], 1);
        let stepwise = first.in_term(2).and_then(|chain| chain.in_term(5)).expect("ahead");
        assert!(first.in_term(5) == Some(stepwise.clone()) && stepwise.next == 0);
        assert!(stepwise.in_term(4).is_none());
        assert!(first.in_term(2 + TERM_JUMP_MAX).is_none() && first.in_term(1 + TERM_JUMP_MAX).is_some());
    }

    #[test]
    fn what_was_used_is_not_in_the_state_any_more() {
        let mut chain = Chain::start(&[1; 32], 1);
        let before = chain.clone();
        let key = *chain.step().expect("far from the end").0;
        let state = wire::encode(&chain);
        for gone in [before.key, key, [1; 32]] {
            assert!(!state.windows(32).any(|window| window == gone));
        }
    }

    #[test]
    fn a_state_that_this_program_does_not_write_is_refused() {
        let (me, partner) = (agent("ada", 1), agent("bob", 2));
        let mut state = PairState::new(&me, &card(&partner));
        state.next_key(&me, &card(&partner), &mut rng(1)).expect("first contact");
        assert_eq!(PairState::from_fields(&state.to_fields()), Ok(state.clone()));
        assert_eq!(PairState::from_fields(&Fields::new()), Err(PairError::Missing));
        let mut far = receiving();
        far.take(100).map(|_| ()).expect("within the bound");
        far.skipped.swap(0, 1);
        let altered = PairState { receiving: Some(far), ..state };
        assert_eq!(PairState::from_fields(&altered.to_fields()), Err(PairError::Malformed));
    }
}
