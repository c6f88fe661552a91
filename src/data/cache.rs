//! The folder in which downloaded data stays: the user's cache folder, or the one that `SHADERNET_CACHE` names, and `shadernet` below it.

use std::env;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use super::{cifar, download};

/// The environment variable that takes the place of the user's cache folder.
pub const VARIABLE: &str = "SHADERNET_CACHE";

/// The cache folder of this crate, which need not exist yet; `None` for a user without a home folder.
///
/// `$XDG_CACHE_HOME` or `~/.cache` on Unix and macOS, the local application data on Windows, and `shadernet` below it.
pub fn folder() -> Option<PathBuf> {
    below(env::var_os(VARIABLE).map(PathBuf::from), || Some(etcetera::choose_base_strategy().ok()?.cache_dir()))
}

/// The data in a cache folder: the unpacked files if they are there, else the archive.
pub fn lookup(folder: &Path) -> Option<PathBuf> {
    if cifar::is_binary_folder(folder) {
        return Some(folder.to_path_buf());
    }
    let archive = folder.join(download::CIFAR10.name);
    archive.exists().then_some(archive)
}

/// An empty variable counts as unset, as is usual for folders.
fn below(variable: Option<PathBuf>, user: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
    let base = variable.filter(|path| !path.as_os_str().is_empty()).or_else(user)?;
    Some(base.join("shadernet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_takes_the_place_of_the_users_folder() {
        let user = || Some(PathBuf::from("home/.cache"));
        assert_eq!(below(Some("elsewhere".into()), user), Some(Path::new("elsewhere").join("shadernet")));
        assert_eq!(below(Some("".into()), user), Some(Path::new("home/.cache").join("shadernet")));
        assert_eq!(below(None, || None), None);
    }

    #[test]
    fn unpacked_files_come_before_the_archive() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(lookup(cache.path()), None);
        let archive = cache.path().join("cifar-10-binary.tar.gz");
        std::fs::write(&archive, "x").unwrap();
        assert_eq!(lookup(cache.path()), Some(archive));
        std::fs::create_dir(cache.path().join(cifar::FOLDER)).unwrap();
        std::fs::write(cache.path().join(cifar::FOLDER).join(cifar::TEST_FILE), "x").unwrap();
        assert_eq!(lookup(cache.path()), Some(cache.path().to_path_buf()));
    }
}
