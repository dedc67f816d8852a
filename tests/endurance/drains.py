"""A hundred drains under load: SIGTERM to a proxy while clients pull. No answer that was begun breaks off, none is wrong.

Two proxies, one drained and started again after the other; then a single one. Clients come back, as docker and containerd do, when their
connection is refused or closed before an answer began: that is all that may happen to them. Slow readers have a blob under way at every
drain. PULLGATE_ENDURE_DRAINS: how many (a quarter of them of the single proxy).
"""
import hashlib
import random
import signal
import socket
import threading
import time

from endure import SEED, Load, Plan, main, req, say, size

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SLOW, free_port, wait_for

LIMITS = {"connections_per_ip": 10000, "inflight_per_customer": 10000, "drain": "30s"}


class SlowReader(threading.Thread):
    """Takes a large blob over half a second or so, again and again."""

    def __init__(self, w, digests, seed, first):
        super().__init__(daemon=True)
        self.w, self.rng, self.digests, self.on, self.at = w, random.Random(seed), digests, True, first
        self.whole, self.again, self.wrong = 0, 0, []

    def run(self):
        while self.on:
            proxy = self.w.s.proxies[self.at % len(self.w.s.proxies)]
            begun = [False]
            try:
                if self.one(proxy.address, begun):
                    self.whole += 1
            except OSError as e:
                if begun[0]:
                    self.wrong.append(f"{proxy.name}: broke off: {e!r}")
                else:
                    self.again += 1
                    self.at += 1
                    time.sleep(0.005)

    def one(self, address, begun):
        digest, rng = self.rng.choice(self.digests), self.rng
        with socket.socket() as s:
            s.settimeout(60 * SLOW)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            host, port = address.rsplit(":", 1)
            s.connect((host, int(port)))
            s.sendall(f"GET /v2/shop/api/blobs/{digest} HTTP/1.1\r\nHost: x\r\nAuthorization: {self.w.auth}\r\n\r\n".encode())
            data = b""
            while b"\r\n\r\n" not in data:
                got = s.recv(4096)
                if not got:
                    if data:
                        begun[0] = True
                    raise ConnectionError("closed")
                data += got
            begun[0] = True
            head, body = data.split(b"\r\n\r\n", 1)
            if not head.startswith(b"HTTP/1.1 200 "):
                self.wrong.append(head[:100].decode())
                return False
            length = int([x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")][0].split(b":")[1])
            pause = rng.choice((0.005, 0.01, 0.02))
            hashed, n = hashlib.sha256(body), len(body)
            while n < length:
                got = s.recv(min(131072, length - n))
                if not got:
                    raise ConnectionError(f"{n} of {length} bytes")
                hashed.update(got)
                n += len(got)
                time.sleep(pause)
            if hashed.hexdigest() != digest[7:]:
                self.wrong.append(f"{digest}: other bytes")
            return True


def plan_of(w, blobs):
    p, n, auth = Plan(), "/v2/shop/api/", w.auth
    for v in ("1.0.0", "1.1.0"):
        image = w.images[v]
        for kid in image["children"]:
            steps = [req("/token?scope=repository:shop/api:pull", auth), req(n + f"manifests/{v}", "$token", method="HEAD"),
                     req(n + f"manifests/{image['digest']}", "$token", body=image["digest"][7:]), req(n + f"manifests/{kid['digest']}", "$token", body=kid["digest"][7:])]
            steps += [req(n + f"blobs/{d}", "$token", body=d[7:]) for d in [kid["config"], *kid["layers"]]]
            p.script(5, steps).script(3, steps, fresh=True)
    for d in blobs:
        p.script(4, [req(n + f"blobs/{d}", auth, body=d[7:])])
    p.script(3, [req(n + "tags/list", auth), req(n + "manifests/2.0.0", auth, (403,))])
    return p


def drain_all(n, proxies):
    rng = random.Random(SEED + proxies)
    up = ScriptedUpstream()
    ports = [free_port() for _ in range(proxies)]
    w = World(upstream=up, limits=LIMITS, proxy={"spool_keep": "1s", "listen": [f"127.0.0.1:{ports[0]}"]})
    load, slow = None, []
    try:
        for i in range(1, proxies):
            w.s.config["proxy"]["listen"] = [f"127.0.0.1:{ports[i]}"]
            w.s.start_proxy(i)
        blobs = up.push_image("acme/api", "1.2.0", [rng.randbytes(x) for x in (50_000, 700_000, 3_000_000)])["layers"]
        w.s.wait_status("/v2/shop/api/manifests/1.2.0", w.auth, 200)
        load = Load(w.s.dir, plan_of(w, blobs), w.s.proxies, connections=32, retry=True, seed=SEED, report=200)
        slow = [SlowReader(w, blobs[1:], SEED + i, i) for i in range(6)]
        for t in slow:
            t.start()
        wait_for("the load to begin", lambda: load.reports, 20)
        took, down, under_way = [], [], []
        for i in range(n):
            time.sleep(rng.random() * 0.4)
            k = i % proxies
            p = w.s.proxies[k]
            whole = sum(t.whole for t in slow)
            began = time.monotonic()
            p.p.send_signal(signal.SIGTERM)
            rc = p.p.wait(60 * SLOW)
            took.append(time.monotonic() - began)
            assert rc == 0, f"seed {SEED}, drain {i}: status {rc}: {p.text()[-4000:]}"
            under_way.append(sum(t.whole for t in slow) - whole)
            w.s.config["proxy"]["listen"] = [f"127.0.0.1:{ports[k]}"]
            w.s.start_proxy(k)
            down.append(time.monotonic() - began)
            assert load.running(), load.told()
        final = load.stop()
        for t in slow:
            t.on = False
        for t in slow:
            t.join(60 * SLOW)
        say(str(final))
        wrong = sum((t.wrong for t in slow), [])
        assert not load.bad() and not wrong, f"seed {SEED}: {load.bad()} {wrong[:5]}\n{load.told()}"
        return {"drains": n, "proxies": proxies, "answers": final["done"], "per_s": round(final["done"] / final["t"]), "broken": 0, "refused_and_asked_again": final["refused"],
                "closed_before_an_answer_and_asked_again": final["unanswered"], "slow_pulls_whole": sum(t.whole for t in slow), "slow_pulls_asked_again": sum(t.again for t in slow),
                "drains_that_waited_for_a_slow_pull": sum(x > 0 for x in under_way), "drain_ms_max": round(max(took) * 1000)}
    finally:
        for t in slow:
            t.on = False
        if load and load.running():
            load.p.kill()
        w.s.close()
        up.stop()


def run(n=None):
    n = n or size("drains", 100)
    single = max(1, n // 4)
    out = {"two": drain_all(max(1, n - single), 2), "single": drain_all(single, 1)}
    say(str(out))
    return out


if __name__ == "__main__":
    main("drains", run)
