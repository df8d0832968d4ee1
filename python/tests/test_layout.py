"""The layout: what the daemon exports, what the client uses, what the page says."""

import re
from pathlib import Path

import pytest

from kasmina import _layout

DOCS = Path(__file__).resolve().parents[2] / "docs" / "wire.md"


def rows(heading):
    """Offset, size and field of a table under a heading of the page."""
    section = DOCS.read_text("utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    return [(int(offset), int(size), name) for offset, size, name in found]


@pytest.mark.parametrize(
    "heading, struct", [("Header", "header"), ("Submission", "submission"), ("Completion", "completion")]
)
def test_the_page_has_every_field(heading, struct):
    fields = [(f["offset"], f["size"], f["name"]) for f in _layout.LAYOUT[struct]]
    assert rows(heading) == [field for field in fields if not field[2].startswith("pad_")]


def test_the_page_has_every_number():
    text = DOCS.read_text("utf-8")
    for table in ("statuses", "failures"):
        for entry in _layout.LAYOUT[table]:
            assert f"| {entry['number']} | `{entry['code']}` |" in text
    for entry in _layout.LAYOUT["dtypes"]:
        assert f"| {entry['code']} | `{entry['name']}` | {entry['size']} |" in text
    for name, value in [*_layout.LAYOUT["verbs"].items(), *_layout.LAYOUT["flags"].items()]:
        assert f"| {value} | `{name}` |" in text


def test_packers_follow_the_exported_offsets():
    packed = _layout.SUBMISSION.pack(*range(1, 8), *range(100, 112), 2, 3, *range(20, 36), *range(50, 54))
    for field in _layout.LAYOUT["submission"]:
        value = int.from_bytes(packed[field["offset"] : field["offset"] + min(field["size"], 8)], "little")
        expected = {"verb": 1, "ticket": 6, "rng_seed": 7, "input_offset": 100, "grad_alphas_bytes": 111,
                    "output_rank": 3, "alphas_offset": 50, "straight_bytes": 53, "reserved": 0}
        if field["name"] in expected:
            assert value == expected[field["name"]], field["name"]
    values = _layout.COMPLETION.unpack(bytes(256))
    assert len(values) == len([f for f in _layout.LAYOUT["completion"] if f["name"] != "reserved"])
