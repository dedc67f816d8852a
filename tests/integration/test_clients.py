"""Real clients pull what is granted, and are told why where it is not: either challenge, Basic and Bearer upstreams, with and without TLS.

With PULLGATE_WRITE_CLIENTS=1 what each client printed is written to docs/CLIENTS.md.
"""
import concurrent.futures
import hashlib
import json
import os
import re
import subprocess

import pytest

from artifacts import push_chart, push_image, push_multi
from bearer_upstream import BearerRegistry
from clients import CHART_CLIENTS, IMAGE_CLIENTS, Ctr, Helm3, Helm4, Skopeo, client
from stack import ROOT, Stack, basic, make_ca

pytestmark = pytest.mark.once  # clients are slow; the sanitizer pass has its own pulls

BIG = 200 * 1024 * 1024


class Shop:
    """One upstream's content and three customers: licensed for ^1.0, expired, and one whose grace runs."""

    def __init__(self, directory, challenge, tls, upstream):
        self.dir = directory
        self.ca = make_ca(directory) if tls else None
        proxy = {"challenge": challenge}
        if tls:
            proxy["tls"] = {"cert": str(self.ca["cert"]), "key": str(self.ca["key"])}
        registry = BearerRegistry(directory) if upstream == "bearer" else None
        self.s = Stack(directory=directory, proxy=proxy, upstream=registry)
        r = self.registry = registry or self.s.registry
        self.s.registry = r  # ended with the stack
        self.images = {v: push_multi(r, "acme/api", v) for v in ("1.0.0", "1.1.0", "2.0.0")}
        self.charts = {v: push_chart(r, "acme/chart", "shop", v) for v in ("1.0.0", "1.1.0+build.7", "2.0.0")}
        up = self.s.add_upstream()
        self.app = self.s.add_application("shop", [("shop/api", "acme/api", "image"), ("shop/charts/shop", "acme/chart", "chart")], up["id"])
        self.users = {}
        for slug, extra in (("globex", {"expires_at": "2099-12-31"}),
                            ("initech", {"expires_at": "2026-03-01", "grace_days": 7}),
                            ("umbrella", {})):
            c = self.s.add_customer(slug)
            self.users[slug] = self.s.add_credential(c["id"])["secret"]
            if slug != "umbrella":
                self.s.add_license(c["id"], self.app["id"], [{"selector": "range", "value": "^1.0"}], name=f"{slug.title()} Prod", **extra)
        self.host = self.s.address
        self.ca_file = self.ca["ca"] if tls else None
        self.s.wait_status("/v2/shop/api/manifests/1.0.0", basic("globex", self.users["globex"]), 200, verify=False)


@pytest.fixture(scope="module", params=["basic-plain-basic", "bearer-tls-bearer", "basic-tls-bearer", "bearer-plain-basic"])
def shop(request, tmp_path_factory):
    challenge, tls, upstream = request.param.split("-")
    s = Shop(tmp_path_factory.mktemp(request.param), challenge, tls == "tls", upstream)
    s.param = request.param
    yield s
    s.s.close()


TRANSCRIPT = {}


def note(shop, c, what, result):
    text = re.sub(r"127\.0\.0\.1:\d+", "registry.vendor.example", result.out)
    text = re.sub(r"\[ref \w+\]", "[ref 01J…]", text)
    text = re.sub(r"time=\"[^\"]*\" ", "", text)
    lines = [l for l in text.strip().splitlines() if l.strip()]
    TRANSCRIPT.setdefault(shop.param, {}).setdefault(c.name, {})[what] = "\n".join(lines[-3:])


def both(shop, cls, who="globex"):
    return client(cls, shop.host, shop.ca_file, who, shop.users[who])


@pytest.mark.parametrize("cls", IMAGE_CLIENTS, ids=lambda c: c.name)
def test_image_client(shop, cls):
    with both(shop, cls) as c:
        r = c.login()
        assert r.rc == 0, r
        r = c.pull("shop/api", "1.0.0")
        assert r.rc == 0, r
        r = c.pull("shop/api", shop.images["1.1.0"]["digest"])
        assert r.rc == 0, r
        r = c.pull("shop/api", "1.1.0", all_platforms=True)
        assert r.rc == 0, r
        r = c.pull("shop/api", "2.0.0")
        assert r.rc != 0 and "Globex Prod" in r.out and "2.0.0" in r.out, r
        note(shop, c, "a version that is not granted", r)
        r = c.pull("shop/api", shop.images["2.0.0"]["digest"])
        assert r.rc != 0, r
        note(shop, c, "a digest that is not granted", r)
        r = c.pull("nobody/knows", "1.0.0")
        assert r.rc != 0, r
        note(shop, c, "a repository without a license", r)
        # the same engine, another customer: its license has expired
        c.user, c.secret = "initech", shop.users["initech"]
        assert c.login().rc == 0
        r = c.pull("shop/api", "1.0.0")
        assert r.rc != 0 and "Initech Prod" in r.out and "expired on 2026-03-01" in r.out, r
        note(shop, c, "an expired license", r)
        c.secret = "pgc_wrong"
        r = c.login() if cls is not Ctr else c.pull("shop/api", "1.0.0")
        assert r.rc != 0, r
        note(shop, c, "a wrong key", r)


@pytest.mark.parametrize("cls", CHART_CLIENTS, ids=lambda c: c.name)
def test_chart_client(shop, cls):
    if cls is Helm3 and shop.ca_file:
        cls = Helm4  # Helm 3 speaks plain HTTP to loopback addresses whatever it is told: its TLS cannot be had here
    with both(shop, cls) as c:
        r = c.login()
        assert r.rc == 0, r
        r = c.pull("shop/charts/shop", "1.0.0")
        assert r.rc == 0 and (r.path / "shop-1.0.0.tgz").exists(), r
        r = c.pull("shop/charts/shop", "1.1.0+build.7")
        assert r.rc == 0, r
        # without a version helm lists tags and takes the newest: it must be the newest that is granted
        r = c.pull("shop/charts/shop", "")
        assert r.rc == 0 and list(r.path.glob("shop-1.1.0*")), r
        r = c.pull("shop/charts/shop", "2.0.0")
        assert r.rc != 0 and "Globex Prod" in r.out, r
        note(shop, c, "a version that is not granted", r)
        c.user, c.secret = "initech", shop.users["initech"]
        assert c.login().rc == 0
        r = c.pull("shop/charts/shop", "1.0.0")
        assert r.rc != 0 and "expired on 2026-03-01" in r.out, r
        note(shop, c, "an expired license", r)


def test_skopeo_lists_only_granted_tags(shop):
    with both(shop, Skopeo) as c:
        assert c.login().rc == 0
        r = c.list_tags("shop/api")
        # 1.9.0 is the large layer's, where that test has run before
        assert r.rc == 0 and [t for t in json.loads(r.out)["Tags"] if t != "1.9.0"] == ["1.0.0", "1.1.0"], r
        r = c.inspect("shop/api", "1.0.0")
        assert r.rc == 0 and json.loads(r.out)["Digest"] == shop.images["1.0.0"]["digest"], r


def test_twenty_in_parallel(shop):
    with both(shop, Skopeo) as c:
        assert c.login().rc == 0
        outs = [c.fresh() for _ in range(20)]

        def one(out):
            from clients import run
            return run(["skopeo", "copy", "--all", *c.tls(True), "--authfile", c.authfile, "docker://" + c.ref("shop/api", "1.1.0"), f"oci:{out}:x"])

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            for r in pool.map(one, outs):
                assert r.rc == 0, r


def test_what_was_pulled_is_what_was_pushed(shop):
    with both(shop, Skopeo) as c:
        assert c.login().rc == 0
        r = c.pull("shop/api", "1.0.0", all_platforms=True)
        assert r.rc == 0, r
        index = json.loads((r.path / "index.json").read_text())
        assert index["manifests"][0]["digest"] == shop.images["1.0.0"]["digest"]
        for f in (r.path / "blobs" / "sha256").iterdir():
            assert hashlib.sha256(f.read_bytes()).hexdigest() == f.name


@pytest.mark.parametrize("shop", ["basic-plain-basic", "basic-tls-bearer"], indirect=True)  # one plain and one TLS run are enough
def test_large_layer_and_resumed_range(shop):
    """A 200 MB layer arrives whole; a cut download resumes by range to the same bytes."""
    data = os.urandom(1024 * 1024) * (BIG // (1024 * 1024))
    image = push_image(shop.registry, "acme/api", "1.9.0", [data], compress=False)
    digest = image["layers"][0]
    with both(shop, Skopeo) as c:
        assert c.login().rc == 0
        r = c.pull_as_is("shop/api", "1.9.0")
        assert r.rc == 0, r
        assert (r.path / digest[7:]).stat().st_size == BIG
    auth = basic("globex", shop.users["globex"])
    first = shop.s.get(f"/v2/shop/api/blobs/{digest}", auth, headers={"Range": f"bytes=0-{BIG // 2 - 1}"}, verify=False)
    rest = shop.s.get(f"/v2/shop/api/blobs/{digest}", auth, headers={"Range": f"bytes={BIG // 2}-"}, verify=False)
    assert (first.status_code, rest.status_code) == (206, 206)
    assert rest.headers["Content-Range"] == f"bytes {BIG // 2}-{BIG - 1}/{BIG}"
    assert "sha256:" + hashlib.sha256(first.content + rest.content).hexdigest() == digest


def test_zz_write_transcript():
    if not os.environ.get("PULLGATE_WRITE_CLIENTS"):
        return
    versions = {n: subprocess.run(a, capture_output=True, text=True).stdout.strip().splitlines()[0] for n, a in
                {"docker": ["dockerd", "--version"], "ctr": ["ctr", "--version"], "podman": ["podman", "--version"], "buildah": ["buildah", "--version"],
                 "skopeo": ["skopeo", "--version"], "helm3": [str(ROOT / "build/tools/helm3"), "version", "--short"],
                 "helm4": [str(ROOT / "build/tools/helm4"), "version", "--short"]}.items()}
    out = ["# What real clients print", "",
           "Written by `PULLGATE_WRITE_CLIENTS=1 tests/run.sh`: the last lines that each client showed, pulling through Pullgate. Hosts and request ids",
           "are replaced; the license of Globex covers ^1.0, that of Initech expired on 2026-03-01 with 7 days of grace.", ""]
    for param, per in TRANSCRIPT.items():
        challenge, tls, upstream = param.split("-")
        out += [f"## Challenge {challenge}, {'TLS' if tls == 'tls' else 'plain HTTP'}, upstream with {upstream}", ""]
        for name, cases in per.items():
            out += [f"### {name} ({versions.get(name, '')})", ""]
            for what, text in cases.items():
                out += [f"{what}:", "", *("    " + l for l in text.splitlines()), ""]
    (ROOT / "docs" / "CLIENTS.md").write_text("\n".join(out))
