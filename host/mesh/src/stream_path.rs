//! The path that needs nothing but a libp2p stream: frames one after the other.

use std::io;

use futures::AsyncWriteExt as _;
use libp2p::Stream;

use crate::path::Path;
/// A data stream of ours to a peer.
pub(crate) struct StreamPath {
    stream: Stream,
}

impl StreamPath {
    /// A path over a stream whose head was sent.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream }
    }
}

impl Path for StreamPath {
    async fn carry(&mut self, batch: &[u8]) -> io::Result<()> {
        self.stream.write_all(batch).await?;
        self.stream.flush().await
    }

    async fn finish(mut self) -> io::Result<()> {
        self.stream.close().await
    }
}
