# Sourced by the quick start and the tests: installs what conf/packages.txt names and the machine lacks. Run as root, or
# with sudo; says what is missing where it can do neither.
# With PULLGATE_PACKAGES=demo only the sections before "# tests" count.
pullgate_missing=$(sed "$([ "${PULLGATE_PACKAGES:-}" = demo ] && echo '/^# tests/,$d')" conf/packages.txt | grep -vE '^\s*(#|$)' | while read -r p _; do
    [ "$p" = npm ] && command -v npm >/dev/null && continue # any npm will do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
done)
if [ -n "$pullgate_missing" ]; then
    echo "installing:" $pullgate_missing
    pullgate_sudo=
    [ "$(id -u)" -eq 0 ] || pullgate_sudo=sudo
    pullgate_log=$(mktemp)
    if ! { $pullgate_sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $pullgate_sudo apt-get install -y -qq --no-install-recommends $pullgate_missing; } \
        >"$pullgate_log" 2>&1 </dev/null; then
        tail -20 "$pullgate_log"
        echo "could not install: $pullgate_missing" >&2
        exit 1
    fi
    rm -f "$pullgate_log"
    # Debian starts some of these as services; neither the demo nor the tests use them.
    for s in redis-server docker-registry nginx haproxy docker containerd; do
        command -v systemctl >/dev/null && $pullgate_sudo systemctl disable --now "$s" >/dev/null 2>&1
    done
fi
true
