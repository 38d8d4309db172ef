use super::*;
use futures_util::stream;
use std::collections::VecDeque;

/// A subscription's stream: what it has brought, then nothing or its end.
fn brought(tags: &[Tag], ends: bool) -> impl Stream<Item = lapin::Result<Delivery>> + Unpin + use<> {
    let mut tags = VecDeque::from(tags.to_vec());
    stream::poll_fn(move |_| match tags.pop_front() {
        Some(tag) => Poll::Ready(Some(Ok(Delivery::mock(tag, "".into(), "q".into(), false, Vec::new())))),
        None if ends => Poll::Ready(None),
        None => Poll::Pending,
    })
}

#[test]
fn cancelling_one_subscription_collects_what_came_before_on_all_of_them() {
    let mut streams = vec![(0, brought(&[1, 4], false)), (1, brought(&[2, 3], true))];
    let mut arrived = Vec::new();
    let mut nobody = Context::from_waker(Waker::noop());
    let ended = poll_streams(&mut streams, &mut arrived, Some(1), &mut nobody);
    assert_eq!(ended, Poll::Ready(None), "its end is no loss");
    let mut tags: Vec<Tag> = arrived.iter().map(|(_, delivery)| delivery.delivery_tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [1, 2, 3, 4]);
    assert_eq!(streams.len(), 1);
}

#[test]
fn a_stream_that_ends_meanwhile_is_told() {
    let mut streams = vec![(0, brought(&[1], true)), (1, brought(&[2], true))];
    let mut arrived = Vec::new();
    let mut nobody = Context::from_waker(Waker::noop());
    let ended = poll_streams(&mut streams, &mut arrived, Some(1), &mut nobody);
    assert_eq!(ended, Poll::Ready(Some("the broker cancelled the subscription".to_owned())));
    assert_eq!(arrived.len(), 2);
}
