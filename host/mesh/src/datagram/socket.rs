//! The UDP sockets that datagrams travel by: one port, one socket a packet queue.
//!
//! All sockets share the port, so that a NAT on the way has to be opened once. What arrives is dealt out by the
//! sender's queue number, and so a flow stays on one thread from the sender's TUN to ours.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::datagram::steering::deal_out_by_queue;

/// What the system may hold for a thread that is late, in each direction: 10 ms of 3 Gbit/s. The kernel drops what
/// does not fit, as a full link would. **Units** bytes.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// How long a full send buffer is waited for before datagrams are dropped.
const SEND_LIMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The socket of one queue.
#[derive(Debug)]
pub(crate) struct DataSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    is_v6: bool,
}

impl DataSocket {
    /// One socket for each of `queues`, on all addresses of both families; port 0 lets the system choose.
    ///
    /// **Errors** the system's; another user of the port is one.
    pub(crate) fn bind(port: u16, queues: u8) -> io::Result<Vec<Self>> {
        let first = Self::bind_one(Ipv6Addr::UNSPECIFIED.into(), port, queues);
        // A system may have no IPv6 at all.
        let first = first.or_else(|_| Self::bind_one(Ipv4Addr::UNSPECIFIED.into(), port, queues))?;
        let address = first.socket.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..queues {
            sockets.push(Self::bind_one(address.ip(), address.port(), queues)?);
        }
        if let Some(last) = sockets.last().filter(|_| queues > 1) {
            deal_out_by_queue(last.as_fd(), queues)?;
        }
        Ok(sockets)
    }

    fn bind_one(address: IpAddr, port: u16, queues: u8) -> io::Result<Self> {
        let is_v6 = address.is_ipv6();
        let domain = if is_v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if is_v6 {
            socket.set_only_v6(false)?;
        }
        if queues > 1 {
            socket.set_reuse_port(true)?;
        }
        for set in [sockopt::set_socket_recv_buffer_size_force, sockopt::set_socket_send_buffer_size_force] {
            if let Err(error) = set(&socket, SOCKET_BUFFER_BYTES) {
                tracing::debug!(%error, "the system's own size of a socket buffer stays");
            }
        }
        socket.bind(&SocketAddr::new(address, port).into())?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state, is_v6 })
    }

    /// The port.
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Datagrams that one call may send.
    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends `batch`, cut into datagrams of `segment` bytes. Waits a while for a full buffer.
    ///
    /// **Errors** the system's; the whole batch is lost then.
    pub(crate) fn send(&self, batch: &[u8], segment: usize, to: SocketAddr) -> io::Result<()> {
        let destination = match to {
            SocketAddr::V4(v4) if self.is_v6 => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            SocketAddr::V4(_) | SocketAddr::V6(_) => to,
        };
        let segment_size = (batch.len() > segment).then_some(segment);
        let transmit = Transmit { destination, ecn: None, contents: batch, segment_size, src_ip: None };
        let mut waited = false;
        loop {
            match self.state.try_send((&self.socket).into(), &transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&SEND_LIMIT))?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Receives into `buffers`; each may hold several datagrams of equal length from one sender. Returns how many
    /// buffers were filled, and never waits.
    pub(crate) fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, metas)
    }
}

impl AsFd for DataSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The address as its owner writes it: IPv4 is mapped into IPv6 on a socket of both families.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIVE_LIMIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

    fn receive(socket: &DataSocket) -> Vec<(Vec<u8>, SocketAddr)> {
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&RECEIVE_LIMIT)).unwrap();
        let (mut bytes, mut meta) = (vec![0; 65_535], [RecvMeta::default()]);
        assert_eq!(socket.receive(&mut [IoSliceMut::new(&mut bytes)], &mut meta).unwrap(), 1);
        let datagrams = bytes[..meta[0].len].chunks(meta[0].stride);
        datagrams.map(|datagram| (datagram.to_vec(), canonical(meta[0].addr))).collect()
    }

    fn local(socket: &DataSocket, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, socket.port().unwrap())
    }

    #[test]
    fn both_families_are_served_by_one_socket() {
        let (one, two) = (DataSocket::bind(0, 1).unwrap().remove(0), DataSocket::bind(0, 1).unwrap().remove(0));
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            one.send(b"datagram", 8, local(&two, ip)).unwrap();
            assert_eq!(receive(&two), [(b"datagram".to_vec(), local(&one, ip))]);
        }
    }

    #[test]
    fn a_port_in_use_is_refused() {
        let one = DataSocket::bind(0, 1).unwrap().remove(0);
        let error = DataSocket::bind(one.port().unwrap(), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn datagrams_arrive_at_the_socket_of_their_queue() {
        let sockets = DataSocket::bind(0, 3).unwrap();
        let sender = DataSocket::bind(0, 1).unwrap().remove(0);
        let to = local(&sockets[0], Ipv4Addr::LOCALHOST.into());
        // The fourth byte of a frame is the queue; a relayed frame has eight bytes more in front.
        for (queue, expected) in [(0, 0), (1, 1), (2, 2), (3, 0), (255, 0)] {
            let mut frame = vec![1, 0, 0, queue, 9, 9, 9, 9, 9, 9, 9, 9, 9];
            sender.send(&frame, frame.len(), to).unwrap();
            assert_eq!(receive(&sockets[expected])[0].0, frame);
            frame.splice(0..0, [0x80, 7, 7, 7, 7, 7, 7, 7]);
            sender.send(&frame, frame.len(), to).unwrap();
            assert_eq!(receive(&sockets[expected])[0].0, frame);
        }
        // What is too short for a queue number goes to the first.
        sender.send(&[1, 2], 2, to).unwrap();
        assert_eq!(receive(&sockets[0])[0].0, [1, 2]);
    }

    #[test]
    fn one_call_sends_many_datagrams() {
        let (one, two) = (DataSocket::bind(0, 1).unwrap().remove(0), DataSocket::bind(0, 1).unwrap().remove(0));
        let batch: Vec<u8> = (0..250).collect();
        one.send(&batch, 100, local(&two, Ipv4Addr::LOCALHOST.into())).unwrap();
        let mut came = Vec::new();
        while came.len() < 3 {
            came.extend(receive(&two).into_iter().map(|(datagram, _)| datagram));
        }
        assert_eq!(came, [&batch[..100], &batch[100..200], &batch[200..]]);
    }
}
