#!/usr/bin/env bash
# Pullgate beside nginx and docker-registry: the same bytes in the same run, the servers pinned to one core and the load to the other,
# interleaved rounds, medians. Prints a table of targets and figures; asserts nothing about times. docs/PERFORMANCE.md explains the rows.
#   tests/bench/run.sh                 everything, some 6 minutes
#   tests/bench/run.sh --quick         fewer rounds, smaller sizes
#   tests/bench/run.sh --only NAME     one section (manifest, blob, …; --help lists them)
#   tests/bench/run.sh --write         everything, and the table goes into docs/PERFORMANCE.md
# PULLGATE_BIN and PULLGATE_TESTS_BIN name another build than build/.
set -eu
cd "$(dirname "$0")/../.."
. conf/install-packages.sh
if [ -z "${PULLGATE_BIN:-}" ]; then
    cmake --preset release >/dev/null && cmake --build --preset release >/dev/null
    export PULLGATE_BIN=$PWD/build/bin PULLGATE_TESTS_BIN=$PWD/build/tests
fi
PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 tests/bench/bench.py "$@"
