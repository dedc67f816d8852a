"""The portal lists a version if and only if it can be pulled now, and shows a customer nothing of anybody else."""
import datetime
import time

import pytest
from artifacts import push_chart, push_multi
from stack import Stack, basic, requests, wait_for


class Portal:
    def __init__(self, **kw):
        kw.setdefault("proxy", {"public_url": "https://registry.vendor.example"})
        self.s = s = Stack(start=False, cache={"tag_freshness": "1s"}, **kw)
        s.start_admin()
        for v in ("1.0.0", "1.1.0", "1.2.0-rc.1", "2.0.0", "latest"):
            push_multi(s.registry, "acme/api", v, extra=v.encode())
        for v in ("1.0.0", "2.0.0", "2.0.0+b1"):
            push_chart(s.registry, "acme/chart", "shop", v)
        self.upstream = s.add_upstream()
        self.app = s.add_application("shop", [("shop/api", "acme/api", "image"), ("charts/shop", "acme/chart", "chart")], self.upstream["id"])
        self.n = 0

    def customer(self, grants=None, bind=False, **kw):
        """(auth, license, customer, credential)"""
        self.n += 1
        c = self.s.add_customer(f"customer-{self.n}")
        lic = self.s.add_license(c["id"], self.app["id"], grants, name=f"License {self.n}", **kw)
        cred = self.s.add_credential(c["id"], **({"license_id": lic["id"]} if bind else {}))
        return basic("anything", cred["secret"]), lic, c, cred

    def get(self, path, auth=None, **kw):
        headers = {**({"Authorization": auth} if auth else {}), **kw.pop("headers", {})}
        return requests.get(self.s.admin_base + "/portal/v1" + path, headers=headers, timeout=30, **kw)

    def listed(self, auth, **kw):
        """{(version, repository, tag)}"""
        r = self.get("/versions?limit=1000", auth, **kw)
        assert r.status_code == 200, r.text
        return {(i["version"], a["repository"], a["tag"]) for i in r.json()["items"] for a in i["artifacts"]}


@pytest.fixture(scope="module")
def po():
    portal = Portal()
    yield portal
    portal.s.close()


API = {(v, "shop/api", v) for v in ("1.0.0", "1.1.0", "1.2.0-rc.1", "2.0.0", "latest")}
CHART = {("1.0.0", "charts/shop", "1.0.0"), ("2.0.0", "charts/shop", "2.0.0"), ("2.0.0+b1", "charts/shop", "2.0.0_b1")}


@pytest.mark.parametrize("grants,want", [
    ([{"selector": "all", "value": "*"}], API | CHART),
    ([{"selector": "range", "value": "^1.0"}], {x for x in API | CHART if x[0] in ("1.0.0", "1.1.0")}),
    ([{"selector": "range", "value": "^1.0", "include_prerelease": True}], {x for x in API | CHART if x[0] in ("1.0.0", "1.1.0", "1.2.0-rc.1")}),
    ([{"selector": "exact", "value": "2.0.0"}], {x for x in API | CHART if x[0] == "2.0.0"}),
    ([{"selector": "exact", "value": "2.0.0+b1"}], {x for x in CHART if x[0] == "2.0.0+b1"}),
    ([{"selector": "glob", "value": "1.*", "repositories": ["shop/api"]}], {x for x in API if x[0].startswith("1.")}),
    ([{"selector": "exact", "value": "9.9.9"}], set()),
    ([{"selector": "all", "value": "*", "not_before": "2090-01-01T00:00:00Z"}], set()),
    ([{"selector": "all", "value": "*", "not_after": "2020-01-01T00:00:00Z"}], set()),
])
def test_listed_is_what_is_granted(po, grants, want):
    auth, *_ = po.customer(grants)
    assert po.listed(auth) == want


@pytest.mark.parametrize("terms", [{"status": "inactive"}, {"expires_at": "2020-01-01"}, {"starts_at": "2090-01-01"}, {"allowed_cidrs": ["10.1.0.0/16"]},
                                   {"updates_until": "2020-01-01"}])
def test_license_not_in_force_lists_nothing(po, terms):
    auth, *_ = po.customer([{"selector": "all", "value": "*"}], **terms)
    assert po.listed(auth) == set()


def test_form(po):
    auth, lic, *_ = po.customer([{"selector": "exact", "value": "1.0.0"}], expires_at="2099-12-31")
    (item,) = po.get("/versions", auth).json()["items"]
    assert item["application"] == {"slug": "shop", "name": "Shop"} and item["version"] == "1.0.0" and item["released_at"].endswith("Z")
    assert item["license"]["id"] == lic["id"] and item["license"]["name"] == lic["name"] and item["license"]["valid_until"].startswith("20")
    chart, image = item["artifacts"]
    assert set(image) == {"repository", "kind", "tag", "digest", "platforms", "size_bytes", "commands"}
    assert (image["kind"], image["platforms"]) == ("image", ["linux/amd64", "linux/arm64"]) and image["size_bytes"] > 100
    host = "registry.vendor.example"
    assert image["commands"] == [f"docker pull {host}/shop/api:1.0.0", f"docker pull {host}/shop/api@{image['digest']}"]
    assert chart["commands"][:2] == [f"helm pull oci://{host}/charts/shop --version 1.0.0", f"helm install shop oci://{host}/charts/shop --version 1.0.0"]


def test_host_header_changes_no_command(po):
    auth, *_ = po.customer()
    r = po.get("/versions", auth, headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"})
    assert r.status_code == 200 and "evil.example" not in r.text


def test_no_end_is_null(po):
    auth, *_ = po.customer([{"selector": "exact", "value": "1.0.0"}])
    assert po.get("/versions", auth).json()["items"][0]["license"]["valid_until"] is None


def test_suspended_and_reinstated(po):
    auth, lic, *_ = po.customer()
    assert po.listed(auth)
    po.s.api.post(f"/licenses/{lic['id']}/suspend", {"reason": "unpaid"}, 200)
    assert po.listed(auth) == set()
    got = po.get("/licenses", auth).json()["items"]
    assert [(x["status"], x["effective_status"], x["status_reason"]) for x in got] == [("suspended", "suspended", "unpaid")]
    po.s.api.post(f"/licenses/{lic['id']}/reinstate", {}, 200)
    assert po.listed(auth)


def test_pushed_tag_is_listed_at_once(po):
    """The listing has the upstream looked at when that was not done lately."""
    auth, *_ = po.customer()
    po.listed(auth)
    push_multi(po.s.registry, "acme/api", "1.5.0")
    time.sleep(1.1)  # tag_freshness
    assert ("1.5.0", "shop/api", "1.5.0") in po.listed(auth)


def test_deleted_tag_is_not_listed(po):
    auth, *_ = po.customer()
    gone = push_multi(po.s.registry, "acme/api", "1.6.0", extra=b"to go")
    time.sleep(1.1)
    assert ("1.6.0", "shop/api", "1.6.0") in po.listed(auth)
    requests.delete(f"{po.s.registry.url}/v2/acme/api/manifests/{gone['digest']}", auth=po.s.registry.auth).raise_for_status()
    time.sleep(1.1)
    assert ("1.6.0", "shop/api", "1.6.0") not in po.listed(auth)


def test_upstream_away_answers_in_time(po):
    auth, *_ = po.customer()
    before = po.listed(auth)
    po.s.registry.stop()
    try:
        time.sleep(1.1)
        start = time.monotonic()
        assert po.listed(auth) == before
        assert time.monotonic() - start < 6
    finally:
        po.s.registry.start()


def test_pages(po):
    auth, *_ = po.customer()
    whole = po.get("/versions?limit=1000", auth).json()["items"]
    paged, cursor = [], None
    while True:
        r = po.get("/versions?limit=2" + (f"&cursor={cursor}" if cursor else ""), auth).json()
        paged += r["items"]
        cursor = r["next_cursor"]
        assert len(r["items"]) <= 2
        if not cursor:
            break
    assert paged == whole
    semver = [i["version"] for i in whole if i["version"] != "latest"]
    assert semver.index("2.0.0") < semver.index("1.1.0") < semver.index("1.0.0")
    assert po.get("/versions?cursor=nonsense!", auth).status_code == 400
    assert po.get("/versions?limit=0", auth).status_code == 400


def test_union_of_licenses(po):
    auth, lic, customer, _ = po.customer([{"selector": "exact", "value": "1.0.0"}])
    other = po.s.add_license(customer["id"], po.app["id"], [{"selector": "exact", "value": "2.0.0"}], name="Second")
    items = po.get("/versions", auth).json()["items"]
    assert [(i["version"], i["license"]["id"]) for i in items] == [("2.0.0", other["id"]), ("1.0.0", lic["id"])]


def test_bound_credential_counts_for_its_license_alone(po):
    auth, lic, customer, cred = po.customer([{"selector": "exact", "value": "1.0.0"}], bind=True)
    po.s.add_license(customer["id"], po.app["id"], [{"selector": "all", "value": "*"}], name="Bigger")
    assert {v for v, *_ in po.listed(auth)} == {"1.0.0"}
    assert [x["id"] for x in po.get("/licenses", auth).json()["items"]] == [lic["id"]]
    free = po.s.add_credential(customer["id"], name="free")
    assert [c["id"] for c in po.get("/credentials", auth).json()["items"]] == [cred["id"]]
    assert {c["id"] for c in po.get("/credentials", basic("x", free["secret"])).json()["items"]} == {cred["id"], free["id"]}


def test_license_key_signs_in(po):
    _, lic, *_ = po.customer([{"selector": "exact", "value": "1.0.0"}])
    assert {v for v, *_ in po.listed(basic("me", lic["key"].lower()))} == {"1.0.0"}


# ---- who may see what ----

def test_sign_in_is_required(po):
    for auth in (None, basic("x", "y"), "Basic !!!", "Bearer " + po.s.token, basic("x", "pgc_" + "0" * 49), basic("owner", po.s.token)):
        for path in ("/versions", "/licenses", "/credentials", "/pulls"):
            r = po.get(path, auth)
            assert r.status_code == 401 and r.headers["WWW-Authenticate"].startswith("Basic "), (auth, path, r.status_code)
            assert "1.0.0" not in r.text


def test_a_customer_is_not_an_administrator(po):
    auth, *_ = po.customer()
    assert requests.get(po.s.admin_base + "/api/v1/licenses", headers={"Authorization": auth}).status_code == 401


def test_failures_are_limited_and_the_right_one_passes():
    portal = Portal(limits={"auth_failures_per_minute": 5})
    try:
        auth, *_ = portal.customer()
        codes = [portal.get("/licenses", basic("x", "wrong")).status_code for _ in range(8)]
        assert codes[0] == 401 and codes[-1] == 429
        assert portal.get("/licenses", auth).status_code == 200
    finally:
        portal.s.close()


def test_revoked_expired_disabled_and_foreign_address(po):
    auth, lic, customer, cred = po.customer()
    assert po.get("/licenses", auth).status_code == 200
    here = po.s.add_credential(customer["id"], name="elsewhere", allowed_cidrs=["10.0.0.0/8"])
    r = po.get("/licenses", basic("x", here["secret"]))
    assert (r.status_code, r.json()["code"]) == (403, "ip_not_allowed")
    soon = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    short = po.s.add_credential(customer["id"], name="short", expires_at=soon)
    wait_for("the expiry", lambda: po.get("/licenses", basic("x", short["secret"])).status_code == 403, 6)
    assert po.get("/licenses", basic("x", short["secret"])).json()["code"] == "credential_expired"
    po.s.api("PATCH", f"/customers/{customer['id']}", {"disabled": True}, 200)
    assert po.get("/licenses", auth).status_code == 403
    po.s.api("PATCH", f"/customers/{customer['id']}", {"disabled": False}, 200)
    assert po.get("/licenses", auth).status_code == 200
    po.s.api("DELETE", f"/customers/{customer['id']}/credentials/{cred['id']}", None, None).raise_for_status()
    assert po.get("/licenses", auth).status_code == 401


def test_no_row_of_another_customer(po):
    a_auth, a_lic, a, a_cred = po.customer([{"selector": "exact", "value": "1.0.0"}])
    b_auth, b_lic, b, b_cred = po.customer([{"selector": "exact", "value": "2.0.0"}])
    for path in ("/versions", "/licenses", "/credentials", "/pulls"):
        text = po.get(path, a_auth).text
        for foreign in (b["id"], b_lic["id"], b_cred["id"], b_lic["name"], "2.0.0"):
            assert foreign not in text, (path, foreign)
    for query in (f"?customer={b['id']}", f"?customer_id={b['id']}", f"?license_id={b_lic['id']}"):
        for path in ("/versions", "/licenses", "/credentials", "/pulls"):
            r = po.get(path + query, a_auth)
            assert r.status_code in (200, 400) and b_lic["id"] not in r.text.replace(query, "") and '"2.0.0"' not in r.text
    # a cursor says where to go on, never what may be seen
    page = po.get("/licenses?limit=1", b_auth).json()
    assert page["next_cursor"] is None


def test_answers_hold_no_secret(po):
    auth, lic, customer, cred = po.customer()
    for path in ("/versions", "/licenses", "/credentials", "/pulls"):
        text = po.get(path, auth).text
        for secret in (cred["secret"], lic["key"], po.s.registry.password, "hash", po.s.registry.url.split("//")[1]):
            assert secret not in text, (path, secret)


def test_markup_is_data(po):
    auth, lic, *_ = po.customer()
    po.s.api("PATCH", f"/licenses/{lic['id']}", {"name": "<script>alert(1)</script>"}, 200)
    r = po.get("/versions", auth)
    assert r.headers["Content-Type"].startswith("application/json") and r.headers.get("X-Content-Type-Options") == "nosniff"


def test_writes_are_405(po):
    auth, *_ = po.customer()
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert requests.request(method, po.s.admin_base + "/portal/v1/versions", headers={"Authorization": auth}).status_code == 405


def test_commands_without_public_url():
    portal = Portal(proxy={})
    try:
        auth, *_ = portal.customer([{"selector": "exact", "value": "1.0.0"}])
        chart, image = portal.get("/versions", auth).json()["items"][0]["artifacts"]
        assert image["commands"][0].startswith("docker pull 127.0.0.1:") and chart["commands"][0].endswith(" --plain-http")
    finally:
        portal.s.close()
