//! Every refusal of the gate, with its message.

use culvert_plugin::{Kind, Limits, Policy, Want};

use crate::guest::{self, Guest, LOCAL, LOOP, REJECT, error, prefix, route, unit, words};
use crate::host::{Host, topology};

fn plain(kind: Kind) -> Guest {
    Guest::new(kind, "guest")
}

#[test]
fn a_guest_of_each_kind_passes_and_says_what_it_is() {
    let host = Host::new();
    let cards = [
        host.route(&plain(Kind::Route).unit()).card().clone(),
        host.ipam(&plain(Kind::Ipam).unit()).card().clone(),
        host.bandwidth(&plain(Kind::Bandwidth).unit()).card().clone(),
    ];
    assert_eq!(cards.each_ref().map(|card| card.kind), Kind::ALL);
    assert_eq!(cards.each_ref().map(|card| card.description.name.as_str()), ["guest"; 3]);
    assert_eq!(cards.each_ref().map(|card| card.description.version.as_str()), ["1.2.3"; 3]);
    assert_eq!(cards[0].digest, plain(Kind::Route).unit().digest());
}

#[test]
fn bytes_that_are_no_component_are_refused_by_what_they_are() {
    let host = Host::new();
    assert_eq!(
        host.refusal(&unit("guest", b"hello".to_vec())),
        "plugin guest is refused: the file is not WebAssembly: expected a component, found bytes that start with 68 65 6c 6c"
    );
    assert_eq!(
        host.refusal(&unit("guest", plain(Kind::Route).core())),
        "plugin guest is refused: the file is a core WebAssembly module, not a component: turn it into one (`wasm-tools component new`, or the project's componentize)"
    );
    let mut torn = plain(Kind::Route).component();
    torn.truncate(torn.len() / 2);
    let message = host.refusal(&unit("guest", torn));
    assert!(message.starts_with("plugin guest is refused: the component is broken at byte "), "{message}");
    assert!(message.ends_with("; was the file written completely?"), "{message}");
}

#[test]
fn compiled_code_is_never_accepted_from_outside() {
    let host = Host::new();
    host.route(&plain(Kind::Route).unit());
    let entry = std::fs::read_dir(host.cache.path().join("compiled")).unwrap().next().unwrap().unwrap();
    let code = std::fs::read(entry.path()).unwrap();
    assert_eq!(
        host.refusal(&unit("guest", code)),
        "plugin guest is refused: the file is precompiled native code, which is never accepted: give the component itself, Culvert compiles it"
    );
}

#[test]
fn imports_beyond_types_and_log_are_refused_by_name() {
    let host = Host::new();
    let importing = |name: &str| {
        let text = format!("(component (import \"{name}\" (instance)))");
        host.refusal(&unit("guest", wat::parse_str(text).unwrap()))
    };
    assert_eq!(
        importing("wasi:io/poll@0.2.6"),
        "plugin guest is refused: the component imports `wasi:io/poll@0.2.6`, and a policy gets no WASI: build for wasm32-unknown-unknown instead of a wasip target"
    );
    assert_eq!(
        importing("acme:store/keys@1.0.0"),
        "plugin guest is refused: the component imports `acme:store/keys@1.0.0`, which no policy is granted: only culvert:policy/types and culvert:policy/log may be imported"
    );
    assert_eq!(
        importing("culvert:policy/log@0.2.0"),
        "plugin guest is refused: the component speaks `culvert:policy/log@0.2.0`, this host speaks culvert:policy 0.1: build it against wit/ of this release"
    );
}

#[test]
fn another_world_is_refused_by_what_it_exports() {
    let host = Host::new();
    let text = r#"(component (instance $i) (export "acme:tool/run@1.0.0" (instance $i)))"#;
    assert_eq!(
        host.refusal(&unit("guest", wat::parse_str(text).unwrap())),
        "plugin guest is refused: the component exports acme:tool/run@1.0.0, which is no policy: build it for the world router-policy, ipam-policy or bandwidth-policy of culvert:policy@0.1.0"
    );
}

/// The contract with one text replaced, in a folder of its own.
fn changed_wit(file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(guest::wit()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            let mut text = std::fs::read_to_string(&path).unwrap();
            if path.ends_with(file) {
                assert!(text.contains(from), "{file} has no {from}");
                text = text.replacen(from, to, 1);
            }
            std::fs::write(folder.path().join(path.file_name().unwrap()), text).unwrap();
        }
    }
    folder
}

#[test]
fn a_record_with_one_more_field_is_another_type() {
    let host = Host::new();
    let wit = changed_wit("router.wit", "record route {", "record route { metric: u32,");
    let message = host.refusal(&plain(Kind::Route).wit(wit.path()).unit());
    assert!(
        message.starts_with("plugin guest is refused: its exports are not those of culvert:policy@0.1.0: "),
        "{message}"
    );
    assert!(message.contains("expected record of 3 fields, found 4 fields"), "{message}");
    assert!(message.ends_with("; build it against wit/ of this release"), "{message}");
}

#[test]
fn a_guest_built_against_a_later_patch_of_the_contract_runs() {
    let host = Host::new();
    let wit = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(guest::wit()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            let text = std::fs::read_to_string(&path).unwrap().replace("@0.1.0;", "@0.1.1;");
            std::fs::write(wit.path().join(path.file_name().unwrap()), text).unwrap();
        }
    }
    let later = plain(Kind::Route).wit(wit.path()).version("0.1.1");
    assert_eq!(host.route(&later.unit()).plan(&topology(1)), Ok(vec![]));
}

#[test]
fn a_new_function_of_log_is_refused_by_name() {
    let host = Host::new();
    let wit = changed_wit("log.wit", "write: func(", "flush: func();\n    write: func(");
    let import = r#"(import "culvert:policy/log@0.1.0" "flush" (func $flush))"#;
    let guest = plain(Kind::Route).wit(wit.path()).import(import);
    let message = host.refusal(&guest.unit());
    assert!(
        message.starts_with("plugin guest is refused: its imports are not those of culvert:policy@0.1.0: "),
        "{message}"
    );
    assert!(message.contains("`flush`"), "{message}");
}

#[test]
fn sizes_are_refused_before_anything_is_read() {
    let host = Host::new();
    assert_eq!(
        host.refusal(&unit("guest", vec![0; (2 << 20) + 1])),
        "plugin guest is refused: the component has 2097153 bytes, 2097152 are allowed: strip it, and leave out what a policy does not need"
    );
    let mut large = plain(Kind::Route).unit();
    large.settings = " ".repeat((64 << 10) + 1);
    assert_eq!(host.refusal(&large), "plugin guest is refused: the settings have 65537 bytes, 65536 are allowed");
}

#[test]
fn settings_must_be_json_and_please_the_policy() {
    let host = Host::new();
    let mut torn = plain(Kind::Route).unit();
    torn.settings = "{\"a\":".to_owned();
    assert_eq!(
        host.refusal(&torn),
        "plugin guest is refused: the settings are not JSON: EOF while parsing a value at line 1 column 5"
    );
    let (body, fields) = error(0, "pool: not a prefix");
    assert_eq!(
        host.refusal(&plain(Kind::Route).configure(&body).extra(&fields).unit()),
        "plugin guest is refused: configure answered with an error: invalid settings: pool: not a prefix"
    );
}

#[test]
fn a_failing_configure_is_refused_with_its_fault() {
    let host = Host::new();
    let configure = |body: &str| host.refusal(&plain(Kind::Route).configure(body).unit());
    assert_eq!(
        configure("unreachable"),
        "plugin guest is refused: configure trapped: wasm trap: wasm `unreachable` instruction executed"
    );
    assert_eq!(configure(LOOP), "plugin guest is refused: configure stopped: no answer within 50 ms");
    let start = plain(Kind::Route).extra("(func $start (loop $l (br $l))) (start $start)");
    assert_eq!(host.refusal(&start.unit()), "plugin guest is refused: configure stopped: no answer within 50 ms");
    let bomb = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    assert_eq!(configure(bomb), "plugin guest is refused: configure ran out of memory: 16777216 bytes are granted");
    assert_eq!(
        host.refusal(&plain(Kind::Route).pages(65_536).unit()),
        "plugin guest is refused: configure ran out of memory: 16777216 bytes are granted"
    );
    let deep = plain(Kind::Route).extra("(func $deep call $deep call $deep)").configure("call $deep i32.const 1024");
    assert_eq!(
        host.refusal(&deep.unit()),
        "plugin guest is refused: configure trapped: wasm trap: call stack exhausted"
    );
}

#[test]
fn a_failing_answer_to_a_made_up_input_is_refused_with_input_and_fault() {
    let host = Host::new();
    let plan = |guest: Guest| host.refusal(&guest.unit());
    assert_eq!(
        plan(plain(Kind::Route).answer("unreachable")),
        "plugin guest is refused: plan on a cluster of one node trapped: wasm trap: wasm `unreachable` instruction executed"
    );
    assert_eq!(
        plan(plain(Kind::Route).answer(LOOP)),
        "plugin guest is refused: plan on a cluster of one node stopped: no answer within 100 ms"
    );
    let (body, fields) = error(3, "bug\nforged line");
    assert_eq!(
        plan(plain(Kind::Route).answer(&body).extra(&fields)),
        "plugin guest is refused: plan on a cluster of one node answered with an error: internal: bug\\nforged line"
    );
    assert_eq!(
        plan(plain(Kind::Bandwidth).answer(LOOP)),
        "plugin guest is refused: shape on a pod without a name stopped: no answer within 50 ms"
    );
}

#[test]
fn an_unsupported_made_up_input_is_fine_and_an_unsupported_live_one_is_not() {
    let host = Host::new();
    let (body, fields) = error(1, "IPv6");
    let unit = plain(Kind::Route).answer(&body).extra(&fields).unit();
    host.route(&unit);
    let refusal = host.host.gate(&unit, Some(&topology(7))).unwrap_err().to_string();
    assert_eq!(refusal, "plugin guest is refused: plan on the live topology answered with an error: unsupported: IPv6");
}

#[test]
fn lists_the_host_could_not_hold_are_invalid_and_never_allocated() {
    let host = Host::new();
    let planning = |length: u32| host.refusal(&plain(Kind::Route).pages(4).list(length, vec![]).unit());
    assert_eq!(
        planning(u32::MAX),
        "plugin guest is refused: plan on a cluster of one node gave an invalid answer: list pointer/length out of bounds of memory"
    );
    let message = planning(2_000);
    assert!(message.contains("gave an invalid answer: too much data is being copied"), "{message}");
    assert_eq!(
        planning(100),
        "plugin guest is refused: plan on a cluster of one node: 100 routes are more than the 68 allowed for 1 nodes: answer fewer, wider routes"
    );
}

#[test]
fn answers_that_are_no_addresses_are_invalid() {
    let host = Host::new();
    let planning = |to: Vec<u8>| host.refusal(&plain(Kind::Route).list(1, route(&to, REJECT)).unit());
    let invalid = "plugin guest is refused: plan on a cluster of one node gave an invalid answer: ";
    assert_eq!(planning(prefix(7, [10, 244, 1, 0], 24)), format!("{invalid}unexpected discriminant: 7"));
    assert_eq!(
        planning(prefix(0, [10, 244, 1, 9], 24)),
        format!("{invalid}prefix 10.244.1.9/24 has host bits set, 10.244.1.0/24 does not")
    );
    assert_eq!(
        planning(prefix(0, [10, 244, 1, 0], 77)),
        format!("{invalid}prefix 10.244.1.0/77 is longer than its address")
    );
    let proposing = plain(Kind::Ipam).list(1, prefix(0, [10, 244, 1, 0], 24));
    assert_eq!(
        host.refusal(&proposing.unit()),
        "plugin guest is refused: propose on a cluster of one node, an empty space gave an invalid answer: block 10.244.1.0/24 is not of the family asked for (V6)"
    );
    let past_the_end = plain(Kind::Ipam).pick("i32.const 6144").extra(&guest::data(6144, &words(&[0, 1, 4])));
    assert_eq!(
        host.refusal(&past_the_end.unit()),
        "plugin guest is refused: pick on no free address gave an invalid answer: position 4 in a list of 0 free addresses"
    );
}

#[test]
fn routes_the_host_would_not_install_are_refused_with_the_hosts_reason() {
    let host = Host::new();
    let planning = |to: [u8; 4], via: u8| plain(Kind::Route).list(1, route(&prefix(0, to, 24), via)).unit();
    let outside = host.refusal(&planning([8, 8, 8, 0], REJECT));
    assert!(
        outside.starts_with(
            "plugin guest is refused: plan on a cluster of one node: route 8.8.8.0/24 leaves the cluster prefixes"
        ),
        "{outside}"
    );
    let foreign = host.refusal(&planning([10, 244, 9, 0], LOCAL));
    assert!(
        foreign.starts_with(
            "plugin guest is refused: plan on a cluster of one node: route 10.244.9.0/24 is local, but no node holds it"
        ),
        "{foreign}"
    );
}

/// A counter that lives as long as the instance; the answer at 6144 is the counter's.
const COUNTER: &str = "(global $count (mut i32) (i32.const 0))";

#[test]
fn a_policy_that_remembers_is_refused() {
    let host = Host::new();
    let count = "(global.set $count (i32.add (global.get $count) (i32.const 1)))";
    let shape = format!(
        "{count} (i32.store8 (i32.const 6152) (i32.const 1)) (i64.store (i32.const 6160) (i64.extend_i32_u (global.get $count))) i32.const 6144"
    );
    assert_eq!(
        host.refusal(&plain(Kind::Bandwidth).extra(COUNTER).answer(&shape).unit()),
        "plugin guest is refused: shape on a pod without a name gives another answer when asked again: a policy must not keep state between calls"
    );
    let pick = format!(
        "{count} (i32.store8 (i32.const 6148) (i32.const 1)) (i32.store (i32.const 6152) (i32.rem_u (global.get $count) (i32.const 2))) (if (i32.eqz (local.get 9)) (then (i32.store8 (i32.const 6148) (i32.const 0)))) i32.const 6144"
    );
    assert_eq!(
        host.refusal(&plain(Kind::Ipam).extra(COUNTER).pick(&pick).unit()),
        "plugin guest is refused: pick on four free addresses gives another answer when asked again: a policy must not keep state between calls"
    );
}

#[test]
fn what_a_policy_wants_is_read() {
    let host = Host::new();
    // Two wants: the label "a" of nodes, and the clock. A want is a discriminant and a text, 12 bytes.
    let wants = guest::data(7168, &words(&[0, 7200, 1, 3, 0, 0])) + &guest::data(7200, b"a");
    let point =
        "(i32.store (i32.const 1044) (i32.const 7168)) (i32.store (i32.const 1048) (i32.const 2)) i32.const 1024";
    let policy = host.route(&plain(Kind::Route).extra(&wants).configure(point).unit());
    assert_eq!(policy.description().wants, [Want::NodeLabel("a".to_owned()), Want::Clock]);
    assert!(policy.description().wants_clock());
    let many = point.replace("i32.const 2)", "i32.const 257)");
    assert_eq!(
        host.refusal(&plain(Kind::Route).extra(&wants).configure(&many).unit()),
        "plugin guest is refused: configure gave an invalid answer: it wants 257 keys, 256 are allowed"
    );
}

#[test]
fn a_host_without_its_compiler_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = culvert_plugin::PluginHostConfig {
        compile_program: folder.path().join("absent"),
        cache_folder: folder.path().join("compiled"),
        limits: Limits::default(),
    };
    let message = culvert_plugin::PluginHost::new(config).err().unwrap().to_string();
    assert!(message.contains("/absent is not there: "), "{message}");
    assert!(message.ends_with("; is Culvert installed completely?"), "{message}");
}
