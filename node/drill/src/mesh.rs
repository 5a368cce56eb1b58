//! A mesh of node processes on loopback, in a scratch directory of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::api;
use crate::error::DrillError;
use crate::process::{NodeOptions, NodeProcess, until};
use crate::relay::Relays;
use crate::wiretap::WireTap;

/// How long a mesh may take until every node is ready and knows the others.
const READY_PATIENCE: Duration = Duration::from_secs(90);
/// A section has at most ten holders by default (docs/design section 3: core, n = 10); a node that knows that many others can place anything.
const PEERS_ENOUGH: usize = 10;

/// What mesh to start.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// How many nodes.
    pub nodes: usize,
    /// How each is started; `join` and `bootstrap` are filled in by the mesh.
    pub node: NodeOptions,
    /// The others join the first by its plain address instead of its ticket.
    pub fixed_bootstrap: bool,
    /// A [`WireTap`] stands between the first node and all others. Implies that the others join by its address; use [`NodeOptions::tcp_only`].
    pub tapped: bool,
    /// Every node is reached through a relay, whose losses and delays are drawn from this seed. Implies [`NodeOptions::tcp_only`].
    pub relayed: Option<u64>,
    /// The last so many nodes run another program.
    pub others: Option<Others>,
    /// The scratch directory stays when the mesh ends.
    pub keep: bool,
}

/// Nodes that run another program than the rest.
#[derive(Clone, Debug)]
pub struct Others {
    /// How many.
    pub nodes: usize,
    /// Which program.
    pub binary: PathBuf,
    /// What stands in its environment besides.
    pub environment: Vec<(String, String)>,
}

impl MeshOptions {
    /// `nodes` nodes on loopback that join by ticket and leave nothing behind.
    pub fn of(nodes: usize, passphrase: &str) -> Self {
        Self {
            nodes,
            node: NodeOptions::on_loopback("drill", passphrase),
            fixed_bootstrap: false,
            tapped: false,
            relayed: None,
            others: None,
            keep: false,
        }
    }
}

/// A running mesh. Dropped, it kills every node and removes the scratch directory.
pub struct Mesh {
    // Order matters: the nodes end before their directories go.
    nodes: Vec<NodeProcess>,
    tap: Option<WireTap>,
    relays: Option<Relays>,
    scratch: Scratch,
}

impl Mesh {
    /// Starts the first node, lets the rest join by it, and waits until all are ready and know enough of each other.
    ///
    /// # Errors
    /// A node does not come up or is not ready in time; the error quotes its log.
    pub async fn start(binary: &Path, options: &MeshOptions) -> Result<Self, DrillError> {
        if options.nodes == 0 {
            return Err(DrillError::Usage("a mesh needs at least one node".to_owned()));
        }
        let scratch = Scratch::new(options.keep)?;
        let relays = options.relayed.map(|seed| Relays::before(options.nodes, seed)).transpose()?;
        let mut template = if relays.is_some() { options.node.clone().tcp_only() } else { options.node.clone() };
        let mut mesh = Self { nodes: Vec::new(), tap: None, relays, scratch };
        mesh.spawn(binary, &template)?;
        mesh.wait_up(0).await?;
        if options.tapped {
            let address = tcp_address(mesh.nodes[0].listen_addrs())?;
            let tap = WireTap::before(([127, 0, 0, 1], address).into()).await?;
            template.bootstrap.push(format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", tap.port(), mesh.nodes[0].peer_id()?));
            mesh.tap = Some(tap);
        } else if options.fixed_bootstrap {
            let port = tcp_address(mesh.nodes[0].listen_addrs())?;
            template.bootstrap.push(format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", mesh.nodes[0].peer_id()?));
        } else {
            template.join.push(mesh.ticket(0).await?);
        }
        let others = options.others.as_ref().map_or(0, |others| others.nodes).min(options.nodes - 1);
        mesh.join(binary, &template, options.nodes - others).await?;
        if let Some(others) = &options.others {
            template.environment.extend(others.environment.iter().cloned());
            mesh.join(&others.binary, &template, options.nodes).await?;
        }
        mesh.wait_ready().await?;
        Ok(mesh)
    }

    /// Starts the next node.
    fn spawn(&mut self, binary: &Path, template: &NodeOptions) -> Result<(), DrillError> {
        let index = self.nodes.len();
        let mut options = template.clone();
        options.announce.extend(self.relays.as_ref().map(|relays| format!("/ip4/127.0.0.1/tcp/{}", relays.port(index))));
        let dir = self.scratch.path().join(format!("node-{:02}", index + 1));
        self.nodes.push(NodeProcess::spawn(binary, &dir, options)?);
        Ok(())
    }

    /// Waits until a node that was started is up, and lets others through to it.
    ///
    /// # Errors
    /// As [`NodeProcess::wait_up`].
    pub async fn wait_up(&mut self, index: usize) -> Result<(), DrillError> {
        let node = &mut self.nodes[index];
        node.wait_up().await?;
        let pid = node.pid().ok_or_else(|| DrillError::NotRunning { dir: node.dir().to_owned() })?;
        match &mut self.relays {
            Some(relays) => relays.open(index, pid, tcp_address(node.listen_addrs())?),
            None => Ok(()),
        }
    }

    /// Starts the others, a few more at once than there are cores: opening a keystore is a tenth of a second of one core, so all at once would
    /// only make each of them late.
    async fn join(&mut self, binary: &Path, template: &NodeOptions, nodes: usize) -> Result<(), DrillError> {
        let at_once = std::thread::available_parallelism().map_or(2, usize::from) + 2;
        let mut up = self.nodes.len();
        while up < nodes {
            while self.nodes.len() < nodes && self.nodes.len() < up + at_once {
                self.spawn(binary, template)?;
            }
            self.wait_up(up).await?;
            up += 1;
        }
        Ok(())
    }

    /// Starts `more` nodes as `template` says that join by a ticket of the first, and waits until all are ready.
    ///
    /// # Errors
    /// The first node is not up, or a new one does not come up or is not ready in time.
    pub async fn grow(&mut self, binary: &Path, template: &NodeOptions, more: usize) -> Result<(), DrillError> {
        let template = NodeOptions { join: vec![self.ticket(0).await?], ..template.clone() };
        self.join(binary, &template, self.nodes.len() + more).await?;
        self.wait_ready().await
    }

    /// Starts dead nodes again on their directories, all at the same moment, and waits until they are up.
    ///
    /// # Errors
    /// One of them still runs, or does not come up.
    pub async fn restart(&mut self, dead: &[usize]) -> Result<(), DrillError> {
        for node in dead {
            self.nodes[*node].relaunch()?;
        }
        for node in dead {
            self.wait_up(*node).await?;
        }
        Ok(())
    }

    /// Waits until every running node is ready and knows enough of the running others to place any section.
    ///
    /// # Errors
    /// Not in time, or a node ended.
    pub async fn wait_ready(&mut self) -> Result<(), DrillError> {
        let running = self.nodes.iter_mut().map(NodeProcess::is_running).filter(|running| *running).count();
        let enough = u64::try_from(running.saturating_sub(1).min(PEERS_ENOUGH)).unwrap_or(u64::MAX);
        for node in &mut self.nodes {
            if !node.is_running() {
                continue;
            }
            node.wait_ready(READY_PATIENCE).await?;
            let api = node.api()?.clone();
            let what = format!("{} to know {enough} others", node.dir().display());
            until(&what, READY_PATIENCE, async || {
                let status = api.get("/v1/status").await?;
                // A node is alone until it has met somebody; its first canary may have been a local one.
                let settled = running == 1 || !api::flag(&status, "/alone")?;
                Ok((settled && api::number(&status, "/network/kad_table")? >= enough).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A ticket of node `index`.
    ///
    /// # Errors
    /// The node is not up or refuses.
    pub async fn ticket(&self, index: usize) -> Result<String, DrillError> {
        let invite = self.nodes[index].api()?.post("/v1/invite", &json!({})).await?;
        Ok(api::text(&invite, "/ticket")?.to_owned())
    }

    /// Node `index`, counted from 0 (its name, `node-01`, is counted from 1).
    ///
    /// # Panics
    /// There is no such node.
    pub fn node(&self, index: usize) -> &NodeProcess {
        &self.nodes[index]
    }

    /// Node `index`, to be broken.
    ///
    /// # Panics
    /// There is no such node.
    pub fn node_mut(&mut self, index: usize) -> &mut NodeProcess {
        &mut self.nodes[index]
    }

    /// How many nodes the mesh was started with, dead ones included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node; never so for a mesh that started.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What stands between the first node and the others, if the mesh is tapped.
    pub fn tap(&self) -> Option<&WireTap> {
        self.tap.as_ref()
    }

    /// What stands before every node, if the mesh is relayed.
    pub fn relays(&self) -> Option<&Relays> {
        self.relays.as_ref()
    }

    /// The scratch directory stays when the mesh ends, after all.
    pub fn keep(&mut self) {
        self.scratch.keep = true;
    }

    /// Where the nodes' directories and logs are.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The peer id of every node that is up, by its index.
    pub fn peer_ids(&self) -> Vec<Option<String>> {
        self.nodes.iter().map(|node| node.peer_id().ok().map(str::to_owned)).collect()
    }

    /// Kills several nodes with SIGKILL at once: all are hit before any is waited for.
    pub fn kill9(&mut self, victims: &[usize]) {
        for victim in victims {
            self.nodes[*victim].shoot();
            if let Some(relays) = &mut self.relays {
                relays.close(*victim);
            }
        }
        for victim in victims {
            self.nodes[*victim].kill9();
        }
    }

    /// Takes a dead node's directory away: renamed to where nobody looks, and closed to everybody whom permissions stop.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn destroy_directory(&mut self, index: usize) -> Result<PathBuf, DrillError> {
        let from = self.nodes[index].dir().to_owned();
        let to = self.scratch.path().join(format!("gone-{}", std::process::id()));
        let moved = format!("move {} to {}", from.display(), to.display());
        std::fs::rename(&from, &to).map_err(DrillError::io(moved))?;
        let closed = std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o000));
        closed.map_err(DrillError::io(format!("close {}", to.display())))?;
        self.scratch.closed.push(to.clone());
        Ok(to)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.shoot();
        }
    }
}

/// A directory that removes itself, also what was closed in it.
struct Scratch {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
    closed: Vec<PathBuf>,
    keep: bool,
}

impl Scratch {
    fn new(keep: bool) -> Result<Self, DrillError> {
        let dir = tempfile::Builder::new().prefix("persona-drill-").tempdir().map_err(DrillError::io("make a scratch directory"))?;
        Ok(Self { path: dir.path().to_owned(), dir: Some(dir), closed: Vec::new(), keep })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for closed in &self.closed {
            let _ = std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o700));
        }
        if let Some(dir) = self.dir.take() {
            if self.keep {
                let _ = dir.keep();
            } else {
                let _ = dir.close();
            }
        }
    }
}

/// The TCP port among a node's loopback addresses.
fn tcp_address(addresses: &[String]) -> Result<u16, DrillError> {
    let port = addresses.iter().find_map(|address| address.strip_prefix("/ip4/127.0.0.1/tcp/")?.split('/').next()?.parse().ok());
    port.ok_or_else(|| DrillError::Usage(format!("the first node listens on no loopback TCP port, only on {addresses:?}")))
}

/// The index of each holder's node by its peer id; holders that are no node of the mesh are left out.
pub(crate) fn indices(peers: &[Option<String>], holders: &[Value]) -> Vec<usize> {
    let index = |holder: &Value| peers.iter().position(|peer| peer.as_deref().is_some_and(|peer| Some(peer) == holder.as_str()));
    holders.iter().filter_map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_directory_goes_with_what_was_closed_in_it() {
        let mut scratch = Scratch::new(false).unwrap();
        let path = scratch.path().to_owned();
        let closed = path.join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::write(closed.join("file"), b"x").unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        scratch.closed.push(closed);
        drop(scratch);
        assert!(!path.exists());
        let kept = Scratch::new(true).unwrap();
        let path = kept.path().to_owned();
        drop(kept);
        assert!(path.exists());
        std::fs::remove_dir(path).unwrap();
    }

    #[test]
    fn the_port_is_read_from_the_address() {
        let addresses = |list: &[&str]| list.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
        assert_eq!(tcp_address(&addresses(&["/ip4/127.0.0.1/udp/9/quic-v1", "/ip4/127.0.0.1/tcp/4001/p2p/12D3"])).unwrap(), 4001);
        assert!(tcp_address(&addresses(&["/ip4/10.0.0.1/tcp/4001"])).is_err());
    }

    #[test]
    fn holders_become_nodes() {
        let peers = [Some("a".to_owned()), None, Some("c".to_owned())];
        assert_eq!(indices(&peers, &[json!("c"), json!("stranger"), json!("a")]), [2, 0]);
    }
}
