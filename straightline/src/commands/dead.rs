//! `dead`: jobs that failed for good.

use crate::access::Access;
use crate::cli::{self, Server};
use crate::config::Settings;
use crate::print;
use anyhow::Result;
use producer::operations::Which;
use schemas::dead::DeadEntry;

/// Runs it; true if everything asked for was found.
pub async fn run(settings: Settings, command: cli::Dead) -> Result<bool> {
    let access = Access::open(settings, server(&command)).await?;
    let found = act(&access, &command).await;
    access.close().await;
    found
}

fn server(command: &cli::Dead) -> &Server {
    match command {
        cli::Dead::List { server, .. } | cli::Dead::Show { server, .. } => server,
        cli::Dead::Requeue(which) | cli::Dead::Drop(which) => &which.server,
    }
}

async fn act(access: &Access, command: &cli::Dead) -> Result<bool> {
    match command {
        cli::Dead::List { limit, offset, json, .. } => {
            let page = access.dead_list(*offset, *limit).await?;
            for entry in &page.entries {
                print::line(&if *json { serde_json::to_string(entry)? } else { row(entry) })?;
            }
            if !json {
                let shown = page.entries.len();
                print::line(&format!("{shown} of {} dead jobs; `dead show ID` tells more", page.total))?;
            }
            Ok(true)
        }
        cli::Dead::Show { id, .. } => {
            print::line(&serde_json::to_string_pretty(&access.dead_show(*id).await?)?)?;
            Ok(true)
        }
        cli::Dead::Requeue(which) => {
            let requeued = access.dead_requeue(&which_of(which)).await?;
            for job in &requeued.jobs {
                print::line(&format!("{} requeued as {}", job.origin, job.id))?;
            }
            for id in &requeued.not_found {
                print::line(&format!("{id} is not among the dead"))?;
            }
            if requeued.unreadable > 0 {
                print::line(&format!("{} cannot be read: they can only be dropped", requeued.unreadable))?;
            }
            print::line(&format!("{} jobs requeued", requeued.jobs.len()))?;
            Ok(requeued.not_found.is_empty())
        }
        cli::Dead::Drop(which) => {
            let dropped = access.dead_drop(&which_of(which)).await?;
            for id in &dropped.not_found {
                print::line(&format!("{id} is not among the dead"))?;
            }
            print::line(&format!("{} jobs dropped", dropped.jobs))?;
            Ok(dropped.not_found.is_empty())
        }
    }
}

fn which_of(which: &cli::Which) -> Which {
    if which.all { Which::All } else { Which::These(which.ids.clone()) }
}

fn row(entry: &DeadEntry) -> String {
    let model = entry.model.as_ref().map_or("-", |model| model.as_str());
    format!("{}  {:<16} {} attempts  {}", entry.id, model, entry.attempts, entry.failure)
}
