"""How PyTorch's threads wait is settled by whoever comes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parent.parent
SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def spins(code: str, show: str = SHOW, **settled: str) -> str:
    """GOMP_SPINCOUNT, or what else is shown, after some code, in a process that was started with these settings."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = {**kept, "PYTHONPATH": str(PYTHON), **settled}
    command = [sys.executable, "-c", f"{code}; {show}"]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_pytorch_is_told_before_it_is_imported() -> None:
    from kasmina._openmp import SPINS

    assert spins("import kasmina, torch") == str(SPINS)
    assert spins("import kasmina.torch") == str(SPINS)


def test_nothing_is_set_that_would_not_be_read() -> None:
    assert spins("import torch, kasmina") == "None"


@pytest.mark.parametrize("settled", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_what_the_user_has_set_stays(settled) -> None:
    assert spins("import kasmina", **settled) == settled.get("GOMP_SPINCOUNT", "None")


@pytest.mark.parametrize(
    ("code", "settled", "soon"),
    [
        ("import kasmina, torch", {}, True),
        ("import torch, kasmina", {}, False),
        ("import torch, kasmina", {"GOMP_SPINCOUNT": "2000"}, True),
        ("import os, torch; os.environ['GOMP_SPINCOUNT'] = '2000'; import kasmina", {}, False),
        ("import kasmina, torch", {"GOMP_SPINCOUNT": "infinity"}, False),
        ("import kasmina, torch", {"OMP_WAIT_POLICY": "passive"}, True),
        ("import kasmina, torch", {"OMP_WAIT_POLICY": "active"}, False),
    ],
)
def test_whether_they_sleep_soon_is_known(code, settled, soon) -> None:
    assert spins(code, "import kasmina._openmp; print(kasmina._openmp.sleep_soon)", **settled) == str(soon)
