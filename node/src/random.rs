//! The operating system's randomness, in the form in which pure code is handed it.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};

/// Asks the operating system each time. A system without randomness cannot run a node: that panics.
pub(crate) struct OsRandom;

impl TryRng for OsRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(getrandom::u32().expect("the operating system gives randomness"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(getrandom::u64().expect("the operating system gives randomness"))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        getrandom::fill(bytes).expect("the operating system gives randomness");
        Ok(())
    }
}

impl TryCryptoRng for OsRandom {}
