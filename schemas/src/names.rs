//! Names that come from outside and end up in queue names, folders and metric labels, checked once where
//! they enter.

use crate::limits::{CLIENT_NAME_BYTES_MAX, MODEL_NAME_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A name that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?} is not allowed: {rule}")]
pub struct InvalidName {
    /// Which name, as its sender knows it.
    pub field: &'static str,
    /// What was sent, shortened.
    pub value: String,
    /// What would have been allowed.
    pub rule: &'static str,
}

impl InvalidName {
    fn new(field: &'static str, value: &str, rule: &'static str) -> Self {
        Self { field, value: value.chars().take(80).collect(), rule }
    }
}

/// The name of a model: lower-case letters, digits, `.`, `_` and `-`, starting with a letter or a digit, at most
/// [`MODEL_NAME_BYTES_MAX`] bytes. It can therefore never leave the models' folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "json-schema", schemars(with = "String"))]
pub struct ModelName(Arc<str>);

impl ModelName {
    const RULE: &'static str =
        "use 1 to 128 of a-z, 0-9, '.', '_' and '-', starting with a letter or a digit";

    /// Checks and takes `name`.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let tail = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if head && tail && name.len() <= MODEL_NAME_BYTES_MAX {
            Ok(Self(name.into()))
        } else {
            Err(InvalidName::new("model", name, Self::RULE))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a client: on a broker that authenticates, its login. Letters, digits, `.`, `_` and `-`, at most
/// [`CLIENT_NAME_BYTES_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "json-schema", schemars(with = "String"))]
pub struct ClientName(Arc<str>);

impl ClientName {
    const RULE: &'static str = "use 1 to 64 letters, digits, '.', '_' and '-'";

    /// Checks and takes `name`.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !name.is_empty() && name.len() <= CLIENT_NAME_BYTES_MAX && name.bytes().all(allowed) {
            Ok(Self(name.into()))
        } else {
            Err(InvalidName::new("client", name, Self::RULE))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The queue one instance of a client reads its replies from: `reply.<client>.<instance>`. An instance has no
/// dot, so that the client can be told from the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "json-schema", schemars(with = "String"))]
pub struct ReplyQueue(Arc<str>);

impl ReplyQueue {
    const RULE: &'static str =
        "use reply.<client>.<instance>, the instance being 1 to 64 letters, digits, '_' and '-'";

    /// The reply queue of `instance` of `client`.
    pub fn of(client: &ClientName, instance: &str) -> Result<Self, InvalidName> {
        let name = format!("reply.{client}.{instance}");
        // Taken apart again, the part before a dot in it would belong to the client.
        if instance.contains('.') {
            Err(InvalidName::new("reply_to", &name, Self::RULE))
        } else {
            Self::new(&name)
        }
    }

    /// Checks and takes a whole queue name.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        let (client, instance) = name
            .strip_prefix("reply.")
            .and_then(|rest| rest.rsplit_once('.'))
            .ok_or_else(|| InvalidName::new("reply_to", name, Self::RULE))?;
        let instance_ok = !instance.is_empty() && instance.len() <= 64 && instance.bytes().all(allowed);
        if instance_ok && ClientName::new(client).is_ok() {
            Ok(Self(name.into()))
        } else {
            Err(InvalidName::new("reply_to", name, Self::RULE))
        }
    }

    /// Whether this queue belongs to `client`.
    pub fn belongs_to(&self, client: &ClientName) -> bool {
        self.0
            .strip_prefix("reply.")
            .and_then(|rest| rest.rsplit_once('.'))
            .is_some_and(|(owner, _)| owner == client.as_str())
    }

    /// The queue's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! string_like {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(&name)
            }
        }
        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
string_like!(ModelName);
string_like!(ClientName);
string_like!(ReplyQueue);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_name_cannot_leave_its_folder() {
        for bad in ["", "..", ".hidden", "a/b", "A", "a\\b", "a b", "é", "-x", &"x".repeat(129)] {
            let error = ModelName::new(bad).expect_err(bad);
            assert!(error.to_string().contains("model"), "{error}");
        }
        for good in ["digits", "digits-conv", "0", "a..b", &"x".repeat(128)] {
            assert_eq!(ModelName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_reply_queue_belongs_to_one_client_only() {
        let dotted = ClientName::new("a.b").unwrap();
        let short = ClientName::new("a").unwrap();
        let queue = ReplyQueue::of(&dotted, "c").unwrap();
        assert!(queue.belongs_to(&dotted));
        assert!(!queue.belongs_to(&short), "a prefix is not an owner");
        assert!(ReplyQueue::of(&short, "b.c").is_err(), "it would be the queue of a.b");
        for bad in ["jobs.high", "reply.a", "reply..x", "reply.a.", "reply.a b.c", "reply.a.x/y"] {
            assert!(ReplyQueue::new(bad).is_err(), "{bad}");
        }
    }
}
