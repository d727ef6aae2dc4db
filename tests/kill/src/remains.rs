//! What a node and a pod hold, as an operator sees it: links, addresses, routes, rules, queues, nft elements, records,
//! leases, notes of deleted pods.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_lab::{Node, Snapshot, wait};

/// How long the node may take to look as it did: reports of the kernel and the daemon's own routes need a moment.
/// Far below the minute after which the daemon looks for leftovers by itself.
const SETTLE_BOUND: Duration = Duration::from_secs(8);

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    snapshot: Snapshot,
    records: Vec<String>,
}

impl Remains {
    /// Looks.
    ///
    /// **Errors** a tool fails, or the daemon does not answer.
    pub fn of(node: &Node, pod: &str) -> Result<Self> {
        let mut snapshot = Snapshot::default();
        snapshot.add_namespace(node.namespace().name())?;
        snapshot.add_namespace(pod)?;
        snapshot.add_files(&notes_folder(node))?;
        let ipam = node.ctl(&["ipam"])?;
        let attachments = node.ctl(&["status"])?["attachments"].clone();
        let leases = ipam["leases"].as_array().context("an answer without leases")?;
        let held = leases.iter().map(|lease| format!("lease {} of {}", lease["address"], lease["container_id"]));
        let findings = ipam["findings"].as_array().into_iter().flatten().map(|finding| format!("finding {finding}"));
        let records = held.chain(findings).chain([format!("{attachments} attachments")]).collect();
        Ok(Self { snapshot, records })
    }

    /// What `later` has more or less.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let mut lines = self.snapshot.difference(&later.snapshot);
        lines.extend(self.records.iter().filter(|line| !later.records.contains(line)).map(|line| format!("- {line}")));
        lines.extend(later.records.iter().filter(|line| !self.records.contains(line)).map(|line| format!("+ {line}")));
        lines
    }

    /// Waits until the node looks like this again.
    ///
    /// **Errors** it does not; the difference is in the text.
    pub fn wait_again(&self, node: &Node, pod: &str) -> Result<()> {
        wait::until("nothing to be left", SETTLE_BOUND, || {
            let difference = self.difference(&Self::of(node, pod)?);
            ensure!(difference.is_empty(), "left (+) or missing (-):\n{}", difference.join("\n"));
            Ok(())
        })
    }
}

/// Where the shim leaves notes of pods that it deleted alone.
#[must_use]
pub fn notes_folder(node: &Node) -> std::path::PathBuf {
    node.cni_socket().parent().unwrap_or(Path::new("/")).join("deleted")
}

/// The lease rows that a container has, by the daemon's own account.
///
/// **Errors** the daemon does not answer.
pub fn states(node: &Node, container_id: &str) -> Result<Vec<String>> {
    let ipam = node.ctl(&["ipam"])?;
    let leases = ipam["leases"].as_array().context("an answer without leases")?;
    let own = leases.iter().filter(|lease| lease["container_id"] == container_id);
    Ok(own.map(|lease| lease["state"].as_str().unwrap_or_default().to_owned()).collect())
}
