//! One HTTP request over the admin socket, bounded in time and size.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Exit;

/// **Bounds** one request. The daemon answers 504 by itself after 10 s, so silence means more.
const ASK_TIME: Duration = Duration::from_secs(15);

/// **Bounds** bytes of an answer. A node's few thousand leases need less than one MiB.
const ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// One request.
pub(super) struct Ask {
    method: Method,
    target: String,
}

impl Ask {
    pub(super) fn get(target: &str) -> Self {
        Self { method: Method::GET, target: target.to_owned() }
    }

    pub(super) fn explain(from: &str, to: &str) -> Self {
        Self::get(&format!("/v1/explain?from={}&to={}", percent_encoded(from), percent_encoded(to)))
    }

    pub(super) fn release_name(name: &str) -> Self {
        Self { method: Method::POST, target: format!("/v1/names/{}/release", percent_encoded(name)) }
    }
}

/// One answer.
pub(super) struct Answer {
    /// Whether the status was 200.
    pub(super) good: bool,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "cannot reach the daemon at {socket}: {source}; is culvertd running (systemctl status culvertd)? Another socket is named with --socket or CULVERT_ADMIN_SOCKET"
    )]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("the daemon at {socket} gives no answer within {} s; its log says what it is doing", ASK_TIME.as_secs())]
    Silent { socket: PathBuf },
    #[error("{socket} may not be opened by this user; only root and the daemon's own user may ask, so try as root")]
    NotAllowed { socket: PathBuf },
    #[error(
        "what answers at {socket} is not a culvert daemon ({reason}); name the daemon's admin socket with --socket"
    )]
    Stranger { socket: PathBuf, reason: String },
}

impl ClientError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => Exit::Unreachable,
            Self::NotAllowed { .. } | Self::Stranger { .. } => Exit::Failed,
        }
    }
}

/// Sends one request and reads its answer.
///
/// **Errors** when there is none within [`ASK_TIME`] and [`ANSWER_BYTES`].
pub(super) async fn ask(socket: &Path, ask: &Ask) -> Result<Answer, ClientError> {
    let bounded = timeout(ASK_TIME, async {
        let stream = UnixStream::connect(socket).await.map_err(|source| refused(socket, source))?;
        exchange(stream, ask)
            .await
            .map_err(|error| ClientError::Stranger { socket: socket.to_owned(), reason: described(&*error) })
    });
    bounded.await.unwrap_or_else(|_| Err(ClientError::Silent { socket: socket.to_owned() }))
}

fn refused(socket: &Path, source: io::Error) -> ClientError {
    let socket = socket.to_owned();
    if source.kind() == io::ErrorKind::PermissionDenied {
        return ClientError::NotAllowed { socket };
    }
    ClientError::Unreachable { socket, source }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(stream: UnixStream, ask: &Ask) -> Result<Answer, AnyError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(&ask.method)
        .uri(&ask.target)
        .header(header::HOST, "culvert")
        .body(Empty::<Bytes>::new())?;
    let reading = async {
        let answer = sender.send_request(request).await?;
        let good = answer.status() == 200;
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
        Ok(Answer { good, body: body.into() })
    };
    beside(connection, reading).await
}

/// Reads while the connection is driven, without a task of its own. The reader knows how it ended;
/// the connection's own end says nothing more.
async fn beside<T>(connection: impl Future, reading: impl Future<Output = T>) -> T {
    tokio::pin!(reading);
    tokio::select! {
        biased;
        answer = &mut reading => answer,
        _ = connection => reading.await,
    }
}

/// An error with its causes.
fn described(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// **Source** RFC 3986 §2.1 and §2.3: all but the unreserved characters, byte by byte.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_travel_in_an_address_as_they_are() {
        let ask = Ask::explain("default/web-0", "fd00::5");
        assert_eq!(ask.target, "/v1/explain?from=default%2Fweb-0&to=fd00%3A%3A5");
        let ask = Ask::release_name("a b/../é");
        assert_eq!((ask.method, ask.target.as_str()), (Method::POST, "/v1/names/a%20b%2F..%2F%C3%A9/release"));
    }
}
