//! `relay`: one hop of the equal pump, as a process of its own: what a dispatcher or a worker would be if it did nothing
//! but pass messages on and make its round trips to shared state.

use crate::cli;
use crate::config::{Services, Settings};
use crate::station;
use crate::stopping::{self, Stop};
use anyhow::{Result, bail};
use broker::Properties;
use broker::amqp::pump::{Dress, Errand, Hop, Pump, Way};
use bytes::Bytes;
use schemas::header::Placement;
use schemas::wire::CONTENT_TYPE;
use schemas::{ClientName, JobHeader, JobId, Lane, ModelName, ReplyQueue, UnixMillis};
use state::{Batch, Record, State};
use std::sync::Arc;
use std::time::SystemTime;

/// Runs until told to stop.
pub async fn run(settings: Settings, options: &cli::Relay) -> Result<()> {
    settings.check(Services::Shared)?;
    let mut stop = stopping::watch_quietly()?;
    let state = station::open_state(&settings).await?;
    let Some(config) = station::amqp_config(&settings) else { bail!("the pump needs broker.url") };
    let pump = Pump::new(config, Way::new(&options.run))?;
    let (hop, dress, errand) = match options.hop {
        cli::RelayHop::Place => (Hop::Place, placed(&options.model), observing(&settings, state, options)),
        cli::RelayHop::Answer => {
            (Hop::Answer, answered(options.answer_bytes), recording(&settings, state, options))
        }
    };
    let mut relay = pump.relay(hop, dress, Some(errand)).await?;
    tokio::select! {
        why = relay.ended() => bail!("the relay ended: {why}"),
        () = stopping::until(&mut stop, Stop::Drain) => Ok(()),
    }
}

/// What a client's message carries.
pub fn submitted(model: &ModelName, client: &ClientName, login: Option<ClientName>) -> Dress {
    let header = header(model, client.clone());
    Dress {
        mandatory: true,
        properties: Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            correlation_id: Some(header.id.to_string()),
            reply_to: header.reply_to.as_ref().map(ToString::to_string),
            user_id: login.map(|login| login.to_string()),
        },
        packed: Some(header.encode()),
        body_bytes: None,
    }
}

/// What a dispatcher's message carries.
fn placed(model: &ModelName) -> Dress {
    let client = ClientName::new("local").expect("a valid name");
    let mut header = header(model, client);
    header.placement = Some(Placement { lane: Lane::Local, reason: "moderate".to_owned() });
    Dress { mandatory: true, packed: Some(header.encode()), ..Dress::default() }
}

/// What a worker's message carries.
fn answered(bytes: usize) -> Dress {
    let properties = Properties {
        content_type: Some(CONTENT_TYPE.to_owned()),
        correlation_id: Some(JobId::new().to_string()),
        ..Properties::default()
    };
    Dress { mandatory: true, properties, packed: None, body_bytes: Some(bytes) }
}

fn header(model: &ModelName, client: ClientName) -> JobHeader {
    let mut header =
        JobHeader::new(JobId::new(), model.clone(), client.clone(), UnixMillis::from(SystemTime::now()));
    header.reply_to = ReplyQueue::of(&client, &JobId::new().to_string()).ok();
    header
}

/// The round trip of a dispatcher's batch.
fn observing(settings: &Settings, state: Arc<dyn State>, options: &cli::Relay) -> Errand {
    let (model, window) = (options.model.clone(), settings.dispatcher.window);
    Arc::new(move |jobs| {
        let (state, jobs) = (Arc::clone(&state), u32::try_from(jobs).unwrap_or(u32::MAX));
        let batch = Batch {
            models: vec![(model.clone(), jobs)],
            ids: (0..jobs).map(|_| JobId::new()).collect(),
            claim: [jobs; 3],
            unused: None,
            window,
        };
        Box::pin(async move {
            if let Err(error) = state.observe(&batch).await {
                tracing::warn!(%error, "the relay's state is away");
            }
        })
    })
}

/// The round trip of a worker's batch.
fn recording(settings: &Settings, state: Arc<dyn State>, options: &cli::Relay) -> Errand {
    let (keep, result) = (settings.records.keep, Bytes::from(vec![b'x'; options.answer_bytes]));
    Arc::new(move |jobs| {
        let state = Arc::clone(&state);
        let record = |_| Record { id: JobId::new(), result: result.clone(), keep };
        let records: Vec<_> = (0..jobs).map(record).collect();
        Box::pin(async move {
            if let Err(error) = state.finish(&records).await {
                tracing::warn!(%error, "the relay's state is away");
            }
        })
    })
}
