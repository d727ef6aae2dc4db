//! `runtimeConfig`: what the runtime asks for one pod, by the capabilities a conflist declared.
//!
//! **Source** CONVENTIONS.md, "Dynamic Plugin specific fields". Unknown keys are accepted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::fields::{FieldError, Fields};
use crate::ipam::{RangeSet, read_sets};
use crate::mac::MacAddress;
use crate::result::Dns;

/// The largest burst. **Units** bits: 4 GiB less a byte, the most that a `tbf` qdisc takes.
pub const MAX_BURST_BITS: u64 = u32::MAX as u64 * 8;

/// What the runtime asks for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// `bandwidth`; a direction that it does not limit has the limit of the configuration itself.
    pub bandwidth: Bandwidth,
    /// `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// `ips`: addresses the pod wants, without their prefix length, which is the block's.
    pub ips: Vec<IpAddr>,
    /// `mac`.
    pub mac: Option<MacAddress>,
    /// `ipRanges`.
    pub ip_ranges: Vec<RangeSet>,
    /// `dns`.
    pub dns: Option<Dns>,
    /// `io.kubernetes.cri.pod-annotations`.
    pub pod_annotations: BTreeMap<String, String>,
}

/// Limits of a pod by direction, seen from the pod; `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress: Option<RateLimit>,
    /// Away from the pod.
    pub egress: Option<RateLimit>,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// **Units** bits/s. **Bounds** at least 1.
    pub bits_per_second: u64,
    /// **Units** bits. **Bounds** 1 to [`MAX_BURST_BITS`]. `None` leaves it to the host.
    pub burst_bits: Option<u64>,
}

/// A port of the node that leads to one of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// The node's port. **Bounds** at least 1.
    pub host_port: u16,
    /// The pod's port. **Bounds** at least 1.
    pub container_port: u16,
    /// The transport.
    pub protocol: Protocol,
    /// The node's address it is bound to; `None` means every one.
    pub host_ip: Option<IpAddr>,
}

/// The transport of a port mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl RuntimeConfig {
    /// Reads the object `runtimeConfig`.
    ///
    /// **Errors** the first field that is no sensible request, with its path.
    pub fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        let mappings = fields.list("portMappings")?;
        let addresses = fields.list("ips")?;
        Ok(Self {
            bandwidth: fields
                .object("bandwidth")?
                .map_or_else(|| Ok(Bandwidth::default()), |it| Bandwidth::read(&it))?,
            port_mappings: mappings
                .into_iter()
                .map(|(path, value)| read_mapping(path, value))
                .collect::<Result<_, _>>()?,
            ips: addresses.into_iter().map(|(path, value)| read_address(path, value)).collect::<Result<_, _>>()?,
            mac: fields.parsed("mac", "a hardware address")?,
            ip_ranges: read_sets(fields, "ipRanges")?,
            dns: fields.object("dns")?.map(|object| read_dns(&object)).transpose()?,
            pod_annotations: read_annotations(fields)?,
        })
    }
}

impl Bandwidth {
    /// Reads the fields of the bandwidth plugin, which has them at the top of its configuration too.
    ///
    /// **Errors** a rate or burst that is none.
    pub fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        Ok(Self {
            ingress: read_rate(fields, "ingressRate", "ingressBurst")?,
            egress: read_rate(fields, "egressRate", "egressBurst")?,
        })
    }

    /// These limits, and those of `other` where there is none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { ingress: self.ingress.or(other.ingress), egress: self.egress.or(other.egress) }
    }
}

/// Reads an address with or without prefix length.
///
/// **Errors** the value is neither.
pub(crate) fn read_address(path: String, value: &Value) -> Result<IpAddr, FieldError> {
    let parse = |text: &str| text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|prefix| prefix.addr()));
    value.as_str().and_then(parse).ok_or_else(|| FieldError::senseless(path, "an IP address", value))
}

/// A rate of 0 means no limit, whatever the burst: runtimes send a burst always.
fn read_rate(fields: &Fields<'_>, rate: &str, burst: &str) -> Result<Option<RateLimit>, FieldError> {
    const BURST: &str = "a number of bits below 8 × 4 GiB";
    let bits_per_second: Option<u64> = fields.unsigned(rate, "a number of bits per second that is not negative")?;
    let burst_bits: Option<u64> = fields.unsigned(burst, BURST)?;
    if let Some(value) = fields.value(burst).filter(|_| burst_bits.is_some_and(|bits| bits > MAX_BURST_BITS)) {
        return Err(FieldError::senseless(fields.path(burst), BURST, value));
    }
    let limit = |bits_per_second| RateLimit { bits_per_second, burst_bits: burst_bits.filter(|bits| *bits > 0) };
    Ok(bits_per_second.filter(|rate| *rate > 0).map(limit))
}

fn read_mapping(path: String, value: &Value) -> Result<PortMapping, FieldError> {
    let fields = Fields::of(path, value)?;
    Ok(PortMapping {
        host_port: read_port(&fields, "hostPort")?,
        container_port: read_port(&fields, "containerPort")?,
        protocol: read_protocol(&fields)?,
        host_ip: fields.parsed("hostIP", "an IP address")?,
    })
}

fn read_port(fields: &Fields<'_>, key: &str) -> Result<u16, FieldError> {
    const PORT: &str = "a port from 1 to 65535";
    let port = fields.unsigned::<u16>(key, PORT)?.filter(|port| *port > 0);
    port.ok_or_else(|| fields.senseless(key, PORT))
}

fn read_protocol(fields: &Fields<'_>) -> Result<Protocol, FieldError> {
    match fields.text("protocol")?.map(str::to_ascii_lowercase).as_deref() {
        Some("tcp") => Ok(Protocol::Tcp),
        Some("udp") => Ok(Protocol::Udp),
        Some("sctp") => Ok(Protocol::Sctp),
        Some(_) | None => Err(fields.senseless("protocol", "\"tcp\", \"udp\" or \"sctp\"")),
    }
}

fn read_dns(fields: &Fields<'_>) -> Result<Dns, FieldError> {
    Ok(Dns {
        nameservers: fields.texts("servers")?,
        domain: String::new(),
        search: fields.texts("searches")?,
        options: fields.texts("options")?,
    })
}

fn read_annotations(fields: &Fields<'_>) -> Result<BTreeMap<String, String>, FieldError> {
    const KEY: &str = "io.kubernetes.cri.pod-annotations";
    let Some(value) = fields.value(KEY) else { return Ok(BTreeMap::new()) };
    let path = fields.path(KEY);
    let map = value.as_object().ok_or_else(|| FieldError::mistyped(path.clone(), "an object", value))?;
    let text = |(key, value): (&String, &Value)| match value.as_str() {
        Some(text) => Ok((key.clone(), text.to_owned())),
        None => Err(FieldError::mistyped(format!("{path}.{key}"), "a string", value)),
    };
    map.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<RuntimeConfig, String> {
        let fields = Fields::of("runtimeConfig", &value).unwrap();
        RuntimeConfig::read(&fields).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_containerd_sends_is_read_although_it_capitalises() {
        let config = read(json!({
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}],
            "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 0, "EgressBurst": 0},
            "io.kubernetes.cri.pod-annotations": {"Kubernetes.io/x": "1"},
            "cgroupPath": "/kubepods", "dns": {"Servers": ["10.0.0.10"], "Searches": ["svc"], "Options": ["ndots:5"]},
        }));
        let expected = RuntimeConfig {
            bandwidth: Bandwidth {
                ingress: Some(RateLimit { bits_per_second: 1_000_000, burst_bits: Some(4_294_967_295) }),
                egress: None,
            },
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
                host_ip: None,
            }],
            dns: Some(Dns {
                nameservers: vec!["10.0.0.10".into()],
                domain: String::new(),
                search: vec!["svc".into()],
                options: vec!["ndots:5".into()],
            }),
            pod_annotations: BTreeMap::from([("Kubernetes.io/x".to_owned(), "1".to_owned())]),
            ..RuntimeConfig::default()
        };
        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn addresses_come_with_or_without_a_prefix_length() {
        let config = read(json!({"ips": ["10.244.1.5", "fd00::5/64"], "mac": "0a:58:0a:f4:01:05"}));
        let expected = RuntimeConfig {
            ips: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            mac: Some("0a:58:0a:f4:01:05".parse().unwrap()),
            ..RuntimeConfig::default()
        };
        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn a_rate_without_burst_leaves_the_burst_to_the_host() {
        let config = read(json!({"bandwidth": {"egressRate": 5, "ingressBurst": 9}})).unwrap();
        let egress = Some(RateLimit { bits_per_second: 5, burst_bits: None });
        assert_eq!(config.bandwidth, Bandwidth { ingress: None, egress });
    }

    #[test]
    fn senseless_requests_name_their_path() {
        let mapping = |field: &str, value: Value| {
            let mut mapping = json!({"hostPort": 1, "containerPort": 1, "protocol": "udp", "hostIP": "10.0.0.1"});
            mapping[field] = value;
            json!({"portMappings": [mapping]})
        };
        let port = "expected a port from 1 to 65535";
        let rate = "expected a number of bits per second that is not negative";
        let table = [
            (mapping("hostPort", json!(0)), format!("portMappings[0].hostPort: {port}, found 0")),
            (mapping("hostPort", json!(65_536)), format!("portMappings[0].hostPort: {port}, found 65536")),
            (mapping("hostPort", json!("80")), format!("portMappings[0].hostPort: {port}, found \"80\"")),
            (mapping("hostPort", json!(80.5)), format!("portMappings[0].hostPort: {port}, found 80.5")),
            (mapping("containerPort", json!(-1)), format!("portMappings[0].containerPort: {port}, found -1")),
            (mapping("containerPort", Value::Null), format!("portMappings[0].containerPort: {port}, found null")),
            (
                mapping("protocol", json!("icmp")),
                "portMappings[0].protocol: expected \"tcp\", \"udp\" or \"sctp\", found \"icmp\"".to_owned(),
            ),
            (
                mapping("protocol", Value::Null),
                "portMappings[0].protocol: expected \"tcp\", \"udp\" or \"sctp\", found null".to_owned(),
            ),
            (
                mapping("hostIP", json!("zork")),
                "portMappings[0].hostIP: expected an IP address, found \"zork\"".to_owned(),
            ),
            (json!({"bandwidth": {"ingressRate": -1}}), format!("bandwidth.ingressRate: {rate}, found -1")),
            (json!({"bandwidth": {"egressRate": "1M"}}), format!("bandwidth.egressRate: {rate}, found \"1M\"")),
            (
                json!({"bandwidth": {"egressRate": 1, "egressBurst": 34_359_738_361_u64}}),
                "bandwidth.egressBurst: expected a number of bits below 8 × 4 GiB, found 34359738361".to_owned(),
            ),
            (json!({"bandwidth": 7}), "bandwidth: expected an object, found 7".to_owned()),
            (json!({"portMappings": {}}), "portMappings: expected a list, found {}".to_owned()),
            (json!({"mac": "zz"}), "mac: expected a hardware address, found \"zz\"".to_owned()),
            (json!({"ips": ["10.0.0.300"]}), "ips[0]: expected an IP address, found \"10.0.0.300\"".to_owned()),
            (
                json!({"io.kubernetes.cri.pod-annotations": {"a": 1}}),
                "io.kubernetes.cri.pod-annotations.a: expected a string, found 1".to_owned(),
            ),
        ];
        for (value, expected) in table {
            assert_eq!(read(value), Err(format!("runtimeConfig.{expected}")));
        }
    }
}
