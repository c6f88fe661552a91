//! Kernels that multiply by cooperative matrices: what an adapter must have for them, how they are cut, and their texts.
//!
//! A cooperative matrix is held by the invocations of a subgroup together, and two of them are multiplied in one operation where a
//! GPU has units for that (tensor cores, matrix cores, `simdgroup_matrix`). Factors are f16 and sums f32, so these kernels exist
//! only for operands or results that are stored as f16, which is mixed precision: no other plan has them among its candidates.
//!
//! The files are written for matrices of 8×8. With 16 in place of each 8 that names a size they are those for 16×16. And those that
//! stage fours of elements are written for matrices that are loaded from an array of such: with single elements in their place they are
//! those for Metal, whose matrices are not.

use serde::Serialize;

use super::stored::interned;
use super::{Kernel, Launch, Style, Variant};
use crate::shape::DType;

/// The cooperative matrices that a kernel is written for: f16 by f16 to f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Matrices {
    /// Rows and columns, of each of the three.
    pub edge: usize,
    /// Invocations of a subgroup, which hold them together.
    pub subgroup: usize,
}

/// Into what a kernel cuts its result; the constants of the same names in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixTiles {
    pub(crate) matrices: Matrices,
    /// Rows and columns that one workgroup computes.
    pub(crate) tile: [usize; 2],
    /// Terms of the sums that are staged in shared memory at a time.
    pub(crate) step: usize,
    /// Whether kernels that stage fours keep single elements in shared memory.
    pub(crate) single: bool,
}

const fn tiles(edge: usize, subgroup: usize, tile: [usize; 2], step: usize) -> MatrixTiles {
    MatrixTiles { matrices: Matrices { edge, subgroup }, tile, step, single: false }
}

/// With single elements in shared memory.
const fn single(edge: usize, subgroup: usize, tile: [usize; 2], step: usize) -> MatrixTiles {
    MatrixTiles { single: true, ..tiles(edge, subgroup, tile, step) }
}

/// Everything worth a try: matrices of 16×16 by 32 invocations (NVIDIA, AMD) or 64 (AMD), of 8×8 by 32 (Apple) or 8 (Mesa's
/// software adapter, one of whose tiles is there for what Apple's have to run somewhere else too). None has more than 256 invocations, nor
/// takes more than [`WORKGROUP_BYTES`].
const ALL: [MatrixTiles; 16] = [
    tiles(16, 32, [64, 64], 32),
    tiles(16, 32, [64, 64], 16),
    tiles(16, 32, [128, 64], 16),
    tiles(16, 32, [128, 32], 32),
    tiles(16, 32, [64, 32], 32),
    tiles(16, 32, [32, 32], 32),
    tiles(16, 64, [64, 64], 32),
    tiles(16, 64, [64, 64], 16),
    tiles(16, 64, [128, 32], 32),
    tiles(16, 64, [64, 32], 32),
    single(8, 32, [32, 32], 32),
    single(8, 32, [32, 64], 16),
    single(8, 32, [64, 32], 16),
    tiles(8, 8, [32, 32], 16),
    tiles(8, 8, [64, 32], 32),
    single(8, 8, [32, 32], 32),
];

/// Workgroup memory that these kernels may take; adapters promise half as much.
pub(crate) const WORKGROUP_BYTES: u32 = 32 * 1024;

impl MatrixTiles {
    /// The constants of the kernels.
    pub(crate) fn constants(self) -> [(&'static str, f64); 4] {
        let Self { matrices, tile: [rows, columns], step, .. } = self;
        let values = [("TILE_M", rows), ("TILE_N", columns), ("STEP", step), ("SUBGROUP", matrices.subgroup)];
        values.map(|(name, value)| (name, value as f64))
    }

    /// The kernel's text for these.
    pub(crate) fn cut(self, kernel: Kernel) -> Kernel {
        sized(if self.single { singled(kernel) } else { kernel }, self.matrices.edge)
    }

    /// A variant for each that is worth a try for so many columns, if one of these is stored as f16. Their names: kernel, tile and
    /// step, subgroup.
    pub(crate) fn variants(stored: &[DType], columns: usize, launch: impl Fn(Self) -> Launch) -> Vec<Variant> {
        let worth = |tiles: &Self| stored.contains(&DType::F16) && tiles.tile[1] < 2 * columns.max(17);
        let variant = |tiles: Self| {
            let launch = launch(tiles);
            let Self { matrices, tile: [rows, columns], step, .. } = tiles;
            let name = format!("{}/{rows}x{columns}x{step}/{}", launch.kernel.name, matrices.subgroup);
            Variant { name, style: Style::Portable, matrices: Some(matrices), launch }
        };
        ALL.into_iter().filter(worth).map(variant).collect()
    }
}

/// The kernel for matrices of this size.
///
/// # Panics
/// If the text does not have the lines that name the size.
fn sized(kernel: Kernel, edge: usize) -> Kernel {
    if edge == 8 {
        return kernel;
    }
    interned(format!("{}{edge}", kernel.name), || {
        let texts = [("const EDGE = 8u;", 1), ("coop_mat8x8<", 3)];
        texts.into_iter().fold(kernel.source.to_owned(), |text, (eight, count)| {
            assert_eq!(text.matches(eight).count(), count, "{}: {eight:?}", kernel.name);
            text.replace(eight, &eight.replace('8', &edge.to_string()))
        })
    })
}

/// A line of the kernels that stage fours, with which a kernel says that it does.
const FOURS: &str = "const WIDTH = 4u;";

/// The kernel with single elements in shared memory; the same one if it stages no fours.
///
/// # Panics
/// If the text does not have the lines that name a four.
fn singled(kernel: Kernel) -> Kernel {
    if !kernel.source.contains(FOURS) {
        return kernel;
    }
    interned(format!("{}_single", kernel.name), || {
        let four = |element: &dyn Fn(usize, &str) -> String| [(0, "x"), (1, "y"), (2, "z"), (3, "w")].map(|(i, part)| element(i, part));
        let stored = |array: &str| four(&|i, part| format!("{array}[4u * at + {i}u] = four.{part};")).join(" ");
        let loaded = |array: &str| four(&|i, _| format!("{array}[4u * at + {i}u]")).join(", ");
        let texts = [
            (FOURS, "const WIDTH = 1u;".to_owned(), 1..=1),
            ("alias Staged = vec4<f16>;", "alias Staged = f16;".to_owned(), 1..=1),
            ("alias Summed = vec4<f32>;", "alias Summed = f32;".to_owned(), 0..=1),
            ("staged[at] = four;", stored("staged"), 1..=1),
            ("sums[at] = four;", stored("sums"), 0..=1),
            ("return sums[at];", format!("return vec4({});", loaded("sums")), 0..=1),
        ];
        texts.into_iter().fold(kernel.source.to_owned(), |text, (fours, singles, counts)| {
            assert!(counts.contains(&text.matches(fours).count()), "{}: {fours:?}", kernel.name);
            text.replace(fours, &singles)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tiles_keep_to_the_limits() {
        for tiles in ALL {
            let MatrixTiles { matrices: Matrices { edge, subgroup }, tile: [rows, columns], step, .. } = tiles;
            let block = 2 * edge;
            assert!(rows.is_multiple_of(block) && columns.is_multiple_of(block) && step.is_multiple_of(edge), "{tiles:?}");
            let lanes = rows / block * (columns / block) * subgroup;
            assert!(lanes <= 256 && lanes.is_multiple_of(step) && lanes >= columns, "{tiles:?}: {lanes} invocations");
            // What an invocation stages four by four, in no more than two turns; and room for what it adds up of the bias.
            assert!(rows.max(columns) / 4 * (step / 4) <= 2 * lanes && step <= 2 * rows, "{tiles:?}: {lanes} invocations");
            let bytes = 2 * (rows * (step + 8)).max((rows + 8) * step) + 2 * (columns * (step + 8)).max((columns + 8) * step);
            assert!(bytes + 4 * (rows / 2 * columns + 4 * rows) <= WORKGROUP_BYTES as usize, "{tiles:?}");
        }
        let distinct: std::collections::HashSet<String> = ALL.iter().map(|tiles| format!("{tiles:?}")).collect();
        assert_eq!(distinct.len(), ALL.len());
    }

    #[test]
    fn every_size_has_tiles_for_any_columns_and_f32_alone_has_none() {
        let launch =
            |_| Launch { kernel: Kernel { name: "none", source: "" }, constants: Vec::new(), workgroups: crate::ops::Workgroups::fixed(1) };
        for columns in [3, 10, 32, 64, 128] {
            let all = MatrixTiles::variants(&[DType::F32, DType::F16], columns, launch);
            for matrices in ALL.map(|tiles| tiles.matrices) {
                assert!(all.iter().any(|variant| variant.matrices == Some(matrices)), "{matrices:?} for {columns} columns");
            }
            assert!(MatrixTiles::variants(&[DType::F32; 2], columns, launch).is_empty());
        }
    }
}
