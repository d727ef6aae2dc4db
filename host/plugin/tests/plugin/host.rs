//! A plugin host with a cache of its own.

use std::path::PathBuf;

use culvert_core::topology::{Node, Reach, Topology};
use culvert_plugin::{BandwidthPolicy, Gated, IpamPolicy, Limits, PluginHost, PluginHostConfig, RoutePolicy, Unit};
use tempfile::TempDir;

pub struct Host {
    pub host: PluginHost,
    pub cache: TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let host = open(&cache, limits);
        Self { host, cache }
    }

    pub fn refusal(&self, unit: &Unit) -> String {
        match self.host.gate(unit, None) {
            Ok(gated) => panic!("{gated:?} passed"),
            Err(refusal) => refusal.to_string(),
        }
    }

    pub fn route(&self, unit: &Unit) -> RoutePolicy {
        match self.host.gate(unit, None) {
            Ok(Gated::Route(policy)) => policy,
            other => panic!("{other:?}"),
        }
    }

    pub fn ipam(&self, unit: &Unit) -> IpamPolicy {
        match self.host.gate(unit, None) {
            Ok(Gated::Ipam(policy)) => policy,
            other => panic!("{other:?}"),
        }
    }

    pub fn bandwidth(&self, unit: &Unit) -> BandwidthPolicy {
        match self.host.gate(unit, None) {
            Ok(Gated::Bandwidth(policy)) => policy,
            other => panic!("{other:?}"),
        }
    }
}

pub fn open(cache: &TempDir, limits: Limits) -> PluginHost {
    let cache_folder = cache.path().join("compiled");
    PluginHost::new(PluginHostConfig { compile_program: compile_program(), cache_folder, limits }).unwrap()
}

/// The compiler: `CULVERT_COMPILE`, or the one built beside this test.
fn compile_program() -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("culvert-compile")
    };
    let program = std::env::var_os("CULVERT_COMPILE").map_or_else(beside, PathBuf::from);
    assert!(program.is_file(), "{} is missing: cargo build --release -p culvert-compile", program.display());
    program
}

/// A live topology of one node that holds 10.244.1.0/24.
pub fn topology(generation: u64) -> Topology {
    let node = Node {
        name: "edge-1".to_owned(),
        ready: true,
        reach: Reach::Unknown,
        blocks: vec!["10.244.1.0/24".parse().unwrap()],
        ..Node::default()
    };
    Topology {
        generation,
        local: 0,
        nodes: vec![node],
        cluster_prefixes: vec!["10.244.0.0/16".parse().unwrap()],
        service_prefixes: vec!["10.96.0.0/12".parse().unwrap()],
    }
}
