#!/usr/bin/env bash
# Malformed HTTP, by boofuzz: `tests/serve/malformed.sh [SECONDS]`, ten minutes by default. Fails if the server answers with an error of its
# own, panics, or no longer answers. Exit code 77: boofuzz cannot be had here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-600}
target=${CARGO_TARGET_DIR:-$PWD/target}
program=${PROGRAM:-$target/debug/shadernet}
work=$target/malformed
mkdir -p "$work/notes"
if [ ! -x "$work/venv/bin/boo" ]; then
    python3 -m venv --clear "$work/venv" && "$work/venv/bin/pip" install --quiet --disable-pip-version-check boofuzz==0.4.2 || exit 77
fi
[ -x "$program" ] || cargo build --bin shadernet
SHADERNET_OFFLINE=1 SHADERNET_CACHE=$work "$program" train --device cpu --epochs 1 --out "$work/cnn.safetensors" >/dev/null

env -u PORT -u AIP_HTTP_PORT "$program" serve "$work/cnn.safetensors" --device cpu --port 0 --grpc-port off --admin-port off --drain-delay 0ms \
    >"$work/ports" 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work/notes"' EXIT
for _ in $(seq 200); do
    port=$(sed -nE 's/.*HTTP [^ ]*:([0-9]+).*/\1/p' "$work/ports") && [ -n "$port" ] && break
    sleep 0.1
done
[ -n "$port" ] || { cat "$work/log" && exit 1; }
"$work/venv/bin/python" tests/serve/malformed.py "$port" "$seconds" "$work/notes"
kill -TERM "$server"
wait "$server" || { echo "the server ended with $?" && exit 1; }
if grep -E 'panic|ERROR' "$work/log"; then exit 1; fi
