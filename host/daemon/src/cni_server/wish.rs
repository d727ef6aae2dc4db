//! From the runtime's words to what the owners are asked: all of it checked before anything is changed.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use culvert_cni::code::Code;
use culvert_cni::error::CniError;
use culvert_cni::frame;
use culvert_cni::ipam::{IpamKind, RangeSet};
use culvert_cni::mac::MacAddress;
use culvert_cni::netconf::AttachmentName;
use culvert_cni::request::Request;
use culvert_cni::result::{AddResult, IpConfig};
use culvert_cni::runtime_config::{Bandwidth, PortMapping, Protocol, RateLimit};
use culvert_core::address::AddressRange;
use culvert_core::allocation::AddressWish;
use culvert_core::attachment::AttachmentKey;
use culvert_core::attachment_check::PreviousResult;
use culvert_core::bandwidth::{Limits, Rate};
use culvert_core::host_port::{HostPort, Transport};
use culvert_core::policy::PodView;
use culvert_kernel::PodNamespace;

use crate::attachments::{AddRequest, Chained, CheckRequest};
use crate::config::Config;

/// A pod with this annotation set to `true` keeps its addresses when it ends and comes back by the same name.
const STICKY: &str = "culvert.io/sticky-address";
/// The addresses a pod asks for, separated by commas, when the runtime asks for none.
const ADDRESSES: &str = "culvert.io/addresses";

/// The attachment a request is about.
pub(super) fn key_of(request: &Request) -> AttachmentKey {
    AttachmentKey {
        network: request.config.name.clone(),
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    }
}

/// An attachment of the network, as GC names it.
pub(super) fn key_named(request: &Request, name: &AttachmentName) -> AttachmentKey {
    AttachmentKey {
        network: request.config.name.clone(),
        container_id: name.container_id.clone(),
        ifname: name.ifname.clone(),
    }
}

/// Reads an ADD.
///
/// **Errors** what the runtime is told: the pod's namespace is missing (8), or something asked for is impossible (7).
pub(super) fn add_request(
    request: Request,
    descriptors: Vec<OwnedFd>,
    config: &Config,
) -> Result<AddRequest, CniError> {
    let key = key_of(&request);
    let namespace = pod_namespace(descriptors)?.ok_or_else(|| {
        CniError::new(
            Code::InvalidNamespace,
            "the pod's network namespace was not passed; is the shim of this version?",
        )
    })?;
    must_be_our_bridge(&request, config)?;
    let wish = address_wish(&request)?;
    let options = &request.config.options;
    let (mtu_bytes, hairpin, masquerade) = (options.mtu_bytes, options.hairpin_mode, options.ip_masq);
    let promiscuous = options.promisc_mode;
    let runtime = &request.config.runtime;
    let Bandwidth { ingress, egress } = runtime.bandwidth;
    Ok(AddRequest {
        key,
        netns: request.netns.clone().unwrap_or_default(),
        namespace,
        sticky: runtime.pod_annotations.get(STICKY).is_some_and(|value| value == "true"),
        wish,
        mac: request.mac.map(MacAddress::octets),
        requested: Limits { ingress: ingress.and_then(rate), egress: egress.and_then(rate) },
        host_ports: runtime.port_mappings.iter().map(host_port).collect(),
        mtu_bytes: mtu_bytes.map(u32::from),
        hairpin: hairpin.unwrap_or(true),
        promiscuous_bridge: promiscuous.unwrap_or(false),
        masquerade: masquerade.unwrap_or(config.network.masquerade),
        routes: request.config.routes(),
        chained: chained(&request),
        pod: PodView {
            namespace: request.pod.namespace,
            name: request.pod.name,
            labels: std::collections::BTreeMap::new(),
            annotations: request.config.runtime.pod_annotations,
        },
        pod_uid: request.pod.uid,
    })
}

/// Reads a CHECK.
///
/// **Errors** as [`add_request`].
pub(super) fn check_request(request: &Request, descriptors: Vec<OwnedFd>) -> Result<CheckRequest, CniError> {
    let previous = request.config.previous.as_ref();
    let previous = previous.ok_or_else(|| CniError::new(Code::InvalidConfig, "CHECK needs prevResult"))?;
    let mac = interface_of(previous, request).and_then(|(_, interface)| interface.mac.parse::<MacAddress>().ok());
    Ok(CheckRequest {
        key: key_of(request),
        namespace: pod_namespace(descriptors)?,
        previous: PreviousResult {
            addresses: addresses_of(previous, request),
            mac: mac.map(MacAddress::octets),
            interfaces: previous.interfaces.iter().map(|interface| interface.name.clone()).collect(),
        },
    })
}

/// The addresses that the configuration, the runtime or the pod asks for.
///
/// **Errors** (7) an annotation that holds no addresses.
pub(super) fn address_wish(request: &Request) -> Result<AddressWish, CniError> {
    // STATUS asks for no pod, so its ranges are those of the network.
    let asked = &request.addresses;
    let sets = if asked.sets.is_empty() && asked.wanted.is_empty() { &request.config.sets } else { &asked.sets };
    let mut wish = AddressWish {
        sets: match request.config.options.ipam.kind {
            // Requested addresses take the place of static ones: no other family is added to them.
            IpamKind::Static if sets.is_empty() => {
                asked.wanted.iter().map(|address| vec![AddressRange::single(*address)]).collect()
            }
            IpamKind::Static | IpamKind::HostLocal | IpamKind::Own => sets.iter().map(ranges).collect(),
        },
        addresses: asked.wanted.clone(),
        gateways: sets.iter().flatten().filter_map(|range| range.gateway).collect(),
    };
    if wish.addresses.is_empty()
        && let Some(text) = request.config.runtime.pod_annotations.get(ADDRESSES)
    {
        let addresses = text.split(',').map(|part| part.trim().parse()).collect::<Result<Vec<IpAddr>, _>>();
        wish.addresses = addresses.map_err(|_| {
            let message = format!("annotation {ADDRESSES}: {text:?} is no list of addresses separated by commas");
            CniError::new(Code::InvalidConfig, message)
        })?;
    }
    Ok(wish)
}

fn ranges(set: &RangeSet) -> Vec<AddressRange> {
    set.iter().filter_map(|range| AddressRange::new(range.first, range.last)).collect()
}

fn pod_namespace(descriptors: Vec<OwnedFd>) -> Result<Option<PodNamespace>, CniError> {
    if descriptors.is_empty() {
        return Ok(None);
    }
    let descriptors: Result<[OwnedFd; frame::DESCRIPTORS], _> = descriptors.try_into();
    let [netns, rtnetlink] = descriptors.map_err(|_| {
        CniError::new(
            Code::InvalidNamespace,
            "only part of the pod's namespace was passed; is the shim of this version?",
        )
    })?;
    Ok(Some(PodNamespace { netns, rtnetlink }))
}

/// One node has one bridge: a configuration that names another one was written for something else.
fn must_be_our_bridge(request: &Request, config: &Config) -> Result<(), CniError> {
    let ours = &config.network.bridge;
    match &request.config.options.bridge {
        Some(bridge) if bridge != ours && !bridge.is_empty() => {
            let message = format!(
                "network {:?} names bridge {bridge:?}, and this node's bridge is {ours:?}: change \"bridge\" in the \
                 conflist, or network.bridge in the daemon's configuration",
                request.config.name
            );
            Err(CniError::new(Code::InvalidConfig, message))
        }
        Some(_) | None => Ok(()),
    }
}

/// What a plugin before this one in the chain made, when that is the very interface asked for.
fn chained(request: &Request) -> Option<Chained> {
    let previous = request.config.previous.as_ref()?;
    interface_of(previous, request)?;
    let host_links =
        previous.interfaces.iter().filter(|interface| interface.sandbox.as_deref().is_none_or(str::is_empty));
    Some(Chained {
        host_links: host_links.map(|interface| interface.name.clone()).collect(),
        addresses: addresses_of(previous, request),
    })
}

/// The pod's own interface in a result.
fn interface_of<'a>(result: &'a AddResult, request: &Request) -> Option<(usize, &'a culvert_cni::result::Interface)> {
    let inside =
        |interface: &culvert_cni::result::Interface| interface.sandbox.as_deref().is_some_and(|path| !path.is_empty());
    result.interfaces.iter().enumerate().find(|(_, interface)| inside(interface) && interface.name == request.ifname)
}

/// The addresses of the pod's own interface; other interfaces of the chain are not ours.
fn addresses_of(result: &AddResult, request: &Request) -> Vec<ipnet::IpNet> {
    let own = interface_of(result, request).map(|(position, _)| position);
    let ours = |ip: &&IpConfig| ip.interface.is_none() || ip.interface == own;
    result.ips.iter().filter(ours).map(|ip| ip.address).collect()
}

/// A rate of 0 means no limit; a burst that nobody chose is left to the host (0).
fn rate(limit: RateLimit) -> Option<Rate> {
    let burst_bytes = limit.burst_bits.map_or(0, |bits| u32::try_from(bits / 8).unwrap_or(u32::MAX));
    (limit.bits_per_second > 0).then_some(Rate { bits_per_second: limit.bits_per_second, burst_bytes })
}

fn host_port(mapping: &PortMapping) -> HostPort {
    HostPort {
        host_ip: mapping.host_ip,
        host_port: mapping.host_port,
        transport: match mapping.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
        },
        container_port: mapping.container_port,
    }
}
