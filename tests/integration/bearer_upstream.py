"""docker-registry behind its token authentication: a small token server in this process, tokens signed RS256 by a certificate
that the registry trusts. Only the registry credentials get a token; every request for one is remembered."""
import base64
import http.server
import json
import pathlib
import secrets
import subprocess
import threading
import time
import urllib.parse

import requests

from stack import Proc, Registry, free_port, wait_for


def b64u(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    def __init__(self, directory, user, password):
        self.user, self.password = user, password
        self.dir = pathlib.Path(directory)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "token.key", "-out", "token.pem", "-days", "30",
                        "-subj", "/CN=token"], cwd=self.dir, check=True, capture_output=True)
        der = subprocess.run(["openssl", "x509", "-in", "token.pem", "-outform", "DER"], cwd=self.dir, check=True, capture_output=True).stdout
        self.x5c = base64.b64encode(der).decode()
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *a):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/token"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, h):
        q = urllib.parse.parse_qs(urllib.parse.urlsplit(h.path).query)
        want = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        self.asked.append((h.headers.get("Authorization") == want, q))
        if h.headers.get("Authorization") != want:
            body, status = b'{"errors":[{"code":"UNAUTHORIZED"}]}', 401
        else:
            access = []
            for s in q.get("scope", []):
                kind, name, actions = s.split(":")
                access.append({"type": kind, "name": name, "actions": actions.split(",")})
            body, status = json.dumps({"token": self.mint(q["service"][0], access), "expires_in": 300}).encode(), 200
        h.send_response(status)
        h.send_header("Content-Type", "application/json")
        h.send_header("Content-Length", str(len(body)))
        h.end_headers()
        h.wfile.write(body)

    def mint(self, service, access):
        now = int(time.time())
        head = b64u(json.dumps({"typ": "JWT", "alg": "RS256", "x5c": [self.x5c]}).encode())
        claims = b64u(json.dumps({"iss": "tests", "sub": self.user, "aud": service, "exp": now + 300, "nbf": now - 10, "iat": now,
                                  "jti": secrets.token_hex(8), "access": access}).encode())
        sig = subprocess.run(["openssl", "dgst", "-sha256", "-sign", "token.key"], cwd=self.dir, input=f"{head}.{claims}".encode(), check=True,
                             capture_output=True).stdout
        return f"{head}.{claims}.{b64u(sig)}"


class BearerRegistry(Registry):
    def __init__(self, directory):
        self.dir = pathlib.Path(directory) / "registry"
        self.dir.mkdir(exist_ok=True)
        self.user, self.password = "vendor", "up-" + secrets.token_hex(16)
        self.tokens = TokenServer(self.dir, self.user, self.password)
        self.port = free_port()
        self.scheme, self.verify = "http", True
        self.config = self.dir / "config.yml"
        self.config.write_text(json.dumps({
            "version": 0.1, "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": str(self.dir / "data")}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "x"},
            "auth": {"token": {"realm": self.tokens.url, "service": "upstream", "issuer": "tests", "rootcertbundle": str(self.dir / "token.pem")}}}))
        self.realm = self.tokens.url
        self.proc = None
        self._session = {}
        self.start()

    def start(self):
        self.proc = Proc("registry", ["docker-registry", "serve", self.config], self.dir.parent)
        wait_for("docker-registry", lambda: requests.get(self.url + "/v2/", timeout=2).status_code == 401)

    @property
    def auth(self):
        return (self.user, self.password)

    def _bearer(self, repo):
        token = self.tokens.mint("upstream", [{"type": "repository", "name": repo, "actions": ["pull", "push"]}])
        return {"Authorization": "Bearer " + token}

    def push_blob(self, repo, data):
        import hashlib
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        h = self._bearer(repo)
        r = requests.post(f"{self.url}/v2/{repo}/blobs/uploads/", headers=h)
        assert r.status_code == 202, r.text
        where = r.headers["Location"]
        r = requests.put(where + "&digest=" + digest, data=data, headers={**h, "Content-Type": "application/octet-stream"})
        assert r.status_code == 201, r.text
        return digest

    def push_manifest(self, repo, reference, doc, media_type):
        import hashlib
        data = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        r = requests.put(f"{self.url}/v2/{repo}/manifests/{reference or digest}", data=data, headers={**self._bearer(repo), "Content-Type": media_type})
        assert r.status_code == 201, r.text
        return digest
