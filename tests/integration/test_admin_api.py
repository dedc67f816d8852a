"""The admin API against the running daemon: each resource, what it refuses, and that a refusal changes nothing."""
import base64
import concurrent.futures
import datetime
import json
import re
import sqlite3

import pytest
import requests

from admin_fixture import admin_stack, problem, second_vendor, token
from stack import SLOW, Api, wait_for


@pytest.fixture(scope="module")
def s():
    with admin_stack() as stack:
        stack.up = stack.add_upstream()
        stack.app = stack.add_application("shop", [("shop/api", "acme/api", "image"), ("shop/worker", "acme/worker", "image")], stack.up["id"])
        stack.cus = stack.add_customer("globex")
        yield stack


@pytest.fixture
def lic(s, request):
    n = len(s.api.get("/licenses?limit=1000")["items"]) + len(s.api.get("/licenses?archived=true&limit=1000")["items"])
    return s.add_license(s.cus["id"], s.app["id"], [{"selector": "range", "value": "^1"}], name=f"L{n}", expires_at="2090-05-31")


def iso(text):
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)


# ---- sign-in and roles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer nope", "Basic Z2xvYmV4Ong=", "Bearer pga_" + "A" * 49, "bearer",
                                           "Bearer " + "x" * 5000])
def test_no_sign_in(s, authorization):
    h = {"Authorization": authorization} if authorization is not None else {}
    r = requests.get(s.admin_base + "/api/v1/customers", headers=h)
    problem(r, 401, "unauthorized")
    assert r.headers["WWW-Authenticate"].startswith("Bearer")
    problem(requests.get(s.admin_base + "/api/v1/no-such-path", headers=h), 401)
    before = s.api.get("/customers")
    problem(requests.post(s.admin_base + "/api/v1/customers", headers=h, json={"slug": "intruder"}), 401)
    assert s.api.get("/customers") == before


def test_failed_sign_ins_are_limited_and_right_ones_pass():
    with admin_stack(limits={"auth_failures_per_minute": 5}) as stack:
        url = stack.admin_base + "/api/v1/customers"
        codes = [requests.get(url, headers={"Authorization": "Bearer wrong"}).status_code for _ in range(12)]
        # the minute may turn once between them
        assert codes[0] == 401 and 429 in codes
        r = requests.get(url, headers={"Authorization": "Bearer wrong"})
        while r.status_code != 429:  # the next minute began: six more
            r = requests.get(url, headers={"Authorization": "Bearer wrong"})
        problem(r, 429, "too_many_failures")
        assert 1 <= int(r.headers["Retry-After"]) <= 60
        assert stack.api("GET", "/customers").status_code == 200


def test_a_viewer_reads_and_changes_nothing(s, lic):
    viewer, _ = token(s, "viewer")
    assert viewer("GET", "/customers").status_code == 200
    for method, path, body in [
        ("POST", "/customers", {"slug": "x"}), ("DELETE", f"/customers/{s.cus['id']}", None), ("PATCH", f"/licenses/{lic['id']}", {"name": "x"}),
        ("POST", f"/licenses/{lic['id']}/suspend", {}), ("PUT", f"/applications/{s.app['id']}/versions/1.0.0", {}),
        ("POST", f"/upstreams/{s.up['id']}/test", {}), ("GET", "/tokens", None), ("POST", "/tokens", {"name": "x", "role": "owner"}),
    ]:
        problem(viewer(method, path, body), 403, "role_not_allowed")
    assert s.api.get(f"/licenses/{lic['id']}")["status"] == "active"


def test_an_admin_makes_no_tokens(s):
    admin, _ = token(s, "admin")
    assert admin("POST", "/customers", {"slug": "by-admin"}).status_code == 201
    problem(admin("POST", "/tokens", {"name": "x", "role": "viewer"}), 403, "role_not_allowed")
    problem(admin("POST", "/vendors", {"slug": "v", "name": "V"}), 403, "role_not_allowed")


def test_tokens(s):
    t, doc = token(s, "viewer", expires_at="2090-01-01")
    assert doc["token"].startswith("pga_") and doc["expires_at"] == "2090-01-01T23:59:59Z"
    shown = s.api.get(f"/tokens/{doc['id']}")
    assert "token" not in shown and shown["prefix"] == doc["token"][:10]
    assert t("GET", "/customers").status_code == 200
    wait_for("the last use", lambda: s.api.get(f"/tokens/{doc['id']}")["last_used_at"])
    assert s.api("DELETE", f"/tokens/{doc['id']}").status_code == 204
    problem(t("GET", "/customers"), 401)
    problem(s.api("POST", "/tokens", {"name": "x", "role": "root"}), 400, "invalid_field", "role")
    problem(s.api("POST", "/tokens", {"name": "x", "role": "viewer", "expires_at": "2001-01-01"}), 400, "invalid_window", "expires_at")
    boot = [i for i in s.api.get("/tokens")["items"] if i["is_bootstrap"]]
    assert len(boot) == 1
    problem(s.api("DELETE", f"/tokens/{boot[0]['id']}"), 409, "bootstrap_token")


def test_the_bootstrap_token_rotates_at_a_restart():
    with admin_stack() as stack:
        old = stack.token
        assert stack.admin.stop() == 0
        (stack.dir / "bootstrap").write_text("  next-" + "n" * 40 + "\n")
        stack.token = "next-" + "n" * 40
        stack.start_admin()
        assert stack.api("GET", "/customers").status_code == 200
        problem(Api(stack.admin_base, old)("GET", "/customers"), 401)
        stack.admin.stop()
        (stack.dir / "bootstrap").write_text("short")
        from stack import BIN, Proc
        p = Proc("refused", [BIN / "pullgate-admin", "--config", stack.write_config()], stack.dir)
        wait_for("the end", lambda: not p.alive())
        assert p.stop() == 1 and "at least 32 characters" in p.text() and "short" not in p.text().replace("shorter", "")


# ---- vendors are invisible to each other ----------------------------------------------------------------------------------


def test_nothing_of_another_vendor_can_be_reached(s, lic):
    other, vendor = second_vendor(s)
    cred = s.add_credential(s.cus["id"])
    rep = s.app["repositories"][0]["id"]
    tok = s.api.get("/tokens")["items"][0]["id"]
    own = s.api.get("/vendors")["items"][0]["id"]
    paths = [f"/customers/{s.cus['id']}", f"/customers/{s.cus['id']}/credentials", f"/customers/{s.cus['id']}/credentials/{cred['id']}",
             f"/applications/{s.app['id']}", f"/applications/{s.app['id']}/repositories", f"/applications/{s.app['id']}/repositories/{rep}",
             f"/applications/{s.app['id']}/versions", f"/upstreams/{s.up['id']}", f"/licenses/{lic['id']}", f"/tokens/{tok}", f"/vendors/{own}"]
    for p in paths:
        problem(other("GET", p), 404)
    for method, p, body in [
        ("PATCH", f"/customers/{s.cus['id']}", {"name": "x"}), ("DELETE", f"/customers/{s.cus['id']}", None),
        ("POST", f"/customers/{s.cus['id']}/credentials", {"name": "x"}), ("DELETE", f"/customers/{s.cus['id']}/credentials/{cred['id']}", None),
        ("POST", f"/customers/{s.cus['id']}/credentials/{cred['id']}/rotate", {}), ("PATCH", f"/applications/{s.app['id']}", {"name": "x"}),
        ("DELETE", f"/applications/{s.app['id']}", None), ("POST", f"/applications/{s.app['id']}/sync", {}),
        ("POST", f"/applications/{s.app['id']}/repositories", {"name": "other-vendor/x", "upstream_id": s.up["id"], "upstream_repository": "x"}),
        ("PATCH", f"/applications/{s.app['id']}/repositories/{rep}", {"kind": "chart"}), ("DELETE", f"/applications/{s.app['id']}/repositories/{rep}", None),
        ("PUT", f"/applications/{s.app['id']}/versions/1.0.0", {"channel": "x"}), ("PATCH", f"/upstreams/{s.up['id']}", {"name": "x"}),
        ("DELETE", f"/upstreams/{s.up['id']}", None), ("POST", f"/upstreams/{s.up['id']}/test", {}), ("PATCH", f"/licenses/{lic['id']}", {"name": "x"}),
        ("DELETE", f"/licenses/{lic['id']}", None), ("POST", f"/licenses/{lic['id']}/suspend", {}), ("POST", f"/licenses/{lic['id']}/rotate-key", {}),
        ("POST", f"/licenses/{lic['id']}/grants", {"selector": "all"}), ("DELETE", f"/licenses/{lic['id']}/grants/{lic['grants'][0]['id']}", None),
        ("PATCH", f"/licenses/{lic['id']}/grants/{lic['grants'][0]['id']}", {"note": "x"}), ("DELETE", f"/tokens/{tok}", None),
        ("PATCH", f"/vendors/{own}", {"name": "x"}),
    ]:
        problem(other(method, p, body), 404)
    for p in ("/customers", "/applications", "/upstreams", "/licenses", "/pulls", "/events"):
        assert other.get(p)["items"] == []
    assert [v["id"] for v in other.get("/vendors")["items"]] == [vendor["id"]]
    assert all(t["id"] != tok for t in other.get("/tokens")["items"])
    assert all(a["object"] != s.cus["id"] or a["outcome"] != "ok" for a in other.get("/audit")["items"])
    # nor named from inside
    mine = other.post("/customers", {"slug": "globex"})  # slugs are a vendor's own
    problem(other("POST", "/licenses", {"name": "x", "customer_id": s.cus["id"], "application_id": s.app["id"]}), 400, "unknown_reference", "customer_id")
    problem(other("POST", "/licenses", {"name": "x", "customer_id": mine["id"], "application_id": s.app["id"]}), 400, "unknown_reference", "application_id")
    problem(other("POST", "/applications", {"slug": "a", "repositories": [{"name": "other-vendor/a", "upstream_id": s.up["id"], "upstream_repository": "a"}]}),
            400, "unknown_reference", "repositories[0].upstream_id")
    problem(other("POST", f"/customers/{mine['id']}/credentials", {"name": "x", "license_id": lic["id"]}), 400, "unknown_reference", "license_id")
    problem(other("GET", f"/explain?customer={s.cus['id']}&repository=shop/api&reference=1.0.0"), 404)
    assert s.api.get(f"/customers/{s.cus['id']}")["name"] == "Globex"


def test_repository_names_belong_to_one_vendor(s):
    other, vendor = second_vendor(s, "zeta")
    up = other.post("/upstreams", {"name": "u", "url": "http://127.0.0.1:9"})

    def repo(name, u):
        return {"name": name, "upstream_id": u, "upstream_repository": "x"}

    problem(other("POST", "/applications", {"slug": "a", "repositories": [repo("free/name", up["id"])]}), 403, "name_not_allowed", "repositories[0].name")
    problem(other("POST", "/applications", {"slug": "a", "repositories": [repo("zeta", up["id"])]}), 403, "name_not_allowed")
    problem(s.api("POST", "/applications", {"slug": "b", "repositories": [repo("zeta/api", s.up["id"])]}), 403, "name_not_allowed")
    problem(s.api("POST", "/applications", {"slug": "b", "repositories": [repo("zeta", s.up["id"])]}), 403, "name_not_allowed")
    a = other.post("/applications", {"slug": "a", "repositories": [repo("zeta/api", up["id"])]})
    problem(other("POST", f"/applications/{a['id']}/repositories", repo("zeta/api", up["id"])), 409, "conflict", "name")
    s.api.post("/applications", {"slug": "z2", "repositories": [repo("zeta2/api", s.up["id"])]})
    problem(s.api("POST", "/vendors", {"slug": "zeta2", "name": "Z"}), 409, "name_taken", "slug")
    problem(other("POST", "/vendors", {"slug": "third", "name": "T"}), 403)


def test_vendor_update(s):
    v = s.api.get("/vendors")["items"][0]
    r = s.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "Europe/Berlin", "support_contact": "help@vendor.example"}, 200)
    assert r.json()["time_zone"] == "Europe/Berlin" and r.json()["renew_url"] == v["renew_url"]
    problem(s.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "Mars/Olympus"}), 400, "invalid_field", "time_zone")
    problem(s.api("PATCH", f"/vendors/{v['id']}", {"renew_url": "javascript:alert(1)"}), 400, "invalid_field", "renew_url")
    problem(s.api("PATCH", f"/vendors/{v['id']}", {"slug": "x"}), 400, "unknown_field", "slug")
    s.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "UTC"}, 200)


# ---- the wire: paths, methods, bodies ---------------------------------------------------------------------------------------


def test_paths_and_methods(s):
    for p in ("/nope", "/customers/", "/licenses/99999999999999999999999", "/licenses/../customers", "/licenses/%00", "/licenses/a%2Fb", "/licenses/%zz"):
        r = requests.Request("GET", s.admin_base, headers={"Authorization": "Bearer " + s.token}).prepare()
        r.url = s.admin_base + "/api/v1" + p
        assert requests.Session().send(r).status_code in (400, 404), p
    r = s.api("PUT", "/customers", {})
    problem(r, 405, "method_not_allowed")
    assert r.headers["Allow"] == "GET, POST"
    assert s.api("DELETE", f"/customers/{s.cus['id']}/credentials").headers["Allow"] == "GET, POST"
    problem(requests.get(s.admin_base + "/v2/"), 404)
    r = s.api("HEAD", "/customers")
    assert r.status_code == 200 and r.text == "" and int(r.headers["Content-Length"]) > 10


def test_answers_are_not_kept(s):
    for r in (s.api("GET", "/customers"), s.api("GET", "/nope")):
        assert r.headers["Cache-Control"] == "no-store" and r.headers["X-Content-Type-Options"] == "nosniff" and r.headers["X-Request-Id"]


BAD_BODIES = [
    (b"hello", "invalid_json"), (b"[]", "invalid_json"), (b'"x"', "invalid_json"), (b"null", "invalid_json"), (b'{"name":"x"} {}', "invalid_json"),
    (b'{"name":"a","n\\u0061me":"b"}', "invalid_json"), (b'{"name":"\xff"}', "invalid_json"), (b'\xef\xbb\xbf{"name":"x"}', "invalid_json"),
    (b'{"name":"x","max":NaN}', "invalid_json"), (b'{"name":"x"', "invalid_json"), (b'{"name":"a\\u0000b"}', None), (b'{"name":{"$gt":""}}', "invalid_field"),
    (b'{"name":7}', "invalid_field"), (b'{"name":null}', "invalid_field"), (b'{"name":""}', "invalid_field"), (b'{"name":"' + b"n" * 201 + b'"}', "invalid_field"),
    (b'{"name":"a\\nb"}', "invalid_field"), (b'{"name":"x","disabled":"no"}', "invalid_field"), (b'{"name":"x","metadata":[]}', "invalid_field"),
    (b'{"name":"x","id":"cus_1"}', "unknown_field"), (b'{"name":"x","vendor_id":"ven_1"}', "unknown_field"), (b'{"name":"x","__proto__":{}}', "unknown_field"),
    (b"{}", "missing_field"), (b'{"slug":"Upper"}', "invalid_field"), (b'{"slug":"a..b"}', "invalid_field"), (b'{"slug":"-a"}', "invalid_field"),
    (b'{"name":"x","email":"no at"}', "invalid_field"), (b'{"name":"x","metadata":' + b'{"a":' * 20 + b"1" + b"}" * 20 + b"}", "invalid_json"),
    (b'{"name":"x","metadata":{"a":[' + b"1," * 11000 + b"1]}}", None),
]


@pytest.mark.parametrize("body,code", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bad_bodies_change_nothing(s, body, code):
    before = s.api.get("/customers?limit=1000")
    r = s.api.s.post(s.admin_base + "/api/v1/customers", data=body, headers={"Content-Type": "application/json"})
    assert r.status_code in (400, 413), r.text
    problem(r, r.status_code, code)
    assert s.api.get("/customers?limit=1000") == before


def test_bodies_too_large_compressed_or_of_another_type(s):
    r = s.api.s.post(s.admin_base + "/api/v1/customers", data=b'{"name":"' + b"n" * 200000 + b'"}', headers={"Content-Type": "application/json"})
    problem(r, 413)
    for h in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
        problem(s.api.s.post(s.admin_base + "/api/v1/customers", data=b'{"name":"x"}', headers=h), 415, "unsupported_media_type")
    assert s.api.s.post(s.admin_base + "/api/v1/customers", data=b'{"name":"Typed"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}).status_code == 201


def test_names_are_data(s):
    for name in ("x'); DROP TABLE licenses;--", "*:cust:{x}?[a]", "<script>alert(1)</script>", "日本語 ✓", 'quote " and \\', "%s%n"):
        c = s.api.post("/customers", {"name": name})
        assert c["name"] == name and s.api.get(f"/customers/{c['id']}")["name"] == name
        assert re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", c["slug"])


def test_unknown_parameters_are_refused(s):
    problem(s.api("GET", "/customers?sort=name;DROP"), 400, "invalid_parameter", "sort")
    problem(s.api("GET", "/customers?colour=name"), 400, "unknown_parameter", "colour")
    problem(s.api("GET", f"/customers/{s.cus['id']}?x=1"), 400, "unknown_parameter", "x")
    problem(s.api("GET", "/customers?slug=a%00b"), 400)
    problem(s.api("GET", "/customers?slug=a%0d%0ab"), 400)


# ---- lists ------------------------------------------------------------------------------------------------------------------


def test_paging_shows_everything_once(s):
    for i in range(23):
        s.api.post("/customers", {"slug": f"page-{i}"})
    whole = [c["id"] for c in s.api.get("/customers?limit=1000")["items"]]
    for limit in (1, 7, len(whole), len(whole) - 1):
        seen, cursor = [], None
        while True:
            d = s.api.get(f"/customers?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
            assert len(d["items"]) <= limit
            seen += [c["id"] for c in d["items"]]
            cursor = d["next_cursor"]
            if not cursor:
                break
        assert seen == whole
    seen, cursor = [], None
    while True:  # newest first
        d = s.api.get("/audit?limit=9" + (f"&cursor={cursor}" if cursor else ""))
        seen += [a["seq"] for a in d["items"]]
        cursor = d["next_cursor"]
        if not cursor:
            break
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == len(seen) and seen[-1] == 1


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=99999999999999999999", "cursor=", "cursor=%00", "cursor=AAAA",
                                   "cursor=" + "A" * 3000, "cursor=" + base64.urlsafe_b64encode(b"1:" + b"x" * 100).decode().rstrip("="),
                                   "cursor=" + base64.urlsafe_b64encode(b"99999999999999999999:a").decode().rstrip("=")])
def test_bad_pages(s, query):
    for path in ("/customers", "/licenses", "/audit", "/pulls", "/events"):
        problem(s.api("GET", f"{path}?{query}"), 400)


# ---- idempotency and ETags ----------------------------------------------------------------------------------------------------


def test_idempotency(s):
    body = {"name": "once", "customer_id": s.cus["id"], "application_id": s.app["id"]}
    h = {"Idempotency-Key": "order-77"}
    first = s.api("POST", "/licenses", body, 201, headers=h)
    again = s.api("POST", "/licenses", body, 201, headers=h)
    assert again.json() == first.json() and again.headers["Location"] == first.headers["Location"] and again.headers["ETag"] == first.headers["ETag"]
    assert again.json()["key"] == first.json()["key"] and again.headers["Idempotent-Replayed"] == "true"
    problem(s.api("POST", "/licenses", {**body, "name": "else"}, headers=h), 422, "idempotency_key_reused")
    problem(s.api("POST", "/customers", {"slug": "e"}, headers=h), 422, "idempotency_key_reused")
    problem(s.api("POST", "/customers", {"slug": "e"}, headers={"Idempotency-Key": "k" * 256}), 400, "invalid_header")
    # a refused request is not kept: it may be put right
    problem(s.api("POST", "/customers", {"slug": "BAD"}, headers={"Idempotency-Key": "fix"}), 400)
    s.api("POST", "/customers", {"slug": "good-now"}, 201, headers={"Idempotency-Key": "fix"})
    # another token's key is another key
    admin, _ = token(s, "admin")
    assert admin("POST", "/customers", {"slug": "other-token"}, headers=h).status_code == 201
    # actions too
    a = s.api("POST", f"/licenses/{first.json()['id']}/activate", {}, 200, headers={"Idempotency-Key": "act"})
    assert s.api("POST", f"/licenses/{first.json()['id']}/activate", {}, 200, headers={"Idempotency-Key": "act"}).json() == a.json()
    # what is kept of a secret is sealed
    raw = b"".join(p.read_bytes() for p in s.dir.glob("pullgate.db*"))
    assert first.json()["key"].encode() not in raw


def test_idempotency_at_the_same_time(s):
    def post(_):
        return requests.post(s.admin_base + "/api/v1/customers", json={"name": "Racing"},
                             headers={"Authorization": "Bearer " + s.token, "Idempotency-Key": "race"})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert {a.status_code for a in answers} == {201} and len({a.json()["id"] for a in answers}) == 1


def test_etags(s, lic):
    url = f"/licenses/{lic['id']}"
    r = s.api("GET", url)
    assert r.headers["ETag"] == f'"{lic["etag"]}"'
    r2 = s.api("PATCH", url, {"grace_days": 3}, 200, headers={"If-Match": r.headers["ETag"]})
    assert r2.headers["ETag"] != r.headers["ETag"] and r2.json()["etag"] == r2.headers["ETag"].strip('"')
    for method, path, body in [("PATCH", url, {"grace_days": 9}), ("DELETE", url, None), ("POST", url + "/suspend", {}), ("POST", url + "/grants", {"selector": "all"}),
                               ("DELETE", url + "/grants/" + lic["grants"][0]["id"], None)]:
        problem(s.api(method, path, body, headers={"If-Match": r.headers["ETag"]}), 412, "etag_mismatch")
        problem(s.api(method, path, body, headers={"If-Match": 'W/' + r2.headers["ETag"]}), 412)
    assert s.api.get(url)["grace_days"] == 3
    s.api("PATCH", url, {"grace_days": 4}, 200, headers={"If-Match": "*"})
    s.api("PATCH", url, {"grace_days": 5}, 200)
    etag = s.api("GET", url).headers["ETag"]
    s.api("POST", url + "/grants", {"selector": "exact", "value": "9.9.9"}, 200, headers={"If-Match": f'"old", {etag}'})
    assert s.api("GET", url).headers["ETag"] != etag


# ---- upstreams ------------------------------------------------------------------------------------------------------------------


def test_upstreams_and_their_secrets(s):
    secret = "s3cr3t-canary-9f"
    u = s.api.post("/upstreams", {"name": "sealed", "url": "https://reg.example/", "username": "bot", "password": secret, "redirect_hosts": ["cdn.example:8443"],
                                  "realm": "https://auth.example/token"})
    assert u["password_set"] is True and u["url"] == "https://reg.example"
    s.api("PATCH", f"/upstreams/{u['id']}", {"username": "bot2"}, 200)
    shown = s.api.get(f"/upstreams/{u['id']}")
    assert shown["username"] == "bot2" and shown["password_set"] is True
    everything = json.dumps([s.api.get("/upstreams?limit=1000"), s.api.get("/audit?limit=1000"), shown])
    assert secret not in everything and "sealed\": \"" not in everything
    raw = b"".join(p.read_bytes() for p in s.dir.glob("pullgate.db*")) + s.admin.text().encode()
    assert secret.encode() not in raw
    assert s.api("PATCH", f"/upstreams/{u['id']}", {"password": None}, 200).json()["password_set"] is False
    assert s.api("DELETE", f"/upstreams/{u['id']}").status_code == 204
    problem(s.api("GET", f"/upstreams/{u['id']}"), 404)
    problem(s.api("DELETE", f"/upstreams/{s.up['id']}"), 409, "upstream_in_use")
    problem(s.api("POST", "/upstreams", {"name": "main", "url": "http://x.example"}), 409, "conflict", "name")


@pytest.mark.parametrize("url", ["https://user:pw@reg.example", "https://user:pw@reg.example%2F@evil.example/", "ftp://reg.example", "file:///etc/passwd", "reg.example",
                                 "https://", "https://reg.example/?x=1", "https://reg.example/#f", "http://reg example", "https://reg.example\\@evil", "", "http://[::1", "gopher://x"])
def test_bad_upstream_urls(s, url):
    problem(s.api("POST", "/upstreams", {"name": "bad", "url": url}), 400, "invalid_field", "url")


@pytest.mark.parametrize("field,value", [("redirect_hosts", ["http://x"]), ("redirect_hosts", ["a/b"]), ("redirect_hosts", ["u@h"]), ("redirect_hosts", ["*.example"]),
                                         ("redirects", "maybe"), ("ca", "no pem"), ("username", "a:b"), ("realm", "nope")])
def test_bad_upstream_fields(s, field, value):
    d = problem(s.api("POST", "/upstreams", {"name": "bad", "url": "http://x.example", field: value}), 400, "invalid_field")
    assert d["field"].startswith(field)


def test_upstream_test_says_what_is_wrong(s):
    d = s.api.post(f"/upstreams/{s.up['id']}/test", expect=200)
    assert d["ok"] is False and d["detail"]


# ---- applications -----------------------------------------------------------------------------------------------------------------


def test_application_life(s):
    a = s.api("POST", "/applications", {"slug": "crm", "repositories": [{"name": "crm/app", "upstream_id": s.up["id"], "upstream_repository": "acme/crm", "kind": "chart",
                                                                       "tag_template": "v{version}"}]}, 201)
    assert a.headers["Location"] == "/api/v1/applications/" + a.json()["id"]
    a = a.json()
    assert a["name"] == "crm" and a["repositories"][0]["tag_template"] == "v{version}"
    url = f"/applications/{a['id']}"
    s.api("PATCH", url, {"name": "CRM", "metadata": {"x": [1]}}, 200)
    r = s.api.post(url + "/repositories", {"name": "crm/db", "upstream_id": s.up["id"], "upstream_repository": "acme/db"})
    assert len(s.api.get(url)["repositories"]) == 2 and s.api.get(url)["metadata"] == {"x": [1]}
    s.api("PATCH", url + "/repositories/" + r["id"], {"tag_template": "r{version}"}, 200)
    problem(s.api("PATCH", url + "/repositories/" + r["id"], {"name": "crm/else"}), 400, "unknown_field", "name")
    problem(s.api("POST", "/applications", {"slug": "crm"}), 409, "conflict", "slug")
    for bad, field in [({"name": "Crm/App"}, "name"), ({"name": "crm/../x"}, "name"), ({"name": "crm//x"}, "name"), ({"tag_template": "x"}, "tag_template"),
                       ({"tag_template": "{version}{version}"}, "tag_template"), ({"kind": "other"}, "kind"), ({"upstream_id": "ups_none"}, "upstream_id"),
                       ({"upstream_repository": "/x"}, "upstream_repository")]:
        problem(s.api("POST", url + "/repositories", {"name": "crm/n", "upstream_id": s.up["id"], "upstream_repository": "n", **bad}), 400, None, field)
    # all or nothing
    problem(s.api("POST", "/applications", {"slug": "half", "repositories": [{"name": "half/a", "upstream_id": s.up["id"], "upstream_repository": "a"},
                                                                            {"name": "crm/app", "upstream_id": s.up["id"], "upstream_repository": "a"}]}), 409, "conflict",
            "repositories[1].name")
    assert all(x["slug"] != "half" for x in s.api.get("/applications?limit=1000")["items"])
    lic = s.add_license(s.cus["id"], a["id"], [{"selector": "all", "repositories": ["crm/db"]}], name="crm")
    problem(s.api("DELETE", url), 409, "application_in_use")
    problem(s.api("DELETE", url + "/repositories/" + r["id"]), 409, "repository_in_use")
    s.api("DELETE", f"/licenses/{lic['id']}", None, 204)
    s.api("DELETE", url + "/repositories/" + r["id"], None, 204)
    s.api("DELETE", url, None, 204)
    problem(s.api("GET", url), 404)
    s.api.post("/applications", {"slug": "crm", "repositories": [{"name": "crm/app", "upstream_id": s.up["id"], "upstream_repository": "acme/crm"}]})


def test_versions(s):
    url = f"/applications/{s.app['id']}/versions"
    v = s.api("PUT", url + "/3.0.0%2Bbuild.5", {"released_at": "2026-01-02", "channel": "stable", "notes": "line\nline"}, 200).json()
    assert v["version"] == "3.0.0+build.5" and v["released_at"] == "2026-01-02T00:00:00Z" and v["source"] == "record"
    v = s.api("PUT", url + "/3.0.0+build.5", {"channel": "lts"}, 200).json()
    assert v["channel"] == "lts" and v["released_at"] == "2026-01-02T00:00:00Z" and v["notes"] == "line\nline"
    v = s.api("PUT", url + "/3.0.0+build.5", {"tags": {"shop/api": "three", "shop/worker": "three-w"}, "released_at": None}, 200).json()
    assert v["released_at"] is None and {a["tag"] for a in v["artifacts"]} == {"three", "three-w"}
    problem(s.api("PUT", url + "/4.0.0", {"tags": {"shop/api": "three"}}), 409, "conflict", "tags")
    problem(s.api("PUT", url + "/4.0.0", {"tags": {"nope/x": "a"}}), 400, "unknown_reference", "tags")
    problem(s.api("PUT", url + "/4.0.0", {"tags": {"shop/api": "bad tag"}}), 400, "invalid_field", "tags")
    problem(s.api("PUT", url + "/4.0.0", {"released_at": "soon"}), 400, "invalid_field", "released_at")
    problem(s.api("PUT", url + "/-x", {}), 400, "invalid_field", "version")
    problem(s.api("GET", url + "/4.0.0"), 404)
    assert [x["version"] for x in s.api.get(url)["items"]] == ["3.0.0+build.5"]
    problem(s.api("PUT", url + "/3.0.0+build.5", {"channel": "x"}, headers={"If-Match": '"1"'}), 412)


# ---- customers and credentials -------------------------------------------------------------------------------------------------------


def test_customers(s):
    c = s.api.post("/customers", {"slug": "init", "name": "Initech", "email": "it@init.example", "metadata": {"tier": 1}})
    assert c["metadata"] == {"tier": 1} and c["disabled"] is False
    problem(s.api("POST", "/customers", {"slug": "init"}), 409, "conflict", "slug")
    assert s.api.post("/customers", {"name": "Init"})["slug"] == "init-2"
    d = s.api("PATCH", f"/customers/{c['id']}", {"disabled": True, "email": None}, 200).json()
    assert d["disabled"] is True and d["email"] == "" and d["name"] == "Initech"
    problem(s.api("PATCH", f"/customers/{c['id']}", {"slug": "x"}), 400, "unknown_field", "slug")
    lic = s.add_license(c["id"], s.app["id"])
    problem(s.api("DELETE", f"/customers/{c['id']}"), 409, "customer_in_use")
    s.api("DELETE", f"/licenses/{lic['id']}", None, 204)
    s.api("DELETE", f"/customers/{c['id']}", None, 204)
    problem(s.api("GET", f"/customers/{c['id']}"), 404)
    s.api.post("/customers", {"slug": "init"})
    assert [x["slug"] for x in s.api.get("/customers?slug=init")["items"]] == ["init"]


def test_credentials(s):
    url = f"/customers/{s.cus['id']}/credentials"
    r = s.api("POST", url, {"name": "cluster", "expires_at": "2090-01-01T00:00:00+02:00", "allowed_cidrs": ["10.0.0.0/8"]}, 201)
    c = r.json()
    assert r.headers["Location"].endswith(url + "/" + c["id"]) and c["username"] == "globex" and c["expires_at"] == "2089-12-31T22:00:00Z"
    assert re.fullmatch(r"pgc_[0-9A-Za-z]{49}", c["secret"]) and c["secret"].startswith(c["prefix"]) and len(c["prefix"]) <= 10
    everything = json.dumps([s.api.get(url + "?limit=1000"), s.api.get(url + "/" + c["id"]), s.api.get("/audit?limit=1000")])
    assert c["secret"] not in everything
    raw = b"".join(p.read_bytes() for p in s.dir.glob("pullgate.db*")) + s.admin.text().encode()
    assert c["secret"].encode() not in raw
    before = datetime.datetime.now(datetime.timezone.utc)
    n = s.api.post(f"{url}/{c['id']}/rotate", {"overlap": "7d"})
    assert n["secret"] != c["secret"] and n["name"] == "cluster" and n["allowed_cidrs"] == ["10.0.0.0/8"]
    old = s.api.get(f"{url}/{c['id']}")
    assert old["rotated_to"] == n["id"] and abs((iso(old["expires_at"]) - before).total_seconds() - 7 * 86400) < 5 * SLOW and old["status"] == "active"
    problem(s.api("POST", f"{url}/{c['id']}/rotate", {}), 409, "action_not_allowed")
    z = s.api.post(f"{url}/{n['id']}/rotate", {"overlap": "0s"})
    assert s.api.get(f"{url}/{n['id']}")["status"] == "expired"
    s.api("DELETE", f"{url}/{z['id']}", None, 204)
    assert s.api.get(f"{url}/{z['id']}")["status"] == "revoked"
    problem(s.api("POST", f"{url}/{z['id']}/rotate", {}), 409)
    for bad, field in [({"expires_at": "2001-01-01"}, "expires_at"), ({"expires_at": "292277026596-12-04T15:30:08Z"}, "expires_at"), ({"allowed_cidrs": ["10.0.0.0/33"]}, "allowed_cidrs[0]"),
                       ({"license_id": "lic_none"}, "license_id"), ({"secret": "pgc_mine"}, "secret"), ({"name": ""}, "name")]:
        problem(s.api("POST", url, {"name": "bad", **bad}), 400, None, field)
    problem(s.api("POST", f"{url}/{c['id']}/rotate", {"overlap": "91d"}), 409)
    other = s.add_customer("hooli")
    problem(s.api("GET", f"/customers/{other['id']}/credentials/{c['id']}"), 404)
    problem(s.api("DELETE", f"/customers/{other['id']}/credentials/{c['id']}"), 404)


def test_a_credential_for_one_license(s, lic):
    url = f"/customers/{s.cus['id']}/credentials"
    c = s.api.post(url, {"name": "bound", "license_id": lic["id"]})
    assert c["license_id"] == lic["id"]
    n = s.api.post(f"{url}/{c['id']}/rotate", {"overlap": "1h"})
    assert n["license_id"] == lic["id"]


# ---- licenses --------------------------------------------------------------------------------------------------------------------------


def test_license_answer(s):
    r = s.api("POST", "/licenses", {"name": "full", "customer_id": s.cus["id"], "application_id": s.app["id"], "status": "active", "starts_at": "2026-01-01",
                                    "expires_at": "2026-03-01", "grace_days": 7, "updates_until": "2026-02-01", "on_expiry": "keep_released", "period": "P1M",
                                    "allowed_cidrs": ["10.0.0.0/8", "2001:db8::/32"], "metadata": {"a": 1}, "environment": "prod", "order_number": "O-1",
                                    "grants": [{"selector": "range", "value": "^1.2"}, {"selector": "exact", "value": "2.0.0", "repositories": ["shop/api"], "on_move": "pin"}]}, 201)
    d = r.json()
    assert r.headers["Location"] == "/api/v1/licenses/" + d["id"] and r.headers["ETag"] == f'"{d["etag"]}"'
    assert d["starts_at"] == "2026-01-01T00:00:00Z" and d["expires_at"] == "2026-03-01T23:59:59Z" and d["updates_until"] == "2026-02-01T23:59:59Z"
    assert re.fullmatch(r"[0-9A-Z]{6}(-[0-9A-Z]{6}){3}", d["key"]) and d["key"].startswith(d["key_prefix"]) and len(d["key_prefix"]) == 6
    assert d["effective_status"] == "expired" and d["status"] == "active" and [g["on_move"] for g in d["grants"]] == ["follow", "pin"]
    assert "key" not in s.api.get("/licenses/" + d["id"]) and d["key"] not in json.dumps(s.api.get("/audit?limit=1000"))
    assert s.api.get("/licenses?order_number=O-1")["items"][0]["id"] == d["id"]
    plain = s.api.post("/licenses", {"name": "plain", "customer_id": s.cus["id"], "application_id": s.app["id"]})
    assert plain["status"] == "inactive" and plain["grants"] == [] and plain["expires_at"] is None


def test_expiry_as_a_date_ends_in_the_vendors_zone(s):
    v = s.api.get("/vendors")["items"][0]
    s.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "America/New_York"}, 200)
    try:
        d = s.api.post("/licenses", {"name": "ny", "customer_id": s.cus["id"], "application_id": s.app["id"], "starts_at": "2026-01-10", "expires_at": "2026-07-04"})
        assert d["starts_at"] == "2026-01-10T05:00:00Z" and d["expires_at"] == "2026-07-05T03:59:59Z"
        # a period keeps the end of the day, over the change of clocks too
        d = s.api.post(f"/licenses/{d['id']}/extend", {"period": "P6M"}, 200)
        assert d["expires_at"] == "2027-01-05T04:59:59Z"
    finally:
        s.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "UTC"}, 200)


BAD_LICENSES = [
    ({"expires_at": "soon"}, "invalid_field", "expires_at"), ({"expires_at": "292277026596-12-04T15:30:08Z"}, "invalid_field", "expires_at"), ({"expires_at": 5}, "invalid_field", "expires_at"),
    ({"expires_at": "2026-02-30"}, "invalid_field", "expires_at"), ({"starts_at": "2027-01-01", "expires_at": "2026-12-31"}, "invalid_window", "expires_at"),
    ({"starts_at": "2027-01-01T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z"}, "invalid_window", "expires_at"), ({"grace_days": -1}, "invalid_field", "grace_days"),
    ({"grace_days": 1.5}, "invalid_field", "grace_days"), ({"grace_days": 10**9}, "invalid_field", "grace_days"), ({"status": "revoked"}, "invalid_field", "status"),
    ({"status": "expired"}, "invalid_field", "status"), ({"customer_id": "nope"}, "unknown_reference", "customer_id"), ({"application_id": "nope"}, "unknown_reference", "application_id"),
    ({"versions": ["*"]}, "unknown_field", "versions"), ({"key": "AAAAAA"}, "unknown_field", "key"), ({"vendor_id": "x"}, "unknown_field", "vendor_id"),
    ({"allowed_cidrs": ["300.1.1.1"]}, "invalid_field", "allowed_cidrs[0]"), ({"allowed_cidrs": "10.0.0.0/8"}, "invalid_field", "allowed_cidrs"), ({"on_expiry": "stay"}, "invalid_field", "on_expiry"),
    ({"period": "1 month"}, "invalid_field", "period"), ({"upstream_credential_id": "ups_x"}, "unknown_reference", "upstream_credential_id"), ({"name": ""}, "invalid_field", "name"),
    ({"grants": [{"selector": "range", "value": "^^1"}]}, "invalid_field", "grants[0].value"), ({"grants": [{"selector": "exact", "value": ""}]}, "invalid_field", "grants[0].value"),
    ({"grants": [{"selector": "all"}, {"selector": "glob", "value": "[a"}]}, "invalid_field", "grants[1].value"), ({"grants": [{"selector": "digest", "value": "sha256:xyz"}]}, "invalid_field", "grants[0].value"),
    ({"grants": [{"selector": "everything"}]}, "invalid_field", "grants[0].selector"), ({"grants": [{"value": "1"}]}, "missing_field", "grants[0].selector"), ({"grants": [{"selector": "channel"}]}, "invalid_field", "grants[0].value"),
    ({"grants": [{"selector": "all", "repositories": []}]}, "invalid_field", "grants[0].repositories"), ({"grants": [{"selector": "all", "repositories": ["other/x"]}]}, "unknown_reference", "grants[0].repositories[0]"),
    ({"grants": [{"selector": "all", "not_before": "2027-01-02", "not_after": "2027-01-01"}]}, "invalid_window", "grants[0].not_after"), ({"grants": [{"selector": "all", "x": 1}]}, "unknown_field", "grants[0].x"),
    ({"grants": {"selector": "all"}}, "invalid_field", "grants"), ({"grants": ["all"]}, "invalid_field", None), ({"grants": [{"selector": "all", "on_move": "stay"}]}, "invalid_field", "grants[0].on_move"),
    ({"grants": [{"selector": "exact", "value": "1.0.%d" % i} for i in range(201)]}, "invalid_field", "grants"),
]


@pytest.mark.parametrize("bad,code,field", BAD_LICENSES, ids=[json.dumps(b[0])[:60] for b in BAD_LICENSES])
def test_bad_licenses_change_nothing(s, bad, code, field):
    def events():  # but for what the clock does of itself meanwhile
        return [e for e in s.api.get("/events?limit=1000")["items"] if e["actor"] != "system:clock"]

    before, seen = s.api.get("/licenses?limit=1000"), events()
    db = sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True)
    outbox = db.execute("SELECT COUNT(*) FROM outbox").fetchone()
    problem(s.api("POST", "/licenses", {"name": "bad", "customer_id": s.cus["id"], "application_id": s.app["id"], **bad}), 400, code, field)
    assert s.api.get("/licenses?limit=1000") == before and events() == seen
    assert db.execute("SELECT COUNT(*) FROM outbox").fetchone() == outbox
    db.close()


ACTIONS = {"activate": {"inactive": "active"}, "suspend": {"active": "suspended"}, "reinstate": {"suspended": "active"},
           "revoke": {"inactive": "revoked", "active": "revoked", "suspended": "revoked"}}


@pytest.mark.parametrize("state", ["inactive", "active", "suspended", "revoked"])
def test_every_action_in_every_state(s, state):
    def fresh(n=[0]):
        n[0] += 1
        d = s.add_license(s.cus["id"], s.app["id"], name=f"{state}-{n[0]}", status="inactive" if state in ("inactive", "revoked") else "active", expires_at="2090-01-31")
        if state == "suspended":
            d = s.api.post(f"/licenses/{d['id']}/suspend", {"reason": "overdue"}, 200)
        if state == "revoked":
            d = s.api.post(f"/licenses/{d['id']}/revoke", {"reason": "refund"}, 200)
        return d

    d = fresh()
    assert d["status"] == state == d["effective_status"]
    for action, moves in ACTIONS.items():
        d = fresh()
        r = s.api("POST", f"/licenses/{d['id']}/{action}", {"reason": "why"})
        if state in moves:
            assert action in d["allowed_actions"]
            assert r.status_code == 200 and r.json()["status"] == moves[state]
            assert r.json()["status_reason"] == ("why" if moves[state] != "active" else "")
            e = s.api.get(f"/events?license={d['id']}")["items"][0]
            assert (e["from_status"], e["to_status"], e["reason"]) == (state, moves[state], "why")
        else:
            assert action not in d["allowed_actions"]
            p = problem(r, 409, "action_not_allowed")
            assert p["allowed_actions"] == d["allowed_actions"]
            assert s.api.get(f"/licenses/{d['id']}")["etag"] == d["etag"]
    d = fresh()
    for action, body in [("renew", {"period": "P1M"}), ("extend", {"period": "P1M"}), ("rotate-key", {}), ("grants", {"selector": "all"})]:
        assert s.api("POST", f"/licenses/{d['id']}/{action}", body).status_code == (409 if state == "revoked" else 200)
        assert (action in d["allowed_actions"]) == (state != "revoked")
    assert s.api("PATCH", f"/licenses/{d['id']}", {"name": d["name"] + "x"}).status_code == (409 if state == "revoked" else 200)
    assert s.api("DELETE", f"/licenses/{d['id']}").status_code == 204
    problem(s.api("GET", f"/licenses/{d['id']}"), 404)
    problem(s.api("POST", f"/licenses/{d['id']}/activate", {}), 404)
    assert d["id"] in [x["id"] for x in s.api.get("/licenses?archived=true&limit=1000")["items"]]


def test_renew_and_extend(s, lic):
    url = f"/licenses/{lic['id']}"
    assert s.api.post(url + "/renew", {"period": "P1M"}, 200)["expires_at"] == "2090-06-30T23:59:59Z"
    assert s.api.post(url + "/extend", {"period": "7d"}, 200)["expires_at"] == "2090-07-07T23:59:59Z"
    assert s.api.post(url + "/extend", {"period": "P1Y2M3D"}, 200)["expires_at"] == "2091-09-10T23:59:59Z"
    problem(s.api("POST", url + "/renew", {}), 400, "missing_field", "period")
    s.api("PATCH", url, {"period": "P1Y"}, 200)
    assert s.api.post(url + "/renew", {}, 200)["expires_at"] == "2092-09-10T23:59:59Z"
    assert s.api.post(url + "/renew", {"expires_at": "2093-01-01"}, 200)["expires_at"] == "2093-01-01T23:59:59Z"
    problem(s.api("POST", url + "/renew", {"expires_at": "2092-01-01"}), 400, "invalid_window", "expires_at")
    problem(s.api("POST", url + "/renew", {"expires_at": "2094-01-01", "period": "P1M"}), 400, "invalid_field", "period")
    problem(s.api("POST", url + "/extend", {}), 400, "missing_field", "period")
    for bad in ("P", "1M", "P1H", "PM", "P0M", "P-1M", "P99999Y", "P1D1M", "0s", "forever", "P1M "):
        problem(s.api("POST", url + "/extend", {"period": bad}), 400, "invalid_field", "period")
    s.api("PATCH", url, {"expires_at": None}, 200)
    problem(s.api("POST", url + "/extend", {"period": "P1M"}), 409, "no_expiry")
    problem(s.api("POST", url + "/renew", {"period": "P1M"}), 409, "no_expiry")
    # over: from now on
    s.api("PATCH", url, {"expires_at": "2020-01-01"}, 200)
    d = s.api.post(url + "/renew", {"period": "30d"}, 200)
    assert abs((iso(d["expires_at"]) - datetime.datetime.now(datetime.timezone.utc)).total_seconds() - 30 * 86400) < 10 * SLOW
    # in its grace time: from its end, so that nothing is given away
    end = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    s.api("PATCH", url, {"expires_at": end.strftime("%Y-%m-%dT%H:%M:%SZ"), "grace_days": 5}, 200)
    d = s.api.post(url + "/renew", {"period": "30d"}, 200)
    assert abs((iso(d["expires_at"]) - end).total_seconds() - 30 * 86400) < 2


def test_grants(s, lic):
    url = f"/licenses/{lic['id']}"
    d = s.api.post(url + "/grants", {"selector": "channel", "value": "beta", "not_after": "2030-01-01", "note": "early access"}, 200)
    assert d["id"] == lic["id"] and len(d["grants"]) == 2
    g = d["grants"][1]
    d = s.api("PATCH", f"{url}/grants/{g['id']}", {"not_before": "2029-01-01", "repositories": ["shop/worker"]}, 200).json()
    g2 = d["grants"][1]
    assert g2["not_before"] == "2029-01-01T00:00:00Z" and g2["not_after"] == g["not_after"] and g2["repositories"] == ["shop/worker"] and g2["note"] == "early access"
    problem(s.api("PATCH", f"{url}/grants/{g['id']}", {"not_before": "2031-01-01"}), 400, "invalid_window", "not_after")
    problem(s.api("PATCH", f"{url}/grants/{g['id']}", {"value": "x"}), 400, "unknown_field", "value")
    problem(s.api("PATCH", f"{url}/grants/{g['id']}", {"repositories": []}), 400, "invalid_field", "repositories")
    problem(s.api("POST", url + "/grants", {"selector": "range", "value": "1.2.3.4.5"}), 400, "invalid_field", "value")
    problem(s.api("DELETE", f"{url}/grants/grt_none"), 404)
    assert s.api("DELETE", f"{url}/grants/{g['id']}?reason=trial%20over").status_code == 204
    e = s.api.get(f"/events?license={lic['id']}")["items"][0]
    assert e["event"] == "license.grant_removed" and e["reason"] == "trial over" and e["data"]["id"] == g["id"]
    assert s.api("DELETE", f"{url}/grants/{lic['grants'][0]['id']}", {"reason": "none left"}).status_code == 204
    assert s.api.get(url)["grants"] == []


def test_license_names_are_unique_for_a_customer(s, lic):
    problem(s.api("POST", "/licenses", {"name": lic["name"], "customer_id": s.cus["id"], "application_id": s.app["id"]}), 409, "conflict", "name")
    s.api("DELETE", f"/licenses/{lic['id']}", None, 204)
    s.api.post("/licenses", {"name": lic["name"], "customer_id": s.cus["id"], "application_id": s.app["id"]})


def test_patch_touches_what_it_names(s, lic):
    d = s.api("PATCH", f"/licenses/{lic['id']}", {"order_number": "A-7", "metadata": {"x": 1}}, 200).json()
    for k in lic:
        if k not in ("key", "etag", "updated_at", "order_number", "metadata"):
            assert d[k] == lic[k], k
    problem(s.api("PATCH", f"/licenses/{lic['id']}", {"status": "revoked"}), 400, "unknown_field", "status")
    problem(s.api("PATCH", f"/licenses/{lic['id']}", {"customer_id": "x"}), 400, "unknown_field", "customer_id")
    problem(s.api("PATCH", f"/licenses/{lic['id']}", {"starts_at": "2095-01-01"}), 400, "invalid_window", "expires_at")


# ---- audit --------------------------------------------------------------------------------------------------------------------------------


def test_every_change_and_refusal_leaves_a_row(s):
    c = s.api.post("/customers", {"name": "audit-probe"})
    s.api("PATCH", f"/customers/{c['id']}", {"name": "audit-probe-2"}, 200)
    problem(s.api("PATCH", f"/customers/{c['id']}", {"nome": "x"}), 400)
    viewer, t = token(s, "viewer")
    problem(viewer("DELETE", f"/customers/{c['id']}"), 403)
    rows = s.api.get(f"/audit?object={c['id']}")["items"]
    assert [(r["action"], r["outcome"]) for r in rows] == [("customer.delete", "role_not_allowed"), ("customer.update", "unknown_field"), ("customer.update", "ok"), ("customer.create", "ok")]
    assert rows[0]["actor"] == f"token:{t['id']}" and rows[2]["before"]["name"] == "audit-probe" and rows[2]["after"]["name"] == "audit-probe-2"
    assert rows[0]["address"] == "127.0.0.1" and rows[0]["request_id"]
    v = s.api.get("/audit/verification")
    assert v["ok"] is True and v["records"] >= len(rows)


def test_a_changed_audit_row_is_seen():
    with admin_stack() as stack:
        for i in range(4):
            stack.add_customer(f"c{i}")
        stack.admin.stop()
        db = sqlite3.connect(stack.dir / "pullgate.db")
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("UPDATE audit SET actor='nobody' WHERE seq=3")
        db.execute("DROP TRIGGER audit_no_update")
        db.execute("UPDATE audit SET actor='nobody' WHERE seq=3")
        db.commit()
        db.close()
        stack.start_admin()
        v = stack.api.get("/audit/verification")
        assert v["ok"] is False and "record 3" in v["detail"]


def test_outbox_and_rows_go_together(s):
    """Every fact that a change touched is in the outbox of the same transaction, and its epoch is the outbox id."""
    db = sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True)

    def newest():
        return db.execute("SELECT COALESCE(MAX(id),0) FROM outbox").fetchone()[0]

    def facts_since(n):
        return {f for f, in db.execute("SELECT fact FROM outbox WHERE id>?", (n,))}

    n = newest()
    c = s.add_customer("facts")
    assert facts_since(n) == {f"c:{c['id']}"}
    n = newest()
    lic = s.add_license(c["id"], s.app["id"])
    got = facts_since(n)
    assert f"c:{c['id']}" in got and len([f for f in got if f.startswith("k:")]) == 1 and len(got) == 2
    n = newest()
    s.api.post(f"/licenses/{lic['id']}/rotate-key", {}, 200)
    got = facts_since(n)
    assert len([f for f in got if f.startswith("k:")]) == 2 and f"c:{c['id']}" in got
    n = newest()
    s.api("DELETE", f"/licenses/{lic['id']}", None, 204)
    gone = [f for f in facts_since(n) if f.startswith("k:")]
    assert len(gone) == 1 and db.execute("SELECT is_gone FROM fact_epochs WHERE fact=?", gone).fetchone() == (1,)
    assert db.execute("SELECT COUNT(*) FROM fact_epochs e WHERE epoch<>(SELECT MAX(id) FROM outbox o WHERE o.fact=e.fact)").fetchone() == (0,)
    db.close()


# ---- explain without a registry: what is known of the store alone ----------------------------------------------------------------------------


def test_explain(s, lic):
    q = "/explain?customer=globex&repository=shop/api&reference="
    s.add_customer("nolic")
    d = s.api.get("/explain?customer=nolic&repository=shop/api&reference=1.0.0")
    assert (d["decision"], d["reason"], d["license_id"]) == ("deny", "no_license", None) and d["considered"] == [] and d["message"]
    same = s.api.get("/explain?customer=nolic&repository=not/there&reference=1.0.0")
    assert (same["decision"], same["reason"]) == ("deny", "no_license")
    d = s.api.get(q + "1.4.0")
    assert d["decision"] == "allow" and d["version"] == "1.4.0" and lic["id"] in [x["license_id"] for x in d["considered"]]
    d = s.api.get(q + "1.4.0&at=2099-01-01")
    assert d["at"] == "2099-01-01T00:00:00Z"
    problem(s.api("GET", "/explain?repository=shop/api&reference=1"), 400, "missing_parameter", "customer")
    problem(s.api("GET", "/explain?customer=nobody&repository=shop/api&reference=1"), 404)
    problem(s.api("GET", "/explain?customer=globex&repository=../x&reference=1"), 400, "invalid_parameter", "repository")
    problem(s.api("GET", q + "a%20b"), 400, "invalid_parameter", "reference")
    problem(s.api("GET", q + "1.0.0&at=soon"), 400, "invalid_parameter", "at")
    problem(s.api("GET", q + "1.0.0&client=nope"), 400, "invalid_parameter", "client")


def test_explain_says_why():
    with admin_stack() as stack:
        up = stack.add_upstream()
        app = stack.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        cases = {  # slug: (license, reason)
            "exp": ({"expires_at": "2020-01-01"}, "expired"), "sus": ({}, "suspended"), "rev": ({}, "revoked"), "ina": ({"status": "inactive"}, "inactive"),
            "sch": ({"starts_at": "2090-01-01"}, "scheduled"), "net": ({"allowed_cidrs": ["192.0.2.0/24"]}, "ip_not_allowed"),
        }
        for slug, (kw, reason) in cases.items():
            c = stack.add_customer(slug)
            lic = stack.add_license(c["id"], app["id"], name=f"{slug} license", **{"status": "active", **kw})
            if slug in ("sus", "rev"):
                stack.api.post(f"/licenses/{lic['id']}/{'suspend' if slug == 'sus' else 'revoke'}", {"reason": "unpaid"}, 200)
            d = stack.api.get(f"/explain?customer={slug}&repository=shop/api&reference=1.0.0&client=10.1.2.3")
            assert (d["decision"], d["reason"], d["license_id"]) == ("deny", reason, lic["id"]), d
            assert f"{slug} license" in d["message"] or reason in ("ip_not_allowed",)
            assert d["considered"][0]["reason"] == reason and d["considered"][0]["decision"] == "deny"
        d = stack.api.get("/explain?customer=net&repository=shop/api&reference=1.0.0&client=192.0.2.9")
        assert d["decision"] == "allow"
        d = stack.api.get("/explain?customer=exp&repository=shop/api&reference=1.0.0&at=2019-06-01T00:00:00Z")
        assert d["decision"] == "allow" and d["considered"][0]["effective_status"] == "active"
        d = stack.api.get("/explain?customer=net&client=192.0.2.9&repository=shop/api&reference=sha256:" + "0" * 64)
        assert d["decision"] == "unknown"
