//! The frames between shim and daemon on the unix socket: one request, one reply, one acknowledgement.
//!
//! ```text
//! shim                                          daemon
//!   | header, body (+ 0 or 2 descriptors with the first bytes) ──> |
//!   | <── header, body                                             |
//!   | [after a successful ADD was written to stdout] ACKNOWLEDGED ──> |
//!
//! header = magic (4) | protocol version (1) | kind (1) | body length (4, big endian)
//! request body = count (2) | count × (name length (2) | name | value length (4) | value) | stdin length (4) | stdin
//! reply body = exit code (1) | stdout length (4) | stdout
//! ```
//!
//! The two descriptors are, in this order, the pod's network namespace and an rtnetlink socket opened
//! inside it; the daemon needs no right to enter namespaces. A reader takes [`HEADER_BYTES`], asks
//! [`Request::body_bytes`] how much follows, which is bounded, and hands that to [`Request::decode_body`].

use std::fmt;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"CVCN";

/// Grows with every change of the layout; shim and daemon must have the same.
pub const PROTOCOL_VERSION: u8 = 1;

/// **Units** bytes.
pub const HEADER_BYTES: usize = 10;

/// What the shim sends once the answer of a successful ADD has reached the runtime.
pub const ACKNOWLEDGED: u8 = 0x06;

/// How many descriptors ride along with a request that has any.
pub const DESCRIPTORS: usize = 2;

/// The most variables in a request. The specification has 6 and tracing adds 3; more is a fault.
pub const MAX_VARIABLES: usize = 64;

/// The longest variable name. **Units** bytes. Ours are shorter than 20.
pub const MAX_NAME_BYTES: usize = 128;

/// All names and values of a request together. **Units** bytes. The kernel gives one string of the
/// environment 128 KiB; a pod's CNI_ARGS have some hundred bytes.
pub const MAX_ENVIRONMENT_BYTES: usize = 256 * 1024;

/// The longest configuration. **Units** bytes. Kubernetes holds all annotations of a pod to 256 KiB,
/// which JSON escapes can double, so 1 MiB leaves room for the rest.
pub const MAX_STDIN_BYTES: usize = 1024 * 1024;

/// The longest answer. **Units** bytes. A result passed through is part of a configuration.
pub const MAX_STDOUT_BYTES: usize = MAX_STDIN_BYTES;

const MAX_REQUEST_BODY_BYTES: usize = 2 + MAX_VARIABLES * 6 + MAX_ENVIRONMENT_BYTES + 4 + MAX_STDIN_BYTES;
const MAX_REPLY_BODY_BYTES: usize = 1 + 4 + MAX_STDOUT_BYTES;
const KIND_REQUEST: u8 = 1;
const KIND_REPLY: u8 = 2;

/// A call, as the runtime made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Names and values of the variables that concern us.
    pub env: Vec<(String, String)>,
    /// The configuration.
    pub stdin: Vec<u8>,
}

/// What the shim does for the runtime: print and exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The exit status.
    pub exit_code: u8,
    /// Printed exactly.
    pub stdout: Vec<u8>,
}

/// Why bytes are no frame, or a value does not fit into one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The first bytes are not ours.
    Magic([u8; 4]),
    /// The other end speaks another version.
    ProtocolVersion(u8),
    /// A request where a reply should be, or the other way round.
    Kind(u8),
    /// A part is longer than its limit.
    TooLong {
        /// Which part.
        part: &'static str,
        /// **Units** as the limit.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The bytes end before the frame does.
    Truncated,
    /// Bytes are left after the frame.
    Trailing(usize),
    /// A variable is not UTF-8.
    Text,
}

impl fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(bytes) => write!(formatter, "no frame of the shim protocol: it starts with {bytes:02x?}"),
            Self::ProtocolVersion(version) => write!(
                formatter,
                "shim protocol version {version} meets {PROTOCOL_VERSION}; install shim and daemon of the same release"
            ),
            Self::Kind(kind) => write!(formatter, "frame of unexpected kind {kind}"),
            Self::TooLong { part, length, limit } => {
                write!(formatter, "{part} of a frame has length {length}, the limit is {limit}")
            }
            Self::Truncated => formatter.write_str("frame ends too early"),
            Self::Trailing(bytes) => write!(formatter, "{bytes} bytes are left after the frame"),
            Self::Text => formatter.write_str("a variable in a frame is not UTF-8"),
        }
    }
}

impl std::error::Error for FrameError {}

impl Request {
    /// The whole frame.
    ///
    /// **Errors** [`FrameError::TooLong`] naming the part.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        check_limit("variable count", self.env.len(), MAX_VARIABLES)?;
        check_limit("stdin", self.stdin.len(), MAX_STDIN_BYTES)?;
        check_limit("environment", environment_bytes(&self.env), MAX_ENVIRONMENT_BYTES)?;
        let mut body = Vec::with_capacity(256 + self.stdin.len());
        body.extend_from_slice(&length_16("variable count", self.env.len())?);
        for (name, value) in &self.env {
            check_limit("variable name", name.len(), MAX_NAME_BYTES)?;
            body.extend_from_slice(&length_16("variable name", name.len())?);
            body.extend_from_slice(name.as_bytes());
            append(&mut body, "variable value", value.as_bytes())?;
        }
        append(&mut body, "stdin", &self.stdin)?;
        frame(KIND_REQUEST, &body)
    }

    /// How many bytes follow this header. **Bounds** a little more than 1.25 MiB.
    ///
    /// **Errors** not a request of our version, or too long.
    pub fn body_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, FrameError> {
        read_header(header, KIND_REQUEST, MAX_REQUEST_BODY_BYTES)
    }

    /// Reads what follows the header.
    ///
    /// **Errors** a limit broken, bytes missing or left over, text that is none.
    pub fn decode_body(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { rest: body };
        let count = usize::from(reader.number_16()?);
        check_limit("variable count", count, MAX_VARIABLES)?;
        let mut env = Vec::with_capacity(count);
        for _ in 0..count {
            let length = usize::from(reader.number_16()?);
            check_limit("variable name", length, MAX_NAME_BYTES)?;
            let name = text(reader.take(length)?)?;
            let value = text(reader.counted("variable value", MAX_ENVIRONMENT_BYTES)?)?;
            env.push((name, value));
        }
        check_limit("environment", environment_bytes(&env), MAX_ENVIRONMENT_BYTES)?;
        let stdin = reader.counted("stdin", MAX_STDIN_BYTES)?.to_vec();
        reader.finish()?;
        Ok(Self { env, stdin })
    }

    /// Reads a whole frame.
    ///
    /// **Errors** as [`Self::body_bytes`] and [`Self::decode_body`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (header, body) = bytes.split_first_chunk().ok_or(FrameError::Truncated)?;
        Self::decode_body(exactly(body, Self::body_bytes(header)?)?)
    }
}

impl Reply {
    /// The whole frame.
    ///
    /// **Errors** [`FrameError::TooLong`] when stdout is.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        check_limit("stdout", self.stdout.len(), MAX_STDOUT_BYTES)?;
        let mut body = vec![self.exit_code];
        append(&mut body, "stdout", &self.stdout)?;
        frame(KIND_REPLY, &body)
    }

    /// How many bytes follow this header. **Bounds** a little more than 1 MiB.
    ///
    /// **Errors** not a reply of our version, or too long.
    pub fn body_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, FrameError> {
        read_header(header, KIND_REPLY, MAX_REPLY_BODY_BYTES)
    }

    /// Reads what follows the header.
    ///
    /// **Errors** a limit broken, bytes missing or left over.
    pub fn decode_body(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { rest: body };
        let exit_code = reader.number_8()?;
        let stdout = reader.counted("stdout", MAX_STDOUT_BYTES)?.to_vec();
        reader.finish()?;
        Ok(Self { exit_code, stdout })
    }

    /// Reads a whole frame.
    ///
    /// **Errors** as [`Self::body_bytes`] and [`Self::decode_body`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (header, body) = bytes.split_first_chunk().ok_or(FrameError::Truncated)?;
        Self::decode_body(exactly(body, Self::body_bytes(header)?)?)
    }
}

fn environment_bytes(env: &[(String, String)]) -> usize {
    env.iter().map(|(name, value)| name.len().saturating_add(value.len())).fold(0, usize::saturating_add)
}

fn check_limit(part: &'static str, length: usize, limit: usize) -> Result<(), FrameError> {
    if length > limit { Err(FrameError::TooLong { part, length, limit }) } else { Ok(()) }
}

fn length_16(part: &'static str, length: usize) -> Result<[u8; 2], FrameError> {
    let limit = usize::from(u16::MAX);
    u16::try_from(length).map(u16::to_be_bytes).map_err(|_| FrameError::TooLong { part, length, limit })
}

fn length_32(part: &'static str, length: usize) -> Result<[u8; 4], FrameError> {
    let limit = MAX_REQUEST_BODY_BYTES;
    u32::try_from(length).map(u32::to_be_bytes).map_err(|_| FrameError::TooLong { part, length, limit })
}

fn append(body: &mut Vec<u8>, part: &'static str, bytes: &[u8]) -> Result<(), FrameError> {
    body.extend_from_slice(&length_32(part, bytes.len())?);
    body.extend_from_slice(bytes);
    Ok(())
}

fn frame(kind: u8, body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[PROTOCOL_VERSION, kind]);
    append(&mut bytes, "body", body)?;
    Ok(bytes)
}

fn read_header(header: &[u8; HEADER_BYTES], expected_kind: u8, limit: usize) -> Result<usize, FrameError> {
    let [m0, m1, m2, m3, version, kind, l0, l1, l2, l3] = *header;
    let magic = [m0, m1, m2, m3];
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    if version != PROTOCOL_VERSION {
        return Err(FrameError::ProtocolVersion(version));
    }
    if kind != expected_kind {
        return Err(FrameError::Kind(kind));
    }
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    check_limit("body", length, limit)?;
    Ok(length)
}

fn exactly(body: &[u8], length: usize) -> Result<&[u8], FrameError> {
    match body.split_at_checked(length) {
        None => Err(FrameError::Truncated),
        Some((body, [])) => Ok(body),
        Some((_, rest)) => Err(FrameError::Trailing(rest.len())),
    }
}

fn text(bytes: &[u8]) -> Result<String, FrameError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| FrameError::Text)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number_8(&mut self) -> Result<u8, FrameError> {
        self.array().map(u8::from_be_bytes)
    }

    fn number_16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_be_bytes)
    }

    fn counted(&mut self, part: &'static str, limit: usize) -> Result<&'a [u8], FrameError> {
        let length = usize::try_from(u32::from_be_bytes(self.array()?)).unwrap_or(usize::MAX);
        check_limit(part, length, limit)?;
        self.take(length)
    }

    fn finish(self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FrameError::Trailing(self.rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};
    use proptest::{prop_assert, prop_assert_eq};

    use super::*;

    fn request() -> impl proptest::strategy::Strategy<Value = Request> {
        use proptest::strategy::Strategy as _;
        let env = prop::collection::vec((".{0,20}", ".{0,200}"), 0..10);
        (env, prop::collection::vec(any::<u8>(), 0..2000)).prop_map(|(env, stdin)| Request { env, stdin })
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(request in request()) {
            prop_assert_eq!(Request::decode(&request.encode()?)?, request);
        }

        #[test]
        fn a_reply_survives_the_wire(exit_code in any::<u8>(), stdout in prop::collection::vec(any::<u8>(), 0..2000)) {
            let reply = Reply { exit_code, stdout };
            prop_assert_eq!(Reply::decode(&reply.encode()?)?, reply);
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(request) = Request::decode_body(&bytes) {
                prop_assert_eq!(Request::decode(&request.encode()?)?, request);
            }
            if let Ok(reply) = Reply::decode_body(&bytes) {
                prop_assert_eq!(Reply::decode(&reply.encode()?)?, reply);
            }
            prop_assert!(Request::decode(&bytes).is_err() || bytes.starts_with(&MAGIC));
        }

        #[test]
        fn every_truncation_is_seen(request in request(), cut in any::<prop::sample::Index>()) {
            let bytes = request.encode()?;
            let shorter = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(Request::decode(shorter), Err(FrameError::Truncated));
        }

        #[test]
        fn one_flipped_bit_never_panics(request in request(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = request.encode()?;
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let read = Request::decode(&bytes);
            prop_assert!(read.as_ref() != Ok(&request));
        }
    }

    #[test]
    fn headers_of_others_are_named() {
        let good = Request::default().encode().unwrap();
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Request::decode(&bytes)
        };
        assert_eq!(with(0, b'X'), Err(FrameError::Magic(*b"XVCN")));
        assert_eq!(with(4, 2), Err(FrameError::ProtocolVersion(2)));
        assert_eq!(with(5, 2), Err(FrameError::Kind(2)));
        let length = usize::try_from(u32::from_be_bytes([0xff, 0, 0, 6])).unwrap();
        let limit = MAX_REQUEST_BODY_BYTES;
        assert_eq!(with(6, 0xff), Err(FrameError::TooLong { part: "body", length, limit }));
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(Request::decode(&longer), Err(FrameError::Trailing(1)));
        assert_eq!(Reply::decode(&good), Err(FrameError::Kind(1)));
    }

    #[test]
    fn limits_hold_when_writing() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let refused = |request: &Request| match request.encode() {
            Err(FrameError::TooLong { part, length, limit }) => (part, length, limit),
            other => panic!("{other:?}"),
        };
        let many = Request { env: vec![variable("A", "b"); MAX_VARIABLES + 1], stdin: Vec::new() };
        assert_eq!(refused(&many), ("variable count", 65, 64));
        let long_name = Request { env: vec![variable(&"A".repeat(129), "")], stdin: Vec::new() };
        assert_eq!(refused(&long_name), ("variable name", 129, 128));
        let large = Request { env: vec![variable("A", &"b".repeat(262_144))], stdin: Vec::new() };
        assert_eq!(refused(&large), ("environment", 262_145, 262_144));
        let stdin = Request { env: Vec::new(), stdin: vec![0; MAX_STDIN_BYTES + 1] };
        assert_eq!(refused(&stdin), ("stdin", 1_048_577, 1_048_576));
        let fits = Request { env: Vec::new(), stdin: vec![0; MAX_STDIN_BYTES] };
        assert_eq!(Request::decode(&fits.encode().unwrap()), Ok(fits));
        let stdout = Reply { exit_code: 0, stdout: vec![0; MAX_STDOUT_BYTES + 1] };
        let too_long = FrameError::TooLong { part: "stdout", length: 1_048_577, limit: 1_048_576 };
        assert_eq!(stdout.encode(), Err(too_long));
    }

    #[test]
    fn limits_hold_when_reading() {
        let too_many = Request::decode_body(&[0xff, 0xff]);
        assert_eq!(too_many, Err(FrameError::TooLong { part: "variable count", length: 65_535, limit: 64 }));
        let not_text = Request::decode_body(&[0, 1, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(not_text, Err(FrameError::Text));
        let long_value = Request::decode_body(&[0, 1, 0, 1, b'A', 0xff, 0, 0, 0]);
        let length = usize::try_from(0xff00_0000_u32).unwrap();
        assert_eq!(long_value, Err(FrameError::TooLong { part: "variable value", length, limit: 262_144 }));
    }
}
