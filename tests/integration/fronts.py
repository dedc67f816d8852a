"""nginx and HAProxy in front of Pullgate, configured as docs/OPERATIONS.md shows it, with a tap between: it hands every byte on as it comes
and keeps what went over each connection, so that a test knows what reached Pullgate, what was answered, and over which connection.
Everything is ended by close(); the fronts do not outlive the test process."""
import pathlib
import re
import select
import socket
import threading

from stack import ROOT, Proc, free_port, wait_for


def documented(kind, nth=0):
    """The nth fenced block of that kind in docs/OPERATIONS.md."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "OPERATIONS.md").read_text(), re.S)[nth]


def replaced(text, pairs):
    for old, new in pairs:
        text, n = re.subn(old, new, text)
        assert n, f"the documentation's configuration has no {old}"
    return text


class Wire:
    """One connection from the front to Pullgate."""

    def __init__(self):
        self.sent, self.received = bytearray(), bytearray()  # by the front, by Pullgate
        self.front_closed = self.ours_closed = False


class Tap:
    def __init__(self, target):
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.wires = []
        self.lock = threading.Lock()
        self.server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = "127.0.0.1:%d" % self.server.getsockname()[1]
        self.ending = False
        self.last = None  # the wire that carried bytes of the front last
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.ending:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            wire = Wire()
            with self.lock:
                self.wires.append(wire)
            threading.Thread(target=self.carry, args=(client, wire), daemon=True).start()

    def carry(self, client, wire):
        with client, socket.create_connection(self.target) as server:
            for s in (client, server):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not (wire.front_closed and wire.ours_closed):
                ends = [s for s, closed in ((client, wire.front_closed), (server, wire.ours_closed)) if not closed]
                for s in select.select(ends, [], [])[0]:
                    ours = s is server
                    try:
                        data = s.recv(65536)
                    except OSError:
                        data = b""
                    try:
                        if data:
                            with self.lock:
                                (wire.received if ours else wire.sent).extend(data)
                                self.last = self.last if ours else wire
                            (client if ours else server).sendall(data)
                        else:
                            (client if ours else server).shutdown(socket.SHUT_WR)
                    except OSError:
                        data = b""
                    if not data:
                        with self.lock:
                            if ours:
                                wire.ours_closed = True
                            else:
                                wire.front_closed = True

    def mark(self):
        """A point in time, for since()."""
        with self.lock:
            return {id(w): (len(w.sent), len(w.received)) for w in self.wires}

    def since(self, mark):
        """[(wire, bytes of the front, bytes of Pullgate)] since then, of the connections that carried any."""
        with self.lock:
            out = []
            for w in self.wires:
                a, b = mark.get(id(w), (0, 0))
                if len(w.sent) > a or len(w.received) > b:
                    out.append((w, bytes(w.sent[a:]), bytes(w.received[b:])))
            return out

    def close(self):
        self.ending = True
        self.server.close()


class Nginx:
    """As documented; buffering: the request's and the answer's, as nginx does when it is told nothing. tls_ca: to Pullgate it speaks TLS, a
    handshake for each request, and Pullgate's certificate must be of that CA, in time and for localhost. cert: (certificate, key) of its own."""

    def __init__(self, directory, upstream, buffering=False, connections=512, tls_ca=None, cert=None):
        self.dir = pathlib.Path(directory)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        block = replaced(documented("nginx"), [
            (r"server 127\.0\.0\.1:5080;", f"server {upstream};"), (r"listen 443 ssl;", f"listen {self.address}{' ssl' if cert else ''};"),
            *([(r"/etc/ssl/registry\.pem", str(cert[0])), (r"/etc/ssl/registry\.key", str(cert[1]))] if cert else [(r" *ssl_certificate\w* .*;\n", "")])])
        if buffering:
            block = replaced(block, [(r" *proxy_(request_)?buffering off;.*\n", "")])
        if tls_ca:
            block = replaced(block, [(r" *keepalive 64;\n", ""), (r"proxy_pass http:", f"proxy_ssl_trusted_certificate {tls_ca}; proxy_ssl_verify on; "
                                      "proxy_ssl_name localhost; proxy_ssl_session_reuse off; proxy_pass https:")])
        temp = " ".join(f"{kind}_temp_path {self.dir}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = self.dir / "nginx.conf"
        conf.write_text(f"daemon off; worker_processes 1; error_log stderr warn; pid {self.dir}/nginx.pid;\n"
                        f"events {{ worker_connections {connections}; }}\nhttp {{\naccess_log off; {temp}\n{block}}}\n")
        self.proc = Proc("nginx", ["nginx", "-p", self.dir, "-c", conf], self.dir)
        wait_for("nginx", lambda: self.proc.alive() and socket.create_connection(("127.0.0.1", self.port), timeout=2).close() is None)

    def close(self):
        self.proc.stop()


class HAProxy:
    """As documented, but that connections are shared between clients at every request (http-reuse always): what one leaves on a connection,
    another would meet. proxy_protocol: each connection to Pullgate tells its client's address that way, and the field is left out.
    passes_on: as it is documented for TLS that ends at Pullgate."""

    def __init__(self, directory, upstream, proxy_protocol=False, passes_on=False, connections=None):
        self.dir = pathlib.Path(directory)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        if passes_on:
            block = replaced(documented("haproxy", 1), [(r"bind :443", f"bind {self.address}"), (r"127\.0\.0\.1:5443", upstream), (r" check check-send-proxy", "")])
        else:
            block = replaced(documented("haproxy"), [
                (r"bind :443 .*", f"bind {self.address}"), (r" *option httpchk .*\n", ""), (r"http-reuse safe", "http-reuse always"),
                (r"server p1 127\.0\.0\.1:5080 check", f"server p1 {upstream}" + (" send-proxy-v2" if proxy_protocol else ""))])
        if proxy_protocol:
            block = replaced(block, [(r" *option forwardfor\n", "")])
        conf = self.dir / "haproxy.cfg"
        room = f"    maxconn {connections}\n" if connections else ""
        conf.write_text(f"global\n    nbthread 1\n{room}\n{block}\n")
        self.proc = Proc("haproxy", ["haproxy", "-db", "-f", conf], self.dir)
        wait_for("haproxy", lambda: self.proc.alive() and socket.create_connection(("127.0.0.1", self.port), timeout=2).close() is None)

    def close(self):
        self.proc.stop()


def start(name, directory, upstream):
    directory = pathlib.Path(directory) / name
    directory.mkdir()
    if name == "nginx":
        return Nginx(directory, upstream)
    if name == "nginx-buffering":
        return Nginx(directory, upstream, buffering=True)
    return HAProxy(directory, upstream, proxy_protocol=name == "haproxy-proxy")
