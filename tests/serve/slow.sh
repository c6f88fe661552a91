#!/usr/bin/env bash
# Slow clients, by slowhttptest: `tests/serve/slow.sh [SECONDS]`. For so long, a minute by default, slow connections are opened at a steady rate,
# first with slow headers, then with slow bodies, then such as hardly read their answers. Meanwhile another client asks on new connections. Fails if
# one of its requests does, if slowhttptest finds the service unavailable, or if slow connections are open for longer than the server's bounds
# allow. On Debian, as root, slowhttptest is installed with apt. Exit code 77: it cannot be had here.
#   RATE, PROGRAM    slow connections a second, 50; target/debug/shadernet
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-60}
rate=${RATE:-50}
target=${CARGO_TARGET_DIR:-$PWD/target}
program=${PROGRAM:-$target/debug/shadernet}
work=$target/slow
# The server's bounds, and how long a connection may be open with what a busy machine adds to them: seconds.
bounds=(--head-timeout 2s --body-timeout 2s --idle-timeout 3s --write-timeout 3s)
longest=7
mkdir -p "$work"
if ! command -v slowhttptest >/dev/null; then
    { [ "$(id -u)" = 0 ] && command -v apt-get && apt-get install -y --no-install-recommends slowhttptest; } >/dev/null 2>&1 || exit 77
fi
[ -x "$program" ] || cargo build --bin shadernet
SHADERNET_OFFLINE=1 SHADERNET_CACHE=$work "$program" train --device cpu --epochs 1 --out "$work/m.safetensors" >/dev/null
head -c 3072 src/data/sample/test.bin >"$work/image"

env -u PORT -u AIP_HTTP_PORT "$program" serve "$work/m.safetensors" --device cpu --port 0 --grpc-port off --admin-port 0 --drain-delay 0ms \
    "${bounds[@]}" >"$work/ports" 2>"$work/log" &
server=$!
asking=
trap 'kill $server $asking 2>/dev/null || true' EXIT
for _ in $(seq 200); do
    read -r http admin < <(sed -nE 's/.*HTTP [^ ]*:([0-9]+), admin [^ ]*:([0-9]+).*/\1 \2/p' "$work/ports") && break
    sleep 0.1
done
[ -n "${admin:-}" ] || { cat "$work/log" && exit 1; }
infer=http://127.0.0.1:$http/v2/models/m/infer

fail() {
    echo "FAILED: $*"
    tail -n 20 "$work/log" "$work/said" 2>/dev/null || true
    exit 1
}
# Asks until it is ended, each time on a new connection, and writes down what came of it.
ask() {
    while :; do
        curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}\n' --header 'Inference-Header-Content-Length: 0' \
            --data-binary "@$work/image" "$infer" || true
        sleep 0.02
    done
}
# Connections the server counts, but for the one that asks.
open() { curl --silent --fail "http://127.0.0.1:$admin/metrics" | awk '/^shadernet_connections/ {print $2 - 1}'; }

# One kind of slowness: `slow NAME arguments…`.
slow() {
    local name=$1 most=0 began=$SECONDS now took answered failed
    shift
    ask >"$work/asked" &
    asking=$!
    slowhttptest -c $((rate * seconds)) -r "$rate" -l $((seconds + longest)) -p 5 -g -o "$work/$name" "$@" >"$work/said" 2>&1 &
    local test=$!
    # While they come, and until they are gone or should be. Beside the slow ones there is slowhttptest's probe.
    while now=$(open) && took=$((SECONDS - began)) && { [ $took -lt "$seconds" ] || [ "$now" -gt 1 ]; } && [ $took -lt $((seconds + longest)) ]; do
        [ "$now" -le "$most" ] || most=$now
        sleep 0.2
    done
    wait $test || fail "$name: slowhttptest ended with $?"
    kill $asking
    wait $asking 2>/dev/null || true
    asking=
    answered=$(grep -c '^200$' "$work/asked" || true)
    failed=$(grep -vc '^200$' "$work/asked" || true)
    echo "    $name: $((rate * seconds)) connections, at most $most at a time, $now left after $took s; of the requests beside them $answered answered, $failed not"
    [ "$most" -ge "$rate" ] || fail "$name: expected at least $rate slow connections at a time, found $most"
    [ "$most" -le $((rate * longest)) ] || fail "$name: expected at most $((rate * longest)) slow connections at a time, found $most"
    [ "$now" -le 1 ] || fail "$name: $now connections are open $longest s after the last came"
    [ "$failed" = 0 ] && [ "$answered" -ge "$seconds" ] || fail "$name: requests beside the slow connections failed"
    awk -F, 'NR > 1 && $NF == 0 { bad = 1 } END { exit bad }' "$work/$name.csv" || fail "$name: slowhttptest found the service unavailable"
}

cat "$work/ports"
slow headers -H -i 1 -x 24 -t GET -u "http://127.0.0.1:$http/v2"
slow bodies -B -i 1 -s 3072 -x 10 -t POST -u "$infer"
slow reads -X -k 10 -w 1 -y 512 -n 1 -z 5 -t GET -u "http://127.0.0.1:$http/openapi.json"
kill -TERM $server
wait $server || fail "the server ended with $?"
if grep -E 'panic|ERROR' "$work/log"; then exit 1; fi
echo 'ok  slowhttptest'
