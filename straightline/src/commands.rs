//! The subcommands, one file each.

pub mod bench;
pub mod config;
pub mod dead;
pub mod demo;
pub mod dispatcher;
pub mod function;
pub mod jobs;
pub mod relay;
pub mod serve;
pub mod status;
pub mod up;
pub mod worker;
