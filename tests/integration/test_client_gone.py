"""Clients that leave while the proxy waits for something. What a sanitizer would say of it is seen at the end of the stack."""
import socket
import struct
import time

import pytest

from conftest import World
from scripted_upstream import ScriptedUpstream
from stack import SLOW, wait_for


@pytest.fixture(scope="module")
def w():
    up = ScriptedUpstream()
    world = World(upstream=up, cache={"hold_on_unknown": "2s"}, limits={"upstream_retries": 0})
    world.up = up
    yield world
    world.s.close()
    up.stop()


def test_while_a_failed_blob_is_held(w):
    """The relay has failed before its first byte and is to be tried again: the access line still has its repository and digest."""
    blob = w.images["1.0.0"]["children"][0]["layers"][1]
    failing = lambda h: "/blobs/" in h.path and (h.reply(503, b"no"), True)[1]
    w.up.rules.append(failing)
    try:
        host, port = w.s.address.rsplit(":", 1)
        for i in range(8):
            before = w.up.hits("/blobs/")
            with socket.create_connection((host, int(port))) as s:
                s.sendall(f"GET /v2/shop/api/blobs/{blob} HTTP/1.1\r\nHost: x\r\nAuthorization: {w.auth}\r\nUser-Agent: leaver\r\n\r\n".encode())
                wait_for("the upstream to be asked", lambda: w.up.hits("/blobs/") > before)
                time.sleep(0.05 * SLOW)  # into the wait between two tries
                if i % 2:  # else: half-closed, which the proxy bears with for a while
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line = lambda: [x for x in w.s.proxies[0].text().splitlines() if '"leaver"' in x]
        wait_for("the access lines", lambda: len(line()) >= 8)
        for x in line():
            assert '"repository":"shop/api"' in x and blob in x, x
        assert sum('"cause":"client_gone"' in x for x in line()) >= 4
    finally:
        w.up.rules.remove(failing)
