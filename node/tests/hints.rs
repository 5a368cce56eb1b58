//! Whatever a user does wrong, he is told what to do next: each verb with a wrong argument, for an agent that nobody knows, and without a node.
//!
//! Real processes: every failure is looked at as a program would (`--json`: one object with a title, a detail and a hint on stdout, an exit status
//! that is not 0) and as a person would (`error: ` and `hint: ` on stderr).
#![allow(clippy::disallowed_methods, reason = "tests of processes and files")]

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use persona_drill::{Api, ApiError, NodeOptions, NodeProcess, Problem};
use persona_fragments::{Ed25519Signer, OwnerKey, Signer as _};
use serde_json::{Value, json};

const PERSONA: &str = env!("CARGO_BIN_EXE_persona");
const PASSPHRASE: &str = "for the length of a test";

fn persona(args: &[&str], passphrase: Option<&str>) -> Output {
    let mut command = Command::new(PERSONA);
    command.args(args).stdin(Stdio::null()).env_remove("PERSONA_DIR").env_remove("PERSONA_PASSPHRASE").env("PERSONA_LOG", "error");
    if let Some(passphrase) = passphrase {
        command.env("PERSONA_PASSPHRASE", passphrase);
    }
    command.output().expect("the binary runs")
}

/// The error of a command line that must fail with `status`, after all that can be said of every error was checked.
fn failure(args: &[&str], passphrase: Option<&str>, status: i32) -> Value {
    let whole = [args, &["--json"]].concat();
    let Output { status: ended, stdout, stderr } = persona(&whole, passphrase);
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    let context = format!("persona {}\n{stdout}{stderr}", whole.join(" "));
    assert_eq!(ended.code(), Some(status), "{context}");
    assert_eq!(stdout.lines().count(), 1, "one object, on one line: {context}");
    let told: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {context}"));
    assert!(told.as_object().is_some_and(|told| told.len() == 1), "{context}");
    let error = told["error"].clone();
    for field in ["title", "detail", "hint"] {
        assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "no {field}: {context}");
    }
    let (title, hint) = (error["title"].as_str().unwrap(), error["hint"].as_str().unwrap());
    assert!(title.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{context}");
    assert!(error["data"].is_object(), "{context}");
    assert!(!hint.contains("docs/spec"), "a hint is a step, and no page to read: {context}");
    assert!(stderr.contains("error: ") && stderr.contains(&format!("hint: {hint}")), "{context}");
    error
}

/// The verbs that ask a node, each with arguments that are right in themselves; `FILE` exists.
const ASKING: [&str; 17] = [
    "invite",
    "status",
    "peers",
    "stop",
    "agent create nobody",
    "agent list",
    "agent show nobody",
    "agent export nobody NEW",
    "agent import FILE",
    "personality get nobody",
    "section put nobody doc/notes FILE",
    "section get nobody doc/notes",
    "certificate export nobody/core",
    "analyze nobody/core",
    "send nobody nobody hello",
    "inbox nobody",
    "bench storage",
];

fn words<'a>(line: &'a str, file: &'a str, new: &'a str) -> Vec<&'a str> {
    line.split(' ')
        .map(|word| match word {
            "FILE" => file,
            "NEW" => new,
            word => word,
        })
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a scratch path is text")
}

#[test]
fn without_a_node_every_verb_says_how_to_start_one() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, new) = (scratch.path().join("file"), scratch.path().join("new"));
    std::fs::write(&file, "no recovery file").unwrap();
    for line in ASKING {
        let mut args = words(line, text(&file), text(&new));
        args.extend(["--dir", text(scratch.path())]);
        let error = failure(&args, Some(PASSPHRASE), 1);
        assert_eq!(error["title"], "no-node", "{line}");
        assert!(error["hint"].as_str().unwrap().contains("persona up"), "{line}: {error}");
    }
    assert!(!new.exists());
    let error = failure(&["certificate", "verify", text(&file)], None, 1);
    assert_eq!(error["title"], "invalid-certificate");
    assert_eq!(failure(&["certificate", "verify", text(&new)], None, 1)["title"], "no-such-file");
}

#[test]
fn wrong_usage_is_an_error_like_every_other_with_status_2() {
    for line in [
        "",
        "frobnicate",
        "agent",
        "up --listen",
        "up --renew-for core",
        "up --renew-for core=soon",
        "up --renew-for core=31d",
        "up --renew-for soul=1d",
        "invite surplus",
        "status --what",
        "peers surplus",
        "stop surplus",
        "agent create",
        "agent list surplus",
        "agent show",
        "agent export ada",
        "agent import",
        "personality get ada --mode fresh",
        "section put ada doc/x",
        "section put ada doc/x file --class secret",
        "section put ada doc/x file --level 11",
        "section get ada",
        "certificate export",
        "certificate verify",
        "analyze",
        "send ada bob",
        "inbox ada --after soon",
        "bench storage --nodes 14 --clients 0",
        "lab",
        "lab score",
        "lab score file.csv --population everybody",
        "demo --nodes many",
    ] {
        let error = failure(&line.split_whitespace().collect::<Vec<_>>(), None, 2);
        assert_eq!(error["title"], "usage");
        let hint = error["hint"].as_str().unwrap();
        let verb = line.split(' ').next().filter(|verb| !["", "frobnicate"].contains(verb)).unwrap_or("--help");
        assert!(hint.starts_with("`persona ") && hint.contains(verb) && hint.contains("--help"), "{line}: {hint}");
    }
    for line in ["--help", "agent --help", "agent create --help", "--version", "help section"] {
        let output = persona(&line.split(' ').collect::<Vec<_>>(), None);
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn a_demo_that_cannot_be_is_refused_within_a_second() {
    let scratch = tempfile::tempdir().unwrap();
    let (bad, missing) = (scratch.path().join("bad.json"), scratch.path().join("missing.json"));
    std::fs::write(&bad, "{\"name\": ").unwrap();
    let wishes = [
        vec!["--attributes", text(&bad)],
        vec!["--attributes", text(&missing)],
        vec!["--nodes", "3"],
        vec!["--nodes", "14", "--kill", "12"],
    ];
    for wish in wishes {
        let begun = Instant::now();
        let error = failure(&[&["demo"], wish.as_slice()].concat(), None, 1);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(error["title"], "bad-request", "{error}");
    }
}

/// And what is right is told, to people and to programs.
#[test]
fn labelled_data_are_scored_or_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, odd, missing) = (scratch.path().join("data.csv"), scratch.path().join("odd.csv"), scratch.path().join("missing.csv"));
    let line = |subject: u32, rep: u32| format!("s{subject},1,{rep},{}.{},{}\n", subject, rep * 7 % 10, 3 + (rep * 3 + subject) % 4);
    let lines = (0..5).flat_map(|subject| (1..=12).map(move |rep| line(subject, rep)));
    let data = "subject,session,rep,hold,gap\n".to_owned() + &lines.collect::<String>();
    std::fs::write(&file, &data).unwrap();
    std::fs::write(&odd, data.replace("s3,1,4", "s3,1,four,")).unwrap();
    let score = ["lab", "score", text(&file), "--enrol", "3", "--genuine-from", "8"];
    let output = persona(&[&score[..], &["--json"]].concat(), None);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!((&report["subjects"], &report["features"], &report["population"]), (&json!(5), &json!(2), &json!("leave-one-out")));
    assert!(report["eer_mean"].as_f64().is_some_and(|rate| rate < 0.2), "{report}");
    assert_eq!(report["per_subject"][0]["impostor"], 20);
    let told = String::from_utf8(persona(&score, None).stdout).unwrap();
    assert!(told.contains("equal error rate") && told.contains("5 subjects, 2 features"), "{told}");
    for (words, title) in [
        (["lab", "score", text(&file)].as_slice(), "bad-request"),
        (&["lab", "score", text(&odd)], "bad-data"),
        (&["lab", "score", text(&missing)], "no-such-file"),
        (&["lab", "score", text(scratch.path())], "bad-path"),
    ] {
        let error = failure(words, None, 1);
        assert_eq!(error["title"], title, "{error}");
    }
}

/// One node, and everything that can be asked wrongly of it; then everything that keeps a second from starting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_node_says_what_to_do_next() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("node");
    let options = NodeOptions::on_loopback("hints", PASSPHRASE).tcp_only();
    let mut node = NodeProcess::start(Path::new(PERSONA), &dir, options).await.unwrap();
    let made = node.verb(["agent", "create", "ada", "--json"]).await.unwrap().json().unwrap();
    let ada = made["agent"].as_str().unwrap().to_owned();

    asked_wrongly(&dir, scratch.path());
    foreign_agents(node.api().unwrap(), &ada).await;
    not_even_a_request(node.api().unwrap()).await;

    let shown = node.verb(["agent", "show", "ada"]).await.unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("at its last put") && shown.contains("`persona analyze ada/core`"), "{shown}");

    let (mut held, port) = (vec!["--dir", text(&dir)], TcpListener::bind("127.0.0.1:0").unwrap());
    held.splice(0..0, ["up"]);
    let error = failure(&held, Some(PASSPHRASE), 1);
    assert_eq!(error["title"], "directory-in-use", "{error}");
    node.stop().await.unwrap();
    up_fails(&dir, scratch.path(), &port);
}

/// What a node refuses, by way of the verbs.
fn asked_wrongly(dir: &Path, scratch: &Path) {
    let (file, new, empty) = (scratch.join("file"), scratch.join("new"), scratch.join("empty"));
    std::fs::write(&file, "{\"name\": ").unwrap();
    std::fs::write(&empty, "").unwrap();
    let ask = |line: &str, title: &str| {
        let mut args = words(line, text(&file), text(&new));
        args.extend(["--dir", text(dir)]);
        let error = failure(&args, Some(PASSPHRASE), 1);
        assert_eq!(error["title"], title, "{line}: {error}");
        error
    };
    for line in ASKING.iter().filter(|line| line.contains("nobody") && !line.contains("create")) {
        ask(line, "unknown-agent");
    }
    ask("agent create ada --recovery NEW", "name-taken");
    ask("agent create a/b", "bad-request");
    ask("agent create bob --attributes FILE", "bad-request");
    ask("agent create bob --attributes NEW", "no-such-file");
    ask("agent create bob --recovery FILE", "exists");
    ask("agent export ada FILE", "exists");
    ask("agent export ada NEW --passphrase-file NEW", "no-such-file");
    ask("agent import NEW", "no-such-file");
    ask("agent import FILE", "bad-request");
    ask("agent show did:key:nonsense", "bad-request");
    ask("section put ada notes FILE", "bad-request");
    ask("section put ada doc/notes NEW", "no-such-file");
    ask("section put ada doc/notes -", "bad-request");
    ask("section put ada doc/notes FILE --ttl 0", "bad-request");
    let error = ask("section put ada doc/notes FILE --require-level 3", "level-not-reached");
    assert_eq!(error["data"]["wanted"], 3);
    ask("section get ada doc/none", "not-found");
    ask("personality get ada --attributes", "no-attributes");
    ask("analyze ada", "bad-target");
    ask("analyze ada/none", "not-found");
    ask("analyze /persona/nonsense", "bad-request");
    ask("certificate export ada/none", "not-found");
    ask("send ada nobody hello", "unknown-agent");
    assert!(!new.exists(), "a refused verb writes nothing");
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"name\": ", "a recovery file is never replaced");
}

/// An id is not enough: what only an agent's own node has is refused for an agent that lives elsewhere, in every route alike.
async fn foreign_agents(api: &Api, ada: &str) {
    let stranger = OwnerKey(Ed25519Signer::from_seed(&[7; 32]).public_key()).to_did();
    let path = |rest: &str| format!("/v1/agents/{}{rest}", persona_drill::path_segment(&stranger));
    for rest in ["", "/inbox", "/outbox", "/relationships"] {
        assert_eq!(problem(api.get(&path(rest)).await).title, "unknown-agent", "{rest}");
    }
    assert_eq!(problem(api.post(&path("/send"), &json!({"to": ada, "text": "hello"})).await).title, "unknown-agent");
    assert_eq!(problem(api.post(&path("/export"), &json!({})).await).title, "unknown-agent");
    assert_eq!(problem(api.put_bytes(&path("/sections/doc%2Fnotes"), b"hello".to_vec()).await).title, "unknown-agent");
    // What is in the mesh is looked for there, and the answer names the rule.
    for rest in ["/personality", "/sections/core"] {
        assert_eq!(problem(api.get(&path(rest)).await).title, "not-the-owner", "{rest}");
    }
    // The agent that does live here has an outbox, and nothing in it.
    let outbox = api.get(&format!("/v1/agents/{}/outbox", persona_drill::path_segment(ada))).await.unwrap();
    assert_eq!(outbox, json!({"messages": []}));
}

/// What is refused before the API has even looked at it is a problem too.
async fn not_even_a_request(api: &Api) {
    assert_eq!(problem(api.get("/v1/agents/%FF/inbox").await).status, 400);
    assert_eq!(problem(api.post("/v1/agents", &json!({"nom": "ada"})).await).title, "bad-request");
    assert_eq!(problem(api.post("/v1/agents/ada/export", &json!({"word": "x"})).await).title, "bad-request");
    assert_eq!(problem(api.post("/v1/agents/ada/export", &json!({"passphrase": ""})).await).title, "bad-request");
    assert_eq!(
        problem(api.post("/v1/bench/storage", &json!({"bytes": 1, "level": 5, "clients": 65, "operations": 1})).await).title,
        "bad-request"
    );
    assert_eq!(problem(api.get("/v1/nothing").await).title, "no-such-endpoint");
    assert_eq!(problem(api.get("/v1/stop").await).title, "no-such-method");
    assert_eq!(problem(api.get("/v1/agents/ada/inbox?after=soon").await).title, "bad-request");
    let large = vec![7; 1 << 20];
    assert_eq!(problem(api.put_bytes("/v1/agents/ada/sections/doc%2Flarge", large).await).title, "too-large");
}

fn problem(answer: Result<Value, ApiError>) -> Problem {
    match answer {
        Err(ApiError::Problem(problem)) => {
            assert!(!problem.hint.is_empty() && !problem.detail.is_empty() && problem.data.is_object(), "{problem:?}");
            assert!(!problem.hint.contains("docs/spec"), "{problem:?}");
            *problem
        }
        other => panic!("this should have been refused: {other:?}"),
    }
}

/// What keeps a node from starting on a directory that has one, while a port is taken.
fn up_fails(dir: &Path, scratch: &Path, taken: &TcpListener) {
    let port = taken.local_addr().unwrap().port();
    let (listen, api) = (format!("/ip4/127.0.0.1/tcp/{port}"), format!("127.0.0.1:{port}"));
    let missing = scratch.join("missing");
    let latin = scratch.join("latin");
    std::fs::write(&latin, b"caf\xe9\n").unwrap();
    let cases: [(&[&str], Option<&str>, &str); 15] = [
        (&["--listen", &listen], Some(PASSPHRASE), "cannot-listen"),
        (&["--api", &api], Some(PASSPHRASE), "cannot-listen"),
        (&["--api", "everywhere"], Some(PASSPHRASE), "bad-address"),
        (&["--api", "0.0.0.0:0"], Some(PASSPHRASE), "bad-address"),
        (&["--listen", "nowhere"], Some(PASSPHRASE), "bad-address"),
        (&["--bootstrap", "nowhere"], Some(PASSPHRASE), "bad-address"),
        (&["--join", "persona:abc"], Some(PASSPHRASE), "bad-ticket"),
        (&["--join", "/ip4/127.0.0.1/tcp/1"], Some(PASSPHRASE), "bad-ticket"),
        (&["--mesh", "My Mesh"], Some(PASSPHRASE), "bad-request"),
        (&["--renew-for", "core=7d", "--renew-for", "core=1d"], Some(PASSPHRASE), "bad-request"),
        (&[], Some("another passphrase"), "wrong-passphrase"),
        (&[], None, "no-passphrase"),
        (&["--passphrase-file", text(&missing)], None, "no-such-file"),
        (&["--passphrase-file", text(&latin)], None, "bad-passphrase"),
        (&["--passphrase-file", text(scratch)], None, "bad-path"),
    ];
    for (args, passphrase, title) in cases {
        let quiet = if args.contains(&"--listen") { vec![] } else { vec!["--listen", "/ip4/127.0.0.1/tcp/0"] };
        let error = failure(&[&["up", "--dir", text(dir)], args, &quiet].concat(), passphrase, 1);
        assert_eq!(error["title"], title, "{args:?}: {error}");
    }
    // A damaged keystore or store, and a directory that is a file.
    let damage = |name: &str, bytes: &[u8], title: &str| {
        let path = dir.join(name);
        let whole = std::fs::read(&path).unwrap_or_default();
        std::fs::write(&path, bytes).unwrap();
        let error = failure(&["up", "--dir", text(dir), "--listen", "/ip4/127.0.0.1/tcp/0"], Some(PASSPHRASE), 1);
        assert_eq!(error["title"], title, "{name}: {error}");
        std::fs::write(&path, whole).unwrap();
    };
    damage("keystore", b"this is no keystore", "damaged");
    damage("store.redb", &[7; 8192], "damaged");
    failure(&["up", "--dir", text(&scratch.join("file"))], Some(PASSPHRASE), 1);
}
