"""A checked hot manifest beside nginx and the registry itself; what it costs in instructions and system calls."""
import json
import os
import pathlib
import re
import shutil
import subprocess

import requests

from conftest import World
from lab import BIN, INDEX, LOAD, Nginx, Pairs, Proc, cpu_s, free_port, pin, spread, wait_for, wrk

CONNECTIONS = 64
ACCEPT = f"Accept: {INDEX}"


def world():
    return World(proxy={"workers": 1}, limits={"keepalive_requests": 0, "inflight_per_customer": 100000})


def rivals(w, body):
    """nginx: the file; auth_request and proxy_pass, both over kept connections, to the same file and to docker-registry; and
    docker-registry without authentication."""
    s = w.s
    d = s.dir / "rivals"
    (d / "www").mkdir(parents=True)
    (d / "www" / "manifest").write_bytes(body)
    bare = json.loads(s.registry.config.read_text())
    del bare["auth"]
    bare["log"]["accesslog"]["disabled"] = True
    port = {k: free_port() for k in ("static", "auth", "back", "checked", "registry")}
    bare["http"]["addr"] = f"127.0.0.1:{port['registry']}"
    (d / "registry.yml").write_text(json.dumps(bare))
    registry = Proc("registry-bare", ["docker-registry", "serve", d / "registry.yml"], d)
    wait_for("docker-registry", lambda: requests.get(f"http://127.0.0.1:{port['registry']}/v2/").status_code == 200)
    file = f"root {d}/www; default_type {INDEX}; types {{ }}"
    static = Nginx(d, "static", f"server {{ listen 127.0.0.1:{port['static']}; location / {{ {file} }} }}")
    back = Nginx(d, "back", f"""server {{ listen 127.0.0.1:{port['back']}; location / {{ {file} }} }}
        server {{ listen 127.0.0.1:{port['auth']}; location / {{ return 204; }} }}""")
    front = Nginx(d, "front", f"""
      upstream back {{ server 127.0.0.1:{port['back']}; keepalive 64; }}
      upstream registry {{ server 127.0.0.1:{port['registry']}; keepalive 64; }}
      upstream auth {{ server 127.0.0.1:{port['auth']}; keepalive 64; }}
      proxy_http_version 1.1; proxy_set_header Connection "";
      server {{ listen 127.0.0.1:{port['checked']};
        location = /_auth {{ internal; proxy_pass http://auth; proxy_pass_request_body off; }}
        location /manifest {{ auth_request /_auth; proxy_pass http://back; }}
        location /v2/ {{ auth_request /_auth; proxy_pass http://registry; }} }}""")
    pin(registry.p.pid)
    return port, registry, static, back, front


def run(table, quick):
    w = world()
    stop = []
    try:
        s = w.s
        digest = w.images["1.0.0"]["digest"]
        body = w.get(f"/v2/shop/api/manifests/{digest}").content
        port, registry, static, back, front = rivals(w, body)
        stop = [static, back, front, registry]
        proxy = s.proxies[0]
        pin(proxy.p.pid)
        pin(s.redis.proc.p.pid, LOAD)
        pin(s.admin.p.pid, LOAD)
        ours = [proxy.p.pid]
        at = "http://127.0.0.1:{}"
        cases = {
            "tag": (f"{s.base}/v2/shop/api/manifests/1.0.0", w.auth, ours),
            "digest": (f"{s.base}/v2/shop/api/manifests/{digest}", w.auth, ours),
            "static": (at.format(port["static"]) + "/manifest", None, static.pids),
            "checked": (at.format(port["checked"]) + "/manifest", None, front.pids + back.pids),
            "registry": (at.format(port["registry"]) + "/v2/acme/api/manifests/1.0.0", None, [registry.p.pid]),
            "checked registry": (at.format(port["checked"]) + "/v2/acme/api/manifests/1.0.0", None, front.pids + back.pids + [registry.p.pid]),
        }

        def sample(name):
            url, auth, pids = cases[name]
            before = cpu_s(pids)
            rate, n = wrk(url, auth, connections=CONNECTIONS, headers=[ACCEPT])
            return rate, (cpu_s(pids) - before) * 1e6 / n

        p = Pairs(cases)
        p.rounds(3 if quick else 9, sample)
        for how in ("tag", "digest"):
            for rival, text, target in (("static", "nginx, static file, no check", 1), ("checked", "nginx auth_request + proxy_pass to nginx", 8),
                                        ("checked registry", "nginx auth_request + proxy_pass to docker-registry", 8),
                                        ("registry", "docker-registry, no authentication", 50)):
                rate, cpu = p.ratio(how, rival), p.ratio(rival, how, 1)
                table.add(f"hot manifest by {how}, checked, against {text}",
                          f"{p.of(how):,.0f} / {p.of(rival):,.0f} req/s, {p.of(how, 1):.1f} / {p.of(rival, 1):.1f} us CPU", f">= {target} x req/s",
                          f"{rate[0]:.2f} x, CPU {cpu[0]:.2f} x", rate[0] >= target, spread(rate))
        syscalls(table, cases)
    finally:
        for x in stop:
            x.stop()
        w.s.close()


def syscalls(table, cases):
    """System calls a request: nearly the same on a busy machine as on a quiet one."""
    if not shutil.which("perf"):
        return
    counts = []
    for name in ("tag", "digest", "static"):
        url, auth, pids = cases[name]
        _, n, err = wrk(url, auth, connections=CONNECTIONS, headers=[ACCEPT],
                        under=["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", ",".join(map(str, pids)), "--"])
        m = re.search(r"^(\d+),,raw_syscalls", err, re.M)
        if not m:
            return
        counts.append(int(m[1]) / n)
    table.add("system calls a request: by tag / by digest / nginx static", " / ".join(f"{x:.2f}" for x in counts))


# ---- instructions ------------------------------------------------------------------------------------------------------------

def callgrind_of(argv, directory, ready, load):
    """Instructions in user space of one request, of the calm middle of a load: counts are cleared before and dumped after."""
    proc = Proc("callgrind", ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/callgrind.out", *argv], directory,
                env={"PULLGATE_PROCESS_SANDBOX": "off"})  # valgrind makes calls of its own
    try:
        wait_for("the server under valgrind", ready, timeout=60)
        load()
        subprocess.run(["callgrind_control", "-z", str(proc.p.pid)], check=True, capture_output=True)
        n = load()
        subprocess.run(["callgrind_control", "-d", str(proc.p.pid)], check=True, capture_output=True)
        dump = sorted(directory.glob("callgrind.out.*"))[-1]
        if keep := os.environ.get("PULLGATE_BENCH_KEEP"):  # for callgrind_annotate
            shutil.copy(dump, pathlib.Path(keep) / f"callgrind.{directory.name}")
        return int(re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.M)[1]) / n
    finally:
        proc.stop()


def instructions(table, quick):
    """The same on a busy machine as on a quiet one: what a change did to the hot path shows here first."""
    if not shutil.which("valgrind"):
        table.add("user-space instructions a request", "valgrind is not installed")
        return
    w = world()
    try:
        s = w.s
        digest = w.images["1.0.0"]["digest"]
        body = w.get(f"/v2/shop/api/manifests/{digest}").content
        s.proxies[0].stop()
        results = {}
        for name, path, auth in (("tag", "/v2/shop/api/manifests/1.0.0", w.auth), ("digest", f"/v2/shop/api/manifests/{digest}", w.auth),
                                 ("static", "/manifest", None)):
            d = s.dir / "instructions" / name
            (d / "www").mkdir(parents=True)
            port_file = s.dir / "proxy0.port"
            if auth:
                port_file.unlink(missing_ok=True)
                argv = [BIN / "pullgate-proxy", "--config", s.write_config()]
            else:
                port = free_port()
                port_file.write_text(f"127.0.0.1:{port}\n")
                (d / "www" / "manifest").write_bytes(body)
                temp = " ".join(f"{k}_temp_path {d}/t-{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
                (d / "conf").write_text(f"""daemon off; master_process off; user root; pid {d}/pid; error_log {d}/error.log;
events {{ worker_connections 512; }}
http {{ access_log off; {temp} sendfile on; tcp_nopush on; open_file_cache max=100; keepalive_requests 1000000000;
  server {{ listen 127.0.0.1:{port}; location / {{ root {d}/www; default_type {INDEX}; types {{ }} }} }} }}""")
                argv = [shutil.which("nginx"), "-c", d / "conf", "-p", d]

            def url():
                return f"http://{port_file.read_text().split()[0]}{path}"

            headers = {"Accept": INDEX, **({"Authorization": auth} if auth else {})}
            results[name] = callgrind_of(argv, d, lambda: requests.get(url(), headers=headers).status_code == 200,
                                         lambda: wrk(url(), auth, seconds=1 if quick else 2, connections=16, headers=[ACCEPT])[1])
        table.add("user-space instructions a request: by tag / by digest / nginx static", " / ".join(f"{results[k]:,.0f}" for k in ("tag", "digest", "static")))
    finally:
        w.s.close()
