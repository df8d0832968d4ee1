"""Ways for a blend factor. ``docs/lifecycle.md`` has the states of a seed and the formulas."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional

from .errors import UsageError

KINDS = ("constant", "linear", "cosine", "sigmoid")
#: How steep a sigmoid is where nobody says.
STEEPNESS = 12.0
_FLATTEST, _STEEPEST = 0.01, 100.0


class Schedule:
    """A blend factor's way to ``target`` in ``steps`` training forwards of its layer.

    The first forward after it began runs with the value it began at, the one after the last step with the target. A
    ``constant`` one is at its target from the first. Only a ``sigmoid`` has a ``steepness``, in [0.01, 100].
    """

    __slots__ = ("kind", "steps", "target", "steepness")

    def __init__(
        self, kind: str, steps: int, target: float = 1.0, steepness: Optional[float] = None
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f"a schedule is one of {', '.join(KINDS)}, not {kind!r}")
        if int(steps) != steps or not 1 <= steps < 1 << 32:
            raise UsageError(f"a schedule has at least 1 step and fewer than 2^32, not {steps}")
        if not 0.0 <= float(target) <= 1.0:
            raise UsageError(f"a schedule's target must lie in [0, 1], {target} does not")
        if steepness is not None and (kind != "sigmoid" or not _FLATTEST <= float(steepness) <= _STEEPEST):
            raise UsageError(f"only a sigmoid has a steepness, in [{_FLATTEST:g}, {_STEEPEST:g}], not {kind} {steepness}")
        self.kind = kind
        self.steps = int(steps)
        self.target = float(target)
        self.steepness = None if steepness is None else float(steepness)

    def alpha(self, start: float, done: int) -> float:
        """The blend factor of a pass before which ``done`` steps were done, of one that began at ``start``."""
        if self.kind == "constant" or done >= self.steps:
            return self.target
        return start + (self.target - start) * self._part(done / self.steps)

    def wire(self, done: int = 0) -> Dict[str, Any]:
        """As a request has it."""
        spec: Dict[str, Any] = {"kind": self.kind, "steps": self.steps, "target": self.target}
        if self.steepness is not None:
            spec["steepness"] = self.steepness
        if done:
            spec["done"] = done
        return spec

    def _part(self, p: float) -> float:
        if self.kind == "linear":
            return p
        if self.kind == "cosine":
            return math.sin(math.pi / 2 * p) ** 2
        steepness = STEEPNESS if self.steepness is None else self.steepness
        low, high = _logistic(-steepness / 2), _logistic(steepness / 2)
        return (_logistic(steepness * (p - 0.5)) - low) / (high - low)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Schedule) and self.wire() == other.wire()

    def __hash__(self) -> int:
        return hash((self.kind, self.steps, self.target, self.steepness))

    def __repr__(self) -> str:
        steepness = "" if self.steepness is None else f", steepness={self.steepness:g}"
        return f"Schedule({self.kind!r}, {self.steps}, target={self.target:g}{steepness})"

    def __reduce__(self) -> Any:
        return Schedule, (self.kind, self.steps, self.target, self.steepness)


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def embargo_ms(seconds: Optional[float]) -> Dict[str, int]:
    """The field of a prune that says for how long the seed refuses the kernel."""
    if seconds is None:
        return {}
    if not 0.0 <= seconds < 1e12:
        raise UsageError(f"an embargo is a number of seconds, not {seconds}")
    return {"embargo_ms": round(seconds * 1000)}
