"""Forwards that a backward repeats, as ``torch.utils.checkpoint`` does.

Such a forward is to be what its first run was. A seed on a schedule has moved on since, and would move once more. The
repetition is known by the number that it draws from PyTorch's generator, whose state ``checkpoint`` brings back, and is
given the blend factors of its first run; of a pass with given factors no step is counted.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Dict, List, Optional

import torch

if TYPE_CHECKING:
    from ._seed import Seed

#: Of how many forwards the blend factors are remembered.
_KEPT = 4096

# What checkpoint itself asks; -1 outside of a backward.
_graph_task_id = getattr(torch._C, "_current_graph_task_id", lambda: -1)


class Repeats:
    """The blend factors that training forwards of one layer had, by the number that each has drawn."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: Those that are remembered.
        self.first: Dict[int, Dict[int, float]] = {}
        self._is_told = False

    def of(self, number: int, moving: List[Seed]) -> Optional[Dict[int, float]]:
        """The blend factors by seed of the forward that this one repeats; None where it is a first run. 0 is the number
        of those that draw none."""
        moving = [seed for seed in moving if seed._way is not None]
        if not number or not (moving or self.first):
            return None
        if _graph_task_id() == -1:
            if moving:
                if len(self.first) >= _KEPT:
                    del self.first[next(iter(self.first))]
                self.first[number] = {seed.index: seed._alpha for seed in moving}
            return None
        found = self.first.get(number)
        if found is None and moving and not self._is_told:
            self._is_told = True
            warnings.warn(
                f"layer {self._name!r} has a seed on a schedule and was run within a backward, and which forward that "
                "repeats is not known (torch.utils.checkpoint with preserve_rng_state=False?): its alpha is another than "
                "there, and moves on. Make the layer with recompute=True and leave it out of the checkpoint",
                UserWarning,
                stacklevel=5,
            )
        return found
