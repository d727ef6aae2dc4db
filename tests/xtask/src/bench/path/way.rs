//! The ways between two pods, and how each is taken.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_lab::pod::Family;
use culvert_lab::{Namespace, Pod, TwoSides, wait};

/// The UDP port of packets. **Source** the default of `mesh.dataPort`.
const DATA_PORT: u16 = 20_007;
/// A routing rule before those of the daemon, and its table.
const BARE_RULE: &str = "priority 500 lookup 500";
/// What the router counts, and what blocks UDP.
const COUNT_DATAGRAMS: &str = "FORWARD -p udp --dport 20007";
const BLOCK_UDP: &str = "FORWARD -p udp -j DROP";

/// How long two nodes may take to agree on keys and to probe a path.
const DATAGRAMS_BOUND: Duration = Duration::from_secs(60);
/// Pings that tell whether packets travel as datagrams: many more than probes do meanwhile.
const PINGS: u32 = 50;
const PING_INTERVAL: Duration = Duration::from_millis(2);
/// The least that a ping is on the wire.
const PING_BYTES: u64 = 84;

/// How packets travel from pod to pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Routed by the kernels alone.
    Bare,
    /// Sealed datagrams.
    Datagrams,
    /// A libp2p stream over TCP, since UDP is blocked.
    Stream,
}

impl Way {
    /// In the order they are measured; the one that others are compared with comes first.
    pub(super) const ALL: [Self; 3] = [Self::Bare, Self::Datagrams, Self::Stream];

    /// What it is called in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Datagrams => "datagrams",
            Self::Stream => "stream",
        }
    }

    /// Makes packets take this way, until the answer is dropped.
    ///
    /// **Errors** a route or rule cannot be made, or no packet gets through.
    pub(super) fn take<'a>(self, sides: &'a TwoSides, here: &'a Pod, there: &'a Pod) -> Result<Taken<'a>> {
        let mut taken = Taken { way: self, sides, undo: Vec::new(), before: None };
        match self {
            Self::Bare => taken.route_by_kernel(here, there)?,
            Self::Datagrams => {}
            Self::Stream => taken.add_rule(BLOCK_UDP)?,
        }
        taken.add_rule(COUNT_DATAGRAMS)?;
        here.vantage().wait_reachable(there.address(Family::V4)?)?;
        if self == Self::Datagrams {
            taken.wait_for_datagrams(here, there)?;
        }
        taken.before = Some(taken.passed()?);
        Ok(taken)
    }
}

/// A way while it is taken.
pub(super) struct Taken<'a> {
    way: Way,
    sides: &'a TwoSides,
    /// Command lines by the namespace they are run in; the last comes first.
    undo: Vec<(&'a Namespace, String)>,
    before: Option<Passed>,
}

/// What the router let pass so far. **Units** bytes.
#[derive(Clone, Copy, Debug)]
struct Passed {
    datagrams: u64,
    all: u64,
}

impl<'a> Taken<'a> {
    /// Makes sure that the packets since [`Way::take`] took this way, and ends it.
    ///
    /// **Errors** they took another one.
    pub(super) fn prove(self) -> Result<()> {
        let before = self.before.context("the way was not taken")?;
        let now = self.passed()?;
        let (datagrams, all) = (now.datagrams - before.datagrams, now.all - before.all);
        let mostly = datagrams > all / 2;
        ensure!(
            mostly == (self.way == Way::Datagrams) && all > 0,
            "{datagrams} of the {all} bytes that the router saw were datagrams, while the way was {}",
            self.way.name()
        );
        Ok(())
    }

    /// Lets the kernels route between the pods, before the daemons' own routes are asked.
    fn route_by_kernel(&mut self, here: &Pod, there: &Pod) -> Result<()> {
        let sides = self.sides;
        for (node, pod, other) in [(sides.near(), here, there), (sides.far(), there, here)] {
            let (own, to) = (pod.address(Family::V4)?, other.address(Family::V4)?);
            let gateway = sides.gateway_of(node)?;
            node.namespace().ip(&format!("route replace {to} via {gateway} table 500"))?;
            node.namespace().ip(&format!("rule add {BARE_RULE}"))?;
            self.undo.push((node.namespace(), format!("ip rule del {BARE_RULE}")));
            sides.router().ip(&format!("route replace {own} via {}", node.host().address()?))?;
        }
        Ok(())
    }

    fn add_rule(&mut self, rule: &str) -> Result<()> {
        self.sides.router().run(&format!("iptables -I {rule}"))?;
        self.undo.push((self.sides.router(), format!("iptables -D {rule}")));
        Ok(())
    }

    /// Pings until the pings travel as datagrams: keys are agreed on and the path is probed first.
    fn wait_for_datagrams(&self, here: &Pod, there: &Pod) -> Result<()> {
        let there = there.address(Family::V4)?;
        wait::until("packets to travel as datagrams", DATAGRAMS_BOUND, || {
            let before = self.passed()?.datagrams;
            here.vantage().ping(there, PINGS, PING_INTERVAL)?;
            let passed = self.passed()?.datagrams - before;
            ensure!(passed > u64::from(PINGS) * PING_BYTES, "the router saw {passed} bytes of datagrams");
            Ok(())
        })
    }

    fn passed(&self) -> Result<Passed> {
        let rules = self.sides.router().run("iptables --list-rules FORWARD --verbose")?;
        let counted = rules.lines().find(|line| line.contains(&format!("--dport {DATA_PORT}")));
        let datagrams =
            counted.and_then(|line| line.rsplit(' ').next()?.parse().ok()).context("no rule that counts")?;
        let near = self.sides.router().counter("near", "rx_bytes")?;
        Ok(Passed { datagrams, all: near + self.sides.router().counter("far", "rx_bytes")? })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (namespace, line) in self.undo.drain(..).rev() {
            // The lab goes away anyway when this fails.
            let _ = namespace.run(&line);
        }
    }
}
