//! What two meshes ask each other about the data path: keys, and where datagrams reach them. Their owners hear
//! nothing of it.

use std::net::SocketAddr;

use culvert_core::membership::PeerId;
use serde::{Deserialize, Serialize};

/// What one mesh asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub(crate) enum DataAsk {
    /// Let us agree on data keys. See `culvert_datagram::agreement`.
    OfferKeys {
        #[serde(with = "crate::hex::as_text")]
        offer: Vec<u8>,
    },
    /// I have the keys too.
    ConfirmKeys {
        #[serde(with = "crate::hex::as_text")]
        confirm: Vec<u8>,
    },
    /// Datagrams may reach me there; where may they reach you?
    DataEndpoints(DataEndpoints),
    /// To a relay: forward datagrams between me and that peer.
    ReserveRelay { peer: PeerId },
    /// From a relay: that peer and you may use this place.
    RelayReserved { peer: PeerId, place: RelayPlace },
}

/// What comes back, beside refusals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum DataAnswer {
    /// I have the keys.
    KeysAccepted {
        #[serde(with = "crate::hex::as_text")]
        accept: Vec<u8>,
    },
    /// So we both have them.
    KeysConfirmed,
    /// There.
    DataEndpoints(DataEndpoints),
    /// Use this place.
    RelayReserved { place: RelayPlace },
    /// I know now.
    Noted,
}

/// One end's place at a relay. See `culvert_datagram::forward`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelayPlace {
    /// Where the relay takes datagrams, at the address it is known by.
    pub(crate) port: u16,
    /// The place's number.
    pub(crate) index: u32,
    /// The place's random number.
    pub(crate) tag: u32,
}

/// Where datagrams may reach a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataEndpoints {
    /// The port that the node itself listens on, for addresses that only others know.
    pub(crate) port: u16,
    /// Its own addresses, and those that others saw it by.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// What a question was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataTopic {
    Offer,
    Confirm,
    Endpoints,
    /// A place at a relay, for datagrams to that peer.
    Relay(libp2p::PeerId),
    /// News of a place.
    Place,
}
