"""Dependencies away, emptied and back; a cold proxy; licenses edited under tokens already issued: no wrong yes, no wrong no."""
import os
import signal
import threading
import time

import pytest
import requests

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SLOW, basic, wait_for

CACHE = {"max_staleness": "1s", "grace_when_cache_is_down": "3s", "hold_on_unknown": "1s", "tag_freshness": "500ms"}


@pytest.fixture()
def w():
    up = ScriptedUpstream()
    world = World(upstream=up, cache=CACHE)
    world.up = up
    yield world
    world.s.close()
    up.stop()


class Watch:
    """Asks the same things over and over from a thread and keeps every answer's status with its time."""

    def __init__(self, w, path, auth):
        self.seen, self.on = [], True

        def run():
            with requests.Session() as s:
                s.headers["Authorization"] = auth
                while self.on:
                    t = time.monotonic()
                    try:
                        self.seen.append((t, s.get(w.s.base + path, timeout=30).status_code))
                    except requests.exceptions.ConnectionError:
                        self.seen.append((t, 0))

        self.t = threading.Thread(target=run)
        self.t.start()

    def stop(self):
        self.on = False
        self.t.join()
        return {s for _, s in self.seen}


def test_flushall_is_repaired_without_a_wrong_no(w):
    good = Watch(w, "/v2/shop/api/manifests/1.0.0", w.auth)
    bad = Watch(w, "/v2/shop/api/manifests/2.0.0", w.auth)
    for _ in range(3):
        w.s.redis.cmd("FLUSHALL")
        wait_for("the root to be back", lambda: w.s.redis.cmd("EXISTS", "pg:root") == 1)
    p = w.s.start_proxy(1)  # a cold one finds everything again
    assert w.s.get("/v2/shop/api/manifests/1.0.0", w.auth, proxy=1).status_code == 200
    assert good.stop() <= {200}
    assert bad.stop() <= {403}


def test_redis_restarted_empty(w):
    good = Watch(w, "/v2/shop/api/manifests/1.0.0", w.auth)
    bad = Watch(w, "/v2/shop/api/manifests/2.0.0", w.auth)
    t = time.monotonic()
    w.s.redis.stop()
    w.s.redis.start()
    wait_for("the root to be back", lambda: w.s.redis.cmd("EXISTS", "pg:root") == 1)
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 200)
    held = time.monotonic() - t < 0.8  # of hold_on_unknown
    assert good.stop() <= ({200} if held else {200, 503})
    assert bad.stop() <= {403, 503}
    # and an edit still travels
    w.s.api.post(f"/licenses/{w.license['id']}/suspend", {"reason": "test"}, expect=200)
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 403)


def test_redis_down_grace_then_503(w):
    """Within the grace only what was granted goes on; after it everything is 'cannot know'."""
    for _ in range(16):  # a fresh connection each: both workers hold the facts
        assert w.get("/v2/shop/api/manifests/1.0.0", headers={"Connection": "close"}).status_code == 200
    t = time.monotonic()
    w.s.redis.stop()
    statuses = []
    while time.monotonic() - t < 3:
        statuses.append(w.get("/v2/shop/api/manifests/1.0.0").status_code)
    assert set(statuses) == {200}, "granted pulls go on in the grace"
    wait_for("the grace to end", lambda: w.get("/v2/shop/api/manifests/1.0.0").status_code == 503, 10)
    r = w.get("/v2/shop/api/manifests/2.0.0")
    assert r.status_code == 503 and "Retry-After" in r.headers
    assert w.get("/v2/", "Basic Zm9vOmJhcg==").status_code == 401  # not even well formed: known without anybody
    w.s.redis.start()
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 200, timeout=10)
    w.s.wait_status("/v2/shop/api/manifests/2.0.0", w.auth, 403, timeout=10)


def test_no_grace_at_all():
    up = ScriptedUpstream()
    w = World(upstream=up, cache={**CACHE, "grace_when_cache_is_down": "0s"})
    try:
        w.s.redis.stop()
        wait_for("503 within max_staleness", lambda: w.get("/v2/shop/api/manifests/1.0.0").status_code == 503, 4)
    finally:
        w.s.redis.start()
        w.s.close()
        up.stop()


def test_admin_away_pulls_go_on(w):
    w.s.admin.stop(signal.SIGKILL)
    t = time.monotonic()
    while time.monotonic() - t < 5:  # longer than staleness and grace together
        assert w.get("/v2/shop/api/manifests/1.0.0").status_code == 200
        time.sleep(0.1)
    assert w.get("/v2/shop/api/manifests/2.0.0").status_code == 403
    w.s.start_admin()


def test_cold_proxy_asked_for_a_blob_first(w):
    blob = w.images["1.1.0"]["children"][1]["layers"][1]
    hidden = w.images["2.0.0"]["children"][1]["layers"][1]
    for flushed in (False, True):
        if flushed:
            w.s.redis.cmd("FLUSHALL")
            wait_for("the root to be back", lambda: w.s.redis.cmd("EXISTS", "pg:root") == 1)
        w.s.proxies[0].stop()
        w.s.start_proxy(0)
        assert w.get(f"/v2/shop/api/blobs/{blob}").status_code == 200
        w.s.proxies[0].stop()
        w.s.start_proxy(0)
        assert w.get(f"/v2/shop/api/blobs/{hidden}").status_code == 404
        assert w.get(f"/v2/shop/api/manifests/{w.images['1.1.0']['children'][0]['digest']}").status_code == 200


def test_upstream_stopped(w):
    up, port = w.up, w.up.port
    assert w.get("/v2/shop/api/manifests/1.0.0").status_code == 200
    up.stop()
    try:
        for _ in range(3):
            r = w.get("/v2/shop/api/manifests/1.0.0")  # verified and in memory; the tag's age is no reason for a no
            assert r.status_code == 200, (r.status_code, r.text)
            assert w.get("/v2/shop/api/manifests/2.0.0").status_code == 403
            r = w.get(f"/v2/shop/api/blobs/{w.images['1.0.0']['children'][0]['layers'][1]}")
            assert r.status_code in (502, 503, 504), r.status_code
            assert "127.0.0.1" not in r.text and str(port) not in r.text
            r = w.get("/v2/shop/api/blobs/sha256:" + "ab" * 32)
            assert r.status_code in (404, 503), "an unknown digest cannot be known to be unknown"
        w.s.proxies[0].stop()
        w.s.start_proxy(0)
        assert w.get("/v2/shop/api/blobs/sha256:" + "ab" * 32).status_code in (404, 502, 503, 504)
    finally:
        up.serve(port)
    w.s.wait_status(f"/v2/shop/api/blobs/{w.images['1.0.0']['children'][0]['layers'][1]}", w.auth, 200, timeout=20)


def test_upstream_blip_is_absorbed(w):
    """One failing answer before the first byte is retried by the proxy; the client sees nothing of it."""
    blob = w.images["1.0.0"]["children"][0]["layers"][1]
    failures = [2]

    def blip(h):
        if blob in h.path and failures[0] > 0:
            failures[0] -= 1
            h.reply(503, b"internal text of the upstream")
            return True
        return False

    w.up.rules.append(blip)
    r = w.get(f"/v2/shop/api/blobs/{blob}")
    assert r.status_code == 200 and failures[0] == 0


def test_upstream_says_no_to_us(w):
    """A changed upstream password is our trouble, not the customer's: 502, never a 401 or 403."""
    w.up.password = "changed"
    r = w.get(f"/v2/shop/api/blobs/{w.images['1.0.0']['children'][0]['layers'][1]}")
    assert r.status_code in (502, 503) and "upstream secret text" not in r.text


def test_edits_against_issued_tokens(w):
    token = "Bearer " + w.s.get("/token?scope=repository:shop/api:pull", w.auth).json()["token"]
    path = "/v2/shop/api/manifests/1.0.0"
    lic = f"/licenses/{w.license['id']}"
    assert w.get(path, token).status_code == 200
    for action, status in (("suspend", 403), ("reinstate", 200)):
        w.s.api.post(f"{lic}/{action}", {"reason": "test"}, expect=200)
        r = w.s.wait_status(path, token, status, timeout=1)
    w.s.api("PATCH", lic, {"expires_at": "2026-01-01T00:00:00Z", "grace_days": 0}, expect=200)
    r = w.s.wait_status(path, token, 403, timeout=1)
    assert r.json()["errors"][0]["detail"]["reason"] == "expired"
    w.s.api("PATCH", lic, {"expires_at": "2099-01-01"}, expect=200)
    w.s.wait_status(path, token, 200, timeout=1)
    w.s.api("DELETE", f"/customers/{w.customer['id']}/credentials/{w.credential['id']}", None)
    w.s.wait_status(path, token, 401, timeout=1)
    w.s.wait_status(path, w.auth, 401, timeout=1)


def test_replayed_older_value_grants_nothing(w):
    """Whoever can write to Redis puts the value from before a revocation back."""
    r, c = w.s.redis, w.customer["id"]
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 200)
    old = {k: r.cmd("GET", k) for k in r.cmd("KEYS", "pg:v:*") + r.cmd("KEYS", "pg:b:*")}
    root = r.cmd("GET", "pg:root")
    w.s.api.post(f"/licenses/{w.license['id']}/revoke", {"reason": "test"}, expect=200)
    close = {"Connection": "close"}
    wait_for("both workers to have heard of it",
             lambda: all(w.get("/v2/shop/api/manifests/1.0.0", headers=close).status_code == 403 for _ in range(16)))
    for keys in ([f"pg:v:c:{c}".encode()], list(old)):
        for k in keys:
            r.cmd("SET", k, old[k])
        r.cmd("SET", "pg:root", root)
        for _ in range(10):
            assert w.get("/v2/shop/api/manifests/1.0.0").status_code in (403, 503)
    # the projector notices the foreign root and puts things right
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 403, timeout=10)


def connections(proc):
    """Sockets that the process holds."""
    return sum(os.readlink(f"/proc/{proc.p.pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{proc.p.pid}/fd"))


def test_two_hundred_clients_one_cold_blob(w):
    import concurrent.futures
    import hashlib
    data = os.urandom(4 * 1024 * 1024)
    image = w.up.push_image("acme/api", "1.5.0", [data])
    layer = image["layers"][0]
    assert w.s.wait_status("/v2/shop/api/manifests/1.5.0", w.auth, 200)

    def one(_):
        r = requests.get(f"{w.s.base}/v2/shop/api/blobs/{layer}", headers={"Authorization": w.auth, "Connection": "close"}, timeout=60 * SLOW)
        return r.status_code, hashlib.sha256(r.content).hexdigest()

    slow = threading.Event()

    def gate(h):
        if layer in h.path and h.command == "GET":
            slow.wait(20)  # the transfer begins when everybody has asked
        return False

    w.up.rules.append(gate)
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        futures = [pool.submit(one, i) for i in range(200)]
        wait_for("the upstream to be asked", lambda: w.up.hits(f"GET .*{layer}") > 0)
        wait_for("all of them to be connected", lambda: connections(w.s.proxies[0]) >= 200)
        slow.set()
        for f in futures:
            assert f.result() == (200, layer[7:])
    assert w.up.hits(f"GET .*{layer}") == 1


def test_drain_finishes_what_runs(w):
    import hashlib
    data = os.urandom(8 * 1024 * 1024)
    image = w.up.push_image("acme/api", "1.6.0", [data])
    w.s.wait_status("/v2/shop/api/manifests/1.6.0", w.auth, 200)
    r = requests.get(f"{w.s.base}/v2/shop/api/blobs/{image['layers'][0]}", headers={"Authorization": w.auth}, stream=True)
    first = r.raw.read(65536)
    w.s.proxies[0].p.send_signal(signal.SIGTERM)
    rest = r.raw.read()
    assert hashlib.sha256(first + rest).hexdigest() == image["layers"][0][7:]
    assert w.s.proxies[0].p.wait(15 * SLOW) == 0
    w.s.start_proxy(0)
