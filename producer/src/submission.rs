//! What a client asks for, and the limits it must keep to. Pure: checking neither encodes nor sends anything.

use schemas::body::Parameter;
use schemas::limits::{
    ATTEMPTS_MAX, DEADLINE_DEFAULT, DEADLINE_MAX, PARAMETERS_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX,
};
use schemas::{Class, ClientName, JobHeader, JobId, ModelName, Payload, UnixMillis};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// Longest trace context, in bytes; a W3C `traceparent` has 55.
pub const TRACE_BYTES_MAX: usize = 128;
/// Most bytes of parameters and names of outputs together: they stay in the message when the input does not.
pub const ASKS_BYTES_MAX: usize = 64 * 1024;

/// One job, as its client asks for it. Every field may be set freely; submitting checks them all.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// What makes it this job and no other.
    pub identity: Identity,
    /// The model it asks for.
    pub model: ModelName,
    /// How urgent it is.
    pub class: Class,
    /// How long its answer is wanted: at most [`DEADLINE_MAX`], 1 hour unless set.
    pub deadline: Duration,
    /// Longest run of one attempt; none for the worker's own limit.
    pub run_timeout: Option<Duration>,
    /// Most attempts, 1 to [`ATTEMPTS_MAX`]; none for the deployment's own limit.
    pub attempts_max: Option<u8>,
    /// What the model is to work on.
    pub input: Payload,
    /// The outputs wanted, by name; empty means all.
    pub outputs: Vec<String>,
    /// Free parameters; their meaning is the model's.
    pub parameters: BTreeMap<String, Parameter>,
    /// W3C trace context (`traceparent`), forwarded as it came.
    pub trace: Option<String>,
}

/// What makes a job the same job when it is submitted again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// A fresh id: every submit is another job.
    #[default]
    Fresh,
    /// This id: submitting it again is the same job.
    Id(JobId),
    /// The id that this client's idempotency key stands for.
    Key(String),
}

/// A submission over a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidSubmission {
    /// Which field, as its sender knows it.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Submission {
    /// A job for `model` with everything else at its default.
    pub fn new(model: ModelName, input: Payload) -> Self {
        Self {
            identity: Identity::Fresh,
            model,
            class: Class::default(),
            deadline: DEADLINE_DEFAULT,
            run_timeout: None,
            attempts_max: None,
            input,
            outputs: Vec::new(),
            parameters: BTreeMap::new(),
            trace: None,
        }
    }

    /// Whether it keeps to every limit.
    pub fn check(&self) -> Result<(), InvalidSubmission> {
        if let Identity::Key(key) = &self.identity {
            length("key", key.len(), KEY_BYTES_MAX)?;
        }
        duration("deadline", self.deadline)?;
        if let Some(run_timeout) = self.run_timeout {
            duration("run_timeout", run_timeout)?;
        }
        if self.attempts_max.is_some_and(|n| !(1..=ATTEMPTS_MAX).contains(&n)) {
            return Err(invalid("attempts_max", format!("must be 1 to {ATTEMPTS_MAX}")));
        }
        if let Some(trace) = &self.trace {
            length("trace", trace.len(), TRACE_BYTES_MAX)?;
        }
        self.check_asks()?;
        self.input.check().map_err(|error| invalid("input", error.to_string()))
    }

    fn check_asks(&self) -> Result<(), InvalidSubmission> {
        if self.outputs.len() > TENSORS_MAX {
            return Err(invalid(
                "outputs",
                format!("has {} names: at most {TENSORS_MAX}", self.outputs.len()),
            ));
        }
        for name in &self.outputs {
            length("outputs", name.len(), TENSOR_NAME_BYTES_MAX)?;
        }
        if self.parameters.len() > PARAMETERS_MAX {
            let problem = format!("has {} entries: at most {PARAMETERS_MAX}", self.parameters.len());
            return Err(invalid("parameters", problem));
        }
        let parameters = self.parameters.iter().map(|(name, value)| {
            name.len()
                + match value {
                    Parameter::Text(text) => text.len(),
                    Parameter::Bool(_) | Parameter::Integer(_) | Parameter::Number(_) => 8,
                }
        });
        let bytes = parameters.chain(self.outputs.iter().map(String::len)).sum::<usize>();
        if bytes > ASKS_BYTES_MAX {
            let problem = format!("have {bytes} bytes with the outputs' names: at most {ASKS_BYTES_MAX}");
            return Err(invalid("parameters", problem));
        }
        Ok(())
    }

    /// The id this submission has when `client` makes it.
    pub(crate) fn id(&self, client: &ClientName) -> JobId {
        match &self.identity {
            Identity::Fresh => JobId::new(),
            Identity::Id(id) => *id,
            Identity::Key(key) => JobId::from_key(client, key),
        }
    }

    /// The header it travels with, its size and reply queue not yet known.
    pub(crate) fn header(&self, id: JobId, client: ClientName, now: UnixMillis) -> JobHeader {
        let mut header = JobHeader::new(id, self.model.clone(), client, now);
        header.class = self.class;
        header.deadline = now.plus(self.deadline);
        header.run_timeout = self.run_timeout;
        header.attempts_max = self.attempts_max;
        header.trace.clone_from(&self.trace);
        header
    }

    /// A fingerprint of what is asked of the model: two submissions under one id must agree in it.
    pub(crate) fn digest(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        self.model.hash(&mut hash);
        self.outputs.hash(&mut hash);
        for (name, value) in &self.parameters {
            name.hash(&mut hash);
            match value {
                Parameter::Bool(value) => value.hash(&mut hash),
                Parameter::Integer(value) => value.hash(&mut hash),
                Parameter::Number(value) => value.to_bits().hash(&mut hash),
                Parameter::Text(value) => value.hash(&mut hash),
            }
        }
        match &self.input {
            Payload::Tensors(tensors) => {
                for tensor in tensors {
                    (tensor.name(), tensor.datatype(), tensor.shape(), tensor.data()).hash(&mut hash);
                }
            }
            Payload::Opaque(opaque) => (&opaque.content_type, &opaque.data).hash(&mut hash),
            Payload::Blob(blob) => (&blob.id, blob.size).hash(&mut hash),
        }
        hash.finish()
    }
}

fn invalid(field: &'static str, problem: String) -> InvalidSubmission {
    InvalidSubmission { field, problem }
}

fn length(field: &'static str, bytes: usize, max: usize) -> Result<(), InvalidSubmission> {
    match (1..=max).contains(&bytes) {
        true => Ok(()),
        false => Err(invalid(field, format!("has {bytes} bytes: use 1 to {max}"))),
    }
}

fn duration(field: &'static str, value: Duration) -> Result<(), InvalidSubmission> {
    match (Duration::from_millis(1)..=DEADLINE_MAX).contains(&value) {
        true => Ok(()),
        false => {
            let problem = format!("is {} ms: use 1 to {}", value.as_millis(), DEADLINE_MAX.as_millis());
            Err(invalid(field, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{Opaque, Tensor};

    fn submission() -> Submission {
        let input = Payload::Tensors(vec![Tensor::fp32("x", [2], &[1.0, 2.0]).unwrap()]);
        Submission::new(ModelName::new("digits").unwrap(), input)
    }

    #[test]
    fn every_limit_is_named_with_its_field() {
        assert_eq!(submission().check(), Ok(()));
        type Spoil = fn(&mut Submission);
        let cases: [(Spoil, &str); 10] = [
            (|s| s.identity = Identity::Key(String::new()), "key"),
            (|s| s.identity = Identity::Key("k".repeat(257)), "key has 257 bytes: use 1 to 256"),
            (|s| s.deadline = Duration::ZERO, "deadline is 0 ms"),
            (|s| s.deadline = DEADLINE_MAX + Duration::from_secs(1), "deadline"),
            (|s| s.run_timeout = Some(Duration::ZERO), "run_timeout"),
            (|s| s.attempts_max = Some(21), "attempts_max must be 1 to 20"),
            (|s| s.outputs = vec![String::new()], "outputs"),
            (|s| s.outputs = vec!["o".into(); 65], "outputs has 65 names: at most 64"),
            (|s| drop(s.parameters.insert("p".into(), Parameter::Text("x".repeat(70_000)))), "parameters"),
            (|s| s.trace = Some("t".repeat(129)), "trace"),
        ];
        for (spoil, expected) in cases {
            let mut spoilt = submission();
            spoil(&mut spoilt);
            let error = spoilt.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error} / {expected}");
        }
        let mut twice = submission();
        let Payload::Tensors(tensors) = &mut twice.input else { unreachable!() };
        tensors.push(tensors[0].clone());
        assert!(twice.check().unwrap_err().to_string().contains("input payload has two tensors named \"x\""));
    }

    #[test]
    fn the_fingerprint_tells_inputs_apart_and_not_deadlines() {
        let one = submission();
        let mut later = submission();
        later.deadline = Duration::from_secs(9);
        assert_eq!(one.digest(), later.digest());
        let mut other = submission();
        other.input = Payload::Tensors(vec![Tensor::fp32("x", [2], &[1.0, 2.5]).unwrap()]);
        assert_ne!(one.digest(), other.digest());
        other.input = Payload::Opaque(Opaque { content_type: "text/plain".into(), data: "x".into() });
        assert_ne!(one.digest(), other.digest());
    }
}
