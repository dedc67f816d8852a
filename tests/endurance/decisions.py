"""Model-drawn decisions with no false allow and no false deny: a million by the library, and several hundred thousand by running proxies.

The first part is tests/integration/test_model_decisions.py at full size. The second: a vendor with three repositories (tags that are versions,
pre-releases, builds or nothing of the kind, indexes, shared layers, signatures, referrers, tags that moved), customers with drawn licenses, and
in each round edits by the API, drawn as well; then every customer asks two proxies for tags, manifests, children, configs, layers, referrers,
signatures and lists, by GET, HEAD and Range, with its password or with a token of before the edits. Each answer is compared with the oracle
(tests/integration/oracle.py), which knows the rules of DESIGN and what was sent to the API, and no line of the product.
PULLGATE_ENDURE_DECISIONS: how many by the library; PULLGATE_ENDURE_HTTP_DECISIONS: how many by the proxies.
"""
import collections
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.parse

from endure import GOOD, CUT, LEFT, SEED, SLOW, WRONG_BODY, Load, Plan, main, req, say, size

import oracle
from scripted_upstream import ScriptedUpstream
from stack import Stack, basic, wait_for
from test_model_decisions import Dice

DAY, HOUR = 86400, 3600
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CHANNELS = ["stable", "beta", "lts"]
LAUNCH = int(time.time())
REPOSITORIES = {"shop/api": ("acme/api", "{version}", "shop"), "shop/web": ("acme/web", "v{version}", "shop"), "other/api": ("acme/other", "{version}", "other")}
VERSIONS = ["0.9.0", "1.0.0", "1.2.0", "1.2.1", "1.2.1_b1", "1.3.0-rc.1", "1.3.0", "2.0.0-beta.2", "2.0.0", "2.1.0", "2024.1", "2024.2-lts", "10.0.0", "latest"]
NETWORKS = ["127.0.0.0/8", "127.0.0.1", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"]


def iso(t):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t)) if t else None


def seconds(text):
    import calendar
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")) if text else 0


class Catalog:
    """What the upstream holds, and what the oracle knows of it."""

    def __init__(self, up, rng):
        self.up, self.rng = up, rng
        self.tags = {}     # (public name, tag) -> [{"digest", "until"}], the newest last
        self.reach = {}    # (public name, top digest) -> {(kind, digest)}
        self.attached = {} # (public name, top digest) -> {(kind, digest)}: what signs it
        self.data = {}     # (public name, kind, digest) -> bytes
        self.records = {}  # (application, version) -> (released_at, channel)
        self.signatures = {}  # (public name, sig tag) -> (subject, digest)
        self.shared = [rng.randbytes(rng.choice((300, 5000, 70_000))) for _ in range(4)]
        for name, (upstream, template, application) in REPOSITORIES.items():
            for v in VERSIONS:
                if rng.random() < 0.9:
                    tag = template.replace("{version}", v)
                    self.push(name, tag)
                    record = oracle.version_of(template, tag)
                    if record and (application, record) not in self.records:
                        self.records[application, record] = (LAUNCH - rng.randrange(1, 400) * DAY, rng.choice(CHANNELS + [""]))

    def image(self, name, platform):
        rng, up, repo = self.rng, self.up, REPOSITORIES[name][0]
        layers = [rng.choice(self.shared), rng.randbytes(rng.choice((50, 2000, 40_000)))]
        config = json.dumps({"os": "linux", "architecture": platform, "x": rng.random()}).encode()
        blobs = [(up.push_blob(repo, b), b) for b in (config, *layers)]
        doc = {"schemaVersion": 2, "mediaType": MANIFEST,
               "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blobs[0][0], "size": len(config)},
               "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d, "size": len(b)} for d, b in blobs[1:]]}
        return self.document(name, None, doc, MANIFEST, blobs)

    def document(self, name, tag, doc, media_type, blobs=()):
        """(digest, size, what it reaches)"""
        data = json.dumps(doc).encode()
        digest = self.up.push_manifest(REPOSITORIES[name][0], tag, data, media_type)
        self.data[name, "manifests", digest] = data
        nodes = {("manifests", digest)}
        for d, b in blobs:
            self.data[name, "blobs", d] = b
            nodes.add(("blobs", d))
        return digest, len(data), nodes

    def push(self, name, tag):
        rng = self.rng
        if rng.random() < 0.7:
            kids = [(*self.image(name, p), p) for p in ("amd64", "arm64")]
            doc = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [
                {"mediaType": MANIFEST, "digest": d, "size": n, "platform": {"os": "linux", "architecture": p}} for d, n, _, p in kids]}
            digest, length, nodes = self.document(name, tag, doc, INDEX)
            for _, _, more, _ in kids:
                nodes |= more
        else:
            digest, length, nodes = self.image(name, "amd64")
            self.up.tags[REPOSITORIES[name][0], tag] = digest
        if rng.random() < 0.25:  # an SBOM that refers to it
            b = rng.randbytes(60)
            blob = (self.up.push_blob(REPOSITORIES[name][0], b), b)
            empty = (self.up.push_blob(REPOSITORIES[name][0], b"{}"), b"{}")
            nodes |= self.document(name, None, {
                "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/spdx+json",
                "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty[0], "size": 2},
                "layers": [{"mediaType": "application/spdx+json", "digest": blob[0], "size": len(b)}],
                "subject": {"mediaType": INDEX, "digest": digest, "size": length}}, MANIFEST, [blob, empty])[2]
        if rng.random() < 0.25:  # a signature under a tag of its own
            sig, _, signed = self.image(name, "sig")
            sig_tag = f"sha256-{digest[7:]}.sig"
            self.up.tags[REPOSITORIES[name][0], sig_tag] = sig
            self.signatures[name, sig_tag] = (digest, sig)
            self.attached[name, digest] = signed
        self.reach[name, digest] = nodes
        held = self.tags.setdefault((name, tag), [])
        held.append({"digest": digest, "until": 0})
        return digest

    def candidate(self, name, tag, held):
        application, template = REPOSITORIES[name][2], REPOSITORIES[name][1]
        released, channel = self.records.get((application, oracle.version_of(template, tag)), (0, ""))
        return {"tag": tag, "channel": channel, "released_at": released, "digest": held["digest"], "until": held["until"]}


class Shop:
    """The vendor's deployment, its customers as the API was told, and what the oracle says of them."""

    def __init__(self, customers=24, proxy_env=None, **kw):
        self.rng = random.Random(SEED)
        self.dice = Dice(SEED)
        self.up = ScriptedUpstream()
        self.catalog = Catalog(self.up, self.rng)
        limits = {"connections_per_ip": 10000, "inflight_per_customer": 10000, "auth_failures_per_minute": 1000000, "auth_failures_per_credential": 1000000,
                  **kw.pop("limits", {})}
        self.s = s = Stack(upstream=self.up, n_proxies=0, limits=limits, **kw)
        for i in range(2):
            s.env = proxy_env(s.dir, i) if proxy_env else {}
            s.start_proxy(i)
        s.env = {}
        upstream = s.add_upstream()
        self.apps = {}
        for application in ("shop", "other"):
            repositories = [{"name": n, "upstream_id": upstream["id"], "upstream_repository": u, "kind": "image", "tag_template": t}
                            for n, (u, t, a) in REPOSITORIES.items() if a == application]
            self.apps[application] = s.add_application(application, repositories, upstream["id"])
        for (application, version), (released, channel) in self.catalog.records.items():
            s.api("PUT", f"/applications/{self.apps[application]['id']}/versions/{urllib.parse.quote(version, safe='')}",
                  {"released_at": iso(released), **({"channel": channel} if channel else {})}, expect=None).raise_for_status()
        for app in self.apps.values():
            s.api.post(f"/applications/{app['id']}/sync", {}, expect=None)
        self.customers, self.serial, self.refused, self.edits = [], 0, 0, 0
        for i in range(customers):
            c = s.add_customer(f"model{i}")
            cred = s.add_credential(c["id"])
            self.customers.append({"id": c["id"], "auth": basic(f"model{i}", cred["secret"]), "disabled": False, "licenses": [], "token": None, "token_for": []})
            for _ in range(self.rng.choice((0, 1, 1, 2, 2, 3))):
                self.license_add(self.customers[-1])
        self.tokens()
        self.nothing = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, separators=(",", ":")).encode()

    def close(self):
        self.s.close()
        self.up.stop()

    # ---- drawing ----
    def moment(self, p, past=0.5):
        """A time that no run comes near to, or none."""
        if self.rng.random() > p:
            return 0
        away = self.rng.choice((3 * HOUR, 2 * DAY, 40 * DAY, 300 * DAY)) + self.rng.randrange(HOUR)
        return int(time.time()) + (-away if self.rng.random() < past else away)

    def grant_draw(self, application):
        names = [n for n, r in REPOSITORIES.items() if r[2] == application]
        name = self.rng.choice(names)
        tags = [t for n, t in self.catalog.tags if n == name]
        some = [self.catalog.candidate(name, t, self.catalog.tags[name, t][-1]) for t in self.rng.sample(tags, min(3, len(tags)))]
        selector, value = self.dice.selector(some, REPOSITORIES[name][1])
        if selector == "digest":
            value = self.rng.choice(some)["digest"]
        if self.rng.random() < 0.2:
            selector, value = "all", "*"
        if selector == "channel":
            value = self.rng.choice(CHANNELS)
        g = {"selector": selector, "value": value or "*", "include_prerelease": self.rng.random() < 0.3}
        for key, past in (("not_before", 0.7), ("not_after", 0.3)):
            t = self.moment(0.15, past)
            if t:
                g[key] = iso(t)
        if self.rng.random() < 0.2:
            g["repositories"] = self.rng.sample(names, 1)
        return g

    def terms_draw(self):
        rng = self.rng
        terms = {"starts_at": iso(self.moment(0.15, 0.8)), "expires_at": iso(self.moment(0.5, 0.3)), "grace_days": rng.choice((0, 0, 1, 7, 60)),
                 "updates_until": iso(self.moment(0.25, 0.8)), "on_expiry": rng.choice(("block", "keep_released")),
                 "allowed_cidrs": rng.sample(NETWORKS, rng.choice((1, 2))) if rng.random() < 0.15 else []}
        return terms

    def told(self, doc, application):
        """The license as the oracle reads it, of what the API acknowledged."""
        return {"id": doc["id"], "status": doc["status"], "starts_at": seconds(doc["starts_at"]), "expires_at": seconds(doc["expires_at"]), "grace_days": doc["grace_days"],
                "updates_until": seconds(doc["updates_until"]), "on_expiry": doc["on_expiry"], "allowed_cidrs": doc["allowed_cidrs"], "quota_exceeded": False,
                "repositories": [n for n, r in REPOSITORIES.items() if r[2] == application],
                "grants": [{"selector": g["selector"], "value": g["value"], "include_prerelease": g["include_prerelease"], "not_before": seconds(g["not_before"]),
                            "not_after": seconds(g["not_after"]), "granted_at": seconds(g["created_at"]), "on_move": g["on_move"], "repositories": g["repositories"], "pins": []}
                           for g in doc["grants"]]}

    def license_add(self, c):
        application = self.rng.choice(("shop", "shop", "other"))
        for _ in range(20):  # what the API refuses (a range without a meaning, a window that ends before it begins) is drawn again
            self.serial += 1
            body = {"name": f"L{self.serial}", "customer_id": c["id"], "application_id": self.apps[application]["id"],
                    "status": self.rng.choice(("active",) * 8 + ("inactive",)), **self.terms_draw(),
                    "grants": [self.grant_draw(application) for _ in range(self.rng.choice((0, 1, 1, 2, 3)))]}
            r = self.s.api("POST", "/licenses", body)
            if r.status_code == 201:
                c["licenses"].append({"application": application, "id": r.json()["id"], "told": self.told(r.json(), application)})
                return
            assert r.status_code == 400, (body, r.text)
            self.refused += 1
        raise AssertionError("twenty drawn licenses were refused")

    def edit(self, c):
        """Something is changed by the API."""
        rng, api = self.rng, self.s.api
        self.edits += 1
        if not c["licenses"] or (len(c["licenses"]) < 3 and rng.random() < 0.2):
            return self.license_add(c)
        if rng.random() < 0.05:
            api("PATCH", f"/customers/{c['id']}", {"disabled": not c["disabled"]}, expect=200)
            c["disabled"] = not c["disabled"]
            return
        lic = rng.choice(c["licenses"])
        path, status = f"/licenses/{lic['id']}", lic["told"]["status"]
        roll = rng.random()
        if roll < 0.12 or status == "revoked":
            assert api("DELETE", path).status_code == 204
            c["licenses"].remove(lic)
            return self.license_add(c) if rng.random() < 0.7 else None
        if roll < 0.35:
            action = {"active": rng.choice(("suspend", "suspend", "suspend", "revoke")), "suspended": "reinstate", "inactive": "activate"}[status]
            r = api("POST", f"{path}/{action}", {"reason": "model"})
        elif roll < 0.55:
            r = api("PATCH", path, self.terms_draw())
        elif roll < 0.75 and lic["told"]["grants"]:
            doc = api.get(path)
            assert api("DELETE", f"{path}/grants/{rng.choice(doc['grants'])['id']}", {"reason": "model"}).status_code in (200, 204)
            r = api("GET", path)
        else:
            r = api("POST", f"{path}/grants", self.grant_draw(lic["application"]))
            if r.status_code in (200, 201):
                r = api("GET", path)
        if r.status_code != 200:
            assert r.status_code in (400, 409), (r.request.url, r.text)
            self.refused += 1
            r = api("GET", path)
        lic["told"] = self.told(r.json(), lic["application"])

    def move(self, name, tag):
        """The tag gets other content; the daemons have seen it when this returns."""
        old = self.catalog.tags[name, tag][-1]["digest"]
        digest = self.catalog.push(name, tag)
        app = self.apps[REPOSITORIES[name][2]]
        before = int(time.time())

        def seen():
            self.s.api.post(f"/applications/{app['id']}/sync", {}, expect=None)
            repo = next(r for r in self.s.api.get(f"/applications/{app['id']}")["repositories"] if r["name"] == name)
            value = self.s.redis.cmd("GET", f"pg:v:t:{repo['id']}")
            digests = json.loads(value.split(b" ", 3)[3])["tags"].get(tag, {}).get("digests", [])
            return any(d[0] == old and d[2] for d in digests) and any(d[0] == digest and not d[2] for d in digests)

        wait_for(f"{name}:{tag} to be seen with other content", seen, 20, 0.1)
        self.catalog.tags[name, tag][-2]["until"] = before
        self.fresh()
        time.sleep(max(0, before + 2 - time.time()))  # a grant of the same second would be of before or after

    def fresh(self):
        """Every worker of every proxy has looked at the tags since."""
        time.sleep(1.2 * float(self.s.config["cache"].get("tag_freshness", "15s").rstrip("s")))

    def tokens(self):
        scope = "&".join(f"scope=repository:{n}:pull" for n in REPOSITORIES)
        for i, c in enumerate(self.customers):
            if c["disabled"]:
                c["token"] = None
                continue
            box = {}

            def got():
                box["r"] = self.s.get(f"/token?{scope}", c["auth"], proxy=i % 2)
                return box["r"].status_code == 200

            wait_for("a token", got, 10)
            c["token"] = "Bearer " + box["r"].json()["token"]
            c["token_for"] = {n for lic in c["licenses"] for n in lic["told"]["repositories"]}
        self.tokens_at = time.monotonic()

    # ---- the oracle ----
    def rights(self, c, now):
        """{public name: (allowed tags, allowed nodes, allowed signature tags, whether a list is given)}"""
        ent = {"disabled": c["disabled"], "licenses": [lic["told"] for lic in c["licenses"]]}
        out = {}
        for name, (_, template, _) in REPOSITORIES.items():
            tags, nodes = set(), set()
            signed = {}
            for (n, tag), held in self.catalog.tags.items():
                if n != name:
                    continue
                for h in held:
                    for is_digest in (False, True):
                        if not is_digest and h is not held[-1]:
                            continue
                        q = {"repository": name, "is_digest": is_digest, "now": now, "client": "127.0.0.1", "license_id": "", "tag_template": template,
                             "candidates": [self.catalog.candidate(name, tag, h)]}
                        if oracle.decide(ent, q)[0] == "allow":
                            if is_digest:
                                nodes |= self.catalog.reach[name, h["digest"]]
                            else:
                                tags.add(tag)
            for (n, sig_tag), (subject, sig) in self.catalog.signatures.items():
                if n == name and ("manifests", subject) in nodes:
                    signed[sig_tag] = sig
                    nodes = nodes | self.catalog.attached[name, subject]
            listed = not c["disabled"] and any(
                name in t["repositories"] and (oracle.effective(t, now) in ("active", "grace") or (oracle.effective(t, now) == "expired" and t["on_expiry"] == "keep_released"))
                for t in (lic["told"] for lic in c["licenses"]))
            out[name] = (tags, nodes, signed, listed)
        return out

    def probes(self, c, now, digests_share, tokens=True):
        """[(request, whether it is allowed)] of one customer."""
        rng, out = self.rng, []
        rights = self.rights(c, now)
        add = lambda name, path, allowed, body=None, **kw: out.append((self.ask(c, name, path, tokens, body, **kw), allowed, f"{c['id']} {name}/{path}"))
        for (name, tag), held in self.catalog.tags.items():
            tags = rights[name][0]
            head = rng.random() < 0.3
            add(name, f"manifests/{tag}", tag in tags, held[-1]["digest"][7:], method="HEAD" if head else "GET")
        for (name, tag), (subject, sig) in self.catalog.signatures.items():
            add(name, f"manifests/{tag}", tag in rights[name][2], sig[7:])
        for (name, kind, digest), data in self.catalog.data.items():
            if rng.random() > digests_share:
                continue
            nodes = rights[name][1]
            allowed = (kind, digest) in nodes
            roll = rng.random()
            if roll < 0.06:
                other = "blobs" if kind == "manifests" else "manifests"
                if (name, other, digest) not in self.catalog.data:
                    add(name, f"{other}/{digest}", False)
            elif roll < 0.12 and kind == "manifests":
                # who may not have the subject is told what is told of one that does not exist: nothing refers to it
                add(name, f"referrers/{digest}", True if allowed else "empty", None if allowed else self.nothing)
            elif roll < 0.3:
                add(name, f"{kind}/{digest}", allowed, method="HEAD")
            elif roll < 0.5 and kind == "blobs" and len(data) > 40:
                first = rng.randrange(len(data) - 20)
                last = first + rng.randrange(1, 20)
                add(name, f"{kind}/{digest}", allowed, data[first:last + 1], fields=[f"Range: bytes={first}-{last}"])
            else:
                add(name, f"{kind}/{digest}", allowed, digest[7:])
            if roll > 0.97:
                wrong = rng.choice([n for n in REPOSITORIES if n != name])
                add(wrong, f"{kind}/{digest}", (kind, digest) in rights[wrong][1])
        for name in REPOSITORIES:
            tags, _, signed, listed = rights[name]
            body = json.dumps({"name": name, "tags": sorted([*tags, *signed])}, separators=(",", ":")).encode() + b"\n"
            if listed:
                add(name, "tags/list", True, body)
            else:
                add(name, "tags/list", False)
            add(name, "manifests/77.7.7", False)
            add(name, "blobs/sha256:" + rng.randbytes(32).hex(), False)
        out.append((req("/v2/no/such/manifests/1.0.0", c["auth"], ()), False, "no/such"))
        return out

    def about(self, wrong):
        """What there is to say of a wrong answer."""
        try:
            return self.about_all(wrong)
        except Exception as e:
            return f"\n(no more to be had: {e!r})"

    def about_all(self, wrong):
        what = wrong.split(": ")[-2] if ": " in wrong else ""
        out = []
        for c in self.customers:
            if not what.startswith(c["id"]):
                continue
            name, reference = what.split(" ", 1)[1].rsplit("/", 2)[0], what.rsplit("/", 1)[1]
            kind = what.rsplit("/", 2)[1]
            out += [json.dumps(lic) for lic in c["licenses"]] + [f"disabled {c['disabled']}, now {time.time():.0f}"]
            for (n, tag), held in self.catalog.tags.items():
                for h in held:
                    nodes = self.catalog.reach[n, h["digest"]] | self.catalog.attached.get((n, h["digest"]), set())
                    if n == name and (tag == reference or (kind, reference) in nodes):
                        out.append(f"reached by {tag} of {held}; record {self.catalog.candidate(n, tag, h)}")
            out.append("explain: " + self.s.api("GET", f"/explain?customer={c['id']}&repository={name}&reference={reference}").text)
            out.append("asked again: " + " ".join(str(self.s.get(f"/v2/{name}/{kind}/{reference}", a, proxy=i % 2, headers={"Connection": "close"}).status_code)
                                                  for i in range(8) for a in (c["auth"], c["token"] or c["auth"])))
            for r in self.s.api.get(f"/applications/{self.apps[REPOSITORIES[name][2]]['id']}")["repositories"]:
                if r["name"] == name:
                    out.append("tags: " + self.s.redis.cmd("GET", f"pg:v:t:{r['id']}").decode()[:6000])
        return "\n" + "\n".join(out)

    def ask(self, c, name, path, tokens, body, method="GET", fields=None):
        token = c["token"] if tokens and self.rng.random() < 0.4 and name in c["token_for"] else None
        return req(f"/v2/{name}/{path}", token or c["auth"], (), method=method, body=body, fields=fields)


class Judge:
    """Sorts answers: right, false allow, false deny, could not be known."""

    def __init__(self):
        self.counted, self.false, self.said = collections.Counter(), [], collections.Counter()

    def take(self, load, probes, faults=False, edited=(), until_ns=0):
        """edited, until_ns: an answer by the state before the edits is late, not false, to a customer that was edited, until then."""
        for sent, ended, i, status, outcome, target in load.records():
            _, allowed, what = probes[i]
            self.said[status] += 1
            if allowed is None and outcome == WRONG_BODY and ("/tags/list" in what or "/referrers/" in what):
                outcome = GOOD  # of either state
            kind = self.kind(allowed, status, outcome, faults)
            if sent < until_ns and kind in ("FALSE ALLOW", "FALSE DENY", "WRONG BODY") and what.split(" ")[0] in edited:
                kind = "late"
            self.counted[kind] += 1
            if kind.startswith("FALSE") or kind.startswith("WRONG"):
                self.false.append(f"{kind}: {probes[i][0]}: {what}: {status}, outcome {outcome}, proxy {target}")

    @staticmethod
    def kind(allowed, status, outcome, faults):
        if outcome == WRONG_BODY:
            return "WRONG BODY"
        if status in (200, 206, 416):
            if allowed is False:
                return "FALSE ALLOW"
            return "allowed" if outcome in (GOOD, LEFT) else "broke off" if faults and outcome == CUT else "WRONG END"
        if status in (401, 403, 404):
            if allowed is True:
                return "FALSE DENY"
            return "denied" if outcome == GOOD else "WRONG END"
        if status in (502, 503, 504):
            return "unavailable" if faults else "WRONG: unavailable"
        if status == 0 and faults:
            return "no answer"
        return f"WRONG STATUS {status}"


def by_proxies(n):
    shop = Shop(proxy={"workers": 2}, cache={"tag_freshness": "1s", "negative": "1s"})
    judge = Judge()
    try:
        moved, rounds = 0, 0
        while sum(judge.counted.values()) < n:
            rounds += 1
            if rounds % 4 == 2:
                name, tag = shop.rng.choice(list(shop.catalog.tags))
                shop.move(name, tag)
                moved += 1
            if time.monotonic() - shop.tokens_at > 200:
                shop.tokens()
            edited = {c["id"] for c in shop.customers if shop.rng.random() < 0.5}
            for c in shop.customers:
                if c["id"] in edited:
                    shop.edit(c)
            time.sleep(0.3 * SLOW)  # how long an edit takes is shown by revocations.py; a second is promised
            until_ns = time.monotonic_ns() + int(0.7e9)
            now = int(time.time())
            probes = [p for c in shop.customers for p in shop.probes(c, now, 0.5)]
            shop.rng.shuffle(probes)
            plan = Plan()
            for p in probes:
                plan.script(1, [p[0]])
            load = Load(shop.s.dir, plan, shop.s.proxies, trace=shop.s.dir / "trace", once=True, connections=24, report=1000000)
            load.wait()
            judge.take(load, probes, edited=edited, until_ns=until_ns)
            assert not judge.false, f"seed {SEED}, round {rounds}: {len(judge.false)}, of them\n" + "\n".join(judge.false[:12]) + shop.about(judge.false[0])
            if rounds % 10 == 0:
                say(f"round {rounds:4}: {sum(judge.counted.values()):8} decisions, {dict(judge.counted)}, {shop.edits} edits")
        return {"decisions": sum(judge.counted.values()), "rounds": rounds, "edits": shop.edits, "tags_moved": moved, **{k: v for k, v in judge.counted.items()},
                "false_allow": 0, "false_deny": 0, "statuses": {str(k): v for k, v in sorted(judge.said.items())}}
    finally:
        shop.close()


def by_library(n):
    env = {**os.environ, "PULLGATE_MODEL_CASES": str(n), "PULLGATE_MODEL_SEED": str(SEED)}
    test = os.path.join(os.path.dirname(__file__), "..", "integration", "test_model_decisions.py")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-s", test], env=env, capture_output=True, text=True)
    say(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:]
    return {"decisions": n, "false_allow": 0, "false_deny": 0, "seconds": round(time.monotonic() - began)}


def run(library=None, http=None):
    out = {}
    if library is None:
        library = size("decisions", 1_000_000)
    if library:
        out["by_library"] = by_library(library)
    out["by_proxies"] = by_proxies(http or size("http_decisions", 300_000))
    return out


if __name__ == "__main__":
    main("decisions", run)
