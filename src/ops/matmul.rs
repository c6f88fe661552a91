//! Matrix product. The flags let the backward pass read a factor transposed instead of copying it.

use super::{Cpu, Kernel, Launch, Reference, Rules, SHARERS, SPREAD, Tiles, Variant, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels::{self, gemm::Matrix};
use crate::shape::{DType, Shape, TensorType};

/// Into what the portable kernel cuts C.
const TILES: Tiles = Tiles { tile: [64, 64], step: 16, block: [4, 4], parts: 1 };

/// Rows and columns of the tile that one workgroup of the kernels of registers computes, of the whole one and of the narrow one; the rows are
/// `TILE` in them.
const REGISTERS: [[usize; 2]; 2] = [[32, 32], [16, 32]];

/// `C = op(A) · op(B)` of operands A and B, where `op` transposes if asked. M or K may be the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Matmul {
    /// A is stored `[K, M]`.
    pub transpose_a: bool,
    /// B is stored `[N, K]`.
    pub transpose_b: bool,
}

/// An extent of a product: a number, or `None` for the batch.
type Extent = Option<usize>;

impl Graph {
    /// Matrix product of `a` `[M, K]` and `b` `[K, N]`.
    pub fn matmul(&mut self, a: TensorId, b: TensorId) -> Result<TensorId> {
        self.apply(Matmul::default(), &[a, b])
    }
}

impl Matmul {
    /// The extents `(M, K)` of A and `(K, N)` of B, or `None` if one is no matrix.
    fn extents(&self, inputs: &[TensorType]) -> Option<[(Extent, Extent); 2]> {
        let matrix = |ty: TensorType, transpose: bool| {
            let (rows, columns) = match (ty.shape.is_batched(), ty.shape.inner()) {
                (true, &[columns]) => (None, Some(columns)),
                (false, &[rows, columns]) => (Some(rows), Some(columns)),
                _ => return None,
            };
            Some(if transpose { (columns, rows) } else { (rows, columns) })
        };
        Some([matrix(inputs[0], self.transpose_a)?, matrix(inputs[1], self.transpose_b)?])
    }

    /// M, N and K at this batch.
    fn sizes(&self, inputs: &[TensorType], batch: usize) -> [usize; 3] {
        let [(m, k), (_, n)] = self.extents(inputs).expect("shapes were checked when the graph was built");
        [m, n, k].map(|extent| extent.unwrap_or(batch))
    }
}

impl Matmul {
    /// The launch of the portable kernel.
    fn portable(&self, inputs: &[TensorType], tiles: Tiles) -> Launch {
        let mut launch = self.tiled(inputs, kernel!("matmul"), tiles.tile);
        launch.constants.extend(tiles.constants());
        launch
    }

    /// The launch of a kernel whose workgroup takes so many rows and columns of C.
    fn tiled(&self, inputs: &[TensorType], kernel: Kernel, [rows, columns]: [usize; 2]) -> Launch {
        let [(m, k), (_, n)] = self.extents(inputs).expect("shapes were checked when the graph was built");
        let n = n.expect("the batch is no extent of N");
        let constants = vec![
            ("M", m.unwrap_or(0) as f64),
            ("N", n as f64),
            ("K", k.unwrap_or(0) as f64),
            ("TRANSPOSE_A", f64::from(self.transpose_a)),
            ("TRANSPOSE_B", f64::from(self.transpose_b)),
        ];
        let per_image = usize::from(m.is_none());
        let workgroups = Workgroups { fixed: m.unwrap_or(0), per_image, tile: rows, times: n.div_ceil(columns) };
        Launch { kernel, constants, workgroups }
    }
}

impl Rules for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let show = |extent: Extent| extent.map_or("N (the batch)".to_owned(), |n| n.to_string());
        let floats = inputs.iter().all(|ty| ty.dtype == DType::F32);
        let problem = match self.extents(inputs) {
            Some([(m, k), (k_b, Some(n))]) if k == k_b && floats => {
                return Ok(TensorType::f32(m.map_or(Shape::batched(&[n]), |m| Shape::fixed(&[m, n]))));
            }
            Some([(_, k), (k_b, _)]) if k != k_b => format!("A has {} columns but B has {} rows", show(k), show(k_b)),
            Some([_, (_, None)]) => "the batch cannot be the columns of the result".to_owned(),
            Some(_) => "expected floats".to_owned(),
            None => format!("expected two matrices, got {} and {} axes", inputs[0].shape.rank(), inputs[1].shape.rank()),
        };
        let axes = [if self.transpose_a { "(K, M)" } else { "(M, K)" }, if self.transpose_b { "(N, K)" } else { "(K, N)" }];
        Err(Error::Shape { op: self.name(), problem, operands: vec![("A", inputs[0], axes[0]), ("B", inputs[1], axes[1])] })
    }

    // With C = A · B: dA = dC · Bᵀ and dB = Aᵀ · dC; a factor stored transposed has its gradient transposed too.
    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _c: TensorId, dc: TensorId) -> Result<Vec<Option<TensorId>>> {
        let [a, b] = [inputs[0], inputs[1]];
        let mut product = |transpose_a, transpose_b, x, y| graph.apply(Self { transpose_a, transpose_b }, &[x, y]);
        let da = if self.transpose_a { product(self.transpose_b, true, b, dc) } else { product(false, !self.transpose_b, dc, b) }?;
        let db = if self.transpose_b { product(true, self.transpose_a, dc, a) } else { product(!self.transpose_a, false, a, dc) }?;
        Ok(vec![Some(da), Some(db)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [a, b] = [&args.inputs[0], &args.inputs[1]];
        let k = a.extents[usize::from(!self.transpose_a)];
        let n = b.extents[usize::from(!self.transpose_b)];
        let m = a.extents[usize::from(self.transpose_a)];
        for row in 0..m {
            for column in 0..n {
                let term = |i: usize| {
                    let x = if self.transpose_a { a.data[i * m + row] } else { a.data[row * k + i] };
                    let y = if self.transpose_b { b.data[column * k + i] } else { b.data[i * n + column] };
                    x * y
                };
                args.output[row * n + column] = (0..k).map(term).sum();
            }
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let types = [args.inputs[0].ty, args.inputs[1].ty];
        let [m, n, k] = self.sizes(&types, args.batch);
        let mut a = Matrix::row_major(args.inputs[0].f32(), if self.transpose_a { [k, m] } else { [m, k] });
        let mut b = Matrix::row_major(args.inputs[1].f32(), if self.transpose_b { [n, k] } else { [k, n] });
        if self.transpose_a {
            a = a.transposed();
        }
        if self.transpose_b {
            b = b.transposed();
        }
        kernels::gemm::parallel(a, b, args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.portable(inputs, TILES)
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        let mut variants = Tiles::variants(TILES, output.shape.last(), Tiles::any, |tiles| self.portable(inputs, tiles));
        // The first loads and stores in fours.
        let whole = [inputs[0], inputs[1], output].iter().all(|ty| ty.shape.last().is_multiple_of(4));
        let kernel = if whole { kernel!("matmul_registers") } else { kernel!("matmul_registers_narrow") };
        let mut launch = self.tiled(inputs, kernel, REGISTERS[usize::from(!whole)]);
        launch.constants.push((SPREAD, SHARERS));
        variants.extend(Variant::registers(launch));
        variants
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        self.sizes(inputs, batch)[2]
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * self.sizes(inputs, batch).iter().map(|&extent| extent as u64).product::<u64>()
    }
}
