//! Every order of events of one small configuration: four holders of which one lies, one writer, two puts, two readers, one crash.
//!
//! ```text
//! scene (what takes part) -> state (what can happen next, what may never) -> cast (the real Put, Get and Holder, each step run once)
//!                                        └─ search (breadth first, so the first way to break a rule is a shortest one)
//! ```
//!
//! It is no model of the protocol: the machines are those of `mesh/proto`. A local state of a machine has a number, and so has a message;
//! what a machine does with a message is run once and remembered, so that a global state is a row of numbers and a step a few look-ups
//! (docs/decisions/0016-the-model-runs-the-real-machines.md).
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a harness: its hash tables are looked up, never iterated")]

pub mod cast;
pub mod scene;
pub mod search;
pub mod state;
