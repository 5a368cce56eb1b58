//! Starts, breaks and judges a mesh of real node processes.
//!
//! A drill believes nothing that it cannot see from outside: it starts `persona up`, speaks the verbs and the control API
//! (docs/spec/api.md) like any other client, kills with signals, and compares bytes. It shares no code with what it judges.
//!
//! - [`NodeProcess`] is one node: spawn, wait, pause, kill -9, restart on the same directory.
//! - [`Mesh`] is several of them on loopback, in a scratch directory that goes away with them.
//! - [`Api`] is a client of the control API whose errors keep the problem that the node reported.
//! - [`agents`] are born, talk, are waited for and imported.
//! - [`WireTap`] sits between nodes and records every byte; [`find_in_tree`] looks for a secret where none may be.
//! - [`demo`] is the story that `persona demo` tells, and [`victims`] and [`picture`] are its pure parts.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this crate owns processes, files, sockets and the clock")]

pub mod agents;
mod api;
pub mod demo;
mod error;
mod mesh;
pub mod picture;
mod process;
mod relay;
mod scan;
pub mod scenario;
mod story;
pub mod victims;
mod wiretap;

pub use api::{Api, ApiError, Problem, flag, float, from_base64, list, number, path_segment, query, text, to_base64};
pub use error::DrillError;
pub use mesh::{Mesh, MeshOptions};
pub use process::{NodeOptions, NodeProcess, Spoken, until};
pub use relay::{Link, RelayCounts, Relays, Weather};
pub use scan::{Sighting, count_in, find_in_tree};
pub use story::Story;
pub use wiretap::WireTap;
