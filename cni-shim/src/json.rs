//! The little JSON the shim needs without a library: the top-level members of an object, and strings.
//!
//! The scanner accepts exactly the JSON of RFC 8259 (numbers of any size), so that what it lets pass
//! is what the daemon reads. It builds no tree: nested values are skipped and kept as text.

/// How deep values may nest, as in the daemon's own reader: 127 lists or objects inside one another.
const MAX_DEPTH: usize = 127;

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member<'a> {
    /// Not there, or null.
    Absent,
    /// A string, with its escapes resolved.
    Text(String),
    /// An object, as written.
    Object(&'a str),
    /// A number, a list, true or false.
    Other,
}

/// Why a text is no JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanError {
    /// Where. **Units** bytes from the start.
    pub position: usize,
    /// What is expected there.
    pub expected: &'static str,
}

/// Reads an object and returns the members of these names, in the order of `names`.
///
/// Names match without regard to case, exact ones first; of equal ones the last counts.
///
/// **Errors** anything that is not exactly one JSON object.
pub fn members<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Result<[Member<'a>; N], ScanError> {
    let mut scanner = Scanner { text, position: 0 };
    let mut found: [(bool, Member<'a>); N] = std::array::from_fn(|_| (false, Member::Absent));
    scanner.skip_space();
    scanner.object(1, &mut |name, member| {
        for (wanted, slot) in names.iter().zip(found.iter_mut()) {
            let exact = name == *wanted;
            if exact || (!slot.0 && name.eq_ignore_ascii_case(wanted)) {
                *slot = (exact, member.clone());
            }
        }
    })?;
    scanner.skip_space();
    if scanner.position < text.len() {
        return Err(scanner.error("the end"));
    }
    Ok(found.map(|(_, member)| member))
}

/// Appends `text` as a JSON string, quotes included.
pub fn push_string(target: &mut String, text: &str) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    target.push('"');
    for character in text.chars() {
        match character {
            '"' => target.push_str("\\\""),
            '\\' => target.push_str("\\\\"),
            '\n' => target.push_str("\\n"),
            '\r' => target.push_str("\\r"),
            '\t' => target.push_str("\\t"),
            control if control < ' ' => {
                let number = u32::from(control);
                target.push_str("\\u00");
                target.push(if number < 16 { '0' } else { '1' });
                target.extend(HEX.get(usize::try_from(number % 16).unwrap_or(0)));
            }
            other => target.push(other),
        }
    }
    target.push('"');
}

struct Scanner<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Scanner<'a> {
    fn error(&self, expected: &'static str) -> ScanError {
        ScanError { position: self.position, expected }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        if there {
            self.position += 1;
        }
        there
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), ScanError> {
        if self.accept(byte) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.position += 1;
        }
    }

    /// Everything since `start`; empty if that lies inside a character, which no caller does.
    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.position).unwrap_or_default()
    }

    /// An object whose members are handed to `each`, with the spaces around its parts.
    fn object(&mut self, depth: usize, each: &mut dyn FnMut(&str, &Member<'a>)) -> Result<(), ScanError> {
        self.expect(b'{', "an object")?;
        if depth > MAX_DEPTH {
            return Err(self.error("less nesting"));
        }
        self.skip_space();
        if self.accept(b'}') {
            return Ok(());
        }
        loop {
            self.skip_space();
            let name = self.string("a member's name")?;
            self.skip_space();
            self.expect(b':', "':'")?;
            let member = self.value(depth)?;
            each(&name, &member);
            if self.accept(b'}') {
                return Ok(());
            }
            self.expect(b',', "',' or '}'")?;
        }
    }

    fn list(&mut self, depth: usize) -> Result<(), ScanError> {
        self.expect(b'[', "a list")?;
        if depth > MAX_DEPTH {
            return Err(self.error("less nesting"));
        }
        self.skip_space();
        if self.accept(b']') {
            return Ok(());
        }
        loop {
            self.value(depth)?;
            if self.accept(b']') {
                return Ok(());
            }
            self.expect(b',', "',' or ']'")?;
        }
    }

    /// A value of any kind inside `depth` others, with the spaces around it.
    fn value(&mut self, depth: usize) -> Result<Member<'a>, ScanError> {
        self.skip_space();
        let start = self.position;
        let member = match self.peek() {
            Some(b'"') => Member::Text(self.string("a string")?),
            Some(b'{') => {
                self.object(depth + 1, &mut |_, _| ())?;
                Member::Object(self.since(start))
            }
            Some(b'[') => {
                self.list(depth + 1)?;
                Member::Other
            }
            Some(b'n') => {
                self.word("null")?;
                Member::Absent
            }
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(_) | None => return Err(self.error("a value")),
        };
        self.skip_space();
        Ok(member)
    }

    fn word(&mut self, word: &'static str) -> Result<Member<'a>, ScanError> {
        let rest = self.text.as_bytes().get(self.position..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.error(word));
        }
        self.position += word.len();
        Ok(Member::Other)
    }

    fn number(&mut self) -> Result<Member<'a>, ScanError> {
        self.accept(b'-');
        if !self.accept(b'0') {
            self.digits()?;
        }
        if self.accept(b'.') {
            self.digits()?;
        }
        if self.accept(b'e') || self.accept(b'E') {
            let _signed = self.accept(b'+') || self.accept(b'-');
            self.digits()?;
        }
        Ok(Member::Other)
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        let start = self.position;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.position += 1;
        }
        if self.position == start { Err(self.error("a digit")) } else { Ok(()) }
    }

    fn string(&mut self, expected: &'static str) -> Result<String, ScanError> {
        self.expect(b'"', expected)?;
        let mut text = String::new();
        loop {
            let start = self.position;
            while matches!(self.peek(), Some(byte) if byte >= b' ' && byte != b'"' && byte != b'\\') {
                self.position += 1;
            }
            text.push_str(self.since(start));
            if self.accept(b'"') {
                return Ok(text);
            }
            self.expect(b'\\', "the end of the string")?;
            text.push(self.escaped()?);
        }
    }

    fn escaped(&mut self) -> Result<char, ScanError> {
        let character = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            Some(_) | None => return Err(self.error("an escaped character")),
        };
        self.position += 1;
        Ok(character)
    }

    /// `u` and four digits, and for the first half of a surrogate pair the second one too.
    fn unicode(&mut self) -> Result<char, ScanError> {
        const PAIR: &str = "the second half of a surrogate pair";
        let first = self.four_digits()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first).ok_or_else(|| self.error("the first half of a surrogate pair"));
        }
        self.expect(b'\\', PAIR)?;
        let second = self.four_digits()?;
        if !(0xdc00..0xe000).contains(&second) {
            return Err(self.error(PAIR));
        }
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or_else(|| self.error(PAIR))
    }

    fn four_digits(&mut self) -> Result<u32, ScanError> {
        self.expect(b'u', "a surrogate pair")?;
        let digits = self.text.as_bytes().get(self.position..self.position + 4).unwrap_or_default();
        let mut number = 0;
        for digit in digits {
            let value = char::from(*digit).to_digit(16).ok_or_else(|| self.error("four hexadecimal digits"))?;
            number = number * 16 + value;
        }
        if digits.is_empty() {
            return Err(self.error("four hexadecimal digits"));
        }
        self.position += 4;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};
    use proptest::prop_assert_eq;
    use serde_json::Value;

    use super::{Member, ScanError, members, push_string};

    /// What the daemon's reader makes of the same text. A number too large for it is no matter of form.
    fn daemon_accepts(text: &str) -> bool {
        match serde_json::from_str::<Value>(text) {
            Ok(value) => value.is_object(),
            Err(error) => error.to_string().starts_with("number out of range"),
        }
    }

    proptest! {
        #[test]
        fn strings_survive_the_daemons_reader(text in any::<String>()) {
            let mut written = String::new();
            push_string(&mut written, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&written)?, text);
        }

        #[test]
        fn strings_of_the_daemons_writer_are_read(text in any::<String>()) {
            let document = serde_json::json!({"before": [text], "name": text}).to_string();
            prop_assert_eq!(members(&document, ["name"]), Ok([Member::Text(text)]));
        }

        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            prop_assert_eq!(members(&text, ["name"]).is_ok(), daemon_accepts(&text));
        }

        #[test]
        fn exactly_the_json_of_the_daemons_reader_is_accepted(
            parts in prop::collection::vec(prop::sample::select(vec![
                "{", "}", "[", "]", ":", ",", "\"a\"", "\"name\":", "\"", "\\", "u00e9", "\\ud83d", "\\ude00", "null",
                "true", "false", "0", "1", "-", ".5", "e", "+2", " ", "\n", "\u{1}", "ü", "nul",
            ]), 0..12),
        ) {
            for text in [parts.concat(), format!("{{\"name\":{}}}", parts.concat())] {
                prop_assert_eq!(members(&text, ["name"]).is_ok(), daemon_accepts(&text), "{}", text);
            }
        }
    }

    #[test]
    fn only_top_level_members_count() {
        let text = r#" {"args": {"name": "inner"}, "list": [{"name": 1}], "name": "outer", "x": 1.5e-3} "#;
        let read = members(text, ["name", "args", "list", "x", "none"]);
        let inner = Member::Object(r#"{"name": "inner"}"#);
        let outer = Member::Text("outer".into());
        assert_eq!(read, Ok([outer, inner, Member::Other, Member::Other, Member::Absent]));
    }

    #[test]
    fn names_match_by_escape_and_case_and_exact_ones_win() {
        let text =
            r#"{"NAME": "a", "cniVersion": "1", "name": "b", "Name": "c", "CNIVERSION": "2", "\u0073ocket": null}"#;
        let read = members(text, ["name", "cniVersion", "socket"]);
        assert_eq!(read, Ok([Member::Text("b".into()), Member::Text("1".into()), Member::Absent]));
    }

    #[test]
    fn surrogate_pairs_are_joined_and_lone_ones_refused() {
        assert_eq!(members(r#"{"a":"\ud83d\ude00"}"#, ["a"]), Ok([Member::Text("😀".into())]));
        for lone in [r#"{"a":"\ud83d"}"#, r#"{"a":"\ude00"}"#, r#"{"a":"\ud83dx"}"#, r#"{"a":"\ud83d\u0041"}"#] {
            assert!(members(lone, ["a"]).is_err(), "{lone}");
        }
    }

    #[test]
    fn nesting_is_bounded_as_in_the_daemons_reader() {
        for depth in [125, 126, 127, 128, 20_000] {
            let lists = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(members(&lists, ["a"]).is_ok(), daemon_accepts(&lists), "{depth}");
            let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
            assert_eq!(members(&objects, ["a"]).is_ok(), daemon_accepts(&objects), "{depth}");
        }
    }

    #[test]
    fn faults_name_their_place() {
        let table = [
            ("", 0, "an object"),
            ("[]", 0, "an object"),
            ("\u{feff}{}", 0, "an object"),
            ("{\"a\":1", 6, "',' or '}'"),
            ("{\"a\":1}x", 7, "the end"),
            ("{\"a\" 1}", 5, "':'"),
            ("{\"a\":01}", 6, "',' or '}'"),
            ("{\"a\":\"\n\"}", 6, "the end of the string"),
        ];
        for (text, position, expected) in table {
            assert_eq!(members(text, ["a"]), Err(ScanError { position, expected }));
        }
    }
}
