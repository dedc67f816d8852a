"""A million requests of every kind, plain and TLS, with edits now and then: memory and descriptors of the daemons and of Redis stay flat.

Docker-like pulls with tokens, HEAD, ranges, denied versions, unknown digests, wrong credentials, malformed requests, lists, referrers,
clients that leave in mid-blob. Every answer's status and every body's SHA-256 is checked. PULLGATE_ENDURE_MIXED: how many requests.
"""
import os
import pathlib
import random
import shutil
import tempfile
import threading

import requests

from endure import SEED, SLOW, Load, Plan, Process, main, raw, req, say, size, slope

from conftest import World
from stack import basic, make_ca, wait_for

WARM = 200_000    # requests until every table and buffer is as large as this load makes it
GROWTH_KIB = 128  # at most for 100,000 requests from there on; a few steps of the allocator are not what is looked for
STORE_CACHE_KIB = 32 << 10  # pages that the admin daemon's writing connection keeps (lib/store.c): until there are as many, it grows with the store


def shop(w, rng):
    """More content: images with layers of 1 KiB to 4 MiB. {version: (index digest, index bytes, [(manifest digest, bytes, {blob: bytes})])}"""
    r, out = w.s.upstream, {}
    sizes = [1 << 10, 8 << 10, 30_000, 200_000, 1 << 20]
    for minor in range(2, 12):
        version = f"1.{minor}.0"
        kids, docs = [], []
        for arch in ("amd64", "arm64"):
            layers = [rng.randbytes(rng.choice(sizes)) for _ in range(3)] + [w.base_layer]
            if minor == 11 and arch == "amd64":
                layers.append(rng.randbytes(4 << 20))
            kid = r.push_image("acme/api", None, layers, platform=("linux", arch))
            kids.append(kid)
            docs.append((kid["digest"], kid["layers"], layers, kid["config"]))
        index = r.push_index("acme/api", version, kids, [("linux", "amd64"), ("linux", "arm64")])
        out[version] = (index["digest"], docs)
    return out


def plan_of(w, content, rng):
    p, auth, n = Plan(), w.auth, "/v2/shop/api/"
    accept = ["Accept: application/vnd.oci.image.index.v1+json", "Accept: application/vnd.oci.image.manifest.v1+json"]
    blobs = []
    for version, (index, kids) in content.items():
        for digest, layers, data, config in kids:
            pull = [req("/v2/", None, (401,)), req("/token?service=pullgate&scope=repository:shop/api:pull", auth),
                    req(n + f"manifests/{version}", "$token", method="HEAD", fields=accept),
                    req(n + f"manifests/{index}", "$token", body=index[7:], fields=accept),
                    req(n + f"manifests/{digest}", "$token", body=digest[7:], fields=accept),
                    req(n + f"blobs/{config}", "$token", body=config[7:])]
            pull += [req(n + f"blobs/{d}", "$token", body=d[7:]) for d in layers if d != layers[-1] or rng.random() < 0.3]
            p.script(20, pull)
            p.script(1, pull, fresh=True)
            blobs += list(zip(layers, data))
        p.script(20, [req(n + f"manifests/{version}", auth, body=index[7:])])
        p.script(10, [req(n + f"manifests/{index}", auth, method="HEAD")])
        p.script(10, [req(n + f"referrers/{index}", auth)])
    for digest, data in blobs:
        p.script(6, [req(n + f"blobs/{digest}", auth, method="HEAD")])
        first = rng.randrange(len(data) // 2)
        last = min(len(data) - 1, first + rng.randrange(50_000))
        p.script(6, [req(n + f"blobs/{digest}", auth, (206,), body=data[first:last + 1], fields=[f"Range: bytes={first}-{last}"])])
        if len(data) > 100_000:
            p.script(4, [req(n + f"blobs/{digest}", auth, leave=rng.randrange(1, len(data) // 2))])
    p.script(100, [req(n + "tags/list", auth)])
    p.script(40, [req(n + "tags/list?n=3", auth)])
    p.script(40, [req("/v2/_catalog", auth)])
    p.script(60, [req("/v2/", auth)])
    p.script(60, [req(n + f"manifests/{v}", auth, (403,)) for v in ("2.0.0", "3.1.4")])
    p.script(40, [req("/v2/other/app/manifests/1.0.0", auth, (403,)), req("/v2/no/where/manifests/1.0.0", auth, (403,))])
    hidden = w.images["2.0.0"]
    for d in [hidden["digest"], *(k["digest"] for k in hidden["children"])]:
        p.script(20, [req(n + f"manifests/{d}", auth, (404,)), req(n + f"blobs/{d}", auth, (404,), method="HEAD")])
    for _ in range(500):
        p.script(1, [req(n + rng.choice(("blobs", "manifests")) + "/sha256:" + rng.randbytes(32).hex(), auth, (404,))])
    for i in range(200):
        p.script(1, [req("/v2/", basic(f"nobody{i}", "pgc_" + rng.randbytes(32).hex()[:43]), (401,))])
    p.script(30, [req("/v2/", "Bearer " + "x" * 40, (401,)), req("/token?scope=repository:shop/api:pull", "Basic Zm9vOmJhcg==", (401,))])
    for data in (b"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /v2/ HTTP/1.1\r\n Host: a\r\n\r\n", b"GET  /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
                 b"GET /v2/\x00 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                 b"POST /token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"):
        p.script(4, [raw(data, (400,))])
    p.script(6, [raw(b"PUT /v2/shop/api/manifests/1.0.0 HTTP/1.1\r\nHost: a\r\n\r\n", (401, 405))])
    p.script(6, [raw(b"GET /v2/" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", (414,))])
    p.script(6, [raw(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n" + b"".join(b"F%d: v\r\n" % i for i in range(80)) + b"\r\n", (431,))])
    # the customer that is edited meanwhile: either answer, by the moment
    p.script(100, [req(n + "manifests/1.2.0", w.edited[0], (200, 403)), req(n + "tags/list", w.edited[0], (200, 403))])
    return p


def edits(w, stop, count):
    """A license suspended, reinstated, extended, renamed, its grants changed; a tag moved; a credential made and removed."""
    rng, lic, cus = random.Random(SEED + 1), w.edited[1]["id"], w.edited[2]["id"]
    while not stop.wait(0.3):
        x = rng.randrange(6)
        if x == 0:
            w.s.api.post(f"/licenses/{lic}/suspend", {"reason": "proof"}, expect=None)
        elif x == 1:
            w.s.api.post(f"/licenses/{lic}/reinstate", {"reason": "proof"}, expect=None)
        elif x == 2:
            w.s.api("PATCH", f"/licenses/{lic}", {"name": f"n{rng.randrange(10)}", "expires_at": f"20{rng.randrange(40, 90)}-01-01"}, expect=200)
        elif x == 3:
            c = w.s.add_credential(cus, name="passing")
            w.s.api("DELETE", f"/customers/{cus}/credentials/{c['id']}", None)
        elif x == 4:
            w.s.registry.push_image("acme/api", "2.9.0", [rng.randbytes(500)])
        else:
            w.s.api.get(f"/explain?customer={cus}&repository=shop/api&reference=1.2.0")
        count[0] += 1


def run(n=None, every=None):
    n = n or size("mixed", 1_000_000)
    every = every or max(200, n // 50)
    rng = random.Random(SEED)
    d = tempfile.mkdtemp(prefix="pullgate-mixed-")
    w = World(proxy={"blob_cache": {"path": d, "max_bytes": "1GiB"}}, cache={"manifest_size": "16MiB"},
              limits={"auth_failures_per_minute": 1000000, "auth_failures_per_credential": 1000000, "inflight_per_customer": 10000,
                      "connections_per_ip": 10000})
    stop, count = threading.Event(), [0]
    try:
        s = w.s
        content = shop(w, rng)
        pair = make_ca(s.dir)
        s.config["proxy"]["tls"] = {"cert": str(pair["cert"]), "key": str(pair["key"])}
        tls_dir = d + "-tls"
        s.config["proxy"]["blob_cache"]["path"] = tls_dir
        os.mkdir(tls_dir)
        get, requests.get = requests.get, lambda *a, **k: get(*a, **{"verify": False, **k})
        try:
            s.start_proxy(1)
        finally:
            requests.get = get
        w.edited = w.customer_with("edited", [{"selector": "range", "value": "^1"}])
        s.wait_status("/v2/shop/api/manifests/1.2.0", w.edited[0], 200)
        s.wait_status("/v2/shop/api/manifests/1.11.0", w.auth, 200)
        daemons = [Process("plain", s.proxies[0].p.pid), Process("tls", s.proxies[1].p.pid), Process("admin", s.admin.p.pid)]
        series, store = [], pathlib.Path(s.config["store"]["url"].removeprefix("sqlite://"))

        def sample(r):
            row = {"done": r["done"], "t": r["t"], "p50_ms": r["p50_us"] / 1000, "p99_ms": r["p99_us"] / 1000}
            for p in daemons:
                row[p.name + "_rss"], row[p.name + "_fds"] = p.rss_kib(), p.fds()
            info = s.redis.cmd("INFO", "memory").decode()
            row["redis"] = int(info.split("used_memory:")[1].split()[0]) // 1024
            row["store"] = store.stat().st_size // 1024
            series.append(row)
            say(f"{row['done']:>9} {row['t']:7.1f}s p50 {row['p50_ms']:7.2f} p99 {row['p99_ms']:8.2f} ms   plain {row['plain_rss']:>7} KiB {row['plain_fds']:>4} fds"
                f"   tls {row['tls_rss']:>7} KiB {row['tls_fds']:>4} fds   admin {row['admin_rss']:>7} KiB {row['admin_fds']:>3} fds   redis {row['redis']:>6} KiB"
                f"   store {row['store']:>7} KiB")

        editor = threading.Thread(target=edits, args=(w, stop, count))
        editor.start()
        load = Load(s.dir, plan_of(w, content, rng), s.proxies, on_report=sample, requests=n, connections=64, report=every, seed=SEED)
        final = load.wait()
        stop.set()
        editor.join()
        say(str(final))
        assert not load.bad(), f"seed {SEED}: {load.bad()}\n{load.told()}"
        assert final["refused"] == final["unanswered"] == 0, load.told()
        warm = series[len(series) // 5:]
        figures = {"requests": final["done"], "edits": count[0], "left_in_mid_blob": final["left"], "per_s": round(final["done"] / final["t"]),
                   "gib": round(final["bytes"] / 2**30, 1), "statuses": final["statuses"]}
        kept = [r for r in warm if r["store"] > STORE_CACHE_KIB * 5 // 4]  # not each page of the store is one that it keeps
        for key, rows in (("plain_rss", warm), ("tls_rss", warm), ("admin_rss", kept), ("redis", warm)):
            if len(rows) > 1:
                figures[key + "_kib"] = [rows[0][key], rows[-1][key]]
                figures[key + "_kib_per_100k"] = round(slope([(r["done"] / 1e5, r[key]) for r in rows]), 1)
        for key in ("plain_fds", "tls_fds", "admin_fds"):
            figures[key] = [min(r[key] for r in warm), max(r[key] for r in warm)]
        figures["p99_ms"] = [warm[0]["p99_ms"], warm[-1]["p99_ms"]]
        # when every client has gone, so have their descriptors
        for proxy in s.proxies:
            wait_for(f"{proxy.name} to close its clients' connections", lambda: clients_of(proxy) == 0, 10)
        figures["client_connections_left"] = 0
        if SLOW == 1:
            for key, rows in (("plain_rss", series), ("tls_rss", series), ("admin_rss", kept)):
                points = [(r["done"] / 1e5, r[key]) for r in rows if r["done"] >= WARM]
                if len(points) > 1 and points[-1][0] - points[0][0] >= 2:
                    assert slope(points) < GROWTH_KIB, f"{key} grows by {slope(points):.0f} KiB a 100,000 requests"
        return figures
    finally:
        stop.set()
        w.s.close()
        shutil.rmtree(d, ignore_errors=True)
        shutil.rmtree(d + "-tls", ignore_errors=True)


def clients_of(proxy):
    """Connections that clients have to it, as the kernel counts them; those that only the kernel still waits for are left out."""
    port = int(proxy.address.rsplit(":", 1)[1])
    n = 0
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state, inode = (line.split()[i] for i in (1, 3, 9))
        n += int(local.split(":")[1], 16) == port and state != "0A" and inode != "0"
    return n


if __name__ == "__main__":
    main("mixed", run)
