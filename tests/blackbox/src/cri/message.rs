//! The messages of the Container Runtime Interface that are spoken here, with the fields that are used: unknown ones are
//! skipped and absent ones are empty, as protobuf has it.
//!
//! **Source** `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`.

use std::collections::BTreeMap;

use prost::{Enumeration, Message};

/// An answer that says no more than that it is one.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// Names a sandbox: `StopPodSandboxRequest`, `RemovePodSandboxRequest` and `RunPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxId {
    /// Its id.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
}

/// `RunPodSandboxRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    /// What it shall be.
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
}

/// A pod's sandbox, as kubelet asks for it.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// Its names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Its host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Where the logs of its containers go.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Its host ports.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// The pod's annotations.
    #[prost(btree_map = "string, string", tag = "7")]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// A pod's names.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The pod's namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Which attempt this is.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// A host port.
#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    /// Its protocol.
    #[prost(enumeration = "Protocol", tag = "1")]
    pub protocol: i32,
    /// Where it leads to.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// Where it is.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
    /// The one address of the node it is at; empty for all.
    #[prost(string, tag = "4")]
    pub host_ip: String,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
pub enum Protocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// SCTP.
    Sctp = 2,
}

/// What only Linux has.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    /// The control group above those of the pod.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

/// `PodSandboxStatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusRequest {
    /// Its id.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    /// What it is.
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
}

/// A sandbox that is there.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    /// Its network.
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

/// A sandbox's network.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxNetworkStatus {
    /// Its first address.
    #[prost(string, tag = "1")]
    pub ip: String,
    /// Its other addresses.
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

/// One address.
#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    /// As text.
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// `StatusRequest`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StatusRequest {}

/// `StatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    /// How the runtime is.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RuntimeStatus>,
}

/// How the runtime is.
#[derive(Clone, PartialEq, Message)]
pub struct RuntimeStatus {
    /// What has to hold for pods to run.
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<RuntimeCondition>,
}

/// One condition.
#[derive(Clone, PartialEq, Message)]
pub struct RuntimeCondition {
    /// `RuntimeReady` or `NetworkReady`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Whether it holds.
    #[prost(bool, tag = "2")]
    pub status: bool,
    /// Why not, in a word.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// Why not.
    #[prost(string, tag = "4")]
    pub message: String,
}
