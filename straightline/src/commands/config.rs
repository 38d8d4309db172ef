//! `config`: show and check settings.

use crate::config::{Services, Settings};
use crate::station::Station;
use crate::{cli, lanes, print, roles};
use anyhow::Result;
use schemas::Lane;
use workers::lane::Executor;

/// Prints every setting with its value.
pub fn show(settings: &Settings) -> Result<()> {
    print::text(&settings.to_toml()?)
}

/// Checks settings, loads the models, then reaches for broker and state, and for what the lanes asked for need.
pub async fn check(settings: Settings, options: &cli::Check) -> Result<()> {
    settings.check(Services::Together)?;
    roles::dispatcher_config(&settings, None)?;
    for lane in Lane::ALL {
        roles::worker_config(&settings, lane, None)?;
    }
    let catalog = roles::catalog(&settings)?;
    lanes::check(&settings, &catalog)?;
    for lane in &options.lanes {
        lanes::ask(&settings, *lane, catalog.clone()).await?;
    }
    let lane = roles::load(&settings, catalog).await?;
    let models = lane.models().len();
    lane.stop().await;
    if settings.broker.url.is_none() {
        // Opening those would make them, or fail beside a process that has them.
        let dir = settings.storage.dir.display();
        return print::line(&format!(
            "the configuration works: broker and state are embedded, in {dir}, and not looked at; {models} models load"
        ));
    }
    let station = Station::open(settings).await?;
    let answered = station.state.now().await;
    let client = station.client_config().and_then(|config| Ok(config.check()?));
    station.close().await;
    answered?;
    client?;
    print::line(&format!("the configuration works: broker and state answer, {models} models load"))
}
