#!/usr/bin/env python3
"""A million licenses: what the import, lists, filters, the projection and the start of both daemons take. Prints a table; asserts nothing.

    nice -n 19 tests/bench/million.py [--licenses 1000000] [--customers 20000] [--rounds 60] [--seconds N] [--copies N]

The daemons are those of PULLGATE_BIN; Redis is started; everything lies under the temporary directory. Latencies are of whole requests over
loopback, with a session, 100 rows a page where nothing else is said: sign-in, SQLite, printing with grants, transport.
"""
import argparse
import datetime
import json
import os
import pathlib
import random
import sqlite3
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import requests  # noqa: E402

from admin_fixture import NoUpstream  # noqa: E402
from stack import Stack, wait_for  # noqa: E402

PART = 10000
ENVIRONMENTS = ["production", "staging", "test", ""]
REGIONS = ["eu", "us", "ap", "sa"]
WORDS = ["Aurora", "Borealis", "Cumulus", "Delta", "Ember", "Fjord", "Glacier", "Harbour", "Isle", "Jade", "Köln", "Lagoon"]


def rss(proc):
    for line in pathlib.Path(f"/proc/{proc.p.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024


def cpu_ms(proc, thread=""):
    """Of its threads (of that name), since the start: what the machine's other load does not stretch."""
    total = 0
    for t in pathlib.Path(f"/proc/{proc.p.pid}/task").iterdir():
        try:
            if not thread or (t / "comm").read_text().strip() == thread:
                total += int((t / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass
    return total / 1e6


def lines(rng, start, n, customers, apps, day):
    out = []
    for i in range(start, start + n):
        ends = rng.choice([None, rng.randint(-400, 1200)])
        row = {"customer": f"customer-{rng.randrange(customers) if i >= customers else i:06d}", "application": rng.choice(apps),
               "name": f"{rng.choice(WORDS)} {rng.choice(WORDS)} {i:07d}", "status": rng.choices(["active", "inactive", "suspended", "revoked"], [90, 5, 4, 1])[0],
               "grants": rng.choice(["range:^1.2", "exact:1.4.2;exact:2.0.0", "all"]), "environment": rng.choice(ENVIRONMENTS), "period": rng.choice(["P1Y", "P1M"]),
               "order_number": f"ORD-{i:08d}", "external_id": f"ext-{i:08d}", "metadata": {"region": rng.choice(REGIONS), "account": f"acc-{i % 200000}"},
               "grace_days": rng.choice([0, 7, 14]), "type": rng.choices(["paid", "trial", "development"], [94, 4, 2])[0]}
        if ends is not None:
            row["expires_at"] = day(ends)
        if i % 20 == 0:
            row["allowed_cidrs"] = [f"10.{i // 65536 % 256}.{i // 256 % 256}.0/24"]
        if i % 50000 == 7:
            row["issuer"] = "rare"
        out.append(json.dumps(row))
    return "\n".join(out)


def multiply(path, times, base):
    """Copies of what was imported, straight into the store while no daemon has it: licenses with grants, networks and words. Their keys are
    in no fact, so what Redis holds of them are their customers' entitlements."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-262144")
    new = lambda column: f"substr({column},1,4)||?1||substr({column},7)"  # noqa: E731  ids stay in the order of their making

    def copy(table, n, change, where=""):
        columns = [r[1] for r in db.execute(f"PRAGMA table_info({table})")]
        db.execute(f"INSERT INTO {table} ({','.join(columns)}) SELECT {','.join(change.get(c, c) for c in columns)} FROM {table} {where}", (f"{n + 1:02d}", n))

    number = lambda column, at, digits: f"substr({column},1,{at})||printf('%0{digits}d',substr({column},{at + 1})+?2*{base})"  # noqa: E731
    for n in range(1, times):
        db.execute("BEGIN")
        copy("licenses", n, {"id": new("id"), "name": f"substr(name,1,length(name)-7)||printf('%07d',substr(name,-7)+?2*{base})", "key_hash": "lower(hex(randomblob(32)))",
                             "key_prefix": "substr(hex(randomblob(3)),1,6)", "order_number": number("order_number", 4, 8), "external_id": number("external_id", 4, 8),
                             "created_at": "created_at+?2*600", "updated_at": "updated_at+?2*600", "wake_at": "0",
                             "expires_at": "CASE expires_at WHEN 0 THEN 0 ELSE expires_at+(random()%30)*86400 END",
                             "metadata": "json_set(metadata,'$.account','acc-'||(abs(random())%200000))"}, "WHERE substr(id,5,2)='01'")
        copy("grants", n, {"id": new("id"), "license_id": new("license_id")}, "WHERE substr(id,5,2)='01' AND ?1||?2<>''")
        copy("license_cidrs", n, {"license_id": new("license_id")}, "WHERE substr(license_id,5,2)='01' AND ?1||?2<>''")
        db.execute("INSERT INTO license_text (rowid, vendor, name, customer, environment) SELECT n, a, b, c, d FROM text_queue WHERE kind='l' ORDER BY id")
        db.execute("DELETE FROM text_queue")
        db.execute("COMMIT")
        print(f"  … copied {n + 1} times, load {os.getloadavg()[0]:.1f}", flush=True)
    total = db.execute("SELECT COUNT(*) FROM licenses").fetchone()[0]
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return total


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--licenses", type=int, default=1_000_000)
    p.add_argument("--customers", type=int, default=20_000)
    p.add_argument("--rounds", type=int, default=60)
    p.add_argument("--copies", type=int, default=1, help="import a share, and copy it so many times in the store")
    p.add_argument("--seconds", type=int, default=0, help="stop the import after so many seconds, with what is there")
    a = p.parse_args()
    rng = random.Random(1)
    base = datetime.datetime.now(datetime.timezone.utc)
    day = lambda n: (base + datetime.timedelta(days=n)).strftime("%Y-%m-%dT00:00:00Z")  # noqa: E731
    s = Stack(upstream=NoUpstream(), start=False)
    s.config["limits"] = {"admin_body_size": "16MiB"}
    s.start_admin()
    print(f"{a.licenses:,} licenses, {a.customers:,} customers; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    try:
        up = s.add_upstream()
        apps = [f"app-{i}" for i in range(10)]
        for slug in apps:
            s.add_application(slug, [(f"{slug}/api", f"x/{slug}", "image")], up["id"])
        began, done = time.monotonic(), 0
        while done < a.licenses and not (a.seconds and time.monotonic() - began > a.seconds):
            n = min(PART, a.licenses - done)
            r = s.api.s.post(s.admin_base + "/api/v1/licenses/import?create_customers=1", data=lines(rng, done, n, a.customers, apps, day).encode(),
                             headers={"Content-Type": "application/x-ndjson"}, timeout=600)
            assert r.status_code == 200, r.text[:2000]
            done += n
            if done % (PART * 10) == 0:
                print(f"  … {done:,} after {time.monotonic() - began:.0f} s, admin {rss(s.admin):.0f} MiB, load {os.getloadavg()[0]:.1f}", flush=True)
        took, cpu = time.monotonic() - began, cpu_ms(s.admin)
        print(f"import: {cpu / done * 1000:.0f} us of CPU a license, projection included", flush=True)
        print(f"import: {done:,} in {took:.0f} s, {done / took:,.0f} a second, parts of {PART:,}", flush=True)
        size = sum(f.stat().st_size for f in s.dir.glob("pullgate.db*")) / 2**20
        print(f"store: {size:,.0f} MiB; admin {rss(s.admin):.0f} MiB resident", flush=True)

        metrics = lambda: requests.get(s.admin_base + "/readyz", timeout=5).json()  # noqa: E731
        began = time.monotonic()
        wait_for("the projection", lambda: metrics()["in_sync"] and metrics()["projection_lag"] == 0, 3600, 0.5)
        print(f"projection in step with the store {time.monotonic() - began:.1f} s after the import", flush=True)

        if a.copies > 1:
            s.admin.stop()
            done = multiply(s.dir / "pullgate.db", a.copies, done)
            s.start_admin()
            size = sum(f.stat().st_size for f in s.dir.glob("pullgate.db*")) / 2**20
            print(f"{done:,} licenses in the store, {size:,.0f} MiB", flush=True)
            wait_for("the projection", lambda: metrics()["in_sync"] and metrics()["projection_lag"] == 0, 3600, 0.5)
        one = s.api.get("/licenses?order_number=ORD-00000500")["items"]
        one = one[0] if one else s.api.get("/licenses?limit=1")["items"][0]
        n = lambda: rng.randrange(done)  # noqa: E731
        shapes = [
            ("no filter", lambda: ""),
            ("no filter, count", lambda: "count=1"),
            ("no filter, limit=1000", lambda: "limit=1000"),
            ("sort=-created_at", lambda: "sort=-created_at"),
            ("sort=name", lambda: "sort=name"),
            ("sort=-expires_at", lambda: "sort=-expires_at"),
            ("id", lambda: "id=" + one["id"]),
            ("order_number", lambda: f"order_number=ORD-{n():08d}"),
            ("external_id", lambda: f"external_id=ext-{n():08d}"),
            ("customer=slug", lambda: f"customer=customer-{rng.randrange(a.customers):06d}"),
            ("customer, sort=-expires_at", lambda: f"customer=customer-{rng.randrange(a.customers):06d}&sort=-expires_at"),
            ("application", lambda: "application=" + rng.choice(apps)),
            ("application, status=revoked", lambda: f"application={rng.choice(apps)}&status=revoked"),
            ("status=suspended, sort=name, count", lambda: "status=suspended&sort=name&count=1"),
            ("effective_status=expiring, count", lambda: "effective_status=expiring&count=1"),
            ("effective_status=grace, sort=name", lambda: "effective_status=grace&sort=name"),
            ("expires in a week, sort=expires_at", lambda: f"expires_after={day(0)}&expires_before={day(7)}&sort=expires_at"),
            ("type=trial, environment, region", lambda: f"type=trial&environment=production&metadata.region={rng.choice(REGIONS)}"),
            ("metadata.account", lambda: f"metadata.account=acc-{rng.randrange(200000)}"),
            ("metadata.region, sort=-updated_at", lambda: f"metadata.region={rng.choice(REGIONS)}&sort=-updated_at"),
            ("cidr=address", lambda: f"cidr=10.{rng.randrange(16)}.{rng.randrange(256)}.9"),
            ("cidr=10.0.0.0/8, count", lambda: "cidr=10.0.0.0/8&count=1"),
            ("key_prefix", lambda: "key_prefix=" + one["key_prefix"]),
            ("name=prefix*", lambda: f"name={rng.choice(WORDS)}*&sort=name"),
            ("q=a number", lambda: f"q={n():07d}"),
            ("q=two words of many", lambda: f"q={rng.choice(WORDS)}%20{rng.choice(WORDS)}"),
            ("q=common, count", lambda: f"q={rng.choice(WORDS)}&count=1"),
            ("q=common, status=revoked", lambda: f"q={rng.choice(WORDS)}&status=revoked"),
            ("q=beginning of two letters", lambda: f"q={rng.choice(WORDS)[:2]}"),
            ("issuer=rare, sort=name", lambda: "issuer=rare&sort=name"),
            ("auto_renew=true (none), a short page", lambda: "auto_renew=true"),
            ("auto_renew=true (none), sort=name, count", lambda: "auto_renew=true&sort=name&count=1"),
        ]
        print(f"\n| query | rows | p50 ms | p99 ms | CPU ms |\n|---|---|---|---|---|")
        worst = 0.0
        for name, make in shapes:
            took, rows, cpu = [], 0, cpu_ms(s.admin, "db-read")
            for _ in range(a.rounds):
                q = make()
                began = time.perf_counter()
                r = s.api.s.get(s.admin_base + "/api/v1/licenses?" + q, timeout=60)
                took.append((time.perf_counter() - began) * 1000)
                if r.status_code != 200:
                    rows = r.json()["code"]
                    continue
                rows = len(r.json()["items"])
            took.sort()
            cpu = cpu_ms(s.admin, "db-read") - cpu
            p99 = took[min(len(took) - 1, int(len(took) * 0.99))]
            worst = max(worst, p99)
            print(f"| {name} | {rows} | {statistics.median(took):.1f} | {p99:.1f} | {cpu / a.rounds:.1f} |", flush=True)
        pages, cursor, took = 0, "", []
        while pages < 50:
            began = time.perf_counter()
            r = s.api.get("/licenses?status=active&sort=name" + cursor)
            took.append((time.perf_counter() - began) * 1000)
            cursor = "&cursor=" + r["next_cursor"]
            pages += 1
        print(f"| status=active, sort=name, 50 pages on | 100 | {statistics.median(took):.1f} | {max(took):.1f} | |")
        print(f"\nworst p99 {worst:.1f} ms; admin {rss(s.admin):.0f} MiB resident after it", flush=True)

        s.admin.stop()
        began = time.monotonic()
        s.start_admin(within=300)  # it reads the whole store first
        print(f"admin: start to answering {(time.monotonic() - began) * 1000:.0f} ms, {rss(s.admin):.0f} MiB", flush=True)
        began = time.monotonic()
        s.start_proxy(0)
        print(f"proxy: start to ready {(time.monotonic() - began) * 1000:.0f} ms, {rss(s.proxies[0]):.0f} MiB", flush=True)
        s.redis.cmd("FLUSHALL")
        began = time.monotonic()
        wait_for("the rebuild to begin", lambda: not metrics()["in_sync"], 60, 0.05)
        wait_for("the rebuild", lambda: metrics()["in_sync"] and metrics()["projection_lag"] == 0, 3600, 0.5)
        print(f"Redis filled anew from the store in {time.monotonic() - began:.1f} s; "
              f"Redis {s.redis.cmd('INFO', 'memory').decode().split('used_memory_human:')[1].split()[0]}; admin {rss(s.admin):.0f} MiB", flush=True)
    finally:
        s.close()


main()
