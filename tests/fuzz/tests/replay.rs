//! Every input that is committed, and what a seeded mutator makes of it, given to every target: none may panic.
//!
//! `cargo test -p persona-fuzz -- --ignored write_seeds` writes the seeds anew. `PERSONA_MUTATIONS=100000 cargo test -p persona-fuzz` mutates more.
#![allow(clippy::disallowed_methods, reason = "it reads the corpora, and a setting")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use chacha20::ChaCha20Rng;
use persona_fuzz::{TARGETS, run, seeds};
use rand_core::{Rng, SeedableRng as _};

/// What of the corpora may be committed in all: small enough to be cloned by everybody.
const CORPORA_BYTES_MAX: u64 = 1 << 20;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(corpus(target)).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Flips, cuts, repeats, overwrites with edges of numbers, or joins with another input.
fn mutate(input: &[u8], other: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mut below = |bound: usize| usize::try_from(rng.next_u64() % (bound.max(1) as u64)).unwrap();
    for _ in 0..1 + below(4) {
        let at = below(bytes.len());
        match below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 250, 251, 252, 253, 254, 255][below(10)],
            2 => bytes.truncate(at),
            3 => {
                let len = below(40);
                bytes.splice(at..at, vec![below(256) as u8; len]);
            }
            4 => {
                let part = bytes[at..(at + below(64)).min(bytes.len())].to_vec();
                let to = below(bytes.len());
                bytes.splice(to..to, part);
            }
            5 => {
                let from = below(other.len());
                let part = &other[from..(from + below(200)).min(other.len())];
                let end = (at + part.len()).min(bytes.len());
                bytes.splice(at..end, part.iter().copied());
            }
            6 if bytes.len() > at + 4 => {
                let number = [u32::MAX, 0, 1 << 31, 0xfffe, 4096][below(5)];
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            _ => drop(bytes.drain(at..(at + below(16)).min(bytes.len()))),
        }
    }
    bytes
}

/// Each target has its folder with something in it, and there is no other folder.
#[test]
fn the_corpora_are_those_of_the_targets_and_small() {
    let folders: BTreeSet<String> =
        std::fs::read_dir(corpus("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, targets);
    let mut bytes = 0;
    for (target, _) in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{target} has no input");
        bytes += inputs.iter().map(|(_, input)| input.len() as u64).sum::<u64>();
    }
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes of inputs");
}

#[test]
fn no_committed_input_panics() {
    for (target, _) in TARGETS {
        for (path, input) in inputs(target) {
            let judged = std::panic::catch_unwind(|| run(target, &input));
            assert!(judged.is_ok(), "{}", path.display());
        }
    }
}

#[test]
fn no_mutated_input_panics() {
    let mutations: usize = std::env::var("PERSONA_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(200);
    for (target, _) in TARGETS {
        let inputs = inputs(target);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for nth in 0..mutations {
            let mut pick = || &inputs[usize::try_from(rng.next_u64() % inputs.len() as u64).unwrap()].1;
            let (input, other) = (pick(), pick());
            let mutated = mutate(input, other, &mut rng);
            let judged = std::panic::catch_unwind(|| run(target, &mutated));
            assert!(judged.is_ok(), "{target}, mutation {nth}: {mutated:02x?}");
        }
    }
}

/// What the decoders accept is reached: a corpus of refused inputs would prove nothing.
#[test]
fn the_seeds_are_sound() {
    for (target, _) in TARGETS {
        for seed in seeds::of(target) {
            assert!(run(target, &seed), "{target}: {seed:02x?}");
        }
    }
}

#[test]
#[ignore = "writes the seeds: cargo test -p persona-fuzz -- --ignored write_seeds"]
fn write_seeds() {
    for (target, _) in TARGETS {
        std::fs::create_dir_all(corpus(target)).unwrap();
        for (nth, seed) in seeds::of(target).into_iter().enumerate() {
            std::fs::write(corpus(target).join(format!("seed-{nth}")), seed).unwrap();
        }
    }
}
