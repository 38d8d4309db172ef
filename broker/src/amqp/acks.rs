//! Which frames settle which deliveries of one channel. Pure: told what was delivered and what was settled, says
//! what to send.
//!
//! Invariants:
//! - every settled delivery is sent once, in the next flush;
//! - "multiple" reaches only over tags that are all settled, and names a tag the broker still has (it closes the
//!   channel over any other). Tag 0, which means everything, is never sent: it would also settle what was
//!   delivered and not yet seen here;
//! - what goes back is sent before what a "multiple" reaches over, which would otherwise acknowledge it.
//!
//! What is kept grows with the deliveries that are out, not with those gone by.

use crate::delivery::Settlement;
use std::collections::BTreeMap;

/// A delivery's number on its channel: 1, 2, 3, …
pub(super) type Tag = u64;

/// A frame to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Acknowledges `tag`, or everything up to it.
    Ack { tag: Tag, multiple: bool },
    /// Puts `tag` back into its queue.
    GiveBack { tag: Tag },
}

/// The deliveries of one channel, each with an owner the caller chose.
#[derive(Debug)]
pub(super) struct Acks<Owner> {
    /// Delivered and not settled.
    out: BTreeMap<Tag, Owner>,
    /// Every tag up to this one was delivered here: there is none below it that we have not heard of.
    seen: Tag,
    acked: Vec<Tag>,
    given_back: Vec<Tag>,
}

impl<Owner> Acks<Owner> {
    pub(super) fn new() -> Self {
        Self { out: BTreeMap::new(), seen: 0, acked: Vec::new(), given_back: Vec::new() }
    }

    /// Whether `tag` is the one that follows those delivered so far.
    pub(super) fn is_next(&self, tag: Tag) -> bool {
        tag == self.seen + 1
    }

    /// `tag` was delivered. Tags come in order; after a gap nothing is reached over any more.
    pub(super) fn delivered(&mut self, tag: Tag, owner: Owner) {
        if self.is_next(tag) {
            self.seen = tag;
        }
        self.out.insert(tag, owner);
    }

    /// `tag` was settled. Whose it was; `None` if it was not out.
    pub(super) fn settled(&mut self, tag: Tag, settlement: Settlement) -> Option<Owner> {
        let owner = self.out.remove(&tag)?;
        match settlement {
            Settlement::Ack => self.acked.push(tag),
            Settlement::GiveBack => self.given_back.push(tag),
        }
        Some(owner)
    }

    /// How many deliveries are out.
    pub(super) fn out(&self) -> usize {
        self.out.len()
    }

    /// What to send for everything settled since the last flush, in this order.
    pub(super) fn flush(&mut self) -> Vec<Frame> {
        self.given_back.sort_unstable();
        let mut frames: Vec<Frame> = self.given_back.drain(..).map(|tag| Frame::GiveBack { tag }).collect();

        self.acked.sort_unstable();
        let first_out = self.out.first_key_value().map_or(Tag::MAX, |(tag, _)| *tag);
        let reached = self.acked.partition_point(|&tag| tag < first_out && tag <= self.seen);
        if let Some(&tag) = self.acked[..reached].last() {
            frames.push(Frame::Ack { tag, multiple: reached > 1 });
        }
        frames.extend(self.acked.drain(..).skip(reached).map(|tag| Frame::Ack { tag, multiple: false }));
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_settled_prefix_is_one_frame_and_what_lies_beyond_a_gap_is_single() {
        let mut acks = Acks::new();
        (1..=6).for_each(|tag| acks.delivered(tag, ()));
        for tag in [3, 1, 2, 5, 6] {
            assert_eq!(acks.settled(tag, Settlement::Ack), Some(()));
        }
        let single = |tag| Frame::Ack { tag, multiple: false };
        assert_eq!(acks.flush(), [Frame::Ack { tag: 3, multiple: true }, single(5), single(6)]);
        assert_eq!(acks.settled(4, Settlement::Ack), Some(()));
        assert_eq!(acks.flush(), [single(4)], "the broker no longer has 5 and 6");
        assert_eq!(acks.out(), 0);
    }

    #[test]
    fn what_goes_back_is_never_reached_over() {
        let mut acks = Acks::new();
        (1..=3).for_each(|tag| acks.delivered(tag, ()));
        acks.settled(1, Settlement::Ack);
        acks.settled(2, Settlement::GiveBack);
        acks.settled(3, Settlement::Ack);
        assert_eq!(acks.flush(), [Frame::GiveBack { tag: 2 }, Frame::Ack { tag: 3, multiple: true }]);
    }

    #[test]
    fn a_delivery_settles_once_and_one_never_seen_is_never_reached_over() {
        let mut acks = Acks::new();
        acks.delivered(1, ());
        acks.delivered(3, ());
        acks.delivered(4, ());
        for tag in [1, 3, 4] {
            acks.settled(tag, Settlement::Ack);
            assert_eq!(acks.settled(tag, Settlement::GiveBack), None);
        }
        assert_eq!(acks.settled(2, Settlement::Ack), None, "2 was not delivered here");
        let single = |tag| Frame::Ack { tag, multiple: false };
        assert_eq!(acks.flush(), [single(1), single(3), single(4)]);
    }

    /// The broker's side of a channel: what it has sent and not had back.
    #[derive(Default)]
    struct Channel {
        out: BTreeSet<Tag>,
        acked: BTreeSet<Tag>,
        given_back: BTreeSet<Tag>,
    }

    impl Channel {
        fn receive(&mut self, frame: Frame) {
            let (Frame::Ack { tag, .. } | Frame::GiveBack { tag }) = frame;
            assert!(self.out.contains(&tag), "unknown delivery tag {tag}: the channel is closed");
            let covered: Vec<Tag> = match frame {
                Frame::Ack { multiple: true, .. } => self.out.range(..=tag).copied().collect(),
                _ => vec![tag],
            };
            let into =
                if matches!(frame, Frame::Ack { .. }) { &mut self.acked } else { &mut self.given_back };
            for tag in covered {
                self.out.remove(&tag);
                into.insert(tag);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Deliver,
        Settle(proptest::sample::Index, bool),
        Flush,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Deliver),
            4 => (any::<proptest::sample::Index>(), any::<bool>()).prop_map(|(nth, ack)| Event::Settle(nth, ack)),
            1 => Just(Event::Flush),
        ]
    }

    proptest! {
        #[test]
        fn the_broker_ends_up_with_exactly_what_was_settled(events in prop::collection::vec(event(), 0..400)) {
            let mut acks = Acks::new();
            let mut channel = Channel::default();
            let (mut delivered, mut out) = (0, Vec::new());
            let (mut acked, mut given_back) = (BTreeSet::new(), BTreeSet::new());
            for event in events.into_iter().chain([Event::Flush]) {
                match event {
                    Event::Deliver => {
                        delivered += 1;
                        acks.delivered(delivered, ());
                        channel.out.insert(delivered);
                        out.push(delivered);
                    }
                    Event::Settle(_, _) if out.is_empty() => {}
                    Event::Settle(nth, ack) => {
                        let tag = out.remove(nth.index(out.len()));
                        let settlement = if ack { Settlement::Ack } else { Settlement::GiveBack };
                        prop_assert_eq!(acks.settled(tag, settlement), Some(()));
                        (if ack { &mut acked } else { &mut given_back }).insert(tag);
                    }
                    Event::Flush => {
                        acks.flush().into_iter().for_each(|frame| channel.receive(frame));
                        prop_assert_eq!(&channel.acked, &acked);
                        prop_assert_eq!(&channel.given_back, &given_back);
                        prop_assert_eq!(channel.out.len(), acks.out());
                    }
                }
            }
        }
    }
}
