use super::*;

fn paths(contents: &Contents) -> Vec<String> {
    let mut bytes = Vec::new();
    contents.write(&mut bytes).unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn this_program_its_loader_its_libraries_and_the_models_are_in_it() {
    let models = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(models.path().join("digits/deep")).unwrap();
    std::fs::write(models.path().join("digits/model.toml"), "x").unwrap();
    std::fs::write(models.path().join("digits/deep/stray"), "x").unwrap();
    let program = std::env::current_exe().unwrap();
    let contents = Contents::gather(&program, Some(models.path()), "1:1").unwrap();
    let found = paths(&contents);
    let has = |part: &str| found.iter().any(|path| path.contains(part));
    assert!(has("ld-linux") && has("libc.so") && has("models/digits/model.toml"), "{found:?}");
    assert!(!has("stray") && found.contains(&PROGRAM.to_owned()), "{found:?}");
    assert!(contents.instructions().iter().any(|line| line.starts_with("ENV LD_LIBRARY_PATH=/")));
}

#[test]
fn a_name_tells_the_contents_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let name = || Contents::gather(&program, None, "1:1").unwrap().name().unwrap();
    let first = name();
    assert!(first.starts_with("straightline-serve:") && first.len() == REPOSITORY.len() + 1 + 2 * TAG_BYTES);
    // Rewritten, so that its age is another.
    std::fs::copy("/bin/true", &program).unwrap();
    assert_eq!(name(), first);
    assert_ne!(Contents::gather(&program, None, "2:2").unwrap().name().unwrap(), first);
    let mut bytes = std::fs::read(&program).unwrap();
    bytes.push(0);
    std::fs::write(&program, bytes).unwrap();
    assert_ne!(name(), first);
}

#[test]
fn what_is_no_program_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/bin/sh\n".repeat(10)).unwrap();
    let error = Contents::gather(&script, None, "1").unwrap_err().to_string();
    assert!(error.contains("script") && error.contains("ELF"), "{error}");
    let missing = Contents::gather(&dir.path().join("none"), None, "1").unwrap_err().to_string();
    assert!(missing.contains("none cannot be read"), "{missing}");
}

#[test]
fn the_loader_s_list_is_read() {
    assert_eq!(
        listed("\tlibm.so.6 => /lib/x86/libm.so.6 (0x00007f)"),
        Ok(Some(PathBuf::from("/lib/x86/libm.so.6")))
    );
    assert_eq!(listed("\tlinux-vdso.so.1 (0x00007f)"), Ok(None));
    assert!(listed("\tlibx.so => not found").unwrap_err().contains("libx.so"));
}
