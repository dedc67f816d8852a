"""The portal lists what the registry serves, and the registry serves what the portal lists, for licenses drawn at random."""
import random

import pytest
from artifacts import push_multi
from stack import Stack, basic, requests, wait_for

TAGS = ["1.0.0", "1.0.1", "1.1.0", "1.2.0-rc.1", "2.0.0", "2.1.0", "3.0.0-beta.2", "2024.1-lts", "2024.2", "v1.3.0", "latest", "stable"]
REPOS = ["shop/api", "shop/worker"]


@pytest.fixture(scope="module")
def world():
    s = Stack(cache={"tag_freshness": "1s"})
    for repo in ("acme/api", "acme/worker"):
        for tag in TAGS:
            push_multi(s.registry, repo, tag, extra=repo.encode())
    up = s.add_upstream()
    s.app = s.add_application("shop", [(r, "acme/" + r.split("/")[1], "image") for r in REPOS], up["id"])
    for v, channel, released in (("2.0.0", "stable", "2024-01-01"), ("2.1.0", "edge", "2025-01-01"), ("1.1.0", "stable", "2023-01-01")):
        s.api("PUT", f"/applications/{s.app['id']}/versions/{v}", {"channel": channel, "released_at": released + "T00:00:00Z"}).raise_for_status()
    s.api.post(f"/applications/{s.app['id']}/sync", expect=200)
    yield s
    s.close()


def grant(rnd):
    g = rnd.choice([{"selector": "all", "value": "*"}, {"selector": "exact", "value": rnd.choice(TAGS)},
                    {"selector": "range", "value": rnd.choice(["^1.0", "~1.0.0", ">=1.1 <3", "1.x || 3", ">=2.0.0-0", "*"])},
                    {"selector": "glob", "value": rnd.choice(["2024.*", "*-lts", "1.?.0", "[vl]*"])}, {"selector": "channel", "value": rnd.choice(["stable", "edge"])}])
    if rnd.random() < 0.3:
        g["include_prerelease"] = True
    if rnd.random() < 0.3:
        g["repositories"] = [rnd.choice(REPOS)]
    if rnd.random() < 0.2:
        g[rnd.choice(["not_before", "not_after"])] = rnd.choice(["2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z"])
    if rnd.random() < 0.2:
        g["on_move"] = "pin"
    return g


def terms(rnd):
    t = {}
    if rnd.random() < 0.2:
        t["status"] = "inactive"
    if rnd.random() < 0.2:
        t["expires_at"] = rnd.choice(["2020-01-01", "2090-01-01"])
        t["on_expiry"] = rnd.choice(["block", "keep_released"])
    if rnd.random() < 0.2:
        t["updates_until"] = rnd.choice(["2023-06-01", "2090-01-01"])
    if rnd.random() < 0.2:
        t["allowed_cidrs"] = [rnd.choice(["127.0.0.0/8", "10.0.0.0/8"])]
    return t


def portal(s, auth):
    r = requests.get(s.admin_base + "/portal/v1/versions?limit=1000", headers={"Authorization": auth}, timeout=30)
    assert r.status_code == 200, r.text
    return {(a["repository"], a["tag"]): a["digest"] for i in r.json()["items"] for a in i["artifacts"]}


def gate(s, auth):
    got = {}
    for repo in REPOS:
        for tag in TAGS:
            r = s.get(f"/v2/{repo}/manifests/{tag}", auth, method="HEAD")
            assert r.status_code in (200, 403), (repo, tag, r.status_code)
            if r.status_code == 200:
                got[repo, tag] = r.headers["Docker-Content-Digest"]
    return got


@pytest.mark.parametrize("seed", range(12))
def test_listed_if_and_only_if_served(world, seed):
    rnd, s = random.Random(seed), world
    customer = s.add_customer(f"random-{seed}")
    ids = []
    for i in range(rnd.choice([1, 1, 2, 3])):
        ids.append(s.add_license(customer["id"], s.app["id"], [grant(rnd) for _ in range(rnd.choice([1, 1, 2]))], name=f"L{i}", **terms(rnd))["id"])
    bound = {"license_id": rnd.choice(ids)} if rnd.random() < 0.3 else {}
    auth = basic("x", s.add_credential(customer["id"], **bound)["secret"])
    s.wait_status("/v2/", auth, 200)
    listed = portal(s, auth)
    wait_for("both to agree", lambda: gate(s, auth) == listed, 5)


def test_moved_tag_of_a_pinning_grant(world):
    s = world
    old = push_multi(s.registry, "acme/api", "5.0.0", extra=b"old")
    s.api.post(f"/applications/{s.app['id']}/sync", expect=200)
    customer = s.add_customer("pin")
    s.add_license(customer["id"], s.app["id"], [{"selector": "exact", "value": "5.0.0", "on_move": "pin"}])
    auth = basic("x", s.add_credential(customer["id"])["secret"])
    s.wait_status("/v2/shop/api/manifests/5.0.0", auth, 200)
    push_multi(s.registry, "acme/api", "5.0.0", extra=b"new")
    s.api.post(f"/applications/{s.app['id']}/sync", expect=200)
    assert portal(s, auth)["shop/api", "5.0.0"] == old["digest"]
    assert s.wait_status(f"/v2/shop/api/manifests/{old['digest']}", auth, 200).headers["Docker-Content-Digest"] == old["digest"]
    by_tag = s.get("/v2/shop/api/manifests/5.0.0", auth)  # under the grant the tag still stands for what it stood for
    assert by_tag.status_code == 200 and by_tag.headers["Docker-Content-Digest"] == old["digest"]
