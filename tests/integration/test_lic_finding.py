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
    status, starts, ends, grace, failed = row
    if status != "active":
        return status
    if starts and now < starts:
        return "scheduled"
    if ends and now >= ends + max(grace, 0) * 86400:
        return "expired"
    if failed or (ends and now >= ends):
        return "grace"
    if not ends:
        return "active"
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
        grace = rng.choice([0, 0, 7, 30])
        failed = rng.choice([0, 0, 0, now - 60]) if grace else 0  # without a grace the clock suspends it while this looks
        sql(s, "UPDATE licenses SET status=?, starts_at=?, expires_at=?, grace_days=?, payment_failed_at=? WHERE id=?",
              rng.choice(["active"] * 6 + ["inactive", "suspended", "revoked"]), starts, ends, grace, failed, l["id"])
    shown = {i["id"]: i["effective_status"] for i in api.get("/licenses?limit=1000")["items"]}
    assert len(shown) == 120 and len(set(shown.values())) == 8
    rows = {r[0]: r[1:] for r in sql(s, "SELECT id, status, starts_at, expires_at, grace_days, payment_failed_at FROM licenses")}
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


# ---- import and export ------------------------------------------------------------------------------------------------------


def bring(s, text, query="", kind="text/csv", api=None, expect=200):
    r = (api or s.api).s.post(f"{s.admin_base}/api/v1/licenses/import?{query}", data=text.encode() if isinstance(text, str) else text,
                              headers={"Content-Type": kind}, timeout=60)
    assert r.status_code == expect, f"{r.status_code} {r.text[:2000]}"
    return r.json()


def pull(s, password, path="/v2/shop/api/manifests/1.0.0", status=200):
    return s.wait_status(path, ("anyone", password), status)


def test_lic_4_8_import_with_external_keys_and_a_pull(s, many):
    text = ("customer,application,name,key,status,expires_at,grants,metadata.tier,order_number,external_id,issuer,allowed_cidrs\r\n"
            "globex,shop,\"Imp, one\",ACME/2024:4711==,active,2090-01-31,exact:1.0.0,gold,PO-1,crm-1,kopicloud,\r\n"
            "globex,shop,Imp two,a-key-of-eight,active,,\"range:^1.0;exact:2.0.0\",silver,PO-2,crm-2,kopicloud,127.0.0.0/8 10.0.0.0/8\r\n"
            "newcomer,desk,Imp three,,inactive,,all,,,crm-3,,\r\n")
    before = s.api.get("/licenses?count=1")["count"]
    dry = bring(s, text, "dry_run=1&create_customers=1")
    assert (dry["created"], dry["failed"], dry["applied"], dry["dry_run"]) == (3, 0, False, True) and all("key" not in x for x in dry["lines"])
    assert s.api.get("/licenses?count=1")["count"] == before and s.api.get("/customers?slug=newcomer")["items"] == []
    s.get("/v2/shop/api/manifests/1.0.0", ("x", "ACME/2024:4711==")).status_code == 401
    done = bring(s, text, "create_customers=1")
    assert (done["created"], done["failed"], done["applied"]) == (3, 0, True)
    assert [x["line"] for x in done["lines"]] == [2, 3, 4] and "key" not in done["lines"][0] and done["lines"][2]["key"].count("-") == 3
    one = s.api.get("/licenses/" + done["lines"][0]["id"])
    assert one["name"] == "Imp, one" and one["source"] == "import" and one["metadata"] == {"tier": "gold"} and one["expires_at"].startswith("2090-01-31")
    assert [g["value"] for g in one["grants"]] == ["1.0.0"] and len(one["key_prefix"]) == 4, "of a short key less is shown"
    pull(s, "ACME/2024:4711==")
    pull(s, "a-key-of-eight")
    assert s.get("/v2/shop/api/manifests/1.0.0", ("x", "acme/2024:4711==")).status_code == 401, "as it is, with its case"
    assert s.get("/v2/shop/api/manifests/1.0.0", ("x", "a-key-of-eighty")).status_code == 401
    s.api.post(f"/licenses/{one['id']}/suspend", {"reason": "x"}, 200)
    pull(s, "ACME/2024:4711==", status=403)
    again = bring(s, text, "create_customers=1", expect=422)
    assert again["code"] == "import_failed" and {x["code"] for x in again["report"]["lines"]} == {"exists_already"}
    taken = bring(s, "customer,application,name,key\nglobex,shop,Thief,ACME/2024:4711==\n", expect=422)
    assert taken["report"]["lines"][0]["code"] == "key_in_use"
    for bad in ("short", "pgc_" + "x" * 49, "pga_token-of-the-api", "x" * 129, "ümlaut-key"):
        r = bring(s, f"customer,application,name,key\nglobex,shop,Bad key,{bad}\n", "dry_run=1")
        assert r["lines"][0]["field"] == "key" and r["failed"] == 1, bad


def test_lic_4_9_filter_by_issuer_and_source(s, many):
    assert sorted(names(s, "issuer=kopicloud")) == ["Imp two", "Imp, one"]
    assert "Imp three" in names(s, "source=import") and "Prod EU" not in names(s, "source=import")


def test_lic_4_23_uploaded_ones_are_marked(s, many):
    assert {i["source"] for i in s.api.get("/licenses?source=import")["items"]} == {"import"}
    assert s.api.get("/licenses?issuer=kopicloud&count=1")["count"] == 2


def test_a_report_names_each_line_and_all_or_nothing_holds(s, many):
    text = ("customer,application,name,expires_at,grants\nglobex,shop,Rep 1,2090-01-01,all\nnobody,shop,Rep 2,,all\nglobex,nothing,Rep 3,,all\n"
            "globex,shop,Rep 4,yesterday,all\nglobex,shop,Rep 5,,range:not-a-range\nglobex,shop,Rep 1,,all\nglobex,shop,,,all\n"
            "globex,shop,Rep 8,,all,too,many\nglobex,shop,Rep 9,,all\n")
    want = {2: None, 3: ("unknown_reference", "customer"), 4: ("unknown_reference", "application"), 5: ("invalid_field", "expires_at"),
            6: ("invalid_field", "grants[0].value"), 7: ("conflict", "name"), 8: ("missing_field", "name"), 9: ("invalid_line", None), 10: None}

    def check(report):
        for x in report["lines"]:
            w = want[x["line"]]
            assert (w is None) == (x["result"] != "failed"), x
            if w:
                assert (x["code"], x["field"]) == w and x["detail"], x

    problem_doc = bring(s, text, expect=422)
    check(problem_doc["report"])
    assert problem_doc["report"]["applied"] is False and names(s, "name=rep*") == []
    dry = bring(s, text, "partial=1&dry_run=1")
    check(dry)
    assert names(s, "name=rep*") == []
    part = bring(s, text, "partial=1")
    check(part)
    assert (part["created"], part["failed"], part["applied"]) == (2, 7, True) and sorted(names(s, "name=rep*")) == ["Rep 1", "Rep 9"]
    rows = [a for a in s.api.get("/audit?limit=50")["items"] if a["action"] == "license.import"]
    assert rows[0]["after"]["done"] == 2 and rows[0]["after"]["failed"] == 7
    for text, kind, code in (("", "text/csv", "invalid_rows"), ("name,name\na,b\n", "text/csv", "invalid_rows"), (b"name\n\xff\xfe\n", "text/csv", "invalid_rows"),
                             ("x" * 10, "application/json", "unsupported_media_type")):
        r = s.api.s.post(f"{s.admin_base}/api/v1/licenses/import", data=text, headers={"Content-Type": kind})
        assert r.status_code in (400, 415) and r.json()["code"] == code, r.text
    many_lines = "name\n" + "x\n" * 10001
    assert bring(s, many_lines, expect=413)["code"] == "too_many_lines"
    viewer, _ = token(s, "viewer")
    bring(s, "customer\nx\n", api=viewer, expect=403)


def test_upsert_by_external_id(s, many):
    base = {"customer": "globex", "application": "shop", "name": "Ups", "external_id": "ups-1", "status": "active", "grants": [{"selector": "exact", "value": "1.0.0"}],
            "metadata": {"a": 1}, "auto_renew": False, "grace_days": 3}

    def go(**kw):
        r = bring(s, json.dumps({**base, **kw}) + "\n", "mode=upsert", "application/x-ndjson")
        return r["lines"][0]["result"], s.api.get("/licenses?external_id=ups-1")["items"][0]

    assert go()[0] == "created"
    result, first = go()
    assert result == "unchanged"
    result, l = go(grace_days=5, transaction_id="TX-9", metadata={"a": 2}, grants="exact:1.0.0;exact:3.0.0")
    assert result == "updated" and l["grace_days"] == 5 and l["metadata"] == {"a": 2} and l["id"] == first["id"] and l["transaction_id"] == "TX-9"
    assert sorted(g["value"] for g in l["grants"]) == ["1.0.0", "3.0.0"], "a grant is added, none is taken"
    result, l = go(status="suspended", status_reason="unpaid", grace_days=5, metadata={"a": 2})
    assert result == "updated" and l["status"] == "suspended" and l["status_reason"] == "unpaid"
    assert bring(s, json.dumps({**base, "customer": "initech"}), "mode=upsert", "application/x-ndjson", expect=422)["report"]["lines"][0]["code"] == "customer_differs"
    history = [h["event"] for h in s.api.get(f"/licenses/{l['id']}/history?limit=50")["items"]]
    assert "license.suspended" in history and "license.grant_added" in history


def test_export_reads_back_as_no_change(s, many):
    evil = lic(s, "=cmd|'/c calc'!A0", metadata={"formula": "+1+1", "text": "a;b,\"c\"\nd"}, environment="'quoted")
    with_window = lic(s, "Window", grants=[{"selector": "range", "value": ">=1 <2 || 4.x", "not_after": "2090-01-01T00:00:00Z", "note": "a; b"}, {"selector": "all"}],
                      limits={"max_instances": 3, "limit_action": "deny"}, features={"sso": True})
    for kind, mime in (("csv", "text/csv"), ("ndjson", "application/x-ndjson")):
        whole, url, parts = "", f"/api/v1/licenses/export?format={kind}&limit=4&status=active,inactive", 0
        while url:
            r = s.api.s.get(s.admin_base + url)
            assert r.status_code == 200 and r.headers["Content-Type"].startswith(mime)
            whole += r.content.decode()
            url = r.links.get("next", {}).get("url")
            parts += 1
        count = s.api.get("/licenses?status=active,inactive&count=1")["count"]
        assert parts > 2
        if kind == "csv":
            rows = list(csv.DictReader(io.StringIO(whole)))
            assert len(rows) == count and len({r["id"] for r in rows}) == count
            mine = next(r for r in rows if r["id"] == evil["id"])
            assert mine["name"].startswith("'=") and mine["environment"] == "''quoted"
            assert not any(c[:1] in ("=", "+", "-", "@") for r in rows for c in r.values() if c), "nothing that a spreadsheet would run"
        else:
            rows = [json.loads(x) for x in whole.splitlines()]
            assert next(r for r in rows if r["id"] == evil["id"])["metadata"]["text"] == "a;b,\"c\"\nd" and len(rows) == count
        assert "key_hash" not in whole and evil["key"] not in whole and with_window["key"] not in whole
        back = bring(s, whole, "mode=upsert&dry_run=1", mime)
        assert (back["unchanged"], back["failed"], back["updated"], back["created"]) == (count, 0, 0, 0), [x for x in back["lines"] if x["result"] != "unchanged"]
    gone = whole.replace(evil["id"], "").replace("lic_", "lac_")  # as new ones under other names: everything can be made again
    fresh = "\n".join(json.dumps({**json.loads(x), "name": "Copy of " + str(i), "external_id": ""}) for i, x in enumerate(gone.splitlines()))
    made = bring(s, fresh, "dry_run=1", "application/x-ndjson")
    assert made["failed"] == 0 and made["created"] == count, [x for x in made["lines"] if x["result"] == "failed"]


@pytest.mark.parametrize("what", ["customers", "credentials", "applications", "plans", "coupons", "pulls", "events", "audit"])
def test_other_lists_are_exported(s, many, what):
    listed = s.api.get(f"/{what}?limit=5")["items"]
    r = s.api.s.get(f"{s.admin_base}/api/v1/export/{what}?format=ndjson&limit=5")
    assert r.status_code == 200 and r.headers["Content-Type"] == "application/x-ndjson", r.text
    got = [json.loads(x) for x in r.content.decode().splitlines()]
    if what not in ("audit", "events", "pulls"):  # they grow meanwhile
        assert got == listed
    c = s.api.s.get(f"{s.admin_base}/api/v1/export/{what}?format=csv&limit=5")
    assert c.status_code == 200 and c.headers["Content-Type"].startswith("text/csv")
    assert len(list(csv.reader(io.StringIO(c.text)))) <= 6 and "hash" not in c.text.split("\r\n")[0].split(",") or what == "audit"
    problem(s.api("GET", f"/export/{what}?zz=1"), 400, "unknown_parameter", "zz")
    problem(s.api("GET", f"/export/{what}?format=xml"), 400, "invalid_parameter", "format")


def test_what_cannot_be_exported(s, many):
    problem(s.api("GET", "/licenses/export?zz=1"), 400, "unknown_parameter", "zz")
    r = s.api.s.post(f"{s.admin_base}/api/v1/licenses/import?zz=1", data="name\nx\n", headers={"Content-Type": "text/csv"})
    problem(r, 400, "unknown_parameter", "zz")
    problem(s.api("GET", "/export/tokens"), 404)
    problem(s.api("GET", "/export/upstreams"), 404)
    viewer, _ = token(s, "viewer")
    assert viewer("GET", "/export/customers").status_code == 200
    problem(viewer("GET", "/export/audit"), 403)
    assert "secret" not in s.api("GET", "/export/credentials").text.split("\r\n")[1]


# ---- bulk acts --------------------------------------------------------------------------------------------------------------


def bulk(s, body, query="", expect=200):
    return s.api("POST", f"/licenses/bulk?{query}".rstrip("?"), body, expect).json()


def test_bulk_acts_by_filter(s, many):
    made = [lic(s, f"Bulk {i}", environment="bulk", expires_at="2090-01-01", period="P1Y", status="active" if i else "inactive") for i in range(6)]
    want = {"filter": {"environment": "bulk", "q": "bulk"}, "action": "extend", "body": {"period": "P1M"}}
    problem(s.api("POST", "/licenses/bulk", want), 400, "missing_field", "expect_count")
    dry = bulk(s, want, "dry_run=1")
    assert (dry["count"], dry["done"], dry["failed"], dry["dry_run"]) == (6, 6, 0, True) and {x["id"] for x in dry["licenses"]} == {x["id"] for x in made}
    assert {x["expires_at"][:7] for x in dry["licenses"]} == {"2090-02"} and {i["expires_at"][:10] for i in s.api.get("/licenses?environment=bulk")["items"]} == {"2090-01-01"}
    d = problem(s.api("POST", "/licenses/bulk", {**want, "expect_count": 5}), 409, "count_differs", "expect_count")
    assert d["count"] == 6
    done = bulk(s, {**want, "expect_count": 6})
    assert (done["done"], done["failed"]) == (6, 0) and {i["expires_at"][:7] for i in s.api.get("/licenses?environment=bulk")["items"]} == {"2090-02"}
    renewed = bulk(s, {"filter": {"environment": "bulk"}, "action": "renew", "expect_count": 6})
    assert {x["expires_at"][:4] for x in renewed["licenses"]} == {"2091"}
    stopped = bulk(s, {"filter": {"environment": "bulk"}, "action": "suspend", "body": {"reason": "audit"}, "expect_count": 6})
    assert (stopped["done"], stopped["failed"]) == (5, 1), "one is inactive"
    bad = [x for x in stopped["licenses"] if x["result"] == "failed"]
    assert bad[0]["id"] == made[0]["id"] and bad[0]["code"] == "action_not_allowed"
    assert s.api.get("/licenses?environment=bulk&status=suspended&count=1")["count"] == 5
    assert [h["event"] for h in s.api.get(f"/licenses/{made[1]['id']}/history")["items"]].count("license.suspended") == 1
    problem(s.api("POST", "/licenses/bulk", {**want, "filter": {"colour": "red"}}), 400, "unknown_field", "filter.colour")
    problem(s.api("POST", "/licenses/bulk", {**want, "body": {"until": "x"}}), 400, "unknown_field", "body.until")
    problem(s.api("POST", "/licenses/bulk", {**want, "action": "explode"}), 400, "invalid_field", "action")
    rows = [a for a in s.api.get("/audit?limit=50")["items"] if a["action"] == "license.bulk"]
    assert rows[0]["after"]["done"] == 5


# ---- transfers ---------------------------------------------------------------------------------------------------------------


def offer(s, license_id, expect=201, **kw):
    return s.api("POST", f"/licenses/{license_id}/transfer", kw, expect).json()


def test_lic_1_10_1_35_transfer_to_another_customer_moves_everything_at_once(s, many):
    l = lic(s, "Movable", grants=[{"selector": "exact", "value": "1.0.0"}])
    bound = s.add_credential(s.a["id"], name="bound", license_id=l["id"])
    free_b = s.add_credential(s.b["id"], name="b's own")
    only = lic(s, "Only", customer=s.add_customer("mover"))
    mover = s.api.get("/customers?slug=mover")["items"][0]
    own = s.add_credential(mover["id"], name="own")
    pull(s, l["key"])
    pull(s, bound["secret"])
    pull(s, own["secret"])
    t = offer(s, only["id"], to_customer_id=s.b["id"], reason="merger")
    assert t["id"].startswith("trf_") and t["secret"].startswith("pgt_") and t["status"] == "pending" and t["direction"] == "internal"
    assert t["expires_at"] > day(6.9) and "secret" not in s.api.get("/transfers/" + t["id"])
    problem(s.api("POST", f"/licenses/{only['id']}/transfer", {"to_customer_id": s.b["id"]}), 409, "offered_already")
    pull(s, own["secret"])
    s.api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"], "name": "Only, moved"}, 200)
    pull(s, own["secret"], status=403)
    moved = s.api.get("/licenses/" + only["id"])
    assert moved["customer_id"] == s.b["id"] and moved["source"] == "transfer" and moved["name"] == "Only, moved"
    t = offer(s, l["id"], to_customer_id=s.b["id"])
    r = s.api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"]}, 200)
    assert r["status"] == "accepted" and r["key"] != l["key"] and r["license_id"] == l["id"]
    pull(s, l["key"], status=401)
    pull(s, bound["secret"], status=401)
    pull(s, r["key"])
    pull(s, free_b["secret"])
    assert l["id"] in [i["id"] for i in s.api.get("/licenses?customer=initech")["items"]] and l["id"] not in [i["id"] for i in s.api.get("/licenses?customer=globex")["items"]]
    assert names(s, "q=movable%20initech") == ["Movable"] and names(s, "q=movable%20globex") == []
    history = {h["event"]: h for h in s.api.get(f"/licenses/{l['id']}/history?limit=100")["items"]}
    assert {"license.reset", "license.transfer_given", "license.transferred"} <= set(history)
    assert history["license.transferred"]["data"]["from_customer_id"] == s.a["id"]
    events = [e["type"] for e in s.api.get("/events?limit=200")["items"] if e.get("license_id") == l["id"]]
    assert {"transfer.offered", "transfer.accepted"} <= set(events)
    problem(s.api("POST", f"/transfers/{t['id']}/accept", {"secret": t["secret"]}), 409, "transfer_ended")
    problem(s.api("POST", f"/licenses/{many['Dead']['id']}/transfer", {"to_customer_id": s.b["id"]}), 409, "action_not_allowed")


def test_lic_1_33_the_secret_is_shown_once_and_five_wrong_ones_end_the_offer(s, many):
    l = lic(s, "Guarded")
    t = offer(s, l["id"], to_customer_id=s.b["id"], lifetime="1h")
    assert t["secret"] not in s.api("GET", "/transfers").text + s.api("GET", "/audit?limit=20").text + s.api("GET", "/events?limit=50").text
    for row in sql(s, "SELECT * FROM transfers WHERE id=?", t["id"]):
        assert t["secret"] not in [str(x) for x in row]
    for wrong in ("x", t["secret"][:-1], t["secret"].upper()):
        problem(s.api("POST", f"/transfers/{t['id']}/accept", {"secret": wrong}), 403, "wrong_secret", "secret")
    assert s.api.get("/transfers/" + t["id"])["status"] == "pending"
    for _ in range(2):
        problem(s.api("POST", f"/transfers/{t['id']}/accept", {"secret": "no"}), 403, "wrong_secret")
    wait_for("the offer to die", lambda: s.api.get("/transfers/" + t["id"])["status"] == "dead")
    problem(s.api("POST", f"/transfers/{t['id']}/accept", {"secret": t["secret"]}), 409, "transfer_ended")
    again = offer(s, l["id"], to_customer_id=s.b["id"])
    sql(s, "UPDATE transfers SET expires_at=1 WHERE id=?", again["id"])
    assert s.api.get("/transfers/" + again["id"])["status"] == "expired"
    problem(s.api("POST", f"/transfers/{again['id']}/accept", {"secret": again["secret"]}), 409, "transfer_expired")
    third = offer(s, l["id"], to_customer_id=s.b["id"])
    assert s.api.post(f"/transfers/{third['id']}/cancel", {"reason": "typo"}, 200)["status"] == "cancelled"
    assert s.api.get("/licenses/" + l["id"])["customer_id"] == s.a["id"]
    for bad in ({"to_customer_id": "cus_none"}, {"to_customer_id": s.a["id"]}, {}, {"to_vendor": "nobody"}, {"to_customer_id": s.b["id"], "lifetime": "1000d"},
                {"to_customer_id": s.b["id"], "to_vendor": "x"}):
        problem(s.api("POST", f"/licenses/{l['id']}/transfer", bad), 400)


def test_lic_1_11_1_34_the_portal_lists_what_is_offered_and_the_customer_decides(s, many):
    l = lic(s, "For you", period="P1Y", expires_at="2090-01-01", allowed_cidrs=["127.0.0.0/8"])
    c = s.add_credential(s.b["id"], name="portal")
    stranger = s.add_credential(s.a["id"], name="stranger")
    auth = {"Authorization": basic("initech", c["secret"])}
    base = s.admin_base + "/portal/v1/transfers"
    t = offer(s, l["id"], to_customer_id=s.b["id"])
    items = requests.get(base + "?status=pending", headers=auth).json()["items"]
    assert [i["id"] for i in items] == [t["id"]] and "secret" not in items[0] and items[0]["from_customer_id"] is None
    assert items[0]["license"] == {"name": "For you", "application": "shop", "application_name": "Shop", "status": "active", "type": "paid", "period": "P1Y",
                                   "expires_at": l["expires_at"], "allowed_cidrs": ["127.0.0.0/8"]}
    assert requests.get(base, headers={"Authorization": basic("globex", stranger["secret"])}).json()["items"] == []
    r = requests.post(f"{base}/{t['id']}/accept", json={"secret": t["secret"]}, headers={"Authorization": basic("globex", stranger["secret"])})
    problem(r, 404)
    problem(requests.post(f"{base}/{t['id']}/accept", json={"secret": "wrong"}, headers=auth), 403, "wrong_secret")
    assert requests.post(f"{base}/{t['id']}/reject", json={"reason": "no need"}, headers=auth).json()["status"] == "rejected"
    assert s.api.get("/transfers/" + t["id"])["reason"] == "no need" and s.api.get("/transfers?status=rejected")["items"]
    t = offer(s, l["id"], to_customer_id=s.b["id"])
    done = requests.post(f"{base}/{t['id']}/accept", json={"secret": t["secret"]}, headers=auth)
    assert done.status_code == 200 and done.json()["status"] == "accepted", done.text
    pull(s, done.json()["key"])
    assert l["id"] in [i["id"] for i in requests.get(s.admin_base + "/portal/v1/licenses", headers=auth).json()["items"]]


def test_lic_1_31_1_32_transfer_to_another_vendor(s, many):
    api, v = second_vendor(s, "reseller")
    assert [x["slug"] for x in api.get("/vendors")["items"]] == ["reseller"], "the id that is told to who gives"
    cus = api.post("/customers", {"slug": "end-user", "name": "End User"})
    l = lic(s, "Resold", grants=[{"selector": "exact", "value": "1.0.0"}], order_number="O-1")
    t = offer(s, l["id"], to_vendor="reseller")
    assert t["direction"] == "outgoing" and t["to_customer_id"] is None
    seen = api.get("/transfers?direction=incoming&status=pending")["items"]
    assert [x["id"] for x in seen] == [t["id"]] and seen[0]["from_customer_id"] is None and seen[0]["license"]["name"] == "Resold"
    problem(s.api("POST", f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": s.b["id"]}), 403, "not_yours")
    problem(api("POST", f"/transfers/{t['id']}/cancel", {}), 403, "not_yours")
    problem(api("POST", f"/transfers/{t['id']}/accept", {"secret": t["secret"]}), 400, "missing_field", "customer_id")
    problem(api("POST", f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": s.b["id"]}), 400, "unknown_reference", "customer_id")
    problem(api("POST", f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": cus["id"]}), 409, "application_not_there")
    up = api.post("/upstreams", {"name": "main", "url": s.registry.url, "username": s.registry.user, "password": s.registry.password})
    app = api.post("/applications", {"slug": "shop", "name": "Shop again", "repositories": [
        {"name": "reseller/api", "upstream_id": up["id"], "upstream_repository": "acme/api"}]})
    problem(second_vendor(s, "third")[0]("GET", "/transfers/" + t["id"]), 404)
    r = api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": cus["id"]}, 200)
    got = api.get("/licenses/" + l["id"])
    assert got["customer_id"] == cus["id"] and got["application_id"] == app["id"] and got["name"] == "Resold" and [g["value"] for g in got["grants"]] == ["1.0.0"]
    problem(s.api("GET", "/licenses/" + l["id"]), 404)
    assert names(s, "q=resold") == [] and names(s, "q=resold", api) == ["Resold"] and names(s, "order_number=O-1", api) == ["Resold"]
    pull(s, r["key"], "/v2/reseller/api/manifests/1.0.0")
    pull(s, l["key"], status=401)
    assert {"transfer.offered", "transfer.accepted"} <= {e["type"] for e in api.get("/events?limit=100")["items"]}
    assert s.api.get("/transfers/" + t["id"])["status"] == "accepted"
    assert s.api.get("/audit/verification")["ok"] is True


def test_lic_4_13_4_14_not_assigned_yet(s, many):
    """A pool: licenses of a customer that stands for nobody, inactive until they are given to somebody."""
    pool = s.add_customer("unassigned", name="Not assigned")
    l = lic(s, "Seat 1", customer=pool, status="inactive")
    s.get("/v2/shop/api/manifests/1.0.0", ("x", l["key"]))
    pull(s, l["key"], status=403)
    assert names(s, "customer=unassigned&status=inactive") == ["Seat 1"]
    t = offer(s, l["id"], to_customer_id=s.b["id"])
    key = s.api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"]}, 200)["key"]
    s.api.post(f"/licenses/{l['id']}/activate", {}, 200)
    pull(s, key)
    assert names(s, "customer=unassigned") == []


def test_walks_and_counts_read_indexes_only(s, many):
    """The statements as finder.c writes them: along a sort, and the count of a filter's entries, SQLite needs no row of the table."""
    live = "l.vendor_id='v' AND l.archived_at=0"
    state = "(l.status='active' AND (l.starts_at=0 OR l.starts_at<=1) AND l.expires_at>0 AND l.expires_at<=9 AND l.expires_at+(CASE WHEN l.grace_days>0 THEN l.grace_days ELSE 0 END)*86400>1)"
    for column, index in (("created_at", "created"), ("updated_at", "updated"), ("expires_key", "expiry"), ("name_key", "name")):
        for fits in ("1", "l.status='suspended'", state, "l.application_id='a' AND l.type='trial' AND l.environment='e' AND l.auto_renew=1"):
            for op, down in ((">", ""), ("<", " DESC")):
                plan = sql(s, f"EXPLAIN QUERY PLAN SELECT l.id, l.{column} FROM licenses l INDEXED BY licenses_by_{index} WHERE {live} AND {fits} AND (l.{column}, l.id) {op} ('a','b')"
                              f" ORDER BY l.{column}{down}, l.id{down} LIMIT 101")
                assert len(plan) == 1 and "USING COVERING INDEX" in plan[0][3] and f"({column},id)" in plan[0][3], plan
    for index, fits in (("licenses_by_status", "l.status='active'"), ("licenses_by_status", state), ("licenses_customer", "l.customer_id='c'"), ("licenses_application", "l.application_id='a'"),
                        ("licenses_by_order", "l.order_number='o' AND l.order_number<>''"), ("licenses_by_external", "l.external_id='o' AND l.external_id<>''"),
                        ("licenses_by_type", "l.type='trial' AND l.type<>'paid'"), ("licenses_by_expiry", "l.expires_key>=1 AND l.expires_key<2"), ("licenses_by_name", "l.name_key='n'")):
        plan = sql(s, f"EXPLAIN QUERY PLAN SELECT 1 FROM licenses l INDEXED BY {index} WHERE {live} AND {fits} LIMIT 1001")
        assert len(plan) == 1 and f"USING COVERING INDEX {index} " in plan[0][3], plan


def test_words_that_very_many_have(s):
    """Found in the order in which the licenses were made, a page at a time, each once; what was archived or does not fit is left out."""
    n = 2400
    lines = "".join(json.dumps({"customer": "initech", "application": "shop", "name": f"Aurora Fjord {i:04d}", "status": "inactive" if i % 50 == 7 else "active",
                                "grants": "exact:1.0.0"}) + "\n" for i in range(n))
    r = s.api.s.post(f"{s.admin_base}/api/v1/licenses/import", data=lines.encode(), headers={"Content-Type": "application/x-ndjson"})
    assert r.status_code == 200 and r.json()["created"] == n, r.text[:500]
    want = [f"Aurora Fjord {i:04d}" for i in range(n)]

    def pages(query, limit):
        got, cursor, most = [], "", 0
        while True:
            p = s.api.get(f"/licenses?q=fjord%20aurora&limit={limit}{query}{cursor}")
            assert len(p["items"]) <= limit
            got += [i["name"] for i in p["items"]]
            most += 1
            assert most < 2 * n / limit + 20
            if not p["next_cursor"]:
                return got
            cursor = "&cursor=" + p["next_cursor"]

    for i in [0, *range(300, 330), n - 1]:
        one = s.api.get(f"/licenses?name=Aurora%20Fjord%20{i:04d}")["items"][0]
        s.api("DELETE", f"/licenses/{one['id']}?confirm={one['name'].replace(' ', '%20')}", None, 204)
        want.remove(one["name"])
    for limit in (7, 100, 499, 500, 1000):
        assert pages("", limit) == want, limit
    assert pages("&sort=-created_at", 100) == want[::-1]
    assert pages("&status=inactive", 40) == [w for w in want if int(w[-4:]) % 50 == 7]
