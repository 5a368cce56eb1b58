//! Frames that nobody meant: bits turned, ends cut off, two spliced together, lengths that lie, more bytes than any frame may have.
//!
//! Between nodes everything travels encrypted, so such frames come from a machine that makes them. Whoever gets one says that it is none,
//! or answers what it happens to mean, and goes on.

use chacha20::ChaCha8Rng;
use rand_core::Rng as _;

use crate::below;

/// One byte more than any frame may have (docs/spec/wire.md#encoding).
const TOO_LONG_BYTES: usize = (2 << 20) + 1;

/// One in so many is too long: they cost more than all others.
const TOO_LONG_EVERY: u64 = 200;

/// Makes another frame of one, and of `other`, which somebody sent before.
pub fn mangle(frame: &[u8], other: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let place = |rng: &mut ChaCha8Rng, bytes: &[u8]| below(rng, bytes.len() as u64) as usize;
    match below(rng, 7) {
        // A few bits.
        0 | 1 => {
            for _ in 0..1 + below(rng, 4) {
                let at = place(rng, &bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << below(rng, 8);
                }
            }
        }
        2 => bytes.truncate(place(rng, frame)),
        3 => {
            bytes.truncate(place(rng, frame));
            bytes.extend_from_slice(other.get(place(rng, other)..).unwrap_or_default());
        }
        // A length, or whatever stands there, becomes as large as the encoding allows.
        4 => {
            let at = place(rng, &bytes);
            let huge = [&[[0xfb, 0xfc, 0xfd][below(rng, 3) as usize]][..], &[0xff; 8][..]].concat();
            bytes.splice(at..at, huge);
        }
        5 => {
            let at = place(rng, &bytes);
            let noise: Vec<u8> = (0..below(rng, 40)).map(|_| rng.next_u32() as u8).collect();
            bytes.splice(at..at, noise);
        }
        _ if below(rng, TOO_LONG_EVERY) == 0 => bytes.resize(TOO_LONG_BYTES, 0),
        _ => {
            let noise: Vec<u8> = (0..1 + below(rng, 40)).map(|_| rng.next_u32() as u8).collect();
            bytes.extend(noise);
        }
    }
    bytes
}
