//! Servers and clients of TCP and UDP that run step by step, without threads: a connection is made by the kernel
//! before anybody accepts it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::namespace::{Namespace, PATIENCE, wait_for};

/// What a server or client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Tcp,
    Udp,
}

/// Listens on one port of every address of a namespace, both families, TCP and UDP.
pub struct Server {
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
}

impl Server {
    pub fn new(namespace: &Namespace, port: u16) -> Self {
        // The wildcard of IPv6 must not take the IPv4 port too.
        namespace.set_sysctl("ipv6/bindv6only", "1");
        let addresses =
            [SocketAddr::new("0.0.0.0".parse().unwrap(), port), SocketAddr::new("::".parse().unwrap(), port)];
        let server = namespace.inside(|| Self {
            tcp: addresses.map(|address| TcpListener::bind(address).unwrap()),
            udp: addresses.map(|address| UdpSocket::bind(address).unwrap()),
        });
        server.tcp.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        server.udp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        server
    }

    /// Accept a connection that was made, if there is one.
    pub fn accept(&self) -> Option<(TcpStream, IpAddr)> {
        let (stream, from) = self.tcp.iter().find_map(|listener| listener.accept().ok())?;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Some((stream, from.ip()))
    }

    /// Take a datagram that has arrived, if there is one, and answer it.
    pub fn answer(&self) -> Option<IpAddr> {
        let mut buffer = [0; 64];
        self.udp.iter().find_map(|socket| {
            let (length, from) = socket.recv_from(&mut buffer).ok()?;
            socket.send_to(&buffer[..length], from).unwrap();
            Some(from.ip())
        })
    }
}

/// A TCP connection, or why there is none.
pub fn connect(from: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A UDP socket towards one address, that takes answers from there only.
pub fn towards(from: &Namespace, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.inside(|| {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket
    });
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Send until the server has it and its answer is back, and return whom the server saw.
pub fn ask(client: &UdpSocket, server: &Server) -> IpAddr {
    let mut seen = None;
    wait_for("a datagram and its answer", || {
        // Until a port is there the node refuses it, which the next call on the socket reports.
        let _refused = client.send(b"ask");
        seen = server.answer().or(seen);
        client.recv(&mut [0; 64]).ok().and(seen)
    })
}

/// What the server sees of a client that reaches it and gets its answer.
pub fn reach(speaks: Speaks, from: &Namespace, to: SocketAddr, server: &Server) -> IpAddr {
    match speaks {
        Speaks::Udp => ask(&towards(from, to), server),
        Speaks::Tcp => {
            let client = connect(from, to).unwrap_or_else(|error| panic!("{to} from {}: {error}", from.name));
            let (stream, seen) = wait_for("the connection", || server.accept());
            exchange(&client, &stream);
            seen
        }
    }
}

/// Send something in each direction of a connection.
pub fn exchange(mut client: &TcpStream, mut server: &TcpStream) {
    let mut buffer = [0; 4];
    client.write_all(b"ask?").unwrap();
    server.read_exact(&mut buffer).unwrap();
    server.write_all(b"yes!").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"yes!");
}

/// Assert that nobody takes a connection to there, and that the client is told so at once.
#[track_caller]
pub fn assert_refused(from: &Namespace, to: SocketAddr) {
    let answer = connect(from, to);
    assert_eq!(answer.as_ref().err().map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused), "{to}: {answer:?}");
}
