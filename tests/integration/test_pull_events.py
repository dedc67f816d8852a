"""One event for one logical pull, one for each denial with its reason; none for heads, platforms and blobs."""
import time

import pytest
import requests

from artifacts import push_multi
from clients import Skopeo, client
from stack import Stack, basic, wait_for


@pytest.fixture(scope="module")
def shop():
    s = Stack()
    images = {v: push_multi(s.registry, "acme/api", v) for v in ("1.0.0", "2.0.0")}
    up = s.add_upstream()
    app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
    c = s.add_customer("globex")
    secret = s.add_credential(c["id"])["secret"]
    lic = s.add_license(c["id"], app["id"], [{"selector": "range", "value": "^1.0"}])
    s.wait_status("/v2/", basic("globex", secret), 200)
    yield s, c, secret, images, lic
    s.close()


def pulls(s, **want):
    items = s.api.get("/pulls?limit=1000")["items"]
    return [i for i in items if all(i.get(k) == v for k, v in want.items())]


def test_a_pull_is_one_event(shop):
    s, c, secret, images, lic = shop
    with client(Skopeo, s.address, None, "globex", secret) as sk:
        assert sk.login().rc == 0
        before = len(pulls(s, decision="allow"))
        for n in range(1, 4):
            assert sk.pull("shop/api", "1.0.0", all_platforms=True).rc == 0
            wait_for(f"{n} pulls", lambda: len(pulls(s, decision="allow")) == before + n, 5)
        one = pulls(s, decision="allow")[0]
        assert (one["customer_id"], one["license_id"], one["repository"], one["reason"]) == (c["id"], lic["id"], "shop/api", "granted")
        assert one["digest"] == images["1.0.0"]["digest"] and "skopeo" in one["agent"] and one["client"] == "127.0.0.1"
    auth = basic("globex", secret)
    # what docker and containerd do: HEAD tag, GET index by digest, GET the platform, blobs: one logical pull
    child = images["1.0.0"]["children"][0]
    s.get("/v2/shop/api/manifests/1.0.0", auth, method="HEAD")
    s.get(f"/v2/shop/api/manifests/{images['1.0.0']['digest']}", auth)
    s.get(f"/v2/shop/api/manifests/{child['digest']}", auth)
    for d in (child["config"], *child["layers"]):
        s.get(f"/v2/shop/api/blobs/{d}", auth)
    wait_for("one more", lambda: len(pulls(s, decision="allow")) == before + 4, 5)
    time.sleep(0.3)  # nothing further may come: an absence has no condition to poll
    assert len(pulls(s, decision="allow")) == before + 4


def test_each_denial_is_one_event_with_its_reason(shop):
    s, c, secret, images, lic = shop
    auth = basic("globex", secret)
    s.get("/v2/shop/api/manifests/2.0.0", auth)
    s.get(f"/v2/shop/api/manifests/{images['2.0.0']['digest']}", auth)
    s.get("/v2/nobody/knows/manifests/1.0.0", auth)
    for reason in ("version_not_granted", "not_in_closure", "no_license"):
        wait_for(f"an event with {reason}", lambda: len(pulls(s, decision="deny", reason=reason)) == 1, 5)
    r = requests.get(s.admin_base + "/portal/v1/pulls", headers={"Authorization": auth})
    assert r.status_code == 200 and {i["reason"] for i in r.json()["items"]} >= {"granted", "version_not_granted"}


def test_last_use_is_kept(shop):
    s, c, secret, images, lic = shop
    wait_for("last_used_at", lambda: s.api.get(f"/customers/{c['id']}/credentials")["items"][0]["last_used_at"], 5)


def test_events_wait_for_redis(shop):
    """Redis away: pulls go on in the grace and their events come later."""
    s, c, secret, images, lic = shop
    auth = basic("globex", secret)
    for _ in range(12):
        s.get("/v2/shop/api/manifests/1.0.0", auth, method="HEAD", headers={"Connection": "close"})
    before = len(pulls(s, decision="allow"))
    s.redis.stop()
    assert s.get("/v2/shop/api/manifests/1.0.0", auth).status_code == 200
    s.redis.start()
    wait_for("the event", lambda: len(pulls(s, decision="allow")) == before + 1, 15)
