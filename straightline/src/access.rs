//! How a command reaches the system: over the configured broker and state, or, while none is configured, over the HTTP
//! face of the `up` that runs. Both answer with the same types.

mod http;

pub use http::{Http, Refused};

use crate::cli::Server;
use crate::config::{Services, Settings};
use crate::station::{self, Station};
use anyhow::{Context, Result, anyhow};
use producer::client::Cancelled;
use producer::operations::{self, DeadDetails, DeadPage, Dropped, Requeued, Which};
use schemas::{JobId, JobResult};
use std::time::Duration;

/// The way over HTTP, if that is the one.
pub fn http(settings: &Settings, server: &Server) -> Result<Option<Http>> {
    if server.server.is_none() {
        settings.check_services(Services::Together)?;
        if !station::is_embedded(settings) {
            return Ok(None);
        }
    }
    let named = server.server.clone().or_else(|| settings.client.server.clone());
    let address = named.unwrap_or_else(|| format!("http://{}", settings.http.listen));
    Ok(Some(Http::new(&address)?))
}

/// One of the two ways.
pub enum Access {
    /// Over broker and state.
    Direct(Box<Station>),
    /// Over HTTP.
    Http(Http),
}

impl Access {
    /// Chooses by what is configured; an explicit `--server` wins.
    pub async fn open(settings: Settings, server: &Server) -> Result<Self> {
        match http(&settings, server)? {
            Some(http) => Ok(Self::Http(http)),
            None => Ok(Self::Direct(Box::new(Station::open(settings).await?))),
        }
    }

    /// A page of dead jobs.
    pub async fn dead_list(&self, offset: u64, limit: u64) -> Result<DeadPage> {
        match self {
            Self::Direct(station) => Ok(operations::dead_list(station.state.as_ref(), offset, limit).await?),
            Self::Http(http) => http.get(&format!("/v1/dead?offset={offset}&limit={limit}")).await,
        }
    }

    /// One dead job.
    pub async fn dead_show(&self, id: JobId) -> Result<DeadDetails> {
        match self {
            Self::Direct(station) => operations::dead_show(station.state.as_ref(), id)
                .await?
                .with_context(|| format!("job {id} is not among the dead")),
            Self::Http(http) => http.get(&format!("/v1/dead/{id}")).await,
        }
    }

    /// Submits dead jobs again.
    pub async fn dead_requeue(&self, which: &Which) -> Result<Requeued> {
        match self {
            Self::Direct(station) => {
                Ok(operations::dead_requeue(station.broker.as_ref(), station.state.as_ref(), which).await?)
            }
            Self::Http(http) => http.post("/v1/dead/requeue", &ask(which)).await,
        }
    }

    /// Forgets dead jobs.
    pub async fn dead_drop(&self, which: &Which) -> Result<Dropped> {
        match self {
            Self::Direct(station) => {
                Ok(operations::dead_drop(station.broker.as_ref(), station.state.as_ref(), which).await?)
            }
            Self::Http(http) => http.post("/v1/dead/drop", &ask(which)).await,
        }
    }

    /// Takes a job back; true if it was not over yet. The result is what its client gets.
    pub async fn cancel(&self, id: JobId) -> Result<(bool, JobResult)> {
        match self {
            Self::Direct(station) => {
                let client = station.client().await?;
                let cancelled = client.cancel(id).await?;
                client.close(Duration::ZERO).await;
                Ok(match cancelled {
                    Cancelled::Now(result) => (true, result),
                    Cancelled::Before(result) => (false, result),
                })
            }
            Self::Http(http) => http.delete(&format!("/v1/jobs/{id}")).await,
        }
    }

    /// Lets go of it.
    pub async fn close(self) {
        if let Self::Direct(station) = self {
            station.close().await;
        }
    }
}

fn ask(which: &Which) -> serde_json::Value {
    match which {
        Which::All => serde_json::json!({ "all": true }),
        Which::These(ids) => serde_json::json!({ "ids": ids }),
    }
}

/// An error that says what to do when nobody listens.
fn nobody(address: &str, error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!(
        "nobody answers at {address} ({error}): start `straightline up`, name its address with --server, or configure broker.url"
    )
}
