//! Whose turn it is: weighted round-robin between the classes. Pure.

use schemas::Class;
use std::collections::VecDeque;

/// Items per class, taken in turns of [`Class::weight`]: no class starves, and within a class the order is kept.
#[derive(Debug)]
pub struct Turns<T> {
    queues: [VecDeque<T>; 3],
    left: [u32; 3],
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { queues: Default::default(), left: Class::ALL.map(Class::weight) }
    }
}

impl<T> Turns<T> {
    /// Adds an item at the end of its class.
    pub fn push(&mut self, class: Class, item: T) {
        self.queues[class as usize].push_back(item);
    }

    /// Adds an item in front of its class.
    pub fn put_back(&mut self, class: Class, item: T) {
        self.queues[class as usize].push_front(item);
    }

    /// The next item.
    pub fn pop(&mut self) -> Option<T> {
        for _ in 0..2 {
            for class in Class::ALL {
                let at = class as usize;
                if self.left[at] > 0
                    && let Some(item) = self.queues[at].pop_front()
                {
                    self.left[at] -= 1;
                    return Some(item);
                }
            }
            // Every class that has items has had its share: a new round.
            self.left = Class::ALL.map(Class::weight);
        }
        None
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_jobs_come_first_and_none_starves() {
        let mut turns = Turns::default();
        for at in 0..100 {
            for class in Class::ALL {
                turns.push(class, (class, at));
            }
        }
        let taken: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(taken.len(), 300);
        let of = |class: Class, among: &[(Class, i32)]| among.iter().filter(|(c, _)| *c == class).count();
        let first = &taken[..26];
        assert_eq!([of(Class::High, first), of(Class::Normal, first), of(Class::Low, first)], [16, 8, 2]);
        for class in Class::ALL {
            let order: Vec<_> = taken.iter().filter(|(c, _)| *c == class).map(|(_, at)| *at).collect();
            assert!(order.is_sorted(), "{class} out of order");
        }
    }

    #[test]
    fn a_lone_class_is_not_held_back() {
        let mut turns = Turns::default();
        for at in 0..10 {
            turns.push(Class::Low, at);
        }
        assert_eq!(std::iter::from_fn(|| turns.pop()).count(), 10);
        assert!(turns.is_empty());
    }
}
