"""Single ranges: slices of the whole, from the cache, from a transfer that is complete, or straight from the upstream (SECURITY I9)."""
import pytest
from relay_lab import Answer, Lab, make, wait_for

N = 300000
CASES = [
    # Range field, status, slice
    ("bytes=0-0", 206, (0, 1)),
    ("bytes=0-", 206, (0, N)),
    (f"bytes=0-{N - 1}", 206, (0, N)),
    ("bytes=100-", 206, (100, N)),
    ("bytes=100-199", 206, (100, 200)),
    ("bytes=-1", 206, (N - 1, N)),
    ("bytes=-100000", 206, (N - 100000, N)),
    (f"bytes=-{N + 5}", 206, (0, N)),
    (f"bytes=299000-{N + 100}", 206, (299000, N)),
    (f"bytes={N}-", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=5-4", 200, (0, N)),
    ("bytes=0-1,5-6", 200, (0, N)),
    ("chars=0-1", 200, (0, N)),
    ("bytes=", 200, (0, N)),
]


def check(got, data, status, part):
    assert got.status == status, got.head
    if status == 416:
        assert got.fields["content-range"] == f"bytes */{len(data)}"
        return
    assert got.complete and bytes(got.data) == data[part[0]:part[1]]
    if status == 206:
        assert got.fields["content-range"] == f"bytes {part[0]}-{part[1] - 1}/{len(data)}"
    else:
        assert "content-range" not in got.fields


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize("place", ["upstream", "cache", "upstream_without_ranges", "no_room"])
def test_slices(tmp_path, hint, place):
    options = {"cache": {"cache": tmp_path / "cache"}, "no_room": {"spool": "/nonexistent/spool"}}.get(place, {})
    with Lab(**options) as lab:
        blob = lab.upstream.add(make(N), ranges=place != "upstream_without_ranges")
        if place == "cache":
            wait_for("the cache directory", lambda: (tmp_path / "cache" / "tmp").is_dir())
            lab.get(blob.digest, N)
            wait_for("the file", lambda: lab.stats()["files"] == 1)
        for field, status, part in CASES:
            before = len(lab.upstream.requests)
            check(lab.get(blob.digest, N if hint else None, range_=field), blob.data, status, part)
            if place == "cache" or (status == 416 and hint):
                assert len(lab.upstream.requests) == before, "the upstream was asked"
        lab.quiet()


def test_range_while_the_whole_is_in_flight():
    with Lab() as lab:
        blob = lab.upstream.add(make(1 << 20), stop_at=500000)
        with lab.connect() as s:
            lab.send(s, blob.digest, 1 << 20)
            wait_for("bytes", lambda: lab.upstream.sent == 500000)
            got = lab.get(blob.digest, 1 << 20, range_="bytes=10-19", worker=1)
            assert bytes(got.data) == blob.data[10:20]
            assert lab.upstream.gets()[-1][2] == "bytes=10-19"
            # the size that the transfer has told is enough for a HEAD and a 416
            n = len(lab.upstream.requests)
            assert lab.get(blob.digest, None, method="HEAD").fields["content-length"] == str(1 << 20)
            assert lab.get(blob.digest, None, range_="bytes=2000000-").status == 416
            assert len(lab.upstream.requests) == n
            blob.go.set()
            assert bytes(Answer(s).data) == blob.data
        lab.quiet()


def test_range_cut_is_resumed_inside():
    with Lab() as lab:
        blob = lab.upstream.add(make(N), cut_at=5000, times=1)
        got = lab.get(blob.digest, N, range_="bytes=1000-99999")
        assert got.complete and bytes(got.data) == blob.data[1000:100000]
        assert [g[2] for g in lab.upstream.gets()] == ["bytes=1000-99999", "bytes=6000-99999"]
        lab.quiet()


def test_range_answered_with_another_range_is_an_error():
    with Lab() as lab:
        blob = lab.upstream.add(make(N), bad_range=True)
        assert lab.get(blob.digest, N, range_="bytes=1000-1999").status == 502
        lab.quiet()


def test_range_of_a_blob_whose_size_is_not_the_manifests():
    with Lab() as lab:
        blob = lab.upstream.add(make(N))
        assert lab.get(blob.digest, N + 7, range_="bytes=1000-1999").status == 502
        lab.quiet()


def test_head():
    with Lab() as lab:
        blob = lab.upstream.add(make(N))
        for hint in (N, None):
            got = lab.get(blob.digest, hint, method="HEAD")
            assert (got.status, got.fields["content-length"]) == (200, str(N))
            assert got.fields["docker-content-digest"] == blob.digest
        assert not lab.upstream.gets() and len(lab.upstream.heads(blob.digest)) == 2
        assert lab.get(blob.digest, N + 1, method="HEAD").status == 502
        assert lab.get("sha256:" + "0" * 64, N, method="HEAD").status == 404
        lab.quiet()
