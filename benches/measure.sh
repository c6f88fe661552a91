#!/usr/bin/env bash
# Everything that is to be known of shadernet on one device, in one go and in an order that does the most important first.
#
#   benches/measure.sh OUT_DIR --data DIR [--device D] [--peers DIR] [--epochs N] [--limit-train N] [--rounds N]
#
# DIR holds data_batch_1.bin to data_batch_5.bin and test_batch.bin. Into OUT_DIR go
#   report.txt            what each step said, its exit code, and how long it took: devices, self-tests, profiles, trainings
#   bench-untuned.json    `shadernet bench` with the kernels that are usual for the kind of device
#   bench-f32.json        … with those that the tuner found
#   bench-mixed.json      … in mixed precision
#   training.json, .png   a whole training in f32
#   race.json             benches/race.sh against the peers, if their folder is given
# A step that fails, or where there is a `timeout` takes longer than its share, is noted, and the next one begins. Exit code 1 if one did.
#
# Environment: SHADERNET (our program; default: built here).
set -uo pipefail

usage() {
    sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

out='' data='' device=gpu peers='' epochs=10 limit=50000 rounds=2
while [ $# -gt 0 ]; do
    case $1-$# in
    -h-* | --help-*) usage 0 ;;
    --*-1) usage 2 >&2 ;; # a flag without its value
    esac
    case $1 in
    --data) data=$2 ;;
    --device) device=$2 ;;
    --peers) peers=$2 ;;
    --epochs) epochs=$2 ;;
    --limit-train) limit=$2 ;;
    --rounds) rounds=$2 ;;
    --*) usage 2 >&2 ;;
    *)
        [ -z "$out" ] || usage 2 >&2
        out=$1
        shift
        continue
        ;;
    esac
    shift 2
done
[ -n "$out" ] && [ -f "$data/data_batch_1.bin" ] || usage 2 >&2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$out"
if [ -z "${SHADERNET:-}" ]; then
    (cd "$root" && cargo build --release --quiet) || exit 1
    SHADERNET=${CARGO_TARGET_DIR:-$root/target}/release/shadernet
fi
export SHADERNET
report=$out/report.txt
git -C "$root" log -1 --format='commit %H, %cd' >"$report" 2>/dev/null || echo 'no commit is known' >"$report"
date -u '+measured %Y-%m-%d %H:%M UTC' >>"$report"

failed=0
limit_to() { timeout "$@"; }
command -v timeout >/dev/null || limit_to() { "${@:2}"; } # macOS has none

# Runs a step: `step SECONDS FILE command…`. What it prints goes to the file, or to the report if that is `-`.
step() {
    local seconds=$1 file=$2 start=$SECONDS code=0
    shift 2
    printf '%s\n' "$*" >&2
    printf '\n== %s ==\n' "$*" >>"$report"
    if [ "$file" = - ]; then
        limit_to "$seconds" "$@" >>"$report" 2>&1 || code=$?
    else
        limit_to "$seconds" "$@" >"$out/$file" 2>>"$report" || code=$?
    fi
    printf '   exit code %d, %d s\n' $code $((SECONDS - start)) >>"$report"
    [ $code = 0 ] && return
    printf '   failed: exit code %d\n' $code >&2
    failed=1
    [ "$file" = - ] || rm -f "$out/$file" # half of a result is none
}

on=(--device "$device")
images=(--data "$data" --limit-train "$limit")
step 30 - "$SHADERNET" devices
step 60 - "$SHADERNET" selftest "${on[@]}" --tune off
step 60 - "$SHADERNET" selftest "${on[@]}" --tune off --precision mixed
step 60 - "$SHADERNET" profile "${on[@]}" --tune off
step 90 bench-untuned.json "$SHADERNET" bench "${on[@]}" "${images[@]}" --tune off --json
step 180 - "$SHADERNET" profile "${on[@]}" --tune full
step 180 - "$SHADERNET" profile "${on[@]}" --tune full --precision mixed
step 90 bench-f32.json "$SHADERNET" bench "${on[@]}" "${images[@]}" --json
step 90 bench-mixed.json "$SHADERNET" bench "${on[@]}" "${images[@]}" --precision mixed --json
step 120 - "$SHADERNET" train "${on[@]}" "${images[@]}" --epochs "$epochs" --history "$out/training.json" --plot "$out/training.png"
step 120 - "$SHADERNET" train "${on[@]}" "${images[@]}" --epochs "$epochs" --precision mixed
step 60 - "$SHADERNET" selftest "${on[@]}"
step 60 - "$SHADERNET" selftest "${on[@]}" --precision mixed
[ -z "$peers" ] || step 600 - "$root/benches/race.sh" "$peers" --data "$data" "${on[@]}" --rounds "$rounds" --epochs 3 \
    --limit-train "$limit" --out "$out/race.json"
exit $failed
