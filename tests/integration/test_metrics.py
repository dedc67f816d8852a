"""/metrics, /healthz and /readyz on the metrics addresses: what they count, what they say when something is wrong, what they do not show."""
import re
import signal
import socket

import pytest
import requests

from conftest import World
from stack import SLOW, basic, wait_for


def parse(text):
    """{name: {frozenset of labels: value}}; complains about whatever is not the format."""
    out, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, f"{name} is declared twice"
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
            continue
        if line.startswith("# HELP "):
            assert len(line.split(" ", 3)[3]) > 5
            continue
        m = re.fullmatch(r'([a-z_]+)(?:\{((?:[a-z_]+="[^"\\]*",?)*)\})? (\d+(?:\.\d+)?)', line)
        assert m, line
        base = re.sub(r"_(bucket|sum|count)$", "", m[1])
        assert m[1] in kinds or kinds.get(base) == "histogram", f"{m[1]} has no TYPE"
        labels = frozenset(re.findall(r'([a-z_]+)="([^"]*)"', m[2] or ""))
        assert labels not in out.setdefault(m[1], {}), f"{line} stands twice"
        out[m[1]][labels] = float(m[3])
    return out


def total(metrics, name, **labels):
    want = set(labels.items())
    return sum(v for k, v in metrics.get(name, {}).items() if want <= k)


@pytest.fixture(scope="module")
def w():
    w = World(proxy={"metrics_listen": ["127.0.0.1:0"]})
    lines = (w.s.dir / "proxy0.port").read_text().split()
    assert len(lines) == 2 and lines[0] == w.s.address, "listen addresses first, then the metrics addresses"
    w.metrics_base = f"http://{lines[1]}"
    w.scrape = lambda: parse(requests.get(w.metrics_base + "/metrics", timeout=10).text)
    yield w
    w.s.close()


def grown(w, name, by, before, **labels):
    """Wait until the counter has grown by that much (worker values are published four times a second)."""
    wait_for(f"{name}{labels} to grow by {by}", lambda: total(w.scrape(), name, **labels) - total(before, name, **labels) >= by, 5)


def test_content_type_and_paths(w):
    r = requests.get(w.metrics_base + "/metrics", timeout=10)
    assert r.status_code == 200 and r.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert requests.get(w.metrics_base + "/healthz", timeout=10).json() == {"status": "ok"}
    assert requests.get(w.metrics_base + "/readyz", timeout=10).json() == {"status": "ready"}
    assert requests.head(w.metrics_base + "/metrics", timeout=10).content == b""
    assert requests.get(w.metrics_base + "/v2/", timeout=10).status_code == 404, "the registry is not served here"
    assert requests.post(w.metrics_base + "/metrics", data=b"x", timeout=10).status_code == 405
    assert requests.get(w.s.base + "/metrics", timeout=10).status_code == 404, "nor are the metrics to customers"


def test_requests_by_class_and_cause(w):
    before = w.scrape()
    for _ in range(3):
        assert w.get("/v2/shop/api/manifests/1.0.0").status_code == 200
    assert w.get("/v2/shop/api/manifests/2.0.0").status_code == 403
    assert w.get("/v2/shop/api/manifests/1.0.0", auth=basic("globex", "nonsense")).status_code == 401
    assert w.get("/v2/shop/api/manifests/1.0.0", method="PUT").status_code == 405
    after = w.scrape()
    for n, klass, cause in ((3, "2xx", "ok"), (1, "4xx", "denied"), (1, "4xx", "unauthenticated"), (1, "4xx", "refused")):
        assert total(after, "pullgate_requests_total", **{"class": klass, "cause": cause}) - \
            total(before, "pullgate_requests_total", **{"class": klass, "cause": cause}) == n, (klass, cause)
    assert total(after, "pullgate_decisions_total", reason="granted") - total(before, "pullgate_decisions_total", reason="granted") == 3
    assert total(after, "pullgate_decisions_total", reason="version_not_granted") - \
        total(before, "pullgate_decisions_total", reason="version_not_granted") == 1
    assert total(after, "pullgate_auth_failures_total") - total(before, "pullgate_auth_failures_total") == 1


def test_durations_are_histograms_by_action_and_step(w):
    before = w.scrape()
    assert w.get("/v2/shop/api/manifests/1.0.0").status_code == 200
    assert w.get("/v2/shop/api/tags/list").status_code == 200
    after = w.scrape()
    for action in ("manifest", "tags"):
        for step in ("facts", "first_byte", "total"):
            name = "pullgate_request_duration_seconds_count"
            assert total(after, name, action=action, step=step) - total(before, name, action=action, step=step) == 1, (action, step)
    name = "pullgate_request_duration_seconds"
    for labels, count in after[name + "_count"].items():
        buckets = sorted((float(dict(k)["le"].replace("+Inf", "inf")), v) for k, v in after[name + "_bucket"].items() if labels <= k)
        values = [v for _, v in buckets]
        assert values == sorted(values) and buckets[-1] == (float("inf"), count), labels


def test_blobs_upstreams_and_connections(w):
    layer = w.images["1.0.0"]["children"][0]["layers"][1]
    before = w.scrape()
    r = w.get(f"/v2/shop/api/blobs/{layer}")
    assert r.status_code == 200
    after = w.scrape()
    assert total(after, "pullgate_blob_sent_bytes_total") - total(before, "pullgate_blob_sent_bytes_total") == len(r.content)
    assert total(after, "pullgate_blob_requests_total") > total(before, "pullgate_blob_requests_total")
    assert total(after, "pullgate_upstream_requests_total", upstream=w.upstream["id"], **{"class": "2xx"}) > 0
    assert total(after, "pullgate_upstream_breakers_open", upstream=w.upstream["id"]) == 0
    grown(w, "pullgate_sent_bytes_total", len(r.content), before)
    grown(w, "pullgate_connections_accepted_total", 1, before)
    m = w.scrape()
    assert total(m, "pullgate_workers") == 2 and total(m, "pullgate_redis_up") == 1
    assert total(m, "pullgate_loop_lag_seconds_count") > 0
    assert 0 <= total(m, "pullgate_root_age_seconds") < 5 * SLOW
    assert total(m, "process_open_fds") > 10 and total(m, "process_resident_memory_bytes") > 1 << 20


def test_no_secret_and_no_customer_in_it(w):
    w.get("/v2/shop/api/manifests/1.0.0")
    text = requests.get(w.metrics_base + "/metrics", timeout=10).text
    for secret in (w.credential["secret"], "globex", "shop/api", w.s.upstream.password, w.s.token):
        assert secret not in text


def test_redis_away_is_told_and_readiness_follows(w):
    w.s.redis.stop()
    try:
        wait_for("redis_up 0", lambda: total(w.scrape(), "pullgate_redis_up") == 0, 5)
        wait_for("not ready", lambda: requests.get(w.metrics_base + "/readyz", timeout=10).status_code == 503, 15)
        assert requests.get(w.metrics_base + "/healthz", timeout=10).status_code == 200, "the process itself is well: a restart would not help"
        assert total(w.scrape(), "pullgate_root_age_seconds") >= 5
    finally:
        w.s.redis.start()
    wait_for("ready again", lambda: requests.get(w.metrics_base + "/readyz", timeout=10).status_code == 200, 15)
    wait_for("redis_up 1", lambda: total(w.scrape(), "pullgate_redis_up") == 1, 5)


def test_upstream_away_opens_the_breaker(w):
    before = w.scrape()
    w.s.registry.stop()
    try:
        for _ in range(3):
            w.get("/v2/shop/api/manifests/1.1.0")
        id = w.upstream["id"]
        wait_for("requests without an answer", lambda: total(w.scrape(), "pullgate_upstream_requests_total", upstream=id, **{"class": "none"})
                 > total(before, "pullgate_upstream_requests_total", upstream=id, **{"class": "none"}), 10)
        wait_for("an open breaker", lambda: total(w.scrape(), "pullgate_upstream_breakers_open", upstream=id) > 0, 10)
        assert total(w.scrape(), "pullgate_upstream_retries_total", upstream=id) > total(before, "pullgate_upstream_retries_total", upstream=id)
        assert total(w.scrape(), "pullgate_decisions_total", reason="unknown") > total(before, "pullgate_decisions_total", reason="unknown")
    finally:
        w.s.registry.start()
    w.s.wait_status("/v2/shop/api/manifests/1.1.0", w.auth, 200, 15)
    wait_for("closed breakers", lambda: w.get("/v2/shop/api/manifests/1.1.0").status_code == 200
             and total(w.scrape(), "pullgate_upstream_breakers_open", upstream=w.upstream["id"]) <= 1, 20)


def test_many_scrapes_leave_nothing(w):
    first = total(w.scrape(), "process_open_fds")
    for _ in range(50):
        requests.get(w.metrics_base + "/metrics", timeout=10)
    wait_for("descriptors to be given back", lambda: total(w.scrape(), "process_open_fds") <= first + 4, 5)


def test_draining_is_not_ready(w):
    """Last of this stack: it ends the proxy. The metrics stay until the last answer is out."""
    big = w.s.upstream.push_image("acme/api", "1.9.0", [b"a large layer " * (3 << 20)])
    w.s.wait_status("/v2/shop/api/manifests/1.9.0", w.auth, 200)
    host, port = w.s.address.rsplit(":", 1)
    proxy = w.s.proxies[0]
    with socket.create_connection((host, int(port)), timeout=30) as c:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        c.sendall(f"GET /v2/shop/api/blobs/{big['layers'][0]} HTTP/1.1\r\nHost: x\r\nAuthorization: {w.auth}\r\n\r\n".encode())
        assert c.recv(12) == b"HTTP/1.1 200"
        proxy.p.send_signal(signal.SIGTERM)
        wait_for("not ready", lambda: requests.get(w.metrics_base + "/readyz", timeout=10).json() == {"status": "not ready", "reason": "draining"}, 5)
        assert requests.get(w.metrics_base + "/metrics", timeout=10).status_code == 200
        n = 12
        while data := c.recv(1 << 20):
            n += len(data)
        assert n > len(b"a large layer ") * (3 << 20)
    assert proxy.p.wait(30 * SLOW) == 0


@pytest.mark.once
def test_no_metrics_listen_serves_none():
    w = World()
    try:
        assert len((w.s.dir / "proxy0.port").read_text().split()) == 1
        assert requests.get(w.s.base + "/metrics", timeout=10).status_code == 404
        assert requests.get(w.s.base + "/healthz", timeout=10).status_code == 200
        assert requests.get(w.s.base + "/readyz", timeout=10).status_code == 200
    finally:
        w.s.close()
