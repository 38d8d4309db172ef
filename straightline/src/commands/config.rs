//! `config`: show and check settings.

use crate::config::Settings;
use crate::print;
use crate::roles;
use crate::station::Station;
use anyhow::Result;

/// Prints every setting with its value.
pub fn show(settings: &Settings) -> Result<()> {
    print::text(&settings.to_toml()?)
}

/// Checks settings and models, then reaches for broker and state.
pub async fn check(settings: Settings) -> Result<()> {
    roles::dispatcher_config(&settings, None)?;
    let catalog = roles::catalog(&settings)?;
    let station = Station::open(settings).await?;
    let answered = station.state.now().await;
    let models = catalog.len();
    station.close().await;
    answered?;
    print::line(&format!("the configuration works: broker and state answer, {models} models load"))
}
