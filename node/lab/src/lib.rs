//! The laboratory: how well behaviour tells agents apart, measured by anyone on their own data (docs/behavior.md).
//!
//! Pure: bytes in, a report out. What is measured is `persona-agent`'s verifier, and no copy of it.

pub mod rates;
pub mod score;

pub use score::{Data, DataError, ScoreError, ScoreOptions, ScoreReport, SubjectScore, score};
