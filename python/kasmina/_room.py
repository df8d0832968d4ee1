"""Back-pressure: a forward that the daemon has no room for is asked for again, as long as its session wants to wait."""

from __future__ import annotations

import time
from typing import Any, Callable, Optional, TypeVar

from .errors import ArenaFull, KasminaError

#: Between two tries: room comes when another pass has its backward, of this process or of the user's next.
SHORTEST_S, LONGEST_S = 0.001, 0.05


_T = TypeVar("_T")


class Room:
    """One pass's patience. ``wait_s`` is how long in all, from the first refusal on; 0 for not at all."""

    __slots__ = ("_wait_s", "_until", "_pause_s")

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._until: Optional[float] = None
        self._pause_s = SHORTEST_S

    def pause(self, code: Optional[str]) -> Optional[float]:
        """How long until the next try after a refusal by this code, in seconds; None where that is not waited out."""
        if code != "session.quota" or not self._wait_s:
            return None
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._wait_s
        if now >= self._until:
            return None
        pause, self._pause_s = self._pause_s, min(self._pause_s * 1.5, LONGEST_S)
        return min(pause, self._until - now)

    def pause_for(self, full: ArenaFull) -> float:
        """How long until the arena is asked again, in seconds; raises ``full`` where that is not waited out."""
        pause = None if full.never else self.pause(full.code)
        if pause is None:
            try:
                raise full
            finally:
                del full  # or the exception and this frame would hold each other, and every block that callers have
        return pause

    def wait(self, refusal: KasminaError, deadline: Optional[float] = None) -> None:
        """Returns when it is time to try again; raises the refusal where that is not waited out."""
        pause = self.pause(refusal.code)
        if pause is None:
            try:
                raise refusal
            finally:
                del refusal  # as above
        time.sleep(pause if deadline is None else max(min(pause, deadline - time.monotonic()), 0.0))

    def allocated(self, allocate: Callable[..., _T], *arguments: Any) -> _T:
        """What ``allocate`` gives for the arguments, as soon as the arena has room for it; raises ``ArenaFull`` where
        that is not waited out."""
        while True:
            try:
                return allocate(*arguments)
            except ArenaFull as full:
                pause = self.pause_for(full)
            time.sleep(pause)  # out here nothing holds what was allocated before there was no more
