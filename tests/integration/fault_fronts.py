"""The rows of test_adversarial_faults.py behind a front proxy: test_adversarial_faults_nginx.py, test_adversarial_faults_haproxy.py.

A row runs the same function as without a front; the front stands where its clients connect, as docs/OPERATIONS.md configures it, and a relay
between the two follows the proxy to whichever port it has. Each request of a client has a number of its own (the field X-Ask), so that it is
known at that relay, and so is what Pullgate answered. What must hold in every row, whatever it is about, is said by Watch.judge(); where a front
changes what the row says, CHANGED has what is asked instead and why.
"""
import contextlib
import hashlib
import itertools
import os
import pathlib
import re
import resource
import select
import signal
import ssl
import tempfile
import threading
import time
import unittest.mock

import pytest

import fault_arena
import fronts
import test_adversarial as rows
from fault_arena import ask, connect, cpu_ticks, own, request, rss_kib
from stack import SLOW, wait_for
from tcp_relay import TcpRelay
from test_adversarial_faults import CASES, RUN, closed_within, raw_row, recovers, req, run, step, upstream_does

NUMBER = re.compile(rb"\r\nX-Ask: ([0-9-]+)\r\n", re.I)
LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]")
STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: .*)?")
LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.I)
OWN = (400, 408, 413, 414, 431, 502, 503, 504)  # what a front may answer when it has no answer of Pullgate's


class Passed:
    """A request as the front wrote it to Pullgate, and what came back."""

    def __init__(self, wire, number, method, target):
        self.wire, self.number, self.method, self.target = wire, number, method, target
        self.status, self.sha256, self.whole, self.left = None, hashlib.sha256(), False, 0

    def __repr__(self):
        return f"<{self.number} {self.method} {self.target[:80]} {self.status} whole={self.whole}>"


class Wire:
    """One connection from the front to Pullgate, read as it goes over: requests and answers in turn, by the plainest reading there is."""

    def __init__(self, watch):
        self.watch = watch
        self.front, self.ours, self.body, self.over = b"", b"", 0, False
        self.waiting = []  # requests without their whole answer

    def wrong(self, text):
        self.watch.wrong.append(text)

    def of_front(self, data):
        self.front += data
        while self.front:
            if self.body:
                n = min(self.body, len(self.front))
                self.body, self.front = self.body - n, self.front[n:]
                continue
            head, end, rest = self.front.partition(b"\r\n\r\n")
            if not end:
                return
            m, number, length = LINE.match(head), NUMBER.findall(head + b"\r\n"), LENGTH.findall(head + b"\r\n")
            if not m or len(number) > 1 or len(length) > 1 or b"\r\ntransfer-encoding:" in head.lower():
                return self.wrong(f"the front wrote {head[:300]!r}")
            p = Passed(self, number[0].decode() if number else None, m[1].decode(), m[2].decode("latin-1"))
            self.waiting.append(p)
            self.watch.passed.append(p)
            self.body, self.front = int(length[0]) if length else 0, rest

    def of_ours(self, data):
        self.ours += data
        while self.ours:
            if not self.waiting:
                return self.wrong(f"Pullgate wrote behind its last answer, or unasked: {self.ours[:300]!r}")
            p = self.waiting[0]
            if p.status is None:
                head, end, rest = self.ours.partition(b"\r\n\r\n")
                if not end:
                    return
                m, length = STATUS.match(head), LENGTH.findall(head + b"\r\n")
                if not m or len(length) > 1 or b"\r\ntransfer-encoding:" in head.lower():
                    return self.wrong(f"Pullgate wrote {head[:300]!r}")
                self.ours = rest
                if m[1][:1] == b"1":
                    continue
                p.status = int(m[1])
                p.left = 0 if p.method == "HEAD" or p.status in (204, 304) or not length else int(length[0])
            n = min(p.left, len(self.ours))
            p.sha256.update(self.ours[:n])
            p.left, self.ours = p.left - n, self.ours[n:]
            if p.left:
                return
            p.whole = True
            self.waiting.pop(0)


class Tap(TcpRelay):
    """Between the front and Pullgate. opaque: what goes over it is TLS, and only its connections are counted."""

    def __init__(self, watch, target, opaque):
        self.watch, self.opaque, self.wires = watch, opaque, {}
        super().__init__(target, backlog=4096)

    def opened(self, client, server):
        self.watch.wires += 1
        if not self.opaque:
            wire = Wire(self.watch)
            self.wires[client], self.wires[server] = (wire, wire.of_front), (wire, wire.of_ours)

    def carried(self, s, data):
        if s in self.wires:
            self.wires[s][1](data)

    def forgotten(self, s):
        if s in self.wires:
            self.wires.pop(s)[0].over = True


class Watch:
    """What the clients of one row asked and were answered, and what of it was seen at the taps."""

    def __init__(self, kind):
        self.kind = kind
        self.trusted = {"trusted_proxies": ["127.0.0.1"], "proxy_protocol": "accepted"}
        self.dir = tempfile.TemporaryDirectory(prefix="pullgate-fronts-")
        self.addresses = set()
        self.numbers, self.anew = itertools.count(1), itertools.count(1)
        self.forbidden = set()  # SHA-256 of what no customer of the arenas holds
        self.begin()

    def begin(self):
        self.passed, self.answers, self.wrong, self.wires, self.connections, self.opaque = [], {}, [], 0, 0, False

    @contextlib.contextmanager
    def before(self, target, tls=None, **kw):
        """A front whose relay connects to target(). tls: Pullgate's, which nginx checks and HAProxy leaves to the clients."""
        def where():
            host, port = target().rsplit(":", 1)
            return host, int(port)

        tap = Tap(self, where, bool(tls))
        self.opaque |= bool(tls)
        address = f"127.0.0.1:{tap.port}"
        directory = tempfile.mkdtemp(dir=self.dir.name)
        if self.kind == "nginx":
            front = fronts.Nginx(directory, address, connections=12000, tls_ca=pathlib.Path(tls["cert"]).parent / "ca.pem" if tls else None, **kw)
        else:
            front = fronts.HAProxy(directory, address, passes_on=bool(tls))
        front.base = ("https" if kw.get("cert") or (tls and self.kind == "haproxy") else "http") + "://" + front.address
        front.tap = tap
        self.addresses.add(front.address)
        try:
            yield front
        finally:
            front.close()
            tap.close()

    # ---- told by the clients ----
    def number(self, address):
        return {"X-Ask": str(next(self.numbers))} if address in self.addresses else {}

    def numbered_anew(self, raw):
        """In a process of its own."""
        return NUMBER.sub(lambda m: b"\r\nX-Ask: %d-%d\r\n" % (os.getpid(), next(self.anew)), raw, 1)

    def connected(self, address):
        self.connections += address in self.addresses

    def answered(self, asked, status, body=b"", whole=True, sha256=None):
        if isinstance(asked, dict):
            number = asked.get("X-Ask")
        else:
            number = next((n.decode() for n in NUMBER.findall(asked.partition(b"\r\n\r\n")[0] + b"\r\n")), None)
        if number:
            self.answers[number] = (status, sha256 or hashlib.sha256(body).digest(), whole)

    # ---- the row is over ----
    def judge(self, changed, raw):
        """One request of a client is at most one to Pullgate, and its answer is Pullgate's to that very request, whole where the client took it
        for whole, or the front's own refusal, where changed.own expects any. changed.again: a front may send a request once more when its kept
        connection ended under it. raw: the row's requests have no numbers."""
        assert not self.wrong, self.wrong[:5]
        by_number, unnumbered = {}, 0
        for p in self.passed:
            if p.number:
                by_number.setdefault(p.number, []).append(p)
            else:
                unnumbered += 1
        again = [ps for ps in by_number.values() if len(ps) > 1]
        for ps in again:
            assert changed.again and all(p.status is None and p.wire.over and p.method == "GET" for p in ps[:-1]), f"sent more than once: {ps}"
        assert unnumbered <= self.connections, f"{unnumbered} requests of {self.connections} connections"
        own = 0
        for number, (status, sha256, whole) in self.answers.items():
            if self.opaque:
                continue
            p = by_number.get(number, [None])[-1]
            if p is None or p.status is None or not p.whole and status in (502, 503):
                own += status != 0
                assert status in (0, *OWN), f"the front answered {number} with {status} by itself"
                continue
            assert status in (0, p.status), f"{p} is {status} for its client"
            if whole and status and p.method != "HEAD":
                assert p.whole and sha256 == p.sha256.digest(), f"{p} is another answer for its client"
                assert status != 200 or sha256 not in self.forbidden, f"{p} is not granted"
        assert changed.own or not own, f"{own} answers of the front's own"
        assert (unnumbered if raw else self.passed or self.wires) or changed.stays, "nothing of the row reached Pullgate"
        print(f"{len(self.answers)} answers, " + ("not looked into; " if self.opaque else f"{own} of them the front's own; {len(self.passed)} requests over ")
              + f"{self.wires} connections to Pullgate" + (f", {len(again)} sent again" if again else ""))


class Changed:
    """instead: the function that is run for the row's. own: there are answers of the front's own. again: requests that it sends once more.
    stays: nothing of the row goes further than the front."""

    def __init__(self, reason, instead=None, own=False, again=False, stays=False):
        self.reason, self.instead, self.own, self.again, self.stays = reason, instead, own, again, stays


# ---- rows that are other rows behind a front ---------------------------------------------------------------------------------


def idle_at_the_front(row, expect):
    n = 9000
    with own() as arena:
        q = arena.fill(step(row, "req")["req"])
        for _ in range(20):
            assert req(arena, row).status == 200
        base, wires, t, worst, socks = rss_kib(arena.proxy), fault_arena.WATCH.wires, time.monotonic(), 0, []
        for i in range(n):
            socks.append(connect(arena.s.address, source=f"127.0.4.{1 + i % 40}"))
        for _ in range(step(row, "req")["repeat"]):
            a = ask(arena.s.address, q["path"], None, "GET", q["headers"])
            worst = max(worst, a.ms)
            assert a.status in expect["others_status_in"], a
        assert worst < 1000 * SLOW, worst
        assert fault_arena.WATCH.wires - wires <= 50 and arena.metric("pullgate_connections") < 60, "a client that says nothing is none of Pullgate's"
        assert rss_kib(arena.proxy) - base < 8 * 1024 * SLOW
        if fault_arena.WATCH.kind == "haproxy":
            got = closed_within(socks, expect["all_closed_within_s"] - (time.monotonic() - t))
            assert {g[9:12] for g in got} <= {b"", b"408"}
        for c in socks:
            c.close()


def descriptors_behind_a_front(row, expect):
    limit = 400
    with own() as arena:
        s = arena.s
        arena.proxy.stop()
        s.wrap = ["prlimit", f"--nofile={limit}:{limit}"]
        s.start_proxy(0)
        s.wrap = []
        arena.warm()
        data, go_on = os.urandom(1 << 20), threading.Event()
        image = arena.fresh(data)
        assert arena.ask(f"/v2/shop/api/manifests/{image['tag']}").status == 200

        def stands_still(h):
            h.send_response(200)
            h.send_header("Content-Length", str(len(data)))
            h.end_headers()
            h.wfile.write(data[:200000])
            while not go_on.wait(0.1) and not select.select([h.connection], [], [], 0)[0]:
                pass
            with contextlib.suppress(OSError):
                h.wfile.write(data[200000:])
            h.close_connection = True

        q, log, socks = arena.fill(step(row, "req")["req"]), len(arena.log()), []
        with upstream_does(arena, stands_still, image["layers"][0]):
            for _ in range(limit + 100):
                c = connect(s.address)
                c.sendall(request(s.address, f"/v2/shop/api/blobs/{image['layers'][0]}", arena.w.auth))
                socks.append(c)
            wait_for("nobody else to be taken", lambda: arena.metric("pullgate_connections_refused_total") > 0)
            ticks, t = cpu_ticks(arena.proxy), time.monotonic()
            while time.monotonic() - t < 3:
                a = ask(s.address, q["path"], None, "GET", q["headers"], timeout=5 * SLOW)
                assert a.status in (*expect["others_status_in"], 502, 504) or a.status == 0 and expect["or_close"], a
                time.sleep(0.2)
        print(f"{arena.metric('pullgate_connections'):.0f} connections, {len(os.listdir(f'/proc/{arena.proxy.p.pid}/fd'))} descriptors")
        cpu = (cpu_ticks(arena.proxy) - ticks) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - t) * 100
        assert cpu < expect["cpu_max_pct"] * SLOW, f"{cpu:.0f} %"
        system_log = [x for x in arena.log()[log:].splitlines() if '"level"' in x]
        assert sum(map(len, system_log)) < expect["log_growth_max_kb"] * 1024
        for c in socks:
            c.close()
        go_on.set()  # HAProxy looks at a client that left when it has something for it
        recovers(arena, within=expect["recover_within_s"])


def hellos_at_the_front(certs, row, expect):
    """nginx as documented, with a certificate of its own: TLS ends there."""
    with own() as arena, fault_arena.WATCH.before(lambda: arena.proxy.address, cert=certs["good"]) as front:
        ctx = ssl.create_default_context(cafile=str(certs["ca"]))
        out = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            ctx.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
        hello, socks, wires = out.read(), [], fault_arena.WATCH.wires
        for i in range(step(row, "tls_hello_only")["tls_hello_only"]):
            c = connect(front.address, source=f"127.0.2.{1 + i % 8}")
            c.sendall(hello)
            socks.append(c)
        q = arena.fill(step(row, "req")["req"])
        for _ in range(3):
            a = ask(front.address, q["path"], None, "GET", q["headers"], wrap=lambda s: ctx.wrap_socket(s, server_hostname="localhost"))
            assert a.status in expect["others_status_in"], a
        assert fault_arena.WATCH.wires - wires <= 3, "a client that does not finish its handshake is none of Pullgate's"
        for c in socks:
            c.close()


def sigterm_behind_a_front(row, expect):
    with own() as arena:
        s, n, socks = arena.s, step(row, "open_keepalive")["open_keepalive"], []

        def ask_on(c):
            c.sendall(request(s.address, "/v2/", arena.w.auth))
            data = b""
            while b"\r\n\r\n" not in data and (more := c.recv(65536)):
                data += more
            return int(data[9:12] or 0)

        for i in range(n):
            socks.append(connect(s.address, source=f"127.0.1.{1 + i // 200}"))
            assert ask_on(socks[-1]) == 200
        arena.proxy.p.send_signal(signal.SIGTERM)
        assert arena.proxy.p.wait(expect["exit_within_s"] * SLOW) == expect["exit_code"]
        s.proxy_front.tap.refuse()  # as the proxy's port does
        for c in socks[:10]:  # HAProxy tries to connect for some seconds before it answers
            c.sendall(request(s.address, "/v2/", arena.w.auth))
        for c in socks[:10]:
            assert c.recv(65536)[9:12] in (b"502", b"503")
        arena.proxy.stop()
        s.start_proxy(0)
        s.proxy_front.tap.resume()
        for c in socks[10:]:  # whose connections were there all along
            assert ask_on(c) == 200
        for c in socks:
            c.close()


def half_closed_at_nginx(arena, row, expect):
    for _ in range(20):
        answers, closed, _ = raw_row(arena.s.address, arena, row)
        assert closed and len(answers) <= 1
        if answers:
            rows.check(arena, row, arena.fill(expect), answers, closed, 0)
    recovers(arena)


def entitlement_counted(row, expect, tmp_path):
    """As without a front; its clients are those of test_adversarial.py, which number nothing: they are counted."""
    watch, send_raw = fault_arena.WATCH, rows.send_raw

    def counted(address, *a, **kw):
        watch.connected(address)
        return send_raw(address, *a, **kw)

    with unittest.mock.patch.object(rows, "send_raw", counted):
        RUN["FLT-052"](row, expect, tmp_path)


def slow_body_behind_haproxy(row, expect):
    RUN["DOS-002"](row, expect, until_answered=True)


def clients_leave_behind_haproxy(arena, row, expect):
    RUN["DOS-028"](arena, row, expect, goes_on=True)


# (front, row): what is other than without a front, and why; with `instead`, what is asked instead.
BOTH = ("nginx", "haproxy")
CHANGED = {
    **{(f, "DOS-004"): Changed("a front opens no connection for a client that says nothing: Pullgate must not notice the 9,000 (what a front of 20,000 "
                               "descriptors can hold), others are served. HAProxy closes them after its timeout http-request of 10 s, nginx after its "
                               "client_header_timeout of 60 s, which is not waited for", idle_at_the_front) for f in BOTH},
    **{(f, "DOS-006"): Changed("idle clients take none of Pullgate's descriptors, so clients of a blob whose upstream stands still take them; Pullgate "
                               "closes the connection of who comes then, which the front says as 502", descriptors_behind_a_front, own=True) for f in BOTH},
    **{(f, "FLT-040"): Changed("the idle clients are the front's, and stay: while nobody is there they get its 502 or 503, then 200 of the next proxy on the "
                               "connections that they had", sigterm_behind_a_front) for f in BOTH},
    **{(f, "FLT-052"): Changed("the requests of test_adversarial.py have no numbers: they are counted", entitlement_counted) for f in BOTH},
    ("nginx", "FLT-054"): Changed("nginx sends a GET once more for each kept connection that ends before a byte of its answer: all but the last went to "
                                  "the process that was killed, and got none. While nobody is there it answers 502", own=True, again=True),
    **{("nginx", r): Changed("a proxy is stopped while nginx keeps connections to it: as FLT-054 for a request that meets the end of one, but nothing is its own",
                             again=True) for r in ("FLT-032", "FLT-048", "FLT-056")},
    ("haproxy", "FLT-054"): Changed("what the killed one had is answered 502, and not sent again", own=True),
    ("nginx", "FLT-044"): Changed("nginx speaks TLS to Pullgate here and checks its certificate at each request; what goes over cannot be read between: "
                                  "that each request is one is counted by Pullgate"),
    ("nginx", "FLT-046"): Changed("as FLT-044; to nginx, which looks at the date, an expired one is a server that is not there: 502"),
    ("haproxy", "FLT-044"): Changed("HAProxy leaves TLS to Pullgate (the documented TCP mode): what goes over cannot be read between, each request is counted "
                                    "by Pullgate"),
    ("haproxy", "FLT-046"): Changed("as FLT-044"),
    ("haproxy", "DOS-008"): Changed("as FLT-044; the PROXY header tells whose the connections are"),
    ("nginx", "DOS-008"): Changed("TLS ends at nginx: hellos stay there until its client_header_timeout, Pullgate must not notice them and others are served",
                                  hellos_at_the_front),
    ("nginx", "DOS-010"): Changed("nginx takes a line of 8 KiB by itself: 414", stays=True),
    ("nginx", "DOS-012"): Changed("nginx takes 32 KiB of fields and refuses more by itself: 400", stays=True),
    ("nginx", "DOS-014"): Changed("more than client_max_body_size of the documented 64 KiB: 413 of nginx", stays=True),
    ("nginx", "DOS-024"): Changed("the longest of the lines is answered 414 by nginx, the others by Pullgate", own=True),
    ("haproxy", "DOS-012"): Changed("HAProxy takes 16 KiB of head and refuses more by itself: 400", stays=True),
    ("haproxy", "DOS-024"): Changed("as DOS-012: 400", own=True),
    ("haproxy", "DOS-002"): Changed("Pullgate's answer comes in time; HAProxy reads on for some seconds before it closes", slow_body_behind_haproxy),
    ("haproxy", "DOS-028"): Changed("HAProxy looks at a client that left only when it has something for it: the upstream does not stand still, but sends a "
                                    "little now and then", clients_leave_behind_haproxy),
    ("nginx", "DOS-030"): Changed("to nginx a client that has closed its half has left: no answer, or the row's", half_closed_at_nginx),
}
# Against the sanitizer build: the rows of a moment whose fault is of a message. (FLT-024 and FLT-026 find a blob under a version that nobody has
# asked for; among three others on two processors that takes the slow build longer than the arena's hold.)
ALWAYS = {"FLT-018", "FLT-020", "FLT-030", "FLT-042", "DOS-010", "DOS-012", "DOS-014", "DOS-020", "DOS-024", "DOS-030"}
PARAMS = [pytest.param(r, id=r["id"], marks=[] if r["id"] in ALWAYS else [pytest.mark.once]) for r in CASES]


@pytest.fixture(scope="module", autouse=True)
def watch(request):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    w = Watch(request.module.FRONT)
    fault_arena.WATCH = w
    yield w
    fault_arena.WATCH = None
    w.dir.cleanup()


def run_behind(watch, case, request):
    changed = CHANGED.get((watch.kind, case["id"]), Changed(""))
    watch.begin()
    run(case, changed.instead or RUN[case["id"]], request)
    watch.judge(changed, "raw" in case)
