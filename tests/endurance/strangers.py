"""Requests of names that nobody has, no two alike: digests, tags, repositories, scopes, users, pages, agents. What a proxy remembers of them is bounded.

Of a repository that is not there it remembers that (proxy/facts.c: 100,000 facts and absences a worker); it has one worker here, and memory
is flat once it has seen as many. PULLGATE_ENDURE_STRANGERS: how many requests."""
import random

from endure import SEED, SLOW, Load, Plan, Process, main, req, say, size

from conftest import World
from stack import basic

ROUNDS = 16
REMEMBERED = 100_000  # proxy/facts.c, ENTRIES_MAX
STEP_KIB = 1024       # what the allocator may take more or less of, once it is full


def kinds(auth, rng):
    """(share, request of a name that never was)"""
    def name(n=32):
        return rng.randbytes(n).hex()
    n = "/v2/shop/api/"
    return [
        (10, lambda: req(f"/v2/r{name(10)}/x/manifests/1.0.0", auth, (403,))),
        (1, lambda: req(n + "manifests/sha256:" + name(), auth, (404,))),
        (1, lambda: req(n + "blobs/sha256:" + name(), auth, (404,), method="HEAD")),
        (1, lambda: req(n + "referrers/sha256:" + name(), auth)),
        (1, lambda: req(n + "manifests/1.0.0-" + name(10), auth, (403,))),
        (1, lambda: req(n + f"manifests/sha256-{name()}.sig", auth, (404,))),
        (1, lambda: req("/v2/", basic("u" + name(8), "pgc_" + name()[:43]), (401,))),
        (1, lambda: req(n + "tags/list?n=2&last=" + name(), auth)),
        (1, lambda: req(f"/token?service=pullgate&scope=repository:x{name(15)}:pull", auth)),
        (1, lambda: req("/v2/", auth, fields=["User-Agent: " + name(), "Accept: " + name()])),
    ]


def run(n=None):
    n = n or size("strangers", 640_000)
    w = World(proxy={"workers": 1}, limits={"auth_failures_per_minute": 1000000, "auth_failures_per_second": 1000000,
                                            "auth_failures_per_credential": 1000000, "inflight_per_customer": 10000})
    try:
        each, rng = kinds(w.auth, random.Random(SEED)), random.Random(SEED)
        proxy, series, repositories = Process("proxy", w.s.proxies[0].p.pid), [], 0
        for _ in range(ROUNDS):
            plan = Plan()
            for i in rng.choices(range(len(each)), [share for share, _ in each], k=n // ROUNDS):
                plan.script(1, [each[i][1]()])
                repositories += i == 0
            load = Load(w.s.dir, plan, w.s.proxies, connections=16, report=n, seed=SEED, once=True)
            final = load.wait()
            assert not load.bad(), f"seed {SEED}: {load.bad()}\n{load.told()}"
            series.append((repositories, proxy.rss_kib(), proxy.fds()))
            say(f"{final['done']:>7} in {final['t']:5.1f}s, repositories so far {repositories:>7}: {series[-1][1]} KiB, {series[-1][2]} fds")
        full = [r for r in series if r[0] > REMEMBERED * 5 // 4]
        figures = {"requests": n, "repositories": repositories, "rss_kib": [series[0][1], series[-1][1]], "fds": series[-1][2],
                   "rss_kib_when_full": [min(r[1] for r in full), max(r[1] for r in full)] if full else None}
        if full and SLOW == 1:
            assert full[-1][1] - full[0][1] < STEP_KIB, f"grows on after {REMEMBERED} names: {series}"
        return figures
    finally:
        w.s.close()


if __name__ == "__main__":
    main("strangers", run)
