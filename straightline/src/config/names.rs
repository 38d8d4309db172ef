//! Which `STRAIGHTLINE_…` variables mean something. One that means nothing is an error: a misspelt broker must not
//! leave a process on the embedded one.

use super::Settings;
use std::collections::BTreeSet;
use toml::{Table, Value};

/// Prefix of the environment's variables.
pub const PREFIX: &str = "STRAIGHTLINE_";
/// The variable that names the configuration file: read with the flags.
const FILE: &str = "STRAIGHTLINE_CONFIG";
/// The project's own tests talk to themselves by these.
const OF_TESTS: [&str; 2] = ["STRAIGHTLINE_TEST_", "STRAIGHTLINE_TESTS_"];

/// Section and key that the variable `name` sets; none for one that is no setting and need not be. `all` are the names
/// of all variables there are.
pub fn setting(name: &str, all: &BTreeSet<String>) -> Result<Option<(String, String)>, String> {
    let Some(rest) = name.strip_prefix(PREFIX) else { return Ok(None) };
    let is_known = |(section, key): &(String, String)| keys(&[section]).contains(key);
    let named = rest.split_once("__").map(|(section, key)| (section.to_lowercase(), key.to_lowercase()));
    if let Some(named) = named.filter(is_known) {
        return Ok(Some(named));
    }
    let not_ours = name == FILE || OF_TESTS.iter().any(|test| name.starts_with(test)) || is_link(name, all);
    if not_ours { Ok(None) } else { Err(format!("is not a setting: {}", hint(name, rest))) }
}

/// What may have been meant by the variable `name`, `rest` behind the prefix.
fn hint(name: &str, rest: &str) -> String {
    // A table within a section is one setting, and so is a list.
    let outer = rest.to_lowercase();
    let outer = outer.split("__").take(2).collect::<Vec<_>>();
    if let [section, key] = outer[..]
        && keys(&[section]).iter().any(|known| known == key)
    {
        let whole = format!("{PREFIX}{section}__{key}").to_uppercase();
        return format!(
            "a variable sets all of {section}.{key} at once: {whole}='{{ … }}', as in a TOML file; or set it there"
        );
    }
    let of_section = variables(&rest.to_lowercase());
    if !of_section.is_empty() {
        return format!("it names a section without a key of it: use {}", of_section.join(", "));
    }
    match nearest(&name.to_uppercase()) {
        Some(near) => format!("did you mean {near}?"),
        None => "`straightline config show` prints those there are".to_owned(),
    }
}

/// Whether Kubernetes made it. In a namespace with a service called `straightline`, or `straightline-…`, it gives every
/// container `STRAIGHTLINE_SERVICE_HOST`, `STRAIGHTLINE_PORT`, `STRAIGHTLINE_PORT_8080_TCP_ADDR` and others.
fn is_link(name: &str, all: &BTreeSet<String>) -> bool {
    all.iter().filter_map(|host| host.strip_suffix("_SERVICE_HOST")).any(|service| {
        name.strip_prefix(service).is_some_and(|rest| {
            rest.starts_with("_SERVICE_") || rest == "_PORT" || rest.starts_with("_PORT_")
        })
    })
}

/// The variable whose name is closest to `name`, if it is close at all: one of three letters may be wrong.
fn nearest(name: &str) -> Option<String> {
    let settings = keys(&[]).into_iter().flat_map(|section| variables(&section));
    let all = settings.chain([FILE.to_owned()]).map(|known| (distance(&known, name), known));
    let (changes, known) = all.min()?;
    (changes * 3 <= name.len().saturating_sub(PREFIX.len())).then_some(known)
}

/// The variables of a section.
fn variables(section: &str) -> Vec<String> {
    let keys = keys(&[section]).into_iter();
    keys.map(|key| format!("{PREFIX}{section}__{key}").to_uppercase()).collect()
}

/// The keys of a section or of one within it, in the order they are written down in; of none, the sections. The parser
/// knows them, and says so when it is asked for one that cannot be.
pub(super) fn keys(path: &[&str]) -> Vec<String> {
    let nonsense = Table::from_iter([("?".to_owned(), Value::Boolean(true))]);
    let asked = path
        .iter()
        .rev()
        .fold(nonsense, |inner, section| Table::from_iter([((*section).to_owned(), Value::Table(inner))]));
    let answer = asked.try_into::<Settings>().err().map(|error| error.message().to_owned());
    let answer = answer.filter(|answer| answer.starts_with("unknown field `?`")).unwrap_or_default();
    answer.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

/// How many letters must be put in, taken out or changed to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, against) in other.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != against);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_setting_has_its_variable() {
        let named = |name| setting(name, &all(&[])).unwrap();
        for (name, section, key) in [
            ("STRAIGHTLINE_BROKER__URL", "broker", "url"),
            ("STRAIGHTLINE_STATE__PREFIX", "state", "prefix"),
            ("STRAIGHTLINE_STORAGE__BLOBS_SHARED", "storage", "blobs_shared"),
            ("STRAIGHTLINE_WORKER__SLOTS", "worker", "slots"),
        ] {
            assert_eq!(named(name), Some((section.to_owned(), key.to_owned())));
        }
        for name in ["PATH", "STRAIGHTLINE_CONFIG", "STRAIGHTLINE_TEST_CACHE", "STRAIGHTLINE_TESTS_PROBE"] {
            assert_eq!(named(name), None);
        }
        assert!(keys(&[]).len() >= 12, "{:?}", keys(&[]));
        assert!(keys(&["serverless", "lambda"]).contains(&"region".to_owned()));
        assert!(keys(&["worker", "nonsense"]).is_empty());
    }

    #[test]
    fn one_that_means_nothing_is_told_what_it_may_mean() {
        for (name, meant) in [
            ("STRAIGHTLINE_BROKER_URL", "did you mean STRAIGHTLINE_BROKER__URL?"),
            ("STRAIGHTLINE_WORKERS__SLOTS", "did you mean STRAIGHTLINE_WORKER__SLOTS?"),
            ("STRAIGHTLINE_WORKER__SLOT", "did you mean STRAIGHTLINE_WORKER__SLOTS?"),
            ("STRAIGHTLINE_CONFIGS", "did you mean STRAIGHTLINE_CONFIG?"),
            (
                "STRAIGHTLINE_WORKER__SERVER__URL",
                "all of worker.server at once: STRAIGHTLINE_WORKER__SERVER='{",
            ),
            ("STRAIGHTLINE_DOCKER__IMAGES__X__IMAGE", "all of docker.images at once"),
            ("STRAIGHTLINE_LOG", "use STRAIGHTLINE_LOG__FORMAT, STRAIGHTLINE_LOG__FILTER"),
            ("STRAIGHTLINE_FOO", "config show"),
            ("STRAIGHTLINE_PORT", "config show"),
        ] {
            let problem = setting(name, &all(&[name])).unwrap_err();
            assert!(problem.contains(meant), "{name} {problem}");
            assert_eq!(meant.contains("mean"), problem.contains("mean"), "{name} {problem}");
        }
    }

    #[test]
    fn what_kubernetes_says_of_a_service_of_our_name_is_no_mistake() {
        let links = all(&[
            "STRAIGHTLINE_SERVICE_HOST",
            "STRAIGHTLINE_SERVICE_PORT_HTTP",
            "STRAIGHTLINE_PORT",
            "STRAIGHTLINE_PORT_8080_TCP_ADDR",
            "STRAIGHTLINE_METRICS_SERVICE_HOST",
            "STRAIGHTLINE_METRICS_PORT",
        ]);
        for name in &links {
            assert_eq!(setting(name, &links), Ok(None), "{name}");
        }
        assert!(setting("STRAIGHTLINE_BROKER_URL", &links).is_err());
    }
}
