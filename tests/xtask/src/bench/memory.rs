//! What a daemon takes of memory.

use anyhow::Result;
use culvert_lab::ThreeSites;
use culvert_lab::three_sites::EDGE_1;

use crate::bench::Figure;
use crate::screen;

/// Pods on the node.
const PODS: usize = 100;

/// Measures the resident memory of an edge node's daemon, idle and with pods.
pub(super) fn measure() -> Result<Vec<Figure>> {
    screen::step("measure memory", |step| {
        let sites = ThreeSites::running()?;
        let node = sites.node(EDGE_1)?;
        let idle = node.resident_bytes()?;
        let mut pods = Vec::new();
        for index in 0..PODS {
            step.show(&format!("pod {index}"));
            pods.push(sites.pod(EDGE_1, &format!("pod-{index}"))?);
        }
        let full = node.resident_bytes()?;
        Ok(vec![
            Figure::mebibytes("daemon, resident, idle", idle),
            Figure::mebibytes("daemon, resident, with 100 pods", full),
        ])
    })
}
