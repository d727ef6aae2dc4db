//! A small, strict reader of JSON text.
//!
//! Written for guests: serde_json would add 40 KiB to a policy of 25. Numbers are kept as their text, because the
//! conversion to floating point alone is larger than this file.
//!
//! **Source** RFC 8259. Stricter in one point: a key may occur once in an object.

/// **Bounds** values inside values; settings are shallow, and the depth costs stack.
const DEEPEST: u8 = 16;

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Json {
    Null,
    Flag(bool),
    /// As written.
    Number(String),
    Text(String),
    List(Vec<Json>),
    /// In the order written.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// What it is, for "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Flag(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Where text stops being JSON, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// **Units** bytes from the start.
    pub(super) offset: usize,
    pub(super) expected: &'static str,
}

/// Reads one value and nothing after it.
pub(super) fn parse(text: &str) -> Result<Json, Fault> {
    let mut reader = Reader { text, offset: 0 };
    let value = reader.value(DEEPEST)?;
    reader.skip_space();
    if reader.offset < text.len() { reader.fault("nothing more") } else { Ok(value) }
}

struct Reader<'a> {
    text: &'a str,
    offset: usize,
}

impl Reader<'_> {
    fn fault<T>(&self, expected: &'static str) -> Result<T, Fault> {
        Err(Fault { offset: self.offset, expected })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.offset).copied()
    }

    fn take_if(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.offset += usize::from(found);
        found
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.offset += 1;
        }
    }

    fn value(&mut self, depth: u8) -> Result<Json, Fault> {
        self.skip_space();
        let Some(depth) = depth.checked_sub(1) else {
            return self.fault("less nesting");
        };
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Json::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Flag(true)),
            Some(b'f') => self.word("false", Json::Flag(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(_) | None => self.fault("a value"),
        }
    }

    fn word(&mut self, word: &'static str, value: Json) -> Result<Json, Fault> {
        if !self.text.as_bytes().get(self.offset..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            return self.fault("a value");
        }
        self.offset += word.len();
        Ok(value)
    }

    fn list(&mut self, depth: u8) -> Result<Json, Fault> {
        self.offset += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.take_if(b']') {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth)?);
            self.skip_space();
            if self.take_if(b']') {
                return Ok(Json::List(items));
            }
            if !self.take_if(b',') {
                return self.fault("`,` or `]`");
            }
        }
    }

    fn object(&mut self, depth: u8) -> Result<Json, Fault> {
        self.offset += 1;
        let mut fields: Vec<(String, Json)> = Vec::new();
        self.skip_space();
        if self.take_if(b'}') {
            return Ok(Json::Object(fields));
        }
        loop {
            self.skip_space();
            let key = self.key(&fields)?;
            fields.push((key, self.value(depth)?));
            self.skip_space();
            if self.take_if(b'}') {
                return Ok(Json::Object(fields));
            }
            if !self.take_if(b',') {
                return self.fault("`,` or `}`");
            }
        }
    }

    /// A key that is not among `before`, and the colon behind it.
    fn key(&mut self, before: &[(String, Json)]) -> Result<String, Fault> {
        let start = self.offset;
        if self.peek() != Some(b'"') {
            return self.fault("a key in quotes");
        }
        let key = self.string()?;
        if before.iter().any(|(present, _)| *present == key) {
            return Err(Fault { offset: start, expected: "a key that the object does not have yet" });
        }
        self.skip_space();
        if self.take_if(b':') { Ok(key) } else { self.fault("`:`") }
    }

    fn string(&mut self) -> Result<String, Fault> {
        self.offset += 1;
        let mut text = String::new();
        loop {
            let start = self.offset;
            while !matches!(self.peek(), Some(b'"' | b'\\' | 0..0x20) | None) {
                self.offset += 1;
            }
            text.push_str(self.text.get(start..self.offset).unwrap_or_default());
            match self.peek() {
                Some(b'"') => {
                    self.offset += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(_) => return self.fault("no control character"),
                None => return self.fault("`\"`"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        self.offset += 1;
        let escaped = match self.peek() {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.offset += 1;
                return self.unicode();
            }
            Some(_) | None => return self.fault("an escape"),
        };
        self.offset += 1;
        Ok(escaped)
    }

    /// `\u` has been read; characters beyond the basic plane come as two of them.
    fn unicode(&mut self) -> Result<char, Fault> {
        let start = self.offset;
        let first = self.four_digits()?;
        let mut code = first;
        if (0xd800..0xdc00).contains(&first) && self.take_if(b'\\') && self.take_if(b'u') {
            let second = self.four_digits()?;
            code = match second.checked_sub(0xdc00) {
                Some(low) if low < 0x400 => 0x1_0000 + ((first - 0xd800) << 10) + low,
                Some(_) | None => first,
            };
        }
        char::from_u32(code).ok_or(Fault { offset: start, expected: "a character" })
    }

    fn four_digits(&mut self) -> Result<u32, Fault> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else {
                return self.fault("a hexadecimal digit");
            };
            code = code << 4 | digit;
            self.offset += 1;
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<Json, Fault> {
        let start = self.offset;
        self.take_if(b'-');
        if !self.take_if(b'0') {
            self.digits()?;
        }
        if self.take_if(b'.') {
            self.digits()?;
        }
        if self.take_if(b'e') || self.take_if(b'E') {
            let _ = self.take_if(b'+') || self.take_if(b'-');
            self.digits()?;
        }
        Ok(Json::Number(self.text.get(start..self.offset).unwrap_or_default().to_owned()))
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.offset;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.offset += 1;
        }
        if self.offset == start { self.fault("a digit") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: &str) -> Json {
        Json::Text(value.to_owned())
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let read = parse(" { \"a\" : [ 1 , -2.5e+3 , true , false , null ] , \"b\" : { } , \"c\" : [ ] } ");
        let expected = Json::Object(vec![
            (
                "a".to_owned(),
                Json::List(vec![
                    Json::Number("1".to_owned()),
                    Json::Number("-2.5e+3".to_owned()),
                    Json::Flag(true),
                    Json::Flag(false),
                    Json::Null,
                ]),
            ),
            ("b".to_owned(), Json::Object(Vec::new())),
            ("c".to_owned(), Json::List(Vec::new())),
        ]);
        assert_eq!(read, Ok(expected));
    }

    #[test]
    fn escapes_become_the_characters_they_stand_for() {
        assert_eq!(parse(r#""\"\\\/\b\f\n\r\tA\u00e9\ud83d\ude80ß""#), Ok(text("\"\\/\u{8}\u{c}\n\r\tAé🚀ß")));
    }

    #[test]
    fn what_is_not_json_is_refused_where_it_stops_being_json() {
        for (wrong, offset, expected) in [
            ("", 0, "a value"),
            ("tru", 0, "a value"),
            ("[1 2]", 3, "`,` or `]`"),
            ("[1,]", 3, "a value"),
            ("{\"a\" 1}", 5, "`:`"),
            ("{\"a\":1,}", 7, "a key in quotes"),
            ("{\"a\":1 \"b\":2}", 7, "`,` or `}`"),
            ("{a:1}", 1, "a key in quotes"),
            ("{\"a\":1,\"a\":2}", 7, "a key that the object does not have yet"),
            ("\"abc", 4, "`\"`"),
            ("\"a\nb\"", 2, "no control character"),
            ("\"\\x\"", 2, "an escape"),
            ("\"\\u12g4\"", 5, "a hexadecimal digit"),
            ("\"\\ud83d\"", 3, "a character"),
            ("\"\\ud83dA\"", 3, "a character"),
            ("-", 1, "a digit"),
            ("1.", 2, "a digit"),
            ("1e", 2, "a digit"),
            ("01", 1, "nothing more"),
            ("{} {}", 3, "nothing more"),
        ] {
            let fault = parse(wrong).unwrap_err();
            assert_eq!((fault.offset, fault.expected), (offset, expected), "{wrong}");
        }
    }

    #[test]
    fn nesting_beyond_the_bound_is_refused_without_using_the_stack() {
        let deep = "[".repeat(60_000);
        assert_eq!(parse(&deep), Err(Fault { offset: 16, expected: "less nesting" }));
        let fits = format!("{}{}", "[".repeat(16), "]".repeat(16));
        assert!(parse(&fits).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_panics_the_reader(any_text: String) {
            if let Err(fault) = parse(&any_text) {
                prop_assert!(fault.offset <= any_text.len());
            }
        }

        #[test]
        fn text_that_looks_like_json_does_not_panic_the_reader(any_text in "[\\[\\]{}\":,0-9eE.+\\\\utrfalsn -]{0,40}") {
            if let Err(fault) = parse(&any_text) {
                prop_assert!(fault.offset <= any_text.len());
            }
        }

        #[test]
        fn any_text_comes_back_from_its_quoted_form(any_text: String) {
            let mut quoted = String::from("\"");
            for character in any_text.chars() {
                match character {
                    '"' | '\\' => quoted.extend(['\\', character]),
                    control if control < ' ' => quoted.push_str(&format!("\\u{:04x}", control as u32)),
                    other => quoted.push(other),
                }
            }
            quoted.push('"');
            prop_assert_eq!(parse(&quoted), Ok(Json::Text(any_text)));
        }
    }
}
