#!/usr/bin/env bash
# The server under an open loop: requests come at a rate that does not depend on the answers, at parts and multiples of what it can answer.
#
#   benches/open_loop.sh MODEL.safetensors [PERCENT…]   needs hey and wrk; default 50 100 200
#   FLAGS, PROGRAM, SECONDS_EACH, WORKERS, PATIENCE     flags of `shadernet serve`, target/release/shadernet, 5, 32; a command before hey
#
# Capacity is what wrk gets answered with 64 connections. The rate is shared among hey's workers, each of which sends on its own clock as
# long as its last answer came in time; all of them start together, so many workers are bursts. Generator and server share the machine: where both want all of it, the table shows what was
# really sent.
set -euo pipefail
model=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=${PROGRAM:-target/release/shadernet}
seconds=${SECONDS_EACH:-5}
workers=${WORKERS:-32}
work=$(mktemp -d)
server=
trap '[ -n "$server" ] && kill $server 2>/dev/null; rm -rf "$work"' EXIT
head -c 3072 src/data/sample/test.bin | tail -c 3072 >"$work/image"
cat >"$work/post.lua" <<END
wrk.method = "POST"
wrk.headers["Inference-Header-Content-Length"] = "0"
local file = io.open("$work/image", "rb")
wrk.body = file:read("*all")
END
url=http://127.0.0.1:8190/v2/models/m/infer
# shellcheck disable=SC2086
RUST_LOG=error "$program" serve "m=$model" --device cpu --port 8190 --grpc-port off --admin-port off --drain-delay 0ms ${FLAGS:-} >/dev/null &
server=$!
until curl --silent --fail --output /dev/null http://127.0.0.1:8190/readyz; do sleep 0.1; done

capacity=$(wrk --threads 1 --connections 64 --duration "$seconds" --script "$work/post.lua" $url | awk '/Requests.sec/ {print int($2)}')
echo "capacity  $capacity requests/s"
[ $# -gt 0 ] || set -- 50 100 200
for percent; do
    each=$(awk "BEGIN {print $capacity * $percent / 100 / $workers}")
    # shellcheck disable=SC2086
    ${PATIENCE:-} hey -z "${seconds}s" -c "$workers" -q "$each" -m POST -H 'Inference-Header-Content-Length: 0' -D "$work/image" \
        -o csv $url >"$work/answers.csv"
    # Columns of hey: 1 seconds to the answer, 7 status.
    awk -F, -v percent="$percent" -v capacity="$capacity" -v seconds="$seconds" -v work="$work" '
        NR > 1 { all++; good += $7 == 200; print $1 > (work "/" ($7 == 200 ? "answered" : "refused")) }
        END { printf "%4d %%  wanted %7.0f/s  sent %7.0f/s  answered %7.0f/s", percent, capacity * percent / 100, all / seconds, good / seconds }' \
        "$work/answers.csv"
    for kind in answered refused; do
        [ -f "$work/$kind" ] || continue
        sort -g "$work/$kind" | awk -v kind=$kind '{t[NR] = 1000 * $1}
            END {printf "  %s: p50 %.2f ms, p99 %.2f ms", kind, t[int((NR + 1) / 2)], t[int(0.99 * NR + 0.5)]}'
        rm "$work/$kind"
    done
    echo
done
