"""What pages say of the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
E2E = ROOT / "python/tests/e2e"


def named_in(row, own):
    """The tests that a row names, each with its file: that of the page unless the row names another after them."""
    named = []
    for word in re.findall(r"`([^`]+)`", row):
        if not word.endswith((".py", ".rs")):
            named.append(word)
            continue
        file = ROOT / word if "/" in word else E2E / word
        yield from ((file, name) for name in named or [""])
        named = []
    yield from ((E2E / own, name) for name in named)


def test_every_test_that_the_page_of_faults_names_is_there():
    page = (ROOT / "docs/reliability.md").read_text()
    faults = page.split("## Faults")[1].split("Three ways")[0]
    crashes = page.split("## Crashes")[1].split("How long")[0]
    for table, own, least in ((faults, "test_reliability.py", 40), (crashes, "test_crash_points.py", 5)):
        rows = [line.rsplit(" | ", 1)[1] for line in table.splitlines() if line.startswith("| ") and line.endswith("` |")]
        assert len(rows) >= least
        for row in rows:
            for file, name in named_in(row, own):
                assert file.is_file(), row
                assert re.search(rf"\b(fn|def) {name}\b" if name else "", file.read_text()), row
