//! Which process a container belongs to, so that those of a dead one can be told and removed.
//!
//! A process is named by the machine's boot, its process-id namespace, its id and its start time: an id alone is
//! given out again. Only within the same boot and namespace can be told whether a process lives; elsewhere (another
//! machine on the same engine, say) the worker's name decides, which no two live workers share.

use super::plan::{LABEL_OWNER, LABEL_PROCESS, LABEL_WORKER, Owner};
use std::collections::BTreeMap;
use std::fs;

/// This instance of the lane in this process.
pub(super) fn this() -> Owner {
    let instance = format!("{:016x}", fastrand::u64(..));
    let pid = std::process::id();
    let process = match (place(), started(pid)) {
        (Some(place), Some(start)) => format!("{place}/{pid}/{start}"),
        // Without it only the worker's name tells.
        _ => String::new(),
    };
    Owner { instance, process }
}

/// Whether a container with these labels belonged to a worker that is dead: one of the same name as ours that is not
/// us, or one whose process is gone.
pub(super) fn is_orphan(labels: &BTreeMap<String, String>, worker: &str, owner: &Owner) -> bool {
    let of_our_name = labels.get(LABEL_WORKER).is_some_and(|name| name == worker);
    (of_our_name && !is_ours(labels, owner)) || is_outlived(labels, owner)
}

/// The same of what a process owned that is gone for certain.
pub(super) fn is_outlived(labels: &BTreeMap<String, String>, owner: &Owner) -> bool {
    !is_ours(labels, owner) && labels.get(LABEL_PROCESS).is_some_and(|process| is_dead(process))
}

fn is_ours(labels: &BTreeMap<String, String>, owner: &Owner) -> bool {
    labels.get(LABEL_OWNER).is_some_and(|instance| *instance == owner.instance)
}

/// Whether it can be told that the process does not live.
fn is_dead(process: &str) -> bool {
    let here = place().and_then(|place| process.strip_prefix(place.as_str())?.strip_prefix('/'));
    let Some(mut parts) = here.map(|rest| rest.split('/')) else { return false };
    let (Some(pid), Some(start)) = (parts.next().and_then(|pid| pid.parse().ok()), parts.next()) else {
        return false;
    };
    started(pid).as_deref() != Some(start)
}

/// The boot and the namespace in which process ids mean something.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{}/{}", boot.trim(), namespace.to_str()?))
}

/// When a process started, in the kernel's own count; none if there is no such process, or only what is left of one that
/// nobody has reaped yet.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; behind it are its state and, as the twentieth word, its start time.
    let (_, after) = stat.rsplit_once(')')?;
    let mut words = after.split_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") { None } else { words.nth(18).map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;

    fn labels(worker: &str, owner: &Owner) -> BTreeMap<String, String> {
        [(LABEL_WORKER, worker), (LABEL_OWNER, &owner.instance), (LABEL_PROCESS, &owner.process)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn only_what_nobody_living_owns_is_an_orphan() {
        let (us, other) = (this(), this());
        assert!(!is_orphan(&labels("w", &us), "w", &us), "our own");
        assert!(!is_orphan(&labels("v", &other), "w", &us), "another lane of a living process");
        assert!(is_orphan(&labels("w", &other), "w", &us), "nobody else alive has our name");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = format!("{}/{}/{}", place().unwrap(), child.id(), started(child.id()).unwrap());
        let dead = Owner { instance: "1".to_owned(), process };
        assert!(!is_orphan(&labels("v", &dead), "w", &us), "it lives");
        child.kill().unwrap();
        let pid = Id::Pid(Pid::from_raw(child.id().cast_signed()));
        waitid(pid, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(is_orphan(&labels("v", &dead), "w", &us), "nobody has reaped it, and it is dead");
        child.wait().unwrap();
        assert!(is_orphan(&labels("v", &dead), "w", &us));
        let reused =
            Owner { process: format!("{}/{}/1", place().unwrap(), std::process::id()), ..dead.clone() };
        assert!(is_orphan(&labels("v", &reused), "w", &us), "the id lives on in another process");
        let elsewhere = Owner { process: "boot/pid:[1]/1/1".to_owned(), ..dead.clone() };
        assert!(!is_orphan(&labels("v", &elsewhere), "w", &us), "it cannot be told");
        assert!(!is_orphan(&BTreeMap::new(), "w", &us));
    }
}
