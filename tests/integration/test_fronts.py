"""Every adversarial row of the registry behind real front proxies. What the front lets through is Pullgate's to judge: a tap between the
two keeps it. After each row a marker request goes through the front, over the connection to Pullgate that the row's bytes went over if that is
still open, and gets exactly its own answer; so does one straight to Pullgate. No request causes two at the upstream."""
import collections
import hashlib
import re
import tempfile

import pytest

import adversarial_rows
import fronts
from stack import basic
from test_adversarial import ROWS, Arena, check, parse_responses, run_row, send_http

FRONTS = ("nginx", "haproxy", "nginx-buffering", "haproxy-proxy")
SEEN = {r["id"] for r in adversarial_rows.GIVEN}
# What an unknown digest may make a proxy look for, once in a while and shared by all: signatures of what is granted.
SEARCH = re.compile(r"/referrers/|/manifests/sha256[-:]")
OWN_VERDICT, ANEW_VERDICT = "the front's own", "reached, as the front wrote it anew"
OWN = (400, 403, 405, 408, 411, 413, 414, 417, 421, 422, 431, 501, 505)  # what a front may answer by itself


class FrontArena(Arena):
    """One stack, and each front before it when its rows begin."""

    def __init__(self):
        super().__init__(proxy={"workers": 2, "trusted_proxies": ["127.0.0.1"], "proxy_protocol": "accepted"},
                         cache={"tag_freshness": "1h", "negative": "0s"}, limits={"keepalive_requests": 1000000}, expiring_in=7200)
        self.direct = self.ph["HOST"]
        self.tap = fronts.Tap(self.direct)
        self.dir = tempfile.TemporaryDirectory(prefix="pullgate-fronts-")
        self.fronts, self.verdicts = {}, {}
        self.digests = {v: i["digest"] for v, i in self.w.images.items()}

    def behind(self, name):
        if name not in self.fronts:
            self.fronts[name] = fronts.start(name, self.dir.name, self.tap.address)
            self.revocable("-" + name)
        self.ph["HOST"] = self.fronts[name].address
        return self.fronts[name]

    def close(self):
        for f in self.fronts.values():
            f.close()
        self.tap.close()
        self.w.s.close()
        self.up.stop()
        self.dir.cleanup()


@pytest.fixture(scope="module")
def arena():
    a = FrontArena()
    yield a
    for name, verdicts in a.verdicts.items():
        print(f"\n{name}: " + ", ".join(f"{v} {len(ids)}" for v, ids in sorted(verdicts.items())))
        print(f"  the front's own: {' '.join(i for i in verdicts.get(OWN_VERDICT, []) if i in SEEN)}")
        print(f"  written anew: {' '.join(i for i in verdicts.get(ANEW_VERDICT, []) if i in SEEN)}")
    a.close()


FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")
LINE = re.compile(rb"([A-Z-]+) (/[!-\x22\x24-~]*) HTTP/1\.[01]")


def requests_in(data):
    """[(method, target, fields, body)] that the front wrote, by the plainest and strictest reading there is; None where that fails."""
    out = []
    if data.startswith(b"\r\n\r\n\0\r\nQUIT\n"):  # HAProxy's PROXY header
        data = data[16 + int.from_bytes(data[14:16], "big"):]
    while data:
        head, blank, rest = data.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        m = LINE.fullmatch(line)
        if not blank or not m or not all(FIELD.fullmatch(f) for f in fields):
            return None
        fields = [tuple(x.strip(b" \t") for x in f.split(b":", 1)) for f in fields]
        lengths = [v for k, v in fields if k.lower() == b"content-length"]
        if any(k.lower() == b"transfer-encoding" for k, _ in fields) or len(lengths) > 1 or not all(v.isdigit() for v in lengths):
            return None
        n = int(lengths[0]) if lengths else 0
        out.append((m[1].decode(), m[2].decode(), fields, rest[:n]))
        data = rest[n:]
    return out


def answers_in(data, requests):
    """The answers to those, in their order."""
    out = []
    while data:
        is_head = requests is not None and len(out) < len(requests) and requests[len(out)][0] == "HEAD"
        first = parse_responses(data, is_head)
        if not first:
            break
        size = data.index(b"\r\n\r\n") + 4 + len(first[0].body)
        data = data[size:]
        if first[0].status != 100:
            out.append(first[0])
    return out


def text_of(body):
    return re.sub(rb"01[0-9A-HJKMNP-TV-Z]{24}", b"", body)  # an id


def judged_alone(arena, passed):
    """The front made something else of the row. Each request that it wrote gets the answer that the same method, target, credential and
    body get from Pullgate when nothing else is in the request; what is no request gets 400 and the end of the connection."""
    for wire, sent, received in passed:
        requests = requests_in(sent)
        answers = answers_in(received, requests)
        if requests is None:
            assert answers and answers[-1].status in (400, 405, 413, 414, 417, 431) and wire.ours_closed, sent[:500]
            continue
        assert len(answers) <= len(requests)
        for (method, target, fields, body), a in zip(requests, answers):
            keep = {k.decode(): v.decode("latin-1") for k, v in fields if k.lower() in (b"authorization", b"content-type", b"range", b"expect")}
            if a.status == 400 and wire.ours_closed and a is answers[-1]:
                continue  # refused by the head check: what the front reads otherwise than we do goes no further
            alone, _, _ = send_http(arena.direct, method, target, keep, body.decode("latin-1") if body else None)
            assert a.status == alone.status and (target.startswith("/token") or text_of(a.body) == text_of(alone.body)), f"{method} {target}: {a.status}, and alone {alone.status}"


def marker(arena, address, version="1.1.0"):
    a, closed, n = send_http(address, "GET", f"/v2/shop/api/manifests/{version}", {"Authorization": arena.ph["CUST_AUTH"]})
    assert a is not None and n == 1, "no answer to the marker"
    assert a.status == 200 and "sha256:" + hashlib.sha256(a.body).hexdigest() == arena.digests[version], f"the marker got {a.status} {a.body[:200]!r}"


# All rows that were given behind all; of their neighbours those that a front could read otherwise than we do, behind the two usual
# configurations. Against the sanitizer build the given rows behind those two.
FRAMING = ("parsing_smuggling", "path_name")
CASES = [pytest.param(f, r, id=f"{f}-{r['id']}", marks=[] if f in FRONTS[:2] and r["id"] in SEEN else [pytest.mark.once])
         for f in FRONTS for r in ROWS if r["id"] in SEEN or (f in FRONTS[:2] and r["category"] in FRAMING)]


@pytest.mark.parametrize("name, row", CASES)
def test_row(arena, name, row):
    arena.behind(name)
    before = arena.tap.mark()
    verdict = {}

    def judge(arena, row, expect, answers, closed, hits):
        passed = arena.tap.since(before)
        asked = collections.Counter((m, p) for m, p, _ in arena.up.requests[len(arena.up.requests) - hits:] if not SEARCH.search(p))
        assert sum(asked.values()) <= max(1, sum(len(requests_in(sent) or [0]) for _, sent, _ in passed)), asked
        for a in answers:
            assert arena.ph["UNGRANTED_DIGEST"] not in a.head_text()
            assert "sha256:" + hashlib.sha256(a.body).hexdigest() != arena.ph["UNGRANTED_DIGEST"]
        if not any(sent for _, sent, _ in passed):
            verdict["is"] = OWN_VERDICT
            if "status_in" in expect and not (answers and answers[0].status in expect["status_in"]):
                assert all(a.status in OWN for a in answers), [a.status for a in answers]
            return
        verdict["is"] = "reached"
        try:
            check(arena, row, expect, answers, closed, hits)
        except AssertionError:
            if all(w.ours_closed and {a.status for a in answers_in(got, requests_in(sent))} <= set(expect["status_in"]) for w, sent, got in passed):
                return  # refused by us, and our connection closed; the client's is the front's to keep
            verdict["is"] = ANEW_VERDICT
            judged_alone(arena, passed)

    run_row(arena, row, judge, quiet=0.1, splits=16)
    passed = arena.tap.since(before)
    verdict.setdefault("is", "reached" if passed else OWN_VERDICT)
    arena.verdicts.setdefault(name, {}).setdefault(verdict["is"], []).append(row["id"])
    for wire, sent, received in passed:  # as many answers as requests, never more
        requests = requests_in(sent)
        n = len(answers_in(received, requests))
        assert requests is None or n <= len(requests), f"{n} answers to {len(requests)} requests: {sent[:500]!r}"
    shared = arena.tap.last if passed and not (arena.tap.last.front_closed or arena.tap.last.ours_closed) else None
    for version in ("1.1.0", "1.0.0"):
        point = arena.tap.mark()
        marker(arena, arena.ph["HOST"], version)
        used = [w for w, sent, _ in arena.tap.since(point) if f"/manifests/{version} ".encode() in sent]
        assert len(used) == 1
        if shared is used[0]:
            arena.verdicts[name].setdefault("marker over the row's connection", []).append(row["id"])
            shared = None
    marker(arena, arena.direct)
