//! Kernels for tensors that are stored as f16: their texts are those for f32 but for a few words.
//!
//! A kernel that can have an operand or a result as f16 gives its element type a name, `alias X = f32;`, stores it as `X(value)`, and
//! loads it as `f32(x[i])`. As it stands the file is the kernel for f32. With `f16` in that line, and `enable f16;` before
//! everything, it is the one for f16: the same arithmetic, in f32.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Kernel;
use crate::shape::DType;

/// What comes between the name of a kernel's file and the aliases that are f16: `conv2d_relu_pool_f16_x_y`.
pub(crate) const INFIX: &str = "_f16";

/// The texts made so far, by name. Kernels live as long as the program, and there are no more than ways to store their
/// operands and sizes of cooperative matrices.
static TEXTS: Mutex<BTreeMap<String, Kernel>> = Mutex::new(BTreeMap::new());

/// The kernel with these aliases for these element types.
///
/// # Panics
/// If the text does not have one line `alias NAME = f32;` for each that is f16.
pub(crate) fn stored(kernel: Kernel, aliases: &[(&str, DType)]) -> Kernel {
    let halves: Vec<&str> = aliases.iter().filter(|(_, dtype)| *dtype == DType::F16).map(|(alias, _)| *alias).collect();
    if halves.is_empty() {
        return kernel;
    }
    let mut name = format!("{}{INFIX}", kernel.name);
    halves.iter().for_each(|alias| name.extend(["_", &alias.to_lowercase()]));
    interned(name, || {
        let enabled = kernel.source.contains("\nenable f16;\n");
        let mut text = format!("{}{}", if enabled { "" } else { "enable f16;\n" }, kernel.source);
        for alias in halves {
            let line = format!("alias {alias} = f32;");
            assert_eq!(text.matches(&line).count(), 1, "{}: lines {line:?}", kernel.name);
            text = text.replace(&line, &format!("alias {alias} = f16;"));
        }
        text
    })
}

/// The kernel of this name, its text made the first time that it is asked for.
pub(crate) fn interned(name: String, text: impl FnOnce() -> String) -> Kernel {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    *texts.entry(name.clone()).or_insert_with(|| Kernel { name: name.leak(), source: text().leak() })
}
