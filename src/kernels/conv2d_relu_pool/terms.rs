//! What both gradients come down to: a sum of scaled pieces of memory, few enough elements of it to stay in registers.

use pulp::Simd;

/// Terms of a sum: pieces of a source, and what each is multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// Where each piece begins.
    pub(super) at: &'a [u32],
    /// Its factor.
    pub(super) by: &'a [f32],
}

/// Sums of a piece: vectors of some rows.
type Sums<S, const R: usize, const N: usize> = [[<S as Simd>::f32s; N]; R];

/// Does something for each of a piece's `R` × `N` sums: `each_sum!(R, N, do)` is `do!(r, n)` for each. Indices are literals, since sums that
/// a loop indexes are kept in memory.
macro_rules! each_sum {
    ($rows:ident, $vectors:ident, $do:ident) => {
        each_sum!(@ $rows, $vectors, $do: 0: 0 1 2 3 4 5; 1: 0 1 2 3 4 5; 2: 0 1 2 3 4 5;)
    };
    (@ $rows:ident, $vectors:ident, $do:ident: $($r:literal: $($n:literal)*;)*) => { $($(
        if $r < $rows && $n < $vectors {
            $do!($r, $n);
        }
    )*)* };
}
pub(super) use each_sum;

/// Adds to `sums[r][n]` the terms `by · source[at + rows[r] + n · lanes ..]`, in a fixed order.
///
/// A vector may reach over the end of its row, into what follows it; of what is behind the end of `source` it sees zeros.
#[inline(always)]
pub(super) fn add<S: Simd, const R: usize, const N: usize>(
    simd: S,
    terms: Terms<'_>,
    source: &[f32],
    rows: [usize; R],
    sums: Sums<S, R, N>,
) -> Sums<S, R, N> {
    // A sum waits some four steps for its last addition, and two additions can begin in each: where sums are few, there are as many
    // once more, which take turns.
    let zeros = [[simd.splat_f32s(0.0); N]; R];
    let (mut even, mut odd) = (sums, zeros);
    // Indexed, since a call within this loop, which an adapter of iterators may be, would put every sum to memory and back.
    let ((at, last_at), (by, last_by)) = (terms.at.as_chunks::<2>(), terms.by.as_chunks::<2>());
    for i in 0..at.len().min(by.len()) {
        even = add_one::<S, R, N>(simd, at[i][0] as usize, by[i][0], source, rows, even);
        if R * N < 8 {
            odd = add_one::<S, R, N>(simd, at[i][1] as usize, by[i][1], source, rows, odd);
        } else {
            even = add_one::<S, R, N>(simd, at[i][1] as usize, by[i][1], source, rows, even);
        }
    }
    if let ([at], [by]) = (last_at, last_by) {
        even = add_one::<S, R, N>(simd, *at as usize, *by, source, rows, even);
    }
    if R * N < 8 {
        macro_rules! total {
            ($r:literal, $n:literal) => {
                even[$r][$n] = simd.add_f32s(even[$r][$n], odd[$r][$n])
            };
        }
        each_sum!(R, N, total);
    }
    even
}

/// Adds one term.
#[inline(always)]
fn add_one<S: Simd, const R: usize, const N: usize>(
    simd: S,
    at: usize,
    by: f32,
    source: &[f32],
    rows: [usize; R],
    mut sums: Sums<S, R, N>,
) -> Sums<S, R, N> {
    let by = simd.splat_f32s(by);
    let mut inside = true;
    for row in rows {
        inside &= at + row + N * S::F32_LANES <= source.len();
    }
    if inside {
        macro_rules! whole {
            ($r:literal, $n:literal) => {{
                // SAFETY: `inside` says so of every row.
                #[allow(unsafe_code, reason = "checked for the whole row")]
                let value = unsafe { source.as_ptr().add(at + rows[$r]).cast::<S::f32s>().add($n).read_unaligned() };
                sums[$r][$n] = simd.mul_add_f32s(by, value, sums[$r][$n]);
            }};
        }
        each_sum!(R, N, whole);
    } else {
        macro_rules! part {
            ($r:literal, $n:literal) => {{
                let from = (at + rows[$r] + $n * S::F32_LANES).min(source.len());
                let value = simd.partial_load_f32s(&source[from..(from + S::F32_LANES).min(source.len())]);
                sums[$r][$n] = simd.mul_add_f32s(by, value, sums[$r][$n]);
            }};
        }
        each_sum!(R, N, part);
    }
    sums
}

/// A part of a patch that [`add`] sums at once: so many runs from number `run` on, and of each so many vectors from number
/// `vector` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) run: usize,
    pub(super) vector: usize,
    pub(super) shape: Shape,
}

/// Runs and vectors of a piece.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    R1N1,
    R1N2,
    R1N4,
    R1N6,
    R3N1,
    R3N2,
    R3N4,
    R3N6,
}

/// Pieces that cover a patch of `runs` runs, each of `vectors` vectors. A piece has at most `most` vectors.
pub(super) fn cover(runs: usize, vectors: usize, most: usize, pieces: &mut Vec<Piece>) {
    pieces.clear();
    let together = if runs.is_multiple_of(3) && most >= 3 { 3 } else { 1 };
    for run in (0..runs).step_by(together) {
        let mut vector = 0;
        while vector < vectors {
            let room = (vectors - vector).min(most / together);
            let (len, shape) = match (room, together) {
                (6.., 1) => (6, Shape::R1N6),
                (4..=5, 1) => (4, Shape::R1N4),
                (2..=3, 1) => (2, Shape::R1N2),
                (_, 1) => (1, Shape::R1N1),
                (6.., _) => (6, Shape::R3N6),
                (4..=5, _) => (4, Shape::R3N4),
                (2..=3, _) => (2, Shape::R3N2),
                (_, _) => (1, Shape::R3N1),
            };
            pieces.push(Piece { run, vector, shape });
            vector += len;
        }
    }
}

/// Calls a generic function with a piece's shape as its constants: `with_shape!(piece, f::<S>(arguments))`.
macro_rules! with_shape {
    ($shape:expr, $f:ident::<$s:ident>($($argument:expr),* $(,)?)) => {
        match $shape {
            $crate::kernels::conv2d_relu_pool::terms::Shape::R1N1 => $f::<$s, 1, 1>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R1N2 => $f::<$s, 1, 2>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R1N4 => $f::<$s, 1, 4>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R1N6 => $f::<$s, 1, 6>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R3N1 => $f::<$s, 3, 1>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R3N2 => $f::<$s, 3, 2>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R3N4 => $f::<$s, 3, 4>($($argument),*),
            $crate::kernels::conv2d_relu_pool::terms::Shape::R3N6 => $f::<$s, 3, 6>($($argument),*),
        }
    };
}
pub(super) use with_shape;
