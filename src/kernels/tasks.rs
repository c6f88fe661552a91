//! Handing work out: chunks of what is written, over the thread pool that the caller is in.
//!
//! Outside a pool everything runs on the caller's own thread: waking others costs more than a small network takes for one image.
//! The results are the same, since chunks do not depend on threads.

use rayon::prelude::*;

/// Whether there are other threads to hand work to.
pub(crate) fn in_pool() -> bool {
    rayon::current_thread_index().is_some()
}

/// Whether the caller does all chunks.
fn alone<T>(data: &[T], len: usize) -> bool {
    data.len() <= len || !in_pool()
}

/// Calls `task(number, chunk)` for each chunk of `len` elements.
pub(crate) fn share<T: Send>(data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    each(data, len, &task);
}

/// [`share`], of two slices in step: `lens` are the chunks of each.
pub(crate) fn share_both<T: Send, U: Send>(
    first: &mut [T],
    second: &mut [U],
    lens: [usize; 2],
    task: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    each_of_both(first, second, lens, &task);
}

// What follows is compiled once for all tasks of a type: an indirect call is nothing beside a task, and rayon's code is large.

fn each<T: Send>(data: &mut [T], len: usize, task: &(dyn Fn(usize, &mut [T]) + Sync)) {
    if alone(data, len) {
        data.chunks_mut(len).enumerate().for_each(|(i, chunk)| task(i, chunk));
    } else {
        data.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| task(i, chunk));
    }
}

type OfBoth<'a, T, U> = &'a (dyn Fn(usize, &mut [T], &mut [U]) + Sync);

fn each_of_both<T: Send, U: Send>(first: &mut [T], second: &mut [U], lens: [usize; 2], task: OfBoth<'_, T, U>) {
    let each = |(i, (a, b)): (usize, (&mut [T], &mut [U]))| task(i, a, b);
    if alone(first, lens[0]) {
        first.chunks_mut(lens[0]).zip(second.chunks_mut(lens[1])).enumerate().for_each(each);
    } else {
        first.par_chunks_mut(lens[0]).zip(second.par_chunks_mut(lens[1])).enumerate().for_each(each);
    }
}
