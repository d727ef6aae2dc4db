//! The laboratory itself: its internet segment, its folder, its names, and its removal.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cgroup;
use crate::namespace::{self, Namespace};

/// Labs made by this process so far, so that two never share a name.
static LABS: AtomicU32 = AtomicU32::new(0);

/// The documentation range that plays the internet. **Source** RFC 5737.
const INTERNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24);

/// The name of the bridge that joins the machines of a segment.
pub(crate) const SEGMENT: &str = "segment";

/// A laboratory. Dropped after what was built in it, it removes the segment and its folder.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    folder: PathBuf,
    internet: Namespace,
    ports: AtomicU32,
}

/// A machine of the lab: a namespace with the one uplink `eth0`.
#[derive(Debug)]
pub struct Host {
    /// Its short name, as in `edge-1`.
    pub name: String,
    /// Where it lives.
    pub namespace: Namespace,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// Its first address.
    ///
    /// **Errors** it has none.
    pub fn address(&self) -> Result<IpAddr> {
        self.addresses.first().copied().with_context(|| format!("{} has no address", self.name))
    }
}

impl Lab {
    /// Makes the internet segment. From now on SIGINT, SIGTERM and SIGHUP remove this process's labs before it ends.
    ///
    /// **Errors** the caller may not make namespaces, or `ip` is missing.
    pub fn new() -> Result<Self> {
        remove_on_signals()?;
        let prefix = format!("{}n{}", own_prefix(), LABS.fetch_add(1, Ordering::Relaxed));
        let folder = folder_of(&prefix);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let internet = Namespace::create(&format!("{prefix}-internet"))?;
        make_segment(&internet)?;
        Ok(Self { prefix, folder, internet, ports: AtomicU32::new(0) })
    }

    /// What every namespace and folder of this lab begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where nodes keep their files. Removed with the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new namespace of this lab.
    ///
    /// **Errors** as [`Namespace::create`].
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}-{name}", self.prefix))
    }

    /// A machine straight on the internet segment, `198.51.100.LAST`.
    ///
    /// **Errors** the machine cannot be made.
    pub fn public_host(&self, name: &str, last_octet: u8) -> Result<Host> {
        let namespace = self.namespace(name)?;
        namespace.ip("link set lo up")?;
        let address = self.plug_into_internet(&namespace, "eth0", last_octet)?;
        Ok(Host { name: name.to_owned(), namespace, addresses: vec![address] })
    }

    /// Gives a namespace a link on the internet segment and the address `198.51.100.LAST`.
    pub(crate) fn plug_into_internet(&self, into: &Namespace, link: &str, last_octet: u8) -> Result<IpAddr> {
        self.plug(&self.internet, into, link)?;
        let [first, second, third, _] = INTERNET.network().octets();
        let address = IpAddr::from([first, second, third, last_octet]);
        give_address(into, link, IpNet::new(address, INTERNET.prefix_len())?)?;
        Ok(address)
    }

    /// Joins a namespace to the segment of `switch` by a link of its own.
    pub(crate) fn plug(&self, switch: &Namespace, into: &Namespace, link: &str) -> Result<()> {
        let port = format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed));
        switch.ip(&format!("link add {port} type veth peer name {link} netns {}", into.name()))?;
        switch.ip(&format!("link set {port} master {SEGMENT} up"))?;
        into.ip(&format!("link set {link} up")).map(drop)
    }

    /// The segment's own namespace, to disturb the internet.
    #[must_use]
    pub fn internet(&self) -> &Namespace {
        &self.internet
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            namespace::tell(&format!("cannot remove {}: {error}", self.folder.display()));
        }
    }
}

/// Makes the bridge that joins a segment's machines.
pub(crate) fn make_segment(switch: &Namespace) -> Result<()> {
    switch.ip("link set lo up")?;
    switch.ip(&format!("link add {SEGMENT} type bridge"))?;
    switch.ip(&format!("link set {SEGMENT} up"))?;
    if Path::new("/proc/sys/net/bridge").exists() {
        // A switch forwards frames; the firewall of the machine that stands in for it must not see them.
        switch.set_sysctl("net/bridge/bridge-nf-call-iptables", "0")?;
        switch.set_sysctl("net/bridge/bridge-nf-call-ip6tables", "0")?;
    }
    Ok(())
}

/// Adds an address that is usable at once.
pub(crate) fn give_address(namespace: &Namespace, link: &str, address: IpNet) -> Result<()> {
    let detection = if address.addr().is_ipv6() { "nodad" } else { "" };
    namespace.ip(&format!("address add {address} dev {link} {detection}")).map(drop)
}

/// What the names of all labs of this process begin with.
fn own_prefix() -> String {
    format!("cv{}", std::process::id())
}

fn folder_of(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(prefix)
}

/// Removes every namespace, process, control group and folder of a lab by its prefix, as after `--keep`.
///
/// **Errors** something does not go away; what could be removed is removed nevertheless.
pub fn remove(prefix: &str) -> Result<()> {
    let mut outcome = Ok(());
    for name in namespace::list(prefix)? {
        outcome = outcome.and(namespace::remove(&name));
    }
    outcome = outcome.and(cgroup::remove(&format!("{prefix}-")));
    let folder = folder_of(prefix);
    if folder.exists() {
        outcome = outcome
            .and(std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display())));
    }
    outcome
}

/// Removes all labs this process may have made, from the thread that saw the signal.
fn remove_all_of_this_process() {
    for index in 0..LABS.load(Ordering::Relaxed) {
        if let Err(error) = remove(&format!("{}n{index}", own_prefix())) {
            namespace::tell(&format!("{error:#}"));
        }
    }
}

/// Starts the thread that cleans up after a signal, once a process.
///
/// **Errors** the handlers cannot be installed.
pub fn remove_on_signals() -> Result<()> {
    static INSTALLED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let mut signals =
            signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| error.to_string())?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                remove_all_of_this_process();
                std::process::exit(128 + signal);
            }
        });
        Ok(())
    });
    installed.clone().map_err(anyhow::Error::msg).context("cannot watch for signals")
}
