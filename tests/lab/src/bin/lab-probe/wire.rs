//! The few bytes `serve` and its clients speak: a request, and frames that end with a checksum.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail};

/// Payload of one frame. **Units** bytes.
pub(crate) const FRAME_BYTES: usize = 64 * 1024;
/// The longest silence on a connection that is still alive: far above any outage that is to be survived.
pub(crate) const SILENCE_BOUND: Duration = Duration::from_secs(60);
/// The longest wait for a connection.
pub(crate) const CONNECT_BOUND: Duration = Duration::from_secs(10);

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// This many bytes, or bytes until the client's side closes.
    Fetch(Option<u64>),
    /// Everything back.
    Echo,
}

impl Request {
    /// Sends it.
    pub(crate) fn write(self, stream: &mut impl Write) -> Result<()> {
        let (kind, bytes) = match self {
            Self::Fetch(bytes) => (b'F', bytes.unwrap_or(u64::MAX)),
            Self::Echo => (b'E', 0),
        };
        let mut message = [kind; 9];
        message[1..].copy_from_slice(&bytes.to_be_bytes());
        Ok(stream.write_all(&message)?)
    }

    /// Takes it.
    pub(crate) fn read(stream: &mut impl Read) -> Result<Self> {
        let mut message = [0_u8; 9];
        stream.read_exact(&mut message)?;
        let bytes = u64::from_be_bytes(message[1..].try_into()?);
        match message[0] {
            b'F' if bytes == u64::MAX => Ok(Self::Fetch(None)),
            b'F' => Ok(Self::Fetch(Some(bytes))),
            b'E' => Ok(Self::Echo),
            other => bail!("unknown request {other:#x}"),
        }
    }
}

/// Sets what every connection here wants: no waiting for full segments, and an end to silence.
pub(crate) fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_BOUND))?;
    Ok(stream.set_write_timeout(Some(SILENCE_BOUND))?)
}

/// The bytes of a stream at an offset: every position differs from its neighbours, so a shift is seen.
pub(crate) fn pattern(offset: u64, buffer: &mut [u8]) {
    for (position, byte) in (offset..).zip(buffer.iter_mut()) {
        let mixed = position.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *byte = mixed.to_be_bytes()[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_were_sent() {
        for request in [Request::Fetch(Some(10)), Request::Fetch(None), Request::Echo] {
            let mut bytes = Vec::new();
            request.write(&mut bytes).unwrap();
            assert_eq!(Request::read(&mut bytes.as_slice()).unwrap(), request);
        }
        assert!(Request::read(&mut b"X12345678".as_slice()).is_err());
    }

    #[test]
    fn the_pattern_does_not_depend_on_where_a_buffer_begins() {
        let (mut whole, mut part) = ([0_u8; 100], [0_u8; 40]);
        pattern(1000, &mut whole);
        pattern(1060, &mut part);
        assert_eq!(part, whole[60..]);
        assert_ne!(whole[..40], whole[60..]);
    }
}
