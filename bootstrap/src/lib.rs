//! First contact: how a node finds the mesh, and finds it again.
//!
//! A node knows others from three places: *tickets* that somebody handed over ([`Ticket`]), multiaddrs that its operator configured, and
//! the *address book* of peers that answered before ([`AddressBook`]). The [`Joiner`] tries all of them side by side, backs off where
//! nobody answers, starts over when the last peer is lost, and tells the operator what to do when it gets nowhere.
//!
//! ```text
//! tickets ----+
//! --bootstrap +--> Joiner --> Dial(addresses) --> the mesh's shell --> Connected / DialFailed --> Joiner, AddressBook
//! book -------+
//! ```
//!
//! Everything is pure: time and randomness are arguments, dialing is a value. Only [`sources`] touches files. Formats are described in
//! docs/spec/ticket.md. The third kind of first contact, membership certificates, comes with permissioned meshes.

mod address;
mod book;
mod crc;
mod join;
pub mod sources;
mod ticket;

pub use address::{ADDRESS_BYTES_MAX, Address, AddressError};
pub use book::{ADDRESSES_PER_PEER_MAX, AddressBook, BookError, Candidate, PEERS_MAX};
pub use join::{
    BACKOFF_MAX_MS, BACKOFF_MIN_MS, BOOK_CANDIDATES_MAX, CONNECTED_BACKOFF_MAX_MS, DIAL_TIMEOUT_MS, DIALS_INFLIGHT_MAX, GIVEN_MAX,
    JoinAdvice, JoinEvent, JoinOut, JoinSources, Joiner, STABLE_MS, Unreachable,
};
pub use ticket::{ADMISSION_BYTES_MAX, MESH_NAME_BYTES_MAX, TICKET_ADDRESSES_MAX, Ticket, TicketError};
