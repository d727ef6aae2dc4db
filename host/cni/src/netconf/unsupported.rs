//! Fields of the reference's plugins that ask for something Culvert does not do.
//!
//! To ignore them would leave a pod less isolated, or a port more open, than its configuration says. So they are
//! refused, unless their value asks for nothing.
//!
//! **Source** the reference's `bridge`, `bandwidth` and `portmap` plugins.

use serde_json::Value;

use crate::fields::{FieldError, Fields};

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flag,
    Number,
    List,
}

const VLANS: &str = "Culvert's bridge has no VLANs";
const SENDERS: &str = "Culvert maps a host port for every sender; use a firewall to restrict it";
const LIMITS: &str = "Culvert's limits count every packet of the pod";

/// The fields, and why they have no effect.
const UNSUPPORTED: [(&str, Kind, &str); 11] = [
    ("vlan", Kind::Number, VLANS),
    ("vlanTrunk", Kind::List, VLANS),
    ("preserveDefaultVlan", Kind::Flag, VLANS),
    ("macspoofchk", Kind::Flag, "Culvert does not filter by hardware address"),
    ("portIsolation", Kind::Flag, "Culvert does not keep the pods of a node apart"),
    ("disableContainerInterface", Kind::Flag, "Culvert always sets the pod's interface up"),
    ("enabledad", Kind::Flag, "Culvert gives each address once and does not look for duplicates"),
    ("conditionsV4", Kind::List, SENDERS),
    ("conditionsV6", Kind::List, SENDERS),
    ("shapedSubnets", Kind::List, LIMITS),
    ("unshapedSubnets", Kind::List, LIMITS),
];

/// Refuses a configuration that asks for what Culvert does not do.
///
/// **Errors** the first such field, or one of a wrong type.
pub(super) fn refuse(fields: &Fields<'_>) -> Result<(), FieldError> {
    for (key, kind, why) in UNSUPPORTED {
        let (asked, nothing) = match kind {
            Kind::Flag => (fields.boolean(key)?.unwrap_or_default(), "false"),
            Kind::Number => (fields.number(key)?.is_some_and(|number| number.as_u64() != Some(0)), "0"),
            Kind::List => (!fields.list(key)?.is_empty(), "an empty list"),
        };
        if asked {
            return Err(fields.senseless(key, format!("{nothing} or nothing, because {why}")));
        }
    }
    Ok(())
}

/// Why a member of this name and value has no effect, if it asks for something that Culvert does not do.
#[must_use]
pub(crate) fn reason(key: &str, value: &Value) -> Option<&'static str> {
    let (_, _, why) = UNSUPPORTED.into_iter().find(|(name, _, _)| name.eq_ignore_ascii_case(key))?;
    let asks_for_nothing = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Array(list) => list.is_empty(),
        Value::Bool(true) | Value::String(_) | Value::Object(_) => false,
    };
    (!asks_for_nothing).then_some(why)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::{Kind, UNSUPPORTED, reason, refuse};
    use crate::fields::{Fault, Fields};

    fn refused(key: &str, value: &Value) -> Option<Fault> {
        let map = Map::from_iter([(key.to_owned(), value.clone())]);
        refuse(&Fields::root(&map)).err().map(|error| error.fault)
    }

    #[test]
    fn each_field_is_refused_by_value_and_by_type_and_accepted_when_it_asks_for_nothing() {
        for (key, kind, _) in UNSUPPORTED {
            let (asking, nothing) = match kind {
                Kind::Flag => (vec![json!(true)], vec![json!(false)]),
                Kind::Number => (vec![json!(100), json!(-1), json!(0.5)], vec![json!(0)]),
                Kind::List => (vec![json!(["!", "-d", "192.0.2.0/24"]), json!([{"id": 1}])], vec![json!([])]),
            };
            for value in asking {
                assert_eq!(refused(key, &value), Some(Fault::Value), "{key} {value}");
                assert!(reason(key, &value).is_some(), "{key} {value}");
            }
            for value in nothing.into_iter().chain([Value::Null]) {
                assert_eq!(refused(key, &value), None, "{key} {value}");
                assert_eq!(reason(key, &value), None, "{key} {value}");
            }
            assert_eq!(refused(key, &json!("x")), Some(Fault::Type), "{key}");
        }
    }

    #[test]
    fn settings_of_the_reference_that_change_nothing_are_accepted() {
        let settings = [
            ("snat", json!(false)),
            ("masqAll", json!(true)),
            ("markMasqBit", json!(14)),
            ("externalSetMarkChain", json!("KUBE-MARK-MASQ")),
            ("ipMasqBackend", json!("nftables")),
        ];
        for (key, value) in settings {
            assert_eq!((refused(key, &value), reason(key, &value)), (None, None), "{key}");
        }
    }
}
