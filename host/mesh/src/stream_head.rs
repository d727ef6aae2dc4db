//! The first bytes of every stream of ours: which process speaks, and how many streams it opened before.
//!
//! A new session number means that the peer restarted, so its old connections are dead whatever the
//! network says. The serial number keeps packets in order when a peer moves from one stream to the next.

use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// A later format gets other first bytes.
const MAGIC: [u8; 4] = *b"CVS1";

/// **Units** bytes.
const LENGTH: usize = 20;

/// The head follows the opening of a stream at once; a peer that holds it back holds one bounded place.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// Who opened a stream, and as which of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamHead {
    /// Random, one a process.
    pub(crate) session: u64,
    /// Grows with every stream the process opens to this peer.
    pub(crate) serial: u64,
}

impl StreamHead {
    fn encode(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.session.to_be_bytes());
        bytes[12..].copy_from_slice(&self.serial.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let session = u64::from_be_bytes(bytes[4..12].try_into().ok()?);
        let serial = u64::from_be_bytes(bytes[12..].try_into().ok()?);
        (bytes[..4] == MAGIC).then_some(Self { session, serial })
    }

    /// Sends the head.
    pub(crate) async fn write(self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.write_all(&self.encode()).await?;
        stream.flush().await
    }

    /// Receives the head, in bounded time.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = [0; LENGTH];
        timeout(HEAD_LIMIT, stream.read_exact(&mut bytes)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_head_decodes_to_what_was_encoded(session: u64, serial: u64) {
            let head = StreamHead { session, serial };
            prop_assert_eq!(StreamHead::decode(&head.encode()), Some(head));
        }

        #[test]
        fn foreign_bytes_are_refused(mut bytes in proptest::array::uniform20(any::<u8>())) {
            bytes[0] = 0;
            prop_assert_eq!(StreamHead::decode(&bytes), None);
        }
    }
}
