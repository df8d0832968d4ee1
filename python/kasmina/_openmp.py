"""How PyTorch's threads wait for work beside a daemon that computes on the same processors.

PyTorch's operators run on threads of GNU's OpenMP. After each operator these look for the next one for some 300,000 rounds, which
is 8 ms and more, before they sleep. A step through the daemon is such a pause, so a layer's host would have the daemon share its
processors with threads that do nothing. GOMP_SPINCOUNT is how many rounds they look; OpenMP reads it once, when PyTorch is
imported.
"""

import os
import sys
from typing import Dict

#: Rounds that the threads look for work, some 50 µs: from one operator to the next they stay awake.
SPINS = 2000
#: What a user may have settled already.
_SETTLED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


#: Whether they sleep soon: then a copy by all of them leaves the daemon its processors in time.
sleep_soon = False


def settle() -> None:
    """Sets GOMP_SPINCOUNT, where the user has set nothing and PyTorch is still to be imported."""
    global sleep_soon
    is_read = "torch" in sys.modules
    if not is_read and not any(name in os.environ for name in _SETTLED):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    # What was set after OpenMP had read it changes nothing: what this process began with is what it knows at least.
    known = _first_environment() if is_read else os.environ
    spins = known.get("GOMP_SPINCOUNT", "")
    is_passive = known.get("OMP_WAIT_POLICY", "").lower() == "passive"
    sleep_soon = int(spins) <= SPINS if spins.isdigit() else is_passive


def _first_environment() -> Dict[str, str]:
    try:
        with open("/proc/self/environ", "rb") as file:
            rows = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(row).partition("=") for row in rows)
    return {name: value for name, _, value in pairs}
