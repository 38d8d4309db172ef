//! Answers an event as a model would: with the sum of its inputs.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(sum)).await
}

async fn sum(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let (event, context) = event.into_parts();
    let data = |tensor: &Value| tensor["data"].as_array().cloned();
    let tensors = event["inputs"].as_array().ok_or("inputs is missing")?;
    let sum: f64 = tensors.iter().filter_map(data).flatten().filter_map(|value| value.as_f64()).sum();
    let output = json!({ "name": "sum", "datatype": "FP64", "shape": [1], "data": [sum] });
    let about = json!({ "request_id": context.request_id, "deadline_ms": context.deadline });
    Ok(json!({ "model_name": event["model_name"], "outputs": [output], "parameters": about }))
}
