"""The n-th allocation, and the n-th call into the kernel, fails: while a daemon starts, over a cold pull, over a license write.

sweepsys.c makes it happen, once, and says which call it was. What may follow: the right answer, a 5xx, a cut connection; for an
allocation also the documented end ("out of memory", SIGABRT), which the service manager mends. What may not: a wrong yes, a wrong no, a
crash, a hang, a daemon that does not come back to its work, a write that was acknowledged and is gone, or half of one.

A few points of each sweep, at other places every time; PULLGATE_SWEEP=all takes every one (an hour), PULLGATE_SWEEP=200 so many.
PULLGATE_SWEEP_SEED repeats a run, PULLGATE_SWEEP=12,40 takes those points.
"""
import hashlib
import http.client
import json
import mmap
import os
import pathlib
import random
import signal
import sqlite3
import struct
import subprocess

import pytest
import requests

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import BIN, SANITIZED, Proc, wait_for

pytestmark = [pytest.mark.once, pytest.mark.skipif(SANITIZED, reason="the sanitizers bring their own allocator")]

POINTS = os.environ.get("PULLGATE_SWEEP", "16")
SEED = os.environ.get("PULLGATE_SWEEP_SEED") or str(random.SystemRandom().randrange(1 << 32))
FIELDS = ("alloc_at", "call_at", "allocs", "calls", "hit", "errno")
CACHE = {"max_staleness": "1s", "grace_when_cache_is_down": "3s", "hold_on_unknown": "1s", "tag_freshness": "500ms"}


class Fault:
    """One daemon's control file."""

    def __init__(self, lib, path):
        path.write_bytes(b"\0" * 4096)
        self.f = open(path, "r+b")
        self.m = mmap.mmap(self.f.fileno(), 4096)
        self.env = {"LD_PRELOAD": str(lib), "SWEEPSYS_CONTROL": str(path), "SWEEPSYS_TRACE": "1"}

    def set(self, **fields):
        for name, value in fields.items():
            struct.pack_into("i", self.m, 4 * FIELDS.index(name), value)

    def get(self, name):
        return struct.unpack_from("i", self.m, 4 * FIELDS.index(name))[0]

    def arm(self, what, n):
        self.m[24:88] = b"\0" * 64
        self.set(hit=0, **{what + "_at": n})

    def calm(self):
        self.set(alloc_at=0, call_at=0)

    @property
    def name(self):
        return self.m[24:88].rstrip(b"\0").decode() if self.get("hit") else None


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweepsys") / "sweepsys.so"
    subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared",
                    str(pathlib.Path(__file__).with_name("sweepsys.c")), "-o", str(out), "-ldl"], check=True)
    return out


@pytest.fixture()
def arena(lib, tmp_path):
    """A world whose daemons carry the shim; one version a point, so that every pull is cold."""
    up = ScriptedUpstream()
    w = World(upstream=up, cache=CACHE)
    w.up = up
    w.fault = {"proxy": Fault(lib, tmp_path / "proxy"), "admin": Fault(lib, tmp_path / "admin")}
    w.s.proxies[0].stop()
    w.s.env = w.fault["proxy"].env
    w.s.start_proxy(0)
    w.s.admin.stop()
    w.s.env = w.fault["admin"].env
    w.s.start_admin()
    w.s.env = {}
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 200)
    yield w
    for f in w.fault.values():
        f.calm()
    w.s.close()
    up.stop()


def points(total, what):
    all_ = range(1, total + 1)
    if POINTS == "all":
        return list(all_)
    if "," in POINTS:
        return [int(n) for n in POINTS.split(",") if n]
    print(f"{what}: {total} points, seed {SEED}")
    return sorted(random.Random(f"{SEED} {what}").sample(all_, min(int(POINTS), total)))


def ended_as_documented(proc, what):
    """An exit with a reason, or, for an allocation, the abort of lib/mem.c."""
    rc = proc.p.returncode
    text = proc.text()
    if rc == -signal.SIGABRT and what == "alloc":
        return '"msg":"out of memory"' in text
    # hiredis 0.14.1 has no allocator to set, and clears a string that it did not get.
    if rc == -signal.SIGSEGV and what == "alloc":
        return "libhiredis.so.0.14(sdsnewlen" in text
    return rc > 0 and text.strip() != ""


def story(proc):
    """The stack of the call that failed last, and the end of the log."""
    text = proc.text()
    at = text.rfind("/sweepsys.so(")
    return text[text.rfind("\n", 0, at):][:1500] + "\n...\n" + text[-2500:] if at >= 0 else text[-2500:]


def request(address, path, auth):
    """(status, body), or None when the connection did not bring a whole answer."""
    c = http.client.HTTPConnection(address, timeout=20)
    try:
        c.request("GET", path, headers={"Authorization": auth})
        r = c.getresponse()
        return r.status, r.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        c.close()


@pytest.mark.parametrize("what", ("call", "alloc"))
@pytest.mark.parametrize("daemon", ("proxy", "admin"))
def test_start(arena, daemon, what):
    w, fault = arena, arena.fault[daemon]
    s = w.s
    (s.admin if daemon == "admin" else s.proxies[0]).stop()
    port = s.dir / ("admin.port" if daemon == "admin" else "proxy0.port")

    def start(n):
        port.unlink(missing_ok=True)
        fault.set(calls=0, allocs=0)
        fault.arm(what, n)
        p = Proc(f"{daemon}-{what}-{n}", [BIN / f"pullgate-{daemon}", "--config", s.write_config()], s.dir, fault.env)

        def settled():
            return not p.alive() or port.exists() and ready(port.read_text().split()[0])

        def ready(address):
            try:
                return requests.get(f"http://{address}/{'healthz' if daemon == 'admin' else 'readyz'}", timeout=5).status_code == 200
            except requests.exceptions.ConnectionError:
                return False

        wait_for(f"the start whose {n}th {what} fails ({fault.name})", settled, 20)
        return p

    p = start(0)
    assert p.alive(), p.text()
    total = fault.get(what + "s")
    assert p.stop() == 0
    up = 0
    for n in points(total, f"start of the {daemon}, {what}"):
        p = start(n)
        if p.alive():
            up += 1
            address = port.read_text().split()[0]
            if daemon == "proxy":
                good, bad = request(address, "/v2/shop/api/manifests/1.0.0", w.auth), request(address, "/v2/shop/api/manifests/2.0.0", w.auth)
                assert good is None or good[0] in (200, 500, 502, 503, 504), (n, fault.name, good)
                assert bad is None or bad[0] in (403, 500, 502, 503, 504), (n, fault.name, bad)
            fault.calm()
            rc = p.stop()
            assert rc == 0 or ended_as_documented(p, what), f"{n}th {what} ({fault.name}): exit {rc}: {p.text()[-2000:]}"
        else:
            assert ended_as_documented(p, what), f"{n}th {what} ({fault.name}): exit {p.p.returncode}: {p.text()[-2000:]}"
        fault.calm()
    print(f"{up} came up all the same")
    (s.start_admin if daemon == "admin" else s.start_proxy)()  # nothing was left behind that keeps the next from starting


@pytest.mark.parametrize("what", ("call", "alloc"))
def test_pull(arena, what):
    w, fault = arena, arena.fault["proxy"]
    s, made = w.s, {}

    def version(k):
        """A version that nobody has asked for."""
        tag = f"1.3.{k}"
        if tag not in made:
            layer = f"layer {k} ".encode() * 20000
            image = w.up.push_image("acme/api", tag, [layer])
            made[tag] = (w.up.manifests["acme/api", image["digest"]][0], image["layers"][0], layer)
        return tag, made[tag]

    def pull(tag, manifest, digest, layer):
        """What came: the statuses; content that is wrong ends the test."""
        out = []
        for path, want in ((f"/v2/shop/api/manifests/{tag}", manifest), (f"/v2/shop/api/blobs/{digest}", layer)):
            r = request(s.proxies[0].address, path, w.auth)
            if r is not None and r[0] == 200:
                assert r[1] == want, f"{path}: {len(r[1])} bytes, {hashlib.sha256(r[1]).hexdigest()}"
            out.append(r[0] if r else None)
        return out

    total = 0
    for k in range(3):  # the longest of three: a pull, and what else happens in that time
        fault.set(calls=0, allocs=0)
        tag, v = version(1000000 + k)
        assert pull(tag, *v) == [200, 200]
        total = max(total, fault.get(what + "s"))
    s.api.post("/upstreams/" + w.upstream["id"] + "/test", expect=200)
    refused = 0
    for i, n in enumerate(points(total, f"pull, {what}")):
        tag, v = version(i)
        fault.arm(what, n)
        got = pull(tag, *v)
        bad = request(s.proxies[0].address, "/v2/shop/api/manifests/2.0.0", w.auth)
        name = fault.name
        fault.calm()
        assert set(got) <= {200, 500, 502, 503, 504, None}, f"{n}th {what} ({name}): {got} {story(s.proxies[0])}"
        assert bad is None or bad[0] in (403, 500, 502, 503, 504), f"{n}th {what} ({name}): {bad} {story(s.proxies[0])}"
        refused += got != [200, 200]
        for _ in range(2):  # it may be on its way to its end while it still answers
            try:
                wait_for(f"the pull to work again after the {n}th {what} ({name})",
                         lambda: not s.proxies[0].alive() or pull(tag, *v) == [200, 200], 10)
            except AssertionError as e:
                raise AssertionError(f"{e}: {pull(tag, *v)} {story(s.proxies[0])}") from None
            if s.proxies[0].alive():
                break
            assert what == "alloc" and ended_as_documented(s.proxies[0], what), f"{n}th {what} ({name}): {s.proxies[0].p.returncode}: {story(s.proxies[0])}"
            s.env = fault.env
            s.start_proxy(0)
            s.env = {}
        wait_for("a denial again", lambda: request(s.proxies[0].address, "/v2/shop/api/manifests/2.0.0", w.auth)[0] == 403, 10)
    print(f"{refused} pulls had a fault to show")


@pytest.mark.parametrize("what", ("call", "alloc"))
def test_license_write(arena, what):
    w, fault = arena, arena.fault["admin"]
    s = w.s
    acked = {}

    def write(n):
        """The new license's id, or None: not acknowledged. Any refusal but 5xx is wrong: the request is a good one."""
        try:
            r = s.api("POST", "/licenses", {"name": f"sweep {n}", "customer_id": customer["id"], "application_id": w.app["id"], "status": "active",
                                            "grants": [{"selector": "exact", "value": f"1.2.{n}"}]})
        except requests.exceptions.RequestException:
            return None
        assert r.status_code == 201 or r.status_code >= 500, (n, fault.name, r.status_code, r.text)
        return r.json()["id"] if r.status_code == 201 else None

    def rows(n):
        def look():
            with sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True) as db:
                return [db.execute("SELECT id FROM licenses WHERE name = ?", (f"sweep {n}",)).fetchall()]
        return wait_for("the store to be read", look)[0]  # a look at the moment of a checkpoint may be refused

    def restart():
        s.env = fault.env
        s.start_admin()
        s.env = {}

    def mend(n, name):
        """It answers, or has ended as documented and is started again. It may be on its way to its end while it still answers."""
        def settled():
            if not s.admin.alive():
                return "ended"
            try:
                return requests.get(s.admin_base + "/api/v1/customers", headers=s.api.s.headers, timeout=5).status_code == 200 and "up"
            except requests.exceptions.ConnectionError:
                return None
        if wait_for(f"the admin after the {n}th {what} ({name})", settled) == "ended":
            assert what == "alloc" and ended_as_documented(s.admin, what), f"{n}th {what} ({name}): {s.admin.p.returncode}: {story(s.admin)}"
            restart()

    customer = s.add_customer("sweep")
    credential = s.add_credential(customer["id"])
    auth = ("sweep", credential["secret"])
    total = 0
    for k in range(3):
        fault.set(calls=0, allocs=0)
        assert write(1000000 + k)
        total = max(total, fault.get(what + "s"))
    for i, n in enumerate(points(total, f"license write, {what}")):
        w.up.push_image("acme/api", f"1.2.{n}", [f"layer of {n} ".encode() * 100])
        fault.arm(what, n)
        got = write(n)
        name = fault.name
        fault.calm()
        if i % 8 == 7:
            s.admin.stop(signal.SIGKILL)
            restart()
        mend(n, name)
        if got:
            acked[n] = got
            assert rows(n) == [(got,)], (n, name)
        else:
            assert len(rows(n)) <= 1, (n, name)
        # the projection follows the store, whichever way it went
        there = bool(rows(n))
        s.wait_status(f"/v2/shop/api/manifests/1.2.{n}", auth, 200 if there else 403, timeout=15)
        # a license that is there is whole: its audit row and its grant came with it
        if there:
            (lid,), = rows(n)
            assert s.api.get(f"/licenses/{lid}")["grants"][0]["value"] == f"1.2.{n}"
            assert any(a["object_id"] == lid if "object_id" in a else lid in json.dumps(a) for a in s.api.get("/audit?limit=200")["items"]), (n, name)
        assert s.api.post("/customers", {"slug": f"after-{what}-{n}", "name": "x"})["id"], (n, name)
    s.admin.stop(signal.SIGKILL)
    restart()
    for n, lid in acked.items():
        assert rows(n) == [(lid,)], n
    with sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert s.api.get("/audit/verification")["ok"] is True
