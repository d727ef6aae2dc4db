//! The control streams. Each side opens one to each peer and asks and tells on it; the answers come
//! back on the same stream. So neither side has to be elected to open it, and either can move to a
//! better connection alone: the old stream still takes the answers that are due, then ends.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::membership;
use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::counters::Counters;
use crate::data_message::DataAsk;
use crate::event::MeshEvent;
use crate::message::{self, Answer, Ask, Incoming, Question, Reply};
use crate::stream_head::StreamHead;
use crate::swarm::Report;

/// Questions that wait for their answer on one stream. Further ones wait in the peer's queue.
const MAX_OUTSTANDING: usize = 64;

/// A question that was not answered until then is given up. **Source** DESIGN §4: an ADD waits for
/// a claim 2 s at most; a registration may wait for the keeper's disk.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A peer that does not take a message for this long is stuck; the stream is opened anew.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// How much is read at once. **Units** bytes.
const READ_BYTES: usize = 16 * 1024;

/// Something to say to a peer.
#[derive(Debug)]
pub(crate) enum Saying {
    /// A question, and who waits for the answer.
    Ask(Ask, oneshot::Sender<Result<Answer, AskError>>),
    /// A question about the data path, and where the mesh's own task waits for the reply.
    AskData(DataAsk, oneshot::Sender<Result<Reply, AskError>>),
    /// News, encoded.
    Tell(Arc<[u8]>),
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There is no connection to that peer.
    #[error("node {peer} is not connected; the mesh keeps dialing it")]
    NotConnected {
        /// The peer asked.
        peer: membership::PeerId,
    },
    /// Too many questions wait already.
    #[error("too many questions to node {peer} are waiting; ask again later")]
    Busy {
        /// The peer asked.
        peer: membership::PeerId,
    },
    /// The connection broke before the answer came. The peer may have acted on the question.
    #[error("the connection to node {peer} broke before it answered; ask again")]
    Interrupted {
        /// The peer asked.
        peer: membership::PeerId,
    },
    /// No answer in time. The peer may have acted on the question.
    #[error("node {peer} did not answer within {} s", ANSWER_LIMIT.as_secs())]
    TimedOut {
        /// The peer asked.
        peer: membership::PeerId,
    },
    /// The answer is one that this version does not know, or the question does not fit a message.
    #[error("question to node {peer} failed: {reason}")]
    Unreadable {
        /// The peer asked.
        peer: membership::PeerId,
        /// What is wrong.
        reason: String,
    },
    /// The mesh is shut down.
    #[error("the mesh is shut down")]
    ShutDown,
}

/// What both directions need to know.
#[derive(Clone)]
pub(crate) struct ControlContext {
    pub(crate) peer: membership::PeerId,
    /// The same in libp2p's form.
    pub(crate) id: libp2p::PeerId,
    pub(crate) events: mpsc::Sender<MeshEvent>,
    /// To the mesh's task, which answers for the data path.
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) counters: Arc<Counters>,
}

/// Asks and tells on a stream of ours until `sayings` ends and every question is answered or given up.
pub(crate) async fn speak(
    context: ControlContext,
    mut stream: Stream,
    head: StreamHead,
    mut sayings: mpsc::Receiver<Saying>,
) -> io::Result<()> {
    head.write(&mut stream).await?;
    let (reader, mut writer) = stream.split();
    let mut reader = MessageReader::new(reader);
    let mut waiting = Waiting::default();
    let mut ended = false;
    while !(ended && waiting.is_empty()) {
        tokio::select! {
            saying = sayings.recv(), if !ended && waiting.len() < MAX_OUTSTANDING => match saying {
                Some(saying) => say(&context, &mut writer, &mut waiting, saying).await?,
                None => ended = true,
            },
            bytes = reader.next() => match bytes? {
                Some(bytes) => hear_answer(&context, &mut waiting, &bytes)?,
                None => break,
            },
            () = waiting.first_deadline() => waiting.expire(&context.peer),
        }
    }
    writer.close().await
}

async fn say(
    context: &ControlContext,
    writer: &mut WriteHalf<Stream>,
    waiting: &mut Waiting,
    saying: Saying,
) -> io::Result<()> {
    let (question, waiter) = match saying {
        Saying::Tell(bytes) => return write(writer, &bytes).await,
        Saying::Ask(ask, reply) => (Question::Owner(ask), Waiter::Owner(reply)),
        Saying::AskData(ask, reply) => (Question::Data(ask), Waiter::Mesh(reply)),
    };
    match message::encode_ask(waiting.next_id, &question) {
        Ok(bytes) => {
            waiting.add(waiter);
            write(writer, &bytes).await
        }
        Err(error) => {
            let peer = context.peer.clone();
            waiter.settle(&context.peer, Err(AskError::Unreadable { peer, reason: error.to_string() }));
            Ok(())
        }
    }
}

fn hear_answer(context: &ControlContext, waiting: &mut Waiting, bytes: &[u8]) -> io::Result<()> {
    match read_message(context, bytes)? {
        Incoming::Answer { id, answer } => {
            waiting.settle(id, &context.peer, answer.ok_or_else(|| unknown_answer(&context.peer)));
        }
        // Asks and news come on the peer's own stream.
        Incoming::Ask { .. } | Incoming::Tell { .. } | Incoming::Unknown => context.counters.messages_unknown.add(1),
    }
    Ok(())
}

/// Hears a peer's asks and news on a stream that it opened, after its head, until the stream ends.
/// One question is answered before the next is read: the peer's own queue holds the others.
pub(crate) async fn hear(context: ControlContext, stream: Stream) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = MessageReader::new(reader);
    while let Some(bytes) = reader.next().await? {
        match read_message(&context, &bytes)? {
            Incoming::Ask { id, ask } => {
                let answer = answer(&context, ask).await?;
                let bytes = message::encode_answer(id, &answer)
                    .or_else(|error| message::encode_answer(id, &refused(format!("the answer does not fit: {error}"))));
                write(&mut writer, &bytes.map_err(io::Error::other)?).await?;
            }
            Incoming::Tell { records } => {
                let told = MeshEvent::Told { from: context.peer.clone(), records };
                context.events.send(told).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
            Incoming::Answer { .. } | Incoming::Unknown => context.counters.messages_unknown.add(1),
        }
    }
    writer.close().await
}

async fn answer(context: &ControlContext, ask: Result<Question, String>) -> io::Result<Reply> {
    let no_answer = || refused("this node has no answer now; ask again later".to_owned());
    match ask {
        Err(ask) => Ok(Reply::Owner(Answer::Unsupported { ask })),
        Ok(Question::Owner(ask)) => {
            let (reply, answered) = oneshot::channel();
            let asked = MeshEvent::Asked { from: context.peer.clone(), ask, reply };
            context.events.send(asked).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            let answer = timeout(ANSWER_LIMIT, answered).await.ok().and_then(Result::ok);
            Ok(answer.map_or_else(no_answer, Reply::Owner))
        }
        Ok(Question::Data(ask)) => {
            let (reply, answered) = oneshot::channel();
            let asked = Report::DataAsked { peer: context.id, ask, reply };
            context.reports.send(asked).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(timeout(ANSWER_LIMIT, answered).await.ok().and_then(Result::ok).unwrap_or_else(no_answer))
        }
    }
}

fn refused(reason: String) -> Reply {
    Reply::Owner(Answer::Refused { reason })
}

fn unknown_answer(peer: &membership::PeerId) -> AskError {
    AskError::Unreadable { peer: peer.clone(), reason: "this version does not know the answer".to_owned() }
}

fn read_message(context: &ControlContext, bytes: &[u8]) -> io::Result<Incoming> {
    message::decode(bytes).map_err(|error| {
        context.counters.control_streams_malformed.add(1);
        tracing::warn!(peer = %context.peer, %error, "ended a control stream");
        io::Error::new(io::ErrorKind::InvalidData, error)
    })
}

async fn write(writer: &mut WriteHalf<Stream>, bytes: &[u8]) -> io::Result<()> {
    let written = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    timeout(WRITE_LIMIT, written).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Who waits for an answer.
enum Waiter {
    Owner(oneshot::Sender<Result<Answer, AskError>>),
    Mesh(oneshot::Sender<Result<Reply, AskError>>),
}

impl Waiter {
    fn settle(self, peer: &membership::PeerId, outcome: Result<Reply, AskError>) {
        // Whoever asked may have stopped waiting.
        match self {
            Self::Mesh(reply) => drop(reply.send(outcome)),
            Self::Owner(reply) => drop(reply.send(outcome.and_then(|answer| match answer {
                Reply::Owner(answer) => Ok(answer),
                Reply::Data(_) => Err(unknown_answer(peer)),
            }))),
        }
    }
}

/// Questions without an answer yet.
#[derive(Default)]
struct Waiting {
    next_id: u64,
    replies: BTreeMap<u64, (Instant, Waiter)>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    fn len(&self) -> usize {
        self.replies.len()
    }

    fn add(&mut self, waiter: Waiter) {
        self.replies.insert(self.next_id, (Instant::now() + ANSWER_LIMIT, waiter));
        self.next_id += 1;
    }

    fn settle(&mut self, id: u64, peer: &membership::PeerId, outcome: Result<Reply, AskError>) {
        if let Some((_, waiter)) = self.replies.remove(&id) {
            waiter.settle(peer, outcome);
        }
    }

    /// Ids grow with time, so the first one is due first.
    async fn first_deadline(&self) {
        match self.replies.first_key_value() {
            Some((_, (deadline, _))) => sleep_until(*deadline).await,
            None => std::future::pending().await,
        }
    }

    fn expire(&mut self, peer: &membership::PeerId) {
        let now = Instant::now();
        while let Some(entry) = self.replies.first_entry().filter(|entry| entry.get().0 <= now) {
            let (_, waiter) = entry.remove();
            waiter.settle(peer, Err(AskError::TimedOut { peer: peer.clone() }));
        }
    }
}

/// Messages out of a stream that arrives in pieces. Dropping [`next`](Self::next) half way loses nothing.
struct MessageReader {
    stream: ReadHalf<Stream>,
    /// At most one message and one read.
    buffer: Vec<u8>,
}

impl MessageReader {
    fn new(stream: ReadHalf<Stream>) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next message without its length; `None` at the end of the stream.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut piece = [0; READ_BYTES];
        loop {
            let found = message::next_message(&self.buffer)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some(range) = found {
                let rest = self.buffer.split_off(range.end);
                let mut message = std::mem::replace(&mut self.buffer, rest);
                message.drain(..range.start);
                return Ok(Some(message));
            }
            let count = self.stream.read(&mut piece).await?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&piece[..count]);
        }
    }
}
