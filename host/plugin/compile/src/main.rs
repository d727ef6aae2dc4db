//! Compiles one component: WebAssembly on standard input, native code for this machine on standard output.
//!
//! The daemon runs this program because compiling is the one step whose cost a hostile component chooses:
//! half a megabyte can ask for gigabytes and minutes. The daemon puts limits on this process before it
//! sends the first byte; when one is hit, this process dies and the daemon reports why. It exits with 1
//! and one line on standard error when the component is not valid.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};
use wasmtime::{Engine, OptLevel};

#[path = "../../src/engine_config.rs"]
mod engine_config;

/// **Units** bytes. Far above what the daemon sends; reached only when run by hand with the wrong file.
const INPUT_LIMIT_BYTES: u64 = 64 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> wasmtime::Result<()> {
    close_the_door()?;
    let component = read_component()?;
    let compiled = compile(&component)?;
    io::stdout().lock().write_all(&compiled)?;
    Ok(())
}

/// From here on no file, socket or pipe can be opened: the three standard ones are all there is, so a
/// component that takes the compiler over reaches nothing.
fn close_the_door() -> io::Result<()> {
    const STANDARD_STREAMS: Option<u64> = Some(3);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: STANDARD_STREAMS, maximum: STANDARD_STREAMS })?;
    Ok(())
}

fn read_component() -> wasmtime::Result<Vec<u8>> {
    let mut component = Vec::new();
    io::stdin().lock().take(INPUT_LIMIT_BYTES + 1).read_to_end(&mut component)?;
    if component.len() as u64 > INPUT_LIMIT_BYTES {
        wasmtime::bail!("the component is larger than {INPUT_LIMIT_BYTES} bytes");
    }
    Ok(component)
}

fn compile(component: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let mut config = engine_config::engine_config();
    config.cranelift_opt_level(OptLevel::Speed);
    // The bits of a NaN differ between processors; a policy's answer must not.
    config.cranelift_nan_canonicalization(true);
    Engine::new(&config)?.precompile_component(component)
}
