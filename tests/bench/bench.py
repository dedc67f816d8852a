"""Starts the stack and nginx (static file, and auth_request + proxy_pass in front of docker-registry), loads each with wrk in turn."""
import os
import pathlib
import re
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from conftest import World  # noqa: E402
from stack import Proc, free_port, wait_for  # noqa: E402

import requests  # noqa: E402

ROUNDS, SECONDS = int(sys.argv[1]), int(sys.argv[2])
CONNECTIONS = 64
SERVER, LOAD = "0", "1"


def pin(proc):
    for tid in os.listdir(f"/proc/{proc.p.pid}/task"):
        os.sched_setaffinity(int(tid), {int(SERVER)})


def cpu_seconds(proc):
    """User and system time of the server so far, all threads; nginx: its one worker."""
    pid = proc.p.pid
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for p in [pid, *children]:
        f = pathlib.Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(f[11]) + int(f[12])
    return total / os.sysconf("SC_CLK_TCK")


def wrk(url, auth=None):
    argv = ["taskset", "-c", LOAD, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency"]
    argv += ["-H", "Accept: application/vnd.oci.image.index.v1+json"]
    if auth:
        argv += ["-H", f"Authorization: {auth}"]
    out = subprocess.run([*argv, url], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out, out
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), int(re.search(r"(\d+) requests in", out)[1])


def main():
    w = World(proxy={"workers": 1}, limits={"keepalive_requests": 0, "inflight_per_customer": 100000}, )
    try:
        s = w.s
        digest = w.images["1.0.0"]["digest"]
        body = w.get(f"/v2/shop/api/manifests/{digest}").content
        d = s.dir / "nginx"
        (d / "www").mkdir(parents=True)
        (d / "www" / "manifest").write_bytes(body)
        port, auth_port = free_port(), free_port()
        basic_upstream = __import__("base64").b64encode(":".join(s.registry.auth).encode()).decode()
        (d / "nginx.conf").write_text(f"""
daemon off; master_process off; user root; pid {d}/pid; error_log {d}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; open_file_cache max=100; sendfile on; tcp_nopush on;
  client_body_temp_path {d}/t1; proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3; uwsgi_temp_path {d}/t4; scgi_temp_path {d}/t5;
  upstream registry {{ server 127.0.0.1:{s.registry.port}; keepalive 64; }}
  upstream auth {{ server 127.0.0.1:{auth_port}; keepalive 64; }}
  server {{ listen 127.0.0.1:{auth_port}; location / {{ return 204; }} }}
  server {{
    listen 127.0.0.1:{port};
    location /manifest {{ root {d}/www; default_type application/vnd.oci.image.index.v1+json; }}
    location /v2/ {{
      auth_request /_auth; proxy_pass http://registry; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Authorization "Basic {basic_upstream}";
    }}
    location /checked {{ auth_request /_auth; proxy_pass http://127.0.0.1:{port}/manifest; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    location = /_auth {{ internal; proxy_pass http://auth; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass_request_body off; }}
  }}
}}""")
        nginx = Proc("nginx", ["taskset", "-c", SERVER, "nginx", "-c", d / "nginx.conf", "-p", d], d)
        wait_for("nginx", lambda: requests.get(f"http://127.0.0.1:{port}/manifest").content == body)
        pin(s.proxies[0])
        pin(s.registry.proc)
        cases = {
            "pullgate, manifest by tag, checked": (f"{s.base}/v2/shop/api/manifests/1.0.0", w.auth),
            "pullgate, manifest by digest, checked": (f"{s.base}/v2/shop/api/manifests/{digest}", w.auth),
            "nginx, static file, no check": (f"http://127.0.0.1:{port}/manifest", None),
            "nginx, auth_request + proxy_pass to nginx": (f"http://127.0.0.1:{port}/checked", None),
            "docker-registry behind nginx auth_request": (f"http://127.0.0.1:{port}/v2/acme/api/manifests/1.0.0", None),
        }
        samples, cpu = {k: [] for k in cases}, {k: [] for k in cases}
        for _ in range(ROUNDS):
            for name, (url, auth) in cases.items():
                server = s.proxies[0] if name.startswith("pullgate") else nginx
                before = cpu_seconds(server)
                rate, n = wrk(url, auth)
                samples[name].append(rate)
                cpu[name].append((cpu_seconds(server) - before) * 1e6 / n)
        base = statistics.median(samples["nginx, static file, no check"])
        print(f"manifest of {len(body)} bytes, {CONNECTIONS} keep-alive connections, server on core {SERVER}, load on core {LOAD}, "
              f"{ROUNDS} interleaved rounds of {SECONDS} s")
        print(f"{'':45} {'req/s median':>13} {'min':>10} {'max':>10} {'to nginx static':>16} {'CPU us/request':>15}")
        for name, xs in samples.items():
            m = statistics.median(xs)
            print(f"{name:45} {m:13.0f} {min(xs):10.0f} {max(xs):10.0f} {m / base:16.2f} {statistics.median(cpu[name]):15.1f}")
        nginx.stop()
    finally:
        w.s.close()


main()
