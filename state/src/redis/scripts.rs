//! What runs inside the server, where it must be atomic.

use deadpool_redis::redis::{self, Cmd, Pipeline};

/// One script.
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// A script with the prelude about workers before it.
    fn about_workers(text: &str) -> Self {
        Self::new(&[include_str!("prelude.lua"), text].concat())
    }

    /// Its call, to which as many keys must be added, then the arguments.
    pub(super) fn call(&self, keys: usize) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.hash).arg(keys);
        call
    }
}

/// The scripts, by what they are for.
pub(super) struct Scripts {
    pub(super) observe: Script,
    pub(super) sample: Script,
    pub(super) lead: Script,
    pub(super) report_worker: Script,
    pub(super) forget_worker: Script,
    pub(super) report_dispatcher: Script,
    pub(super) finish: Script,
    pub(super) bury: Script,
    pub(super) dead: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            observe: Script::about_workers(include_str!("observe.lua")),
            sample: Script::new(include_str!("sample.lua")),
            lead: Script::new(include_str!("lead.lua")),
            report_worker: Script::about_workers(include_str!("report.lua")),
            forget_worker: Script::about_workers(include_str!("forget.lua")),
            report_dispatcher: Script::new(include_str!("report_dispatcher.lua")),
            finish: Script::new(include_str!("finish.lua")),
            bury: Script::new(include_str!("bury.lua")),
            dead: Script::new(include_str!("dead.lua")),
        }
    }

    /// Loads all of them into a server that has lost them, or never had them.
    pub(super) fn load(&self) -> Pipeline {
        let Self {
            observe,
            sample,
            lead,
            report_worker,
            forget_worker,
            report_dispatcher,
            finish,
            bury,
            dead,
        } = self;
        let all =
            [observe, sample, lead, report_worker, forget_worker, report_dispatcher, finish, bury, dead];
        let mut load = Pipeline::with_capacity(all.len());
        for script in all {
            load.cmd("SCRIPT").arg("LOAD").arg(&script.text).ignore();
        }
        load
    }
}
