#!/usr/bin/env python3
"""What of the code the tests ran, from gcov's counters, held against its goals.

    tests/coverage.py lines BUILD       lines overall, after the whole suite has run against that build
    tests/coverage.py branches BUILD    branches of the modules that decide, after their unit tests have
    tests/coverage.py modules           the names of those modules

Branches are counted in a build of their own (preset coverage): the undefined-behaviour sanitizer adds branches that no test can
take. A branch that cannot be taken is marked where it stands, with the reason in the line (GCOVR_EXCL_BR_LINE).
"""
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PURE = ["closure", "credential", "decision", "head", "license", "oci", "semver", "token"]
LINES_MIN = 90.0  # per cent, of everything
BRANCHES_MIN = 100.0  # per cent, of each of these modules


def measure(build, files, *more):
    out = subprocess.run(["gcovr", "--root", ".", "--object-directory", str(build), "--filter", f"{re.escape(str(ROOT))}/{files}",
                          "--gcov-ignore-parse-errors", "--json-summary", "-", *more, str(build / "CMakeFiles")],
                         cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def lines(build):
    got = measure(build, r"(lib|proxy|admin|cli)/.*\.[ch]$")
    low = sorted((f["line_percent"], f["filename"]) for f in got["files"] if f["line_percent"] < LINES_MIN)
    for percent, name in low:
        print(f"  {name:32} {percent:5.1f} % of lines")
    print(f"coverage: lines {got['line_percent']:.1f} % ({got['line_covered']} of {got['line_total']}), goal {LINES_MIN:.0f} %")
    return got["line_percent"] >= LINES_MIN and got["line_total"] > 10000


def branches(build):
    got = {pathlib.Path(f["filename"]).stem: f for f in measure(build, rf"lib/({'|'.join(PURE)})\.c$", "--branches")["files"]}
    good = True
    for name in PURE:
        f = got.get(name, {"branch_percent": 0, "branch_covered": 0, "branch_total": 0, "line_percent": 0})
        print(f"  {name:32} {f['branch_percent']:5.1f} % of {f['branch_total']} branches, {f['line_percent']:5.1f} % of lines")
        # lines, too: a line that holds a mark counts no branches
        good = good and f["branch_percent"] >= BRANCHES_MIN and f["line_percent"] >= BRANCHES_MIN and f["branch_total"] > 0
    total, covered = (sum(got[n][k] for n in PURE if n in got) for k in ("branch_total", "branch_covered"))
    print(f"coverage: branches of {', '.join(PURE)} {100 * covered / max(total, 1):.1f} % ({covered} of {total}), goal {BRANCHES_MIN:.0f} % each")
    return good


if __name__ == "__main__":
    if sys.argv[1:] == ["modules"]:
        sys.exit(print(*PURE))
    sys.exit(0 if {"lines": lines, "branches": branches}[sys.argv[1]](pathlib.Path(sys.argv[2]).resolve()) else 1)
