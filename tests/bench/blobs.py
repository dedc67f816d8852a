"""Blobs beside nginx: cold and cached, plain and TLS; slow clients; a storm on one cold blob. The whole gate with all its checks, in front
of a registry of files."""
import contextlib
import os
import pathlib
import socket
import subprocess
import tempfile
import time

from lab import LOAD, Nginx, Pairs, Stack, Vendor, anon_kib, basic, cpu_s, free_port, pin, spread, timed, wait_for

MIB = 1 << 20


@contextlib.contextmanager
def gate(prepare, proxies=({},), repositories=(), **stack):
    """A vendor, whatever prepare(vendor) -> layers puts there as shop/api 1.0.0, further repositories, and one proxy a setting.
    Yields (stack, vendor, auth)."""
    s = Stack(start=False, upstream=object(), limits={"keepalive_requests": 0, "inflight_per_customer": 100000, "connections_per_ip": 20000,
                                                      "connections": 20000, "upstream_connections": 1000, "client_min_rate": 0}, **stack)
    vendor = s.upstream = Vendor(s.dir)
    try:
        vendor.manifest("acme/api", "1.0.0", prepare(vendor))
        vendor.write()
        vendor.start()
        s.start_admin()
        up = s.add_upstream()
        app = s.add_application("shop", [("shop/api", "acme/api", "image"), *repositories], up["id"])
        customer = s.add_customer("globex")
        auth = basic("globex", s.add_credential(customer["id"])["secret"])
        s.add_license(customer["id"], app["id"])
        base = dict(s.config["proxy"])
        for i, more in enumerate(proxies):
            s.config["proxy"] = {**base, "workers": 1, **more}
            s.start_proxy(i)
            wait_for("the license", lambda: s.get("/v2/shop/api/manifests/1.0.0", auth, proxy=i, verify=False).status_code == 200)
            pin(s.proxies[i].p.pid)
        pin(s.redis.proc.p.pid, LOAD)
        pin(s.admin.p.pid, LOAD)
        yield s, vendor, auth
    finally:
        vendor.stop()
        s.close()


def certificate(directory):
    """Of a server that nobody verifies: the paths as proxy.tls wants them."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=localhost"], check=True, capture_output=True)
    os.chmod(key, 0o600)
    return {"cert": str(cert), "key": str(key)}


def fetch(url, auth, size, parallel):
    """`parallel` whole downloads at once."""
    procs = [subprocess.Popen(["taskset", "-c", str(LOAD), "curl", "-sk", "-H", f"Authorization: {auth}", "-o", "/dev/null", "-w",
                               "%{size_download} %{http_code}", url], stdout=subprocess.PIPE, text=True) for _ in range(parallel)]
    for p in procs:
        out = p.communicate()[0].split()
        assert out == [str(size), "200"], (url, out)


def throughput(table, quick):
    mib = 128 if quick else 256
    size = mib * MIB
    layer = []

    def prepare(vendor):
        layer.append(vendor.blob("acme/api", os.urandom(MIB) * mib))
        return [(layer[0], size)]

    with tempfile.TemporaryDirectory(prefix="pullgate-bench-") as tmp:
        d = pathlib.Path(tmp)
        settings = ({"spool_keep": 0}, {"blob_cache": {"path": str(d / "cache")}}, {"blob_cache": {"path": str(d / "cache-tls")}, "tls": certificate(d)})
        for x in ("cache", "cache-tls"):
            (d / x).mkdir()
        with gate(prepare, settings) as (s, vendor, auth):
            plain, tls, proxied = (free_port() for _ in range(3))
            rival = Nginx(d, "rival", f"""root {vendor.root};
              server {{ listen 127.0.0.1:{plain}; }}
              server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem; }}
              server {{ listen 127.0.0.1:{proxied}; location / {{ proxy_pass http://127.0.0.1:{vendor.port}; proxy_http_version 1.1;
                proxy_set_header Connection ""; proxy_max_temp_file_size 0; }} }}""")
            try:
                ours, theirs = f"/v2/shop/api/blobs/{layer[0]}", f"/v2/acme/api/blobs/{layer[0]}"
                cold, hot, hot_tls = s.proxies
                cases = {
                    "cold": (cold.base + ours, [cold.p.pid], 1),
                    "proxy_pass": (f"http://127.0.0.1:{proxied}{theirs}", rival.pids, 1),
                    "cached": (hot.base + ours, [hot.p.pid], 4),
                    "sendfile": (f"http://127.0.0.1:{plain}{theirs}", rival.pids, 4),
                    "cached TLS": (hot_tls.base + ours, [hot_tls.p.pid], 4),
                    "nginx TLS": (f"https://127.0.0.1:{tls}{theirs}", rival.pids, 4),
                }
                for name in ("cached", "cached TLS"):
                    fetch(cases[name][0], auth, size, 1)
                wait_for("the cached files", lambda: all(len(list((d / x / "sha256").glob("*/*"))) for x in ("cache", "cache-tls")))

                def sample(name):
                    url, pids, parallel = cases[name]
                    before = cpu_s(pids)
                    seconds, _ = timed(lambda: fetch(url, auth, size, parallel))
                    gib = parallel * size / (1 << 30)
                    return gib * 1.073741824 / seconds, (cpu_s(pids) - before) / gib

                p = Pairs(cases)
                p.rounds(3 if quick else 7, sample)
                rate, cpu = p.ratio("cold", "proxy_pass"), p.ratio("cold", "proxy_pass", 1)
                table.add("cold blob, one client, against nginx proxy_pass: throughput", f"{p.of('cold'):.2f} / {p.of('proxy_pass'):.2f} GB/s", ">= 1 x",
                          f"{rate[0]:.2f} x", rate[0] >= 1, spread(rate))
                table.add("the same: CPU time a GiB (ours hashes and keeps what it relays)", f"{p.of('cold', 1):.2f} / {p.of('proxy_pass', 1):.2f} s", "",
                          f"{cpu[0]:.2f} x", None, spread(cpu))
                for a, b, text in (("cached", "sendfile", "cached blob, plain, against nginx sendfile: CPU time a GiB"),
                                   ("cached TLS", "nginx TLS", "cached blob, TLS, against nginx TLS: CPU time a GiB")):
                    cpu = p.ratio(a, b, 1)
                    table.add(text, f"{p.of(a, 1):.3f} / {p.of(b, 1):.3f} s", "<= 1 x", f"{cpu[0]:.2f} x", cpu[0] <= 1, spread(cpu))
            finally:
                rival.stop()


def ask(address, path, auth, rcvbuf=None):
    c = socket.socket()
    if rcvbuf:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    host, port = address.rsplit(":", 1)
    c.connect((host, int(port)))
    c.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n\r\n".encode())
    return c


def slow(table, quick):
    """Each its own cold blob: the worst case. None comes to its end, so all of them can be the same file."""
    n, size = 100, 16 * MIB
    digests = [f"sha256:{i:064x}" for i in range(1, n + 1)]

    def prepare(vendor):
        (vendor.dir / "layer").write_bytes(os.urandom(size))
        for x in digests:
            vendor.blob_file("acme/api", x, vendor.dir / "layer")
        return [(x, size) for x in digests]

    with gate(prepare) as (s, vendor, auth):
        pid = s.proxies[0].p.pid
        before, clients, most = anon_kib(pid), [], 0
        for x in digests:
            clients.append(ask(s.address, f"/v2/shop/api/blobs/{x}", auth, rcvbuf=8192))
        end = time.monotonic() + (2 if quick else 5)
        while time.monotonic() < end:
            for c in clients:
                c.recv(1024)
            most = max(most, anon_kib(pid))
            time.sleep(0.1)
        for c in clients:
            assert c.recv(1)
            c.close()
        each = (most - before) / 1024 / n
        table.add(f"{n} slow clients, each its own cold blob: memory each", f"{each:.3f} MiB", "<= 0.5 MiB", "", each <= 0.5, "")


def storm(table, quick):
    n, size = 200, (4 if quick else 16) * MIB
    layer = []

    def prepare(vendor):
        layer.append(vendor.blob("acme/api", os.urandom(size)))
        return [(layer[0], size)]

    with gate(prepare) as (s, vendor, auth):
        pid = s.proxies[0].p.pid
        before = anon_kib(pid)
        url = f"{s.base}/v2/shop/api/blobs/{layer[0]}"
        seconds, done = timed(lambda: subprocess.run(
            ["taskset", "-c", str(LOAD), "curl", "-s", "-Z", "--parallel-immediate", "--parallel-max", str(n), "-H", f"Authorization: {auth}", "-w", "%{size_download}\n",
             *[x for _ in range(n) for x in ("-o", "/dev/null", url)]], capture_output=True, text=True))
        assert done.stdout.split() == [str(size)] * n, (done.returncode, done.stderr[-500:], done.stdout[-200:])
        sent = len(vendor.requests_of(f"GET /v2/acme/api/blobs/{layer[0]}"))
        table.add(f"{n} clients at once, one cold blob of {size // MIB} MiB: transfers from the upstream", f"{sent}", "1", "", sent == 1, "")
        table.add("the same: to all of them / memory it took", f"{n * size / seconds / 1e9:.2f} GB/s / {(anon_kib(pid) - before) / 1024:.1f} MiB")
