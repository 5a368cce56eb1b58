//! The network between the nodes of a drill: relays in this process, so that it can be cut, slowed and made lossy without any privilege.
//!
//! Every node announces the port of its relay in place of its own (`persona up --announce`), so whoever dials it comes through here. Who
//! dialed is asked of the kernel: the table of TCP sockets names the socket at the other end, and one of the drill's processes has it open.
//! So each direction of each connection is known by its two nodes, and obeys the [`Weather`] between them.
//!
//! What passes is a stream, as it is on a real network once TCP has done its part: nothing is ever missing in the middle. A cut link
//! holds bytes back, as a network does that drops every packet, and gives them when it is mended, if both ends are still there. A lost
//! packet is the pause until it is sent again. A new connection over a cut link is accepted and then silent: the dialer's handshake times out,
//! as it would without any answer. A node that is down refuses connections: its port stays taken, and nobody listens.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chacha20::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::error::DrillError;

/// How much is read at once. A chunk is what is delayed or lost as one.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks under way in one direction of one connection. When full, the sender is not read from, as with a full window.
const CHUNKS_UNDER_WAY_MAX: usize = 64;
/// Connections waiting to be accepted by one relay. Beyond it the kernel makes the dialer wait.
const BACKLOG: u32 = 256;
/// How long a lost packet is missed before it is sent again: the least that TCP waits on Linux.
const RESEND_AFTER: Duration = Duration::from_millis(200);
/// How often the kernel is asked once more whose a connection is: the dialer may not have been told yet that it is open.
const OWNER_TRIES: usize = 3;

/// What one direction between two nodes is like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Nothing gets through.
    pub cut: bool,
    /// What every byte takes at least.
    pub delay: Duration,
    /// What it takes more, at random up to this.
    pub jitter: Duration,
    /// The share of packets that are lost and sent again, 0 to 1.
    pub loss: f64,
}

/// Every direction that is not as it should be: from, to.
pub type Weather = BTreeMap<(usize, usize), Link>;

/// The relays before all nodes of a mesh. Dropped, they and their connections end.
pub struct Relays {
    shared: Arc<Shared>,
    doors: Vec<Door>,
    seed: u64,
}

struct Shared {
    weather: watch::Sender<Weather>,
    /// The process of each node that is up.
    pids: Mutex<Vec<Option<u32>>>,
    counts: Counts,
}

/// What the relays have seen.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    strangers: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
}

/// The same, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RelayCounts {
    /// Connections between nodes.
    pub connections: u64,
    /// Connections of nobody that could be found: they were closed.
    pub strangers: u64,
    /// Bytes passed on.
    pub bytes: u64,
    /// Chunks that were lost once, and sent again.
    pub lost: u64,
}

/// One node's relay.
struct Door {
    port: u16,
    /// Keeps the port from everybody else while nobody listens on it.
    _taken: TcpSocket,
    listener: Option<JoinHandle<()>>,
}

impl Relays {
    /// Takes a port for each of `nodes` nodes. All of them refuse connections until [`open`](Self::open).
    ///
    /// # Errors
    /// No port can be had.
    pub fn before(nodes: usize, seed: u64) -> Result<Self, DrillError> {
        let mut doors = Vec::new();
        for _ in 0..nodes {
            let taken = socket()?;
            taken.bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(DrillError::io("take a port for a relay"))?;
            let port = taken.local_addr().map_err(DrillError::io("read a relay's port"))?.port();
            doors.push(Door { port, _taken: taken, listener: None });
        }
        let shared = Shared { weather: watch::channel(Weather::new()).0, pids: Mutex::new(vec![None; nodes]), counts: Counts::default() };
        Ok(Self { shared: Arc::new(shared), doors, seed })
    }

    /// The port by which a node is reached.
    ///
    /// # Panics
    /// There is no such node.
    pub fn port(&self, node: usize) -> u16 {
        self.doors[node].port
    }

    /// Whether some node is reached by this port.
    pub fn is_one(&self, port: u16) -> bool {
        self.doors.iter().any(|door| door.port == port)
    }

    /// The node is up: connections to its relay are passed on to `target`, and those of process `pid` are its own.
    ///
    /// # Errors
    /// Its port cannot be listened on.
    ///
    /// # Panics
    /// There is no such node.
    pub fn open(&mut self, node: usize, pid: u32, target: u16) -> Result<(), DrillError> {
        self.close(node);
        let port = self.doors[node].port;
        let listener = socket()?;
        listener.bind((Ipv4Addr::LOCALHOST, port).into()).map_err(DrillError::io(format!("open the relay on port {port}")))?;
        let listener = listener.listen(BACKLOG).map_err(DrillError::io(format!("listen on port {port}")))?;
        self.pids()[node] = Some(pid);
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
        let seed = self.seed ^ (node as u64) << 48;
        self.doors[node].listener = Some(tokio::spawn(listen(listener, node, target, Arc::clone(&self.shared), seed)));
        Ok(())
    }

    /// The node is down: its port refuses connections. Those that are open end with the node's process.
    ///
    /// # Panics
    /// There is no such node.
    pub fn close(&mut self, node: usize) {
        self.pids()[node] = None;
        if let Some(listener) = self.doors[node].listener.take() {
            listener.abort();
        }
    }

    /// Makes the weather what it is from now on.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// What passed so far.
    pub fn counts(&self) -> RelayCounts {
        let Counts { connections, strangers, bytes, lost } = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayCounts { connections: read(connections), strangers: read(strangers), bytes: read(bytes), lost: read(lost) }
    }

    fn pids(&self) -> std::sync::MutexGuard<'_, Vec<Option<u32>>> {
        self.shared.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for door in &mut self.doors {
            if let Some(listener) = door.listener.take() {
                listener.abort();
            }
        }
    }
}

/// A socket that may be bound beside another one of this process that does not listen.
fn socket() -> Result<TcpSocket, DrillError> {
    let socket = TcpSocket::new_v4().map_err(DrillError::io("open a socket"))?;
    socket.set_reuseaddr(true).map_err(DrillError::io("set up a socket"))?;
    Ok(socket)
}

async fn listen(listener: TcpListener, to: usize, target: SocketAddr, shared: Arc<Shared>, seed: u64) {
    // The set owns the connections of this life of the node: dropped with this task, it aborts them.
    let mut connections = JoinSet::new();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while let Ok((inward, dialer)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (shared, mut seeds) = (Arc::clone(&shared), [rng.next_u64(), rng.next_u64()].into_iter());
        let port = listener.local_addr().map_or(0, |address| address.port());
        connections.spawn(async move {
            let pids = shared.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(from) = owner(dialer, port, &pids).await else {
                shared.counts.strangers.fetch_add(1, Ordering::Relaxed);
                return;
            };
            // A node that is gone closes the dialer's connection, as it would without a relay.
            let Ok(outward) = TcpStream::connect(target).await else { return };
            let _ = (inward.set_nodelay(true), outward.set_nodelay(true));
            shared.counts.connections.fetch_add(1, Ordering::Relaxed);
            let ((from_in, to_in), (from_out, to_out)) = (inward.into_split(), outward.into_split());
            let mut way = |nodes| Way { nodes, shared: &shared, rng: ChaCha8Rng::seed_from_u64(seeds.next().unwrap_or_default()) };
            let (there, back) = (way((from, to)), way((to, from)));
            // One direction may be closed and the other go on; a broken one ends both.
            let _ = tokio::try_join!(there.pass(from_in, to_out), back.pass(from_out, to_in));
        });
    }
}

/// One direction of one connection.
struct Way<'s> {
    nodes: (usize, usize),
    shared: &'s Shared,
    rng: ChaCha8Rng,
}

/// A direction ended because an end is gone.
struct Broken;

impl Way<'_> {
    /// Passes bytes on until the sender closes. What is under way then still arrives.
    async fn pass(mut self, from: OwnedReadHalf, to: OwnedWriteHalf) -> Result<(), Broken> {
        let (chunks, under_way) = mpsc::channel(CHUNKS_UNDER_WAY_MAX);
        let (shared, nodes) = (self.shared, self.nodes);
        tokio::try_join!(self.read(from, chunks), deliver(under_way, to, shared, nodes)).map(|_| ())
    }

    async fn read(&mut self, mut from: OwnedReadHalf, chunks: mpsc::Sender<(Instant, Vec<u8>)>) -> Result<(), Broken> {
        let mut due = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = from.read(&mut chunk).await.map_err(|_| Broken)?;
            chunk.truncate(read);
            // In order: a late chunk makes those behind it late.
            due = due.max(Instant::now() + self.takes());
            chunks.send((due, chunk)).await.map_err(|_| Broken)?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn takes(&mut self) -> Duration {
        let link = self.shared.weather.borrow().get(&self.nodes).copied().unwrap_or_default();
        let mut takes = link.delay + link.jitter.mul_f64(unit(&mut self.rng));
        while link.loss > 0.0 && unit(&mut self.rng) < link.loss.min(0.9) {
            self.shared.counts.lost.fetch_add(1, Ordering::Relaxed);
            takes += RESEND_AFTER;
        }
        takes
    }
}

async fn deliver(
    mut under_way: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    nodes: (usize, usize),
) -> Result<(), Broken> {
    let mut weather = shared.weather.subscribe();
    while let Some((due, chunk)) = under_way.recv().await {
        tokio::time::sleep_until(due).await;
        let open = weather.wait_for(|weather| !weather.get(&nodes).is_some_and(|link| link.cut)).await;
        open.map_err(|_| Broken)?;
        if chunk.is_empty() {
            to.shutdown().await.map_err(|_| Broken)?;
        } else {
            to.write_all(&chunk).await.map_err(|_| Broken)?;
            shared.counts.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A number from 0 to 1.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

/// The node whose process opened the connection from `dialer` to the relay on `port`.
async fn owner(dialer: SocketAddr, port: u16, pids: &[Option<u32>]) -> Option<usize> {
    for _ in 0..OWNER_TRIES {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        if let Some(inode) = inode(&table, dialer.port(), port)
            && let Some(owner) = pids.iter().position(|pid| pid.is_some_and(|pid| has_socket(pid, inode)))
        {
            return Some(owner);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// The socket from one loopback port to another in the kernel's table: `sl local_address rem_address st ... uid timeout inode`.
fn inode(table: &str, local: u16, remote: u16) -> Option<u64> {
    let ends = [format!("0100007F:{local:04X}"), format!("0100007F:{remote:04X}")];
    let mut rows = table.lines().map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.get(1) == Some(&ends[0].as_str()) && row.get(2) == Some(&ends[1].as_str()))?;
    row.get(9)?.parse().ok().filter(|inode| *inode != 0)
}

fn has_socket(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.to_str() == Some(&wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes that are both this process: whoever dials is found as the first of them.
    async fn pair() -> (Relays, TcpListener) {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut relays = Relays::before(2, 7).unwrap();
        relays.open(1, u32::MAX, behind.local_addr().unwrap().port()).unwrap();
        relays.pids()[0] = Some(std::process::id());
        (relays, behind)
    }

    async fn dial(relays: &Relays, behind: &TcpListener) -> (TcpStream, TcpStream) {
        let (dialer, accepted) = tokio::join!(TcpStream::connect(("127.0.0.1", relays.port(1))), behind.accept());
        (dialer.unwrap(), accepted.unwrap().0)
    }

    async fn hears(stream: &mut TcpStream) -> Option<u8> {
        tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await.unwrap().ok()
    }

    fn cut(from: usize, to: usize) -> Weather {
        Weather::from([((from, to), Link { cut: true, ..Link::default() })])
    }

    #[tokio::test]
    async fn a_cut_direction_holds_bytes_back_and_the_other_one_does_not() {
        let (relays, behind) = pair().await;
        let (mut dialer, mut node) = dial(&relays, &behind).await;
        dialer.write_u8(1).await.unwrap();
        assert_eq!(hears(&mut node).await, Some(1));
        relays.set(cut(0, 1));
        dialer.write_u8(2).await.unwrap();
        node.write_u8(3).await.unwrap();
        assert_eq!(hears(&mut dialer).await, Some(3), "the way back is open");
        assert!(tokio::time::timeout(Duration::from_millis(100), node.read_u8()).await.is_err());
        relays.set(Weather::new());
        assert_eq!(hears(&mut node).await, Some(2), "and what was held back arrives");
        assert_eq!((relays.counts().connections, relays.counts().strangers, relays.counts().bytes), (1, 0, 3));
    }

    #[tokio::test]
    async fn a_delayed_and_lossy_direction_keeps_its_order() {
        let (relays, behind) = pair().await;
        let (mut dialer, mut node) = dial(&relays, &behind).await;
        let delay = Duration::from_millis(30);
        relays.set(Weather::from([((0, 1), Link { delay, jitter: delay, loss: 0.3, ..Link::default() })]));
        let sent = Instant::now();
        for byte in 0..20 {
            dialer.write_u8(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        for byte in 0..20 {
            assert_eq!(hears(&mut node).await, Some(byte));
        }
        assert!(sent.elapsed() >= delay);
    }

    #[tokio::test]
    async fn a_node_that_is_down_refuses_and_its_port_stays_its_own() {
        let (mut relays, behind) = pair().await;
        let port = relays.port(1);
        let (mut dialer, node) = dial(&relays, &behind).await;
        drop(node);
        assert_eq!(hears(&mut dialer).await, None, "a closed end is closed on both sides");
        relays.close(1);
        let refused = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
        let other = TcpSocket::new_v4().unwrap();
        assert!(other.bind((Ipv4Addr::LOCALHOST, port).into()).is_err(), "nobody else gets it");
        relays.open(1, u32::MAX, behind.local_addr().unwrap().port()).unwrap();
        dial(&relays, &behind).await;
    }

    #[tokio::test]
    async fn whoever_is_no_node_is_not_passed_on() {
        let (relays, _behind) = pair().await;
        relays.pids()[0] = None;
        let mut dialer = TcpStream::connect(("127.0.0.1", relays.port(1))).await.unwrap();
        assert_eq!(hears(&mut dialer).await, None);
        assert_eq!(relays.counts().strangers, 1);
    }

    #[test]
    fn the_table_of_sockets_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n   \
            1: 0100007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 20 4 30 10 -1\n   \
            2: 0100007F:C002 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0\n";
        assert_eq!(inode(table, 0xC001, 0x1F90), Some(4242));
        assert_eq!(inode(table, 0xC002, 0x1F90), None, "a socket that is nobody's any more");
        assert_eq!(inode(table, 0x1F90, 0xC001), None);
    }
}
