"""How the daemons are run: sockets of the service manager and restarts that refuse nobody, root given up, the system call filter, and
that the units agree with all of it."""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import requests

from admin_fixture import admin_stack
from conftest import World
from stack import BIN, ROOT, SANITIZED, SLOW, Proc, make_ca, wait_for

UNITS = ROOT / "conf/systemd"
TESTS_BIN = pathlib.Path(os.environ.get("PULLGATE_TESTS_BIN", BIN.parent / "tests"))

# What systemd does between fork and exec: descriptors from 3 on, and for whom they are.
HAND_OVER = """
import os, sys
fds, names, argv = [int(f) for f in sys.argv[1].split(",")], sys.argv[2], sys.argv[3:]
fds = [os.dup2(f, 100 + i) for i, f in enumerate(fds)]
for i, f in enumerate(fds):
    os.dup2(f, 3 + i, inheritable=True)
    os.close(f)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(argv[0], argv)
"""


def listening(host="127.0.0.1"):
    s = socket.socket()
    s.bind((host, 0))
    s.listen(4096)
    return s


def activated(name, program, config, directory, sockets, env=None):
    """The program with sockets (name, socket), as a service manager starts it."""
    fds = [s.fileno() for _, s in sockets]
    return Proc(name, [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds)), ":".join(n for n, _ in sockets), BIN / program, "--config", config],
                directory, env, pass_fds=fds)


def address(s):
    return "%s:%d" % s.getsockname()[:2]


# ---- sockets of the service manager ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def w():
    w = World(limits={"drain": "20s"})
    yield w
    w.s.close()


@pytest.mark.parametrize("which", ["proxy", pytest.param("admin", marks=pytest.mark.once)])
def test_a_restart_under_load_refuses_nobody(w, which):
    """Every connection during the restarts is answered: it waits in the manager's socket, which the proxy's workers share."""
    s, own = listening(), listening()
    program, restarts = f"pullgate-{which}", 3
    if which == "proxy":
        config, path, auth = w.s.write_config(7), "/v2/shop/api/manifests/1.0.0", w.auth
    else:
        assert w.s.admin.stop() == 0
        config, path, auth = w.s.write_config(), "/api/v1/customers", "Bearer " + w.s.token
    ports = w.s.dir / ("proxy7.port" if which == "proxy" else "admin.port")
    stop, answers, broken = threading.Event(), [], []

    def ask():
        while not stop.is_set():
            try:
                answers.append(requests.get(f"http://{address(s)}{path}", headers={"Authorization": auth}, timeout=30 * SLOW).status_code)
            except requests.RequestException as e:
                broken.append(repr(e))

    def start(i):
        return activated(f"activated-{which}{i}", program, config, w.s.dir, [(which, s), ("metrics", own)])

    proc = start(0)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    try:
        wait_for("readiness", lambda: requests.get(f"http://{address(s)}/readyz", timeout=5).status_code == 200)
        for t in threads:
            t.start()
        for i in range(restarts):
            n = len(answers)
            wait_for("answers", lambda: len(answers) > n + 20)
            assert proc.stop(timeout=30) == 0, proc.text()[-2000:]
            n = len(answers)
            time.sleep(0.2)  # nobody is there to accept
            assert len(answers) - n <= len(threads), "answers without a process?"
            proc = start(i + 1)
        n = len(answers)
        wait_for("answers after the last restart", lambda: len(answers) > n + 20)
        assert "process_open_fds" in requests.get(f"http://{address(own)}/metrics", timeout=5).text, "the second socket is the metrics'"
        assert ports.read_text().split() == [address(s), address(own)]
    finally:
        stop.set()
        for t in threads:
            t.join() if t.ident else None
        proc.stop(timeout=30)
        s.close(), own.close()
        if which == "admin":
            w.s.start_admin()
    assert broken == [], broken[:5]
    assert set(answers) == {200}, {a: answers.count(a) for a in set(answers)}


@pytest.mark.once
def test_a_connection_that_has_not_asked_yet_is_answered(w):
    """Accepted just before the drain, its request comes just after."""
    s = listening()
    proc = activated("late", "pullgate-proxy", w.s.write_config(8), w.s.dir, [("proxy", s)])
    try:
        wait_for("readiness", lambda: requests.get(f"http://{address(s)}/readyz", timeout=5).status_code == 200)
        with socket.create_connection(s.getsockname(), timeout=10) as c, socket.create_connection(s.getsockname(), timeout=10) as quiet:
            time.sleep(0.2)  # accepted
            proc.p.send_signal(signal.SIGTERM)
            wait_for("the drain", lambda: "draining" in proc.text())
            c.sendall(f"GET /v2/shop/api/manifests/1.0.0 HTTP/1.1\r\nHost: x\r\nAuthorization: {w.auth}\r\n\r\n".encode())
            answer = c.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 200 ") and b"\r\nConnection: close\r\n" in answer, answer[:200]
            assert quiet.recv(10) == b"", "who says nothing is let go"
        assert proc.p.wait(15 * SLOW) == 0
    finally:
        proc.stop()
        s.close()


@pytest.mark.once
def test_tls_and_unix_sockets_are_taken_over_as_they_are(w, tmp_path):
    ca = make_ca(tmp_path)
    path = tmp_path / "pull.sock"
    u, s = socket.socket(socket.AF_UNIX), listening()
    u.bind(str(path))
    u.listen(64)
    keep = dict(w.s.config["proxy"])
    w.s.config["proxy"]["tls"] = {"cert": str(ca["cert"]), "key": str(ca["key"])}
    w.s.config["proxy"]["listen"] = []
    try:
        config = w.s.write_config(9)
    finally:
        w.s.config["proxy"] = keep
    proc = activated("both", "pullgate-proxy", config, tmp_path, [("", s), ("proxy", u)])  # one with, one without a name
    try:
        wait_for("readiness", lambda: requests.get(f"https://localhost:{s.getsockname()[1]}/readyz", verify=str(ca["ca"]), timeout=5).status_code == 200)
        out = subprocess.run(["curl", "-sS", "--unix-socket", path, "--cacert", ca["ca"], "https://localhost/healthz"], capture_output=True, text=True)
        assert out.stdout == '{"status":"ok"}\n', out
        assert proc.stop() == 0
        assert path.exists(), "the socket is the manager's"
        with socket.socket(socket.AF_UNIX) as c:
            c.connect(str(path))  # and still listens
    finally:
        proc.stop()
        u.close(), s.close()


def test_admin_by_socket_activate():
    """systemd-socket-activate starts the daemon at the first connection, which is answered."""
    if not shutil.which("systemd-socket-activate"):
        pytest.fail("systemd-socket-activate is in Debian's systemd package")
    with admin_stack() as s:
        port, token = s.admin_base.rsplit(":", 1)[1], s.token
        assert s.admin.stop() == 0
        proc = Proc("activate", ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=admin", BIN / "pullgate-admin", "--config",
                                 s.write_config()], s.dir)
        try:
            wait_for("the socket", lambda: "Listening on" in proc.text())
            r = requests.get(f"{s.admin_base}/api/v1/customers", headers={"Authorization": "Bearer " + token}, timeout=20 * SLOW)
            assert r.status_code == 200 and r.json()["items"] == []
            assert "(the service manager's)" in proc.text()
        finally:
            assert proc.stop() == 0, proc.text()


@pytest.mark.once
@pytest.mark.parametrize("program", ["pullgate-proxy", "pullgate-admin"])
def test_sockets_that_are_not_understood_are_refused(program, tmp_path):
    with admin_stack() as s:
        config = s.write_config()
        good, udp, quiet = listening(), socket.socket(type=socket.SOCK_DGRAM), socket.socket()
        udp.bind(("127.0.0.1", 0))
        quiet.bind(("127.0.0.1", 0))
        for name, sock, text in (("nonsense", good, 'a socket named \\"nonsense\\"'), ("", udp, "is no stream socket"), ("", quiet, "does not listen")):
            p = activated("refused", program, config, tmp_path, [(name, sock)])
            assert p.p.wait(10 * SLOW) == 1
            assert text in p.text(), p.text()
            p.log.unlink()
        good.close(), udp.close(), quiet.close()


# ---- root is given up ---------------------------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
USER, GROUP = "nobody", "nogroup"
NO_LEAKS = {"ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0"}  # LeakSanitizer looks at a process that does not let itself be looked at


def status_of(pid):
    return dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


@needs_root
def test_root_is_given_up_for_good():
    """Both daemons, started as root with a key that only root reads: served with TLS by a process that is nobody, in no group of
    root's, without a capability, without a way back; a renewed certificate that it cannot read is named and leaves the old one."""
    from stack import Stack
    tmp_path = pathlib.Path(tempfile.mkdtemp(prefix="pullgate-user-"))  # pytest's are root's alone
    os.chmod(tmp_path, 0o711)
    ca = make_ca(tmp_path)
    os.chmod(ca["key"], 0o600)  # root's alone
    state = tmp_path / "state"
    state.mkdir()
    shutil.chown(state, USER, GROUP)

    class Dropped(Stack):
        def write_config(self, i=0):
            path = super().write_config(i)
            for f in (path, self.dir / "bootstrap", self.dir / "spool"):
                shutil.chown(f, USER, GROUP)
            return path

    s = Dropped(directory=state, env=NO_LEAKS, proxy={"tls": {"cert": str(ca["cert"]), "key": str(ca["key"])}, "metrics_listen": ["127.0.0.1:0"]}, start=False)
    s.config["process"].update(user=USER, group=GROUP)
    try:
        s.start_admin()
        p = s.start_proxy()
        import grp
        import pwd
        uid, gid = pwd.getpwnam(USER).pw_uid, grp.getgrnam(GROUP).gr_gid
        for proc in (s.admin, p):
            st = status_of(proc.p.pid)
            assert set(st["Uid"].split()) == {str(uid)} and set(st["Gid"].split()) == {str(gid)}, st
            assert set(st["Groups"].split()) <= {str(gid)}
            assert all(int(st[c], 16) == 0 for c in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
            assert st["NoNewPrivs"] == "1"
            if not SANITIZED:
                assert st["Seccomp"] == "2"
            assert st["Umask"] == "0077"
            assert re.search(r"^Max core file size +0 +0 ", pathlib.Path(f"/proc/{proc.p.pid}/limits").read_text(), re.M)
            assert os.stat(f"/proc/{proc.p.pid}/environ").st_uid == 0, "not dumpable: what it has in memory is root's to look at"
            assert f"goes on as {USER}" in proc.text()
            assert "server.key cannot be read" in proc.text() or proc is s.admin
        assert os.stat(state / "pullgate.db").st_uid == uid and os.stat(state / "keys").st_uid == uid
        metrics = (state / "proxy0.port").read_text().split()[1]
        fds = int(re.search(r"^process_open_fds (\d+)", requests.get(f"http://{metrics}/metrics", timeout=5).text, re.M)[1])
        assert fds > 5, "it still counts its own descriptors"
        # renewed, and for root's eyes only
        shutil.copy(ca["key"], ca["key"].with_suffix(".new"))
        os.chmod(ca["key"].with_suffix(".new"), 0o600)
        os.replace(ca["key"].with_suffix(".new"), ca["key"])
        p.p.send_signal(signal.SIGHUP)
        wait_for("the complaint", lambda: re.search(r"reload: .*server\.key.*ermission denied.*what was in force stays", p.text()))
        assert requests.get(p.base + "/healthz", verify=False, timeout=5).status_code == 200
        # a user's key: the reload is good again
        shutil.chown(ca["key"], USER, GROUP)
        p.p.send_signal(signal.SIGHUP)
        wait_for("the reload", lambda: "is in force" in p.text())
        # root backs up and restores: the store is still the user's
        assert s.admin.stop() == 0
        for command in ("backup", "restore"):
            r = subprocess.run([BIN / "pullgate", command, tmp_path / "b.backup", "--config", state / "pullgate0.yaml"], capture_output=True, text=True,
                               env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
            assert r.returncode == 0, r
        s.start_admin()
        assert {f.stat().st_uid for f in state.glob("pullgate.db*")} == {uid}
    finally:
        s.close()
        shutil.rmtree(tmp_path, ignore_errors=True)


@needs_root
@pytest.mark.once
def test_users_that_cannot_be_become(tmp_path):
    with admin_stack() as s:
        for process, text in (({"user": "no-such-user"}, "there is no user"), ({"user": "root"}, "is root"),
                              ({"user": USER, "group": "no-such-group"}, "there is no group"), ({"user": USER, "group": "root"}, "is root's")):
            s.config["process"] = process
            for program in ("pullgate-proxy", "pullgate-admin"):
                r = subprocess.run([BIN / program, "--config", s.write_config(5)], capture_output=True, text=True, timeout=20 * SLOW)
                assert r.returncode == 1 and text in r.stderr, (program, process, r)
        s.config["process"] = {"user": "daemon"}
        config = s.write_config(5)
        os.chmod(s.dir, 0o755), os.chmod(config, 0o644)
        r = subprocess.run(["setpriv", "--reuid", USER, "--regid", GROUP, "--clear-groups", BIN / "pullgate-admin", "--config", config], capture_output=True,
                           text=True, timeout=20 * SLOW)
        assert r.returncode == 1 and "only root can become another" in r.stderr, r
        assert s.admin.text().count("runs as root and stays so: process.user") == (os.geteuid() == 0)
        s.config["process"] = {"sandbox": "kill"}


@needs_root
@pytest.mark.once
def test_a_capability_to_bind_is_gone_once_it_was_used():
    """As a unit with AmbientCapabilities=CAP_NET_BIND_SERVICE starts it: listens on a port below 1024, and has no capability left."""
    from stack import Stack
    state = pathlib.Path(tempfile.mkdtemp(prefix="pullgate-cap-"))
    s = Stack(directory=state, upstream=type("None", (), {"url": "http://127.0.0.1:9", "auth": None}), start=False)
    try:
        for port in range(1023, 900, -1):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                break
        s.config["admin"]["listen"] = [f"127.0.0.1:{port}"]
        config = s.write_config()
        for f in [state, *state.iterdir()]:
            shutil.chown(f, USER, GROUP)
        s.admin = Proc("admin", ["setpriv", "--reuid", USER, "--regid", GROUP, "--clear-groups", "--inh-caps=-all,+net_bind_service",
                                 "--ambient-caps=-all,+net_bind_service", BIN / "pullgate-admin", "--config", config], state)
        wait_for("health", lambda: requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).status_code == 200)
        st = status_of(s.admin.p.pid)
        assert all(int(st[c], 16) == 0 for c in ("CapInh", "CapPrm", "CapEff", "CapAmb")), st
        assert "the capabilities" not in s.admin.text()
    finally:
        s.close()
        shutil.rmtree(state, ignore_errors=True)


# ---- the system call filter ----------------------------------------------------------------------------------------------------

# In the real daemon, in a thread that was there before the filter: does what it is told once the file appears.
INTRUDER = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
static void *run(void *arg)
{
    const char *path = arg;
    char what[32] = "", text[64];
    for (int fd; (fd = open(path, O_RDONLY)) < 0;)
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    int fd = open(path, O_RDWR), rc = 0;
    if (read(fd, what, sizeof what - 1) < 0) return NULL;
    char *const none[] = {NULL};
    errno = 0;
    if (!strcmp(what, "execve")) rc = execve("/bin/true", none, none);
    if (!strcmp(what, "ptrace")) rc = (int)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    if (!strcmp(what, "netlink")) rc = socket(AF_NETLINK, SOCK_RAW, 0);
    if (!strcmp(what, "packet")) rc = socket(AF_PACKET, SOCK_RAW, 0);
    if (!strcmp(what, "listen")) rc = listen(socket(AF_INET, SOCK_STREAM, 0), 1);
    snprintf(text, sizeof text, " -> %d %s", rc, strerrorname_np(errno));
    if (write(fd, text, strlen(text)) < 0) return NULL;
    return NULL;
}
__attribute__((constructor)) static void begin(void)
{
    pthread_t t;
    const char *path = getenv("INTRUDER");
    if (path) { unsetenv("LD_PRELOAD"); pthread_create(&t, NULL, run, strdup(path)); }
}
"""


@pytest.fixture(scope="module")
def intruder(tmp_path_factory):
    d = tmp_path_factory.mktemp("intruder")
    (d / "i.c").write_text(INTRUDER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", d / "i.so", d / "i.c", "-pthread"], check=True)
    return d / "i.so"


@pytest.mark.once
@pytest.mark.parametrize("which", ["proxy", "admin"])
def test_the_filter_kills(intruder, tmp_path, which):
    with admin_stack() as s:
        for i, act in enumerate(("execve", "ptrace", "packet", "listen", "netlink")):
            order = tmp_path / f"order-{act}"
            s.env = {"LD_PRELOAD": str(intruder), "INTRUDER": str(order)}
            if which == "admin":
                s.admin.stop()
                s.start_admin()
                p = s.admin
            else:
                p = s.start_proxy(0)
            order.write_text(act)
            if act == "netlink":  # getaddrinfo() tries: it is told no, and nothing else
                wait_for("an answer", lambda: order.read_text().endswith("-> -1 EAFNOSUPPORT"))
                assert p.alive()
            else:
                assert p.p.wait(10) == -signal.SIGSYS, (act, p.p.returncode, order.read_text())
            s.env = {}
            if which == "proxy":
                p.stop()
                s.proxies.clear()
            elif not p.alive():
                s.start_admin()


@pytest.mark.once
def test_the_filter_refuses_counts_and_says_so(intruder, tmp_path):
    order = tmp_path / "order"
    with admin_stack(admin={"metrics_listen": ["127.0.0.1:0"]}) as s:
        s.admin.stop()
        s.config["process"] = {}  # the default
        s.env = {"LD_PRELOAD": str(intruder), "INTRUDER": str(order)}
        s.start_admin()
        metrics = f"http://{(s.dir / 'admin.port').read_text().split()[1]}/metrics"
        assert "pullgate_sandbox_refused_total 0\n" in requests.get(metrics, timeout=5).text
        order.write_text("execve")
        wait_for("an answer", lambda: order.read_text().endswith("execve -> -1 EPERM"))
        wait_for("the line", lambda: "sandbox: system call 059 was refused" in s.admin.text())
        assert "pullgate_sandbox_refused_total 1\n" in requests.get(metrics, timeout=5).text
        assert s.api("GET", "/customers").status_code == 200


# ---- the units ------------------------------------------------------------------------------------------------------------------


def expand(group, seen=None):
    out = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True).stdout
    names = set()
    for word in (line.strip() for line in out.splitlines()[1:]):
        if word.startswith("@"):
            names |= expand(word)
        elif word and not word.startswith("#"):
            names.add(word)
    return names


@pytest.mark.once
@pytest.mark.parametrize("unit", [UNITS / f"pullgate-{d}.service" for d in ("admin", "proxy")], ids=lambda u: u.name)
def test_units_allow_what_the_filter_allows(unit):
    """A daemon's own filter is tighter than its unit's: else one that runs in the tests would not run as a service."""
    text = unit.read_text()
    if "SystemCallFilter" not in text:
        pytest.fail("no filter")
    may = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", text, re.M):
        words = line.lstrip("~").split()
        names = set().union(*(expand(x) if x.startswith("@") else {x} for x in words))
        may = may - names if line.startswith("~") else may | names
    wanted = set(subprocess.run([TESTS_BIN / "test_sandbox", "--allowed"], capture_output=True, text=True, check=True).stdout.split())
    assert len(wanted) > 100
    # chown of files that SQLite makes happens as root only; the unit's daemon is not
    assert wanted - may - {"fchown"} == set()
    assert "seccomp" in may, "or the daemon cannot set its filter"
    assert not may & {"ptrace", "process_vm_readv", "mount", "bpf", "kexec_load", "init_module", "setuid", "setresuid"}
    families = set(re.search(r"^RestrictAddressFamilies=(.*)$", text, re.M)[1].split())
    assert families == {"AF_INET", "AF_INET6", "AF_UNIX"}


@pytest.mark.once
@pytest.mark.parametrize("which", ["proxy", "admin"])
def test_socket_units_fit_the_daemons(which):
    text = (UNITS / f"pullgate-{which}.socket").read_text()
    shown = subprocess.run([BIN / f"pullgate-{which}", "--show-config"], capture_output=True, text=True).stdout
    default = re.search(rf'^{which}:\n  listen: \["([^"]+)"\]', shown, re.M)[1]
    assert re.search(r"^ListenStream=(.*)$", text, re.M)[1] == default
    assert re.search(r"^FileDescriptorName=(.*)$", text, re.M)[1] == which
    assert re.search(r"^WantedBy=sockets.target$", text, re.M)
