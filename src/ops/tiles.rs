//! How the tiled kernels of matrix products are cut: what is usual, and what else a tuner may try.

use super::{Launch, Style, Variant};

/// Into what a tiled kernel cuts its result; the constants of the same names in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// Rows and columns that one workgroup computes.
    pub(crate) tile: [usize; 2],
    /// Terms of the sums that are staged in shared memory at a time.
    pub(crate) step: usize,
    /// Rows and columns that one invocation computes, each 4 or 8.
    pub(crate) block: [usize; 2],
}

const fn tiles(tile: [usize; 2], step: usize, block: [usize; 2]) -> Tiles {
    Tiles { tile, step, block }
}

/// For many columns, and for few.
const WIDE: Tiles = tiles([64, 64], 16, [4, 4]);
const NARROW: Tiles = tiles([128, 32], 16, [4, 4]);

/// Everything worth a try. The largest takes 12 KiB of shared memory and the rows' windows beside it; none has more than 256
/// invocations, as some adapters allow no more.
const ALL: [Tiles; 16] = [
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
];

impl Tiles {
    /// The usual ones for a result of so many columns: of each group, if they are in groups.
    pub(crate) fn usual(columns: usize) -> Self {
        if columns <= 32 { NARROW } else { WIDE }
    }

    /// Those worth a try for so many columns beside `usual`: none that is twice as wide as the result, nor the narrowest for a wide one.
    fn others(usual: Self, columns: usize) -> impl Iterator<Item = Self> {
        let fits = move |width: usize| width < 2 * columns.max(17) && (width > 16 || columns <= 16);
        ALL.into_iter().filter(move |&tiles| tiles != usual && fits(tiles.tile[1]))
    }

    /// Invocations of a workgroup.
    pub(crate) fn lanes(self) -> usize {
        self.tile[0] / self.block[0] * (self.tile[1] / self.block[1])
    }

    /// Tiles across so many columns.
    pub(crate) fn across(self, columns: usize) -> usize {
        columns.div_ceil(self.tile[1])
    }

    /// The constants of the kernels.
    pub(crate) fn constants(self) -> [(&'static str, f64); 5] {
        let Self { tile: [rows, columns], step, block: [block_rows, block_columns] } = self;
        let values = [("TILE_M", rows), ("TILE_N", columns), ("STEP", step), ("BLOCK_M", block_rows), ("BLOCK_N", block_columns)];
        values.map(|(name, value)| (name, value as f64))
    }

    /// A variant for all that are worth a try and that `legal` allows, beside `usual` which the portable kernel has. Their names:
    /// kernel, tile and step, block.
    pub(crate) fn variants(usual: Self, columns: usize, legal: fn(Self) -> bool, launch: impl Fn(Self) -> Launch) -> Vec<Variant> {
        let variant = |tiles: Self| {
            let launch = launch(tiles);
            let Self { tile: [rows, columns], step, block } = tiles;
            let name = format!("{}/{rows}x{columns}x{step}/{}x{}", launch.kernel.name, block[0], block[1]);
            Variant { name, style: Style::Portable, matrices: None, launch }
        };
        Self::others(usual, columns).filter(|&tiles| legal(tiles)).map(variant).collect()
    }

    /// Pairs worth a try, for a kernel that does two products of so many columns in one dispatch: with the same invocations, blocks and
    /// steps, the first one's as [`one_row_each`](Self::one_row_each). The pair of the usual ones, which is such a pair, is not among them.
    pub(crate) fn pairs(usual: [Self; 2], columns: [usize; 2]) -> Vec<[Self; 2]> {
        let [first, second] = [0, 1].map(|i| std::iter::once(usual[i]).chain(Self::others(usual[i], columns[i])).collect::<Vec<_>>());
        let alike = |a: &Self, b: &Self| (a.lanes(), a.step, a.block) == (b.lanes(), b.step, b.block);
        let pairs = first.into_iter().filter(|tiles| tiles.one_row_each());
        let pairs = pairs.flat_map(|a| second.iter().filter(move |b| alike(&a, b)).map(move |&b| [a, b]));
        pairs.filter(|pair| *pair != usual).collect()
    }

    /// For kernels in which any invocation can stage any row.
    pub(crate) fn any(self) -> bool {
        true
    }

    /// For kernels in which an invocation stages one row, again and again, and one column's sum is one invocation's.
    pub(crate) fn one_row_each(self) -> bool {
        self.lanes().is_multiple_of(self.tile[0]) && self.lanes() >= self.tile[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tiles_keep_to_the_limits_that_every_adapter_has() {
        for tiles in ALL {
            let Tiles { tile: [rows, columns], step, block } = tiles;
            assert!(tiles.lanes() <= 256 && tiles.lanes() >= 32 && tiles.lanes().is_multiple_of(step), "{tiles:?}");
            assert!(block.iter().all(|edge| [4, 8].contains(edge)), "{tiles:?}");
            let bytes = 4 * ((rows + 1 + columns + 1) * step + 3 * rows);
            assert!(bytes <= 16 * 1024, "{tiles:?} takes {bytes} bytes");
        }
        assert!(WIDE.one_row_each() && NARROW.one_row_each());
        let distinct: std::collections::HashSet<String> = ALL.iter().map(|tiles| format!("{tiles:?}")).collect();
        assert_eq!(distinct.len(), ALL.len());
    }

    #[test]
    fn pairs_have_what_one_kernel_needs_of_both_and_keep_to_the_limits() {
        for columns in [[64, 32], [128, 64], [36, 17], [4, 6], [512, 3]] {
            let usual = columns.map(Tiles::usual);
            let pairs = Tiles::pairs(usual, columns);
            assert!((2..=24).contains(&pairs.len()) && !pairs.contains(&usual), "{} for {columns:?}", pairs.len());
            for [a, b] in pairs.into_iter().chain([usual]) {
                assert!((a.lanes(), a.step, a.block) == (b.lanes(), b.step, b.block) && a.one_row_each(), "{a:?} {b:?}");
                let staged = [0, 1].map(|i| a.tile[i].max(b.tile[i] + 4)).iter().sum::<usize>() * a.step;
                assert!(4 * (staged + 3 * b.tile[0]) <= 16 * 1024, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn some_tiles_are_worth_a_try_for_any_columns_and_none_has_too_many() {
        for columns in [1, 10, 32, 33, 64, 128, 512] {
            for legal in [Tiles::any, Tiles::one_row_each] {
                let count = Tiles::others(Tiles::usual(columns), columns).filter(|&tiles| legal(tiles)).count();
                assert!((4..=14).contains(&count), "{count} for {columns} columns");
            }
        }
    }
}
