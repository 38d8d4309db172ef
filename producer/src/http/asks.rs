//! What the parameters of a request mean to us. Pure.
//!
//! These are ours and are not handed to the model: `priority` (`high`, `normal` or `low`; or a number: 1 is the highest, 2 normal, more is low, 0 the default),
//! `deadline_ms` (or `timeout`, in microseconds), `run_timeout_ms`, `attempts_max` and `binary_data_output`.

use super::errors::Error;
use schemas::Class;
use schemas::body::Parameter;
use schemas::limits::ATTEMPTS_MAX;
use schemas::oip::Parameters;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the parameters ask of us, and what is left for the model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Asks {
    pub(super) class: Option<Class>,
    pub(super) deadline: Option<Duration>,
    pub(super) run_timeout: Option<Duration>,
    pub(super) attempts_max: Option<u8>,
    pub(super) binary: bool,
    pub(super) rest: BTreeMap<String, Parameter>,
}

impl Asks {
    /// Takes ours out of `parameters`.
    pub(super) fn of(mut parameters: Parameters) -> Result<Self, Error> {
        let class = parameters.remove("priority").map(priority).transpose()?.flatten();
        let deadline =
            match (take_number(&mut parameters, "deadline_ms")?, take_number(&mut parameters, "timeout")?) {
                (Some(ms), _) => Some(Duration::from_millis(ms)),
                // As with Triton, no time-out and a time-out of 0 are the same.
                (None, Some(us)) if us > 0 => Some(Duration::from_micros(us).max(Duration::from_millis(1))),
                (None, _) => None,
            };
        let run_timeout = take_number(&mut parameters, "run_timeout_ms")?.map(Duration::from_millis);
        let attempts_max = take_number(&mut parameters, "attempts_max")?
            .map(|n| attempts("parameters.attempts_max", n))
            .transpose()?;
        let binary = take_bool(&mut parameters, "binary_data_output")?.unwrap_or(false);
        let rest = parameters.into_iter().map(|(name, value)| {
            let value = parameter(&name, value)?;
            Ok((name, value))
        });
        let rest = rest.collect::<Result<_, Error>>()?;
        Ok(Self { class, deadline, run_timeout, attempts_max, binary, rest })
    }
}

/// A number of attempts, as `field` has it.
pub(super) fn attempts(field: &str, n: u64) -> Result<u8, Error> {
    u8::try_from(n).map_err(|_| Error::bad(format!("{field} is {n}: use 1 to {ATTEMPTS_MAX}")))
}

/// One value for the model.
fn parameter(name: &str, value: Value) -> Result<Parameter, Error> {
    match value {
        Value::Bool(value) => Ok(Parameter::Bool(value)),
        Value::String(value) => Ok(Parameter::Text(value)),
        Value::Number(value) => match (value.as_i64(), value.as_f64()) {
            (Some(value), _) => Ok(Parameter::Integer(value)),
            (None, Some(value)) => Ok(Parameter::Number(value)),
            (None, None) => Err(Error::bad(format!("parameters.{} is too large a number", short(name)))),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(Error::bad(format!("parameters.{} must be a boolean, a number or a string", short(name))))
        }
    }
}

fn priority(value: Value) -> Result<Option<Class>, Error> {
    let wrong =
        || Error::bad("parameters.priority must be high, normal, low, or a whole number (1 is the highest)");
    match value {
        Value::String(text) => text.parse().map(Some).map_err(|_| wrong()),
        Value::Number(number) => Ok(match number.as_u64().ok_or_else(wrong)? {
            0 => None,
            1 => Some(Class::High),
            2 => Some(Class::Normal),
            _ => Some(Class::Low),
        }),
        _ => Err(wrong()),
    }
}

fn take_number(parameters: &mut Parameters, name: &str) -> Result<Option<u64>, Error> {
    let Some(value) = parameters.remove(name) else { return Ok(None) };
    value
        .as_u64()
        .map(Some)
        .ok_or_else(|| Error::bad(format!("parameters.{name} must be a whole number from 0")))
}

fn take_bool(parameters: &mut Parameters, name: &str) -> Result<Option<bool>, Error> {
    let Some(value) = parameters.remove(name) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| Error::bad(format!("parameters.{name} must be true or false")))
}

fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asks(value: Value) -> Result<Asks, Error> {
        Asks::of(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn our_parameters_are_taken_and_the_rest_is_the_models() {
        let found =
            asks(json!({"priority": "low", "deadline_ms": 250, "run_timeout_ms": 9, "attempts_max": 2,
            "binary_data_output": true, "temperature": 0.5, "top": 3, "greedy": false, "stop": "\n"}))
            .unwrap();
        assert_eq!(found.class, Some(Class::Low));
        assert_eq!(
            (found.deadline, found.run_timeout),
            (Some(Duration::from_millis(250)), Some(Duration::from_millis(9)))
        );
        assert_eq!((found.attempts_max, found.binary), (Some(2), true));
        assert_eq!(found.rest.len(), 4);
        assert_eq!(found.rest["top"], Parameter::Integer(3));
        assert_eq!(asks(json!({"priority": 1})).unwrap().class, Some(Class::High));
        assert_eq!(asks(json!({"priority": 0})).unwrap().class, None);
        assert_eq!(asks(json!({"timeout": 2_000_000})).unwrap().deadline, Some(Duration::from_secs(2)));
        assert_eq!(asks(json!({"timeout": 0})).unwrap().deadline, None);
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for (value, expected) in [
            (json!({"priority": "urgent"}), "parameters.priority"),
            (json!({"deadline_ms": "soon"}), "parameters.deadline_ms"),
            (json!({"attempts_max": 300}), "parameters.attempts_max"),
            (json!({"binary_data_output": 1}), "parameters.binary_data_output"),
            (json!({"x": [1]}), "parameters.x"),
        ] {
            let error = asks(value).unwrap_err();
            assert!(error.message().contains(expected), "{}", error.message());
        }
    }
}
