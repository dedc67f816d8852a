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

bold='' plain=''
[ ! -t 1 ] || bold=$'\033[1m' plain=$'\033[0m'
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

say "1. Packages and build"
PULLGATE_PACKAGES=demo
. conf/install-packages.sh
run=$(mktemp -d /tmp/pullgate-demo.XXXXXX) # mode 700; everything of this run is in it, and goes with it
pids=()
is_up=
stop() {
    trap - EXIT
    trap '' INT TERM HUP # a second Ctrl-C does not cut this short
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill "${pids[$i]}" 2>/dev/null || continue
        timeout 10 tail -s 0.05 --pid="${pids[$i]}" -f /dev/null || kill -KILL "${pids[$i]}" 2>/dev/null || true
    done
    rm -rf "$run"
    [ -z "$is_up" ] || echo "Everything that was started has ended."
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

echo "building"
if ! { cmake --preset release && cmake --build --preset release --target pullgate-proxy pullgate-admin pullgate; } >"$run/build.log" 2>&1; then
    tail -40 "$run/build.log" >&2
    exit 1
fi
bin=$PWD/build/bin
helm=$(conf/get-helm.sh 3) || { helm='' && echo "no Helm for this machine: what follows leaves the chart out"; }
echo "built $bin/{pullgate-proxy,pullgate-admin,pullgate}"
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1 # whatever proxy the packages came through, what follows is loopback

start() { # name command...; its end comes at the latest with this script's, whatever ends that
    local name=$1
    shift
    setpriv --pdeathsig KILL "$@" >"$run/$name.log" 2>&1 </dev/null &
    pids+=($!)
}
failed_start() { # what
    echo "$1 did not come up:" >&2
    for f in "$run"/*.log; do printf '== %s\n' "$f" && tail -n 20 "$f"; done >&2
    exit 1
}
wait_for() { # what command...: until it succeeds, 20 s, or what was started last is gone
    local what=$1 n=0
    shift
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ $n -le 200 ] && kill -0 "${pids[-1]}" 2>/dev/null || failed_start "$what"
        sleep 0.1
    done
}
secret() { openssl rand -hex 24; }

say "2. Redis, a private registry that only the vendor may use, and Pullgate in front of it"
start redis redis-server --port 0 --unixsocket "$run/redis.sock" --unixsocketperm 700 --save '' --appendonly no --dir "$run" --maxmemory-policy noeviction
wait_for redis-server redis-cli -s "$run/redis.sock" ping

vendor_password=$(secret)
printf '%s' "$vendor_password" | htpasswd -Bin vendor >"$run/htpasswd"
cat >"$run/registry.yml" <<EOF
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: $run/registry}}
http: {addr: "127.0.0.1:0", secret: $(secret)}
auth: {htpasswd: {realm: upstream, path: $run/htpasswd}}
EOF
start registry docker-registry serve "$run/registry.yml"
printf 'user = "vendor:%s"\n' "$vendor_password" >"$run/vendor.curl" # kept out of the process list
upstream() { curl -sf -K "$run/vendor.curl" "$@"; }
listening() { registry_port=$(sed -n 's/.*msg="listening on 127\.0\.0\.1:\([0-9]*\)".*/\1/p' "$run/registry.log") && [ -n "$registry_port" ]; }
wait_for docker-registry listening
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
redis: {url: "unix://$run/redis.sock?db=0"}
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
echo "the registry that customers see    $proxy                (pullgate-proxy)"
echo "the admin API                      http://$admin/api/v1  (pullgate-admin)"
echo "the vendor's private registry      127.0.0.1:$registry_port                (docker-registry, with a password)"

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
export HELM_CACHE_HOME=$run/helm/cache HELM_CONFIG_HOME=$run/helm/config HELM_DATA_HOME=$run/helm/data DOCKER_CONFIG=$run/docker
unset HELM_REGISTRY_CONFIG
if [ -n "$helm" ]; then
    mkdir -p "$work/chart/templates"
    printf 'apiVersion: v2\nname: shop\nversion: 1.4.2\nappVersion: 1.4.2\ndescription: the demo shop\n' >"$work/chart/Chart.yaml"
    printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\ndata: {version: 1.4.2}\n' >"$work/chart/templates/configmap.yaml"
    "$helm" package "$work/chart" -d "$work" >/dev/null
    printf '%s' "$vendor_password" | "$helm" registry login "127.0.0.1:$registry_port" --username vendor --password-stdin --insecure >/dev/null 2>&1
    "$helm" push "$work/shop-1.4.2.tgz" "oci://127.0.0.1:$registry_port/acme/charts" --plain-http 2>&1 | sed -n 's/^Pushed: .*acme/pushed acme/p'
fi

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
echo "license $(jq -r '.id + " \"" + .name + "\": Globex may pull shop ^1.4 until " + .expires_at + "; it is " + .effective_status' <<<"$license")"

say "5. The customer signs in and pulls what the license grants"
printf '%s' "$password" | skopeo login --authfile "$run/auth.json" --tls-verify=false --username globex --password-stdin "$proxy"
(
    set -x
    skopeo copy --all --authfile "$run/auth.json" --src-tls-verify=false "docker://$proxy/shop/api:1.4.2" "oci:$run/pulled:1.4.2"
)
echo "granted: $(find "$run/pulled/blobs" -type f | wc -l) blobs and manifests of shop/api:1.4.2 (both platforms)"
if [ -n "$helm" ]; then
    printf '%s' "$password" | "$helm" registry login "$proxy" --username globex --password-stdin --insecure 2>&1 | tail -1
    (
        set -x
        "$helm" pull "oci://$proxy/shop/charts/shop" --version 1.4.2 --plain-http -d "$run"
    )
    echo "granted: the chart, $(stat -c '%s bytes in %n' "$run/shop-1.4.2.tgz")"
fi

say "6. The customer asks for version 2.0.0, which the license does not grant"
if (
    set -x
    skopeo copy --authfile "$run/auth.json" --src-tls-verify=false "docker://$proxy/shop/api:2.0.0" "oci:$run/pulled:2.0.0"
) 2>"$run/denial.txt"; then
    echo "an ungranted version was served: this is a defect" >&2
    exit 1
fi
cat "$run/denial.txt"
if ! grep -q 'denied: .*Globex Prod' "$run/denial.txt"; then
    echo "refused, but not with the license's sentence: this is a defect" >&2
    exit 1
fi
echo "denied, as it should be: the sentence names the license, what it grants, and a reference to the line in the access log"

say "It works."
if [ $once -eq 1 ]; then
    echo "Everything that was started ends here. Without --once it stays up, to try more."
    exit 0
fi
cat <<EOF
sign in          skopeo login --tls-verify=false --username globex $proxy    (or docker login; the password: $password)
pull             skopeo copy --src-tls-verify=false docker://$proxy/shop/api:1.4.2 oci:/tmp/api    (or docker pull)
ask the admin    curl -K $run/api.curl http://$admin/api/v1/licenses    (the file holds the token; the other calls: docs/API.md)
read on          $run/access.log has a line for every request; $run/*.log what each process says
Ctrl-C ends everything and removes $run.
EOF
is_up=1
rc=0
wait -n "${pids[@]}" || rc=$?
echo "a process ended by itself ($rc):" >&2
tail -n 5 "$run"/{redis,registry,admin,proxy}.log >&2
exit 1
