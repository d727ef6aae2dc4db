//! What a probe prints when it is done, one JSON object a line.

use serde::{Deserialize, Serialize};

/// What `lab-probe ping` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered, each counted once.
    pub received: u64,
    /// Requests never answered.
    pub lost: u64,
    /// Answers that came again.
    pub duplicates: u64,
    /// Requests that could not be sent: the kernel had no route or refused. Part of `lost`.
    pub unsent: u64,
    /// The longest time without an answer. **Units** milliseconds.
    pub max_gap_ms: f64,
    /// Half of the answers came sooner. **Units** milliseconds.
    pub rtt_p50_ms: f64,
    /// 99 % of the answers came sooner. **Units** milliseconds.
    pub rtt_p99_ms: f64,
}

/// What `lab-probe fetch` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FetchReport {
    /// Payload received.
    pub bytes: u64,
    /// From connect to the end of the payload.
    pub seconds: f64,
    /// Whether everything arrived and its SHA-256 is the one the server computed.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
}

impl FetchReport {
    /// The mean rate. **Units** Mbit/s.
    #[must_use]
    pub fn megabits_per_second(&self) -> f64 {
        megabits_per_second(self.bytes, self.seconds)
    }
}

/// What `lab-probe stream` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that came back, in order and unchanged.
    pub echoed: u64,
    /// The longest time without an echo. **Units** milliseconds.
    pub longest_stall_ms: f64,
    /// Whether the connection broke, or bytes were lost or changed.
    pub broken: bool,
    /// Why.
    pub error: Option<String>,
}

/// What `lab-probe connect` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectReport {
    /// Whether a TCP connection was made.
    pub connected: bool,
    /// Why not.
    pub error: Option<String>,
}

/// What `lab-probe udp-send` and `udp-receive` counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UdpReport {
    /// Datagrams.
    pub datagrams: u64,
}

/// A line that a long-running probe prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A server listens, or a client has its first answer: the disturbance may begin.
    Running,
    /// How far a transfer is.
    Progress {
        /// Payload so far.
        bytes: u64,
        /// Since the transfer began.
        seconds: f64,
    },
    /// The last line of `ping`.
    Ping(PingReport),
    /// The last line of `fetch`.
    Fetch(FetchReport),
    /// The last line of `stream`.
    Stream(StreamReport),
    /// The last line of `connect`.
    Connect(ConnectReport),
    /// The last line of `udp-send` and `udp-receive`.
    Udp(UdpReport),
}

/// Bytes over seconds as a rate. **Units** Mbit/s.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a rate for people: 52 bits of bytes are 4 petabytes")]
pub fn megabits_per_second(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8.0 / 1e6 / seconds.max(1e-9)
}
