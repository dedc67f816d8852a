"""However many ask for a cold blob, in whichever worker: one upstream transfer (DESIGN 7, "200 clients, one cold blob")."""
import os
import threading

from relay_lab import Answer, Lab, digest_of, make, wait_for


def test_200_clients_one_upstream_get():
    with Lab() as lab:
        blob = lab.upstream.add(make(20 << 20), stop_at=1 << 20)
        answers, threads = [None] * 200, []

        def run(i):
            with lab.connect(i) as s:
                lab.send(s, blob.digest, len(blob.data))
                answers[i] = Answer(s, keep=False)

        for i in range(200):
            t = threading.Thread(target=run, args=(i,))
            t.start()
            threads.append(t)
        wait_for("200 readers", lambda: lab.stats()["joined"] == 199, 30)
        blob.go.set()
        for t in threads:
            t.join()
        assert [a.status for a in answers] == [200] * 200
        assert all(a.complete and a.digest == blob.digest for a in answers)
        assert lab.upstream.gets() == [("GET", blob.digest, None)]
        lab.quiet()


def test_late_reader_begins_at_the_start():
    with Lab() as lab:
        blob = lab.upstream.add(make(3 << 20), stop_at=2 << 20)
        got = {}

        def run(name, worker):
            with lab.connect(worker) as s:
                lab.send(s, blob.digest, len(blob.data))
                got[name] = Answer(s)

        a = threading.Thread(target=run, args=("early", 0))
        a.start()
        wait_for("bytes", lambda: lab.upstream.sent == 2 << 20)
        b = threading.Thread(target=run, args=("late", 1))
        b.start()
        wait_for("the late one", lambda: lab.stats()["joined"] == 1)
        blob.go.set()
        a.join()
        b.join()
        assert all(got[k].complete and bytes(got[k].data) == blob.data for k in ("early", "late"))
        assert len(lab.upstream.gets()) == 1
        lab.quiet()


def test_another_repository_is_another_transfer():
    """A transfer in flight belongs to the repository it was asked in; asking in another one asks the upstream there."""
    with Lab() as lab:
        blob = lab.upstream.add(make(1 << 20), stop_at=100000)
        with lab.connect() as a, lab.connect() as b:
            lab.send(a, blob.digest, len(blob.data))
            wait_for("the first", lambda: len(lab.upstream.gets()) == 1)
            lab.send(b, blob.digest, len(blob.data), repository="acme/elsewhere")
            wait_for("the second", lambda: len(lab.upstream.gets()) == 2)
            blob.go.set()
            assert Answer(a).digest == blob.digest
            assert Answer(b).digest == blob.digest
        lab.quiet()


def test_first_reader_leaving_does_not_stop_the_others():
    with Lab() as lab:
        blob = lab.upstream.add(make(4 << 20), stop_at=1 << 20)
        with lab.connect(1) as b:
            a = lab.connect(0)  # its worker runs the transfer
            lab.send(a, blob.digest, len(blob.data))
            wait_for("the transfer", lambda: lab.stats(0)["misses"] == 1)
            lab.send(b, blob.digest, len(blob.data))
            wait_for("the second reader", lambda: lab.stats()["joined"] == 1)
            a.close()
            wait_for("the first has gone", lambda: lab.stats()["open"] == 1)
            blob.go.set()
            got = Answer(b)
            assert got.complete and got.digest == blob.digest
        assert len(lab.upstream.gets()) == 1 and not lab.upstream.gone_at
        lab.quiet()


def test_small_empty_and_just_above():
    with Lab() as lab:
        for data in (b"", b"{}", make(65536), make(65537)):
            blob = lab.upstream.add(data)
            for hint in (len(data), None):
                got = lab.get(blob.digest, hint)
                assert (got.status, got.complete, bytes(got.data)) == (200, True, data)
                assert got.fields["docker-content-digest"] == blob.digest
                assert got.fields["content-type"] == "application/octet-stream"
                assert got.fields["etag"] == f'"{blob.digest}"'
                assert got.fields["accept-ranges"] == "bytes"
                assert got.fields["cache-control"] == "private, no-store"
                assert got.fields["x-driver"] == "yes"
        lab.quiet()


def test_sha512():
    with Lab() as lab:
        data = make(300000)
        blob = lab.upstream.add(data, digest_of(data, "sha512"))
        got = lab.get(blob.digest, len(data))
        assert got.complete and bytes(got.data) == data


def test_complete_spool_waits_for_a_further_reader():
    with Lab(spool_keep_ms=1500) as lab:
        big, small = lab.upstream.add(make(3 << 20)), lab.upstream.add(make(2000))
        for b in (big, small):
            for worker in (0, 1, 0):
                got = lab.get(b.digest, len(b.data), worker=worker)
                assert got.complete and bytes(got.data) == b.data
            assert bytes(lab.get(b.digest, len(b.data), range_="bytes=5-").data) == b.data[5:]
            assert len(lab.upstream.gets(b.digest)) == 1
        lab.get(big.digest, len(big.data), repository="acme/elsewhere")
        assert len(lab.upstream.gets(big.digest)) == 2  # presence elsewhere proves nothing here
        wait_for("the files to be closed", lambda: not [f for f in os.listdir(f"/proc/{lab.p.pid}/fd")
                                                        if "deleted" in os.readlink(f"/proc/{lab.p.pid}/fd/{f}")])
        lab.get(small.digest, len(small.data))
        assert len(lab.upstream.gets(small.digest)) == 2


def test_no_spool_waits_when_told_so():
    with Lab() as lab:
        b = lab.upstream.add(make(300000))
        for n in (1, 2):
            lab.get(b.digest, 300000)
            lab.quiet()
            assert len(lab.upstream.gets()) == n
