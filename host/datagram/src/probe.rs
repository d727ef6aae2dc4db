//! What a probe of a path and its answer say. Both travel sealed, by the probe key.
//!
//! ```text
//! probe   = path u32 | sequence u32 | padding                 as long as the packets that the path should carry
//! answer  = path u32 | sequence u32 | size u16 | port u16 | address 16
//! ```
//! Numbers are big endian. The answer goes back to where the probe came from and says where that was, so that a node
//! learns what its NAT makes of it. It is never longer than the shortest probe: nobody is answered with more than he
//! sent. Only the prober reads `path` and `sequence`; when it sent which, it remembers itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// An answer, and the shortest probe. **Units** bytes of payload.
pub const ANSWER_BYTES: usize = 28;
/// The fields of a probe before the padding.
const PROBE_FIELDS_BYTES: usize = 8;

/// Why a payload is no probe or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Not the length it must have.
    #[error("{have} bytes are no probe or answer, which has {ANSWER_BYTES} at least")]
    Length {
        /// How many there are.
        have: usize,
    },
}

/// A question about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The prober's number for the path.
    pub path: u32,
    /// Counts the probes of the path.
    pub sequence: u32,
}

/// What the other end says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// From the probe.
    pub path: u32,
    /// From the probe.
    pub sequence: u32,
    /// How long the probe was when it arrived. **Units** bytes of payload.
    pub size: u16,
    /// Where it came from, as the other end saw it: the relay's address when a relay was on the way.
    pub observed: SocketAddr,
}

impl Probe {
    /// Writes the probe over the whole of `payload`, which is as long as the probe shall be.
    ///
    /// # Errors
    /// [`ProbeError::Length`] below [`ANSWER_BYTES`].
    pub fn write(&self, payload: &mut [u8]) -> Result<(), ProbeError> {
        let have = payload.len();
        if have < ANSWER_BYTES {
            return Err(ProbeError::Length { have });
        }
        let (fields, padding) = payload.split_at_mut(PROBE_FIELDS_BYTES);
        let bytes = self.path.to_be_bytes().into_iter().chain(self.sequence.to_be_bytes());
        fields.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        padding.fill(0);
        Ok(())
    }

    /// Reads a probe. Padding may hold anything.
    ///
    /// # Errors
    /// [`ProbeError::Length`] below [`ANSWER_BYTES`].
    pub fn parse(payload: &[u8]) -> Result<Self, ProbeError> {
        let wrong = ProbeError::Length { have: payload.len() };
        let fields = payload.first_chunk().filter(|_| payload.len() >= ANSWER_BYTES).ok_or(wrong)?;
        let (path, sequence) = path_and_sequence(fields);
        Ok(Self { path, sequence })
    }

    /// What to answer to a probe of `size` bytes of payload that came from `observed`.
    #[must_use]
    pub fn answer(&self, size: usize, observed: SocketAddr) -> Answer {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        Answer { path: self.path, sequence: self.sequence, size, observed }
    }
}

impl Answer {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_BYTES] {
        let address = match self.observed.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut bytes = [0; ANSWER_BYTES];
        let fields = (self.path.to_be_bytes().into_iter())
            .chain(self.sequence.to_be_bytes())
            .chain(self.size.to_be_bytes())
            .chain(self.observed.port().to_be_bytes())
            .chain(address.octets());
        bytes.iter_mut().zip(fields).for_each(|(place, byte)| *place = byte);
        bytes
    }

    /// Reads an answer. An IPv4 address comes out as one, also from its IPv6 form.
    ///
    /// # Errors
    /// [`ProbeError::Length`] when it is not exactly [`ANSWER_BYTES`].
    pub fn parse(payload: &[u8]) -> Result<Self, ProbeError> {
        let wrong = ProbeError::Length { have: payload.len() };
        let bytes: &[u8; ANSWER_BYTES] = payload.try_into().map_err(|_| wrong)?;
        let [f0, f1, f2, f3, f4, f5, f6, f7, s0, s1, p0, p1, address @ ..] = *bytes;
        let (path, sequence) = path_and_sequence(&[f0, f1, f2, f3, f4, f5, f6, f7]);
        let address = Ipv6Addr::from_octets(address).to_canonical();
        let observed = SocketAddr::new(address, u16::from_be_bytes([p0, p1]));
        Ok(Self { path, sequence, size: u16::from_be_bytes([s0, s1]), observed })
    }
}

fn path_and_sequence(bytes: &[u8; PROBE_FIELDS_BYTES]) -> (u32, u32) {
    let [p0, p1, p2, p3, s0, s1, s2, s3] = *bytes;
    (u32::from_be_bytes([p0, p1, p2, p3]), u32::from_be_bytes([s0, s1, s2, s3]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wire_form_is_fixed() {
        let mut payload = [0xff; 30];
        let probe = Probe { path: 0x0102_0304, sequence: 0x0506_0708 };
        probe.write(&mut payload).unwrap();
        assert_eq!(payload[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(payload[8..], [0; 22]);
        let answer = probe.answer(30, "192.0.2.1:258".parse().unwrap());
        let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1];
        assert_eq!(answer.encode(), *[&payload[..8], &[0, 30, 1, 2], &address].concat());
    }

    #[test]
    fn an_answer_is_never_longer_than_its_probe() {
        let probe = Probe { path: 1, sequence: 2 };
        for have in 0..ANSWER_BYTES {
            assert_eq!(probe.write(&mut vec![0; have]), Err(ProbeError::Length { have }));
            assert_eq!(Probe::parse(&vec![0; have]), Err(ProbeError::Length { have }));
        }
        assert!(Probe::parse(&[0; ANSWER_BYTES]).is_ok());
    }

    #[test]
    fn an_answer_has_one_length() {
        for have in (0..100).filter(|have| *have != ANSWER_BYTES) {
            assert_eq!(Answer::parse(&vec![0; have]), Err(ProbeError::Length { have }));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            path in any::<u32>(),
            sequence in any::<u32>(),
            size in ANSWER_BYTES..9000_usize,
            (v4, v6, port) in (any::<Option<[u8; 4]>>(), any::<[u8; 16]>(), any::<u16>()),
        ) {
            let probe = Probe { path, sequence };
            let mut payload = vec![0; size];
            probe.write(&mut payload).unwrap();
            prop_assert_eq!(Probe::parse(&payload), Ok(probe));
            let address = v4.map_or_else(|| IpAddr::from(v6).to_canonical(), IpAddr::from);
            let answer = probe.answer(size, SocketAddr::new(address, port));
            prop_assert_eq!(Answer::parse(&answer.encode()), Ok(answer));
        }

        #[test]
        fn any_bytes_are_read_or_refused(payload in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(Probe::parse(&payload).is_ok(), payload.len() >= ANSWER_BYTES);
            prop_assert_eq!(Answer::parse(&payload).is_ok(), payload.len() == ANSWER_BYTES);
        }
    }
}
