use super::super::record::Head;
use super::super::store::Index;
use super::*;
use schemas::retry::{DELAYS, RetryDelay};
use schemas::{Class, ReplyQueue};
use std::time::Duration;

const NOW: u64 = 1_800_000_000_000;
const JOBS: Queue = Queue::Jobs(Class::High);

fn limits() -> Limits {
    Limits { returns_max: 1, reply_expiry: Duration::from_secs(10), ..Limits::default() }
}

fn fresh(limits: Limits) -> Queues {
    let mut queues = Recovery::new(limits, NOW).finish();
    assert_eq!(std::mem::take(&mut queues.writes).len(), Queue::fixed().count());
    queues
}

fn reply() -> Queue {
    Queue::Reply(ReplyQueue::new("reply.c.i").unwrap())
}

fn arrive(queues: &mut Queues, route: &Route, size: u32) -> Place {
    let place = queues.offer(route, size, NOW).unwrap();
    queues.arrived(&place, Box::default());
    place
}

fn take(queues: &mut Queues, key: u64) -> Taken {
    match queues.take(key) {
        Next::Taken(taken) => *taken,
        Next::Wait => panic!("nothing there"),
        Next::NoRoom => panic!("no room"),
        Next::Gone => panic!("gone"),
    }
}

/// Takes a message that has to be read first.
fn take_cold(queues: &mut Queues, key: u64) -> Taken {
    assert!(matches!(queues.take(key), Next::Wait));
    for (number, ids) in std::mem::take(&mut queues.loads) {
        queues.loaded(number, ids.into_iter().map(|id| (id, Some(Content::default()))).collect());
    }
    take(queues, key)
}

/// Does what was decided, as the storage thread would.
fn write(queues: &mut Queues) -> Vec<Write> {
    let writes = std::mem::take(&mut queues.writes);
    for write in &writes {
        if let Write::Move { to, .. } = write {
            queues.moved(*to);
        }
    }
    writes
}

fn ready(queues: &Queues, queue: &Queue) -> u64 {
    queues.depth(queue).unwrap().ready
}

#[test]
fn nothing_is_handed_out_before_it_is_on_disk() {
    let mut queues = fresh(limits());
    let consumer = queues.subscribe(&JOBS, 5).unwrap().key;
    let place = queues.offer(&Route::Submit(Class::High), 7, NOW).unwrap();
    assert!(matches!(queues.take(consumer), Next::Wait));
    assert_eq!(ready(&queues, &JOBS), 0);
    queues.arrived(&place, Box::default());
    let taken = take(&mut queues, consumer);
    assert_eq!((taken.id, taken.redelivered, taken.returns), (place.id, false, 0));
}

#[test]
fn limits_count_what_arrives_waits_and_is_out() {
    let mut queues = fresh(Limits { queue_messages_max: 3, queue_bytes_max: 100, ..limits() });
    let route = Route::Submit(Class::High);
    let consumer = queues.subscribe(&JOBS, 5).unwrap().key;
    arrive(&mut queues, &route, 10);
    let out = take(&mut queues, consumer);
    arrive(&mut queues, &route, 10);
    let arriving = queues.offer(&route, 10, NOW).unwrap();
    let full = Err(PublishError::Full { queue: "jobs.high".into() });
    assert_eq!(queues.offer(&route, 10, NOW), full);
    queues.refused(&arriving);
    assert_eq!(queues.offer(&route, 81, NOW), full, "bytes count too");
    let arriving = queues.offer(&route, 80, NOW).unwrap();
    assert_eq!(queues.offer(&route, 0, NOW), full);
    queues.settle(arriving.queue, out.id, Settlement::Ack);
    assert!(queues.offer(&route, 0, NOW).is_ok());
    assert_eq!(write(&mut queues), [Write::Remove { id: out.id }]);
}

#[test]
fn a_settlement_counts_once_and_gives_room() {
    let mut queues = fresh(limits());
    let consumer = queues.subscribe(&JOBS, 1).unwrap().key;
    let route = Route::Submit(Class::High);
    let (first, second) = (arrive(&mut queues, &route, 1), arrive(&mut queues, &route, 1));
    assert_eq!(take(&mut queues, consumer).id, first.id);
    assert!(matches!(queues.take(consumer), Next::NoRoom));
    for _ in 0..2 {
        queues.settle(first.queue, first.id, Settlement::Ack);
        queues.settle(first.queue, first.id, Settlement::GiveBack);
    }
    assert_eq!(queues.writes.len(), 1);
    assert_eq!(take(&mut queues, consumer).id, second.id);
    let depth = queues.depth(&JOBS).unwrap();
    assert_eq!(depth, Depth { ready: 0, unacked: Some(1), consumers: 1 });
}

#[test]
fn a_retry_moves_on_when_it_is_due_and_there_is_room() {
    let mut queues = fresh(Limits { queue_messages_max: 1, ..limits() });
    let short = DELAYS[0];
    let consumer = queues.subscribe(&JOBS, 1).unwrap().key;
    let retry = arrive(&mut queues, &Route::Retry(short, Class::High), 5);
    assert_eq!(ready(&queues, &Queue::Retry(short)), 1);
    let full = queues.offer(&Route::Retry(short, Class::Low), 5, NOW);
    assert_eq!(full, Err(PublishError::Full { queue: "retry.100".into() }));
    assert_eq!(queues.next_due(NOW), Some(retry.due));
    assert!(!queues.tick(retry.due - 1));
    // Its class is full: it waits, and nothing is due until that changes.
    let blocker = arrive(&mut queues, &Route::Submit(Class::High), 5);
    assert!(!queues.tick(retry.due));
    assert_eq!(queues.next_due(retry.due), None);
    assert_eq!(take(&mut queues, consumer).id, blocker.id);
    queues.settle(blocker.queue, blocker.id, Settlement::Ack);
    assert!(queues.tick(retry.due));
    assert_eq!(
        (ready(&queues, &JOBS), ready(&queues, &Queue::Retry(short))),
        (0, 1),
        "not before it is written"
    );
    write(&mut queues);
    let moved = take_cold(&mut queues, consumer);
    assert_eq!((moved.redelivered, moved.returns), (false, 0));
    assert_eq!(ready(&queues, &Queue::Retry(short)), 0);
}

#[test]
fn a_message_dies_only_where_messages_die_and_only_if_there_is_room() {
    let mut queues = fresh(Limits { dead_messages_max: 1, ..limits() });
    let route = Route::Submit(Class::High);
    let consumer = queues.subscribe(&JOBS, 1).unwrap().key;
    let first = arrive(&mut queues, &route, 1);
    let taken = take(&mut queues, consumer);
    queues.settle(first.queue, taken.id, Settlement::GiveBack);
    let again = take_cold(&mut queues, consumer);
    assert_eq!((again.id, again.returns, again.redelivered), (first.id, 1, true));
    queues.settle(first.queue, again.id, Settlement::GiveBack);
    let death = Death { queue: "jobs.high".into(), reason: "delivery_limit".into() };
    assert!(matches!(&write(&mut queues)[..], [Write::Move { id, death: Some(found), .. }]
        if *id == first.id && *found == death));

    let second = arrive(&mut queues, &route, 1);
    let taken = take(&mut queues, consumer);
    queues.settle(second.queue, taken.id, Settlement::GiveBack);
    for returns in 1..5 {
        let taken = take_cold(&mut queues, consumer);
        assert_eq!((taken.id, taken.returns), (second.id, returns), "dead.intake is full: it stays");
        queues.settle(second.queue, taken.id, Settlement::GiveBack);
    }

    let intake = queues.subscribe(&Queue::DeadIntake, 1).unwrap();
    for _ in 0..5 {
        let dead = take_cold(&mut queues, intake.key);
        queues.settle(intake.number, dead.id, Settlement::GiveBack);
    }
    assert_eq!(write(&mut queues), []);
}

#[test]
fn a_reply_queue_expires_once_nobody_uses_it_and_nothing_arrives() {
    let mut queues = fresh(limits());
    assert!(matches!(
        queues.offer(&Route::To(reply()), 1, NOW),
        Err(PublishError::Unroutable { queue }) if queue == "reply.c.i"
    ));
    let consumer = queues.subscribe(&reply(), 1).unwrap();
    assert!(consumer.declared);
    assert!(matches!(queues.subscribe(&reply(), 1), Err(crate::BrokerError::Refused { .. })));
    let kept = arrive(&mut queues, &Route::To(reply()), 1);
    queues.unsubscribe(consumer.key, NOW);
    let expiry = NOW + 10_000;
    assert_eq!(queues.next_due(NOW), Some(expiry));

    // Used again, it does not expire.
    let consumer = queues.subscribe(&reply(), 1).unwrap();
    assert!(consumer.declared, "that it is used must be on disk");
    assert_eq!((queues.next_due(NOW), queues.tick(expiry)), (None, false));
    let taken = take(&mut queues, consumer.key);
    queues.unsubscribe(consumer.key, NOW);
    write(&mut queues);

    let arriving = queues.offer(&Route::To(reply()), 1, NOW).unwrap();
    assert!(!queues.tick(expiry), "a reply arrives");
    queues.arrived(&arriving, Box::default());
    assert!(queues.tick(expiry + 1_000));
    let mut ids = match write(&mut queues).pop() {
        Some(Write::Delete { number, ids }) if number == consumer.number => ids,
        other => panic!("{other:?}"),
    };
    ids.sort_unstable();
    assert_eq!(ids, [kept.id, arriving.id]);
    assert_eq!((queues.depth(&reply()), queues.hot_bytes), (None, 0));
    queues.settle(consumer.number, taken.id, Settlement::Ack);
    assert_eq!(write(&mut queues), [], "settling what is gone means nothing");
}

#[test]
fn a_reply_queue_used_again_at_the_last_moment_stays() {
    let mut queues = fresh(limits());
    let consumer = queues.subscribe(&reply(), 1).unwrap();
    queues.unsubscribe(consumer.key, NOW);
    let arriving = queues.offer(&Route::To(reply()), 1, NOW).unwrap();
    queues.tick(NOW + 10_000);
    let consumer = queues.subscribe(&reply(), 1).unwrap();
    queues.arrived(&arriving, Box::default());
    queues.tick(NOW + 1_000_000);
    assert_eq!(take(&mut queues, consumer.key).id, arriving.id);
    assert_eq!(queues.next_due(NOW), None);
}

#[test]
fn a_crowd_of_retries_moves_on_in_parts() {
    let mut queues = fresh(limits());
    for _ in 0..10_000 {
        arrive(&mut queues, &Route::Retry(DELAYS[0], Class::High), 1);
    }
    let mut parts = Vec::new();
    while queues.tick(NOW + 1_000) {
        parts.push(write(&mut queues).len());
    }
    assert_eq!(parts, [4_096, 4_096, 10_000 - 2 * 4_096]);
    assert_eq!((ready(&queues, &JOBS), ready(&queues, &Queue::Retry(DELAYS[0]))), (10_000, 0));
}

#[test]
fn what_a_file_holds_is_found_again() {
    let mut recovery = Recovery::new(limits(), NOW);
    let retry = Queue::Retry(RetryDelay::at_least(Duration::from_secs(2)));
    for (number, name, expires) in [
        (7, JOBS.to_string(), 0),
        (9, retry.to_string(), 0),
        (3, "reply.c.i".to_owned(), 0),
        (4, "reply.c.j".to_owned(), NOW + 5),
        (5, "a.queue.of.the.future".to_owned(), 0),
    ] {
        recovery.queue(number, &name, expires);
    }
    let head = |queue| Head { queue, body_bytes: 10, ..Head::default() };
    recovery.message(20, &head(7));
    recovery.message(21, &head(5));
    recovery.message(22, &Head { next: 7, due: NOW + 1_000_000, ..head(9) });
    recovery.message(23, &Head { body_id: 30, ..head(7) });
    let mut queues = recovery.finish();
    assert_eq!((ready(&queues, &JOBS), ready(&queues, &retry), ready(&queues, &reply())), (2, 1, 0));
    // The clock was set back: it waits no longer than its delay.
    queues.tick(NOW + 5);
    assert_eq!(queues.next_due(NOW + 5), Some(NOW + 2_000));
    assert_eq!(queues.depth(&Queue::Reply(ReplyQueue::new("reply.c.j").unwrap())), None, "expired");
    assert!(queues.tick(NOW + 10_000));
    assert_eq!(queues.depth(&reply()), None, "was in use, and nobody came back");

    let consumer = queues.subscribe(&JOBS, 9).unwrap().key;
    let found = take_cold(&mut queues, consumer);
    assert_eq!((found.id, found.redelivered, found.returns), (20, true, 0));
    assert!(take(&mut queues, consumer).redelivered);
    let new = arrive(&mut queues, &Route::Submit(Class::High), 1);
    assert!(new.id > 30, "neither an id nor a body's id is used twice");
    write(&mut queues);
    assert_eq!(take(&mut queues, consumer).id, new.id, "the retry must be read first, and holds up nothing");
    let retried = take_cold(&mut queues, consumer);
    assert_eq!((retried.id, retried.redelivered), (31, false), "it got its id when it was due");
}

#[test]
fn nobody_consumes_or_fills_what_moves_on_by_itself() {
    let mut queues = fresh(limits());
    let retry = Queue::Retry(DELAYS[3]);
    assert!(matches!(queues.subscribe(&retry, 1), Err(crate::BrokerError::Refused { .. })));
    assert!(matches!(queues.offer(&Route::To(retry), 1, NOW), Err(PublishError::Unroutable { .. })));
}

#[test]
fn memory_for_hot_messages_is_bounded_per_queue_and_over_all_queues() {
    const SIZE: u32 = 1 << 20;
    const EACH: usize = 40;
    // The front of a queue is read whatever the rest of them keep.
    const FRONT: u64 = SIZE as u64 + 1_024;
    let mut queues = fresh(limits());
    let consumed: Vec<Queue> = Queue::fixed().filter(|queue| !matches!(queue, Queue::Retry(_))).collect();
    for queue in &consumed {
        for _ in 0..EACH {
            arrive(&mut queues, &Route::To(queue.clone()), SIZE);
        }
    }
    let hot = queues.hot_bytes;
    assert!(hot <= HOT_BYTES_MAX && hot > HOT_BYTES_MAX / 2, "{hot}");
    let consumers: Vec<u64> =
        consumed.iter().map(|queue| queues.subscribe(queue, 1_000).unwrap().key).collect();
    let mut taken = vec![0; consumers.len()];
    let mut loads = Vec::new();
    // One from each in turn, so that all of them want to read ahead at once; a read takes a turn.
    while taken.iter().any(|taken| *taken < EACH) {
        let before = (taken.clone(), loads.len());
        for (taken, key) in taken.iter_mut().zip(&consumers) {
            *taken += usize::from(matches!(queues.take(*key), Next::Taken(_)));
        }
        for (number, ids) in std::mem::replace(&mut loads, std::mem::take(&mut queues.loads)) {
            queues.loaded(number, ids.into_iter().map(|id| (id, Some(Content::default()))).collect());
        }
        assert!(before != (taken.clone(), loads.len()) || !loads.is_empty(), "stuck at {taken:?}");
        let each = queues.queues.values().map(|resting| resting.ready.hot_bytes());
        assert_eq!(queues.hot_bytes, each.clone().sum::<u64>());
        assert!(each.max() <= Some(HOT_BYTES_PER_QUEUE_MAX + FRONT));
        let most = HOT_BYTES_MAX + FRONT * consumers.len() as u64;
        assert!(queues.hot_bytes <= most, "{} bytes are hot: at most {most}", queues.hot_bytes);
    }
    assert_eq!(queues.hot_bytes, 0);
}

#[test]
fn what_cannot_be_read_dies_where_messages_die_and_takes_no_room_anywhere_else() {
    let mut queues = fresh(Limits { queue_messages_max: 1, reply_messages_max: 1, ..limits() });
    let unreadable = |queues: &mut Queues, queue: &Queue| {
        let consumer = queues.subscribe(queue, 1).unwrap();
        let place = arrive(queues, &Route::To(queue.clone()), 5);
        let taken = take(queues, consumer.key);
        queues.settle(consumer.number, taken.id, Settlement::GiveBack);
        assert!(matches!(queues.take(consumer.key), Next::Wait));
        let (number, ids) = queues.loads.pop().unwrap();
        assert_eq!(ids, [place.id]);
        queues.loaded(number, vec![(place.id, None)]);
        assert!(matches!(queues.take(consumer.key), Next::Wait));
        place
    };
    let job = unreadable(&mut queues, &JOBS);
    let death = Death { queue: "jobs.high".into(), reason: "unreadable".into() };
    assert!(matches!(&write(&mut queues)[..], [Write::Move { id, death: Some(found), bare: true, .. }]
        if *id == job.id && *found == death));
    assert_eq!((ready(&queues, &JOBS), ready(&queues, &Queue::DeadIntake)), (0, 1));
    assert!(queues.offer(&Route::To(JOBS), 5, NOW).is_ok(), "its room is free again");

    queues.subscribe(&reply(), 1).map(|first| queues.unsubscribe(first.key, NOW)).unwrap();
    write(&mut queues);
    unreadable(&mut queues, &reply());
    assert!(write(&mut queues).iter().all(|write| matches!(write, Write::Declare { .. })));
    assert!(queues.offer(&Route::To(reply()), 5, NOW).is_ok(), "its room is free again");
}
