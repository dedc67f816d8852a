"""Many at once: memory that runs short, one customer against another, one slow upstream against the rest, idle connections. What they
measure is printed (pytest -s); sizes for the suite, PULLGATE_OVERLOAD=full for the real ones (500 slow readers, 10,000 idle connections)."""
import contextlib
import os
import pathlib
import re
import resource
import socket
import ssl
import statistics
import threading
import time

import pytest
from scripted_upstream import ScriptedUpstream
from stack import SANITIZED, SLOW, Proc, make_ca, requests, wait_for
from test_limits import Lab, answer, request

FULL = os.environ.get("PULLGATE_OVERLOAD") == "full"
MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def descriptors():
    """Both ends of every connection are ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 45000 if FULL else 8192
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(want, hard) if hard < want and os.geteuid() else want, max(want, hard)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def rss(proc):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{proc.p.pid}/status").read_text())[1]) * 1024


def blob_of(w, tag, n, repo="acme/api"):
    data = (tag.encode() * (n // len(tag) + 1))[:n]
    return w.image(tag, repo, layers=[data])["layers"][0]


class Slow:
    """Connections that ask for a blob and take next to nothing of it."""

    def __init__(self, w, auth, paths, n, fields=""):
        self.socks = []
        self.w = w
        for i in range(n):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            s.settimeout(20)
            s.bind((f"127.0.0.{100 + i // 200}", 0))
            s.connect((w.host, w.port))
            s.sendall(request(paths[i % len(paths)], auth, fields=fields if isinstance(fields, str) else fields(i)))
            self.socks.append(s)

    def heads(self, wait=10):
        """How many got which status so far."""
        out = {}
        end = time.monotonic() + wait * SLOW
        for s in self.socks:
            s.settimeout(max(0.05, end - time.monotonic()))
            try:
                d = s.recv(16, socket.MSG_PEEK)
                status = int(d.split()[1]) if d else 0
            except (TimeoutError, OSError):
                status = None
            out[status] = out.get(status, 0) + 1
        return out

    def close(self):
        for s in self.socks:
            s.close()


def once(w, path, auth, source="127.0.0.1"):
    """(status, Retry-After, seconds) of one request on a connection of its own."""
    at = time.monotonic()
    status, fields, _ = w.raw(request(path, auth), source)
    return status, fields.get("retry-after"), time.monotonic() - at


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))]


@pytest.fixture(scope="module")
def roomy():
    """For the tests that need many of everything."""
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 2},
            limits={"client_min_rate": 0, "upstream_connections": 1024, "connections_per_ip": 1000})
    yield w
    w.close()


# ---- memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_memory_runs_short():
    """Slow readers of ranges, which are held in memory, and a flood of manifests: the process stays below its bound, further blobs are told
    to come later, manifests of others are answered, and all is well when the readers have gone."""
    n = 500 if FULL else 160
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 2},
            limits={"client_min_rate": 0, "upstream_connections": 1024, "connections_per_ip": 1000})
    try:
        blob = blob_of(w, "1.90.0", 2 * MIB)
        auth2, _, _ = w.customer_with("initech", [{"selector": "exact", "value": "2.0.0"}])
        w.s.wait_status("/v2/shop/api/manifests/2.0.0", auth2, 200)
        w.s.wait_status(f"/v2/shop/api/manifests/1.90.0", w.auth, 200)
        base = rss(w.s.proxies[0])
        room = (100 if FULL else 32) * MIB * (4 if SANITIZED else 1)
        limit = (base + room) // 1024 * 1024
        cfg = w.s.proxies[0].argv[-1]
        text = pathlib.Path(cfg).read_text()
        pathlib.Path(cfg).write_text(text.replace('"client_min_rate": 0', f'"client_min_rate": 0, "memory": {limit}'))
        w.s.proxies[0].p.send_signal(1)
        wait_for("the bound to be taken up", lambda: w.total("pullgate_memory_limit_bytes") == limit)
        most, stop = [base], threading.Event()

        def watch():
            while not stop.wait(0.02):
                most.append(rss(w.s.proxies[0]))

        watcher = threading.Thread(target=watch)
        watcher.start()
        slow = Slow(w, w.auth, [f"/v2/shop/api/blobs/{blob}"], n, fields=lambda i: f"Range: bytes={i}-{2 * MIB - 2}\r\n")
        heads = slow.heads()
        assert heads.get(206, 0) > 10 and heads.get(503, 0) > 10 and sum(heads.values()) == heads[206] + heads[503], heads
        last = next(s for s in reversed(slow.socks) if s.recv(12, socket.MSG_PEEK).endswith(b"503"))
        assert int(answer(last)[1]["retry-after"]) >= 1
        assert w.total("pullgate_admission_refused_total", why="memory_blob") >= 1
        answers = [once(w, "/v2/shop/api/manifests/2.0.0", auth2) for _ in range(100)]
        good = sum(a[0] == 200 for a in answers)
        print(f"\n{n} slow readers, {room // MIB} MiB of room: answered {heads}, most resident {(max(most) - base) / MIB:.1f} MiB above the start "
              f"({max(most) / limit:.0%} of the bound), manifests of another customer {good}/100, slowest {max(a[2] for a in answers) * 1000:.0f} ms")
        assert all(a[0] in (200, 503) for a in answers) and good >= 90, answers
        assert max(most) <= limit * 1.05 or SANITIZED
        slow.close()
        wait_for("blobs to be served again", lambda: once(w, f"/v2/shop/api/blobs/{blob}", w.auth)[0] == 200, 20)
        assert w.total("pullgate_memory_level") == 0
        stop.set()
        watcher.join()
    finally:
        w.close()


def memory_cgroup(name, limit):
    """A memory cgroup of our own with that limit, or None where we may not make one."""
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        d = pathlib.Path(root) / name
        try:
            d.mkdir()
            (d / file).write_text(str(limit))
            return d
        except OSError:
            with contextlib.suppress(OSError):
                d.rmdir()
    return None


@pytest.mark.once
@pytest.mark.parametrize("kind", ["cgroup", "address_space"])
def test_memory_bound_of_the_process(kind):
    """limits.memory says nothing: the bound follows from the cgroup, or from RLIMIT_AS; neither kernel nor allocator ends the process."""
    group = None
    if kind == "cgroup" and (group := memory_cgroup(f"pullgate-test-{os.getpid()}", 256 * MIB)) is None:
        pytest.skip("no memory cgroup can be made here")
    enter = f"echo $$ > {group}/cgroup.procs" if group else "ulimit -v 330000"
    n = 500 if FULL else 300
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 2},
            limits={"client_min_rate": 0, "upstream_connections": 1024, "connections_per_ip": 1000})
    try:
        blob = blob_of(w, "1.90.1", 2 * MIB)
        w.s.wait_status("/v2/shop/api/manifests/1.90.1", w.auth, 200)
        w.s.proxies[0].stop()
        (w.s.dir / "proxy0.port").unlink(missing_ok=True)
        proc = Proc("limited", ["sh", "-c", f'{enter}; exec "$@"', "sh", *w.s.proxies[0].argv], w.s.dir)
        lines = wait_for("the proxy with its limit", lambda: (p := w.s.dir / "proxy0.port").exists() and p.read_text().split())
        proc.address, proc.base = lines[0], f"http://{lines[0]}"
        w.s.proxies[0] = proc
        w.port, w.metrics = int(lines[0].rsplit(":", 1)[1]), f"http://{lines[1]}/metrics"
        wait_for("it to be ready", lambda: once(w, "/readyz", None)[0] == 200)
        bound = w.total("pullgate_memory_limit_bytes")
        assert bound == 224 * MIB if group else 0 < bound < 330000 * 1024
        slow = Slow(w, w.auth, [f"/v2/shop/api/blobs/{blob}"], n, fields=lambda i: f"Range: bytes={i}-{2 * MIB - 2}\r\n")
        heads = slow.heads()
        codes = [once(w, "/v2/shop/api/manifests/1.0.0", w.auth)[0] for _ in range(200)]
        assert proc.alive(), proc.text()[-2000:]
        used = int((group / "memory.max_usage_in_bytes").read_text()) / MIB if group and (group / "memory.max_usage_in_bytes").exists() else 0
        print(f"\n{n} slow readers, {kind}: answered {heads}, manifests {codes.count(200)}/200, resident {rss(proc) / MIB:.0f} MiB"
              + (f", group at most {used:.0f} of 256 MiB" if used else ""))
        assert codes.count(200) >= 180
        slow.close()
        wait_for("blobs to be served again", lambda: once(w, f"/v2/shop/api/blobs/{blob}", w.auth)[0] == 200, 20)
    finally:
        w.close()
        if group:
            wait_for("the cgroup to go", lambda: group.rmdir() or True)


@pytest.mark.once
def test_slow_readers_cost_little(roomy):
    """A hundred readers of one cold blob through the spool, and a hundred of ranges."""
    n = 100
    w = roomy
    blobs = [blob_of(w, f"1.91.{i}", 4 * MIB) for i in range(2)]
    for i in range(2):
        w.s.wait_status(f"/v2/shop/api/manifests/1.91.{i}", w.auth, 200)
    base = rss(w.s.proxies[0])
    for name, blob, fields in (("whole", blobs[0], ""), ("range", blobs[1], lambda i: f"Range: bytes={i}-{4 * MIB - 2}\r\n")):
        slow = Slow(w, w.auth, [f"/v2/shop/api/blobs/{blob}"], n, fields=fields)
        heads = slow.heads()
        assert sum(heads.get(s, 0) for s in (200, 206)) == n, heads
        time.sleep(0.5)
        each = (rss(w.s.proxies[0]) - base) / n / MIB
        print(f"\n{n} slow readers of a {name}: {each:.3f} MiB each")
        assert SANITIZED or each <= 0.5
        slow.close()


# ---- one customer against another ---------------------------------------------------------------------------------------


def test_transfers_are_shared_out():
    """A customer alone gets half of the transfers there can be; the next one finds room."""
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 1}, cache={"hold_on_unknown": "300ms"},
            limits={"streams_per_worker": 20, "client_min_rate": 0})
    try:
        blob = blob_of(w, "1.92.0", 16 * MIB)
        auth2, _, _ = w.customer_with("initech", [{"selector": "all", "value": "*"}])
        w.s.wait_status("/v2/shop/api/manifests/1.92.0", w.auth, 200)
        w.s.wait_status("/v2/shop/api/manifests/1.92.0", auth2, 200)
        path = f"/v2/shop/api/blobs/{blob}"
        slow = Slow(w, w.auth, [path], 15)
        heads = slow.heads()
        assert heads == {200: 10, 429: 5}, heads
        status, retry, _ = once(w, path, w.auth)
        assert status == 429 and int(retry) >= 1
        assert w.wait_access(action="blob", status=429)["cause"] == "rate_limited"
        assert once(w, path, auth2)[0] == 200
        other = Slow(w, auth2, [path], 8)
        assert other.heads() == {200: 5, 429: 3}
        other.close()
        assert w.total("pullgate_admission_refused_total", why="customer_share") >= 6
        slow.close()
        wait_for("room for the first again", lambda: once(w, path, w.auth)[0] == 200)
    finally:
        w.close()


@pytest.mark.once
def test_turns_at_the_upstream():
    """A customer has a hundred cold blobs fetched over a few connections; another one's single blob does not come after them."""
    up_delay, n = 0.15, 36
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 1}, limits={"upstream_connections": 4})
    try:
        many = [w.image(f"1.93.{i}", layers=[b"blob %d " % i * 50000])["layers"][0] for i in range(n)]
        mine = w.image("2.93.0", layers=[b"the other one's " * 50000])["layers"][0]
        auth2, _, _ = w.customer_with("initech", [{"selector": "exact", "value": "2.93.0"}])
        w.s.wait_status("/v2/shop/api/manifests/2.93.0", auth2, 200)
        for i in range(n):
            assert w.get(f"/v2/shop/api/manifests/1.93.{i}").status_code == 200
        w.s.upstream.rules.append(lambda h: "/blobs/" in h.path and time.sleep(up_delay))
        codes = []
        threads = [threading.Thread(target=lambda b=b: codes.append(once(w, f"/v2/shop/api/blobs/{b}", w.auth)[0])) for b in many]
        at = time.monotonic()
        for t in threads:
            t.start()
        wait_for("the queue to build up", lambda: w.s.upstream.hits("/blobs/") >= 3)
        status, _, took = once(w, f"/v2/shop/api/blobs/{mine}", auth2)
        for t in threads:
            t.join()
        all_took = time.monotonic() - at
        print(f"\n{n} cold blobs over 3 connections took {all_took:.2f} s; another customer's, asked for after them, {took:.2f} s")
        assert status == 200 and codes == [200] * n
        assert took < all_took / 2
    finally:
        w.close()


@pytest.mark.parametrize("workers", [2, 4])
def test_connections_to_an_upstream_are_the_processs(workers):
    """Many clients, whom the kernel spreads over all workers, want cold blobs and manifests at once: the upstream sees no more connections than
    limits.upstream_connections, those that idle included, and every worker has some."""
    n, most = 48, 16
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": workers}, admin={"sync_interval": "0s"},
            limits={"upstream_connections": most, "inflight_per_customer": 1000})
    try:
        blobs = [w.image(f"1.95.{i}", layers=[b"process %d " % i * 20000])["layers"][0] for i in range(n)]
        for i in range(n):
            w.image(f"1.96.{i}")
            assert w.get(f"/v2/shop/api/manifests/1.95.{i}").status_code == 200
        w.s.admin.stop()  # its connections are its own
        up = w.s.upstream
        wait_for("its connections to end", lambda: up.open <= most)
        up.open_most = up.open
        up.rules.append(lambda h: time.sleep(0.05))
        codes = []
        paths = [f"/v2/shop/api/blobs/{b}" for b in blobs] + [f"/v2/shop/api/manifests/1.96.{i}" for i in range(n)]
        threads = [threading.Thread(target=lambda p=p: codes.append(once(w, p, w.auth)[0])) for p in paths]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(f"\n{workers} workers: {up.open_most} connections at most of {most}")
        assert codes == [200] * len(paths)
        assert most // workers < up.open_most <= most
    finally:
        w.close()


def test_a_slow_upstream_is_kept_apart():
    """One upstream answers no blob: who waits for it is bounded and told so, and applications on another upstream do not notice."""
    other = ScriptedUpstream()
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 1}, cache={"hold_on_unknown": "300ms"},
            limits={"streams_per_worker": 40, "upstream_connections": 8, "upstream_queue": 4, "upstream_connect": "1s", "upstream_first_byte": "2s", "upstream_retries": 0})
    gate = threading.Event()
    try:
        blobs = [w.image(f"1.94.{i}", layers=[b"never %d " % i * 20000])["layers"][0] for i in range(30)]
        for i in range(30):
            assert w.get(f"/v2/shop/api/manifests/1.94.{i}").status_code == 200
        other.push_image("fast/app", "1.0.0", [b"fast " * 100000])
        blob = list(other.blobs)[-1][1]
        up2 = w.s.api.post("/upstreams", {"name": "fast", "url": other.url, "username": other.auth[0], "password": other.auth[1]})
        app2 = w.s.add_application("fast", [("fast/app", "fast/app", "image")], up2["id"])
        auth2, _, _ = w.customer_with("initech", [{"selector": "all", "value": "*"}], app2)
        w.s.wait_status("/v2/fast/app/manifests/1.0.0", auth2, 200)
        w.s.upstream.rules.append(lambda h: "/blobs/" in h.path and h.command == "GET" and gate.wait(30) and False)
        slow = Slow(w, w.auth, [f"/v2/shop/api/blobs/{b}" for b in blobs], 30)
        for _ in range(20):
            status, _, took = once(w, f"/v2/fast/app/blobs/{blob}", auth2)
            assert status == 200 and took < 1 * SLOW
        heads = slow.heads(8)
        assert heads.get(503, 0) + heads.get(429, 0) + heads.get(504, 0) == 30, heads
        assert heads.get(503, 0) > 0
        assert w.total("pullgate_upstream_crowded_total", upstream=w.upstream["id"]) > 0
        slow.close()
        gate.set()
        w.s.upstream.rules.clear()
        wait_for("the slow one to be asked again", lambda: once(w, f"/v2/shop/api/blobs/{blobs[0]}", w.auth)[0] == 200, 15)
    finally:
        gate.set()
        w.close()
        other.stop()


def test_requests_that_wait_for_one_upstream_are_bounded():
    """Manifests this time, of tags that nobody asked for before: a part of the connections may wait for one upstream, the rest hear 503 at
    once, and what needs no upstream is answered."""
    n = 26
    w = Lab(proxy={"listen": ["127.0.0.1:0"], "metrics_listen": ["127.0.0.1:0"], "workers": 1}, cache={"hold_on_unknown": "200ms", "tag_freshness": "1h"},
            limits={"connections": 30, "inflight_per_customer": 1000, "upstream_first_byte": "20s"})
    gate = threading.Event()
    try:
        assert w.get("/v2/shop/api/manifests/1.0.0").status_code == 200
        for i in range(n):
            w.image(f"1.96.{i}")
        w.s.upstream.rules.append(lambda h: "/1.96." in h.path and gate.wait(30) and False)
        slow = Slow(w, w.auth, [f"/v2/shop/api/manifests/1.96.{i}" for i in range(n)], n)
        wait_for("the rest to be told", lambda: w.total("pullgate_admission_refused_total", why="upstream_share") > 0)
        heads = slow.heads(1)
        assert heads.get(503, 0) + heads.get(None, 0) == n and 8 <= heads.get(None, 0) <= 16, heads
        assert once(w, "/v2/shop/api/manifests/1.0.0", w.auth)[0] == 200
        gate.set()
        after = slow.heads()
        assert after == {200: heads[None], 503: heads[503]}, after
        slow.close()
    finally:
        gate.set()
        w.close()


def measure(w, auth, manifest, blob, n):
    times = {"manifest": [], "blob": []}
    for _ in range(n):
        for what, path in (("manifest", manifest), ("blob", blob)):
            status, _, took = once(w, path, auth)
            assert status == 200, (what, status)
            times[what].append(took)
    return {k: (statistics.median(v) * 1000, percentile(v, 99) * 1000) for k, v in times.items()}


@pytest.mark.once
def test_a_flood_of_one_customer_and_another_s_pull(roomy):
    """Hundreds of connections pull large blobs as fast as they get them; another customer's manifest and small blob still come."""
    n, rounds = (500, 300) if FULL else (60, 40)
    w = roomy
    stop = threading.Event()
    try:
        big = [blob_of(w, f"1.95.{i}", 24 * MIB) for i in range(4)]
        small = w.image("2.95.0", layers=[b"small " * 1000])["layers"][0]
        auth2, _, _ = w.customer_with("initech", [{"selector": "exact", "value": "2.95.0"}])
        w.s.wait_status("/v2/shop/api/manifests/2.95.0", auth2, 200)
        for i in range(4):
            w.s.wait_status(f"/v2/shop/api/manifests/1.95.{i}", w.auth, 200)
        ask = ("/v2/shop/api/manifests/2.95.0", f"/v2/shop/api/blobs/{small}")
        quiet = measure(w, auth2, *ask, rounds)
        slow = Slow(w, w.auth, [f"/v2/shop/api/blobs/{b}" for b in big], n)
        got = [0]

        def pull():  # one thread reads them all: as much as this process can take
            import selectors
            sel = selectors.DefaultSelector()
            for s in slow.socks:
                s.setblocking(False)
                sel.register(s, selectors.EVENT_READ)
            while not stop.is_set():
                for key, _ in sel.select(0.1):
                    try:
                        d = key.fileobj.recv(1 << 16)
                    except OSError:
                        d = b""
                    got[0] += len(d)
                    if not d:
                        sel.unregister(key.fileobj)
                time.sleep(0)

        t = threading.Thread(target=pull)
        t.start()
        wait_for("the flood to flow", lambda: got[0] > 4 * MIB)
        loud = measure(w, auth2, *ask, rounds)
        stop.set()
        t.join()
        for what in ("manifest", "blob"):
            print(f"\nanother customer's {what} beside {n} pulling connections: median {loud[what][0]:.1f} ms, p99 {loud[what][1]:.1f} ms; "
                  f"without them {quiet[what][0]:.1f} and {quiet[what][1]:.1f} ms")
            assert loud[what][0] < 250 * SLOW and loud[what][1] < 5000 * SLOW
        slow.close()
    finally:
        stop.set()


# ---- idle connections ---------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_idle_connections(secure, tmp_path):
    """Each has had an answer and is kept alive; what they cost, and that a new client is served meanwhile."""
    n = 10000 if FULL else 200
    ca = make_ca(tmp_path) if secure else None
    w = None
    if secure:
        os.environ["REQUESTS_CA_BUNDLE"] = str(ca["ca"])  # for what the world itself asks the proxy
    try:
        w = Lab(proxy={"listen": ["127.0.0.1:0"], "workers": 2, **({"tls": {"cert": str(ca["cert"]), "key": str(ca["key"])}} if secure else {})},
                limits={"connections_per_ip": 1000, "connections": 12500, "keepalive_idle": "300s"})
        ctx = ssl.create_default_context(cafile=str(ca["ca"])) if secure else None

        def connect(source):
            s = w.connect(source, 60)
            return ctx.wrap_socket(s, server_hostname="localhost") if secure else s

        def warm(i):
            s = connect(f"127.0.1.{1 + i // 900}")
            s.sendall(request("/v2/shop/api/manifests/1.0.0", w.auth, close=False))
            assert answer(s)[0] == 200
            return s

        idle = [warm(i) for i in range(50)]  # what is needed once
        base = rss(w.s.proxies[0])
        idle += [warm(i) for i in range(n)]
        each = (rss(w.s.proxies[0]) - base) / n / 1024
        took = []
        for _ in range(200 if FULL else 50):
            at = time.monotonic()
            with connect("127.0.3.1") as s:
                s.sendall(request("/v2/shop/api/manifests/1.0.0", w.auth))
                assert answer(s)[0] == 200
            took.append(time.monotonic() - at)
        alive = 0
        for s in idle:
            s.setblocking(False)
            try:
                alive += s.recv(1) != b""
            except (BlockingIOError, ssl.SSLWantReadError):
                alive += 1
        print(f"\n{n} idle {'TLS' if secure else 'plain'} connections: {each:.1f} KiB each, {alive - 50} still open, "
              f"new client p99 {percentile(took, 99) * 1000:.1f} ms")
        assert alive == n + 50
        assert percentile(took, 99) < 0.25 * SLOW
        assert SANITIZED or each <= (40 if secure else 10)
        for s in idle:
            s.close()
    finally:
        if w:
            w.close()
        os.environ.pop("REQUESTS_CA_BUNDLE", None)
