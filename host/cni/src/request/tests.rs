//! Whole calls.

use proptest::prelude::{any, prop, proptest};
use proptest::prop_assert;
use serde_json::{Value, json};

use super::Request;
use crate::arguments::PodIdentity;
use crate::frame;
use crate::ipam::AddressWish;
use crate::mac::MacAddress;
use crate::netconf::NetConf;
use crate::version::{SpecVersion, Verb};

fn call(pairs: &[(&str, &str)], stdin: &str) -> frame::Request {
    let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    frame::Request { env, stdin: stdin.as_bytes().to_vec() }
}

fn decode(verb: &str, arguments: &str, document: &Value) -> Result<Request, (u32, String)> {
    let pairs = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "pod-1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", arguments),
    ];
    Request::decode(&call(&pairs, &document.to_string())).map_err(|error| (error.code.number(), error.message))
}

fn config() -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "culvert"})
}

#[test]
fn an_add_of_containerd_is_read() {
    let arguments = "K8S_POD_INFRA_CONTAINER_ID=1;K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web";
    let expected = Request {
        verb: Verb::Add,
        container_id: "pod-1".into(),
        ifname: "eth0".into(),
        netns: Some("/run/netns/x".into()),
        pod: PodIdentity { namespace: "ns".into(), name: "web".into(), uid: "u".into() },
        addresses: AddressWish::default(),
        mac: None,
        config: NetConf::decode(config().to_string().as_bytes(), Verb::Add).unwrap(),
    };
    assert_eq!(decode("ADD", arguments, &config()), Ok(expected));
}

#[test]
fn the_environment_is_checked_before_the_configuration() {
    let missing = Request::decode(&call(&[("CNI_COMMAND", "ADD")], "garbage")).unwrap_err();
    assert_eq!(missing.code.number(), 4);
    assert_eq!(missing.message, "required environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME");
    for command in [&[][..], &[("CNI_COMMAND", "add")], &[("CNI_COMMAND", "PLUG")]] {
        assert_eq!(Request::decode(&call(command, "")).unwrap_err().code.number(), 4);
    }
}

#[test]
fn version_needs_only_the_command() {
    let request = Request::decode(&call(&[("CNI_COMMAND", "VERSION")], "")).unwrap();
    assert_eq!((request.verb, request.config), (Verb::Version, NetConf::for_version(b"")));
    let request = Request::decode(&call(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"0.4.0"}"#)).unwrap();
    assert_eq!(request.config.cni_version, SpecVersion::V0_4_0);
}

#[test]
fn delete_forgives_everything_it_does_not_need() {
    let document = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "culvert", "prevResult": "garbage", "ipam": 7, "mtu": "x",
        "runtimeConfig": {"portMappings": 7}, "args": 7,
    });
    let request = decode("DEL", "FOO;K8S_POD_NAME=web", &document).unwrap();
    assert_eq!(request.pod.name, "web");
    assert_eq!((request.addresses, request.mac), (AddressWish::default(), None));
    let head = json!({"cniVersion": "1.0.0", "name": "net", "type": "culvert"});
    assert_eq!(request.config, NetConf::decode(head.to_string().as_bytes(), Verb::Del).unwrap());
}

#[test]
fn malformed_arguments_are_refused_on_add() {
    for arguments in ["FOO", "A=B=C"] {
        assert_eq!(decode("ADD", arguments, &config()).map_err(|(code, _)| code), Err(4));
    }
}

/// The addresses and the hardware address that a call asks for.
fn wanted(arguments: &str, document: &Value) -> Result<(Vec<String>, Option<String>), (u32, String)> {
    let texts = |request: Request| {
        let addresses = request.addresses.wanted.iter().map(ToString::to_string).collect();
        (addresses, request.mac.as_ref().map(MacAddress::to_string))
    };
    decode("ADD", arguments, document).map(texts)
}

#[test]
fn runtime_config_beats_args_which_beat_the_environment() {
    let (mac_1, mac_2, mac_3) = ("0a:00:00:00:00:01", "0a:00:00:00:00:02", "0a:00:00:00:00:03");
    let expected = |ip: &str, mac: &str| Ok((vec![ip.to_owned()], Some(mac.to_owned())));
    let arguments = format!("IP=10.0.0.3/24;MAC={mac_3}");
    let mut document = config();
    assert_eq!(wanted(&arguments, &document), expected("10.0.0.3", mac_3));
    document["args"] = json!({"cni": {"ips": ["10.0.0.2"], "mac": mac_2}, "other": 1});
    assert_eq!(wanted(&arguments, &document), expected("10.0.0.2", mac_2));
    document["runtimeConfig"] = json!({"ips": ["10.0.0.1"], "mac": mac_1});
    assert_eq!(wanted(&arguments, &document), expected("10.0.0.1", mac_1));
}

#[test]
fn the_environment_may_ask_for_an_address_of_each_family() {
    let expected = Ok((vec!["10.0.0.3".to_owned(), "fd00::3".to_owned()], None));
    assert_eq!(wanted("IP=10.0.0.3/24, fd00::3/64", &config()), expected);
}

#[test]
fn requested_addresses_lie_in_the_ranges_in_force() {
    let mut document = config();
    document["ipam"] =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.9"}]]});
    assert_eq!(wanted("IP=10.244.1.5", &document), Ok((vec!["10.244.1.5".to_owned()], None)));
    let (code, message) = wanted("IP=10.244.1.10", &document).unwrap_err();
    assert_eq!(code, 7);
    assert!(message.contains("10.244.1.1 to 10.244.1.9") && message.contains("10.244.1.10"), "{message}");
    document["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.244.2.0/24"}]]});
    assert_eq!(wanted("IP=10.244.2.10", &document), Ok((vec!["10.244.2.10".to_owned()], None)));
    assert_eq!(decode("ADD", "", &document).map(|request| request.addresses.sets.len()), Ok(2));
}

#[test]
fn addresses_that_are_none_are_answered_seven() {
    let mut with_args = config();
    with_args["args"] = json!({"cni": {"ips": ["zork"]}});
    let mut with_mac = config();
    with_mac["args"] = json!({"cni": {"mac": "zork"}});
    let table = [("IP=zork", config()), ("MAC=zork", config()), ("", with_args), ("", with_mac)];
    for (arguments, document) in table {
        assert_eq!(decode("ADD", arguments, &document).map_err(|(code, _)| code), Err(7), "{arguments} {document}");
    }
}

proptest! {
    #[test]
    fn arbitrary_calls_never_panic(
        env in prop::collection::vec((".{0,12}", ".{0,30}"), 0..6),
        verb in prop::sample::select(Verb::ALL.to_vec()),
        stdin in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut env = env;
        let names = [("CNI_COMMAND", verb.as_str()), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "e")];
        env.extend(names.map(|(name, value)| (name.to_owned(), value.to_owned())));
        match Request::decode(&frame::Request { env, stdin }) {
            Ok(request) => prop_assert!(request.verb.since() <= request.config.cni_version),
            Err(error) => prop_assert!([1, 4, 6, 7, 50].contains(&error.code.number())),
        }
    }

    #[test]
    fn arbitrary_values_in_known_fields_never_panic(
        key in prop::sample::select(vec![
            "runtimeConfig", "prevResult", "ipam", "args", "mtu", "dns", "vlan", "ingressRate", "cni.dev/valid-attachments",
        ]),
        inner in prop::sample::select(vec![
            "portMappings", "bandwidth", "ips", "cni", "interfaces", "mac", "nameservers", "ranges", "ipRanges", "subnet",
            "addresses", "routes",
        ]),
        leaf in prop::sample::select(vec![json!(null), json!(-1), json!(1e300), json!("x"), json!([[]]), json!({"a": 1}), json!([7])]),
        verb in prop::sample::select(Verb::ALL.to_vec()),
    ) {
        for value in [leaf.clone(), json!({inner: leaf}), json!([{inner: leaf}])] {
            let mut document = config();
            document[key] = value;
            let decoded = decode(verb.as_str(), "", &document);
            prop_assert!(decoded.is_ok() || decoded.is_err_and(|(code, _)| [6, 7, 50].contains(&code)));
        }
    }
}
