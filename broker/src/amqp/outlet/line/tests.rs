use super::*;
use crate::message::{Message, Value};
use crate::queue::{Queue, Route};
use futures_util::FutureExt;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use schemas::ReplyQueue;
use tokio::sync::Semaphore;

const PATIENCE: Duration = Duration::from_secs(5);

struct Bench {
    line: Line,
    room: Arc<Semaphore>,
}

/// A message that was sent: what becomes of it is up to the test.
struct Sent {
    broker: Option<oneshot::Sender<Outcome>>,
    receipt: Receipt,
}

impl Bench {
    fn new() -> Self {
        Self { line: Line::new(PATIENCE), room: Arc::new(Semaphore::new(1_000)) }
    }

    fn send(&self, queue: Queue, message: Message) -> Sent {
        let (broker, outcome) = oneshot::channel();
        let publishing = Box::pin(async move { outcome.await.unwrap_or(Err(Failure::Unconfirmed)) });
        let taken = || self.room.clone().try_acquire_owned().unwrap();
        let room = Room { _message: taken(), _bytes: taken() };
        let key = queue.to_string();
        let parcel = Parcel { route: Some(Route::To(queue)), exchange: String::new(), key, message };
        let receipt = self.line.enter(publishing, parcel, room).unwrap_or_else(|_| panic!("not sent"));
        Sent { broker: Some(broker), receipt }
    }

    fn in_flight(&self) -> usize {
        (1_000 - self.room.available_permits()) / 2
    }
}

impl Sent {
    fn answer(&mut self, accepted: bool, returned: Option<BasicReturnMessage>) {
        let answer = Answer { accepted, returned: returned.map(Box::new) };
        self.broker.take().unwrap().send(Ok(answer)).unwrap();
    }

    fn ack(&mut self) {
        self.answer(true, None);
    }

    /// `None` while it is open.
    fn verdict(&mut self) -> Option<Result<(), PublishError>> {
        (&mut self.receipt).now_or_never()
    }
}

fn reply(instance: &str) -> Queue {
    Queue::Reply(ReplyQueue::new(&format!("reply.c.{instance}")).unwrap())
}

fn message(body: &'static str, header: i64) -> Message {
    let headers = vec![("nth".to_owned(), Value::Integer(header))];
    Message { headers, body: body.into(), ..Message::default() }
}

/// What comes back when `message` finds no queue.
fn returned(queue: &Queue, message: &Message) -> BasicReturnMessage {
    let body = message.body.to_vec();
    let mut delivery = Delivery::mock(0, "".into(), queue.to_string().into(), false, body);
    delivery.properties = crate::amqp::convert::properties(message).unwrap();
    BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
}

/// The same with something added to its headers, as a broker's interceptor does.
fn stamped(queue: &Queue, message: &Message) -> BasicReturnMessage {
    let mut returned = returned(queue, message);
    let mut headers = returned.properties.headers().clone().unwrap_or_default();
    headers.insert("x-routed-by".into(), AMQPValue::LongString("node".into()));
    returned.delivery.properties = returned.delivery.properties.clone().with_headers(headers);
    returned
}

fn unroutable(queue: &Queue) -> Option<Result<(), PublishError>> {
    Some(Err(PublishError::Unroutable { queue: queue.to_string() }))
}

const LOST: Option<Result<(), PublishError>> = Some(Err(PublishError::Lost));

#[test]
fn a_message_without_an_answer_holds_up_no_other() {
    let bench = Bench::new();
    let mut sent: Vec<Sent> = (0..4).map(|n| bench.send(reply(&n.to_string()), message("m", n))).collect();
    sent[1].ack();
    sent[3].answer(false, None);
    assert!(!bench.line.settle(|| {}));
    assert_eq!(sent[1].verdict(), Some(Ok(())));
    assert_eq!(sent[3].verdict(), Some(Err(PublishError::Full { queue: "reply.c.3".into() })));
    assert_eq!((sent[0].verdict(), sent[2].verdict()), (None, None));
    assert_eq!(bench.in_flight(), 2);
    sent[0].ack();
    bench.line.settle(|| {});
    bench.line.clear();
    assert_eq!((sent[0].verdict(), sent[2].verdict()), (Some(Ok(())), LOST));
    assert_eq!(bench.in_flight(), 0);
}

#[test]
fn no_verdict_is_given_before_what_was_answered_together_is_there() {
    let bench = Bench::new();
    let (gone, there) = (reply("gone"), reply("there"));
    let mut first = bench.send(gone.clone(), message("m", 1));
    let mut open = bench.send(there.clone(), message("m", 2));
    let third = std::cell::RefCell::new(bench.send(there, message("m", 3)));
    first.ack();
    // The returned message comes with the confirm of another, later in line, which is only just being completed.
    let complete = || {
        if third.borrow().broker.is_some() {
            third.borrow_mut().answer(true, Some(returned(&gone, &message("m", 1))));
        }
    };
    assert!(!bench.line.settle(complete), "reply queues come and go");
    assert_eq!(first.verdict(), unroutable(&gone));
    assert_eq!(third.borrow_mut().verdict(), Some(Ok(())));
    assert_eq!(open.verdict(), None);
}

#[test]
fn what_came_back_is_known_even_if_something_was_added_to_it() {
    let bench = Bench::new();
    let mut sent: Vec<Sent> = (0..3).map(|n| bench.send(Queue::Dead, message("m", n))).collect();
    sent[0].answer(true, Some(stamped(&Queue::Dead, &message("m", 1))));
    bench.line.settle(|| {});
    sent[2].ack();
    sent[1].ack();
    assert!(bench.line.settle(|| {}), "a queue that should be there is missing");
    assert_eq!(sent[0].verdict(), Some(Ok(())));
    assert_eq!((sent[1].verdict(), sent[2].verdict()), (unroutable(&Queue::Dead), Some(Ok(()))));
}

#[test]
fn the_only_one_it_can_be_is_the_one_that_came_back() {
    // Changed headers, then a changed body too: the only one with this body, the only one that went there.
    for (came_back, other) in [(message("b", 7), Queue::Dead), (message("?", 7), reply("other"))] {
        let bench = Bench::new();
        let mut first = bench.send(other, message("a", 1));
        let mut second = bench.send(Queue::Dead, message("b", 2));
        first.answer(true, Some(returned(&Queue::Dead, &came_back)));
        second.ack();
        assert!(bench.line.settle(|| {}));
        assert_eq!((first.verdict(), second.verdict()), (Some(Ok(())), unroutable(&Queue::Dead)));
    }
}

#[test]
fn where_it_may_be_several_none_of_them_is_confirmed() {
    let bench = Bench::new();
    let mut same: Vec<Sent> = (0..3).map(|n| bench.send(Queue::Dead, message("m", n))).collect();
    let mut elsewhere = bench.send(reply("a"), message("m", 9));
    elsewhere.answer(true, Some(returned(&Queue::Dead, &message("m", 7))));
    same[0].ack();
    assert!(bench.line.settle(|| {}), "the queue may be missing");
    assert_eq!((same[0].verdict(), elsewhere.verdict()), (LOST, Some(Ok(()))));
    same[1].ack();
    same[2].answer(true, Some(returned(&Queue::Dead, &message("m", 2))));
    bench.line.settle(|| {});
    assert_eq!(same[1].verdict(), LOST);
    assert_eq!(same[2].verdict(), unroutable(&Queue::Dead), "this one is known");
}

#[test]
fn what_cannot_be_any_of_them_leaves_all_in_doubt() {
    let bench = Bench::new();
    let mut sent: Vec<Sent> = (0..3).map(|n| bench.send(reply("a"), message("m", n))).collect();
    sent[1].answer(true, Some(returned(&reply("b"), &message("m", 1))));
    assert!(bench.line.settle(|| {}));
    sent[0].ack();
    sent[2].ack();
    bench.line.settle(|| {});
    assert!(sent.iter_mut().all(|sent| sent.verdict() == LOST));
    let mut later = bench.send(reply("a"), message("m", 4));
    later.ack();
    bench.line.settle(|| {});
    assert_eq!(later.verdict(), Some(Ok(())), "it was sent afterwards");
}

#[test]
fn the_late_are_told_and_keep_their_room_until_the_channel_is_given_up() {
    let bench = Bench::new();
    let started = Instant::now();
    let mut late = bench.send(Queue::Dead, message("m", 1));
    let entered = Instant::now();
    assert!(bench.line.give_up_on_the_late(started) >= started + PATIENCE);
    assert_eq!(late.verdict(), None);
    let next = bench.line.give_up_on_the_late(entered + PATIENCE);
    assert_eq!((late.verdict(), next), (LOST, entered + 2 * PATIENCE));
    assert_eq!(bench.in_flight(), 1);

    let stuck = bench.line.stuck_at(started).unwrap();
    assert!((started + 2 * PATIENCE..=entered + 2 * PATIENCE).contains(&stuck));
    let welcome = started + 10 * PATIENCE;
    assert_eq!(bench.line.stuck_at(welcome), Some(welcome + PATIENCE), "held back, it could not come");
    late.ack();
    bench.line.settle(|| {});
    assert_eq!((bench.line.stuck_at(started), bench.in_flight()), (None, 0));
}
