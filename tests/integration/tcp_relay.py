"""A TCP relay between two parts of the stack that does to their bytes what networks do: delays, drops, cuts, swallows.

One thread; every verb takes effect on the connections that are open and on those that come. Nothing outlives close().
"""
import collections
import contextlib
import heapq
import selectors
import socket
import struct
import threading
import time

CHUNK = 64 * 1024
HELD_MAX = 1 << 20  # bytes held of one direction before its sender is no longer read


class Pipe:
    """One direction: bytes of `src` on their way to `dst`, each chunk with the time it is due."""

    def __init__(self, src, dst):
        self.src, self.dst = src, dst
        self.held = collections.deque()
        self.held_bytes = 0
        self.ended = False


class TcpRelay:
    def __init__(self, target, backlog=256):
        """target: a port, (host, port), or a function that says (host, port) at each connection."""
        self.target = target if isinstance(target, tuple) or callable(target) else ("127.0.0.1", target)
        self.delay_s = 0.0
        self.backlog = backlog
        self.accepted = 0
        self.lock = threading.RLock()
        self.sel = selectors.DefaultSelector()
        self.pipes, self.peers = {}, {}  # socket -> the pipe it feeds; socket -> its other side
        self.due, self.serial = [], 0
        self.swallowing = False
        self.fillers = []
        self.listener = None
        self.port = 0
        self._open_listener()
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_r.setblocking(False)
        self.on = True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    # ---- verbs ----
    def delay(self, seconds):
        """Everything that comes from either side from now on arrives that much later."""
        self.delay_s = seconds

    def cut(self):
        """Resets every open connection; further ones are relayed."""
        with self.lock:
            for s in list(self.peers):
                self._reset(s)

    def refuse(self):
        """Nobody listens any more, and what was open is reset."""
        with self.lock:
            self._close_listener()
            self.cut()

    def drop(self):
        """A partition: nothing arrives at either side, no connection ends, SYNs stay unanswered.

        What a side sends is taken from it by the kernel until its buffers are full, as if the far end's receiver stood still; a real DROP
        leaves it unacknowledged instead. SYNs are lost in the same way as there: the listener's queue is full."""
        with self.lock:
            self.swallowing = True
            self._close_listener()
            self._open_listener(0)
            for _ in range(8):  # one or two fill a queue of length 0; the rest hangs, as every client does
                s = socket.socket()
                s.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    s.connect(("127.0.0.1", self.port))
                self.fillers.append(s)

    def resume(self):
        """As in the beginning. Connections that a partition held go on with the bytes that were held."""
        with self.lock:
            self.delay_s, self.swallowing = 0.0, False
            self._close_listener()
            self._open_listener()
            for s in self.fillers:
                s.close()
            self.fillers = []
        self._wake()

    def retarget(self, target):
        """Further connections go there; open ones are reset."""
        self.target = target if isinstance(target, tuple) else ("127.0.0.1", target)
        self.cut()

    def open(self):
        with self.lock:
            return len(self.peers) // 2

    def close(self):
        self.on = False
        self._wake()
        self.thread.join()
        with self.lock:
            self._close_listener()
            for s in [*self.peers, *self.fillers, self.wake_r, self.wake_w]:
                s.close()
            self.sel.close()

    # ---- what a subclass may want to see, told from the thread ----
    def opened(self, client, server):
        pass

    def carried(self, s, data):
        """What came from s; b"": no more will come."""

    def forgotten(self, s):
        """Its connection is over."""

    # ---- the thread ----
    def _wake(self):
        with contextlib.suppress(OSError):
            self.wake_w.send(b"x")

    def _open_listener(self, backlog=None):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + 5
        while True:
            try:
                s.bind(("127.0.0.1", self.port))
                break
            except OSError:  # the port is ours; somebody's outgoing connection may have it for a moment
                assert time.monotonic() < deadline, f"port {self.port} is taken"
                time.sleep(0.02)
        s.listen(self.backlog if backlog is None else backlog)
        s.setblocking(False)
        self.port = s.getsockname()[1]
        self.listener = s
        if backlog is None:
            self.sel.register(s, selectors.EVENT_READ)

    def _close_listener(self):
        if self.listener:
            with contextlib.suppress(KeyError):
                self.sel.unregister(self.listener)
            self.listener.close()
            self.listener = None

    def _forget(self, s):
        with contextlib.suppress(KeyError, ValueError):
            self.sel.unregister(s)
        self.pipes.pop(s, None)
        if self.peers.pop(s, None):
            self.forgotten(s)

    def _reset(self, s):
        for x in (s, self.peers.get(s)):
            if x is None:
                continue
            self._forget(x)
            with contextlib.suppress(OSError):
                x.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            x.close()

    def _accept(self):
        try:
            a, _ = self.listener.accept()
        except OSError:
            return
        self.accepted += 1
        b = socket.socket()
        try:
            b.settimeout(1)
            b.connect(self.target() if callable(self.target) else self.target)
        except OSError:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            a.close()
            b.close()
            return
        for s in (a, b):
            s.setblocking(False)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers[a], self.peers[b] = b, a
        self.pipes[a], self.pipes[b] = Pipe(a, b), Pipe(b, a)
        self.opened(a, b)
        for s in (a, b):
            self.sel.register(s, selectors.EVENT_READ)

    def _interest(self, s):
        """A socket is read while its pipe has room and written while bytes for it are due."""
        if s not in self.peers:
            return
        mine, other = self.pipes[s], self.pipes[self.peers[s]]
        want = 0 if self.swallowing or mine.ended or mine.held_bytes >= HELD_MAX else selectors.EVENT_READ
        if not self.swallowing and other.held and other.held[0][0] <= time.monotonic():
            want |= selectors.EVENT_WRITE
        try:
            key = self.sel.get_key(s)
            if want == 0:
                self.sel.unregister(s)
            elif key.events != want:
                self.sel.modify(s, want)
        except KeyError:
            if want:
                self.sel.register(s, want)

    def _read(self, s):
        p = self.pipes[s]
        try:
            data = s.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._reset(s)
            return
        p.ended |= not data
        self.carried(s, data)
        at = time.monotonic() + self.delay_s
        p.held.append((at, data))
        p.held_bytes += len(data)
        if self.delay_s:
            self.serial += 1
            heapq.heappush(self.due, (at, self.serial, p.dst))

    def _write(self, s):
        """Bytes that are due for s."""
        p = self.pipes[self.peers[s]]
        now = time.monotonic()
        while p.held and p.held[0][0] <= now:
            at, data = p.held[0]
            try:
                if not data:
                    s.shutdown(socket.SHUT_WR)
                    p.held.popleft()
                    if self.pipes[s].ended and not self.pipes[s].held:
                        self._reset(s)
                        return
                    continue
                n = s.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._reset(s)
                return
            p.held_bytes -= n
            if n < len(data):
                p.held[0] = (at, data[n:])
                return
            p.held.popleft()

    def _run(self):
        self.sel.register(self.wake_r, selectors.EVENT_READ)
        while self.on:
            wait = 0.05
            if self.due:
                wait = min(wait, max(0.0, self.due[0][0] - time.monotonic()))
            try:
                events = self.sel.select(wait)
            except OSError:
                continue
            with self.lock:
                touched = set()
                for key, mask in events:
                    s = key.fileobj
                    if s is self.wake_r:
                        with contextlib.suppress(BlockingIOError):
                            s.recv(100)
                        touched |= set(self.peers)
                    elif s is self.listener:
                        self._accept()
                    elif s in self.peers and not self.swallowing:
                        touched |= {s, self.peers[s]}
                        if mask & selectors.EVENT_READ:
                            self._read(s)
                        if s in self.peers and mask & selectors.EVENT_WRITE:
                            self._write(s)
                    elif s in self.peers:
                        touched.add(s)
                now = time.monotonic()
                while self.due and self.due[0][0] <= now:
                    touched.add(heapq.heappop(self.due)[2])
                for s in touched:
                    if s in self.peers and not self.swallowing and not self.delay_s:
                        self._write(s)
                    if s in self.peers:
                        self._interest(s)
                        if s in self.peers:
                            self._interest(self.peers[s])
