//! An engine without a mesh around it: socket pairs as its TUN, and keys made up for the test.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use culvert_core::membership::PeerId;
use culvert_core::packet::{Gso, VnetHeader};
use culvert_datagram::frame::{
    Epoch, Flags, HEADER_BYTES, Kind, LaneAddress, PROBE_QUEUE, ReceiverIndex, RelayPrefix, TAG_BYTES,
};
use culvert_datagram::key::{KEY_MATERIAL_BYTES, KeyMaterial, OpenKey, SealKey, Suite};
use culvert_datagram::key_set::InboundKeys;
use culvert_datagram::rate::RateLimit;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use tokio::sync::mpsc;

use crate::config::TunDevice;
use crate::counters::Counters;
use crate::datagram::{DatagramPeer, Notice, Outbound};
use crate::datagram::{ReceiveKeys, SendKeys};
use crate::packet_threads::{PacketLinks, PacketThreads, TunEnds};
use crate::path::{Batch, PathQueue, PeerPaths};
use crate::tests::node::{LIMIT, eventually, table};

/// Inside, as on an Ethernet.
const MTU_BYTES: usize = 1_400;

/// What both ends know.
fn material(seed: u8) -> KeyMaterial {
    KeyMaterial::new(std::array::from_fn(|index| seed ^ u8::try_from(index % KEY_MATERIAL_BYTES).unwrap()))
}

fn seed(epoch: Epoch, from: u8, queue: u8) -> u8 {
    epoch.0.wrapping_mul(64) ^ from.wrapping_mul(16) ^ queue
}

/// Keys of epoch 1 for that many queues, for a receiver that nobody has.
pub(super) fn send_keys(from: u8, queues: u8) -> Arc<SendKeys> {
    SendKeys::new((0..queues).map(|queue| seal_key(from, queue, ReceiverIndex(0))).collect())
}

fn seal_key(from: u8, queue: u8, receiver: ReceiverIndex) -> SealKey {
    let lane = LaneAddress { receiver, epoch: Epoch(1), queue };
    SealKey::new(Suite::Aes128Gcm, &material(seed(Epoch(1), from, queue)), lane).unwrap()
}

/// One end.
pub(super) struct Engine {
    pub(super) name: PeerId,
    pub(super) counters: Arc<Counters>,
    pub(super) notices: mpsc::Receiver<Notice>,
    /// The other end, as this one sees it.
    pub(super) peer: Arc<DatagramPeer>,
    pub(super) threads: PacketThreads,
    pub(super) ends: TunEnds,
    /// The kernel's ends of the TUN.
    tuns: Vec<OwnedFd>,
    number: u8,
    index: ReceiverIndex,
    ring: Arc<PathQueue>,
    batches: Option<mpsc::Receiver<Batch>>,
    _kicks: mpsc::Receiver<PeerId>,
}

/// Two engines that know each other, with that many queues each.
pub(super) fn pair(queues: u8) -> (Engine, Engine) {
    let (one, two) = (Engine::start(1, queues), Engine::start(2, queues));
    one.connect(&two, queues);
    two.connect(&one, queues);
    (one, two)
}

impl Engine {
    pub(super) fn start(number: u8, queues: u8) -> Self {
        let names = ["zero", "one", "two", "three"].map(|name| PeerId(name.into()));
        let [_, first, second, third] = names.clone();
        let nodes = [
            (first, vec!["10.244.1.0/24", "fd10:1::/64"]),
            (second, vec!["10.244.2.0/24", "fd10:2::/64"]),
            (third, vec!["10.244.3.0/24"]),
        ];
        let table = Arc::new(ArcSwap::from_pointee(table(usize::from(number) - 1, &nodes)));
        let pairs = (0..queues).map(|_| {
            let kind = SocketType::SEQPACKET;
            let (kernel, ours) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            sockopt::set_socket_timeout(&kernel, sockopt::Timeout::Recv, Some(LIMIT)).unwrap();
            (kernel, ours)
        });
        let (tuns, ours): (Vec<_>, Vec<_>) = pairs.unzip();
        let counters = Arc::<Counters>::default();
        let (kick_sender, kicks) = mpsc::channel(8);
        let links = PacketLinks { table, kicks: kick_sender, counters: Arc::clone(&counters) };
        let device = TunDevice { queues: ours, takes_udp: true };
        let (ends, notices, threads) = PacketThreads::start(device, 0, links).unwrap();
        let peer = DatagramPeer::new(names[3 - usize::from(number)].clone(), Arc::default());
        let (ring, batches) = PathQueue::new();
        let paths = PeerPaths { ring: Arc::clone(&ring), datagrams: Arc::clone(&peer) };
        ends.directory.store(Arc::new([(peer.name.clone(), paths)].into()));
        let index = ends.datagrams.number(Arc::clone(&peer), 5).unwrap();
        let (name, batches) = (names[usize::from(number)].clone(), Some(batches));
        Self { name, counters, notices, peer, threads, ends, tuns, number, index, ring, batches, _kicks: kicks }
    }

    fn connect(&self, other: &Self, queues: u8) {
        let keys = (0..queues).map(|queue| seal_key(self.number, queue, other.index)).collect();
        let outbound =
            Outbound { remote: other.address(), relay: None, mtu_bytes: MTU_BYTES, keys: SendKeys::new(keys) };
        self.peer.outbound.store(Some(Arc::new(outbound)));
        self.accept_epochs(&[Epoch(1)]);
    }

    /// Reserves a way through this engine.
    pub(super) fn reserve(&self, limit: RateLimit) -> [RelayPrefix; 2] {
        self.ends.datagrams.reserve(limit, [[1, 2], [3, 4]]).unwrap()
    }

    pub(super) fn release(&self, end: RelayPrefix) {
        self.ends.datagrams.release(end);
    }

    /// Sends to the other end through a relay from now on.
    pub(super) fn send_through(&self, relay: &Self, prefix: RelayPrefix) {
        let direct = self.peer.outbound.load_full().unwrap();
        let (mtu_bytes, keys) = (direct.mtu_bytes, Arc::clone(&direct.keys));
        let outbound = Outbound { remote: relay.address(), relay: Some(prefix), mtu_bytes, keys };
        self.peer.outbound.store(Some(Arc::new(outbound)));
    }

    /// What opens the other end's frames of those epochs, with nothing seen yet.
    fn receive_keys(&self, epochs: &[Epoch]) -> ReceiveKeys {
        let of_epoch = |epoch: &Epoch| {
            let open = |queue| {
                let material = material(seed(*epoch, 3 - self.number, queue));
                OpenKey::new(Suite::Aes128Gcm, &material).unwrap()
            };
            Arc::new(InboundKeys::new(self.index, *epoch, (0..4).map(open).collect(), open(PROBE_QUEUE)))
        };
        ReceiveKeys::new(epochs.iter().map(of_epoch).collect())
    }

    /// Accepts those epochs from now on.
    pub(super) fn accept_epochs(&self, epochs: &[Epoch]) {
        self.peer.inbound.store(Arc::new(self.receive_keys(epochs)));
    }

    /// The next notice.
    pub(super) async fn notice(&mut self) -> Notice {
        tokio::time::timeout(LIMIT, self.notices.recv()).await.unwrap().unwrap()
    }

    /// Waits until that much was dropped, for whatever reason.
    pub(super) async fn wait_dropped(&self, count: u64) {
        let dropped = || {
            let counted = self.counters.snapshot().list();
            counted.into_iter().filter(|(name, _)| name.starts_with("dropped")).map(|(_, count)| count).sum::<u64>()
        };
        if dropped() < count {
            eventually(|| (dropped() >= count).then_some(())).await;
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ends.datagrams.socket.port().unwrap()))
    }

    /// Sends a packet out of the kernel's end of a TUN queue.
    pub(super) fn send(&self, queue: u8, record: &[u8]) {
        rustix::io::write(&self.tuns[usize::from(queue)], record).unwrap();
    }

    /// The next packet that arrives at the kernel's end of a TUN queue.
    pub(super) fn receive(&self, queue: u8) -> Vec<u8> {
        let mut record = vec![0; 70_000];
        let count = rustix::io::read(&self.tuns[usize::from(queue)], record.as_mut_slice()).unwrap();
        record.truncate(count);
        record
    }

    /// The ring of the stream that the peer does not have.
    pub(super) fn take_ring(&mut self) -> mpsc::Receiver<Batch> {
        self.batches.take().unwrap()
    }

    /// Says that something empties the ring.
    pub(super) fn ready_ring(&self) {
        self.ring.set_ready(true);
    }
}

/// Somebody with a socket of his own and keys of one end.
pub(super) struct Attacker {
    socket: UdpSocket,
    key: SealKey,
    to: SocketAddr,
}

impl Attacker {
    /// He sends as `from` does to `to`, with a counter of his own.
    pub(super) fn with_keys_of(from: &Engine, to: &Engine) -> Self {
        Self::with_queue(from, to, 3)
    }

    pub(super) fn with_probe_keys_of(from: &Engine, to: &Engine) -> Self {
        Self::with_queue(from, to, PROBE_QUEUE)
    }

    fn with_queue(from: &Engine, to: &Engine, queue: u8) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self { socket, key: seal_key(from.number, queue, to.index), to: to.address() }
    }

    pub(super) fn seal(&mut self, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let mut frame = [&[0; HEADER_BYTES], payload, &[0; TAG_BYTES]].concat();
        self.key.seal(Kind::Packet, flags, &mut frame).unwrap();
        frame
    }

    pub(super) fn seal_kind(&mut self, kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut frame = [&[0; HEADER_BYTES], payload, &[0; TAG_BYTES]].concat();
        self.key.seal(kind, Flags::default(), &mut frame).unwrap();
        frame
    }

    pub(super) fn send(&self, frame: &[u8]) {
        self.socket.send_to(frame, self.to).unwrap();
    }

    /// Sends a good packet, which arrives.
    pub(super) fn deliver(&mut self, at: &Engine, payload: &[u8]) {
        let packet = crate::tests::node::record([10, 244, 1, 2], [10, 244, 2, 2], payload)[10..].to_vec();
        let frame = self.seal(Flags::default(), &packet);
        self.send(&frame);
        assert_eq!(at.receive(0)[10..], packet);
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = crate::tests::node::record(source, destination, rest)[10..].to_vec();
    bytes[9] = protocol;
    bytes[10..12].fill(0);
    let sum: u32 = bytes[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A virtio header and a TCP super-packet with that much payload.
pub(super) fn tcp_super_packet(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let mut tcp = vec![0; 20 + payload];
    tcp[12..14].copy_from_slice(&[0x50, 0x10]);
    let header = VnetHeader::with_partial_checksum(20, 16).with_gso(Gso::Tcp4, 40, 1_360);
    [header.encode().to_vec(), ipv4(source, destination, 6, &tcp)].concat()
}

/// A virtio header and a UDP super-packet with that much payload in datagrams of `size`.
pub(super) fn udp_super_packet(source: [u8; 4], destination: [u8; 4], payload: usize, size: u16) -> Vec<u8> {
    let mut udp = vec![0; 8 + payload];
    udp[4..6].copy_from_slice(&u16::try_from(8 + payload).unwrap().to_be_bytes());
    let header = VnetHeader::with_partial_checksum(20, 6).with_gso(Gso::UdpL4, 28, size);
    let mut bytes = [header.encode().to_vec(), ipv4(source, destination, 17, &udp)].concat();
    // The checksum of the pseudo header, which the stream path keeps.
    let sum = pseudo_header_sum(&bytes[10..]);
    bytes[36..38].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn pseudo_header_sum(packet: &[u8]) -> u16 {
    let words = packet[12..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>() + u32::from(packet[9]) + u32::try_from(packet.len() - 20).unwrap();
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}
