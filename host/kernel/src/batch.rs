//! Many netlink requests in one send, each answer matched to its request by sequence number.
//!
//! The kernel works a send off before it returns, and goes on after a request that failed. It reports every failure,
//! and a success only where an acknowledgement was asked for: so that of the last request says that all before it were
//! worked off, and one send is answered by one datagram.

mod dump;

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::Socket;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags};

use crate::message::Request;

/// Requests in one send: far more than an attachment has, and few enough that their acknowledgements
/// (about 1 KiB of kernel memory each) stay within a socket's smallest usual buffer. Longer lists take
/// several sends.
pub(crate) const SEND_MAX: usize = 128;
/// **Units** bytes. The largest answer: an acknowledgement that repeats its request, plus the kernel's text.
const ANSWER_BYTES: usize = 16 * 1024;
/// Leftovers of an earlier user of a socket that we throw away before using it; with more than this the
/// socket is refused.
const LEFTOVERS_MAX: usize = 1024;

/// Flag of an answer: the request is not repeated after its header.
const FLAG_CAPPED: u16 = 0x100;
/// Flag of an answer: attributes follow.
const FLAG_ATTRIBUTES: u16 = 0x200;
/// The attribute that holds the kernel's own words.
const ATTRIBUTE_TEXT: u16 = 1;
/// **Units** bytes, of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// What the kernel said against a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The error number, positive.
    pub(crate) errno: i32,
    /// Its own words; often empty.
    pub(crate) text: String,
}

/// The answer to one request.
pub(crate) type Answer = Result<(), Refusal>;

/// A netlink socket used for batched sends and for lists.
pub(crate) struct Channel<S> {
    socket: S,
    /// The socket's address; 0 when somebody else opened it.
    port: u32,
    sequence: u32,
}

impl Channel<Socket> {
    /// A socket of that netlink protocol in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_cap_ack(true)?;
        // Old kernels do not give texts; the error number is enough to go on.
        let _no_texts = socket.set_ext_ack(true);
        Ok(Self { socket, port, sequence: 0 })
    }

    /// The socket's address: by it the kernel names who changed something.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }
}

impl Channel<OwnedFd> {
    /// Take over a socket that somebody else opened, after checking what it is.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        if rustix::net::sockopt::socket_domain(&socket)? != AddressFamily::NETLINK {
            return Err(wrong("it is not a netlink socket"));
        }
        if rustix::net::sockopt::socket_protocol(&socket)?.is_some() {
            return Err(wrong("it is not a NETLINK_ROUTE socket"));
        }
        let mut channel = Self { socket, port: 0, sequence: 0 };
        let mut buffer = vec![0; ANSWER_BYTES];
        for _ in 0..LEFTOVERS_MAX {
            if channel.receive(&mut buffer)?.is_none() {
                return Ok(channel);
            }
        }
        Err(wrong("it never runs empty"))
    }
}

impl<S: AsFd> Channel<S> {
    /// Send requests in one go and return their answers in the same order.
    ///
    /// **Errors** of the socket itself; then nothing is known about any of the requests.
    pub(crate) fn send(&mut self, requests: Vec<Request>) -> io::Result<Vec<Answer>> {
        let last = requests.len().saturating_sub(1);
        let flagged = |(place, request): (usize, Request)| {
            let acknowledged = if place == last { NLM_F_ACK } else { 0 };
            (request.message, NLM_F_REQUEST | acknowledged | request.flags)
        };
        let answers = self.exchange(requests.into_iter().enumerate().map(flagged).collect())?;
        if answers.last() == Some(&None) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the kernel did not acknowledge the last request",
            ));
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Ok(()))).collect())
    }

    /// Send messages in one go, each with its flags, and return the answers that came, in the same order: all failures,
    /// and the acknowledgements that were asked for.
    ///
    /// **Errors** of the socket itself; then nothing is known about any of the messages.
    pub(crate) fn exchange<M>(&mut self, messages: Vec<(M, u16)>) -> io::Result<Vec<Option<Answer>>>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let first = self.sequence.wrapping_add(1);
        let mut answers: Vec<Option<Answer>> = vec![None; messages.len()];
        // Answers come in the order of their messages.
        let last = messages.iter().rposition(|(_, flags)| flags & NLM_F_ACK != 0);
        let bytes: Vec<u8> = messages.into_iter().flat_map(|(message, flags)| self.encode(message, flags)).collect();
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES];
        while last.is_none_or(|last| answers.get(last) == Some(&None)) {
            let Some(length) = self.receive(&mut buffer)? else {
                break;
            };
            for (sequence, answer) in decode(buffer.get(..length).unwrap_or_default()) {
                let place = sequence.wrapping_sub(first) as usize;
                if let Some(slot @ None) = answers.get_mut(place) {
                    *slot = Some(answer);
                }
            }
        }
        Ok(answers)
    }

    /// The bytes of a message, padded, with the next sequence number.
    fn encode<M>(&mut self, message: M, flags: u16) -> Vec<u8>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    /// One answer that is there already; `None` when there is none.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => Ok(Some(length)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// One message of a datagram that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    /// The kind of message.
    pub(crate) kind: u16,
    /// The socket whose request caused it.
    pub(crate) port: u32,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram, as far as they are whole.
pub(crate) fn events(datagram: &[u8]) -> impl Iterator<Item = Event<'_>> {
    dump::messages(datagram).map(|message| Event {
        kind: number_16(message, 4),
        port: number_32(message, 12),
        body: message.get(HEADER_BYTES..).unwrap_or_default(),
    })
}

/// The acknowledgements in a datagram, with their sequence numbers. Anything else in it is skipped.
fn decode(datagram: &[u8]) -> Vec<(u32, Answer)> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while let Some(header) = rest.get(..HEADER_BYTES) {
        let length = number_32(header, 0) as usize;
        let (Some(body), kind, flags) = (rest.get(HEADER_BYTES..length), number_16(header, 4), number_16(header, 6))
        else {
            break;
        };
        if kind == NLMSG_ERROR && body.len() >= 4 {
            let errno = number_32(body, 0).cast_signed().unsigned_abs().cast_signed();
            let answer = if errno == 0 { Ok(()) } else { Err(Refusal { errno, text: text(body, flags) }) };
            answers.push((number_32(header, 8), answer));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

/// The kernel's words in an acknowledgement, or nothing.
fn text(body: &[u8], flags: u16) -> String {
    if flags & FLAG_ATTRIBUTES == 0 || body.len() < 4 + HEADER_BYTES {
        return String::new();
    }
    let repeated = if flags & FLAG_CAPPED == 0 { number_32(body, 4) as usize } else { HEADER_BYTES };
    let attributes = attributes(body.get(4 + repeated.next_multiple_of(4)..).unwrap_or_default());
    let text = attributes.into_iter().find(|(kind, _)| *kind == ATTRIBUTE_TEXT);
    text.map(|(_, value)| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()).unwrap_or_default()
}

/// Attributes with their kinds, as far as they are whole.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(number_16(rest.get(..4)?, 0)), number_16(rest, 2));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Two bytes in the machine's order; 0 beyond the end.
fn number_16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|slice| slice.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// Four bytes in the machine's order; 0 beyond the end.
fn number_32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|slice| slice.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acknowledgement(sequence: u32, errno: i32, flags: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + 4 + HEADER_BYTES + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend((-errno).to_ne_bytes());
        bytes.extend([0; HEADER_BYTES]);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn answers_keep_their_sequence_numbers_and_the_kernels_words() {
        let mut words = 11u16.to_ne_bytes().to_vec();
        words.extend(ATTRIBUTE_TEXT.to_ne_bytes());
        words.extend(b"in use\0\0");
        let mut datagram = acknowledgement(7, 0, FLAG_CAPPED, &[]);
        datagram.extend(acknowledgement(8, libc::EEXIST, FLAG_CAPPED | FLAG_ATTRIBUTES, &words));
        let refusal = Refusal { errno: libc::EEXIST, text: "in use".into() };
        assert_eq!(decode(&datagram), [(7, Ok(())), (8, Err(refusal))]);
    }

    #[test]
    fn an_event_names_who_caused_it() {
        let mut datagram = acknowledgement(7, 0, FLAG_CAPPED, &[]);
        datagram[12..16].copy_from_slice(&5_u32.to_ne_bytes());
        let found: Vec<_> = events(&datagram).map(|event| (event.kind, event.port, event.body.len())).collect();
        assert_eq!(found, [(NLMSG_ERROR, 5, 4 + HEADER_BYTES)]);
        assert_eq!(events(&datagram[..datagram.len() - 1]).count(), 0);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_decoder_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(decode(&bytes).len() <= bytes.len());
        }
    }
}
