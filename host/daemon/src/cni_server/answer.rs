//! From an attachment to the result that the runtime gets.

use culvert_cni::result::{AddResult, Dns, Interface, IpConfig, RouteAttributes, RouteConfig};
use culvert_core::address::gateway;
use culvert_core::attachment::Attachment;
use culvert_core::plan::PodRoute;

/// The result of an ADD: host end, pod end, addresses, routes, name resolution.
pub(super) fn result_of(attachment: &Attachment, dns: Dns) -> AddResult {
    let interface = |name: &str, mac: String, sandbox: Option<String>| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(attachment.mtu_bytes),
        sandbox,
        ..Interface::default()
    };
    let ips = attachment.addresses.iter().map(|address| IpConfig {
        address: *address,
        gateway: Some(gateway(&address.trunc())),
        interface: Some(1),
    });
    AddResult {
        interfaces: vec![
            interface(&attachment.host_name, String::new(), None),
            interface(&attachment.key.ifname, mac_text(attachment.mac), Some(attachment.netns.clone())),
        ],
        ips: ips.collect(),
        routes: attachment.routes.iter().map(route_config).collect(),
        dns,
    }
}

/// A hardware address as people write it.
fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn route_config(route: &PodRoute) -> RouteConfig {
    RouteConfig {
        dst: route.to,
        gw: route.gateway,
        attributes: RouteAttributes {
            mtu: route.mtu_bytes,
            advmss: route.advertised_mss_bytes,
            priority: route.metric,
            table: route.table,
            scope: route.scope,
        },
    }
}

/// A result after those of the plugins before: theirs stand in front.
pub(super) fn after(previous: AddResult, mut own: AddResult) -> AddResult {
    let before = previous.interfaces.len();
    for ip in &mut own.ips {
        ip.interface = ip.interface.map(|position| position + before);
    }
    AddResult {
        interfaces: previous.interfaces.into_iter().chain(own.interfaces).collect(),
        ips: previous.ips.into_iter().chain(own.ips).collect(),
        routes: previous.routes.into_iter().chain(own.routes).collect(),
        dns: if own.dns.is_empty() { previous.dns } else { own.dns },
    }
}
