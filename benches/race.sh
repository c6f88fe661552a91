#!/usr/bin/env bash
# Races shadernet against other programs on the CIFAR-10 network, in turn: ours, a peer, ours, the next peer, … , and again.
#
#   benches/race.sh PEERS_DIR --data DIR [--device D] [--rounds N] [--epochs N] [--limit-train N] [--seconds S]
#                   [--precision f32|mixed] [--only NAME,NAME] [--out FILE.json]
#
# DIR holds data_batch_1.bin to data_batch_5.bin and test_batch.bin. PEERS_DIR holds any of
#   torch_seed.py   PyTorch, eager and compiled, on the CPU also with one thread; with CUDA also as a CUDA graph
#   keras_seed.py   Keras on TensorFlow; it always takes all images, and its time of training includes validation
#   burn/           a Rust program: target/release/burn_cifar, or its packed form burn_cifar-*.xz, also beside this folder
# Candle is raced on the CPU when benches/candle is built: (cd benches/candle && cargo build --release)
# `--precision mixed` is for ours alone. What is not installed is named and left out, and so is what fails. A ratio is ours to the
# peer's, above 1 where ours is better, of two runs one after the other; its spread is that over the rounds.
#
# Environment: PYTHON (default python3), SHADERNET (our program; default: built here), THREADS (default: all cores).
set -euo pipefail

usage() {
    sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

peers='' data='' device=auto rounds=3 epochs=2 limit=50000 seconds=2 precision=f32 only='' out=''
while [ $# -gt 0 ]; do
    case $1-$# in
    -h-* | --help-*) usage 0 ;;
    --*-1) usage 2 >&2 ;; # a flag without its value
    esac
    case $1 in
    --data) data=$2 ;;
    --device) device=$2 ;;
    --rounds) rounds=$2 ;;
    --epochs) epochs=$2 ;;
    --limit-train) limit=$2 ;;
    --seconds) seconds=$2 ;;
    --precision) precision=$2 ;;
    --only) only=$2 ;;
    --out) out=$2 ;;
    --*) usage 2 >&2 ;;
    *)
        [ -z "$peers" ] || usage 2 >&2
        peers=$1
        shift
        continue
        ;;
    esac
    shift 2
done
[ -d "$peers" ] && [ -f "$data/data_batch_1.bin" ] || usage 2 >&2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
THREADS=${THREADS:-$(getconf _NPROCESSORS_ONLN)}
command -v "$PYTHON" >/dev/null || { echo "no $PYTHON: set PYTHON" >&2 && exit 1; }
if [ -z "${SHADERNET:-}" ]; then
    (cd "$root" && cargo build --release --quiet)
    SHADERNET=${CARGO_TARGET_DIR:-$root/target}/release/shadernet
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- who takes part: `name threads command…`, one a line, fields separated by tabs

contestants=()
wanted() { [ -z "$only" ] || [[ ,$only, == *,$1,* ]]; }
skip() { printf '%-16s left out: %s\n' "$1" "$2"; }
enter() {
    local name=$1 threads=$2
    shift 2
    wanted "$name" && contestants+=("$(printf '%s\t' "$name" "$threads" "$@")")
    return 0
}

has() { "$PYTHON" -c "import $1" 2>/dev/null; }
if [ ! -f "$peers/torch_seed.py" ]; then
    skip torch "no $peers/torch_seed.py"
elif ! has torch; then
    skip torch "$PYTHON has no torch"
else
    torch=("$PYTHON" "$peers/torch_seed.py" "$data" --epochs "$epochs" --limit-train "$limit" --infer)
    on=cpu
    [ "$device" = cpu ] || ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || on=cuda
    enter torch-eager "$THREADS" "${torch[@]}" --device $on --threads "$THREADS" --mode eager
    enter torch-compile "$THREADS" "${torch[@]}" --device $on --threads "$THREADS" --mode compile
    if [ $on = cuda ]; then
        enter torch-graph "$THREADS" "${torch[@]}" --device $on --threads "$THREADS" --mode graph
    else
        enter torch-eager-1 1 "${torch[@]}" --device $on --threads 1 --mode eager
    fi
fi
if [ ! -f "$peers/keras_seed.py" ]; then
    skip keras "no $peers/keras_seed.py"
elif ! has tensorflow; then
    skip keras "$PYTHON has no tensorflow"
else
    enter keras "$THREADS" "$PYTHON" "$peers/keras_seed.py" "$data" --epochs "$epochs"
fi
burn=$peers/burn/target/release/burn_cifar
packed=$(compgen -G "$peers/burn/burn_cifar-*.xz" || compgen -G "$peers/burn_cifar-*.xz" || true)
packed=${packed%%$'\n'*}
if [ ! -x "$burn" ] && [ -n "$packed" ] && { wanted burn-wgpu || wanted burn-flex; }; then
    burn=$work/burn_cifar
    xz --decompress --stdout "$packed" >"$burn" && chmod +x "$burn" || rm -f "$burn"
fi
if [ ! -x "$burn" ]; then
    skip burn "neither $peers/burn/target/release/burn_cifar nor one packed beside it"
elif [ "$device" = cpu ]; then
    enter burn-flex "$THREADS" env CIFAR_BIN="$data" "$burn" flex all "$seconds" 3
else
    # wgpu's software adapter has to be asked for.
    kind=default
    [ "$device" != llvmpipe ] || kind=cpu
    enter burn-wgpu "$THREADS" env CIFAR_BIN="$data" BURN_KIND=$kind "$burn" wgpu all "$seconds" 3
fi
candle=$root/benches/candle/target/release/candle_cifar
if [ "$device" != cpu ]; then
    skip candle 'it has no GPU backend that is raced here'
elif [ ! -x "$candle" ]; then
    skip candle "no $candle; cargo build --release in benches/candle makes it"
else
    enter candle "$THREADS" env RAYON_NUM_THREADS="$THREADS" "$candle" "$data" --epochs "$epochs" --limit-train "$limit" --seconds "$seconds"
fi
[ ${#contestants[@]} -gt 0 ] || { echo 'nobody to race against' >&2 && exit 1; }

# --- the race

# Turns what a program printed into one line of the record.
cat >"$work/record.py" <<'END'
import json, re, statistics, sys
round_, peer, who, path = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
text = open(path).read()
def last_json():
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
found, report = {}, None
if who == "ours":
    report = json.loads(text)
    found["train images/s"] = report["training"]["images_per_s"]
    found["batch 1 p50 ms"] = report["inference"]["b1"]["p50_ms"]
    found["batch 1 p99 ms"] = report["inference"]["b1"]["p99_ms"]
    for b in ("64", "256"):
        found[f"batch {b} images/s"] = report["inference"]["b" + b]["images_per_s"]
    found["peak host MB"] = (report["memory"]["peak_host_bytes"] or 0) / 2**20 or None
elif peer.startswith("torch"):
    report = last_json()
    found["train images/s"] = statistics.median(e["images_per_s"] for e in report["epochs_detail"])
    found["batch 1 p50 ms"] = report["inference"]["b1"]["p50_ms"]
    found["batch 1 p99 ms"] = report["inference"]["b1"]["p99_ms"]
    for b in ("64", "256"):
        found[f"batch {b} images/s"] = report["inference"]["b" + b]["images_per_s"]
    found["peak host MB"] = report["peak_rss_mb"]
elif peer == "candle":
    report = last_json()
    found["train images/s"] = statistics.median(report["train_images_per_s"])
    found["batch 1 p50 ms"] = report["inference"]["b1"]["p50_ms"]
    found["batch 1 p99 ms"] = report["inference"]["b1"]["p99_ms"]
    for b in ("64", "256"):
        found[f"batch {b} images/s"] = report["inference"]["b" + b]["images_per_s"]
elif peer == "keras":
    report = last_json()
    found["train images/s"] = 50_000 * len(report["history"]["loss"]) / report["fit_s"]
    found["peak host MB"] = report["peak_rss_mb"]
else:
    number = lambda pattern: next((float(n) for n in re.findall(pattern, text)), None)
    found["train images/s"] = number(r"train_b64: median ([\d.]+)")
    found["batch 1 p50 ms"] = number(r"infer_b1 latency: median ([\d.]+)")
    found["batch 64 images/s"] = number(r"infer_b64: ([\d.]+) images/s")
found = {what: value for what, value in found.items() if value}
if not found:
    sys.exit("it printed no result")
print(json.dumps(dict(round=round_, peer=peer, who=who, found=found, report=report)))
END

ours() {
    local limits=(--epochs "$epochs" --limit-train "$limit" --seconds "$seconds" --precision "$precision")
    "$SHADERNET" bench --json --data "$data" --device "$device" --threads "$1" "${limits[@]}"
}

# Runs one program and records what it found: `turn ROUND PEER ours|peer command…`.
turn() {
    local round=$1 peer=$2 who=$3
    shift 3
    printf 'round %s  %-14s %s\n' "$round" "$peer" "$who" >&2
    "$@" >"$work/out" 2>"$work/err" &&
        "$PYTHON" "$work/record.py" "$round" "$peer" "$who" "$work/out" >>"$work/record" 2>>"$work/err"
}

for ((round = 1; round <= rounds; round++)); do
    for i in "${!contestants[@]}"; do
        IFS=$'\t' read -r -a fields <<<"${contestants[$i]}"
        peer=${fields[0]} threads=${fields[1]}
        turn "$round" "$peer" ours ours "$threads" || { tail -n 5 "$work/err" >&2 && exit 1; }
        if ! turn "$round" "$peer" peer "${fields[@]:2}"; then
            skip "$peer" "it failed: $(grep -m 1 'not compiled in' "$work/err" || grep -m 1 -i error "$work/err" || tail -n 1 "$work/err")"
            unset "contestants[$i]"
        fi
    done
done

# --- who was faster

cat >"$work/summary.py" <<'END'
import json, statistics, sys
runs = [json.loads(line) for line in open(sys.argv[1])]
table = {}
for run in runs:
    table.setdefault((run["peer"], run["round"]), {})[run["who"]] = run["found"]
ratios = {}
for (peer, _), pair in sorted(table.items()):
    if "peer" not in pair:
        continue
    for what, theirs in pair["peer"].items():
        if what in pair["ours"]:
            ours = pair["ours"][what]
            less_is_better = what.endswith(("ms", "MB"))
            entry = ratios.setdefault((peer, what), dict(ours=[], peer=[], ratio=[]))
            entry["ours"].append(ours)
            entry["peer"].append(theirs)
            entry["ratio"].append(theirs / ours if less_is_better else ours / theirs)
print(f"\n{'peer':<15} {'what':<20} {'ours':>10} {'peer':>10}   ours : peer, min  median  max")
results = []
for (peer, what), entry in ratios.items():
    ours, theirs, ratio = (statistics.median(entry[k]) for k in ("ours", "peer", "ratio"))
    least, most = min(entry["ratio"]), max(entry["ratio"])
    print(f"{peer:<15} {what:<20} {ours:>10.4g} {theirs:>10.4g}   {'':11}{least:>6.2f}  {ratio:>6.2f}  {most:.2f}")
    results.append(dict(peer=peer, what=what, ours=entry["ours"], theirs=entry["peer"], min=least, median=ratio, max=most))
if not results:
    sys.exit("no peer finished")
if sys.argv[2]:
    with open(sys.argv[2], "w") as out:
        json.dump(dict(results=results, runs=runs), out, indent=1)
END
"$PYTHON" "$work/summary.py" "$work/record" "$out"
