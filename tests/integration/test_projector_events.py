"""What the proxies report: believed with a right MAC only, stored once, acknowledged after."""
import hashlib
import hmac
import json
import time

import pytest
from stack import wait_for
from test_projector_facts import Scene


class Reporter:
    def __init__(self, scene):
        self.sc = scene

    def send(self, *events, mac=None):
        lines = "".join(json.dumps(e) + "\n" for e in events)
        mac = mac or hmac.new(self.sc.m.key, lines.encode(), hashlib.sha256).hexdigest()
        return self.sc.s.redis.cmd("XADD", "pg:events", "*", "b", lines, "m", mac)

    def pull(self, id, **kw):
        sc = self.sc
        vendor = sc.m.fact(sc.c)["vendor_id"]
        return {"e": "pull", "id": id, "t": int(time.time() * 1000), "vendor_id": vendor, "customer_id": sc.customer["id"],
                "credential_id": sc.credential["id"], "license_id": sc.license["id"], "application_id": sc.app["id"], "repository": "shop/api",
                "reference": "1.0.0", "tag": "1.0.0", "digest": "sha256:" + "1" * 64, "decision": "allow", "reason": "granted", "client": "10.1.2.3",
                "agent": "containerd/1.6.20", "proxy": "host:1", "method": "GET", "bytes": 0, **kw}

    def drained(self):
        pending = self.sc.s.redis.cmd("XPENDING", "pg:events", "admin")
        return pending[0] == 0 and self.sc.s.redis.cmd("XLEN", "pg:events") == 0


@pytest.fixture(scope="module")
def rep():
    scene = Scene()
    wait_for("the consumer group", lambda: scene.s.redis.cmd("XINFO", "GROUPS", "pg:events"))
    yield Reporter(scene)
    scene.s.close()


def pulls(rep):
    return rep.sc.s.api.get("/pulls?limit=1000")["items"]


def test_pulls_are_stored_once(rep):
    one = rep.pull("01AAA")
    rep.send(one, rep.pull("01BBB", decision="deny", reason="expired"))
    rep.send(one)  # the proxy was not sure that it had been heard
    wait_for("the pulls", lambda: len(pulls(rep)) == 2)
    wait_for("the acknowledgement", rep.drained)
    assert sorted((p["decision"], p["reason"]) for p in pulls(rep)) == [("allow", "granted"), ("deny", "expired")]
    lic = rep.sc.s.api.get(f"/licenses/{rep.sc.license['id']}")
    assert lic.get("last_used_at") or "last_used_at" not in lic


def test_wrong_mac_is_refused_and_does_not_block(rep):
    rep.send(rep.pull("01EVIL"), mac="0" * 64)
    rep.sc.s.redis.cmd("XADD", "pg:events", "*", "x", "y")
    rep.send(rep.pull("01GOOD"))
    wait_for("the good one", lambda: len(pulls(rep)) == 3)
    wait_for("the acknowledgement", rep.drained)
    assert len(pulls(rep)) == 3


def test_garbage_lines_do_not_block(rep):
    lines = 'not json\n{"e":"later","x":1}\n[]\n' + json.dumps(rep.pull("01MIXED")) + "\n"
    rep.sc.s.redis.cmd("XADD", "pg:events", "*", "b", lines, "m", hmac.new(rep.sc.m.key, lines.encode(), hashlib.sha256).hexdigest())
    wait_for("the good line", lambda: len(pulls(rep)) == 4)


def test_last_use_of_a_credential(rep):
    rep.send({"e": "used", "t": int(time.time() * 1000), "credential_id": rep.sc.credential["id"], "client": "10.9.8.7"})

    def used():
        items = rep.sc.s.api.get(f"/customers/{rep.sc.customer['id']}/credentials")["items"]
        return [c for c in items if c["id"] == rep.sc.credential["id"]][0]["last_used_at"]

    assert wait_for("the last use", used)


def test_reported_tag_is_known(rep):
    sc = rep.sc
    r = sc.m.fact("r:shop/api")
    d1, d2 = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    now = int(time.time() * 1000)
    tag = {"e": "tag", "repository_id": r["id"], "tag": "1.7.0", "media_type": "application/vnd.oci.image.index.v1+json", "size": 10}
    rep.send({**tag, "t": now - 20000, "digest": d1})
    digests = lambda: [d[0] for d in sc.m.fact("t:" + r["id"])["tags"].get("1.7.0", {"digests": []})["digests"]]
    wait_for("the tag", lambda: digests() == [d1])
    rep.send({**tag, "t": now - 10000, "digest": d2})
    wait_for("its move", lambda: digests() == [d1, d2])
    rep.send({**tag, "t": now - 20000, "digest": d1})  # replayed
    rep.send({**tag, "t": now, "repository_id": "rep_none", "digest": d1}, {**tag, "t": now, "digest": "sha256:short"})
    wait_for("the acknowledgement", rep.drained)
    assert digests() == [d1, d2]


def test_flushed_stream_is_made_anew(rep):
    n, event = len(pulls(rep)), rep.pull("01AFTERFLUSH")
    rep.sc.s.redis.cmd("FLUSHALL")
    rep.send(event)
    wait_for("the pull", lambda: len(pulls(rep)) == n + 1, 5)


def test_read_and_not_acknowledged_is_read_again(rep):
    """An entry that another life of the daemon read and died with."""
    s = rep.sc.s
    n = len(pulls(rep))
    s.admin.stop()
    rep.send(rep.pull("01PENDING"))
    s.redis.cmd("XREADGROUP", "GROUP", "admin", "admin", "COUNT", "10", "STREAMS", "pg:events", ">")
    assert s.redis.cmd("XPENDING", "pg:events", "admin")[0] == 1
    s.start_admin()
    wait_for("the pull", lambda: len(pulls(rep)) == n + 1, 5)
    wait_for("the acknowledgement", rep.drained)
