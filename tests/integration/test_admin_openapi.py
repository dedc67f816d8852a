"""The OpenAPI document against the running server: every path, method and schema it names is what is done, and nothing else is."""
import base64
import hmac
import json
import os
import pathlib
import re
import time

import pytest
import requests

from admin_fixture import admin_stack, problem, token
from stack import Stack, basic

ROOT = pathlib.Path(__file__).resolve().parents[2]
HTTP = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def w():
    s = Stack(n_proxies=0, limits={"auth_failures_per_minute": 10000})
    try:
        s.registry.push_image("acme/api", "1.0.0", [b"layer"])
        s.doc = requests.get(s.admin_base + "/api/v1/openapi.json").json()
        yield s
    finally:
        s.close()


def resolve(doc, schema):
    while "$ref" in schema:
        node = doc
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    return schema


TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list, "null": type(None)}


def check(doc, schema, value, where="$"):
    """The part of JSON Schema that the document uses; anything else in it is an error of the test."""
    schema = resolve(doc, schema)
    assert set(schema) <= {"type", "properties", "required", "additionalProperties", "items", "enum", "format", "description", "minLength", "maxLength", "minimum",
                           "maximum", "maxItems", "writeOnly"}, (where, schema)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, TYPES[t]) and not (t == "integer" and isinstance(value, bool)) for t in types), f"{where}: {value!r} is no {types}"
    if "enum" in schema and value is not None:
        assert value in schema["enum"], f"{where}: {value!r} not in {schema['enum']}"
    if schema.get("format") == "date-time" and value is not None:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", value), f"{where}: {value!r}"
    if isinstance(value, dict) and "properties" in schema:
        assert not schema["additionalProperties"]
        assert set(schema.get("required", [])) <= set(value), f"{where}: lacks {set(schema['required']) - set(value)}"
        assert set(value) <= set(schema["properties"]), f"{where}: also has {set(value) - set(schema['properties'])}"
        for k, v in value.items():
            check(doc, schema["properties"][k], v, f"{where}.{k}")
    if isinstance(value, list):
        for i, v in enumerate(value):
            check(doc, schema["items"], v, f"{where}[{i}]")


def test_the_document_is_well_formed(w):
    doc = w.doc
    assert doc["openapi"] == "3.1.0" and doc["info"]["title"] and doc["info"]["version"]
    ids = [op["operationId"] for path in doc["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids)) >= 50
    for path, ops in doc["paths"].items():
        assert path.startswith(("/api/v1/", "/portal/v1/", "/.well-known/")) and set(ops) <= HTTP
        for method, op in ops.items():
            declared = {p["name"] for p in op.get("parameters", []) if p["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))
            assert op["summary"] and len([c for c in op["responses"] if c != "default"]) == 1
    text = json.dumps(doc)
    for ref in re.findall(r'"\$ref": "([^"]+)"', text):
        resolve(doc, {"$ref": ref})


def operations(doc, prefix="/api/v1/"):
    return [(path, method, op) for path, ops in doc["paths"].items() for method, op in ops.items() if path.startswith(prefix)]


def fill(path):
    return re.sub(r"{\w+}", "nope", path)


def test_each_operation_is_there_and_asks_for_sign_in(w):
    for path, method, op in operations(w.doc, "/"):
        r = requests.request(method, w.admin_base + fill(path), json={} if method != "get" else None)
        if op["security"]:
            problem(r, 401, "unauthorized" if path.startswith("/api") else None)
        elif method == "get" and "{" not in path:
            assert r.status_code == 200
        else:
            assert r.status_code in (200, 400, 404)


def test_each_change_needs_more_than_a_viewer(w):
    viewer, _ = token(w, "viewer")
    for path, method, op in operations(w.doc):
        r = viewer(method.upper(), fill(path).removeprefix("/api/v1"), {} if method != "get" else None)
        if method != "get" and op["security"] and not op["operationId"].startswith("self."):
            problem(r, 403, "role_not_allowed")
        else:
            assert r.status_code in (200, 400, 403, 404, 409), (path, r.text)


def test_a_method_that_is_not_in_the_document_is_not_there(w):
    for path, ops in w.doc["paths"].items():
        for method in HTTP - set(ops):
            r = w.api.s.request(method, w.admin_base + fill(path), json={} if method != "get" else None)
            if path.startswith("/portal/"):
                assert r.status_code in (401, 405)
                continue
            problem(r, 405, "method_not_allowed")
            assert {m.strip().lower() for m in r.headers["Allow"].split(",")} == set(ops)


def test_an_unknown_member_or_parameter_is_refused_everywhere(w):
    for path, method, op in operations(w.doc):
        if "text/csv" in op.get("requestBody", {}).get("content", {}) or any(p["name"] == "*" for p in op.get("parameters", [])):
            continue  # rows and the exports of other lists: test_lic_finding.py
        if op["security"]:
            problem(w.api(method.upper(), fill(path).removeprefix("/api/v1") + "?zz=1", {} if method != "get" else None), 400, "unknown_parameter", "zz")
        if method != "get":
            problem(w.api(method.upper(), fill(path).removeprefix("/api/v1"), {"zz": 1}), 400, "unknown_field", "zz")


def walk_sales(call, app, cus):
    """Plans, coupons, orders, and what comes of them."""
    plan = call("plan.create", body={"slug": "walk-pro", "name": "Pro", "application_id": app["id"], "type": "subscription", "period": "P1M", "grants": [{"selector": "all"}],
                                     "limits": {"max_instances": 2}, "price": {"amount": "10.00", "currency": "EUR"}, "visible": True})
    call("plan.list")
    call("plan.get", f"/plans/{plan['id']}")
    call("plan.update", f"/plans/{plan['id']}", {"name": "Pro 2"})
    coupon = call("coupon.create", body={"code": "WALK10", "kind": "percent", "value": "10", "max_uses": 5, "valid_until": "2090-01-01", "plan_ids": [plan["id"]]})
    call("coupon.list")
    call("coupon.get", f"/coupons/{coupon['id']}")
    call("coupon.update", f"/coupons/{coupon['id']}", {"max_uses": 6})
    order = call("order.create", body={"customer_id": cus["id"], "plan_id": plan["id"], "name": "Ordered", "instances": 2, "coupon": "walk10", "terms_version": "1", "billing": {}})
    assert order["total"] == "18.00" and order["key"]
    call("order.list")
    call("order.get", f"/orders/{order['id']}")
    call("order.approve", f"/orders/{order['id']}/approve", {"reason": "paid", "transaction_id": "t1"})
    url = f"/licenses/{order['license_id']}"
    year = call("plan.create", body={"slug": "walk-year", "name": "Year", "application_id": app["id"], "type": "subscription", "period": "P1Y", "grants": [{"selector": "all"}]})
    call("license.change_plan", url + "/change-plan", {"plan_id": year["id"], "effective": "now"})
    later = call("license.change_plan", url + "/change-plan", {"plan_id": plan["id"], "effective": "next_period"})["scheduled_changes"][0]
    call("license.scheduled_changes", url + "/scheduled-changes")
    call("license.cancel_scheduled_change", f"{url}/scheduled-changes/{later['id']}")
    second = call("order.create", body={"customer_id": cus["id"], "plan_id": plan["id"]})
    call("license.issue", f"/licenses/{second['license_id']}/issue", {"reason": "checked"})
    third = call("order.create", body={"customer_id": cus["id"], "plan_id": plan["id"]})
    call("order.cancel", f"/orders/{third['id']}/cancel", {"reason": "none"})
    sold = call("license.put_external", "/licenses/by-external/aws/sub-1", {"customer_id": cus["id"], "plan_id": year["id"], "name": "Sold", "limits": {"pulls": 5}, "metadata": {}})
    call("license.get_external", "/licenses/by-external/aws/sub-1")
    call("license.delete", f"/licenses/{sold['id']}")
    for o in (order, second, third):
        call("license.delete", f"/licenses/{o['license_id']}")
    call("request.list")
    call("coupon.delete", f"/coupons/{coupon['id']}")
    call("plan.delete", f"/plans/{plan['id']}")


def totp_now(secret, offset=0):
    key, step = base64.b32decode(secret + "=" * (-len(secret) % 8)), int(time.time()) // 30 + offset
    mac = hmac.new(key, step.to_bytes(8, "big"), "sha1").digest()
    at = mac[-1] & 15
    return f"{(int.from_bytes(mac[at:at + 4], 'big') & 0x7fffffff) % 1000000:06d}"


def walk_people(call):
    usr = call("user.create", body={"email": "Walker@globex.example", "name": "Walker", "role": "owner", "invitation_expires_at": None})
    assert usr["email"] == "walker@globex.example" and usr["status"] == "invited"
    call("user.list")
    call("user.get", f"/users/{usr['id']}")
    secret = call("user.invite", f"/users/{usr['id']}/invite", {})["secret"]
    assert secret != usr["secret"]
    assert call("invitation.accept", body={"secret": secret, "password": "walks twelve miles", "name": "W"})["status"] == "active"
    session = call("session.create", body={"email": "walker@globex.example", "password": "walks twelve miles"})
    mine = {"headers": {"Authorization": "Bearer " + session["token"]}}
    assert call("self.get", **mine)["email"] == "walker@globex.example"
    call("self.update", body={"name": "Walker II", "password": "walks twelve more miles", "old_password": "walks twelve miles"}, **mine)
    key = call("self.enrol_totp", body={"password": "walks twelve more miles"}, **mine)["secret"]
    assert len(call("self.confirm_totp", body={"totp": totp_now(key)}, **mine)["recovery_codes"]) == 10
    call("self.disable_totp", body={"password": "walks twelve more miles"}, **mine)
    assert [s["is_current"] for s in call("self.sessions", **mine)["items"]] == [True]
    call("self.sign_out", "/sessions/current", **mine)
    session = call("session.create", body={"email": "walker@globex.example", "password": "walks twelve more miles", "vendor": "default"})
    call("self.sign_out_everywhere", headers={"Authorization": "Bearer " + session["token"]})
    call("user.reset_totp", f"/users/{usr['id']}/totp")
    call("user.sign_out", f"/users/{usr['id']}/sessions")
    other = call("user.create", body={"email": "second@globex.example", "role": "owner", "password": "walks thirteen miles"})
    call("user.update", f"/users/{usr['id']}", {"name": "W", "role": "admin", "disabled": True})
    call("user.delete", f"/users/{usr['id']}")
    assert other["status"] == "active"


def walk_customer_people(call, customer):
    url = f"/customers/{customer}/users"
    usr = call("customer_user.create", url, {"email": "a@walked.example", "name": "", "role": "customer_viewer", "password": "walks twelve miles"})
    call("customer_user.list", url)
    call("customer_user.get", f"{url}/{usr['id']}")
    call("customer_user.update", f"{url}/{usr['id']}", {"role": "customer_admin", "disabled": False})
    call("customer_user.invite", f"{url}/{usr['id']}/invite", {})
    call("customer_user.reset_totp", f"{url}/{usr['id']}/totp")
    call("customer_user.delete", f"{url}/{usr['id']}")


def walk(w):
    """One of everything, through every operation; yields operationId, response."""
    a = w.api
    seen = {}

    def call(op_id, path="", body=None, **kw):
        for template, method, op in operations(w.doc):
            if op["operationId"] == op_id:
                r = a(method.upper(), path or template.removeprefix("/api/v1"), body, **kw)
                good = [c for c in op["responses"] if c != "default"][0]
                assert str(r.status_code) == good, f"{op_id}: {r.status_code} {r.text}, not {good}"
                if r.content:
                    assert r.headers["Content-Type"] == "application/json"
                    schema = op["responses"][good].get("content", {}).get("application/json", {}).get("schema")
                    if schema:
                        check(w.doc, schema, r.json(), op_id)
                    # what is sent is in the document too
                if body:
                    sent = resolve(w.doc, op["requestBody"]["content"]["application/json"]["schema"])
                    assert set(body) <= set(sent["properties"])
                if r.status_code == 201 and op_id != "vendor.create":  # seen by itself only
                    assert a("GET", r.headers["Location"].removeprefix("/api/v1")).status_code == 200
                seen[op_id] = True
                return r.json() if r.content else None
        raise AssertionError(f"{op_id} is not in the document")

    call("openapi.get")
    ven = call("vendor.create", body={"slug": "walker", "name": "W", "time_zone": "Asia/Tokyo", "renew_url": "", "support_contact": "",
                                       "branding": {"color": "#0a0b0c", "terms_url": "https://w.example/terms"}, "grants_irrevocable": False})
    own = call("vendor.list")["items"][0]
    assert ven["id"] != own["id"]
    call("vendor.suspend", f"/vendors/{ven['id']}/suspend", {"reason": "unpaid"})
    call("vendor.reinstate", f"/vendors/{ven['id']}/reinstate")
    call("vendor.get", f"/vendors/{own['id']}")
    call("vendor.update", f"/vendors/{own['id']}", {"name": "Owner"})
    tok = call("token.create", body={"name": "t", "role": "viewer"})
    call("token.list")
    call("token.get", f"/tokens/{tok['id']}")
    call("token.delete", f"/tokens/{tok['id']}")
    walk_people(call)
    up = call("upstream.create", body={"name": "reg", "url": w.upstream.url, "username": w.upstream.auth[0], "password": w.upstream.auth[1], "ca": "", "redirects": "follow",
                                       "redirect_hosts": ["cdn.example"], "realm": ""})
    call("upstream.list")
    call("upstream.get", f"/upstreams/{up['id']}")
    call("upstream.update", f"/upstreams/{up['id']}", {"redirect_hosts": []})
    assert call("upstream.test", f"/upstreams/{up['id']}/test")["ok"] is True
    app = call("application.create", body={"slug": "walk", "name": "Walk", "description": "d", "metadata": {"k": "v"},
                                           "repositories": [{"name": "walk/api", "upstream_id": up["id"], "upstream_repository": "acme/api", "kind": "image", "tag_template": "{version}"}]})
    call("application.list")
    call("application.get", f"/applications/{app['id']}")
    call("application.update", f"/applications/{app['id']}", {"description": "e"})
    rep = call("repository.create", f"/applications/{app['id']}/repositories", {"name": "walk/extra", "upstream_id": up["id"], "upstream_repository": "acme/extra"})
    call("repository.list", f"/applications/{app['id']}/repositories")
    call("repository.get", f"/applications/{app['id']}/repositories/{rep['id']}")
    call("repository.update", f"/applications/{app['id']}/repositories/{rep['id']}", {"kind": "artifact"})
    call("repository.delete", f"/applications/{app['id']}/repositories/{rep['id']}")
    sync = call("application.sync", f"/applications/{app['id']}/sync")
    assert sync["status"] == "done" and sync["repositories"][0]["sync_error"] == ""
    call("version.put", f"/applications/{app['id']}/versions/1.0.0", {"channel": "stable", "released_at": "2026-01-01", "notes": "n", "tags": {"walk/api": "1.0.0"}})
    v = call("version.list", f"/applications/{app['id']}/versions")["items"][0]
    assert v["version"] == "1.0.0" and v["artifacts"][0]["digest"].startswith("sha256:")
    call("version.get", f"/applications/{app['id']}/versions/1.0.0")
    cus = call("customer.create", body={"slug": "walked", "name": "Walked", "email": "a@b.example", "external_id": "X", "metadata": {}, "disabled": False})
    call("customer.list")
    call("customer.get", f"/customers/{cus['id']}")
    call("customer.update", f"/customers/{cus['id']}", {"name": "W"})
    walk_customer_people(call, cus["id"])
    crd = call("credential.create", f"/customers/{cus['id']}/credentials", {"name": "c", "expires_at": None, "allowed_cidrs": []})
    call("credential.list", f"/customers/{cus['id']}/credentials")
    call("credential.list_all", "/credentials?prefix=pgc_")
    call("credential.get", f"/customers/{cus['id']}/credentials/{crd['id']}")
    new = call("credential.rotate", f"/customers/{cus['id']}/credentials/{crd['id']}/rotate", {"overlap": "1h"})
    call("credential.delete", f"/customers/{cus['id']}/credentials/{crd['id']}")
    lic = call("license.create", body={"name": "L", "customer_id": cus["id"], "application_id": app["id"], "type": "trial", "expires_at": "2090-01-01", "grants": [{"selector": "all"}],
                                       "allowed_cidrs": ["127.0.0.0/8"], "upstream_credential_id": up["id"]})
    url = f"/licenses/{lic['id']}"
    call("license.list", "/licenses?count=1&metadata.x=y&q=walk")
    call("license.get", url)
    call("license.update", url, {"period": "P1Y", "grace_days": 7, "auto_renew": True, "limits": {"pulls": 5, "custom": {"seats": 3}}, "features": {"sso": True}})
    call("license.activate", url + "/activate", {"reason": "paid"})
    call("license.suspend", url + "/suspend", {"reason": "overdue"})
    call("license.reinstate", url + "/reinstate")
    call("license.renew", url + "/renew", {"period": "P1M", "reason": "r"})
    call("license.extend", url + "/extend", {"period": "1d"})
    key = call("license.rotate_key", url + "/rotate-key")["key"]
    for op_id in ("license.validate", "activation.create"):
        assert call(op_id, body={"key": key, "instance_id": "walker", "version": "1", "hostname": "h"})["valid"] is True
        assert call(op_id, body={"key": "nobody's"})["reason"] == "unknown_key"
    assert [i["version"] for i in call("license.versions", url + "/versions")["items"]] == ["1.0.0"]
    assert a("GET", url + "/file").status_code == 200
    assert [f["serial"] for f in call("license.files", url + "/files")["items"]] == [1]
    kid = call("signing_key.create", body={})["kid"]
    call("signing_key.list")
    call("signing_key.get", f"/signing-keys/{kid}")
    call("signing_key.create")
    call("signing_key.retire", f"/signing-keys/{kid}/retire", {"compromised": False})
    call("license.cancel", url + "/cancel-at-period-end", {"reason": "they leave"})
    call("license.reset", url + "/reset")
    call("license.history", url + "/history")
    call("license.usage", url + "/usage")
    call("license.instances", url + "/instances")
    g = call("license.add_grant", url + "/grants", {"selector": "exact", "value": "1.0.0", "on_move": "pin"})["grants"][-1]
    call("license.update_grant", f"{url}/grants/{g['id']}", {"note": "n"})
    wide = call("license.add_grant", url + "/grants", {"selector": "range", "value": "^3"})["grants"][-1]
    call("license.remove_version", f"{url}/grants/{wide['id']}/remove-version", {"version": "3.0.0", "reason": "n"})
    walk_sales(call, app, cus)
    d = call("explain", "/explain?customer=walked&repository=walk/api&reference=1.0.0&client=127.0.0.1")
    assert d["decision"] == "allow" and d["considered"][0]["license_id"] == lic["id"] and d["digest"] == v["artifacts"][0]["digest"]
    d = call("explain", f"/explain?customer=walked&repository=walk/api&client=127.0.0.1&reference={d['digest']}")
    assert d["decision"] == "allow"
    portal = requests.get(w.admin_base + "/portal/v1/versions", headers={"Authorization": basic("walked", new["secret"])})
    assert portal.status_code == 200 and [i["version"] for i in portal.json()["items"]] == ["1.0.0"]
    for path, method, op in operations(w.doc, "/portal/"):
        if method == "get" and "{" not in path:
            r = requests.get(w.admin_base + path, headers={"Authorization": basic("walked", new["secret"])})
            assert r.status_code == 200, (path, r.text)
            if r.headers["Content-Type"] == "application/json":
                check(w.doc, op["responses"]["200"]["content"]["application/json"]["schema"], r.json(), path)
    call("license.remove_grant", f"{url}/grants/{g['id']}", {"reason": "not theirs any more"})
    call("license.revoke", url + "/revoke", {"reason": "end"})
    call("license.delete", url)
    for op_id in ("pull.list", "transfer.list", "audit.list", "event.list", "audit.verify", "job_error.list"):
        call(op_id)
    whk = call("webhook.create", body={"url": "https://hooks.example/in", "events": ["license.*"], "secret": "s" * 20, "description": "", "enabled": True})
    url = f"/webhooks/{whk['id']}"
    call("webhook.list")
    call("webhook.get", url)
    call("webhook.update", url, {"events": ["*"]})
    dlv = call("webhook.test", url + "/test")
    call("webhook.deliveries", url + "/deliveries")
    call("webhook.delivery", f"{url}/deliveries/{dlv['id']}")
    call("webhook.redeliver", f"{url}/deliveries/{dlv['id']}/redeliver")
    call("webhook.delete", url)
    call("mail_template.list")
    call("mail_template.put", "/mail-templates/license.expired", {"subject": "over", "body": "{{license.name}}", "enabled": False})
    call("mail_template.get", "/mail-templates/license.expired")
    call("mail_template.preview", "/mail-templates/license.expired/preview", {"subject": "{{customer.name}}"})
    call("mail_template.delete", "/mail-templates/license.expired")
    call("mail.list")
    call("customer.delete", f"/customers/{cus['id']}")
    call("application.delete", f"/applications/{app['id']}")
    call("upstream.delete", f"/upstreams/{up['id']}")
    return seen


# Operations that need more than this stack has, and where they are tried instead: one a line.
ELSEWHERE = {
    "audit.export": "test_lic_people.py",
    "license.import": "test_lic_finding.py",
    "license.export": "test_lic_finding.py",
    "list.export": "test_lic_finding.py",
    "license.bulk": "test_lic_finding.py",
    "transfer.create": "test_lic_finding.py",
    "transfer.get": "test_lic_finding.py",
    "transfer.accept": "test_lic_finding.py",
    "transfer.reject": "test_lic_finding.py",
    "transfer.cancel": "test_lic_finding.py",
    "portal.transfer.accept": "test_lic_finding.py",
    "portal.transfer.reject": "test_lic_finding.py",
    "license.remove_instance": "test_lic_usage.py",
    "license.file": "test_lic_keys.py",
    "crl.get": "test_lic_keys.py",
    "vendor.crl": "test_lic_keys.py",
    **dict.fromkeys(["hook.payment", "vendor.set_hook_secret", "request.get", "request.approve", "request.reject", "portal.order.create", "portal.order.get", "portal.trial.create",
                     "portal.request.create", "portal.request.get"], "test_lic_plans.py"),
}


def test_walk(w):
    seen = walk(w)
    missing = {op["operationId"] for _, _, op in operations(w.doc)} - set(seen) - set(ELSEWHERE)
    assert not missing, f"operations that the walk does not try: {missing}"


def test_every_code_that_the_sources_refuse_with_is_in_the_document(w):
    """The closed list of problems.c against the literals of api_fail() and its kin."""
    codes = {c["code"] for c in w.doc["components"]["x-problems"]}
    said = set()
    for path in (ROOT / "admin").glob("*.c"):
        for call in re.findall(r"\bapi_fail\(\s*&?[\w>.-]+,\s*((?:[^;])*?);", path.read_text()):
            first = re.match(r"(?:[^,\"]|\([^()]*\))+,\s*((?:\"[a-z_]+\"|[^\",])+?),", call)
            said |= set(re.findall(r'"([a-z_]+)"', first.group(1))) if first else set()
    assert len(said) > 40
    assert said <= codes, said - codes
    assert all(c["about"] for c in w.doc["components"]["x-problems"])


@pytest.mark.once
def test_the_reference_is_the_document_s(w):
    from api_reference import MARK, reference
    page, told = (ROOT / "docs/API.md").read_text(), reference(w.doc)
    if os.environ.get("PULLGATE_WRITE_REFERENCE") and told not in page:
        (ROOT / "docs/API.md").write_text(page.split(MARK)[0].rstrip() + "\n\n" + told)
    assert (ROOT / "docs/API.md").read_text().endswith(told), "docs/API.md is not what the document says; PULLGATE_WRITE_REFERENCE=1 writes it"
