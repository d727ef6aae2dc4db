//! Echo requests and replies as bytes, for both families. **Source** RFC 792, RFC 4443 §4.

/// Bytes of an echo header and our payload: magic, sequence, time.
pub(crate) const MESSAGE_BYTES: usize = 8 + 24;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// What travels in an echo and comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    /// Tells this probe's echoes from another's.
    pub(crate) magic: u64,
    /// Counts from 0.
    pub(crate) sequence: u64,
    /// Since the probe began. **Units** nanoseconds.
    pub(crate) sent_at_nanos: u64,
}

impl Echo {
    /// The request's bytes. The kernel fills in the checksum of IPv6.
    pub(crate) fn encode(self, is_v6: bool) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [0_u8; MESSAGE_BYTES];
        bytes[0] = if is_v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST_V4 };
        bytes[4..6].copy_from_slice(&self.magic.to_be_bytes()[6..8]);
        bytes[6..8].copy_from_slice(&self.sequence.to_be_bytes()[6..8]);
        bytes[8..16].copy_from_slice(&self.magic.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.sent_at_nanos.to_be_bytes());
        if !is_v6 {
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// Reads a reply as a raw socket hands it over: with the IP header in IPv4, without in IPv6.
    pub(crate) fn decode(packet: &[u8], is_v6: bool) -> Option<Self> {
        let header_bytes = if is_v6 { 0 } else { usize::from(packet.first()? & 0x0f) * 4 };
        let message = packet.get(header_bytes..)?;
        let reply = if is_v6 { ECHO_REPLY_V6 } else { ECHO_REPLY_V4 };
        if *message.first()? != reply {
            return None;
        }
        let word = |from: usize| {
            message.get(from..from + 8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()))
        };
        Some(Self { magic: word(8)?, sequence: word(16)?, sent_at_nanos: word(24)? })
    }
}

/// The internet checksum of an even number of bytes. **Source** RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: Echo = Echo { magic: 0x0102_0304_0506_0708, sequence: 70_000, sent_at_nanos: 42 };

    #[test]
    fn a_reply_gives_back_what_was_sent_in_both_families() {
        for is_v6 in [false, true] {
            let mut reply = ECHO.encode(is_v6).to_vec();
            reply[0] = if is_v6 { ECHO_REPLY_V6 } else { ECHO_REPLY_V4 };
            if !is_v6 {
                reply.splice(0..0, [0x45_u8].into_iter().chain([0; 19]));
            }
            assert_eq!(Echo::decode(&reply, is_v6), Some(ECHO));
        }
    }

    #[test]
    fn the_v4_checksum_makes_the_sum_of_all_words_zero() {
        assert_eq!(checksum(&ECHO.encode(false)), 0);
    }

    #[test]
    fn requests_and_truncated_replies_are_no_replies() {
        let request = ECHO.encode(true);
        assert_eq!(Echo::decode(&request, true), None);
        let mut reply = request;
        reply[0] = ECHO_REPLY_V6;
        for length in 0..MESSAGE_BYTES {
            assert_eq!(Echo::decode(&reply[..length], true), None, "{length} bytes");
        }
    }
}
