//! Hardware addresses that a pod may ask for.

use std::fmt;
use std::str::FromStr;

/// The address of one Ethernet interface: neither all zero nor a group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

/// Text that is no address of one interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address of one interface; write six bytes like 0a:58:0a:f4:01:02")]
pub struct MacError(pub String);

impl MacAddress {
    /// The six bytes, as on the wire.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || MacError(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0_u8; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        let is_group = octets.first().is_some_and(|first| first & 1 == 1);
        if parts.next().is_some() || is_group || octets == [0; 6] {
            return Err(refused());
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::{MacAddress, MacError};

    #[test]
    fn both_separators_and_cases_are_read() {
        let expected = MacAddress([0x0a, 0x58, 0x0a, 0xf4, 1, 2]);
        for text in ["0a:58:0a:f4:01:02", "0A:58:0A:F4:01:02", "0a-58-0a-f4-01-02"] {
            assert_eq!(text.parse(), Ok(expected));
        }
        assert_eq!(expected.to_string(), "0a:58:0a:f4:01:02");
    }

    #[test]
    fn malformed_zero_and_group_addresses_are_refused() {
        let wrong = [
            "",
            "0a",
            "0a:58:0a:f4:01",
            "0a:58:0a:f4:01:02:03",
            "0a:58:0a:f4:01:0g",
            "a:58:0a:f4:01:02",
            "0a:58-0a:f4:01:02",
            "+a:58:0a:f4:01:02",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
        ];
        for text in wrong {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError(text.to_owned())));
        }
    }
}
