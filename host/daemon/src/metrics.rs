//! Every metric of the daemon, declared here and nowhere else: what it counts, and what it does not.
//!
//! All are named `culvert_*`. None has a label per pod, per address or per node, so their number
//! does not grow with the cluster. The owners clone [`Metrics`] and count through its methods;
//! [`Metrics::encode`] writes all of it as OpenMetrics text. Label values that are known beforehand
//! start at zero, so that a rate can be computed from the first event on.

mod tunnel;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use tunnel::TunnelCounters;

/// Labels of a metric. Values are words of our own, never foreign text.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// Counters by labels.
type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// Gauges by one label.
type Gauges = Family<Labels<1>, Gauge>;

/// The policies' kinds, as every plugin metric names them.
const KINDS: [&str; 3] = ["route", "ipam", "bandwidth"];

/// The IP versions, as every address metric names them.
const FAMILIES: [&str; 2] = ["v4", "v6"];

/// The ways of a route, as `culvert_routes_installed` names them.
const WAYS: [&str; 5] = ["bridge", "next-hop", "tunnel", "throw", "prohibit"];

/// The paths to a peer, as `culvert_peers_connected` names them.
const PATHS: [&str; 2] = ["direct", "relayed"];

/// **Units** seconds. An ADD takes some milliseconds; one that waits for a claim up to two seconds.
const CNI_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics. A clone counts into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The CNI server.
    pub cni: CniMetrics,
    /// Attachments, addresses, blocks and claims.
    pub addresses: AddressMetrics,
    /// The policies.
    pub plugins: PluginMetrics,
    /// The route table and the topology behind it.
    pub routes: RouteMetrics,
    /// Who is in the cluster. The tunnel's own figures come from [`Metrics::watch_tunnel`].
    pub members: MemberMetrics,
    /// Plans and repairs in the kernel.
    pub kernel: KernelMetrics,
    /// Requests that the admin socket refused.
    pub admin_requests_refused: Counter,
    tunnel: tunnel::Tunnel,
    registry: Arc<Registry>,
}

impl Metrics {
    /// Declares all metrics of a daemon of this version.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::with_prefix("culvert");
        let build = Info::new([("version", version.to_owned())]);
        registry.register("build", "The daemon that answers", build);
        let admin_requests_refused = Counter::default();
        registry.register(
            "admin_requests_refused",
            "Connections to the admin socket by users that may not ask. Requests that failed are not counted",
            admin_requests_refused.clone(),
        );
        Self {
            cni: CniMetrics::declare(&mut registry),
            addresses: AddressMetrics::declare(&mut registry),
            plugins: PluginMetrics::declare(&mut registry),
            routes: RouteMetrics::declare(&mut registry),
            members: MemberMetrics::declare(&mut registry),
            kernel: KernelMetrics::declare(&mut registry),
            admin_requests_refused,
            tunnel: tunnel::Tunnel::declare(&mut registry),
            registry: Arc::new(registry),
        }
    }

    /// Says where the tunnel's figures come from. They are asked for on each scrape, so `source`
    /// must be quick. The first source stays; before it, the figures are absent.
    pub fn watch_tunnel(&self, source: impl Fn() -> TunnelCounters + Send + Sync + 'static) {
        self.tunnel.watch(source);
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => {
                // Writing into a string cannot fail; a half text would look like lost series.
                tracing::error!(%error, "cannot write the metrics");
                "# EOF\n".to_owned()
            }
        }
    }
}

fn labelled<const N: usize>(labels: [(&'static str, &'static str); N]) -> Labels<N> {
    labels.map(|(key, value)| (key, Cow::Borrowed(value)))
}

fn start_at_zero(counters: &Counters<1>, key: &'static str, values: &[&'static str]) {
    for &value in values {
        let _zero = counters.get_or_create(&labelled([(key, value)]));
    }
}

fn gauges_at_zero(gauges: &Gauges, key: &'static str, values: &[&'static str]) {
    for &value in values {
        let _zero = gauges.get_or_create(&labelled([(key, value)]));
    }
}

/// A gauge holds 63 bits; the free addresses of an IPv6 block may be more.
fn level(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The CNI server.
#[derive(Clone, Debug)]
pub struct CniMetrics {
    requests: Counters<2>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
}

impl CniMetrics {
    fn declare(registry: &mut Registry) -> Self {
        let requests = Counters::default();
        registry.register(
            "cni_requests",
            "CNI requests answered, by verb (or garbage, or refused for its user) and CNI error code, 0 for none. VERSION and faults that the shim answers by itself are not counted",
            requests.clone(),
        );
        let seconds = Family::new_with_constructor((|| Histogram::new(CNI_SECONDS)) as fn() -> Histogram);
        registry.register_with_unit(
            "cni_request_duration",
            "Time from a request read to its answer written. The shim's own start and the runtime's work are not in it",
            Unit::Seconds,
            seconds.clone(),
        );
        Self { requests, seconds }
    }

    /// Counts an answered request: its verb in capitals, the CNI error code or 0, and its time.
    pub fn served(&self, verb: &'static str, code: u32, took: Duration) {
        let labels = [("verb", Cow::Borrowed(verb)), ("code", Cow::Owned(code.to_string()))];
        self.requests.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labelled([("verb", verb)])).observe(took.as_secs_f64());
    }
}

/// Attachments, addresses, blocks and claims.
#[derive(Clone, Debug)]
pub struct AddressMetrics {
    /// Attachments on this node.
    pub attachments: Gauge,
    in_use: Gauges,
    free: Gauges,
    blocks: Gauges,
    claims: Counters<1>,
}

impl AddressMetrics {
    fn declare(registry: &mut Registry) -> Self {
        let attachments = Gauge::default();
        registry.register(
            "attachments",
            "Attachments on this node, the ones under way included. Pods on the host network have none",
            attachments.clone(),
        );
        let [in_use, free, blocks] = [Gauges::default(), Gauges::default(), Gauges::default()];
        for gauges in [&in_use, &free, &blocks] {
            gauges_at_zero(gauges, "family", &FAMILIES);
        }
        registry.register(
            "addresses_in_use",
            "Addresses leased on this node. Resting ones are not counted",
            in_use.clone(),
        );
        registry.register(
            "addresses_free",
            "Addresses of this node's blocks that could be given out now, at most 2^63-1. Resting ones and blocks that could still be claimed are not counted",
            free.clone(),
        );
        registry.register(
            "blocks_held",
            "Blocks this node holds by a final or provisional claim. Lost ones are not counted",
            blocks.clone(),
        );
        let claims = Counters::default();
        start_at_zero(&claims, "outcome", &["granted", "nothing-free", "unreachable", "lost"]);
        registry.register(
            "claims",
            "Claims of blocks by this node, by outcome. Claims of other nodes are not counted",
            claims.clone(),
        );
        Self { attachments, in_use, free, blocks, claims }
    }

    /// Sets the addresses of one family (`v4`, `v6`): how many are leased and how many are free.
    pub fn set_addresses(&self, family: &'static str, in_use: u64, free: u64) {
        self.in_use.get_or_create(&labelled([("family", family)])).set(level(in_use));
        self.free.get_or_create(&labelled([("family", family)])).set(level(free));
    }

    /// Sets how many blocks of one family (`v4`, `v6`) this node holds.
    pub fn set_blocks(&self, family: &'static str, held: u64) {
        self.blocks.get_or_create(&labelled([("family", family)])).set(level(held));
    }

    /// Counts a claim: `granted` (also when only provisionally), `nothing-free`, `unreachable` or `lost`.
    pub fn claimed(&self, outcome: &'static str) {
        self.claims.get_or_create(&labelled([("outcome", outcome)])).inc();
    }
}

/// The policies. `kind` is `route`, `ipam` or `bandwidth`.
#[derive(Clone, Debug)]
pub struct PluginMetrics {
    calls: Counters<1>,
    faults: Counters<2>,
    swaps: Counters<2>,
    refusals: Counters<1>,
    generation: Gauges,
}

impl PluginMetrics {
    fn declare(registry: &mut Registry) -> Self {
        let [calls, refusals] = [Counters::default(), Counters::default()];
        start_at_zero(&calls, "kind", &KINDS);
        start_at_zero(&refusals, "what", &["unit"]);
        let (faults, swaps) = (Counters::default(), Counters::default());
        let generation = Gauges::default();
        gauges_at_zero(&generation, "kind", &KINDS);
        registry.register(
            "plugin_calls",
            "Calls of the policies in force. Calls of the gate's self-test are not counted",
            calls.clone(),
        );
        registry.register(
            "plugin_faults",
            "Calls that gave no usable answer, by fault. Answers that were read and then refused are not counted; see route_refusals",
            faults.clone(),
        );
        registry.register(
            "plugin_swaps",
            "Changes of the policy in force, by outcome. Units that the gate refused are not counted",
            swaps.clone(),
        );
        registry.register(
            "plugin_refusals",
            "Plugin units that were refused before they decided anything, by what was refused. Faults of units in force are not counted",
            refusals.clone(),
        );
        registry.register(
            "plugin_generation",
            "The generation of the policy in force; 0 before the first",
            generation.clone(),
        );
        Self { calls, faults, swaps, refusals, generation }
    }

    /// Counts a call.
    pub fn called(&self, kind: &'static str) {
        self.calls.get_or_create(&labelled([("kind", kind)])).inc();
    }

    /// Counts a call that gave no usable answer, by the fault's label.
    pub fn faulted(&self, kind: &'static str, fault: &'static str) {
        self.faults.get_or_create(&labelled([("kind", kind), ("fault", fault)])).inc();
    }

    /// Counts a swap: `activated` or `rolled-back`.
    pub fn swapped(&self, kind: &'static str, outcome: &'static str) {
        self.swaps.get_or_create(&labelled([("kind", kind), ("outcome", outcome)])).inc();
    }

    /// Counts a refusal: of a `unit`.
    pub fn refused(&self, what: &'static str) {
        self.refusals.get_or_create(&labelled([("what", what)])).inc();
    }

    /// Sets which generation is in force.
    pub fn set_generation(&self, kind: &'static str, generation: u64) {
        self.generation.get_or_create(&labelled([("kind", kind)])).set(level(generation));
    }
}

/// The route table and the topology behind it.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    installed: Gauges,
    /// Routes that were added, replaced or removed.
    pub changes: Counter,
    /// Answers of the route policy that were refused.
    pub refusals: Counter,
    /// The generation of the topology in force.
    pub topology_generation: Gauge,
}

impl RouteMetrics {
    fn declare(registry: &mut Registry) -> Self {
        let installed = Gauges::default();
        gauges_at_zero(&installed, "via", &WAYS);
        let (changes, refusals, topology_generation) = (Counter::default(), Counter::default(), Gauge::default());
        registry.register(
            "routes_installed",
            "Cluster routes in force, by way. The kernel's other routes are not counted",
            installed.clone(),
        );
        registry.register(
            "route_changes",
            "Cluster routes added, replaced or removed. Routes put back by a repair are not counted",
            changes.clone(),
        );
        registry.register(
            "route_refusals",
            "Answers of the route policy that were refused as a whole; the routes before stayed. Faults of the call are not counted",
            refusals.clone(),
        );
        registry.register(
            "topology_generation",
            "The generation of the topology that the routes were planned for",
            topology_generation.clone(),
        );
        Self { installed, changes, refusals, topology_generation }
    }

    /// Sets how many routes go a way: `bridge`, `next-hop`, `tunnel`, `throw` or `prohibit`.
    pub fn set_installed(&self, via: &'static str, routes: u64) {
        self.installed.get_or_create(&labelled([("via", via)])).set(level(routes));
    }

    /// Sets the generation of the topology in force.
    pub fn set_topology_generation(&self, generation: u64) {
        self.topology_generation.set(level(generation));
    }
}

/// Who is in the cluster.
#[derive(Clone, Debug)]
pub struct MemberMetrics {
    /// Nodes in the cluster.
    pub members: Gauge,
    connected: Gauges,
    refusals: Counters<1>,
}

impl MemberMetrics {
    fn declare(registry: &mut Registry) -> Self {
        let members = Gauge::default();
        let connected = Gauges::default();
        gauges_at_zero(&connected, "path", &PATHS);
        let refusals = Counters::default();
        registry.register(
            "members",
            "Nodes with a countersigned record, this one and silent ones included",
            members.clone(),
        );
        registry.register(
            "peers_connected",
            "Peers connected now, by path. Members without a connection are not counted",
            connected.clone(),
        );
        registry.register(
            "membership_refusals",
            "Records of nodes that were refused, by reason. Strangers without a valid key are not counted; see strangers_refused",
            refusals.clone(),
        );
        Self { members, connected, refusals }
    }

    /// Sets how many peers are connected over a path: `direct` or `relayed`.
    pub fn set_connected(&self, path: &'static str, peers: u64) {
        self.connected.get_or_create(&labelled([("path", path)])).set(level(peers));
    }

    /// Counts a record that was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&labelled([("reason", reason)])).inc();
    }
}

/// Plans and repairs in the kernel.
#[derive(Clone, Debug)]
pub struct KernelMetrics {
    plans: Counters<1>,
    repairs: Counters<1>,
}

impl KernelMetrics {
    fn declare(registry: &mut Registry) -> Self {
        let (plans, repairs) = (Counters::default(), Counters::default());
        start_at_zero(&plans, "outcome", &["applied", "undone"]);
        registry.register(
            "kernel_plans",
            "Plans given to the kernel: applied, or undone after a failure. Empty plans are not counted",
            plans.clone(),
        );
        registry.register(
            "repairs",
            "Things put right that the kernel or the state held wrongly, by what. Looks that found nothing wrong are not counted",
            repairs.clone(),
        );
        Self { plans, repairs }
    }

    /// Counts a plan: `applied` or `undone`.
    pub fn planned(&self, outcome: &'static str) {
        self.plans.get_or_create(&labelled([("outcome", outcome)])).inc();
    }

    /// Counts a repair.
    pub fn repaired(&self, what: &'static str) {
        self.repairs.get_or_create(&labelled([("what", what)])).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// All metrics by name, each once, without prefix and suffix.
    const DECLARED: &str = "addresses_free addresses_in_use admin_requests_refused attachments blocks_held build claims \
        cni_request_duration_seconds cni_requests kernel_plans members membership_refusals mesh_events \
        peers_connected plugin_calls plugin_faults plugin_generation plugin_refusals plugin_swaps repairs \
        route_changes route_refusals routes_installed strangers_refused topology_generation tunnel_bytes \
        tunnel_drops tunnel_packets";

    /// The samples, without help and type.
    fn samples(metrics: &Metrics) -> BTreeSet<String> {
        metrics.encode().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    fn counted() -> Metrics {
        let metrics = Metrics::new("1.2.3");
        metrics.cni.served("ADD", 11, Duration::from_millis(30));
        metrics.addresses.attachments.set(4);
        metrics.addresses.set_addresses("v4", 4, 249);
        metrics.addresses.set_addresses("v6", 4, u64::MAX);
        metrics.addresses.set_blocks("v4", 1);
        metrics.addresses.claimed("granted");
        metrics.plugins.called("ipam");
        metrics.plugins.faulted("route", "trap");
        metrics.plugins.swapped("route", "rolled-back");
        metrics.plugins.refused("unit");
        metrics.plugins.set_generation("bandwidth", 3);
        metrics.routes.set_installed("tunnel", 7);
        metrics.routes.changes.inc_by(2);
        metrics.routes.refusals.inc();
        metrics.routes.set_topology_generation(19);
        metrics.members.members.set(3);
        metrics.members.set_connected("relayed", 2);
        metrics.members.refused("name-taken");
        metrics.kernel.planned("undone");
        metrics.kernel.repaired("route");
        metrics.admin_requests_refused.inc();
        metrics.watch_tunnel(|| TunnelCounters {
            packets_in: 1,
            bytes_in: 1500,
            packets_out: 2,
            bytes_out: 3000,
            strangers_refused: 5,
            drops: vec![("dropped_no_path", 6)],
            events: vec![("dials_failed", 7)],
        });
        metrics
    }

    #[test]
    fn what_was_counted_can_be_read() {
        let samples = samples(&counted());
        for expected in [
            "culvert_build_info{version=\"1.2.3\"} 1",
            "culvert_cni_requests_total{verb=\"ADD\",code=\"11\"} 1",
            "culvert_cni_request_duration_seconds_bucket{le=\"0.025\",verb=\"ADD\"} 0",
            "culvert_cni_request_duration_seconds_bucket{le=\"0.05\",verb=\"ADD\"} 1",
            "culvert_cni_request_duration_seconds_count{verb=\"ADD\"} 1",
            "culvert_attachments 4",
            "culvert_addresses_in_use{family=\"v4\"} 4",
            "culvert_addresses_free{family=\"v4\"} 249",
            "culvert_addresses_free{family=\"v6\"} 9223372036854775807",
            "culvert_blocks_held{family=\"v4\"} 1",
            "culvert_claims_total{outcome=\"granted\"} 1",
            "culvert_plugin_calls_total{kind=\"ipam\"} 1",
            "culvert_plugin_faults_total{kind=\"route\",fault=\"trap\"} 1",
            "culvert_plugin_swaps_total{kind=\"route\",outcome=\"rolled-back\"} 1",
            "culvert_plugin_refusals_total{what=\"unit\"} 1",
            "culvert_plugin_generation{kind=\"bandwidth\"} 3",
            "culvert_routes_installed{via=\"tunnel\"} 7",
            "culvert_route_changes_total 2",
            "culvert_route_refusals_total 1",
            "culvert_topology_generation 19",
            "culvert_members 3",
            "culvert_peers_connected{path=\"relayed\"} 2",
            "culvert_membership_refusals_total{reason=\"name-taken\"} 1",
            "culvert_kernel_plans_total{outcome=\"undone\"} 1",
            "culvert_repairs_total{what=\"route\"} 1",
            "culvert_admin_requests_refused_total 1",
            "culvert_tunnel_packets_total{direction=\"in\"} 1",
            "culvert_tunnel_bytes_total{direction=\"out\"} 3000",
            "culvert_tunnel_drops_total{reason=\"no_path\"} 6",
            "culvert_mesh_events_total{event=\"dials_failed\"} 7",
            "culvert_strangers_refused_total 5",
        ] {
            assert!(samples.contains(expected), "{expected} is not among\n{samples:#?}");
        }
    }

    #[test]
    fn series_known_beforehand_start_at_zero() {
        let samples = samples(&Metrics::new("1.2.3"));
        for expected in [
            "culvert_plugin_calls_total{kind=\"route\"} 0",
            "culvert_claims_total{outcome=\"lost\"} 0",
            "culvert_kernel_plans_total{outcome=\"applied\"} 0",
            "culvert_routes_installed{via=\"next-hop\"} 0",
            "culvert_peers_connected{path=\"direct\"} 0",
        ] {
            assert!(samples.contains(expected), "{expected} is not among\n{samples:#?}");
        }
    }

    #[test]
    fn every_metric_is_ours_and_says_what_it_counts() {
        let text = counted().encode();
        let mut helped = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(name.starts_with("culvert_"), "{name}");
                assert!(help.ends_with('.') && !help.ends_with(".."), "{line}");
                helped.push(name.trim_start_matches("culvert_").to_owned());
            }
        }
        helped.sort();
        assert_eq!(helped.join(" "), DECLARED);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_clone_counts_into_the_same_metrics() {
        let metrics = Metrics::new("1.2.3");
        metrics.clone().routes.changes.inc();
        assert!(samples(&metrics).contains("culvert_route_changes_total 1"));
    }

    #[test]
    fn the_first_source_of_the_tunnel_stays() {
        let metrics = counted();
        metrics.watch_tunnel(TunnelCounters::default);
        assert!(samples(&metrics).contains("culvert_strangers_refused_total 5"));
    }
}
