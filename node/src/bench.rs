//! The storage benchmark, inside the node: puts and gets of sections of the node's own, through the mesh (docs/performance.md).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use persona_core::{Answer, Call, CallError};
use persona_fragments::{Fields, OwnerKey, RecoveryKey, SealContext, SectionKey, Shape, Version, encode, seal};
use serde_json::{Value, json};

use crate::{daemon::Shared, random::OsRandom};

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

/// Where the time of `operations` operations went on this node, in milliseconds for each. What is left waits for holders and the network.
fn shares(before: &Account, after: &Account, operations: f64, total_ms: f64, coding_ms: f64, sealing_ms: f64) -> Value {
    let node = (after.node_ns - before.node_ns) as f64 / 1e6 / operations;
    let signatures = (after.signatures_ns - before.signatures_ns) as f64 / 1e6 / operations;
    let disk = (after.sync_s - before.sync_s) * 1e3 / operations;
    json!({
        "own_code_ms": node,
        "of_which_signatures_ms": signatures,
        "of_which_coding_ms": coding_ms,
        "of_which_sealing_ms": sealing_ms,
        "own_disk_sync_ms": disk,
        "network_and_holders_ms": (total_ms - node - disk).max(0.0),
        "share": {
            "crypto": (signatures + sealing_ms) / total_ms,
            "coding": coding_ms / total_ms,
            "disk": disk / total_ms,
            "network": ((total_ms - node - disk) / total_ms).max(0.0),
        },
        "syncs": after.syncs - before.syncs,
    })
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

/// Coding and sealing of one section of this size at this level, in milliseconds: the part of the node's own time that is neither
/// signatures nor protocol.
fn coding_and_sealing_ms(bytes: u32, level: u8) -> (f64, f64) {
    let fields = Fields::new().with("document", vec![7; bytes as usize]);
    let key = persona_fragments::EpochKey::generate(1, &mut OsRandom);
    let owner = RecoveryKey::from_bytes([1; 32]);
    let context = SealContext {
        agent: OwnerKey([2; 32]),
        section: SectionKey([3; 32]),
        content_version: Version { term: 1, device: persona_fragments::DeviceId([4; 32]), seq: 1 },
    };
    let Some(shape) = Shape::for_level(level, usize::from(Shape::holders_wanted(level))) else { return (0.0, 0.0) };
    let rounds = 20;
    let begun = Instant::now();
    let mut sealed = Vec::new();
    for _ in 0..rounds {
        sealed = seal::seal(&fields, &key, &owner, &context, &mut OsRandom).unwrap_or_default();
    }
    let sealing = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..rounds {
        if let Ok(shards) = encode(&sealed, shape) {
            std::hint::black_box(persona_fragments::coding::shard_hashes(&shards));
        }
    }
    (begun.elapsed().as_secs_f64() * 1e3 / f64::from(rounds), sealing.as_secs_f64() * 1e3 / f64::from(rounds))
}

/// Puts, then gets, `operations` of each, from `clients` tasks at once.
pub(crate) async fn storage(shared: &Arc<Shared>, bytes: u32, level: u8, clients: u32, operations: u32) -> Result<Value, CallError> {
    let (coding_ms, sealing_ms) = coding_and_sealing_ms(bytes, level);
    // One of each first: connections, lookups and caches are warm for all.
    run(shared, clients, clients, move |slot| Call::BenchPut { slot, bytes, level }).await?;
    let before = account(shared);
    let (puts, put_reports) = run(shared, clients, operations, move |slot| Call::BenchPut { slot, bytes, level }).await?;
    let between = account(shared);
    let (gets, get_reports) = run(shared, clients, operations, move |slot| Call::BenchGet { slot }).await?;
    let after = account(shared);
    let mean = |series: &Series| series.wall.as_secs_f64() * 1e3 * f64::from(clients) / series.took_us.len() as f64;
    let count = f64::from(operations);
    Ok(json!({
        "bytes": bytes,
        "level": level,
        "clients": clients,
        "put": puts.report(),
        "get": gets.report(),
        "put_time": shares(&before, &between, count, mean(&puts), coding_ms, sealing_ms),
        "get_time": shares(&between, &after, count, mean(&gets), coding_ms, 0.0),
        "last_put": put_reports.first(),
        "last_get": get_reports.first(),
    }))
}
