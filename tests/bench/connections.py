"""What an idle connection costs; how soon the daemon is ready; how soon an edit is seen."""
import pathlib
import socket
import ssl
import tempfile
import threading
import time

from blobs import certificate, gate
from lab import BIN, Proc, Stack, Vendor, allow_many_files, anon_kib, basic, median, quantile, wait_for


def held(address, auth, n, context=None):
    """n connections, one answered request on each."""
    host, port = address.rsplit(":", 1)
    conns = []
    for _ in range(n):
        c = socket.create_connection((host, int(port)))
        if context:
            c = context.wrap_socket(c, server_hostname="localhost")
        c.sendall(f"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n\r\n".encode())
        got = b""
        while b"\r\n\r\n{}" not in got:
            part = c.recv(4096)
            assert part, got
            got += part
        conns.append(c)
    return conns


def idle(table, quick):
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="pullgate-bench-") as tmp:
        d = pathlib.Path(tmp)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with gate(lambda v: [(v.blob("acme/api", b"layer"), 5)], ({}, {"tls": certificate(d)})) as (s, _, auth):
            for i, (what, n, target, ctx) in enumerate((("plain", 2000 if quick else 5000, 10, None), ("TLS", 500 if quick else 2000, 40, context))):
                pid = s.proxies[i].p.pid
                warm = held(s.proxies[i].address, auth, 50, ctx)
                before = anon_kib(pid)
                conns = held(s.proxies[i].address, auth, n, ctx)
                each = (anon_kib(pid) - before) / n
                table.add(f"idle kept connection, {what}: memory each, of {n:,}", f"{each:.1f} KiB", f"<= {target} KiB", "", each <= target, "")
                for c in warm + conns:
                    c.close()


def start(table, quick):
    """From exec to the first 200 of /readyz, with the admin daemon and Redis there."""
    with gate(lambda v: [(v.blob("acme/api", b"layer"), 5)]) as (s, _, auth):
        del auth
        times = []
        for _ in range(5 if quick else 15):
            s.proxies[0].stop()
            port_file = s.dir / "proxy0.port"
            port_file.unlink(missing_ok=True)
            begin = time.monotonic()
            s.proxies[0] = proc = Proc("proxy0", [BIN / "pullgate-proxy", "--config", s.dir / "pullgate0.yaml"], s.dir)
            while True:
                assert time.monotonic() < begin + 20, proc.text()[-2000:]
                try:
                    host, port = port_file.read_text().split()[0].rsplit(":", 1)
                    with socket.create_connection((host, int(port)), timeout=2) as c:
                        c.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        if c.recv(100).startswith(b"HTTP/1.1 200"):
                            break
                except (OSError, IndexError):
                    pass
                time.sleep(0.001)
            times.append((time.monotonic() - begin) * 1000)
        table.add("start to ready", f"{median(times):.0f} ms", "< 100 ms", "", median(times) < 100, f"{min(times):.0f} … {max(times):.0f}")


class Watcher(threading.Thread):
    """Asks one proxy for one manifest without a pause; when its answers changed."""

    def __init__(self, address, auth):
        super().__init__(daemon=True)
        host, port = address.rsplit(":", 1)
        self.c = socket.create_connection((host, int(port)))
        self.c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ask = f"HEAD /v2/shop/api/manifests/1.0.0 HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n\r\n".encode()
        self.status, self.since, self.over = 0, 0.0, False
        self.changed = threading.Event()

    def run(self):
        while not self.over:
            self.c.sendall(self.ask)
            got = self.c.recv(4096)
            while b"\r\n\r\n" not in got:
                got += self.c.recv(4096)
            now = time.monotonic()
            status = int(got[9:12])
            if status != self.status:
                self.since, self.status = now, status
                self.changed.set()
            time.sleep(0.0005)


def lag(table, quick):
    """From an edit of a license to the changed answer, on each of four proxies."""
    n = 40 if quick else 250
    s = Stack(start=False, upstream=object(), limits={"keepalive_requests": 0, "inflight_per_customer": 100000}, proxy={"workers": 1}, n_proxies=4)
    vendor = s.upstream = Vendor(s.dir)
    try:
        vendor.manifest("acme/api", "1.0.0", [(vendor.blob("acme/api", b"layer"), 5)])
        vendor.write()
        vendor.start()
        s.start_admin()
        up = s.add_upstream()
        app = s.add_application("shop", [("shop/api", "acme/api", "image")], up["id"])
        customer = s.add_customer("globex")
        auth = basic("globex", s.add_credential(customer["id"])["secret"])
        license = s.add_license(customer["id"], app["id"])
        for i in range(4):
            s.start_proxy(i)
            wait_for("the license", lambda: s.get("/v2/shop/api/manifests/1.0.0", auth, proxy=i).status_code == 200)
        watchers = [Watcher(p.address, auth) for p in s.proxies]
        for w in watchers:
            w.start()
        wait_for("the first answers", lambda: all(w.status == 200 for w in watchers))
        sent, acked = [], []
        for k in range(n):
            for w in watchers:
                w.changed.clear()
            action, want = ("suspend", 403) if k % 2 == 0 else ("reinstate", 200)
            begin = time.monotonic()
            s.api("POST", f"/licenses/{license['id']}/{action}", {}, expect=200)
            ack = time.monotonic()
            for w in watchers:
                assert w.changed.wait(20) and w.status == want, (k, w.status)
                sent.append((w.since - begin) * 1000)
                acked.append(max(0.0, w.since - ack) * 1000)
        for w in watchers:
            w.over = True
        for w in watchers:
            w.join(5)
        q = [quantile(acked, x) for x in (0.5, 0.99, 1)]
        table.add(f"license edit to changed answer, 4 proxies, {n} edits, from the edit's answer: p50 / p99 / max", " / ".join(f"{x:.1f}" for x in q) + " ms",
                  "p99 < 50 ms", "", q[1] < 50, "")
        q = [quantile(sent, x) for x in (0.5, 0.99, 1)]
        table.add("the same from the sending of the edit, the write to the store included", " / ".join(f"{x:.1f}" for x in q) + " ms")
    finally:
        vendor.stop()
        s.close()
