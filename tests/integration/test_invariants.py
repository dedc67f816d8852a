"""SECURITY's invariants I1 to I19 against the running stack, each by its own test."""
import hashlib
import itertools
import json
import random
import signal
import statistics
import time

import pytest
import requests

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SLOW, basic, wait_for

INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def w():
    up = ScriptedUpstream()
    world = World(upstream=up, limits={"auth_failures_per_minute": 1000000})
    world.up = up
    # a version whose only difference is shared with nobody, a signature, and a referrer of a granted image
    v = world.images["1.0.0"]
    up.push_image("acme/api", f"sha256-{v['digest'][7:]}.sig", [b"signature of 1.0.0"])
    doc = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/spdx+json",
           "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": up.push_blob("acme/api", b"{}"), "size": 2},
           "layers": [{"mediaType": "application/spdx+json", "digest": up.push_blob("acme/api", b"sbom of 1.0.0"), "size": 13}],
           "subject": {"mediaType": INDEX, "digest": v["digest"], "size": v["size"]}}
    world.sbom = up.push_manifest("acme/api", None, doc, doc["mediaType"])
    world.sbom_blob = doc["layers"][0]["digest"]
    yield world
    world.s.close()
    up.stop()


def closure(up, repo, digest):
    """{(kind, digest)} reached from a manifest, by the documents themselves: the oracle."""
    out, todo = set(), [digest]
    while todo:
        d = todo.pop()
        if ("manifests", d) in out:
            continue
        out.add(("manifests", d))
        doc = json.loads(up.manifests[repo, d][0])
        todo += [m["digest"] for m in doc.get("manifests", [])]
        for b in [doc.get("config"), *doc.get("layers", [])]:
            if b:
                out.add(("blobs", b["digest"]))
    return out


def granted(w, versions):
    return set().union(*(closure(w.up, "acme/api", w.images[v]["digest"]) for v in versions)) if versions else set()


def everything(w):
    """Every digest that the upstream holds anywhere, as both kinds."""
    digests = {d for _, d in itertools.chain(w.up.blobs, w.up.manifests)}
    return sorted((k, d) for d in digests for k in ("manifests", "blobs"))


def reachable(w, auth, repo="shop/api", only=None):
    got = set()
    with requests.Session() as s:
        s.headers["Authorization"] = auth
        for kind, d in only or everything(w):
            r = s.get(f"{w.s.base}/v2/{repo}/{kind}/{d}", timeout=30)
            assert r.status_code in (200, 403, 404), (kind, d, r.status_code, r.text)
            if r.status_code == 200:
                assert "sha256:" + hashlib.sha256(r.content).hexdigest() == d
                got.add((kind, d))
    return got


def no_attachments(w, found):
    """Without what hangs on a granted image: referrers and signatures are allowed, not part of the oracle."""
    extra = {w.sbom, w.sbom_blob, *(d for (r, t), d in w.up.tags.items() if t.startswith("sha256-"))}
    for d in list(extra):
        if ("acme/api", d) in w.up.manifests:
            extra |= {x for _, x in closure(w.up, "acme/api", d)}
    return {(k, d) for k, d in found if d not in extra}


@pytest.mark.parametrize("versions,grants", [
    (["1.0.0"], [{"selector": "exact", "value": "1.0.0"}]),
    (["1.1.0"], [{"selector": "range", "value": "~1.1"}]),
    (["1.0.0", "1.1.0"], [{"selector": "range", "value": "^1"}]),
    (["2.0.0"], [{"selector": "glob", "value": "2.*"}]),
    (["1.0.0", "1.1.0", "2.0.0"], [{"selector": "all", "value": "*"}]),
    ([], [{"selector": "exact", "value": "9.9.9"}]),
])
def test_i01_soundness(w, versions, grants):
    auth, _, _ = w.customer_with(f"i1-{random.randrange(10**9)}", grants)
    w.s.wait_status("/v2/", auth, 200)
    assert no_attachments(w, reachable(w, auth)) <= granted(w, versions)


def test_i02_completeness(w):
    for versions, grant in ((["1.0.0", "1.1.0"], {"selector": "range", "value": "^1.0"}), (["2.0.0"], {"selector": "exact", "value": "2.0.0"})):
        auth, _, _ = w.customer_with(f"i2-{versions[0].replace('.', '-')}", [grant])
        w.s.wait_status("/v2/", auth, 200)
        want = granted(w, versions)
        # blobs first: a proxy that was not asked for the manifest before must find them too
        assert reachable(w, auth, only=sorted(want)) == want
    for path in (f"manifests/{w.sbom}", f"blobs/{w.sbom_blob}", f"manifests/sha256-{w.images['1.0.0']['digest'][7:]}.sig"):
        assert w.get("/v2/shop/api/" + path).status_code == 200, path
    refs = w.get(f"/v2/shop/api/referrers/{w.images['1.0.0']['digest']}")
    assert w.sbom in [m["digest"] for m in refs.json()["manifests"]]


def test_i03_union_is_order_free(w):
    rng = random.Random(3)
    c = w.s.add_customer("i3")
    auth = basic("i3", w.s.add_credential(c["id"])["secret"])
    lic = w.s.add_license(c["id"], w.app["id"], [{"selector": "exact", "value": "0.0.0"}], name="i3")
    held = {}
    for _ in range(6):
        v = rng.choice(["1.0.0", "1.1.0", "2.0.0"])
        if v in held:
            w.s.api("DELETE", f"/licenses/{lic['id']}/grants/{held.pop(v)}", {"reason": "test"}, expect=None)
        else:
            got = w.s.api.post(f"/licenses/{lic['id']}/grants", {"selector": "exact", "value": v}, expect=None)
            held[v] = next(g["id"] for g in w.s.api.get(f"/licenses/{lic['id']}")["grants"] if g["value"] == v)
            assert got
        want = granted(w, list(held))
        probes = sorted(set().union(*(granted(w, [x]) for x in ("1.0.0", "1.1.0", "2.0.0"))))
        wait_for(f"exactly {sorted(held)}", lambda: reachable(w, auth, only=probes) == want, 5, 0.05)


def test_i04_path_independence(w):
    for kind, d in sorted(granted(w, ["1.0.0"])):
        assert w.get(f"/v2/other/app/{kind}/{d}").status_code == 403
    assert w.get(f"/v2/shop/api/manifests/{w.other['digest']}").status_code == 404
    # the base layer is in both: granted here, denied there
    shared = w.other["layers"][1]
    assert w.get(f"/v2/shop/api/blobs/{shared}").status_code == 200
    assert w.get(f"/v2/other/app/blobs/{shared}").status_code == 403


def test_i04_what_is_granted_by_digest_is_where_it_is(w):
    """The granted digest is in one repository of the application; the other has a layer of it. Whatever was pulled before, the digest
    leads nowhere in the other."""
    image = w.up.push_image("acme/second", "1.0.0", [w.base_layer, b"only in the second"])
    app = w.s.add_application("pair", [("pair/first", "acme/api", "image"), ("pair/second", "acme/second", "image")], w.upstream["id"])
    auth, _, _ = w.customer_with("pair", [{"selector": "digest", "value": image["digest"]}], app=app)
    base = image["layers"][0]
    w.s.wait_status(f"/v2/pair/second/manifests/{image['digest']}", auth, 200)
    for _ in range(8):  # every worker has the manifest in memory
        for path in (f"manifests/{image['digest']}", f"blobs/{base}"):
            assert w.s.get(f"/v2/pair/second/{path}", auth).status_code == 200
            assert w.s.get(f"/v2/pair/first/{path}", auth).status_code == 404, path
    assert w.get(f"/v2/shop/api/blobs/{base}").status_code == 200, "it is in there"


def test_i05_kind(w):
    for kind, d in sorted(granted(w, ["1.0.0", "1.1.0"])):
        other = "blobs" if kind == "manifests" else "manifests"
        assert w.get(f"/v2/shop/api/{other}/{d}").status_code == 404, (other, d)


def test_i06_tag_is_digest(w):
    for v in ("1.0.0", "1.1.0"):
        a, b = w.get(f"/v2/shop/api/manifests/{v}"), w.get(f"/v2/shop/api/manifests/{w.images[v]['digest']}")
        drop = ("Date", "X-Request-Id")
        assert (a.status_code, a.content) == (b.status_code, b.content)
        assert {k: x for k, x in a.headers.items() if k not in drop} == {k: x for k, x in b.headers.items() if k not in drop}


def test_i07_integrity(w):
    up = w.up
    data = b"x" * 300000
    image = up.push_image("acme/api", "1.7.0", [data])
    layer = image["layers"][0]

    def wrong(h):
        if layer in h.path and h.command == "GET":
            h.reply(200, b"y" * len(data), {"Docker-Content-Digest": layer})
            return True
        return False

    def truncated(h):
        if layer in h.path and h.command == "GET":
            h.reply(200, data[:200000], {"Content-Length": str(len(data)), "Docker-Content-Digest": layer})
            h.close_connection = True
            return True
        return False

    def wrong_manifest(h):
        if h.path.endswith(image["digest"]) and h.command == "GET":
            h.reply(200, b'{"schemaVersion":2}', {"Docker-Content-Digest": image["digest"], "Content-Type": image["media_type"]})
            return True
        return False

    for rule in (wrong, truncated):
        up.rules.append(rule)
        try:
            r = w.s.get(f"/v2/shop/api/blobs/{layer}", w.auth, stream=True)
            try:
                body = r.content
                assert r.status_code != 200 or hashlib.sha256(body).hexdigest() == layer[7:], f"{rule.__name__}: a whole-looking wrong body"
            except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError):
                pass  # visibly broken
        finally:
            up.rules.remove(rule)
    up.rules.append(wrong_manifest)
    try:
        r = w.get("/v2/shop/api/manifests/1.7.0")
        assert r.status_code == 502 or hashlib.sha256(r.content).hexdigest() == image["digest"][7:]
    finally:
        up.rules.remove(wrong_manifest)
    r = w.get(f"/v2/shop/api/blobs/{layer}")
    assert (r.status_code, r.content) == (200, data)


def test_i08_head_is_get_without_body(w):
    up, down = w.images["1.0.0"], w.images["2.0.0"]
    child = up["children"][0]
    for path in ("manifests/1.0.0", f"manifests/{up['digest']}", f"blobs/{child['config']}", f"blobs/{child['layers'][1]}", "manifests/2.0.0",
                 f"manifests/{down['digest']}", f"blobs/{down['children'][0]['config']}", "manifests/9.9.9", "tags/list"):
        g = None
        while g is None or w.get("/v2/shop/api/" + path).content != g.content and g.status_code == 200:  # a list of tags may become longer meanwhile
            g, h = w.get("/v2/shop/api/" + path), w.get("/v2/shop/api/" + path, method="HEAD")
        assert g.status_code == h.status_code, path
        assert h.content == b""
        keep = ("Content-Type", "Content-Length", "Docker-Content-Digest", "ETag")
        if g.status_code != 403:  # a 403's text carries its own request id
            assert {k: g.headers.get(k) for k in keep} == {k: h.headers.get(k) for k in keep}, path


def test_i09_range_is_a_slice(w):
    d = w.images["1.0.0"]["children"][0]["layers"][1]
    whole = w.get(f"/v2/shop/api/blobs/{d}").content
    for spec, want in (("0-0", whole[:1]), ("5-9", whole[5:10]), ("100-", whole[100:]), ("-7", whole[-7:]), (f"0-{len(whole) * 2}", whole)):
        r = w.get(f"/v2/shop/api/blobs/{d}", headers={"Range": f"bytes={spec}"})
        assert (r.status_code, r.content) == (206, want), spec
    assert w.get(f"/v2/shop/api/blobs/{d}", headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    hidden = w.images["2.0.0"]["children"][0]["layers"][1]
    assert w.get(f"/v2/shop/api/blobs/{hidden}", headers={"Range": "bytes=0-0"}).status_code == 404


def test_i10_memoryless(w):
    hidden = w.images["2.0.0"]["children"][0]
    owner, _, _ = w.customer_with("i10", [{"selector": "exact", "value": "2.0.0"}])
    w.s.wait_status("/v2/shop/api/manifests/2.0.0", owner, 200)
    for d in (hidden["config"], hidden["layers"][1]):
        assert w.get(f"/v2/shop/api/blobs/{d}", method="HEAD").status_code == 404
        assert w.s.get(f"/v2/shop/api/blobs/{d}", owner).status_code == 200  # another customer's pull warms every cache
        requests.post(f"{w.s.base}/v2/shop/api/blobs/uploads/?mount={d}&from=shop/api", headers={"Authorization": w.auth})
        w.get(f"/v2/shop/api/referrers/{w.images['2.0.0']['digest']}")
        assert w.get(f"/v2/shop/api/blobs/{d}").status_code == 404


def test_i11_indistinguishable(w):
    none = "sha256:" + "0123456789abcdef" * 4
    hidden = w.images["2.0.0"]
    pairs = [(f"manifests/{hidden['digest']}", f"manifests/{none}"), (f"blobs/{hidden['children'][0]['config']}", f"blobs/{none}"),
             (f"referrers/{hidden['digest']}", f"referrers/{none}")]
    for a, b in pairs:
        forms = []
        for path in (a, b):
            r = w.get("/v2/shop/api/" + path)
            forms.append((r.status_code, r.reason, r.content, sorted((k, v) for k, v in r.headers.items() if k not in ("Date", "X-Request-Id"))))
        assert forms[0] == forms[1]
        with requests.Session() as s:
            s.headers["Authorization"] = w.auth
            for _ in range(3):  # what differs by the path differs each time, what differs by the machine does not
                times = {a: [], b: []}
                for path in (a, b) * 60:
                    t = time.perf_counter()
                    s.get(f"{w.s.base}/v2/shop/api/{path}")
                    times[path].append(time.perf_counter() - t)
                apart = abs(statistics.median(times[a]) - statistics.median(times[b]))
                if apart < 0.005 * SLOW:
                    break
        assert apart < 0.005 * SLOW
    # a tag: the same words but for the tag that the client itself sent
    a, b = (w.get(f"/v2/shop/api/manifests/{t}") for t in ("2.0.0", "3.0.0"))
    ref = lambda r: r.text.replace("2.0.0", "T").replace("3.0.0", "T").replace(r.headers["X-Request-Id"], "R")
    assert (a.status_code, ref(a)) == (b.status_code, ref(b)) and a.status_code == 403
    # a repository that is another application's, and one that nobody has
    a, b = w.get("/v2/other/app/manifests/1.0.0"), w.get("/v2/other/xyz/manifests/1.0.0")
    norm = lambda r: r.text.replace("other/app", "N").replace("other/xyz", "N").replace(r.headers["X-Request-Id"], "R")
    assert (a.status_code, norm(a)) == (b.status_code, norm(b)) and a.status_code == 403


def test_i12_revocation(w):
    lags = []
    for i in range(10):
        auth, lic, _ = w.customer_with(f"i12-{i}", [{"selector": "range", "value": "^1"}])
        w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)
        token = w.s.get("/token?scope=repository:shop/api:pull", auth).json()["token"]
        w.s.api.post(f"/licenses/{lic['id']}/revoke", {"reason": "test"}, expect=200)
        t = time.monotonic()
        last = t  # of a success; both workers are asked, a fresh connection each time
        while time.monotonic() - t < 0.3:
            for path, a in (("manifests/1.0.0", auth), (f"blobs/{w.images['1.0.0']['children'][0]['config']}", "Bearer " + token)):
                began = time.monotonic()
                if w.s.get("/v2/shop/api/" + path, a, headers={"Connection": "close"}).status_code == 200:
                    last = began
        assert last - t < 0.25 * SLOW, "served long after the revocation was acknowledged"
        lags.append(last - t)
        for path, a in (("manifests/1.0.0", auth), (f"blobs/{w.images['1.0.0']['children'][0]['config']}", "Bearer " + token)):
            assert w.s.get("/v2/shop/api/" + path, a).status_code == 403, "a token outlived the license"
    print("revocation lag, ms:", [round(x * 1000, 1) for x in lags])


def test_i13_expiry(w):
    at = int(time.time()) + 3
    auth, lic, _ = w.customer_with("i13", [{"selector": "range", "value": "^1"}], grace_days=0,
                                   expires_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)))
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200, timeout=2)
    token = w.s.get("/token?scope=repository:shop/api:pull", auth).json()["token"]
    layer = w.images["1.0.0"]["children"][0]["layers"][1]
    asks = [(f"/v2/shop/api/manifests/1.0.0", auth, {}), (f"/v2/shop/api/manifests/{w.images['1.0.0']['digest']}", auth, {}),
            (f"/v2/shop/api/blobs/{layer}", auth, {}), (f"/v2/shop/api/blobs/{layer}", auth, {"Range": "bytes=1-2"}),
            (f"/v2/shop/api/manifests/1.0.0", "Bearer " + token, {})]
    served = 0
    while time.time() < at + 1.5:
        for path, a, headers in asks:
            before = time.time()
            r = w.s.get(path, a, headers=headers)
            if r.status_code in (200, 206):
                served += 1
                assert before < at, f"{path} served {before - at:.3f} s after expiry"
            elif time.time() < at:
                raise AssertionError(f"{path}: {r.status_code} before expiry")
    assert served > 0
    r = w.s.get("/v2/shop/api/manifests/1.0.0", auth)
    assert r.status_code == 403 and "expired on" in r.json()["errors"][0]["message"] and "expired on" in r.reason


def test_i14_monotone(w):
    probes = sorted(granted(w, ["1.0.0", "1.1.0", "2.0.0"]))
    auth, lic, _ = w.customer_with("i14", [{"selector": "exact", "value": "1.0.0"}])
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)
    before = reachable(w, auth, only=probes)
    w.s.api.post(f"/licenses/{lic['id']}/grants", {"selector": "exact", "value": "2.0.0"}, expect=None)
    w.s.wait_status("/v2/shop/api/manifests/2.0.0", auth, 200)
    more = reachable(w, auth, only=probes)
    assert before < more
    gid = next(g["id"] for g in w.s.api.get(f"/licenses/{lic['id']}")["grants"] if g["value"] == "1.0.0")
    w.s.api("DELETE", f"/licenses/{lic['id']}/grants/{gid}", {"reason": "test"}, expect=None)
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 403)
    assert reachable(w, auth, only=probes) < more


def test_i15_portal_is_registry(w):
    def listed(auth):
        r = requests.get(w.s.admin_base + "/portal/v1/versions", headers={"Authorization": auth}, timeout=30)
        assert r.status_code == 200, r.text
        return {(a["repository"], a["tag"], a["digest"]) for item in r.json()["items"] for a in item["artifacts"]}

    for slug, grants, extra in (("i15a", [{"selector": "range", "value": "^1"}], {}), ("i15b", [{"selector": "all", "value": "*"}], {}),
                                ("i15c", [{"selector": "all", "value": "*"}], {"status": "inactive"})):
        auth, _, _ = w.customer_with(slug, grants, **extra)
        w.s.wait_status("/v2/", auth, 200)
        served = set()
        for t in sorted({t for (r, t) in w.up.tags if r == "acme/api" and not t.startswith("sha256-")}):
            r = w.s.get(f"/v2/shop/api/manifests/{t}", auth)
            if r.status_code == 200:
                served.add(("shop/api", t, r.headers["Docker-Content-Digest"]))
        wait_for("the portal to list what the registry serves", lambda: listed(auth) == served, 20)  # tag_freshness and a little


def test_i16_no_probing(w):
    hidden = w.images["2.0.0"]["children"][0]["config"]
    w.get(f"/v2/shop/api/blobs/{hidden}")
    for _ in range(8):  # both workers have looked
        requests.get(f"{w.s.base}/v2/shop/api/blobs/{hidden}", headers={"Authorization": w.auth, "Connection": "close"})
    keys, hits = w.s.redis.cmd("DBSIZE"), w.up.hits(r"shop|acme/api/(manifests|blobs|tags)")
    with requests.Session() as s:
        s.headers["Authorization"] = w.auth
        for i in range(200):
            assert s.get(f"{w.s.base}/v2/shop/api/blobs/sha256:{i:064x}").status_code == 404
            assert s.get(f"{w.s.base}/v2/shop/api/manifests/2.{i}.0").status_code == 403
    assert w.up.hits(r"shop|acme/api/(manifests|blobs)") - hits <= 0 or all("sha256:000" not in p for _, p, _ in w.up.requests)
    assert w.s.redis.cmd("DBSIZE") <= keys + 1  # the event stream may have come


def test_i17_closed_world(w):
    """A value of the projection that is absent, altered or of another life is 'cannot know': 503, never 200, 403 or 404."""
    auth, lic, c = w.customer_with("i17", [{"selector": "range", "value": "^1"}])
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)
    key = f"pg:v:c:{c['id']}"
    good = w.s.redis.cmd("GET", key)
    assert good
    try:
        w.s.start_proxy(1)  # cold: nothing in memory
        w.s.admin.p.send_signal(signal.SIGSTOP)  # it would put the value right within the second
        for value in (None, good[:-1] + b" ", good.replace(b"^1", b"^2"), b"", b"1 1 " + b"0" * 64 + b" {}"):
            w.s.redis.cmd("DEL", key) if value is None else w.s.redis.cmd("SET", key, value)
            r = w.s.get("/v2/shop/api/manifests/1.0.0", auth, proxy=1)
            assert r.status_code == 503 and "Retry-After" in r.headers, (value, r.status_code, r.text)
        w.s.redis.cmd("SET", key, good)
        w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200, proxy=1)
        w.s.redis.cmd("DEL", key)
    finally:
        w.s.admin.p.send_signal(signal.SIGCONT)
    wait_for("the projector to repair it", lambda: w.s.redis.cmd("EXISTS", key) == 1)


def test_kept_versions_are_listed_as_well(w):
    """A license that has expired and keeps what was released before: what may be pulled is in tags/list and _catalog, and has its referrers."""
    for v, day in (("1.0.0", "2020-01-01"), ("1.1.0", "2024-01-01")):
        w.s.api("PUT", f"/applications/{w.app['id']}/versions/{v}", {"released_at": day}, expect=200)
    auth, _, _ = w.customer_with("kept", [{"selector": "range", "value": "^1"}], expires_at="2022-01-01", on_expiry="keep_released")
    w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)
    assert w.s.get("/v2/shop/api/manifests/1.1.0", auth).status_code == 403
    tags = w.s.get("/v2/shop/api/tags/list", auth)
    assert tags.status_code == 200, tags.text
    assert "1.0.0" in tags.json()["tags"] and "1.1.0" not in tags.json()["tags"]
    assert w.s.get("/v2/_catalog", auth).json()["repositories"] == ["shop/api"]
    refs = w.s.get(f"/v2/shop/api/referrers/{w.images['1.0.0']['digest']}", auth)
    assert refs.status_code == 200 and w.sbom in [m["digest"] for m in refs.json()["manifests"]]


def test_i18_byte_identity(w):
    for (repo, d), (data, mt) in list(w.up.manifests.items()):
        if repo == "acme/api" and ("manifests", d) in granted(w, ["1.0.0", "1.1.0"]):
            r = w.get(f"/v2/shop/api/manifests/{d}")
            assert r.content == data and r.headers["Content-Type"] == mt and r.headers["Docker-Content-Digest"] == d


def test_i19_secrets(w):
    """Canaries: no secret shows in a response, an upstream request but its own, a log or Redis."""
    secret, up_password, admin = w.credential["secret"], w.up.password, w.s.token
    r = w.s.get("/token?scope=repository:shop/api:pull", w.auth)
    token = r.json()["token"]
    texts = []
    for path, auth in (("/v2/", None), ("/v2/", "Basic Zm9v"), ("/v2/shop/api/manifests/1.0.0", w.auth), ("/v2/shop/api/manifests/2.0.0", w.auth),
                       ("/v2/shop/api/manifests/1.0.0", "Bearer " + token), ("/v2/x/manifests/y", w.auth), (f"/v2/{secret}", w.auth)):
        r = w.s.get(path, auth)
        texts.append(str(r.headers) + r.text + r.reason)
    w.s.api("POST", f"/upstreams/{w.upstream['id']}/test", {})
    texts.append(w.s.api("GET", "/upstreams").text + w.s.api("GET", "/audit").text + w.s.api("GET", "/pulls").text)
    texts += [w.s.proxies[0].text(), w.s.admin.text(), w.s.redis.proc.text()]
    for m, p, headers in w.up.requests:
        texts.append(p + json.dumps({k: v for k, v in headers.items() if k != "Authorization"}))
        assert secret not in json.dumps(headers) and token not in json.dumps(headers) and w.auth.split()[1] not in json.dumps(headers)
    for key in w.s.redis.cmd("KEYS", "*"):
        kind = w.s.redis.cmd("TYPE", key)
        value = w.s.redis.cmd("GET", key) if kind == b"string" else w.s.redis.cmd("XRANGE", key, "-", "+") if kind == b"stream" else b""
        texts.append(repr(value))
    for name, canary in (("the customer's", secret), ("the upstream's", up_password), ("the admin's", admin), ("a token's signature", token.split(".")[2]),
                         ("the customer's in base64", w.auth.split()[1])):
        for t in texts:
            if name.startswith("the customer") and f"/v2/{secret}" in t:
                t = t.replace(f"/v2/{secret}", "")
            assert canary not in t, f"{name} secret in {t[:200]}"
