"""One license from its order to its revocation against the running stack: after each step a real pull, or a real denial with its reason;
at the end its history, the events and the audit tell the same story."""
import hashlib
import hmac
import json

import pytest
import requests

from fake_clock import Clock
from stack import Stack, basic, wait_for

DAY = 86400


class Life:
    def __init__(self, directory):
        self.clock = Clock(directory)
        self.s = s = Stack(env=self.clock.env)
        for v in ("1.0.0", "1.1.0", "2.0.0"):
            s.registry.push_image("acme/api", v, [b"layer " + v.encode()])
        up = s.add_upstream()
        self.app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        self.vendor = s.api.get("/vendors")["items"][0]
        self.hook_secret = s.api("POST", f"/vendors/{self.vendor['id']}/hook-secret", {}).json()
        self.hook_secret = next(v for k, v in self.hook_secret.items() if "secret" in k)
        self.old, self.new = s.add_customer("globex"), s.add_customer("initech")
        self.auth = {c["slug"]: basic(c["slug"], s.add_credential(c["id"])["secret"]) for c in (self.old, self.new)}
        for a in self.auth.values():
            s.wait_status("/v2/", a, 200)
        self.plans = {slug: self.plan(slug, value) for slug, value in (("basic", "^1.0"), ("pro", ">=1.0 <3"))}
        self.payments = 0

    def plan(self, slug, value):
        return self.s.api.post("/plans", {"slug": slug, "name": slug.title(), "application_id": self.app["id"], "type": "subscription", "period": "P1M",
                                          "grants": [{"selector": "range", "value": value}], "grace_days": 7, "visible": True,
                                          "price": {"amount": "100.00", "currency": "EUR"}})

    def pull(self, status, reason=None, tag="1.0.0", who="globex"):
        """Polls: a change is seen within moments, and a moved clock needs a further root."""
        def probe():
            r = self.s.get(f"/v2/shop/api/manifests/{tag}", self.auth[who])
            if r.status_code != status:
                return None
            if status == 403:
                error = r.json()["errors"][0]
                return error if error["detail"]["reason"] == reason else None
            return r
        return wait_for(f"a pull of {tag} by {who} that is {status} {reason or ''}", probe, 20)

    def payment(self, event, transaction=None):
        self.payments += 1
        body = json.dumps({"order_number": self.order["number"], "event": event, "transaction_id": transaction or f"tx-{self.payments}"}).encode()
        mac = hmac.new(self.hook_secret.encode(), body, hashlib.sha256).hexdigest()
        return requests.post(self.s.admin_base + "/api/v1/hooks/payment", data=body,
                             headers={"Content-Type": "application/json", "X-Pullgate-Signature": f"sha256={mac}"})

    def license(self):
        return self.s.api.get(self.path)

    def act(self, action, body=None):
        return self.s.api("POST", f"{self.path}/{action}", body or {}, expect=200).json()


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    one = Life(tmp_path_factory.mktemp("life"))
    yield one
    one.s.close()


def test_the_life_of_a_license(life):
    s = life.s
    # ordered: a license is there, and gives nothing yet
    life.order = s.api.post("/orders", {"customer_id": life.old["id"], "plan_id": life.plans["basic"]["id"], "name": "Globex Prod", "instances": 2})
    assert (life.order["subtotal"], life.order["total"], life.order["currency"]) == ("200.00", "200.00", "EUR") and life.order["number"]
    life.path = f"/licenses/{life.order['license_id']}"
    lic = life.license()
    assert lic["status"] == "inactive" and "activate" in lic["allowed_actions"] and lic["order_number"] == life.order["number"]
    life.pull(403, "inactive")

    # a payment nobody signed changes nothing
    bad = requests.post(s.admin_base + "/api/v1/hooks/payment", json={"order_number": life.order["number"], "event": "payment_succeeded", "transaction_id": "x"},
                        headers={"X-Pullgate-Signature": "sha256=" + "0" * 64})
    assert bad.status_code == 401
    life.pull(403, "inactive")

    # paid: in force at once
    assert life.payment("payment_succeeded").status_code == 200
    lic = life.license()
    assert lic["status"] == "active" and lic["activated_at"] and lic["expires_at"] and lic["period"] == "P1M"
    assert s.api("POST", f"{life.path}/activate", {}).status_code == 409, "it is active already"
    life.pull(200)
    life.pull(403, "version_not_granted", tag="2.0.0")

    # renewed by a period; the answer shows before and after
    ends = lic["expires_at"]
    renewed = life.act("renew", {"period": "P1M"})
    assert renewed["changes"]["expires_at"]["from"] == ends and renewed["changes"]["expires_at"]["to"] == renewed["expires_at"] > ends
    life.pull(200)

    # a payment fails: the grace begins, pulls go on
    assert life.payment("payment_failed").status_code == 200
    lic = life.license()
    assert (lic["status"], lic["effective_status"]) == ("active", "grace") and lic["payment_failed_at"]
    life.pull(200)
    life.clock.forward(6 * DAY)
    life.pull(200)

    # the grace is over: suspended, and the denial says why
    life.clock.forward(2 * DAY)
    error = life.pull(403, "suspended")
    assert "payment" in error["message"], error
    lic = life.license()
    assert (lic["status"], lic["status_reason"]) == ("suspended", "payment") and "reinstate" in lic["allowed_actions"]

    # paid: reinstated and renewed
    ends = lic["expires_at"]
    assert life.payment("payment_succeeded", "tx-late").status_code == 200
    lic = life.license()
    assert lic["status"] == "active" and lic["expires_at"] > ends and not lic["payment_failed_at"]
    assert life.payment("payment_succeeded", "tx-late").status_code == 200 and life.license()["expires_at"] == lic["expires_at"], "told twice, done once"
    life.pull(200)

    # upgraded
    upgraded = life.act("change-plan", {"plan_id": life.plans["pro"]["id"], "effective": "now"})
    assert upgraded["changes"] and upgraded["plan_id"] == life.plans["pro"]["id"]
    life.pull(200, tag="2.0.0")

    # handed on: offer, accept; the old customer has nothing, the new one has it
    life.pull(403, "no_license", who="initech")
    offer = s.api("POST", f"{life.path}/transfer", {"to_customer_id": life.new["id"]}).json()
    assert offer["secret"] and offer["expires_at"] and any(t["id"] == offer["id"] for t in s.api.get("/transfers")["items"])
    life.pull(200, tag="2.0.0")
    s.api("POST", f"/transfers/{offer['id']}/accept", {"secret": offer["secret"]}, expect=200)
    life.pull(403, "no_license")
    life.pull(200, tag="2.0.0", who="initech")
    assert life.license()["customer_id"] == life.new["id"]

    # revoked, for good
    life.act("revoke", {"reason": "end of the story"})
    error = life.pull(403, "revoked", tag="2.0.0", who="initech")
    assert "end of the story" in error["message"]
    gone = life.license()
    assert gone["status"] == "revoked" and set(gone["allowed_actions"]) <= {"delete"}
    for action in ("activate", "reinstate", "suspend", "renew", "extend", "change-plan", "rotate-key"):
        r = s.api("POST", f"{life.path}/{action}", {"period": "P1M"} if action in ("renew", "extend") else {"plan_id": life.plans["basic"]["id"]} if action == "change-plan" else {})
        assert r.status_code == 409, (action, r.text)
    assert life.payment("payment_succeeded", "tx-too-late").status_code in (200, 409) and life.license()["status"] == "revoked"
    life.pull(403, "revoked", tag="2.0.0", who="initech")

    # the story as it is told afterwards
    history = s.api.get(f"{life.path}/history?limit=200")["items"]
    told = [h["event"] for h in sorted(history, key=lambda h: h["at"])]
    order = ["license.created", "license.activated", "license.renewed", "license.payment_failed", "license.suspended", "license.reinstated", "license.plan_changed",
             "license.transferred", "license.revoked"]
    at = -1
    for event in order:
        assert event in told[at + 1:], (event, told)
        at = told.index(event, at + 1)
    assert all(h["actor"] for h in history)
    events = [e["type"] for e in s.api.get(f"/events?after=0&license={life.order['license_id']}&limit=500")["items"]]
    for event in ("license.created", "license.activated", "license.renewed", "license.suspended", "license.revoked"):
        assert event in events, (event, events)
    audited = {a["action"] for a in s.api.get("/audit?limit=1000")["items"]}
    assert {"order.create", "license.renew", "license.revoke"} <= audited, audited
    assert s.api.get("/audit/verification")["ok"] is True
    pulls = s.api.get("/pulls?limit=1000")["items"]
    assert {"granted", "inactive", "suspended", "revoked", "no_license", "version_not_granted"} <= {p["reason"] for p in pulls}
