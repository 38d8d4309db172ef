use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn rules(containers_max: u32, slots_each: u32) -> Rules {
    Rules {
        containers_max,
        slots_each,
        patience: Duration::from_millis(500),
        wait_max: Duration::from_secs(60),
        rest: Duration::from_secs(1),
    }
}

fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

fn failure(words: &str) -> Failure {
    Failure::new(FailureKind::LaneUnavailable, words)
}

/// A pool with a clock and the next ticket.
struct Bench {
    pool: Pool,
    now: Instant,
    next: u64,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        let mut pool = Pool::new(rules, failure("not connected yet"));
        pool.engine(None);
        Self { pool, now: Instant::now(), next: 0 }
    }

    fn ask(&mut self, name: &str) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.pool.ask(ticket, model(name), self.now);
        ticket
    }

    /// What is ordered then; every image that is looked for is there.
    fn after(&mut self, ms: u64) -> Vec<Order> {
        self.now += Duration::from_millis(ms);
        let mut orders = self.pool.orders(self.now);
        while let Some(at) = orders.iter().position(|order| matches!(order, Order::Seek { .. })) {
            let Order::Seek { model } = orders.remove(at) else { unreachable!("it was just seen") };
            let image = format!("image-of-{model}");
            self.pool.found(model, image);
            orders.extend(self.pool.orders(self.now));
        }
        orders
    }

    /// Asks for a model and brings up the container that takes it.
    fn warm(&mut self, name: &str) -> Key {
        let ticket = self.ask(name);
        let key = match &self.after(1)[..] {
            [Order::Start { key, .. }] => *key,
            [Order::Remove { key, evicted: true }] => {
                let key = *key;
                self.pool.removed(key);
                match &self.after(1)[..] {
                    [Order::Start { key, .. }] => *key,
                    orders => panic!("{orders:?}"),
                }
            }
            orders => panic!("{orders:?}"),
        };
        self.pool.started(key, self.now);
        assert_eq!(self.after(1), [Order::Serve { ticket, key }]);
        self.pool.done(key);
        key
    }
}

#[test]
fn a_warm_container_is_used_again_the_most_recently_used_first() {
    let mut bench = Bench::new(rules(3, 1));
    let first = bench.warm("a");
    let (one, two) = (bench.ask("a"), bench.ask("a"));
    assert_eq!(bench.after(1), [Order::Serve { ticket: one, key: first }], "the other waits for it a while");
    let [Order::Start { key: second, .. }] = bench.after(500)[..] else { panic!("no second container") };
    bench.pool.started(second, bench.now);
    assert_eq!(bench.after(1), [Order::Serve { ticket: two, key: second }]);
    bench.pool.done(first);
    bench.pool.done(second);
    let three = bench.ask("a");
    assert_eq!(bench.after(1), [Order::Serve { ticket: three, key: second }]);
}

#[test]
fn at_the_limit_the_least_recently_used_idle_container_makes_room_once_it_is_gone() {
    let mut bench = Bench::new(rules(2, 1));
    let (a, b) = (bench.warm("a"), bench.warm("b"));
    let again = bench.ask("a");
    assert_eq!(bench.after(1), [Order::Serve { ticket: again, key: a }]);
    bench.pool.done(a);
    bench.ask("c");
    assert_eq!(bench.after(1), [Order::Remove { key: b, evicted: true }]);
    assert_eq!(bench.after(1), [], "its memory is not free before it is gone");
    bench.pool.removed(b);
    assert!(matches!(&bench.after(1)[..], [Order::Start { model: started, .. }] if *started == model("c")));
}

#[test]
fn one_in_use_is_closed_only_after_a_while_and_goes_when_its_run_is_over() {
    let mut bench = Bench::new(rules(1, 2));
    let a = bench.warm("a");
    let one = bench.ask("a");
    assert_eq!(bench.after(1), [Order::Serve { ticket: one, key: a }]);
    let other = bench.ask("b");
    assert_eq!(bench.after(499), []);
    let late = bench.ask("a");
    assert_eq!(bench.after(0), [Order::Serve { ticket: late, key: a }], "a free slot is a free slot");
    assert_eq!(bench.pool.wake(bench.now), Some(bench.now + Duration::from_millis(1)));
    assert_eq!(bench.after(1), []);
    bench.ask("a");
    assert_eq!(bench.after(1), [], "it takes no more");
    bench.pool.done(a);
    bench.pool.done(a);
    assert_eq!(bench.after(1), [Order::Remove { key: a, evicted: false }]);
    bench.pool.removed(a);
    let [Order::Start { key: b, .. }] = bench.after(1)[..] else { panic!("b is first in the line") };
    bench.pool.started(b, bench.now);
    assert_eq!(bench.after(1), [Order::Serve { ticket: other, key: b }]);
}

#[test]
fn tasks_of_one_model_share_the_container_on_its_way() {
    let mut bench = Bench::new(rules(4, 2));
    for _ in 0..3 {
        bench.ask("a");
    }
    let orders = bench.after(1);
    assert_eq!(orders.len(), 2, "two slots each, three tasks: {orders:?}");
    assert_eq!(bench.after(1), [], "and none is started twice");

    let mut bench = Bench::new(rules(2, 2));
    let (a, b) = (bench.warm("a"), bench.warm("b"));
    bench.ask("c");
    bench.ask("c");
    assert_eq!(bench.after(1), [Order::Remove { key: a, evicted: true }], "one makes room for both");
    bench.ask("c");
    assert_eq!(bench.after(1), [Order::Remove { key: b, evicted: true }]);
}

#[test]
fn a_model_that_will_not_start_fails_at_once_for_a_while_that_grows() {
    let mut bench = Bench::new(rules(2, 1));
    // Those behind a start that failed have had no attempt, until it is plain that it is no passing trouble.
    for (rest, kind) in [
        (1_000, FailureKind::Busy),
        (2_000, FailureKind::Busy),
        (4_000, FailureKind::LaneUnavailable),
        (8_000, FailureKind::LaneUnavailable),
    ] {
        let ticket = bench.ask("a");
        let [Order::Start { key, .. }] = bench.after(1)[..] else { panic!("it is tried") };
        bench.pool.not_started(key, failure("no image"), true, bench.now);
        bench.pool.removed(key);
        assert_eq!(bench.after(0), [Order::Fail { ticket, failure: failure("no image") }]);
        let ticket = bench.ask("a");
        let resting = Failure::new(kind, "no image").after(Duration::from_millis(1));
        assert_eq!(bench.after(rest - 1), [Order::Fail { ticket, failure: resting }]);
        let other = bench.ask("b");
        let orders = bench.after(0);
        assert!(!orders.contains(&Order::Fail { ticket: other, failure: failure("no image") }));
        for (key, ..) in bench.pool.containers().map(|it| (it.0, ())).collect::<Vec<_>>() {
            bench.pool.removed(key);
        }
        bench.pool.keep(|_| false);
        bench.now += Duration::from_millis(1);
    }
    bench.warm("a");
    let ticket = bench.ask("b");
    let [Order::Start { key, .. }] = bench.after(1)[..] else { panic!("it is tried") };
    bench.pool.not_started(key, failure("engine went away"), false, bench.now);
    bench.pool.removed(key);
    assert_eq!(bench.after(0), [Order::Fail { ticket, failure: failure("engine went away") }]);
    bench.ask("b");
    assert!(matches!(bench.after(0)[..], [Order::Start { .. }]), "what is not its fault is tried again");
}

#[test]
fn a_model_that_serves_gets_no_second_container_for_a_while_and_its_tasks_wait() {
    let mut bench = Bench::new(rules(3, 1));
    let a = bench.warm("a");
    let running = bench.ask("a");
    assert_eq!(bench.after(1), [Order::Serve { ticket: running, key: a }]);
    let waiting = bench.ask("a");
    for rest in [1_000, 2_000, 4_000, 8_000] {
        let [Order::Start { key, .. }] = bench.after(500)[..] else { panic!("it is tried") };
        bench.pool.not_started(key, failure("no memory left"), true, bench.now);
        bench.pool.removed(key);
        assert_eq!(bench.after(0), [], "the first may be free soon");
        assert_eq!(bench.pool.wake(bench.now), Some(bench.now + Duration::from_millis(rest)));
        assert_eq!(bench.after(rest - 1), []);
        bench.now -= Duration::from_millis(499);
    }
    bench.pool.done(a);
    assert_eq!(bench.after(1), [Order::Serve { ticket: waiting, key: a }]);
}

#[test]
fn starts_that_fail_side_by_side_failed_once() {
    let mut bench = Bench::new(rules(4, 1));
    for _ in 0..4 {
        bench.ask("a");
    }
    let keys: Vec<Key> = bench.after(1).iter().map(started).collect();
    assert_eq!(keys.len(), 4);
    for key in keys {
        bench.pool.not_started(key, failure("disk is full"), true, bench.now);
        bench.pool.removed(key);
    }
    assert_eq!(bench.after(0).len(), 4, "each is told");
    let ticket = bench.ask("a");
    let resting = Failure::new(FailureKind::Busy, "disk is full").after(Duration::from_millis(1));
    assert_eq!(bench.after(999), [Order::Fail { ticket, failure: resting }]);
}

fn started(order: &Order) -> Key {
    match order {
        Order::Start { key, .. } => *key,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_that_no_container_uses_any_more_is_looked_for_again() {
    let mut bench = Bench::new(rules(2, 1));
    let a = bench.warm("a");
    assert!(bench.pool.dead(a).is_some());
    bench.pool.removed(a);
    bench.ask("a");
    assert_eq!(bench.pool.orders(bench.now), [Order::Seek { model: model("a") }]);
}

#[test]
fn nothing_makes_room_for_a_model_whose_image_is_not_there() {
    let mut bench = Bench::new(rules(1, 1));
    let a = bench.warm("a");
    let (one, two) = (bench.ask("b"), bench.ask("b"));
    let seek = || Order::Seek { model: model("b") };
    assert_eq!(bench.pool.orders(bench.now), [seek()], "once for both");
    bench.now += Duration::from_secs(10);
    assert_eq!(bench.pool.orders(bench.now), [], "however long it takes");
    bench.pool.not_found(model("b"), failure("no such image"), true, bench.now);
    let told = |ticket| Order::Fail { ticket, failure: failure("no such image") };
    assert_eq!(bench.pool.orders(bench.now), [told(one), told(two)]);
    let again = bench.ask("a");
    assert_eq!(bench.after(0), [Order::Serve { ticket: again, key: a }], "it is still warm");
    bench.pool.done(a);

    bench.now += Duration::from_secs(1);
    bench.ask("b");
    assert_eq!(bench.pool.orders(bench.now), [seek()]);
    bench.pool.engine(Some(failure("away")));
    bench.pool.engine(None);
    assert_eq!(bench.pool.orders(bench.now), [], "it is still being looked for");
    bench.pool.found(model("b"), "b:1".to_owned());
    assert_eq!(bench.pool.orders(bench.now), [Order::Remove { key: a, evicted: true }]);
    bench.pool.removed(a);
    let [Order::Start { key, ref image, .. }] = bench.pool.orders(bench.now)[..] else {
        panic!("room is made")
    };
    assert_eq!(image, "b:1");
    bench.pool.not_started(key, failure("no such image"), false, bench.now);
    bench.pool.removed(key);
    bench.pool.orders(bench.now);
    bench.ask("b");
    assert_eq!(bench.pool.orders(bench.now), [seek()], "it may be gone");
    let late = bench.pool.orders(bench.now + Duration::from_secs(60));
    assert!(
        matches!(&late[..], [Order::Fail { failure, .. }] if failure.message.contains("still on its way")),
        "{late:?}"
    );
}

#[test]
fn without_its_engine_it_fails_everything_and_one_that_waits_too_long_comes_back_later() {
    let mut bench = Bench::new(rules(1, 1));
    let a = bench.warm("a");
    let held = bench.ask("a");
    assert_eq!(bench.after(1), [Order::Serve { ticket: held, key: a }]);
    let waiting = bench.ask("a");
    let orders = bench.after(60_000);
    assert!(
        matches!(&orders[..], [Order::Fail { ticket, failure }] if *ticket == waiting && failure.kind == FailureKind::Busy),
        "{orders:?}"
    );
    bench.pool.engine(Some(failure("engine is away")));
    let ticket = bench.ask("b");
    assert_eq!(bench.after(1), [Order::Fail { ticket, failure: failure("engine is away") }]);
    bench.pool.engine(None);
    assert_eq!(bench.pool.dead(a), Some(Order::Remove { key: a, evicted: false }));
    assert_eq!(bench.pool.dead(a), None, "once");
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u8),
    Done(u8),
    Close(u8),
    Dead(u8),
    Ready(u8),
    Refuse(u8),
    Removed(u8),
    Found(u8),
    NotFound(u8),
    Engine(bool),
    Pass(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..4).prop_map(Step::Ask),
        5 => any::<u8>().prop_map(Step::Done),
        1 => any::<u8>().prop_map(Step::Close),
        1 => any::<u8>().prop_map(Step::Dead),
        4 => any::<u8>().prop_map(Step::Ready),
        1 => any::<u8>().prop_map(Step::Refuse),
        4 => any::<u8>().prop_map(Step::Removed),
        4 => any::<u8>().prop_map(Step::Found),
        1 => any::<u8>().prop_map(Step::NotFound),
        1 => any::<bool>().prop_map(Step::Engine),
        2 => (0u16..700).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A pool beside a plain account of what it ordered.
struct Checked {
    bench: Bench,
    open: BTreeSet<Ticket>,
    runs: Vec<Key>,
    sought: Vec<ModelName>,
    starting: Vec<Key>,
    leaving: Vec<Key>,
}

impl Checked {
    fn settle(&mut self) {
        self.bench.now += Duration::from_millis(1);
        for order in self.bench.pool.orders(self.bench.now) {
            match order {
                Order::Seek { model } => {
                    assert!(!self.sought.contains(&model), "sought twice");
                    self.sought.push(model);
                }
                Order::Start { key, model, image } => {
                    assert!(!self.sought.contains(&model) && image == format!("image-of-{model}"));
                    self.starting.push(key);
                }
                Order::Remove { key, .. } => {
                    assert!(!self.runs.contains(&key), "removed in use");
                    self.leaving.push(key);
                }
                Order::Serve { ticket, key } => {
                    assert!(self.open.remove(&ticket), "served twice");
                    assert!(!self.leaving.contains(&key) && !self.starting.contains(&key));
                    self.runs.push(key);
                }
                Order::Fail { ticket, .. } => assert!(self.open.remove(&ticket), "failed twice"),
            }
        }
        let rules = self.bench.pool.rules;
        assert!(self.bench.pool.containers().count() <= rules.containers_max as usize);
        for (key, _, _, running) in self.bench.pool.containers() {
            assert!(running <= rules.slots_each);
            assert_eq!(running as usize, self.runs.iter().filter(|run| **run == key).count());
        }
        assert_eq!(self.open.len(), self.bench.pool.waiting());
    }

    fn pick<T>(keys: &mut Vec<T>, at: u8) -> Option<T> {
        (!keys.is_empty()).then(|| keys.swap_remove(usize::from(at) % keys.len()))
    }

    fn take(&mut self, step: &Step) {
        let now = self.bench.now;
        let pool = &mut self.bench.pool;
        match *step {
            Step::Ask(name) => {
                let ticket = self.bench.ask(["a", "b", "c", "d"][usize::from(name)]);
                self.open.insert(ticket);
            }
            Step::Done(at) => {
                if let Some(key) = Self::pick(&mut self.runs, at) {
                    pool.done(key);
                }
            }
            Step::Close(at) => {
                if let Some(key) = self.runs.get(usize::from(at) % self.runs.len().max(1)) {
                    pool.close(*key);
                }
            }
            Step::Dead(at) => {
                let keys: Vec<Key> =
                    pool.containers().filter(|it| it.2 == Stage::Serving).map(|it| it.0).collect();
                if let Some(key) = keys.get(usize::from(at) % keys.len().max(1)) {
                    // Its runs end with it.
                    while let Some(run) = self.runs.iter().position(|run| run == key) {
                        self.runs.swap_remove(run);
                        pool.done(*key);
                    }
                    assert!(pool.dead(*key).is_some());
                    self.leaving.push(*key);
                }
            }
            Step::Ready(at) => {
                if let Some(key) = Self::pick(&mut self.starting, at) {
                    pool.started(key, now);
                }
            }
            Step::Refuse(at) => {
                if let Some(key) = Self::pick(&mut self.starting, at) {
                    pool.not_started(key, failure("would not"), at % 2 == 0, now);
                    self.leaving.push(key);
                }
            }
            Step::Removed(at) => {
                if let Some(key) = Self::pick(&mut self.leaving, at) {
                    pool.removed(key);
                }
            }
            Step::Found(at) => {
                if let Some(model) = Self::pick(&mut self.sought, at) {
                    let image = format!("image-of-{model}");
                    pool.found(model, image);
                }
            }
            Step::NotFound(at) => {
                if let Some(model) = Self::pick(&mut self.sought, at) {
                    pool.not_found(model, failure("no image"), at % 2 == 0, now);
                }
            }
            Step::Engine(there) => pool.engine((!there).then(|| failure("away"))),
            Step::Pass(ms) => self.bench.now += Duration::from_millis(ms.into()),
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_its_limits_hold_and_every_task_is_answered(
        containers_max in 1u32..4, slots_each in 1u32..4, steps in steps(),
    ) {
        let mut checked = Checked {
            bench: Bench::new(rules(containers_max, slots_each)),
            open: BTreeSet::new(),
            runs: Vec::new(),
            sought: Vec::new(),
            starting: Vec::new(),
            leaving: Vec::new(),
        };
        for step in &steps {
            checked.take(step);
            checked.settle();
        }
        // Left alone, with an engine that does what it is told, everything that waits is served or told why not.
        for _ in 0..200 {
            let well = [Step::Engine(true), Step::Found(0), Step::Ready(0), Step::Removed(0), Step::Done(0)];
            for step in well.into_iter().chain([Step::Pass(300)]) {
                checked.take(&step);
                checked.settle();
            }
        }
        prop_assert!(checked.open.is_empty(), "{:?}", checked.bench.pool);
    }
}
