//! Inputs and outputs behind claim checks.

use super::*;
use schemas::limits::PAYLOAD_BYTES_MAX;
use schemas::{BlobRef, FailureKind, Status};
use state::blobs;

impl Bench {
    async fn blobs(&self) -> Arc<Blobs> {
        Arc::new(Blobs::open(blobs::Config::new(self.dir.path().join("blobs"))).await.unwrap())
    }

    async fn with_blobs(&self, blobs: Option<Arc<Blobs>>) -> Worker {
        let (broker, state) = (Arc::clone(&self.broker), Arc::clone(&self.state));
        let config = Config { inline_bytes_max: 1024, ..config() };
        Worker::start(config, broker, state, blobs, local(1)).await.unwrap()
    }
}

fn large() -> Payload {
    Payload::Tensors(vec![Tensor::fp32("image", [100, 64], &[1.0; 6400]).unwrap()])
}

fn claim(blob: &BlobRef) -> JobBody {
    JobBody::new(Payload::Blob(blob.clone()))
}

#[tokio::test]
async fn a_large_input_is_fetched_and_a_large_output_stored() {
    let mut bench = Bench::new().await;
    let blobs = bench.blobs().await;
    let _worker = bench.with_blobs(Some(Arc::clone(&blobs))).await;
    let blob = blobs.put(&large()).await.unwrap();
    let mut asks = claim(&blob);
    asks.outputs = vec!["label".to_owned()];
    for (model, body, expected) in [("digits", &asks, None), ("diagnose.echo", &claim(&blob), Some(large()))]
    {
        let mut header = header(model);
        header.size = blob.size;
        bench.place(&header, body).await;
        let result = bench.reply().await;
        assert_eq!((result.id, result.status, &result.error), (header.id, Status::Succeeded, &None));
        match (result.output.unwrap(), expected) {
            (Payload::Blob(output), Some(expected)) => {
                assert_eq!(blobs.get(&output).await.unwrap(), expected)
            }
            (output, None) => assert_eq!(output.tensor("label").unwrap().shape(), [100]),
            (output, expected) => panic!("{output:?} where {expected:?} was expected"),
        }
    }
}

#[tokio::test]
async fn a_claim_that_cannot_be_honoured_is_told_why() {
    let mut bench = Bench::new().await;
    let blobs = bench.blobs().await;
    let _worker = bench.with_blobs(Some(Arc::clone(&blobs))).await;
    let blob = blobs.put(&large()).await.unwrap();
    let altered = |size: u64, id: &str| BlobRef { id: id.to_owned(), size };
    let gone = "0".repeat(32);
    let most = PAYLOAD_BYTES_MAX.to_string();
    for (blob, claimed, kind, words) in [
        (blob.clone(), blob.size - 1, FailureKind::InvalidInput, "send its true size"),
        (altered(7, &blob.id), 7, FailureKind::InvalidInput, "its reference says 7"),
        (altered(u64::MAX, &blob.id), u64::MAX, FailureKind::TooLarge, &most),
        (altered(7, "../../secret"), 7, FailureKind::InvalidInput, "is not one"),
        (altered(7, &gone), 7, FailureKind::BlobUnavailable, "not in the store"),
    ] {
        let mut header = header("digits");
        (header.size, header.attempts_max) = (claimed, Some(1));
        bench.place(&header, &claim(&blob)).await;
        let result = bench.reply().await;
        let error = result.error.unwrap();
        assert_eq!((result.status, error.kind), (Status::Failed, kind), "{error}");
        assert!(error.message.contains(words), "{words}: {error}");
    }
}

#[tokio::test]
async fn without_a_store_claims_wait_for_another_worker_and_large_outputs_fail() {
    let mut bench = Bench::new().await;
    let blob = bench.blobs().await.put(&large()).await.unwrap();
    let _worker = bench.with_blobs(None).await;
    let mut claims = header("digits");
    claims.size = blob.size;
    bench.place(&claims, &claim(&blob)).await;
    let again = header_of(&bench.from(Queue::Jobs(Class::Normal)).await);
    assert_eq!(again.history[0].failure.kind, FailureKind::BlobUnavailable);
    let inline = Payload::Tensors(vec![Tensor::fp32("x", [300], &[0.0; 300]).unwrap()]);
    bench.place(&header("diagnose.echo"), &JobBody::new(inline)).await;
    let error = bench.reply().await.error.unwrap();
    assert_eq!(error.kind, FailureKind::TooLarge);
    assert!(error.message.contains("output has 1200 bytes: at most 1024"), "{error}");
}
