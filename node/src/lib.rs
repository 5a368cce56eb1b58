//! The node: one process, one state directory (docs/ARCHITECTURE.md).
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a shell: it owns the clock, the files and the threads")]

mod advice;
mod bench;
pub mod cli;
mod client;
mod clock;
mod daemon;
mod forge;
mod http;
pub mod keystore;
mod lab;
mod output;
pub mod passage;
mod random;
mod room;
mod spent;
pub mod store;
