//! How the tiled kernels of matrix products are cut: what is usual, and what else a tuner may try.

use super::{Launch, Style, Variant};

/// Into what a tiled kernel cuts its result; the constants of the same names in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// Rows and columns that one workgroup computes.
    pub(crate) tile: [usize; 2],
    /// Terms of the sums that are staged in shared memory at a time.
    pub(crate) step: usize,
    /// Rows and columns that one invocation computes, each 4 or 8. With 4 by 4 a GPU loads twice as much from shared memory for a product as
    /// with 8 by 8, which take some 170 registers.
    pub(crate) block: [usize; 2],
    /// Invocations for each block, which share the terms of every step. More than one is for the kernels that have a constant `PARTS`.
    pub(crate) parts: usize,
}

const fn tiles(tile: [usize; 2], step: usize, block: [usize; 2]) -> Tiles {
    Tiles { tile, step, block, parts: 1 }
}

const fn in_parts(tile: [usize; 2], step: usize, block: [usize; 2], parts: usize) -> Tiles {
    Tiles { tile, step, block, parts }
}

/// For many columns, and for few.
const WIDE: Tiles = tiles([64, 64], 16, [4, 4]);
const NARROW: Tiles = tiles([128, 32], 16, [4, 4]);

/// For kernels that can have parts: as many workgroups as keep a large GPU evenly busy, in the largest blocks.
const EVEN: Tiles = in_parts([64, 32], 16, [8, 8], 4);

/// For so few sums that each has to be many workgroups' and many invocations' to keep a large GPU busy.
const DEEP: Tiles = in_parts([32, 32], 32, [8, 8], 8);

/// By how much a pitch is longer than what is staged, at most, in any kernel.
const PITCH: usize = 13;

/// Words that a list of taps takes, at most.
const TAPS: usize = 129;

/// Fewer workgroups than these at a batch of 64 are few.
const FEW: usize = 128;

/// Everything worth a try. The largest takes 13 KiB of shared memory and the rows' windows beside it; none has more than 256
/// invocations, as some adapters allow no more.
const ALL: [Tiles; 23] = [
    WIDE,
    tiles([64, 64], 16, [8, 4]),
    tiles([64, 64], 16, [8, 8]),
    tiles([64, 64], 8, [4, 4]),
    tiles([128, 64], 16, [8, 4]),
    tiles([128, 64], 8, [8, 8]),
    tiles([128, 128], 8, [8, 8]),
    tiles([32, 64], 16, [4, 4]),
    NARROW,
    tiles([128, 32], 16, [8, 4]),
    tiles([128, 32], 8, [8, 8]),
    tiles([256, 32], 8, [8, 4]),
    tiles([64, 32], 16, [4, 4]),
    tiles([64, 32], 16, [8, 4]),
    tiles([32, 32], 16, [4, 4]),
    tiles([128, 16], 16, [4, 4]),
    in_parts([64, 64], 16, [8, 8], 2),
    in_parts([128, 32], 16, [8, 8], 2),
    EVEN,
    in_parts([64, 32], 32, [8, 8], 4),
    DEEP,
    in_parts([32, 32], 32, [8, 4], 4),
    in_parts([32, 32], 32, [4, 4], 4),
];

impl Tiles {
    /// The usual ones for a result of so many columns: of each group, if they are in groups.
    pub(crate) fn usual(columns: usize) -> Self {
        if columns <= 32 { NARROW } else { WIDE }
    }

    /// The usual ones for a kernel that can have parts, of so many rows for each image.
    pub(crate) fn usual_in_parts(per_image: usize, columns: usize) -> Self {
        let workgroups = (64 * per_image).div_ceil(EVEN.tile[0]) * EVEN.across(columns);
        if workgroups < FEW { DEEP } else { EVEN }
    }

    /// The usual ones for a kernel that can have parts, and whose sums are cut into as many as it takes, of so many rows.
    pub(crate) fn usual_of_rows(rows: usize) -> Self {
        if rows <= DEEP.tile[0] { DEEP } else { EVEN }
    }

    /// Those worth a try for so many columns beside `usual`: none that is twice as wide as the result, nor the narrowest for a wide one.
    fn others(usual: Self, columns: usize) -> impl Iterator<Item = Self> {
        let fits = move |width: usize| width < 2 * columns.max(17) && (width > 16 || columns <= 16);
        ALL.into_iter().filter(move |&tiles| tiles != usual && fits(tiles.tile[1]))
    }

    /// Invocations of a workgroup.
    pub(crate) fn lanes(self) -> usize {
        self.tile[0] / self.block[0] * (self.tile[1] / self.block[1]) * self.parts
    }

    /// Tiles across so many columns.
    pub(crate) fn across(self, columns: usize) -> usize {
        columns.div_ceil(self.tile[1])
    }

    /// The constants of the kernels.
    pub(crate) fn constants(self) -> [(&'static str, f64); 5] {
        let Self { tile: [rows, columns], step, block: [block_rows, block_columns], .. } = self;
        let values = [("TILE_M", rows), ("TILE_N", columns), ("STEP", step), ("BLOCK_M", block_rows), ("BLOCK_N", block_columns)];
        values.map(|(name, value)| (name, value as f64))
    }

    /// A variant for all that are worth a try and that `legal` allows, beside `usual` which the portable kernel has. Their names:
    /// kernel, tile and step, block.
    pub(crate) fn variants(usual: Self, columns: usize, legal: fn(Self) -> bool, launch: impl Fn(Self) -> Launch) -> Vec<Variant> {
        let variant = |tiles: Self| {
            let launch = launch(tiles);
            let [rows, columns] = tiles.tile;
            let name = format!("{}/{rows}x{columns}x{}", launch.kernel.name, tiles.shares());
            Variant { name, style: Style::Portable, matrices: None, launch }
        };
        Self::others(usual, columns).filter(|&tiles| legal(tiles)).map(variant).collect()
    }

    /// What tells the tiles of one size apart: step, block, and parts if there are several.
    pub(crate) fn shares(self) -> String {
        let Self { step, block: [rows, columns], parts, .. } = self;
        if parts == 1 { format!("{step}/{rows}x{columns}") } else { format!("{step}/{rows}x{columns}x{parts}") }
    }

    /// Pairs worth a try, for a kernel that does two products of so many columns in one dispatch: with the same invocations, blocks and
    /// steps. The pair of the usual ones, which is such a pair, is not among them.
    pub(crate) fn pairs(usual: [Self; 2], columns: [usize; 2]) -> Vec<[Self; 2]> {
        let [first, second] = [0, 1].map(|i| std::iter::once(usual[i]).chain(Self::others(usual[i], columns[i])).collect::<Vec<_>>());
        let alike = |a: &Self, b: &Self| (a.lanes(), a.step, a.block, a.parts) == (b.lanes(), b.step, b.block, b.parts);
        let pairs = first.into_iter().filter(|tiles| tiles.in_parts());
        let pairs = pairs.flat_map(|a| second.iter().filter(move |b| alike(&a, b)).map(move |&b| [a, b]));
        // What they stage, one with a pitch, and a list of taps.
        let fits = |[a, b]: &[Self; 2]| {
            let staged: usize = [0, 1].map(|i| a.tile[i].max(b.tile[i] + PITCH)).iter().sum();
            4 * (staged * a.step + TAPS) <= 16 * 1024
        };
        pairs.filter(|pair| *pair != usual && fits(pair)).collect()
    }

    /// For kernels that can have parts: with those, fewer of the others are worth a try.
    pub(crate) fn in_parts(self) -> bool {
        self.parts > 1 || (self.step == 16 && self.block != [8, 8] && self.tile[0] >= 64 && self.tile != [64, 32])
    }

    /// For kernels that can have parts and in which an invocation stages one row, again and again.
    pub(crate) fn in_parts_of_one_row_each(self) -> bool {
        self.in_parts() && self.lanes().is_multiple_of(self.tile[0])
    }

    /// For kernels in which any invocation can stage any row.
    pub(crate) fn any(self) -> bool {
        self.parts == 1
    }

    /// For kernels in which an invocation stages one row, again and again, and one column's sum is one invocation's.
    pub(crate) fn one_row_each(self) -> bool {
        self.parts == 1 && self.lanes().is_multiple_of(self.tile[0]) && self.lanes() >= self.tile[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tiles_keep_to_the_limits_that_every_adapter_has() {
        for tiles in ALL {
            let Tiles { tile: [rows, columns], step, block, parts } = tiles;
            // The parts' sums, eight of them at a time, lie where all else is staged.
            assert!(parts == 1 || (step.is_multiple_of(4 * parts) && tiles.lanes() * 8 <= (rows + columns) * step));
            assert!(tiles.lanes() <= 256 && tiles.lanes() >= 32 && tiles.lanes().is_multiple_of(step), "{tiles:?}");
            assert!(block.iter().all(|edge| [4, 8].contains(edge)), "{tiles:?}");
            let bytes = 4 * ((rows + PITCH + columns) * step + 3 * rows);
            assert!(bytes <= 16 * 1024, "{tiles:?} takes {bytes} bytes");
            // Kernels that list taps have a pitch for the columns too, and an invocation stages at most four rows.
            let listing = 4 * ((rows + columns + 2 * PITCH) * step + TAPS);
            assert!(
                !tiles.in_parts() || (listing <= 16 * 1024 && rows * (step / 4) <= 4 * tiles.lanes()),
                "{tiles:?} takes {listing} bytes"
            );
        }
        assert!(WIDE.one_row_each() && NARROW.one_row_each());
        assert!(EVEN.in_parts_of_one_row_each() && DEEP.in_parts_of_one_row_each());
        let distinct: std::collections::HashSet<String> = ALL.iter().map(|tiles| format!("{tiles:?}")).collect();
        assert_eq!(distinct.len(), ALL.len());
    }

    #[test]
    fn pairs_have_what_one_kernel_needs_of_both_and_keep_to_the_limits() {
        for columns in [[64, 32], [128, 64], [36, 17], [4, 6], [512, 3]] {
            for usual in [[EVEN; 2], [DEEP; 2]] {
                let pairs = Tiles::pairs(usual, columns);
                assert!((7..=17).contains(&pairs.len()) && !pairs.contains(&usual), "{} for {columns:?}", pairs.len());
                for [a, b] in pairs.into_iter().chain([usual]) {
                    assert!((a.lanes(), a.step, a.block, a.parts) == (b.lanes(), b.step, b.block, b.parts), "{a:?} {b:?}");
                    let staged = [0, 1].map(|i| a.tile[i].max(b.tile[i] + PITCH)).iter().sum::<usize>() * a.step;
                    assert!(4 * (staged + TAPS) <= 16 * 1024, "{a:?} {b:?}");
                    assert!(b.tile[0] * (b.step / 4) <= 4 * b.lanes(), "{b:?}: an invocation stages at most four rows");
                }
            }
        }
    }

    #[test]
    fn some_tiles_are_worth_a_try_for_any_columns_and_none_has_too_many() {
        for columns in [1, 10, 32, 33, 64, 128, 512] {
            for legal in [Tiles::any, Tiles::one_row_each, Tiles::in_parts, Tiles::in_parts_of_one_row_each] {
                let count = Tiles::others(Tiles::usual(columns), columns).filter(|&tiles| legal(tiles)).count();
                assert!((4..=17).contains(&count), "{count} for {columns} columns");
            }
        }
    }
}
