#!/usr/bin/env bash
# The server under an open loop: requests come at a rate that does not depend on the answers, at parts and multiples of what it can answer.
#
#   benches/open_loop.sh MODEL.safetensors [PERCENT…]   needs hey and wrk; default 50 100 200
#   FLAGS, PROGRAM, SECONDS_EACH, WORKERS, CONNECTIONS  flags of `shadernet serve`, target/release/shadernet, 5, 32, 64
#   WIDTH                                               so many times the filters and units (benches/widen.py): WIDTH² times the work of a request
#   EACH, HEYS                                          requests/s of a worker, of which there are then as many as the rate needs; processes of
#                                                       hey that share them and do not start together, 1
#   PLACE, PATIENCE                                     a command before the server, one before wrk and hey: "taskset -c 0", "taskset -c 1"
#
# Capacity is what wrk gets answered with CONNECTIONS, all of which the queue has to hold. The rate is shared among hey's workers, each of which
# sends on its own clock as long as its last answer came in time; all of one process start together, so many workers are bursts. Generator and
# server share the machine: where both want all of it, the table shows what was really sent. So an overload of many times the capacity takes a
# wide network, a core of its own for each, and a queue so short that no worker waits for longer than it would have anyway:
#
#   WIDTH=8 EACH=8 HEYS=10 CONNECTIONS=32 FLAGS='--max-batch 16 --queue 32' PLACE='taskset -c 0' PATIENCE='taskset -c 1' \
#       benches/open_loop.sh MODEL.safetensors 50 100 200 1000
set -euo pipefail
model=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=${PROGRAM:-target/release/shadernet}
seconds=${SECONDS_EACH:-5}
workers=${WORKERS:-32}
heys=${HEYS:-1}
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
if [ "${WIDTH:-1}" != 1 ]; then
    python3 benches/widen.py "$model" "$WIDTH" "$work/wide.safetensors"
    model=$work/wide.safetensors
fi
url=http://127.0.0.1:8190/v2/models/m/infer
# shellcheck disable=SC2086
RUST_LOG=error ${PLACE:-} "$program" serve "m=$model" --device cpu --port 8190 --grpc-port off --admin-port off --drain-delay 0ms ${FLAGS:-} >/dev/null &
server=$!
until curl --silent --fail --output /dev/null http://127.0.0.1:8190/readyz; do sleep 0.1; done

# shellcheck disable=SC2086
capacity=$(${PATIENCE:-} wrk --threads 1 --connections "${CONNECTIONS:-64}" --duration "$seconds" --script "$work/post.lua" $url |
    awk '/Requests.sec/ {rate = int($2)} /Non-2xx/ {bad = $NF} END {print bad ? "refused: " bad : rate}')
echo "capacity  $capacity requests/s"
[ "$capacity" -gt 0 ]
[ $# -gt 0 ] || set -- 50 100 200
for percent; do
    [ -z "${EACH:-}" ] || workers=$(awk "BEGIN {print $heys * int($capacity * $percent / 100 / $EACH / $heys + 1)}")
    each=$(awk "BEGIN {print $capacity * $percent / 100 / $workers}")
    asking=()
    for i in $(seq "$heys"); do
        # They share the time between two requests of a worker.
        (
            sleep "$(awk "BEGIN {print ($i - 1) / $heys / $each}")"
            # shellcheck disable=SC2086
            exec ${PATIENCE:-} hey -z "${seconds}s" -c $((workers / heys)) -q "$each" -m POST -H 'Inference-Header-Content-Length: 0' \
                -D "$work/image" -o csv $url >"$work/answers$i"
        ) &
        asking+=($!)
    done
    wait "${asking[@]}"
    # Columns of hey: 1 seconds to the answer, 7 status.
    awk -F, -v percent="$percent" -v capacity="$capacity" -v seconds="$seconds" -v work="$work" '
        FNR > 1 { all++; good += $7 == 200; print $1 > (work "/" ($7 == 200 ? "answered" : "refused")) }
        END { printf "%4d %%  wanted %6.0f/s  sent %6.0f/s  answered %6.0f/s, %3.0f %% of capacity", percent, capacity * percent / 100,
                  all / seconds, good / seconds, 100 * good / seconds / capacity }' "$work"/answers?*
    for kind in answered refused; do
        [ -f "$work/$kind" ] || continue
        sort -g "$work/$kind" | awk -v kind=$kind '{t[NR] = 1000 * $1}
            END {printf "  %s: p50 %.2f ms, p99 %.2f ms", kind, t[int((NR + 1) / 2)], t[int(0.99 * NR + 0.5)]}'
        rm "$work/$kind"
    done
    echo
done
