//! Bytes and descriptors of the CNI socket: bounded reads, two descriptors at most, root alone.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use culvert_cni::frame::{ACKNOWLEDGED, DESCRIPTORS, FrameError, HEADER_BYTES, Reply, Request};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Why a request cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The client closed in the middle.
    #[error("the client closed the connection after {received} bytes")]
    Cut {
        /// What had come.
        received: usize,
    },
    /// The bytes are no request.
    #[error("these bytes are no request: {0}")]
    Frame(#[from] FrameError),
    /// More descriptors than a request has.
    #[error("more than {DESCRIPTORS} descriptors came along")]
    Descriptors,
}

/// Reads one request and the descriptors that came with it.
pub(super) async fn receive(stream: &UnixStream) -> Result<(Request, Vec<OwnedFd>), ReceiveError> {
    let mut descriptors = Vec::new();
    let mut header = [0; HEADER_BYTES];
    fill(stream, &mut header, 0, &mut descriptors).await?;
    let mut body = vec![0; Request::body_bytes(&header)?];
    fill(stream, &mut body, HEADER_BYTES, &mut descriptors).await?;
    Ok((Request::decode_body(&body)?, descriptors))
}

async fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    before: usize,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<(), ReceiveError> {
    let mut filled = 0;
    while filled < buffer.len() {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || read_some(stream, &mut buffer[filled..], descriptors)) {
            Ok(0) => return Err(ReceiveError::Cut { received: before + filled }),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if descriptors.len() > DESCRIPTORS {
            return Err(ReceiveError::Descriptors);
        }
    }
    Ok(())
}

fn read_some(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors came along than a request has"));
    }
    Ok(received.bytes)
}

/// Writes the reply.
pub(super) async fn send(stream: &UnixStream, reply: &Reply) -> Result<(), ReceiveError> {
    let bytes = reply.encode()?;
    let mut written = 0;
    while written < bytes.len() {
        stream.writable().await?;
        match stream.try_write(&bytes[written..]) {
            Ok(some) => written += some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits for the shim's word that the runtime has the answer.
pub(super) async fn acknowledged(stream: &UnixStream) -> bool {
    let mut byte = [0];
    let mut none = Vec::new();
    fill(stream, &mut byte, 0, &mut none).await.is_ok() && byte[0] == ACKNOWLEDGED
}
