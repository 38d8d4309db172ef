//! What the Redis adapter must do when its server fails or says no: implement [`Server`] for a private one and run
//! [`SERVER`] over it, one property after the other, since each of them breaks the server for everybody.

use super::samples::{KEEP, WINDOW, claiming, counting, observe, record, worker};
use super::{fresh_name, until};
use crate::facts::{Batch, Sample};
use crate::redis::{Config, Redis};
use crate::{Finish, Start, State, StateError};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use schemas::{JobId, Lane};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A private Redis server that may be broken.
#[async_trait]
pub trait Server: Send + Sync {
    /// The port it listens on, at 127.0.0.1, through all restarts.
    fn port(&self) -> u16;

    /// Ends it as a crash would.
    async fn kill(&self);

    /// Starts it again after a kill, and returns once it answers.
    async fn start(&self);

    /// Runs one command in its database 0, and hands back what `redis-cli` printed.
    async fn cli(&self, arguments: &[&str]) -> String;
}

/// One of these properties.
pub struct ServerProperty {
    /// Its name.
    pub name: &'static str,
    /// Runs it; panics where the adapter breaks it.
    pub run: for<'a> fn(&'a dyn Server) -> BoxFuture<'a, ()>,
}

macro_rules! properties {
    ($($property:ident)+) => {
        /// Every property of this kind.
        pub const SERVER: &[ServerProperty] = &[$(ServerProperty {
            name: stringify!($property),
            run: |server| Box::pin($property(server)),
        }),+];
    };
}
properties! {
    opening_names_what_is_wrong
    a_wrong_password_is_told_and_not_shown
    while_the_server_is_gone_calls_fail_at_once_and_then_work_again
    a_restart_between_two_calls_goes_unnoticed
    a_hung_server_costs_one_time_out
    lost_data_and_scripts_heal
    derived_keys_that_were_evicted_heal
    everything_expires_or_is_bounded
    silent_workers_do_not_pile_up
    a_refused_command_is_told
    at_its_memory_limit_it_takes_no_record
}

fn config(server: &dyn Server, prefix: &str) -> Config {
    let url = format!("redis://127.0.0.1:{}", server.port());
    Config { prefix: prefix.to_owned(), ..Config::new(url) }
}

async fn open(server: &dyn Server) -> Arc<Redis> {
    Redis::open(config(server, &fresh_name())).await.expect("the server is there")
}

async fn refusal(url: String) -> StateError {
    Redis::open(Config::new(url)).await.err().expect("it cannot open")
}

/// An address that cannot be one names its setting; one where nobody listens, or somebody else, names host and port.
pub async fn opening_names_what_is_wrong(server: &dyn Server) {
    for url in
        ["", "127.0.0.1:6379", "http://:hunter2@host", "redis://:hunter2@host/abc", "rediss://:hunter2@host"]
    {
        let error = refusal(url.to_owned()).await;
        assert!(matches!(&error, StateError::Config { field: "state.url", .. }), "{url}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let error = Redis::open(config(server, "with space")).await.err().expect("it cannot open");
    assert!(matches!(&error, StateError::Config { field: "state.prefix", .. }), "{error:?}");

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refusal(format!("redis://:hunter2@{nobody}")).await;
    assert!(matches!(&error, StateError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let error = refusal(format!("redis://{}", silent.local_addr().unwrap())).await;
    assert!(matches!(&error, StateError::Unreachable { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?} for one who never answers", started.elapsed());
}

/// A login that the server does not take is named as such, whatever is wrong with it.
pub async fn a_wrong_password_is_told_and_not_shown(server: &dyn Server) {
    server.cli(&["ACL", "SETUSER", "tester", "on", ">right", "~*", "+@all"]).await;
    let at = format!("127.0.0.1:{}", server.port());
    for login in ["tester:hunter2", "nobody:hunter2"] {
        let error = refusal(format!("redis://{login}@{at}")).await;
        assert!(
            matches!(&error, StateError::Credentials { address } if *address == at),
            "{login}: {error:?}"
        );
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let right =
        Redis::open(Config::new(format!("redis://tester:right@{at}"))).await.expect("the right login");
    right.now().await.expect("it answers");
    server.cli(&["ACL", "SETUSER", "default", "off"]).await;
    let error = refusal(format!("redis://{at}")).await;
    server.kill().await;
    server.start().await;
    assert!(matches!(&error, StateError::Credentials { .. }), "a login is needed: {error:?}");
}

/// While nobody listens calls fail at once, naming the address; once the server is back they work, by themselves.
pub async fn while_the_server_is_gone_calls_fail_at_once_and_then_work_again(server: &dyn Server) {
    let state = open(server).await;
    observe(&*state, &counting(&[("m", 1)], WINDOW)).await;
    server.kill().await;
    let started = Instant::now();
    for _ in 0..100 {
        let error = state.observe(&claiming([1; 3])).await.expect_err("nobody is there");
        assert!(matches!(&error, StateError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{}", server.port())), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?} for a hundred calls", started.elapsed());
    server.start().await;
    until("calls work again", || async { state.now().await.is_ok() }).await;
    let many = (0..50).map(|_| {
        let state = Arc::clone(&state);
        tokio::spawn(async move { state.observe(&claiming([0; 3])).await })
    });
    for call in many.collect::<Vec<_>>() {
        call.await.expect("no panic").expect("all connections work again");
    }
}

/// The server's going and coming back between two calls is seen in time: no call fails for it.
pub async fn a_restart_between_two_calls_goes_unnoticed(server: &dyn Server) {
    let state = open(server).await;
    for _ in 0..8 {
        state.now().await.expect("it answers, over each connection");
    }
    server.kill().await;
    server.start().await;
    for call in 0..8 {
        let answer = state.lead("role", "holder", KEEP).await;
        assert!(matches!(answer, Ok(true)), "call {call}: {answer:?}");
    }
}

/// A server that hangs costs one caller a time-out; the others fail at once until it answers again.
pub async fn a_hung_server_costs_one_time_out(server: &dyn Server) {
    let short = Duration::from_millis(300);
    let config = Config { connect_timeout: short, response_timeout: short, ..config(server, &fresh_name()) };
    let state = Redis::open(config).await.expect("the server is there");
    server.cli(&["CLIENT", "PAUSE", "2500", "ALL"]).await;
    let started = Instant::now();
    let error = state.now().await.expect_err("no answer in time");
    assert!(matches!(&error, StateError::Unreachable { .. }), "{error:?}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?} for a time-out of {short:?}",
        started.elapsed()
    );
    let started = Instant::now();
    for _ in 0..1000 {
        state.now().await.expect_err("not yet");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?} for a thousand calls", started.elapsed());
    until("it answers again", || async { state.now().await.is_ok() }).await;
}

/// After all data and all scripts are lost, calls work from the first on, as on a clean server.
pub async fn lost_data_and_scripts_heal(server: &dyn Server) {
    let state = open(server).await;
    state.report_worker(&worker("w", Lane::Local, 3, &["m"]), KEEP).await.unwrap();
    state.sample(&Sample::default()).await.unwrap();
    let id = JobId::new();
    state.finish(&[record(id, "done", KEEP)]).await.unwrap();
    let before = observe(&*state, &claiming([0, 0, 2])).await;
    server.cli(&["FLUSHALL"]).await;
    server.cli(&["SCRIPT", "FLUSH", "SYNC"]).await;
    let batch = Batch { ids: vec![id], ..counting(&[("m", 600)], WINDOW) };
    let seen = observe(&*state, &batch).await;
    assert_eq!((seen.ended[0].clone(), seen.models[0].per_second, seen.models[0].known), (None, 1.0, false));
    state.sample(&Sample::default()).await.unwrap();
    state.report_worker(&worker("w", Lane::Local, 3, &["m"]), KEEP).await.unwrap();
    let after = observe(&*state, &claiming([0, 0, 9])).await;
    assert_eq!(after.lane(Lane::Local).granted, 3);
    assert!(after.stamp > before.stamp, "no stamp comes twice");
    assert_eq!(state.finish(&[record(id, "again", KEEP)]).await.unwrap(), [Finish::Won]);
}

/// What is derived from the workers' lines is counted afresh when it is missing.
pub async fn derived_keys_that_were_evicted_heal(server: &dyn Server) {
    let prefix = fresh_name();
    let state = Redis::open(config(server, &prefix)).await.expect("the server is there");
    for n in 0..5 {
        state.report_worker(&worker(&format!("w{n}"), Lane::Docker, 2, &["m"]), KEEP).await.unwrap();
    }
    let batch = counting(&[("m", 0)], WINDOW);
    let whole = observe(&*state, &batch).await;
    assert_eq!(whole.lane(Lane::Docker).slots, 10);
    for lost in [&["ws"][..], &["ws", "wm"], &["wk", "ws"]] {
        for key in lost {
            assert_eq!(server.cli(&["DEL", &format!("{prefix}:{key}")]).await.trim(), "1", "{key} was there");
        }
        assert_eq!(observe(&*state, &batch).await, whole, "after the loss of {lost:?}");
    }
    server.cli(&["DEL", &format!("{prefix}:ws")]).await;
    state.report_worker(&worker("w0", Lane::Docker, 5, &["m"]), KEEP).await.unwrap();
    assert_eq!(observe(&*state, &batch).await.lane(Lane::Docker).slots, 13);
}

/// Every key has an expiry, but for those whose size is bounded.
pub async fn everything_expires_or_is_bounded(server: &dyn Server) {
    let prefix = fresh_name();
    let state = Redis::open(config(server, &prefix)).await.expect("the server is there");
    let (ended, begun) = (JobId::new(), JobId::new());
    state.report_worker(&worker("w", Lane::Local, 3, &["m"]), KEEP).await.unwrap();
    state.report_worker(&worker("gone", Lane::Local, 3, &["n"]), KEEP).await.unwrap();
    state.forget_worker("gone").await.unwrap();
    state.report_dispatcher(&super::samples::dispatcher("d"), KEEP).await.unwrap();
    state.sample(&Sample::default()).await.unwrap();
    state.lead("role", "holder", KEEP).await.unwrap();
    state.finish(&[record(ended, "done", KEEP)]).await.unwrap();
    state.note_starts(&[Start { id: begun, attempt: 1 }], KEEP).await.unwrap();
    state.bury(&[super::samples::dead_entry(1)]).await.unwrap();
    observe(&*state, &Batch { claim: [1; 3], ..counting(&[("m", 1), ("other", 1)], WINDOW) }).await;
    let keys = "local kept = {} for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \
                if redis.call('PTTL', key) < 0 then kept[#kept + 1] = key end end table.sort(kept) \
                return table.concat(kept, ' ') .. ' of ' .. #redis.call('KEYS', ARGV[1])";
    let kept = server.cli(&["EVAL", keys, "0", &format!("{prefix}:*")]).await;
    let bounded = ["d", "de", "s"].map(|key| format!("{prefix}:{key}")).join(" ");
    assert_eq!(kept.trim(), format!("{bounded} of 14"));
}

/// Workers that report and fall silent under ever new names do not pile up, even while no dispatcher looks.
pub async fn silent_workers_do_not_pile_up(server: &dyn Server) {
    let prefix = fresh_name();
    let state = Redis::open(config(server, &prefix)).await.expect("the server is there");
    for n in 0..500 {
        state
            .report_worker(&worker(&format!("w{n}"), Lane::Local, 1, &["m"]), Duration::from_millis(1))
            .await
            .unwrap();
        // One that stays keeps the keys themselves from expiring.
        state.report_worker(&worker("stays", Lane::Local, 1, &["m"]), KEEP).await.unwrap();
    }
    for key in ["w", "wr"] {
        let held: u32 = server.cli(&["HLEN", &format!("{prefix}:{key}")]).await.trim().parse().unwrap();
        assert!(held <= 129, "{held} workers held in {key}");
    }
    assert_eq!(observe(&*state, &claiming([0; 3])).await.lane(Lane::Local).workers, 1);
}

/// What the server refuses is told in its own words, and stands in nobody else's way.
pub async fn a_refused_command_is_told(server: &dyn Server) {
    server.cli(&["ACL", "SETUSER", "reader", "on", ">right", "~*", "+@all", "-mget"]).await;
    let url = format!("redis://reader:right@127.0.0.1:{}", server.port());
    let state = Redis::open(Config::new(url)).await.expect("the login is right");
    let error = state.fetch(&[JobId::new()]).await.expect_err("it may not");
    assert!(matches!(&error, StateError::Refused { reason, .. } if reason.contains("NOPERM")), "{error:?}");
    state.now().await.expect("it may do that, at once");
    server.cli(&["SET", "sl-other:w", "a string"]).await;
    let other = Redis::open(config(server, "sl-other")).await.expect("the server is there");
    let error = other.workers().await.map(drop).and(other.observe(&Batch::default()).await.map(drop));
    assert!(matches!(&error, Err(StateError::Corrupt { .. })), "{error:?}");
}

/// At its memory limit the server refuses records whole, whatever it could free first: replies then go out unrecorded, and
/// it does not grow until it is killed.
pub async fn at_its_memory_limit_it_takes_no_record(server: &dyn Server) {
    let state = open(server).await;
    let id = JobId::new();
    state.note_starts(&[Start { id, attempt: 1 }], KEEP).await.expect("there is memory");
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = state.finish(&[record(id, "x", KEEP)]).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let error = refused.expect_err("it has no memory");
    assert!(matches!(&error, StateError::Refused { reason, .. } if reason.contains("OOM")), "{error:?}");
    assert_eq!(state.fetch(&[id]).await.expect("it answers"), [None]);
    let noted = state.note_starts(&[Start { id, attempt: 1 }], KEEP).await.expect("there is memory again");
    assert_eq!(noted, [1], "nothing was done by halves");
    assert!(matches!(state.finish(&[record(id, "x", KEEP)]).await.expect("it answers")[..], [Finish::Won]));
}
