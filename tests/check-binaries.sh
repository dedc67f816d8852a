#!/usr/bin/env bash
# The release programs as they came out: position-independent, read-only after relocation, no executable stack, bounds checked by libc,
# and none of the calls that tests/check-tree.sh bans, not even by way of a macro. Landing pads (-fcf-protection) would be of no use:
# Debian's own start files have none, so that the linker drops the mark; and what is no library cannot be loaded as one anyway.
#   tests/check-binaries.sh DIRECTORY
bad=0
complain() {
    echo "binaries: $*"
    bad=1
}
for b in pullgate-proxy pullgate-admin pullgate; do
    f=$1/$b
    [ -x "$f" ] || { complain "$f is missing"; continue; }
    head=$(readelf -hW "$f") segments=$(readelf -lW "$f") dynamic=$(readelf -dW "$f") symbols=$(nm -D --undefined-only "$f" | sed 's/^ *U *//; s/@.*//')
    grep -q 'Type: *DYN' <<<"$head" && grep -q 'FLAGS_1.*PIE' <<<"$dynamic" || complain "$b: no PIE"
    grep -q 'GNU_RELRO' <<<"$segments" || complain "$b: no RELRO"
    grep -qE 'FLAGS.*BIND_NOW|FLAGS_1.*NOW' <<<"$dynamic" || complain "$b: not bound at the start"
    grep -q 'GNU_STACK.* RW ' <<<"$segments" || complain "$b: an executable stack"
    grep -q ' RWE ' <<<"$segments" && complain "$b: a segment that is writable and executable"
    grep -qE 'TEXTREL|RPATH|RUNPATH' <<<"$dynamic" && complain "$b: text relocations or a path of its own for libraries"
    grep -q '_chk$' <<<"$symbols" || complain "$b: not fortified"
    grep -q '^__stack_chk_fail$' <<<"$symbols" || complain "$b: no stack protector"
    hits=$(grep -xE '(__)?(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|gets|system|popen)(_chk)?' <<<"$symbols")
    [ -z "$hits" ] || complain "$b: calls" $hits
done
exit $bad
