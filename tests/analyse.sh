#!/usr/bin/env bash
# Everything that finds mistakes without a test having thought of them. tests/run.sh runs the short steps (tree, cppcheck); all of them
# take some minutes on two idle cores, tsan and its like most.
#   tests/analyse.sh             every step but tsan and mutants
#   tests/analyse.sh STEP...     of: warnings clang cppcheck fanalyzer tidy arrays valgrind helgrind tsan mutants
# What a tool finds and is right as it is stands in tests/analyse.reviewed, each with its reason. Closes with the number of findings
# that are not in there; exits non-zero when there is one, or when an entry of that list no longer matches anything.
set -u
cd "$(dirname "$0")/.."
root=$PWD
steps=${*:-warnings clang cppcheck fanalyzer tidy arrays valgrind helgrind}
jobs=$(nproc)
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
c_files=$(ls lib/*.c proxy/*.c admin/*.c cli/*.c)

configure() { # directory, compiler, C flags
    cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPULLGATE_TESTS=OFF -DCMAKE_C_COMPILER="$2" "-DCMAKE_C_FLAGS=$3" >"$work/cmake.log" 2>&1 ||
        { cat "$work/cmake.log"; echo "build/analyse:1: [configure] cmake failed" >>"$work/found"; }
}

from_compiler() { # file:line:col: error: text [-Wname] -> file:line: [name] text
    sed -nE "s#^($root/|\.\./|/)*((lib|proxy|admin|cli|include)/[^:]+):([0-9]+):[0-9]+: (warning|error|fatal error): (.*)#\2:\4: \6#p" |
        sed -E 's#^([^:]+:[0-9]+): (.*) \[([^][]*)\]$#\1: [\3] \2#; s#,-warnings-as-errors\]#]#; s#\[(-W)?(error=)?#[#' | sort -u
}

step_warnings() { # more of gcc's than the build asks for
    printf '%s\n' $c_files | xargs -P "$jobs" -n 4 gcc -std=c17 -O2 -fsyntax-only -D_GNU_SOURCE '-DPULLGATE_VERSION="0"' -Iinclude -isystem /usr/include/hiredis \
        -Wconversion -Wsign-conversion -Wimplicit-fallthrough -Wcast-align -Wduplicated-cond -Wduplicated-branches -Wlogical-op -Wtrampolines -Walloca \
        -Wnull-dereference -Wformat-signedness -Iadmin 2>&1 | from_compiler
}

step_clang() { # the whole tree, tests too, with the warnings of the build
    configure build/analyse-clang-all clang-14 ""
    cmake -S . -B build/analyse-clang-all -DPULLGATE_TESTS=ON >/dev/null && cmake --build build/analyse-clang-all -- -k 0 2>&1 | from_compiler
}

# No -D: it would look at that one configuration only, and finds less. uninitvar is off: it takes the loops of <sys/queue.h> for reads;
# gcc, clang-tidy and valgrind see better what is not initialised. readdirCalled is off: POSIX.1-2008 and glibc want no readdir_r.
step_cppcheck() {
    cppcheck -j "$jobs" -q --std=c11 --enable=warning,performance,portability --inconclusive -Iinclude -Ilib -Iproxy -Iadmin --library=posix,bsd \
        --suppress=missingIncludeSystem --suppress=preprocessorErrorDirective --suppress=uninitvar --suppress=readdirCalled --template='{file}:{line}: [{id}] {message}' lib proxy admin cli 2>&1 | grep -E '^[a-z]+/' | sort -u
}

step_fanalyzer() {
    configure build/analyse-gcc gcc "-fanalyzer -DPULLGATE_ANALYSE"
    cmake --build build/analyse-gcc --clean-first -- -k 0 2>&1 | from_compiler
}

step_tidy() {
    configure build/analyse-clang clang-14 -DPULLGATE_ANALYSE
    printf '%s\n' $c_files | xargs -P "$jobs" -n 1 clang-tidy-14 -p build/analyse-clang --quiet 2>/dev/null | from_compiler
}

step_arrays() { # scan-build's checkers of array bounds and of what clang-tidy does not carry; core's findings are in tidy's list
    printf '%s\n' $c_files | xargs -P "$jobs" -n 1 clang-14 --analyze -Xclang -analyzer-output=text -Xclang -analyzer-checker=alpha.security.ArrayBoundV2,alpha.security.ReturnPtrRange,alpha.security.MallocOverflow,alpha.unix.cstring,alpha.core.SizeofPtr \
        -Xclang -analyzer-disable-checker=core.NullDereference -std=c17 -D_GNU_SOURCE -DPULLGATE_ANALYSE '-DPULLGATE_VERSION="0"' -Iinclude -Iadmin -isystem /usr/include/hiredis -o /dev/null 2>&1 |
        from_compiler | grep -v ': \[core\.' | sed -E 's#^([^:]+:[0-9]+): ([^[])#\1: [arrays] \2#'
}

units() { # build, checker and its arguments: every unit test under it
    local t out
    { cmake --preset release && cmake --build --preset release; } >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" >&2; echo "build:1: [build] failed"; return; }
    for t in $units; do
        if ! out=$(timeout 600 "$@" "build/tests/$t" 2>&1); then
            { echo "== $t"; grep -E '==[0-9]+==|ERROR|LINE' <<<"$out" | head -40; } >&2
            echo "tests/unit/$t.c:1: [${1##*/}] $(grep -cE '^==[0-9]+== +(at 0x|Possible data race)' <<<"$out") places, or the test fails"
        fi
    done
}

step_valgrind() {
    units=$(cd tests/unit && ls test_*.c | sed 's/\.c$//' | grep -vx test_sandbox) # whose filter would be put on valgrind's own calls
    units valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite --num-callers=20 --suppressions=tests/valgrind.supp
}

step_helgrind() { # those that start threads, but again not test_sandbox
    units=$(cd tests/unit && grep -l pthread_create test_*.c | sed 's/\.c$//' | grep -vx test_sandbox)
    units valgrind --tool=helgrind -q --error-exitcode=9 --num-callers=20 --suppressions=tests/valgrind.supp
}

step_tsan() { # the whole integration suite; about four times as long as without
    { cmake --preset tsan && cmake --build --preset tsan; } >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" >&2; echo "build/tsan:1: [build] failed"; return; }
    TSAN_OPTIONS=second_deadlock_stack=1 PULLGATE_BIN=$root/build/tsan/bin PULLGATE_TESTS_BIN=$root/build/tsan/tests /usr/bin/python3 -m pytest -q -n 2 --dist loadfile \
        -rfE -p no:cacheprovider --basetemp="$work/t" -m "not once" tests/integration >&2 || echo "build/tsan:1: [tsan] a test failed, see above"
}

step_mutants() {
    tests/mutants.py >&2 || echo "tests/mutants.py:1: [mutants] a mutant lives, see above"
}

for step in $steps; do
    printf '== %s (%s s)\n' "$step" "$SECONDS"
    "step_$step" >>"$work/found"
done
printf '== done (%s s)\n' "$SECONDS"

PULLGATE_STEPS="$steps" /usr/bin/python3 - "$work/found" <<'PY'
import fnmatch, os, pathlib, sys
entries = []  # [file, check, text in the line, reason, times used]
for n, line in enumerate(pathlib.Path("tests/analyse.reviewed").read_text().splitlines(), 1):
    if line.strip() and not line.startswith("#"):
        parts = [p.strip() for p in line.split(" | ")]
        assert len(parts) == 4 and all(parts), f"tests/analyse.reviewed:{n}: file | check | text in the line | reason"
        entries.append([*parts, 0])
left = explained = 0
for found in sorted(set(pathlib.Path(sys.argv[1]).read_text().splitlines())):
    where, _, rest = found.partition(": ")
    name, _, number = where.rpartition(":")
    check = rest[1:rest.find("]")]
    try:
        text = pathlib.Path(name).read_text().splitlines()[int(number) - 1]
    except (OSError, IndexError, ValueError):
        text = ""
    for e in entries:
        if fnmatch.fnmatch(name, e[0]) and e[1] == check and e[2] in text:
            e[4] += 1
            explained += 1
            break
    else:
        print(found)
        left += 1
stale = [e for e in entries if not e[4]] if len(os.environ["PULLGATE_STEPS"].split()) >= 8 else []
for e in stale:
    print("tests/analyse.reviewed: matches nothing: " + " | ".join(e[:3]))
print(f"{explained} findings reviewed, {left} unexplained")
sys.exit(1 if left or stale else 0)
PY
