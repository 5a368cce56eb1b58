//! A relay that stands before a node's TCP port and records every byte in both directions.
//!
//! No capture device and no privilege are needed: whoever dials the tap is connected to the node behind it, and what passes is kept.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::error::DrillError;

/// How much a tap keeps, all connections together. When full it goes on relaying and says so: see [`WireTap::missed_bytes`].
const RECORD_BYTES_MAX: usize = 256 << 20;
/// How much is read from a connection at once, before it is recorded and passed on.
const CHUNK_BYTES: usize = 64 << 10;

/// A relay with a memory. It ends when dropped, and its connections with it.
pub struct WireTap {
    port: u16,
    record: Arc<Mutex<Record>>,
    listener: JoinHandle<()>,
}

/// What passed: one stream of bytes per direction of each connection, so that nothing is torn apart by what passed beside it.
#[derive(Default)]
struct Record {
    streams: Vec<Vec<u8>>,
    bytes: usize,
    missed: u64,
}

impl WireTap {
    /// Opens a tap on a loopback port of its own, before `target`.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn before(target: SocketAddr) -> Result<Self, DrillError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(DrillError::io("open a port for the wire tap"))?;
        let port = listener.local_addr().map_err(DrillError::io("read the wire tap's port"))?.port();
        let record = Arc::new(Mutex::new(Record::default()));
        let listener = tokio::spawn(listen(listener, target, Arc::clone(&record)));
        Ok(Self { port, record, listener })
    }

    /// The port to dial instead of the node's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What passed so far: one stream of bytes for each direction of each connection.
    pub fn streams(&self) -> Vec<Vec<u8>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).streams.clone()
    }

    /// How many bytes passed unrecorded because the record was full. A judgement about the record holds only where this is 0.
    pub fn missed_bytes(&self) -> u64 {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).missed
    }
}

impl Drop for WireTap {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(listener: TcpListener, target: SocketAddr, record: Arc<Mutex<Record>>) {
    // The set owns the connections: dropped with this task, it aborts them.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((inward, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let record = Arc::clone(&record);
        connections.spawn(async move {
            // A node that is gone closes the dialer's connection, as it would without a tap.
            let Ok(outward) = TcpStream::connect(target).await else { return };
            let _ = (inward.set_nodelay(true), outward.set_nodelay(true));
            let ((from_in, to_in), (from_out, to_out)) = (inward.into_split(), outward.into_split());
            tokio::join!(pass(from_in, to_out, &record), pass(from_out, to_in, &record));
        });
    }
}

/// Passes one direction on until it ends.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, record: &Mutex<Record>) {
    let stream = {
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        record.streams.push(Vec::new());
        record.streams.len() - 1
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(read) = from.read(&mut chunk).await {
        if read == 0 {
            break;
        }
        {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            if record.bytes + read <= RECORD_BYTES_MAX {
                record.bytes += read;
                record.streams[stream].extend_from_slice(&chunk[..read]);
            } else {
                record.missed += u64::try_from(read).unwrap_or(u64::MAX);
            }
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count_in;

    #[tokio::test]
    async fn both_directions_pass_and_are_recorded() {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap = WireTap::before(behind.local_addr().unwrap()).await.unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = behind.accept().await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(b"the answer").await.unwrap();
            heard
        });
        let mut client = TcpStream::connect(("127.0.0.1", tap.port())).await.unwrap();
        client.write_all(b"the question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!((server.await.unwrap().as_slice(), answer.as_slice()), (&b"the question"[..], &b"the answer"[..]));
        let streams = tap.streams();
        assert_eq!(streams.len(), 2);
        assert_eq!(count_in(&streams.concat(), b"question"), 1);
        assert_eq!(count_in(&streams.concat(), b"answer"), 1);
        assert_eq!(tap.missed_bytes(), 0);
    }
}
