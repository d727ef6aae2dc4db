//! Removes links together, and answers when the kernel reports them gone.
//!
//! The kernel acknowledges the removal of a link only after every CPU has forgotten it: some 20 ms, as long for
//! many links as for one. But it reports each link gone within a millisecond, and from then on nothing of it is
//! left. So links that go are put into a group and deleted as one, on threads that may wait, and the answer is
//! given on the report.
//!
//! ```text
//! remove(names) ──queue──> worker: look up ─ put into the group ─ delete the group ─ … acknowledged
//!       ^                                            monitor: RTM_DELLINK index ──┐
//!       └───────────────── all of its links are gone ─────────────────────────────┘
//! ```
use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::batch::{Answer, Channel, SEND_MAX, events};
use crate::error::KernelError;
use crate::kill_point::{ONE_BY_ONE, kill_point};
use crate::message::{Request, link};

/// Batches under way at a time. One would make each wait for the acknowledgement of the one before.
const WORKERS: usize = 4;
/// `RTNLGRP_LINK`.
const LINK_REPORTS: u32 = 1;
/// **Units** bytes. The largest report of a link.
const REPORT_BYTES: usize = 32 * 1024;

/// A way to remove links; a clone asks the same threads. They end when the last clone is gone.
#[derive(Clone, Debug)]
pub struct LinkRemover {
    queue: Sender<Job>,
}

/// Links to remove, and who waits for it.
struct Job {
    names: Vec<String>,
    done: oneshot::Sender<Result<(), KernelError>>,
}

/// A job whose links are not all gone.
struct Pending {
    indexes: BTreeSet<u32>,
    done: Option<oneshot::Sender<Result<(), KernelError>>>,
}

/// The jobs under way, shared by workers and monitor.
#[derive(Default)]
struct UnderWay(Mutex<Vec<Pending>>);

impl LinkRemover {
    /// Starts the threads, in the calling thread's network namespace.
    ///
    /// **Errors** [`KernelError::Open`].
    pub fn start() -> Result<Self, KernelError> {
        let under_way = Arc::new(UnderWay::default());
        let (queue, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..WORKERS {
            let worker = Worker {
                channel: Channel::open(NETLINK_ROUTE).map_err(KernelError::Open)?,
                probe: crate::index_probe().map_err(KernelError::Open)?,
                under_way: Arc::clone(&under_way),
            };
            let jobs = Arc::clone(&jobs);
            spawn(format!("link-remover-{number}"), move || worker.run(&jobs))?;
        }
        let (socket, under_way) = (monitor().map_err(KernelError::Open)?, Arc::downgrade(&under_way));
        spawn("link-monitor".to_owned(), move || {
            let mut buffer = vec![0; REPORT_BYTES];
            // The workers are gone when nobody can ask any more.
            while let Some(under_way) = under_way.upgrade() {
                watch(&socket, &mut buffer, &under_way);
            }
        })?;
        Ok(Self { queue })
    }

    /// Removes links by name, and returns when none of them is left. One that is gone already is fine.
    ///
    /// **Errors** [`KernelError`], when the kernel refuses. **Cancel safety** the links go in any case.
    pub async fn remove(&self, names: Vec<String>) -> Result<(), KernelError> {
        let (done, answer) = oneshot::channel();
        let lost = || KernelError::NoAnswer { action: "remove links".into(), detail: "its thread is gone".into() };
        self.queue.send(Job { names, done }).map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<(), KernelError> {
    std::thread::Builder::new().name(name).spawn(work).map(drop).map_err(KernelError::Open)
}

struct Worker {
    channel: Channel<Socket>,
    probe: OwnedFd,
    under_way: Arc<UnderWay>,
}

impl Worker {
    fn run(mut self, jobs: &Mutex<Receiver<Job>>) {
        while let Some(batch) = next_batch(jobs) {
            self.remove(batch);
        }
    }

    /// Whatever waits goes together.
    fn remove(&mut self, batch: Vec<Job>) {
        let mut indexes = BTreeSet::new();
        for Job { names, done } in batch {
            let found: BTreeSet<u32> = names.iter().filter_map(|name| self.index_of(name)).collect();
            indexes.extend(&found);
            self.under_way.add(found, done);
        }
        for part in indexes.into_iter().collect::<Vec<_>>().chunks(SEND_MAX - 1) {
            let outcome = self.delete(part);
            // Acknowledged means gone, should a report have been missed.
            self.under_way.finish(part, outcome);
        }
    }

    fn index_of(&self, name: &str) -> Option<u32> {
        rustix::net::netdevice::name_to_index(&self.probe, name).ok()
    }

    fn delete(&mut self, indexes: &[u32]) -> Result<(), io::Error> {
        let mut requests: Vec<Request> = indexes.iter().map(|index| link::departing(*index)).collect();
        requests.push(link::delete_departing());
        let answers = self.send(requests)?;
        // That a link cannot be moved, or that no link is in the group, means that it is gone.
        let refusals = answers.into_iter().filter_map(Result::err);
        let mut refusals = refusals.filter(|refusal| ![libc::ENODEV, libc::ESRCH].contains(&refusal.errno));
        refusals.next().map_or(Ok(()), |refusal| Err(io::Error::from_raw_os_error(refusal.errno)))
    }

    fn send(&mut self, requests: Vec<Request>) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        for part in requests.chunks(if ONE_BY_ONE { 1 } else { SEND_MAX }) {
            kill_point(|| "step delete-link".to_owned());
            answers.extend(self.channel.send(part.to_vec())?);
        }
        kill_point(|| "links deleted".to_owned());
        Ok(answers)
    }
}

/// Waits for a job and takes along what else waits.
fn next_batch(jobs: &Mutex<Receiver<Job>>) -> Option<Vec<Job>> {
    let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = vec![jobs.recv().ok()?];
    batch.extend(jobs.try_iter());
    Some(batch)
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, indexes: BTreeSet<u32>, done: oneshot::Sender<Result<(), KernelError>>) {
        self.lock().push(Pending { indexes, done: Some(done) });
        self.settle(|_| {});
    }

    /// Applies a change to every job and answers those that have nothing left.
    fn settle(&self, change: impl Fn(&mut Pending)) {
        let mut pending = self.lock();
        pending.iter_mut().for_each(&change);
        pending.retain_mut(|job| {
            if job.indexes.is_empty()
                && let Some(done) = job.done.take()
            {
                // Nobody waits any more when the receiver is gone.
                let _ = done.send(Ok(()));
            }
            job.done.is_some()
        });
    }

    fn gone(&self, index: u32) {
        self.settle(|job| {
            job.indexes.remove(&index);
        });
    }

    /// The kernel is done with these links.
    fn finish(&self, indexes: &[u32], outcome: Result<(), io::Error>) {
        match outcome {
            Ok(()) => self.settle(|job| job.indexes.retain(|index| !indexes.contains(index))),
            Err(error) => self.fail(indexes, &error),
        }
    }

    fn fail(&self, indexes: &[u32], error: &io::Error) {
        self.settle(|job| {
            if indexes.iter().any(|index| job.indexes.contains(index))
                && let Some(done) = job.done.take()
            {
                let source = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                let _ = done.send(Err(KernelError::Refused { action: "remove a pod's links".into(), source }));
            }
        });
    }
}

/// A socket that hears of every link that goes.
fn monitor() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(LINK_REPORTS)?;
    // So that the thread notices when it is not needed any more.
    let limit = Some(std::time::Duration::from_secs(1));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, limit)?;
    Ok(socket)
}

/// Takes in the next reports. Lost ones do not matter: the acknowledgement comes later.
fn watch(socket: &Socket, buffer: &mut [u8], under_way: &UnderWay) {
    match rustix::net::recv(socket, &mut *buffer, rustix::net::RecvFlags::empty()) {
        Ok((length, _)) => gone_links(buffer.get(..length).unwrap_or_default()).for_each(|index| under_way.gone(index)),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => {}
        Err(error) => {
            tracing::debug!(%error, "links that go are not reported");
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
}

/// The links that a datagram reports gone. A port that only left its bridge is reported in another family.
fn gone_links(datagram: &[u8]) -> impl Iterator<Item = u32> + '_ {
    events(datagram).filter(|event| event.kind == libc::RTM_DELLINK).filter_map(|event| {
        let (header, family) = (event.body.get(..8)?, *event.body.first()?);
        let index = header.get(4..)?.try_into().map(u32::from_ne_bytes).ok()?;
        (i32::from(family) == libc::AF_UNSPEC).then_some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct nlmsghdr` and `struct ifinfomsg`.
    fn report(kind: u16, family: u8, index: u32) -> Vec<u8> {
        let mut bytes = 32_u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16, 0);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(index.to_ne_bytes());
        bytes.resize(32, 0);
        bytes
    }

    #[test]
    fn only_the_end_of_a_link_counts_and_not_of_its_place_on_a_bridge() {
        let bridge = u8::try_from(libc::AF_BRIDGE).unwrap();
        let datagram = [
            report(libc::RTM_DELLINK, 0, 7),
            report(libc::RTM_NEWLINK, 0, 8),
            report(libc::RTM_DELLINK, bridge, 9),
            report(libc::RTM_DELLINK, 0, 10),
        ];
        assert_eq!(gone_links(&datagram.concat()).collect::<Vec<_>>(), [7, 10]);
        assert_eq!(gone_links(&report(libc::RTM_DELLINK, 0, 7)[..31]).count(), 0);
    }
}
