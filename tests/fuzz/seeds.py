#!/usr/bin/python3
"""Makes seeds for the fuzz targets: tests/fuzz/seeds.py DIRECTORY. From the adversarial rows, the tables of the unit tests, and
documents as registries send them. What they lead to is kept, minimised, in corpus/; this is for starting anew."""
import base64
import hashlib
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = pathlib.Path(sys.argv[1])
D = "sha256:" + "ab" * 32


def put(target, data, prefix=b""):
    data = data.encode("latin1", "replace") if isinstance(data, str) else data
    data = prefix + data
    d = OUT / target
    d.mkdir(parents=True, exist_ok=True)
    (d / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


WORDS = {"{HOST}": "registry.example", "{CUST_AUTH}": "Basic dTpw", "{GRANTED_REPO}": "shop/api", "{GRANTED_TAG}": "1.0.0", "{UNGRANTED_TAG}": "2.0.0",
         "{GRANTED_DIGEST}": D}


def filled(text):
    for k, v in WORDS.items():
        text = text.replace(k, v)
    return re.sub(r"\{[A-Z_]+\}", "x", text)


def strings(path):
    """C string literals of a unit test: its tables."""
    for s in re.findall(r'"((?:[^"\\]|\\.)*)"', (ROOT / path).read_text()):
        try:
            s = s.encode().decode("unicode_escape")
        except UnicodeDecodeError:
            continue
        if 0 < len(s) < 300:
            yield s


def op(kind=0, client=0, who=0, route=0, repo=0, ref=0, flags=0, arg=0, at=0, patch=b"", over=False):
    return bytes([kind, client, who, route, repo, ref, flags, arg, at, len(patch) | (64 if over else 0)]) + patch


def heads():
    for line in (ROOT / "tests/integration/adversarial/cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        raw = case.get("raw")
        if raw and len(raw) < 8000:
            raw = filled(raw).encode("latin1", "replace")
            put("head", raw)
            put("edge", raw, bytes([17, 0]))
            m = re.match(rb"[A-Z]+ (\S+) ", raw)
            if m:
                put("route", m.group(1), b"\0")
            for p in range(0, min(len(raw), 240), 63):
                put("proxy", op(who=1, ref=1) + b"".join(op(10, 1, 1, patch=raw[i:i + 63]) for i in range(0, min(len(raw), 1000), 63)))
                break
    for s in list(strings("tests/unit/test_head.c")):
        put("head", s)
        put("edge", s, bytes([3, 0]))
    get = "GET /v2/a/manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n"
    put("edge", get * 3, bytes([50, 0]))
    put("edge", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + get, bytes([60, 0]))
    put("edge", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello" + get, bytes([90, 0]))
    put("edge", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n" + get, bytes([60, 0]))
    put("edge", "HEAD /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get, bytes([20, 0]))


def words():
    for s in strings("tests/unit/test_oci.c"):
        for mode in range(5):
            put("route", s, bytes([mode]))
    put("route", "v{version}-x 1.2.3+b", b"\2")
    for s in ["bytes=0-0", "bytes=5-", "bytes=-7", "bytes=0-1,3-4"]:
        put("route", s, b"\3")
    put("route", "n=10&last=a%20b&scope=repository:a/b:pull", b"\4")
    for s in strings("tests/unit/test_base.c"):
        put("values", s, b"i")
        put("values", s, b"d")
    for s in ["2026-03-01T23:59:59Z", "2026-03-01T23:59:59.123+02:00", "2024-02-29T00:00:00-00:30", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]:
        put("values", s, b"i")
    for zone in range(7):
        for day in ["2026-03-29", "2026-10-25", "2011-12-30", "2024-02-29", "2026-01-01T10:00:00+01:00"]:
            put("values", day, b"e" + bytes([zone]))
    for s in ["250ms", "5s", "3m", "2h", "7d", "64KiB", "50GiB", "512", "P1M", "P1Y2M3W4D", "P14D", "0", "99999999999999999999d"]:
        put("values", s, b"d")
    for s in strings("tests/unit/test_semver.c"):
        put("values", s, b"v")
        put("values", s, b"r")
        put("values", s, b"g")
    for s in ["2024.*-lts 2024.1-lts", "[a-c]?* b1x", "*a*b*c xaxbxc", "[!0-9]* v1"]:
        put("values", s, b"g")
    for s in ["10.0.0.0/8", "2001:db8::/32", "::ffff:1.2.3.4/120", "::1", "1.2.3.4", "1.2.3.4/33"]:
        put("values", s, b"n")
    for s in strings("tests/unit/test_credential.c"):
        put("values", s, b"k")
        put("auth", s, b"p")


def sign_in():
    for s in strings("tests/unit/test_token.c"):
        put("auth", s, b"s")
        put("token", s, b"\0\0\0\0")
    for s in ["repository:shop/api:pull", "repository:a:pull,push repository:b/c:* registry:catalog:*", "repository:localhost:5000/a:pull"]:
        put("auth", s, b"s")
    for s in strings("tests/unit/test_field.c"):
        put("auth", s, b"c")
    put("auth", 'Bearer realm="https://a.example/token",service="r",scope="repository:a/b:pull", Basic realm="x"', b"c")
    put("auth", "Basic " + base64.b64encode(b"u:pgc_x").decode(), b"b")
    put("auth", "u:3X9F2K-ABCDEF-ABCDEF-ABCDEF", b"p")
    claims = {"iss": "i", "aud": "a", "sub": "s", "cred": "00" * 32, "iat": 1000, "nbf": 1000, "exp": 1300, "jti": "1",
              "access": [{"type": "repository", "name": "shop/api", "actions": ["pull"]}]}
    put("token", json.dumps(claims), b"\1")
    for k, v in [("exp", 1100), ("exp", 10 ** 18), ("iat", -1), ("access", []), ("aud", ["a"]), ("nbf", 1131), ("cred", "x"), ("exp", 1300.5)]:
        put("token", json.dumps(dict(claims, **{k: v})), b"\1")
    for how in range(1, 12):
        put("token", bytes([0, how, 100, 0]) + b"A")
    head = '{"alg":"EdDSA","kid":"65b60673d6ed884b","typ":"pullgate-license+jws"}'
    for payload in ["{}", '{"a":1}', '{"a":1,"a":1}', "[]", '{"a":[[[[1]]]]}']:
        put("jws", head + "\n" + payload, b"\0")
    for h in [head.replace("EdDSA", "none"), head.replace("}", ',"crit":[]}'), head.replace("kid", "jku")]:
        put("jws", h + "\n{}", b"\0")
    for how in range(3):
        put("jws", bytes([1, 100, 0, how]) + b"A")
    for s in strings("tests/unit/test_jws.c"):
        put("jws", s, b"\2")


def manifests():
    oci, idx = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
    dm, dl = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"
    blob = lambda n, t="application/vnd.oci.image.layer.v1.tar+gzip": {"mediaType": t, "digest": "sha256:" + f"{n:064x}", "size": n}
    image = {"schemaVersion": 2, "mediaType": oci, "config": blob(1, "application/vnd.oci.image.config.v1+json"), "layers": [blob(2), blob(3)]}
    kid = lambda n, t=oci, **p: {"mediaType": t, "digest": f"@{n}", "size": 500, "platform": dict({"os": "linux", "architecture": "amd64"}, **p)}
    index = {"schemaVersion": 2, "mediaType": idx, "manifests": [kid(1), kid(2, architecture="arm64", variant="v8"), kid(3, os="unknown", architecture="unknown")]}
    sig = {"schemaVersion": 2, "mediaType": oci, "artifactType": "application/vnd.dev.cosign", "config": blob(4), "layers": [], "subject": {"mediaType": oci, "digest": "@2", "size": 1},
           "annotations": {"a": "b"}}
    dumps = lambda *docs: b"\0".join(json.dumps(d, separators=(",", ":")).encode() for d in docs)
    for t in ["", oci, idx, dm, dl, "text/plain", "application/json; charset=utf-8", "application/vnd.docker.distribution.manifest.v1+prettyjws"]:
        put("manifest", t.encode() + b"\n" + dumps(image))
        put("manifest", t.encode() + b"\n" + dumps(index, image, dict(image, mediaType=dm), image))
    put("manifest", b"\n" + dumps(index, dict(index, manifests=[kid(3, idx), kid(4, idx)]), image, dict(index, manifests=[kid(4), kid(5)]), image, image))
    put("manifest", b"\n" + dumps(sig, sig, image))
    put("manifest", b"\n" + dumps(image, dict(sig, subject={"mediaType": oci, "digest": "@0", "size": 1})))
    put("manifest", b"\n" + dumps(dict(image, manifests=[kid(1)]), image))
    put("manifest", b"\n" + dumps({"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "artifactType": "x", "blobs": [blob(7)]}))
    put("manifest", b"\n" + b'{"schemaVersion":2,"config":' + json.dumps(blob(1)).encode() + b',"layers":[*?[' + json.dumps(blob(2)).encode() + b',]' + json.dumps(blob(3)).encode() + b"]}")
    put("manifest", b"\n" + b'{"a":"*?[aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]"}')
    put("manifest", b"\n" + b'{"schemaVersion":2,"layers":*>[[]' + b"*>[]]" + b"}")


def stored():
    ent = {"customer_id": "cus_1", "customer_slug": "a", "vendor_id": "ven_1", "disabled": False, "renew_url": "", "support_contact": "", "licenses": [
        {"id": "lic_1", "name": "n", "application_id": "app_1", "application_slug": "s", "status": "active", "status_reason": "", "starts_at": 0, "expires_at": 0, "grace_days": 0,
         "updates_until": 0, "on_expiry": "block", "allowed_cidrs": ["10.0.0.0/8"], "repositories": ["shop/api"], "upstream_credential_id": "", "quota_exceeded": False,
         "grants": [{"id": "grt_1", "selector": s, "value": v, "include_prerelease": False, "not_before": 0, "not_after": 0, "granted_at": 0, "on_move": "pin", "repositories": [],
                     "pins": [{"repository": "shop/api", "tag": "1", "digest": D}]} for s, v in
                    [("range", "^1.2"), ("exact", "1.0.0"), ("glob", "1.*"), ("digest", D), ("all", ""), ("channel", "stable")]]}]}
    put("cache_reply", json.dumps(ent), b"d")
    put("cache_reply", json.dumps({"time": 1, "buckets": [i % 7 for i in range(1024)]}).replace(" ", ""), b"a")
    put("cache_reply", "3 c:cus_1\n9 k:aa\n9 r:shop/api\n", b"b")
    put("cache_reply", f"100\nm {D} application/vnd.oci.image.index.v1+json 500\nb sha512:{'cd' * 64} - 0\n", b"c")
    put("cache_reply", json.dumps({"id": "ups_1", "url": "https://a.example/x", "username": "u", "password_sealed": "", "ca": "", "redirects": "pass",
                                   "redirect_hosts": ["*.b.example"], "realm": "https://c.example/t"}), b"e")
    for r in [b"+OK\r\n", b"-ERR x\r\n", b":5\r\n", b"$-1\r\n", b"*-1\r\n", b"$3\r\nabc\r\n", b"*2\r\n$1\r\na\r\n*1\r\n-E\r\n", b"*1000000000\r\n", b"$999999999999\r\n",
              b"*3\r\n$7\r\nmessage\r\n$11\r\npg:announce\r\n$1\r\nx\r\n", b"*1\r\n" * 9 + b":1\r\n", b"$80\r\n1 5 " + b"a" * 64 + b" payload\r\n"]:
        put("cache_reply", r, b"0")
        put("cache_reply", r, b"1")
    for mode in (0, 2, 4):
        for how in range(4):
            put("seal", bytes([mode, how, 5, 0]) + b"A")
    put("seal", b"\3place\0secret")
    put("seal", b"\1ups_1|password")
    put("seal", b"\5\3\0head")
    for s in strings("tests/unit/test_upstream_dance.py") if (ROOT / "tests/unit/test_upstream_dance.py").exists() else []:
        put("upstream_url", s)
    for s in ["https://storage.example/x?sig=1", "//other.example:8443/x", "/v2/a/blobs/x", "http://reg.example/x", "https://auth.example/token?a=b", "https://user@storage.example/",
              "https://storage.example.evil/", "https://storage.example@evil/", "https://STORAGE.example:443/..", "https://[::1]/", "https://reg.example:443\\@evil/", "?x", "#y",
              'Bearer realm="https://auth.example/token",service="s"', '</v2/a/tags/list?n=1&last=x>; rel="next"', "bytes 0-9/100", "https://reg.example%2eevil/"]:
        put("upstream_url", s)
    for s in ["plain", "quote\" back\\slash", "a\nb\tc\0d", "\xff\xc3\xa4\xe2\x82\xac", "<script>&amp;'", "\x1b[31m\x7f", "\xed\xa0\x80", "x" * 300]:
        put("escape", s, bytes([200, 100]))
        put("escape", s, bytes([5, 3]))
    put("config", (ROOT / "conf/pullgate.yaml").read_bytes().replace(b"_file", b"_fle"))
    put("config", "proxy:\n  listen: [\"127.0.0.1:0\", \"unix:/tmp/x\"]\n  workers: 2\nlimits: {connections: 5, head: 8KiB, head_deadline: 5s}\ncache:\n  max_staleness: 5s\n")
    for s in strings("tests/unit/test_config.c"):
        put("config", s)


def fronts():
    sig = b"\r\n\r\n\0\r\nQUIT\n"
    v4, v6 = bytes([192, 0, 2, 1, 10, 0, 0, 1, 1, 2, 3, 4]), bytes(range(36))
    for cmd in (0x20, 0x21, 0x22, 0x11):
        for fam, body in ((0x11, v4), (0x21, v6), (0x31, b"u" * 216), (0, b""), (0x12, v4), (0x11, v4 + b"\x04\0\2ab"), (0x11, v4 + b"\x04\0\5ab"), (0x11, v4[:5])):
            put("front", sig + bytes([cmd, fam]) + len(body).to_bytes(2, "big") + body + b"GET / HTTP/1.1\r\n", b"p")
    for s in ["TCP4 192.0.2.1 10.0.0.1 1 2", "TCP6 2001:db8::1 ::1 65535 443", "UNKNOWN", "UNKNOWN ffff::1 x", "TCP4 0.0.0.0 1.1.1.1 0 0", "TCP4 1.2.3.4 1.1.1.1 70000 1", "TCP4 1.2.3.04 1.1.1.1 1 1"]:
        put("front", f"PROXY {s}\r\nGET", b"p")
    for s in ["192.0.2.1", "192.0.2.1, 10.0.0.1", "1.1.1.1, 192.0.2.1:80, 10.1.1.1", "[2001:db8::5]:80, 10.0.0.1", "unknown, 10.0.0.1", "a, 192.0.2.1", "::1", ",,10.0.0.1"]:
        put("front", s, b"x")
    for s in ["for=192.0.2.1", 'for=1.1.1.1, for="[2001:db9::1]:4711";proto=https, for=10.0.0.1', "for=_hidden", 'by=x;for="192.0.2.1:80"', "for=192.0.2.1;for=1.1.1.1", "proto=http"]:
        put("front", s, b"f")
    for s in strings("tests/unit/test_front.c") if (ROOT / "tests/unit/test_front.c").exists() else []:
        for kind in b"pxf":
            put("front", s, bytes([kind]))


def api():
    bodies = {
        "POST /api/v1/customers": ['{"slug":"c1","name":"C","email":"a@b.example","metadata":{"a":1},"disabled":true}', "{}", '{"name":"\u00c4 \\u0001"}'],
        "PATCH /api/v1/customers/{cus}": ['{"name":"N","external_id":null}', '{"disabled":true}', "{}"],
        "DELETE /api/v1/customers/{cus2}": [""],
        "POST /api/v1/customers/{cus}/credentials": ['{"name":"ci","expires_at":"2030-01-01","allowed_cidrs":["10.0.0.0/8"]}', '{"name":"x","license_id":"{lic}"}'],
        "POST /api/v1/licenses": [
            '{"customer_id":"{cus2}","application_id":"{app}","name":"b","status":"active","grants":[]}',
            '{"customer_id":"{cus2}","application_id":"{app}","name":"b","status":"active","grants":[{"selector":"exact","value":"2.0.0","on_move":"pin"}]}',
            '{"customer_id":"{cus2}","application_id":"{app}","name":"b","grants":[{"selector":"all","value":""}],"expires_at":"2026-12-31","grace_days":5,"period":"P1M"}',
            '{"customer_id":"{cus2}","application_id":"{app}","name":"b","status":"active","starts_at":"2026-01-01","updates_until":"2026-06-01","on_expiry":"keep_released",'
            '"allowed_cidrs":["10.0.0.0/8"],"metadata":{"x":[1,{}]},"upstream_credential_id":"{ups}","grants":[{"selector":"glob","value":"2.*","repositories":["shop/api"],'
            '"not_before":"2026-01-01","not_after":"2027-01-01","note":"n","include_prerelease":true},{"selector":"digest","value":"' + D + '"},{"selector":"channel","value":"stable"}]}'],
        "PATCH /api/v1/licenses/{lic}": ['{"expires_at":null}', '{"name":"other","grace_days":3}', '{"allowed_cidrs":[]}', '{"allowed_cidrs":["192.0.2.0/24"]}', "{}"],
        "POST /api/v1/licenses/{lic}/grants": ['{"selector":"range","value":">=2 <3"}', '{"selector":"all"}', '{"selector":"exact","value":""}', '{"selector":"range","value":"","repositories":[]}'],
        "PATCH /api/v1/licenses/{lic}/grants/{grt}": ['{"not_after":"2026-01-01"}', '{"note":"x"}'],
        "DELETE /api/v1/licenses/{lic}/grants/{grt}": [""],
        "POST /api/v1/applications": ['{"slug":"a2","name":"A","description":"d\\n","repositories":[{"name":"a2/x","upstream_id":"{ups}","upstream_repository":"x/y","kind":"chart"}]}'],
        "PATCH /api/v1/applications/{app}": ['{"name":"N","metadata":{}}'],
        "POST /api/v1/applications/{app}/repositories": ['{"name":"shop/web","upstream_id":"{ups}","upstream_repository":"acme/web","tag_template":"v{version}"}'],
        "PATCH /api/v1/applications/{app}/repositories/{rep}": ['{"tag_template":"{version}-x"}', "{}"],
        "POST /api/v1/applications/{app}/versions": ['{"version":"2.0.0","released_at":"2026-01-01","channel":"stable","notes":"n"}'],
        "PUT /api/v1/applications/{app}/versions/2.0.0": ['{"channel":"beta"}'],
        "PATCH /api/v1/upstreams/{ups}": ['{"password":"other","redirects":"pass","redirect_hosts":["cdn.example","*.s3.example"],"realm":"https://auth.example/token"}', '{"url":"http://x:5000/p"}'],
        "POST /api/v1/upstreams": ['{"name":"u2","url":"https://reg.example","ca":""}'],
        "PATCH /api/v1/vendors/ven_1": ['{"name":"V2","time_zone":"Asia/Tokyo","renew_url":"https://a.example","support_contact":"x"}'],
        "POST /api/v1/tokens": ['{"name":"t2","role":"viewer","expires_at":"2030-01-01T00:00:00Z"}'],
        "GET /api/v1/licenses?customer_id={cus}&limit=1": [""], "GET /api/v1/customers": [""], "GET /api/v1/licenses/{lic}/history": [""],
        "GET /api/v1/explain?customer={cus}&repository=shop/api&reference=1.0.0": [""],
    }
    for a in ["activate", "suspend", "reinstate", "revoke", "renew", "extend", "rotate-key"]:
        bodies[f"POST /api/v1/licenses/{{lic}}/{a}"] = ["{}", '{"reason":"r"}', '{"period":"P1M"}', '{"expires_at":"2030-01-01"}']
    every = [f"{line}\n{b}" for line, list_ in bodies.items() for b in list_]
    for e in every:
        put("admin", e)
    put("admin", "\0".join(every[:12]))
    ordered = '{"customer_id":"{cus}","plan_id":"{pln}","instances":2,"users":1,"coupon":"CODE","period":"P1Y"}'
    sold = '{"customer_id":"{cus}","plan_id":"{pln}","name":"s"'
    for sequence in [
        ["POST /api/v1/orders\n" + ordered, 'POST /api/v1/orders/{last}/approve\n{"reason":"r"}'],
        ["POST /api/v1/orders\n" + ordered, "POST /api/v1/orders/{last}/cancel\n{}", "GET /api/v1/orders?status=cancelled\n"],
        ['POST /api/v1/licenses/{lic}/change-plan\n{"plan_id":"{pln}","effective":"next_period"}', "GET /api/v1/licenses/{lic}/scheduled-changes\n",
         'POST /api/v1/licenses/{lic}/change-plan\n{"plan_id":"{pln}"}'],
        [f"PUT /api/v1/licenses/by-external/aws/1\n{sold}}}", f'PUT /api/v1/licenses/by-external/aws/1\n{sold},"status":"suspended"}}'],
        ['POST /api/v1/plans\n{"slug":"t","name":"T","application_id":"{app}","type":"trial","trial_days":3,"grants":[{"selector":"all"}],"limits":{"pulls":3,"custom":{"a":1}},'
         '"price":{"amount":"1","currency":"JPY"}}', 'PATCH /api/v1/plans/{last}\n{"trial_days":5}', 'POST /api/v1/licenses\n{"customer_id":"{cus}","plan_id":"{last}","name":"t"}'],
        ['POST /api/v1/coupons\n{"code":"G","kind":"grant","value":{"selector":"exact","value":"2.0.0"},"max_uses":1,"plan_ids":["{pln}"]}', 'PATCH /api/v1/coupons/{last}\n{"max_uses":2}',
         'POST /api/v1/orders\n{"customer_id":"{cus}","plan_id":"{pln}","coupon":"G"}', "POST /api/v1/orders/{last}/approve\n{}"],
        ['POST /api/v1/coupons\n{"code":"F","kind":"free_period","value":"P14D"}', 'POST /api/v1/orders\n{"customer_id":"{cus}","plan_id":"{pln}","coupon":"F"}',
         "POST /api/v1/orders/{last}/approve\n{}"],
    ]:
        put("admin", "\0".join(sequence))
    put("admin", "\0".join(f"POST /api/v1/licenses/{{lic}}/{a}\n{{}}" for a in ["suspend", "reinstate", "extend", "revoke", "reinstate"]))
    for line in (ROOT / "tests/integration/adversarial/cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        raw = case.get("raw", "")
        if case["id"].startswith("ADM") and raw and "\r\n\r\n" in raw:
            head, body = raw.split("\r\n\r\n", 1)
            put("admin", filled(head.split(" HTTP/")[0]) + "\n" + filled(body))


def proxies():
    for who in range(11):
        s = b"".join(op(who=who, repo=1 if r == 3 else 0, ref=r) for r in range(4))
        s += b"".join(op(who=who, route=2, ref=r) for r in (0, 3, 8))
        s += b"".join(op(who=who, route=1, ref=r) for r in (3, 6, 7, 12, 16))
        s += op(who=who, route=3) + op(who=who, route=3, repo=1) + op(who=who, route=5)
        put("proxy", s)
    for change in range(7):  # before, after, and back
        s = b""
        for again in range(3):
            for who in (1, 2, 3, 4, 5, 6):
                s += op(client=who % 4, who=who, route=0, ref=again % 4, repo=0) if who != 3 else op(client=3, who=3, route=0, repo=1, ref=3)
            s += op(12, change)
        put("proxy", s)
    for change in (7, 0):  # time goes by
        put("proxy", op(who=10, ref=0) + op(who=10, route=2, ref=8) + op(who=1, client=1, ref=0) + op(12, change) + op(who=10, ref=0) + op(who=10, route=2, ref=8)
            + op(who=1, client=1, ref=0) + op(who=10, client=2, route=1, ref=12))
    for fault in range(1, 19):
        put("proxy", op(13, fault) + b"".join(op(who=6, route=r, ref=i) for r, i in ((0, 0), (1, 6), (2, 0), (2, 3), (3, 0), (4, 6))) + op(13, 0) + op(who=6, ref=0) + op(who=6, route=2, ref=9))
    for fault in range(1, 8):
        put("proxy", op(14, fault) + op(who=1, ref=0) + op(who=4, ref=2, client=1) + op(14, 0) + op(who=1, ref=0))
        put("proxy", op(who=1, ref=0) + op(12, 0) + op(14, fault) + op(who=1, ref=0))
    for flags in (1, 2, 4, 16, 32, 64, 128, 3, 33):
        put("proxy", b"".join(op(who=6, route=r, ref=i, flags=flags, arg=flags * 7 % 256) for r, i in ((0, 0), (1, 6), (2, 0), (2, 11), (3, 0), (6, 0))))
    put("proxy", op(who=1, route=7) + op(who=1, ref=0, flags=8) + op(who=1, repo=1, ref=3, flags=8))
    put("proxy", b"".join(op(who=6, route=2, ref=i, client=i % 4, flags=32) for i in range(12)) + op(15) + op(11, 1) + op(who=6, ref=1, client=2))


for part in (heads, words, sign_in, manifests, stored, fronts, api, proxies):
    part()
print({d.name: len(list(d.iterdir())) for d in sorted(OUT.iterdir())})
