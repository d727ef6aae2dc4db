//! The Internet checksum, and the sum over the pseudo header of TCP and UDP.
//!
//! **Source** RFC 1071; RFC 9293 §3.1; RFC 8200 §8.1.

/// A one's complement sum under way. The words are summed in the machine's own order, which RFC 1071 §2 allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of what is summed.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let sum = words.iter().fold(self.0, |sum, word| carry(sum, u64::from_ne_bytes(*word)));
        let mut last = [0; 8];
        for (slot, byte) in last.iter_mut().zip(rest) {
            *slot = *byte;
        }
        Self(carry(sum, u64::from_ne_bytes(last)))
    }

    /// The sum of the pseudo header of a packet of that transport protocol. **Units** `length` in bytes, transport
    /// header included. **Bounds** `length` below 65,536.
    pub(crate) fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> Self {
        let [_, _, .., high, low] = length.to_be_bytes();
        Self::default().add(addresses).add(&[0, protocol, high, low])
    }

    /// The sum as it is stored where a checksum is still partial.
    pub(crate) fn partial(self) -> [u8; 2] {
        let mut sum = self.0;
        while let Some(carried) = std::num::NonZeroU64::new(sum >> 16) {
            sum = (sum & 0xffff) + carried.get();
        }
        u16::try_from(sum).unwrap_or(u16::MAX).to_ne_bytes()
    }

    /// The checksum of what was summed.
    pub(crate) fn complete(self) -> [u8; 2] {
        let [first, second] = self.partial();
        [!first, !second]
    }

    /// The same for TCP or UDP. UDP reads 0 as "none", so that value is stored as its other form, which TCP takes alike.
    pub(crate) fn complete_transport(self) -> [u8; 2] {
        match self.complete() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }
}

fn carry(left: u64, right: u64) -> u64 {
    let (sum, carried) = left.overflowing_add(right);
    sum + u64::from(carried)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Sum;

    /// RFC 1071 as it is written.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
            sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
        });
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    /// Zero has two forms in one's complement.
    fn normal(sum: u16) -> u16 {
        if sum == 0xffff { 0 } else { sum }
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!((sum.partial(), sum.complete()), ([0xdd, 0xf2], [0x22, 0x0d]));
    }

    #[test]
    fn a_transport_checksum_is_never_stored_as_zero() {
        let sum = Sum::default().add(&[0xff, 0xff]);
        assert_eq!((sum.complete(), sum.complete_transport()), ([0, 0], [0xff, 0xff]));
    }

    #[test]
    fn the_pseudo_header_counts_addresses_protocol_and_length() {
        let sum = Sum::pseudo_header(&[10, 0, 0, 1, 10, 0, 0, 2], 6, 0x1234);
        let bytes = [10, 0, 0, 1, 10, 0, 0, 2, 0, 6, 0x12, 0x34];
        assert_eq!(u16::from_be_bytes(sum.partial()), reference(&bytes));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn sums_agree_with_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..100) {
            let cut = (2 * cut).min(bytes.len());
            let sum = Sum::default().add(&bytes[..cut]).add(&bytes[cut..]);
            prop_assert_eq!(normal(u16::from_be_bytes(sum.partial())), normal(reference(&bytes)));
            let [first, second] = sum.complete();
            prop_assert_eq!(normal(!u16::from_be_bytes([first, second])), normal(reference(&bytes)));
        }
    }
}
