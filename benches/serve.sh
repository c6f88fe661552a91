#!/usr/bin/env bash
# The server against FastAPI and onnxruntime, in turn, over loopback, one image of 32×32×3 bytes a request.
#
#   benches/serve.sh MODEL.safetensors [ROUNDS]      needs wrk; for the peer: pip install fastapi uvicorn httptools uvloop onnxruntime
#                                                    onnx safetensors
#   PEER=no benches/serve.sh …                       without the peer; FLAGS: further flags of `shadernet serve`
#   PYTHON, PROGRAM, SECONDS_EACH, CONNECTIONS       python, target/release/shadernet, 4, "1 8 64 256"
set -euo pipefail
model=$(realpath "$1")
rounds=${2:-1}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=${PROGRAM:-target/release/shadernet}
python=${PYTHON:-python3}
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

# Wrk at every number of connections: `load NAME URL`.
load() {
    until curl --silent --fail --output /dev/null --header 'Inference-Header-Content-Length: 0' --data-binary "@$work/image" "$2"; do sleep 0.1; done
    for connections in ${CONNECTIONS:-1 8 64 256}; do
        wrk --threads 1 --connections "$connections" --duration "${SECONDS_EACH:-4}" --latency --script "$work/post.lua" "$2" |
            awk -v name="$1" -v c="$connections" '/50%/ {p50 = $2} /99%/ {p99 = $2} /Requests.sec/ {rate = $2} /Non-2xx|Socket errors/ {bad = bad " " $0}
                END {printf "%-10s %4d connections  %8.0f requests/s  p50 %9s  p99 %9s %s\n", name, c, rate, p50, p99, bad}'
    done
    kill -TERM $server
    wait $server || true
    server=
}

for _ in $(seq "$rounds"); do
    # shellcheck disable=SC2086
    RUST_LOG=error "$program" serve "m=$model" --device cpu --port 8190 --grpc-port off --admin-port off --drain-delay 0ms ${FLAGS:-} >/dev/null &
    server=$!
    load shadernet http://127.0.0.1:8190/v2/models/m/infer
    [ "${PEER:-yes}" = no ] && continue
    [ -f "$work/m.onnx" ] || "$python" benches/serve_peer.py "$model" "$work/m.onnx"
    MODEL=$work/m.onnx "$python" -m uvicorn --app-dir benches serve_peer:app --port 8191 --workers 2 --log-level error --no-access-log &
    server=$!
    load peer http://127.0.0.1:8191/infer
done
