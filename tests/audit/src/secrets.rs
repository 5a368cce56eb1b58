//! Finding byte strings that may be nowhere, in everything that travels or is stored.
//!
//! Whatever contains a secret contains eight bytes of it at every eighth place: only those are looked at, in a table of bits first.

use std::collections::BTreeMap;

/// Bytes that are compared at once.
const WORD: usize = 8;

/// Bits in the first sieve.
const SIEVE_BITS: usize = 1 << 16;

/// What may be nowhere.
#[derive(Default)]
pub(crate) struct Secrets {
    secrets: Vec<Vec<u8>>,
    /// Words of secrets and where they stand: secret, offset.
    words: BTreeMap<u64, Vec<(usize, usize)>>,
    sieve: Vec<u64>,
    /// From one looked-at place to the next.
    stride: usize,
}

impl Secrets {
    /// Adds one of at least [`WORD`] bytes; a shorter one would be found by chance, and is left out.
    pub(crate) fn add(&mut self, secret: &[u8]) {
        if secret.len() < WORD {
            return;
        }
        self.secrets.push(secret.to_vec());
        // Every occurrence of the shortest one covers a whole word at some multiple of the stride.
        self.stride = self.secrets.iter().map(|secret| (secret.len() - WORD + 1).min(WORD)).min().unwrap_or(1);
        self.words.clear();
        self.sieve = vec![0; SIEVE_BITS / 64];
        for (place, secret) in self.secrets.iter().enumerate() {
            for offset in 0..self.stride {
                let word = word_at(secret, offset);
                self.words.entry(word).or_default().push((place, offset));
                let bit = sieve_bit(word);
                self.sieve[bit / 64] |= 1 << (bit % 64);
            }
        }
    }

    /// Whether one of them stands in these bytes; which one, by the order in which they were added.
    pub(crate) fn found_in(&self, bytes: &[u8]) -> Option<usize> {
        if self.secrets.is_empty() || bytes.len() < WORD {
            return None;
        }
        (0..=bytes.len() - WORD).step_by(self.stride).find_map(|at| {
            let word = word_at(bytes, at);
            let bit = sieve_bit(word);
            if self.sieve[bit / 64] & (1 << (bit % 64)) == 0 {
                return None;
            }
            let here = |(place, offset): &&(usize, usize)| {
                at.checked_sub(*offset).is_some_and(|start| bytes[start..].starts_with(&self.secrets[*place]))
            };
            self.words.get(&word)?.iter().find(here).map(|(place, _)| *place)
        })
    }
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + WORD].try_into().expect("a whole word"))
}

fn sieve_bit(word: u64) -> usize {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % SIEVE_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_and_nothing_else() {
        let mut secrets = Secrets::default();
        secrets.add(b"a plaintext that nobody may see");
        secrets.add(b"ninebytes");
        secrets.add(b"short");
        for secret in [&b"a plaintext that nobody may see"[..], b"ninebytes"] {
            for at in 0..40 {
                let mut bytes = vec![7; at];
                bytes.extend(secret);
                assert!(secrets.found_in(&bytes).is_some(), "at {at}");
                bytes.extend([1; 20]);
                assert!(secrets.found_in(&bytes).is_some(), "at {at}");
                bytes[at + secret.len() - 1] ^= 1;
                assert_eq!(secrets.found_in(&bytes), None, "altered, at {at}");
            }
        }
        assert_eq!(secrets.found_in(b"short"), None);
    }
}
