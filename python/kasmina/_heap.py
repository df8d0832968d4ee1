"""The arena's heap: which bytes are taken. The client alone decides; the daemon only checks bounds.

A block is given back when its ``Block`` dies. That may happen at any moment, in a garbage collection in the
middle of an allocation too, so a dying block only appends itself to a queue; ``allocate`` empties it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from typing import Deque, Dict, List, Tuple

from ._layout import ALIGNMENT
from .errors import ArenaFull


class Block:
    """Bytes of the arena, taken as long as this lives."""

    __slots__ = ("_freed", "offset", "size", "__weakref__")

    def __init__(self, freed: Deque[Tuple[int, int]], offset: int, size: int) -> None:
        self._freed = freed
        self.offset = offset
        self.size = size

    def __del__(self) -> None:
        self._freed.append((self.offset, self.size))


class Heap:
    """Blocks of equal size are kept apart for reuse, because a training step asks for the same sizes again
    and again; they go back to the common store only when that runs short."""

    def __init__(self, offset: int, size: int, advice: str = "connect with a larger arena_bytes") -> None:
        self._advice = advice
        self._lock = threading.Lock()
        self._freed: Deque[Tuple[int, int]] = deque()
        self._kept: Dict[int, List[int]] = {}
        self._starts: List[int] = [offset]
        self._sizes: Dict[int, int] = {offset: size}
        self.size = size
        self._free = size

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody holds, in pieces perhaps."""
        with self._lock:
            self._collect()
            return self._free

    @property
    def crowded(self) -> bool:
        """Whether less than half is free, so that long-lived tensors had better lie elsewhere. May lag
        behind by what has died since the last allocation."""
        return self._free * 2 < self.size

    def allocate(self, count: int) -> Block:
        """A block of at least ``count`` bytes. Raises ``ArenaFull``."""
        size = max((count + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT, ALIGNMENT)
        with self._lock:
            if self._freed:
                self._collect()
            kept = self._kept.get(size)
            if kept:
                self._free -= size
                return Block(self._freed, kept.pop(), size)
            offset = self._carve(size)
            if offset < 0:
                self._merge_kept()
                offset = self._carve(size)
            if offset >= 0:
                self._free -= size
                return Block(self._freed, offset, size)
            free = self._free
        full = ArenaFull(
            f"the arena has no {count} bytes free in one piece: {free} of {self.size} are free; "
            f"free tensors or {self._advice}",
            code="session.quota",
        )
        full.never = size > self.size
        raise full

    def _collect(self) -> None:
        while True:
            try:
                offset, size = self._freed.popleft()
            except IndexError:
                return
            self._kept.setdefault(size, []).append(offset)
            self._free += size

    def _carve(self, size: int) -> int:
        for index, start in enumerate(self._starts):
            found = self._sizes[start]
            if found >= size:
                del self._sizes[start]
                if found == size:
                    del self._starts[index]
                else:
                    self._starts[index] = start + size
                    self._sizes[start + size] = found - size
                return start
        return -1

    def _merge_kept(self) -> None:
        for size, offsets in self._kept.items():
            for offset in offsets:
                self._give_back(offset, size)
        self._kept.clear()

    def _give_back(self, offset: int, size: int) -> None:
        index = bisect_left(self._starts, offset)
        if index < len(self._starts) and self._starts[index] == offset + size:
            size += self._sizes.pop(self._starts.pop(index))
        if index > 0 and self._starts[index - 1] + self._sizes[self._starts[index - 1]] == offset:
            self._sizes[self._starts[index - 1]] += size
        else:
            insort(self._starts, offset)
            self._sizes[offset] = size
