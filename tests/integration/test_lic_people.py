"""People and what they may: roles and scopes over every route of the OpenAPI document, vendors that see nothing of each other, signing in
with one and two factors, invitations, customers' people in the portal, and the audit that tells of them."""
import concurrent.futures
import json
import os
import re
import sqlite3
import statistics
import subprocess
import time

import pytest
import requests

from admin_fixture import problem, second_vendor, token
from stack import BIN, SLOW, Api, Stack, basic, wait_for
from test_admin_openapi import totp_now

ROLES = ["viewer", "support", "license_manager", "admin", "owner", "operator"]
PORTAL_ROLES = ["customer_viewer", "customer_admin"]
CANARY = "upstream-canary-7f3a"


@pytest.fixture(scope="module")
def w():
    s = Stack(n_proxies=1, limits={"auth_failures_per_minute": 100000, "sign_in_failures_per_minute": 100000})
    try:
        s.registry.push_image("acme/api", "1.0.0", [b"layer"])
        s.up = s.add_upstream()
        s.spare = s.api.post("/upstreams", {"name": "spare", "url": s.upstream.url, "username": "robot", "password": CANARY})
        s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], s.up["id"])
        s.cus = s.add_customer("globex")
        s.lic = s.add_license(s.cus["id"], s.app["id"])
        s.cred = s.add_credential(s.cus["id"])
        s.doc = requests.get(s.admin_base + "/api/v1/openapi.json").json()
        s.vendor = s.api.get("/vendors?slug=default")["items"][0]
        yield s
    finally:
        s.close()


COUNT = iter(range(10**6))
PASSWORD = "a long walk by the sea"


def person(w, role="viewer", password=PASSWORD, api=None, **kw):
    """One of the vendor's, who can sign in."""
    return (api or w.api).post("/users", {"email": f"p{next(COUNT)}@vendor.example", "role": role, "password": password, **kw})


def customers_person(w, role="customer_viewer", customer=None, **kw):
    return w.api.post(f"/customers/{customer or w.cus['id']}/users", {"email": f"c{next(COUNT)}@globex.example", "role": role, "password": PASSWORD, **kw})


def sign_in(w, email, password=PASSWORD, portal=False, **kw):
    return requests.post(w.admin_base + ("/portal/v1" if portal else "/api/v1") + "/sessions", json={"email": email, "password": password, **kw})


def session(w, user, **kw):
    r = sign_in(w, user["email"], **kw)
    assert r.status_code == 201, r.text
    return Api(w.admin_base, r.json()["token"])


class Portal:
    def __init__(self, w, user=None, auth=None):
        self.base = w.admin_base + "/portal/v1"
        self.h = {"Authorization": auth or "Bearer " + sign_in(w, user["email"], portal=True).json()["token"]}

    def __call__(self, method, path, body=None):
        return requests.request(method, self.base + path, headers=self.h, json=body)

    def get(self, path):
        r = self("GET", path)
        assert r.status_code == 200, r.text
        return r.json()


def operations(doc):
    return [(path, method.upper(), op) for path, ops in doc["paths"].items() for method, op in ops.items()]


def fill(path):
    return re.sub(r"{\w+}", "nope", path)


def ask(w, auth, method, path, body=None):
    h = {"Authorization": auth} if auth else {}
    return requests.request(method, w.admin_base + path, headers=h, json=body if body is not None else {} if method != "GET" else None)


# ---- roles and scopes -----------------------------------------------------------------------------------------------------------


def test_every_route_for_every_role(w):
    """Allowed if and only if the route's role is reached; a portal's sign-in is nothing in the API, and the other way round."""
    vendor = {r: "Bearer " + token(w, r)[0].token for r in ROLES}
    portal = {r: Portal(w, customers_person(w, r)).h["Authorization"] for r in PORTAL_ROLES}
    portal["credential"] = basic("globex", w.cred["secret"])
    s = requests.Session()
    n = 0
    for path, method, op in operations(w.doc):
        if not op["security"]:
            continue
        is_portal = path.startswith("/portal/")
        order = PORTAL_ROLES if is_portal else ROLES
        for who, auth in {**vendor, **portal}.items():
            r = s.request(method, w.admin_base + fill(path) + "?zz=1", headers={"Authorization": auth}, json={} if method != "GET" else None)
            if (who in ROLES) == is_portal:
                want = (401, "unauthorized")
            elif order.index("customer_viewer" if who == "credential" else who) < order.index(op["x-role"]):
                want = (403, "role_not_allowed")
            else:
                want = (400, "unknown_parameter")
                if r.status_code == 404:  # a path whose parameter says which others it takes
                    want = (404, "not_found")
            assert (r.status_code, r.json()["code"]) == want, (who, method, path, r.text)
            n += 1
    assert n > 9 * 80


def test_every_route_for_its_scope_and_another(w):
    scopes = sorted({op["x-scope"] for _, _, op in operations(w.doc) if "x-scope" in op})
    assert {"licenses:read", "licenses:write", "customers:write", "explain"} <= set(scopes)
    tokens = {s: "Bearer " + token(w, "operator", scopes=[s])[0].token for s in scopes}
    for path, method, op in operations(w.doc):
        if "x-scope" not in op:
            continue
        own = op["x-scope"]
        writes = own.replace(":read", ":write")
        other = next(s for s in scopes if s not in (own, writes))
        r = ask(w, tokens[own], method, fill(path) + "?zz=1")
        assert r.json()["code"] in ("unknown_parameter", "not_found"), (path, r.text)
        if writes in tokens:  # who may write may read
            assert ask(w, tokens[writes], method, fill(path) + "?zz=1").json()["code"] == r.json()["code"]
        problem(ask(w, tokens[other], method, fill(path) + "?zz=1"), 403, "scope_not_allowed")
    reader, _ = token(w, "admin", scopes=["licenses:read"])
    assert reader.get(f"/licenses/{w.lic['id']}")["id"] == w.lic["id"]
    problem(reader("POST", f"/licenses/{w.lic['id']}/suspend", {"reason": "x"}), 403, "scope_not_allowed")
    assert reader.get("/me")["scopes"] == ["licenses:read"]  # of oneself always
    problem(w.api("POST", "/tokens", {"name": "x", "role": "viewer", "scopes": ["licences:read"]}), 400, "unknown_scope", "scopes[0]")
    problem(w.api("POST", "/tokens", {"name": "x", "role": "viewer", "scopes": [""]}), 400)
    # The role still bounds it.
    low, _ = token(w, "viewer", scopes=["licenses:write"])
    problem(low("POST", f"/licenses/{w.lic['id']}/suspend", {"reason": "x"}), 403, "role_not_allowed")


def test_nobody_grants_more_than_he_has(w):
    owner, _ = token(w, "owner")
    problem(owner("POST", "/tokens", {"name": "x", "role": "operator"}), 403, "rights_exceeded", "role")
    problem(owner("POST", "/users", {"email": "up@vendor.example", "role": "operator"}), 403, "rights_exceeded", "role")
    narrow, _ = token(w, "owner", scopes=["tokens:write", "users:write", "licenses:read"], expires_at="2090-01-01")
    for body, field in [({"role": "viewer"}, "scopes"), ({"role": "viewer", "scopes": ["licenses:write"]}, "scopes"),
                        ({"role": "viewer", "scopes": ["licenses:read"]}, "expires_at"),
                        ({"role": "viewer", "scopes": ["licenses:read"], "expires_at": "2091-01-01"}, "expires_at")]:
        problem(narrow("POST", "/tokens", {"name": "x", **body}), 403, "rights_exceeded", field)
    assert narrow("POST", "/tokens", {"name": "x", "role": "viewer", "scopes": ["licenses:read"], "expires_at": "2089-01-01"}).status_code == 201
    problem(narrow("POST", "/users", {"email": "n@vendor.example", "role": "viewer"}), 403, "rights_exceeded")
    # An operator belongs to the first vendor.
    _, other = second_vendor(w, "granting")
    acting = {"headers": {"X-Pullgate-Vendor": "granting"}}
    problem(w.api("POST", "/tokens", {"name": "x", "role": "operator"}, **acting), 403, "rights_exceeded", "role")
    assert w.api.post("/tokens", {"name": "x", "role": "owner"}, **acting)["role"] == "owner"
    # Role changes: not one's own, not of somebody above, not to above.
    a, b, op = person(w, "owner"), person(w, "owner"), person(w, "operator")
    me = session(w, a)
    problem(me("PATCH", f"/users/{a['id']}", {"role": "admin"}), 403, "rights_exceeded", "role")
    problem(me("PATCH", f"/users/{b['id']}", {"role": "operator"}), 403, "rights_exceeded", "role")
    for method, path in [("PATCH", ""), ("DELETE", ""), ("POST", "/invite"), ("DELETE", "/totp"), ("DELETE", "/sessions")]:
        problem(me(method, f"/users/{op['id']}{path}", {"name": "x"} if method == "PATCH" else {}), 403, "rights_exceeded")
    for method, path in [("POST", "/invite"), ("DELETE", "/totp")]:  # one's own needs the password
        problem(me(method, f"/users/{a['id']}{path}", {}), 403, "rights_exceeded")
    mine = me.post("/tokens", {"name": "mine", "role": "owner"})
    problem(Api(w.admin_base, mine["token"])("PATCH", f"/users/{a['id']}", {"role": "admin"}), 403, "rights_exceeded", "role")
    problem(owner("DELETE", f"/tokens/{[t for t in w.api.get('/tokens')['items'] if t['is_bootstrap']][0]['id']}"), 403, "rights_exceeded")


def test_tokens_of_a_person_reach_as_far_as_he_does_and_die_with_him(w):
    u = person(w, "owner")
    me = session(w, u)
    t = Api(w.admin_base, me.post("/tokens", {"name": "his", "role": "owner"})["token"])
    made_by_token = Api(w.admin_base, t.post("/tokens", {"name": "its", "role": "owner"})["token"])
    problem(t("POST", "/vendors", {"slug": "no", "name": "no"}), 403, "role_not_allowed")
    w.api("PATCH", f"/users/{u['id']}", {"role": "viewer"}, 200)
    for api in (me, t, made_by_token):
        assert api("GET", "/customers").status_code == 200
        problem(api("GET", "/users"), 403, "role_not_allowed")
    w.api("PATCH", f"/users/{u['id']}", {"disabled": True}, 200)
    for api in (me, t, made_by_token):
        problem(api("GET", "/customers"), 401)
    problem(sign_in(w, u["email"]), 401, "unauthorized")
    w.api("PATCH", f"/users/{u['id']}", {"disabled": False}, 200)
    assert t("GET", "/customers").status_code == 200
    problem(me("GET", "/customers"), 401)  # sessions do not come back
    w.api("DELETE", f"/users/{u['id']}", expect=204)
    for api in (me, t, made_by_token):
        problem(api("GET", "/customers"), 401)
    problem(w.api("GET", f"/users/{u['id']}"), 404)
    again = person(w, "viewer", **{"name": "the address is free again"})
    assert again["status"] == "active"
    # His name outlives him in the audit.
    row = [r for r in w.api.get(f"/audit?actor=user:{u['id']}")["items"] if r["action"] == "token.create"][0]
    assert row["actor_name"] == u["email"]


def test_the_last_owner_stays(w):
    other, _ = second_vendor(w, "lonely")
    a = person(w, "owner", api=other)
    url = f"/users/{a['id']}"
    for method, body in [("PATCH", {"role": "admin"}), ("PATCH", {"disabled": True}), ("DELETE", None)]:
        problem(other(method, url, body), 409, "last_owner")
    invited = other.post("/users", {"email": "later@vendor.example", "role": "owner"})
    problem(other("DELETE", url), 409, "last_owner")  # who was invited is none yet
    r = requests.post(w.admin_base + "/api/v1/invitations/accept", json={"secret": invited["secret"], "password": PASSWORD})
    assert r.status_code == 200
    assert other("PATCH", url, {"role": "admin"}).status_code == 200
    problem(other("DELETE", f"/users/{invited['id']}"), 409, "last_owner")


# ---- vendors ----------------------------------------------------------------------------------------------------------------------


def test_an_operator_acts_for_a_vendor(w):
    _, v = second_vendor(w, "acted-for")
    acting = {"headers": {"X-Pullgate-Vendor": "acted-for"}}
    c = w.api.post("/customers", {"slug": "theirs"}, **acting)
    assert [i["slug"] for i in w.api.get("/customers", **acting)["items"]] == ["theirs"]
    problem(w.api("GET", f"/customers/{c['id']}"), 404)
    rows = w.api.get("/audit", **acting)["items"]
    assert [r["action"] for r in rows][:1] == ["customer.create"] and rows[0]["actor_name"] == "bootstrap"
    problem(w.api("GET", "/customers", headers={"X-Pullgate-Vendor": "nobody"}), 404)
    owner, _ = token(w, "owner")
    problem(owner("GET", "/customers", **acting), 403, "role_not_allowed")
    assert {i["slug"] for i in w.api.get("/vendors?limit=1000")["items"]} >= {"default", "acted-for"}
    assert [i["slug"] for i in owner.get("/vendors")["items"]] == ["default"]
    problem(owner("GET", f"/vendors/{v['id']}"), 404)
    w.api("PATCH", f"/vendors/{v['id']}", {"support_contact": "help@acted.example"}, 200)
    assert w.api.get("/audit", **acting)["items"][0]["action"] == "vendor.update"


def test_a_suspended_vendors_customers_pull_nothing(w):
    api, v = second_vendor(w, "sleepy")
    up = api.post("/upstreams", {"name": "main", "url": w.upstream.url, "username": w.upstream.auth[0], "password": w.upstream.auth[1]})
    app = api.post("/applications", {"slug": "s", "name": "S", "repositories": [{"name": "sleepy/api", "upstream_id": up["id"], "upstream_repository": "acme/api", "kind": "image"}]})
    cus = api.post("/customers", {"slug": "dreamer"})
    cred = api.post(f"/customers/{cus['id']}/credentials", {"name": "c"})
    api.post("/licenses", {"name": "L", "customer_id": cus["id"], "application_id": app["id"], "status": "active", "grants": [{"selector": "all", "value": "*"}]})
    auth = basic("dreamer", cred["secret"])
    user = api.post(f"/customers/{cus['id']}/users", {"email": "d@dreamer.example", "role": "customer_viewer", "password": PASSWORD})
    seat = Portal(w, user)
    w.wait_status("/v2/sleepy/api/manifests/1.0.0", auth, 200)
    problem(w.api("POST", f"/vendors/{v['id']}/suspend", {}), 400, "missing_field", "reason")
    assert w.api("POST", f"/vendors/{v['id']}/suspend", {"reason": "unpaid"}, 200).json()["suspended_reason"] == "unpaid"
    w.wait_status("/v2/sleepy/api/manifests/1.0.0", auth, 403)
    problem(seat("GET", "/licenses"), 403, "customer_disabled")
    problem(api("POST", "/customers", {"slug": "more"}), 403, "vendor_suspended")
    assert api("GET", "/customers").status_code == 200
    assert w.get("/v2/shop/api/manifests/1.0.0", basic("globex", w.cred["secret"])).status_code == 200  # another vendor's goes on
    problem(w.api("POST", f"/vendors/{v['id']}/suspend", {"reason": "again"}), 409, "action_not_allowed")
    w.api("POST", f"/vendors/{v['id']}/reinstate", {}, 200)
    w.wait_status("/v2/sleepy/api/manifests/1.0.0", auth, 200)
    assert seat("GET", "/licenses").status_code == 200 and api("POST", "/customers", {"slug": "more"}).status_code == 201
    problem(w.api("POST", f"/vendors/{w.vendor['id']}/suspend", {"reason": "x"}), 409, "action_not_allowed")
    # And it pulls nothing of the other vendor's, nor sees that it is there.
    theirs, none = (w.get(f"/v2/{name}/manifests/1.0.0", auth) for name in ("shop/api", "no/such"))
    assert theirs.status_code == none.status_code and theirs.status_code in (403, 404)
    assert re.sub(r"shop/api|no/such|01[0-9A-Z]{24}", "", theirs.text) == re.sub(r"shop/api|no/such|01[0-9A-Z]{24}", "", none.text)


# Of a path's segment before a parameter, which of the vendor's rows its value may name.
TABLES = {"customers": "customers", "credentials": "credentials", "licenses": "licenses", "grants": "grants", "applications": "applications",
          "repositories": "repositories", "upstreams": "upstreams", "tokens": "api_tokens", "vendors": "vendors", "users": "users"}


def sample(doc, schema):
    """A body of a schema, with all its members."""
    while "$ref" in schema:
        schema = doc["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "object":
        return {k: sample(doc, v) for k, v in schema.get("properties", {}).items() if k in schema.get("required", [])}
    if kind == "array":
        return []
    return {"string": "x@y.example", "integer": max(schema.get("minimum", 1), 1), "boolean": True}[kind]


def test_every_route_with_another_vendors_ids(w):
    """Whatever a second vendor's owner asks with the first one's ids, he is told that there is no such thing, and nothing is changed."""
    other, _ = second_vendor(w, "curious")
    u, c = person(w, "viewer"), customers_person(w)
    db = sqlite3.connect(f"file:{w.dir}/pullgate.db?mode=ro", uri=True)
    cols = {t: [r[1] for r in db.execute(f"PRAGMA table_info({t})")] for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()}
    used = {"first_used_at", "last_used_at", "last_used_from"}  # what pulls, the sync and the clock write meanwhile
    skip = {"api_tokens": used, "credentials": used, "repositories": {"synced_at", "sync_error"},
            "licenses": used | {"wake_at", "quota_exceeded", "quota_until", "usage_from", "usage_until", "usage_passed"}}

    def rows(table, where=""):
        names = [n for n in cols[table] if n not in skip.get(table, ())]
        return {r[0]: r for r in db.execute(f"SELECT {','.join(names)} FROM {table} {where}")}

    mine = {t: list(rows(t)) for t in set(TABLES.values()) | {t for t in cols if cols[t] and cols[t][0] == "id" and t not in ("idempotency_keys", "sessions")}
            if t not in ("outbox", "events", "license_history", "pulls", "tag_history", "usage_reports", "webhook_deliveries", "mails", "text_queue")}
    stranger = [i for i in db.execute("SELECT id FROM vendors WHERE slug='curious'").fetchone()]
    own = set(stranger) | {r[0] for r in db.execute("SELECT id FROM api_tokens WHERE vendor_id=?", stranger)}
    ids = {i for t in mine for i in mine[t] if isinstance(i, str)} - own
    assert {u["id"], c["id"], w.lic["id"], w.cred["id"]} <= ids
    before = {t: rows(t) for t in mine}
    tried, sent = 0, set()
    for path, method, op in operations(w.doc):
        if path.startswith("/portal/") or not op["security"]:
            continue
        names = re.findall(r"([\w-]+)/{(\w+)}", path)
        content = op.get("requestBody", {}).get("content", {}).get("application/json")
        body = sample(w.doc, content["schema"]) if content else {}
        fixed = {"slug": f"n{next(COUNT)}", "name": f"n{next(COUNT)}"}
        body = {**body, **{k: v for k, v in fixed.items() if k in body}} if method != "GET" else None
        full, is_known = path, bool(names)  # a parameter that is no id of a row (a mail's type) is nobody's
        for segment, param in names:
            candidates = [i for i in mine.get(TABLES.get(segment, segment.replace("-", "_")), []) if i not in own]
            if (segment, param) == ("users", "user_id"):
                candidates = [c["id"]]
            if segment == "licenses":
                candidates = [w.lic["id"]]
            if segment in ("customers",):
                candidates = [w.cus["id"]]
            is_known = is_known and (bool(candidates) or param == "version")
            full = full.replace("{" + param + "}", str(candidates[0]) if candidates else "1.0.0", 1)
        r = other(method, full.removeprefix("/api/v1"), body)
        sent |= set(re.findall(r"\b[a-z]{2,4}_[0-9a-z]{20,}\b", full))  # its own audit names what it asked for
        seen = [i for i in ids - sent if i in r.text]
        assert not seen, (method, full, seen, r.text)
        assert CANARY not in r.text and "globex" not in r.text
        if is_known and not op["operationId"].startswith("self."):
            tried += 1
            refused_before = dict.fromkeys(("vendor.suspend", "vendor.reinstate", "signing_key.retire"), "role_not_allowed")
            if r.status_code != 404:
                assert r.json()["code"] in (refused_before.get(op["operationId"]), "invalid_field", "missing_field"), (method, full, r.text)
    assert tried > 40
    after = {t: {k: v for k, v in rows(t).items() if k in before[t]} for t in mine}
    for t in mine:
        assert after[t] == before[t], t


# ---- signing in -----------------------------------------------------------------------------------------------------------------


def test_sessions(w):
    u = person(w, "admin")
    r = sign_in(w, u["email"].upper())
    assert r.status_code == 201 and r.headers["Cache-Control"] == "no-store"
    s = r.json()
    assert s["token"].startswith("pgs_") and s["role"] == "admin" and s["user_id"] == u["id"]
    a, b = Api(w.admin_base, s["token"]), session(w, u)
    assert a.get("/me")["email"] == u["email"] and a.get("/me")["actor"] == f"user:{u['id']}"
    assert [i["is_current"] for i in a.get("/sessions")["items"]] == [True, False]
    assert all("token" not in i for i in a.get("/sessions")["items"])
    problem(requests.get(w.admin_base + "/portal/v1/licenses", headers={"Authorization": "Bearer " + s["token"]}), 401)
    # What the client brings along is not what it is given.
    chosen = requests.post(w.admin_base + "/api/v1/sessions", json={"email": u["email"], "password": PASSWORD}, headers={"Authorization": "Bearer " + s["token"], "Cookie": "session=x"})
    assert chosen.json()["token"] != s["token"] and "Set-Cookie" not in chosen.headers
    assert Api(w.admin_base, chosen.json()["token"])("DELETE", "/sessions/current").status_code == 204
    row = w.api.get(f"/audit?actor=user:{u['id']}&action=session.create")["items"][0]
    assert row["outcome"] == "ok" and row["actor_name"] == u["email"] and s["token"] not in json.dumps(row)
    # A change of the password ends the others.
    problem(a("PATCH", "/me", {"password": "another walk by the sea"}), 400, "missing_field", "old_password")
    problem(a("PATCH", "/me", {"password": "another walk by the sea", "old_password": "not it at all"}), 403, "wrong_password", "old_password")
    problem(a("PATCH", "/me", {"password": "short", "old_password": PASSWORD}), 400, "weak_password", "password")
    problem(a("PATCH", "/me", {"password": "Password1234", "old_password": PASSWORD}), 400, "weak_password", "password")
    problem(a("PATCH", "/me", {"password": u["email"], "old_password": PASSWORD}), 400, "weak_password", "password")
    assert b("GET", "/me").status_code == 200
    assert a("PATCH", "/me", {"password": "another walk by the sea", "old_password": PASSWORD}).status_code == 200
    assert a("GET", "/me").status_code == 200
    problem(b("GET", "/me"), 401)
    problem(sign_in(w, u["email"]), 401, "unauthorized")
    c = session(w, u, password="another walk by the sea")
    assert c("DELETE", "/sessions/current").status_code == 204
    problem(c("GET", "/me"), 401)
    someone = session(w, person(w, "admin"))
    problem(someone("DELETE", f"/sessions/{a.get('/sessions')['items'][0]['id']}"), 404)
    assert a("DELETE", "/sessions").status_code == 204
    problem(a("GET", "/me"), 401)
    # What a token has no use for.
    problem(w.api("PATCH", "/me", {"name": "x"}), 409, "not_a_person")
    assert w.api.get("/me")["email"] is None and w.api.get("/me")["role"] == "operator"


def test_a_session_ends_by_itself(w):
    u = person(w)
    for column, old, ok in [("used_at", 12 * 3600 - 300, True), ("used_at", 12 * 3600 + 5, False), ("expires_at", -300, True), ("expires_at", 5, False)]:
        me = session(w, u)
        sid = [i for i in me.get("/sessions")["items"] if i["is_current"]][0]["id"]
        db = sqlite3.connect(w.dir / "pullgate.db", timeout=10)
        with db:
            db.execute(f"UPDATE sessions SET {column}=? WHERE id=?", (int(time.time()) - old, sid))
        db.close()
        assert me("GET", "/me").status_code == (200 if ok else 401), (column, old)


def test_no_secret_is_kept_or_told(w):
    u = person(w, "admin", password="secret-canary-password")
    r = sign_in(w, u["email"], "secret-canary-password")
    sign_in(w, u["email"], "wrong-canary-password")
    invited = w.api.post("/users", {"email": f"i{next(COUNT)}@vendor.example", "role": "viewer"})
    secrets = ["secret-canary-password", "wrong-canary-password", r.json()["token"], invited["secret"]]
    wait_for("the audit", lambda: [i for i in w.api.get(f"/audit?actor=user:{u['id']}")["items"] if i["outcome"] == "unauthorized"])
    db = sqlite3.connect(f"file:{w.dir}/pullgate.db?mode=ro", uri=True)
    tables = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE '%fts%'")]
    dump = "\n".join(str(r) for t in tables for r in db.execute(f'SELECT * FROM "{t}"'))
    for s in secrets:
        assert s not in dump and s not in w.admin.text()
    assert "$argon2id$v=19$m=19456,t=2,p=1$" in dump


def test_attempts_at_an_account_are_slowed_whether_it_exists_or_not(w):
    u = person(w)
    answers = {}
    for email in (u["email"], "nobody-at-all@vendor.example"):
        answers[email] = []
        for _ in range(9):
            r = sign_in(w, email, "not the right one")
            answers[email].append((r.status_code, r.json()["code"], r.json()["detail"] if r.status_code == 401 else ""))
        assert answers[email][:5] == [answers[email][0]] * 5 and answers[email][0][:2] == (401, "unauthorized")
        assert answers[email][-1][:2] == (429, "too_many_failures")
        assert 1 <= int(r.headers["Retry-After"]) <= 3600
    assert answers[u["email"]] == answers["nobody-at-all@vendor.example"]
    problem(sign_in(w, u["email"]), 429, "too_many_failures")  # the right one too: else the guesses were not slowed
    assert sign_in(w, person(w)["email"]).status_code == 201  # nobody else is


def test_an_unknown_address_costs_the_same(w):
    known, unknown = [person(w)["email"] for _ in range(7)], [f"u{i}@nowhere.example" for i in range(7)]

    def seconds(email):
        began = time.monotonic()
        assert sign_in(w, email, "not the right one").status_code == 401
        return time.monotonic() - began

    took = [(seconds(a), seconds(b)) for a, b in zip(known, unknown)]
    a, b = min(t[0] for t in took), min(t[1] for t in took)
    assert 0.5 < a / b < 2 and a > 0.01 and b > 0.01, (a, b, statistics.median(t[0] for t in took), statistics.median(t[1] for t in took))


def test_hashing_holds_nothing_else_up(w):
    """Sixty sign-ins at once wait for one thread, the ones beyond its queue are told to come again; reads and writes go on meanwhile."""
    u = person(w)
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(sign_in, w, u["email"]) for _ in range(60)]
        done, began = 0, time.monotonic()
        while not all(f.done() for f in waiting):
            assert w.api("GET", "/customers?limit=1").status_code == 200
            assert w.api("PATCH", f"/customers/{w.cus['id']}", {"name": "Globex"}).status_code == 200
            done += 1
        took = time.monotonic() - began
    codes = [f.result().status_code for f in waiting]
    assert codes.count(201) >= 32 and set(codes) <= {201, 503}, codes
    assert done >= 5, f"{done} in {took:.2f} s"


def test_one_time_passwords(w):
    u = person(w, "admin")
    me, elsewhere = session(w, u), session(w, u)
    problem(me("POST", "/me/totp", {"password": "not the right one"}), 403, "wrong_password")
    problem(me("POST", "/me/totp/confirm", {"totp": "000000"}), 409, "action_not_allowed")
    enrolled = me.post("/me/totp", {"password": PASSWORD}, expect=200)
    assert enrolled["uri"].startswith("otpauth://totp/") and enrolled["secret"] in enrolled["uri"]
    assert me.get("/me")["totp"] is False and sign_in(w, u["email"]).status_code == 201  # not before it is confirmed
    problem(me("POST", "/me/totp/confirm", {"totp": "abcdef"}), 403, "wrong_totp", "totp")
    code = totp_now(enrolled["secret"])
    codes = me.post("/me/totp/confirm", {"totp": code}, expect=200)["recovery_codes"]
    assert len(set(codes)) == 10 and me.get("/me")["totp"] is True
    problem(elsewhere("GET", "/me"), 401)
    r = sign_in(w, u["email"])
    problem(r, 401, "totp_required", "totp")
    problem(sign_in(w, u["email"], totp=code), 401, "unauthorized")  # it was used to confirm
    following = totp_now(enrolled["secret"], 1)
    assert sign_in(w, u["email"], totp=following).status_code == 201
    problem(sign_in(w, u["email"], totp=following), 401, "unauthorized")
    problem(sign_in(w, u["email"], "not the right one", totp=totp_now(enrolled["secret"], 1)), 401, "unauthorized")
    assert sign_in(w, u["email"], recovery_code=codes[0].lower()).status_code == 201
    problem(sign_in(w, u["email"], recovery_code=codes[0]), 401, "unauthorized")
    assert me.get("/me")["recovery_codes_left"] == 9
    problem(me("POST", "/me/totp", {"password": PASSWORD}), 409, "action_not_allowed")
    assert me("POST", "/me/totp/disable", {"password": PASSWORD}).status_code == 204
    assert sign_in(w, u["email"]).status_code == 201
    # Lost: an owner takes it away.
    enrolled = me.post("/me/totp", {"password": PASSWORD}, expect=200)
    me.post("/me/totp/confirm", {"totp": totp_now(enrolled["secret"])}, expect=200)
    problem(sign_in(w, u["email"]), 401, "totp_required")
    w.api("DELETE", f"/users/{u['id']}/totp", expect=200)
    assert sign_in(w, u["email"]).status_code == 201
    sealed = sqlite3.connect(f"file:{w.dir}/pullgate.db?mode=ro", uri=True).execute("SELECT totp_sealed FROM users").fetchall()
    assert enrolled["secret"] not in str(sealed)


def test_invitations(w):
    accept = w.admin_base + "/api/v1/invitations/accept"
    u = w.api.post("/users", {"email": f"i{next(COUNT)}@vendor.example", "role": "support"})
    assert u["status"] == "invited" and u["secret"].startswith("pgi_") and "secret" not in w.api.get(f"/users/{u['id']}")
    problem(sign_in(w, u["email"]), 401, "unauthorized")
    again = w.api.post(f"/users/{u['id']}/invite", {}, expect=200)
    for secret in (u["secret"], "pgi_" + "A" * 49, "x", again["secret"][:-1] + ("a" if again["secret"][-1] != "a" else "b")):
        problem(requests.post(accept, json={"secret": secret, "password": PASSWORD}), 401, "invitation_invalid")
    problem(requests.post(accept, json={"secret": again["secret"], "password": "short"}), 400, "weak_password", "password")
    assert requests.post(accept, json={"secret": again["secret"], "password": PASSWORD}).json()["status"] == "active"
    problem(requests.post(accept, json={"secret": again["secret"], "password": PASSWORD}), 401, "invitation_invalid")
    me = session(w, u)
    # A lost password is an invitation too, and ends the sessions.
    further = w.api.post(f"/users/{u['id']}/invite", {}, expect=200)
    assert me("GET", "/me").status_code == 200
    assert requests.post(accept, json={"secret": further["secret"], "password": "a third walk by the sea"}).status_code == 200
    problem(me("GET", "/me"), 401)
    problem(w.api("POST", "/users", {"email": u["email"], "role": "viewer"}), 409, "conflict", "email")
    problem(w.api("POST", "/users", {"email": "nobody", "role": "viewer"}), 400, "invalid_field", "email")
    late = w.api.post("/users", {"email": f"i{next(COUNT)}@vendor.example", "role": "viewer"})
    db = sqlite3.connect(w.dir / "pullgate.db", timeout=10)
    with db:
        db.execute("UPDATE users SET invite_expires_at=? WHERE id=?", (int(time.time()) - 1, late["id"]))
    problem(requests.post(accept, json={"secret": late["secret"], "password": PASSWORD}), 401, "invitation_invalid")
    problem(w.api("POST", f"/users/{u['id']}/invite", {"invitation_expires_at": "2090-01-01"}), 400, "invalid_window")


# ---- the rows -----------------------------------------------------------------------------------------------------------------


def test_lic_0_1_a_customers_people_are_invited_and_use_the_portal(w):
    cus = w.add_customer(f"org{next(COUNT)}")
    lic = w.add_license(cus["id"], w.app["id"])
    url = f"/customers/{cus['id']}/users"
    admin = w.api.post(url, {"email": f"boss{next(COUNT)}@org.example", "role": "customer_admin"})
    r = requests.post(w.admin_base + "/portal/v1/invitations/accept", json={"secret": admin["secret"], "password": PASSWORD, "name": "Boss"})
    assert r.json()["customer_id"] == cus["id"] and r.json()["name"] == "Boss"
    boss, clerk = Portal(w, admin), Portal(w, customers_person(w, customer=cus["id"]))
    assert [i["id"] for i in boss.get("/licenses")["items"]] == [lic["id"]] == [i["id"] for i in clerk.get("/licenses")["items"]]
    assert boss.get("/me")["role"] == "customer_admin" and boss.get("/me")["customer_id"] == cus["id"]
    problem(clerk("POST", "/credentials", {"name": "x"}), 403, "role_not_allowed")
    cred = boss("POST", "/credentials", {"name": "ci"})
    assert cred.status_code == 201, cred.text
    cred = cred.json()
    auth = basic(cus["slug"], cred["secret"])
    w.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)
    problem(Portal(w, auth=auth)("POST", "/credentials", {"name": "x"}), 403, "role_not_allowed")  # a machine makes no machines
    assert cred["id"] in [i["id"] for i in clerk.get("/credentials")["items"]]
    problem(boss("DELETE", f"/credentials/{w.cred['id']}"), 404)  # another customer's
    problem(boss("POST", "/credentials", {"name": "x", "license_id": w.lic["id"]}), 400, "unknown_reference", "license_id")
    assert boss("DELETE", f"/credentials/{cred['id']}").status_code == 204
    w.wait_status("/v2/shop/api/manifests/1.0.0", auth, 401)
    rows = w.api.get(f"/audit?actor=user:{admin['id']}")["items"]
    assert [r["action"] for r in rows if r["outcome"] == "ok"] == ["portal.credential.delete", "portal.credential.create", "portal.session.create", "portal.invitation.accept"]
    # None of it is anything in the API, nor anything for another customer or vendor.
    for method, path in [("GET", "/customers"), ("GET", "/me"), ("GET", "/tokens")]:
        problem(requests.request(method, w.admin_base + "/api/v1" + path, headers=boss.h), 401)
    problem(sign_in(w, admin["email"]), 401, "unauthorized")
    problem(w.api("GET", f"/customers/{w.cus['id']}/users/{admin['id']}"), 404)
    problem(w.api("POST", url, {"email": "x@org.example", "role": "owner"}), 400, "invalid_field", "role")
    w.api("PATCH", f"/customers/{cus['id']}", {"disabled": True}, 200)
    problem(boss("GET", "/licenses"), 403, "customer_disabled")
    w.api("PATCH", f"/customers/{cus['id']}", {"disabled": False}, 200)
    w.api("DELETE", f"{url}/{admin['id']}", expect=204)
    problem(boss("GET", "/licenses"), 401)
    # With the customer his people go, and their addresses are free.
    gone = w.add_customer(f"org{next(COUNT)}")
    last = customers_person(w, customer=gone["id"])
    seat = Portal(w, last)
    w.api("DELETE", f"/customers/{gone['id']}", expect=204)
    problem(seat("GET", "/licenses"), 401)
    problem(sign_in(w, last["email"], portal=True), 401, "unauthorized")
    assert w.api("POST", url, {"email": last["email"], "role": "customer_viewer"}).status_code == 201


def test_lic_0_2_a_customers_record(w):
    body = {"slug": f"rec{next(COUNT)}", "name": "Records Ltd", "email": "ops@rec.example", "external_id": "CRM-77",
            "metadata": {"billing": {"email": "bills@rec.example", "vat": "DE123", "address": ["Street 1", "Town"]}, "business": "retail"}}
    c = w.api.post("/customers", body)
    assert {k: w.api.get(f"/customers/{c['id']}")[k] for k in body} == body
    w.api("PATCH", f"/customers/{c['id']}", {"metadata": {"business": "wholesale"}}, 200)
    assert w.api.get(f"/customers/{c['id']}")["metadata"] == {"business": "wholesale"}
    assert [i["id"] for i in w.api.get("/customers?external_id=CRM-77")["items"]] == [c["id"]]


def test_lic_0_8_service_credentials_are_counted_against_the_license(w):
    cus = w.add_customer(f"svc{next(COUNT)}")
    lic = w.add_license(cus["id"], w.app["id"], limits={"custom": {"max_credentials": 2}})
    url = f"/customers/{cus['id']}/credentials"
    made = [w.api.post(url, {"name": f"robot {i}", "license_id": lic["id"]}) for i in range(2)]
    problem(w.api("POST", url, {"name": "robot 3", "license_id": lic["id"]}), 409, "limit_reached", "license_id")
    assert w.api("POST", url, {"name": "unbound"}).status_code == 201  # bound to no license: not of its number
    assert w.api("POST", f"{url}/{made[0]['id']}/rotate", {"overlap": "0s"}).status_code == 201  # a successor
    w.api("DELETE", f"{url}/{made[1]['id']}", expect=204)
    w.api("DELETE", f"{url}/{made[0]['id']}", expect=204)
    assert w.api("POST", url, {"name": "robot 4", "license_id": lic["id"]}).status_code == 201
    auth = basic(cus["slug"], w.api.get(url)["items"] and w.api.post(url, {"name": "free"})["secret"])
    w.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)


def test_lic_1_37_the_support_contact_stands_in_the_portal(w):
    w.api("PATCH", f"/vendors/{w.vendor['id']}", {"support_contact": "help@vendor.example"}, 200)
    for p in (Portal(w, auth=basic("globex", w.cred["secret"])), Portal(w, customers_person(w))):
        assert p.get("/vendor")["support_contact"] == "help@vendor.example" == p.get("/licenses")["items"][0]["support_contact"]


def test_lic_2_12_links_of_the_vendor_stand_in_the_portal(w):
    branding = {"display_name": "Acme Shop", "logo_url": "https://acme.example/logo.svg", "color": "#12aB9f", "support_url": "https://acme.example/ideas",
                "terms_url": "https://acme.example/terms"}
    assert w.api("PATCH", f"/vendors/{w.vendor['id']}", {"branding": branding}, 200).json()["branding"] == branding
    assert Portal(w, auth=basic("globex", w.cred["secret"])).get("/vendor")["branding"] == branding
    for bad, field in [({"logo_url": "javascript:alert(1)"}, "branding.logo_url"), ({"color": "red"}, "branding.color"), ({"color": "#12345g"}, "branding.color"),
                       ({"css": "x"}, "branding.css")]:
        problem(w.api("PATCH", f"/vendors/{w.vendor['id']}", {"branding": bad}), 400, field=field)


def test_lic_2_13_the_support_tier_stands_in_the_portal(w):
    c = w.add_customer(f"tier{next(COUNT)}", metadata={"support_tier": "email, business days", "note": "not for the customer"})
    p = Portal(w, customers_person(w, customer=c["id"]))
    assert p.get("/vendor")["support_tier"] == "email, business days" and "not for the customer" not in p("GET", "/vendor").text
    assert Portal(w, auth=basic("globex", w.cred["secret"])).get("/vendor")["support_tier"] == ""


def test_lic_3_22_upstream_credentials_are_never_handed_out(w):
    """Stored once, sealed; in no answer to anybody, whatever role, vendor's or customer's."""
    w.api("PATCH", f"/licenses/{w.lic['id']}", {"upstream_credential_id": w.up["id"]}, 200)
    keys = [("Bearer " + w.token, "/api/"), (Portal(w, customers_person(w, "customer_admin")).h["Authorization"], "/portal/"), (basic("globex", w.cred["secret"]), "/portal/")]
    n = 0
    for auth, prefix in keys:
        for path, method, op in operations(w.doc):
            if method == "GET" and path.startswith(prefix):
                for i in (w.lic["id"], w.spare["id"], w.up["id"], w.cus["id"], w.app["id"]):
                    text = ask(w, auth, "GET", re.sub(r"{\w+}", i, path, count=1).replace("{", "").replace("}", "")).text
                    assert CANARY not in text and w.upstream.auth[1] not in text, path
                    n += 1
                    if "{" not in path:
                        break
    assert n > 60
    for path in ("/v2/shop/api/manifests/1.0.0", "/v2/"):
        r = w.get(path, basic("globex", w.cred["secret"]))
        assert CANARY not in r.text + str(r.headers) and w.upstream.auth[1] not in r.text + str(r.headers)
    raw = (w.dir / "pullgate.db").read_bytes()
    wal = w.dir / "pullgate.db-wal"
    raw += wal.read_bytes() if wal.exists() else b""
    assert CANARY.encode() not in raw and CANARY not in w.admin.text()


# ---- the audit -----------------------------------------------------------------------------------------------------------------


def cli(w, *args):
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # a command that ends by die() leaves what it had
    return subprocess.run([BIN / "pullgate", *args], capture_output=True, text=True, timeout=60 * SLOW, env=env)


def export(w, api, query="", **kw):
    lines, cursor = [], ""
    while cursor is not None:
        r = api("GET", f"/audit/export?limit=50{query}" + (f"&cursor={cursor}" if cursor else ""), **kw)
        assert r.status_code == 200 and r.headers["Content-Type"] == "application/x-ndjson", r.text
        page = [json.loads(line) for line in r.text.splitlines()]
        lines += r.text.splitlines()[:-1]
        assert len(page) <= 51 and set(page[-1]) == {"next_cursor"}
        cursor = page[-1]["next_cursor"]
    return lines


def test_the_audit_is_exported_and_checked_offline(w, tmp_path):
    other, _ = second_vendor(w, "noted")
    for i in range(3):
        other.post("/customers", {"slug": f"n{i}"})
        w.api.post("/customers", {"slug": f"noted{i}"})
    config = ["--config", str(w.write_config())]
    all_rows, theirs = export(w, w.api, "&all=1"), export(w, other)
    assert len(all_rows) > 10 and {json.loads(r)["action"] for r in theirs} == {"customer.create"} and len(theirs) == 3
    for name, rows in [("all", all_rows), ("theirs", theirs)]:
        f = tmp_path / name
        f.write_text("\n".join(rows) + "\n")
        r = cli(w, "audit", "verify", "--file", str(f), *config)
        assert r.returncode == 0 and f"{len(rows)} records" in r.stdout, r.stderr
        f.write_text("\n".join(rows[:1] + rows[2:]) + "\n")
        assert cli(w, "audit", "verify", "--file", str(f), *config).returncode == 1
        f.write_text("\n".join(rows).replace('"customer.create"', '"customer.delete"', 1) + "\n")
        r = cli(w, "audit", "verify", "--file", str(f), *config)
        assert r.returncode == 1 and "not what was written" in r.stderr
    problem(other("GET", "/audit/export?all=1"), 403, "role_not_allowed", "all")
    assert not export(w, w.api, "&from=2090-01-01")
    support, _ = token(w, "support")
    assert export(w, support)
    r = cli(w, "audit", "verify", *config)
    assert r.returncode == 0, r.stderr
    assert w.api.get("/audit/verification")["ok"] is True


def test_newest_rows_that_are_taken_away_are_missed():
    from admin_fixture import admin_stack
    with admin_stack() as s:
        for i in range(4):
            s.api.post("/customers", {"slug": f"c{i}"})
        assert s.api.get("/audit/verification") == {"ok": True, "records": 6, "detail": ""}

        def cut(where):
            db = sqlite3.connect(s.dir / "pullgate.db", timeout=10)
            with db:
                db.execute("DROP TRIGGER audit_no_delete")
                db.execute("DELETE FROM audit WHERE " + where)
                db.execute("CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END")
            db.close()

        # A restore is told by the audit itself, and is no loss.
        config = ["--config", str(s.write_config())]
        assert cli(s, "backup", str(s.dir / "b.backup"), *config).returncode == 0
        s.api.post("/customers", {"slug": "forgotten"})
        assert s.admin.stop() == 0
        assert cli(s, "restore", str(s.dir / "b.backup"), *config).returncode == 0
        s.start_admin()
        assert s.api.get("/audit/verification") == {"ok": True, "records": 7, "detail": ""}
        assert s.api.get("/audit")["items"][0]["action"] == "store.restore" and "taken away" not in s.admin.text()
        assert s.admin.stop() == 0
        cut("seq>4")
        r = cli(s, "audit", "verify", "--config", str(s.write_config()))
        assert r.returncode == 1 and "4 of 7" in r.stderr
        # A daemon that finds it so says it, in the log and in the audit, and goes on.
        s.start_admin()
        assert "rows may have been taken away" in s.admin.text()
        row = s.api.get("/audit?action=audit.head")["items"][0]
        assert "record 7 was written" in row["after"]["detail"] and row["actor"] == "system"
        assert s.api.get("/audit/verification")["ok"] is True
        # While it runs.
        s.api.post("/customers", {"slug": "later"})
        cut("seq=(SELECT MAX(seq) FROM audit)")
        v = s.api.get("/audit/verification")
        assert v["ok"] is False and "newest records are missing" in v["detail"]
