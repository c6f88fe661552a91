//! Numbers in JSON: lists of lists of numbers, read without a tree in between.
//!
//! What a byte of JSON can cost in memory is bounded: a number takes two bytes of text at least and becomes four.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use super::refusal::Refusal;

/// Reads a request of JSON. It is an object: serde would take a list of an object's values as well.
pub(super) fn from_json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Refusal> {
    let wrong = |error: serde_json::Error| Refusal::bad(format!("the request is not what the protocol says: {error}"));
    match text.trim_ascii_start().first() {
        None | Some(b'{') => serde_json::from_slice(text).map_err(wrong),
        Some(_) => Err(Refusal::expected("the request", "something else", "a JSON object")),
    }
}

/// A tensor as nested lists. Lists of one depth have one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Nested {
    /// Extents, outermost first; none for a single number.
    pub(super) extents: Vec<usize>,
    /// The numbers in row-major order.
    pub(super) values: Vec<f32>,
}

/// Axes a tensor may have.
const AXES: usize = 8;

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut nested = Self::default();
        let mut known = [None; AXES];
        let depth = Level { depth: 0, known: &mut known, values: &mut nested.values }.deserialize(deserializer)?;
        nested.extents = known[..depth].iter().map(|extent| extent.unwrap_or(0)).collect();
        Ok(nested)
    }
}

/// The lists at one depth. What it gives is the number of axes from there on, above it included.
struct Level<'a> {
    depth: usize,
    known: &'a mut [Option<usize>; AXES],
    values: &'a mut Vec<f32>,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<usize, E> {
        self.values.push(value as f32);
        Ok(self.depth)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<usize, E> {
        self.values.push(value as f32);
        Ok(self.depth)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<usize, E> {
        self.values.push(value as f32);
        Ok(self.depth)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<usize, E> {
        self.visit_u64(u64::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        if self.depth == AXES {
            return Err(A::Error::custom(format_args!("lists more than {AXES} deep")));
        }
        let (mut count, mut axes) = (0, None);
        loop {
            let level = Level { depth: self.depth + 1, known: &mut *self.known, values: &mut *self.values };
            let Some(found) = list.next_element_seed(level)? else { break };
            if axes.is_some_and(|axes| axes != found) {
                return Err(A::Error::custom("numbers beside lists of numbers"));
            }
            axes = Some(found);
            count += 1;
        }
        match self.known[self.depth].replace(count) {
            Some(other) if other != count => Err(A::Error::custom(format_args!("lists of {other} and of {count} on one axis"))),
            _ => Ok(axes.unwrap_or(self.depth + 1)),
        }
    }
}

/// A list of at most 16 things: what a request may ask for is bounded before memory is.
#[derive(Clone, Debug)]
pub(super) struct Few<T>(pub(super) Vec<T>);

impl<T> Few<T> {
    const MOST: usize = 16;
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(Vec<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Vec<T>, A::Error> {
                while self.0.len() < Few::<T>::MOST {
                    let Some(element) = list.next_element()? else { return Ok(self.0) };
                    self.0.push(element);
                }
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(self.0),
                    Some(_) => Err(A::Error::custom(format_args!("a list of more than {}", Few::<T>::MOST))),
                }
            }
        }
        deserializer.deserialize_seq(List(Vec::new())).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(json: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
        serde_json::from_str::<Nested>(json).map(|n| (n.extents, n.values)).map_err(|error| error.to_string())
    }

    #[test]
    fn nested_lists_have_extents_and_values_in_order() {
        assert_eq!(nested("[[1, 2.5], [-3, 4e0], [5, 6]]"), Ok((vec![3, 2], vec![1.0, 2.5, -3.0, 4.0, 5.0, 6.0])));
        assert_eq!(nested("7"), Ok((vec![], vec![7.0])));
        assert_eq!(nested("[]"), Ok((vec![0], vec![])));
        assert_eq!(nested("[[], []]"), Ok((vec![2, 0], vec![])));
    }

    #[test]
    fn ragged_mixed_deep_and_other_lists_are_refused() {
        for (json, words) in [
            ("[[1, 2], [3]]", "of 2 and of 1"),
            ("[1, [2]]", "beside lists"),
            ("[[1], 2]", "beside lists"),
            ("[[[[[[[[[1]]]]]]]]]", "deep"),
            ("[\"1\"]", "a number or a list"),
            ("[null]", "a number or a list"),
            ("{}", "a number or a list"),
            ("[1,", "EOF"),
        ] {
            assert!(nested(json).unwrap_err().contains(words), "{json}: {:?}", nested(json));
        }
        assert!(nested(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn shortest_text_of_a_float_gives_the_same_float() {
        let values: Vec<f32> = (0..=255u8).map(|byte| f32::from(byte) / 255.0).collect();
        assert_eq!(nested(&serde_json::to_string(&values).unwrap()).unwrap().1, values);
    }

    #[test]
    fn lists_of_things_are_bounded() {
        assert_eq!(serde_json::from_str::<Few<u8>>("[1,2]").unwrap().0, [1, 2]);
        assert_eq!(serde_json::from_str::<Few<u8>>(&format!("{:?}", [1; 16])).unwrap().0.len(), 16);
        assert!(serde_json::from_str::<Few<u8>>(&format!("{:?}", [1; 17])).unwrap_err().to_string().contains("more than 16"));
    }
}
