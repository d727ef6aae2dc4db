//! The settings of a deployment: JSON text, read once by `configure`, with errors that name the key.
//!
//! ```
//! use culvert_policy_sdk::error::PolicyError;
//! use culvert_policy_sdk::settings::Settings;
//!
//! fn read(text: &str) -> Result<(Vec<culvert_policy_sdk::ipnet::IpNet>, u64), PolicyError> {
//!     let mut settings = Settings::parse(text)?;
//!     let reserved = settings.prefixes("reserved")?;
//!     let spare = settings.whole_number("spare")?.unwrap_or(1);
//!     settings.finish()?;
//!     Ok((reserved, spare))
//! }
//!
//! assert_eq!(read("{}"), Ok((vec![], 1)));
//! assert_eq!(
//!     read(r#"{"reserve": []}"#),
//!     Err(PolicyError::invalid_settings("unknown key `reserve`; known keys: reserved, spare"))
//! );
//! ```

mod json;

use ipnet::IpNet;

use self::json::Json;
use crate::error::PolicyError;
use crate::prefix::has_no_host_bits;

/// **Bounds** bytes of settings; the host passes no more.
const LONGEST: usize = 64 * 1024;

/// For a policy that has no settings: refuses all but an empty object. It spares the guest the reader.
///
/// # Errors
/// [`PolicyError::InvalidSettings`] when there is anything in `text`.
pub fn none(text: &str) -> Result<(), PolicyError> {
    let inner = text.trim_ascii().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match inner {
        Some(inner) if inner.trim_ascii().is_empty() => Ok(()),
        Some(_) | None => {
            Err(PolicyError::invalid_settings("this policy has no settings: leave them out, or write {}"))
        }
    }
}

/// An object of the settings. Each key is read once by name; [`Settings::finish`] refuses what nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it stands: "" at the top, "caps." below the key `caps`.
    path: String,
    fields: Vec<(String, Json)>,
    known: Vec<&'static str>,
}

impl Settings {
    /// Reads the whole text, which must be one JSON object.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] with the place where the text stops being JSON.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > LONGEST {
            return Err(PolicyError::invalid_settings(format!("longer than {LONGEST} bytes")));
        }
        match json::parse(text) {
            Ok(Json::Object(fields)) => Ok(Self { path: String::new(), fields, known: Vec::new() }),
            Ok(other) => Err(PolicyError::invalid_settings(format!("expected an object, found {}", other.kind()))),
            Err(fault) => Err(PolicyError::invalid_settings(format!(
                "no JSON at byte {}: expected {}",
                fault.offset, fault.expected
            ))),
        }
    }

    /// A text, or `None` when the key is absent or null.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when it is something else.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, PolicyError> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "text", &other)),
        }
    }

    /// A whole number from 0, or `None` when the key is absent or null.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when it is something else, or does not fit.
    pub fn whole_number(&mut self, key: &'static str) -> Result<Option<u64>, PolicyError> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Number(number)) => match number.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.refuse(key, &format!("{number} is no whole number from 0 to {}", u64::MAX))),
            },
            Some(other) => Err(self.wrong(key, "a whole number", &other)),
        }
    }

    /// True or false, or `None` when the key is absent or null.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when it is something else.
    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>, PolicyError> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Flag(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(key, "true or false", &other)),
        }
    }

    /// A list of texts; empty when the key is absent or null.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when it is something else, naming the item at fault.
    pub fn texts(&mut self, key: &'static str) -> Result<Vec<String>, PolicyError> {
        let items = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Json::List(items)) => items,
            Some(other) => return Err(self.wrong(key, "a list", &other)),
        };
        let mut texts = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let found = item.kind();
            let Json::Text(text) = item else {
                return Err(self.refuse(&format!("{key}[{position}]"), &format!("expected text, found {found}")));
            };
            texts.push(text);
        }
        Ok(texts)
    }

    /// A list of prefixes without host bits; empty when the key is absent or null.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when it is something else, naming the item at fault.
    pub fn prefixes(&mut self, key: &'static str) -> Result<Vec<IpNet>, PolicyError> {
        let mut prefixes = Vec::new();
        for (position, text) in self.texts(key)?.into_iter().enumerate() {
            let reason = match text.parse::<IpNet>() {
                Ok(prefix) if has_no_host_bits(&prefix) => {
                    prefixes.push(prefix);
                    continue;
                }
                Ok(_) => format!("{text} has host bits set: the address must end where the prefix does"),
                Err(_) => format!("\"{text}\" is no prefix such as 10.1.0.0/16"),
            };
            return Err(self.refuse(&format!("{key}[{position}]"), &reason));
        }
        Ok(prefixes)
    }

    /// An object inside this one; an empty one when the key is absent or null. Finish it too.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when it is something else.
    pub fn object(&mut self, key: &'static str) -> Result<Self, PolicyError> {
        let fields = match self.take(key) {
            None => Vec::new(),
            Some(Json::Object(fields)) => fields,
            Some(other) => return Err(self.wrong(key, "an object", &other)),
        };
        Ok(Self { path: format!("{}{key}.", self.path), fields, known: Vec::new() })
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`PolicyError::InvalidSettings`] when there is a key that was never asked for: it would be a typing error that
    /// nobody notices.
    pub fn finish(self) -> Result<(), PolicyError> {
        let Some((unknown, _)) = self.fields.first() else {
            return Ok(());
        };
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        let path = &self.path;
        Err(PolicyError::invalid_settings(format!("unknown key `{path}{unknown}`; known keys: {known}")))
    }

    /// An error about the value of `key`, for what only the policy can judge.
    #[must_use]
    pub fn refuse(&self, key: &str, reason: &str) -> PolicyError {
        PolicyError::invalid_settings(format!("`{}{key}`: {reason}", self.path))
    }

    fn take(&mut self, key: &'static str) -> Option<Json> {
        self.known.push(key);
        let position = self.fields.iter().position(|(present, _)| present == key)?;
        let (_, value) = self.fields.remove(position);
        (value != Json::Null).then_some(value)
    }

    fn wrong(&self, key: &str, expected: &str, found: &Json) -> PolicyError {
        self.refuse(key, &format!("expected {expected}, found {}", found.kind()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T>(text: &str) -> Result<T, PolicyError> {
        Err(PolicyError::invalid_settings(text))
    }

    fn settings(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    #[test]
    fn each_value_is_read_as_what_it_is() {
        let mut settings = settings(
            r#"{"name": "a", "count": 3, "on": true, "of": ["x"], "in": ["10.1.0.0/16", "fd00::/8"], "o": {"k": 1}}"#,
        );
        assert_eq!(settings.text("name"), Ok(Some("a".to_owned())));
        assert_eq!(settings.whole_number("count"), Ok(Some(3)));
        assert_eq!(settings.flag("on"), Ok(Some(true)));
        assert_eq!(settings.texts("of"), Ok(vec!["x".to_owned()]));
        assert_eq!(settings.prefixes("in"), Ok(vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()]));
        let mut inner = settings.object("o").unwrap();
        assert_eq!(inner.whole_number("k"), Ok(Some(1)));
        assert_eq!(inner.finish(), Ok(()));
        assert_eq!(settings.finish(), Ok(()));
    }

    #[test]
    fn what_is_absent_or_null_is_none_or_empty() {
        let mut settings = settings(r#"{"name": null}"#);
        assert_eq!(settings.text("name"), Ok(None));
        assert_eq!(settings.whole_number("count"), Ok(None));
        assert_eq!(settings.flag("on"), Ok(None));
        assert_eq!(settings.texts("of"), Ok(Vec::new()));
        assert_eq!(settings.prefixes("in"), Ok(Vec::new()));
        assert_eq!(settings.object("o").unwrap().finish(), Ok(()));
        assert_eq!(settings.finish(), Ok(()));
    }

    #[test]
    fn a_wrong_kind_is_refused_by_key() {
        assert_eq!(settings(r#"{"a": 1}"#).text("a"), refused("`a`: expected text, found a number"));
        assert_eq!(settings(r#"{"a": []}"#).whole_number("a"), refused("`a`: expected a whole number, found a list"));
        assert_eq!(settings(r#"{"a": "x"}"#).flag("a"), refused("`a`: expected true or false, found text"));
        assert_eq!(settings(r#"{"a": {}}"#).texts("a"), refused("`a`: expected a list, found an object"));
        assert_eq!(settings(r#"{"a": ["x", true]}"#).texts("a"), refused("`a[1]`: expected text, found a boolean"));
        assert_eq!(
            settings(r#"{"a": "x"}"#).object("a").map(Settings::finish),
            refused("`a`: expected an object, found text")
        );
    }

    #[test]
    fn a_number_that_is_not_whole_or_too_large_is_refused() {
        for number in ["-1", "1.5", "1e3", "18446744073709551616"] {
            assert_eq!(
                settings(&format!("{{\"a\": {number}}}")).whole_number("a"),
                refused(&format!("`a`: {number} is no whole number from 0 to 18446744073709551615"))
            );
        }
    }

    #[test]
    fn a_prefix_that_is_none_is_refused_by_position() {
        assert_eq!(
            settings(r#"{"in": ["10.1.0.0/16", "10.1.0.0/33"]}"#).prefixes("in"),
            refused("`in[1]`: \"10.1.0.0/33\" is no prefix such as 10.1.0.0/16")
        );
        assert_eq!(
            settings(r#"{"in": ["10.1.2.3/16"]}"#).prefixes("in"),
            refused("`in[0]`: 10.1.2.3/16 has host bits set: the address must end where the prefix does")
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_path_and_the_known_ones() {
        let mut outer = settings(r#"{"caps": {"ingres": 1}}"#);
        let mut inner = outer.object("caps").unwrap();
        assert_eq!((inner.text("ingress"), inner.text("egress")), (Ok(None), Ok(None)));
        assert_eq!(inner.finish(), refused("unknown key `caps.ingres`; known keys: ingress, egress"));
        assert_eq!(settings(r#"{"a": 1}"#).finish(), refused("unknown key `a`; known keys: none"));
    }

    #[test]
    fn a_policy_without_settings_takes_an_empty_object_only() {
        assert_eq!([none("{}"), none(" { \n } ")], [Ok(()), Ok(())]);
        for text in ["", "{", "}", "[]", "null", "{\"a\": 1}"] {
            assert_eq!(none(text), refused("this policy has no settings: leave them out, or write {}"), "{text}");
        }
    }

    #[test]
    fn settings_that_are_no_object_are_refused() {
        assert_eq!(Settings::parse("[]"), refused("expected an object, found a list"));
        assert_eq!(Settings::parse("{\"a\": }"), refused("no JSON at byte 6: expected a value"));
        assert_eq!(Settings::parse(&" ".repeat(65_537)), refused("longer than 65536 bytes"));
    }
}
