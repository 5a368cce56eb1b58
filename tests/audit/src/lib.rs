//! An auditor of a mesh: it reads what happened ([`history`]) and says what of it may never happen.
//!
//! It shares no code with the protocol. What it knows of formats it has from docs/spec by way of `persona-foreign`, a stranger's decoder;
//! what it knows of the rules is written here a second time, from docs/guarantees.md.

pub mod history;
