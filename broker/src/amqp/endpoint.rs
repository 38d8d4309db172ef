//! Where the broker is and who we are there: a URL taken apart and checked before anything is opened.
//!
//! No error and no `Debug` here shows a password.

use super::transport::Tls;
use crate::BrokerError;
use lapin::uri::{AMQPScheme, AMQPUri};
use schemas::ClientName;
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::path::Path;

const URL: &str = "broker.url";
const CA_FILE: &str = "broker.ca_file";
const EXAMPLE: &str = "use amqp://user:password@host:5672/vhost, with special characters percent-encoded";

/// A broker, and a login there.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) uri: AMQPUri,
    /// For an encrypted connection.
    pub(super) tls: Option<Tls>,
}

impl Endpoint {
    /// Takes `url` apart. The certificates in `ca_file` are trusted besides the usual ones.
    pub(super) fn parse(url: &SecretString, ca_file: Option<&Path>) -> Result<Self, BrokerError> {
        let wrong = |problem: String| BrokerError::Config { field: URL, problem };
        let text = url.expose_secret();
        let rest = text
            .strip_prefix("amqp://")
            .or_else(|| text.strip_prefix("amqps://"))
            .ok_or_else(|| wrong(format!("starts with neither amqp:// nor amqps://: {EXAMPLE}")))?;
        // The parser's own words may quote the URL, and with it the password.
        let mut uri: AMQPUri = text.parse().map_err(|_| wrong(format!("is not a URL: {EXAMPLE}")))?;
        if uri.vhost.is_empty() {
            let problem = "ends in '/', which names a virtual host without a name: leave it out, or end in /%2f, for \
                           the default one";
            return Err(wrong(problem.into()));
        }
        // The parser knows no IPv6 addresses and would connect to localhost in their place.
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let host = authority.rsplit('@').next().unwrap_or(authority);
        if let Some((address, _)) = host.strip_prefix('[').and_then(|address| address.split_once(']')) {
            uri.authority.host = address.to_owned();
        }
        if host.is_empty() || host.starts_with(':') {
            return Err(wrong(format!("names no host: {EXAMPLE}")));
        }
        if let Some(file) = ca_file.filter(|_| uri.scheme != AMQPScheme::AMQPS) {
            let problem = format!(
                "is {}, but {URL} is not encrypted: use amqps:// there, or leave this out",
                file.display()
            );
            return Err(BrokerError::Config { field: CA_FILE, problem });
        }
        let tls = (uri.scheme == AMQPScheme::AMQPS).then(|| Tls::trusting(ca_file)).transpose();
        let tls = tls.map_err(|problem| BrokerError::Config { field: CA_FILE, problem })?;
        Ok(Self { uri, tls })
    }

    /// Host and port.
    pub(super) fn address(&self) -> String {
        let authority = &self.uri.authority;
        match authority.host.contains(':') {
            true => format!("[{}]:{}", authority.host, authority.port),
            false => format!("{}:{}", authority.host, authority.port),
        }
    }

    pub(super) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    pub(super) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// The login as a client name, where it can be one.
    pub(super) fn login(&self) -> Option<ClientName> {
        ClientName::new(self.user()).ok()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}", self.user(), self.address(), self.vhost())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, BrokerError> {
        Endpoint::parse(&SecretString::from(url), None)
    }

    #[test]
    fn a_url_is_taken_apart() {
        let full = parse("amqps://ann:s%3Acret@mq.example:5999/jobs%2Ftest?frame_max=8192").unwrap();
        assert_eq!(
            (full.address().as_str(), full.user(), full.vhost()),
            ("mq.example:5999", "ann", "jobs/test")
        );
        assert!(full.tls.is_some());
        assert_eq!(full.uri.authority.userinfo.password, "s:cret");
        assert_eq!(full.login().unwrap().as_str(), "ann");
        let short = parse("amqp://localhost").unwrap();
        assert_eq!((short.address().as_str(), short.user(), short.vhost()), ("localhost:5672", "guest", "/"));
        assert!(short.tls.is_none());
        let six = parse("amqp://a:b@[::1]:5673/%2f").unwrap();
        assert_eq!((six.address().as_str(), six.uri.authority.host.as_str()), ("[::1]:5673", "::1"));
    }

    #[test]
    fn a_wrong_url_is_named_without_its_password() {
        let bad = [
            "",
            "guest:hunter2@localhost",
            "http://guest:hunter2@localhost",
            "amqp:guest:hunter2@localhost",
            "amqp://guest:hunter2@localhost:port",
            "amqp://guest:hunter2@localhost/",
            "amqp://guest:hunter2@:5672/x",
            "amqp://guest:hunter2@[::1/x",
        ];
        for url in bad {
            let error = parse(url).expect_err(url).to_string();
            assert!(error.starts_with("broker.url "), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
        let endpoint = parse("amqp://guest:hunter2@localhost/x").unwrap();
        assert_eq!(format!("{endpoint:?}"), "guest@localhost:5672/x");
    }

    #[test]
    fn a_login_that_cannot_be_a_client_name_is_none() {
        assert_eq!(parse("amqp://a%20b:c@h/x").unwrap().login(), None);
    }

    #[test]
    fn a_ca_file_must_hold_a_certificate() {
        let url = SecretString::from("amqps://localhost");
        let error = Endpoint::parse(&url, Some(Path::new("/does/not/exist"))).unwrap_err().to_string();
        assert!(error.starts_with("broker.ca_file /does/not/exist cannot be read"), "{error}");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = Endpoint::parse(&url, Some(empty.path())).unwrap_err().to_string();
        assert!(error.contains("no certificate"), "{error}");
        let plain = SecretString::from("amqp://localhost");
        let error = Endpoint::parse(&plain, Some(empty.path())).unwrap_err().to_string();
        assert!(error.starts_with("broker.ca_file is ") && error.contains("use amqps://"), "{error}");
    }
}
