//! A plan as text: the dispatches in order, then the memory they work in.

use std::fmt;

use super::{Candidate, Choices, Operand, Place, Plan, Step};

/// The dispatch list: kernel, shapes, workgroups at capacity, slots and bytes. A step's portable kernel comes first, and below
/// it the others that an executor may pick in its place, one of each kind.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Listing { plan: self, choices: None }.fmt(f)
    }
}

/// A plan with the kernels that were picked, and no others. See [`Plan::with`].
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    plan: &'a Plan,
    choices: Option<&'a Choices>,
}

impl Plan {
    /// The dispatch list as it runs with these choices, which an executor tells
    /// ([`Executor::chosen`](crate::exec::Executor::chosen)).
    pub fn with<'a>(&'a self, choices: &'a Choices) -> Listing<'a> {
        Listing { plan: self, choices: Some(choices) }
    }
}

impl Listing<'_> {
    /// The kernel that stands in a step's own line.
    fn first<'a>(&self, step: &'a Step) -> Candidate<'a> {
        let portable = step.candidates().next().expect("every step has a portable kernel");
        let Some(choices) = self.choices else { return portable };
        Candidate { name: step.name_by(choices), ..choices.of(step).unwrap_or(portable) }
    }

    /// The other kinds of kernel, each by its first, and how many more there are of it.
    fn others<'a>(&self, step: &'a Step) -> Vec<(Candidate<'a>, usize)> {
        let mut kinds: Vec<(Candidate<'_>, usize)> = Vec::new();
        let all = step.candidates().skip(1);
        for candidate in all.take(if self.choices.is_none() { usize::MAX } else { 0 }) {
            let like = |other: &Candidate<'_>| (other.style, other.launch.kernel) == (candidate.style, candidate.launch.kernel);
            match kinds.iter_mut().find(|(other, _)| like(other)) {
                Some((_, more)) => *more += 1,
                None => kinds.push((candidate, 0)),
            }
        }
        kinds
    }
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { capacity, steps, slots, leaves, packs, .. } = self.plan;
        let place = |operand: &Operand| match operand.place {
            Place::Leaf(_) => format!("{}", operand.ty),
            Place::Slot(slot) => format!("{}@{slot}", operand.ty),
        };
        let shown = |step| std::iter::once(self.first(step)).chain(self.others(step).into_iter().map(|(candidate, _)| candidate));
        let wide = steps.iter().flat_map(shown).map(|candidate| candidate.name.len()).max().unwrap_or(0);
        writeln!(f, "{:>3}  {:<20} {:<wide$} {:>10}  operands -> result, `@` and the slot", "#", "layer", "kernel", "workgroups")?;
        for (i, step) in steps.iter().enumerate() {
            let operands: Vec<String> = step.inputs.iter().map(place).collect();
            let results: Vec<String> = step.outputs().map(|operand| place(&operand)).collect();
            let result = if results.is_empty() { "(in place)".to_owned() } else { results.join(" · ") };
            let Candidate { name, launch, .. } = self.first(step);
            let count = launch.workgroups.count(*capacity);
            writeln!(f, "{i:>3}  {:<20} {name:<wide$} {count:>10}  {} -> {result}", step.label, operands.join(" · "))?;
            for (Candidate { name, style, launch, .. }, more) in self.others(step) {
                let count = launch.workgroups.count(*capacity);
                let more = if more == 0 { String::new() } else { format!("  and {more} more of other tiles") };
                writeln!(f, "     {:<20} {name:<wide$} {count:>10}{more}", format!("or {style}"))?;
            }
        }
        writeln!(f, "\n{:>4}  {:>12}  values", "slot", "bytes")?;
        for (i, slot) in slots.iter().enumerate() {
            writeln!(f, "{i:>4}  {:>12}  {}", slot.bytes, slot.tensors.len())?;
        }
        if !packs.is_empty() {
            writeln!(f, "\n{:>4}  {:>12}  in one buffer", "pack", "bytes")?;
        }
        for (i, pack) in packs.iter().enumerate() {
            let what = if pack.is_of_leaves() { "leaves" } else { "slots" };
            writeln!(f, "{i:>4}  {:>12}  {} {what}", pack.bytes, pack.members.len())?;
        }
        writeln!(f, "\ncapacity    {capacity:>12} images")?;
        writeln!(f, "slots       {:>12} bytes in {}", self.plan.slot_bytes(), slots.len())?;
        write!(f, "leaves      {:>12} bytes in {}", self.plan.leaf_bytes(), leaves.len())
    }
}
