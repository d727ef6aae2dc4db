//! All paths to one peer: which there are, when each is probed, and which is in use.
//!
//! ```text
//! told or seen ──> untried: every 200 ms for 5 s (both ends at once open NATs), then seldom
//!                     └─ answered ─> alive: every second; in use with packets on it: every 200 ms
//!                                       └─ three probes unanswered ─> dead: as untried
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Change, Chooser, Contender, Endpoint, Health, Origin, PathId, ProbeSize, Quality};

/// Between probes of a path that is being opened, and of the one that carries packets.
/// **Source** DATAPLANE, paths; TRUST: a dead path is left within a second.
pub const BUSY_INTERVAL: Duration = Duration::from_millis(200);
/// Between probes of a path that could be used. Keeps the shortest-lived NAT entries open. **Source** DATAPLANE, paths.
pub const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Between probes of a path that does not answer: 4 datagrams of 72 bytes a minute.
pub const QUIET_INTERVAL: Duration = Duration::from_secs(15);

/// How long a path is tried hard when it is new, died, or the other end was told anew.
const EAGER: Duration = Duration::from_secs(5);

/// Addresses and reservations that a peer may tell of itself; the first count.
pub const MAX_TOLD: usize = 16;
/// Addresses that only showed in authentic frames. One more replaces the one that is silent longest, so that a NAT
/// that changes its mind costs no memory.
pub const MAX_SEEN: usize = 4;

/// A probe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOrder {
    /// By which path.
    pub path: PathId,
    /// The probe's number on that path.
    pub sequence: u32,
    /// How long it is.
    pub size: ProbeSize,
    /// Where to.
    pub endpoint: Endpoint,
}

/// A path as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathReport {
    /// Where it leads.
    pub endpoint: Endpoint,
    /// How it came to be known.
    pub origin: Origin,
    /// Whether it carries packets.
    pub health: Health,
    /// Its round trip, once it was answered.
    pub round_trip: Option<Duration>,
    /// **Units** per thousand.
    pub loss_permille: u32,
    /// The largest packet it carries. **Units** bytes of an IP packet on the wire; `None` before the first answer.
    pub mtu_bytes: Option<u16>,
    /// Whether packets take it.
    pub is_current: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Path {
    endpoint: Endpoint,
    origin: Origin,
    quality: Quality,
    eager_until: Duration,
    heard_at: Duration,
}

impl Path {
    fn new(endpoint: Endpoint, origin: Origin, now: Duration) -> Self {
        Self { endpoint, origin, quality: Quality::default(), eager_until: now + EAGER, heard_at: now }
    }
}

/// All paths to one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathSet {
    paths: BTreeMap<PathId, Path>,
    next: u32,
    chooser: Chooser,
}

impl PathSet {
    /// Takes over what the peer tells of itself now. What it told before and does not tell now goes, unless it was
    /// answered: an address that works is believed more than a list.
    ///
    /// **Bounds** the first [`MAX_TOLD`].
    pub fn tell(&mut self, now: Duration, told: &[Endpoint]) {
        let told: Vec<&Endpoint> = told.iter().take(MAX_TOLD).collect();
        self.paths.retain(|_, path| {
            let works = path.endpoint.is_direct() && path.quality.health(now) == Health::Alive;
            let stays = told.contains(&&path.endpoint);
            if !stays && path.origin == Origin::Told && works {
                path.origin = Origin::Seen;
            }
            stays || path.origin == Origin::Seen
        });
        for endpoint in told {
            match self.find_mut(endpoint) {
                Some(path) => (path.origin, path.eager_until) = (Origin::Told, now + EAGER),
                None => self.add(endpoint.clone(), Origin::Told, now),
            }
        }
        self.bound_seen();
    }

    /// An authentic frame of the peer came from there. True when that was not known: both it and the direct path in
    /// use, which a NAT may have forgotten, are to be probed at once.
    pub fn see(&mut self, now: Duration, from: SocketAddr) -> bool {
        let endpoint = Endpoint::Direct(from);
        if let Some(path) = self.find_mut(&endpoint) {
            if path.quality.health(now) != Health::Alive {
                path.eager_until = now + EAGER;
            }
            path.heard_at = now;
            return false;
        }
        self.add(endpoint, Origin::Seen, now);
        self.bound_seen();
        let current = self.chooser.current().and_then(|id| self.paths.get_mut(&id));
        if let Some(path) = current.filter(|path| path.endpoint.is_direct()) {
            path.quality.doubt(now);
        }
        true
    }

    /// The probes that are due. `carries_packets` says whether packets went by the path in use lately.
    pub fn due_probes(&mut self, now: Duration, carries_packets: bool) -> Vec<ProbeOrder> {
        let (current, rival) = (self.chooser.current(), self.chooser.rival());
        let mut due = Vec::new();
        for (id, path) in &mut self.paths {
            let interval = match path.quality.health(now) {
                _ if path.quality.wants_probe() => Duration::ZERO,
                Health::Alive if current == Some(*id) && carries_packets => BUSY_INTERVAL,
                // Nobody moves to a path that died while it was waiting.
                Health::Alive if rival == Some(*id) => BUSY_INTERVAL,
                // Settles soon, and then rests.
                Health::Alive if path.quality.answers() < super::SETTLED_ANSWERS => BUSY_INTERVAL,
                Health::Alive => IDLE_INTERVAL,
                Health::Untried | Health::Dead if now < path.eager_until => BUSY_INTERVAL,
                Health::Untried | Health::Dead => QUIET_INTERVAL,
            };
            if path.quality.last_sent().is_none_or(|last| now.saturating_sub(last) >= interval) {
                let (sequence, size) = path.quality.note_sent(now);
                due.push(ProbeOrder { path: *id, sequence, size, endpoint: path.endpoint.clone() });
            }
        }
        due
    }

    /// An authentic answer came. False when it answers nothing.
    pub fn answered(&mut self, now: Duration, path: PathId, sequence: u32) -> bool {
        let Some(path) = self.paths.get_mut(&path) else { return false };
        path.heard_at = now;
        path.quality.note_answer(now, sequence)
    }

    /// Decides again which path to use.
    pub fn decide(&mut self, now: Duration) -> Option<Change> {
        self.paths.values_mut().for_each(|path| path.quality.review_mtu(now));
        let contenders: Vec<Contender> = self.paths.iter().map(|(id, path)| contender(*id, path, now)).collect();
        let change = self.chooser.decide(now, &contenders);
        for path in self.paths.values_mut().filter(|path| path.quality.health(now) == Health::Dead) {
            // A path that was never of use, because it carries short packets only, is not worth the haste.
            if path.quality.mtu_bytes().is_some() {
                path.eager_until = now + EAGER;
            }
            path.quality.forget();
        }
        change
    }

    /// Where packets go now; `None` is the stream.
    #[must_use]
    pub fn current(&self) -> Option<&Endpoint> {
        self.chooser.current().and_then(|id| self.endpoint(id))
    }

    /// The largest packet that the path in use carries. **Units** bytes of an IP packet on the wire.
    #[must_use]
    pub fn current_mtu_bytes(&self) -> Option<u16> {
        self.chooser.current().and_then(|id| self.paths.get(&id)).and_then(|path| path.quality.mtu_bytes())
    }

    /// Where a path leads, while it is a candidate.
    #[must_use]
    pub fn endpoint(&self, id: PathId) -> Option<&Endpoint> {
        self.paths.get(&id).map(|path| &path.endpoint)
    }

    /// Forgets what every path was: the keys that probes were sealed by are gone.
    pub fn forget(&mut self, now: Duration) -> Option<Change> {
        for path in self.paths.values_mut() {
            path.quality.forget();
            path.eager_until = now + EAGER;
        }
        self.decide(now)
    }

    /// All paths, the oldest first.
    #[must_use]
    pub fn report(&self, now: Duration) -> Vec<PathReport> {
        let report = |(id, path): (&PathId, &Path)| PathReport {
            endpoint: path.endpoint.clone(),
            origin: path.origin,
            health: path.quality.health(now),
            round_trip: path.quality.round_trip(),
            loss_permille: path.quality.loss_permille(now),
            mtu_bytes: path.quality.mtu_bytes(),
            is_current: self.chooser.current() == Some(*id),
        };
        self.paths.iter().map(report).collect()
    }

    fn find_mut(&mut self, endpoint: &Endpoint) -> Option<&mut Path> {
        self.paths.values_mut().find(|path| path.endpoint == *endpoint)
    }

    fn add(&mut self, endpoint: Endpoint, origin: Origin, now: Duration) {
        self.paths.insert(PathId(self.next), Path::new(endpoint, origin, now));
        self.next = self.next.wrapping_add(1);
    }

    fn bound_seen(&mut self) {
        let current = self.chooser.current();
        loop {
            let seen = self.paths.iter().filter(|(_, path)| path.origin == Origin::Seen);
            if seen.clone().count() <= MAX_SEEN {
                return;
            }
            let spare = seen.filter(|(id, _)| Some(**id) != current).min_by_key(|(id, path)| (path.heard_at, **id));
            let Some(id) = spare.map(|(id, _)| *id) else { return };
            self.paths.remove(&id);
        }
    }
}

/// A path whose size is not known yet cannot be used.
fn contender(id: PathId, path: &Path, now: Duration) -> Contender {
    let health = path.quality.mtu_bytes().map_or(Health::Untried, |_| path.quality.health(now));
    Contender {
        id,
        is_direct: path.endpoint.is_direct(),
        health,
        answers: path.quality.answers(),
        round_trip: path.quality.round_trip().unwrap_or_default(),
        loss_permille: path.quality.loss_permille(now),
    }
}

#[cfg(test)]
mod tests;
