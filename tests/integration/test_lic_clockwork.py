"""What the clock, webhooks and mail do: rows of the license catalogue, against the running daemons."""
import base64
import datetime
import email
import email.header
import email.policy
import hashlib
import hmac
import http.server
import json
import signal
import socket
import socketserver
import sqlite3
import ssl
import threading
import time

import pytest
import requests

from admin_fixture import admin_stack, problem, second_vendor, token
from fake_clock import Clock
from stack import SLOW, Stack, basic, make_ca, wait_for


class Hook(http.server.ThreadingHTTPServer):
    """A receiver of webhooks. answer: status, or a function of the request's number."""

    daemon_threads = True

    def __init__(self):
        self.seen, self.answer, self.secret, self.delay = [], 200, "", 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(h):
                body = h.rfile.read(int(h.headers["Content-Length"]))
                self.seen.append((dict(h.headers), body, h.path))
                time.sleep(self.delay)
                status = self.answer(len(self.seen)) if callable(self.answer) else self.answer
                h.send_response(status)
                if 300 <= status < 400:
                    h.send_header("Location", f"{self.url}/elsewhere")
                h.send_header("Content-Length", "2")
                h.end_headers()
                h.wfile.write(b"ok")

            def log_message(h, *a):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def docs(self, type=None):
        return [d for d in (json.loads(b) for _, b, _ in list(self.seen)) if type is None or d["type"] == type]

    def reset(self):
        self.seen, self.answer, self.delay = [], 200, 0


class Smtp(socketserver.ThreadingTCPServer):
    """A mail server as it is scripted. refuse: recipient -> reply; fail: replies to give to whole connections first."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0, tls=None):
        self.tls = None
        if tls:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(tls["cert"], tls["key"])
        self.mails, self.refuse, self.fail, self.auth = [], {}, [], []

        class Handler(socketserver.StreamRequestHandler):
            def handle(h):
                say = lambda s: h.wfile.write(s.encode() + b"\r\n")
                if self.fail:
                    say(self.fail.pop(0))
                    return
                say("220 test ESMTP")
                rcpt, sender = [], ""
                while True:
                    line = h.rfile.readline().decode().strip()
                    verb = line.upper()
                    if not line or verb.startswith("QUIT"):
                        say("221 bye")
                        return
                    if verb.startswith("EHLO"):
                        say("250-test\r\n250 AUTH PLAIN")
                    elif verb.startswith("AUTH"):
                        if len(line.split()) == 2:
                            say("334 ")
                            line += " " + h.rfile.readline().decode().strip()
                        self.auth.append(line)
                        say("235 ok")
                    elif verb.startswith("MAIL FROM"):
                        sender = line[10:]
                        say("250 ok")
                    elif verb.startswith("RCPT TO"):
                        to = line[8:].strip("<>")
                        if to in self.refuse:
                            say(self.refuse[to])
                        else:
                            rcpt.append(to)
                            say("250 ok")
                    elif verb.startswith("DATA"):
                        say("354 go on")
                        data = b""
                        while not data.endswith(b"\r\n.\r\n"):
                            data += h.rfile.readline()
                        self.mails.append((sender.strip("<>"), rcpt, email.message_from_bytes(data[:-5], policy=email.policy.default), data))
                        say("250 taken")
                    else:
                        say("250 ok")

        super().__init__(("127.0.0.1", port), Handler)
        if self.tls:
            self.socket = self.tls.wrap_socket(self.socket, server_side=True)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def to(self, address, event_subject=""):
        return [m for _, rcpt, m, _ in list(self.mails) if address in rcpt and event_subject in m["Subject"]]


FAST = {"job_interval": "100ms", "webhook_allow_private": "127.0.0.1", "webhook_retry": "50ms", "sync_interval": "0s"}


@pytest.fixture(scope="module")
def w():
    smtp, hook = Smtp(), Hook()
    s = Stack(admin={**FAST, "metrics_listen": ["127.0.0.1:0"]})
    s.smtp, s.hook = smtp, hook
    try:
        s.admin.stop()
        s.config["mail"] = {"url": f"smtp://127.0.0.1:{smtp.port}", "tls": "off", "from": "Acme Lizenzen Ä <licenses@acme.example>"}
        s.config["proxy"]["public_url"] = "https://registry.acme.example"
        s.start_admin()
        s.registry.push_image("acme/api", "1.0.0", [b"layer"])
        up = s.add_upstream()
        s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        s.api.post(f"/applications/{s.app['id']}/sync", {}, 200)
        s.n = 0
        yield s
    finally:
        s.close()
        hook.shutdown()
        smtp.shutdown()


def customer(w, **kw):
    w.n += 1
    c = w.add_customer(f"c{w.n}", **kw)
    c["secret"] = w.add_credential(c["id"])["secret"]
    return c


def soon(seconds):
    t = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return t.strftime("%Y-%m-%dT%H:%M:%SZ")


def events(w, lic, type=None):
    return [e for e in w.api.get(f"/events?after=0&license={lic['id']}&limit=1000")["items"] if type in (None, e["type"])]


def pull(w, c):
    return w.get("/v2/shop/api/manifests/1.0.0", auth=(c["slug"], c["secret"]))


def sql(w, text, *params):
    """Straight into the store: what no action of the API does, a payment that failed long ago. The trigger wakes the clock."""
    with sqlite3.connect(w.dir / "pullgate.db", timeout=20) as db:
        db.execute(text, params)
    db.close()


def metric(w, name):
    port = (w.dir / "admin.port").read_text().split()[-1]
    for line in requests.get(f"http://{port}/metrics", timeout=10).text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise AssertionError(f"no {name}")


# ---- the clock ------------------------------------------------------------------------------------------------------------


def test_lic_0_41_reminder_before_the_end_once(w):
    lic = w.add_license(customer(w)["id"], w.app["id"], expires_at=soon(5 * 86400))
    e = wait_for("the reminder", lambda: events(w, lic, "license.expiring"))
    assert e[0]["data"]["days"] == 7 and e[0]["data"]["days_left"] == 5 and e[0]["actor"] == "system:clock"
    w.api("PATCH", f"/licenses/{lic['id']}", {"metadata": {"x": 1}}, 200)  # looked at again
    wait_for("nothing due", lambda: metric(w, "pullgate_admin_jobs_due") == 0)
    assert len(events(w, lic, "license.expiring")) == 1
    w.api("PATCH", f"/licenses/{lic['id']}", {"expires_at": soon(20 * 86400)}, 200)  # another end
    wait_for("the reminder of it", lambda: [e["data"]["days"] for e in events(w, lic, "license.expiring")] == [7, 30])


def test_lic_0_41_an_end_that_comes_is_told(w):
    c = customer(w)
    lic = w.add_license(c["id"], w.app["id"], expires_at=soon(2), grace_days=0)
    wait_for("a pull", lambda: pull(w, c).status_code == 200)
    wait_for("the end", lambda: events(w, lic, "license.expired"), 10)
    assert pull(w, c).status_code == 403
    assert len(events(w, lic, "license.expired")) == 1


def test_lic_0_39_auto_renewal(w):
    c = customer(w)
    lic = w.add_license(c["id"], w.app["id"], expires_at="2090-05-31")
    sql(w, "UPDATE licenses SET auto_renew=1, period='P1M', expires_at=? WHERE id=?", int(time.time()) - 40 * 86400, lic["id"])
    now = lambda: datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    d = wait_for("the renewals", lambda: (lambda d: d if d["expires_at"] > now() else None)(w.api.get(f"/licenses/{lic['id']}")))
    renewed = events(w, lic, "license.renewed")
    assert 1 <= len(renewed) <= 3 and renewed[-1]["data"]["expires_at"] == d["expires_at"]
    assert all(a["data"]["expires_at"] == b["data"]["expires_at_before"] for a, b in zip(renewed, renewed[1:]))
    assert d["effective_status"] in ("active", "expiring") and wait_for("a pull", lambda: pull(w, c).status_code == 200)
    assert not events(w, lic, "license.expired")
    audit = w.api.get(f"/audit?object={lic['id']}&action=license.renew")["items"]
    assert [a["actor"] for a in audit] == ["system:clock"] * len(renewed)


def test_lic_1_27_auto_renewal_period(w):
    """A period of days, and a day's end that stays one."""
    lic = w.add_license(customer(w)["id"], w.app["id"], expires_at=soon(3600), period="P14D")
    end = w.api.get(f"/licenses/{lic['id']}")["expires_at"]
    sql(w, "UPDATE licenses SET auto_renew=1, expires_at=expires_at-3700 WHERE id=?", lic["id"])
    e = wait_for("the renewal", lambda: events(w, lic, "license.renewed"))[0]
    took = datetime.datetime.fromisoformat(e["data"]["expires_at"][:-1]) - datetime.datetime.fromisoformat(e["data"]["expires_at_before"][:-1])
    assert took == datetime.timedelta(days=14) and e["data"]["period"] == "P14D" and e["data"]["expires_at_before"] < end


def test_lic_0_40_renewal_waits_for_the_payment(w):
    lic = w.add_license(customer(w)["id"], w.app["id"], expires_at=soon(3600), period="P1M", grace_days=7)
    sql(w, "UPDATE licenses SET auto_renew=1, renew_needs_payment=1, created_at=1, expires_at=? WHERE id=?", int(time.time()) - 5, lic["id"])
    wait_for("the grace", lambda: events(w, lic, "license.grace_started"))
    assert len(events(w, lic, "license.renewal_due")) == 1 and not events(w, lic, "license.renewed")
    assert w.api.get(f"/licenses/{lic['id']}")["effective_status"] == "grace"


def test_lic_2_7_cancelled_at_the_end_of_the_period(w):
    lic = w.add_license(customer(w)["id"], w.app["id"], expires_at=soon(3600), period="P1M")
    sql(w, "UPDATE licenses SET auto_renew=1, cancel_at_period_end=1, expires_at=? WHERE id=?", int(time.time()) + 1, lic["id"])
    wait_for("the end", lambda: events(w, lic, "license.expired"), 10)
    assert len(events(w, lic, "license.cancelled")) == 1 and not events(w, lic, "license.renewed")
    assert w.api.get(f"/licenses/{lic['id']}")["effective_status"] == "expired"


def test_lic_0_50_suspended_after_the_payments_grace(w):
    c = customer(w)
    lic = w.add_license(c["id"], w.app["id"], expires_at="2090-05-31", grace_days=7)
    wait_for("a pull", lambda: pull(w, c).status_code == 200)
    sql(w, "UPDATE licenses SET payment_failed_at=? WHERE id=?", int(time.time()) - 7 * 86400 + 3600, lic["id"])
    wait_for("it was looked at", lambda: metric(w, "pullgate_admin_jobs_due") == 0)
    assert w.api.get(f"/licenses/{lic['id']}")["status"] == "active" and pull(w, c).status_code == 200
    sql(w, "UPDATE licenses SET payment_failed_at=? WHERE id=?", int(time.time()) - 7 * 86400 - 1, lic["id"])
    d = wait_for("the suspension", lambda: (lambda d: d if d["status"] == "suspended" else None)(w.api.get(f"/licenses/{lic['id']}")))
    assert d["status_reason"] == "payment"
    r = wait_for("the denial", lambda: (lambda r: r.json() if r.status_code == 403 else None)(pull(w, c)))
    assert r["errors"][0]["detail"]["reason"] == "suspended"
    assert [e["actor"] for e in events(w, lic, "license.suspended")] == ["system:clock"]
    e = wait_for("the denial's event", lambda: [e for e in w.api.get(f"/events?after=0&customer={c['id']}&types=pull.denied")["items"]])
    assert len(e) == 1 and e[0]["data"]["reason"] == "suspended" and e[0]["data"]["repository"] == "shop/api"


def test_lic_4_21_what_cannot_be_done_is_visible_and_tried_again(w):
    lic = w.add_license(customer(w)["id"], w.app["id"], expires_at="2090-05-31")
    sql(w, "UPDATE licenses SET auto_renew=1, period='P', expires_at=? WHERE id=?", int(time.time()) - 5, lic["id"])
    find = lambda: [e for e in w.api.get("/job-errors")["items"] if e["subject_id"] == lic["id"]]
    e = wait_for("the error", find)[0]
    assert "period" in e["error"] and e["attempts"] == 1 and e["next_attempt_at"]
    assert metric(w, "pullgate_admin_jobs_failed_total") >= 1
    w.api("PATCH", f"/licenses/{lic['id']}", {"period": "P1M"}, 200)
    wait_for("the renewal", lambda: events(w, lic, "license.renewed"))
    wait_for("no error any more", lambda: not find())


def test_lic_0_27_waiting_for_activation(w):
    old = w.add_license(customer(w)["id"], w.app["id"], status="inactive")
    sql(w, "UPDATE licenses SET created_at=created_at-7200 WHERE id=?", old["id"])
    w.add_license(customer(w)["id"], w.app["id"], status="inactive")
    items = w.api.get("/licenses?status=inactive&limit=1000")["items"]
    assert items[0]["id"] == old["id"] and [i["created_at"] for i in items] == sorted(i["created_at"] for i in items)
    wait_for("the metric", lambda: metric(w, "pullgate_admin_oldest_inactive_seconds") >= 7200)
    w.api("PATCH", f"/vendors/{w.api.get('/vendors')['items'][0]['id']}", {"support_contact": "+49 30 555"}, 200)
    c = customer(w)
    w.add_license(c["id"], w.app["id"], status="inactive")
    wait_for("whom to call in the denial", lambda: "+49 30 555" in pull(w, c).text)
    portal = requests.get(w.admin_base + "/portal/v1/licenses", headers={"Authorization": basic(c["slug"], c["secret"])}).json()
    assert portal["items"][0]["support_contact"] == "+49 30 555"


# ---- webhooks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook(w):
    w.hook.reset()
    made = []

    def make(events=("license.*",), path="/in", **kw):
        d = w.api.post("/webhooks", {"url": w.hook.url + path, "events": list(events), **kw})
        made.append(d["id"])
        return d

    yield make
    for i in made:
        assert w.api("DELETE", f"/webhooks/{i}").status_code in (204, 404)


def test_lic_0_23_webhook_is_signed(w, hook):
    d = hook()
    assert d["secret"].startswith("whsec_") and "secret" not in w.api.get(f"/webhooks/{d['id']}")
    lic = w.add_license(customer(w)["id"], w.app["id"], status="inactive")
    wait_for("the event", lambda: w.hook.docs("license.created"))
    headers, body, path = w.hook.seen[0]
    stamp = headers["X-Pullgate-Timestamp"]
    want = "sha256=" + hmac.new(d["secret"].encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-Pullgate-Signature"] == want and headers["Content-Type"] == "application/json" and path == "/in"
    assert abs(int(stamp) - time.time()) < 60 * SLOW
    doc = json.loads(body)
    assert doc["type"] == headers["X-Pullgate-Event"] == "license.created" and doc["license_id"] == lic["id"] and doc["id"] and doc["at"] and "data" in doc
    log = wait_for("the log", lambda: [x for x in w.api.get(f"/webhooks/{d['id']}/deliveries")["items"] if x["status"] == "delivered"])
    assert log[0]["id"] == headers["X-Pullgate-Delivery"] and log[0]["attempts"] == 1 and log[0]["response_status"] == 200
    assert lic["key"] not in json.dumps(w.hook.docs())


def test_lic_0_26_event_when_activated(w, hook):
    hook(["license.activated"])
    lic = w.add_license(customer(w)["id"], w.app["id"], status="inactive")
    w.api.post(f"/licenses/{lic['id']}/activate", {"reason": "paid"}, 200)
    e = wait_for("the event", lambda: w.hook.docs("license.activated"))[0]
    assert (e["from_status"], e["to_status"], e["reason"]) == ("inactive", "active", "paid")
    assert [d["type"] for d in w.hook.docs()] == ["license.activated"], "others were not asked for"


def test_lic_0_49_retries_and_redelivery(w, hook):
    d = hook()
    w.hook.answer = lambda n: 500 if n <= 2 else 200
    w.add_license(customer(w)["id"], w.app["id"], status="inactive")
    log = lambda: w.api.get(f"/webhooks/{d['id']}/deliveries")["items"]
    wait_for("the success", lambda: log() and log()[0]["status"] == "delivered")
    assert log()[0]["attempts"] == 3 and len({h["X-Pullgate-Delivery"] for h, _, _ in w.hook.seen}) == 1
    assert w.api.get(f"/webhooks/{d['id']}")["failures"] == 0
    again = w.api.post(f"/webhooks/{d['id']}/deliveries/{log()[0]['id']}/redeliver", {}, 200)
    assert again["status"] == "pending"
    wait_for("it comes again", lambda: len(w.hook.seen) == 4)
    assert w.hook.seen[3][0]["X-Pullgate-Delivery"] == log()[0]["id"] and w.hook.seen[3][1] == w.hook.seen[0][1]


def test_webhook_test_and_redirects(w, hook):
    d = hook()
    t = w.api.post(f"/webhooks/{d['id']}/test", {}, 200)
    wait_for("the test", lambda: w.hook.docs("webhook.test"))
    wait_for("the log", lambda: w.api.get(f"/webhooks/{d['id']}/deliveries/{t['id']}")["status"] == "delivered")
    w.hook.answer = 302
    t = w.api.post(f"/webhooks/{d['id']}/test", {}, 200)
    x = wait_for("its failure", lambda: (lambda x: x if x["attempts"] else None)(w.api.get(f"/webhooks/{d['id']}/deliveries/{t['id']}")))
    assert x["response_status"] == 302 and "redirect" in x["error"] and x["next_attempt_at"]
    assert all(p == "/in" for _, _, p in w.hook.seen)


def test_webhook_gone_is_disabled(w, hook):
    d = hook()
    w.hook.answer = 410
    w.api.post(f"/webhooks/{d['id']}/test", {}, 200)
    x = wait_for("the end", lambda: (lambda x: x if not x["enabled"] else None)(w.api.get(f"/webhooks/{d['id']}")))
    assert x["disabled_reason"] == "gone"
    assert w.api.get(f"/webhooks/{d['id']}/deliveries")["items"][0]["status"] == "failed"
    problem(w.api("POST", f"/webhooks/{d['id']}/test", {}), 409, "webhook_disabled")
    assert [e for e in w.api.get("/events?event=webhook.disabled")["items"] if e["object_id"] == d["id"]]
    w.hook.answer = 200
    x = w.api("PATCH", f"/webhooks/{d['id']}", {"enabled": True}, 200).json()
    assert x["enabled"] and x["disabled_reason"] == "" and x["failures"] == 0


def test_a_slow_endpoint_holds_up_no_other(w, hook):
    slow = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]  # take connections and say nothing
    for s in slow:
        w.api.post("/webhooks", {"url": f"http://127.0.0.1:{s.getsockname()[1]}/", "events": ["*"]})
    hook()
    try:
        began = time.monotonic()
        for _ in range(5):
            w.add_license(customer(w)["id"], w.app["id"], status="inactive")
        wait_for("all five", lambda: len(w.hook.docs("license.created")) == 5, 8)
        ids = [d["id"] for d in w.hook.docs()]
        assert ids == sorted(ids), "in their order"
        assert time.monotonic() - began < 15 * SLOW
    finally:
        for x in w.api.get("/webhooks?limit=1000")["items"]:
            if not x["url"].startswith(w.hook.url):
                w.api("DELETE", f"/webhooks/{x['id']}", None, 204)
        for s in slow:
            s.close()


def test_webhooks_are_checked_and_of_one_vendor(w, hook):
    d = hook(secret="s" * 20, description="mine", enabled=False)
    assert "secret" not in d
    for body, field in [({"url": "https://hooks.example/", "events": []}, "events"), ({"url": "https://hooks.example/", "events": ["License"]}, "events[0]"),
                        ({"url": "ftp://x/", "events": ["*"]}, "url"), ({"url": "http://hooks.example/", "events": ["*"]}, "url"),
                        ({"url": "https://user:pw@hooks.example/", "events": ["*"]}, "url"), ({"url": "https://10.0.0.1/", "events": ["*"]}, "url"),
                        ({"url": "https://[::1]/", "events": ["*"]}, "url"), ({"url": "https://169.254.169.254/latest", "events": ["*"]}, "url"),
                        ({"url": "https://localhost/", "events": ["*"]}, "url"), ({"url": "https://167772161/", "events": ["*"]}, "url"), ({"url": "https://hooks.example/", "events": ["*"], "secret": "short"}, "secret")]:
        problem(w.api("POST", "/webhooks", body), 400, field=field)
    other, _ = second_vendor(w, "hooks-other")
    assert other.get("/webhooks")["items"] == []
    for method, path in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries")]:
        problem(other(method, f"/webhooks/{d['id']}{path}", {} if method != "GET" else None), 404)
    manager, _ = token(w, "license_manager")
    problem(manager("GET", "/webhooks"), 403)


def resolves(name):
    try:
        return bool(socket.getaddrinfo(name, 443))
    except OSError:
        return False


def test_a_name_that_leads_to_a_private_address_is_not_called(w):
    """The address is looked at where the connection is made, whatever the name said before."""
    name = next(n for n in ("ip6-localhost", "localhost.localdomain", socket.gethostname()) if resolves(n))
    d = w.api.post("/webhooks", {"url": f"https://{name}/", "events": ["webhook.test"]})
    w.api.post(f"/webhooks/{d['id']}/test", {}, 200)
    x = wait_for("the failure", lambda: (lambda x: x if x["attempts"] else None)(w.api.get(f"/webhooks/{d['id']}/deliveries")["items"][0]))
    assert x["status"] == "pending" and "private or reserved" in x["error"] and x["response_status"] == 0
    w.api("DELETE", f"/webhooks/{d['id']}", None, 204)


# ---- following ------------------------------------------------------------------------------------------------------------


def test_events_are_followed_from_a_cursor(w):
    c = customer(w)
    lic = w.add_license(c["id"], w.app["id"], status="inactive")
    first = w.api.get(f"/events?after=0&license={lic['id']}")
    assert [e["type"] for e in first["items"]] == ["license.created"] and first["next_cursor"] == str(first["items"][0]["id"])
    empty = w.api.get(f"/events?after={first['next_cursor']}&license={lic['id']}")
    assert empty["items"] == [] and empty["next_cursor"] == first["next_cursor"]
    w.api.post(f"/licenses/{lic['id']}/activate", {}, 200)
    w.api.post(f"/licenses/{lic['id']}/suspend", {}, 200)
    page = w.api.get(f"/events?after={first['next_cursor']}&license={lic['id']}&limit=1")
    assert [e["type"] for e in page["items"]] == ["license.activated"]
    rest = w.api.get(f"/events?after={page['next_cursor']}&license={lic['id']}&types=license.expired,license.susp*")
    assert rest["items"] == []
    rest = w.api.get(f"/events?after={page['next_cursor']}&license={lic['id']}&types=license.expired,license.suspended")
    assert [e["type"] for e in rest["items"]] == ["license.suspended"]
    newest = w.api.get(f"/events?license={lic['id']}")["items"]
    assert [e["id"] for e in newest] == sorted((e["id"] for e in newest), reverse=True) and newest[0]["type"] == "license.suspended"
    page = w.api.get("/events?types=license.created&limit=1")
    assert [e["type"] for e in page["items"]] == ["license.created"] and page["next_cursor"]
    rest = w.api.get(f"/events?types=license.created&limit=1&cursor={page['next_cursor']}")
    assert rest["items"][0]["id"] < page["items"][0]["id"] and rest["items"][0]["type"] == "license.created"
    problem(w.api("GET", "/events?after=x"), 400, "invalid_parameter", "after")
    problem(w.api("GET", "/events?wait=5"), 400, "invalid_parameter", "wait")
    problem(w.api("GET", "/events?after=0&wait=31"), 400, "invalid_parameter", "wait")


def test_an_answer_waits_for_an_event(w):
    c = customer(w)
    lic = w.add_license(c["id"], w.app["id"], status="inactive")
    cursor = w.api.get(f"/events?after=0&license={lic['id']}")["next_cursor"]
    got = {}

    def follow():
        began = time.monotonic()
        got["doc"] = requests.get(f"{w.admin_base}/api/v1/events?after={cursor}&license={lic['id']}&wait=20", timeout=30 * SLOW,
                                  headers={"Authorization": "Bearer " + w.token}).json()
        got["took"] = time.monotonic() - began

    t = threading.Thread(target=follow)
    t.start()
    time.sleep(0.5)  # it is waiting by then, or finds the event at once: both are right
    w.api.post(f"/licenses/{lic['id']}/activate", {}, 200)
    t.join(30 * SLOW)
    assert [e["type"] for e in got["doc"]["items"]] == ["license.activated"] and got["took"] < 15
    began = time.monotonic()
    assert w.api.get(f"/events?after={got['doc']['next_cursor']}&license={lic['id']}&wait=1")["items"] == []
    assert 0.9 < time.monotonic() - began < 10 * SLOW


# ---- mail -----------------------------------------------------------------------------------------------------------------


def test_lic_0_23_mails_of_a_license(w):
    c = customer(w, email="ops@mail1.example")
    w.api("PATCH", f"/customers/{c['id']}", {"name": "Glöbex\u00a0AG"}, 200)
    lic = w.add_license(c["id"], w.app["id"], status="inactive", name="Prod Ü", expires_at="2030-01-31")
    m = wait_for("the mail", lambda: w.smtp.to("ops@mail1.example"))[0]
    assert m["Subject"] == "Your license Prod Ü for Shop" and m["To"] == "ops@mail1.example"
    assert m["From"].addresses[0].display_name == "Acme Lizenzen Ä" and m["From"].addresses[0].addr_spec == "licenses@acme.example"
    body = m.get_content()
    assert "Glöbex" in body and "2030-01-31" in body and lic["key_prefix"] in body and lic["key"] not in body
    assert m["Message-ID"] and m["Date"].datetime and m["Auto-Submitted"] == "auto-generated"
    log = w.api.get(f"/mails?license_id={lic['id']}")["items"]
    assert log[0]["recipient"] == "ops@mail1.example" and log[0]["event"] == "license.created"


def test_lic_0_26_mail_when_activated(w):
    c = customer(w, email="ops@mail2.example")
    lic = w.add_license(c["id"], w.app["id"], status="inactive")
    w.api.post(f"/licenses/{lic['id']}/activate", {}, 200)
    m = wait_for("the mail", lambda: w.smtp.to("ops@mail2.example", "is active"))[0]
    assert f"docker login registry.acme.example --username {c['slug']}" in m.get_content() and lic["key"] not in m.get_content()
    wait_for("all sent", lambda: metric(w, "pullgate_admin_mails_pending") == 0)
    assert len(w.smtp.to("ops@mail2.example", "is active")) == 1


def test_mail_templates(w):
    names = [t["event"] for t in w.api.get("/mail-templates")["items"]]
    assert {"license.created", "license.activated", "license.expiring", "license.expired", "license.suspended", "license.renewed", "license.payment_failed"} <= set(names)
    assert names == sorted(names)
    t = w.api.get("/mail-templates/license.suspended")
    assert t["is_default"]
    problem(w.api("PUT", "/mail-templates/license.suspended", {"subject": "x {{nobody}}", "body": "y"}), 400, "unknown_placeholder", "subject")
    problem(w.api("PUT", "/mail-templates/license.suspended", {"subject": "x", "body": "{{customer.name"}), 400, "unknown_placeholder", "body")
    problem(w.api("PUT", "/mail-templates/license.suspended", {"subject": "x\r\nBcc: a@b", "body": "y"}), 400, "invalid_field", "subject")
    problem(w.api("PUT", "/mail-templates/nonsense", {"subject": "x", "body": "y"}), 400)
    problem(w.api("GET", "/mail-templates/license.nothing"), 404)
    own = w.api("PUT", "/mail-templates/license.suspended", {"subject": "Halt: {{license.name}}", "body": "{{event.reason}}\nBye"}, 200).json()
    assert not own["is_default"]
    p = w.api.post("/mail-templates/license.suspended/preview", {}, 200)
    assert p == {"subject": "Halt: Production", "body": "overdue\nBye"}
    c = customer(w, email="ops@mail3.example")
    lic = w.add_license(c["id"], w.app["id"], name="Line\u0085two")
    assert w.api.post("/mail-templates/license.suspended/preview", {"license_id": lic["id"], "subject": "{{customer.slug}} {{application.name}}"}, 200)["subject"] == f"{c['slug']} Shop"
    w.api.post(f"/licenses/{lic['id']}/suspend", {"reason": "unpaid"}, 200)
    m = wait_for("the mail", lambda: w.smtp.to("ops@mail3.example", "Halt"))[0]
    assert m.get_content().replace("\r\n", "\n").strip() == "unpaid\nBye"
    other, _ = second_vendor(w, "mail-other")
    assert other.get("/mail-templates/license.suspended")["is_default"]
    assert w.api("DELETE", "/mail-templates/license.suspended").status_code == 204
    assert w.api.get("/mail-templates/license.suspended")["is_default"]
    problem(w.api("DELETE", "/mail-templates/license.suspended"), 404)
    w.api("PUT", "/mail-templates/license.created", {"subject": "x", "body": "y", "enabled": False}, 200)
    c = customer(w, email="ops@mail4.example")
    lic = w.add_license(c["id"], w.app["id"])
    w.api.post(f"/licenses/{lic['id']}/suspend", {"reason": "unpaid"}, 200)
    wait_for("the mail of a later event", lambda: w.smtp.to("ops@mail4.example"))
    w.api("DELETE", "/mail-templates/license.created", None, 204)
    assert [m["event"] for m in w.api.get(f"/mails?customer_id={c['id']}")["items"]] == ["license.suspended"] and len(w.smtp.to("ops@mail4.example")) == 1


def test_mail_that_the_server_refuses(w):
    c = customer(w, email="nobody@mail5.example")
    w.smtp.refuse["nobody@mail5.example"] = "550 no such user"
    w.add_license(c["id"], w.app["id"], status="inactive")
    x = wait_for("the failure", lambda: [x for x in w.api.get(f"/mails?customer_id={c['id']}")["items"] if x["status"] == "failed"])[0]
    assert x["error"] and x["attempts"] == 1
    c = customer(w, email="later@mail6.example")
    w.smtp.fail.extend(["421 not now"] * 2)
    w.add_license(c["id"], w.app["id"], status="inactive")
    wait_for("it is sent after all", lambda: w.smtp.to("later@mail6.example"))
    x = wait_for("the log", lambda: [x for x in w.api.get(f"/mails?customer_id={c['id']}")["items"] if x["status"] == "sent"])[0]
    assert x["attempts"] == 3


def test_mail_goes_over_tls_or_not_at_all(tmp_path):
    tls = make_ca(tmp_path)
    plain, safe = Smtp(), Smtp(tls=tls)
    (tmp_path / "password").write_text("geheim-42\n")
    with admin_stack(admin=FAST) as s:
        def restart(**mail):
            s.admin.stop()
            s.config["mail"] = {"from": "a@acme.example", "username": "acme", "password_file": str(tmp_path / "password"), **mail}
            s.start_admin()

        try:
            app = s.add_application("shop", [("shop/api", "acme/api", "image")], s.add_upstream()["id"])
            restart(url=f"smtp://127.0.0.1:{plain.port}")  # STARTTLS is asked for, and there is none
            s.add_license(s.add_customer("c1")["id"], app["id"])
            error = wait_for("the failure", lambda: [x["error"] for x in s.api.get("/mails")["items"] if x["attempts"]])[0]
            assert "TLS" in error.upper() or "SSL" in error.upper()
            assert plain.auth == [] and plain.mails == [], "neither password nor mail goes out in the clear"
            restart(url=f"smtps://127.0.0.1:{safe.port}")  # by an authority that nobody knows
            wait_for("the refusal", lambda: [x for x in s.api.get("/mails")["items"] if "certificate" in x["error"].lower()])
            restart(url=f"smtps://127.0.0.1:{safe.port}", ca=str(tls["ca"]))
            wait_for("the mail", lambda: safe.to("ops@c1.example"))
            wait_for("the log", lambda: s.api.get("/mails")["items"][0]["status"] == "sent")
            assert base64.b64decode(safe.auth[0].split()[-1]) == b"\0acme\0geheim-42" and plain.mails == []
            assert "geheim" not in s.admin.text()
        finally:
            plain.shutdown()
            safe.shutdown()


# ---- crashes and long absences ----------------------------------------------------------------------------------------------


# ---- invitations ------------------------------------------------------------------------------------------------------------


def text(m):
    return m.get_content().replace("\r\n", "\n")


def sealed_bodies(w):
    with sqlite3.connect(w.dir / "pullgate.db", timeout=20) as db:
        rows = db.execute("SELECT recipient, status, body FROM mails WHERE is_sealed=1 ORDER BY id").fetchall()
    db.close()
    return rows


def test_invitations_are_mailed(w):
    u = w.api.post("/users", {"email": "Anna@people.example", "name": "Anna Ä", "role": "admin"})
    assert u["secret"] and u["invitation_mailed"] is True
    m = wait_for("the mail", lambda: w.smtp.to("anna@people.example"))[0]
    assert u["secret"] in text(m) and u["secret"] not in m["Subject"] and "Hello Anna Ä," in text(m) and u["invitation_expires_at"] in text(m)
    wait_for("it is over", lambda: ("anna@people.example", "sent", "") in sealed_bodies(w))
    accept = w.admin_base + "/api/v1/invitations/accept"
    assert requests.post(accept, json={"secret": u["secret"], "password": "a long pass phrase 17"}).status_code == 200
    # a customer's, and once more for who lost his password
    c = customer(w)
    d = w.api.post(f"/customers/{c['id']}/users", {"email": "bob@people.example", "role": "customer_viewer"})
    m = wait_for("the mail", lambda: w.smtp.to("bob@people.example"))[0]
    assert d["secret"] in text(m) and c["name"] in text(m) and "Hello bob@people.example" in text(m) and d["invitation_mailed"]
    again = w.api.post(f"/customers/{c['id']}/users/{d['id']}/invite", {}, 200)
    m = wait_for("the second mail", lambda: w.smtp.to("bob@people.example")[1:])[0]
    assert again["secret"] in text(m) and again["secret"] != d["secret"]
    # the customer's own address is told nothing of it, and whoever looks at events, the audit or the mails sees no secret
    assert not w.smtp.to(c["email"], "invitation")
    seen = json.dumps([w.api.get("/events?limit=50"), w.api.get("/audit?limit=50"), w.api.get("/mails")])
    assert [e["object_id"] for e in w.api.get("/events?event=user.invited")["items"]] == [u["id"]]
    for secret in (u["secret"], d["secret"], again["secret"]):
        assert secret not in seen
    # no invitation, no mail: a password was given; a dry run
    w.api.post("/users", {"email": "carl@people.example", "role": "viewer", "password": "a long pass phrase 18"})
    assert "secret" not in w.api.get(f"/users/{u['id']}")
    assert w.api("POST", f"/customers/{c['id']}/users/{d['id']}/invite?dry_run=1", {}).status_code == 200
    assert len([m for m in w.api.get("/mails?limit=1000")["items"] if m["event"].endswith("user.invited")]) == 3
    assert not w.smtp.to("carl@people.example")


def test_an_invitation_waits_sealed_and_gives_way_to_a_later_one(w):
    """The mail server is away: what waits in the store tells nobody the secret, and only the newest secret is ever sent."""
    w.smtp.fail = ["421 not now"] * 10000
    try:
        first = w.api.post("/users", {"email": "dora@people.example", "role": "viewer"})
        wait_for("an attempt", lambda: any(m["recipient"] == "dora@people.example" and m["attempts"] for m in w.api.get("/mails")["items"]))
        body = [b for r, s, b in sealed_bodies(w) if r == "dora@people.example"][0]
        assert body and first["secret"] not in body and "invited" not in body
        second = w.api.post(f"/users/{first['id']}/invite", {}, 200)
    finally:
        w.smtp.fail = []
    m = wait_for("the mail", lambda: w.smtp.to("dora@people.example"), 30)
    assert second["secret"] in text(m[0]) and len(m) == 1
    log = {m["status"]: m["error"] for m in w.api.get("/mails")["items"] if m["recipient"] == "dora@people.example"}
    assert log == {"sent": "", "failed": "another invitation took its place"} or "sent" not in log
    assert not any(b for r, s, b in sealed_bodies(w) if s != "pending")


def test_the_invitations_template_is_edited(w):
    put = {"subject": "Welcome, {{user.role}} {{user.name}}", "body": "{{invitation.secret}} until {{invitation.expires_at}} at {{vendor.name}}", "enabled": True}
    admin, _ = token(w, "admin")
    problem(admin("PUT", "/mail-templates/user.invited", put), 403, "rights_exceeded")
    problem(admin("DELETE", "/mail-templates/user.invited"), 403, "rights_exceeded")
    problem(w.api("PUT", "/mail-templates/user.invited", {**put, "subject": "{{ invitation.secret }}"}), 400, "unknown_placeholder", "subject")
    assert admin("PUT", "/mail-templates/customer_user.invited", put).status_code == 200
    w.api("PUT", "/mail-templates/user.invited", put, 200)
    try:
        assert "pgi_" in w.api("POST", "/mail-templates/user.invited/preview", {}, 200).json()["body"]
        # what somebody is called ends no line of the head, and stands for nothing else
        u = w.api.post("/users", {"email": "eve@people.example", "name": "Eve {{invitation.secret}}", "role": "viewer"})
        m = wait_for("the mail", lambda: w.smtp.to("eve@people.example"))[0]
        assert m["Subject"] == "Welcome, viewer Eve {{invitation.secret}}" and text(m).startswith(u["secret"] + " until ")
        w.api("PUT", "/mail-templates/user.invited", {**put, "enabled": False}, 200)
        u = w.api.post("/users", {"email": "fred@people.example", "role": "viewer"})
        assert u["secret"] and u["invitation_mailed"] is False
    finally:
        w.api("DELETE", "/mail-templates/user.invited")
        w.api("DELETE", "/mail-templates/customer_user.invited")
    assert not w.smtp.to("fred@people.example")


def test_exactly_once_over_kills_and_a_month_down():
    """Licenses whose time comes while the daemon is killed over and over; then under a clock that is a month on."""
    with admin_stack(admin={**FAST, "job_interval": "50ms"}) as s:
        up = s.add_upstream()
        app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        c = s.add_customer("many")
        ids = [s.add_license(c["id"], app["id"], name=f"L{i}", expires_at=soon(20 * 86400), grace_days=3)["id"] for i in range(60)]
        auto = [s.add_license(c["id"], app["id"], name=f"A{i}", expires_at=soon(20 * 86400), period="P7D")["id"] for i in range(20)]
        hook = Hook()
        try:
            s.api.post("/webhooks", {"url": hook.url, "events": ["license.*"]})
            sql(s, "UPDATE licenses SET auto_renew=1 WHERE period='P7D'")
            for i in range(6):
                sql(s, "UPDATE licenses SET wake_at=1")
                time.sleep(0.03 * i)
                s.admin.stop(signal.SIGKILL)
                s.start_admin()
            count = lambda type, n: len([e for e in all_events(s) if e["type"] == type]) == n
            wait_for("the reminders", lambda: count("license.expiring", 80))
            s.admin.stop()
            clock = Clock(s.dir)
            clock.move(31 * 86400)
            s.env = clock.env
            s.start_admin()
            wait_for("the ends", lambda: count("license.expired", 60), 20)
            wait_for("the renewals", lambda: count("license.renewed", 40), 20)
            s.admin.stop(signal.SIGKILL)
            s.start_admin()
            time.sleep(1)
            seen = all_events(s)
            assert len([e for e in seen if e["type"] == "license.expired"]) == 60 and len([e for e in seen if e["type"] == "license.renewed"]) == 40
            expiring = [(e["license_id"], e["data"]["expires_at"]) for e in seen if e["type"] == "license.expiring"]
            assert len(expiring) == len(set(expiring)), "one reminder for an end"
            for i in ids:
                assert s.api.get(f"/licenses/{i}")["effective_status"] == "expired"
            for i in auto:
                assert s.api.get(f"/licenses/{i}")["effective_status"] in ("active", "expiring")
            wait_for("every event at the webhook", lambda: {e["id"] for e in seen if e["type"] in ("license.expired", "license.renewed")} <= {d["id"] for d in hook.docs()}, 60)
        finally:
            hook.shutdown()


def all_events(s):
    items, cursor = [], "0"
    while True:
        page = s.api.get(f"/events?after={cursor}&types=license.*&limit=1000")
        if not page["items"]:
            return items
        items += page["items"]
        cursor = page["next_cursor"]


def test_the_end_does_not_wait_for_those_outside():
    """A receiver and a mail server that take connections and say nothing, clients that wait for events: SIGTERM ends all of it at once,
    and what was under way is pending afterwards."""
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    with admin_stack(admin=FAST) as s:
        try:
            s.admin.stop()
            s.config["mail"] = {"url": f"smtp://127.0.0.1:{silent[1].getsockname()[1]}", "tls": "off", "from": "a@acme.example"}
            s.start_admin()
            app = s.add_application("shop", [("shop/api", "acme/api", "image")], s.add_upstream()["id"])
            hook = s.api.post("/webhooks", {"url": f"http://127.0.0.1:{silent[0].getsockname()[1]}/", "events": ["*"]})
            s.add_license(s.add_customer("c")["id"], app["id"])
            for x in silent:
                x.settimeout(10 * SLOW)
            held = [x.accept()[0] for x in silent]
            answers = []

            def follow():
                r = requests.get(f"{s.admin_base}/api/v1/events?after=1000000&wait=30", headers={"Authorization": "Bearer " + s.token}, timeout=60)
                answers.append(r.json())

            clients = [threading.Thread(target=follow) for _ in range(5)]
            for c in clients:
                c.start()
            time.sleep(0.5)  # they wait by then; one that does not is refused, and the test fails
            began = time.monotonic()
            assert s.admin.stop() == 0
            assert time.monotonic() - began < 5 * SLOW
            for c in clients:
                c.join(10 * SLOW)
            assert [a["items"] for a in answers] == [[]] * 5
            for x in held:
                x.close()
            s.start_admin()
            d = s.api.get(f"/webhooks/{hook['id']}/deliveries")["items"]
            assert d and all(x["status"] == "pending" for x in d) and s.api.get("/mails")["items"][0]["status"] == "pending"
        finally:
            for x in silent:
                x.close()
