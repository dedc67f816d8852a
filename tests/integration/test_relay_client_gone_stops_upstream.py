"""The last reader leaving stops the upstream at once; nothing is left behind after many such (SECURITY 2.3, DOS-028)."""
import os
import time

from relay_lab import SLOW, Lab, make, wait_for


def test_upstream_connection_closes_at_once():
    with Lab() as lab:
        blob = lab.upstream.add(make(2 << 20), stop_at=1 << 20)
        for worker in (0, 1):
            for range_ in (None, "bytes=10-"):
                n = len(lab.upstream.gone_at)
                s = lab.connect(worker)
                lab.send(s, blob.digest, len(blob.data), range_=range_)
                assert s.recv(1000).startswith(b"HTTP/1.1 20")
                left = time.monotonic()
                s.close()
                wait_for("the upstream's connection to close", lambda: len(lab.upstream.gone_at) > n)
                assert lab.upstream.gone_at[-1] - left < 1.0 * SLOW
        lab.quiet()


def test_before_a_byte_of_the_body():
    with Lab() as lab:
        blob = lab.upstream.add(make(2 << 20), stop_at=0)
        s = lab.connect()
        lab.send(s, blob.digest, len(blob.data))
        wait_for("the request", lab.upstream.gets)
        s.close()
        wait_for("the upstream's connection to close", lambda: lab.upstream.gone_at)
        lab.quiet()


def test_transfer_owned_by_the_other_worker():
    """The transfer runs in worker 0, whose client left; then the last reader, in worker 1, leaves."""
    with Lab() as lab:
        blob = lab.upstream.add(make(2 << 20), stop_at=1 << 20)
        a, b = lab.connect(0), lab.connect(1)
        lab.send(a, blob.digest, len(blob.data))
        wait_for("the transfer", lambda: lab.stats(0)["misses"] == 1)
        lab.send(b, blob.digest, len(blob.data))
        wait_for("the second reader", lambda: lab.stats(0)["joined"] == 1)
        a.close()
        wait_for("one open", lambda: lab.stats()["open"] == 1)
        assert not lab.upstream.gone_at
        b.close()
        wait_for("the upstream's connection to close", lambda: lab.upstream.gone_at)
        lab.quiet()


def test_no_descriptor_is_left_after_many():
    with Lab() as lab:
        blob = lab.upstream.add(make(1 << 20), stop_at=300000)

        def fds():
            return len(os.listdir(f"/proc/{lab.p.pid}/fd"))

        before = None
        for i in range(300):
            s = lab.connect(i)
            lab.send(s, blob.digest, len(blob.data))
            s.recv(1000)
            s.close()
            if i == 50:
                lab.quiet()
                before = fds()
        lab.quiet()
        wait_for("descriptors to be given back", lambda: fds() <= before + 2)
