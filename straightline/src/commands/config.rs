//! `config`: show and check settings.

use crate::config::{Services, Settings};
use crate::print;
use crate::roles;
use crate::station::Station;
use anyhow::Result;
use workers::lane::Executor;

/// Prints every setting with its value.
pub fn show(settings: &Settings) -> Result<()> {
    print::text(&settings.to_toml()?)
}

/// Checks settings, loads the models, then reaches for broker and state.
pub async fn check(settings: Settings) -> Result<()> {
    settings.check(Services::Together)?;
    roles::dispatcher_config(&settings, None)?;
    roles::worker_config(&settings, None)?;
    let lane = roles::load(&settings, roles::catalog(&settings)?).await?;
    let models = lane.models().len();
    lane.stop().await;
    let station = Station::open(settings).await?;
    let answered = station.state.now().await;
    let client = station.client_config().and_then(|config| Ok(config.check()?));
    station.close().await;
    answered?;
    client?;
    print::line(&format!("the configuration works: broker and state answer, {models} models load"))
}
