//! A process killed with SIGKILL under load, again and again, over one store.
//!
//! The killed process is this test binary, started for the same test, which then only [`load`]s. It says on standard
//! output what it knows, and what it said last is read after it is gone.

use super::{contents, open, within};
use broker::embedded::Embedded;
use broker::{Broker, BrokerError, Incoming, Message, Queue, Receipt, Route};
use schemas::retry::DELAYS;
use schemas::{Class, Lane};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use tokio::sync::mpsc;

const FOLDER: &str = "STRAIGHTLINE_TEST_KILLED_FOLDER";
const ROUND: &str = "STRAIGHTLINE_TEST_KILLED_ROUND";
const JOBS: [Queue; 3] = [Queue::Jobs(Class::High), Queue::Jobs(Class::Low), Queue::Lane(Lane::Local)];

/// What the killed processes said.
#[derive(Default)]
struct Said {
    /// The receipt was Ok.
    confirmed: BTreeSet<String>,
    /// It may be acknowledged: said just before.
    acknowledging: BTreeSet<String>,
    /// It is acknowledged, and something published after that is confirmed.
    acknowledged: BTreeSet<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_moment_loses_nothing_and_keeps_what_it_settled() {
    if let (Ok(folder), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) {
        return load(Path::new(&folder), &round).await;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let mut said = Said::default();
    for (round, confirms) in [1, 40, 300, 7, 1_500, 900, 120, 2_000].into_iter().enumerate() {
        let mut child = start(dir.path(), round);
        let lines = lines_of(&mut child);
        listen(&lines, &mut said, Some(confirms));
        let refused = open(dir.path()).await.err();
        assert!(matches!(refused, Some(BrokerError::Store { .. })), "its store is in use: {refused:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        listen(&lines, &mut said, None);
        check(dir.path(), &said, round).await;
    }
    let (confirmed, acknowledged) = (said.confirmed.len(), said.acknowledged.len());
    assert!(confirmed > 4_000 && acknowledged > 500, "too little to show much: {confirmed}, {acknowledged}");
}

/// Looks at the store with every process gone.
async fn check(dir: &Path, said: &Said, round: usize) {
    let broker = open(dir).await.unwrap();
    let retries = Queue::Retry(DELAYS[0]);
    within("retries to be through", async {
        while broker.depths(std::slice::from_ref(&retries)).await.unwrap()[0].unwrap().ready > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    let held = contents(&broker, JOBS.into_iter().chain([Queue::DeadIntake])).await;
    for delivery in &held {
        *found.entry(name(&delivery.message)).or_default() += 1;
    }
    for (name, times) in &found {
        assert_eq!(*times, 1, "round {round}: {name} is there {times} times");
    }
    for name in said.confirmed.difference(&said.acknowledging) {
        assert!(found.contains_key(name), "round {round}: {name} was confirmed and is lost");
    }
    for name in &said.acknowledged {
        assert!(!found.contains_key(name), "round {round}: {name} was acknowledged for good and is there");
    }
    // What is held goes back where it was: nothing is settled once the broker is closed.
    broker.close().await;
}

fn start(dir: &Path, round: usize) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = "killed::a_process_killed_at_any_moment_loses_nothing_and_keeps_what_it_settled";
    command.args(["--exact", test, "--nocapture"]);
    command.env(FOLDER, dir).env(ROUND, round.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

/// Notes what is said until so much is confirmed; without a number, until the last word.
fn listen(lines: &Receiver<String>, said: &mut Said, until_confirmed: Option<usize>) {
    let mut confirmed = 0;
    while until_confirmed.is_none_or(|until| confirmed < until) {
        let line = match lines.recv_timeout(super::PATIENCE) {
            Ok(line) => line,
            Err(_) if until_confirmed.is_none() => return,
            Err(error) => panic!("the process that should be killed said no more: {error}"),
        };
        match line.split_once(' ') {
            Some(("confirmed", name)) => {
                confirmed += 1;
                said.confirmed.insert(name.to_owned());
            }
            Some(("acknowledging", name)) => _ = said.acknowledging.insert(name.to_owned()),
            Some(("acknowledged", name)) => _ = said.acknowledged.insert(name.to_owned()),
            // The test harness talks too.
            _ => {}
        }
    }
}

/// A bit of everything, for ever.
async fn load(folder: &Path, round: &str) {
    let broker = open(folder).await.unwrap();
    for queue in JOBS {
        tokio::spawn(consume(broker.clone(), queue));
    }
    publish(&broker, round).await;
}

async fn publish(broker: &Embedded, round: &str) {
    let mut receipts: VecDeque<(String, Receipt)> = VecDeque::new();
    for n in 0.. {
        let route = match n % 4 {
            0 => Route::Submit(Class::High),
            1 => Route::Retry(DELAYS[0], Class::Low),
            _ => Route::To(Queue::Lane(Lane::Local)),
        };
        let name = format!("{round}.{n}");
        let size = if n % 7 == 0 { 6_000 } else { 200 };
        let message = Message { body: format!("{name:<size$}").into(), ..Message::default() };
        receipts.push_back((name, broker.publish(route, message).await));
        if receipts.len() > 200
            && let Some((name, receipt)) = receipts.pop_front()
        {
            receipt.await.unwrap();
            say("confirmed", &name);
        }
    }
}

/// Acknowledges two of three; gives the third back until it dies.
async fn consume(broker: Arc<Embedded>, queue: Queue) {
    let mut consumer = broker.consume(&queue, 50).await.unwrap();
    let (markers, mut marked) = mpsc::unbounded_channel::<(Receipt, Vec<String>)>();
    tokio::spawn(async move {
        while let Some((marker, names)) = marked.recv().await {
            marker.await.unwrap();
            names.iter().for_each(|name| say("acknowledged", name));
        }
    });
    let mut since_marker = Vec::new();
    for n in 0.. {
        let Some(Incoming::Delivery(delivery)) = consumer.next().await else { return };
        if n % 3 == 0 {
            delivery.give_back();
            continue;
        }
        let name = name(&delivery.message);
        say("acknowledging", &name);
        delivery.ack();
        since_marker.push(name);
        if since_marker.len() >= 16 {
            // What is confirmed after an acknowledgement has it on disk.
            let marker = broker.publish(Route::To(Queue::Dead), Message::default()).await;
            markers.send((marker, std::mem::take(&mut since_marker))).unwrap();
        }
    }
}

fn name(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap().trim_end().to_owned()
}

/// One write each, so that a kill cannot cut a line short.
fn say(what: &str, name: &str) {
    std::io::stdout().lock().write_all(format!("{what} {name}\n").as_bytes()).unwrap();
}
