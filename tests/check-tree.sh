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

# Rules of SECURITY.md 5.3 that a line shows. What a compiler can see better is asked of it (CMakeLists.txt, tests/analyse.sh).
rule() { # what is wrong, extended regular expression, exceptions to it
    hits=$(grep -nE "$2" $c_files | grep -vE '^\S+: *(\*|/\*)' | grep -vE "${3:-^$}")
    [ -z "$hits" ] || complain "$1:"$'\n'"$hits"
}
rule 'a secret is compared with str_eq_secret()' \
    '\b(memcmp|strcmp|strncmp|str_eq|str_eq_c|str_eq_nocase)\([^;]*\b[a-z_>.]*(mac|sig|hash|secret|password|pepper|cookie|csrf)[a-z_]*\b' \
    'no secret:|"password"\)|^admin/audit\.c|^lib/front\.c.*signature'
rule 'a Redis command is never made of a format' '\bredis(v|Async|Append|AsyncFormatted)*(Command|FormatCommand)\('
rule 'the wall clock is asked in lib/clock.c' '\b(time|gettimeofday|localtime|gmtime|localtime_r|gmtime_r)\(|CLOCK_REALTIME' '^lib/(clock|sandbox)\.c'
rule 'strchr() of a set finds its NUL, too: c != 0 first' 'strchr\(("[^"]*"|[A-Z_]+), ' "!= '\\\\0'|== '\\\\0' \|\|"
rule 'an answer of OpenSSL is 1 or it failed' '\bEVP_(Digest|Encrypt|Decrypt|KDF_derive|CIPHER_CTX_ctrl|PKEY_get_raw)[A-Za-z_0-9]*\(' '== 1'
rule 'an option that libcurl refuses is an error' '\bcurl_(easy|multi)_setopt\(' '== CURL(M|E)_OK'
rule 'what SQLite answers is looked at' '^ *(\(void\) *)?sqlite3_(open|prepare|step|exec|bind|backup_step)[a-z0-9_]*\('
rule 'evbuffer_add_printf() is not for us' '\bevbuffer_add_v?printf\('
rule 'memory by a number that JSON says' '\bmem_[a-z]*alloc\([^;]*\bjv_(get_)?int\('

extra=$(cut -d/ -f1 <<<"$files" | sort -u | grep -vxE 'CMakeLists\.txt|CMakePresets\.json|README\.md|LICENSE|admin|cli|conf|docs|include|lib|proxy|tests|\..*')
[ -z "$extra" ] || complain "top level: $extra"
exit $bad
