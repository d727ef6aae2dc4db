//! Datagrams, as far as the mesh's task has to do with them: agrees on keys, exchanges addresses, sends and answers
//! probes, and moves packets to the best path.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_core::membership;
use culvert_core::path::Endpoint;
use culvert_datagram::agreement::AgreementError;
use culvert_datagram::frame::Kind;
use libp2p::PeerId;
use tokio::sync::oneshot;

use super::commands::say;
use super::{Mesh, Report};
use crate::address::socket_of;
use crate::control::{AskError, Saying};
use crate::data_message::{DataAnswer, DataAsk, DataEndpoints, DataTopic};
use crate::datagram::Notice;
use crate::datagram_link::{DatagramLink, Moved, Ready};
use crate::event::PeerPath;
use crate::identity::{from_core, to_core};
use crate::message::{Answer, Reply};
use crate::own_endpoints::candidates;
use crate::packet_threads::TunEnds;
use crate::peer::Peer;

impl Mesh {
    /// What the packet threads noticed.
    pub(super) fn on_notice(&mut self, notice: Notice) {
        let now = self.now();
        match notice {
            Notice::Moved { peer, from, relay: None } => self.with_link(&peer, |link| link.on_seen(now, from)),
            // A packet through a relay says nothing about where the peer is.
            Notice::Moved { relay: Some(_), .. } => {}
            Notice::Probe { peer, from, relay, kind: Kind::Probe, payload } => {
                let mut ready = None;
                self.with_link(&peer, |link| ready = link.on_probe(now, from, relay, &payload));
                self.send(ready);
            }
            Notice::Probe { peer, kind: Kind::Answer, payload, .. } => {
                let mut observed = None;
                self.with_link(&peer, |link| observed = link.on_answer(now, &payload));
                if let Some((own, observed)) = self.own_endpoints.as_mut().zip(observed) {
                    own.note_observed(observed);
                }
            }
            Notice::Probe { kind: Kind::Packet, .. } => {}
        }
    }

    /// What time alone changes for the datagrams of one peer.
    pub(super) fn tend_datagrams(&mut self, id: PeerId) {
        let now = self.now();
        let Some(link) = self.link_mut(id) else { return };
        let (ready, moved) = link.on_tick(now);
        ready.into_iter().for_each(|ready| self.send(Some(ready)));
        self.note_moved(id, moved);
        if self.peers.get(&id).is_none_or(|peer| peer.announced.is_none()) {
            return;
        }
        self.tell_endpoints(id);
        if let Some(offer) = self.link_mut(id).and_then(|link| link.offer(now)) {
            self.ask_data(id, DataTopic::Offer, DataAsk::OfferKeys { offer });
        }
        self.seek_relays(id);
    }

    /// The peer's process is another one.
    pub(super) fn on_peer_restarted(&mut self, id: PeerId) {
        let now = self.now();
        let moved = self.link_mut(id).and_then(|link| link.on_restart(now));
        self.note_moved(id, moved);
    }

    /// A peer asks about the data path.
    pub(super) fn on_data_asked(&mut self, id: PeerId, ask: DataAsk, reply: oneshot::Sender<Reply>) {
        let now = self.now();
        let answer = match ask {
            DataAsk::OfferKeys { offer } => self.answer_by_link(id, |link| {
                link.on_offer(now, &offer).map(|accept| DataAnswer::KeysAccepted { accept })
            }),
            DataAsk::ConfirmKeys { confirm } => {
                self.answer_by_link(id, |link| link.on_confirm(now, &confirm).map(|()| DataAnswer::KeysConfirmed))
            }
            DataAsk::DataEndpoints(told) => self.on_endpoints(id, &told).ok_or_else(no_datagrams),
            DataAsk::ReserveRelay { peer } => self.reserve_relay(id, &peer),
            DataAsk::RelayReserved { peer, place } => self.on_relay_reserved(id, &peer, place),
        };
        // The peer may have stopped waiting.
        let _ = reply.send(answer.map_or_else(|reason| Reply::Owner(Answer::Refused { reason }), Reply::Data));
    }

    /// A peer answered a question about the data path.
    pub(super) fn on_data_answered(&mut self, id: PeerId, topic: DataTopic, outcome: Result<Reply, AskError>) {
        let now = self.now();
        match (topic, outcome) {
            (DataTopic::Offer, Ok(Reply::Data(DataAnswer::KeysAccepted { accept }))) => {
                let Some(link) = self.link_mut(id) else { return };
                match link.on_accept(now, &accept) {
                    Ok(confirm) => self.ask_data(id, DataTopic::Confirm, DataAsk::ConfirmKeys { confirm }),
                    Err(error) => self.note_disagreement(id, &error.to_string()),
                }
            }
            (DataTopic::Endpoints, Ok(Reply::Data(DataAnswer::DataEndpoints(told)))) => {
                self.take_endpoints(id, &told);
            }
            (DataTopic::Relay(peer), Ok(Reply::Data(DataAnswer::RelayReserved { place }))) => {
                self.take_place(id, peer, place);
            }
            (DataTopic::Confirm, Ok(Reply::Data(DataAnswer::KeysConfirmed)))
            | (DataTopic::Place, Ok(Reply::Data(DataAnswer::Noted))) => {}
            (topic, outcome) => {
                let is_lost = outcome.is_err();
                let reason = match outcome {
                    Ok(Reply::Owner(Answer::Refused { reason })) => reason,
                    Ok(Reply::Owner(Answer::Unsupported { .. })) => "its version knows no datagrams".to_owned(),
                    Ok(_) => "it gave the answer to another question".to_owned(),
                    Err(error) => error.to_string(),
                };
                match topic {
                    DataTopic::Offer => {
                        if let Some(link) = self.link_mut(id) {
                            link.on_failure(now);
                        }
                        self.note_disagreement(id, &reason);
                    }
                    // What did not arrive is told again; who does not understand it is told no more.
                    DataTopic::Endpoints => {
                        if let Some(link) = self.link_mut(id).filter(|_| is_lost) {
                            link.told = None;
                        }
                    }
                    // The first frame by the new keys confirms as well, and places are asked for again.
                    DataTopic::Confirm | DataTopic::Relay(_) | DataTopic::Place => {
                        tracing::debug!(peer = %id, ?topic, reason, "a question about datagrams failed");
                    }
                }
            }
        }
    }

    fn note_disagreement(&self, id: PeerId, reason: &str) {
        self.published.counters.key_agreements_failed.add(1);
        tracing::info!(peer = %id, reason, "no data keys agreed with the peer; its packets take the stream");
    }

    fn answer_by_link(
        &mut self,
        id: PeerId,
        answer: impl FnOnce(&mut DatagramLink) -> Result<DataAnswer, AgreementError>,
    ) -> Result<DataAnswer, String> {
        let outcome = self.link_mut(id).map(answer).ok_or_else(no_datagrams)?;
        outcome.map_err(|error| {
            self.note_disagreement(id, &error.to_string());
            error.to_string()
        })
    }

    /// Tells a peer where datagrams reach this node, when it does not know.
    fn tell_endpoints(&mut self, id: PeerId) {
        let Some(endpoints) = self.endpoints_for(id) else { return };
        let Some(link) = self.link_mut(id).filter(|link| link.told.as_ref() != Some(&endpoints)) else { return };
        link.told = Some(endpoints.clone());
        self.ask_data(id, DataTopic::Endpoints, DataAsk::DataEndpoints(endpoints));
    }

    fn endpoints_for(&self, id: PeerId) -> Option<DataEndpoints> {
        let (tun, own, peer) = (self.tun.as_ref()?, self.own_endpoints.as_ref()?, self.peers.get(&id)?);
        Some(own.for_peer(is_here(peer), |ip| is_inside(tun, ip)))
    }

    /// Takes over a peer's endpoints and answers by ours.
    fn on_endpoints(&mut self, id: PeerId, told: &DataEndpoints) -> Option<DataAnswer> {
        let own = self.endpoints_for(id)?;
        self.take_endpoints(id, told);
        self.link_mut(id)?.told = Some(own.clone());
        Some(DataAnswer::DataEndpoints(own))
    }

    fn take_endpoints(&mut self, id: PeerId, told: &DataEndpoints) {
        let now = self.now();
        let (Some(tun), Some(peer)) = (&self.tun, self.peers.get(&id)) else { return };
        let dialed = peer.addresses().into_iter().map(|address| address.ip());
        let seen = peer.connections.iter().filter_map(|connection| match connection.path {
            PeerPath::Direct { remote } => Some(remote.ip()),
            PeerPath::Relayed { .. } => None,
        });
        let known: BTreeSet<IpAddr> = dialed.chain(seen).collect();
        let found = candidates(told, known, is_here(peer), |ip| is_inside(tun, ip));
        if let Some(link) = self.link_mut(id) {
            link.on_told(now, &found);
        }
    }

    /// The addresses of this node have changed.
    pub(super) fn refresh_own_endpoints(&mut self) {
        let local = self.swarm.listeners().filter_map(socket_of).map(|address| address.ip()).collect();
        if let Some(own) = &mut self.own_endpoints {
            own.set_local(local);
        }
    }

    pub(super) fn ask_data(&mut self, id: PeerId, topic: DataTopic, ask: DataAsk) {
        let (reply, outcome) = oneshot::channel();
        let reports = self.reports.clone();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let name = peer.name.clone();
        // A full queue drops the question, and with it `reply`: that is the outcome.
        let _ = say(peer, Saying::AskData(ask, reply));
        tokio::spawn(async move {
            let outcome = outcome.await.unwrap_or(Err(AskError::Interrupted { peer: name }));
            // The mesh may be gone.
            let _ = reports.send(Report::DataAnswered { peer: id, topic, outcome }).await;
        });
    }

    fn note_moved(&mut self, id: PeerId, moved: Option<Moved>) {
        let Some(Moved { from, to, reason }) = moved else { return };
        self.changed = true;
        self.published.counters.path_changes.add(1);
        let (from, to) = (describe(from.as_ref()), describe(to.as_ref()));
        tracing::info!(peer = %to_core(&id), from, to, %reason, "packets take another path");
    }

    fn send(&self, ready: Option<Ready>) {
        let (Some(ready), Some(tun)) = (ready, &self.tun) else { return };
        if let Err(error) = tun.datagrams.socket.send(&ready.bytes, ready.bytes.len(), ready.to) {
            // An address that cannot be reached from here is a path without answers.
            tracing::trace!(to = %ready.to, %error, "a probe was not sent");
        }
    }

    fn with_link(&mut self, peer: &membership::PeerId, act: impl FnOnce(&mut DatagramLink)) {
        if let Some(link) = from_core(peer).and_then(|id| self.link_mut(id)) {
            act(link);
        }
    }

    pub(super) fn link_mut(&mut self, id: PeerId) -> Option<&mut DatagramLink> {
        self.peers.get_mut(&id)?.data.as_mut()?.link.as_mut()
    }

    /// Since the start.
    pub(super) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.started)
    }
}

pub(super) fn no_datagrams() -> String {
    "this node carries no datagrams".to_owned()
}

/// Whether a peer is on this very machine.
fn is_here(peer: &Peer) -> bool {
    peer.connections.iter().any(|connection| match connection.path {
        PeerPath::Direct { remote } => remote.ip().to_canonical().is_loopback(),
        PeerPath::Relayed { .. } => false,
    })
}

/// Whether an address is one of the pod network: a datagram to it would come out of the tunnel that it carries.
fn is_inside(tun: &TunEnds, ip: IpAddr) -> bool {
    let table = tun.table.load();
    table.peer_for(ip).is_some() || table.destination_allowed(ip)
}

fn describe(endpoint: Option<&Endpoint>) -> String {
    match endpoint {
        None => "stream".to_owned(),
        Some(Endpoint::Direct(remote)) => format!("direct {remote}"),
        Some(Endpoint::Relayed { relay, at, .. }) => format!("relayed by {relay} at {at}"),
    }
}
