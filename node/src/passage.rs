//! What stands between a node and the frames of its mesh: nothing.
//!
//! A harness may bring something of its own here, to hear what a real node is asked and to answer otherwise (tests/chaos). What `persona`
//! itself runs with is [`Open`], a type without a byte whose methods do nothing: there is no switch to turn, and no code behind one.

use persona_fragments::PeerKey;

/// What becomes of other nodes' requests on their way in, and of this node's answers on their way out.
pub trait Passage: Send + 'static {
    /// A frame of requests came from a peer; `inbound` names it until it is answered.
    fn asked(&mut self, inbound: u64, from: &PeerKey, frame: &[u8]) -> Asked {
        let _ = (inbound, from, frame);
        Asked::Pass
    }

    /// The node answers a frame of requests. `None`: the answer is not sent.
    fn answered(&mut self, inbound: u64, frame: Vec<u8>) -> Option<Vec<u8>> {
        let _ = inbound;
        Some(frame)
    }
}

/// What a passage does with a frame of requests.
pub enum Asked {
    /// The node hears of it.
    Pass,
    /// This is the answer, and the node never hears of it.
    Answer(Vec<u8>),
    /// Nobody answers.
    Silence,
}

/// Lets everything pass as it is.
pub struct Open;

impl Passage for Open {}
