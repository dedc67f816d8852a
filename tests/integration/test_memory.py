"""What requests leave behind: after a warm-up, memory does not grow by how many there were."""
import pathlib
import socket
import sys
import time

from conftest import World
from stack import SANITIZED, SLOW

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "endurance"))

from endure import Load, Plan, Process, req  # noqa: E402

TOKENS = 12_000 // SLOW


def test_tokens_leave_no_memory_behind():
    """A client takes a token for every pull, and most name what others name: a token seen costs its slot and no more."""
    w = World(proxy={"workers": 1}, limits={"inflight_per_customer": 10000})
    try:
        digest = w.images["1.0.0"]["digest"]
        n = "/v2/shop/api/manifests/"
        plan = Plan().script(1, [req("/token?service=pullgate&scope=repository:shop/api:pull", w.auth),
                                 req(n + "1.0.0", "$token", body=digest[7:]), req(n + digest, "$token", method="HEAD"),
                                 req(n + "2.0.0", "$token", (403,))])
        proxy, seen = Process("proxy", w.s.proxies[0].p.pid), []
        load = Load(w.s.dir, plan, [w.s.proxies[0]], on_report=lambda r: seen.append(proxy.rss_kib()), requests=TOKENS * 4, connections=8, report=TOKENS // 2)
        load.wait()
        assert not load.bad(), f"{load.bad()}\n{load.told()}"
        grown = seen[-1] - seen[1]  # after a quarter: every page of the table has been written to
        assert len(seen) >= 7 and (grown < 200 or SANITIZED), seen
    finally:
        w.s.close()


def test_large_heads_leave_no_memory_behind():
    """What a request is read into is kept for the next one; not so the room that a few large heads took."""
    w = World(proxy={"workers": 1}, limits={"connections_per_ip": 1000, "head_deadline": "60s"})
    try:
        proxy = Process("proxy", w.s.proxies[0].p.pid)
        host, port = w.s.proxies[0].address.rsplit(":", 1)

        def round_of(fill):
            socks = [socket.create_connection((host, int(port)), timeout=60) for _ in range(200)]
            for s in socks:  # all are being read at the same time: each has a block of its own
                s.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-Fill: " + b"x" * fill + b"\r\n" + b"Y-Fill: " + b"y" * fill + b"\r\n")
            time.sleep(0.3 * SLOW)
            for s in socks:
                s.sendall(b"\r\n")
            for s in socks:
                got = b""
                while b"\r\n\r\n" not in got:
                    got += s.recv(65536)
                assert got.startswith(b"HTTP/1.1 401"), got[:100]
                s.close()
            return proxy.rss_kib()

        small, large, after = round_of(300), round_of(6000), round_of(300)
        assert after - small < 1000 or SANITIZED, (small, large, after)  # 200 of 12 KiB
    finally:
        w.s.close()
