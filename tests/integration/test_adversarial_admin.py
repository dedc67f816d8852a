"""Every adversarial case of the categories admin_api and portal against the running daemon. A case that needs what a later part
brings (people's sessions) runs with the sign-in there is, or is named below with its reason."""
import gzip
import json
import pathlib
import re
import secrets

import pytest
import requests

import adversarial_rows
import fronts
from admin_fixture import admin_stack, token
from stack import SANITIZED, basic

CASES = [c for c in adversarial_rows.ALL if c["category"] in ("admin_api", "portal")]

# id: (what is run instead of the row's own request, why)
INSTEAD = {
    "ADM-055": ({"method": "PATCH", "body": '{"name":"x"}'}, "licenses are edited with PATCH; there is no PUT"),
}
# id: (statuses, why they also are the right answer)
ALSO = {
    "ADM-055": ([412], ""),
    "POR-006": ([401, 404, 405], "signing in is POST /sessions, and what it gives is never taken from the request: test_lic_people.py; a page for it there is not"),
    "POR-014": ([404], "as POR-006"), "POR-016": ([404], "as POR-006"),
    "POR-012": ([200], ""),
}


@pytest.fixture(scope="module", params=["direct", "nginx", "haproxy"])
def w(request, tmp_path_factory):
    with admin_stack(n_proxies=1) as s:
        s.up = s.add_upstream(password="upstream-canary-5a", username="u")
        s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], s.up["id"])
        s.cus = s.add_customer("globex")
        s.cred = s.add_credential(s.cus["id"])
        s.lic = s.add_license(s.cus["id"], s.app["id"])
        expired = s.add_customer("expired")
        s.expired = s.add_credential(expired["id"])
        lic2 = s.add_license(expired["id"], s.app["id"], expires_at="2020-01-01")
        viewer, _ = token(s, "viewer")
        s.place = {
            "ADMIN_BASE": "/api/v1", "PORTAL_BASE": "/portal/v1", "ADMIN_AUTH": "Bearer " + s.token, "READONLY_ADMIN_AUTH": "Bearer " + viewer.token,
            "CUST_AUTH": basic("globex", s.cred["secret"]), "CUST_PW": s.cred["secret"], "ADMIN_AUTH_CUT": "Bearer " + s.token[:-1],
            "ADMIN_AS_BASIC": basic("admin", s.token), "UPSTREAM_ID": s.up["id"], "LICENSE_KEY": s.lic["key"], "LICENSE2_ID": lic2["id"],
            "CUST_ID": s.cus["id"], "APP_ID": s.app["id"], "LICENSE_ID": s.lic["id"], "CUST2_ID": expired["id"], "UPSTREAM_SECRET": "upstream-canary-5a",
            "ADMIN_SECRET": s.token, "NONCE": secrets.token_hex(4), "STR_1MB": "n" * 1000000, "JSON_4MIB_EMPTY_OBJECTS": "[" + "{}," * 1400000 + "{}]",
            "100K_VERSIONS": ",".join(f'"1.0.{i}"' for i in range(100000)), "GRANTED_TAG": "1.0.0", "CUST2_ONLY_TAG": "9.9.9", "ADMIN_SESSION_COOKIE": "session=x",
            "PORTAL_LOGIN_BODY": "user=globex", "GZIP_BOMB_10MB_TO_10GB": gzip.compress(b"\0" * 10000000).decode("latin-1"),
        }
        s.front = request.param
        front = None
        if s.front != "direct":  # what the tests see of the admin daemon is the front's address; s.api stays direct
            front = fronts.start(s.front, tmp_path_factory.mktemp("front"), s.admin_base.split("//")[1])
            s.admin_base = "http://" + front.address
        yield s
        if front:
            front.close()


def fill(w, text):
    return re.sub(r"{([A-Z0-9_]+)}", lambda m: w.place.get(m[1], m[0]), text)


def snapshot(w):
    """What must not change: every object, but not the audit."""
    lists = [w.api.get(f"/{kind}?limit=1000")["items"] for kind in ("customers", "licenses", "applications", "upstreams", "events")]
    for application in lists[2]:
        for r in application["repositories"]:  # the sync writes these on its own
            del r["synced_at"], r["sync_error"]
    return lists


def rss_kib(pid):
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


def send(w, case):
    case = {**case, **INSTEAD.get(case["id"], ({}, ""))[0]}
    headers = {k: fill(w, v) for k, v in case.get("headers", {}).items()}
    cookie = headers.get("Cookie", "")
    if case["target"] == "portal" and cookie in ("{PORTAL_COOKIE}", "{EXPIRED_PORTAL_COOKIE}"):
        c, user = (w.cred, "globex") if cookie == "{PORTAL_COOKIE}" else (w.expired, "expired")
        headers["Authorization"] = basic(user, c["secret"])
        del headers["Cookie"]
    body = fill(w, case["body"]).encode("latin-1") if "body" in case else None
    req = requests.Request(case["method"], w.admin_base + "/", headers=headers, data=body).prepare()
    base = w.base if case["target"] == "registry" else w.admin_base
    req.url = base + fill(w, case["path"]).replace(" ", "%20")
    return requests.Session().send(req, timeout=30, allow_redirects=False)


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_case(w, case):
    expect = case["expect"]
    before, high = snapshot(w), rss_kib(w.admin.p.pid)
    try:
        r = send(w, case)
    except (requests.ConnectionError, requests.ReadTimeout):
        assert 413 in expect["status_in"], "closed without an answer"
        r = None
    assert w.admin.alive(), w.admin.text()[-3000:]
    if r is not None:
        allowed = ALSO[case["id"]][0] if case["id"] in ALSO else expect.get("status_in")
        assert r.status_code in allowed, f"{r.status_code} {r.text[:500]}"
        for text in expect.get("body_not_contains", []):
            assert fill(w, text) not in r.text
        for name in expect.get("header_present", []):
            assert name in r.headers
        for name, text in expect.get("header_contains", {}).items():
            assert text in r.headers[name]
        for line in expect.get("headers_not_contain", []):
            assert line.lower() not in "\n".join(f"{k}: {v}" for k, v in r.headers.items()).lower()
    if expect.get("no_state_change") and case["id"] not in ("ADM-057",):
        assert snapshot(w) == before
    if "redis_keys_unexpected" in expect:
        assert all(re.match(rb"^pg:(v:[kcrtu]:|b:\d+$|root$|m:|events$)", k) for k in w.redis.cmd("KEYS", "*"))
    if "rss_growth_max_mb" in expect:
        # a sanitizer keeps what was freed, with room around each piece
        assert rss_kib(w.admin.p.pid) - high < expect["rss_growth_max_mb"] * 1024 * (6 if SANITIZED else 1)
    if expect.get("audit_contains"):
        text = json.dumps(w.api.get("/audit?limit=20"))
        for t in expect["audit_contains"]:
            assert fill(w, t) in text
        for t in expect.get("audit_not_contains", []):
            assert fill(w, t) not in text
