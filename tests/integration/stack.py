"""The real stack for tests: redis-server, docker-registry, pullgate-admin, pullgate-proxy, each on ports the kernel chose.

Everything started here is ended by close(), also when a test fails; nothing outlives the test process (PR_SET_PDEATHSIG).
"""
import base64
import contextlib
import ctypes
import json
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("PULLGATE_BIN", ROOT / "build" / "bin"))
SANITIZED = "dev" in str(BIN)
SLOW = 4 if SANITIZED else 1  # sanitizer builds get more time in every deadline

_libc = ctypes.CDLL("libc.so.6", use_errno=True)


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_for(what, probe, timeout=10.0, interval=0.02):
    """Poll until probe() is truthy; its value. A failed wait says what it waited for."""
    deadline = time.monotonic() + timeout * SLOW
    last = None
    while True:
        try:
            last = probe()
            if last:
                return last
        except Exception as e:  # a probe may fail while the thing comes up
            last = e
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout * SLOW:.0f} s for {what}; last: {last!r}")
        time.sleep(interval)


def free_port():
    """A port for programs that cannot take port 0. Not one of those that the kernel gives to connections, so that it is still
    free when the program binds it, and when a test starts the program again on the same one."""
    low = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", random.SystemRandom().randrange(10000, low) if low > 12000 else 0))
                return s.getsockname()[1]
            except OSError:
                continue


class Proc:
    """A child process whose output goes to a file that failing tests can show."""

    def __init__(self, name, argv, directory, env=None, pass_fds=()):
        self.name = name
        self.log = pathlib.Path(directory) / f"{name}.log"
        self.argv = [str(a) for a in argv]
        self._out = open(self.log, "ab")
        full = dict(os.environ)
        full.setdefault("ASAN_OPTIONS", "abort_on_error=1:detect_leaks=1")
        full.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
        full.update(env or {})
        self.p = subprocess.Popen(self.argv, stdout=self._out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                  env=full, preexec_fn=_die_with_parent, pass_fds=pass_fds)

    def alive(self):
        return self.p.poll() is None

    def text(self):
        return self.log.read_text(errors="replace")

    def stop(self, sig=signal.SIGTERM, timeout=15):
        """End it; its exit status."""
        if self.alive():
            self.p.send_signal(sig)
            try:
                self.p.wait(timeout * SLOW)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()
        self._out.close()
        return self.p.returncode


class Redis:
    def __init__(self, directory, port=None):
        self.dir = pathlib.Path(directory)
        self.port = port or free_port()
        self.proc = None
        self.start()

    def start(self):
        self.proc = Proc("redis", ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                                   "--dir", self.dir, "--maxmemory-policy", "noeviction"], self.dir)
        wait_for("redis", lambda: self.cmd("PING") == b"PONG")

    def stop(self, sig=signal.SIGKILL):
        self.proc.stop(sig)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def cmd(self, *args):
        """One command over a fresh connection; replies as bytes, int, None, list."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as s:
            parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
            s.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
            f = s.makefile("rb")
            return self._reply(f)

    def _reply(self, f):
        line = f.readline()
        kind, rest = line[:1], line[1:].strip()
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            n = int(rest)
            return None if n < 0 else f.read(n + 2)[:-2]
        if kind == b"*":
            n = int(rest)
            return None if n < 0 else [self._reply(f) for _ in range(n)]
        raise RuntimeError(f"redis said {line!r}")


class Registry:
    """Debian's docker-registry with htpasswd Basic auth (user 'vendor'); content is pushed straight to it by tests."""

    def __init__(self, directory, tls=None):
        self.dir = pathlib.Path(directory) / "registry"
        self.dir.mkdir(exist_ok=True)
        self.user, self.password = "vendor", "up-" + secrets.token_hex(16)
        (self.dir / "htpasswd").write_text(subprocess.run(["htpasswd", "-Bbn", self.user, self.password], check=True,
                                                          capture_output=True, text=True).stdout)
        self.port = free_port()
        config = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(self.dir / "data")}, "delete": {"enabled": True}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "x"},
            "auth": {"htpasswd": {"realm": "upstream", "path": str(self.dir / "htpasswd")}},
        }
        if tls:
            config["http"]["tls"] = {"certificate": str(tls["cert"]), "key": str(tls["key"])}
        self.scheme = "https" if tls else "http"
        self.verify = str(tls["ca"]) if tls else True
        self.config = self.dir / "config.yml"
        self.config.write_text(json.dumps(config))
        self.proc = None
        self.start()

    def start(self):
        self.proc = Proc("registry", ["docker-registry", "serve", self.config], self.dir.parent)
        wait_for("docker-registry", lambda: requests.get(self.url + "/v2/", auth=self.auth, verify=self.verify, timeout=2).status_code == 200)

    def stop(self):
        self.proc.stop(signal.SIGKILL)

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def auth(self):
        return (self.user, self.password)

    def push_blob(self, repo, data):
        import hashlib
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        r = requests.head(f"{self.url}/v2/{repo}/blobs/{digest}", auth=self.auth, verify=self.verify)
        if r.status_code == 200:
            return digest
        r = requests.post(f"{self.url}/v2/{repo}/blobs/uploads/", auth=self.auth, verify=self.verify)
        assert r.status_code == 202, r.text
        where = r.headers["Location"]
        r = requests.put(where + ("&" if "?" in where else "?") + "digest=" + digest, data=data, auth=self.auth, verify=self.verify,
                         headers={"Content-Type": "application/octet-stream"})
        assert r.status_code == 201, r.text
        return digest

    def push_manifest(self, repo, reference, doc, media_type):
        import hashlib
        data = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        r = requests.put(f"{self.url}/v2/{repo}/manifests/{reference or digest}", data=data, auth=self.auth, verify=self.verify,
                         headers={"Content-Type": media_type})
        assert r.status_code == 201, r.text
        return digest

    def push_image(self, repo, tag, layers, config=None, platform=("linux", "amd64"), media="oci", annotations=None):
        """One-platform image. layers: list of bytes. Returns {"digest", "config", "layers", "media_type", "size"}."""
        oci = media == "oci"
        cfg = json.dumps(config or {"os": platform[0], "architecture": platform[1], "rootfs": {"type": "layers", "diff_ids": []},
                                    "config": {"Env": [f"TAG={tag}"]}}).encode()
        cd = self.push_blob(repo, cfg)
        lds = [(self.push_blob(repo, d), len(d)) for d in layers]
        mt = "application/vnd.oci.image.manifest.v1+json" if oci else "application/vnd.docker.distribution.manifest.v2+json"
        doc = {
            "schemaVersion": 2, "mediaType": mt,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json" if oci else "application/vnd.docker.container.image.v1+json",
                       "digest": cd, "size": len(cfg)},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar" if oci else "application/vnd.docker.image.rootfs.diff.tar",
                        "digest": d, "size": n} for d, n in lds],
        }
        if annotations:
            doc["annotations"] = annotations
        data = json.dumps(doc).encode()
        digest = self.push_manifest(repo, tag, data, mt)
        return {"digest": digest, "config": cd, "layers": [d for d, _ in lds], "media_type": mt, "size": len(data)}

    def push_index(self, repo, tag, images, platforms, media="oci"):
        mt = "application/vnd.oci.image.index.v1+json" if media == "oci" else "application/vnd.docker.distribution.manifest.list.v2+json"
        doc = {"schemaVersion": 2, "mediaType": mt,
               "manifests": [{"mediaType": i["media_type"], "digest": i["digest"], "size": i["size"],
                              "platform": {"os": p[0], "architecture": p[1]}} for i, p in zip(images, platforms)]}
        data = json.dumps(doc).encode()
        return {"digest": self.push_manifest(repo, tag, data, mt), "media_type": mt, "size": len(data), "children": images}

    def requests_seen(self):
        """How many requests its access log shows."""
        return self.proc.text().count('"GET /v2/') + self.proc.text().count('"HEAD /v2/')


class Api:
    """The admin API as an owner."""

    def __init__(self, base, token, verify=True):
        self.base, self.token = base, token
        self.s = requests.Session()
        self.s.verify = verify
        self.s.headers["Authorization"] = "Bearer " + token

    def __call__(self, method, path, body=None, expect=None, **kw):
        r = self.s.request(method, self.base + "/api/v1" + path, json=body, timeout=30, **kw)
        if expect is not None:
            assert r.status_code == expect, f"{method} {path}: {r.status_code} {r.text}"
        return r

    def post(self, path, body=None, expect=201, **kw):
        return self("POST", path, body if body is not None else {}, expect, **kw).json()

    def get(self, path, expect=200, **kw):
        return self("GET", path, None, expect, **kw).json()


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Stack:
    """redis + upstream + admin + proxy. upstream: a Registry, or any object with .url and .auth."""

    def __init__(self, directory=None, upstream=None, proxy=None, admin=None, cache=None, limits=None, env=None, n_proxies=1, redis=None, start=True, store=None):
        self.own_dir = directory is None
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="pullgate-"))
        self.redis = redis or Redis(self.dir)
        self.registry = None
        if upstream is None:
            self.registry = upstream = Registry(self.dir)
        self.upstream = upstream
        self.token = "bootstrap-" + secrets.token_hex(24)
        (self.dir / "bootstrap").write_text(self.token)
        os.chmod(self.dir / "bootstrap", 0o600)
        (self.dir / "spool").mkdir(exist_ok=True)
        self.config = {
            "proxy": {"listen": ["127.0.0.1:0"], "workers": 2, "spool_path": str(self.dir / "spool"), **(proxy or {})},
            "admin": {"listen": ["127.0.0.1:0"], "bootstrap_token_file": str(self.dir / "bootstrap"), "port_file": str(self.dir / "admin.port"),
                      "sync_interval": "30s", "renew_url": "https://vendor.example/renew", **(admin or {})},
            "store": {"url": f"sqlite://{self.dir}/pullgate.db", **(store or {})},
            "redis": {"url": self.redis.url},
            "keys": {"path": str(self.dir / "keys")},
            "cache": cache or {},
            "limits": limits or {},
            "process": {"sandbox": "kill"},  # a system call that the filter does not know ends the daemon, and the test
            "log": {"level": "info"},
        }
        self.env = env or {}
        self.proxy_front = self.admin_front = None  # what stands before proxy 0, before the admin daemon: anything with .address and .base
        self.wrap = []  # a program, with its arguments, that starts the daemons: prlimit, faketime
        self.n_proxies = n_proxies
        self.admin = None
        self.proxies = []
        self.api = None
        self._customers = {}
        if start:
            self.start_admin()
            for i in range(n_proxies):
                self.start_proxy(i)

    def write_config(self, i=0):
        """JSON is YAML."""
        cfg = json.loads(json.dumps(self.config))
        cfg["proxy"]["port_file"] = str(self.dir / f"proxy{i}.port")
        path = self.dir / f"pullgate{i}.yaml"
        path.write_text(json.dumps(cfg, indent=1))
        return path

    def start_admin(self, within=10):
        (self.dir / "admin.port").unlink(missing_ok=True)
        self.admin = Proc("admin", [*self.wrap, BIN / "pullgate-admin", "--config", self.write_config()], self.dir, self.env)
        wait_for("pullgate-admin", lambda: self._up(self.admin, "admin.port"), within)
        address = (self.dir / "admin.port").read_text().split()[0]
        scheme = "https" if self.config["admin"].get("tls") else "http"
        self.admin.address = address
        self.api = Api(f"{scheme}://{address}", self.token)
        self.admin_base = self.admin_front.base if self.admin_front else self.api.base
        wait_for("admin ready", lambda: requests.get(self.api.base + "/healthz", timeout=2, verify=False).status_code == 200)

    def start_proxy(self, i=0):
        (self.dir / f"proxy{i}.port").unlink(missing_ok=True)
        proc = Proc(f"proxy{i}", [*self.wrap, BIN / "pullgate-proxy", "--config", self.write_config(i)], self.dir, self.env)
        wait_for("pullgate-proxy", lambda: self._up(proc, f"proxy{i}.port"))
        proc.address = (self.dir / f"proxy{i}.port").read_text().split()[0]
        proc.scheme = "https" if self.config["proxy"].get("tls") else "http"
        proc.base = f"{proc.scheme}://{proc.address}"
        if i < len(self.proxies):
            self.proxies[i] = proc
        else:
            self.proxies.append(proc)
        wait_for("proxy ready", lambda: requests.get(proc.base + "/readyz", timeout=2, verify=False).status_code == 200)
        return proc

    def _up(self, proc, port_file):
        assert proc.alive(), f"{proc.name} ended: {proc.text()[-3000:]}"
        return (self.dir / port_file).exists()

    @property
    def address(self):
        return (self.proxy_front or self.proxies[0]).address

    @property
    def base(self):
        return (self.proxy_front or self.proxies[0]).base

    # ---- a vendor's everyday acts ----
    def add_upstream(self, name="main", **kw):
        body = {"name": name, "url": self.upstream.url}
        if getattr(self.upstream, "auth", None):
            body["username"], body["password"] = self.upstream.auth
        if getattr(self.upstream, "realm", None):
            body["realm"] = self.upstream.realm
        body.update(kw)
        return self.api.post("/upstreams", body)

    def add_application(self, slug, repositories, upstream_id, **kw):
        """repositories: list of (public name, upstream repository, kind) or dicts."""
        repos = [r if isinstance(r, dict) else {"name": r[0], "upstream_id": upstream_id, "upstream_repository": r[1], "kind": r[2]}
                 for r in repositories]
        return self.api.post("/applications", {"slug": slug, "name": slug.title(), "repositories": repos, **kw})

    def add_customer(self, slug, **kw):
        c = self.api.post("/customers", {"slug": slug, "name": slug.title(), "email": f"ops@{slug}.example", **kw})
        self._customers[slug] = c["id"]
        return c

    def add_credential(self, customer_id, name="ci", **kw):
        """The secret is in ["secret"]."""
        return self.api.post(f"/customers/{customer_id}/credentials", {"name": name, **kw})

    def add_license(self, customer_id, application_id, grants=None, name="Prod", status="active", **kw):
        return self.api.post("/licenses", {"name": name, "customer_id": customer_id, "application_id": application_id, "status": status,
                                           "grants": grants if grants is not None else [{"selector": "all", "value": "*"}], **kw})

    # ---- a customer's ----
    def get(self, path, auth=None, method="GET", headers=None, proxy=0, **kw):
        h = dict(headers or {})
        if auth is not None:
            h["Authorization"] = auth if isinstance(auth, str) else basic(*auth)
        return requests.request(method, self.proxies[proxy].base + path, headers=h, timeout=30 * SLOW, **kw)

    def wait_status(self, path, auth, status, timeout=5, **kw):
        """Poll until the answer has that status; the answer."""
        box = {}

        def probe():
            box["r"] = self.get(path, auth, **kw)
            return box["r"].status_code == status

        wait_for(f"{path} to answer {status}", probe, timeout)
        return box["r"]

    def close(self):
        """Ends everything; fails when a daemon had to be killed or a sanitizer complained."""
        bad = []
        for p in self.proxies:
            rc = p.stop()
            if rc not in (0, -signal.SIGKILL) or "Sanitizer" in p.text() or "runtime error:" in p.text():
                bad.append(f"{p.name} exit {rc}: {p.text()[-6000:]}")
        if self.admin:
            rc = self.admin.stop()
            if rc not in (0, -signal.SIGKILL) or "Sanitizer" in self.admin.text() or "runtime error:" in self.admin.text():
                bad.append(f"admin exit {rc}: {self.admin.text()[-6000:]}")
        self.redis.stop()
        if self.registry:
            self.registry.stop()
        if self.own_dir and not bad and not os.environ.get("PULLGATE_KEEP"):
            shutil.rmtree(self.dir, ignore_errors=True)
        assert not bad, "\n".join(bad)


def make_ca(directory):
    """A CA and a certificate for localhost / 127.0.0.1 / pullgate.test, made with openssl. Paths by name."""
    d = pathlib.Path(directory) / "tls"
    d.mkdir(exist_ok=True)
    run = lambda *a: subprocess.run(["openssl", *a], check=True, capture_output=True, cwd=d)
    if not (d / "server.pem").exists():
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "90",
            "-subj", "/CN=Pullgate test CA")
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj",
            "/CN=pullgate.test")
        (d / "ext").write_text("subjectAltName=DNS:localhost,DNS:pullgate.test,IP:127.0.0.1\n")
        run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.pem", "-days", "90",
            "-extfile", "ext")
    return {"ca": d / "ca.pem", "cert": d / "server.pem", "key": d / "server.key"}


class LiveCertificate:
    """The certificate and key that a daemon serves, as files that change under it. tls: the section of its configuration."""

    def __init__(self, directory, cert, key):
        self.cert, self.key = directory / "live.pem", directory / "live.key"
        self.tls = {"cert": str(self.cert), "key": str(self.key)}
        self.put(cert, key)

    def put(self, cert, key=None):
        """key None: the one that is there stays."""
        for of, to in ((cert, self.cert), (key, self.key)):
            if of:
                shutil.copy(of, f"{to}.tmp")
                os.rename(f"{to}.tmp", to)


@contextlib.contextmanager
def live_certificate(ca, cert, key):
    """Meanwhile requests believes the CA: for what the worlds themselves ask."""
    before = os.environ.get("REQUESTS_CA_BUNDLE")
    os.environ["REQUESTS_CA_BUNDLE"] = str(ca)
    try:
        yield LiveCertificate(ca.parent, cert, key)
    finally:
        if before is None:
            del os.environ["REQUESTS_CA_BUNDLE"]
        else:
            os.environ["REQUESTS_CA_BUNDLE"] = before
