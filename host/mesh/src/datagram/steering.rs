//! Which of several sockets on one port a datagram goes to: the one of its sender's queue.
//!
//! ```text
//! queue = byte 3 of the frame, or byte 11 behind a relay prefix (first byte 0x80 and above)
//! 255, the queue of probes     -> socket 0
//! otherwise                    -> socket queue mod number of sockets
//! ```

#![expect(unsafe_code, reason = "the kernel's program is attached by setsockopt, for which there is no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use culvert_datagram::frame::{PROBE_QUEUE, RELAY_PREFIX_BYTES};

/// Where a frame has its queue.
const QUEUE_OFFSET: u32 = 3;
/// The first byte of a relay prefix is this or more.
const RELAYED: u32 = 0x80;

/// Deals datagrams out among the sockets that share the port of `socket`, in the order they were bound.
///
/// A datagram that is too short ends the kernel's program, which then returns 0: the first socket.
///
/// **Source** socket(7), `SO_ATTACH_REUSEPORT_CBPF`; the program sees the payload of UDP.
pub(crate) fn deal_out_by_queue(socket: BorrowedFd<'_>, queues: u8) -> io::Result<()> {
    let relayed_offset = QUEUE_OFFSET + u32::try_from(RELAY_PREFIX_BYTES).unwrap_or_default();
    let load_byte = |at| (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    let program: [(u32, u8, u8, u32); 9] = [
        load_byte(0),
        (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 2, RELAYED),
        load_byte(relayed_offset),
        (libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        load_byte(QUEUE_OFFSET),
        (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 2, 0, u32::from(PROBE_QUEUE)),
        (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, u32::from(queues.max(1))),
        (libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        (libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let mut instructions =
        program.map(|(code, jt, jf, k)| libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k });
    let program = libc::sock_fprog { len: 9, filter: instructions.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default();
    // SAFETY: `program` and the instructions it points to live until the call returns, the kernel copies them, and
    // `length` is the size of the structure; the descriptor is open.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
