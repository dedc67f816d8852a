#!/usr/bin/env bash
# Pullgate in one command: installs what it needs, builds, starts Redis, a demo registry and both daemons on loopback, makes a
# vendor's shop with a customer and a license, and pulls: once what is granted, once what is not.
#   conf/quickstart.sh          stays up until Ctrl-C
#   conf/quickstart.sh --once   shows the same and ends
set -euo pipefail
cd "$(dirname "$0")/.."
once=0
case "${1:-}" in
--once) once=1 ;;
"") ;;
*) echo "usage: conf/quickstart.sh [--once]" >&2 && exit 2 ;;
esac

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Packages and build"
PULLGATE_PACKAGES=demo
. conf/install-packages.sh
if ! { cmake --preset release && cmake --build --preset release --target pullgate-proxy pullgate-admin pullgate; } >/tmp/pullgate-build.$$ 2>&1; then
    tail -40 /tmp/pullgate-build.$$
    exit 1
fi
rm -f /tmp/pullgate-build.$$
helm=$(conf/get-helm.sh 3)
bin=$PWD/build/bin

run=$(mktemp -d /tmp/pullgate-demo.XXXXXX)
chmod 700 "$run"
pids=()
stop() {
    trap - EXIT INT TERM
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill "${pids[$i]}" 2>/dev/null || true
        wait "${pids[$i]}" 2>/dev/null || true
    done
    rm -rf "$run"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start() { # name command...
    local name=$1
    shift
    "$@" >"$run/$name.log" 2>&1 </dev/null &
    pids+=($!)
}
wait_for() { # what command...: until it succeeds, 20 s
    local what=$1 n=0
    shift
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        if [ $n -gt 200 ]; then
            echo "$what did not come up:" >&2
            for f in "$run"/*.log; do printf '== %s\n' "$f" && tail -n 20 "$f"; done >&2
            exit 1
        fi
        sleep 0.1
    done
}
free_port() { # asks the kernel
    local port
    while :; do
        port=$((20000 + RANDOM % 30000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo $port
}
secret() { openssl rand -hex 24; }

say "2. Redis, a private registry that only the vendor may use, and Pullgate in front of it"
redis_port=$(free_port)
start redis redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$run" --maxmemory-policy noeviction
wait_for redis redis-cli -p "$redis_port" ping

registry_port=$(free_port)
vendor_password=$(secret)
printf '%s' "$vendor_password" | htpasswd -Bin vendor >"$run/htpasswd"
cat >"$run/registry.yml" <<EOF
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $run/registry}}
http: {addr: "127.0.0.1:$registry_port", secret: $(secret)}
auth: {htpasswd: {realm: upstream, path: $run/htpasswd}}
EOF
start registry docker-registry serve "$run/registry.yml"
printf 'user = "vendor:%s"\n' "$vendor_password" >"$run/vendor.curl" # kept out of the process list
upstream() { curl -sf -K "$run/vendor.curl" "$@"; }
wait_for docker-registry upstream "http://127.0.0.1:$registry_port/v2/"

token=$(secret)
(umask 077 && printf '%s' "$token" >"$run/bootstrap-token")
mkdir -p "$run/spool"
cat >"$run/pullgate.yaml" <<EOF
proxy:
  listen: ["127.0.0.1:0"]
  port_file: $run/proxy.port
  spool_path: $run/spool
admin:
  listen: ["127.0.0.1:0"]
  port_file: $run/admin.port
  bootstrap_token_file: $run/bootstrap-token
  renew_url: https://vendor.example/renew
store: {url: "sqlite://$run/pullgate.db"}
redis: {url: "redis://127.0.0.1:$redis_port/0"}
keys: {path: $run/keys}
log: {access_path: $run/access.log}
EOF
start admin "$bin/pullgate-admin" --config "$run/pullgate.yaml"
wait_for pullgate-admin test -s "$run/admin.port"
start proxy "$bin/pullgate-proxy" --config "$run/pullgate.yaml"
wait_for pullgate-proxy test -s "$run/proxy.port"
admin=$(head -1 "$run/admin.port")
proxy=$(head -1 "$run/proxy.port")
wait_for "the proxy's cache" curl -sf "http://$proxy/readyz"
echo "admin API  http://$admin/api/v1    registry  $proxy    private registry  127.0.0.1:$registry_port"

say "3. The vendor pushes an image with two platforms, in two versions, and a Helm chart"
digest_of() { echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
push_blob() { # repository file
    local where
    where=$(upstream -X POST -D - -o /dev/null "http://127.0.0.1:$registry_port/v2/$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    upstream -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$2" "$where&digest=$(digest_of "$2")" >/dev/null
}
push_manifest() { # repository reference type file
    upstream -X PUT -H "Content-Type: $3" --data-binary "@$4" "http://127.0.0.1:$registry_port/v2/$1/manifests/$2" >/dev/null
}
descriptor() { # type file [more json]
    printf '{"mediaType":"%s","digest":"%s","size":%s%s}' "$1" "$(digest_of "$2")" "$(stat -c %s "$2")" "${3:-}"
}
work=$run/push
mkdir -p "$work"
for version in 1.4.2 2.0.0; do
    children=
    for arch in amd64 arm64; do
        mkdir -p "$work/files"
        echo "shop api $version for $arch" >"$work/files/version.txt"
        tar -C "$work/files" --owner=0 --group=0 --numeric-owner -cf "$work/layer.tar" .
        printf '{"os":"linux","architecture":"%s","config":{"Cmd":["/version.txt"]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' "$arch" "$(digest_of "$work/layer.tar")" >"$work/config.json"
        push_blob acme/api "$work/layer.tar"
        push_blob acme/api "$work/config.json"
        printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
            "$(descriptor application/vnd.oci.image.config.v1+json "$work/config.json")" "$(descriptor application/vnd.oci.image.layer.v1.tar "$work/layer.tar")" >"$work/$arch.json"
        push_manifest acme/api "$(digest_of "$work/$arch.json")" application/vnd.oci.image.manifest.v1+json "$work/$arch.json"
        children+="${children:+,}$(descriptor application/vnd.oci.image.manifest.v1+json "$work/$arch.json" ",\"platform\":{\"os\":\"linux\",\"architecture\":\"$arch\"}")"
    done
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$children" >"$work/index.json"
    push_manifest acme/api "$version" application/vnd.oci.image.index.v1+json "$work/index.json"
    echo "pushed acme/api:$version (linux/amd64, linux/arm64)"
done
export HELM_CACHE_HOME=$run/helm/cache HELM_CONFIG_HOME=$run/helm/config HELM_DATA_HOME=$run/helm/data
mkdir -p "$work/chart/templates"
printf 'apiVersion: v2\nname: shop\nversion: 1.4.2\nappVersion: 1.4.2\ndescription: the demo shop\n' >"$work/chart/Chart.yaml"
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\ndata: {version: 1.4.2}\n' >"$work/chart/templates/configmap.yaml"
"$helm" package "$work/chart" -d "$work" >/dev/null
printf '%s' "$vendor_password" | "$helm" registry login "127.0.0.1:$registry_port" --username vendor --password-stdin --insecure >/dev/null 2>&1
"$helm" push "$work/shop-1.4.2.tgz" "oci://127.0.0.1:$registry_port/acme/charts" --plain-http 2>&1 | sed -n 's/^Pushed: .*acme/pushed acme/p'

say "4. The vendor sells: an upstream, an application, a customer, a license for ^1.4"
printf 'header = "Authorization: Bearer %s"\n' "$token" >"$run/api.curl"
api() { # method path json
    local out
    if ! out=$(curl -sS --fail-with-body -K "$run/api.curl" -X "$1" -H 'Content-Type: application/json' ${3:+--data-binary @-} "http://$admin/api/v1$2" <<<"${3:-}"); then
        echo "$1 $2: $out" >&2
        return 1
    fi
    echo "$out"
}
upstream_id=$(api POST /upstreams "{\"name\":\"private\",\"url\":\"http://127.0.0.1:$registry_port\",\"username\":\"vendor\",\"password\":\"$vendor_password\"}" | jq -r .id)
app_id=$(api POST /applications "{\"slug\":\"shop\",\"name\":\"Shop\",\"repositories\":[
  {\"name\":\"shop/api\",\"upstream_id\":\"$upstream_id\",\"upstream_repository\":\"acme/api\",\"kind\":\"image\"},
  {\"name\":\"shop/charts/shop\",\"upstream_id\":\"$upstream_id\",\"upstream_repository\":\"acme/charts/shop\",\"kind\":\"chart\"}]}" | jq -r .id)
customer_id=$(api POST /customers '{"slug":"globex","name":"Globex","email":"ops@globex.example"}' | jq -r .id)
password=$(api POST "/customers/$customer_id/credentials" '{"name":"production cluster"}' | jq -r .secret)
license=$(api POST /licenses "{\"name\":\"Globex Prod\",\"customer_id\":\"$customer_id\",\"application_id\":\"$app_id\",\"status\":\"active\",
  \"grants\":[{\"selector\":\"range\",\"value\":\"^1.4\"}],\"expires_at\":\"$(date -u -d '+1 year' +%F)\"}")
echo "license $(jq -r '.id + " \"" + .name + "\" is " + .effective_status + " until " + .expires_at' <<<"$license")"

say "5. The customer pulls what is granted"
printf '%s' "$password" | skopeo login --authfile "$run/auth.json" --tls-verify=false --username globex --password-stdin "$proxy"
(
    set -x
    skopeo copy --all --authfile "$run/auth.json" --src-tls-verify=false "docker://$proxy/shop/api:1.4.2" "oci:$run/pulled:1.4.2"
)
printf '%s' "$password" | "$helm" registry login "$proxy" --username globex --password-stdin --insecure 2>&1 | tail -1
(
    set -x
    "$helm" pull "oci://$proxy/shop/charts/shop" --version 1.4.2 --plain-http -d "$run"
)
ls -l "$run/shop-1.4.2.tgz"

say "6. The customer asks for what is not granted"
if (
    set -x
    skopeo copy --authfile "$run/auth.json" --src-tls-verify=false "docker://$proxy/shop/api:2.0.0" "oci:$run/pulled:2.0.0"
) 2>"$run/denial.txt"; then
    echo "an ungranted version was served: this is a defect" >&2
    exit 1
fi
cat "$run/denial.txt"
grep -q 'Globex Prod' "$run/denial.txt"

say "It works."
[ $once -eq 0 ] || exit 0
cat <<EOF
  registry        $proxy        user globex, password $password
  admin API       http://$admin/api/v1    token in $run/bootstrap-token
  try             curl -H "Authorization: Bearer \$(cat $run/bootstrap-token)" http://$admin/api/v1/licenses
  logs            $run/*.log
Ctrl-C ends everything.
EOF
while :; do
    sleep 1 &
    wait $!
    for pid in "${pids[@]}"; do
        kill -0 "$pid" 2>/dev/null || { echo "a process ended by itself, see above" && tail -n 5 "$run/admin.log" "$run/proxy.log"; exit 1; }
    done
done
