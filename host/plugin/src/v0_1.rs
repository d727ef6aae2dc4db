//! Version 0.1 of the contract: bindings generated from `wit/`, and the translation to and from core's words.
//!
//! The next incompatible version gets a module of its own beside this one; nothing else in the crate knows
//! a WIT type.

pub(crate) mod from_guest;
pub(crate) mod to_guest;

use wasmtime::Store;
use wasmtime::component::{HasSelf, InstancePre, Linker};

use crate::guest_log::Level;
use crate::limits::Guest;
use crate::unit::{Description, Kind};
use culvert_core::policy::PolicyError;

/// The world of route policies; the words that all worlds share are generated here.
pub(crate) mod route {
    wasmtime::component::bindgen!({ path: "../../wit", world: "culvert:policy/router-policy" });
}

/// The world of IPAM policies.
pub(crate) mod ipam {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "culvert:policy/ipam-policy",
        with: {
            "culvert:policy/types@0.1.0": super::route::culvert::policy::types,
            "culvert:policy/log@0.1.0": super::route::culvert::policy::log,
        },
    });
}

/// The world of bandwidth policies.
pub(crate) mod bandwidth {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "culvert:policy/bandwidth-policy",
        with: {
            "culvert:policy/types@0.1.0": super::route::culvert::policy::types,
            "culvert:policy/log@0.1.0": super::route::culvert::policy::log,
        },
    });
}

pub(crate) use route::culvert::policy::{log, types};

impl types::Host for Guest {}

impl log::Host for Guest {
    fn write(&mut self, level: log::Level, message: String) {
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        self.log.write(level, &message);
    }
}

/// Everything a policy may import.
pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, HasSelf<_>>(linker, |guest| guest)?;
    log::add_to_linker::<_, HasSelf<_>>(linker, |guest| guest)
}

/// What an answer of a policy looks like before its own error is told from the runtime's.
pub(crate) type Answer<T> = wasmtime::Result<Result<T, types::PolicyError>>;

/// One of the three worlds.
pub(crate) trait World: Sized + Send + Sync + 'static {
    /// What it decides.
    const KIND: Kind;
    /// A component linked and looked up, ready to be instantiated many times.
    type Ready: Send + Sync;

    /// Looks the exports up by name. Types are compared only by [`World::instantiate`].
    fn ready(component: InstancePre<Guest>) -> wasmtime::Result<Self::Ready>;
    /// Makes an instance and compares the types of its exports.
    fn instantiate(ready: &Self::Ready, store: &mut Store<Guest>) -> wasmtime::Result<Self>;
    /// `lifecycle.configure`.
    fn configure(&self, store: &mut Store<Guest>, settings: &str)
    -> wasmtime::Result<Result<Description, PolicyError>>;
}

/// The three worlds differ in the generated names alone.
macro_rules! world {
    ($module:ident, $world:ident, $ready:ident, $kind:expr) => {
        impl World for $module::$world {
            const KIND: Kind = $kind;
            type Ready = $module::$ready<Guest>;

            fn ready(component: InstancePre<Guest>) -> wasmtime::Result<Self::Ready> {
                $module::$ready::new(component)
            }

            fn instantiate(ready: &Self::Ready, store: &mut Store<Guest>) -> wasmtime::Result<Self> {
                ready.instantiate(store)
            }

            fn configure(
                &self,
                store: &mut Store<Guest>,
                settings: &str,
            ) -> wasmtime::Result<Result<Description, PolicyError>> {
                use $module::exports::culvert::policy::lifecycle;

                let want = |want| match want {
                    lifecycle::Want::NodeLabel(key) => crate::unit::Want::NodeLabel(key),
                    lifecycle::Want::PodLabel(key) => crate::unit::Want::PodLabel(key),
                    lifecycle::Want::PodAnnotation(key) => crate::unit::Want::PodAnnotation(key),
                    lifecycle::Want::Clock => crate::unit::Want::Clock,
                };
                let answer = self.culvert_policy_lifecycle().call_configure(store, settings)?;
                Ok(answer.map_err(from_guest::policy_error).map(|description| Description {
                    name: crate::text::cut(&description.name),
                    version: crate::text::cut(&description.version),
                    wants: description.wants.into_iter().map(want).collect(),
                }))
            }
        }
    };
}

world!(route, RouterPolicy, RouterPolicyPre, Kind::Route);
world!(ipam, IpamPolicy, IpamPolicyPre, Kind::Ipam);
world!(bandwidth, BandwidthPolicy, BandwidthPolicyPre, Kind::Bandwidth);
