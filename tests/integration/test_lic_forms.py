"""What a form for licenses needs of the API: one request with everything, a preview before it is saved, and an edit that shows at once."""
import re
import time

import pytest
import requests

from stack import Stack, basic, wait_for


@pytest.fixture(scope="module")
def shop():
    s = Stack()
    for v in ("1.0.0", "1.1.0", "2.0.0"):
        s.registry.push_image("acme/api", v, [b"layer " + v.encode()])
    up = s.add_upstream()
    s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
    s.api("POST", f"/applications/{s.app['id']}/sync", {}, expect=200)
    s.customer = s.add_customer("globex")
    s.auth = basic("globex", s.add_credential(s.customer["id"])["secret"])
    s.wait_status("/v2/", s.auth, 200)
    yield s
    s.close()


def form(s, **kw):
    return {"name": "Form", "customer_id": s.customer["id"], "application_id": s.app["id"], "status": "active", "expires_at": "2099-03-01",
            "grants": [{"selector": "range", "value": "^1.0"}], **kw}


def named(s, name):
    return [i for i in s.api.get("/licenses?limit=1000")["items"] if i["name"] == name]


def test_lic_3_10_an_edit_shows_in_portal_and_gate_within_a_second(shop):
    s = shop
    lic = s.api.post("/licenses", form(s, name="Edited"))
    portal = lambda: {i["version"] for i in requests.get(s.admin_base + "/portal/v1/versions", headers={"Authorization": s.auth}).json()["items"]}
    gate = lambda v: s.get(f"/v2/shop/api/manifests/{v}", s.auth).status_code
    wait_for("the first state", lambda: portal() == {"1.0.0", "1.1.0"} and gate("1.0.0") == 200 and gate("2.0.0") == 403, 10)
    began = time.monotonic()
    s.api("POST", f"/licenses/{lic['id']}/grants", {"selector": "exact", "value": "2.0.0"}, expect=200)
    wait_for("the grant at the gate and in the portal", lambda: gate("2.0.0") == 200 and "2.0.0" in portal(), 5)
    print(f"seen by both after {time.monotonic() - began:.3f} s")
    s.api("POST", f"/licenses/{lic['id']}/suspend", {"reason": "x"}, expect=200)
    wait_for("the suspension at the gate and in the portal", lambda: gate("1.0.0") == 403 and portal() == set(), 5)
    s.api("DELETE", f"/licenses/{lic['id']}")


def test_lic_3_16_3_17_3_18_one_request_makes_a_license(shop):
    s = shop
    lic = s.api.post("/licenses", form(s, name="Whole"))
    assert (lic["name"], lic["application_id"], lic["customer_id"]) == ("Whole", s.app["id"], s.customer["id"])
    assert lic["expires_at"].startswith("2099-03-01") and [g["value"] for g in lic["grants"]] == ["^1.0"] and lic["effective_status"] == "active"
    for field in ("name", "customer_id", "application_id"):
        body = form(s, name="Lacking")
        del body[field]
        r = s.api("POST", "/licenses", body)
        assert r.status_code == 400 and r.json()["field"] == field, r.text
    s.api("DELETE", f"/licenses/{lic['id']}")


def test_lic_3_19_the_picker_shows_what_a_grant_matches_now(shop):
    s = shop
    r = s.api("POST", "/licenses?dry_run=1", form(s, name="Looked at"), expect=200)
    assert r.headers["Dry-Run"] == "true"
    assert {(g["repository"], g["tag"]) for g in r.json()["effect"]["gained"]} == {("shop/api", "1.0.0"), ("shop/api", "1.1.0")}
    r = s.api("POST", "/licenses?dry_run=1", form(s, name="Looked at", grants=[{"selector": "range", "value": "^3"}]), expect=200)
    assert r.json()["effect"]["gained"] == []
    assert not named(s, "Looked at"), "a look makes nothing"


def test_lic_3_20_a_form_is_saved_whole_or_not_at_all(shop):
    s = shop
    r = s.api("POST", "/licenses", form(s, name="Half", grants=[{"selector": "exact", "value": "1.0.0"}, {"selector": "range", "value": "^^"}]))
    assert r.status_code == 400 and r.json()["field"] == "grants[1].value"
    assert not named(s, "Half")
    assert s.get("/v2/shop/api/manifests/1.0.0", s.auth).status_code == 403


def test_lic_4_19_the_key_is_a_word_for_the_license(shop):
    s = shop
    lic = s.api.post("/licenses", form(s, name="Keyed"))
    assert re.fullmatch(r"[0-9A-Z]{6}(-[0-9A-Z]{6}){3}", lic["key"]) and lic["key"].startswith(lic["key_prefix"])
    assert "key" not in s.api.get(f"/licenses/{lic['id']}"), "shown once"
    s.wait_status("/v2/shop/api/manifests/1.0.0", basic("anyone", lic["key"].lower()), 200)
    s.api("DELETE", f"/licenses/{lic['id']}")
