//! The command line. Every verb but `up`, `demo` and `certificate verify` is a client of the control API (docs/spec/api.md).

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind, value_parser};
use data_encoding::BASE64;
use persona_agent::personality::ATTRIBUTES_BYTES_MAX;
use persona_fragments::{CertifiedHead, Class, Ed25519Signer, Ed25519Verifier};
use persona_lab::ScoreOptions;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    advice::Told,
    bench::{CLIENTS_MAX, OPERATIONS_MAX},
    client::{Client, Failure, segment},
    daemon::{self, Options},
    http::DOCUMENT_BYTES_MAX,
    keystore::{PassphrasePurpose, PassphraseSource, files, passphrase},
    lab, output,
    passage::{Open, Passage},
};

/// A peer-to-peer mesh that keeps agents' personalities alive while machines come and go.
#[derive(Parser)]
#[command(name = "persona", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Clone)]
struct Common {
    /// The node's state directory [default: ~/.persona]
    #[arg(long, global = true, env = "PERSONA_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    json: bool,
}

impl Common {
    fn dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let home = std::env::var_os("HOME").context("neither --dir nor PERSONA_DIR nor HOME is set: say where the node's state is")?;
        Ok(PathBuf::from(home).join(".persona"))
    }

    fn client(&self) -> anyhow::Result<Client> {
        Client::of(&self.dir()?)
    }
}

#[derive(Subcommand)]
enum Verb {
    /// Run a node in the foreground
    #[command(after_help = "Example:\n  persona up --dir /var/lib/persona --join persona:abc... --passphrase-file /run/secrets/persona")]
    Up(Up),
    /// Print a ticket by which others join this node's mesh
    #[command(after_help = "Example:\n  persona up --dir ~/second --join \"$(persona invite)\"")]
    Invite,
    /// Show what the node is, holds and sees
    #[command(after_help = "Example:\n  persona status --json | grep ready")]
    Status,
    /// List connected peers
    #[command(after_help = "Example:\n  persona peers")]
    Peers,
    /// Stop the node cleanly
    #[command(after_help = "Example:\n  persona stop --dir ~/second")]
    Stop,
    /// Create, list, show, export and import agents
    #[command(subcommand, after_help = "Example:\n  persona agent create ada --role librarian")]
    Agent(AgentVerb),
    /// Read an agent's personality through the mesh
    #[command(subcommand, after_help = "Example:\n  persona personality get ada")]
    Personality(PersonalityVerb),
    /// Store and read documents of an agent
    #[command(subcommand, after_help = "Example:\n  persona section put ada doc/prompt prompt.md")]
    Section(SectionVerb),
    /// Export and verify proofs that a section is stored
    #[command(subcommand, after_help = "Example:\n  persona certificate export ada/core --output ada-core.cert")]
    Certificate(CertificateVerb),
    /// Show who holds a section and who answers, without any secret
    #[command(after_help = "Examples:\n  persona analyze ada/core\n  persona analyze /persona/mfzwi3dp...")]
    Analyze {
        /// AGENT/SECTION on the agent's own node, or a KAD_KEY anywhere
        target: String,
    },
    /// Send a text from one agent to another
    #[command(after_help = "Example:\n  persona send ada did:key:z6Mk... 'are you there?'")]
    Send {
        /// An agent of this node
        from: String,
        /// The recipient: an agent id, or the name of an agent of this node
        to: String,
        /// The text
        text: String,
    },
    /// Show messages that were delivered to an agent
    #[command(after_help = "Example:\n  persona inbox ada --follow")]
    Inbox {
        /// An agent of this node
        agent: String,
        /// Go on, and print messages as they come
        #[arg(long)]
        follow: bool,
        /// Only messages after this sequence number
        #[arg(long, default_value_t = 0, value_name = "SEQ")]
        after: u64,
    },
    /// Measure a node
    #[command(subcommand, after_help = "Example:\n  persona bench storage --nodes 14")]
    Bench(BenchVerb),
    /// Measure how well behaviour tells agents apart
    #[command(subcommand, after_help = "Example:\n  persona lab score typing.csv --genuine-from 11 --online")]
    Lab(LabVerb),
    /// Show on this machine that a personality outlives the machines that carry it
    #[command(after_help = "Example:\n  persona demo --nodes 14 --kill 4 --attributes my-agent.json")]
    Demo(Demo),
}

#[derive(Args)]
struct Up {
    /// The mesh to be in: 1 to 32 of a-z, 0-9 and '-'
    #[arg(long, default_value = "persona", value_name = "NAME")]
    mesh: String,
    /// Where to listen, as a multiaddr; may be repeated
    #[arg(long, value_name = "MULTIADDR", default_values = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"])]
    listen: Vec<String>,
    /// Where others reach this node, as a multiaddr, if not where it listens (a forwarded port); may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    announce: Vec<String>,
    /// A ticket from `persona invite`; may be repeated
    #[arg(long, value_name = "TICKET")]
    join: Vec<String>,
    /// The multiaddr of a node of the mesh; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// Where to serve the control API, on loopback
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    api: String,
    /// A file with the passphrase of the node's keystore [default: $PERSONA_PASSPHRASE, else the terminal]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Let no more than f holders of a section be in one network: a /24 of IPv4 or a /48 of IPv6. Private addresses do not count
    #[arg(long)]
    diversity_prefix: bool,
    /// How long holders renew the sections of a class among themselves while this node is away: core, relationship, active or document, and
    /// 90s, 30m, 12h or 7d, at most 30d; 0 for not at all. May be repeated [default: core=24h, relationship=24h, active=0, document=0]
    #[arg(long, value_name = "CLASS=TIME", value_parser = class_lasting)]
    renew_for: Vec<(Class, Duration)>,
    /// Where agents are born on this node, unless they say otherwise
    #[arg(long, default_value = "", value_name = "TEXT")]
    birth_place: String,
}

#[derive(Subcommand)]
enum AgentVerb {
    /// Bring an agent into being
    #[command(after_help = "Example:\n  persona agent create ada --role librarian --attributes ada.json")]
    Create {
        /// Its name on this node
        name: String,
        /// What it does
        #[arg(long)]
        role: Option<String>,
        /// Its attributes: a JSON file, kept byte for byte
        #[arg(long, value_name = "FILE.json")]
        attributes: Option<PathBuf>,
        /// Where it is born
        #[arg(long, value_name = "TEXT")]
        place: Option<String>,
        /// Where to write its recovery file [default: DIR/recovery/NAME.persona-recovery]
        #[arg(long, value_name = "FILE")]
        recovery: Option<PathBuf>,
    },
    /// List the agents of this node
    #[command(after_help = "Example:\n  persona agent list")]
    List,
    /// Show an agent and its sections: what their last puts reached, and what the probes of their holders said since
    #[command(after_help = "Example:\n  persona agent show ada\n\n`persona analyze ada/core` asks the holders now.")]
    Show {
        /// An agent of this node
        agent: String,
    },
    /// Write an agent's recovery file again
    #[command(after_help = "Example:\n  persona agent export ada /media/stick/ada.persona-recovery")]
    Export {
        /// An agent of this node
        agent: String,
        /// Where to write it
        file: PathBuf,
        /// A file with a passphrase for it [default: the node's]
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Bring an agent to this node from its recovery file and the mesh
    #[command(after_help = "Example:\n  persona agent import /media/stick/ada.persona-recovery")]
    Import {
        /// The recovery file
        file: PathBuf,
        /// Its name on this node [default: the one it had]
        #[arg(long)]
        name: Option<String>,
        /// A file with the recovery file's passphrase [default: $PERSONA_PASSPHRASE, else the terminal]
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum PersonalityVerb {
    /// Read it by quorum and print the canonical document
    #[command(after_help = "Example:\n  persona personality get ada --mode atomic")]
    Get {
        /// An agent of this node
        agent: String,
        /// any (labelled maybe-stale), regular, or atomic
        #[arg(long, default_value = "regular", value_parser = ["any", "regular", "atomic"])]
        mode: String,
        /// Print the user's own attributes alone, byte for byte
        #[arg(long)]
        attributes: bool,
        /// Write to a file instead of stdout
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum SectionVerb {
    /// Store a document
    #[command(after_help = "Example:\n  persona section put ada doc/prompt prompt.md --require-level 3")]
    Put {
        /// An agent of this node
        agent: String,
        /// The section's name: doc/...
        name: String,
        /// The document; - for stdin
        file: PathBuf,
        /// core, relationship, active or document
        #[arg(long, default_value = "document", value_parser = ["core", "relationship", "active", "document"])]
        class: String,
        /// How long a version lives unless this node renews it, in seconds [default: the class's]
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<f64>,
        /// How long its holders renew it among themselves while this node is away, as 90s, 30m, 12h or 7d; 0 for not at all [default: the
        /// class's, and for documents 0]
        #[arg(long, value_name = "TIME", value_parser = lasting)]
        renew_for: Option<f64>,
        /// The level to ask for, 1 to 10 [default: the class's]
        #[arg(long, value_parser = value_parser!(u8).range(1..=10))]
        level: Option<u8>,
        /// Refuse to store at a lower level
        #[arg(long, value_name = "L", value_parser = value_parser!(u8).range(0..=10))]
        require_level: Option<u8>,
    },
    /// Read a section through the mesh
    #[command(after_help = "Example:\n  persona section get ada doc/prompt --output prompt.md")]
    Get {
        /// An agent of this node
        agent: String,
        /// The section's name
        name: String,
        /// any (labelled maybe-stale), regular, or atomic
        #[arg(long, default_value = "regular", value_parser = ["any", "regular", "atomic"])]
        mode: String,
        /// Write to a file instead of stdout
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum CertificateVerb {
    /// Write a section's certificate: a proof that its holders have it on disk
    #[command(after_help = "Example:\n  persona certificate export ada/core --output ada-core.cert")]
    Export {
        /// AGENT/SECTION, or a KAD_KEY
        target: String,
        /// Write to a file instead of printing base64
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a certificate offline
    #[command(after_help = "Example:\n  persona certificate verify ada-core.cert")]
    Verify {
        /// The file
        file: PathBuf,
    },
}

const BENCH_HELP: &str = "Example:
  persona bench storage --bytes 16384 --clients 1,16 --operations 200

Where the time goes (with --json under put_time and get_time; docs/performance.md has it in full):
the run's wall-clock time on the measuring node, divided into shares whose sum is 1.
  crypto             its signatures and verifications, measured, and its sealing, timed apart
  coding             its Reed-Solomon coding and hashes of shards, timed apart
  other              the rest of its own code: the protocol, the wire format
  disk               the syncs of its own disk
  network+holders    neither of these: transport, and the holders' own work and syncs, undivided";

#[derive(Subcommand)]
enum BenchVerb {
    /// Put and get sections of the node's own through the mesh
    #[command(after_help = BENCH_HELP)]
    Storage {
        /// Bytes in each section
        #[arg(long, default_value_t = 16 * 1024, value_parser = value_parser!(u32).range(1..=DOCUMENT_BYTES_MAX as i64))]
        bytes: u32,
        /// The level to ask for: 5 is core's
        #[arg(long, default_value_t = 5, value_parser = value_parser!(u8).range(1..=10))]
        level: u8,
        /// Clients at once, 1 to 64; several numbers give several runs
        #[arg(long, value_delimiter = ',', default_values_t = [1, 16], value_parser = value_parser!(u32).range(1..=i64::from(CLIENTS_MAX)))]
        clients: Vec<u32>,
        /// Puts, and as many gets, in each run
        #[arg(long, default_value_t = 300, value_parser = value_parser!(u32).range(1..=i64::from(OPERATIONS_MAX)))]
        operations: u32,
        /// Start a mesh of this many nodes for it, instead of using the node in --dir
        #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(1..=64))]
        nodes: Option<u8>,
    },
}

#[derive(Subcommand)]
enum LabVerb {
    /// Score labelled data with the verifier of natural behaviour: who is genuine, who is somebody else?
    #[command(after_help = SCORE_HELP)]
    Score {
        /// CSV with a header: subject,session,rep and then numbers, one column for each feature
        file: PathBuf,
        /// How many first repetitions of each subject are learnt as its own
        #[arg(long, default_value_t = 10, value_name = "N")]
        enrol: usize,
        /// From which repetition on a subject's own are scored as genuine; those between are only learnt from, with --online
        #[arg(long, default_value_t = 201, value_name = "N")]
        genuine_from: usize,
        /// Go on learning from every own repetition, after it was scored
        #[arg(long)]
        online: bool,
        /// What a subject is compared with: the other subjects, or nothing
        #[arg(long, default_value = "leave-one-out", value_parser = ["leave-one-out", "none"])]
        population: String,
    },
}

const SCORE_HELP: &str = "Each subject enrols with its first repetitions; its own later ones are genuine, and the first five of every other \
subject are impostors, from which nothing is learnt. Prints equal error rates (mean and sd over subjects), the share of impostors found where 1 % of \
the genuine are refused, and the equal error rate of the mean of five scores.

Example:
  persona lab score typing.csv --enrol 10 --genuine-from 201 --online --json";

#[derive(Args)]
struct Demo {
    /// How many nodes, each a process of its own
    #[arg(long, default_value_t = 14)]
    nodes: usize,
    /// How many to kill at once: the agent's host, and this many less one of its core holders
    #[arg(long, default_value_t = 4)]
    kill: usize,
    /// Your own agent's attributes [default: the example that is shipped]
    #[arg(long, value_name = "FILE")]
    attributes: Option<PathBuf>,
    /// Leave the state directories for inspection
    #[arg(long)]
    keep: bool,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    main_through(|_| Open)
}

/// Runs the command line with another [`Passage`] for the node of `persona up`, made with the node's signer.
pub fn main_through<P: Passage>(passage: impl FnOnce(Ed25519Signer) -> P) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    logs();
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let result = runtime.context("cannot start the runtime").and_then(|runtime| {
        let result = runtime.block_on(run(cli.verb, &cli.common, passage));
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            tell(&error, cli.common.json);
            ExitCode::FAILURE
        }
    }
}

fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PERSONA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,libp2p=warn,libp2p_kad=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// An error for people on stderr, and with --json for programs on stdout too.
fn tell(error: &anyhow::Error, as_json: bool) {
    let told = Told::of(error);
    if as_json {
        output::line(&told.to_json().to_string());
    }
    let mut talk = std::io::stderr().lock();
    let _ = writeln!(talk, "error: {}", told.detail);
    let card = &told.data["card"];
    if card.is_object() {
        let _ = writeln!(
            talk,
            "its card: {}, term {}, at home on {}, personality {}",
            text(&card["name"]),
            card["term"],
            text(&card["home"]),
            text(&card["commitment"])
        );
    }
    if told.shows_its_hint() {
        let _ = writeln!(talk, "hint: {}", told.hint);
    }
}

/// Wrong usage, told like every other error, with exit status 2. To be asked for help or the version is none.
fn misused(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let said: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let told = misuse(error, &said);
    if said.iter().any(|word| word == "--json") {
        output::line(&told.to_json().to_string());
    }
    let mut talk = std::io::stderr().lock();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = write!(talk, "{error}");
    } else {
        let _ = writeln!(talk, "error: {}", told.detail);
    }
    let _ = writeln!(talk, "hint: {}", told.hint);
    ExitCode::from(2)
}

/// What the parser says, on one line and without its usage, and the verb whose `--help` has it.
fn misuse(error: &clap::Error, said: &[String]) -> Told {
    let detail = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => "a verb is missing".to_owned(),
        _ => {
            let whole = error.to_string();
            let words = whole.split("\n\nUsage:").next().and_then(|words| words.split("\n\nFor more information").next()).unwrap_or(&whole);
            words.trim_start_matches("error:").split_whitespace().collect::<Vec<_>>().join(" ").replace(" tip: ", "; ")
        }
    };
    let mut command = Cli::command();
    let mut verb = vec!["persona".to_owned()];
    for word in said {
        let Some(found) = command.find_subcommand(word).cloned() else { continue };
        verb.push(found.get_name().to_owned());
        command = found;
    }
    let what = if command.has_subcommands() { "lists its verbs" } else { "has an example" };
    Told { title: "usage".to_owned(), detail, hint: format!("`{} --help` {what}", verb.join(" ")), data: json!({}) }
}

async fn run<P: Passage>(verb: Verb, common: &Common, passage: impl FnOnce(Ed25519Signer) -> P) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Up(up) => {
            let options = Options {
                dir: common.dir()?,
                mesh: up.mesh,
                listen: up.listen,
                announce: up.announce,
                join: up.join,
                bootstrap: up.bootstrap,
                api: up.api,
                passphrase_file: up.passphrase_file,
                diversity_prefix: up.diversity_prefix,
                renew_for: up.renew_for,
                birth_place: up.birth_place,
                json: common.json,
            };
            daemon::up(options, passage).await?;
        }
        Verb::Invite => {
            let reply = common.client()?.post("/v1/invite", &json!({})).await?;
            show(common, &reply, |reply| text(&reply["ticket"]).to_owned());
        }
        Verb::Status => {
            let reply = common.client()?.get("/v1/status").await?;
            show(common, &reply, status_text);
        }
        Verb::Peers => {
            let reply = common.client()?.get("/v1/peers").await?;
            show(common, &reply, |reply| {
                rows(&reply["peers"], |peer| {
                    let rtt = peer["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
                    format!(
                        "{}  {:<9} {rtt:>9}  {}",
                        text(&peer["peer_id"]),
                        if peer["outgoing"] == true { "outgoing" } else { "incoming" },
                        text(&peer["address"])
                    )
                })
            });
        }
        Verb::Stop => {
            common.client()?.post("/v1/stop", &json!({})).await?;
            if common.json {
                output::line("{}");
            }
        }
        Verb::Agent(verb) => agent(verb, common).await?,
        Verb::Personality(PersonalityVerb::Get { agent, mode, attributes, output }) => {
            let reply = common.client()?.get(&format!("/v1/agents/{}/personality?mode={mode}", segment(&agent))).await?;
            let chosen = if attributes { text(&reply["attributes"]).to_owned() } else { format!("{}\n", text(&reply["document"])) };
            if attributes && reply["attributes"].is_null() {
                return Err(Failure::new(
                    "no-attributes",
                    format!("{agent} was born without attributes"),
                    "without --attributes its document is printed",
                )
                .into());
            }
            deliver(common, &reply, chosen.as_bytes(), output.as_deref())?;
            note(&format!(
                "read from {} holders, {} shards from the network, {} in {:.1} ms; {:.0} s left{}",
                reply["holders_answered"],
                reply["shards_from_network"],
                text(&reply["fresh"]),
                number(&reply["ms"]),
                number(&reply["expires_in_s"]),
                lease(&reply)
            ));
        }
        Verb::Section(verb) => section(verb, common).await?,
        Verb::Certificate(verb) => certificate(verb, common).await?,
        Verb::Analyze { target } => {
            let reply = common.client()?.get(&format!("/v1/analyze?{}", target_query(&target)?)).await?;
            show(common, &reply, analysis_text);
        }
        Verb::Send { from, to, text: message } => {
            let client = common.client()?;
            let reply = client.post(&format!("/v1/agents/{}/send", segment(&from)), &json!({"to": to, "text": message})).await?;
            show(common, &reply, |reply| {
                format!("sent to {} as message {} of term {}", text(&reply["to"]), reply["counter"], reply["term"])
            });
        }
        Verb::Inbox { agent, follow, after } => inbox(common, &agent, follow, after).await?,
        Verb::Bench(BenchVerb::Storage { bytes, level, clients, operations, nodes }) => {
            return bench_storage(common, bytes, level, &clients, operations, nodes).await;
        }
        Verb::Lab(LabVerb::Score { file, enrol, genuine_from, online, population }) => {
            let options = ScoreOptions { enrol, genuine_from, online, population: population == "leave-one-out" };
            let report = lab::score(&file, options)?;
            output::line(&if common.json { serde_json::to_string(&report)? } else { lab::told(&report) });
        }
        Verb::Demo(options) => return demo(options, common).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn agent(verb: AgentVerb, common: &Common) -> anyhow::Result<()> {
    let client = common.client()?;
    match verb {
        AgentVerb::Create { name, role, attributes, place, recovery } => {
            let attributes = match &attributes {
                Some(file) => Some(attributes_in(file)?),
                None => None,
            };
            let file = recovery
                .map_or_else(|| Ok::<_, anyhow::Error>(common.dir()?.join("recovery").join(format!("{name}.persona-recovery"))), Ok)?;
            keep_what_is_there(&file, "choose another with --recovery FILE")?;
            let body = json!({"name": name, "role": role, "attributes": attributes, "place": place});
            let mut reply = client.post("/v1/agents", &body).await?;
            write_recovery(&file, &reply)?;
            say_that_it_is_written(&client, &reply).await;
            reply["recovery_file"] = json!(file.display().to_string());
            if let Some(reply) = reply.as_object_mut() {
                reply.remove("recovery");
            }
            show(common, &reply, |reply| {
                let sections = rows(&reply["sections"], |put| {
                    let tolerance = if put["byzantine_tolerant"] == true { String::new() } else { ", not Byzantine-tolerant".to_owned() };
                    format!(
                        "  {:<6} {} of {} holders have a shard, any {} give it back: level {}{tolerance}",
                        text(&put["section"]),
                        put["placed"],
                        put["n"],
                        put["k"],
                        put["level"]
                    )
                });
                format!("{} is born: {}\n{sections}", text(&reply["name"]), text(&reply["agent"]))
            });
            note(&format!(
                "its recovery file is {}\n  Copy it to a place that does not die with this machine. With it, its passphrase (this node's) and the mesh, the agent comes back anywhere.",
                file.display()
            ));
        }
        AgentVerb::List => {
            let reply = client.get("/v1/agents").await?;
            show(common, &reply, |reply| {
                rows(&reply["agents"], |agent| {
                    format!("{:<16} {}  term {}  {}", text(&agent["name"]), text(&agent["agent"]), agent["term"], text(&agent["state"]))
                })
            });
        }
        AgentVerb::Show { agent } => {
            let reply = client.get(&format!("/v1/agents/{}", segment(&agent))).await?;
            show(common, &reply, |reply| {
                let sections = rows(&reply["sections"], |section| {
                    let left = section["expires_in_s"].as_f64().map_or_else(|| "-".to_owned(), |left| format!("{left:.0} s left"));
                    format!(
                        "  {:<40} {:<12} level {} now, {} at its last put  {}/{} held  {left}  {}",
                        text(&section["name"]),
                        text(&section["class"]),
                        section["level_now"],
                        section["level"],
                        section["held"],
                        section["n"],
                        text(&section["kad_key"])
                    )
                });
                let name = text(&reply["name"]);
                format!(
                    "{name}  {}\nterm {}  {}\n{sections}\nthe holders are probed every 10 s: `persona analyze {name}/core` asks them once more, and names each",
                    text(&reply["agent"]),
                    reply["term"],
                    text(&reply["state"])
                )
            });
            if reply["recovery_written"] == false {
                note(&daemon::recovery_advice(text(&reply["name"])));
            }
        }
        AgentVerb::Export { agent, file, passphrase_file } => {
            keep_what_is_there(&file, "choose another name: `persona agent export AGENT FILE`")?;
            let own = match passphrase_file {
                Some(file) => Some(passphrase(&PassphraseSource::File(file), PassphrasePurpose::Seal)?),
                None => None,
            };
            let body = json!({"passphrase": own.as_ref().map(|own| own.expose())});
            let mut reply = client.post(&format!("/v1/agents/{}/export", segment(&agent)), &body).await?;
            write_recovery(&file, &reply)?;
            say_that_it_is_written(&client, &reply).await;
            if let Some(reply) = reply.as_object_mut() {
                reply.remove("recovery");
                reply.insert("recovery_file".into(), json!(file.display().to_string()));
            }
            show(common, &reply, |reply| format!("the recovery file of {} is {}", text(&reply["name"]), text(&reply["recovery_file"])));
        }
        AgentVerb::Import { file, name, passphrase_file } => {
            let recovery = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let source = passphrase_file.map_or(PassphraseSource::Any, PassphraseSource::File);
            let secret = passphrase(&source, PassphrasePurpose::Open)?;
            let body = json!({"recovery": BASE64.encode(&recovery), "passphrase": secret.expose(), "name": name});
            let reply = client.post("/v1/agents/import", &body).await?;
            show(common, &reply, |reply| {
                let sections = rows(&reply["sections"], |section| {
                    let from = section["get"]["shards_from_network"]
                        .as_u64()
                        .map_or_else(String::new, |shards| format!(", {shards} shards from the network"));
                    format!("  {:<40} {}{from}", text(&section["section"]), text(&section["state"]))
                });
                let verdict = if reply["complete"] == true { "complete" } else { "incomplete: what is missing is named above" };
                format!(
                    "{} lives here now, in term {} (read in mode {})\n{sections}\n{verdict}",
                    text(&reply["name"]),
                    reply["term"],
                    text(&reply["mode"])
                )
            });
            if let Some(until) = reply["bounded_stale_until_ms"].as_u64() {
                note(&format!(
                    "too few holders answered to know that this is the newest state: a newer one may exist until {until} (ms since 1970)"
                ));
            }
        }
    }
    Ok(())
}

async fn section(verb: SectionVerb, common: &Common) -> anyhow::Result<()> {
    let client = common.client()?;
    match verb {
        SectionVerb::Put { agent, name, file, class, ttl, renew_for, level, require_level } => {
            let content = if file.as_os_str() == "-" {
                let mut content = Vec::new();
                let stdin = std::io::stdin().lock();
                std::io::Read::take(stdin, DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut content).context("cannot read stdin")?;
                content
            } else {
                match files::read_bounded(&file, DOCUMENT_BYTES_MAX as u64) {
                    Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => return Err(too_large(&file)),
                    read => read.with_context(|| format!("cannot read {}", file.display()))?,
                }
            };
            if content.len() > DOCUMENT_BYTES_MAX {
                return Err(too_large(&file));
            }
            let mut path = format!("/v1/agents/{}/sections/{}?class={}", segment(&agent), segment(&name), segment(&class));
            let given = [
                ("ttl_s", ttl.map(|ttl| ttl.to_string())),
                ("renew_for_s", renew_for.map(|seconds| seconds.to_string())),
                ("level", level.map(|level| level.to_string())),
                ("require_level", require_level.map(|level| level.to_string())),
            ];
            for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                path.push_str(&format!("&{name}={value}"));
            }
            let reply = client.send(client.request(Method::PUT, &path).body(content)).await?;
            show(common, &reply, |reply| {
                let tolerance = if reply["byzantine_tolerant"] == true { "" } else { " (not Byzantine-tolerant)" };
                format!(
                    "stored as version {}: {} of {} holders have a shard on disk, any {} of {} shards give it back: level {}{tolerance}, for {:.0} s unless renewed{}\nchance that it is lost before then, if this node were gone and nobody repaired it: {}",
                    text(&reply["version"]),
                    reply["placed"],
                    reply["n"],
                    reply["k"],
                    reply["n"],
                    reply["level"],
                    number(&reply["expires_in_s"]),
                    lease(reply),
                    odds(number(&reply["loss_chance"]))
                )
            });
        }
        SectionVerb::Get { agent, name, mode, output } => {
            let reply = client.get(&format!("/v1/agents/{}/sections/{}?mode={mode}", segment(&agent), segment(&name))).await?;
            let content = BASE64.decode(text(&reply["content"]).as_bytes()).context("the node's answer is malformed")?;
            deliver(common, &reply, &content, output.as_deref())?;
            note(&format!(
                "read from {} holders, {} shards from the network, {} in {:.1} ms; {:.0} s left{}",
                reply["holders_answered"],
                reply["shards_from_network"],
                text(&reply["fresh"]),
                number(&reply["ms"]),
                number(&reply["expires_in_s"]),
                lease(&reply)
            ));
        }
    }
    Ok(())
}

fn too_large(file: &Path) -> anyhow::Error {
    let what = if file.as_os_str() == "-" { "stdin".to_owned() } else { file.display().to_string() };
    Failure::new("too-large", format!("{what} has more than the {DOCUMENT_BYTES_MAX} bytes of a document"), "split it into several").into()
}

async fn certificate(verb: CertificateVerb, common: &Common) -> anyhow::Result<()> {
    match verb {
        CertificateVerb::Export { target, output } => {
            let reply = common.client()?.get(&format!("/v1/certificate?{}", target_query(&target)?)).await?;
            let bytes = BASE64.decode(text(&reply["certificate"]).as_bytes()).context("the node's answer is malformed")?;
            match output {
                Some(file) => deliver(common, &reply, &bytes, Some(&file))?,
                None => show(common, &reply, |reply| text(&reply["certificate"]).to_owned()),
            }
        }
        CertificateVerb::Verify { file } => {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            // As exported to a file, or as printed.
            let bytes = match std::str::from_utf8(&bytes).ok().and_then(|text| BASE64.decode(text.trim().as_bytes()).ok()) {
                Some(decoded) => decoded,
                None => bytes,
            };
            let head = CertifiedHead::from_bytes(&bytes, &Ed25519Verifier).map_err(|error| {
                Failure::new(
                    "invalid-certificate",
                    format!("{}: {error}", file.display()),
                    "it proves nothing: `persona certificate export AGENT/SECTION --output FILE`, on a node that reads the section, writes another",
                )
            })?;
            let manifest = &head.manifest;
            let report = json!({
                "valid": true, "kad_key": manifest.key.to_kad_key(), "agent": manifest.owner.to_did(), "version": manifest.version.to_string(),
                "manifest_hash": manifest.hash().to_hex(), "n": manifest.shape.n(), "k": manifest.shape.k(), "f": manifest.shape.f(),
                "acks": head.certificate.acks.iter().map(|ack| manifest.holders[usize::from(ack.index)].to_peer_id_string()).collect::<Vec<_>>(),
                "issued_at_ms": manifest.issued_at_ms, "expires_at_ms": head.expires_at_ms(), "content_len": manifest.content_len,
                "lease_until_ms": manifest.is_leased().then_some(manifest.renew_until_ms),
                "links": head.lease.as_ref().map_or(0, |lease| lease.links().len()),
                "holders": head.holders().iter().map(|peer| peer.to_peer_id_string()).collect::<Vec<_>>(),
            });
            show(common, &report, |report| {
                format!(
                    "valid: {} holders signed that version {} of {} is on their disks; any {} of its {} shards give it back\nagent {}\nsection {}\nmanifest {}\nexpires at {} (ms since 1970), unless renewed{}",
                    head.certificate.acks.len(),
                    text(&report["version"]),
                    text(&report["kad_key"]),
                    report["k"],
                    report["n"],
                    text(&report["agent"]),
                    text(&report["kad_key"]),
                    text(&report["manifest_hash"]),
                    report["expires_at_ms"],
                    lease(report)
                )
            });
        }
    }
    Ok(())
}

async fn inbox(common: &Common, agent: &str, follow: bool, after: u64) -> anyhow::Result<()> {
    let client = common.client()?;
    let mut after = after;
    loop {
        let wait = if follow { 30 } else { 0 };
        let reply = client.get(&format!("/v1/agents/{}/inbox?after={after}&wait_s={wait}", segment(agent))).await?;
        if common.json && !follow {
            output::line(&reply.to_string());
            return Ok(());
        }
        for message in reply["messages"].as_array().into_iter().flatten() {
            if common.json {
                output::line(&message.to_string());
            } else {
                let name = message["from_name"].as_str().unwrap_or("?");
                output::line(&format!("{:>4}  {name} ({}): {}", message["seq"], text(&message["from"]), text(&message["text"])));
            }
        }
        after = reply["next"].as_u64().unwrap_or(after);
        if !follow {
            return Ok(());
        }
    }
}

/// The attributes in a user's file. Whether they are JSON is for the node to say.
fn attributes_in(file: &Path) -> anyhow::Result<String> {
    let bytes = files::read_bounded(file, ATTRIBUTES_BYTES_MAX as u64).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => {
            let detail =
                format!("the attributes in {} are too large: an agent is born with at most {ATTRIBUTES_BYTES_MAX} bytes", file.display());
            Failure::new("too-large", detail, "keep the rest in documents: `persona section put AGENT doc/NAME FILE`").into()
        }
        _ => anyhow::Error::from(error).context(format!("cannot read {}", file.display())),
    })?;
    String::from_utf8(bytes).map_err(|_| {
        let detail = format!("the attributes in {} are not UTF-8 text", file.display());
        Failure::new("bad-request", detail, "give a JSON file, such as `persona agent create ada --attributes ada.json`").into()
    })
}

/// A recovery file is never replaced, nor is anything else that lies where one shall go: it may be the only way back to another agent.
fn keep_what_is_there(file: &Path, instead: &str) -> anyhow::Result<()> {
    if std::fs::symlink_metadata(file).is_err() {
        return Ok(());
    }
    let detail = format!("{} exists already", file.display());
    Err(Failure::new("exists", detail, format!("a recovery file is never replaced: {instead}")).into())
}

fn write_recovery(file: &Path, reply: &Value) -> anyhow::Result<()> {
    let bytes = BASE64.decode(text(&reply["recovery"]).as_bytes()).context("the node's answer is malformed")?;
    let written = || -> anyhow::Result<()> {
        if let Some(parent) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            files::create_private_directory(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        // It may have come there while the agent was being born.
        keep_what_is_there(file, "choose another")?;
        Ok(files::replace(file, &bytes)?)
    };
    written().map_err(|error| {
        let detail = format!("cannot write the recovery file {}: {error:#}", file.display());
        let hint = format!(
            "the agent lives, but has no recovery file yet: `persona agent export {} FILE` writes it elsewhere",
            text(&reply["name"])
        );
        Failure::new("no-recovery-file", detail, hint).into()
    })
}

/// Tells the node that somebody has the recovery file now: until then it asks for one.
async fn say_that_it_is_written(client: &Client, reply: &Value) {
    let path = format!("/v1/agents/{}/recovery-written", segment(text(&reply["agent"])));
    if let Err(error) = client.post(&path, &json!({})).await {
        note(&format!("the recovery file is written, but the node could not be told and goes on to ask for one: {error:#}"));
    }
}

/// AGENT/SECTION or a Kademlia key, as a query.
fn target_query(target: &str) -> anyhow::Result<String> {
    if target.starts_with("/persona/") {
        return Ok(format!("key={}", segment(target)));
    }
    let Some((agent, section)) = target.split_once('/').filter(|(agent, section)| !agent.is_empty() && !section.is_empty()) else {
        return Err(Failure::new(
            "bad-target",
            format!("{target:?} names no section"),
            "give AGENT/SECTION, such as ada/core, or a key, such as /persona/mfzwi...",
        )
        .into());
    };
    Ok(format!("agent={}&section={}", segment(agent), segment(section)))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn rows(list: &Value, row: impl Fn(&Value) -> String) -> String {
    list.as_array().into_iter().flatten().map(row).collect::<Vec<_>>().join("\n")
}

/// Data on stdout: JSON, or what people read.
fn show(common: &Common, reply: &Value, readable: impl Fn(&Value) -> String) {
    let shown = if common.json { reply.to_string() } else { readable(reply) };
    if !shown.is_empty() {
        output::line(&shown);
    }
}

/// Content to stdout or a file; with --json everything about it to stdout.
fn deliver(common: &Common, reply: &Value, content: &[u8], file: Option<&Path>) -> anyhow::Result<()> {
    if let Some(file) = file {
        write_output(file, content).with_context(|| format!("cannot write {}", file.display()))?;
    } else if !common.json {
        output::bytes(content);
    }
    if common.json {
        output::line(&reply.to_string());
    }
    Ok(())
}

/// Writes a user's file: whole or not at all where it is a plain file, and into it where it is a pipe, a device or a link.
fn write_output(file: &Path, content: &[u8]) -> std::io::Result<()> {
    if std::fs::symlink_metadata(file).is_ok_and(|there| !there.file_type().is_file()) {
        return std::fs::write(file, content);
    }
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = file.with_file_name(format!(".{name}.{}.persona", std::process::id()));
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
    let written = out.write_all(content).and_then(|()| out.sync_all()).and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Talk on stderr.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn status_text(reply: &Value) -> String {
    let readiness = match (reply["ready"] == true, reply["alone"] == true) {
        (true, true) => "ready, alone",
        (true, false) => "ready",
        (false, _) => "not ready: the canary section cannot be read back through other nodes",
    };
    let mut lines = vec![
        format!("{}  mesh {} ({})  {readiness}", text(&reply["peer_id"]), text(&reply["mesh"]), text(&reply["admission"])),
        format!(
            "{} peers, {} in the routing table; up for {:.0} s",
            reply["peers"],
            reply["network"]["kad_table"],
            number(&reply["uptime_s"])
        ),
        format!(
            "holds {} shards of {} sections for others ({} bytes)",
            reply["store"]["shards"], reply["store"]["sections"], reply["store"]["bytes"]
        ),
    ];
    lines.extend(reply["listen_addrs"].as_array().into_iter().flatten().map(|address| format!("listens on {}", text(address))));
    let churn = &reply["churn"];
    lines.push(format!(
        "watched holders for {:.1} hours, {} died; by that {:.1} % die within an hour",
        number(&churn["holder_hours"]),
        churn["deaths"],
        number(&churn["death_chance_1h"]) * 100.0
    ));
    if reply["clock"]["synced"] == false {
        lines.push(format!(
            "this clock is off by {:.1} s, as {} peers show",
            number(&reply["clock"]["offset_ms"]).abs() / 1000.0,
            reply["clock"]["peers"]
        ));
    }
    for agent in reply["agents"].as_array().into_iter().flatten() {
        let lowest = |level: &str| {
            let sections = agent["sections"].as_array().into_iter().flatten();
            let lasting = sections.filter(|section| section["state"] != "expired" && section["class"] != "active");
            lasting.filter_map(|section| section[level].as_u64()).min().unwrap_or(0)
        };
        let (now, put) = (lowest("level_now"), lowest("level"));
        lines.push(format!(
            "agent {}  {}  term {}  {}  lowest level {now} now, {put} at the last puts",
            text(&agent["name"]),
            text(&agent["agent"]),
            agent["term"],
            text(&agent["state"])
        ));
    }
    lines.extend(reply["advice"].as_array().into_iter().flatten().map(|advice| format!("advice: {}", text(advice))));
    lines.extend(reply["alarms"].as_array().into_iter().flatten().map(|alarm| format!("alarm: {}", text(&alarm["text"]))));
    lines.join("\n")
}

/// A small chance in words: people read `1 in 4300` more easily than `2.3e-4`.
fn odds(chance: f64) -> String {
    match chance {
        _ if chance < 1e-12 => "less than 1 in a trillion".to_owned(),
        _ if chance >= 0.1 => format!("{:.0} %", chance * 100.0),
        _ => {
            let one_in = 1.0 / chance;
            let unit = 10_f64.powf((one_in.log10() - 1.0).floor().max(0.0)); // two digits say all that is known
            format!("1 in {:.0}", (one_in / unit).round() * unit)
        }
    }
}

fn analysis_text(reply: &Value) -> String {
    let holders = rows(&reply["holders"], |holder| {
        let shard = if holder["has_shard"] == true { "has its shard" } else { "" };
        format!("  {:>2}  {}  {:<11} {shard}", holder["index"], text(&holder["peer_id"]), text(&holder["answer"]))
    });
    let modes = match (reply["readable"]["any"] == true, reply["readable"]["regular"] == true) {
        (_, true) => "readable in every mode",
        (true, false) => "readable in mode any only: too few holders answer to know that it is the newest",
        (false, false) => "not readable now",
    };
    format!(
        "{}\n{}\nversion {}  manifest {}\nlevel {} now, {} asked; any {} of {} shards; {} acks in its certificate; {:.0} s left{}\n{holders}\n{} of {} holders answered: {modes}",
        reply["section"].as_str().unwrap_or("(unnamed)"),
        text(&reply["kad_key"]),
        text(&reply["version"]),
        text(&reply["manifest_hash"]),
        reply["level_now"],
        reply["level_asked"],
        reply["k"],
        reply["n"],
        reply["certificate"]["acks"],
        number(&reply["expires_in_s"]),
        lease(reply),
        reply["answered"],
        reply["n"]
    )
}

/// For how much longer the holders of a section renew it while its owner is away, if they do.
fn lease(reply: &Value) -> String {
    let Some(until_ms) = reply["lease_until_ms"].as_u64() else { return String::new() };
    let left_s = until_ms.saturating_sub(crate::clock::now().wall_ms) / 1000;
    let (days, hours, minutes) = (left_s / 86_400, left_s / 3_600 % 24, left_s / 60 % 60);
    let left = match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes} min"),
        (_, _) => format!("{days} d {hours} h"),
    };
    format!("; while its owner is away its holders renew it for {left} more")
}

/// Reads a time: a number of seconds, or one with its unit: s, m, h or d.
fn lasting(text: &str) -> Result<f64, String> {
    let (number, seconds) = match text.trim_end_matches(|c: char| c.is_ascii_alphabetic()) {
        number if number.len() == text.len() => (number, 1.0),
        number => (
            number,
            match &text[number.len()..] {
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                unit => return Err(format!("{unit:?} is no unit of time: s, m, h or d")),
            },
        ),
    };
    let number: f64 = number.parse().map_err(|_| String::from("a number and its unit, as 90s, 30m, 12h or 7d"))?;
    if number.is_finite() && number >= 0.0 { Ok(number * seconds) } else { Err("a time is not negative".into()) }
}

/// How long a class is renewed for, as `core=7d`.
fn class_lasting(text: &str) -> Result<(Class, Duration), String> {
    let (class, time) = text.split_once('=').ok_or("a class and a time, as core=7d")?;
    let names = || Class::ALL.map(Class::name).join(", ");
    let class = Class::from_name(class).ok_or_else(|| format!("{class:?} is no class: {}", names()))?;
    let time = Duration::from_secs_f64(lasting(time)?.min(f64::from(u32::MAX)));
    let most = Duration::from_millis(persona_fragments::manifest::RENEW_MS_MAX);
    if time <= most { Ok((class, time)) } else { Err("holders renew for at most 30d".into()) }
}

async fn demo(options: Demo, common: &Common) -> anyhow::Result<ExitCode> {
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let options = persona_drill::demo::DemoOptions {
        nodes: options.nodes,
        kill: options.kill,
        attributes: options.attributes,
        json: common.json,
        keep: options.keep,
    };
    let held = persona_drill::demo::command(&binary, &options, &crate::forge::forge, daemon::signals()).await?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn bench_storage(
    common: &Common,
    bytes: u32,
    level: u8,
    clients: &[u32],
    operations: u32,
    nodes: Option<u8>,
) -> anyhow::Result<ExitCode> {
    // The mesh, if there is one, lives until this function returns.
    let mesh = match nodes {
        Some(nodes) => {
            let binary = std::env::current_exe().context("cannot find this program's own file")?;
            note(&format!("starting {nodes} nodes on loopback ..."));
            Some(persona_drill::Mesh::start(&binary, &persona_drill::MeshOptions::of(usize::from(nodes), "benchmark")).await?)
        }
        None => None,
    };
    let client = match &mesh {
        Some(mesh) => Client::of(mesh.node(0).dir())?,
        None => common.client()?,
    };
    let mut runs = Vec::new();
    for clients in clients {
        note(&format!("{operations} puts and gets of {bytes} bytes at level {level}, {clients} at once ..."));
        let body = json!({"bytes": bytes, "level": level, "clients": clients, "operations": operations});
        runs.push(client.post("/v1/bench/storage", &body).await?);
    }
    let status = client.get("/v1/status").await?;
    let report =
        json!({"runs": runs, "peers": status["peers"], "cores": std::thread::available_parallelism().map_or(0, |cores| cores.get())});
    show(common, &report, |report| {
        let head = "clients  operation      p50       p99   per second   crypto  coding   other    disk  network+holders".to_owned();
        let table = report["runs"].as_array().into_iter().flatten().flat_map(|run| {
            ["put", "get"].map(|what| {
                let (series, share) = (&run[what], &run[format!("{what}_time")]["share"]);
                let percent = |name: &str| format!("{:.1} %", number(&share[name]) * 100.0);
                format!(
                    "{:>7}  {what:<9} {:>6.2} ms {:>6.2} ms {:>10.0}   {:>6}  {:>6}  {:>6}  {:>6}  {:>15}",
                    run["clients"],
                    number(&series["p50_ms"]),
                    number(&series["p99_ms"]),
                    number(&series["per_second"]),
                    percent("crypto"),
                    percent("coding"),
                    percent("other"),
                    percent("disk"),
                    percent("network_and_holders")
                )
            })
        });
        std::iter::once(head).chain(table).collect::<Vec<_>>().join("\n")
    });
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misuse_of(line: &str) -> Told {
        let said: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let error = Cli::try_parse_from(std::iter::once("persona").chain(line.split_whitespace())).err().expect("this is wrong usage");
        misuse(&error, &said)
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_says_what_and_where_it_is_told_right() {
        for (line, detail, hint) in [
            ("", "a verb is missing", "`persona --help` lists its verbs"),
            ("agent --json", "a verb is missing", "`persona agent --help` lists its verbs"),
            ("agent create", "<NAME>", "`persona agent create --help` has an example"),
            ("--json --dir /tmp/x section get ada", "<NAME>", "`persona section get --help` has an example"),
            ("personality get ada --mode fresh", "invalid value 'fresh'", "`persona personality get --help` has an example"),
            ("section put ada doc/x file --class secret", "invalid value 'secret'", "`persona section put --help` has an example"),
            ("bench storage --nodes 14 --clients 1,0", "invalid value '0'", "`persona bench storage --help` has an example"),
            ("frobnicate", "unrecognized subcommand 'frobnicate'", "`persona --help` lists its verbs"),
            ("agent crate", "'crate'; a similar subcommand exists: 'create'", "`persona agent --help` lists its verbs"),
        ] {
            let told = misuse_of(line);
            assert!(
                told.detail.contains(detail) && !told.detail.contains('\n') && !told.detail.contains("Usage:"),
                "{line}: {}",
                told.detail
            );
            assert_eq!(told.hint, hint, "{line}");
        }
    }

    #[test]
    fn every_verb_has_a_help_with_an_example() {
        fn look(command: &clap::Command, name: &str) {
            let example = command.get_after_help().is_some_and(|help| help.to_string().contains("  persona "));
            assert!(example || name == "persona", "{name} --help has no example");
            for verb in command.get_subcommands() {
                look(verb, &format!("{name} {}", verb.get_name()));
            }
        }
        look(&Cli::command(), "persona");
    }

    #[test]
    fn chances_are_told_in_two_digits() {
        let told = [
            (0.0, "less than 1 in a trillion"),
            (2.33e-4, "1 in 4300"),
            (0.05, "1 in 20"),
            (0.3, "30 %"),
            (1.0, "100 %"),
            (1e-9, "1 in 1000000000"),
        ];
        for (chance, words) in told {
            assert_eq!(odds(chance), words);
        }
    }

    #[test]
    fn a_recovery_file_is_never_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("ada.persona-recovery");
        let reply = json!({"name": "ada", "recovery": BASE64.encode(b"new")});
        let no_recovery_file = |error: anyhow::Error| {
            let told = Told::of(&error);
            assert_eq!(told.title, "no-recovery-file");
            assert!(told.hint.contains("persona agent export ada"), "{}", told.hint);
        };
        assert!(keep_what_is_there(&file, "choose another").is_ok());
        std::fs::write(&file, b"old").unwrap();
        assert_eq!(Told::of(&keep_what_is_there(&file, "choose another").unwrap_err()).title, "exists");
        no_recovery_file(write_recovery(&file, &reply).unwrap_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        // A link that leads nowhere is something too.
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        no_recovery_file(write_recovery(&link, &reply).unwrap_err());
        let fresh = scratch.path().join("deep/fresh");
        write_recovery(&fresh, &reply).unwrap();
        assert_eq!(std::fs::read(&fresh).unwrap(), b"new");
    }
}
