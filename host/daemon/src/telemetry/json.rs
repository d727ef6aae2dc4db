//! Guards JSON lines: JSON itself allows DEL, C1 controls and direction marks inside strings.

use std::io::{self, Write};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::printable::printable_json;

/// Makes writers that escape what [`printable_json`] escapes.
pub(super) struct JsonSafe<W>(pub(super) W);

/// A writer for one event.
pub(super) struct JsonSafeWriter<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for JsonSafe<W> {
    type Writer = JsonSafeWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonSafeWriter(self.0.make_writer())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        JsonSafeWriter(self.0.make_writer_for(metadata))
    }
}

impl<W: Write> Write for JsonSafeWriter<W> {
    /// Takes all of `bytes`: the formatter hands over one whole event a call.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.write_all(printable_json(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
