"""The admin daemon as a process: start, refusals to start, health, drain, one process a store, a store that cannot be written."""
import http.client
import os
import signal
import sqlite3
import subprocess
import threading

import pytest
import requests

from admin_fixture import admin_stack, problem
from stack import BIN, SLOW, Proc, wait_for

ADMIN = BIN / "pullgate-admin"


@pytest.fixture(scope="module")
def s():
    with admin_stack(admin={"metrics_listen": ["127.0.0.1:0"]}) as stack:
        yield stack


def run(*args, env=None):
    return subprocess.run([ADMIN, *args], capture_output=True, text=True, timeout=30 * SLOW, env={**os.environ, **(env or {})})


def test_arguments(s, tmp_path):
    assert run("--version").stdout.startswith("pullgate-admin ")
    assert run("--nonsense").returncode == 2 and run("x").returncode == 2
    assert run("--check", "--config", s.write_config()).returncode == 0
    shown = run("--show-config", "--config", s.write_config())
    assert shown.returncode == 0 and "bootstrap_token_file" in shown.stdout and s.token not in shown.stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text("admin:\n  listne: [\"127.0.0.1:0\"]\n")
    r = run("--check", "--config", bad)
    assert r.returncode == 1 and "listne" in r.stderr and str(bad) in r.stderr
    assert run("--config", tmp_path / "none.yaml").returncode == 1


@pytest.mark.parametrize("key,value,says", [
    ("PULLGATE_STORE_URL", "postgresql://x", "store.url"), ("PULLGATE_STORE_URL", "sqlite:///nonexistent-dir/x.db", "nonexistent-dir"),
    ("PULLGATE_ADMIN_BOOTSTRAP_TOKEN_FILE", "/nonexistent", "bootstrap_token_file"), ("PULLGATE_ADMIN_TIME_ZONE", "Mars/Olympus", "time_zone"),
])
def test_what_it_refuses_to_start_with(s, tmp_path, key, value, says):
    env = {"PULLGATE_STORE_URL": f"sqlite://{tmp_path}/x.db", "PULLGATE_KEYS_PATH": str(tmp_path / "keys"), "PULLGATE_ADMIN_PORT_FILE": "", key: value}
    r = run("--config", s.write_config(), env=env)
    assert r.returncode == 1 and says in r.stderr, r.stderr


def test_a_second_process_is_refused(s):
    r = run("--config", s.write_config())
    assert r.returncode == 1 and "in use by another process" in r.stderr
    assert s.api("GET", "/customers").status_code == 200


def test_health_and_metrics(s):
    listen, metrics = (s.dir / "admin.port").read_text().split()
    for address in (listen, metrics):
        assert requests.get(f"http://{address}/healthz").json() == {"status": "ok"}
        r = requests.get(f"http://{address}/readyz")
        assert r.status_code == 200 and r.json()["status"] == "ready" and r.json()["store"] is True
    wait_for("the first projection", lambda: requests.get(f"http://{metrics}/readyz").json()["in_sync"])
    text = requests.get(f"http://{metrics}/metrics").text
    assert 'pullgate_admin_answers_total{class="2xx"}' in text and "pullgate_admin_redis_up 1" in text
    assert requests.get(f"http://{listen}/metrics").status_code == 404
    assert requests.get(f"http://{metrics}/api/v1/customers").status_code == 404


def test_files_are_not_for_others(s):
    for name in ("pullgate.db", "pullgate.db-wal", "pullgate.db.lock", "keys"):
        assert (s.dir / name).stat().st_mode & 0o077 == 0, name


def test_redis_away_stops_no_edit():
    with admin_stack() as stack:
        stack.redis.stop()
        c = stack.add_customer("offline")
        assert stack.api.get(f"/customers/{c['id']}")["slug"] == "offline"
        wait_for("its absence to be seen", lambda: requests.get(stack.admin_base + "/readyz").json()["redis"] is False)
        stack.redis.start()
        wait_for("the projection", lambda: stack.redis.cmd("EXISTS", f"pg:v:c:{c['id']}") == 1)


def test_sigterm_answers_what_runs(s):
    with admin_stack() as stack:
        host, port = stack.admin_base.removeprefix("http://").split(":")
        idle = http.client.HTTPConnection(host, int(port), timeout=10)
        idle.request("GET", "/healthz")
        assert idle.getresponse().read()
        codes, stop = [], threading.Event()

        def work():
            while not stop.is_set():
                try:
                    codes.append(requests.post(stack.admin_base + "/api/v1/customers", json={"name": "drain"}, timeout=10,
                                               headers={"Authorization": "Bearer " + stack.token, "Connection": "close"}).status_code)
                except requests.ConnectionError:
                    codes.append(0)

        t = threading.Thread(target=work)
        t.start()
        wait_for("some requests", lambda: len(codes) > 5)
        stack.admin.p.send_signal(signal.SIGTERM)
        wait_for("the end", lambda: not stack.admin.alive())
        stop.set()
        t.join()
        assert stack.admin.p.returncode == 0
        made = codes.count(201)
        assert set(codes) <= {201, 0}
        db = sqlite3.connect(stack.dir / "pullgate.db")
        assert db.execute("SELECT COUNT(*) FROM customers").fetchone()[0] >= made > 5
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_answered_survives_a_kill():
    with admin_stack() as stack:
        for round_ in range(3):
            acked, stop = [], threading.Event()

            def work():
                n = 0
                while not stop.is_set():
                    n += 1
                    try:
                        r = requests.post(stack.admin_base + "/api/v1/customers", json={"slug": f"k{round_}-{n}"}, timeout=5,
                                          headers={"Authorization": "Bearer " + stack.token})
                        if r.status_code == 201:
                            acked.append(r.json()["id"])
                    except requests.RequestException:
                        return

            t = threading.Thread(target=work)
            t.start()
            wait_for("some writes", lambda: len(acked) > 10 * (round_ + 1))
            stack.admin.stop(signal.SIGKILL)
            stop.set()
            t.join()
            stack.start_admin()
            there = {c["id"] for c in stack.api.get("/customers?limit=1000")["items"]}
            assert set(acked) <= there
            logged = {r["object"] for r in stack.api.get("/audit?limit=1000")["items"] if r["action"] == "customer.create" and r["outcome"] == "ok"}
            assert there <= logged
            assert stack.api.get("/audit/verification")["ok"] is True


def test_a_store_that_cannot_be_written_refuses_writes_and_serves_reads():
    """The file size limit stands for a full disk: writes beyond it fail as they would there."""
    with admin_stack() as stack:
        stack.add_customer("before")
        import resource
        soft, hard = resource.prlimit(stack.admin.p.pid, resource.RLIMIT_FSIZE)
        # SIGXFSZ would end it; the daemon is expected to see EFBIG instead
        resource.prlimit(stack.admin.p.pid, resource.RLIMIT_FSIZE, (4096, hard))
        r = stack.api("POST", "/customers", {"slug": "full"})
        problem(r, 503, "unavailable")
        assert r.headers["Retry-After"]
        assert stack.admin.alive()
        assert [c["slug"] for c in stack.api.get("/customers")["items"]] == ["before"]
        wait_for("not ready", lambda: requests.get(stack.admin_base + "/readyz").status_code == 503)
        resource.prlimit(stack.admin.p.pid, resource.RLIMIT_FSIZE, (soft, hard))
        wait_for("ready, with nobody writing", lambda: requests.get(stack.admin_base + "/readyz").status_code == 200)
        stack.add_customer("after")
        assert [c["slug"] for c in stack.api.get("/customers")["items"]] == ["before", "after"]
        assert stack.api.get("/audit/verification")["ok"] is True


def test_a_locked_store_is_503_and_recovers():
    with admin_stack() as stack:
        db = sqlite3.connect(stack.dir / "pullgate.db", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")  # somebody's sqlite3 shell
        r = stack.api("POST", "/customers", {"slug": "locked"})
        problem(r, 503, "unavailable")
        assert stack.api("GET", "/customers").status_code == 200
        db.execute("ROLLBACK")
        db.close()
        stack.add_customer("free")


def test_a_newer_store_is_refused(s):
    with admin_stack() as stack:
        stack.admin.stop()
        db = sqlite3.connect(stack.dir / "pullgate.db")
        db.execute("INSERT INTO schema_migrations VALUES (9999, 'x', 0)")
        db.commit()
        db.close()
        p = Proc("newer", [ADMIN, "--config", stack.write_config()], stack.dir)
        wait_for("the end", lambda: not p.alive())
        assert p.stop() == 1 and "newer" in p.text()


def test_sighup_reloads():
    with admin_stack() as stack:
        old = stack.token
        (stack.dir / "bootstrap").write_text("again-" + "r" * 40)
        stack.admin.p.send_signal(signal.SIGHUP)
        new = {"Authorization": "Bearer again-" + "r" * 40}
        wait_for("the new token", lambda: requests.get(stack.admin_base + "/api/v1/customers", headers=new).status_code == 200)
        assert requests.get(stack.admin_base + "/api/v1/customers", headers={"Authorization": "Bearer " + old}).status_code == 401
        (stack.dir / "bootstrap").write_text("short")
        stack.admin.p.send_signal(signal.SIGHUP)
        wait_for("the refusal", lambda: "at least 32" in stack.admin.text())
        assert requests.get(stack.admin_base + "/api/v1/customers", headers=new).status_code == 200


def test_a_clock_that_went_back_is_told(s):
    with admin_stack() as stack:
        stack.admin.stop()
        db = sqlite3.connect(stack.dir / "pullgate.db")
        db.execute("UPDATE meta SET value=value+3600 WHERE key='clock_high_water'")
        db.commit()
        db.close()
        stack.start_admin()
        r = requests.get(stack.admin_base + "/readyz")
        assert r.status_code == 503 and r.json()["clock"] is False
