"""Model-drawn decisions while things fail: no false allow, and no "no" that is not one. What could not be known is counted apart.

The shop of decisions.py. In each phase some thousand requests to two proxies while one or two kinds of fault come again and again: Redis
flushed, killed and started empty, stopped for a while, its connections cut, paused, full, its values forged, swapped or replayed; the
upstream answering 5xx, 429, 401, late, half or with other bytes, or hanging up; the admin daemon killed; reloads; the clock of a proxy
ahead or behind. Answers may be right or 502, 503, 504. Licenses are edited before the phase and, in some, during it (then either
state of that customer counts). After each phase everything is whole again and a share is asked once more: then every answer has to be right.
PULLGATE_ENDURE_FAULTS: how many decisions with faults.
"""
import collections
import os
import pathlib
import random
import signal
import threading
import time

import requests

from decisions import Judge, Shop
from endure import SEED, SLOW, Load, Plan, main, req, say, size

from stack import wait_for

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
REDIS = ("flush", "kill", "hang", "cut", "pause", "full", "forged", "replayed")
UPSTREAM = ("upstream 5xx", "upstream slow", "upstream half", "upstream gone", "upstream 401", "upstream other bytes")
OTHER = ("admin killed", "reload", "clock")
CACHE = {"tag_freshness": "1s", "negative": "1s", "max_staleness": "1s", "grace_when_cache_is_down": "3s", "hold_on_unknown": "700ms"}


class Trouble:
    """What the upstream does to a share of the requests."""

    def __init__(self, up, rng):
        self.up, self.rng, self.kind = up, rng, None
        up.rules.append(self)

    def __call__(self, h):
        kind = self.kind
        if kind is None or self.rng.random() > 0.5:
            return False
        if kind == "upstream 5xx":
            h.reply(self.rng.choice((500, 502, 503, 504, 429)), b"busy", {"Retry-After": "1"})
        elif kind == "upstream 401":
            h.reply(401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})
        elif kind == "upstream slow":
            time.sleep(self.rng.choice((0.05, 0.3, 1.0)))
            return False
        elif kind == "upstream gone":
            h.close_connection = True
        elif kind == "upstream half":
            data = b"x" * 1000
            h.send_response(200)
            h.send_header("Content-Length", "2001")  # no blob has that size: a part of a blob is not verified by a hash
            h.send_header("Content-Type", "application/octet-stream")
            h.end_headers()
            h.wfile.write(data)
            h.close_connection = True
        elif "/referrers/" in h.path:  # nothing shows that an empty list is not the true one
            return False
        else:
            h.reply(200, b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}', {
                "Content-Type": "application/vnd.oci.image.index.v1+json", "Docker-Content-Digest": h.path.rsplit("/", 1)[1]})
        return True


class Faults(threading.Thread):
    """Brings faults of some kinds about, until it is told to stop; then everything is whole again."""

    def __init__(self, proof, kinds):
        super().__init__(daemon=True)
        self.p, self.kinds, self.on, self.error = proof, kinds, True, None

    def run(self):
        try:
            while self.on:
                kind = self.p.rng2.choice(self.kinds)
                self.p.counted[kind] += 1
                self.p.fault(kind)
                time.sleep(self.p.rng2.random() * 0.15)
        except Exception as e:  # told by the proof
            self.error = e


class Proof:
    def __init__(self):
        self.shop = shop = Shop(customers=20, proxy={"workers": 2}, cache=CACHE, limits={"redis_deadline": "100ms", "upstream_first_byte": "2s"},
                                proxy_env=self.proxy_env)
        self.s, self.rng, self.rng2 = shop.s, shop.rng, random.Random(SEED + 7)
        self.ours = self.s.redis.proc, self.s.admin  # started by this thread
        self.trouble = Trouble(shop.up, random.Random(SEED + 8))
        self.counted, self.snapshots = collections.Counter(), []
        self.canaries = list({name: (name, tag) for name, tag in shop.catalog.tags}.values())

    def proxy_env(self, directory, i):
        """The second proxy's clock can be moved."""
        if i == 0 or not pathlib.Path(FAKETIME).exists() or SLOW > 1:
            return {}
        self.clock = pathlib.Path(directory) / "clock"
        self.clock.write_text("+0")
        return {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_CACHE_DURATION": "1", "DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    # ---- faults ----
    def fault(self, kind):
        redis, rng = self.s.redis, self.rng2
        if kind == "flush":
            redis.cmd("FLUSHALL")
        elif kind == "kill":
            redis.stop(signal.SIGKILL)
            time.sleep(rng.random() * 0.4)
            redis.start()
        elif kind == "hang":
            redis.proc.p.send_signal(signal.SIGSTOP)
            time.sleep(rng.random() * 0.8)
            redis.proc.p.send_signal(signal.SIGCONT)
        elif kind == "cut":
            redis.cmd("CLIENT", "KILL", "TYPE", rng.choice(("normal", "pubsub")))
        elif kind == "pause":
            redis.cmd("CLIENT", "PAUSE", str(rng.randrange(50, 500)), "ALL")
            time.sleep(0.5)
        elif kind == "full":
            redis.cmd("CONFIG", "SET", "maxmemory", "1")
            time.sleep(rng.random() * 0.3)
            redis.cmd("CONFIG", "SET", "maxmemory", "0")
        elif kind == "forged":
            self.forge()
        elif kind == "replayed":
            self.replay()
        elif kind.startswith("upstream"):
            self.trouble.kind = kind
            time.sleep(0.3)
        elif kind == "admin killed":
            self.s.admin.stop(signal.SIGKILL)
            time.sleep(rng.random() * 0.5)
            self.s.start_admin()
        elif kind == "reload":
            rng.choice(self.s.proxies).p.send_signal(signal.SIGHUP)
        else:
            self.clock.write_text(rng.choice(("+1200", "+120", "-100", "-1800", "+0", "-7200", "+3600")))
            time.sleep(1.1)

    def keys(self):
        return self.s.redis.cmd("KEYS", "pg:v:*") + self.s.redis.cmd("KEYS", "pg:b:*")

    def value(self, key):
        try:
            return self.s.redis.cmd("GET", key)
        except RuntimeError:  # of another type: forged
            return None

    def forge(self):
        """Whoever writes to Redis and has no key: entitlements swapped, bytes changed, types changed, things taken out."""
        redis, rng = self.s.redis, self.rng2
        customers = redis.cmd("KEYS", "pg:v:c:*")
        if not customers:
            return
        for _ in range(6):
            a, b = rng.choice(customers), rng.choice(customers)
            value = self.value(a) or b""
            kind = rng.randrange(7)
            if kind == 0:
                redis.cmd("SET", b, value)
            elif kind == 1:
                redis.cmd("SET", a, value.replace(b'"suspended"', b'"active"').replace(b'"revoked"', b'"active"').replace(b'"disabled":true', b'"disabled":false'))
            elif kind == 2:
                redis.cmd("SET", a, value[:rng.randrange(len(value) + 1)])
            elif kind == 3:
                redis.cmd("DEL", a)
            elif kind == 4:
                redis.cmd("DEL", a)
                redis.cmd("LPUSH", a, value)
            elif kind == 5:
                key = rng.choice(self.keys() or [a])
                redis.cmd("SET", key, b"1 " + str(rng.randrange(1 << 40)).encode() + b" " + b"0" * 64 + b" {}")
            else:
                redis.cmd("DEL", rng.choice(self.keys() or [a]))

    def snapshot(self):
        keys = self.keys() + [b"pg:root"]
        self.snapshots.append({k: self.value(k) for k in keys})
        del self.snapshots[:-4]

    def replay(self):
        """What stood there before an edit, with its right MAC."""
        old = self.rng2.choice(self.snapshots)
        which = self.rng2.randrange(3)
        for k, v in old.items():
            if v and (which == 0 or (which == 1 and b":c:" in k) or (which == 2 and k != b"pg:root" and self.rng2.random() < 0.5)):
                self.s.redis.cmd("SET", k, v)

    def heal(self):
        self.trouble.kind = None
        if hasattr(self, "clock"):
            self.clock.write_text("+0")
        # What the thread of the faults started dies with that thread (PR_SET_PDEATHSIG), a moment after it.
        if self.s.redis.proc is not self.ours[0] or not self.s.redis.proc.alive():
            self.s.redis.stop(signal.SIGKILL)
            self.s.redis.start()
        self.s.redis.cmd("CONFIG", "SET", "maxmemory", "0")
        if self.s.admin is not self.ours[1] or not self.s.admin.alive():
            self.s.admin.stop(signal.SIGKILL)
            self.s.start_admin()
        self.ours = self.s.redis.proc, self.s.admin

    def whole(self):
        """Everything is as it should be: Redis is in step, each proxy ready, its breakers closed."""
        wait_for("Redis to be in step", lambda: (lambda d: d["in_sync"] and d["redis"] and d["projection_lag"] == 0)(
            requests.get(self.s.admin_base + "/readyz", timeout=5).json()), 30)
        for k in range(2):
            wait_for("the proxy to be ready", lambda: requests.get(self.s.proxies[k].base + "/readyz", timeout=5).status_code == 200, 30)
        # a value that was altered is put back by the admin's slow comparison: until then it is "cannot know"
        wait_for("everything to be known again", self.known, 60, 0.5)

    def known(self):
        plan = Plan()
        for c in self.shop.customers:
            for name, tag in self.canaries:
                for _ in range(4):
                    plan.script(1, [req(f"/v2/{name}/manifests/{tag}", c["auth"], ())], fresh=True)
        load = Load(self.s.dir, plan, self.s.proxies, once=True, connections=16, report=1000000)
        return not [status for status in load.wait()["statuses"] if int(status) >= 500]

    # ---- phases ----
    def ask(self, probes, rate, tamper=None):
        plan = Plan()
        for p in probes:
            plan.script(1, [p[0]])
        load = Load(self.s.dir, plan, self.s.proxies, trace=self.s.dir / "trace", once=True, connections=32, rate=rate, report=1000000)
        edited = set()
        if tamper:
            tamper.start()
            try:
                while load.running():
                    time.sleep(0.3)
                    if self.rng.random() < 0.15 and self.s.admin.alive():
                        c = self.rng.choice(self.shop.customers)
                        edited.add(c["id"])
                        try:
                            self.shop.edit(c)
                        except (requests.exceptions.ConnectionError, AssertionError):
                            self.look_again(c)
            finally:
                tamper.on = False
                tamper.join(60)
            assert tamper.error is None, repr(tamper.error)
        load.wait()
        return load, edited

    def look_again(self, c):
        """The admin was killed under an edit: what came of it."""
        if not self.s.admin.alive():
            time.sleep(0.1)

        def docs():
            listed = self.s.api.get(f"/licenses?customer_id={c['id']}")["items"]
            return [self.s.api.get(f"/licenses/{x['id']}") for x in listed], self.s.api.get(f"/customers/{c['id']}")

        listed, customer = wait_for("the admin", docs, 30, 0.1)
        apps = {a["id"]: slug for slug, a in self.shop.apps.items()}
        c["disabled"] = customer["disabled"]
        c["licenses"] = [{"application": apps[d["application_id"]], "id": d["id"], "told": self.shop.told(d, apps[d["application_id"]])} for d in listed]

    def phase(self, kinds, n, judge, after):
        shop = self.shop
        self.snapshot()
        for c in shop.customers:
            if shop.rng.random() < 0.3:
                shop.edit(c)
        if time.monotonic() - shop.tokens_at > 150:
            shop.tokens()
        self.whole()
        time.sleep(1.2)  # the edits are everywhere, also where an announcement came late
        now, clock = int(time.time()), "clock" in kinds
        probes = [p for c in shop.customers for p in shop.probes(c, now, 0.4, tokens=not clock)]
        shop.rng.shuffle(probes)
        probes = probes[:n]
        tamper = Faults(self, kinds)
        load, edited = self.ask(probes, 1500, tamper)
        told = [(r, None if what.split(" ")[0] in edited else allowed, what) for r, allowed, what in probes]
        judge.take(load, told, faults=True)
        self.heal()
        self.whole()
        assert not judge.false, f"seed {SEED}, {kinds}, edited {edited}: {len(judge.false)}, of them\n" + "\n".join(judge.false[:12]) + shop.about(judge.false[0])
        time.sleep(2.2)  # breakers, remembered failures and what is remembered as unknown
        probes = [p for c in shop.customers for p in shop.probes(c, int(time.time()), 0.05, tokens=False)]
        shop.rng.shuffle(probes)
        load, _ = self.ask(probes[:max(200, n // 6)], None)
        after.take(load, probes)
        assert not after.false, f"seed {SEED}, after {kinds}: {len(after.false)}, of them\n" + "\n".join(after.false[:12]) + shop.about(after.false[0])


def run(n=None):
    n = n or size("faults", 100_000)
    proof = Proof()
    judge, after, phases = Judge(), Judge(), 0
    kinds = [k for k in REDIS + UPSTREAM + OTHER if k != "clock" or hasattr(proof, "clock")]
    by_phase = collections.Counter()
    try:
        order = []
        while sum(judge.counted.values()) < n:
            if not order:
                order = proof.rng.sample(kinds, len(kinds))
            some = [order.pop()] + (proof.rng.sample(kinds, 1) if proof.rng.random() < 0.5 else [])
            proof.phase(some, min(2500, n), judge, after)
            phases += 1
            if phases % 5 == 0:
                say(f"phase {phases:3}: {sum(judge.counted.values()):7} decisions with faults, {dict(judge.counted)}, {dict(judge.said)}; after: {dict(after.counted)}")
        return {"decisions_with_faults": sum(judge.counted.values()), "phases": phases, **dict(judge.counted), "false_allow": 0, "false_deny": 0,
                "statuses": {str(k): v for k, v in sorted(judge.said.items())}, "faults": dict(proof.counted), "right_after_each_phase": sum(after.counted.values()),
                "edits": proof.shop.edits}
    finally:
        proof.heal()
        proof.shop.close()


if __name__ == "__main__":
    main("faults", run)
