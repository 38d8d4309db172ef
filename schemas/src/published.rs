//! The JSON Schemas of everything that crosses a wire, generated from the types and checked in under
//! `schemas/json/`.

use crate::{body::JobBody, control::Control, dead::DeadEntry, heartbeat, result::JobResult};
use schemars::{Schema, schema_for};

/// Every schema, with the name of its file.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("control", schema_for!(Control)),
        ("dead_entry", schema_for!(DeadEntry)),
        ("dispatcher_report", schema_for!(heartbeat::DispatcherReport)),
        ("job_body", schema_for!(JobBody)),
        ("job_result", schema_for!(JobResult)),
        ("model_contract", schema_for!(crate::model::ModelContract)),
        ("worker_report", schema_for!(heartbeat::WorkerReport)),
    ]
}
