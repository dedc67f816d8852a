#!/usr/bin/env bash
# The long proofs at their full sizes, one after another, through the real daemons:
#   tests/endurance/run.sh [decisions faults revocations kills drains reloads mixed strangers]
# PULLGATE_BIN: a release build's bin (build/bin). PULLGATE_ENDURE_<NAME>: another size; PULLGATE_ENDURE_SEED repeats a run. Each prints
# what it sees and closes with a line "-- name: {figures}"; exits non-zero when one did not hold. docs/PROOF.md keeps the figures.
# The suite runs small sizes of the same programs (tests/integration/test_endurance.py).
set -u
cd "$(dirname "$0")/../.."
export PULLGATE_BIN="${PULLGATE_BIN:-$PWD/build/bin}"
[ -x "$PULLGATE_BIN/../tests/drive_load" ] || { echo "no release build at $PULLGATE_BIN: cmake --preset release && cmake --build --preset release" >&2; exit 2; }
[ $# -gt 0 ] || set -- decisions faults revocations kills drains reloads mixed strangers
bad=0
for name in "$@"; do
    /usr/bin/python3 -W ignore "tests/endurance/$name.py" || { echo "!! $name did not hold"; bad=1; }
done
exit $bad
