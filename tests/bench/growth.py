"""What grows, and what it costs: licenses, tags, versions that share a layer. And the parts of a decision by themselves."""
import pathlib
import re
import socket
import subprocess
import tempfile
import time

from blobs import gate
from lab import LOAD, TESTS_BIN, Pairs, Stack, Vendor, anon_kib, basic, cpu_s, median, pin, quantile, wait_for, wrk

GETS = ("get", "mget")


class Line:
    """One kept connection, one request at a time."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.c = socket.create_connection((host, int(port)))
        self.c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method, path, auth):
        """(microseconds to the whole answer, its bytes)"""
        text = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n\r\n".encode()
        begin = time.monotonic()
        self.c.sendall(text)
        got = self.c.recv(1 << 20)
        while b"\r\n\r\n" not in got:
            got += self.c.recv(1 << 20)
        at = got.index(b"\r\n\r\n") + 4
        length = int(re.search(rb"[Cc]ontent-[Ll]ength: (\d+)", got)[1]) if method != "HEAD" else 0
        while len(got) - at < length:
            got += self.c.recv(1 << 20)
        us = (time.monotonic() - begin) * 1e6
        assert got[9:12] == b"200", got[:300]
        return us, len(got)


def reads(redis):
    info = redis.cmd("INFO", "commandstats").decode()
    return sum(int(m[1]) for m in re.finditer(rf"cmdstat_(?:{'|'.join(GETS)}):calls=(\d+)", info))


def round_trip(redis, n=300):
    with socket.create_connection(("127.0.0.1", redis.port)) as c:
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(n):
            begin = time.monotonic()
            c.sendall(b"*2\r\n$3\r\nGET\r\n$7\r\npg:none\r\n")
            c.recv(100)
            times.append((time.monotonic() - begin) * 1e6)
    return median(times)


def licenses_known(vendor, n, quick):
    """One projection of n licenses, one proxy in front of it."""
    s = Stack(start=False, upstream=vendor, proxy={"workers": 1}, limits={"keepalive_requests": 0, "inflight_per_customer": 100000})
    driver = None
    try:
        config = s.write_config()
        begin = time.monotonic()
        driver = subprocess.Popen([TESTS_BIN / "drive_facts", config, str(n), vendor.url, "acme/api", "20000"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        lines = []
        for line in driver.stdout:
            if line == "end\n":
                break
            lines.append(line.strip())
        assert lines and lines[0] == "ready", "drive_facts failed"
        secrets = [basic("x", x) for x in lines[1:]]
        written = time.monotonic() - begin
        proxy = s.start_proxy(0)
        pin(proxy.p.pid)
        pin(s.redis.proc.p.pid, LOAD)
        path = "/v2/shop/api/manifests/1.0.0"
        wait_for("the first answer", lambda: s.get(path, secrets[0]).status_code == 200)
        line = Line(s.address)
        hot = median([line.ask("HEAD", path, secrets[0])[0] for _ in range(300)])
        costs = []
        for _ in range(1 if quick else 3):
            before = cpu_s([proxy.p.pid])
            _, k = wrk(s.base + path, secrets[0])
            costs.append((cpu_s([proxy.p.pid]) - before) * 1e6 / k)
        unseen = secrets[1:][:: max(1, len(secrets) // 300)]
        before = reads(s.redis)
        cold = [line.ask("HEAD", path, x)[0] for x in unseen]
        per_cold = (reads(s.redis) - before) / len(unseen) if unseen else 0
        trip = round_trip(s.redis)
        many = None
        if len(secrets) >= 1000:
            some = secrets[:10000]
            script = s.dir / "many.lua"
            script.write_text("local a = {" + ",".join(f'"{x}"' for x in some) + "}\nmath.randomseed(os.time())\nlocal i = math.random(#a)\nrequest = function() i = i % #a + 1; "
                              "wrk.headers['Authorization'] = a[i]; return wrk.format('GET', nil) end\n")
            warm = 0
            while warm < 5 * len(some):  # from a place of its own each time: all have been asked for
                warm += wrk(s.base + path, script=script, seconds=1)[1]
            before = cpu_s([proxy.p.pid])
            _, k = wrk(s.base + path, script=script, seconds=2)
            many = (cpu_s([proxy.p.pid]) - before) * 1e6 / k
        return {"hot_us": hot, "cpu_us": median(costs), "cold_us": median(cold) if cold else 0, "cold_reads": per_cold, "trip_us": trip, "many_us": many,
                "rss_mib": anon_kib(proxy.p.pid) / 1024, "redis_mib": int(re.search(rb"used_memory:(\d+)", s.redis.cmd("INFO", "memory"))[1]) / (1 << 20),
                "written_s": written}
    finally:
        if driver:
            driver.stdin.close()
            driver.wait(20)
        s.close()
        s.redis.stop()


def licenses(table, quick):
    with tempfile.TemporaryDirectory(prefix="pullgate-bench-") as tmp:
        vendor = Vendor(pathlib.Path(tmp))
        vendor.manifest("acme/api", "1.0.0", [(vendor.blob("acme/api", b"layer"), 5)])
        vendor.write()
        vendor.start()
        try:
            base = None
            for n in (1, 1000, 100000) if quick else (1, 1000, 100000, 1000000):
                x = licenses_known(vendor, n, quick)
                base = base or x
                ratio = x["cpu_us"] / base["cpu_us"]
                many = f", over {min(n, 10000):,} customers {x['many_us']:.1f} us" if x["many_us"] else ""
                table.add(f"{n:,} license{'s' * (n > 1)} known: CPU time of a hot request", f"{x['cpu_us']:.1f} us{many}", "does not grow", f"{ratio:.2f} x",
                          None, "")
                table.add("memory of the proxy / of Redis", f"{x['rss_mib']:.0f} / {x['redis_mib']:.0f} MiB")
                if x["cold_us"]:
                    trips = (x["cold_us"] - x["hot_us"]) / x["trip_us"]
                    table.add("a customer not seen before: reads of Redis, one after the other",
                              f"{x['cold_reads']:.1f}, {x['cold_us'] - x['hot_us']:.0f} us beyond a hot request", "1 round trip",
                              f"{trips:.1f} x GET of {x['trip_us']:.0f} us", x["cold_reads"] < 1.05, "")
        finally:
            vendor.stop()


def tags(table, quick):
    sizes = (10, 100, 1000, 10000)
    with_tags = {}

    def prepare(vendor):
        layer = (vendor.blob("acme/api", b"layer"), 5)
        for n in sizes:
            for i in range(n):
                vendor.manifest(f"acme/t{n}", f"1.{i // 100}.{i % 100}", [layer])
            with_tags[n] = f"shop/t{n}"
        return [layer]

    with gate(prepare, repositories=[(f"shop/t{n}", f"acme/t{n}", "image") for n in sizes], admin={"sync_interval": 0}) as (s, _, auth):
        pid = s.proxies[0].p.pid
        line = Line(s.address)
        for n in sizes:
            path = f"/v2/shop/t{n}/tags/list"
            wait_for("the tags", lambda: s.get(path, auth).status_code == 200)
            k = 100 if quick else 400
            before = cpu_s([pid])
            times = [line.ask("GET", path, auth) for _ in range(k)]
            cpu = (cpu_s([pid]) - before) * 1e6 / k
            us = median([t for t, _ in times])
            table.add(f"tags/list, first page of {n:,} tags, hot: time to answer", f"{us / 1000:.2f} ms, {cpu:.0f} us CPU, {times[0][1]:,} bytes",
                      "< 1 ms" if n == 10000 else "", "", us < 1000 if n == 10000 else None, f"p99 {quantile([t for t, _ in times], 0.99) / 1000:.2f} ms")


def layers(table, quick):
    counts = (1, 10, 100) if quick else (1, 10, 100, 1000)
    shared = []

    def prepare(vendor):
        for n in counts:
            shared.append(vendor.blob(f"acme/v{n}", b"the layer that all share"))
            for i in range(n):
                vendor.manifest(f"acme/v{n}", f"1.{i // 100}.{i % 100}", [(shared[0], 24)], note=f"{i}")
        return [(vendor.blob("acme/api", b"layer"), 5)]

    with tempfile.TemporaryDirectory(prefix="pullgate-bench-") as cache, \
            gate(prepare, ({"blob_cache": {"path": cache}},), repositories=[(f"shop/v{n}", f"acme/v{n}", "image") for n in counts],
                 admin={"sync_interval": 0}) as (s, _, auth):
        pid = s.proxies[0].p.pid
        first = {}
        for n in counts:
            begin = time.monotonic()
            wait_for("the layer", lambda: s.get(f"/v2/shop/v{n}/blobs/{shared[0]}", auth).status_code == 200, timeout=60)
            first[n] = time.monotonic() - begin

        def sample(n):
            before = cpu_s([pid])
            rate, k = wrk(f"{s.base}/v2/shop/v{n}/blobs/{shared[0]}", auth)
            return (cpu_s([pid]) - before) * 1e6 / k, rate

        p = Pairs(counts)
        p.rounds(1 if quick else 3, sample)
        for n in counts:
            table.add(f"a small layer that {n:,} version{'s' * (n > 1)} share{'s' * (n == 1)}, from cache: CPU time",
                      f"{p.of(n):.1f} us (first answer {first[n] * 1000:.0f} ms)", "does not grow", f"{p.ratio(n, counts[0])[0]:.2f} x", None, "")


def decision(table, quick):
    """The parts by themselves, as the unit tests time them, on the server's core."""
    def prints(program, test=None):
        out = subprocess.run(["taskset", "-c", "0", TESTS_BIN / program], capture_output=True, text=True, timeout=300).stdout
        return {m[1]: float(m[2]) for m in re.finditer(r"^(.+?): ([\d.]+) ns", out, re.M)}

    runs = 1  # processor time: another run says the same
    parts = {}
    for program in ("test_facts", "test_content", "test_pullevent", "test_accesslog"):
        for _ in range(runs):
            for k, v in prints(program).items():
                parts.setdefault(k, []).append(v)
    parts = {k: median(v) for k, v in parts.items()}
    peek = parts["facts_peek"]
    for k in ("manifest by tag", "manifest by digest", "layer shared by 3000 versions", "ungranted digest", "ungranted tag"):
        total = 3 * peek + parts[k]
        table.add(f"decision, hot: three facts looked up, {k}", f"{total:.0f} ns", "< 1,000 ns", "", total < 1000, "")
    event = next(v for k, v in parts.items() if k.startswith("pullevent_add"))
    table.add("one pull event, MAC of its batch included", f"{event:.0f} ns", "< 1,000 ns", "", event < 1000, "")
    table.add("one access line", f"{parts['accesslog_write']:.0f} ns")
