"""Across workers: a worker that ends hands its transfers on; the bound of streams; a storm of mixed readers."""
import random
import signal
import socket
import threading

from relay_lab import Answer, Lab, make, wait_for


def test_worker_leaving_hands_its_transfer_on():
    with Lab() as lab:
        blob = lab.upstream.add(make(4 << 20), stop_at=1 << 20)
        with lab.connect(0) as a, lab.connect(1) as b:
            lab.send(a, blob.digest, len(blob.data))
            wait_for("the transfer", lambda: lab.stats(0)["misses"] == 1)
            lab.send(b, blob.digest, len(blob.data))
            wait_for("the second reader", lambda: lab.stats(1)["joined"] == 1)
            wait_for("bytes", lambda: lab.upstream.sent >= 1 << 20)
            wait_for("bytes at the second reader", lambda: len(b.recv(1 << 17, socket.MSG_PEEK)) > 4096)
            lab.p.send_signal(signal.SIGUSR1)
            wait_for("the request by the other worker", lambda: len(lab.upstream.gets()) == 2)
            blob.go.set()
            got = Answer(b)
            assert got.complete and bytes(got.data) == blob.data
            assert lab.upstream.gets()[1][2].startswith("bytes=")


def test_worker_leaving_alone_cancels():
    with Lab() as lab:
        blob = lab.upstream.add(make(4 << 20), stop_at=1 << 20)
        with lab.connect(0) as a:
            lab.send(a, blob.digest, len(blob.data))
            wait_for("bytes", lambda: lab.upstream.sent >= 1 << 20)
            lab.p.send_signal(signal.SIGUSR1)
            wait_for("the upstream's connection to close", lambda: lab.upstream.gone_at)


def test_streams_per_worker():
    with Lab(streams=3) as lab:
        blob = lab.upstream.add(make(1 << 20), stop_at=300000)
        held = [lab.connect(0) for _ in range(3)]
        for s in held:
            lab.send(s, blob.digest, 1 << 20)
        wait_for("three open", lambda: lab.stats()["open"] == 3)
        got = lab.get(blob.digest, 1 << 20)
        assert got.status == 503 and got.fields["retry-after"] == "2"
        with lab.connect(1) as s:  # the bound is a worker's
            lab.send(s, blob.digest, 1 << 20)
            assert s.recv(100).startswith(b"HTTP/1.1 200 ")
        held[0].close()
        wait_for("room", lambda: lab.stats()["open"] == 2)
        blob.go.set()
        got = lab.get(blob.digest, 1 << 20)
        assert got.complete
        for s in held[1:]:
            s.close()
        lab.quiet()


def test_storm(tmp_path):
    """Readers come, leave, resume and finish at random over a small set of blobs, some of which break: what completes is right."""
    with Lab(cache=tmp_path / "cache", max_bytes=3 << 20, workers=3) as lab:
        rnd = random.Random(7)
        blobs = [lab.upstream.add(make(rnd.choice([10, 70000, 400000, 1500000]), bytes([i])),
                                  **rnd.choice([{}, {}, {"cut_at": 50000, "times": 1}, {"length": False}])) for i in range(12)]
        wrong = []

        def client(seed):
            r = random.Random(seed)
            for _ in range(25):
                b = r.choice(blobs)
                n = len(b.data)
                with lab.connect(r.randrange(3)) as s:
                    kind = r.random()
                    hint = n if b.length is False else r.choice([n, None])
                    if kind < 0.6:
                        lab.send(s, b.digest, hint)
                        got = Answer(s)
                        if got.status != 200 or not got.complete or bytes(got.data) != b.data:
                            wrong.append((seed, b.digest, n, got.status, got.n, got.error))
                    elif kind < 0.8:
                        lab.send(s, b.digest, hint)
                        if r.random() < 0.7:
                            s.recv(r.randrange(1, 100000))
                    else:
                        first = r.randrange(n)
                        lab.send(s, b.digest, hint, range_=f"bytes={first}-")
                        got = Answer(s)
                        if got.status != 206 or not got.complete or bytes(got.data) != b.data[first:]:
                            wrong.append((seed, "range", b.digest, n, first, got.status, got.n, got.error))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong
        assert lab.quiet()["bytes"] <= 3 << 20
