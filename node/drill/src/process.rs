//! One node as a process: started with `persona up --json`, watched, stopped, paused, killed, restarted on the same directory.
//!
//! A node gets a process group of its own, so that Ctrl-C in the terminal reaches the drill first and the drill decides what happens. Whatever
//! ends the drill but a signal that no program can catch (end of scope, error, panic) also ends the node: [`NodeProcess`] kills on drop and waits.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;

use crate::api::{self, Api};
use crate::error::DrillError;

/// How long a node may take from its start to the event `up`: generous, because 14 may start on two busy cores.
const UP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a clean stop may take before it is cut short.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How often something that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How many lines of a log an error quotes.
const LOG_TAIL_LINES: usize = 20;
/// How many life events of one process are kept. `up`, `ready` and `stopped` are three; more would be a fault, and the surplus is dropped.
const EVENTS_MAX: usize = 64;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The mesh's name.
    pub mesh: String,
    /// Multiaddrs to listen on. Default: loopback only, TCP and QUIC, ports chosen by the system.
    pub listen: Vec<String>,
    /// Multiaddrs that others are told in place of those. Default: none.
    pub announce: Vec<String>,
    /// Tickets to join by.
    pub join: Vec<String>,
    /// Multiaddrs of peers to join by.
    pub bootstrap: Vec<String>,
    /// For how long holders renew the sections of a class, as `core=7d`. Default: the node's own.
    pub renew_for: Vec<String>,
    /// What seals the node's keystore. It goes to the process in its environment, never in its arguments.
    pub passphrase: String,
    /// The value of `PERSONA_LOG`.
    pub log: String,
    /// More variables for its environment.
    pub environment: Vec<(String, String)>,
    /// [`NodeProcess::limit_files`] will make its writes fail: the signal that by default ends a process that writes too much is ignored.
    pub limitable: bool,
}

impl NodeOptions {
    /// A node of the mesh `mesh` that listens on loopback over TCP and QUIC and knows nobody.
    pub fn on_loopback(mesh: &str, passphrase: &str) -> Self {
        Self {
            mesh: mesh.to_owned(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned(), "/ip4/127.0.0.1/udp/0/quic-v1".to_owned()],
            announce: Vec::new(),
            join: Vec::new(),
            bootstrap: Vec::new(),
            renew_for: Vec::new(),
            passphrase: passphrase.to_owned(),
            log: "info".to_owned(),
            environment: Vec::new(),
            limitable: false,
        }
    }

    /// The same, without QUIC: everything that is said goes over TCP, where a [`crate::WireTap`] can hear it.
    #[must_use]
    pub fn tcp_only(mut self) -> Self {
        self.listen.retain(|address| !address.contains("quic"));
        self
    }
}

/// One node.
pub struct NodeProcess {
    binary: PathBuf,
    dir: PathBuf,
    log: PathBuf,
    options: NodeOptions,
    child: Option<Child>,
    events: watch::Receiver<Vec<Value>>,
    up: Option<Up>,
}

/// What is known of a node once it is up.
struct Up {
    api: Api,
    peer_id: String,
    listen: Vec<String>,
}

/// What a verb of the command line said.
#[derive(Debug)]
pub struct Spoken {
    /// How it ended.
    pub status: ExitStatus,
    /// Its data.
    pub stdout: Vec<u8>,
    /// Its talk.
    pub stderr: String,
}

impl Spoken {
    /// The data as JSON, which is what `--json` promises.
    ///
    /// # Errors
    /// The verb failed, or printed something else.
    pub fn json(&self) -> Result<Value, DrillError> {
        if !self.status.success() {
            return Err(DrillError::Usage(format!("the verb failed ({}): {}", self.status, self.stderr.trim_end())));
        }
        serde_json::from_slice(&self.stdout)
            .map_err(|error| DrillError::Usage(format!("stdout is not JSON ({error}): {}", String::from_utf8_lossy(&self.stdout))))
    }
}

impl NodeProcess {
    /// Starts a node in `dir` and waits until it is up; its stderr is appended to `dir` + `.log`.
    ///
    /// # Errors
    /// It cannot be started, ends by itself or takes too long; the error quotes its log.
    pub async fn start(binary: &Path, dir: &Path, options: NodeOptions) -> Result<Self, DrillError> {
        let mut node = Self::spawn(binary, dir, options)?;
        node.wait_up().await?;
        Ok(node)
    }

    /// Starts a node without waiting for it. To be called within a tokio runtime, which reads the node's stdout.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(binary: &Path, dir: &Path, options: NodeOptions) -> Result<Self, DrillError> {
        let log = dir.with_extension("log");
        let mut node = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            log,
            options,
            child: None,
            events: watch::channel(Vec::new()).1,
            up: None,
        };
        node.launch()?;
        Ok(node)
    }

    fn launch(&mut self) -> Result<(), DrillError> {
        let log_name = format!("open {}", self.log.display());
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(DrillError::io(log_name))?;
        let mut command = if self.options.limitable {
            let mut shell = Command::new("sh");
            shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(&self.binary);
            shell
        } else {
            Command::new(&self.binary)
        };
        command.arg("up").arg("--json").arg("--dir").arg(&self.dir).args(["--mesh", &self.options.mesh]);
        let lists = [("--listen", &self.options.listen), ("--announce", &self.options.announce), ("--join", &self.options.join)];
        let lists = lists.into_iter().chain([("--bootstrap", &self.options.bootstrap), ("--renew-for", &self.options.renew_for)]);
        for (flag, values) in lists {
            for value in values {
                command.args([flag, value]);
            }
        }
        command.env("PERSONA_PASSPHRASE", &self.options.passphrase).env("PERSONA_LOG", &self.options.log).env_remove("PERSONA_DIR");
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let mut child = command.spawn().map_err(|source| DrillError::Spawn { binary: self.binary.clone(), source })?;
        let stdout = child.stdout.take().map(tokio::process::ChildStdout::from_std);
        self.child = Some(child);
        self.up = None;
        let (sender, receiver) = watch::channel(Vec::new());
        self.events = receiver;
        let Some(Ok(stdout)) = stdout else { return Err(DrillError::Usage("a node's stdout cannot be read".to_owned())) };
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            // Reading goes on until the pipe closes, whatever is said: a full pipe would block the node.
            while let Ok(Some(line)) = lines.next_line().await {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sender.send_if_modified(|events| {
                    let room = events.len() < EVENTS_MAX;
                    if room {
                        events.push(event);
                    }
                    room
                });
            }
        });
        Ok(())
    }

    /// Waits for the event `up`, then reads where the API is.
    ///
    /// # Errors
    /// The node ends by itself or takes longer than a minute; the error quotes its log.
    pub async fn wait_up(&mut self) -> Result<(), DrillError> {
        let mut events = self.events.clone();
        let is_up = |event: &&Value| event.get("event").and_then(Value::as_str) == Some("up");
        let waited = tokio::time::timeout(UP_PATIENCE, events.wait_for(|events| events.iter().any(|event| is_up(&event)))).await;
        let event = match waited {
            Ok(Ok(events)) => events.iter().find(is_up).cloned(),
            // The pipe closed: the process is gone, or about to be.
            Ok(Err(_)) => return Err(self.death().await),
            Err(_) => None,
        };
        let Some(event) = event else {
            return Err(DrillError::TooLate {
                what: format!("{} to be up", self.dir.display()),
                waited_s: UP_PATIENCE.as_secs(),
                detail: format!("the end of its log:\n{}", self.log_tail()),
            });
        };
        let listen = api::list(&event, "/listen_addrs")?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        self.up = Some(Up { api: Api::of_directory(&self.dir)?, peer_id: api::text(&event, "/peer_id")?.to_owned(), listen });
        Ok(())
    }

    /// Waits until the node is `ready` and answers its status then.
    ///
    /// # Errors
    /// It ends by itself, or is not ready in time; the error quotes its last status.
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<Value, DrillError> {
        let started = Instant::now();
        loop {
            self.check_running().await?;
            let status = self.api()?.get("/v1/status").await?;
            if api::flag(&status, "/ready")? {
                return Ok(status);
            }
            if started.elapsed() > patience {
                return Err(DrillError::TooLate {
                    what: format!("{} to be ready", self.dir.display()),
                    waited_s: patience.as_secs(),
                    detail: format!("its status is {status}; the end of its log:\n{}", self.log_tail()),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The node's API.
    ///
    /// # Errors
    /// [`DrillError::NotRunning`] when the node is not up.
    pub fn api(&self) -> Result<&Api, DrillError> {
        self.up.as_ref().map(|up| &up.api).ok_or_else(|| DrillError::NotRunning { dir: self.dir.clone() })
    }

    /// The node's peer id; known while it is up.
    ///
    /// # Errors
    /// [`DrillError::NotRunning`] when the node is not up.
    pub fn peer_id(&self) -> Result<&str, DrillError> {
        self.up.as_ref().map(|up| up.peer_id.as_str()).ok_or_else(|| DrillError::NotRunning { dir: self.dir.clone() })
    }

    /// The multiaddrs that the node said it listens on when it came up.
    pub fn listen_addrs(&self) -> &[String] {
        self.up.as_ref().map_or(&[], |up| &up.listen)
    }

    /// The process id, while there is a process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that takes the node's stderr.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Which program is started the next time.
    pub fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// How the node is started, for the next [`restart`](Self::restart).
    pub fn options_mut(&mut self) -> &mut NodeOptions {
        &mut self.options
    }

    /// Whether there is a process that has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends SIGKILL without waiting for the end, so that several nodes can be hit at once; [`kill9`](Self::kill9) then waits.
    pub fn shoot(&mut self) {
        if let Some(child) = &mut self.child {
            // It fails only when the process has already ended, which is what was wanted.
            let _ = child.kill();
        }
        self.up = None;
    }

    /// Kills the node with SIGKILL and waits until it is gone. Nothing is flushed, nothing is cleaned up: that is the point.
    pub fn kill9(&mut self) {
        self.shoot();
        if let Some(mut child) = self.child.take() {
            // SIGKILL cannot be refused, so this ends at once.
            let _ = child.wait();
        }
    }

    /// Asks the node to stop and waits until it has.
    ///
    /// # Errors
    /// It did not stop in time, or failed while stopping. It is dead in either case.
    pub async fn stop(&mut self) -> Result<(), DrillError> {
        self.api()?.post("/v1/stop", &Value::Object(serde_json::Map::new())).await?;
        let started = Instant::now();
        while started.elapsed() < STOP_PATIENCE {
            let Some(child) = &mut self.child else { return Ok(()) };
            if let Ok(Some(status)) = child.try_wait() {
                self.child = None;
                self.up = None;
                let log_tail = self.log_tail();
                return if status.success() { Ok(()) } else { Err(DrillError::Died { dir: self.dir.clone(), status, log_tail }) };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.kill9();
        Err(DrillError::TooLate {
            what: format!("{} to stop", self.dir.display()),
            waited_s: STOP_PATIENCE.as_secs(),
            detail: format!("the end of its log:\n{}", self.log_tail()),
        })
    }

    /// Stops the node in its tracks (SIGSTOP): its sockets stay open and answer nothing.
    ///
    /// # Errors
    /// There is no process, or the `kill` program cannot be run.
    pub fn pause(&self) -> Result<(), DrillError> {
        self.signal("-STOP")
    }

    /// Lets a paused node go on (SIGCONT).
    ///
    /// # Errors
    /// There is no process, or the `kill` program cannot be run.
    pub fn resume(&self) -> Result<(), DrillError> {
        self.signal("-CONT")
    }

    /// From now on no file of the node may be longer than so many bytes: writes beyond that fail as they would on a full disk. `None` lifts the
    /// limit. The node must have been started [`limitable`](NodeOptions::limitable), or it is killed by the first such write.
    ///
    /// # Errors
    /// There is no process, or the system refuses.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<(), DrillError> {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or_else(|| DrillError::NotRunning { dir: self.dir.clone() })?;
        let limit = prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None });
        limit.map(|_| ()).map_err(|error| DrillError::io("limit the size of a node's files")(error.into()))
    }

    fn signal(&self, signal: &str) -> Result<(), DrillError> {
        let pid = self.pid().ok_or_else(|| DrillError::NotRunning { dir: self.dir.clone() })?;
        let status = Command::new("kill").args([signal, &pid.to_string()]).stdin(Stdio::null()).status();
        let status = status.map_err(DrillError::io("run kill"))?;
        if status.success() { Ok(()) } else { Err(DrillError::Usage(format!("kill {signal} {pid} failed ({status})"))) }
    }

    /// Starts the node again on the same directory and waits until it is up.
    ///
    /// # Errors
    /// It still runs, or does not come up.
    pub async fn restart(&mut self) -> Result<(), DrillError> {
        self.relaunch()?;
        self.wait_up().await
    }

    /// Starts the node again on the same directory without waiting for it: [`wait_up`](Self::wait_up) does.
    ///
    /// # Errors
    /// It still runs, or cannot be started.
    pub fn relaunch(&mut self) -> Result<(), DrillError> {
        if self.is_running() {
            return Err(DrillError::Usage(format!("{} still runs: kill or stop it before it is restarted", self.dir.display())));
        }
        self.launch()
    }

    /// Runs a verb against this node, as a person would: `persona VERB ... --dir DIR`, in the directory above the node's own.
    ///
    /// # Errors
    /// The binary cannot be run. A verb that fails is an answer, not an error.
    pub async fn verb<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Spoken, DrillError> {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(arguments).arg("--dir").arg(&self.dir);
        command.env("PERSONA_PASSPHRASE", &self.options.passphrase).env_remove("PERSONA_DIR").env_remove("PERSONA_LOG");
        command.current_dir(self.dir.parent().unwrap_or(&self.dir)).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|source| DrillError::Spawn { binary: self.binary.clone(), source })?;
        let Output { status, stdout, stderr } = output;
        Ok(Spoken { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }

    /// The last lines of the node's log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    async fn check_running(&mut self) -> Result<(), DrillError> {
        if self.is_running() { Ok(()) } else { Err(self.death().await) }
    }

    /// The error for a process that ended (or closed its stdout, after which it is ended) although nobody asked it to.
    async fn death(&mut self) -> DrillError {
        self.up = None;
        let Some(mut child) = self.child.take() else { return DrillError::NotRunning { dir: self.dir.clone() } };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) && matches!(child.try_wait(), Ok(None)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let _ = child.kill();
        match child.wait() {
            Ok(status) => DrillError::Died { dir: self.dir.clone(), status, log_tail: self.log_tail() },
            Err(source) => DrillError::Io { what: format!("wait for the node in {}", self.dir.display()), source },
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Looks at something again and again until it is there.
///
/// `probe` answers `Ok(Some(_))` when it is, `Ok(None)` when not yet; an error of the API is also "not yet", and is quoted when time runs out.
///
/// # Errors
/// [`DrillError::TooLate`] after `patience`, or any error of `probe` that is not the API's.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>, DrillError>,
) -> Result<T, DrillError> {
    let started = Instant::now();
    loop {
        let detail = match probe().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "it was not there yet".to_owned(),
            Err(DrillError::Api(error)) => format!("the last answer was {error}"),
            Err(error) => return Err(error),
        };
        if started.elapsed() > patience {
            return Err(DrillError::TooLate { what: what.to_owned(), waited_s: patience.as_secs(), detail });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A program that behaves like `persona up` as far as a process can be seen from outside.
    fn pretend(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("persona");
        // Written by another process: a descriptor open for writing that a neighbouring test's child inherits would make the file "busy".
        let mut writer =
            Command::new("sh").args(["-c", "cat > persona && chmod 755 persona"]).current_dir(dir).stdin(Stdio::piped()).spawn().unwrap();
        writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    /// `$4` is the state directory: `up --json --dir DIR ...`.
    const COMES_UP: &str = r#"mkdir -p "$4"; printf '127.0.0.1:1\n' > "$4/api.addr"; printf 'cafe\n' > "$4/api.token"
echo "talk: $PERSONA_PASSPHRASE" >&2
echo '{"event":"up","peer_id":"12D3KooW","api":"127.0.0.1:1","listen_addrs":["/ip4/127.0.0.1/tcp/7"]}'
exec sleep 600"#;

    fn options() -> NodeOptions {
        NodeOptions::on_loopback("test", "open sesame")
    }

    #[tokio::test]
    async fn comes_up_is_paused_killed_and_restarted_on_the_same_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let binary = pretend(scratch.path(), COMES_UP);
        let mut node = NodeProcess::start(&binary, &scratch.path().join("node"), options()).await.unwrap();
        assert_eq!(node.peer_id().unwrap(), "12D3KooW");
        assert_eq!(node.listen_addrs(), ["/ip4/127.0.0.1/tcp/7"]);
        assert!(node.is_running() && node.log_tail().contains("talk: open sesame"));
        let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().split(' ').nth(2).unwrap().to_owned();
        let first = node.pid().unwrap();
        node.pause().unwrap();
        until("it to be paused", Duration::from_secs(5), async || Ok((state(first) == "T").then_some(()))).await.unwrap();
        node.resume().unwrap();
        assert!(node.restart().await.is_err(), "it still runs");
        node.kill9();
        assert!(!node.is_running() && node.api().is_err() && node.pid().is_none());
        node.restart().await.unwrap();
        let second = node.pid().unwrap();
        assert!(node.is_running() && second != first);
        drop(node);
        assert!(!Path::new(&format!("/proc/{second}")).exists(), "a dropped node is dead and reaped");
    }

    #[tokio::test]
    async fn a_node_that_dies_is_quoted() {
        let scratch = tempfile::tempdir().unwrap();
        let binary = pretend(scratch.path(), "echo 'error: the keystore is torn' >&2; exit 3");
        let error = NodeProcess::start(&binary, &scratch.path().join("node"), options()).await.err().unwrap();
        assert!(matches!(&error, DrillError::Died { status, .. } if status.code() == Some(3)), "{error}");
        assert!(error.to_string().contains("the keystore is torn"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_binary_says_so() {
        let scratch = tempfile::tempdir().unwrap();
        let error = NodeProcess::start(&scratch.path().join("nothing"), &scratch.path().join("node"), options()).await.err().unwrap();
        assert!(matches!(error, DrillError::Spawn { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_verb_is_spoken_to_the_nodes_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let up = COMES_UP.replace("exec sleep", "[ \"$1\" = up ] && exec sleep");
        let binary = pretend(
            scratch.path(),
            &format!("[ \"$1\" = status ] && {{ echo \"{{\\\"said\\\":\\\"$*\\\"}}\"; echo talk >&2; exit 0; }}\n{up}"),
        );
        let node = NodeProcess::start(&binary, &scratch.path().join("node"), options()).await.unwrap();
        let spoken = node.verb(["status", "--json"]).await.unwrap();
        assert_eq!(spoken.json().unwrap()["said"], format!("status --json --dir {}", node.dir().display()));
        assert_eq!(spoken.stderr, "talk\n");
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_thing_seen() {
        let error = until::<()>("a miracle", Duration::ZERO, async || Ok(None)).await.unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for a miracle; it was not there yet");
        let mut looks = 0;
        let seen = until("the third look", Duration::from_secs(5), async || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(seen.await.unwrap(), 3);
    }
}
