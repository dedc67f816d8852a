"""`pullgate backup` and `pullgate restore`: what comes back is what was, whoever remembers something else; what is no good is refused and
changes nothing."""
import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from admin_fixture import admin_stack
from conftest import World
from stack import BIN, SLOW

CHUNK = 65536 + 16


def cli(*args, config=None, stdin=None):
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    argv = [str(BIN / "pullgate"), *map(str, args)] + (["--config", str(config)] if config else [])
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60 * SLOW, input=stdin)


def good(*args, config):
    r = cli(*args, config=config)
    assert r.returncode == 0, r
    return r.stdout


def snapshot(redis):
    keys = [k for k in redis.cmd("KEYS", "pg:*") if not k.startswith((b"pg:events", b"pg:m:"))]
    return dict(zip(keys, redis.cmd("MGET", *keys)))


def test_the_restored_state_is_what_counts():
    """A proxy that runs all the time follows: what was granted after the backup is denied, what was revoked after it is granted again, and
    values of the time in between are not believed when somebody puts them back. Again with an empty Redis and without the old store."""
    w = World()
    s = w.s
    try:
        umbrella, _, umbrella_customer = w.customer_with("umbrella", [{"selector": "all", "value": "*"}])
        s.wait_status("/v2/shop/api/manifests/2.0.0", umbrella, 200)
        config = s.write_config()
        file = s.dir / "store.backup"
        out = good("backup", file, config=config)
        assert re.match(rf"{file} is good: made \S+, schema \d+, change \d+, \d+ bytes, sealed under the keys directory [0-9a-f]{{16}}\n$", out), out
        assert os.stat(file).st_mode & 0o777 == 0o600

        for what in ("redis as it was", "an empty redis", "no old store"):
            # what the backup knows nothing of
            s.api.post(f"/licenses/{w.license['id']}/grants", {"selector": "all", "value": "*"}, 200)
            s.wait_status("/v2/shop/api/manifests/2.0.0", w.auth, 200)
            initech, _, _ = w.customer_with("initech", [{"selector": "all", "value": "*"}])
            s.wait_status("/v2/shop/api/manifests/1.0.0", initech, 200)
            for c in s.api.get(f"/customers/{umbrella_customer['id']}/credentials")["items"]:
                s.api("DELETE", f"/customers/{umbrella_customer['id']}/credentials/{c['id']}", None, 204)
            s.wait_status("/v2/shop/api/manifests/2.0.0", umbrella, 401)
            future = snapshot(s.redis)

            refused = cli("restore", file, config=config)
            assert refused.returncode == 1 and "is in use by another process" in refused.stderr, refused
            assert s.admin.stop() == 0
            if what == "no old store":
                for tail in ("", "-wal", "-shm"):
                    (s.dir / f"pullgate.db{tail}").unlink(missing_ok=True)
            out = good("restore", file, config=config)
            assert ("what was there is kept as" in out) == (what != "no old store"), out
            if what != "redis as it was":
                s.redis.cmd("FLUSHALL")
            s.start_admin()
            s.wait_status("/v2/shop/api/manifests/2.0.0", w.auth, 403, timeout=15)
            s.wait_status("/v2/shop/api/manifests/2.0.0", umbrella, 200, timeout=15)
            s.wait_status("/v2/shop/api/manifests/1.0.0", initech, 401, timeout=15)
            s.wait_status("/v2/shop/api/manifests/1.0.0", w.auth, 200)
            # somebody who can write to Redis, and kept everything
            until = time.monotonic() + 1.5
            seen = set()
            while time.monotonic() < until:
                s.redis.cmd("MSET", *[x for kv in future.items() for x in kv])
                s.redis.cmd("PUBLISH", "pg:announce", "1")
                for path, auth in (("2.0.0", w.auth), ("1.0.0", initech)):
                    seen.add((path, s.get(f"/v2/shop/api/manifests/{path}", auth).status_code))
            assert {code for _, code in seen} <= {401, 403, 503}, seen
            s.wait_status("/v2/shop/api/manifests/2.0.0", w.auth, 403, timeout=15)
            s.wait_status("/v2/shop/api/manifests/2.0.0", umbrella, 200, timeout=15)
        kept = sorted(f for f in s.dir.glob("pullgate.db.replaced-*") if not f.name.endswith(("-wal", "-shm")))
        assert len(kept) == 2
        with sqlite3.connect(f"file:{kept[0]}?mode=ro", uri=True) as db:
            assert db.execute("SELECT count(*) FROM customers WHERE slug='initech'").fetchone() == (1,), "the replaced store is whole"
        audit = s.api.get("/audit?limit=1000")["items"]
        assert sum(a["action"] == "store.restore" for a in audit) == 1
        assert not list(s.dir.glob("*.restored*")), "nothing half done stays"
    finally:
        s.close()


@pytest.fixture(scope="module")
def one():
    """A store with something in it, its admin stopped, and a backup of it."""
    with admin_stack() as s:
        s.api.post("/upstreams", {"name": "main", "url": "https://private.example", "username": "u", "password": "canary-upstream-password"})
        for i in range(300):  # more than one chunk
            s.api.post("/customers", {"slug": f"c{i}", "name": "Customer " + "x" * 150, "email": "c@example.com"})
        s.config_path = s.write_config()
        s.file = s.dir / "one.backup"
        good("backup", s.file, config=s.config_path)
        assert s.admin.stop() == 0
        s.bytes = s.file.read_bytes()
        yield s


def state_of(s):
    return {f.name: f.read_bytes() for f in s.dir.glob("pullgate.db*")}


def test_a_backup_tells_nothing(one):
    head, body = one.bytes.split(b"\n\n", 1)
    assert len(body) > 2 * CHUNK
    for secret in (b"SQLite format", b"canary-upstream-password", b"Customer xxx", b"c299", b"CREATE TABLE"):
        assert secret not in one.bytes, secret
    for key in (one.dir / "keys").glob("*.key"):
        assert key.read_bytes().strip() not in one.bytes


@pytest.mark.once
def test_damaged_backups_are_refused(one):
    head = one.bytes.index(b"\n\n") + 2
    flip = lambda at: one.bytes[:at] + bytes([one.bytes[at] ^ 1]) + one.bytes[at + 1:]
    last = head + (len(one.bytes) - head) // CHUNK * CHUNK
    cases = {
        "first chunk": flip(head), "second chunk": flip(head + CHUNK + 7), "last chunk": flip(len(one.bytes) - 1), "a tag": flip(head + CHUNK - 1),
        "head, epoch": one.bytes.replace(b"\nepoch ", b"\nepoch 1", 1), "head, checksum": flip(one.bytes.index(b"\nkey ") - 3),
        "head, salt": flip(head - 5), "head, time": one.bytes.replace(b"\nmade 2", b"\nmade 3", 1),
        "one byte short": one.bytes[:-1], "one byte more": one.bytes + b"x", "without its last chunk": one.bytes[:last],
        "one chunk": one.bytes[:head + CHUNK], "head only": one.bytes[:head], "empty": b"", "something else": b"x" * 5000,
        "two chunks changed places": one.bytes[:head] + one.bytes[head + CHUNK:head + 2 * CHUNK] + one.bytes[head:head + CHUNK] + one.bytes[head + 2 * CHUNK:],
        "made by a newer program": one.bytes.replace(b"pullgate-backup 1\n", b"pullgate-backup 2\n", 1),
    }
    before = state_of(one)
    bad = one.dir / "bad.backup"
    for name, data in cases.items():
        bad.write_bytes(data)
        for args in (("restore", bad), ("restore", bad, "--check")):
            r = cli(*args, config=one.config_path)
            assert r.returncode == 1 and r.stderr.startswith(f"pullgate: {bad}: ") and r.stderr.count("\n") == 1, (name, r)
            assert state_of(one) == before, name
    bad.unlink()
    assert cli("restore", bad, config=one.config_path).returncode == 1


@pytest.mark.once
def test_a_newer_schema_is_refused(one, tmp_path):
    db = one.dir / "pullgate.db"
    with sqlite3.connect(db) as c:
        c.execute("INSERT INTO schema_migrations (version, checksum, applied_at) VALUES (9999, 'x', 0)")
    c.close()
    good("backup", tmp_path / "new.backup", config=one.config_path)
    with sqlite3.connect(db) as c:
        c.execute("DELETE FROM schema_migrations WHERE version=9999")
    c.close()
    before = state_of(one)
    for args in (("restore", tmp_path / "new.backup"), ("restore", tmp_path / "new.backup", "--check")):
        r = cli(*args, config=one.config_path)
        assert r.returncode == 1 and "schema 9999" in r.stderr and "newer" in r.stderr, r
    assert state_of(one) == before


@pytest.mark.once
def test_a_damaged_store_is_not_backed_up(one, tmp_path):
    keep = state_of(one)
    db = one.dir / "pullgate.db"
    data = bytearray(db.read_bytes())
    page = 4096
    for at in range(page, len(data), page):  # every page but the first
        data[at:at + 64] = b"\xff" * 64
    db.write_bytes(data)
    r = cli("backup", tmp_path / "x.backup", config=one.config_path)
    assert r.returncode == 1 and not list(tmp_path.iterdir()), r
    # and is what restore is for
    out = good("restore", one.file, config=one.config_path)
    assert "is restored" in out
    one.start_admin()
    assert len(one.api.get("/customers?limit=1000")["items"]) == 300
    assert one.admin.stop() == 0
    for f in one.dir.glob("pullgate.db*"):
        if f.suffix != ".lock":
            f.unlink()
    for name, data in keep.items():
        (one.dir / name).write_bytes(data)


@pytest.mark.once
def test_other_keys_passphrases_and_a_new_machine(one, tmp_path):
    p1, p2 = tmp_path / "p1", tmp_path / "p2"
    for f, text in ((p1, "correct horse battery"), (p2, "something else entirely")):
        f.write_text(text + "\n")
        f.chmod(0o600)
    sealed, whole = tmp_path / "p.backup", tmp_path / "whole.backup"
    assert "sealed under the passphrase" in good("backup", sealed, "--passphrase-file", p1, config=one.config_path)
    good("backup", whole, "--passphrase-file", p1, "--with-keys", config=one.config_path)
    for key in (one.dir / "keys").glob("*.key"):
        assert key.read_bytes().strip() not in whole.read_bytes()
    # a machine with nothing
    there = tmp_path / "there"
    there.mkdir()
    cfg = json.loads(one.config_path.read_text())
    cfg["store"]["url"], cfg["keys"]["path"] = f"sqlite://{there}/pullgate.db", str(there / "keys")
    config = tmp_path / "there.yaml"
    config.write_text(json.dumps(cfg))
    r = cli("restore", one.file, config=config)
    assert r.returncode == 3 and "sealed under the keys directory" in r.stderr, r
    for args, code, text in ((("restore", whole), 3, "give --passphrase-file"), (("restore", whole, "--passphrase-file", p2), 3, "another passphrase"),
                             (("restore", sealed, "--passphrase-file", p1, "--with-keys"), 1, "holds no keys"),
                             (("restore", sealed, "--passphrase-file", p1), 1, "keys"), (("restore", whole, "--with-keys"), 2, "needs --passphrase-file")):
        r = cli(*args, config=config)
        assert r.returncode == code and text in r.stderr, (args, r)
        assert not (there / "pullgate.db").exists()
    good("restore", whole, "--passphrase-file", p1, "--with-keys", config=config)
    for key in (one.dir / "keys").glob("*.key"):
        new = there / "keys" / key.name
        assert new.read_bytes() == key.read_bytes() and new.stat().st_mode & 0o777 == 0o600
    # other keys of its own are not overwritten, and do not open a backup of ours
    other = next((there / "keys").glob("seal.key"))
    other.write_text("0" * 64 + "\n")
    before = (there / "pullgate.db").read_bytes()
    r = cli("restore", whole, "--passphrase-file", p1, "--with-keys", config=config)
    assert r.returncode == 1 and "seal.key is there and is another key" in r.stderr, r
    assert not list(there.glob("*.restored*")), "no copy of what was in the backup stays"
    r = cli("restore", one.file, config=config)
    assert r.returncode == 3 and "keys.path holds" in r.stderr, r
    assert (there / "pullgate.db").read_bytes() == before
    p1.chmod(0o644)
    assert "chmod 600" in cli("backup", tmp_path / "x", "--passphrase-file", p1, config=one.config_path).stderr


def test_backups_while_the_admin_writes(tmp_path):
    """Online, into a directory that keeps the newest three, each of them good; a kill leaves no file that looks like one."""
    with admin_stack() as s:
        config, stop, acknowledged = s.write_config(), threading.Event(), {"last"}

        def write():
            n = 0
            while not stop.is_set():
                n += 1
                if s.api("POST", "/customers", {"slug": f"w{n}", "name": "W", "email": "w@example.com"}).status_code == 201:
                    acknowledged.add(f"w{n}")

        t = threading.Thread(target=write)
        t.start()
        try:
            (tmp_path / "notes.txt").write_text("mine")
            for i in range(5):
                good("backup", tmp_path, "--keep", "3", config=config)
            p = subprocess.Popen([BIN / "pullgate", "backup", tmp_path, "--config", config], stdout=subprocess.DEVNULL)
            time.sleep(0.01)
            p.kill()
            p.wait()
        finally:
            stop.set()
            t.join()
        named = sorted(f for f in tmp_path.iterdir() if f.name.endswith(".backup"))
        assert 3 <= len(named) <= 4 and (tmp_path / "notes.txt").exists(), named
        epochs = []
        for f in named:
            assert re.match(r"^pullgate-2\d{7}T\d{6}Z(-\d+)?\.backup$", f.name)
            r = cli("--json", "restore", f, "--check", config=config)
            assert r.returncode == 0, r
            epochs.append(json.loads(r.stdout)["epoch"])
        # a log that nobody has taken into the store yet is part of it
        s.api.post("/customers", {"slug": "last", "name": "Last", "email": "w@example.com"})
        s.admin.stop(signal.SIGKILL)
        good("backup", tmp_path / "after", config=config)
        good("restore", tmp_path / "after", config=config)
        with sqlite3.connect(s.dir / "pullgate.db") as db:
            assert {row[0] for row in db.execute("SELECT slug FROM customers")} == acknowledged
        db.close()
        s.start_admin()
        assert s.api("GET", "/customers").status_code == 200


@pytest.mark.once
def test_keep_keeps_the_newest_and_takes_nothing_else(one, tmp_path):
    """Of one second, -10 is newer than -2, and both than the one without a number; many are no reason to keep all."""
    alike = ["pullgate-2020-customers.backup", "pullgate-20200101T000000Z-old.backup", "pullgate-20200101T000000Z.backup.asc"]
    for name in ("", "-2", "-3", "-10"):
        (tmp_path / f"pullgate-20260101T000000Z{name}.backup").touch()
    for name in alike:
        (tmp_path / name).touch()
    good("backup", tmp_path, "--keep", "3", config=one.config_path)
    left = {f.name for f in tmp_path.iterdir()}
    assert left >= {"pullgate-20260101T000000Z-3.backup", "pullgate-20260101T000000Z-10.backup", *alike}, left
    assert len(left) == 3 + len(alike), left
    good("backup", tmp_path, "--keep", str(2**64 - 1), config=one.config_path)
    assert len(list(tmp_path.iterdir())) == 4 + len(alike)
    for i in range(700):
        (tmp_path / f"pullgate-20250101T{i:06}Z.backup").touch()
    good("backup", tmp_path, "--keep", "600", config=one.config_path)
    left = sorted(f.name for f in tmp_path.iterdir() if f.name not in alike)
    assert len(left) == 600 and left[0] == "pullgate-20250101T000105Z.backup", (len(left), left[0])


@pytest.mark.once
def test_what_cannot_be_backed_up_leaves_nothing(one, tmp_path):
    """No copy of the store stays beside the target, and no backup that lacks the keys it was asked for, or a part of one."""
    to, keys, phrase = tmp_path / "to", tmp_path / "keys", tmp_path / "phrase"
    to.mkdir()
    keys.mkdir(0o700)
    phrase.write_text("correct horse battery\n")
    phrase.chmod(0o600)
    cfg = json.loads(one.config_path.read_text())
    cfg["store"]["url"] = f"sqlite://{tmp_path}/foreign.db"
    with sqlite3.connect(tmp_path / "foreign.db") as db:
        db.execute("CREATE TABLE cats (name TEXT)")
    db.close()
    config = tmp_path / "foreign.yaml"
    config.write_text(json.dumps(cfg))
    r = cli("backup", to / "x", config=config)
    assert r.returncode == 1 and "schema_migrations" in r.stderr and not list(to.iterdir()), (r, list(to.iterdir()))
    cfg = json.loads(one.config_path.read_text())
    cfg["keys"]["path"] = str(keys)
    config.write_text(json.dumps(cfg))
    args = ("backup", to / "x", "--passphrase-file", phrase, "--with-keys")
    r = cli(*args, config=config)
    assert r.returncode == 1 and "holds no keys" in r.stderr and not list(to.iterdir()), r
    (keys / "seal.key").write_bytes(b"0" * 5000)
    r = cli(*args, config=config)
    assert r.returncode == 1 and "seal.key" in r.stderr and not list(to.iterdir()), r


SPOILING_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
ssize_t write(int fd, const void *p, size_t n)
{
    static char copy[1 << 20];
    char link[64], name[512] = "";
    ssize_t (*real)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (n > 60000 && n <= sizeof copy && readlink(link, name, sizeof name - 1) > 0 && strstr(name, "kept.backup")) {
        memcpy(copy, p, n);
        copy[n / 2] ^= 1;
        p = copy;
    }
    return real(fd, p, n);
}
"""


@pytest.mark.once
def test_a_good_backup_is_replaced_by_a_good_one_only(one, tmp_path):
    """The disk keeps another bit than was written: the backup that was there stays, and nothing else does."""
    (tmp_path / "s.c").write_text(SPOILING_DISK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "s.so", tmp_path / "s.c", "-ldl"], check=True)
    to = tmp_path / "to"
    to.mkdir()
    kept = to / "kept.backup"
    good("backup", kept, config=one.config_path)
    before = kept.read_bytes()
    r = subprocess.run([str(BIN / "pullgate"), "backup", str(kept), "--config", str(one.config_path)], capture_output=True, text=True,
                       env={**os.environ, "LD_PRELOAD": str(tmp_path / "s.so")}, timeout=60)
    assert r.returncode == 1 and "cannot be read again" in r.stderr, r
    assert kept.read_bytes() == before and [f.name for f in to.iterdir()] == ["kept.backup"]
    good("backup", kept, config=one.config_path)
    assert kept.read_bytes() != before
    good("restore", kept, "--check", config=one.config_path)


@pytest.mark.once
def test_usage(one):
    for args in (("backup",), ("restore",), ("backup", "/nonexistent/x"), ("restore", "/nonexistent"), ("backup", one.file, "--keep", "3"),
                 ("backup", one.dir, "--keep", "0"), ("restore", one.file, "--keep", "1"), ("backup", one.file, "--check")):
        r = cli(*args, config=one.config_path)
        assert r.returncode in (1, 2) and r.stderr.count("\n") == 1, (args, r)
