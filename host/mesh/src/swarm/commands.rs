//! What the owner of the mesh asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use culvert_core::membership;
use libp2p::PeerId;
use tokio::sync::{mpsc, oneshot};

use super::{Audience, Command, Mesh};
use crate::config::PeerEndpoint;
use crate::control::{AskError, Saying};
use crate::identity::from_core;
use crate::message::{self, Answer, Ask};
use crate::peer::Peer;
use crate::record::CountersignedRecord;

/// Sayings that wait while a peer's control stream is being opened. Beyond it questions are refused
/// and news is dropped and counted.
const MAX_UNSENT: usize = 64;

impl Mesh {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::SetPeers(endpoints) => self.set_peers(endpoints),
            Command::Ask { peer, ask, reply } => self.ask(&peer, ask, reply),
            Command::Tell { audience, records } => self.tell_peers(&audience, &records),
            // The loop ends on it before it comes here.
            Command::Shutdown(_) => {}
        }
    }

    fn set_peers(&mut self, endpoints: Vec<PeerEndpoint>) {
        let now = Instant::now();
        let mut wanted: BTreeMap<PeerId, Vec<std::net::SocketAddr>> = BTreeMap::new();
        for endpoint in endpoints {
            match from_core(&endpoint.peer) {
                Some(id) if id == self.local => {}
                Some(id) => wanted.entry(id).or_default().extend(endpoint.addresses),
                None => tracing::warn!(peer = %endpoint.peer, "not dialing a node whose peer id cannot be read"),
            }
        }
        let dropped: BTreeSet<PeerId> = self.peers.keys().filter(|id| !wanted.contains_key(*id)).copied().collect();
        for id in dropped {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.wanted = None;
            }
            self.forget_if_useless(id);
        }
        for (id, addresses) in wanted {
            let peer = self.peer_entry(id, now);
            if peer.wanted.as_ref() != Some(&addresses) {
                peer.wanted = Some(addresses);
                peer.dial.hurry(now);
            }
        }
        self.changed = true;
        self.on_tick();
    }

    fn ask(&mut self, name: &membership::PeerId, ask: Ask, reply: oneshot::Sender<Result<Answer, AskError>>) {
        let peer = from_core(name).and_then(|id| self.peers.get_mut(&id));
        let Some(peer) = peer.filter(|peer| !peer.connections.is_empty()) else {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(Err(AskError::NotConnected { peer: name.clone() }));
            return;
        };
        if let Err(Saying::Ask(_, reply)) = say(peer, Saying::Ask(ask, reply)) {
            let _ = reply.send(Err(AskError::Busy { peer: name.clone() }));
        }
    }

    fn tell_peers(&mut self, audience: &Audience, records: &[CountersignedRecord]) {
        let messages = match message::encode_tells(records) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(%error, "records do not fit a message and were told to nobody");
                return;
            }
        };
        for message in messages {
            let message: Arc<[u8]> = message.into();
            for peer in self.peers.values_mut().filter(|peer| !peer.connections.is_empty()) {
                let is_meant = match audience {
                    Audience::All => true,
                    Audience::Peer(name) => peer.name == *name,
                };
                if is_meant && say(peer, Saying::Tell(Arc::clone(&message))).is_err() {
                    self.published.counters.tells_dropped.add(1);
                }
            }
        }
    }
}

/// Queues something for a connected peer; gives it back when there are too many already.
pub(super) fn say(peer: &mut Peer, saying: Saying) -> Result<(), Saying> {
    let saying = match &peer.sayings {
        Some(sayings) => match sayings.try_send(saying) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Full(saying)) => return Err(saying),
            // The stream has just ended; the next one takes it.
            Err(mpsc::error::TrySendError::Closed(saying)) => saying,
        },
        None => saying,
    };
    if peer.unsent.len() >= MAX_UNSENT {
        return Err(saying);
    }
    peer.unsent.push_back(saying);
    Ok(())
}
