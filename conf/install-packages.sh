# Sourced by the quick start and the tests: installs what conf/packages.txt names and the machine lacks. Run as root, or
# with sudo; says what is missing where it can do neither.
# With PULLGATE_PACKAGES=demo only the sections before "# tests" count.
if ! command -v apt-get >/dev/null; then
    echo "this needs Debian 12 (there is no apt-get here); elsewhere, install what conf/packages.txt names" >&2
    exit 1
fi
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # not everybody's have them: su's, and dpkg needs them
pullgate_missing=$(sed "$([ "${PULLGATE_PACKAGES:-}" = demo ] && echo '/^# tests/,$d')" conf/packages.txt | grep -vE '^\s*(#|$)' | while read -r p _; do
    [ "$p" = npm ] && command -v npm >/dev/null && continue # any npm will do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
done)
if [ -n "$pullgate_missing" ]; then
    echo "installing from Debian (a minute or two):" $pullgate_missing
    pullgate_sudo=
    [ "$(id -u)" -eq 0 ] || pullgate_sudo=sudo
    # Debian starts some of these as services, and neither the demo nor the tests use them: those that come with this
    # installation are switched off again; what the machine had before stays as it is.
    pullgate_services=
    for p in redis-server docker-registry nginx-light haproxy docker.io containerd; do
        if grep -qx "$p" <<<"$pullgate_missing"; then
            case $p in
            nginx-light) pullgate_services+=" nginx" ;;
            docker.io) pullgate_services+=" docker.service docker.socket" ;;
            *) pullgate_services+=" $p" ;;
            esac
        fi
    done
    # The lock: a machine that just came up may be busy with its own upgrades. The update's failure shows in the installation.
    if ! pullgate_log=$(
        exec 2>&1 </dev/null
        $pullgate_sudo apt-get update -qq
        $pullgate_sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends $pullgate_missing
    ); then
        tail -20 <<<"$pullgate_log"
        echo "could not install (needs root or sudo, and a Debian mirror):" $pullgate_missing >&2
        exit 1
    fi
    if [ -n "$pullgate_services" ] && [ -d /run/systemd/system ]; then
        $pullgate_sudo systemctl disable --quiet --now $pullgate_services >/dev/null 2>&1 || true
    fi
fi
true
