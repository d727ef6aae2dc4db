//! Sysctls of this namespace: read, and written only where they differ.
//!
//! Inside a container `/proc/sys` is usually read-only. A value that is right already needs no writing, so
//! an init container (or the operator) can set them up front; otherwise the error names what to set.

use std::io;
use std::path::PathBuf;

/// A sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// It has another value, and may not be written.
    #[error(
        "sysctl {name} is {found} and cannot be set to {wanted} (/proc/sys is read-only here): run `sysctl -w {name}={wanted}` on the node, or in a privileged init container"
    )]
    ReadOnly {
        /// Its name, with dots.
        name: String,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// It cannot be read or written for another reason.
    #[error("sysctl {name} cannot be set to {wanted}")]
    Failed {
        /// Its name, with dots.
        name: String,
        /// What it must be.
        wanted: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where a sysctl is. The parts are joined by '/', because the name of a link may hold a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sysctl(Vec<String>);

impl Sysctl {
    /// A sysctl of the whole namespace, under `net`.
    pub(crate) fn net(parts: &[&str]) -> Self {
        Self(std::iter::once("net").chain(parts.iter().copied()).map(str::to_owned).collect())
    }

    /// A sysctl of one link. `family` is `ipv4` or `ipv6`.
    pub(crate) fn link(family: &str, link: &str, key: &str) -> Self {
        Self::net(&[family, "conf", link, key])
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(self.0.join("/"))
    }

    fn name(&self) -> String {
        self.0.join(".")
    }

    /// Its value.
    pub(crate) fn read(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string(self.path())?.trim().to_owned())
    }

    /// Make it have a value; whether it had to be written.
    ///
    /// **Errors** [`SysctlError`].
    pub(crate) fn ensure(&self, wanted: &str) -> Result<bool, SysctlError> {
        let failed = |source| SysctlError::Failed { name: self.name(), wanted: wanted.to_owned(), source };
        let found = self.read().map_err(failed)?;
        if found == wanted {
            return Ok(false);
        }
        match std::fs::write(self.path(), wanted) {
            Ok(()) => Ok(true),
            Err(error)
                if [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied].contains(&error.kind()) =>
            {
                Err(SysctlError::ReadOnly { name: self.name(), found, wanted: wanted.to_owned() })
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Whether this kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    PathBuf::from("/proc/sys/net/ipv6/conf/all").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_sysctl_is_named_with_what_it_should_be() {
        let error = Sysctl::link("ipv4", "no such link", "rp_filter").ensure("2").unwrap_err();
        assert_eq!(error.to_string(), "sysctl net.ipv4.conf.no such link.rp_filter cannot be set to 2");
    }

    #[test]
    fn a_right_value_is_not_written() {
        let sysctl = Sysctl::net(&["ipv4", "ip_forward"]);
        let value = sysctl.read().unwrap();
        assert!(!sysctl.ensure(&value).unwrap());
    }
}
