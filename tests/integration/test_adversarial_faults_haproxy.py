"""Every adversarial case of the categories fault_injection and dos_limits behind haproxy (fault_fronts.py)."""
import pytest

from fault_fronts import PARAMS, run_behind, watch  # noqa: F401
from test_adversarial_faults import arena, certs  # noqa: F401

FRONT = "haproxy"


@pytest.mark.parametrize("case", PARAMS)
def test_row(watch, case, request):  # noqa: F811
    run_behind(watch, case, request)
