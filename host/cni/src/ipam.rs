//! Where the addresses of a pod shall come from: `ipam` of the configuration, `ipRanges` of the runtime, and the
//! addresses asked for one pod.
//!
//! ```text
//! ipam "host-local"   range sets ─┐                       one address of each set,
//! runtimeConfig.ipRanges          ├─> check ─> AddressWish  requested ones inside them
//! ipam "static"       addresses ──┘
//! no ipam, {}, "culvert"         ─────────> AddressWish without sets: the node's own allocator decides
//! ```
//!
//! There is one allocator, the node's. These words only limit its choice, and name no file of leases.
//!
//! **Source** the reference's `host-local` and `static` plugins, whose rules are kept.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::fields::{FieldError, Fields, elements};
use crate::result::{Dns, RouteConfig};
use crate::route::same_family;
use crate::version::SpecVersion;

/// The most ranges of one configuration, the runtime's included. A node holds no more blocks than this, and each
/// range needs one at least.
pub const MAX_RANGES: usize = 64;

const ADDRESS: &str = "an IP address";
const SUBNET: &str = "a subnet such as 10.244.1.0/24";

/// Addresses that a pod may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// The prefix that all of them lie in, without host bits.
    pub subnet: IpNet,
    /// The first one, in `subnet`.
    pub first: IpAddr,
    /// The last one, in `subnet` and not before `first`.
    pub last: IpAddr,
    /// The gateway asked for, in `subnet`; `None` leaves it to the host.
    pub gateway: Option<IpAddr>,
}

/// Ranges of one family, of which a pod gets one address.
pub type RangeSet = Vec<AddressRange>;

/// The section `ipam`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipam {
    /// `type`.
    pub kind: IpamKind,
    /// `ranges`, after the one of the old flat form; or one set for each of `addresses`.
    pub sets: Vec<RangeSet>,
    /// `routes`.
    pub routes: Vec<RouteConfig>,
    /// `dns` of `static`.
    pub dns: Dns,
}

/// Whose words the section is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpamKind {
    /// No section, an empty one, or type `culvert`: without ranges the node's own allocator decides.
    #[default]
    Own,
    /// Type `host-local`: there must be ranges.
    HostLocal,
    /// Type `static`: there must be addresses, which requested ones replace.
    Static,
}

/// Which addresses a pod shall get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressWish {
    /// The pod gets one address of each. Empty leaves it to the host: one of each family it has pools of.
    pub sets: Vec<RangeSet>,
    /// Addresses asked for, each of another set; without sets at most one a family. Whoever cannot give all of them
    /// must refuse.
    pub wanted: Vec<IpAddr>,
}

impl AddressRange {
    /// Whether an address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// Whether two ranges have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        let subnet: IpNet = fields.required::<IpNet>("subnet", SUBNET)?.trunc();
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(fields.senseless("subnet", "a subnet of at least four addresses"));
        }
        let inside = |key: &str| match fields.parsed::<IpAddr>(key, ADDRESS)? {
            Some(address) if !subnet.contains(&address) => {
                Err(fields.senseless(key, format!("an address of {subnet}")))
            }
            found => Ok(found),
        };
        let gateway = inside("gateway")?;
        let first = inside("rangeStart")?.unwrap_or_else(|| next(subnet.network()));
        let last = inside("rangeEnd")?.unwrap_or_else(|| last_of(&subnet));
        if last < first {
            return Err(fields.senseless("rangeEnd", format!("an address not before the start of the range, {first}")));
        }
        Ok(Self { subnet, first, last, gateway })
    }

    /// One address and its gateway, in the words of `static`.
    fn read_single(fields: &Fields<'_>) -> Result<Self, FieldError> {
        let address: IpNet = fields.required("address", "an IP address with prefix length")?;
        let (subnet, gateway) = (address.trunc(), fields.parsed::<IpAddr>("gateway", ADDRESS)?);
        if gateway.is_some_and(|gateway| !subnet.contains(&gateway)) {
            return Err(fields.senseless("gateway", format!("an address of {subnet}")));
        }
        Ok(Self { subnet, first: address.addr(), last: address.addr(), gateway })
    }
}

impl Ipam {
    /// Reads the section.
    ///
    /// **Errors** the first field of a wrong type, or that breaks a rule of the reference; a type that is none of ours.
    pub fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        const TYPES: &str = "\"host-local\" with ranges, \"static\" with addresses, or no ipam at all, which leaves addresses to Culvert's own allocator; no other plugin is executed";
        let kind = match fields.text("type")?.unwrap_or_default() {
            "" | "culvert" => IpamKind::Own,
            "host-local" => IpamKind::HostLocal,
            "static" => IpamKind::Static,
            _ => return Err(fields.senseless("type", TYPES)),
        };
        let routes = fields.list("routes")?.into_iter().map(|(path, value)| read_route(&Fields::of(path, value)?));
        let routes = routes.collect::<Result<_, _>>()?;
        let (sets, dns) = match kind {
            IpamKind::Own | IpamKind::HostLocal => (read_ranges(fields)?, Dns::default()),
            IpamKind::Static => (read_addresses(fields)?, Dns::read_section(fields)?),
        };
        Ok(Self { kind, sets, routes, dns })
    }

    /// The range sets in force, those of the runtime first.
    ///
    /// **Errors** `host-local` has none; ranges overlap; there are more than [`MAX_RANGES`]; a version before 0.3.0
    /// cannot express two addresses of a family.
    pub fn sets_with(&self, runtime: &[RangeSet], version: SpecVersion) -> Result<Vec<RangeSet>, FieldError> {
        let refused = |expected: String| Err(FieldError::senseless("ipam.ranges", expected, &Value::Null));
        let sets: Vec<RangeSet> = runtime.iter().chain(&self.sets).cloned().collect();
        if self.kind == IpamKind::HostLocal && sets.is_empty() {
            return refused(
                "at least one range, or no ipam at all, which leaves addresses to Culvert's own allocator".into(),
            );
        }
        let ranges: Vec<&AddressRange> = sets.iter().flatten().collect();
        if ranges.len() > MAX_RANGES {
            return refused(format!("at most {MAX_RANGES} ranges and not {}", ranges.len()));
        }
        if let Some((one, other)) = first_overlap(&ranges) {
            return refused(format!("ranges that do not overlap, unlike {one} and {other}"));
        }
        let of_family =
            |v4: bool| sets.iter().filter(|set| set.first().is_some_and(|range| range.is_ipv4() == v4)).count();
        if version < SpecVersion::V0_3_0 && (of_family(true) > 1 || of_family(false) > 1) {
            return refused(format!("one set of ranges a family in cniVersion {version}; set 0.3.0 or newer"));
        }
        Ok(sets)
    }
}

impl AddressWish {
    /// Joins the sets in force with the addresses asked for one pod.
    ///
    /// **Errors** an address lies in no set, is a gateway, or is one too many for its set or family; `static` has
    /// neither addresses of its own nor requested ones.
    pub fn new(kind: IpamKind, sets: Vec<RangeSet>, wanted: Vec<IpAddr>) -> Result<Self, FieldError> {
        let sets = match kind {
            IpamKind::Static if wanted.is_empty() && sets.is_empty() => {
                let expected = "at least one address, or one requested by the runtime";
                return Err(FieldError::senseless("ipam.addresses", expected, &Value::Null));
            }
            IpamKind::Static if !wanted.is_empty() => Vec::new(),
            IpamKind::Own | IpamKind::HostLocal | IpamKind::Static => sets,
        };
        let mut served: Vec<usize> = Vec::new();
        for address in &wanted {
            let place = place_of(*address, &sets)?;
            if served.contains(&place) {
                return Err(requested(
                    *address,
                    "an address of another range set or family than the one requested before it",
                ));
            }
            served.push(place);
        }
        Ok(Self { sets, wanted })
    }

    /// The address asked for of a set.
    #[must_use]
    pub fn wanted_of(&self, set: &[AddressRange]) -> Option<IpAddr> {
        self.wanted.iter().copied().find(|address| set.iter().any(|range| range.contains(*address)))
    }
}

/// The set that a requested address lies in; without sets, its family.
fn place_of(address: IpAddr, sets: &[RangeSet]) -> Result<usize, FieldError> {
    if sets.is_empty() {
        return Ok(usize::from(address.is_ipv6()));
    }
    let found = sets
        .iter()
        .enumerate()
        .find_map(|(place, set)| set.iter().find(|range| range.contains(address)).map(|range| (place, range)));
    let Some((place, range)) = found else {
        let ranges: Vec<String> = sets.iter().flatten().map(ToString::to_string).collect();
        return Err(requested(address, format!("an address of the configured ranges {}", ranges.join(", "))));
    };
    if range.gateway.unwrap_or_else(|| next(range.subnet.network())) == address {
        return Err(requested(address, format!("an address other than the gateway of {}", range.subnet)));
    }
    Ok(place)
}

fn requested(address: IpAddr, expected: impl Into<std::borrow::Cow<'static, str>>) -> FieldError {
    FieldError::senseless("requested address", expected, &Value::from(address.to_string()))
}

/// Reads `ipRanges` or `ranges`: a list of sets.
///
/// **Errors** a field of a wrong type, an empty set, a set of two families, a range that makes no sense.
pub(crate) fn read_sets(fields: &Fields<'_>, key: &str) -> Result<Vec<RangeSet>, FieldError> {
    fields.list(key)?.into_iter().map(|(path, value)| read_set(&path, value)).collect()
}

fn read_set(path: &str, value: &Value) -> Result<RangeSet, FieldError> {
    let mut set = RangeSet::new();
    for (path, element) in elements(path, value)? {
        let fields = Fields::of(path, element)?;
        let range = AddressRange::read(&fields)?;
        if set.first().is_some_and(|first| first.is_ipv4() != range.is_ipv4()) {
            return Err(fields.senseless("subnet", "the family of the first range of its set; give each family a set"));
        }
        set.push(range);
    }
    if set.is_empty() {
        return Err(FieldError::senseless(path, "at least one range", value));
    }
    Ok(set)
}

/// The range of the old flat form, if there is one, before those of `ranges`.
fn read_ranges(fields: &Fields<'_>) -> Result<Vec<RangeSet>, FieldError> {
    let mut sets = Vec::new();
    if fields.value("subnet").is_some() {
        sets.push(vec![AddressRange::read(fields)?]);
    }
    sets.extend(read_sets(fields, "ranges")?);
    Ok(sets)
}

fn read_addresses(fields: &Fields<'_>) -> Result<Vec<RangeSet>, FieldError> {
    let single = |(path, value)| Ok(vec![AddressRange::read_single(&Fields::of(path, value)?)?]);
    fields.list("addresses")?.into_iter().map(single).collect()
}

fn read_route(fields: &Fields<'_>) -> Result<RouteConfig, FieldError> {
    let route = RouteConfig::read(fields)?;
    if route.gw.is_some_and(|gw| !same_family(&route.dst, gw)) {
        return Err(fields.senseless("gw", format!("a next hop of the family of {}", route.dst)));
    }
    Ok(route)
}

fn first_overlap<'a>(ranges: &[&'a AddressRange]) -> Option<(&'a AddressRange, &'a AddressRange)> {
    ranges.iter().enumerate().find_map(|(index, range)| {
        let other = ranges.iter().skip(index + 1).find(|other| range.overlaps(other))?;
        Some((*range, *other))
    })
}

/// The address after the network's own, which is the gateway's by custom.
fn next(network: IpAddr) -> IpAddr {
    match network {
        IpAddr::V4(network) => IpAddr::V4((network.to_bits() | 1).into()),
        IpAddr::V6(network) => IpAddr::V6((network.to_bits() | 1).into()),
    }
}

/// The last address that can be given: not IPv4's broadcast address.
fn last_of(subnet: &IpNet) -> IpAddr {
    match subnet.broadcast() {
        IpAddr::V4(broadcast) => IpAddr::V4((broadcast.to_bits() & !1).into()),
        IpAddr::V6(last) => IpAddr::V6(last),
    }
}

impl std::fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} to {}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests;
