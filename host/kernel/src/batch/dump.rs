//! Lists: everything of a kind that the kernel holds.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use rustix::fd::AsFd;
use rustix::net::SendFlags;

use super::{Channel, HEADER_BYTES, number_16, number_32};

/// **Units** bytes. The kernel puts at most 32 KiB of a list into one datagram.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Datagrams of one list: 32 MiB, some 200,000 objects. A pod that may set its own routes could otherwise fill our
/// memory with them.
const DATAGRAMS_MAX: usize = 1024;
/// How often a list is begun anew that changed while it was read. It holds what one pod event changes, so twice
/// in a row is rare already.
const ATTEMPTS: usize = 8;

impl<S: AsFd> Channel<S> {
    /// Every object that the kernel lists when asked with `message`, each as far as it can be read.
    ///
    /// **Errors** the kernel's, or of the socket.
    pub(crate) fn dump<M>(&mut self, message: &M) -> io::Result<Vec<Result<M, DecodeError>>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>> + Clone,
    {
        for _ in 0..ATTEMPTS {
            let bytes = self.encode(message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
            if let Some(all) = self.collect()? {
                return Ok(all);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the list changed each time it was read"))
    }

    /// The objects of the list that was asked for last; `None` when it changed meanwhile.
    fn collect<M: NetlinkDeserializable>(&mut self) -> io::Result<Option<Vec<Result<M, DecodeError>>>> {
        let (mut all, mut changed) = (Vec::new(), false);
        let mut buffer = vec![0; DATAGRAM_BYTES];
        for _ in 0..DATAGRAMS_MAX {
            // The kernel prepares each part before it hands out the one before it.
            let Some(length) = self.receive(&mut buffer)? else {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel's list has no end"));
            };
            for message in messages(buffer.get(..length).unwrap_or_default()) {
                if number_32(message, 8) != self.sequence {
                    continue;
                }
                changed |= number_16(message, 6) & NLM_F_DUMP_INTR != 0;
                match number_16(message, 4) {
                    kind @ (NLMSG_DONE | NLMSG_ERROR) => {
                        let errno = number_32(message, HEADER_BYTES).cast_signed();
                        return match errno {
                            0 if kind == NLMSG_DONE => Ok((!changed).then_some(all)),
                            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel answered without a list")),
                            errno => Err(io::Error::from_raw_os_error(-errno)),
                        };
                    }
                    _ => all.extend(object(message)),
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::FileTooLarge, "the list is longer than anything of ours"))
    }
}

/// The object in a message, if it holds one.
fn object<M: NetlinkDeserializable>(message: &[u8]) -> Option<Result<M, DecodeError>> {
    match NetlinkMessage::deserialize(message) {
        Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(object), .. }) => Some(Ok(object)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }
}

/// The messages in a datagram, as far as they are whole.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = number_32(rest.get(..HEADER_BYTES)?, 0) as usize;
        let message = rest.get(..length).filter(|_| length >= HEADER_BYTES)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_told_apart_by_their_lengths() {
        let message = |length: u32, fill: u8| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.resize(length as usize, fill);
            bytes
        };
        let (first, second) = (message(18, 1), message(20, 2));
        let mut datagram = first.clone();
        datagram.extend([0, 0]);
        datagram.extend(&second);
        datagram.extend(&message(24, 3)[..20]);
        assert_eq!(messages(&datagram).collect::<Vec<_>>(), [&first[..], &second[..]]);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
        }
    }
}
