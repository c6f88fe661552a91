//! The fuzzer's corpora, replayed: real requests are accepted, what once failed does not any more, and neither do inputs cut short.

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn corpus_is_read_without_a_panic() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut accepted = 0;
        let files: Vec<_> = std::fs::read_dir(corpora.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        for file in &files {
            let data = std::fs::read(file).unwrap();
            accepted += usize::from(target(&data));
            for end in (0..data.len()).step_by(data.len() / 40 + 1) {
                target(&data[..end]);
            }
        }
        assert!(accepted > 0, "{name}: none of {} files is accepted, so what lies behind the first check is not tried", files.len());
    }
}
