//! Where the program under test is.

use std::path::PathBuf;

/// The program: where cargo says it is, else where it was built, else beside this test or on the path.
pub(crate) fn program() -> PathBuf {
    let name = format!("shadernet{}", std::env::consts::EXE_SUFFIX);
    let own = std::env::current_exe().unwrap();
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(&name));
    let built = [PathBuf::from(env!("CARGO_BIN_EXE_shadernet"))];
    let told = std::env::var_os("CARGO_BIN_EXE_shadernet").map(PathBuf::from);
    told.into_iter().chain(built).chain(beside).find(|path| path.is_file()).unwrap_or(name.into())
}
