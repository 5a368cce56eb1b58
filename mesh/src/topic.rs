//! The gossip topics: few and fixed, because a node with a topic for each agent would be ignored whole by its neighbours.

use std::fmt;

/// How many lanes messages are spread over.
pub const MESSAGE_LANES: u8 = 8;

/// What a gossip message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Personality commitments, cards, who is where: `persona/<mesh>/announce`.
    Announce,
    /// Alarms: `persona/<mesh>/alerts`.
    Alerts,
    /// Envelopes for agents whose home is not known, by lane: `persona/<mesh>/messages/0` to `/7`. A lane counts modulo
    /// [`MESSAGE_LANES`]; for a message it is the first byte of SHA-256 of the recipient's id.
    Messages(u8),
}

impl Topic {
    /// Every topic of a mesh, in a fixed order. A node is subscribed to all of them.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Announce, Self::Alerts].into_iter().chain((0..MESSAGE_LANES).map(Self::Messages))
    }

    /// Its name on the wire, in the mesh called `mesh`.
    pub fn name(self, mesh: &str) -> String {
        format!("persona/{mesh}/{self}")
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Announce => f.write_str("announce"),
            Self::Alerts => f.write_str("alerts"),
            Self::Messages(lane) => write!(f, "messages/{}", lane % MESSAGE_LANES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_ten_and_named_after_their_mesh() {
        let names: Vec<String> = Topic::all().map(|topic| topic.name("home")).collect();
        assert_eq!(names.len(), 10);
        assert_eq!(names[0], "persona/home/announce");
        assert_eq!(names[1], "persona/home/alerts");
        assert_eq!(names[9], "persona/home/messages/7");
        assert_eq!(Topic::Messages(13).name("home"), "persona/home/messages/5");
    }
}
