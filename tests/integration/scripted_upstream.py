"""A registry in this process that counts what it is asked and does what a good registry never does.

Same push_* verbs as stack.Registry. `rules` are asked first, in order, with the request; one that returns True has answered it.
"""
import base64
import hashlib
import http.server
import json
import re
import secrets
import threading
import time

from stack import Registry


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "scripted", ""

    def do_GET(self):
        self.server.upstream.handle(self)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def log_message(self, *a):
        pass

    def reply(self, status, body=b"", headers=None, content_type="application/json"):
        self.send_response(status)
        for k, v in (headers or {}).items():
            self.send_header(k, v)
        if "Content-Type" not in (headers or {}):
            self.send_header("Content-Type", content_type)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.server.upstream.body_bytes += len(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def process_request(self, request, client_address):
        u = self.upstream
        with u.lock:
            u.open += 1
            u.open_most = max(u.open_most, u.open)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self.upstream.lock:
            self.upstream.open -= 1
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        pass  # clients that leave are part of the script


class ScriptedUpstream(Registry):
    def __init__(self, directory=None, referrers=True, require_auth=True):
        self.user, self.password = "vendor", "up-" + secrets.token_hex(16)
        self.blobs, self.manifests, self.tags = {}, {}, {}  # (repo, digest) -> bytes / (bytes, type); (repo, tag) -> digest
        self.requests, self.rules = [], []
        self.listed, self.due = {}, 0  # when each list of tags was asked for last; how often one was when it was 15 s old (cache.tag_freshness)
        self.lock = threading.Lock()
        self.open = self.open_most = 0  # connections at this moment, and the most of them
        self.body_bytes = 0
        self.referrers, self.require_auth = referrers, require_auth
        self.serve()

    def serve(self, port=0):
        self.http = Server(("127.0.0.1", port), Handler)
        self.http.upstream = self
        self.port = self.http.server_port
        self.scheme, self.verify = "http", True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    # ---- content, pushed straight into memory ----
    def push_blob(self, repo, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[repo, digest] = data
        return digest

    def push_manifest(self, repo, reference, doc, media_type):
        data = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.manifests[repo, digest] = (data, media_type)
        if reference and not reference.startswith("sha256:"):
            self.tags[repo, reference] = digest
        return digest

    # ---- counting ----
    def hits(self, pattern=r"."):
        with self.lock:
            return sum(1 for m, p, _ in self.requests if re.search(pattern, f"{m} {p}"))

    def hits_for_rows(self):
        """Without looks at tags that were due: on a slow machine one comes with a request of any row."""
        with self.lock:
            return len(self.requests) - self.due

    def requests_seen(self):
        return self.hits()

    # ---- answering ----
    def handle(self, h):
        with self.lock:
            self.requests.append((h.command, h.path, dict(h.headers)))
            if "/tags/list?n=1000" in h.path:
                self.due += time.monotonic() - self.listed.get(h.path, 0) > 14
                self.listed[h.path] = time.monotonic()
        for rule in list(self.rules):
            if rule(h):
                return
        if self.require_auth:
            want = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            if h.headers.get("Authorization") != want:
                return h.reply(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"upstream secret text"}]}',
                               {"WWW-Authenticate": 'Basic realm="upstream"', "Content-Type": "application/json"})
        self.answer(h)

    def answer(self, h):
        path = h.path.split("?")[0]
        common = {"Docker-Distribution-Api-Version": "registry/2.0", "Set-Cookie": "upstream=1", "Server": "secret-upstream/1.0",
                  "X-Amz-Request-Id": "abc"}
        if path == "/v2/":
            return h.reply(200, b"{}", common)
        m = re.fullmatch(r"/v2/(.+)/tags/list", path)
        if m:
            tags = sorted(t for r, t in list(self.tags) if r == m[1])
            if not tags:
                return h.reply(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}', common)
            return h.reply(200, json.dumps({"name": m[1], "tags": tags}).encode(), common)
        m = re.fullmatch(r"/v2/(.+)/manifests/(.+)", path)
        if m:
            digest = self.tags.get((m[1], m[2]), m[2])
            found = self.manifests.get((m[1], digest))
            if not found:
                return h.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"upstream path /var/lib"}]}', common)
            return h.reply(200, found[0], {**common, "Docker-Content-Digest": digest, "Content-Type": found[1], "ETag": f'"{digest}"'})
        m = re.fullmatch(r"/v2/(.+)/blobs/(.+)", path)
        if m:
            data = self.blobs.get((m[1], m[2]))
            if data is None:
                return h.reply(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}', common)
            headers = {**common, "Docker-Content-Digest": m[2], "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
            r = re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range", ""))
            if r:
                first, last = int(r[1]), int(r[2]) if r[2] else len(data) - 1
                if first >= len(data):
                    return h.reply(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
                last = min(last, len(data) - 1)
                return h.reply(206, data[first:last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})
            return h.reply(200, data, headers)
        m = re.fullmatch(r"/v2/(.+)/referrers/(.+)", path)
        if m and self.referrers:
            found = []
            for (repo, digest), (data, mt) in list(self.manifests.items()):
                doc = json.loads(data)
                if repo == m[1] and doc.get("subject", {}).get("digest") == m[2]:
                    found.append({"mediaType": mt, "digest": digest, "size": len(data),
                                  "artifactType": doc.get("artifactType") or doc.get("config", {}).get("mediaType", "")})
            return h.reply(200, json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": found}).encode(),
                           {**common, "Content-Type": "application/vnd.oci.image.index.v1+json"})
        return h.reply(404, b"404 page not found", {"Content-Type": "text/plain"})


class Recorder:
    """A plain HTTP server on another port that only remembers what it was sent: the evil host of redirect cases."""

    def __init__(self, body=b"evil"):
        self.seen = []
        outer = self

        class H(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.seen.append((self.path, dict(self.headers)))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *a):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
