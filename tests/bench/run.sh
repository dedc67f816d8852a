#!/usr/bin/env bash
# A checked hot manifest beside nginx: the same bytes, the same run, the servers pinned to one core and the load to the other.
# Prints medians of interleaved rounds as a table; asserts nothing about times.
#   tests/bench/run.sh [ROUNDS] [SECONDS]
set -eu
cd "$(dirname "$0")/../.."
. conf/install-packages.sh
cmake --preset release >/dev/null && cmake --build --preset release >/dev/null
PULLGATE_BIN=$PWD/build/bin exec /usr/bin/python3 tests/bench/bench.py "${1:-5}" "${2:-3}"
