"""The long proofs of tests/endurance at sizes that the suite can wait for; `tests/endurance/run.sh` runs them at full size.

PULLGATE_ENDURE_<NAME> sets another size, PULLGATE_ENDURE_SEED repeats a run."""
import pathlib
import sys

import pytest

from stack import SANITIZED

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "endurance"))

from endure import size  # noqa: E402
import decisions  # noqa: E402
import drains  # noqa: E402
import faults  # noqa: E402
import kills  # noqa: E402
import mixed  # noqa: E402
import reloads  # noqa: E402
import revocations  # noqa: E402
import strangers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")


def small(name, release, dev):
    return size(name, dev if SANITIZED else release)


def test_mixed_requests_leave_memory_and_descriptors_flat():
    figures = mixed.run(small("mixed", 20_000, 2_000))
    assert figures["requests"] >= small("mixed", 20_000, 2_000) and figures["left_in_mid_blob"] > 0


def test_names_that_nobody_has_are_answered_and_forgotten():
    n = small("strangers", 8_000, 1_600)
    assert strangers.run(n)["repositories"] > n // 3


def test_reloads_under_load_fail_no_request():
    assert reloads.run(small("reloads", 40, 10))["refused_files"] > 0


def test_drains_under_load_break_no_pull():
    figures = drains.run(small("drains", 12, 4))
    assert figures["two"]["slow_pulls_whole"] > 0 and figures["single"]["answers"] > 100


def test_revocations_are_seen_by_every_proxy():
    n = small("revocations", 40, 10)
    assert revocations.run(n)["seen_by_both"] == n


def test_decisions_of_the_proxies_are_those_of_the_rules():
    figures = decisions.run(library=0, http=small("http_decisions", 12_000, 7_000))["by_proxies"]
    assert figures["allowed"] > 100 and figures["denied"] > 100 and figures["edits"] > 10


def test_killed_while_it_writes():
    n = small("kills", 25, 5)
    figures = kills.run(n)
    assert figures["kills"] == n and figures["acknowledged_writes"] > n


def test_decisions_while_things_fail():
    n = small("faults", 3_000, 800)
    figures = faults.run(n)
    assert figures["decisions_with_faults"] >= n and figures["right_after_each_phase"] > 100 and sum(figures["faults"].values()) > 3
