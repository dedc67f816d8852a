"""Finding licenses, and what is done with many: filters, full text, pages, counts; import, export, bulk acts; transfers.
Tests of rows of the licensing table carry the row's number."""
import csv
import datetime
import io
import json
import random
import sqlite3
import time

import pytest
import requests

from admin_fixture import admin_stack, problem, second_vendor, token
from stack import Api, Stack, basic, wait_for


@pytest.fixture(scope="module")
def s():
    """One stack with a proxy and a registry, two customers, an application, licenses of every kind."""
    stack = Stack()
    try:
        up = stack.add_upstream()
        stack.app = stack.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        stack.other = stack.add_application("desk", [("desk/api", "acme/desk", "image")], up["id"])
        stack.registry.push_image("acme/api", "1.0.0", [b"layer-1"])
        stack.registry.push_image("acme/desk", "1.0.0", [b"layer-2"])
        stack.a = stack.add_customer("globex", name="Globex Köln GmbH", external_id="CRM-1")
        stack.b = stack.add_customer("initech", metadata={"region": "eu"})
        yield stack
    finally:
        stack.close()


def sql(s, text, *values):
    """Straight at the store, beside the daemon; its own connection sees the commit."""
    with sqlite3.connect(f"{s.dir}/pullgate.db", timeout=10) as db:
        return db.execute(text, values).fetchall()


def lic(s, name, customer=None, **kw):
    return s.add_license((customer or s.a)["id"], kw.pop("application", s.app)["id"], name=name, **kw)


def names(s, query, api=None):
    return [i["name"] for i in (api or s.api).get("/licenses?limit=1000&" + query)["items"]]


def day(n):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=n)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def many(s):
    """Licenses that differ in everything that is filtered by."""
    rows = {}
    rows["Prod EU"] = lic(s, "Prod EU", order_number="ORD-77", environment="production", metadata={"region": "eu", "seats": 5, "vip": True},
                          period="P1Y", expires_at=day(300), allowed_cidrs=["10.1.0.0/16", "2001:db8::/32"])
    rows["Prod US"] = lic(s, "Prod US", environment="production", metadata={"region": "us"}, period="P1M", expires_at=day(10),
                          allowed_cidrs=["192.0.2.7"], external_id="EXT-9")
    rows["Test bench"] = lic(s, "Test bench", customer=s.b, type="trial", expires_at=day(60), application=s.other)
    rows["Later"] = lic(s, "Later", customer=s.b, starts_at=day(5), expires_at=day(400))
    rows["Asleep"] = lic(s, "Asleep", status="inactive")
    rows["Stopped"] = lic(s, "Stopped", customer=s.b)
    s.api.post(f"/licenses/{rows['Stopped']['id']}/suspend", {"reason": "x"}, 200)
    rows["Dead"] = lic(s, "Dead")
    s.api.post(f"/licenses/{rows['Dead']['id']}/revoke", {"reason": "x"}, 200)
    return rows


def test_lic_1_1_list_of_licenses_is_paged(s, many):
    all_ids = [i["id"] for i in s.api.get("/licenses?limit=1000")["items"]]
    assert len(all_ids) == len(set(all_ids)) >= 7
    for sort in ("created_at", "-created_at", "name", "-name", "expires_at", "-expires_at", "updated_at", "-updated_at"):
        whole = s.api.get(f"/licenses?limit=1000&sort={sort}")
        assert whole["next_cursor"] is None
        got, cursor, pages = [], "", 0
        while True:
            p = s.api.get(f"/licenses?limit=2&sort={sort}{cursor}")
            got += [i["id"] for i in p["items"]]
            pages += 1
            if not p["next_cursor"]:
                break
            cursor = "&cursor=" + p["next_cursor"]
        assert got == [i["id"] for i in whole["items"]] and sorted(got) == sorted(all_ids), sort
        assert pages >= 4
    by_name = [i["name"].lower() for i in s.api.get("/licenses?limit=1000&sort=name")["items"]]
    assert by_name == sorted(by_name)
    ends = [i["expires_at"] or "9999" for i in s.api.get("/licenses?limit=1000&sort=expires_at")["items"]]
    assert ends == sorted(ends), "never comes last"
    assert [i["id"] for i in s.api.get("/licenses?limit=1000&sort=-name")["items"]] == \
        [i["id"] for i in reversed(s.api.get("/licenses?limit=1000&sort=name")["items"])]


def test_a_page_goes_on_where_it_ended_while_others_are_made(s, many):
    first = s.api.get("/licenses?limit=2&sort=created_at")
    made = lic(s, f"Between {time.time_ns()}")
    rest, cursor = [], first["next_cursor"]
    while cursor:
        p = s.api.get(f"/licenses?limit=2&sort=created_at&cursor={cursor}")
        rest += [i["id"] for i in p["items"]]
        cursor = p["next_cursor"]
    seen = [i["id"] for i in first["items"]] + rest
    assert len(seen) == len(set(seen)) and seen[-1] == made["id"]


def test_a_cursor_of_another_query_is_refused(s, many):
    c = s.api.get("/licenses?limit=1&status=active")["next_cursor"]
    assert s.api("GET", f"/licenses?limit=1&status=active&cursor={c}").status_code == 200
    assert s.api("GET", f"/licenses?limit=3&status=active&cursor={c}").status_code == 200, "the limit may change"
    for other in ("status=inactive", "", "status=active&sort=name", "status=active&q=prod", "status=active&customer_id=" + s.a["id"]):
        problem(s.api("GET", f"/licenses?limit=1&{other}&cursor={c}"), 400, "invalid_cursor", "cursor")
    for bad in ("x", "W10", c[:-2], c + "AA", "bnVsbA", "W251bGwsMSwiYSJd"):
        problem(s.api("GET", f"/licenses?limit=1&status=active&cursor={bad}"), 400, "invalid_cursor", "cursor")


def test_lic_1_36_filters_and_all_of_them_together(s, many):
    eu = many["Prod EU"]
    single = {
        f"id={eu['id']}": ["Prod EU"], "name=prod%20eu": ["Prod EU"], "name=PROD*": ["Prod EU", "Prod US"],
        "order_number=ORD-77": ["Prod EU"], "external_id=EXT-9": ["Prod US"], "environment=production": ["Prod EU", "Prod US"],
        f"customer_id={s.b['id']}": ["Later", "Stopped", "Test bench"], "customer=initech": ["Later", "Stopped", "Test bench"],
        f"customer={s.b['id']}": ["Later", "Stopped", "Test bench"], "customer=INITECH": ["Later", "Stopped", "Test bench"],
        f"application_id={s.other['id']}": ["Test bench"], "application=desk": ["Test bench"],
        "type=trial": ["Test bench"], "period=P1Y": ["Prod EU"], "status=inactive": ["Asleep"], "status=suspended,revoked": ["Dead", "Stopped"],
        "effective_status=scheduled": ["Later"], "effective_status=expiring": ["Prod US"], "effective_status=revoked": ["Dead"],
        f"expires_before={day(30)}": ["Prod US"], f"expires_before={day(100)}&expires_after={day(30)}": ["Test bench"],
        "cidr=10.1.2.3": ["Prod EU"], "cidr=10.0.0.0/8": ["Prod EU"], "cidr=192.0.2.0/24": ["Prod US"], "cidr=2001:db8:1::/48": ["Prod EU"],
        "cidr=192.0.2.8": [], "cidr=0.0.0.0/0": ["Prod EU", "Prod US"], "cidr=::/0": ["Prod EU", "Prod US"],
        "metadata.region=eu": ["Prod EU"], "metadata.seats=5": ["Prod EU"], "metadata.vip=true": ["Prod EU"], "metadata.none=x": [],
        f"key_prefix={eu['key_prefix']}": ["Prod EU"], f"key_prefix={eu['key_prefix'].lower()[:4]}": ["Prod EU"], f"key_prefix={eu['key']}": ["Prod EU"],
    }
    for query, want in single.items():
        got = [n for n in names(s, query) if n in many]
        assert sorted(got) == want, query
    together = (f"id={eu['id']}&name=prod*&customer=globex&customer_id={s.a['id']}&application=shop&application_id={s.app['id']}&status=active"
                f"&effective_status=active&type=paid&period=P1Y&expires_before={day(301)}&expires_after={day(299)}&created_before={day(1)}"
                f"&created_after={day(-1)}&cidr=10.1.1.1&order_number=ORD-77&environment=production&key_prefix={eu['key_prefix']}"
                "&source=created&auto_renew=false&q=prod%20globex&metadata.region=eu&metadata.seats=5&archived=false")
    for sort in ("created_at", "name", "-expires_at", "updated_at"):
        assert names(s, together + "&sort=" + sort) == ["Prod EU"]
    assert names(s, together.replace("region=eu", "region=us")) == []
    for bad, field in (("status=lost", "status"), ("effective_status=", "effective_status"), ("sort=color", "sort"), ("cidr=300.1.1.1", "cidr"),
                       ("expires_before=soon", "expires_before"), ("archived=maybe", "archived"), ("auto_renew=2", "auto_renew"), ("count=all", "count"),
                       ("metadata=eu", "metadata"), ("metadata.=eu", "metadata."), ("limit=0", "limit"), ("limit=1001", "limit")):
        assert problem(s.api("GET", "/licenses?" + bad), 400)["field"] == field, bad
    problem(s.api("GET", "/licenses?status=active&status=revoked"), 400, "invalid_parameter", "status")


@pytest.mark.parametrize("row,query", [("1.13", "id={id}"), ("1.14", "name=prod%20eu"), ("1.16", "application_id={application_id}&name=prod%20eu"),
                                       ("1.17", "period=P1Y")])
def test_lic_1_13_1_14_1_16_1_17_fields_are_shown_and_found(s, many, row, query):
    want = many["Prod EU"]
    items = s.api.get("/licenses?" + query.format(**want))["items"]
    assert [i["id"] for i in items] == [want["id"]]
    assert items[0]["id"].startswith("lic_") and items[0]["name"] == "Prod EU" and items[0]["application_id"] == s.app["id"] and items[0]["period"] == "P1Y"


def test_lic_0_22_order_number_and_transaction_are_searched(s, many):
    lic_id = many["Prod EU"]["id"]
    assert [i["id"] for i in s.api.get("/licenses?order_number=ORD-77")["items"]] == [lic_id]
    sql(s, "UPDATE licenses SET transaction_id='TX-1' WHERE id=?", lic_id)
    assert [i["id"] for i in s.api.get("/licenses?transaction_id=TX-1")["items"]] == [lic_id]
    assert s.api.get("/licenses?transaction_id=TX-2")["items"] == []


def test_lic_0_53_a_ticket_with_an_order_number_finds_the_license(s, many):
    found = s.api.get("/licenses?order_number=ORD-77&count=1")
    assert found["count"] == 1 and found["items"][0]["customer_id"] == s.a["id"]


def test_lic_1_12_removing_a_filter_shows_all_again(s, many):
    everything = s.api.get("/licenses?count=1&limit=1000")
    assert everything["count"] == len(everything["items"])
    some = s.api.get("/licenses?status=active&count=1")
    assert some["count"] == len(some["items"]) < everything["count"]
    assert s.api.get("/licenses?count=1&limit=1000")["items"] == everything["items"]


def test_counts(s, many):
    for query in ("", "status=active", "q=prod", "q=prod&status=active", "customer=initech&effective_status=scheduled", "metadata.region=eu", "cidr=::/0",
                  f"expires_before={day(100)}", "archived=true", "customer=nobody", "q=!!!"):
        p = s.api.get(f"/licenses?count=1&limit=1000&{query}")
        assert p["count"] == len(p["items"]), query
        assert s.api.get(f"/licenses?count=1&limit=1&{query}")["count"] == p["count"]
        assert "count" not in s.api.get(f"/licenses?limit=1&{query}")


def test_full_text(s, many):
    assert sorted(names(s, "q=prod")) == ["Prod EU", "Prod US"]
    assert names(s, "q=pro%20e") == ["Prod EU"], "beginnings of words, all of them"
    assert "Prod EU" in names(s, "q=koln"), "without diacritics, from the customer's name"
    assert "Prod EU" in names(s, "q=K%C3%B6ln"), "with them"
    assert names(s, "q=initech%20bench") == ["Test bench"], "words of both"
    assert names(s, "q=production%20us") == ["Prod US"]
    assert names(s, "q=nothing-like-it") == []
    renamed = s.api("PATCH", f"/customers/{s.b['id']}", {"name": "Umbrella"}, 200)
    assert renamed.json()["name"] == "Umbrella"
    assert sorted(n for n in names(s, "q=umbrella") if n in many) == ["Later", "Stopped", "Test bench"]
    s.api("PATCH", f"/customers/{s.b['id']}", {"name": "Initech"}, 200)
    assert names(s, "q=umbrella") == []


def test_no_text_breaks_the_search(s, many):
    rng = random.Random(7)
    alphabet = '"*():^-+{}[]\\\'.,;AND OR NOT NEAR(a b, 3) vendor:x name : "x" *prod üÖß€“”…\U0001f600\u0300\u200d'
    texts = ['"', '"" ""', "*", "prod*", '"prod', "prod AND", "NOT prod", "a OR", "NEAR(prod eu)", "vendor:x", "name:prod", "{name}:x", "^prod", "prod + eu",
             "-", "“”", "\u0300", "\U0001f600", "prod \U0001f600", "x" * 64, "'; DROP TABLE licenses; --", "%", "_", "\ud7ff"]
    texts += ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30))) for _ in range(150)]
    for t in texts:
        r = s.api("GET", "/licenses", params={"q": t, "count": "1"})
        assert r.status_code in (200, 400), f"{t!r}: {r.status_code} {r.text}"
        if r.status_code == 400:
            assert r.json()["field"] in ("q", ""), (t, r.text)
    problem(s.api("GET", "/licenses", params={"q": "x" * 65}), 400, "invalid_parameter", "q")
    problem(s.api("GET", "/licenses", params={"q": "a " * 11}), 400, "invalid_parameter", "q")


def test_another_vendors_licenses_are_not_found(s, many):
    api, v = second_vendor(s, "finder-vendor")
    for query in ("", "q=prod", "cidr=10.1.2.3", "metadata.region=eu", "order_number=ORD-77", "id=" + many["Prod EU"]["id"], "customer=globex",
                  "customer_id=" + s.a["id"], "application_id=" + s.app["id"], "name=prod*", "status=active", "key_prefix=" + many["Prod EU"]["key_prefix"]):
        p = api.get(f"/licenses?count=1&{query}")
        assert p["items"] == [] and p["count"] == 0, query


def effective(row, now):
    """DESIGN 4.1 again, by hand."""
    status, starts, ends, grace = row
    if status != "active":
        return status
    if starts and now < starts:
        return "scheduled"
    if not ends:
        return "active"
    if now >= ends + max(grace, 0) * 86400:
        return "expired"
    if now >= ends:
        return "grace"
    return "expiring" if now >= ends - 30 * 86400 else "active"


def test_effective_status_in_sql_is_that_of_the_library(s):
    """Random terms: the filter finds a license in a state exactly when its answer says that state."""
    rng = random.Random(11)
    api, v = second_vendor(s, "clock-vendor")
    now = int(time.time())
    up = api.post("/upstreams", {"name": "u", "url": "http://127.0.0.1:9"})
    app = api.post("/applications", {"slug": "app", "name": "App", "repositories": [
        {"name": "clock-vendor/app", "upstream_id": up["id"], "upstream_repository": "x"}]})
    cus = api.post("/customers", {"slug": "c", "name": "C"})
    near = [0, 0, -40 * 86400, -31 * 86400, -7 * 86400 - 60, -7 * 86400 + 600, -3600, 3600, 86400, 29 * 86400, 30 * 86400 - 60, 30 * 86400 + 600, 400 * 86400]
    ids = []
    for i in range(120):
        l = api.post("/licenses", {"name": f"L{i}", "customer_id": cus["id"], "application_id": app["id"], "status": "active"})
        ids.append(l["id"])
        starts, ends = ((now + d if (d := rng.choice(near)) else 0) for _ in range(2))
        sql(s, "UPDATE licenses SET status=?, starts_at=?, expires_at=?, grace_days=? WHERE id=?",
              rng.choice(["active"] * 6 + ["inactive", "suspended", "revoked"]), starts, ends, rng.choice([0, 0, 7, 30]), l["id"])
    shown = {i["id"]: i["effective_status"] for i in api.get("/licenses?limit=1000")["items"]}
    assert len(shown) == 120 and len(set(shown.values())) == 8
    rows = {r[0]: r[1:] for r in sql(s, "SELECT id, status, starts_at, expires_at, grace_days FROM licenses")}
    for state in set(shown.values()):
        want = {i for i in ids if shown[i] == state}
        assert want == {i for i in ids if effective(rows[i], now) == state}
        for query in (f"effective_status={state}", f"effective_status={state}&customer=c&sort=-name", f"effective_status={state},nothing"[:-8]):
            p = api.get(f"/licenses?limit=1000&count=1&{query}")
            assert {i["id"] for i in p["items"]} == want and p["count"] == len(want), query


def test_customers_are_found(s, many):
    find = lambda q: [c["slug"] for c in s.api.get("/customers?limit=1000&" + q)["items"]]  # noqa: E731
    assert find("slug=initech") == find("q=init") == find("metadata.region=eu") == find("id=" + s.b["id"]) == find("name=INI*") == ["initech"]
    assert find("email=OPS@globex.example") == find("external_id=CRM-1") == find("q=koln%20globex") == ["globex"]
    assert find("sort=-name") == list(reversed(find("sort=name"))) and len(find("disabled=false")) == len(find(""))
    assert find("disabled=true") == find("slug=initech&q=globex") == find("metadata.region=us") == []
    assert s.api.get("/customers?count=1&q=globex")["count"] == 1
    one = s.api.get("/customers?limit=1")
    two = s.api.get("/customers?limit=1&cursor=" + one["next_cursor"])
    assert one["items"][0]["id"] != two["items"][0]["id"]
    problem(s.api("GET", "/customers?q=x&cursor=" + one["next_cursor"]), 400, "invalid_cursor")


def test_credentials_are_found_by_prefix(s, many):
    c = s.add_credential(s.a["id"], name="needle")
    p = s.api.get("/credentials?prefix=" + c["prefix"])
    assert [i["id"] for i in p["items"]] == [c["id"]] and "secret" not in p["items"][0]
    assert [i["id"] for i in s.api.get(f"/credentials?prefix={c['prefix'][:7]}&customer_id={s.a['id']}")["items"]] == [c["id"]]
    assert s.api.get(f"/credentials?prefix={c['prefix']}&customer_id={s.b['id']}")["items"] == []
    assert c["id"] in [i["id"] for i in s.api.get("/credentials?customer_id=" + s.a["id"])["items"]]
    assert second_vendor(s, "prefix-vendor")[0].get("/credentials?prefix=" + c["prefix"])["items"] == []
    problem(s.api("GET", "/credentials?status=lost"), 400, "invalid_parameter", "status")
    assert c["id"] in [i["id"] for i in s.api.get("/credentials?status=active&sort=-created_at")["items"]]
    assert s.api.get(f"/credentials?license_id=lic_none&expires_before={day(3)}")["items"] == []
