//! Builds guests from text.
//!
//! Memory of a guest, in bytes: 1024 the answer of `configure`, 2048 its texts, 3072 an answer that is a list
//! at 8192, 4096 zeros (an answer that is an empty list, no position, or no limits), 65536 and up what the
//! host hands over.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use culvert_plugin::{Kind, Origin, Unit};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

/// A guest to be built. Bodies are the text of functions that leave the address of an answer.
#[derive(Clone, Debug)]
pub struct Guest {
    kind: Kind,
    name: String,
    /// Fields and functions in front of the rest.
    extra: String,
    configure: String,
    answer: String,
    second_answer: String,
    list: Vec<u8>,
    list_length: u32,
    pages: u32,
    wit: PathBuf,
    imports: String,
    version: String,
}

/// An answer that is empty.
pub const EMPTY: &str = "i32.const 4096";
/// An answer that is the list given.
pub const LIST: &str = "i32.const 3072";
/// An endless loop.
pub const LOOP: &str = "(loop $l (br $l)) unreachable";

impl Guest {
    pub fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            extra: String::new(),
            configure: "i32.const 1024".to_owned(),
            answer: EMPTY.to_owned(),
            second_answer: EMPTY.to_owned(),
            list: Vec::new(),
            list_length: 0,
            pages: 2,
            wit: wit(),
            imports: String::new(),
            version: "0.1.0".to_owned(),
        }
    }

    pub fn configure(mut self, body: &str) -> Self {
        self.configure = body.to_owned();
        self
    }

    /// The body of `plan`, `propose` or `shape`.
    pub fn answer(mut self, body: &str) -> Self {
        self.answer = body.to_owned();
        self
    }

    /// The body of `pick`.
    pub fn pick(mut self, body: &str) -> Self {
        self.second_answer = body.to_owned();
        self
    }

    pub fn extra(mut self, fields: &str) -> Self {
        self.extra = fields.to_owned();
        self
    }

    pub fn list(mut self, length: u32, bytes: Vec<u8>) -> Self {
        (self.list_length, self.list) = (length, bytes);
        self.answer(LIST)
    }

    pub fn pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    pub fn wit(mut self, folder: &Path) -> Self {
        self.wit = folder.to_owned();
        self
    }

    /// Imports `$log (level, address, length)`.
    pub fn logging(self) -> Self {
        self.import(r#"(import "culvert:policy/log@0.1.0" "write" (func $log (param i32 i32 i32)))"#)
    }

    pub fn import(mut self, field: &str) -> Self {
        self.imports = field.to_owned();
        self
    }

    /// The version of the contract it is built against, when [`Guest::wit`] is another.
    pub fn version(mut self, version: &str) -> Self {
        self.version = version.to_owned();
        self
    }

    pub fn core(&self) -> Vec<u8> {
        let text = self.text();
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    pub fn component(&self) -> Vec<u8> {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(&self.wit).unwrap();
        let world = match self.kind {
            Kind::Route => "router-policy",
            Kind::Ipam => "ipam-policy",
            Kind::Bandwidth => "bandwidth-policy",
        };
        let world = resolve.select_world(&[package], Some(world)).unwrap();
        let mut module = self.core();
        let metadata =
            wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false);
        metadata.unwrap();
        ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
    }

    pub fn unit(&self) -> Unit {
        unit(&self.name, self.component())
    }

    fn text(&self) -> String {
        let mut text = String::from("(module\n");
        text += &self.imports;
        let _ = writeln!(text, "(memory (export \"memory\") {})", self.pages);
        text += &self.extra;
        text += REALLOC;
        let configure = export("lifecycle", "configure", "i32 i32", &self.configure);
        text += &configure;
        text += &self.policy();
        text += &self.data();
        (text + ")").replace("@0.1.0", &format!("@{}", self.version))
    }

    fn policy(&self) -> String {
        match self.kind {
            Kind::Route => export("router", "plan", "i64 i32 i32 i32 i32 i32 i32 i32", &self.answer),
            Kind::Bandwidth => {
                let pod = "i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32 i32 i64 i32 i32 i32";
                export("bandwidth", "shape", pod, &self.answer)
            }
            Kind::Ipam => {
                let request = "i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i64";
                let reclaim = "i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32";
                export("ipam", "propose", "i32", &self.answer)
                    + &export("ipam", "pick", request, &self.second_answer)
                    + &export("ipam", "reclaim", reclaim, EMPTY)
            }
        }
    }

    fn data(&self) -> String {
        let (name, version) = (self.name.as_bytes(), b"1.2.3");
        let description =
            words(&[0, 2048, u32::try_from(name.len()).unwrap(), 2112, u32::try_from(version.len()).unwrap(), 0, 0]);
        let list = words(&[0, 8192, self.list_length]);
        data(1024, &description)
            + &data(2048, name)
            + &data(2112, version)
            + &data(3072, &list)
            + &data(8192, &self.list)
    }
}

/// Hands out memory from 65,536 up, growing as needed, and never takes any back.
const REALLOC: &str = r#"
(global $next (mut i32) (i32.const 65536))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (local $at i32)
  (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
  (global.set $next (i32.add (local.get $at) (local.get 3)))
  (block $enough
    (br_if $enough (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
    (br_if $enough (i32.ne (i32.const -1)
      (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get 3) (i32.const 16))))))
    unreachable)
  (local.get $at))
"#;

fn export(interface: &str, function: &str, parameters: &str, body: &str) -> String {
    format!(
        "(func (export \"culvert:policy/{interface}@0.1.0#{function}\") (param {parameters}) (result i32)\n{body})\n"
    )
}

pub fn data(at: u32, bytes: &[u8]) -> String {
    let escaped: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
    format!("(data (i32.const {at}) \"{escaped}\")\n")
}

/// Little-endian words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A `prefix` record of an IPv4 network, 32 bytes.
pub fn prefix(family: u8, address: [u8; 4], length: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = family;
    bytes[8..12].copy_from_slice(&u32::from_be_bytes(address).to_le_bytes());
    bytes[24] = length;
    bytes
}

/// How a route of [`route`] leaves: the discriminants of `via`.
pub const LOCAL: u8 = 0;
pub const REJECT: u8 = 4;

/// A `route` record without `otherwise`, 104 bytes.
pub fn route(to: &[u8], via: u8) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.resize(104, 0);
    bytes[32] = via;
    bytes
}

/// A body that answers `Err(case(text))`. The text and the answer lie at 5120.
pub fn error(case: u32, text: &str) -> (String, String) {
    let length = u32::try_from(text.len()).unwrap();
    let fields = data(5120, &words(&[1, case, 5136, length])) + &data(5136, text.as_bytes());
    ("i32.const 5120".to_owned(), fields)
}

pub fn unit(name: &str, component: Vec<u8>) -> Unit {
    Unit { name: name.to_owned(), component: component.into(), settings: "{}".to_owned(), origin: Origin::Shipped }
}

pub fn wit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit")
}
