//! Streams on a connection that we choose.
//!
//! A peer may be connected twice, directly and through a relay, and packets should take the direct
//! connection; so a stream is opened on a connection by its id, never on any one of a peer's.
//! Connections stay open while this is part of the swarm.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, SubstreamProtocol, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream};

/// Events that a connection keeps for the swarm. The swarm takes each at once; past this, new inbound
/// streams are dropped, which their opener sees as a reset.
const MAX_WAITING: usize = 16;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Messages.
    Control,
    /// Packets.
    Data,
}

impl AsRef<str> for Lane {
    fn as_ref(&self) -> &str {
        match self {
            Self::Control => "/culvert/control/1",
            Self::Data => "/culvert/data/1",
        }
    }
}

/// What happened on a connection.
#[derive(Debug)]
pub(crate) enum LaneEvent {
    /// The peer opened a stream.
    Inbound(Lane, Stream),
    /// The stream asked for is there.
    Opened(Lane, Stream),
    /// The stream asked for could not be had.
    Failed(Lane, String),
}

/// The streams of all connections.
#[derive(Default)]
pub(crate) struct Lanes {
    /// Bounded by what the swarm's task asks for, and it drains this before it asks again.
    queue: VecDeque<ToSwarm<(PeerId, ConnectionId, LaneEvent), Lane>>,
}

impl Lanes {
    /// Opens a stream on that connection. [`LaneEvent::Opened`] or [`LaneEvent::Failed`] follows,
    /// unless the connection closes first.
    pub(crate) fn open(&mut self, peer: PeerId, connection: ConnectionId, lane: Lane) {
        let handler = NotifyHandler::One(connection);
        self.queue.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: lane });
    }
}

impl NetworkBehaviour for Lanes {
    type ConnectionHandler = LaneHandler;
    type ToSwarm = (PeerId, ConnectionId, LaneEvent);

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<LaneHandler, ConnectionDenied> {
        Ok(LaneHandler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<LaneHandler, ConnectionDenied> {
        Ok(LaneHandler::default())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.queue.push_back(ToSwarm::GenerateEvent((peer, connection, event)));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // The swarm polls again after each call above, so nothing needs to be woken.
        self.queue.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The streams of one connection.
#[derive(Default)]
pub(crate) struct LaneHandler {
    wanted: VecDeque<Lane>,
    events: VecDeque<LaneEvent>,
}

impl ConnectionHandler for LaneHandler {
    type FromBehaviour = Lane;
    type ToBehaviour = LaneEvent;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Lane;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(vec![Lane::Control, Lane::Data]), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offer, Lane, LaneEvent>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        match self.wanted.pop_front() {
            Some(lane) => {
                let protocol = SubstreamProtocol::new(Offer(vec![lane]), lane);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, lane: Lane) {
        self.wanted.push_back(lane);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), Lane>) {
        if let ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, lane), .. }) = event
        {
            if self.events.len() < MAX_WAITING {
                self.events.push_back(LaneEvent::Inbound(lane, stream));
            }
        } else if let ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
            protocol: (stream, lane),
            ..
        }) = event
        {
            self.events.push_back(LaneEvent::Opened(lane, stream));
        } else if let ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) = event {
            self.events.push_back(LaneEvent::Failed(info, error.to_string()));
        }
    }
}

/// The lanes offered when a stream is negotiated.
pub(crate) struct Offer(Vec<Lane>);

impl UpgradeInfo for Offer {
    type Info = Lane;
    type InfoIter = std::vec::IntoIter<Lane>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (Stream, Lane);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, lane: Lane) -> Self::Future {
        ready(Ok((stream, lane)))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (Stream, Lane);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, lane: Lane) -> Self::Future {
        ready(Ok((stream, lane)))
    }
}
