#!/usr/bin/env bash
# Twenty epochs of 2,000 images on the CPU and on the GPU under test: memory must be flat after the first epoch.
# About half a minute on the CPU; minutes on a software GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export SHADERNET_SOAK_EPOCHS=${SHADERNET_SOAK_EPOCHS:-20} SHADERNET_SOAK_IMAGES=${SHADERNET_SOAK_IMAGES:-2000}
exec cargo test --release --test soak -- --nocapture --test-threads=1
