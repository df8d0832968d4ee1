"""The arena's heap: which bytes are taken. The client alone decides; the daemon only checks bounds.

A block is given back when its ``Block`` dies. That may happen at any moment, in a garbage collection in the
middle of an allocation too, so a dying block only appends itself to the list of its size, and whoever allocates takes the
last one of that: each is one step for other threads. An exception that a signal's handler raises within these few steps
loses the block until the session ends. There is a list for every size that was ever asked for.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from typing import Dict, List

from ._layout import ALIGNMENT
from .errors import ArenaFull


class Block:
    """Bytes of the arena, taken as long as this lives."""

    __slots__ = ("_home", "offset", "size", "__weakref__")

    def __init__(self, home: List[int], offset: int, size: int) -> None:
        self._home = home
        self.offset = offset
        self.size = size

    def __del__(self) -> None:
        self._home.append(self.offset)


class Heap:
    """Blocks of equal size are kept apart for reuse, because a training step asks for the same sizes again
    and again; they go back to the common store only when that runs short."""

    def __init__(self, offset: int, size: int, advice: str = "connect with a larger arena_bytes") -> None:
        self._advice = advice
        # Of the common store. The lists of blocks that are kept, one for each size that there ever was, need none.
        self._lock = threading.Lock()
        self._kept: Dict[int, List[int]] = {}
        self._starts: List[int] = [offset]
        self._sizes: Dict[int, int] = {offset: size}
        self.size = size
        self._stored = size

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody holds, in pieces perhaps."""
        return self._stored + sum(size * len(home) for size, home in list(self._kept.items()))

    @property
    def crowded(self) -> bool:
        """Whether less than half is free, so that long-lived tensors had better lie elsewhere."""
        # What nobody has held yet is more than that most of the time.
        return self._stored * 2 < self.size and self.free_bytes * 2 < self.size

    def allocate(self, count: int) -> Block:
        """A block of at least ``count`` bytes. Raises ``ArenaFull``."""
        size = (count + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT or ALIGNMENT
        home = self._kept.get(size)
        if home:
            try:
                return Block(home, home.pop(), size)
            except IndexError:
                pass  # another thread was first
        with self._lock:
            home = self._kept.setdefault(size, [])
            offset = self._carve(size)
            if offset < 0:
                self._merge_kept()
                offset = self._carve(size)
            if offset >= 0:
                return Block(home, offset, size)
            free = self.free_bytes
        full = ArenaFull(
            f"the arena has no {count} bytes free in one piece: {free} of {self.size} are free; "
            f"free tensors or {self._advice}",
            code="session.quota",
        )
        full.never = size > self.size
        try:
            raise full
        finally:
            del full  # or the exception and this frame would hold each other, and every block that callers have

    def _carve(self, size: int) -> int:
        for index, start in enumerate(self._starts):
            found = self._sizes[start]
            if found >= size:
                self._stored -= size
                del self._sizes[start]
                if found == size:
                    del self._starts[index]
                else:
                    self._starts[index] = start + size
                    self._sizes[start + size] = found - size
                return start
        return -1

    def _merge_kept(self) -> None:
        for size, home in self._kept.items():
            # One by one: others may take from it and add to it meanwhile.
            while home:
                try:
                    offset = home.pop()
                except IndexError:
                    break
                self._give_back(offset, size)

    def _give_back(self, offset: int, size: int) -> None:
        self._stored += size
        index = bisect_left(self._starts, offset)
        if index < len(self._starts) and self._starts[index] == offset + size:
            size += self._sizes.pop(self._starts.pop(index))
        if index > 0 and self._starts[index - 1] + self._sizes[self._starts[index - 1]] == offset:
            self._sizes[self._starts[index - 1]] += size
        else:
            insort(self._starts, offset)
            self._sizes[offset] = size
