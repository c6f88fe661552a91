#!/usr/bin/env bash
# Runs every test, on every kind of device that this machine can give.
#
#   tests/run.sh                      everything
#   SHADERNET_TESTS=cpu tests/run.sh  without any GPU, the software ones included
#
# The whole suite runs once on the first adapter there is. What touches a GPU then runs again on Mesa's software adapter with
# subgroups of 4 and of 16 in place of 8, and on SwiftShader, another driver with another compiler; there the largest grids are
# thinned, and faults are not made in kernels. Kernels of cooperative matrices run on the first release of Mesa's adapter that has them.
# On Debian and Ubuntu, as root, what is missing is installed with apt. Nothing else is written outside the target folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
work=$target/test-devices
mkdir -p "$work/run"
chmod 700 "$work/run"
# Mesa's cache of compiled shaders does not tell subgroup sizes apart, so each size has one of its own.
export MESA_SHADER_CACHE_DIR=$work/mesa-256
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$work/run} # Mesa asks for one

failed=0
summary=()

# Runs a pass under a name: `pass NAME command…`.
pass() {
    local name=$1 start=$SECONDS verdict=ok
    shift
    printf '\n== %s ==\n' "$name"
    "$@" || verdict=FAILED
    [ $verdict = ok ] || failed=1
    summary+=("$(printf '%-44s %5d s  %s' "$name" $((SECONDS - start)) $verdict)")
}

# Notes a pass that cannot be: `skip NAME reason`.
skip() {
    printf '\n== %s: skipped: %s ==\n' "$1" "$2"
    summary+=("$(printf '%-44s %7s  skipped: %s' "$1" - "$2")")
}

# Clients of the server that no one here wrote. They need Python and packages from its index.
clients() {
    local code=0
    if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        skip 'other programs as clients of the server' 'no python3 with venv'
        return
    fi
    printf '\n== other programs as clients of the server ==\n'
    tests/serve/clients.sh || code=$?
    case $code in
    0) summary+=("$(printf '%-44s %7s  ok' 'other programs as clients of the server' -)") ;;
    77) skip 'other programs as clients of the server' 'their packages cannot be installed' ;;
    *) failed=1 && summary+=("$(printf '%-44s %7s  FAILED' 'other programs as clients of the server' -)") ;;
    esac
}

finish() {
    printf '\n%s\n' "${summary[@]}"
    [ $failed = 0 ] && echo 'all passed' || echo 'FAILED'
    exit $failed
}

# The usable adapters, one a line.
adapters() {
    cargo test --quiet --test adapters -- --nocapture 2>"$work/adapters.log" | sed -n 's/^adapter: //p'
}

can_install() {
    [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

printf '== build ==\n'
cargo test --no-run

if [ "${SHADERNET_TESTS:-}" = cpu ]; then
    pass 'everything, without a GPU' cargo test --no-fail-fast
    clients
    skip 'every adapter' 'SHADERNET_TESTS=cpu'
    finish
fi

found=$(adapters || true)
if [ -z "$found" ] && can_install; then
    echo 'No usable adapter: installing the software one.'
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mesa-vulkan-drivers libvulkan1 || true
    found=$(adapters || true)
fi
if [ -z "$found" ]; then
    cat "$work/adapters.log" >&2
    cat >&2 <<'END'
No usable adapter. Install a Vulkan driver, or the software one: packages mesa-vulkan-drivers and libvulkan1 on Debian and
Ubuntu, mesa-vulkan-drivers and vulkan-loader on Fedora, vulkan-swrast on Arch. SHADERNET_TESTS=cpu tests without.
END
    exit 1
fi
printf 'Usable adapters:\n%s\n' "$found"

# The unit tests and the test files that touch a GPU; what each has to say is printed when it ends. On software adapters, which compile
# kernels on one thread, as many at once as there are processors; on others one, since some fill a GPU's memory. Arguments are for the
# test programs.
at_once=1
! head -n 1 <<<"$found" | grep -qiE 'llvmpipe|swiftshader' || at_once=$(getconf _NPROCESSORS_ONLN)
touches='executors\(|check_op|GpuExecutor|common::gpu'
gpu_tests() {
    { echo --lib && grep -lE "$touches" tests/*.rs | sed 's,^tests/\(.*\).rs$,--test=\1,'; } |
        xargs -P "$at_once" -I{} bash -c '
            code=0
            said=$(cargo test --no-fail-fast "$1" -- "${@:2}" 2>&1) || code=1
            printf "\n== %s, %d s ==\n%s\n" "$1" $SECONDS "$said"
            exit $code' _ {} "$@"
}

# All other test files, the program, and the examples in the documentation.
other_tests() {
    local code=0
    # shellcheck disable=SC2046 # a word each
    cargo test --no-fail-fast --bins $(grep -LE "$touches" tests/*.rs | sed 's,^tests/\(.*\).rs$,--test=\1,') || code=1
    cargo test --no-fail-fast --doc || code=1
    return $code
}
export touches at_once
export -f gpu_tests

pass 'what touches a GPU, on the first adapter' gpu_tests
pass 'everything else' other_tests
clients

# That every fault of a kernel is noticed has been seen by then; compiling them all takes minutes.
spared='gpu_tests --skip every_mutation_of_a_kernel_is_noticed'

if grep -qi llvmpipe <<<"$found"; then
    for width in 128 512; do
        pass "Mesa software adapter, subgroups of $((width / 32))" \
            env SHADERNET_TEST_THIN=4 SHADERNET_TEST_ADAPTER=llvmpipe LP_NATIVE_VECTOR_WIDTH=$width MESA_SHADER_CACHE_DIR="$work/mesa-$width" \
            bash -c "$spared"
    done
else
    skip 'Mesa software adapter, subgroups of 4 and 16' 'the driver is not installed'
fi

# SwiftShader comes with Debian's Chromium; its library and manifest alone are taken from the package.
swiftshader() {
    local folder=$work/swiftshader
    icd=$folder/usr/lib/chromium/vk_swiftshader_icd.json
    [ -f "$icd" ] && return
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    rm -rf "$folder" && mkdir -p "$folder"
    if ! (cd "$folder" && apt-get download -qq chromium-common 2>/dev/null); then
        can_install && apt-get update -qq && (cd "$folder" && apt-get download -qq chromium-common) || return 1
    fi
    dpkg-deb --fsys-tarfile "$folder"/chromium-common_*.deb |
        tar -x -C "$folder" ./usr/lib/chromium/libvk_swiftshader.so ./usr/lib/chromium/vk_swiftshader_icd.json || return 1
    rm -f "$folder"/*.deb
}

if swiftshader >"$work/swiftshader.log" 2>&1; then
    # The loader took its drivers from the first variable until 1.3.207, and takes them from the second since.
    pass 'SwiftShader' env SHADERNET_TEST_THIN=4 SHADERNET_TEST_ADAPTER=swiftshader VK_ICD_FILENAMES="$icd" VK_DRIVER_FILES="$icd" \
        bash -c "$spared"
else
    skip 'SwiftShader' "no chromium-common package to take it from (see $work/swiftshader.log)"
fi

# Mesa's software adapter has cooperative matrices since release 26, which Debian has in the backports to trixie.
newer_mesa() {
    mesa=$work/mesa-26
    tests/debian13.sh "$mesa" mesa-vulkan-drivers/trixie-backports libvulkan1 libc6 || return 1
    driver=$(find "$mesa" -name libvulkan_lvp.so | head -n 1)
    [ -n "$driver" ] || { echo 'the packages have no libvulkan_lvp.so' && return 1; }
    icd=$mesa/icd.json
    printf '{ "ICD": { "api_version": "1.3.0", "library_path": "%s" }, "file_format_version": "1.0.1" }\n' "$driver" >"$icd"
}

name="Mesa's newer software adapter, cooperative matrices"
if newer_mesa >"$work/mesa-26.log" 2>&1; then
    linker=$(find "$mesa" -name 'ld-linux-*.so.*' | head -n 1)
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    pass "$name" env SHADERNET_TEST_THIN=4 SHADERNET_TEST_ADAPTER=llvmpipe SHADERNET_TEST_COOPERATIVE=required LP_NATIVE_VECTOR_WIDTH=256 \
        MESA_SHADER_CACHE_DIR="$mesa/shaders" VK_ICD_FILENAMES="$icd" VK_DRIVER_FILES="$icd" \
        "CARGO_TARGET_${host}_RUNNER=$linker --library-path $(dirname "$driver")" \
        bash -c 'cargo test --test cooperative && cargo test --test mutations cooperative'
else
    skip "$name" "its packages cannot be had: $(tail -n 1 "$work/mesa-26.log")"
fi
finish
