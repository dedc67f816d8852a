"""The limits of SECURITY.md 4.10, one test each, through the real daemons: what is at the limit passes, one more is refused, with the
right status and the right cause. tests/integration/test_overload.py has what happens when many come at once."""
import contextlib
import hashlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest
import requests
from admin_fixture import admin_stack, problem
from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import BIN, SANITIZED, SLOW, Stack, basic, make_ca, wait_for

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

# limit of SECURITY.md 4.10 (DESIGN.md where that says otherwise) -> key and default
DEFAULTS = {
    "limits.target_size": "4KiB", "limits.head_size": "16KiB", "limits.head_fields": "64", "limits.head_deadline": "10s", "limits.body_deadline": "30s",
    "limits.tls_handshake": "10s", "limits.keepalive_idle": "60s", "limits.keepalive_requests": "1000", "limits.client_min_rate": "10KiB",
    "limits.client_min_rate_window": "30s", "limits.blob_max_duration": "2h", "limits.connections": "10000", "limits.connections_per_ip": "256",
    "limits.admin_body_size": "64KiB", "limits.manifest_size": "4MiB", "limits.closure_nodes": "10000", "limits.closure_depth": "4",
    "limits.inflight_per_customer": "64", "limits.upstream_connections": "128", "limits.auth_failures_per_minute": "30",
    "limits.auth_failures_per_credential": "30", "limits.auth_failures_per_second": "200", "limits.tags_page": "1000", "limits.buffer_high": "256KiB",
    "limits.redis_deadline": "200ms", "limits.upstream_connect": "5s", "limits.upstream_first_byte": "15s",
}


def test_defaults_are_those_of_the_table():
    text = subprocess.run([BIN / "pullgate-proxy", "--config-reference"], check=True, capture_output=True, text=True).stdout
    have = {m[1]: m[2] for m in re.finditer(r"^\| `([a-z_.]+)` \| `[A-Z_0-9]+` \| `([^`]*)` \|", text, re.M)}
    assert {k: have.get(k) for k in DEFAULTS} == DEFAULTS


class Lab(World):
    """The world of the other tests over a scripted upstream, with raw sockets and the access log."""

    def __init__(self, **kw):
        super().__init__(upstream=ScriptedUpstream(), **kw)
        host, port = self.s.proxies[0].address.rsplit(":", 1)
        self.host, self.port = host, int(port)
        self.metrics = None
        lines = (self.s.dir / "proxy0.port").read_text().split()
        if len(lines) > 1:
            self.metrics = f"http://{lines[1]}/metrics"

    def connect(self, source="127.0.0.1", timeout=15):
        s = socket.create_connection((self.host, self.port), timeout=timeout * SLOW, source_address=(source, 0))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def raw(self, data, source="127.0.0.1"):
        """Sends data, reads to the end; (status or None, fields, body)."""
        with self.connect(source) as s:
            s.sendall(data)
            return parse(read_all(s))

    def access(self, **match):
        out = []
        for line in self.s.proxies[0].text().splitlines():
            if '"msg":"access"' not in line:
                continue
            with contextlib.suppress(ValueError):
                d = json.loads(line)
                if all(d.get(k) == v for k, v in match.items()):
                    out.append(d)
        return out

    def wait_access(self, **match):
        return wait_for(f"an access line with {match}", lambda: self.access(**match))[-1]

    def total(self, name, **labels):
        n = 0
        for line in requests.get(self.metrics, timeout=10).text.splitlines():
            if line.startswith(name) and line[len(name)] in " {" and all(f'{k}="{v}"' in line for k, v in labels.items()):
                n += float(line.rsplit(" ", 1)[1])
        return n

    def image(self, tag, repo="acme/api", layers=None):
        return self.s.upstream.push_image(repo, tag, layers or [tag.encode() * 100])

    def close(self):
        self.s.close()
        self.s.upstream.stop()


def read_all(s):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := s.recv(1 << 16):
            data += chunk
    return data


def parse(data):
    if not data.startswith(b"HTTP/"):
        return None, {}, data
    top, _, body = data.partition(b"\r\n\r\n")
    line, *lines = top.decode("latin-1").split("\r\n")
    return int(line.split()[1]), {k.lower(): v for k, v in (x.split(": ", 1) for x in lines)}, body


def request(path="/v2/", auth=None, fields="", method="GET", close=True):
    return (f"{method} {path} HTTP/1.1\r\nHost: r.example\r\n" + (f"Authorization: {auth}\r\n" if auth else "") +
            ("Connection: close\r\n" if close else "") + fields + "\r\n").encode("latin-1")


def answer(s):
    """One answer with a Content-Length off a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = s.recv(65536)
        if not chunk:
            return None, {}, data
        data += chunk
    status, fields, body = parse(data)
    while len(body) < int(fields["content-length"]):
        body += s.recv(65536)
    return status, fields, body


@pytest.fixture(scope="module")
def lab():
    """Defaults, but for what would otherwise take minutes."""
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"]}, cache={"tag_freshness": "0s", "hold_on_unknown": "500ms", "negative": "0s"},
            limits={"auth_failures_per_minute": 100000})
    yield w
    w.close()


# ---- heads and bodies ---------------------------------------------------------------------------------------------------


def test_request_target(lab):
    path = "/v2/?x="
    assert lab.raw(request(path + "a" * (4096 - len(path)), lab.auth))[0] == 200
    assert lab.raw(request(path + "a" * (4097 - len(path)), lab.auth))[0] == 414
    lab.wait_access(status=414, cause="refused")


def test_request_head(lab):
    base = request(auth=lab.auth, fields="X-Fill: \r\n")
    at = request(auth=lab.auth, fields="X-Fill: " + "a" * (16384 - len(base)) + "\r\n")
    assert len(at) == 16384
    assert lab.raw(at)[0] == 200
    assert lab.raw(request(auth=lab.auth, fields="X-Fill: " + "a" * (16385 - len(base)) + "\r\n"))[0] == 431
    lab.wait_access(status=431, cause="refused")


def test_request_fields(lab):
    assert lab.raw(request(auth=lab.auth, fields="".join(f"X-{i}: y\r\n" for i in range(61))))[0] == 200  # with Host, Authorization, Connection: 64
    assert lab.raw(request(auth=lab.auth, fields="".join(f"X-{i}: y\r\n" for i in range(62))))[0] == 431


def test_registry_body(lab):
    assert lab.raw(request(auth=lab.auth, fields="Content-Length: 0\r\n"))[0] == 200
    assert lab.raw(request(auth=lab.auth, fields="Content-Length: 1\r\n") + b"x")[0] == 413


def test_token_body(lab):
    secret = lab.credential["secret"]
    form = f"grant_type=password&username=globex&password={secret}&service=pullgate&x="
    head = lambda n: request("/token", method="POST", fields=f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {n}\r\n")  # noqa: E731
    assert lab.raw(head(8192) + form.encode() + b"a" * (8192 - len(form)))[0] == 200
    assert lab.raw(head(8193) + form.encode() + b"a" * (8193 - len(form)))[0] == 413


def test_names_tags_and_digests(lab):
    """255, 128, 64 hex digits: at the limit it is asked about, beyond it is malformed."""
    name = "n" * 255
    assert lab.get(f"/v2/{name}/manifests/1.0.0").status_code == 403
    assert lab.get(f"/v2/{name}n/manifests/1.0.0").status_code == 400
    assert lab.get("/v2/shop/api/manifests/" + "1" * 128).status_code == 403
    assert lab.get("/v2/shop/api/manifests/" + "1" * 129).status_code in (400, 404)
    assert lab.get("/v2/shop/api/manifests/sha256:" + "0" * 64).status_code == 404
    assert lab.get("/v2/shop/api/manifests/sha256:" + "0" * 65).status_code == 400


def test_scopes_of_a_token(lab):
    """Sixteen are looked at; what comes behind is as if it had not been asked for."""
    def repositories(n_before):
        scope = [f"repository:no/such{i}:pull" for i in range(n_before)] + ["repository:shop/api:pull"]
        r = requests.get(lab.s.base + "/token", params=[("service", "pullgate")] + [("scope", x) for x in scope], headers={"Authorization": lab.auth}, timeout=10)
        assert r.status_code == 200, r.text
        return lab.get("/v2/shop/api/manifests/1.0.0", auth="Bearer " + r.json()["token"]).status_code

    assert repositories(15) == 200
    assert repositories(16) == 401


# ---- content ------------------------------------------------------------------------------------------------------------


def padded(n, **more):
    """A manifest of exactly n bytes."""
    cfg = b"{}"
    doc = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
           "digest": "sha256:" + hashlib.sha256(cfg).hexdigest(), "size": 2}, "layers": [], "annotations": {"pad": ""}, **more}
    doc["annotations"]["pad"] = "x" * (n - len(json.dumps(doc)))
    data = json.dumps(doc).encode()
    assert len(data) == n
    return data


def pull(lab, tag, data, media=MANIFEST):
    lab.s.upstream.push_manifest("acme/api", tag, data, media)
    return lab.get(f"/v2/shop/api/manifests/{tag}").status_code


def test_manifest_size(lab):
    assert pull(lab, "1.50.0", padded(4 << 20)) == 200
    assert pull(lab, "1.50.1", padded((4 << 20) + 1)) in (502, 503)
    assert lab.wait_access(reference="1.50.1")["cause"] in ("upstream_failed", "content_unavailable")


def test_manifest_json(lab):
    """50,000 tokens, 32 deep: the document of the client's tag is not served where its closure cannot be known."""
    deep = lambda n: json.loads("[" * n + "]" * n)  # noqa: E731
    assert pull(lab, "1.51.0", padded(5000, extra=deep(31))) == 200  # inside the document: one more
    assert pull(lab, "1.51.1", padded(5000, extra=deep(32))) in (502, 503)
    assert pull(lab, "1.51.2", padded(300000, extra=[0] * 49900)) == 200
    assert pull(lab, "1.51.3", padded(300000, extra=[0] * 50100)) in (502, 503)


def test_closure_depth(lab):
    """Indexes in indexes: four deep below the tag's own are followed, the fifth makes the closure unknowable."""
    up = lab.s.upstream

    def nested(tag, depth):
        leaf = up.push_image("acme/api", None, [tag.encode()])
        for _ in range(depth):
            leaf = up.push_index("acme/api", None, [leaf], [("linux", "amd64")])
        up.tags["acme/api", tag] = leaf["digest"]
        return lab.get(f"/v2/shop/api/manifests/{tag}").status_code, lab.get(f"/v2/shop/api/blobs/{deepest(leaf)}").status_code

    def deepest(image):
        while "children" in image:
            image = image["children"][0]
        return image["layers"][0]

    assert nested("1.52.0", 3) == (200, 200)
    tag, blob = nested("1.52.1", 6)
    assert blob in (404, 502, 503) and tag in (200, 502, 503)


def test_closure_nodes():
    w = Lab(cache={"tag_freshness": "0s", "hold_on_unknown": "300ms"}, limits={"closure_nodes": 20})
    try:
        few = w.image("1.60.0", layers=[b"few %d" % i for i in range(10)])
        many = w.image("1.60.1", layers=[b"many %d" % i for i in range(30)])
        assert w.get("/v2/shop/api/manifests/1.60.0").status_code == 200
        assert w.get(f"/v2/shop/api/blobs/{few['layers'][-1]}").status_code == 200
        assert {w.get("/v2/shop/api/manifests/1.60.1").status_code, w.get(f"/v2/shop/api/blobs/{many['layers'][-1]}").status_code} & {502, 503}
        assert w.get(f"/v2/shop/api/blobs/{many['layers'][-1]}").status_code != 200
    finally:
        w.close()


def test_tags_page(lab):
    up = lab.s.upstream
    image = up.push_image("acme/many", "1.0.0", [b"one"])
    for i in range(1, 1100):
        up.tags["acme/many", f"1.0.{i}"] = image["digest"]
    app = lab.s.add_application("many", [("many/app", "acme/many", "image")], lab.upstream["id"])
    auth, _, _ = lab.customer_with("many-customer", [{"selector": "all", "value": "*"}], app)
    lab.s.wait_status("/v2/many/app/manifests/1.0.0", auth, 200)
    for n, want in ((1000, 1000), (1001, 1000), (7, 7)):
        r = lab.get(f"/v2/many/app/tags/list?n={n}", auth)
        assert r.status_code == 200 and len(r.json()["tags"]) == want
    assert 'rel="next"' in r.headers["Link"]


# ---- time ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """Every deadline short."""
    ca = make_ca(tmp_path_factory.mktemp("tls"))
    w = Lab(proxy={"listen": ["127.0.0.1:0", "unix:" + str(tmp_path_factory.mktemp("u") / "s")], "metrics_listen": ["127.0.0.1:0"]},
            cache={"hold_on_unknown": "200ms", "tag_freshness": "0s"},
            limits={"head_deadline": "700ms", "body_deadline": "700ms", "keepalive_idle": "1500ms", "keepalive_requests": 5, "tls_handshake": "700ms",
                    "client_min_rate": "64KiB", "client_min_rate_window": "1s", "blob_max_duration": "4s", "upstream_first_byte": "500ms",
                    "upstream_connect": "500ms", "upstream_retries": 0})
    w.ca = ca
    yield w
    w.close()


def ends_within(s, low, high):
    at = time.monotonic()
    data = read_all(s)
    took = time.monotonic() - at
    assert low <= took <= high * SLOW, took
    return parse(data)[0]


def test_head_deadline(hasty):
    """Nothing at all, a beginning, and one byte after the other: the same end."""
    with hasty.connect() as s:
        assert ends_within(s, 0.5, 2) is None
    with hasty.connect() as s:
        s.sendall(b"GET /v2/ HTTP/1.1\r\nHo")
        assert ends_within(s, 0.5, 2) == 408
    hasty.wait_access(status=408, cause="refused")
    with hasty.connect() as s:
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                for c in b"GET /v2/ HTTP/1.1\r\nX: " + b"y" * 1000:
                    s.sendall(bytes([c]))
                    if stop.wait(0.1):
                        return
        t = threading.Thread(target=drip)
        t.start()
        assert ends_within(s, 0.4, 2) in (408, None)
        stop.set()
        t.join()


def test_body_deadline(hasty):
    with hasty.connect() as s:
        s.sendall(request("/token", method="POST", fields="Content-Length: 100\r\n") + b"grant_type=")
        assert ends_within(s, 0.5, 2) == 408


def test_keep_alive_idle_and_requests(hasty):
    with hasty.connect() as s:
        for i in range(5):
            s.sendall(request(auth=hasty.auth, close=False))
            status, fields, _ = answer(s)
            assert status == 200 and ("connection" in fields) == (i == 4)
        assert s.recv(1) == b""
    with hasty.connect() as s:
        s.sendall(request(auth=hasty.auth, close=False))
        assert answer(s)[0] == 200
        assert ends_within(s, 1, 3.5) is None  # silently


def test_keep_alive_requests_default(lab):
    """A thousand, then the connection ends with the answer."""
    with lab.connect(timeout=60) as s:
        f = s.makefile("rb")
        for i in range(1000):
            s.sendall(request("/healthz", close=False))
            closing, n = False, 0
            assert b" 200 " in f.readline()
            while (line := f.readline().lower()) != b"\r\n":
                closing |= line.startswith(b"connection: close")
                n = int(line.split()[1]) if line.startswith(b"content-length") else n
            f.read(n)
            assert closing == (i == 999), i
        assert f.read() == b""


def test_tls_handshake_and_head_share_one_deadline(hasty, tmp_path):
    d = tmp_path
    s = Stack(d, upstream=hasty.s.upstream, redis=hasty.s.redis, start=False,
              proxy={"tls": {"cert": str(hasty.ca["cert"]), "key": str(hasty.ca["key"])}}, limits={"tls_handshake": "900ms", "head_deadline": "1500ms"})
    s.config["keys"] = hasty.s.config["keys"]
    try:
        p = s.start_proxy()
        host, port = p.address.rsplit(":", 1)
        raw = socket.create_connection((host, int(port)), timeout=20)
        assert ends_within(raw, 0.6, 2.5) is None  # no handshake
        ctx = ssl.create_default_context(cafile=str(hasty.ca["ca"]))
        raw = socket.create_connection((host, int(port)), timeout=20)
        time.sleep(0.6)  # of the head's time
        with ctx.wrap_socket(raw, server_hostname="localhost") as t:
            at = time.monotonic()
            while t.recv(100):
                pass
            assert time.monotonic() - at < 1.4 * SLOW, "the head's deadline runs from the accept"
        assert requests.get(p.base + "/readyz", verify=str(hasty.ca["ca"]), timeout=10).status_code == 200
    finally:
        s.proxies[0].stop()


def big_blob(w, tag, n=24 << 20):
    data = hashlib.sha256(tag.encode()).digest() * (n // 32)
    image = w.image(tag, layers=[data])
    w.s.wait_status(f"/v2/shop/api/manifests/{tag}", w.auth, 200)
    return image["layers"][0], len(data)


def reader(w, blob, rcvbuf=4096):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    s.settimeout(30 * SLOW)
    s.connect((w.host, w.port))
    s.sendall(request(f"/v2/shop/api/blobs/{blob}", w.auth))
    return s


def test_blob_min_rate(hasty):
    """A reader that takes nothing is cut after the window, and the access log says why; one above the rate is served."""
    blob, n = big_blob(hasty, "1.70.0")
    with reader(hasty, blob) as slow:
        line = hasty.wait_access(cause="client_slow", reference=blob)
        assert line["status"] == 200 and line["bytes"] < n
        data = read_all(slow)
        assert len(data) < n
    before = len(hasty.access(cause="client_slow"))
    with reader(hasty, blob, 65536) as fair:
        got, at = 0, time.monotonic()
        while time.monotonic() - at < 2.5:
            got += len(fair.recv(65536))
            time.sleep(0.05)  # far above 64 KiB/s
        assert got > 640 * 1024
    assert len(hasty.access(cause="client_slow")) == before


def test_slow_reader_of_what_was_given_whole(hasty):
    """A manifest lies in our buffer, its exchange is over: who does not take it is cut, and that has a line too."""
    body = padded(4 << 20)
    hasty.s.upstream.push_manifest("acme/api", "1.70.9", body, MANIFEST)
    hasty.s.wait_status("/v2/shop/api/manifests/1.70.9", hasty.auth, 200)
    before = len(hasty.access(cause="client_slow"))
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(30 * SLOW)
    s.connect((hasty.host, hasty.port))
    s.sendall(b"".join(request("/v2/shop/api/manifests/1.70.9", hasty.auth, close=False) for _ in range(4)))
    wait_for("the cut to be logged", lambda: len(hasty.access(cause="client_slow")) > before)
    s.close()


def test_blob_max_duration(hasty):
    """At a rate that is allowed, but for too long."""
    blob, n = big_blob(hasty, "1.71.0")
    with reader(hasty, blob, 65536) as s:
        got, at = 0, time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while time.monotonic() - at < 30 * SLOW and (chunk := s.recv(65536)):
                got += len(chunk)
                time.sleep(0.05)
        assert got < n and 3 <= time.monotonic() - at < 12 * SLOW
    assert hasty.wait_access(reference=blob, cause="too_long")["status"] == 200


def test_upstream_deadlines(hasty):
    """First byte: the scripted upstream thinks for longer than it may."""
    up = hasty.s.upstream
    hasty.image("1.72.0")
    release = threading.Event()

    def slow(h):
        if "1.72.0" in h.path:
            release.wait(10)
        return False

    up.rules.append(slow)
    try:
        at = time.monotonic()
        r = hasty.get("/v2/shop/api/manifests/1.72.0")
        assert r.status_code in (503, 504) and "Retry-After" in r.headers, r.status_code
        assert time.monotonic() - at < 6 * SLOW
    finally:
        release.set()
        up.rules.remove(slow)
    hasty.s.wait_status("/v2/shop/api/manifests/1.72.0", hasty.auth, 200)


# ---- connections --------------------------------------------------------------------------------------------------------


def busy(w, source):
    """Connections that are at work (a head has begun) until one more is refused. One that has just come counts as idle until its bytes
    are read, and may be the one that makes room: those are not among what is returned."""
    out = []

    def fill():
        while not refused(w, source):
            c = w.connect(source)
            with contextlib.suppress(OSError):
                c.sendall(b"GET /v2/ HTTP/1.1\r\n")
            out.append(c)
        return refused(w, source)

    wait_for(f"{source} to be refused", fill)
    return [c for c in out if is_open(c)]


def is_open(c):
    c.setblocking(False)
    try:
        return c.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        c.setblocking(True)


def refused(w, source="127.0.0.1"):
    """Is a further connection closed without an answer?"""
    with w.connect(source) as c:
        try:
            c.sendall(request("/healthz"))
            return not read_all(c)
        except OSError:
            return True


def test_connections_per_address():
    w = Lab(proxy={"workers": 1}, limits={"connections_per_ip": 20})
    try:
        held = busy(w, "127.0.0.5")
        assert len(held) == 20
        assert not refused(w, "127.0.0.6"), "another address has its own twenty"
        held.pop().close()
        wait_for("room", lambda: not refused(w, "127.0.0.5"))
        for c in held:
            c.close()
    finally:
        w.close()


def test_connections_in_all():
    w = Lab(proxy={"workers": 1, "metrics_listen": ["127.0.0.1:0"]}, limits={"connections": 40, "connections_per_ip": 30, "keepalive_idle": "6s"})
    try:
        held = busy(w, "127.0.0.5") + busy(w, "127.0.0.6")
        assert len(held) == 40 and refused(w, "127.0.0.7")
        wait_for("the refusals to be counted", lambda: w.total("pullgate_connections_refused_total") >= 1)
        assert requests.get(w.metrics, timeout=5).status_code == 200, "metrics are not behind the same limit"
        for c in held:
            c.close()
        wait_for("room", lambda: not refused(w, "127.0.0.7"))
        # From four fifths on, each new connection ends the one that idles longest, once that has idled for half of its time.
        idle = []
        for _ in range(34):
            c = w.connect(f"127.0.0.{10 + len(idle) // 20}")
            c.sendall(request("/healthz", close=False))
            assert answer(c)[0] == 200
            idle.append(c)
        time.sleep(3.1)
        assert all(is_open(c) for c in idle)
        fresh = w.connect("127.0.0.20")
        fresh.sendall(request("/healthz", close=False))
        assert answer(fresh)[0] == 200
        wait_for("the longest idle one to make room", lambda: not is_open(idle[0]), 2, 0.005)
        assert is_open(idle[-1]), "it alone, and not because the time of all was over"
        for c in idle + [fresh]:
            c.close()
    finally:
        w.close()


# ---- customers and sign-ins ---------------------------------------------------------------------------------------------


def test_in_flight_of_a_customer():
    """Requests that wait for a slow upstream: as many as may be are decided at once, further ones wait their turn and are then told to
    come again, while another customer is served."""
    w = Lab(cache={"hold_on_unknown": "400ms", "tag_freshness": "0s"}, limits={"inflight_per_customer": 4, "upstream_first_byte": "10s"})
    gate = threading.Event()
    try:
        auth2, _, _ = w.customer_with("initech", [{"selector": "exact", "value": "2.0.0"}])
        w.s.wait_status("/v2/shop/api/manifests/2.0.0", auth2, 200)
        for i in range(8):
            w.image(f"1.80.{i}")
        waiting = threading.Semaphore(0)

        def slow(h):
            if "/1.80." in h.path:
                waiting.release()
                gate.wait(30)
            return False

        w.s.upstream.rules.append(slow)
        codes = []
        ask = lambda i: codes.append(w.get(f"/v2/shop/api/manifests/1.80.{i}").status_code)  # noqa: E731
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for _ in threads:
            assert waiting.acquire(timeout=10 * SLOW)
        r = w.get("/v2/shop/api/manifests/1.80.5")
        assert r.status_code == 429 and int(r.headers["Retry-After"]) >= 1
        assert w.wait_access(reference="1.80.5")["cause"] == "rate_limited"
        assert w.get("/v2/shop/api/manifests/2.0.0", auth2).status_code == 200, "another customer does not wait"
        gate.set()
        for t in threads:
            t.join()
        assert codes == [200] * 4
        assert w.get("/v2/shop/api/manifests/1.80.5").status_code == 200
    finally:
        gate.set()
        w.close()


def wrong(i):
    return basic("globex", f"wrong-{i}")


def test_sign_in_failures_of_an_address():
    w = Lab(limits={"auth_failures_per_minute": 10, "auth_failures_per_credential": 1000000})
    try:
        ask = lambda i, source: w.raw(request(auth=basic(f"user{i}", f"wrong-{i}"), close=True), source)  # noqa: E731
        codes = [ask(i, "127.0.0.30")[0] for i in range(12)]
        assert codes[:10] == [401] * 10 and codes[11] == 429, codes
        status, fields, body = ask(100, "127.0.0.30")
        assert status == 429 and 1 <= int(fields["retry-after"]) <= 60 and b"TOOMANYREQUESTS" in body
        assert ask(200, "127.0.0.31")[0] == 401, "another address"
        assert w.raw(request("/v2/shop/api/manifests/1.0.0", w.auth), "127.0.0.30")[0] == 200, "the right one always passes"
        w.wait_access(cause="rate_limited", status=429)
    finally:
        w.close()


def test_sign_in_failures_of_a_name():
    w = Lab(limits={"auth_failures_per_minute": 5, "auth_failures_per_credential": 8})
    try:
        codes = [w.raw(request(auth=wrong(i)), f"127.0.0.{40 + i}")[0] for i in range(12)]  # each from an address of its own
        assert codes[:8] == [401] * 8 and 429 in codes[8:10], codes
        assert w.raw(request(auth=basic("another", "wrong")), "127.0.0.60")[0] == 401
        assert w.raw(request("/v2/shop/api/manifests/1.0.0", w.auth), "127.0.0.41")[0] == 200
    finally:
        w.close()


def test_sign_in_failures_of_everybody():
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"]}, limits={"auth_failures_per_second": 5, "auth_failures_per_minute": 100})
    try:
        with w.connect() as s:  # pipelined: within a moment
            s.sendall(b"".join(request(auth=basic(f"u{i}", f"wrong-{i}"), close=False) for i in range(30)))
            codes = re.findall(rb"HTTP/1.1 (\d+)", drain_n(s, 30))
        assert codes[:5] == [b"401"] * 5 and b"429" in codes, codes
        assert w.raw(request("/v2/shop/api/manifests/1.0.0", w.auth))[0] == 200
        assert w.total("pullgate_auth_limited_total", by="all") >= 1
    finally:
        w.close()


def drain_n(s, n):
    data = b""
    while data.count(b"HTTP/1.1 ") < n or not data.endswith(b"\n"):
        chunk = s.recv(65536)
        if not chunk:
            break
        data += chunk
    return data


# ---- the admin daemon ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def admin():
    with admin_stack(admin={"metrics_listen": ["127.0.0.1:0"]}, limits={"connections": 30, "connections_per_ip": 30, "auth_failures_per_minute": 5}) as s:
        yield s


def post_raw(s, body):
    return requests.post(s.admin_base + "/api/v1/customers", data=body, headers={"Authorization": "Bearer " + s.token, "Content-Type": "application/json"}, timeout=20)


def test_admin_body(admin):
    doc = lambda slug, n: json.dumps({"slug": slug, "name": "x", "metadata": {"k": "v"}}).encode().ljust(n)  # noqa: E731
    assert post_raw(admin, doc("fits", 65536)).status_code == 201
    problem(post_raw(admin, doc("fits-not", 65537)), 413)


def test_admin_json(admin):
    def body(slug, depth=1, tokens=0):
        return json.dumps({"slug": slug, "name": "x", "metadata": json.loads("[" * depth + "]" * depth) if depth > 1 else [0] * tokens})

    deep, many = post_raw(admin, body("deep", depth=16)), post_raw(admin, body("many", tokens=10001))
    assert deep.status_code in (400, 422) and many.status_code in (400, 413, 422)
    shallow, few = post_raw(admin, body("shallow", depth=15)), post_raw(admin, body("few", tokens=9000))
    assert shallow.json()["detail"] != deep.json()["detail"] and few.json()["detail"] != many.json()["detail"], "refused for what they are, not for their form"


def test_admin_sign_in_failures(admin):
    """Beyond the limit an address waits a minute, then two …; the right token passes; twenty are told to the operator."""
    ask = lambda token: requests.get(admin.admin_base + "/api/v1/customers", headers={"Authorization": "Bearer " + token}, timeout=10)  # noqa: E731
    codes = [ask(f"wrong-{i}").status_code for i in range(21)]
    assert codes[:5] == [401] * 5 and codes[5:] == [429] * 16, codes
    assert 1 <= int(ask("wrong").headers["Retry-After"]) <= 60
    assert ask(admin.token).status_code == 200
    assert "20 failed sign-ins from 127.0.0.1" in admin.admin.text()


def test_admin_connections_and_its_metrics(admin):
    """A flood of the API does not hide the metrics: they have connections of their own."""
    api, metrics = (admin.dir / "admin.port").read_text().split()[:2]
    host, port = api.rsplit(":", 1)
    held = []
    try:
        def is_refused():
            with socket.create_connection((host, int(port)), timeout=10) as c:
                with contextlib.suppress(OSError):
                    c.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    return not read_all(c)
                return True

        def fill():
            while not is_refused():
                c = socket.create_connection((host, int(port)), timeout=10)
                held.append(c)
                with contextlib.suppress(OSError):
                    c.sendall(b"GET /api/v1/customers HTTP/1.1\r\n")
            return is_refused()

        wait_for("a further one to be refused", fill)
        assert sum(is_open(c) for c in held) == 30
        assert requests.get(f"http://{metrics}/metrics", timeout=10).status_code == 200
    finally:
        for c in held:
            c.close()
