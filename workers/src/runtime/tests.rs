use super::*;
use crate::catalog::Catalog;
use crate::runtime::rten::Rten;
use schemas::{Datatype, FailureKind};

const TOML: &str = include_str!("../../../models/digits/model.toml");
const ONNX: &[u8] = include_bytes!("../../../models/digits/model.onnx");

fn load(toml: &'static str, onnx: &'static [u8]) -> Result<Model, LoadError> {
    let catalog = Catalog::builtin(&[(toml, onnx)]).unwrap();
    Model::load(&Rten, catalog.entries().next().unwrap())
}

/// Held-out images with their labels.
fn images() -> Vec<(Vec<f32>, i64)> {
    let text = include_str!("../../../models/data/digits-heldout.csv");
    let rows = text.lines().skip(1).map(|line| {
        let mut values: Vec<f32> = line.split(',').map(|value| value.parse().unwrap()).collect();
        #[expect(clippy::cast_possible_truncation, reason = "a digit")]
        let label = values.pop().unwrap() as i64;
        assert_eq!(values.len(), 64);
        (values, label)
    });
    rows.collect()
}

fn batch(images: &[(Vec<f32>, i64)]) -> Payload {
    let pixels: Vec<f32> = images.iter().flat_map(|(pixels, _)| pixels.clone()).collect();
    Payload::Tensors(vec![Tensor::fp32("image", [images.len() as u64, 64], &pixels).unwrap()])
}

#[test]
fn digits_are_recognised_one_by_one_and_in_a_batch() {
    let model = load(TOML, ONNX).unwrap();
    let images = images();
    let all = model.infer(&batch(&images), &[]).unwrap();
    let labels = all.tensor("label").unwrap().as_int64().unwrap();
    let right = labels.iter().zip(&images).filter(|(found, (_, label))| *found == label).count();
    assert!(right * 100 >= images.len() * 95, "{right} of {}", images.len());
    for (image, label) in images.iter().zip(labels).take(20) {
        let one = model.infer(&batch(std::slice::from_ref(image)), &["label".to_owned()]).unwrap();
        assert_eq!(one.tensor("label").unwrap().as_int64().unwrap(), [label]);
        assert!(one.tensor("probabilities").is_none(), "only what is asked for comes back");
    }
}

#[test]
fn an_input_that_cannot_run_is_told_why_before_it_runs() {
    let model = load(TOML, ONNX).unwrap();
    let narrow = Payload::Tensors(vec![Tensor::fp32("image", [1, 63], &[0.0; 63]).unwrap()]);
    let empty = Payload::Tensors(vec![Tensor::fp32("image", [0, 64], &[]).unwrap()]);
    for (input, wanted, expected) in [
        (narrow, "label", "not [1, 63]"),
        (empty, "label", "at least one"),
        (batch(&images()[..1]), "lable", "gives no output \"lable\""),
    ] {
        let failure = model.infer(&input, &[wanted.to_owned()]).unwrap_err();
        assert_eq!(failure.kind, FailureKind::InvalidInput);
        assert!(failure.message.contains(expected), "{failure}");
    }
    let nan = Payload::Tensors(vec![Tensor::fp32("image", [1, 64], &[f32::NAN; 64]).unwrap()]);
    assert!(model.infer(&nan, &[]).is_ok(), "NaN is a number to a model");
}

#[test]
fn a_file_that_is_not_what_its_contract_says_does_not_load() {
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let swap = |from: &str, to: &str| leak(TOML.replace(from, to));
    let cases: [(&'static str, &'static [u8], &str); 8] = [
        (TOML, b"hello world", "rten cannot load model.onnx"),
        (TOML, b"", "rten cannot load"),
        (TOML, &ONNX[..ONNX.len() / 2], "rten cannot load"),
        (swap("\"image\"", "\"picture\""), ONNX, "no input \"picture\": it has image"),
        (swap("\"probabilities\"", "\"odds\""), ONNX, "no output \"odds\": it has probabilities"),
        (
            swap("datatype = \"FP32\"\nshape = [-1, 64]", "datatype = \"INT8\"\nshape = [-1, 64]"),
            ONNX,
            "calls INT8",
        ),
        (
            swap("datatype = \"FP32\"\nshape = [-1, 64]", "datatype = \"FP16\"\nshape = [-1, 64]"),
            ONNX,
            "FP16",
        ),
        (swap("[-1, 64]", "[-1, 32]"), ONNX, "has the shape [-1, 64], its contract says [-1, 32]"),
    ];
    for (toml, onnx, expected) in cases {
        let error = load(toml, onnx).map(|_| ()).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("digits"), "{expected}: {error}");
    }
}

#[test]
fn a_model_that_breaks_its_own_contract_is_an_error_of_the_model() {
    // The file leaves its first dimension open, so this is known only after a run.
    let toml = TOML.replace("shape = [-1, 10]", "shape = [2, 10]").replace("shape = [-1]", "shape = [2]");
    let toml = toml.replace("batch = true", "batch = false").into_boxed_str();
    let model = load(Box::leak(toml), ONNX).unwrap();
    let failure = model.infer(&batch(&images()[..1]), &[]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::ModelError);
    assert!(failure.message.contains("FP32 [1, 10]: its contract says FP32 [2, 10]"), "{failure}");
}

/// Gives what it is told to, to see what the model's side of the contract is held to.
struct Given(Vec<Tensor>);

impl Graph for Given {
    fn run(&self, _: &[&Tensor], _: &[usize]) -> Result<Vec<Tensor>, Failure> {
        Ok(self.0.clone())
    }
}

#[test]
fn outputs_are_held_to_the_contract_whatever_the_runtime_gives() {
    let contract = Catalog::builtin(&[(TOML, ONNX)]).unwrap().entries().next().unwrap().contract.clone();
    let tensor =
        |rows: u64| Tensor::fp32("probabilities", [rows, 10], &vec![0.5; 10 * rows as usize]).unwrap();
    let int = Tensor::new("probabilities", Datatype::Int8, [1, 10], vec![0; 10]).unwrap();
    let other = Tensor::fp32("odds", [1, 10], &[0.0; 10]).unwrap();
    for (given, good) in [
        (vec![tensor(1)], true),
        (vec![tensor(2)], false),
        (vec![], false),
        (vec![int], false),
        (vec![other], false),
    ] {
        let model = Model { contract: Arc::clone(&contract), graph: Box::new(Given(given)) };
        let found = model.infer(&batch(&images()[..1]), &[]);
        assert_eq!(found.as_ref().map_err(|f| f.kind).err(), (!good).then_some(FailureKind::ModelError));
    }
}
