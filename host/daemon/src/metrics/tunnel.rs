//! The tunnel's and the mesh's figures: counted by the threads that move packets, read on each scrape.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

/// What the mesh counted since it started. Numbers only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelCounters {
    /// Packets from peers that were written to the TUN.
    pub packets_in: u64,
    /// **Units** bytes of those packets.
    pub bytes_in: u64,
    /// Packets from the TUN that were handed to a path.
    pub packets_out: u64,
    /// **Units** bytes of those packets.
    pub bytes_out: u64,
    /// Connections of strangers that were ended.
    pub strangers_refused: u64,
    /// Packets that were dropped, by reason; a leading `dropped_` is left out of the label.
    pub drops: Vec<(&'static str, u64)>,
    /// What else the mesh counts, by event.
    pub events: Vec<(&'static str, u64)>,
}

type Source = Box<dyn Fn() -> TunnelCounters + Send + Sync>;

/// Where the figures come from; empty until the mesh runs.
#[derive(Clone, Default)]
pub(super) struct Tunnel(Arc<OnceLock<Source>>);

impl Tunnel {
    pub(super) fn declare(registry: &mut Registry) -> Self {
        let tunnel = Self::default();
        registry.register_collector(Box::new(tunnel.clone()));
        tunnel
    }

    pub(super) fn watch(&self, source: impl Fn() -> TunnelCounters + Send + Sync + 'static) {
        let mut source: Option<Source> = Some(Box::new(source));
        self.0.get_or_init(|| source.take().unwrap_or_else(|| Box::new(TunnelCounters::default)));
        if source.is_some() {
            tracing::error!("the tunnel's figures have a source already; the second one is not used");
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Tunnel").field(&self.0.get().is_some()).finish()
    }
}

impl Collector for Tunnel {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(source) = self.0.get() else { return Ok(()) };
        let now = source();
        let packets = [("in", now.packets_in), ("out", now.packets_out)];
        let bytes = [("in", now.bytes_in), ("out", now.bytes_out)];
        let mut family = |name, help, key, values: &[(&'static str, u64)]| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            values.iter().try_for_each(|&(label, value)| {
                let label = label.strip_prefix("dropped_").unwrap_or(label);
                ConstCounter::new(value).encode(metric.encode_family(&[(key, label)])?)
            })
        };
        family(
            "tunnel_packets",
            "Packets through the tunnel; a super-packet counts once. Out are those handed to a path, also when it broke later; dropped ones are not counted.",
            "direction",
            &packets,
        )?;
        family(
            "tunnel_bytes",
            "Bytes of those packets, IP headers included. What frames and encryption add is not counted.",
            "direction",
            &bytes,
        )?;
        family(
            "tunnel_drops",
            "Packets the tunnel dropped, by reason. What the underlay or a socket's buffer lost is not counted.",
            "reason",
            &now.drops,
        )?;
        family(
            "mesh_events",
            "What else happened in the mesh, by event. Connections of strangers are not in it; see strangers_refused.",
            "event",
            &now.events,
        )?;
        let help = "Connections ended because the other end did not prove a valid key. Those that broke before encryption stood are not counted.";
        let metric = encoder.encode_descriptor("strangers_refused", help, None, MetricType::Counter)?;
        ConstCounter::new(now.strangers_refused).encode(metric)
    }
}
