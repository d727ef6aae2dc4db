//! A client of the Container Runtime Interface: what kubelet asks of containerd for a pod's sandbox.

pub mod message;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use message::{
    Empty, PodSandboxConfig, PodSandboxId, PodSandboxStatusRequest, PodSandboxStatusResponse, RunPodSandboxRequest,
    RuntimeCondition, StatusRequest, StatusResponse,
};

/// How long kubelet waits for any answer.
const CALL_BOUND: Duration = Duration::from_secs(120);

/// A connection. Calls block, and may be made by several threads at a time.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects.
    ///
    /// **Errors** nobody listens.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?.timeout(CALL_BOUND);
        let channel = runtime.block_on(endpoint.connect());
        let channel = channel.with_context(|| format!("cannot connect to {}", socket.display()))?;
        Ok(Self { runtime, channel })
    }

    /// Makes a pod's sandbox, its network included, and returns its id.
    ///
    /// **Errors** the runtime refuses, or a plugin does.
    pub fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let answer: PodSandboxId = self.call("RunPodSandbox", RunPodSandboxRequest { config: Some(config) })?;
        Ok(answer.pod_sandbox_id)
    }

    /// Ends what runs in a sandbox and takes its network away. It is fine if that was done before.
    ///
    /// **Errors** as [`Cri::run_pod_sandbox`].
    pub fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let _answer: Empty = self.call("StopPodSandbox", PodSandboxId { pod_sandbox_id: id.to_owned() })?;
        Ok(())
    }

    /// Removes a sandbox. It is fine if that was done before.
    ///
    /// **Errors** as [`Cri::run_pod_sandbox`].
    pub fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let _answer: Empty = self.call("RemovePodSandbox", PodSandboxId { pod_sandbox_id: id.to_owned() })?;
        Ok(())
    }

    /// The pod's addresses, as the kubelet writes them into the pod's status.
    ///
    /// **Errors** the sandbox is unknown.
    pub fn pod_addresses(&self, id: &str) -> Result<Vec<String>> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned() };
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", request)?;
        let network = answer.status.and_then(|status| status.network).context("a sandbox without network status")?;
        Ok(std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
    }

    /// The conditions that make a node ready, the network's among them.
    ///
    /// **Errors** the runtime does not answer.
    pub fn conditions(&self) -> Result<Vec<RuntimeCondition>> {
        let answer: StatusResponse = self.call("Status", StatusRequest {})?;
        Ok(answer.status.unwrap_or_default().conditions)
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse()?;
        let mut client = Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            client.ready().await.with_context(|| format!("the runtime is not ready for {method}"))?;
            let answered = client.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await;
            Ok(answered.map_err(|status| anyhow::anyhow!("{method}: {}", status.message()))?.into_inner())
        })
    }
}
