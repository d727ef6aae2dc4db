//! A resident netlink socket on which many messages go in one send.

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use rustix::net::{RecvFlags, SendFlags};

/// **Units** bytes. The largest answer: an acknowledgement with the kernel's text.
const ANSWER_BYTES: usize = 16 * 1024;

/// A message and its flags besides "request". One that is acknowledged ends the wait; of the others only failures are
/// answered.
pub(super) type Flagged<T> = (T, u16);

/// A socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens one.
    ///
    /// **Errors** the kernel refuses.
    pub(super) fn open(protocol: isize) -> Result<Self> {
        let mut socket = Socket::new(protocol).context("cannot open a netlink socket")?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends messages in one go and waits for the last acknowledgement among them.
    ///
    /// **Errors** the kernel refuses one; its position is in the text.
    pub(super) fn send<T: NetlinkSerializable>(&mut self, messages: Vec<Flagged<T>>) -> Result<()>
    where
        NetlinkMessage<T>: From<T>,
    {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut awaited = first;
        for (message, flags) in messages {
            self.sequence += 1;
            if flags & NLM_F_ACK != 0 {
                awaited = self.sequence;
            }
            let mut message = NetlinkMessage::from(message);
            message.header.flags |= NLM_F_REQUEST | flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(bytes.get_mut(start..).unwrap_or_default());
        }
        rustix::net::send(&self.socket, &bytes, SendFlags::empty()).context("cannot send to the kernel")?;
        self.await_answer(first, awaited)
    }

    /// Reads answers until that of `awaited`. Answers come in the order of the messages.
    fn await_answer(&self, first: u32, awaited: u32) -> Result<()> {
        let mut refused = Ok(());
        let mut buffer = vec![0; ANSWER_BYTES];
        loop {
            let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let datagram = buffer.get(..length).unwrap_or_default();
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)?;
            let sequence = answer.header.sequence_number;
            let NetlinkPayload::Error(error) = answer.payload else { bail!("an answer that is no acknowledgement") };
            if error.code.is_some() && refused.is_ok() {
                refused = Err(error.to_io()).with_context(|| format!("message {}", sequence.wrapping_sub(first)));
            }
            if sequence == awaited {
                return refused;
            }
        }
    }
}
