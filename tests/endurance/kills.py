"""A thousand SIGKILLs of the admin daemon while it writes: what it acknowledged is there, what it did not is wholly there or not at all.

Four writers change licenses (several members at a time), their status and grants, and make customers, credentials and licenses with three
grants; the daemon is killed 0 to 80 ms later, some times while it starts, some times with Redis emptied or ended as well. After each start:
every license is at the revision of its last acknowledged answer, member for member, or one further with everything that the open
request asked; the open creation, asked again with its Idempotency-Key, exists once; and once the daemon says that Redis is in step, the
entitlement in Redis, `explain` and a pull agree for every license that was touched. Now and then: the audit chain, and one audit record for
each change that took place. A customer whom nobody edits pulls all the while. PULLGATE_ENDURE_KILLS: how many.
"""
import json
import random
import signal
import sqlite3
import threading
import time

import requests

from endure import SEED, SLOW, Load, Plan, main, percentile, req, say, size

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import BIN, Proc, basic, wait_for

WRITERS, CUSTOMERS = 4, 3
VOLATILE = ("effective_status", "allowed_actions", "first_used_at", "last_used_at", "last_used_from", "updated_at", "key", "etag",
            "changes", "effect", "renews_at", "grace_ends_at")
AUDIT_EVERY = 50


def stable(doc):
    return {k: v for k, v in doc.items() if k not in VOLATILE}


def grants_of(doc):
    return sorted((g["selector"], g["value"]) for g in doc["grants"])


class Writer:
    """Owns some customers with a license each; one request at a time, of which at most the last is not acknowledged."""

    def __init__(self, w, number):
        self.w, self.rng, self.n = w, random.Random(SEED * 31 + number), number
        self.licenses, self.auth, self.count, self.wrong = {}, {}, 0, []
        self.changes = {}  # id of the object: changes that took place
        self.open = None   # (kind, object, request, expected)
        self.acknowledged, self.left_out, self.came_through = 0, 0, 0
        self.touched = set()
        for i in range(CUSTOMERS):
            slug = f"kill-{number}-{i}"
            c = w.s.add_customer(slug)
            cred = w.s.add_credential(c["id"])
            doc = w.s.add_license(c["id"], w.app["id"], [{"selector": "range", "value": "^1.0"}], name=slug)
            self.licenses[doc["id"]] = doc
            self.auth[doc["id"]] = basic(slug, cred["secret"])
            self.changes[doc["id"]] = 1

    # ---- writing ----
    def run(self):
        with requests.Session() as s:
            s.headers["Authorization"] = "Bearer " + self.w.s.token
            while True:
                try:
                    self.act(s)
                except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.exceptions.ReadTimeout):
                    return

    def send(self, s, method, path, body=None, **headers):
        return s.request(method, self.w.s.admin_base + "/api/v1" + path, json=body, headers=headers, timeout=30 * SLOW)

    def act(self, s):
        rng, self.count = self.rng, self.count + 1
        mark = f"{self.n}-{self.count}"
        if rng.random() < 0.3:
            return self.make(s, mark)
        lid = rng.choice(list(self.licenses))
        doc, path = self.licenses[lid], f"/licenses/{lid}"
        actions = [("PATCH", path, {"name": f"l{mark}", "order_number": f"o{mark}", "environment": f"e{mark}", "grace_days": self.count % 30,
                                    "expires_at": rng.choice((None, "2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z"))})] * 2
        if doc["status"] == "active":
            actions.append(("POST", path + "/suspend", {"reason": f"r{mark}"}))
        else:
            actions += [("POST", path + "/reinstate", {"reason": f"r{mark}"})] * 2
        if len(doc["grants"]) < 3:
            actions.append(("POST", path + "/grants", {"selector": "exact", "value": rng.choice(("2.0.0", "1.1.0", "9.9.9"))}))
        else:
            actions.append(("DELETE", f"{path}/grants/{doc['grants'][rng.randrange(3)]['id']}", {"reason": f"r{mark}"}))
        if doc["expires_at"]:
            actions.append(("POST", path + "/renew", {"period": "P1M"}))
        method, path, body = rng.choice(actions)
        self.open = ("change", lid, (method, path, body))
        self.touched.add(lid)
        r = self.send(s, method, path, body)
        if r.status_code not in (200, 204):
            self.wrong.append(f"{method} {path}: {r.status_code} {r.text[:300]}")
            self.open = None
            return
        after = r.json() if r.status_code == 200 else None
        problem = self.applied(doc, after, self.open[2]) if after else None
        if problem:
            self.wrong.append(f"acknowledged: {problem}")
        if after is None:  # the grant is gone: no document comes back
            after = dict(doc, grants=[g for g in doc["grants"] if not path.endswith(g["id"])], etag=str(int(doc["etag"]) + 1))
        self.licenses[lid] = after
        self.changes[lid] += 1
        self.acknowledged += 1
        self.open = None

    def make(self, s, mark):
        key, lid = f"k-{SEED}-{mark}", self.rng.choice(list(self.licenses))
        cid = self.licenses[lid]["customer_id"]
        path, body = self.rng.choice((
            ("/customers", {"slug": f"c{mark}", "name": f"C{mark}", "email": "a@b.example"}),
            (f"/customers/{cid}/credentials", {"name": f"cred{mark}"}),
            ("/plans", {"slug": f"p{mark}", "name": f"P{mark}", "application_id": self.w.app["id"], "type": "subscription", "period": "P1M",
                        "grants": [{"selector": "exact", "value": "9.9.9"}], "price": {"amount": "10.00", "currency": "EUR"}}),
            ("/licenses", {"name": f"three{mark}", "customer_id": cid, "application_id": self.w.app["id"],
                           "grants": [{"selector": "exact", "value": v} for v in ("9.9.7", "9.9.8", "9.9.9")]})))
        self.open = ("make", None, (path, body, key))
        r = self.send(s, "POST", path, body, **{"Idempotency-Key": key})
        if r.status_code != 201:
            self.wrong.append(f"POST {path}: {r.status_code} {r.text[:300]}")
        else:
            self.changes[r.json()["id"]] = 1
            self.acknowledged += 1
        self.open = None

    # ---- judging ----
    def applied(self, before, after, request):
        """None when `after` is `before` with exactly what was asked; else what is not so."""
        method, path, body = request
        want, got = stable(before), stable(after)
        if method == "PATCH":
            want.update(body)
        elif path.endswith(("/suspend", "/reinstate")):
            want.update(status="suspended" if path.endswith("suspend") else "active", status_reason=got["status_reason"])
            if path.endswith("suspend") and got["status_reason"] != body["reason"]:
                return f"reason {got['status_reason']!r} for {request}"
        elif path.endswith("/renew"):
            if not got["expires_at"] or got["expires_at"] <= want["expires_at"]:
                return f"expires_at {want['expires_at']} -> {got['expires_at']} for {request}"
            want.update(expires_at=got["expires_at"])
        elif method == "DELETE":
            want["grants"] = [g for g in want["grants"] if not path.endswith(g["id"])]
        else:
            more = [g for g in got["grants"] if g["id"] not in {x["id"] for x in want["grants"]}]
            if len(more) != 1 or more[0]["value"] != body["value"]:
                return f"grants {got['grants']} for {request}"
            want["grants"] = want["grants"] + more
        want["grants"], got["grants"] = sorted(want["grants"], key=lambda g: g["id"]), sorted(got["grants"], key=lambda g: g["id"])
        different = [k for k in want if want[k] != got.get(k)]
        if different or int(after["etag"]) != int(before["etag"]) + 1:
            return f"{different} etag {before['etag']} -> {after['etag']}: {request} made {got} of {want}"
        return None

    def check(self, api):
        """After a start: nothing acknowledged is lost; the open request took place wholly or not at all."""
        for lid in self.touched:
            acked, now = self.licenses[lid], api.get(f"/licenses/{lid}")
            if now["etag"] == acked["etag"]:
                a, b = stable(acked), stable(now)
                a["grants"], b["grants"] = grants_of(a), grants_of(b)
                assert a == b, f"{lid}: acknowledged {a}, there is {b}"
                if self.open and self.open[1] == lid:
                    self.left_out += 1
            else:
                assert self.open and self.open[1] == lid, f"{lid}: etag {acked['etag']} was acknowledged, {now['etag']} is there, and nothing was asked"
                problem = self.applied(acked, now, self.open[2])
                assert not problem, f"{lid}: {problem}"
                self.licenses[lid] = now
                self.changes[lid] += 1
                self.came_through += 1
        if self.open and self.open[0] == "make":
            path, body, key = self.open[2]
            field = "slug" if path in ("/customers", "/plans") else "name"
            with self.w.store() as db:
                table = {"/customers": "customers", "/licenses": "licenses", "/plans": "plans"}.get(path, "credentials")
                there = db.execute(f"SELECT id FROM {table} WHERE {field}=?", (body[field],)).fetchall()
                assert len(there) <= 1, f"{path} {body}: {there}"
                if there and table == "licenses":
                    n = db.execute("SELECT count(*) FROM grants WHERE license_id=?", there[0]).fetchone()[0]
                    assert n == 3, f"{body['name']} has {n} of 3 grants"
            r = api("POST", path, body, headers={"Idempotency-Key": key})
            assert r.status_code == 201, (path, body, r.status_code, r.text)
            made = r.json()
            assert not there or made["id"] == there[0][0], f"{path}: asked again, it was made twice"
            if table == "licenses":
                assert len(made["grants"]) == 3, made
            self.changes[made["id"]] = 1
            self.came_through += bool(there)
            self.left_out += not there
        self.open = None


class Proof:
    def __init__(self, n):
        self.n, self.rng = n, random.Random(SEED)
        self.up = ScriptedUpstream()
        self.w = w = World(upstream=self.up, admin={"sync_interval": "30s"}, cache={"tag_freshness": "1h"})
        w.store = self.store
        self.writers = [Writer(w, i) for i in range(WRITERS)]
        self.in_step, self.starting, self.redis, self.compared, self.chain = [], 0, {"flushed": 0, "ended": 0}, 0, 0

    def store(self):
        db = sqlite3.connect(f"file:{self.w.s.dir}/pullgate.db?mode=ro", uri=True)
        return _Closing(db)

    def start_admin(self):
        """Some times it is killed while it starts."""
        w = self.w
        while self.rng.random() < 0.15:
            (w.s.dir / "admin.port").unlink(missing_ok=True)
            p = Proc("admin", [BIN / "pullgate-admin", "--config", w.s.write_config()], w.s.dir, w.s.env)
            time.sleep(self.rng.random() * 0.12 * SLOW)
            assert p.alive(), p.text()[-3000:]
            p.stop(signal.SIGKILL)
            self.starting += 1
        w.s.start_admin()

    def ready(self):
        return requests.get(self.w.s.admin_base + "/readyz", timeout=5).json()

    def round(self):
        w, rng = self.w, self.rng
        threads = [threading.Thread(target=x.run, daemon=True) for x in self.writers]
        for t in threads:
            t.start()
        time.sleep(rng.random() * 0.08 * SLOW)
        w.s.admin.p.send_signal(signal.SIGKILL)
        w.s.admin.stop(signal.SIGKILL)
        for t in threads:
            t.join(60 * SLOW)
            assert not t.is_alive()
        wrong = sum((x.wrong for x in self.writers), [])
        assert not wrong, wrong[:3]
        x = rng.random()
        if x < 0.05:
            w.s.redis.cmd("FLUSHALL")
            self.redis["flushed"] += 1
        elif x < 0.07:
            w.s.redis.stop()
            w.s.redis.start()
            self.redis["ended"] += 1
        self.start_admin()
        began = time.monotonic()
        for x in self.writers:
            x.check(w.s.api)
        wait_for("Redis to be in step", lambda: (lambda d: d["in_sync"] and d["redis"] and d["projection_lag"] == 0)(self.ready()), 20, 0.005)
        self.in_step.append(time.monotonic() - began)
        self.compare()

    def compare(self):
        """Redis, explain and the gate say the same of everything touched."""
        w = self.w
        for x in self.writers:
            for lid in x.touched:
                lic = x.licenses[lid]
                fact = json.loads(w.s.redis.cmd("GET", f"pg:v:c:{lic['customer_id']}").split(b" ", 3)[3])
                stands = next(l for l in fact["licenses"] if l["id"] == lid)
                for key in ("name", "status", "grace_days"):
                    assert stands[key] == lic[key], f"{lid}: {key} is {stands[key]!r} in Redis, {lic[key]!r} in the store"
                assert bool(stands["expires_at"]) == (lic["expires_at"] is not None) and grants_of(stands) == grants_of(lic), f"{lid}: {stands} in Redis, {lic}"
                for version in ("1.0.0", "2.0.0"):
                    says = w.s.api.get(f"/explain?customer={lic['customer_id']}&repository=shop/api&reference={version}")
                    want = 200 if says["decision"] == "allow" else 403
                    wait_for(f"the gate to say {want} as explain does: {says}", lambda: w.get(f"/v2/shop/api/manifests/{version}", x.auth[lid]).status_code == want, 2)
                    self.compared += 1
            x.touched.clear()

    def audit(self):
        r = self.w.s.api.get("/audit/verification")
        assert r["ok"], r
        self.chain = r["records"]
        with self.store() as db:
            counted = dict(db.execute("SELECT object, count(*) FROM audit WHERE outcome='ok' GROUP BY object"))
            assert db.execute("PRAGMA quick_check").fetchone()[0] == "ok"
        for x in self.writers:
            for what, n in x.changes.items():
                assert counted.get(what, 0) == n, f"{what}: {n} changes took place, {counted.get(what, 0)} audit records"

    def run(self):
        w = self.w
        image = w.images["1.0.0"]
        p = Plan().script(1, [req("/v2/shop/api/manifests/1.0.0", w.auth, body=image["digest"][7:])])
        p.script(1, [req("/v2/shop/api/manifests/2.0.0", w.auth, (403,))])
        load = Load(w.s.dir, p, w.s.proxies, connections=4, rate=100, seed=SEED)
        try:
            for i in range(self.n):
                try:
                    self.round()
                    if i % AUDIT_EVERY == AUDIT_EVERY - 1 or i == self.n - 1:
                        self.audit()
                        say(f"{i + 1:5} kills, {sum(x.acknowledged for x in self.writers):6} acknowledged, {self.chain:6} audit records, "
                            f"{self.compared:6} comparisons, in step after {percentile(self.in_step, .5) * 1000:.0f} ms (max {max(self.in_step) * 1000:.0f})")
                except AssertionError as e:
                    raise AssertionError(f"seed {SEED}, kill {i}: {e}") from None
            final = load.stop()
            assert not load.bad() and not final["unanswered"], load.told()
            total = lambda name: sum(getattr(x, name) for x in self.writers)
            return {"kills": self.n, "kills_while_starting": self.starting, "acknowledged_writes": total("acknowledged"), "lost": 0,
                    "open_writes_wholly_there": total("came_through"), "open_writes_not_there": total("left_out"), "torn": 0, "audit_records": self.chain,
                    "redis_lost_as_well": self.redis, "comparisons_of_store_redis_gate": self.compared,
                    "in_step_ms": {"p50": round(percentile(self.in_step, .5) * 1000), "max": round(max(self.in_step) * 1000)}, "pulls_meanwhile": final["done"]}
        finally:
            if load.running():
                load.p.kill()

    def close(self):
        self.w.s.close()
        self.up.stop()


class _Closing:
    def __init__(self, db):
        self.db = db

    def __enter__(self):
        return self.db

    def __exit__(self, *a):
        self.db.close()


def run(n=None):
    proof = Proof(n or size("kills", 1000))
    try:
        return proof.run()
    finally:
        proof.close()


if __name__ == "__main__":
    main("kills", run)
