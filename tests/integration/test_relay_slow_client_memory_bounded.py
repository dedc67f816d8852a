"""A client that reads slowly slows the upstream down and costs bounded memory (DESIGN 7, SECURITY 2.3 "slow reader")."""
import time

from relay_lab import SLOW, Answer, Lab, make, wait_for
from stack import SANITIZED  # freed memory stays in the sanitizer's quarantine: then only the traffic is looked at


def settled(probe, quiet_s=0.5, timeout=20):
    """The value of probe() once it has not moved for a while."""
    deadline, last, since = time.monotonic() + timeout * SLOW, probe(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        assert time.monotonic() < deadline, f"still moving: {last}"
        time.sleep(0.02)
        now = probe()
        if now != last:
            last, since = now, time.monotonic()
    return last


def test_stalled_reader_pauses_the_upstream():
    with Lab(workers=1) as lab:
        blob = lab.upstream.add(make(64 << 20))
        s = lab.connect(rcvbuf=65536)
        lab.send(s, blob.digest, len(blob.data))
        sent = settled(lambda: lab.upstream.sent)
        # what the kernel's socket buffers, one file window and the high watermark hold; not the blob
        assert sent < 24 << 20, sent
        got = Answer(s, keep=False)
        assert got.complete and got.digest == blob.digest
        s.close()
        lab.quiet()


def test_stalled_direct_readers_cost_bounded_memory():
    """A range goes straight through: here the buffer is memory."""
    with Lab(workers=1) as lab:
        blob = lab.upstream.add(make(64 << 20))
        base = lab.stats()["anon_kib"]
        socks = []
        for _ in range(20):
            s = lab.connect(rcvbuf=65536)
            lab.send(s, blob.digest, len(blob.data), range_="bytes=10-")
            socks.append(s)
        settled(lambda: lab.upstream.sent)
        assert lab.upstream.sent < 20 * (24 << 20)
        grown = lab.stats()["anon_kib"] - base
        assert grown < 20 * 700 or SANITIZED, f"{grown} KiB for 20 stalled readers"
        got = Answer(socks[0])
        assert got.status == 206 and got.complete and bytes(got.data) == blob.data[10:]
        for s in socks:
            s.close()
        lab.quiet()


def test_100_slow_readers_of_a_file_cost_little_memory():
    with Lab() as lab:
        blob = lab.upstream.add(make(16 << 20))
        base = lab.stats()["anon_kib"]
        socks = []
        for i in range(100):
            s = lab.connect(i, rcvbuf=32768)
            lab.send(s, blob.digest, len(blob.data))
            socks.append(s)
        settled(lambda: lab.upstream.sent)
        grown = lab.stats()["anon_kib"] - base
        assert grown < 100 * 512 or SANITIZED, f"{grown} KiB for 100 stalled readers"
        for s in socks:
            s.close()
        wait_for("all gone", lambda: lab.stats()["open"] == 0)
        lab.quiet()


def test_fast_reader_is_not_held_by_a_slow_one():
    with Lab() as lab:
        blob = lab.upstream.add(make(32 << 20))
        with lab.connect(0, rcvbuf=32768) as slow:
            lab.send(slow, blob.digest, len(blob.data))
            wait_for("the transfer", lambda: lab.stats(0)["misses"] == 1)
            got = lab.get(blob.digest, len(blob.data), worker=1, keep=False)
            assert got.complete and got.digest == blob.digest
            assert len(lab.upstream.gets()) == 1
            late = Answer(slow, keep=False)  # all of it, from the file
            assert late.complete and late.digest == blob.digest
        lab.quiet()


def test_duration_is_bounded():
    with Lab(max_duration_ms=700) as lab:
        blob = lab.upstream.add(make(8 << 20), stop_at=1 << 20)
        got = lab.get(blob.digest, len(blob.data))
        assert not got.complete and got.status == 200
        assert (lab.end()["end"], lab.end()["err"]) == ("too_long", "dependency too slow")
        wait_for("the upstream's connection to close", lambda: lab.upstream.gone_at)
        got = lab.get(lab.upstream.add(make(2 << 20, b"y"), stop_at=0).digest)
        assert got.status == 504
        lab.quiet()
