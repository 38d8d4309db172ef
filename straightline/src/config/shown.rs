//! Settings as they are shown: as a configuration file that can be read again, without the passwords.

use super::{Settings, names};
use secrecy::{ExposeSecret, SecretString};
use serde::Serializer;
use std::fmt::Write;
use toml::{Table, Value};

impl Settings {
    /// Every setting with its value, as a configuration file; passwords are hidden, and what is not set is a comment.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        write_section(&mut out, &[], &Table::try_from(self)?)?;
        Ok(out)
    }
}

/// Writes the section at `path`, its keys in the order they are written down in, and then those within it.
fn write_section(out: &mut String, path: &[&str], section: &Table) -> anyhow::Result<()> {
    let known = names::keys(path);
    // What has no keys of its own is a map: its keys are those it has.
    let keys: Vec<&str> = match known.is_empty() {
        true => section.keys().map(String::as_str).collect(),
        false => known.iter().map(String::as_str).collect(),
    };
    if !path.is_empty() {
        let quoted = path.iter().map(|name| quoted(name)).collect::<Vec<_>>();
        writeln!(out, "{}[{}]", if out.is_empty() { "" } else { "\n" }, quoted.join("."))?;
    }
    for key in &keys {
        match section.get(*key) {
            Some(Value::Table(_)) => {}
            Some(value) => writeln!(out, "{} = {value}", quoted(key))?,
            None => writeln!(out, "# {key} is not set")?,
        }
    }
    for key in keys {
        if let Some(Value::Table(inner)) = section.get(key) {
            write_section(out, &[path, &[key]].concat(), inner)?;
        }
    }
    Ok(())
}

/// A key as TOML has it.
fn quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if key.bytes().all(is_bare) { key.to_owned() } else { Value::from(key).to_string() }
}

/// A URL without its password.
pub(super) fn hidden<S: Serializer>(url: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => serializer.serialize_str(&without_password(url.expose_secret())),
        None => serializer.serialize_none(),
    }
}

/// `scheme://user:***@rest?***`. What is not surely free of a secret is hidden whole: a URL that does not look like
/// one, and one whose login or port holds what has no place there, since nobody knows where its password begins.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let (place, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], &rest[at..=at]),
        None => (rest, ""),
    };
    let host = place.split('/').next().unwrap_or_default();
    let port = host.rsplit(']').next().and_then(|host| host.split_once(':')).map_or("", |(_, port)| port);
    let is_odd = login.is_some_and(|login| login.contains(['/', '?', '#']))
        || !port.bytes().all(|byte| byte.is_ascii_digit());
    if is_odd {
        return format!("{scheme}://***");
    }
    let login = match login.map(|login| login.split_once(':').map_or((login, ""), |(user, _)| (user, ":***")))
    {
        Some((user, password)) => format!("{user}{password}@"),
        None => String::new(),
    };
    let hidden = if query.is_empty() { "" } else { "***" };
    format!("{scheme}://{login}{place}{query}{hidden}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (url, shown) in [
            ("amqp://u:hunter2@h:5672/v", "amqp://u:***@h:5672/v"),
            ("redis://:hunter2@h/0", "redis://:***@h/0"),
            ("redis://h/0", "redis://h/0"),
            ("amqp://u@h", "amqp://u@h"),
            ("amqp://u:hun@ter2@h/v", "amqp://u:***@h/v"),
            ("hunter2", "***"),
            ("amqp://u:hun/ter2@h/v", "amqp://***"),
            ("amqp://u:hun?ter2@h/v", "amqp://***"),
            ("amqp://u:hun#ter2@h/v", "amqp://***"),
            ("amqp://hun/ter2:p@h/v", "amqp://***"),
            ("amqp://u:h@nt/er2@h/v", "amqp://***"),
            ("redis://:hunter2", "redis://***"),
            ("redis://h:6379/0?password=hunter2", "redis://h:6379/0?***"),
            ("amqps://u:p@h/v?cacertfile=x&password=hunter2", "amqps://u:***@h/v?***"),
            ("redis://h:6379#hunter2", "redis://h:6379#***"),
            ("redis://:hunter2@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
            ("redis://[::1]/0", "redis://[::1]/0"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let shown = Settings::default().to_toml().unwrap();
        let read = |text: &str| text.parse::<Table>().unwrap().try_into::<Settings>().unwrap();
        assert_eq!(read(&shown).to_toml().unwrap(), shown);
        let text = "[worker]\nslots = 3\n[worker.server]\nurl = \"http://h\"\nmodels = [\"m\"]\n\
            [docker.images.\"a.b\"]\nimage = \"i\"\nenv = { K = \"two\\nlines\" }\n";
        let shown = read(text).to_toml().unwrap();
        let read = read(&shown);
        assert_eq!(read.to_toml().unwrap(), shown);
        let image = &read.docker.images[&schemas::ModelName::new("a.b").unwrap()];
        assert_eq!((image.env["K"].as_str(), read.worker.slots), ("two\nlines", Some(3)));
    }

    #[test]
    fn what_is_not_set_is_shown_in_its_section() {
        let shown = Settings::default().to_toml().unwrap();
        for (section, key) in [
            ("broker", "url"),
            ("broker", "ca_file"),
            ("state", "url"),
            ("storage", "blobs"),
            ("metrics", "listen"),
            ("dispatcher", "placement_log"),
            ("worker", "slots"),
            ("worker", "models"),
            ("worker", "server"),
            ("docker", "network"),
            ("serverless.host", "invoke_listen"),
            ("serverless.lambda", "qualifier"),
            ("client", "server"),
        ] {
            let (_, of_section) = shown.split_once(&format!("[{section}]\n")).expect(section);
            let of_section = of_section.split("\n[").next().unwrap();
            assert!(of_section.contains(&format!("# {key} is not set\n")), "{section} {key}\n{shown}");
        }
    }
}
