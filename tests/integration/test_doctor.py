"""`pullgate doctor`: nothing to say of a deployment that is well, and of one thing that is broken just that, with what mends it."""
import http.server
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import time

import pytest

from conftest import World
from stack import BIN, SLOW, free_port, make_ca


class Doctored:
    """A running deployment on ports that the configuration names, and copies of its parts to break."""

    def __init__(self):
        self.ports = {k: free_port() for k in ("proxy", "admin", "proxy_metrics", "admin_metrics")}
        at = lambda k: [f"127.0.0.1:{self.ports[k]}"]
        self.w = World(proxy={"listen": at("proxy"), "metrics_listen": at("proxy_metrics")}, admin={"listen": at("admin"), "metrics_listen": at("admin_metrics")})
        self.s = self.w.s
        self.config = json.loads(self.s.write_config().read_text())
        self.config["limits"] = {"connections": 1000}

    def run(self, change=None, *args, env=None, mode=0o600):
        """The exit code and what is not ok, by name."""
        cfg = json.loads(json.dumps(self.config))
        for key, value in (change or {}).items():
            *sections, name = key.split(".")
            where = cfg
            for x in sections:
                where = where.setdefault(x, {})
            where[name] = value
        path = self.s.dir / "doctor.yaml"
        path.write_text(json.dumps(cfg))
        path.chmod(mode)
        full = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", **(env or {})}
        r = subprocess.run([BIN / "pullgate", "doctor", "--json", "--config", path, *args], capture_output=True, text=True, env=full, timeout=60 * SLOW)
        doc = json.loads(r.stdout)
        assert r.returncode == (1 if doc["fail"] else 0), r
        self.checks = {c["check"]: c for c in doc["checks"]}
        for c in doc["checks"]:
            assert (c["mend"] is None) == (c["status"] == "ok") and c["text"], c
        return {c["check"]: c["status"] for c in doc["checks"] if c["status"] != "ok"}

    def text(self, name):
        return self.checks[name]["text"]

    def store_copy(self, tmp, name="copy"):
        path = tmp / f"{name}.db"
        with sqlite3.connect(f"file:{self.s.dir}/pullgate.db?mode=ro", uri=True) as a, sqlite3.connect(path) as b:
            a.backup(b)
        a.close(), b.close()
        path.chmod(0o600)
        return path

    def keys_copy(self, tmp, name):
        path = tmp / name
        shutil.copytree(self.s.dir / "keys", path)
        return path


@pytest.fixture(scope="module")
def d():
    d = Doctored()
    yield d
    d.s.close()


def test_nothing_is_wrong(d):
    assert d.run() == {}, d.checks
    wanted = {"configuration", "process.user", "process.sandbox", "keys", "keys.store", "store", "store.schema", "store.mode", "store.space", "redis", "redis.version",
              "redis.policy", "redis.evictions", "redis.memory", "redis.role", "redis.persistence", "redis.rights", "redis.projection", "clock.redis", "clock.store",
              "clock.upstream.main", "upstream.main", "upstream.main.tags", "certificate.proxy", "certificate.admin", "listen.proxy", "listen.admin", "proxy.ready",
              "admin.ready", "proxy.metrics", "admin.metrics", "disk.spool", "descriptors"}
    assert set(d.checks) == wanted
    assert "has 3 tags" in d.text("upstream.main.tags")
    assert d.run(None, "--only", "proxy") == {} and not any(c.startswith(("store", "upstream", "listen.admin")) for c in d.checks)
    assert d.run(None, "--only", "admin") == {} and "listen.proxy" not in d.checks
    shown = subprocess.run([BIN / "pullgate", "doctor", "--config", d.s.dir / "doctor.yaml"], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.endswith("33 ok, 0 warn, 0 fail\n"), shown
    assert d.s.redis.cmd("KEYS", "pg:doctor*") == [], "nothing of it stays in Redis"
    for canary in (d.s.registry.password, d.s.token, d.w.credential["secret"]):
        assert canary not in shown.stdout + json.dumps(d.checks)


@pytest.mark.once
def test_configuration(d):
    assert d.run({"proxy.nonsense": 1}) == {"configuration": "fail"} and "doctor.yaml:" in d.text("configuration") and "proxy.nonsense" in d.text("configuration")
    assert d.run({"process.user": "no-such-user"}) == {"process.user": "fail"}
    assert d.run({"process.sandbox": "off"}) == {"process.sandbox": "warn"}
    d.s.redis.cmd("ACL", "SETUSER", "pg", "on", ">secret", "~pg:*", "&pg:*", "+@all")
    user = {"redis.username": "pg", "redis.password": "secret"}
    assert d.run(user) == {}
    assert d.run(user, mode=0o644) == {"configuration": "warn"}
    shown = subprocess.run([BIN / "pullgate", "doctor", "--config", d.s.dir / "doctor.yaml"], capture_output=True, text=True)
    assert shown.returncode == 0 and "mend: chmod 600 it" in shown.stdout and "secret" not in shown.stdout
    for args in (["--nonsense"], ["--only", "x"], ["more"]):
        r = subprocess.run([BIN / "pullgate", "doctor", *args], capture_output=True, text=True)
        assert r.returncode == 2 and r.stdout == "" and r.stderr.count("\n") == 1


@pytest.mark.once
def test_keys(d, tmp_path):
    keys = d.keys_copy(tmp_path, "open")
    (keys / "seal.key").chmod(0o644)
    assert d.run({"keys.path": str(keys)}) == {"keys": "fail"} and "seal.key has mode 0644" in d.text("keys")
    keys = d.keys_copy(tmp_path, "part")
    (keys / "pepper.key").unlink()
    assert d.run({"keys.path": str(keys)}) == {"keys": "fail"} and "pepper.key" in d.text("keys")
    assert d.run({"keys.path": str(tmp_path / "none")}) == {"keys": "fail"}
    keys = d.keys_copy(tmp_path, "seal")
    (keys / "seal.key").write_text("ab" * 32 + "\n")
    assert d.run({"keys.path": str(keys)}) == {"keys.store": "fail"} and "not of the same deployment" in d.text("keys.store")
    keys = d.keys_copy(tmp_path, "mac")
    (keys / "mac.key").write_text("ab" * 32 + "\n")
    assert d.run({"keys.path": str(keys)}) == {"redis.projection": "fail"} and "was not signed" in d.text("redis.projection")


@pytest.mark.once
def test_store(d, tmp_path):
    url = lambda p: {"store.url": f"sqlite://{p}"}
    good = d.store_copy(tmp_path)
    assert d.run(url(good)) == {}
    good.chmod(0o640)
    assert d.run(url(good)) == {"store.mode": "fail"}
    bad = d.store_copy(tmp_path, "bad")
    data = bytearray(bad.read_bytes())
    for at in range(4096 * 3, len(data), 4096):
        data[at:at + 100] = b"\xff" * 100
    bad.write_bytes(data)
    assert d.run(url(bad)) == {"store": "fail"} and "restore" in d.checks["store"]["mend"]
    assert d.run(url(tmp_path / "never.db")) == {"store": "warn"}
    (tmp_path / "gone.db.lock").write_text("there is a store beside this file\n")
    assert d.run(url(tmp_path / "gone.db")) == {"store": "fail"} and "restore" in d.checks["store"]["mend"]
    for sql, expect in (("INSERT INTO schema_migrations VALUES (9999,'x',0)", {"store.schema": "fail"}),
                        (f"UPDATE meta SET value={int(time.time()) + 4000} WHERE key='clock_high_water'", {"clock.store": "fail"})):
        copy = d.store_copy(tmp_path, "sql")
        with sqlite3.connect(copy) as db:
            assert db.execute(sql).rowcount == 1
        db.close()
        assert d.run(url(copy)) == expect
        copy.unlink()


SMALL_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
int statvfs(const char *path, struct statvfs *v)
{
    int (*real)(const char *, struct statvfs *) = (int (*)(const char *, struct statvfs *))dlsym(RTLD_NEXT, "statvfs");
    int rc = real(path, v);
    if (rc == 0 && strcmp(path, getenv("SMALL")) == 0) { v->f_blocks = 1 << 20; v->f_frsize = 4096; v->f_bavail = (1 << 20) / 100 * (unsigned)atoi(getenv("PERCENT")); }
    return rc;
}
"""


@pytest.mark.once
def test_disks(d, tmp_path):
    (tmp_path / "s.c").write_text(SMALL_DISK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "s.so", tmp_path / "s.c"], check=True)
    for path, name in ((d.s.dir, "store.space"), (d.s.dir / "spool", "disk.spool")):
        for percent, status in ((1, "fail"), (6, "warn")):
            assert d.run(env={"LD_PRELOAD": str(tmp_path / "s.so"), "SMALL": str(path), "PERCENT": str(percent)}) == {name: status}, d.checks
    assert d.run({"proxy.spool_path": str(tmp_path / "none")}) == {"disk.spool": "fail"}
    assert d.run({"proxy.blob_cache.path": str(tmp_path / "none")}) == {"disk.blob_cache": "fail"}
    assert d.run({"proxy.blob_cache.path": str(tmp_path / "s.c")}) == {"disk.blob_cache": "fail"} and "is no directory" in d.text("disk.blob_cache")
    assert d.run({"log.access_path": str(tmp_path / "none/access.log")}) == {"disk.log": "fail"}
    assert d.run({"limits.connections": 900000}) == {"descriptors": "warn"}


class BetweenRedis:
    """Passes commands on to a Redis, but answers some itself."""

    def __init__(self, port):
        self.port, self.info, self.time = port, [], 0
        self.l = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.l.getsockname()[1]}/0"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                c, _ = self.l.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(c,), daemon=True).start()

    def reply(self, f):
        line = f.readline()
        if line[:1] == b"$":
            n = int(line[1:])
            return line + (f.read(n + 2) if n >= 0 else b"")
        if line[:1] == b"*":
            return line + b"".join(self.reply(f) for _ in range(int(line[1:])))
        return line

    def serve(self, c):
        up = socket.create_connection(("127.0.0.1", self.port))
        cf, uf = c.makefile("rb"), up.makefile("rb")
        while True:
            command = self.reply(cf)
            if not command:
                return up.close()
            up.sendall(command)
            answer = self.reply(uf)
            if b"INFO" in command:
                body = answer.split(b"\r\n", 1)[1][:-2]
                for old, new in self.info:
                    assert old in body, old
                    body = body.replace(old, new)
                answer = b"$%d\r\n%s\r\n" % (len(body), body)
            if b"$4\r\nTIME" in command and self.time:
                now = b"%d" % (time.time() + self.time)
                answer = b"*2\r\n$%d\r\n%s\r\n$1\r\n0\r\n" % (len(now), now)
            c.sendall(answer)


@pytest.mark.once
def test_redis(d):
    cmd = d.s.redis.cmd
    assert d.run({"redis.url": "redis://127.0.0.1:9/0"}) == {"redis": "fail"}
    assert d.run({"redis.password": "wrong"}) == {"redis": "fail"}
    try:
        cmd("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert d.run() == {"redis.policy": "warn"}
        cmd("CONFIG", "SET", "maxmemory", "500mb")
        assert d.run() == {"redis.policy": "fail"}
    finally:
        cmd("CONFIG", "SET", "maxmemory", "0")
        cmd("CONFIG", "SET", "maxmemory-policy", "noeviction")
    for but in ("set", "publish", "xreadgroup", "multi", "subscribe"):
        cmd("ACL", "SETUSER", "weak", "reset", "on", ">pw", "~pg:*", "&pg:*", "+@all", "-" + but)
        assert d.run({"redis.username": "weak", "redis.password": "pw"}) == {"redis.rights": "fail"}, but
        assert but.upper() in d.text("redis.rights")
    cmd("ACL", "SETUSER", "weak", "reset", "on", ">pw", "~other:*", "&pg:*", "+@all")
    assert d.run({"redis.username": "weak", "redis.password": "pw"}) == {"redis.rights": "fail"}
    cmd("ACL", "SETUSER", "weak", "reset", "on", ">pw", "~pg:*", "&pg:*", "+@all", "-info")
    assert d.run({"redis.username": "weak", "redis.password": "pw"}) == {"redis.info": "warn"}
    between = BetweenRedis(d.s.redis.port)
    at = {"redis.url": between.url}
    assert d.run(at) == {}
    for name, status, old, new in (("redis.version", "fail", b"redis_version:7", b"redis_version:5"), ("redis.evictions", "warn", b"evicted_keys:0", b"evicted_keys:7"),
                                   ("redis.role", "fail", b"role:master", b"role:slave"), ("redis.memory", "fail", b"\r\nmaxmemory:0", b"\r\nmaxmemory:1000"),
                                   ("redis.persistence", "fail", b"rdb_last_bgsave_status:ok", b"rdb_last_bgsave_status:err")):
        between.info = [(old, new)]
        assert d.run(at) == {name: status}, name
    between.info = []
    for apart, status in ((8, "warn"), (-100, "fail"), (100, "fail")):
        between.time = apart
        assert d.run(at) == {"clock.redis": status}
    between.l.close()


class Fake(http.server.BaseHTTPRequestHandler):
    """Answers from a table of paths; its clock can be wrong."""
    answers, ahead = {}, 0

    def do_GET(self):
        status, body = self.answers.get(self.path.split("?")[0], (404, ""))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + self.ahead)

    def log_message(self, *a):
        pass


@pytest.fixture()
def fake():
    handler = type("Handler", (Fake,), {"answers": {}, "ahead": 0})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.server, handler.address = server, f"127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.once
def test_upstreams(d, fake, tmp_path):
    s = d.s
    patch = lambda **kw: s.api("PATCH", f"/upstreams/{d.w.upstream['id']}", kw, 200)
    registry = {"url": s.registry.url, "username": s.registry.user, "password": s.registry.password, "ca": ""}
    try:
        patch(password="wrong-password")
        assert d.run() == {"upstream.main": "fail"} and "wrong-password" not in json.dumps(d.checks)
        patch(**{**registry, "url": "https://registry.no-such-host.invalid"})
        assert d.run() == {"upstream.main": "fail"} and "cannot be resolved" in d.text("upstream.main")
        patch(**{**registry, "url": f"http://127.0.0.1:{free_port()}"})
        assert d.run() == {"upstream.main": "fail"}
        fake.answers.update({"/v2/": (200, "{}"), "/v2/acme/api/tags/list": (200, '{"name":"acme/api","tags":["1.0.0"]}')})
        patch(**{**registry, "url": f"http://{fake.address}"})
        assert d.run() == {}, d.checks
        fake.ahead = 30
        assert d.run() == {"clock.upstream.main": "warn"}
        fake.ahead = -7200
        assert d.run() == {"clock.upstream.main": "fail"}
        fake.ahead = 0
        del fake.answers["/v2/acme/api/tags/list"]
        assert d.run() == {"upstream.main.tags": "fail"} and "acme/api" in d.text("upstream.main.tags")
        # TLS under a CA that nobody knows, and then is told
        ca = make_ca(tmp_path)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), fake)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca["cert"], ca["key"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fake.answers["/v2/acme/api/tags/list"] = (200, '{"name":"acme/api","tags":["1.0.0"]}')
        patch(**{**registry, "url": f"https://127.0.0.1:{server.server_port}"})
        assert d.run() == {"upstream.main": "fail"} and "certificate" in d.text("upstream.main").lower(), d.text("upstream.main")
        patch(ca=ca["ca"].read_text())
        assert d.run() == {}, d.checks
        server.shutdown(), server.server_close()
    finally:
        patch(**registry)


@pytest.mark.once
def test_certificates(d, tmp_path):
    made = {}
    for name, when, days in (("past", "2020-01-01", 30), ("future", "2040-01-01", 30), ("soon", None, 10), ("good", None, 300)):
        cert, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        subprocess.run((["faketime", when] if when else []) + ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
                        "-out", cert, "-days", str(days), "-subj", "/CN=x", "-addext", "subjectAltName=DNS:pull.example,IP:127.0.0.1"], check=True, capture_output=True)
        made[name] = (str(cert), str(key))
    for which in ("proxy", "admin"):
        def check(cert, key, url="https://pull.example"):
            return d.run({f"{which}.tls": {"cert": cert, "key": key}, f"{which}.public_url": url, f"{which}.listen": ["127.0.0.1:0"]})
        name = f"certificate.{which}"
        assert check(*made["good"]) == {}, d.checks
        assert "says that it is ready" in d.text(f"{which}.ready"), "asked on its metrics address"
        assert check(*made["past"]) == {name: "fail"} and "expired on 2020" in d.text(name)
        assert check(*made["future"]) == {name: "fail"} and "not valid before 2040" in d.text(name)
        assert check(*made["soon"]) == {name: "warn"}
        assert check(*made["good"], url="https://other.example") == {name: "fail"} and "is not for other.example" in d.text(name)
        assert check(made["good"][0], made["soon"][1]) == {name: "fail"}
        assert check(made["good"][0], str(tmp_path / "none.key")) == {name: "fail"}


@pytest.mark.once
def test_listeners_and_daemons(d, fake):
    for which in ("proxy", "admin"):
        name = f"listen.{which}"
        assert d.run({f"{which}.listen": [f"127.0.0.1:{free_port()}"]}) == {name: "warn"} and "does not run" in d.text(name)
        assert d.run({f"{which}.listen": ["192.0.2.7:5080"]}) == {name: "fail"}
        assert d.run({f"{which}.listen": ["unix:/nonexistent/x.sock"]}) == {name: "fail"}
        if which == "proxy":
            with socket.create_server(("127.0.0.1", 0)) as deaf:
                assert d.run({f"{which}.listen": ["127.0.0.1:%d" % deaf.getsockname()[1]]}) == {name: "fail"}
        fake.answers.clear()
        assert d.run({f"{which}.listen": [fake.address]})[name] == "fail" and "is not pullgate" in d.text(name)
        fake.answers.update({"/healthz": (200, '{"status":"ok"}\n'), "/readyz": (503, '{"status":"not ready","reason":"no redis"}\n')})
        assert d.run({f"{which}.listen": [fake.address]}) == {f"{which}.ready": "fail"} and "no redis" in d.text(f"{which}.ready")
        for line in ("pullgate_config_last_reload_successful 0", "pullgate_redis_up 0", "pullgate_sandbox_refused_total 3", "pullgate_admin_projection_in_sync 0"):
            fake.answers["/metrics"] = (200, f"# TYPE x gauge\n{line}\n")
            assert d.run({f"{which}.metrics_listen": [fake.address]}) == {f"{which}.metrics": "fail"}, line
            assert line.split()[0] in d.text(f"{which}.metrics")


@pytest.mark.once
def test_without_the_daemons(d):
    """Last: what can be known when nothing runs but Redis, and a projection that nobody renews."""
    assert d.s.admin.stop() == 0 and d.s.proxies[0].stop() == 0
    assert d.run() == {"listen.proxy": "warn", "listen.admin": "warn"}
    d.s.redis.cmd("FLUSHALL")
    assert d.run() == {"listen.proxy": "warn", "listen.admin": "warn", "redis.projection": "warn"}
    d.s.start_admin(), d.s.start_proxy()
