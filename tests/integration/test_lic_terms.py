"""What happens to terms and grants when a license passes to another plan, is paid for, or is made of what happened before; each test named after
its row. Where a pull is affected it is a real one."""
import datetime
import json
import sqlite3

import requests

from admin_fixture import problem, second_vendor  # noqa: F401
from stack import basic, wait_for
from test_lic_plans import at, change, coupon, cus, days_from_now, denied, events, failed, history, hook, lic_of, licensed, order, paid, plan, portal, pull, s, secret  # noqa: F401


PRICE = {"amount": "5.00", "currency": "EUR"}


def origins(lic):
    return sorted((g["origin"], g["selector"], g["value"]) for g in lic["grants"])


def grant(s, lic, value="2.0.0", **kw):
    return s.api.post(f"/licenses/{lic['id']}/grants", {"selector": "exact", "value": value, **kw}, 200)


def tags(list_):
    return sorted(t["tag"] for t in list_)


# ---- grants and where they come from -----------------------------------------------------------------------------------------


def test_lic_3_12_a_hotfix_survives_a_change_of_plan(s, cus):
    c, auth = cus
    low, high = plan(s, grants=[{"selector": "exact", "value": "1.0.0"}]), plan(s, grants=[{"selector": "exact", "value": "1.1.0"}])
    lic = grant(s, licensed(s, c, low), note="hotfix of the night")
    assert origins(lic) == [("hand", "exact", "2.0.0"), ("plan", "exact", "1.0.0")]
    pull(s, auth, "2.0.0", 200)
    seen = s.api("POST", f"/licenses/{lic['id']}/change-plan?dry_run=1", {"plan_id": high["id"]}, 200).json()
    assert tags(seen["effect"]["gained"]) == ["1.1.0"] and tags(seen["effect"]["lost"]) == ["1.0.0"]
    up = change(s, lic, high)
    assert origins(up) == [("hand", "exact", "2.0.0"), ("plan", "exact", "1.1.0")]
    assert [g["id"] for g in up["grants"] if g["origin"] == "hand"] == [g["id"] for g in lic["grants"] if g["origin"] == "hand"]
    pull(s, auth, "2.0.0", 200)
    pull(s, auth, "1.1.0", 200)
    denied(s, auth, "1.0.0", "version_not_granted")
    # explicitly, for a reason
    url = f"/licenses/{lic['id']}/change-plan"
    problem(s.api("POST", url, {"plan_id": low["id"], "keep_grants": False}), 400, "missing_field", "reason")
    seen = s.api("POST", url + "?dry_run=1", {"plan_id": low["id"], "keep_grants": False, "reason": "x"}, 200).json()
    assert tags(seen["effect"]["lost"]) == ["1.1.0", "2.0.0"] and tags(seen["effect"]["gained"]) == ["1.0.0"]
    down = change(s, lic, low, keep_grants=False, reason="the hotfix is in 1.0")
    assert origins(down) == [("plan", "exact", "1.0.0")]
    denied(s, auth, "2.0.0", "version_not_granted")
    assert [h["reason"] for h in s.api.get(f"/licenses/{lic['id']}/history")["items"] if h["event"] == "license.plan_changed"][0] == "the hotfix is in 1.0"


def test_lic_2_20_a_hotfix_survives_a_downgrade_at_the_end_of_the_period(s, cus):
    c, auth = cus
    high, low = plan(s, grants=[{"selector": "range", "value": "^1"}]), plan(s, grants=[{"selector": "exact", "value": "1.0.0"}])
    for kw, left in (({}, [("hand", "exact", "2.0.0"), ("plan", "exact", "1.0.0")]), ({"keep_grants": False, "reason": "agreed"}, [("plan", "exact", "1.0.0")])):
        end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        lic = grant(s, licensed(s, c, high, expires_at=end))
        body = {"plan_id": low["id"], "effective": "next_period", **kw}
        seen = s.api("POST", f"/licenses/{lic['id']}/change-plan?dry_run=1", body, 200).json()
        assert tags(seen["effect"]["lost"]) == (["1.1.0"] if not kw else ["1.1.0", "2.0.0"]) and seen["plan_id"] == high["id"], "what it will do"
        assert s.api.get(f"/licenses/{lic['id']}")["scheduled_changes"] == []
        later = change(s, lic, low, "next_period", **kw)["scheduled_changes"][0]
        assert later["keep_grants"] is (not kw) and later["reason"] == kw.get("reason", "")
        down = wait_for("the change", lambda: (lambda x: x if x["plan_id"] == low["id"] else None)(s.api.get(f"/licenses/{lic['id']}")), 25)
        assert origins(down) == left
        s.api.post(f"/licenses/{lic['id']}/revoke", {}, 200)


def test_lic_3_8_locked_grants_stay_whatever_the_plan(s, cus):
    c, auth = cus
    low, high = plan(s, grants=[{"selector": "exact", "value": "1.0.0"}]), plan(s, grants=[{"selector": "exact", "value": "1.1.0"}])
    lic = grant(s, licensed(s, c, low, grants_locked=True))
    up = change(s, lic, high, keep_grants=False, reason="x")
    assert origins(up) == [("hand", "exact", "2.0.0"), ("plan", "exact", "1.0.0"), ("plan", "exact", "1.1.0")]
    for tag in ("1.0.0", "1.1.0", "2.0.0"):
        pull(s, auth, tag, 200)


def test_lic_0_17_what_a_coupon_gave_stays(s, cus):
    c, auth = cus
    o = order(s, c, plan(s, features={"sso": False}), coupon=coupon(s, "grant", {"selector": "exact", "value": "2.0.0"})["code"])
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    assert origins(lic_of(s, o)) == [("coupon", "exact", "2.0.0"), ("plan", "range", "^1")]
    up = change(s, lic_of(s, o), plan(s, grants=[{"selector": "exact", "value": "1.0.0"}]))
    assert origins(up) == [("coupon", "exact", "2.0.0"), ("plan", "exact", "1.0.0")]
    pull(s, auth, "2.0.0", 200)
    f = order(s, c, plan(s, features={"sso": False}), coupon=coupon(s, "grant", {"features": {"audit": True}})["code"])
    assert change(s, lic_of(s, f), plan(s, features={"sso": True}))["features"] == {"sso": True, "audit": True}


def test_lic_3_12_what_is_named_beside_a_plan_is_by_hand(s, cus):
    c, _ = cus
    p = plan(s)
    lic = licensed(s, c, p, grants=[{"selector": "range", "value": "^1"}, {"selector": "exact", "value": "2.0.0"}])
    assert origins(lic) == [("hand", "exact", "2.0.0"), ("plan", "range", "^1")]
    # a plan's grant that is changed is the vendor's own from then on; its note alone changes nothing
    url = f"/licenses/{lic['id']}/grants/{[g['id'] for g in lic['grants'] if g['origin'] == 'plan'][0]}"
    assert origins(s.api("PATCH", url, {"note": "seen"}, 200).json()) == origins(lic)
    assert origins(s.api("PATCH", url, {"include_prerelease": True}, 200).json()) == [("hand", "exact", "2.0.0"), ("hand", "range", "^1")]
    again = change(s, lic, plan(s))  # which has the range beside the one that was changed
    assert origins(again) == [("hand", "exact", "2.0.0"), ("hand", "range", "^1"), ("plan", "range", "^1")]
    bare = licensed(s, c, p)
    problem(s.api("POST", f"/licenses/{bare['id']}/grants", {"selector": "all", "origin": "plan"}), 400, "unknown_field", "origin")
    none = s.api.post("/licenses", {"name": "by hand", "customer_id": c["id"], "application_id": s.app["id"], "grants": [{"selector": "exact", "value": "1.0.0"}]})
    assert origins(none) == [("hand", "exact", "1.0.0")]


def test_lic_3_12_as_many_grants_as_there_may_be(s, cus):
    c, _ = cus
    many = plan(s, grants=[{"selector": "exact", "value": f"1.{n}.0"} for n in range(199)])
    lic = grant(s, grant(s, licensed(s, c, plan(s)), "2.0.0"), "2.1.0-beta.1")
    problem(s.api("POST", f"/licenses/{lic['id']}/change-plan", {"plan_id": many["id"]}), 409, "too_many_grants")
    assert s.api.get(f"/licenses/{lic['id']}")["grants"] == lic["grants"]


# ---- limits and features -----------------------------------------------------------------------------------------------------


def test_lic_0_43_limits_that_were_changed_by_hand_stay(s, cus):
    c, _ = cus
    low = plan(s, limits={"max_instances": 1, "pulls": 10, "custom": {"seats": 1, "rooms": 2}}, features={"sso": False, "beta": True, "x": 1})
    high = plan(s, limits={"max_instances": 5, "bytes": 9, "limit_action": "deny", "custom": {"seats": 9, "rooms": 9, "more": 1}}, features={"sso": True, "beta": True, "new": 1})
    as_made = change(s, licensed(s, c, low), high)
    assert as_made["limits"] == {"max_instances": 5, "bytes": 9, "reset_period": "", "limit_action": "deny", "custom": {"seats": 9, "rooms": 9, "more": 1}}
    assert as_made["features"] == {"sso": True, "beta": True, "new": 1}
    lic = licensed(s, c, low)
    s.api("PATCH", f"/licenses/{lic['id']}", {"limits": {"max_instances": 3, "pulls": None, "custom": {"seats": 4, "rooms": 2, "own": True}}, "features": {"sso": False, "x": 2, "mine": 1}}, 200)
    up = change(s, lic, high)
    assert up["limits"] == {"max_instances": 3, "bytes": 9, "reset_period": "", "limit_action": "deny", "custom": {"seats": 4, "rooms": 9, "more": 1, "own": True}}
    assert up["features"] == {"sso": True, "x": 2, "mine": 1, "new": 1}  # beta was taken away by hand
    back = change(s, lic, low)
    assert back["limits"]["max_instances"] == 3 and "pulls" in back["limits"] and back["limits"]["limit_action"] == "warn" and back["limits"]["custom"] == {"seats": 4, "rooms": 2, "own": True}
    plain = change(s, lic, high, keep_limits=False)
    assert plain["limits"] == as_made["limits"] and plain["features"] == as_made["features"]
    assert change(s, lic, low)["limits"]["max_instances"] == 1


def test_lic_0_12_counts_that_were_ordered_stay(s, cus):
    c, _ = cus
    o = order(s, c, plan(s, limits={"max_instances": 1, "pulls": 7}), instances=30, users=4)
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    up = change(s, lic_of(s, o), plan(s, period="P1Y", limits={"max_instances": 1, "pulls": 70, "custom": {"max_users": 1}}))
    assert (up["limits"]["max_instances"], up["limits"]["pulls"], up["limits"]["custom"]) == (30, 70, {"max_users": 4})


# ---- which change counts -----------------------------------------------------------------------------------------------------


def test_lic_0_44_a_change_at_once_takes_the_place_of_one_that_waits(s, cus):
    c, _ = cus
    lic, low, high = licensed(s, c, plan(s)), plan(s), plan(s, type="perpetual")
    change(s, lic, low, "next_period")
    up = change(s, lic, high)
    assert up["scheduled_changes"] == [] and [x["status"] for x in s.api.get(f"/licenses/{lic['id']}/scheduled-changes")["items"]] == ["cancelled"]


def test_lic_4_29_updates_are_not_shortened_by_a_change_of_plan(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s, type="perpetual"), updates_until="2090-01-01")
    assert change(s, lic, plan(s, type="perpetual"))["updates_until"] == lic["updates_until"]
    ever = licensed(s, c, plan(s, type="perpetual"), updates_until=None)
    assert ever["updates_until"] is None and change(s, ever, plan(s, type="perpetual"))["updates_until"] is None
    assert 729 < days_from_now(change(s, licensed(s, c, plan(s, type="perpetual")), plan(s, type="perpetual", updates_period="P2Y"))["updates_until"]) < 732


# ---- maintenance of what never ends -------------------------------------------------------------------------------------------


def test_lic_4_29_a_payment_prolongs_the_updates_of_a_perpetual_license(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, type="perpetual", updates_period="P6M", price={"amount": "5.00", "currency": "EUR"}))
    assert paid(s, secret, o)["result"] == "activated"
    lic = lic_of(s, o)
    assert 180 < days_from_now(lic["updates_until"]) < 185 and lic["expires_at"] is None
    assert paid(s, secret, o, "maintenance-2")["result"] == "renewed"
    longer = lic_of(s, o)
    assert 360 < days_from_now(longer["updates_until"]) < 367 and longer["expires_at"] is None
    assert paid(s, secret, o, "maintenance-2")["replayed"] is True and lic_of(s, o)["updates_until"] == longer["updates_until"]
    assert [d["updates_until"]["to"] for e, d in history(s, lic["id"]) if e == "license.renewed"] == [longer["updates_until"]]
    # of another plan since: its period
    change(s, longer, plan(s, type="perpetual", updates_period="P2Y"))
    start = lic_of(s, o)["updates_until"]
    paid(s, secret, o)
    assert 729 < (at(lic_of(s, o)["updates_until"]) - at(start)).days < 732
    # updates without an end have nothing to prolong
    s.api("PATCH", f"/licenses/{lic['id']}", {"updates_until": None}, 200)
    assert paid(s, secret, o)["result"] == "recorded" and lic_of(s, o)["updates_until"] is None
    pull(s, auth, "1.0.0", 200)


def test_lic_4_29_maintenance_that_is_not_paid_takes_nothing_of_what_was_bought(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, type="perpetual", grace_days=0, price=PRICE))
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)  # on credit: not bought before it is paid
    until = lic_of(s, o)["updates_until"]
    assert failed(s, secret, o)["result"] == "grace"
    wait_for("the suspension", lambda: lic_of(s, o)["status"] == "suspended", 20)
    assert paid(s, secret, o)["result"] == "reinstated" and lic_of(s, o)["updates_until"] == until
    assert failed(s, secret, o)["result"] == "recorded" and lic_of(s, o)["payment_failed_at"] is None
    pull(s, auth, "1.0.0", 200)
    assert [e["data"]["result"] for e in events(s, "license.payment_failed", o["license_id"])] == ["grace", "recorded"]
    assert paid(s, secret, o)["result"] == "renewed" and 364 < (at(lic_of(s, o)["updates_until"]) - at(until)).days < 367


def test_lic_4_29_renew_prolongs_the_updates(s, cus):
    c, auth = cus
    p = plan(s, type="perpetual", updates_period="P1M", grants=[{"selector": "all"}], grace_days=3650)
    lic = licensed(s, c, p, starts_at="2026-01-31T10:00:00Z")
    assert lic["updates_until"] == "2026-02-28T10:00:00Z" and "renew" in lic["allowed_actions"] and "extend" not in lic["allowed_actions"]
    denied(s, auth, "1.0.0", "maintenance_ended")  # it was released later
    url = f"/licenses/{lic['id']}/renew"
    assert s.api.post(url, {"period": "P1M"}, 200)["changes"]["updates_until"] == {"from": "2026-02-28T10:00:00Z", "to": "2026-03-31T10:00:00Z"}  # the day that is meant
    assert s.api.post(url, {}, 200)["updates_until"] == "2026-04-30T10:00:00Z"  # the plan's period
    problem(s.api("POST", url, {"expires_at": "2090-01-01"}), 400, "invalid_field", "expires_at")
    assert s.api.post(url, {"period": "P100Y"}, 200)["expires_at"] is None
    pull(s, auth, "1.0.0", 200)
    s.api("PATCH", f"/licenses/{lic['id']}", {"updates_until": "2026-02-28T10:00:00Z"}, 200)  # another day is meant
    assert s.api.post(url, {"period": "P1M"}, 200)["updates_until"] == "2026-03-28T10:00:00Z"
    over = licensed(s, c, plan(s, type="perpetual", updates_period="P1M", grace_days=0), starts_at="2020-01-31T10:00:00Z")
    assert 27.9 < days_from_now(s.api.post(f"/licenses/{over['id']}/renew", {"period": "P1M"}, 200)["updates_until"]) < 31.1  # long over: from now
    bare = {"customer_id": c["id"], "application_id": s.app["id"], "name": "paid once", "status": "active", "updates_until": "2090-01-31T10:00:00Z"}
    paid_once = s.api.post("/licenses", bare)
    problem(s.api("POST", f"/licenses/{paid_once['id']}/renew", {}), 400, "missing_field", "period")
    assert s.api.post(f"/licenses/{paid_once['id']}/renew", {"period": "P1M"}, 200)["updates_until"] == "2090-02-28T10:00:00Z"
    assert s.api.post(f"/licenses/{paid_once['id']}/renew", {"period": "P1M"}, 200)["updates_until"] == "2090-03-31T10:00:00Z"


# ---- the day that is meant ----------------------------------------------------------------------------------------------------


def test_lic_2_2_an_end_that_is_computed_of_a_start_keeps_its_day(s, cus):
    c, _ = cus
    for kw in ({}, {"type": "development"}, {"type": "trial"}):
        lic = licensed(s, c, plan(s, grace_days=3650, **{"period": "P1M", **({"trial_cap": 0} if kw.get("type") == "trial" else {}), **kw}), starts_at="2026-01-31T10:00:00Z")
        assert lic["expires_at"] == "2026-02-28T10:00:00Z"
        for end in ("2026-03-31T10:00:00Z", "2026-04-30T10:00:00Z", "2026-05-31T10:00:00Z"):
            assert s.api.post(f"/licenses/{lic['id']}/renew", {"period": "P1M"}, 200)["expires_at"] == end, kw
    waiting = licensed(s, c, plan(s, grace_days=3650), starts_at="2026-01-31T10:00:00Z", status="inactive")
    s.api.post(f"/licenses/{waiting['id']}/activate", {}, 200)
    assert s.api.post(f"/licenses/{waiting['id']}/renew", {}, 200)["expires_at"] == "2026-03-31T10:00:00Z"
    problem(s.api("POST", "/licenses", {"name": "x", "customer_id": c["id"], "application_id": s.app["id"], "anchor_day": 31}), 400, "unknown_field", "anchor_day")


# ---- imported licenses of a plan ----------------------------------------------------------------------------------------------


def bring(s, lines, query="", expect=200):
    text = lines if isinstance(lines, str) else "\n".join(json.dumps(x) for x in lines)
    r = requests.post(f"{s.admin_base}/api/v1/licenses/import?{query}", data=text.encode(), timeout=60,
                      headers={"Authorization": "Bearer " + s.token, "Content-Type": "text/csv" if isinstance(lines, str) else "application/x-ndjson"})
    assert r.status_code == expect, r.text
    return r.json()


def test_lic_4_8_an_imported_license_takes_from_its_plan_what_its_line_does_not_give(s, cus):
    c, auth = cus
    p = plan(s, period="P1Y", grace_days=11, requires_activation=True, limits={"max_instances": 3, "custom": {"seats": 2}}, features={"sso": True}, grants=[{"selector": "exact", "value": "1.0.0"}])
    text = f"customer,plan,name,status\n{c['slug']},{p['slug']},Bare,active\n"
    dry = bring(s, text, "dry_run=1")
    assert dry["created"] == 1 and set(dry["lines"][0]["from_plan"]) == {"type", "period", "grants", "limits", "features", "grace_days", "requires_activation", "auto_renew"}
    assert s.api.get(f"/licenses?customer_id={c['id']}")["items"] == []
    bring(s, text)
    lic = s.api.get("/licenses/" + s.api.get(f"/licenses?customer_id={c['id']}")["items"][0]["id"])
    like = licensed(s, s.add_customer(f"cus{next(s.n)}"), p)
    for name in ("type", "period", "grace_days", "requires_activation", "limits", "features", "auto_renew", "plan_id", "application_id"):
        assert lic[name] == like[name], name
    assert origins(lic) == [("plan", "exact", "1.0.0")] and lic["source"] == "import" and abs(days_from_now(lic["expires_at"]) - days_from_now(like["expires_at"])) < 0.01
    pull(s, auth, "1.0.0", 200)
    denied(s, auth, "2.0.0", "version_not_granted")
    # what the line gives wins
    line = {"customer": c["slug"], "plan": p["slug"], "application": "shop", "name": "Own", "status": "active", "type": "development", "grace_days": 1, "expires_at": "2090-01-01",
            "limits": {"max_instances": 9}, "grants": [{"selector": "exact", "value": "1.0.0"}, {"selector": "exact", "value": "2.0.0"}]}
    report = bring(s, [line])
    assert set(report["lines"][0]["from_plan"]) == {"period", "limits", "features", "requires_activation", "auto_renew"}
    own = s.api.get("/licenses/" + report["lines"][0]["id"])
    assert (own["type"], own["grace_days"], own["expires_at"][:10], own["period"]) == ("development", 1, "2090-01-01", "P1Y")
    assert own["limits"]["max_instances"] == 9 and own["limits"]["custom"] == {"seats": 2} and origins(own) == [("import", "exact", "2.0.0"), ("plan", "exact", "1.0.0")]
    up = change(s, own, plan(s, grants=[{"selector": "exact", "value": "1.1.0"}]))
    assert origins(up) == [("import", "exact", "2.0.0"), ("plan", "exact", "1.1.0")]
    # added by an upsert: imported as well
    bring(s, [{"id": own["id"], "grants": [{"selector": "exact", "value": "2.1.0-beta.1"}]}], "mode=upsert")
    assert ("import", "exact", "2.1.0-beta.1") in origins(s.api.get(f"/licenses/{own['id']}"))
    # an end of computed length, but not where the line says that there is none
    ever = plan(s, type="development", period="P1M")
    report = bring(s, [{"customer": c["slug"], "plan": ever["slug"], "name": n, **kw} for n, kw in (("a", {}), ("b", {"expires_at": None}))])
    a, b = (s.api.get("/licenses/" + x["id"]) for x in report["lines"])
    assert a["expires_at"] and b["expires_at"] is None and "expires_at" in report["lines"][0]["from_plan"]
    # refused as a single one is; of an archived plan, too
    trial = plan(s, type="trial", trial_days=3)
    rows = [{"customer": c["slug"], "plan": trial["slug"], "name": f"t{i}"} for i in range(2)]
    assert [x.get("code") for x in bring(s, rows, "dry_run=1")["lines"]] == [None, "trial_cap_reached"]
    s.api("DELETE", f"/plans/{p['id']}")
    assert bring(s, text.replace("Bare", "Late"))["created"] == 1
    other = s.add_application(f"app{next(s.n)}", [], s.up["id"])
    assert bring(s, [{**line, "name": "x", "application": other["slug"], "grants": []}], expect=422)["report"]["lines"][0]["code"] == "invalid_field"


def test_lic_4_8_what_is_exported_is_imported_with_its_origins(s, cus):
    c, _ = cus
    lic = grant(s, licensed(s, c, plan(s)))
    out = requests.get(f"{s.admin_base}/api/v1/licenses/export?format=ndjson&customer_id={c['id']}", headers={"Authorization": "Bearer " + s.token}).text
    row = {**json.loads(out.splitlines()[0]), "id": "", "name": "Copy"}
    copy = s.api.get("/licenses/" + bring(s, [row])["lines"][0]["id"])
    assert origins(copy) == origins(lic) == [("hand", "exact", "2.0.0"), ("plan", "range", "^1")]


# ---- payments ----------------------------------------------------------------------------------------------------------------


def test_lic_0_20_a_payment_of_another_amount_is_refused(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, grace_days=0, price={"amount": "5.00", "currency": "EUR"}), instances=2)
    before = s.api.get(f"/orders/{o['id']}"), lic_of(s, o)
    body = {"order_number": o["number"], "event": "payment_succeeded", "transaction_id": "t1"}
    for kw, field in (({"amount": "9.99"}, "amount"), ({"amount": "10.01", "currency": "EUR"}, "amount"), ({"amount": "ten"}, "amount"), ({"amount": "10.001"}, "amount"), ({"amount": "-10"}, "amount"),
                      ({"amount": "10.00", "currency": "USD"}, "currency"), ({"currency": "USD"}, "currency"), ({"amount": "10", "event": "payment_failed", "currency": "usd"}, "currency")):
        for _ in range(2):
            problem(hook(s, secret, {**body, **kw, "transaction_id": json.dumps(kw)}), 409, "payment_mismatch", field)
    assert (s.api.get(f"/orders/{o['id']}"), lic_of(s, o)) == before, "nothing changes"
    told = events(s, "order.payment_refused", o["license_id"])
    assert len(told) == 8, "each transaction once, however often it is tried"
    assert told[0]["object_id"] == o["id"] and told[0]["actor"] == "hook:payment" and told[0]["customer_id"] == c["id"]
    assert told[0]["data"] == {"order_number": o["number"], "transaction_id": '{"amount": "9.99"}', "event": "payment_succeeded", "amount": "9.99", "currency": "", "total": "10.00", "order_currency": "EUR"}
    assert [a["outcome"] for a in s.api.get("/audit?limit=100")["items"] if a["action"] == "hook.payment" and a["object"] == o["id"]] == ["payment_mismatch"] * 8
    denied(s, auth, "1.0.0", "inactive")
    assert paid(s, secret, o, "t1", amount="10", currency="EUR")["result"] == "activated"  # the same money, written otherwise
    assert paid(s, secret, o, "t2", amount="10.00")["result"] == "renewed" and paid(s, secret, o, "t3", currency="EUR")["result"] == "renewed"
    assert paid(s, secret, o, "t4", amount="")["result"] == "renewed"
    problem(hook(s, secret, {**body, "transaction_id": "t5", "amount": "0.01", "event": "payment_failed"}), 409, "payment_mismatch")
    assert lic_of(s, o)["status"] == "active" and lic_of(s, o)["payment_failed_at"] is None
    free = order(s, c, plan(s))  # without a price there is no total to differ from
    assert paid(s, secret, free, amount="12.00", currency="CHF")["result"] == "activated"
    yen = order(s, c, plan(s, price={"amount": "1990", "currency": "JPY"}))
    problem(hook(s, secret, {**body, "order_number": yen["number"], "amount": "1990.00"}), 409, "payment_mismatch", "amount")
    assert paid(s, secret, yen, amount="1990", currency="JPY")["result"] == "activated"
    assert s.api.get("/audit/verification")["ok"] is True


def sql(s, text, *values):
    with sqlite3.connect(f"{s.dir}/pullgate.db", timeout=10) as db:
        return db.execute(text, values).fetchall()


def test_lic_0_20_a_cancelled_order_takes_nothing_from_a_license_in_use(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, grace_days=0, price=PRICE))
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    s.api.post(f"/orders/{o['id']}/cancel", {}, 200)
    assert failed(s, secret, o)["result"] == "recorded" and lic_of(s, o)["payment_failed_at"] is None
    pull(s, auth, "1.0.0", 200)


def test_lic_0_20_the_first_payment_pays_the_period_that_runs_also_after_a_suspension(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, grace_days=0, price=PRICE))
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    end = lic_of(s, o)["expires_at"]
    failed(s, secret, o)
    wait_for("the suspension", lambda: lic_of(s, o)["status"] == "suspended", 20)
    assert paid(s, secret, o)["result"] == "reinstated" and lic_of(s, o)["expires_at"] == end
    pull(s, auth, "1.0.0", 200)
    assert paid(s, secret, o)["result"] == "renewed" and lic_of(s, o)["expires_at"] > end


def test_lic_0_47_a_renewal_by_hand_ends_the_grace_of_a_failed_payment(s, cus, secret):
    c, auth = cus
    o = order(s, c, plan(s, grace_days=3, price=PRICE))
    paid(s, secret, o)
    failed(s, secret, o)
    assert lic_of(s, o)["effective_status"] == "grace"
    up = s.api.post(f"/licenses/{o['license_id']}/renew", {"reason": "paid by wire"}, 200)  # else the clock suspends what was paid
    assert up["payment_failed_at"] is None and up["payment_retries"] == 0 and up["changes"]["payment_failed_at"]["to"] is None
    failed(s, secret, o)
    assert lic_of(s, o)["payment_retries"] == 1


def test_lic_0_47_a_failure_that_comes_late_starts_no_grace(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, grace_days=0, price=PRICE))
    hours = lambda n: (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=n)).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: E731
    paid(s, secret, o, timestamp=hours(-1))
    assert failed(s, secret, o, timestamp=hours(-2))["result"] == "recorded" and lic_of(s, o)["payment_failed_at"] is None
    s.api("PATCH", f"/licenses/{o['license_id']}", {"grace_days": 5}, 200)
    assert failed(s, secret, o, timestamp=hours(0))["result"] == "grace" and lic_of(s, o)["payment_failed_at"]
    paid(s, secret, o)
    assert failed(s, secret, o, timestamp=hours(-1))["result"] == "recorded"  # before the success was told, of which no time is known
    assert failed(s, secret, o)["result"] == "grace"


def overdue(s, lic_id):
    """The license's period and its scheduled change are over, and the clock has not looked."""
    end = int(datetime.datetime.now().timestamp()) - 60
    sql(s, "UPDATE scheduled_changes SET at=? WHERE license_id=? AND status='pending'", end, lic_id)
    sql(s, "UPDATE licenses SET expires_at=?, change_at=?, anchor_day=0, wake_at=9999999999 WHERE id=?", end, end, lic_id)
    return datetime.datetime.fromtimestamp(end, datetime.timezone.utc)


def test_lic_2_20_a_payment_before_the_clock_looks_renews_by_the_other_plan(s, cus, secret):
    c, auth = cus
    for how in ("hook", "renew"):
        o = order(s, c, plan(s, grants=[{"selector": "all"}], price=PRICE))
        low = plan(s, period="P1Y", grants=[{"selector": "exact", "value": "1.0.0"}])
        paid(s, secret, o)
        change(s, lic_of(s, o), low, "next_period")
        end = overdue(s, o["license_id"])
        if how == "hook":
            assert paid(s, secret, o)["result"] == "renewed"
        else:
            s.api.post(f"/licenses/{o['license_id']}/renew", {}, 200)
        lic = lic_of(s, o)
        assert lic["plan_id"] == low["id"] and 364 < (at(lic["expires_at"]) - end).days < 367 and lic["scheduled_changes"] == []
        assert [a["object"] for a in s.api.get("/audit?limit=20")["items"] if a["action"] == "license.change_plan"][0] == lic["id"]
    assert s.api.get("/audit/verification")["ok"] is True
    # what becomes perpetual then has its year of updates by the change, and no second one by the payment
    o = order(s, c, plan(s, price=PRICE))
    paid(s, secret, o)
    change(s, lic_of(s, o), plan(s, type="perpetual"), "next_period")
    overdue(s, o["license_id"])
    paid(s, secret, o)
    assert lic_of(s, o)["type"] == "perpetual" and 364 < days_from_now(lic_of(s, o)["updates_until"]) < 367


def test_lic_2_20_suspended_meanwhile_and_paid(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, grace_days=0, price=PRICE))
    low = plan(s, period="P1Y")
    paid(s, secret, o)
    change(s, lic_of(s, o), low, "next_period")
    failed(s, secret, o)
    wait_for("the suspension", lambda: lic_of(s, o)["status"] == "suspended", 20)
    end = overdue(s, o["license_id"])
    assert paid(s, secret, o)["result"] == "reinstated"
    lic = lic_of(s, o)
    assert lic["plan_id"] == low["id"] and 364 < (at(lic["expires_at"]) - end).days < 367


def test_lic_2_20_a_scheduled_change_follows_its_license(s, cus):
    c, _ = cus
    lic, low = licensed(s, c, plan(s), expires_at="2090-01-31T10:00:00Z"), plan(s)
    url = f"/licenses/{lic['id']}"
    assert change(s, lic, low, "next_period")["scheduled_changes"][0]["at"] == "2090-01-31T10:00:00Z"
    assert s.api.post(url + "/extend", {"period": "P14D"}, 200)["scheduled_changes"][0]["at"] == "2090-02-14T10:00:00Z"  # the period that runs is longer
    assert s.api("PATCH", url, {"expires_at": "2090-02-20T10:00:00Z"}, 200).json()["scheduled_changes"][0]["at"] == "2090-02-20T10:00:00Z"
    assert sql(s, "SELECT change_at - expires_at FROM licenses WHERE id=?", lic["id"]) == [(0,)]
    renewed = s.api.post(url + "/renew", {"period": "P1M"}, 200)  # a further period, which is the other plan's
    assert renewed["expires_at"] == "2090-03-20T10:00:00Z" and renewed["scheduled_changes"][0]["at"] == "2090-02-20T10:00:00Z"
    assert s.api.post(url + "/extend", {"period": "P1D"}, 200)["scheduled_changes"][0]["at"] == "2090-02-20T10:00:00Z"
    for end in ("revoke", "delete"):
        gone = licensed(s, c, plan(s))
        change(s, gone, low, "next_period")
        r = s.api("POST", f"/licenses/{gone['id']}/revoke", {}) if end == "revoke" else s.api("DELETE", f"/licenses/{gone['id']}")
        assert r.status_code < 300, r.text
        shown = s.api.get(f"/licenses/{gone['id']}/scheduled-changes")["items"]
        assert [(x["status"], x["detail"]) for x in shown] == [("cancelled", "the license was " + {"revoke": "revoked", "delete": "deleted"}[end])]


def far_vendor(s):
    """Another vendor with an application of the same slug and a customer."""
    api, v = second_vendor(s, f"vendor{next(s.n)}")
    up = api.post("/upstreams", {"name": "main", "url": s.registry.url, "username": s.registry.user, "password": s.registry.password})
    api.post("/applications", {"slug": "shop", "name": "Shop", "repositories": [{"name": f"{v['slug']}/api", "upstream_id": up["id"], "upstream_repository": "acme/api"}]})
    return api, v, api.post("/customers", {"slug": "end", "name": "End"})


def test_lic_1_31_a_payment_of_what_another_vendor_has_is_recorded(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, price=PRICE))
    paid(s, secret, o)
    api, v, their = far_vendor(s)
    t = s.api.post(f"/licenses/{o['license_id']}/transfer", {"to_vendor": v["slug"]})
    api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": their["id"]}, 200)
    had = api.get(f"/licenses/{o['license_id']}")
    r = paid(s, secret, o, "late-1")
    assert (r["result"], r["license_status"]) == ("ignored", "") and paid(s, secret, o, "late-1")["replayed"] is True
    assert failed(s, secret, o, "late-2")["result"] == "recorded"
    assert api.get(f"/licenses/{o['license_id']}") == had
    assert [p["transaction_id"] for p in s.api.get(f"/orders/{o['id']}")["payments"]][1:] == ["late-1", "late-2"]
    assert s.api.post(f"/orders/{o['id']}/cancel", {}, 200)["status"] == "cancelled" and api.get(f"/licenses/{o['license_id']}") == had


# ---- trials and coupons -------------------------------------------------------------------------------------------------------


def test_lic_2_5_a_trial_that_was_given_away_was_one(s, cus):
    c, auth = cus
    p = plan(s, type="trial", trial_days=14, starts_on="activation", self_service=True, visible=True)
    other = s.add_customer(f"cus{next(s.n)}")
    lic = licensed(s, c, p)
    t = s.api.post(f"/licenses/{lic['id']}/transfer", {"to_customer_id": other["id"]})
    s.api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"]}, 200)
    for who in (c, other):
        problem(s.api("POST", "/licenses", {"name": "again", "customer_id": who["id"], "plan_id": p["id"]}), 409, "trial_cap_reached")
    problem(portal(s, auth, "POST", "/trials", {"plan_id": p["id"], "name": "again"}), 409, "trial_cap_reached")
    # to another vendor, too
    far = s.add_customer(f"cus{next(s.n)}")
    lic = licensed(s, far, p)
    api, v, their = far_vendor(s)
    t = s.api.post(f"/licenses/{lic['id']}/transfer", {"to_vendor": v["slug"]})
    api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": their["id"]}, 200)
    problem(s.api("POST", "/licenses", {"name": "again", "customer_id": far["id"], "plan_id": p["id"]}), 409, "trial_cap_reached")


def test_lic_2_5_trials_of_a_domain_that_were_given_away_count(s, cus):
    c, auth = cus
    p = plan(s, type="trial", trial_days=14, starts_on="activation", self_service=True, visible=True, trial_cap=0, trial_cap_per_domain=1)
    t = portal(s, auth, "POST", "/trials", {"plan_id": p["id"], "name": "one"}, 201).json()
    offer = s.api.post(f"/licenses/{t['id']}/transfer", {"to_customer_id": s.add_customer(f"cus{next(s.n)}")["id"]})
    s.api.post(f"/transfers/{offer['id']}/accept", {"secret": offer["secret"]}, 200)
    problem(portal(s, auth, "POST", "/trials", {"plan_id": p["id"], "name": "two"}), 409, "trial_cap_reached")


def test_lic_2_5_a_trial_that_came_to_nothing_was_none(s, cus):
    c, _ = cus
    p = plan(s, type="trial", trial_days=14)
    o = order(s, c, p)
    problem(s.api("POST", "/orders", {"customer_id": c["id"], "plan_id": p["id"], "name": "two"}), 409, "trial_cap_reached")
    s.api.post(f"/orders/{o['id']}/cancel", {}, 200)
    order(s, c, p)


def test_lic_1_2_a_cancelled_order_gives_its_coupon_back_whatever_ended_its_license(s, cus):
    c, _ = cus
    for end in ("revoke", "delete"):
        cp = coupon(s, "percent", "10", max_uses=1)
        o = order(s, c, plan(s, price=PRICE), coupon=cp["code"])
        r = s.api("POST", f"/licenses/{o['license_id']}/revoke", {}) if end == "revoke" else s.api("DELETE", f"/licenses/{o['license_id']}")
        assert r.status_code < 300
        s.api.post(f"/orders/{o['id']}/cancel", {}, 200)
        assert s.api.get(f"/coupons/{cp['id']}")["used"] == 0, end


def test_lic_0_10_what_was_ordered_ends_also_where_its_license_is_activated_by_hand(s, cus):
    c, _ = cus
    for kw in ({"type": "development"}, {"type": "trial", "trial_cap": 0}):
        o = order(s, c, plan(s, **{"period": "P1M", **kw}))
        assert 27.9 < days_from_now(s.api.post(f"/licenses/{o['license_id']}/activate", {}, 200)["expires_at"]) < 31.1


def test_lic_0_20_an_approval_that_names_a_payment_is_the_first_one(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, price=PRICE))
    s.api.post(f"/orders/{o['id']}/approve", {"transaction_id": "wire-7"}, 200)
    end = lic_of(s, o)["expires_at"]
    told = s.api.get(f"/orders/{o['id']}")
    assert told["paid_at"] and [(p["transaction_id"], p["event"], p["result"]) for p in told["payments"]] == [("wire-7", "payment_succeeded", "approved")]
    assert paid(s, secret, o, "wire-7")["replayed"] is True and lic_of(s, o)["expires_at"] == end  # the hook tells of it after all
    assert paid(s, secret, o, "second")["result"] == "renewed" and lic_of(s, o)["expires_at"] > end
    again = order(s, c, plan(s, manual_validation=True, price=PRICE))  # told by the hook before
    paid(s, secret, again, "card-1")
    s.api.post(f"/orders/{again['id']}/approve", {"transaction_id": "card-1"}, 200)
    assert len(s.api.get(f"/orders/{again['id']}")["payments"]) == 1


def test_lic_0_20_a_first_payment_after_the_period_is_over_renews(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, price=PRICE))
    s.api.post(f"/orders/{o['id']}/approve", {}, 200)
    overdue(s, o["license_id"])
    assert paid(s, secret, o)["result"] == "renewed" and days_from_now(lic_of(s, o)["expires_at"]) > 27


def test_lic_0_15_a_free_period_is_added_also_where_the_license_was_activated_by_hand(s, cus, secret):
    c, _ = cus
    for how in ("paid", "approved"):
        o = order(s, c, plan(s, price=PRICE), coupon=coupon(s, "free_period", "P14D")["code"])
        end = s.api.post(f"/licenses/{o['license_id']}/activate", {}, 200)["expires_at"]
        if how == "paid":
            assert paid(s, secret, o)["result"] == "recorded"
        s.api.post(f"/orders/{o['id']}/approve", {}, 200)
        assert (at(lic_of(s, o)["expires_at"]) - at(end)).days == 14, how  # once


def test_lic_1_31_what_another_vendor_gets_owes_nothing_to_the_giver(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, auto_renew=True, price=PRICE))
    paid(s, secret, o)
    failed(s, secret, o)
    api, v, their = far_vendor(s)
    t = s.api.post(f"/licenses/{o['license_id']}/transfer", {"to_vendor": v["slug"]})
    api.post(f"/transfers/{t['id']}/accept", {"secret": t["secret"], "customer_id": their["id"]}, 200)
    got = api.get(f"/licenses/{o['license_id']}")  # nobody there could pay the order: it would be suspended, and never renew
    assert got["payment_failed_at"] is None and got["payment_retries"] == 0 and got["effective_status"] in ("active", "expiring") and got["auto_renew"] is True
    assert sql(s, "SELECT renew_needs_payment FROM licenses WHERE id=?", got["id"]) == [(0,)]


def test_lic_2_7_who_renews_again_is_not_cancelled_again(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s, auto_renew=True))
    url = f"/licenses/{lic['id']}"
    s.api.post(url + "/cancel-at-period-end", {}, 200)
    overdue(s, lic["id"])
    sql(s, "UPDATE licenses SET wake_at=1 WHERE id=?", lic["id"])
    wait_for("the end", lambda: s.api.get(url)["auto_renew"] is False, 20)
    s.api.post(url + "/renew", {}, 200)
    again = s.api("PATCH", url, {"auto_renew": True}, 200).json()  # it was for that time
    assert again["cancel_at_period_end"] is False and again["renews_at"] == again["expires_at"]
    assert s.api("PATCH", url, {"auto_renew": True, "cancel_at_period_end": True}, 200).json()["cancel_at_period_end"] is True
    assert s.api("PATCH", url, {"auto_renew": True}, 200).json()["cancel_at_period_end"] is True  # it renewed before


def test_lic_2_20_what_is_granted_after_a_change_was_asked_for_is_not_dropped_by_it(s, cus):
    c, auth = cus
    lic, low = licensed(s, c, plan(s)), plan(s, grants=[{"selector": "exact", "value": "1.0.0"}])
    lic = grant(s, lic, "2.1.0-beta.1")
    change(s, lic, low, "next_period", keep_grants=False, reason="agreed")
    sql(s, "UPDATE scheduled_changes SET created_at=created_at-5 WHERE license_id=?", lic["id"])
    sql(s, "UPDATE grants SET created_at=created_at-10 WHERE license_id=?", lic["id"])
    grant(s, lic, "2.0.0", note="hotfix of the night")
    overdue(s, lic["id"])
    sql(s, "UPDATE licenses SET wake_at=1 WHERE id=?", lic["id"])
    down = wait_for("the change", lambda: (lambda x: x if x["plan_id"] == low["id"] else None)(s.api.get(f"/licenses/{lic['id']}")), 20)
    assert origins(down) == [("hand", "exact", "2.0.0"), ("plan", "exact", "1.0.0")]
    pull(s, auth, "2.0.0", 200)


# ---- marketplaces -------------------------------------------------------------------------------------------------------------


def test_lic_2_21_a_marketplace_reinstates_with_another_plan_and_revokes_whatever_it_is(s, cus):
    c, auth = cus
    p, q = plan(s), plan(s, grants=[{"selector": "all"}])
    for last in ("active", "revoked"):
        url = f"/licenses/by-external/aws/sub-{next(s.n)}"
        body = {"customer_id": c["id"], "plan_id": p["id"], "name": f"Sold {last}"}
        s.api("PUT", url, body, 200)
        s.api("PUT", url, {**body, "status": "suspended", "reason": "unsubscribed"}, 200)
        done = s.api("PUT", url, {**body, "plan_id": q["id"], "status": last}, 200).json()
        assert done["status"] == last and (last == "revoked" or done["plan_id"] == q["id"])
        if last == "active":
            pull(s, auth, "2.0.0", 200)
        s.api("PUT", url, {**body, "plan_id": q["id"], "status": last}, 200)


def test_lic_4_8_an_exported_grant_comes_back_as_narrow_as_it_was(s, cus):
    c, _ = cus
    narrow = [{"selector": "exact", "value": "1.0.0", "not_after": "2090-01-01T00:00:00Z"}, {"selector": "exact", "value": "1.1.0", "not_before": "2020-01-01T00:00:00Z"},
              {"selector": "all", "repositories": ["shop/api"]}, {"selector": "range", "value": "^1", "include_prerelease": True}, {"selector": "range", "value": "^2", "on_move": "pin"}]
    names = ("selector", "value", "not_before", "not_after", "repositories", "include_prerelease", "on_move")
    for one in [*([g] for g in narrow), narrow]:
        lic = s.api.post("/licenses", {"name": f"L{next(s.n)}", "customer_id": c["id"], "application_id": s.app["id"], "grants": one})
        out = requests.get(f"{s.admin_base}/api/v1/licenses/export?format=csv&id={lic['id']}", headers={"Authorization": "Bearer " + s.token}).text
        back = bring(s, out.replace(lic["id"], "").replace(lic["name"], "Copy of " + lic["name"]))
        copy = s.api.get("/licenses/" + back["lines"][0]["id"])
        assert [{k: g[k] for k in names} for g in copy["grants"]] == [{k: g[k] for k in names} for g in lic["grants"]]
    plain = licensed(s, c, plan(s))
    out = requests.get(f"{s.admin_base}/api/v1/licenses/export?format=csv&id={plain['id']}", headers={"Authorization": "Bearer " + s.token}).text
    assert "range:^1" in out, "short where that says all"


def test_lic_4_8_a_version_that_was_taken_away_does_not_come_back_by_an_import(s, cus):
    c, _ = cus
    lic = licensed(s, c, plan(s))
    s.api.post(f"/licenses/{lic['id']}/grants/{lic['grants'][0]['id']}/remove-version", {"version": "1.1.0", "reason": "CVE"}, 200)
    for form in ("csv", "ndjson"):
        other = s.add_customer(f"cus{next(s.n)}")
        out = requests.get(f"{s.admin_base}/api/v1/licenses/export?format={form}&id={lic['id']}", headers={"Authorization": "Bearer " + s.token}).text.replace(lic["id"], "")
        text = out.replace(c["slug"], other["slug"]) if form == "csv" else [{**json.loads(out), "customer": other["slug"]}]
        copy = s.api.get("/licenses/" + bring(s, text)["lines"][0]["id"])
        assert [(g["excluded"], g["origin"]) for g in copy["grants"]] == [(["1.1.0"], "plan")], form
        auth = basic(other["slug"], s.add_credential(other["id"])["secret"])
        pull(s, auth, "1.0.0", 200)
        denied(s, auth, "1.1.0", "version_not_granted")
    for bad in ("1.1.0", [1], ["a b"], ["1.0.%d" % n for n in range(101)], {"a": 1}):
        line = {"customer": c["slug"], "application": "shop", "name": "bad", "grants": [{"selector": "range", "value": "^1", "excluded": bad}]}
        r = bring(s, [line], "dry_run=1")["lines"][0]
        assert (r["result"], r["field"]) == ("failed", "grants[0].excluded"), (bad, r)
    line["grants"][0].update(excluded=[], origin="nobody")
    assert bring(s, [line], "dry_run=1")["created"] == 1


def test_lic_0_20_a_renewal_may_cost_what_its_coupon_took_off_and_what_another_plan_costs(s, cus, secret):
    c, _ = cus
    o = order(s, c, plan(s, price={"amount": "10.00", "currency": "EUR"}), coupon=coupon(s, "percent", "50")["code"])
    body = {"order_number": o["number"], "event": "payment_succeeded", "transaction_id": "x"}
    problem(hook(s, secret, {**body, "amount": "10.00"}), 409, "payment_mismatch")  # the first is the order's total
    assert paid(s, secret, o, amount="5.00")["result"] == "activated"
    assert paid(s, secret, o, amount="10.00")["result"] == "renewed" and paid(s, secret, o, amount="5.00")["result"] == "renewed"
    problem(hook(s, secret, {**body, "amount": "7.00"}), 409, "payment_mismatch")
    change(s, lic_of(s, o), plan(s, price={"amount": "99.00", "currency": "EUR"}))
    assert paid(s, secret, o, amount="99.00")["result"] == "renewed"  # the order says nothing of that plan's price
