"""The command line does what its help says, against the running API; its exit codes are what scripts branch on."""
import json
import os
import pathlib
import shutil
import subprocess

import pytest
import requests

from stack import BIN, Stack, basic

ROOT = pathlib.Path(__file__).resolve().parents[2]


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


def operations(s):
    doc = requests.get(s.admin_base + "/api/v1/openapi.json").json()
    return {op["operationId"] for path, methods in doc["paths"].items() if path.startswith("/api/v1") for op in methods.values() if "." in op["operationId"]}


def test_every_operation_of_the_api_is_a_command(s):
    seen = set()
    for resource in sorted({o.split(".")[0] for o in operations(s)}):
        r = cli(s, "help", resource)
        assert r.returncode == 0, r
        for line in r.stdout.splitlines():
            if line.startswith("  pullgate "):
                seen.add(resource + "." + line.split()[2].replace("-", "_"))
    assert operations(s) <= seen, operations(s) - seen


def test_completions_name_commands_options_and_objects(s):
    words = lambda *a: set(cli(s, "completion", "words", *a).stdout.split())
    assert {"licenses", "customers", "plans", "apply", "doctor"} <= words("")
    assert {"list", "renew", "suspend"} <= words("licenses", "")
    assert {"--period", "--reason", "--dry-run", "Globex"} & words("licenses", "renew", "") >= {"--period", "--reason", "--dry-run"}
    for shell in ("bash", "zsh", "fish"):
        assert "pullgate completion words" in cli(s, "completion", shell).stdout
    r = subprocess.run(["bash", "-n"], input=cli(s, "completion", "bash").stdout, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_options_take_what_the_api_takes(s):
    r = cli(s, "--json", "customers", "create", "--slug", "opts", "--name", "Opts", "--metadata", "region=eu", "--metadata", "seats=5", "--disabled", "true")
    assert r.returncode == 0, r
    made = json.loads(r.stdout)
    assert made["metadata"] == {"region": "eu", "seats": 5} and made["disabled"] is True
    assert cli(s, "customers", "update", "opts", "--disabled", "maybe").returncode == 2
    assert cli(s, "customers", "update", "opts", "--disabled", "false", "extra").returncode == 2
    assert cli(s, "customers", "update", "nobody-there", "--disabled", "false").returncode == 1
    r = cli(s, "upstreams", "update", "private", "--password", "in the process list")
    assert r.returncode == 2 and "--password-file" in r.stderr, r
    assert cli(s, "customers", "delete", "opts").returncode == 0


APPLY = """
customers:
  - slug: initrode
    name: Initrode GmbH
    metadata: {region: eu, seats: 5}
applications:
  - slug: desk
    name: Desk
    repositories:
      - {name: desk/api, upstream: private, upstream_repository: acme/api, kind: image}
plans:
  - slug: desk-pro
    name: Desk Pro
    application: desk
    type: subscription
    period: P1M
    grants: [{selector: range, value: ^1.4}]
licenses:
  - name: Prod
    customer: initrode
    application: desk
    status: active
    expires_at: 2099-03-01
    grants:
      - {selector: range, value: ^1.4}
"""


def test_apply_makes_it_so_and_a_second_time_does_nothing(s):
    f = s.dir / "desk.yaml"
    f.write_text(APPLY)
    look = cli(s, "apply", "-f", str(f), "--dry-run")
    assert look.returncode == 0 and look.stdout.count("\n+ ") + look.stdout.startswith("+ ") == 4 and "4 would be made" in look.stdout, look
    assert not [c for c in s.api.get("/customers?limit=100")["items"] if c["slug"] == "initrode"], "a dry run makes nothing"
    assert "4 made" in cli(s, "apply", "-f", str(f)).stdout
    again = cli(s, "apply", "-f", str(f))
    assert again.returncode == 0 and again.stdout.strip() == "0 made, 0 changed, 4 as they were", again
    f.write_text(APPLY.replace("Initrode GmbH", "Initrode AG").replace("\n      - {selector: range, value: ^1.4}", "\n      - {selector: range, value: ^1.5}"))
    look = cli(s, "apply", "-f", str(f), "--dry-run")
    assert "name: Initrode GmbH -> Initrode AG" in look.stdout and "range:^1.5" in look.stdout and "0 would be made, 2 would change" in look.stdout, look
    r = cli(s, "apply", "-f", str(f))
    assert r.returncode == 1 and "reason" in r.stderr, r
    r = cli(s, "apply", "-f", str(f), "--reason", "1.4 is over")
    assert r.returncode == 0, r
    assert "0 made, 0 changed" in cli(s, "apply", "-f", str(f)).stdout
    lic = [i for i in s.api.get("/licenses?limit=100")["items"] if i["name"] == "Prod"][0]
    assert [g["value"] for g in lic["grants"]] == ["^1.5"]
    for bad, text in (("customers: {}", "list"), ("cutomers: []", "cutomers"), ("a: [", "line"), ("- x", "object"), ("a: 1\na: 2", "twice")):
        f.write_text(bad)
        r = cli(s, "apply", "-f", str(f))
        assert r.returncode == 2 and text in r.stderr and r.stderr.count("\n") == 1, r


def test_the_manual_page_names_every_command_of_the_help(s):
    page = (ROOT / "docs/pullgate.1").read_text().replace("\\-", "-")
    for word in ("apply", "explain", "api", "completion", "doctor", "backup", "restore", "--dry-run", "--json", "--token-file", "PULLGATE_TOKEN", "PULLGATE_URL", ".config/pullgate/profile"):
        assert word in page, word
    r = subprocess.run(["man", "-l", "--warnings", str(ROOT / "docs/pullgate.1")], capture_output=True, text=True) if shutil.which("man") else None
    assert r is None or (r.returncode == 0 and not r.stderr), r
