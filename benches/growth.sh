#!/usr/bin/env bash
# Does cost grow as the work does? Trains with more images, larger batches and a wider network, one after the other.
#
#   benches/growth.sh --data DIR [--device D] [--images N,N,…] [--batches N,N,…] [--widths N,N,…] [--most N]
#
# Prints time per image, the share of the measured ceiling that a training step reaches, and memory: what the plan says before it
# runs and what the device holds. `--most` bounds the images of the runs over batches and widths (default 12800).
#
# Environment: SHADERNET (the program; default: built here).
set -euo pipefail

usage() {
    sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

data='' device=auto images=1000,5000,50000 batches=64,256,1024 widths=1,3 most=12800
while [ $# -gt 0 ]; do
    case $1-$# in
    -h-* | --help-*) usage 0 ;;
    *-1) usage 2 >&2 ;;
    esac
    case $1 in
    --data) data=$2 ;;
    --device) device=$2 ;;
    --images) images=$2 ;;
    --batches) batches=$2 ;;
    --widths) widths=$2 ;;
    --most) most=$2 ;;
    *) usage 2 >&2 ;;
    esac
    shift 2
done
[ -e "$data" ] || usage 2 >&2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${SHADERNET:-}" ]; then
    (cd "$root" && cargo build --release --quiet)
    SHADERNET=${CARGO_TARGET_DIR:-$root/target}/release/shadernet
fi

printf '%8s %6s %6s %12s %14s %12s %10s %14s %14s\n' images batch width parameters 'µs an image' images/s '% ceiling' 'planned bytes' 'held bytes'

# Measures one setting: `row IMAGES BATCH WIDTH`.
row() {
    "$SHADERNET" bench --json --data "$data" --device "$device" --limit-train "$1" --limit-test 256 --batch-size "$2" --width "$3" \
        --epochs 3 --seconds 0.1 --steps 10 2>/dev/null | python3 -c '
import json, sys
images, batch, width = sys.argv[1:]
report = json.load(sys.stdin)
rate = report["training"]["images_per_s"]
profile = report.get("profile") or {}
ceiling = 100 * rate * profile["total"]["flops"] / profile["batch"] / (1e9 * profile["ceiling"]["gflops"]) if profile else None
memory = report["memory"]
print("%8s %6s %6s %12d %14.1f %12.0f %10s %14d %14d" % (
    images, batch, width, report["parameters"], 1e6 / rate, rate, "-" if ceiling is None else "%.1f" % ceiling,
    memory["planned_training_bytes"], memory["training_device_bytes"]))' "$@"
}

for count in ${images//,/ }; do row "$count" 64 1; done
for batch in ${batches//,/ }; do row "$most" "$batch" 1; done
for width in ${widths//,/ }; do row "$most" 64 "$width"; done
