//! The order of starts, in a few bytes for each that waits.

use std::{cmp::Reverse, collections::BTreeMap};

use roaring::RoaringTreemap;

/// Where a Runner stands in the order of starts: priority, then acceptance. No two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: Reverse<i32>,
    /// The place of its submission among all events.
    pub(super) seq: u64,
    /// Whether it is a task of the daemon's own.
    pub(super) in_process: bool,
}

impl Place {
    /// Places of events stay far below half of the range.
    fn packed(self) -> u64 {
        self.seq << 1 | u64::from(self.in_process)
    }

    fn unpacked(priority: Reverse<i32>, packed: u64) -> Self {
        Self { priority, seq: packed >> 1, in_process: packed & 1 == 1 }
    }
}

/// A set of places: a bitmap for each priority. It takes two bytes for each where they stand close together, and all
/// that is done to it is fast at any length, also in its middle.
#[derive(Debug, Default)]
pub(super) struct Places {
    packed: BTreeMap<Reverse<i32>, RoaringTreemap>,
    len: usize,
}

impl Places {
    pub(super) fn insert(&mut self, place: Place) {
        let new = self.packed.entry(place.priority).or_default().insert(place.packed());
        self.len += usize::from(new);
    }

    pub(super) fn remove(&mut self, place: Place) {
        let Some(packed) = self.packed.get_mut(&place.priority) else { return };
        self.len -= usize::from(packed.remove(place.packed()));
        if packed.is_empty() {
            self.packed.remove(&place.priority);
        }
    }

    pub(super) fn contains(&self, place: Place) -> bool {
        self.packed.get(&place.priority).is_some_and(|packed| packed.contains(place.packed()))
    }

    pub(super) fn first(&self) -> Option<Place> {
        let (priority, packed) = self.packed.first_key_value()?;
        packed.min().map(|packed| Place::unpacked(*priority, packed))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Place> {
        self.packed
            .iter()
            .flat_map(|(priority, packed)| packed.iter().map(|packed| Place::unpacked(*priority, packed)))
    }

    /// How many come before it.
    pub(super) fn before(&self, place: Place) -> usize {
        let higher = self.packed.range(..place.priority).map(|(_, packed)| packed.len());
        let equal = self.packed.get(&place.priority).zip(place.packed().checked_sub(1));
        let equal = equal.map_or(0, |(packed, before)| packed.rank(before));
        usize::try_from(higher.sum::<u64>() + equal).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = Place> {
        // Places that share a part of their bitmap, and others far away.
        let seq = prop_oneof![0..40_u64, 0..1_u64 << 40];
        (-2..3, seq).prop_map(|(priority, seq)| Place {
            priority: Reverse(priority),
            seq,
            in_process: seq % 3 == 0,
        })
    }

    proptest! {
        #[test]
        fn places_are_an_ordered_set(steps in prop::collection::vec((place(), any::<bool>()), 0..200)) {
            let (mut places, mut model) = (Places::default(), std::collections::BTreeSet::new());
            for (place, insert) in steps {
                if insert {
                    places.insert(place);
                    model.insert(place);
                } else {
                    places.remove(place);
                    model.remove(&place);
                }
                prop_assert_eq!(places.contains(place), insert);
                prop_assert_eq!(places.before(place), model.range(..place).count());
                prop_assert_eq!(places.first(), model.first().copied());
                prop_assert_eq!((places.len(), places.is_empty()), (model.len(), model.is_empty()));
            }
            prop_assert!(places.iter().eq(model.iter().copied()));
        }
    }
}
