//! The exchange with the daemon over its unix socket, bounded in time and size.

use std::fmt;
use std::io::{IoSlice, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use culvert_cni::frame::{ACKNOWLEDGED, DESCRIPTORS, FrameError, HEADER_BYTES, Reply, Request};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The namespace and the rtnetlink socket inside it, in the order of the protocol.
pub type Descriptors<'a> = [BorrowedFd<'a>; DESCRIPTORS];

/// A connection on which a request was answered.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ExchangeError {
    /// Nobody listens, or we may not connect.
    Connect(Errno),
    /// The connection broke, or the time was over, while sending.
    Send(std::io::Error),
    /// The connection broke, or the time was over, before the answer was complete.
    Receive(std::io::Error),
    /// The request does not fit into a frame.
    Request(FrameError),
    /// The answer is no frame of ours.
    Reply(FrameError),
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(reason) => write!(formatter, "it cannot be reached: {reason}"),
            Self::Send(reason) => write!(formatter, "it does not take the request: {reason}"),
            Self::Receive(reason) if is_timeout(reason) => formatter.write_str("it gave no answer in time"),
            Self::Receive(reason) => write!(formatter, "it gave no answer: {reason}"),
            Self::Request(reason) => write!(formatter, "the request cannot be sent: {reason}"),
            Self::Reply(reason) => write!(formatter, "its answer cannot be read: {reason}"),
        }
    }
}

impl Connection {
    /// Sends a request and waits for the reply, all of it within `limit`.
    ///
    /// **Errors** no answer; whether the daemon acted on the request is then unknown, unless the
    /// error is [`ExchangeError::Connect`] or [`ExchangeError::Request`].
    pub fn exchange(
        socket: &Path,
        request: &Request,
        descriptors: Option<Descriptors<'_>>,
        limit: Duration,
    ) -> Result<(Reply, Self), ExchangeError> {
        let deadline = Instant::now() + limit;
        let frame = request.encode().map_err(ExchangeError::Request)?;
        let mut stream = connect(socket, limit).map_err(ExchangeError::Connect)?;
        send(&mut stream, &frame, descriptors).map_err(ExchangeError::Send)?;
        let reply = receive(&mut stream, deadline)?;
        Ok((reply, Self { stream }))
    }

    /// Tells the daemon that the runtime has the answer.
    ///
    /// **Errors** the daemon is gone. It then finds the attachment unacknowledged when it is back.
    pub fn acknowledge(mut self) -> std::io::Result<()> {
        self.stream.write_all(&[ACKNOWLEDGED])
    }
}

/// Connects. The send time-out also bounds the wait for a place in the daemon's queue.
fn connect(socket: &Path, limit: Duration) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(socket)?;
    let file = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&file, Timeout::Send, Some(limit))?;
    rustix::net::connect(&file, &address)?;
    Ok(UnixStream::from(file))
}

/// Sends the descriptors with the first bytes, then whatever the kernel did not take at once.
fn send(stream: &mut UnixStream, frame: &[u8], descriptors: Option<Descriptors<'_>>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptors) = &descriptors
        && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
    {
        return Err(std::io::Error::other("the descriptors do not fit into their message"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&*stream, &[IoSlice::new(frame)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    stream.write_all(frame.get(sent..).unwrap_or_default())
}

fn receive(stream: &mut UnixStream, deadline: Instant) -> Result<Reply, ExchangeError> {
    let mut reader = Bounded { stream, deadline };
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(ExchangeError::Receive)?;
    let length = Reply::body_bytes(&header).map_err(ExchangeError::Reply)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).map_err(ExchangeError::Receive)?;
    Reply::decode_body(&body).map_err(ExchangeError::Reply)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// A stream whose every read ends at the deadline, so that an answer in drops cannot stretch it.
struct Bounded<'a> {
    stream: &'a mut UnixStream,
    deadline: Instant,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}
