//! The static rules of one family as text: pure.
//!
//! What must be dropped is dropped in `mangle`, whose verdict no `ACCEPT` of another chain of `filter`
//! can forestall; what must be let through is accepted at the head of `filter`, against a default of `DROP`.

use ipnet::IpNet;

use crate::node::NodeSpec;
use crate::{DECIDED_MARK, POD_LINK_PREFIX};

/// A chain of ours, the chain that jumps to it, and its rules in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) table: &'static str,
    pub(crate) name: &'static str,
    pub(crate) hook: &'static str,
    pub(crate) rules: Vec<String>,
}

/// What a family calls things.
struct Words {
    icmp: &'static str,
    /// ICMP that would change how the node routes; a peer has no business sending it.
    forged: &'static [&'static str],
    multicast: &'static str,
}

const WORDS_V4: Words = Words { icmp: "-p icmp", forged: &["-p icmp -m icmp --icmp-type 5"], multicast: "224.0.0.0/4" };
/// 133 to 137: router solicitation and advertisement, neighbour solicitation and advertisement, redirect.
const WORDS_V6: Words = Words {
    icmp: "-p ipv6-icmp",
    forged: &[
        "-p ipv6-icmp -m icmp6 --icmpv6-type 133",
        "-p ipv6-icmp -m icmp6 --icmpv6-type 134",
        "-p ipv6-icmp -m icmp6 --icmpv6-type 135",
        "-p ipv6-icmp -m icmp6 --icmpv6-type 136",
        "-p ipv6-icmp -m icmp6 --icmpv6-type 137",
    ],
    multicast: "ff00::/8",
};

/// All chains of a family. A chain that must be empty has no rules, and then no jump either.
pub(crate) fn chains(spec: &NodeSpec, ipv6: bool) -> Vec<Chain> {
    let words = if ipv6 { &WORDS_V6 } else { &WORDS_V4 };
    let prefixes: Vec<IpNet> =
        spec.cluster_prefixes.iter().filter(|prefix| prefix.addr().is_ipv6() == ipv6).copied().collect();
    vec![
        Chain { table: "mangle", name: "CULVERT-INPUT", hook: "INPUT", rules: input(spec, words) },
        Chain { table: "mangle", name: "CULVERT-TRANSIT", hook: "FORWARD", rules: transit(spec) },
        Chain { table: "filter", name: "CULVERT-FORWARD", hook: "FORWARD", rules: forward(spec, &prefixes) },
        Chain { table: "nat", name: "CULVERT-MASQ", hook: "POSTROUTING", rules: masquerade(spec, words, &prefixes) },
    ]
}

/// Towards the node itself, gateway included: from the tunnel only replies and ICMP (kubelet listens on every
/// address); from a host end itself nothing at all. What a pod sends to the node comes in by the bridge.
fn input(spec: &NodeSpec, words: &Words) -> Vec<String> {
    let tun = &spec.tun;
    let mut rules = vec![format!("-i {tun} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")];
    // A redirect can be "related" to a connection of ours, so these go before.
    let forged = words.forged.iter().map(|what| format!("-i {tun} {what} -j DROP"));
    rules.splice(0..0, forged);
    rules.push(format!("-i {tun} {} -j RETURN", words.icmp));
    rules.push(format!("-i {tun} -j DROP"));
    rules.push(format!("-i {POD_LINK_PREFIX}+ -j DROP"));
    rules
}

/// What comes out of the tunnel goes to a pod here or nowhere: no peer reaches a third party through us.
fn transit(spec: &NodeSpec) -> Vec<String> {
    vec![format!("-i {} ! -o {} -j DROP", spec.tun, spec.bridge)]
}

/// Pods may talk: to each other, to peers, to the underlay and back.
fn forward(spec: &NodeSpec, prefixes: &[IpNet]) -> Vec<String> {
    let both = |prefix: &IpNet| {
        [format!("-s {prefix} -i {} -j ACCEPT", spec.bridge), format!("-d {prefix} -o {} -j ACCEPT", spec.bridge)]
    };
    prefixes.iter().flat_map(both).collect()
}

/// Pods leave the cluster under the node's address, and stay themselves inside it. What the NAT table has marked
/// stays as it is: an exempt pod's packets, for one.
fn masquerade(spec: &NodeSpec, words: &Words, prefixes: &[IpNet]) -> Vec<String> {
    if !spec.masquerade || prefixes.is_empty() {
        return Vec::new();
    }
    let mut rules = vec![format!("-m mark --mark {DECIDED_MARK:#x}/{DECIDED_MARK:#x} -j RETURN")];
    rules.extend(prefixes.iter().map(|prefix| format!("-d {prefix} -j RETURN")));
    rules.push(format!("-d {} -j RETURN", words.multicast));
    rules.extend([&spec.bridge, &spec.tun].map(|link| format!("-o {link} -j RETURN")));
    rules.extend(prefixes.iter().map(|prefix| format!("-s {prefix} -j MASQUERADE")));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(masquerade: bool) -> NodeSpec {
        NodeSpec {
            bridge: "cni0".into(),
            tun: "culvert0".into(),
            bridge_mtu_bytes: 1400,
            tun_mtu_bytes: 1400,
            tun_queues: 1,
            gateways: Vec::new(),
            cluster_prefixes: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
            masquerade,
        }
    }

    fn rules_of(chain: &str, ipv6: bool, masquerade: bool) -> Vec<String> {
        let found = chains(&spec(masquerade), ipv6).into_iter().find(|one| one.name == chain);
        found.unwrap().rules
    }

    #[test]
    fn each_family_masquerades_its_own_prefixes_only_when_they_leave_the_cluster() {
        let expected = [
            "-m mark --mark 0x1000/0x1000 -j RETURN",
            "-d fd00:244::/48 -j RETURN",
            "-d ff00::/8 -j RETURN",
            "-o cni0 -j RETURN",
            "-o culvert0 -j RETURN",
            "-s fd00:244::/48 -j MASQUERADE",
        ];
        assert_eq!(rules_of("CULVERT-MASQ", true, true), expected);
        assert_eq!(rules_of("CULVERT-MASQ", true, false), Vec::<String>::new());
    }

    #[test]
    fn forged_icmp_is_dropped_before_anything_from_the_tunnel_is_let_through() {
        let expected = [
            "-i culvert0 -p icmp -m icmp --icmp-type 5 -j DROP",
            "-i culvert0 -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
            "-i culvert0 -p icmp -j RETURN",
            "-i culvert0 -j DROP",
            "-i cv+ -j DROP",
        ];
        assert_eq!(rules_of("CULVERT-INPUT", false, true), expected);
        assert_eq!(rules_of("CULVERT-INPUT", true, true).len(), 9);
    }

    #[test]
    fn chain_names_fit_the_kernel() {
        assert!(
            chains(&spec(true), false).iter().all(|chain| chain.name.len() <= 28 && chain.name.starts_with("CULVERT-"))
        );
    }
}
