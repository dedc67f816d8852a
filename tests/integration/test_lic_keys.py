"""Keys and files: validation and its lease, license files, revocation lists, the keys that sign, offline verification and bundles.
The rows of LICENSING.md are in the names."""
import base64
import hashlib
import hmac
import http.server
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time

import pytest
import requests
from nacl.signing import SigningKey, VerifyKey

from admin_fixture import problem, second_vendor
from stack import BIN, ROOT, Stack, basic, wait_for


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def jws_open(text, jwks, typ):
    """As docs/LICENSE_FILE.md tells an application to."""
    head, payload, sig = text.split(".")
    h = json.loads(unb64(head))
    assert h == {"alg": "EdDSA", "typ": typ, "kid": h["kid"]}
    key = next(k for k in jwks["keys"] if k["kid"] == h["kid"])
    VerifyKey(unb64(key["x"])).verify(f"{head}.{payload}".encode(), unb64(sig))
    return json.loads(unb64(payload))


@pytest.fixture(scope="module")
def s():
    s = Stack(limits={"auth_failures_per_minute": 100000})
    try:
        layers = [os.urandom(3000) for _ in range(4)]
        arm = s.registry.push_image("acme/api", None, [layers[0], layers[1]], platform=("linux", "arm64"))
        amd = s.registry.push_image("acme/api", None, [layers[0], layers[2]])
        s.index = s.registry.push_index("acme/api", "1.0.0", [amd, arm], [("linux", "amd64"), ("linux", "arm64")])
        s.second = s.registry.push_image("acme/api", "1.1.0", [layers[3]])
        s.registry.push_image("acme/api", "2.0.0", [b"not granted"])
        s.up = s.add_upstream()
        s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], s.up["id"])
        s.cus = s.add_customer("globex")
        s.n = 0
        yield s
    finally:
        s.close()


@pytest.fixture
def make(s):
    def license(**kw):
        s.n += 1
        return s.add_license(s.cus["id"], s.app["id"], kw.pop("grants", [{"selector": "range", "value": "^1"}]), name=kw.pop("name", f"Prod {s.n}"), **kw)
    return license


def validate(s, key, expect=200, **kw):
    r = requests.post(s.admin_base + "/api/v1/validate", json={"key": key, **kw})
    assert r.status_code == expect, r.text
    return r.json()


def jwks(s):
    r = requests.get(s.admin_base + "/.well-known/jwks.json")
    assert r.status_code == 200 and r.headers["Content-Type"] == "application/jwk-set+json" and "public" in r.headers["Cache-Control"]
    return r.json()


def file_of(s, lic, expect=200, path="/licenses/{}/file"):
    r = s.api("GET", path.format(lic["id"]), None, expect)
    if expect == 200:
        assert r.headers["Content-Type"] == "application/jose"
        return r.text
    return r


def claims_of(s, lic):
    return jws_open(file_of(s, lic), jwks(s), "pullgate-license+jws")


def crl(s, base="/api/v1/crl"):
    r = requests.get(s.admin_base + base)
    assert r.status_code == 200 and r.headers["Content-Type"] == "application/jose"
    return r.text


def revoked_of(s, lic):
    return [e for e in jws_open(crl(s), jwks(s), "pullgate-crl+jws")["revoked"] if e["license_id"] == lic["id"]]


def rows_of(s, sql, *args):
    with sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True) as db:
        return db.execute(sql, args).fetchall()


# ---- the key ---------------------------------------------------------------------------------------------------------------


def test_lic_0_29_key_format_hashed_shown_once_and_a_password(s, make):
    lic = make()
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{6}-){3}[0-9A-HJKMNP-TV-Z]{6}", lic["key"])
    assert "key" not in s.api.get(f"/licenses/{lic['id']}") and lic["key_prefix"] == lic["key"][:6]
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", lic["key"]), 200)
    assert lic["key"] not in (s.dir / "pullgate.db").read_bytes().decode("latin1")
    spelt = lic["key"].lower().replace("-", "")
    assert validate(s, spelt)["valid"] and validate(s, lic["key"])["license_id"] == lic["id"]


def test_lic_0_28_the_customer_sees_which_key_he_has(s, make):
    lic = make()
    r = requests.get(s.admin_base + "/portal/v1/licenses", headers={"Authorization": basic("globex", lic["key"])})
    assert [l["key_prefix"] for l in r.json()["items"]] == [lic["key"][:6]]
    assert lic["key"] not in r.text


def test_lic_1_25_rotate_key_kills_the_old_one_and_its_files(s, make):
    lic = make()
    text = file_of(s, lic)
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", lic["key"]), 200)
    new = s.api.post(f"/licenses/{lic['id']}/rotate-key", expect=200)["key"]
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", lic["key"]), 401)
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", new), 200)
    assert not validate(s, lic["key"])["valid"] and validate(s, new)["valid"]
    (entry,) = revoked_of(s, lic)
    assert entry["serial"] == 1 and entry["reason"] == "superseded" and entry["key_prefix"] == lic["key"][:6]
    assert file_of(s, lic) != text and claims_of(s, lic)["serial"] == 2


# ---- validation ------------------------------------------------------------------------------------------------------------


def test_lic_2_16_validate_answers_a_signed_day_and_a_heartbeat(s, make):
    lic = make(expires_at="2090-01-01")
    before = time.time()
    v = validate(s, lic["key"], instance_id="node-1", version="1.4.2", hostname="db.example")
    assert v["valid"] and v["reason"] == "ok" and v["effective_status"] == "active" and "2090" in v["expires_at"]
    c = jws_open(v["lease"], jwks(s), "pullgate-lease+jws")
    assert c["sub"] == lic["id"] and c["instance"] == "node-1" and c["status"] == "active" and c["customer"]["slug"] == "globex"
    assert c["application"]["slug"] == "shop" and c["limits"] == v["limits"] and c["application_version"] == "1.4.2"
    assert before - 2 <= c["iat"] <= time.time() + 2 and c["exp"] - c["iat"] == 24 * 3600
    rows = wait_for("the heartbeat", lambda: s.api.get(f"/licenses/{lic['id']}/instances")["items"])
    assert rows[0]["fingerprint"] == "node-1" and rows[0]["kind"] == "validate" and rows[0]["agent"] == "db.example 1.4.2"
    assert rows_of(s, "SELECT actor FROM events WHERE type='license.instance_registered' AND license_id=?", lic["id"]) == [("validate",)]
    now = s.api.get(f"/licenses/{lic['id']}")
    assert now["first_used_at"] == now["last_validated_at"] is not None and lic["last_validated_at"] is None


def test_lic_2_16_a_lease_never_outlives_the_license(s, make):
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    c = jws_open(validate(s, make(expires_at=soon)["key"])["lease"], jwks(s), "pullgate-lease+jws")
    assert abs(c["exp"] - time.time() - 3600) < 10
    c = jws_open(validate(s, make(expires_at=soon, grace_days=1)["key"])["lease"], jwks(s), "pullgate-lease+jws")
    assert c["exp"] - c["iat"] == 24 * 3600


def test_lic_2_16_the_writer_gets_one_heartbeat_a_minute(s, make):
    lic = make()
    assert all(validate(s, lic["key"], instance_id="busy")["valid"] for _ in range(50))
    first = wait_for("the heartbeat", lambda: s.api.get(f"/licenses/{lic['id']}/instances")["items"])[0]
    time.sleep(1.1)
    validate(s, lic["key"], instance_id="busy")
    assert s.api.get(f"/licenses/{lic['id']}/instances")["items"] == [first]


@pytest.mark.parametrize("how, reason", [
    ({"status": "inactive"}, "inactive"), ({"expires_at": "2020-01-01"}, "expired"), ({"starts_at": "2090-01-01"}, "scheduled"),
    ({"allowed_cidrs": ["203.0.113.0/24"]}, "ip_not_allowed"), ("suspend", "suspended"), ("revoke", "revoked"),
])
def test_lic_2_15_validate_says_why_not(s, make, how, reason):
    lic = make(**how) if isinstance(how, dict) else make()
    if isinstance(how, str):
        s.api.post(f"/licenses/{lic['id']}/{how}", {"reason": "because"}, expect=200)
    v = validate(s, lic["key"])
    assert not v["valid"] and v["reason"] == reason and v["lease"] is None and lic["name"] in v["message"]
    assert s.api.get(f"/licenses/{lic['id']}/instances")["items"] == []


def test_lic_0_7_custom_limits_and_features_reach_the_application(s, make, tmp_path):
    lic = make(limits={"max_instances": 2, "limit_action": "deny", "custom": {"max_users": 50, "lease": "12h"}}, features={"sso": True})
    v = validate(s, lic["key"], instance_id="a")
    c = jws_open(v["lease"], jwks(s), "pullgate-lease+jws")
    for told in (claims_of(s, lic), c, v):
        assert told["limits"]["custom"]["max_users"] == 50 and told["limits"]["max_instances"] == 2 and told["features"] == {"sso": True}
    assert claims_of(s, lic)["limit_action"] == "deny" and c["exp"] - c["iat"] == 12 * 3600
    # the limit of instances holds here too
    assert validate(s, lic["key"], instance_id="b")["valid"]
    wait_for("both", lambda: len(s.api.get(f"/licenses/{lic['id']}/instances")["items"]) == 2)
    assert validate(s, lic["key"], instance_id="c")["reason"] == "instance_limit" and validate(s, lic["key"], instance_id="a")["valid"]
    s.api("DELETE", f"/licenses/{lic['id']}/instances/b", None, 204)
    assert validate(s, lic["key"], instance_id="c")["valid"]


def test_lic_2_17_the_example_of_the_documentation_works(s, make):
    text = (ROOT / "docs/LICENSE_FILE.md").read_text()
    code = "\n".join(l[4:] for l in text.split("    import base64", 1)[1].join(["    import base64", ""]).split("\n\nWithout a line")[0].split("\n"))
    env = {}
    exec(code, env)
    lic = make(limits={"custom": {"max_users": 7}}, expires_at="2090-01-01")
    f = file_of(s, lic)
    assert env["license_read"](f + "\n", jwks(s))["limits"]["custom"] == {"max_users": 7}
    for bad, at in ((f[:-8] + "AAAAAAAA", None), (f, 4e9), (validate(s, lic["key"])["lease"], None), (crl(s), None)):
        with pytest.raises(Exception):
            env["license_read"](bad, jwks(s), at)


def test_lic_2_16_activations_is_the_same(s, make):
    r = requests.post(s.admin_base + "/api/v1/activations", json={"key": make()["key"]})
    assert r.status_code == 200 and r.json()["valid"]


@pytest.mark.parametrize("key", ["AAAAAA-BBBBBB-CCCCCC-DDDDDD", "x", "pgc_" + "A" * 49, "0" * 24, "\u00e9" * 30, "' OR 1=1 --"])
def test_an_unknown_key_is_told_nothing(s, key):
    v = validate(s, key)
    assert v == {"valid": False, "reason": "unknown_key", "message": "no license has this key", "effective_status": None, "license_id": None,
                 "expires_at": None, "updates_until": None, "limits": {}, "features": {}, "lease": None, "lease_expires_at": None}


def test_unknown_keys_take_the_time_of_known_ones(s, make):
    key, wrong = make()["key"], "AAAAAA-BBBBBB-CCCCCC-DDDDDD"
    with requests.Session() as c:
        def once(k):
            t = time.perf_counter()
            c.post(s.admin_base + "/api/v1/validate", json={"key": k})
            return time.perf_counter() - t
        times = {k: [] for k in (key, wrong)}
        for _ in range(150):
            for k in times:
                times[k].append(once(k))
    a, b = (sorted(times[k])[len(times[k]) // 3] for k in (key, wrong))
    assert 0.5 < a / b < 2, (a, b)


def test_guessing_is_a_failed_sign_in():
    from admin_fixture import admin_stack
    with admin_stack(limits={"auth_failures_per_minute": 5}) as a:
        up = a.add_upstream()
        app = a.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        key = a.add_license(a.add_customer("c")["id"], app["id"])["key"]
        url = a.admin_base + "/api/v1/validate"
        answers = [requests.post(url, json={"key": "nope"}) for _ in range(12)]
        assert answers[0].status_code == 200
        r = answers[-1]
        while r.status_code != 429:
            r = requests.post(url, json={"key": "nope"})
        problem(r, 429, "too_many_failures")
        assert requests.post(url, json={"key": key}).json()["valid"]


# ---- license files ---------------------------------------------------------------------------------------------------------


def test_lic_4_20_the_signed_file_and_who_had_it(s, make):
    lic = make(expires_at="2090-05-31", grace_days=7, updates_until="2030-01-01", metadata={"k": "v"})
    c = claims_of(s, lic)
    full = s.api.get(f"/licenses/{lic['id']}")
    for k in ("name", "type", "status", "expires_at", "grace_days", "updates_until", "on_expiry", "key_prefix", "starts_at"):
        assert c[k] == full[k], k
    assert c["sub"] == c["license_id"] == lic["id"] and c["serial"] == 1 and c["jti"] == f"{lic['id']}/1"
    assert c["customer"] == {"id": s.cus["id"], "slug": "globex", "name": "Globex"} and c["application"]["slug"] == "shop"
    assert [(g["selector"], g["value"]) for g in c["grants"]] == [("range", "^1")]
    assert c["exp"] - c["iat"] > 7 * 86400 and c["crl"].endswith(f"/api/v1/vendors/{c['vendor']['slug']}/crl")
    (f,) = s.api.get(f"/licenses/{lic['id']}/files")["items"]
    assert f["serial"] == 1 and f["status"] == "current" and f["downloads"] == 1 and f["downloaded_by"].startswith("token:") and f["downloaded_at"]
    assert s.api.get(f"/licenses/{lic['id']}")["file_downloaded_at"] == f["downloaded_at"] and full["file_downloaded_at"]
    assert "license.file" in [a["action"] for a in s.api.get("/audit?limit=1000")["items"]]


def test_lic_4_18_the_file_is_made_on_demand_with_a_serial_that_only_moves_with_what_it_says(s, make):
    lic = make(expires_at="2090-01-01")
    assert s.api.get(f"/licenses/{lic['id']}/files")["items"] == [] and lic["key_prefix"]
    first = file_of(s, lic)
    assert all(file_of(s, lic) == first for _ in range(3))
    s.api("PATCH", f"/licenses/{lic['id']}", {"name": lic["name"] + " b"}, 200)
    c = claims_of(s, lic)
    assert c["serial"] == 2 and c["name"] == lic["name"] + " b"
    s.api("PATCH", f"/licenses/{lic['id']}", {"name": lic["name"]}, 200)
    assert claims_of(s, lic)["serial"] == 3  # never back


def test_lic_4_30_many_keys_and_many_files_of_one_license(s, make):
    lic = make()
    creds = [s.api.post(f"/customers/{s.cus['id']}/credentials", {"name": f"{lic['name']} {i}", "license_id": lic["id"]}) for i in range(3)]
    for i, c in enumerate(creds):
        s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", c["secret"]), 200)
        r = requests.get(f"{s.admin_base}/portal/v1/licenses/{lic['id']}/file", headers={"Authorization": basic("globex", c["secret"])})
        assert r.status_code == 200 and jws_open(r.text, jwks(s), "pullgate-license+jws")["serial"] == i + 1
        s.api("PATCH", f"/licenses/{lic['id']}", {"environment": f"e{i}"}, 200)
    files = s.api.get(f"/licenses/{lic['id']}/files")["items"]
    assert [(f["serial"], f["status"]) for f in files] == [(1, "replaced"), (2, "replaced"), (3, "current")]
    assert files[0]["downloaded_by"].startswith("customer:")
    page = s.api.get(f"/licenses/{lic['id']}/files?limit=2")
    assert [f["serial"] for f in s.api.get(f"/licenses/{lic['id']}/files?cursor={page['next_cursor']}")["items"]] == [3]


def test_lic_4_20_only_his_own_file(s, make):
    lic, other = make(), make()
    cus2 = s.add_customer(f"initech{s.n}")
    foreign = s.add_license(cus2["id"], s.app["id"])
    bound = s.api.post(f"/customers/{s.cus['id']}/credentials", {"name": f"b{s.n}", "license_id": lic["id"]})["secret"]
    own = s.api.post(f"/customers/{s.cus['id']}/credentials", {"name": f"o{s.n}"})["secret"]

    def get(secret, l):
        return requests.get(f"{s.admin_base}/portal/v1/licenses/{l['id']}/file", headers={"Authorization": basic("globex", secret)}).status_code
    assert [get(bound, lic), get(bound, other), get(own, other), get(own, foreign)] == [200, 404, 200, 404]
    api2, _ = second_vendor(s, f"vendor{s.n}")
    for path in ("file", "files", "versions"):
        problem(api2("GET", f"/licenses/{lic['id']}/{path}"), 404, "not_found")
    assert requests.get(f"{s.admin_base}/portal/v1/licenses/{lic['id']}/file").status_code == 401


def test_lic_4_26_no_file_before_activation_where_the_plan_wants_it(s, make):
    plan = s.api.post("/plans", {"slug": f"asked{s.n}", "name": "Asked", "application_id": s.app["id"], "type": "subscription", "period": "P1Y",
                                 "grants": [{"selector": "all"}], "requires_activation": True})
    lic = s.api.post("/licenses", {"name": f"Asked {s.n}", "customer_id": s.cus["id"], "application_id": s.app["id"], "plan_id": plan["id"]})
    assert lic["status"] == "inactive" and lic["requires_activation"]
    problem(file_of(s, lic, 409), 409, "activation_required")
    s.api.post(f"/licenses/{lic['id']}/activate", expect=200)
    assert claims_of(s, lic)["status"] == "active"
    s.api.post(f"/licenses/{lic['id']}/suspend", expect=200)
    problem(file_of(s, lic, 409), 409, "activation_required")
    assert claims_of(s, make(status="inactive"))["status"] == "inactive"


def test_lic_4_5_a_file_only_when_the_upstream_serves_what_it_licenses(s, make):
    lic = make()
    s.api.post(f"/applications/{s.app['id']}/sync", expect=200)
    assert file_of(s, lic, path="/licenses/{}/file?ready=1")
    broken = s.api.post("/upstreams", {"name": f"gone{s.n}", "url": "http://127.0.0.1:9"})
    app = s.add_application(f"gone{s.n}", [(f"gone{s.n}/x", "x", "image")], broken["id"])
    lic = s.add_license(s.cus["id"], app["id"], name=f"Gone {s.n}")
    d = problem(file_of(s, lic, 409, "/licenses/{}/file?ready=1"), 409, "not_ready")
    assert f"gone{s.n}/x" in d["detail"]
    assert file_of(s, lic)


def test_lic_4_6_who_signs_and_who_issues(s, make):
    c = claims_of(s, make())
    assert c["iss"] == "pullgate" and c["issuer"] == c["vendor"]["name"]
    (key,) = [k for k in s.api.get("/signing-keys")["items"] if k["status"] == "signs"]
    assert key["kid"] == hashlib.sha256(unb64(key["public_key"])).hexdigest()[:16]
    names = [f for f in os.listdir(s.dir / "keys") if f.startswith("license-")]
    assert f"license-{key['kid']}.key" in names
    assert all(os.stat(s.dir / "keys" / n).st_mode & 0o777 == 0o600 for n in names)


def test_lic_4_12_the_serial_is_absent_until_there_is_a_file(s, make):
    lic = make()
    assert lic["key_prefix"] == lic["key"][:6] and s.api.get(f"/licenses/{lic['id']}/files")["items"] == []
    file_of(s, lic)
    assert [f["serial"] for f in s.api.get(f"/licenses/{lic['id']}/files")["items"]] == [1]


def test_lic_4_24_the_activation_record_says_who_and_when(s, make):
    lic = make()
    for name in ("a", "b" * 200, "c d/e"):
        validate(s, lic["key"], instance_id=name)
    rows = wait_for("all", lambda: len(r := s.api.get(f"/licenses/{lic['id']}/instances")["items"]) == 3 and r)
    assert {r["fingerprint"] for r in rows} >= {"a"} and all(r["first_seen_at"] and r["address"] == "127.0.0.1" for r in rows)
    assert max(len(r["fingerprint"]) for r in rows) < 64
    page = s.api.get(f"/licenses/{lic['id']}/instances?limit=1")
    assert s.api.get(f"/licenses/{lic['id']}/instances?cursor={page['next_cursor']}")["items"] == rows[1:]
    s.api("DELETE", f"/licenses/{lic['id']}/instances/{next(r['fingerprint'] for r in rows if r['fingerprint'] != 'a')}", None, 204)
    assert wait_for("first use", lambda: s.api.get(f"/licenses/{lic['id']}")["first_used_at"])


# ---- revocation ------------------------------------------------------------------------------------------------------------


def test_lic_4_22_revoked_at_the_registry_at_once_and_on_the_list(s, make):
    lic, deleted = make(), make()
    file_of(s, lic)
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", lic["key"]), 200)
    before = jws_open(crl(s), jwks(s), "pullgate-crl+jws")
    s.api.post(f"/licenses/{lic['id']}/revoke", {"reason": "Mr Smith did not pay"}, expect=200)
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("globex", lic["key"]), 403)
    (e,) = revoked_of(s, lic)
    assert e["serial"] is None and e["reason"] == "revoked" and e["revoked_at"]
    text = crl(s)
    after = jws_open(text, jwks(s), "pullgate-crl+jws")
    assert after["number"] > before["number"] and after["next_update"] > after["this_update"] and "Smith" not in json.dumps(after)
    problem(file_of(s, lic, 409), 409, "license_revoked")
    assert [f["status"] for f in s.api.get(f"/licenses/{lic['id']}/files")["items"]] == ["revoked"]
    s.api("DELETE", f"/licenses/{deleted['id']}", None, 204)
    (e,) = revoked_of(s, deleted)
    assert e["reason"] == "deleted"
    slug = after["vendor"]["slug"]
    for path in (f"/api/v1/vendors/{slug}/crl", f"/api/v1/crl?vendor={slug}", "/api/v1/crl"):
        assert jws_open(crl(s, path), jwks(s), "pullgate-crl+jws")["number"] >= after["number"]


def test_lic_4_22_a_list_holds_one_vendor_only(s, make):
    lic = make()
    s.api.post(f"/licenses/{lic['id']}/revoke", expect=200)
    api2, ven2 = second_vendor(s, f"listed{s.n}")
    c = jws_open(crl(s, f"/api/v1/vendors/{ven2['slug']}/crl"), jwks(s), "pullgate-crl+jws")
    assert c["revoked"] == [] and c["vendor"]["slug"] == ven2["slug"] and c["number"] == 0
    problem(requests.get(s.admin_base + "/api/v1/vendors/nobody/crl"), 404, "not_found")


# ---- the keys that sign ----------------------------------------------------------------------------------------------------


def test_lic_4_6_rotation_of_the_signing_key(s, make):
    lic = make(expires_at="2090-01-01")
    old_text, old_set = file_of(s, lic), jwks(s)
    files = os.listdir(s.dir / "keys")
    assert s.api.post("/signing-keys?dry_run=1", expect=200)["status"] == "signs" and os.listdir(s.dir / "keys") == files
    new = s.api.post("/signing-keys")
    assert new["status"] == "signs"
    old_kid = json.loads(unb64(old_text.split(".")[0]))["kid"]
    text = file_of(s, lic)
    assert json.loads(unb64(text.split(".")[0]))["kid"] == new["kid"] and jws_open(text, jwks(s), "pullgate-license+jws")["serial"] == 2
    jws_open(old_text, jwks(s), "pullgate-license+jws")  # still believed
    assert s.api.post(f"/signing-keys/{old_kid}/retire", expect=200)["status"] == "retired"
    jws_open(old_text, jwks(s), "pullgate-license+jws")
    s.admin.stop()
    s.start_admin()  # the same one signs
    assert json.loads(unb64(validate(s, lic["key"])["lease"].split(".")[0]))["kid"] == new["kid"]
    assert s.api.post(f"/signing-keys/{old_kid}/retire", {"compromised": True}, expect=200)["status"] == "compromised"
    with pytest.raises(StopIteration):
        jws_open(old_text, jwks(s), "pullgate-license+jws")
    problem(s.api("POST", f"/signing-keys/{new['kid']}/retire", {}), 409, "last_signing_key")
    assert file_of(s, lic) == text
    api2, _ = second_vendor(s, f"signs{s.n}")
    problem(api2("POST", "/signing-keys", {}), 403, "role_not_allowed")
    problem(api2("POST", f"/signing-keys/{new['kid']}/retire", {}), 403, "role_not_allowed")
    problem(s.api("POST", "/signing-keys/nope/retire", {}), 404, "not_found")


# ---- pullgate verify -------------------------------------------------------------------------------------------------------


def verify(*args, expect=None, stdin=None):
    r = subprocess.run([BIN / "pullgate", "verify", *map(str, args)], capture_output=True, text=True, input=stdin, timeout=30)
    assert "Sanitizer" not in r.stderr, r.stderr
    if expect is not None:
        assert r.returncode == expect, (r.returncode, r.stdout, r.stderr)
    return r


@pytest.fixture
def box(s, tmp_path):
    """Files of an offline site."""
    class Box:
        def write(self, name, text):
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
            return tmp_path / name
    b = Box()
    b.dir = tmp_path
    b.jwks = b.write("jwks.json", requests.get(s.admin_base + "/.well-known/jwks.json").text)
    return b


def test_lic_2_17_an_offline_site_verifies_with_a_public_key_alone(s, make, box):
    lic = make()
    text = file_of(s, lic)
    f = box.write("license.jws", text)
    r = verify(f, "--jwks", box.jwks, expect=0)
    assert lic["name"] in r.stdout and "Globex (globex)" in r.stdout and "range:^1" in r.stdout and "no end" in r.stdout
    kid = json.loads(unb64(text.split(".")[0]))["kid"]
    x = next(k["x"] for k in jwks(s)["keys"] if k["kid"] == kid)
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(bytes.fromhex("302a300506032b6570032100") + unb64(x)) + b"\n-----END PUBLIC KEY-----\n"
    for name, key in (("pem", pem), ("hex", unb64(x).hex()), ("b64", x + "\n")):
        verify(f, "--public-key", box.write(name, key), expect=0)
    d = json.loads(verify(f, "--jwks", box.jwks, "--json", expect=0).stdout)
    assert d["valid"] and d["claims"]["license_id"] == lic["id"] and d["kid"] == kid and d["kind"] == "license"
    verify("-", "--jwks", box.jwks, stdin=text + "\n", expect=0)
    # openssl agrees
    head, payload, sig = text.split(".")
    (box.dir / "data").write_bytes(f"{head}.{payload}".encode())
    (box.dir / "sig").write_bytes(unb64(sig))
    subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", box.dir / "pem", "-rawin", "-in", box.dir / "data", "-sigfile", box.dir / "sig"],
                   check=True, capture_output=True)


def test_lic_4_7_the_file_by_hand_and_its_times(s, make, box):
    day = 86400
    stamp = lambda t: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
    now = time.time()
    lic = make(expires_at=stamp(now + 10 * day), grace_days=2)
    f = box.write("license.jws", file_of(s, lic))
    at = lambda days: verify(f, "--jwks", box.jwks, "--at", stamp(now + days * day)).returncode
    assert [at(0), at(9), at(11), at(13), at(-1)] == [0, 0, 0, 3, 3]
    r = verify(f, "--jwks", box.jwks, "--at", "2099-01-01", expect=3)
    assert "expired on" in r.stderr
    later = box.write("later.jws", file_of(s, make(starts_at=stamp(now + day))))
    verify(later, "--jwks", box.jwks, expect=3)
    inactive = box.write("inactive.jws", file_of(s, make(status="inactive")))
    assert "inactive" in verify(inactive, "--jwks", box.jwks, expect=3).stderr
    lease = box.write("lease.jws", validate(s, make()["key"])["lease"])
    assert "lease" in verify(lease, "--jwks", box.jwks, expect=0).stdout
    verify(lease, "--jwks", box.jwks, "--at", stamp(now + 2 * day), expect=3)
    for args in ((), (f,), (f, "--jwks", box.jwks, "--nope"), (box.dir / "none", "--jwks", box.jwks), (f, "--jwks", f), (f, "--jwks", box.jwks, "--at", "soon")):
        verify(*args, expect=2)


def test_lic_4_22_offline_a_revoked_file_is_found_by_the_list(s, make, box):
    lic, rotated, other = make(), make(), make()
    f, g, h = (box.write(f"{i}.jws", file_of(s, l)) for i, l in enumerate((lic, rotated, other)))
    before = box.write("before.crl", crl(s))
    for x in (f, g, h):
        verify(x, "--jwks", box.jwks, "--crl", before, expect=0)
    s.api.post(f"/licenses/{lic['id']}/revoke", expect=200)
    s.api.post(f"/licenses/{rotated['id']}/rotate-key", expect=200)
    after = box.write("after.crl", crl(s))
    assert "revoked on" in verify(f, "--jwks", box.jwks, "--crl", after, expect=4).stderr
    verify(g, "--jwks", box.jwks, "--crl", after, expect=4)
    verify(h, "--jwks", box.jwks, "--crl", after, expect=0)
    verify(box.write("g2", file_of(s, rotated)), "--jwks", box.jwks, "--crl", after, expect=0)  # the next serial
    r = verify(h, "--jwks", box.jwks, "--crl", after, "--at", time.strftime("%Y-%m-%d", time.gmtime(time.time() + 5 * 86400)), expect=0)
    assert "newer revocation list is due" in r.stderr
    # a list that is not the vendor's proves nothing
    _, ven2 = second_vendor(s, f"lists{s.n}")
    foreign = box.write("foreign.crl", crl(s, f"/api/v1/vendors/{ven2['slug']}/crl"))
    verify(h, "--jwks", box.jwks, "--crl", foreign, expect=1)
    verify(h, "--jwks", box.jwks, "--crl", box.write("cut.crl", crl(s)[:-9]), expect=1)
    verify(h, "--jwks", box.jwks, "--crl", h, expect=1)


def test_forged_files_are_not_believed(s, make, box):
    lic = make(expires_at="2090-01-01")
    text = file_of(s, lic)
    head, payload, sig = text.split(".")
    header, claims = json.loads(unb64(head)), json.loads(unb64(payload))
    pub = unb64(next(k["x"] for k in jwks(s)["keys"] if k["kid"] == header["kid"]))
    mine = SigningKey.generate()

    def build(h, c, sign=lambda data: mine.sign(data).signature):
        h = b64(h if isinstance(h, bytes) else json.dumps(h).encode())
        c = b64(c if isinstance(c, bytes) else json.dumps(c).encode())
        return f"{h}.{c}.{b64(sign(f'{h}.{c}'.encode()))}"

    my_x = b64(mine.verify_key.encode())
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": my_x, "kid": header["kid"]}
    forged = {
        "alg none": f"{b64(json.dumps({**header, 'alg': 'none'}).encode())}.{payload}.",
        "alg none, signature kept": f"{b64(json.dumps({**header, 'alg': 'none'}).encode())}.{payload}.{sig}",
        "HS256 under the public key": build({**header, "alg": "HS256"}, claims, lambda d: hmac.new(pub, d, "sha256").digest()),
        "another key": build(header, claims),
        "another kid": build({**header, "kid": "0" * 16}, claims),
        "no kid": build({k: v for k, v in header.items() if k != "kid"}, claims),
        "embedded jwk": build({**header, "jwk": jwk}, claims),
        "jku": build({**header, "jku": "http://127.0.0.1/jwks.json"}, claims),
        "crit": build({**header, "crit": ["exp"], "exp": 1}, claims),
        "kid a path": build({**header, "kid": "../../dev/null"}, claims),
        "kid twice": build(json.dumps(header).replace("{", '{"kid":"x",', 1).encode(), claims),
        "altered claims": f"{head}.{b64(json.dumps({**claims, 'expires_at': None}).encode())}.{sig}",
        "trailing bytes": text + "A", "trailing dot": text + ".", "trailing blank": text + " ", "two line ends": text + "\n\n", "leading blank": " " + text,
        "padding": f"{head}.{payload}=.{sig}", "short signature": text[:-3], "no signature": f"{head}.{payload}.", "two parts": f"{head}.{payload}",
        "not canonical": text[:-1] + ("B" if text[-1] != "B" else "C"),
        "standard base64": text.replace("-", "+").replace("_", "/") + "+",
        "a NUL": text.replace(".", ".\0", 1), "empty": "", "dots": "..", "huge": "A" * (2 << 20), "binary": os.urandom(3000),
        "a JWS in JSON": json.dumps({"protected": head, "payload": payload, "signature": sig}),
        "a list as a license": crl(s),
    }
    for name, t in forged.items():
        r = verify(box.write("f.jws", t), "--jwks", box.jwks)
        assert r.returncode == 1, (name, r)
        assert lic["name"] not in r.stdout, name
        assert json.loads(verify(box.write("f.jws", t), "--jwks", box.jwks, "--json").stdout)["claims"] is None
    verify(box.write("f.jws", text), "--jwks", box.write("mine.json", json.dumps({"keys": [{**jwk}]})), expect=1)


def test_signed_but_of_no_known_form(box):
    """A right signature is not enough: what is concluded from must be there, once, and of the form that is known."""
    mine = SigningKey.generate()
    x = mine.verify_key.encode()
    kid = hashlib.sha256(x).hexdigest()[:16]
    keys = box.write("own.json", json.dumps({"keys": [{"kty": "RSA", "kid": "r", "n": "AQ", "e": "AQAB"},
                                                      {"kty": "OKP", "crv": "Ed25519", "x": b64(x), "kid": kid}]}))
    good = {"version": 1, "iat": 1700000000, "sub": "lic_1", "license_id": "lic_1", "serial": 1, "status": "active", "starts_at": None, "expires_at": None,
            "grace_days": 0, "vendor": {"id": "ven_1"}}

    def build(c, typ="pullgate-license+jws"):
        h = b64(json.dumps({"alg": "EdDSA", "kid": kid, "typ": typ}).encode())
        c = b64(c if isinstance(c, bytes) else json.dumps(c).encode())
        return box.write("own.jws", f"{h}.{c}.{b64(mine.sign(f'{h}.{c}'.encode()).signature)}")

    verify(build(good), "--jwks", keys, expect=0)
    bad = [{**good, "version": 2}, {**good, "status": "gold"}, {**good, "expires_at": "never"}, {**good, "expires_at": 5}, {**good, "serial": 0},
           {**good, "sub": "lic_2"}, {**good, "grace_days": -1}, {**good, "grace_days": 1e9}, {**good, "iat": "x"}, {**good, "vendor": {}},
           {k: v for k, v in good.items() if k != "expires_at"}, [], "x", 1, None, {}]
    raw = [b"", b"{", b"not json", json.dumps(good).encode() + b"x", json.dumps(good).replace("{", '{"expires_at":null,', 1).encode(),
           b"[" * 100 + b"]" * 100, b'{"a":"\xff"}', b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"]
    for c in bad + raw:
        assert verify(build(c), "--jwks", keys).returncode == 1, c
    for typ in ("pullgate-crl+jws", "JWT", "", "pullgate-license+jws "):
        assert verify(build(good, typ), "--jwks", keys).returncode == 1, typ
    two = {"kty": "OKP", "crv": "Ed25519", "x": b64(x), "kid": kid}
    for doc in ({"keys": [two, two]}, {"keys": []}, {}, [], {"keys": [{**two, "x": "AA"}]}, {"keys": [{**two, "kid": "k" * 99}]}):
        verify(build(good), "--jwks", box.write("bad.json", json.dumps(doc)), expect=2)


# ---- bundles ---------------------------------------------------------------------------------------------------------------


def bundle(s, lic, directory, *args, expect=0):
    tok = s.dir / "bundle-token"
    tok.write_text(s.token)
    r = subprocess.run([BIN / "pullgate", "--url", s.admin_base, "--token-file", tok, "bundle", lic["id"], "-o", directory, "--registry", s.base, *args],
                       capture_output=True, text=True, timeout=120)
    assert "Sanitizer" not in r.stderr, r.stderr
    assert r.returncode == expect, (r.returncode, r.stdout, r.stderr)
    return r


def layout(directory):
    """Every blob has the digest it is named after; everything reachable is there. -> refs, digests."""
    index = json.loads((directory / "index.json").read_text())
    assert json.loads((directory / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    have = {}
    for f in (directory / "blobs").glob("*/*"):
        have[f"{f.parent.name}:{f.name}"] = data = f.read_bytes()
        assert hashlib.new(f.parent.name, data).hexdigest() == f.name
    seen = set()

    def walk(d):
        assert len(have[d["digest"]]) == d["size"]
        seen.add(d["digest"])
        if "manifest" in d["mediaType"] or "index" in d["mediaType"]:
            doc = json.loads(have[d["digest"]])
            for child in doc.get("manifests", []) + doc.get("layers", []) + ([doc["config"]] if "config" in doc else []):
                walk(child)
    for d in index["manifests"]:
        walk(d)
    assert seen == set(have)
    return {d["annotations"]["org.opencontainers.image.ref.name"]: d for d in index["manifests"] if "annotations" in d}, seen


def credentials_of(s):
    return rows_of(s, "SELECT count(*), sum(revoked_at=0) FROM credentials WHERE name LIKE 'bundle %'")[0]


def test_lic_2_17_a_bundle_holds_exactly_what_is_granted(s, make, tmp_path):
    s.api.post(f"/applications/{s.app['id']}/sync", expect=200)
    lic = make(grants=[{"selector": "exact", "value": "1.0.0"}, {"selector": "exact", "value": "1.1.0"}])
    out = tmp_path / "bundle"
    bundle(s, lic, out)
    refs, digests = layout(out)
    assert set(refs) == {"shop/api:1.0.0", "1.0.0", "shop/api:1.1.0", "1.1.0", "license"}
    assert refs["1.0.0"]["digest"] == s.index["digest"] and refs["1.1.0"]["digest"] == s.second["digest"]
    for child in s.index["children"]:
        assert {child["digest"], child["config"], *child["layers"]} <= digests
    text = (out / "license.jws").read_text()
    assert text == file_of(s, lic)
    verify(out / "license.jws", "--jwks", out / "jwks.json", "--crl", out / "crl.jws", expect=0)
    assert credentials_of(s)[1] == 0  # what was made for it is revoked
    if shutil.which("skopeo"):
        run = lambda *a: subprocess.run(["skopeo", *a], check=True, capture_output=True, text=True).stdout
        run("copy", "--all", "--preserve-digests", f"oci:{out}:1.0.0", f"dir:{tmp_path}/copied")
        assert hashlib.sha256((tmp_path / "copied/manifest.json").read_bytes()).hexdigest() == s.index["digest"][7:]
        assert json.loads(run("inspect", f"oci:{out}:shop/api:1.1.0"))["Digest"] == s.second["digest"]
    # again: nothing is fetched twice; what was damaged or left half is made whole; what is granted no more goes
    assert json.loads(bundle(s, lic, out, "--json").stdout)["blobs_fetched"] == 0
    blobs = sorted((out / "blobs/sha256").iterdir(), key=lambda f: f.stat().st_size)
    blobs[-1].write_bytes(b"x" * blobs[-1].stat().st_size)
    (out / "blobs/sha256/.half.part").write_bytes(b"x")
    (out / "index.json").unlink()
    assert json.loads(bundle(s, lic, out, "--json").stdout)["blobs_fetched"] == 1
    layout(out)
    g = next(g for g in s.api.get(f"/licenses/{lic['id']}")["grants"] if g["value"] == "1.1.0")
    s.api("DELETE", f"/licenses/{lic['id']}/grants/{g['id']}", {"reason": "swapped"}, 204)
    s.wait_status("/v2/shop/api/manifests/1.1.0", ("x", lic["key"]), 403)
    bundle(s, lic, out)
    refs, digests = layout(out)
    assert "1.1.0" not in refs and s.second["digest"] not in digests


def test_a_bundle_of_one_platform_and_with_the_key(s, make, tmp_path):
    lic = make(grants=[{"selector": "exact", "value": "1.0.0"}])
    key = tmp_path / "key"
    key.write_text(lic["key"] + "\n")
    before = credentials_of(s)
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("x", lic["key"]), 200)
    bundle(s, lic, tmp_path / "b", "--platform", "linux/arm64", "--username", "globex", "--password-file", key)
    assert credentials_of(s) == before
    amd, arm = s.index["children"]
    have = {f.name for f in (tmp_path / "b/blobs/sha256").iterdir()}
    assert arm["digest"][7:] in have and amd["digest"][7:] not in have and s.index["digest"][7:] in have
    # nothing of somebody else's is written to
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    bundle(s, lic, tmp_path / "mine", expect=2)
    other = make()
    bundle(s, other, tmp_path / "b", expect=2)
    assert os.listdir(tmp_path / "mine") == ["file"]
    # refused by the gate: no index, and the credential is gone
    s.api.post(f"/licenses/{lic['id']}/suspend", expect=200)
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("x", lic["key"]), 403)
    wrong = tmp_path / "wrong"
    wrong.write_text("pgc_nobody")
    bundle(s, other, tmp_path / "c", "--username", "globex", "--password-file", wrong, expect=3)
    assert not (tmp_path / "c/index.json").exists() and credentials_of(s)[1] == 0


def test_a_bundle_brings_signatures_and_charts(s, tmp_path):
    img = s.registry.push_image("acme/signed", "3.0.0", [b"signed layer"])
    sig = s.registry.push_image("acme/signed", img["digest"].replace(":", "-") + ".sig", [b"signature"])
    sbom = b'{"spdx":1}'
    layer = s.registry.push_blob("acme/signed", sbom)
    empty = s.registry.push_blob("acme/signed", b"{}")
    mt = "application/vnd.oci.image.manifest.v1+json"
    doc = {"schemaVersion": 2, "mediaType": mt, "artifactType": "application/spdx+json",
           "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
           "layers": [{"mediaType": "application/spdx+json", "digest": layer, "size": len(sbom)}],
           "subject": {"mediaType": mt, "digest": img["digest"], "size": img["size"]}}
    data = json.dumps(doc).encode()
    referrer = s.registry.push_manifest("acme/signed", None, data, mt)
    s.registry.push_manifest("acme/signed", img["digest"].replace(":", "-"), {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": mt, "digest": referrer, "size": len(data), "artifactType": "application/spdx+json"}]}, "application/vnd.oci.image.index.v1+json")
    chart_config = b'{"name":"chart","version":"3.0.0","apiVersion":"v2"}'
    chart_layer = os.urandom(500)
    chart = {"schemaVersion": 2, "mediaType": mt,
             "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": s.registry.push_blob("acme/chart", chart_config), "size": len(chart_config)},
             "layers": [{"mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "digest": s.registry.push_blob("acme/chart", chart_layer), "size": 500}]}
    chart_digest = s.registry.push_manifest("acme/chart", "3.0.0", chart, mt)
    app = s.add_application("signed", [("signed/api", "acme/signed", "image"), ("signed/chart", "acme/chart", "chart")], s.up["id"])
    s.api.post(f"/applications/{app['id']}/sync", expect=200)
    lic = s.add_license(s.cus["id"], app["id"], [{"selector": "exact", "value": "3.0.0"}], name=f"Signed {s.n}")
    out = tmp_path / "b"
    bundle(s, lic, out)
    refs, digests = layout(out)
    assert set(refs) == {"signed/api:3.0.0", "signed/chart:3.0.0", "license", img["digest"].replace(":", "-") + ".sig"}  # the tag alone would be ambiguous
    assert {img["digest"], sig["digest"], referrer, layer, chart_digest, chart["layers"][0]["digest"]} <= digests
    listed = [d for d in json.loads((out / "index.json").read_text())["manifests"] if d["digest"] == referrer]
    assert len(listed) == 1 and listed[0]["artifactType"] == "application/spdx+json"
    if shutil.which("skopeo"):
        subprocess.run(["skopeo", "copy", f"oci:{out}:signed/chart:3.0.0", f"dir:{tmp_path}/chart"], check=True, capture_output=True)
        assert hashlib.sha256((tmp_path / "chart/manifest.json").read_bytes()).hexdigest() == chart_digest[7:]


def test_a_backup_with_keys_brings_the_signing_keys(s, make, tmp_path):
    lic = make()
    text, kid = file_of(s, lic), next(k["kid"] for k in s.api.get("/signing-keys")["items"] if k["status"] == "signs")
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse battery")
    phrase.chmod(0o600)
    config = s.write_config()
    run = lambda *a: subprocess.run([BIN / "pullgate", *map(str, a), "--config", config, "--passphrase-file", phrase, "--with-keys"], capture_output=True, text=True, timeout=60,
                                   env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    r = run("backup", tmp_path / "b.backup")
    assert r.returncode == 0, r.stderr
    s.admin.stop()
    shutil.rmtree(s.dir / "keys")
    r = run("restore", tmp_path / "b.backup")
    assert r.returncode == 0, r.stderr
    s.start_admin()
    assert next(k["kid"] for k in s.api.get("/signing-keys")["items"] if k["status"] == "signs") == kid
    assert file_of(s, lic) == text and validate(s, lic["key"])["valid"]


class Meddler:
    """Stands between bundle and the proxy: passes requests on, and does to blobs what `how` says, so many times as `times`."""

    def __init__(self, s, how, times):
        outer = self
        self.seen, self.left = [], times

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, body, fields=()):
                self.send_response(status)
                for k, v in fields:
                    self.send_header(k, v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                auth = self.headers.get("Authorization")
                outer.seen.append((self.path, auth))
                path = self.path.removeprefix("/elsewhere")
                if how == "redirect" and path == self.path and "/blobs/" in path:
                    return self.answer(307, b"", [("Location", f"http://localhost:{outer.port}/elsewhere{path}")])
                r = requests.get(s.base + path, headers={"Authorization": auth or outer.last, "Accept": self.headers.get("Accept", "*/*")})
                outer.last = auth or outer.last
                body, is_blob = r.content, "/blobs/" in path
                if is_blob and outer.left > 0:
                    outer.left -= 1
                    if how == "503":
                        return self.answer(503, b"{}")
                    if how == "corrupt":
                        body = body[:-1] + bytes([body[-1] ^ 1])
                    if how == "longer":
                        body += b"x"
                    if how == "cut":
                        self.send_response(200)
                        self.send_header("Content-Length", str(len(body)))
                        self.end_headers()
                        self.wfile.write(body[:len(body) // 2])
                        self.close_connection = True
                        return None
                if how == "manifest" and "/manifests/" in path:
                    body = body.replace(b"linux", b"Linux")
                return self.answer(r.status_code, body, [("Content-Type", r.headers["Content-Type"])])

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("how, times, code", [("redirect", 0, 0), ("503", 1, 0), ("cut", 1, 0), ("corrupt", 1, 0), ("corrupt", 99, 4), ("longer", 99, 4), ("manifest", 0, 1)])
def test_a_bundle_believes_no_byte_that_is_not_its_digests(s, make, tmp_path, how, times, code):
    lic = make(grants=[{"selector": "exact", "value": "1.0.0"}])
    key = tmp_path / "key"
    key.write_text(lic["key"])
    s.wait_status("/v2/shop/api/manifests/1.0.0", ("x", lic["key"]), 200)
    out = tmp_path / "b"
    with Meddler(s, how, times) as m:
        r = bundle(s, lic, out, "--registry", f"http://127.0.0.1:{m.port}", "--username", "x", "--password-file", key, expect=code)
        if how == "redirect":
            there = [a for p, a in m.seen if p.startswith("/elsewhere")]
            assert there and set(there) == {None}  # the credential stays where it belongs
    if code:
        assert not (out / "index.json").exists() and (how == "longer" or "its bytes are not those of its digest" in r.stderr)
    else:
        layout(out)


def test_lic_1_26_reset_ends_files_and_leases(s, make, box):
    lic = make()
    f, lease = box.write("f", file_of(s, lic)), box.write("l", validate(s, lic["key"], instance_id="i")["lease"])
    wait_for("the instance", lambda: s.api.get(f"/licenses/{lic['id']}/instances")["items"])
    new = s.api.post(f"/licenses/{lic['id']}/reset", {"reason": "lost"}, expect=200)["key"]
    assert not validate(s, lic["key"])["valid"] and validate(s, new)["valid"]
    late = box.write("crl", crl(s))
    verify(f, "--jwks", box.jwks, "--crl", late, expect=4)
    verify(lease, "--jwks", box.jwks, "--crl", late, expect=4)
    assert [x["status"] for x in s.api.get(f"/licenses/{lic['id']}/files")["items"]] == ["revoked"]
