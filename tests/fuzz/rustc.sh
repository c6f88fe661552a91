#!/bin/sh
# The compiler for the fuzzer (RUSTC_WRAPPER): counts the edges of what reads foreign bytes, and of nothing else; counting those of a
# compiler of shaders as well makes a run three times as long.
compiler=$1
shift
for word in "$@"; do
    case $before:$word in
    --crate-name:shadernet | --crate-name:shadernet_fuzz | --crate-name:serde | --crate-name:serde_core | --crate-name:serde_json | --crate-name:safetensors | --crate-name:bincode | \
        --crate-name:prost | --crate-name:base64 | --crate-name:image | --crate-name:png | --crate-name:zune_* | --crate-name:fdeflate | \
        --crate-name:flate2 | --crate-name:miniz_oxide)
        exec "$compiler" "$@" --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares
        ;;
    esac
    before=$word
done
exec "$compiler" "$@"
