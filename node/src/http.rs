//! The control API (docs/spec/api.md): HTTP and JSON on loopback, for whoever may read the token file.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path as UrlPath, Request, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use data_encoding::BASE64;
use persona_agent::{RecoveryFile, RootSecret, recovery::KdfParams};
use persona_core::{Answer, Call, CallError};
use persona_fragments::{Class, OwnerKey, SectionKey};
use persona_mesh_proto::get::Mode;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    bench::{CLIENTS_MAX, OPERATIONS_MAX},
    client::Failure,
    clock,
    daemon::{Options, Shared},
    keystore::{AgentSecrets, Cost, KeystoreError, Passphrase, derive_key, files},
    random::OsRandom,
};

/// The largest request body: the attributes of an agent, near a section's size, with every quote and line break of theirs escaped, and a little.
const BODY_BYTES_MAX: usize = 2 * persona_fragments::SECTION_BYTES_MAX + (64 << 10);

/// The largest document: what is left of a section when its frame has its share.
pub(crate) const DOCUMENT_BYTES_MAX: usize = persona_fragments::SECTION_BYTES_MAX - 64;

/// No request waits longer than this for news.
const WAIT_S_MAX: u64 = 30;

/// Where the API is served, until it is closed.
pub(crate) struct Api {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    dir: PathBuf,
}

impl Api {
    /// Removes the files by which clients find a running node.
    pub(crate) fn close(&self) {
        for name in ["api.addr", "api.token", "node.pid"] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
    }
}

#[derive(Clone)]
struct App {
    shared: Arc<Shared>,
    token: Arc<str>,
}

/// Binds, writes the files by which clients find it, and serves.
pub(crate) async fn serve(options: &Options, shared: Arc<Shared>) -> anyhow::Result<Api> {
    let address: SocketAddr = options.api.parse().map_err(|_| {
        let detail = format!("--api {}: not an address and a port", options.api);
        Failure::new("bad-address", detail, "give one such as --api 127.0.0.1:4000; without --api the system chooses a port")
    })?;
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !loopback {
        let detail = format!("--api {address}: the control API is served on loopback only");
        return Err(Failure::new("bad-address", detail, "give --api 127.0.0.1:PORT, and reach it from elsewhere by `ssh -L`").into());
    }
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        let detail = format!("the control API cannot listen on {address}: {error}");
        Failure::new("cannot-listen", detail, "choose another port with --api; without --api the system chooses one")
    })?;
    let address = listener.local_addr()?.to_string();
    let mut token = Zeroizing::new([0; 32]);
    getrandom::fill(token.as_mut()).context("the operating system gives no randomness")?;
    let token = data_encoding::HEXLOWER.encode(token.as_slice());
    let write = |name: &str, text: &str| {
        files::replace(&options.dir.join(name), text.as_bytes())
            .with_context(|| format!("cannot write {name} in {}", options.dir.display()))
    };
    write("api.token", &format!("{token}\n"))?;
    write("node.pid", &format!("{}\n", std::process::id()))?;
    write("api.addr", &format!("{address}\n"))?;

    let app = App { shared, token: token.into() };
    let agent = Router::new()
        .route("/", get(agent_show))
        .route("/export", post(agent_export))
        .route("/recovery-written", post(recovery_written))
        .route("/personality", get(personality))
        .route("/sections/{name}", put(section_put).get(section_get))
        .route("/send", post(send))
        .route("/inbox", get(inbox))
        .route("/outbox", get(outbox))
        .route("/relationships", get(relationships));
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/peers", get(peers))
        .route("/v1/invite", post(invite))
        .route("/v1/stop", post(stop))
        .route("/v1/agents", get(agents).post(agent_create))
        .route("/v1/agents/import", post(agent_import))
        .nest("/v1/agents/{agent}", agent)
        .route("/v1/analyze", get(analyze))
        .route("/v1/certificate", get(certificate))
        .route("/v1/verdicts", get(verdicts))
        .route("/v1/envelopes", post(envelopes))
        .route("/v1/bench/storage", post(bench_storage))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "no-such-endpoint", "there is no such endpoint", OTHER_VERSION) })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", "this endpoint has no such method", OTHER_VERSION)
        })
        .layer(middleware::from_fn_with_state(app.clone(), authorize))
        .layer(middleware::map_response(as_problem))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the control API has failed: {error}");
        }
    });
    Ok(Api { address, dir: options.dir.clone() })
}

/// To whoever asks for what this version does not have.
const OTHER_VERSION: &str =
    "is the node of the same version as its client? `persona status --json` names the node's, `persona --version` the other";

/// A request's parts are refused by the framework in plain text: here that becomes a problem like every other.
async fn as_problem(response: Response) -> Response {
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    if !is_error || is_problem {
        return response;
    }
    let status = response.status();
    let said = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let detail = if said.is_empty() { format!("the request is refused with status {status}") } else { said.into_owned() };
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let hint = format!("a document has at most {DOCUMENT_BYTES_MAX} bytes: split it");
        return Problem::new(status, "too-large", detail, hint).into_response();
    }
    let title = if status.is_client_error() { "bad-request" } else { "internal" };
    Problem::new(status, title, detail, OTHER_VERSION).into_response()
}

/// The media type of errors (RFC 9457).
const PROBLEM_JSON: &str = "application/problem+json";

/// An error as `application/problem+json` (RFC 9457), with a hint.
struct Problem(Box<Details>);

struct Details {
    status: StatusCode,
    title: String,
    detail: String,
    hint: String,
    data: Value,
}

impl Problem {
    fn new(status: StatusCode, title: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(Box::new(Details { status, title: title.to_owned(), detail: detail.into(), hint: hint.into(), data: json!({}) }))
    }

    /// The hint names the command that does it right: who asks is a person at a command line, as a rule.
    fn bad_request(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail, hint)
    }

    fn internal(detail: impl Into<String>) -> Self {
        let hint = "the node's log says more: it is what `persona up` writes to stderr, and more of it with PERSONA_LOG=debug";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail, hint)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Details { status, title, detail, hint, data } = *self.0;
        let body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail, "hint": hint, "data": data});
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(PROBLEM_JSON));
        response
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let status = match &error {
            CallError::NotFound { .. } | CallError::UnknownAgent(_) => StatusCode::NOT_FOUND,
            CallError::NotTheOwner { .. } => StatusCode::FORBIDDEN,
            CallError::Unavailable { .. }
            | CallError::QuorumUnreachable { .. }
            | CallError::NotEnoughHolders { .. }
            | CallError::ClockUnsynced { .. }
            | CallError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            CallError::DataLost { .. } => StatusCode::GONE,
            CallError::Poisoned { .. } | CallError::Unreadable { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            CallError::LevelNotReached { .. } | CallError::Fenced { .. } | CallError::NameTaken(_) => StatusCode::CONFLICT,
            CallError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            CallError::BadRequest(_) => StatusCode::BAD_REQUEST,
            CallError::Refused { .. } => StatusCode::CONFLICT,
            CallError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            CallError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
            CallError::ImportUnfinished { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        let data = match &error {
            CallError::NotFound { asked, answered, .. } => json!({"asked": asked, "answered": answered}),
            CallError::NotTheOwner { agent, card } => json!({"agent": agent, "card": card}),
            CallError::Unavailable { have, need, asked, .. } => json!({"have": have, "need": need, "asked": asked}),
            CallError::QuorumUnreachable { have, need, .. }
            | CallError::DataLost { have, need, .. }
            | CallError::NotEnoughHolders { have, need, .. } => json!({"have": have, "need": need}),
            CallError::LevelNotReached { level, wanted, holders } => json!({"level": level, "wanted": wanted, "holders": holders}),
            CallError::Fenced { term } => json!({"term": term}),
            CallError::ImportUnfinished { agent, term, certified, reason } => {
                json!({"agent": agent, "term": term, "certified": certified, "reason": reason.title()})
            }
            _ => json!({}),
        };
        Self(Box::new(Details { status, title: error.title().to_owned(), detail: error.to_string(), hint: error.hint(), data }))
    }
}

type Reply = Result<Json<Value>, Problem>;

/// A JSON body; what is none is refused like every other error.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
struct In<T>(T);

/// The values behind the question mark, likewise.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
struct Asked<T>(T);

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let title = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too-large" } else { "bad-request" };
        Self::new(rejection.status(), title, rejection.body_text(), OTHER_VERSION)
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "bad-request", rejection.body_text(), OTHER_VERSION)
    }
}

async fn authorize(State(app): State<App>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
    // Compared as hashes, so that the time says nothing about the token.
    let same = given.is_some_and(|given| blake3_of(given) == blake3_of(&app.token));
    if same {
        return next.run(request).await;
    }
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "the bearer token is missing or wrong",
        "it is in the file api.token of the node's state directory",
    )
    .into_response()
}

fn blake3_of(text: &str) -> persona_fragments::Digest {
    persona_fragments::coding::content_hash(text.as_bytes())
}

fn value(serializable: impl serde::Serialize) -> Value {
    serde_json::to_value(serializable).unwrap_or_default()
}

impl App {
    /// A local agent's name, or an agent id.
    fn agent(&self, text: &str) -> Result<OwnerKey, Problem> {
        if text.starts_with("did:") && OwnerKey::from_did(text).is_none() {
            return Err(Problem::bad_request(
                format!("{text:?} is no agent id: one reads did:key:z6Mk and 44 more characters"),
                "`persona agent list` on the agent's own node shows its id",
            ));
        }
        let id = OwnerKey::from_did(text).or_else(|| self.shared.names.read().get(text).copied());
        id.ok_or_else(|| CallError::UnknownAgent(text.to_owned()).into())
    }

    /// What the core tells of agents, and whether somebody has their recovery files, which the keystore knows.
    fn agents(&self, reports: Vec<persona_core::report::AgentReport>) -> Vec<Value> {
        let without = self.shared.without_recovery();
        let with = |report: persona_core::report::AgentReport| {
            let written = !without.iter().any(|(id, _)| report.agent == id.to_did());
            let mut reply = value(report);
            reply["recovery_written"] = json!(written);
            reply
        };
        reports.into_iter().map(with).collect()
    }

    /// What an operator should do.
    fn advice(&self) -> Vec<String> {
        let recovery = self.shared.without_recovery().into_iter().map(|(_, name)| crate::daemon::recovery_advice(&name));
        self.shared.advice.read().iter().cloned().chain(recovery).collect()
    }

    async fn call(&self, call: Call) -> Result<Answer, Problem> {
        Ok(self.shared.call(call).await?)
    }
}

fn unexpected() -> Problem {
    Problem::internal("the node gave another answer than was asked for")
}

async fn status(State(app): State<App>) -> Reply {
    let Answer::Status(core) = app.call(Call::Status).await? else { return Err(unexpected()) };
    let view = app.shared.mesh.view();
    let store = app.shared.store.stats().map_err(|error| Problem::internal(error.to_string()))?;
    let gossip_peers = view.topics.iter().map(|topic| topic.peers).max().unwrap_or(0);
    let counters = value(&core.counters);
    let (node_ns, signature_ns) = app.shared.spent.nanos();
    Ok(Json(json!({
        "peer_id": core.peer_id,
        "version": env!("CARGO_PKG_VERSION"),
        "listen_addrs": view.listening,
        "announced_addrs": view.external,
        "mesh": app.shared.mesh_name,
        "admission": "open",
        "protocols": {"kad": view.kad_protocol, "fragment": view.fragment_protocol},
        "topics": view.topics.iter().map(|topic| topic.name.clone()).collect::<Vec<_>>(),
        "peers": view.peers.len(),
        "ready": core.ready,
        "alone": core.alone,
        "agents": app.agents(core.agents),
        "store": {"shards": core.shards_held, "bytes": core.shard_bytes, "sections": core.sections_held, "lost_ms": core.lost_store_ms, "file_bytes": store.file_bytes, "disk_low": core.disk_low},
        "network": {"kad_table": view.kad_peers, "gossip_peers": gossip_peers},
        "canary": core.canary,
        "clock": core.clock,
        "churn": core.churn,
        "advice": app.advice(),
        "alarms": core.alarms,
        "uptime_s": (clock::now().mono_us - app.shared.started_us) as f64 / 1e6,
        "pid": std::process::id(),
        "counters": counters,
        "disk": {"commits": store.commits, "batches": store.batches, "syncs": store.syncs, "sync_s": store.sync_time.as_secs_f64()},
        "cpu": {"node_s": node_ns as f64 / 1e9, "signatures_s": signature_ns as f64 / 1e9},
    })))
}

async fn peers(State(app): State<App>) -> Reply {
    let view = app.shared.mesh.view();
    let peers: Vec<Value> = view
        .peers
        .iter()
        .map(|peer| {
            json!({
                "peer_id": peer.peer.to_peer_id_string(),
                "address": peer.address,
                "outgoing": peer.outgoing,
                "rtt_ms": peer.rtt_micros.map(|micros| micros as f64 / 1000.0),
            })
        })
        .collect();
    Ok(Json(json!({"peers": peers})))
}

async fn invite(State(app): State<App>) -> Reply {
    let me = app.shared.mesh.me().to_peer_id_string();
    let view = app.shared.mesh.view();
    let reachable = if view.external.is_empty() { view.listening } else { view.external };
    let mut addresses: Vec<String> = reachable.iter().map(|address| format!("{address}/p2p/{me}")).collect();
    // An address that others can reach comes before loopback, which only this machine can.
    addresses.sort_by_key(|address| (address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1"), address.contains("/quic")));
    addresses.truncate(persona_bootstrap::TICKET_ADDRESSES_MAX);
    let ticket = persona_bootstrap::Ticket::new(&app.shared.mesh_name, &addresses).map_err(|error| {
        Problem::new(StatusCode::CONFLICT, "no-address", error.to_string(), "this node listens nowhere yet: see `persona status`")
    })?;
    Ok(Json(json!({"ticket": ticket.to_string(), "mesh": app.shared.mesh_name, "addresses": addresses})))
}

async fn stop(State(app): State<App>) -> Reply {
    app.shared.stop.send_replace(true);
    Ok(Json(json!({})))
}

async fn agents(State(app): State<App>) -> Reply {
    let Answer::Agents(agents) = app.call(Call::Agents).await? else { return Err(unexpected()) };
    Ok(Json(json!({"agents": app.agents(agents)})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    role: Option<String>,
    attributes: Option<String>,
    place: Option<String>,
}

/// A name that can stand in a path and on a command line.
fn check_name(name: &str) -> Result<(), Problem> {
    let sound = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if sound {
        return Ok(());
    }
    Err(Problem::bad_request(
        format!("{name:?} is no name for an agent: 1 to 32 letters, digits, '-', '_' or '.', starting with a letter or digit"),
        "choose another, such as `persona agent create ada`; what people call it can stand in its attributes",
    ))
}

/// Runs to its end even if the client goes away: an agent that lives must be in the keystore too.
async fn to_its_end(work: impl Future<Output = Reply> + Send + 'static) -> Reply {
    tokio::spawn(work).await.map_err(|error| Problem::internal(error.to_string()))?
}

async fn agent_create(State(app): State<App>, In(body): In<CreateBody>) -> Reply {
    to_its_end(create(app, body)).await
}

const ATTRIBUTES_HINT: &str = "give a JSON file, such as `persona agent create ada --attributes ada.json`; any JSON will do";

async fn create(app: App, body: CreateBody) -> Reply {
    check_name(&body.name)?;
    if let Some(attributes) = &body.attributes {
        serde_json::from_str::<serde::de::IgnoredAny>(attributes)
            .map_err(|error| Problem::bad_request(format!("the attributes are not JSON: {error}"), ATTRIBUTES_HINT))?;
    }
    let call = Call::CreateAgent {
        name: body.name,
        role: body.role,
        place: body.place.unwrap_or_else(|| app.shared.birth_place.clone()),
        attributes: body.attributes.unwrap_or_default().into_bytes(),
    };
    let Answer::Agent { agent, name, root, seed, term, .. } = app.call(call).await? else { return Err(unexpected()) };
    let recovery = keep(&app, agent, &name, &root, &seed, term).await?;
    let published = app.call(Call::Publish { agent }).await.map_err(|mut problem| {
        problem.0.hint = format!(
            "{name} is born and kept on this disk, and is put again until it is placed; `persona agent export {name} FILE` writes its recovery file"
        );
        problem
    })?;
    let Answer::Puts(sections) = published else { return Err(unexpected()) };
    Ok(Json(json!({"agent": agent.to_did(), "name": name, "recovery": BASE64.encode(recovery.as_bytes()), "sections": sections})))
}

/// Puts the secrets of an agent that was born here into the keystore, and seals its recovery file.
async fn keep(
    app: &App,
    agent: OwnerKey,
    name: &str,
    root: &Zeroizing<[u8; 32]>,
    seed: &Zeroizing<[u8; 32]>,
    term: u64,
) -> Result<String, Problem> {
    let secrets = AgentSecrets { name: name.to_owned(), agent, term, root: **root, behaviour_seed: **seed };
    let shared = Arc::clone(&app.shared);
    let root = root.clone();
    let kept = tokio::task::spawn_blocking(move || -> anyhow::Result<String> {
        shared.keystore.lock().put_born(&secrets)?;
        shared.names.write().insert(secrets.name.clone(), agent);
        recovery_file(&root, &secrets.name, &shared.passphrase)
    });
    kept.await.map_err(|error| Problem::internal(error.to_string()))?.map_err(|error| Problem::internal(error.to_string()))
}

/// Under a kilobyte that brings the agent back anywhere: its root secret and its id, sealed with a passphrase.
fn recovery_file(root: &Zeroizing<[u8; 32]>, name: &str, passphrase: &Passphrase) -> anyhow::Result<String> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).context("the operating system gives no randomness")?;
    let cost = Cost::STANDARD;
    let kdf = KdfParams { salt, m_kib: cost.memory_kib(), t: cost.passes(), p: cost.lanes() };
    let key = derive_key(passphrase, &salt, cost)?;
    Ok(RecoveryFile::seal(&RootSecret::from_bytes(**root), name, kdf, &key, &mut OsRandom).encode())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportBody {
    recovery: String,
    passphrase: String,
    name: Option<String>,
}

async fn agent_import(State(app): State<App>, In(body): In<ImportBody>) -> Reply {
    to_its_end(import(app, body)).await
}

const RECOVERY_HINT: &str = "give the file that `persona agent create` or `persona agent export` wrote: `persona agent import FILE`";

async fn import(app: App, body: ImportBody) -> Reply {
    if let Some(name) = &body.name {
        check_name(name)?;
    }
    let bytes = BASE64.decode(body.recovery.as_bytes()).map_err(|_| Problem::bad_request("`recovery` is not base64", RECOVERY_HINT))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Problem::bad_request("the recovery file is not text: was it damaged on the way?", RECOVERY_HINT))?;
    let file = RecoveryFile::decode(&text).map_err(|error| Problem::bad_request(error.to_string(), RECOVERY_HINT))?;
    let passphrase = Passphrase::new(body.passphrase);
    let opened = tokio::task::spawn_blocking(move || -> Result<_, Problem> {
        let kdf = file.kdf();
        let cost = Cost::new(kdf.m_kib, kdf.t, kdf.p).map_err(|error| Problem::bad_request(error.to_string(), RECOVERY_HINT))?;
        let key = derive_key(&passphrase, &kdf.salt, cost).map_err(|error| Problem::bad_request(error.to_string(), RECOVERY_HINT))?;
        let recovered = file.open(&key).map_err(|error| {
            Problem::new(
                StatusCode::FORBIDDEN,
                "wrong-passphrase",
                error.to_string(),
                "give the passphrase that was in force when the file was written: --passphrase-file FILE, or PERSONA_PASSPHRASE",
            )
        })?;
        Ok((recovered, passphrase))
    });
    let (recovered, _) = opened.await.map_err(|error| Problem::internal(error.to_string()))??;
    let root = Zeroizing::new(*recovered.root.expose());
    let name = Some(body.name.unwrap_or_else(|| recovered.name.clone()));
    // The keystore has it before this is answered.
    let Answer::Agent { import, .. } = app.call(Call::Import { root, name }).await? else { return Err(unexpected()) };
    Ok(Json(value(import)))
}

async fn agent_show(State(app): State<App>, UrlPath(agent): UrlPath<String>) -> Reply {
    let id = app.agent(&agent)?;
    let Answer::Agents(agents) = app.call(Call::Agents).await? else { return Err(unexpected()) };
    let did = id.to_did();
    let found = agents.into_iter().find(|agent| agent.agent == did).ok_or_else(|| Problem::from(CallError::UnknownAgent(agent)))?;
    Ok(Json(app.agents(vec![found]).remove(0)))
}

/// A client has written the recovery file that a birth or an export was answered with.
async fn recovery_written(State(app): State<App>, UrlPath(agent): UrlPath<String>) -> Reply {
    let id = app.agent(&agent)?;
    let shared = Arc::clone(&app.shared);
    let noted = tokio::task::spawn_blocking(move || shared.keystore.lock().recovery_written(&id));
    noted.await.map_err(|error| Problem::internal(error.to_string()))?.map_err(|error| match error {
        KeystoreError::NoSuchAgent(_) => CallError::UnknownAgent(agent).into(),
        error => Problem::internal(error.to_string()),
    })?;
    Ok(Json(json!({})))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ExportBody {
    passphrase: Option<String>,
}

async fn agent_export(State(app): State<App>, UrlPath(agent): UrlPath<String>, body: Bytes) -> Reply {
    let body: ExportBody = if body.is_empty() {
        ExportBody::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Problem::bad_request(format!("the body is not what it should be: {error}"), OTHER_VERSION))?
    };
    let id = app.agent(&agent)?;
    let Answer::Agent { name, root, .. } = app.call(Call::Secrets { agent: id }).await? else { return Err(unexpected()) };
    let own = body.passphrase.map(Passphrase::new);
    if own.as_ref().is_some_and(|own| own.expose().is_empty()) {
        return Err(Problem::bad_request(
            "the passphrase of a recovery file is not empty: whoever finds the file has the agent",
            "write a long one into the file that `persona agent export --passphrase-file FILE` names; without it the node's is taken",
        ));
    }
    let shared = Arc::clone(&app.shared);
    let sealed_name = name.clone();
    let sealed = tokio::task::spawn_blocking(move || recovery_file(&root, &sealed_name, own.as_ref().unwrap_or(&shared.passphrase)));
    let recovery =
        sealed.await.map_err(|error| Problem::internal(error.to_string()))?.map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Json(json!({"agent": id.to_did(), "name": name, "recovery": BASE64.encode(recovery.as_bytes())})))
}

#[derive(Deserialize)]
struct ModeQuery {
    mode: Option<String>,
}

impl ModeQuery {
    fn mode(&self) -> Result<Mode, Problem> {
        match self.mode.as_deref() {
            None | Some("regular") => Ok(Mode::Regular),
            Some("any") => Ok(Mode::Any),
            Some("atomic") => Ok(Mode::Atomic),
            Some(other) => Err(Problem::bad_request(
                format!("{other:?} is no mode: any, regular or atomic"),
                "`persona personality get --help` says what each promises; regular is what you get without",
            )),
        }
    }
}

async fn personality(State(app): State<App>, UrlPath(agent): UrlPath<String>, Asked(query): Asked<ModeQuery>) -> Reply {
    let id = app.agent(&agent)?;
    let Answer::Personality { get, name, document, attributes } = app.call(Call::Personality { agent: id, mode: query.mode()? }).await?
    else {
        return Err(unexpected());
    };
    let digest = <sha2::Sha256 as sha2::Digest>::digest(document.as_bytes());
    let mut reply = value(*get);
    reply["agent"] = json!(id.to_did());
    reply["name"] = json!(name);
    reply["personality"] = serde_json::from_str(&document).unwrap_or(Value::Null);
    reply["document_sha256"] = json!(data_encoding::HEXLOWER.encode(&digest));
    reply["document"] = json!(document);
    reply["attributes"] = if attributes.is_empty() { Value::Null } else { json!(String::from_utf8_lossy(&attributes)) };
    Ok(Json(reply))
}

#[derive(Deserialize)]
struct PutQuery {
    class: Option<String>,
    ttl_s: Option<f64>,
    renew_for_s: Option<f64>,
    level: Option<u8>,
    require_level: Option<u8>,
}

async fn section_put(
    State(app): State<App>,
    UrlPath((agent, name)): UrlPath<(String, String)>,
    Asked(query): Asked<PutQuery>,
    body: Bytes,
) -> Reply {
    let id = app.agent(&agent)?;
    let class = match query.class.as_deref() {
        None => Class::Document,
        Some(name) => Class::from_name(name).ok_or_else(|| {
            let detail = format!("{name:?} is no class: core, relationship, active or document");
            Problem::bad_request(detail, "leave --class out: `persona section put AGENT doc/NAME FILE` stores a document")
        })?,
    };
    let call = Call::PutSection {
        agent: id,
        name,
        class,
        ttl_ms: query.ttl_s.map(|seconds| (seconds.max(0.0) * 1000.0) as u64),
        renew_for_ms: query.renew_for_s.map(|seconds| (seconds.max(0.0) * 1000.0) as u64),
        level: query.level,
        require_level: query.require_level,
        content: body.to_vec(),
    };
    let Answer::Put(report) = app.call(call).await? else { return Err(unexpected()) };
    Ok(Json(value(*report)))
}

async fn section_get(State(app): State<App>, UrlPath((agent, name)): UrlPath<(String, String)>, Asked(query): Asked<ModeQuery>) -> Reply {
    let id = app.agent(&agent)?;
    let Answer::Section { get, content } = app.call(Call::GetSection { agent: id, name, mode: query.mode()? }).await? else {
        return Err(unexpected());
    };
    let mut reply = value(*get);
    reply["content"] = json!(BASE64.encode(&content));
    Ok(Json(reply))
}

#[derive(Deserialize)]
struct SectionQuery {
    key: Option<String>,
    agent: Option<String>,
    section: Option<String>,
    mode: Option<String>,
}

impl SectionQuery {
    async fn key(&self, app: &App) -> Result<SectionKey, Problem> {
        match (&self.key, &self.agent, &self.section) {
            (Some(key), None, None) => SectionKey::from_kad_key(key).ok_or_else(|| {
                let detail = format!("{key:?} is no key: /persona/ and 52 characters of lowercase base32");
                Problem::bad_request(detail, "`persona agent show AGENT` on the agent's own node shows the keys of its sections")
            }),
            (None, Some(agent), Some(section)) => {
                let id = app.agent(agent)?;
                let Answer::Agents(agents) = app.call(Call::Agents).await? else { return Err(unexpected()) };
                let did = id.to_did();
                let known = agents
                    .iter()
                    .filter(|agent| agent.agent == did)
                    .flat_map(|agent| &agent.sections)
                    .find(|known| known.name == *section)
                    .and_then(|known| SectionKey::from_kad_key(&known.kad_key));
                // Three sections have names that everybody may know.
                let public = ["card", "core", "behavior"].contains(&section.as_str()).then(|| SectionKey::derive(&id, section.as_bytes()));
                known.or(public).ok_or_else(|| {
                    Problem::new(
                        StatusCode::NOT_FOUND,
                        "not-found",
                        format!("{agent} has no section {section:?} here"),
                        "on the agent's own node `persona agent show` lists its sections; elsewhere only card, core and behavior have public names, and any section can be given by its kad_key",
                    )
                })
            }
            _ => Err(Problem::bad_request(
                "give `key`, or `agent` and `section`",
                "`persona analyze AGENT/SECTION`, such as ada/core, or `persona analyze /persona/...`",
            )),
        }
    }
}

async fn analyze(State(app): State<App>, Asked(query): Asked<SectionQuery>) -> Reply {
    let key = query.key(&app).await?;
    let mode = match &query.mode {
        Some(_) => Some(ModeQuery { mode: query.mode.clone() }.mode()?),
        None => None,
    };
    let Answer::Analysis(report) = app.call(Call::Analyze { key, mode }).await? else { return Err(unexpected()) };
    Ok(Json(value(*report)))
}

async fn certificate(State(app): State<App>, Asked(query): Asked<SectionQuery>) -> Reply {
    let key = query.key(&app).await?;
    let Answer::Certificate { key, bytes } = app.call(Call::Certificate { key }).await? else { return Err(unexpected()) };
    Ok(Json(json!({"section": query.section, "kad_key": key.to_kad_key(), "certificate": BASE64.encode(&bytes)})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SendBody {
    to: String,
    text: String,
}

async fn send(State(app): State<App>, UrlPath(agent): UrlPath<String>, In(body): In<SendBody>) -> Reply {
    let from = app.agent(&agent)?;
    let to = app.agent(&body.to)?;
    let Answer::Sent(report) = app.call(Call::Send { from, to, text: body.text }).await? else { return Err(unexpected()) };
    Ok(Json(value(report)))
}

#[derive(Deserialize)]
struct AfterQuery {
    after: Option<u64>,
    wait_s: Option<u64>,
}

/// Asks again with every piece of news, until there is something to tell or the time is over.
async fn wait_for_news<F>(app: &App, query: &AfterQuery, ask: impl Fn(u64) -> F) -> Reply
where
    F: Future<Output = Result<(Value, bool), Problem>>,
{
    let after = query.after.unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(query.wait_s.unwrap_or(0).min(WAIT_S_MAX));
    let mut news = app.shared.news.subscribe();
    loop {
        news.mark_unchanged();
        let (found, any) = ask(after).await?;
        let left = until.saturating_duration_since(Instant::now());
        if any || left.is_zero() {
            return Ok(Json(found));
        }
        let _ = tokio::time::timeout(left, news.changed()).await;
    }
}

async fn inbox(State(app): State<App>, UrlPath(agent): UrlPath<String>, Asked(query): Asked<AfterQuery>) -> Reply {
    let id = app.agent(&agent)?;
    wait_for_news(&app, &query, async |after| {
        let Answer::Inbox(report) = app.call(Call::Inbox { agent: id, after }).await? else { return Err(unexpected()) };
        Ok((value(&report), !report.messages.is_empty()))
    })
    .await
}

async fn verdicts(State(app): State<App>, Asked(query): Asked<AfterQuery>) -> Reply {
    wait_for_news(&app, &query, async |after| {
        let Answer::Verdicts(report) = app.call(Call::Verdicts { after }).await? else { return Err(unexpected()) };
        Ok((value(&report), !report.verdicts.is_empty()))
    })
    .await
}

async fn outbox(State(app): State<App>, UrlPath(agent): UrlPath<String>) -> Reply {
    let id = app.agent(&agent)?;
    let Answer::Outbox(report) = app.call(Call::Outbox { agent: id }).await? else { return Err(unexpected()) };
    Ok(Json(value(report)))
}

async fn relationships(State(app): State<App>, UrlPath(agent): UrlPath<String>) -> Reply {
    let id = app.agent(&agent)?;
    let Answer::Relationships(report) = app.call(Call::Relationships { agent: id }).await? else { return Err(unexpected()) };
    Ok(Json(value(report)))
}

async fn envelopes(State(app): State<App>, body: Bytes) -> Reply {
    app.call(Call::PublishEnvelope { bytes: body.to_vec() }).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BenchBody {
    bytes: u32,
    level: u8,
    clients: u32,
    operations: u32,
}

async fn bench_storage(State(app): State<App>, In(body): In<BenchBody>) -> Reply {
    let hint = "`persona bench storage` without options measures what docs/performance.md shows; --help has their bounds";
    if body.bytes == 0 || body.bytes as usize > DOCUMENT_BYTES_MAX || !(1..=10).contains(&body.level) {
        return Err(Problem::bad_request(format!("bytes is between 1 and {DOCUMENT_BYTES_MAX}, level between 1 and 10"), hint));
    }
    if body.clients == 0 || body.clients > CLIENTS_MAX || body.operations == 0 || body.operations > OPERATIONS_MAX {
        let detail = format!("clients is between 1 and {CLIENTS_MAX}, operations between 1 and {OPERATIONS_MAX}");
        return Err(Problem::bad_request(detail, hint));
    }
    let report = crate::bench::storage(&app.shared, body.bytes, body.level, body.clients, body.operations).await?;
    Ok(Json(report))
}

/// Where a running node's API is, from its state directory.
pub(crate) fn find(dir: &Path) -> anyhow::Result<(String, String)> {
    let read = |name: &str| {
        std::fs::read_to_string(dir.join(name))
            .map(|text| text.trim().to_owned())
            .with_context(|| format!("no node is running in {}", dir.display()))
    };
    Ok((read("api.addr")?, read("api.token")?))
}
