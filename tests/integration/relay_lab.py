"""A scripted upstream and the relay's driver (tests/unit/drive_relay.c), for the test_relay_*.py files."""
import hashlib
import http.server
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from stack import BIN, SLOW, _die_with_parent, wait_for

DRIVER = BIN.parent / "tests" / "drive_relay"
WITHHELD = 64 * 1024


def make(n, seed=b"x"):
    """n bytes that do not repeat in the small."""
    out, i = bytearray(), 0
    block = hashlib.sha256(seed).digest() * 2048
    while len(out) < n:
        out += hashlib.sha256(seed + i.to_bytes(8, "big")).digest() + block
        i += 1
    return bytes(out[:n])


def digest_of(data, alg="sha256"):
    return f"{alg}:{hashlib.new(alg, data).hexdigest()}"


class Blob:
    """What the upstream does with one digest."""

    def __init__(self, data, digest=None, cut_at=None, stop_at=None, times=1 << 30, length=True, ranges=True, bad_range=False, status=200,
                 location=None):
        self.data = data
        self.digest = digest or digest_of(data)
        self.cut_at = cut_at        # close after so many bytes of this answer's body, in the first `times` answers
        self.times = times
        self.stop_at = stop_at      # stop sending there until .go is set
        self.length = length        # False: no Content-Length, the close ends it. A number: that
        self.ranges = ranges
        self.bad_range = bad_range  # 206 of another range than asked for
        self.status = status
        self.location = location
        self.go = threading.Event()


class Upstream:
    def __init__(self):
        self.blobs = {}
        self.requests = []  # (method, digest, range or None)
        self.gone_at = []   # when the proxy's leaving was noticed in mid-body
        self.sent = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                outer.answer(self, head=True)

            def do_GET(self):
                outer.answer(self, head=False)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def handle_error(self, *args):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, data, digest=None, **script):
        b = Blob(data, digest, **script)
        self.blobs[b.digest] = b
        return b

    def gets(self, digest=None):
        with self.lock:
            return [r for r in self.requests if r[0] == "GET" and (digest is None or r[1] == digest)]

    def heads(self, digest):
        with self.lock:
            return [r for r in self.requests if r[0] == "HEAD" and r[1] == digest]

    def answer(self, h, head):
        digest = h.path.rsplit("/", 1)[1]
        want = h.headers.get("Range")
        with self.lock:
            self.requests.append((h.command, digest, want))
            b = self.blobs.get(digest)
            faulty = b is not None and len([r for r in self.requests if r[0] == "GET" and r[1] == digest]) <= b.times
        if b is None or b.status != 200:
            body = b'{"errors":[{"code":"X","message":"inner detail of the upstream"}]}'
            h.send_response(404 if b is None else b.status)
            h.send_header("Content-Length", str(len(body)))
            h.end_headers()
            if not head:
                h.wfile.write(body)
            return
        if b.location is not None:
            h.send_response(307)
            h.send_header("Location", b.location)
            h.send_header("Content-Length", "0")
            h.end_headers()
            return
        first, last, status = 0, len(b.data) - 1, 200
        if want and b.ranges and not head:
            m = re.fullmatch(r"bytes=(\d+)-(\d*)", want)
            first, last, status = int(m[1]), int(m[2]) if m[2] else len(b.data) - 1, 206
            if b.bad_range:
                first += 1
        body = b.data[first:last + 1]
        h.send_response(status)
        if b.length is True:
            h.send_header("Content-Length", str(len(body)))
        elif b.length is not False:
            h.send_header("Content-Length", str(b.length))
        else:
            h.send_header("Connection", "close")
            h.close_connection = True
        if status == 206:
            h.send_header("Content-Range", f"bytes {first}-{last}/{len(b.data)}")
        h.end_headers()
        if head:
            return
        at = 0
        while at < len(body):
            n = min(65536, len(body) - at)
            if faulty and b.cut_at is not None:
                n = min(n, b.cut_at - at)
                if n == 0:
                    h.wfile.flush()
                    h.connection.shutdown(socket.SHUT_RDWR)
                    h.close_connection = True
                    return
            if b.stop_at is not None and not b.go.is_set():
                n = min(n, b.stop_at - at)
                if n == 0:  # wait for the test, or notice that the proxy has gone
                    while not b.go.wait(0.005):
                        readable, _, _ = select.select([h.connection], [], [], 0)
                        if readable and self._is_gone(h.connection):
                            self.gone_at.append(time.monotonic())
                            h.close_connection = True
                            return
                    continue
            try:
                h.wfile.write(body[at:at + n])
            except OSError:
                self.gone_at.append(time.monotonic())
                h.close_connection = True
                return
            at += n
            with self.lock:
                self.sent += n

    @staticmethod
    def _is_gone(connection):
        try:
            return connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def close(self):
        for b in self.blobs.values():
            b.go.set()
        self.server.shutdown()
        self.server.server_close()


class Answer:
    """One response, read to its end or to its break."""

    def __init__(self, sock, method="GET", keep=True):
        self.head, self.body, self.complete = b"", hashlib.sha256(), False
        self.data = bytearray() if keep else None
        self.n, self.length, self.status, self.fields, self.error = 0, None, None, {}, None
        buf = bytearray(1 << 18)
        try:
            while b"\r\n\r\n" not in self.head:
                got = sock.recv(65536)
                if not got:
                    raise ConnectionError("closed before a head")
                self.head += got
            self.head, _, rest = self.head.partition(b"\r\n\r\n")
            self.status = int(self.head.split(b" ", 2)[1])
            self.fields = {k.strip().lower(): v.strip() for k, v in
                           (line.split(":", 1) for line in self.head.decode("latin-1").split("\r\n")[1:])}
            self.length = 0 if method == "HEAD" else int(self.fields["content-length"])
            self._take(rest)
            while self.n < self.length:
                got = sock.recv_into(buf)
                if got == 0:
                    break
                self._take(memoryview(buf)[:got])
        except OSError as e:
            self.error = e
        self.complete = self.error is None and self.length == self.n

    def _take(self, part):
        self.n += len(part)
        self.body.update(part)
        if self.data is not None:
            self.data += part

    @property
    def digest(self):
        return "sha256:" + self.body.hexdigest()


class Lab:
    """The driver in front of the scripted upstream."""

    def __init__(self, upstream=None, **options):
        self.upstream = upstream or Upstream()
        self.own_upstream = upstream is None
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="pullgate-relay-"))
        self.err = open(self.dir / "stderr", "wb")
        argv = [str(DRIVER), "--upstream", self.upstream.url]
        for k, v in options.items():
            argv += ["--" + k.replace("_", "-"), str(v)]
        env = dict(os.environ)
        env.setdefault("ASAN_OPTIONS", "abort_on_error=1:detect_leaks=1")
        env.setdefault("TSAN_OPTIONS", "halt_on_error=1")
        self.p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.err, env=env, preexec_fn=_die_with_parent, text=True)
        self.addresses = []
        self.ended = []
        for line in self.p.stdout:
            if line.startswith("listen"):
                host, port = line.split()[2].rsplit(":", 1)
                self.addresses.append((host, int(port)))
            if line.startswith("ready"):
                break
        assert self.addresses, self.log()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.p.stdout:
            if line.startswith("{"):
                self.ended.append(json.loads(line))

    def log(self):
        return (self.dir / "stderr").read_text(errors="replace")

    def connect(self, worker=0, rcvbuf=None):
        s = socket.socket()
        if rcvbuf:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        s.settimeout(30 * SLOW)
        s.connect(self.addresses[worker % len(self.addresses)])
        return s

    def send(self, sock, digest, hint=None, method="GET", range_=None, repository="acme/app"):
        q = f"?size={hint}" if hint is not None else ""
        r = f"Range: {range_}\r\n" if range_ is not None else ""
        sock.sendall(f"{method} /v2/{repository}/blobs/{digest}{q} HTTP/1.1\r\nHost: x\r\n{r}\r\n".encode())

    def get(self, digest, hint=None, worker=0, method="GET", range_=None, keep=True, repository="acme/app"):
        with self.connect(worker) as s:
            self.send(s, digest, hint, method, range_, repository)
            return Answer(s, method, keep)

    def stats(self, worker=-1):
        with self.connect(worker) as s:
            s.sendall(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
            return json.loads(Answer(s).data)

    def end(self, n=1):
        """The n-th relay's end, once it is there."""
        return wait_for(f"{n} ended relays", lambda: len(self.ended) >= n and self.ended[n - 1])

    def quiet(self):
        """Nothing is left open."""
        return wait_for("no relay open and none in flight",
                        lambda: (lambda s: s if s["open"] == 0 and s["in_flight"] == 0 else None)(self.stats()))

    def stop(self):
        """SIGTERM; a clean exit, sanitizers content."""
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            try:
                self.p.wait(20 * SLOW)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()
                raise AssertionError("the driver did not end on SIGTERM; " + self.log())
        self.reader.join(5)
        assert self.p.returncode == 0, f"exit {self.p.returncode}: {self.log()}"

    def _clean(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        self.err.close()
        if self.own_upstream:
            self.upstream.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        try:
            if kind is None:
                self.stop()
            else:  # the test has failed already: say what the driver said
                print(self.log())
        finally:
            self._clean()
