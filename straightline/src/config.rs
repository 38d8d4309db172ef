//! Settings: a TOML file, then the environment, then flags; parsed once, into types, before anything is opened.
//!
//! Every key has a default, so that an empty configuration runs everything in one process. An unknown key is an
//! error, because a misspelt one must not pass for a default; so is a variable `STRAIGHTLINE_…` that means nothing.
//! `STRAIGHTLINE_<SECTION>__<KEY>` overrides the file's `[section] key`.

mod check;
pub mod lanes;
mod layers;
mod names;
mod settings;
mod shown;

pub use check::{Services, is_to_blame};
pub use layers::{ConfigError, load};
pub use settings::*;
