"""What every section of the benchmark needs: two cores, CPU time to the nanosecond, nginx, a vendor's registry made of files, the table."""
import hashlib
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from stack import BIN, Proc, Stack, basic, free_port, wait_for  # noqa: E402, F401

TESTS_BIN = pathlib.Path(os.environ.get("PULLGATE_TESTS_BIN", BIN.parent / "tests"))
SERVER, LOAD = 0, min(1, os.cpu_count() - 1)
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def median(xs):
    return statistics.median(xs)


def quantile(xs, q):
    xs = sorted(xs)
    return xs[min(len(xs) - 1, int(len(xs) * q))]


def allow_many_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---- processes ------------------------------------------------------------------------------------------------------------

def threads(pid):
    return [int(t) for t in os.listdir(f"/proc/{pid}/task")]


def family(pid):
    """A server and its workers."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def pin(pid, core=SERVER):
    for p in family(pid):
        for t in threads(p):
            os.sched_setaffinity(t, {core})


def cpu_s(pids):
    """Time on a processor so far, user and system, of all threads."""
    total = 0
    for p in pids:
        for t in threads(p):
            total += int(pathlib.Path(f"/proc/{p}/task/{t}/schedstat").read_text().split()[0])
    return total / 1e9


def anon_kib(pid):
    """Memory of the process itself: neither its program nor files nor what the kernel keeps for its sockets."""
    return int(re.search(r"RssAnon:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


def on_load_core():
    os.sched_setaffinity(0, {LOAD})


def wrk(url, auth=None, seconds=1.0, connections=64, script=None, headers=(), under=()):
    """(requests a second, requests). wrk sits on the load's core. under: a command that runs it, and whose words come after."""
    argv = [*under, "taskset", "-c", str(LOAD), "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    for h in headers:
        argv += ["-H", h]
    if auth:
        argv += ["-H", f"Authorization: {auth}"]
    if script:
        argv += ["-s", str(script)]
    done = subprocess.run([*argv, url], capture_output=True, text=True, check=True)
    out = done.stdout
    assert "Non-2xx" not in out and "Socket errors" not in out, f"{url}\n{out}"
    if "\n  0 requests in" in out and seconds < 8:  # the slowest contestant on a machine that others keep busy
        return wrk(url, auth, seconds * 3, connections, script, headers, under)
    numbers = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), int(re.search(r"(\d+) requests in", out)[1])
    return (*numbers, done.stderr) if under else numbers


class Nginx:
    """One worker on the server's core, unless told otherwise. servers: what stands in http {}."""

    def __init__(self, directory, name, servers, core=SERVER):
        self.dir = pathlib.Path(directory) / f"nginx-{name}"
        self.dir.mkdir()
        temp = " ".join(f"{k}_temp_path {self.dir}/t-{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (self.dir / "conf").write_text(f"""daemon off; worker_processes 1; user root; pid {self.dir}/pid; error_log {self.dir}/error.log;
worker_rlimit_nofile 20000; events {{ worker_connections 8192; }}
http {{ access_log off; {temp} sendfile on; tcp_nopush on; open_file_cache max=1000; keepalive_requests 1000000000; {servers} }}""")
        self.proc = Proc(f"nginx-{name}", ["nginx", "-c", self.dir / "conf", "-p", self.dir], self.dir)
        wait_for(name, lambda: len(family(self.proc.p.pid)) == 2)
        self.pids = family(self.proc.p.pid)
        pin(self.proc.p.pid, core)

    def stop(self):
        self.proc.stop()


class Vendor:
    """A registry of files behind nginx, on the load's core: what it costs is not the proxy's."""

    auth = None

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.root = self.dir / "registry"
        self.types, self.tags = {}, {}
        self.port = free_port()
        (self.root / "v2").mkdir(parents=True)
        (self.root / "v2" / "index.html").write_text("{}")
        self.map = self.dir / "digests.map"
        self.map.write_text("")
        self.nginx = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.nginx = Nginx(self.dir, "vendor", f"""
  map_hash_max_size 65536; map_hash_bucket_size 512;
  map $uri $type {{ default application/octet-stream; include {self.dir}/types.map; }}
  map $uri $digest {{ default ""; include {self.map}; }}
  log_format short "$request_method $uri $status"; types {{ }}
  server {{ listen 127.0.0.1:{self.port} backlog=4096; root {self.root}; default_type ""; access_log {self.dir}/vendor.log short;
    location ~ /tags/list$ {{ try_files $uri.json =404; default_type application/json; }}
    location ~ ^/v2/$ {{ try_files /v2/index.html =404; default_type application/json; }}
    location / {{ add_header Docker-Content-Digest $digest; add_header Content-Type $type; }} }}""", core=LOAD)

    def requests_of(self, text):
        return [line for line in (self.dir / "vendor.log").read_text().splitlines() if text in line]

    def blob_file(self, repository, digest, path):
        d = self.root / "v2" / repository / "blobs"
        d.mkdir(parents=True, exist_ok=True)
        (d / digest).symlink_to(path)

    def blob(self, repository, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        d = self.root / "v2" / repository / "blobs"
        d.mkdir(parents=True, exist_ok=True)
        (d / digest).write_bytes(data)
        return digest

    def manifest(self, repository, tag, layers, note=""):
        """layers: (digest, size). Its digest."""
        config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}, "note": note}).encode()
        doc = {"schemaVersion": 2, "mediaType": MANIFEST,
               "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.blob(repository, config), "size": len(config)},
               "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d, "size": n} for d, n in layers]}
        data = json.dumps(doc).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        d = self.root / "v2" / repository / "manifests"
        d.mkdir(parents=True, exist_ok=True)
        for name in (tag, digest):
            if not (d / name).exists():
                (d / name).write_bytes(data)
            self.types[f"/v2/{repository}/manifests/{name}"] = digest
        self.tags.setdefault(repository, []).append(tag)
        return digest

    def write(self):
        """After the last manifest, before start()."""
        for repository, tags in self.tags.items():
            d = self.root / "v2" / repository / "tags"
            d.mkdir(parents=True, exist_ok=True)
            (d / "list.json").write_text(json.dumps({"name": repository, "tags": sorted(tags)}))
        (self.dir / "types.map").write_text("".join(f"{k} {MANIFEST};\n" for k in self.types))
        self.map.write_text("".join(f"{k} {v};\n" for k, v in self.types.items()))

    def stop(self):
        if self.nginx:
            self.nginx.stop()


# ---- the table ------------------------------------------------------------------------------------------------------------

class Table:
    def __init__(self):
        self.rows = []
        self.section = ""

    def add(self, what, figure, target="", ratio="", hit=None, noise=""):
        """hit: None where there is no target."""
        row = (self.section, what, target, figure, ratio, noise, "" if hit is None else "hit" if hit else "MISS")
        self.rows.append(row)
        print("  {1:66} {2:26} {3:34} {4:26} {5:18} {6}".format(*row), flush=True)

    def markdown(self):
        out = ["| | what | target | figure | ratio | spread | |", "|---|---|---|---|---|---|---|"]
        last = None
        for section, *rest in self.rows:
            out.append("| " + " | ".join([section if section != last else "", *rest]) + " |")
            last = section
        return "\n".join(out)


class Pairs:
    """Samples of several contestants, taken in turn: a round is one sample of each, and ratios are taken within a round, so that what
    slows the machine for seconds slows all of them."""

    def __init__(self, names):
        self.samples = {n: [] for n in names}

    def rounds(self, n, sample):
        """sample(name) -> tuple of numbers."""
        names = list(self.samples)
        for i in range(n):
            for name in names if i % 2 == 0 else reversed(names):
                self.samples[name].append(sample(name))

    def of(self, name, k=0):
        return median([s[k] for s in self.samples[name]])

    def ratio(self, a, b, k=0):
        """(median of a / b by round, least, most)"""
        rs = [x[k] / y[k] for x, y in zip(self.samples[a], self.samples[b])]
        return median(rs), min(rs), max(rs)


def spread(r, digits=2):
    return f"{r[1]:.{digits}f} … {r[2]:.{digits}f}"


def timed(f):
    start = time.monotonic()
    value = f()
    return time.monotonic() - start, value
