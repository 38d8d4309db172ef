//! Loopback ports nobody else listens on.
//!
//! They lie below the range the kernel takes outgoing connections from, so that a service which is stopped and
//! started again finds its port still free. Each is handed out once in a run; runs at the same time start
//! at different places and skip what is taken.

use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A port on 127.0.0.1 that is free now and handed out to nobody else in this run.
///
/// # Panics
/// When the whole range is taken.
#[must_use]
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = process::id() as usize * 97;
    (0..COUNT)
        .map(|_| start + usize::from(NEXT.fetch_add(1, Ordering::Relaxed)))
        .map(|nth| FIRST + (nth % usize::from(COUNT)) as u16)
        .find(|&port| is_free(port))
        .expect("one of 20,000 loopback ports is free")
}

/// Whether a listener on this loopback port could be opened now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_hands_out_a_port_twice_nor_one_in_use() {
        let first = free();
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        assert!(!is_free(first));
        assert_ne!(free(), first);
    }
}
