//! How many holders, how many shards suffice, and what level that really is.
//!
//! Level `r` promises: once a put has committed, the section can be reconstructed while at most `r - 1` holders are lost or lying.
//! A put commits at `n - f` acks, so that is where the level is counted, not at full placement (docs/spec/quorum.md#shape).

use bincode::{Decode, Encode, de::Decoder, error::DecodeError};

use crate::mutants::{self, Mutant};

/// The highest level that may be asked for: 16 holders of the 20 that Kademlia finds leave slack for the dead and the excluded.
pub const LEVEL_MAX: u8 = 10;

/// The most holders a section can have.
pub const HOLDERS_MAX: u8 = 16;

/// `n` holders, any `k` shards reconstruct, `f` holders may lie or be silent. Unsound numbers do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Shape {
    n: u8,
    k: u8,
    f: u8,
}

/// Why three numbers are no shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("n={n} k={k} f={f} is no shape: f must be (n-1)/3 and k between 1 and n-2f, with at most {HOLDERS_MAX} holders")]
pub struct ShapeError {
    n: u8,
    k: u8,
    f: u8,
}

impl<Context> Decode<Context> for Shape {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (n, k, f) = Decode::decode(decoder)?;
        Self::new(n, k, f).map_err(|error| DecodeError::OtherString(error.to_string()))
    }
}
bincode::impl_borrow_decode!(Shape);

impl Shape {
    /// A shape from numbers that someone else wrote.
    pub fn new(n: u8, k: u8, f: u8) -> Result<Self, ShapeError> {
        let sound = (1..=HOLDERS_MAX).contains(&n) && f == (n - 1) / 3 && k >= 1 && k <= n - 2 * f;
        sound.then_some(Self { n, k, f }).ok_or(ShapeError { n, k, f })
    }

    /// How many holders `level` wants when there are enough: `3 * ceil(level / 2) + 1`.
    pub fn holders_wanted(level: u8) -> u8 {
        3 * level.clamp(1, LEVEL_MAX).div_ceil(2) + 1
    }

    /// The shape for `level` with `usable` holders at hand, the best one where they are too few. `None` without any.
    pub fn for_level(level: u8, usable: usize) -> Option<Self> {
        let level = level.clamp(1, LEVEL_MAX);
        let n = Self::holders_wanted(level).min(u8::try_from(usable).unwrap_or(u8::MAX));
        if n == 0 {
            return None;
        }
        let f = (n - 1) / 3;
        let k = (n - f + 1).saturating_sub(level).clamp(1, n - 2 * f);
        Some(Self { n, k, f })
    }

    /// Holders, and shards.
    pub const fn n(&self) -> u8 {
        self.n
    }

    /// Shards that reconstruct.
    pub const fn k(&self) -> u8 {
        self.k
    }

    /// Holders that may lie or be silent while quorums still meet in a correct one.
    pub const fn f(&self) -> u8 {
        self.f
    }

    /// `n - f`: the acks that commit, the answers that make a read regular.
    pub fn quorum(&self) -> u8 {
        self.n - self.f - u8::from(self.f > 0 && mutants::on(Mutant::SmallQuorum))
    }

    /// `2f + 1`: promises never to ack a version that rule out its certificate. Of as many holders and of any `n - f` more than `f` are in both,
    /// so a correct one, and it does not do both.
    pub const fn abort_quorum(&self) -> u8 {
        2 * self.f + 1
    }

    /// The level that `placed` stored shards give now: one more than the holders that may be lost. 0: not reconstructible.
    pub const fn level_at(&self, placed: u8) -> u8 {
        placed.saturating_add(1).saturating_sub(self.k)
    }

    /// The level that holds from commit on, with `n - f` shards placed.
    pub fn level_at_commit(&self) -> u8 {
        self.level_at(self.quorum())
    }

    /// Whether even one lying holder is tolerated.
    pub const fn byzantine_tolerant(&self) -> bool {
        self.f > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(level: u8, usable: usize) -> (u8, u8, u8, u8) {
        let shape = Shape::for_level(level, usable).expect("some holders");
        (shape.n, shape.k, shape.f, shape.level_at_commit())
    }

    #[test]
    fn enough_holders_give_the_table_of_the_specification() {
        assert_eq!(numbers(5, 100), (10, 3, 3, 5));
        assert_eq!(numbers(3, 100), (7, 3, 2, 3));
        assert_eq!(numbers(2, 100), (4, 2, 1, 2));
    }

    #[test]
    fn too_few_holders_give_less_and_say_so() {
        assert_eq!(numbers(5, 7), (7, 1, 2, 5));
        assert_eq!(numbers(5, 4), (4, 1, 1, 3));
        assert_eq!(numbers(5, 3), (3, 1, 0, 3));
        assert_eq!(numbers(5, 1), (1, 1, 0, 1));
        assert_eq!(Shape::for_level(5, 0), None);
    }

    #[test]
    fn every_shape_for_a_level_is_sound_and_reaches_it_where_holders_suffice() {
        for level in 1..=LEVEL_MAX {
            for usable in 1..=40 {
                let shape = Shape::for_level(level, usable).expect("some holders");
                assert_eq!(Shape::new(shape.n, shape.k, shape.f), Ok(shape));
                if usable >= usize::from(Shape::holders_wanted(level)) {
                    assert!(shape.level_at_commit() >= level, "level {level}: {shape:?}");
                }
            }
        }
    }
}
