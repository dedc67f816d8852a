"""Large bodies of imports: who sends one is known before any of it is read, few are in memory at a time, and every place is given back. And
repetitions of what works in several transactions."""
import contextlib
import json
import socket
import sqlite3
import ssl
import threading

import pytest
import requests

from admin_fixture import admin_stack, problem, second_vendor, token
from stack import SANITIZED, SLOW, make_ca, wait_for

MIB = 1 << 20
PATH = "/api/v1/licenses/import"


@pytest.fixture(scope="module")
def s():
    with admin_stack(limits={"import_body_size": "4MiB", "body_deadline": "3s"}) as s:
        up = s.add_upstream()
        s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        s.add_customer("globex")
        yield s


def lines(n, size, name="L"):
    """CSV of about n * size bytes."""
    pad = "x" * (size - 60)
    return "customer,application,name,status,metadata.a\n" + "".join(f"globex,shop,{name}{i},inactive,{pad[:190]}{' ' * (len(pad) - 190)}\n" for i in range(n))


def post(s, body, query="", api=None, **headers):
    return (api or s.api).s.post(f"{s.admin_base}{PATH}?{query}", data=body.encode() if isinstance(body, str) else body,
                                 headers={"Content-Type": "text/csv", **headers}, timeout=60 * SLOW)


class Raw:
    """A connection that says exactly what it is told."""

    def __init__(self, s, length, bearer=None, kind="text/csv", expect=False, query="", path=PATH, more=""):
        host, port = s.admin.address.rsplit(":", 1)
        self.c = socket.create_connection((host, int(port)), timeout=15 * SLOW)
        head = f"POST {path}{query} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}"
        head += f"Authorization: Bearer {bearer}\r\n" if bearer else ""
        head += "Expect: 100-continue\r\n" if expect else ""
        self.c.sendall(head.encode() + b"\r\n")

    def answer(self):
        data = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in data:
                got = self.c.recv(65536)
                if not got:
                    break
                data += got
        return data

    def status(self):
        data = self.answer()
        return int(data.split()[1]) if data else 0

    def __enter__(self):
        return self

    def __exit__(self, *a):
        self.c.close()


def resident(s, what):
    for line in open(f"/proc/{s.admin.p.pid}/status"):
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024


def test_an_import_larger_than_other_bodies(s):
    body = lines(700, 4000)
    assert len(body) > 2 * MIB
    r = post(s, body, "dry_run=1")
    assert r.status_code == 200 and r.json()["created"] == 700, r.text[:500]
    # the same sender again, on the same connection, small and large
    assert post(s, lines(2, 100, "S"), "dry_run=1").json()["created"] == 2
    assert post(s, body, "dry_run=1").status_code == 200


def test_too_large_is_said_before_it_is_read(s):
    with Raw(s, 4 * MIB + 1, s.token) as c:
        assert c.status() == 413
    with Raw(s, 1 << 40, s.token) as c:
        assert c.status() == 413
    # other paths keep their bound
    with Raw(s, 100000, s.token, kind="application/json", path="/api/v1/customers") as c:
        assert c.status() == 413
    with Raw(s, 100000, s.token, path="/api/v1/licenses/import/more") as c:
        assert c.status() == 413
    with Raw(s, 4 * MIB, None) as c:
        assert c.status() == 401


def test_nothing_is_read_of_who_may_not(s):
    viewer, v = token(s, "viewer")
    for bearer, kind, query, more, want in ((None, "text/csv", "", "", 401), ("nonsense", "text/csv", "", "", 401), (v["token"], "text/csv", "", "", 403),
                                            (s.token, "application/json", "", "", 415), (s.token, "text/csv", "?zz=1", "", 400),
                                            (s.token, "text/csv", "", "Content-Encoding: gzip\r\n", 415), (s.token, "text/csv", "", "X-Pullgate-Vendor: nobody\r\n", 404)):
        with Raw(s, 3 * MIB, bearer, kind, True, query, more=more) as c:
            data = c.answer()
            assert int(data.split()[1]) == want and b"100 Continue" not in data and b"Connection: close" in data, data
    # who sends all the same: dropped, nothing is kept
    before, stop = resident(s, "VmRSS"), []
    def push():
        with Raw(s, 4 * MIB, "nonsense") as c:
            with contextlib.suppress(OSError):
                for _ in range(64):
                    c.c.sendall(b"x" * 65536)
            stop.append(1)
    threads = [threading.Thread(target=push) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    grown = resident(s, "VmRSS") - before
    assert len(stop) == 16 and (SANITIZED or grown < 8 * MIB), f"{grown} bytes more"
    assert post(s, lines(2, 100), "dry_run=1").status_code == 200


def test_a_vendor_has_one_and_all_have_four(s):
    begun = []
    def begin(bearer):
        c = Raw(s, MIB, bearer, expect=True, query="?dry_run=1")
        data = c.answer()
        if b"100 Continue" not in data:
            c.c.close()
            return data
        begun.append(c)
        return None
    owners = [s.token] + [second_vendor(s, f"large-{i}")[1]["token"] for i in range(4)]
    try:
        assert begin(owners[0]) is None
        second = begin(owners[0])
        assert b" 503 " in second.split(b"\r\n")[0] and b"Retry-After" in second and b'"busy"' in second
        for o in owners[1:4]:
            assert begin(o) is None
        assert b" 503 " in begin(owners[4])
        assert s.api.get("/customers")["items"], "nobody else waits"
        # one leaves in the middle: its place is another's
        begun.pop(1).c.close()
        wait_for("a place", lambda: begin(owners[4]) is None)
        # one that comes to its end
        c = begun.pop(0)
        body = lines(1, 100).encode()
        c.c.sendall(body + b"\n" * (MIB - len(body)))
        assert c.status() in (200, 400)
        c.c.close()
        wait_for("its place", lambda: begin(owners[0]) is None)
        # those that send nothing more are told so in time, and have no place any more
        for c in begun:
            assert c.status() == 408
        assert post(s, lines(700, 2000), "dry_run=1").status_code == 200
    finally:
        for c in begun:
            c.c.close()


def test_clients_that_leave_while_it_is_worked_on_hold_their_places(s):
    """What is in memory counts, not who listens."""
    body = lines(800, 4500).encode()
    for _ in range(6):
        with Raw(s, len(body), s.token, query="?dry_run=1") as c:
            with contextlib.suppress(OSError):
                c.c.sendall(body)
    wait_for("all is over", lambda: post(s, lines(300, 2000), "dry_run=1").status_code == 200, 30)


def test_bodies_in_pieces_and_with_requests_behind_them(s):
    body = lines(2, 100, "P")
    body = (body + "\n" * (70000 - len(body))).encode()
    get = f"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {s.token}\r\n\r\n".encode()
    with Raw(s, len(body), s.token, query="?dry_run=1") as c:
        for i in range(0, len(body), 7000):
            c.c.sendall(body[i:i + 7000])
        c.c.sendall(get)
        data = b""
        while data.count(b"HTTP/1.1 200") < 2:
            got = c.c.recv(65536)
            assert got, data
            data += got
        assert b'"created":2' in data.replace(b" ", b"") and b'"actor"' in data


def test_over_tls(tmp_path):
    tls = make_ca(tmp_path)
    with admin_stack(admin={"tls": {"cert": str(tls["cert"]), "key": str(tls["key"])}}) as s:
        s.api.s.trust_env, s.api.s.verify = False, str(tls["ca"])  # the environment may name others
        up = s.add_upstream()
        s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        s.add_customer("globex")
        for _ in range(2):
            r = requests.post(f"https://{s.admin.address}{PATH}?dry_run=1", data=lines(500, 4000).encode(), verify=str(tls["ca"]), timeout=60 * SLOW,
                              headers={"Content-Type": "text/csv", "Authorization": f"Bearer {s.token}"})
            assert r.status_code == 200 and r.json()["created"] == 500, r.text[:300]


# ---- repetitions --------------------------------------------------------------------------------------------------------------


def sql(s, text, *params):
    with contextlib.closing(sqlite3.connect(s.dir / "pullgate.db", timeout=20)) as db:
        rows = db.execute(text, params).fetchall()
        db.commit()
        return rows


def test_an_import_that_is_repeated_is_done_once(s):
    body, key = lines(3, 100, "Key"), {"Idempotency-Key": "import-1"}
    first = post(s, body, **key)
    assert first.status_code == 200 and first.json()["created"] == 3, first.text
    again = post(s, body, **key)
    assert again.status_code == 200 and again.json() == first.json() and again.headers["Idempotent-Replayed"] == "true"
    problem(post(s, lines(4, 100, "Key"), **key), 422, "idempotency_key_reused")
    assert s.api.get("/licenses?name=Key*&count=1")["count"] == 3
    # a large one too, and a dry run leaves the key alone
    body, key = lines(200, 1000, "Big"), {"Idempotency-Key": "import-2"}
    assert "Idempotent-Replayed" not in post(s, body, "dry_run=1", **key).headers
    first = post(s, body, **key).json()
    assert post(s, body, **key).json() == first and first["created"] == 200
    # one that was refused changed nothing: it may be mended
    key = {"Idempotency-Key": "import-3"}
    problem(post(s, "customer,application,name\nnobody,shop,X\n", **key), 422, "import_failed")
    assert post(s, lines(1, 100, "Mended"), **key).json()["created"] == 1
    # the answers hold license keys: not to be read in the store
    text = json.dumps([[str(c) for c in r] for r in sql(s, "SELECT * FROM idempotency_keys")])
    assert all(x["key"] not in text for x in first["lines"] if x.get("key"))


def test_a_bulk_act_that_is_repeated_is_done_once(s):
    s.api.post("/licenses", {"name": "Bulk", "customer_id": s._customers["globex"], "application_id": s.app["id"], "status": "active", "expires_at": "2090-01-31",
                             "grants": [{"selector": "all", "value": "*"}]})
    do = lambda key, n=1, **kw: s.api("POST", "/licenses/bulk", {"filter": {"name": "Bulk"}, "action": "extend", "body": {"period": "P1M"}, "expect_count": n},
                                      headers={"Idempotency-Key": key}, **kw)
    first = do("bulk-1")
    assert first.status_code == 200 and first.json()["done"] == 1
    assert do("bulk-1").json() == first.json() and do("bulk-1").headers["Idempotent-Replayed"] == "true"
    end = s.api.get("/licenses?name=Bulk")["items"][0]["expires_at"]
    assert end.startswith("2090-02-28"), "extended once"
    problem(do("bulk-2", n=7), 409, "count_differs")
    assert do("bulk-2").status_code == 200, "nothing was done under it"
    # cut off in the middle: what it did is to be looked at, it is not done again by itself
    sql(s, "UPDATE idempotency_keys SET status=0, body_sealed='' WHERE key='bulk-2'")
    problem(do("bulk-2"), 409, "idempotency_unfinished")
    problem(s.api("POST", "/licenses/bulk", {"filter": {}, "action": "extend"}, headers={"Idempotency-Key": "a b"}), 400, "invalid_header")


def test_the_same_key_at_the_same_time(s):
    body, got = lines(150, 300, "Race"), []
    threads = [threading.Thread(target=lambda: got.append(post(s, body, **{"Idempotency-Key": "race"}))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted({r.status_code for r in got}) in ([200], [200, 409], [200, 503]) and s.api.get("/licenses?name=Race*&count=1")["count"] == 150
    assert all(r.json()["code"] in ("idempotency_unfinished", "busy") for r in got if r.status_code != 200)
