"""The command line does what its help says, against the running API; its exit codes are what scripts branch on."""
import json
import os
import subprocess

import pytest

from stack import BIN, Stack, basic


@pytest.fixture(scope="module")
def s():
    s = Stack()
    s.registry.push_image("acme/api", "1.4.2", [b"layer" * 100])
    s.registry.push_image("acme/api", "2.0.0", [b"layer2" * 100])
    yield s
    s.close()


def cli(s, *args, stdin=None, token=True, env=None):
    full = {**os.environ, "HOME": str(s.dir), "PULLGATE_URL": s.admin_base, **(env or {})}
    full["ASAN_OPTIONS"] = "detect_leaks=0"  # one command a process: what it holds ends with it
    if token:
        full["PULLGATE_TOKEN_FILE"] = str(s.dir / "bootstrap")
    return subprocess.run([str(BIN / "pullgate"), *args], capture_output=True, text=True, env=full, input=stdin, timeout=60)


def test_a_sale_from_the_command_line(s):
    (s.dir / "pw").write_text(s.registry.password)
    r = cli(s, "upstreams", "create", "--name", "private", "--url", s.registry.url, "--username", s.registry.user, "--password-file", str(s.dir / "pw"))
    assert r.returncode == 0 and "ups_" in r.stdout and s.registry.password not in r.stdout, r
    assert cli(s, "upstreams", "test", "private").returncode == 0
    r = cli(s, "applications", "create", "--slug", "shop", "--name", "Shop", "--repository", "shop/api=private:acme/api")
    assert r.returncode == 0, r
    assert cli(s, "customers", "create", "--slug", "globex", "--name", "Globex").returncode == 0
    r = cli(s, "--json", "credentials", "create", "--customer", "globex", "--name", "ci")
    secret = json.loads(r.stdout)["secret"]
    r = cli(s, "licenses", "create", "--name", "Globex Prod", "--customer", "globex", "--application", "shop", "--grant", "range:^1.4",
            "--expires-at", "2099-03-01", "--status", "active")
    assert r.returncode == 0 and "active" in r.stdout, r
    s.wait_status("/v2/shop/api/manifests/1.4.2", basic("globex", secret), 200)
    table = cli(s, "licenses", "list")
    assert table.returncode == 0 and "Globex Prod" in table.stdout and "range:^1.4" in table.stdout and table.stdout.splitlines()[0].startswith("ID")
    assert json.loads(cli(s, "--json", "licenses", "list", "--status", "active").stdout)[0]["name"] == "Globex Prod"
    r = cli(s, "licenses", "suspend", "Globex Prod", "--reason", "unpaid")
    assert r.returncode == 0 and "suspended" in r.stdout, r
    s.wait_status("/v2/shop/api/manifests/1.4.2", basic("globex", secret), 403)
    assert cli(s, "licenses", "reinstate", "Globex Prod").returncode == 0
    r = cli(s, "licenses", "update", "Globex Prod", "--expires-at", "2098-01-01")
    assert r.returncode == 0 and "2098-01-01" in r.stdout, r


def test_explain_says_why(s):
    r = cli(s, "explain", "--customer", "globex", "--repository", "shop/api", "--reference", "1.4.2")
    assert r.returncode == 0 and r.stdout.startswith("allow (granted)"), r
    r = cli(s, "explain", "--customer", "globex", "--repository", "shop/api", "--reference", "2.0.0")
    assert r.returncode == 3 and "version_not_granted" in r.stdout and "does not include version 2.0.0" in r.stdout, r


def test_exit_codes_and_one_line_errors(s):
    cases = [
        (("licenses", "get", "lic_00000000000000000000000000"), 1, "not"),
        (("licenses", "create", "--nonsense", "x"), 2, "--nonsense"),
        (("frobnicate",), 2, "frobnicate"),
        (("customers", "create", "--slug", "globex", "--name", "Again"), 1, "slug"),
        (("licenses", "create", "--name", "Bad", "--customer", "globex", "--application", "shop", "--grant", "range:^^1"), 1, "grants[0].value"),
    ]
    for args, code, text in cases:
        r = cli(s, *args)
        assert r.returncode == code and text in r.stderr and r.stderr.count("\n") == 1 and r.stderr.startswith("pullgate: "), r
    assert cli(s, "customers", "list", env={"PULLGATE_TOKEN": "pga_wrong", "PULLGATE_TOKEN_FILE": ""}, token=False).returncode == 3
    assert cli(s, "customers", "list", env={"PULLGATE_URL": "http://127.0.0.1:9"}).returncode == 4
    assert cli(s, "customers", "list", token=False).returncode == 2


def test_a_profile_that_others_may_read_is_refused(s):
    d = s.dir / ".config" / "pullgate"
    d.mkdir(parents=True)
    (d / "profile").write_text(f"url={s.admin_base}\ntoken_file={s.dir}/bootstrap\n")
    os.chmod(d / "profile", 0o644)
    r = cli(s, "customers", "list", token=False)
    assert r.returncode == 2 and "chmod 600" in r.stderr
    os.chmod(d / "profile", 0o600)
    assert "globex" in cli(s, "customers", "list", token=False).stdout


def test_any_request(s):
    r = cli(s, "api", "GET", "/customers?limit=1")
    assert r.returncode == 0 and json.loads(r.stdout)["items"][0]["slug"] == "globex"
    r = cli(s, "api", "POST", "/customers", "-", stdin='{"slug":"initech","name":"Initech"}')
    assert r.returncode == 0 and json.loads(r.stdout)["slug"] == "initech", r
