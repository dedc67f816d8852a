"""What the store forgets, by the daemon's own clock: each kind after its time, nothing that somebody still waits for, and no follower of the
event log misses anything without being told."""
import contextlib
import sqlite3
import threading
import time

import pytest
import requests

from admin_fixture import admin_stack, problem, second_vendor, token
from fake_clock import Clock
from stack import SLOW, basic, wait_for
from test_lic_clockwork import Hook, metric, sql

DAY = 86400
KEPT = {"events": "400d", "pulls": "400d", "deliveries": "30d", "sessions": "30d"}


@contextlib.contextmanager
def daemon(**retention):
    """Under a clock that the test moves."""
    with admin_stack(admin={"job_interval": "100ms", "webhook_allow_private": "127.0.0.1", "webhook_retry": "50ms", "sync_interval": "0s",
                            "metrics_listen": ["127.0.0.1:0"]}) as s:
        s.admin.stop()
        s.config["retention"] = {**KEPT, **retention}
        clock = Clock(s.dir)
        s.env = clock.env
        s.start_admin()
        s.clock = clock
        yield s


def count(s, table, where="1"):
    with contextlib.closing(sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True, timeout=20)) as db:
        return db.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0]


def pruned(s, kind):
    return metric(s, f'pullgate_admin_pruned_total{{kind="{kind}"}}')


def follow(s, after, **kw):
    return s.api("GET", f"/events?after={after}" + "".join(f"&{k}={v}" for k, v in kw.items()))


@pytest.fixture(scope="module")
def s():
    with daemon() as s:
        up = s.add_upstream()
        s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        yield s


def test_events_go_and_their_cursors_say_so(s):
    hook = Hook()
    hook.answer = 500
    try:
        c = s.add_customer("first")
        first = s.add_license(c["id"], s.app["id"], name="A", status="inactive")
        stale = follow(s, 0).json()["next_cursor"]
        s.add_license(c["id"], s.app["id"], name="A2", status="inactive")
        other, v = second_vendor(s, "quiet")
        # one more, that a webhook never takes
        w = s.api.post("/webhooks", {"url": hook.url, "events": ["license.*"]})
        kept = s.add_license(c["id"], s.app["id"], name="B", status="inactive")
        wait_for("a delivery that fails", lambda: hook.seen)
        sql(s, "UPDATE webhooks SET enabled=0 WHERE id=?", w["id"])
        s.clock.forward(399 * DAY)
        wait_for("the pending one's attempts are over", lambda: metric(s, "pullgate_admin_jobs_due") == 0)
        assert follow(s, stale).status_code == 200, "not yet"
        s.clock.forward(2 * DAY)
        wait_for("the events to be gone", lambda: pruned(s, "events") > 1 and follow(s, stale).status_code == 410)
        p = problem(follow(s, stale), 410, "events_pruned", "after")
        assert p["oldest_after"] > int(stale)
        assert follow(s, p["oldest_after"]).status_code == 200
        # 0 is the beginning, whatever that is; what is undelivered is there still
        assert [e["license_id"] for e in follow(s, 0, event="license.created").json()["items"]] == [kept["id"]]
        assert count(s, "webhook_deliveries", "status='pending'") == 1
        assert "events" in [l for l in s.admin.text().splitlines() if "retention:" in l][-1]
        # a vendor of whose events none went is not concerned
        assert other("GET", f"/events?after={stale}").status_code == 200
        # histories and the audit log are all there
        assert len(s.api.get(f"/licenses/{first['id']}/history")["items"]) >= 1
        assert s.api.get("/audit/verification")["ok"] and count(s, "audit") > 0
    finally:
        hook.shutdown()


def test_a_follower_of_something_rare_is_not_left_behind(s):
    """Its cursor moves with the log, although nothing of what it asks for comes."""
    c = s.add_customer("rare")
    lic = s.add_license(c["id"], s.app["id"], name="R", status="inactive")
    cursor = follow(s, follow(s, 0).json()["next_cursor"], license=lic["id"]).json()["next_cursor"]
    for i in range(3):
        s.add_license(c["id"], s.app["id"], name=f"other {i}", status="inactive")
        d = follow(s, cursor, license=lic["id"]).json()
        assert d["items"] == [] and int(d["next_cursor"]) > int(cursor)
        cursor = d["next_cursor"]
        for kind in ("types=order.*", "event=order.paid", f"customer={lic['customer_id']}&event=order.paid"):
            assert s.api.get(f"/events?after=0&{kind}")["next_cursor"] == cursor
    one = follow(s, 0, limit=1).json()
    assert len(one["items"]) == 1 and one["next_cursor"] == str(one["items"][0]["id"]), "a full page ends at its last row"


def test_sessions_answers_and_invitations_go(s):
    u = s.api.post("/users", {"email": "anna@acme.example", "role": "viewer", "password": "a long pass phrase 17"})
    s.api.post("/users", {"email": "never@acme.example", "role": "viewer"})
    r = s.api("POST", "/sessions", {"email": "anna@acme.example", "password": "a long pass phrase 17"})
    assert r.status_code == 201, r.text
    key = {"Idempotency-Key": "k1"}
    assert s.api("POST", "/customers", {"slug": "idem", "name": "Idem"}, headers=key).status_code == 201
    assert s.api("POST", "/customers", {"slug": "idem", "name": "Idem"}, headers=key).headers["Idempotent-Replayed"] == "true"
    assert count(s, "sessions") == 1 and count(s, "idempotency_keys") == 1 and count(s, "users", "invite_hash<>''") == 1
    s.clock.forward(25 * 3600)
    wait_for("the kept answer to go", lambda: count(s, "idempotency_keys") == 0)
    assert s.api("POST", "/customers", {"slug": "idem", "name": "Idem"}, headers=key).status_code == 409, "the key is as good as new"
    s.clock.forward(38 * DAY)
    wait_for("the session to go", lambda: count(s, "sessions") == 0)
    wait_for("the invitation to go", lambda: count(s, "users", "invite_hash<>''") == 0)
    assert s.api.get(f"/users/{u['id']}")["email"] == "anna@acme.example"


def test_a_month_away_is_made_up_for_while_others_write():
    """Very many rows whose time came while the daemon was down: they go in batches, and no writer waits long for them."""
    with daemon(events="10d", pulls="10d") as s:
        up = s.add_upstream()
        app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        c = s.add_customer("many")
        lic = s.add_license(c["id"], app["id"], status="inactive")
        wait_for("all handed out", lambda: count(s, "meta", "key='events_handed_out'"))
        s.admin.stop()
        n, now = 8000, int(time.time()) * 1000
        with contextlib.closing(sqlite3.connect(s.dir / "pullgate.db")) as db:
            vendor = db.execute("SELECT id FROM vendors").fetchone()[0]
            db.executemany("INSERT INTO events (vendor_id, at_ms, type, actor) VALUES (?,?,'x.y','test')", [(vendor, now)] * n)
            db.executemany("INSERT INTO pulls (event_id, at_ms, vendor_id, decision, reason) VALUES (?,?,?,'allow','')",
                           [(f"p{i}", now, vendor) for i in range(n)])
            db.execute("UPDATE meta SET value=(SELECT max(id) FROM events) WHERE key='events_handed_out'")
            db.commit()
        s.clock.forward(31 * DAY)
        s.start_admin()
        took = []
        def writes():
            while not done.is_set():
                t = time.monotonic()
                s.api("PATCH", f"/licenses/{lic['id']}", {"metadata": {"n": len(took)}}, 200)
                took.append(time.monotonic() - t)
        done = threading.Event()
        t = threading.Thread(target=writes)
        t.start()
        try:
            wait_for("the backlog to go", lambda: pruned(s, "events") >= n and pruned(s, "pulls") >= n, 60)
        finally:
            done.set()
            t.join()
        assert len(took) > 5 and max(took) < 2 * SLOW, f"{len(took)} writes, the longest {max(took):.3f} s"
        assert count(s, "events", "type='x.y'") == 0 and count(s, "pulls") == 0
        problem(follow(s, 5), 410, "events_pruned")
        assert follow(s, problem(follow(s, 5), 410)["oldest_after"]).status_code == 200
        print(f"{len(took)} writes meanwhile, the longest {max(took) * 1000:.0f} ms")
