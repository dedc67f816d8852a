"""Limits of a license: installations, pulls, bytes, their windows, and a customer's rate; seen by pulls through the real proxy."""
import signal
import threading

import pytest
import requests

from stack import Stack, basic, wait_for

WIDE = [{"selector": "all", "value": ""}]


@pytest.fixture(scope="module")
def shop():
    s = Stack()
    for v in ("1.0.0", "1.1.0"):
        s.registry.push_image("acme/api", v, [b"layer " + v.encode()])
    up = s.add_upstream()
    s.app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
    yield s
    s.close()


class Buyer:
    """A customer with one license and as many credentials as are asked for: each is an installation of its own."""

    def __init__(self, s, slug, limits, **kw):
        self.s, self.slug, self.secrets = s, slug, {}
        self.customer = s.add_customer(slug, **kw)
        self.license = s.add_license(self.customer["id"], s.app["id"], WIDE, name="Prod", limits=limits)
        self.path = f"/licenses/{self.license['id']}"

    def auth(self, name):
        if name not in self.secrets:
            self.secrets[name] = self.s.add_credential(self.customer["id"], name)["secret"]
            self.s.wait_status("/v2/", basic(self.slug, self.secrets[name]), 200)
        return basic(self.slug, self.secrets[name])

    def pull(self, name="ci", tag="1.0.0"):
        return self.s.get(f"/v2/shop/api/manifests/{tag}", self.auth(name))

    def usage(self):
        return self.s.api.get(self.path + "/usage")

    def wait_usage(self, **want):
        return wait_for(f"usage {want}", lambda: (u := self.usage()) and all(u[k] == v for k, v in want.items()) and u, 10)

    def wait_pull(self, status, name="ci"):
        """A pull whose answer is that status. Asked for with HEAD until then, which counts nothing: a pull that came before the proxy knows would itself
        take a place."""
        auth = self.auth(name)
        wait_for(f"a decision that is {status}", lambda: self.s.get("/v2/shop/api/manifests/1.0.0", auth, method="HEAD").status_code == status, 10)
        r = self.pull(name)
        assert r.status_code == status, r.text
        return r

    def events(self):
        return [e for e in self.s.api.get(f"/events?license={self.license['id']}&limit=500")["items"] if "limit_exceeded" in str(e)]


def test_lic_0_5_a_further_installation_is_denied(shop):
    b = Buyer(shop, "five", {"max_instances": 2, "limit_action": "deny"})
    assert b.pull("one").status_code == 200 and b.pull("two").status_code == 200
    b.wait_usage(instances=2, instances_full=True)
    r = b.wait_pull(403, "three")
    error = r.json()["errors"][0]
    assert error["detail"]["reason"] == "quota_exceeded" and "2 installations" in error["message"]
    assert b.pull("one").status_code == 200 and b.pull("two").status_code == 200, "who holds a place keeps it"
    wait_for("an event", lambda: len(b.events()) == 1, 10)
    items = shop.api.get(b.path + "/instances")["items"]
    assert {i["address"] for i in items} == {"127.0.0.1"} and len(items) == 2
    # a place that is given up is free for the next
    assert shop.api("DELETE", f"{b.path}/instances/{items[0]['fingerprint']}", expect=204).status_code == 204
    assert b.wait_pull(200, "three")
    held = lambda: {i["fingerprint"] for i in shop.api.get(b.path + "/instances")["items"]}  # noqa: E731
    wait_for("its place", lambda: len(held()) == 2 and items[0]["fingerprint"] not in held() and b.usage()["instances_full"], 10)
    head = lambda n: shop.get("/v2/shop/api/manifests/1.0.0", b.auth(n), method="HEAD").status_code  # noqa: E731
    wait_for("one of the first two is out", lambda: sorted(head(n) for n in ("one", "two")) == [200, 403], 10)
    assert sorted(b.pull(n).status_code for n in ("one", "two")) == [200, 403]


def test_lic_0_9_passing_a_limit_warns_or_denies(shop):
    warned = Buyer(shop, "warned", {"pulls": 3, "limit_action": "warn"})
    denied = Buyer(shop, "denied", {"pulls": 3, "limit_action": "deny"})
    for b in (warned, denied):
        for _ in range(3):
            assert b.pull().status_code == 200
    r = denied.wait_pull(403)
    assert r.json()["errors"][0]["detail"]["reason"] == "quota_exceeded" and "quota" in r.json()["errors"][0]["message"]
    assert denied.usage()["quota_exceeded"] is True and len(denied.events()) == 1
    assert warned.pull().status_code == 200
    warned.wait_usage(pulls=4, quota_exceeded=False)
    wait_for("an event", lambda: len(warned.events()) == 1, 10)
    for _ in range(3):
        warned.pull()
    warned.wait_usage(pulls=7)
    assert len(warned.events()) == 1, "told once a window"


def test_lic_0_12_limits_are_stored_and_checked(shop):
    b = Buyer(shop, "twelve", {"max_instances": 5, "pulls": 100, "bytes": 1000000, "reset_period": "P1M", "limit_action": "deny"})
    have = shop.api.get(b.path)["limits"]
    assert have["max_instances"] == 5 and have["reset_period"] == "P1M" and have["limit_action"] == "deny"
    for bad in ({"pulls": -1}, {"reset_period": "often"}, {"limit_action": "maybe"}, {"pools": 1}):
        r = shop.api("PATCH", b.path, {"limits": bad})
        assert r.status_code in (400, 422) and r.json()["field"].startswith("limits"), (bad, r.text)


def test_lic_0_30_the_first_pull_is_stamped(shop):
    b = Buyer(shop, "thirty", {})
    assert shop.api.get(b.path)["first_used_at"] is None
    assert b.pull().status_code == 200
    wait_for("first_used_at", lambda: shop.api.get(b.path)["first_used_at"], 10)


def test_lic_0_32_the_customer_sees_usage_beside_limits(shop):
    b = Buyer(shop, "thirty-two", {"pulls": 10})
    assert b.pull().status_code == 200
    b.wait_usage(pulls=1)
    r = requests.get(shop.admin_base + "/portal/v1/licenses", headers={"Authorization": b.auth("ci")})
    one = r.json()["items"][0]
    assert one["limits"]["pulls"] == 10 and one["usage"]["pulls"] == 1, one


def test_lic_0_45_raising_a_limit_opens_at_once(shop):
    b = Buyer(shop, "forty-five", {"pulls": 1, "limit_action": "deny"})
    assert b.pull().status_code == 200
    b.wait_pull(403)
    r = shop.api("PATCH", b.path, {"limits": {"pulls": 50, "limit_action": "deny"}}, expect=200)
    assert r.json()["limits"]["pulls"] == 50
    b.wait_pull(200)
    shop.api("PATCH", b.path, {"limits": {"pulls": 1, "limit_action": "deny"}}, expect=200)
    b.wait_pull(403)


def test_bytes_count_blobs(shop):
    b = Buyer(shop, "bytes", {"bytes": 1, "limit_action": "deny"})
    layer = b.pull().json()["layers"][0]
    r = shop.get(f"/v2/shop/api/blobs/{layer['digest']}", b.auth("ci"))
    assert r.status_code in (200, 403)  # the manifest alone may have used it up by now
    b.wait_pull(403)
    assert b.usage()["bytes"] >= layer["size"]


def test_a_window_ends_by_itself(shop):
    """The proxies open by their own clock: nothing has to be written for it."""
    b = Buyer(shop, "window", {"pulls": 1, "limit_action": "deny", "reset_period": "8s"})
    assert b.pull().status_code == 200
    b.wait_pull(403)
    until = b.usage()["window_until"]
    assert until
    b.wait_pull(200)
    wait_for("a second window", lambda: len([w for w in b.usage()["windows"] if w["pulls"]]) >= 2, 10)


def test_a_customer_has_a_rate_of_its_own(shop):
    b = Buyer(shop, "rate", {}, requests_per_second=2)
    b.auth("ci")
    codes = [b.pull().status_code for _ in range(12)]
    assert 429 in codes and 200 in codes, codes
    r = next(r for r in (b.pull() for _ in range(12)) if r.status_code == 429)
    assert int(r.headers["Retry-After"]) >= 1
    shop.api("PATCH", f"/customers/{b.customer['id']}", {"requests_per_second": 0}, expect=200)
    wait_for("no bound", lambda: [b.pull().status_code for _ in range(12)].count(200) == 12, 10)


def test_a_report_that_comes_twice_counts_once(shop):
    b = Buyer(shop, "twice", {"pulls": 1000})
    for _ in range(5):
        assert b.pull().status_code == 200
    b.wait_usage(pulls=5)
    # the admin dies with what it has read; its next life reads what was not acknowledged again
    shop.admin.stop(9)
    for _ in range(3):
        assert b.pull().status_code == 200
    shop.start_admin()
    b.wait_usage(pulls=8)
    assert b.usage()["pulls"] == 8


def test_a_report_that_is_late_takes_no_place_back(shop):
    """The admin stands while a pull is told and the installation is taken out; which of them it sees first is left to it."""
    b = Buyer(shop, "late", {"max_instances": 5})
    instances = lambda: shop.api.get(b.path + "/instances")["items"]  # noqa: E731
    for _ in range(5):
        wait_for("the installation", lambda: b.pull("one").status_code == 200 and instances(), 10, 0.3)
        path = f"/api/v1{b.path}/instances/{instances()[0]['fingerprint']}"
        pulls = b.usage()["pulls"]
        told = int(shop.redis.cmd("XINFO", "STREAM", "pg:events")[1])
        shop.admin.p.send_signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                assert b.pull("one").status_code == 200
            wait_for("the pulls to be told", lambda: int(shop.redis.cmd("XINFO", "STREAM", "pg:events")[1]) >= told + 3, 10)
            box = []
            t = threading.Thread(target=lambda: box.append(requests.delete(shop.api.base + path, headers={"Authorization": f"Bearer {shop.token}"}, timeout=60)))
            t.start()
        finally:
            shop.admin.p.send_signal(signal.SIGCONT)
        t.join()
        assert box[0].status_code == 204, box[0].text
        wait_for("the pulls to be counted", lambda: b.usage()["pulls"] >= pulls + 3, 10)
        assert instances() == []
