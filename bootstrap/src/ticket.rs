//! An invitation in one string (docs/spec/ticket.md).
//!
//! `persona invite` prints a ticket, a person sends it to another person, `persona up --join TICKET` uses it. On its way it is pasted,
//! wrapped, cut short and retyped, so the format tells these accidents apart and the errors say which one it was.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use persona_fragments::wire::{self, DecodeError};

use crate::{
    address::{Address, AddressError, quoted},
    crc::{CRC_BYTES, append_crc, checked},
};

/// The longest mesh name: it becomes part of every protocol string.
pub const MESH_NAME_BYTES_MAX: usize = 32;

/// The most addresses in one ticket. Sixteen reach a few nodes on a few interfaces each; more would make the string unwieldy.
pub const TICKET_ADDRESSES_MAX: usize = 16;

/// The longest admission grant, in bytes: room for a certificate with a post-quantum signature.
pub const ADMISSION_BYTES_MAX: usize = 4096;

/// What every ticket starts with.
const PREFIX: &str = "persona:";

/// RFC 4648 base32 in lowercase: it survives chat programs, QR codes and being read aloud.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The characters after the prefix that say how many follow them: 15 bits, the highest first.
const LENGTH_CHARS: usize = 3;

/// The longest frame in a ticket, generously: what is longer was not written by `persona invite`.
const FRAME_BYTES_MAX: usize = 8 << 10;

const _: () =
    assert!(TICKET_ADDRESSES_MAX * (crate::ADDRESS_BYTES_MAX + 3) + ADMISSION_BYTES_MAX + MESH_NAME_BYTES_MAX + 16 <= FRAME_BYTES_MAX);
const _: () = assert!(body_chars(FRAME_BYTES_MAX) < 1 << (5 * LENGTH_CHARS));

/// Which mesh to join, and where somebody of it can be reached. `Display` writes the string that [`FromStr`] reads.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ticket {
    /// The mesh's name: it is in every protocol string, so that two meshes never merge.
    pub mesh: String,
    /// Multiaddrs of nodes in it, with `/p2p/` where the node is known: 1 to [`TICKET_ADDRESSES_MAX`].
    pub addresses: Vec<String>,
    /// Reserved for a permissioned mesh's admission grant. Read and kept, but [`Ticket::check_open`] refuses it: this version joins
    /// open meshes only.
    pub admission: Option<Vec<u8>>,
}

/// Why a text is no ticket, or no usable one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Nothing at all.
    #[error("the ticket is empty: paste the whole line that `persona invite` printed")]
    Empty,
    /// A multiaddr where a ticket was wanted.
    #[error("this is an address, not a ticket: give it as --bootstrap {0}")]
    IsAnAddress(String),
    /// It starts with something else.
    #[error("a ticket starts with `{PREFIX}`, but this starts with {0:?}: paste the whole line that `persona invite` printed")]
    WrongPrefix(String),
    /// A character that occurs in no ticket.
    #[error(
        "character {position} of the ticket is {found:?}, but only letters and the digits 2 to 7 occur in one: copy it again instead of typing it"
    )]
    Character {
        /// Counted from 1, without white space.
        position: usize,
        /// What stands there.
        found: char,
    },
    /// The end is missing.
    #[error("the ticket is cut short, {have} of {need} characters arrived: paste the whole line that `persona invite` printed")]
    Truncated {
        /// Characters, with the prefix.
        have: usize,
        /// Characters of the whole ticket; of the shortest possible one where even its length is missing.
        need: usize,
    },
    /// Something was pasted behind it.
    #[error("{extra} characters follow the ticket's {need}: paste only the line that `persona invite` printed")]
    Extra {
        /// Characters of the ticket.
        need: usize,
        /// Characters too many.
        extra: usize,
    },
    /// Longer than any ticket.
    #[error("{0} characters are too many for a ticket: paste only the line that `persona invite` printed")]
    TooLong(usize),
    /// The checksum is not that of the rest.
    #[error("a character of the ticket is wrong, its checksum does not match: copy it again instead of typing it")]
    Checksum,
    /// A format of the future.
    #[error("the ticket has format {0}, which this version of persona does not read: update persona, or ask for a ticket of format {version}", version = wire::WIRE_VERSION)]
    Newer(u8),
    /// Undamaged, but not what any persona writes.
    #[error("the ticket arrived undamaged, but its content is not valid ({0}): ask whoever made it for another")]
    Content(DecodeError),
    /// The mesh's name is no name.
    #[error("{0:?} is no mesh name: 1 to {MESH_NAME_BYTES_MAX} lowercase letters, digits and hyphens make one")]
    Mesh(String),
    /// Nobody to dial.
    #[error("the ticket holds no address: make it with `persona invite` on a node that others can reach")]
    NoAddresses,
    /// More than [`TICKET_ADDRESSES_MAX`].
    #[error("the ticket holds {0} addresses, more than {TICKET_ADDRESSES_MAX}: make one with fewer")]
    TooManyAddresses(usize),
    /// An address that cannot be dialed.
    #[error("bad address #{number} in the ticket, {address}: {error}")]
    Address {
        /// Counted from 1.
        number: usize,
        /// The address, shortened.
        address: String,
        /// What is wrong with it.
        error: AddressError,
    },
    /// An admission grant longer than [`ADMISSION_BYTES_MAX`].
    #[error("the ticket's admission grant has {0} bytes, more than {ADMISSION_BYTES_MAX}: ask whoever made it for another")]
    AdmissionTooLong(usize),
    /// A permissioned mesh.
    #[error(
        "mesh {0:?} admits by grant, and this version of persona joins open meshes only: update persona, or ask for a ticket to an open mesh"
    )]
    AdmissionUnsupported(String),
}

impl Ticket {
    /// An invitation to the open mesh `mesh` by way of `addresses`, checked and brought into their one form.
    pub fn new(mesh: &str, addresses: &[impl AsRef<str>]) -> Result<Self, TicketError> {
        let addresses = addresses.iter().map(|address| address.as_ref().to_owned()).collect();
        Self { mesh: mesh.to_owned(), addresses, admission: None }.checked()
    }

    /// Refuses a ticket that carries an admission grant: it leads to a permissioned mesh, which this version cannot join.
    pub fn check_open(&self) -> Result<(), TicketError> {
        match self.admission {
            Some(_) => Err(TicketError::AdmissionUnsupported(self.mesh.clone())),
            None => Ok(()),
        }
    }

    /// Holds what the documentation of the fields promises.
    fn checked(mut self) -> Result<Self, TicketError> {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=MESH_NAME_BYTES_MAX).contains(&self.mesh.len()) || !self.mesh.bytes().all(letter) {
            return Err(TicketError::Mesh(quoted(&self.mesh)));
        }
        match self.addresses.len() {
            0 => return Err(TicketError::NoAddresses),
            1..=TICKET_ADDRESSES_MAX => {}
            many => return Err(TicketError::TooManyAddresses(many)),
        }
        for (index, text) in self.addresses.iter_mut().enumerate() {
            match text.parse::<Address>() {
                Ok(address) => *text = address.to_string(),
                Err(error) => return Err(TicketError::Address { number: index + 1, address: quoted(text), error }),
            }
        }
        match &self.admission {
            Some(grant) if grant.len() > ADMISSION_BYTES_MAX => Err(TicketError::AdmissionTooLong(grant.len())),
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = data_encoding::BASE32_NOPAD.encode(&append_crc(wire::encode(self))).to_ascii_lowercase();
        f.write_str(PREFIX)?;
        for place in (0..LENGTH_CHARS).rev() {
            write!(f, "{}", char::from(ALPHABET[(body.len() >> (5 * place)) % ALPHABET.len()]))?;
        }
        f.write_str(&body)
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        // A mail program wraps long lines, and a QR code holds capitals more cheaply: neither is an error.
        let text: String = text.chars().filter(|letter| !letter.is_whitespace()).take(TEXT_CHARS_MAX + 1).collect();
        if text.is_empty() {
            return Err(TicketError::Empty);
        }
        if text.starts_with('/') {
            return Err(TicketError::IsAnAddress(quoted(&text)));
        }
        let head: String = text.chars().take(PREFIX.len()).collect();
        if !head.eq_ignore_ascii_case(PREFIX) {
            let cut = PREFIX.starts_with(&head.to_ascii_lowercase());
            return Err(if cut {
                TicketError::Truncated { have: head.len(), need: SHORTEST_CHARS }
            } else {
                TicketError::WrongPrefix(quoted(&head))
            });
        }
        let frame = unwrap(&text[PREFIX.len()..])?;
        let ticket: Self = wire::decode(&frame).map_err(|error| match error {
            DecodeError::Version(version) => TicketError::Newer(version),
            other => TicketError::Content(other),
        })?;
        ticket.checked()
    }
}

/// How many characters show a frame of so many bytes and its checksum.
const fn body_chars(frame_bytes: usize) -> usize {
    ((frame_bytes + CRC_BYTES) * 8).div_ceil(5)
}

/// The fewest characters that a ticket can have: its frame is at least a version byte.
const SHORTEST_CHARS: usize = PREFIX.len() + LENGTH_CHARS + body_chars(1);

/// The most characters that a ticket can have.
const TEXT_CHARS_MAX: usize = PREFIX.len() + LENGTH_CHARS + body_chars(FRAME_BYTES_MAX);

/// The frame in what follows the prefix, or which accident befell it: the length tells a cut ticket from a mistyped one.
fn unwrap(text: &str) -> Result<Vec<u8>, TicketError> {
    let values: Vec<u8> = text
        .chars()
        .enumerate()
        .map(|(index, found)| {
            let value = ALPHABET.iter().position(|&known| char::from(known) == found.to_ascii_lowercase());
            value.map(|value| value as u8).ok_or(TicketError::Character { position: PREFIX.len() + index + 1, found })
        })
        .collect::<Result<_, _>>()?;
    let have = PREFIX.len() + values.len();
    if have > TEXT_CHARS_MAX {
        return Err(TicketError::TooLong(have));
    }
    let Some((length, _)) = values.split_first_chunk::<LENGTH_CHARS>() else {
        return Err(TicketError::Truncated { have, need: SHORTEST_CHARS });
    };
    let need = PREFIX.len() + LENGTH_CHARS + length.iter().fold(0, |length, &value| length << 5 | usize::from(value));
    let bytes = data_encoding::BASE32_NOPAD.decode(text[LENGTH_CHARS..].to_ascii_uppercase().as_bytes());
    let frame = bytes.ok().and_then(|bytes| checked(&bytes).map(<[u8]>::to_vec));
    match frame {
        Some(frame) if have == need => Ok(frame),
        None if have < need => Err(TicketError::Truncated { have, need }),
        None if have > need => Err(TicketError::Extra { need, extra: have - need }),
        // With an undamaged body it is the length that is wrong.
        _ => Err(TicketError::Checksum),
    }
}

#[cfg(test)]
mod tests {
    use persona_fragments::PeerKey;
    use proptest::prelude::*;

    use super::*;

    fn ticket() -> Ticket {
        let peer = PeerKey([7; 32]).to_peer_id_string();
        Ticket::new("home-1", &[format!("/ip4/192.0.2.7/tcp/4001/p2p/{peer}"), "/dns/node.example.org/udp/4001/quic-v1".into()])
            .expect("a good ticket")
    }

    fn armoured(frame: &[u8]) -> String {
        let body = data_encoding::BASE32_NOPAD.encode(&append_crc(frame.to_vec())).to_ascii_lowercase();
        let length: String = [10, 5, 0].map(|shift| char::from(ALPHABET[(body.len() >> shift) & 31])).iter().collect();
        format!("{PREFIX}{length}{body}")
    }

    fn read(text: &str) -> Result<Ticket, TicketError> {
        text.parse()
    }

    #[test]
    fn a_ticket_reads_back_however_it_was_pasted() {
        let text = ticket().to_string();
        assert_eq!(read(&text), Ok(ticket()));
        assert_eq!(read(&text.to_ascii_uppercase()), Ok(ticket()));
        assert_eq!(read(&format!("  {}\r\n  {}\n", &text[..40], &text[40..])), Ok(ticket()));
        assert_eq!(ticket().check_open(), Ok(()));
    }

    /// The format is a promise: this string must read, and be written, for as long as version 1 is spoken.
    #[test]
    fn the_golden_ticket_stays() {
        let golden = Ticket { mesh: "home".into(), addresses: vec!["/ip4/127.0.0.1/tcp/4001".into()], admission: None };
        insta::assert_snapshot!(golden.to_string(), @"persona:ab2aecgq33nmuarol3joa2c6mjsg4xdalrqfyys65ddoaxtimbqgeagh4zswq");
        assert_eq!(read(&golden.to_string()), Ok(golden));
    }

    #[test]
    fn every_single_wrong_character_is_noticed() {
        let text = ticket().to_string();
        for position in 0..text.len() {
            for typo in (b' '..=b'~').map(char::from).chain(['ä', '\u{301}']) {
                let right = char::from(text.as_bytes()[position]);
                if typo.eq_ignore_ascii_case(&right) || typo == ' ' {
                    continue; // neither case nor white space means anything in a ticket
                }
                let bent: String = text.chars().enumerate().map(|(index, letter)| if index == position { typo } else { letter }).collect();
                let error = read(&bent).expect_err("noticed");
                let known = typo.is_ascii() && ALPHABET.contains(&(typo as u8).to_ascii_lowercase());
                match error {
                    TicketError::IsAnAddress(_) => assert!(position == 0 && typo == '/'),
                    TicketError::WrongPrefix(_) => assert!(position < PREFIX.len()),
                    TicketError::Character { position: shown, found } => assert!(!known && (shown, found) == (position + 1, typo)),
                    TicketError::Checksum => assert!(known && position >= PREFIX.len()),
                    other => panic!("{typo:?} at {position}: {other}"),
                }
            }
        }
    }

    #[test]
    fn every_swap_of_two_neighbours_is_noticed() {
        let text = ticket().to_string().into_bytes();
        for index in PREFIX.len()..text.len() - 1 {
            let mut bent = text.clone();
            bent.swap(index, index + 1);
            if bent != text {
                let error = read(std::str::from_utf8(&bent).expect("ascii")).expect_err("noticed");
                // A swap between length and body spoils both, and looks like a cut.
                assert!(error == TicketError::Checksum || index + 1 == PREFIX.len() + LENGTH_CHARS, "at {index}: {error}");
            }
        }
    }

    #[test]
    fn every_truncation_is_called_one() {
        let text = ticket().to_string();
        for have in 1..text.len() {
            let TicketError::Truncated { have: shown, need } = read(&text[..have]).expect_err("noticed") else {
                panic!("{have} characters: {:?}", read(&text[..have]));
            };
            assert_eq!(shown, have);
            assert!(need == text.len() || have < PREFIX.len() + LENGTH_CHARS, "{have}: {need}");
        }
    }

    #[test]
    fn other_accidents_have_other_names() {
        use TicketError as E;
        let text = ticket().to_string();
        assert_eq!(read(" \n"), Err(E::Empty));
        assert_eq!(read("/ip4/1.2.3.4/tcp/1"), Err(E::IsAnAddress("/ip4/1.2.3.4/tcp/1".into())));
        assert_eq!(read("https://example.org"), Err(E::WrongPrefix("https://".into())));
        assert_eq!(read(&format!("{text}abc")), Err(E::Extra { need: text.len(), extra: 3 }));
        assert_eq!(read(&format!("{PREFIX}{}", "a".repeat(1 << 20))), Err(E::TooLong(TEXT_CHARS_MAX + 1)));
    }

    #[test]
    fn a_whole_ticket_with_bad_content_is_refused_by_name() {
        use TicketError as E;
        let of = |mesh: &str, addresses: &[&str], admission| Ticket {
            mesh: mesh.into(),
            addresses: addresses.iter().map(|&address| address.into()).collect(),
            admission,
        };
        let good = "/ip4/1.2.3.4/tcp/1";
        for mesh in ["", "Home", "a/b", &"a".repeat(33)] {
            assert_eq!(read(&of(mesh, &[good], None).to_string()), Err(E::Mesh(mesh.into())));
        }
        assert_eq!(read(&of("home", &[], None).to_string()), Err(E::NoAddresses));
        assert_eq!(read(&of("home", &[good; 17], None).to_string()), Err(E::TooManyAddresses(17)));
        assert_eq!(
            read(&of("home", &[good, "/ip4/1.2.3.4"], None).to_string()),
            Err(E::Address { number: 2, address: "/ip4/1.2.3.4".into(), error: AddressError::NoTransport })
        );
        assert_eq!(read(&of("home", &[good], Some(vec![0; 4097])).to_string()), Err(E::AdmissionTooLong(4097)));
        assert_eq!(read(&armoured(&[2, 1, 2, 3])), Err(E::Newer(2)));
        assert!(matches!(read(&armoured(&[])), Err(E::Content(DecodeError::Empty))));
        let mut trailing = wire::encode(&ticket());
        trailing.push(0);
        assert_eq!(read(&armoured(&trailing)), Err(E::Content(DecodeError::Trailing(1))));
    }

    #[test]
    fn an_admission_grant_is_kept_and_refused() {
        let permissioned = Ticket { admission: Some(vec![1, 2, 3]), ..ticket() };
        let read = read(&permissioned.to_string()).expect("it reads");
        assert_eq!(read, permissioned);
        assert_eq!(read.check_open(), Err(TicketError::AdmissionUnsupported("home-1".into())));
    }

    #[test]
    fn the_longest_ticket_fits() {
        let name = format!("{0}.{0}", "a".repeat(60));
        let address = format!("/dns/{name}/tcp/4001/p2p/{}", PeerKey([7; 32]).to_peer_id_string());
        let longest = Ticket { mesh: "m".repeat(32), addresses: vec![address; 16], admission: Some(vec![7; 4096]) };
        assert_eq!(read(&longest.to_string()), Ok(longest));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&text);
            let _ = read(&format!("{PREFIX}{text}"));
            let _ = read(&armoured(&frame));
        }
    }
}
