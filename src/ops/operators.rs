//! The list of operators: the closed enum [`Op`] and its one dispatch point.

use std::sync::Arc;

use super::Rules;

/// Declares the modules' operator types as variants of [`Op`].
macro_rules! operators {
    ($($module:ident: $($operator:ident),+;)+) => {
        $(pub use super::$module::{$($operator),+};)+

        /// An operator of a graph: one of the crate's, or a user's own.
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "each variant holds the type of its name, which is documented")]
        pub enum Op {
            $($($operator($operator),)+)+
            /// A user's operator.
            Custom(Arc<dyn Rules>),
        }

        impl Op {
            /// The operator's rules: the only place that tells the variants apart.
            pub fn rules(&self) -> &dyn Rules {
                match self {
                    $($(Self::$operator(op) => op,)+)+
                    Self::Custom(op) => op.as_ref(),
                }
            }
        }

        $($(impl From<$operator> for Op {
            fn from(op: $operator) -> Self {
                Self::$operator(op)
            }
        })+)+
    };
}

operators! {
    activation: Activation, ActivationGrad;
    adam: Adam, AdamGroup;
    arithmetic: Add, Mul;
    bias: BiasAdd;
    bytes: ScaleBytes;
    cast: Cast;
    fma: FmaChains;
    gather: GatherBatch;
    loss: Accuracy, LossHead, SoftmaxCrossEntropy, SoftmaxCrossEntropyGrad;
    dense: Dense, DenseGrad;
    conv2d: Conv2d, Conv2dInputGrad, Conv2dReluPool, Conv2dReluPoolGrad, Conv2dReluPoolInputGrad, Conv2dReluPoolWeightGrad, Conv2dWeightGrad;
    matmul: Matmul;
    mlp_head: MlpHead, MlpHeadGrad, MlpHeadLoss, MlpHeadTick;
    pool: AvgPool2d, AvgPool2dGrad, MaxPool2d, MaxPool2dGrad;
    reduce: Broadcast, Sum, SumSlices;
    reshape: Reshape;
    scale: Overflow, ScaledTick;
    softmax: Softmax, SoftmaxGrad;
    step: Record, Tick;
}

impl From<Arc<dyn Rules>> for Op {
    fn from(op: Arc<dyn Rules>) -> Self {
        Self::Custom(op)
    }
}
