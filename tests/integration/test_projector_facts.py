"""What stands in Redis after an edit: verified here with the keys of the deployment, by code that shares nothing with the daemons."""
import hashlib
import hmac
import json
import re
import time

import pytest
from stack import Stack, basic, requests, wait_for


class Mirror:
    """Reads the projection as docs/REDIS.md states it."""

    def __init__(self, stack):
        self.s = stack
        self.key = bytes.fromhex((stack.dir / "keys" / "mac.key").read_text().strip())
        self.pepper = bytes.fromhex((stack.dir / "keys" / "pepper.key").read_text().strip())

    def unwrap(self, redis_key, value=None):
        """(epoch, payload) of a well-formed value with a right MAC; None when there is no value."""
        if value is None:
            value = self.s.redis.cmd("GET", redis_key)
        if value is None:
            return None
        m = re.fullmatch(rb"1 ([1-9][0-9]*|0) ([0-9a-f]{64}) (.*)", value, re.S)
        assert m, f"{redis_key}: {value[:200]!r}"
        want = hmac.new(self.key, redis_key.encode() + b"\n" + m[1] + b"\n" + m[3], hashlib.sha256).hexdigest().encode()
        assert hmac.compare_digest(m[2], want), f"wrong MAC at {redis_key}"
        return int(m[1]), m[3].decode()

    def wrap(self, redis_key, epoch, payload):
        mac = hmac.new(self.key, f"{redis_key}\n{epoch}\n{payload}".encode(), hashlib.sha256).hexdigest()
        return f"1 {epoch} {mac} {payload}"

    def root(self):
        got = self.unwrap("pg:root")
        return got and (got[0], json.loads(got[1]))

    @staticmethod
    def bucket_of(fact):
        h = hashlib.sha256(fact.encode()).digest()
        return h[0] << 2 | h[1] >> 6

    def bucket(self, n):
        """(epoch, {fact: epoch})"""
        epoch, text = self.unwrap(f"pg:b:{n}")
        lines = text.splitlines()
        facts = [line.split(" ", 1)[1] for line in lines]
        assert facts == sorted(facts)
        assert all(self.bucket_of(f) == n for f in facts)
        return epoch, {line.split(" ", 1)[1]: int(line.split(" ", 1)[0]) for line in lines}

    def fact(self, name):
        """The payload when everything a proxy checks is right; None when the bucket says that it does not exist."""
        root = self.root()
        n = self.bucket_of(name)
        epoch, facts = self.bucket(n)
        assert epoch == root[1]["buckets"][n], "the bucket is not as new as the root says"
        if name not in facts:
            assert self.s.redis.cmd("EXISTS", "pg:v:" + name) == 0, f"{name} lingers"
            return None
        got = self.unwrap("pg:v:" + name)
        assert got, f"{name} is named and has no value"
        assert got[0] == facts[name]
        return json.loads(got[1])

    def credential_fact(self, secret):
        return "k:" + hmac.new(self.pepper, secret.encode(), hashlib.sha256).hexdigest()

    def everything(self):
        """All facts; every bucket and value there is must be right. Read anew when something was written meanwhile (a sync)."""
        while True:
            before = self.root()[0]
            try:
                return self._everything()
            except AssertionError:
                if self.root()[0] == before:
                    raise

    def _everything(self):
        root = self.root()
        named = {}
        for n in range(1024):
            epoch, facts = self.bucket(n)
            assert epoch == root[1]["buckets"][n] <= root[0]
            named.update(facts)
        values = {k.decode() for k in self.s.redis.cmd("KEYS", "pg:v:*")}
        assert values == {"pg:v:" + f for f in named}
        return {f: json.loads(self.unwrap("pg:v:" + f)[1]) for f in named}


class Scene:
    def __init__(self):
        self.s = s = Stack(start=False)
        s.start_admin()
        s.registry.push_image("acme/api", "1.0.0", [b"layer"])
        self.upstream = s.add_upstream()
        self.app = s.add_application("shop", [("shop/api", "acme/api", "image")], self.upstream["id"])
        self.customer = s.add_customer("globex")
        self.credential = s.add_credential(self.customer["id"])
        self.license = s.add_license(self.customer["id"], self.app["id"], [{"selector": "range", "value": "^1.0"}], name="Globex Prod")
        self.m = Mirror(s)
        self.k = self.m.credential_fact(self.credential["secret"])
        self.c = "c:" + self.customer["id"]
        wait_for("the facts", lambda: self.m.fact(self.c) and self.m.fact(self.k))

    def ready(self):
        return requests.get(self.s.admin_base + "/readyz", timeout=5).json()


@pytest.fixture(scope="module")
def sc():
    scene = Scene()
    yield scene
    scene.s.close()


def test_facts_have_the_documented_form(sc):
    k = sc.m.fact(sc.k)
    assert k == {"id": sc.credential["id"], "kind": "credential", "customer_id": sc.customer["id"], "customer_slug": "globex", "vendor_id": k["vendor_id"],
                 "license_id": "", "name": "ci", "expires_at": 0, "allowed_cidrs": []}
    key = sc.m.fact(sc.m.credential_fact(sc.license["key"]))
    assert (key["kind"], key["license_id"], key["id"]) == ("license_key", sc.license["id"], sc.license["id"])
    c = sc.m.fact(sc.c)
    assert c["customer_slug"] == "globex" and not c["disabled"] and c["renew_url"] == "https://vendor.example/renew"
    (lic,) = c["licenses"]
    assert (lic["id"], lic["status"], lic["application_slug"], lic["repositories"]) == (sc.license["id"], "active", "shop", ["shop/api"])
    (grant,) = lic["grants"]
    assert (grant["selector"], grant["value"], grant["on_move"], grant["pins"]) == ("range", "^1.0", "follow", [])
    r = sc.m.fact("r:shop/api")
    assert (r["upstream_repository"], r["kind"], r["tag_template"], r["upstream_id"]) == ("acme/api", "image", "{version}", sc.upstream["id"])
    u = sc.m.fact("u:" + sc.upstream["id"])
    assert u["url"] == sc.s.registry.url and u["password_sealed"] and sc.s.registry.password not in json.dumps(u)
    assert sc.m.fact("t:" + r["id"])["repository_id"] == r["id"]
    assert sc.m.fact("c:cus_none") is None


def test_no_secret_stands_in_redis(sc):
    dump = b"".join(sc.s.redis.cmd("GET", k) for k in sc.s.redis.cmd("KEYS", "pg:[vb]:*"))
    for secret in (sc.credential["secret"], sc.license["key"], sc.s.registry.password, sc.s.token):
        assert secret.encode() not in dump


def test_everything_named_is_there_and_nothing_else(sc):
    facts = sc.m.everything()
    assert {f.split(":")[0] for f in facts} == {"k", "c", "r", "t", "u"}


def test_root_is_renewed_without_changes(sc):
    def renewed():  # what earlier tests began may still write: until a second passes without
        first = sc.m.root()
        second = wait_for("a younger root", lambda: (sc.m.root()[1]["time"] > first[1]["time"]) and sc.m.root(), 3)
        return second if second[0] == first[0] and second[1]["buckets"] == first[1]["buckets"] else None

    second = wait_for("a root that is younger and else the same", renewed, 10)
    assert abs(second[1]["time"] / 1000 - time.time()) < 5


def test_revoked_credential_is_gone_within_100_ms(sc):
    took = []
    for i in range(5):
        cred = sc.s.add_credential(sc.customer["id"], name=f"short {i}")
        name = sc.m.credential_fact(cred["secret"])
        wait_for("the credential", lambda: sc.m.fact(name))
        sc.s.api("DELETE", f"/customers/{sc.customer['id']}/credentials/{cred['id']}", None, None).raise_for_status()
        start = time.monotonic()
        wait_for("its end", lambda: sc.s.redis.cmd("EXISTS", "pg:v:" + name) == 0, 2, interval=0.001)
        took.append(time.monotonic() - start)
        assert sc.m.fact(name) is None
    assert min(took) < 0.1, took


def test_edit_changes_exactly_its_facts(sc):
    before, root = sc.m.everything(), sc.m.root()
    sc.s.api("PATCH", f"/licenses/{sc.license['id']}", {"name": "Globex Production"}, 200)
    wait_for("the edit", lambda: sc.m.fact(sc.c)["licenses"][0]["name"] == "Globex Production")
    after, now = sc.m.everything(), sc.m.root()
    assert now[0] > root[0]
    assert {f for f in after if after[f] != before.get(f)} == {sc.c}
    moved = [n for n in range(1024) if root[1]["buckets"][n] != now[1]["buckets"][n]]
    assert sc.m.bucket_of(sc.c) in moved and len(moved) == 1


def test_disabled_customer(sc):
    customer = sc.s.add_customer("vanish")
    wait_for("the customer", lambda: sc.m.fact("c:" + customer["id"]))
    sc.s.api("PATCH", f"/customers/{customer['id']}", {"disabled": True}, 200)
    wait_for("the entitlement to say so", lambda: sc.m.fact("c:" + customer["id"])["disabled"] is True)
    sc.s.api("PATCH", f"/customers/{customer['id']}", {"disabled": False}, 200)
    wait_for("its return", lambda: sc.m.fact("c:" + customer["id"])["disabled"] is False)


def test_rows_changed_past_the_outbox_get_another_epoch(sc):
    """An operator's hand in the store, or a newer program's other words: the proxies look at epochs alone."""
    import sqlite3
    epoch = sc.m.root()[0]
    with sqlite3.connect(f"file:{sc.s.dir}/pullgate.db?mode=rw", uri=True, timeout=10) as db:
        db.execute("UPDATE customers SET slug='globex-renamed' WHERE id=?", (sc.customer["id"],))
    db.close()
    wait_for("the slug", lambda: sc.m.fact(sc.c)["customer_slug"] == "globex-renamed" and sc.m.fact(sc.k)["customer_slug"] == "globex-renamed", 20)
    assert sc.m.root()[0] > epoch


def test_archived_license_takes_its_key_along(sc):
    lic = sc.s.add_license(sc.customer["id"], sc.app["id"], name="to be archived")
    name = sc.m.credential_fact(lic["key"])
    wait_for("the key", lambda: sc.m.fact(name))
    sc.s.api("DELETE", f"/licenses/{lic['id']}", None, None).raise_for_status()
    wait_for("its end", lambda: sc.m.fact(name) is None)
    assert lic["id"] not in [x["id"] for x in sc.m.fact(sc.c)["licenses"]]


def test_flushall_is_repaired_within_2_s(sc):
    before, root = sc.m.everything(), sc.m.root()
    sc.s.redis.cmd("FLUSHALL")
    start = time.monotonic()
    wait_for("the root", lambda: sc.m.root(), 2)
    assert time.monotonic() - start < 2 * 1.0 + 0.5
    assert sc.m.everything() == before
    assert sc.m.root()[0] == root[0] and sc.m.root()[1]["buckets"] == root[1]["buckets"]


def test_edit_right_after_flushall_is_not_lost(sc):
    sc.s.redis.cmd("FLUSHALL")
    sc.s.api("PATCH", f"/licenses/{sc.license['id']}", {"name": "After the flood"}, 200)
    wait_for("the edit", lambda: sc.m.root() and sc.m.fact(sc.c)["licenses"][0]["name"] == "After the flood", 3)
    sc.m.everything()


def test_strays_and_foreign_values_do_not_linger(sc):
    before = sc.m.everything()
    sc.s.redis.cmd("SET", "pg:v:c:cus_old", "old")
    sc.s.redis.cmd("SET", "pg:b:4711", "old")
    sc.s.redis.cmd("SET", "pg:root", sc.m.wrap("pg:root", 1, json.dumps({"time": 1, "buckets": [0] * 1024})))  # an old root of ours
    wait_for("the strays to go", lambda: not sc.s.redis.cmd("EXISTS", "pg:v:c:cus_old") and not sc.s.redis.cmd("EXISTS", "pg:b:4711"), 5)
    assert sc.m.everything() == before


def test_root_of_a_stranger_is_replaced(sc):
    root = sc.m.root()
    sc.s.redis.cmd("SET", "pg:root", "1 999999 " + "0" * 64 + " {}")
    wait_for("our root", lambda: b"999999" not in sc.s.redis.cmd("GET", "pg:root")[:12], 3)
    assert sc.m.root()[0] == root[0]


def test_lost_value_comes_back(sc):
    sc.s.redis.cmd("DEL", "pg:v:r:shop/api")
    wait_for("the value", lambda: sc.s.redis.cmd("EXISTS", "pg:v:r:shop/api"), 15)
    assert sc.m.fact("r:shop/api")


def test_redis_restart(sc):
    before = sc.m.everything()
    sc.s.redis.stop()
    wait_for("readyz to know", lambda: sc.ready()["redis"] is False, 5)
    sc.s.api("PATCH", f"/licenses/{sc.license['id']}", {"name": "While Redis was away"}, 200)  # no edit waits for Redis
    assert wait_for("the lag", lambda: sc.ready()["projection_lag"] > 0, 5)
    sc.s.redis.start()
    wait_for("the root", lambda: sc.m.root(), 5)
    after = sc.m.everything()
    assert after.keys() == before.keys()
    assert after[sc.c]["licenses"][0]["name"] == "While Redis was away"
    wait_for("readyz", lambda: sc.ready()["redis"] and sc.ready()["in_sync"] and sc.ready()["projection_lag"] == 0, 5)
    assert sc.s.admin.text().count("trying again") < 20, "a log line for every attempt"


def test_admin_restart_takes_over_or_repairs(sc):
    before, root = sc.m.everything(), sc.m.root()
    sc.s.admin.stop()
    sc.s.redis.cmd("DEL", "pg:v:" + sc.c)  # lost while nobody looked
    sc.s.start_admin()
    wait_for("a younger root", lambda: sc.m.root()[1]["time"] > root[1]["time"])
    wait_for("the lost value", lambda: sc.s.redis.cmd("EXISTS", "pg:v:" + sc.c), 10)
    assert sc.m.everything() == before
    assert sc.m.root()[0] == root[0]


def test_restored_store_counts_on_from_what_the_proxies_saw(sc):
    before, root = sc.m.everything(), sc.m.root()
    sc.s.admin.stop()
    newer = root[0] + 1000
    sc.s.redis.cmd("SET", "pg:root", sc.m.wrap("pg:root", newer, json.dumps({"time": int(time.time() * 1000), "buckets": root[1]["buckets"]})))
    sc.s.start_admin()
    wait_for("a root beyond", lambda: sc.m.root()[0] > newer)
    assert sc.m.everything() == before
    sc.s.api("PATCH", f"/licenses/{sc.license['id']}", {"name": "After the restore"}, 200)
    wait_for("an edit", lambda: sc.m.fact(sc.c)["licenses"][0]["name"] == "After the restore")
    assert sc.m.root()[0] > newer + 1
