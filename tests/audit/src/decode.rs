//! Frames of requests and answers, and rows of a holder's tables, read by hand (docs/spec/quorum.md#messages, docs/spec/quorum.md#records).
//!
//! A frame is read once, and what is in it is borrowed: manifests and acks are looked up in the [book](crate::book) by their bytes.

use persona_foreign::{
    frame::{FrameError, Reader},
    head::{Link, Version},
};

/// The most requests in a frame.
pub(crate) const REQUESTS_MAX: usize = 64;

/// The most sections in a probe.
const PROBED_MAX: usize = 256;

/// A manifest as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawManifest<'a> {
    pub body: &'a [u8],
    pub signature: [u8; 64],
}

/// A certified head as it travels; `acks` is the list of its acks, its length included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawHead<'a> {
    pub manifest: RawManifest<'a>,
    pub acks: &'a [u8],
    /// The frame of its lease.
    pub lease: Option<&'a [u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RawRequest<'a> {
    Prepare {
        manifest: RawManifest<'a>,
        index: u8,
        shard: Option<&'a [u8]>,
    },
    Commit {
        head: RawHead<'a>,
    },
    Head {
        key: [u8; 32],
    },
    Shard {
        key: [u8; 32],
        version: Version,
    },
    Recall {
        key: [u8; 32],
    },
    Never {
        manifest: RawManifest<'a>,
        index: u8,
    },
    /// `nevers` is the list of the promises, its length included.
    Abort {
        manifest: RawManifest<'a>,
        nevers: &'a [u8],
    },
    /// Somebody asks a holder to sign for a link of a lease; `acks`: to ack it.
    Sign {
        head: RawHead<'a>,
        issued_at_ms: u64,
        replaced: Vec<(u8, [u8; 32])>,
        acks: bool,
    },
    Take {
        head: RawHead<'a>,
    },
    Probe,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RawResponse<'a> {
    /// The ack's bytes.
    Acked(&'a [u8]),
    NeedShard,
    Committed,
    Head {
        committed: Option<RawHead<'a>>,
        expired: Option<RawHead<'a>>,
        prepared: Vec<(RawManifest<'a>, &'a [u8])>,
    },
    Shard,
    Superseded(RawHead<'a>),
    Absent,
    Recovering,
    Busy,
    Fenced(RawHead<'a>),
    Conflict,
    Refused,
    /// The promise's bytes.
    Promised(&'a [u8]),
    Prepared(RawManifest<'a>, &'a [u8]),
    Aborted,
    Consented,
    Locked,
    Probed,
}

/// A row of table 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawPrepared<'a> {
    Held {
        manifest: RawManifest<'a>,
        index: u8,
        received_ms: u64,
    },
    /// As a holder of a lease whom the manifest does not name.
    Taken {
        manifest: RawManifest<'a>,
        index: u8,
        received_ms: u64,
    },
    Floor {
        manifest_hash: [u8; 32],
        until_ms: u64,
    },
}

/// The requests of a frame: at least one, at most [`REQUESTS_MAX`].
pub(crate) fn requests(bytes: &[u8]) -> Result<Vec<RawRequest<'_>>, FrameError> {
    let requests = whole(bytes, |reader| reader.list(request))?;
    if (1..=REQUESTS_MAX).contains(&requests.len()) { Ok(requests) } else { Err(FrameError::Malformed) }
}

/// The answers of a frame.
pub(crate) fn responses(bytes: &[u8]) -> Result<Vec<RawResponse<'_>>, FrameError> {
    whole(bytes, |reader| reader.list(response))
}

/// A certified head that is a frame of its own.
pub(crate) fn certified_head(bytes: &[u8]) -> Result<RawHead<'_>, FrameError> {
    whole(bytes, head)
}

/// A row of table 7: the manifest of a put that was begun.
pub(crate) fn intent(bytes: &[u8]) -> Result<RawManifest<'_>, FrameError> {
    whole(bytes, manifest)
}

/// A row of table 2.
pub(crate) fn prepared_row(bytes: &[u8]) -> Result<RawPrepared<'_>, FrameError> {
    whole(bytes, |reader| {
        Ok(match reader.variant(6)? {
            0 => RawPrepared::Held { manifest: manifest(reader)?, index: reader.u8()?, received_ms: reader.u64()? },
            3 => {
                let (manifest_hash, _index) = (reader.array()?, reader.u8()?);
                RawPrepared::Floor { manifest_hash, until_ms: reader.u64()? }
            }
            5 => RawPrepared::Taken { manifest: manifest(reader)?, index: reader.u8()?, received_ms: reader.u64()? },
            _ => RawPrepared::Floor { manifest_hash: reader.array()?, until_ms: reader.u64()? },
        })
    })
}

/// A row of table 3: the head, and until when it is kept.
pub(crate) fn head_row(bytes: &[u8]) -> Result<(RawHead<'_>, u64), FrameError> {
    whole(bytes, |reader| {
        let (head, _received_ms) = (head(reader)?, reader.u64()?);
        Ok((head, reader.u64()?))
    })
}

/// The key of a row of table 2.
pub(crate) fn prepared_key(key: &[u8]) -> Option<([u8; 32], Version)> {
    let (section, rest) = key.split_first_chunk::<32>()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    let (device, seq) = rest.split_first_chunk::<32>()?;
    let seq: [u8; 8] = seq.try_into().ok()?;
    Some((*section, Version { term: u64::from_be_bytes(*term), device: *device, seq: u64::from_be_bytes(seq) }))
}

/// The key of a row of table 1: section, and hash of the shard.
pub(crate) fn shard_key(key: &[u8]) -> Option<([u8; 32], [u8; 32])> {
    let (section, hash) = key.split_first_chunk::<32>()?;
    Some((*section, hash.try_into().ok()?))
}

fn whole<'a, T>(bytes: &'a [u8], read: impl FnOnce(&mut Reader<'a>) -> Result<T, FrameError>) -> Result<T, FrameError> {
    let mut reader = Reader::open(bytes)?;
    let value = read(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

fn request<'a>(reader: &mut Reader<'a>) -> Result<RawRequest<'a>, FrameError> {
    Ok(match reader.variant(11)? {
        0 => RawRequest::Prepare { manifest: manifest(reader)?, index: reader.u8()?, shard: reader.option(Reader::bytes)? },
        1 => RawRequest::Commit { head: head(reader)? },
        2 => {
            let key = reader.array()?;
            let (_fence, _with_shard) = (reader.option(head)?, boolean(reader)?);
            RawRequest::Head { key }
        }
        3 => RawRequest::Shard { key: reader.array()?, version: Version::read(reader)? },
        4 => {
            let (key, _owner): (_, [u8; 32]) = (reader.array()?, reader.array()?);
            RawRequest::Recall { key }
        }
        5 => {
            let (manifest, index) = (manifest(reader)?, reader.u8()?);
            let _order: [u8; 64] = reader.array()?;
            RawRequest::Never { manifest, index }
        }
        6 => RawRequest::Abort { manifest: manifest(reader)?, nevers: ack_list(reader)? },
        7 => {
            let (head, _index, issued_at_ms) = (head(reader)?, reader.u8()?, reader.u64()?);
            let replaced = reader.list(|reader| Ok((reader.u8()?, reader.array()?)))?;
            let (_consent, _lock) = (ack(reader)?, reader.option(Link::read)?);
            RawRequest::Sign { head, issued_at_ms, replaced, acks: false }
        }
        8 => {
            let (head, _index, link) = (head(reader)?, reader.u8()?, Link::read(reader)?);
            RawRequest::Sign { head, issued_at_ms: link.issued_at_ms, replaced: link.replaced, acks: true }
        }
        9 => {
            let (head, _index, _shard) = (head(reader)?, reader.u8()?, reader.bytes()?);
            RawRequest::Take { head }
        }
        _ => {
            let sections = reader.list(|reader| Ok((reader.array::<32>()?, Version::read(reader)?)))?;
            if sections.len() > PROBED_MAX {
                return Err(FrameError::Malformed);
            }
            RawRequest::Probe
        }
    })
}

fn response<'a>(reader: &mut Reader<'a>) -> Result<RawResponse<'a>, FrameError> {
    Ok(match reader.variant(20)? {
        0 => RawResponse::Acked(ack(reader)?),
        1 => RawResponse::NeedShard,
        2 => RawResponse::Committed,
        3 => head_answer(reader)?,
        4 => {
            shard(reader)?;
            RawResponse::Shard
        }
        5 => RawResponse::Superseded(head(reader)?),
        6 => RawResponse::Absent,
        7 => RawResponse::Recovering,
        8 => RawResponse::Busy,
        9 => RawResponse::Fenced(head(reader)?),
        10 => {
            manifest(reader)?;
            RawResponse::Conflict
        }
        11 => {
            reader.variant(14)?;
            RawResponse::Refused
        }
        12 => {
            let answer = head_answer(reader)?;
            let _fence = reader.option(head)?;
            answer
        }
        13 => RawResponse::Promised(ack(reader)?),
        14 => RawResponse::Prepared(manifest(reader)?, ack(reader)?),
        15 => RawResponse::Aborted,
        16 => {
            let (_consent, _ack) = (ack(reader)?, reader.option(ack)?);
            RawResponse::Consented
        }
        17 => {
            Link::read(reader)?;
            RawResponse::Locked
        }
        // As `Committed`; whom it names is for whoever asked.
        18 => {
            reader.list(set)?;
            RawResponse::Committed
        }
        _ => {
            let _clock_ms = reader.u64()?;
            reader.list(|reader| Ok((boolean(reader)?, boolean(reader)?)))?;
            RawResponse::Probed
        }
    })
}

fn head_answer<'a>(reader: &mut Reader<'a>) -> Result<RawResponse<'a>, FrameError> {
    let (committed, expired) = (reader.option(head)?, reader.option(head)?);
    let prepared = reader.list(|reader| Ok((manifest(reader)?, ack(reader)?)))?;
    let _shard = reader.option(shard)?;
    let _handed = reader.option(|reader| Ok((reader.list(set)?, reader.option(Link::read)?)))?;
    Ok(RawResponse::Head { committed, expired, prepared })
}

/// A holder set that may have followed another one.
fn set(reader: &mut Reader<'_>) -> Result<(), FrameError> {
    Version::read(reader)?;
    let _before_and_after: [Vec<[u8; 32]>; 2] = [reader.list(Reader::array)?, reader.list(Reader::array)?];
    let _until = (reader.u64()?, reader.u64()?);
    Ok(())
}

fn manifest<'a>(reader: &mut Reader<'a>) -> Result<RawManifest<'a>, FrameError> {
    Ok(RawManifest { body: reader.bytes()?, signature: reader.array()? })
}

fn head<'a>(reader: &mut Reader<'a>) -> Result<RawHead<'a>, FrameError> {
    let manifest = manifest(reader)?;
    let acks = ack_list(reader)?;
    Ok(RawHead { manifest, acks, lease: reader.option(Reader::bytes)? })
}

/// A list of acks, its length included.
fn ack_list<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], FrameError> {
    cut(reader, |reader| {
        for _ in 0..reader.u64()? {
            ack(reader)?;
        }
        Ok(())
    })
}

/// An ack's bytes.
fn ack<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], FrameError> {
    cut(reader, |reader| {
        let (_index, _position, _batch) = (reader.u8()?, reader.u16()?, reader.u16()?);
        let siblings = usize::try_from(reader.u64()?).ok().and_then(|count| count.checked_mul(32)).ok_or(FrameError::Malformed)?;
        reader.take(siblings)?;
        reader.take(64)?;
        Ok(())
    })
}

/// The acks of a certificate, one by one.
pub(crate) fn acks(list: &[u8]) -> Result<Vec<&[u8]>, FrameError> {
    let frame = [&[persona_foreign::frame::VERSION], list].concat();
    let lengths = whole(&frame, |reader| reader.list(|reader| ack(reader).map(<[u8]>::len)))?;
    let mut rest = &list[list.len() - lengths.iter().sum::<usize>()..];
    let mut cut = |length| {
        let (one, after) = rest.split_at(length);
        rest = after;
        one
    };
    Ok(lengths.into_iter().map(&mut cut).collect())
}

fn shard<'a>(reader: &mut Reader<'a>) -> Result<(u8, &'a [u8]), FrameError> {
    Ok((reader.u8()?, reader.bytes()?))
}

fn boolean(reader: &mut Reader<'_>) -> Result<bool, FrameError> {
    Ok(reader.option(|_| Ok(()))?.is_some()) // encoded alike: 0x00 or 0x01
}

fn cut<'a>(reader: &mut Reader<'a>, read: impl FnOnce(&mut Reader<'a>) -> Result<(), FrameError>) -> Result<&'a [u8], FrameError> {
    let before = reader.rest();
    read(reader)?;
    Ok(&before[..before.len() - reader.rest().len()])
}
