"""Fixtures: one stack a module, with an application, customers and licenses that most tests need."""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from stack import BIN, Stack, basic  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "once: not repeated against the sanitizer build")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for i in items:  # what a front makes of a row is not the sanitizers' business; the given rows are repeated all the same
        if i.path.name == "test_adversarial_admin.py" and i.name.endswith("-n]") and "[direct-" not in i.name:
            i.add_marker(pytest.mark.once)
    assert (BIN / "pullgate-proxy").exists(), f"no build at {BIN}: run tests/run.sh, or set PULLGATE_BIN"


class World:
    """A stack with the shop: versions 1.0.0, 1.1.0, 2.0.0 (two platforms each) sharing a base layer, and another application."""

    def __init__(self, **kw):
        self.s = s = Stack(**kw)
        r = s.upstream
        self.base_layer = b"base layer " * 4000
        self.images = {}
        for version in ("1.0.0", "1.1.0", "2.0.0"):
            kids = [r.push_image("acme/api", None, [self.base_layer, f"layer of {version} for {arch} ".encode() * 3000],
                                 config={"os": "linux", "architecture": arch, "rootfs": {"type": "layers", "diff_ids": []}, "v": version},
                                 platform=("linux", arch)) for arch in ("amd64", "arm64")]
            self.images[version] = r.push_index("acme/api", version, kids, [("linux", "amd64"), ("linux", "arm64")])
        self.other = r.push_image("acme/other", "1.0.0", [b"the other application's layer " * 1000, self.base_layer])
        self.upstream = s.add_upstream()
        self.app = s.add_application("shop", [("shop/api", "acme/api", "image")], self.upstream["id"])
        self.app_other = s.add_application("other", [("other/app", "acme/other", "image")], self.upstream["id"])
        self.customer = s.add_customer("globex")
        self.credential = s.add_credential(self.customer["id"])
        self.auth = basic("globex", self.credential["secret"])
        self.license = s.add_license(self.customer["id"], self.app["id"], [{"selector": "range", "value": "^1.0"}], name="Globex Prod",
                                     expires_at="2099-12-31")
        s.wait_status("/v2/shop/api/manifests/1.0.0", self.auth, 200)

    def get(self, path, auth=None, **kw):
        return self.s.get(path, self.auth if auth is None else auth, **kw)

    def customer_with(self, slug, grants, app=None, **kw):
        """A further customer with one license: (auth, license, customer)."""
        c = self.s.add_customer(slug)
        cred = self.s.add_credential(c["id"])
        lic = self.s.add_license(c["id"], (app or self.app)["id"], grants, name=f"{slug} license", **kw)
        return basic(slug, cred["secret"]), lic, c


@pytest.fixture(scope="module")
def world():
    w = World()
    yield w
    w.s.close()
