//! The workspace keeps to the dependency directions of its design.

use std::env;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::layering::{io_libraries, packages, violations};
use tests::owned::{self, printed};
use tests::process::workspace;
use tests::scenario::Scenario;
use tests::stage::Context;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("layering/dependencies_point_one_way", &[], dependencies_point_one_way),
        Scenario::new("layering/schemas_do_no_io", &[], schemas_do_no_io),
    ]
}

async fn dependencies_point_one_way(_: &Context) -> Result<()> {
    let packages = packages(&cargo(&["metadata", "--no-deps", "--format-version", "1"]).await?)?;
    ensure!(packages.contains_key("schemas"), "cargo metadata lists no package schemas: {packages:?}");
    let found = violations(&packages);
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

async fn schemas_do_no_io(_: &Context) -> Result<()> {
    let tree = cargo(&["tree", "--package", "schemas", "--edges", "no-dev", "--prefix", "none"]).await?;
    ensure!(tree.starts_with("schemas "), "cargo tree begins with something else: {tree}");
    let found = io_libraries(&tree);
    ensure!(found.is_empty(), "schemas depends on {found:?}\n{tree}");
    Ok(())
}

async fn cargo(args: &[&str]) -> Result<String> {
    let mut command = owned::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(workspace());
    printed(&format!("cargo {}", args[0]), command, Duration::from_secs(120)).await
}
