//! Laying file, environment and flags over one another.

use super::{Settings, names};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// A configuration that cannot work. Ends the process with code 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("configuration file {path}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong.
        problem: String,
    },
    /// A variable or flag is not what it should be.
    #[error("{origin}: {problem}")]
    Override {
        /// Which.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// A value is not allowed.
    #[error("{0}")]
    Value(String),
}

/// Settings from `file` (if there is one), `environment` and `flags` (pairs of `section.key` and value), the later over
/// the earlier.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(&str, String)],
) -> Result<Settings, ConfigError> {
    let mut table = match file {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let environment: BTreeMap<_, _> =
        environment.into_iter().filter(|(name, _)| name.starts_with(names::PREFIX)).collect();
    let all = environment.keys().cloned().collect();
    let mut variables = Vec::new();
    for (name, value) in environment {
        match names::setting(&name, &all) {
            Ok(Some((section, key))) => variables.push((name, section, key, value)),
            Ok(None) => {}
            Err(problem) => return Err(ConfigError::Override { origin: name, problem }),
        }
    }
    let flags = flags.iter().map(|(path, value)| {
        let (section, key) = path.split_once('.').expect("flags name section.key");
        (format!("flag for {path}"), section.to_owned(), key.to_owned(), value.clone())
    });
    for (origin, section, key, value) in variables.into_iter().chain(flags) {
        set(&mut table, &origin, &section, &key, &value)?;
    }
    parse(table).map_err(|misfit| ConfigError::Value(misfit.to_string()))
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    let invalid = |problem| ConfigError::Invalid { path: path.to_owned(), problem };
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        invalid(at_line(error.span().map(|span| span.start), &text, error.message().to_owned()))
    })?;
    // The file alone first: what is wrong with it has a line there.
    match parse(table.clone()) {
        Ok(_) => Ok(table),
        Err(misfit) => Err(invalid(at_line(misfit.position(&text), &text, misfit.to_string()))),
    }
}

/// Sets one key and checks it at once, so that the error can name where the value came from.
fn set(table: &mut Table, origin: &str, section: &str, key: &str, value: &str) -> Result<(), ConfigError> {
    let wrong = |problem: String| ConfigError::Override { origin: origin.to_owned(), problem };
    let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(entry) = entry else { return Err(wrong(format!("[{section}] is not a section"))) };
    // A value that reads as TOML is one (numbers, booleans, tables); anything else is text.
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    let text = Value::String(value.to_owned());
    let whole = matches!(parsed, Some(Value::Table(_) | Value::Array(_)));
    entry.insert(key.to_owned(), parsed.unwrap_or_else(|| text.clone()));
    let misfit = match parse(only(section, entry, key)) {
        Ok(_) => return Ok(()),
        Err(misfit) if whole => misfit,
        Err(_) => {
            entry.insert(key.to_owned(), text);
            match parse(only(section, entry, key)) {
                Ok(_) => return Ok(()),
                Err(misfit) => misfit,
            }
        }
    };
    Err(wrong(match misfit.place.strip_prefix(&format!("{section}.{key}.")) {
        Some(within) => format!("{within}: {}", misfit.problem),
        None => misfit.problem,
    }))
}

/// A table with nothing but this key.
fn only(section: &str, entry: &Table, key: &str) -> Table {
    let mut inner = Table::new();
    if let Some(value) = entry.get(key) {
        inner.insert(key.to_owned(), value.clone());
    }
    let mut table = Table::new();
    table.insert(section.to_owned(), Value::Table(inner));
    table
}

/// What is not as the settings' types want it.
struct Misfit {
    /// The keys that lead to it, joined by dots.
    place: String,
    problem: String,
}

/// Settings are read from a [`Table`] only, whatever it was made of: for each kind of source all their types would be
/// compiled once more, a tenth of the program.
fn parse(table: Table) -> Result<Settings, Misfit> {
    table.try_into().map_err(|error: toml::de::Error| {
        let problem = explained(error.message());
        // Only as it is shown does it say where: in a line behind the message.
        let shown = error.to_string();
        let place = shown.trim_end().rsplit_once("\nin `").and_then(|(_, place)| place.strip_suffix('`'));
        Misfit { place: place.unwrap_or_default().to_owned(), problem }
    })
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place.as_str() {
            "" => f.write_str(&self.problem),
            place => write!(f, "{place}: {}", self.problem),
        }
    }
}

impl Misfit {
    /// Where it is in the file that it comes from, in bytes.
    fn position(&self, text: &str) -> Option<usize> {
        let unknown = self.problem.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let place = match unknown {
            Some(key) if self.place.is_empty() => key.to_owned(),
            Some(key) => format!("{}.{key}", self.place),
            None => self.place.clone(),
        };
        key_at(DeTable::parse(text).ok()?.get_ref(), &place)
    }
}

/// Where the last of the keys is written that lead to `place`.
fn key_at(table: &DeTable<'_>, place: &str) -> Option<usize> {
    table.iter().find_map(|(key, value)| {
        match (place.strip_prefix(key.get_ref().as_ref())?, value.get_ref()) {
            ("", _) => Some(key.span().start),
            (rest, DeValue::Table(inner)) => key_at(inner, rest.strip_prefix('.')?),
            _ => None,
        }
    })
}

/// The problem with its line, but without the line's text: a URL there has a password in it.
fn at_line(position: Option<usize>, text: &str, problem: String) -> String {
    let line = position.map(|at| text[..at.min(text.len())].matches('\n').count() + 1);
    line.map_or_else(|| problem.clone(), |line| format!("line {line}: {problem}"))
}

/// What a parser says of a value, with what would be right. Where any text would be, it may be a secret and is left out.
fn explained(message: &str) -> String {
    if message.ends_with("expected a string") {
        return "must be text: put it in quotes".to_owned();
    }
    let remedies = [
        ("a duration", "use a time such as 10s or 5m"),
        ("parsable string", "use a size such as 64KiB"),
        ("an integer or string", "use a size such as 64KiB"),
        ("integer overflow", "use a size such as 64KiB"),
        ("socket address", "use an address and a port, such as 127.0.0.1:8080"),
        ("socket address syntax", "use an address and a port, such as 127.0.0.1:8080"),
        ("untagged enum Gpus", "use a number, \"all\", or a list of indexes or UUIDs"),
        ("expected u16", "use a port, 1 to 65535"),
        ("expected u32", "use a whole number from 0 to 4294967295"),
        ("expected f64", "use a number"),
        ("a sequence", "use a list, such as [\"a\", \"b\"]"),
        ("a map", "use a table, such as { key = \"value\" }"),
        ("expected struct Image", "use a table, such as { image = \"repository:tag\" }"),
        ("expected struct Server", "use a table, such as { url = \"http://host:port\", models = [\"m\"] }"),
        ("expected u64", "use a whole number, 0 or more"),
    ];
    match remedies.iter().find(|(end, _)| message.ends_with(end)) {
        Some((_, remedy)) => format!("{message}: {remedy}"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use std::time::Duration;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn later_layers_win() {
        let file = file("[dispatcher]\nfrequency_threshold = 5\nwindow = \"3s\"\n[worker]\nslots = 1\n");
        let variables = environment(&[
            ("STRAIGHTLINE_DISPATCHER__WINDOW", "7s"),
            ("STRAIGHTLINE_BROKER__URL", "amqp://u:p@h/v"),
            ("STRAIGHTLINE_DISPATCHER__PAYLOAD_MAX", "{ local = \"1MB\" }"),
            ("STRAIGHTLINE_TEST_CACHE", "ignored"),
        ]);
        let settings = load(Some(file.path()), variables, &[("worker.slots", "3".to_owned())]).unwrap();
        assert_eq!(settings.dispatcher.frequency_threshold, 5.0);
        assert_eq!(settings.dispatcher.window, Duration::from_secs(7));
        assert_eq!(settings.worker.slots, Some(3));
        assert_eq!(settings.dispatcher.payload_max.len(), 1);
        assert_eq!(settings.broker.url.unwrap().expose_secret(), "amqp://u:p@h/v");
    }

    #[test]
    fn what_cannot_work_is_named() {
        let misspelt = file("[dispatcher]\n\nfrequency_treshold = 5\n");
        let error = load(Some(misspelt.path()), [], &[]).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("frequency_treshold"), "{error}");
        let error = load(Some(Path::new("/nonexistent/x.toml")), [], &[]).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/x.toml"), "{error}");
        for (name, value, expected) in [
            (
                "STRAIGHTLINE_DISPATCHER__WINDOW",
                "5",
                "STRAIGHTLINE_DISPATCHER__WINDOW: invalid value: string \"5\"",
            ),
            ("STRAIGHTLINE_DISPATCHER__WINDOW", "5", "use a time such as 10s"),
            ("STRAIGHTLINE_HTTP__LISTEN", "8080", "such as 127.0.0.1:8080"),
            (
                "STRAIGHTLINE_DOCKER__IMAGES",
                "{ m = { image = \"i\", port = 0.5 } }",
                "STRAIGHTLINE_DOCKER__IMAGES: m.port: invalid type",
            ),
            ("STRAIGHTLINE_HTTP__LISTEN", "localhost:8080", "such as 127.0.0.1:8080"),
            ("STRAIGHTLINE_WORKER__SLOTS", "-1", "STRAIGHTLINE_WORKER__SLOTS"),
            ("STRAIGHTLINE_WORKER__SLOT", "1", "STRAIGHTLINE_WORKER__SLOT: is not a setting"),
            ("STRAIGHTLINE_WORKERS__SLOTS", "1", "did you mean STRAIGHTLINE_WORKER__SLOTS?"),
            ("STRAIGHTLINE_BROKER_URL", "amqp://h", "did you mean STRAIGHTLINE_BROKER__URL?"),
        ] {
            let error = load(None, environment(&[(name, value)]), &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_in_the_file_has_its_line_its_name_and_a_remedy() {
        for (text, place, remedy) in [
            (
                "[dispatcher]\nsize_threshold = \"64 potatoes\"",
                "line 2: dispatcher.size_threshold: ",
                "64KiB",
            ),
            ("\n[dispatcher]\nsize_threshold = -1", "line 3: dispatcher.size_threshold: ", "64KiB"),
            ("[limits]\ninline = true", "line 2: limits.inline: ", "64KiB"),
            ("[http]\nlisten = \"8080\"", "line 2: http.listen: ", "such as 127.0.0.1:8080"),
            ("[http]\nlisten = 8080", "line 2: http.listen: ", "such as 127.0.0.1:8080"),
            ("[dispatcher]\nwindow = 5", "line 2: dispatcher.window: ", "10s"),
            ("[serverless.host]\nidle_timeout = \"soon\"", "line 2: serverless.host.idle_timeout: ", "10s"),
            ("[client]\nname = 7", "line 2: client.name: ", "in quotes"),
            (
                "[docker.images.\"m.1\"]\nimage = \"i\"\ngpus = \"some\"",
                "line 3: docker.images.m.1.gpus: ",
                "\"all\"",
            ),
            (
                "[docker.images.m]\nimage = \"i\"\nport = 99999",
                "line 3: docker.images.m.port: ",
                "1 to 65535",
            ),
            ("[docker]\ncontainers_max = -1", "line 2: docker.containers_max: ", "from 0 to"),
            ("[docker.images.m]\nport = 80", "line 1: docker.images.m: ", "missing field `image`"),
            ("[dispatch]\nwindow = \"1s\"", "line 1: unknown field `dispatch`", "dispatcher"),
        ] {
            let file = file(text);
            let error = load(Some(file.path()), [], &[]).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn an_error_in_the_file_never_shows_the_line_it_is_on() {
        for text in [
            "[broker]\nurl = \"amqp://u:hunter2@h\" x\n",
            "[state]\nurl = 4711\n",
            "[broker]\nurl = [\"hunter2\"]\n",
        ] {
            let file = file(text);
            let error = load(Some(file.path()), [], &[]).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2") && !shown.contains("4711"), "{error}");
        }
    }
}
