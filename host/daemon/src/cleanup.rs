//! `culvertd cleanup`: everything of Culvert's out of the kernel. State and configuration stay.

use anyhow::{Context, bail};
use culvert_kernel::Kernel;

use crate::admin::AdminSocket;
use crate::config::Config;
use crate::node_spec::node_spec;

/// Removes interfaces, routes, rules and firewall chains; touches nothing else.
///
/// # Errors
/// When a daemon is running, or the kernel refuses.
pub fn cleanup(config: Config) -> anyhow::Result<()> {
    // A running daemon would put everything back. Holding its socket meanwhile keeps one from starting.
    let Ok(_socket) = AdminSocket::bind(&config.admin_socket) else {
        bail!("a daemon is running on {}; stop it first", config.admin_socket.display());
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let mut kernel = Kernel::open().await.context("cannot open the kernel's sockets")?;
        let spec = node_spec(&config, std::iter::empty(), &config.facts.cluster_prefixes());
        kernel.remove_node(&spec).await.context("not everything could be removed; what could be is gone")
    })
}
