"""docs/LICENSING.md names the tests that show each row: every core row has one, and no test names a row that is not there."""
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/LICENSING.md"
ROW = re.compile(r"^\| (\d\.\d+) \| (.*) \| ([^|]*?) \|[ ]*([^|]*?)[ ]*\|$", re.M)


def names_by_row():
    """Row -> names; of Python and C tests. A name begins with its rows: test_lic_1_5_1_28_…"""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*")):
        if path.suffix not in (".py", ".c"):
            continue
        for name, rows in re.findall(r"\b(test_lic((?:_\d_\d+)+)_[a-z]\w*)\b", path.read_text()):
            for row in re.findall(r"_(\d)_(\d+)", rows):
                names = found.setdefault(".".join(row), [])
                if name not in names:
                    names.append(name)
    return found


@pytest.mark.once
def test_every_core_row_has_a_test():
    found = names_by_row()
    page = PAGE.read_text()

    def told(m):
        names = ", ".join(f"`{n}`" for n in found.get(m.group(1), []))
        return f"| {m.group(1)} | {m.group(2)} | {m.group(3)} | {names} |"

    want = ROW.sub(told, page)
    if os.environ.get("PULLGATE_WRITE_REFERENCE") and want != page:
        PAGE.write_text(page := want)
    rows = {m.group(1): m for m in ROW.finditer(page)}
    assert len(rows) > 160
    assert not set(found) - set(rows), "tests of rows that are not in docs/LICENSING.md"
    missing = [r for r, m in rows.items() if "core" in m.group(3) and not found.get(r)]
    assert not missing, f"core rows without a test: {missing}"
    assert page == want, "docs/LICENSING.md names other tests; PULLGATE_WRITE_REFERENCE=1 writes it"
