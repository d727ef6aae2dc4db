//! From steps to netlink requests: pure, so that what a plan sends can be tested without a kernel.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use culvert_core::bandwidth::Rate;
use culvert_core::plan::{Plan, Step, Veth};

use netlink_packet_route::RouteNetlinkMessage;

use crate::message::route::RouteLinks;
use crate::message::traffic::Bucket;
use crate::message::{Request, address, link, route, traffic};

/// What has to be known of a link that steps name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its index: the present one, or the one it is about to be made with.
    pub(crate) index: u32,
    /// **Units** bytes.
    pub(crate) mtu_bytes: u32,
    /// Whether it is there before the plan.
    pub(crate) exists: bool,
}

/// Everything outside the plan that its requests depend on.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// The links that routes name.
    pub(crate) routes: RouteLinks,
    /// The links that shaping names.
    pub(crate) links: BTreeMap<String, Facts>,
    /// The pod's namespace, as a descriptor of this process.
    pub(crate) netns: Option<RawFd>,
}

/// Which socket a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// This node's namespace.
    Host,
    /// The pod's.
    Pod,
}

/// A request and why it is made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    /// The position of its step in the plan.
    pub(crate) position: usize,
    /// Where it goes.
    pub(crate) side: Side,
    /// Whether it waits for all others of its side: links come up last.
    pub(crate) late: bool,
    /// Whether being told that the object is not there is as good as success.
    pub(crate) gone_is_fine: bool,
    /// What is asked.
    pub(crate) request: Request,
}

impl Compiled {
    /// Whether it takes a filter away.
    pub(crate) fn removes_filter(&self) -> bool {
        matches!(self.request.message, RouteNetlinkMessage::DelTrafficFilter(_))
    }
}

/// A step that cannot be expressed, with the reason. Nothing has been changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Impossible {
    /// Its position.
    pub(crate) position: usize,
    /// Why.
    pub(crate) reason: String,
}

/// Every request of a plan, in the order they are to be sent on their side.
pub(crate) fn compile(plan: &Plan, world: &World) -> Result<Vec<Compiled>, Impossible> {
    let mut all = Vec::new();
    for (position, step) in plan.steps.iter().enumerate() {
        let mut sink = Sink { position, all: &mut all };
        one(step, world, &mut sink).map_err(|reason| Impossible { position, reason })?;
    }
    all.sort_by_key(|compiled| compiled.late);
    Ok(all)
}

/// Collects the requests of one step.
struct Sink<'a> {
    position: usize,
    all: &'a mut Vec<Compiled>,
}

impl Sink<'_> {
    fn push(&mut self, side: Side, late: bool, gone_is_fine: bool, request: Request) {
        self.all.push(Compiled { position: self.position, side, late, gone_is_fine, request });
    }

    fn host(&mut self, request: Request) {
        self.push(Side::Host, false, false, request);
    }

    fn host_last(&mut self, request: Request) {
        self.push(Side::Host, true, false, request);
    }

    fn host_removal(&mut self, request: Request) {
        self.push(Side::Host, false, true, request);
    }

    fn pod(&mut self, request: Request) {
        self.push(Side::Pod, false, false, request);
    }
}

fn one(step: &Step, world: &World, sink: &mut Sink) -> Result<(), String> {
    match step {
        Step::CreateVeth(veth) => create_veth(veth, world, sink)?,
        Step::DeleteLink { name } => sink.host_removal(link::delete(name)),
        Step::PodLinkUp { index } => sink.pod(link::up(*index)),
        Step::PodAddress { index, address } => sink.pod(address::add(*index, *address)),
        Step::PodRoute { index, route } => sink.pod(route::pod(*index, route)),
        Step::ShapeIngress { host_name, rate, .. } => {
            let host = known(world, host_name)?;
            sink.host(traffic::bucket(host.index, Bucket::new(*rate, host.mtu_bytes)));
        }
        Step::UnshapeIngress { host_name, .. } => {
            if let Some(host) = world.links.get(host_name) {
                sink.host_removal(traffic::bucket(host.index, Bucket::open()));
            }
        }
        Step::ShapeEgress { host_name, ifb_name, rate, .. } => shape_egress(host_name, ifb_name, *rate, world, sink)?,
        Step::UnshapeEgress { host_name, ifb_name, .. } => {
            // The redirection goes first: packets must not be sent into a link that is gone.
            if let Some(host) = world.links.get(host_name) {
                sink.host_removal(traffic::remove_redirect(host.index));
            }
            sink.host_removal(link::delete(ifb_name));
        }
        Step::SetRoute { route, .. } => sink.host(
            route::set(route, world.routes)
                .ok_or_else(|| format!("route {} needs a link that is gone: set the node up again", route.to))?,
        ),
        Step::RemoveRoute { route } => sink.host_removal(route::remove(route.to)),
        // Elements of the NAT table go by another socket.
        Step::SetPort { .. } | Step::RemovePort { .. } | Step::Exempt { .. } | Step::Unexempt { .. } => {}
    }
    Ok(())
}

/// The first request makes the link; the others fail harmlessly when it did not, because no other link
/// has the index we chose.
fn create_veth(veth: &Veth, world: &World, sink: &mut Sink) -> Result<(), String> {
    let netns = world.netns.ok_or("a veth needs the pod's namespace, and none was passed")?;
    sink.host(link::create_veth(veth, netns));
    sink.host(link::enslave(veth.host_index, veth.bridge_index));
    if veth.hairpin {
        sink.host(link::hairpin(veth.host_index, true));
    }
    if veth.promiscuous_bridge {
        sink.host(link::promiscuous(veth.bridge_index));
    }
    // While it is down this costs nothing; later it would cost packets.
    sink.host(traffic::bucket(veth.host_index, Bucket::open()));
    sink.host(traffic::ingress(veth.host_index));
    sink.host_last(link::up(veth.host_index));
    Ok(())
}

/// The bucket is in place before the first packet is sent through it.
fn shape_egress(host_name: &str, ifb_name: &str, rate: Rate, world: &World, sink: &mut Sink) -> Result<(), String> {
    let host = known(world, host_name)?;
    let ifb = known(world, ifb_name)?;
    if !ifb.exists {
        sink.host(link::create_ifb(ifb_name, ifb.index));
    }
    sink.host(traffic::bucket(ifb.index, Bucket::new(rate, host.mtu_bytes)));
    // Packets of a running pod are redirected the moment the filter is there; those of a new one cannot come yet.
    if host.exists {
        sink.host(link::up(ifb.index));
    } else {
        sink.host_last(link::up(ifb.index));
    }
    sink.host(traffic::ingress(host.index));
    sink.host(traffic::redirect(host.index, ifb.index));
    Ok(())
}

fn known(world: &World, name: &str) -> Result<Facts, String> {
    world.links.get(name).copied().ok_or_else(|| format!("link {name} is gone"))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use culvert_core::plan::PodRoute;

    use super::*;

    fn veth() -> Veth {
        Veth {
            host_name: "cv1".into(),
            host_index: 1001,
            pod_name: "eth0".into(),
            pod_index: 1002,
            pod_mac: [2; 6],
            mtu_bytes: 1400,
            bridge_index: 7,
            hairpin: true,
            promiscuous_bridge: false,
        }
    }

    fn world() -> World {
        let host = Facts { index: 1001, mtu_bytes: 1400, exists: false };
        let ifb = Facts { index: 1003, mtu_bytes: 0, exists: false };
        let links = BTreeMap::from([("cv1".to_owned(), host), ("cvifb".to_owned(), ifb)]);
        World { routes: RouteLinks::default(), links, netns: Some(9) }
    }

    #[test]
    fn new_links_come_up_after_their_disciplines_and_the_pod_after_the_host() {
        let rate = Rate { bits_per_second: 1_000_000, burst_bytes: 20_000 };
        let gateway: Option<IpAddr> = Some("10.244.1.1".parse().unwrap());
        let everywhere = PodRoute::new("0.0.0.0/0".parse().unwrap(), gateway);
        let plan = Plan {
            steps: vec![
                Step::CreateVeth(veth()),
                Step::PodLinkUp { index: 1002 },
                Step::PodRoute { index: 1002, route: everywhere },
                Step::ShapeIngress { host_name: "cv1".into(), rate, before: None },
                Step::ShapeEgress { host_name: "cv1".into(), ifb_name: "cvifb".into(), rate, before: None },
            ],
        };
        let compiled = compile(&plan, &world()).unwrap();
        let bucket = |index| traffic::bucket(index, Bucket::new(rate, 1400));
        let expected = [
            (0, Side::Host, link::create_veth(&veth(), 9)),
            (0, Side::Host, link::enslave(1001, 7)),
            (0, Side::Host, link::hairpin(1001, true)),
            (0, Side::Host, traffic::bucket(1001, Bucket::open())),
            (0, Side::Host, traffic::ingress(1001)),
            (1, Side::Pod, link::up(1002)),
            (2, Side::Pod, route::pod(1002, &everywhere)),
            (3, Side::Host, bucket(1001)),
            (4, Side::Host, link::create_ifb("cvifb", 1003)),
            (4, Side::Host, bucket(1003)),
            (4, Side::Host, traffic::ingress(1001)),
            (4, Side::Host, traffic::redirect(1001, 1003)),
            (0, Side::Host, link::up(1001)),
            (4, Side::Host, link::up(1003)),
        ];
        let found: Vec<_> = compiled.into_iter().map(|one| (one.position, one.side, one.request)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_plan_that_names_a_missing_link_or_namespace_compiles_to_nothing() {
        let rate = Rate { bits_per_second: 1, burst_bytes: 1 };
        let shape = Step::ShapeIngress { host_name: "cv2".into(), rate, before: None };
        let plan = Plan { steps: vec![Step::DeleteLink { name: "cv9".into() }, shape] };
        assert_eq!(compile(&plan, &world()), Err(Impossible { position: 1, reason: "link cv2 is gone".into() }));
        let plan = Plan { steps: vec![Step::CreateVeth(veth())] };
        assert_eq!(compile(&plan, &World::default()).unwrap_err().position, 0);
    }
}
