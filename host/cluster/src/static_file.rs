//! The static backend: cluster facts from the `cluster.static` section of a YAML file, read again
//! when the file changes. A bad edit is refused as a whole; the facts in force stay.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use culvert_core::address::{Family, overlap};
use culvert_core::claim::{ClaimOutcome, ClaimRequest, Pool};
use culvert_core::config::{Fault, Faults, Section};
use ipnet::IpNet;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::{ClaimError, Cluster, ClusterFacts, Keeper};

/// The pools of a cluster that configures none: the range KubeEdge guides use, and a ULA beside it.
const DEFAULT_POOLS: [(&str, u8); 2] = [("10.244.0.0/16", 24), ("fd00:10:244::/48", 64)];

/// A block larger than this would leave a node's bridge with an unwieldy neighbour table.
const SHORTEST_V4_BLOCK: u8 = 16;

/// File events may be lost when this many wait; one that waits is enough to read the file again.
const PENDING_EVENTS: usize = 1;

/// Why the static backend could not start.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    /// The file cannot be watched.
    #[error("cannot watch {path} for changes: {source}")]
    Watch {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: notify::Error,
    },
}

/// Reads the section `cluster.static`; every fault is noted in `faults`, and what could be read is
/// answered.
#[must_use]
pub fn read(mut section: Section, faults: &Faults) -> ClusterFacts {
    let mut pools: Vec<Pool> = section.sections("pools").into_iter().filter_map(read_pool).collect();
    if pools.is_empty() {
        pools = default_pools();
    }
    let service_prefixes: Vec<IpNet> = section.parsed_list("servicePrefixes", "a prefix such as 10.96.0.0/12");
    let path = section.path_of("pools");
    for (index, pool) in pools.iter().enumerate() {
        for other in pools.iter().take(index).map(|pool| pool.range).chain(service_prefixes.iter().copied()) {
            if overlap(&pool.range, &other) {
                faults.note(
                    &format!("{path}[{index}].range"),
                    format!("{} overlaps {other}; choose ranges apart", pool.range),
                );
            }
        }
    }
    section.finish();
    ClusterFacts { pools, service_prefixes }
}

fn read_pool(mut section: Section) -> Option<Pool> {
    let range: Option<IpNet> = section.parsed("range", "a prefix such as 10.244.0.0/16");
    if range.is_none() {
        section.fault("range", "is required");
    }
    let default_length = match range.as_ref().map(Family::of_prefix) {
        Some(Family::V6) => 64,
        Some(Family::V4) | None => 24,
    };
    let block_length = section.number("blockLength", default_length, 0..=128);
    let pool = range.and_then(|range| check_pool(&section, range, block_length));
    section.finish();
    pool
}

fn check_pool(section: &Section, range: IpNet, block_length: u64) -> Option<Pool> {
    if range.addr() != range.network() {
        section.fault("range", format!("{range} has host bits set; write {}", range.trunc()));
        return None;
    }
    let longest = u64::from(range.max_prefix_len()) - 2;
    let shortest = u64::from(match Family::of_prefix(&range) {
        Family::V4 => range.prefix_len().max(SHORTEST_V4_BLOCK),
        Family::V6 => range.prefix_len(),
    });
    if !(shortest..=longest).contains(&block_length) {
        section.fault("blockLength", format!("write a prefix length from {shortest} to {longest}, not {block_length}"));
        return None;
    }
    u8::try_from(block_length).ok().map(|block_length| Pool { range, block_length })
}

fn default_pools() -> Vec<Pool> {
    let pools = DEFAULT_POOLS.iter();
    pools
        .filter_map(|(range, block_length)| Some(Pool { range: range.parse().ok()?, block_length: *block_length }))
        .collect()
}

/// Cluster facts from a file, claims by a keeper.
pub struct StaticCluster {
    facts: watch::Receiver<ClusterFacts>,
    keeper: Arc<dyn Keeper>,
    _watcher: RecommendedWatcher,
}

impl StaticCluster {
    /// Serves `facts`, which were read from `path`, and follows later changes of the file.
    ///
    /// **Errors** when the file cannot be watched.
    pub fn start(path: &Path, facts: ClusterFacts, keeper: Arc<dyn Keeper>) -> Result<Self, StaticError> {
        let (changed, changes) = mpsc::channel(PENDING_EVENTS);
        let watch_error = |source| StaticError::Watch { path: path.to_owned(), source };
        let file = path.to_owned();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // After an error events may be missing: look.
            if event.as_ref().map_or(true, |event| may_change(event, &file)) {
                // A full queue already holds the one event that is needed.
                let _already_pending = changed.try_send(());
            }
        })
        .map_err(watch_error)?;
        // The folder, not the file: editors replace a file by renaming another over it.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(watch_error)?;
        let (sender, facts) = watch::channel(facts);
        tokio::spawn(follow(path.to_owned(), changes, sender));
        Ok(Self { facts, keeper, _watcher: watcher })
    }
}

#[async_trait]
impl Cluster for StaticCluster {
    fn facts(&self) -> watch::Receiver<ClusterFacts> {
        self.facts.clone()
    }

    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, ClaimError> {
        self.keeper.claim(request).await
    }

    async fn release(&self, block: IpNet) -> Result<(), ClaimError> {
        self.keeper.release(block).await
    }
}

/// Whether an event in the file's folder may have changed the file. Reading it is an event too, and would have it read
/// for ever; so are writes to its neighbours. A folder mounted from a ConfigMap changes by the link `..data`.
fn may_change(event: &Event, file: &Path) -> bool {
    let concerns = |path: &Path| {
        let name = path.file_name();
        name == file.file_name() || name.is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
    };
    !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(|path| concerns(path)))
}

async fn follow(path: PathBuf, mut changes: mpsc::Receiver<()>, facts: watch::Sender<ClusterFacts>) {
    while changes.recv().await.is_some() {
        match read_file(&path).await {
            Ok(read) => {
                let changed = facts.send_if_modified(|current| {
                    let changed = *current != read;
                    current.clone_from(&read);
                    changed
                });
                if changed {
                    tracing::info!(file = %path.display(), pools = read.pools.len(), "cluster facts changed");
                }
            }
            Err(faults) => {
                for fault in faults {
                    tracing::error!(file = %path.display(), %fault, "cluster facts refused, those in force stay");
                }
            }
        }
    }
}

async fn read_file(path: &Path) -> Result<ClusterFacts, Vec<Fault>> {
    let fault = |message: String| vec![Fault { path: path.display().to_string(), message }];
    let text = tokio::fs::read_to_string(path).await.map_err(|error| fault(error.to_string()))?;
    let tree: Value = serde_saphyr::from_str(&text).map_err(|error| fault(error.to_string()))?;
    let faults = Faults::default();
    let section = tree.pointer("/cluster/static").cloned().unwrap_or(Value::Null);
    let facts = read(Section::open("cluster.static", section, &faults), &faults);
    match faults.all() {
        found if found.is_empty() => Ok(facts),
        found => Err(found),
    }
}

#[cfg(test)]
mod tests {
    use culvert_core::membership::PeerId;
    use notify::EventKind;
    use notify::event::{AccessKind, CreateKind, ModifyKind};

    use super::*;

    fn event(kind: EventKind, path: &str) -> Event {
        Event::new(kind).add_path(PathBuf::from(path))
    }

    #[test]
    fn reading_the_file_and_writing_its_neighbours_are_no_changes() {
        let file = Path::new("/etc/culvert/culvert.yaml");
        let written = EventKind::Modify(ModifyKind::Any);
        for (kind, path, changes) in [
            (written, "/etc/culvert/culvert.yaml", true),
            (EventKind::Create(CreateKind::File), "/etc/culvert/culvert.yaml", true),
            (EventKind::Create(CreateKind::Folder), "/etc/culvert/..data", true),
            (written, "/etc/culvert/culvertd.log", false),
            (EventKind::Access(AccessKind::Any), "/etc/culvert/culvert.yaml", false),
        ] {
            assert_eq!(may_change(&event(kind, path), file), changes, "{kind:?} of {path}");
        }
    }

    struct NoKeeper;

    #[async_trait]
    impl Keeper for NoKeeper {
        async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, ClaimError> {
            Err(ClaimError::Unreachable { block: request.block, reason: "no keeper here".to_owned() })
        }

        async fn release(&self, block: IpNet) -> Result<(), ClaimError> {
            Err(ClaimError::Unreachable { block, reason: "no keeper here".to_owned() })
        }
    }

    fn faults_of(section: serde_json::Value) -> (ClusterFacts, Vec<String>) {
        let faults = Faults::default();
        let facts = read(Section::open("cluster.static", section, &faults), &faults);
        (facts, faults.all().iter().map(ToString::to_string).collect())
    }

    fn pool(range: &str, block_length: u8) -> Pool {
        Pool { range: range.parse().unwrap(), block_length }
    }

    #[test]
    fn a_cluster_that_configures_nothing_has_both_families() {
        let (facts, faults) = faults_of(Value::Null);
        assert_eq!(facts.pools, [pool("10.244.0.0/16", 24), pool("fd00:10:244::/48", 64)]);
        assert_eq!(faults, Vec::<String>::new());
    }

    #[test]
    fn overlapping_and_impossible_pools_are_all_named() {
        let section = serde_json::json!({
            "pools": [
                { "range": "10.0.0.0/16" },
                { "range": "10.0.128.0/17" },
                { "range": "10.1.0.1/16" },
                { "range": "10.2.0.0/16", "blockLength": 12 },
            ],
            "servicePrefixes": ["10.0.0.0/24"],
        });
        let (_, faults) = faults_of(section);
        assert_eq!(
            faults,
            [
                "cluster.static.pools[2].range: 10.1.0.1/16 has host bits set; write 10.1.0.0/16",
                "cluster.static.pools[3].blockLength: write a prefix length from 16 to 30, not 12",
                "cluster.static.pools[0].range: 10.0.0.0/16 overlaps 10.0.0.0/24; choose ranges apart",
                "cluster.static.pools[1].range: 10.0.128.0/17 overlaps 10.0.0.0/16; choose ranges apart",
            ]
        );
    }

    fn file_with(folder: &Path, range: &str) -> PathBuf {
        let path = folder.join("culvert.yaml");
        let text = format!("cluster: {{ static: {{ pools: [ {{ range: {range} }} ] }} }}\n");
        let fresh = folder.join(".culvert.yaml.new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &path).unwrap();
        path
    }

    async fn changed(facts: &mut watch::Receiver<ClusterFacts>) -> ClusterFacts {
        let bound = std::time::Duration::from_secs(10);
        tokio::time::timeout(bound, facts.changed()).await.unwrap().unwrap();
        facts.borrow_and_update().clone()
    }

    #[tokio::test]
    async fn a_good_edit_is_taken_over_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_with(folder.path(), "10.1.0.0/16");
        let start = ClusterFacts { pools: vec![pool("10.1.0.0/16", 24)], service_prefixes: Vec::new() };
        let cluster = StaticCluster::start(&path, start, Arc::new(NoKeeper)).unwrap();
        let mut facts = cluster.facts();
        file_with(folder.path(), "10.2.0.0/16");
        assert_eq!(changed(&mut facts).await.pools, [pool("10.2.0.0/16", 24)]);
        file_with(folder.path(), "nonsense");
        file_with(folder.path(), "10.3.0.0/16");
        assert_eq!(changed(&mut facts).await.pools, [pool("10.3.0.0/16", 24)]);
    }

    #[tokio::test]
    async fn a_claim_goes_to_the_keeper() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_with(folder.path(), "10.1.0.0/16");
        let cluster = StaticCluster::start(&path, ClusterFacts::default(), Arc::new(NoKeeper)).unwrap();
        let block = "10.1.7.0/24".parse().unwrap();
        let standing = culvert_core::claim::Standing::Final;
        let request = ClaimRequest { block, holder: "edge-1".into(), peer: PeerId("A".into()), standing };
        let refused = cluster.claim(request).await.unwrap_err();
        assert!(refused.to_string().contains("no keeper here"), "{refused}");
    }
}
