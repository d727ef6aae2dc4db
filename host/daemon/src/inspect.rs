//! Answers the admin API from the owners' snapshots.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use async_trait::async_trait;

use culvert_core::allocation::AddressWish;

use crate::admin::Inspect;
use crate::attachments::{self, Command as AttachmentCommand};
use crate::cluster_owner::{self, Command as ClusterCommand};
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::view;

/// The daemon, seen from the admin socket.
pub struct Inspector {
    /// This node's name.
    pub node: String,
    /// This node's identity.
    pub peer_id: String,
    /// When the daemon started.
    pub started: Instant,
    /// How long it took until an ADD could be served. **Units** milliseconds.
    pub start_to_ready_ms: Arc<OnceLock<u64>>,
    /// One owner.
    pub attachments: attachments::Handle,
    /// The other owner.
    pub cluster: cluster_owner::Handle,
    /// The plugins.
    pub policies: Arc<Policies>,
    /// Counters.
    pub metrics: Metrics,
}

impl Inspector {
    /// A pod's addresses: given as one, or found by name among this node's pods.
    async fn addresses(&self, pod: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = pod.parse() {
            return Ok(vec![address]);
        }
        let found = self.attachments.ask(|reply| AttachmentCommand::Find(pod.to_owned(), reply)).await;
        let found = found.ok_or("the daemon is stopping")?;
        if found.is_empty() {
            return Err(format!(
                "no pod {pod:?} on this node: give its address, or namespace/name or container id of a pod here"
            ));
        }
        Ok(found)
    }
}

#[async_trait]
impl Inspect for Inspector {
    async fn status(&self) -> view::Status {
        let cluster = self.cluster.ask(ClusterCommand::Status).await.unwrap_or_default();
        let mut problems = cluster.problems;
        let ready = self.attachments.request(|reply| AttachmentCommand::Ready(AddressWish::default(), reply)).await;
        if let Err(error) = &ready {
            problems.insert(0, error.to_string());
        }
        view::Status {
            schema: view::SCHEMA,
            node: self.node.clone(),
            peer_id: self.peer_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: ready.is_ok(),
            problems,
            blocks: cluster.blocks,
            attachments: self.attachments.ask(AttachmentCommand::Count).await.unwrap_or_default(),
            members: cluster.members,
            connected: cluster.connected,
            generation: cluster.generation,
            uptime_seconds: self.started.elapsed().as_secs(),
            start_to_ready_ms: self.start_to_ready_ms.get().copied(),
        }
    }

    async fn peers(&self) -> Vec<view::Peer> {
        self.cluster.ask(ClusterCommand::Peers).await.unwrap_or_default()
    }

    async fn routes(&self) -> view::Routes {
        self.cluster.ask(ClusterCommand::Routes).await.unwrap_or_default()
    }

    async fn ipam(&self) -> view::Ipam {
        let (pools, mut blocks) = self.cluster.ask(ClusterCommand::Blocks).await.unwrap_or_default();
        let usage = self.attachments.ask(AttachmentCommand::Usage).await.unwrap_or_default();
        for block in &mut blocks {
            block.in_use = usage.get(&block.block).copied();
        }
        let (leases, findings) = self.attachments.ask(AttachmentCommand::Leases).await.unwrap_or_default();
        view::Ipam { schema: view::SCHEMA, pools, blocks, leases, findings }
    }

    async fn plugins(&self) -> view::Plugins {
        self.policies.view()
    }

    async fn explain(&self, from: &str, to: &str) -> Result<view::Explanation, String> {
        let sources = self.addresses(from).await?;
        let destinations = self.addresses(to).await?;
        let same_family = |to: &&IpAddr| sources.iter().any(|from| from.is_ipv4() == to.is_ipv4());
        let destination = destinations.iter().find(same_family).copied();
        let destination = destination.ok_or_else(|| format!("{from} and {to} have no address of the same family"))?;
        let source = sources.iter().find(|from| from.is_ipv4() == destination.is_ipv4());
        let explained = self.cluster.ask(|reply| ClusterCommand::Explain(destination, reply)).await;
        let explanation = explained.ok_or("the daemon is stopping")??;
        Ok(view::Explanation { from: source.map_or_else(String::new, ToString::to_string), ..explanation })
    }

    async fn release_name(&self, name: &str) -> Result<(), String> {
        let released = self.cluster.ask(|reply| ClusterCommand::ReleaseName(name.to_owned(), reply)).await;
        released.ok_or("the daemon is stopping")?
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }
}
