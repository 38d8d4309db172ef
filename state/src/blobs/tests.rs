//! The blob store in a folder of its own.

use super::*;
use schemas::{Datatype, Opaque, Tensor};
use std::time::SystemTime;
use tempfile::TempDir;

async fn blobs(bytes_max: u64) -> (TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { bytes_max, ..Config::new(dir.path().join("blobs")) };
    let blobs = Blobs::open(config).await.unwrap();
    (dir, blobs)
}

fn opaque(bytes: usize) -> Payload {
    let data = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
    Payload::Opaque(Opaque { content_type: "image/png".to_owned(), data })
}

fn file(blobs: &Blobs, blob: &BlobRef) -> PathBuf {
    blobs.dir.join(&blob.id[30..]).join(&blob.id)
}

#[tokio::test]
async fn a_payload_comes_back_as_it_was_also_after_a_restart() {
    let (_dir, blobs) = blobs(u64::MAX).await;
    let data: Bytes = (0..1u32 << 20).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    let tensor = Tensor::new("image", Datatype::Uint32, vec![1 << 10, 1 << 10], data).unwrap();
    for payload in [opaque(0), opaque(3_000_000), Payload::Tensors(vec![tensor])] {
        let blob = blobs.put(&payload).await.unwrap();
        assert_eq!(std::fs::metadata(file(&blobs, &blob)).unwrap().len(), blob.size);
        assert_eq!(blobs.get(&blob).await.unwrap(), payload);
        let again = Blobs::open(Config::new(blobs.dir.clone())).await.unwrap();
        assert_eq!(again.get(&blob).await.unwrap(), payload);
    }
}

#[tokio::test]
async fn no_reference_leads_outside_the_store() {
    let (dir, blobs) = blobs(u64::MAX).await;
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    let id = blobs.put(&opaque(1)).await.unwrap().id;
    let near =
        [id.to_uppercase(), format!("{id}#1"), format!("../{}", &id[3..]), format!("{}/{id}", &id[30..])];
    let far = ["", "../../secret", "/etc/passwd", "%2e%2e%2fsecret", "..", "\0", "5c/../../../secret"];
    for id in near.iter().map(String::as_str).chain(far) {
        let error = blobs.get(&BlobRef { id: id.to_owned(), size: 6 }).await.unwrap_err();
        assert!(matches!(error, BlobError::InvalidId { .. }), "{id:?}: {error}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_what_was_stored_is_told_apart() {
    let (_dir, blobs) = blobs(u64::MAX).await;
    let nowhere = BlobRef { id: "0".repeat(32), size: 1 };
    assert!(matches!(blobs.get(&nowhere).await, Err(BlobError::NotFound { .. })));
    let blob = blobs.put(&opaque(1000)).await.unwrap();
    let longer = BlobRef { size: blob.size + 1, ..blob.clone() };
    let error = blobs.get(&longer).await.unwrap_err();
    assert!(error.to_string().contains("reference says"), "{error}");
    let size = usize::try_from(blob.size).unwrap();
    for bytes in [vec![0xc1; size], vec![0; size], vec![0xdd; size]] {
        std::fs::write(file(&blobs, &blob), bytes).unwrap();
        assert!(matches!(blobs.get(&blob).await, Err(BlobError::Corrupt { .. })));
    }
    let nested = Payload::Blob(blob.clone());
    assert!(matches!(blobs.put(&nested).await, Err(BlobError::Invalid(_))));
    let stored = wire::encode(&nested);
    std::fs::write(file(&blobs, &blob), &stored).unwrap();
    let error = blobs.get(&BlobRef { size: stored.len() as u64, ..blob }).await.unwrap_err();
    assert!(error.to_string().contains("another blob"), "{error}");
}

#[tokio::test]
async fn sizes_are_limited_both_ways() {
    let (_dir, small) = blobs(1000).await;
    assert!(matches!(small.put(&opaque(1001)).await, Err(BlobError::TooLarge { bytes: 1001, limit: 1000 })));
    let full = small.put(&opaque(1000)).await.unwrap_err();
    assert!(
        matches!(full, BlobError::TooLarge { bytes: 1001.., limit: 1000 }),
        "as stored it is larger: {full}"
    );
    let blob = small.put(&opaque(900)).await.unwrap();
    // A file as large as the limit allows, without a byte of it on disk.
    let grown = std::fs::File::create(file(&small, &blob)).unwrap();
    grown.set_len(1 << 40).unwrap();
    let claimed = BlobRef { size: 1 << 40, ..blob };
    assert!(matches!(small.get(&claimed).await, Err(BlobError::TooLarge { .. })), "never read");
}

#[tokio::test]
async fn a_sweep_removes_by_age_what_is_ours() {
    let (_dir, blobs) = blobs(u64::MAX).await;
    let (old, young) = (blobs.put(&opaque(10)).await.unwrap(), blobs.put(&opaque(10)).await.unwrap());
    let day = Duration::from_secs(24 * 3600);
    let age = |path: &Path| {
        let aged = std::fs::File::options().write(true).open(path).unwrap();
        aged.set_modified(SystemTime::now() - 2 * day).unwrap();
    };
    let leftover = file(&blobs, &old).with_file_name(format!("{}#1", old.id));
    let fresh_leftover = file(&blobs, &young).with_file_name(format!("{}#1", young.id));
    let stranger = file(&blobs, &old).with_file_name("notes.txt");
    for path in [&leftover, &fresh_leftover, &stranger] {
        std::fs::write(path, b"half").unwrap();
    }
    for path in [&leftover, &stranger, &file(&blobs, &old)] {
        age(path);
    }
    let now = SystemTime::now().into();
    assert_eq!(blobs.sweep(3 * day, now).await.unwrap(), 0);
    assert_eq!(blobs.sweep(day, now).await.unwrap(), 1);
    assert!(matches!(blobs.get(&old).await, Err(BlobError::NotFound { .. })));
    assert!(blobs.get(&young).await.is_ok());
    assert!(!leftover.exists() && fresh_leftover.exists() && stranger.exists());
    assert_eq!(blobs.sweep(day, now).await.unwrap(), 0, "nothing is left to remove");
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("file");
    std::fs::write(&taken, b"").unwrap();
    let error = Blobs::open(Config::new(&taken)).await.err().unwrap();
    assert!(matches!(&error, BlobError::Unusable { dir, .. } if dir.ends_with("file")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_do_not_meet() {
    let (_dir, blobs) = blobs(u64::MAX).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let blobs = blobs.clone();
        tasks.spawn(async move {
            let payload = opaque(10_000);
            let blob = blobs.put(&payload).await.unwrap();
            assert_eq!(blobs.get(&blob).await.unwrap(), payload);
            blob.id
        });
    }
    let ids: std::collections::HashSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 100);
}

#[tokio::test]
async fn what_other_hosts_could_not_read_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let open = |shared| Blobs::open(Config { shared, several_hosts: true, ..Config::new(dir.path()) });
    let blob = open(true).await.unwrap().put(&opaque(9)).await.unwrap();
    let unshared = open(false).await.unwrap();
    let error = unshared.put(&opaque(9)).await.unwrap_err();
    assert!(matches!(error, BlobError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("set storage.blobs_shared = true"), "{error}");
    unshared.get(&blob).await.unwrap();
}
