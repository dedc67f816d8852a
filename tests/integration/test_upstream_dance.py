"""The registry client (lib/upstream.c) against scripted upstreams: who gets credentials, which redirects are followed, what is
retried, and what each quirk of a registry is turned into. The driver runs operations and prints a JSON line for each."""
import base64
import hashlib
import json
import socket
import ssl
import subprocess
import threading
import time

import pytest

from stack import BIN, SLOW, Registry, make_ca

DRIVER = BIN.parent / "tests" / "drive_upstream"
OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
USER, PASSWORD = "robot", "s3cr3t-canary"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
MANIFEST = b'{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"x","digest":"sha256:%s","size":1},"layers":[]}' % (OCI.encode(), b"0" * 64)
BLOB = bytes(range(256)) * 1000


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Request:
    def __init__(self, method, target, fields, sock):
        self.method, self.target, self.sock = method, target, sock
        self.path, _, self.query = target.partition("?")
        self.fields = fields

    @property
    def auth(self):
        return self.fields.get("authorization")


class Server:
    """HTTP by hand: handler(request) returns (status, fields, body) or bytes to be sent as they are, after which it closes;
    None closes at once. HEAD bodies are dropped. Every request is remembered."""

    def __init__(self, handler, tls=None):
        self.handler = handler
        self.seen = []
        self.connections = 0
        self.lock = threading.Lock()
        self.closing = False
        self.tls = None
        if tls:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(tls["cert"], tls["key"])
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def accept(self):
        while not self.closing:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def serve(self, s):
        try:
            if self.tls:
                s = self.tls.wrap_socket(s, server_side=True)
            f = s.makefile("rb")
            while True:
                line = f.readline()
                if not line:
                    return
                method, target, _ = line.decode().split(" ", 2)
                fields = {}
                while (h := f.readline()) not in (b"\r\n", b"\n", b""):
                    k, _, v = h.decode().partition(":")
                    fields[k.strip().lower()] = v.strip()
                req = Request(method, target, fields, s)
                with self.lock:
                    self.seen.append(req)
                out = self.handler(req)
                if out is None:
                    return
                if isinstance(out, bytes):
                    s.sendall(out)
                    return
                status, fields, body = out
                fields = {"Content-Length": str(len(body)), **fields}
                head = f"HTTP/1.1 {status} X\r\n" + "".join(
                    f"{k}: {x}\r\n" for k, v in fields.items() if v is not None for x in (v if isinstance(v, list) else [v])) + "\r\n"
                s.sendall(head.encode() + (b"" if method == "HEAD" else body))
        except (OSError, ValueError):
            pass
        finally:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def close(self):
        self.closing = True
        self.listener.close()


@pytest.fixture
def server():
    made = []

    def make(handler, **kw):
        made.append(Server(handler, **kw))
        return made[-1]

    yield make
    for s in made:
        s.close()


def drive(url, *ops, limits=None, timeout=60, **spec):
    spec = {"id": "ups_test", "url": url, "username": USER, "password": PASSWORD, **spec}
    p = subprocess.run([DRIVER, json.dumps(spec), json.dumps(limits or {}), *ops], capture_output=True, text=True, timeout=timeout)
    assert p.returncode == 0, p.stderr
    assert PASSWORD not in p.stdout + p.stderr
    assert "ERROR" not in p.stderr, p.stderr
    return [json.loads(line) for line in p.stdout.splitlines()]


def manifest_answer(data=MANIFEST, **fields):
    return 200, {"Content-Type": OCI, "Docker-Content-Digest": sha(data), **fields}, data


def basic_registry(req):
    if req.auth != BASIC:
        return 401, {"WWW-Authenticate": 'Basic realm="r"'}, b"{}"
    if "/manifests/" in req.path:
        return manifest_answer()
    if "/blobs/" in req.path:
        return 200, {"Content-Type": "application/octet-stream"}, BLOB
    return 200, {}, b"{}"


class Tokens:
    """A token endpoint's answers: tokens t1, t2, …; `good` says which of them the registry takes."""

    def __init__(self, expires_in=300, delay=0):
        self.n, self.expires_in, self.delay, self.asked = 0, expires_in, delay, []
        self.lock = threading.Lock()

    def answer(self, req):
        time.sleep(self.delay)
        with self.lock:
            self.n += 1
            self.asked.append((req.query, req.auth))
            return 200, {}, json.dumps({"token": f"t{self.n}", "expires_in": self.expires_in}).encode()


def bearer_registry(tokens, realm=None, good=lambda token: True, scope='scope="repository:acme/api:pull",'):
    def handler(req):
        if req.path == "/token":
            return tokens.answer(req)
        auth = req.auth or ""
        if not auth.startswith("Bearer t") or not good(auth[7:]):
            where = realm or f"http://{req.fields['host']}/token"
            return 401, {"WWW-Authenticate": f'Bearer realm="{where}",service="reg",{scope}error="x"'}, b"{}"
        if "/manifests/" in req.path:
            return manifest_answer()
        return 200, {}, b"{}"
    return handler


# ---- who gets the password -------------------------------------------------------------------------------------------

def test_basic_is_learned_then_sent_first(server):
    s = server(basic_registry)
    a, b = drive(s.url, "manifest acme/api 1.0", f"manifest acme/api {sha(MANIFEST)}")
    assert (a["err"], b["err"]) == ("OK", "OK")
    assert a["digest"] == b["digest"] == sha(MANIFEST) and a["bytes"].encode() == MANIFEST and a["media_type"] == OCI
    assert [r.auth for r in s.seen] == [None, BASIC, BASIC]
    assert s.connections == 1, "the 401 costs no connection"
    accept = s.seen[0].fields["accept"]
    for t in (INDEX, OCI, "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"):
        assert t in accept


def test_wrong_password_is_the_upstreams_fault(server):
    s = server(lambda req: (401, {"WWW-Authenticate": 'Basic realm="r"'}, b"{}"))
    a, = drive(s.url, "manifest acme/api 1.0")
    assert a["err"] == "UPSTREAM" and "refuses" in a["detail"]
    assert len(s.seen) == 2
    a, = drive(s.url, "ping")
    assert a["err"] == "UPSTREAM" and "refuses the user name or password" in a["detail"]


def test_no_credentials_configured(server):
    s = server(basic_registry)
    a, = drive(s.url, "manifest acme/api 1.0", username="", password="")
    assert a["err"] == "UPSTREAM" and "none is configured" in a["detail"]
    assert all(r.auth is None for r in s.seen)


def test_403_is_never_the_customers(server):
    s = server(lambda req: (403, {}, b"{}") if req.auth else (401, {"WWW-Authenticate": "Basic"}, b""))
    a, = drive(s.url, "manifest acme/api 1.0")
    assert a["err"] == "UPSTREAM"


def test_registry_that_hides_what_needs_a_sign_in(server):
    s = server(lambda req: manifest_answer() if req.auth == BASIC else (404, {}, b"{}"))
    a, b = drive(s.url, "manifest acme/api 1.0", "manifest acme/api 1.0")
    assert (a["err"], b["err"]) == ("OK", "OK")
    assert [r.auth for r in s.seen] == [None, BASIC, BASIC]


def test_ping(server):
    tokens = Tokens()
    for handler in (basic_registry, bearer_registry(tokens, scope="")):
        s = server(handler)
        assert drive(s.url, "ping")[0]["err"] == "OK"
        assert s.seen[0].target == "/v2/"
    assert "scope" not in tokens.asked[0][0]
    s = server(lambda req: (404, {}, b"<html>"))
    a, = drive(s.url, "ping")
    assert a["err"] == "UPSTREAM" and "no registry" in a["detail"]
    # An open registry has not checked the password until it was sent one.
    s = server(lambda req: (401, {"WWW-Authenticate": "Basic"}, b"") if req.auth else (200, {}, b"{}"))
    assert drive(s.url, "ping")[0]["err"] == "UPSTREAM"


# ---- the Bearer dance --------------------------------------------------------------------------------------------------

def test_bearer(server):
    tokens = Tokens()
    s = server(bearer_registry(tokens))
    a, b, c = drive(s.url, "manifest acme/api 1.0", "manifest acme/api 1.1", "manifest acme/other 1.0")
    assert {a["err"], b["err"], c["err"]} == {"OK"}
    assert len(tokens.asked) == 2, "one for each scope"
    assert tokens.asked[0] == ("service=reg&scope=repository:acme/api:pull", BASIC)
    assert tokens.asked[1] == ("service=reg&scope=repository:acme/other:pull", BASIC), "the scope of the challenge was for another repository"
    for r in s.seen:
        if r.path != "/token":
            assert r.auth is None or r.auth.startswith("Bearer t"), "the password goes to the realm only"


@pytest.mark.parametrize("scope", ["repository:acme/api:pull,push", "repository:*:pull", "registry:catalog:*", "repository:victim/db:pull",
                                   "repository:acme/api:pull repository:victim/db:pull", "repository:xacme/api:pull", "x&scope=y", ""])
def test_scope_of_the_challenge_is_not_widened(server, scope):
    tokens = Tokens()
    s = server(bearer_registry(tokens, scope=f'scope="{scope}",'))
    assert drive(s.url, "manifest acme/api 1.0")[0]["err"] == "OK"
    assert tokens.asked[0][0] == "service=reg&scope=repository:acme/api:pull"


def test_scope_of_the_challenge_under_a_prefix(server):
    tokens = Tokens()
    s = server(bearer_registry(tokens, scope='scope="repository:cache/acme/api:pull",', good=lambda t: "cache" in tokens.asked[int(t[1:]) - 1][0]))
    out = drive(s.url, *["manifest acme/api 1.0"] * 3)
    assert [x["err"] for x in out] == ["OK"] * 3
    assert tokens.asked[0][0] == "service=reg&scope=repository:cache/acme/api:pull"
    assert len(tokens.asked) == 1 and len(s.seen) == 5, "learned once"


def test_twenty_in_parallel_get_one_token(server):
    tokens = Tokens(delay=0.3)
    s = server(bearer_registry(tokens))
    out = drive(s.url, "20*manifest acme/api 1.0", "20*manifest acme/api 1.0")
    assert [x["err"] for x in out] == ["OK"] * 40
    assert len(tokens.asked) == 1


def test_token_is_renewed_before_it_ends(server):
    tokens = Tokens(expires_in=2)
    s = server(bearer_registry(tokens))
    out = drive(s.url, "manifest acme/api 1.0", "manifest acme/api 1.0", "sleep 1700", "manifest acme/api 1.0")
    assert [x["err"] for x in out] == ["OK"] * 3
    assert len(tokens.asked) == 2
    assert [r.auth for r in s.seen if r.path != "/token"] == [None, "Bearer t1", "Bearer t1", "Bearer t2"]


def test_a_sign_in_that_becomes_another(server):
    """The token endpoint that was learned goes away with its registry's way of signing in: the registry is asked again for its challenge."""
    tokens, changed = Tokens(expires_in=2), threading.Event()
    bearer = bearer_registry(tokens)

    def handler(req):
        if changed.is_set():
            return (404, {}, b"") if req.path == "/token" else basic_registry(req)
        if req.auth == "Bearer t1":
            changed.set()
        return bearer(req)

    out = drive(server(handler).url, "manifest acme/api 1.0", "sleep 1700", *["manifest acme/api 1.0"] * 3)
    assert [x["err"] for x in out] == ["OK", "UPSTREAM", "OK", "OK"]


def test_token_revoked_is_renewed_once(server):
    tokens = Tokens()
    s = server(bearer_registry(tokens, good=lambda t: t != "t1"))
    a, = drive(s.url, "manifest acme/api 1.0")
    assert a["err"] == "OK" and len(tokens.asked) == 2
    tokens = Tokens()
    s = server(bearer_registry(tokens, good=lambda t: False))
    a, = drive(s.url, "manifest acme/api 1.0")
    assert a["err"] == "UPSTREAM" and len(tokens.asked) == 2, "a second 401 ends it"


def test_anonymous_token(server):
    tokens = Tokens()
    s = server(bearer_registry(tokens))
    a, = drive(s.url, "manifest acme/api 1.0", username="", password="")
    assert a["err"] == "OK" and tokens.asked[0][1] is None


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"token":1}', b'{"token":""}', b'{"token":"a b"}', b'{"token":"a\\r\\nX: y"}', b'{"token":"a","token":"b"}',
                                  b"x" * 70000, b'{"token":"' + b"x" * 20000 + b'"}'])
def test_unusable_token_answers(server, body):
    def handler(req):
        if req.path == "/token":
            return 200, {}, body
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{req.fields["host"]}/token"'}, b""
    a, = drive(server(handler).url, "manifest acme/api 1.0")
    assert a["err"] == "UPSTREAM"


@pytest.mark.parametrize("status,err", [(401, "UPSTREAM"), (403, "UPSTREAM"), (404, "UPSTREAM"), (302, "UPSTREAM"), (429, "UNAVAILABLE"), (500, "UPSTREAM")])
def test_token_endpoint_refuses(server, status, err):
    def handler(req):
        if req.path == "/token":
            return status, {"Location": "/elsewhere", "Retry-After": "7"}, b"no"
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{req.fields["host"]}/token"'}, b""
    s = server(handler)
    out = drive(s.url, "3*manifest acme/api 1.0")
    assert [x["err"] for x in out] == [err] * 3
    assert out[0]["retry_after"] == (7 if status == 429 else 0)
    assert not [r for r in s.seen if r.path == "/elsewhere"]


def test_refusal_of_the_realm_is_remembered_a_moment(server):
    good = threading.Event()

    def handler(req):
        if req.path == "/token":
            return (200, {}, b'{"token":"t1"}') if good.is_set() else (401, {}, b"")
        return manifest_answer() if req.auth == "Bearer t1" else (401, {"WWW-Authenticate": f'Bearer realm="http://{req.fields["host"]}/token"'}, b"")
    s = server(handler)
    threading.Timer(1.0, good.set).start()
    out = drive(s.url, "5*manifest acme/api 1.0", "5*manifest acme/api 1.0", "sleep 2500", "manifest acme/api 1.0")
    assert [x["err"] for x in out] == ["UPSTREAM"] * 10 + ["OK"]
    assert len([r for r in s.seen if r.path == "/token"]) == 2


def test_access_token_member(server):
    def handler(req):
        if req.path == "/token":
            return 200, {}, b'{"access_token":"tA"}'
        if req.auth == "Bearer tA":
            return manifest_answer()
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{req.fields["host"]}/token"'}, b""
    assert drive(server(handler).url, "manifest acme/api 1.0")[0]["err"] == "OK"


def test_realm_on_another_host_gets_nothing(server):
    tokens = Tokens()
    evil = server(lambda req: tokens.answer(req))
    for realm in (evil.url + "/token", f"http://localhost:{evil.port}/token", f"http://robot@{evil.host}/", "file:///etc/passwd", "//evil/token", "",
                  f"http://127.0.0.1:{evil.port}\\@x/"):
        s = server(lambda req, realm=realm: (401, {"WWW-Authenticate": [f'Bearer realm="{realm}",service="s"', 'Basic realm="r"']}, b""))
        a, = drive(s.url, "manifest acme/api 1.0")
        assert a["err"] == "UPSTREAM" and "no credential was sent" in a["detail"], realm
        assert all(r.auth is None for r in s.seen)
    assert not evil.seen and not evil.connections


def test_realm_that_was_configured(server):
    tokens = Tokens()
    realm = server(lambda req: tokens.answer(req))
    s = server(bearer_registry(tokens, realm=realm.url + "/token"))
    for configured, ok in ((realm.url + "/token", True), (realm.url, True), (realm.host, True), ("127.0.0.1", True), (realm.url + "/tok", False),
                           (realm.url + "/token/x", False), (realm.url.replace("http", "https"), False), ("127.0.0.2", False),
                           (f"127.0.0.1:{realm.port + 1}", False)):
        n = len(realm.seen)
        a, = drive(s.url, "manifest acme/api 1.0", realm=configured)
        assert (a["err"] == "OK") == ok, configured
        assert (len(realm.seen) > n) == ok, configured


def test_malformed_challenges(server):
    for value in ("", "Bearer", "Bearer realm", 'Bearer realm="x', "Digest realm=x", 'Bearer realm="a",realm="b"', "Bearer " + "x" * 5000, "\x80"):
        s = server(lambda req, value=value: (401, {"WWW-Authenticate": value}, b""))
        a, = drive(s.url, "manifest acme/api 1.0")
        assert a["err"] == "UPSTREAM", value
        assert all(r.auth is None for r in s.seen), value
    s = server(lambda req: (401, {}, b""))
    assert drive(s.url, "manifest acme/api 1.0")[0]["err"] == "UPSTREAM"


# ---- redirects ---------------------------------------------------------------------------------------------------------

def redirecting(location, status=307):
    def handler(req):
        if req.auth != BASIC:
            return 401, {"WWW-Authenticate": "Basic"}, b""
        return status, {"Location": location(req) if callable(location) else location}, b"moved"
    return handler


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed_without_credentials(server, status):
    storage = server(lambda req: (200, {}, BLOB))
    s = server(redirecting(storage.url + "/data?sig=1%2F2", status))
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirect_hosts=[storage.host])
    assert a["err"] == "OK" and a["digest"] == sha(BLOB) and a["total"] == len(BLOB)
    hit, = storage.seen
    assert hit.auth is None and hit.target == "/data?sig=1%2F2" and hit.fields["host"] == storage.host
    assert "cookie" not in hit.fields and "referer" not in hit.fields


def test_bearer_token_does_not_follow_a_redirect(server):
    storage = server(lambda req: (200, {}, BLOB))
    tokens = Tokens()

    def handler(req):
        if req.path == "/token":
            return tokens.answer(req)
        if req.auth is None:
            return 401, {"WWW-Authenticate": f'Bearer realm="http://{req.fields["host"]}/token"'}, b""
        return 307, {"Location": storage.url + "/x"}, b""
    a, = drive(server(handler).url, f"blob acme/api {sha(BLOB)}", redirect_hosts=["127.0.0.1"])
    assert a["err"] == "OK" and storage.seen[0].auth is None


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}/x", "http://localhost:{port}/x", "http://[::1]:{port}/x", "//127.0.0.1:{port}/x",
                                   "http://2130706433:{port}/x", "file:///etc/passwd", "ftp://127.0.0.1:{port}/x", "gopher://127.0.0.1:{port}/x",
                                   "http://169.254.169.254/latest/meta-data/", "http://user:pw@127.0.0.1:{port}/", "http://", "", "http://a b/",
                                   "dict://127.0.0.1:{port}/x", "http:\\\\127.0.0.1:{port}", "javascript:1"])
def test_redirect_elsewhere_is_refused(server, where):
    evil = server(lambda req: (200, {}, BLOB))
    s = server(redirecting(where.format(port=evil.port)))
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirect_hosts=["storage.example", f"127.0.0.1:{evil.port + 1}", "*.example"])
    assert a["err"] == "UPSTREAM", a
    assert not evil.seen and not evil.connections


def test_redirect_to_a_named_domain_with_a_private_address(server):
    evil = server(lambda req: (200, {}, BLOB))
    s = server(redirecting(f"http://evil.localhost:{evil.port}/x"))  # any name under localhost is 127.0.0.1
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirect_hosts=["*.localhost"])
    assert a["err"] == "UPSTREAM" and not evil.seen and "private" in a["detail"]
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirect_hosts=["evil.localhost"])
    assert a["err"] == "OK" and len(evil.seen) == 1


def test_redirects_end(server):
    storage = server(lambda req: (302, {"Location": f"/{len(req.path)}" + req.path}, b""))
    s = server(redirecting(storage.url + "/x"))
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirect_hosts=[storage.host])
    assert a["err"] == "UPSTREAM" and len(storage.seen) == 3


def test_redirect_chain_leaves_the_allowed_hosts(server):
    evil = server(lambda req: (200, {}, BLOB))
    storage = server(lambda req: (302, {"Location": evil.url}, b""))
    a, = drive(server(redirecting(storage.url + "/x")).url, f"blob acme/api {sha(BLOB)}", redirect_hosts=[storage.host])
    assert a["err"] == "UPSTREAM" and not evil.connections


def test_manifest_is_not_fetched_from_another_host(server):
    storage = server(lambda req: manifest_answer())
    for handler in (redirecting(storage.url + "/m"), redirecting("http://127.0.0.1:1/")):
        a, b = drive(server(handler).url, "manifest acme/api 1.0", "head acme/api 1.0", redirect_hosts=["127.0.0.1"])
        assert (a["err"], b["err"]) == ("UPSTREAM", "UPSTREAM") and not storage.seen


def test_redirect_on_the_same_host(server):
    def handler(req):
        if req.path == "/v2/moved":
            return manifest_answer()
        return (307, {"Location": "/v2/moved"}, b"") if req.auth == BASIC else (401, {"WWW-Authenticate": "Basic"}, b"")
    s = server(handler)
    a, = drive(s.url, "manifest acme/api 1.0")
    assert a["err"] == "OK" and s.seen[-1].auth is None

    def wants_auth_there_too(req):
        if req.auth != BASIC:
            return 401, {"WWW-Authenticate": "Basic"}, b""
        return manifest_answer() if req.path == "/v2/moved" else (307, {"Location": "/v2/moved"}, b"")
    assert drive(server(wants_auth_there_too).url, "manifest acme/api 1.0")[0]["err"] == "OK"


def test_storage_asks_for_a_password_and_gets_none(server):
    storage = server(lambda req: (401, {"WWW-Authenticate": 'Basic realm="give it to me"'}, b""))
    a, = drive(server(redirecting(storage.url + "/x")).url, f"blob acme/api {sha(BLOB)}", redirect_hosts=[storage.host])
    assert a["err"] == "UPSTREAM" and [r.auth for r in storage.seen] == [None]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_storage_that_has_lost_it_is_no_not_found(server, status):
    storage = server(lambda req: (status, {}, b""))
    a, = drive(server(redirecting(storage.url + "/x")).url, f"blob acme/api {sha(BLOB)}", redirect_hosts=[storage.host])
    assert a["err"] == "UPSTREAM"


def test_redirects_passed_on(server):
    storage = server(lambda req: (200, {}, BLOB))
    s = server(redirecting(storage.url + "/x?sig=1"))
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirects="pass", redirect_hosts=[storage.host])
    assert (a["err"], a["status"], a["location"]) == ("OK", 307, storage.url + "/x?sig=1") and not storage.seen
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirects="pass", redirect_hosts=["other.example"])
    assert a["err"] == "UPSTREAM" and "location" not in a
    # Nothing of ours is handed out: the registry's own address is followed here.
    s = server(lambda req: (200, {}, BLOB) if req.path == "/b" else (307, {"Location": "/b"}, b""))
    a, = drive(s.url, f"blob acme/api {sha(BLOB)}", redirects="pass")
    assert (a["err"], a["status"]) == ("OK", 200)


# ---- TLS ---------------------------------------------------------------------------------------------------------------

def test_tls(server, tmp_path):
    ca = make_ca(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    other_ca = make_ca(other)
    s = server(basic_registry, tls=ca)
    pem, wrong = open(ca["ca"]).read(), open(other_ca["ca"]).read()
    assert drive(s.url, "manifest acme/api 1.0", ca=pem)[0]["err"] == "OK"
    n = len(s.seen)
    for bad in ("", wrong, "no PEM at all"):
        a, = drive(s.url, "manifest acme/api 1.0", ca=bad)
        assert a["err"] == "UPSTREAM", bad
    assert drive(s.url.replace("https", "http"), "ping")[0]["err"] in ("UPSTREAM", "UNAVAILABLE")
    assert len(s.seen) == n, "nothing is sent to a host that has not proved its name"

    plain = server(lambda req: (200, {}, BLOB))
    tls_redirect = server(redirecting(plain.url + "/x"), tls=ca)
    a, = drive(tls_redirect.url, f"blob acme/api {sha(BLOB)}", ca=pem, redirect_hosts=["127.0.0.1"])
    assert a["err"] == "UPSTREAM" and not plain.connections, "never from https down to http"
    realm = server(lambda req: (401, {"WWW-Authenticate": f'Bearer realm="{plain.url}/token"'}, b""), tls=ca)
    a, = drive(realm.url, "manifest acme/api 1.0", ca=pem, realm="127.0.0.1")
    assert a["err"] == "UPSTREAM" and not plain.connections
    storage = server(lambda req: (200, {}, BLOB), tls=ca)
    a, = drive(server(redirecting(storage.url + "/x"), tls=ca).url, f"blob acme/api {sha(BLOB)}", ca=pem, redirect_hosts=[storage.host])
    assert a["err"] == "OK" and storage.seen[0].auth is None


# ---- faults ------------------------------------------------------------------------------------------------------------

def failing(times, how, then=basic_registry):
    left = [times]
    lock = threading.Lock()

    def handler(req):
        with lock:
            left[0] -= 1
            fails = left[0] >= 0
        return how(req) if fails else then(req)
    return handler


@pytest.mark.parametrize("how", [lambda r: (500, {}, b"secret path /var/x"), lambda r: (502, {}, b""), lambda r: (503, {"Retry-After": "1"}, b""), lambda r: None])
def test_passing_faults_are_retried(server, how):
    s = server(failing(2, how))
    a, b = drive(s.url, "manifest acme/api 1.0", f"blob acme/api {sha(BLOB)}")
    assert (a["err"], b["err"]) == ("OK", "OK")
    s = server(failing(1000, how))
    a, b = drive(s.url, "manifest acme/api 1.0", f"blob acme/api {sha(BLOB)}")
    assert (a["err"], b["err"]) == ("UPSTREAM", "UPSTREAM")
    assert "secret path" not in a["detail"]
    assert len(s.seen) == 6, "two further tries each"
    assert drive(server(failing(1, how)).url, "manifest acme/api 1.0", limits={"retries": 0})[0]["err"] == "UPSTREAM"


def test_connection_that_was_closed_while_idle(server):
    """The server closes after each answer without saying so: the second request must not fail."""
    def handler(req):
        status, fields, body = manifest_answer()
        return (f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    s = server(handler)
    out = drive(s.url, "manifest acme/api 1.0", "sleep 50", "manifest acme/api 1.0", "manifest acme/api 1.0", limits={"retries": 0})
    assert [x["err"] for x in out] == ["OK"] * 3


def test_429(server):
    s = server(lambda req: (429, {"Retry-After": "17"}, b""))
    a, b = drive(s.url, "manifest acme/api 1.0", f"blob acme/api {sha(BLOB)}")
    assert (a["err"], a["retry_after"], b["err"], b["retry_after"]) == ("UNAVAILABLE", 17, "UNAVAILABLE", 17)
    assert len(s.seen) == 2, "not hammered"


def test_slow_first_byte(server):
    s = server(lambda req: time.sleep(5))
    t0 = time.monotonic()
    a, = drive(s.url, "manifest acme/api 1.0", limits={"connect_ms": 200, "first_byte_ms": 200})
    assert a["err"] == "TIMEOUT" and time.monotonic() - t0 < 3 * SLOW
    assert len(s.seen) == 1


def test_dripping_head(server):
    def handler(req):
        for c in "HTTP/1.1 200 OK\r\nX: " + "y" * 100:
            req.sock.sendall(c.encode())
            time.sleep(0.05)
    a, = drive(server(handler).url, "manifest acme/api 1.0", limits={"connect_ms": 200, "first_byte_ms": 300})
    assert a["err"] == "TIMEOUT"


@pytest.mark.parametrize("step", [0, 1])
def test_stalled_body(server, step):
    def handler(req):
        req.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 5000)
        for _ in range(100):
            time.sleep(0.1)
            req.sock.sendall(b"x" * step)  # a drip is a stall, too
    t0 = time.monotonic()
    a, = drive(server(handler).url, f"blob acme/api {sha(BLOB)}", limits={"stall_ms": 500})
    assert a["err"] == "TIMEOUT" and 5000 <= a["n"] < 6000 and time.monotonic() - t0 < 5 * SLOW


def test_truncated_bodies(server):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + OCI.encode() + b"\r\n"
    for raw in (head + b"Content-Length: 1000\r\n\r\n" + MANIFEST, head + b"Transfer-Encoding: chunked\r\n\r\n10\r\n" + MANIFEST[:16] + b"\r\n",
                head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", head + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n" + MANIFEST,
                head + b"Content-Length: -1\r\n\r\n" + MANIFEST, head + b"Content-Length: 0x10\r\n\r\n" + MANIFEST):
        s = server(lambda req, raw=raw: raw)
        a, b = drive(s.url, "manifest acme/api 1.0", f"blob acme/api {sha(MANIFEST)}")
        assert (a["err"], b["err"]) == ("UPSTREAM", "UPSTREAM"), raw


def test_broken_heads(server):
    for raw in (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40000 + b"\r\n\r\n", b"garbage\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nX\x00Y: z\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: a\x01b\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 3000, b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 206 Partial Content\r\n\r\n",
                b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 300 Multiple Choices\r\nContent-Length: 0\r\n\r\n"):
        s = server(lambda req, raw=raw: raw)
        a, b = drive(s.url, "manifest acme/api 1.0", f"blob acme/api {sha(BLOB)}", limits={"first_byte_ms": 1000, "connect_ms": 1000, "retries": 0})
        assert a["err"] in ("UPSTREAM", "TIMEOUT") and b["err"] in ("UPSTREAM", "TIMEOUT"), (raw[:60], a, b)
    ok = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (OCI.encode(), len(MANIFEST)) + MANIFEST
    assert drive(server(lambda req: ok).url, "manifest acme/api 1.0")[0]["err"] == "OK"


def test_unreachable():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    a, b = drive(f"http://127.0.0.1:{port}", "manifest acme/api 1.0", "ping")
    assert (a["err"], b["err"]) == ("UNAVAILABLE", "UNAVAILABLE")
    a, = drive("http://no-such-host.invalid", "ping")
    assert a["err"] == "UNAVAILABLE" and "resolve" in a["detail"]


def test_breaker(server):
    up = threading.Event()
    s = server(lambda req: basic_registry(req) if up.is_set() else (500, {}, b""))
    limits = {"breaker_failures": 3, "breaker_ms": 300, "retries": 0}
    some = [f"manifest acme/api 1.{i}" for i in range(6)]
    out = drive(s.url, *some, "sleep 400", *some[:2], limits=limits)
    assert [x["err"] for x in out] == ["UPSTREAM"] * 3 + ["UNAVAILABLE"] * 3 + ["UPSTREAM", "UNAVAILABLE"]
    assert [x["healthy"] for x in out[:3]] == [True, True, False]
    assert len(s.seen) == 4, "three, then one probe"
    assert out[3]["retry_after"] >= 1

    s.seen.clear()
    threading.Timer(0.35, up.set).start()
    out = drive(s.url, *some[:3], "sleep 700", "20*manifest acme/api 1.0", "20*manifest acme/api 1.0", limits=limits)
    assert out[-1]["healthy"] and [x["err"] for x in out[-20:]] == ["OK"] * 20
    assert [x["err"] for x in out[3:23]].count("OK") == 1, "one probe at a time while it is half open"


def test_one_broken_thing_does_not_open_the_breaker(server):
    s = server(lambda req: (500, {}, b"") if req.path.endswith("/broken") else basic_registry(req))
    out = drive(s.url, *["manifest acme/api broken"] * 8, "manifest acme/api 1.0", limits={"breaker_failures": 3, "retries": 0})
    assert [x["err"] for x in out] == ["UPSTREAM"] * 8 + ["OK"] and all(x["healthy"] for x in out)


def test_errors_of_the_customers_kind_do_not_open_the_breaker(server):
    s = server(lambda req: (404, {}, b"") if req.auth else (401, {"WWW-Authenticate": "Basic"}, b""))
    out = drive(s.url, *["manifest acme/api 1.0"] * 6, limits={"breaker_failures": 3})
    assert [x["err"] for x in out] == ["NOT_FOUND"] * 6 and out[-1]["healthy"]


# ---- manifests ---------------------------------------------------------------------------------------------------------

def test_wrong_digests(server):
    other = MANIFEST.replace(b'"size":1', b'"size":2')
    cases = [
        (f"manifest acme/api {sha(MANIFEST)}", (200, {"Content-Type": OCI}, other)),
        (f"manifest acme/api {sha(MANIFEST)}", (200, {"Content-Type": OCI, "Docker-Content-Digest": sha(MANIFEST)}, other)),
        (f"manifest acme/api {sha(MANIFEST)}", (200, {"Content-Type": OCI, "Docker-Content-Digest": sha(other)}, other)),
        ("manifest acme/api 1.0", (200, {"Content-Type": OCI, "Docker-Content-Digest": sha(MANIFEST)}, other)),
        ("manifest acme/api 1.0", (200, {"Content-Type": OCI, "Docker-Content-Digest": "sha256:zz"}, MANIFEST)),
        ("manifest acme/api 1.0", (200, {"Content-Type": OCI, "Docker-Content-Digest": [sha(MANIFEST), sha(other)]}, MANIFEST)),
        (f"head acme/api {sha(MANIFEST)}", (200, {"Content-Type": OCI, "Docker-Content-Digest": sha(other)}, MANIFEST)),
        ("manifest acme/api 1.0", (200, {"Content-Type": OCI}, b"")),
        ("manifest acme/api 1.0", (200, {"Content-Type": "text/html"}, b"<html>")),
        ("manifest acme/api 1.0", (200, {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}, b'{"schemaVersion":1}')),
        ("manifest acme/api 1.0", (200, {"Content-Type": "application/json"}, b'{"schemaVersion":1,"fsLayers":[]}')),
        ("manifest acme/api 1.0", (200, {"Content-Type": OCI}, b"x" * (4 * 1024 * 1024 + 1))),
        ("manifest acme/api 1.0", (200, {"Content-Type": OCI, "Content-Length": None, "Transfer-Encoding": "chunked"},
                                   b"500000\r\n" + b"x" * 0x500000 + b"\r\n0\r\n\r\n")),
    ]
    for n, (op, answer) in enumerate(cases):
        a, = drive(server(lambda req, answer=answer: answer).url, op)
        assert a["err"] == ("UPSTREAM" if n < len(cases) - 2 else "TOO_LARGE") and "bytes" not in a, (op, answer[1])


def test_head(server):
    s = server(lambda req: manifest_answer())
    a, = drive(s.url, "head acme/api 1.0")
    assert (a["err"], a["digest"], a["size"], a["media_type"]) == ("OK", sha(MANIFEST), len(MANIFEST), OCI)
    assert [r.method for r in s.seen] == ["HEAD"]
    # Without a digest, a length or a type, and where HEAD is refused: GET says it.
    for fields in ({"Docker-Content-Digest": None}, {"Content-Type": "application/json"}):
        s = server(lambda req, fields=fields: manifest_answer(**fields))
        a, = drive(s.url, "head acme/api 1.0")
        assert (a["err"], a["digest"], a["media_type"]) == ("OK", sha(MANIFEST), OCI) and [r.method for r in s.seen] == ["HEAD", "GET"]
    s = server(lambda req: (405, {}, b"") if req.method == "HEAD" else manifest_answer())
    assert drive(s.url, "head acme/api 1.0")[0]["digest"] == sha(MANIFEST)
    s = server(lambda req: (404, {}, b""))
    assert drive(s.url, "head acme/api 1.0", username="", password="")[0]["err"] == "NOT_FOUND"


def test_sha512(server):
    d = "sha512:" + hashlib.sha512(MANIFEST).hexdigest()
    s = server(lambda req: (200, {"Content-Type": OCI, "Docker-Content-Digest": d}, MANIFEST))
    a, b, c = drive(s.url, f"manifest acme/api {d}", "manifest acme/api 1.0", "manifest acme/api sha512:" + "0" * 128)
    assert (a["err"], a["digest"], b["err"], b["digest"], c["err"]) == ("OK", d, "OK", sha(MANIFEST), "UPSTREAM")


def test_malformed_references_reach_nobody(server):
    s = server(lambda req: manifest_answer())
    out = drive(s.url, "manifest acme/api sha256:zzz", "manifest acme/api sha512:aa", "manifest acme/../x 1", "manifest A 1", "manifest acme/api ../x",
                "manifest acme/api a%2fb", "tags a//b", "blob acme/api sha256:0", "referrers acme/api x")
    assert {x["err"] for x in out} == {"INVALID"} and not s.seen


def test_prefix_of_the_url(server):
    s = server(lambda req: manifest_answer())
    for url in (s.url + "/registry", s.url + "/registry/"):
        assert drive(url, "manifest acme/api 1.0")[0]["err"] == "OK"
        assert s.seen[-1].target == "/registry/v2/acme/api/manifests/1.0"


# ---- blobs -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("length", [18881719, 60000])
def test_416_that_lies_about_its_length(server, length):
    def handler(req):
        if "range" in req.fields:
            req.sock.sendall(b"HTTP/1.1 416 X\r\nContent-Length: %d\r\n\r\n" % length + b"x" * 33)
            time.sleep(10)
            return None
        return 200, {}, BLOB
    s = server(handler)
    t0 = time.monotonic()
    a, b = drive(s.url, f"blob acme/api {sha(BLOB)} 999999 9999999", f"blob acme/api {sha(BLOB)}")
    assert (a["err"], b["err"]) == ("RANGE", "OK") and time.monotonic() - t0 < 5 * SLOW
    assert s.connections == 2, "that connection is not used again"


def test_ranges(server):
    def part(first, last, **fields):
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(BLOB)}", **fields}, BLOB[first:last + 1]
    s = server(lambda req: part(100, 199))
    a, = drive(s.url, f"blob acme/api {sha(BLOB)} 100 199")
    assert (a["err"], a["status"], a["n"], a["total"], a["digest"]) == ("OK", 206, 100, len(BLOB), sha(BLOB[100:200]))
    assert s.seen[0].fields["range"] == "bytes=100-199"
    a, = drive(server(lambda req: (200, {}, BLOB)).url, f"blob acme/api {sha(BLOB)} 100 199")
    assert (a["err"], a["status"], a["n"]) == ("OK", 200, len(BLOB)), "a registry without ranges: the caller sees that it is the whole"
    a, = drive(server(lambda req: part(len(BLOB) - 10, len(BLOB) - 1)).url, f"blob acme/api {sha(BLOB)} {len(BLOB) - 10} {len(BLOB) + 10}")
    assert (a["err"], a["n"]) == ("OK", 10)
    for bad in (part(0, 99), part(100, 198), part(100, 200), (206, {}, BLOB[100:200]), (206, {"Content-Range": "bytes */5"}, b""),
                (206, {"Content-Type": "multipart/byteranges; boundary=x"}, b"--x"), part(100, 199, **{"Content-Length": "99"})):
        a, = drive(server(lambda req, bad=bad: bad).url, f"blob acme/api {sha(BLOB)} 100 199")
        assert a["err"] == "UPSTREAM", bad
    a, = drive(server(lambda req: part(0, 9)).url, f"blob acme/api {sha(BLOB)}")
    assert a["err"] == "UPSTREAM"


def test_blob_head_and_absence(server):
    s = server(lambda req: (200, {}, BLOB))
    a, = drive(s.url, f"blobhead acme/api {sha(BLOB)}")
    assert (a["err"], a["status"], a["length"], a["n"]) == ("OK", 200, len(BLOB), 0) and s.seen[0].method == "HEAD"
    a, = drive(server(lambda req: (404, {}, b"{}")).url, f"blob acme/api {sha(BLOB)}")
    assert a["err"] == "NOT_FOUND"


def test_paused_body_costs_no_memory_and_is_not_a_stall(server):
    size = 64 * 1024 * 1024
    chunk = bytes(range(256)) * 256

    def handler(req):
        req.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(chunk)):
            req.sock.sendall(chunk)
        return None
    s = server(handler)
    a, = drive(s.url, f"pause acme/api {sha(BLOB)} 1500", limits={"stall_ms": 400}, timeout=120)
    assert a["err"] == "OK" and a["n"] == size and a["digest"] == sha(chunk * (size // len(chunk)))
    if SLOW == 1:
        assert a["rss_paused_kb"] < 40 * 1024


def test_cancel_and_stop_in_mid_body(server):
    gone = threading.Event()

    def handler(req):
        req.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                req.sock.sendall(b"x" * 65536)
        except OSError:
            gone.set()
        return None
    s = server(handler)
    a, b, c = drive(s.url, f"cut acme/api {sha(BLOB)}", f"stop acme/api {sha(BLOB)}", f"5*cut acme/api {sha(BLOB)}")[:3]
    assert (a["err"], a["detail"]) == ("OK", "cut") and b["err"] == "CANCELED" and c["err"] == "OK"
    assert gone.wait(5)


def test_connections_are_bounded_and_blobs_do_not_hold_up_manifests(server):
    def handler(req):
        if "/manifests/" in req.path:
            return manifest_answer()
        time.sleep(0.5)
        return 200, {}, BLOB
    s = server(handler)
    out = drive(s.url, f"12*blob acme/api {sha(BLOB)}", limits={"connections": 8})
    assert [x["err"] for x in out] == ["OK"] * 12 and s.connections <= 8


# ---- tags and referrers --------------------------------------------------------------------------------------------------

def test_tags_over_pages(server):
    pages = {"": (["b", "a", "a", "no tag!", "", "-x", 5, None], '</v2/acme/api/tags/list?n=1000&last=b>; rel="next"'),
             "n=1000&last=b": (["d", "c"], "<HOST/v2/acme/api/tags/list?last=d>; rel=next"),
             "last=d": (["Z", "1.0"], None)}

    def handler(req):
        tags, link = pages.get(req.query, pages[""])
        return 200, {"Link": link.replace("HOST", f"http://{req.fields['host']}") if link else None}, json.dumps({"name": "acme/api", "tags": tags}).encode()
    s = server(handler)
    a, = drive(s.url, "tags acme/api")
    assert a["err"] == "OK" and a["tags"] == ["1.0", "Z", "a", "b", "c", "d"]
    assert len(s.seen) == 3


def test_tags_oddities(server):
    for body, err, tags in ((b'{"name":"x","tags":null}', "OK", []), (b'{"name":"x","tags":[]}', "OK", []), (b'{"tags":["a"]}', "OK", ["a"]), (b"[]", "UPSTREAM", None),
                            (b"", "UPSTREAM", None), (b"<html>", "UPSTREAM", None), (b'{"tags":"a"}', "UPSTREAM", None), (b'{"tags":["a"],"tags":["b"]}', "UPSTREAM", None),
                            (b'{"name":"x"}', "OK", []), (b"{}", "UPSTREAM", None), (b'{"schemaVersion":2,"manifests":[]}', "UPSTREAM", None)):
        a, = drive(server(lambda req, body=body: (200, {}, body)).url, "tags acme/api")
        assert a["err"] == err and (err != "OK" or a["tags"] == tags), body
    assert drive(server(lambda req: (404, {}, b"{}")).url, "tags acme/api")[0]["err"] == "NOT_FOUND"


def test_tags_that_lead_elsewhere(server):
    evil = server(lambda req: (200, {}, b'{"tags":["evil"]}'))
    for link in (f"<{evil.url}/v2/acme/api/tags/list?n=2>; rel=next", "<file:///etc/passwd>; rel=next", f"<//{evil.host}/x>; rel=next",
                 "</v2/acme/api/tags/list?n=1000>; rel=next"):
        s = server(lambda req, link=link: (200, {"Link": link}, b'{"tags":["a"]}'))
        a, = drive(s.url, "tags acme/api")
        assert a["err"] == "UPSTREAM", link
    assert not evil.connections
    n = [0]

    def endless(req):
        n[0] += 1
        return 200, {"Link": f"</v2/acme/api/tags/list?n={n[0]}>; rel=next"}, b'{"tags":["a"]}'
    a, = drive(server(endless).url, "tags acme/api")
    assert a["err"] == "UPSTREAM" and n[0] <= 1000
    big = json.dumps({"tags": ["x" * 100] * 1000}).encode()
    a, = drive(server(lambda req: (200, {}, big)).url, "tags acme/api", limits={"tags_bytes": 50000})
    assert a["err"] == "UPSTREAM"


def test_referrers(server):
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    s = server(lambda req: (200, {"Content-Type": INDEX}, index))
    a, = drive(s.url, f"referrers acme/api {sha(MANIFEST)}")
    assert a["err"] == "OK" and a["bytes"].encode() == index and s.seen[0].path == f"/v2/acme/api/referrers/{sha(MANIFEST)}"
    for status in (404, 400, 405):
        a, = drive(server(lambda req, status=status: (status, {"Content-Type": "text/plain"}, b"404 page not found")).url, f"referrers acme/api {sha(MANIFEST)}")
        assert a["err"] == "NOT_FOUND"
    a, = drive(server(lambda req: (200, {"Content-Type": "text/html"}, b"<html>")).url, f"referrers acme/api {sha(MANIFEST)}")
    assert a["err"] == "NOT_FOUND"
    a, = drive(server(lambda req: (500, {}, b"")).url, f"referrers acme/api {sha(MANIFEST)}")
    assert a["err"] == "UPSTREAM"


# ---- the real thing ------------------------------------------------------------------------------------------------------

def test_docker_registry(tmp_path):
    r = Registry(tmp_path)
    try:
        layer = b"layer " * 100000
        image = r.push_image("acme/api", "1.0", [layer])
        r.push_image("acme/api", "1.1", [b"other layer"])
        spec = {"username": r.user, "password": r.password}
        p = drive(r.url, "ping", "manifest acme/api 1.0", f"manifest acme/api {image['digest']}", "head acme/api 1.0", "tags acme/api",
                  f"blob acme/api {sha(layer)}", f"blob acme/api {sha(layer)} 6 11", f"blob acme/api {sha(layer)} 99999999 999999999",
                  f"blobhead acme/api {sha(layer)}", "manifest acme/api 9.9", "manifest acme/none 1.0", f"blob acme/api {sha(b'no')}",
                  f"referrers acme/api {image['digest']}", f"20*blob acme/api {sha(layer)}", **spec)
        assert [x["err"] for x in p[:13]] == ["OK"] * 7 + ["RANGE", "OK", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"]
        assert [x["err"] for x in p[13:]] == ["OK"] * 20
        assert p[1]["digest"] == p[2]["digest"] == p[3]["digest"] == image["digest"]
        assert p[4]["tags"] == ["1.0", "1.1"]
        assert p[5]["digest"] == sha(layer) and p[6]["digest"] == sha(b"layer ") and p[8]["length"] == len(layer)
        assert drive(r.url, "ping", username=r.user, password="wrong")[0]["err"] == "UPSTREAM"
    finally:
        r.stop()
