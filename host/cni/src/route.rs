//! The routes that a pod shall have.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::result::RouteConfig;

/// Routes inside a pod, as the configuration asks for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteWish {
    /// Routes asked for; one without gateway takes the pod's of its family.
    pub routes: Vec<RouteConfig>,
    /// Whether a family that has no default route among `routes` gets one.
    pub default: bool,
}

impl RouteWish {
    /// The routes to make for a pod with these gateways, of which the first of a family counts: those asked for, each
    /// destination once, then the default ones. What asks for a family that the pod does not have is left out.
    #[must_use]
    pub fn resolve(&self, gateways: &[IpAddr]) -> Vec<RouteConfig> {
        let gateway_of = |dst: &IpNet| gateways.iter().copied().find(|gateway| same_family(dst, *gateway));
        let mut seen = BTreeSet::new();
        let mut routes = Vec::new();
        for route in &self.routes {
            let Some(gateway) = gateway_of(&route.dst) else { continue };
            let dst = route.dst.trunc();
            if seen.insert((dst, route.attributes.priority, route.attributes.table)) {
                routes.push(RouteConfig { dst, gw: Some(route.gw.unwrap_or(gateway)), attributes: route.attributes });
            }
        }
        for gateway in gateways.iter().filter(|_| self.default) {
            let is_default = |route: &RouteConfig| route.dst.prefix_len() == 0 && same_family(&route.dst, *gateway);
            if !routes.iter().any(is_default) {
                routes.push(RouteConfig::default_via(*gateway));
            }
        }
        routes
    }
}

/// Whether an address is of a prefix's family.
#[must_use]
pub fn same_family(prefix: &IpNet, address: IpAddr) -> bool {
    prefix.addr().is_ipv4() == address.is_ipv4()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::RouteWish;
    use crate::result::{RouteAttributes, RouteConfig};

    fn route(dst: &str, gw: Option<&str>) -> RouteConfig {
        let gw = gw.map(|gw| gw.parse().unwrap());
        RouteConfig { dst: dst.parse().unwrap(), gw, attributes: RouteAttributes::default() }
    }

    fn gateways() -> [IpAddr; 2] {
        ["10.244.1.1".parse().unwrap(), "fd00::1".parse().unwrap()]
    }

    #[test]
    fn every_family_gets_a_default_route_when_asked_for() {
        let wish = RouteWish { routes: Vec::new(), default: true };
        let expected = [route("0.0.0.0/0", Some("10.244.1.1")), route("::/0", Some("fd00::1"))];
        assert_eq!(wish.resolve(&gateways()), expected);
        assert_eq!(wish.resolve(&gateways()[..1]), expected[..1]);
        assert_eq!(RouteWish::default().resolve(&gateways()), []);
    }

    #[test]
    fn a_default_route_asked_for_and_one_of_the_gateway_are_one() {
        let wish = RouteWish { routes: vec![route("0.0.0.0/0", None)], default: true };
        let expected = [route("0.0.0.0/0", Some("10.244.1.1")), route("::/0", Some("fd00::1"))];
        assert_eq!(wish.resolve(&gateways()), expected);
        let without = RouteWish { default: false, ..wish };
        assert_eq!(without.resolve(&gateways()), expected[..1]);
    }

    #[test]
    fn a_gateway_of_its_own_is_kept_and_host_bits_and_repetitions_go() {
        let asked =
            vec![route("10.9.1.2/16", Some("10.244.1.9")), route("10.9.0.0/16", None), route("fd01::/64", None)];
        let wish = RouteWish { routes: asked, default: false };
        assert_eq!(wish.resolve(&gateways()[..1]), [route("10.9.0.0/16", Some("10.244.1.9"))]);
    }

    #[test]
    fn the_same_destination_with_another_metric_is_another_route() {
        let metric = |priority| RouteAttributes { priority: Some(priority), ..RouteAttributes::default() };
        let routes = [1, 2].map(|priority| RouteConfig { attributes: metric(priority), ..route("0.0.0.0/0", None) });
        let wish = RouteWish { routes: routes.to_vec(), default: true };
        let made = wish.resolve(&gateways()[..1]);
        assert_eq!(made.iter().map(|route| route.attributes.priority).collect::<Vec<_>>(), [Some(1), Some(2)]);
    }
}
