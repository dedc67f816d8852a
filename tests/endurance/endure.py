"""What the long proofs share: the load generator, plans for it, samples of the daemons, figures.

Each proof is a module with run(…) and a main; it raises AssertionError when what it shows is not so, and returns its figures.
"""
import hashlib
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import stack  # noqa: E402
from stack import BIN, SLOW, _die_with_parent  # noqa: E402

DRIVER = BIN.parent / "tests" / "drive_load"
SEED = int(os.environ.get("PULLGATE_ENDURE_SEED", random.randrange(1 << 30)))
RECORD = struct.Struct("=QQIHBB")  # sent, ended, request, status, outcome, target
GOOD, REFUSED, UNANSWERED, CUT, WRONG_STATUS, WRONG_BODY, WRONG_FORM, TIMED_OUT, LEFT = range(9)
BAD = ("cut", "wrong_status", "wrong_body", "wrong_form", "timed_out")


def size(name, default):
    """How many: PULLGATE_ENDURE_<NAME>, else the full size."""
    return int(os.environ.get("PULLGATE_ENDURE_" + name.upper(), default))


def say(*a):
    print(*a, flush=True)


class Plan:
    """Scripts of requests for drive_load."""

    def __init__(self):
        self.lines, self.requests = [], []

    def script(self, weight, requests, fresh=False):
        self.lines.append(f"script\t{weight}\t{'fresh' if fresh else 'keep'}")
        for r in requests:
            self.lines.append(r)
            self.requests.append(r)
        return self

    def write(self, path):
        pathlib.Path(path).write_text("\n".join(self.lines) + "\n")
        return path


def req(path, auth=None, statuses=(200,), method="GET", body=None, fields=None, leave=-1):
    """body: the bytes that a 200 or 206 has; or their SHA-256 in hex."""
    sha = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else body or "-"
    if method == "HEAD":
        sha = "-"
    return "\t".join(["req", method, path, auth or "-", "|".join(fields or []) or "-", ",".join(map(str, statuses)), sha, str(leave)])


def raw(data, statuses=(400,)):
    return "\t".join(["raw", data.hex(), ",".join(map(str, statuses))])


class Load:
    """drive_load under way; reports come to on_report from a thread."""

    def __init__(self, directory, plan, targets, on_report=None, trace=None, **options):
        path = pathlib.Path(directory) / f"plan-{time.monotonic_ns()}"
        plan.write(path)
        argv = [str(DRIVER), "--plan", str(path)]
        for t in targets:
            argv += ["--target", t.address + (",tls" if t.scheme == "https" else "")]
        self.trace = trace and pathlib.Path(trace)
        if trace:
            argv += ["--trace", str(trace)]
        for k, v in options.items():
            argv += ["--" + k] if v is True else ["--" + k, str(v)] if v is not None and v is not False else []
        self.reports, self.final, self.on_report = [], None, on_report
        env = {k: v for k, v in os.environ.items() if not k.startswith("LD_PRELOAD")}
        self.err = open(str(path) + ".err", "w+")
        self.p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.err, preexec_fn=_die_with_parent, text=True, env=env)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.p.stdout:
            r = json.loads(line)
            if r["final"]:
                self.final = r
            else:
                self.reports.append(r)
                if self.on_report:
                    self.on_report(r)

    def running(self):
        return self.p.poll() is None

    def stop(self):
        if self.running():
            self.p.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout=7200):
        """Its last report."""
        self.p.wait(timeout)
        self.thread.join(30)
        assert self.final, f"the load generator ended with {self.p.returncode}: {self.told()}"
        return self.final

    def told(self):
        self.err.flush()
        return pathlib.Path(self.err.name).read_text()[-4000:]

    def records(self):
        """Of the trace: (sent, ended, request, status, outcome, target), times in ns of the monotonic clock."""
        return RECORD.iter_unpack(self.trace.read_bytes())

    def bad(self):
        return {k: self.final[k] for k in BAD if self.final[k]}


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0


class Process:
    """Memory and descriptors of a daemon."""

    def __init__(self, name, pid):
        self.name, self.pid = name, pid

    def rss_kib(self):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        return 0

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def slope(points):
    """Least squares, of [(x, y)]."""
    n = len(points)
    mx, my = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    under = sum((x - mx) ** 2 for x, _ in points)
    return sum((x - mx) * (y - my) for x, y in points) / under if under else 0.0


def main(name, run):
    """Runs the proof at its full size and prints its figures as a line of JSON."""
    stack.wait_for.__defaults__ = (60.0, 0.02)  # a busy machine: how soon a daemon starts is not what is shown here
    say(f"== {name}, seed {SEED}")
    began = time.monotonic()
    figures = run()
    figures["seconds"] = round(time.monotonic() - began)
    say(f"-- {name}: " + json.dumps(figures))
