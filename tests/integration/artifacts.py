"""Real images and charts, small: layers are tars that every client can unpack, configs name their diff ids."""
import gzip
import hashlib
import io
import json
import tarfile


def tar_of(files):
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode="w") as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o755
            t.addfile(info, io.BytesIO(data))
    return buf.getvalue()


def push_image(registry, repo, tag, files_by_layer, platform=("linux", "amd64"), compress=True, media="oci"):
    """An image of real layers. Returns what Registry.push_image returns."""
    oci = media == "oci"
    layers, diffs = [], []
    for files in files_by_layer:
        raw = files if isinstance(files, bytes) else tar_of(files)
        diffs.append("sha256:" + hashlib.sha256(raw).hexdigest())
        data = gzip.compress(raw, 1, mtime=0) if compress else raw
        layers.append((registry.push_blob(repo, data), len(data)))
    cfg = json.dumps({"os": platform[0], "architecture": platform[1], "config": {"Cmd": ["/hello"]},
                      "rootfs": {"type": "layers", "diff_ids": diffs}}).encode()
    cd = registry.push_blob(repo, cfg)
    gz = "+gzip" if compress else ""
    layer_type = f"application/vnd.oci.image.layer.v1.tar{gz}" if oci else "application/vnd.docker.image.rootfs.diff.tar" + (".gzip" if compress else "")
    mt = "application/vnd.oci.image.manifest.v1+json" if oci else "application/vnd.docker.distribution.manifest.v2+json"
    data = json.dumps({"schemaVersion": 2, "mediaType": mt,
                       "config": {"mediaType": "application/vnd.oci.image.config.v1+json" if oci else "application/vnd.docker.container.image.v1+json",
                                  "digest": cd, "size": len(cfg)},
                       "layers": [{"mediaType": layer_type, "digest": d, "size": n} for d, n in layers]}).encode()
    return {"digest": registry.push_manifest(repo, tag, data, mt), "config": cd, "layers": [d for d, _ in layers], "media_type": mt, "size": len(data)}


def push_multi(registry, repo, tag, extra=b"", media="oci"):
    """Two platforms behind one tag, sharing a base layer."""
    base = {"base.txt": b"base of " + repo.encode()}
    kids = [push_image(registry, repo, None, [base, {"hello": f"{repo}:{tag} {arch}".encode() + extra}], ("linux", arch), media=media)
            for arch in ("amd64", "arm64")]
    return registry.push_index(repo, tag, kids, [("linux", "amd64"), ("linux", "arm64")], media=media)


def push_chart(registry, repo, name, version):
    """A Helm chart as `helm push` stores it; '+' of a version is '_' in its tag."""
    chart = f"apiVersion: v2\nname: {name}\nversion: {version}\ndescription: a chart\n".encode()
    tgz = gzip.compress(tar_of({f"{name}/Chart.yaml": chart, f"{name}/templates/cm.yaml": b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"}), 6, mtime=0)
    cfg = json.dumps({"name": name, "version": version, "apiVersion": "v2", "description": "a chart"}).encode()
    cd, ld = registry.push_blob(repo, cfg), registry.push_blob(repo, tgz)
    mt = "application/vnd.oci.image.manifest.v1+json"
    data = json.dumps({"schemaVersion": 2, "mediaType": mt, "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": cd, "size": len(cfg)},
                       "layers": [{"mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "digest": ld, "size": len(tgz)}]}).encode()
    return {"digest": registry.push_manifest(repo, version.replace("+", "_"), data, mt), "config": cd, "layers": [ld], "media_type": mt, "size": len(data)}
