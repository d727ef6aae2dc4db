//! What nodes say to each other on the control stream, and its form on the wire.
//!
//! ```text
//! message = length u32 BE | JSON {"kind": "ask" | "answer" | "tell", "id": n, "body": …}
//! ```
//! Unknown fields are ignored, an unknown ask is answered with [`Answer::Unsupported`], and a
//! message of an unknown kind is skipped, so that versions one apart understand each other.

use culvert_core::claim::{Claim, Standing};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data_message::{DataAnswer, DataAsk};
use crate::record::{CountersignedRecord, SignedRecord};

/// A thousand records fit. A longer message ends the stream. **Units** bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Records told in one message, so that the largest records stay below [`MAX_MESSAGE_BYTES`] even
/// when JSON doubles them.
const RECORDS_PER_MESSAGE: usize = 20;

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// The keeper: admit this record of mine.
    Register(SignedRecord),
    /// The keeper: give me this block.
    Claim {
        /// The block.
        block: IpNet,
        /// Final when asked for now, provisional when it was taken while the keeper was away.
        standing: Standing,
    },
    /// The keeper: I no longer hold this block.
    Release {
        /// The block.
        block: IpNet,
    },
    /// Tell me all records you have; they come as tells before the answer or after it.
    Members,
    /// All claims you know.
    Claims,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The record counts now.
    Registered(CountersignedRecord),
    /// The block is yours.
    Claimed(Claim),
    /// The block is somebody else's, by this claim.
    Held(Claim),
    /// The block is free.
    Released,
    /// The records asked for are on their way as tells.
    Telling {
        /// How many.
        count: u64,
    },
    /// All claims known.
    Claims {
        /// Sorted by block.
        claims: Vec<Claim>,
    },
    /// No, and why.
    Refused {
        /// In words for an operator.
        reason: String,
    },
    /// This version does not know the ask.
    Unsupported {
        /// The ask.
        ask: String,
    },
}

/// A question, by who answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Question {
    /// The mesh's owner.
    Owner(Ask),
    /// The mesh itself.
    Data(DataAsk),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// From the owner; also refusals of the mesh.
    Owner(Answer),
    /// From the mesh.
    Data(DataAnswer),
}

/// A message that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A question.
    Ask {
        id: u64,
        /// The name of an ask that this version does not know stands in the error.
        ask: Result<Question, String>,
    },
    /// The answer to one of ours; `None` when this version does not know it.
    Answer { id: u64, answer: Option<Reply> },
    /// News.
    Tell { records: Vec<CountersignedRecord> },
    /// Something a later version says.
    Unknown,
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a control message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")]
    TooLong { length: usize },
    #[error("a control message cannot be read: {reason}")]
    Malformed { reason: String },
}

#[derive(Serialize)]
struct Outgoing<'a, Body> {
    kind: &'static str,
    id: u64,
    body: &'a Body,
}

#[derive(Deserialize)]
struct Envelope {
    kind: String,
    #[serde(default)]
    id: u64,
    #[serde(default)]
    body: Value,
}

#[derive(Serialize, Deserialize)]
struct News {
    records: Vec<CountersignedRecord>,
}

/// An ask with its length in front.
pub(crate) fn encode_ask(id: u64, ask: &Question) -> Result<Vec<u8>, MessageError> {
    encode(&Outgoing { kind: "ask", id, body: ask })
}

/// An answer with its length in front.
pub(crate) fn encode_answer(id: u64, answer: &Reply) -> Result<Vec<u8>, MessageError> {
    encode(&Outgoing { kind: "answer", id, body: answer })
}

/// News, cut into as many messages as it takes.
pub(crate) fn encode_tells(records: &[CountersignedRecord]) -> Result<Vec<Vec<u8>>, MessageError> {
    let news = records.chunks(RECORDS_PER_MESSAGE).map(|records| News { records: records.to_vec() });
    news.map(|news| encode(&Outgoing { kind: "tell", id: 0, body: &news })).collect()
}

/// Reads a message without its length.
pub(crate) fn decode(bytes: &[u8]) -> Result<Incoming, MessageError> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(malformed)?;
    let Envelope { kind, id, body } = envelope;
    match kind.as_str() {
        "ask" => {
            let name = body.get("ask").and_then(Value::as_str).unwrap_or("").to_owned();
            Ok(Incoming::Ask { id, ask: serde_json::from_value(body).map_err(|_| name) })
        }
        "answer" => Ok(Incoming::Answer { id, answer: serde_json::from_value(body).ok() }),
        "tell" => {
            let News { records } = serde_json::from_value(body).map_err(malformed)?;
            Ok(Incoming::Tell { records })
        }
        _ => Ok(Incoming::Unknown),
    }
}

/// Where the message at the front of `buffer` lies; `None` while it is incomplete.
pub(crate) fn next_message(buffer: &[u8]) -> Result<Option<std::ops::Range<usize>>, MessageError> {
    let Some(field) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*field)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLong { length });
    }
    Ok((buffer.len() >= 4 + length).then_some(4..4 + length))
}

fn encode<Body: Serialize>(message: &Outgoing<'_, Body>) -> Result<Vec<u8>, MessageError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(malformed)?;
    let length = bytes.len() - 4;
    let field = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE_BYTES);
    let field = field.ok_or(MessageError::TooLong { length })?;
    bytes[..4].copy_from_slice(&field.to_be_bytes());
    Ok(bytes)
}

fn malformed(error: serde_json::Error) -> MessageError {
    MessageError::Malformed { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(bytes: &[u8]) -> &[u8] {
        &bytes[next_message(bytes).unwrap().unwrap()]
    }

    fn refused(reason: String) -> Reply {
        Reply::Owner(Answer::Refused { reason })
    }

    #[test]
    fn what_the_mesh_asks_itself_keeps_apart_from_what_its_owner_asks() {
        let ask = Question::Data(DataAsk::OfferKeys { offer: vec![1, 0xab] });
        let bytes = encode_ask(7, &ask).unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains(r#""ask":"offer-keys","offer":"01ab""#));
        assert_eq!(decode(body(&bytes)), Ok(Incoming::Ask { id: 7, ask: Ok(ask) }));
        let answer = Reply::Data(DataAnswer::KeysConfirmed);
        let bytes = encode_answer(7, &answer).unwrap();
        assert_eq!(decode(body(&bytes)), Ok(Incoming::Answer { id: 7, answer: Some(answer) }));
    }

    #[test]
    fn asks_and_answers_arrive_as_they_were_sent() {
        let ask =
            Question::Owner(Ask::Claim { block: "10.244.7.0/24".parse().unwrap(), standing: Standing::Provisional });
        let bytes = encode_ask(7, &ask).unwrap();
        assert_eq!(decode(body(&bytes)), Ok(Incoming::Ask { id: 7, ask: Ok(ask) }));
        let answer = refused("held by edge-2".into());
        let bytes = encode_answer(7, &answer).unwrap();
        assert_eq!(decode(body(&bytes)), Ok(Incoming::Answer { id: 7, answer: Some(answer) }));
    }

    #[test]
    fn a_later_version_is_understood_as_far_as_possible() {
        let later =
            br#"{"kind":"ask","id":1,"body":{"ask":"release","block":"10.0.0.0/24","why":"moved"},"trace":"x"}"#;
        let release = Question::Owner(Ask::Release { block: "10.0.0.0/24".parse().unwrap() });
        assert_eq!(decode(later), Ok(Incoming::Ask { id: 1, ask: Ok(release) }));
        let unknown = br#"{"kind":"ask","id":2,"body":{"ask":"dance"}}"#;
        assert_eq!(decode(unknown), Ok(Incoming::Ask { id: 2, ask: Err("dance".into()) }));
        assert_eq!(decode(br#"{"kind":"song"}"#), Ok(Incoming::Unknown));
        assert_eq!(
            decode(br#"{"kind":"answer","id":3,"body":{"answer":"maybe"}}"#),
            Ok(Incoming::Answer { id: 3, answer: None })
        );
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_kept() {
        let length = MAX_MESSAGE_BYTES + 1;
        let bytes = u32::try_from(length).unwrap().to_be_bytes();
        assert_eq!(next_message(&bytes), Err(MessageError::TooLong { length }));
        let reason = "x".repeat(MAX_MESSAGE_BYTES);
        assert!(matches!(encode_answer(1, &refused(reason)), Err(MessageError::TooLong { .. })));
    }

    #[test]
    fn the_largest_records_are_told_in_messages_that_fit() {
        let record = CountersignedRecord {
            record: crate::record::SignedRecord {
                text: "\"".repeat(crate::record::MAX_RECORD_BYTES),
                signer: vec![1; 36],
                signature: vec![2; 64],
            },
            endorsement: "\"".repeat(crate::record::MAX_ENDORSEMENT_BYTES),
            keeper: vec![3; 36],
            countersignature: vec![4; 64],
        };
        let messages = encode_tells(&vec![record; 50]).unwrap();
        let told: usize = messages
            .iter()
            .map(|bytes| match decode(body(bytes)).unwrap() {
                Incoming::Tell { records } => records.len(),
                other @ (Incoming::Ask { .. } | Incoming::Answer { .. } | Incoming::Unknown) => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(told, 50);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(range)) = next_message(&bytes) {
                let _ = decode(&bytes[range]);
            }
        }

        #[test]
        fn any_json_is_a_message_or_refused(kind in "ask|answer|tell|x", body in ".{0,40}") {
            let text = serde_json::json!({ "kind": kind, "body": { "ask": body, "records": body } }).to_string();
            let _ = decode(text.as_bytes());
        }

        #[test]
        fn a_message_is_found_at_every_cut(reason in ".{0,60}", cut in 0..40_usize) {
            let bytes = encode_answer(9, &refused(reason)).unwrap();
            let cut = cut.min(bytes.len() - 1);
            prop_assert_eq!(next_message(&bytes[..cut]), Ok(None));
            prop_assert_eq!(next_message(&bytes), Ok(Some(4..bytes.len())));
        }
    }
}
