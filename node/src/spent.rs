//! Where the time of a put or a get goes: measured where it is spent, for `persona bench`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use persona_fragments::{Signature, Signer, Verifier};

/// Nanoseconds since the node started.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    node: AtomicU64,
    signatures: AtomicU64,
}

/// Counts the time until it is dropped.
pub(crate) struct Running<'a> {
    counter: &'a AtomicU64,
    since: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.counter.fetch_add(self.since.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Spent {
    /// The node's own code runs now: protocol, coding, sealing and signatures.
    pub(crate) fn node(&self) -> Running<'_> {
        Running { counter: &self.node, since: Instant::now() }
    }

    fn signature(&self) -> Running<'_> {
        Running { counter: &self.signatures, since: Instant::now() }
    }

    /// Nanoseconds in the node's own code, and among them in signatures.
    pub(crate) fn nanos(&self) -> (u64, u64) {
        (self.node.load(Ordering::Relaxed), self.signatures.load(Ordering::Relaxed))
    }
}

/// A signer that is timed.
pub(crate) struct TimedSigner<S>(S, Arc<Spent>);

impl<S> TimedSigner<S> {
    /// Times `signer`.
    pub(crate) fn new(signer: S, spent: Arc<Spent>) -> Self {
        Self(signer, spent)
    }
}

impl<S: Signer> Signer for TimedSigner<S> {
    fn public_key(&self) -> [u8; 32] {
        self.0.public_key()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        let _running = self.1.signature();
        self.0.sign(message)
    }
}

/// A verifier that is timed.
pub(crate) struct TimedVerifier<V>(V, Arc<Spent>);

impl<V> TimedVerifier<V> {
    /// Times `verifier`.
    pub(crate) fn new(verifier: V, spent: Arc<Spent>) -> Self {
        Self(verifier, spent)
    }
}

impl<V: Verifier> Verifier for TimedVerifier<V> {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        let _running = self.1.signature();
        self.0.verify(public_key, message, signature)
    }
}
