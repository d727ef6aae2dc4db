//! Processor time, to the nanosecond where the kernel tells it so.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Of this process, all its threads.
///
/// **Errors** the kernel does not tell.
pub(super) fn own() -> Result<Duration> {
    Ok(ClockId::CLOCK_PROCESS_CPUTIME_ID.now().context("no processor time of this process")?.into())
}

/// Of all children that ended and were waited for, and of theirs. **Units** exact to the microsecond.
///
/// **Errors** the kernel does not tell.
pub(super) fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("no resource usage of children")?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

/// Of another process: all its threads, those that ended among them.
///
/// **Errors** it is gone.
pub(super) fn of_process(id: u32) -> Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(id)?);
    let clock = clock_getcpuclockid(pid).with_context(|| format!("no processor clock of process {id}"))?;
    Ok(clock.now().with_context(|| format!("no processor time of process {id}"))?.into())
}

fn duration(time: TimeVal) -> Duration {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec())) + Duration::from_micros(part(time.tv_usec()))
}
