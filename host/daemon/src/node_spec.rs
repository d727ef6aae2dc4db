//! What the kernel should look like on this node, from the configuration and the blocks it holds.

use culvert_kernel::NodeSpec;
use ipnet::IpNet;

use crate::config::Config;

/// What the kernel should look like on this node.
#[must_use]
pub fn node_spec(config: &Config, blocks: impl Iterator<Item = IpNet>, cluster_prefixes: &[IpNet]) -> NodeSpec {
    let gateway = |block: IpNet| IpNet::new(culvert_core::address::gateway(&block), block.prefix_len()).ok();
    let network = &config.network;
    NodeSpec {
        bridge: network.bridge.clone(),
        tun: network.tun.clone(),
        bridge_mtu_bytes: network.mtu_bytes,
        tun_mtu_bytes: network.tunnel_mtu_bytes,
        tun_queues: network.tunnel_queues,
        gateways: blocks.filter_map(gateway).collect(),
        cluster_prefixes: cluster_prefixes.to_vec(),
        masquerade: network.masquerade,
    }
}
