//! A lane whose models run elsewhere, held to their contracts.

use super::{Capacity, Executor, Ran, Task};
use async_trait::async_trait;
use schemas::heartbeat::Backend;
use schemas::{Failure, Lane, ModelContract, ModelName, Payload};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Refuses input that its model does not take before anybody is asked, and an answer that is not what the model
/// promises. A model without a contract here is whatever it is.
pub struct Held {
    lane: Arc<dyn Executor>,
    contracts: BTreeMap<ModelName, Arc<ModelContract>>,
}

impl Held {
    /// Holds the models of `lane` to these contracts.
    pub fn new(lane: Arc<dyn Executor>, contracts: impl IntoIterator<Item = Arc<ModelContract>>) -> Self {
        let contracts = contracts.into_iter().map(|contract| (contract.name.clone(), contract)).collect();
        Self { lane, contracts }
    }
}

#[async_trait]
impl Executor for Held {
    fn lane(&self) -> Lane {
        self.lane.lane()
    }

    fn models(&self) -> Vec<ModelName> {
        self.lane.models()
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.lane.capacity()
    }

    fn backend(&self) -> Option<Backend> {
        self.lane.backend()
    }

    async fn obstacles(&self) -> Vec<Failure> {
        self.lane.obstacles().await
    }

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let Some(contract) = self.contracts.get(&task.model) else { return self.lane.run(task).await };
        let examples = contract.examples(&contract.check(&task.input)?)?;
        contract.check_outputs(&task.outputs)?;
        let wanted = task.outputs.clone();
        let Ran { output, run_time } = self.lane.run(task).await?;
        let Payload::Tensors(mut answer) = output else {
            return Err(contract.broken("gave opaque bytes, not tensors"));
        };
        contract.check_answer(&answer, &wanted, examples)?;
        // Nobody was promised more.
        let promised = |name: &str| contract.outputs.iter().any(|spec| spec.name == name);
        answer.retain(|tensor| promised(tensor.name()));
        Ok(Ran { output: Payload::Tensors(answer), run_time })
    }

    async fn stop(&self) {
        self.lane.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use schemas::{FailureKind, JobId, Tensor};
    use std::sync::Mutex;
    use std::time::Duration;

    const TOML: &str = include_str!("../../../models/digits/model.toml");

    /// Answers as it is told to, and counts how often it is asked.
    struct Told(Payload, Mutex<u32>);

    #[async_trait]
    impl Executor for Told {
        fn lane(&self) -> Lane {
            Lane::Serverless
        }

        fn models(&self) -> Vec<ModelName> {
            Vec::new()
        }

        fn capacity(&self) -> watch::Receiver<Capacity> {
            watch::Sender::default().subscribe()
        }

        async fn run(&self, _: Task) -> Result<Ran, Failure> {
            *self.1.lock().unwrap() += 1;
            Ok(Ran { output: self.0.clone(), run_time: Duration::ZERO })
        }

        async fn stop(&self) {}
    }

    fn task(model: &str, rows: u64) -> Task {
        let image = Tensor::fp32("image", [rows, 64], &vec![0.0; 64 * rows as usize]).unwrap();
        Task {
            id: JobId::new(),
            model: ModelName::new(model).unwrap(),
            attempt: 1,
            input: Payload::Tensors(vec![image]),
            outputs: vec!["probabilities".to_owned()],
            parameters: BTreeMap::new(),
            limit: Duration::from_secs(1),
        }
    }

    #[tokio::test]
    async fn input_and_answer_are_held_to_the_contract() {
        let contract = Catalog::builtin(&[(TOML, b"")]).unwrap().contracts().pop().unwrap();
        let answer = Tensor::fp32("probabilities", [2, 10], &[0.5; 20]).unwrap();
        let more = Tensor::fp32("more", [1], &[0.5]).unwrap();
        let told = Arc::new(Told(Payload::Tensors(vec![more, answer.clone()]), Mutex::default()));
        let held = Held::new(Arc::clone(&told) as Arc<dyn Executor>, [Arc::new(contract)]);
        let ran = held.run(task("digits", 2)).await.unwrap();
        assert_eq!(ran.output, Payload::Tensors(vec![answer]), "what nobody was promised is left out");
        let broken = held.run(task("digits", 3)).await.unwrap_err();
        assert_eq!(broken.kind, FailureKind::ModelError, "{broken}");
        let none = held.run(task("digits", 0)).await.unwrap_err();
        assert_eq!(none.kind, FailureKind::InvalidInput, "{none}");
        assert_eq!(*told.1.lock().unwrap(), 2, "nobody is asked what cannot be answered");
        assert!(held.run(task("unknown", 0)).await.is_ok(), "it has no contract here");
    }
}
