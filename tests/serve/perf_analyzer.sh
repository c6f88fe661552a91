#!/usr/bin/env bash
# NVIDIA's perf_analyzer, unmodified, against the server: over HTTP and gRPC, at 1, 8 and 64 requests at a time, one image of bytes each.
#
#   tests/serve/perf_analyzer.sh MODEL.safetensors [SECONDS [ROUNDS]]
#
# Its wheel needs glibc 2.38. Where the machine's is older, its libraries are taken from Debian 13's packages, unpacked beside it and
# run by their own loader; nothing is installed. Exit code 77: it cannot be had here. Prints a table in Markdown.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

model=${1:?"a model, as train --out writes it"} seconds=${2:-5} rounds=${3:-1}
target=${CARGO_TARGET_DIR:-$PWD/target}
work=$target/perf-analyzer
program=${PROGRAM:-$target/release/shadernet}
binary=$work/wheel/perf_analyzer/bin/perf_analyzer
root=$work/root
mkdir -p "$work"

if [ ! -x "$binary" ]; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --platform manylinux_2_38_x86_64 \
        --dest "$work" perf-analyzer==2.60.0 || exit 77
    python3 -m zipfile -e "$work"/perf_analyzer-*.whl "$work/wheel"
    chmod +x "$binary"
fi

run=("$binary")
if ! "$binary" --version >/dev/null 2>&1; then
    tests/debian13.sh "$root" libc6 libgcc-s1 libssl3t64 libstdc++6 zlib1g || exit 77
    loader=$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
    run=("$loader" --library-path "$root/usr/lib/x86_64-linux-gnu" "$binary")
fi
"${run[@]}" --version >/dev/null 2>&1 || { "${run[@]}" --version; exit 1; }
[ -x "$program" ] || cargo build --release --bin shadernet

env -u PORT -u AIP_HTTP_PORT "$program" serve "cnn=$model" --device cpu --port 0 --grpc-port 0 --admin-port 0 --drain-delay 100ms \
    >"$work/ports" 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 200); do
    read -r http grpc < <(sed -nE 's/.*HTTP [^ ]*:([0-9]+), gRPC [^ ]*:([0-9]+),.*/\1 \2/p' "$work/ports") && break
    sleep 0.1
done
[ -n "${grpc:-}" ] || { cat "$work/log"; exit 1; }

echo '| protocol | at a time | images/s | p50, ms | p90, ms | p99, ms |'
echo '|---|---|---|---|---|---|'
for _ in $(seq "$rounds"); do
    for protocol in http grpc; do
        for concurrency in 1 8 64; do
            port=${!protocol}
            "${run[@]}" -m cnn -u "127.0.0.1:$port" -i "$protocol" -b 1 --shape images:32,32,3 --concurrency-range "$concurrency" \
                --measurement-interval $((1000 * seconds)) --max-trials 3 --stability-percentage 50 --percentile 99 \
                -f "$work/report.csv" --verbose-csv >"$work/printed" 2>&1 || { cat "$work/printed"; exit 1; }
            python3 - "$work/report.csv" "$protocol" "$concurrency" <<'PY'
import csv, sys

path, protocol, concurrency = sys.argv[1:]
(row,) = csv.DictReader(open(path))
times = (f"{float(row[f'p{percent} latency']) / 1000:.2f}" for percent in (50, 90, 99))
print(f"| {protocol} | {concurrency} |", f"{float(row['Inferences/Second']):,.0f} |", " | ".join(times), "|", flush=True)
PY
        done
    done
done
kill -TERM "$server"
wait "$server" || { echo "the server ended with $?"; exit 1; }
if grep -E 'panic|ERROR' "$work/log"; then exit 1; fi
