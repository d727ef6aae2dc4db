//! Compiling under limits, and the cache.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use culvert_plugin::{CompileLimits, Kind, Limits, Reason};

use crate::guest::Guest;
use crate::host::{self, Host, topology};

/// A component of some kilobytes that asks the compiler for gigabytes: every variable of the innermost loop
/// is live in all loops around it.
fn bomb(depth: usize, variables: usize) -> Guest {
    let mut body = format!("(func $bomb (param i32) (local {})", "i32 ".repeat(variables));
    body += &"loop ".repeat(depth);
    for variable in 1..=variables {
        let _ = write!(body, "local.get {variable} i32.const 1 i32.add local.set {variable} ");
    }
    body += &"local.get 0 br_if 0 end ".repeat(depth);
    Guest::new(Kind::Route, "bomb").extra(&(body + ")"))
}

fn limited(compile: CompileLimits) -> Host {
    Host::with(Limits { compile, ..Limits::default() })
}

/// Refuses the bomb, and goes on working for others.
fn refused(host: &Host) -> Reason {
    let refusal = host.host.gate(&bomb(1_500, 1_500).unit(), None).unwrap_err();
    assert!(refusal.reason.blames_unit());
    let good = host.route(&Guest::new(Kind::Route, "good").unit());
    assert_eq!(good.plan(&topology(1)), Ok(vec![]));
    refusal.reason
}

#[test]
fn a_compile_bomb_dies_of_its_memory_and_the_daemon_goes_on() {
    let host = limited(CompileLimits { memory_bytes: 96 << 20, ..CompileLimits::default() });
    let message = refused(&host).to_string();
    assert!(message.starts_with("compiling needs more than 100663296 bytes of memory, or crashes"), "{message}");
    assert!(message.ends_with("make the component smaller or simpler"), "{message}");
}

#[test]
fn a_compile_bomb_dies_of_its_processor_time() {
    let host = limited(CompileLimits { memory_bytes: 2 << 30, cpu_seconds: 1, ..CompileLimits::default() });
    assert_eq!(
        refused(&host).to_string(),
        "compiling takes more than 1 s of processor time: make the component smaller or simpler"
    );
}

#[test]
fn a_compiler_that_does_not_end_is_killed() {
    let limits = CompileLimits {
        memory_bytes: 2 << 30,
        cpu_seconds: 60,
        wall: Duration::from_millis(300),
        ..CompileLimits::default()
    };
    let refusal = limited(limits).host.gate(&bomb(1_500, 1_500).unit(), None).unwrap_err();
    assert!(matches!(refusal.reason, Reason::Compile(culvert_plugin::CompileError::Wall(0))), "{refusal}");
    assert!(!refusal.reason.blames_unit());
}

#[test]
fn compiled_code_beyond_the_limit_is_not_taken() {
    let host = limited(CompileLimits { output_bytes: 4_096, ..CompileLimits::default() });
    assert_eq!(
        host.refusal(&Guest::new(Kind::Route, "guest").unit()),
        "plugin guest is refused: the compiled code is larger than 4096 bytes: make the component smaller"
    );
}

#[test]
fn a_component_that_does_not_validate_is_refused_with_the_compilers_reason() {
    let host = Host::new();
    // The outer level is sound; the function inside leaves nothing on the stack.
    let valid = Guest::new(Kind::Route, "guest").answer("i32.const 4093").component();
    let body = [0x41, 0xfd, 0x1f];
    let at = valid.windows(3).position(|window| window == body).unwrap();
    let mut broken = valid;
    broken[at..at + 3].copy_from_slice(&[0x01, 0x01, 0x01]);
    let message = host.refusal(&crate::guest::unit("guest", broken));
    assert!(message.starts_with("plugin guest is refused: the component does not compile: "), "{message}");
}

fn entries(host: &Host) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(host.cache.path().join("compiled")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_component_is_compiled_once() {
    let host = Host::new();
    let unit = Guest::new(Kind::Route, "guest").unit();
    host.route(&unit);
    let compiled = entries(&host);
    assert_eq!(compiled.len(), 1);
    // A compiler that cannot do anything shows that the second time needs none.
    let lame =
        Limits { compile: CompileLimits { memory_bytes: 1 << 20, ..CompileLimits::default() }, ..Limits::default() };
    let second = host::open(&host.cache, lame);
    assert!(second.gate(&unit, None).is_ok());
    assert_eq!(entries(&host), compiled);
    let other = second.gate(&Guest::new(Kind::Route, "other").unit(), None).unwrap_err();
    assert!(matches!(other.reason, Reason::Compile(_)), "{other}");
}

#[test]
fn a_corrupted_entry_is_never_mapped_and_compiled_again() {
    let host = Host::new();
    let unit = Guest::new(Kind::Route, "guest").unit();
    host.route(&unit);
    let [entry] = entries(&host).try_into().unwrap();
    let sound = fs::read(&entry).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    for corrupted in [flipped, sound[..sound.len() / 2].to_vec(), Vec::new(), b"garbage".to_vec()] {
        fs::write(&entry, corrupted).unwrap();
        assert_eq!(host.route(&unit).plan(&topology(1)), Ok(vec![]));
        assert_eq!(entries(&host), std::slice::from_ref(&entry));
        assert!(fs::read(&entry).unwrap() == sound);
    }
}

#[test]
fn an_entry_that_others_may_touch_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;

    let host = Host::new();
    let unit = Guest::new(Kind::Route, "guest").unit();
    host.route(&unit);
    let [entry] = entries(&host).try_into().unwrap();
    assert_eq!(fs::metadata(&entry).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o666)).unwrap();
    host.route(&unit);
    assert_eq!(fs::metadata(&entry).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_cache_is_bounded() {
    let host = Host::new();
    for number in 0..34 {
        host.route(&Guest::new(Kind::Route, &format!("guest-{number}")).unit());
    }
    assert_eq!(entries(&host).len(), 32);
}
