"""What the service manager hears of the daemons, what the units let them do, and that the documents say what the programs do."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
import requests

from admin_fixture import admin_stack
from conftest import World
from stack import BIN, ROOT, SLOW, Proc, wait_for
from test_metrics import parse

UNITS = sorted((ROOT / "conf/systemd").glob("*.service"))


class Manager:
    """The receiving end of sd_notify."""

    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.s.bind(str(path))
        self.env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(600000 * SLOW)}
        self.said = []

    def hear(self):
        self.s.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said.append(self.s.recv(4096).decode())
        return self.said

    def wait(self, what, after=0):
        wait_for(f"{what} to be said", lambda: any(m.startswith(what) for m in self.hear()[after:]), 10)
        return next(i for i, m in enumerate(self.said) if i >= after and m.startswith(what))


@pytest.mark.parametrize("which", ["proxy", "admin"])
def test_the_manager_hears_of_everything(tmp_path, which):
    m = Manager(tmp_path / "notify")
    with admin_stack() as s:
        if which == "admin":
            s.admin.stop()
            s.env = m.env
            s.start_admin()
            p = s.admin
        else:
            s.env = m.env
            p = s.start_proxy(0)
        ready = m.wait("READY=1")
        assert not any(x.startswith(("STOPPING", "RELOADING")) for x in m.said[:ready])
        assert requests.get((s.admin_base if which == "admin" else p.base) + "/healthz").status_code == 200, "ready means that it listens"
        first = m.wait("WATCHDOG=1")
        m.wait("WATCHDOG=1", first + 1)
        n = len(m.hear())
        p.p.send_signal(signal.SIGHUP)
        at = m.wait("RELOADING=1\nMONOTONIC_USEC=", n)
        m.wait("READY=1", at + 1)
        n = len(m.hear())
        p.p.send_signal(signal.SIGTERM)
        m.wait("STOPPING=1", n)
        assert p.p.wait(30 * SLOW) == 0


def test_a_reload_that_fails_is_over_too(tmp_path):
    m = Manager(tmp_path / "notify")
    with admin_stack() as s:
        s.env = m.env
        p = s.start_proxy(0)
        m.wait("READY=1")
        n = len(m.hear())
        (s.dir / "pullgate0.yaml").write_text("nonsense: 1\n")
        p.p.send_signal(signal.SIGHUP)
        m.wait("READY=1", m.wait("RELOADING=1", n) + 1)


@pytest.mark.once
def test_a_stuck_process_is_not_alive(tmp_path):
    """The pings come from the loop: a process that stands still sends none."""
    m = Manager(tmp_path / "notify")
    with admin_stack() as s:
        s.env = m.env
        p = s.start_proxy(0)
        m.wait("WATCHDOG=1")
        p.p.send_signal(signal.SIGSTOP)
        try:
            time.sleep(0.1)
            m.hear()
            n = len(m.said)
            time.sleep(1.0)  # more than the manager would wait
            assert m.hear()[n:] == []
        finally:
            p.p.send_signal(signal.SIGCONT)
        m.wait("WATCHDOG=1", n)


@pytest.mark.once
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_units_are_hardened(unit):
    out = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True).stdout
    score = float(re.search(r"exposure level for \S+: ([0-9.]+)", out)[1])
    assert score <= 1.5, out


@pytest.mark.once
def test_units_fit_the_programs():
    assert [u.name for u in UNITS] == ["pullgate-admin.service", "pullgate-backup.service", "pullgate-proxy.service"]
    for unit in UNITS:
        text = unit.read_text()
        if "Type=oneshot" in text:
            continue
        start = re.search(r"^ExecStart=/usr/bin/(\S+)", text, re.M)[1]
        assert start == unit.stem and f"ExecPaths=/usr/bin/{start} " in text
        drain = 60  # limits.drain's default
        assert int(re.search(r"^TimeoutStopSec=(\d+)", text, re.M)[1]) > drain
        assert re.search(r"^Type=notify$", text, re.M) and re.search(r"^WatchdogSec=\d+$", text, re.M)


# ---- documents --------------------------------------------------------------------------------------------------------------


OPERATIONS = ROOT / "docs/OPERATIONS.md"


@pytest.mark.once
def test_the_configuration_reference_is_the_program_s():
    told = subprocess.run([BIN / "pullgate-proxy", "--config-reference"], check=True, capture_output=True, text=True).stdout
    assert told.count("\n") > 50 and told.startswith("| key |")
    page = OPERATIONS.read_text()
    if os.environ.get("PULLGATE_WRITE_REFERENCE") and told not in page:
        OPERATIONS.write_text(page[:page.index("| key |")] + told)
    assert told in OPERATIONS.read_text(), "docs/OPERATIONS.md is not what --config-reference prints; PULLGATE_WRITE_REFERENCE=1 writes it"


def board_metrics():
    board = json.loads((ROOT / "conf/grafana/pullgate.json").read_text())
    exprs = [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
    assert exprs
    return {n for e in exprs for n in re.findall(r"\b((?:pullgate|process)_[a-z_]+)\b", e)}


@pytest.mark.once
def test_metrics_are_documented_and_the_board_uses_none_that_is_not_there():
    w = World(proxy={"metrics_listen": ["127.0.0.1:0"]}, admin={"metrics_listen": ["127.0.0.1:0"]})
    try:
        w.get("/v2/shop/api/manifests/1.0.0")
        w.get(f"/v2/shop/api/blobs/{w.images['1.0.0']['children'][0]['config']}")
        served = set()
        for file in ("proxy0.port", "admin.port"):
            text = requests.get(f"http://{(w.s.dir / file).read_text().split()[1]}/metrics", timeout=10).text
            parse(text)
            served |= {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    finally:
        w.s.close()
    documented = set(re.findall(r"^\| `((?:pullgate|process)_[a-z_]+)`", OPERATIONS.read_text(), re.M))
    assert served - documented == set(), "served, not in docs/OPERATIONS.md"
    served.add("pullgate_tls_cert_not_after_seconds")  # with a certificate only
    assert documented - served == set(), "in docs/OPERATIONS.md, not served"
    used = {re.sub(r"_(bucket|sum|count)$", "", n) if re.sub(r"_(bucket|sum|count)$", "", n) in served else n for n in board_metrics()}
    assert used - served == set(), "in conf/grafana/pullgate.json, not served"
