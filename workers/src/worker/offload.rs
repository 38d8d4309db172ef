//! Encoding and decoding off the async runtime where it would hold it up.

/// Bodies up to this many bytes are handled in place: a fraction of what a hop to another thread costs. Even written
/// as an array of numbers, so few bytes decode in well under half a millisecond.
const IN_PLACE_BYTES_MAX: u64 = 16 * 1024;

/// Runs `work`, which handles so many bytes: here if they are few, on a blocking thread if not.
pub(crate) async fn offload<T: Send + 'static>(bytes: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= IN_PLACE_BYTES_MAX {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is only ever cancelled when the runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
