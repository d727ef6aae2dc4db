//! Culvert's own NAT table: host ports, and who leaves the cluster under its own address.
//!
//! Its rules are static (`ruleset`), loaded when the node is set up. What a pod event changes are elements of its
//! maps and sets, in one transaction on a socket that stays open: closing it makes the kernel wait until
//! everything that was deleted is freed, tens of milliseconds.

mod element;
mod ruleset;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use culvert_core::address::Family;
use culvert_core::host_port::{PortKey, PortTarget};
use culvert_core::nat::NatElements;
use culvert_core::plan::Step;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::batch::{Answer, Channel, Refusal, SEND_MAX};
use crate::message::nftables::{self, Element, Operation, Rule, rule};
use crate::sysctl::has_ipv6;

pub use ruleset::NatTableError;
use ruleset::{Rules, load};

/// How often a transaction is tried that found elements other than it expected. Once would do, unless somebody
/// else writes into the table at the same time.
const ATTEMPTS: usize = 4;

/// A change of one element, wherever it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The position of its step in the plan.
    pub(crate) position: usize,
    /// Whether a table that is not there is as good as success.
    gone_is_fine: bool,
    element: Element,
    wanted: Wanted,
}

/// What becomes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// It is there; `replaces` says that one with the same key is expected to be there already.
    There {
        replaces: bool,
    },
    Gone,
}

/// What the answers say about a change.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is good as it was asked.
    Good,
    /// It must be asked in another way.
    Otherwise(Wanted),
    /// Nothing is to do.
    Needless,
    Refused(Refusal),
}

/// A transaction was refused, and nothing of it was done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The position of the step that was to blame.
    pub(crate) position: usize,
    /// What the kernel said.
    pub(crate) refusal: Refusal,
}

impl Change {
    /// The change a step asks for; `None` when it asks for none.
    ///
    /// **Errors** why it cannot be expressed.
    pub(crate) fn of(step: &Step, position: usize) -> Result<Option<Self>, String> {
        let port = |key: &PortKey, target: &PortTarget| {
            element::of_port(key, target)
                .ok_or_else(|| format!("port {key} and address {} are of two families", target.address))
        };
        let (element, wanted) = match step {
            Step::SetPort { key, target, before } => (port(key, target)?, Wanted::There { replaces: before.is_some() }),
            Step::RemovePort { key, target } => (port(key, target)?, Wanted::Gone),
            Step::Exempt { address } => (element::of_exemption(*address), Wanted::There { replaces: false }),
            Step::Unexempt { address } => (element::of_exemption(*address), Wanted::Gone),
            Step::CreateVeth(_)
            | Step::DeleteLink { .. }
            | Step::PodLinkUp { .. }
            | Step::PodAddress { .. }
            | Step::PodRoute { .. }
            | Step::ShapeIngress { .. }
            | Step::UnshapeIngress { .. }
            | Step::ShapeEgress { .. }
            | Step::UnshapeEgress { .. }
            | Step::SetRoute { .. }
            | Step::RemoveRoute { .. } => return Ok(None),
        };
        Ok(Some(Self { position, gone_is_fine: false, element, wanted }))
    }

    /// The same change, for which a table that is not there is as good as success.
    pub(crate) fn unless_gone(self) -> Self {
        Self { gone_is_fine: true, ..self }
    }

    fn operations(&self) -> Vec<Operation> {
        match self.wanted {
            Wanted::There { replaces: false } => vec![nftables::add(&self.element)],
            Wanted::There { replaces: true } => vec![nftables::remove(&self.element), nftables::add(&self.element)],
            Wanted::Gone => vec![nftables::remove(&self.element)],
        }
    }

    /// Judge by the answers to [`Change::operations`].
    fn judge(&self, answers: &[Answer]) -> Verdict {
        let errno = |answer: &Answer| answer.as_ref().err().map(|refusal| refusal.errno);
        let codes: Vec<Option<i32>> = answers.iter().map(errno).collect();
        match (self.wanted, codes.as_slice()) {
            (_, codes) if codes.iter().all(Option::is_none) => Verdict::Good,
            (Wanted::Gone, [Some(libc::ENOENT)]) => Verdict::Needless,
            // The element is not there, and the table is.
            (Wanted::There { replaces: true }, [Some(libc::ENOENT), None]) => {
                Verdict::Otherwise(Wanted::There { replaces: false })
            }
            (Wanted::There { replaces: false }, [Some(libc::EEXIST | libc::EBUSY)]) => {
                Verdict::Otherwise(Wanted::There { replaces: true })
            }
            (_, [.., Some(libc::ENOENT)]) if self.gone_is_fine => Verdict::Needless,
            (_, _) => Verdict::Refused(explain(answers.iter().rev().find_map(|answer| answer.clone().err()))),
        }
    }
}

/// The kernel has no words of its own for a table that is not there.
fn explain(refusal: Option<Refusal>) -> Refusal {
    let mut refusal = refusal.unwrap_or(Refusal { errno: libc::EIO, text: String::new() });
    if refusal.errno == libc::ENOENT && refusal.text.is_empty() {
        refusal.text = format!("table {} is not there: set the node up again", nftables::TABLE);
    }
    refusal
}

/// The table, by a socket of its own.
pub(crate) struct NatTable {
    channel: Channel<Socket>,
}

/// Set the rules, unless they stand already. Whether they are in force: a kernel may lack what they need.
///
/// **Errors** [`NatTableError`] when they cannot be set for another reason.
pub(crate) fn ensure(nat: &Mutex<NatTable>, bridge: &str) -> Result<bool, NatTableError> {
    let stand = nat.lock().unwrap_or_else(PoisonError::into_inner).rules_stand(bridge);
    match stand {
        Ok(true) => return Ok(true),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "the rules of the NAT table cannot be listed; they are set again"),
    }
    match load(bridge) {
        Ok(()) => Ok(true),
        Err(error @ NatTableError::Refused { .. }) => {
            tracing::error!(%error, "pods cannot have host ports, nor ipMasq false, on this node");
            Ok(false)
        }
        Err(error @ (NatTableError::Missing | NatTableError::Unusable(_))) => Err(error),
    }
}

impl NatTable {
    /// Open the socket, in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { channel: Channel::open(NETLINK_NETFILTER)? })
    }

    /// Carry all changes out, or none of them.
    ///
    /// The kernel refuses to add what is there and to remove what is not. The plan knows better than the kernel
    /// what must be there in the end, so a change that finds an element other than expected is asked for again
    /// in another way.
    ///
    /// **Bounds** more changes than fit one transaction are cut in several; then one that is refused leaves those
    /// before it done. **Errors** of the socket; then it is not known what was done.
    pub(crate) fn carry_out(&mut self, changes: &[Change]) -> io::Result<Result<(), Refused>> {
        // A replacement takes two operations.
        for part in changes.chunks(SEND_MAX / 2) {
            if let Err(refused) = self.carry_out_together(part.to_vec())? {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }

    fn carry_out_together(&mut self, mut changes: Vec<Change>) -> io::Result<Result<(), Refused>> {
        for _ in 0..ATTEMPTS {
            if changes.is_empty() {
                return Ok(Ok(()));
            }
            let operations: Vec<Vec<Operation>> = changes.iter().map(Change::operations).collect();
            let counts: Vec<usize> = operations.iter().map(Vec::len).collect();
            let mut answers = self.transact(operations.into_iter().flatten().collect())?.into_iter();
            let (mut again, mut all_good) = (Vec::new(), true);
            for (mut change, count) in changes.into_iter().zip(counts) {
                let verdict = change.judge(&answers.by_ref().take(count).collect::<Vec<_>>());
                all_good &= verdict == Verdict::Good;
                match verdict {
                    Verdict::Good => again.push(change),
                    Verdict::Otherwise(wanted) => {
                        change.wanted = wanted;
                        again.push(change);
                    }
                    Verdict::Needless => {}
                    Verdict::Refused(refusal) => return Ok(Err(Refused { position: change.position, refusal })),
                }
            }
            if all_good {
                return Ok(Ok(()));
            }
            changes = again;
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody else keeps changing the NAT table"))
    }

    /// Send operations as one transaction and return the answer to each. All were done if all are good, none
    /// otherwise.
    fn transact(&mut self, operations: Vec<Operation>) -> io::Result<Vec<Answer>> {
        let count = operations.len();
        let mut messages = vec![(nftables::begin(), NLM_F_REQUEST)];
        messages.extend(operations.into_iter().map(|(message, flags)| (message, NLM_F_REQUEST | NLM_F_ACK | flags)));
        messages.push((nftables::end(), NLM_F_REQUEST));
        let mut answers = self.channel.exchange(messages)?.into_iter();
        // What concerns the transaction as a whole is answered to its first message.
        if let Some(Some(Err(refusal))) = answers.next() {
            return Err(io::Error::from_raw_os_error(refusal.errno));
        }
        answers.take(count).collect::<Option<Vec<Answer>>>().ok_or_else(|| {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not acknowledge every operation")
        })
    }

    /// The address of the socket: by it the kernel names who changed something.
    pub(crate) fn port(&self) -> u32 {
        self.channel.port()
    }

    /// Whether the rules are as they are set. Changes nothing.
    pub(crate) fn rules_stand(&mut self, bridge: &str) -> io::Result<bool> {
        for family in families() {
            let messages = self.channel.dump(&nftables::list_rules(family))?;
            // One that cannot be read is not ours.
            let found: Vec<_> =
                messages.iter().map(|message| message.as_ref().map_or_else(|_| Some(Rule::default()), rule)).collect();
            if !Rules::of(family, bridge).stand_among(&found.into_iter().flatten().collect::<Vec<_>>()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every element that is there. A table that is not there has none.
    pub(crate) fn elements(&mut self) -> io::Result<NatElements> {
        let mut all = NatElements::default();
        for family in families() {
            for set in [element::PORTS, element::ADDRESS_PORTS] {
                all.ports.extend(self.list(family, set)?.iter().filter_map(element::port));
            }
            let exempt: BTreeSet<_> =
                self.list(family, element::UNMASQUERADED)?.iter().filter_map(element::exemption).collect();
            all.unmasqueraded.extend(exempt);
        }
        Ok(all)
    }

    fn list(&mut self, family: Family, set: &'static str) -> io::Result<Vec<Element>> {
        let messages = match self.channel.dump(&nftables::list(family, set)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            messages => messages?,
        };
        let mut elements = Vec::new();
        for message in messages {
            let message = message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            elements.extend(nftables::elements(&message, family, set));
        }
        Ok(elements)
    }

    /// Remove the table of each family with everything in it; gone already counts as done.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for family in families() {
            let answers = self.transact(vec![nftables::remove_table(family)]);
            let removed = answers.and_then(|answers| match answers.into_iter().next() {
                Some(Err(refusal)) if refusal.errno != libc::ENOENT => Err(io::Error::from_raw_os_error(refusal.errno)),
                _ => Ok(()),
            });
            result = result.and(removed);
        }
        result
    }
}

/// The families this kernel has.
fn families() -> Vec<Family> {
    if has_ipv6() { vec![Family::V4, Family::V6] } else { vec![Family::V4] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(wanted: Wanted) -> Change {
        let element = element::of_exemption("10.244.1.5".parse().unwrap());
        Change { position: 3, gone_is_fine: false, element, wanted }
    }

    fn refusal(errno: i32) -> Refusal {
        Refusal { errno, text: "words".into() }
    }

    #[test]
    fn an_element_other_than_expected_is_asked_for_in_another_way() {
        let (new, replaced) = (Wanted::There { replaces: false }, Wanted::There { replaces: true });
        let (good, no) = (|| Ok(()), |errno| Err(refusal(errno)));
        for (wanted, answers, verdict) in [
            (new, vec![good()], Verdict::Good),
            (new, vec![no(libc::EEXIST)], Verdict::Otherwise(replaced)),
            (new, vec![no(libc::EBUSY)], Verdict::Otherwise(replaced)),
            (new, vec![no(libc::ENOENT)], Verdict::Refused(refusal(libc::ENOENT))),
            (new, vec![no(libc::ENOMEM)], Verdict::Refused(refusal(libc::ENOMEM))),
            (replaced, vec![good(), good()], Verdict::Good),
            (replaced, vec![no(libc::ENOENT), good()], Verdict::Otherwise(new)),
            (replaced, vec![no(libc::ENOENT), no(libc::ENOENT)], Verdict::Refused(refusal(libc::ENOENT))),
            (replaced, vec![good(), no(libc::ENOMEM)], Verdict::Refused(refusal(libc::ENOMEM))),
            (replaced, vec![no(libc::EPERM), good()], Verdict::Refused(refusal(libc::EPERM))),
            (Wanted::Gone, vec![good()], Verdict::Good),
            (Wanted::Gone, vec![no(libc::ENOENT)], Verdict::Needless),
            (Wanted::Gone, vec![no(libc::EPERM)], Verdict::Refused(refusal(libc::EPERM))),
        ] {
            assert_eq!(change(wanted).judge(&answers), verdict, "{wanted:?} {answers:?}");
        }
    }

    #[test]
    fn where_a_table_that_is_gone_is_fine_nothing_is_to_do() {
        let gone = Err(refusal(libc::ENOENT));
        for (wanted, answers) in [
            (Wanted::There { replaces: false }, vec![gone.clone()]),
            (Wanted::There { replaces: true }, vec![gone.clone(), gone.clone()]),
            (Wanted::Gone, vec![gone]),
        ] {
            assert_eq!(change(wanted).unless_gone().judge(&answers), Verdict::Needless);
        }
    }

    #[test]
    fn a_missing_table_is_named() {
        let silent = Refusal { errno: libc::ENOENT, text: String::new() };
        let verdict = change(Wanted::There { replaces: false }).judge(&[Err(silent)]);
        let Verdict::Refused(refusal) = verdict else { panic!("{verdict:?}") };
        assert_eq!(refusal.text, "table culvert is not there: set the node up again");
    }
}
