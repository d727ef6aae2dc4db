//! Attaching pods: what works, and what is left after every possible failure.

use culvert_core::bandwidth::Rate;
use culvert_core::plan::{Plan, PodRoute, Step};
use culvert_kernel::{ApplyError, PodNamespace};

use crate::namespace::{Namespace, Pod, assert_same, attach, attachment, ip, net, spec, veth, wait_for};
use crate::packet::send_router_advertisement;

#[test]
fn a_pod_reaches_its_gateway_and_its_neighbour_in_both_families() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let one = attach(kernel, links, 5).await;
        let two = attach(kernel, links, 6).await;
        for address in ["10.244.1.1", "fd00:244:0:1::1", "10.244.1.6", "fd00:244:0:1::6"] {
            assert!(one.pings(address), "{address}");
        }
        assert!(two.pings("10.244.1.5"));
        let host_end = node.run("ip -d -o link show cvtest5");
        for expected in ["hairpin on", "master cni0", "group 67", "numtxqueues 1", "state UP"] {
            assert!(host_end.contains(expected), "{expected} in {host_end}");
        }
        assert_eq!(node.run("ip -6 -o addr show dev cvtest5"), "");
        assert_eq!(node.sysctl("ipv6/conf/cvtest5/disable_ipv6"), "1");
        assert!(one.namespace.run("ip -o link show eth0").contains("0a:58:0a:f4:01:05"));
    });
}

#[test]
fn a_host_end_is_deleted_once_and_gone_is_fine() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let pod = attach(kernel, links, 5).await;
        let plan = Plan { steps: vec![Step::DeleteLink { name: "cvtest5".into() }] };
        for _ in 0..2 {
            kernel.apply(&plan, None).await.unwrap();
            assert!(!kernel.observe().await.unwrap().links.iter().any(|link| link.name == "cvtest5"));
        }
        assert!(!pod.namespace.attempt("ip link show eth0").status.success());
    });
}

/// Both namespaces as they are.
fn both(node: &Namespace, pod: &Pod) -> String {
    format!("{}POD\n{}", node.snapshot(), pod.namespace.snapshot())
}

/// The whole of an attachment with both limits; `number` is the pod's.
fn full_plan(kernel: &mut culvert_kernel::Kernel, links: culvert_kernel::NodeLinks) -> Plan {
    let veth = veth(kernel, links, 5);
    let rate = Rate { bits_per_second: 16_000_000, burst_bytes: 65_536 };
    let mut plan = attachment(veth, 5);
    plan.steps.push(Step::ShapeIngress { host_name: "cvtest5".into(), rate, before: None });
    let (host_name, ifb_name) = ("cvtest5".into(), "cvifb5".into());
    plan.steps.push(Step::ShapeEgress { host_name, ifb_name, rate, before: None });
    plan
}

#[test]
fn a_plan_that_fails_at_any_step_leaves_nothing() {
    let node = Namespace::new();
    let pod = Pod::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let before = both(&node, &pod);
        let steps = full_plan(kernel, links).steps.len();
        // A step that no kernel can carry out, put in at every place of the plan: it reaches the kernel in the
        // same send as the others, which all succeed.
        for position in 1..=steps {
            let mut plan = full_plan(kernel, links);
            let Some(Step::CreateVeth(made)) = plan.steps.first().cloned() else {
                panic!("a plan starts with its veth")
            };
            let impossible = Step::PodRoute {
                index: made.pod_index,
                route: PodRoute::new(net("198.51.100.0/24"), Some(ip("203.0.113.1"))),
            };
            plan.steps.insert(position, impossible);
            let error = kernel.apply(&plan, Some(&pod.passed)).await.unwrap_err();
            assert!(
                matches!(&error, ApplyError::Refused { position: at, .. } if *at == position),
                "{position}: {error:?}"
            );
            assert_eq!(error.errno(), Some(libc::ENETUNREACH));
            assert_eq!(error.undo_failures(), []);
            assert_same(&before, &both(&node, &pod));
        }
        let plan = full_plan(kernel, links);
        kernel.apply(&plan, Some(&pod.passed)).await.unwrap();
    });
}

#[test]
fn names_and_addresses_in_use_are_refused_and_their_owners_stay() {
    let node = Namespace::new();
    let pod = Pod::new();
    node.run("ip link add cvtest5 type veth peer name taken");
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let host_taken = both(&node, &pod);
        let plan = full_plan(kernel, links);
        let error = kernel.apply(&plan, Some(&pod.passed)).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Refused { position: 0, .. }), "{error:?}");
        assert_eq!((error.errno(), error.undo_failures()), (Some(libc::EEXIST), [].as_slice()));
        assert_same(&host_taken, &both(&node, &pod));
        node.run("ip link del cvtest5");

        pod.namespace.run("ip link add eth0 type veth peer name taken");
        let pod_taken = both(&node, &pod);
        let plan = full_plan(kernel, links);
        let error = kernel.apply(&plan, Some(&pod.passed)).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Refused { position: 0, .. }), "{error:?}");
        assert_same(&pod_taken, &both(&node, &pod));
        pod.namespace.run("ip link del eth0");

        let clean = both(&node, &pod);
        let mut plan = full_plan(kernel, links);
        plan.steps.insert(3, plan.steps[2].clone());
        let error = kernel.apply(&plan, Some(&pod.passed)).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Refused { position: 3, .. }), "{error:?}");
        assert_same(&clean, &both(&node, &pod));

        let mut plan = full_plan(kernel, links);
        if let Some(Step::CreateVeth(veth)) = plan.steps.first_mut() {
            veth.bridge_index = 0x7000_0000;
        }
        let error = kernel.apply(&plan, Some(&pod.passed)).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Refused { position: 0, .. }), "{error:?}");
        assert_same(&clean, &both(&node, &pod));
    });
}

#[test]
fn a_namespace_that_is_no_pods_is_refused_before_anything_is_made() {
    let node = Namespace::new();
    let pod = Pod::new();
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let before = node.snapshot();
        let plan = full_plan(kernel, links);
        let own = PodNamespace { netns: node.descriptor(), rtnetlink: pod.passed.rtnetlink.try_clone().unwrap() };
        let file = PodNamespace { netns: pod.namespace.descriptor(), rtnetlink: pod.namespace.descriptor() };
        for wrong in [own, file] {
            let error = kernel.apply(&plan, Some(&wrong)).await.unwrap_err();
            assert!(matches!(error, ApplyError::BadNamespace { .. }), "{error:?}");
        }
        let error = kernel.apply(&plan, None).await.unwrap_err();
        assert!(matches!(error, ApplyError::Impossible { position: 0, .. }), "{error:?}");
        assert_same(&before, &node.snapshot());
    });
}

#[test]
fn indexes_are_never_given_twice_not_even_by_two_owners() {
    let node = Namespace::new();
    node.with_kernel(async |kernel| {
        let mut second = culvert_kernel::Kernel::open().await.unwrap();
        let mut all: Vec<u32> = (0..500).flat_map(|_| [kernel.free_index(), second.free_index()]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1000);
        assert!(all.iter().all(|index| i32::try_from(*index).is_ok()));
    });
}

/// Everything on this node is willing to believe advertisements, as an operator's defaults might have it: only
/// our own measures stand between the pod and the node.
#[test]
fn router_advertisements_from_a_pod_have_no_effect() {
    let node = Namespace::new();
    node.set_sysctl("ipv6/conf/default/accept_ra", "2");
    node.with_kernel(async |kernel| {
        let links = kernel.ensure_node(&spec()).await.unwrap();
        let pod = attach(kernel, links, 5).await;
        // The control: a link of nobody, beside which the same message does take effect.
        let stranger = Namespace::new();
        node.run(&format!("ip link add willing type veth peer name eth0 netns {}", stranger.name));
        node.run("ip link set willing up");
        stranger.run("ip link set eth0 up");
        let before = node.snapshot().replace("tentative", "");
        assert!(!before.contains("2001:db8:bad:"));
        for from in [&pod.namespace, &stranger] {
            wait_for("a link-local address", || {
                let addresses = from.run("ip -6 -o addr show dev eth0 scope link");
                (addresses.contains("fe80") && !addresses.contains("tentative")).then_some(())
            });
        }
        // To the bridge group's address the frame skips the bridge and goes to its port.
        pod.namespace.run("ip -6 neigh replace fd00:244:0:1::1 lladdr 01:80:c2:00:00:0e dev eth0 nud permanent");
        pod.namespace.inside(|| {
            send_router_advertisement("ff02::1", "2001:db8:bad:1::");
            send_router_advertisement("fd00:244:0:1::1", "2001:db8:bad:2::");
        });
        stranger.inside(|| send_router_advertisement("ff02::1", "2001:db8:bad:3::"));
        wait_for("the control to take effect", || node.run("ip -6 route").contains("2001:db8:bad:3::").then_some(()));
        let after = format!("{}{}", node.run("ip -6 route show table all"), node.run("ip -6 addr"));
        assert!(!after.contains("2001:db8:bad:1::") && !after.contains("2001:db8:bad:2::"), "{after}");
        assert!(!node.run("ip -6 route").lines().any(|line| line.contains("default") && !line.contains("willing")));
    });
}
