"""Random license states and requests, decided by the library and by the oracle: no false allow, no false deny.

PULLGATE_MODEL_CASES sets how many (200,000), PULLGATE_MODEL_SEED where they begin; a difference prints the case, which
`drive_decision` takes on its standard input.
"""

import collections
import json
import multiprocessing
import os
import pathlib
import random
import subprocess

import oracle

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("PULLGATE_BIN", ROOT / "build" / "bin"))
DRIVER = BIN.parent / "tests" / "drive_decision"
CASES = int(os.environ.get("PULLGATE_MODEL_CASES", "200000"))
SEED = int(os.environ.get("PULLGATE_MODEL_SEED", "20260301"))
BATCH = 5000

DAY = 86400
NOW = 1_800_000_000
REPOSITORIES = ["shop/api", "shop/web", "shop/apix", "other/api"]
DIGESTS = ["sha256:" + f"{i:064x}" for i in range(1, 5)] + ["sha512:" + f"{1:0128x}"]
CHANNELS = ["stable", "beta", "lts"]
TEMPLATES = ["{version}"] * 6 + ["v{version}", "{version}-alpine", "rel-{version}"]
NETWORKS = ["10.0.0.0/8", "10.1.2.3", "10.1.2.128/25", "192.168.0.0/16", "2001:db8::/32", "2001:db8::1", "0.0.0.0/0", "10.1.2.3/31"]
CLIENTS = ["10.1.2.3", "10.1.2.2", "10.1.2.129", "192.168.1.1", "2001:db8::1", "2001:db8:1::1", "172.16.0.1", ""]
PRES = ["0", "1", "10", "2", "alpha", "alpha.1", "alpha.beta", "beta.2", "beta.11", "rc.1", "rc-1", "1a", "a.0.b"]


class Dice:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def one(self, of):
        return of[int(self.r.random() * len(of))]

    def chance(self, p):
        return self.r.random() < p

    def number(self):
        return self.one((0, 0, 1, 1, 2, 3, 4, 9, 10, 11))

    # a moment that is, often, just at what is compared with it
    def near(self, *moments):
        if self.chance(0.7):
            return max(1, self.one(moments) + self.one((-1, 0, 0, 1)))
        return max(1, NOW + self.r.randint(-400 * DAY, 400 * DAY))

    def version(self):
        text = f"{self.number()}.{self.number()}.{self.number()}"
        if self.chance(0.3):
            text += "-" + self.one(PRES)
        if self.chance(0.1):
            text += "_" + self.one(("b1", "20260301.x", "007"))
        if self.chance(0.1):
            text = "v" + text
        return text

    def tag(self, template):
        roll = self.r.random()
        if roll < 0.06:
            return self.one(("latest", "1", "1.2", "2024.1-lts", "2024.1", "stable", "nightly_x", "1.2.3.4", "01.2.3", "1.2.3-01", "vv1.2.3", "_"))
        if roll < 0.09:
            return "sha256-" + self.one(DIGESTS)[7:71] + self.one(("", ".sig", ".att", ".sbom", ".foo", "x"))
        if roll < 0.10:
            return self.one(("sha512-" + DIGESTS[4][7:71], "sha256-" + "0" * 63, "sha256-" + "A" * 64, "sha256-" + "g" * 64))
        text = self.version()
        return text if self.chance(0.05) else template.replace("{version}", text)

    def partial(self):
        parts = self.one((1, 2, 2, 3, 3, 3))
        numbers = [str(self.number()) for _ in range(parts)]
        text = ".".join(numbers)
        if parts == 3:
            if self.chance(0.25):
                text += "-" + self.one(PRES)
            if self.chance(0.05):
                text += "+b.1"
        elif self.chance(0.3):
            text += "." + ".".join([self.one("xX*")] * self.one((1, 3 - parts)))
        if self.chance(0.1):
            text = "v" + text
        return text

    def comparator(self):
        roll = self.r.random()
        if roll < 0.03:
            return self.one(("*", "x", ">=*", "^x", "~*"))
        op = self.one(("", "", "=", "^", "^", "^", "~", "~", "~>", ">", ">=", ">=", "<", "<", "<=", "!=", "=>", "=<"))
        space = " " if op and self.chance(0.15) else ""
        return op + space + self.partial()

    def range(self):
        groups = []
        for _ in range(self.one((1, 1, 1, 1, 2, 3))):
            if self.chance(0.08):
                groups.append(f"{self.partial()} - {self.partial()}")
            elif self.chance(0.25):
                groups.append(f">={self.partial()}{self.one((' ', ', ', ',', ' , '))}<{self.one(('', '='))}{self.partial()}")
            else:
                groups.append(self.one((" ", ", ")).join(self.comparator() for _ in range(self.one((1, 1, 1, 2, 3)))))
        return self.one((" || ", "||")).join(groups)

    def glob(self):
        return self.one(("*", "1.*", "*-lts", "2024.*-lts", "1.[0-9].*", "1.2.?", "v*", "[!v]*", "1.*-rc.*", "[0-2].*.0", "*.*.*", "1.2.3", "*[13]", "?.?.?"))

    def selector(self, candidates, template):
        kind = self.one(("exact", "exact", "range", "range", "range", "range", "glob", "channel", "digest", "all", "all"))
        if kind == "exact":
            texts = [oracle.version_of(template, c["tag"]) for c in candidates if self.chance(0.85)]
            texts = [t for t in texts if t]
            return kind, self.one(texts) if texts else self.version().replace("_", "+")
        if kind == "range":
            versions = [oracle.version(oracle.version_of(template, c["tag"]) or "") for c in candidates]
            versions = [v for v in versions if v]
            if versions and self.chance(0.8):  # one that the version lies near the edge of
                numbers, pre = self.one(versions)
                numbers = list(numbers)
                if self.chance(0.3):
                    i = self.one((0, 1, 2))
                    numbers[i] = max(0, numbers[i] + self.one((-1, 1)))
                text = ".".join(map(str, numbers[: self.one((1, 2, 3, 3))]))
                if pre and text.count(".") == 2 and self.chance(0.6):
                    text += "-" + self.one((pre, self.one(PRES)))
                text = self.one(("^", "~", ">=", "<=", "^", "~", ">=", ">", "<", "=", "!=", "")) + text
                return kind, text + (" " + self.comparator() if self.chance(0.15) else "")
            return kind, self.range()
        if kind == "glob":
            return kind, self.glob()
        if kind == "channel":
            return kind, self.one(CHANNELS)
        if kind == "digest":
            return kind, self.one(DIGESTS)
        return kind, self.one(("", "*"))

    def candidates(self, template, is_digest):
        out = []
        for _ in range(self.one((0, 1, 1, 1, 2, 2, 3)) if is_digest else int(self.chance(0.97))):
            out.append(
                {
                    "tag": self.tag(template),
                    "channel": self.one(CHANNELS) if self.chance(0.4) else "",
                    "released_at": 0 if self.chance(0.1) else self.near(NOW, NOW - 30 * DAY, NOW - 100 * DAY),
                    "digest": self.one(DIGESTS) if self.chance(0.8) else "",
                    "until": self.near(NOW - 10 * DAY, NOW - 50 * DAY) if is_digest and self.chance(0.4) else 0,
                }
            )
        return out

    def grant(self, i, query, moments):
        selector, value = self.selector(query["candidates"], query["tag_template"])
        pins = []
        if self.chance(0.25):
            tags = [c["tag"] for c in query["candidates"]] or ["1.2.3"]
            for tag in {self.one(tags) for _ in range(self.one((1, 2)))}:
                pins.append({"repository": query["repository"] if self.chance(0.8) else self.one(REPOSITORIES), "tag": tag, "digest": self.one(DIGESTS)})
        taken = {}
        if self.chance(0.1):
            named = [oracle.version_of(query["tag_template"], c["tag"]) for c in query["candidates"]]
            taken = {"excluded": [self.one([v for v in named if v] or ["1.2.3"]) for _ in range(self.one((1, 2)))]}
        return {
            **taken,
            "id": f"gra_{i}",
            "selector": selector,
            "value": value,
            "include_prerelease": self.chance(0.3),
            "not_before": self.near(NOW) if self.chance(0.2) else 0,
            "not_after": self.near(NOW) if self.chance(0.2) else 0,
            "granted_at": self.near(*moments) if self.chance(0.5) else 0,
            "on_move": self.one(("follow", "follow", "pin")),
            "repositories": [self.one(REPOSITORIES) for _ in range(self.one((1, 2)))] if self.chance(0.15) else [],
            "pins": pins,
        }

    def license(self, i, query):
        released = [c["released_at"] for c in query["candidates"]] or [NOW]
        until = [c["until"] for c in query["candidates"]] or [NOW]
        grace = self.one((0, 0, 1, 7, 30))
        expires = 0
        if self.chance(0.6):
            expires = self.one((self.near(NOW), self.near(NOW - grace * DAY), self.near(*released), self.near(NOW + 30 * DAY)))
        return {
            "id": f"lic_{i}",
            "name": f"License {i}",
            "application_id": "app_1",
            "application_slug": "shop",
            "status": self.one(("active",) * 12 + ("inactive", "suspended", "revoked")),
            "status_reason": "",
            "starts_at": self.near(NOW) if self.chance(0.12) else self.one((0, NOW - 200 * DAY)),
            "expires_at": expires,
            "grace_days": grace,
            "updates_until": self.near(*released) if self.chance(0.25) else 0,
            "on_expiry": self.one(("block", "keep_released")),
            "allowed_cidrs": [self.one(NETWORKS) for _ in range(self.one((1, 2)))] if self.chance(0.2) else [],
            "repositories": [query["repository"]] * self.chance(0.94) + [self.one(REPOSITORIES) for _ in range(self.one((0, 1, 2)))],
            "upstream_credential_id": "",
            "quota_exceeded": self.chance(0.08),
            "grants": [self.grant(g, query, until) for g in range(self.one((1, 1, 1, 2, 2, 3)) if self.chance(0.95) else 0)],
        }

    def case(self):
        is_digest = self.chance(0.35)
        template = self.one(TEMPLATES)
        query = {
            "repository": self.one(REPOSITORIES[:2]),
            "is_digest": is_digest,
            "now": 0 if self.chance(0.002) else NOW,
            "client": self.one(CLIENTS),
            "license_id": self.one(("lic_0", "lic_0", "lic_1", "lic_9")) if self.chance(0.08) else "",
            "tag_template": template,
            "candidates": self.candidates(template, is_digest),
        }
        entitlement = {
            "customer_id": "cus_1",
            "customer_slug": "acme",
            "vendor_id": "ven_1",
            "disabled": self.chance(0.01),
            "renew_url": "",
            "support_contact": "",
            "licenses": [self.license(i, query) for i in range(self.one((1, 1, 1, 1, 1, 2, 2, 3)) if self.chance(0.97) else 0)],
        }
        return {"entitlement": entitlement, "query": query}


def drive(cases):
    text = "".join(json.dumps(c, separators=(",", ":")) + "\n" for c in cases)
    done = subprocess.run([DRIVER], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    return answers


def run_batch(number):
    """Differences found, and how often each answer was given."""
    dice = Dice(SEED * 1_000_003 + number)
    cases = [dice.case() for _ in range(min(BATCH, CASES - number * BATCH))]
    wrong, counted = [], collections.Counter()
    for i, (case, answer) in enumerate(zip(cases, drive(cases))):
        want = oracle.decide(case["entitlement"], case["query"])
        counted[want] += 1
        if (answer["verdict"], answer["reason"]) != want:
            wrong.append((want, answer, case))
            continue
        # what it says of how long this holds is true to the second before
        if i % 4 == 0 and answer["until"] < oracle.NEVER:
            assert answer["until"] > case["query"]["now"], case
            later = dict(case["query"], now=answer["until"] - 1)
            if oracle.decide(case["entitlement"], later) != want:
                wrong.append((want, answer, {"entitlement": case["entitlement"], "query": later}))
    return wrong, counted


def test_library_and_oracle_agree():
    batches = (CASES + BATCH - 1) // BATCH
    counted = collections.Counter()
    with multiprocessing.Pool(2) as pool:
        for wrong, some in pool.imap_unordered(run_batch, range(batches)):
            counted += some
            if wrong:
                want, answer, case = wrong[0]
                pool.terminate()
                raise AssertionError(f"{len(wrong)} in one batch; the first: oracle {want}, library {answer}\n{json.dumps(case)}")
    total = sum(counted.values())
    assert total == CASES
    for answer, n in sorted(counted.items()):
        print(f"{n:8} {answer[0]} {answer[1]}")
    # the draw reaches every answer, and neither allow nor deny is rare: else the comparison would say little
    reasons = {reason for _, reason in counted}
    assert reasons == set(oracle.CLOSEST) | {"granted", "no_license", "not_in_closure", "customer_disabled", "unknown"}
    assert counted[("allow", "granted")] > total * 0.2


def test_the_comparison_notices():
    """A library that errs once is caught: the same cases, one grant altered before the oracle sees them."""
    dice = Dice(SEED)
    noticed = 0
    cases = [dice.case() for _ in range(2000)]
    for case, answer in zip(cases, drive(cases)):
        for license in case["entitlement"]["licenses"]:
            license["status"] = "active" if license["status"] != "active" else "suspended"
        noticed += oracle.decide(case["entitlement"], case["query"]) != (answer["verdict"], answer["reason"])
    assert noticed > 1000
