//! Where contacts come from outside the process: the only part of this crate that touches files.
#![allow(clippy::disallowed_methods, reason = "sources read and write files; everything else in this crate is pure")]

pub mod file;
