//! The limits of the wire, each with its name and unit. Those a deployment may lower are configuration;
//! these are the ceilings that every decoder holds whatever the configuration says.

use std::time::Duration;

/// Longest model name, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 128;
/// Longest client name, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 64;
/// Longest packed header, in bytes: well below AMQP's frame size, above which a broker cuts the connection.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Longest tail of a packed header that its reader does not know, in bytes: with it and everything else at its
/// longest, a header still has room for what hops add.
pub const HEADER_TAIL_BYTES_MAX: usize = 8 * 1024;
/// Longest trace context forwarded, in bytes: W3C's `traceparent` has 55. A longer one is left out.
pub const TRACE_BYTES_MAX: usize = 128;
/// Longest error message kept in a header or a record, in bytes.
pub const ERROR_BYTES_MAX: usize = 512;
/// Most attempts a job may ask for.
pub const ATTEMPTS_MAX: u8 = 20;
/// Most dimensions of a tensor.
pub const TENSOR_RANK_MAX: usize = 8;
/// Most tensors in one input or output.
pub const TENSORS_MAX: usize = 64;
/// Longest tensor name, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 128;
/// Most parameters of a job.
pub const PARAMETERS_MAX: usize = 64;
/// Most models whose instances a heartbeat tells of.
pub const BACKEND_MODELS_MAX: usize = 64;
/// Most instances that a heartbeat names for a model.
pub const INSTANCE_IDS_MAX: usize = 16;
/// Largest input or output, in bytes, whether it travels inline or through the blob store.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// An input or output above this many bytes travels through the blob store, unless configured lower.
pub const INLINE_BYTES_DEFAULT: usize = 256 * 1024;
/// The highest value the inline limit may be configured to, in bytes.
pub const INLINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A job that names no deadline has this long.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(3600);
/// The furthest deadline a job may ask for: what waits that long belongs in a schedule, not in a queue.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a record of a result is kept, unless configured otherwise.
pub const RECORD_RETENTION_DEFAULT: Duration = Duration::from_secs(24 * 3600);
