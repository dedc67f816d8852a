"""SIGTERM at any moment: with requests of every kind under way, slow clients, an upstream that stalls and breaks off, tags that move,
a Redis that drops connections, scrapes and reloads.
The proxy ends by itself, with status 0, with nothing for a sanitizer to say; a blob that was begun is whole or cut, never wrong.

PULLGATE_STRESS_ROUNDS=60 for a long run; PULLGATE_STRESS_SEED repeats one."""
import hashlib
import os
import random
import signal
import socket
import ssl
import threading
import time

import pytest
import requests

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SLOW, basic, make_ca

ROUNDS = int(os.environ.get("PULLGATE_STRESS_ROUNDS", "4"))
SEED = int(os.environ.get("PULLGATE_STRESS_SEED", random.randrange(1 << 30)))
CLIENTS = 24
TIGHT = {"max_staleness": "1s", "grace_when_cache_is_down": "2s", "hold_on_unknown": "500ms", "tag_freshness": "100ms"}


class Trouble:
    """What the upstream does to a share of the requests: wait, say 503, send half of a body."""

    def __init__(self, up, rng):
        self.up, self.rng, self.share = up, rng, 0.0
        up.rules.append(self)

    def __call__(self, h):
        x = self.rng.random()
        if x >= self.share:
            return False
        if x < self.share * 0.2:
            h.reply(503, b"busy")
            return True
        if x < self.share * 0.4 and "/blobs/" in h.path:
            data = self.up.blobs.get(("acme/api", h.path.rsplit("/", 1)[1]), b"x" * 100)
            h.send_response(200)
            h.send_header("Content-Length", str(len(data)))
            h.end_headers()
            h.wfile.write(data[:len(data) // 2])
            h.close_connection = True
            return True
        time.sleep(self.rng.choice((0.02, 0.1, 0.4, 1.5)))
        return False


class Client(threading.Thread):
    """Over one connection after another: asks, reads fast, slowly or not to the end."""

    def __init__(self, address, tls, seed, paths, auths):
        super().__init__(daemon=True)
        self.address, self.tls = address.rsplit(":", 1), tls
        self.rng = random.Random(seed)
        self.paths, self.auths = paths, auths
        self.on, self.wrong, self.answers = True, [], 0

    def run(self):
        while self.on:
            try:
                self.connection()
            except OSError:
                time.sleep(0.01)

    def connection(self):
        rng = self.rng
        s = socket.socket()
        s.settimeout(20 * SLOW)
        if rng.random() < 0.5:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with s:
            s.connect((self.address[0], int(self.address[1])))
            if self.tls:
                s = self.tls.wrap_socket(s)
            for _ in range(rng.choice((1, 1, 4))):
                if not self.on:
                    return
                path = rng.choice(self.paths)
                method = "HEAD" if rng.random() < 0.2 else "GET"
                extra = f"Range: bytes={rng.randrange(100)}-{rng.randrange(100, 300000)}\r\n" if "/blobs/" in path and rng.random() < 0.3 else ""
                s.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {rng.choice(self.auths)}\r\n{extra}\r\n".encode())
                if rng.random() < 0.1:
                    return  # gone before the answer
                if not self.answer(s, method, path, extra):
                    return

    def answer(self, s, method, path, extra):
        rng, head = self.rng, b""
        while b"\r\n\r\n" not in head:
            got = s.recv(4096)
            if not got:
                return False
            head += got
        head, body = head.split(b"\r\n\r\n", 1)
        status = int(head.split(b" ", 2)[1])
        self.answers += 1
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if method == "HEAD":
            return True
        stop_at = rng.randrange(length + 1) if rng.random() < 0.15 else length
        pause = rng.choice((0, 0, 0, 0.001, 0.01))
        hashed = hashlib.sha256(body)
        n = len(body)
        while n < stop_at:
            got = s.recv(min(65536, stop_at - n) if not pause else 16384)
            if not got:
                return False  # cut: allowed
            hashed.update(got)
            n += len(got)
            if pause:
                time.sleep(pause)
            if not self.on and pause:
                pause = 0
        if n < length:
            return False
        digest = path.rsplit("sha256:", 1)
        if status == 200 and len(digest) == 2 and "/referrers/" not in path and hashed.hexdigest() != digest[1]:
            self.wrong.append(f"{path}: other bytes")
        if status >= 500 and status not in (502, 503, 504):
            self.wrong.append(f"{path}: {status}")
        return True


def paths_of(w, blobs):
    paths = ["/v2/", "/token?scope=repository:shop/api:pull", "/v2/shop/api/tags/list", "/v2/_catalog", "/v2/shop/api/tags/list?n=1", "/readyz",
             "/v2/shop/api/manifests/2.0.0", "/v2/other/app/manifests/1.0.0", "/v2/shop/api/manifests/1.7.7", "/v2/no/where/manifests/1"]
    paths += [f"/v2/shop/api/manifests/{v}" for v in ("1.0.0", "1.1.0", "1.2.0", "1.3.0")] * 2
    for v in ("1.0.0", "1.1.0", "2.0.0"):
        image = w.images[v]
        paths += [f"/v2/shop/api/manifests/{image['digest']}", f"/v2/shop/api/referrers/{image['digest']}"]
        for kid in image["children"]:
            paths += [f"/v2/shop/api/manifests/{kid['digest']}"] + [f"/v2/shop/api/blobs/{d}" for d in kid["layers"]]
    paths += [f"/v2/shop/api/blobs/{d}" for d in blobs] * 3
    return paths + ["/v2/shop/api/blobs/sha256:" + "ab" * 32, "/v2/shop/api/manifests/sha256:" + "cd" * 32]


def disturb(w, p, rng):
    """Something that happens to a proxy."""
    x = rng.random()
    if x < 0.1:
        p.p.send_signal(signal.SIGHUP)
    elif x < 0.2:
        p.p.send_signal(signal.SIGUSR1)
    elif x < 0.25:
        w.s.redis.cmd("CLIENT", "KILL", "TYPE", rng.choice(("normal", "pubsub")))
    elif x < 0.35:
        requests.get("http://" + (w.s.dir / "proxy0.port").read_text().split()[-1] + "/metrics", timeout=10 * SLOW)
    elif x < 0.4:
        w.s.api("PATCH", f"/licenses/{w.license['id']}", {"name": f"n{rng.randrange(1000)}"})


@pytest.mark.parametrize("kind", ["plain", "cached", "tls"])
def test_sigterm_at_any_moment(tmp_path, monkeypatch, kind):
    rng = random.Random(SEED + len(kind))
    up = ScriptedUpstream()
    proxy = {"spool_keep": "200ms", "metrics_listen": ["127.0.0.1:0"]}
    tls = None
    if kind == "cached":
        proxy["blob_cache"] = {"path": str(tmp_path / "blobs"), "max_bytes": "16MiB"}
    if kind == "tls":
        pair = make_ca(tmp_path)
        proxy["tls"] = {"cert": str(pair["cert"]), "key": str(pair["key"])}
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pair["ca"]))
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    w = World(upstream=up, cache=TIGHT, limits={"drain": "1500ms"}, proxy=proxy)
    trouble = Trouble(up, random.Random(SEED))
    auths = [w.auth] * 8 + [basic("globex", "pgc_" + "x" * 43), "Basic Zm9vOmJhcg=="]
    data = [rng.randbytes(n) for n in (100_000, 900_000, 3_000_000)]
    blobs = up.push_image("acme/api", "1.2.0", data)["layers"]
    try:
        for i in range(ROUNDS):
            trouble.share = 0.0
            w.s.proxies[0].stop(signal.SIGKILL)
            p = w.s.start_proxy(0)
            trouble.share = rng.choice((0.0, 0.1, 0.5))
            paths = paths_of(w, blobs)
            clients = [Client(p.address, tls, rng.randrange(1 << 30), paths, auths) for _ in range(CLIENTS)]
            for c in clients:
                c.start()
            until = time.monotonic() + rng.choice((0.05, 0.3, 0.8)) * rng.random() * SLOW
            while time.monotonic() < until:
                up.push_image("acme/api", rng.choice(("1.0.0", "1.2.0", "1.3.0")), data[:1] + [rng.randbytes(200_000)])
                disturb(w, p, rng)
                time.sleep(0.03)
            p.p.send_signal(signal.SIGTERM)
            if rng.random() < 0.4:
                time.sleep(rng.random() * 0.2 * SLOW)
                p.p.send_signal(signal.SIGTERM)
            for c in clients:
                c.on = rng.random() < 0.5
            rc = p.p.wait(20 * SLOW)
            for c in clients:
                c.on = False
            for c in clients:
                c.join(30 * SLOW)
            what = f"seed {SEED}, round {i}"
            assert rc == 0, f"{what}: status {rc}: {p.text()[-6000:]}"
            assert "Sanitizer" not in p.text() and "runtime error:" not in p.text(), f"{what}: {p.text()[-6000:]}"
            assert sum((c.wrong for c in clients), []) == [], what
    finally:
        trouble.share = 0.0
        w.s.close()
        up.stop()
