"""What the fault tests share: a world whose Redis and upstream stand behind relays, a client that sees how an answer ended, and
loads. Everything is undone by close(). Where WATCH is set (fault_fronts.py), a front proxy stands before each proxy, clients talk to it,
number their requests for it, and tell it what they were answered."""
import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import re
import shutil
import socket
import tempfile
import threading
import time
import traceback

import requests

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SANITIZED, SLOW, Redis, basic, wait_for
from tcp_relay import TcpRelay

WATCH = None


class RelayedRedis(Redis):
    """Redis whose URL is a relay's; cmd() goes straight to it."""

    def __init__(self, directory):
        super().__init__(directory)
        self.relay = TcpRelay(self.port)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.relay.port}/0"


class RelayedUpstream(ScriptedUpstream):
    def serve(self, port=0):
        super().serve(port)
        if not hasattr(self, "relay"):
            self.relay = TcpRelay(self.port)

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.relay.port}"

    def stop(self):
        super().stop()
        self.relay.close()


class Arena:
    """The world of the rows, and the values of their placeholders. GRANTED_* is warm: the proxy has pulled it before."""

    def __init__(self, **kw):
        self.dir = tempfile.mkdtemp(prefix="pullgate-faults-")
        self.up = up = RelayedUpstream()
        self.redis = RelayedRedis(self.dir)
        proxy = {"metrics_listen": ["127.0.0.1:0"], **(WATCH.trusted if WATCH else {}), **kw.pop("proxy", {})}
        admin = {"sync_interval": "0s", **kw.pop("admin", {})}  # no traffic but the rows'
        limits = {**({"redis_deadline": f"{200 * SLOW}ms"} if SANITIZED else {}), **kw.pop("limits", {})}
        self.w = w = World(upstream=up, redis=self.redis, directory=self.dir, proxy=proxy, admin=admin, limits=limits, **kw)
        self.s = s = w.s
        self.standing = contextlib.ExitStack()
        self.standing.enter_context(behind(s))
        self.n = 100
        granted, ungranted = w.images["1.0.0"], w.images["2.0.0"]
        self.expired_auth, _, _ = w.customer_with("initech", [{"selector": "all", "value": "*"}], expires_at="2026-03-01", grace_days=0)
        self.hooli_auth, _, _ = w.customer_with("hooli", [{"selector": "all", "value": "*"}], app=w.app_other)
        self.ph = {
            "HOST": s.address, "GRANTED_REPO": "shop/api", "GRANTED_TAG": "1.0.0", "GRANTED_DIGEST": granted["digest"],
            "GRANTED_BLOB": granted["children"][0]["layers"][1], "UNGRANTED_TAG": "2.0.0", "UNGRANTED_DIGEST": ungranted["digest"],
            "UNGRANTED_BLOB": ungranted["children"][0]["layers"][1], "OTHER_REPO": "other/app", "CUST_AUTH": w.auth,
            "EXPIRED_AUTH": self.expired_auth, "ADMIN_AUTH": "Bearer " + s.token, "ADMIN_BASE": "/api/v1",
        }
        if WATCH:
            WATCH.forbidden |= {bytes.fromhex(self.ph[k][7:]) for k in ("UNGRANTED_DIGEST", "UNGRANTED_BLOB")}
        self.warm()

    def warm(self, proxy=0):
        s = self.s
        for path, auth, status in (("shop/api/manifests/1.0.0", self.w.auth, 200), ("shop/api/manifests/2.0.0", self.w.auth, 403),
                                   ("shop/api/manifests/1.0.0", self.expired_auth, 403), ("other/app/manifests/1.0.0", self.hooli_auth, 200)):
            for _ in range(6):  # a fresh connection each: both workers
                s.wait_status("/v2/" + path, auth, status, headers={"Connection": "close"}, proxy=proxy)

    @property
    def proxy(self):
        return self.s.proxies[0]

    def fresh(self, *layers, config=None):
        """A granted version that nobody has asked for: nothing of it is in any memory."""
        self.n += 1
        image = self.up.push_image("acme/api", f"1.0.{self.n}", list(layers) or [os.urandom(200000)], config=config or {"n": self.n})
        return {**image, "tag": f"1.0.{self.n}"}

    def fill(self, v, **more):
        ph = {**self.ph, **more}
        if isinstance(v, str):
            out = re.sub(r"\{([A-Z][A-Za-z0-9_]*)\}", lambda m: ph.get(m[1], m[0]), v)
            assert not re.search(r"\{[A-Z0-9_]+\}", out), f"a placeholder of {out[:200]} has no value"
            return out
        if isinstance(v, dict):
            return {self.fill(k, **more): self.fill(x, **more) for k, x in v.items()}
        if isinstance(v, list):
            return [self.fill(x, **more) for x in v]
        return v

    def ask(self, path, auth=None, proxy=0, **kw):
        return ask(self.s.proxies[proxy].address if proxy else self.s.address, path, auth or self.w.auth, **kw)

    def log(self):
        return self.proxy.text()

    def metric(self, name, proxy=0, **labels):
        lines = (pathlib.Path(self.dir) / f"proxy{proxy}.port").read_text().split()
        want = "".join(f'{k}="{v}"' for k, v in labels.items())
        return sum(float(line.rsplit(" ", 1)[1]) for line in requests.get(f"http://{lines[1]}/metrics", timeout=10).text.splitlines()
                   if re.match(rf"{name}[ {{]", line) and want in line)

    def nothing_ungranted(self, proxy=0):
        """I1: whatever the fault, nothing that is not granted is served. Asked side by side, for each may be held."""
        secret = self.up.blobs["acme/api", self.ph["UNGRANTED_BLOB"]][:40]
        asks = [(f"shop/api/manifests/{self.ph['UNGRANTED_TAG']}", None), (f"shop/api/manifests/{self.ph['UNGRANTED_DIGEST']}", None),
                (f"shop/api/blobs/{self.ph['UNGRANTED_BLOB']}", None), ("other/app/manifests/1.0.0", None),
                (f"other/app/blobs/{self.w.other['layers'][0]}", None), ("shop/api/manifests/1.0.0", self.expired_auth),
                (f"shop/api/blobs/{self.ph['GRANTED_BLOB']}", self.hooli_auth), ("shop/api/manifests/1.0.0", basic("globex", "pgc_wrong"))]
        got = [None] * len(asks)

        def one(i, path, auth):
            got[i] = self.ask("/v2/" + path, auth, proxy=proxy)

        threads = [threading.Thread(target=one, args=(i, *a)) for i, a in enumerate(asks)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for a, q in zip(got, asks):
            assert a is not None and a.status in (0, 401, 403, 404, 502, 503, 504), (q[0], a and a.status)
            assert secret not in a.body
        return [a.status for a in got]

    def close(self):
        self.redis.relay.resume()
        self.up.relay.resume()
        self.standing.close()
        try:
            self.s.close()
            if not os.environ.get("PULLGATE_KEEP"):
                shutil.rmtree(self.dir, ignore_errors=True)
        finally:
            self.redis.relay.close()
            self.up.stop()


@contextlib.contextmanager
def own(**kw):
    """An arena for one test that leaves it in ruins."""
    a = Arena(**kw)
    try:
        yield a
    finally:
        a.close()


@contextlib.contextmanager
def behind(s):
    """The front, if there is one, before proxy 0, wherever that listens at the moment."""
    if not WATCH:
        yield
        return
    with WATCH.before(lambda: s.proxies[0].address, s.config["proxy"].get("tls")) as s.proxy_front:
        yield
    s.proxy_front = None


@contextlib.contextmanager
def admin_behind(s):
    """The same before the admin daemon; s.api goes straight to it."""
    if not WATCH:
        yield
        return
    with WATCH.before(lambda: s.admin.address) as s.admin_front:
        s.admin_base = s.admin_front.base
        yield
    s.admin_front = None
    s.admin_base = s.api.base


def fewer(n, front=5):
    """How much of a measured load is sent: behind a front a part, for each of two does it again."""
    return n // front if WATCH else n


# ---- a client that sees how an answer ended --------------------------------------------------------------------------------


class Seen:
    def __init__(self):
        self.status, self.reason, self.headers, self.body = 0, "", {}, b""
        self.complete = self.closed = False
        self.ms = 0.0

    def __repr__(self):
        return f"<{self.status} {self.body[:200]!r} of {self.headers.get('content-length')} complete={self.complete} {self.ms:.0f} ms>"


def connect(address, timeout=40 * SLOW, source=None, rcvbuf=None):
    host, port = address.rsplit(":", 1)
    if WATCH:
        WATCH.connected(address)
    s = socket.socket()
    s.settimeout(timeout)
    if rcvbuf:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    if source:
        s.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen with the peer in mind
        s.bind((source, 0))
    s.connect((host, int(port)))
    return s


def numbered(address, headers=None):
    """Those fields, and the request's number when it is for a front."""
    return {**(headers or {}), **(WATCH.number(address.split("//")[-1]) if WATCH else {})}


def request(address, path, auth=None, method="GET", headers=None, body=b""):
    head = f"{method} {path} HTTP/1.1\r\nHost: {address}\r\n" + (f"Authorization: {auth}\r\n" if auth else "")
    head += "".join(f"{k}: {v}\r\n" for k, v in numbered(address, headers).items())
    return head.encode("latin-1") + b"\r\n" + body


def ask(address, path, auth=None, method="GET", headers=None, body=b"", timeout=40 * SLOW, source=None, wrap=None, linger=0.0):
    """One request on a connection of its own. Waits `linger` s behind a complete answer for the connection's end, or more bytes."""
    seen, t = Seen(), time.monotonic()
    raw = request(address, path, auth, method, headers, body)
    s = connect(address, timeout, source)
    with s:
        if wrap:
            s = wrap(s)
        data = b""
        try:
            s.sendall(raw)
            while b"\r\n\r\n" not in data:
                more = s.recv(65536)
                if not more:
                    seen.closed = True
                    return seen
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            seen.status, seen.reason = int(lines[0].split(" ")[1]), lines[0]
            for line in lines[1:]:
                k, _, v = line.partition(":")
                seen.headers[k.lower()] = v.strip()
            n = 0 if method == "HEAD" or seen.status in (204, 304) else int(seen.headers.get("content-length", 0))
            got, parts = len(rest), [rest]
            while got < n:
                more = s.recv(1 << 20)
                if not more:
                    seen.closed = True
                    break
                got += len(more)
                parts.append(more)
            seen.ms = (time.monotonic() - t) * 1000
            seen.body = b"".join(parts)
            seen.complete = got == n
            if linger and seen.complete:
                s.settimeout(linger)
                with contextlib.suppress(TimeoutError):
                    more = s.recv(65536)
                    seen.closed = not more
                    seen.complete = not more
        except OSError:
            seen.closed = True
        finally:
            seen.ms = seen.ms or (time.monotonic() - t) * 1000
            s.close()
    if WATCH:
        WATCH.answered(raw, seen.status, seen.body, seen.complete)
    return seen


# ---- loads ---------------------------------------------------------------------------------------------------------------


async def _pump_one(address, raws, out, told, wait):
    host, port = address.rsplit(":", 1)
    r = w = None
    used = False
    try:
        for raw in raws:
            while True:
                if w is None:
                    r, w = await asyncio.wait_for(asyncio.open_connection(host, int(port)), wait)
                    used = False
                if WATCH:
                    raw = WATCH.numbered_anew(raw)
                w.write(raw)
                try:
                    head = await asyncio.wait_for(r.readuntil(b"\r\n\r\n"), wait)
                except (asyncio.IncompleteReadError, ConnectionError):
                    w.close()
                    w = None
                    if used:
                        continue  # the server ended the connection between requests: again on another
                    out.append((0, b""))
                    break
                used = True
                status = int(head.split(b" ", 2)[1])
                m = re.search(rb"\r\ncontent-length: (\d+)", head, re.I)
                n = int(m[1]) if m else 0
                body = await asyncio.wait_for(r.readexactly(n), wait) if n and not raw.startswith(b"HEAD") else b""
                out.append((status, body if n < 4096 else b""))
                if WATCH:
                    told.append((raw, status, hashlib.sha256(body).digest()))
                if re.search(rb"\r\nconnection: close", head, re.I):
                    w.close()
                    w = None
                break
    finally:
        if w:
            w.close()


def pump(address, raws, connections=20, wait=60 * SLOW):
    """Sends the requests over so many connections; [(status, body when it is short)]. From a process of its own: the relays are threads of
    this one, and a busy client beside them would be a slow network."""
    async def run():
        out, told = [], []
        raws_ = list(raws)
        await asyncio.gather(*(_pump_one(address, raws_[i::connections], out, told, wait) for i in range(connections)))
        return out, told

    def send():
        try:
            theirs.send((None, asyncio.run(run())))
        except Exception:  # noqa: BLE001  what it was is the parent's to say
            theirs.send((traceback.format_exc(), None))

    ours, theirs = multiprocessing.get_context("fork").Pipe(False)
    child = multiprocessing.get_context("fork").Process(target=send)
    child.start()
    theirs.close()
    try:
        error, result = ours.recv()
    finally:
        child.join()
    assert error is None, error
    out, told = result
    for raw, status, sha256 in told:
        WATCH.answered(raw, status, sha256=sha256)
    return out


class Load:
    """A steady rate of requests from threads, half of them on connections of their own; every answer's status is kept."""

    def __init__(self, base, path, auth, rps, threads=4, verify=None):
        self.seen, self.errors, self.on = [], [], True
        self.base, self.path, self.auth, self.verify = base, path, auth, verify
        self.threads = [threading.Thread(target=self._run, args=(i % 2 == 0, threads / rps)) for i in range(threads)]
        for t in self.threads:
            t.start()

    def _run(self, keep, gap):
        with requests.Session() as session:
            session.headers["Authorization"] = self.auth
            if not keep:
                session.headers["Connection"] = "close"
            due = time.monotonic()
            while self.on:
                due += gap
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    number = numbered(self.base)
                    r = session.get(self.base + self.path, timeout=30 * SLOW, verify=self.verify, headers=number)
                    self.seen.append(r.status_code)
                    if WATCH:
                        WATCH.answered(number, r.status_code, r.content)
                except requests.RequestException as e:
                    self.errors.append(repr(e))

    def stop(self):
        self.on = False
        for t in self.threads:
            t.join()
        return self.seen, self.errors


# ---- what a process uses -------------------------------------------------------------------------------------------------


def fds(proc):
    return len(os.listdir(f"/proc/{proc.p.pid}/fd"))


def rss_kib(proc, field="VmRSS"):
    return int(re.search(rf"{field}:\s+(\d+)", pathlib.Path(f"/proc/{proc.p.pid}/status").read_text())[1])


def cpu_ticks(proc):
    return sum(map(int, pathlib.Path(f"/proc/{proc.p.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


def wait_fds(proc, most, timeout=10):
    def probe():
        there = sorted(os.readlink(f"/proc/{proc.p.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{proc.p.pid}/fd"))
        assert len(there) <= most, there
        return True

    wait_for(f"descriptors to be {most} again", probe, timeout)
