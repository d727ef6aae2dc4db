//! The static packet filter rules of the node: set, repaired and removed, in chains of our own.
//!
//! A chain that differs gets its wanted rules appended before the old ones are taken off from the end, so at
//! every moment a complete set stands in it. Tables and built-in chains that the program makes by itself stay
//! when ours are removed: other software may use them by then, and empty they do nothing. These commands run at start and when somebody flushed the
//! rules, never for a pod.

mod rules;

use std::io;

use iptables::IPTables;

use crate::node::NodeSpec;
use rules::{Chain, chains};

/// The firewall could not be set.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program is missing.
    #[error("{program} is not installed: install the Debian package iptables (`apt-get install iptables`)")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// The program cannot be used.
    #[error("{program} cannot be used: {reason}")]
    Unusable {
        /// Its name.
        program: &'static str,
        /// Why.
        reason: String,
    },
    /// It refused a command.
    #[error("{program} refused to {action} in chain {chain} of table {table}: {reason}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What was asked.
        action: String,
        /// The chain.
        chain: String,
        /// The table.
        table: String,
        /// Its words.
        reason: String,
    },
}

/// How often a deletion is repeated at most, against a chain that somebody else fills meanwhile.
const DELETIONS_MAX: usize = 1024;

/// The wanted rules of all families.
pub(crate) struct Wanted {
    families: Vec<(bool, Vec<Chain>)>,
}

impl Wanted {
    /// What `spec` asks for. IPv6 rules are set whether or not pods have IPv6: a peer could send it anyway.
    pub(crate) fn new(spec: &NodeSpec, ipv6: bool) -> Self {
        let versions = if ipv6 { vec![false, true] } else { vec![false] };
        Self { families: versions.into_iter().map(|v6| (v6, chains(spec, v6))).collect() }
    }

    /// Set what is missing or different.
    pub(crate) fn ensure(&self) -> Result<(), FirewallError> {
        for (v6, chains) in &self.families {
            let program = Program::find(*v6)?;
            for chain in chains {
                if chain.rules.is_empty() { program.remove(chain)? } else { program.ensure(chain)? }
            }
        }
        Ok(())
    }

    /// Whether everything is as [`Wanted::ensure`] leaves it. Changes nothing.
    pub(crate) fn stands(&self) -> Result<bool, FirewallError> {
        for (v6, chains) in &self.families {
            let program = Program::find(*v6)?;
            for chain in chains {
                if !program.stands(chain)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Remove our chains and the jumps to them.
    pub(crate) fn remove(&self) -> Result<(), FirewallError> {
        let mut result = Ok(());
        for (v6, chains) in &self.families {
            let program = Program::find(*v6)?;
            for chain in chains {
                result = result.and(program.remove(chain));
            }
        }
        result
    }
}

/// `iptables` or `ip6tables`.
struct Program(IPTables);

impl Program {
    fn find(v6: bool) -> Result<Self, FirewallError> {
        let program = if v6 { "ip6tables" } else { "iptables" };
        match iptables::new(v6) {
            Ok(mut tables) => {
                tables.set_numeric(false);
                Ok(Self(tables))
            }
            Err(error) => match error.downcast_ref::<io::Error>() {
                Some(cause) if cause.kind() == io::ErrorKind::NotFound => Err(FirewallError::Missing { program }),
                _ => Err(FirewallError::Unusable { program, reason: error.to_string() }),
            },
        }
    }

    /// Chain, content, jump, in this order: nothing jumps to a chain that is not complete.
    fn ensure(&self, chain: &Chain) -> Result<(), FirewallError> {
        let listed = self.list(chain)?;
        let present = rules_in(chain, &listed);
        if present.is_none() {
            self.run(chain, "make it", |tables| tables.new_chain(chain.table, chain.name))?;
        }
        let present = present.unwrap_or_default();
        if !self.is_right(chain, &present)? {
            for rule in &chain.rules {
                self.run(chain, &format!("append `{rule}`"), |tables| tables.append(chain.table, chain.name, rule))?;
            }
            for position in (1..=present.len()).rev() {
                let number = position.to_string();
                self.run(chain, "delete an old rule", |tables| tables.delete(chain.table, chain.name, &number))?;
            }
        }
        if !self.has_jump(chain, &listed)? {
            let jump = jump_to(chain);
            self.run(chain, "jump to it", |tables| tables.insert(chain.table, chain.hook, &jump, 1))?;
        }
        Ok(())
    }

    /// Whether a chain is as it should be: not there at all when it has no rules.
    fn stands(&self, chain: &Chain) -> Result<bool, FirewallError> {
        let listed = self.list(chain)?;
        match rules_in(chain, &listed) {
            None => Ok(chain.rules.is_empty()),
            Some(present) => {
                Ok(!chain.rules.is_empty() && self.is_right(chain, &present)? && self.has_jump(chain, &listed)?)
            }
        }
    }

    fn has_jump(&self, chain: &Chain, listed: &[String]) -> Result<bool, FirewallError> {
        let jump = jump_to(chain);
        if listed.contains(&format!("-A {} {jump}", chain.hook)) {
            return Ok(true);
        }
        self.ask(chain, "look for the jump", |tables| tables.exists(chain.table, chain.hook, &jump))
    }

    /// Whether the chain holds what it should. A rule that is printed as we write it is there; the program may print one
    /// in its own way, so what is not found as text is looked up by itself.
    fn is_right(&self, chain: &Chain, present: &[String]) -> Result<bool, FirewallError> {
        if present.len() != chain.rules.len() {
            return Ok(false);
        }
        for rule in &chain.rules {
            let is_printed = present.contains(&format!("-A {} {rule}", chain.name));
            if !is_printed
                && !self.ask(chain, "look for a rule", |tables| tables.exists(chain.table, chain.name, rule))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Jump first, then content, then chain.
    fn remove(&self, chain: &Chain) -> Result<(), FirewallError> {
        let jump = jump_to(chain);
        for _ in 0..DELETIONS_MAX {
            if !self.has_jump(chain, &[])? {
                break;
            }
            self.run(chain, "remove the jump", |tables| tables.delete(chain.table, chain.hook, &jump))?;
        }
        if rules_in(chain, &self.list(chain)?).is_some() {
            self.run(chain, "empty it", |tables| tables.flush_chain(chain.table, chain.name))?;
            self.run(chain, "delete it", |tables| tables.delete_chain(chain.table, chain.name))?;
        }
        Ok(())
    }

    /// Everything in a chain's table, a line each.
    fn list(&self, chain: &Chain) -> Result<Vec<String>, FirewallError> {
        let lines = self.ask(chain, "list it", |tables| tables.list_table(chain.table))?;
        // The program says why it cannot list only on a stream the library throws away.
        if !lines.iter().any(|line| line.starts_with("-P ")) {
            let reason = format!(
                "it cannot list table {}: is the kernel module there, and has the daemon CAP_NET_ADMIN?",
                chain.table
            );
            return Err(FirewallError::Unusable { program: self.0.cmd, reason });
        }
        Ok(lines)
    }

    fn run(
        &self,
        chain: &Chain,
        action: &str,
        command: impl FnOnce(&IPTables) -> Outcome<()>,
    ) -> Result<(), FirewallError> {
        self.ask(chain, action, command)
    }

    fn ask<T>(
        &self,
        chain: &Chain,
        action: &str,
        command: impl FnOnce(&IPTables) -> Outcome<T>,
    ) -> Result<T, FirewallError> {
        command(&self.0).map_err(|error| FirewallError::Refused {
            program: self.0.cmd,
            action: action.to_owned(),
            chain: chain.name.to_owned(),
            table: chain.table.to_owned(),
            reason: error.to_string().trim().to_owned(),
        })
    }
}

/// The rules of a chain among the lines of its table, or `None` when there is no such chain.
fn rules_in(chain: &Chain, listed: &[String]) -> Option<Vec<String>> {
    let rule = format!("-A {} ", chain.name);
    let exists = listed.contains(&format!("-N {}", chain.name));
    exists.then(|| listed.iter().filter(|line| line.starts_with(&rule)).cloned().collect())
}

/// The rule that leads to a chain.
fn jump_to(chain: &Chain) -> String {
    format!("-j {}", chain.name)
}

/// What the library returns.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
