"""Failed sign-ins of people: five a minute of one address, then ever longer waits that no restart forgives, and the twentieth is told."""
import contextlib
import signal
import sqlite3
import time

import pytest
import requests

from admin_fixture import admin_stack, problem
from fake_clock import Clock
from stack import SLOW, wait_for
from test_lic_clockwork import metric

PASSWORD = "a long pass phrase 17"


@contextlib.contextmanager
def daemon(**limits):
    with admin_stack(admin={"job_interval": "100ms", "metrics_listen": ["127.0.0.1:0"]}, limits=limits) as s:
        s.admin.stop()
        s.clock = Clock(s.dir)
        s.env = s.clock.env
        s.start_admin()
        s.n = 0
        yield s


def person(s):
    s.n += 1
    return s.api.post("/users", {"email": f"p{s.n}@vendor.example", "role": "admin", "password": PASSWORD})


def sign_in(s, email, password="not the right one", **kw):
    return requests.post(s.admin_base + "/api/v1/sessions", json={"email": email, "password": password, **kw}, timeout=30 * SLOW)


def rests(s):
    with contextlib.closing(sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True, timeout=20)) as db:
        return db.execute("SELECT kind, strikes FROM sign_in_rests ORDER BY kind, strikes").fetchall()


def test_an_address_has_five_a_minute_whoever_it_tries_and_a_restart_forgives_nothing():
    with daemon() as s:
        u = person(s)
        assert [sign_in(s, f"u{i}@nowhere.example").status_code for i in range(6)] == [401] * 6  # the sixth begins the wait
        for email, password in ((u["email"], PASSWORD), ("u9@nowhere.example", "x" * 20)):
            r = sign_in(s, email, password)
            problem(r, 429, "too_many_failures")
            assert 1 <= int(r.headers["Retry-After"]) <= 60
        assert s.api("GET", "/customers").status_code == 200, "tokens are not concerned"
        wait_for("it is kept", lambda: rests(s))
        s.admin.stop(signal.SIGKILL)
        s.start_admin()
        problem(sign_in(s, u["email"], PASSWORD), 429, "too_many_failures")
        s.clock.forward(61)
        assert sign_in(s, u["email"], PASSWORD).status_code == 201
        # the next wait is twice as long, also after a restart in between
        assert [sign_in(s, f"v{i}@nowhere.example").status_code for i in range(6)] == [401] * 6
        assert 61 <= int(sign_in(s, u["email"], PASSWORD).headers["Retry-After"]) <= 120
        wait_for("it is kept", lambda: rests(s)[-1][1] == 2)
        s.admin.stop()
        s.start_admin()
        assert 61 <= int(sign_in(s, u["email"], PASSWORD).headers["Retry-After"]) <= 120
        # who was quiet for an hour begins anew, and nothing of it is left
        s.clock.forward(4 * 3600)
        assert sign_in(s, u["email"], PASSWORD).status_code == 201
        wait_for("no rows", lambda: not rests(s))


def test_the_twentieth_is_an_event_of_the_account():
    with daemon(sign_in_failures_per_minute=100000, auth_failures_per_minute=100000) as s:
        u, other = person(s), person(s)
        for i in range(20):
            r = sign_in(s, u["email"])
            while r.status_code == 429:
                s.clock.forward(int(r.headers["Retry-After"]) + 1)
                r = sign_in(s, u["email"])
            assert r.status_code == 401
            if i == 18:
                assert s.api.get("/events?event=user.sign_in_failing")["items"] == []
        e = wait_for("the event", lambda: s.api.get("/events?event=user.sign_in_failing")["items"])
        assert len(e) == 1 and e[0]["object_id"] == u["id"] and e[0]["data"] == {"failures": 20, "last_address": "127.0.0.1"} and e[0]["actor"] == "system:sign_in"
        assert metric(s, "pullgate_admin_sign_in_alerts_total") >= 1 and "20 failed sign-ins from everywhere at one account" in s.admin.text()
        assert sign_in(s, other["email"], PASSWORD).status_code == 201


def test_a_vendor_that_is_named_makes_no_second_account_of_it():
    with daemon(sign_in_failures_per_minute=100000, auth_failures_per_minute=100000) as s:
        u = person(s)
        codes = [sign_in(s, u["email"], **({"vendor": "default"} if i % 2 else {})).status_code for i in range(8)]
        assert codes[:6] == [401] * 6 and codes[6:] == [429] * 2
