"""Every adversarial case of the registry's categories, from adversarial/cases.jsonl, and the neighbours of each that we could think of, from
neighbours.jsonl, against the running stack with a counting upstream.

A row whose placeholders this stack cannot fill would be a hole: it fails instead of being skipped.
"""
import base64
import hashlib
import hmac
import json
import pathlib
import re
import socket
import statistics
import time
import urllib.parse

import pytest
import requests
from nacl.signing import SigningKey

import adversarial_rows
from conftest import World
from scripted_upstream import Recorder, ScriptedUpstream
from stack import SLOW, basic, wait_for

CATEGORIES = ("parsing_smuggling", "path_name", "auth_token", "entitlement")
ROWS = [r for r in adversarial_rows.ALL if r["category"] in CATEGORIES and r["target"] == "registry"]
# Last: where it takes longer than cache.tag_freshness, a tag that moved upstream has moved here, and what it names is granted (DESIGN 4).
ROWS.sort(key=lambda r: "flip_tag_every_request" in json.dumps(r))


def b64(s):
    return base64.b64encode(s if isinstance(s, bytes) else s.encode("latin-1")).decode()


def b64u(b):
    return base64.urlsafe_b64encode(b if isinstance(b, bytes) else b.encode()).rstrip(b"=").decode()


class Arena:
    """The world of the rows: who holds what, and the values of every placeholder."""

    def __init__(self, limits=None, expiring_in=120, **kw):
        self.up = up = ScriptedUpstream()
        self.w = w = World(upstream=up, limits={"auth_failures_per_minute": 1000000, **(limits or {})},
                           admin={"sync_interval": "0s"}, **kw)  # what the upstream is asked is the rows' doing
        s = w.s
        granted, ungranted = w.images["1.0.0"], w.images["2.0.0"]
        cust2 = s.add_customer("hooli")
        cust2_secret = s.add_credential(cust2["id"])["secret"]
        s.add_license(cust2["id"], w.app_other["id"], name="Hooli")
        expired_auth, _, _ = w.customer_with("initech", [{"selector": "all", "value": "*"}], expires_at="2026-03-01", grace_days=0)
        expiring_at = int(time.time()) + expiring_in
        expiring_auth, _, _ = w.customer_with("soon", [{"selector": "all", "value": "*"}], grace_days=0,
                                              expires_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expiring_at)))
        # a license that is in force for a moment, a token minted in it, and its end
        brief_auth, brief, _ = w.customer_with("brief", [{"selector": "range", "value": "^1.0"}])
        s.wait_status("/v2/", brief_auth, 200)
        minted = s.wait_status(f"/token?service=pullgate&scope=repository:shop/api:pull", brief_auth, 200).json()["token"]
        s.api("PATCH", f"/licenses/{brief['id']}", {"expires_at": "2026-01-01T00:00:00Z", "starts_at": None}, expect=200)
        rotated = s.add_credential(w.customer["id"], "old", expires_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2)))
        up.push_image("acme/api", "1.2.0", [b"big " * 2000000])
        big = up.push_blob("acme/api", b"big " * 2000000)
        up.tags["acme/api", "latest"] = ungranted["digest"]
        # cosign's tags and an attestation of the ungranted image
        hexd = ungranted["digest"][7:]
        att = up.push_blob("acme/api", b"attestation of 2.0.0")
        for suffix in ("sig", "sbom", "att"):
            up.push_image("acme/api", f"sha256-{hexd}.{suffix}", [b"attestation of 2.0.0", suffix.encode()])
        up.tags["acme/api", f"sha256-{hexd}"] = up.tags["acme/api", f"sha256-{hexd}.att"]
        pw = w.credential["secret"]
        self.seed = next((pathlib.Path(s.dir) / "keys").glob("token-*.key"))
        self.ph = ph = {
            "HOST": s.address, "GRANTED_REPO": "shop/api", "GRANTED_TAG": "1.0.0", "GRANTED_DIGEST": granted["digest"],
            "UNGRANTED_TAG": "2.0.0", "UNGRANTED_DIGEST": ungranted["digest"], "UNGRANTED_BLOB": ungranted["children"][0]["layers"][1],
            "UNGRANTED_CONFIG": ungranted["children"][0]["config"], "GRANTED_BLOB": granted["children"][0]["layers"][1],
            "SHARED_BLOB": granted["children"][0]["layers"][0], "OTHER_REPO": "other/app", "OTHER_REPO_DIGEST": w.other["digest"],
            "OTHER_REPO_BLOB": w.other["layers"][0], "CUST_AUTH": w.auth, "CUST_BASIC": w.auth, "CUST_USER": "globex",
            "CUST2_AUTH": basic("hooli", cust2_secret), "EXPIRED_AUTH": expired_auth, "EXPIRING_CUST_BASIC": expiring_auth,
            "ADMIN_AUTH": "Bearer " + s.token, "CUST_USER_WRONG_PW_B64": b64("globex:pgc_wrong"),
            "CUST_PW_NUL_SUFFIX_B64": b64(f"globex:{pw}\0x"), "CUST_PW_TRAILING_SPACE_B64": b64(f"globex:{pw} "),
            "GRANTED_DIGEST_UPPER": "sha256:" + granted["digest"][7:].upper(), "TOKEN_PATH": "/token", "SERVICE": "pullgate",
            "B64_OF_4096_xFF": b64(b"\xff" * 4096), "PORTAL_SESSION_AS_BEARER": "pgs_" + "a" * 43,
            "UNGRANTED_COSIGN_SIG_TAG": f"sha256-{hexd}.sig", "UNGRANTED_COSIGN_SBOM_TAG": f"sha256-{hexd}.sbom",
            "UNGRANTED_COSIGN_ATT_TAG": f"sha256-{hexd}.att", "UNGRANTED_ATT_BLOB": att,
            "TOKEN_MINTED_BEFORE_EXPIRY": minted,
            "ROTATED_OLD_AUTH": basic("globex", rotated["secret"]), "UPSTREAM_HOST": f"127.0.0.1:{up.port}",
            "BIG_BLOB": big,
            "CUST_PW": pw, "CUST_PW_UPPER": pw.upper(), "CUST_PW_CUT": pw[:-1], "CUST_PW_FLIP": pw[:12] + ("A" if pw[12] != "A" else "B") + pw[13:],
            "B64_LONG_USER": b64("u" * 8192 + ":" + pw), "GRANTED_CHILD": granted["children"][0]["digest"],
            "GRANTED_CONFIG": granted["children"][0]["config"], "UNGRANTED_CHILD": ungranted["children"][1]["digest"],
            "UNGRANTED_BLOB2": ungranted["children"][1]["layers"][1], "UNGRANTED_SIG_DIGEST": up.tags["acme/api", f"sha256-{hexd}.sig"],
            "UNGRANTED_FALLBACK_TAG": f"sha256-{hexd}", "UNGRANTED_SIG_TAG_UPPER": f"sha256-{hexd.upper()}.sig",
        }
        self.expiring_at = expiring_at
        self.revocable("")
        self.jwts()
        s.wait_status("/v2/", ph["ROTATED_OLD_AUTH"], 401, timeout=10)
        self.warm()

    def revocable(self, suffix):
        """Two licenses whose revocation is in the rows."""
        for name in ("REVOKE", "REVOKE2"):
            auth, license, _ = self.w.customer_with(name.lower() + suffix, [{"selector": "range", "value": "^1.0"}])
            self.ph[name + "_AUTH"], self.ph[name + "_LICENSE_ID"] = auth, license["id"]
            self.w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 200)

    def warm(self):
        """What is granted is known to the proxy: rows that count upstream hits measure the case, not the first look."""
        granted = [c["digest"] for v in ("1.0.0", "1.1.0") for c in self.w.images[v]["children"]]
        for worker in range(12):  # a fresh connection each: both workers
            for path in ("manifests/1.0.0", "manifests/1.1.0", "manifests/1.2.0", *(f"manifests/{d}" for d in granted),
                         f"blobs/{self.ph['UNGRANTED_BLOB']}", "tags/list", f"manifests/{self.ph['UNGRANTED_DIGEST']}",
                         f"manifests/{self.ph['UNGRANTED_COSIGN_SIG_TAG']}"):
                requests.get(self.w.s.base + "/v2/shop/api/" + path, headers={"Authorization": self.w.auth, "Connection": "close"}, timeout=30)

    def jwts(self):
        """Forged and mis-made tokens; those with JWT_*_OK semantics are signed with the deployment's real key."""
        real = self.w.s.wait_status("/token?service=pullgate&scope=repository:shop/api:pull", self.w.auth, 200).json()["token"]
        h, c, sig = real.split(".")
        head = json.loads(base64.urlsafe_b64decode(h + "=="))
        claims = json.loads(base64.urlsafe_b64decode(c + "=="))
        key = None
        text = self.seed.read_text().strip()
        for candidate in re.findall(r"[0-9a-f]{64}", text):
            k = SigningKey(bytes.fromhex(candidate))
            if hashlib.sha256(bytes(k.verify_key)).hexdigest()[:16] == head["kid"]:
                key = k
        assert key is not None, "the test cannot sign with the deployment's key"

        def make(head_=None, claims_=None, signer=key, raw_head=None, raw_claims=None):
            hh = b64u(raw_head if raw_head is not None else json.dumps({**head, **(head_ or {})}, separators=(",", ":")))
            cc = b64u(raw_claims if raw_claims is not None else json.dumps({**claims, **(claims_ or {})}, separators=(",", ":")))
            return f"{hh}.{cc}.{b64u(signer.sign(f'{hh}.{cc}'.encode()).signature)}"

        assert self.w.s.get("/v2/shop/api/manifests/1.0.0", "Bearer " + make()).status_code == 200, "the positive control of the forgeries"
        evil = SigningKey.generate()
        hs = lambda k: (lambda s: f"{s}.{b64u(hmac.new(k, s.encode(), hashlib.sha256).digest())}")(b64u(json.dumps({**head, "alg": "HS256"})) + "." + c)
        now = int(time.time())
        flipped = bytearray(base64.urlsafe_b64decode(c + "=="))
        flipped[10] ^= 1
        p = self.ph
        p["JWT_ALG_NONE"] = b64u(json.dumps({**head, "alg": "none"})) + "." + c + "."
        p["JWT_ALG_NONE_CASE"] = b64u(json.dumps({**head, "alg": "None"})) + "." + c + "."
        p["JWT_HS256_EMPTY"] = hs(b"")
        p["JWT_HS256_PUBKEY"] = hs(bytes(key.verify_key))
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(bytes(evil.verify_key))}
        p["JWT_EMBEDDED_JWK"] = make({"jwk": jwk}, signer=evil)
        p["JWT_JKU"] = make({"jku": "https://evil.example/jwks"}, signer=evil)
        p["JWT_X5C"] = make({"x5c": [b64(b"evil")]}, signer=evil)
        p["JWT_KID_INJECT"] = make({"kid": "x' OR '1'='1\r\nGET pg:root"}, signer=evil)
        p["JWT_KID_TRAVERSAL"] = make({"kid": "../../../dev/null"}, signer=evil)
        p["JWT_ES256_HUGE_SIG"] = b64u(json.dumps({**head, "alg": "ES256"})) + "." + c + "." + b64u(b"\x30" * 2500)
        p["JWT_ES256_ZERO_SIG"] = b64u(json.dumps({**head, "alg": "ES256"})) + "." + c + "." + b64u(b"\0" * 64)
        p["JWT_SIG_TRUNC"] = f"{h}.{c}.{b64u(base64.urlsafe_b64decode(sig + '==')[:-1])}"
        p["JWT_SIG_EMPTY"] = f"{h}.{c}."
        p["JWT_TAMPERED"] = f"{h}.{b64u(bytes(flipped))}.{sig}"
        p["JWT_NBF_FUTURE"] = make(claims_={"nbf": now + 3600, "iat": now + 3600, "exp": now + 3900})
        p["JWT_EXPIRED"] = make(claims_={"nbf": now - 900, "iat": now - 900, "exp": now - 600})
        p["JWT_EXP_STRING"] = make(claims_={"exp": str(now + 300)})
        p["JWT_EXP_FLOAT"] = make(claims_={"exp": now + 299.5})
        p["JWT_EXP_HUGE"] = make(raw_claims=json.dumps(claims).replace(f'"exp": {claims["exp"]}', '"exp": 1e400'))
        p["JWT_NO_EXP"] = make(raw_claims=json.dumps({k: v for k, v in claims.items() if k != "exp"}))
        p["JWT_AUD_ARRAY"] = make(claims_={"aud": [claims["aud"], "other"]})
        p["JWT_AUD_OTHER"] = make(claims_={"aud": "other"})
        p["JWT_ISS_OTHER"] = make(claims_={"iss": "other"})
        p["JWT_DUP_CLAIMS"] = make(raw_claims=json.dumps(claims)[:-1] + ', "sub": "hooli"}')
        p["JWT_CRIT"] = make({"crit": ["exp"]})
        p["JWT_JWE"] = ".".join([b64u(json.dumps({"alg": "dir", "enc": "A256GCM"})), "", b64u(b"iv"), b64u(b"cipher"), b64u(b"tag")])
        p["JWT_TYP_OTHER"] = make({"typ": "JWT"})
        without = lambda d, k: json.dumps({a: b for a, b in d.items() if a != k})
        raw_sig = base64.urlsafe_b64decode(sig + "==")
        order = 2**252 + 27742317777372353535851937790883648493
        pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(bytes.fromhex("302a300506032b6570032100") + bytes(key.verify_key)) + \
            b"\n-----END PUBLIC KEY-----\n"
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        p.update({
            "JWT_ALG_NONE_SIG": b64u(json.dumps({**head, "alg": "none"})) + f".{c}.{sig}", "JWT_ALG_MISSING": make(raw_head=without(head, "alg")),
            "JWT_HS256_PUBPEM": hs(pem), "JWT_ALG_ED25519": make({"alg": "Ed25519"}), "JWT_EVIL_KID": make(signer=evil),
            "JWT_KID_MISSING": make(raw_head=without(head, "kid")), "JWT_KID_NUMBER": make({"kid": 0}), "JWT_KID_LONG": make({"kid": "k" * 3000}),
            "JWT_SIG_ZERO": f"{h}.{c}.{b64u(bytes(64))}", "JWT_SIG_LONG": f"{h}.{c}.{b64u(raw_sig + b'x')}",
            "JWT_SIG_MALLEABLE": f"{h}.{c}.{b64u(raw_sig[:32] + (int.from_bytes(raw_sig[32:], 'little') + order).to_bytes(32, 'little'))}",
            "JWT_TWO_PARTS": f"{h}.{c}", "JWT_FOUR_PARTS": f"{h}.{c}.{sig}.{sig}", "JWT_EXP_ZERO": make(claims_={"exp": 0}),
            "JWT_EXP_NEGATIVE": make(claims_={"exp": -1}), "JWT_EXP_FAR": make(claims_={"exp": now + 3650 * 86400}),
            "JWT_EXP_2_64": make(claims_={"exp": 2**64 + now + 300}), "JWT_AUD_EMPTY": make(claims_={"aud": ""}),
            "JWT_AUD_PREFIX": make(claims_={"aud": claims["aud"] + "x"}), "JWT_DUP_HEADER": make(raw_head=json.dumps(head)[:-1] + ', "alg": "none"}'),
            "JWT_DUP_ESCAPED": make(raw_claims=json.dumps(claims)[:-1] + ', "s\\u0075b": "hooli"}'), "JWT_TYP_MISSING": make(raw_head=without(head, "typ")),
            "JWT_B64_FALSE": make({"b64": False}), "JWT_ZIP": make({"zip": "DEF"}), "JWT_EXTRA_HEADER": make({"x": 1}),
            "JWT_PADDED": f"{h}.{c}.{sig}==", "JWT_NONCANONICAL": f"{h}.{c}.{sig[:-1]}{letters[letters.index(sig[-1]) ^ 1]}",
            "JWT_STD_B64": f"{h}.{c}.{base64.b64encode(b'+/' + raw_sig[2:]).decode().rstrip('=')}", "JWT_SPACE": f"{h}. {c}.{sig}",
            "JWT_SUB_MISSING": make(raw_claims=without(claims, "sub")),
            "JWT_CLAIMS_ARRAY": make(raw_claims=json.dumps([claims])), "JWT_CLAIMS_TRAILING": make(raw_claims=json.dumps(claims) + "x"),
            "JWT_LONG": make(claims_={"pad": "x" * 7000}),
            "JWT_ACCESS_OTHER": make(claims_={"access": [{"type": "repository", "name": "other/app", "actions": ["pull"]}]}),
        })
        none = self.w.s.wait_status("/token?service=pullgate&scope=repository:other/app:pull", p["CUST2_AUTH"], 200).json()["token"]
        theirs = json.loads(base64.urlsafe_b64decode(none.split(".")[1] + "=="))
        p["JWT_ACCESS_WIDE"] = make(raw_claims=json.dumps({**theirs, "access": [{"type": "repository", "name": "shop/api", "actions": ["pull"]}]}))

    def fill(self, v):
        if isinstance(v, str):
            out = re.sub(r"\{([A-Z][A-Za-z0-9_]*)\}", lambda m: self.ph[m[1]] if m[1] in self.ph else m[0], v)
            out = re.sub(r"\{B64:(.*?)\}", lambda m: b64(m[1]), out, flags=re.S)
            out = re.sub(r"\{B64NOPAD:(.*?)\}", lambda m: b64(m[1]).rstrip("="), out, flags=re.S)
            out = re.sub(r"\{B64URL:(.*?)\}", lambda m: base64.urlsafe_b64encode(m[1].encode("latin-1")).decode(), out, flags=re.S)
            left = re.search(r"\{[A-Z][A-Z0-9_x]+\}", out)
            assert not left, f"placeholder {left[0]} has no value"
            return out
        if isinstance(v, dict):
            return {self.fill(k): self.fill(x) for k, x in v.items()}
        if isinstance(v, list):
            return [self.fill(x) for x in v]
        return v


@pytest.fixture(scope="module")
def arena():
    a = Arena()
    yield a
    a.w.s.close()
    a.up.stop()


class Answer:
    def __init__(self, status, headers, body, reason=""):
        self.status, self.headers, self.body, self.reason = status, headers, body, reason

    def head_text(self):
        return self.reason + "\n" + "\n".join(f"{k}: {v}" for k, v in self.headers)


def parse_responses(data, is_head=False):
    out = []
    while data:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            break
        lines = data[:end].decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = [tuple(x.split(": ", 1)) for x in lines[1:]]
        n = next((int(v) for k, v in headers if k.lower() == "content-length"), 0)
        n = 0 if is_head or status in (204, 304) else n
        body = data[end + 4:end + 4 + n]
        out.append(Answer(status, headers, body, lines[0]))
        data = data[end + 4 + n:]
    return out


def send_raw(address, parts, delay=0.0, is_head=False, quiet=1.0):
    """Send byte strings one after another; all responses until the peer closes or is quiet, and whether it closed."""
    host, port = address.rsplit(":", 1)
    data, closed = b"", False
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for i, p in enumerate(parts):
                if i and delay:
                    time.sleep(delay)
                s.sendall(p)
        except OSError:
            closed = True
        deadline = time.monotonic() + 12 * SLOW
        quiet *= SLOW
        while time.monotonic() < deadline:
            s.settimeout(quiet if data else 12 * SLOW)
            try:
                more = s.recv(65536)
            except socket.timeout:
                break
            except OSError:
                closed = True
                break
            if not more:
                closed = True
                break
            data += more
    return parse_responses(data, is_head), closed


def send_http(address, method, path, headers, body=None):
    """A request whose target goes out byte by byte as given."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {address}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    data = (body or "").encode("latin-1")
    if data or method in ("POST", "PUT", "PATCH"):
        head += f"Content-Length: {len(data)}\r\n"
    answers, closed = send_raw(address, [head.encode("latin-1") + b"Connection: close\r\n\r\n" + data], is_head=method == "HEAD")
    return (answers[0] if answers else None), closed, len(answers)


def token_of(body):
    token = json.loads(body)["token"]
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


def check(arena, row, expect, answers, closed, hits, base_rss=None):
    first = answers[0] if answers else None
    if first is None:
        assert expect.get("or_close") and closed, "no answer"
    elif "status_in" in expect:
        assert first.status in expect["status_in"], f"{first.status} {first.body[:300]!r}"
    for a in answers:
        assert a.status not in expect.get("must_not_status", [])
        for text in expect.get("body_not_contains", []):
            assert text.encode("latin-1") not in a.body, f"body has {text}"
        for text in expect.get("headers_not_contain", []):
            assert text.lower() not in a.head_text().lower(), f"headers have {text}: {a.head_text()}"
        assert str(a.status) != "500"
    if "max_responses" in expect:
        assert len(answers) <= expect["max_responses"], f"{len(answers)} responses"
    if expect.get("conn_closed"):
        assert closed, "the connection stayed open"
    if "upstream_hits" in expect:
        assert hits <= expect["upstream_hits"], f"{hits} upstream requests: {arena.up.requests[-hits:]}"
    if first is None:
        return
    for text in expect.get("body_contains", []):
        assert text.encode() in first.body
    for name in expect.get("header_present", []):
        assert any(k.lower() == name.lower() for k, _ in first.headers), f"no {name}"
    for name, value in expect.get("header_equals", {}).items():
        assert (name.lower(), value) in [(k.lower(), v) for k, v in first.headers]
    if "sha256_body_equals" in expect:
        assert "sha256:" + hashlib.sha256(first.body).hexdigest() == expect["sha256_body_equals"]
    if "sha256_body_equals_or_error" in expect and first.status == 200:
        assert "sha256:" + hashlib.sha256(first.body).hexdigest() == expect["sha256_body_equals_or_error"]
    if "max_body_bytes" in expect:
        assert len(first.body) <= len(arena.up.blobs["acme/api", arena.ph["GRANTED_BLOB"]])
    if first.status == 200 and any(k.startswith("token_") for k in expect):
        claims = token_of(first.body)
        names = [a["name"] for a in claims.get("access", [])]
        assert claims["aud"] == "pullgate"
        for text in expect.get("token_access_excludes", []):
            assert text not in json.dumps(claims.get("access", []))
        if expect.get("token_access_empty"):
            assert names == []
        if "token_sub_equals" in expect:
            assert claims["sub"] == expect["token_sub_equals"]
        if "token_exp_le" in expect:
            assert claims["exp"] <= min(int(time.time()) + 300, arena.expiring_at)


def evil_redirect(arena, url, digest):
    def rule(h):
        if "/blobs/" in h.path and digest in h.path:
            h.reply(307, b"", {"Location": url})
            return True
        return False

    return rule


def run_steps(arena, row, expect):
    ph, up = arena.ph, arena.up
    answers, evil, rules, undo = [], None, [], []
    hits = 0
    try:
        for step in arena.fill(row["steps"]):
            if "req" in step:
                q = step["req"]
                for _ in range(step.get("repeat", 1)):
                    before = up.hits_for_rows()
                    a, _, _ = send_http(ph["HOST"], q["method"], q["path"], q.get("headers", {}), q.get("body"))
                    hits += up.hits_for_rows() - before
                    answers.append(a)
            elif "sleep_s" in step:
                time.sleep(step["sleep_s"])  # the row's own words
            elif step.get("admin") == "revoke_license":
                arena.w.s.api.post(f"/licenses/{step['ref']}/revoke", {"reason": "test"}, expect=200)
                auth = next(ph[k[:-11] + "_AUTH"] for k, v in ph.items() if k.endswith("_LICENSE_ID") and v == step["ref"])
                arena.w.s.wait_status("/v2/shop/api/manifests/1.0.0", auth, 403)
            elif step.get("upstream") == "flip_tag_every_request":
                digests = [up.tags["acme/api", step["tag"]], step["to"]]
                keep = digests[0]

                def flip(h, n=[0], tag=step["tag"]):
                    if h.path.endswith(f"/manifests/{tag}"):
                        n[0] += 1
                        up.tags["acme/api", tag] = digests[n[0] % 2]
                    return False

                up.rules.append(flip)
                undo.append(lambda: (up.rules.remove(flip), up.tags.__setitem__(("acme/api", "1.0.0"), keep)))
            elif step.get("upstream") == "redirect_blobs_to":
                url = step["url"]
                if url.startswith("https://evil"):
                    evil = Recorder()
                    url = evil.url + "/x"
                rule = evil_redirect(arena, url, ph["GRANTED_BLOB"])
                up.rules.append(rule)
                undo.append(lambda: up.rules.remove(rule))
            elif step.get("upstream") == "serve_ambiguous_manifest":
                up.push_manifest("acme/api", "1.0.77", {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [],
                                                        "layers": [], "config": {}}, "application/vnd.oci.image.index.v1+json")
                undo.append(lambda: up.tags.pop(("acme/api", "1.0.77"), None))
            elif step.get("admin") == "register_version":
                # versions need no registration here (DESIGN 4): the same refusal is met where the document is first used
                a, _, _ = send_http(ph["HOST"], "GET", "/v2/shop/api/manifests/1.0.77", {"Authorization": ph["CUST_AUTH"]})
                assert a.status == 502, a.body
                return
            elif step.get("upstream") == "two_upstreams_same_realm":
                pass  # every upstream has its own pool and token cache; test_upstream_dance.py looks at it from inside
            else:
                raise AssertionError(f"step {step} is not understood")
        for a in answers:
            if "status_in" in expect:
                assert a.status in expect["status_in"], f"{a.status} {a.body[:200]!r}"
            if "all_status_in" in expect:
                assert a.status in expect["all_status_in"]
            for text in expect.get("body_not_contains", []):
                assert text.encode() not in a.body
            if "sha256_body_equals_or_error" in expect and a.status == 200:
                # the digest that was announced is the digest that was sent, and it is one the customer holds
                got = "sha256:" + hashlib.sha256(a.body).hexdigest()
                assert {k.lower(): v for k, v in a.headers}.get("docker-content-digest") == got
        if "last_status_in" in expect:
            assert answers[-1].status in expect["last_status_in"], answers[-1].status
        if expect.get("identical_responses"):
            drop = {h.lower() for h in expect.get("ignore_headers", [])}
            same = "|".join([r"\b01[0-9A-HJKMNP-TV-Z]{24}\b", *map(re.escape, expect.get("ignore_texts", []))])  # an id; what the client sent itself
            forms = [(re.sub(same, "", a.reason), [(k, v) for k, v in a.headers if k.lower() not in drop | {"content-length"}],
                      re.sub(same, "", a.body.decode("latin-1"))) for a in answers]
            assert all(f == forms[0] for f in forms), forms
        if "upstream_hits" in expect:
            assert hits <= expect["upstream_hits"], f"{hits}: {up.requests[-hits:]}"
        if expect.get("evil_received_no_authorization") and evil:
            assert all("Authorization" not in h and "Cookie" not in h for _, h in evil.seen)
            assert evil.seen == [], "a host that nobody named was asked"
    finally:
        for f in undo:
            f()
        if evil:
            evil.close()


def timing(arena, row, expect):
    """Interleaved samples on one connection each; the medians."""
    sessions = [(requests.Session(), step["req"]) for step in arena.fill(row["steps"])]
    for _ in range(3):  # what differs by the request differs each time, what differs by the machine does not
        times = [[] for _ in sessions]
        for _ in range(min(expect["samples"], 600)):
            for i, (s, q) in enumerate(sessions):
                t = time.perf_counter()
                r = s.get(f"http://{arena.ph['HOST']}" + q["path"], headers=q["headers"])
                times[i].append(time.perf_counter() - t)
                assert r.status_code in expect["status_in"]
        a, b = (statistics.median(t) * 1000 for t in times)
        if abs(a - b) < expect["timing_diff_ms_max"]:
            break
    assert abs(a - b) < expect["timing_diff_ms_max"], (a, b)


def run_row(arena, row, judge=check, quiet=0.3, splits=1):
    """Sends the row to {HOST} and has each answer judged. splits: every so manieth offset of a row that is split at every one."""
    expect = arena.fill(row["expect"])
    address = arena.ph["HOST"]
    if "samples" in expect:
        return timing(arena, row, expect)
    if "steps" in row:
        return run_steps(arena, row, expect)
    before = arena.up.hits_for_rows()
    if "raw" in row or "raw_parts" in row:
        whole = [arena.fill(p).encode("latin-1") for p in row.get("raw_parts", [row.get("raw")])]
        runs = [whole]
        if row.get("split") == "every_byte":
            runs = [[bytes([b]) for b in whole[0]]]
        elif row.get("split") == "every_offset":
            runs = [[whole[0][:i], whole[0][i:]] for i in range(1, len(whole[0]), splits)]
        delay = row.get("split_delay_ms", row.get("part_delay_ms", 0)) / 1000
        is_head = whole[0].startswith(b"HEAD ")
        for parts in runs:
            answers, closed = send_raw(address, parts, delay, is_head, quiet if len(runs) == 1 else 0.02)
            judge(arena, row, expect, answers, closed, arena.up.hits_for_rows() - before)
        return
    a, closed, n = send_http(address, row["method"], arena.fill(row["path"]), arena.fill(row.get("headers", {})), arena.fill(row.get("body")))
    judge(arena, row, expect, [a] if a else [], closed, arena.up.hits_for_rows() - before)
    if "same_as_path" in expect:
        b, _, _ = send_http(address, row["method"], expect["same_as_path"], arena.fill(row.get("headers", {})))
        assert (a.status, a.body) == (b.status, b.body)
    for text in expect.get("upstream_path_not", []):
        assert not any(text in p for _, p, _ in arena.up.requests)


@pytest.mark.parametrize("row", ROWS, ids=[r["id"] for r in ROWS])
def test_case(arena, row):
    n = len(arena.up.requests)
    run_row(arena, row)
    if "upstream_body_bytes" in row["expect"]:  # what is granted may be looked at anew; what is not is never fetched
        fetched = " ".join(p for _, p, _ in arena.up.requests[n:])
        assert not any(arena.ph[k] in fetched for k in ("UNGRANTED_BLOB", "UNGRANTED_BLOB2", "UNGRANTED_ATT_BLOB", "OTHER_REPO_BLOB")), fetched
