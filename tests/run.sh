#!/usr/bin/env bash
# Installs what the tests need, builds the release and the sanitizer build, and runs every test against both.
#   tests/run.sh            everything
#   tests/run.sh --quick    the release build only, without the sanitizer pass
# The sanitizer pass also measures coverage, and fails below its goals (tests/coverage.py).
# Closes with "N passed, N failed" over everything that ran; exits non-zero when anything failed.
set -u
cd "$(dirname "$0")/.."
root=$PWD
quick=0
[ "${1:-}" = --quick ] && quick=1
. conf/install-packages.sh

work=$(mktemp -d) # what the run leaves behind is in here, and goes with it; kept when a test failed
keep=0
trap '[ $keep -eq 1 ] || rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

passed=0
failed=0
skipped=0
failures=()

count() { # name status: one test of its own
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures+=("$1")
    fi
}

step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

build() { # preset
    step "build: $1"
    { cmake --preset "$1" && cmake --build --preset "$1" -- -k 0; } >"$work/build.log" 2>&1
    local rc=$?
    [ $rc -eq 0 ] || tail -60 "$work/build.log"
    count "build $1" $rc
    return $rc
}

unit() { # build directory
    step "unit tests: $1"
    local t out
    for t in "$1"/tests/test_*; do
        [ -x "$t" ] || continue
        if out=$(timeout --foreground 300 "$t" 2>&1); then
            n=$(grep -c '^\[       OK \]' <<<"$out")
            passed=$((passed + n))
            printf '%-40s %s passed\n' "$(basename "$t")" "$n"
        else
            ok=$(grep -c '^\[       OK \]' <<<"$out")
            bad=$(grep -c '^\[  FAILED  \] test\|^\[  FAILED  \] [a-z_]*$' <<<"$out")
            [ "$bad" -gt 0 ] || bad=1
            passed=$((passed + ok))
            failed=$((failed + bad))
            failures+=("$t")
            tail -40 <<<"$out"
        fi
    done
}

summary() { # log: the numbers of pytest's closing line into p f e s
    local line
    line=$(grep -E '^(=+ )?[0-9]+ (passed|failed|skipped|error)' "$1" | tail -1)
    p=$(grep -oE '[0-9]+ passed' <<<"$line" | cut -d' ' -f1)
    f=$(grep -oE '[0-9]+ failed' <<<"$line" | cut -d' ' -f1)
    e=$(grep -oE '[0-9]+ error' <<<"$line" | cut -d' ' -f1)
    s=$(grep -oE '[0-9]+ skipped' <<<"$line" | cut -d' ' -f1)
    p=${p:-0} f=$((${f:-0} + ${e:-0})) s=${s:-0}
}

integration() { # build directory, pytest arguments
    step "integration tests: $1"
    local dir=$1 rc p f e s
    local at=$work/${dir//\//-}
    shift
    mkdir "$at"
    export PULLGATE_BIN="$root/$dir/bin" PULLGATE_TESTS_BIN="$root/$dir/tests"
    timeout --foreground 1500 /usr/bin/python3 -m pytest -o cache_dir="$at/cache" --basetemp="$at/t" -q -n 3 --dist loadfile -rfEs --durations=8 \
        tests/integration "$@" 2>&1 | tee "$at/log"
    rc=${PIPESTATUS[0]}
    summary "$at/log"
    passed=$((passed + p))
    skipped=$((skipped + s))
    if [ "$f" -gt 0 ] && [ "$f" -le 10 ]; then
        # Three files at a time, since most of a test is waiting: on a small machine a test of real time can lose its processor. What failed gets one run alone, and
        # is named, whatever comes of it.
        echo "once more, alone:"
        grep -E '^(FAILED|ERROR) ' "$at/log" | cut -c1-200
        timeout --foreground 600 /usr/bin/python3 -m pytest -o cache_dir="$at/cache" --basetemp="$at/a" -q --lf --lfnf=none -rfE tests/integration "$@" 2>&1 |
            tee "$at/again"
        rc=${PIPESTATUS[0]}
        summary "$at/again"
        passed=$((passed + p))
    fi
    failed=$((failed + f))
    [ "$f" -eq 0 ] || failures+=("integration tests of $dir, see above")
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then
        failed=$((failed + 1))
        failures+=("pytest in $dir ended with $rc")
    fi
}

# The sanitizer pass counts lines as it goes; the modules that decide have their branches counted in a build without sanitizers.
coverage() {
    local pure=$(tests/coverage.py modules) t
    tests/coverage.py lines build/dev
    count "coverage of lines" $?
    { cmake --preset coverage && cmake --build --preset coverage --target $(printf 'test_%s ' $pure); } >"$work/build.log" 2>&1 || tail -60 "$work/build.log"
    find build/coverage -name '*.gcda' -delete
    for t in $pure; do "build/coverage/tests/test_$t" >/dev/null 2>&1; done
    tests/coverage.py branches build/coverage
    count "coverage of branches" $?
}

fuzz() { # every target: its corpus and regressions, and a moment of fuzzing
    step "fuzz targets"
    local line
    FUZZ_JOBS=2 FUZZ_KEEP="$work/fuzz" FUZZ_ARTIFACTS="$work/finds" timeout --foreground 600 tests/fuzz/run.sh 2s 2>&1 | tee "$work/fuzz.log"
    count "fuzz targets: see above" "${PIPESTATUS[0]}"
    while read -r line; do
        [[ $line == *" finds 0" ]]
        count "fuzz target ${line%% *}" $?
    done < <(grep -E ' finds [0-9]+$' "$work/fuzz.log")
}

step "checks of the tree"
tests/check-tree.sh
count "tree" $?

tests/analyse.sh warnings cppcheck # the others take too long for every day
count "analysis" $?

if build release; then
    tests/check-binaries.sh build/bin
    count "binaries" $?
    unit build
    integration build
fi
if [ $quick -eq 0 ] && build dev; then
    export ASAN_OPTIONS=abort_on_error=1:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    find build/dev -name '*.gcda' -delete
    unit build/dev
    integration build/dev -m "not once"
    fuzz
    step "coverage"
    coverage
fi

step "done"
for f in "${failures[@]:-}"; do [ -n "$f" ] && echo "failed: $f"; done
if [ $failed -gt 0 ]; then
    keep=1
    echo "what the tests left is in $work"
fi
if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ $failed -eq 0 ]
