"""The disk cache: kept after verification, found again after a restart and hashed before it is believed, bounded."""
import os
import pathlib

from relay_lab import Lab, Upstream, digest_of, make, wait_for


def file_of(cache, digest):
    alg, hexa = digest.split(":")
    return pathlib.Path(cache) / alg / hexa[:2] / hexa


def open_cache(tmp_path, upstream=None, **kw):
    lab = Lab(upstream, cache=tmp_path / "cache", **kw)
    wait_for("the cache directory", lambda: "blob cache" in lab.log())
    return lab


def test_hit_after_fill_and_after_restart(tmp_path):
    up = Upstream()
    big, small = up.add(make(5 << 20)), up.add(make(3000))
    with open_cache(tmp_path, up) as lab:
        for b in (big, small):
            assert lab.get(b.digest, len(b.data)).complete
        wait_for("two files", lambda: lab.stats()["files"] == 2)
        for b in (big, small):
            assert file_of(tmp_path / "cache", b.digest).read_bytes() == b.data
            for worker in (0, 1):
                got = lab.get(b.digest, len(b.data), worker=worker)
                assert got.complete and bytes(got.data) == b.data
        assert len(up.requests) == 2
        assert lab.end(6)["from_cache"] and not lab.end(1)["from_cache"]
        assert not list((tmp_path / "cache" / "tmp").iterdir())
    with open_cache(tmp_path, up) as lab:
        for b in (big, small):
            for _ in range(2):
                got = lab.get(b.digest, len(b.data))
                assert got.complete and bytes(got.data) == b.data
            assert lab.get(b.digest, None, method="HEAD").fields["content-length"] == str(len(b.data))
        assert len(up.requests) == 2
    up.close()


def test_bytes_changed_on_disk_are_not_served(tmp_path):
    """Between two runs a file was damaged, truncated, or put there by somebody: its digest decides."""
    up = Upstream()
    blobs = [up.add(make(400000, bytes([i]))) for i in range(3)]
    with open_cache(tmp_path, up) as lab:
        for b in blobs:
            assert lab.get(b.digest, 400000).complete
        wait_for("files", lambda: lab.stats()["files"] == 3)
    damaged, shorter, swapped = (file_of(tmp_path / "cache", b.digest) for b in blobs)
    with open(damaged, "r+b") as f:
        f.seek(399999)
        f.write(b"?")
    os.truncate(shorter, 399998)
    swapped.write_bytes(b"x" * 400000)
    with open_cache(tmp_path, up) as lab:
        for b in blobs:
            got = lab.get(b.digest, 400000)
            # nothing wrong ever looks complete; the next asker gets it whole
            assert not got.complete or bytes(got.data) == b.data
            assert got.n <= 400000 - 65536 or got.complete
            got = lab.get(b.digest, 400000)
            assert got.complete and bytes(got.data) == b.data
        assert lab.stats()["dropped_bad"] == 3
        wait_for("files again", lambda: lab.stats()["files"] == 3)
    for b in blobs:
        assert file_of(tmp_path / "cache", b.digest).read_bytes() == b.data
    up.close()


def test_file_lost_while_running(tmp_path):
    with open_cache(tmp_path) as lab:
        b = lab.upstream.add(make(400000))
        others = [lab.upstream.add(make(1000, str(i).encode())) for i in range(300)]
        lab.get(b.digest, 400000)
        wait_for("the file", lambda: lab.stats()["files"] == 1)
        file_of(tmp_path / "cache", b.digest).unlink()
        for x in others:  # more than stay open
            lab.get(x.digest, 1000)
        wait_for("files", lambda: lab.stats()["files"] == 301, 30)
        got = lab.get(b.digest, 400000)
        assert got.complete and bytes(got.data) == b.data
        assert len(lab.upstream.gets(b.digest)) == 2


def test_foreign_and_unfinished_files_are_removed(tmp_path):
    d = tmp_path / "cache"
    (d / "sha256" / "ab").mkdir(parents=True)
    (d / "tmp").mkdir()
    (d / "tmp" / "17").write_bytes(b"unfinished")
    bad = [d / "sha256" / "ab" / "notahash", d / "sha256" / "ab" / ("cd" + "0" * 62), d / "sha256" / "ab" / ("ab" + "0" * 61),
           d / "sha256" / "ab" / ("ab" + "G" * 62)]
    for f in bad:
        f.write_bytes(b"x")
    link = d / "sha256" / "ab" / ("ab" + "1" * 62)
    link.symlink_to("/etc/passwd")
    (d / "keep.txt").write_bytes(b"the operator's")
    with open_cache(tmp_path) as lab:
        assert lab.stats()["files"] == 0
    assert not any(f.exists() for f in bad) and not list((d / "tmp").iterdir())
    assert not os.path.lexists(link)
    assert (d / "keep.txt").exists() and os.path.exists("/etc/passwd")


def test_bounded_least_recently_used_goes_first(tmp_path):
    with open_cache(tmp_path, max_bytes=1000000) as lab:
        blobs = [lab.upstream.add(make(300000, bytes([i]))) for i in range(4)]
        for i, b in enumerate(blobs[:3]):
            lab.get(b.digest, 300000)
            wait_for("the file", lambda: lab.stats()["files"] == i + 1)
        lab.get(blobs[0].digest, 300000)  # used again: blobs[1] is the oldest then
        lab.get(blobs[3].digest, 300000)
        wait_for("the fourth", lambda: file_of(tmp_path / "cache", blobs[3].digest).exists())
        s = wait_for("bytes within the bound", lambda: (lambda s: s if s["bytes"] <= 1000000 and s["files"] == 3 else None)(lab.stats()))
        assert s["evicted"] == 1
        assert [file_of(tmp_path / "cache", b.digest).exists() for b in blobs] == [True, False, True, True]
        # larger than the whole cache: relayed, not kept, nothing else thrown out for it
        big = lab.upstream.add(make(1500000))
        assert lab.get(big.digest, 1500000).complete
        assert lab.quiet()["files"] == 3
    used = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*") if f.is_file())
    assert used <= 1000000


def test_order_of_eviction_outlives_a_restart(tmp_path):
    up = Upstream()
    blobs = [up.add(make(300000, bytes([i]))) for i in range(3)]
    with open_cache(tmp_path, up) as lab:
        for b in blobs:
            lab.get(b.digest, 300000)
        wait_for("three files", lambda: lab.stats()["files"] == 3)
    for i, b in enumerate(blobs):
        os.utime(file_of(tmp_path / "cache", b.digest), (1000 + [2, 0, 1][i], 1000 + [2, 0, 1][i]))
    with open_cache(tmp_path, up, max_bytes=700000) as lab:
        wait_for("two files", lambda: lab.stats()["files"] == 2)
        assert [file_of(tmp_path / "cache", b.digest).exists() for b in blobs] == [True, False, True]
    up.close()


def test_second_process_does_without_the_directory(tmp_path):
    up = Upstream()
    b = up.add(make(300000))
    with open_cache(tmp_path, up) as lab:
        lab.get(b.digest, 300000)
        wait_for("the file", lambda: lab.stats()["files"] == 1)
        with Lab(up, cache=tmp_path / "cache") as other:
            wait_for("the complaint", lambda: "another process uses it" in other.log())
            assert other.get(b.digest, 300000).complete
            assert other.stats()["files"] == 0
    up.close()


def test_wrong_bytes_are_not_kept(tmp_path):
    with open_cache(tmp_path) as lab:
        data = make(300000)
        b = lab.upstream.add(data[:-2] + b"??", digest=digest_of(data))
        got = lab.get(b.digest, 300000)
        assert got.status == 502 or not got.complete
        assert lab.quiet()["files"] == 0
        wait_for("the temporary file to go", lambda: not list((tmp_path / "cache" / "tmp").iterdir()))
        lab.upstream.add(data)
        assert lab.get(b.digest, 300000).complete
