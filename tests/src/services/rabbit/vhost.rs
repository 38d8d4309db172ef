//! Virtual hosts: names in one collide with nobody's, so that scenarios share a broker.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::Rabbit;

/// How many virtual hosts one control command makes: each command costs a second of CPU.
const VHOST_BATCH: usize = 8;

/// The virtual hosts made so far: those nobody has taken yet, and how many in all.
#[derive(Debug, Default)]
pub(super) struct Made {
    spare: Vec<String>,
    count: usize,
}

/// What a queue holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue's name.
    pub name: String,
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacknowledged: u64,
    /// Its consumers.
    pub consumers: u64,
}

/// A virtual host of a node: names in it collide with nobody's.
#[derive(Clone, Debug)]
pub struct Vhost {
    rabbit: Arc<Rabbit>,
    name: String,
}

impl Vhost {
    /// Its address, as the user `guest`.
    #[must_use]
    pub fn url(&self) -> String {
        self.rabbit.url_as("guest", "guest", &self.name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is on.
    #[must_use]
    pub fn rabbit(&self) -> &Arc<Rabbit> {
        &self.rabbit
    }

    /// What each of its queues holds, sorted by name.
    pub async fn queues(&self) -> Result<Vec<QueueDepth>> {
        self.rabbit.queues(&self.name).await
    }

    /// Deletes it with all it holds.
    pub async fn delete(self) -> Result<()> {
        self.rabbit.ctl(&["delete_vhost", &self.name]).await?;
        Ok(())
    }
}

impl Rabbit {
    /// What each queue of a virtual host holds, sorted by name. A quorum queue's figures are a second old.
    pub async fn queues(&self, vhost: &str) -> Result<Vec<QueueDepth>> {
        let columns = ["name", "messages_ready", "messages_unacknowledged", "consumers"];
        let mut args = vec!["-p", vhost, "list_queues", "--formatter", "json"];
        args.extend(columns);
        let printed = self.ctl(&args).await?;
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&printed).with_context(|| format!("not a JSON list: {printed}"))?;
        let depth = |row: &serde_json::Value| {
            let count = |column: &str| row[column].as_u64().with_context(|| format!("no {column} in {row}"));
            Ok(QueueDepth {
                name: row["name"].as_str().context("a queue without a name")?.to_owned(),
                ready: count("messages_ready")?,
                unacknowledged: count("messages_unacknowledged")?,
                consumers: count("consumers")?,
            })
        };
        let mut queues = rows.iter().map(depth).collect::<Result<Vec<_>>>()?;
        queues.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(queues)
    }

    /// A virtual host that nobody else in this run uses.
    pub async fn vhost(self: &Arc<Self>) -> Result<Vhost> {
        let mut vhosts = self.vhosts.lock().await;
        if vhosts.spare.is_empty() {
            let names: Vec<String> =
                (1..=VHOST_BATCH).map(|nth| format!("v{}", vhosts.count + nth)).collect();
            self.make_vhosts(&names).await?;
            vhosts.count += VHOST_BATCH;
            vhosts.spare = names;
        }
        let name = vhosts.spare.pop().expect("a batch of virtual hosts was just made");
        Ok(Vhost { rabbit: Arc::clone(self), name })
    }

    /// One command for many: most of what a control command costs is its own start.
    async fn make_vhosts(&self, names: &[String]) -> Result<()> {
        let names: Vec<String> = names.iter().map(|name| format!("<<\"{name}\">>")).collect();
        let expression = format!(
            "lists:foreach(fun(V) -> rabbit_vhost:add(V, <<\"tests\">>), ok = \
             rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, \
             <<\"tests\">>) end, [{}]).",
            names.join(", ")
        );
        self.ctl(&["eval", &expression]).await?;
        Ok(())
    }
}
