//! Proves of each way that its pods are really attached before its times count.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use culvert_lab::probe::Vantage;

use super::pod_namespace::PodNamespace;
use super::rounds::Participant;
use super::way::{SetUp, Who, host_port};

/// What a way does of the set-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    buckets: usize,
    port: bool,
}

/// Attaches the first pod of a way, looks at what it has, and detaches it. Returns what is missing; only ours may lack
/// something, and is then shown with it.
///
/// **Errors** the pod does not answer a ping, or another way lacks something.
pub(super) fn prove(participant: &Participant<'_>, set_up: SetUp, probe: &Path) -> Result<Vec<String>> {
    let way = participant.way;
    if way.who() == Who::Shim {
        return Ok(Vec::new());
    }
    let namespace = PodNamespace::create()?;
    let done = participant.on_node(|| {
        let mut pod = participant.pod(&namespace);
        pod.attach()?;
        let looked = reach(participant, pod.address(), probe).and_then(|()| look(participant));
        pod.detach()?;
        looked
    });
    let done = done.with_context(|| format!("the first pod of {}", way.who().name()))?;
    let missing = missing(set_up, done);
    ensure!(missing.is_empty() || way.who() == Who::Ours, "{} has {}", way.who().name(), missing.join(", "));
    Ok(missing)
}

fn reach(participant: &Participant<'_>, address: Option<IpAddr>, probe: &Path) -> Result<()> {
    let vantage = Vantage { namespace: participant.way.place(), program: probe.to_owned() };
    vantage.wait_reachable(address.context("it has no address")?)
}

/// The first pod of a way has the first port.
fn look(participant: &Participant<'_>) -> Result<Done> {
    let place = participant.way.place();
    let buckets = place.run("tc qdisc show")?.lines().filter(|line| line.starts_with("qdisc tbf")).count();
    let port = host_port(0).to_string();
    // `nft` does not show what it has no words for, as the matches of iptables.
    let port = place.run("nft list ruleset")?.contains(&port) || place.run("iptables-save -t nat")?.contains(&port);
    Ok(Done { buckets, port })
}

/// What a way does not do, in words.
fn missing(set_up: SetUp, done: Done) -> Vec<String> {
    if set_up == SetUp::Network {
        return Vec::new();
    }
    let mut missing = Vec::new();
    if !done.port {
        missing.push("no rule for the host port".to_owned());
    }
    if done.buckets < 2 {
        missing.push(format!("{} token buckets in place of 2", done.buckets));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_and_two_buckets_are_wanted_where_the_set_up_has_them() {
        let nothing = Done { buckets: 0, port: false };
        assert_eq!(missing(SetUp::Network, nothing), Vec::<String>::new());
        let all = missing(SetUp::PortsAndBandwidth, nothing);
        assert_eq!(all, ["no rule for the host port", "0 token buckets in place of 2"]);
        assert_eq!(missing(SetUp::PortsAndBandwidth, Done { buckets: 2, port: true }), Vec::<String>::new());
    }
}
