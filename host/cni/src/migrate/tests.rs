//! Conflists as users have them, and what becomes of them.

use proptest::prelude::{any, prop, proptest};
use proptest::{prop_assert, prop_assert_eq};

use super::*;
use crate::frame;
use crate::request::Request;

const GUIDE: &str = include_str!("fixtures/guide.conflist");
const GUIDE_DUAL_STACK: &str = include_str!("fixtures/guide-dual-stack.conflist");

fn migrated(document: &Value) -> Migration {
    conflist(&document.to_string()).unwrap()
}

fn parsed(migration: &Migration) -> Value {
    serde_json::from_str(&migration.text).unwrap()
}

fn texts(migration: &Migration, kind: NoteKind) -> Vec<&str> {
    migration.notes.iter().filter(|note| note.kind == kind).map(|note| note.text.as_str()).collect()
}

fn all_capabilities() -> Value {
    CAPABILITIES.into_iter().map(|key| (key.to_owned(), Value::Bool(true))).collect::<Object>().into()
}

/// A conflist with these plugins.
fn list(plugins: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins})
}

/// What a runtime gives a plugin on standard input.
fn add(list: &Value, entry: &Value) -> Result<Request, String> {
    let mut config = entry.clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    let variables = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
    let env = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let call = frame::Request { env, stdin: config.to_string().into_bytes() };
    Request::decode(&call).map_err(|error| error.message)
}

#[test]
fn the_conflist_of_the_guides_becomes_one_plugin() {
    let migration = conflist(GUIDE).unwrap();
    let expected = json!({
        "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "kubeedge-cni",
        "plugins": [{
            "type": "culvert", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "forceAddress": false,
            "ipMasq": true, "promiscMode": true, "hairpinMode": true, "capabilities": all_capabilities(),
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.244.41.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    assert_eq!(parsed(&migration), expected);
    assert!(migration.changed && migration.text.ends_with("}\n"));
    assert_eq!(
        texts(&migration, NoteKind::Merged),
        [
            "bridge became culvert, with its settings",
            "host-local: its ranges now limit Culvert's own allocator, which claims the blocks that cover them; one \
             outside the pool, or held by another node, is refused",
            "portmap: host ports are part of culvert",
            "bandwidth: limits are part of culvert",
            "capabilities: ips, mac, ipRanges, dns, io.kubernetes.cri.pod-annotations came in addition",
            "versions: 1.0.0 for old runtimes, 1.1.0 for those that speak it",
        ]
    );
    let attention = texts(&migration, NoteKind::Attention);
    assert!(attention.len() == 1 && attention[0].contains("(ip link delete cni0)"), "{attention:?}");
}

#[test]
fn the_dual_stack_conflist_of_the_guides_becomes_one_plugin_of_a_newer_version() {
    let document = parsed(&conflist(GUIDE_DUAL_STACK).unwrap());
    assert_eq!((&document["cniVersion"], &document["name"]), (&json!("1.0.0"), &json!("containerd-net")));
    assert_eq!(document["plugins"].as_array().map(Vec::len), Some(1));
    let request = add(&document, &document["plugins"][0]).unwrap();
    assert_eq!(request.addresses.sets.len(), 2);
    assert_eq!(request.config.routes().routes.len(), 2);
}

#[test]
fn the_conflists_of_the_guides_are_also_read_after_changing_only_the_type() {
    for text in [GUIDE, GUIDE_DUAL_STACK] {
        let document: Value = serde_json::from_str(text).unwrap();
        for entry in document["plugins"].as_array().unwrap() {
            let mut entry = entry.clone();
            entry["type"] = json!("culvert");
            add(&document, &entry).unwrap();
        }
    }
}

#[test]
fn what_was_migrated_stays_as_it_is() {
    for text in [GUIDE, GUIDE_DUAL_STACK] {
        let first = conflist(text).unwrap();
        let second = conflist(&first.text).unwrap();
        assert_eq!(second, Migration { text: first.text, changed: false, notes: Vec::new() });
    }
}

#[test]
fn other_plugins_stay_in_their_order_and_hold_the_version() {
    let others = [json!({"type": "sbr"}), json!({"type": "tuning", "capabilities": {"mac": true}, "sysctl": {}})];
    let plugins = json!([others[0], {"type": "portmap"}, {"type": "bridge"}, others[1], {"type": "firewall"}]);
    let mut document = list(plugins);
    document["cniVersion"] = json!("0.3.1");
    document["disableCheck"] = json!(true);
    let migration = migrated(&document);
    let document = parsed(&migration);
    let kinds: Vec<&Value> = document["plugins"].as_array().unwrap().iter().map(|plugin| &plugin["type"]).collect();
    assert_eq!(kinds, ["sbr", "culvert", "tuning", "firewall"]);
    assert_eq!((&document["plugins"][0], &document["plugins"][2]), (&others[0], &others[1]));
    assert_eq!((&document["cniVersion"], document.get("cniVersions")), (&json!("1.0.0"), None));
    assert_eq!(document["disableCheck"], true);
    assert_eq!(texts(&migration, NoteKind::Kept).len(), 3);
    let attention = texts(&migration, NoteKind::Attention).join("\n");
    assert!(attention.contains("cniVersion 0.3.1 became 1.0.0"), "{attention}");
}

#[test]
fn plugins_that_speak_the_newest_version_keep_it() {
    for (version, versions) in [("1.1.0", json!([])), ("0.4.0", json!(["0.4.0", "1.1.0"]))] {
        let mut document = list(json!([{"type": "bridge"}, {"type": "tuning"}]));
        document["cniVersion"] = json!(version);
        document["cniVersions"] = versions;
        assert_eq!(parsed(&migrated(&document))["cniVersions"], json!(["1.0.0", "1.1.0"]));
    }
}

#[test]
fn settings_of_merged_plugins_move_or_are_accounted_for() {
    let migration = migrated(&list(json!([
        {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": "/d", "resolvConf": "/r"}},
        {"type": "portmap", "snat": true, "markMasqBit": 14, "conditionsV4": ["-d", "192.0.2.1"], "conditionsV6": []},
        {"type": "bandwidth", "ingressRate": 1000, "IngressBurst": 8000, "unshapedSubnets": ["10.0.0.0/8"]},
    ])));
    let document = parsed(&migration);
    let culvert = &document["plugins"][0];
    assert_eq!((&culvert["ingressRate"], &culvert["ingressBurst"]), (&json!(1000), &json!(8000)));
    assert_eq!(culvert["ipam"], json!({"type": "host-local", "subnet": "10.1.2.0/24"}));
    let dropped = texts(&migration, NoteKind::Dropped).join("\n");
    for key in ["dataDir", "resolvConf", "snat", "markMasqBit", "conditionsV6"] {
        assert!(dropped.contains(key), "{key} in {dropped}");
    }
    let attention = texts(&migration, NoteKind::Attention).join("\n");
    assert!(attention.contains("portmap: conditionsV4 [\"-d\",\"192.0.2.1\"] is gone"), "{attention}");
    assert!(attention.contains("bandwidth: unshapedSubnets"), "{attention}");
    add(&document, culvert).unwrap();
}

#[test]
fn what_an_operator_must_look_at_is_said() {
    let table = [
        (json!({"bridge": "br0"}), "the bridge \"br0\" is not the cni0"),
        (json!({"vlan": 100}), "bridge: vlan 100 is gone, because Culvert's bridge has no VLANs"),
        (json!({"macspoofchk": true}), "bridge: macspoofchk true is gone"),
        (json!({"ipam": {"type": "dhcp"}}), "the ipam plugin \"dhcp\" is not asked any more"),
        (json!({"ipam": {"type": "whereabouts", "range": "10.0.0.0/8"}}), "the ipam plugin \"whereabouts\""),
        (json!({}), "the bridge plugin gave pods no address"),
        (
            json!({"ipam": {"type": "host-local", "subnet": "10.244.0.0/16"}}),
            "the range 10.244.0.1 to 10.244.255.254 covers 256 blocks",
        ),
        (
            json!({"ipam": {"type": "host-local", "subnet": "fd00::/48"}}),
            "covers 65536 blocks (of /24 or /64, as pools have by default), and a node may claim 16",
        ),
    ];
    for (settings, expected) in table {
        let mut bridge = settings.clone();
        bridge["type"] = json!("bridge");
        let migration = migrated(&list(json!([bridge])));
        let attention = texts(&migration, NoteKind::Attention).join("\n");
        assert!(attention.contains(expected), "{settings}: {attention}");
        let document = parsed(&migration);
        add(&document, &document["plugins"][0]).unwrap();
    }
    let narrow =
        json!({"type": "host-local", "subnet": "10.244.0.0/16", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.16.9"});
    let migration = migrated(&list(json!([{"type": "bridge", "ipam": narrow}])));
    assert_eq!(texts(&migration, NoteKind::Attention).len(), 1, "sixteen blocks are not too many: {migration:?}");
}

#[test]
fn a_capability_that_was_refused_stays_refused_and_foreign_ones_stay() {
    let declared = json!({"portMappings": false, "aliases": true});
    let document = parsed(&migrated(&list(json!([{"type": "bridge", "capabilities": declared}]))));
    let capabilities = &document["plugins"][0]["capabilities"];
    assert_eq!((&capabilities["portMappings"], &capabilities["aliases"]), (&json!(false), &json!(true)));
    assert_eq!(capabilities["ips"], true);
}

#[test]
fn what_is_no_conflist_of_a_bridge_is_refused_with_the_reason() {
    let table = [
        ("", "not valid JSON"),
        ("[]", "the document: expected an object"),
        (r#"{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}"#, "the configuration of one plugin, not a list"),
        (r#"{"plugins": []}"#, "no \"name\""),
        (r#"{"name": "net", "cniVersion": "9.9.9", "plugins": []}"#, "\"9.9.9\" is not supported"),
        (r#"{"name": "net", "plugins": {}}"#, "plugins: expected a list"),
        (r#"{"name": "net", "plugins": []}"#, "it has no plugins at all"),
        (r#"{"name": "net", "plugins": [{}]}"#, "plugins[0].type: expected the name of a plugin"),
        (r#"{"name": "net", "plugins": [{"type": "ptp"}, {"type": "tuning"}]}"#, "it has ptp, tuning"),
        (r#"{"name": "net", "plugins": [{"type": "bridge"}, {"type": "culvert"}]}"#, "has 2 plugins of type bridge"),
        (r#"{"name": "net", "plugins": [{"type": "bridge", "ipam": 7}]}"#, "ipam: expected an object"),
        (
            r#"{"name": "net", "plugins": [{"type": "bridge", "ipam": {"type": "host-local", "subnet": "x"}}]}"#,
            "culvert would refuse what the conflist says of bridge and ipam: network configuration: ipam.subnet",
        ),
    ];
    for (text, expected) in table {
        let message = conflist(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        prop_assert!(conflist(&text).is_err());
    }

    #[test]
    fn whatever_is_migrated_is_served_and_stays(
        kinds in prop::collection::vec(prop::sample::select(vec!["bridge", "culvert", "portmap", "bandwidth", "tuning"]), 0..5),
        key in prop::sample::select(vec!["vlan", "Bridge", "ipam", "ingressRate", "capabilities", "mtu", "snat", "TYPE"]),
        value in prop::sample::select(vec![
            json!(0), json!(7), json!("br0"), json!({}), json!({"type": "dhcp"}), json!([1]), json!(true), json!(null),
        ]),
    ) {
        let plugins: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind, key: value})).collect();
        let Ok(migration) = conflist(&list(json!(plugins)).to_string()) else { return Ok(()) };
        let document = parsed(&migration);
        let culvert: Vec<&Value> =
            document["plugins"].as_array().unwrap().iter().filter(|plugin| plugin["type"] == "culvert").collect();
        prop_assert_eq!(culvert.len(), 1);
        prop_assert!(add(&document, culvert[0]).is_ok());
        let again = conflist(&migration.text).unwrap();
        prop_assert_eq!((again.changed, again.text), (false, migration.text));
    }
}
