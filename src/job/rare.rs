//! Values that most do without.

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a value mostly is.
pub trait Usual: PartialEq + Sized + 'static {
    /// It.
    const USUAL: &'static Self;
}

impl<K: PartialEq + 'static, V: PartialEq + 'static> Usual for BTreeMap<K, V> {
    const USUAL: &'static Self = &BTreeMap::new();
}

impl<T: PartialEq + 'static> Usual for Option<T> {
    const USUAL: &'static Self = &None;
}

/// A value that takes the room of a pointer as long as it is the [usual](Usual) one. It is read and stored as the value
/// itself.
#[derive(Clone, PartialEq)]
pub struct Rare<T>(Option<Box<T>>);

impl<T> Rare<T> {
    /// Whether it is the usual one.
    pub fn is_usual(&self) -> bool {
        self.0.is_none()
    }

    /// The value itself.
    pub fn into_inner(self) -> T
    where
        T: Default,
    {
        self.0.map_or_else(T::default, |value| *value)
    }
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Usual> From<T> for Rare<T> {
    fn from(value: T) -> Self {
        Self((value != *T::USUAL).then(|| Box::new(value)))
    }
}

impl<T: Usual> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::USUAL)
    }
}

impl<T: Usual + fmt::Debug> fmt::Debug for Rare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Usual + Serialize> Serialize for Rare<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: Usual + Deserialize<'de>> Deserialize<'de> for Rare<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Name = Rare<Option<String>>;

    #[test]
    fn it_is_stored_as_the_value_itself() {
        for (name, text) in [(Some("x".to_owned()), r#""x""#), (None, "null")] {
            let rare = Name::from(name.clone());
            assert_eq!(serde_json::to_string(&rare).expect("written"), text);
            assert_eq!(serde_json::from_str::<Name>(text).expect("read"), rare);
            assert_eq!(rare.into_inner(), name);
        }
    }

    #[test]
    fn the_usual_value_takes_a_pointer() {
        assert_eq!(size_of::<Name>(), size_of::<usize>());
        assert!(Name::default().is_usual() && Name::from(None).is_usual());
    }
}
