//! Reading typed fields out of a JSON object, with errors that name the path.
//!
//! Keys match without regard to case, exact ones first: containerd sends `HostPort` where the
//! specification says `hostPort`, and the reference's decoder takes both. `null` counts as absent.

use std::borrow::Cow;
use std::str::FromStr;

use serde_json::{Map, Number, Value};

/// The longest rendition of a wrong value in a message. **Units** characters.
const SHOWN_CHARACTERS: usize = 64;

/// A value that is not what its field needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected {expected}, found {found}")]
pub struct FieldError {
    /// Where in the document.
    pub path: String,
    /// What the field needs.
    pub expected: Cow<'static, str>,
    /// What is there, cut at 64 characters.
    pub found: String,
    /// In which way it is wrong.
    pub fault: Fault,
}

/// In which way a value is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another JSON type than the field's: it cannot be decoded.
    Type,
    /// The field's type, but not a value it may have.
    Value,
}

impl FieldError {
    /// Names `value` at `path` as being of another type than expected.
    #[must_use]
    pub fn mistyped(path: impl Into<String>, expected: impl Into<Cow<'static, str>>, value: &Value) -> Self {
        Self { path: path.into(), expected: expected.into(), found: shown(value), fault: Fault::Type }
    }

    /// Names `value` at `path` as making no sense there.
    #[must_use]
    pub fn senseless(path: impl Into<String>, expected: impl Into<Cow<'static, str>>, value: &Value) -> Self {
        Self { path: path.into(), expected: expected.into(), found: shown(value), fault: Fault::Value }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    let mut shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// The elements of a list with the path of each.
///
/// **Errors** the value is no list.
pub fn elements<'a>(path: &str, value: &'a Value) -> Result<Vec<(String, &'a Value)>, FieldError> {
    let elements = value.as_array().ok_or_else(|| FieldError::mistyped(path, "a list", value))?;
    Ok(elements.iter().enumerate().map(|(index, element)| (format!("{path}[{index}]"), element)).collect())
}

/// A JSON object and where it stands in the document.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The document itself.
    #[must_use]
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// Any value as an object at `path`.
    ///
    /// **Errors** it is none.
    pub fn of(path: impl Into<String>, value: &'a Value) -> Result<Self, FieldError> {
        let path = path.into();
        match value.as_object() {
            Some(map) => Ok(Self { path, map }),
            None => Err(FieldError::mistyped(path, "an object", value)),
        }
    }

    /// The object itself.
    #[must_use]
    pub fn into_map(self) -> Map<String, Value> {
        self.map.clone()
    }

    /// The path of a field of this object.
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The field, if it is there and not null.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        let inexact = || self.map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.map.get(key).or_else(inexact).filter(|value| !value.is_null())
    }

    /// A text field.
    ///
    /// **Errors** it is there and no text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, FieldError> {
        self.read(key, "a string", Value::is_string, Value::as_str)
    }

    /// A true/false field.
    ///
    /// **Errors** it is there and neither.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, FieldError> {
        self.read(key, "true or false", Value::is_boolean, Value::as_bool)
    }

    /// Any number.
    ///
    /// **Errors** it is there and none.
    pub fn number(&self, key: &str) -> Result<Option<&'a Number>, FieldError> {
        self.read(key, "a number", Value::is_number, Value::as_number)
    }

    /// A whole number that is not negative and fits `T`.
    ///
    /// **Errors** it is there and no such number.
    pub fn unsigned<T: TryFrom<u64>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, FieldError> {
        let number = |value: &Value| value.as_u64().and_then(|number| T::try_from(number).ok());
        self.read(key, expected, Value::is_number, number)
    }

    /// An object field.
    ///
    /// **Errors** it is there and no object.
    pub fn object(&self, key: &str) -> Result<Option<Self>, FieldError> {
        self.value(key).map(|value| Self::of(self.path(key), value)).transpose()
    }

    /// An object field as it is.
    ///
    /// **Errors** it is there and no object.
    pub fn map(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, FieldError> {
        self.object(key).map(|object| object.map(|object| object.map))
    }

    /// The elements of a list field with the path of each; empty when absent.
    ///
    /// **Errors** it is there and no list.
    pub fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, FieldError> {
        self.value(key).map_or(Ok(Vec::new()), |value| elements(&self.path(key), value))
    }

    /// A list of texts; empty when absent.
    ///
    /// **Errors** it is no list, or an element is no text.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, FieldError> {
        let text = |(path, value): (String, &Value)| {
            value.as_str().map(str::to_owned).ok_or_else(|| FieldError::mistyped(path, "a string", value))
        };
        self.list(key)?.into_iter().map(text).collect()
    }

    /// A text field that parses as `T`; an empty text counts as absent.
    ///
    /// **Errors** it is there and does not parse.
    pub fn parsed<T: FromStr>(&self, key: &str, expected: &'static str) -> Result<Option<T>, FieldError> {
        if self.value(key).and_then(Value::as_str) == Some("") {
            return Ok(None);
        }
        self.read(key, expected, Value::is_string, |value| value.as_str().and_then(|text| text.parse().ok()))
    }

    /// A text field that parses as `T` and must be there.
    ///
    /// **Errors** it is missing or empty, or does not parse.
    pub fn required<T: FromStr>(&self, key: &str, expected: &'static str) -> Result<T, FieldError> {
        let missing = || self.senseless(key, expected);
        self.parsed(key, expected)?.ok_or_else(missing)
    }

    /// Names the field, present or not, as making no sense.
    #[must_use]
    pub fn senseless(&self, key: &str, expected: impl Into<Cow<'static, str>>) -> FieldError {
        FieldError::senseless(self.path(key), expected, self.value(key).unwrap_or(&Value::Null))
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &'static str,
        is_typed: impl Fn(&Value) -> bool,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        if !is_typed(value) {
            return Err(FieldError::mistyped(self.path(key), expected, value));
        }
        read(value).map(Some).ok_or_else(|| self.senseless(key, expected))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::{Value, json};

    use super::{Fault, FieldError, Fields};

    #[test]
    fn keys_match_without_case_and_exact_ones_win() {
        let document = json!({"HOSTPORT": 1, "HostPort": 2, "hostPort": 3, "Mtu": 4, "name": null});
        let fields = Fields::of("", &document).unwrap();
        assert_eq!(fields.unsigned::<u16>("hostPort", "a port"), Ok(Some(3)));
        assert_eq!(fields.unsigned::<u16>("mtu", "a number"), Ok(Some(4)));
        assert_eq!(fields.text("name"), Ok(None));
        assert_eq!(fields.value("other"), None);
    }

    #[test]
    fn errors_name_the_path_and_the_value() {
        let document = json!({"a": {"b": ["x", 7]}});
        let fields = Fields::of("", &document).unwrap();
        let inner = fields.object("a").unwrap().unwrap();
        let error = inner.texts("b").unwrap_err();
        assert_eq!(error.to_string(), "a.b[1]: expected a string, found 7");
    }

    #[test]
    fn a_wrong_type_is_told_from_a_wrong_value() {
        let document = json!({"port": 70_000, "address": "zork", "flag": 1, "list": {}});
        let fields = Fields::of("", &document).unwrap();
        let fault = |error: FieldError| error.fault;
        assert_eq!(fields.unsigned::<u16>("port", "a port").map_err(fault), Err(Fault::Value));
        assert_eq!(fields.unsigned::<u16>("address", "a port").map_err(fault), Err(Fault::Type));
        assert_eq!(fields.parsed::<IpAddr>("address", "an address").map_err(fault), Err(Fault::Value));
        assert_eq!(fields.parsed::<IpAddr>("port", "an address").map_err(fault), Err(Fault::Type));
        assert_eq!(fields.required::<IpAddr>("missing", "an address").map_err(fault), Err(Fault::Value));
        assert_eq!(fields.boolean("flag").map_err(fault), Err(Fault::Type));
        assert_eq!(fields.list("list").map_err(fault), Err(Fault::Type));
    }

    #[test]
    fn long_values_are_cut() {
        let error = FieldError::mistyped("x", "a number", &Value::String("ä".repeat(500)));
        assert_eq!(error.found.chars().count(), 65);
    }
}
