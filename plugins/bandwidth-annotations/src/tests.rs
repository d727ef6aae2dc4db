//! The vectors of the policy: settings and a pod in, the shaping out.

use culvert_policy_sdk::labels::Labels;
use culvert_policy_sdk::log::Level;

use super::*;

const FULL: &str = r#"{
    "defaults": { "ingress": "100M", "egress": "20M" },
    "caps": { "ingress": "1G", "egress": "500M" },
    "tunnel": { "defaults": { "egress": "5M" }, "caps": { "ingress": "50M", "egress": "10M" } }
}"#;

fn rate(bits_per_second: u64) -> Option<Rate> {
    Some(rates::with_usual_burst(bits_per_second))
}

fn pod<const N: usize>(annotations: [(&str, &str); N]) -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "till-0".to_owned(),
        annotations: Labels::from(annotations),
        ..Pod::default()
    }
}

fn shape(settings: &str, pod: &Pod) -> Shaping {
    BandwidthAnnotations::configure(settings).unwrap().0.shape(pod).unwrap()
}

#[test]
fn a_pod_without_annotations_is_not_limited() {
    assert_eq!(shape("{}", &pod([])), Shaping::default());
}

#[test]
fn kubernetes_annotations_limit_all_traffic() {
    let annotated = pod([("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "512k")]);
    assert_eq!(
        shape("{}", &annotated),
        Shaping { total: Limits { ingress: rate(10_000_000), egress: rate(512_000) }, tunnel: Limits::default() }
    );
}

#[test]
fn tunnel_annotations_limit_the_tunnel_apart() {
    let annotated =
        pod([("culvert.dev/tunnel-ingress-bandwidth", "2Mi"), ("culvert.dev/tunnel-egress-bandwidth", "1M")]);
    assert_eq!(
        shape("{}", &annotated),
        Shaping { total: Limits::default(), tunnel: Limits { ingress: rate(2_097_152), egress: rate(1_000_000) } }
    );
}

#[test]
fn the_runtime_s_request_is_kept_with_its_burst_and_never_applies_to_the_tunnel() {
    let requested = Limits { ingress: Some(Rate { bits_per_second: 3_000_000, burst_bytes: 9_999 }), egress: None };
    let asking = Pod { requested, ..pod([]) };
    assert_eq!(shape("{}", &asking), Shaping { total: requested, tunnel: Limits::default() });
}

#[test]
fn defaults_and_caps_apply_to_each_of_the_four_rates() {
    assert_eq!(
        shape(FULL, &pod([])),
        Shaping {
            total: Limits { ingress: rate(100_000_000), egress: rate(20_000_000) },
            tunnel: Limits { ingress: rate(50_000_000), egress: rate(5_000_000) },
        }
    );
    let greedy = pod([
        ("kubernetes.io/ingress-bandwidth", "10G"),
        ("kubernetes.io/egress-bandwidth", "10G"),
        ("culvert.dev/tunnel-ingress-bandwidth", "10G"),
        ("culvert.dev/tunnel-egress-bandwidth", "10G"),
    ]);
    assert_eq!(
        shape(FULL, &greedy),
        Shaping {
            total: Limits { ingress: rate(1_000_000_000), egress: rate(500_000_000) },
            tunnel: Limits { ingress: rate(50_000_000), egress: rate(10_000_000) },
        }
    );
}

#[test]
fn a_malformed_annotation_is_ignored_and_named_in_the_log() {
    let requested = Limits { ingress: rate(3_000_000), egress: None };
    let wrong = Pod {
        requested,
        ..pod([("kubernetes.io/ingress-bandwidth", "10Mbps"), ("kubernetes.io/egress-bandwidth", "7M")])
    };
    assert_eq!(
        shape("{}", &wrong),
        Shaping { total: Limits { ingress: rate(3_000_000), egress: rate(7_000_000) }, tunnel: Limits::default() }
    );
    assert_eq!(
        log::taken(),
        [(
            Level::Warn,
            "pod shop/till-0: ignoring kubernetes.io/ingress-bandwidth=10Mbps: no quantity such as 10M".to_owned()
        )]
    );
}

#[test]
fn annotations_of_others_are_none_of_our_business() {
    assert_eq!(shape("{}", &pod([("example.com/ingress-bandwidth", "10M")])), Shaping::default());
}

#[test]
fn the_policy_wants_the_four_annotations() {
    let (_, description) = BandwidthAnnotations::configure("{}").unwrap();
    let wants = [
        "kubernetes.io/ingress-bandwidth",
        "kubernetes.io/egress-bandwidth",
        "culvert.dev/tunnel-ingress-bandwidth",
        "culvert.dev/tunnel-egress-bandwidth",
    ];
    let expected = Description {
        name: "bandwidth-annotations".to_owned(),
        version: "0.1.0".to_owned(),
        wants: wants.map(|key| Want::PodAnnotation(key.to_owned())).to_vec(),
    };
    assert_eq!(description, expected);
}

#[test]
fn wrong_settings_are_refused_by_key() {
    for (settings, reason) in [
        (r#"{"default": {}}"#, "unknown key `default`; known keys: defaults, caps, tunnel"),
        (r#"{"caps": {"in": "1M"}}"#, "unknown key `caps.in`; known keys: ingress, egress"),
        (r#"{"caps": {"ingress": 1000000}}"#, "`caps.ingress`: expected text, found a number"),
        (r#"{"tunnel": {"caps": {"egress": "10 M"}}}"#, "`tunnel.caps.egress`: 10 M: no quantity such as 10M"),
        (r#"{"tunnel": {"cap": {}}}"#, "unknown key `tunnel.cap`; known keys: defaults, caps"),
        (r#"{"defaults": {"ingress": "10"}}"#, "`defaults.ingress`: 10: outside 1k to 1P bit/s"),
    ] {
        assert_eq!(BandwidthAnnotations::configure(settings), Err(PolicyError::invalid_settings(reason)), "{settings}");
    }
}
