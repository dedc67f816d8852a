"""Who may pull what: the rules of DESIGN section 4 once more, in the words of the rules and without a line of the product's.

Works on the JSON of docs/REDIS.md. Versions, ranges and patterns are read by their own code, too: ranges here are
comparisons of prefixes, where the product compares interval ends.
"""

import functools
import ipaddress
import re

DAY = 86400
NEVER = 2**63 - 1

# ---- versions --------------------------------------------------------------------------------------

_NUM = r"(?:0|[1-9][0-9]*)"
_PRE = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"v?({_NUM})\.({_NUM})\.({_NUM})(?:-({_PRE}(?:\.{_PRE})*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?", re.ASCII)
_PARTIAL = re.compile(rf"v?(?:({_NUM})|[xX*])(?:\.(?:({_NUM})|[xX*])(?:\.(?:({_NUM})|[xX*]))?)?(?:-({_PRE}(?:\.{_PRE})*))?(?:\+[0-9A-Za-z.-]+)?", re.ASCII)


def _identifiers(pre):
    """A key by which pre-releases sort; the release itself sorts last."""
    if pre is None:
        return (1,)
    return (0, tuple((0, int(i), "") if i.isdigit() else (1, 0, i) for i in pre.split(".")))


@functools.lru_cache(maxsize=100_000)
def version(text):
    """(numbers, pre) of a complete version, else None."""
    m = _VERSION.fullmatch(text)
    return ((int(m[1]), int(m[2]), int(m[3])), m[4]) if m else None


def _order(v):
    return v[0], _identifiers(v[1])


# ---- ranges ----------------------------------------------------------------------------------------


class Comparator:
    def __init__(self, op, text):
        m = _PARTIAL.fullmatch(text)
        if not m:
            raise ValueError(text)
        self.op = op
        self.given = tuple(int(g) for g in m.groups()[:3] if g is not None)
        self.pre = m[4]
        self.full = len(self.given) == 3

    def holds(self, v):
        numbers = v[0]
        k = len(self.given)
        prefix = numbers[:k]
        if self.full:
            mine = _order((self.given, self.pre))
            theirs = _order(v)
        else:
            mine, theirs = self.given, prefix
        if self.op == "=":
            return theirs == mine
        if self.op == "!=":
            return theirs != mine
        if self.op == ">":
            return theirs > mine
        if self.op == ">=":
            return theirs >= mine
        if self.op == "<":
            return theirs < mine
        if self.op == "<=":
            return theirs <= mine
        if theirs < mine:
            return False
        if self.op == "~":
            keep = min(k, 2)
        else:  # ^: up to and with the first number that is not zero
            keep = next((i + 1 for i, n in enumerate(self.given) if n), k)
        return numbers[:keep] == self.given[:keep]

    def admits(self, v):
        """Does it name a pre-release of this very version?"""
        return self.op != "!=" and self.full and self.pre is not None and self.given == v[0]


@functools.lru_cache(maxsize=100_000)
def parse_range(text):
    groups = []
    for part in text.split("||"):
        comparators = []
        part = re.sub(r"(\S+)\s+-\s+(\S+)", r">=\1 <=\2", part)
        for m in re.finditer(r"(?:(>=|<=|=>|=<|!=|~>|[<>=~^])\s*)?([^\s,]+)", part):
            op = {None: "=", "=>": ">=", "=<": "<=", "~>": "~"}.get(m[1], m[1])
            comparators.append(Comparator(op, m[2]))
        groups.append(comparators)
    return groups


@functools.lru_cache(maxsize=200_000)
def in_range(range_text, version_text, include_prerelease):
    v = version(version_text)
    if v is None:
        return False
    for group in parse_range(range_text):
        if all(c.holds(v) for c in group):
            if v[1] is None or include_prerelease or any(c.admits(v) for c in group):
                return True
    return False


@functools.lru_cache(maxsize=10_000)
def _pattern(glob):
    out, i = "", 0
    while i < len(glob):
        c = glob[i]
        if c == "*":
            out += ".*"
        elif c == "?":
            out += "."
        elif c == "[":
            end = glob.index("]", i)
            inside = glob[i + 1 : end]
            negated = inside[0] in "!^"
            out += "[" + ("^" if negated else "") + inside[negated:] + "]"
            i = end
        else:
            out += re.escape(c)
        i += 1
    return re.compile(out, re.DOTALL)


# ---- tags ------------------------------------------------------------------------------------------

_SUBJECT = re.compile(r"sha(256|512)-[0-9a-fA-F]{64}")


def version_of(template, tag):
    """What version the tag stands for, or None. Helm writes "+" as "_"."""
    before, after = template.split("{version}")
    if not (tag.startswith(before) and tag.endswith(after) and len(tag) > len(before) + len(after)):
        return None
    text = tag[len(before) : len(tag) - len(after)]
    with_build = text.replace("_", "+", 1)
    return with_build if with_build != text and version(with_build) else text


# ---- licenses --------------------------------------------------------------------------------------


def effective(license, now):
    if license["status"] != "active":
        return license["status"]
    if license["starts_at"] and now < license["starts_at"]:
        return "scheduled"
    if license["expires_at"] and now >= license["expires_at"]:
        return "grace" if now < license["expires_at"] + license["grace_days"] * DAY else "expired"
    return "active"  # or expiring: the same here


def _selects(grant, query, candidate, version_text):
    kind, value = grant["selector"], grant["value"]
    if kind == "digest":
        return candidate["digest"] == value
    if version_text is None or version_text in grant.get("excluded", ()):
        return False
    if kind == "exact":
        matched = version_text == value
    elif kind == "range":
        matched = in_range(value, version_text, grant["include_prerelease"])
    elif kind == "glob":
        matched = _pattern(value).fullmatch(version_text) is not None
    elif kind == "channel":
        matched = candidate["channel"] == value
    else:
        matched = kind == "all"
    if not matched:
        return False
    # which content of a tag that moved
    if grant["on_move"] == "follow":
        return not candidate["until"] or candidate["until"] >= grant["granted_at"]
    pinned = [p["digest"] for p in grant["pins"] if (p["repository"], p["tag"]) == (query["repository"], candidate["tag"])]
    if pinned:
        return candidate["digest"] in ("", pinned[0])
    return not candidate["until"]


def _window_holds(grant, now):
    return now >= grant["not_before"] and (not grant["not_after"] or now < grant["not_after"])


def _maintained(license, candidate):
    return not license["updates_until"] or 0 < candidate["released_at"] <= license["updates_until"]


def _from_here(license, query):
    if not license["allowed_cidrs"]:
        return True
    if not query["client"]:
        return False
    client = ipaddress.ip_address(query["client"])
    return any(client in ipaddress.ip_network(c, strict=False) for c in license["allowed_cidrs"])


# from what came closest to allowing to what was farthest from it
CLOSEST = [
    "quota_exceeded",
    "ip_not_allowed",
    "grant_window",
    "maintenance_ended",
    "version_not_granted",
    "expired",
    "scheduled",
    "suspended",
    "inactive",
    "revoked",
]


def _of_license(license, query):
    status = effective(license, query["now"])
    in_force = status in ("active", "grace")
    kept = status == "expired" and license["on_expiry"] == "keep_released"
    if not in_force and not kept:
        return status
    pairs = []
    for candidate in query["candidates"]:
        if _SUBJECT.match(candidate["tag"]):
            continue
        text = version_of(query["tag_template"], candidate["tag"])
        for grant in license["grants"]:
            if (not grant["repositories"] or query["repository"] in grant["repositories"]) and _selects(grant, query, candidate, text):
                pairs.append((grant, candidate))
    if kept:
        pairs = [(g, c) for g, c in pairs if 0 < c["released_at"] <= license["expires_at"]]
    maintained = [(g, c) for g, c in pairs if _maintained(license, c)]
    open_now = [(g, c) for g, c in maintained if _window_holds(g, query["now"])]
    if open_now:
        if not _from_here(license, query):
            return "ip_not_allowed"
        return "quota_exceeded" if license["quota_exceeded"] else "granted"
    if kept:
        return "expired"
    if query["is_digest"]:
        return "version_not_granted"

    # what was found under a tag is told of only to those who may have it: a grant by channel or digest would tell
    def telling(found):
        return [g for g, _ in found if g["selector"] not in ("channel", "digest")]

    if telling(maintained):
        return "grant_window"
    if telling(pairs):
        return "maintenance_ended"
    return "version_not_granted"


def decide(entitlement, query):
    """(verdict, reason)"""
    if query["now"] <= 0:
        return "unknown", "unknown"
    if entitlement["disabled"]:
        return "deny", "customer_disabled"
    reasons = [
        _of_license(license, query)
        for license in entitlement["licenses"]
        if query["repository"] in license["repositories"] and query["license_id"] in ("", license["id"])
    ]
    if "granted" in reasons:
        return "allow", "granted"
    if not reasons:
        return "deny", "no_license"
    reason = min(reasons, key=CLOSEST.index)
    if reason == "version_not_granted" and query["is_digest"]:
        reason = "not_in_closure"
    return "deny", reason
