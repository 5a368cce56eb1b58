//! What a crash leaves half done, the next start finishes or names; what a node is started with counts: real processes.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests of processes")]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use persona::store::{STORE_FILE, Store};
use persona_drill::{Api, Mesh, MeshOptions, NodeOptions, NodeProcess, agents, from_base64, text, until};
use persona_fragments::{OwnerKey, SectionKey};
use persona_mesh_proto::{PersistId, Table, Write};
use serde_json::{Value, json};

const PASSPHRASE: &str = "half done, and never forgotten";
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary that was built with this test, or another that the environment names, as in tests/e2e.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("PERSONA_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_persona").into(), PathBuf::from))
}

async fn alone(directory: &Path) -> Result<NodeProcess> {
    alone_with(directory, &[]).await
}

async fn alone_with(directory: &Path, renew_for: &[&str]) -> Result<NodeProcess> {
    let renew_for = renew_for.iter().map(|class| (*class).to_owned()).collect();
    let options = NodeOptions { renew_for, ..NodeOptions::on_loopback("unfinished", PASSPHRASE) };
    Ok(NodeProcess::start(binary(), &directory.join("node"), options).await?)
}

/// A verb of the command line, with what it prints: data, then talk.
async fn persona(node: &NodeProcess, arguments: &[&str]) -> Result<(String, String)> {
    let said = node.verb(arguments.iter().copied()).await?;
    ensure!(said.status.success(), "{arguments:?}: {}", said.stderr);
    Ok((String::from_utf8(said.stdout)?, said.stderr))
}

async fn status(node: &NodeProcess) -> Result<Value> {
    Ok(node.api()?.get("/v1/status").await?)
}

/// What a node advises about recovery files.
async fn advice(node: &NodeProcess) -> Result<Vec<String>> {
    let status = status(node).await?;
    let advice = status["advice"].as_array().context("advice")?.iter().filter_map(Value::as_str);
    Ok(advice.filter(|advice| advice.contains("recovery file")).map(str::to_owned).collect())
}

/// The state of an agent on a node, if the node knows it.
async fn state(api: &Api, agent: &str) -> Result<Option<String>, persona_drill::DrillError> {
    let status = api.get("/v1/status").await?;
    let found = status["agents"].as_array().into_iter().flatten().find(|known| known["agent"] == agent);
    Ok(found.map(|known| known["state"].as_str().unwrap_or_default().to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_birth_whose_answer_nobody_heard_asks_for_its_recovery_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut node = alone(directory.path()).await?;
    // The command line says that it has written the file.
    persona(&node, &["agent", "create", "bob"]).await?;
    ensure!(advice(&node).await?.is_empty(), "bob's recovery file is written");
    // Whoever was answered here is killed before it writes anything, and then the node is.
    node.api()?.post("/v1/agents", &json!({"name": "ada"})).await?;
    node.kill9();
    node.restart().await?;

    let asked = advice(&node).await?;
    ensure!(asked.len() == 1 && asked[0].contains("`persona agent export ada FILE`"), "{asked:?}");
    let (shown, _) = persona(&node, &["status"]).await?;
    ensure!(shown.contains("advice: nobody is known to have a recovery file of ada"), "{shown}");
    let (_, talk) = persona(&node, &["agent", "show", "ada"]).await?;
    ensure!(talk.contains("`persona agent export ada FILE`"), "{talk}");
    let (_, talk) = persona(&node, &["agent", "show", "bob"]).await?;
    ensure!(talk.is_empty(), "{talk}");
    let (shown, _) = persona(&node, &["agent", "show", "ada", "--json"]).await?;
    ensure!(serde_json::from_str::<Value>(&shown)?["recovery_written"] == false, "{shown}");

    let file = directory.path().join("ada.persona-recovery");
    persona(&node, &["agent", "export", "ada", file.to_str().context("a path")?]).await?;
    ensure!(file.exists() && advice(&node).await?.is_empty());
    node.kill9();
    node.restart().await?;
    ensure!(advice(&node).await?.is_empty(), "that is remembered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_be_taken_up_is_an_alarm_and_the_others_live() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut node = alone(directory.path()).await?;
    let dir = node.dir().to_owned();
    for name in ["ada", "eve"] {
        persona(&node, &["agent", "create", name]).await?;
    }
    let ada = text(&node.api()?.get("/v1/agents/ada").await?, "/agent")?.to_owned();
    node.stop().await?;
    let core = SectionKey::derive(&OwnerKey::from_did(&ada).context("an id")?, b"core");
    let path = dir.join(STORE_FILE);
    let lost = tokio::task::spawn_blocking(move || -> Result<bool> {
        let store = Store::open(&path, tokio::sync::mpsc::channel(16).0)?;
        let had = store.get(Table::Own, &core.0)?.is_some();
        store.submit(PersistId(1), vec![Write::remove(Table::Own, core.0)])?;
        store.close();
        Ok(had)
    });
    ensure!(lost.await??, "its core was there");

    node.restart().await?;
    let alarms = status(&node).await?["alarms"].clone();
    let alarm = alarms.as_array().into_iter().flatten().find(|alarm| alarm["kind"] == "agent-not-taken-up");
    let alarm = alarm.and_then(|alarm| alarm["text"].as_str()).with_context(|| alarms.to_string())?;
    for part in ["ada", ada.as_str(), "`persona agent import FILE`"] {
        ensure!(alarm.contains(part), "{alarm}");
    }
    let (shown, _) = persona(&node, &["status"]).await?;
    ensure!(shown.contains(&format!("alarm: {alarm}")), "{shown}");
    ensure!(state(node.api()?, &ada).await?.is_none());
    ensure!(text(&node.api()?.get("/v1/agents/eve").await?, "/state")? == "live", "the other one lives");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_is_renewed_for_as_long_as_the_node_was_started_with() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let node = alone_with(directory.path(), &["document=3h", "core=0s"]).await?;
    let file = directory.path().join("brief");
    std::fs::write(&file, "be kind")?;
    let file = file.to_str().context("a path is text")?;
    persona(&node, &["agent", "create", "ada"]).await?;
    let put = async |section: &str, more: &[&str]| -> Result<Option<f64>> {
        let (said, _) = persona(&node, &[&["section", "put", "ada", section, file, "--json"], more].concat()).await?;
        let put: Value = serde_json::from_str(&said)?;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as f64;
        Ok(put["lease_until_ms"].as_f64().map(|until_ms| (until_ms - now_ms) / 60_000.0))
    };
    let brief = put("doc/brief", &[]).await?;
    ensure!(brief.is_some_and(|minutes| (178.0..=180.1).contains(&minutes)), "the class is renewed for three hours: {brief:?}");
    let own = put("doc/own", &["--renew-for", "30m"]).await?;
    ensure!(own.is_some_and(|minutes| (28.0..=30.1).contains(&minutes)), "its own counts more than its class's: {own:?}");
    let core = put("doc/core", &["--class", "core"]).await?;
    ensure!(core.is_none(), "the class is not renewed at all: {core:?}");
    Ok(())
}

/// The old host is dead for good, and the new one is killed in the middle of the import: at the moment when its keystore has the keys, and a
/// while later. It is given no recovery file again, and comes back with the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_killed_with_its_node_is_finished_by_the_next_start() -> Result<()> {
    let mut mesh = Mesh::start(binary(), &MeshOptions::of(6, PASSPHRASE)).await?;
    let born = mesh.node(5).api()?.post("/v1/agents", &json!({"name": "ada", "attributes": "{\"tea\": \"no milk\"}"})).await?;
    let ada = text(&born, "/agent")?.to_owned();
    let recovery = from_base64(&born, "/recovery")?;
    let document = text(&mesh.node(5).api()?.get("/v1/agents/ada/personality").await?, "/document_sha256")?.to_owned();
    let (mut home, mut interrupted) = (5, 0);
    for (target, later_ms) in [(4, 0), (3, 15), (2, 60)] {
        mesh.node_mut(home).kill9();
        let api = mesh.node(target).api()?.clone();
        let keystore = mesh.node(target).dir().join("keystore");
        let before = std::fs::read(&keystore)?;
        let (file, name) = (recovery.clone(), ada.clone());
        let importing = tokio::spawn(async move { agents::import(&api, &file, PASSPHRASE, "ada").await.map(|_| name) });
        changed(keystore, before).await?;
        // The moment is the experiment, not a wait for something to happen.
        tokio::time::sleep(Duration::from_millis(later_ms)).await;
        mesh.node_mut(target).kill9();
        let answered = importing.await?.is_ok();
        mesh.node_mut(target).restart().await?;
        let at_start = state(mesh.node(target).api()?, &ada).await?;
        ensure!(at_start.is_some(), "killed {later_ms} ms after its keys were kept, and forgotten");
        interrupted += usize::from(!answered && at_start.as_deref() == Some("importing"));
        let api = mesh.node(target).api()?.clone();
        until("the agent is at home", PATIENCE, async || Ok((state(&api, &ada).await?.as_deref() == Some("live")).then_some(()))).await?;
        let read = api.get("/v1/agents/ada/personality").await?;
        ensure!(text(&read, "/document_sha256")? == document, "another personality");
        // The keystore says so too: whatever happens now, it lives here.
        mesh.node_mut(target).kill9();
        mesh.node_mut(target).restart().await?;
        ensure!(state(mesh.node(target).api()?, &ada).await?.as_deref() == Some("live"));
        mesh.node_mut(home).restart().await?;
        home = target;
    }
    ensure!(interrupted > 0, "no import was interrupted");
    Ok(())
}

/// Waits until a file has other bytes, as closely as a test can.
async fn changed(file: PathBuf, before: Vec<u8>) -> Result<()> {
    tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        while std::fs::read(&file)? == before {
            ensure!(begun.elapsed() < PATIENCE, "{} does not change", file.display());
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    })
    .await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_is_refused_before_a_passphrase_is_asked_for() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let node = alone(directory.path()).await?;
    // There is no passphrase to be had: who asked for one would say so.
    let second =
        Command::new(binary()).arg("up").arg("--dir").arg(node.dir()).env_remove("PERSONA_PASSPHRASE").stdin(Stdio::null()).output()?;
    let talk = String::from_utf8(second.stderr)?;
    ensure!(!second.status.success() && talk.contains("another persona process uses this directory"), "{talk}");
    ensure!(!talk.to_lowercase().contains("passphrase"), "{talk}");
    for name in ["keystore", "lock", "ports", "api.token"] {
        let mode = std::fs::metadata(node.dir().join(name))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{name} is {mode:o}");
    }
    Ok(())
}
