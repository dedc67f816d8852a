"""Licenses, their terms, actions and grants, row by row of the licensing table: through the admin API, and with a pull where one is affected."""
import base64
import datetime
import re
import sqlite3
import time

import pytest
from admin_fixture import problem, token
from stack import Api, Stack, basic, requests, wait_for

VERSIONS = ("1.4.0", "1.4.1", "1.4.2", "1.5.0", "2.0.0", "2.1.0-rc.1")


class World:
    def __init__(self):
        self.s = s = Stack(proxy={"public_url": "https://registry.vendor.example", "trusted_proxies": ["127.0.0.0/8"]}, admin={"sync_interval": "1h"})
        for v in VERSIONS:
            s.registry.push_image("acme/api", v, [v.encode()])
        s.registry.push_image("acme/web", "1.4.2", [b"web"])
        self.api, self.up = s.api, s.add_upstream()
        self.app = s.add_application("shop", [("shop/api", "acme/api", "image"), ("shop/web", "acme/web", "image")], self.up["id"])
        self.api.post(f"/applications/{self.app['id']}/sync", {}, 200)
        self.api("PUT", f"/applications/{self.app['id']}/versions/2.1.0-rc.1", {"channel": "beta"}, 200)
        # Releases by date, for what updates_until is about.
        for v, day in (("1.4.0", "2025-01-10"), ("1.4.1", "2025-02-10"), ("1.4.2", "2025-03-10"), ("1.5.0", "2025-09-10"), ("2.0.0", "2026-02-10")):
            self.api("PUT", f"/applications/{self.app['id']}/versions/{v}", {"released_at": day}, 200)
        self.n = 0

    def customer(self):
        self.n += 1
        c = self.s.add_customer(f"cust-{self.n}")
        c["auth"] = ("ci", self.s.add_credential(c["id"])["secret"])
        return c

    def license(self, customer=None, **kw):
        c = customer or self.customer()
        kw.setdefault("name", "Prod")
        kw.setdefault("status", "active")
        kw.setdefault("grants", [{"selector": "all"}])
        lic = self.api.post("/licenses", {"customer_id": c["id"], "application_id": self.app["id"], **kw})
        lic["auth"], lic["customer"] = c["auth"], c
        return lic

    def act(self, lic, action, body=None, expect=200):
        return self.api("POST", f"/licenses/{lic['id']}/{action}", body or {}, expect).json()

    def get(self, lic):
        return self.api.get(f"/licenses/{lic['id']}")

    def pull(self, lic, tag="1.4.2", repository="shop/api", status=200, **kw):
        """Polls until the answer has the status; the answer."""
        auth = kw.pop("auth", lic["auth"])
        return self.s.wait_status(f"/v2/{repository}/manifests/{tag}", auth, status, **kw)

    def denied(self, lic, reason, tag="1.4.2", **kw):
        """The denial's message."""
        box = {}

        def probe():
            r = self.s.get(f"/v2/{kw.get('repository', 'shop/api')}/manifests/{tag}", kw.get("auth", lic["auth"]), headers=kw.get("headers"))
            box["e"] = r.json()["errors"][0] if r.status_code in (403, 404) else {}
            return box["e"].get("detail", {}).get("reason") == reason

        wait_for(f"a denial as {reason}", probe, 5)
        return box["e"]["message"]

    def history(self, lic):
        return self.api.get(f"/licenses/{lic['id']}/history")["items"]


@pytest.fixture(scope="module")
def w():
    world = World()
    try:
        yield world
    finally:
        world.s.close()


def iso(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def day(days):
    return (now() + datetime.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---- orders, activation, states --------------------------------------------------------------------------------------------------


def test_lic_0_13_name_is_unique_for_a_customer(w):
    lic = w.license()
    problem(w.api("POST", "/licenses", {"name": "Prod", "customer_id": lic["customer_id"], "application_id": w.app["id"]}), 409, "conflict", "name")
    assert w.license(name="Prod")["name"] == "Prod"  # of another customer


def test_lic_0_16_extend_is_audited(w):
    lic = w.license(expires_at="2090-05-31")
    d = w.act(lic, "extend", {"period": "P1M", "reason": "coupon SPRING"})
    assert d["expires_at"] == "2090-06-30T23:59:59Z" and d["changes"]["expires_at"] == {"from": "2090-05-31T23:59:59Z", "to": "2090-06-30T23:59:59Z"}
    assert [(h["event"], h["reason"]) for h in w.history(lic)][0] == ("license.extended", "coupon SPRING")
    row = next(a for a in w.api.get("/audit?limit=50")["items"] if a["object"] == lic["id"] and a["action"] == "license.extend")
    assert row["before"]["expires_at"] == "2090-05-31T23:59:59Z" and row["after"]["expires_at"] == d["expires_at"]


def count(w, *tables):
    db = sqlite3.connect(f"file:{w.s.dir}/pullgate.db?mode=ro", uri=True)
    try:
        return [db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in tables]
    finally:
        db.close()


def test_lic_0_18_preview_before_save(w):
    c = w.customer()
    tables = ("licenses", "grants", "audit", "license_history", "idempotency_keys", "outbox")
    before = count(w, *tables)
    body = {"name": "Preview", "customer_id": c["id"], "application_id": w.app["id"], "status": "active", "grants": [{"selector": "range", "value": "~1.4"}]}
    r = w.api("POST", "/licenses?dry_run=1", body, 200, headers={"Idempotency-Key": "preview"})
    d = r.json()
    assert r.headers["Dry-Run"] == "true" and "Location" not in r.headers and "key" not in d and d["grants"][0]["value"] == "~1.4"
    assert [(t["repository"], t["tag"]) for t in d["effect"]["gained"]] == [("shop/api", "1.4.0"), ("shop/api", "1.4.1"), ("shop/api", "1.4.2"), ("shop/web", "1.4.2")]
    assert d["effect"]["lost"] == [] and d["effect"]["truncated"] is False
    assert count(w, *tables) == before
    problem(w.api("GET", f"/licenses/{d['id']}"), 404)
    # the key was not used up, and the license can be made
    assert w.api("POST", "/licenses", body, 201, headers={"Idempotency-Key": "preview"}).json()["id"] != d["id"]
    # every change of every resource can be looked at first, and refusals are as they would be
    r = w.api("PATCH", f"/customers/{c['id']}?dry_run=1", {"name": "Other"}, 200)
    assert r.json()["name"] == "Other" and w.api.get(f"/customers/{c['id']}")["name"] != "Other"
    problem(w.api("POST", "/licenses?dry_run=1", {**body, "name": "Preview"}), 409, "conflict", "name")
    problem(w.api("POST", "/licenses?dry_run=maybe", body), 400, "invalid_parameter", "dry_run")
    problem(w.api("GET", "/licenses?dry_run=1"), 400, "unknown_parameter", "dry_run")
    audit, = count(w, "audit")
    problem(w.api("POST", f"/licenses/{d['id']}/activate?dry_run=1", {}), 404)
    assert count(w, "audit") == [audit]


def test_lic_0_24_validation_by_an_administrator(w):
    lic = w.license(status="inactive", requires_activation=True)
    w.denied(lic, "inactive")
    viewer, _ = token(w.s, "viewer")
    problem(viewer("POST", f"/licenses/{lic['id']}/activate", {}), 403, "role_not_allowed")
    manager, t = token(w.s, "license_manager")
    d = manager.post(f"/licenses/{lic['id']}/activate", {"reason": "paid, bank statement 7"}, 200)
    assert d["status"] == "active" and d["activated_at"] and d["changes"]["status"] == {"from": "inactive", "to": "active"}
    h = w.history(lic)[0]
    assert (h["event"], h["actor"], h["reason"], h["from_status"], h["to_status"]) == ("license.activated", f"token:{t['id']}", "paid, bank statement 7", "inactive", "active")
    assert h["request_id"] and h["data"]["status"]["to"] == "active"
    w.pull(lic)


def test_lic_0_25_an_edit_counts_at_the_next_pull(w):
    lic = w.license(status="inactive")
    w.denied(lic, "inactive")
    for action, status in (("activate", 200), ("suspend", 403), ("reinstate", 200)):
        w.act(lic, action)
        started = time.monotonic()
        w.pull(lic, status=status)
        assert time.monotonic() - started < 1 * (4 if "dev" in str(w.s.dir) else 3)  # a second, on a busy machine too


def test_lic_0_31_features_can_be_verified(w):
    lic = w.license(features={"sso": True, "modules": ["a", "b"]}, grants=[{"selector": "exact", "value": "1.4.2"}])
    assert w.get(lic)["features"] == {"sso": True, "modules": ["a", "b"]}
    slug = lic["customer"]["slug"]
    assert w.api.get(f"/explain?customer={slug}&repository=shop/api&reference=1.4.2")["decision"] == "allow"
    assert w.api.get(f"/explain?customer={slug}&repository=shop/api&reference=1.5.0")["reason"] == "version_not_granted"
    w.s.wait_status("/v2/", lic["auth"], 200)
    r = requests.get(w.s.admin_base + "/portal/v1/licenses", headers={"Authorization": basic(*lic["auth"])})
    assert [x["id"] for x in r.json()["items"]] == [lic["id"]]


def test_lic_0_33_next_payment_date(w):
    lic = w.license(type="subscription", period="P1M", auto_renew=True, expires_at="2090-01-31")
    assert lic["renews_at"] == lic["expires_at"] == "2090-01-31T23:59:59Z"
    d = w.act(lic, "cancel-at-period-end", {"reason": "leaves"})
    assert d["cancel_at_period_end"] is True and d["renews_at"] is None and d["changes"]["renews_at"]["to"] is None and "cancel-at-period-end" not in d["allowed_actions"]
    problem(w.api("POST", f"/licenses/{lic['id']}/cancel-at-period-end", {}), 409, "action_not_allowed")
    d = w.api("PATCH", f"/licenses/{lic['id']}", {"cancel_at_period_end": False}, 200).json()
    assert d["renews_at"] == "2090-01-31T23:59:59Z" and d["changes"]["cancel_at_period_end"] == {"from": True, "to": False}
    problem(w.api("PATCH", f"/licenses/{lic['id']}", {"period": None}), 400, "invalid_field", "auto_renew")


def test_lic_0_34_inactive_is_denied(w):
    lic = w.license(status="inactive")
    assert "awaits activation by the vendor" in w.denied(lic, "inactive")


def test_lic_0_35_active_is_allowed(w):
    assert w.pull(w.license()).headers["Docker-Content-Digest"].startswith("sha256:")


def test_lic_0_36_suspended_with_its_reason_and_back(w):
    lic = w.license()
    d = w.act(lic, "suspend", {"reason": "invoice 7 is overdue"})
    assert d["status"] == d["effective_status"] == "suspended" and d["status_reason"] == "invoice 7 is overdue"
    assert "invoice 7 is overdue" in w.denied(lic, "suspended")
    assert w.act(lic, "reinstate")["status_reason"] == ""
    w.pull(lic)


def test_lic_0_37_expired_is_derived_never_stored(w):
    lic = w.license(starts_at=day(-40), expires_at=day(-8), grace_days=7)
    assert lic["status"] == "active" and lic["effective_status"] == "expired"
    assert "expired on" in w.denied(lic, "expired")
    db = sqlite3.connect(f"file:{w.s.dir}/pullgate.db?mode=ro", uri=True)
    assert db.execute("SELECT status FROM licenses WHERE id=?", (lic["id"],)).fetchone() == ("active",)
    db.close()


def test_lic_0_38_revoked_is_final(w):
    lic = w.license(expires_at="2090-01-01")
    d = w.act(lic, "revoke", {"reason": "chargeback"})
    assert d["revoked_at"] and d["allowed_actions"] == ["delete"]
    assert "chargeback" in w.denied(lic, "revoked")
    for action, body in (("activate", {}), ("suspend", {}), ("reinstate", {}), ("revoke", {}), ("renew", {"period": "P1M"}), ("extend", {"period": "P1M"}), ("rotate-key", {}),
                         ("reset", {}), ("grants", {"selector": "all"})):
        p = problem(w.api("POST", f"/licenses/{lic['id']}/{action}", body), 409, "action_not_allowed")
        assert "final" in p["detail"] and p["allowed_actions"] == ["delete"]
    problem(w.api("PATCH", f"/licenses/{lic['id']}", {"grace_days": 1}), 409, "action_not_allowed")


def test_lic_0_48_grace(w):
    lic = w.license(starts_at=day(-40), expires_at=day(-2), grace_days=7)
    assert lic["effective_status"] == "grace"
    assert iso(lic["grace_ends_at"]) - iso(lic["expires_at"]) == datetime.timedelta(days=7)
    w.pull(lic)
    w.api("PATCH", f"/licenses/{lic['id']}", {"grace_days": 1}, 200)
    w.denied(lic, "expired")


def test_lic_0_52_refund(w):
    lic = w.license()
    d = w.act(lic, "revoke", {"reason": "refund"})
    assert d["status"] == "revoked" and d["status_reason"] == "refund" and w.history(lic)[0]["reason"] == "refund"


# ---- forms ------------------------------------------------------------------------------------------------------------------------


def test_lic_1_3_register_a_license_once(w):
    c = w.customer()
    body = {"name": "Once", "customer_id": c["id"], "application_id": w.app["id"], "grants": [{"selector": "exact", "value": "1.4.2"}], "order_number": "O-13", "transaction_id": "T-13",
            "external_id": "X-13", "environment": "prod", "metadata": {"crm": 13}}
    a, b = (w.api("POST", "/licenses", body, 201, headers={"Idempotency-Key": "row-1.3"}) for _ in range(2))
    assert a.json() == b.json() and b.headers["Idempotent-Replayed"] == "true"
    d = w.get(a.json())
    assert {k: d[k] for k in ("order_number", "transaction_id", "external_id", "environment", "metadata", "source", "issuer", "plan_id")} == {
        "order_number": "O-13", "transaction_id": "T-13", "external_id": "X-13", "environment": "prod", "metadata": {"crm": 13}, "source": "created", "issuer": "", "plan_id": None}


def test_lic_1_4_edit_against_the_etag(w):
    lic = w.license()
    r = w.api("PATCH", f"/licenses/{lic['id']}", {"name": "Renamed", "grace_days": 3}, 200, headers={"If-Match": f'"{lic["etag"]}"'})
    assert r.json()["changes"] == {"name": {"from": "Prod", "to": "Renamed"}, "grace_days": {"from": 0, "to": 3}}
    problem(w.api("PATCH", f"/licenses/{lic['id']}", {"name": "Again"}, headers={"If-Match": f'"{lic["etag"]}"'}), 412, "etag_mismatch")
    assert w.history(lic)[0]["data"] == r.json()["changes"]


def test_lic_1_5_renew(w):
    lic = w.license(expires_at="2090-01-31", period="P1M")
    assert [w.act(lic, "renew")["expires_at"][:10] for _ in range(4)] == ["2090-02-28", "2090-03-31", "2090-04-30", "2090-05-31"]
    d = w.act(lic, "renew", {"expires_at": "2091-01-15"})
    assert d["changes"]["expires_at"] == {"from": "2090-05-31T23:59:59Z", "to": "2091-01-15T23:59:59Z"}
    assert [w.act(lic, "renew")["expires_at"][:10] for _ in range(2)] == ["2091-02-15", "2091-03-15"]  # a date names the day anew
    kept = w.license(expires_at="2090-01-31", period="P1M")
    printed = w.act(kept, "renew")["expires_at"]
    assert w.api("PATCH", f"/licenses/{kept['id']}", {"expires_at": printed}, 200).json()["changes"] == {}  # what it was: nothing is named anew
    assert w.act(kept, "renew")["expires_at"][:10] == "2090-03-31"
    expired = w.license(starts_at=day(-40), expires_at=day(-3))
    w.denied(expired, "expired")
    d = w.act(expired, "renew", {"period": "P1Y"})
    assert d["effective_status"] == "active" and 363 < (iso(d["expires_at"]) - now()).days < 367
    w.pull(expired)


def test_lic_1_6_enable(w):
    lic = w.license(status="inactive")
    assert "activate" in lic["allowed_actions"] and w.act(lic, "activate")["status"] == "active"
    w.act(lic, "suspend")
    assert w.act(lic, "reinstate")["status"] == "active"
    w.pull(lic)


def test_lic_1_7_disable_is_reversible(w):
    lic = w.license()
    w.pull(lic)
    w.act(lic, "suspend", {"reason": "on hold"})
    w.denied(lic, "suspended")
    w.act(lic, "reinstate")
    w.pull(lic)


def test_lic_1_8_delete_with_its_name_and_the_audit_survives(w):
    lic = w.license(name="To be deleted")
    url = f"/licenses/{lic['id']}"
    problem(w.api("DELETE", url + "?confirm=Something"), 409, "confirm_mismatch", "confirm")
    d = w.api("DELETE", url + "?dry_run=1", None, 200).json()
    assert len(d["effect"]["lost"]) == len(VERSIONS) + 1
    w.pull(lic)
    assert w.api("DELETE", url + "?confirm=To%20be%20deleted&reason=closed").status_code == 204
    w.denied(lic, "no_license")
    problem(w.api("GET", url), 404)
    assert [(h["event"], h["reason"]) for h in w.history(lic)][:2] == [("license.deleted", "closed"), ("license.created", "")]
    assert any(a["object"] == lic["id"] and a["action"] == "license.delete" and a["outcome"] == "ok" for a in w.api.get("/audit?limit=100")["items"])
    assert w.api.get("/audit/verification")["ok"] is True


def test_lic_1_9_configuration(w):
    limits = {"max_instances": 3, "pulls": 1000, "bytes": 10**9, "reset_period": "P1M", "limit_action": "warn", "custom": {"seats": 25}}
    lic = w.license(limits=limits, allowed_cidrs=["127.0.0.0/8"], on_expiry="keep_released")
    assert lic["limits"] == limits
    url = f"/licenses/{lic['id']}"
    d = w.api("PATCH", url, {"limits": {"pulls": None, "limit_action": "deny"}}, 200).json()
    assert d["limits"] == {"max_instances": 3, "bytes": 10**9, "reset_period": "P1M", "limit_action": "deny", "custom": {"seats": 25}}
    assert w.license(limits={})["limits"] == {"reset_period": "", "limit_action": "warn", "custom": {}}
    for bad, field in (({"pulls": 0}, "limits.pulls"), ({"pulls": 1.5}, "limits.pulls"), ({"reset_period": "monthly"}, "limits.reset_period"), ({"limit_action": "block"}, "limits.limit_action"),
                       ({"custom": []}, "limits.custom"), ({"bytes": -1}, "limits.bytes")):
        problem(w.api("PATCH", url, {"limits": bad}), 400, "invalid_field", field)
    problem(w.api("PATCH", url, {"limits": {"seats": 1}}), 400, "unknown_field", "limits.seats")


def test_lic_1_15_addresses(w):
    lic = w.license(allowed_cidrs=["10.1.0.0/16", "127.0.0.0/8"])
    w.pull(lic)
    w.api("PATCH", f"/licenses/{lic['id']}", {"allowed_cidrs": ["10.1.0.0/16"]}, 200)
    assert "127.0.0.1" in w.denied(lic, "ip_not_allowed")
    problem(w.api("PATCH", f"/licenses/{lic['id']}", {"allowed_cidrs": ["10.1.0.0/33"]}), 400, "invalid_field", "allowed_cidrs[0]")


def test_lic_1_18_a_date_is_the_end_of_its_day(w):
    v = w.api.get("/vendors")["items"][0]
    w.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "Pacific/Auckland"}, 200)
    try:
        lic = w.license(expires_at="2090-07-04")
        assert lic["expires_at"] == "2090-07-04T11:59:59Z"
        assert w.act(lic, "renew", {"period": "P6M"})["expires_at"] == "2091-01-04T10:59:59Z"  # summer there; the day's end all the same
    finally:
        w.api("PATCH", f"/vendors/{v['id']}", {"time_zone": "UTC"}, 200)
    assert w.license(expires_at="2090-07-04T05:06:07+02:00")["expires_at"] == "2090-07-04T03:06:07Z"


def test_lic_1_19_ordered_is_inactive(w):
    lic = w.license(status="inactive", order_number="O-119")
    assert lic["effective_status"] == "inactive" and w.api.get("/licenses?order_number=O-119")["items"][0]["id"] == lic["id"]


def test_lic_1_20_active(w):
    assert w.license()["effective_status"] == "active"


def test_lic_1_21_suspended_for_any_reason(w):
    lic = w.license()
    assert w.act(lic, "suspend", {"reason": "audit pending, ticket #9"})["status_reason"] == "audit pending, ticket #9"


def test_lic_1_23_the_application_never_changes(w):
    lic = w.license()
    problem(w.api("PATCH", f"/licenses/{lic['id']}", {"application_id": w.app["id"]}), 400, "unknown_field", "application_id")
    problem(w.api("PATCH", f"/licenses/{lic['id']}", {"customer_id": lic["customer_id"]}), 400, "unknown_field", "customer_id")


def test_lic_1_25_rotate_key(w):
    lic = w.license()
    old = ("license", lic["key"])
    w.pull(lic, auth=old)
    d = w.act(lic, "rotate-key", {"reason": "leaked"})
    assert d["key"] != lic["key"] and d["changes"]["key_prefix"]["to"] == d["key_prefix"] and "key" not in w.get(lic)
    w.pull(lic, auth=("license", d["key"]))
    w.pull(lic, auth=old, status=401)
    w.pull(lic)  # credentials live on


def test_lic_1_26_reset_ends_every_registration(w):
    lic = w.license()
    bound = ("ci", w.s.add_credential(lic["customer_id"], name="bound", license_id=lic["id"])["secret"])
    w.pull(lic, auth=bound)
    wait_for("an installation", lambda: w.api.get(f"/licenses/{lic['id']}/instances")["items"])
    d = w.act(lic, "reset", {"reason": "sold on"})
    assert d["key"] != lic["key"] and w.api.get(f"/licenses/{lic['id']}/instances")["items"] == []
    w.pull(lic, auth=bound, status=401)
    w.pull(lic, auth=("license", lic["key"]), status=401)
    w.pull(lic, auth=("license", d["key"]))
    w.pull(lic)  # the customer's own credential is not bound to it
    assert w.history(lic)[0]["event"] == "license.reset"


def test_lic_1_28_renew_takes_the_period_or_the_date(w):
    lic = w.license(expires_at="2090-05-31")
    for bad in ({"period": "P1M", "name": "x"}, {"period": "P1M", "allowed_cidrs": []}, {"grants": []}):
        problem(w.api("POST", f"/licenses/{lic['id']}/renew", bad), 400, "unknown_field")
    problem(w.api("POST", f"/licenses/{lic['id']}/renew", {"period": "P1M", "expires_at": "2091-01-01"}), 400, "invalid_field", "period")
    d = w.act(lic, "renew", {"period": "P1Y"})
    assert set(d["changes"]) == {"expires_at"} and d["changes"]["expires_at"]["from"] == "2090-05-31T23:59:59Z"


def test_lic_1_29_the_period(w):
    lic = w.license(expires_at="2088-02-29")
    assert [w.act(lic, "renew", {"period": p})["expires_at"][:10] for p in ("P1Y", "P1Y", "P2Y", "P14D", "P2W", "7d")] == [
        "2089-02-28", "2090-02-28", "2092-02-29", "2092-03-14", "2092-03-28", "2092-04-04"]


# ---- types ------------------------------------------------------------------------------------------------------------------------


def test_lic_2_3_perpetual(w):
    lic = w.license(type="perpetual", updates_until="2025-06-30")
    assert lic["expires_at"] is None and lic["effective_status"] == "active" and "extend" not in lic["allowed_actions"]
    w.pull(lic, "1.4.2")
    w.denied(lic, "maintenance_ended", "2.0.0")
    ever = w.license(type="perpetual")
    for which, action in ((lic, "extend"), (ever, "extend"), (ever, "renew")):
        assert "perpetual" in problem(w.api("POST", f"/licenses/{which['id']}/{action}", {"period": "P1Y"}), 409, "action_not_allowed")["detail"]
    for bad, field in (({"expires_at": "2090-01-01"}, "expires_at"), ({"trial_days": 5}, "trial_days"), ({"auto_renew": True, "period": "P1Y"}, "auto_renew")):
        problem(w.api("PATCH", f"/licenses/{lic['id']}", bad), 400, "invalid_field", field)
    c = w.customer()
    problem(w.api("POST", "/licenses", {"name": "p", "customer_id": c["id"], "application_id": w.app["id"], "type": "perpetual", "expires_at": "2090-01-01"}), 400, "invalid_field", "expires_at")


def test_lic_2_6_a_trial_begins_with_its_first_pull_once(w):
    lic = w.license(type="trial", trial_days=14, starts_on="first_pull")
    assert lic["expires_at"] is None and lic["trial_started_at"] is None and lic["effective_status"] == "active" and "renew" not in lic["allowed_actions"]
    problem(w.api("POST", f"/licenses/{lic['id']}/extend", {"period": "P1M"}), 409, "action_not_allowed")
    w.s.get("/v2/shop/api/manifests/9.9.9", lic["auth"])  # not granted by any tag: begins nothing
    for tag in ("1.4.0", "1.4.1", "1.4.2", "1.5.0"):
        w.pull(lic, tag)
    d = wait_for("the trial to begin", lambda: (x := w.get(lic))["trial_started_at"] and x)
    assert iso(d["expires_at"]) - iso(d["trial_started_at"]) == datetime.timedelta(days=14) and abs((iso(d["trial_started_at"]) - now()).total_seconds()) < 60
    wait_for("all pulls in the log", lambda: len(w.api.get(f"/pulls?license={lic['id']}")["items"]) >= 4)
    assert w.get(lic)["expires_at"] == d["expires_at"]
    started = [h for h in w.history(lic) if h["event"] == "license.trial_started"]
    assert len(started) == 1 and started[0]["actor"] == "system:first_pull" and started[0]["data"]["expires_at"] == d["expires_at"]
    assert sum(a["object"] == lic["id"] and a["action"] == "license.start_trial" for a in w.api.get("/audit?limit=200")["items"]) == 1
    assert w.act(lic, "extend", {"period": "7d"})["changes"]["expires_at"]["from"] == d["expires_at"]
    w.pull(lic)


def test_a_trial_begins_with_its_activation(w):
    lic = w.license(status="inactive", trial_days=30)
    assert lic["type"] == "trial" and lic["expires_at"] is None
    d = w.act(lic, "activate")
    assert iso(d["expires_at"]) - iso(d["trial_started_at"]) == datetime.timedelta(days=30) and d["changes"]["expires_at"]["from"] is None
    d = w.license(trial_days=30, starts_on="activation")
    assert d["trial_started_at"] and d["expires_at"]
    for bad, field in (({"starts_on": "first_pull"}, "starts_on"), ({"starts_on": "today", "trial_days": 1}, "starts_on"), ({"trial_days": 9999}, "trial_days"),
                       ({"trial_days": 5, "starts_on": "first_pull", "expires_at": "2090-01-01"}, "expires_at")):
        problem(w.api("POST", "/licenses", {"name": "bad", "customer_id": lic["customer_id"], "application_id": w.app["id"], **bad}), 400, "invalid_field", field)


def test_lic_2_9_environments(w):
    lic = w.license(environment="ad.acme.example")
    assert lic["environment"] == "ad.acme.example"
    assert w.api("PATCH", f"/licenses/{lic['id']}", {"environment": None}, 200).json()["environment"] == ""


def test_lic_2_10_two_environments_two_licenses(w):
    c = w.customer()
    prod = w.license(c, name="Prod", environment="prod", grants=[{"selector": "exact", "value": "1.4.2"}])
    test = w.license(c, name="Test", environment="test", grants=[{"selector": "exact", "value": "2.0.0"}])
    for tag in ("1.4.2", "2.0.0"):  # the union
        w.pull(prod, tag)
    bound = ("ci", w.s.add_credential(c["id"], name="test only", license_id=test["id"])["secret"])
    w.pull(test, "2.0.0", auth=bound)
    w.denied(test, "version_not_granted", "1.4.2", auth=bound)
    w.pull(prod, "1.4.2", auth=("x", prod["key"]))
    w.denied(prod, "version_not_granted", "2.0.0", auth=("x", prod["key"]))


def test_lic_2_11_which_upgrades_are_free(w):
    everything = w.license(grants=[{"selector": "all"}])
    patches = w.license(grants=[{"selector": "range", "value": "~1.4.0"}])
    a_year = w.license(grants=[{"selector": "all"}], updates_until="2025-12-31")
    for tag in ("1.4.2", "1.5.0", "2.0.0"):
        w.pull(everything, tag)
    w.pull(patches, "1.4.2")
    w.denied(patches, "version_not_granted", "1.5.0")
    w.pull(a_year, "1.5.0")
    w.denied(a_year, "maintenance_ended", "2.0.0")


def test_lic_2_15_every_pull_checks_the_live_state(w):
    lic = w.license()
    digest = w.pull(lic).headers["Docker-Content-Digest"]
    w.pull(lic, digest)
    w.act(lic, "suspend")
    w.denied(lic, "suspended")
    w.denied(lic, "suspended", digest)


# ---- versions, grants -------------------------------------------------------------------------------------------------------------


def test_lic_3_1_which_versions_a_customer_can_access(w):
    lic = w.license(grants=[{"selector": "range", "value": "^1.4"}])
    w.pull(lic, "1.5.0")
    w.denied(lic, "version_not_granted", "2.0.0")
    assert sorted(w.s.get("/v2/shop/api/tags/list", lic["auth"]).json()["tags"]) == ["1.4.0", "1.4.1", "1.4.2", "1.5.0"]


def test_lic_3_2_a_license_is_a_customers(w):
    lic = w.license()
    assert w.get(lic)["customer_id"] == lic["customer"]["id"]
    w.denied(lic, "no_license", auth=w.customer()["auth"])


def test_lic_3_3_one_some_or_all(w):
    for grants, tags in (([{"selector": "exact", "value": "1.4.0"}], {"1.4.0"}), ([{"selector": "exact", "value": "1.4.0"}, {"selector": "exact", "value": "2.0.0"}], {"1.4.0", "2.0.0"}),
                         ([{"selector": "all"}], set(VERSIONS))):
        lic = w.license(grants=grants)
        w.pull(lic, "1.4.0")
        assert set(w.s.get("/v2/shop/api/tags/list", lic["auth"]).json()["tags"]) == tags


def test_lic_3_4_name(w):
    lic = w.license(name="Łódź – production")
    assert w.get(lic)["name"] == "Łódź – production"


def test_lic_3_5_expiration_date(w):
    lic = w.license(expires_at="2090-12-31")
    assert lic["expires_at"] == "2090-12-31T23:59:59Z"


def test_lic_3_6_one_customer_and_one_application(w):
    c = w.customer()
    for missing in ("customer_id", "application_id", "name"):
        body = {"name": "x", "customer_id": c["id"], "application_id": w.app["id"]}
        del body[missing]
        problem(w.api("POST", "/licenses", body), 400, "missing_field", missing)
    problem(w.api("POST", "/licenses", {"name": "x", "customer_id": [c["id"]], "application_id": w.app["id"]}), 400, "invalid_field", "customer_id")


def test_lic_3_7_one_or_more_versions(w):
    lic = w.license(grants=[{"selector": "exact", "value": "1.4.0"}])
    w.denied(lic, "version_not_granted", "2.0.0")
    d = w.act(lic, "grants", {"selector": "exact", "value": "2.0.0"})
    assert len(d["grants"]) == 2 and d["changes"]["grants"]["from"] == lic["grants"]
    w.pull(lic, "2.0.0")


def test_lic_3_8_taking_a_version_away(w):
    lic = w.license(grants=[{"selector": "exact", "value": "1.4.2"}, {"selector": "exact", "value": "1.4.1"}])
    url = f"/licenses/{lic['id']}/grants/{lic['grants'][0]['id']}"
    w.pull(lic, "1.4.2")
    w.pull(lic, "1.4.1")
    wait_for("the pull in the log", lambda: len(w.api.get(f"/pulls?license={lic['id']}")["items"]) >= 2)
    d = w.api("DELETE", url + "?dry_run=1&reason=look", None, 200).json()
    assert {(t["repository"], t["tag"]) for t in d["effect"]["lost"]} == {("shop/api", "1.4.2"), ("shop/web", "1.4.2")} and d["effect"]["gained"] == []
    assert [(p["tag"], p["customer"], p["client"]) for p in d["last_pulls"]] == [("1.4.2", lic["customer"]["name"], "127.0.0.1")]
    assert abs((iso(d["last_pulls"][0]["at"]) - now()).total_seconds()) < 60
    problem(w.api("DELETE", url), 400, "missing_field", "reason")
    w.pull(lic, "1.4.2")
    assert w.api("DELETE", url, {"reason": "CVE-2026-1"}).status_code == 204
    w.denied(lic, "version_not_granted", "1.4.2")
    w.pull(lic, "1.4.1")
    h = w.history(lic)[0]
    assert (h["event"], h["reason"], h["data"]["value"]) == ("license.grant_removed", "CVE-2026-1", "1.4.2")


def test_lic_3_8_locked_grants(w):
    lic = w.license(grants_locked=True, grants=[{"selector": "range", "value": "^1", "include_prerelease": True, "not_after": "2090-01-01"}])
    url, grant = f"/licenses/{lic['id']}", f"/licenses/{lic['id']}/grants/{lic['grants'][0]['id']}"
    problem(w.api("DELETE", grant, {"reason": "x"}), 409, "grants_locked")
    for narrower in ({"repositories": ["shop/api"]}, {"not_after": "2089-01-01"}, {"not_before": "2089-01-01"}, {"include_prerelease": False}):
        problem(w.api("PATCH", grant, narrower), 409, "grants_locked")
    w.api("PATCH", grant, {"not_after": None, "note": "for ever"}, 200)  # wider
    w.act(lic, "grants", {"selector": "exact", "value": "2.0.0"})
    manager, _ = token(w.s, "license_manager")
    problem(manager("PATCH", url, {"grants_locked": False}), 403, "role_not_allowed", "grants_locked")
    manager("PATCH", url, {"grace_days": 2}, 200)
    w.api("PATCH", url, {"grants_locked": False}, 200)
    assert manager("DELETE", grant, {"reason": "now it may"}).status_code == 204
    # the vendor's own rule, over all its licenses
    v = w.api.get("/vendors")["items"][0]
    w.api("PATCH", f"/vendors/{v['id']}", {"grants_irrevocable": True}, 200)
    try:
        d = w.get(lic)
        assert d["grants_locked"] is True
        problem(w.api("DELETE", f"{url}/grants/{d['grants'][0]['id']}", {"reason": "x"}), 409, "grants_locked")
        w.api("PATCH", url, {"grace_days": 3}, 200)
    finally:
        w.api("PATCH", f"/vendors/{v['id']}", {"grants_irrevocable": False}, 200)
    assert w.get(lic)["grants_locked"] is False


def test_lic_3_8_one_version_out_of_a_wide_grant(w):
    lic = w.license(grants=[{"selector": "range", "value": "^1.4"}])
    url = f"/licenses/{lic['id']}/grants/{lic['grants'][0]['id']}/remove-version"
    digest = w.pull(lic, "1.4.1").headers["Docker-Content-Digest"]
    wait_for("the pull in the log", lambda: w.api.get(f"/pulls?license={lic['id']}")["items"])
    d = w.api("POST", url + "?dry_run=1", {"version": "1.4.1", "reason": "CVE-2026-2"}, 200).json()
    assert d["effect"] == {"gained": [], "lost": [{"repository": "shop/api", "tag": "1.4.1"}], "truncated": False} and [p["tag"] for p in d["last_pulls"]] == ["1.4.1"]
    problem(w.api("POST", url, {"version": "1.4.1"}), 400, "missing_field", "reason")
    problem(w.api("POST", url, {"version": "a b", "reason": "x"}), 400, "invalid_field", "version")
    d = w.api("POST", url, {"version": "1.4.1", "reason": "CVE-2026-2"}, 200).json()
    assert d["grants"][0]["excluded"] == ["1.4.1"]
    w.denied(lic, "version_not_granted", "1.4.1")
    w.denied(lic, "not_in_closure", digest)
    w.pull(lic, "1.4.2")
    assert sorted(w.s.get("/v2/shop/api/tags/list", lic["auth"]).json()["tags"]) == ["1.4.0", "1.4.2", "1.5.0"]
    assert w.api.get(f"/explain?customer={lic['customer']['slug']}&repository=shop/api&reference=1.4.1")["reason"] == "version_not_granted"
    problem(w.api("POST", url, {"version": "1.4.1", "reason": "x"}), 409, "already_removed")
    assert w.history(lic)[0]["event"] == "license.version_removed" and w.history(lic)[0]["reason"] == "CVE-2026-2"
    d = w.act(lic, "grants", {"selector": "exact", "value": "1.4.1"})  # granted again, by itself
    w.pull(lic, "1.4.1")
    problem(w.api("POST", f"/licenses/{lic['id']}/grants/{d['grants'][1]['id']}/remove-version", {"version": "1.4.1", "reason": "x"}), 409, "single_grant")
    w.api("PATCH", f"/licenses/{lic['id']}", {"grants_locked": True}, 200)
    problem(w.api("POST", url, {"version": "1.4.2", "reason": "x"}), 409, "grants_locked")


def test_lic_3_9_several_licenses_are_a_union(w):
    c = w.customer()
    a = w.license(c, name="A", grants=[{"selector": "exact", "value": "1.4.0"}])
    b = w.license(c, name="B", grants=[{"selector": "exact", "value": "1.5.0"}])
    w.pull(a, "1.4.0")
    w.pull(a, "1.5.0")
    w.act(b, "suspend")
    w.denied(a, "version_not_granted", "1.5.0")
    w.pull(a, "1.4.0")


def test_lic_3_12_a_hotfix_for_one_customer(w):
    lic = w.license(grants=[{"selector": "exact", "value": "1.4.0"}])
    d = w.act(lic, "grants", {"selector": "exact", "value": "1.4.1", "not_after": day(30), "note": "hotfix 77"})
    w.pull(lic, "1.4.1")
    w.api("PATCH", f"/licenses/{lic['id']}/grants/{d['grants'][1]['id']}", {"not_after": day(-1)}, 200)
    w.denied(lic, "grant_window", "1.4.1")
    w.denied(w.license(grants=[{"selector": "exact", "value": "1.4.0"}]), "version_not_granted", "1.4.1")


def test_lic_3_13_early_access(w):
    by_channel = w.license(grants=[{"selector": "channel", "value": "beta"}])
    by_range = w.license(grants=[{"selector": "range", "value": ">=2.0.0", "include_prerelease": True}])
    without = w.license(grants=[{"selector": "range", "value": ">=2.0.0"}])
    w.pull(by_channel, "2.1.0-rc.1")
    w.denied(by_channel, "version_not_granted", "2.0.0")
    w.pull(by_range, "2.1.0-rc.1")
    w.pull(without, "2.0.0")
    w.denied(without, "version_not_granted", "2.1.0-rc.1")


def test_lic_3_14_always_on_and_closed(w):
    c = w.customer()
    w.denied(c, "no_license")
    lic = w.license(c, grants=[])
    w.denied(lic, "version_not_granted")


def test_lic_3_15_to_3_20_the_steps_of_a_license(w):
    c = w.api.post("/customers", {"name": "Step One"})
    assert c["slug"] == "step-one"
    body = {"name": "Steps", "expires_at": "2090-01-01", "application_id": w.app["id"], "customer_id": c["id"], "grants": [{"selector": "range", "value": "^1.4"}], "status": "active"}
    preview = w.api("POST", "/licenses?dry_run=1", body, 200).json()["effect"]["gained"]
    assert {t["tag"] for t in preview if t["repository"] == "shop/api"} == {"1.4.0", "1.4.1", "1.4.2", "1.5.0"}
    # one POST, whole or not at all
    before = count(w, "licenses", "grants")
    problem(w.api("POST", "/licenses", {**body, "grants": [{"selector": "all"}, {"selector": "range", "value": "^^"}]}), 400, "invalid_field", "grants[1].value")
    assert count(w, "licenses", "grants") == before
    lic = w.api.post("/licenses", body)
    auth = ("x", w.s.add_credential(c["id"])["secret"])
    for t in preview:
        w.s.wait_status(f"/v2/{t['repository']}/manifests/{t['tag']}", auth, 200)
    assert lic["effective_status"] == "active"


def test_lic_3_21_the_portal_shows_what_can_be_deployed(w):
    lic = w.license(grants=[{"selector": "exact", "value": "1.4.2"}])
    r = requests.get(w.s.admin_base + "/portal/v1/versions", headers={"Authorization": basic(*lic["auth"])}).json()
    artifact = next(a for i in r["items"] for a in i["artifacts"] if a["repository"] == "shop/api")
    assert artifact["tag"] == "1.4.2" and any(c.endswith("shop/api:1.4.2") for c in artifact["commands"]) and any("@sha256:" in c for c in artifact["commands"])


def test_lic_3_22_the_upstreams_secret_is_nobodys(w):
    other = w.s.add_upstream(name="for one license")
    lic = w.license(upstream_credential_id=other["id"])
    w.pull(lic)
    password = w.s.upstream.auth[1]
    shown = [w.api("GET", f"/licenses/{lic['id']}").text, w.api("GET", "/upstreams").text, w.api("GET", "/audit?limit=500").text]
    for path in ("/licenses", "/versions", "/credentials"):
        shown.append(requests.get(w.s.admin_base + "/portal/v1" + path, headers={"Authorization": basic(*lic["auth"])}).text)
    blob = base64.b64encode(f"vendor:{password}".encode()).decode()
    assert all(password not in text and blob not in text for text in shown)


def test_lic_3_23_available_as_long_as_it_is_valid(w):
    lic = w.license(expires_at=day(1))
    w.pull(lic)
    w.api("PATCH", f"/licenses/{lic['id']}", {"expires_at": day(-1)}, 200)
    w.denied(lic, "expired")
    kept = w.license(starts_at=day(-40), expires_at=day(-1), on_expiry="keep_released")
    w.pull(kept, "1.4.2")


# ---- bill types -------------------------------------------------------------------------------------------------------------------


def test_lic_4_2_a_subscription_begins_with_its_activation(w):
    lic = w.license(status="inactive", type="subscription", period="P1M", auto_renew=True)
    assert lic["status"] == "inactive" and lic["expires_at"] is None and lic["renews_at"] is None
    d = w.act(lic, "activate", {"reason": "paid"})
    assert 27 < (iso(d["expires_at"]) - now()).total_seconds() / 86400 < 31.1 and d["renews_at"] == d["expires_at"]
    direct = w.license(type="subscription", period="P1Y")
    assert 364 < (iso(direct["expires_at"]) - now()).total_seconds() / 86400 < 366.1
    later = w.license(type="subscription", period="P1M", starts_at="2090-01-31")
    assert later["expires_at"] == "2090-02-28T00:00:00Z" and later["effective_status"] == "scheduled"
    assert w.act(later, "renew")["expires_at"] == "2090-03-31T00:00:00Z"


def test_lic_4_16_what_was_done_and_what_can_be_done(w):
    lic = w.license(status="inactive", expires_at="2090-01-01")
    for action in ("activate", "suspend", "reinstate"):
        assert action in w.get(lic)["allowed_actions"]
        w.act(lic, action)
    assert "change-plan" in w.get(lic)["allowed_actions"] and "transfer" in w.get(lic)["allowed_actions"]
    assert [h["event"] for h in w.history(lic)] == ["license.reinstated", "license.suspended", "license.activated", "license.created"]
    first = w.api.get(f"/licenses/{lic['id']}/history?limit=3")
    rest = w.api.get(f"/licenses/{lic['id']}/history?limit=3&cursor={first['next_cursor']}")
    assert len(first["items"]) == 3 and [h["event"] for h in rest["items"]] == ["license.created"] and rest["next_cursor"] is None
    problem(w.api("GET", "/licenses/lic_none/history"), 404)


def test_lic_4_25_a_period_that_is_over(w):
    lic = w.license(type="subscription", period="P1M", starts_at=day(-40), expires_at=day(-9), updates_until=day(-9))
    assert lic["effective_status"] == "expired"
    w.denied(lic, "expired")
    d = w.act(lic, "renew")
    assert d["updates_until"] == d["expires_at"] and d["effective_status"] in ("active", "expiring")


def test_lic_4_27_monthly(w):
    lic = w.license(type="subscription", period="P1M", expires_at="2090-01-31", updates_until="2090-01-31")
    d = w.act(lic, "renew")
    assert d["expires_at"] == d["updates_until"] == "2090-02-28T23:59:59Z" and set(d["changes"]) == {"expires_at", "updates_until"}


def test_lic_4_28_purchase(w):
    lic = w.license(type="perpetual", updates_until="2026-06-30")
    assert lic["expires_at"] is None and lic["updates_until"] == "2026-06-30T23:59:59Z"
    w.pull(lic, "2.0.0")


def test_lic_4_29_the_right_to_upgrade(w):
    lic = w.license(type="perpetual", updates_until="2025-06-30")
    for tag in ("1.4.0", "1.4.2"):
        w.pull(lic, tag)
    assert "updates released until 2025-06-30" in w.denied(lic, "maintenance_ended", "1.5.0")
    d = w.api("PATCH", f"/licenses/{lic['id']}?dry_run=1", {"updates_until": "2025-12-31"}, 200).json()
    assert {t["tag"] for t in d["effect"]["gained"]} == {"1.5.0"} and d["changes"]["updates_until"]["from"] == "2025-06-30T23:59:59Z"
    w.api("PATCH", f"/licenses/{lic['id']}", {"updates_until": "2025-12-31"}, 200)
    w.pull(lic, "1.5.0")
    w.denied(lic, "maintenance_ended", "2.0.0")


# ---- dry runs of actions ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_of_every_action_shows_what_it_would_do(w):
    lic = w.license(status="inactive", grants=[{"selector": "exact", "value": "1.4.2"}])
    mine = {("shop/api", "1.4.2"), ("shop/web", "1.4.2")}
    for action, gained, lost in (("activate", mine, set()), ("suspend", set(), mine), ("reinstate", mine, set()), ("revoke", set(), mine)):
        seen = w.api("POST", f"/licenses/{lic['id']}/{action}?dry_run=1", {}, 200).json()
        assert {(t["repository"], t["tag"]) for t in seen["effect"]["gained"]} == gained and {(t["repository"], t["tag"]) for t in seen["effect"]["lost"]} == lost
        assert w.get(lic)["etag"] == lic["etag"]
        done = w.act(lic, action)
        assert set(done["changes"]) == set(seen["changes"]) and "effect" not in done
        lic = {**lic, "etag": done["etag"]}


def test_a_dry_run_over_two_licenses_shows_only_what_really_changes(w):
    c = w.customer()
    w.license(c, name="A", grants=[{"selector": "exact", "value": "1.4.2"}])
    b = w.license(c, name="B", grants=[{"selector": "range", "value": "~1.4"}])
    d = w.api("POST", f"/licenses/{b['id']}/suspend?dry_run=1", {}, 200).json()
    assert {(t["repository"], t["tag"]) for t in d["effect"]["lost"]} == {("shop/api", "1.4.0"), ("shop/api", "1.4.1")}
