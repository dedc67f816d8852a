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
