"""How PyTorch's threads wait for work beside a daemon that computes on the same processors.

PyTorch's operators run on threads of GNU's OpenMP. After each operator these look for the next one for some 300,000 rounds, which
is 8 ms and more, before they sleep. A step through the daemon is such a pause, so a layer's host would have the daemon share its
processors with threads that do nothing. GOMP_SPINCOUNT is how many rounds they look; OpenMP reads it once, when PyTorch is
imported.
"""

import os
import sys

#: Rounds that the threads look for work, some 50 µs: from one operator to the next they stay awake.
SPINS = 2000
#: What a user may have settled already.
_SETTLED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def settle() -> None:
    """Sets GOMP_SPINCOUNT, where the user has set nothing and PyTorch is still to be imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in _SETTLED):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
