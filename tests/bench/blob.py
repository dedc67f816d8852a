"""Blobs beside nginx: the same bytes, the same run, the server pinned to one core and the load to the other. Prints, asserts no time.

    tests/bench/blob.py BUILD_DIR [ROUNDS] [MIB]

    cached   the relay's file path against nginx's sendfile, plain and TLS: CPU seconds of the server a GiB, and GB/s
    cold     a blob that is not here (fetched, hashed, spooled, relayed) against nginx proxy_pass: the same figures
    storm    200 clients asking for one cold blob: what the upstream sent

The relay is driven by tests/unit/drive_relay.c: bytes only, no check of rights."""
import hashlib
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
BUILD = pathlib.Path(sys.argv[1]).resolve()
os.environ["PULLGATE_BIN"] = str(BUILD / "bin")

from relay_lab import Lab  # noqa: E402
from stack import Proc, free_port, wait_for  # noqa: E402

ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 3
MIB = int(sys.argv[3]) if len(sys.argv) > 3 else 512
SERVER, LOAD = 0, 1
TICK = os.sysconf("SC_CLK_TCK")


def cpu_of(pids):
    total = 0
    for pid in pids:
        f = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(f[11]) + int(f[12])
    return total / TICK


def children(pid):
    return [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pin(pid):
    for tid in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(tid), {SERVER})


def load(url, parallel=4):
    """`parallel` whole downloads at once; seconds they took."""
    start = time.monotonic()
    procs = [subprocess.Popen(["taskset", "-c", str(LOAD), "curl", "-sk", "-o", "/dev/null", "-w", "%{size_download} %{http_code}", url],
                              stdout=subprocess.PIPE, text=True) for _ in range(parallel)]
    for p in procs:
        out = p.communicate()[0].split()
        assert out == [str(MIB << 20), "200"], (url, out)
    return time.monotonic() - start


class Upstream:
    def __init__(self, url):
        self.url, self.blobs = url, {}

    def close(self):
        pass


def main():
    d = pathlib.Path(tempfile.mkdtemp(prefix="pullgate-bench-"))
    try:
        www = d / "up" / "v2" / "acme" / "app" / "blobs"
        www.mkdir(parents=True)
        data = os.urandom(1 << 20) * MIB
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        (www / digest).write_bytes(data)
        del data
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", d / "key.pem",
                        "-out", d / "cert.pem", "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
        os.chmod(d / "key.pem", 0o600)
        up, plain, tls, proxied = (free_port() for _ in range(4))
        temp = "; ".join(f"{k}_temp_path {d}/t-{k}" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))

        def nginx(name, servers):
            (d / f"{name}.conf").write_text(f"""daemon off; worker_processes 1; pid {d}/{name}.pid; error_log {d}/{name}.err; user root;
events {{ worker_connections 1024; }}
http {{ access_log off; {temp}; sendfile on; tcp_nopush on; proxy_http_version 1.1; {servers} }}""")
            p = Proc(name, ["nginx", "-c", d / f"{name}.conf", "-p", d], d)
            wait_for(name, lambda: children(p.p.pid))
            return p

        root = f"root {d}/up;"
        upstream = nginx("upstream", f"server {{ listen 127.0.0.1:{up}; {root} }}")
        rival = nginx("rival", f"""
            server {{ listen 127.0.0.1:{plain}; {root} }}
            server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem; {root} }}
            server {{ listen 127.0.0.1:{proxied}; location / {{ proxy_pass http://127.0.0.1:{up}; proxy_max_temp_file_size 0; }} }}""")
        rival_pids = children(rival.p.pid)
        for pid in rival_pids:
            pin(pid)
        for pid in children(upstream.p.pid):
            os.sched_setaffinity(pid, {LOAD})

        def lab(**kw):
            x = Lab(Upstream(f"http://127.0.0.1:{up}"), workers=1, **kw)
            pin(x.p.pid)
            return x

        path = f"/v2/acme/app/blobs/{digest}"
        query = f"{path}?size={MIB << 20}"
        spool = {"spool": d}
        with lab(cache=d / "cache", **spool) as hot, lab(cache=d / "cache-tls", tls_cert=d / "cert.pem", tls_key=d / "key.pem", **spool) as hot_tls, \
                lab(**spool) as cold:
            at = {x: f"{x.addresses[0][0]}:{x.addresses[0][1]}" for x in (hot, hot_tls, cold)}
            load(f"http://{at[hot]}{query}", 1)
            load(f"https://{at[hot_tls]}{query}", 1)
            wait_for("the file", lambda: hot.stats()["files"] == 1)
            cases = [
                ("cached, plain", "pullgate", f"http://{at[hot]}{query}", [hot.p.pid], 4),
                ("cached, plain", "nginx sendfile", f"http://127.0.0.1:{plain}{path}", rival_pids, 4),
                ("cached, TLS", "pullgate", f"https://{at[hot_tls]}{query}", [hot_tls.p.pid], 4),
                ("cached, TLS", "nginx", f"https://127.0.0.1:{tls}{path}", rival_pids, 4),
                ("cold, one client", "pullgate", f"http://{at[cold]}{query}", [cold.p.pid], 1),
                ("cold, one client", "nginx proxy_pass", f"http://127.0.0.1:{proxied}{path}", rival_pids, 1),
            ]
            samples = {c[:2]: [] for c in cases}
            for _ in range(ROUNDS):
                for what, who, url, pids, parallel in cases:
                    before = cpu_of(pids)
                    seconds = load(url, parallel)
                    gib = parallel * MIB / 1024
                    samples[what, who].append(((cpu_of(pids) - before) / gib, gib * 1.073741824 / seconds))
            print(f"one blob of {MIB} MiB, server on core {SERVER}, load and upstream on core {LOAD}, {ROUNDS} interleaved rounds, medians (min..max)")
            print(f"{'':18} {'':18} {'CPU s/GiB':>20} {'GB/s':>20}")
            for (what, who), xs in samples.items():
                cpu, rate = [x[0] for x in xs], [x[1] for x in xs]
                fmt = "{:.2f} ({:.2f}..{:.2f})".format
                print(f"{what:18} {who:18} {fmt(statistics.median(cpu), min(cpu), max(cpu)):>20} {fmt(statistics.median(rate), min(rate), max(rate)):>20}")
            misses = cold.stats()["misses"]
            procs = [subprocess.Popen(["taskset", "-c", str(LOAD), "curl", "-s", "-o", "/dev/null", "-r", "0-", f"http://{at[cold]}{query}"])
                     for _ in range(min(200, 50 if MIB > 64 else 200))]
            for p in procs:
                assert p.wait() == 0
            s = cold.stats()
            print(f"storm: {len(procs)} clients at once, upstream transfers: {s['misses'] - misses}, memory of the proxy: {s['anon_kib'] / 1024:.1f} MiB")
        rival.stop()
        upstream.stop()
    finally:
        shutil.rmtree(d, ignore_errors=True)


main()
