//! Which addresses were given to whom: none may be given twice, at the same time or while it rests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The addresses that one node gave.
#[derive(Debug)]
pub struct Ledger {
    rest: Duration,
    given: BTreeMap<IpAddr, Given>,
    answers: u64,
}

#[derive(Debug)]
struct Given {
    holder: String,
    /// When its release was asked for, at the earliest.
    freed: Option<Instant>,
}

impl Ledger {
    /// An empty one, of a node that lets addresses rest for this long.
    #[must_use]
    pub fn new(rest: Duration) -> Self {
        Self { rest, given: BTreeMap::new(), answers: 0 }
    }

    /// How many addresses were given.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Takes in that the node answered `holder` with an address.
    ///
    /// **Errors** another holder has it, or it was given back too short ago.
    pub fn give(&mut self, address: IpAddr, holder: &str, now: Instant) -> Result<()> {
        let before = self.given.insert(address, Given { holder: holder.to_owned(), freed: None });
        self.answers += 1;
        match before {
            Some(Given { holder: first, freed: None }) if first != holder => {
                bail!("{address} was given to {holder} while {first} has it")
            }
            Some(Given { holder: first, freed: Some(freed) }) if first != holder && now - freed < self.rest => {
                bail!("{address} was given to {holder} {:?} after {first} gave it back", now - freed)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes in that a holder's addresses are being released, from `begun` on.
    pub fn free(&mut self, holder: &str, begun: Instant) {
        for given in self.given.values_mut().filter(|given| given.holder == holder) {
            given.freed.get_or_insert(begun);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_given_to_another_only_after_it_rested() {
        let mut ledger = Ledger::new(Duration::from_secs(30));
        let (address, begun) = ("10.244.1.2".parse().unwrap(), Instant::now());
        ledger.give(address, "a", begun).unwrap();
        ledger.give(address, "a", begun).unwrap();
        assert!(ledger.give(address, "b", begun).unwrap_err().to_string().contains("while a has it"));
        ledger.free("b", begun);
        assert!(ledger.give(address, "c", begun + Duration::from_secs(29)).is_err());
        ledger.free("c", begun);
        ledger.give(address, "d", begun + Duration::from_secs(30)).unwrap();
        assert_eq!(ledger.answers(), 5);
    }
}
