//! The other end of `fetch` and `stream`: sends frames with a checksum, or everything back.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use culvert_lab::report::Event;
use sha2::{Digest, Sha256};
use socket2::{Domain, Socket, Type};

use crate::connect::Transport;
use crate::stop::Stop;
use crate::wire::{self, FRAME_BYTES, Request};

/// Serves both families until standard input closes; then the process ends and its connections with it.
pub(crate) fn run(port: u16, transport: Transport) -> Result<()> {
    let listener = listen(port, transport)?;
    crate::print(&Event::Running)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    let mut ignored = Vec::new();
    std::io::stdin().read_to_end(&mut ignored).map(drop).context("standard input")
}

/// Listens on every address of both families.
fn listen(port: u16, transport: Transport) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(transport.protocol()))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).with_context(|| format!("port {port}"))?;
    socket.listen(64)?;
    Ok(socket.into())
}

/// One connection. What goes wrong is seen, and told, by the client.
fn serve(mut stream: TcpStream) -> Result<()> {
    wire::prepare(&stream)?;
    match Request::read(&mut stream)? {
        Request::Fetch(bytes) => send(stream, bytes),
        Request::Echo => echo(stream),
    }
}

/// Sends frames of a pattern, then an empty frame and the SHA-256 of it all.
fn send(mut stream: TcpStream, bytes: Option<u64>) -> Result<()> {
    let closed = watch_for_close(&stream)?;
    let mut left = bytes.unwrap_or(u64::MAX);
    let (mut digest, mut frame, mut offset) = (Sha256::new(), vec![0_u8; 4 + FRAME_BYTES], 0_u64);
    while left > 0 && !(bytes.is_none() && closed.is_set()) {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_BYTES);
        frame[..4].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
        wire::pattern(offset, &mut frame[4..4 + length]);
        digest.update(&frame[4..4 + length]);
        stream.write_all(&frame[..4 + length])?;
        offset += length as u64;
        left -= length as u64;
    }
    stream.write_all(&[0; 4])?;
    stream.write_all(&digest.finalize())?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Sets a flag when the client's side closes.
fn watch_for_close(stream: &TcpStream) -> Result<Stop> {
    let (stop, mut reader) = (Stop::never(), stream.try_clone()?);
    // A client of a long transfer is silent by nature.
    reader.set_read_timeout(None)?;
    let closed = stop.clone();
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 64];
        while matches!(reader.read(&mut buffer), Ok(count) if count > 0) {}
        closed.set();
    });
    Ok(stop)
}

/// Sends everything back until the client's side closes.
fn echo(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0_u8; FRAME_BYTES];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(stream.shutdown(Shutdown::Write)?);
        }
        stream.write_all(&buffer[..count])?;
    }
}
