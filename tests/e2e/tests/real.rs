//! The whole path with real processes: real libp2p on loopback, real files, real fsync, real signals.
//!
//! Every scenario starts its own mesh in a scratch directory and judges it through the verbs and the control API. Only one mesh runs at a time:
//! two would only make each other late. Nothing sleeps for luck: what is waited for is looked at until a deadline.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "these tests own processes, files and the clock")]

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use persona::keystore::{Cost, Passphrase, derive_key};
use persona_agent::{Envelope, RecoveryFile, parse};
use persona_drill::agents::{Agent, PATIENCE, import};
use persona_drill::{
    ApiError, DrillError, Mesh, MeshOptions, NodeProcess, Problem, count_in, find_in_tree, flag, from_base64, list, number, path_segment,
    text, until,
};
use persona_e2e::{persona_binary, workspace};
use persona_fragments::{Ed25519Signer, Signer, wire};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Seals the keystores of these tests; it must turn up nowhere either.
const PASSPHRASE: &str = "kelp-forest-passphrase-4471";
/// "Reads answer within 5 s, whatever is dead" (docs/spec/api.md); one more for a busy machine.
const READ_PROMISE: Duration = Duration::from_secs(6);

/// Held by whoever has a mesh.
async fn alone_on_this_machine() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// Five processes with a fixed bootstrap peer: four holders bear one dead one, and the verbs say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_holders_bear_the_loss_of_one() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let options = MeshOptions { fixed_bootstrap: true, ..MeshOptions::of(5, PASSPHRASE) };
    let mut mesh = Mesh::start(persona_binary(), &options).await?;
    let content: Vec<u8> = (0..20_000_u32).map(|n| u8::try_from((n * n / 7) % 251).unwrap_or_default()).collect();
    let file = mesh.scratch().join("notes.bin");
    std::fs::write(&file, &content)?;
    let file = file.to_str().context("a scratch path is text")?.to_owned();

    mesh.node(0).verb(["agent", "create", "ada", "--json"]).await?.json().context("agent create")?;
    let put = mesh.node(0).verb(["section", "put", "ada", "doc/notes", &file, "--json"]).await?.json().context("section put")?;
    ensure!((number(&put, "/n")?, number(&put, "/f")?) == (4, 1), "four other nodes make n = 4 and f = 1: {put}");
    ensure!(number(&put, "/acks")? >= 3 && flag(&put, "/byzantine_tolerant")?, "{put}");
    let me = mesh.node(0).peer_id()?.to_owned();
    ensure!(list(&put, "/holders")?.iter().all(|holder| *holder != me.as_str()), "the owner's node holds its own shard: {put}");

    // Shards that are placed in the background need not be waited for: three acks bear one loss.
    mesh.kill9(&[4]);
    let got = mesh.node(0).verb(["section", "get", "ada", "doc/notes"]).await?;
    ensure!(got.status.success(), "section get with one holder dead: {}", got.stderr);
    ensure!(got.stdout == content, "section get gave {} other bytes", got.stdout.len());
    let got = mesh.node(0).verb(["section", "get", "ada", "doc/notes", "--json"]).await?.json().context("section get --json")?;
    ensure!(number(&got, "/holders_answered")? >= 3 && number(&got, "/shards_from_network")? >= 1, "{got}");
    ensure!(from_base64(&got, "/content")? == content, "section get --json gave other bytes");

    // Two dead are more than f: a fresh read is refused, quickly and with numbers; the verb says what to do next.
    mesh.kill9(&[3]);
    let asked = Instant::now();
    let refused = mesh.node(0).api()?.get("/v1/agents/ada/sections/doc%2Fnotes?mode=regular").await;
    ensure!(asked.elapsed() < READ_PROMISE, "the refusal took {:?}", asked.elapsed());
    let problem = expect_problem(refused, &["quorum-unreachable", "unavailable"])?;
    ensure!(number(&problem.data, "/have")? < number(&problem.data, "/need")?, "{problem:?}");
    let refused = mesh.node(0).verb(["section", "get", "ada", "doc/notes"]).await?;
    ensure!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused:?}");
    ensure!(refused.stderr.contains("error: ") && refused.stderr.contains("hint: "), "{refused:?}");

    // They return, and everything reads again.
    for node in [3, 4] {
        mesh.node_mut(node).restart().await?;
    }
    let api = mesh.node(0).api()?;
    let again = until("two restarted holders to be read from", PATIENCE, async || {
        Ok(Some(api.get("/v1/agents/ada/sections/doc%2Fnotes?mode=regular").await?))
    });
    ensure!(from_base64(&again.await?, "/content")? == content, "other bytes after the restart");
    for node in 0..5 {
        mesh.node_mut(node).stop().await?;
    }
    Ok(())
}

/// Fourteen processes. An agent's host and three of its core holders are killed; it comes back elsewhere, and is itself. Before that its
/// messages are replayed and altered; after that its old host comes back too; and at last every file and every byte on the wire is searched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_outlives_its_host() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let mut options = MeshOptions { tapped: true, ..MeshOptions::of(14, PASSPHRASE) };
    options.node = options.node.tcp_only();
    // What may not be in a log may not be in a talkative one either.
    options.node.log = "debug".to_owned();
    let mut mesh = Mesh::start(persona_binary(), &options).await?;

    let attributes = |name: &str| std::fs::read_to_string(workspace().join("docs/examples").join(name));
    let (mut mira, _) = Agent::born(&mesh, 0, "mira", "archivist", &attributes("mira.json")?).await?;
    let (tomas, _) = Agent::born(&mesh, 3, "tomas", "carpenter", &attributes("tomas.json")?).await?;

    let talk = ["SPOKEN-MARKER-1-gannet over the north wall", "SPOKEN-MARKER-2-whimbrel, heard twice"];
    mira.say(&mesh, &tomas, talk[0]).await?;
    tomas.say(&mesh, &mira, talk[1]).await?;
    refuses_what_was_tampered_with(&mut mesh, &mira, &tomas).await.context("replayed and altered envelopes")?;
    let bonds = mira.settle(&mesh, 1).await?;
    tomas.settle(&mesh, 1).await?;

    let term = moves_house(&mut mesh, &mut mira, &tomas, &bonds).await.context("the move")?;
    fences_the_old_host(&mut mesh, &mira, term).await.context("the old host's return")?;

    let mut needles: Vec<&[u8]> = talk.iter().map(|words| words.as_bytes()).collect();
    let markers = ["MIRA-MARKER-7f3e", "TEA-CRATE-MARKER-c41d", "ARCHIVE-MARKER-09b2", "TOMAS-MARKER-51aa", "SPOKEN-MARKER", PASSPHRASE];
    needles.extend(markers.iter().map(|marker| marker.as_bytes()));
    keeps_its_secrets(&mesh, &mira, &needles).context("the search for secrets")
}

/// Replayed, truncated, altered, forged, re-signed and foreign-order envelopes, published by other members: refused, each with its reason,
/// and nothing changes.
async fn refuses_what_was_tampered_with(mesh: &mut Mesh, mira: &Agent, tomas: &Agent) -> Result<()> {
    // While tomas's node is paused the message waits in mira's outbox, and its bytes with it.
    mesh.node(tomas.home).pause()?;
    let words = "SPOKEN-MARKER-3-turnstone, under the pier";
    let sent = mira.send(mesh, tomas, words).await;
    let outbox = mira.api(mesh)?.get(&mira.path("/outbox")).await;
    mesh.node(tomas.home).resume()?;
    let (sent, outbox) = (sent?, outbox?);
    let record = list(&outbox, "/messages")?.iter().find(|message| message["id"] == sent["id"]).context("the outbox lost the message")?;
    let envelope = from_base64(record, "/envelope").context("the outbox shows no envelope to replay")?;
    ensure!(tomas.find_in_inbox(mesh, words, PATIENCE).await?.is_some(), "the paused node never got its message");
    for agent in [mira, tomas] {
        agent.quiet(mesh).await?;
    }

    let thief = thiefs_signer(&mira.recovery)?;
    let stranger = Ed25519Signer::from_seed(&[7; 32]);
    let flipped = |at: usize| {
        let mut bytes = envelope.clone();
        bytes[at] ^= 1;
        bytes
    };
    // A counter that tomas has not seen, so that it is no mere replay.
    let next = |envelope: &mut Envelope| envelope.header.counter += 8;
    let tampered = [
        ("the same again", envelope.clone(), "replay"),
        ("re-signed, otherwise the same", signed_anew(&envelope, &thief, |_| {})?, "replay"),
        ("without its last byte", envelope[..envelope.len() - 1].to_vec(), "malformed"),
        ("a bit of the signature flipped", flipped(envelope.len() - 1), "bad-signature"),
        ("signed by somebody else", signed_anew(&envelope, &stranger, next)?, "bad-signature"),
        (
            "other words, signed with the stolen key",
            signed_anew(&envelope, &thief, |envelope| {
                next(envelope);
                envelope.payload.reverse();
            })?,
            "key-compromised",
        ),
        (
            "another order of the same elements, signed with the stolen key",
            signed_anew(&envelope, &thief, |envelope| {
                next(envelope);
                envelope.order.reverse();
            })?,
            "key-compromised",
        ),
        (
            "elements that mira does not offer, signed with the stolen key",
            signed_anew(&envelope, &thief, |envelope| {
                next(envelope);
                envelope.order[0] ^= 0x4000;
            })?,
            "foreign-order",
        ),
    ];

    // What is broken on its face is not passed on by honest nodes, and whoever sends it loses their trust: so each goes out by another
    // member, and by one that tomas's node is connected with.
    let connected = tomas.api(mesh)?.get("/v1/peers").await?;
    let connected: Vec<&str> = list(&connected, "/peers")?.iter().filter_map(|peer| peer["peer_id"].as_str()).collect();
    let others = (0..mesh.len()).filter(|node| ![mira.home, tomas.home].contains(node));
    let others: Vec<usize> = others.filter(|node| mesh.node(*node).peer_id().is_ok_and(|peer| connected.contains(&peer))).collect();
    ensure!(others.len() > 3, "tomas's node knows too few: {connected:?}");

    let bonds = async || Ok::<_, DrillError>((mira.bonds(mesh).await?, tomas.bonds(mesh).await?));
    let before = bonds().await?;
    ensure!(before.1.contains_key(&mira.id), "tomas knows mira");
    let heard = async || Ok::<_, anyhow::Error>(list(&tomas.api(mesh)?.get(&tomas.path("/inbox")).await?, "/messages")?.len());
    let heard_before = heard().await?;
    let mut others = others.into_iter().cycle();
    for (what, bytes, reason) in tampered {
        let cursor = tomas.verdict_cursor(mesh).await?;
        let started = Instant::now();
        let verdict = loop {
            ensure!(started.elapsed() < PATIENCE, "{what}: no verdict was given");
            let other = mesh.node(others.next().context("somebody else")?).api()?;
            other.post_bytes("/v1/envelopes", bytes.clone()).await.with_context(|| what.to_owned())?;
            // Only neighbours hear what nobody passes on: if tomas's node is none, the next member tries.
            let news = tomas.api(mesh)?.get(&format!("/v1/verdicts?after={cursor}&wait_s=2")).await?;
            if let Some(verdict) = list(&news, "/verdicts")?.first() {
                break verdict.clone();
            }
        };
        ensure!(!flag(&verdict, "/accepted")?, "{what}: it was accepted: {verdict}");
        ensure!(text(&verdict, "/reason")? == reason, "{what}: it should be refused as {reason}: {verdict}");
    }
    ensure!(bonds().await? == before, "a refused envelope changed a relationship");
    ensure!(heard().await? == heard_before, "a refused envelope was delivered");

    // And the pair is none the worse for it.
    mira.say(mesh, tomas, "SPOKEN-MARKER-4-all the same, good evening").await?;
    Ok(())
}

/// What a thief of the recovery file and its passphrase signs with: the agent's own key.
fn thiefs_signer(recovery: &[u8]) -> Result<Ed25519Signer> {
    let file = RecoveryFile::decode(std::str::from_utf8(recovery)?)?;
    let kdf = file.kdf();
    let key = derive_key(&Passphrase::new(PASSPHRASE.to_owned()), &kdf.salt, Cost::new(kdf.m_kib, kdf.t, kdf.p)?)?;
    Ok(file.open(&key)?.root.signer())
}

/// A genuine envelope, changed and signed anew.
fn signed_anew(genuine: &[u8], signer: &dyn Signer, change: impl FnOnce(&mut Envelope)) -> Result<Vec<u8>> {
    let mut envelope = parse(genuine)?.envelope().clone();
    change(&mut envelope);
    envelope.signature = signer.sign(&parse(&wire::encode(&envelope))?.signed_bytes());
    Ok(wire::encode(&envelope))
}

/// Kills the host and three core holders at once, imports the agent elsewhere from its recovery file alone, and compares. Answers the new term.
async fn moves_house(
    mesh: &mut Mesh,
    mira: &mut Agent,
    tomas: &Agent,
    bonds: &std::collections::BTreeMap<String, persona_drill::agents::Bond>,
) -> Result<u64> {
    let old_home = mira.home;
    let choice = mira.choose_victims(mesh, std::slice::from_ref(tomas), 4).await?;
    // A partner's card is better read in mode `any` than not at all, so it may lose more than a quorum bears. What is hers may not.
    let hers = choice.overdrawn.iter().any(|(section, _)| !section.ends_with("/card"));
    ensure!(!hers && choice.unreadable.is_empty() && choice.unspared.is_empty(), "no fair choice of victims: {choice:?}");
    mesh.kill9(&choice.victims);
    let dead: BTreeSet<usize> = choice.victims.iter().copied().collect();
    let new_home = (0..mesh.len()).find(|node| !dead.contains(node) && *node != tomas.home).context("nobody is left")?;

    // Elsewhere there is only the card, and the rule.
    let refused = mesh.node(new_home).api()?.get(&mira.path("/personality?mode=regular")).await;
    let problem = expect_problem(refused, &["not-the-owner"])?;
    ensure!(problem.status == 403 && problem.data["card"].is_object(), "{problem:?}");
    // Without any secret the quorum can still be seen.
    let asked = Instant::now();
    let seen = mesh.node(new_home).api()?.get(&format!("/v1/analyze?agent={}&section=core", path_segment(&mira.id))).await?;
    ensure!(asked.elapsed() < READ_PROMISE, "the analysis took {:?}", asked.elapsed());
    ensure!(flag(&seen, "/readable/regular")? && flag(&seen, "/certificate/valid")?, "{seen}");

    let wrong = import(mesh.node(new_home).api()?, &mira.recovery, "not the passphrase", "mira").await;
    expect_problem(wrong, &["wrong-passphrase"])?;
    let imported = import(mesh.node(new_home).api()?, &mira.recovery, PASSPHRASE, "mira").await?;
    ensure!(text(&imported, "/import_source")? == "mesh" && flag(&imported, "/complete")?, "{imported}");
    ensure!(text(&imported, "/mode")? != "any", "at most f holders are lost: {imported}");
    let term = number(&imported, "/term")?;
    mira.home = new_home;
    ensure!(mira.bonds(mesh).await? == *bonds, "the relationships are not what they were");
    for mode in ["any", "regular", "atomic"] {
        let read = mira.personality(mesh, mode).await?;
        ensure!(mira.is_as_born(&read)?, "the personality in mode {mode} is not what was born");
    }

    let cursor = tomas.verdict_cursor(mesh).await?;
    mira.say(mesh, tomas, "SPOKEN-MARKER-5-same bird, other wall").await?;
    let verdict = tomas.find_verdict(mesh, cursor, |verdict| verdict["from"] == mira.id.as_str()).await?.context("no verdict")?;
    ensure!(text(&verdict, "/reason")? == "accepted" && number(&verdict, "/term")? == term, "{verdict}");
    tomas.say(mesh, mira, "SPOKEN-MARKER-6-I knew you at once").await?;

    // The holders return; the old host has its own scene.
    for victim in choice.victims.iter().filter(|victim| **victim != old_home) {
        mesh.node_mut(*victim).restart().await?;
    }
    Ok(term)
}

/// The old host restarts on its old directory: it is told that it was succeeded, and writes no more.
async fn fences_the_old_host(mesh: &mut Mesh, mira: &Agent, term: u64) -> Result<()> {
    // It was the first node, whom the others found by a tap; now it has to find them.
    let ticket = mesh.ticket(mira.home).await?;
    let old = mesh.node_mut(0);
    old.options_mut().join = vec![ticket];
    old.restart().await?;
    let api = mesh.node(0).api()?;
    until("the old host to be fenced", PATIENCE, async || {
        let agent = api.get(&mira.path("")).await?;
        Ok((text(&agent, "/state")? == "fenced").then_some(()))
    })
    .await?;
    let refused = api.put_bytes(&mira.path("/sections/doc%2Fafter"), b"from the grave".to_vec()).await;
    let problem = expect_problem(refused, &["fenced"])?;
    ensure!(number(&problem.data, "/term")? >= term, "{problem:?}");
    let put = mira.api(mesh)?.put_bytes(&mira.path("/sections/doc%2Fafter"), b"from the living".to_vec()).await?;
    ensure!(number(&put, "/acks")? > 0, "{put}");
    let read = mira.api(mesh)?.get(&mira.path("/sections/doc%2Fafter?mode=regular")).await?;
    ensure!(from_base64(&read, "/content")? == b"from the living", "{read}");
    let read = mira.personality(mesh, "regular").await?;
    ensure!(mira.is_as_born(&read)?, "the old host's return changed the personality");
    Ok(())
}

/// No marker is in any file of any node, in any log, or in anything that passed between the first node and the others.
fn keeps_its_secrets(mesh: &Mesh, mira: &Agent, needles: &[&[u8]]) -> Result<()> {
    let (sightings, searched) = find_in_tree(mesh.scratch(), needles)?;
    ensure!(sightings.is_empty(), "secrets lie in {sightings:?}");
    ensure!(searched > 1 << 20, "only {searched} bytes of state and logs were searched");
    let tap = mesh.tap().context("the mesh was tapped")?;
    let streams = tap.streams();
    for needle in needles {
        ensure!(streams.iter().all(|stream| count_in(stream, needle) == 0), "the wire carried {}", String::from_utf8_lossy(needle));
    }
    // The search can find: these are no secrets, and they did pass. mira's core alone is more than this.
    ensure!(tap.missed_bytes() == 0, "the tap overflowed");
    ensure!(streams.iter().any(|stream| count_in(stream, b"/noise") > 0), "not even a handshake was recorded");
    let passed: usize = streams.iter().map(Vec::len).sum();
    ensure!(passed > 3 * mira.attributes.len(), "only {passed} bytes passed the tap");
    ensure!(count_in(mira.attributes.as_bytes(), needles[needles.len() - 6]) == 1, "the markers are not those of the attributes");
    Ok(())
}

/// Fifty times kill -9, at any moment of a stream of puts: now the writer, now a holder, restarted on its directory. Nothing that was
/// acknowledged is lost, and nothing is read that was never written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_lose_nothing_acknowledged() -> Result<()> {
    const KILLS: usize = 50;
    let _turn = alone_on_this_machine().await;
    let mut mesh = Mesh::start(persona_binary(), &MeshOptions::of(5, PASSPHRASE)).await?;
    // The writer is not the node that the others joined by, so that its new port after each restart concerns nobody's ticket.
    let (writer, holders) = (4, [0, 1, 2, 3]);
    mesh.node(writer).api()?.post("/v1/agents", &json!({"name": "ada"})).await?;
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let (mut history, mut leaned) = (History::default(), 0);
    for round in 0..KILLS {
        let moment = Duration::from_micros(chance.below(200_000));
        // Two of three kills hit the writer.
        let victim = if chance.below(3) < 2 { writer } else { holders[usize::try_from(chance.below(4))?] };
        write_until_killed(&mut mesh, writer, victim, moment, &mut history).await.with_context(|| format!("round {round}, writing"))?;
        mesh.node_mut(victim).restart().await.with_context(|| format!("round {round}, restart"))?;
        // When a holder was hit, another one is paused: with f = 1 the read then needs the one that was hit, with all that it had acknowledged.
        // A version that was put while the dead one was missing has three holders and bears the loss of none; that is no case for this.
        let paused = holders.into_iter().find(|holder| *holder != victim);
        let paused = paused.filter(|_| victim != writer);
        let paused = if paused.is_some() && bears_a_loss(mesh.node(writer)).await? { paused } else { None };
        leaned += usize::from(paused.is_some());
        if let Some(paused) = paused {
            mesh.node(paused).pause()?;
        }
        let read =
            read_back(mesh.node(writer), &history).await.with_context(|| format!("round {round}, node {victim} was hit after {moment:?}"));
        if let Some(paused) = paused {
            mesh.node(paused).resume()?;
        }
        history.seen = read?;
    }
    ensure!(
        history.acknowledged >= u64::try_from(KILLS / 2)?,
        "only {} puts were acknowledged: there was nothing to lose",
        history.acknowledged
    );
    ensure!(leaned > 0, "no read ever depended on a holder that had been hit");
    Ok(())
}

/// Whether the last committed version may be read without one of its holders.
async fn bears_a_loss(writer: &NodeProcess) -> Result<bool> {
    let agent = writer.api()?.get("/v1/agents/ada").await?;
    let section = list(&agent, "/sections")?.iter().find(|section| section["name"] == "doc/count");
    Ok(section.map(|section| number(section, "/f")).transpose()?.is_some_and(|f| f >= 1))
}

/// What the writer knows, as an oracle may: numbers only.
#[derive(Default)]
struct History {
    /// The highest number whose put was begun.
    begun: u64,
    /// The highest number whose put was acknowledged.
    acknowledged: u64,
    /// The highest number that was read: a reader never goes back.
    seen: u64,
}

/// Puts number after number until the victim is shot, `moment` after the first.
async fn write_until_killed(mesh: &mut Mesh, writer: usize, victim: usize, moment: Duration, history: &mut History) -> Result<()> {
    let api = mesh.node(writer).api()?.clone();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (begun, acknowledged) = (history.begun, history.acknowledged);
    let writing = tokio::spawn(async move {
        let (mut begun, mut acknowledged) = (begun, acknowledged);
        while !*stopped.borrow() {
            begun += 1;
            // A refused or unanswered put has an unknown outcome: begun, not acknowledged.
            match api.put_bytes("/v1/agents/ada/sections/doc%2Fcount", number_as_content(begun)).await {
                Ok(_) => acknowledged = begun,
                Err(ApiError::Unreachable { .. }) => break,
                Err(_) => {}
            }
        }
        (begun, acknowledged)
    });
    // The moment is the experiment, not a wait for something to happen.
    tokio::time::sleep(moment).await;
    mesh.kill9(&[victim]);
    // A writer that was shot has noticed that already.
    let _ = stop.send(true);
    (history.begun, history.acknowledged) = writing.await?;
    Ok(())
}

/// Reads by quorum, as soon as there is one, and judges what was read.
async fn read_back(writer: &NodeProcess, history: &History) -> Result<u64> {
    let api = writer.api()?;
    let read = until("a quorum to read from", PATIENCE, async || match api.get("/v1/agents/ada/sections/doc%2Fcount?mode=regular").await {
        Err(ApiError::Problem(problem)) if problem.title == "not-found" && history.acknowledged == 0 => Ok(Some(Value::Null)),
        read => Ok(Some(read?)),
    });
    let read = read.await?;
    if read.is_null() {
        return Ok(0);
    }
    let content = from_base64(&read, "/content")?;
    let digits = content.split(|byte| *byte == b' ').next().unwrap_or_default();
    let seen: u64 = std::str::from_utf8(digits)?.parse().context("the content is no number that was written")?;
    ensure!(content == number_as_content(seen), "number {seen} came back with other bytes");
    ensure!(seen >= history.acknowledged, "{} was acknowledged, but {seen} was read", history.acknowledged);
    ensure!(seen >= history.seen, "{} had been read, then {seen}", history.seen);
    ensure!(seen <= history.begun, "{seen} was read, but only {} was ever begun", history.begun);
    Ok(seen)
}

/// A number, and some kilobytes that depend on it, so that torn or mixed shards cannot pass.
fn number_as_content(number: u64) -> Vec<u8> {
    let mut chance = Chance(number);
    let mut content = format!("{number} ").into_bytes();
    content.extend((0..512).flat_map(|_| chance.next().to_le_bytes()));
    content
}

/// A seeded source of numbers (SplitMix64): the same kills in every run, as far as the machine allows.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Ctrl-C in the middle of `persona demo`: it says so in one line and fails, and no process and no directory is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_leaves_nothing_of_a_demo_behind() -> Result<()> {
    let _turn = alone_on_this_machine().await;
    let scratch = tempfile::tempdir()?;
    let mut demo = tokio::process::Command::new(persona_binary());
    demo.arg("demo").env("TMPDIR", scratch.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let demo = demo.spawn()?;
    let pid = demo.id().context("the demo runs")?;
    let nodes = until("five nodes of the demo", PATIENCE, async || {
        let mut pids = Vec::new();
        for mesh in std::fs::read_dir(scratch.path()).into_iter().flatten().flatten() {
            for node in std::fs::read_dir(mesh.path()).into_iter().flatten().flatten() {
                pids.extend(std::fs::read_to_string(node.path().join("node.pid")).ok().map(|pid| pid.trim().to_owned()));
            }
        }
        Ok((pids.len() >= 5).then_some(pids))
    })
    .await?;
    let alive = |pid: &String| std::path::Path::new("/proc").join(pid).exists();
    ensure!(nodes.iter().all(alive), "not all of {nodes:?} run");
    ensure!(std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status()?.success(), "kill -INT failed");
    let end = tokio::time::timeout(PATIENCE, demo.wait_with_output()).await.context("the demo goes on after Ctrl-C")??;
    ensure!(end.status.code() == Some(1), "it ended with {}", end.status);
    let said = String::from_utf8_lossy(&end.stderr).into_owned();
    ensure!(said.lines().count() == 1 && said.contains("interrupted"), "it said: {said}");
    ensure!(!nodes.iter().any(alive), "some of {nodes:?} still run");
    let left: Vec<_> = std::fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The problem that a request was refused with, which must be one of `titles`.
fn expect_problem(answer: Result<Value, ApiError>, titles: &[&str]) -> Result<Problem> {
    match answer {
        Ok(answer) => anyhow::bail!("it should have been refused ({}), but: {answer}", titles.join(" or ")),
        Err(ApiError::Problem(problem)) if titles.contains(&problem.title.as_str()) => Ok(*problem),
        Err(error) => Err(error).with_context(|| format!("it should have been refused with {}", titles.join(" or "))),
    }
}
