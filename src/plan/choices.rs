//! Which of a step's kernels is to run: names under the step's key, as data that can be kept, compared and printed.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Candidate, Step};
use crate::ops::{Launch, Op, Style, Variant};
use crate::shape::TensorType;

/// Names of kernels ([`Candidate::name`]) under the keys of steps ([`Step::key`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices(BTreeMap<String, String>);

impl Choices {
    /// The kernel chosen for steps of this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Chooses a kernel for steps of this key.
    pub fn set(&mut self, key: &str, name: &str) {
        self.0.insert(key.to_owned(), name.to_owned());
    }

    /// Takes over the choices of another table.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Keys and names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, name)| (key.as_str(), name.as_str()))
    }

    /// How many steps have a choice.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The chosen one of a step's kernels, if there is a choice and the step has it.
    pub fn of<'a>(&self, step: &'a Step) -> Option<Candidate<'a>> {
        let name = self.get(&step.key)?;
        step.candidates().find(|candidate| candidate.name == name)
    }
}

/// What tells a step with variants from others as far as the speed of its kernels goes: operator, types, capacity, and a checksum
/// over its settings and all that its kernels are. A kernel that was changed so has another key. Without variants there is nothing
/// to choose, and no key.
pub(super) fn key(op: &Op, types: &[TensorType], capacity: usize, launch: &Launch, variants: &[Variant]) -> String {
    if variants.is_empty() {
        return String::new();
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(format!("{op:?}").as_bytes());
    let all = std::iter::once((launch.kernel.name, launch)).chain(variants.iter().map(|variant| (variant.name.as_str(), &variant.launch)));
    for (name, launch) in all {
        sum.update(name.as_bytes());
        sum.update(launch.kernel.source.as_bytes());
        sum.update(format!("{:?} {:?}", launch.constants, launch.workgroups).as_bytes());
    }
    let mut key = format!("{} of", op.rules().name());
    for ty in types {
        // A String takes whatever is written to it.
        let _ = write!(key, " {ty}");
    }
    format!("{key}, N to {capacity}, {:08x}", sum.finalize())
}

impl Step {
    /// All kernels that compute this step, the portable one first.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        let portable = Candidate { name: self.launch.kernel.name, style: Style::Portable, matrices: None, launch: &self.launch };
        std::iter::once(portable).chain(self.variants.iter().map(|variant| {
            let Variant { name, style, matrices, launch } = variant;
            Candidate { name, style: *style, matrices: *matrices, launch }
        }))
    }

    /// What is picked by these choices. Without one it is the only kernel that there is; or none of several, on a processor, whose own kernels are
    /// called what the operators are.
    pub fn name_by(&self, choices: &Choices) -> &str {
        match choices.of(self) {
            Some(picked) => picked.name,
            None if self.variants.is_empty() => self.launch.kernel.name,
            None => self.op.rules().name(),
        }
    }

    /// The kernel for adapters of this style where nothing better is known: the first that the step has of
    /// it, else the portable one; never one of cooperative matrices, which not every adapter has.
    pub fn of_style(&self, style: Style) -> Candidate<'_> {
        self.candidates().find(|candidate| candidate.style == style && candidate.matrices.is_none()).unwrap_or_else(|| self.portable())
    }

    /// The kernel that every adapter can run.
    pub fn portable(&self) -> Candidate<'_> {
        self.candidates().next().expect("every step has a portable kernel")
    }
}
