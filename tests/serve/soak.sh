#!/usr/bin/env bash
# A million requests to the program, its resident memory looked at all along: fails if it grows, or if a request fails.
#
#   tests/serve/soak.sh [REQUESTS]                  needs hey; default 1,000,000
#   MODEL, PROGRAM, FLAGS, CONNECTIONS, GROWTH_KB   a model trained for one epoch, target/release/shadernet, none, 64, 4096
#
# The first tenth is warm-up: buffers of connections and batches reach their sizes. From there to the end memory may grow by GROWTH_KB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
requests=${1:-1000000}
connections=${CONNECTIONS:-64}
growth=${GROWTH_KB:-4096}
program=${PROGRAM:-${CARGO_TARGET_DIR:-target}/release/shadernet}
work=$(mktemp -d)
server=
trap '[ -n "$server" ] && kill $server 2>/dev/null; rm -rf "$work"' EXIT
model=${MODEL:-$work/m.safetensors}
[ -f "$model" ] || SHADERNET_OFFLINE=1 SHADERNET_CACHE=$work "$program" train --device cpu --epochs 1 --out "$model" >/dev/null
head -c 3072 src/data/sample/test.bin | tail -c 3072 >"$work/image"

# shellcheck disable=SC2086
RUST_LOG=error "$program" serve "m=$model" --device cpu --port 0 --grpc-port off --admin-port 0 --drain-delay 0ms ${FLAGS:-} >"$work/ports" 2>&1 &
server=$!
for _ in $(seq 100); do
    read -r http admin < <(sed -nE 's/.*HTTP [^ ]*:([0-9]+), admin [^ ]*:([0-9]+).*/\1 \2/p' "$work/ports") && break
    sleep 0.1
done
[ -n "${admin:-}" ] || { echo 'FAILED: the server does not start' && cat "$work/ports" && exit 1; }

resident() { awk '/VmRSS/ {print $2}' /proc/$server/status; }
# Requests answered and not answered, as the server counts them.
counted() {
    curl --silent --fail "http://127.0.0.1:$admin/metrics" |
        awk '/^nv_inference_request_success/ {good = $2} /^nv_inference_request_failure/ {bad += $2} END {printf "%d %d\n", good, bad}'
}

each=$(((requests + 19) / 20 / connections * connections + connections))
warm=
count=0
while [ "$count" -lt "$requests" ]; do
    hey -n $each -c "$connections" -m POST -H 'Inference-Header-Content-Length: 0' -D "$work/image" \
        "http://127.0.0.1:$http/v2/models/m/infer" >/dev/null
    read -r count bad < <(counted)
    now=$(resident)
    printf '%8d requests  %6d kB\n' "$count" "$now"
    [ "$bad" = 0 ] || { echo "FAILED: $bad requests were not answered" && exit 1; }
    [ -n "$warm" ] || [ "$count" -lt $((requests / 10)) ] || warm=$now
done
kill -TERM $server
wait $server || { echo 'FAILED: the server did not end in order' && exit 1; }
server=
grown=$((now - warm))
[ "$grown" -le "$growth" ] || { echo "FAILED: memory grew by $grown kB after warm-up, expected at most $growth kB" && exit 1; }
echo "ok: $count requests, memory grew by $grown kB after warm-up"
