"""The admin API read as somebody would who wants more than he was given: each a hole that was there, or one that is not."""
import contextlib
import datetime
import hashlib
import itertools
import json
import sqlite3

import pytest
import requests

from admin_fixture import admin_stack, problem, second_vendor, token
from stack import SLOW, wait_for

PASSWORD = "a long pass phrase 17"
COUNT = itertools.count()


@pytest.fixture(scope="module")
def s():
    with admin_stack(limits={"sign_in_failures_per_minute": 100000, "auth_failures_per_minute": 100000}) as s:
        yield s


def rows(s, text, *params):
    with contextlib.closing(sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True, timeout=20)) as db:
        return db.execute(text, params).fetchall()


def in_days(n):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=n)).strftime("%Y-%m-%dT%H:%M:%SZ")


def person(s, role, **kw):
    return s.api.post("/users", {"email": f"h{next(COUNT)}@vendor.example", "role": role, "password": PASSWORD, **kw})


def test_the_same_key_for_another_vendor_is_another_request(s):
    """An operator makes the same customer at two vendors under one key: the second answer is not the first one's."""
    _, v = second_vendor(s, "idem-b")
    key = {"Idempotency-Key": "same"}
    a = s.api("POST", "/customers", {"slug": "both", "name": "Both"}, headers=key)
    r = s.api("POST", "/customers", {"slug": "both", "name": "Both"}, headers={**key, "X-Pullgate-Vendor": "idem-b"})
    assert a.status_code == 201 and "Idempotent-Replayed" not in r.headers
    problem(r, 422, "idempotency_key_reused")


def test_a_copy_of_the_store_is_no_way_around_argon2(s):
    """What a request is known again by says nothing of the password in it."""
    body = {"email": "guess@vendor.example", "role": "viewer", "password": "password that is guessed 1"}
    raw = json.dumps(body)
    r = s.api.s.post(s.api.base + "/api/v1/users", data=raw, headers={"Content-Type": "application/json", "Idempotency-Key": "pw"})
    assert r.status_code == 201
    kept = rows(s, "SELECT request_hash FROM idempotency_keys WHERE key='pw'")[0][0]
    inner = hashlib.sha256(raw.encode()).hexdigest()
    head = "POST\n/api/v1/users\n\n"
    assert not {hashlib.sha256(t.encode()).hexdigest() for t in (head + raw, head + inner, raw, inner)} & {kept}
    again = s.api.s.post(s.api.base + "/api/v1/users", data=raw, headers={"Content-Type": "application/json", "Idempotency-Key": "pw"})
    assert again.headers["Idempotent-Replayed"] == "true" and again.json() == r.json()


def test_a_token_that_ends_makes_nobody_who_outlives_it(s):
    short, _ = token(s, "owner", expires_at=in_days(1))
    u = person(s, "viewer")
    problem(short("POST", "/users", {"email": "heir@vendor.example", "role": "owner", "password": PASSWORD}), 403, "rights_exceeded")
    problem(short("POST", "/users", {"email": "heir@vendor.example", "role": "viewer"}), 403, "rights_exceeded")
    problem(short("PATCH", f"/users/{u['id']}", {"role": "owner"}), 403, "rights_exceeded")
    problem(short("POST", f"/users/{u['id']}/invite", {}), 403, "rights_exceeded")
    problem(short("DELETE", f"/users/{u['id']}/totp"), 403, "rights_exceeded")
    problem(short("POST", "/tokens", {"name": "heir", "role": "viewer"}), 403, "rights_exceeded")
    # what takes away it may
    assert short("PATCH", f"/users/{u['id']}", {"disabled": True}).status_code == 200
    problem(short("PATCH", f"/users/{u['id']}", {"disabled": False}), 403, "rights_exceeded")
    assert short("DELETE", f"/users/{u['id']}").status_code == 204
    # a customer's people are none of the vendor's rights
    c = s.api.post("/customers", {"slug": "heirs", "name": "Heirs"})
    assert short("POST", f"/customers/{c['id']}/users", {"email": "x@heirs.example", "role": "customer_viewer"}).status_code == 201


def test_a_viewer_learns_nothing_of_the_people(s):
    viewer, _ = token(s, "viewer")
    support, _ = token(s, "support")
    u = s.api.post("/users", {"email": "quiet@vendor.example", "role": "owner"})
    for path in ("/events", "/events?after=0", "/events?event=user.invited", "/events?types=user.*", "/export/events?format=ndjson"):
        text = viewer("GET", path).text
        assert '"user.invited"' not in text and u["id"] not in text, path
    assert u["id"] in support("GET", "/events?event=user.invited").text
    for path in ("/users", "/audit", "/mails", "/webhooks", "/tokens", "/export/audit", "/pulls", "/export/pulls"):
        assert viewer("GET", path).status_code == 403, path


def test_what_was_forbidden_to_do_with_many_is_in_the_audit(s):
    """Imports and bulk acts work beside the writer; who was refused one stands there all the same, before a body is read and after."""
    viewer, t = token(s, "viewer")
    scoped, u = token(s, "owner", scopes=["customers:read"])
    problem(viewer("POST", "/licenses/bulk", {"filter": {}, "action": "revoke", "body": {"reason": "x"}}), 403, "role_not_allowed")
    for api in (viewer, scoped):
        for size in (100, 300000):
            r = api.s.post(api.base + "/api/v1/licenses/import", data=b"customer\n" + b"\n" * size, headers={"Content-Type": "text/csv"})
            assert r.status_code == 403, r.text
    seen = [(a["actor"], a["action"], a["outcome"]) for a in s.api.get("/audit?limit=20")["items"]]
    assert seen.count((f"token:{t['id']}", "license.bulk", "role_not_allowed")) == 1
    assert seen.count((f"token:{t['id']}", "license.import", "role_not_allowed")) == 2
    assert seen.count((f"token:{u['id']}", "license.import", "scope_not_allowed")) == 2
    assert s.api.get("/audit/verification")["ok"]


def test_the_last_owner_stays_however_it_is_tried(s):
    api, v = second_vendor(s, "owners")
    a = api.post("/users", {"email": "a@owners.example", "role": "owner", "password": PASSWORD})
    invited = api.post("/users", {"email": "b@owners.example", "role": "owner"})  # no owner before he accepted
    for method, body in (("DELETE", None), ("PATCH", {"role": "admin"}), ("PATCH", {"disabled": True})):
        problem(api(method, f"/users/{a['id']}", body), 409, "last_owner")
    r = requests.post(s.admin_base + "/api/v1/invitations/accept", json={"secret": invited["secret"], "password": PASSWORD})
    assert r.status_code == 200
    assert api("PATCH", f"/users/{a['id']}", {"disabled": True}).status_code == 200
    problem(api("DELETE", f"/users/{invited['id']}"), 409, "last_owner")


def test_a_webhook_reaches_nothing_inside(s):
    """What is plainly private is refused at once, what only turns out so when the connection is made: other spellings, names, and redirects are not followed."""
    for url in ("https://127.0.0.1/", "https://10.1.2.3/x", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://169.254.169.254/latest/meta-data", "https://localhost/",
                "https://0.0.0.0/", "https://[fe80::1]/", "https://[64:ff9b::7f00:1]/", "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://x/",
                "https://user:pass@127.0.0.1/", "https://", "https://exa mple/", "https://x\r\nHost: y/"):
        assert s.api("POST", "/webhooks", {"url": url, "events": ["*"]}).status_code == 400, url
    port = s.admin.address.rsplit(":", 1)[1]
    for host in ("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost.", "ip6-localhost"):
        r = s.api("POST", "/webhooks", {"url": f"https://{host}:{port}/api/v1/me", "events": ["license.*"]})
        if r.status_code == 400:
            continue
        w = r.json()
        d = s.api.post(f"/webhooks/{w['id']}/test", {}, 200)
        d = wait_for("an attempt", lambda: (lambda d: d if d["attempts"] else None)(s.api.get(f"/webhooks/{w['id']}/deliveries/{d['id']}")), 40)
        assert d["response_status"] == 0 and d["status"] == "pending" and "certificate" not in d["error"].lower() and "ssl" not in d["error"].lower(), (host, d)
        s.api("DELETE", f"/webhooks/{w['id']}", None, 204)


def test_a_one_time_password_works_once(s):
    import base64
    import hmac
    import struct
    import time

    def code(secret, at):
        mac = hmac.new(base64.b32decode(secret), struct.pack(">Q", int(at) // 30), "sha1").digest()
        o = mac[-1] & 15
        return f"{(struct.unpack('>I', mac[o:o + 4])[0] & 0x7fffffff) % 1000000:06d}"

    u = person(s, "admin")
    sign_in = lambda **kw: requests.post(s.admin_base + "/api/v1/sessions", json={"email": u["email"], "password": PASSWORD, **kw}, timeout=30 * SLOW)
    me = requests.Session()
    me.headers["Authorization"] = "Bearer " + sign_in().json()["token"]
    secret = me.post(s.admin_base + "/api/v1/me/totp", json={"password": PASSWORD}).json()["secret"]
    now = time.time()
    assert me.post(s.admin_base + "/api/v1/me/totp/confirm", json={"totp": code(secret, now)}).status_code == 200
    assert sign_in(totp=code(secret, now)).status_code == 401, "it confirmed with it"
    later = code(secret, now + 30)  # the next step is within the window
    assert sign_in(totp=later).status_code == 201
    assert sign_in(totp=later).status_code == 401 and sign_in(totp=code(secret, now)).status_code == 401
    assert sign_in().status_code == 401
