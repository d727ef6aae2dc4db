//! The node's own set-up: TUN, bridge, gateways, sysctls, rules; and taking all of it away again.
//!
//! Every part is looked at first and touched only if it is not right, so setting up twice disrupts nothing
//! and sets right what somebody else broke.
//!
//! Reverse path filter: while a prefix moves between the tunnel and a direct route the two directions of a
//! flow differ for a moment, and a strict filter (1) would drop one of them. The kernel takes the stricter
//! of `all` and the link's own value, except that 2 (loose) wins over 1; so our two links, and those
//! underlay links where the filter would be strict, are set to 2.
//!
//! A kernel without the parts of nf_tables that the NAT table needs still carries pods: what asks for a host port
//! or an exemption there is refused, everything else works.

use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use rtnetlink::IpVersion;

use crate::error::KernelError;
use crate::message::{address, link, route};
use crate::nat_table::{self, NatTable, NatTableError};
use crate::observe::{self, UnderlayView, facts};
use crate::rtnl::Rtnl;
use crate::sysctl::{Sysctl, SysctlError, has_ipv6};
use crate::tun::open_tun;
use crate::{LINK_GROUP, LINK_NAME_MAX_BYTES, POD_LINK_PREFIX, ROUTE_PROTOCOL, ROUTE_TABLE, firewall, nat_failed};

/// What the node must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// The bridge's name. **Bounds** at most 15 bytes.
    pub bridge: String,
    /// The TUN's name. **Bounds** at most 15 bytes.
    pub tun: String,
    /// **Units** bytes.
    pub bridge_mtu_bytes: u32,
    /// **Units** bytes.
    pub tun_mtu_bytes: u32,
    /// Queues of the TUN device when it has to be made; those of [`open_tun`] at any other time.
    pub tun_queues: u8,
    /// The bridge's addresses: for each block held its gateway, with the block's prefix length.
    pub gateways: Vec<IpNet>,
    /// Everything a pod address can be, in the whole cluster.
    pub cluster_prefixes: Vec<IpNet>,
    /// Whether pods leave the cluster under the node's address.
    pub masquerade: bool,
}

/// The two links, after they were set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLinks {
    /// The bridge's index.
    pub bridge_index: u32,
    /// The TUN's index.
    pub tun_index: u32,
}

/// Refuse names the kernel would cut, and names that sysctl paths or the text of rules cannot hold.
pub(crate) fn check_names(spec: &NodeSpec) -> Result<(), KernelError> {
    for name in [&spec.bridge, &spec.tun] {
        let bad = |c: char| "/:%*\"\\\0".contains(c) || c.is_whitespace();
        if name.is_empty() || name == "." || name == ".." || name.len() > LINK_NAME_MAX_BYTES || name.contains(bad) {
            return Err(KernelError::BadName { name: name.clone() });
        }
    }
    Ok(())
}

/// See [`crate::Kernel::ensure_node`].
pub(crate) async fn ensure(rtnl: &mut Rtnl, spec: &NodeSpec) -> Result<NodeLinks, KernelError> {
    let ipv6 = has_ipv6();
    let wants_ipv6 = spec.gateways.iter().chain(&spec.cluster_prefixes).find(|prefix| prefix.addr().is_ipv6());
    if let Some(prefix) = wants_ipv6
        && !ipv6
    {
        return Err(KernelError::NoIpv6 { prefix: *prefix });
    }
    // The firewall goes first: no packet of a pod or a peer meets a node without it.
    let firewall = firewall::Wanted::new(spec, ipv6);
    tokio::task::spawn_blocking(move || firewall.ensure()).await??;
    let guarded = ensure_nat_table(spec, ipv6).await?;
    let tun_index = ensure_tun(rtnl, spec, ipv6).await?;
    let bridge_index = ensure_bridge(rtnl, spec, ipv6).await?;
    if guarded {
        open_loopback(&spec.bridge)?;
    }
    ensure_addresses(rtnl, bridge_index, &spec.gateways).await?;
    ensure_addresses(rtnl, tun_index, &on_tun(&spec.gateways)).await?;
    ensure_sysctls(rtnl, spec, wants_ipv6.is_some()).await?;
    ensure_rule(rtnl, IpVersion::V4, AddressFamily::Inet).await?;
    if ipv6 {
        ensure_rule(rtnl, IpVersion::V6, AddressFamily::Inet6).await?;
    }
    Ok(NodeLinks { bridge_index, tun_index })
}

/// Set the rules of the NAT table; whether they are in force.
async fn ensure_nat_table(spec: &NodeSpec, ipv6: bool) -> Result<bool, KernelError> {
    let bridge = spec.bridge.clone();
    match tokio::task::spawn_blocking(move || nat_table::load(&bridge, ipv6)).await? {
        Ok(()) => Ok(true),
        Err(error @ NatTableError::Refused { .. }) => {
            tracing::error!(%error, "pods cannot have host ports, nor ipMasq false, on this node");
            Ok(false)
        }
        Err(error @ (NatTableError::Missing | NatTableError::Unusable(_))) => Err(error.into()),
    }
}

/// Let the node reach host ports at 127.0.0.1: packets from there may leave by the bridge, and their replies come
/// back. The NAT table keeps pods from using the same way.
fn open_loopback(bridge: &str) -> Result<(), KernelError> {
    match Sysctl::link("ipv4", bridge, "route_localnet").ensure("1") {
        Err(error @ SysctlError::ReadOnly { .. }) => {
            tracing::warn!(%error, "host ports cannot be reached at 127.0.0.1");
            Ok(())
        }
        ensured => ensured.map(drop).map_err(KernelError::from),
    }
}

async fn ensure_tun(rtnl: &mut Rtnl, spec: &NodeSpec, ipv6: bool) -> Result<u32, KernelError> {
    if rtnl.link(&spec.tun).await?.is_none() {
        open_tun(&spec.tun, spec.tun_queues)?;
    }
    let found = must_have(rtnl, &spec.tun).await?;
    let facts = facts(&found);
    if facts.kind != Some(InfoKind::Tun) {
        return Err(foreign(&spec.tun, "is not a TUN device"));
    }
    let index = found.header.index;
    if facts.group != LINK_GROUP {
        rtnl.request(&format!("mark link {}", spec.tun), link::ours(index)).await?;
    }
    // Nothing may come to pass on the tunnel by itself: no link-local address, no solicitation, no
    // advertisement believed.
    if ipv6 {
        for (key, value) in
            [("accept_ra", "0"), ("autoconf", "0"), ("router_solicitations", "0"), ("addr_gen_mode", "1")]
        {
            Sysctl::link("ipv6", &spec.tun, key).ensure(value)?;
        }
    }
    Sysctl::link("ipv4", &spec.tun, "rp_filter").ensure("2")?;
    finish(rtnl, &found, spec.tun_mtu_bytes).await?;
    Ok(index)
}

async fn ensure_bridge(rtnl: &mut Rtnl, spec: &NodeSpec, ipv6: bool) -> Result<u32, KernelError> {
    if rtnl.link(&spec.bridge).await?.is_none() {
        // Born one byte short: only an MTU that is set later counts as chosen, and only a chosen one stays
        // when a port with a smaller MTU is added.
        let born_mtu_bytes = spec.bridge_mtu_bytes.saturating_sub(1);
        let request = link::create_bridge(&spec.bridge, bridge_mac(&spec.gateways), born_mtu_bytes);
        rtnl.request(&format!("make bridge {}", spec.bridge), request).await?;
    }
    let found = must_have(rtnl, &spec.bridge).await?;
    let facts = facts(&found);
    if facts.kind != Some(InfoKind::Bridge) {
        return Err(foreign(&spec.bridge, "is not a bridge"));
    }
    if facts.group != LINK_GROUP {
        return Err(foreign(&spec.bridge, "was made by other software"));
    }
    if ipv6 {
        for (key, value) in [("accept_ra", "0"), ("autoconf", "0")] {
            Sysctl::link("ipv6", &spec.bridge, key).ensure(value)?;
        }
    }
    Sysctl::link("ipv4", &spec.bridge, "rp_filter").ensure("2")?;
    finish(rtnl, &found, spec.bridge_mtu_bytes).await?;
    Ok(found.header.index)
}

/// MTU and up, for either link.
async fn finish(rtnl: &mut Rtnl, found: &LinkMessage, mtu_bytes: u32) -> Result<(), KernelError> {
    let facts = facts(found);
    let index = found.header.index;
    if facts.mtu_bytes != mtu_bytes {
        rtnl.request(&format!("set the MTU of {} to {mtu_bytes}", facts.name), link::mtu(index, mtu_bytes)).await?;
    }
    if !facts.up {
        rtnl.request(&format!("set link {} up", facts.name), link::up(index)).await?;
    }
    Ok(())
}

/// The bridge's hardware address, the same whenever it is made again for the same blocks, so that the
/// neighbour entries of running pods stay true: 0a:58 and the last four bytes of the first gateway.
fn bridge_mac(gateways: &[IpNet]) -> [u8; 6] {
    let tail = match gateways.first().map(IpNet::addr) {
        Some(std::net::IpAddr::V4(v4)) => v4.octets(),
        Some(std::net::IpAddr::V6(v6)) => {
            // The gateway of every block ends in ::1; what tells blocks apart lies in the prefix.
            let folded = v6.segments().iter().fold(0u32, |sum, segment| sum.rotate_left(5) ^ u32::from(*segment));
            folded.to_be_bytes()
        }
        None => [0, 0, 0, 1],
    };
    let [a, b, c, d] = tail;
    [0x0a, 0x58, a, b, c, d]
}

/// What the TUN has of the gateways. On a link without an IPv4 address even the loose reverse path filter drops
/// whatever has another way back, as it is while two nodes swap their routes one after the other.
fn on_tun(gateways: &[IpNet]) -> Vec<IpNet> {
    gateways.iter().filter(|gateway| gateway.addr().is_ipv4()).map(|gateway| IpNet::from(gateway.addr())).collect()
}

/// Give a link its gateways, and take away addresses of blocks that are no longer held.
async fn ensure_addresses(rtnl: &mut Rtnl, link: u32, wanted: &[IpNet]) -> Result<(), KernelError> {
    let all = rtnl.addresses().await?;
    let present: Vec<IpNet> = all.iter().filter(|message| message.header.index == link).filter_map(given).collect();
    for gateway in wanted.iter().filter(|gateway| !present.contains(gateway)) {
        rtnl.request(&format!("add gateway {gateway}"), address::add(link, *gateway)).await?;
    }
    for stale in present.iter().filter(|present| !wanted.contains(present)) {
        let request = address::remove(link, *stale);
        rtnl.request_unless(&format!("remove gateway {stale}"), request, &[libc::EADDRNOTAVAIL]).await?;
    }
    Ok(())
}

/// An address that somebody gave; the link-local one belongs to the kernel.
fn given(message: &AddressMessage) -> Option<IpNet> {
    let address = observe::address_of(message)?;
    (!observe::is_link_local(address)).then(|| IpNet::new(address, message.header.prefix_len).ok())?
}

async fn ensure_sysctls(rtnl: &mut Rtnl, spec: &NodeSpec, ipv6: bool) -> Result<(), KernelError> {
    let links = rtnl.links().await?;
    let addresses = rtnl.addresses().await?;
    let underlay = UnderlayView { bridge: &spec.bridge, tun: &spec.tun };
    Sysctl::net(&["ipv4", "ip_forward"]).ensure("1")?;
    for name in underlay.links_with_addresses(&links, &addresses) {
        loosen(&name)?;
    }
    if ipv6 {
        let forwarding = Sysctl::link("ipv6", "all", "forwarding");
        for name in links.iter().map(|link| facts(link).name).filter(|name| underlay.is_underlay(name)) {
            keep_advertisements(&name)?;
        }
        forwarding.ensure("1")?;
    }
    Ok(())
}

/// Turn a strict reverse path filter of an underlay link into a loose one; leave any other alone.
fn loosen(name: &str) -> Result<(), KernelError> {
    let own = Sysctl::link("ipv4", name, "rp_filter");
    let strict = |sysctl: &Sysctl| sysctl.read().is_ok_and(|value| value == "1");
    let all = Sysctl::link("ipv4", "all", "rp_filter");
    let loose = [&own, &all].into_iter().any(|sysctl| sysctl.read().is_ok_and(|value| value == "2"));
    if !loose && (strict(&own) || strict(&all)) && own.ensure("2")? {
        tracing::info!(
            link = name,
            "reverse path filter set to loose: pod traffic may come back another way while routes change"
        );
    }
    Ok(())
}

/// A node that forwards ignores router advertisements, unless told to take them all the same: an uplink
/// that lives on them would lose its default route. One that already forwards is as its operator wants it.
fn keep_advertisements(name: &str) -> Result<(), KernelError> {
    let accept = Sysctl::link("ipv6", name, "accept_ra");
    let forwarding = Sysctl::link("ipv6", name, "forwarding");
    let is = |sysctl: &Sysctl, value: &str| sysctl.read().is_ok_and(|found| found == value);
    if is(&accept, "1") && is(&forwarding, "0") && accept.ensure("2")? {
        tracing::info!(link = name, "router advertisements stay accepted although the node forwards");
    }
    Ok(())
}

/// Exactly one rule of ours a family, in its place. The right one is there before a wrong one goes.
async fn ensure_rule(rtnl: &mut Rtnl, version: IpVersion, family: AddressFamily) -> Result<(), KernelError> {
    let rules = rtnl.rules(version).await?;
    if !rules.iter().any(route::is_right_rule) {
        rtnl.request_unless("add the routing rule", route::add_rule(family), &[libc::EEXIST]).await?;
    }
    for wrong in rules.into_iter().filter(|rule| route::is_our_rule(rule) && !route::is_right_rule(rule)) {
        rtnl.request_unless("remove a misplaced routing rule", route::remove_rule(wrong), &[libc::ENOENT]).await?;
    }
    Ok(())
}

async fn must_have(rtnl: &mut Rtnl, name: &str) -> Result<LinkMessage, KernelError> {
    rtnl.link(name).await?.ok_or_else(|| KernelError::MissingLink { name: name.to_owned() })
}

fn foreign(name: &str, found: &str) -> KernelError {
    KernelError::ForeignLink { name: name.to_owned(), found: found.to_owned() }
}

/// See [`crate::Kernel::remove_node`]. Goes on after a failure and returns the first.
pub(crate) async fn remove(rtnl: &mut Rtnl, nat: &Arc<Mutex<NatTable>>, spec: &NodeSpec) -> Result<(), KernelError> {
    let ipv6 = has_ipv6();
    let mut first = None;
    let mut families = vec![(IpVersion::V4, AddressFamily::Inet)];
    if ipv6 {
        families.push((IpVersion::V6, AddressFamily::Inet6));
    }
    for (version, family) in families {
        keep_first(&mut first, remove_rules(rtnl, version).await);
        keep_first(&mut first, remove_routes(rtnl, family).await);
    }
    keep_first(&mut first, remove_links(rtnl, spec).await);
    // After the bridge, which lets packets to 127.0.0.1 in as long as it is there.
    let nat = Arc::clone(nat);
    let removed =
        tokio::task::spawn_blocking(move || nat.lock().unwrap_or_else(PoisonError::into_inner).remove()).await;
    let removed = removed.map_err(KernelError::from);
    keep_first(&mut first, removed.and_then(|result| result.map_err(nat_failed("remove the NAT table"))));
    let firewall = firewall::Wanted::new(spec, ipv6);
    let removed = tokio::task::spawn_blocking(move || firewall.remove()).await.map_err(KernelError::from);
    keep_first(&mut first, removed.and_then(|result| result.map_err(KernelError::from)));
    first.map_or(Ok(()), Err)
}

fn keep_first(first: &mut Option<KernelError>, result: Result<(), KernelError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "part of the node's set-up could not be removed");
        first.get_or_insert(error);
    }
}

async fn remove_rules(rtnl: &mut Rtnl, version: IpVersion) -> Result<(), KernelError> {
    for rule in rtnl.rules(version).await?.into_iter().filter(route::is_our_rule) {
        rtnl.request_unless("remove the routing rule", route::remove_rule(rule), &[libc::ENOENT]).await?;
    }
    Ok(())
}

async fn remove_routes(rtnl: &mut Rtnl, family: AddressFamily) -> Result<(), KernelError> {
    for found in rtnl.routes(route::list(family)).await? {
        let ours = route::table(&found) == u32::from(ROUTE_TABLE)
            && found.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
        if let Some(to) = observe::destination(&found).filter(|_| ours) {
            rtnl.request_unless(&format!("remove route {to}"), route::remove(to), &[libc::ESRCH]).await?;
        }
    }
    Ok(())
}

/// The TUN goes by its kind as well, because one that was only opened has no mark yet.
async fn remove_links(rtnl: &mut Rtnl, spec: &NodeSpec) -> Result<(), KernelError> {
    let mut result = Ok(());
    for found in rtnl.links().await? {
        let facts = facts(&found);
        let pod_link =
            facts.name.starts_with(POD_LINK_PREFIX) && matches!(facts.kind, Some(InfoKind::Veth | InfoKind::Ifb));
        let bridge = facts.name == spec.bridge && facts.kind == Some(InfoKind::Bridge);
        let tun = facts.name == spec.tun && facts.kind == Some(InfoKind::Tun);
        if tun || (facts.group == LINK_GROUP && (pod_link || bridge)) {
            let action = format!("delete link {}", facts.name);
            let deleted = rtnl.request_unless(&action, link::delete(&facts.name), &[libc::ENODEV]).await;
            result = result.and(deleted);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(bridge: &str) -> NodeSpec {
        NodeSpec {
            bridge: bridge.into(),
            tun: "culvert0".into(),
            bridge_mtu_bytes: 1400,
            tun_mtu_bytes: 1400,
            tun_queues: 1,
            gateways: Vec::new(),
            cluster_prefixes: Vec::new(),
            masquerade: true,
        }
    }

    #[test]
    fn names_that_could_leave_the_sysctl_tree_or_be_cut_are_refused() {
        for name in ["", ".", "..", "../eth0", "a b", "a:b", "sixteen-bytes-xx", "a\0", "cni*", "a\"b", "a\\b"] {
            assert!(matches!(check_names(&spec(name)), Err(KernelError::BadName { .. })), "{name:?}");
        }
        assert!(check_names(&spec("cni0.100")).is_ok());
    }

    #[test]
    fn the_tun_has_the_ipv4_gateways_alone() {
        let gateways = ["10.244.7.1/24", "fd00:1::1/64"].map(|text| text.parse().unwrap());
        assert_eq!(on_tun(&gateways), ["10.244.7.1/32".parse().unwrap()]);
    }

    #[test]
    fn the_bridge_address_follows_from_the_first_gateway() {
        let gateways = |text: &str| vec![text.parse().unwrap()];
        assert_eq!(bridge_mac(&gateways("10.244.7.1/24")), [0x0a, 0x58, 10, 244, 7, 1]);
        assert_ne!(bridge_mac(&gateways("fd00:1::1/64")), bridge_mac(&gateways("fd00:2::1/64")));
        assert_eq!(bridge_mac(&[]), [0x0a, 0x58, 0, 0, 0, 1]);
    }
}
