use super::*;

const TOML: &str = r#"
name = "digits"
version = "1"
platform = "onnx"
batch = true
[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 64]
[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 10]
[[outputs]]
name = "label"
datatype = "INT64"
shape = [-1]
argmax_of = "probabilities"
"#;

fn write(models: &Path, folder: &str, toml: &str) {
    let folder = models.join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.toml"), toml).unwrap();
    std::fs::write(folder.join("model.onnx"), b"onnx").unwrap();
}

fn load(models: &Path) -> Result<Catalog, String> {
    Catalog::new().with_folder(models).map_err(|error| error.to_string())
}

#[test]
fn a_folder_of_models_is_read_and_strays_are_passed_over() {
    let models = tempfile::tempdir().unwrap();
    write(models.path(), "digits", TOML);
    std::fs::write(models.path().join("README.md"), "hello").unwrap();
    std::fs::create_dir(models.path().join("data")).unwrap();
    let catalog = load(models.path()).unwrap();
    assert_eq!(catalog.len(), 1);
    let entry = catalog.entries().next().unwrap();
    assert_eq!((&entry.file[..], entry.contract.name.as_str()), (&b"onnx"[..], "digits"));
}

#[test]
fn what_is_wrong_is_named_with_its_file_and_field() {
    let replace = |from: &str, to: &str| TOML.replacen(from, to, 1);
    let cases = [
        (replace("version = \"1\"", ""), "version"),
        (replace("batch", "bacth"), "bacth"),
        (replace("\"digits\"", "\"Digits\""), "model \"Digits\" is not allowed"),
        (replace("\"digits\"", "\"other\""), "name \"other\" is not its folder's name"),
        (replace("\"digits\"", "\"diagnose.x\""), "name may not begin"),
        (replace("\"onnx\"", "\"torch\""), "platform \"torch\" is not known"),
        (replace("\"FP32\"", "\"FP33\""), "FP33"),
        (replace("[-1, 64]", "[-2, 64]"), "inputs[0].shape has -2"),
        (replace("[-1, 64]", "[64]"), "inputs[0].shape must begin with -1"),
        (replace("[-1, 64]", "[-1,1,1,1,1,1,1,1,1]"), "inputs[0].shape has 9 dimensions"),
        (replace("\"label\"", "\"probabilities\""), "outputs[1].name \"probabilities\" is taken"),
        (replace("argmax_of = \"probabilities\"", "argmax_of = \"label\""), "outputs[1].argmax_of"),
        (replace("INT64", "INT32"), "outputs[1].datatype must be INT64"),
        (replace("shape = [-1]", "shape = [-1, 1]"), "outputs[1].shape must be [-1]"),
        (
            replace("version", "file = \"../digits/model.onnx\"\nversion"),
            "file \"../digits/model.onnx\" leaves",
        ),
        (replace("version", "file = \"/etc/hostname\"\nversion"), "file \"/etc/hostname\" leaves"),
        (replace("version", "file = \"gone.onnx\"\nversion"), "file \"gone.onnx\" cannot be read"),
        ("name = ".to_owned(), "model.toml"),
    ];
    for (toml, expected) in cases {
        let models = tempfile::tempdir().unwrap();
        write(models.path(), "digits", &toml);
        let error = load(models.path()).expect_err(expected);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("digits/model.toml"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_refused() {
    let models = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("secret"), "x").unwrap();
    write(models.path(), "digits", TOML);
    let file = models.path().join("digits/model.onnx");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("secret"), &file).unwrap();
    let error = load(models.path()).unwrap_err();
    assert!(error.contains("link that leaves"), "{error}");
}

#[test]
fn a_folder_takes_the_place_of_a_built_in_of_its_name() {
    let models = tempfile::tempdir().unwrap();
    write(models.path(), "digits", TOML);
    let catalog = Catalog::builtin(&[(TOML, b"ours")]).unwrap();
    let catalog = catalog.with_folder(models.path()).unwrap();
    let entries: Vec<_> = catalog.entries().collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(*entries[0].file, *b"onnx");
}

#[test]
fn a_folder_without_models_or_no_folder_says_so() {
    let empty = tempfile::tempdir().unwrap();
    assert!(load(empty.path()).unwrap_err().contains("has no models"));
    std::fs::create_dir(empty.path().join("bare")).unwrap();
    std::fs::write(empty.path().join("bare/model.onnx"), b"onnx").unwrap();
    assert!(load(empty.path()).unwrap_err().contains("bare has a model.onnx and no model.toml"));
    assert!(load(&empty.path().join("gone")).unwrap_err().contains("gone cannot be read"));
}

#[test]
fn of_a_model_that_others_run_only_the_contract_is_here() {
    let models = tempfile::tempdir().unwrap();
    let remote = TOML.replace("\"onnx\"", "\"remote\"");
    write(models.path(), "digits", &remote);
    std::fs::remove_file(models.path().join("digits/model.onnx")).unwrap();
    let catalog = Catalog::builtin(&[(TOML, b"ours")]).unwrap().with_folder(models.path()).unwrap();
    assert!(catalog.is_empty(), "it takes the place of the built-in");
    let name = ModelName::new("digits").unwrap();
    assert_eq!(catalog.contract(&name).map(|contract| contract.platform.as_str()), Some("remote"));
    assert_eq!((catalog.contracts().len(), catalog.remote().count(), catalog.known().count()), (0, 1, 1));
    assert!(catalog.only(&[name]).is_err(), "it cannot be served from here");
}

#[test]
fn a_catalog_can_be_narrowed_to_names_it_has() {
    let models = tempfile::tempdir().unwrap();
    write(models.path(), "digits", TOML);
    write(models.path(), "letters", &TOML.replace("\"digits\"", "\"letters\""));
    let name = |name| ModelName::new(name).unwrap();
    let catalog = || Catalog::new().with_folder(models.path()).unwrap();
    let one = catalog().only(&[name("letters")]).unwrap();
    assert_eq!(one.entries().map(|entry| entry.contract.name.as_str()).collect::<Vec<_>>(), ["letters"]);
    let error = catalog().only(&[name("fish")]).unwrap_err().to_string();
    assert_eq!(error, "model fish is not here: there are digits, letters");
    assert!(catalog().only(&[name("diagnose.echo")]).is_err());
    assert!(catalog().with_diagnostics().only(&[name("diagnose.echo")]).unwrap().is_empty());
}
