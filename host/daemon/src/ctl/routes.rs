//! Prints `culvertctl routes`.

use super::layout::{BAD, line, mark, or_none, points, table};
use crate::view::{Route, Routes};

/// Who decided, one line a route, and the newest refusal. The mark says whether the kernel holds the
/// route.
pub(super) fn text(routes: &Routes) -> String {
    let decided =
        line(&format!("decided by {} for topology generation {}", or_none(&routes.decided_by), routes.generation));
    let listed = if routes.routes.is_empty() {
        line("no routes yet: neither this node nor another holds a block. `culvertctl ipam` shows pools and blocks.")
    } else {
        table(["", "TO", "NODE", "DECISION", "OTHERWISE", "KERNEL"], routes.routes.iter().map(row))
    };
    let refusal: Vec<String> = routes.refusal.iter().cloned().collect();
    let refused = points("The policy's newest answer was refused; the routes above stay in force:", BAD, &refusal);
    [decided, "\n".to_owned(), listed, refused].concat()
}

fn row(route: &Route) -> [String; 6] {
    [
        mark(route.installed).to_owned(),
        route.to.clone(),
        or_none(&route.node).to_owned(),
        route.decision.clone(),
        or_none(&route.otherwise).to_owned(),
        or_none(&route.kernel).to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let route = |to: &str, node: &str, decision: &str, kernel: &str, installed| Route {
            to: to.into(),
            node: node.into(),
            decision: decision.into(),
            otherwise: String::new(),
            kernel: kernel.into(),
            installed,
        };
        Routes {
            schema: 1,
            generation: 17,
            decided_by: "route-sites 0.1.0".into(),
            routes: vec![
                route("10.244.0.0/16", "", "reject", "prohibit", true),
                Route {
                    otherwise: "tunnel".into(),
                    ..route("10.244.1.0/24", "edge-2", "direct 192.168.1.5", "via 192.168.1.5", true)
                },
                route("10.244.2.0/24", "cloud-1", "tunnel", "dev culvert0", false),
            ],
            refusal: None,
        }
    }

    #[test]
    fn each_route_is_one_line_with_what_the_kernel_has() {
        assert_eq!(
            text(&routes()),
            "decided by route-sites 0.1.0 for topology generation 17

   TO             NODE     DECISION            OTHERWISE  KERNEL
✓  10.244.0.0/16  -        reject              -          prohibit
✓  10.244.1.0/24  edge-2   direct 192.168.1.5  tunnel     via 192.168.1.5
✗  10.244.2.0/24  cloud-1  tunnel              -          dev culvert0
"
        );
    }

    #[test]
    fn a_refused_answer_is_shown_below_what_stays() {
        let routes =
            Routes { routes: vec![], refusal: Some("route 10.9.0.0/16 lies outside the pools".into()), ..routes() };
        assert_eq!(
            text(&routes),
            "decided by route-sites 0.1.0 for topology generation 17

no routes yet: neither this node nor another holds a block. `culvertctl ipam` shows pools and blocks.

The policy's newest answer was refused; the routes above stay in force:
  ✗ route 10.9.0.0/16 lies outside the pools
"
        );
    }
}
