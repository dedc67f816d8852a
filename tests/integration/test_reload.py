"""SIGHUP: what is good is taken up at once and costs no request, what is bad leaves everything as it was and says why."""
import json
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest
import requests

from admin_fixture import admin_stack
from conftest import World
from stack import SANITIZED, SLOW, basic, live_certificate, make_ca, wait_for
from test_metrics import parse, total


def pair(directory, ca, name):
    """A further certificate of the CA; its serial number tells which one a server shows."""
    run = lambda *a: subprocess.run(["openssl", *a], check=True, capture_output=True, cwd=directory)
    run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}.test")
    run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "90", "-extfile", "ext")
    return directory / f"{name}.pem", directory / f"{name}.key"


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    ca = make_ca(tmp_path_factory.mktemp("reload"))
    with live_certificate(**ca) as live:
        w = World(proxy={"metrics_listen": ["127.0.0.1:0"], "tls": live.tls, "listen": ["127.0.0.1:0"]}, limits={"auth_failures_per_minute": 1000000})
        w.ca, w.live, w.tls_dir = ca, live, ca["cert"].parent
        lines = (w.s.dir / "proxy0.port").read_text().split()
        w.metrics_base = f"http://{lines[1]}"
        w.scrape = lambda: parse(requests.get(w.metrics_base + "/metrics", timeout=10).text)
        w.proxy = w.s.proxies[0]
        w.file = w.s.dir / "pullgate0.yaml"
        w.good = w.file.read_text()
        yield w
        w.s.close()


@pytest.fixture(autouse=True)
def good_again(w):
    yield
    w.file.write_text(w.good)
    w.live.put(w.ca["cert"], w.ca["key"])
    reload(w)


def counts(w):
    m = w.scrape()
    return {r: total(m, "pullgate_config_reloads_total", result=r) for r in ("ok", "failed")}


def reload(w, expect="ok"):
    before = counts(w)
    mark = len(w.proxy.text())
    w.proxy.p.send_signal(signal.SIGHUP)
    wait_for(f"a reload that is {expect}", lambda: counts(w)[expect] > before[expect], 5)
    other = "failed" if expect == "ok" else "ok"
    assert counts(w)[other] == before[other]
    return w.proxy.text()[mark:]


def change(w, section, **keys):
    cfg = json.loads(w.good)
    cfg.setdefault(section, {}).update(keys)
    w.file.write_text(json.dumps(cfg, indent=1))


def serial_shown(w):
    ctx = ssl.create_default_context(cafile=str(w.ca["ca"]))
    host, port = w.s.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as s, ctx.wrap_socket(s, server_hostname="localhost") as t:
        return t.getpeercert()["serialNumber"]


def serial_of(path):
    out = subprocess.run(["openssl", "x509", "-in", str(path), "-noout", "-serial"], check=True, capture_output=True, text=True).stdout
    return out.strip().split("=")[1]


def get(w, path, auth=None, session=requests):
    return session.get(w.s.base + path, headers={"Authorization": auth or w.auth}, verify=str(w.ca["ca"]), timeout=30 * SLOW)


def messages(text):
    out = []
    for line in text.splitlines():
        try:
            doc = json.loads(line)
        except ValueError:
            continue
        if "level" in doc:
            out.append((doc["level"], doc["msg"]))
    return out


def test_a_hundred_reloads_under_load_fail_no_request(w):
    layer = w.images["1.0.0"]["children"][0]["layers"][1]
    paths = ["/v2/shop/api/manifests/1.0.0", f"/v2/shop/api/blobs/{layer}", "/v2/shop/api/tags/list"]
    done, bad, stop = [0], [], threading.Event()

    def client(keep):
        session = requests.Session()
        n = 0
        while not stop.is_set():
            try:
                r = get(w, paths[n % 3], session=session if keep else requests)
                if r.status_code != 200:
                    bad.append((paths[n % 3], r.status_code, r.text[:200]))
            except requests.RequestException as e:
                bad.append((paths[n % 3], repr(e)))
            n += 1
            done[0] += 1

    threads = [threading.Thread(target=client, args=(i % 2 == 0,)) for i in range(4)]
    for t in threads:
        t.start()
    resident = []
    try:
        for i in range(100):
            change(w, "cache", tag_freshness=f"{10 + i % 2}s", max_staleness=f"{5 + i % 3}s")
            if i % 10 == 5:
                change(w, "limits", upstream_retries=i % 4, manifest_size=f"{4 + i % 3}MiB")
            text = reload(w)
            assert "needs a restart" not in text
            resident.append(total(w.scrape(), "process_resident_memory_bytes"))
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not bad, bad[:5]
    assert done[0] > 200, "there was no load to speak of"
    if not SANITIZED:
        assert resident[-1] - resident[20] < 8 << 20, "memory grows with every reload"


def test_a_bad_file_changes_nothing_and_names_file_line_and_key(w):
    before = serial_shown(w)
    for key, text, needle in (
        ("cache.max_staleness", "cache:\n  tag_freshness: 1s\n  max_staleness: soon\n", ":3: cache.max_staleness"),
        ("cache.max_stalenes", "cache:\n  max_stalenes: 1s\n", ":2: cache.max_stalenes: unknown key"),
        ("yaml", "cache: [\n", ""),
    ):
        w.file.write_text(text)
        told = [m for level, m in messages(reload(w, "failed")) if level == "error"]
        assert len(told) == 1 and told[0].startswith("reload: " + str(w.file)) and needle in told[0], (key, told)
    w.file.unlink()
    told = [m for level, m in messages(reload(w, "failed")) if level == "error"]
    assert len(told) == 1 and str(w.file) in told[0]
    m = w.scrape()
    assert total(m, "pullgate_config_last_reload_successful") == 0
    assert get(w, "/v2/shop/api/manifests/1.0.0").status_code == 200 and serial_shown(w) == before
    w.file.write_text(w.good)
    reload(w)
    assert total(w.scrape(), "pullgate_config_last_reload_successful") == 1


def test_keys_that_need_a_restart_are_named_and_keep_their_values(w):
    change(w, "proxy", challenge="bearer", workers=7)
    told = [m for level, m in messages(reload(w)) if level == "warn"]
    assert told == ["reload: needs a restart: proxy.workers, proxy.challenge"], told
    r = requests.get(w.s.base + "/v2/", verify=str(w.ca["ca"]), timeout=10)
    assert r.headers["WWW-Authenticate"].startswith("Basic "), "not half taken up"
    cfg = json.loads(w.good)
    del cfg["proxy"]["tls"]
    w.file.write_text(json.dumps(cfg))
    told = [m for level, m in messages(reload(w)) if level == "warn"]
    assert told == ["reload: needs a restart: proxy.tls.cert, proxy.tls.key"], told
    assert get(w, "/v2/shop/api/manifests/1.0.0").status_code == 200


def test_limits_are_taken_up(w):
    wrong = basic("nobody-of-limits", "wrong")
    codes = [get(w, "/v2/", basic("x", f"wrong-{i}")).status_code for i in range(20)]
    assert set(codes) == {401}
    change(w, "limits", auth_failures_per_minute=3)
    reload(w)
    codes = [get(w, "/v2/", basic("x", f"wronger-{i}")).status_code for i in range(20)]
    assert 429 in codes, codes
    assert get(w, "/v2/", wrong).status_code in (401, 429)
    assert get(w, "/v2/shop/api/manifests/1.0.0").status_code == 200, "right credentials always pass"


def test_memory_limit(w):
    change(w, "limits", memory="1MiB")
    reload(w)
    wait_for("requests to be answered 503", lambda: get(w, "/v2/shop/api/manifests/1.0.0").status_code == 503, 5)
    r = get(w, "/v2/shop/api/manifests/1.0.0")
    assert r.headers["Retry-After"] and r.json()["errors"][0]["code"] == "UNAVAILABLE"
    assert get(w, "/healthz").status_code == 200
    w.file.write_text(w.good)
    reload(w)
    wait_for("requests to be answered again", lambda: get(w, "/v2/shop/api/manifests/1.0.0").status_code == 200, 5)


def test_log_level(w):
    change(w, "log", level="error")
    assert messages(reload(w)) == [], "information is not logged any more"
    w.file.write_text(w.good)
    assert ("info", f"reload: the configuration of {w.file} is in force") in messages(reload(w))


def test_certificate_by_signal(w):
    other = pair(w.tls_dir, w.ca, "other")
    keep = requests.Session()
    assert get(w, "/v2/", session=keep).status_code == 200
    first = serial_shown(w)
    w.live.put(*other)
    reload(w)
    assert serial_shown(w) == serial_of(w.live.cert) != first
    for _ in range(8):  # every worker shows it
        assert serial_shown(w) == serial_of(w.live.cert)
    assert get(w, "/v2/", session=keep).status_code == 200, "who was connected stays so"


def test_key_of_another_certificate_is_refused_whole(w):
    other = pair(w.tls_dir, w.ca, "third")
    before = serial_shown(w)
    w.live.put(other[0])  # the key does not follow
    cfg = json.loads(w.good)
    cfg["limits"] = {"memory": "1MiB"}
    w.file.write_text(json.dumps(cfg))
    told = [m for level, m in messages(reload(w, "failed")) if level == "error"]
    assert told and str(w.live.key) in told[-1], told
    assert serial_shown(w) == before
    time.sleep(1.2 * SLOW)  # the memory limit would have been looked at meanwhile
    assert get(w, "/v2/shop/api/manifests/1.0.0").status_code == 200, "the rest of that file was not taken up either"


def test_certificate_is_seen_without_a_signal(w):
    other = pair(w.tls_dir, w.ca, "fourth")
    failed = counts(w)["failed"]
    w.live.put(other[0])
    wait_for("the half renewed pair to be refused", lambda: counts(w)["failed"] > failed, 25 / SLOW + 5)
    assert serial_shown(w) == serial_of(w.ca["cert"])
    w.live.put(*other)
    wait_for("the renewed pair", lambda: serial_shown(w) == serial_of(w.live.cert), 25 / SLOW + 5)
    assert counts(w)["failed"] == failed + 1, "one complaint for one state of the files"
    assert any("has changed and is in force" in m for _, m in messages(w.proxy.text()))


def test_access_log_is_reopened(tmp_path):
    path = tmp_path / "access.log"
    w = World(proxy={"metrics_listen": ["127.0.0.1:0"]})
    try:
        w.s.proxies[0].stop()
        w.s.config["log"]["access_path"] = str(path)
        proxy = w.s.start_proxy(0)
        w.get("/v2/shop/api/manifests/1.0.0")
        wait_for("a line", lambda: path.exists() and "1.0.0" in path.read_text(), 5)
        path.rename(tmp_path / "access.log.1")
        proxy.p.send_signal(signal.SIGHUP)
        wait_for("the new file", path.exists, 5)
        w.get("/v2/shop/api/manifests/1.1.0")
        wait_for("a line in it", lambda: "1.1.0" in path.read_text(), 5)
    finally:
        w.s.close()


# ---- the admin daemon -------------------------------------------------------------------------------------------------------


def test_admin_reloads_under_load_and_keeps_what_is_good(tmp_path):
    ca = make_ca(tmp_path)
    with live_certificate(**ca) as live, admin_stack(admin={"metrics_listen": ["127.0.0.1:0"], "tls": live.tls}) as s:
        s.api.s.verify = str(ca["ca"])
        metrics = f"http://{(s.dir / 'admin.port').read_text().split()[1]}/metrics"
        scrape = lambda: parse(requests.get(metrics, timeout=10).text)
        count = lambda result: total(scrape(), "pullgate_config_reloads_total", result=result)
        file = s.dir / "pullgate0.yaml"
        good = json.loads(file.read_text())

        def hangup(expect="ok"):
            before, mark = count(expect), len(s.admin.text())
            s.admin.p.send_signal(signal.SIGHUP)
            wait_for(f"a reload that is {expect}", lambda: count(expect) > before, 5)
            return s.admin.text()[mark:]

        assert total(scrape(), "process_open_fds") > 5
        bad, stop = [], threading.Event()

        def client():
            session = requests.Session()
            while not stop.is_set():
                r = session.get(s.admin_base + "/api/v1/customers", headers={"Authorization": "Bearer " + s.token}, verify=str(ca["ca"]), timeout=30)
                if r.status_code != 200:
                    bad.append((r.status_code, r.text))

        threads = [threading.Thread(target=client) for _ in range(3)]
        for t in threads:
            t.start()
        try:
            for i in range(30):
                file.write_text(json.dumps({**good, "limits": {"admin_body_size": f"{64 + i % 5}KiB", "auth_failures_per_minute": 30 + i}}))
                hangup()
        finally:
            stop.set()
            for t in threads:
                t.join()
        assert not bad, bad[:5]

        file.write_text(json.dumps({**good, "limits": {"admin_body_size": "1KiB"}}))
        hangup()
        r = s.api("POST", "/customers", {"slug": "large", "name": "x" * 2000, "email": "a@b.example"})
        assert r.status_code == 413, "the limit is in force"

        file.write_text("limits:\n  admin_body_size: 1 cubit\n")
        told = [m for level, m in messages(hangup("failed")) if level == "error"]
        assert len(told) == 1 and ":2: limits.admin_body_size" in told[0], told

        file.write_text(json.dumps(good))
        s.admin.p.send_signal(signal.SIGUSR1)
        assert s.api("GET", "/customers").status_code == 200, "the access log is opened anew, no more"
        other = pair(ca["cert"].parent, ca, "other")
        live.put(*other)
        hangup()
        ctx = ssl.create_default_context(cafile=str(ca["ca"]))
        host, port = s.admin_base.split("//")[1].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as c, ctx.wrap_socket(c, server_hostname="localhost") as t:
            assert t.getpeercert()["serialNumber"] == serial_of(live.cert)
        s.api.s.close()
