#!/usr/bin/env bash
# Fuzzes everything that reads what someone else wrote (tests/fuzz/src/targets.rs), one target after the other.
#
#   tests/fuzz.sh [SECONDS [TARGET…]]    60 seconds each and all of them by default
#
# libFuzzer on the stable compiler; needs a C++ compiler. What is found lies in target/fuzz/found and goes on from there the next time;
# an input that fails is target/fuzz/TARGET-…, and belongs into tests/fuzz/corpus/TARGET with the fix: `cargo test --test serve corpus`
# replays those. Prints a table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-60}
shift || true
target=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=($(ls tests/fuzz/corpus))

(cd tests/fuzz && CARGO_TARGET_DIR=$target RUSTC_WRAPPER=$PWD/rustc.sh cargo build --locked)
failed=0
echo "| target | runs | edges | inputs kept | longest run, s | peak memory, MB | found |"
echo "|---|---|---|---|---|---|---|"
for name in "${targets[@]}"; do
    mkdir -p "$target/found/$name"
    found=nothing
    SHADERNET_FUZZ=$name nice -n 19 "$target/debug/shadernet-fuzz" -max_total_time="$seconds" -timeout=120 -rss_limit_mb=2048 -max_len=4096 \
        -print_final_stats=1 -artifact_prefix="$target/$name-" "$target/found/$name" "tests/fuzz/corpus/$name" >"$target/$name.log" 2>&1 ||
        { failed=1 found="see $target/$name.log"; }
    number() { sed -nE "s/^stat::$1: *([0-9]+).*/\1/p" "$target/$name.log"; }
    edges=$(sed -nE 's/.* cov: ([0-9]+) .*/\1/p' "$target/$name.log" | tail -n 1)
    echo "| $name | $(number number_of_executed_units) | $edges | $(ls "$target/found/$name" | wc -l) | $(number slowest_unit_time_sec) | $(number peak_rss_mb) | $found |"
done
exit $failed
