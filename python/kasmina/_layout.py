"""What the bytes in shared memory mean: ``layout.json``, exported by the daemon's own tests."""

from __future__ import annotations

import json
import re
import struct
from importlib import resources
from typing import Any, Dict, List

LAYOUT: Dict[str, Any] = json.loads(resources.files(__package__).joinpath("layout.json").read_text("utf-8"))

PROTOCOL: int = LAYOUT["protocol"]
RING_ENTRIES: int = LAYOUT["ring_entries"]
DESCRIPTOR_BYTES: int = LAYOUT["descriptor_bytes"]
ALIGNMENT: int = LAYOUT["alignment_bytes"]
PAGE_BYTES: int = LAYOUT["page_bytes"]
MAX_RANK: int = LAYOUT["max_rank"]
MAX_SEEDS: int = LAYOUT["max_seeds"]
ARENA_MAGIC: int = LAYOUT["arena_magic"]

FORWARD: int = LAYOUT["verbs"]["forward"]
BACKWARD: int = LAYOUT["verbs"]["backward"]
RELEASE: int = LAYOUT["verbs"]["release"]

TRAIN: int = LAYOUT["flags"]["train"]
TAKE_TICKET: int = LAYOUT["flags"]["take_ticket"]
WANT_GRAD_INPUT: int = LAYOUT["flags"]["want_grad_input"]
WANT_GRAD_PARAMETERS: int = LAYOUT["flags"]["want_grad_parameters"]
WANT_GRAD_ALPHAS: int = LAYOUT["flags"]["want_grad_alphas"]

DTYPE_CODES: Dict[str, int] = {entry["name"]: entry["code"] for entry in LAYOUT["dtypes"]}
DTYPE_SIZES: Dict[str, int] = {entry["name"]: entry["size"] for entry in LAYOUT["dtypes"]}
STATUS_CODES: Dict[int, str] = {entry["number"]: entry["code"] for entry in LAYOUT["statuses"]}
FAILURE_CODES: Dict[int, str] = {entry["number"]: entry["code"] for entry in LAYOUT["failures"]}

#: Word index (offset / 8) of each field of the arena's header.
HEADER_WORDS: Dict[str, int] = {entry["name"]: entry["offset"] // 8 for entry in LAYOUT["header"]}

_SCALARS = {"u8": "B", "u32": "I", "u64": "Q", "f32": "f"}


def _struct(fields: List[Dict[str, Any]]) -> struct.Struct:
    """A packer of one value for each number and each list entry; bytes are one value, reserved fields none."""
    codes = ["<"]
    for field in fields:
        array = re.fullmatch(r"\[(\w+); (\d+)\]", field["type"])
        if field["name"].startswith("reserved"):
            codes.append(f"{field['size']}x")
        elif array is None:
            codes.append(_SCALARS[field["type"]])
        elif array[1] == "u8":
            codes.append(f"{array[2]}s")
        else:
            codes.append(array[2] + _SCALARS[array[1]])
    return struct.Struct("".join(codes))


SUBMISSION = _struct(LAYOUT["submission"])
COMPLETION = _struct(LAYOUT["completion"])
assert SUBMISSION.size == COMPLETION.size == DESCRIPTOR_BYTES
