//! The dependency directions of the workspace, held over `cargo metadata`.
//!
//! `straightline, tests → producer, dispatcher, workers, simulator → broker, state → schemas`; producer,
//! dispatcher and workers never import each other; each client library has one package that names it; schemas
//! does no I/O. A package that is not there yet is no violation, one that nobody placed is.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// Who may name whom within the workspace.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("serving", &[]),
    ("broker", &["schemas"]),
    ("state", &["schemas"]),
    ("producer", &["broker", "state", "serving", "schemas"]),
    ("dispatcher", &["broker", "state", "schemas"]),
    ("workers", &["broker", "state", "serving", "schemas"]),
    ("simulator", &["dispatcher", "broker", "state", "schemas"]),
    (
        "straightline",
        &["producer", "dispatcher", "workers", "simulator", "broker", "state", "serving", "schemas"],
    ),
    ("tests", &["producer", "dispatcher", "workers", "simulator", "broker", "state", "schemas"]),
];

/// Libraries that only one package may name.
const OWNED: &[(&str, &str)] = &[
    ("lapin", "broker"),
    ("redis", "state"),
    ("deadpool-redis", "state"),
    ("bollard", "workers"),
    ("nvml-wrapper", "workers"),
];

/// Libraries that do I/O: none may stand anywhere beneath `schemas`.
const IO: &[&str] = &[
    "axum",
    "bollard",
    "deadpool-redis",
    "hyper",
    "lapin",
    "mio",
    "object_store",
    "redb",
    "redis",
    "reqwest",
    "rusqlite",
    "socket2",
    "tokio",
];

/// The packages of a workspace, each with the packages its manifest names, of whatever kind.
pub type Packages = BTreeMap<String, Vec<String>>;

/// Reads what `cargo metadata --no-deps --format-version 1` printed.
pub fn packages(metadata: &str) -> Result<Packages> {
    let metadata: Value = serde_json::from_str(metadata).context("cargo metadata is not JSON")?;
    let list = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let name = |value: &Value| value["name"].as_str().map(str::to_owned).context("a package without a name");
    let package = |value: &Value| {
        let dependencies = value["dependencies"].as_array().context("a package without dependencies")?;
        Ok((name(value)?, dependencies.iter().map(name).collect::<Result<_>>()?))
    };
    list.iter().map(package).collect()
}

/// What breaks the directions, a sentence each; empty is well.
#[must_use]
pub fn violations(packages: &Packages) -> Vec<String> {
    let edges =
        packages.iter().flat_map(|(from, all)| all.iter().map(move |to| (from.as_str(), to.as_str())));
    let placed = |name: &str| DIRECTIONS.iter().find(|(placed, _)| *placed == name);
    let unplaced = packages.keys().filter(|name| placed(name).is_none());
    let mut found: Vec<String> =
        unplaced.map(|name| format!("{name} has no place in the directions; give it one")).collect();
    for (from, to) in edges {
        let within = packages.contains_key(to) && from != to;
        if within && placed(from).is_some_and(|(_, allowed)| !allowed.contains(&to)) {
            found.push(format!("{from} must not depend on {to}"));
        }
        if let Some((_, owner)) = OWNED.iter().find(|(library, owner)| *library == to && *owner != from) {
            found.push(format!("{from} must not depend on {to}: only {owner} does"));
        }
    }
    found
}

/// The libraries that do I/O in what `cargo tree --package schemas --edges no-dev --prefix none` printed.
#[must_use]
pub fn io_libraries(tree: &str) -> Vec<String> {
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| IO.contains(name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(edges: &[(&str, &[&str])]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        violations(&edges.iter().map(|&(from, to)| (from.to_owned(), owned(to))).collect())
    }

    #[test]
    fn the_design_has_no_violation() {
        let workspace: &[(&str, &[&str])] = &[
            ("schemas", &["serde"]),
            ("broker", &["schemas", "lapin", "broker"]),
            ("state", &["schemas", "redis", "deadpool-redis"]),
            ("workers", &["broker", "state", "bollard", "tokio"]),
            ("dispatcher", &["broker", "state", "schemas"]),
            ("simulator", &["dispatcher"]),
            ("straightline", &["workers", "dispatcher", "simulator", "schemas"]),
        ];
        assert_eq!(found(workspace), Vec::<String>::new());
    }

    #[test]
    fn a_dependency_upwards_or_sideways_is_found() {
        let workspace: &[(&str, &[&str])] =
            &[("schemas", &["state"]), ("state", &[]), ("workers", &["dispatcher"]), ("dispatcher", &[])];
        assert_eq!(
            found(workspace),
            ["schemas must not depend on state", "workers must not depend on dispatcher"]
        );
    }

    #[test]
    fn a_library_named_by_another_than_its_owner_is_found() {
        let workspace: &[(&str, &[&str])] = &[("producer", &["lapin"]), ("tests", &["redis"])];
        assert_eq!(
            found(workspace),
            [
                "producer must not depend on lapin: only broker does",
                "tests must not depend on redis: only state does"
            ]
        );
    }

    #[test]
    fn a_package_nobody_placed_is_found() {
        assert_eq!(found(&[("util", &[])]), ["util has no place in the directions; give it one"]);
    }

    #[test]
    fn reads_manifests_and_trees_as_cargo_prints_them() {
        let metadata = r#"{"packages": [{"name": "state", "dependencies": [
            {"name": "schemas", "kind": null}, {"name": "tempfile", "kind": "dev"}]}]}"#;
        assert_eq!(packages(metadata).unwrap()["state"], ["schemas", "tempfile"]);
        let tree = "schemas v0.1.0 (/checkout/schemas)\nserde v1.0.228\ntokio v1.54.1\ntokio-util v0.7.0\n";
        assert_eq!(io_libraries(tree), ["tokio"]);
    }
}
