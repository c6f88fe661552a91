#!/usr/bin/env bash
# 200 kills (kill -9) at random moments: of a process that trains and saves after every step, and of one that only saves.
# Every resume must load, and the run end identical to an uninterrupted one. About a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
export SHADERNET_KILLS=${SHADERNET_KILLS:-200}
cargo test --test train killed -- --nocapture
cargo test --test files_resume -- --nocapture
