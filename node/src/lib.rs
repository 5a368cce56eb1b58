//! The node: one process, one state directory (docs/ARCHITECTURE.md).
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a shell: it owns the clock, the files and the threads")]

pub mod keystore;
pub mod store;
