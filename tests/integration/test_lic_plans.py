"""Plans, orders, coupons, payments, trials and what customers ask for, each test named after its row. Where a pull is affected it is a real
one: a manifest of a real registry through the proxy."""
import datetime
import hashlib
import hmac
import itertools
import json
import sqlite3
import time

import pytest
import requests

from admin_fixture import problem, second_vendor, token
from stack import Stack, basic, wait_for

MT = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module")
def s():
    stack = Stack(limits={"auth_failures_per_minute": 10000})
    try:
        for tag in ("1.0.0", "1.1.0", "2.0.0", "2.1.0-beta.1"):
            stack.registry.push_image("acme/api", tag, [tag.encode()])
        stack.up = stack.add_upstream()
        stack.app = stack.add_application("shop", [("shop/api", "acme/api", "image")], stack.up["id"])
        stack.api.post(f"/applications/{stack.app['id']}/sync", {}, 200)
        stack.n = itertools.count(1)
        yield stack
    finally:
        stack.close()


@pytest.fixture
def cus(s):
    """A customer of its own with a credential: (customer, authorization)."""
    slug = f"cus{next(s.n)}"
    c = s.add_customer(slug)
    return c, basic(slug, s.add_credential(c["id"])["secret"])


def plan(s, slug=None, **kw):
    return s.api.post("/plans", {"slug": slug or f"plan{next(s.n)}", "name": "Plan", "application_id": s.app["id"], "type": "subscription", "period": "P1M",
                                 "grants": [{"selector": "range", "value": "^1"}], **({"period": None} if kw.get("type") in ("trial", "perpetual") else {}), **kw})


def licensed(s, customer, p, **kw):
    return s.api.post("/licenses", {"name": f"L{next(s.n)}", "customer_id": customer["id"], "application_id": s.app["id"], "plan_id": p["id"], "status": "active", **kw})


def pull(s, auth, tag, status):
    """The answer of a manifest GET, once it has the status."""
    return s.wait_status(f"/v2/shop/api/manifests/{tag}", auth, status, headers={"Accept": MT})


def denied(s, auth, tag, reason):
    """The denial of a manifest GET, once it is for that reason."""
    def probe():
        r = s.get(f"/v2/shop/api/manifests/{tag}", auth, headers={"Accept": MT})
        assert r.status_code == 403 and r.json()["errors"][0]["detail"]["reason"] == reason, r.text
        return [r]  # a response of 403 is false by itself

    return wait_for(f"a denial for {reason}", probe, 10)[0]


def at(text):
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)


def days_from_now(text):
    return (at(text) - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 86400


# ---- plans ----------------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_found_changed_and_archived(s):
    p = plan(s, "pro", price={"amount": "19.9", "currency": "EUR", "user_amount": "2"}, limits={"max_instances": 3, "custom": {"max_users": 10}},
             metadata={"tier": "gold"}, visible=True)
    assert p["price"] == {"amount": "19.90", "currency": "EUR", "user_amount": "2.00"}
    assert p["grace_days"] == 7 and p["trial_cap"] == 1 and p["starts_on"] == "" and p["archived_at"] is None
    assert s.api.get(f"/plans/{p['id']}") == p
    assert p["id"] in [i["id"] for i in s.api.get(f"/plans?application_id={s.app['id']}&type=subscription")["items"]]
    assert s.api.get("/plans?type=perpetual&application_id=app_none")["items"] == []
    problem(s.api("POST", "/plans", {"slug": "pro", "name": "x", "application_id": s.app["id"], "type": "subscription", "period": "P1M"}), 409, "conflict")
    q = s.api("PATCH", f"/plans/{p['id']}", {"name": "Pro", "price": {"amount": "25.00", "currency": "EUR"}}, 200, headers={"If-Match": f'"{p["etag"]}"'}).json()
    assert q["name"] == "Pro" and q["price"]["amount"] == "25.00" and q["limits"] == p["limits"] and q["etag"] != p["etag"]
    problem(s.api("PATCH", f"/plans/{p['id']}", {"name": "x"}, headers={"If-Match": f'"{p["etag"]}"'}), 412, "etag_mismatch")
    assert "price" not in s.api("PATCH", f"/plans/{p['id']}", {"price": None}, 200).json()
    assert s.api("DELETE", f"/plans/{p['id']}").status_code == 204
    assert p["id"] not in [i["id"] for i in s.api.get("/plans?limit=1000")["items"]]
    assert p["id"] in [i["id"] for i in s.api.get("/plans?archived=true&limit=1000")["items"]]
    plan(s, "pro")  # its slug is free again


@pytest.mark.parametrize("change, field", [
    ({"slug": "Not A Slug"}, "slug"), ({"application_id": "app_x"}, "application_id"), ({"period": ""}, "period"), ({"period": "1 month"}, "period"),
    ({"type": "trial", "period": None}, "trial_days"), ({"type": "gift"}, "type"), ({"grants": [{"selector": "range", "value": "^^"}]}, "grants[0].value"),
    ({"grants": [{"selector": "exact", "value": "1.0.0", "repositories": ["shop/none"]}]}, "grants[0].repositories[0]"),
    ({"grants": [{"selector": "all", "not_before": "2030-01-01", "not_after": "2029-01-01"}]}, "grants[0].not_after"),
    ({"price": {"amount": "1.999", "currency": "EUR"}}, "price.amount"), ({"price": {"amount": "-1", "currency": "EUR"}}, "price.amount"),
    ({"price": {"amount": "1", "currency": "eur"}}, "price.currency"), ({"price": {"amount": 19.9, "currency": "EUR"}}, "price.amount"),
    ({"price": {"amount": "5"}}, "price.currency"), ({"limits": {"pulls": "many"}}, "pulls"), ({"limits": {"max_instances": -1}}, "max_instances"),
    ({"limits": {"seats": 5}}, "seats"), ({"limits": {"custom": {"a": [1]}}}, "limits.custom.a"), ({"limits": {"reset_period": "now"}}, "limits.reset_period"),
    ({"grace_days": 5000}, "grace_days"), ({"self_service": True}, "self_service"), ({"allowed_email_domains": ["a@b.example"]}, "allowed_email_domains[0]"),
    ({"updates_period": "x"}, "updates_period"), ({"unknown": 1}, "unknown"),
], ids=lambda v: str(v)[:40])
def test_a_plan_that_cannot_be_is_refused(s, change, field):
    before = len(s.api.get("/plans?limit=1000")["items"])
    problem(s.api("POST", "/plans", {"slug": "bad", "name": "Bad", "application_id": s.app["id"], "type": "subscription", "period": "P1M", **change}), 400, field=field)
    assert len(s.api.get("/plans?limit=1000")["items"]) == before


def test_plans_and_coupons_of_another_vendor_are_not_there(s):
    other, _ = second_vendor(s, f"vendor{next(s.n)}")
    p = plan(s)
    c = s.api.post("/coupons", {"code": f"OWN{next(s.n)}", "kind": "percent", "value": "5"})
    for path in (f"/plans/{p['id']}", f"/coupons/{c['id']}"):
        problem(other("GET", path), 404)
        problem(other("PATCH", path, {"metadata": {}}), 404)
        problem(other("DELETE", path), 404)
    assert other.get("/plans")["items"] == [] and other.get("/coupons")["items"] == []
    problem(other("POST", "/plans", {"slug": "x", "name": "x", "application_id": s.app["id"], "type": "perpetual"}), 400, "unknown_reference", "application_id")
    problem(other("POST", "/coupons", {"code": "X", "kind": "percent", "value": "5", "plan_ids": [p["id"]]}), 400, "unknown_reference")


# ---- coupons ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, field", [
    ({"value": "0"}, "value"), ({"value": "101"}, "value"), ({"value": {"selector": "all"}}, "value"), ({"value": 12.5}, "value"), ({"code": "no blanks"}, "code"),
    ({"kind": "fixed", "value": "5.00"}, "currency"), ({"kind": "fixed", "value": "5.001", "currency": "EUR"}, "value"), ({"currency": "EUR"}, "currency"),
    ({"kind": "free_period", "value": "soon"}, "value"), ({"kind": "free_period", "value": 3}, "value"), ({"kind": "grant", "value": {"selector": "range", "value": ">>"}}, "value.value"),
    ({"kind": "grant", "value": {"selector": "all", "zz": 1}}, "zz"), ({"kind": "grant", "value": {"features": {}}}, "value"), ({"kind": "grant", "value": 5}, "value"),
    ({"valid_from": "2030-01-01", "valid_until": "2029-01-01"}, "valid_until"), ({"kind": "gift"}, "kind"),
], ids=lambda v: str(v)[:40])
def test_a_coupon_that_cannot_be_is_refused(s, change, field):
    problem(s.api("POST", "/coupons", {"code": "BAD", "kind": "percent", "value": "10", **change}), 400, field=field)


def test_a_coupon_is_made_found_changed_and_ended(s):
    code = f"Spring-{next(s.n)}"
    c = s.api.post("/coupons", {"code": code, "kind": "percent", "value": 15, "max_uses": 3, "valid_until": "2090-05-31"})
    assert c["code"] == code.upper() and c["value"] == 15 and c["used"] == 0 and c["valid_until"] == "2090-05-31T23:59:59Z"
    assert [i["id"] for i in s.api.get(f"/coupons?code={code.lower()}")["items"]] == [c["id"]]
    problem(s.api("POST", "/coupons", {"code": code.lower(), "kind": "percent", "value": "1"}), 409, "conflict")
    assert s.api("PATCH", f"/coupons/{c['id']}", {"max_uses": 5}, 200).json()["max_uses"] == 5
    problem(s.api("PATCH", f"/coupons/{c['id']}", {"value": "50"}), 400, "unknown_field", "value")
    assert s.api("DELETE", f"/coupons/{c['id']}").status_code == 204
    assert s.api.get(f"/coupons/{c['id']}")["archived_at"]


# ---- orders and payments: helpers -------------------------------------------------------------------------------------------


def order(s, customer, p, **kw):
    return s.api.post("/orders", {"customer_id": customer["id"], "plan_id": p["id"], "name": f"O{next(s.n)}", **kw})


def lic_of(s, o):
    return s.api.get(f"/licenses/{o['license_id']}")


@pytest.fixture(scope="module")
def secret(s):
    v = s.api.get("/vendors")["items"][0]
    return s.api.post(f"/vendors/{v['id']}/hook-secret", {}, 200)["secret"]


def hook(s, secret, body, signature=None, query=""):
    data = json.dumps(body).encode()
    sign = signature if signature is not None else "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()
    return requests.post(s.admin_base + "/api/v1/hooks/payment" + query, data=data, headers={"Content-Type": "application/json", "X-Pullgate-Signature": sign}, timeout=30)


def paid(s, secret, o, tx=None, event="payment_succeeded", **kw):
    r = hook(s, secret, {"order_number": o["number"], "event": event, "transaction_id": tx or f"tx-{next(s.n)}", **kw})
    assert r.status_code == 200, r.text
    return r.json()


def failed(s, secret, o, tx=None, **kw):
    return paid(s, secret, o, tx, "payment_failed", **kw)


def portal(s, auth, method, path, body=None, expect=None, **headers):
    r = requests.request(method, s.admin_base + "/portal/v1" + path, json=body, headers={"Authorization": auth, **headers}, timeout=30)
    if expect is not None:
        assert r.status_code == expect, f"{r.status_code} {r.text}"
    return r


def history(s, license_id):
    return [(h["event"], h["data"]) for h in s.api.get(f"/licenses/{license_id}/history?limit=1000")["items"]]


def events(s, type_, license_id):
    """The license's events of a type, oldest first."""
    out, cursor = [], ""
    while True:
        page = s.api.get(f"/events?limit=1000{cursor}")
        out += [e for e in page["items"] if e["type"] == type_ and e.get("license_id") == license_id]
        if not page.get("next_cursor") or not page["items"]:
            return sorted(out, key=lambda e: int(e["id"]))
        cursor = "&cursor=" + page["next_cursor"]


# ---- licenses of plans ---------------------------------------------------------------------------------------------------


def test_lic_0_3_a_license_of_a_plan_grants_what_the_plan_says(s, cus):
    c, auth = cus
    small = plan(s, grants=[{"selector": "exact", "value": "1.0.0"}], limits={"max_instances": 1}, features={"sso": False})
    large = plan(s, grants=[{"selector": "all"}], limits={"max_instances": 9})
    one = licensed(s, c, small)
    assert one["plan_id"] == small["id"] and one["type"] == "subscription" and one["limits"]["max_instances"] == 1 and one["features"] == {"sso": False}
    assert one["grace_days"] == 7 and one["period"] == "P1M" and [g["value"] for g in one["grants"]] == ["1.0.0"]
    pull(s, auth, "1.0.0", 200)
    denied(s, auth, "2.0.0", "version_not_granted")
    # its own copy: the plan changes, the license does not
    s.api("PATCH", f"/plans/{small['id']}", {"grants": [{"selector": "all"}], "grace_days": 1}, 200)
    assert s.api("DELETE", f"/plans/{small['id']}").status_code == 204
    same = s.api.get(f"/licenses/{one['id']}")
    assert same["grace_days"] == 7 and same["grants"] == one["grants"]
    denied(s, auth, "2.0.0", "version_not_granted")
    licensed(s, c, large)
    pull(s, auth, "2.0.0", 200)


def test_lic_3_11_explicit_fields_win_over_the_plan(s, cus):
    c, _ = cus
    p = plan(s, limits={"max_instances": 3, "pulls": 100, "custom": {"max_users": 5, "seats": 1}}, features={"a": 1, "b": 2}, grace_days=9, auto_renew=True)
    lic = licensed(s, c, p, limits={"pulls": 7, "custom": {"seats": 2}}, features={"b": 3}, grace_days=0, grants=[{"selector": "exact", "value": "2.0.0"}], expires_at="2090-01-01",
                   period="P1Y")
    assert lic["limits"]["max_instances"] == 3 and lic["limits"]["pulls"] == 7 and lic["limits"]["custom"] == {"max_users": 5, "seats": 2}
    assert lic["features"] == {"a": 1, "b": 3} and lic["grace_days"] == 0 and lic["expires_at"].startswith("2090-01-01") and lic["period"] == "P1Y"
    assert [g["value"] for g in lic["grants"]] == ["2.0.0"] and lic["auto_renew"] is True
    body = {"name": "x", "customer_id": c["id"], "application_id": s.app["id"]}
    problem(s.api("POST", "/licenses", {**body, "plan_id": "pln_none"}), 400, "unknown_reference", "plan_id")
    other = s.add_application(f"app{next(s.n)}", [], s.up["id"])
    problem(s.api("POST", "/licenses", {**body, "application_id": other["id"], "plan_id": p["id"]}), 400, "invalid_field", "application_id")


@pytest.mark.parametrize("period, days", [("P1M", (27.9, 31.1)), ("P1Y", (364.9, 366.1))])
def test_lic_0_10_a_renewal_takes_the_period_of_the_plan(s, cus, period, days):
    c, auth = cus
    lic = licensed(s, c, plan(s, period=period))
    assert days[0] < days_from_now(lic["expires_at"]) < days[1]
    after = s.api.post(f"/licenses/{lic['id']}/renew", {}, 200)
    assert after["changes"]["expires_at"]["from"] == lic["expires_at"] and at(after["expires_at"]) > at(lic["expires_at"])
    pull(s, auth, "1.0.0", 200)


def test_lic_2_2_a_subscription_runs_from_its_activation_and_from_a_start_that_is_named(s, cus):
    c, _ = cus
    waiting = licensed(s, c, plan(s), status="inactive")
    assert waiting["expires_at"] is None
    assert 27.9 < days_from_now(s.api.post(f"/licenses/{waiting['id']}/activate", {}, 200)["expires_at"]) < 31.1
    begun = licensed(s, c, plan(s, period="P1Y"), starts_at="2026-01-31T10:00:00Z")
    assert begun["expires_at"] == "2027-01-31T10:00:00Z"


def test_lic_0_6_a_development_license(s, cus):
    c, auth = cus
    lic = licensed(s, c, plan(s, type="development", period=None, grants=[{"selector": "range", "value": "*", "include_prerelease": True}]))
    assert lic["type"] == "development" and lic["expires_at"] is None
    pull(s, auth, "2.1.0-beta.1", 200)


def test_lic_4_15_a_perpetual_class_has_a_year_of_updates(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s, type="perpetual"))
    assert lic["expires_at"] is None and 364.9 < days_from_now(lic["updates_until"]) < 366.1
    two = licensed(s, c, plan(s, type="perpetual", updates_period="P2Y"))
    assert 729 < days_from_now(two["updates_until"]) < 732


# ---- trials -----------------------------------------------------------------------------------------------------------------


def test_lic_2_1_a_trial_starts_at_its_first_pull(s, cus):
    c, auth = cus
    lic = licensed(s, c, plan(s, type="trial", trial_days=14))
    assert lic["type"] == "trial" and lic["trial_days"] == 14 and lic["starts_on"] == "first_pull" and lic["expires_at"] is None
    pull(s, auth, "1.0.0", 200)
    started = wait_for("the trial's start", lambda: (lambda x: x if x["expires_at"] else None)(s.api.get(f"/licenses/{lic['id']}")), 15)
    assert 13.9 < days_from_now(started["expires_at"]) < 14.1 and started["trial_started_at"]


def test_lic_2_1_a_trial_starts_with_its_activation(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s, type="trial", trial_days=30, starts_on="activation"))
    assert 29.9 < days_from_now(lic["expires_at"]) < 30.1


def test_lic_2_5_a_trial_beyond_the_cap_is_refused_with_the_reason(s, cus):
    c, _ = cus
    p = plan(s, type="trial", trial_days=14, trial_cap=2)
    licensed(s, c, p)
    second = licensed(s, c, p)
    body = {"name": "third", "customer_id": c["id"], "application_id": s.app["id"], "plan_id": p["id"]}
    d = problem(s.api("POST", "/licenses", body), 409, "trial_cap_reached", "plan_id")
    assert "2 trials" in d["detail"]
    s.api("DELETE", f"/licenses/{second['id']}")  # and deleting one gives no further one
    problem(s.api("POST", "/licenses", body), 409, "trial_cap_reached")
    problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"]}), 409, "trial_cap_reached")
    other = s.add_customer(f"cus{next(s.n)}")  # the cap is each customer's
    q = plan(s, type="trial", trial_days=14, starts_on="activation")
    bought = licensed(s, other, q)
    change(s, bought, plan(s))  # a trial that was bought afterwards was one
    problem(s.api("POST", "/licenses", {**body, "customer_id": other["id"], "plan_id": q["id"]}), 409, "trial_cap_reached")


def test_lic_2_4_a_customer_starts_a_trial_himself(s, cus):
    c, auth = cus
    p = plan(s, type="trial", trial_days=7, self_service=True, visible=True, starts_on="activation", allowed_email_domains=[f"{c['slug']}.example"])
    denied(s, auth, "1.0.0", "no_license")
    t = portal(s, auth, "POST", "/trials", {"plan_id": p["id"], "name": "My trial", "company": "Globex"}, 201).json()
    assert t["status"] == "active" and t["key"] and 6.9 < days_from_now(t["expires_at"]) < 7.1
    pull(s, auth, "1.0.0", 200)
    pull(s, basic("x", t["key"]), "1.0.0", 200)
    lic = s.api.get(f"/licenses/{t['id']}")
    assert lic["source"] == "trial" and lic["customer_id"] == c["id"] and lic["metadata"] == {"company": "Globex"}
    problem(portal(s, auth, "POST", "/trials", {"plan_id": p["id"], "name": "Another"}), 409, "trial_cap_reached")
    row = [a for a in s.api.get("/audit?limit=50")["items"] if a["action"] == "portal.trial.create"][-1]
    assert row["actor"] == f"customer:{c['id']}" and t["key"] not in json.dumps(s.api.get("/audit?limit=50"))
    assert events(s, "license.requested", t["id"])


def test_lic_2_4_a_trial_that_the_plan_does_not_offer_is_none(s, cus):
    c, auth = cus
    closed = plan(s, type="trial", trial_days=7, visible=True)
    problem(portal(s, auth, "POST", "/trials", {"plan_id": closed["id"], "name": "x"}), 400, "unknown_reference", "plan_id")
    for kw in ({"denied_email_domains": ["example"]}, {"allowed_email_domains": ["partner.test"]}):
        p = plan(s, type="trial", trial_days=7, self_service=True, **kw)
        problem(portal(s, auth, "POST", "/trials", {"plan_id": p["id"], "name": "x"}), 403, "email_domain_not_allowed")
    capped = plan(s, type="trial", trial_days=7, self_service=True, trial_cap=0, trial_cap_per_domain=1)
    portal(s, auth, "POST", "/trials", {"plan_id": capped["id"], "name": "first"}, 201)
    problem(portal(s, auth, "POST", "/trials", {"plan_id": capped["id"], "name": "second"}), 409, "trial_cap_reached")
    lic = licensed(s, c, plan(s))
    problem(portal(s, basic("x", lic["key"]), "POST", "/trials", {"plan_id": capped["id"], "name": "third"}), 403, "credential_is_bound")


# ---- orders -----------------------------------------------------------------------------------------------------------------


def test_lic_0_14_an_order_adds_up_instances_users_and_periods(s, cus):
    c, _ = cus
    p = plan(s, price={"amount": "19.99", "currency": "EUR", "user_amount": "2.50"}, limits={"max_instances": 1})
    o = order(s, c, p, instances=3, users=4, period="P1Y")
    assert (o["subtotal"], o["discount"], o["total"], o["currency"], o["periods"]) == ("839.64", "0.00", "839.64", "EUR", 12)
    yen = order(s, c, plan(s, price={"amount": "1990", "currency": "JPY"}), instances=2)
    assert (yen["subtotal"], yen["total"], yen["currency"]) == ("3980", "3980", "JPY")
    assert order(s, c, plan(s))["total"] == "0.00"
    for bad, field in (({"period": "P45D"}, "period"), ({"period": "P1D"}, "period"), ({"instances": 0}, "instances"), ({"plan_id": "pln_x"}, "plan_id"), ({"customer_id": "cus_x"}, "customer_id")):
        problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": "bad", **bad}), 400, field=field)
    problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": o["name"]}), 409, "conflict")


def test_lic_0_12_counts_of_an_order_are_the_licenses(s, cus):
    c, auth = cus
    p = plan(s, limits={"max_instances": 1, "pulls": 1000})
    o = order(s, c, p, instances=3, users=4, period="P1Y")
    lic = lic_of(s, o)
    assert lic["limits"]["max_instances"] == 3 and lic["limits"]["pulls"] == 1000 and lic["limits"]["custom"]["max_users"] == 4 and lic["period"] == "P1Y"
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    assert 364.9 < days_from_now(lic_of(s, o)["expires_at"]) < 366.1
    pull(s, auth, "1.0.0", 200)


def test_lic_4_11_the_license_keeps_its_id_from_the_request_on(s, cus):
    c, auth = cus
    o = order(s, c, plan(s))
    before = lic_of(s, o)
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    after = lic_of(s, o)
    assert after["id"] == before["id"] == o["license_id"] and after["created_at"] == before["created_at"] and after["source"] == "order"
    pull(s, auth, "1.0.0", 200)


def test_lic_0_22_the_order_number_is_gapless_and_found(s, cus):
    c, _ = cus
    p = plan(s)
    first = order(s, c, p)
    problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": first["name"]}), 409)  # takes no number
    problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": "x", "coupon": "NONE"}), 409, "coupon_unknown")
    second = order(s, c, p, transaction_id=f"bank-{next(s.n)}")
    year, n = first["number"].split("-")
    assert int(year) == datetime.datetime.now(datetime.timezone.utc).year and second["number"] == f"{year}-{int(n) + 1:06}"
    for query in (f"number={first['number']}", f"customer_id={c['id']}&status=pending&number={first['number']}", f"license_id={first['license_id']}"):
        assert [o["id"] for o in s.api.get("/orders?" + query)["items"]] == [first["id"]]
    assert [o["id"] for o in s.api.get(f"/orders?transaction_id={second['transaction_id']}")["items"]] == [second["id"]]
    assert [x["id"] for x in s.api.get(f"/licenses?order_number={first['number']}")["items"]] == [first["license_id"]]
    assert [x["id"] for x in s.api.get(f"/licenses?transaction_id={second['transaction_id']}")["items"]] == [second["license_id"]]
    other, _ = second_vendor(s, f"vendor{next(s.n)}")
    problem(other("GET", f"/orders/{first['id']}"), 404)
    assert other.get("/orders")["items"] == []


def test_lic_4_1_an_order_waits_until_an_administrator_validates_it(s, cus):
    c, auth = cus
    o = order(s, c, plan(s, price={"amount": "5.00", "currency": "EUR"}), environment="prod", metadata={"shop": "7"})
    lic = lic_of(s, o)
    assert lic["status"] == "inactive" and lic["expires_at"] is None and lic["order_number"] == o["number"] and lic["environment"] == "prod"
    denied(s, auth, "1.0.0", "inactive")
    a = s.api.post(f"/orders/{o['id']}/approve", {"reason": "invoice paid", "transaction_id": "wire-1"}, 200)
    assert a["status"] == "approved" and a["approved_at"] and a["transaction_id"] == "wire-1" and "key" not in a
    pull(s, auth, "1.0.0", 200)
    lic = lic_of(s, o)
    assert 27.9 < days_from_now(lic["expires_at"]) < 31.1 and lic["transaction_id"] == "wire-1"
    problem(s.api("POST", f"/orders/{o['id']}/approve"), 409, "order_not_pending")
    assert ("license.activated" in [h[0] for h in history(s, lic["id"])]) and "order.approve" in [x["action"] for x in s.api.get("/audit?limit=20")["items"]]


def test_lic_4_3_the_request_is_a_record_of_all_that_was_ordered(s, cus):
    c, _ = cus
    p = plan(s, price={"amount": "7.00", "currency": "EUR"}, limits={"max_instances": 2})
    o = s.api.get(f"/orders/{order(s, c, p, instances=2, users=3, period='P6M', metadata={'desk': 'B'})['id']}")
    assert (o["customer_id"], o["plan_id"], o["instances"], o["users"], o["period"], o["total"]) == (c["id"], p["id"], 2, 3, "P6M", "84.00")
    assert o["snapshot"]["plan"]["limits"]["max_instances"] == 2 and o["metadata"] == {"desk": "B"} and o["actor"].startswith("token:") and o["source"] == "vendor"
    lic = s.api.post(f"/licenses/{o['license_id']}/issue", {}, 200)  # and becomes a license
    assert lic["status"] == "active" and lic["limits"]["max_instances"] == 2


def test_lic_4_4_approval_then_key_then_file(s, cus):
    c, auth = cus
    o = order(s, c, plan(s, requires_activation=True))
    problem(s.api("GET", f"/licenses/{o['license_id']}/file"), 409)
    issued = s.api.post(f"/licenses/{o['license_id']}/issue", {}, 200)
    v = requests.post(s.admin_base + "/api/v1/validate", json={"key": issued["key"]}).json()
    assert v["valid"] is True and v["expires_at"] == issued["expires_at"]
    f = s.api("GET", f"/licenses/{o['license_id']}/file", None, 200)
    assert f.headers["Content-Type"] == "application/jose" and f.text.count(".") == 2


def test_lic_1_2_a_cancelled_order_leaves_nothing(s, cus):
    c, auth = cus
    code = f"BACK{next(s.n)}"
    cp = s.api.post("/coupons", {"code": code, "kind": "percent", "value": "10", "max_uses": 1})
    p = plan(s, price={"amount": "5.00", "currency": "EUR"})
    o = order(s, c, p, coupon=code)
    x = s.api.post(f"/orders/{o['id']}/cancel", {"reason": "changed his mind"}, 200)
    assert x["status"] == "cancelled" and x["cancelled_at"]
    lic = lic_of(s, o)
    assert lic["status"] == "revoked" and lic["status_reason"] == "order_cancelled"
    assert s.api.get(f"/coupons/{cp['id']}")["used"] == 0  # its use is given back
    problem(s.api("POST", f"/orders/{o['id']}/cancel"), 409, "order_not_pending")
    problem(s.api("POST", f"/orders/{o['id']}/approve"), 409, "order_not_pending")
    used = order(s, c, p, coupon=code)
    s.api.post(f"/orders/{used['id']}/approve", {}, 200)
    s.api.post(f"/orders/{used['id']}/cancel", {}, 200)
    assert lic_of(s, used)["status"] == "active"  # what is in use is revoked by revoke alone
    assert s.api.get(f"/coupons/{cp['id']}")["used"] == 1


def test_lic_0_11_a_customer_sees_plans_and_orders_one(s, cus):
    c, auth = cus
    shown = plan(s, visible=True, price={"amount": "12.00", "currency": "EUR"}, description="All of 1.x", metadata={"margin": "secret"})
    hidden = plan(s)
    plans = portal(s, auth, "GET", "/plans?limit=1000", expect=200).json()["items"]
    mine = [x for x in plans if x["id"] == shown["id"]][0]
    assert mine["price"]["amount"] == "12.00" and mine["application"]["slug"] == "shop" and "metadata" not in mine and "grants" not in mine
    assert hidden["id"] not in [x["id"] for x in plans]
    problem(portal(s, auth, "POST", "/orders", {"plan_id": hidden["id"], "name": "x"}), 400, "unknown_reference", "plan_id")
    problem(portal(s, auth, "POST", "/orders", {"plan_id": shown["id"], "name": "x", "customer_id": "cus_other"}), 400, "unknown_field")
    r = portal(s, auth, "POST", "/orders", {"plan_id": shown["id"], "name": "Team", "instances": 2}, 201, **{"Idempotency-Key": "k1"})
    o = r.json()
    assert o["total"] == "24.00" and o["status"] == "pending" and o["key"] and "snapshot" not in o and "margin" not in r.text
    again = portal(s, auth, "POST", "/orders", {"plan_id": shown["id"], "name": "Team", "instances": 2}, 201, **{"Idempotency-Key": "k1"})
    assert again.json()["id"] == o["id"] and again.headers["Idempotent-Replayed"] == "true"
    assert r.headers["Location"] == f"/portal/v1/orders/{o['id']}"
    assert portal(s, auth, "GET", f"/orders/{o['id']}", expect=200).json()["number"] == o["number"]
    assert [x["id"] for x in portal(s, auth, "GET", "/orders", expect=200).json()["items"]] == [o["id"]]
    assert s.get("/v2/shop/api/manifests/1.0.0", basic("x", o["key"]), headers={"Accept": MT}).status_code in (401, 403)
    assert s.api.get(f"/orders/{o['id']}")["source"] == "portal" and events(s, "license.requested", o["license_id"])
    stranger = basic("y", s.add_credential(s.add_customer(f"cus{next(s.n)}")["id"])["secret"])
    problem(portal(s, stranger, "GET", f"/orders/{o['id']}"), 404)
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    pull(s, basic("x", o["key"]), "1.0.0", 200)
    row = [a for a in s.api.get("/audit?limit=100")["items"] if a["action"] == "portal.order.create"]
    assert row and row[-1]["actor"] == f"customer:{c['id']}" and o["key"] not in json.dumps(row)


def test_lic_1_2_what_a_customer_orders_is_inactive_and_denied(s, cus):
    c, auth = cus
    o = portal(s, auth, "POST", "/orders", {"plan_id": plan(s, visible=True)["id"], "name": "Asked"}, 201).json()
    denied(s, auth, "1.0.0", "inactive")
    assert [x["status"] for x in portal(s, auth, "GET", "/licenses", expect=200).json()["items"]] == ["inactive"]
    s.api.post(f"/licenses/{o['license_id']}/activate", {"reason": "checked by hand"}, 200)
    pull(s, auth, "1.0.0", 200)


def test_lic_4_17_a_pending_license_is_issued_with_its_key(s, cus):
    c, auth = cus
    o = order(s, c, plan(s))
    issued = s.api.post(f"/licenses/{o['license_id']}/issue", {"reason": "checked"}, 200)
    assert issued["status"] == "active" and issued["key"] and issued["key"] != o["key"]
    pull(s, basic("x", issued["key"]), "1.0.0", 200)
    assert s.get("/v2/shop/api/manifests/1.0.0", basic("x", o["key"]), headers={"Accept": MT}).status_code == 401
    assert s.api.get(f"/orders/{o['id']}")["status"] == "approved"
    problem(s.api("POST", f"/licenses/{o['license_id']}/issue"), 409, "action_not_allowed")
    bare = licensed(s, c, plan(s), status="inactive")  # also one that nobody ordered
    assert s.api.post(f"/licenses/{bare['id']}/issue", {}, 200)["status"] == "active"


def test_lic_4_10_a_license_is_made_or_requested(s, cus):
    c, auth = cus
    made, requested = licensed(s, c, plan(s)), order(s, c, plan(s))
    assert made["source"] == "created" and made["order_number"] == "" and lic_of(s, requested)["source"] == "order"
    waiting = [x["id"] for x in s.api.get(f"/licenses?customer_id={c['id']}&status=inactive")["items"]]
    assert waiting == [requested["license_id"]]


def test_lic_0_21_terms_and_billing_are_kept(s, cus):
    c, _ = cus
    o = order(s, c, plan(s), terms_version="2026-05", billing={"street": "1 Main St", "vat": "DE1"}, payment_ref="PO-77")
    o = s.api.get(f"/orders/{o['id']}")
    assert o["terms_version"] == "2026-05" and abs(days_from_now(o["terms_accepted_at"])) < 0.01 and o["billing"]["vat"] == "DE1" and o["payment_ref"] == "PO-77"
    assert order(s, c, plan(s))["terms_accepted_at"] is None


def test_lic_1_30_pay_now_or_later(s, cus, secret):
    c, auth = cus
    p = plan(s, price={"amount": "5.00", "currency": "EUR"})
    later, now = order(s, c, p, payment_ref="account 12"), order(s, c, p, payment_ref="card")
    paid(s, secret, now)
    assert lic_of(s, now)["status"] == "active" and lic_of(s, later)["status"] == "inactive"
    assert s.api.get(f"/orders/{later['id']}")["status"] == "pending" and s.api.get(f"/orders/{now['id']}")["status"] == "paid"


def test_lic_0_19_an_order_can_be_looked_at_before_and_keeps_its_snapshot(s, cus):
    c, _ = cus
    code = f"LOOK{next(s.n)}"
    cp = s.api.post("/coupons", {"code": code, "kind": "percent", "value": "12.5"})
    p = plan(s, price={"amount": "99.99", "currency": "EUR"})
    body = {"customer_id": c["id"], "plan_id": p["id"], "name": "Seen", "instances": 2, "coupon": code}
    before = s.api.get("/orders?limit=1000")["items"]
    seen = s.api("POST", "/orders?dry_run=1", body, 200).json()
    assert (seen["subtotal"], seen["discount"], seen["total"]) == ("199.98", "25.00", "174.98") and "key" not in seen
    assert s.api.get("/orders?limit=1000")["items"] == before and s.api.get(f"/coupons/{cp['id']}")["used"] == 0
    o = s.api.post("/orders", body)
    assert {k: o[k] for k in ("number", "subtotal", "discount", "total")} == {k: seen[k] for k in ("number", "subtotal", "discount", "total")}
    s.api("PATCH", f"/plans/{p['id']}", {"price": {"amount": "1.00", "currency": "USD"}, "name": "Other"}, 200)
    kept = s.api.get(f"/orders/{o['id']}")
    assert kept["total"] == "174.98" and kept["currency"] == "EUR" and kept["snapshot"]["plan"]["price"]["amount"] == "99.99"
    assert kept["snapshot"]["coupon"]["code"] == code


# ---- coupons in orders -----------------------------------------------------------------------------------------------------


def coupon(s, kind, value, **kw):
    return s.api.post("/coupons", {"code": f"C{next(s.n)}", "kind": kind, "value": value, **kw})


def test_lic_0_15_percentage_and_fixed_amount(s, cus):
    c, _ = cus
    p = plan(s, price={"amount": "9.99", "currency": "EUR"})
    assert (lambda o: (o["discount"], o["total"]))(order(s, c, p, coupon=coupon(s, "percent", "33.33")["code"])) == ("3.33", "6.66")
    assert order(s, c, p, coupon=coupon(s, "percent", 100)["code"])["total"] == "0.00"
    assert (lambda o: (o["discount"], o["total"]))(order(s, c, p, coupon=coupon(s, "fixed", "2.50", currency="EUR")["code"].lower())) == ("2.50", "7.49")
    assert order(s, c, p, coupon=coupon(s, "fixed", "50", currency="EUR")["code"])["total"] == "0.00"  # never below nothing

    def refused(code, why):
        problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": "r", "coupon": code}), 409, why, "coupon")

    refused("NOT-THERE", "coupon_unknown")
    refused("; drop table", "coupon_unknown")
    refused(coupon(s, "fixed", "2.50", currency="USD")["code"], "coupon_not_applicable")
    refused(coupon(s, "percent", "5", plan_ids=[plan(s)["id"]])["code"], "coupon_not_applicable")
    refused(coupon(s, "percent", "5", valid_until="2020-01-01")["code"], "coupon_expired")
    refused(coupon(s, "percent", "5", valid_from="2080-01-01")["code"], "coupon_not_yet_valid")
    ended = coupon(s, "percent", "5")
    s.api("DELETE", f"/coupons/{ended['id']}")
    refused(ended["code"], "coupon_unknown")
    twice = coupon(s, "percent", "5", max_uses=2)
    order(s, c, p, coupon=twice["code"])
    order(s, c, p, coupon=twice["code"])
    refused(twice["code"], "coupon_used_up")
    once = coupon(s, "percent", "5", once_per_customer=True)
    order(s, c, p, coupon=once["code"])
    refused(once["code"], "coupon_already_used")
    order(s, s.add_customer(f"cus{next(s.n)}"), p, coupon=once["code"])
    other, _ = second_vendor(s, f"vendor{next(s.n)}")
    foreign = other.post("/coupons", {"code": f"F{next(s.n)}", "kind": "percent", "value": "50"})
    refused(foreign["code"], "coupon_unknown")


def test_lic_0_15_the_last_use_is_one(s, cus):
    import concurrent.futures
    c, _ = cus
    p = plan(s, price={"amount": "10.00", "currency": "EUR"})
    cp = coupon(s, "percent", "10", max_uses=3)
    names = [f"O{next(s.n)}" for _ in range(12)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        codes = [r.status_code for r in pool.map(lambda n: requests.post(s.admin_base + "/api/v1/orders", headers={"Authorization": "Bearer " + s.token}, json={
            "customer_id": c["id"], "plan_id": p["id"], "name": n, "coupon": cp["code"]}), names)]
    assert sorted(codes) == [201] * 3 + [409] * 9 and s.api.get(f"/coupons/{cp['id']}")["used"] == 3
    numbers = sorted(o["number"] for o in s.api.get("/orders?limit=1000")["items"])
    assert len(numbers) == int(numbers[-1].split("-")[1])  # none is missing


def test_lic_0_17_a_coupon_unlocks_a_feature_or_a_grant(s, cus):
    c, auth = cus
    p = plan(s, features={"sso": False})
    o = order(s, c, p, coupon=coupon(s, "grant", {"selector": "exact", "value": "2.0.0", "not_after": "2090-01-01", "note": "promotion"})["code"])
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    pull(s, auth, "2.0.0", 200)
    lic = lic_of(s, o)
    assert [g["value"] for g in lic["grants"]] == ["^1", "2.0.0"] and lic["grants"][1]["not_after"]
    assert lic_of(s, order(s, c, p, coupon=coupon(s, "grant", {"features": {"sso": True, "seats": 5}})["code"]))["features"] == {"sso": True, "seats": 5}
    assert lic_of(s, order(s, c, p, coupon=coupon(s, "grant", "audit")["code"]))["features"] == {"sso": False, "audit": True}


def test_lic_0_15_a_free_period_is_added_when_it_begins(s, cus):
    c, _ = cus
    free = coupon(s, "free_period", "P14D")
    o = order(s, c, plan(s), coupon=free["code"])
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    assert 41.9 < days_from_now(lic_of(s, o)["expires_at"]) < 45.1
    t = order(s, c, plan(s, type="trial", trial_days=10), coupon=free["code"])
    assert lic_of(s, t)["trial_days"] == 24
    for p in (plan(s, type="perpetual"), plan(s, type="development", period=None)):
        problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": "p", "coupon": free["code"]}), 409, "coupon_not_applicable")
    months = coupon(s, "free_period", "P1M")
    problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": plan(s, type="trial", trial_days=10, trial_cap=0)["id"], "name": "p", "coupon": months["code"]}), 409,
            "coupon_not_applicable")


def test_lic_2_14_a_discount_for_some_customers(s):
    c = s.add_customer(f"cus{next(s.n)}", metadata={"nonprofit": True})
    p = plan(s, price={"amount": "99.99", "currency": "EUR"}, metadata={"discount_max": "50"})
    o = order(s, c, p, coupon=coupon(s, "percent", "50", plan_ids=[p["id"]], metadata={"for": "nonprofit"})["code"])
    assert (o["discount"], o["total"]) == ("50.00", "49.99")  # half a cent is the customer's


# ---- payments ----------------------------------------------------------------------------------------------------------------


def test_lic_0_20_a_signed_payment_activates_what_was_ordered(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, price={"amount": "5.00", "currency": "EUR"}))
    r = paid(s, secret, o, "pay-1", amount="5.00")
    assert r == {"order_number": o["number"], "order_status": "paid", "license_status": "active", "result": "activated", "replayed": False}
    pull(s, auth, "1.0.0", 200)
    lic = lic_of(s, o)
    assert lic["transaction_id"] == "pay-1" and 27.9 < days_from_now(lic["expires_at"]) < 31.1
    audit = s.api.get("/audit?limit=1000")["items"]
    # the same again changes nothing, and leaves nothing
    assert paid(s, secret, o, "pay-1")["replayed"] is True and lic_of(s, o)["etag"] == lic["etag"]
    assert s.api.get("/audit?limit=1000")["items"] == audit and "hook:payment" in [a["actor"] for a in audit]
    # a further payment is a further period
    r = paid(s, secret, o, "pay-2")
    assert r["result"] == "renewed" and 55 < days_from_now(lic_of(s, o)["expires_at"]) < 62.5
    assert [x["transaction_id"] for x in s.api.get(f"/orders/{o['id']}")["payments"]] == ["pay-1", "pay-2"]
    assert [x["id"] for x in s.api.get("/orders?transaction_id=pay-1")["items"]] == [o["id"]]


def test_lic_0_20_nobody_without_the_secret_is_told_anything(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s))
    body = {"order_number": o["number"], "event": "payment_succeeded", "transaction_id": "t"}
    good = "sha256=" + hmac.new(secret.encode(), json.dumps(body).encode(), hashlib.sha256).hexdigest()
    unknown = {**body, "order_number": "2026-999999"}
    texts = set()
    for b, sign in ((body, "sha256=" + "0" * 64), (body, good[:-1] + ("0" if good[-1] != "0" else "1")), (body, good.replace("sha256=", "")), (body, "sha256="), (body, ""),
                    (unknown, good), (unknown, None), (body, "sha1=" + "0" * 40), ({**body, "transaction_id": "u"}, good)):
        d = problem(hook(s, secret, b, sign), 401, "bad_signature")
        texts.add(json.dumps({k: v for k, v in d.items() if k != "request_id"}))
    assert len(texts) == 1
    for b, field in (({**body, "event": "payment_refunded"}, "event"), ({k: v for k, v in body.items() if k != "transaction_id"}, "transaction_id"), ({**body, "x": 1}, "x")):
        problem(hook(s, secret, b), 400, field=field)
    assert lic_of(s, o)["status"] == "inactive"
    assert hook(s, secret, body, good.upper().replace("SHA256", "sha256")).status_code == 200  # hex is hex
    other, v = second_vendor(s, f"vendor{next(s.n)}")  # the same number of another vendor: each signs for his own
    other_secret = other.post(f"/vendors/{v['id']}/hook-secret", {"secret": "a-secret-of-the-payment-system-0123456789"}, 200)["secret"]
    problem(hook(s, other_secret, body), 401, "bad_signature")
    problem(hook(s, secret, {**body, "transaction_id": "v"}, query=f"?vendor={v['slug']}"), 401, "bad_signature")
    problem(other("POST", f"/vendors/{s.api.get('/vendors')['items'][0]['id']}/hook-secret"), 404)
    problem(other("POST", f"/vendors/{v['id']}/hook-secret", {"secret": "short"}), 400, field="secret")
    assert secret not in json.dumps(s.api.get("/audit?limit=1000")) and other_secret not in sqlite3.connect(f"file:{s.dir}/pullgate.db?mode=ro", uri=True).execute(
        "SELECT group_concat(secret_sealed) FROM hook_secrets").fetchone()[0]


def test_lic_0_20_failed_signatures_are_counted_by_address():
    from admin_fixture import admin_stack
    with admin_stack(limits={"auth_failures_per_minute": 5}) as stack:
        body = {"order_number": "2026-000001", "event": "payment_succeeded", "transaction_id": "t"}
        codes = [hook(stack, "x", body).status_code for _ in range(14)]
        assert codes[0] == 401 and 429 in codes


def test_lic_0_20_an_approval_can_still_be_needed(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, manual_validation=True, price={"amount": "5.00", "currency": "EUR"}))
    assert paid(s, secret, o)["result"] == "awaiting_approval" and lic_of(s, o)["status"] == "inactive"
    assert s.api.get("/orders?status=paid&number=" + o["number"])["items"]
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    assert lic_of(s, o)["status"] == "active"
    late = order(s, c, plan(s))
    s.api.post(f"/orders/{late['id']}/approve", {}, 200)
    end = lic_of(s, late)["expires_at"]
    assert paid(s, secret, late)["result"] == "recorded" and lic_of(s, late)["expires_at"] == end  # it pays the period that runs
    gone = order(s, c, plan(s))
    s.api.post(f"/orders/{gone['id']}/cancel", {}, 200)
    assert paid(s, secret, gone)["result"] == "ignored" and lic_of(s, gone)["status"] == "revoked"


def test_lic_0_47_a_failed_payment_is_told_and_counted(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, grace_days=5, price={"amount": "5.00", "currency": "EUR"}))
    paid(s, secret, o, "a1")
    assert failed(s, secret, o, "a2", reason="card expired")["result"] == "grace"
    lic = lic_of(s, o)
    first = lic["payment_failed_at"]
    assert lic["status"] == "active" and first
    pull(s, auth, "1.0.0", 200)  # grace: pulls go on
    assert failed(s, secret, o, "a2")["replayed"] is True
    time.sleep(1.1)  # another second, so that a stamp that moves is seen
    failed(s, secret, o, "a3")
    assert failed(s, secret, o, "a1")["replayed"] is True  # came late: that transaction has succeeded
    assert lic_of(s, o)["payment_failed_at"] == first
    told = [e["data"] for e in events(s, "license.payment_failed", lic["id"])]
    assert [(t["transaction_id"], t["failures"]) for t in told] == [("a2", 1), ("a3", 2)] and told[0]["reason"] == "card expired"
    assert (at(told[0]["grace_ends_at"]) - at(told[0]["payment_failed_at"])).days == 5
    paid(s, secret, o, "a4")
    assert lic_of(s, o)["payment_failed_at"] is None


def test_lic_0_54_the_history_of_payments(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, grace_days=5, price={"amount": "5.00", "currency": "EUR"}))
    for pay, tx in ((paid, "a1"), (failed, "a2"), (failed, "a3"), (paid, "a4")):
        pay(s, secret, o, tx, amount="5.00")
    lic = lic_of(s, o)
    seen = [(e, d["transaction_id"]) for e, d in history(s, lic["id"]) if e.startswith("license.payment")][::-1]
    assert seen == [("license.payment_succeeded", "a1"), ("license.payment_failed", "a2"), ("license.payment_failed", "a3"), ("license.payment_succeeded", "a4")]
    assert [(p["event"], p["transaction_id"]) for p in s.api.get(f"/orders/{o['id']}")["payments"]] == [("payment_succeeded", "a1"), ("payment_failed", "a2"), ("payment_failed", "a3"),
                                                                                                        ("payment_succeeded", "a4")]


def test_lic_0_20_suspended_for_payment_and_back(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, grace_days=0, price={"amount": "5.00", "currency": "EUR"}))
    paid(s, secret, o)
    pull(s, auth, "1.0.0", 200)
    failed(s, secret, o)  # without days of grace the clock suspends at its next look
    lic = wait_for("the suspension", lambda: (lambda x: x if x["status"] == "suspended" else None)(lic_of(s, o)), 20)
    assert lic["status_reason"] == "payment"
    assert "payment" in denied(s, auth, "1.0.0", "suspended").text
    assert paid(s, secret, o)["result"] == "reinstated"
    back = lic_of(s, o)
    assert back["status"] == "active" and back["payment_failed_at"] is None and at(back["expires_at"]) > at(lic["expires_at"])
    pull(s, auth, "1.0.0", 200)
    s.api.post(f"/licenses/{lic['id']}/suspend", {"reason": "abuse"}, 200)  # what a person suspended a payment does not lift
    assert paid(s, secret, o)["result"] == "recorded" and lic_of(s, o)["status"] == "suspended"


# ---- from plan to plan -----------------------------------------------------------------------------------------------------


def change(s, lic, p, effective=None, expect=200, **kw):
    return s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": p["id"], **({"effective": effective} if effective else {}), **kw}, expect).json()


def test_lic_0_43_an_upgrade_is_immediate(s, cus):
    c, auth = cus
    low = plan(s, grants=[{"selector": "range", "value": "^1"}, {"selector": "exact", "value": "2.1.0-beta.1"}], limits={"max_instances": 1, "pulls": 5}, features={"a": 1})
    high = plan(s, period="P1Y", grants=[{"selector": "range", "value": "^1"}, {"selector": "all"}], limits={"max_instances": 10, "custom": {"max_users": 3}}, grace_days=14)
    lic = licensed(s, c, low)
    denied(s, auth, "2.0.0", "version_not_granted")
    up = change(s, lic, high, reason="fee 12.00 agreed")
    pull(s, auth, "2.0.0", 200)
    assert up["plan_id"] == high["id"] and up["period"] == "P1Y" and up["expires_at"] == lic["expires_at"] and up["grace_days"] == 14
    assert up["limits"]["max_instances"] == 10 and "pulls" not in up["limits"] and up["limits"]["custom"] == {"max_users": 3} and up["features"] == {}
    assert sorted(g["value"] for g in up["grants"]) == sorted(["", "^1"]) or len(up["grants"]) == 2
    kept = [g for g in up["grants"] if g["selector"] == "range"][0]
    assert kept["id"] == [g for g in lic["grants"] if g["selector"] == "range"][0]["id"]  # with its age
    assert up["changes"]["plan_id"] == {"from": low["id"], "to": high["id"]} and up["changes"]["period"] == {"from": "P1M", "to": "P1Y"} and "expires_at" not in up["changes"]
    problem(s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": low["id"]}, headers={"If-Match": f'"{lic["etag"]}"'}), 412, "etag_mismatch")


def test_lic_0_46_a_fee_is_noted_with_the_change(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s))
    change(s, lic, plan(s, period="P1Y"), reason="fee 12.00 agreed")
    h = [x for x in s.api.get(f"/licenses/{lic['id']}/history")["items"] if x["event"] == "license.plan_changed"]
    assert len(h) == 1 and h[0]["reason"] == "fee 12.00 agreed" and h[0]["data"]["period"] == {"from": "P1M", "to": "P1Y"}
    row = [a for a in s.api.get("/audit?limit=20")["items"] if a["action"] == "license.change_plan"]
    assert row and row[0]["object"] == lic["id"]


def test_lic_2_19_from_monthly_to_yearly_and_to_perpetual(s, cus):
    c, auth = cus
    lic = licensed(s, c, plan(s, auto_renew=True))
    year = change(s, lic, plan(s, period="P1Y"))
    assert year["expires_at"] == lic["expires_at"] and year["auto_renew"] is True
    ever = change(s, lic, plan(s, type="perpetual"))
    assert ever["expires_at"] is None and ever["type"] == "perpetual" and ever["auto_renew"] is False and 364.9 < days_from_now(ever["updates_until"]) < 366.1
    back = change(s, lic, plan(s))
    assert 27.9 < days_from_now(back["expires_at"]) < 31.1 and back["updates_until"] is None
    trial = licensed(s, c, plan(s, type="trial", trial_days=5, starts_on="activation"))
    full = change(s, trial, plan(s))
    assert full["type"] == "subscription" and full["trial_days"] == 0 and 27.9 < days_from_now(full["expires_at"]) < 31.1
    pull(s, auth, "1.0.0", 200)


def test_lic_2_19_a_change_that_cannot_be_is_refused(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s))
    problem(s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": plan(s, type="trial", trial_days=3)["id"]}), 409, "plan_not_applicable")
    problem(s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": "pln_none"}), 400, "unknown_reference", "plan_id")
    other = s.add_application(f"app{next(s.n)}", [], s.up["id"])
    problem(s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": plan(s, application_id=other["id"])["id"]}), 409, "plan_not_applicable")
    ever = licensed(s, c, plan(s, type="perpetual"))
    problem(s.api("POST", f"/licenses/{ever['id']}/change-plan", {"plan_id": plan(s)["id"], "effective": "next_period"}), 409, "no_period")
    s.api.post(f"/licenses/{lic['id']}/revoke", {}, 200)
    for effective in ("now", "next_period"):
        d = problem(s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": plan(s)["id"], "effective": effective}), 409, "action_not_allowed")
        assert "allowed_actions" in d
    assert s.api.get(f"/licenses/{lic['id']}")["plan_id"] == lic["plan_id"]


def test_lic_0_44_a_downgrade_waits_and_can_be_cancelled(s, cus):
    c, auth = cus
    high, low, lower = plan(s, grants=[{"selector": "all"}]), plan(s), plan(s)
    lic = licensed(s, c, high)
    first = change(s, lic, low, "next_period")
    assert first["plan_id"] == high["id"] and [x["plan_id"] for x in first["scheduled_changes"]] == [low["id"]] and first["scheduled_changes"][0]["at"] == lic["expires_at"]
    assert first["changes"]["scheduled_changes"]["from"] == []
    second = change(s, lic, lower, "next_period")  # takes its place
    url = f"/licenses/{lic['id']}/scheduled-changes"
    assert [(x["plan_id"], x["status"]) for x in s.api.get(url)["items"]] == [(low["id"], "cancelled"), (lower["id"], "pending")]
    assert s.api("DELETE", f"{url}/{second['scheduled_changes'][0]['id']}").status_code == 204
    assert s.api.get(f"/licenses/{lic['id']}")["scheduled_changes"] == []
    problem(s.api("DELETE", f"{url}/{second['scheduled_changes'][0]['id']}"), 409, "not_pending")
    problem(s.api("DELETE", f"{url}/chg_none"), 404)
    pull(s, auth, "2.0.0", 200)
    assert [e for e, _ in history(s, lic["id"])][::-1][-3:] == ["license.change_scheduled", "license.change_scheduled", "license.change_cancelled"]


def test_lic_2_20_a_downgrade_applies_at_the_end_of_the_period(s, cus):
    c, auth = cus
    high, low = plan(s, grants=[{"selector": "all"}], auto_renew=True), plan(s, period="P1Y", grants=[{"selector": "exact", "value": "1.0.0"}], limits={"max_instances": 1})
    end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    lic = licensed(s, c, high, expires_at=end)
    change(s, lic, low, "next_period")
    pull(s, auth, "2.0.0", 200)
    down = wait_for("the change", lambda: (lambda x: x if x["plan_id"] == low["id"] else None)(s.api.get(f"/licenses/{lic['id']}")), 25)
    pull(s, auth, "2.0.0", 403)
    pull(s, auth, "1.0.0", 200)
    down = wait_for("the renewal", lambda: (lambda x: x if x["expires_at"] != end else None)(s.api.get(f"/licenses/{lic['id']}")), 15)
    assert 364 < days_from_now(down["expires_at"]) < 367  # renewed by the other plan's period
    assert down["scheduled_changes"] == [] and down["limits"]["max_instances"] == 1
    assert [x["status"] for x in s.api.get(f"/licenses/{lic['id']}/scheduled-changes")["items"]] == ["applied"]
    seen = [e for e, _ in history(s, lic["id"])]
    assert seen.count("license.plan_changed") == 1 and seen.index("license.renewed") < seen.index("license.plan_changed")  # newest first


# ---- requests of customers ---------------------------------------------------------------------------------------------------


def test_lic_0_42_a_customer_asks_for_a_renewal(s, cus):
    c, auth = cus
    lic = licensed(s, c, plan(s))
    r = portal(s, auth, "POST", f"/licenses/{lic['id']}/requests", {"kind": "renew", "message": "Please,\nanother month"}, 201).json()
    assert r["status"] == "open" and r["customer_id"] == c["id"]
    told = events(s, "license.requested", lic["id"])
    assert told and told[-1]["data"]["id"] == r["id"]
    assert [x["id"] for x in s.api.get(f"/requests?status=open&license_id={lic['id']}")["items"]] == [r["id"]]
    done = s.api.post(f"/requests/{r['id']}/approve", {"reason": "welcome"}, 200)
    assert done["status"] == "approved" and done["decided_by"].startswith("token:") and done["decided_at"]
    assert at(s.api.get(f"/licenses/{lic['id']}")["expires_at"]) > at(lic["expires_at"])
    problem(s.api("POST", f"/requests/{r['id']}/approve"), 409, "not_open")
    mine = portal(s, auth, "GET", f"/requests/{r['id']}", expect=200).json()
    assert mine["status"] == "approved" and mine["decided_by"] == ""
    no = portal(s, auth, "POST", f"/licenses/{lic['id']}/requests", {"kind": "renew"}, 201).json()
    assert s.api.post(f"/requests/{no['id']}/reject", {"reason": "unpaid"}, 200)["reason"] == "unpaid"
    row = [a for a in s.api.get("/audit?limit=100")["items"] if a["action"] == "portal.request.create"][-1]
    assert row["actor"] == f"customer:{c['id']}"


def test_lic_0_45_counts_change_by_request_or_by_hand(s, cus):
    c, auth = cus
    small, large = plan(s, limits={"max_instances": 1}), plan(s, limits={"max_instances": 5}, visible=True)
    lic = licensed(s, c, small)
    url = f"/licenses/{lic['id']}/requests"
    r = portal(s, auth, "POST", url, {"kind": "change", "plan_id": large["id"], "message": "five, please"}, 201).json()
    s.api.post(f"/requests/{r['id']}/approve", {}, 200)
    assert s.api.get(f"/licenses/{lic['id']}")["limits"]["max_instances"] == 5
    assert s.api("PATCH", f"/licenses/{lic['id']}", {"limits": {"max_instances": 7}}, 200).json()["limits"]["max_instances"] == 7
    later = portal(s, auth, "POST", url, {"kind": "change", "message": "another contact"}, 201).json()
    assert s.api.post(f"/requests/{later['id']}/approve", {}, 200)["status"] == "approved"  # made by hand
    problem(portal(s, auth, "POST", url, {"kind": "change", "plan_id": small["id"]}), 400, "unknown_reference", "plan_id")  # not for customers to see
    problem(portal(s, auth, "POST", url, {"kind": "gift"}), 400, "invalid_field", "kind")
    for _ in range(5):
        portal(s, auth, "POST", url, {"kind": "renew"}, 201)
    problem(portal(s, auth, "POST", url, {"kind": "renew"}), 409, "too_many_open")


def test_lic_0_42_requests_are_each_customers_own(s, cus):
    c, auth = cus
    lic, second = licensed(s, c, plan(s)), licensed(s, c, plan(s))
    other = basic("z", s.add_credential(s.add_customer(f"cus{next(s.n)}")["id"])["secret"])
    problem(portal(s, other, "POST", f"/licenses/{lic['id']}/requests", {"kind": "renew"}), 404)
    r = portal(s, auth, "POST", f"/licenses/{lic['id']}/requests", {"kind": "renew"}, 201).json()
    problem(portal(s, other, "GET", f"/requests/{r['id']}"), 404)
    assert portal(s, other, "GET", "/requests", expect=200).json()["items"] == []
    bound = basic("x", second["key"])  # a credential of one license speaks for that one
    problem(portal(s, bound, "POST", f"/licenses/{lic['id']}/requests", {"kind": "renew"}), 404)
    portal(s, bound, "POST", f"/licenses/{second['id']}/requests", {"kind": "renew"}, 201)
    assert len(portal(s, bound, "GET", "/requests", expect=200).json()["items"]) == 1
    problem(portal(s, bound, "POST", "/orders", {"plan_id": plan(s, visible=True)["id"]}), 403, "credential_is_bound")
    vendor, _ = second_vendor(s, f"vendor{next(s.n)}")
    problem(vendor("GET", f"/requests/{r['id']}"), 404)
    problem(vendor("POST", f"/requests/{r['id']}/approve"), 404)
    viewer, _ = token(s, "viewer")
    problem(viewer("POST", f"/requests/{r['id']}/approve"), 403, "role_not_allowed")


def test_lic_0_4_a_price_is_information(s, cus):
    c, auth = cus
    p = plan(s, price={"amount": "0.10", "currency": "EUR"}, visible=True)
    licensed(s, c, p)
    pull(s, auth, "1.0.0", 200)  # nobody paid


# ---- marketplaces -------------------------------------------------------------------------------------------------------------


def test_lic_2_21_a_marketplace_tells_its_subscription_as_often_as_it_likes(s, cus):
    c, auth = cus
    p, q = plan(s), plan(s, grants=[{"selector": "all"}])
    url = f"/licenses/by-external/azure/sub-{next(s.n)}"
    body = {"customer_id": c["id"], "plan_id": p["id"], "name": "Sold", "limits": {"max_instances": 4}, "metadata": {"offer": "x"}}
    problem(s.api("GET", url), 404)
    lic = s.api("PUT", url, body, 200).json()
    assert lic["status"] == "active" and lic["key"] and lic["marketplace"] == "azure" and lic["source"] == "marketplace" and lic["limits"]["max_instances"] == 4
    pull(s, auth, "1.0.0", 200)
    again = s.api("PUT", url, body, 200).json()
    assert again["id"] == lic["id"] and again["etag"] == lic["etag"] and "key" not in again
    assert s.api("PUT", url, {**body, "limits": {"max_instances": 5}}, 200).json()["limits"]["max_instances"] == 5
    up = s.api("PUT", url, {**body, "plan_id": q["id"]}, 200).json()
    assert up["plan_id"] == q["id"] and up["id"] == lic["id"]
    pull(s, auth, "2.0.0", 200)
    off = s.api("PUT", url, {**body, "plan_id": q["id"], "status": "suspended", "reason": "unsubscribed"}, 200).json()
    assert off["status"] == "suspended" and off["status_reason"] == "unsubscribed"
    pull(s, auth, "1.0.0", 403)
    assert s.api("PUT", url, {**body, "plan_id": q["id"], "status": "active"}, 200).json()["status"] == "active"
    problem(s.api("PUT", url, {**body, "customer_id": s.add_customer(f"cus{next(s.n)}")["id"]}), 409, "other_customer")
    gone = {**body, "plan_id": q["id"], "status": "revoked"}
    assert s.api("PUT", url, gone, 200).json()["status"] == "revoked" and s.api("PUT", url, gone, 200).json()["status"] == "revoked"
    problem(s.api("PUT", "/licenses/by-external/ebay/1", body), 400, "invalid_field", "source")
    assert s.api.get(url)["id"] == lic["id"]
    other, _ = second_vendor(s, f"vendor{next(s.n)}")
    problem(other("GET", url), 404)
