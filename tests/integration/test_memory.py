"""What requests leave behind: after a warm-up, memory does not grow by how many there were."""
import sys
import pathlib

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
