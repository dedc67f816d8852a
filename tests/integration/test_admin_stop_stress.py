"""SIGTERM to the admin daemon at any moment: writes, reads, syncs and tests of an upstream under way, proxies reporting, clients that
have left. It ends by itself with status 0, has nothing for a sanitizer to say, and what it acknowledged is there at the next start.

PULLGATE_STRESS_ROUNDS=60 for a long run; PULLGATE_STRESS_SEED repeats one."""
import os
import random
import signal
import socket
import threading
import time

import requests

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SLOW

ROUNDS = int(os.environ.get("PULLGATE_STRESS_ROUNDS", "5"))
SEED = int(os.environ.get("PULLGATE_STRESS_SEED", random.randrange(1 << 30)))
CLIENTS = 10


class Writer(threading.Thread):
    """Makes customers, edits the license, reads lists, asks for syncs and explanations; leaves before some answers."""

    def __init__(self, w, seed):
        super().__init__(daemon=True)
        self.w, self.rng = w, random.Random(seed)
        self.on, self.made, self.wrong = True, [], []

    def run(self):
        base, token = self.w.s.admin_base, self.w.s.token
        with requests.Session() as s:
            s.headers["Authorization"] = "Bearer " + token
            while self.on:
                try:
                    self.act(s, base + "/api/v1")
                except OSError:
                    if self.rng.random() < 0.3:
                        time.sleep(0.01)

    def act(self, s, api):
        rng, w = self.rng, self.w
        x = rng.random()
        if x < 0.35:
            slug = "c" + str(rng.randrange(1 << 40))
            r = s.post(api + "/customers", json={"slug": slug, "name": slug, "email": "a@b.example"}, timeout=20 * SLOW)
            if r.status_code == 201:
                self.made.append(r.json()["id"])
        elif x < 0.5:
            r = s.patch(f"{api}/licenses/{w.license['id']}", json={"name": f"n{rng.randrange(1000)}"}, timeout=20 * SLOW)
        elif x < 0.6:
            r = s.post(f"{api}/applications/{w.app['id']}/sync", json={}, timeout=20 * SLOW)
        elif x < 0.65:
            r = s.post(f"{api}/upstreams/{w.upstream['id']}/test", json={}, timeout=20 * SLOW)
        elif x < 0.75:
            self.leave(w)
            return
        else:
            path = rng.choice(("/customers", "/licenses", "/audit", "/pulls", f"/applications/{w.app['id']}/versions",
                               f"/explain?customer={w.customer['id']}&repository=shop/api&reference=1.0.0"))
            r = s.get(api + path, timeout=20 * SLOW)
        if r.status_code >= 500 and r.status_code not in (502, 503, 504):
            self.wrong.append(f"{r.request.method} {r.request.url}: {r.status_code} {r.text[:300]}")

    def leave(self, w):
        host, port = w.s.admin_base.split("//")[1].rsplit(":", 1)
        body = b'{"name":"left"}'
        with socket.create_connection((host, int(port)), timeout=5) as c:
            target = f"/api/v1/licenses/{w.license['id']}" if self.rng.random() < 0.5 else f"/api/v1/applications/{w.app['id']}/sync"
            method = "PATCH" if "licenses" in target else "POST"
            c.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {w.s.token}\r\nContent-Type: application/json\r\n"
                      f"Content-Length: {len(body)}\r\n\r\n".encode() + body)


def test_sigterm_at_any_moment():
    rng = random.Random(SEED)
    up = ScriptedUpstream()
    w = World(upstream=up, limits={"drain": "1500ms"}, admin={"sync_interval": "1s"})
    slow = [0.0]

    def wait(h):
        if rng.random() < slow[0]:
            time.sleep(random.choice((0.05, 0.3, 2.0)))
        return False

    up.rules.append(wait)
    try:
        for i in range(ROUNDS):
            what = f"seed {SEED}, round {i}"
            slow[0] = rng.choice((0.0, 0.5))
            clients = [Writer(w, rng.randrange(1 << 30)) for _ in range(CLIENTS)]
            for c in clients:
                c.start()
            until = time.monotonic() + rng.choice((0.02, 0.2, 1.0)) * rng.random() * SLOW
            while time.monotonic() < until:
                up.push_image("acme/api", rng.choice(("1.0.0", "1.2.0", "1.3.0")), [rng.randbytes(2000)])
                w.get("/v2/shop/api/manifests/1.0.0")
                if rng.random() < 0.2:
                    w.s.admin.p.send_signal(signal.SIGHUP)
                time.sleep(0.02)
            p = w.s.admin.p
            p.send_signal(signal.SIGTERM)
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.2 * SLOW)
                p.send_signal(signal.SIGTERM)
            rc = p.wait(30 * SLOW)
            for c in clients:
                c.on = False
            for c in clients:
                c.join(30 * SLOW)
            text = w.s.admin.text()
            assert rc == 0, f"{what}: status {rc}: {text[-6000:]}"
            assert "Sanitizer" not in text and "runtime error:" not in text, f"{what}: {text[-6000:]}"
            assert sum((c.wrong for c in clients), []) == [], what
            slow[0] = 0.0
            w.s.start_admin()
            for made in sum((c.made for c in clients), [])[-20:]:
                assert w.s.api("GET", f"/customers/{made}").status_code == 200, f"{what}: {made} was acknowledged and is gone"
    finally:
        slow[0] = 0.0
        w.s.close()
        up.stop()
