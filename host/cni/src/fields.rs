//! Reading typed fields out of a JSON object, with errors that name the path.
//!
//! Keys match without regard to case, exact ones first: containerd sends `HostPort` where the
//! specification says `hostPort`, and the reference's decoder takes both. `null` counts as absent.

use serde_json::{Map, Value};

/// The longest rendition of a wrong value in a message. **Units** characters.
const SHOWN_CHARACTERS: usize = 64;

/// A value that is not what its field needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected {expected}, found {found}")]
pub struct FieldError {
    /// Where in the document.
    pub path: String,
    /// What the field needs.
    pub expected: &'static str,
    /// What is there, cut at 64 characters.
    pub found: String,
}

impl FieldError {
    /// Names `value` at `path` as not being what was expected.
    #[must_use]
    pub fn new(path: impl Into<String>, expected: &'static str, value: &Value) -> Self {
        let text = value.to_string();
        let mut found: String = text.chars().take(SHOWN_CHARACTERS).collect();
        if found.len() < text.len() {
            found.push('…');
        }
        Self { path: path.into(), expected, found }
    }
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
            None => Err(FieldError::new(path, "an object", value)),
        }
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
        self.typed(key, "a string", Value::as_str)
    }

    /// A true/false field.
    ///
    /// **Errors** it is there and neither.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, FieldError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A whole number that is not negative and fits `T`.
    ///
    /// **Errors** it is there and no such number.
    pub fn unsigned<T: TryFrom<u64>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, FieldError> {
        self.typed(key, expected, |value| value.as_u64().and_then(|number| T::try_from(number).ok()))
    }

    /// An object field.
    ///
    /// **Errors** it is there and no object.
    pub fn object(&self, key: &str) -> Result<Option<Self>, FieldError> {
        self.value(key).map(|value| Self::of(self.path(key), value)).transpose()
    }

    /// The elements of a list field with the path of each; empty when absent.
    ///
    /// **Errors** it is there and no list.
    pub fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, FieldError> {
        let Some(elements) = self.typed(key, "a list", Value::as_array)? else { return Ok(Vec::new()) };
        let path = self.path(key);
        Ok(elements.iter().enumerate().map(|(index, element)| (format!("{path}[{index}]"), element)).collect())
    }

    /// A list of texts; empty when absent.
    ///
    /// **Errors** it is no list, or an element is no text.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, FieldError> {
        let text = |(path, value): (String, &Value)| {
            value.as_str().map(str::to_owned).ok_or_else(|| FieldError::new(path, "a string", value))
        };
        self.list(key)?.into_iter().map(text).collect()
    }

    /// A text field that parses as `T`; an empty text counts as absent.
    ///
    /// **Errors** it is there and does not parse.
    pub fn parsed<T: std::str::FromStr>(&self, key: &str, expected: &'static str) -> Result<Option<T>, FieldError> {
        if self.value(key).and_then(Value::as_str) == Some("") {
            return Ok(None);
        }
        self.typed(key, expected, |value| value.as_str().and_then(|text| text.parse().ok()))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| FieldError::new(self.path(key), expected, value))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{FieldError, Fields};

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
    fn long_values_are_cut() {
        let error = FieldError::new("x", "a number", &Value::String("ä".repeat(500)));
        assert_eq!(error.found.chars().count(), 65);
    }
}
