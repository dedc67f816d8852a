#!/usr/bin/env bash
# The fuzz targets: replay what is committed, fuzz for a while, keep what is new.
#   tests/fuzz/run.sh HOURS [target…]        each target in turn for HOURS / number of targets (0.5 is half an hour in all)
#   tests/fuzz/run.sh 5s [target…]           the corpora, and on to 5 seconds for each target
#   tests/fuzz/run.sh --replay [target…]     corpora and regressions only
#   tests/fuzz/run.sh --merge [target…]      minimise: what FUZZ_KEEP gathered goes into tests/fuzz/corpus/
# FUZZ_JOBS=n targets at a time (1), FUZZ_SECONDS=n a slice (60; a long run goes round and round), FUZZ_BUILD=dir (build/fuzz),
# FUZZ_KEEP=dir where new inputs are kept (build/fuzz/keep), FUZZ_ARTIFACTS=dir where finds go (a temporary directory).
# Closes with a line a target: seconds of wall and processor, executions, edges, inputs, finds. Exits non-zero after a find.
set -u
cd "$(dirname "$0")/../.."
root=$PWD
build=${FUZZ_BUILD:-$root/build/fuzz}
keep=${FUZZ_KEEP:-$build/keep}
jobs=${FUZZ_JOBS:-1}
slice=${FUZZ_SECONDS:-60}
here=$root/tests/fuzz
mode=${1:?hours, --replay or --merge}
shift
if [ ! -f "$build/build.ninja" ] || [ -z "${FUZZ_BUILT:-}" ]; then
    launcher=$(command -v ccache >/dev/null && echo -DCMAKE_C_COMPILER_LAUNCHER=ccache)
    log=$(cmake --preset fuzz -B "$build" $launcher && cmake --build "$build" --target fuzzers) || {
        tail -40 <<<"$log"
        exit 2
    }
fi
targets=("$@")
if [ $# -eq 0 ]; then
    targets=(proxy) # the slowest: the others run beside it
    for f in "$here"/fuzz_*.c; do
        f=${f##*/fuzz_}
        [ "$f" = proxy.c ] || targets+=("${f%.c}")
    done
fi
artifacts=${FUZZ_ARTIFACTS:-$(mktemp -d)}
mkdir -p "$artifacts" "$keep" "$keep/.log"
FUZZ_TMP=$(mktemp -d)
export FUZZ_TMP
trap 'rm -rf --one-file-system "$FUZZ_TMP"' EXIT
export ASAN_OPTIONS=abort_on_error=1:detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

options() { # target: what bounds it
    local o="-timeout=60 -rss_limit_mb=1024 -malloc_limit_mb=256 -print_final_stats=1 -verbosity=1 -reload=0"
    case $1 in
    manifest) o+=" -max_len=65536 -malloc_limit_mb=64" ;;
    proxy) o+=" -max_len=4096" ;;
    head | edge | config) o+=" -max_len=20000" ;;
    *) o+=" -max_len=8192" ;;
    esac
    [ -f "$here/dict/$1" ] && o+=" -dict=$here/dict/$1"
    echo "$o"
}

unpack() { # target: its committed corpus as files, in a directory of the run
    local to=$keep/.seed/$1
    rm -rf "$to"
    mkdir -p "$to"
    [ -f "$here/corpus/$1.tar.gz" ] && tar -xzf "$here/corpus/$1.tar.gz" -C "$to"
    [ -d "$here/regressions/$1" ] && cp "$here/regressions/$1"/* "$to"
    echo "$to"
}

one() { # target, libFuzzer's arguments and directories: a log, and its figures appended to the target's
    local t=$1 log=$keep/.log/$1.$BASHPID times wall
    shift
    wall=$(date +%s%N)
    (
        TIMEFORMAT='cpu %U %S'
        time "$build/fuzz/fuzz_$t" $(options "$t") -artifact_prefix="$artifacts/$t-" "$@" >"$log" 2>&1
        echo $? >"$log.rc"
    ) 2>"$log.time"
    local rc=$(cat "$log.rc") find=0
    # A slice that ends by a limit that another program used up (a busy machine's timeout) leaves an artifact as well: somebody looks.
    [ "$rc" -eq 0 ] || find=1
    times=$(awk '/^cpu/ {print $2 + $3}' "$log.time")
    echo "$find $(((($(date +%s%N) - wall)) / 1000000)) ${times:-0} $(awk '/stat::number_of_executed_units/ {print $2}' "$log") \
$(grep -oE 'cov: [0-9]+' "$log" | tail -1 | cut -d' ' -f2) $(grep -oE 'corp: [0-9]+' "$log" | tail -1 | cut -d' ' -f2)" >>"$keep/.log/$t.figures"
    if [ "$find" -eq 1 ]; then
        echo "== $t: a find"
        grep -E 'ORACLE|ERROR|SUMMARY|runtime error|Test unit written' "$log" | head -8
        grep -E '^ *#[0-9]+ ' "$log" | head -12
    fi
    rm -f "$log" "$log.rc" "$log.time"
}

print_line() { # target
    awk -v t="$1" '{ find += $1; wall += $2 / 1000; cpu += $3; runs += $4; if ($5 > cov) cov = $5; if ($6 > corp) corp = $6 }
        END { printf "%-14s wall %7.1f s  cpu %7.1f s  executions %11d  edges %5d  corpus %5d  finds %d\n", t, wall, cpu, runs, cov, corp, find
              exit find > 0 }' "$keep/.log/$1.figures"
}

fuzz_one() { # target, seconds
    local t=$1 seed
    seed=$(unpack "$t")
    mkdir -p "$keep/$t"
    one "$t" -max_total_time="$2" "$keep/$t" "$seed"
}

replay_one() { # target
    local seed=$(unpack "$1")
    one "$1" -runs=0 "$seed"
}

in_turn() { # function, its arguments after the target: over all targets, $jobs at a time
    local fn=$1 running=0
    shift
    for t in "${targets[@]}"; do
        "$fn" "$t" "$@" &
        running=$((running + 1))
        if [ $running -ge "$jobs" ]; then
            wait -n
            running=$((running - 1))
        fi
    done
    wait
}

rm -f "$keep/.log"/*.figures
case $mode in
--replay)
    in_turn replay_one
    ;;
--merge)
    for t in "${targets[@]}"; do
        seed=$(unpack "$t")
        mkdir -p "$keep/$t" "$here/corpus"
        rm -rf "$keep/.merged"
        mkdir "$keep/.merged"
        counters=
        [ "$t" = proxy ] && counters=-use_counters=0 # each of its inputs costs a world: one an edge is enough to replay
        "$build/fuzz/fuzz_$t" $(options "$t") -merge=1 $counters -artifact_prefix="$artifacts/$t-" "$keep/.merged" "$seed" "$keep/$t" >"$keep/.log/merge" 2>&1 || {
            tail -5 "$keep/.log/merge"
            exit 1
        }
        # One archive a target: hundreds of tiny files would be most of the tree. The same inputs make the same bytes.
        tar -C "$keep/.merged" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . | gzip -9n >"$here/corpus/$t.tar.gz"
        printf '%-14s %5d inputs, %7d bytes packed\n' "$t" "$(find "$keep/.merged" -type f | wc -l)" "$(stat -c %s "$here/corpus/$t.tar.gz")"
    done
    exit 0
    ;;
*)
    case $mode in
    *s) total=${mode%s} ;;
    *) total=$(awk -v h="$mode" -v n="${#targets[@]}" -v j="$jobs" 'BEGIN { printf "%d", h * 3600 / n * j }') ;;
    esac
    [ "$total" -ge 1 ] || total=1
    while [ "$total" -gt 0 ]; do
        now=$((total < slice ? total : slice))
        in_turn fuzz_one "$now"
        total=$((total - now))
    done
    ;;
esac
bad=0
for t in "${targets[@]}"; do print_line "$t" || bad=1; done
[ $bad -eq 0 ] && [ -z "${FUZZ_ARTIFACTS:-}" ] && rm -rf --one-file-system "$artifacts"
[ $bad -eq 0 ] || echo "finds are in $artifacts"
exit $bad
