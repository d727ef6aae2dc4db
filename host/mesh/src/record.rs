//! Node records with signatures: by the node itself, and by the keeper that admits its name.
//!
//! A signature covers the record's exact text, so a record can be passed on, stored and checked by
//! versions that know fewer fields. Whether a record counts is core's decision; here is who signed it.

use culvert_core::membership::{Endorsement, NodeRecord, PeerId};
use libp2p::identity::PublicKey;
use serde::{Deserialize, Serialize};

use crate::hex;
use crate::identity::{NodeKey, to_core};

/// A record with a thousand labels fits; one that fills a message with itself does not. **Units** bytes.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;

/// What a node's own signature covers, before the text.
const RECORD_DOMAIN: &[u8] = b"culvert node record 1";

/// 64 endorsed blocks fit. **Units** bytes.
pub const MAX_ENDORSEMENT_BYTES: usize = 6 * 1024;

/// What a keeper's signature covers, before the signed record and the endorsement.
const KEEPER_DOMAIN: &[u8] = b"culvert countersigned record 1";

/// A record as its node signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// The record as JSON, exactly as it was signed.
    pub text: String,
    /// The signer's public key, encoded as in libp2p.
    #[serde(with = "hex::as_text")]
    pub signer: Vec<u8>,
    /// The signature.
    #[serde(with = "hex::as_text")]
    pub signature: Vec<u8>,
}

/// A signed record that a keeper vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersignedRecord {
    /// The record.
    pub record: SignedRecord,
    /// What the keeper says of it: an [`Endorsement`] as JSON, exactly as it was signed.
    pub endorsement: String,
    /// The keeper's public key, encoded as in libp2p.
    #[serde(with = "hex::as_text")]
    pub keeper: Vec<u8>,
    /// The keeper's signature.
    #[serde(with = "hex::as_text")]
    pub countersignature: Vec<u8>,
}

/// Why a record cannot be signed or believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record is too long.
    #[error("a node record of {length} bytes is longer than {MAX_RECORD_BYTES}; give the node fewer labels")]
    TooLong {
        /// **Units** bytes.
        length: usize,
    },
    /// The record is no record.
    #[error("a node record cannot be read: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// A public key is none.
    #[error("a node record carries something else than a public key")]
    Key,
    /// The signature does not fit.
    #[error("the signature of {peer} on a node record is wrong")]
    Signature {
        /// Whose signature it claims to be.
        peer: PeerId,
    },
    /// The record speaks of another node than the one that signed it.
    #[error("the record of node {name} names {claimed}, but {signer} signed it")]
    Foreign {
        /// The record's node name.
        name: String,
        /// The identity in the record.
        claimed: PeerId,
        /// Who signed.
        signer: PeerId,
    },
    /// The keeper is not one of those this node trusts.
    #[error("a node record is countersigned by {keeper}, which is no keeper of this cluster")]
    UntrustedKeeper {
        /// Who countersigned.
        keeper: PeerId,
    },
    /// The key could not sign.
    #[error("signing a node record failed: {reason}")]
    Signing {
        /// What the key said.
        reason: String,
    },
}

impl SignedRecord {
    /// Signs a record with the node's own key.
    ///
    /// # Errors
    /// When the record names another identity than the key's, or is too long.
    pub fn sign(key: &NodeKey, record: &NodeRecord) -> Result<Self, RecordError> {
        let text =
            serde_json::to_string(record).map_err(|error| RecordError::Malformed { reason: error.to_string() })?;
        let signed = Self {
            signature: sign(key, &[RECORD_DOMAIN, text.as_bytes()])?,
            signer: key.pair().public().encode_protobuf(),
            text,
        };
        signed.verify().map(|_| signed)
    }

    /// The record, when its own node signed it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn verify(&self) -> Result<NodeRecord, RecordError> {
        let length = self.text.len();
        if length > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong { length });
        }
        let signer = check(&self.signer, &[RECORD_DOMAIN, self.text.as_bytes()], &self.signature)?;
        let record: NodeRecord =
            serde_json::from_str(&self.text).map_err(|error| RecordError::Malformed { reason: error.to_string() })?;
        if record.peer != signer {
            return Err(RecordError::Foreign { name: record.name, claimed: record.peer, signer });
        }
        Ok(record)
    }

    /// Vouches for the record with the keeper's key. Name and blocks were checked before, by core,
    /// which also made the endorsement.
    ///
    /// # Errors
    /// When the record itself does not verify, or the endorsement is too long.
    pub fn countersign(self, key: &NodeKey, endorsement: &Endorsement) -> Result<CountersignedRecord, RecordError> {
        self.verify()?;
        let malformed = |error: serde_json::Error| RecordError::Malformed { reason: error.to_string() };
        let endorsement = serde_json::to_string(endorsement).map_err(malformed)?;
        let countersignature = sign(key, &self.vouched_parts(&endorsement))?;
        let keeper = key.pair().public().encode_protobuf();
        Ok(CountersignedRecord { record: self, endorsement, keeper, countersignature })
    }

    fn vouched_parts<'a>(&'a self, endorsement: &'a str) -> [&'a [u8]; 5] {
        [KEEPER_DOMAIN, self.text.as_bytes(), &self.signer, &self.signature, endorsement.as_bytes()]
    }
}

impl CountersignedRecord {
    /// The record and the keeper's word on it, when its node signed it and one of `keepers` vouches
    /// for it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn verify_countersigned(&self, keepers: &[PeerId]) -> Result<(NodeRecord, Endorsement), RecordError> {
        let record = self.record.verify()?;
        let length = self.endorsement.len();
        if length > MAX_ENDORSEMENT_BYTES {
            return Err(RecordError::TooLong { length });
        }
        let keeper = check(&self.keeper, &self.record.vouched_parts(&self.endorsement), &self.countersignature)?;
        if !keepers.contains(&keeper) {
            return Err(RecordError::UntrustedKeeper { keeper });
        }
        let malformed = |error: serde_json::Error| RecordError::Malformed { reason: error.to_string() };
        Ok((record, serde_json::from_str(&self.endorsement).map_err(malformed)?))
    }
}

/// Each part with its length before it, so that no two lists of parts give the same bytes.
fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| (part.len() as u64).to_be_bytes().into_iter().chain(part.iter().copied())).collect()
}

fn sign(key: &NodeKey, parts: &[&[u8]]) -> Result<Vec<u8>, RecordError> {
    key.pair().sign(&join(parts)).map_err(|error| RecordError::Signing { reason: error.to_string() })
}

/// Who signed the parts.
fn check(public_key: &[u8], parts: &[&[u8]], signature: &[u8]) -> Result<PeerId, RecordError> {
    let key = PublicKey::try_decode_protobuf(public_key).map_err(|_| RecordError::Key)?;
    let peer = to_core(&key.to_peer_id());
    if key.verify(&join(parts), signature) { Ok(peer) } else { Err(RecordError::Signature { peer }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endorsement() -> Endorsement {
        let block = "10.244.7.0/24".parse().unwrap();
        Endorsement { name_decision: 2, blocks: vec![culvert_core::membership::EndorsedBlock { block, decision: 5 }] }
    }

    fn node(name: &str) -> (NodeKey, NodeRecord, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let key = NodeKey::load_or_create(&folder.path().join("key")).unwrap();
        let record = NodeRecord {
            name: name.into(),
            peer: key.peer_id(),
            sequence: 3,
            addresses: vec!["192.0.2.7".parse().unwrap()],
            port: 20_006,
            blocks: vec!["10.244.7.0/24".parse().unwrap()],
            site_kind: culvert_core::topology::SiteKind::Edge,
            zone: String::new(),
            labels: [("a".to_owned(), "\"quoted\" µ".to_owned())].into(),
        };
        (key, record, folder)
    }

    #[test]
    fn a_countersigned_record_travels_as_json_and_verifies() {
        let (key, record, _folder) = node("edge-1");
        let (keeper, _, _keeper_folder) = node("relay");
        let signed = SignedRecord::sign(&key, &record).unwrap();
        assert_eq!(signed.verify(), Ok(record.clone()));
        let text = serde_json::to_string(&signed.countersign(&keeper, &endorsement()).unwrap()).unwrap();
        let arrived: CountersignedRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(arrived.verify_countersigned(&[keeper.peer_id()]), Ok((record, endorsement())));
        let refusal = RecordError::UntrustedKeeper { keeper: keeper.peer_id() };
        assert_eq!(arrived.verify_countersigned(&[key.peer_id()]), Err(refusal));
    }

    #[test]
    fn nobody_signs_or_speaks_for_another_node() {
        let (key, record, _folder) = node("edge-1");
        let (other, _, _other_folder) = node("edge-2");
        let foreign = RecordError::Foreign { name: "edge-1".into(), claimed: key.peer_id(), signer: other.peer_id() };
        assert_eq!(SignedRecord::sign(&other, &record), Err(foreign));
        let mut stolen = SignedRecord::sign(&key, &record).unwrap();
        stolen.signer = other.pair().public().encode_protobuf();
        assert_eq!(stolen.verify(), Err(RecordError::Signature { peer: other.peer_id() }));
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed() {
        let (key, record, _folder) = node("edge-1");
        let (keeper, _, _keeper_folder) = node("relay");
        let whole = SignedRecord::sign(&key, &record).unwrap().countersign(&keeper, &endorsement()).unwrap();
        let keepers = [keeper.peer_id()];
        let mut changed = whole.clone();
        changed.record.text = changed.record.text.replace("edge-1", "edge-9");
        assert_eq!(changed.verify_countersigned(&keepers), Err(RecordError::Signature { peer: key.peer_id() }));
        let mut changed = whole.clone();
        changed.record.signature[5] ^= 1;
        assert_eq!(changed.verify_countersigned(&keepers), Err(RecordError::Signature { peer: key.peer_id() }));
        let mut changed = whole.clone();
        changed.endorsement = changed.endorsement.replace('5', "6");
        assert_eq!(changed.verify_countersigned(&keepers), Err(RecordError::Signature { peer: keeper.peer_id() }));
        let mut changed = whole.clone();
        changed.countersignature[5] ^= 1;
        assert_eq!(changed.verify_countersigned(&keepers), Err(RecordError::Signature { peer: keeper.peer_id() }));
        let mut changed = whole;
        changed.keeper.truncate(3);
        assert_eq!(changed.verify_countersigned(&keepers), Err(RecordError::Key));
    }

    #[test]
    fn a_record_that_would_fill_messages_is_refused() {
        let (key, mut record, _folder) = node("edge-1");
        record.zone = "z".repeat(MAX_RECORD_BYTES);
        assert!(matches!(SignedRecord::sign(&key, &record), Err(RecordError::TooLong { .. })));
    }
}
