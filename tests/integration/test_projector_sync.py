"""The version sync: what upstreams hold becomes known, only what changed is written, and a failing upstream stops nothing else."""
import json
import sqlite3
import time

import pytest
from artifacts import push_chart
from stack import Stack, requests, wait_for
from test_projector_facts import Mirror


class SyncScene:
    def __init__(self, **admin):
        self.s = s = Stack(start=False, admin={"sync_interval": "1s", **admin})
        s.start_admin()
        self.m = Mirror(s)
        r = s.registry
        kids = [r.push_image("acme/api", None, [b"base" * 100, arch.encode() * 50], platform=("linux", arch)) for arch in ("amd64", "arm64")]
        self.index = r.push_index("acme/api", "1.0.0", kids, [("linux", "amd64"), ("linux", "arm64")])
        self.upstream = s.add_upstream()
        self.app = s.add_application("shop", [("shop/api", "acme/api", "image")], self.upstream["id"])
        self.repo = self.app["repositories"][0]["id"]

    def versions(self):
        return {v["version"]: v for v in self.s.api.get(f"/applications/{self.app['id']}/versions?limit=1000")["items"]}

    def sync(self, app=None):
        """Look upstream now; returns when what was found stands in Redis."""
        got = self.s.api.post(f"/applications/{(app or self.app)['id']}/sync", expect=200)
        epoch = self.sql("SELECT coalesce(max(epoch),0) FROM fact_epochs")[0][0]
        wait_for("the projection", lambda: self.m.root()[0] >= epoch)
        return got

    def tags(self):
        return self.m.fact("t:" + self.repo)["tags"]

    def sql(self, text, *args):
        db = sqlite3.connect(f"file:{self.s.dir}/pullgate.db?mode=ro", uri=True, timeout=10)
        try:
            return db.execute(text, args).fetchall()
        finally:
            db.close()


@pytest.fixture(scope="module")
def sy():
    scene = SyncScene()
    wait_for("the first version", lambda: "1.0.0" in scene.versions())
    yield scene
    scene.s.close()


def test_finds_versions_by_itself(sy):
    sy.s.registry.push_image("acme/api", "1.1.0", [b"later"])
    wait_for("the tag", lambda: "1.1.0" in sy.versions(), 5)
    v = sy.versions()["1.1.0"]
    assert v["source"] == "discovered" and v["first_seen_at"]
    assert v["artifacts"][0]["digest"].startswith("sha256:") and v["artifacts"][0]["platforms"] == ["linux/amd64"]  # of its configuration


def test_index_has_platforms_size_and_closure(sy):
    a = sy.versions()["1.0.0"]["artifacts"][0]
    assert a["digest"] == sy.index["digest"] and a["platforms"] == ["linux/amd64", "linux/arm64"]
    kids = sy.index["children"]
    blobs = {d: n for d, n in sy.sql("SELECT digest, size FROM closure_nodes WHERE root_digest=? AND kind='b'", sy.index["digest"])}
    assert a["size_bytes"] == sy.index["size"] + kids[0]["size"] + kids[1]["size"] + sum(blobs.values())  # the shared layer once
    nodes = {(k, d) for k, d in sy.sql("SELECT kind, digest FROM closure_nodes WHERE root_digest=?", sy.index["digest"])}
    want = {("m", sy.index["digest"])} | {("m", k["digest"]) for k in kids} | {("b", k["config"]) for k in kids} | {("b", x) for k in kids for x in k["layers"]}
    assert nodes == want


def test_closure_stands_in_redis_signed(sy):
    key = f"pg:m:{sy.repo}:{sy.index['digest']}"
    wait_for("the closure", lambda: sy.s.redis.cmd("EXISTS", key))
    epoch, payload = sy.m.unwrap(key)
    lines = payload.splitlines()
    assert epoch == 0 and abs(int(lines[0]) - time.time()) < 600
    assert lines[1].startswith(f"m {sy.index['digest']} application/vnd.oci.image.index.v1+json ")
    assert len(lines) == 1 + len(sy.sql("SELECT 1 FROM closure_nodes WHERE root_digest=?", sy.index["digest"]))
    sy.s.redis.cmd("DEL", key)  # lost: the next round sees it
    wait_for("its return", lambda: sy.s.redis.cmd("EXISTS", key), 5)
    assert sy.m.unwrap(key)[1].splitlines()[1:2] == lines[1:2]


def test_nothing_changed_means_nothing_written(sy):
    sy.sync()
    root, seen = sy.m.root(), sy.s.registry.requests_seen()
    wait_for("two more rounds", lambda: sy.s.registry.requests_seen() > seen + 6, 10)
    assert sy.m.root()[0] == root[0]


def test_moved_tag_has_a_history(sy):
    old = sy.s.registry.push_image("acme/api", "1.2.0", [b"first"])
    sy.sync()
    assert [d[0] for d in sy.tags()["1.2.0"]["digests"]] == [old["digest"]]
    new = sy.s.registry.push_image("acme/api", "1.2.0", [b"second"])
    sy.sync()
    wait_for("the fact", lambda: len(sy.tags()["1.2.0"]["digests"]) == 2)
    (d1, f1, l1), (d2, f2, l2) = sy.tags()["1.2.0"]["digests"]
    assert (d1, d2) == (old["digest"], new["digest"]) and l1 >= f1 and l2 == 0
    assert sy.versions()["1.2.0"]["artifacts"][0]["digest"] == new["digest"]


def test_removed_tag_is_marked(sy):
    img = sy.s.registry.push_image("acme/api", "1.3.0", [b"going"])
    sy.sync()
    assert "1.3.0" in sy.tags()
    r = requests.delete(f"{sy.s.registry.url}/v2/acme/api/manifests/{img['digest']}", auth=sy.s.registry.auth)
    assert r.status_code == 202
    sy.sync()
    wait_for("the end", lambda: sy.tags()["1.3.0"]["digests"][-1][2] > 0)


def test_signatures_are_no_versions(sy):
    tag = sy.index["digest"].replace(":", "-") + ".sig"
    sy.s.registry.push_image("acme/api", tag, [b"signature"])
    sy.s.registry.push_image("acme/api", "1.4.0", [b"after it"])
    sy.sync()
    assert "1.4.0" in sy.versions() and tag not in sy.versions() and tag not in sy.tags()


def test_release_date_of_the_image_and_of_the_vendor(sy):
    created = {"org.opencontainers.image.created": "2024-05-06T07:08:09Z"}
    sy.s.registry.push_image("acme/api", "1.5.0", [b"dated"], annotations=created)
    sy.s.registry.push_image("acme/api", "1.6.0", [b"dated too"], annotations={"org.opencontainers.image.created": "1970-01-01T00:00:00Z"})
    sy.s.registry.push_image("acme/api", "1.7.0", [b"dated three"], annotations={"org.opencontainers.image.created": "2999-01-01T00:00:00Z"})
    sy.s.api("PUT", f"/applications/{sy.app['id']}/versions/1.8.0", {"released_at": "2020-01-01T00:00:00Z", "channel": "stable"}).raise_for_status()
    sy.s.registry.push_image("acme/api", "1.8.0", [b"dated four"], annotations=created)
    sy.sync()
    v = sy.versions()
    assert v["1.5.0"]["released_at"] == "2024-05-06T07:08:09Z"
    assert v["1.6.0"]["released_at"] == v["1.6.0"]["first_seen_at"]  # a placeholder of a build tool
    assert v["1.7.0"]["released_at"] == v["1.7.0"]["first_seen_at"]  # nothing is released after it was seen
    assert v["1.8.0"]["released_at"] == "2020-01-01T00:00:00Z" and v["1.8.0"]["source"] == "record"
    t = wait_for("the fact", lambda: sy.tags().get("1.8.0"))
    assert t["channel"] == "stable" and t["released_at"] == 1577836800


def test_chart_with_build_metadata(sy):
    push_chart(sy.s.registry, "acme/chart", "shop", "2.0.0+build.7")
    app = sy.s.add_application("charts", [("shop/chart", "acme/chart", "chart")], sy.upstream["id"])
    sy.sync(app)
    items = sy.s.api.get(f"/applications/{app['id']}/versions")["items"]
    assert [(v["version"], v["artifacts"][0]["tag"]) for v in items] == [("2.0.0+build.7", "2.0.0_build.7")]


def test_template(sy):
    sy.s.registry.push_image("acme/worker", "worker-v3.1.0", [b"w"])
    sy.s.registry.push_image("acme/worker", "latest", [b"w2"])
    app = sy.s.add_application("worker", [{"name": "shop/worker", "upstream_id": sy.upstream["id"], "upstream_repository": "acme/worker", "kind": "image",
                                           "tag_template": "worker-v{version}"}], sy.upstream["id"])
    sy.sync(app)
    assert [v["version"] for v in sy.s.api.get(f"/applications/{app['id']}/versions")["items"]] == ["3.1.0"]
    tags = sy.m.fact("t:" + app["repositories"][0]["id"])["tags"]
    assert tags["worker-v3.1.0"]["version"] == "3.1.0" and tags["latest"]["version"] == ""


def test_many_tags(sy):
    r = sy.s.registry
    img = r.push_image("acme/many", "0.0.0", [b"m"])
    doc = requests.get(f"{r.url}/v2/acme/many/manifests/0.0.0", auth=r.auth, headers={"Accept": img["media_type"]}).content
    for i in range(1, 260):
        r.push_manifest("acme/many", f"0.0.{i}", doc, img["media_type"])
    app = sy.s.add_application("many", [("shop/many", "acme/many", "image")], sy.upstream["id"])
    wait_for("all of them", lambda: len(sy.s.api.get(f"/applications/{app['id']}/versions?limit=1000")["items"]) == 260, 20)
    moved = r.push_image("acme/many", "0.0.7", [b"moved"])  # beyond 200 tags each round looks at a part: found within a few rounds
    repo = app["repositories"][0]["id"]
    wait_for("the move", lambda: sy.m.fact("t:" + repo)["tags"]["0.0.7"]["digests"][-1][0] == moved["digest"], 15)


def test_errors_are_kept_without_secrets(sy):
    up = sy.s.add_upstream(name="wrong", password="not-the-password-" + "x" * 20)
    app = sy.s.add_application("refused", [("shop/refused", "acme/api", "image")], up["id"])
    got = sy.sync(app)["repositories"][0]
    assert got["sync_error"] and got["synced_at"] is None
    assert "not-the-password" not in json.dumps(got) and "not-the-password" not in sy.s.admin.text()
    gone = sy.s.add_upstream(name="gone", url="http://127.0.0.1:1")
    app2 = sy.s.add_application("unreached", [("shop/unreached", "acme/api", "image")], gone["id"])
    assert sy.sync(app2)["repositories"][0]["sync_error"]
    sy.s.registry.push_image("acme/api", "1.9.0", [b"others go on"])
    wait_for("the others", lambda: "1.9.0" in sy.versions(), 5)
    # mended: the error goes away
    sy.s.api("PATCH", f"/upstreams/{up['id']}", {"username": sy.s.registry.user, "password": sy.s.registry.password}, 200)
    got = sy.sync(app)["repositories"][0]
    assert got["sync_error"] == "" and got["synced_at"]


def test_upstream_away_keeps_what_is_known(sy):
    before = sy.tags()
    sy.s.registry.stop()
    sy.sync()
    assert sy.tags() == before
    sy.s.registry.start()
    sy.s.registry.push_image("acme/api", "1.10.0", [b"back"])
    wait_for("its return", lambda: sy.sync() and "1.10.0" in sy.versions(), 30)


def test_pin_binds_to_what_the_tag_stood_for(sy):
    first = sy.s.registry.push_image("acme/api", "3.0.0", [b"pinned"])
    sy.sync()
    customer = sy.s.add_customer("pinner")
    lic = sy.s.add_license(customer["id"], sy.app["id"], [{"selector": "exact", "value": "3.0.0", "on_move": "pin"}, {"selector": "exact", "value": "3.1.0", "on_move": "pin"}])
    fact = lambda: sy.m.fact("c:" + customer["id"])
    wait_for("the pin", lambda: fact() and fact()["licenses"][0]["grants"][0]["pins"] == [{"repository": "shop/api", "tag": "3.0.0", "digest": first["digest"]}])
    sy.s.registry.push_image("acme/api", "3.0.0", [b"moved away"])
    second = sy.s.registry.push_image("acme/api", "3.1.0", [b"pinned when seen"])
    sy.sync()
    wait_for("the second pin", lambda: fact()["licenses"][0]["grants"][1]["pins"] == [{"repository": "shop/api", "tag": "3.1.0", "digest": second["digest"]}])
    assert fact()["licenses"][0]["grants"][0]["pins"][0]["digest"] == first["digest"]
    assert lic["id"]


def test_stop_in_the_middle(sy):
    """SIGTERM while rounds run: a clean exit, and nothing half written."""
    sy.s.api("POST", f"/applications/{sy.app['id']}/sync", {}, None)
    assert sy.s.admin.stop() == 0
    sy.s.start_admin()
    wait_for("the versions", lambda: "1.0.0" in sy.versions())
