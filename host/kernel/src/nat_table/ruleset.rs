//! The static rules of the NAT table, as one text that is loaded when the node is set up.
//!
//! ```text
//! prerouting, output ─ to an address of this node? ─> map of its address, then map of all addresses ─> pod
//!                            └─ from the bridge: marked, when a map led it to a pod
//! postrouting ─ out by the bridge, marked or from 127/8 ─> under the bridge's address, so that the reply comes back
//!             └ out by another link, from an exempt address ─> marked: the firewall does not masquerade it
//! raw         ─ in by the bridge, from or to 127/8 ─> dropped
//! ```
//!
//! IPv4 packets to 127.0.0.1 leave the node by the bridge only because `route_localnet` is set there, which would
//! also let pods reach what listens on 127.0.0.1: hence the rule in `raw`. IPv6 has no such sysctl. The kernel
//! lets a packet to ::1 out, but drops its reply: it takes ::1 for the destination of a packet from the loopback link
//! alone, and by then the reply's destination has been turned back into ::1. So ports of ::1 are left alone, and
//! a client is refused at once instead of waiting for an answer in vain.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::process::{Command, Stdio};

use culvert_core::address::Family;

use super::element::{ADDRESS_PORTS, PORTS, UNMASQUERADED};
use crate::DECIDED_MARK;
use crate::message::nftables::{Rule, TABLE};

/// The chain that leads to pods.
const HOST_PORTS: &str = "host-ports";

/// The NAT table could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NatTableError {
    /// The program is missing.
    #[error("nft is not installed: install the Debian package nftables (`apt-get install nftables`)")]
    Missing,
    /// The program could not be run.
    #[error("nft cannot be run")]
    Unusable(#[source] io::Error),
    /// It refused the rules.
    #[error(
        "nft refused the rules of table {TABLE}: {reason}; the kernel needs nf_tables with NAT and fib \
         (CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6)"
    )]
    Refused {
        /// Its words.
        reason: String,
    },
}

/// What a family calls things.
struct Words {
    table: &'static str,
    address: &'static str,
    /// What comes before the maps are asked.
    exception: Option<&'static str>,
    /// Rules of the guard, with `{bridge}` for the bridge.
    guard: &'static [&'static str],
    /// Sources besides pods whose packets to a pod must come back through the node.
    loopback: Option<&'static str>,
}

const WORDS_V4: Words = Words {
    table: "ip",
    address: "ipv4_addr",
    exception: None,
    guard: &["ip saddr 127.0.0.0/8 drop", "ip daddr 127.0.0.0/8 drop"],
    loopback: Some("127.0.0.0/8"),
};
const WORDS_V6: Words =
    Words { table: "ip6", address: "ipv6_addr", exception: Some("ip6 daddr ::1 return"), guard: &[], loopback: None };

/// Set the rules, whatever was there, in one transaction. Elements stay.
///
/// **Errors** [`NatTableError`]; then nothing was changed.
pub(crate) fn load(bridge: &str) -> Result<(), NatTableError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                NatTableError::Missing
            } else {
                NatTableError::Unusable(error)
            }
        })?;
    let text: String = super::families().into_iter().map(|family| Rules::of(family, bridge).text()).collect();
    // A program that ends before it has read everything says why; that is the better error.
    let _closed_early = nft.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
    let output = nft.wait_with_output().map_err(NatTableError::Unusable)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let reason = words.lines().find(|line| line.contains("Error")).unwrap_or(words.trim()).to_owned();
    Err(NatTableError::Refused { reason })
}

/// A chain: its name, where it is hooked in, its rules.
struct Chain {
    name: &'static str,
    hook: &'static str,
    rules: Vec<String>,
}

/// The rules of a family.
///
/// Each bears a mark that follows from all of them, as its comment: so whether they stand can be seen without running a
/// program, and a later version of the rules replaces them.
pub(crate) struct Rules {
    words: &'static Words,
    chains: Vec<Chain>,
    mark: String,
}

impl Rules {
    /// The rules of a family for a node with this bridge.
    pub(crate) fn of(family: Family, bridge: &str) -> Self {
        let words = match family {
            Family::V4 => &WORDS_V4,
            Family::V6 => &WORDS_V6,
        };
        let chains = chains(words, bridge);
        let mut hasher = DefaultHasher::new();
        chains.iter().for_each(|chain| (chain.name, chain.hook, &chain.rules).hash(&mut hasher));
        Self { words, chains, mark: format!("culvert {:016x}", hasher.finish()) }
    }

    /// Whether these rules and no others are in the table.
    pub(crate) fn stand_among(&self, found: &[Rule]) -> bool {
        let bears = |rule: &Rule| rule.user_data.windows(self.mark.len()).any(|part| part == self.mark.as_bytes());
        let count = |chain: &Chain| found.iter().filter(|rule| rule.chain == chain.name).count();
        let wanted: usize = self.chains.iter().map(|chain| chain.rules.len()).sum();
        found.len() == wanted
            && found.iter().all(bears)
            && self.chains.iter().all(|chain| count(chain) == chain.rules.len())
    }

    /// Declaring what is there already changes nothing; `flush table` takes the rules, not the elements.
    fn text(&self) -> String {
        let Self { words: Words { table, address, .. }, chains, mark } = self;
        let chain_text = |chain: &Chain| {
            let rules: String = chain.rules.iter().map(|rule| format!("    {rule} comment \"{mark}\"\n")).collect();
            format!("  chain {} {{\n{}{rules}  }}\n", chain.name, chain.hook)
        };
        let chains: String = chains.iter().map(chain_text).collect();
        format!(
            r#"
add table {table} {TABLE}
flush table {table} {TABLE}
table {table} {TABLE} {{
  map {PORTS} {{ type inet_proto . inet_service : {address} . inet_service; }}
  map {ADDRESS_PORTS} {{ type {address} . inet_proto . inet_service : {address} . inet_service; }}
  set {UNMASQUERADED} {{ type {address}; }}
{chains}}}
"#
        )
    }
}

/// Priorities are numbers, because not every version of the program has words for them in every chain: -300 comes
/// before connections are tracked, -100 is where destinations are translated, 99 comes just before sources are.
fn chains(words: &Words, bridge: &str) -> Vec<Chain> {
    let Words { table, exception, guard, loopback, .. } = words;
    let from_bridge = format!("iifname \"{bridge}\"");
    let to_bridge = format!("oifname \"{bridge}\"");
    let mut lead = vec!["fib daddr type != local return".to_owned()];
    lead.extend(exception.map(str::to_owned));
    lead.extend([
        format!("{from_bridge} meta mark set meta mark or {DECIDED_MARK:#x}"),
        format!("dnat {table} to {table} daddr . meta l4proto . th dport map @{ADDRESS_PORTS}"),
        format!("dnat {table} to meta l4proto . th dport map @{PORTS}"),
        format!("{from_bridge} meta mark set meta mark and {:#x}", !DECIDED_MARK),
    ]);
    let mut leave = vec![format!("{to_bridge} meta mark and {DECIDED_MARK:#x} == {DECIDED_MARK:#x} masquerade")];
    leave.extend(loopback.map(|from| format!("{to_bridge} {table} saddr {from} masquerade")));
    leave.push(format!(
        "oifname != \"{bridge}\" {table} saddr @{UNMASQUERADED} meta mark set meta mark or {DECIDED_MARK:#x}"
    ));
    let jump = vec![format!("jump {HOST_PORTS}")];
    let guard: Vec<String> = guard.iter().map(|rule| format!("{from_bridge} {rule}")).collect();
    [
        (HOST_PORTS, "", lead),
        ("guard", "    type filter hook prerouting priority -300; policy accept;\n", guard),
        ("prerouting", "    type nat hook prerouting priority -100; policy accept;\n", jump.clone()),
        ("output", "    type nat hook output priority -100; policy accept;\n", jump),
        ("postrouting", "    type nat hook postrouting priority 99; policy accept;\n", leave),
    ]
    .map(|(name, hook, rules)| Chain { name, hook, rules })
    .into_iter()
    .filter(|chain| !chain.rules.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(family: Family, bridge: &str) -> String {
        Rules::of(family, bridge).text()
    }

    #[test]
    fn each_family_has_its_own_table() {
        assert!(text(Family::V4, "cni0").contains("add table ip culvert\n"));
        assert!(text(Family::V6, "cni0").contains("add table ip6 culvert\n"));
    }

    #[test]
    fn only_ipv4_opens_the_loopback_and_so_only_ipv4_guards_it() {
        let (v4, v6) = (text(Family::V4, "br7"), text(Family::V6, "br7"));
        for rule in [
            "iifname \"br7\" ip saddr 127.0.0.0/8 drop",
            "iifname \"br7\" ip daddr 127.0.0.0/8 drop",
            "oifname \"br7\" ip saddr 127.0.0.0/8 masquerade",
        ] {
            assert!(v4.contains(rule) && !v6.contains(rule), "{rule}");
        }
        assert!(v6.contains("ip6 daddr ::1 return"));
    }

    #[test]
    fn one_bit_of_the_mark_is_set_and_only_that_one_is_taken_away_again() {
        let v4 = text(Family::V4, "cni0");
        assert!(v4.contains("mark or 0x1000") && v4.contains("mark and 0xffffefff"));
    }

    #[test]
    fn rules_stand_only_whole_and_unmixed() {
        let rules = Rules::of(Family::V4, "cni0");
        let rule = |chain: &str, mark: &str| Rule { chain: chain.to_owned(), user_data: format!("..{mark}\0").into() };
        let all: Vec<Rule> =
            rules.chains.iter().flat_map(|chain| chain.rules.iter().map(|_| rule(chain.name, &rules.mark))).collect();
        assert!(rules.stand_among(&all));
        for place in 0..all.len() {
            let mut without = all.clone();
            let taken = without.remove(place);
            assert!(!rules.stand_among(&without), "without {taken:?}");
            let foreign = rule(&taken.chain, "somebody's");
            assert!(!rules.stand_among(&[&without[..], &[foreign]].concat()), "{taken:?} replaced");
        }
        assert!(!rules.stand_among(&[&all[..], &[rule("input", &rules.mark)]].concat()));
        let other_bridge = Rules::of(Family::V4, "br7");
        assert!(!other_bridge.stand_among(&all), "rules of another version are other rules");
    }
}
