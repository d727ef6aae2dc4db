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

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::element::{ADDRESS_PORTS, PORTS, UNMASQUERADED};
use crate::DECIDED_MARK;
use crate::message::nftables::TABLE;

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
    exception: &'static str,
    /// Rules of the guard, with `{bridge}` for the bridge.
    guard: &'static [&'static str],
    /// Sources besides pods whose packets to a pod must come back through the node.
    loopback: Option<&'static str>,
}

const WORDS_V4: Words = Words {
    table: "ip",
    address: "ipv4_addr",
    exception: "",
    guard: &["ip saddr 127.0.0.0/8 drop", "ip daddr 127.0.0.0/8 drop"],
    loopback: Some("127.0.0.0/8"),
};
const WORDS_V6: Words =
    Words { table: "ip6", address: "ipv6_addr", exception: "ip6 daddr ::1 return", guard: &[], loopback: None };

/// Set the rules, whatever was there, in one transaction. Elements stay.
///
/// **Errors** [`NatTableError`]; then nothing was changed.
pub(crate) fn load(bridge: &str, ipv6: bool) -> Result<(), NatTableError> {
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
    // A program that ends before it has read everything says why; that is the better error.
    let _closed_early = nft.stdin.take().map(|mut stdin| stdin.write_all(text(bridge, ipv6).as_bytes()));
    let output = nft.wait_with_output().map_err(NatTableError::Unusable)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let reason = words.lines().find(|line| line.contains("Error")).unwrap_or(words.trim()).to_owned();
    Err(NatTableError::Refused { reason })
}

/// The rules of all families. Declaring what is there already changes nothing; `flush table` takes the rules, not
/// the elements.
fn text(bridge: &str, ipv6: bool) -> String {
    let families = if ipv6 { vec![&WORDS_V4, &WORDS_V6] } else { vec![&WORDS_V4] };
    families.into_iter().map(|words| family_text(words, bridge)).collect()
}

fn family_text(words: &Words, bridge: &str) -> String {
    let Words { table, address, exception, guard, loopback } = words;
    let guard: String = guard.iter().map(|rule| format!("    iifname \"{bridge}\" {rule}\n")).collect();
    let loopback = loopback.map(|from| format!("    oifname \"{bridge}\" {table} saddr {from} masquerade\n"));
    let loopback = loopback.unwrap_or_default();
    // Priorities are numbers, because not every version of the program has words for them in every chain:
    // -300 comes before connections are tracked, -100 is where destinations are translated, 99 comes
    // just before sources are.
    format!(
        r#"
add table {table} {TABLE}
flush table {table} {TABLE}
table {table} {TABLE} {{
  map {PORTS} {{ type inet_proto . inet_service : {address} . inet_service; }}
  map {ADDRESS_PORTS} {{ type {address} . inet_proto . inet_service : {address} . inet_service; }}
  set {UNMASQUERADED} {{ type {address}; }}
  chain host-ports {{
    fib daddr type != local return
    {exception}
    iifname "{bridge}" meta mark set meta mark or {DECIDED_MARK:#x}
    dnat {table} to {table} daddr . meta l4proto . th dport map @{ADDRESS_PORTS}
    dnat {table} to meta l4proto . th dport map @{PORTS}
    iifname "{bridge}" meta mark set meta mark and {:#x}
  }}
  chain guard {{
    type filter hook prerouting priority -300; policy accept;
{guard}  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    jump host-ports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump host-ports
  }}
  chain postrouting {{
    type nat hook postrouting priority 99; policy accept;
    oifname "{bridge}" meta mark and {DECIDED_MARK:#x} == {DECIDED_MARK:#x} masquerade
{loopback}    oifname != "{bridge}" {table} saddr @{UNMASQUERADED} meta mark set meta mark or {DECIDED_MARK:#x}
  }}
}}
"#,
        !DECIDED_MARK
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_table_and_ipv6_only_where_the_kernel_has_it() {
        let both = text("cni0", true);
        assert!(both.contains("add table ip culvert") && both.contains("add table ip6 culvert"));
        assert!(!text("cni0", false).contains("ip6"));
    }

    #[test]
    fn only_ipv4_opens_the_loopback_and_so_only_ipv4_guards_it() {
        let (v4, v6) = (family_text(&WORDS_V4, "br7"), family_text(&WORDS_V6, "br7"));
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
        let v4 = family_text(&WORDS_V4, "cni0");
        assert!(v4.contains("mark or 0x1000") && v4.contains("mark and 0xffffefff"));
    }
}
