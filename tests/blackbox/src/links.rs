//! Whether a node's links were touched, by the kernel's own account.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_lab::Node;
use culvert_lab::wait;

/// A link made and removed to see that the watcher hears.
const MARKER: &str = "marker0";
/// How long the watcher may take to hear of it.
const HEARD_BOUND: Duration = Duration::from_secs(20);

/// Hears of every change of a node's links until it is finished.
#[derive(Debug)]
pub struct LinkWatch<'a> {
    node: &'a Node,
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl<'a> LinkWatch<'a> {
    /// Begins to hear; from its return on no change is missed.
    ///
    /// **Errors** `ip monitor` cannot be run, or hears nothing.
    pub fn begin(node: &'a Node) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["-n", node.namespace().name(), "-oneline", "monitor", "link"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot run ip monitor")?;
        let output = child.stdout.take().context("ip monitor without output")?;
        // A test causes some dozen lines at most.
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(|line| line.ok()) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut watch = Self { node, child, lines, heard: Vec::new() };
        watch.mark()?;
        Ok(watch)
    }

    /// The changes since it began.
    ///
    /// **Errors** the watcher went deaf.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.heard.clear();
        self.mark()?;
        Ok(std::mem::take(&mut self.heard))
    }

    /// Makes changes of its own until it hears of one: then it has heard of everything before.
    fn mark(&mut self) -> Result<()> {
        wait::until("the watcher of links to hear", HEARD_BOUND, || {
            let namespace = self.node.namespace();
            namespace.ip(&format!("link add {MARKER} type bridge"))?;
            namespace.ip(&format!("link delete {MARKER}"))?;
            let mut marked = false;
            while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
                let own = line.contains(MARKER);
                if !own {
                    self.heard.push(line);
                } else if line.contains("Deleted") {
                    marked = true;
                    break;
                }
            }
            if marked { Ok(()) } else { anyhow::bail!("nothing was heard") }
        })
    }
}

impl Drop for LinkWatch<'_> {
    fn drop(&mut self) {
        // Both fail only for a process that ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
