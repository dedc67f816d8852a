"""The admin daemon alone with Redis, for the tests of its API; no proxy and no registry."""
import contextlib

from stack import Api, Stack


class NoUpstream:
    url = "http://127.0.0.1:9"  # discard: nothing listens
    auth = None


@contextlib.contextmanager
def admin_stack(**kw):
    s = Stack(upstream=NoUpstream(), **{"n_proxies": 0, **kw})
    try:
        yield s
    finally:
        s.close()


def problem(r, status, code=None, field=None):
    """Checks a refusal's form; the document."""
    assert r.status_code == status, f"{r.status_code} {r.text}"
    assert r.headers["Content-Type"] == "application/problem+json"
    d = r.json()
    assert d["status"] == status and d["title"] and d["detail"] and d["type"]
    if code:
        assert d["code"] == code, d
    if field:
        assert d.get("field") == field, d
    return d


def token(stack, role, **kw):
    t = stack.api.post("/tokens", {"name": role, "role": role, **kw})
    return Api(stack.admin_base, t["token"]), t


def second_vendor(stack, slug="other-vendor"):
    v = stack.api.post("/vendors", {"slug": slug, "name": "Other"})
    return Api(stack.admin_base, v["token"]), v
