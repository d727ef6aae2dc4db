//! The demo's stage: three sites, four daemons, five pods, and the memory of how it was before.

use std::path::Path;

use anyhow::{Context, Result};
use culvert_lab::probe::Running;
use culvert_lab::three_sites::{CLOUD_1, EDGE_1, EDGE_2, EDGE_3};
use culvert_lab::{Node, Pod, PodSetup, Snapshot, ThreeSites, namespace};

use crate::demo::rows::{Finding, Rows};
use crate::screen;

/// The pods and their nodes: two on one node, two on its neighbour, one at the other site, one in the cloud.
pub(crate) const PODS: [(&str, &str); 6] = [
    ("till", EDGE_1),
    ("camera", EDGE_1),
    ("printer", EDGE_2),
    (ARCHIVE, EDGE_2),
    ("scale", EDGE_3),
    ("shop", CLOUD_1),
];

/// The pod whose transfers run while routes change. It sends at a rate that the tunnel carries: one that fills the
/// tunnel loses packets by congestion, which would hide what a swap loses.
pub(crate) const ARCHIVE: &str = "archive";
/// What it may send. **Units** as in the annotation of Kubernetes, bits/s.
const ARCHIVE_RATE: &str = "100M";

/// Folders of the machine itself in which nothing may be left.
const OWN_FOLDERS: [&str; 5] = ["/run/culvert", "/var/lib/culvert", "/etc/culvert", "/etc/cni", "/var/lib/cni"];

/// The stage. Fields are dropped in this order: probes, pods, then nodes and the lab.
#[derive(Debug)]
pub(crate) struct Stage {
    serving: Vec<Running<()>>,
    pods: Vec<Pod>,
    sites: ThreeSites,
    machine_before: Snapshot,
    nodes_before: Snapshot,
}

impl Stage {
    /// Sets everything up.
    ///
    /// # Errors
    /// A daemon does not come up, or a pod cannot be attached.
    pub(crate) fn set_up() -> Result<Self> {
        let machine_before = machine()?;
        let mut sites =
            screen::step("make a cloud and two sites behind NAT with the same LAN range", |_| ThreeSites::build())?;
        let nodes_before = screen::step("remember how every node looks", |_| nodes(&sites))?;
        screen::step("start four daemons; each learns of the others", |_| sites.start_all())?;
        let pods = screen::step("attach six pods as containerd would", |_| {
            PODS.iter().map(|(pod, node)| attach(&sites, pod, node)).collect::<Result<Vec<_>>>()
        })?;
        let serving = pods.iter().map(|pod| pod.vantage().serve()).collect::<Result<_>>()?;
        Ok(Self { serving, pods, sites, machine_before, nodes_before })
    }

    /// A pod by its name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        let index = PODS.iter().position(|(pod, _)| *pod == name);
        index.and_then(|index| self.pods.get(index)).with_context(|| format!("no pod {name}"))
    }

    /// A node by its name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.sites.node(name)
    }

    /// A node by its name, to stop and start its daemon.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.sites.node_mut(name)
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> &[Node] {
        self.sites.nodes()
    }

    /// What all names begin with.
    pub(crate) fn prefix(&self) -> &str {
        self.sites.lab().prefix()
    }

    /// Takes everything down and shows that nothing is left.
    pub(crate) fn tear_down(self, rows: &mut Rows) {
        let Self { serving, pods, mut sites, machine_before, nodes_before } = self;
        rows.measure("pods, daemons and their traces removed", || {
            drop(serving);
            for pod in pods {
                pod.remove()?;
            }
            for node in sites.nodes_mut() {
                node.stop()?;
                node.culvertd("cleanup")?;
            }
            Ok(unchanged("on four nodes", &nodes_before.difference(&nodes(&sites)?)))
        });
        rows.measure("laboratory removed", || {
            let (prefix, folder) = (sites.lab().prefix().to_owned(), sites.lab().folder().to_owned());
            drop(sites);
            let mut left = machine_before.difference(&machine()?);
            left.extend(namespace::list(&prefix)?);
            left.extend(folder.exists().then(|| folder.display().to_string()));
            Ok(unchanged("on the machine", &left))
        });
    }
}

fn attach(sites: &ThreeSites, pod: &str, node: &str) -> Result<Pod> {
    let mut setup = PodSetup::named(pod);
    if pod == ARCHIVE {
        setup.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), ARCHIVE_RATE.to_owned());
    }
    Pod::attach(sites.lab(), sites.node(node)?, setup)
}

fn unchanged(place: &str, difference: &[String]) -> Finding {
    let shown: Vec<&str> = difference.iter().take(5).map(String::as_str).collect();
    let figures = format!("{} lines differ {place} {}", difference.len(), shown.join(" | "));
    Finding { holds: difference.is_empty(), figures: figures.trim().to_owned() }
}

/// How the machine looks outside every lab.
fn machine() -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    snapshot.add_own_namespace()?;
    for folder in OWN_FOLDERS {
        snapshot.add_files(Path::new(folder))?;
    }
    Ok(snapshot)
}

/// How every node looks.
fn nodes(sites: &ThreeSites) -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    for namespace in sites.nodes().iter().map(Node::namespace).map(|namespace| namespace.name()) {
        snapshot.add_namespace(namespace)?;
    }
    Ok(snapshot)
}
