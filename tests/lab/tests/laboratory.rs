//! The laboratory proves itself: its NAT is one, its sites overlap, its probes count exactly, and it leaves nothing.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

use std::path::PathBuf;
use std::time::Duration;

use culvert_lab::namespace::Place;
use culvert_lab::probe::Vantage;
use culvert_lab::{Lab, Namespace, Site, Snapshot};

const INTERVAL: Duration = Duration::from_millis(5);

fn vantage(place: &Place) -> Vantage<'_> {
    Vantage { namespace: place, program: PathBuf::from(env!("CARGO_BIN_EXE_lab-probe")) }
}

/// Two namespaces on one segment: 10.9.0.1, fd09::1 and 10.9.0.2, fd09::2.
fn pair(lab: &Lab) -> (Namespace, Namespace) {
    let (left, right) = (lab.namespace("left").unwrap(), lab.namespace("right").unwrap());
    left.ip(&format!("link add eth0 type veth peer name eth0 netns {}", right.name())).unwrap();
    for (namespace, last) in [(&left, 1), (&right, 2)] {
        namespace.ip("link set eth0 up").unwrap();
        namespace.ip(&format!("address add 10.9.0.{last}/24 dev eth0")).unwrap();
        namespace.ip(&format!("address add fd09::{last}/64 dev eth0 nodad")).unwrap();
    }
    (left, right)
}

#[test]
fn a_site_masquerades_what_leaves_and_drops_what_was_not_asked_for() {
    let lab = Lab::new().unwrap();
    let cloud = lab.public_host("cloud", 10).unwrap();
    let site = Site::behind_nat(&lab, "a", 21).unwrap();
    let edge = site.host(&lab, "edge", 11).unwrap();
    let serving = vantage(&cloud.namespace).serve().unwrap();

    let report = vantage(&edge.namespace).fetch("198.51.100.10".parse().unwrap(), 100_000).unwrap();
    assert!(report.ok, "{report:?}");
    // The cloud has no route to 192.168.1.0/24, so the answer came to the router's own address.
    let neighbours = cloud.namespace.ip("neigh show").unwrap();
    assert!(neighbours.contains("198.51.100.21") && !neighbours.contains("192.168.1."), "{neighbours}");

    let inwards = vantage(&cloud.namespace);
    assert!(!inwards.connect("198.51.100.21".parse().unwrap(), 22).unwrap().connected);
    assert_eq!(inwards.ping("198.51.100.21".parse().unwrap(), 3, INTERVAL).unwrap().received, 0);
    cloud.namespace.ip("route add 192.168.1.0/24 via 198.51.100.21").unwrap();
    assert_eq!(inwards.ping("192.168.1.11".parse().unwrap(), 3, INTERVAL).unwrap().received, 0);
    drop(serving);
}

#[test]
fn two_sites_have_the_same_addresses_and_do_not_see_each_other() {
    let lab = Lab::new().unwrap();
    let sites = [Site::behind_nat(&lab, "a", 21).unwrap(), Site::behind_nat(&lab, "b", 22).unwrap()];
    let first = sites[0].host(&lab, "edge-1", 11).unwrap();
    let neighbour = sites[0].host(&lab, "edge-2", 12).unwrap();
    let other = sites[1].host(&lab, "edge-3", 11).unwrap();
    assert_eq!(first.addresses, other.addresses);
    for address in neighbour.addresses {
        assert_eq!(vantage(&first.namespace).ping(address, 3, INTERVAL).unwrap().lost, 0, "{address}");
        assert_eq!(vantage(&other.namespace).ping(address, 3, INTERVAL).unwrap().received, 0, "{address}");
    }
}

#[test]
fn the_ping_counts_exactly_what_the_network_drops() {
    let lab = Lab::new().unwrap();
    let (left, right) = pair(&lab);
    right.run("nft add table ip drops").unwrap();
    right.run("nft add chain ip drops input { type filter hook input priority 0 ; }").unwrap();
    right.run("nft add rule ip drops input icmp type echo-request numgen inc mod 10 == 3 drop").unwrap();
    let report = vantage(&left).ping("10.9.0.2".parse().unwrap(), 100, INTERVAL).unwrap();
    assert_eq!((report.sent, report.received, report.lost, report.duplicates, report.unsent), (100, 90, 10, 0, 0));
    let report = vantage(&left).ping("fd09::2".parse().unwrap(), 50, INTERVAL).unwrap();
    assert_eq!((report.sent, report.received, report.lost), (50, 50, 0));
}

#[test]
fn the_ping_sees_an_outage_as_loss_and_gap() {
    let lab = Lab::new().unwrap();
    let (left, right) = pair(&lab);
    let pinging = vantage(&left).pinging("10.9.0.2".parse().unwrap(), INTERVAL).unwrap();
    right.ip("link set eth0 down").unwrap();
    let outage = vantage(&left).ping("10.9.0.2".parse().unwrap(), 20, INTERVAL).unwrap();
    assert_eq!(outage.received, 0);
    right.ip("link set eth0 up").unwrap();
    vantage(&left).wait_reachable("10.9.0.2".parse().unwrap()).unwrap();
    let report = pinging.finish().unwrap();
    assert!(report.lost >= 15 && report.max_gap_ms >= 100.0, "{report:?}");
    assert_eq!(report.sent, report.received + report.lost);
}

#[test]
fn a_stream_survives_an_outage_and_says_how_long_it_stalled() {
    let lab = Lab::new().unwrap();
    let (left, right) = pair(&lab);
    let _serving = vantage(&right).serve().unwrap();
    let streaming = vantage(&left).streaming("fd09::2".parse().unwrap()).unwrap();
    right.run("nft add table ip6 drops").unwrap();
    right.run("nft add chain ip6 drops input { type filter hook input priority 0 ; policy drop ; }").unwrap();
    assert_eq!(vantage(&left).ping("fd09::2".parse().unwrap(), 40, INTERVAL).unwrap().received, 0);
    right.run("nft delete table ip6 drops").unwrap();
    let report = streaming.finish().unwrap();
    assert!(!report.broken && report.sent == report.echoed && report.longest_stall_ms >= 200.0, "{report:?}");
}

#[test]
fn a_stream_to_a_server_that_goes_away_is_broken() {
    let lab = Lab::new().unwrap();
    let (left, right) = pair(&lab);
    let serving = vantage(&right).serve().unwrap();
    let streaming = vantage(&left).streaming("10.9.0.2".parse().unwrap()).unwrap();
    drop(serving);
    // The end of the connection arrived before this answer, on the same link.
    assert_eq!(vantage(&left).ping("10.9.0.2".parse().unwrap(), 1, INTERVAL).unwrap().lost, 0);
    let report = streaming.finish().unwrap();
    assert!(report.broken, "{report:?}");
}

#[test]
fn a_running_transfer_shows_its_rate_and_ends_with_a_checksum() {
    let lab = Lab::new().unwrap();
    let (left, right) = pair(&lab);
    let _serving = vantage(&right).serve().unwrap();
    right.run("tc qdisc add dev eth0 root tbf rate 20mbit burst 32kb latency 50ms").unwrap();
    let mut fetching = vantage(&left).fetching("10.9.0.2".parse().unwrap()).unwrap();
    let rate = fetching.rate_over(Duration::from_secs(1)).unwrap();
    assert!((12.0..24.0).contains(&rate), "{rate}");
    let report = fetching.finish().unwrap();
    assert!(report.ok, "{report:?}");
}

#[test]
fn datagrams_are_counted_at_both_ends() {
    let lab = Lab::new().unwrap();
    let (left, right) = pair(&lab);
    let receiving = vantage(&right).receive_datagrams(9).unwrap();
    let sent = vantage(&left).send_datagrams("10.9.0.2".parse().unwrap(), 9, 1000, 10_000).unwrap();
    assert_eq!((sent.datagrams, receiving.finish().unwrap().datagrams), (1000, 1000));
}

#[test]
fn a_lab_leaves_nothing_behind_even_when_its_test_panics() {
    let prefix = std::thread::spawn(|| {
        let lab = Lab::new().unwrap();
        let site = Site::behind_nat(&lab, "a", 21).unwrap();
        let host = site.host(&lab, "edge", 11).unwrap();
        let _serving = vantage(&host.namespace).serve().unwrap();
        std::panic::panic_any((lab.prefix().to_owned(), lab.folder().to_owned()));
    })
    .join()
    .unwrap_err();
    let (prefix, folder) = *prefix.downcast::<(String, PathBuf)>().unwrap();
    assert_eq!(culvert_lab::namespace::list(&prefix).unwrap(), Vec::<String>::new());
    assert!(!folder.exists());
}

#[test]
fn a_snapshot_sees_every_kind_of_leftover_and_nothing_else() {
    let lab = Lab::new().unwrap();
    let (left, _right) = pair(&lab);
    let take = || {
        let mut snapshot = Snapshot::default();
        snapshot.add_namespace(left.name()).unwrap();
        snapshot
    };
    let before = take();
    for (add, remove) in [
        ("ip link add dummy9 type bridge", "ip link del dummy9"),
        ("ip address add 10.9.9.9/32 dev eth0", "ip address del 10.9.9.9/32 dev eth0"),
        ("ip route add 10.8.0.0/16 via 10.9.0.2", "ip route del 10.8.0.0/16"),
        ("ip -6 route add fd08::/16 via fd09::2", "ip -6 route del fd08::/16"),
        ("ip rule add from all lookup 77 priority 77", "ip rule del priority 77"),
        ("ip -6 rule add from all lookup 77 priority 77", "ip -6 rule del priority 77"),
        ("tc qdisc add dev eth0 root tbf rate 1mbit burst 10kb latency 5ms", "tc qdisc del dev eth0 root"),
        ("iptables -A FORWARD -i eth9 -j DROP", "iptables -D FORWARD -i eth9 -j DROP"),
        ("ip6tables -A FORWARD -i eth9 -j DROP", "ip6tables -D FORWARD -i eth9 -j DROP"),
        ("nft add table inet leftover", "nft delete table inet leftover"),
    ] {
        left.run(add).unwrap();
        assert_ne!(before.difference(&take()), Vec::<String>::new(), "{add}");
        left.run(remove).unwrap();
        assert_eq!(before.difference(&take()), Vec::<String>::new(), "{remove}");
    }
}
