//! The door: lets a connection through to the swarm when both ends have proved a pre-shared key.
//!
//! It stands inside the transport, after encryption and multiplexing: a stranger's connection ends
//! here, and neither identify, ping, relay nor a stream of ours ever hears of it. QUIC, TCP and
//! relayed circuits pass the same door.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt as _, SubstreamBox};
use libp2p::core::{ConnectedPoint, Endpoint};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::counters::Counters;
use crate::pre_shared_key::PreSharedKeys;
use crate::proof::{self, CHALLENGE_LENGTH, HELLO_LENGTH, Hello, PROOF_LENGTH, Purpose, Transcript};

/// Two round trips and four short codes: a node on a satellite link needs about 1.5 s. A stranger
/// that says nothing holds one of the bounded pending places for this long.
const ADMISSION_LIMIT: Duration = Duration::from_secs(5);

/// How long an answered prober may take to leave.
const PROBE_LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The peer id and the multiplexed connection that belong together.
pub(crate) type Channel = (PeerId, StreamMuxerBox);

/// Why a connection was not let through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    /// No proof in time.
    #[error("no proof of a pre-shared key within {} s", ADMISSION_LIMIT.as_secs())]
    TimedOut,
    /// Something else than our handshake.
    #[error("does not speak Culvert's admission protocol")]
    Malformed,
    /// The other side's proof fits none of our keys.
    #[error("unknown pre-shared key")]
    UnknownKey,
    /// The other side hung up on us.
    #[error("closed during admission: {0}; does the other side know this node's first pre-shared key?")]
    Closed(#[source] io::Error),
    /// It was a probe: answered, and over.
    #[error("a probe, answered")]
    ProbeAnswered,
    /// The system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A stranger was turned away.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// Where it came from, as the transport names it.
    pub(crate) address: String,
    /// What it lacked.
    pub(crate) reason: String,
}

/// The door's keys and its bell.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) local: PeerId,
    pub(crate) keys: Arc<PreSharedKeys>,
    /// What this side dials for.
    pub(crate) purpose: Purpose,
    pub(crate) refusals: mpsc::Sender<Refusal>,
    pub(crate) counters: Arc<Counters>,
}

impl Door {
    /// Lets a connection through, or ends it.
    pub(crate) fn admit(
        self,
        channel: Channel,
        endpoint: ConnectedPoint,
    ) -> BoxFuture<'static, Result<Channel, AdmissionError>> {
        Box::pin(async move {
            let (peer, mut muxer) = channel;
            let opens = matches!(endpoint, ConnectedPoint::Dialer { role_override: Endpoint::Dialer, .. });
            let handshake =
                async { if opens { self.open(peer, &mut muxer).await } else { self.accept(peer, &mut muxer).await } };
            let outcome = timeout(ADMISSION_LIMIT, handshake).await.unwrap_or(Err(AdmissionError::TimedOut));
            if let Err(error) = &outcome {
                self.report(&endpoint, error);
            }
            outcome.map(|()| (peer, muxer))
        })
    }

    async fn open(&self, peer: PeerId, muxer: &mut StreamMuxerBox) -> Result<(), AdmissionError> {
        let mut stream =
            poll_fn(|context| first_ready(muxer, context, |muxer, context| muxer.poll_outbound_unpin(context)))
                .await
                .map_err(AdmissionError::Closed)?;
        let hello = Hello { purpose: self.purpose, nonce: nonce()? };
        driven(muxer, async {
            send(&mut stream, &hello.encode()).await?;
            let challenge: [u8; CHALLENGE_LENGTH] = receive(&mut stream).await?;
            let theirs = proof::decode_challenge(&challenge).ok_or(AdmissionError::Malformed)?;
            let transcript = Transcript::new(&hello, &theirs, &self.local.to_bytes(), &peer.to_bytes());
            send(&mut stream, &transcript.dialer_proof(&self.keys)).await?;
            let answer: [u8; PROOF_LENGTH] = receive(&mut stream).await?;
            if !transcript.check_acceptor(&self.keys, &answer) {
                return Err(AdmissionError::UnknownKey);
            }
            hang_up(&mut stream).await;
            Ok(())
        })
        .await
    }

    async fn accept(&self, peer: PeerId, muxer: &mut StreamMuxerBox) -> Result<(), AdmissionError> {
        let mut stream =
            poll_fn(|context| first_ready(muxer, context, |muxer, context| muxer.poll_inbound_unpin(context)))
                .await
                .map_err(AdmissionError::Closed)?;
        let purpose = driven(muxer, async {
            let hello = receive_hello(&mut stream).await?;
            let ours = nonce()?;
            send(&mut stream, &proof::encode_challenge(&ours)).await?;
            let transcript = Transcript::new(&hello, &ours, &peer.to_bytes(), &self.local.to_bytes());
            let claim: [u8; PROOF_LENGTH] = receive(&mut stream).await?;
            let key = transcript.check_dialer(&self.keys, &claim).ok_or(AdmissionError::UnknownKey)?;
            send(&mut stream, &transcript.acceptor_proof(&key)).await?;
            hang_up(&mut stream).await;
            Ok(hello.purpose)
        })
        .await?;
        if purpose == Purpose::Ordinary {
            return Ok(());
        }
        // The answer must arrive before the connection goes, so wait until the prober leaves. How it
        // leaves does not matter.
        let leaves = driven(muxer, async { Ok(stream.read(&mut [0; 1]).await.is_ok()) });
        let _ = timeout(PROBE_LEAVE_LIMIT, leaves).await;
        Err(AdmissionError::ProbeAnswered)
    }

    /// Rings the bell for strangers at our own listeners. What we dialed is told as a failed dial.
    fn report(&self, endpoint: &ConnectedPoint, error: &AdmissionError) {
        let ConnectedPoint::Listener { send_back_addr, .. } = endpoint else { return };
        match error {
            AdmissionError::ProbeAnswered => return self.counters.probes_answered.add(1),
            // One of our own that reached us by another of its dials first leaves like this, and a stranger that
            // leaves unasked needs no word.
            AdmissionError::Closed(_) => return self.counters.left_at_the_door.add(1),
            AdmissionError::TimedOut
            | AdmissionError::Malformed
            | AdmissionError::UnknownKey
            | AdmissionError::Random(_) => {}
        }
        self.counters.strangers_refused.add(1);
        // A flood of strangers fills the bell's queue; the counter above still has every one.
        let _ = self.refusals.try_send(Refusal { address: send_back_addr.to_string(), reason: error.to_string() });
    }
}

fn nonce() -> Result<[u8; 32], AdmissionError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(AdmissionError::Random)?;
    Ok(nonce)
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), AdmissionError> {
    stream.write_all(bytes).await.map_err(AdmissionError::Closed)?;
    stream.flush().await.map_err(AdmissionError::Closed)
}

async fn receive<const LENGTH: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; LENGTH], AdmissionError> {
    let mut bytes = [0; LENGTH];
    stream.read_exact(&mut bytes).await.map_err(AdmissionError::Closed)?;
    Ok(bytes)
}

/// The first bytes tell other protocols at once: they may be waiting for our answer and send no more.
async fn receive_hello(stream: &mut SubstreamBox) -> Result<Hello, AdmissionError> {
    const REST: usize = HELLO_LENGTH - proof::MAGIC.len();
    let magic: [u8; proof::MAGIC.len()] = receive(stream).await?;
    if magic != proof::MAGIC {
        return Err(AdmissionError::Malformed);
    }
    let rest: [u8; REST] = receive(stream).await?;
    let mut hello = [0; HELLO_LENGTH];
    hello[..magic.len()].copy_from_slice(&magic);
    hello[magic.len()..].copy_from_slice(&rest);
    Hello::decode(&hello).ok_or(AdmissionError::Malformed)
}

/// Ends our half. That it could not be ended means that the other side is gone, which the next user
/// of the connection will see.
async fn hang_up(stream: &mut SubstreamBox) {
    if let Err(error) = stream.close().await {
        tracing::debug!(%error, "the admission stream did not close");
    }
}

/// Polls `wanted` first, then lets the connection make progress.
fn first_ready<T>(
    muxer: &mut StreamMuxerBox,
    context: &mut Context<'_>,
    wanted: impl FnOnce(&mut StreamMuxerBox, &mut Context<'_>) -> Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if let Poll::Ready(outcome) = wanted(muxer, context) {
        return Poll::Ready(outcome);
    }
    progress(muxer, context).map(Err)
}

/// Lets the connection make progress; ready with the error when it broke.
fn progress(muxer: &mut StreamMuxerBox, context: &mut Context<'_>) -> Poll<io::Error> {
    loop {
        match muxer.poll_unpin(context) {
            // Nobody asks for the address before the connection is admitted.
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(error),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Runs `work` on a substream while the connection underneath makes progress.
async fn driven<T>(
    muxer: &mut StreamMuxerBox,
    work: impl Future<Output = Result<T, AdmissionError>>,
) -> Result<T, AdmissionError> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(outcome) = work.as_mut().poll(context) {
            return Poll::Ready(outcome);
        }
        progress(muxer, context).map(|error| Err(AdmissionError::Closed(error)))
    })
    .await
}
