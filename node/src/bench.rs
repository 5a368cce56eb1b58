//! The storage benchmark, inside the node: puts and gets of sections of the node's own, through the mesh (docs/performance.md).
//!
//! Where did the time go? A run's wall-clock time is divided without gap or overlap: at each moment this node's own code ran (of it crypto,
//! coding, and the other), or else its disk synced, or else neither: then it waited for the network and the holders. Own code, signatures and
//! syncs are measured where they are spent. Coding and sealing happen inside pure code that has no clock: they are timed apart, on content of the
//! same size. What one node cannot see it does not divide: of the waiting nobody here knows how much is network and how much a holder's work.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use persona_core::{Answer, Call, CallError};
use persona_fragments::{
    Class, Fields, Manifest, OwnerKey, PeerKey, RecoveryKey, SealContext, SectionKey, Shape, Version, coding, encode, seal,
};
use serde_json::{Value, json};

use crate::{daemon::Shared, random::OsRandom};

/// The most clients at once: each has a task and a section of its own.
pub(crate) const CLIENTS_MAX: u32 = 64;

/// The most operations in a run: their times are kept until it ends.
pub(crate) const OPERATIONS_MAX: u32 = 100_000;

/// Times of one kind of operation.
struct Series {
    took_us: Vec<f64>,
    wall: Duration,
}

impl Series {
    fn report(&self) -> Value {
        let mut sorted = self.took_us.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)] / 1000.0;
        json!({
            "operations": sorted.len(),
            "p50_ms": at(0.50),
            "p99_ms": at(0.99),
            "min_ms": sorted[0] / 1000.0,
            "max_ms": sorted[sorted.len() - 1] / 1000.0,
            "per_second": sorted.len() as f64 / self.wall.as_secs_f64(),
        })
    }
}

/// What was spent before and after, to tell where the time went.
struct Account {
    node_ns: u64,
    signatures_ns: u64,
    sync_s: f64,
    syncs: u64,
}

fn account(shared: &Shared) -> Account {
    let (node_ns, signatures_ns) = shared.spent.nanos();
    let disk = shared.store.stats().ok();
    Account {
        node_ns,
        signatures_ns,
        sync_s: disk.as_ref().map_or(0.0, |stats| stats.sync_time.as_secs_f64()),
        syncs: disk.map_or(0, |stats| stats.syncs),
    }
}

/// What the parts of one operation cost this node, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Spending {
    /// From its start to the next one's, on the wall clock: a run's time divided by its operations.
    wall_ms: f64,
    /// In the node's own code, with everything below but the disk.
    own_code_ms: f64,
    /// Of it in Ed25519.
    signatures_ms: f64,
    /// Of it in Reed-Solomon and the hashes of shards; timed apart.
    coding_ms: f64,
    /// Of it in XChaCha20-Poly1305; timed apart.
    sealing_ms: f64,
    /// In syncs of this node's disk.
    disk_ms: f64,
}

/// Parts of a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shares {
    crypto: f64,
    coding: f64,
    other: f64,
    disk: f64,
    network_and_holders: f64,
}

impl Spending {
    fn between(before: &Account, after: &Account, operations: f64, wall: Duration, apart: Apart) -> Self {
        let each = |nanos: u64| nanos as f64 / 1e6 / operations;
        Self {
            wall_ms: wall.as_secs_f64() * 1e3 / operations,
            own_code_ms: each(after.node_ns - before.node_ns),
            signatures_ms: each(after.signatures_ns - before.signatures_ns),
            coding_ms: apart.coding_ms,
            sealing_ms: apart.sealing_ms,
            disk_ms: (after.sync_s - before.sync_s) * 1e3 / operations,
        }
    }

    /// The division of the whole. What was timed apart cannot be more than the own code that it is a part of, and a sync that ran beside own
    /// code is counted only as far as there is time left: so the shares are never negative, and their sum is 1.
    fn shares(&self) -> Shares {
        let whole = self.wall_ms;
        if whole <= 0.0 {
            return Shares { crypto: 0.0, coding: 0.0, other: 0.0, disk: 0.0, network_and_holders: 1.0 };
        }
        let own = self.own_code_ms.clamp(0.0, whole);
        let crypto = (self.signatures_ms + self.sealing_ms).clamp(0.0, own);
        let coding = self.coding_ms.clamp(0.0, own - crypto);
        let disk = self.disk_ms.clamp(0.0, whole - own);
        Shares {
            crypto: crypto / whole,
            coding: coding / whole,
            other: (own - crypto - coding) / whole,
            disk: disk / whole,
            network_and_holders: (whole - own - disk) / whole,
        }
    }

    fn report(&self, syncs: u64) -> Value {
        let shares = self.shares();
        json!({
            "wall_ms": self.wall_ms,
            "own_code_ms": self.own_code_ms,
            "of_which_signatures_ms": self.signatures_ms,
            "of_which_coding_ms": self.coding_ms,
            "of_which_sealing_ms": self.sealing_ms,
            "own_disk_sync_ms": self.disk_ms,
            "network_and_holders_ms": shares.network_and_holders * self.wall_ms,
            "share": {
                "crypto": shares.crypto,
                "coding": shares.coding,
                "other": shares.other,
                "disk": shares.disk,
                "network_and_holders": shares.network_and_holders,
            },
            "syncs": syncs,
        })
    }
}

async fn run(
    shared: &Arc<Shared>,
    clients: u32,
    operations: u32,
    call: impl Fn(u32) -> Call + Clone + Send + 'static,
) -> Result<(Series, Vec<Value>), CallError> {
    let started = Instant::now();
    let mut tasks = Vec::new();
    for client in 0..clients {
        let (shared, call) = (Arc::clone(shared), call.clone());
        let share = operations / clients + u32::from(client < operations % clients);
        tasks.push(tokio::spawn(async move {
            let (mut took_us, mut last) = (Vec::new(), Value::Null);
            for _ in 0..share {
                let begun = Instant::now();
                let answer = shared.call(call(client)).await?;
                took_us.push(begun.elapsed().as_secs_f64() * 1e6);
                last = match answer {
                    Answer::Put(report) => serde_json::to_value(*report).unwrap_or_default(),
                    Answer::Section { get, .. } => serde_json::to_value(*get).unwrap_or_default(),
                    _ => Value::Null,
                };
            }
            Ok::<_, CallError>((took_us, last))
        }));
    }
    let (mut took_us, mut last) = (Vec::new(), Vec::new());
    for task in tasks {
        let (series, report) = task.await.map_err(|error| CallError::Busy(error.to_string()))??;
        took_us.extend(series);
        last.push(report);
    }
    Ok((Series { took_us, wall: started.elapsed() }, last))
}

/// What is timed apart from the run, in milliseconds for each operation.
#[derive(Clone, Copy, Debug, Default)]
struct Apart {
    coding_ms: f64,
    sealing_ms: f64,
}

/// Times `work` again and again: the median, in milliseconds, so that whoever else has the processor for a moment does not count.
fn timed<T>(mut work: impl FnMut() -> T) -> f64 {
    const ROUNDS: usize = 21;
    let mut took = [0.0; ROUNDS];
    for took in &mut took {
        let begun = Instant::now();
        std::hint::black_box(work());
        *took = begun.elapsed().as_secs_f64() * 1e3;
    }
    took.sort_by(f64::total_cmp);
    took[ROUNDS / 2]
}

/// Coding and sealing in one put and in one get of a section of this size at this level. A put seals, encodes and hashes every shard; a get
/// reconstructs (here from the last shards, parity alone where there is so much: the dearest case) and compares all hashes. A get of the
/// benchmark stops there: it opens nothing.
fn timed_apart(bytes: u32, level: u8) -> (Apart, Apart) {
    let Some(shape) = Shape::for_level(level, usize::from(Shape::holders_wanted(level))) else { return Default::default() };
    let fields = Fields::new().with("document", vec![7; bytes as usize]);
    let key = persona_fragments::EpochKey::generate(1, &mut OsRandom);
    let owner = RecoveryKey::from_bytes([1; 32]);
    let version = Version { term: 1, device: persona_fragments::DeviceId([4; 32]), seq: 1 };
    let context = SealContext { agent: OwnerKey([2; 32]), section: SectionKey([3; 32]), content_version: version };
    let mut sealed = Vec::new();
    let sealing_ms = timed(|| sealed = seal::seal(&fields, &key, &owner, &context, &mut OsRandom).unwrap_or_default());
    let mut shards = Vec::new();
    let mut shard_hashes = Vec::new();
    let encoding_ms = timed(|| {
        shards = encode(&sealed, shape).unwrap_or_default();
        shard_hashes = coding::shard_hashes(&shards);
    });
    let manifest = Manifest {
        key: context.section,
        owner: context.agent,
        name: Vec::new(),
        version,
        content_version: version,
        class: Class::Core,
        level,
        issued_at_ms: 0,
        ttl_ms: 0,
        renew_until_ms: 0,
        content_len: u32::try_from(sealed.len()).unwrap_or_default(),
        shape,
        content_hash: coding::content_hash(&sealed),
        shard_hashes,
        holders: (0..shape.n()).map(|index| PeerKey([index; 32])).collect(),
        older: Vec::new(),
    };
    let came: BTreeMap<u8, Vec<u8>> = (0..).zip(shards).skip(usize::from(shape.n() - shape.k())).collect();
    let reconstructing_ms = timed(|| coding::reconstruct(&manifest, &came).is_ok());
    (Apart { coding_ms: encoding_ms, sealing_ms }, Apart { coding_ms: reconstructing_ms, sealing_ms: 0.0 })
}

/// Puts, then gets, `operations` of each, from `clients` tasks at once.
pub(crate) async fn storage(shared: &Arc<Shared>, bytes: u32, level: u8, clients: u32, operations: u32) -> Result<Value, CallError> {
    let timed_apart = tokio::task::spawn_blocking(move || timed_apart(bytes, level)).await;
    let (put_apart, get_apart) = timed_apart.map_err(|error| CallError::Busy(error.to_string()))?;
    // One of each first: connections, lookups and caches are warm for all.
    run(shared, clients, clients, move |slot| Call::BenchPut { slot, bytes, level }).await?;
    let before = account(shared);
    let (puts, put_reports) = run(shared, clients, operations, move |slot| Call::BenchPut { slot, bytes, level }).await?;
    let between = account(shared);
    let (gets, get_reports) = run(shared, clients, operations, move |slot| Call::BenchGet { slot }).await?;
    let after = account(shared);
    let count = f64::from(operations);
    let put_time = Spending::between(&before, &between, count, puts.wall, put_apart);
    let get_time = Spending::between(&between, &after, count, gets.wall, get_apart);
    Ok(json!({
        "bytes": bytes,
        "level": level,
        "clients": clients,
        "put": puts.report(),
        "get": gets.report(),
        "put_time": put_time.report(between.syncs - before.syncs),
        "get_time": get_time.report(after.syncs - between.syncs),
        "last_put": put_reports.first(),
        "last_get": get_reports.first(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUT: Spending = Spending { wall_ms: 16.0, own_code_ms: 2.0, signatures_ms: 0.75, coding_ms: 0.5, sealing_ms: 0.25, disk_ms: 1.0 };

    #[test]
    fn the_shares_are_of_one_whole() {
        let expected =
            Shares { crypto: 1.0 / 16.0, coding: 0.5 / 16.0, other: 0.5 / 16.0, disk: 1.0 / 16.0, network_and_holders: 13.0 / 16.0 };
        assert_eq!(PUT.shares(), expected);
    }

    #[test]
    fn their_sum_is_one_whatever_was_measured() {
        let cases = [
            PUT,
            Spending::default(),
            // Timed apart on a quiet core, and more than the own code that it is a part of.
            Spending { coding_ms: 3.0, ..PUT },
            Spending { signatures_ms: 9.0, ..PUT },
            // A disk that synced all the time, beside own code.
            Spending { disk_ms: 16.0, ..PUT },
            Spending { own_code_ms: 17.0, ..PUT },
        ];
        for spending in cases {
            let Shares { crypto, coding, other, disk, network_and_holders } = spending.shares();
            let all = [crypto, coding, other, disk, network_and_holders];
            assert!(all.iter().all(|share| (0.0..=1.0).contains(share)), "{spending:?}: {all:?}");
            assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{spending:?}: {all:?}");
        }
    }

    #[test]
    fn what_is_timed_apart_really_works() {
        let (put, get) = timed_apart(16 << 10, 5);
        assert!(put.coding_ms > 0.0 && put.sealing_ms > 0.0 && get.coding_ms > 0.0);
        assert!(get.coding_ms > 0.0 && get.sealing_ms == 0.0, "a get of the benchmark opens nothing");
    }
}
