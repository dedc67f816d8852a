"""The client's address behind a front proxy is what licenses, credentials, limits and the access log go by, in whatever form the front tells
it; and nobody else's word is taken."""
import json
import socket

import pytest

from conftest import World
from stack import basic, wait_for
from test_adversarial import parse_responses
from test_proxy_protocol import v1, v2

HOME, AWAY = "203.0.113.9", "198.51.100.7"
FRONT = "127.0.0.2"


def ask(address, client, auth, form, path="/v2/shop/api/manifests/1.0.0", source=FRONT, fields=""):
    host, port = address.rsplit(":", 1)
    header = b""
    if form == "v1":
        header = v1(client)
    elif form == "v2":
        header = v2(client)
    elif form == "xff":
        fields += f"X-Forwarded-For: {client}\r\n"
    elif form == "spoofed":  # the front adds what it saw to what the client wrote
        fields += f"X-Forwarded-For: {HOME if client == AWAY else AWAY}, {client}\r\n"
    with socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0)) as s:
        s.sendall(header + f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {auth}\r\nConnection: close\r\n{fields}\r\n".encode())
        data = b""
        while chunk := s.recv(65536):
            data += chunk
    return parse_responses(data)[0]


@pytest.fixture(scope="module")
def w():
    w = World(proxy={"workers": 2, "trusted_proxies": [FRONT], "proxy_protocol": "accepted"},
              admin={"trusted_proxies": [FRONT], "proxy_protocol": "required", "forwarded_field": "off"}, limits={"auth_failures_per_minute": 3})
    w.home_auth, w.home_license, customer = w.customer_with("home", [{"selector": "all", "value": "*"}], allowed_cidrs=["203.0.113.0/24", "2001:db8::/32"])
    w.cred_auth = basic("globex", w.s.add_credential(w.customer["id"], "office", allowed_cidrs=["203.0.113.0/24"])["secret"])
    wait_for("the licenses", lambda: ask(w.s.address, HOME, w.home_auth, "v2").status == 200 and ask(w.s.address, HOME, w.cred_auth, "v2").status == 200)
    yield w
    w.s.close()


@pytest.mark.parametrize("form", ["v1", "v2", "xff", "spoofed"])
def test_allowed_cidrs(w, form):
    assert ask(w.s.address, HOME, w.home_auth, form).status == 200
    a = ask(w.s.address, AWAY, w.home_auth, form)
    assert a.status == 403 and b"ip_not_allowed" in a.body
    assert ask(w.s.address, HOME, w.cred_auth, form).status == 200
    assert ask(w.s.address, AWAY, w.cred_auth, form).status in (401, 403)
    if form != "spoofed":
        assert ask(w.s.address, "2001:db8::9", w.home_auth, form).status == 200


def test_nobody_elses_word(w):
    assert ask(w.s.address, HOME, w.home_auth, "xff", source="127.0.0.1").status == 403
    assert ask(w.s.address, HOME, w.home_auth, "v2", source="127.0.0.1").status == 400
    a = ask(w.s.address, AWAY, w.home_auth, "v2", fields=f"X-Forwarded-For: {HOME}\r\nForwarded: for={HOME}\r\n")
    assert a.status == 403  # the client that the header names is not trusted itself


@pytest.mark.parametrize("form", ["v2", "xff"])
def test_failed_sign_ins_count_by_client(w, form):
    noisy, quiet = ("203.0.113.66", "203.0.113.67") if form == "v2" else ("203.0.113.68", "203.0.113.69")
    wrong = [basic(f"x{i}", f"pgc_{form}{i}") for i in range(8)]
    assert 429 in [ask(w.s.address, noisy, a, form).status for a in wrong]
    assert ask(w.s.address, quiet, wrong[0], form).status == 401
    assert ask(w.s.address, noisy, w.home_auth, form).status == 200  # right credentials always pass


def test_access_log(w):
    for form, client in (("v2", "203.0.113.31"), ("v1", "203.0.113.32"), ("xff", "203.0.113.33"), ("spoofed", "198.51.100.34")):
        ask(w.s.address, client, w.home_auth, form)
        wait_for(f"the access line of {client}", lambda: f'"{client}"' in w.s.proxies[0].text())
    lines = [json.loads(x) for x in w.s.proxies[0].text().splitlines() if '"access"' in x and "203.0.113.31" in x]
    assert all(x["status"] == 200 for x in lines)


def test_each_daemon_believes_by_its_own_keys(w):
    admin = w.s.admin_base.split("//")[1]
    token = "Bearer " + w.s.token
    assert ask(admin, "203.0.113.51", token, "v2", "/api/v1/customers").status == 200
    assert ask(admin, "203.0.113.52", token, "v2", "/api/v1/customers", fields="X-Forwarded-For: 203.0.113.53\r\n").status == 200
    assert ask(admin, HOME, token, "xff", "/api/v1/customers").status == 400  # required there, and not sent
    assert ask(admin, "203.0.113.54", token, "xff", "/api/v1/customers", source="127.0.0.1").status == 200
    assert ask(admin, HOME, token, "v2", "/api/v1/customers", source="127.0.0.1").status == 400
    for client in ("203.0.113.51", "203.0.113.52"):
        wait_for("the access line", lambda: f'"{client}"' in w.s.admin.text())
    assert '"203.0.113.53"' not in w.s.admin.text() and '"203.0.113.54"' not in w.s.admin.text()
