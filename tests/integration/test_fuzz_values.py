"""The fuzzer's corpus of small values, read a second time by Python: datetime and zoneinfo, ipaddress, and the oracle's own ranges."""
import datetime
import ipaddress
import os
import pathlib
import re
import subprocess
import tarfile
import zoneinfo

import oracle
import pytest

FUZZ = pathlib.Path(__file__).resolve().parent.parent / "fuzz"
ZONES = ["UTC", "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe"]
VERSIONS = ["0.0.1", "0.2.3", "1.0.0-rc.1", "1.0.0", "1.2.3", "1.2.4-beta", "1.10.0", "2.0.0-0", "2.0.0", "10.0.0"]
MS = {"ms": 1, "s": 1000, "m": 60000, "h": 3600000, "d": 86400000}
BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def corpus():
    with tarfile.open(FUZZ / "corpus" / "values.tar.gz") as t:
        inputs = [t.extractfile(m).read() for m in t if m.isfile()]
    inputs += [p.read_bytes() for p in sorted((FUZZ / "regressions" / "values").glob("*"))] if (FUZZ / "regressions" / "values").exists() else []
    return [i for i in inputs if i[:1] in (b"i", b"e", b"d", b"v", b"r", b"n")]


def instant(s):
    m = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?(?:[Zz]|([+-])(\d\d):(\d\d))", s, re.ASCII)
    if not m or int(m[1]) < 1970 or int(m[8] or 0) > 23 or int(m[9] or 0) > 59:
        return None
    try:
        t = datetime.datetime.fromisoformat(f"{m[1]}-{m[2]}-{m[3]}T{m[4]}:{m[5]}:{m[6]}+00:00")
    except ValueError:
        return None
    offset = (int(m[8] or 0) * 3600 + int(m[9] or 0) * 60) * (-1 if m[7] == "-" else 1)
    return int((t - EPOCH).total_seconds()) - offset


def day(s, zone):
    """First and last second of a day there; None where Python's reading needs a choice (a wall time twice, or never)."""
    d = datetime.date.fromisoformat(s)
    ends = []
    for clock in (datetime.time(0, 0), datetime.time(23, 59, 59)):
        both = {datetime.datetime.combine(d, clock, zone).replace(fold=f).timestamp() for f in (0, 1)}
        if len(both) != 1:
            return None
        ends.append(int(both.pop()))
    return tuple(ends)


def amount(s, units):
    m = re.fullmatch(r"(\d+)([A-Za-z]*)", s, re.ASCII)
    if not m or m[2] not in units or int(m[1]) >= 1 << 64:
        return None
    v = int(m[1]) * units[m[2]]
    return v if v < 1 << 63 else None


def network(s):
    m = re.fullmatch(r"([0-9A-Fa-f:.]+)(?:/(0|[1-9]\d{0,2}))?", s, re.ASCII)
    if not m:
        return None
    try:
        net = ipaddress.ip_network(s, strict=False)
    except ValueError:
        return None
    bits, packed = net.prefixlen, net.network_address.packed
    if net.version == 4:
        bits, packed = bits + 96, b"\0" * 10 + b"\xff\xff" + packed
    return f"{packed.hex()}/{bits}"


def expected(kind, raw):
    s = raw.decode("latin1")
    if kind == "i":
        t = instant(s)
        return "-" if t is None else str(t)
    if kind == "e":
        zone, s = raw[0] % 7 if raw else 0, s[1:]
        if len(s) != 10:
            t = instant(s)
            return "-" if t is None else f"{t} {t}"
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", s, re.ASCII) or int(s[:4]) < 1970:
            return "-"
        try:
            ends = day(s, zoneinfo.ZoneInfo(ZONES[zone]))
        except ValueError:
            return "-"
        return None if ends is None else f"{ends[0]} {ends[1]}"
    if kind == "d":
        return " ".join("-" if v is None else str(v) for v in (0 if s == "0" else amount(s, MS), amount(s, BYTES)))
    if kind == "v":
        num = r"(0|[1-9]\d*)"
        ident = r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
        m = re.fullmatch(rf"v?{num}\.{num}\.{num}(?:-{ident}(?:\.{ident})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?", s, re.ASCII)
        if m and any(int(x) >= 1 << 64 for x in m.groups()):
            return "-"
        return "-" if not m else ".".join(m.groups())
    if kind == "n":
        return network(s) or "-"
    return None


def test_python_reads_the_values_the_same():
    inputs = corpus()
    assert len(inputs) > 100
    lines = "".join(f"{i[:1].decode()} {i[1:].hex()}\n" for i in inputs)
    out = subprocess.run([os.path.join(os.environ["PULLGATE_TESTS_BIN"], "drive_values")], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == len(inputs)
    wrong, compared = [], {}
    for raw, got in zip(inputs, out):
        kind, text = raw[:1].decode(), raw[1:]
        if kind == "r":
            # What the product takes, the oracle's own reading must decide the same; what the oracle cannot read is not compared.
            try:
                want = "".join("1" if oracle.in_range(text.decode("latin1"), v, False) else "0" for v in VERSIONS)
            except Exception:
                continue
            if got == "-":
                continue
        else:
            want = expected(kind, text)
        if want is None:
            continue
        compared[kind] = compared.get(kind, 0) + 1
        if want != got:
            wrong.append((kind, text, got, want))
    assert not wrong, wrong[:20]
    assert all(compared.get(k, 0) >= 10 for k in "iedvrn"), compared
