"""A full or unwritable disk is no error of the pull: the blob goes straight through (SECURITY 2.3 "disk full")."""
import os
import threading

import pytest
from relay_lab import Answer, Lab, make, wait_for


def run(lab):
    big, small = lab.upstream.add(make(3 << 20)), lab.upstream.add(make(2000))
    for b in (big, small):
        for hint in (len(b.data), None):
            got = lab.get(b.digest, hint)
            assert got.status == 200 and got.complete and bytes(got.data) == b.data
    got = lab.get(big.digest, len(big.data), range_="bytes=0-")
    assert got.status == 206 and got.complete and bytes(got.data) == big.data
    assert lab.quiet()["unusable"] >= 1


def test_spool_missing():
    with Lab(spool="/nonexistent/dir") as lab:
        run(lab)


def test_file_size_limit():
    """RLIMIT_FSIZE stands for a full disk: EFBIG where that says ENOSPC, at the same calls."""
    with Lab(file_size_limit=1 << 20) as lab:
        run(lab)


def test_cache_unusable_spool_good():
    with Lab(cache="/proc/nowhere") as lab:
        wait_for("the complaint", lambda: "proxy.blob_cache.path" in lab.log())
        b = lab.upstream.add(make(3 << 20))
        assert lab.get(b.digest, len(b.data)).complete
        assert lab.quiet()["unusable"] == 0


def test_full_tmpfs(tmp_path):
    d = tmp_path / "tiny"
    d.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m none {d} 2>/dev/null") != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with Lab(cache=d / "cache", spool=d) as lab:
            wait_for("the cache directory", lambda: "blob cache" in lab.log())
            run(lab)
            wait_for("temporary files to go", lambda: not list((d / "cache" / "tmp").iterdir()))
    finally:
        os.system(f"umount {d}")


def test_many_clients_without_files():
    """Each goes alone, all get it."""
    with Lab(spool="/nonexistent/dir") as lab:
        b = lab.upstream.add(make(300000))
        answers = []

        def one(i):
            with lab.connect(i) as s:
                lab.send(s, b.digest, 300000)
                answers.append(Answer(s))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(60)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(lab.upstream.gets()) < 120  # not one in vain for each
        assert len(answers) == 60 and all(a.complete and bytes(a.data) == b.data for a in answers)
        lab.quiet()
