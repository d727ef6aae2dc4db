//! Routes of every kind, in both families, replaced without a gap.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use culvert_core::plan::{KernelRoute, KernelVia, Plan, Step};
use culvert_kernel::{ApplyError, Kernel};
use rustix::fd::AsFd;
use rustix::thread::LinkNameSpaceType;

use crate::namespace::{Namespace, ip, net, spec, uplink};

/// One route of each kind to the same destination.
fn kinds(v6: bool) -> Vec<KernelRoute> {
    let (to, gateway, source) = if v6 {
        ("fd00:244:0:9::/64", "2001:db8::2", "fd00:244:0:1::1")
    } else {
        ("10.244.9.0/24", "192.0.2.2", "10.244.1.1")
    };
    let forwards = |via, mtu_bytes| KernelRoute { to: net(to), via, source: Some(ip(source)), mtu_bytes };
    let ends = |via| KernelRoute { to: net(to), via, source: None, mtu_bytes: None };
    vec![
        forwards(KernelVia::Bridge, None),
        forwards(KernelVia::NextHop(ip(gateway)), None),
        forwards(KernelVia::Tunnel, Some(1320)),
        forwards(KernelVia::Tunnel, Some(1340)),
        ends(KernelVia::Throw),
        ends(KernelVia::Prohibit),
    ]
}

async fn set(kernel: &mut Kernel, route: KernelRoute, before: Option<KernelRoute>) {
    kernel.apply(&Plan { steps: vec![Step::SetRoute { route, before }] }, None).await.unwrap();
}

#[test]
fn every_kind_replaces_every_kind_and_stays_alone() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        for v6 in [false, true] {
            for old in kinds(v6) {
                for new in kinds(v6) {
                    set(kernel, old, None).await;
                    set(kernel, new, Some(old)).await;
                    let observed = kernel.observe().await.unwrap();
                    assert_eq!(
                        (observed.routes, observed.strange_routes),
                        (vec![new], Vec::new()),
                        "{old:?} to {new:?}"
                    );
                }
            }
            let remove = Plan { steps: vec![Step::RemoveRoute { route: kinds(v6)[0] }] };
            for _ in 0..2 {
                kernel.apply(&remove, None).await.unwrap();
                assert_eq!(kernel.observe().await.unwrap().routes, []);
            }
        }
    });
}

#[test]
fn a_failed_change_of_routes_restores_those_before_it() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        for v6 in [false, true] {
            let all = kinds(v6);
            let (direct, tunnel) = (all[1], all[2]);
            set(kernel, direct, None).await;
            let before = kernel.observe().await.unwrap().routes;
            let fresh = KernelRoute { to: net(if v6 { "fd00:244:0:8::/64" } else { "10.244.8.0/24" }), ..tunnel };
            let off_link = ip(if v6 { "2001:db8:77::1" } else { "203.0.113.1" });
            let impossible = KernelRoute { via: KernelVia::NextHop(off_link), ..fresh };
            let steps = vec![
                Step::SetRoute { route: tunnel, before: Some(direct) },
                Step::SetRoute { route: fresh, before: None },
                Step::SetRoute { route: impossible, before: Some(fresh) },
            ];
            let error = kernel.apply(&Plan { steps }, None).await.unwrap_err();
            assert!(matches!(&error, ApplyError::Refused { position: 2, .. }), "{error:?}");
            assert_eq!(error.undo_failures(), []);
            assert_eq!(kernel.observe().await.unwrap().routes, before);
        }
    });
}

#[test]
fn a_route_over_a_link_that_is_gone_is_impossible_and_changes_nothing() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        node.run("ip link del culvert0");
        let all = kinds(false);
        let steps =
            vec![Step::SetRoute { route: all[4], before: None }, Step::SetRoute { route: all[2], before: None }];
        let error = kernel.apply(&Plan { steps }, None).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Impossible { position: 1, .. }), "{error:?}");
        assert_eq!(kernel.observe().await.unwrap().routes, []);
    });
}

#[test]
fn more_routes_than_one_send_holds_are_all_set() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        let route = |number: u32| KernelRoute {
            to: net(&format!("10.244.{}.{}/32", number / 250, number % 250)),
            ..kinds(false)[2]
        };
        let mut expected: Vec<KernelRoute> = (0..1000).map(route).collect();
        let steps = expected.iter().map(|route| Step::SetRoute { route: *route, before: None }).collect();
        kernel.apply(&Plan { steps }, None).await.unwrap();
        expected.sort();
        assert_eq!(kernel.observe().await.unwrap().routes, expected);
    });
}

/// How many lookups must have happened while routes were replaced.
const LOOKUPS: u32 = 2_000;

/// The kernel answers every lookup with the route's own source; were there a moment without a route, the default
/// route of `main` would answer, with another.
#[test]
fn replacing_leaves_no_moment_without_a_route() {
    let node = Namespace::new();
    let _far = uplink(&node);
    node.run("ip route add default via 192.0.2.2");
    node.run("ip -6 route add default via 2001:db8::2");
    node.with_kernel(async |kernel| {
        kernel.ensure_node(&spec()).await.unwrap();
        for (v6, target) in [(false, "10.244.9.9:9"), (true, "[fd00:244:0:9::9]:9")] {
            let forwarding: Vec<KernelRoute> = kinds(v6).into_iter().filter(|route| route.source.is_some()).collect();
            set(kernel, forwarding[0], None).await;
            let lookups = Arc::new(AtomicU32::new(0));
            let (counter, namespace) = (Arc::clone(&lookups), node.descriptor());
            let watcher = std::thread::spawn(move || {
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                sources_used(target.parse().unwrap(), &counter)
            });
            let mut replaced = 0;
            while lookups.load(Ordering::Relaxed) < LOOKUPS {
                let (old, new) = (forwarding[replaced % 4], forwarding[(replaced + 1) % 4]);
                set(kernel, new, Some(old)).await;
                replaced += 1;
            }
            assert_eq!(watcher.join().unwrap(), BTreeSet::from([forwarding[0].source.unwrap()]));
            assert!(replaced > 10, "only {replaced} replacements");
        }
    });
}

/// The source addresses the kernel chose for a target, over many lookups.
fn sources_used(target: SocketAddr, lookups: &AtomicU32) -> BTreeSet<IpAddr> {
    let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let mut sources = BTreeSet::new();
    while lookups.fetch_add(1, Ordering::Relaxed) < LOOKUPS {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(target).unwrap();
        sources.insert(socket.local_addr().unwrap().ip());
    }
    sources
}
