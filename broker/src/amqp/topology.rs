//! Every exchange, queue and binding there is, as plain data, and the one place that declares them.
//!
//! The arguments are the same for every broker version on purpose: a queue's arguments cannot change, so a table that
//! differed between versions would refuse to start after a broker was upgraded under its queues. What differs between
//! versions is met by saying explicitly what they would otherwise decide differently:
//! - the delivery limit is always set. Left out it is unlimited before 4.0 and 20 from then on, and 4.0 drops without
//!   a word what exceeds it; `-1` means unlimited from 4.0 on and drops at the first return before;
//! - every queue but the reply queues is a durable quorum queue, and nothing is transient unless exclusive (4.3).
//!
//! Dead-lettering is at least once, which needs `reject-publish`: a full queue then refuses in place of dropping.

use super::handshake::{Setup, answered, code, reason};
use super::pump;
use crate::queue::Queue;
use crate::{BrokerError, Limits};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use schemas::retry::{DELAYS, RetryDelay};
use schemas::{Class, ReplyQueue};

/// Where clients submit; routed by class.
pub(super) const JOBS: &str = "sl.jobs";
/// Broadcasts.
pub(super) const CONTROL: &str = "sl.control";
/// The exchange that routes to the queue its key names.
pub(super) const DEFAULT: &str = "";

/// The broker's code for a queue that exists with other arguments.
const PRECONDITION_FAILED: u16 = 406;

/// A delivery limit that nothing reaches: returned a thousand times a second, in 30,000 years.
const UNLIMITED: i64 = 1_000_000_000_000_000;

/// Something to declare.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Declaration {
    /// A durable exchange.
    Exchange { name: String, kind: ExchangeKind },
    /// A durable queue.
    Queue { name: String, arguments: Vec<(&'static str, Argument)> },
    /// From an exchange to a queue.
    Binding { exchange: String, key: &'static str, queue: String },
}

/// An argument of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    Text(&'static str),
    Number(i64),
}

/// The exchange whose messages wait out `delay`. A fanout, so that the routing key is left for what comes after: the
/// queue the message is for when it is due.
pub(super) fn retry_exchange(delay: RetryDelay) -> String {
    format!("sl.retry.{}", delay.millis())
}

/// The fixed topology, in an order in which it can be declared.
pub(super) fn topology(limits: &Limits) -> Vec<Declaration> {
    let exchange = |name: String, kind| Declaration::Exchange { name, kind };
    let exchanges =
        [exchange(JOBS.into(), ExchangeKind::Direct), exchange(CONTROL.into(), ExchangeKind::Fanout)];
    let delays = DELAYS.into_iter().map(|delay| exchange(retry_exchange(delay), ExchangeKind::Fanout));
    let queues = Queue::fixed().map(|queue| fixed(&queue, limits));
    let submitted = Class::ALL.into_iter().map(|class| Declaration::Binding {
        exchange: JOBS.into(),
        key: class.as_str(),
        queue: Queue::Jobs(class).to_string(),
    });
    let retried = DELAYS.into_iter().map(|delay| Declaration::Binding {
        exchange: retry_exchange(delay),
        key: "",
        queue: Queue::Retry(delay).to_string(),
    });
    exchanges.into_iter().chain(delays).chain(queues).chain(submitted).chain(retried).collect()
}

/// The queues of a bare pump, each like the one of ours that it stands for.
pub(super) fn pump(names: &[String; 3], limits: &Limits) -> impl Iterator<Item = Declaration> {
    let declared = pump::models().map(|model| match &model {
        Queue::Reply(queue) => reply(queue, limits),
        other => fixed(other, limits),
    });
    declared.into_iter().zip(names.clone()).map(|(declaration, name)| match declaration {
        Declaration::Queue { arguments, .. } => Declaration::Queue { name, arguments },
        other => other,
    })
}

/// A queue of the fixed topology.
fn fixed(queue: &Queue, limits: &Limits) -> Declaration {
    use Argument::{Number, Text};
    let messages_max = match queue {
        Queue::Dead => limits.dead_messages_max,
        _ => limits.queue_messages_max,
    };
    let mut arguments = vec![
        ("x-queue-type", Text("quorum")),
        ("x-overflow", Text("reject-publish")),
        ("x-max-length", number(messages_max)),
        ("x-max-length-bytes", number(limits.queue_bytes_max)),
    ];
    let at_least_once =
        [("x-dead-letter-exchange", Text(DEFAULT)), ("x-dead-letter-strategy", Text("at-least-once"))];
    match queue {
        // The ends of the line give up on nothing: there is nowhere to give it to.
        Queue::Dead | Queue::DeadIntake => arguments.push(("x-delivery-limit", Number(UNLIMITED))),
        // Due messages go where their own routing key says. No key is set here: it would replace that one.
        Queue::Retry(delay) => {
            arguments.extend(at_least_once);
            arguments.push(("x-message-ttl", Number(delay.millis().into())));
            arguments.push(("x-delivery-limit", Number(UNLIMITED)));
        }
        _ => {
            arguments.extend(at_least_once);
            arguments.push(("x-dead-letter-routing-key", Text("dead.intake")));
            arguments.push(("x-delivery-limit", Number(limits.returns_max.into())));
        }
    }
    Declaration::Queue { name: queue.to_string(), arguments }
}

/// A reply queue: classic, because replies are many, small and soon gone, and so are these queues.
pub(super) fn reply(queue: &ReplyQueue, limits: &Limits) -> Declaration {
    let expires = limits.reply_expiry.as_millis().clamp(1, u32::MAX.into());
    let arguments = vec![
        ("x-queue-type", Argument::Text("classic")),
        ("x-expires", number(u64::try_from(expires).expect("clamped"))),
        ("x-overflow", Argument::Text("reject-publish")),
        ("x-max-length", number(limits.reply_messages_max)),
        ("x-max-length-bytes", number(limits.reply_bytes_max)),
    ];
    Declaration::Queue { name: queue.to_string(), arguments }
}

fn number(value: u64) -> Argument {
    Argument::Number(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Declares the fixed topology: what of it is not there yet is made, what is there is compared.
pub(super) async fn declare_all(connection: &Connection, setup: &Setup) -> Result<(), BrokerError> {
    let failed = |error| setup.failed("open a channel", &error);
    let channel = answered(connection.create_channel()).await.map_err(failed)?;
    for declaration in topology(&setup.limits) {
        declare(&channel, &declaration, setup).await?;
    }
    answered(channel.close(200, "declared".into()))
        .await
        .map_err(|error| setup.failed("close a channel", &error))
}

/// Declares one thing. An error closes the channel.
pub(super) async fn declare(
    channel: &Channel,
    declaration: &Declaration,
    setup: &Setup,
) -> Result<(), BrokerError> {
    match declaration {
        Declaration::Exchange { name, kind } => {
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let declared =
                channel.exchange_declare(name.as_str().into(), kind.clone(), options, FieldTable::default());
            answered(declared)
                .await
                .map_err(|error| setup.failed(&format!("declare exchange {name}"), &error))
        }
        Declaration::Queue { name, arguments } => {
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(name.as_str().into(), options, table(arguments));
            let declared = answered(declared).await;
            declared.map(|_| ()).map_err(|error| match code(&error) {
                Some(PRECONDITION_FAILED) => {
                    BrokerError::Mismatch { queue: name.clone(), reason: reason(&error) }
                }
                _ => setup.failed(&format!("declare queue {name}"), &error),
            })
        }
        Declaration::Binding { exchange, key, queue } => {
            let bound = channel.queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                (*key).into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            answered(bound)
                .await
                .map_err(|error| setup.failed(&format!("bind queue {queue} to {exchange}"), &error))
        }
    }
}

fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString((*text).into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn queue(name: &str) -> Vec<(&'static str, Argument)> {
        let limits =
            Limits { returns_max: 7, dead_messages_max: 5, queue_messages_max: 9, ..Limits::default() };
        let mut found = topology(&limits).into_iter().filter_map(|declaration| match declaration {
            Declaration::Queue { name: found, arguments } if found == name => Some(arguments),
            _ => None,
        });
        found.next().unwrap_or_else(|| panic!("{name} is declared"))
    }

    fn argument(name: &str, argument: &str) -> Option<Argument> {
        queue(name).into_iter().find_map(|(found, value)| (found == argument).then_some(value))
    }

    #[test]
    fn every_queue_has_limits_and_an_explicit_delivery_limit() {
        for fixed in Queue::fixed() {
            let name = fixed.to_string();
            for wanted in ["x-max-length", "x-max-length-bytes", "x-delivery-limit"] {
                assert!(
                    matches!(argument(&name, wanted), Some(Argument::Number(1..))),
                    "{name} has no {wanted}: brokers would differ"
                );
            }
            assert_eq!(argument(&name, "x-overflow"), Some(Argument::Text("reject-publish")), "{name}");
            assert_eq!(argument(&name, "x-queue-type"), Some(Argument::Text("quorum")), "{name}");
        }
        assert_eq!(argument("dead", "x-max-length"), Some(Argument::Number(5)));
        assert_eq!(argument("lane.local", "x-max-length"), Some(Argument::Number(9)));
    }

    #[test]
    fn what_is_returned_too_often_goes_to_dead_intake_and_the_ends_of_the_line_give_up_on_nothing() {
        for name in ["jobs.low", "wait.docker.high", "lane.local"] {
            assert_eq!(argument(name, "x-delivery-limit"), Some(Argument::Number(7)), "{name}");
            assert_eq!(
                argument(name, "x-dead-letter-routing-key"),
                Some(Argument::Text("dead.intake")),
                "{name}"
            );
            assert_eq!(
                argument(name, "x-dead-letter-strategy"),
                Some(Argument::Text("at-least-once")),
                "{name}"
            );
        }
        for name in ["dead", "dead.intake"] {
            assert_eq!(argument(name, "x-delivery-limit"), Some(Argument::Number(UNLIMITED)), "{name}");
            assert_eq!(argument(name, "x-dead-letter-exchange"), None, "{name}");
        }
    }

    #[test]
    fn a_retry_keeps_its_own_routing_key() {
        assert_eq!(argument("retry.100", "x-message-ttl"), Some(Argument::Number(100)));
        assert_eq!(argument("retry.100", "x-dead-letter-exchange"), Some(Argument::Text("")));
        assert_eq!(argument("retry.100", "x-dead-letter-routing-key"), None);
    }

    #[test]
    fn everything_bound_is_declared_before() {
        let mut declared = BTreeSet::new();
        for declaration in topology(&Limits::default()) {
            match declaration {
                Declaration::Exchange { name, .. } | Declaration::Queue { name, .. } => {
                    assert!(declared.insert(name.clone()), "{name} is declared twice");
                }
                Declaration::Binding { exchange, queue, .. } => {
                    assert!(
                        declared.contains(&exchange) && declared.contains(&queue),
                        "{exchange} → {queue}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_reply_queue_has_no_argument_that_classic_queues_refuse() {
        let Declaration::Queue { arguments, .. } =
            reply(&ReplyQueue::new("reply.a.b").unwrap(), &Limits::default())
        else {
            panic!("a queue")
        };
        let names: BTreeSet<&str> = arguments.iter().map(|(name, _)| *name).collect();
        let expected = ["x-expires", "x-max-length", "x-max-length-bytes", "x-overflow", "x-queue-type"];
        assert_eq!(names, BTreeSet::from(expected));
    }
}
