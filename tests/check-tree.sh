#!/usr/bin/env bash
# Rules of the tree that a grep can check: banned calls, one foreign library a file, the top level.
cd "$(dirname "$0")/.."
bad=0
complain() {
    echo "tree: $*"
    bad=1
}
files=$(git -c safe.directory="$PWD" ls-files) || exit 1 # root looks at a tree of somebody else
c_files=$(grep -E '^(include|lib|proxy|admin|cli)/.*\.[ch]$' <<<"$files")
hits=$(grep -nE '\b(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|gets|alloca|system|popen)\(' $c_files | grep -v '^\S*:[0-9]*: *\*')
[ -z "$hits" ] || complain "banned calls:"$'\n'"$hits"
hits=$(grep -nE '\b(malloc|calloc|realloc|strdup|strndup|free)\(' $c_files | grep -vE '^lib/mem\.c|(mem|json|sb|event|X509|EVP|SSL|BIO|_)[a-zA-Z0-9_]*free\(|^\S+: *\*' | grep -vE '[a-zA-Z_>.]free\(')
[ -z "$hits" ] || complain "allocation outside lib/mem.c:"$'\n'"$hits"
only() { # header pattern, allowed files
    hits=$(grep -lE "#include <($1)" $c_files | grep -vxE "$2")
    [ -z "$hits" ] || complain "$1 is included outside $2: $hits"
}
only 'evhtp' 'lib/edge\.c'
only 'event2/' 'lib/(loop|edge)\.c'
only 'curl/' 'lib/fetch\.c'
only 'hiredis/' 'lib/cache\.c'
only 'sqlite3' 'lib/store\.c'
only 'jansson' 'lib/jv\.c'
only 'openssl/' 'lib/(seal|edge)\.c'
only 'yaml' 'lib/config\.c'
only 'systemd/' 'lib/notify\.c'
only 'seccomp' 'lib/sandbox\.c'
extra=$(cut -d/ -f1 <<<"$files" | sort -u | grep -vxE 'CMakeLists\.txt|CMakePresets\.json|README\.md|LICENSE|admin|cli|conf|docs|include|lib|proxy|tests|\..*')
[ -z "$extra" ] || complain "top level: $extra"
exit $bad
