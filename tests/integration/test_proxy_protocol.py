"""The PROXY protocol and the forwarding fields on real sockets, plain and under TLS: whose word counts, in any cut of the bytes, and what a
client gets who has no right to speak so. 127.0.0.2 is the trusted proxy here, 127.0.0.1 is anybody. The grammar is tests/unit/test_front.c's."""
import socket
import ssl
import struct
import time

import pytest

from stack import SLOW
from test_edge_raw import Server, eventually, read_all, read_answer, request

SIG = b"\r\n\r\n\0\r\nQUIT\n"
FRONT = "127.0.0.2"


def v2(client="203.0.113.9", command=0x21, family=None, tlvs=b"", length=None):
    if family is None:
        family = 0x21 if ":" in client else 0x11
    kind = socket.AF_INET6 if ":" in client else socket.AF_INET
    body = socket.inet_pton(kind, client) + socket.inet_pton(kind, "::1" if ":" in client else "127.0.0.1") + struct.pack(">HH", 12345, 443)
    body += tlvs
    return SIG + bytes([command, family]) + struct.pack(">H", len(body) if length is None else length) + body


def v1(client="203.0.113.9"):
    return f"PROXY TCP{6 if ':' in client else 4} {client} {'::1' if ':' in client else '127.0.0.1'} 12345 443\r\n".encode()


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("accepted"), tls=True, trusted=f"{FRONT}, 10.0.0.0/8, unix", proxy_protocol="accepted", connections_per_ip="3")
    yield s
    s.close()


@pytest.fixture(scope="module")
def required(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("required"), tls=True, trusted=FRONT, proxy_protocol="required", forwarded_field="forwarded")
    yield s
    s.close()


def connect(server, tls, header=b"", source=FRONT, cut=None):
    """A connection whose header has gone out (cut: after that many bytes a pause; "bytes": one at a time), the handshake done."""
    s = socket.create_connection(("127.0.0.1", server.tls_port if tls else server.port), timeout=10, source_address=(source, 0))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pieces = [header[i:i + 1] for i in range(len(header))] if cut == "bytes" else [header[:cut], header[cut:]] if cut else [header]
    for i, piece in enumerate(pieces):
        if i:
            time.sleep(0.0005 if cut == "bytes" else 0.005)
        s.sendall(piece)
    if not tls:
        return s
    return ssl.create_default_context(cafile=str(server.cert)).wrap_socket(s, server_hostname="localhost")


def peer(s, fields=""):
    s.sendall(request("/x", fields))
    return read_answer(s)[2].decode().split(" peer=")[1].split(" ")[0]


def ask(server, tls, header, fields="", **kw):
    with connect(server, tls, header, **kw) as s:
        first = peer(s, fields)
        assert peer(s, fields) == first  # and it stays so
        return first


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("header, client", [
    (b"", FRONT),
    (v1(), "203.0.113.9"), (v1("2001:db8::7"), "2001:db8::7"), (b"PROXY UNKNOWN\r\n", FRONT),
    (v2(), "203.0.113.9"), (v2("2001:db8::7"), "2001:db8::7"), (v2("::ffff:203.0.113.9"), "203.0.113.9"),
    (v2(command=0x20), FRONT), (v2(family=0), FRONT),
    (SIG + b"\x21\x31\x00\xd8" + b"\0" * 216, FRONT),
    (v2(tlvs=b"\x04\x00\x00" + b"\xee\x03\xe8" + b"x" * 1000), "203.0.113.9"),
    (v2(tlvs=b"\x04\x0f\xe1" + b"x" * 4065), "203.0.113.9"),
], ids=["none", "v1", "v1-ipv6", "v1-unknown", "v2", "v2-ipv6", "v2-mapped", "local", "unspec", "unix", "tlvs", "longest"])
def test_names_the_client(accepted, tls, header, client):
    assert ask(accepted, tls, header) == client


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("header", [v1(), v2(), v2("2001:db8::7", tlvs=b"\x04\x00\x01x")], ids=["v1", "v2", "v2-ipv6"])
def test_cut_at_every_byte(required, tls, header):
    client = "2001:db8::7" if len(header) > 50 and header.startswith(SIG) else "203.0.113.9"
    assert ask(required, tls, header, cut="bytes") == client
    for i in range(1, len(header), 3 if tls else 1):
        with connect(required, tls, header, cut=i) as s:
            assert peer(s) == client


def test_header_and_request_in_one_segment(accepted):
    with connect(accepted, False, v2() + request("/x") + request("/x", "Connection: close\r\n")) as s:
        assert read_all(s).count(b" peer=203.0.113.9 ") == 2


def test_unix_socket_may_be_trusted(accepted, required):
    for server, header, expected in ((accepted, v2(), b" peer=203.0.113.9 "), (accepted, b"", b" peer=unix "), (required, b"", b" peer=unix ")):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(server.unix)
            s.sendall(header + request("/x", "Connection: close\r\n"))
            assert expected in read_all(s)
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(required.unix)
        s.sendall(v2() + request("/x"))
        assert read_all(s).startswith(b"HTTP/1.1 400 ")


def refused(server, tls, data, source=FRONT):
    """In the clear, also where TLS is spoken: 400 and the end, and no answer to what follows the header."""
    with socket.create_connection(("127.0.0.1", server.tls_port if tls else server.port), timeout=10, source_address=(source, 0)) as s:
        s.sendall(data)
        answer = read_all(s)
    assert answer[:8] in (b"HTTP/1.1", b"HTTP/1.0") and answer[8:13] == b" 400 ", answer
    assert answer.count(b"HTTP/1.") == 1 and b"peer=" not in answer
    assert b"<RESET>" not in answer


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("header", [v1(), v2(), v2(command=0x20), b"PROXY UNKNOWN\r\n"], ids=["v1", "v2", "local", "unknown"])
def test_from_nobody_we_trust_is_refused(accepted, required, server, tls, header):
    for s in (accepted, required, server):
        refused(s, tls, header + request("/x"), source="127.0.0.1")
    refused(server, tls, header + request("/x"))  # nobody is trusted there


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("off"), tls=True, trusted="")
    yield s
    s.close()


def test_who_is_not_trusted_needs_none(required):
    with connect(required, False, source="127.0.0.1") as s:
        assert peer(s, "Forwarded: for=203.0.113.1\r\n") == "127.0.0.1"
    with connect(required, True, source="127.0.0.1") as s:
        assert peer(s) == "127.0.0.1"


def test_required_and_not_there(required):
    refused(required, False, request("/x"))
    hello = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        hello.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    refused(required, True, outgoing.read())
    refused(required, False, b"PROPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("header", [
    v2(length=11), v2(length=65535), v2(length=4081), v2(command=0x22), v2(command=0x11), v2(family=0x12), v2(family=0x41), v2("2001:db8::7", length=35),
    v2(tlvs=b"\x04"), v2(tlvs=b"\x04\xff\xff"), SIG + b"\x21\x31\x00\xd7" + b"\0" * 215,
    b"PROXY TCP4 1.2.3 127.0.0.1 1 2\r\n", b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\n", b"PROXY " + b"x" * 110, b"PROXY \r\n",
], ids=lambda h: h[12:24].hex() if h.startswith(SIG) else h[:20].decode().strip())
def test_malformed_is_refused(accepted, required, tls, header):
    for s in (accepted, required):
        refused(s, tls, header + request("/x"))


def test_a_beginning_that_is_none(accepted):
    """In the clear and where it is not required, P may also begin a method; under TLS nothing does."""
    with connect(accepted, False) as s:
        for b in b"PROPFIND /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":
            s.sendall(bytes([b]))
            time.sleep(0.0005)
        assert b"PROPFIND /x" in read_all(s)
    refused(accepted, True, b"PROPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n")
    refused(accepted, False, SIG[:-1] + b"x" + request("/x"))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("header", [b"", b"P", SIG, v2()[:-1], v1()[:-1]], ids=["nothing", "P", "signature", "v2", "v1"])
def test_deadline(required, tls, header):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", required.tls_port if tls else required.port), timeout=10 * SLOW, source_address=(FRONT, 0)) as s:
        s.sendall(header)
        assert read_all(s) == b""
    assert 0.4 < time.monotonic() - began < 3 * SLOW


def test_gone_in_the_middle(accepted):
    before = accepted.counters()["open"]
    for tls in (False, True):
        for i in range(0, 28, 3):
            with socket.create_connection(("127.0.0.1", accepted.tls_port if tls else accepted.port), source_address=(FRONT, 0)) as s:
                s.sendall(v2()[:i])
    assert eventually(lambda: accepted.counters()["open"] <= before)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_limit_per_address_counts_the_client(accepted, tls):
    """Three connections an address: of the client, however many come through the proxy."""
    client = "203.0.113.77" if tls else "203.0.113.78"
    busy = []
    for _ in range(3):
        s = connect(accepted, tls, v2(client))
        s.sendall(request("/never"))
        busy.append(s)
    assert eventually(lambda: accepted.counters()["open"] >= 4)
    with pytest.raises((ConnectionError, ssl.SSLError, OSError)):  # nothing idle could make room
        with connect(accepted, tls, v2(client)) as s:
            s.sendall(request("/x"))
            if not s.recv(1):
                raise ConnectionError
    assert ask(accepted, tls, v2("203.0.113.79")) == "203.0.113.79"
    assert ask(accepted, tls, b"") == FRONT
    for s in busy:
        s.close()

    def room():
        try:
            return ask(accepted, tls, v2(client)) == client
        except (OSError, AssertionError):
            return False

    assert eventually(room)
    idle = [connect(accepted, tls, v2(client)) for _ in range(3)]
    for s in idle:
        assert peer(s) == client
    assert ask(accepted, tls, v2(client)) == client  # the longest idle one made room
    for s in idle:
        s.close()


def test_fields_of_a_named_client_do_not_count(accepted):
    spoof = "X-Forwarded-For: 1.1.1.1\r\n"
    assert ask(accepted, False, v2(), spoof) == "203.0.113.9"
    assert ask(accepted, False, v2("10.0.0.9"), spoof) == "1.1.1.1"  # a trusted proxy behind the other one
    assert ask(accepted, False, v2(command=0x20), spoof) == "1.1.1.1"
    assert ask(accepted, False, b"", spoof) == "1.1.1.1"


def test_only_the_configured_field_counts(required, tmp_path):
    assert ask(required, False, v2(command=0x20), 'Forwarded: for=9.9.9.9, for="[2001:db8::7]:1";proto=https\r\n') == "2001:db8::7"
    assert ask(required, False, v2(command=0x20), "X-Forwarded-For: 1.1.1.1\r\n") == FRONT
    off = Server(tmp_path, trusted=FRONT, forwarded_field="off")
    assert ask(off, False, b"", "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\n") == FRONT
    off.close()
