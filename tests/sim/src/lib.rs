//! Whole meshes in one thread under virtual time: every fault, every order of events, from a seed.
//!
//! ```text
//! plan (what a seed draws) -> run (what users and nemesis do) -> world (network, disks, clocks, processes) -> node/core
//!                                                                  └─ history ─> persona-audit (what may never happen)
//! ```
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a harness owns threads and clocks; what it runs does not")]

pub mod cheat;
pub mod churn;
pub mod keys;
pub mod lives;
pub mod lookup;
pub mod out;
pub mod plan;
pub mod plot;
pub mod run;
pub mod scale;
pub mod survival;
pub mod tell;
pub mod world;
