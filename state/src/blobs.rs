//! The blob store.
