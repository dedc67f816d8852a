"""A thousand revocations under load, on two proxies: each is seen by both, and how soon.

Five customers at a time are asked for without a pause over both proxies, by tag, digest and blob, with their password and with a token of
before; then their right is taken away (license revoked, suspended, expired, deleted; grant deleted; credential deleted) while another load
generator keeps the proxies busy. Lag: from the admin API's acknowledgement, and from the sending of the request, to the end of the last
answer that allowed something. PULLGATE_ENDURE_REVOCATIONS: how many.
"""
import os
import random
import time

from endure import SEED, SLOW, Load, Plan, main, percentile, req, say, size

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import basic, wait_for

BATCH = 5
KINDS = ("revoke", "suspend", "expire", "delete", "grant", "credential")
ENOUGH = 6  # hundreds of answers: each customer has had some dozens by each proxy
LATEST_S = 1.0  # both proxies on one machine


class Customer:
    def __init__(self, w, slug):
        c = w.s.add_customer(slug)
        self.id, self.cred = c["id"], w.s.add_credential(c["id"])
        self.license = w.s.add_license(c["id"], w.app["id"], [{"selector": "range", "value": "^1"}], name=slug)
        self.auth = basic(slug, self.cred["secret"])

    def plan(self, p, w, token):
        n, image = "/v2/shop/api/", w.images["1.0.0"]
        kid = image["children"][0]
        for path in ("manifests/1.0.0", f"manifests/{kid['digest']}", f"blobs/{kid['config']}"):
            for auth in (self.auth, token):
                p.script(1, [req(n + path, auth, (200, 401, 403, 404))])
        p.script(1, [req(n + "manifests/1.1.0", self.auth, (200, 401, 403), method="HEAD")], fresh=True)

    def end(self, api, kind):
        """Takes the right away; (sent, acknowledged) in ns."""
        lic = f"/licenses/{self.license['id']}"
        what = {"revoke": ("POST", lic + "/revoke", {"reason": "proof"}), "suspend": ("POST", lic + "/suspend", {"reason": "proof"}),
                "expire": ("PATCH", lic, {"expires_at": "2026-01-01T00:00:00Z", "grace_days": 0}), "delete": ("DELETE", lic, None),
                "grant": ("DELETE", f"{lic}/grants/{self.license['grants'][0]['id']}", {"reason": "proof"}),
                "credential": ("DELETE", f"/customers/{self.id}/credentials/{self.cred['id']}", None)}[kind]
        sent = time.monotonic_ns()
        r = api(*what)
        acknowledged = time.monotonic_ns()
        assert r.status_code in (200, 204), (kind, r.status_code, r.text)
        return sent, acknowledged


def background(w):
    p, n = Plan(), "/v2/shop/api/"
    for v in ("1.0.0", "1.1.0"):
        image = w.images[v]
        p.script(10, [req(n + f"manifests/{v}", w.auth, body=image["digest"][7:])])
        for kid in image["children"]:
            p.script(5, [req(n + f"blobs/{d}", w.auth, body=d[7:]) for d in kid["layers"]])
    p.script(5, [req(n + "tags/list", w.auth), req(n + "manifests/2.0.0", w.auth, (403,))])
    p.script(3, [req("/v2/", w.auth)], fresh=True)
    return p


def run(n=None):
    n = n or size("revocations", 1000)
    rng = random.Random(SEED)
    up = ScriptedUpstream()
    w = World(upstream=up, n_proxies=2, limits={"connections_per_ip": 10000, "inflight_per_customer": 10000, "auth_failures_per_minute": 1000000,
                                                "auth_failures_per_credential": 1000000})
    busy = None
    try:
        from_ack, from_sent, by_kind, answers, late = [], [], {}, 0, 0
        busy = Load(w.s.dir, background(w), w.s.proxies, connections=16, rate=int(os.environ.get("PULLGATE_ENDURE_RATE", 1000)), seed=SEED, report=500)
        wait_for("the load to begin", lambda: busy.reports, 20)
        for batch in range(0, n, BATCH):
            some = [Customer(w, f"r{batch + i}") for i in range(min(BATCH, n - batch))]
            p, owner = Plan(), []
            for c in some:
                for k in range(2):
                    w.s.wait_status("/v2/shop/api/manifests/1.0.0", c.auth, 200, proxy=k)
                token = "Bearer " + w.s.get("/token?scope=repository:shop/api:pull", c.auth).json()["token"]
                c.plan(p, w, token)
                owner += [c] * (len(p.requests) - len(owner))
            load = Load(w.s.dir, p, w.s.proxies, trace=w.s.dir / "trace", connections=12, seed=SEED + batch, report=100)
            wait_for("answers", lambda: len(load.reports) >= ENOUGH, 60, 0.005)
            ended = []
            for c in some:
                kind = rng.choice(KINDS)
                ended.append((c, kind, *c.end(w.s.api, kind)))
                time.sleep(rng.random() * 0.02)
            before = len(load.reports)
            time.sleep(0.15 * SLOW)
            wait_for("answers after that", lambda: len(load.reports) >= before + ENOUGH, 60, 0.005)
            load.stop()
            assert not load.bad() and not load.final["refused"] and not load.final["unanswered"], load.told()
            last, no = {}, {}
            for sent, done, i, status, outcome, target in load.records():
                answers += 1
                c = owner[i]
                if status == 200:
                    last[c] = max(last.get(c, 0), done)
                else:
                    no.setdefault(c, {}).setdefault(target, done)
            for c, kind, sent, acknowledged in ended:
                assert c in last, "it was never allowed"
                assert set(no.get(c, {})) == {0, 1}, f"seed {SEED}: {kind} was not seen by both proxies"
                from_ack.append(max(0, last[c] - acknowledged) / 1e6)
                from_sent.append((last[c] - sent) / 1e6)
                by_kind.setdefault(kind, []).append(from_ack[-1])
                late += from_ack[-1] > LATEST_S * 1000
            assert not late or SLOW > 1, f"seed {SEED}: {max(from_ack):.0f} ms after the acknowledgement"
        busy.stop()
        assert not busy.bad(), busy.told()
        for kind, xs in sorted(by_kind.items()):
            say(f"{kind:12} {len(xs):5}  p50 {percentile(xs, 0.5):7.1f}  p99 {percentile(xs, 0.99):7.1f}  max {max(xs):7.1f} ms after the acknowledgement")
        three = lambda xs: {"p50": round(percentile(xs, 0.5), 1), "p99": round(percentile(xs, 0.99), 1), "max": round(max(xs), 1)}
        return {"revocations": len(from_ack), "seen_by_both": len(from_ack), "ms_from_acknowledgement": three(from_ack), "ms_from_request": three(from_sent),
                "answers_watched": answers, "background_per_s": round(busy.final["done"] / busy.final["t"])}
    finally:
        if busy and busy.running():
            busy.p.kill()
        w.s.close()
        up.stop()


if __name__ == "__main__":
    main("revocations", run)
