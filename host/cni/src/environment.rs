//! The environment variables of a call, checked: which verb needs which, and what they may hold.
//!
//! The shim uses it to answer without the daemon; the daemon uses it again, since it trusts no frame.

use std::fmt;

use crate::head::is_identifier;
use crate::version::Verb;

/// The longest interface name the kernel takes.
///
/// **Units** bytes, without the terminating zero. **Source** `IFNAMSIZ` of the kernel, 16 with it.
pub const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// The variables of a call, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// CNI_COMMAND.
    pub verb: Verb,
    /// CNI_CONTAINERID; empty for the verbs that need none.
    pub container_id: String,
    /// CNI_IFNAME; empty for the verbs that need none.
    pub ifname: String,
    /// CNI_NETNS as given; DEL may come without.
    pub netns: Option<String>,
    /// CNI_ARGS as given; empty when absent.
    pub arguments: String,
}

/// What is wrong with the variables. All of it is answered with code 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvironmentError {
    /// CNI_COMMAND is none of the verbs.
    UnknownCommand(String),
    /// Variables that the verb needs are missing or empty.
    Missing(Vec<&'static str>),
    /// CNI_CONTAINERID has a character it must not have.
    ContainerId(String),
    /// CNI_IFNAME is no name for an interface.
    InterfaceName(String),
}

impl fmt::Display for EnvironmentError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCommand(command) => {
                let verbs = Verb::ALL.map(Verb::as_str).join(", ");
                write!(formatter, "CNI_COMMAND {command:?} is unknown; use one of {verbs}")
            }
            Self::Missing(names) => {
                write!(formatter, "required environment variables are missing: {}", names.join(", "))
            }
            Self::ContainerId(id) => write!(
                formatter,
                "CNI_CONTAINERID {id:?} must start with a letter or digit and go on with letters, digits, '_', '.' or '-'"
            ),
            Self::InterfaceName(name) => write!(
                formatter,
                "CNI_IFNAME {name:?} must have 1 to {MAX_INTERFACE_NAME_BYTES} bytes, not be '.' or '..', and hold no '/', ':' or white space"
            ),
        }
    }
}

impl std::error::Error for EnvironmentError {}

impl Environment {
    /// Reads and checks the variables; an empty one counts as missing, of a repeated one the first counts.
    ///
    /// **Errors** all missing variables at once, else the first wrong one.
    pub fn read(variables: &[(String, String)]) -> Result<Self, EnvironmentError> {
        let command = lookup(variables, "CNI_COMMAND").ok_or_else(|| EnvironmentError::Missing(vec!["CNI_COMMAND"]))?;
        let verb = Verb::parse(command).ok_or_else(|| EnvironmentError::UnknownCommand(command.to_owned()))?;
        let missing: Vec<&'static str> =
            required(verb).iter().copied().filter(|name| lookup(variables, name).is_none()).collect();
        if !missing.is_empty() {
            return Err(EnvironmentError::Missing(missing));
        }
        let (mut container_id, mut ifname) = ("", "");
        if names_an_attachment(verb) {
            container_id = lookup(variables, "CNI_CONTAINERID").unwrap_or_default();
            ifname = lookup(variables, "CNI_IFNAME").unwrap_or_default();
            check_names(container_id, ifname)?;
        }
        Ok(Self {
            verb,
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
            netns: lookup(variables, "CNI_NETNS").map(str::to_owned),
            arguments: lookup(variables, "CNI_ARGS").unwrap_or_default().to_owned(),
        })
    }
}

/// Whether `name` can name an interface.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=MAX_INTERFACE_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace())
}

fn lookup<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let (_, value) = variables.iter().find(|(key, _)| key == name)?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

/// The variables each verb needs besides CNI_COMMAND.
///
/// **Source** SPEC.md, "Section 2: Execution Protocol". STATUS has CNI_PATH optional; DEL may come
/// without a namespace.
fn required(verb: Verb) -> &'static [&'static str] {
    match verb {
        Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
        Verb::Gc => &["CNI_PATH"],
        Verb::Status | Verb::Version => &[],
    }
}

fn names_an_attachment(verb: Verb) -> bool {
    match verb {
        Verb::Add | Verb::Check | Verb::Del => true,
        Verb::Gc | Verb::Status | Verb::Version => false,
    }
}

fn check_names(container_id: &str, ifname: &str) -> Result<(), EnvironmentError> {
    if !is_identifier(container_id) {
        return Err(EnvironmentError::ContainerId(container_id.to_owned()));
    }
    if !is_interface_name(ifname) {
        return Err(EnvironmentError::InterfaceName(ifname.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Environment, EnvironmentError};
    use crate::version::Verb;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_command_comes_first() {
        let missing = Err(EnvironmentError::Missing(vec!["CNI_COMMAND"]));
        assert_eq!(Environment::read(&[]), missing);
        assert_eq!(Environment::read(&variables(&[("CNI_COMMAND", "")])), missing);
        for command in ["add", "Add", "ADD ", "REMOVE"] {
            let expected = Err(EnvironmentError::UnknownCommand(command.to_owned()));
            assert_eq!(Environment::read(&variables(&[("CNI_COMMAND", command)])), expected);
        }
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let table: [(&str, &[&'static str]); 4] = [
            ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
            ("GC", &["CNI_PATH"]),
        ];
        for (command, missing) in table {
            let expected = Err(EnvironmentError::Missing(missing.to_vec()));
            assert_eq!(Environment::read(&variables(&[("CNI_COMMAND", command)])), expected);
        }
        for (command, verb) in [("STATUS", Verb::Status), ("VERSION", Verb::Version)] {
            let read = Environment::read(&variables(&[("CNI_COMMAND", command)]));
            assert_eq!(read.map(|environment| environment.verb), Ok(verb));
        }
        let message = EnvironmentError::Missing(vec!["CNI_NETNS", "CNI_IFNAME"]).to_string();
        assert_eq!(message, "required environment variables are missing: CNI_NETNS, CNI_IFNAME");
    }

    #[test]
    fn delete_comes_with_or_without_a_namespace() {
        let pairs = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "pod"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        let expected = Environment {
            verb: Verb::Del,
            container_id: "pod".to_owned(),
            ifname: "eth0".to_owned(),
            netns: None,
            arguments: String::new(),
        };
        assert_eq!(Environment::read(&variables(&pairs)), Ok(expected.clone()));
        assert_eq!(Environment::read(&variables(&pairs[..3])), Ok(expected));
    }

    #[test]
    fn container_ids_and_interface_names_keep_to_their_form() {
        let read = |id: &str, ifname: &str| {
            Environment::read(&variables(&[
                ("CNI_COMMAND", "ADD"),
                ("CNI_NETNS", "/run/netns/x"),
                ("CNI_CONTAINERID", id),
                ("CNI_IFNAME", ifname),
            ]))
            .map(|environment| (environment.container_id, environment.ifname))
        };
        for id in ["a", "0", &"c".repeat(128), &"c".repeat(250), "a_b.c-d"] {
            assert_eq!(read(id, "eth0"), Ok((id.to_owned(), "eth0".to_owned())));
        }
        for id in ["-a", "_a", "a/b", "../a", "a b", "ä", "a;b"] {
            assert_eq!(read(id, "eth0"), Err(EnvironmentError::ContainerId(id.to_owned())));
        }
        for name in ["e", "eth0", "exactly15bytes_"] {
            assert_eq!(read("a", name), Ok(("a".to_owned(), name.to_owned())));
        }
        for name in [".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{2003}b", "sixteen_bytes_xx"] {
            assert_eq!(read("a", name), Err(EnvironmentError::InterfaceName(name.to_owned())));
        }
    }
}
