"""Runs the sections and prints the table; --write puts it into docs/PERFORMANCE.md. Asserts no time."""
import argparse
import os
import pathlib
import platform
import re
import sys
import time
import traceback
import warnings

import blobs
import connections
import growth
import manifests
from lab import LOAD, SERVER, Table, on_load_core

SECTIONS = {
    "manifest": ("Hot manifests", manifests.run),
    "instructions": ("Hot manifests", manifests.instructions),
    "blob": ("Blobs", blobs.throughput),
    "slow": ("Blobs", blobs.slow),
    "storm": ("Blobs", blobs.storm),
    "decision": ("Decisions", growth.decision),
    "licenses": ("Growth", growth.licenses),
    "layers": ("Growth", growth.layers),
    "tags": ("Growth", growth.tags),
    "lag": ("Edits", connections.lag),
    "idle": ("Connections", connections.idle),
    "start": ("Start", connections.start),
}
DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- table: written by tests/bench/run.sh --write -->\n", "<!-- end of table -->\n"


def machine():
    cpu = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {cpu[1].strip() if cpu else platform.machine()}, Linux {platform.release().split('-')[0]}"


def main():
    ap = argparse.ArgumentParser(prog="tests/bench/run.sh", description="Pullgate beside nginx and docker-registry: one run, interleaved rounds, medians.")
    ap.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    ap.add_argument("--only", action="append", metavar="NAME", choices=SECTIONS, help="one section (may be repeated): " + ", ".join(SECTIONS))
    ap.add_argument("--write", action="store_true", help="put the table into docs/PERFORMANCE.md (whole runs only)")
    a = ap.parse_args()
    if a.write and (a.only or a.quick):
        ap.error("--write wants a whole run")
    on_load_core()
    warnings.simplefilter("ignore")  # of certificates that nobody verifies
    table = Table()
    begin, busy, broken = time.monotonic(), os.getloadavg()[0], []
    print(f"{machine()}; servers on core {SERVER}, load on core {LOAD}; load average before: {busy:.1f}\n")
    print("  {:66} {:26} {:34} {:26} {:18} {}".format("", "target", "figure", "ratio", "spread", ""))
    for name in a.only or SECTIONS:
        table.section, run = SECTIONS[name]
        print(f"{table.section}: {name}", flush=True)
        try:
            run(table, a.quick)
        except Exception:
            broken.append(name)
            traceback.print_exc()
    hits, misses = (sum(r[-1] == x for r in table.rows) for x in ("hit", "MISS"))
    took = time.monotonic() - begin
    print(f"\n{hits} hit, {misses} missed, {took:.0f} s" + (f"; broke off: {', '.join(broken)}" if broken else ""))
    if a.write and not broken:
        text = DOCUMENT.read_text()
        head, rest = text.split(BEGIN)
        stamp = (f"{time.strftime('%Y-%m-%d')}, {machine()}, load average before the run {busy:.1f}, {took:.0f} s: {hits} targets hit, {misses} missed.\n\n")
        DOCUMENT.write_text(head + BEGIN + stamp + table.markdown() + "\n" + END + rest.split(END)[1])
        print(f"written to {DOCUMENT}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
