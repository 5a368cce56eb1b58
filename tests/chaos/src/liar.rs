//! `persona-liar`: the `persona` command whose node lies.
//!
//! It is a real node, libp2p, store and keystore included, and it takes the same arguments. What other nodes ask of it goes through a
//! [`Liar`], who changes the answers or gives his own. Which lie, says `PERSONA_LIE`.
#![allow(clippy::disallowed_methods, reason = "a process: it has an environment and the system's randomness")]

use std::{collections::BTreeMap, process::ExitCode};

use chacha20::ChaCha8Rng;
use persona::passage::{Asked, Passage};
use persona_fragments::{Ed25519Signer, PeerKey, wire::fits_frame};
use persona_lies::{Handling, Liar, Lie, Story};
use rand_core::SeedableRng as _;

/// Names the lie.
const LIE_VARIABLE: &str = "PERSONA_LIE";

/// Frames that wait for the node's answer. More than a node takes in at once; the oldest makes room, and is then answered truthfully.
const WAITING_MAX: usize = 2048;

/// A liar between a node and its mesh.
struct Lying {
    liar: Liar,
    /// Who asked what, by the request's name.
    waiting: BTreeMap<u64, (PeerKey, Vec<u8>)>,
}

impl Passage for Lying {
    fn asked(&mut self, inbound: u64, from: &PeerKey, frame: &[u8]) -> Asked {
        match self.liar.asked(frame) {
            Handling::Pass => {
                if self.waiting.len() >= WAITING_MAX {
                    self.waiting.pop_first();
                }
                self.waiting.insert(inbound, (*from, frame.to_vec()));
                Asked::Pass
            }
            Handling::Answer(answer) if fits_frame(&answer) => Asked::Answer(answer),
            Handling::Answer(_) => Asked::Silence,
            Handling::Silence => Asked::Silence,
        }
    }

    fn answered(&mut self, inbound: u64, frame: Vec<u8>) -> Option<Vec<u8>> {
        match self.waiting.remove(&inbound) {
            Some((to, asked)) => self.liar.rewrite(&to, &asked, frame).filter(|frame| fits_frame(frame)),
            None => Some(frame),
        }
    }
}

fn main() -> ExitCode {
    let named = std::env::var(LIE_VARIABLE).unwrap_or_default();
    let lie: Lie = match named.parse() {
        // Frames are passed on or changed here, never held back: slow links are the relays' part.
        Ok(Lie::Late) => {
            eprintln!("error: {LIE_VARIABLE}: this program cannot answer late");
            return ExitCode::from(2);
        }
        Ok(lie) => lie,
        Err(error) => {
            eprintln!("error: {LIE_VARIABLE}: {error}");
            return ExitCode::from(2);
        }
    };
    let mut seed = [0; 32];
    if getrandom::fill(&mut seed).is_err() {
        eprintln!("error: the operating system gives no randomness");
        return ExitCode::FAILURE;
    }
    persona::cli::main_through(|signer: Ed25519Signer| {
        // Colluders are processes of their own: what they agreed on is that time stands still from here.
        let mut liar = Liar::new(lie, Box::new(signer), Story::default(), ChaCha8Rng::from_seed(seed));
        liar.begin();
        Lying { liar, waiting: BTreeMap::new() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: u8 = 10;

    #[test]
    fn nothing_is_handed_down_that_no_frame_can_be() {
        let probe = [1, 1, PROBE, 0]; // docs/spec/wire.md#storage-frames: version, one request, a probe of no sections
        let liar = Liar::new(Lie::Noise, Box::new(Ed25519Signer::from_seed(&[7; 32])), Story::default(), ChaCha8Rng::from_seed([1; 32]));
        let (mut lying, mut kept_back) = (Lying { liar, waiting: BTreeMap::new() }, 0);
        for inbound in 0..3000 {
            match lying.asked(inbound, &PeerKey([1; 32]), &probe) {
                Asked::Answer(noise) => assert!(fits_frame(&noise)),
                Asked::Silence => kept_back += 1,
                Asked::Pass => panic!("noise is an answer"),
            }
        }
        assert!(kept_back > 0, "noise is sometimes no byte at all");
    }
}
