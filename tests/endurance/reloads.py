"""A thousand SIGHUPs to a proxy under load: no request fails, no answer is wrong, memory stays flat.

Each reload finds something else: limits, cache times, the log level, another certificate, the same file, or one that does not load (broken
YAML, an unknown key, a key that does not fit the certificate, no file), which has to leave everything as it was. Load: requests of several
kinds over kept and fresh TLS connections, at least 200 a second. PULLGATE_ENDURE_RELOADS: how many.
"""
import json
import os
import random
import shutil
import signal
import tempfile
import pathlib

import requests

from endure import SEED, SLOW, Load, Plan, Process, main, req, say, size, slope

from conftest import World
from stack import live_certificate, make_ca, wait_for
from test_metrics import parse, total
from test_reload import pair


def plan_of(w):
    p, n, auth = Plan(), "/v2/shop/api/", w.auth
    image = w.images["1.0.0"]
    kid = image["children"][0]
    blobs = kid["layers"] + [kid["config"]]
    steps = [req("/token?scope=repository:shop/api:pull", auth), req(n + "manifests/1.0.0", "$token", method="HEAD"),
             req(n + f"manifests/{image['digest']}", "$token", body=image["digest"][7:]), req(n + f"manifests/{kid['digest']}", "$token", body=kid["digest"][7:])]
    steps += [req(n + f"blobs/{d}", "$token", body=d[7:]) for d in blobs]
    p.script(5, steps).script(2, steps, fresh=True)
    p.script(10, [req(n + "manifests/1.1.0", auth, body=w.images["1.1.0"]["digest"][7:])])
    p.script(3, [req(n + "tags/list", auth), req(n + "manifests/2.0.0", auth, (403,)), req("/v2/", None, (401,))])
    p.script(2, [req(n + f"blobs/{blobs[0]}", auth, (206,), fields=["Range: bytes=10-999"])], fresh=True)
    return p


class Files:
    """What the next reload finds."""

    def __init__(self, w, ca, live, rng):
        self.w, self.rng, self.live = w, rng, live
        self.path = w.s.dir / "pullgate0.yaml"
        self.good = json.loads(self.path.read_text())
        d = ca["cert"].parent
        self.pairs = [(ca["cert"], ca["key"]), pair(d, ca, "second"), pair(d, ca, "third")]
        self.now = 0

    def put(self, sections):
        doc = json.loads(json.dumps(self.good))
        for section, keys in sections.items():
            doc.setdefault(section, {}).update(keys)
        self.path.write_text(json.dumps(doc))

    def next(self):
        """What the reload has to be: ok or failed."""
        rng = self.rng
        kind = rng.choice(("limits", "limits", "cache", "log", "same", "certificate", "yaml", "unknown", "gone", "mismatch"))
        self.live.put(*self.pairs[self.now])
        if kind == "limits":
            self.put({"limits": {"upstream_retries": rng.randrange(4), "manifest_size": f"{rng.randrange(2, 8)}MiB", "tags_page": rng.randrange(50, 1000),
                                 "drain": f"{rng.randrange(5, 60)}s", "inflight_per_customer": rng.randrange(500, 1000)}})
        elif kind == "cache":
            self.put({"cache": {"tag_freshness": f"{rng.randrange(1, 20)}s", "max_staleness": f"{rng.randrange(3, 9)}s", "negative": "1s"}})
        elif kind == "log":
            self.put({"log": {"level": rng.choice(("error", "warn", "info"))}})
        elif kind == "same":
            self.put({})
        elif kind == "certificate":
            self.now = (self.now + 1) % len(self.pairs)
            self.live.put(*self.pairs[self.now])
            self.put({})
        elif kind == "yaml":
            self.path.write_text(rng.choice(("limits: [\n", "\t\n:", "proxy: {listen: [}\n", "\x00\x01", "- a\n- b\n")))
        elif kind == "unknown":
            self.put({"limits": {rng.choice(("connection", "drian", "tags")): 1}})
        elif kind == "gone":
            self.path.unlink(missing_ok=True)
        else:
            self.put({})
            self.live.put(self.pairs[self.now][0], self.pairs[(self.now + 1) % len(self.pairs)][1])
        return kind, "failed" if kind in ("yaml", "unknown", "gone", "mismatch") else "ok"


def run(n=None):
    d = pathlib.Path(tempfile.mkdtemp(prefix="pullgate-reloads-"))
    ca = make_ca(d)
    with live_certificate(**ca) as live:
        return reloads_under_load(d, ca, live, n or size("reloads", 1000), random.Random(SEED))


def reloads_under_load(d, ca, live, n, rng):
    w = load = None
    try:
        w = World(proxy={"metrics_listen": ["127.0.0.1:0"], "tls": live.tls},
                  limits={"connections_per_ip": 10000, "auth_failures_per_minute": 1000000})
        proxy = w.s.proxies[0]
        metrics = f"http://{(w.s.dir / 'proxy0.port').read_text().split()[1]}/metrics"
        session = requests.Session()
        scrape = lambda: parse(session.get(metrics, timeout=30).text)
        reloads = lambda m: {r: int(total(m, "pullgate_config_reloads_total", result=r)) for r in ("ok", "failed")}
        w.s.wait_status("/v2/shop/api/manifests/1.1.0", w.auth, 200)
        files = Files(w, ca, live, rng)
        process = Process("proxy", proxy.p.pid)
        load = Load(w.s.dir, plan_of(w), w.s.proxies, connections=24, rate=int(os.environ.get("PULLGATE_ENDURE_RATE", 600)), seed=SEED, report=1000)
        wait_for("the load to begin", lambda: load.reports, 20)
        series, counted, kinds = [], {"ok": 0, "failed": 0}, {}
        first = reloads(scrape())
        for i in range(n):
            kind, want = files.next()
            kinds[kind] = kinds.get(kind, 0) + 1
            proxy.p.send_signal(signal.SIGHUP)
            counted[want] += 1
            expect = {k: first[k] + counted[k] for k in counted}
            box = {}

            def seen():
                box["m"] = scrape()
                return reloads(box["m"])[want] >= expect[want]

            wait_for(f"reload {i} ({kind}) to be {want}", seen, 20, 0.005)
            got = reloads(box["m"])
            # the look at the certificate every 10 seconds may have counted one more
            first = {k: got[k] - counted[k] for k in got}
            if i % max(1, n // 50) == 0:
                series.append((i, process.rss_kib(), process.fds()))
            assert load.running(), load.told()
        final = load.stop()
        say(str(final))
        for row in series:
            say("reload %5d  rss %7d KiB  fds %4d" % row)
        failed = {k: final[k] for k in ("refused", "unanswered", "cut", "wrong_status", "wrong_body", "wrong_form", "timed_out") if final[k]}
        assert not failed, f"seed {SEED}: {failed}\n{load.told()}"
        rate = final["done"] / final["t"]
        warm = [(i, r) for i, r, _ in series[len(series) // 5:]]
        figures = {"reloads": n, "ok": counted["ok"], "refused_files": counted["failed"], "kinds": kinds, "requests": final["done"], "per_s": round(rate), "failed": 0,
                   "rss_kib": [warm[0][1], warm[-1][1]], "rss_kib_per_100_reloads": round(slope([(i / 100, r) for i, r in warm]), 1),
                   "fds": [min(f for _, _, f in series), max(f for _, _, f in series)]}
        if n >= 500 and SLOW == 1:
            assert rate >= 200, figures
            assert warm[-1][1] - warm[0][1] < 8 << 10, figures
        return figures
    finally:
        if load and load.running():
            load.p.kill()
        if w:
            w.s.close()
        shutil.rmtree(d, ignore_errors=True)


if __name__ == "__main__":
    main("reloads", run)
