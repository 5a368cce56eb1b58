//! Going, and coming back: what a mesh and its agents are after their processes were killed, their clients left, or two nodes wanted the
//! same agent.
//!
//! Like `real.rs`: real processes, one mesh at a time, judged through the verbs and the control API, and nothing sleeps for luck. Every
//! mesh is searched for errors in its logs at the end: an error wakes someone, and none of these stories should.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "these tests own processes, files and the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use persona::keystore::{Keystore, Passphrase};
use persona_drill::agents::{Agent, PATIENCE};
use persona_drill::{Api, ApiError, Mesh, MeshOptions, NodeProcess, Spoken, flag, from_base64, list, number, path_segment, text, until};
use persona_e2e::{persona_binary, workspace};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Seals the keystores and recovery files of these tests.
const PASSPHRASE: &str = "eel-grass-passphrase-8830";
/// What a document is put as, beside the sections that every agent has.
const NOTES: &str = "doc/notes";
/// Fully grown, n, k and f are these (docs/guarantees.md): of `card`, `core` and `index`, and of a document.
const CORE_SHAPE: [u64; 3] = [10, 3, 3];
const DOCUMENT_SHAPE: [u64; 3] = [7, 3, 2];

/// Held by whoever has a mesh.
async fn alone_on_this_machine() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// An agent is born and given a document where nobody else is. Thirteen nodes join: without another put, everything it is spreads to full
/// level. Its host is killed and restarts with nobody's ticket: nothing is held by fewer than before. Then the host and three holders of the
/// core die for good, and the agent comes back elsewhere, the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_alone_spreads_and_a_restarted_host_takes_nothing_back() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let options = MeshOptions::of(1, PASSPHRASE);
    let mut mesh = Mesh::start(persona_binary(), &options).await?;
    let ada = born(&mesh, 0, "ada").await?;
    let notes = b"put before anybody came".to_vec();
    let put = put_notes(&mesh, 0, "ada", &notes).await?.json().context("section put")?;
    // Its own disk is the one holder, and may not be lost: that is level 1 (docs/spec/quorum.md#shape).
    ensure!(number(&put, "/level")? == 1 && number(&put, "/n")? == 1 && !flag(&put, "/byzantine_tolerant")?, "{put}");
    ensure!(list(&put, "/holders")? == [Value::from(mesh.node(0).peer_id()?)], "alone, its own disk is all there is: {put}");
    let status = mesh.node(0).api()?.get("/v1/status").await?;
    ensure!(flag(&status, "/alone")? && flag(&status, "/ready")?, "{status}");
    let contents = contents_of(&mesh, 0, &ada).await?;

    mesh.grow(persona_binary(), &options.node, 13).await?;
    let spread = fully_held(&mesh, 0, &ada).await.context("after the others joined")?;
    ensure!(spread.len() == 4, "card, core, index and the document: {spread:?}");
    for (name, held) in &spread {
        let shape = if name == NOTES { DOCUMENT_SHAPE } else { CORE_SHAPE };
        ensure!([held.n, held.k, held.f] == shape, "{name} is held as {held:?}");
        // The index notes the versions of the other sections; what the owner said is what it was.
        let said = contents.get(name).context("a section that was not there")?;
        ensure!(name == "index" || held.content_version == *said, "{name} was put again: {held:?}, and was {said}");
    }

    let before = versions_of(&mesh, 0, &ada).await?;
    mesh.kill9(&[0]);
    // It returns to a room in which nearly everybody stands still: what others hold may not be talked down to the few who answer.
    let still = 5..mesh.len();
    for node in still.clone() {
        mesh.node(node).pause()?;
    }
    let returned = mesh.restart(&[0]).await;
    let tried = match &returned {
        Ok(()) => puts_something(mesh.node(0), &before, &ada).await,
        Err(_) => Ok(()),
    };
    for node in still {
        mesh.node(node).resume()?;
    }
    returned?;
    tried.context("the host's first put after its restart")?;
    mesh.wait_ready().await?;
    let lowest = renewed_since(&mesh, 0, &ada, &before).await.context("after the host's restart")?;
    let again = fully_held(&mesh, 0, &ada).await.context("after the host's restart")?;
    for (name, held) in &again {
        let was = spread.get(name).with_context(|| format!("{name} is new"))?;
        ensure!(([held.n, held.k, held.f]) == [was.n, was.k, was.f] && held.level >= was.level, "{name}: {held:?}, and was {was:?}");
        ensure!(lowest.get(name) >= Some(&held.asked), "{name} was talked down for a while: {lowest:?}, and {} was asked", held.asked);
    }
    ensure!(again.len() == spread.len(), "sections were lost: {again:?}");

    // The document bears the loss of two: of the core's holders no third one of its own is chosen.
    let (core, document) = (&again["core"].holders, &again[NOTES].holders);
    let (both, only): (Vec<usize>, Vec<usize>) = core.iter().partition(|holder| document.contains(holder));
    let mut victims: Vec<usize> = both.into_iter().take(2).chain(only).take(3).collect();
    ensure!(victims.len() == 3 && !core.contains(&0), "the core is held by {core:?}, the document by {document:?}");
    victims.push(0);
    mesh.kill9(&victims);
    let home = (0..mesh.len()).rev().find(|node| !victims.contains(node)).context("nobody is left")?;
    let file = recovery_file(&mesh, &ada)?;
    let imported = mesh.node(home).verb(["agent", "import", &file, "--json"]).await?.json().context("agent import")?;
    ensure!(flag(&imported, "/complete")? && text(&imported, "/mode")? != "any", "at most f holders are lost: {imported}");
    is_itself(mesh.node(home).api()?, &ada).await?;
    ensure!(notes_of(mesh.node(home).api()?, &ada).await? == notes, "the document came back as another");
    no_errors_in_logs(&mesh)
}

/// A holder comes back with its identity and without its store: it says so, and again after a restart, and what it held is read all the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_lost_its_store_says_so() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(5, PASSPHRASE)).await?;
    let ada = born(&mesh, 0, "ada").await?;
    let before = mesh.node(3).api()?.get("/v1/status").await?;
    ensure!(before.pointer("/store/lost_ms") == Some(&Value::Null), "{before}");
    mesh.kill9(&[3]);
    std::fs::remove_file(mesh.node(3).dir().join("store.redb")).context("its store")?;
    for _ in 0..2 {
        mesh.restart(&[3]).await?;
        let status = mesh.node(3).api()?.get("/v1/status").await?;
        ensure!(number(&status, "/store/lost_ms")? > 0, "{status}");
        let alarms = list(&status, "/alarms")?;
        ensure!(alarms.iter().any(|alarm| alarm.pointer("/kind") == Some(&Value::from("store-lost"))), "{status}");
        is_itself(mesh.node(0).api()?, &ada).await?;
        mesh.kill9(&[3]);
    }
    no_errors_in_logs(&mesh)
}

/// A document that lives for 40 s is kept by its holders when its owner is killed, for longer than two of its lives, though one of them is
/// killed as well; and its owner finds it and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_outlives_its_owner_by_its_lease() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(10, PASSPHRASE)).await?;
    let ada = born(&mesh, 0, "ada").await?;
    let file = mesh.scratch().join("notes");
    std::fs::write(&file, b"kept by its holders")?;
    let file = file.to_str().context("a scratch path is text")?;
    let put = mesh.node(0).verb(["section", "put", "ada", NOTES, file, "--ttl", "40", "--renew-for", "1h", "--json"]).await?;
    let put = put.json().context("section put")?;
    ensure!(number(&put, "/lease_until_ms")? > 0, "{put}");
    let analyze = format!("/v1/analyze?key={}", path_segment(text(&put, "/kad_key")?));
    let version = text(&put, "/version")?.to_owned();
    // Somebody who reads, and a holder who will not be there: neither is the owner.
    let holders = list(&put, "/holders")?.to_vec();
    let peer = |node: usize| mesh.node(node).peer_id().map(Value::from);
    let victim = (1..9).find(|node| peer(*node).is_ok_and(|peer| holders.contains(&peer))).context("a holder")?;
    mesh.kill9(&[0, victim]);
    let killed = std::time::Instant::now();
    let kept = until("two lifetimes to pass", Duration::from_secs(150), async || {
        let now = mesh.node(9).api()?.get(&analyze).await?;
        let over = !flag(&now, "/readable/regular")? || killed.elapsed() > Duration::from_secs(90);
        Ok(over.then_some(now))
    })
    .await?;
    ensure!(flag(&kept, "/readable/regular")?, "{:?} after its owner was killed: {kept}", killed.elapsed());
    ensure!(text(&kept, "/version")?.split('.').next() == version.split('.').next(), "nobody else wrote it: {kept}");
    mesh.restart(&[0]).await?;
    ensure!(notes_of(mesh.node(0).api()?, &ada).await? == b"kept by its holders");
    let last = text(&kept, "/version")?.to_owned();
    until("the owner's next version", PATIENCE, async || {
        let now = mesh.node(9).api()?.get(&analyze).await?;
        Ok((text(&now, "/version")? != last && flag(&now, "/readable/regular")?).then_some(()))
    })
    .await?;
    no_errors_in_logs(&mesh)
}

/// A holder of the core dies for good while the agent's host runs: within a minute as many as it wants have it again, the dead one not
/// among them, and the host knew how it stood meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_holder_is_replaced_within_a_minute() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(14, PASSPHRASE)).await?;
    let ada = born(&mesh, 0, "ada").await?;
    let before = fully_held(&mesh, 0, &ada).await.context("before anybody died")?;
    let judge = mesh.len() - 1;
    let victim = *before["core"].holders.iter().find(|holder| **holder != judge).context("ten hold it")?;
    mesh.kill9(&[victim]);
    let died = Instant::now();
    // For half a minute nothing may happen, and that is how long one look is patient.
    let after = match fully_held(&mesh, 0, &ada).await {
        Ok(after) => after,
        Err(_) => fully_held(&mesh, 0, &ada).await.context("after a holder died")?,
    };
    let took = died.elapsed();
    for (name, held) in &after {
        ensure!(!held.holders.contains(&victim), "{name} is held by {held:?}, and {victim} is dead");
        let stayed = held.holders.iter().filter(|holder| before[name].holders.contains(holder)).count();
        let lost = usize::from(before[name].holders.contains(&victim));
        ensure!(stayed == held.holders.len() - lost, "{name}: {:?} became {held:?}", before[name]);
    }
    ensure!(took <= Duration::from_secs(60), "core was whole again after {took:?}");
    let listed = mesh.node(0).api()?.get(&ada.path("")).await?;
    let core = list(&listed, "/sections")?.iter().find(|section| section["name"] == "core").context("core")?;
    ensure!(number(core, "/held")? == 10 && number(core, "/level_now")? == 8 && list(core, "/silent")?.is_empty(), "{core}");
    no_errors_in_logs(&mesh)
}

/// A host whose disk has spoilt half of its store, and a holder whose disk has spoilt all of it: both start, say what is lost and where the
/// damaged file is kept, and go on. The agent that lived on the one is taken over anew, in a higher term, for nobody knows any more what was
/// signed in the old one; it is who it was, and its document is what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_keeps_what_is_whole_and_its_agent_comes_home_in_a_higher_term() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(6, PASSPHRASE)).await?;
    let ada = born(&mesh, 0, "ada").await?;
    put_notes(&mesh, 0, "ada", b"kept through the damage").await?.json().context("section put")?;
    mesh.kill9(&[0, 3]);
    for (node, whole) in [(0, 2), (3, 1)] {
        let path = mesh.node(node).dir().join("store.redb");
        let mut bytes = std::fs::read(&path)?;
        let pages = bytes.len() / 4096;
        for page in (whole..pages).step_by(whole) {
            bytes[page * 4096..(page + 1) * 4096].fill(0x5a);
        }
        std::fs::write(&path, bytes)?;
    }
    mesh.restart(&[0, 3]).await?;
    for node in [0, 3] {
        let status = mesh.node(node).api()?.get("/v1/status").await?;
        let alarms = list(&status, "/alarms")?;
        let damage = alarms.iter().find(|alarm| alarm.pointer("/kind") == Some(&Value::from("store-damaged")));
        let said = text(damage.with_context(|| format!("no alarm: {status}"))?, "/text")?;
        ensure!(said.contains("rows are whole") && said.contains("store.redb.damaged"), "{said}");
        ensure!(mesh.node(node).dir().join("store.redb.damaged").exists() && !mesh.node(node).dir().join("store.lost").exists());
        ensure!(number(&status, "/store/lost_ms")? > 0, "{status}");
    }
    let api = mesh.node(0).api()?;
    let lives = until("ada to live here again", PATIENCE, async || {
        let agents = api.get("/v1/agents").await?;
        let ada = list(&agents, "/agents")?.iter().find(|agent| agent["agent"] == ada.id.as_str() && agent["state"] == "live");
        Ok(ada.cloned())
    });
    let lives = lives.await?;
    ensure!(number(&lives, "/term")? == 2, "{lives}");
    is_itself(api, &ada).await?;
    ensure!(notes_of(api, &ada).await? == b"kept through the damage");
    put_notes(&mesh, 0, "ada", b"and written again").await?.json().context("section put")?;
    ensure!(notes_of(api, &ada).await? == b"and written again");
    no_errors_in_logs(&mesh)
}

/// Every node of a mesh is killed at the same moment, and started again without any ticket. They find each other, at their old addresses,
/// and everybody is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_that_was_killed_as_a_whole_forms_again() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(8, PASSPHRASE)).await?;
    let (ada, bob) = (born(&mesh, 0, "ada").await?, born(&mesh, 3, "bob").await?);
    ada.say(&mesh, &bob, "Will you be there tomorrow?").await?;
    bob.say(&mesh, &ada, "I will.").await?;
    put_notes(&mesh, 0, "ada", b"kept through the night").await?.json().context("section put")?;
    let bonds = [ada.settle(&mesh, 1).await?, bob.settle(&mesh, 1).await?];
    let all: Vec<usize> = (0..mesh.len()).collect();
    let addresses = |mesh: &Mesh| -> Vec<BTreeSet<String>> {
        all.iter().map(|node| mesh.node(*node).listen_addrs().iter().cloned().collect()).collect()
    };
    let (peers, listening) = (mesh.peer_ids(), addresses(&mesh));

    mesh.kill9(&all);
    for node in &all {
        let options = mesh.node_mut(*node).options_mut();
        options.join.clear();
        options.bootstrap.clear();
    }
    mesh.restart(&all).await?;
    mesh.wait_ready().await?;
    ensure!(mesh.peer_ids() == peers, "somebody came back as somebody else");
    for (node, (now, then)) in addresses(&mesh).iter().zip(&listening).enumerate() {
        ensure!(now == then, "node {node} listened on {then:?}, and now on {now:?}: {}", mesh.node(node).log_tail());
    }
    for node in &all {
        let status = mesh.node(*node).api()?.get("/v1/status").await?;
        ensure!(flag(&status, "/ready")? && !flag(&status, "/alone")? && number(&status, "/peers")? >= 1, "node {node}: {status}");
    }
    for (agent, bonds) in [&ada, &bob].into_iter().zip(&bonds) {
        let api = agent.api(&mesh)?;
        is_itself(api, agent).await?;
        ensure!(agent.bonds(&mesh).await? == *bonds, "{}'s relationships are not what they were", agent.name);
        ensure!(states_on(api, &agent.id).await? == ["live"], "{} does not live on node {}", agent.name, agent.home);
    }
    ensure!(notes_of(ada.api(&mesh)?, &ada).await? == b"kept through the night", "the document came back as another");
    ada.say(&mesh, &bob, "There you are.").await?;
    no_errors_in_logs(&mesh)
}

/// The client that asked for an import is killed while it goes on, or at any other moment: the import ends all the same, and the agent is
/// kept, which its new host's restart shows. Asked once more, a node says what there is to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_ends_well_without_its_client() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(5, PASSPHRASE)).await?;
    let ada = born(&mesh, 1, "ada").await?;
    ada.settle(&mesh, 0).await?;
    let file = recovery_file(&mesh, &ada)?;

    // While two of four holders stand still there is no quorum, so that the import cannot be over before its client is.
    for holder in [3, 4] {
        mesh.node(holder).pause()?;
    }
    // Two clients want it. Whichever the node hears first has its import begun, which the other is told; then the first is killed.
    let target = mesh.node(2);
    let wish = || target.verb(["agent", "import", &file, "--name", "second", "--json"]);
    let told = tokio::select! {
        // Dropped, the other verb is killed with SIGKILL.
        told = wish() => told?,
        told = wish() => told?,
    };
    for holder in [3, 4] {
        mesh.node(holder).resume()?;
    }
    let busy: Value = serde_json::from_slice(&told.stdout)?;
    ensure!(busy["error"]["title"] == "busy", "the import was over before its client was killed: {told:?}");
    is_kept(&mesh, 2, "second", &ada).await.context("the import whose client left in its middle")?;
    let mut term = survives_a_restart(&mut mesh, 2, "second", &ada).await?;
    ensure!(term == 2, "one import, one term: {term}");

    // At any other moment: it was begun or it was not. Whoever asks again gets there.
    let moments = [30, 120, 250, 450].map(Duration::from_millis);
    for (round, moment) in moments.into_iter().enumerate() {
        let (target, name) = ([3, 2][round % 2], format!("visit-{round}"));
        let node = mesh.node(target);
        let client = node.verb(["agent", "import", &file, "--name", &name, "--json"]);
        // The moment is the experiment, not a wait for something to happen.
        let left = tokio::time::timeout(moment, client).await.is_err();
        let again = node.verb(["agent", "import", &file, "--name", &name, "--json"]).await?;
        let context = || format!("round {round}: the client left {left} after {moment:?}; asked again, the node said {again:?}");
        if !again.status.success() {
            ensure!(again.stderr.contains("on its way here") || again.stderr.contains("lives on this node"), "{}", context());
        }
        is_kept(&mesh, target, &name, &ada).await.with_context(context)?;
        let came = survives_a_restart(&mut mesh, target, &name, &ada).await.with_context(context)?;
        ensure!(came > term, "{}: term {came} after {term}", context());
        term = came;
    }
    no_errors_in_logs(&mesh)
}

/// The client that asked for an agent's birth is killed, and the node with it, at any moment. Whoever is there after the restart is whole;
/// whoever is not was never born, and the name is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_half_born() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(5, PASSPHRASE)).await?;
    let attributes = workspace().join("docs/examples/mira.json");
    let given = std::fs::read_to_string(&attributes)?;
    let attributes = attributes.to_str().context("a path is text")?;

    // Born, kept, and not yet in the mesh, as two of four holders stand still: it must be there after a restart.
    for holder in [3, 4] {
        mesh.node(holder).pause()?;
    }
    let node = mesh.node(1);
    let kept = until("the agent to be kept", PATIENCE, async || Ok(Some(node.api()?.get("/v1/agents/early").await?)));
    let born = tokio::select! {
        spoken = node.verb(["agent", "create", "early", "--attributes", attributes, "--json"]) => Some(spoken?),
        kept = kept => kept.map(|_| None)?,
    };
    mesh.kill9(&[1]);
    for holder in [3, 4] {
        mesh.node(holder).resume()?;
    }
    ensure!(born.is_none(), "the birth was over before its client was killed: {born:?}");
    mesh.restart(&[1]).await?;
    ensure!(is_there(mesh.node(1), "early").await?, "what the keystore had is not there after the restart");
    is_whole(&mesh, 1, "early", &given).await?;

    // The client leaves, and the node goes on: it was asked or it was not, but whoever it has begun with is born and kept.
    let moments = [1, 3, 6, 10, 15, 25, 40, 80].map(Duration::from_millis);
    for moment in moments {
        let body = json!({"name": format!("guest-{}", moment.as_millis()), "attributes": given});
        // The moment is the experiment, not a wait for something to happen.
        let _ = tokio::time::timeout(moment, mesh.node(1).api()?.post("/v1/agents", &body)).await;
        match mesh.node(1).api()?.post("/v1/agents", &body).await {
            Ok(_) => {}
            Err(ApiError::Problem(problem)) if problem.title == "name-taken" => {}
            Err(error) => return Err(error).with_context(|| format!("asked again after {moment:?}")),
        }
    }
    for moment in moments {
        let name = format!("guest-{}", moment.as_millis());
        let api = mesh.node(1).api()?;
        until("the agent to be kept", PATIENCE, async || Ok(Some(api.get(&format!("/v1/agents/{name}")).await?))).await.context(name)?;
    }

    // The node is hit with its client.
    let mut born = 0;
    for (round, moment) in [20, 60, 100, 150, 220, 400].map(Duration::from_millis).into_iter().enumerate() {
        let name = format!("child-{round}");
        let client = mesh.node(1).verb(["agent", "create", &name, "--attributes", attributes, "--json"]);
        // The moment is the experiment, not a wait for something to happen.
        let left = tokio::time::timeout(moment, client).await.is_err();
        mesh.kill9(&[1]);
        mesh.restart(&[1]).await?;
        let there = is_there(mesh.node(1), &name).await?;
        let context = || format!("{name}: the client left {left}, client and node were hit after {moment:?}; is there: {there}");
        ensure!(there || left, "{}: its birth was acknowledged", context());
        born += usize::from(there);
        if !there {
            // The client writes the recovery file last, and it was killed before.
            let spoken = mesh.node(1).verb(["agent", "create", &name, "--attributes", attributes, "--json"]).await?;
            spoken.json().with_context(context)?;
        }
        is_whole(&mesh, 1, &name, &given).await.with_context(context)?;
    }
    for moment in moments {
        is_whole(&mesh, 1, &format!("guest-{}", moment.as_millis()), &given)
            .await
            .context("a client left, and the node restarted later")?;
    }
    let agents = mesh.node(1).api()?.get("/v1/agents").await?;
    ensure!(list(&agents, "/agents")?.len() == 15, "{born} were born at the first attempt: {agents}");
    no_errors_in_logs(&mesh)
}

/// An agent moves away and comes back under another name: its first host knows it once. Then two nodes at a time want it, again and again:
/// one has it at most, the other is told, and it is itself wherever it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_wanted_everywhere_lives_once() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(5, PASSPHRASE)).await?;
    let ada = born(&mesh, 1, "ada").await?;
    ada.settle(&mesh, 0).await?;
    let file = recovery_file(&mesh, &ada)?;
    for (target, name) in [(2, "guest"), (1, "returned")] {
        let imported = mesh.node(target).verb(["agent", "import", &file, "--name", name, "--json"]).await?;
        imported.json().with_context(|| format!("agent import as {name}"))?;
    }
    is_known_once(&mesh, 1, "returned", "ada", &ada).await.context("back under another name")?;
    mesh.kill9(&[1]);
    // What a restart will find: one entry, not two.
    let kept: Vec<String> = Keystore::open(mesh.node(1).dir(), &Passphrase::new(PASSPHRASE.to_owned()))?
        .agents()
        .into_iter()
        .map(|entry| format!("{} {} {}", entry.name, entry.agent.to_did(), entry.term))
        .collect();
    ensure!(kept == [format!("returned {} 3", ada.id)], "the keystore has {kept:?}");
    mesh.restart(&[1]).await?;
    is_known_once(&mesh, 1, "returned", "ada", &ada).await.context("after the restart")?;

    let rooms = [1, 2, 3];
    let mut home = 1;
    let mut term = 3;
    for round in 0..5 {
        let rivals: Vec<usize> = rooms.into_iter().filter(|node| *node != home).collect();
        let wish = |node: usize| mesh.node(rivals[node]).verb(["agent", "import", file.as_str(), "--name", "prize", "--json"]);
        let (one, two) = tokio::join!(wish(0), wish(1));
        let said = [one?, two?];
        let story = format!("round {round}: ada lived on node {home} in term {term}; nodes {rivals:?} said {said:?}");
        let told = || story.clone();
        (home, term) = one_is_home(&mesh, &rooms, &ada, &said, term).await.with_context(told)?;
        is_itself(mesh.node(home).api()?, &ada).await.with_context(told)?;
        for stranger in [0, 4] {
            let api = mesh.node(stranger).api()?;
            let card = until("the card of the new term", PATIENCE, async || {
                let Ok(card) = ada.public_card(api).await else { return Ok(None) };
                Ok((number(&card, "/term")? == term).then_some(card))
            });
            let card = card.await.with_context(told)?;
            ensure!(text(&card, "/home")? == mesh.node(home).peer_id()?, "{card}, but {}", told());
        }
    }
    no_errors_in_logs(&mesh)
}

/// Judges what two nodes said that wanted the agent at once: whoever was refused was told why; of those that believe to have it one may
/// write, in the newest term, and the others learn that they are fenced. Answers where the agent lives, and its term.
async fn one_is_home(mesh: &Mesh, rooms: &[usize], ada: &Agent, said: &[Spoken; 2], term: u64) -> Result<(usize, u64)> {
    for spoken in said.iter().filter(|spoken| !spoken.status.success()) {
        let told: Value = serde_json::from_slice(&spoken.stdout).context("a refusal without JSON")?;
        let title = text(&told, "/error/title")?;
        ensure!(["fenced", "refused"].contains(&title), "it was refused as {title}");
    }
    ensure!(said.iter().any(|spoken| spoken.status.success()), "both were refused, and nobody has the agent");
    // Whoever still believes to be its home writes; only the newest may.
    let mut homes = Vec::new();
    for room in rooms {
        let api = mesh.node(*room).api()?;
        let written = until("an answer to a put", PATIENCE, async || {
            match api.put_bytes(&ada.path(&format!("/sections/{}", path_segment(NOTES))), format!("from node {room}").into_bytes()).await {
                Ok(_) => Ok(Some(true)),
                Err(ApiError::Problem(problem)) if ["fenced", "unknown-agent"].contains(&problem.title.as_str()) => Ok(Some(false)),
                Err(error) => Err(error.into()),
            }
        });
        if written.await? {
            homes.push(*room);
        }
    }
    ensure!(homes.len() == 1, "the nodes {homes:?} all write for the agent");
    let home = homes[0];
    let mut terms = BTreeMap::new();
    for room in rooms {
        let agents = mesh.node(*room).api()?.get("/v1/agents").await?;
        let known: Vec<&Value> = list(&agents, "/agents")?.iter().filter(|agent| agent["agent"] == ada.id.as_str()).collect();
        ensure!(known.len() <= 1, "node {room} knows it more than once: {agents}");
        for agent in known {
            let expected = if *room == home { "live" } else { "fenced" };
            ensure!(text(agent, "/state")? == expected, "on node {room} it should be {expected}: {agent}");
            terms.insert(number(agent, "/term")?, *room);
        }
    }
    let (newest, at) = terms.last_key_value().context("nobody knows the agent")?;
    ensure!(*at == home && *newest > term, "it lives on node {home}, but the terms are {terms:?}");
    ensure!(notes_of(mesh.node(home).api()?, ada).await? == format!("from node {home}").into_bytes(), "what it wrote is not what is read");
    Ok((home, *newest))
}

/// An agent with a real attributes file.
async fn born(mesh: &Mesh, home: usize, name: &str) -> Result<Agent> {
    let attributes = std::fs::read_to_string(workspace().join("docs/examples/tomas.json"))?;
    Ok(Agent::born(mesh, home, name, "tide keeper", &attributes).await?.0)
}

/// Its recovery file, where a person would have put it.
fn recovery_file(mesh: &Mesh, agent: &Agent) -> Result<String> {
    let file = mesh.scratch().join(format!("{}.persona-recovery", agent.name));
    std::fs::write(&file, &agent.recovery)?;
    Ok(file.to_str().context("a scratch path is text")?.to_owned())
}

async fn put_notes(mesh: &Mesh, node: usize, agent: &str, content: &[u8]) -> Result<Spoken> {
    let file: PathBuf = mesh.scratch().join("notes");
    std::fs::write(&file, content)?;
    Ok(mesh.node(node).verb(["section", "put", agent, NOTES, file.to_str().context("a scratch path is text")?, "--json"]).await?)
}

async fn notes_of(api: &Api, agent: &Agent) -> Result<Vec<u8>> {
    let path = agent.path(&format!("/sections/{}?mode=regular", path_segment(NOTES)));
    let read = until("the document to be read by quorum", PATIENCE, async || Ok(Some(api.get(&path).await?))).await?;
    Ok(from_base64(&read, "/content")?)
}

/// By quorum, its personality is byte for byte what was born.
async fn is_itself(api: &Api, agent: &Agent) -> Result<()> {
    let path = agent.path("/personality?mode=regular");
    let read = until("the personality to be read by quorum", PATIENCE, async || Ok(Some(api.get(&path).await?))).await?;
    ensure!(agent.is_as_born(&read)?, "{} is not who was born: {read}", agent.name);
    Ok(())
}

/// What a node says of an agent, once for each time that it lists it.
async fn states_on(api: &Api, id: &str) -> Result<Vec<String>> {
    let agents = api.get("/v1/agents").await?;
    let known = list(&agents, "/agents")?.iter().filter(|agent| agent["agent"] == id);
    Ok(known.map(|agent| text(agent, "/state").map(str::to_owned)).collect::<Result<_, _>>()?)
}

/// How one section is held, as any node can see it.
#[derive(Debug)]
struct Held {
    n: u64,
    k: u64,
    f: u64,
    level: u64,
    asked: u64,
    content_version: String,
    holders: Vec<usize>,
}

/// Waits until every holder of every section of the agent has its shard, in the shape of a grown mesh. Judged by the last node, which has
/// none of the agent's keys.
async fn fully_held(mesh: &Mesh, home: usize, agent: &Agent) -> Result<BTreeMap<String, Held>> {
    let (owner, judge, peers) = (mesh.node(home).api()?, mesh.node(mesh.len() - 1).api()?, mesh.peer_ids());
    let mut last = Value::Null;
    let held = until("every section to be held by as many as it wants", PATIENCE, async || {
        let listed = owner.get(&agent.path("")).await?;
        let mut all = BTreeMap::new();
        for section in list(&listed, "/sections")? {
            let name = text(section, "/name")?;
            last = judge.get(&format!("/v1/analyze?key={}", path_segment(text(section, "/kad_key")?))).await?;
            let wanted = if name == NOTES { DOCUMENT_SHAPE[0] } else { CORE_SHAPE[0] };
            let placed = list(&last, "/holders")?.iter().filter(|holder| holder["has_shard"] == true).count() as u64;
            if number(&last, "/n")? != wanted || placed != wanted || number(&last, "/level_now")? < number(&last, "/level_asked")? {
                return Ok(None);
            }
            let holder = |holder: &Value| peers.iter().position(|peer| peer.as_deref() == holder["peer_id"].as_str());
            let held = Held {
                n: number(&last, "/n")?,
                k: number(&last, "/k")?,
                f: number(&last, "/f")?,
                level: number(&last, "/level_now")?,
                asked: number(&last, "/level_asked")?,
                content_version: text(&last, "/content_version")?.to_owned(),
                holders: list(&last, "/holders")?.iter().filter_map(holder).collect(),
            };
            all.insert(name.to_owned(), held);
        }
        Ok(Some(all))
    });
    held.await.with_context(|| format!("the last section that was looked at: {last}"))
}

/// The version in which the content of each section was put.
async fn contents_of(mesh: &Mesh, home: usize, agent: &Agent) -> Result<BTreeMap<String, String>> {
    let api = mesh.node(home).api()?;
    let mut contents = BTreeMap::new();
    for section in list(&api.get(&agent.path("")).await?, "/sections")? {
        let seen = api.get(&format!("/v1/analyze?key={}", path_segment(text(section, "/kad_key")?))).await?;
        contents.insert(text(section, "/name")?.to_owned(), text(&seen, "/content_version")?.to_owned());
    }
    Ok(contents)
}

async fn versions_of(mesh: &Mesh, home: usize, agent: &Agent) -> Result<BTreeMap<String, Value>> {
    let listed = mesh.node(home).api()?.get(&agent.path("")).await?;
    let version = |section: &Value| Ok((text(section, "/name")?.to_owned(), section["version"].clone()));
    Ok(list(&listed, "/sections")?.iter().map(version).collect::<Result<_, ApiError>>()?)
}

/// Waits until a restarted host has tried to put its agent's sections: one of them has a new version, or a put has failed.
async fn puts_something(host: &NodeProcess, before: &BTreeMap<String, Value>, agent: &Agent) -> Result<()> {
    let api = host.api()?;
    let tried = until("a put", PATIENCE, async || {
        let status = api.get("/v1/status").await?;
        let failed = status.pointer("/counters/puts_failed").and_then(Value::as_u64).unwrap_or(0);
        let listed = api.get(&agent.path("")).await?;
        let new = list(&listed, "/sections")?
            .iter()
            .any(|section| before.get(section["name"].as_str().unwrap_or("")) != Some(&section["version"]));
        Ok((failed > 0 || new).then_some(()))
    });
    Ok(tried.await?)
}

/// Waits until a restarted host has put every section again. Answers the lowest level that each was seen at meanwhile.
async fn renewed_since(mesh: &Mesh, home: usize, agent: &Agent, before: &BTreeMap<String, Value>) -> Result<BTreeMap<String, u64>> {
    let api = mesh.node(home).api()?;
    let mut lowest: BTreeMap<String, u64> = BTreeMap::new();
    until("every section to be put again", PATIENCE, async || {
        let listed = api.get(&agent.path("")).await?;
        let mut renewed = 0;
        for section in list(&listed, "/sections")? {
            let (name, level) = (text(section, "/name")?, number(section, "/level")?);
            let seen = lowest.entry(name.to_owned()).or_insert(level);
            *seen = level.min(*seen);
            renewed += usize::from(before.get(name) != Some(&section["version"]) && section["state"] == "committed");
        }
        Ok((renewed >= before.len()).then_some(()))
    })
    .await?;
    Ok(lowest)
}

/// Waits until the node has the agent under `name`, which it says once the keystore has it, and lives there.
async fn is_kept(mesh: &Mesh, node: usize, name: &str, agent: &Agent) -> Result<()> {
    let api = mesh.node(node).api()?;
    let mut last = Value::Null;
    let kept = until("the import to end", PATIENCE, async || {
        last = api.get(&format!("/v1/agents/{name}")).await?;
        Ok((last["state"] == "live" && last["agent"] == agent.id.as_str()).then_some(()))
    });
    kept.await.with_context(|| format!("the last that node {node} said: {last}"))
}

/// Kills and restarts a node: the agent lives there as before, once, and reads by quorum as it was born. Answers its term.
async fn survives_a_restart(mesh: &mut Mesh, node: usize, name: &str, agent: &Agent) -> Result<u64> {
    let term = number(&mesh.node(node).api()?.get(&format!("/v1/agents/{name}")).await?, "/term")?;
    mesh.kill9(&[node]);
    mesh.restart(&[node]).await?;
    let api = mesh.node(node).api()?;
    ensure!(states_on(api, &agent.id).await? == ["live"], "after the restart: {}", api.get("/v1/agents").await?);
    let again = api.get(&format!("/v1/agents/{name}")).await?;
    ensure!(number(&again, "/term")? == term, "it lived here in term {term}, and now: {again}");
    is_itself(api, agent).await?;
    Ok(term)
}

async fn is_there(node: &NodeProcess, name: &str) -> Result<bool> {
    let listed = node.verb(["agent", "list", "--json"]).await?.json().context("agent list")?;
    let named = list(&listed, "/agents")?.iter().filter(|agent| agent["name"] == name).count();
    ensure!(named <= 1, "{name} is listed {named} times: {listed}");
    Ok(named == 1)
}

/// An agent that is listed can be exported and read by quorum, and is what it was given.
async fn is_whole(mesh: &Mesh, node: usize, name: &str, attributes: &str) -> Result<()> {
    let file = mesh.scratch().join(format!("{name}.exported"));
    let exported = mesh.node(node).verb(["agent", "export", name, file.to_str().context("a scratch path is text")?, "--json"]).await?;
    exported.json().context("agent export")?;
    let recovery = std::fs::read_to_string(&file)?;
    ensure!(persona_agent::RecoveryFile::decode(&recovery).is_ok(), "the export is no recovery file");
    let api = mesh.node(node).api()?;
    let path = format!("/v1/agents/{name}/personality?mode=regular");
    let read = until("the personality to be read by quorum", PATIENCE, async || Ok(Some(api.get(&path).await?))).await?;
    ensure!(text(&read, "/attributes")? == attributes, "{name} has other attributes than were given");
    ensure!(text(&read, "/name")? == name && !text(&read, "/document")?.is_empty(), "{read}");
    let listed = api.get(&format!("/v1/agents/{name}")).await?;
    ensure!(text(&listed, "/state")? == "live" && number(&listed, "/term")? == 1, "{listed}");
    Ok(())
}

/// A node lists the agent once, as `name`; its `old` name means nobody.
async fn is_known_once(mesh: &Mesh, node: usize, name: &str, old: &str, agent: &Agent) -> Result<()> {
    let api = mesh.node(node).api()?;
    let listed = mesh.node(node).verb(["agent", "list", "--json"]).await?.json().context("agent list")?;
    let agents = list(&listed, "/agents")?;
    let is_it = agents.len() == 1 && agents[0]["agent"] == agent.id.as_str() && agents[0]["name"] == name && agents[0]["state"] == "live";
    ensure!(is_it, "node {node} should list {name} alone: {listed}");
    match api.get(&format!("/v1/agents/{old}")).await {
        Err(ApiError::Problem(problem)) if problem.title == "unknown-agent" => {}
        other => anyhow::bail!("{old} should mean nobody on node {node}: {other:?}"),
    }
    is_itself(api, agent).await
}

/// No node said anything that wakes someone.
fn no_errors_in_logs(mesh: &Mesh) -> Result<()> {
    for node in 0..mesh.len() {
        let log = std::fs::read_to_string(mesh.node(node).log())?;
        let errors: Vec<&str> = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked")).collect();
        ensure!(errors.is_empty(), "node {node} logged {errors:?}");
        ensure!(!log.is_empty() || node > 0, "the first node has logged nothing: is this its log?");
    }
    Ok(())
}
