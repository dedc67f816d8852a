"""A body that is cut, too long, of the wrong length or digest never looks complete (SECURITY I7, 2.3)."""
import socket

import pytest
from relay_lab import WITHHELD, Answer, Lab, digest_of, make

MODES = pytest.mark.parametrize("way", ["file", "direct"])


def lab(way, **kw):
    """direct: no place for a file, everything goes straight through (after one request that found no file)."""
    return Lab(**(dict(kw, spool="/nonexistent/spool") if way == "direct" else kw))


@MODES
def test_wrong_digest_big_withholds_the_end(way):
    with lab(way) as l:
        data = make(1 << 20)
        blob = l.upstream.add(data[:-1] + b"??", digest=digest_of(data + b"x"), stop_at=800000)
        with l.connect() as s:
            l.send(s, blob.digest, len(data) + 1)
            assert s.recv(5, socket.MSG_PEEK) == b"HTTP/"
            blob.go.set()
            got = Answer(s)
        assert got.status == 200 and not got.complete
        assert got.n <= len(data) + 1 - WITHHELD
        assert bytes(got.data) == data[:got.n]
        assert l.end()["end"] == "digest_mismatch"
        l.quiet()


@MODES
def test_end_is_withheld_while_the_digest_is_open(way):
    """All but the last byte has come: the client has everything but the last 64 KiB, and no more however long it waits."""
    with lab(way) as l:
        data = make(1 << 20)
        blob = l.upstream.add(data, stop_at=len(data) - 1)
        with l.connect() as s:
            l.send(s, blob.digest, len(data))
            got = b""
            while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < len(data) - WITHHELD:
                got += s.recv(1 << 20)
            s.settimeout(0.3)
            with pytest.raises(TimeoutError):
                while len(got) < 2 * len(data):
                    got += s.recv(1 << 20)
            assert got.partition(b"\r\n\r\n")[2] == data[:len(data) - WITHHELD]
            blob.go.set()
            s.settimeout(30)
            while len(got.partition(b"\r\n\r\n")[2]) < len(data):
                got += s.recv(1 << 20)
            assert got.partition(b"\r\n\r\n")[2] == data
        l.quiet()


@MODES
def test_wrong_digest_small_is_an_error_answer(way):
    with lab(way) as l:
        for n in (0, 1, 1000, WITHHELD):
            blob = l.upstream.add(b"!" * n, digest=digest_of(make(n) + b"other"))
            got = l.get(blob.digest, None)
            assert got.status == 502 and b"!!" not in bytes(got.data)
            assert l.end(len(l.ended))["end"] == "upstream_failed"
        l.quiet()


@MODES
def test_cut_for_good_is_no_complete_body(way):
    with lab(way, retries=1) as l:
        blob = l.upstream.add(make(1 << 20), cut_at=300000, ranges=False)
        got = l.get(blob.digest, len(blob.data))
        assert got.status == 200 and not got.complete
        assert l.end()["end"] == "upstream_cut"
        assert len(l.upstream.gets()) == (2 if way == "file" else 3)
        l.quiet()


@MODES
def test_cut_small_is_an_error_answer(way):
    with lab(way, retries=0) as l:
        blob = l.upstream.add(make(50000), cut_at=20000)
        got = l.get(blob.digest, len(blob.data))
        assert got.status == 502
        assert l.end()["end"] == "upstream_failed"
        l.quiet()


@MODES
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("cut", [1, 70000, 500000, (1 << 20) - 1])
def test_cut_is_resumed_inside(way, ranges, cut):
    with lab(way) as l:
        blob = l.upstream.add(make(1 << 20), cut_at=cut, times=1 if way == "file" else 2, ranges=ranges)
        got = l.get(blob.digest, len(blob.data))
        assert got.complete and bytes(got.data) == blob.data
        first, second = l.upstream.gets()[-2:]
        assert first[2] is None and second[2] is not None and second[2].endswith(f"-{len(blob.data) - 1}")
        l.quiet()


@MODES
def test_resume_with_another_range_is_not_believed(way):
    with lab(way) as l:
        blob = l.upstream.add(make(1 << 20), cut_at=500000, times=1 if way == "file" else 2, bad_range=True)
        got = l.get(blob.digest, len(blob.data))
        assert not got.complete and bytes(got.data) == blob.data[:got.n]
        l.quiet()


@MODES
@pytest.mark.parametrize("length", [999, 200001, 1 << 40])
def test_length_other_than_the_manifests(way, length):
    with lab(way) as l:
        blob = l.upstream.add(make(200000), length=length)
        got = l.get(blob.digest, 200000)
        assert got.status == 502
        assert l.end()["end"] == "upstream_failed" and "length" in l.end()["detail"]
        l.quiet()


@MODES
def test_body_longer_than_the_manifest_says(way):
    """No Content-Length: the manifest's size counts, and not a byte more is taken."""
    with lab(way) as l:
        blob = l.upstream.add(make(200000) + b"more", length=False)
        got = l.get(blob.digest, 200000)
        assert not (got.status == 200 and got.complete)
        l.quiet()


def test_no_length_anywhere_is_answered_once_it_is_verified():
    with Lab() as l:
        for n in (0, 10, 300000):
            blob = l.upstream.add(make(n), length=False)
            got = l.get(blob.digest, None)
            assert (got.status, got.complete, got.n) == (200, True, n)
        cut = l.upstream.add(make(300001)[:1000], digest=digest_of(make(300001)), length=False)
        assert l.get(cut.digest, None).status == 502
        l.quiet()


@pytest.mark.parametrize("status,want", [(404, 404), (500, 502), (403, 502), (503, 502), (429, 503)])
def test_upstream_refusals(status, want):
    with Lab(retries=0) as l:
        blob = l.upstream.add(b"x", status=status)
        for method in ("GET", "HEAD"):
            got = l.get(blob.digest, None, method=method)
            assert got.status == want
            assert b"inner detail" not in got.head + bytes(got.data)
        l.quiet()


def test_failure_is_not_remembered():
    with Lab(retries=0) as l:
        blob = l.upstream.add(make(300000), cut_at=0)
        assert l.get(blob.digest, 300000).status == 502
        blob.cut_at = None
        assert l.get(blob.digest, 300000).complete
        l.quiet()


def test_redirects_pass():
    with Lab(redirects="pass", redirect_host="storage.example") as l:
        blob = l.upstream.add(b"x", location="https://storage.example/blob?signature=1")
        for method, hint, range_ in (("GET", 1, None), ("HEAD", 1, None), ("GET", 1, "bytes=0-0"), ("GET", None, "bytes=0-0")):
            got = l.get(blob.digest, hint, method=method, range_=range_)
            assert (got.status, got.fields["location"]) == (307, "https://storage.example/blob?signature=1")
        l.quiet()
