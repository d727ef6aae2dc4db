//! `demo --keep` leaves the stage up and says what to try; `demo --down` removes it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use culvert_lab::binaries::workspace;
use culvert_lab::lab;
use culvert_lab::pod::Family;
use culvert_lab::three_sites::EDGE_1;
use serde::{Deserialize, Serialize};

use crate::demo::stage::{PODS, Stage};
use crate::screen;

/// What has to be known to remove a stage.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    prefix: String,
}

fn file() -> PathBuf {
    workspace().join("target/culvert/demo.json")
}

/// Leaves the stage up; one that was kept before is removed.
///
/// # Errors
/// The file that remembers it cannot be written; the stage is then removed.
pub(crate) fn keep(stage: Stage) -> Result<()> {
    if file().exists() {
        take_down()?;
    }
    let kept = Kept { prefix: stage.prefix().to_owned() };
    std::fs::write(file(), serde_json::to_vec(&kept)?).context("cannot remember the demo")?;
    for line in suggestions(&stage)? {
        screen::line(&line);
    }
    std::mem::forget(stage);
    Ok(())
}

fn suggestions(stage: &Stage) -> Result<Vec<String>> {
    let node = stage.node(EDGE_1)?;
    let ctl = format!(
        "{} --socket {}",
        node.binaries().program("culvertctl").display(),
        node.folder().join("admin.sock").display()
    );
    let enter = |pod: &str| Ok::<_, anyhow::Error>(format!("ip netns exec {}", stage.pod(pod)?.namespace().name()));
    let scale = stage.pod("scale")?;
    let mut lines = vec!["It is still up. Try:".to_owned()];
    lines.push(format!("  {} ping {}", enter("till")?, scale.address(Family::V4)?));
    for verb in ["status", "peers", "routes", "ipam", "plugins"] {
        lines.push(format!("  {ctl} {verb}"));
    }
    lines.push(format!("  {ctl} explain {} {}", stage.pod("till")?.full_name(), scale.full_name()));
    lines.push(format!("  ls {}", node.folder().join("plugins").display()));
    lines.push("Pods:".to_owned());
    for (pod, on) in PODS {
        let addresses: Vec<String> = stage.pod(pod)?.addresses().iter().map(|net| net.addr().to_string()).collect();
        lines.push(format!("  {pod} on {on}: {}", addresses.join(", ")));
    }
    lines.push("Nodes:".to_owned());
    for node in stage.nodes() {
        lines.push(format!(
            "  {}: namespace {}, files in {}",
            node.name(),
            node.namespace().name(),
            node.folder().display()
        ));
    }
    lines.push("Remove it: cargo xtask demo --down".to_owned());
    Ok(lines)
}

/// Removes what `--keep` left.
///
/// # Errors
/// Nothing was kept, or something does not go away.
pub(crate) fn take_down() -> Result<()> {
    let Ok(text) = std::fs::read(file()) else {
        bail!("no demo was kept: {} is not there", file().display());
    };
    let kept: Kept = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file().display()))?;
    screen::step("remove the demo", |_| lab::remove(&kept.prefix))?;
    std::fs::remove_file(file()).context("cannot forget the demo")
}
