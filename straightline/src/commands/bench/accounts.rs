//! What processes on this machine have cost, as the kernel keeps it under `/proc`.

use std::fs;
use std::time::Duration;

/// Ticks a second in which the kernel tells processor time: a constant of its interface.
const TICKS_PER_S: u64 = 100;
/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Processor time that a process and its threads have had; none if it is gone.
pub fn processor_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(Duration::from_millis((user + system) * 1_000 / TICKS_PER_S))
}

/// Memory that a process has held at most, in bytes.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The process of the program `name` that listens at `port` of this machine; none if another program does, such as the
/// proxy of a container engine.
pub fn listener(port: u16, name: &str) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<_> = tables.iter().filter_map(|table| listening(table, port)).collect();
    let sockets: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut holding = pids.filter(|pid: &u32| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    });
    holding.find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim().starts_with(name))
    })
}

/// The inode of the socket that listens at `port`.
fn listening(table: &str, port: u16) -> Option<&str> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let found = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
        found.then(|| fields.get(9).copied()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_process_finds_itself() {
        let own = std::process::id();
        assert!(processor_time(own).is_some());
        assert!(peak_memory(own).unwrap() > 1 << 20);
        let listening = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listening.local_addr().unwrap().port();
        assert_eq!(listener(port, ""), Some(own));
        assert_eq!(listener(port, "another program"), None);
        drop(listening);
        assert_eq!(listener(port, ""), None);
        assert_eq!((processor_time(0), peak_memory(u32::MAX)), (None, None));
    }
}
